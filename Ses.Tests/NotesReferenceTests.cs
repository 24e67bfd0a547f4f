using System.Globalization;
using System.Runtime.CompilerServices;
using System.Text;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>
/// Random histories with notes of all kinds, held against a reference that looks at each stretch of time between
/// two borders by itself, and asks there what is known, what covers it, and what did so at that moment.
/// </summary>
public sealed class NotesReferenceTests
{
    /// <summary>Thousands were held against it once; so many take some seconds.</summary>
    private const int Seeds = 30;

    private static readonly TimeSpan Day = TimeSpan.FromDays(1);

    private static readonly ServiceFilter Every = new(null, null, null, null, null);

    /// <summary>Zones, and when their clocks are set.</summary>
    private static readonly (string Zone, DateTime Set)[] Settings =
    [
        ("Europe/Berlin", Utc("2026-10-25T01:00")), ("America/New_York", Utc("2026-11-01T06:00")),
        ("Australia/Lord_Howe", Utc("2026-10-03T15:30")), ("Europe/Berlin", Utc("2026-03-29T01:00")),
        ("America/New_York", Utc("2026-03-08T07:00")), ("Australia/Lord_Howe", Utc("2026-04-04T15:00")),
    ];

    /// <summary>Service hours as text, and as days (0: Monday) with minutes from and to.</summary>
    private static readonly (string Text, (int Day, int From, int To)[] Hours)[] Contracts =
    [
        ("Mo-Fr 08:00-12:00,13:00-17:00; Sa,Su 10:00-14:00",
            [.. from d in Enumerable.Range(0, 5) from h in new[] { (480, 720), (780, 1020) } select (d, h.Item1, h.Item2),
                (5, 600, 840), (6, 600, 840)]),
        ("Sa-Mo 22:00-03:00", [(5, 1320, 1620), (6, 1320, 1620), (0, 1320, 1620)]),
        ("Su 01:30-02:30;Su 02:00-02:15, 23:00-24:00; We 08:00-08:00; Mo-Sa 00:00-02:00",
            [(6, 90, 150), (6, 120, 135), (6, 1380, 1440), (2, 480, 1920), .. Enumerable.Range(0, 6).Select(d => (d, 0, 120))]),
    ];

    private static DateTime Utc(string text) => DateTime.Parse(text, CultureInfo.InvariantCulture,
        DateTimeStyles.AssumeUniversal | DateTimeStyles.AdjustToUniversal);

    private static DateTime Min(DateTime a, DateTime b) => a < b ? a : b;

    private static DateTime Max(DateTime a, DateTime b) => a > b ? a : b;

    private static string Tell(DateTime? time) => time is { } t && t < DateTime.MaxValue
        ? t.ToString(t.Second == 0 ? "MM-dd HH:mm" : "MM-dd HH:mm:ss.fff", CultureInfo.InvariantCulture) : "-";

    // ---- What happened ----

    /// <summary>One firing of an alert of its own.</summary>
    private sealed record Firing(int Number, ServiceKey Service, string Status, DateTime Starts, DateTime Recorded)
    {
        public DateTime? Ends { get; set; }

        public DateTime EndRecorded { get; set; } = DateTime.MaxValue;
    }

    /// <summary>All facts of a history, each with the moment of its recording.</summary>
    private sealed class World
    {
        public List<ServiceKey> Services { get; } = [];

        public List<Firing> Firings { get; } = [];

        /// <summary>In each SeS was away; it knew of it at its return.</summary>
        public List<(DateTime From, DateTime To)> Gaps { get; } = [];

        public List<NoteVersion> Versions { get; } = [];

        public List<(string Partition, DateTime Recorded)> Receipts { get; } = [];

        /// <summary>At which something was recorded.</summary>
        public List<DateTime> Steps { get; } = [];

        public DateTime Begin { get; set; }

        public string Tell(DateTime moment, ServiceKey? of = null)
        {
            var told = new StringBuilder($"as of {NotesReferenceTests.Tell(moment)}");
            foreach (var (partition, first) in Receipts.GroupBy(r => r.Partition).Select(g => g.First()))
                told.Append(CultureInfo.InvariantCulture, $"\nfirst of {partition} {NotesReferenceTests.Tell(first)}");
            foreach (var f in Firings.Where(f => of == null || f.Service == of).OrderBy(f => f.Starts))
            {
                told.Append(CultureInfo.InvariantCulture, $"\n{NotesReferenceTests.Tell(f.Starts)} to {NotesReferenceTests.Tell(f.Ends)} {f.Status} {f.Service}"
                    + $" @{NotesReferenceTests.Tell(f.Recorded)}, @{NotesReferenceTests.Tell(f.EndRecorded)}");
            }
            foreach (var gap in Gaps)
                told.Append(CultureInfo.InvariantCulture, $"\ngap {NotesReferenceTests.Tell(gap.From)} to {NotesReferenceTests.Tell(gap.To)}");
            foreach (var v in Versions.Where(v => of == null || Versions.Any(o => o.Id == v.Id && Takes(o.Filter, of.Value)))
                .OrderBy(v => v.Id, StringComparer.Ordinal).ThenBy(v => v.Received))
            {
                told.Append(CultureInfo.InvariantCulture, $"\n{v.Id} {v.Kind} {v.Status} {NotesReferenceTests.Tell(v.From)} to {NotesReferenceTests.Tell(v.To)}"
                    + $" {(v.IsWithdrawn ? "withdrawn " : "")}[{v.Filter.Partition} {v.Filter.Platform ?? "-"} {v.Filter.Service ?? "-"}"
                    + $" {v.Filter.Facet ?? "-"} {v.Filter.Location ?? "-"}] said {NotesReferenceTests.Tell(v.Received)} @{NotesReferenceTests.Tell(v.Recorded)}");
            }
            return told.ToString();
        }
    }

    private static bool Takes(NoteFilter filter, ServiceKey service)
    {
        (string? Pattern, string Name)[] names = [(filter.Platform, service.Platform), (filter.Service, service.Service),
            (filter.Facet, service.Facet), (filter.Location, service.Location)];
        foreach (var (pattern, name) in names)
        {
            var fits = pattern == null || (pattern[^1] == '*'
                ? name.StartsWith(pattern[..^1], StringComparison.Ordinal) : pattern == name);
            if (!fits)
                return false;
        }
        return filter.Partition == service.Partition;
    }

    // ---- The reference ----

    /// <summary>Nothing changes in it. Without a status: nothing is known, or it is ahead of the clock.</summary>
    private sealed record Piece(DateTime From, DateTime To, string? Status, bool IsRetired, bool IsMaintained, bool IsExcluded)
    {
        /// <summary>The outage that it belongs to, by its place among those of the service; -1: none.</summary>
        public int Outage { get; set; } = -1;
    }

    private sealed record Downtime(DateTime From)
    {
        public DateTime LastDown { get; set; }

        public bool IsOpen { get; set; }
    }

    /// <summary>The history as it was known at a moment.</summary>
    private sealed class Knowledge
    {
        private readonly List<Firing> _firings;
        private readonly List<(DateTime From, DateTime To)> _gaps;
        private readonly List<List<NoteVersion>> _notes;
        private readonly List<(string Partition, DateTime Recorded)> _receipts;
        private readonly DateTime _moment;
        private readonly Dictionary<ServiceKey, (List<Piece> Pieces, List<Downtime> Downtimes)> _pieces = [];

        public Knowledge(World world, DateTime moment)
        {
            _moment = moment;
            _firings = world.Firings.FindAll(f => f.Recorded <= moment);
            _gaps = world.Gaps.FindAll(g => g.To <= moment);
            _receipts = world.Receipts.FindAll(r => r.Recorded <= moment);
            _notes = [.. world.Versions.Where(v => v.Recorded <= moment).GroupBy(v => (v.Filter.Partition, v.Id))
                .Select(n => n.OrderBy(v => v.Received).ThenBy(LineOf, StringComparer.Ordinal).ToList())];
            Services = world.Services.FindAll(s => _firings.Any(f => f.Service == s));
            foreach (var service in Services)
                _pieces[service] = Cut(service);
        }

        public List<ServiceKey> Services { get; }

        public IEnumerable<List<NoteVersion>> Notes => _notes;

        public List<Piece> PiecesOf(ServiceKey service) => _pieces[service].Pieces;

        public List<Downtime> DowntimesOf(ServiceKey service) => _pieces[service].Downtimes;

        private static string LineOf(NoteVersion version) => FactLines.Note(version.By, version, version.Recorded, out _);

        // -- A moment --

        private static bool Covers(NoteVersion version, ServiceKey service, DateTime t) => !version.IsWithdrawn
            && Takes(version.Filter, service) && version.From <= t && (version.To == null || t < version.To);

        private IEnumerable<List<NoteVersion>> Covering(NoteKind kind, ServiceKey service, DateTime t) =>
            _notes.Where(n => n[^1].Kind == kind && Covers(n[^1], service, t));

        public IEnumerable<string> Maintenance(ServiceKey service, DateTime t) => Covering(NoteKind.Maintenance, service, t)
            .Where(n => n.LastOrDefault(v => v.Received <= t) is { } inForce && Covers(inForce, service, t)).Select(n => n[^1].Id);

        /// <summary>Until an alert of it comes that began later.</summary>
        private bool IsRetired(ServiceKey service, DateTime t) => Covering(NoteKind.Retired, service, t)
            .Any(n => !_firings.Any(f => f.Service == service && f.Starts > n[^1].From && f.Starts <= t));

        private DateTime EndOf(Firing firing) => firing.EndRecorded <= _moment ? firing.Ends!.Value : DateTime.MaxValue;

        public DateTime BaseKnownFrom(ServiceKey service) => Min(_firings.Where(f => f.Service == service).Min(f => f.Starts),
            _receipts.Where(r => r.Partition == service.Partition).Min(r => r.Recorded));

        private string? Watched(ServiceKey service, DateTime t)
        {
            var open = _firings.Where(f => f.Service == service && f.Starts <= t && t < EndOf(f)).ToList();
            if (open.Exists(f => f.Status == "down"))
                return "down";
            if (open.Count > 0)
                return open.MaxBy(f => f.Starts)!.Status;
            return t < BaseKnownFrom(service) ? null : _gaps.Exists(g => g.From <= t && t < g.To) ? "unknown" : "up";
        }

        private string? StatusAt(ServiceKey service, DateTime t) => t > _moment || IsRetired(service, t) ? null
            : Covering(NoteKind.Correction, service, t).OrderBy(n => n[^1].Received)
                .ThenBy(n => LineOf(n[^1]), StringComparer.Ordinal).LastOrDefault()?[^1].Status ?? Watched(service, t);

        // -- A service --

        private (List<Piece> Pieces, List<Downtime> Downtimes) Cut(ServiceKey service)
        {
            var borders = _firings.Where(f => f.Service == service).SelectMany(f => new[] { f.Starts, EndOf(f) })
                .Concat(_gaps.SelectMany(g => new[] { g.From, g.To })).Append(BaseKnownFrom(service)).Append(_moment)
                .Concat(_notes.SelectMany(n => n).SelectMany(v => new[] { v.From, v.To ?? v.From, v.Received }))
                .Where(b => b < DateTime.MaxValue).Append(_moment.AddDays(-400)).Append(_moment.AddDays(400))
                .Distinct().Order().ToList();
            var (pieces, downtimes) = (new List<Piece>(), new List<Downtime>());
            for (var i = 0; i + 1 < borders.Count; i++)
            {
                var t = borders[i];
                pieces.Add(new Piece(t, borders[i + 1], t < _moment ? StatusAt(service, t) : null, IsRetired(service, t),
                    Maintenance(service, t).Any(), Covering(NoteKind.Excluded, service, t).Any()));
            }
            Downtime? current = null;
            foreach (var piece in pieces.Where(p => p.From < _moment))
            {
                if (piece.Status == "down")
                {
                    // A day unknown is the end of it.
                    if (current == null || piece.From - current.LastDown >= Day)
                        downtimes.Add(current = new Downtime(piece.From));
                    current.LastDown = piece.To;
                }
                else if (piece.Status != "unknown")
                {
                    current = null;
                }
                piece.Outage = current == null ? -1 : downtimes.Count - 1;
            }
            if (current != null && _moment - current.LastDown < Day)
                current.IsOpen = true;
            return (pieces, downtimes);
        }

        /// <summary>Stretches of one status.</summary>
        public List<(DateTime From, DateTime To, string Status)> RunsOf(ServiceKey service)
        {
            var runs = new List<(DateTime From, DateTime To, string Status)>();
            foreach (var piece in PiecesOf(service).Where(p => p.Status != null))
            {
                if (runs.Count > 0 && runs[^1].To == piece.From && runs[^1].Status == piece.Status)
                    runs[^1] = runs[^1] with { To = piece.To };
                else
                    runs.Add((piece.From, piece.To, piece.Status!));
            }
            return runs;
        }

        // -- Figures --

        private static IEnumerable<(Piece Piece, long Length)> Counted(
            IEnumerable<Piece> pieces, DateTime from, DateTime to, List<(DateTime From, DateTime To)> hours)
        {
            var near = hours.FindAll(h => h.From < to && h.To > from);
            foreach (var piece in pieces.Where(p => p.From < to && p.To > from))
            {
                foreach (var hour in near)
                {
                    var (begin, end) = (Max(Max(piece.From, from), hour.From), Min(Min(piece.To, to), hour.To));
                    if (begin < end)
                        yield return (piece, (long)(end - begin).TotalMilliseconds);
                }
            }
        }

        public Figures FiguresOf(ServiceKey service, DateTime from, DateTime to, List<(DateTime From, DateTime To)> hours)
        {
            var counted = Counted(PiecesOf(service), from, to, hours).ToList();
            long Sum(Func<Piece, bool> isMeant) => counted.Where(c => isMeant(c.Piece)).Sum(c => c.Length);
            var (unknown, down, up) = (Sum(p => p.Status == "unknown"), Sum(p => p.Status == "down"), Sum(p => p.Status == "up"));
            var degraded = Sum(p => p.Status is not (null or "unknown" or "down" or "up"));
            var outages = counted.Where(c => c.Piece.Status == "down").GroupBy(c => c.Piece.Outage)
                .ToDictionary(g => g.Key, g => g.Sum(c => c.Length));
            var end = Min(to, _moment);
            var last = PiecesOf(service).LastOrDefault(p => p.From < end);
            var isOpen = last is { Outage: >= 0 and var place, Status: var status } && outages.ContainsKey(place)
                && (status == "down" || end - LastDownBefore(service, end) < Day);
            return new Figures((long)(to - from).TotalMilliseconds - unknown - down - degraded - up, unknown, down, degraded, up,
                Sum(p => p.From >= _moment && !p.IsMaintained && !p.IsRetired),
                Sum(p => p.Status is not (null or "unknown") && p.IsMaintained), Sum(p => p.Status == "down" && p.IsMaintained),
                Sum(p => p.Status == "down" && p.IsExcluded && !p.IsMaintained),
                outages.Count, outages.Values.DefaultIfEmpty().Max(), isOpen);
        }

        private DateTime LastDownBefore(ServiceKey service, DateTime end) =>
            PiecesOf(service).Where(p => p.From < end && p.Status == "down").Max(p => p.To);

        public IEnumerable<string> OutagesOf(ServiceKey service, DateTime from, DateTime to, List<(DateTime From, DateTime To)> hours)
        {
            var counted = Counted(PiecesOf(service), from, to, hours).Where(c => c.Piece.Status == "down").ToList();
            foreach (var (place, downtime) in DowntimesOf(service).Index())
            {
                var own = counted.FindAll(c => c.Piece.Outage == place);
                if (own.Count == 0)
                    continue;
                var end = downtime.IsOpen ? _moment : downtime.LastDown;
                var notes = _notes.Select(n => n[^1]).Where(v => !v.IsWithdrawn && Takes(v.Filter, service)
                    && v.From < end && !(v.To <= downtime.From)
                    // One that is back is not retired any more.
                    && !(v.Kind == NoteKind.Retired && _firings.Any(f => f.Service == service && f.Starts > v.From && f.Starts <= downtime.From)))
                    .Select(v => v.Id).Order(StringComparer.Ordinal);
                yield return TellOutage(service, downtime.From, downtime.IsOpen ? null : downtime.LastDown,
                    own.Sum(c => c.Length), own.Where(c => c.Piece.IsMaintained).Sum(c => c.Length),
                    own.Where(c => c.Piece.IsExcluded && !c.Piece.IsMaintained).Sum(c => c.Length), notes);
            }
        }
    }

    private static string TellOutage(ServiceKey service, DateTime from, DateTime? to, long down, long maintenance, long excluded,
        IEnumerable<string> notes) => $"{service}: {Tell(from)} to {Tell(to)}, down {down / 1000.0}, maintenance {maintenance / 1000.0}, "
            + $"excluded {excluded / 1000.0}, notes {string.Join(' ', notes)}";

    // ---- Zones, by looking at each minute ----

    private static readonly Dictionary<(string, DateTime), (DateTime First, DateTime Last)> Scanned = [];

    private static (DateTime First, DateTime Last) Scan(string zone, DateTime local)
    {
        if (Scanned.TryGetValue((zone, local), out var known))
            return known;
        var info = TimeZoneInfo.FindSystemTimeZoneById(zone);
        var minutes = Enumerable.Range(-15 * 60, 30 * 60).Select(m => DateTime.SpecifyKind(local.AddMinutes(m), DateTimeKind.Utc)).ToList();
        var there = minutes.FindAll(m => m + info.GetUtcOffset(m) == local);
        var jump = minutes.Find(m => m + info.GetUtcOffset(m) > local);
        return Scanned[(zone, local)] = there.Count == 0 ? (jump, jump) : (there[0], there[^1]);
    }

    private static readonly List<(DateTime From, DateTime To)> AllHours = [(DateTime.MinValue, DateTime.MaxValue)];

    private static List<(DateTime From, DateTime To)> HoursOf(string zone, (int Day, int From, int To)[] hours, DateTime from, DateTime to)
    {
        var spans = new List<(DateTime From, DateTime To)>();
        for (var day = from.Date.AddDays(-3); day < to.AddDays(3); day = day.AddDays(1))
        {
            foreach (var h in hours.Where(h => h.Day == ((int)day.DayOfWeek + 6) % 7))
                spans.Add((Scan(zone, day.AddMinutes(h.From)).First, Scan(zone, day.AddMinutes(h.To)).Last));
        }
        // Each minute counts once.
        var united = new List<(DateTime From, DateTime To)>();
        foreach (var span in spans.Where(s => s.From < s.To).OrderBy(s => s.From))
        {
            if (united.Count > 0 && span.From <= united[^1].To)
                united[^1] = (united[^1].From, Max(united[^1].To, span.To));
            else
                united.Add(span);
        }
        return united;
    }

    private static IEnumerable<(string Name, DateTime From, DateTime To)> PeriodsOf(PeriodLength length, string zone, DateTime from, DateTime to)
    {
        for (var day = from.Date.AddDays(-35); day < to.AddDays(3); day = day.AddDays(1))
        {
            var (isFirst, next, name) = length switch
            {
                PeriodLength.Day => (true, day.AddDays(1), $"{day:yyyy-MM-dd}"),
                PeriodLength.Week => (day.DayOfWeek == DayOfWeek.Monday, day.AddDays(7), $"{ISOWeek.GetYear(day)}-W{ISOWeek.GetWeekOfYear(day):00}"),
                _ => (day.Day == 1, day.AddMonths(1), $"{day:yyyy-MM}"),
            };
            if (!isFirst)
                continue;
            var (begin, end) = (Scan(zone, day).First, Scan(zone, next).First);
            if (begin < to && end > from)
                yield return (name, begin, end);
        }
    }

    // ---- Random histories ----

    private static readonly string[] Platforms = ["p1", "p10", "P1"], Names = ["api", "api2", "db"], Facets = ["node", "no"],
        Locations = ["a", "ab", "a%b", "a_b", "äb", "[a]", "a*"];

    /// <summary>Makes a history, and stores it as it comes.</summary>
    private sealed class Play(Random random, Writer writer, RecentAlerts recent, World world)
    {
        private DateTime _now;

        private T One<T>(params T[] of) => of[random.Next(of.Length)];

        private TimeSpan Minutes(int from, int to) => TimeSpan.FromMinutes(random.Next(from, to));

        public DateTime Run(DateTime begin)
        {
            world.Begin = _now = begin;
            while (world.Services.Count < 7)
            {
                var service = new ServiceKey(random.Next(3) == 0 ? "INS2" : "INS", One(Platforms), One(Names), One(Facets), One(Locations));
                if (!world.Services.Contains(service))
                    world.Services.Add(service);
            }
            var (steps, pace) = (random.Next(15, 110), random.Next(20, 500));
            for (var i = 0; i < steps; i++)
            {
                _now += Minutes(1, pace);
                Step();
                world.Steps.Add(_now);
            }
            _now += Minutes(1, pace);
            return _now.AddSeconds(30);
        }

        private void Commit(Action act) => writer.Commit([act], _now);

        private void Step()
        {
            var open = world.Firings.FindAll(f => f.Ends == null);
            switch (random.Next(100))
            {
                case < 25:
                    Fire(isEnded: false);
                    break;
                case < 32:
                    Fire(isEnded: true);
                    break;
                case < 52 when open.Count > 0:
                    End(open[random.Next(open.Count)]);
                    break;
                case < 55:
                    BeAway();
                    break;
                case < 75:
                    AddNote();
                    break;
                case < 93 when world.Versions.Count > 0:
                    Change(world.Versions[random.Next(world.Versions.Count)]);
                    break;
                case < 97:
                    ImportVersion();
                    break;
                default:
                    break;
            }
        }

        private void Fire(bool isEnded)
        {
            var starts = _now - Minutes(0, random.Next(4) == 0 ? 2000 : 100);
            var service = world.Services[random.Next(world.Services.Count)];
            if (world.Firings.Exists(f => f.Service == service && f.Starts == starts))
                return;
            var firing = new Firing(world.Firings.Count, service, One("down", "down", "down", "degraded", "limping"), starts, _now);
            world.Firings.Add(firing);
            if (isEnded)
                (firing.Ends, firing.EndRecorded) = (starts.AddMinutes(random.Next(1, Math.Max(2, (int)(_now - starts).TotalMinutes))), _now);
            if (firing.Ends > _now)
                firing.Ends = _now;
            if (firing.Ends <= starts)
                world.Firings.Remove(firing);
            else
                Take(firing);
        }

        private void End(Firing firing)
        {
            var least = Max(firing.Starts.AddMinutes(1), _now - Minutes(0, 300));
            if (least <= _now)
            {
                (firing.Ends, firing.EndRecorded) = (least, _now);
                Take(firing);
            }
        }

        private void Take(Firing firing)
        {
            var body = StoreChild.Body(new IncomingAlert(firing.Service, false, AlertSource.Webhook, "",
                $$"""{"alertname":"n{{firing.Number}}"}""", firing.Status, firing.Starts, firing.Ends, "words"));
            Commit(() => writer.Take(firing.Service.Partition, body, recent.KeysOf(body.Alerts), null, _now));
            world.Receipts.Add((firing.Service.Partition, _now));
        }

        private void BeAway()
        {
            var from = _now;
            _now += Minutes(6, One(60, 600, 3500));
            world.Gaps.Add((from, _now));
            Commit(() =>
            {
                writer.Import("n", null, null, null, from, null, _now);
                writer.Import("n", null, null, null, from, _now, _now);
            });
        }

        private string? Pattern(string[] names) => random.Next(8) switch
        {
            < 4 => null,
            4 => One(names)[..1] + "*",
            5 => One(names) + "*",
            6 => random.Next(4) == 0 ? "*" : null,
            _ => One(names),
        };

        private NoteDraft Filtered(NoteDraft draft)
        {
            if (random.Next(3) > 0)
                return draft with { Platform = Pattern(Platforms), Service = Pattern(Names), Facet = Pattern(Facets), Location = Pattern(Locations) };
            var service = world.Services[random.Next(world.Services.Count)];
            return draft with { Platform = service.Platform, Service = service.Service, Facet = service.Facet, Location = service.Location };
        }

        private DateTime? EndAfter(DateTime from) => random.Next(5) == 0 ? null : from + Minutes(1, One(60, 600, 4000));

        private static readonly HashSet<string> All = ["to", "platform", "service", "facet", "location", "status", "author_name"];

        private NoteDraft New(string? id)
        {
            var kind = One(NoteKind.Maintenance, NoteKind.Maintenance, NoteKind.Maintenance, NoteKind.Excluded, NoteKind.Excluded,
                NoteKind.Correction, NoteKind.Correction, NoteKind.Comment, NoteKind.Retired);
            var from = _now + (kind == NoteKind.Maintenance ? Minutes(-600, 1500) : Minutes(-4000, 1000));
            return Filtered(new NoteDraft(id, null, All)
            {
                Kind = kind,
                From = from,
                To = EndAfter(from),
                Status = kind == NoteKind.Correction ? One("up", "up", "down", "down", "unknown", "limping", "odd") : null,
                Text = "text",
            });
        }

        private void AddNote() => Add(New($"m{world.Versions.Count}"), One("INS", "INS", "INS2"));

        private void Change(NoteVersion last)
        {
            last = world.Versions.Where(v => v.Id == last.Id && v.Filter.Partition == last.Filter.Partition).OrderBy(v => v.Received).Last();
            var draft = new NoteDraft(last.Id, null, new HashSet<string>());
            draft = random.Next(8) switch
            {
                0 or 1 => draft with { IsWithdrawn = !last.IsWithdrawn },
                2 => Filtered(draft with { Given = new HashSet<string> { "platform", "service", "facet", "location" } }),
                3 when last.To == null || last.To > _now => draft with { From = _now + Minutes(-1000, 300), To = null, Given = new HashSet<string> { "to" } },
                4 when last.Status != null => draft with { Status = One("up", "down", "unknown"), Given = new HashSet<string> { "status" } },
                _ => draft with { To = OtherEnd(last), Given = new HashSet<string> { "to" } },
            };
            Add(draft, last.Filter.Partition);
            // What is said at once after that comes a millisecond later.
            if (random.Next(10) == 0)
                Add(draft with { Text = "again", IsWithdrawn = null }, last.Filter.Partition);
        }

        /// <summary>Sooner or later than it was.</summary>
        private DateTime OtherEnd(NoteVersion last) => Max(last.From.AddMinutes(1), last.To is { } to && random.Next(2) == 0
            ? to + Minutes(-600, 900) : _now + Minutes(-200, 400));

        private void Add(NoteDraft draft, string partition)
        {
            Commit(() =>
            {
                var answer = NoteBook.Add(writer, draft, partition, "me", _now);
                Assert.StartsWith("to: ", answer.Refusal?.Message ?? "to: ", StringComparison.Ordinal);
                if (answer.IsNew)
                    world.Versions.Add(answer.Note!.Last);
            });
        }

        /// <summary>A version that another SeS took, at times of a note that is here.</summary>
        private void ImportVersion()
        {
            var received = _now - Minutes(0, 3000);
            var draft = New($"m{world.Versions.Count}");
            var version = draft.Of(null, draft.Id!, One("INS", "INS2"), "me", received);
            if (world.Versions.Count > 0 && random.Next(3) > 0)
            {
                var other = world.Versions[random.Next(world.Versions.Count)];
                version = version with
                {
                    Id = other.Id,
                    Kind = other.Kind,
                    Status = other.Status == null ? null : One("down", "up"),
                    Filter = random.Next(2) == 0 ? other.Filter : version.Filter with { Partition = other.Filter.Partition },
                    IsWithdrawn = random.Next(5) == 0,
                    Received = random.Next(4) == 0 ? other.Received : received,
                };
            }
            Commit(() => Assert.True(NoteBook.Import(writer, "other", version)));
            world.Versions.Add(version with { By = "other", Recorded = _now });
        }
    }

    // ---- Comparison ----

    private static void Same<T>(IEnumerable<T> expected, IEnumerable<T> found, Func<string> about,
        [CallerArgumentExpression(nameof(found))] string what = "")
    {
        var (left, right) = (expected.ToList(), found.ToList());
        if (left.SequenceEqual(right))
            return;
        var (missing, extra) = (left.Except(right), right.Except(left));
        Assert.Fail($"{about()}\n{what}\nmissing:\n{string.Join('\n', missing)}\nnot expected:\n{string.Join('\n', extra)}"
            + $"\nin the order {string.Join("; ", right)}");
    }

    private static string TellStatus(Status status) =>
        status <= Status.Unknown ? status.ToString().ToLowerInvariant() : "other";

    private static void Compare(int seed, World world, Snapshot snapshot, DateTime now, DateTime? asOf)
    {
        var random = new Random(seed);
        var moment = asOf ?? now;
        var known = new Knowledge(world, moment);
        var questions = new Questions(snapshot, StoreChild.Rules.Timeline, now, asOf);
        string About(ServiceKey? service = null) => $"seed {seed}, {(asOf == null ? "now" : "as of a moment")}: {world.Tell(moment, service)}\n";

        var present = questions.Present(Every).ToList();
        Same(known.Services.Where(s => known.RunsOf(s) is { Count: > 0 } runs && runs[^1].To == moment)
                .Select(s => (s, known.RunsOf(s)[^1].Status, known.RunsOf(s)[^1].From)).OrderBy(r => $"{r.s}", StringComparer.Ordinal),
            present.Select(r => (s: r.Service, r.Status, From: r.Since)).OrderBy(r => $"{r.s}", StringComparer.Ordinal), () => About());
        foreach (var row in present)
        {
            var notes = known.Maintenance(row.Service, moment).ToList();
            Assert.True(row.Maintenance == null ? notes.Count == 0 : notes.Contains(row.Maintenance),
                $"{About(row.Service)}\n{row.Service} is under maintenance by {row.Maintenance ?? "none"}, not by {string.Join(' ', notes)}");
        }
        if (asOf == null)
            Same(present.Where(r => known.Maintenance(r.Service, moment).Any()).CountBy(r => r.Service.Partition).OrderBy(c => c.Key, StringComparer.Ordinal),
            questions.UnderMaintenance().Where(c => c.Value > 0).OrderBy(c => c.Key, StringComparer.Ordinal), () => About());

        if (asOf == null)
        {
            var statuses = present.ConvertAll(r => (r.Service, r.Status));
            Same(present.Where(r => r.Status != "up").Select(r => $"{r.Service} {r.Status} {r.Since:O}").Order(StringComparer.Ordinal),
                questions.NotUp().Select(s => $"{s.Service} {s.Status} {s.Since:O}").Order(StringComparer.Ordinal), () => About());
            Same(present.Select(r => r.Service), questions.ListedServices(Every).Select(s => s.Service), () => About());
            StateCounts CountsOf(IEnumerable<CurrentRow> rows) => rows.Aggregate(new StateCounts(), (sum, r) => sum
                + (r.Maintenance != null ? new(0, 0, 0, 1, 0) : StateCounts.Of(r.Status, 1, r.IsWatched != false)));
            Same(present.GroupBy(r => (r.Service.Partition, r.Service.Platform)).OrderBy(g => g.Key)
                    .Select(g => new PlatformRow(g.Key.Partition, g.Key.Platform, CountsOf(g))),
                questions.Platforms().OrderBy(p => (p.Partition, p.Platform)), () => About());
        }

        var history = questions.History(Every, null, null).ToList();
        Assert.Equal(history.Select(h => h.Time).Order(), history.Select(h => h.Time));
        foreach (var (_, service, runs) in questions.Runs(Every, AlertMapping.Earliest))
        {
            var found = new List<(DateTime From, DateTime To, string Status)>();
            foreach (var run in runs)
            {
                var (to, status) = (run.To ?? moment, TellStatus(run.Status));
                if (found.Count > 0 && found[^1].To == run.From && found[^1].Status == status)
                    found[^1] = found[^1] with { To = to };
                else
                    found.Add((run.From, to, status));
            }
            var named = new List<(DateTime From, DateTime To, string Status)>();
            foreach (var run in known.Services.Contains(service) ? known.RunsOf(service) : [])
            {
                var status = run.Status is "limping" or "odd" ? "other" : run.Status;
                if (named.Count > 0 && named[^1].To == run.From && named[^1].Status == status)
                    named[^1] = named[^1] with { To = run.To };
                else
                    named.Add((run.From, run.To, status));
            }
            Same(named, found, () => $"{About(service)}{service}");
        }
        foreach (var service in world.Services)
        {
            Same(known.Services.Contains(service) ? known.RunsOf(service).Select(r => (Tell(r.From), r.Status)) : [],
                history.Where(h => h.Service == service).Select(h => (Tell(h.Time), h.Status)), () => $"{About(service)}{service}");
        }
        foreach (var note in known.Notes.Select(n => n[^1]))
            Assert.True(known.Services.Count(s => Takes(note.Filter, s)) == questions.CountMatching(note.Filter) || asOf != null, $"{About()}\n{note}");
        Same(known.Notes.Select(n => $"{n[^1].Filter.Partition} {n[^1].Id} {n.Count} {n[^1].Received:O}").Order(StringComparer.Ordinal),
            questions.Notes(Every, null, null).Select(n => $"{n.Last.Filter.Partition} {n.Last.Id} {n.Versions.Count} {n.Last.Received:O}").Order(StringComparer.Ordinal), () => About());

        // ---- Figures ----
        for (var round = 0; round < 4; round++)
        {
            var zone = Settings[random.Next(Settings.Length)].Zone;
            var contract = random.Next(3) == 0 ? default : Contracts[random.Next(Contracts.Length)];
            PeriodLength? period = round < 2 ? null : new[] { PeriodLength.Day, PeriodLength.Week, PeriodLength.Month }[random.Next(3)];
            var length = (int)(moment - world.Begin).TotalMinutes;
            DateTime? from = round == 0 || (round == 3 && random.Next(2) == 0) ? null : world.Begin.AddMinutes(random.Next(-3000, length));
            DateTime? to = round is 0 or 3 && from == null ? null : from!.Value.AddMinutes(random.Next(1, (period == null ? length : 12 * 1440) + 3000));
            if (round == 1 && random.Next(3) == 0)
                to = from < moment ? null : to;
            var counting = new Counting(period, Zone.Parse(zone), contract.Text == null ? null : ServiceHours.Parse(contract.Text), null);
            List<(DateTime From, DateTime To)> HoursIn(DateTime begin, DateTime end) =>
                contract.Text == null ? AllHours : HoursOf(zone, contract.Hours, begin, end);
            string AboutRange(ServiceKey? s) => $"{About(s)}{Tell(from)} to {Tell(to)}, {period}, {zone}, {contract.Text}, {s}";

            var expected = new List<ReportRow>();
            foreach (var service in known.Services)
            {
                var first = known.PiecesOf(service).Find(p => p.Status != null)?.From;
                void Add(string? name, DateTime begin, DateTime end)
                {
                    // Not yet known, or retired all along.
                    if (first == null ? begin < moment : first >= end)
                        return;
                    if (known.PiecesOf(service).Where(p => p.From < end && p.To > begin).All(p => p.IsRetired))
                        return;
                    expected.Add(new ReportRow(service, name, begin, end, known.FiguresOf(service, begin, end, HoursIn(begin, end))));
                }
                if (period == null)
                {
                    if ((from ?? first) is { } begin && begin < (to ?? moment))
                        Add(null, begin, to ?? moment);
                }
                else if (from == null)
                {
                    var current = PeriodsOf(period.Value, zone, moment, moment.AddMilliseconds(1)).Single();
                    var last = PeriodsOf(period.Value, zone, current.From.AddMilliseconds(-1), current.From).Single();
                    Add(last.Name, last.From, last.To);
                }
                else
                {
                    foreach (var (name, begin, end) in PeriodsOf(period.Value, zone, from.Value, to!.Value))
                        Add(name, begin, end);
                }
            }
            var rows = questions.Report(Every, from, to, counting).ToList();
            foreach (var service in world.Services)
            {
                Same(expected.Where(r => r.Service == service).OrderBy(r => r.From).Select(r => $"{r}"),
                    rows.Where(r => r.Service == service).Select(r => $"{r}"), () => AboutRange(service));
            }
            foreach (var row in rows)
            {
                var f = row.Figures;
                Assert.Equal((row.To - row.From).TotalMilliseconds, f.NotCounted + f.Unknown + f.Down + f.Degraded + f.Up);
            }

            if (period != null && from == null)
                continue;
            var (outagesFrom, outagesTo) = (from ?? AlertMapping.Earliest, to ?? moment);
            var outages = questions.Outages(Every, from, to, counting).ToList();
            Same(known.Services.SelectMany(s => known.OutagesOf(s, outagesFrom, outagesTo, HoursIn(Max(outagesFrom, world.Begin.AddDays(-30)), outagesTo)))
                    .Order(StringComparer.Ordinal),
                outages.Select(o => TellOutage(o.Service, o.From, o.To, o.Down, o.Maintenance, o.Excluded, o.Notes.Select(n => n.Last.Id).Order(StringComparer.Ordinal)))
                    .Order(StringComparer.Ordinal), () => AboutRange(null));
            foreach (var outage in outages)
                Assert.Equal(outage.Notes.Select(n => n.Last.From).Order(), outage.Notes.Select(n => n.Last.From));
            Assert.Equal(outages.Select(o => o.From).Order(), outages.Select(o => o.From));
            foreach (var row in rows.Where(_ => period == null && to <= moment))
                Assert.True(row.Figures.Down == outages.Where(o => o.Service == row.Service).Sum(o => o.Down), AboutRange(row.Service));
        }
    }

    /// <summary>In memory, if that can be: a history has a hundred transactions.</summary>
    private static string NewDirectory() => !Directory.Exists("/dev/shm") ? Directory.CreateTempSubdirectory("ses-notes").FullName
        : Directory.CreateDirectory($"/dev/shm/ses-notes-{Guid.NewGuid():N}").FullName;

    private static void Check(int seed)
    {
        var random = new Random(seed);
        var directory = NewDirectory();
        try
        {
            var (world, recent) = (new World(), new RecentAlerts());
            var (_, set) = Settings[random.Next(Settings.Length)];
            var begin = set.AddMinutes(-random.Next(1, 10 * 1440));
            var clock = new ManualClock(begin);
            DateTime now;
            using (var writer = new Writer(StoreFiles.PathOf(directory), 1000, StoreChild.Rules with { Forget = TimeSpan.FromDays(9999) }, recent, clock))
            {
                now = new Play(random, writer, recent, world).Run(begin);
                while (writer.IsBehind)
                    writer.Derive(now, () => false);
            }
            using var snapshot = Snapshot.Open(directory, now);
            Compare(seed, world, snapshot, now, null);
            for (var i = 0; i < 3; i++)
                Compare(seed, world, snapshot, now, world.Steps[random.Next(world.Steps.Count)].AddSeconds(30));
        }
        finally
        {
            Directory.Delete(directory, recursive: true);
        }
    }

    [Fact]
    public void AnswersWithNotesAreThoseOfTheReference()
    {
        for (var seed = 0; seed < Seeds; seed++)
        {
            try
            {
                Check(seed);
            }
            catch (Exception e) when (e is not Xunit.Sdk.XunitException)
            {
                throw new InvalidOperationException($"seed {seed}", e);
            }
        }
    }

    // ---- What it has found ----

    /// <summary>A store of few facts; times are minutes.</summary>
    private sealed class Small : IDisposable
    {
        private readonly string _directory = NewDirectory();
        private readonly RecentAlerts _recent = new();
        private int _alerts;

        public static DateTime At(int minute) => Utc("2026-11-02T00:00").AddMinutes(minute);

        public void Dispose() => Directory.Delete(_directory, recursive: true);

        public Small Write(int at, Action<Writer> act)
        {
            var now = At(at);
            using var writer = new Writer(StoreFiles.PathOf(_directory), 1000, StoreChild.Rules, _recent, new ManualClock(now));
            writer.Commit([() => act(writer)], now);
            while (writer.IsBehind)
                writer.Derive(now, () => false);
            return this;
        }

        public Small Alert(string location, int starts, int? ends, int at) => Write(at, w =>
        {
            var body = StoreChild.Body(new IncomingAlert(new ServiceKey("INS", "p", "s", "f", location), false, AlertSource.Webhook, "",
                $$"""{"alertname":"n{{_alerts++}}"}""", "down", At(starts), ends is { } end ? At(end) : null, "words"));
            w.Take("INS", body, _recent.KeysOf(body.Alerts), null, At(at));
        });

        public Small Note(NoteKind kind, int from, int? to, int at, string? status = null) => Write(at, w => Assert.Null(NoteBook.Add(w,
            new NoteDraft(null, null, new HashSet<string> { "to", "status" })
            {
                Kind = kind,
                From = At(from),
                To = to is { } end ? At(end) : null,
                Status = status,
                Text = "text",
            },
            "INS", "me", At(at)).Refusal));

        public T Ask<T>(int at, Func<Questions, T> ask, int? asOf = null)
        {
            using var snapshot = Snapshot.Open(_directory, At(at));
            return ask(new Questions(snapshot, StoreChild.Rules.Timeline, At(at), asOf is { } day ? At(day) : null));
        }

        public static string Minute(DateTime? time) => time is { } t
            ? (t - At(0)).TotalMinutes.ToString(CultureInfo.InvariantCulture) : "-";

        public string History(int at, int? asOf = null) => Ask(at, q => string.Join(", ", q.History(Every, null, null)
            .Select(h => $"{h.Service.Location} {h.Status} {Minute(h.Time)}")), asOf);
    }

    [Fact]
    public void NoteBeforeTheFirstAlertOfItsPartitionLeavesTheFirstReceipt()
    {
        using var store = new Small().Note(NoteKind.Comment, 0, 5, at: 1).Alert("a", 10, 11, at: 12).Alert("b", 50, null, at: 51);
        Assert.Equal("a down 10, a up 11, b up 12, b down 50", store.History(60));
    }

    [Fact]
    public void ServiceIsNoneAsOfADayBeforeItsFirstAlert()
    {
        using var store = new Small().Alert("a", 10, 11, at: 12).Note(NoteKind.Correction, 20, 30, at: 40, "down").Alert("b", 50, null, at: 51);
        var before = "a down 10, a up 11, a down 20, a up 30";
        Assert.Equal(before, store.History(45, asOf: 44));
        Assert.Equal(before, store.History(60, asOf: 44));
    }

    [Fact]
    public void AlertThatIsFirstHeardWithItsEndBringsARetiredServiceBack()
    {
        using var store = new Small().Alert("a", 10, 11, at: 12).Note(NoteKind.Retired, 20, null, at: 21).Alert("a", 30, 35, at: 36);
        Assert.Equal("a down 10, a up 11, a down 30, a up 35", store.History(60));
    }

    [Fact]
    public void EachRetirementAwaitsAnAlertThatBeganLaterThanItself()
    {
        using var store = new Small().Alert("a", 10, 11, at: 12).Note(NoteKind.Retired, 20, null, at: 21).Alert("a", 30, 35, at: 36)
            .Note(NoteKind.Retired, 40, null, at: 41);
        Assert.Equal("a down 10, a up 11, a down 30, a up 35", store.History(60));
        Assert.Empty(store.Ask(60, q => q.Present(Every).ToList()));
    }

    /// <summary>What holds is what is shown as the last, whatever the texts are.</summary>
    [Fact]
    public void VersionsOfOneMomentAreInTheOrderOfTheirWholeLines()
    {
        for (var i = 0; i < 12; i++)
        {
            NoteVersion Version(bool isWithdrawn) => new("m", NoteKind.Correction, Small.At(20), Small.At(30),
                new("INS", null, null, null, null), "down", $"text {i} {isWithdrawn}", "me", null, isWithdrawn, Small.At(40));
            using var store = new Small().Alert("a", 10, 11, at: 12).Write(50, w => NoteBook.Import(w, "x", Version(false)))
                .Write(51, w => NoteBook.Import(w, "y", Version(true)));
            Assert.Equal(store.Ask(60, q => q.Notes(Every, null, null).Single().Last.IsWithdrawn),
                !store.History(60).Contains("a down 20", StringComparison.Ordinal));
        }
    }

    [Fact]
    public void OutageIsWholeThoughACorrectionLiesLongBefore()
    {
        const int H = 60, D = 24 * 60;
        using var store = new Small().Alert("a", 0, 1, at: 2).Note(NoteKind.Correction, H, 2 * H, at: 3 * H, "degraded").Alert("a", D, D + (12 * H), at: 2 * D)
            .Note(NoteKind.Correction, D + (12 * H), 4 * D, at: 4 * D, "down");
        Assert.Equal([$"{D} to {4 * D}"], store.Ask(5 * D, q => q.Outages(Every, Small.At(3 * D), null, Counting.Plain)
            .Select(o => $"{Small.Minute(o.From)} to {Small.Minute(o.To)}").ToList()));
    }

    [Fact]
    public void NothingIsAheadOfAServiceThatIsNoMore()
    {
        using var store = new Small().Alert("a", 10, 11, at: 12).Note(NoteKind.Retired, 20, null, at: 21);
        Assert.Equal(0, store.Ask(60, q => q.Report(Every, Small.At(0), Small.At(600)).Single().Figures.Ahead));
    }

    [Fact]
    public void ServiceThatIsNoMoreIsNotUnderMaintenance()
    {
        using var store = new Small().Alert("a", 10, 11, at: 12).Note(NoteKind.Maintenance, 30, null, at: 13).Note(NoteKind.Retired, 20, null, at: 21);
        Assert.Equal(0, store.Ask(60, q => q.UnderMaintenance()["INS"]));
    }

    [Fact]
    public void StatusThatACorrectionGoesOnWithBeganBeforeIt()
    {
        using var store = new Small().Alert("a", 10, 11, at: 12).Alert("a", 50, null, at: 51).Note(NoteKind.Correction, 40, null, at: 60, "up");
        Assert.Equal("a down 10, a up 11", store.History(70));
        Assert.Equal(Small.At(11), store.Ask(70, q => q.Present(Every).Single().Since));
    }

    [Fact]
    public void PeriodInWhichNothingIsKnownAfterACorrectionHasARow()
    {
        const int D = 24 * 60;
        using var store = new Small().Alert("a", 3 * D, null, at: (3 * D) + 1).Note(NoteKind.Correction, 10, 20, at: (3 * D) + 2, "down");
        var counting = Counting.Plain with { Period = PeriodLength.Day };
        Assert.Equal(["2026-11-02", "2026-11-03", "2026-11-04", "2026-11-05"],
            store.Ask((3 * D) + 5, q => q.Report(Every, Small.At(0), Small.At(4 * D), counting).Select(r => r.Period!).ToList()));
    }

    [Fact]
    public void NoteOfTheFutureDoesNotTouchAnOpenOutageYet()
    {
        using var store = new Small().Alert("a", 10, null, at: 12).Note(NoteKind.Maintenance, 100, 200, at: 20);
        Assert.Equal([0, 1], new[] { 60, 150 }.Select(at => store.Ask(at, q => q.Outages(Every, null, null, Counting.Plain).Single().Notes.Count)));
    }
}
