using System.Text;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What a purge takes is gone, the rest is as it was, and a store beside it goes on.</summary>
public sealed class PurgeTests : IDisposable
{
    private static readonly DateTime Noon = new(2026, 11, 1, 12, 0, 0, DateTimeKind.Utc);
    private static readonly ServiceFilter All = new(null, null, null, null, null);
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);

    private readonly string _directory = Directory.CreateTempSubdirectory("ses-purge").FullName;
    private readonly ManualClock _clock = new(Noon.AddDays(1));
    private readonly StringWriter _log = new();
    private readonly Meters _meters = new("test", "test");
    private Store _store;

    public PurgeTests() => _store = Open();

    public void Dispose()
    {
        _store.Dispose();
        Directory.Delete(_directory, recursive: true);
    }

    private Store Open() => new(_directory, StoreChild.Rules with { Onix = "http://onix/" }, _clock,
        new Log(LogLevel.Trace, false, TextWriter.Synchronized(_log), _clock), _meters);

    private Task<Stored> AppendAsync(params IncomingAlert[] alerts) =>
        _store.AppendAsync(alerts[0].Service.Partition, StoreChild.Body(alerts));

    private static IncomingAlert Alert(
        string partition, string service, string location, double minutes, double? until = null) => new(
        new(partition, "p", service, "f", location), false, AlertSource.Webhook, "",
        $$"""{"alertname":"f","i":"{{location}}"}""", "down", Noon.AddMinutes(minutes),
        until is { } end ? Noon.AddMinutes(end) : null, $"{service} at {minutes}");

    private static UnmappableAlert Unmappable(string identity) => new(identity, "f", "n", "it has no service", "{}"u8.ToArray());

    private async Task<string> PurgeAsync(params string[] arguments)
    {
        var output = new MemoryStream();
        var (flags, _) = Program.ParseFlags(
            ["--data-dir", _directory, .. arguments], Command.All.Single(c => c.Name == "purge"));
        var runner = new CommandRunner(flags, new Dictionary<string, string>(), output, null, _clock);
        Assert.Equal(0, await runner.RunAsync("purge"));
        return Encoding.UTF8.GetString(output.ToArray());
    }

    private async Task<string[]> HistoryAsync(string? butOf = null)
    {
        using var snapshot = await _store.ReadAsync();
        return [.. Questions.Of(snapshot).History(All, null, null)
            .Where(c => c.Service.Partition != butOf)
            .Select(c => $"{c.Service} {c.Status} {c.Time:O} {c.Description} {c.Received:O}")];
    }

    private async Task<long> CountAsync(string rows)
    {
        using var snapshot = await _store.ReadAsync();
        return snapshot.Number($"SELECT count(*) FROM {rows}") ?? 0;
    }

    private long? Number(string sql)
    {
        using var database = new SqliteConnection(StoreFiles.PathOf(_directory), isReadOnly: true, cache: 100);
        return database.Number(sql);
    }

    private async Task AssertSoundAsync()
    {
        using var snapshot = await _store.ReadAsync();
        using var check = new DatabaseCheck(snapshot.Database, snapshot.Rules, snapshot.Moment);
        check.CheckAll(_ => { });
        Assert.Equal([], check.Faults);
        foreach (var table in new[] { "alert", "observation", "timeline", "open", "onix", "sent" })
            Assert.Equal(0, snapshot.Number($"SELECT count(*) FROM {table} WHERE service NOT IN (SELECT id FROM service)"));
        Assert.Equal(0, snapshot.Number("SELECT count(*) FROM family WHERE id NOT IN (SELECT family FROM service)"));
    }

    private async Task FillAsync()
    {
        for (var i = 0; i < 5; i++)
        {
            await AppendAsync(Alert("INS", "etcd", $"n{i}", i, i % 2 == 0 ? i + 20 : null));
            await AppendAsync(Alert("junk", "etcd", $"n{i}", i, i % 2 == 0 ? i + 20 : null));
            await AppendAsync(Alert("junk", "node", $"n{i}", i), Alert("junk", "node", $"n{i}", i + 60, i + 90));
            await _store.AppendAsync("junk", new([], [Unmappable($"{i}")], 0, 0, 0, 0));
        }
        await _store.AppendAsync("INS", new([], [Unmappable("own")], 0, 0, 0, 0));
    }

    [Fact]
    public async Task PartitionIsGoneAndTheRestIsAsItWas()
    {
        await FillAsync();
        var before = await HistoryAsync(butOf: "junk");
        Assert.NotEqual(before, await HistoryAsync());
        Assert.Contains("Purged: 10 services, 10 alerts, 15 observations, 5 quarantined alerts.",
            await PurgeAsync("--partition", "junk"), StringComparison.Ordinal);
        Assert.Equal(before, await HistoryAsync());
        Assert.Equal(1, await CountAsync("partition"));
        Assert.Equal(1, await CountAsync("receipt"));
        Assert.Equal(1, await CountAsync("quarantine"));
        Assert.Equal(5, await CountAsync("onix"));
        await AssertSoundAsync();
    }

    [Fact]
    public async Task ServiceIsGoneAtAllItsPlacesAndOthersOfItsPartitionStay()
    {
        await FillAsync();
        var before = await HistoryAsync();
        Assert.Contains("Purged: 5 services, 5 alerts, 10 observations, 0 quarantined alerts.",
            await PurgeAsync("--partition", "junk", "--service", "node"), StringComparison.Ordinal);
        Assert.Equal(before.Where(c => !c.Contains("node", StringComparison.Ordinal)), await HistoryAsync());
        Assert.Equal(2, await CountAsync("receipt"));
        Assert.Equal(6, await CountAsync("quarantine"));
        await AssertSoundAsync();
    }

    [Fact]
    public async Task DryRunTellsAndChangesNothingButListsWhatWasPurged()
    {
        await FillAsync();
        var facts = StoreFiles.Observations(_directory);
        Assert.Equal("It would purge: 10 services, 10 alerts, 15 observations, 5 quarantined alerts.\n",
            await PurgeAsync("--partition", "junk", "--dry-run"));
        Assert.Equal("It would purge: 5 services, 5 alerts, 10 observations, 0 quarantined alerts.\n",
            await PurgeAsync("--partition", "junk", "--service", "node", "--dry-run"));
        Assert.Equal(facts, StoreFiles.Observations(_directory));
        await PurgeAsync("--partition", "junk", "--service", "node");
        var word = $"{Rfc3339.Format(_clock.UtcNow)} {Environment.UserName} (uid {Disk.UserId()}) on "
            + $"{Environment.MachineName} purged service 'node' of partition 'junk': 5 services, 5 alerts, "
            + "10 observations, 0 quarantined alerts.\n";
        Assert.Equal(word, await PurgeAsync("--dry-run"));
    }

    [Fact]
    public async Task WhatIsNotThereIsNamedWithWhatIs()
    {
        await FillAsync();
        await AssertRefusedAsync("--partition: there is no 'x'; there are: INS, junk", "--partition", "x");
        await AssertRefusedAsync("--partition: there is no 'x'; there are: INS, junk", "--partition", "x", "--service", "y");
        await AssertRefusedAsync(
            "--service: 'junk' has no service 'x'; there are: etcd, node", "--partition", "junk", "--service", "x");
        await AssertRefusedAsync("--partition is missing: it names the partition to purge", "--service", "x");
        Assert.Equal(0, await CountAsync("purge"));

        async Task AssertRefusedAsync(string says, params string[] arguments) => Assert.Equal(says,
            (await Assert.ThrowsAsync<OptionsException>(() => PurgeAsync(arguments))).Message);
    }

    /// <summary>The caches of the store that runs know what is gone; its partition begins anew.</summary>
    [Fact]
    public async Task PurgedAlertThatComesAgainIsNew()
    {
        await FillAsync();
        var last = Number("SELECT max(value) FROM meta WHERE name = 'last_id'");
        await PurgeAsync("--partition", "junk");
        _clock.UtcNow += TimeSpan.FromSeconds(2);
        using (await _store.ReadAsync())
        {
        }
        Assert.Equal(1, (await AppendAsync(Alert("junk", "node", "n1", 1))).New);
        Assert.Equal(1, await CountAsync("receipt WHERE partition = (SELECT id FROM partition WHERE name = 'junk')"));
        Assert.Equal(4, await CountAsync($"(SELECT id FROM service UNION ALL SELECT id FROM alert UNION ALL "
            + $"SELECT id FROM observation UNION ALL SELECT id FROM receipt) WHERE id > {last}"));
        await Wait.UntilAsync(() => _store.Count.Services == 6, Soon, "the services to be counted");
        Assert.Contains("ses purge deleted facts", _log.ToString(), StringComparison.Ordinal);
        await AssertSoundAsync();
    }

    /// <summary>More rows of one service than one transaction takes, and what is interrupted is sound.</summary>
    [Fact]
    public async Task LargeServiceGoesInPartsAndAnInterruptedPurgeIsRunAgain()
    {
        await AppendAsync([.. Enumerable.Range(0, 1200).Select(i => Alert("junk", "s", "n", 2 * i, (2 * i) + 1))]);
        await FillAsync();
        var before = await HistoryAsync(butOf: "junk");
        using (var writer = new Writer(StoreFiles.PathOf(_directory), 1000,
            StoreChild.Rules with { Onix = "http://onix/" }, new RecentAlerts(), _clock))
        {
            var purge = writer.BeginPurge(new PurgeRecord(_clock.UtcNow, "me", 1, "here", "junk", "s"));
            while (purge.Taken.Observations == 0 && purge.Step(_clock.UtcNow, () => true))
                await AssertSoundAsync();
            Assert.InRange(purge.Taken.Observations, 1, 1199);
        }
        Assert.Contains("; it was interrupted, or still runs.", await PurgeAsync("--dry-run"), StringComparison.Ordinal);
        await PurgeAsync("--partition", "junk");
        Assert.Equal(before, await HistoryAsync());
        await AssertSoundAsync();
    }

    /// <summary>What comes after it began is kept, with its alert, service and partition.</summary>
    [Fact]
    public async Task WhatComesMeanwhileStays()
    {
        await FillAsync();
        using var writer = new Writer(StoreFiles.PathOf(_directory), 1000,
            StoreChild.Rules with { Onix = "http://onix/" }, new RecentAlerts(), _clock);
        var purge = writer.BeginPurge(new PurgeRecord(_clock.UtcNow, "me", 1, "here", "junk", null));
        await AppendAsync(Alert("junk", "etcd", "n1", 1, 300));
        await AppendAsync(Alert("junk", "new", "n1", 1));
        while (purge.Step(_clock.UtcNow, () => true))
        {
        }
        purge.End(_clock.UtcNow);
        Assert.Equal(1, purge.Kept);
        Assert.Equal(new PurgeSum(9, 9, 15, 5), purge.Taken);
        Assert.Equal(2, await CountAsync("service s JOIN family f ON f.id = s.family JOIN partition p "
            + "ON p.id = f.partition WHERE p.name = 'junk'"));
        Assert.Equal(2, await CountAsync("observation o JOIN alert a ON a.id = o.alert JOIN service s ON s.id = a.service "
            + "JOIN family f ON f.id = s.family JOIN partition p ON p.id = f.partition WHERE p.name = 'junk'"));
        await AssertSoundAsync();
    }

    /// <summary>A question that waits for observations that are purged before they are derived is answered.</summary>
    [Fact]
    public async Task QuestionIsAnsweredThoughWhatItWaitsForIsGone()
    {
        await FillAsync();
        for (var turn = 0; turn < 20; turn++)
        {
            await AppendAsync([.. Enumerable.Range(0, 300).Select(i => Alert("junk", "s", $"n{i}", 2 * turn, (2 * turn) + 1))]);
            var purge = PurgeAsync("--partition", "junk");
            var questions = Enumerable.Range(0, 20).Select(_ => _store.ReadAsync()).ToList();
            await purge;
            foreach (var question in questions)
                (await question.WaitAsync(Soon)).Dispose();
        }
        await AssertSoundAsync();
    }

    [Fact]
    public async Task StoreThatTakesAlertsMeanwhileLosesNone()
    {
        await FillAsync();
        var made = Enumerable.Range(0, 3000).Select(i => Alert("junk", $"made{i % 7}", $"n{i}", 1)).ToArray();
        foreach (var some in made.Chunk(500))
            await AppendAsync(some);
        var before = await HistoryAsync(butOf: "junk");
        var (isOver, stored) = (false, 0);
        var load = Task.Run(async () =>
        {
            await Wait.UntilAsync(() => Number("SELECT 1 FROM purge") != null, Soon, "the purge to begin");
            for (; !Volatile.Read(ref isOver) || stored < 50; stored++)
            {
                Assert.Equal(1, (await AppendAsync(Alert("junk", "after", $"n{stored}", 500))).New);
                Assert.Equal(1, (await AppendAsync(Alert("other", "after", $"n{stored}", 500))).New);
                using var snapshot = await _store.ReadAsync();
            }
        });
        await PurgeAsync("--partition", "junk");
        Volatile.Write(ref isOver, true);
        await load;
        var all = await HistoryAsync(butOf: "junk");
        Assert.Equal(before, all.Where(c => !c.Contains("other", StringComparison.Ordinal)));
        foreach (var partition in new[] { "junk", "other" })
            Assert.Equal(stored, await CountAsync($"""
                observation o JOIN service s ON s.id = o.service JOIN family f ON f.id = s.family
                    JOIN partition p ON p.id = f.partition WHERE p.name = '{partition}' AND f.service = 'after'
                """));
        Assert.Equal(3, await CountAsync("family"));
        await AssertSoundAsync();
    }

    /// <summary>A job of the Recorder may end when its service is gone: nothing of it is to be left.</summary>
    [Fact]
    public async Task WhatOnixAnswersOfAServiceThatIsGoneIsNotKept()
    {
        await FillAsync();
        var service = Number("""
            SELECT max(s.id) FROM service s JOIN family f ON f.id = s.family WHERE f.service = 'node'
            """)!.Value;
        await PurgeAsync("--partition", "junk");
        await _store.ChangeAsync(w =>
        {
            w.Outbox.RecordHeld(service, null, 3, "down", Noon, isOwn: true);
            w.Outbox.RecordSent(service, Noon, "down");
            w.Outbox.Mark(service, Noon, Noon);
            return true;
        });
        await AssertSoundAsync();
    }

    [Fact]
    public async Task StoreIsMadeAnewAndOpensAfterAPurge()
    {
        await FillAsync();
        var before = await HistoryAsync(butOf: "junk");
        await PurgeAsync("--partition", "junk");
        _store.Dispose();
        using (var writer = new Writer(StoreFiles.PathOf(_directory), 1000,
            StoreChild.Rules with { Onix = "http://onix/" }, new RecentAlerts(), _clock))
            writer.Rebuild(_clock.UtcNow);
        _store = Open();
        Assert.Equal(before, await HistoryAsync());
        await AssertSoundAsync();
    }
}
