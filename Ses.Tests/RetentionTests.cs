using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What is too old goes, and what is needed stays; damage is found by itself.</summary>
public sealed class RetentionTests : IDisposable
{
    private static readonly DateTime Noon = new(2026, 11, 1, 12, 0, 0, DateTimeKind.Utc);
    private static readonly ServiceFilter All = new(null, null, null, null, null);

    private readonly string _directory = Directory.CreateTempSubdirectory("ses-retention").FullName;
    private readonly ManualClock _clock = new(Noon);
    private readonly StringWriter _log = new();
    private readonly Meters _meters = new("test", "test");
    private Store _store;

    public RetentionTests() => _store = Open();

    public void Dispose()
    {
        _store.Dispose();
        Directory.Delete(_directory, recursive: true);
    }

    private Store Open(string? onix = null, long? size = null) => new(_directory,
        StoreChild.Rules with { Retention = TimeSpan.FromDays(10), Onix = onix, MaxSize = size, Forget = TimeSpan.FromDays(1000) }, _clock,
        new Log(LogLevel.Trace, false, TextWriter.Synchronized(_log), _clock), _meters);

    private void Reopen(string? onix = null, long? size = null)
    {
        _store.Dispose();
        _store = Open(onix, size);
    }

    private Task<Stored> AppendAsync(IncomingAlert alert) => _store.AppendAsync("INS", StoreChild.Body(alert));

    private static IncomingAlert Alert(string instance, double day, double? until) => new(
        new("INS", "p", "s", "f", instance), false, AlertSource.Webhook, "", $$"""{"alertname":"f","i":"{{instance}}"}""",
        "down", Noon.AddDays(day), until is { } end ? Noon.AddDays(end) : null, "text");

    /// <summary>The writer looks once an hour; the clock moves until nothing changes any more.</summary>
    private async Task SettleAsync(double day)
    {
        _clock.UtcNow = Noon.AddDays(day);
        var before = (-1, "");
        for (var turns = 0; turns < 100; turns++)
        {
            _clock.UtcNow = _clock.UtcNow.AddMinutes(61);
            using (await _store.ReadAsync())
            {
            }
            await Task.Yield();
            var now = (StoreFiles.Observations(_directory), "");
            if (now == before && turns > 3)
                return;
            before = now;
        }
    }

    private async Task<string[]> ServicesAsync()
    {
        using var snapshot = await _store.ReadAsync();
        return [.. Questions.Of(snapshot).Present(All).Select(p => p.Service.Location).Order()];
    }

    private async Task AssertSoundAsync()
    {
        using var snapshot = await _store.ReadAsync();
        using var check = new DatabaseCheck(snapshot.Database, snapshot.Rules, snapshot.Moment);
        check.CheckAll(_ => { });
        Assert.Equal([], check.Faults);
    }

    /// <summary>A hundred alerts a day, but a thousand on the first: what a day takes is of the last week.</summary>
    [Fact]
    public async Task HowMuchADayTakesIsTold()
    {
        Assert.Equal((null, null), (await SizeAsync()) is var none ? (none.Since, none.BytesADay) : default);
        var used = new List<long>();
        for (var day = 0; day <= 9; day++)
        {
            _clock.UtcNow = Noon.AddDays(day);
            var alerts = Enumerable.Range(0, day == 0 ? 1000 : 100).Select(i => Alert($"{i}", day, null)).ToArray();
            await _store.AppendAsync("INS", StoreChild.Body(alerts));
            if (day == 0)
                Assert.Equal((Noon, null), (await SizeAsync()) is var first ? (first.Since, first.BytesADay) : default);
            using var settled = await _store.ReadAsync();
            used.Add((settled.Number("PRAGMA page_count") - settled.Number("PRAGMA freelist_count") ?? 0) * 4096);
        }
        var size = await SizeAsync();
        Assert.Equal(Noon, size.Since);
        // By how much it grew indeed.
        Assert.InRange(size.BytesADay!.Value / ((used[9] - used[2]) / 7.0), 0.5, 2);
        Assert.InRange(size.Bytes, used[9] / 2, 100_000_000);
        Assert.Matches(@"^9 days of history in [\d.]+ [KM]iB; a day takes about [\d.]+ KiB, [\d.]+ [GT]iB are free\.$",
            size.Sentence(_clock.UtcNow));
    }

    private async Task<StoreSize> SizeAsync()
    {
        using var snapshot = await _store.ReadAsync();
        return _store.Size(snapshot);
    }

    [Fact]
    public async Task OldEpisodesGoWholeAndTheOthersStay()
    {
        await AppendAsync(Alert("gone", 0, 0.1));
        await AppendAsync(Alert("open", 0, null));
        await AppendAsync(Alert("long", 0, null));
        await AppendAsync(Site.Alert(new("INS", "p", "s", "f", "dialect"), "down", Noon));
        for (var day = 1; day <= 12; day++)
        {
            // What is open is repeated, else it would lapse.
            _clock.UtcNow = Noon.AddDays(day);
            await AppendAsync(Alert("open", 0, null));
            if (day < 9)
                await AppendAsync(Alert("long", 0, null));
            if (day == 9)
                await AppendAsync(Alert("long", 0, 9));
        }
        await AppendAsync(Alert("new", 11, 11.5));
        await SettleAsync(12);
        Assert.Equal(["dialect", "long", "new", "open"], await ServicesAsync());
        using (var snapshot = await _store.ReadAsync())
        {
            Assert.InRange((snapshot.Oldest!.Value - Noon).TotalDays, 2, 4);
            // Nothing before it is counted.
            var report = Questions.Of(snapshot).Report(All, null, null).Single(r => r.Service.Location == "open").Figures;
            Assert.Equal((long)(snapshot.Moment - snapshot.Oldest.Value).TotalMilliseconds, report.Down);
        }
        await AssertSoundAsync();
        await SettleAsync(25);
        Assert.Contains("dialect", await ServicesAsync());
        Assert.DoesNotContain("long", await ServicesAsync());
        Assert.Contains("old facts were deleted", _log.ToString(), StringComparison.Ordinal);
        await AssertSoundAsync();
    }

    /// <summary>What comes again after it was deleted is new.</summary>
    [Fact]
    public async Task WhatWasDeletedMayComeAgain()
    {
        await AppendAsync(Alert("a", 0, 0.1));
        await SettleAsync(30);
        Assert.Equal(0, StoreFiles.Observations(_directory));
        Assert.Equal(0, _store.Count.Services);
        Assert.Equal(new Stored(1, 0, 0), await AppendAsync(Alert("a", 30, null)));
        Assert.Equal(["a"], await ServicesAsync());
    }

    [Fact]
    public async Task WhatOnixHasYetToGetStays()
    {
        Reopen("http://onix/");
        await AppendAsync(Alert("waits", 0, 0.1));
        await SettleAsync(20);
        Assert.Contains("waits", await ServicesAsync());
        // Refused for over 30 days it goes.
        var waiting = await _store.ChangeAsync(w =>
        {
            using var snapshot = _store.Snapshot();
            using var reader = new OutboxReader(snapshot);
            w.Outbox.Bar(reader.Waiting(10).Single(), "no", _clock.UtcNow);
            return true;
        });
        await SettleAsync(45);
        Assert.Contains("waits", await ServicesAsync());
        await SettleAsync(55);
        Assert.DoesNotContain("waits", await ServicesAsync());
    }

    [Fact]
    public async Task DatabaseStaysBelowItsLargestSize()
    {
        Reopen(size: 1024 * 1024);
        for (var i = 0; i < 3000; i++)
        {
            _clock.UtcNow = Noon.AddSeconds(i * 2);
            await _store.AppendAsync("INS", StoreChild.Body([.. Enumerable.Range(0, 5).Select(n =>
                Alert($"{(i * 5) + n}", i / 43200.0, (i + 1) / 43200.0) with { Description = new string('d', 300) })]));
        }
        using var snapshot = await _store.ReadAsync();
        var used = (snapshot.Number("PRAGMA page_count") - snapshot.Number("PRAGMA freelist_count"))
            * snapshot.Number("PRAGMA page_size");
        // A pass takes most of what so small a database holds.
        Assert.InRange(used!.Value, 100_000, 1024 * 1024);
        Assert.Contains("--max-size", _log.ToString(), StringComparison.Ordinal);
        Assert.True(snapshot.Oldest > Noon);
        Assert.InRange(new FileInfo(StoreFiles.PathOf(_directory)).Length, 300_000, 2 * 1024 * 1024);
    }

    // ---- Scrub ----

    [Theory]
    [InlineData("UPDATE observation SET starts = starts + 1 WHERE id = (SELECT max(id) FROM observation)", "observation")]
    [InlineData("UPDATE alert SET text = 'x' WHERE id = (SELECT max(id) FROM alert)", "alert")]
    [InlineData("UPDATE timeline SET status = 0 WHERE status = 2", "timeline")]
    public async Task DamageIsFoundByItself(string damage, string word)
    {
        for (var i = 0; i < 50; i++)
            await AppendAsync(Alert($"{i}", 0, 0.1));
        (await _store.ReadAsync()).Dispose();
        var scrub = new Scrub(_store, _clock, new Log(LogLevel.Trace, false, _log, _clock), _meters);
        for (var i = 0; i < 10; i++)
            scrub.Step();
        Assert.Null(scrub.Damage);
        using (var database = new SqliteConnection(StoreFiles.PathOf(_directory), isReadOnly: false, 100))
            database.Execute(damage);
        for (var i = 0; i < 10; i++)
            scrub.Step();
        Assert.Contains(word, scrub.Damage, StringComparison.Ordinal);
        Assert.Equal(1, _meters.Damage.Value);
        Assert.Contains("ses check", _log.ToString(), StringComparison.Ordinal);
    }
}
