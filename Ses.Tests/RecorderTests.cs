using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What is in the log reaches Onix in order and once in effect, whatever Onix does.</summary>
public sealed class RecorderTests
{
    private static readonly ServiceKey Etcd = Site.Service(1);

    private static List<(string, DateTime)> Changes(params (string Status, double Seconds)[] changes) =>
        [.. changes.Select(c => (c.Status, Site.At(c.Seconds)))];

    private static async Task<OnixStandIn> OnixAsync()
    {
        var onix = new OnixStandIn();
        onix.Start();
        await Task.CompletedTask;
        return onix;
    }

    [Fact]
    public async Task EachChangeIsRecordedOnceAndRepeatsAreNot()
    {
        await using var onix = await OnixAsync();
        await using var site = new Site(onix.Url);
        foreach (var (status, second) in new[] { ("up", 1), ("up", 2), ("down", 3), ("down", 4), ("up", 5) })
            await site.RecordAsync(Etcd, status, second);
        await site.DrainedAsync();
        Assert.Equal(Changes(("up", 1), ("down", 3), ("up", 5)), Oracle.Recorded(onix, Etcd));
        await site.CountedAsync("recorded", 3);
    }

    [Fact]
    public async Task LateDownIsRecordedTogetherWithTheUpAfterIt()
    {
        await using var onix = await OnixAsync();
        await using var site = new Site(onix.Url);
        await site.RecordAsync(Etcd, "up", 1);
        await site.DrainedAsync();
        await site.RecordAsync(Etcd, "up", 20);
        await site.DrainedAsync();
        await site.RecordAsync(Etcd, "down", 10);
        await site.DrainedAsync();
        Assert.Equal(Changes(("up", 1), ("down", 10), ("up", 20)), Oracle.Recorded(onix, Etcd));
    }

    [Fact]
    public async Task WhatIsEarlierThanOnixHoldsIsLate()
    {
        await using var onix = await OnixAsync();
        await using var site = new Site(onix.Url);
        await site.RecordAsync(Etcd, "down", 10);
        await site.DrainedAsync();
        await site.RecordAsync(Etcd, "up", 5);
        await site.DrainedAsync();
        Assert.Equal(Changes(("down", 10)), Oracle.Recorded(onix, Etcd));
        await site.CountedAsync("late", 1);
    }

    [Fact]
    public async Task AllThatCameWhileOnixWasAwayIsRecordedInOrderOfTime()
    {
        await using var onix = await OnixAsync();
        onix.Stop();
        await using var site = new Site(onix.Url);
        foreach (var second in new[] { 3, 1, 4, 2, 6, 5 })
            await site.RecordAsync(Etcd, second % 2 == 0 ? "down" : "up", second);
        onix.Start();
        await site.DrainedAsync();
        Assert.Equal(Changes(("up", 1), ("down", 2), ("up", 3), ("down", 4), ("up", 5), ("down", 6)),
            Oracle.Recorded(onix, Etcd));
    }

    [Fact]
    public async Task RestartRecordsNothingTwice()
    {
        await using var onix = await OnixAsync();
        await using var site = new Site(onix.Url);
        await site.RecordAsync(Etcd, "up", 1);
        await site.DrainedAsync();
        await site.RestartAsync();
        await site.RecordAsync(Etcd, "down", 2);
        await site.DrainedAsync();
        await site.StopAsync();
        // As after a restored backup: what Onix holds is learnt from its list.
        using (var database = new SqliteConnection(StoreFiles.PathOf(site.Dir), isReadOnly: false, 100))
            database.Execute("UPDATE onix SET version = 0, status = NULL, at = NULL, own = 0, next = 0");
        await site.RestartAsync();
        await site.DrainedAsync();
        Assert.Equal(Changes(("up", 1), ("down", 2)), Oracle.Recorded(onix, Etcd));
    }

    [Fact]
    public async Task ServicesWithOneKeyAreKeptApart()
    {
        await using var onix = await OnixAsync();
        await using var site = new Site(onix.Url);
        ServiceKey[] clash = [new("INS", "p_a", "b", "n", ""), new("INS", "p", "a_b", "n", "")];
        foreach (var service in clash)
            await site.RecordAsync((service, "up", Site.At(1)), (service, "down", Site.At(2)));
        await site.DrainedAsync();
        foreach (var service in clash)
            Assert.Equal(Changes(("up", 1), ("down", 2)), Oracle.Recorded(onix, service));
        Assert.Equal(2, onix.History.Select(c => c.Key).Distinct().Count());
    }

    [Fact]
    public async Task ItemWithAnAlternateKeyIsFoundAgainAfterARestart()
    {
        await using var onix = await OnixAsync();
        await using var site = new Site(onix.Url);
        var (first, second) = (new ServiceKey("INS", "p_a", "b", "n", ""), new ServiceKey("INS", "p", "a_b", "n", ""));
        foreach (var service in new[] { first, second })
        {
            await site.RecordAsync((service, "up", Site.At(1)));
            await site.DrainedAsync();
        }
        await site.StopAsync();
        onix.DeleteItem(OnixNames.Key(first));
        await site.RestartAsync();
        await site.RecordAsync((second, "down", Site.At(2)));
        await site.DrainedAsync();
        Assert.Equal(Changes(("up", 1), ("down", 2)), Oracle.Recorded(onix, second));
        Assert.Equal(OnixNames.AlternateKey(second), Assert.Single(
            onix.History.Where(c => c.Service == second.Service).Select(c => c.Key).Distinct()));
        Assert.Contains("items are gone from Onix", Assert.Single(
            site.Lines.ToString().Split('\n'), l => l.Contains("gone from Onix", StringComparison.Ordinal)), StringComparison.Ordinal);
    }

    [Fact]
    public async Task BarredServicesKeepTheirPausesWhileOnixTakesOthers()
    {
        await using var onix = await OnixAsync();
        await using var site = new Site(onix.Url);
        await site.RecordAsync([.. Enumerable.Range(2, 600).Select(i => (Site.Service(i, "NOPE"), "up", Site.At(1)))]);
        await site.SettledAsync();
        for (var i = 1; i <= 40; i++)
        {
            await site.RecordAsync(Etcd, i % 2 == 0 ? "up" : "down", i);
            await site.SettledAsync();
        }
        Assert.Equal(40, Oracle.Recorded(onix, Etcd).Count);
        // Each try of 600 takes two requests; the tries are 1, 2, 4 s apart, not one for each change.
        Assert.InRange(onix.Requests, 40, 40 + 25);
    }

    [Fact]
    public async Task TheSameServiceInTwoPartitionsHasTwoItems()
    {
        await using var onix = await OnixAsync();
        await using var site = new Site(onix.Url);
        var (one, other) = (Site.Service(1), Site.Service(1, "REF"));
        await site.RecordAsync(one, "up", 1);
        await site.DrainedAsync();
        await site.RecordAsync(other, "down", 2);
        await site.DrainedAsync();
        Assert.Equal(Changes(("up", 1)), Oracle.Recorded(onix, one));
        Assert.Equal(Changes(("down", 2)), Oracle.Recorded(onix, other));
    }

    [Fact]
    public async Task AnUnauthorisedPartitionIsBarredAndTheOthersGoOn()
    {
        await using var onix = await OnixAsync();
        await using var site = new Site(onix.Url);
        var barred = Site.Service(2, "NOPE");
        await site.RecordAsync((barred, "up", Site.At(1)), (Etcd, "up", Site.At(1)));
        await site.RecordAsync((barred, "down", Site.At(2)), (Etcd, "down", Site.At(2)));
        await site.SettledAsync();
        Assert.Equal(Changes(("up", 1), ("down", 2)), Oracle.Recorded(onix, Etcd));
        Assert.Empty(Oracle.Recorded(onix, barred));
        Assert.Contains("not authorised", site.Recorder.State().BarredReason, StringComparison.Ordinal);
        await site.CountedAsync("barred", 1);
    }

    [Fact]
    public async Task TwoSeSOnOneOnixRecordEachChangeOnce()
    {
        await using var onix = await OnixAsync();
        await using var one = new Site(onix.Url);
        await using var other = new Site(onix.Url);
        for (var second = 1; second <= 40; second++)
        {
            var status = second % 2 == 0 ? "down" : "up";
            await Task.WhenAll(Enumerable.Range(0, 10).Select(i => Task.WhenAll(
                one.RecordAsync(Site.Service(i), status, second), other.RecordAsync(Site.Service(i), status, second))));
        }
        await one.DrainedAsync();
        await other.DrainedAsync();
        var expected = Oracle.History(Enumerable.Range(1, 40).Select(s => (s % 2 == 0 ? "down" : "up", Site.At(s))));
        for (var i = 0; i < 10; i++)
            Assert.Equal(expected, Oracle.Recorded(onix, Site.Service(i)));
    }
}
