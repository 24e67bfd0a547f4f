using System.Text.Json;
using CsCheck;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>Whatever is wrong with Onix: nothing is skipped, and all is there afterwards, in order.</summary>
public sealed class OnixFaultTests
{
    public static readonly TheoryData<string, bool> Faults = new()
    {
        { "away", true }, { "hanging", true }, { "500", true }, { "401", true }, { "404", true },
        { "database down", true }, { "read-only", false }, { "refusing one", false }, { "refusing all", false },
        { "losing a database connection", false }, { "answers lost", false }, { "400 over 3 items", false },
        { "413 over 1 item", false }, { "model removed", false }, { "slow", false },
    };

    [Theory]
    [MemberData(nameof(Faults))]
    public async Task NothingIsSkippedAndAllIsThereAfterwards(string fault, bool nothingArrives)
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var site = new Site(onix.Url);
        await RecordRoundAsync(site, 1);
        await site.DrainedAsync();
        var before = onix.History.Count;
        var cure = Break(onix, fault);
        for (var second = 2; second <= 6; second++)
            await RecordRoundAsync(site, second);
        if (nothingArrives)
        {
            await Wait.UntilAsync(() => site.Recorder.State().Trouble != null || fault == "hanging",
                TimeSpan.FromSeconds(30), "trouble to be told of");
            Assert.Equal(before, onix.History.Count);
        }
        await site.RestartAsync();
        cure();
        await site.DrainedAsync();
        var expected = Oracle.History(Enumerable.Range(1, 6).Select(s => (StatusOf(s), Site.At(s))));
        for (var i = 0; i < 10; i++)
            Assert.Equal(expected, Oracle.Recorded(onix, Site.Service(i)));
        Assert.Equal(0, site.Meters.Defects.Value);
    }

    internal static string StatusOf(int second) => second % 2 == 0 ? "down" : "up";

    private static Task RecordRoundAsync(Site site, int second) => site.RecordAsync(
        [.. Enumerable.Range(0, 10).Select(i => (Site.Service(i), StatusOf(second), Site.At(second)))]);

    /// <summary>Brings a fault about, and returns what ends it.</summary>
    internal static Action Break(OnixStandIn onix, string fault)
    {
        var hanging = new TaskCompletionSource();
        switch (fault)
        {
            case "away":
                onix.Stop();
                return onix.Start;
            case "hanging":
                onix.Hanging = hanging.Task;
                return () =>
                {
                    onix.Hanging = Task.CompletedTask;
                    hanging.SetResult();
                };
            case "500" or "401" or "404":
                onix.AlwaysAnswer = int.Parse(fault, System.Globalization.CultureInfo.InvariantCulture);
                return () => onix.AlwaysAnswer = null;
            case "database down" or "read-only":
                onix.Database = fault == "read-only" ? Database.ReadOnly : Database.Down;
                return () => onix.Database = Database.Up;
            case "refusing one" or "refusing all":
                onix.Refuse = key => fault == "refusing all" || key.Contains("s3", StringComparison.Ordinal) ? "no" : null;
                return () => onix.Refuse = null;
            case "losing a database connection":
                onix.LoseConnection = 3;
                return () => { };
            case "answers lost":
                onix.DropReply = 3;
                return () => { };
            case "400 over 3 items" or "413 over 1 item":
                (onix.MostItems, onix.TooManyStatus) = fault[0] == '4' && fault[1] == '0' ? (3, 400) : (1, 413);
                return () => { };
            case "model removed":
                onix.RemoveModel();
                return () => { };
            default:
                onix.PerItem = TimeSpan.FromMilliseconds(20);
                return () => { };
        }
    }

    [Fact]
    public async Task ADeletedItemWaitsForItsNextEvent()
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var site = new Site(onix.Url);
        var service = Site.Service(1);
        await site.RecordAsync(service, "up", 1);
        await site.RecordAsync(Site.Service(2), "up", 1);
        await site.DrainedAsync();
        onix.DeleteItem(OnixNames.Key(service));
        await site.RestartAsync();
        await site.RecordAsync(Site.Service(2), "down", 2);
        await site.DrainedAsync();
        Assert.Single(Oracle.Recorded(onix, service));
        await site.RecordAsync(service, "down", 3);
        await site.DrainedAsync();
        // The new item gets the whole history: the backup that lacks it may be older than it.
        Assert.Equal([("up", Site.At(1)), ("up", Site.At(1)), ("down", Site.At(3))], Oracle.Recorded(onix, service));
    }

    /// <summary>
    /// A change arrives in Onix, its answer does not, and the timeline has it no more: what is left to tell is
    /// nothing as far as SeS knew Onix, yet it is not what Onix holds.
    /// </summary>
    [Theory]
    [InlineData(1)]
    [InlineData(30)]
    public async Task ChangeWhoseAnswerWasLostAndThatIsNoMoreIsTakenBack(int services)
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var site = new Site(onix.Url);
        await RecordAllAsync("down", 1);
        await site.DrainedAsync();
        onix.DropReply = 1;
        await RecordAllAsync("up", 7);
        await Wait.UntilAsync(() => onix.History.Count == 2 * services, TimeSpan.FromSeconds(30), "the change in Onix");
        onix.Stop();
        await RecordAllAsync("down", 7);
        onix.Start();
        await site.DrainedAsync();
        for (var i = 0; i < services; i++)
            Assert.Equal("down", Oracle.Recorded(onix, Site.Service(i))[^1].Status);

        Task RecordAllAsync(string status, int second) => site.RecordAsync(
            [.. Enumerable.Range(0, services).Select(i => (Site.Service(i), status, Site.At(second)))]);
    }

    [Fact]
    public async Task NewUrlGetsTheWholeHistory()
    {
        await using var onix = new OnixStandIn();
        await using var other = new OnixStandIn();
        onix.Start();
        other.Start();
        var dir = Directory.CreateTempSubdirectory("ses-site-").FullName;
        var site = new Site(onix.Url, dir);
        await site.RecordAsync(Site.Service(1), "up", 1);
        await site.RecordAsync(Site.Service(1), "down", 2);
        await site.DrainedAsync();
        await site.StopAsync();
        await using var moved = new Site(other.Url, dir);
        await moved.DrainedAsync();
        Assert.Equal([("up", Site.At(1)), ("down", Site.At(2))], Oracle.Recorded(other, Site.Service(1)));
    }

    /// <summary>Behind a balancer each hears half: Onix is right all the same after the next lists.</summary>
    [Fact]
    public async Task EachRequestToOneOfTwoAtRandomLeavesTheLastStatusInOnix()
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var one = new Site(onix.Url);
        await using var other = new Site(onix.Url);
        var random = new Random(7);
        var words = Enumerable.Range(1, 60).OrderBy(_ => random.Next()).ToList();
        foreach (var second in words)
            await (random.Next(2) == 0 ? one : other).RecordAsync(
                [.. Enumerable.Range(0, 5).Select(i => (Site.Service(i), StatusOf(second), Site.At(second)))]);
        await Task.WhenAll(one.DrainedAsync(), other.DrainedAsync());
        // A start lists what Onix holds. What one learns by it and tells, the other has to learn in turn.
        foreach (var site in new[] { one, other, one, other })
        {
            await site.RestartAsync();
            await site.DrainedAsync();
        }
        for (var i = 0; i < 5; i++)
        {
            var recorded = Oracle.Recorded(onix, Site.Service(i));
            Assert.Equal(StatusOf(60), recorded[^1].Status);
            Assert.Equal(recorded.OrderBy(r => r.Time), recorded);
        }
    }

    private sealed record Step(int Kind, int Service, string Status, int Second);

    private static readonly string[] Statuses = ["up", "down"];

    private static readonly Gen<Step[]> Steps = Gen.Select(
        Gen.Int[0, 24], Gen.Int[0, 3], Gen.Int[0, 1].Select(i => Statuses[i]), Gen.Int[0, 7],
        (kind, service, status, second) => new Step(kind, service, status, second)).Array[1, 40];

    /// <summary>
    /// Random services, statuses, orders, ties, restarts, refusals and a second SeS, against a plain oracle:
    /// the log has the whole history; Onix an ordered part of it, each change once, with the same last status.
    /// Some of them; <c>make soak</c> takes 300.
    /// </summary>
    [Fact]
    public async Task RandomHistoriesEndRight() =>
        await Steps.SampleAsync(async steps =>
        {
            await using var onix = new OnixStandIn();
            onix.Start();
            await using var one = new Site(onix.Url);
            await using var other = new Site(onix.Url);
            var said = new HashSet<(int Service, string Status, int Second)>();
            foreach (var step in steps)
            {
                await DoAsync(step, onix, one);
                if (step.Kind > 4 && said.Add((step.Service, step.Status, step.Second)))
                    await Task.WhenAll(RecordAsync(one, step), RecordAsync(other, step));
            }
            (onix.Refuse, onix.Database) = (null, Database.Up);
            await Task.WhenAll(one.DrainedAsync(), other.DrainedAsync());
            await one.RestartAsync();
            await one.DrainedAsync();
            foreach (var service in said.Select(s => s.Service).Distinct())
                Check(onix, one, service, said.Where(s => s.Service == service).Select(s => (s.Status, Site.At(s.Second))));
        }, iter: Environment.GetEnvironmentVariable("SES_SOAK") == null ? 30 : 300, threads: 1);

    private static Task RecordAsync(Site site, Step step) =>
        site.RecordAsync(Site.Service(step.Service), step.Status, step.Second);

    private static async Task DoAsync(Step step, OnixStandIn onix, Site site)
    {
        if (step.Kind == 0)
            await site.RestartAsync();
        else if (step.Kind == 1)
            onix.Refuse = key => key.Contains($"s{step.Service}", StringComparison.Ordinal) ? "no" : null;
        else if (step.Kind == 2)
            onix.Refuse = null;
        else if (step.Kind == 3)
            onix.DropReply = 1;
        else if (step.Kind == 4)
            onix.Database = onix.Database == Database.Up ? Database.ReadOnly : Database.Up;
    }

    private static void Check(
        OnixStandIn onix, Site site, int service, IEnumerable<(string Status, DateTime Time)> said)
    {
        var all = said.ToList();
        var recorded = Oracle.Recorded(onix, Site.Service(service));
        var expected = Oracle.History(all);
        Assert.Equal(recorded.Distinct().Count(), recorded.Count);
        Assert.Equal(recorded.OrderBy(r => r.Time), recorded);
        Assert.Equal(Oracle.History(recorded), recorded);
        // What Onix has of its own is a millisecond after what it held.
        Assert.All(recorded, r => Assert.True(r.Time.Millisecond > 0 || all.Contains(r)));
        Assert.Equal(expected[^1].Status, recorded[^1].Status);
        var logged = StoreFiles.History(site.Dir).Single(h => h.Key.Service == $"s{service}").Value;
        Assert.Equal(expected, logged.Select(e => (e.Status, e.Time)));
    }

    [Fact]
    public async Task ItemWithoutAnEndIsNotReadToItsEnd()
    {
        using var list = new MemoryStream([.. "{\"values\":[{\"name\":\""u8, .. Enumerable.Repeat((byte)'a', OnixClient.MaxAnswer + 1)]);
        var e = await Assert.ThrowsAsync<JsonException>(() => new ItemListReader().ReadAsync(list, _ => Task.CompletedTask, default));
        Assert.Equal("an item has more than 16777216 bytes", e.Message);
    }
}
