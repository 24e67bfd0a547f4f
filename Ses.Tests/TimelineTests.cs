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
public sealed partial class TimelineTests
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
        Enum.TryParse<Status>(name, ignoreCase: true, out var status) ? status : (Status)name[^1];

    private static DateTime Time(string time) =>
        Day + TimeSpan.Parse(time, CultureInfo.InvariantCulture);

    private static string Tell(DateTime time) => (time - Day).ToString(
        time.Second == 0 && time.Millisecond == 0 ? @"hh\:mm" : time.Millisecond == 0 ? @"hh\:mm\:ss"
        : @"hh\:mm\:ss\.fff", CultureInfo.InvariantCulture) is var text && time.Date == Day ? text
        : (time - Day).ToString(@"d\.hh\:mm", CultureInfo.InvariantCulture);

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

    // ---- Against the reference ----

    private static readonly Status[] Statuses = [Status.Up, Status.Degraded, Status.Down, (Status)4, Status.Unknown];

    private const string Alerts = "ABNabn";

    private sealed record Case((int Alert, AlertCopy Copy)[] Copies, IReadOnlyList<Observation> Facts, DateTime Now, DateTime? KnownFrom,
        DateTime? Oldest, TimelineRules Rules);

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

    private static string Write(Case c) => string.Join('\n', c.Facts.Select(f =>
            $"{(char)f.Alert} {Tell(f.Starts)} {Tell(f.Status)} {f.Kind} {(f.Ends is { } e ? Tell(e) : "")} @{Tell(f.Received)}"))
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
            c => CheckShape(CheckAgainstReference(c), c.Now), iter: 40_000, print: Write);

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
        }, iter: 20_000, print: Write);

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
        }, iter: 20_000, print: Write);
}
