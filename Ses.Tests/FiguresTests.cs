using System.Globalization;
using Xunit;

namespace Ses.Tests;

/// <summary>Zones, periods, service hours and figures, held against a reference that looks at each minute.</summary>
public sealed class FiguresTests
{
    private const long Minute = 60_000, Day = 24 * 60 * Minute;

    private static readonly string[] Zones =
        ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Havana", "UTC"];

    private static DateTime Utc(string text) =>
        DateTime.Parse(text, CultureInfo.InvariantCulture, DateTimeStyles.AssumeUniversal | DateTimeStyles.AdjustToUniversal);

    private static long Ms(DateTime time) => UnixTime.From(time);

    // ---- Zones ----

    /// <summary>By another program's reading of the same zone database.</summary>
    [Theory]
    [InlineData("Europe/Berlin", "2026-03-29T02:00", "2026-03-29T01:00", "2026-03-29T01:00")]
    [InlineData("Europe/Berlin", "2026-03-29T02:30", "2026-03-29T01:00", "2026-03-29T01:00")]
    [InlineData("Europe/Berlin", "2026-10-25T02:00", "2026-10-25T00:00", "2026-10-25T01:00")]
    [InlineData("Europe/Berlin", "2026-10-25T02:59", "2026-10-25T00:59", "2026-10-25T01:59")]
    [InlineData("Europe/Berlin", "2026-10-25T03:00", "2026-10-25T02:00", "2026-10-25T02:00")]
    [InlineData("America/New_York", "2026-03-08T02:30", "2026-03-08T07:00", "2026-03-08T07:00")]
    [InlineData("America/New_York", "2026-11-01T01:00", "2026-11-01T05:00", "2026-11-01T06:00")]
    [InlineData("America/New_York", "2026-11-01T01:30", "2026-11-01T05:30", "2026-11-01T06:30")]
    [InlineData("Australia/Lord_Howe", "2026-04-05T01:45", "2026-04-04T14:45", "2026-04-04T15:15")]
    [InlineData("Australia/Lord_Howe", "2026-10-04T02:15", "2026-10-03T15:30", "2026-10-03T15:30")]
    [InlineData("America/Havana", "2026-03-08T00:00", "2026-03-08T05:00", "2026-03-08T05:00")]
    [InlineData("America/Havana", "2026-11-01T00:00", "2026-11-01T04:00", "2026-11-01T05:00")]
    [InlineData("Asia/Kathmandu", "2026-06-01T00:00", "2026-05-31T18:15", "2026-05-31T18:15")]
    [InlineData("America/St_Johns", "2026-11-01T01:30", "2026-11-01T04:00", "2026-11-01T05:00")]
    public void SkippedTimeIsTheJumpAndDoubledOneBeginsFirstAndEndsSecond(string zone, string local, string begin, string end)
    {
        var time = DateTime.Parse(local, CultureInfo.InvariantCulture);
        Assert.Equal(Utc(begin), Zone.Parse(zone).Begin(time));
        Assert.Equal(Utc(end), Zone.Parse(zone).End(time));
    }

    [Theory]
    [InlineData("Europe/Atlantis")]
    [InlineData("")]
    [InlineData("../../etc/passwd")]
    [InlineData("/usr/share/zoneinfo/UTC")]
    [InlineData("Europe")]
    [InlineData("localtime")]
    [InlineData("posixrules")]
    [InlineData("right/Europe/Berlin")]
    public void WhatIsNoZoneIsRefused(string name) =>
        Assert.Contains("such as Europe/Berlin", Assert.Throws<FormatException>(() => Zone.Parse(name)).Message, StringComparison.Ordinal);

    // ---- Periods ----

    [Theory]
    [InlineData("Day", "Europe/Berlin", "2026-10-25T12:00", "2026-10-25", "2026-10-24T22:00", "2026-10-25T23:00")]
    [InlineData("Day", "America/Havana", "2026-11-01T12:00", "2026-11-01", "2026-11-01T04:00", "2026-11-02T05:00")]
    [InlineData("Week", "UTC", "2026-01-01T00:00", "2026-W01", "2025-12-29T00:00", "2026-01-05T00:00")]
    [InlineData("Week", "UTC", "2027-01-03T23:59", "2026-W53", "2026-12-28T00:00", "2027-01-04T00:00")]
    [InlineData("Month", "Europe/Berlin", "2026-10-31T23:30", "2026-11", "2026-10-31T23:00", "2026-11-30T23:00")]
    [InlineData("Quarter", "America/New_York", "2026-10-01T04:00", "2026-Q4", "2026-10-01T04:00", "2027-01-01T05:00")]
    [InlineData("Quarter", "America/New_York", "2026-10-01T03:59", "2026-Q3", "2026-07-01T04:00", "2026-10-01T04:00")]
    [InlineData("Day", "America/St_Johns", "2010-11-07T03:00", "2010-11-07", "2010-11-07T02:30", "2010-11-08T03:30")]
    [InlineData("Day", "Pacific/Apia", "2011-12-30T10:00", "2011-12-31", "2011-12-30T10:00", "2011-12-31T10:00")]
    [InlineData("Year", "Asia/Kathmandu", "2026-12-31T18:15", "2027", "2026-12-31T18:15", "2027-12-31T18:15")]
    public void PeriodIsCutInItsZone(string length, string zone, string moment, string name, string from, string to)
    {
        var period = Period.Of(Enum.Parse<PeriodLength>(length), Zone.Parse(zone), Utc(moment));
        Assert.Equal(new Period(name, Utc(from), Utc(to)), period);
    }

    [Fact]
    public void PeriodsOfAYearFollowEachOtherWithoutAGap()
    {
        foreach (var zone in Zones.Select(Zone.Parse))
        {
            foreach (var (length, count) in new[] { (PeriodLength.Day, 365), (PeriodLength.Week, 53), (PeriodLength.Month, 12), (PeriodLength.Quarter, 4) })
            {
                var year = Period.Of(PeriodLength.Year, zone, Utc("2026-06-01"));
                var parts = Period.All(length, zone, year.From, year.To).ToList();
                Assert.Equal(count, parts.Count);
                Assert.All(parts.Zip(parts.Skip(1)), p => Assert.Equal(p.First.To, p.Second.From));
                Assert.Equal(parts.Count, parts.Select(p => p.Name).Distinct().Count());
                Assert.True(parts[0].From <= year.From && parts[^1].To >= year.To);
            }
        }
    }

    // ---- Service hours ----

    [Theory]
    [InlineData("")]
    [InlineData("Mo")]
    [InlineData("Mo 8-17")]
    [InlineData("Mo 08:00")]
    [InlineData("Mo 08:00-24:01")]
    [InlineData("Mo 24:00-08:00")]
    [InlineData("Mo 08:60-09:00")]
    [InlineData("Xx 08:00-09:00")]
    [InlineData("Mo-Tu-We 08:00-09:00")]
    [InlineData("Mo 08:00-09:00;")]
    [InlineData("mo 08:00-09:00")]
    public void WhatAreNoServiceHoursIsRefused(string text) =>
        Assert.Equal(ServiceHours.Allowed, Assert.Throws<FormatException>(() => ServiceHours.Parse(text)).Message);

    /// <summary>As a stranger may ask for: many times the same, and many of a day.</summary>
    [Fact]
    public void HoursThatStandOftenAreOne()
    {
        var many = string.Join(',', Enumerable.Repeat("Mo-Su", 600)) + " " + string.Join(',', Enumerable.Repeat("00:00-12:00,11:00-24:00", 300));
        Assert.Single(ServiceHours.Parse(many).Within(Zone.Utc, Utc("2026-01-01"), Utc("2036-01-01")));
        var minutes = string.Join(',', Enumerable.Range(0, 25).Select(m => $"00:{m * 2:00}-00:{(m * 2) + 1:00}"));
        Assert.Equal("at most 24 stretches of hours a day", Assert.Throws<FormatException>(() => ServiceHours.Parse($"Mo {minutes}")).Message);
    }

    private static readonly (string Text, (int Day, int From, int To)[] Hours)[] Contracts =
    [
        ("Mo-Fr 08:00-12:00,13:00-17:00; Sa,Su 10:00-14:00",
            [.. from d in new[] { 0, 1, 2, 3, 4 } from h in new[] { (480, 720), (780, 1020) } select (d, h.Item1, h.Item2), (5, 600, 840), (6, 600, 840)]),
        ("Sa-Mo 22:00-03:00", [(5, 1320, 1620), (6, 1320, 1620), (0, 1320, 1620)]),
        ("Mo-Su 00:00-24:00", [.. Enumerable.Range(0, 7).Select(d => (d, 0, 1440))]),
        ("Su 01:30-02:30;Su 02:00-02:15, 23:00-24:00; We 08:00-08:00", [(6, 90, 150), (6, 120, 135), (6, 1380, 1440), (2, 480, 1920)]),
    ];

    private static readonly Dictionary<(string, DateTime), (DateTime First, DateTime Last)> Scanned = [];

    /// <summary>Each minute that can be meant is looked at; where none is, that of the jump.</summary>
    private static (DateTime First, DateTime Last) Scan(string zone, DateTime local)
    {
        if (Scanned.TryGetValue((zone, local), out var known))
            return known;
        var info = TimeZoneInfo.FindSystemTimeZoneById(zone);
        var minutes = Enumerable.Range(-16 * 60, 32 * 60).Select(m => DateTime.SpecifyKind(local.AddMinutes(m), DateTimeKind.Utc)).ToList();
        var there = minutes.Where(m => m + info.GetUtcOffset(m) == local).ToList();
        var jump = minutes.First(m => m + info.GetUtcOffset(m) > local);
        return Scanned[(zone, local)] = there.Count == 0 ? (jump, jump) : (there[0], there[^1]);
    }

    private static bool IsInHours(string zone, (int Day, int From, int To)[] hours, DateTime minute)
    {
        var day = (minute + TimeZoneInfo.FindSystemTimeZoneById(zone).GetUtcOffset(minute)).Date;
        return Enumerable.Range(-2, 3).Select(d => day.AddDays(d)).Any(d => hours
            .Where(h => h.Day == ((int)d.DayOfWeek + 6) % 7)
            .Any(h => Scan(zone, d.AddMinutes(h.From)).First <= minute && minute < Scan(zone, d.AddMinutes(h.To)).Last));
    }

    /// <summary>Around each setting of the clocks of a year.</summary>
    [Fact]
    public void HoursAreThoseOfTheReferenceWhereClocksAreSet()
    {
        foreach (var zone in Zones)
        {
            foreach (var (text, hours) in Contracts)
            {
                foreach (var begin in new[] { "2026-03-06", "2026-03-27", "2026-04-03", "2026-10-02", "2026-10-23", "2026-10-30" }.Select(Utc))
                {
                    var spans = ServiceHours.Parse(text).Within(Zone.Parse(zone), begin, begin.AddDays(4));
                    for (var minute = begin; minute < begin.AddDays(4); minute = minute.AddMinutes(15))
                        Assert.True(IsInHours(zone, hours, minute) == (Interval.Length(spans, Ms(minute), Ms(minute) + 1) > 0),
                            $"{zone}, {text}: {minute:O}");
                }
            }
        }
    }

    // ---- Figures ----

    /// <summary>Each minute is looked at by itself.</summary>
    private static Figures Reference(
        Interval range, long now, Func<long, bool> isCounted, Func<long, Status?> statusAt, Func<long, bool> isMaintained, Func<long, bool> isExcluded)
    {
        long unknown = 0, down = 0, degraded = 0, up = 0, ahead = 0, maintenance = 0, maintenanceDown = 0, excluded = 0;
        var outages = new List<long>();
        var (isOut, silent, inRow) = (false, 0L, -1);
        for (var t = range.From - (3 * Day); t < range.To; t += Minute)
        {
            var (status, isCountedNow) = (t < now ? statusAt(t) : null, t >= range.From && isCounted(t));
            if (t >= now && isCountedNow && !isMaintained(t))
                ahead += Minute;
            if (t >= now)
                continue;
            silent = status == Status.Unknown ? silent + Minute : 0;
            if (status == Status.Down && !isOut)
                (isOut, inRow) = (true, -1);
            else if (status != Status.Down && (status != Status.Unknown || silent >= Day))
                isOut = false;
            if (!isCountedNow || status == null)
                continue;
            if (status == Status.Unknown)
            {
                unknown += Minute;
                continue;
            }
            maintenance += isMaintained(t) ? Minute : 0;
            if (status != Status.Down)
            {
                (up, degraded) = status == Status.Up ? (up + Minute, degraded) : (up, degraded + Minute);
                continue;
            }
            if (inRow < 0)
                (inRow, outages) = (outages.Count, [.. outages, 0]);
            outages[inRow] += Minute;
            down += Minute;
            (maintenanceDown, excluded) = isMaintained(t) ? (maintenanceDown + Minute, excluded) : (maintenanceDown, excluded + (isExcluded(t) ? Minute : 0));
        }
        return new Figures(range.To - range.From - unknown - down - degraded - up, unknown, down, degraded, up, ahead, maintenance,
            maintenanceDown, excluded, outages.Count, outages.DefaultIfEmpty().Max(), isOut && inRow >= 0);
    }

    [Fact]
    public void FiguresAreThoseOfTheReference()
    {
        for (var seed = 0; seed < 120; seed++)
        {
            var random = new Random(seed);
            var (zone, contract) = (Zones[random.Next(Zones.Length)], random.Next(3) == 0 ? default : Contracts[random.Next(Contracts.Length)]);
            var begin = Ms(Utc(random.Next(2) == 0 ? "2026-03-20" : "2026-10-20"));
            var end = begin + (random.Next(3, 25) * Day);
            long At() => begin + (random.NextInt64((end - begin) / Minute) * Minute);
            var cuts = Enumerable.Range(0, random.Next(1, 30)).Select(_ => At()).Distinct().Order().ToList();
            Status[] statuses = [Status.Up, Status.Down, Status.Unknown, Status.Degraded];
            var runs = cuts.Select((c, i) => (At: c, Until: i + 1 < cuts.Count ? cuts[i + 1] : UnixTime.Open, Status: statuses[random.Next(4)])).ToList();
            Interval[] Some() => Interval.United(Enumerable.Range(0, random.Next(4)).Select(_ => At()).Select(a => new Interval(a, a + (random.Next(3000) * Minute))));
            var (maintenance, excluded) = (Some(), Some());
            var bounds = new[] { At(), At() }.Order().ToArray();
            var (range, now) = (new Interval(bounds[0], bounds[1] + Minute), At());
            var hours = contract.Text == null ? null
                : ServiceHours.Parse(contract.Text).Within(Zone.Parse(zone), UnixTime.Read(range.From), UnixTime.Read(range.To));
            var sum = new FiguresSum(range, 0, now, hours, maintenance, excluded);
            foreach (var run in runs)
                sum.Add(run.At, run.Until, run.Status);
            var expected = Reference(range, now, t => contract.Text == null || IsInHours(zone, contract.Hours, UnixTime.Read(t)),
                t => runs.LastOrDefault(r => r.At <= t) is { Until: > 0 } run ? run.Status : null,
                t => maintenance.Any(m => m.From <= t && t < m.To), t => excluded.Any(x => x.From <= t && t < x.To));
            Assert.True(expected == sum.Result, $"{seed}: {expected}\nis not {sum.Result}");
        }
    }

    [Theory]
    // 30 days, 99.9 %: 2,592 s may be lost.
    [InlineData("99.9", 2_592_000, 0, 0, false, true, 2592, 2592)]
    [InlineData("99.9", 2_589_408, 2_592, 0, false, true, 2592, 0)]
    [InlineData("99.9", 2_589_407, 2_593, 0, false, false, 2592, -1)]
    [InlineData("100", 2_592_000, 0, 0, false, true, 0, 0)]
    [InlineData("100", 2_591_999, 1, 0, false, false, 0, -1)]
    [InlineData("99.9", 0, 0, 0, false, null, 0, 0)]
    // While it lasts nothing is met yet, but it may be spent.
    [InlineData("99.9", 1_296_000, 0, 1_296_000, true, null, 2592, 2592)]
    [InlineData("99.9", 1_293_000, 3_000, 1_296_000, true, false, 2592, -408)]
    public void ObjectiveIsMetWhileItsBudgetLasts(
        string objective, long up, long down, long ahead, bool lasts, bool? isMet, double budget, double left)
    {
        var figures = new Figures(ahead * 1000, 0, down * 1000, 0, up * 1000, ahead * 1000, 0, 0, 0, 1, down * 1000, false);
        var percent = Objectives.Parse(objective).Of("p")!.Value;
        Assert.Equal(isMet, figures.IsMet(percent, lasts));
        Assert.Equal((decimal)budget * 1000, figures.Budget(percent));
        Assert.Equal((decimal)left * 1000, figures.BudgetLeft(percent));
    }

    [Fact]
    public void MaintenanceIsLeftOutWholeAndExclusionsOfWhatWasDown()
    {
        // 720 h: up 700, down 20; maintenance 10 h, 4 of them down; of the rest 6 h down are excluded.
        const long H = 3_600_000;
        var figures = new Figures(0, 0, 20 * H, 0, 700 * H, 0, 10 * H, 4 * H, 6 * H, 3, 10 * H, false);
        Assert.Equal(100.0 * 700 / 720, figures.Availability!.Value, 9);
        // As reports.md has it: (up + degraded - maintenance + maintenance_down) / (known - maintenance - excluded).
        Assert.Equal(100.0 * (700 - 10 + 4) / (720 - 10 - 6), figures.AdjustedAvailability!.Value, 9);
    }

    [Theory]
    [InlineData("99.9", "k8s-1", "99.9")]
    [InlineData("99.9,k8s-1=99.95", "k8s-1", "99.95")]
    [InlineData("k8s-1=99.95", "other", null)]
    [InlineData("a=b=99,99.9", "a=b", "99")]
    public void ObjectiveMayBeAnotherForAPlatform(string text, string platform, string? objective) =>
        Assert.Equal(objective == null ? null : decimal.Parse(objective, CultureInfo.InvariantCulture), Objectives.Parse(text).Of(platform));

    [Theory]
    [InlineData("0")]
    [InlineData("100.1")]
    [InlineData("-1")]
    [InlineData("x")]
    [InlineData("")]
    [InlineData("99,98")]
    [InlineData("a=99,a=98")]
    [InlineData("9e1")]
    [InlineData("=99.9")]
    public void WhatIsNoObjectiveIsRefused(string text) =>
        Assert.Equal(Objectives.Allowed, Assert.Throws<FormatException>(() => Objectives.Parse(text)).Message);
}
