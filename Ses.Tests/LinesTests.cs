using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>Facts as lines: written and read, and the union of stores.</summary>
public sealed class LinesTests : IDisposable
{
    private static readonly DateTime Noon = new(2026, 11, 23, 12, 0, 0, DateTimeKind.Utc);

    private readonly string _directory = Directory.CreateTempSubdirectory("ses-lines").FullName;
    private readonly ManualClock _clock = new(Noon);

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    private static string[] Examples => File.ReadAllLines(
        Path.Combine(AppContext.BaseDirectory, "Data", "fleet", "line.jsonl"));

    private Store Open(string name) => new(Directory.CreateDirectory(Path.Combine(_directory, name)).FullName,
        StoreChild.Rules with { Name = name }, _clock, new Log(LogLevel.Trace, false, TextWriter.Null, _clock), new Meters("test", "test"));

    private static async Task<List<string>> LinesAsync(Store store)
    {
        using var snapshot = await store.ReadAsync();
        return [.. FactLines.Read(snapshot, null, snapshot.Moment, null)];
    }

    private static Task<(int Added, int Known)> ImportAsync(Store store, IEnumerable<string> lines)
    {
        var facts = lines.Select(l => FactLine.Parse(l, DateTime.UtcNow)).ToList();
        return store.ChangeAsync(w =>
        {
            var added = facts.Count(f => f.Take(w));
            return (added, facts.Count - added);
        });
    }

    private static string Id(string line) => line.Split("\"id\":\"")[1][..32];

    private static async Task<List<string>> HistoryAsync(Store store)
    {
        using var snapshot = await store.ReadAsync();
        return [.. Questions.Of(snapshot).History(new(null, null, null, null, null), null, null)
            .Select(h => $"{Rfc3339.Format(h.Time)} {h.Service} {h.Status} {h.Description}").Order(StringComparer.Ordinal)];
    }

    /// <summary>The examples' ids were made by another program.</summary>
    [Fact]
    public async Task LinesAreThoseOfTheExamples()
    {
        string[] lines = [.. Examples.Where(l => l.Contains("\"kind\":\"observation\"", StringComparison.Ordinal)
            || l.Contains("\"kind\":\"partition\"", StringComparison.Ordinal))];
        Assert.Equal(3, lines.Length);
        using var store = Open("a");
        Assert.Equal((3, 0), await ImportAsync(store, lines));
        Assert.Equal((0, 3), await ImportAsync(store, lines));
        Assert.Equal(lines.Select(Id), (await LinesAsync(store)).Select(Id));
        // But for when it was recorded, each is what it was.
        static string Body(string line) => System.Text.RegularExpressions.Regex.Replace(line, "\"recorded\":\"[^\"]*\"", "");
        Assert.Equal(lines.Select(Body), (await LinesAsync(store)).Select(Body));
    }

    [Theory]
    [InlineData("hello", "the line is not JSON")]
    [InlineData("[]", "the line is not a JSON object")]
    [InlineData("{}", "kind is missing")]
    [InlineData("""{"kind":"beat"}""", "knows no facts of the kind 'beat'")]
    [InlineData("""{"kind":"partition","id":"x","by":"a","partition":"INS","received":"2026-11-01T07:00:00.000Z","recorded":"2026-11-01T07:00:00.000Z"}""",
        "the line was changed")]
    [InlineData("""{"kind":"partition","id":"x","by":"a","partition":"INS","received":"soon","recorded":"2026-11-01T07:00:00.000Z"}""",
        "received is not an RFC 3339 time with a zone")]
    [InlineData("""{"kind":"observation","by":"a","received":"2026-11-01T07:00:00.000Z","what":"stop"}""", "what must be start, end, again or lapse")]
    [InlineData("""{"kind":"observation","by":"a","received":"2026-11-01T07:00:00.000Z","what":"start","labels":{"n":1}}""",
        "labels: the value of n is not a string")]
    [InlineData("""{"kind":"partition","by":"\ud800"}""", "not valid Unicode")]
    public void LineThatIsNoneIsRefused(string line, string reason) =>
        Assert.Contains(reason, Assert.Throws<LineException>(() => FactLine.Parse(line, DateTime.UtcNow)).Message, StringComparison.Ordinal);

    [Fact]
    public void ChangedLineIsRefused()
    {
        var line = Examples.First(l => l.Contains("\"kind\":\"observation\"", StringComparison.Ordinal));
        foreach (var (from, to) in new[] { ("down", "up"), ("checkout", "check"), ("no answer", "an answer"), ("\"dialect\":false", "\"dialect\":true") })
            Assert.Throws<LineException>(() => FactLine.Parse(line.Replace(from, to, StringComparison.Ordinal), DateTime.UtcNow));
        Assert.NotNull(FactLine.Parse(line, DateTime.UtcNow));
    }

    /// <summary>Each was away for a time; each gets what the other heard, twice and in another order.</summary>
    [Fact]
    public async Task UnionOfTwoStoresIsOneHistory()
    {
        using var a = Open("a");
        using var b = Open("b");
        var random = new Random(3);
        for (var i = 0; i < 60; i++)
        {
            _clock.UtcNow = Noon.AddMinutes(i);
            var service = Site.Service(i % 7);
            var starts = _clock.UtcNow.AddSeconds(-10);
            var alert = new IncomingAlert(service, false, AlertSource.Webhook, "",
                $$"""{"alertname":"Down","instance":"{{i % 7}}"}""", "down", starts,
                i % 3 == 0 ? _clock.UtcNow.AddSeconds(-1) : null, i % 2 == 0 ? "one text" : "another \"text\" ä\n");
            if (i is < 20 or > 40)
                await a.AppendAsync("INS", StoreChild.Body(alert));
            if (i > 10)
                await b.AppendAsync("INS", StoreChild.Body(alert));
        }
        _clock.UtcNow = Noon.AddMinutes(100);
        Assert.NotEqual(await HistoryAsync(a), await HistoryAsync(b));
        var (fromA, fromB) = (await LinesAsync(a), await LinesAsync(b));
        var shuffled = fromB.Concat(fromB).ToArray();
        random.Shuffle(shuffled);
        await ImportAsync(a, shuffled);
        await ImportAsync(b, fromA);
        Assert.Equal(await HistoryAsync(a), await HistoryAsync(b));
        Assert.Equal((await LinesAsync(a)).Select(Id).Order(), (await LinesAsync(b)).Select(Id).Order());
        Assert.Equal((0, fromA.Count), await ImportAsync(b, fromA));
        using var snapshot = await a.ReadAsync();
        using var check = new DatabaseCheck(snapshot.Database, snapshot.Rules, snapshot.Moment);
        check.CheckAll(_ => { });
        Assert.Equal([], check.Faults);
    }

    /// <summary>What is imported does not keep a SeS from storing what it hears itself.</summary>
    [Fact]
    public async Task WhatIsHeardIsNewThoughItWasImported()
    {
        using var a = Open("a");
        using var b = Open("b");
        var alert = Site.Alert(Site.Service(1), "up", Noon);
        await a.AppendAsync("INS", StoreChild.Body(alert));
        await ImportAsync(b, await LinesAsync(a));
        Assert.Equal(new Stored(1, 0, 0), await b.AppendAsync("INS", StoreChild.Body(alert)));
        Assert.Equal(["a", "a", "b", "b"], (await LinesAsync(b)).Select(l => l.Split("\"by\":\"")[1][..1]));
    }

    /// <summary>
    /// Two heard an episode, and one is cut off: it gives the episode up, once, and does not speak for the other.
    /// Who never heard it gives nothing up.
    /// </summary>
    [Fact]
    public async Task EpisodeLapsesOnceAllThatHeardItHaveGivenItUp()
    {
        using var a = Open("a");
        using var b = Open("b");
        using var c = Open("c");
        var alert = Site.Alert(Site.Service(1), "down", Noon);
        await a.AppendAsync("INS", StoreChild.Body(alert));
        await b.AppendAsync("INS", StoreChild.Body(alert));
        async Task<string> StatusAsync(Store store)
        {
            using var snapshot = await store.ReadAsync();
            return Questions.Of(snapshot).Present(new(null, null, null, null, null)).Single().Status;
        }
        // Only b hears it again.
        await _clock.PassAsync(Noon.AddHours(20), null, a, b, c);
        await b.AppendAsync("INS", StoreChild.Body(alert));
        await ImportAsync(a, await LinesAsync(b));
        await ImportAsync(b, await LinesAsync(a));
        await ImportAsync(c, await LinesAsync(b));
        await _clock.PassAsync(Noon.AddHours(30), null, a, b, c);
        foreach (var store in new[] { a, b, c })
            Assert.Equal("down", await StatusAsync(store));
        var lapses = (await LinesAsync(a)).Where(l => l.Contains("\"what\":\"lapse\"", StringComparison.Ordinal));
        Assert.Single(lapses);
        Assert.DoesNotContain(await LinesAsync(c), l => l.Contains("\"by\":\"c\"", StringComparison.Ordinal));
        await ImportAsync(b, await LinesAsync(a));
        Assert.Equal("down", await StatusAsync(b));
        // Then b is cut off, too; it lives, and so c has nothing to give up in its place.
        foreach (var store in new[] { a, c })
            await store.ChangeAsync(w => w.NotePeerAlive("b", Noon.AddHours(60)));
        await _clock.PassAsync(Noon.AddHours(60), null, a, b, c);
        Assert.Equal("unknown", await StatusAsync(b));
        await ImportAsync(a, await LinesAsync(b));
        await ImportAsync(c, await LinesAsync(b));
        Assert.Equal(["unknown", "unknown"], [await StatusAsync(a), await StatusAsync(c)]);
        Assert.Equal(2, (await LinesAsync(c)).Count(l => l.Contains("\"what\":\"lapse\"", StringComparison.Ordinal)));
    }

    [Fact]
    public async Task ExportHasARange()
    {
        using var a = Open("a");
        for (var i = 0; i < 5; i++)
        {
            await _clock.PassAsync(Noon.AddHours(i), null, a);
            await a.AppendAsync($"P{i % 2}", StoreChild.Body(Site.Alert(Site.Service(i, $"P{i % 2}"), "up", _clock.UtcNow)));
        }
        using var snapshot = await a.ReadAsync();
        Assert.Equal(7, FactLines.Read(snapshot, null, snapshot.Moment, null).Count());
        Assert.Equal(4, FactLines.Read(snapshot, null, snapshot.Moment, "P0").Count());
        Assert.Equal(3, FactLines.Read(snapshot, Noon.AddHours(2), snapshot.Moment, null).Count());
        Assert.Equal(2, FactLines.Read(snapshot, null, Noon, null).Count());
        Assert.Single(FactLines.Read(snapshot, Noon.AddHours(3), Noon.AddHours(3), null));
    }
}
