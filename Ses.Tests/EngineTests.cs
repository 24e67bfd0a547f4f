using System.Text.Json;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What an engine gets of the derived timeline is what SeS itself tells, whatever rewrites the past.</summary>
public sealed class EngineTests : IDisposable
{
    private static readonly DateTime Noon = new(2026, 11, 23, 12, 0, 0, DateTimeKind.Utc);
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-engine-").FullName;
    private readonly ManualClock _clock = new(Noon);
    private readonly StringWriter _log = new();
    private readonly Meters _meters = new("test", "test");
    private readonly Receiver _engine = new();

    public void Dispose()
    {
        _engine.Dispose();
        Directory.Delete(_dir, recursive: true);
    }

    private Store Open() => new(_dir, StoreChild.Rules with { Name = "a", Timeline = new TimelineRules(TimeSpan.FromMinutes(15)) },
        _clock, new Log(LogLevel.Trace, false, TextWriter.Synchronized(_log), _clock), _meters);

    /// <summary>Sends until the engine lacks nothing.</summary>
    private async Task SendAllAsync(Store store)
    {
        (await store.ReadAsync()).Dispose();
        var options = Front.OptionsOf("--engine", _engine.Url + "?query=INSERT+secret");
        var log = new Log(LogLevel.Trace, false, TextWriter.Synchronized(_log), TimeProvider.System);
        var forwarder = (await Forwarder.OpenAsync(options.Targets, store, TimeProvider.System, log, _meters)).Single();
        using var stop = new CancellationTokenSource();
        var running = forwarder.RunAsync(stop.Token);
        await Wait.UntilAsync(() =>
        {
            using var snapshot = store.Snapshot();
            return snapshot.Number("SELECT count(*) FROM changed") == 0 || running.IsCompleted;
        }, Soon, "the engine to lack nothing");
        await stop.CancelAsync();
        await running;
    }

    private sealed record Row(string By, string Id, string? From, string? Status, long Version, string Since)
    {
        public static Row Of(string line)
        {
            var json = JsonDocument.Parse(line).RootElement;
            Assert.Equal("run", json.GetProperty("kind").GetString());
            return new(json.GetProperty("by").GetString()!, json.GetProperty("service_id").GetString()!, json.GetProperty("from").GetString(),
                json.GetProperty("status").GetString(), json.GetProperty("version").GetInt64(), json.GetProperty("since").GetString()!);
        }
    }

    /// <summary>A row holds unless a later version of its service has a since that is not after its from.</summary>
    private static List<string> Current(IEnumerable<string> lines)
    {
        var rows = lines.Select(Row.Of).ToList();
        return [.. rows.Where(r => r.From != null && !rows.Any(o => (o.By, o.Id) == (r.By, r.Id) && o.Version > r.Version
                && string.CompareOrdinal(o.Since, r.From) <= 0))
            .Select(r => $"{r.Id} {r.From} {r.Status}").Distinct().Order(StringComparer.Ordinal)];
    }

    private static async Task<List<string>> ToldAsync(Store store)
    {
        using var snapshot = await store.ReadAsync();
        var told = new List<string>();
        foreach (var (_, service, runs) in Questions.Of(snapshot).Runs(ServiceFilter.All, DateTime.UnixEpoch))
        {
            var id = RunLines.NamesOf(service).Split("\"service_id\":\"")[1][..16];
            var (last, end) = ("", (DateTime?)null);
            foreach (var run in runs)
            {
                if (end < run.From && last != "")
                    (last, _) = ("", Tell(end.Value, ""));
                if (snapshot.NameOf(run.Status) is var status && status != last)
                    _ = Tell(run.From, last = status);
                end = run.To;
            }
            if (end is { } over)
                _ = Tell(over, "");

            bool Tell(DateTime from, string status)
            {
                told.Add($"{id} {FactLines.Written(from)} {status}");
                return true;
            }
        }
        return [.. told.Order(StringComparer.Ordinal)];
    }

    private static IncomingAlert Alert(int service, DateTime starts, DateTime? ends = null) => new(
        Site.Service(service, service % 3 == 0 ? "WEB" : "INS"), service % 4 == 0, AlertSource.Webhook, "",
        $$"""{"alertname":"Down","instance":"{{service}}"}""", "down", starts, ends, "down");

    [Fact]
    public void IdIsThatOfTheExamples()
    {
        var line = File.ReadLines(Path.Combine(AppContext.BaseDirectory, "Data", "fleet", "run.jsonl")).First();
        var names = RunLines.NamesOf(new("INS", "k8s-1", "checkout", "HttpDown", "10.0.1.135:9100"));
        Assert.Equal(line, RunLines.Run("ses-zrh-a", names, Site.At(7 * 3600), "up", 1793520000131, Site.At(7 * 3600)));
    }

    /// <summary>Random alerts, late ones, gaps, corrections, purges and restarts; rows in any order, twice.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(33)]
    public async Task EngineHasWhatSesTells(int seed)
    {
        var random = new Random(seed);
        var store = Open();
        try
        {
            await SendAllAsync(store);
            for (var round = 0; round < 25; round++)
            {
                for (var i = random.Next(1, 6); i > 0; i--)
                    await DoAsync(store, random);
                if (random.Next(5) == 0)
                {
                    store.Dispose();
                    // Longer than five minutes it is a gap.
                    _clock.UtcNow = _clock.UtcNow.AddMinutes(random.Next(1, 60));
                    store = Open();
                }
                await SendAllAsync(store);
                if (random.Next(3) == 0)
                {
                    var lines = _engine.Taken.ToArray();
                    random.Shuffle(lines);
                    Assert.Equal(await ToldAsync(store), Current(lines.Concat(lines)));
                }
            }
            Assert.Equal(await ToldAsync(store), Current(_engine.Taken));
            Assert.DoesNotContain("secret", _log.ToString(), StringComparison.Ordinal);
        }
        finally
        {
            store.Dispose();
        }
    }

    private async Task DoAsync(Store store, Random random)
    {
        var now = _clock.UtcNow;
        switch (random.Next(8))
        {
            case <= 3:
                var alert = Alert(random.Next(8), now.AddSeconds(-random.Next(1, 600)), random.Next(2) == 0 ? now.AddSeconds(-1) : null);
                await store.AppendAsync(alert.Service.Partition, StoreChild.Body(alert));
                break;
            case 4:
                // Another SeS heard it an hour ago.
                var late = Alert(random.Next(8), now.AddMinutes(-random.Next(60, 120)), now.AddMinutes(-random.Next(5, 50)));
                var import = new LineImport();
                Assert.NotNull(import.Add(FactLines.Alive("b", now), now));
                Assert.NotNull(import.Add(FactLines.Observation("b", late, ObservationKind.End, now.AddMinutes(-4), now.AddMinutes(-4), out _), now));
                Assert.Empty(await store.AddAsync((w, _) => import.Take(w)));
                break;
            case 5:
                await NoteAsync(store, random, now);
                break;
            default:
                await _clock.PassAsync(now.AddMinutes(random.Next(1, 40)), null, store);
                break;
        }
    }

    private static async Task NoteAsync(Store store, Random random, DateTime now)
    {
        var given = new Dictionary<string, string?>
        {
            ["id"] = $"n{random.Next(3)}",
            ["kind"] = "correction",
            ["status"] = random.Next(2) == 0 ? "up" : "down",
            ["from"] = Rfc3339.Format(now.AddMinutes(-random.Next(1, 90))),
            ["to"] = Rfc3339.Format(now.AddMinutes(random.Next(-60, 60))),
            ["service"] = $"s{random.Next(8)}",
            ["withdrawn"] = random.Next(4) == 0 ? "true" : "false",
        };
        try
        {
            var draft = NoteForm.Parse(given, now, Zone.Utc);
            _ = await store.AddAsync((w, at) => NoteBook.Add(w, draft, "INS", "test", at));
        }
        catch (NoteException)
        {
            // It would end before it begins, or withdraw what is not there.
        }
    }

    [Fact]
    public async Task PurgedServiceIsTakenAway()
    {
        using var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Alert(1, Noon.AddMinutes(-5)), Alert(2, Noon.AddMinutes(-5))));
        await SendAllAsync(store);
        Assert.Equal(await ToldAsync(store), Current(_engine.Taken));
        using (var writer = new Writer(Path.Combine(_dir, Store.FileName), 1024, StoreChild.Rules with { Name = null }, new RecentAlerts(), _clock))
        {
            var purge = writer.BeginPurge(new PurgeRecord(_clock.UtcNow, "u", 0, "h", "INS", "s1"));
            while (purge.Step(_clock.UtcNow, () => false))
            {
            }
            purge.End(_clock.UtcNow);
        }
        await store.AppendAsync("INS", StoreChild.Body(Alert(5, Noon.AddMinutes(-5))));
        await SendAllAsync(store);
        var told = await ToldAsync(store);
        Assert.Equal(told, Current(_engine.Taken));
        Assert.DoesNotContain(told, r => r.StartsWith(RunLines.NamesOf(Site.Service(1)).Split("\"service_id\":\"")[1][..16], StringComparison.Ordinal));
    }

    /// <summary>An engine that is named anew gets all; one that is not named any more costs nothing.</summary>
    [Fact]
    public async Task EngineThatIsNewGetsAll()
    {
        using var store = Open();
        await AppendAsync(store, Enumerable.Range(0, 300));
        await SendAllAsync(store);
        var all = Current(_engine.Taken);
        Assert.Equal(await ToldAsync(store), all);
        _ = await Forwarder.OpenAsync([], store, TimeProvider.System, new Log(LogLevel.Trace, false, TextWriter.Null, _clock), _meters);
        await store.AppendAsync("INS", StoreChild.Body(Alert(500, Noon.AddMinutes(-5))));
        using (var snapshot = await store.ReadAsync())
            Assert.Equal(0, snapshot.Number("SELECT count(*) FROM changed"));
        _engine.Taken.Clear();
        await SendAllAsync(store);
        Assert.Equal(await ToldAsync(store), Current(_engine.Taken));
        Assert.Equal(all.Count + 1, Current(_engine.Taken).Count);
    }

    /// <summary>A service that the engine refuses is set aside, also the first of all.</summary>
    [Theory]
    [InlineData("s0")]
    [InlineData("s150")]
    [InlineData("s299")]
    public async Task ServiceThatIsRefusedIsSetAside(string bad)
    {
        _engine.Answering = (_, lines) => lines.Any(l => l.Contains($"\"{bad}\"", StringComparison.Ordinal)) ? 400 : null;
        using var store = Open();
        await AppendAsync(store, Enumerable.Range(0, 300));
        await SendAllAsync(store);
        Assert.Equal((await ToldAsync(store)).Count(r => !r.StartsWith(IdOf(int.Parse(bad[1..], System.Globalization.CultureInfo.InvariantCulture)),
            StringComparison.Ordinal)), Current(_engine.Taken).Count);
        Assert.True(_meters.ForwardLines.WithLabels("engine", "set_aside").Value >= 1);
    }

    private static async Task AppendAsync(Store store, IEnumerable<int> services)
    {
        foreach (var alerts in services.Select(i => Alert(i, Noon.AddMinutes(-5))).GroupBy(a => a.Service.Partition))
            await store.AppendAsync(alerts.Key, StoreChild.Body([.. alerts]));
    }

    private static string IdOf(int service) => RunLines.NamesOf(Alert(service, Noon).Service).Split("\"service_id\":\"")[1][..16];
}
