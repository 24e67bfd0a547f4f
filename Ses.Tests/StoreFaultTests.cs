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

/// <summary>The same with a disk that is full or fails, as root may bring about.</summary>
[Trait("Category", "E2E")]
public sealed class StoreDiskEndToEndTests : IAsyncLifetime
{
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);

    private readonly string _directory = Directory.CreateTempSubdirectory("ses-disk").FullName;

    public Task InitializeAsync() => Task.CompletedTask;

    public Task DisposeAsync()
    {
        Directory.Delete(_directory, recursive: true);
        return Task.CompletedTask;
    }

    [Fact]
    public async Task FullDiskIsRefusedUntilThereIsSpaceAgain()
    {
        await RunAsync("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", _directory);
        try
        {
            var filler = Path.Combine(_directory, "filler");
            await using var child = StoreChild.Start(_directory, 0);
            await Wait.UntilAsync(() => StoreChild.Acknowledged(child).Count > 100, Soon, "alerts");
            Fill(filler);
            await Wait.UntilAsync(() => child.Output.Contains("The disk is full.", StringComparison.Ordinal), Soon, "a refusal");
            File.Delete(filler);
            var before = StoreChild.Acknowledged(child).Count;
            await Wait.UntilAsync(() => StoreChild.Acknowledged(child).Count > before + 100, Soon, "alerts again");
            child.Kill(Signal.Kill);
            await child.ExitAsync(Soon);
            AssertHasAll(StoreChild.Acknowledged(child));
        }
        finally
        {
            await RunAsync("umount", _directory);
        }
    }

    private static void Fill(string path)
    {
        using var file = new FileStream(path, FileMode.Create, FileAccess.Write, FileShare.None, bufferSize: 0);
        try
        {
            while (true)
                file.Write(new byte[4096]);
        }
        catch (IOException)
        {
            // Full, as it is meant to be.
        }
    }

    /// <summary>The flush of the log, and of the database at a checkpoint; each once only, as the kernel tells it.</summary>
    [Theory]
    [InlineData("-wal", 20)]
    [InlineData("", 1)]
    public async Task FailedFlushEndsTheProcess(string file, int flush)
    {
        // Made before, so that the database's first flush is that of a checkpoint.
        new Store(_directory, StoreChild.Rules, TimeProvider.System,
            new Log(LogLevel.Trace, false, TextWriter.Null, TimeProvider.System), new Meters("test", "test")).Dispose();
        await using var child = StoreChild.Start(_directory, 0, "strace", "-f", "-q", "-o", "/dev/null",
            "-P", Path.Combine(_directory, Store.FileName + file), "-e", "trace=fsync,fdatasync",
            "-e", $"inject=fsync,fdatasync:error=EIO:when={flush}");
        Assert.Equal(1, await child.ExitAsync(TimeSpan.FromSeconds(120)));
        Assert.Contains("the disk can no longer be trusted", child.Output, StringComparison.Ordinal);
        AssertHasAll(StoreChild.Acknowledged(child));
    }

    private void AssertHasAll(IReadOnlyList<int> acknowledged)
    {
        Assert.NotEmpty(acknowledged);
        using var database = new SqliteConnection(Path.Combine(_directory, Store.FileName), isReadOnly: false, 1000);
        using var rows = database.Query("SELECT coalesce(o.text, a.text) FROM observation o JOIN alert a ON a.id = o.alert");
        var stored = new HashSet<int>();
        while (rows.Step())
            stored.Add(int.Parse(rows.Text(0), CultureInfo.InvariantCulture));
        Assert.Empty(acknowledged.Except(stored));
    }

    private static async Task RunAsync(string program, params string[] arguments)
    {
        await using var child = ChildProcess.Start(program, arguments);
        Assert.True(await child.ExitAsync(Soon) == 0, child.Output);
    }
}
