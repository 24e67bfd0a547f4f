using CsCheck;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>Order is by time, not by arrival.</summary>
public sealed class OrderTests
{
    private static readonly ServiceKey Etcd = new("INS", "p1", "etcd", "node", "n1");

    private static readonly DateTime Now = new(2026, 11, 22, 12, 0, 0, DateTimeKind.Utc);

    private static DateTime At(double seconds) => Now.AddHours(-1).AddSeconds(seconds);

    private static StatusEvent EventOf(string status, double seconds) =>
        new(Etcd, status, At(seconds), "", Now, At(seconds));

    private static Window WindowOf(params StatusEvent[] events)
    {
        var window = new Window();
        foreach (var e in events)
            window.Add(e);
        return window;
    }

    private static readonly string[] Statuses = ["up", "down", "degraded"];

    private static StatusEvent? Last(Window window) => window.Events.Count > 0 ? window.Events[^1] : null;

    private static IEnumerable<(string, double)> Pairs(IEnumerable<StatusEvent> events) =>
        events.Select(e => (e.Status, Math.Round((e.Time - At(0)).TotalSeconds, 3)));

    // ---- Window ----

    [Fact]
    public void WindowIsInOrderOfTimeWhateverTheArrival()
    {
        var window = WindowOf(EventOf("up", 20), EventOf("down", 10), EventOf("up", 0), EventOf("down", 15));
        Assert.Equal([("up", 0), ("down", 10), ("down", 15), ("up", 20)], Pairs(window.Events));
    }

    [Fact]
    public void AtEqualTimesDownIsLast()
    {
        Assert.Equal([("up", 5), ("down", 5)], Pairs(WindowOf(EventOf("down", 5), EventOf("up", 5)).Events));
        Assert.Equal([("up", 5), ("down", 5)], Pairs(WindowOf(EventOf("up", 5), EventOf("down", 5)).Events));
        Assert.Equal([("degraded", 5), ("up", 5), ("down", 5)],
            Pairs(WindowOf(EventOf("up", 5), EventOf("down", 5), EventOf("degraded", 5)).Events));
    }

    [Fact]
    public void SameTimeAndStatusIsKnown()
    {
        var window = WindowOf(EventOf("up", 5));
        Assert.Equal(Place.Known, window.PlaceOf(EventOf("up", 5) with { Description = "other" }));
        Assert.Equal(Place.New, window.PlaceOf(EventOf("down", 5)));
        Assert.Equal(Place.New, window.PlaceOf(EventOf("up", 6)));
    }

    [Fact]
    public void RepeatOfTheStatusAtALaterTimeIsNew() =>
        Assert.Equal(Place.New, WindowOf(EventOf("up", 5)).PlaceOf(EventOf("up", 10)));

    [Fact]
    public void OlderThanAFullWindowIsStaleAndOlderThanOneWithRoomIsNew()
    {
        var seven = WindowOf([.. Enumerable.Range(1, 7).Select(i => EventOf("up", 10 * i))]);
        Assert.Equal(Place.New, seven.PlaceOf(EventOf("down", 5)));
        var eight = WindowOf([.. Enumerable.Range(1, 8).Select(i => EventOf("up", 10 * i))]);
        Assert.Equal(Place.Stale, eight.PlaceOf(EventOf("down", 5)));
        Assert.Equal(Place.Known, eight.PlaceOf(EventOf("up", 10)));
        Assert.Equal(Place.New, eight.PlaceOf(EventOf("down", 10)));
        Assert.Equal(Place.New, eight.PlaceOf(EventOf("down", 15)));
    }

    [Fact]
    public void WindowHoldsTheLastEightEvents()
    {
        var window = WindowOf([.. Enumerable.Range(1, 9).Select(i => EventOf("up", 10 * i))]);
        Assert.Equal(Enumerable.Range(2, 8).Select(i => ("up", 10.0 * i)), Pairs(window.Events));
        window.Add(EventOf("down", 25));
        Assert.Equal(("down", 25), Pairs(window.Events).First());
        window.Add(EventOf("down", 15));
        Assert.Equal(("down", 25), Pairs(window.Events).First());
    }

    // ---- Interpretation ----

    private static MappedAlert Dialect(string status, double start) =>
        new(Etcd, "d", false, status, At(start), null);

    private static MappedAlert Firing(double start) => new(Etcd, "d", true, "down", At(start), null);

    private static MappedAlert Resolved(double start, double end) =>
        new(Etcd, "d", true, "down", At(start), At(end));

    private static IEnumerable<(string, double)> Meaning(
        MappedAlert alert, StatusEvent? last = null, DateTime? now = null) =>
        Pairs(Interpretation.Events(alert, last, now ?? Now));

    /// <summary>The <c>up</c> of a stock alert, received some time ago.</summary>
    private static StatusEvent Up(double start, double end, TimeSpan ago) =>
        EventOf("up", end) with { StartsAt = At(start), Received = Now - ago };

    [Fact]
    public void DialectAlertGivesItsStatusAtItsStart()
    {
        Assert.Equal([("up", 5)], Meaning(Dialect("up", 5)));
        Assert.Equal([("up", 5)], Meaning(Dialect("up", 5), Up(5, 9, TimeSpan.FromHours(1))));
    }

    [Fact]
    public void EventKeepsDescriptionStartAndWhenItWasReceived()
    {
        var events = Interpretation.Events(Resolved(5, 9), null, Now);
        Assert.Equal(2, events.Count);
        Assert.All(events,
            e => Assert.Equal((Etcd, "d", At(5), Now), (e.Service, e.Description, e.StartsAt, e.Received)));
    }

    [Fact]
    public void StockAlertIsDownAtItsStartAndUpAtItsEnd()
    {
        Assert.Equal([("down", 5)], Meaning(Firing(5)));
        Assert.Equal([("down", 5), ("up", 9)], Meaning(Resolved(5, 9)));
        Assert.Equal([("down", 5), ("up", 9)], Meaning(Resolved(5, 9), EventOf("down", 5)));
        Assert.Equal([("down", 5), ("up", 9)], Meaning(Resolved(5, 9), EventOf("down", 1)));
    }

    [Theory]
    [InlineData(5)]
    [InlineData(4)]
    public void StockAlertThatEndsNotAfterItsStartGivesOnlyItsUp(double end) =>
        Assert.Equal([("up", end)], Meaning(Resolved(5, end)));

    [Fact]
    public void StockAlertFiresAgainWithItsOldStartJustAfterItsUp()
    {
        var up = Up(5, 9, TimeSpan.FromSeconds(60.001));
        var down = Assert.Single(Interpretation.Events(Firing(5), up, Now));
        Assert.Equal(("down", At(9).AddMilliseconds(1), At(5)), (down.Status, down.Time, down.StartsAt));
        Assert.Equal([("down", 9.001)], Meaning(Firing(5), down, Now.AddHours(1)));
        Assert.Equal([("down", 9.001), ("up", 20)], Meaning(Resolved(5, 20), down));
    }

    [Fact]
    public void ResolvedCopyThatEndsNotAfterTheNewDownIsUpJustAfterIt()
    {
        var down = EventOf("down", 9.001) with { StartsAt = At(5) };
        Assert.Equal([("down", 9.001), ("up", 9.002)], Meaning(Resolved(5, 9), down));
        Assert.Equal([("down", 9.001), ("up", 9.002)], Meaning(Resolved(5, 9.001), down));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(60)]
    public void FiringCopyWithinAMinuteOfTheUpIsALateOne(double seconds) =>
        Assert.Equal([("down", 5)], Meaning(Firing(5), Up(5, 9, TimeSpan.FromSeconds(seconds))));

    [Fact]
    public void AlertThatEndedAsItBeganIsUpInAnyOrderOfArrival()
    {
        foreach (var received in new[] { new[] { Firing(5), Resolved(5, 5) }, [Resolved(5, 5), Firing(5)] })
        {
            var window = new Window();
            foreach (var alert in received)
            {
                foreach (var e in Interpretation.Events(alert, Last(window), Now))
                    window.Add(e);
            }
            Assert.Equal("up", Last(window)!.Status);
        }
    }

    [Fact]
    public void FiringAlertWithAnotherStartIsAnotherOutage()
    {
        Assert.Equal([("down", 30)], Meaning(Firing(30), Up(5, 9, TimeSpan.FromHours(1))));
        Assert.Equal([("down", 1)], Meaning(Firing(1), Up(5, 9, TimeSpan.FromHours(1))));
    }

    [Fact]
    public void TwoSeSAgreeOnAnAlertThatFiresAgain()
    {
        IEnumerable<(string, double)> Receive(params (MappedAlert Alert, int Second)[] received)
        {
            var window = new Window();
            foreach (var (alert, second) in received)
            {
                foreach (var e in Interpretation.Events(alert, Last(window), Now.AddSeconds(second)))
                    window.Add(e);
            }
            return Pairs(window.Events);
        }

        var one = Receive((Firing(5), 0), (Resolved(5, 9), 10), (Firing(5), 100), (Resolved(5, 50), 130));
        var two = Receive((Resolved(5, 9), 12), (Resolved(5, 9), 13), (Firing(5), 108), (Firing(5), 109),
            (Resolved(5, 50), 140), (Resolved(5, 50), 141));
        Assert.Equal([("down", 5), ("up", 9), ("down", 9.001), ("up", 50)], one);
        Assert.Equal(one, two);
    }

    // ---- Any order of arrival ----

    /// <summary>What is new by the window, in the order of arrival, as the event log keeps it.</summary>
    private static List<StatusEvent> Keep(IEnumerable<StatusEvent> arrivals, Window window)
    {
        var kept = new List<StatusEvent>();
        foreach (var e in arrivals)
        {
            if (window.PlaceOf(e) == Place.New)
                kept.Add(e);
            window.Add(e);
        }
        return kept;
    }

    private static List<(string, DateTime)> History(IEnumerable<StatusEvent> events) =>
        Oracle.History(events.Select(e => (e.Status, e.Time)));

    /// <summary>
    /// Each event may be overtaken by at most seven later ones, as many as a window of eight bears; its
    /// copies may come at any time.
    /// </summary>
    [Fact]
    public void AnyOrderOfArrivalWithinTheWindowGivesTheSameHistory() =>
        Gen.Select(Gen.Int[0, 25], Gen.Int[0, 2].Select(i => Statuses[i]), Gen.Int[0, 7], Gen.Int[0, 60])
            .Array[0, 40].Sample(words =>
            {
                var sent = words.DistinctBy(w => (w.Item1, w.Item2)).OrderBy(w => w.Item1)
                    .ThenBy(w => w.Item2 == "down").ThenBy(w => w.Item2, StringComparer.Ordinal)
                    .Select((w, i) => (Event: EventOf(w.Item2, w.Item1), First: i + w.Item3, Copy: i + w.Item4))
                    .ToList();
                var arrivals = sent.Select(s => (s.Event, Turn: s.First))
                    .Concat(sent.Select(s => (s.Event, Turn: s.Copy)))
                    .OrderBy(a => a.Turn).Select(a => a.Event);
                var window = new Window();
                var kept = Keep(arrivals, window);
                Assert.Equal(sent.Count, kept.Count);
                Assert.Equal(History(sent.Select(s => s.Event)), History(kept));
                Assert.Equal(Pairs(sent.TakeLast(Window.Size).Select(s => s.Event)), Pairs(window.Events));
            }, iter: 3000);

    /// <summary>Four outages are a window of eight events; each is told firing and resolved, twice.</summary>
    [Fact]
    public void StockAlertsInAnyOrderOfArrivalGiveTheSameHistory() =>
        Gen.Select(Gen.Int[1, 30].Array[8], Gen.Int.Array[16]).Sample((gaps, turns) =>
        {
            var times = gaps.Select((_, i) => (double)gaps.Take(i + 1).Sum()).ToArray();
            var alerts = Enumerable.Range(0, 4).SelectMany(i => new[]
                { Firing(times[2 * i]), Resolved(times[2 * i], times[2 * i + 1]) }).ToList();
            var window = new Window();
            foreach (var (alert, _) in alerts.Concat(alerts).Zip(turns).OrderBy(p => p.Second))
            {
                foreach (var e in Interpretation.Events(alert, Last(window), Now))
                    window.Add(e);
            }
            Assert.Equal(times.Select((t, i) => (i % 2 == 0 ? "down" : "up", t)), Pairs(window.Events));
        }, iter: 3000);
}
