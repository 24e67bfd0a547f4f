using System.Globalization;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What Alertmanager told of a real outage (Data/etcd-outage) is what happened.</summary>
public sealed class EtcdOutageTests
{
    private static readonly DateTime Epoch = new(2026, 11, 22, 11, 34, 0, DateTimeKind.Utc);

    private static readonly byte[][] Bodies =
        [.. Directory.GetFiles(Path.Combine(AppContext.BaseDirectory, "Data", "etcd-outage"), "*.json")
            .Order(StringComparer.Ordinal).Select(File.ReadAllBytes)];

    /// <summary>The table of Data/etcd-outage/README.md.</summary>
    private static readonly string[] Truth =
    [
        "INS/INS/etcd/InstanceDown/127.0.0.1:17389: down 75.338, up 93.338",
        "INS/INS/etcd/InstanceDown/127.0.0.1:17399: down 55.338, up 93.338",
        "INS/p01-dev/etcd/node/127.0.0.1:17379: up 34.489",
        "INS/p01-dev/etcd/node/127.0.0.1:17389: up 35.489, down 75.489, up 96.489",
        "INS/p01-dev/etcd/node/127.0.0.1:17399: up 35.489, down 55.489, up 96.489",
        "INS/p01-dev/etcd/quorum/: up 34.489, down 75.489, up 96.489",
    ];

    /// <summary>Takes the bodies in this order into a new store, and tells what its views show.</summary>
    private static async Task<string[]> HistoryAfterAsync(IEnumerable<byte[]> bodies)
    {
        var dir = Directory.CreateTempSubdirectory("ses-outage-").FullName;
        try
        {
            var clock = new ManualClock(Epoch.AddMinutes(5));
            using var lines = new StringWriter();
            var log = new Log(LogLevel.Trace, json: false, TextWriter.Synchronized(lines), clock);
            var store = new Store(dir, StoreChild.Rules, clock, log, new Meters("test", "test"));
            foreach (var body in bodies)
            {
                var alerts = AlertReader.Read(
                    body, "INS", AlertSource.Webhook, MappingRules.Default, clock.UtcNow);
                Assert.Empty(alerts.UnmappableAlerts);
                await store.AppendAsync("INS", alerts);
            }
            (await store.ReadAsync()).Dispose();
            store.Dispose();
            return [.. StoreFiles.History(dir).Select(s => Tell(s.Key, s.Value)).Order(StringComparer.Ordinal)];
        }
        finally
        {
            Directory.Delete(dir, recursive: true);
        }
    }

    private static string Tell(SeenService s, IEnumerable<SeenChange> events) =>
        $"{s.Partition}/{s.Platform}/{s.Service}/{s.Facet}/{s.Location}: " + string.Join(", ",
            events.Select(e => string.Create(
                CultureInfo.InvariantCulture, $"{e.Status} {(e.Time - Epoch).TotalSeconds:0.000}")));

    [Fact]
    public async Task BodiesInTheirOrderGiveTheHistory()
    {
        Assert.Equal(17, Bodies.Length);
        Assert.Equal(Truth, await HistoryAfterAsync(Bodies));
    }

    [Fact]
    public async Task BodiesBackwardsGiveTheSameHistory() =>
        Assert.Equal(Truth, await HistoryAfterAsync(Bodies.Reverse()));

    [Fact]
    public async Task DoubledBodiesGiveTheSameHistory() =>
        Assert.Equal(Truth, await HistoryAfterAsync(Bodies.SelectMany(b => new[] { b, b })));

    [Fact]
    public async Task ShuffledAndDoubledBodiesGiveTheSameHistory()
    {
        for (var seed = 1; seed <= 50; seed++)
        {
            var shuffled = Bodies.Concat(Bodies).ToArray();
            new Random(seed).Shuffle(shuffled);
            var history = await HistoryAfterAsync(shuffled);
            Assert.True(Truth.SequenceEqual(history), $"seed {seed}: {string.Join('\n', history)}");
        }
    }
}
