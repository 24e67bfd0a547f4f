using System.Globalization;
using System.Text;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>One line an event, whatever strangers put into the values.</summary>
public sealed class LogTests
{
    private readonly ManualClock _clock = new(new DateTime(2026, 11, 22, 11, 34, 34, 489, DateTimeKind.Utc));
    private readonly StringWriter _output = new() { NewLine = "\n" };

    private Log Text(LogLevel least = LogLevel.Trace) => new(least, json: false, _output, _clock);

    private Log Json(LogLevel least = LogLevel.Trace) => new(least, json: true, _output, _clock);

    private string[] Lines => _output.ToString().Split('\n', StringSplitOptions.RemoveEmptyEntries);

    [Fact]
    public void TextLineHasTimeLevelMessageAndFields()
    {
        Text().Info("SeS listens", ("port", 8888), ("share", 0.5), ("path", "alerts"), ("none", null));
        Assert.Equal("2026-11-22T11:34:34.489Z INFO  SeS listens port=8888 share=0.5 path=alerts none=\"\"\n",
            _output.ToString());
    }

    [Theory]
    [InlineData("a\u001b[2Jb", "a\\u001B[2Jb")]
    [InlineData("a\u009bb", "a\\u009Bb")]
    [InlineData("a\u202eb", "a\\u202Eb")]
    public void TerminalObeysNothingInAMessageOrAValue(string text, string written)
    {
        Text().Warn(text, ("value", text));
        Assert.EndsWith($"WARN  {written} value=\"{written}\"", Assert.Single(Lines), Ordinal);
    }

    /// <summary>As people write: nothing is escaped but what must be.</summary>
    [Fact]
    public void TextStaysReadable()
    {
        Text().Warn("it's <so>", ("why", "Köln's \"+\" & more"), ("name", "Müller's"));
        Json().Warn("it's <so>", ("why", "Köln's \u202e\u001b & more"));
        Assert.EndsWith("it's <so> why=\"Köln's \\\"+\\\" & more\" name=Müller's", Lines[0], Ordinal);
        Assert.EndsWith("\"msg\":\"it's <so>\",\"why\":\"Köln's \\u202E\\u001B & more\"}", Lines[1], Ordinal);
    }

    /// <summary>sd-daemon(3); the journal has the time already.</summary>
    [Theory]
    [InlineData("Error", "<3>ERROR it port=1")]
    [InlineData("Warn", "<4>WARN  it port=1")]
    [InlineData("Info", "<6>INFO  it port=1")]
    [InlineData("Debug", "<7>DEBUG it port=1")]
    public void JournalGetsTheLevelAndNoTime(string level, string line)
    {
        var log = new Log(LogLevel.Trace, json: false, _output, _clock, isJournal: true);
        Action<string, (string, object?)[]> write = level switch
        {
            "Error" => log.Error,
            "Warn" => log.Warn,
            "Info" => log.Info,
            _ => log.Debug,
        };
        write("it", [("port", 1)]);
        Assert.Equal(line, Assert.Single(Lines));
        new Log(LogLevel.Trace, json: true, _output, _clock, isJournal: true).Warn("it");
        Assert.Equal("<4>{\"time\":\"2026-11-22T11:34:34.489Z\",\"level\":\"warn\",\"msg\":\"it\"}", Lines[1]);
    }

    [Fact]
    public void JsonLineHasTimeLevelMessageAndFields()
    {
        Json().Error("it \"broke\"\n", ("why", "a\tb"), ("count", 3));
        using var line = JsonDocument.Parse(Assert.Single(Lines));
        Assert.Equal(["time", "level", "msg", "why", "count"],
            line.RootElement.EnumerateObject().Select(p => p.Name));
        Assert.Equal(["2026-11-22T11:34:34.489Z", "error", "it \"broke\"\n", "a\tb", "3"],
            line.RootElement.EnumerateObject().Select(p => p.Value.GetString()));
    }

    /// <summary>A terminal that was stopped, a full pipe.</summary>
    private sealed class StalledWriter : TextWriter
    {
        private readonly List<string> _lines = [];

        public ManualResetEventSlim MayWrite { get; } = new();

        public override Encoding Encoding => Encoding.UTF8;

        public List<string> Lines
        {
            get
            {
                lock (_lines)
                    return [.. _lines];
            }
        }

        public override void WriteLine(string? value)
        {
            MayWrite.Wait();
            lock (_lines)
                _lines.Add(value!);
        }
    }

    [Fact]
    public async Task LogThatNobodyReadsHoldsUpNobody()
    {
        using var stalled = new StalledWriter();
        await using (var queue = new QueuedWriter(stalled))
        {
            var log = new Log(LogLevel.Trace, json: false, queue, _clock);
            for (var i = 0; i < 10_500; i++)
                log.Info($"line {i}");
            Assert.Empty(stalled.Lines);
            stalled.MayWrite.Set();
            Assert.True(SpinWait.SpinUntil(() => stalled.Lines.Count >= 10_000, TimeSpan.FromSeconds(30)));
            log.Info("the last line");
        }
        var lines = stalled.Lines;
        Assert.Matches("INFO  log lines were dropped because nobody read them lines=(499|500)$", lines[^2]);
        Assert.EndsWith("the last line", lines[^1], Ordinal);
        Assert.InRange(lines.Count, 10_002, 10_003);
    }

    /// <summary>A file at the limit of its size (EFBIG), a closed descriptor, a pipe without a reader.</summary>
    private sealed class RefusingWriter(Exception refusal) : TextWriter
    {
        public override Encoding Encoding => Encoding.UTF8;

        public override void WriteLine(string? value) => throw refusal;
    }

    public static readonly TheoryData<Exception> Refusals = new()
    {
        new IOException("EPIPE"), new UnauthorizedAccessException("EBADF"), new ArgumentOutOfRangeException("EFBIG"),
    };

    [Theory]
    [MemberData(nameof(Refusals))]
    public async Task LogThatTakesNothingEndsNothing(Exception refusal)
    {
        var queue = new QueuedWriter(new RefusingWriter(refusal));
        var log = new Log(LogLevel.Trace, json: false, queue, _clock);
        log.Info("first");
        log.Info("second");
        await queue.DisposeAsync();
        log.Info("too late");
    }

    [Fact]
    public async Task EndDoesNotWaitForALogThatNobodyReads()
    {
        var stalled = new StalledWriter();
        var queue = new QueuedWriter(stalled);
        new Log(LogLevel.Trace, json: false, queue, _clock).Info("nobody reads this");
        await queue.DisposeAsync().AsTask().WaitAsync(TimeSpan.FromSeconds(30));
        stalled.MayWrite.Set();
    }

    [Theory]
    [InlineData("two\nlines")]
    [InlineData("a\"b")]
    [InlineData("carriage\rreturn")]
    [InlineData("a\" level=\"PANIC")]
    [InlineData("\u001b[31mred")]
    [InlineData("nul\0del\u007f")]
    [InlineData("next\u0085line \u2028 \u2029")]
    [InlineData("right\u202eto left")]
    [InlineData("back\\slash \"quote\"")]
    public void ControlCharactersAndQuotesInAValueAreEscaped(string value)
    {
        Text().Warn("m", ("key", value));
        var text = Assert.Single(Lines);
        Assert.All(text, c => Assert.InRange(c, ' ', '~'));
        var quoted = text[(text.IndexOf("key=", Ordinal) + 4)..];
        Assert.Equal(value, JsonSerializer.Deserialize<string>(quoted));

        _output.GetStringBuilder().Clear();
        Json().Warn("m", ("key", value));
        var json = Assert.Single(Lines);
        Assert.All(json, c => Assert.InRange(c, ' ', '~'));
        using var line = JsonDocument.Parse(json);
        Assert.Equal(value, line.RootElement.GetProperty("key").GetString());
    }

    [Fact]
    public void ControlCharactersInAMessageAreEscaped()
    {
        // The name of an unknown variable is part of a warning.
        Text().Warn("OXSES_A\n2026-11-22T11:34:34.489Z PANIC all is lost");
        Assert.Single(Lines);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void HalfACharacterDoesNotStopTheLog(bool json)
    {
        (json ? Json() : Text()).Warn("m", ("key", "a\ud800b"));
        Assert.Single(Lines);
    }

    [Theory]
    [InlineData(LogLevel.Panic, "")]
    [InlineData(LogLevel.Fatal, "")]
    [InlineData(LogLevel.Error, "ERROR")]
    [InlineData(LogLevel.Warn, "ERROR WARN")]
    [InlineData(LogLevel.Info, "ERROR WARN INFO")]
    [InlineData(LogLevel.Debug, "ERROR WARN INFO DEBUG")]
    [InlineData(LogLevel.Trace, "ERROR WARN INFO DEBUG")]
    internal void LinesBelowTheLeastLevelAreNotWritten(LogLevel least, string written)
    {
        var log = Text(least);
        log.Error("m");
        log.Warn("m");
        log.Info("m");
        log.Debug("m");
        Assert.Equal(written.Split(' ', StringSplitOptions.RemoveEmptyEntries),
            Lines.Select(l => l.Split(' ')[1]));
    }

    [Fact]
    public void OftenLetsOneLineOfAKindPassEachTenSecondsAndCountsThoseHeldBack()
    {
        var log = Text();
        for (var i = 0; i < 5; i++)
            log.WarnRateLimited("refused", ("n", i));
        log.WarnRateLimited("another kind");
        Assert.Equal(["refused n=0", "another kind"], Lines.Select(l => l[31..]));

        _clock.Advance(TimeSpan.FromSeconds(9.99));
        log.WarnRateLimited("refused", ("n", 5));
        Assert.Equal(2, Lines.Length);

        _clock.Advance(TimeSpan.FromSeconds(0.01));
        log.WarnRateLimited("refused", ("n", 6));
        log.WarnRateLimited("refused", ("n", 7));
        Assert.Equal("refused n=6 held_back=5", Lines[^1][31..]);

        _clock.Advance(TimeSpan.FromHours(1));
        log.WarnRateLimited("refused", ("n", 8));
        Assert.Equal("refused n=8 held_back=1", Lines[^1][31..]);
        log.WarnRateLimited("another kind");
        Assert.Equal("another kind", Lines[^1][31..]);
    }

    [Fact]
    public void FieldsAreWrittenAlikeInEveryCulture()
    {
        var before = CultureInfo.CurrentCulture;
        CultureInfo.CurrentCulture = new CultureInfo("") { NumberFormat = { NumberDecimalSeparator = "," } };
        try
        {
            Text().Info("m", ("share", 1.5));
        }
        finally
        {
            CultureInfo.CurrentCulture = before;
        }
        Assert.EndsWith("share=1.5", Assert.Single(Lines), Ordinal);
    }

    [Fact]
    public void LogThatNobodyReadsDoesNotStopTheService() =>
        new Log(LogLevel.Trace, json: false, new BrokenPipe(), _clock).Info("m");

    [Fact]
    public void ClockThatIsSetIsLoggedOnceWithByHowMuch()
    {
        var watch = new ClockWatch(_clock, Text());
        Step(passed: 10, set: 0);
        Step(passed: 10, set: 9.9);
        Assert.Empty(Lines);
        Step(passed: 10, set: 0.2);
        Assert.EndsWith("WARN  the clock was set forward, or the host slept seconds=10", Assert.Single(Lines), Ordinal);
        Step(passed: 10, set: 0);
        Assert.Single(Lines);
        Step(passed: 10, set: -3600);
        Assert.EndsWith("WARN  the clock was set back seconds=3600", Lines[^1], Ordinal);
        Step(passed: 10, set: 0);
        Assert.Equal(2, Lines.Length);

        void Step(double passed, double set)
        {
            _clock.Advance(TimeSpan.FromSeconds(passed));
            _clock.UtcNow = _clock.UtcNow.AddSeconds(set);
            watch.Check();
        }
    }

    private sealed class BrokenPipe : StringWriter
    {
        public override void WriteLine(string? value) => throw new IOException("Broken pipe");
    }
}
