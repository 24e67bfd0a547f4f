using System.Globalization;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What time brings: restarts, absences, other names, other clocks, retention and facts of others.</summary>
public sealed class OverTimeTests : IDisposable
{
    private static readonly DateTime Noon = new(2026, 11, 1, 12, 0, 0, DateTimeKind.Utc);
    private static readonly ServiceFilter All = new(null, null, null, null, null);
    private readonly string _directory = Directory.CreateTempSubdirectory("ses-time").FullName;
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

    /// <summary>Lets a turn be made at each hour of a range.</summary>
    private async Task HoursAsync(Store store, int from, int to)
    {
        for (var hour = from; hour < to; hour++)
        {
            await _clock.PassAsync(T(hour * 60), null, store);
            await TurnsAsync(store, 1);
        }
    }

    [Fact]
    public async Task StatedEndAfterGrafanasLapseIsStored()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null)));
        Assert.Equal(new Stored(1, 0, 0), await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), T(-5)) with { Uncertain = true })));
        Assert.Equal(new Stored(1, 0, 0), await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), T(-5)))));
    }

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
        await HoursAsync(store, 1, 72);
        Assert.Contains(await HistoryAsync(store), h => h.StartsWith("a up", StringComparison.Ordinal));
    }

    [Fact]
    public async Task WhatIsHeardUnderANewNameLapses()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null)));
        await TurnsAsync(store);
        Close(store);
        store = Open(with: r => r with { Name = "m" });
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null)));
        await HoursAsync(store, 1, 72);
        using var snapshot = await store.ReadAsync();
        Assert.Contains(await HistoryAsync(store), h => h.StartsWith("a up", StringComparison.Ordinal));
    }

    [Fact]
    public async Task StaleEpisodeEndsAtItsLastCopyStoredAlsoAfterAnAbsence()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null)));
        await TurnsAsync(store);
        Close(store);
        _clock.UtcNow = T(48 * 60);
        store = Open();
        await HoursAsync(store, 48, 100);
        var history = await HistoryAsync(store);
        Assert.Contains("a unknown 0", history);
    }

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
        Assert.DoesNotContain(history, h => h.Contains("unknown", StringComparison.Ordinal));
    }

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
        Assert.InRange(used!.Value, 100_000, 1024 * 1024);
    }

    /// <summary>Where a pass deletes nothing, all is there still.</summary>
    [Fact]
    public async Task WhatIsKeptWholeHasNoOldestTime()
    {
        var store = Open(with: r => r with { MaxSize = 1024 });
        await store.AppendAsync("INS", StoreChild.Body(Stock("open", Noon, null)));
        await TurnsAsync(store);
        using var snapshot = await store.ReadAsync();
        Assert.Null(snapshot.Oldest);
    }

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
        var rows = Questions.Of(snapshot).Threshold(All, 2, now.AddMinutes(-1), null).Where(r => r.Service.Location != "old")
            .Select(r => $"{r.Service.Location} {r.Status} {r.Up} {r.Under.TotalSeconds}").ToList();
        Assert.Equal("a down 2 0", rows[0].Replace(" 3 ", " 2 ", StringComparison.Ordinal));
        Assert.All(rows, r => Assert.EndsWith(" 0", r, StringComparison.Ordinal));
    }

    [Fact]
    public async Task ReportOfAPastRangeTellsWhatWasOpenAtItsEnd()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-100), T(-90))));
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-20), null)));
        await store.AppendAsync("INS", StoreChild.Body(Stock("b", T(-100), T(-90))));
        using var snapshot = await store.ReadAsync();
        var rows = Questions.Of(snapshot).Report(All, T(-120), T(-50)).ToDictionary(r => r.Service.Location, r => r.Figures);
        Assert.False(rows["a"].IsOpen);
        rows = Questions.Of(snapshot).Report(All, T(-120), T(-95)).ToDictionary(r => r.Service.Location, r => r.Figures);
        Assert.True(rows["b"].IsOpen);
    }

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
        Assert.Equal(2, lines.Count(l => l.Contains("observation", StringComparison.Ordinal)));
    }

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

    [Fact]
    public async Task SnapshotThatSqliteRolledBackCanBeDisposed()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-20), null)));
        var snapshot = await store.ReadAsync();
        snapshot.Execute("ROLLBACK");
        snapshot.Dispose();
    }

    [Fact]
    public async Task GoneItemComesAgainWithTheNextObservation()
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var site = new Site(onix.Url);
        var service = new ServiceKey("INS", "p1", "etcd", "node", "x");
        await site.RecordAsync((service, "up", Site.At(1)), (service, "down", Site.At(2)));
        await site.RecordAsync((Site.Service(7), "up", Site.At(1)));
        await site.DrainedAsync();
        await site.StopAsync();
        onix.DeleteItem(OnixNames.Key(service));
        await site.RestartAsync();
        await site.DrainedAsync();
        await Wait.UntilAsync(() => site.Lines.ToString().Contains("gone from Onix", StringComparison.Ordinal), TimeSpan.FromSeconds(10), "gone");
        var before = onix.History.Count;
        var stored = await site.Store.AppendAsync("INS", StoreChild.Body(Site.Alert(service, "down", Site.At(3)) with
        { Labels = """{"facet":"node","other":"1","service":"etcd","status":"down"}""" }));
        Assert.Equal(1, stored.New);
        await Wait.UntilAsync(() => onix.History.Count >= before + 2, TimeSpan.FromSeconds(30), "the whole history");
        await site.DrainedAsync();
        Assert.Equal(before + 2, onix.History.Count);
    }

    [Fact]
    public async Task RetentionLeavesTheStatusAsItIs()
    {
        var store = Open(with: r => r with { Retention = TimeSpan.FromDays(10) });
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-60), T(-30))));
        _clock.UtcNow = T(0.3);
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-120), null)));
        await TurnsAsync(store, 2);
        var before = await HistoryAsync(store);
        _clock.UtcNow = Noon.AddDays(10).AddMinutes(0.1);
        var all = new List<string>();
        for (var i = 0; i < 5; i++)
        {
            using var snapshot = await store.ReadAsync();
            all.Add(string.Join(',', Questions.Of(snapshot).Present(All).Select(p => $"{p.Status}")));
            _clock.UtcNow = _clock.UtcNow.AddMilliseconds(1100);
        }
        Assert.All(all, s => Assert.Equal("up", s));
    }

    /// <summary>What this SeS knows fires again for it, if another one has heard that it ended.</summary>
    [Fact]
    public async Task EndThatAnotherHeardIsTakenBackByALaterCopy()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-60), null)));
        await TurnsAsync(store);
        using (var other = OtherWriter(Path.Combine(_directory, "a", Store.FileName)))
            other.Commit([() => other.Import(
                "b", Stock("a", T(-60), T(-30)), ObservationKind.End, _clock.UtcNow)], _clock.UtcNow);
        await TurnsAsync(store);
        Assert.Equal(["a down -60", "a up -30"], await HistoryAsync(store));
        _clock.UtcNow = _clock.UtcNow.AddSeconds(10);
        Assert.Equal(new Stored(0, 1, 0), await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-60), null))));
        _clock.UtcNow = _clock.UtcNow.AddSeconds(20);
        Assert.Equal(new Stored(1, 0, 0), await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-60), null))));
        Assert.Equal(["a down -60"], await HistoryAsync(store));
    }

    /// <summary>
    /// What another heard, and has not given up, is given up once nothing is heard of it for as long, counted
    /// from when its facts came here.
    /// </summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task WhatASilentOneHeardLapses(bool isAlive)
    {
        var store = Open();
        var path = Path.Combine(_directory, "a", Store.FileName);
        void Import(string location, double starts, double received)
        {
            using var other = OtherWriter(path);
            other.Commit([() => other.Import(
                "x", Stock(location, T(starts), null), ObservationKind.Start, T(received))], _clock.UtcNow);
        }

        await store.AppendAsync("INS", StoreChild.Body(Stock("own", T(-30), T(-20))));
        Import("a", -6000, -5999);
        for (var hour = 1; hour < 60; hour++)
        {
            await _clock.PassAsync(T(hour * 60), null, store);
            if (isAlive && hour % 10 == 0)
                Import($"{hour}", hour * 60, hour * 60);
            await TurnsAsync(store, 2);
            if (hour == 25)
                Assert.Contains("a down -6000", await HistoryAsync(store));
        }
        var history = await HistoryAsync(store);
        Assert.Equal(!isAlive, history.Contains("a unknown -5999"));
        Assert.Equal(!isAlive, history.Exists(h => h.StartsWith("a up", StringComparison.Ordinal)));
        // It is told to other stores as it is.
        using var snapshot = await store.ReadAsync();
        Assert.Equal(isAlive ? 0 : 1, FactLines.Read(snapshot, null, null, null).Count(l =>
            l.Contains("lapse", StringComparison.Ordinal) && l.Contains(ServiceFacts.ForSilent, StringComparison.Ordinal)));
    }

    [Fact]
    public async Task LogWithoutItsDatabaseIsNotThrownAway()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-20), null)));
        var path = Path.Combine(_directory, "a", Store.FileName);
        File.Delete(path);
        _clock.UtcNow = _clock.UtcNow.AddSeconds(2);
        await store.Failed.WaitAsync(TimeSpan.FromSeconds(30));
        Close(store);
        Assert.Contains("has ses.db-wal, but the ses.db it belongs to is missing", Assert.Throws<DataDirException>(() => Open()).Message,
            StringComparison.Ordinal);
        Assert.True(new FileInfo(path + "-wal").Length > 0);
    }

    [Fact]
    public async Task StatusesAreBounded()
    {
        var store = Open();
        var words = Enumerable.Range(0, Writer.MaxStatuses).Select(i => Dialect($"{i} %", T(-20)) with
        { Service = new("INS", "p", "s", "f", $"{i}") }).ToArray();
        var stored = await store.AppendAsync("INS", StoreChild.Body(words));
        // Four words are there from the beginning.
        Assert.Equal((Writer.MaxStatuses - 4, 4), (stored.New, stored.Quarantined));
        Assert.Equal("there are 1000 statuses already, as many as SeS allows", stored.Refused![0].Reason);
    }

    [Fact]
    public async Task EpisodeThatWasHeardAgainIsNotGivenUpByTheOther()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-120), null)));
        using (var other = OtherWriter(Path.Combine(_directory, "a", Store.FileName)))
            other.Commit([() =>
            {
                other.Import("x", Stock("b", T(-100), null), ObservationKind.Start, T(-99));
                other.Import("y", Stock("b", T(-100), null), ObservationKind.Start, T(-98));
                other.Import("x", Stock("b", T(-100), T(-90)), ObservationKind.Lapse, T(-80));
                other.Import("x", Stock("b", T(-100), null), ObservationKind.Again, T(-60));
                other.Import("y", Stock("b", T(-100), T(-70)), ObservationKind.Lapse, T(-40));
            }], _clock.UtcNow);
        await TurnsAsync(store, 2);
        var history = await HistoryAsync(store);
        Assert.DoesNotContain(history, h => h.StartsWith("b unknown", StringComparison.Ordinal));
    }

    [Fact]
    public async Task KnownIsNotAcknowledgedAfterTheFileIsGone()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null)));
        await TurnsAsync(store);
        Assert.Equal(new Stored(0, 1, 0), await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null))));
        File.Delete(Path.Combine(_directory, "a", "ses.db"));
        _clock.UtcNow = _clock.UtcNow.AddSeconds(3);
        await Assert.ThrowsAsync<StoreException>(() => store.AppendAsync("INS", StoreChild.Body(Stock("b", T(-30), null))));
        await Assert.ThrowsAsync<StoreException>(() => store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-30), null))));
    }

    [Fact]
    public async Task BarredThatIsDroppedIsToldAndCounted()
    {
        var store = Open(with: r => r with { Retention = TimeSpan.FromDays(10), Onix = "http://onix/" });
        await store.AppendAsync("INS", StoreChild.Body(Stock("waits", Noon, Noon.AddMinutes(1))));
        await TurnsAsync(store);
        await store.ChangeAsync(w =>
        {
            using var snapshot = store.Snapshot();
            using var reader = new OutboxReader(snapshot);
            w.Outbox.Bar(reader.Waiting(10).Single(), "no", _clock.UtcNow);
            return true;
        });
        for (var day = 1; day < 45; day++)
        {
            _clock.UtcNow = Noon.AddDays(day);
            await store.AppendAsync("INS", StoreChild.Body(Stock($"{day}", Noon.AddDays(day), Noon.AddDays(day).AddMinutes(1))));
            await TurnsAsync(store, 4);
        }
        Assert.Contains("refused for 30 days were dropped services=1", _log.ToString(), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task OnixHasTheLastStatusAfterALostReply(bool isLost)
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var site = new Site(onix.Url);
        IncomingAlert Of(string name, string status, double at) => new(new("INS", "p", "s", "f", "x"), false, AlertSource.Webhook, "",
            $$"""{"alertname":"f","severity":"{{name}}"}""", status, Site.At(at), null, name);
        await site.RecordAsync((Site.Service(7), "up", Site.At(1)));
        await site.DrainedAsync();
        var before = onix.History.Count;
        onix.DropReply = isLost ? 1 : 0;
        await site.Store.AppendAsync("INS", StoreChild.Body(Of("warning", "degraded", 10)));
        await Wait.UntilAsync(() => onix.History.Count > before, TimeSpan.FromSeconds(10), "written");
        await site.Store.AppendAsync("INS", StoreChild.Body(Of("critical", "down", 5)));
        await site.DrainedAsync();
        await Wait.UntilAsync(() => onix.History.Last(c => c.Service == "s").Status == "down",
            TimeSpan.FromSeconds(30), "the last status");
        using var snapshot = await site.Store.ReadAsync();
        var present = Questions.Of(snapshot).Present(All).Single(p => p.Service.Service == "s").Status;
        Assert.Equal("down", present);
    }

    [Fact]
    public async Task ViewOfOutagesHasThemAsTheReportCountsThem()
    {
        var store = Open();
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-60), null)));
        _clock.UtcNow = T(1);
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-60), T(-30)) with { Uncertain = true }));
        await store.AppendAsync("INS", StoreChild.Body(Stock("a", T(-25), T(-20))));
        _clock.UtcNow = T(60);
        using var snapshot = await store.ReadAsync();
        var report = Questions.Of(snapshot).Report(All, null, null).Single().Figures;
        Assert.Equal(report.Outages, snapshot.Number("SELECT count(*) FROM outages"));
    }

    [Fact]
    public async Task UnderivedOpenAlertIsMappedAnewToo()
    {
        var rules = MappingRules.Default;
        var other = MappingRules.Parse(string.Join(MappingRules.Separator, "service='all'", MappingRules.DefaultStatuses, MappingRules.DefaultIgnored, MappingRules.DefaultHeartbeats));
        var body = """{"alerts":[{"status":"firing","labels":{"alertname":"A","instance":"i","job":"j"},"startsAt":"2026-11-01T11:00:00Z"}]}"""u8.ToArray();
        var store = Open(with: r => r with { Mapping = rules });
        await TurnsAsync(store);
        await store.AppendAsync("INS", AlertReader.Read(body, "INS", AlertSource.Webhook, rules, _clock.UtcNow));
        await TurnsAsync(store);
        Close(store);
        // As if the process had died before it derived.
        using (var database = new SqliteConnection(Path.Combine(_directory, "a", "ses.db"), isReadOnly: false, 100))
            database.Execute("DELETE FROM open; DELETE FROM timeline; UPDATE service SET status = NULL, since = NULL, due = NULL, open = 0; UPDATE meta SET value = 0 WHERE name = 'derived'");
        store = Open(with: r => r with { Mapping = other });
        await TurnsAsync(store, 5);
        await store.AppendAsync("INS", AlertReader.Read(body, "INS", AlertSource.Webhook, other, _clock.UtcNow));
        _clock.UtcNow = T(60);
        await TurnsAsync(store, 5);
        using var snapshot = await store.ReadAsync();
        var present = Questions.Of(snapshot).Present(All).Select(p => $"{p.Service.Service} {p.Status}").ToList();
        Assert.DoesNotContain("j down", present);
    }
}
