using System.Globalization;
using Ses.Tests.Support;
using Xunit;
using Xunit.Abstractions;

namespace Ses.Tests;

public sealed class ReadTests(ITestOutputHelper output) : IDisposable
{
    private static readonly DateTime Noon = new(2026, 11, 1, 12, 0, 0, DateTimeKind.Utc);
    private static readonly ServiceFilter All = new(null, null, null, null, null);
    private readonly string _directory = Directory.CreateTempSubdirectory("ses-read").FullName;
    private readonly ManualClock _clock = new(Noon);
    private readonly StringWriter _log = new();
    private readonly List<Store> _stores = [];

    public void Dispose()
    {
        foreach (var s in _stores)
            s.Dispose();
        Directory.Delete(_directory, recursive: true);
    }

    private Store Open(string name = "a", Func<StoreRules, StoreRules>? with = null)
    {
        var dir = Path.Combine(_directory, name);
        Directory.CreateDirectory(dir);
        var store = new Store(dir, with == null ? StoreChild.Rules : with(StoreChild.Rules), _clock,
            new Log(LogLevel.Trace, false, TextWriter.Synchronized(_log), _clock), new Meters("test", "test"));
        _stores.Add(store);
        return store;
    }

    private void Close(Store store)
    {
        store.Dispose();
        _stores.Remove(store);
    }

    private static DateTime T(double minutes) => Noon.AddMinutes(minutes);

    private static IncomingAlert Stock(string instance, DateTime starts, DateTime? ends, string status = "down") => new(
        new("INS", "p", "s", "f", instance), false, AlertSource.Webhook, "", $$"""{"alertname":"f","i":"{{instance}}"}""",
        status, starts, ends, "text");

    private static IncomingAlert Dialect(string status, DateTime starts, DateTime? ends = null) => new(
        new("INS", "p", "s", "f", "x"), true, AlertSource.Webhook, "",
        $$"""{"facet":"f","service":"s","status":"{{status}}"}""", status, starts, ends, status);

    private static async Task<List<string>> HistoryAsync(Store store, DateTime? asOf = null)
    {
        using var snapshot = await store.ReadAsync();
        return [.. Questions.Of(snapshot, asOf).History(All, null, null)
            .Select(r => $"{r.Service.Location} {r.Status} {(r.Time - Noon).TotalMinutes.ToString(CultureInfo.InvariantCulture)}")];
    }

    private async Task TurnsAsync(Store store, int turns = 4)
    {
        for (var i = 0; i < turns; i++)
        {
            _clock.UtcNow = _clock.UtcNow.AddSeconds(2);
            using (await store.ReadAsync())
            {
            }
        }
    }

    // S5
    [Fact]
    public async Task StatedEndAfterGrafanasLapseIsStored()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null)));
        Assert.Equal(new Stored(1, 0, 0), await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), T(-5)) with { Uncertain = true })));
        Assert.Equal(new Stored(1, 0, 0), await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), T(-5)))));
    }

    // S8
    [Fact]
    public async Task TieOfTwoStatusesIsTheSameInTwoStores()
    {
        var (a, b) = (Open("a"), Open("b"));
        await a.AppendAsync("INS", StoreChild.Body(Dialect("amber", T(-10))));
        await a.AppendAsync("INS", StoreChild.Body(Dialect("blue", T(-10))));
        await b.AppendAsync("INS", StoreChild.Body(Dialect("blue", T(-10))));
        await b.AppendAsync("INS", StoreChild.Body(Dialect("amber", T(-10))));
        Assert.Equal(await HistoryAsync(a), await HistoryAsync(b));
    }

    // S9: another name
    [Theory]
    [InlineData("n")]
    [InlineData("m")]
    public async Task WhatWasOpenUnderAnotherNameLapses(string name)
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null)));
        await TurnsAsync(store);
        Close(store);
        store = Open(with: r => r with { Name = name });
        for (var hour = 1; hour < 72; hour++)
        {
            _clock.UtcNow = T(hour * 60);
            await TurnsAsync(store, 1);
        }
        output.WriteLine(string.Join("\n", await HistoryAsync(store)));
        Assert.Contains(await HistoryAsync(store), h => h.StartsWith("a up", StringComparison.Ordinal));
    }

    // S9: heard again under the new name
    [Fact]
    public async Task WhatIsHeardUnderANewNameLapses()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null)));
        await TurnsAsync(store);
        Close(store);
        store = Open(with: r => r with { Name = "m" });
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null)));
        for (var hour = 1; hour < 72; hour++)
        {
            _clock.UtcNow = T(hour * 60);
            await TurnsAsync(store, 1);
        }
        output.WriteLine(string.Join("\n", await HistoryAsync(store)));
        using var snapshot = await store.ReadAsync();
        output.WriteLine($"lapses: {snapshot.Number("SELECT count(*) FROM observation WHERE kind = 3")}");
        Assert.Contains(await HistoryAsync(store), h => h.StartsWith("a up", StringComparison.Ordinal));
    }

    // S12a
    [Fact]
    public async Task StaleEpisodeEndsAtItsLastCopyStoredAlsoAfterAnAbsence()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null)));
        await TurnsAsync(store);
        Close(store);
        _clock.UtcNow = T(48 * 60);
        store = Open();
        for (var hour = 48; hour < 100; hour++)
        {
            _clock.UtcNow = T(hour * 60);
            await TurnsAsync(store, 1);
        }
        var history = await HistoryAsync(store);
        output.WriteLine(string.Join("\n", history));
        Assert.Contains("a unknown 0", history);
    }

    // S12b
    [Fact]
    public async Task EpisodeIsNotGivenUpBeforeStaleAfter()
    {
        var store = Open();
        _clock.UtcNow = T(-1);
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null)));
        _clock.UtcNow = T(59.99);
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null)));
        _clock.UtcNow = T(119.98);
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null)));
        await TurnsAsync(store);
        _clock.UtcNow = T(119.98 + (24.5 * 60));
        await TurnsAsync(store);
        var history = await HistoryAsync(store);
        output.WriteLine(string.Join("\n", history));
        Assert.DoesNotContain(history, h => h.Contains("unknown", StringComparison.Ordinal));
    }

    // S13: --max-size with a kept fact at the front
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task DatabaseStaysBelowItsLargestSizeWithAnOldOpenAlert(bool hasOpen)
    {
        var store = Open(with: r => r with { MaxSize = 1024 * 1024 });
        if (hasOpen)
            await store.AppendAsync("INS", StoreChild.Body(Stock("open", Noon, null)));
        for (var i = 0; i < 3000; i++)
        {
            _clock.UtcNow = Noon.AddSeconds(i * 2);
            await store.AppendAsync("INS", StoreChild.Body([.. Enumerable.Range(0, 5).Select(n =>
                Stock($"{(i * 5) + n}", Noon.AddSeconds(i * 2), Noon.AddSeconds((i * 2) + 2)) with { Description = new string('d', 300) })]));
        }
        await TurnsAsync(store, 50);
        using var snapshot = await store.ReadAsync();
        var used = (snapshot.Number("PRAGMA page_count") - snapshot.Number("PRAGMA freelist_count"))
            * snapshot.Number("PRAGMA page_size");
        output.WriteLine($"{used}");
        Assert.InRange(used!.Value, 300_000, 1024 * 1024);
    }

    // Q1
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task ThresholdIsTheSameAfterRetention(bool isRetained)
    {
        var store = Open(with: r => r with { Retention = isRetained ? TimeSpan.FromDays(10) : null });
        // The partition is known from day 0 on, by an alert that soon ends.
        await store.AppendAsync("INS", StoreChild.Body(Stock("old", Noon, Noon.AddMinutes(5))));
        for (var day = 1; day <= 20; day++)
        {
            _clock.UtcNow = Noon.AddDays(day);
            await TurnsAsync(store, 4);
        }
        var now = _clock.UtcNow;
        foreach (var name in new[] { "a", "b", "c" })
            await store.AppendAsync("INS", StoreChild.Body(
                Stock(name, now.AddMinutes(name[0] - 'a'), now.AddMinutes(name[0] - 'a').AddSeconds(30))));
        _clock.UtcNow = now.AddMinutes(10);
        using var snapshot = await store.ReadAsync();
        output.WriteLine($"oldest {snapshot.Oldest}");
        var rows = Questions.Of(snapshot).Threshold(All, 2, now.AddMinutes(-1), null).Where(r => r.Service.Location != "old")
            .Select(r => $"{r.Service.Location} {r.Status} {r.Up} {r.Under.TotalSeconds}").ToList();
        output.WriteLine(string.Join("\n", rows));
        output.WriteLine(string.Join("\n", Questions.Of(snapshot).Present(All).Select(p => $"{p.Service.Location} {p.Status} since {p.Since:o}")));
        Assert.Equal("a down 2 0", rows[0].Replace(" 3 ", " 2 ", StringComparison.Ordinal));
        Assert.All(rows, r => Assert.EndsWith(" 0", r, StringComparison.Ordinal));
    }

    // Q3
    [Fact]
    public async Task ReportOfAPastRangeTellsWhatWasOpenAtItsEnd()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-100), T(-90))));
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-20), null)));
        await store.AppendAsync("INS", StoreChild.Body(Stock("b", T(-100), T(-90))));
        using var snapshot = await store.ReadAsync();
        var rows = Questions.Of(snapshot).Report(All, T(-120), T(-50)).ToDictionary(r => r.Service.Location, r => r.Availability);
        Assert.False(rows["a"].IsOpen);
        rows = Questions.Of(snapshot).Report(All, T(-120), T(-95)).ToDictionary(r => r.Service.Location, r => r.Availability);
        Assert.True(rows["b"].IsOpen);
    }

    // Export with the clock set back
    [Fact]
    public async Task ExportHasAllAlsoAfterTheClockWasSetBack()
    {
        _clock.UtcNow = T(600);
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-20), null)));
        _clock.UtcNow = T(0);
        await store.AppendAsync("INS", StoreChild.Body(Stock("b", T(-20), null)));
        using var snapshot = Snapshot.Open(Path.Combine(_directory, "a"), _clock.UtcNow);
        var lines = FactLines.Read(snapshot, null, null, null).ToList();
        output.WriteLine(string.Join("\n", lines));
        Assert.Equal(2, lines.Count(l => l.Contains("observation", StringComparison.Ordinal)));
    }

    // S38
    [Fact]
    public async Task ScrubSurvivesAnAlertThatIsElsewhere()
    {
        var store = Open();
        for (var i = 0; i < 5; i++)
            await store.AppendAsync("INS", StoreChild.Body(Stock($"{i}", T(-20), null)));
        (await store.ReadAsync()).Dispose();
        using (var database = new SqliteConnection(Path.Combine(_directory, "a", "ses.db"), isReadOnly: false, 100))
            database.Execute("UPDATE alert SET service = service + 64 WHERE id = (SELECT max(id) FROM alert)");
        var scrub = new Scrub(store, _clock, new Log(LogLevel.Trace, false, _log, _clock), new Meters("test", "test"));
        scrub.Step();
        Assert.NotNull(scrub.Damage);
    }

    // S1b
    [Fact]
    public async Task FullTemporarySpaceIsToldAsSuch()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-20), null)));
        var before = Random.Shared;
        var e = await Assert.ThrowsAsync<SqliteException>(async () =>
        {
            using var snapshot = await store.ReadAsync();
            snapshot.Execute("PRAGMA temp.max_page_count = 3; CREATE TEMP TABLE t(x);");
            using var insert = snapshot.Query("INSERT INTO t SELECT randomblob(4000) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50) SELECT i FROM n)");
            insert.Run();
        });
        output.WriteLine(e.Message);
        Assert.True(e.IsFull, e.Message);
    }

    private Writer OtherWriter(string path) => new(path, 1024,
        StoreChild.Rules with { Name = null }, new RecentAlerts(), _clock);

    /// <summary>An answer's as_of, asked again, gives the same, while an import commits beside the daemon.</summary>
    [Fact]
    public async Task AnswerBesideAnotherWriterCanBeMadeAgain()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null)));
        await TurnsAsync(store);
        List<string> Ask(Snapshot snapshot, DateTime? asOf) => [.. Questions.Of(snapshot, asOf).History(All, null, null)
            .Select(r => $"{r.Service.Location} {r.Status} {r.Time:o}")];
        var asked = default(Task<Snapshot>);
        using (var other = OtherWriter(Path.Combine(_directory, "a", Store.FileName)))
        {
            other.Commit([() =>
            {
                other.Import("b", Stock("late", T(-20), null), ObservationKind.Start, T(-19));
                _clock.UtcNow = _clock.UtcNow.AddMilliseconds(500);
                asked = Task.Run(store.ReadAsync);
                Assert.False(asked.Wait(TimeSpan.FromMilliseconds(300)));
            }], _clock.UtcNow);
        }
        using var snapshot = await asked!;
        var (moment, given) = (snapshot.Moment, Ask(snapshot, null));
        Assert.Equal(2, given.Count);
        _clock.UtcNow = _clock.UtcNow.AddMinutes(1);
        using var again = await store.ReadAsync();
        Assert.Equal(given, Ask(again, moment));
    }

    // Retention of a dialect service with many facts: how long one transaction takes.
    [Fact]
    public async Task RetentionOfOneBusyServiceIsShort()
    {
        var store = Open();
        for (var i = 0; i < 60; i++)
        {
            _clock.UtcNow = Noon.AddMinutes(i);
            await store.AppendAsync("INS", StoreChild.Body([.. Enumerable.Range(0, 100).SelectMany(n => new[] {
                Dialect("down", Noon.AddMinutes(i).AddMilliseconds(n * 500), Noon.AddMinutes(i).AddMilliseconds((n * 500) + 200)),
                Dialect("up", Noon.AddMinutes(i).AddMilliseconds((n * 500) + 200), Noon.AddMinutes(i).AddMilliseconds((n * 500) + 400)) })]));
        }
        await TurnsAsync(store, 2);
        Close(store);
        _clock.UtcNow = Noon.AddDays(20);
        var watch = System.Diagnostics.Stopwatch.StartNew();
        store = Open(with: r => r with { Retention = TimeSpan.FromDays(10) });
        var worst = TimeSpan.Zero;
        for (var i = 0; i < 40; i++)
        {
            _clock.UtcNow = _clock.UtcNow.AddMilliseconds(300);
            var began = watch.Elapsed;
            await store.AppendAsync("INS", StoreChild.Body(Stock($"x{i}", _clock.UtcNow, null)));
            var took = watch.Elapsed - began;
            if (i > 0 && took > worst)
                worst = took;
            output.WriteLine($"{took.TotalMilliseconds:F0} ms, {StoreFiles.Observations(Path.Combine(_directory, "a"))} left");
        }
        Assert.True(worst < TimeSpan.FromMilliseconds(200), $"{worst}");
    }

    // Due services: how long one transaction takes.
    [Fact]
    public async Task DueServicesDoNotHoldACommitUp()
    {
        var store = Open();
        for (var round = 0; round < 20; round++)
        {
            _clock.UtcNow = Noon.AddMinutes(round * 2);
            await store.AppendAsync("INS", StoreChild.Body([.. Enumerable.Range(0, 1000).Select(n =>
                Stock($"{n}", _clock.UtcNow.AddSeconds(-20), _clock.UtcNow.AddSeconds(-1)))]));
        }
        await TurnsAsync(store, 2);
        var watch = System.Diagnostics.Stopwatch.StartNew();
        using (var other = OtherWriter(Path.Combine(_directory, "a", Store.FileName)))
            other.Commit([() => other.Import("b", "INS", Noon.AddDays(-1))], _clock.UtcNow);
        var worst = TimeSpan.Zero;
        for (var i = 0; i < 10; i++)
        {
            _clock.UtcNow = _clock.UtcNow.AddMilliseconds(1100);
            var began = watch.Elapsed;
            await Task.Delay(20);
            await store.AppendAsync("INS", StoreChild.Body(Stock($"x{i}", _clock.UtcNow, null)));
            var took = watch.Elapsed - began - TimeSpan.FromMilliseconds(20);
            worst = took > worst ? took : worst;
            output.WriteLine($"{took.TotalMilliseconds:F0} ms");
        }
        Assert.True(worst < TimeSpan.FromMilliseconds(200), $"{worst}");
    }

    // Open episodes of others: the cost of each turn.
    [Fact]
    public async Task ImportedOpenEpisodesCostNothingEachTurn()
    {
        var store = Open();
        using (var other = OtherWriter(Path.Combine(_directory, "a", Store.FileName)))
            for (var part = 0; part < 20; part++)
                other.Commit(Enumerable.Range(0, 1000).Select(n => (Action)(() => other.Import(
                    "b", Stock($"{part}-{n}", T(-20), null), ObservationKind.Start, T(-19)))), _clock.UtcNow);
        await TurnsAsync(store, 3);
        var watch = System.Diagnostics.Stopwatch.StartNew();
        for (var i = 0; i < 5; i++)
        {
            var began = watch.Elapsed;
            (await store.ReadAsync()).Dispose();
            output.WriteLine($"before stale: {(watch.Elapsed - began).TotalMilliseconds:F1} ms");
        }
        _clock.UtcNow = Noon.AddHours(40);
        for (var i = 0; i < 5; i++)
        {
            _clock.UtcNow = _clock.UtcNow.AddMilliseconds(1100);
            var began = watch.Elapsed;
            (await store.ReadAsync()).Dispose();
            output.WriteLine($"after: {(watch.Elapsed - began).TotalMilliseconds:F1} ms");
        }
        using var snapshot = await store.ReadAsync();
        output.WriteLine($"open {snapshot.Number("SELECT count(*) FROM open")}, lapses {snapshot.Number("SELECT count(*) FROM observation WHERE kind = 3")}");
    }

    // A page of a partition with few services and a long history.
    [Fact]
    public async Task PageCostsAsMuchAsItIsLong()
    {
        var store = Open();
        for (var round = 0; round < 200; round++)
        {
            _clock.UtcNow = Noon.AddMinutes(round * 2);
            await store.AppendAsync("INS", StoreChild.Body([.. Enumerable.Range(0, 500).Select(n =>
                Stock($"{n}", _clock.UtcNow.AddSeconds(-20), _clock.UtcNow.AddSeconds(-1)))]));
        }
        await TurnsAsync(store, 2);
        using var snapshot = await store.ReadAsync();
        var inPartition = new ServiceFilter("INS", null, null, null, null);
        var watch = System.Diagnostics.Stopwatch.StartNew();
        for (var i = 0; i < 5; i++)
        {
            watch.Restart();
            var count = Questions.Of(snapshot).History(inPartition, T(10), null).Take(100).Count();
            output.WriteLine($"{count}: {watch.Elapsed.TotalMilliseconds:F1} ms of {snapshot.Number("SELECT count(*) FROM timeline")} runs");
        }
        watch.Restart();
        Assert.True(snapshot.Number("SELECT count(*) FROM (SELECT at FROM timeline WHERE partition = (SELECT id FROM partition) AND at >= 0 AND at = since ORDER BY at, service LIMIT 100)") == 100);
        output.WriteLine($"by the index: {watch.Elapsed.TotalMilliseconds:F1} ms");
    }

    // Snapshot whose transaction SQLite ended.
    [Fact]
    public async Task SnapshotThatSqliteRolledBackCanBeDisposed()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-20), null)));
        var snapshot = await store.ReadAsync();
        snapshot.Execute("ROLLBACK");
        snapshot.Dispose();
    }
}
