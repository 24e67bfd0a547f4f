using CsCheck;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What Onix is told: the decision alone, and what the real Onix has shown.</summary>
public sealed class OutboxTests
{
    private static readonly ServiceKey First = Site.Service(1), Second = Site.Service(2);

    private static async Task<(OnixStandIn Onix, Site Site)> StartAsync()
    {
        var onix = new OnixStandIn();
        onix.Start();
        await Task.CompletedTask;
        return (onix, new Site(onix.Url));
    }

    private static List<(string, DateTime)> Changes(params (string Status, double Seconds)[] changes) =>
        [.. changes.Select(c => (c.Status, Site.At(c.Seconds)))];

    // ---- The decision ----

    /// <summary>
    /// The timeline and what Onix holds, as status and second; what is to be told. A star: this SeS knows of what
    /// Onix holds, else another wrote it.
    /// </summary>
    [Theory]
    [InlineData("up 1, down 2, up 3", "", "up 1, down 2, up 3")]
    [InlineData("up 1, down 2, up 3", "up 1 *", "down 2, up 3")]
    [InlineData("up 1, down 2, up 3", "up 3 *", "")]
    [InlineData("up 1, down 2", "up 3 *", "down 3.001")]
    [InlineData("up 1, down 2", "up 3", "")]
    [InlineData("up 1, down 2, up 4", "up 3 *", "down 3.001, up 4")]
    [InlineData("up 1, down 2, up 3.001", "up 3 *", "")]
    [InlineData("up 1, down 3", "up 3 *", "down 3.001")]
    [InlineData("up 1, down 3", "up 3", "")]
    [InlineData("up 1, down 2, up 4", "down 3", "up 4")]
    [InlineData("down 2", "other 1 *", "down 2")]
    [InlineData("", "up 1 *", "")]
    public void WhatOnixLacksIsTold(string timeline, string held, string expected)
    {
        var told = timeline == "" ? [] : timeline.Split(", ").Select(Parse).ToList();
        var (status, at) = held == "" ? ((string?)null, (DateTime?)null) : (Parse(held).Status, Parse(held).Time);
        Assert.Equal(expected, string.Join(", ", OnixChanges.Lacking(told, status, at, held.EndsWith('*'))
            .Select(c => FormattableString.Invariant($"{c.Status} {(c.Time - Site.At(0)).TotalSeconds}"))));
    }

    private static PendingChange Parse(string text) => new(
        Site.At(0).AddMilliseconds(Math.Round(1000 * double.Parse(
            text.Split(' ')[1], System.Globalization.CultureInfo.InvariantCulture))), text.Split(' ')[0], 1);

    /// <summary>
    /// Alerts that come in any order, with Onix told after each: it ends with the status that is, each of its
    /// changes is later than the one before and another status.
    /// </summary>
    [Fact]
    public async Task OnixEndsWithTheStatusThatIs() =>
        await Gen.Select(Gen.Int[0, 2], Gen.Int[0, 9], Gen.Int[0, 5]).Array[1, 8].SampleAsync(async copies =>
        {
            var (onix, site) = await StartAsync();
            await using (onix)
            await using (site)
            {
                foreach (var (alert, start, length) in copies)
                {
                    var starts = Site.At(start * 10);
                    await site.Store.AppendAsync("INS", StoreChild.Body(new IncomingAlert(First, false,
                        AlertSource.Webhook, "", $$"""{"alertname":"{{alert}}"}""", "down", starts,
                        length == 0 ? null : starts.AddSeconds(length * 7), "d")));
                    await site.DrainedAsync();
                }
                var recorded = Oracle.Recorded(onix, First);
                Assert.Equal(recorded.OrderBy(r => r.Time), recorded);
                Assert.All(recorded.Zip(recorded.Skip(1)), p => Assert.NotEqual(p.First.Status, p.Second.Status));
                Assert.Equal(StoreFiles.Changes(site.Dir)[^1].Status, recorded[^1].Status);
            }
        }, iter: 100, threads: 1);

    // ---- Seen on the real one ----

    [Fact]
    public async Task LongDescriptionIsCutForOnixAlone()
    {
        var (onix, site) = await StartAsync();
        await using var _ = onix;
        await using var __ = site;
        var text = string.Concat(Enumerable.Range(0, 1000).Select(i => $"{i:x3}ä"));
        await site.Store.AppendAsync("INS",
            StoreChild.Body(Site.Alert(First, "down", Site.At(1)) with { Description = text }));
        await site.DrainedAsync();
        Assert.Equal(text[..2080], Assert.Single(onix.History).Description);
        Assert.Equal(text, Assert.Single(StoreFiles.Changes(site.Dir)).Description);
    }

    [Fact]
    public async Task LocationUnderscoreIsALocation()
    {
        var (onix, site) = await StartAsync();
        await using var _ = onix;
        await using var __ = site;
        ServiceKey[] services = [First with { Location = "_" }, First with { Location = "" }];
        foreach (var service in services)
            await site.RecordAsync(service, "up", 1);
        await site.DrainedAsync();
        await site.RestartAsync();
        foreach (var service in services)
            await site.RecordAsync(service, "down", 2);
        await site.DrainedAsync();
        foreach (var service in services)
            Assert.Equal(Changes(("up", 1), ("down", 2)), Oracle.Recorded(onix, service));
    }

    /// <summary>Seen by the lock alone: no list comes in between.</summary>
    [Fact]
    public async Task OnixThatWentBackGetsTheWholeHistory()
    {
        var (onix, site) = await StartAsync();
        await using var _ = onix;
        await using var __ = site;
        await site.RecordAsync((First, "up", Site.At(1)), (Second, "up", Site.At(1)));
        await site.DrainedAsync();
        var restore = onix.Backup();
        await site.RecordAsync((First, "down", Site.At(2)), (Second, "down", Site.At(3)));
        await site.DrainedAsync();
        await site.RecordAsync((First, "up", Site.At(4)), (Second, "up", Site.At(5)));
        await site.DrainedAsync();
        restore();
        var before = onix.History.Count;
        await site.RecordAsync(First, "down", 6);
        await site.DrainedAsync();
        Assert.Equal(["down 2", "down 3", "up 4", "up 5", "down 6"], onix.History.Skip(before)
            .Select(c => $"{c.Status} {c.Time[^3..^1].TrimStart('0')}"));
        Assert.Contains("Onix went back", site.Lines.ToString(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task ItemThatIsInsertedInsteadOfUpdatedMeansARestore()
    {
        var (onix, site) = await StartAsync();
        await using var _ = onix;
        await using var __ = site;
        await site.RecordAsync((First, "up", Site.At(1)), (Second, "up", Site.At(2)));
        await site.DrainedAsync();
        onix.DeleteItem(OnixNames.Key(First));
        onix.DeleteItem(OnixNames.Key(Second));
        await site.RecordAsync(First, "down", 3);
        await site.DrainedAsync();
        // The first insert came before anybody could know; what Onix held then is not told again.
        Assert.Equal("up", Oracle.Recorded(onix, Second)[^1].Status);
        Assert.Equal(2, Oracle.Recorded(onix, Second).Count);
        Assert.Contains("Onix went back", site.Lines.ToString(), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task EmptiedOnixGetsTheWholeHistory(bool withItsModel)
    {
        var (onix, site) = await StartAsync();
        await using var _ = onix;
        await using var __ = site;
        await site.RecordAsync((First, "up", Site.At(1)), (Second, "up", Site.At(2)));
        await site.RecordAsync(First, "down", 3);
        await site.DrainedAsync();
        var before = onix.History.Count;
        if (withItsModel)
            onix.Empty();
        else
            Array.ForEach([First, Second], s => onix.DeleteItem(OnixNames.Key(s)));
        await site.RestartAsync();
        await Wait.UntilAsync(() => onix.History.Count == 2 * before, TimeSpan.FromSeconds(30), "the whole history again");
        Assert.Equal(["up", "up", "down"], onix.History.Skip(before).Select(c => c.Status));
        Assert.Contains("sending it the whole history again", site.Lines.ToString(), StringComparison.Ordinal);
    }

    /// <summary>DbMan's report follows the order of Onix's table.</summary>
    [Fact]
    public async Task BacklogIsSentInOrderOfTimeOverAllServices()
    {
        var (onix, site) = await StartAsync();
        await using var _ = onix;
        await using var __ = site;
        onix.Stop();
        var random = new Random(5);
        var words = Enumerable.Range(0, 1200).Select(i => (Service: Site.Service(i % 40),
            Status: i / 40 % 2 == 0 ? "up" : "down", Time: Site.At(i))).ToArray();
        random.Shuffle(words);
        foreach (var part in words.Chunk(50))
            await site.RecordAsync(part);
        // All is derived: what is sent is the whole.
        (await site.Store.ReadAsync()).Dispose();
        onix.Start();
        await site.DrainedAsync();
        var times = onix.History.Select(c => c.Time).ToList();
        Assert.Equal(1200, times.Count);
        Assert.Equal(times.Order(StringComparer.Ordinal), times);
    }

    /// <summary>More services than are decided on at once, each with more changes than are looked at.</summary>
    [Fact]
    public async Task OrderHoldsBeyondOneTurn()
    {
        var (onix, site) = await StartAsync();
        await using var _ = onix;
        await using var __ = site;
        onix.Stop();
        for (var round = 0; round < 20; round++)
            await site.RecordAsync([.. Enumerable.Range(0, 1100).Select(i => (Site.Service(i),
                round % 2 == 0 ? "up" : "down", Site.At((round * 2000) + (i * 7 % 1100))))]);
        onix.Start();
        await site.DrainedAsync();
        var times = onix.History.Select(c => Rfc3339.TryParse(c.Time, out var time) ? time : default).ToList();
        Assert.Equal(22_000, times.Count);
        Assert.Equal(times.Order(), times);
    }

    [Fact]
    public async Task TwoSeSWithOneBacklogDoNotStandStill()
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        onix.Stop();
        await using var one = new Site(onix.Url);
        await using var other = new Site(onix.Url);
        for (var i = 0; i < 120; i++)
        {
            (ServiceKey, string, DateTime)[] words = [.. Enumerable.Range(0, 10)
                .Select(s => (Site.Service(s), i % 2 == 0 ? "up" : "down", Site.At(i)))];
            await Task.WhenAll(one.RecordAsync(words), other.RecordAsync(words));
        }
        // A third writer moves one item on again and again.
        var moves = 0;
        var key = OnixNames.Key(Site.Service(3));
        onix.BeforePut = keys =>
        {
            if (keys.Contains(key) && moves++ is > 0 and < 12)
                onix.Touch(key);
        };
        onix.Start();
        var began = TimeProvider.System.GetTimestamp();
        await Task.WhenAll(one.DrainedAsync(), other.DrainedAsync());
        Assert.True(TimeProvider.System.GetElapsedTime(began) < TimeSpan.FromSeconds(40), "they stood still");
        for (var s = 0; s < 10; s++)
        {
            Assert.Equal(120, Oracle.Recorded(onix, Site.Service(s)).Count);
            Assert.Equal(Oracle.Recorded(onix, Site.Service(s)).OrderBy(r => r.Time), Oracle.Recorded(onix, Site.Service(s)));
        }
    }

    [Fact]
    public async Task BarredServicesCountAsBacklogAndAreToldOf()
    {
        var (onix, site) = await StartAsync();
        await using var _ = onix;
        await using var __ = site;
        onix.Database = Database.ReadOnly;
        await site.RecordAsync((First, "up", Site.At(1)), (Second, "up", Site.At(1)));
        await Wait.UntilAsync(() => site.Recorder.State().Barred == 2, TimeSpan.FromSeconds(30), "both to be refused");
        Assert.Equal(2, site.Recorder.State().Backlog);
        Assert.Contains("read-only", site.Recorder.State().BarredReason, StringComparison.Ordinal);
        using (var snapshot = site.Store.Snapshot())
        using (var reader = new OutboxReader(snapshot))
        {
            Assert.Equal([First, Second], reader.Barred(10).Select(b => b.Service));
            Assert.Equal((2, 1), reader.CountBarred());
        }
        await Wait.UntilAsync(() => site.Lines.ToString().Contains("services=2 partitions=1", StringComparison.Ordinal),
            TimeSpan.FromSeconds(30), "the log to tell");
        onix.Database = Database.Up;
        await site.DrainedAsync();
        Assert.Equal(2, onix.History.Count);
    }

    // ---- The list ----

    [Fact]
    public async Task ListIsReadAsItComes()
    {
        var items = Enumerable.Range(0, 1234).Select(i =>
            $$"""{"key":"k{{i}}","x":{"y":[1,{"values":[{}]}]},"attribute":{"service":"s{{i}}","time":"2026-11-01T00:00:00Z"},"version":{{i}}}""");
        var json = $$"""{"other":[{"key":"none"}],"values":[{{string.Join(" , \n", items)}}],"last":null}""";
        var read = new List<OnixItem>();
        var calls = 0;
        await using var stream = new Trickle(System.Text.Encoding.UTF8.GetBytes(json));
        await new ItemListReader().ReadAsync(stream, part =>
        {
            calls++;
            read.AddRange(part);
            return Task.CompletedTask;
        }, default);
        Assert.Equal(Enumerable.Range(0, 1234).Select(i => ($"k{i}", $"s{i}", (long)i)),
            read.Select(i => (i.Key, i.Service.Service, i.Version)));
        Assert.InRange(calls, 3, 10);
    }

    [Theory]
    [InlineData("{\"values\":[{\"key\":\"a\"}")]
    [InlineData("{\"values\":[{\"key\":\"a\"")]
    [InlineData("{\"values\":null}")]
    [InlineData("{}")]
    [InlineData("[]")]
    [InlineData("")]
    [InlineData("<html>")]
    public async Task ListThatIsNoneIsRefused(string json)
    {
        await using var stream = new Trickle(System.Text.Encoding.UTF8.GetBytes(json));
        await Assert.ThrowsAnyAsync<System.Text.Json.JsonException>(() =>
            new ItemListReader().ReadAsync(stream, _ => Task.CompletedTask, default));
    }

    /// <summary>Gives some bytes at a time.</summary>
    private sealed class Trickle(byte[] bytes) : MemoryStream(bytes)
    {
        private int _size;

        public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default) =>
            base.ReadAsync(buffer[..Math.Min(buffer.Length, (_size++ * 37 % 211) + 1)], cancellationToken);
    }

    // ---- How it is ----

    [Theory]
    [InlineData(null, false, 0, 0, false, "starting", "Onix has not been contacted yet")]
    [InlineData(null, false, 3, 1, false, "starting", "Onix has not been contacted yet")]
    [InlineData(null, true, 0, 0, false, "recorded", "Onix has all changes")]
    [InlineData(null, true, 3, 0, false, "behind", "Onix lacks changes of 3 services")]
    [InlineData(null, true, 3, 1, false, "behind", "Onix lacks changes of 3 services and refuses those of 1: no rights")]
    [InlineData(null, true, 9, 0, true, "behind", "Onix lost items that it had, and gets the whole history again")]
    [InlineData("it is off", false, 3, 0, false, "away", "Onix confirms nothing: it is off; Onix lacks changes of 3 services")]
    [InlineData("it is off", true, 0, 0, false, "away", "Onix confirms nothing: it is off; Onix has all changes")]
    public void StateIsToldAsItIs(
        string? trouble, bool isConfirmed, long backlog, long barred, bool isAnew, string word, string sentence)
    {
        var state = new RecorderState(trouble, isConfirmed ? DateTime.UnixEpoch : null, backlog, null, barred,
            barred > 0 ? "no rights" : null, isAnew);
        Assert.Equal((word, sentence), (state.Name, state.Summary));
    }
}
