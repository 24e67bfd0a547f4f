using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;
using static Ses.Tests.Support.Made;

namespace Ses.Tests;

/// <summary>Reports by period for a terminal.</summary>
public sealed class ReportTableTests
{
    private static PlatformReport Of(Counting counting, params ReportRow[] rows) =>
        PlatformReport.All(counting, AsOf, rows, []).Single();

    private static string[] Lines(PlatformReport report, int width = int.MaxValue, bool withPartition = false) =>
        new ReportText(width).Of(report, "2026-11-01 08:00", withPartition).TrimEnd('\n').Split('\n');

    /// <summary>What stands first in each row of the table of services.</summary>
    private static string[] Order(PlatformReport report) => [.. report.Services.Select(s => s.Name)];

    // ---- One period ----

    [Fact]
    public void MonthIsReadAtAGlance() => Assert.Equal(
        [
            "shop: October 2026, Europe/Berlin, all hours, objective 99.9 %                           as of 2026-11-01 08:00",
            "1 of 3 met, 1 missed, 1 met with only 93.2 % of its time known",
            "",
            "SERVICE         ADJUSTED  AVAILABLE  OBJECTIVE  BUDGET LEFT             DOWN  OUTAGES  MAINTENANCE      UNKNOWN",
            "checkout http     99.899     99.794  ✖ missed   -20 s of 44 min   1 h 32 min        2            -            -",
            "db http           99.984     99.559  ✔ met      37 min of 44 min  3 h 17 min        2          4 h            -",
            "mail http        100.000    100.000  ✔ met ?    41 min of 41 min           -        0            -  50 h 30 min",
            "all 3 services    99.960     99.779                               4 h 49 min        4          4 h  50 h 30 min",
            "? less than 95 % of the time is known",
            "",
            "OUTAGES        FROM         TO                 DOWN  NOTES",
            "db http        10-10 22:10  10-11 01:20  3 h 10 min  maintenance 22:00 to 02:00 (announced 10-06)",
            "checkout http  10-21 14:05  10-21 14:52      47 min  excluded: the provider's (ed, Jane Doe, 10-22 08:30, after the outage)",
        ],
        Lines(PlatformReport.All(Counting(), AsOf,
            [
                Row(Key("mail"), unknown: (50 * Hour) + (30 * Minute)),
                Row(Key("db"), 197 * Minute, outages: 2, maintenance: 4 * Hour, maintenanceDown: 190 * Minute),
                Row(Key("checkout"), 92 * Minute, outages: 2, excluded: 47 * Minute),
            ],
            [
                Outage(Key("db"), "2026-10-10T20:10", "2026-10-10T23:20", Upgrade),
                Outage(Key("checkout"), "2026-10-21T12:05", "2026-10-21T12:52", Excluded),
            ]).Single()));

    [Fact]
    public void WithoutAnObjectiveThereIsNoVerdict()
    {
        var lines = Lines(Of(Counting(null, hours: "Mo-Fr 08:00-18:00"), Row(Key("db"), Hour, outages: 1), Row(Key("mail"))));
        Assert.StartsWith("shop: October 2026, Europe/Berlin, Mo-Fr 08:00-18:00  ", lines[0], Ordinal);
        Assert.Equal("adjusted availability of 2 services: 99.932 %, 1 with outages", lines[1]);
        Assert.Equal("SERVICE         ADJUSTED  AVAILABLE  DOWN  OUTAGES  MAINTENANCE  UNKNOWN", lines[3]);
        Assert.Equal("no outages", lines[^1]);
        Assert.Equal("nothing is known about 1 service", Lines(Of(Counting(null), Row(Key("db"), unknown: Length)))[1]);
        Assert.EndsWith("100.000 %, no outages", Lines(Of(Counting(null), Row(Key("db"))))[1], Ordinal);
    }

    [Fact]
    public void MissedComeFirstThenTheLeastAvailable() => Assert.Equal(
        ["c http", "d http", "b http", "a http", "e http", "f http"],
        Order(Of(Counting(), Row(Key("f"), unknown: Length), Row(Key("a"), 10 * Minute), Row(Key("b"), 20 * Minute),
            Row(Key("c"), 90 * Minute),
            // Worse than b, but for maintenance, and missed after all.
            Row(Key("d"), 80 * Minute, maintenance: 30 * Minute, maintenanceDown: 30 * Minute), Row(Key("e")))));

    /// <summary>Also where it made up for it in other periods.</summary>
    [Fact]
    public void ServiceThatMissedAPeriodComesFirst() => Assert.Equal(["b http", "a http"],
        Order(Of(Counting(), [.. Quarter("a", 50 * Minute, 50 * Minute, 50 * Minute), .. Quarter("b", 0, 61 * Minute, 0)])));

    [Theory]
    [InlineData("2 of 2 met", 0, 0, 0)]
    [InlineData("0 of 2 met, 2 missed", 0, 60, 0)]
    [InlineData("1 of 2 met, 1 met with only 90 % of its time known", 0.1, 0, 0)]
    [InlineData("1 of 2 met, 1 unknown", 1, 0, 0)]
    [InlineData("1 of 2 met, 1 within the budget so far", 0, 0, 5)]
    public void VerdictIsASentence(string sentence, double unknown, int down, int ahead)
    {
        var other = ahead > 0 ? Row(Key("b"), ahead: ahead * Hour, to: AsOf.AddHours(ahead))
            : Row(Key("b"), down * Minute, (long)(unknown * Length));
        Assert.Equal(sentence, Of(Counting(), Row(Key("a"), down * Minute), other).Verdict);
    }

    [Fact]
    public void PeriodThatLastsSaysSo()
    {
        var end = Utc("2026-11-30T23:00");
        ReportRow November(string name, long down) => Row(Key(name), down, period: "2026-11", from: To, to: end,
            length: (long)(end - To).TotalMilliseconds, ahead: (long)(end - AsOf).TotalMilliseconds);
        var lines = Lines(Of(Counting(), November("a", 5 * Minute), November("b", Hour)));
        Assert.StartsWith("shop: November 2026 so far, ", lines[0], Ordinal);
        Assert.Equal("1 of 2 within the budget so far, 1 missed", lines[1]);
        Assert.Contains("✖ missed   -16 min of 43 min", lines[4], Ordinal);
        Assert.Contains("so far     38 min of 43 min", lines[5], Ordinal);
    }

    [Theory]
    [InlineData(1, 1_000_000_000_000, "99.999")]
    [InlineData(1, 300_000, "99.999")]
    [InlineData(3, 1000, "99.700")]
    [InlineData(0, 1000, "100.000")]
    [InlineData(1000, 1000, "0.000")]
    [InlineData(0, 0, "-")]
    [InlineData(1, 90_000_000_000_000_000, "99.999")]
    public void PercentagesAreCut(long down, long known, string shown)
    {
        var cells = Of(Counting(null), Row(Key("a"), down, length: known)).Figures().Rows[0];
        Assert.Equal((shown, shown), (cells[1], cells[2]));
    }

    [Theory]
    [InlineData(0, "-")]
    [InlineData(Second, "1 s")]
    [InlineData(Minute, "1 min")]
    [InlineData(Minute + Second, "1 min 1 s")]
    [InlineData(Hour, "1 h")]
    [InlineData((50 * Hour) + (30 * Minute) + Second, "50 h 30 min")]
    public void SpansAreInHours(long span, string text) => Assert.Equal(text, PlatformReport.Lasted(span));

    [Fact]
    public void SpentBudgetIsNeverShownAsLeft()
    {
        string Left(long down) => Of(Counting("99"), Row(Key("a"), down, length: 100 * Hour)).Figures().Rows[0][4];
        Assert.Equal("0 s of 1 h", Left(Hour));
        Assert.Equal("-0.001 s of 1 h", Left(Hour + 1));
        Assert.Equal("0.001 s of 1 h", Left(Hour - 1));
        Assert.Equal("-1 s of 0 s", Of(Counting("100"), Row(Key("a"), Second)).Figures().Rows[0][4]);
    }

    // ---- Several periods ----

    private static readonly string[] Months = ["2026-08", "2026-09", "2026-10"];

    private static ReportRow[] Quarter(string name, params long[] down) => [.. down.Select((d, i) => Row(Key(name), d,
        period: Months[i], from: Utc(Months[i] + "-01"), to: Utc(Months[i] + "-30"), length: 1000 * Hour))];

    [Fact]
    public void SeveralPeriodsAreColumnsAndSumsAreOfSeconds()
    {
        // The second month of b has a hundredth of the time: the mean of percentages would be another.
        ReportRow[] b = Quarter("b", 0, 0, 10 * Hour);
        b[2] = Row(Key("b"), 10 * Hour, period: "2026-10", from: Utc("2026-10-01"), to: Utc("2026-10-30"), length: 20 * Hour);
        Assert.Equal(
            [
                "shop: August 2026 to October 2026, Europe/Berlin, all hours, objective 99.9 %  as of 2026-11-01 08:00",
                "4 of 6 met, 2 missed",
                "",
                "SERVICE         2026-08  2026-09    2026-10    TOTAL",
                "b http          100.000  100.000     50.000 ✖   99.504",
                "a http          100.000   99.000 ✖  100.000     99.666",
                "all 2 services  100.000   99.500     99.019     99.601",
                "",
                "no outages",
            ],
            Lines(Of(Counting(), [.. Quarter("a", 0, 10 * Hour, 0), .. b])));
    }

    [Fact]
    public void PeriodsThatDoNotFitFollowBelow()
    {
        var days = Enumerable.Range(1, 31).Select(d => Row(Key("checkout"), d == 3 ? Hour : 0, period: $"2026-10-{d:00}",
            from: Utc($"2026-10-{d:00}"), to: Utc($"2026-10-{d:00}").AddDays(1), length: 24 * Hour)).ToArray();
        foreach (var width in new[] { 40, 80, 120 })
        {
            var lines = Lines(Of(Counting(period: PeriodLength.Day), days), width);
            Assert.All(lines, l => Assert.InRange(Terminal.Columns(l), 0, width));
            Assert.All(days, d => Assert.Single(lines, l => l.Contains(d.Period + " ", Ordinal) || l.EndsWith(d.Period!, Ordinal)
                ? !l.StartsWith("shop", Ordinal) : false));
            Assert.Single(lines, l => l.Contains("95.833 ✖", Ordinal));
            Assert.DoesNotContain(lines, l => l.Contains('…') && !l.StartsWith("shop", Ordinal));
        }
    }

    [Fact]
    public void ServiceOfTheLastPeriodAloneHasNoOtherFigures()
    {
        var lines = Lines(Of(Counting(null), [.. Quarter("a", 0, 0, 0), .. Quarter("b", 0, 0, 0)[2..]]));
        Assert.Contains(lines, l => l.StartsWith("b http                -        -  100.000  100.000", Ordinal));
    }

    // ---- Names and widths ----

    [Fact]
    public void NamesHaveWhatTellsServicesApart() => Assert.Equal(
        ["disk use n1", "disk use n2{device=\"sda\"}", "disk use n2{device=\"sdb\"}", "etcd node", "mail"],
        Order(Of(Counting(null), Row(Key("disk", "use", "n1{device=\"sda\",mode=\"rw\"}")), Row(Key("disk", "use", "n2{device=\"sda\"}")),
            Row(Key("disk", "use", "n2{device=\"sdb\"}")), Row(Key("etcd", "node", "n1:2379")), Row(Key("mail", "")))));

    [Fact]
    public void NoLineIsLongerThanTheTerminal()
    {
        var report = Report();
        for (var width = 20; width < 200; width++)
            Assert.All(Lines(report, width), l => Assert.InRange(Terminal.Columns(l), 0, width));
    }

    [Theory]
    [InlineData(80)]
    [InlineData(120)]
    public void WhatMattersFitsUsualTerminals(int width)
    {
        var lines = Lines(Report(), width);
        var head = lines.First(l => l.StartsWith("SERVICE", Ordinal));
        Assert.All(new[] { "ADJUSTED", "OBJECTIVE", "BUDGET LEFT", "DOWN" }, c => Assert.Contains(c, head, Ordinal));
        Assert.Contains(lines, l => l.StartsWith("checkout http", Ordinal) && l.Contains("✖ missed   -20 s of 44 min", Ordinal));
        Assert.Contains(lines, l => l.StartsWith("支払い http", Ordinal));
        // Whole columns, also beside characters of two.
        Assert.Single(lines.Where(l => l.Contains('✔') || l.Contains('✖'))
            .Select(l => Terminal.Columns(l[..l.IndexOfAny(['✔', '✖'])])).Distinct());
        Assert.Equal(width < 100, lines.Any(l => l.StartsWith("(--format csv also has: ", Ordinal)));
    }

    [Fact]
    public void NamesCannotSteerATerminal()
    {
        var evil = Key("e\u001b]0;x\u0007\u009b\u202e", platform: "p\u001b[2J", partition: "I\nS");
        var note = new Note([Version("x", NoteKind.Comment, "2026-10-21T12:00", null, "2026-10-22T06:30", "t\u001b\nt")]);
        var report = PlatformReport.All(Counting(), AsOf, [Row(evil), Row(evil with { Service = "x" })],
            [Outage(evil, "2026-10-21T12:05", null, note)]).Single();
        foreach (var width in new[] { 80, int.MaxValue })
            Assert.DoesNotContain(new ReportText(width).Of(report, "2026", true), c => c != '\n' && Terminal.IsUnsafe(c));
    }

    [Fact]
    public void OutageSaysWhatWasSaidOfIt()
    {
        var late = new Note([Version("m", NoteKind.Maintenance, "2026-10-21T12:00", null, "2026-10-22T06:30", "t")]);
        var reports = PlatformReport.All(Counting(), AsOf, [Row(Key("a"))],
            [Outage(Key("a"), "2025-12-31T22:30", "2025-12-31T23:30", Excluded, Correction), Outage(Key("a"), "2026-10-21T12:05", null, late)]);
        var rows = reports.Single().Outages(isShort: true).Rows;
        Assert.Equal(["a http", "2025-12-31 23:30", "01-01 00:30", "1 h",
            "excluded: the provider's (ed, Jane Doe, 10-22 08:30, after the outage); correction, up: the alert's own fault (ed, 10-13 13:00, after the outage)"],
            rows[0]);
        Assert.Equal(("ongoing", "maintenance 10-21 14:00, no end (announced in part 10-22)"), (rows[1][2], rows[1][4]));
    }

    [Fact]
    public void EachPlatformHasItsOwnTable()
    {
        var reports = PlatformReport.All(Counting("99.9,k8s=99"), AsOf,
            [Row(Key("a", platform: "k8s")), Row(Key("a")), Row(Key("a", partition: "TST"))], []);
        Assert.Equal(["INS/k8s: October 2026, Europe/Berlin, all hours, objective 99 %", "INS/shop: October 2026, Europe/Berlin, all hours, objective 99.9 %",
            "TST/shop: October 2026, Europe/Berlin, all hours, objective 99.9 %"],
            reports.Select(r => Lines(r, withPartition: true)[0].Split("  ")[0]));
        // One service is not summed up.
        Assert.DoesNotContain(Lines(reports[0]), l => l.StartsWith("all ", Ordinal));
    }

    [Theory]
    [InlineData(PeriodLength.Day, "2026-10-01", "2026-10-01")]
    [InlineData(PeriodLength.Week, "2026-W40", "2026-W40")]
    [InlineData(PeriodLength.Month, "2026-10", "October 2026")]
    [InlineData(PeriodLength.Quarter, "2026-Q4", "Q4 2026")]
    [InlineData(PeriodLength.Year, "2026", "2026")]
    internal void PeriodsAreCalledAsPeopleDo(PeriodLength length, string name, string title) =>
        Assert.Equal(title, Of(Counting(period: length), Row(Key("a"), period: name)).Range);
}
