using System.Globalization;

namespace Ses.Tests.Support;

/// <summary>A platform's October in Berlin with 12 services, a dozen outages and five notes, as a report has them.</summary>
internal static class Made
{
    public const long Second = 1000, Minute = 60 * Second, Hour = 60 * Minute;

    public static readonly Zone Berlin = Zone.Parse("Europe/Berlin");

    public static readonly DateTime From = Utc("2026-09-30T22:00"), To = Utc("2026-10-31T23:00"), AsOf = Utc("2026-11-01T07:00");

    public static readonly long Length = (long)(To - From).TotalMilliseconds;

    public static DateTime Utc(string text) =>
        DateTime.Parse(text, CultureInfo.InvariantCulture, DateTimeStyles.AssumeUniversal | DateTimeStyles.AdjustToUniversal);

    public static Counting Counting(string? slo = "99.9", PeriodLength? period = PeriodLength.Month, string? hours = null) =>
        new(period, Berlin, hours == null ? null : ServiceHours.Parse(hours), slo == null ? null : Objectives.Parse(slo));

    public static ServiceKey Key(string service, string facet = "http", string location = "", string platform = "shop",
        string partition = "INS") => new(partition, platform, service, facet, location);

    /// <summary>A row of October, unless told otherwise; what is neither down nor unknown is up.</summary>
    public static ReportRow Row(ServiceKey service, long down = 0, long unknown = 0, int outages = 0, long maintenance = 0,
        long maintenanceDown = 0, long excluded = 0, long? length = null, string? period = "2026-10", DateTime? from = null,
        DateTime? to = null, long ahead = 0) => new(service, period, from ?? From, to ?? To, new Figures(
            ahead, unknown, down, 0, (length ?? Length) - unknown - down - ahead, ahead, maintenance, maintenanceDown, excluded,
            outages, down, false));

    public static OutageRow Outage(ServiceKey service, string from, string? to, params Note[] notes)
    {
        var end = to == null ? (DateTime?)null : Utc(to);
        var outage = new OutageRow(0, service, Utc(from), end, (long)((end ?? AsOf) - Utc(from)).TotalMilliseconds, "it fell", 0);
        return outage with { Notes = notes };
    }

    public static NoteVersion Version(string id, NoteKind kind, string from, string? to, string received, string text,
        string? service = null, string? name = null, bool isWithdrawn = false, string? status = null) => new(id, kind, Utc(from),
            to == null ? null : Utc(to), new NoteFilter("INS", "shop", service, null, null), status, text, "ed", name,
            isWithdrawn, Utc(received));

    public static readonly Note
        Excluded = new([Version("e1", NoteKind.Excluded, "2026-10-21T12:00", "2026-10-21T13:00", "2026-10-22T06:30",
            "the provider's", "checkout", "Jane Doe")]),
        Upgrade = new([
            Version("m1", NoteKind.Maintenance, "2026-10-10T20:00", "2026-10-11T00:00", "2026-10-06T08:00", "upgrade of the database", "db"),
            Version("m1", NoteKind.Maintenance, "2026-10-10T20:00", "2026-10-11T00:00", "2026-10-07T08:00", "upgrade to 17", "db")]),
        Postponed = new([
            Version("m2", NoteKind.Maintenance, "2026-10-20T20:00", "2026-10-20T22:00", "2026-10-16T08:00", "new disks", "mail"),
            Version("m2", NoteKind.Maintenance, "2026-10-20T20:00", "2026-10-20T22:00", "2026-10-19T08:00", "postponed", "mail", isWithdrawn: true)]),
        Correction = new([Version("c1", NoteKind.Correction, "2026-10-13T10:00", "2026-10-13T10:03", "2026-10-13T11:00",
            "the alert's own fault", "login", status: "up")]),
        Comment = new([Version("k1", NoteKind.Comment, "2026-10-01T00:00", null, "2026-10-01T00:00", "a <b>new</b> provider")]);

    public static readonly string[] Names =
        ["checkout", "db", "mail", "search", "cart", "login", "payment", "catalogue", "images", "invoices", "shipping", "支払い"];

    public static PlatformReport Report(string? slo = "99.9")
    {
        List<OutageRow> outages =
        [
            Outage(Key("db"), "2026-10-10T20:10", "2026-10-10T23:20", Upgrade),
            .. Enumerable.Range(3, 8).Select(i => Outage(Key(Names[i]), $"2026-10-{9 + i}T10:00", $"2026-10-{9 + i}T10:03",
                Names[i] == "login" ? [Correction] : [])),
            Outage(Key("checkout"), "2026-10-21T12:05", "2026-10-21T12:52", Excluded),
            Outage(Key("checkout"), "2026-10-25T03:00", "2026-10-25T03:45"), Outage(Key("db"), "2026-10-26T03:00", "2026-10-26T03:07"),
        ];
        var rows = Names.Select(n => n switch
        {
            "checkout" => Row(Key(n), 92 * Minute, outages: 2, excluded: 47 * Minute),
            "db" => Row(Key(n), 197 * Minute, outages: 2, maintenance: 4 * Hour, maintenanceDown: 190 * Minute),
            "mail" => Row(Key(n), unknown: (50 * Hour) + (30 * Minute)),
            "支払い" => Row(Key(n)),
            _ => Row(Key(n), 3 * Minute, outages: 1),
        });
        return PlatformReport.All(Counting(slo), AsOf, [.. rows], outages).Single();
    }

    public static ReportChapter Chapter(PlatformReport? report = null)
    {
        report ??= Report();
        var strips = report.Services.ToDictionary(s => s.Key, s =>
        {
            var strip = new Strip(report.From, report.To, 93);
            strip.Add(report.From, s.Key.Service == "mail" ? From.AddHours(50.5) : From, Status.Unknown);
            strip.Add(s.Key.Service == "mail" ? From.AddHours(50.5) : From, report.To, Status.Up);
            if (s.Key.Service == "checkout")
                strip.Add(Utc("2026-10-21T12:05"), Utc("2026-10-21T12:52"), Status.Down);
            return strip;
        });
        return new(report, new(AsOf, "ses report --partition INS --platform shop --as-of 2026-11-01T07:00:00Z --period month --slo 99.9 --format html",
            "1.0.0", "pause 15m, stale after 25h, forget 30d", "ses export --from 2026-09-30T22:00:00Z --as-of 2026-11-01T07:00:00Z",
            new string('a', 64)), [Comment, Upgrade, Correction, Postponed, Excluded],
            [new(Utc("2026-10-03T01:00"), Utc("2026-10-03T01:20"), "SeS was away"), new(Utc("2026-10-30T01:00"), null, "Watchdog of INS is silent")], strips);
    }
}
