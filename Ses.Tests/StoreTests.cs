using System.Text;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>Facts reach the database before they are acknowledged, each once, and survive what a store meets.</summary>
public sealed class StoreTests : IDisposable
{
    private static readonly DateTime Noon = new(2026, 11, 23, 12, 0, 0, DateTimeKind.Utc);
    private static readonly StoreRules Rules =
        new("n", new TimelineRules(TimeSpan.FromMinutes(15)), TimeSpan.FromHours(25), 100_000, 1_000_000);

    private readonly string _directory = Directory.CreateTempSubdirectory("ses-store").FullName;
    private readonly ManualClock _clock = new(Noon.AddHours(1));
    private readonly StringWriter _log = new();
    private Store _store;

    public StoreTests() => _store = Open();

    public void Dispose()
    {
        _store.Dispose();
        Directory.Delete(_directory, recursive: true);
    }

    [Fact]
    public async Task NewAlertIsOneObservationAndItsCopyNone()
    {
        Assert.Equal(new Stored(1, 0, 0), await AppendAsync(Alert()));
        Assert.Equal(new Stored(0, 1, 0), await AppendAsync(Alert()));
        Assert.Equal(1, await CountAsync("observation"));
    }

    [Fact]
    public async Task CopiesAreKnownAfterARestartToo()
    {
        await AppendAsync(Alert());
        Reopen();
        Assert.Equal(new Stored(0, 1, 0), await AppendAsync(Alert()));
        Assert.Equal(new Stored(1, 0, 0), await AppendAsync(Alert(ends: 10)));
        Reopen();
        Assert.Equal(new Stored(0, 1, 0), await AppendAsync(Alert(ends: 10)));
        Assert.Equal(2, await CountAsync("observation"));
    }

    [Fact]
    public async Task CopiesInOneRequestAreStoredOnce()
    {
        Assert.Equal(new Stored(1, 1, 0), await AppendAsync(Alert(), Alert()));
        Assert.Equal(1, await CountAsync("alert"));
    }

    [Fact]
    public async Task TimelineHasWhatTheFactsSay()
    {
        await AppendAsync(Alert(ends: 10));
        Assert.Contains("2026-11-23T12:00:00.000Z|down", await RunsAsync());
        Assert.Contains("2026-11-23T12:00:10.000Z|up", await RunsAsync());
    }

    [Fact]
    public async Task QuestionSeesAllThatWasAcknowledgedBefore()
    {
        for (var i = 0; i < 100; i++)
        {
            await AppendAsync(Alert(instance: $"n{i}"));
            using var snapshot = await _store.ReadAsync();
            using var count = snapshot.Query("SELECT count(*) FROM timeline WHERE status = 2");
            Assert.Equal(i + 1, count.Number());
        }
    }

    [Fact]
    public async Task ServicesBeyondTheBoundAreQuarantined()
    {
        Reopen(Rules with { MaxServices = 2 });
        Assert.Equal(new Stored(2, 0, 1), await AppendAsync(Alert("a"), Alert("b"), Alert("c")) with { Refused = null });
        Assert.Equal(new Stored(0, 1, 0), await AppendAsync(Alert("a")));
        Assert.Equal(2, await CountAsync("service"));
        Assert.Equal(1, await CountAsync("quarantine"));
    }

    [Fact]
    public async Task LabelSetsBeyondTheBoundAreQuarantined()
    {
        Reopen(Rules with { MaxAlerts = 1 });
        Assert.Equal(new Stored(1, 0, 1), await AppendAsync(Alert("a"), Alert("b")) with { Refused = null });
        Assert.Equal(1, await CountAsync("alert"));
    }

    [Fact]
    public async Task UnmappableAlertIsKeptOnce()
    {
        var misfit = new UnmappableAlert("identity", "f", "n", "it has no service", "{}"u8.ToArray());
        Assert.Equal(new Stored(0, 0, 1), await _store.AppendAsync("INS", new([], [misfit], 0, 0, 0, 0)));
        var size = new FileInfo(Path.Combine(_directory, Store.FileName + "-wal")).Length;
        for (var i = 0; i < 50; i++)
            Assert.Equal(new Stored(0, 0, 1), await _store.AppendAsync("INS", new([], [misfit], 0, 0, 0, 0)));
        Assert.Equal(1, await CountAsync("quarantine"));
        Assert.Equal(size, new FileInfo(Path.Combine(_directory, Store.FileName + "-wal")).Length);
    }

    [Fact]
    public async Task RequestsFromManyThreadsAreAllStored()
    {
        await Task.WhenAll(Enumerable.Range(0, 16).Select(thread => Task.Run(async () =>
        {
            for (var i = 0; i < 200; i++)
                await AppendAsync(Alert($"{thread}-{i}"), Alert($"shared-{i}"));
        })));
        Assert.Equal(16 * 200 + 200, await CountAsync("observation"));
        Assert.Equal(16 * 200 + 200, await CountAsync("service"));
    }

    [Fact]
    public async Task LongLogIsMovedIntoTheDatabase()
    {
        var text = new string('x', 4000);
        for (var i = 0; i < 30; i++)
            await AppendAsync([.. Enumerable.Range(0, 200).Select(n => Alert($"{i}-{n}") with { Description = text })]);
        Assert.True(new FileInfo(Path.Combine(_directory, Store.FileName)).Length > 1024 * 1024);
    }

    [Fact]
    public void DatabaseOfANewerSesIsRefused()
    {
        _store.Dispose();
        using (var database = new SqliteConnection(Path.Combine(_directory, Store.FileName), isReadOnly: false, 100))
            database.Execute("PRAGMA user_version = 99");
        var refusal = Assert.Throws<DataDirException>(Open);
        Assert.Contains("version 99", refusal.Message, StringComparison.Ordinal);
        Directory.Delete(_directory, recursive: true);
        Directory.CreateDirectory(_directory);
        _store = Open();
    }

    /// <summary>
    /// What is recorded between the moment of a question and its snapshot is not in the answer, derived or not,
    /// since the answer as of that moment is asked for again; unless the clock was set back, which would hide it.
    /// </summary>
    [Theory]
    [InlineData(0, "down")]
    [InlineData(-60, "up")]
    public async Task AnswerHasWhatWasRecordedUntilItsMoment(int setBack, string expected)
    {
        await AppendAsync(Alert());
        DateTime moment;
        using (var snapshot = await _store.ReadAsync())
            moment = snapshot.Moment;
        _clock.Advance(TimeSpan.FromMilliseconds(10));
        await AppendAsync(Alert(ends: 10));
        (await _store.ReadAsync()).Dispose();
        using var later = _store.Snapshot();
        later.Moment = moment.AddSeconds(setBack);
        Assert.Equal(expected, Questions.Of(later).Present(new("INS", null, null, null, null)).Single().Status);
    }

    [Fact]
    public async Task OpenEpisodeThatIsNotRepeatedLapses()
    {
        await AppendAsync(Alert());
        _ = await RunsAsync();
        await _clock.PassAsync(_clock.UtcNow.AddHours(26).AddSeconds(2), null, _store);
        await Wait.UntilAsync(async () => await CountAsync("observation") == 2, TimeSpan.FromSeconds(30), "the lapse");
        Assert.Equal(0, await CountAsync("open"));
    }

    /// <summary>
    /// What is open is mapped anew at a start with other settings: it lapses where it does not belong any more,
    /// and goes on where it does. What its labels do not tell came from annotations, and is as before.
    /// </summary>
    [Theory]
    [InlineData("", "", true)]
    [InlineData("platform='prod'", "", false)]
    [InlineData("service=job", "", false)]
    [InlineData("service=role", "", true)]
    [InlineData("service=role;platform=cluster,'p'", "", true)]
    [InlineData("service=role;platform='p',cluster", "", false)]
    [InlineData("service=role;description=summary", "", true)]
    [InlineData("", "Down", false)]
    public async Task OpenEpisodeThatBelongsElsewhereGoesOnThere(string map, string ignored, bool stays)
    {
        const string body = """
            {"version":"4","alerts":[{"status":"firing","startsAt":"2026-11-23T12:00:00Z",
            "labels":{"alertname":"Down","instance":"n1","job":"node","cluster":"c"},
            "annotations":{"role":"etcd","summary":"it is down"}}]}
            """;
        MappingRules Mapping(string fields, string names) => MappingRules.Parse(string.Join(MappingRules.Separator,
            fields, MappingRules.DefaultStatuses, names, MappingRules.DefaultHeartbeats));
        async Task<Stored> PostAsync(MappingRules rules) => await _store.AppendAsync("INS", AlertReader.Read(
            Encoding.UTF8.GetBytes(body), "INS", AlertSource.Webhook, rules, _clock.UtcNow));
        var before = Mapping("service=role", "");
        Reopen(Rules with { Mapping = before });
        await PostAsync(before);
        Assert.Equal(1, await CountAsync("open"));
        var rules = Mapping(map == "" ? "service=role" : map, ignored);
        Reopen(Rules with { Mapping = rules });
        Assert.Equal(ignored == "" ? 1 : 0, await CountAsync("open"));
        Assert.Equal(stays ? ["down"] : ignored == "" ? ["down", "down", "unknown"] : ["down", "unknown"],
            (await RunsAsync()).Select(r => r.Split('|')[1]));
        // What came of it is not done again, and a copy goes where it belongs.
        Reopen(Rules with { Mapping = rules });
        await PostAsync(rules);
        Assert.Equal(ignored == "" ? 1 : 0, await CountAsync("open"));
    }

    /// <summary>An up ends the dialect's down: that is given up by nobody.</summary>
    [Fact]
    public async Task DialectAlertThatItsOppositeEndedIsNotOpen()
    {
        await AppendAsync(Alert("n1") with { Dialect = true });
        await AppendAsync(Alert("n1", starts: 10) with { Dialect = true, Status = "up", Labels = "{}" });
        Assert.Equal(1, await CountAsync("open"));
        Assert.Equal(["2026-11-23T12:00:00.000Z|down", "2026-11-23T12:00:10.000Z|up"], await RunsAsync());
    }

    [Theory]
    [InlineData("", true)]
    [InlineData("-wal", true)]
    [InlineData("-shm", true)]
    [InlineData("", false)]
    [InlineData("-wal", false)]
    public async Task RemovedOrCutFileEndsAcknowledging(string file, bool isRemoved)
    {
        await AppendAsync(Alert());
        // All is derived: nothing is written while the file is cut.
        (await _store.ReadAsync()).Dispose();
        var path = Path.Combine(_directory, Store.FileName + file);
        if (isRemoved)
            File.Delete(path);
        else
            File.WriteAllBytes(path, []);
        await Assert.ThrowsAsync<StoreException>(() => AppendAsync(Alert("n2")));
        Assert.Contains(path, await _store.Failed, StringComparison.Ordinal);
        await Assert.ThrowsAsync<StoreException>(() => AppendAsync(Alert("n3")));
        _store.Dispose();
        Directory.Delete(_directory, recursive: true);
        Directory.CreateDirectory(_directory);
        _store = Open();
    }

    /// <summary>Whenever the store is stopped, who asked is answered.</summary>
    [Fact]
    public async Task QuestionAtTheStopIsAnswered()
    {
        for (var i = 0; i < 20; i++)
        {
            var asked = Enumerable.Range(0, 8).Select(_ => Task.Run(async () =>
            {
                try
                {
                    (await _store.ReadAsync()).Dispose();
                }
                catch (StoreException)
                {
                    // It was too late.
                }
            })).ToArray();
            _store.Dispose();
            await Task.WhenAll(asked).WaitAsync(TimeSpan.FromSeconds(30));
            _store = Open();
        }
    }

    [Fact]
    public async Task StoppedStoreTakesNothing()
    {
        _store.Dispose();
        await Assert.ThrowsAsync<StoreException>(() => AppendAsync(Alert()));
        await Assert.ThrowsAsync<StoreException>(() => _store.ReadAsync());
        _store = Open();
    }

    [Fact]
    public async Task CheckFindsNothingWrongInASoundDatabase()
    {
        for (var i = 0; i < 20; i++)
            await AppendAsync(Alert($"n{i % 7}", starts: i, ends: i % 3 == 0 ? null : i + 1));
        Assert.Equal([], await CheckAsync());
    }

    [Theory]
    [InlineData("UPDATE observation SET ends = ends + 1", "observation")]
    [InlineData("UPDATE observation SET text = 'x'", "observation")]
    [InlineData("UPDATE alert SET labels = '{}'", "alert")]
    [InlineData("UPDATE receipt SET received = 7", "receipt")]
    [InlineData("UPDATE timeline SET until = until + 1 WHERE until < 9000000000000000", "ses rebuild")]
    [InlineData("DELETE FROM timeline", "ses rebuild")]
    public async Task CheckFindsWhatDoesNotFit(string damage, string word)
    {
        await AppendAsync(Alert(ends: 10));
        Assert.Equal([], await CheckAsync());
        _store.Dispose();
        using (var database = new SqliteConnection(Path.Combine(_directory, Store.FileName), isReadOnly: false, 100))
            database.Execute(damage);
        _store = Open();
        Assert.Contains(word, Assert.Single(await CheckAsync()), StringComparison.Ordinal);
    }

    // ---- Settings ----

    [Fact]
    public async Task NameIsStoredAtTheFirstStart()
    {
        Reopen(Rules with { Name = null });
        await AppendAsync(Alert());
        using (var snapshot = await _store.ReadAsync())
            Assert.Contains("\"by\":\"n\"", FactLines.Read(snapshot, null, snapshot.Moment, null).First(), StringComparison.Ordinal);
        Reopen(Rules with { Name = "other" });
        await AppendAsync(Alert("n2"));
        using (var snapshot = await _store.ReadAsync())
            Assert.Equal(["n", "n", "other"], FactLines.Read(snapshot, null, snapshot.Moment, null).Select(l => l.Split("\"by\":\"")[1].Split('"')[0]));
    }

    [Fact]
    public async Task AnotherPauseDerivesTheTimelineAnew()
    {
        await AppendAsync(Alert("n1", ends: 10) with { Dialect = true });
        _clock.UtcNow = Noon.AddMinutes(30);
        async Task<string> StatusAsync()
        {
            using var snapshot = await _store.ReadAsync();
            return Questions.Of(snapshot).Present(new(null, null, null, null, null)).Single().Status;
        }
        Assert.Equal("unknown", await StatusAsync());
        Reopen(Rules with { Timeline = new TimelineRules(TimeSpan.FromHours(2)) });
        Assert.Equal("down", await StatusAsync());
        Assert.Equal([], await CheckAsync(new TimelineRules(TimeSpan.FromHours(2))));
    }

    /// <summary>Another process writes beside this one, such as an import: its facts are seen, ids stay unique.</summary>
    [Fact]
    public async Task AnotherWriterIsNoticed()
    {
        await AppendAsync(Alert());
        var recent = new RecentAlerts();
        using (var other = new Writer(Path.Combine(_directory, Store.FileName), 1024, Rules, recent, _clock))
        {
            for (var i = 0; i < 5; i++)
            {
                var body = StoreChild.Body(Alert($"o{i}"));
                other.Commit([() => other.Take("INS", body, recent.KeysOf(body.Alerts), null, _clock.UtcNow)], _clock.UtcNow);
                await AppendAsync(Alert($"s{i}"));
            }
        }
        using (var snapshot = await _store.ReadAsync())
            Assert.Equal(11, Questions.Of(snapshot).Present(new(null, null, null, null, null)).Count());
        Assert.Equal(11, _store.Count.Services);
        Assert.Equal([], await CheckAsync());
    }

    [Fact]
    public void DirectoryOfSes01IsRefused()
    {
        _store.Dispose();
        File.WriteAllText(Path.Combine(_directory, "events-000001-2026-11-24.jsonl"), "");
        Assert.Contains("SeS 0.1", Assert.Throws<DataDirException>(() => Open()).Message, StringComparison.Ordinal);
        File.Delete(Path.Combine(_directory, "events-000001-2026-11-24.jsonl"));
        _store = Open();
    }

    [Theory]
    [InlineData("lock")]
    [InlineData("ses.db")]
    [InlineData("ses.db-wal")]
    [InlineData("ses.db-shm")]
    [InlineData("ses.db-journal")]
    [InlineData("ses.db.restored")]
    [InlineData("ses.db.restored-wal")]
    public void LinkInTheDirectoryIsRefusedAndTheDirectoryMayBeOne(string name)
    {
        var dir = Directory.CreateDirectory(Path.Combine(_directory, "data")).FullName;
        var (link, target) = (Path.Combine(dir, name), Path.Combine(_directory, "target"));
        File.CreateSymbolicLink(link, target);
        Assert.Contains($"'{dir}': {name} is a symbolic link",
            Assert.Throws<DataDirException>(() => DataDir.Claim(dir)).Message, StringComparison.Ordinal);
        // What looks for none opens nothing through it either.
        Assert.Throws<IOException>(() => Disk.Create(link));
        Assert.Throws<IOException>(() => Disk.OpenAlone(link));
        Assert.False(File.Exists(target));
        File.Delete(link);
        var way = Directory.CreateSymbolicLink(Path.Combine(_directory, "way"), dir).FullName;
        using var claim = DataDir.Claim(way);
        Assert.Contains("is in use by another SeS",
            Assert.Throws<DataDirException>(() => DataDir.Claim(dir)).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("700", false)]
    [InlineData("2770", false)]
    [InlineData("701", true)]
    [InlineData("702", true)]
    [InlineData("704", true)]
    [InlineData("755", true)]
    public void DirectoryThatIsOpenToAllIsTold(string mode, bool isTold)
    {
        var dir = Directory.CreateDirectory(Path.Combine(_directory, "data")).FullName;
        var way = Directory.CreateSymbolicLink(Path.Combine(_directory, "way"), dir).FullName;
        File.SetUnixFileMode(dir, (UnixFileMode)Convert.ToInt32(mode, 8));
        const string Told = "the data directory is open to every user of this host: remove the permissions of others (chmod o=)";
        Assert.Equal(isTold ? Told : null, DataDir.Exposure(dir));
        Assert.Equal(isTold ? Told : null, DataDir.Exposure(way));
    }

    private async Task<IReadOnlyList<string>> CheckAsync(TimelineRules? rules = null)
    {
        (await _store.ReadAsync()).Dispose();
        using var database = new SqliteConnection(Path.Combine(_directory, Store.FileName), isReadOnly: true, 100);
        using var check = new DatabaseCheck(database, rules ?? Rules.Timeline, _clock.UtcNow);
        check.CheckAll(_ => { });
        return check.Faults;
    }

    private Store Open() => Open(Rules);

    private Store Open(StoreRules rules) =>
        new(_directory, rules, _clock, new Log(LogLevel.Trace, false, _log, _clock), new Meters("test", "test"));

    private void Reopen(StoreRules? rules = null)
    {
        _store.Dispose();
        _store = Open(rules ?? Rules);
    }

    private Task<Stored> AppendAsync(params IncomingAlert[] alerts) => _store.AppendAsync("INS", StoreChild.Body(alerts));

    private static IncomingAlert Alert(string instance = "n1", int starts = 0, int? ends = null) =>
        new(new ServiceKey("INS", "p", "etcd", "Down", instance), false, AlertSource.Webhook, "",
            $$"""{"alertname":"Down","instance":"{{instance}}"}""", "down", Noon.AddSeconds(starts),
            ends is { } end ? Noon.AddSeconds(end) : null, "it is down");

    private async Task<long> CountAsync(string table)
    {
        using var snapshot = await _store.ReadAsync();
        using var count = snapshot.Query($"SELECT count(*) FROM {table}");
        return count.Number()!.Value;
    }

    private async Task<List<string>> RunsAsync()
    {
        using var snapshot = await _store.ReadAsync();
        using var rows = snapshot.Query("SELECT time || '|' || status FROM history ORDER BY time");
        var runs = new List<string>();
        while (rows.Step())
            runs.Add(rows.Text(0));
        return runs;
    }
}
