using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json;
using CsCheck;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What is acknowledged is on disk and is read back as it was said, whatever ends SeS.</summary>
public sealed partial class EventLogTests : IDisposable
{
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(30);
    private static readonly DateTime Noon = new(2026, 11, 23, 12, 0, 0, DateTimeKind.Utc);
    private static readonly ServiceKey Etcd = Service(1), Other = Service(2);

    private readonly Store _store = new(TimeSpan.FromDays(400));

    public void Dispose() => _store.Dispose();

    private static ServiceKey Service(int number) => new("INS", "p1", $"s{number}", "node", "10.0.0.1:2379");

    private static DateTime At(double seconds) => Noon.AddDays(-1).AddSeconds(seconds);

    // ---- Opening ----

    [Fact]
    public async Task TornLastLineIsCutOnOpen()
    {
        await _store.RecordAsync(Etcd, "up", 1);
        await _store.RecordAsync(Etcd, "down", 2);
        _store.StopDisorderly();
        var whole = File.ReadAllBytes(_store.Newest);
        File.AppendAllText(_store.Newest, "{\"time\":\"2026-11-22T12:00:03Z\",\"partiti");
        _store.Open();
        Assert.Equal(whole, File.ReadAllBytes(_store.Newest));
        Assert.Equal(new Cursor(1, whole.Length), _store.Log.Position.Flushed);
        await _store.RecordAsync(Etcd, "up", 3);
        Assert.Equal(["up 1", "down 2", "up 3"], _store.Words());
        Assert.Equal(0, _store.Meters.BrokenLines.Value);
    }

    [Theory]
    [InlineData("no JSON at all")]
    [InlineData("")]
    [InlineData("[1,2]")]
    [InlineData("{\"time\":\"2026-11-22T12:00:02Z\",\"partition\":\"INS\",\"status\":\"down\"}")]
    [InlineData("{\"time\":\"once\",\"partition\":\"\",\"platform\":\"\",\"service\":\"\",\"facet\":\"\"}")]
    [InlineData("{\"time\":\"2026-11-22T12:00:02Z\",\"status\":\"\\ud800\"}")]
    [InlineData("\0\0\0\0\0\0")]
    public async Task LineThatDoesNotParseIsPassedOverAndCounted(string line)
    {
        await _store.RecordAsync(Etcd, "up", 1);
        _store.StopDisorderly();
        File.AppendAllText(_store.Newest, line + "\n");
        _store.Open();
        await _store.RecordAsync(Etcd, "down", 3);
        Assert.Equal(1, _store.Meters.BrokenLines.Value);
        Assert.Equal(["up 1", "down 3"], _store.Words());
        Assert.Contains("does not parse", _store.Lines, StringComparison.Ordinal);
        Assert.Contains("\n" + line + "\n", File.ReadAllText(_store.Newest), StringComparison.Ordinal);
    }

    [Fact]
    public async Task FileThatEndedInOrderIsGoneOnWith()
    {
        await _store.RecordAsync(Etcd, "up", 1);
        _store.Stop();
        Assert.StartsWith("{\"end\":\"", File.ReadAllLines(_store.Newest)[^1], StringComparison.Ordinal);
        using var same = OpenShared(_store.Newest);
        var before = same.Length;
        _store.Open();
        await _store.RecordAsync(Etcd, "down", 2);
        Assert.True(same.Length > before, "the file was copied, though its process ended in order");
        Assert.Equal(["up 1", "down 2"], _store.Words());
    }

    [Fact]
    public async Task FileThatDidNotEndInOrderIsCopiedAndRenamedOver()
    {
        await _store.RecordAsync(Etcd, "up", 1);
        _store.StopDisorderly();
        using var dead = OpenShared(_store.Newest);
        var before = dead.Length;
        _store.Open();
        await _store.RecordAsync(Etcd, "down", 2);
        Assert.Equal(before, dead.Length);
        Assert.Equal(["up 1", "down 2"], _store.Words());
        Assert.Contains("not ended in order", _store.Lines, StringComparison.Ordinal);
        Assert.Empty(Directory.GetFiles(_store.Dir, "*.tmp"));
    }

    [Fact]
    public async Task EndIsForgottenOnceAnotherEventFollowsIt()
    {
        await _store.RecordAsync(Etcd, "up", 1);
        _store.Reopen();
        await _store.RecordAsync(Etcd, "down", 2);
        _store.StopDisorderly();
        using var dead = OpenShared(_store.Newest);
        var before = dead.Length;
        _store.Open();
        await _store.RecordAsync(Etcd, "up", 3);
        Assert.Equal(before, dead.Length);
    }

    [Fact]
    public async Task NewerFormatIsRefusedAndLeftAlone()
    {
        await _store.RecordAsync(Etcd, "up", 1);
        _store.Stop();
        var newer = File.ReadAllText(_store.Newest)
            .Replace("{\"ses\":1,", "{\"ses\":2,", StringComparison.Ordinal);
        File.WriteAllText(_store.Newest, newer);
        var refused = Assert.Throws<DataDirException>(_store.Open);
        Assert.Contains("newer SeS", refused.Message, StringComparison.Ordinal);
        Assert.Equal(newer, File.ReadAllText(_store.Newest));
    }

    [Fact]
    public async Task StartReadsTheNewestFileOnly()
    {
        await _store.RecordAsync(Etcd, "up", 1);
        await _store.RecordAsync(Other, "down", 1);
        _store.Clock.Pass(TimeSpan.FromDays(1));
        await _store.RecordAsync(Etcd, "down", 2);
        _store.Stop();
        File.WriteAllText(_store.Files[0], "spoiled\n");
        _store.Open();
        await _store.RecordAsync(Etcd, "up", 1);
        await _store.RecordAsync(Etcd, "down", 2);
        await _store.RecordAsync(Other, "down", 1);
        Assert.Equal(0, _store.Meters.BrokenLines.Value);
        Assert.Equal((0, 3, 0), _store.Outcomes());
        Assert.Equal(2, _store.Meters.Services.Value);
    }

    // ---- Days, clocks, retention ----

    [Fact]
    public async Task FileEndsWithTheDayAndTheNextBeginsWithTheWindows()
    {
        await _store.RecordAsync(Etcd, "up", 1);
        await _store.RecordAsync(Etcd, "down", 2);
        _store.Clock.Pass(TimeSpan.FromHours(11.9));
        await _store.RecordAsync(Other, "up", 3);
        Assert.Single(_store.Files);
        _store.Clock.Pass(TimeSpan.FromHours(0.2));
        await _store.RecordAsync(Etcd, "up", 4);
        Assert.Equal(["events-000001-2026-11-23.jsonl", "events-000002-2026-11-24.jsonl"],
            _store.Files.Select(Path.GetFileName));
        var lines = File.ReadAllLines(_store.Newest);
        Assert.StartsWith(
            "{\"ses\":1,\"created\":\"2026-11-24T00:06:00Z\"", lines[0], StringComparison.Ordinal);
        Assert.Equal(2, lines.Count(l => l.StartsWith("{\"window\":{", StringComparison.Ordinal)));
        Assert.StartsWith("{\"time\":\"2026-11-22T12:00:04Z\"", lines[3], StringComparison.Ordinal);
        Assert.Equal(4, lines.Length);
        using var window = JsonDocument.Parse(lines[1..3].Single(l => l.Contains("\"s1\"")));
        var events = window.RootElement.GetProperty("window").GetProperty("events");
        Assert.Equal(["up", "down"],
            events.EnumerateArray().Select(e => e.GetProperty("status").GetString()));
        Assert.Equal(["up 1", "down 2", "up 3", "up 4"], _store.Words());
    }

    [Fact]
    public async Task ClockSetBackKeepsTheFileForAnHourAndTheNumberOrders()
    {
        await _store.RecordAsync(Etcd, "up", 1);
        _store.Clock.SetBack(TimeSpan.FromDays(3));
        await _store.RecordAsync(Etcd, "down", 2);
        _store.Clock.Pass(TimeSpan.FromMinutes(59));
        await _store.RecordAsync(Etcd, "up", 3);
        Assert.Single(_store.Files);
        _store.Clock.Pass(TimeSpan.FromMinutes(2));
        await _store.RecordAsync(Etcd, "down", 4);
        Assert.EndsWith("events-000002-2026-11-20.jsonl", _store.Newest, StringComparison.Ordinal);
        await _store.RecordAsync(Etcd, "up", 5);
        _store.Reopen();
        await _store.RecordAsync(Etcd, "down", 6);
        Assert.Equal(2, _store.Files.Count);
        Assert.Equal(["up 1", "down 2", "up 3", "down 4", "up 5", "down 6"], _store.Words());
    }

    [Fact]
    public async Task RetentionDeletesTwoFilesADayAndNeverPastKeepFrom()
    {
        using var store = new Store(TimeSpan.FromDays(2));
        static string Numbers(int first, int last) =>
            string.Join(' ', Enumerable.Range(first, last - first + 1));
        async Task<string> NextDayAsync()
        {
            store.Clock.Pass(TimeSpan.FromDays(1));
            await store.RecordAsync(Etcd, "up", store.Clock.GetElapsedTime(0).TotalSeconds);
            return string.Join(' ', store.Files.Select(NumberOf));
        }

        for (var day = 2; day <= 7; day++)
            Assert.Equal(Numbers(1, day), await NextDayAsync());
        store.Log.KeepFrom = 4;
        Assert.Equal(Numbers(3, 8), await NextDayAsync());
        Assert.Equal(Numbers(4, 9), await NextDayAsync());
        Assert.Equal(Numbers(4, 10), await NextDayAsync());
        Assert.Equal(new Cursor(4, 0), store.Log.Oldest);
        store.Log.KeepFrom = int.MaxValue;
        Assert.Equal(Numbers(6, 11), await NextDayAsync());
        Assert.Equal(Numbers(8, 12), await NextDayAsync());
        Assert.Equal(Numbers(10, 13), await NextDayAsync());
        Assert.Equal(Numbers(12, 14), await NextDayAsync());
        Assert.Equal(store.Files.Sum(f => new FileInfo(f).Length), store.Meters.LogSize.Value);
    }

    [Fact]
    public async Task RetentionMakesRoomThoughTheNextFileIsRefused()
    {
        using var store = new Store(TimeSpan.FromDays(2));
        Task RecordAsync() => store.RecordAsync(Etcd, "up", store.Clock.GetElapsedTime(0).TotalSeconds);
        store.Log.KeepFrom = int.MaxValue;
        for (var day = 2; day <= 4; day++)
        {
            store.Clock.Pass(TimeSpan.FromDays(1));
            await RecordAsync();
        }
        // Nothing can be made under this name.
        var blocked = Path.Combine(store.Dir, "events-000005-2026-11-27.jsonl.tmp");
        Directory.CreateDirectory(blocked);
        store.Clock.Pass(TimeSpan.FromDays(1));
        await RecordAsync();
        Assert.Equal([3, 4], store.Files.Select(NumberOf));
        Directory.Delete(blocked);
        await RecordAsync();
        Assert.Equal([3, 4], store.Files.Select(NumberOf));
        store.Clock.Pass(TimeSpan.FromMinutes(1));
        await RecordAsync();
        Assert.Equal([3, 4, 5], store.Files.Select(NumberOf));
    }

    [Fact]
    public async Task FileMadeWhileTheClockWasAheadGoesWithItsNeighbours()
    {
        using var store = new Store(TimeSpan.FromDays(2));
        Task RecordAsync() => store.RecordAsync(Etcd, "up", store.Clock.GetElapsedTime(0).TotalSeconds);
        store.Log.KeepFrom = 1;
        store.Clock.Pass(TimeSpan.FromDays(1000));
        await RecordAsync();
        store.Clock.SetBack(TimeSpan.FromDays(1000));
        store.Clock.Pass(TimeSpan.FromHours(1));
        await RecordAsync();
        Assert.Equal([1, 2, 3], store.Files.Select(NumberOf));
        store.Log.KeepFrom = int.MaxValue;
        for (var day = 2; day <= 5; day++)
        {
            store.Clock.Pass(TimeSpan.FromDays(1));
            await RecordAsync();
        }
        Assert.DoesNotContain(2, store.Files.Select(NumberOf));
        Assert.Contains(7, store.Files.Select(NumberOf));
        // Nobody is forgotten before the date that the clock once had.
        store.Reopen();
        Assert.Equal(1, store.Meters.Services.Value);
        Assert.Equal(store.Files.Sum(f => new FileInfo(f).Length), store.Meters.LogSize.Value);
    }

    [Fact]
    public async Task ServicesWithNoAlertSinceTheDeletedFileAreLeftOut()
    {
        using var store = new Store(TimeSpan.FromDays(1));
        var (gone, copied, kept) = (Service(1), Service(2), Service(3));
        await store.RecordAsync(gone, "up", 1);
        await store.RecordAsync(copied, "up", 1);
        store.Log.KeepFrom = int.MaxValue;
        store.Clock.Pass(TimeSpan.FromDays(1));
        await store.RecordAsync(kept, "up", 2);
        store.Clock.Pass(TimeSpan.FromDays(1));
        await store.RecordAsync(copied, "up", 1);
        store.Clock.Pass(TimeSpan.FromDays(1));
        await store.RecordAsync(kept, "down", 3);
        store.Clock.Pass(TimeSpan.FromDays(1));
        await store.RecordAsync(kept, "up", 4);
        var windows = File.ReadAllLines(store.Newest)
            .Where(l => l.StartsWith("{\"window\"", StringComparison.Ordinal)).ToList();
        Assert.Equal(2, windows.Count);
        Assert.DoesNotContain(windows, l => l.Contains("\"s1\"", StringComparison.Ordinal));
        Assert.Contains(windows, l => l.Contains("\"s2\"", StringComparison.Ordinal));
        store.Reopen();
        await store.RecordAsync(copied, "up", 1);
        Assert.Equal((0, 1, 0), store.Outcomes());
        Assert.Equal(2, store.Meters.Services.Value);
    }

    // ---- Flushes ----

    [Fact]
    public async Task ConcurrentRequestsShareOneFlush()
    {
        await _store.RecordAsync(Etcd, "up", 0);
        var before = _store.Meters.FlushDuration.Count;
        _store.Clock.HoldWriter();
        var first = _store.RecordAsync(Etcd, "down", 1);
        await _store.Clock.WriterHeldAsync();
        var others = Enumerable.Range(2, 500).Select(i => _store.RecordAsync(Service(i), "up", i)).ToList();
        Assert.DoesNotContain(others.Append(first), t => t.IsCompleted);
        _store.Clock.ReleaseWriter();
        await Task.WhenAll(others.Append(first)).WaitAsync(Soon);
        Assert.Equal(2, _store.Meters.FlushDuration.Count - before);
        Assert.Equal(502, _store.Meters.LogEvents.Value);
    }

    [Fact]
    public async Task NothingIsAcknowledgedOrSeenBeforeItIsFlushed()
    {
        await _store.RecordAsync(Etcd, "up", 0);
        var flushed = _store.Log.Position.Flushed;
        _store.Clock.HoldWriter();
        var said = _store.RecordAsync(Etcd, "down", 1);
        await _store.Clock.WriterHeldAsync();
        Assert.False(said.IsCompleted);
        Assert.Equal(flushed, _store.Log.Position.Flushed);
        var news = _store.Log.WaitAsync(flushed, CancellationToken.None);
        Assert.False(news.IsCompleted);
        _store.Clock.ReleaseWriter();
        await said.WaitAsync(Soon);
        await news.WaitAsync(Soon);
        Assert.Equal(1, _store.Log.Count(flushed, _store.Log.Position.Flushed));
    }

    [Fact]
    public async Task CopyOfAnEventInFlightWaitsForItsFlush()
    {
        _store.Clock.HoldWriter();
        var first = _store.RecordAsync(Etcd, "down", 1);
        await _store.Clock.WriterHeldAsync();
        var copy = _store.RecordAsync(Etcd, "down", 1);
        Assert.False(copy.IsCompleted);
        Assert.False(first.IsCompleted);
        _store.Clock.ReleaseWriter();
        await Task.WhenAll(first, copy).WaitAsync(Soon);
        Assert.Equal((1, 1, 0), _store.Outcomes());
        Assert.Equal(["down 1"], _store.Words());
        Assert.Equal(1, _store.Meters.FlushDuration.Count);
    }

    [Fact]
    public async Task CopyOfAnEventInFlightSharesItsRefusal()
    {
        await _store.RecordAsync(Etcd, "up", 0);
        _store.Clock.HoldWriter();
        var first = _store.RecordAsync(Etcd, "down", 1);
        await _store.Clock.WriterHeldAsync();
        var copy = _store.RecordAsync(Etcd, "down", 1);
        using (new RefusingFile(_store.Newest))
        {
            _store.Clock.ReleaseWriter();
            await Assert.ThrowsAsync<LogRefusedException>(() => first.WaitAsync(Soon));
            await Assert.ThrowsAsync<LogRefusedException>(() => copy.WaitAsync(Soon));
        }
        await _store.RecordAsync(Etcd, "down", 1);
        Assert.Equal((2, 0, 0), _store.Outcomes());
        Assert.Equal(["up 0", "down 1"], _store.Words());
    }

    [Fact]
    public async Task ResolvedAlertSharesTheRefusalOfItsDown()
    {
        var firing = new MappedAlert(Etcd, "d", true, "down", At(5), null);
        _store.Clock.HoldWriter();
        var first = RecordAsync(firing);
        await _store.Clock.WriterHeldAsync();
        var resolved = RecordAsync(firing with { EndsAt = At(9) });
        using (new RefusingFile(_store.Newest))
        {
            _store.Clock.LetWriterOn();
            await Assert.ThrowsAsync<LogRefusedException>(() => first.WaitAsync(Soon));
            await _store.Clock.WriterHeldAsync();
        }
        _store.Clock.ReleaseWriter();
        await Assert.ThrowsAsync<LogRefusedException>(() => resolved.WaitAsync(Soon));
        await Wait.UntilAsync(() => _store.Log.Position.Appended == 1, Soon, "the up on disk");
        Assert.Equal(["up 9"], _store.Words());
        Assert.Equal((1, 0, 0), _store.Outcomes());
        await RecordAsync(firing with { EndsAt = At(9) });
        Assert.Equal(["up 9", "down 5"], _store.Words());
    }

    private Task RecordAsync(MappedAlert alert) =>
        _store.Log.AppendAsync(new Payload([alert], [], 0), "INS").WaitAsync(Soon);

    [Fact]
    public async Task RefusedWriteLeavesTheLogAsItWasAndIsTriedAgain()
    {
        await _store.RecordAsync(Etcd, "up", 0);
        var (before, position) = (File.ReadAllBytes(_store.Newest), _store.Log.Position);
        using (new RefusingFile(_store.Newest))
        {
            await Assert.ThrowsAsync<LogRefusedException>(() => _store.RecordAsync(Etcd, "down", 1));
            await Assert.ThrowsAsync<LogRefusedException>(() => _store.RecordAsync(Etcd, "down", 1));
            Assert.NotNull(_store.Log.Refusal);
        }
        Assert.Equal(before, File.ReadAllBytes(_store.Newest));
        Assert.Equal(position, _store.Log.Position);
        await _store.RecordAsync(Etcd, "down", 1);
        Assert.Null(_store.Log.Refusal);
        Assert.Equal(["up 0", "down 1"], _store.Words());
        Assert.False(_store.Log.Failed.IsCompleted);
    }

    [Fact]
    public async Task DiskThatDoesNotAnswerIsLogged()
    {
        await _store.RecordAsync(Etcd, "up", 0);
        _store.Clock.HoldWriter();
        var held = _store.RecordAsync(Etcd, "down", 1);
        await _store.Clock.WriterHeldAsync();
        Assert.Null(_store.Log.Refusal);
        _store.Clock.Pass(TimeSpan.FromSeconds(11));
        Assert.Equal("The disk does not answer.", _store.Log.Refusal);
        Assert.True(_store.Log.IsStuck);
        var refused = await Assert.ThrowsAsync<LogRefusedException>(() => _store.RecordAsync(Etcd, "up", 2));
        Assert.Equal("The disk does not answer.", refused.Message);
        Assert.Contains("the disk does not answer", _store.Lines, StringComparison.Ordinal);
        _store.Clock.ReleaseWriter();
        await held;
        _store.Log.Stop();
        Assert.False(_store.Log.IsStuck);
        _store.Open();
        Assert.Equal(["up 0", "down 1"], _store.Words());
    }

    [Fact]
    public async Task StopFlushesWhatIsWaitingAndRefusesTheRest()
    {
        _store.Clock.HoldWriter();
        var waiting = Enumerable.Range(0, 20).Select(i => _store.RecordAsync(Service(i), "up", i)).ToList();
        var stopping = Task.Run(_store.Stop);
        await Support.Wait.UntilAsync(() => _store.Log.Refusal != null, Soon, "the stop to begin");
        await Assert.ThrowsAsync<LogRefusedException>(() => _store.RecordAsync(Etcd, "down", 99));
        _store.Clock.ReleaseWriter();
        await Task.WhenAll(waiting).WaitAsync(Soon);
        await stopping.WaitAsync(Soon);
        _store.Open();
        Assert.Equal(20, _store.Words().Count);
    }

    // ---- Power lost ----

    [Fact]
    public async Task LogCutAtAnyByteOfTheLastFlushOpensWithAllThatCameBefore()
    {
        await _store.RecordAsync(Etcd, "up", 1);
        await _store.RecordAsync(Other, "up", 2);
        var before = (int)_store.Log.Position.Flushed.Offset;
        await _store.RecordAsync((Etcd, "down", At(3)), (Other, "down", At(4)));
        var whole = File.ReadAllBytes(_store.Newest);
        var middle = Array.IndexOf(whole, (byte)'\n', before) + 1;
        for (var cut = before; cut <= whole.Length; cut++)
        {
            using var copy = _store.CopyOfDisk();
            using (var file = File.OpenWrite(copy.Newest))
                file.SetLength(cut);
            copy.Open();
            string[] expected = ["up 1", "up 2", .. cut >= middle ? new[] { "down 3" } : [],
                .. cut >= whole.Length ? new[] { "down 4" } : []];
            Assert.Equal(expected, copy.Words());
            await copy.RecordAsync((Etcd, "up", At(1)), (Other, "up", At(2)),
                (Etcd, "down", At(3)), (Other, "down", At(4)));
            Assert.Equal(["up 1", "up 2", "down 3", "down 4"], copy.Words());
            Assert.Equal((4 - expected.Length, expected.Length, 0), copy.Outcomes());
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(4096)]
    [InlineData(3 << 20)]
    public async Task ZeroFilledTailIsCut(int zeros)
    {
        await _store.RecordAsync(Etcd, "up", 1);
        using var copy = _store.CopyOfDisk();
        using (var file = File.OpenWrite(copy.Newest))
            file.SetLength(file.Length + zeros);
        copy.Open();
        await copy.RecordAsync(Etcd, "down", 2);
        Assert.Equal(["up 1", "down 2"], copy.Words());
        Assert.Equal(0, copy.Meters.BrokenLines.Value);
        Assert.DoesNotContain((byte)0, File.ReadAllBytes(copy.Newest));
    }

    [Fact]
    public async Task ZeroFilledTailAfterAnOrderlyEndIsCut()
    {
        await _store.RecordAsync(Etcd, "up", 1);
        _store.Stop();
        using (var file = File.OpenWrite(_store.Newest))
            file.SetLength(file.Length + 512);
        _store.Open();
        await _store.RecordAsync(Etcd, "down", 2);
        Assert.Equal(["up 1", "down 2"], _store.Words());
        Assert.DoesNotContain((byte)0, File.ReadAllBytes(_store.Newest));
    }

    [Fact]
    public async Task MissingNewestFileLeavesTheOthersUsable()
    {
        await ThreeDaysAsync();
        using var copy = _store.CopyOfDisk();
        File.Delete(copy.Newest);
        copy.Open();
        Assert.Equal(["up 1", "down 2"], copy.Words());
        copy.Clock.Pass(TimeSpan.FromDays(2));
        await copy.RecordAsync((Etcd, "up", At(1)), (Etcd, "down", At(2)), (Etcd, "up", At(3)));
        Assert.Equal((1, 2, 0), copy.Outcomes());
        Assert.Equal(["up 1", "down 2", "up 3"], copy.Words());
        Assert.Equal([1, 2, 3], copy.Files.Select(NumberOf));
    }

    [Theory]
    [InlineData(0, "down 2", "up 3")]
    [InlineData(1, "up 1", "up 3")]
    public async Task MissingOlderFileCostsItsOwnEventsAlone(int missing, params string[] left)
    {
        await ThreeDaysAsync();
        using var copy = _store.CopyOfDisk();
        File.Delete(copy.Files[missing]);
        copy.Open();
        Assert.Equal(left, copy.Words());
        await copy.RecordAsync((Etcd, "up", At(1)), (Etcd, "down", At(2)), (Etcd, "up", At(3)));
        Assert.Equal((0, 3, 0), copy.Outcomes());
        Assert.Equal(left.Length, copy.Log.Count(copy.Log.Oldest, copy.Log.Position.Flushed));
    }

    [Fact]
    public async Task LeftoversOfFilesInTheMakingAreRemoved()
    {
        await _store.RecordAsync(Etcd, "up", 1);
        _store.Stop();
        File.WriteAllText(Path.Combine(_store.Dir, "events-000002-2026-11-24.jsonl.tmp"), "{\"ses\":1,");
        File.WriteAllText(Path.Combine(_store.Dir, "events-000000-2026-11-22.index"), "of a file that is gone");
        File.WriteAllText(Path.ChangeExtension(_store.Newest, "index"), "of one that is there");
        _store.Open();
        Assert.Equal(["up 1"], _store.Words());
        Assert.Empty(Directory.GetFiles(_store.Dir, "*.tmp"));
        Assert.Equal(Path.ChangeExtension(_store.Newest, "index"), Assert.Single(Directory.GetFiles(_store.Dir, "*.index")));
    }

    private async Task ThreeDaysAsync()
    {
        await _store.RecordAsync(Etcd, "up", 1);
        _store.Clock.Pass(TimeSpan.FromDays(1));
        await _store.RecordAsync(Etcd, "down", 2);
        _store.Clock.Pass(TimeSpan.FromDays(1));
        await _store.RecordAsync(Etcd, "up", 3);
    }

    // ---- Windows ----

    [Fact]
    public async Task StaleEventIsCountedAndNotKept()
    {
        for (var second = 10; second < 18; second++)
            await _store.RecordAsync(Etcd, second % 2 == 0 ? "up" : "down", second);
        var position = _store.Log.Position;
        await _store.RecordAsync(Etcd, "down", 9);
        Assert.Equal((8, 0, 1), _store.Outcomes());
        Assert.Equal(position, _store.Log.Position);
        // Not older than all of the window: it is new, and the oldest falls out, and is then stale.
        await _store.RecordAsync(Etcd, "down", 12);
        await _store.RecordAsync(Etcd, "up", 10);
        Assert.Equal((9, 0, 2), _store.Outcomes());
    }

    [Fact]
    public async Task WindowWithRoomTakesAnEventOfAnyAge()
    {
        for (var second = 10; second < 17; second++)
            await _store.RecordAsync(Etcd, "up", second);
        await _store.RecordAsync(Etcd, "down", -1_000_000);
        Assert.Equal((8, 0, 0), _store.Outcomes());
        _store.Reopen();
        await _store.RecordAsync(Etcd, "down", -1_000_001);
        Assert.Equal((0, 0, 1), _store.Outcomes());
    }

    // ---- Places ----

    [Fact]
    public async Task ReadStopsAtItsLimitAndGoesOnWithoutLossAcrossFiles()
    {
        await ThreeDaysAsync();
        await _store.RecordAsync((Etcd, "down", At(4)), (Other, "up", At(5)));
        var end = _store.Log.Position.Flushed;
        foreach (var most in new[] { 1, 2, 3, 4, 5, 6 })
        {
            var words = new List<string>();
            var place = _store.Log.Oldest;
            for (Chunk chunk; place.CompareTo(end) < 0; place = chunk.Next)
            {
                chunk = _store.Log.Read(place, end, most);
                Assert.True(chunk.Events.Count <= most);
                Assert.True(chunk.Next.CompareTo(place) > 0, "reading does not advance");
                Assert.True(_store.Log.Holds(chunk.Next));
                Assert.Equal(5 - words.Count, _store.Log.Count(place, end));
                words.AddRange(Word(chunk.Events));
            }
            Assert.Equal(end, place);
            Assert.Equal(["up 1", "down 2", "up 3", "down 4", "up 5"], words);
        }
        Assert.Equal(new Chunk([], end).Next, _store.Log.Read(end, end, 10).Next);
        Assert.Equal(0, _store.Log.Count(end, end));
    }

    [Fact]
    public async Task HoldsIsTrueJustBetweenTheLinesOfItsFiles()
    {
        await ThreeDaysAsync();
        foreach (var path in _store.Files)
        {
            var bytes = File.ReadAllBytes(path);
            for (var offset = 0; offset <= bytes.Length; offset++)
                Assert.Equal(offset == 0 || bytes[offset - 1] == '\n',
                    _store.Log.Holds(new Cursor(NumberOf(path), offset)));
            Assert.False(_store.Log.Holds(new Cursor(NumberOf(path), bytes.Length + 1)));
        }
        Assert.False(_store.Log.Holds(new Cursor(0, 0)));
        Assert.False(_store.Log.Holds(new Cursor(4, 0)));
        Assert.False(_store.Log.Holds(new Cursor(1, -1)));
        Assert.False(_store.Log.Holds(new Cursor(3, long.MaxValue)));
    }

    [Fact]
    public async Task WindowsAtAPlaceAreThoseOfTheEventsBeforeIt()
    {
        await ThreeDaysAsync();
        await _store.RecordAsync(Other, "up", 7);
        await _store.RecordAsync(Etcd, "down", 4);
        var end = _store.Log.Position.Flushed;
        var before = new List<StatusEvent>();
        for (var place = _store.Log.Oldest; place != end;)
        {
            AssertWindows(before, _store.Log.WindowsAt(place, _ => true));
            var chunk = _store.Log.Read(place, end, 1);
            before.AddRange(chunk.Events);
            place = chunk.Next;
        }
        AssertWindows(before, _store.Log.WindowsAt(end, _ => true));
        Assert.Equal([Other], _store.Log.WindowsAt(end, s => s == Other).Keys);
        // At the head of a file, and within the head, the windows are those that the head tells.
        AssertWindows(before.Take(2), _store.Log.WindowsAt(new Cursor(3, 0), _ => true));
    }

    private static void AssertWindows(IEnumerable<StatusEvent> events, Dictionary<ServiceKey, Window> windows)
    {
        var expected = events.GroupBy(e => e.Service)
            .ToDictionary(g => g.Key, g => Word(g.OrderBy(e => e.Time)));
        Assert.Equal(expected.Keys.OrderBy(k => k.Service), windows.Keys.OrderBy(k => k.Service));
        foreach (var (service, window) in windows)
            Assert.Equal(expected[service], Word(window.Events));
    }

    // ---- Quarantine ----

    private static UnmappableAlert Unusable(string identity, string raw = "{\"labels\":{}}") =>
        Unusable(identity, Encoding.UTF8.GetBytes(raw));

    private static UnmappableAlert Unusable(string identity, byte[] raw) =>
        new(identity, "f00", "Odd", "no service", raw);

    private Task QuarantineAsync(params UnmappableAlert[] alerts) =>
        _store.Log.AppendAsync(new Payload([], alerts, 0), "INS").WaitAsync(Soon);

    private string QuarantinePath => Path.Combine(_store.Dir, "quarantine.jsonl");

    private string[] Quarantined => File.ReadAllLines(QuarantinePath);

    [Fact]
    public async Task UnmappableAlertIsKeptWholeOnceAlsoAfterARestart()
    {
        await QuarantineAsync(Unusable("a", "{\"labels\":{\"x\":\"\\u00fc\"},\"more\":[1]}"), Unusable("a"));
        await QuarantineAsync(Unusable("a"), Unusable("b"));
        _store.Reopen();
        await QuarantineAsync(Unusable("b"), Unusable("a"), Unusable("c"));
        Assert.Equal(3, Quarantined.Length);
        using var line = JsonDocument.Parse(Quarantined[0]);
        Assert.Equal("{\"labels\":{\"x\":\"\\u00fc\"},\"more\":[1]}",
            line.RootElement.GetProperty("alert").GetRawText());
        Assert.Equal("no service", line.RootElement.GetProperty("reason").GetString());
        Assert.Equal("INS", line.RootElement.GetProperty("partition").GetString());
        Assert.Equal("2026-11-23T12:00:00Z", line.RootElement.GetProperty("received").GetString());
    }

    [Fact]
    public async Task UnmappableAlertOfAnotherPartitionIsAnother()
    {
        await QuarantineAsync(Unusable("a"));
        await _store.Log.AppendAsync(new Payload([], [Unusable("a")], 0), "OTHER").WaitAsync(Soon);
        Assert.Equal(2, Quarantined.Length);
    }

    [Fact]
    public async Task CopyOfAnUnmappableAlertInFlightWaitsForItsFlush()
    {
        _store.Clock.HoldWriter();
        var first = QuarantineAsync(Unusable("a"));
        await _store.Clock.WriterHeldAsync();
        var copy = QuarantineAsync(Unusable("a"));
        Assert.False(copy.IsCompleted);
        _store.Clock.ReleaseWriter();
        await Task.WhenAll(first, copy).WaitAsync(Soon);
        Assert.Single(Quarantined);
    }

    [Fact]
    public async Task UnmappableAlertThatTheDiskRefusedIsNotTakenForKept()
    {
        using (new RefusingFile(QuarantinePath))
            await Assert.ThrowsAsync<LogRefusedException>(() => QuarantineAsync(Unusable("a")));
        Assert.Empty(Quarantined);
        await QuarantineAsync(Unusable("a"));
        Assert.Single(Quarantined);
    }

    [Fact]
    public async Task CuredAlertStaysInQuarantineUntilItsEventsAreOnDisk()
    {
        await QuarantineAsync(Unusable("a"));
        var id = EventLog.IdOf(Assert.Single(QuarantinedAlert.Read(QuarantinePath, 0)).Id)!.Value;
        var mapped = new Payload([new MappedAlert(Etcd, "d", false, "down", At(1), null)], [], 0);
        using (new RefusingFile(_store.Newest))
            await Assert.ThrowsAsync<LogRefusedException>(
                () => _store.Log.AppendAsync(mapped, "INS", id).WaitAsync(Soon));
        Assert.Single(QuarantinedAlert.Read(QuarantinePath, 0));
        // A refusal to strike it off does not refuse the events.
        using (new RefusingFile(QuarantinePath))
        {
            await _store.Log.AppendAsync(mapped, "INS", id).WaitAsync(Soon);
            // But where there are none, it is all that there is to tell.
            await Assert.ThrowsAsync<LogRefusedException>(
                () => _store.Log.AppendAsync(mapped, "INS", id).WaitAsync(Soon));
            Assert.NotNull(_store.Log.Refusal);
        }
        Assert.Equal(["down 1"], _store.Words());
        Assert.Equal(1, _store.Log.Quarantine().Count);
        await _store.Log.AppendAsync(mapped, "INS", id).WaitAsync(Soon);
        Assert.Equal(0, _store.Log.Quarantine().Count);
        _store.Reopen();
        Assert.Equal(0, _store.Log.Quarantine().Count);
        Assert.Empty(QuarantinedAlert.Read(QuarantinePath, 0));
    }

    [Fact]
    public async Task UnmappableAlertNestedDeeplyIsKeptOnceAlsoAfterARestart()
    {
        var deep = "{\"labels\":" + new string('[', 100) + new string(']', 100) + "}";
        await QuarantineAsync(Unusable("a", deep));
        _store.Reopen();
        await QuarantineAsync(Unusable("a", deep));
        Assert.Single(Quarantined);
    }

    [Fact]
    public async Task UnmappableAlertOfInvalidUtf8IsKeptInBase64()
    {
        byte[] raw = [.. "{\"labels\":\""u8, 0xff, 0xfe, .. "\"}"u8];
        await QuarantineAsync(Unusable("a", raw));
        using var line = JsonDocument.Parse(Quarantined.Single());
        Assert.Equal(raw, line.RootElement.GetProperty("alertBase64").GetBytesFromBase64());
        Assert.False(line.RootElement.TryGetProperty("alert", out _));
        _store.Reopen();
        await QuarantineAsync(Unusable("a", raw));
        Assert.Single(Quarantined);
    }

    [Fact]
    public async Task TornLastLineOfTheQuarantineIsCutOnOpen()
    {
        await QuarantineAsync(Unusable("a"));
        _store.StopDisorderly();
        File.AppendAllText(QuarantinePath, "{\"received\":\"20");
        _store.Open();
        await QuarantineAsync(Unusable("a"), Unusable("b"));
        Assert.Equal(2, Quarantined.Length);
        Assert.All(Quarantined, l => JsonDocument.Parse(l).Dispose());
    }

    [Fact]
    public async Task FullQuarantineDropsItsOlderHalfAndCountsIt()
    {
        var text = new string('x', 1 << 20);
        UnmappableAlert Large(int i) => Unusable($"m{i}", $"{{\"n\":{i},\"text\":\"{text}\"}}");
        for (var i = 0; i < 64; i++)
            await QuarantineAsync(Large(i));
        await Support.Wait.UntilAsync(() => _store.Meters.QuarantineDropped.Value > 0, Soon, "the cut");
        var dropped = (int)_store.Meters.QuarantineDropped.Value;
        Assert.InRange(dropped, 31, 33);
        Assert.Equal(Enumerable.Range(dropped, 64 - dropped), Quarantined.Select(NumberIn));
        // What was dropped is unknown again; what was kept is not.
        await QuarantineAsync(Large(0), Large(dropped), Large(63));
        Assert.Equal([.. Enumerable.Range(dropped, 64 - dropped), 0], Quarantined.Select(NumberIn));
        _store.Reopen();
        await QuarantineAsync(Large(0), Large(dropped), Large(63));
        Assert.Equal(64 - dropped + 1, Quarantined.Length);
    }

    private static int NumberIn(string line)
    {
        using var document = JsonDocument.Parse(line);
        return document.RootElement.GetProperty("alert").GetProperty("n").GetInt32();
    }

    // ---- Any history ----

    private enum Deed { Say, StopAndOpen, Abandon, NextDay }

    private sealed record Step(Deed Deed, (int Service, string Status, int Second)[] Words);

    private static readonly Gen<string> Statuses = Gen.OneOf(
        Gen.Const("up"), Gen.Const("down"), Gen.Const("degraded"));

    private static readonly Gen<Step> Steps = Gen.Select(
        Gen.Frequency((12, Gen.Const(Deed.Say)), (1, Gen.Const(Deed.StopAndOpen)),
            (1, Gen.Const(Deed.Abandon)), (1, Gen.Const(Deed.NextDay))),
        Gen.Select(Gen.Int[0, 2], Statuses, Gen.Int[0, 14]).Array[1, 4],
        (deed, words) => new Step(deed, words));

    [Fact]
    public void AnyHistoryIsKeptAsThePlainOracleHasIt() =>
        Steps.Array[1, 60].Sample(steps => Play(steps).GetAwaiter().GetResult(), iter: 60, threads: 2);

    private static async Task Play(Step[] steps)
    {
        using var store = new Store(TimeSpan.FromDays(400));
        var oracle = new Oracle8();
        foreach (var step in steps)
        {
            switch (step.Deed)
            {
                case Deed.Say:
                    (ServiceKey, string, DateTime)[] words =
                        [.. step.Words.Select(w => (Service(w.Service), w.Status, At(w.Second)))];
                    var (before, expected) = (store.Outcomes(), oracle.Hear(words));
                    await store.RecordAsync(words);
                    Assert.Equal(expected, Minus(store.Outcomes(), before));
                    break;
                case Deed.StopAndOpen:
                    store.Reopen();
                    break;
                case Deed.Abandon:
                    store.StopDisorderly();
                    store.Open();
                    break;
                case Deed.NextDay:
                    store.Clock.Pass(TimeSpan.FromDays(1));
                    break;
            }
            Assert.Equal(oracle.Logged, store.Events().Select(e => (e.Service, e.Status, e.Time)));
        }
        var windows = store.Log.WindowsAt(store.Log.Position.Flushed, _ => true);
        Assert.Equal(oracle.Windows.Count, windows.Count);
        foreach (var (service, window) in windows)
            Assert.Equal(oracle.Windows[service], window.Events.Select(e => (e.Status, e.Time)));
    }

    private static (int, int, int) Minus((int, int, int) a, (int, int, int) b) =>
        (a.Item1 - b.Item1, a.Item2 - b.Item2, a.Item3 - b.Item3);

    /// <summary>The rules of the window, said with sorted lists alone.</summary>
    private sealed class Oracle8
    {
        private const int Size = 8;

        public List<(ServiceKey, string, DateTime)> Logged { get; } = [];

        public Dictionary<ServiceKey, List<(string Status, DateTime Time)>> Windows { get; } = [];

        /// <summary>One payload, whose words are judged by what was flushed before it.</summary>
        public (int New, int Known, int Stale) Hear((ServiceKey, string, DateTime)[] words)
        {
            var taken = new List<(ServiceKey, string, DateTime)>();
            var (known, stale) = (0, 0);
            foreach (var (service, status, time) in words)
            {
                var window = Windows.GetValueOrDefault(service, []);
                if (window.Contains((status, time)) || taken.Contains((service, status, time)))
                    known++;
                else if (window.Count == Size && Sorted([.. window, (status, time)])[0] == (status, time))
                    stale++;
                else
                    taken.Add((service, status, time));
            }
            Logged.AddRange(taken);
            foreach (var (service, status, time) in taken)
                Windows[service] = [.. Sorted([.. Windows.GetValueOrDefault(service, []), (status, time)])
                    .TakeLast(Size)];
            return (taken.Count, known, stale);
        }

        private static List<(string, DateTime)> Sorted(IEnumerable<(string Status, DateTime Time)> words) =>
            [.. words.OrderBy(w => w.Time).ThenBy(w => w.Status == "down")
                .ThenBy(w => w.Status, StringComparer.Ordinal)];
    }

    // ---- What the tests share ----

    private static FileStream OpenShared(string path) =>
        new(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);

    private static int NumberOf(string path) =>
        int.Parse(Path.GetFileName(path).Split('-')[1], CultureInfo.InvariantCulture);

    private static List<string> Word(IEnumerable<StatusEvent> events) =>
        [.. events.Select(e => string.Create(CultureInfo.InvariantCulture,
            $"{e.Status} {(e.Time - At(0)).TotalSeconds}"))];

    /// <summary>An event log on a temporary folder, which goes with it.</summary>
    private sealed class Store : IDisposable
    {
        private readonly TimeSpan _retention;
        private readonly StringWriter _lines = new();

        public Store(TimeSpan retention)
        {
            _retention = retention;
            Open();
        }

        private Store(Store of)
        {
            _retention = of._retention;
            Clock.Pass(of.Clock.GetElapsedTime(0));
            Copy(of.Dir, Dir);
        }

        public string Dir { get; } = Directory.CreateTempSubdirectory("ses-log-").FullName;

        public ManualClock Clock { get; } = new();

        public EventLog Log { get; private set; } = null!;

        public Meters Meters { get; private set; } = null!;

        public string Lines => _lines.ToString();

        public List<string> Files =>
            [.. Directory.GetFiles(Dir, "events-*.jsonl").Order(StringComparer.Ordinal)];

        public string Newest => Files[^1];

        public void Open()
        {
            Meters = new Meters("test", "test");
            Log = new EventLog(Dir, _retention, Clock,
                new Log(LogLevel.Trace, false, TextWriter.Synchronized(_lines), TimeProvider.System), Meters);
        }

        public void Stop() => Log.Stop();

        public void Reopen()
        {
            Stop();
            Open();
        }

        /// <summary>Leaves the folder as it would be had the process been killed now.</summary>
        public void StopDisorderly()
        {
            using var killed = new Store(this);
            Stop();
            Copy(killed.Dir, Dir);
        }

        /// <summary>What is on the disk now, in another folder, not opened.</summary>
        public Store CopyOfDisk() => new(this);

        public Task RecordAsync(params (ServiceKey Service, string Status, DateTime Time)[] words) =>
            Log.AppendAsync(new Payload([.. words.Select(w =>
                new MappedAlert(w.Service, $"it is {w.Status}", false, w.Status, w.Time, null))], [], 0), "INS")
                .WaitAsync(Soon);

        public Task RecordAsync(ServiceKey service, string status, double second) =>
            RecordAsync((service, status, At(second)));

        public IReadOnlyList<StatusEvent> Events() =>
            Log.Read(Log.Oldest, Log.Position.Flushed, int.MaxValue).Events;

        public List<string> Words() => Word(Events());

        public (int New, int Known, int Stale) Outcomes() =>
            (Outcome("new"), Outcome("known"), Outcome("stale"));

        private int Outcome(string name) => (int)Meters.Events.WithLabels(name).Value;

        private static void Copy(string from, string to)
        {
            foreach (var path in Directory.GetFiles(from))
                File.Copy(path, Path.Combine(to, Path.GetFileName(path)), overwrite: true);
        }

        public void Dispose()
        {
            Clock.ReleaseWriter();
            Log?.Stop();
            Directory.Delete(Dir, recursive: true);
        }
    }

    /// <summary>A clock that is set by hand, and at which the log's writer can be held up.</summary>
    private sealed class ManualClock : TimeProvider
    {
        private readonly SemaphoreSlim _held = new(0), _mayWrite = new(0);
        private volatile bool _isHeld;
        private long _elapsed, _utc = Noon.Ticks;

        public override long TimestampFrequency => TimeSpan.TicksPerSecond;

        public override long GetTimestamp() => Interlocked.Read(ref _elapsed) + 1;

        public override DateTimeOffset GetUtcNow()
        {
            if (Thread.CurrentThread.Name == "event log" && _isHeld)
            {
                _held.Release();
                _mayWrite.Wait();
            }
            return new DateTimeOffset(Interlocked.Read(ref _utc), TimeSpan.Zero);
        }

        public void Pass(TimeSpan time)
        {
            Interlocked.Add(ref _elapsed, time.Ticks);
            Interlocked.Add(ref _utc, time.Ticks);
        }

        public void SetBack(TimeSpan time) => Interlocked.Add(ref _utc, -time.Ticks);

        /// <summary>The writer waits when it next looks at the day: with a batch taken, unwritten.</summary>
        public void HoldWriter() => _isHeld = true;

        public async Task WriterHeldAsync() =>
            Assert.True(await _held.WaitAsync(Soon), "the writer did not come");

        /// <summary>Until it comes again.</summary>
        public void LetWriterOn() => _mayWrite.Release();

        public void ReleaseWriter()
        {
            if (!_isHeld)
                return;
            _isHeld = false;
            _mayWrite.Release();
        }
    }

    /// <summary>
    /// While this lives, writes to a file that this process has open are refused (EPERM), as by a full disk:
    /// its descriptor is made to mean a sealed file in memory.
    /// </summary>
    private sealed partial class RefusingFile : IDisposable
    {
        private const int AllowSealing = 2, AddSeals = 1033, SealGrow = 4;

        private readonly int _descriptor, _saved;

        public RefusingFile(string path)
        {
            _descriptor = Directory.GetFiles("/proc/self/fd")
                .Where(f => TargetOf(f) == path)
                .Select(f => int.Parse(Path.GetFileName(f), CultureInfo.InvariantCulture)).Single();
            var sealedFile = MemoryFile("sealed", AllowSealing);
            Assert.Equal(0, Truncate(sealedFile, new FileInfo(path).Length));
            Assert.Equal(0, Control(sealedFile, AddSeals, SealGrow));
            _saved = Duplicate(_descriptor);
            Assert.Equal(_descriptor, Duplicate(sealedFile, _descriptor));
            _ = Close(sealedFile);
        }

        /// <summary>Null for one that another test has closed meanwhile.</summary>
        private static string? TargetOf(string descriptor)
        {
            try
            {
                return File.ResolveLinkTarget(descriptor, false)?.FullName;
            }
            catch (IOException)
            {
                return null;
            }
        }

        public void Dispose()
        {
            _ = Duplicate(_saved, _descriptor);
            _ = Close(_saved);
        }

        [LibraryImport("libc", EntryPoint = "memfd_create", StringMarshalling = StringMarshalling.Utf8)]
        private static partial int MemoryFile(string name, uint flags);

        [LibraryImport("libc", EntryPoint = "ftruncate")]
        private static partial int Truncate(int descriptor, long length);

        [LibraryImport("libc", EntryPoint = "fcntl")]
        private static partial int Control(int descriptor, int command, int argument);

        [LibraryImport("libc", EntryPoint = "dup")]
        private static partial int Duplicate(int descriptor);

        [LibraryImport("libc", EntryPoint = "dup2")]
        private static partial int Duplicate(int from, int to);

        [LibraryImport("libc", EntryPoint = "close")]
        private static partial int Close(int descriptor);
    }
}
