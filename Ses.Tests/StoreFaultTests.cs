using System.Globalization;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>Nothing acknowledged is lost, and nothing untrustworthy acknowledged, whatever hits process and disk.</summary>
public sealed class StoreFaultTests : IDisposable
{
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);

    /// <summary>More of them where the soak asks for it.</summary>
    private static readonly int Kills = Environment.GetEnvironmentVariable("SES_SOAK") == null ? 4 : 200;

    private static readonly int Flips = Environment.GetEnvironmentVariable("SES_SOAK") == null ? 60 : 1000;

    private readonly string _directory = Directory.CreateTempSubdirectory("ses-fault").FullName;

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    private string DatabasePath => Path.Combine(_directory, Store.FileName);

    [Fact]
    public async Task KilledStoreHasAllThatItAcknowledged()
    {
        var acknowledged = new HashSet<int>();
        for (var round = 0; round < Kills; round++)
        {
            await using (var child = StoreChild.Start(_directory, acknowledged.Count == 0 ? 0 : acknowledged.Max() + 100))
            {
                var enough = 40 + Random.Shared.Next(2000);
                await Wait.UntilAsync(() => StoreChild.Acknowledged(child).Count > enough, Soon, $"{enough} alerts");
                child.Kill(Signal.Kill);
                await child.ExitAsync(Soon);
                acknowledged.UnionWith(StoreChild.Acknowledged(child));
            }
            // What a crash of the host leaves behind: SQLite makes the index of the log anew.
            if (round % 2 == 1)
                File.Delete(DatabasePath + "-shm");
            AssertHasAll(acknowledged);
        }
        Assert.Equal([], Check());
    }

    /// <summary>Only what is cut from the log is missed, not what another process moved into the database.</summary>
    [Fact]
    public void LogThatAnotherProcessBeginsAnewIsNotTakenForACutOne()
    {
        using var one = new SqliteConnection(DatabasePath, isReadOnly: false, cache: 1024);
        one.Execute("PRAGMA journal_mode = WAL");
        one.Execute("CREATE TABLE t(x)");
        using var pages = new WalPages(one);
        one.Execute("INSERT INTO t VALUES (randomblob(30000))");
        using var files = new DatabaseFiles(DatabasePath);
        files.CheckLog(pages.Count);
        using (var other = new SqliteConnection(DatabasePath, isReadOnly: false, cache: 1024))
        {
            var (logged, moved) = other.Checkpoint();
            Assert.Equal(logged, moved);
            other.Execute("INSERT INTO t VALUES (1)");
        }
        Assert.True(pages.Count > 5);
        files.CheckLog(pages.Count);
        using (var log = new FileStream(DatabasePath + "-wal", FileMode.Open, FileAccess.Write, FileShare.ReadWrite))
        {
            var length = log.Length;
            log.SetLength(100);
            log.SetLength(length);
        }
        var broken = Assert.Throws<SqliteException>(() => files.CheckLog(pages.Count));
        Assert.Contains("was cut short", broken.Message, StringComparison.Ordinal);
    }

    /// <summary>A bit that flips is found by the check, or met by nobody: the facts are read as they were.</summary>
    [Fact]
    public async Task FlippedBitIsFound()
    {
        const int alerts = 400;
        using (var store = Open())
        {
            for (var i = 0; i < alerts; i++)
                await store.AppendAsync("INS", StoreChild.Body(StoreChild.Alert(i)));
            (await store.ReadAsync()).Dispose();
        }
        var sound = File.ReadAllBytes(DatabasePath);
        Assert.Equal([], Check());
        var expected = Facts();
        var random = new Random(17);
        var harmless = 0;
        for (var i = 0; i < Flips; i++)
        {
            var (at, bit) = (random.Next(sound.Length), random.Next(8));
            var damaged = sound.ToArray();
            damaged[at] ^= (byte)(1 << bit);
            File.WriteAllBytes(DatabasePath, damaged);
            harmless += IsFoundOrHarmless(expected) ? 1
                : throw new Xunit.Sdk.XunitException($"bit {bit} of byte {at} changes what is read, unnoticed");
        }
        Assert.Equal(Flips, harmless);
    }

    /// <summary>A name, a setting and a view, each in one place alone or in an index too.</summary>
    [Theory]
    [InlineData("psf")]
    [InlineData("stale_after")]
    [InlineData("%Y-%m-%dT%H:%M:%fZ")]
    public async Task DamagedTextIsFound(string text)
    {
        using (var store = Open())
        {
            await store.AppendAsync("INS", StoreChild.Body(StoreChild.Alert(0)));
            (await store.ReadAsync()).Dispose();
        }
        var file = File.ReadAllBytes(DatabasePath);
        // What a page that was split has left of it is no part of the database.
        var found = 0;
        for (int at = 0, next; (next = file.AsSpan(at).IndexOf(System.Text.Encoding.UTF8.GetBytes(text))) >= 0; at++)
        {
            at += next;
            var damaged = file.ToArray();
            damaged[at + text.Length - 1] ^= 1;
            File.WriteAllBytes(DatabasePath, damaged);
            found += Check().Count > 0 ? 1 : 0;
        }
        Assert.NotEqual(0, found);
    }

    private bool IsFoundOrHarmless(string expected)
    {
        try
        {
            return Check().Count > 0 || Facts() == expected;
        }
        catch (SqliteException e)
        {
            // Told, not hidden: the file's head, or its structure, cannot be read.
            return e.IsDamage || e.Code is 1 or 14 or 8 or 10;
        }
    }

    private Store Open() => new(_directory, StoreChild.Rules, TimeProvider.System,
        new Log(LogLevel.Trace, false, TextWriter.Null, TimeProvider.System), new Meters("test", "test"));

    private IReadOnlyList<string> Check()
    {
        using var database = new SqliteConnection(DatabasePath, isReadOnly: true, 1000);
        using var check = new DatabaseCheck(database, StoreChild.Rules.Timeline, DateTime.UtcNow.AddDays(-1));
        check.CheckAll(_ => { });
        return check.Faults;
    }

    /// <summary>All that a question can meet: names, facts and what is derived.</summary>
    private string Facts()
    {
        using var database = new SqliteConnection(DatabasePath, isReadOnly: true, 1000);
        var text = new System.Text.StringBuilder();
        foreach (var table in new[] { "services", "history", "outages" })
        {
            using var rows = database.Query($"SELECT * FROM {table}");
            while (rows.Step())
                text.Append(rows.Text(0)).Append(rows.Text(1)).Append(rows.Text(2)).Append(rows.Text(3))
                    .Append(rows.Text(4)).Append(rows.Text(5)).Append(rows.TextOrNull(6)).Append('\n');
        }
        return text.ToString();
    }

    private void AssertHasAll(IEnumerable<int> acknowledged)
    {
        using var database = new SqliteConnection(DatabasePath, isReadOnly: false, 1000);
        using var rows = database.Query("""
            SELECT coalesce(o.text, a.text) FROM observation o JOIN alert a ON a.id = o.alert
            """);
        var stored = new HashSet<int>();
        while (rows.Step())
            stored.Add(int.Parse(rows.Text(0), CultureInfo.InvariantCulture));
        Assert.Empty(acknowledged.Except(stored));
    }
}
