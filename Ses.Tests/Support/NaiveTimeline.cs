namespace Ses.Tests.Support;

/// <summary>
/// The timeline by moments: slow, and as near to the words of the rules as it can be. Each question about a
/// moment looks over all facts.
/// </summary>
internal sealed class NaiveTimeline
{
    private readonly List<Firing> _firings = [];
    private readonly bool _isDialect;
    private readonly DateTime? _knownFrom, _oldest;
    private readonly DateTime _now;
    private readonly TimeSpan _pause;
    private readonly IReadOnlyList<(DateTime From, DateTime To, bool IsHeartbeat)> _gaps;

    public NaiveTimeline(IReadOnlyList<Observation> facts, Func<long, AlertTraits> traitsOf,
        DateTime? knownFrom, DateTime? oldest, DateTime now, TimeSpan pause,
        IReadOnlyList<(DateTime From, DateTime To, bool IsHeartbeat)>? gaps = null)
    {
        (_knownFrom, _oldest, _now, _pause, _gaps) = (knownFrom, oldest, now, pause, gaps ?? []);
        foreach (var alert in facts.GroupBy(f => f.Alert))
        {
            _isDialect |= traitsOf(alert.Key).Dialect;
            _firings.AddRange(Hear(alert, traitsOf(alert.Key)));
        }
        // What Alertmanager ends while nobody watches is given up then, unless Prometheus said so, too (3.4).
        foreach (var firing in _firings.Where(f => f.Traits.Source == AlertSource.Webhook && f.Stated.Count > 0)
            .Where(f => _gaps.Any(g => g.IsHeartbeat && g.From <= f.LastStated && f.LastStated < g.To))
            .Where(f => !_firings.Any(p => p.Traits.Source == AlertSource.Prometheus && p.Stated.Count > 0
                && p.LastStated == f.LastStated)).ToList())
        {
            firing.Lapse = (firing.LastStated, firing.LastStated);
            firing.Stated.Clear();
        }
        foreach (var firing in _firings)
            firing.Opposed = OpposedStartOf(firing);
    }

    /// <summary>One firing of one alert.</summary>
    private sealed class Firing(AlertTraits traits, DateTime starts)
    {
        public AlertTraits Traits => traits;
        public DateTime Starts => starts;
        public DateTime Heard { get; init; }
        public DateTime Opened { get; set; }
        public DateTime? OpenedBesideALapsedOne { get; set; }
        public List<(DateTime From, Status Status)> Statuses { get; } = [];
        public List<DateTime> Reopened { get; } = [];

        /// <summary>What was stated since it last fired.</summary>
        public List<(DateTime Ends, DateTime Received)> Stated { get; } = [];
        public DateTime LastStated => Stated.Max(s => s.Ends);
        public (DateTime Ends, DateTime GivenUp)? Lapse { get; set; }
        public Firing? Next { get; set; }
        public Firing? Opposed { get; set; }

        public bool IsUncertain => Stated.Count == 0 && Lapse != null && !(Opposed != null && OpposedHolds);

        private bool OpposedHolds => Opposed!.Starts < EndOfItsOwn || (Stated.Count == 0 && Lapse is { } lapse
            && Opposed.Starts <= lapse.GivenUp && Opposed.Heard <= lapse.GivenUp);

        private DateTime EndOfItsOwn
        {
            get
            {
                var end = Stated.Count > 0 ? Stated.Max(s => s.Ends)
                    : Lapse is { } lapse ? lapse.Ends : Next?.Starts ?? DateTime.MaxValue;
                return end < Starts ? Starts : end;
            }
        }

        public DateTime End => Opposed != null && OpposedHolds ? Opposed.Starts : EndOfItsOwn;

        public bool Covers(DateTime t) => Starts <= t && t < End;

        public Status StatusAt(DateTime t) => Statuses.Skip(1).LastOrDefault(s => s.From <= t, Statuses[0]).Status;

        public Status LastStatus => Statuses.Skip(1).LastOrDefault(s => s.From < End, Statuses[0]).Status;
    }

    // ---- Episodes of one alert (3.1 to 3.5) ----

    private static List<Firing> Hear(IEnumerable<Observation> alert, AlertTraits traits)
    {
        ObservationKind[] order =
            [ObservationKind.Start, ObservationKind.Again, ObservationKind.Lapse, ObservationKind.End];
        var heard = new SortedList<DateTime, Firing>();
        foreach (var fact in alert.OrderBy(f => f.Received).ThenBy(f => Array.IndexOf(order, f.Kind)))
        {
            var isNew = !heard.TryGetValue(fact.Starts, out var firing);
            if (isNew)
            {
                firing = new(traits, fact.Starts) { Heard = fact.Received, Opened = fact.Received };
                firing.Statuses.Add((DateTime.MinValue, fact.Status));
                heard.Add(fact.Starts, firing);
            }
            if (fact.Ends is { } ends && fact.Kind == ObservationKind.Lapse)
                GiveUp(heard, firing!, ends, fact.Received, isNew);
            else if (fact.Ends is { } stated)
                firing!.Stated.Add((stated, fact.Received));
            else if (!isNew)
                Fire(heard, firing!, fact);
            else if (firing != heard.Values[^1] && HasLapsed(heard.Values[^1]))
                firing!.OpenedBesideALapsedOne = fact.Received;
        }
        foreach (var firing in heard.Values)
            firing.Next = NextOf(heard, firing);
        return [.. heard.Values];
    }

    /// <summary>The newer firing at whose start an open one ends.</summary>
    private static Firing? NextOf(SortedList<DateTime, Firing> heard, Firing firing) =>
        heard.Values.FirstOrDefault(f => f.Starts > firing.Starts
            && !(f.Opened <= firing.OpenedBesideALapsedOne));

    private static bool HasLapsed(Firing firing) => firing.Stated.Count == 0 && firing.Lapse != null;

    private static void GiveUp(
        SortedList<DateTime, Firing> heard, Firing firing, DateTime ends, DateTime givenUp, bool isNew)
    {
        var next = NextOf(heard, firing);
        var hasEndedOtherwise = firing.Stated.Count > 0 || (!isNew && firing.Lapse == null && next != null
            && firing.Traits.Source == AlertSource.Webhook && next.Starts <= givenUp);
        if (!hasEndedOtherwise && (firing.Lapse == null || ends > firing.Lapse.Value.Ends))
            firing.Lapse = (ends, givenUp);
    }

    private static void Fire(SortedList<DateTime, Firing> heard, Firing firing, Observation copy)
    {
        var newest = heard.Values[^1];
        if (firing != newest && !HasLapsed(newest))
            return;
        if (firing.Stated.Count > 0)
        {
            var inForce = firing.Stated.Max(s => s.Ends);
            var firstStated = firing.Stated.Where(s => s.Ends == inForce).Min(s => s.Received);
            var late = firing.Traits.Source == AlertSource.Webhook ? 20 : 0;
            if ((copy.Received - firstStated).TotalSeconds <= late)
                return;
        }
        else if (copy.Received == firing.Lapse?.GivenUp)
            return;
        if (firing.Stated.Count > 0 || firing.Lapse != null || NextOf(heard, firing) != null)
        {
            firing.Stated.Clear();
            firing.Lapse = null;
            firing.Opened = copy.Received;
            firing.Reopened.Add(copy.Received);
            if (firing != newest)
                firing.OpenedBesideALapsedOne = copy.Received;
        }
        firing.Statuses.Add((copy.Received, copy.Status));
    }

    /// <summary>The first later start of the dialect that says the opposite of what this one says then (4.2).</summary>
    private Firing? OpposedStartOf(Firing firing) => !firing.Traits.Dialect ? null : _firings
        .Where(f => f.Traits.Dialect && f.Starts > firing.Starts)
        .Where(f => (f.Statuses[0].Status, firing.StatusAt(f.Starts))
            is (Status.Up, Status.Down) or (Status.Down, Status.Up))
        .OrderBy(f => f.Starts).ThenBy(f => f.Heard).FirstOrDefault();

    // ---- The moments (4) ----

    /// <summary>All that can be a border, and the moments around them.</summary>
    public IEnumerable<DateTime> Moments(IEnumerable<Observation> facts)
    {
        var borders = facts.SelectMany(f => new[]
            { f.Starts, f.Received, f.Received + _pause, f.Ends ?? f.Starts, (f.Ends ?? f.Starts) + _pause })
            .Concat(_gaps.SelectMany(g => g.To == DateTime.MaxValue ? [g.From] : new[] { g.From, g.To, g.To + _pause }))
            .Append(_now).Append(_knownFrom ?? _now).Append(_oldest ?? _now);
        return borders.SelectMany(b => new[] { b.AddMilliseconds(-1), b, b.AddMilliseconds(1) })
            .Where(t => t <= _now).Distinct().Order();
    }

    /// <summary>Null: not known, or not yet. <c>IsHole</c>: unknown if anything was known before.</summary>
    public (Status Status, bool Open, bool IsHole)? At(DateTime t)
    {
        if (t > _now)
            return null;
        var open = _firings.Where(f => f.Covers(t)).ToList();
        if (_firings.Any(f => IsDoubtAt(f, t, open)))
            return (Status.Unknown, false, false);
        if (open.Count > 0)
            return (Worst(open.Select(f => (f.StatusAt(t), f.Starts))), true, false);
        var atRest = _isDialect ? AtRestOfDialect(t) : AtRestOfStock(t);
        return atRest is { IsHole: false } && _gaps.Any(g => g.From <= t && t < g.To) ? (Status.Unknown, false, false) : atRest;
    }

    /// <summary>What could not be heard when it was given up is waited for until it could be (3.5).</summary>
    private DateTime LastGapOf(DateTime ends, DateTime givenUp) => _gaps.Where(g => g.From <= givenUp && g.To > ends)
        .Select(g => g.To).Append(givenUp).Max();

    private bool IsDoubtAt(Firing lapsed, DateTime t, List<Firing> open)
    {
        if (!lapsed.IsUncertain || lapsed.End > t)
            return false;
        bool IsSince(DateTime moment) => moment > lapsed.End && moment <= t;
        var isStated = _firings.Any(f => IsSince(f.Starts) || (f.Starts == lapsed.End && f.Covers(lapsed.End))
            || (!f.IsUncertain && IsSince(f.End))
            || f.Reopened.Any(r => IsSince(r) && (!_isDialect || _firings.Any(g => g.Covers(r)))));
        var until = LastGapOf(lapsed.End, lapsed.Lapse!.Value.GivenUp);
        var isOver = until < DateTime.MaxValue && t >= until + _pause && !(_isDialect && open.Count == 0);
        return !isStated && !isOver
            && open.All(f => Timeline.Severity(f.StatusAt(t)) < Timeline.Severity(lapsed.LastStatus));
    }

    private static Status Worst(IEnumerable<(Status Status, DateTime Starts)> open) => open
        .OrderByDescending(o => o.Status == Status.Down).ThenBy(o => o.Status == Status.Up)
        .ThenByDescending(o => o.Starts).ThenByDescending(o => o.Status).First().Status;

    private (Status Status, bool Open, bool IsHole)? AtRestOfStock(DateTime t)
    {
        if (_firings.Count == 0)
            return null;
        var first = _firings.Min(f => f.Starts);
        var from = _knownFrom < first ? _knownFrom.Value : first;
        if (t < from)
            return null;
        return t < _oldest ? (Status.Unknown, false, true) : (Status.Up, false, false);
    }

    private (Status Status, bool Open, bool IsHole)? AtRestOfDialect(DateTime t)
    {
        var ended = _firings.Where(f => f.End <= t).ToList();
        if (ended.Count == 0)
            return null;
        var end = ended.Max(f => f.End);
        var ending = ended.Where(f => f.End == end).ToList();
        var beginning = ending.Where(f => f.Starts == end).ToList();
        var last = Worst((beginning.Count > 0 ? beginning : ending).Select(f => (f.LastStatus, f.Starts)));
        var next = _firings.Where(f => f.Starts > t).Select(f => (DateTime?)f.Starts).Min();
        var isShort = next - end <= _pause || _now < end + _pause;
        return (isShort ? last : Status.Unknown, false, false);
    }
}
