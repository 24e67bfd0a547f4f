using System.Globalization;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What is asked of the store is answered from the facts, also as they were known on a day.</summary>
public sealed class QuestionsTests : IDisposable
{
    private static readonly DateTime Noon = new(2026, 11, 23, 12, 0, 0, DateTimeKind.Utc);
    private static readonly ServiceFilter All = new(null, null, null, null, null);
    private static readonly TimelineRules Rules = StoreChild.Rules.Timeline;

    private readonly string _directory = Directory.CreateTempSubdirectory("ses-questions").FullName;
    private readonly ManualClock _clock = new(Noon);
    private readonly Store _store;

    public QuestionsTests() => _store = new Store(_directory, StoreChild.Rules, _clock,
        new Log(LogLevel.Trace, false, TextWriter.Null, _clock), new Meters("test", "test"));

    public void Dispose()
    {
        _store.Dispose();
        Directory.Delete(_directory, recursive: true);
    }

    [Fact]
    public async Task PresentIsTheLastStatusAndSinceWhen()
    {
        await AlertAsync("b", 10, null, at: 10);
        await AlertAsync("a", 5, 8, at: 11);
        Assert.Equal(["a up 8 InstanceDown resolved", "b down 10 b is down"], await AskAsync(q => q.Present(All)
            .Select(r => $"{r.Service.Location} {r.Status} {Seconds(r.Since)} {r.Description}")));
    }

    [Fact]
    public async Task HistoryIsInOrderOfTimeAcrossServices()
    {
        await AlertAsync("b", 10, 20, at: 20);
        await AlertAsync("a", 5, 15, at: 21);
        Assert.Equal(["b up 0", "a up 0", "a down 5", "b down 10", "a up 15", "b up 20"],
            await AskAsync(q => q.History(All, null, null).Select(Text)));
    }

    [Theory]
    [InlineData(5, 15, "a down 5,b down 10")]
    [InlineData(6, 21, "b down 10,a up 15,b up 20")]
    [InlineData(16, null, "b up 20")]
    public async Task HistoryTakesInItsBeginningAndNotItsEnd(int from, int? to, string expected)
    {
        await AlertAsync("b", 10, 20, at: 20);
        await AlertAsync("a", 5, 15, at: 21);
        var rows = await AskAsync(q => q.History(All, Time(from), to is { } end ? Time(end) : null).Select(Text));
        Assert.Equal(expected, string.Join(',', rows));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task PagesOfAHistoryAreTheWhole(bool isNewestFirst)
    {
        for (var i = 0; i < 40; i++)
            await AlertAsync($"n{i % 9}", i, i + 3, at: 100 + i);
        var whole = await AskAsync(q => q.History(All, null, null));
        if (isNewestFirst)
            whole.Reverse();
        var pages = new List<ChangeRow>();
        (DateTime, long)? after = null;
        while (await AskAsync(q => q.History(All, null, null, after, isNewestFirst).Take(7)) is { Count: > 0 } page)
        {
            pages.AddRange(page);
            after = (page[^1].Time, page[^1].ServiceId);
        }
        Assert.Equal(whole, pages);
        Assert.True(whole.Count > 60);
    }

    [Theory]
    [InlineData("a", null, 2)]
    [InlineData(null, "p", 4)]
    [InlineData("a", "q", 0)]
    [InlineData(null, null, 4)]
    public async Task FilterTakesWhatItNames(string? location, string? platform, int outagesAndRecoveries)
    {
        await AlertAsync("a", 5, 15, at: 20);
        await AlertAsync("b", 5, 15, at: 21);
        var filter = new ServiceFilter("INS", platform, null, null, location);
        Assert.Equal(outagesAndRecoveries,
            (await AskAsync(q => q.History(filter, Time(1), null))).Count);
    }

    [Fact]
    public async Task ReportAddsUpToWhatIsKnownOfTheRange()
    {
        await AlertAsync("a", 10, 20, at: 20);
        await AlertAsync("a", 30, 35, at: 35);
        var f = Assert.Single(await AskAsync(q => q.Report(All, Time(15), Time(65)), at: 100)).Figures;
        Assert.Equal(new Figures(0, 0, 10_000, 0, 40_000, 0, 0, 0, 0, 2, 5_000, false), f);
        Assert.Equal(80, f.Availability);
    }

    [Fact]
    public async Task OpenOutageCountsUpToNow()
    {
        await AlertAsync("a", 10, null, at: 10);
        var f = Assert.Single(await AskAsync(q => q.Report(All, Time(0), null), at: 40)).Figures;
        Assert.Equal((30_000, true, 1), (f.Down, f.IsOpen, f.Outages));
    }

    [Fact]
    public async Task ThresholdTellsForHowLongTooFewWereUp()
    {
        await AlertAsync("a", 10, 40, at: 40);
        await AlertAsync("b", 20, 30, at: 41);
        var rows = await AskAsync(q => q.Threshold(All, 2, Time(5), null), at: 100);
        Assert.Equal(["a down 10: 1 up, 0 s", "b down 20: 0 up, 0 s", "b up 30: 1 up, 0 s", "a up 40: 2 up, 30 s"],
            rows.Select(r => $"{r.Service.Location} {r.Status} {Seconds(r.Time)}: {r.Up} up, {r.Under.TotalSeconds} s"));
    }

    [Fact]
    public async Task AnswerAsOfAMomentIsTheOneThatWasGivenThen()
    {
        var random = new Random(5);
        var given = new List<(DateTime Moment, List<string> Rows)>();
        for (var i = 0; i < 60; i++)
        {
            var (start, length) = (random.Next(0, 300), random.Next(1, 60));
            await AlertAsync($"n{random.Next(5)}", start, random.Next(3) == 0 ? null : start + length, at: 400 + (10 * i));
            _clock.UtcNow = Time(405 + (10 * i));
            given.Add((_clock.UtcNow, await RowsAsync(null)));
        }
        foreach (var (moment, rows) in given)
            Assert.Equal(rows, await RowsAsync(moment));
        Assert.NotEqual(given[10].Rows, given[50].Rows);
    }

    private async Task<List<string>> RowsAsync(DateTime? asOf)
    {
        using var snapshot = await _store.ReadAsync();
        var questions = new Questions(snapshot, Rules, _clock.UtcNow, asOf);
        return
        [
            .. questions.History(All, null, null).Select(Text), .. questions.Present(All).Select(r => $"{r with { LastSeen = null }}"),
            .. questions.Report(All, Time(0), null).Select(r => $"{r}"),
            .. questions.Threshold(All, 3, null, null).Select(r => $"{r}"),
        ];
    }

    private async Task<List<T>> AskAsync<T>(Func<Questions, IEnumerable<T>> ask, int? at = null)
    {
        if (at is { } second)
            _clock.UtcNow = Time(second);
        using var snapshot = await _store.ReadAsync();
        return [.. ask(new Questions(snapshot, Rules, _clock.UtcNow))];
    }

    private async Task AlertAsync(string location, int starts, int? ends, int at)
    {
        if (_clock.UtcNow == Noon)
        {
            // The first receipt, from which on a stock service without an alert is up.
            await _store.AppendAsync("INS", new([], [new UnmappableAlert("first", "f", "n", "none", "{}"u8.ToArray())], 0, 1, 0, 0));
        }
        _clock.UtcNow = Time(at);
        await _store.AppendAsync("INS", StoreChild.Body(new IncomingAlert(new ServiceKey("INS", "p", "s", "f", location), false,
            AlertSource.Webhook, "", $$"""{"alertname":"InstanceDown","instance":"{{location}}"}""", "down",
            Time(starts), ends is { } end ? Time(end) : null, $"{location} is down")));
    }

    private static DateTime Time(int second) => Noon.AddSeconds(second);

    private static string Seconds(DateTime time) => (time - Noon).TotalSeconds.ToString(CultureInfo.InvariantCulture);

    private static string Text(ChangeRow row) => $"{row.Service.Location} {row.Status} {Seconds(row.Time)}";

}
