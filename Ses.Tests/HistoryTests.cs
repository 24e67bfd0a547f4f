using System.Buffers;
using System.Globalization;
using System.Text;
using System.Text.Json;
using CsCheck;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What is told of the past, against plain words on what it must be.</summary>
public sealed class HistoryTests : IDisposable
{
    private static readonly DateTime Day = new(2026, 11, 1, 0, 0, 0, DateTimeKind.Utc);

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-history-").FullName;

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    private static DateTime At(double minutes) => Day.AddMinutes(minutes);

    // ---- A log with a past ----

    private sealed class Past(string dir) : IDisposable
    {
        private readonly ManualClock _clock = new(Day);
        // Of two words or so, and kept over the turn of files as a running SeS keeps them.
        private readonly Slices _slices = new(size: 300);
        private EventLog _log = Open(dir, new ManualClock(Day));

        private static EventLog Open(string dir, ManualClock clock) => new(dir, TimeSpan.FromDays(400), clock,
            new Log(LogLevel.Error, json: false, TextWriter.Null, clock), new Meters("test", "test"));

        public Task RecordAsync(params (int Service, string Status, DateTime Time)[] words) =>
            _log.AppendAsync(new Payload([.. words.Select(w => new MappedAlert(Site.Service(w.Service),
                $"it is {w.Status}", false, w.Status, w.Time, null))], [], 0), "INS");

        /// <summary>Ends the file; the next event is in another.</summary>
        public void TurnDay() => Restart(TimeSpan.FromDays(1));

        public void Restart(TimeSpan later)
        {
            _log.Stop();
            _clock.UtcNow += later;
            _log = Open(dir, _clock);
        }

        public Answers Open(DateTime now) =>
            new(new Archive(_log.Archive().Files, _slices), _log.Known(), now);

        public void Dispose() => _log.Stop();
    }

    private static JsonElement Ask(Answers answers, Subject subject, params (string Name, string? Value)[] parameters)
    {
        var question = Question.Parse(subject, "INS", parameters.Where(p => p.Value != null)
            .Select(p => KeyValuePair.Create(p.Name, p.Value!)), answers.Now);
        var text = string.Concat(answers.Write(question, OutputFormat.Json).Select(p => Encoding.UTF8.GetString(p.Span)));
        using var json = JsonDocument.Parse(text);
        return json.RootElement.Clone();
    }

    private static List<(int Service, string Status, DateTime Time)> Events(JsonElement answer) =>
        [.. answer.GetProperty("events").EnumerateArray().Select(e => (
            int.Parse(e.GetProperty("service").GetString()![1..], CultureInfo.InvariantCulture),
            e.GetProperty("status").GetString()!, e.GetProperty("time").GetDateTime().ToUniversalTime()))];

    // ---- The plain words ----

    private sealed record Word(int Service, string Status, DateTime Time);

    private static int Order(Word a, Word b) => a.Time != b.Time ? a.Time.CompareTo(b.Time)
        : StatusEvent.Compare(a.Time, a.Status, b.Time, b.Status) is var byStatus and not 0 ? byStatus
        : a.Service.CompareTo(b.Service);

    /// <summary>Each word that differs from the one before it of its service, in order of time.</summary>
    private static List<Word> Changes(IEnumerable<Word> words)
    {
        var last = new Dictionary<int, string>();
        var changes = new List<Word>();
        foreach (var word in words.Distinct().Order(Comparer<Word>.Create(Order)))
        {
            if (last.GetValueOrDefault(word.Service) != word.Status)
                changes.Add(word);
            last[word.Service] = word.Status;
        }
        return changes;
    }

    /// <summary>Minute by minute, since all words fall on whole minutes.</summary>
    private static (int Up, int Down, int Outages, int Longest, bool Open) Figures(
        IEnumerable<Word> ofOne, int from, int to)
    {
        var (up, down, outages, longest, current, isUp) = (0, 0, 0, 0, 0, (bool?)null);
        var words = Changes(ofOne);
        for (var minute = 0; minute < to; minute++)
        {
            foreach (var word in words.Where(w => w.Time == At(minute) && (w.Status is "up" or "down")))
            {
                isUp = word.Status == "up";
                current = isUp == true ? 0 : current;
            }
            if (minute < from)
                continue;
            up += isUp == true ? 1 : 0;
            down += isUp == false ? 1 : 0;
            current = isUp == false ? current + 1 : 0;
            outages += current == 1 ? 1 : 0;
            longest = Math.Max(longest, current);
        }
        return (up, down, outages, longest, isUp == false);
    }

    private static Condition Worst(IEnumerable<Word> ofOne, int from, int to)
    {
        var words = Changes(ofOne);
        return Enumerable.Range(from, to - from).Max(minute =>
            words.LastOrDefault(w => w.Time <= At(minute))?.Status switch
            {
                null => Condition.Unknown,
                "up" => Condition.Up,
                "down" => Condition.Down,
                _ => Condition.Other,
            });
    }

    private static List<(string Status, DateTime Time, int Up, double Under)> Rows(List<Word> changes, int threshold)
    {
        var up = new HashSet<int>();
        var rows = new List<(string, DateTime, int, double)>();
        DateTime? under = null;
        foreach (var change in changes)
        {
            var told = 0.0;
            if (change.Status == "up" && up.Add(change.Service) && up.Count >= threshold && under != null)
                (told, under) = ((change.Time - under.Value).TotalSeconds, null);
            if (change.Status == "down")
            {
                up.Remove(change.Service);
                under ??= up.Count < threshold ? change.Time : null;
            }
            rows.Add((change.Status, change.Time, up.Count, told));
        }
        return rows;
    }

    // ---- Random pasts ----

    private sealed record Step(int Kind, int Service, string Status, int Minute);

    private static readonly string[] Statuses = ["up", "down", "up", "down", "degraded"];

    /// <summary>A service's minutes go up by and large, so that few words come too late for its window.</summary>
    private static readonly Gen<(Step[] Steps, int From, int To, int Threshold, int Limit)> Pasts = Gen.Select(
        Gen.Select(Gen.Int[0, 19], Gen.Int[0, 3], Gen.Int[0, 4].Select(i => Statuses[i]), Gen.Int[-4, 9],
            (kind, service, status, minute) => new Step(kind, service, status, minute)).Array[1, 60],
        Gen.Int[0, 40], Gen.OneOf(Gen.Int[1, 4], Gen.Int[1, 60]), Gen.Int[1, 4], Gen.Int[1, 7],
        (steps, from, length, threshold, limit) => (steps, from, from + length, threshold, limit));

    [Fact]
    public void RandomPastsAreAnsweredRight() => Pasts.Sample(p =>
    {
        var dir = Directory.CreateDirectory(Path.Combine(_dir, Guid.NewGuid().ToString("N"))).FullName;
        using (var past = new Past(dir))
        {
            var said = RecordAsync(past, dir, p.Steps).GetAwaiter().GetResult();
            AssertHistory(past.Open(At(p.To)), said, p.From, p.To, p.Limit);
            AssertReport(past.Open(At(p.To)), said, p.From, p.To, p.Threshold);
        }
        Directory.Delete(dir, recursive: true);
    }, iter: 300, threads: 1);

    private static async Task<List<Word>> RecordAsync(Past past, string dir, Step[] steps)
    {
        var said = new List<Word>();
        var windows = new Dictionary<int, List<Word>>();
        var now = 0;
        foreach (var step in steps)
        {
            if (step.Kind < 3)
                past.TurnDay();
            else if (step.Kind == 3)
                past.Restart(TimeSpan.Zero);
            else if (step.Kind == 4)
                Spoil(dir, step.Minute);
            var time = At(Math.Max(0, now += Math.Max(0, step.Minute / 3)) + step.Minute + 4);
            var word = new Word(step.Service, step.Status, time);
            var window = windows.TryGetValue(step.Service, out var held) ? held : windows[step.Service] = [];
            // What comes later than a whole window is stale, and not kept.
            if (window.Count == Window.Size && Order(word, window[0]) < 0)
                continue;
            await past.RecordAsync((word.Service, word.Status, word.Time));
            said.Add(word);
            if (!window.Contains(word))
                window.Add(word);
            window.Sort(Order);
            if (window.Count > Window.Size)
                window.RemoveAt(0);
        }
        return said;
    }

    /// <summary>Makes the indexes that there are unusable, in one of several ways.</summary>
    private static void Spoil(string dir, int way)
    {
        foreach (var path in Directory.GetFiles(dir, "*.index"))
        {
            var bytes = File.ReadAllBytes(path);
            if (way < 0)
                File.Delete(path);
            else if (way < 4)
                File.WriteAllBytes(path, bytes[..(bytes.Length / 2)]);
            else if (way < 7)
                File.WriteAllBytes(path, []);
            else
                File.WriteAllBytes(path, [.. bytes.Select(b => (byte)(b ^ 1))]);
        }
    }

    private static void AssertHistory(Answers answers, List<Word> said, int from, int to, int limit)
    {
        var all = Changes(said);
        Assert.Equal(all.Select(w => (w.Service, w.Status, w.Time)), Events(Ask(answers, Subject.History)));
        (string, string?) first = ("from", Rfc3339.Format(At(from))), last = ("to", Rfc3339.Format(At(to)));
        var expected = all.Where(w => w.Time >= At(from) && w.Time < At(to)).Select(w => (w.Service, w.Status, w.Time)).ToList();
        Assert.Equal(expected, Events(Ask(answers, Subject.History, first, last)));
        var (paged, cursor) = (new List<(int, string, DateTime)>(), (string?)null);
        do
        {
            var page = Ask(answers, Subject.History, first, last, ("limit", $"{limit}"), ("cursor", cursor));
            paged.AddRange(Events(page));
            cursor = page.GetProperty("next").GetString();
            Assert.Equal(cursor == null, paged.Count == expected.Count);
        }
        while (cursor != null);
        Assert.Equal(expected, paged);
        foreach (var one in Ask(answers, Subject.Status).GetProperty("services").EnumerateArray())
        {
            var words = said.Where(w => $"s{w.Service}" == one.GetProperty("service").GetString()).ToList();
            Assert.Equal(words.Order(Comparer<Word>.Create(Order)).Last().Time, one.GetProperty("time").GetDateTime());
            Assert.Equal(Changes(words)[^1].Status, one.GetProperty("status").GetString());
            Assert.Equal(Changes(words)[^1].Time, one.GetProperty("since").GetDateTime());
        }
    }

    private static void AssertReport(Answers answers, List<Word> said, int from, int to, int threshold)
    {
        var report = Ask(answers, Subject.Report, ("from", Rfc3339.Format(At(from))), ("to", Rfc3339.Format(At(to))),
            ("threshold", $"{threshold}"));
        var services = report.GetProperty("services").EnumerateArray().ToList();
        Assert.Equal(said.Select(w => w.Service).Distinct().Count(), services.Count);
        foreach (var one in services)
        {
            var words = said.Where(w => $"s{w.Service}" == one.GetProperty("service").GetString()).ToList();
            var (up, down, outages, longest, open) = Figures(words, from, to);
            double? Of(string name) => one.GetProperty(name) is { ValueKind: JsonValueKind.Number } number
                ? Math.Round(number.GetDouble(), 6) : null;
            Assert.Equal((up * 60.0, down * 60.0, outages, longest * 60.0), (Of("up_seconds"), Of("down_seconds"),
                (int)Of("outages")!, Of("longest_seconds")));
            Assert.Equal(open, one.GetProperty("open").GetBoolean());
            Assert.Equal(up + down == 0 ? null : Math.Round(100.0 * up / (up + down), 6), Of("availability"));
            double? Mean(int minutes) => outages == 0 ? null : Math.Round(minutes * 60.0 / outages, 6);
            Assert.Equal((Mean(down), Mean(up)), (Of("mean_seconds"), Of("mean_between_seconds")));
            AssertStrip(answers, words, from, to);
        }
        var rows = report.GetProperty("events").EnumerateArray().Select(e => (e.GetProperty("status").GetString()!,
            e.GetProperty("time").GetDateTime(), e.GetProperty("up").GetInt32(),
            e.GetProperty("under_threshold_seconds").GetDouble()));
        Assert.Equal(Rows(Changes(said), threshold).Where(r => r.Time >= At(from) && r.Time < At(to)), rows);
    }

    private static void AssertStrip(Answers answers, List<Word> words, int from, int to)
    {
        var (tallies, _) = answers.Tallies([Site.Service(words[0].Service)], At(from), At(to), to - from, 0);
        _ = tallies[0].Finish();
        Assert.Equal(Enumerable.Range(from, to - from).Select(m => Worst(words, m, m + 1)), tallies[0].Strip);
        var (coarse, _) = answers.Tallies([Site.Service(words[0].Service)], At(from), At(to), 1, 0);
        _ = coarse[0].Finish();
        Assert.Equal(Worst(words, from, to), Assert.Single(coarse[0].Strip));
    }

    // ---- Onix's report ----

    private static JsonElement OnixReports()
    {
        using var json = JsonDocument.Parse(File.ReadAllText(
            Path.Combine(AppContext.BaseDirectory, "Data", "onix-reports.json")));
        return json.RootElement.Clone();
    }

    private static string? Text(JsonElement e, string name) => e.GetProperty(name).GetString();

    /// <summary>Where Onix is right, SeS tells the same rows, but for a down's, where Onix repeats a figure.</summary>
    [Fact]
    public async Task ReportsAreOnixsWhereItIsRight()
    {
        var log = new EventLog(_dir, TimeSpan.FromDays(400), new ManualClock(Day.AddDays(1)),
            new Log(LogLevel.Error, false, TextWriter.Null, TimeProvider.System), new Meters("test", "test"));
        var reports = OnixReports();
        await log.AppendAsync(new Payload([.. reports.GetProperty("changes").EnumerateArray()
            .Select(c => new MappedAlert(
            new ServiceKey("INS", Text(c, "platform")!, Text(c, "service")!, Text(c, "facet")!, Text(c, "location")!),
            Text(c, "description")!, false, Text(c, "status")!, c.GetProperty("time").GetDateTime().ToUniversalTime(),
            null))], [], 0), "INS");
        var answers = new Answers(log.Archive(), log.Known(), Day.AddDays(30));
        var agreed = 0;
        foreach (var report in reports.GetProperty("reports").EnumerateArray())
        {
            var told = Rows(Ask(answers, Subject.Report, ("platform", Text(report, "platform")),
                ("service", Text(report, "service")), ("facet", Text(report, "facet")),
                ("threshold", $"{report.GetProperty("threshold").GetInt32()}")).GetProperty("events"));
            if (!report.GetProperty("agree").GetBoolean())
                continue;
            Assert.Equal(Rows(report.GetProperty("rows")).Select(r => r.Status == "down" ? r with { Under = 0 } : r), told);
            agreed++;
        }
        log.Stop();
        Assert.Equal(7, agreed);
    }

    private sealed record Row(string Service, string Location, string Status, DateTime Time, int Up, double Under);

    private static List<Row> Rows(JsonElement rows) => [.. rows.EnumerateArray().Select(r => new Row(
        $"{Text(r, "platform")} {Text(r, "service")} {Text(r, "facet")}", Text(r, "location")!, Text(r, "status")!,
        r.GetProperty("time").GetDateTime().ToUniversalTime(), r.GetProperty("up").GetInt32(),
        Math.Round(r.GetProperty("under_threshold_seconds").GetDouble(), 3)))];

    /// <summary>Where the first word is down, Onix counts -1; and it takes rows in the order of recording.</summary>
    [Fact]
    public void FirstEventDownCountsNothingAndTimeRunsFromIt()
    {
        var threshold = new Threshold(1);
        (int Up, TimeSpan Under) Say(int service, string status, int minute) =>
            threshold.Add(new ServiceMark(service, new Mark(At(minute).Ticks, status, default)));
        Assert.Equal((0, TimeSpan.Zero), Say(0, "down", 0));
        Assert.Equal((1, TimeSpan.FromMinutes(5)), Say(0, "up", 5));
        Assert.Equal((2, TimeSpan.Zero), Say(1, "up", 6));
        Assert.Equal((2, TimeSpan.Zero), Say(1, "degraded", 7));
        Assert.Equal((2, TimeSpan.Zero), Say(1, "up", 8));
        Assert.Equal((1, TimeSpan.Zero), Say(0, "down", 9));
        Assert.Equal((0, TimeSpan.Zero), Say(1, "down", 10));
        Assert.Equal((1, TimeSpan.FromMinutes(1)), Say(0, "up", 11));
    }

    // ---- Facts ----

    [Fact]
    public async Task RunLongerThanTheWindowBeganWhereItBegan()
    {
        using var past = new Past(_dir);
        await past.RecordAsync((1, "down", At(0)));
        for (var i = 1; i <= 3 * Window.Size; i++)
        {
            await past.RecordAsync((1, "up", At(i)));
            if (i % 10 == 0)
                past.TurnDay();
        }
        var one = Assert.Single(Ask(past.Open(At(100)), Subject.Status).GetProperty("services").EnumerateArray());
        Assert.Equal(At(1), one.GetProperty("since").GetDateTime());
        Assert.Equal(At(24), one.GetProperty("time").GetDateTime());
    }

    [Fact]
    public async Task RangeBetweenTwoFilesKnowsWhatWasBefore()
    {
        using var past = new Past(_dir);
        await past.RecordAsync((1, "up", At(0)));
        past.TurnDay();
        await past.RecordAsync((1, "down", At(100)));
        past.TurnDay();
        await past.RecordAsync((1, "up", At(200)));
        var answers = past.Open(At(300));
        var one = Ask(answers, Subject.Report, ("from", Rfc3339.Format(At(40))), ("to", Rfc3339.Format(At(50))))
            .GetProperty("services")[0];
        Assert.Equal((600, 0), (one.GetProperty("up_seconds").GetInt32(), one.GetProperty("down_seconds").GetInt32()));
        Assert.Equal([At(100)], Events(Ask(answers, Subject.History, ("from", Rfc3339.Format(At(100))),
            ("to", Rfc3339.Format(At(200))))).Select(e => e.Time));
    }

    /// <summary>What fills the window before the range may not tell how the range began, nor since when.</summary>
    [Theory]
    [InlineData("degraded")]
    [InlineData("down")]
    public async Task OutageOlderThanTheWindowBeganWhereItBegan(string repeated)
    {
        using var past = new Past(_dir);
        await past.RecordAsync((1, "up", At(0)), (1, "down", At(1)), (2, "up", At(0)));
        for (var i = 2; i <= 3 * Window.Size; i++)
        {
            await past.RecordAsync((1, repeated, At(i)));
            if (i % 5 == 0)
                past.TurnDay();
        }
        await past.RecordAsync((1, "up", At(90)));
        var answers = past.Open(At(100));
        var range = new[] { ("from", (string?)Rfc3339.Format(At(60))), ("to", Rfc3339.Format(At(80))) };
        var one = Ask(answers, Subject.Report, range).GetProperty("services")[0];
        Assert.Equal((1200, true), (one.GetProperty("down_seconds").GetInt32(), one.GetProperty("open").GetBoolean()));
        var (tallies, outages) = answers.Tallies([Site.Service(2), Site.Service(1)], At(60), null, 40, 10);
        Assert.Equal((1, At(1), At(90)), (outages[0].Service, outages[0].Start.Time, outages[0].End));
        Assert.Single(outages);
        Assert.Equal(TimeSpan.FromMinutes(30), tallies[1].Finish().Down);
        Assert.Equal(repeated == "down" ? Condition.Down : Condition.Other, tallies[1].Strip[0]);
    }

    [Fact]
    public async Task LatestOutagesAreThoseThatEndedLast()
    {
        using var past = new Past(_dir);
        await past.RecordAsync((1, "up", At(0)), (1, "down", At(1)), (1, "up", At(90)));
        for (var i = 10; i < 40; i += 2)
            await past.RecordAsync((2, "down", At(i)), (2, "up", At(i + 1)));
        var (_, outages) = past.Open(At(100)).Tallies([Site.Service(1), Site.Service(2)], At(0), null, 0, 2);
        Assert.Equal([At(90), At(39)], outages.Select(o => o.End));
    }

    [Fact]
    public async Task WhatIsStillToComeIsNotYetTimeUnderTheThreshold()
    {
        using var past = new Past(_dir);
        await past.RecordAsync((1, "up", At(0)), (1, "down", At(10)), (1, "up", At(90)));
        Assert.Equal(["up", "down"], Events(Ask(past.Open(At(50)), Subject.Report, ("threshold", "1")))
            .Select(e => e.Status));
    }

    [Fact]
    public async Task AvailabilityIs100OnlyWithoutAnOutage()
    {
        using var past = new Past(_dir);
        await past.RecordAsync((1, "up", At(0)), (1, "down", At(1)), (1, "up", At(1).AddMilliseconds(1)));
        var one = Ask(past.Open(At(60 * 24 * 300)), Subject.Report).GetProperty("services")[0];
        Assert.Equal(99.999999, one.GetProperty("availability").GetDouble());
    }

    [Fact]
    public async Task FileThatRetentionDeletesMeanwhileIsLeftOut()
    {
        using var past = new Past(_dir);
        for (var day = 0; day < 4; day++)
        {
            await past.RecordAsync((1, day % 2 == 0 ? "up" : "down", At(day)));
            past.TurnDay();
        }
        var answers = past.Open(At(100));
        Assert.Equal(4, Events(Ask(answers, Subject.History)).Count);
        File.Delete(Directory.GetFiles(_dir, "events-000001-*.jsonl").Single());
        // The next file's window still knows of the word, which now stands only there.
        Assert.Equal([At(0), At(1), At(2), At(3)], Events(Ask(answers, Subject.History)).Select(e => e.Time));
        Assert.Equal(240, Ask(answers, Subject.Report).GetProperty("services")[0].GetProperty("outages").GetInt32() * 120);
    }

    [Fact]
    public async Task IndexLiesBesideEachClosedFileAndIsMadeAgain()
    {
        using var past = new Past(_dir);
        for (var day = 0; day < 3; day++)
        {
            await past.RecordAsync((1, day % 2 == 0 ? "up" : "down", At(day)));
            past.TurnDay();
        }
        var answers = past.Open(At(100));
        var expected = Events(Ask(answers, Subject.History));
        var indexes = Directory.GetFiles(_dir, "*.index").Order(StringComparer.Ordinal).ToList();
        Assert.Equal(2, indexes.Count);
        var whole = File.ReadAllBytes(indexes[1]);
        foreach (var spoilt in new[] { whole[..^1], [.. whole, 0], [], File.ReadAllBytes(indexes[0]) })
        {
            File.WriteAllBytes(indexes[1], spoilt);
            Assert.Equal(expected, Events(Ask(answers, Subject.History)));
            Assert.Equal(whole, File.ReadAllBytes(indexes[1]));
        }
        Assert.Empty(Directory.GetFiles(_dir, "*.tmp"));
    }

    /// <summary>It is made in a pooled buffer, and tells nothing of what that held before.</summary>
    [Theory]
    [InlineData(0x00)]
    [InlineData(0xff)]
    public async Task IndexIsTheSameWhateverMemoryHeldBefore(byte before)
    {
        using var past = new Past(_dir);
        await past.RecordAsync((1, "up", At(0)), (2, "up", At(0)), (3, "down", At(0)));
        past.TurnDay();
        await past.RecordAsync((1, "down", At(50)));
        for (var size = 64; size <= 1024 * 1024; size *= 2)
        {
            var buffer = ArrayPool<byte>.Shared.Rent(size);
            buffer.AsSpan().Fill(before);
            ArrayPool<byte>.Shared.Return(buffer);
        }
        _ = Ask(past.Open(At(100)), Subject.Report);
        var index = File.ReadAllBytes(Directory.GetFiles(_dir, "*.index").Single());
        const int Head = 56, Entry = 32;
        Assert.Equal([0, 0, 0, 0], new[] { 0, 1, 2, 3 }.Select(i => BitConverter.ToInt32(
            index, i == 3 ? Head - sizeof(int) : Head + ((i + 1) * Entry) - sizeof(int))));
    }

    /// <summary>An index that is spoilt behind its head harms only those who read it.</summary>
    [Fact]
    public async Task ReportReadsTheIndexesOfItsRangeAlone()
    {
        using var past = new Past(_dir);
        for (var day = 0; day < 3; day++)
        {
            await past.RecordAsync((1, day % 2 == 0 ? "up" : "down", At(60 * day)));
            past.TurnDay();
        }
        await past.RecordAsync((1, "down", At(200)));
        var answers = past.Open(At(300));
        var range = new[] { ("from", (string?)Rfc3339.Format(At(110))) };
        var told = Ask(answers, Subject.Report, range).GetRawText();
        var oldest = Directory.GetFiles(_dir, "*.index").Order(StringComparer.Ordinal).First();
        var bytes = File.ReadAllBytes(oldest);
        bytes.AsSpan(^8..).Fill(0x7f);
        File.WriteAllBytes(oldest, bytes);
        Assert.Equal(told, Ask(answers, Subject.Report, range).GetRawText());
    }

    /// <summary>A slice that is spoilt on disk after it was read is not missed.</summary>
    [Fact]
    public async Task WholeSlicesOfTheNewestFileAreReadOnce()
    {
        using var past = new Past(_dir);
        await FlapAsync(past, 1, 0);
        Assert.Equal(6000, DownSeconds(past.Open(At(300))));
        var path = LogFile.Find(_dir)[^1].Path;
        using (var file = new FileStream(path, FileMode.Open, FileAccess.Write, FileShare.ReadWrite))
        {
            file.Seek(100, SeekOrigin.Begin);
            file.Write(new byte[1000]);
        }
        await past.RecordAsync((1, "down", At(290)));
        Assert.Equal(6600, DownSeconds(past.Open(At(300))));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task QuestionSeesTheLogAsItStoodWhenItWasAsked(bool fileTurned)
    {
        using var past = new Past(_dir);
        await FlapAsync(past, 1, 0);
        await past.RecordAsync((2, "up", At(0)));
        var (before, asked) = (past.Open(At(300)), past.Open(At(300)));
        var told = Ask(asked, Subject.Report).GetRawText();
        if (fileTurned)
            past.TurnDay();
        await FlapAsync(past, 2, 5);
        var answers = past.Open(At(300));
        Assert.Equal(
            Ask(new Answers(Archive.Open(_dir), answers.Known, At(300)), Subject.Report).GetRawText(),
            Ask(answers, Subject.Report).GetRawText());
        Assert.Equal(told, Ask(before, Subject.Report).GetRawText());
    }

    [Fact]
    public async Task TornEndOfTheNewestFileIsLeftOut()
    {
        using var past = new Past(_dir);
        await past.RecordAsync((1, "up", At(0)), (1, "down", At(10)));
        var answers = past.Open(At(20));
        File.AppendAllText(LogFile.Find(_dir)[^1].Path, new string('x', 2000));
        var torn = new Answers(new Archive(LogFile.Find(_dir), new Slices(size: 300)), answers.Known, answers.Now);
        Assert.Equal(600, await Task.Run(() => DownSeconds(torn)).WaitAsync(TimeSpan.FromMinutes(1)));
    }

    /// <summary>Ten outages of ten minutes, ten minutes apart.</summary>
    private static async Task FlapAsync(Past past, int service, double from)
    {
        for (var i = 0; i < 20; i++)
            await past.RecordAsync((service, i % 2 == 0 ? "down" : "up", At(from + 10 * i)));
    }

    private static double DownSeconds(Answers answers) => Assert.Single(
        Ask(answers, Subject.Report).GetProperty("services").EnumerateArray())
        .GetProperty("down_seconds").GetDouble();

    [Fact]
    public async Task IndexOfACopiedFileIsStaleAndNotWrong()
    {
        using var past = new Past(_dir);
        await past.RecordAsync((1, "up", At(0)));
        past.TurnDay();
        await past.RecordAsync((1, "down", At(50)));
        _ = Ask(past.Open(At(100)), Subject.Report);
        var file = LogFile.Find(_dir)[0];
        Assert.False(FileIndex.IsWrong(file));
        var index = File.ReadAllBytes(file.IndexPath);
        index[60]++;
        File.WriteAllBytes(file.IndexPath, index);
        Assert.True(FileIndex.IsWrong(file));
        File.SetLastWriteTimeUtc(file.Path, DateTime.UtcNow);
        Assert.False(FileIndex.IsWrong(file));
    }
}
