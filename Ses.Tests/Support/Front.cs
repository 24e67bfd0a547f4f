namespace Ses.Tests.Support;

/// <summary>
/// A SeS without a process and without an Onix: gate and Web on a free port of 127.0.0.1, before a store in
/// a temp folder.
/// </summary>
internal sealed class Front : IAsyncDisposable
{
    private Options _options;
    private readonly TimeProvider _clock;
    private readonly Log _log;
    private readonly Meters _meters;
    private bool _isClosed;

    /// <param name="auth">Null: as the options say, with no issuer that could be reached.</param>
    /// <param name="built">Null: the program has no date.</param>
    /// <param name="descriptors">The gate takes half of them for connections.</param>
    /// <param name="serve">Take webhooks from the start.</param>
    public Front(Options options, TimeProvider clock, Log log, Meters meters, Auth? auth = null,
        DateTime? built = null, Tls? tls = null, long descriptors = 20_000, bool serve = true)
    {
        (_options, _clock, _log, _meters) = (options, clock, log, meters);
        Store = Open();
        auth ??= new Auth(options, new SocketsHttpHandler(), clock, log, meters);
        Web = new Web(options, auth, built ?? DateTime.MinValue, clock, log, meters);
        Gate = new Gate(options, Web, tls, descriptors, clock, log, meters);
        Port = Gate.Start().Port;
        if (serve)
            Serve();
    }

    /// <summary>Flags and their values, over those that every front has.</summary>
    public static Options OptionsOf(params string[] flags)
    {
        var given = new Dictionary<string, string>
        {
            ["--onix-url"] = "none",
            ["--address"] = "127.0.0.1",
            ["--port"] = "0",
        };
        for (var i = 0; i < flags.Length; i += 2)
            given[flags[i]] = flags[i + 1];
        return Options.Read(given, new Dictionary<string, string>());
    }

    /// <summary>Of the store.</summary>
    public string Dir { get; } = Directory.CreateTempSubdirectory("ses-front-").FullName;

    public Store Store { get; private set; }

    public Web Web { get; }

    public Gate Gate { get; }

    public int Port { get; }

    public void Serve() => Web.Serve(Store, null);

    public void CloseStore()
    {
        _isClosed = true;
        Store.Dispose();
    }

    private Store Open() => new(Dir, StoreRules.Of(_options), _clock, _log, _meters);

    /// <summary>Opens the store anew, as a start does.</summary>
    /// <param name="flags">None: with the settings of before.</param>
    public void Reopen(params string[] flags)
    {
        _options = flags.Length == 0 ? _options : OptionsOf(flags);
        (Store, _isClosed) = (Open(), false);
        Serve();
    }

    public async ValueTask DisposeAsync()
    {
        await Gate.DrainAsync(TimeSpan.Zero);
        if (!_isClosed)
            Store.Dispose();
        Directory.Delete(Dir, recursive: true);
    }
}
