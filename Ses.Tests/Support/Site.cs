using System.Globalization;

namespace Ses.Tests.Support;

/// <summary>A SeS without its HTTP side: the event log and the Recorder, on a folder, towards an Onix.</summary>
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

    public EventLog Log { get; private set; } = null!;

    public Recorder Recorder { get; private set; } = null!;

    public Meters Meters { get; private set; } = null!;

    public StringWriter Lines { get; } = new();

    /// <summary>What the Recorder brings to Onix of a new service.</summary>
    public static ServiceKey Service(int number, string partition = "INS") =>
        new(partition, "p1", $"s{number}", "node", "10.0.0.1:2379");

    public static DateTime At(double seconds) =>
        new DateTime(2026, 11, 1, 0, 0, 0, DateTimeKind.Utc).AddSeconds(seconds);

    /// <summary>Makes status events durable, as one webhook does.</summary>
    public Task RecordAsync(params (ServiceKey Service, string Status, DateTime Time)[] words) =>
        Log.AppendAsync(new Payload([.. words.Select(w =>
            new MappedAlert(w.Service, $"it is {w.Status}", false, w.Status, w.Time, null))], [], 0), "INS");

    public Task RecordAsync(ServiceKey service, string status, double seconds) =>
        RecordAsync((service, status, At(seconds)));

    /// <summary>Waits until Onix has confirmed all, and nothing is barred.</summary>
    public async Task DrainedAsync()
    {
        try
        {
            await Wait.UntilAsync(() => IsSettled() && Recorder.Snapshot().Barred.Count == 0, Deadline, "all in Onix");
        }
        catch (TimeoutException e)
        {
            throw new TimeoutException($"{Recorder.Snapshot()}, running: {_running.Status}; the log: {Lines}", e);
        }
    }

    /// <summary>Waits until all is read, whether Onix took it or refuses it.</summary>
    public Task SettledAsync() => Wait.UntilAsync(IsSettled, Deadline, $"all of {Dir} to be settled");

    private bool IsSettled() => Recorder.Snapshot() is { Backlog: 0, Trouble: null, Confirmed: not null };

    /// <summary>Ends it and starts it again on the same folder; disorderly: the log is not ended.</summary>
    public async Task RestartAsync()
    {
        await StopAsync();
        Start();
    }

    public async Task StopAsync()
    {
        await _stop.CancelAsync();
        await _running;
        Log.Stop();
    }

    public async ValueTask DisposeAsync()
    {
        await StopAsync();
        _stop.Dispose();
        Directory.Delete(Dir, recursive: true);
    }

    public double Outcome(string outcome) => Meters.OnixEvents.WithLabels(outcome).Value;

    private void Start()
    {
        _stop = new CancellationTokenSource();
        var flags = new Dictionary<string, string> { ["--onix-url"] = _onix.AbsoluteUri };
        for (var i = 0; i < _flags.Length; i += 2)
            flags[_flags[i]] = _flags[i + 1];
        var options = Options.Read(flags, new Dictionary<string, string>());
        var log = new Log(LogLevel.Trace, false, TextWriter.Synchronized(Lines), TimeProvider.System);
        Meters = new Meters("test", "test");
        Log = new EventLog(Dir, TimeSpan.FromDays(400), TimeProvider.System, log, Meters);
        var onix = new OnixClient(options, OnixClient.CreateHandler(options), TimeProvider.System, Meters);
        Recorder = new Recorder(Log, onix, _onix.AbsoluteUri, TimeProvider.System, log, Meters);
        _running = Recorder.RunAsync(_stop.Token);
    }
}

/// <summary>The plain word on what a history must be.</summary>
internal static class Oracle
{
    /// <summary>Events in order of time, at equal times down last, runs of one status told as their first.</summary>
    public static List<(string Status, DateTime Time)> History(IEnumerable<(string Status, DateTime Time)> words)
    {
        var history = new List<(string Status, DateTime Time)>();
        foreach (var word in words.Distinct().OrderBy(w => w.Time).ThenBy(w => w.Status == "down" ? 1 : 0)
            .ThenBy(w => w.Status, StringComparer.Ordinal))
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
