using System.Globalization;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What SeS tells of an outage is what was done to a real etcd, whoever falls over.</summary>
[Trait("Category", "E2E")]
public sealed class EndToEndTests
{
    /// <summary>From a deed to the word on it: scrape, 3 s of "for", grouping; and some patience.</summary>
    private static readonly TimeSpan Told = TimeSpan.FromSeconds(60);

    /// <summary>So long after the deed, at most, is the time that Prometheus gives to a change.</summary>
    private static readonly TimeSpan Noticed = TimeSpan.FromSeconds(30);

    private static readonly SeenService Quorum = new("INS", "p01-dev", "etcd", "quorum", "");

    [Fact]
    public async Task HistoryIsWhatWasDoneToEtcd()
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var ses = await SesProcess.StartAsync(onix.Url.AbsoluteUri);
        var started = DateTime.UtcNow;
        await using var rig = await EtcdRig.StartAsync(TimeSpan.FromSeconds(5), ses.Webhook("INS"));
        var deeds = new Deeds(ses.DataDir);
        SeenService[] nodes = [.. rig.Instances.Select(
            i => new SeenService("INS", "p01-dev", "etcd", "node", i))];
        SeenService[] stock = [.. rig.Instances.Select(
            i => new SeenService("INS", "INS", "etcd", "InstanceDown", i))];

        deeds.Add("up", started, [.. nodes, Quorum]);
        await deeds.ReceivedAsync();

        deeds.Add("down", DateTime.UtcNow, nodes[2], stock[2]);
        rig.KillNode(2);
        await deeds.ReceivedAsync();

        onix.Stop();
        var second = DateTime.UtcNow;
        deeds.Add("down", second, nodes[1], stock[1], Quorum);
        rig.KillNode(1);
        await Wait.UntilAsync(() => StoreFiles.Changes(ses.DataDir).Any(e => e.Time >= second),
            Told, "the first word on the second outage");
        ses.Kill(Signal.Kill);
        await ses.RestartAsync();
        await deeds.ReceivedAsync();

        deeds.Add("up", DateTime.UtcNow, nodes[1], nodes[2], stock[1], stock[2], Quorum);
        await Task.WhenAll(rig.RestartNodeAsync(1), rig.RestartNodeAsync(2));
        await deeds.ReceivedAsync();

        onix.Start();
        await Deeds.SoonAsync(deeds.Expected, () => Deeds.Statuses(Recorded(onix)));
        // Nothing comes after it, though the Alertmanagers tell all of it again.
        var known = await KnownAsync(ses);
        await Wait.UntilAsync(async () => await KnownAsync(ses) >= known + 8, Told, "repeated alerts");
        Assert.Equal(deeds.Expected, Deeds.Statuses(Recorded(onix)));
        Assert.Equal(deeds.Expected, Deeds.Statuses(Logged(ses)));
        Assert.Equal(Times(Logged(ses)), Times(Recorded(onix)));
        deeds.CheckTimes(Logged(ses));
    }

    /// <summary>Changes of status by service, each in its order.</summary>
    private static ILookup<SeenService, Change> Logged(SesProcess ses) => StoreFiles.History(ses.DataDir)
        .SelectMany(s => s.Value).ToLookup(e => e.Service, e => new Change(e.Status, e.Time));

    private static ILookup<SeenService, Change> Recorded(OnixStandIn onix) => onix.History.ToLookup(
        c => new SeenService(c.Partition, c.Platform, c.Service, c.Facet, c.Location),
        c => new Change(c.Status, DateTime.Parse(
            c.Time, CultureInfo.InvariantCulture, DateTimeStyles.AdjustToUniversal)));

    private static string Times(ILookup<SeenService, Change> history) => string.Join('\n', history
        .SelectMany(s => s.Select(c => $"{s.Key} {c.Status} {c.Time:O}")).Order(StringComparer.Ordinal));

    /// <summary>How many events this SeS has heard again.</summary>
    private static async Task<double> KnownAsync(SesProcess ses)
    {
        const string name = "ses_alerts_total{outcome=\"known\"} ";
        var metrics = await ses.Client.GetStringAsync("metrics");
        var line = metrics.Split('\n').First(l => l.StartsWith(name, StringComparison.Ordinal));
        return double.Parse(line[name.Length..], CultureInfo.InvariantCulture);
    }

    private readonly record struct Change(string Status, DateTime Time);

    /// <summary>What was done, and so must be told: changes of services, with their causes' times.</summary>
    private sealed class Deeds(string dataDir)
    {
        private readonly List<(SeenService Service, Change Change)> _deeds = [];

        /// <summary>The history that must be told, one service a line.</summary>
        public string Expected => Statuses(_deeds.ToLookup(d => d.Service, d => d.Change));

        public void Add(string status, DateTime time, params SeenService[] services) =>
            _deeds.AddRange(services.Select(s => (s, new Change(status, time))));

        /// <summary>Waits until SeS's log files tell all that was done so far, and nothing else.</summary>
        public Task ReceivedAsync() => SoonAsync(Expected, () => Statuses(StoreFiles.History(dataDir)
            .SelectMany(s => s.Value).ToLookup(e => e.Service, e => new Change(e.Status, e.Time))));

        /// <summary>Each change is dated after its cause, and not by long.</summary>
        public void CheckTimes(ILookup<SeenService, Change> history)
        {
            foreach (var deeds in _deeds.ToLookup(d => d.Service, d => d.Change))
            {
                Assert.All(deeds.Zip(history[deeds.Key]), pair => Assert.InRange(
                    pair.Second.Time, pair.First.Time, pair.First.Time + Noticed));
            }
        }

        public static string Statuses(ILookup<SeenService, Change> history) => string.Join('\n', history
            .Select(s => $"{s.Key}: {string.Join(' ', s.Select(c => c.Status))}")
            .Order(StringComparer.Ordinal));

        /// <summary>Waits until both texts are the same; else fails with both.</summary>
        public static async Task SoonAsync(string expected, Func<string> actual)
        {
            try
            {
                await Wait.UntilAsync(() => actual() == expected, Told, "what was done to etcd");
            }
            catch (TimeoutException)
            {
                var last = actual();
                Assert.True(last == expected, $"expected:\n{expected}\nbut SeS tells:\n{last}");
            }
        }
    }
}
