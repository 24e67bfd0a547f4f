using System.Globalization;

namespace Ses.Tests.Support;

/// <summary>A SeS without its HTTP side: the store and the Recorder, on a folder, towards an Onix.</summary>
internal sealed class Site : IAsyncDisposable
{
    private static readonly TimeSpan Deadline = TimeSpan.FromSeconds(60);

    private readonly Uri _onix;
    private readonly string[] _flags;
    private CancellationTokenSource _stop = new();
    private Task _running = Task.CompletedTask;

    public Site(Uri onix, string? dir = null, params string[] flags)
    {
        (_onix, _flags) = (onix, flags);
        Dir = dir ?? Directory.CreateTempSubdirectory("ses-site-").FullName;
        Start();
    }

    public string Dir { get; }

    public Store Store { get; private set; } = null!;

    public Recorder Recorder { get; private set; } = null!;

    public Meters Meters { get; private set; } = null!;

    public StringWriter Lines { get; } = new();

    /// <summary>What the Recorder brings to Onix of a new service.</summary>
    public static ServiceKey Service(int number, string partition = "INS") =>
        new(partition, "p1", $"s{number}", "node", "10.0.0.1:2379");

    public static DateTime At(double seconds) =>
        new DateTime(2026, 11, 1, 0, 0, 0, DateTimeKind.Utc).AddSeconds(seconds);

    /// <summary>Stores alerts of the dialect, as one webhook of a partition does.</summary>
    public async Task RecordAsync(params (ServiceKey Service, string Status, DateTime Time)[] words)
    {
        foreach (var partition in words.GroupBy(w => w.Service.Partition))
            await Store.AppendAsync(partition.Key, StoreChild.Body([.. partition.Select(w => Alert(
                w.Service, w.Status, w.Time))]));
    }

    /// <summary>A firing alert of the dialect: its label set names the service and the status.</summary>
    public static IncomingAlert Alert(ServiceKey service, string status, DateTime time) => new(
        service, true, AlertSource.Webhook, "",
        $$"""{"facet":"{{service.Facet}}","service":"{{service}}","status":"{{status}}"}""", status, time, null,
        $"it is {status}");

    public Task RecordAsync(ServiceKey service, string status, double seconds) =>
        RecordAsync((service, status, At(seconds)));

    /// <summary>Waits until Onix has confirmed all, and nothing is barred.</summary>
    public async Task DrainedAsync()
    {
        try
        {
            await Wait.UntilAsync(() => Settled() is { Barred: 0 }, Deadline, "all in Onix");
        }
        catch (TimeoutException e)
        {
            throw new TimeoutException($"{Recorder.State()}, running: {_running.Status}; the log: {Lines}", e);
        }
    }

    /// <summary>Waits until all is read, whether Onix took it or refuses it.</summary>
    public Task SettledAsync() => Wait.UntilAsync(() => Settled() != null, Deadline, $"all of {Dir} to be settled");

    /// <summary>All is derived, and Onix has all but what it refuses.</summary>
    /// <summary>The state, if nothing waits but what Onix refuses; null: something does.</summary>
    private RecorderState? Settled()
    {
        // With this all that was acknowledged is derived, and marked.
        Store.ReadAsync().GetAwaiter().GetResult().Dispose();
        return Recorder.State() is { Trouble: null, Confirmed: not null } state && state.Backlog == state.Barred
            ? state : null;
    }

    /// <summary>Ends it and starts it again on the same folder; </summary>
    public async Task RestartAsync()
    {
        await StopAsync();
        Start();
    }

    public async Task StopAsync()
    {
        await _stop.CancelAsync();
        await _running;
        Store.Dispose();
    }

    public async ValueTask DisposeAsync()
    {
        await StopAsync();
        _stop.Dispose();
        Directory.Delete(Dir, recursive: true);
    }

    /// <summary>Waits until so many changes are counted: that is done once they are stored.</summary>
    public Task CountedAsync(string outcome, int count) => Wait.UntilAsync(
        () => Meters.OnixChanges.WithLabels(outcome).Value == count, Deadline, $"{count} {outcome}");

    private void Start()
    {
        _stop = new CancellationTokenSource();
        var flags = new Dictionary<string, string> { ["--onix-url"] = _onix.AbsoluteUri };
        for (var i = 0; i < _flags.Length; i += 2)
            flags[_flags[i]] = _flags[i + 1];
        var options = Options.Read(flags, new Dictionary<string, string>());
        var log = new Log(LogLevel.Trace, false, TextWriter.Synchronized(Lines), TimeProvider.System);
        Meters = new Meters("test", "test");
        Store = new Store(Dir, StoreRules.Of(options), TimeProvider.System, log, Meters);
        var onix = new OnixClient(options, OnixClient.CreateHandler(options), TimeProvider.System, Meters);
        Recorder = new Recorder(Store, onix, _onix.AbsoluteUri, TimeProvider.System, log, Meters);
        _running = Recorder.RunAsync(_stop.Token);
    }
}

/// <summary>The plain word on what a history must be.</summary>
internal static class Oracle
{
    /// <summary>Up and down in order of time, at equal times down alone, runs of one told as their first.</summary>
    public static List<(string Status, DateTime Time)> History(IEnumerable<(string Status, DateTime Time)> words)
    {
        var history = new List<(string Status, DateTime Time)>();
        foreach (var word in words.GroupBy(w => w.Time).OrderBy(g => g.Key)
            .Select(g => g.FirstOrDefault(w => w.Status == "down", g.First())))
        {
            if (history.Count == 0 || history[^1].Status != word.Status)
                history.Add(word);
        }
        return history;
    }

    /// <summary>What the stand-in recorded of a service, in the order of recording.</summary>
    public static List<(string Status, DateTime Time)> Recorded(OnixStandIn onix, ServiceKey service) =>
        [.. onix.History.Where(c => c.Partition == service.Partition && c.Platform == service.Platform
            && c.Service == service.Service && c.Facet == service.Facet && c.Location == service.Location)
            .Select(c => (c.Status, DateTime.Parse(c.Time, CultureInfo.InvariantCulture,
                DateTimeStyles.AdjustToUniversal)))];
}
