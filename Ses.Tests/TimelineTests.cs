using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text.Json;
using System.Text.RegularExpressions;
using CsCheck;
using Ses.Tests.Support;
using Xunit;
using Xunit.Abstractions;

namespace Ses.Tests;

/// <summary>From observations to history: worked examples of each rule, a slow reference, any order.</summary>
public sealed partial class TimelineTests(ITestOutputHelper output)
{
    private static readonly DateTime Day = new(2026, 11, 26, 0, 0, 0, DateTimeKind.Utc);

    private static readonly TimelineRules Rules = new(TimeSpan.FromMinutes(15));

    // ---- Histories ----

    /// <summary>
    /// The observations of one service. An alert is a letter: A to M stock alerts, N to Z those of Prometheus,
    /// small ones of the dialect; times are those of one day.
    /// </summary>
    private sealed partial class Facts
    {
        private readonly List<Observation> _observations = [];

        public IReadOnlyList<Observation> All =>
            [.. _observations.OrderBy(o => (o.Alert, o.Starts, o.Received, o.Kind)).ThenBy(o => o.Id)];

        public static AlertTraits TraitsOf(long alert) => new(char.IsLower((char)alert),
            char.ToUpperInvariant((char)alert) >= 'N' ? AlertSource.Prometheus : AlertSource.Webhook);

        public Observation[] Of(long alert) => [.. All.Where(o => o.Alert == alert)];

        /// <summary>What a copy brings; it is kept if that is anything.</summary>
        public ObservationKind? Take(long alert, AlertCopy copy)
        {
            var kind = Episodes.Decide(Of(alert), copy, TraitsOf(alert));
            if (kind is { } brings)
                Add(alert, brings, copy);
            return kind;
        }

        public void Add(long alert, ObservationKind kind, AlertCopy copy) => _observations.Add(new(
            _observations.Count + 1, alert, kind, copy.Starts, copy.Ends, copy.Status, copy.Received));

        /// <summary>
        /// Takes lines such as <c>A 10:00 down @10:01</c>, <c>A 10:00 down ends 10:10 @10:11</c>; <c>lost</c>
        /// instead of <c>ends</c> is Grafana's uncertain end, <c>lapse</c> a giving up, which is not decided on.
        /// </summary>
        public Facts Take(params string[] lines)
        {
            foreach (var line in lines)
                TakeLine(line);
            return this;
        }

        public ObservationKind? TakeLine(string line)
        {
            var match = Line().Match(line);
            Assert.True(match.Success, line);
            var (alert, how) = (line[0], match.Groups["how"].Value);
            DateTime? ends = match.Groups["ends"].Success ? Time(match.Groups["ends"].Value) : null;
            var copy = new AlertCopy(Time(match.Groups["starts"].Value), ends,
                StatusOf(match.Groups["status"].Value), Time(match.Groups["received"].Value), how == "lost");
            if (how != "lapse")
                return Take(alert, copy);
            Add(alert, ObservationKind.Lapse, copy);
            return ObservationKind.Lapse;
        }

        [GeneratedRegex(@"^\w (?<starts>\S+) (?<status>\w+)( (?<how>ends|lost|lapse) (?<ends>\S+))? @(?<received>\S+)$")]
        private static partial Regex Line();
    }

    private static Status StatusOf(string name) =>
        Enum.TryParse<Status>(name, ignoreCase: true, out var status) ? status : (Status)(name[^1] - '0');

    private static DateTime Time(string time) =>
        Day + TimeSpan.Parse(time, CultureInfo.InvariantCulture);

    /// <summary>The time of day, with the day's number before it if it is another.</summary>
    private static string Tell(DateTime time) =>
        (time.Date == Day ? "" : $"{(time.Date - Day).Days}.") + time.ToString(
            time.Millisecond != 0 ? "HH:mm:ss.fff" : time.Second != 0 ? "HH:mm:ss" : "HH:mm",
            CultureInfo.InvariantCulture);

    private static string Tell(Status status) => status <= Status.Unknown
        ? status.ToString().ToLowerInvariant() : $"{(int)status}";

    private static (List<Run> Runs, DateTime? Due) Derive(IReadOnlyList<Observation> facts, DateTime now,
        DateTime? knownFrom = null, DateTime? oldest = null, TimelineRules? rules = null)
    {
        var runs = new List<Run>();
        var due = Timeline.Derive(
            [.. facts], Facts.TraitsOf, knownFrom, oldest, now, rules ?? Rules, runs);
        return (runs, due);
    }

    /// <summary>Runs as text: when, the status, and ! if it is open.</summary>
    private static string Tell(IEnumerable<Run> runs) =>
        string.Join(", ", runs.Select(r => $"{Tell(r.From)} {Tell(r.Status)}{(r.Open ? "!" : "")}"));

    private static string HistoryOf(Facts facts, string now = "23:00", string? knownFrom = null, string? oldest = null) =>
        Tell(Derive(facts.All, Time(now), knownFrom == null ? null : Time(knownFrom),
            oldest == null ? null : Time(oldest)).Runs);

    private static string? DueOf(Facts facts, string now, string? knownFrom = null) =>
        Derive(facts.All, Time(now), knownFrom == null ? null : Time(knownFrom)).Due is { } due ? Tell(due) : null;

    private static string OnixOf(Facts facts, string now = "23:00", string? knownFrom = null)
    {
        var changes = new List<StatusChange>();
        Timeline.ForOnix(CollectionsMarshal.AsSpan(
            Derive(facts.All, Time(now), knownFrom == null ? null : Time(knownFrom)).Runs), changes);
        return string.Join(", ", changes.Select(c => $"{Tell(c.Time)} {Tell(c.Status)}"));
    }

    // ---- What an alert says (2) ----

    [Fact]
    public void OpenEpisodeHasAnotherStatusFromTheCopyOnThatSaysIt()
    {
        var facts = new Facts().Take("A 10:00 down @10:01");
        Assert.Null(facts.TakeLine("A 10:00 down @10:30"));
        Assert.Equal(ObservationKind.Again, facts.TakeLine("A 10:00 degraded @11:00"));
        Assert.Null(facts.TakeLine("A 10:00 degraded @11:30"));
        Assert.Equal("10:00 down!, 11:00 degraded!", HistoryOf(facts));
        facts.Take("A 10:00 down ends 12:00 @12:01");
        Assert.Equal("10:00 down!, 11:00 degraded!, 12:00 up", HistoryOf(facts));
    }

    [Fact]
    public void EndBeforeTheNewStatusWasHeardLeavesNothingOfIt() =>
        Assert.Equal("10:00 down!, 10:30 up", HistoryOf(new Facts().Take(
            "A 10:00 down @10:01", "A 10:00 degraded @11:00", "A 10:00 down ends 10:30 @11:01")));

    // ---- Episodes (3.1) ----

    [Fact]
    public void EndEndsNoOtherAlert() => Assert.Equal("12:40 down!, 12:45:48 degraded!", HistoryOf(new Facts().Take(
        "A 12:40 down @12:40:10", "B 12:45:38 degraded @12:45:48", "A 12:40 down ends 12:45:48 @12:45:58")));

    [Fact]
    public void NewerEpisodeEndsAnOlderOneUntilItsEndIsStated()
    {
        var facts = new Facts().Take("A 10:00 down @10:01", "A 10:20 degraded @10:21");
        Assert.Equal("10:00 down!, 10:20 degraded!", HistoryOf(facts));
        facts.Take("A 10:00 down ends 10:05 @10:22");
        Assert.Equal("10:00 down!, 10:05 up, 10:20 degraded!", HistoryOf(facts));
        facts.Take("A 10:00 down ends 10:25 @10:23");
        Assert.Equal("10:00 down!, 10:25 degraded!", HistoryOf(facts));
    }

    [Fact]
    public void OlderEpisodeOfPrometheusLapsesAtItsLastCopy()
    {
        var facts = new Facts().Take("N 10:00 down @10:01", "N 10:20 down @10:20:01");
        Assert.Equal("10:00 down!", HistoryOf(facts));
        facts.Take("N 10:00 down lapse 10:15 @10:20:01");
        Assert.Equal("10:00 down!, 10:15 unknown, 10:20 down!", HistoryOf(facts));
    }

    [Fact]
    public void OfSeveralEndsTheGreatestHoldsWhicheverCameFirst()
    {
        var facts = new Facts().Take("A 10:00 down @10:01", "A 10:00 down ends 10:10 @10:11");
        Assert.Null(facts.TakeLine("A 10:00 down ends 10:05 @10:11:01"));
        Assert.Null(facts.TakeLine("A 10:00 down ends 10:10 @10:11:02"));
        Assert.Equal("10:00 down!, 10:10 up", HistoryOf(facts));
        Assert.Equal(ObservationKind.End, facts.TakeLine("A 10:00 down ends 10:12 @10:12"));
        Assert.Equal("10:00 down!, 10:12 up", HistoryOf(facts));
    }

    [Fact]
    public void AfterAFireAgainOnlyEndsStatedSinceCount()
    {
        var facts = new Facts().Take("A 10:00 down ends 10:20 @10:21", "A 10:00 down @10:25");
        Assert.Equal("10:00 down!", HistoryOf(facts));
        Assert.Equal(ObservationKind.End, facts.TakeLine("A 10:00 down ends 10:15 @10:30"));
        Assert.Equal("10:00 down!, 10:15 up", HistoryOf(facts));
        Assert.Equal(ObservationKind.End, facts.TakeLine("A 10:00 down ends 10:20 @10:31"));
        Assert.Equal("10:00 down!, 10:20 up", HistoryOf(facts));
    }

    [Fact]
    public void FiringCopyOfAnOlderEpisodeIsIgnoredIfThatHasEnded()
    {
        var facts = new Facts().Take("A 10:00 down ends 10:10 @10:11", "A 10:30 down @10:31");
        Assert.Null(facts.TakeLine("A 10:00 down @10:40"));
        facts.Take("A 10:30 down ends 10:35 @10:41");
        Assert.Null(facts.TakeLine("A 10:00 down @10:50"));
        Assert.Equal("10:00 down!, 10:10 up, 10:30 down!, 10:35 up", HistoryOf(facts));
    }

    [Fact]
    public void FiringCopyOfAnOlderEpisodeOpensItIfTheNewestHasLapsed()
    {
        var facts = new Facts().Take("A 10:00 down ends 10:10 @10:11", "A 10:30 down @10:31",
            "A 10:30 down lapse 10:40 @12:40");
        Assert.Equal(ObservationKind.Again, facts.TakeLine("A 10:00 down @12:50"));
        Assert.Null(facts.TakeLine("A 10:00 down @12:51"));
        Assert.Equal(Time("10:00"), Episodes.Open(facts.Of('A'), Facts.TraitsOf('A')));
        Assert.Equal("10:00 down!", HistoryOf(facts));
        // The newest is taken back, and ends the older one again.
        Assert.Equal(ObservationKind.Again, facts.TakeLine("A 10:30 down @12:55"));
        Assert.Equal(Time("10:30"), Episodes.Open(facts.Of('A'), Facts.TraitsOf('A')));
        Assert.Null(facts.TakeLine("A 10:00 down @12:56"));
        facts.Take("A 10:30 down ends 13:00 @13:01");
        Assert.Equal("10:00 down!, 13:00 up", HistoryOf(facts));
    }

    [Fact]
    public void OlderEpisodeNeverHeardBeforeIsTakenAndEndsWhereTheNextBegins()
    {
        var facts = new Facts().Take("A 10:00 degraded ends 10:10 @10:11");
        Assert.Equal(ObservationKind.Start, facts.TakeLine("A 09:00 down @10:30"));
        Assert.Null(facts.TakeLine("A 09:00 down @10:31"));
        Assert.Equal("09:00 down!, 10:00 degraded!, 10:10 up", HistoryOf(facts));
    }

    // ---- From Alertmanager, from Prometheus (3.2, 3.3) ----

    [Theory]
    [InlineData("10:11:00.001", false)]
    [InlineData("10:11:20", false)]
    [InlineData("10:11:20.001", true)]
    public void FiringCopyIsLateWithin20SecondsOfTheEnd(string received, bool opens)
    {
        var facts = new Facts().Take("A 10:00 down @10:01", "A 10:00 down ends 10:10 @10:11",
            "A 10:00 down ends 10:10 @10:11:15");
        Assert.Equal(opens ? ObservationKind.Again : null, facts.TakeLine($"A 10:00 down @{received}"));
        Assert.Equal(opens ? "10:00 down!" : "10:00 down!, 10:10 up", HistoryOf(facts));
    }

    [Fact]
    public void LaterEndCountsItsOwn20Seconds()
    {
        var facts = new Facts().Take("A 10:00 down ends 10:10 @10:11", "A 10:00 down ends 10:11 @10:11:15");
        Assert.Null(facts.TakeLine("A 10:00 down @10:11:35"));
        facts.Take("A 10:00 down @10:11:36", "A 10:00 down ends 10:11 @10:12");
        Assert.Null(facts.TakeLine("A 10:00 down @10:12:20"));
        Assert.Equal("10:00 down!, 10:11 up", HistoryOf(facts));
    }

    [Fact]
    public void PrometheusIsNeverLate()
    {
        var facts = new Facts().Take("N 10:00 down ends 10:10 @10:10:00");
        Assert.Equal("10:00 down!, 10:10 up", HistoryOf(facts));
        Assert.Equal(ObservationKind.Again, facts.TakeLine("N 10:00 down @10:10:01"));
        Assert.Equal("10:00 down!", HistoryOf(facts));
        Assert.Equal(ObservationKind.End, facts.TakeLine("N 10:00 down ends 10:09 @10:10:02"));
        Assert.Equal("10:00 down!, 10:09 up", HistoryOf(facts));
    }

    [Fact]
    public void EpisodeFirstHeardAsResolvedIsWhole()
    {
        var facts = new Facts();
        Assert.Equal(ObservationKind.End, facts.TakeLine("A 10:00 down ends 10:10 @10:11"));
        Assert.Equal("10:00 down!, 10:10 up", HistoryOf(facts));
    }

    [Theory]
    [InlineData("10:00")]
    [InlineData("09:55")]
    public void EndNotAfterTheStartLeavesTheStartAlone(string ends) => Assert.Equal("09:00 up, 10:00 up",
        HistoryOf(new Facts().Take($"A 10:00 down ends {ends} @10:11"), knownFrom: "09:00"));

    // ---- Uncertain ends (3.4, 3.5) ----

    [Fact]
    public void ServiceIsUnknownFromAnUncertainEndUntilThePauseAfterTheGivingUp()
    {
        var facts = new Facts().Take("N 10:00 down @10:01", "N 10:00 down lapse 10:20 @10:24");
        Assert.Equal("10:00 down!, 10:20 unknown", HistoryOf(facts, "10:30"));
        Assert.Equal("10:39", DueOf(facts, "10:30"));
        Assert.Equal("10:00 down!, 10:20 unknown", HistoryOf(facts, "10:38:59.999"));
        Assert.Equal("10:00 down!, 10:20 unknown, 10:39 up", HistoryOf(facts, "10:39"));
        Assert.Null(DueOf(facts, "10:39"));
    }

    [Fact]
    public void DialectServiceStaysUnknownUntilItsNextEpisode()
    {
        var facts = new Facts().Take("a 10:00 down @10:01", "a 10:00 down lapse 10:20 @12:24");
        Assert.Equal("10:00 down!, 10:20 unknown", HistoryOf(facts));
        Assert.Null(DueOf(facts, "12:30"));
        Assert.Equal("10:00 down!, 10:20 unknown, 15:00 up!", HistoryOf(facts.Take("b 15:00 up @15:01")));
    }

    [Theory]
    [InlineData("B 10:30 degraded @10:31", "10:30 degraded!")]
    [InlineData("B 09:00 degraded ends 10:30 @10:31", "10:30 up")]
    [InlineData("B 10:20 degraded @10:31", "10:20 degraded!")]
    public void UnknownEndsWithTheNextMomentThatIsStated(string next, string then)
    {
        var history = HistoryOf(new Facts().Take("A 10:00 down @10:01", "A 10:00 down lapse 10:20 @12:00", next));
        Assert.EndsWith((then[..5] == "10:20" ? "10:00 down!, " : "10:00 down!, 10:20 unknown, ") + then, history,
            StringComparison.Ordinal);
    }

    [Fact]
    public void CopyThatOpensAnotherEpisodeAgainEndsUnknown()
    {
        var facts = new Facts().Take("A 10:00 down @10:01", "B 09:00 degraded ends 09:30 @09:31",
            "A 10:00 down lapse 10:20 @12:00", "B 09:00 degraded @10:30");
        Assert.Equal("09:00 degraded!, 10:00 down!, 10:20 unknown, 10:30 degraded!", HistoryOf(facts));
    }

    [Fact]
    public void FiringCopyTakesAnUncertainEndBack()
    {
        var facts = new Facts().Take("A 10:00 down @10:01", "A 10:00 down lapse 10:20 @12:00");
        Assert.Equal(ObservationKind.Again, facts.TakeLine("A 10:00 down @12:00:05"));
        Assert.Equal("10:00 down!", HistoryOf(facts));
    }

    [Fact]
    public void StatedEndReplacesAnUncertainOne()
    {
        var facts = new Facts().Take("A 10:00 down @10:01", "A 10:00 down lapse 10:20 @12:00");
        Assert.Equal(ObservationKind.End, facts.TakeLine("A 10:00 down ends 10:15 @12:01"));
        Assert.Equal("10:00 down!, 10:15 up", HistoryOf(facts));
    }

    [Fact]
    public void UnknownCoversWhatIsBetterAndNotWhatIsAsBad()
    {
        var facts = new Facts().Take(
            "A 10:00 down @10:01", "B 10:05 degraded @10:06", "A 10:00 down lapse 10:20 @10:24");
        Assert.Equal("10:00 down!, 10:20 unknown, 10:39 degraded!", HistoryOf(facts));
        facts.Take("C 10:10 down @10:11");
        Assert.Equal("10:00 down!", HistoryOf(facts));
    }

    [Fact]
    public void GrafanasLostSeriesIsAnUncertainEnd()
    {
        var facts = new Facts().Take("A 10:00 down @10:01");
        Assert.Equal(ObservationKind.Lapse, facts.TakeLine("A 10:00 down lost 10:20 @10:21"));
        Assert.Null(facts.TakeLine("A 10:00 down lost 10:20 @10:22"));
        Assert.Equal("10:00 down!, 10:20 unknown, 10:36 up", HistoryOf(facts));
        facts.Take("A 10:00 down ends 10:20 @10:23");
        Assert.Null(facts.TakeLine("A 10:00 down lost 10:25 @10:30"));
        Assert.Equal("10:00 down!, 10:20 up", HistoryOf(facts));
    }

    [Fact]
    public void WhatANewerEpisodeEndedIsNotGivenUpLater() => Assert.Equal("10:00 down!", HistoryOf(new Facts().Take(
        "A 10:00 down @10:01", "A 10:20 down @10:21", "A 10:00 down lapse 10:05 @12:00")));

    [Fact]
    public void WhatADialectPairEndedIsNotGivenUpLater()
    {
        string[] copies = ["a 10:00 down @10:01", "b 10:20 up @10:21", "a 10:00 down lapse 10:05 @12:00"];
        Assert.Equal("10:00 down!, 10:20 up!", HistoryOf(new Facts().Take(copies)));
        // Given up before the other was heard of, it stays so.
        copies[1] = "b 10:20 up @12:01";
        Assert.Equal("10:00 down!, 10:05 unknown, 10:20 up!", HistoryOf(new Facts().Take(copies)));
    }

    // ---- The timeline (4) ----

    [Fact]
    public void WorstOfTheOpenIsTheStatusAndOfOthersTheLatestStart()
    {
        var facts = new Facts().Take("A 10:00 degraded @10:01", "B 10:10 other4 @10:11",
            "C 10:20 down ends 10:30 @10:31", "B 10:10 other4 ends 10:40 @10:41", "D 10:05 up @10:42");
        Assert.Equal("10:00 degraded!, 10:10 4!, 10:20 down!, 10:30 4!, 10:40 degraded!", HistoryOf(facts));
        facts.Take("A 10:00 degraded ends 11:00 @11:01", "D 10:05 up ends 11:10 @11:11");
        Assert.EndsWith("11:00 up!, 11:10 up", HistoryOf(facts), StringComparison.Ordinal);
    }

    /// <summary>What begins and ends at once is said later than what ends then.</summary>
    [Fact]
    public void InTheDialectAStatusOfNoLengthIsKept()
    {
        var facts = new Facts().Take("b 10:00 down @10:01", "a 10:10 up ends 10:10 @10:11");
        Assert.Equal("10:00 down!, 10:10 up", HistoryOf(facts, "10:12"));
        facts.Take("b 10:20 down @10:21");
        Assert.Equal("10:00 down!, 10:10 up, 10:20 down!", HistoryOf(facts, "10:22"));
    }

    [Fact]
    public void InTheDialectUpAndDownCloseEachOther()
    {
        var facts = new Facts().Take("a 10:00 up @10:01", "b 11:00 down @11:01", "c 10:30 degraded @10:31");
        Assert.Equal("10:00 up!, 10:30 degraded!, 11:00 down!", HistoryOf(facts));
        facts.Take("a 12:00 up @12:01");
        Assert.Equal("10:00 up!, 10:30 degraded!, 11:00 down!, 12:00 degraded!", HistoryOf(facts));
        facts.Take("c 10:30 degraded ends 12:30 @12:31");
        Assert.EndsWith("12:30 up!", HistoryOf(facts), StringComparison.Ordinal);
    }

    [Fact]
    public void StartsAtOneTimeCloseNothing() => Assert.Equal("10:00 down!, 10:10 up!", HistoryOf(new Facts().Take(
        "a 10:00 up @10:01", "b 10:00 down @10:01", "b 10:00 down ends 10:10 @10:11")));

    [Fact]
    public void StockAlertsDoNotCloseEachOther() => Assert.Equal("10:00 up!, 10:30 down!, 10:40 up!",
        HistoryOf(new Facts().Take("A 10:00 up @10:01", "B 10:30 down ends 10:40 @10:41")));

    [Theory]
    [InlineData("08:00", null, "08:00 up, 10:00 down!, 10:10 up")]
    [InlineData("11:00", null, "10:00 down!, 10:10 up")]
    [InlineData(null, null, "10:00 down!, 10:10 up")]
    [InlineData("08:00", "09:00", "09:00 up, 10:00 down!, 10:10 up")]
    [InlineData("08:00", "10:05", "10:00 down!, 10:10 up")]
    [InlineData("08:00", "10:30", "10:00 down!, 10:10 unknown, 10:30 up")]
    public void StockServiceIsUpFromTheFirstReceiptOrItsFirstEpisodeButNotBeforeTheOldest(
        string? knownFrom, string? oldest, string history) => Assert.Equal(history,
            HistoryOf(new Facts().Take("A 10:00 down ends 10:10 @10:11"), "23:00", knownFrom, oldest));

    [Fact]
    public void DialectServiceKeepsItsStatusForThePause()
    {
        var facts = new Facts().Take("a 10:00 down ends 10:10 @10:11");
        Assert.Equal("10:00 down!, 10:10 down", HistoryOf(facts, "10:24:59.999", "08:00"));
        Assert.Equal("10:25", DueOf(facts, "10:12"));
        Assert.Equal("10:00 down!, 10:10 unknown", HistoryOf(facts, "10:25"));
        facts.Take("b 10:25 up ends 11:00 @10:26");
        Assert.Equal("10:00 down!, 10:10 down, 10:25 up!", HistoryOf(facts, "10:50"));
        facts.Take("a 11:15:00.001 down @11:16");
        Assert.Equal("10:00 down!, 10:10 down, 10:25 up!, 11:00 unknown, 11:15:00.001 down!", HistoryOf(facts));
    }

    [Fact]
    public void WhatIsAheadOfTheClockIsNotYet()
    {
        var facts = new Facts().Take("A 10:00 down ends 10:10 @09:00");
        Assert.Equal("08:00 up", HistoryOf(facts, "09:59", "08:00"));
        Assert.Equal("10:00", DueOf(facts, "09:59", "08:00"));
        Assert.Equal("08:00 up, 10:00 down!", HistoryOf(facts, "10:00", "08:00"));
        Assert.Equal("10:10", DueOf(facts, "10:00", "08:00"));
        Assert.Equal("", HistoryOf(facts, "07:00", "08:00"));
        Assert.Equal("08:00", DueOf(facts, "07:00", "08:00"));
        Assert.Equal("10:00", DueOf(facts, "09:00"));
    }

    [Fact]
    public void ServiceWithoutObservationsHasNoRuns()
    {
        Assert.Equal("", HistoryOf(new Facts(), knownFrom: "08:00"));
        Assert.Null(DueOf(new Facts(), "10:00", "08:00"));
    }

    [Fact]
    public void RunNamesTheObservationThatMadeItSo()
    {
        var facts = new Facts().Take("A 10:00 down @10:01", "B 09:00 degraded @10:02",
            "A 10:00 down ends 10:10 @10:11", "B 09:00 down @10:30", "B 09:00 down lapse 10:40 @11:00");
        Assert.Equal([(Status.Up, 0), (Status.Degraded, 2), (Status.Down, 1), (Status.Degraded, 2),
                (Status.Down, 4), (Status.Unknown, 5), (Status.Up, 5)],
            Derive(facts.All, Time("23:00"), Time("08:00")).Runs.Select(r => (r.Status, r.Observation)));
    }

    // ---- As Onix is told (4) ----

    [Fact]
    public void OnixIsToldFromTheFirstEpisodeOn()
    {
        var facts = new Facts().Take("A 10:00 down ends 10:10 @10:11");
        Assert.Equal("10:00 down, 10:10 up", OnixOf(facts, knownFrom: "08:00"));
        Assert.Equal("", OnixOf(facts, "09:00", "08:00"));
        Assert.Equal("10:00 up", OnixOf(new Facts().Take("A 10:00 down ends 10:00 @10:11"), knownFrom: "08:00"));
    }

    [Fact]
    public void OnixIsNotToldThatNothingIsKnown()
    {
        var facts = new Facts().Take("a 10:00 down ends 10:10 @10:11", "a 11:00 down @11:01");
        Assert.Equal("10:00 down!, 10:10 unknown, 11:00 down!", HistoryOf(facts));
        Assert.Equal("10:00 down", OnixOf(facts));
        facts.Take("a 11:00 down lapse 11:30 @13:00", "b 14:00 up @14:01");
        Assert.Equal("10:00 down, 14:00 up", OnixOf(facts));
    }

    // ---- Cases ----

    [Fact]
    public void InstanceThatIsDownAgainWithItsOldStartIsDownAllTheTime()
    {
        // Alertmanager timed it out while Prometheus was away for 22 s.
        const string firing = "A 10:35:42 down", resolved = "A 10:35:42 down ends 10:55:32";
        var facts = new Facts().Take($"{firing} @10:36:12", $"{resolved} @10:55:42");
        Assert.Equal("10:35:42 down!, 10:55:32 up", HistoryOf(facts));
        Assert.Null(facts.TakeLine($"{firing} @10:56:02"));
        Assert.Equal(ObservationKind.Again, facts.TakeLine($"{firing} @10:56:12"));
        Assert.Equal("10:35:42 down!", HistoryOf(facts));
        Assert.Equal(ObservationKind.End, facts.TakeLine($"{resolved} @10:56:20"));
        Assert.Equal("10:35:42 down!, 10:55:32 up", HistoryOf(facts));
    }

    [Fact]
    public void FirstOutagesBeginBeforeAnythingWasReceived()
    {
        // One payload, received on 26 November at 11:00: h1 was down a day before, h2 is since 10:55.
        Assert.Equal("-1.10:00 down!, -1.10:10 up",
            HistoryOf(new Facts().Take("A -14:00 down ends -13:50 @11:00"), knownFrom: "11:00"));
        Assert.Equal("10:55 down!", HistoryOf(new Facts().Take("A 10:55 down @11:00"), knownFrom: "11:00"));
    }

    // ---- Against the reference ----

    private static readonly Status[] Statuses = [Status.Up, Status.Degraded, Status.Down, (Status)4, Status.Unknown];

    private const string Alerts = "ABNabn";

    private sealed record Case((int Alert, AlertCopy Copy)[] Copies, IReadOnlyList<Observation> Facts,
        DateTime Now, DateTime? KnownFrom, DateTime? Oldest, TimelineRules Rules);

    private static DateTime At(int seconds) => Day.AddHours(1).AddSeconds(seconds);

    private static readonly Gen<DateTime> AnyTime = Gen.Int[0, 90].Select(At);

    /// <summary>Mostly what each alert says, sometimes another status.</summary>
    private static Gen<Status> AnyStatus(int alert) => Gen.Frequency(
        (5, Gen.Const(Statuses[(alert + 2) % 3])), (2, Gen.Int[0, 4].Select(i => Statuses[i])));

    /// <summary>Stock alerts, dialect ones, or both.</summary>
    private static readonly Gen<int[]> AlertsOfAService = Gen.OneOf(
        Gen.Int[0, 2].Array[1, 3], Gen.Int[3, 5].Array[1, 3], Gen.Int[0, 5].Array[1, 4]);

    private static Gen<T> OneOf<T>(params T[] values) => Gen.Int[0, values.Length - 1].Select(i => values[i]);

    private static Gen<DateTime?> AnyTimeOrNone => Gen.OneOf(
        Gen.Const(default(DateTime?)), AnyTime.Select(t => (DateTime?)t));

    private static Gen<(int Alert, AlertCopy Copy)> CopyOf(int alert) => Gen.Select(
        Gen.Int[0, 4].Select(i => At(20 * i)), Gen.Bool, AnyTime, AnyStatus(alert), AnyTime, Gen.Int[0, 3],
        (starts, fires, ends, status, received, uncertain) => (alert, new AlertCopy(
            starts, fires ? null : ends, status, received, !fires && uncertain == 0)));

    private static readonly Gen<(int Alert, AlertCopy Copy)[]> AnyCopies =
        AlertsOfAService.SelectMany(alerts => OneOf(alerts).SelectMany(CopyOf).Array[1, 14]);

    private static readonly Gen<Case> AnyCase = Gen.Select(
        AnyCopies, Gen.Int[0, 160].Select(At), AnyTimeOrNone, AnyTimeOrNone, OneOf(0, 1, 7, 15, 30, 60),
        (copies, now, from, oldest, pause) => new Case(
            copies, Raw(copies), now, from, oldest, new(TimeSpan.FromSeconds(pause))));

    /// <summary>Copies as facts, none left out: doubled, late, and of all kinds.</summary>
    private static IReadOnlyList<Observation> Raw(IEnumerable<(int Alert, AlertCopy Copy)> copies)
    {
        var facts = new Facts();
        foreach (var (alert, copy) in copies)
            facts.Add(Alerts[alert], copy.Ends == null ? ObservationKind.Start
                : copy.Uncertain ? ObservationKind.Lapse : ObservationKind.End, copy);
        return facts.All;
    }

    private static (Status, bool)? StatusAt(List<Run> runs, DateTime t) =>
        runs.FindLastIndex(r => r.From <= t) is >= 0 and var i ? (runs[i].Status, runs[i].Open) : null;

    private static string Write(Case c) => string.Join('\n', c.Facts.Select(f => $"{(char)f.Alert} "
            + $"{Tell(f.Starts)} {Tell(f.Status)} {f.Kind} {(f.Ends is { } e ? Tell(e) : "")} @{Tell(f.Received)}"))
        + $"\nnow {Tell(c.Now)} from {c.KnownFrom:T} oldest {c.Oldest:T} pause {c.Rules.Pause.TotalSeconds}";

    private static List<Run> CheckAgainstReference(Case c)
    {
        var runs = Derive(c.Facts, c.Now, c.KnownFrom, c.Oldest, c.Rules).Runs;
        var naive = new NaiveTimeline(
            c.Facts, Facts.TraitsOf, c.KnownFrom, c.Oldest, c.Now, c.Rules.Pause);
        foreach (var t in naive.Moments(c.Facts))
        {
            var (expected, found) = (naive.At(t), StatusAt(runs, t));
            var isSame = found == null ? expected is null or { IsHole: true }
                : expected is { } e && found == (e.Status, e.Open);
            Assert.True(isSame, $"{Write(c)}\nat {Tell(t)}: {expected}, but {found} in {Tell(runs)}");
        }
        return runs;
    }

    private static void CheckShape(List<Run> runs, DateTime now)
    {
        for (var i = 0; i < runs.Count; i++)
        {
            Assert.True(runs[i].From <= now);
            Assert.Equal(i + 1 < runs.Count ? runs[i + 1].From : null, runs[i].To);
            Assert.True(runs[i].To == null || runs[i].To > runs[i].From);
            if (i > 0)
            {
                Assert.NotEqual(0, runs[i].Observation);
                Assert.True(runs[i - 1].Observation == 0
                    || (runs[i - 1].Status, runs[i - 1].Open) != (runs[i].Status, runs[i].Open), Tell(runs));
            }
        }
    }

    [Fact]
    public void RunsAreThoseOfTheReferenceAtEveryMoment() =>
        AnyCase.Sample(
            c => CheckShape(CheckAgainstReference(c), c.Now), iter: 5_000, print: Write);

    // ---- Gaps (5) ----

    private static readonly Gen<(DateTime From, DateTime To, bool IsHeartbeat)[]> AnyGaps = Gen.Select(
        AnyTime, Gen.Int[1, 60], Gen.Bool, Gen.Int[0, 6], (from, length, isHeartbeat, open) =>
            (from, open == 0 ? DateTime.MaxValue : from.AddSeconds(length), isHeartbeat)).Array[1, 3];

    /// <summary>United, as a platform has them.</summary>
    private static Gaps Of((DateTime From, DateTime To, bool IsHeartbeat)[] gaps)
    {
        var all = gaps.Select((g, i) => (Gap: new Gap(g.From, g.To, i + 1), g.IsHeartbeat)).ToList();
        return new(Gaps.Unite(all.Select(g => g.Gap)), Gaps.Unite(all.Where(g => g.IsHeartbeat).Select(g => g.Gap)));
    }

    private static List<Run> DeriveWith(Case c, Gaps? gaps)
    {
        var runs = new List<Run>();
        _ = Timeline.Derive([.. c.Facts], Facts.TraitsOf, c.KnownFrom, c.Oldest, c.Now, c.Rules, runs, gaps: gaps);
        return runs;
    }

    [Fact]
    public void GapsAreThoseOfTheReferenceAtEveryMoment() =>
        Gen.Select(AnyCase, AnyGaps).Sample((c, given) =>
        {
            var runs = DeriveWith(c, Of(given));
            // They touch where each has its end, not at the greatest of two.
            var united = Gaps.Unite(given.Select((g, i) => new Gap(g.From, g.To, i)))
                .Select(g => (g.From, g.To, false)).Concat(given.Where(g => g.IsHeartbeat)).ToList();
            var naive = new NaiveTimeline(c.Facts, Facts.TraitsOf, c.KnownFrom, c.Oldest, c.Now, c.Rules.Pause, united);
            foreach (var t in naive.Moments(c.Facts))
            {
                var (expected, found) = (naive.At(t), StatusAt(runs, t));
                var isSame = found == null ? expected is null or { IsHole: true }
                    : expected is { } e && found == (e.Status, e.Open);
                Assert.True(isSame, $"{Write(c)}\ngaps {string.Join(", ", given.Select(g => $"{Tell(g.From)} to {Tell(g.To)} {g.IsHeartbeat}"))}"
                    + $"\nat {Tell(t)}: {expected}, but {found} in {Tell(runs)}");
            }
        }, iter: 5_000, print: x => Write(x.Item1));

    /// <summary>
    /// Where no alert ended while a heartbeat was silent, nor was given up, gaps are laid over what is stored.
    /// </summary>
    [Fact]
    public void GapsLaidOverRunsAreThoseThatAreDerived() =>
        Gen.Select(AnyCase, AnyGaps).Sample((c, given) =>
        {
            var gaps = Of(given);
            var stored = DeriveWith(c, null);
            if (c.Facts.Any(f => f.Kind == ObservationKind.Lapse
                || (f.Ends is { } ends && gaps.IsHeartbeatSilent(ends))))
                return;
            var derived = DeriveWith(c, gaps);
            var laid = new List<Run>();
            foreach (var run in gaps.Overlay(stored).Where(r => r.From <= c.Now))
            {
                if (laid.Count > 0 && laid[^1].Observation != 0 && (laid[^1].Status, laid[^1].Open) == (run.Status, run.Open))
                    continue;
                if (laid.Count > 0)
                    laid[^1] = laid[^1] with { To = run.From };
                laid.Add(run);
            }
            Assert.Equal(derived.Select(r => (r.From, r.Status, r.Open)), laid.Select(r => (r.From, r.Status, r.Open)));
        }, iter: 5_000, print: x => Write(x.Item1));

    [Fact]
    public void NothingChangesByTimeAloneBeforeItIsDue() =>
        AnyCase.Sample(c =>
        {
            var (runs, due) = Derive(c.Facts, c.Now, c.KnownFrom, c.Oldest, c.Rules);
            Assert.True(due == null || due > c.Now);
            var before = due?.AddMilliseconds(-1) ?? c.Now.AddDays(1);
            foreach (var now in new[] { c.Now + ((before - c.Now) / 2), before })
                Assert.Equal(runs, Derive(c.Facts, now, c.KnownFrom, c.Oldest, c.Rules).Runs);
            CheckAgainstReference(c with { Now = due ?? before });
        }, iter: 4_000, print: Write);

    /// <summary>Each copy comes twice, the second brings nothing; no two others in the same millisecond.</summary>
    [Fact]
    public void CopiesThatBringNothingWouldChangeNothing() =>
        AnyCase.Sample(c =>
        {
            var facts = new Facts();
            var copies = c.Copies.OrderBy(x => x.Copy.Received).Select((x, i) =>
                (x.Alert, x.Copy with { Received = x.Copy.Received.AddMilliseconds(i) })).ToList();
            foreach (var (alert, copy) in copies)
            {
                facts.Take(Alerts[alert], copy);
                Assert.Null(facts.Take(Alerts[alert], copy));
            }
            Assert.Equal(Tell(Derive(Raw(copies), c.Now, c.KnownFrom, c.Oldest, c.Rules).Runs),
                Tell(Derive(facts.All, c.Now, c.KnownFrom, c.Oldest, c.Rules).Runs));
        }, iter: 4_000, print: Write);

    // ---- Any order of arrival ----

    /// <summary>Alerts that say the same at each copy, as Alertmanager's do.</summary>
    private const string Steady = "ABab";

    private static Status SteadyStatus(int alert) =>
        Steady[alert] switch { 'A' or 'a' => Status.Down, 'b' => Status.Up, _ => Status.Degraded };

    private static readonly Gen<(int Alert, AlertCopy Copy)[]> SteadyCopies = Gen.Select(
        Gen.Int[0, 3], Gen.Int[0, 4].Select(i => At(20 * i)), Gen.Int[-1, 90],
        (alert, starts, ends) => (alert,
            new AlertCopy(starts, ends < 0 ? null : At(ends), SteadyStatus(alert), default)))
        .Array[1, 12].Select(copies => copies.Distinct().ToArray());

    private static string HistoryOf(
        IEnumerable<((int Alert, AlertCopy Copy) Sent, DateTime Received)> arrivals, int now)
    {
        var facts = new Facts();
        foreach (var ((alert, copy), received) in arrivals)
            facts.Take(Steady[alert], copy with { Received = received });
        var (runs, due) = Derive(facts.All, At(now), At(-600));
        return $"{Tell(runs)}; {due:T}";
    }

    /// <summary>Each copy comes once to three times, at any time of 20 seconds, in any order.</summary>
    [Fact]
    public void CopiesReceivedWithin20SecondsGiveOneHistoryInAnyOrder() =>
        Gen.Select(SteadyCopies, Gen.Int[0, 20_000].Array[36], Gen.Int[1, 3].Array[12]).Sample((copies, at, times) =>
        {
            var arrivals = copies.SelectMany((c, i) => Enumerable.Range(0, times[i])
                .Select(j => (c, At(60).AddMilliseconds(at[(3 * i) + j])))).OrderBy(a => a.Item2);
            Assert.Equal(HistoryOf(copies.Select(c => (c, At(60))), 85), HistoryOf(arrivals, 85));
        }, iter: 4_000);

    /// <summary>Minutes lie between the copies; at last each end is stated again.</summary>
    [Fact]
    public void EndsStatedAgainGiveOneHistoryAfterAnyOrder() =>
        Gen.Select(SteadyCopies, Gen.Int.Array[36], Gen.Int[0, 60].Array[36]).Sample((copies, turns, gaps) =>
        {
            var ends = copies.Where(c => c.Copy.Ends != null).ToList();
            var arrivals = copies.Concat(copies).Zip(turns).OrderBy(a => a.Second).Select(a => a.First)
                .Concat(ends.Zip(turns.Reverse()).OrderBy(a => a.Second).Select(a => a.First)).ToList();
            var received = gaps.Select((_, i) => At(gaps.Take(i).Sum())).ToList();
            Assert.Equal(HistoryOf(copies.Select(c => (c, At(60))), 36 * 60),
                HistoryOf(arrivals.Zip(received), 36 * 60));
        }, iter: 4_000);

    // ---- A real outage ----

    /// <summary>The table of Data/etcd-outage/README.md.</summary>
    private static readonly string[] Outage =
    [
        "INS etcd InstanceDown 127.0.0.1:17389: down 75.338, up 93.338",
        "INS etcd InstanceDown 127.0.0.1:17399: down 55.338, up 93.338",
        "p01-dev etcd node 127.0.0.1:17379: up 34.489",
        "p01-dev etcd node 127.0.0.1:17389: up 35.489, down 75.489, up 96.489",
        "p01-dev etcd node 127.0.0.1:17399: up 35.489, down 55.489, up 96.489",
        "p01-dev etcd quorum : up 34.489, down 75.489, up 96.489",
    ];

    private static readonly DateTime Epoch = new(2026, 11, 22, 11, 34, 0, DateTimeKind.Utc);

    /// <summary>An alert of the recorded bodies, as its labels say.</summary>
    private sealed record Sent(string Service, string Alert, bool IsDialect, AlertCopy Copy);

    private static readonly Sent[] Recorded =
        [.. Directory.GetFiles(Path.Combine(AppContext.BaseDirectory, "Data", "etcd-outage"), "*.json")
            .Order(StringComparer.Ordinal).SelectMany(SentIn)];

    private static IEnumerable<Sent> SentIn(string file)
    {
        using var body = JsonDocument.Parse(File.ReadAllBytes(file));
        foreach (var alert in body.RootElement.GetProperty("alerts").EnumerateArray())
        {
            var labels = alert.GetProperty("labels");
            string Label(string name) => labels.TryGetProperty(name, out var value) ? value.GetString()! : "";
            var isDialect = Label("facet") != "" && Label("status") != "";
            var location = !isDialect ? Label("instance")
                : alert.GetProperty("annotations").TryGetProperty("location", out var place) ? place.GetString() : "";
            var service = isDialect ? $"{Label("platform")} etcd {Label("facet")} {location}"
                : $"INS etcd {Label("alertname")} {location}";
            DateTime? ends = alert.GetProperty("status").GetString() == "resolved"
                ? alert.GetProperty("endsAt").GetDateTime() : null;
            yield return new(service, labels.GetRawText(), isDialect, new(alert.GetProperty("startsAt").GetDateTime(),
                ends, isDialect && Label("status") == "up" ? Status.Up : Status.Down, default));
        }
    }

    private static IEnumerable<string> OutageOf(IReadOnlyList<Sent> sent, TimeSpan within)
    {
        var alerts = sent.Select(s => s.Alert).Distinct().ToList();
        var traits = sent.DistinctBy(s => s.Alert).ToDictionary(
            s => (long)alerts.IndexOf(s.Alert), s => new AlertTraits(s.IsDialect, AlertSource.Webhook));
        var received = Epoch.AddMinutes(3);
        foreach (var service in sent.Select((s, i) => (Sent: s, Received: received + (within * i / sent.Count)))
            .GroupBy(s => s.Sent.Service))
        {
            var facts = new List<Observation>();
            foreach (var ((_, name, _, copy), at) in service)
            {
                var alert = (long)alerts.IndexOf(name);
                var known = Sorted(facts.Where(f => f.Alert == alert));
                if (Episodes.Decide(known, copy with { Received = at }, traits[alert]) is { } kind)
                    facts.Add(new(facts.Count + 1, alert, kind, copy.Starts, copy.Ends, copy.Status, at));
            }
            var (runs, changes) = (new List<Run>(), new List<StatusChange>());
            Timeline.Derive(Sorted(facts), a => traits[a], received, null, Epoch.AddMinutes(5), Rules, runs);
            Timeline.ForOnix(CollectionsMarshal.AsSpan(runs), changes);
            yield return $"{service.Key}: " + string.Join(", ", changes.Select(c => string.Create(
                CultureInfo.InvariantCulture, $"{Tell(c.Status)} {(c.Time - Epoch).TotalSeconds:0.000}")));
        }
    }

    private static Observation[] Sorted(IEnumerable<Observation> facts) =>
        [.. facts.OrderBy(f => f.Alert).ThenBy(f => f.Starts).ThenBy(f => f.Received).ThenBy(f => f.Kind)];

    [Fact]
    public void RecordedOutageIsWhatHappenedInAnyOrder()
    {
        Assert.Equal(Outage, OutageOf(Recorded, TimeSpan.Zero).Order(StringComparer.Ordinal));
        for (var seed = 1; seed <= 200; seed++)
        {
            var shuffled = Recorded.Concat(Recorded).ToArray();
            new Random(seed).Shuffle(shuffled);
            var history = OutageOf(shuffled, TimeSpan.FromSeconds(20)).Order(StringComparer.Ordinal);
            Assert.True(Outage.SequenceEqual(history), $"seed {seed}: {string.Join('\n', history)}");
        }
    }

    // ---- Size ----

    /// <summary>Episodes of so many alerts of one service, which overlap by as many as there are alerts.</summary>
    private static Observation[] Overlapping(int alerts, int episodes, bool isDialect)
    {
        var facts = new List<Observation>();
        for (var i = 0; i < alerts; i++)
        {
            for (var j = 0; j < episodes; j++)
            {
                var (id, starts) = ((2L * ((i * episodes) + j)) + 1, Day.AddSeconds((j * alerts) + i));
                var status = Statuses[(i + (isDialect ? 0 : 1)) % 3];
                var alert = isDialect ? 'a' : 'A';
                facts.Add(new(id, alert + (1000L * i), ObservationKind.Start, starts, null, status, starts));
                facts.Add(new(id + 1, alert + (1000L * i), ObservationKind.End, starts,
                    starts.AddSeconds(alerts - 0.5), status, starts.AddSeconds(alerts)));
            }
        }
        return [.. facts];
    }

    /// <summary>A step for each pair of 100,000 episodes is ten billion steps, which take longer.</summary>
    private static readonly TimeSpan Quick = TimeSpan.FromSeconds(5);

    private static void AssertIsQuick(Observation[] facts, bool isDialect)
    {
        var (runs, best) = (new List<Run>(), TimeSpan.MaxValue);
        var traits = new AlertTraits(isDialect, AlertSource.Webhook);
        for (var attempt = 0; attempt < 3 && best > Quick; attempt++)
        {
            var time = Stopwatch.StartNew();
            Timeline.Derive(facts, _ => traits, null, null, Day.AddDays(10), Rules, runs);
            best = time.Elapsed < best ? time.Elapsed : best;
        }
        Assert.True(runs.Count > 1);
        Assert.InRange(best, TimeSpan.Zero, Quick);
    }

    [Theory]
    [InlineData(1, 100_000, false)]
    [InlineData(100_000, 1, false)]
    [InlineData(300, 300, true)]
    [InlineData(100_000, 1, true)]
    public void ManyEpisodesOfOneServiceAreNotQuadratic(int alerts, int episodes, bool isDialect) =>
        AssertIsQuick(Overlapping(alerts, episodes, isDialect), isDialect);

    [Fact]
    public void ManyOpenAlertsWithANewStatusAreNotQuadratic()
    {
        var turns = Enumerable.Range(1, 100_000).ToArray();
        new Random(1).Shuffle(turns);
        AssertIsQuick([.. turns.SelectMany((turn, i) => new Observation[]
        {
            new((2 * i) + 1, i, ObservationKind.Start, Day.AddSeconds(i), null, Status.Down, Day.AddSeconds(i)),
            new((2 * i) + 2, i, ObservationKind.Again, Day.AddSeconds(i), null, Status.Degraded,
                Day.AddDays(3).AddSeconds(turn)),
        })], isDialect: false);
    }

    [Fact]
    public void DerivingAndDecidingAllocateNothing()
    {
        Func<long, AlertTraits> traitsOf = Facts.TraitsOf;
        var cases = new[] { Overlapping(3, 5, false), Overlapping(3, 5, true) };
        var runs = new List<Run>(100);
        long DeriveAll()
        {
            var before = GC.GetAllocatedBytesForCurrentThread();
            foreach (var facts in cases)
            {
                Timeline.Derive(facts, traitsOf, Day, Day, Day.AddDays(1), Rules, runs);
                Episodes.Decide(facts.AsSpan(0, 10), new(Day, null, Status.Down, Day.AddHours(1)), traitsOf('A'));
            }
            return GC.GetAllocatedBytesForCurrentThread() - before;
        }
        DeriveAll();
        Assert.Equal(0, DeriveAll());
    }

    /// <summary>Two stock alerts, or a dialect pair, of three episodes each, of which the last are open.</summary>
    private static Observation[] TenObservations(int service)
    {
        var (facts, alert) = (new Observation[10], service % 2 == 0 ? 'A' : 'a');
        for (var i = 0; i < 10; i++)
        {
            var (of, episode, isEnd) = (i / 5 == 0 ? 0 : 1, i % 5 / 2, i % 2 == 1);
            var starts = Day.AddMinutes((service % 600) + (60 * episode) + (30 * of));
            DateTime? ends = isEnd ? starts.AddMinutes(service % 10 == 0 ? 30 : 20) : null;
            facts[i] = new((10L * service) + i + 1, alert + of, isEnd ? ObservationKind.End : ObservationKind.Start,
                starts, ends, of == 0 ? Status.Down : Status.Up, (ends ?? starts).AddSeconds(30));
        }
        return [.. facts.OrderBy(f => f.Alert).ThenBy(f => f.Starts).ThenBy(f => f.Received)];
    }

    [Fact]
    [Trait("Category", "Bench")]
    public void DerivingEverything()
    {
        const int services = 200_000;
        Observation[] facts = [.. Enumerable.Range(0, services).SelectMany(TenObservations)];
        var (runs, best, made) = (new List<Run>(), TimeSpan.MaxValue, 0L);
        for (var round = 0; round < 3; round++)
        {
            var time = Stopwatch.StartNew();
            made = 0;
            for (var i = 0; i < services; i++)
            {
                Timeline.Derive(facts.AsSpan(10 * i, 10), Facts.TraitsOf, Day, null, Day.AddDays(2), Rules, runs);
                made += runs.Count;
            }
            best = time.Elapsed < best ? time.Elapsed : best;
        }
        output.WriteLine($"| deriving 200,000 services from 2 million observations, in memory | "
            + $"{best.TotalMilliseconds:N0} ms, {made:N0} runs |");
    }
}
