using System.Globalization;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>Heartbeats, gaps, and what is told of time in which nobody watched.</summary>
public sealed class WatchTests
{
    private static readonly ServiceFilter All = new("INS", null, null, null, null);

    private static readonly StringComparison Ordinal = StringComparison.Ordinal;

    private static DateTime At(double minutes) => Host.Now.AddMinutes(minutes);

    private static string Tell(DateTime time) =>
        Math.Round((time - Host.Now).TotalMinutes, 3).ToString(CultureInfo.InvariantCulture);

    // ---- Heartbeats by themselves ----

    /// <summary>Feeds a heartbeat with lines such as "3 p" (a beat at minute 3 from Prometheus), "7 a ends 5"
    /// (Alertmanager), "9 tick", "9 away 2" (it was, for so long), and tells what came of it.</summary>
    private static List<string> Hear(Heartbeats heartbeats, params string[] lines)
    {
        var told = new List<string>();
        foreach (var line in lines)
        {
            var words = line.Split(' ');
            var now = At(double.Parse(words[0], CultureInfo.InvariantCulture));
            var facts = words[1] switch
            {
                "tick" => heartbeats.FindSilent(now),
                "alert" => heartbeats.ApplyAlerts(1, [Alert(words.ElementAtOrDefault(2) ?? "p")], now),
                "away" => Away(double.Parse(words[2], CultureInfo.InvariantCulture)),
                var source => heartbeats.Apply(1, new("", "Watchdog", source[0],
                    source[0] == 'p' || source[0] == 'q' ? AlertSource.Prometheus : AlertSource.Webhook,
                    words.Length > 3 ? At(double.Parse(words[3], CultureInfo.InvariantCulture)) : null), now),
            };
            told.AddRange(facts.Select(f => f.IsArmed ? $"armed {Tell(f.Known)}"
                : f.To == null ? $"gap from {Tell(f.From)}, known {Tell(f.Known)}" : $"gap {Tell(f.From)} to {Tell(f.To.Value)}"));
        }
        return told;

        IEnumerable<HeartbeatFact> Away(double minutes)
        {
            heartbeats.Return(TimeSpan.FromMinutes(minutes));
            return [];
        }
    }

    private static IncomingAlert Alert(string platform) => new(new("INS", platform, "s", "f", "l"), false,
        AlertSource.Webhook, "", "{}", "down", Host.Now, null, "");

    private static readonly string[] Armed = ["0 p", "1 p", "2 p"];

    [Theory]
    [InlineData("0 p|1 p|2 p", "armed 2")]
    [InlineData("0 p|9.9 p|19.9 p", "armed 19.9")]
    // Copies within 10 s are one.
    [InlineData("0 p|0.1 p|0.16 p|1 p|1.1 p|2 p", "armed 2")]
    // A stream of beats is beats all the same.
    [InlineData("0 p|0.1 p|0.2 p|0.3 p|0.4 p|0.5 p|0.6 p", "armed 0.4")]
    // Too far apart: not in a row.
    [InlineData("0 p|1 p|11.1 p|12 p", "")]
    [InlineData("0 p|1 p|11.1 p|12 p|13 p", "armed 13")]
    // Two senders are one heartbeat.
    [InlineData("0 p|1 a|2 q", "armed 2")]
    // Nobody renewed it: the row is broken.
    [InlineData("0 a|1 a|5 a ends 5|6 a|7 a", "")]
    // It is silent after 10 minutes, from its last beat on; what only Alertmanager repeated was so 4 minutes ago.
    [InlineData("0 p|1 p|2 p|12 tick|12.02 tick|13 tick", "armed 2; gap from 2, known 12.02")]
    [InlineData("0 a|1 a|2 a|3 a|7 a|17.02 tick", "armed 2; gap from 3, known 17.02")]
    [InlineData("0 p|1 p|2 p|6 a|16.02 tick", "armed 2; gap from 2, known 16.02")]
    // Not before it was armed.
    [InlineData("0 a|1 a|2 a|3 a|13.02 tick", "armed 2; gap from 2, known 13.02")]
    // The next beat ends it, also where nobody looked before.
    [InlineData("0 p|1 p|2 p|12.5 tick|20 p|25 p", "armed 2; gap from 2, known 12.5; gap 2 to 20")]
    [InlineData("0 p|1 p|2 p|20 p|25 p", "armed 2; gap from 2, known 20; gap 2 to 20")]
    // Time in which SeS was away does not count.
    [InlineData("0 p|1 p|2 p|32 away 30|41 p", "armed 2")]
    [InlineData("0 p|1 p|2 p|32 away 30|41.9 tick|42.02 tick|43 p", "armed 2; gap from 2, known 42.02; gap 2 to 43")]
    // Alertmanager says at once that nobody renews it: since 4 minutes before.
    [InlineData("0 a|1 a|2 a|8 a|12.5 a ends 12", "armed 2; gap from 8, known 12.5")]
    [InlineData("0 a|1 a|2 a|4 a|7.5 a ends 7|20 a", "armed 2; gap from 3, known 7.5; gap 3 to 20")]
    // A beat within 20 s after that is late, if Alertmanager brings it.
    [InlineData("0 a|1 a|2 a|4 a|7.5 a ends 7|7.8 a|7.9 a", "armed 2; gap from 3, known 7.5; gap 3 to 7.9")]
    [InlineData("0 a|1 a|2 a|4 a|7.5 a ends 7|7.6 p", "armed 2; gap from 3, known 7.5; gap 3 to 7.6")]
    // Another sender has beaten since, or this one has meanwhile.
    [InlineData("0 a|1 a|2 a|4 a|4 p|7.5 a ends 7", "armed 2")]
    [InlineData("0 a|1 a|2 a|4 b|7.5 a ends 7", "armed 2")]
    [InlineData("0 a|1 a|2 a|2.5 p|4 a|7.5 a ends 7", "armed 2; gap from 3, known 7.5")]
    [InlineData("0 a|1 a|2 a|7.2 a|7.5 a ends 7", "armed 2")]
    // Said twice it is one gap.
    [InlineData("0 a|1 a|2 a|4 a|7.5 a ends 7|8 a ends 7|18 tick", "armed 2; gap from 3, known 7.5")]
    // A gap begins where the one before ended, at the earliest.
    [InlineData("0 a|1 a|2 a|4 a|7.5 a ends 7|9 a|10 a ends 9.9", "armed 2; gap from 3, known 7.5; gap 3 to 9; gap from 9, known 10")]
    // Nobody expects it after 7 days: an alert ends the gap, and it is to be armed again.
    [InlineData("0 p|1 p|2 p|13 tick|5000 alert|10083 alert|10084 p|10085 p|10096 tick",
        "armed 2; gap from 2, known 13; gap 2 to 10083")]
    [InlineData("0 p|1 p|2 p|13 tick|10083 p|10084 p|10085 p", "armed 2; gap from 2, known 13; gap 2 to 10083; armed 10085")]
    public void HeartbeatIsArmedSilentAndBack(string lines, string expected) =>
        Assert.Equal(expected, string.Join("; ", Hear(new Heartbeats(), lines.Split('|'))));

    [Fact]
    public void PlatformsHeartbeatIsEndedByItsOwnAlertsAlone()
    {
        var heartbeats = new Heartbeats();
        for (var minute = 0; minute < 3; minute++)
            Assert.Equal(minute == 2 ? 1 : 0, heartbeats.Apply(1, new("p1", "Watchdog", 7, AlertSource.Prometheus, null), At(minute)).Count());
        Assert.Equal(["gap from 2, known 13"], Hear(heartbeats, "13 tick", "10083 alert p2"));
        Assert.Equal(["gap 2 to 10084"], Hear(heartbeats, "10084 alert p1"));
    }

    [Fact]
    public void ThereAreNotTooMany()
    {
        var heartbeats = new Heartbeats();
        for (var i = 0; i < Heartbeats.Max + 5; i++)
            _ = heartbeats.Apply(1, new($"p{i}", "Watchdog", 7, AlertSource.Prometheus, null), At(0));
        Assert.Equal(Heartbeats.Max, heartbeats.All().Count);
        for (var i = 0; i < Heartbeats.MaxAlerts + 5; i++)
            _ = heartbeats.Apply(1, new("p0", "Watchdog", i, AlertSource.Prometheus, null), At(i));
        Assert.Equal(Heartbeats.MaxAlerts, heartbeats.All().Single(h => h.Key.Platform == "p0").Alerts.Count);
    }

    // ---- In the store ----

    private static string Watchdog(DateTime now, string more = "", string sender = "http://p1:9090") => $$$"""
        [{"labels":{"alertname":"Watchdog","severity":"none"{{{more}}}},"startsAt":"2026-11-01T00:00:00.000Z",
        "endsAt":"{{{Rfc3339.Format(now.AddMinutes(4))}}}","generatorURL":"{{{sender}}}/graph"}]
        """;

    private static string Relayed(string status, DateTime? ends = null) => $$$"""
        {"version":"4","alerts":[{"status":"{{{status}}}","labels":{"alertname":"Watchdog","severity":"none"},
        "startsAt":"2026-11-01T00:00:00Z","endsAt":"{{{(ends is { } end ? Rfc3339.Format(end) : "0001-01-01T00:00:00Z")}}}"}]}
        """;

    private static string Down(string instance, DateTime starts, DateTime? ends = null, string more = "") => $$$"""
        {"version":"4","alerts":[{"status":"{{{(ends == null ? "firing" : "resolved")}}}","labels":{"alertname":"Down","job":"etcd","instance":"{{{instance}}}"{{{more}}}},
        "annotations":{"description":"{{{instance}}} is down"},"startsAt":"{{{Rfc3339.Format(starts)}}}","endsAt":"{{{Rfc3339.Format(ends ?? default)}}}"}]}
        """;

    private const string Direct = "/alerts/INS/api/v2/alerts";

    /// <summary>Lets time go by, with a beat of Prometheus each minute.</summary>
    private static async Task BeatAsync(Host host, double until, string more = "")
    {
        while (host.Clock.UtcNow < At(until))
        {
            Assert.Equal(200, (await host.PostAsync(Watchdog(host.Clock.UtcNow, more), Direct)).Code);
            var next = host.Clock.UtcNow.AddMinutes(1);
            await PassAsync(host, next < At(until) ? next : At(until));
        }
    }

    /// <summary>In steps that are none of SeS's own absence.</summary>
    private static Task PassAsync(Host host, DateTime until) =>
        host.Clock.PassAsync(until, TimeSpan.FromSeconds(10), host.Store);

    private static async Task<List<string>> HistoryAsync(Host host, DateTime? asOf = null, string? instance = null)
    {
        using var snapshot = await host.Store.ReadAsync();
        return [.. Questions.Of(snapshot, asOf).History(All with { Location = instance }, null, null)
            .Select(c => $"{c.Service.Location} {c.Status} {Tell(c.Time)}")];
    }

    private static async Task<JsonElement> StatusAsync(Host host, string query = "") =>
        (await host.GetAsync("/alerts/INS" + query)).Json.GetProperty("services")[0];

    private static async Task<List<string>> WarningsAsync(Host host) =>
        (await host.GetAsync("/ready")).Json.TryGetProperty("warnings", out var warnings)
            ? [.. warnings.EnumerateArray().Select(w => w.GetString()!)] : [];

    private static async Task PostAsync(Host host, string body) => Assert.Equal(204, (await host.PostAsync(body)).Code);

    /// <summary>
    /// A night of 8 hours of a day without Prometheus: what is counted is the rest, and it says since when
    /// nobody watches.
    /// </summary>
    [Fact]
    public async Task NightWithoutPrometheusIsUnknown()
    {
        await using var host = Host.Serving();
        await PostAsync(host, Down("n1", At(-5), At(-1)));
        await BeatAsync(host, 480);
        await PassAsync(host, At(490));
        var last = At(479);
        Assert.Equal("up", (await StatusAsync(host)).GetProperty("status").GetString());
        Assert.False((await StatusAsync(host)).GetProperty("watched").GetBoolean());
        Assert.Equal(Rfc3339.Format(last), (await StatusAsync(host)).GetProperty("last_seen").GetString());
        Assert.Equal($"No data from INS since {Rfc3339.Format(last)}: Watchdog is silent",
            (await WarningsAsync(host))[0]);
        var page = (await host.GetAsync("/")).Body;
        Assert.Contains($"? not watched</span> <small>since <time datetime=\"{Rfc3339.Format(last)}\">", page, Ordinal);
        Assert.Contains("Watchdog of INS is silent</bdi>. Services are shown with their last known status.", page, Ordinal);
        Assert.Contains("? The only service is unknown", page, Ordinal);
        Assert.DoesNotContain("✔", page, Ordinal);
        Assert.Contains("ses_watched{partition=\"INS\",platform=\"\",heartbeat=\"Watchdog\"} 0\n", (await host.GetAsync("/metrics")).Body, Ordinal);
        Assert.Contains("heartbeats.1.silent: " + Rfc3339.Format(last), (await host.GetAsync("/health")).Body, Ordinal);
        var asOfNight = At(600);
        await PassAsync(host, At(959));
        await BeatAsync(host, 1440);
        Assert.True((await StatusAsync(host)).GetProperty("watched").GetBoolean());
        Assert.Equal(Rfc3339.Format(At(959)), (await StatusAsync(host)).GetProperty("since").GetString());
        Assert.DoesNotContain("not watched", (await host.GetAsync("/")).Body, Ordinal);
        Assert.Empty(await WarningsAsync(host));
        Assert.Contains("ses_watched{partition=\"INS\",platform=\"\",heartbeat=\"Watchdog\"} 1\n", (await host.GetAsync("/metrics")).Body, Ordinal);
        Assert.Equal(["n1 down -5", "n1 up -1", "n1 unknown 479", "n1 up 959"], await HistoryAsync(host));
        foreach (var asOf in new[] { "", "&as_of=" + Rfc3339.Format(At(1439.5)) })
        {
            var report = (await host.GetAsync($"/alerts/INS/report?from={Rfc3339.Format(At(-1))}&to={Rfc3339.Format(At(1439))}{asOf}"))
                .Json.GetProperty("services")[0];
            Assert.Equal((100, 66.666667, 8 * 3600.0, 16 * 3600.0), (report.GetProperty("availability").GetDouble(),
                report.GetProperty("coverage").GetDouble(), report.GetProperty("unknown_seconds").GetDouble(), report.GetProperty("up_seconds").GetDouble()));
            Assert.Equal(DocsPage.Named("history").CodeOf("Gaps", "json").Single(), report.GetRawText());
        }
        // As it was known then.
        Assert.Equal(["n1 down -5", "n1 up -1", "n1 unknown 479"], await HistoryAsync(host, asOfNight));
        Assert.Equal(["n1 down -5", "n1 up -1"], await HistoryAsync(host, At(485)));
        var events = (await host.GetAsync("/alerts/INS/history")).Json.GetProperty("events").EnumerateArray().ToList();
        Assert.Equal("no data: Watchdog of INS is silent", events[2].GetProperty("description").GetString());
        Assert.Equal("Down resolved", events[3].GetProperty("description").GetString());
        Assert.Empty(await CheckAsync(host));
    }

    /// <summary>Brings facts into a closed store, as ses import does.</summary>
    private static void Import(Host host, params Action<Writer>[] facts)
    {
        using var writer = new Writer(StoreFiles.PathOf(host.Dir), 1000,
            StoreChild.Rules with { Name = Environment.MachineName }, new RecentAlerts(), host.Clock);
        writer.Commit(facts.Select(f => (Action)(() => f(writer))), host.Clock.UtcNow);
    }

    private static Task<List<string>> CheckAsync(Host host)
    {
        using var snapshot = host.Store.Snapshot();
        using var check = new DatabaseCheck(snapshot.Database, snapshot.Rules, host.Clock.UtcNow);
        check.CheckAll(_ => { });
        return Task.FromResult(check.Faults.ToList());
    }

    /// <summary>Alertmanager times out what Prometheus no longer renews: that is no recovery.</summary>
    [Fact]
    public async Task EndThatAlertmanagerStatesInAGapIsUncertain()
    {
        await using var host = Host.Serving();
        for (var minute = 0; minute < 5; minute++)
        {
            await PostAsync(host, Relayed("firing"));
            await PassAsync(host, At(minute + 1));
        }
        await PostAsync(host, Down("n1", At(3)));
        await PostAsync(host, Down("n2", At(-20), At(-10)));
        // Prometheus is dead from 5 on; Alertmanager gives all of it up at 9.
        await PassAsync(host, At(9.5));
        await PostAsync(host, Relayed("resolved", At(9)));
        await PostAsync(host, Down("n1", At(3), At(9)));
        await PassAsync(host, At(12));
        Assert.Equal(["n2 down -20", "n2 up -10", "n1 down 3", "n2 unknown 5", "n1 unknown 9"],
            (await HistoryAsync(host)).Where(h => !h.EndsWith(" 0", Ordinal)));
        // Who is down is last known to be down, on the page as well; whatever Alertmanager made of it.
        var services = (await host.GetAsync("/alerts/INS")).Json.GetProperty("services").EnumerateArray().ToList();
        Assert.Equal(["n1 down", "n2 up"], services.Select(s => $"{s.GetProperty("location")} {s.GetProperty("status")}"));
        Assert.Contains("✖ 1 down</strong> <span>? 1 unknown</span>", (await host.GetAsync("/")).Body, Ordinal);
        Assert.Contains("✖ 1 of 2 down", (await host.GetAsync("/badge.svg")).Body, Ordinal);
        // It is back, and with it what is still so; n1 is not heard of for --pause.
        await PassAsync(host, At(20));
        while (host.Clock.UtcNow < At(34))
        {
            await PostAsync(host, Relayed("firing"));
            await PassAsync(host, host.Clock.UtcNow.AddMinutes(1));
        }
        Assert.Equal("unknown", (await StatusAsync(host, "?location=n1")).GetProperty("status").GetString());
        await PassAsync(host, At(36));
        Assert.Equal("up", (await StatusAsync(host, "?location=n1")).GetProperty("status").GetString());
        string[] expected = ["n1 down 3", "n2 unknown 5", "n1 unknown 9", "n2 up 20", "n1 up 35"];
        Assert.Equal(expected, (await HistoryAsync(host)).Skip(3));
        Assert.Equal(expected, (await HistoryAsync(host, At(36))).Skip(3));
        // Onix, and the threshold report that stands for it, know of no gaps.
        var report = (await host.GetAsync("/alerts/INS/report?threshold=1")).Json.GetProperty("events");
        Assert.DoesNotContain(report.EnumerateArray(), e => e.GetProperty("status").GetString() == "unknown");
        var outages = (await host.GetAsync("/?range=24h")).Body;
        Assert.Contains($"datetime=\"{Rfc3339.Format(At(3))}\"", outages, Ordinal);
    }

    /// <summary>They are found a stretch at a time, and most of them in stored runs, which know of no gaps.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public async Task EndedOutagesAreThoseOfTheWholeTimeline(int seed)
    {
        var random = new Random(seed);
        await using var host = Host.Serving();
        var open = new Dictionary<int, DateTime>();
        var begin = At(0);
        for (var (minute, silent) = (0.0, 0); minute < 2000; minute += 4, silent--)
        {
            if (silent <= 0 && minute > 60 && random.Next(40) == 0)
                silent = random.Next(5, 30);
            if (silent <= 0)
                await PostAsync(host, Relayed("firing"));
            for (var service = 0; service < 8; service++)
            {
                if (random.Next(2) != 0)
                    continue;
                var now = At(minute + (random.Next(-180, 0) / 60.0));
                if (open.Remove(service, out var since) && now > since)
                    await PostAsync(host, Down($"n{service}", since, now));
                else
                    await PostAsync(host, Down($"n{service}", open[service] = now));
            }
            await PassAsync(host, At(minute + 4));
        }
        using var snapshot = await host.Store.ReadAsync();
        var questions = Questions.Of(snapshot);
        Assert.NotEmpty(questions.Silent("INS", "INS", begin, questions.Moment));
        var whole = questions.Outages(All, null, null, Counting.Plain).Where(o => o.To != null)
            .Select(o => $"{o.Service.Location} {Tell(o.From)} {Tell(o.To!.Value)}").Order().ToList();
        Assert.InRange(whole.Count, 500, 2000);
        Assert.Equal(whole, Questions.Of(snapshot).EndedOutages(All, begin.AddDays(-1), questions.Moment.AddMilliseconds(1))
            .Select(o => $"{o.Service.Location} {Tell(o.From)} {Tell(o.To)}").Order());
        var ends = Questions.Of(snapshot).EndedOutages(ServiceFilter.All, begin, questions.Moment).Select(o => o.To).ToList();
        Assert.Equal(ends.OrderDescending(), ends);
    }

    /// <summary>SeS's own absence: what rests on an open alert holds, and ends in it are exact.</summary>
    [Fact]
    public async Task AbsenceOfSesIsAGap()
    {
        await using var host = Host.Serving();
        await PostAsync(host, Down("open", At(-1)));
        await PostAsync(host, Down("up", At(-20), At(-10)));
        await PostAsync(host, Down("ends", At(-1)));
        await PassAsync(host, At(1));
        host.CloseStore();
        host.Clock.UtcNow = At(11);
        host.Reopen();
        await PostAsync(host, Down("ends", At(-1), At(5)));
        await PassAsync(host, At(12));
        Assert.Equal(["up unknown 1", "ends unknown 5", "up up 11", "ends up 11"], (await HistoryAsync(host)).TakeLast(4));
        Assert.Equal(await HistoryAsync(host), await HistoryAsync(host, At(12)));
        Assert.Equal(["up"], await HistoryAsync(host, instance: "up").ContinueWith(t => t.Result.Where(h => h.EndsWith(" 11", Ordinal)).Select(h => h.Split(' ')[1])));
        var events = (await host.GetAsync("/alerts/INS/history?location=up")).Json.GetProperty("events").EnumerateArray().ToList();
        Assert.Equal("no data: SeS was away", events[^2].GetProperty("description").GetString());
        // It tells itself of it: two facts, at its return.
        using var snapshot = host.Store.Snapshot();
        var lines = FactLines.Read(snapshot, null, null, null).Where(l => l.Contains("\"kind\":\"gap\"", Ordinal)).ToList();
        Assert.Equal(2, lines.Count);
        Assert.All(lines, l => Assert.Contains($"\"partition\":null,\"platform\":null,\"heartbeat\":null,\"begins\":\"{At(1):yyyy-MM-ddTHH:mm:ss.fff}Z\"", l, Ordinal));
        Assert.Empty(await CheckAsync(host));
    }

    [Theory]
    [InlineData(4.8, 0)]
    [InlineData(5.1, 2)]
    public async Task ShortAbsenceIsNoGap(double minutes, int facts)
    {
        await using var host = Host.Serving();
        await PostAsync(host, Down("n1", At(-1)));
        await PassAsync(host, At(1));
        host.CloseStore();
        host.Clock.UtcNow = At(1 + minutes);
        host.Reopen();
        await PassAsync(host, At(2 + minutes));
        using var snapshot = host.Store.Snapshot();
        Assert.Equal(facts, snapshot.Number("SELECT count(*) FROM gap"));
        // A process that was stopped, or a host that slept, is away as well.
        await PassAsync(host, At(20));
        host.Clock.UtcNow = At(20 + minutes);
        await PassAsync(host, At(30));
        using var later = host.Store.Snapshot();
        Assert.Equal(2 * facts, later.Number("SELECT count(*) FROM gap"));
    }

    /// <summary>Where a heartbeat was armed before a restart it need not be armed again, nor is it silent.</summary>
    [Fact]
    public async Task HeartbeatGoesOnAfterARestart()
    {
        await using var host = Host.Serving();
        await BeatAsync(host, 5);
        host.CloseStore();
        host.Clock.UtcNow = At(65);
        host.Reopen();
        await PassAsync(host, At(74));
        using (var snapshot = host.Store.Snapshot())
            Assert.Equal(0, snapshot.Number("SELECT count(*) FROM gap WHERE heartbeat IS NOT NULL"));
        await PassAsync(host, At(75));
        // 10 minutes of its own time, of which the beat at 4 left 9; one begin.
        using (var snapshot = host.Store.Snapshot())
            Assert.Equal(1, snapshot.Number("SELECT count(*) FROM gap WHERE heartbeat = 'Watchdog' AND ends IS NULL"));
        host.CloseStore();
        host.Reopen();
        await BeatAsync(host, 77);
        using (var snapshot = host.Store.Snapshot())
        {
            Assert.Equal(2, snapshot.Number("SELECT count(*) FROM gap WHERE heartbeat = 'Watchdog'"));
            Assert.Equal(1, snapshot.Number("SELECT count(*) FROM receipt WHERE heartbeat = 'Watchdog'"));
        }
        Assert.Empty(await CheckAsync(host));
    }

    /// <summary>A platform's heartbeat speaks for it alone, in place of the partition's.</summary>
    [Fact]
    public async Task PlatformsHeartbeatSpeaksForItAlone()
    {
        await using var host = Host.Serving();
        await PostAsync(host, Down("a", At(-20), At(-10), ",\"cluster\":\"k1\""));
        await PostAsync(host, Down("b", At(-20), At(-10), ",\"cluster\":\"k2\""));
        await BeatAsync(host, 5);
        await PassAsync(host, At(20));
        Assert.Equal(2, (await HistoryAsync(host)).Count(h => h.EndsWith(" unknown 4", Ordinal)));
        // k1 has its own from 22 on.
        await BeatAsync(host, 30, ",\"cluster\":\"k1\"");
        await PassAsync(host, At(60));
        Assert.Equal(["a unknown 4", "a up 22", "a unknown 29"], (await HistoryAsync(host, instance: "a")).Skip(2));
        Assert.Equal(["b unknown 4"], (await HistoryAsync(host, instance: "b")).Skip(2));
        Assert.Contains("No data from INS/k1 since", (await host.GetAsync("/ready")).Body, Ordinal);
        Assert.Equal(await HistoryAsync(host), await HistoryAsync(host, At(60)));
    }

    /// <summary>Of a heartbeat that is not armed it is told why.</summary>
    [Fact]
    public async Task HeartbeatThatIsNotArmedIsToldOf()
    {
        await using var host = Host.Serving();
        await PostAsync(host, Relayed("firing"));
        await PassAsync(host, At(240));
        await PostAsync(host, Relayed("firing"));
        await PassAsync(host, At(241));
        Assert.Equal($"Watchdog of INS is not armed: 1 of 3 beats in a row, the last at {Rfc3339.Format(At(240))}; they must be "
            + "at most 10 minutes apart: give it a repeat_interval of 1m", (await WarningsAsync(host))[0]);
        Assert.DoesNotContain("ses_watched{", (await host.GetAsync("/metrics")).Body, Ordinal);
    }

    [Fact]
    public async Task ReadyTellsStrangersNothing()
    {
        await using var host = Host.Serving("--auth-mode", "basic", "--username", "u", "--password", "p");
        Assert.Equal(204, (await host.PostAsync(Relayed("firing"), authorization: "Basic dTpw")).Code);
        await PassAsync(host, At(1));
        Assert.Empty(await WarningsAsync(host));
        var answer = await host.SendAsync(HttpMethod.Get, "/ready", null, "Basic dTpw");
        Assert.True(answer.Json.TryGetProperty("warnings", out _));
        Assert.Equal(401, (await host.UnfreezeAsync(host.SendAsync(HttpMethod.Get, "/ready", null, "Basic dTp4"))).Code);
    }

    /// <summary>Without send_resolved no alert of a webhook ever ends.</summary>
    [Fact]
    public async Task WebhookWithoutEndsIsToldOf()
    {
        await using var host = Host.Serving();
        await PostAsync(host, Down("n1", At(-1)));
        await PassAsync(host, At(23 * 60));
        Assert.Empty(await WarningsAsync(host));
        await PassAsync(host, At((24 * 60) + 1));
        Assert.Equal(["Alerts of INS never end: its webhook needs send_resolved: true"],
            await WarningsAsync(host));
        await PostAsync(host, Down("n1", At(-1), At(5)));
        await PassAsync(host, At((24 * 60) + 2));
        Assert.Empty(await WarningsAsync(host));
    }

    [Theory]
    [InlineData(-95, 3, "95 s behind")]
    [InlineData(95, 1, "95 s ahead")]
    [InlineData(-50, 3, null)]
    [InlineData(-95, 2, null)]
    [InlineData(50, 3, null)]
    public async Task ClockOfASenderIsToldOf(int seconds, int alerts, string? expected)
    {
        await using var host = Host.Serving();
        await PassAsync(host, At(10));
        for (var i = 0; i < alerts; i++)
        {
            var starts = host.Clock.UtcNow.AddSeconds(seconds);
            Assert.Equal(200, (await host.PostAsync($$$"""
                [{"labels":{"alertname":"Down","job":"etcd","instance":"n{{{i}}}"},"startsAt":"{{{Rfc3339.Format(starts)}}}",
                "endsAt":"{{{Rfc3339.Format(starts.AddMinutes(4))}}}","generatorURL":"http://p1:9090/graph"}]
                """, Direct)).Code);
            await PassAsync(host, host.Clock.UtcNow.AddMinutes(1));
        }
        var warnings = await WarningsAsync(host);
        Assert.Equal(expected == null ? [] : [$"The clock of http://p1:9090 is {expected}: its alerts have wrong times"], warnings);
    }

    /// <summary>What nobody has heard of for --forget is not listed; its history is.</summary>
    [Fact]
    public async Task ForgottenServiceIsNotListed()
    {
        await using var host = Host.Serving("--forget", "2h");
        await PostAsync(host, Down("gone", At(-20), At(-10)));
        await PostAsync(host, Down("open", At(-20)));
        await PassAsync(host, At(125));
        await PostAsync(host, Down("new", At(120), At(122)));
        await PassAsync(host, At(126));
        var services = (await host.GetAsync("/alerts/INS")).Json.GetProperty("services").EnumerateArray();
        Assert.Equal(["new", "open"], services.Select(s => s.GetProperty("location").GetString()));
        var page = (await host.GetAsync("/")).Body;
        Assert.DoesNotContain(">gone<", page.Split("Latest outages")[0], Ordinal);
        Assert.Contains("✖ 1 down</strong> <span>✔ 1 up</span>", page, Ordinal);
        Assert.Contains(await HistoryAsync(host), h => h.StartsWith("gone", Ordinal));
        Assert.Equal(3, (await host.GetAsync("/alerts/INS/report")).Json.GetProperty("services").GetArrayLength());
        // As of an hour before it was.
        Assert.Equal(2, (await host.GetAsync("/alerts/INS?as_of=-1h")).Json.GetProperty("services").GetArrayLength());
    }

    [Fact]
    public async Task SilenceEndsUnderAnotherName()
    {
        await using var host = Host.Serving();
        await PostAsync(host, Down("n1", At(-20), At(-10)));
        await BeatAsync(host, 5);
        await PassAsync(host, At(20));
        Assert.Equal("n1 unknown 4", (await HistoryAsync(host))[^1]);
        host.CloseStore();
        host.Reopen("--name", "other");
        Assert.Equal(200, (await host.PostAsync(Watchdog(host.Clock.UtcNow), Direct)).Code);
        await PassAsync(host, At(21));
        Assert.Equal(["n1 unknown 4", "n1 up 20"], (await HistoryAsync(host)).TakeLast(2));
        Assert.True((await StatusAsync(host)).GetProperty("watched").GetBoolean());
    }

    [Fact]
    public async Task HeartbeatThatIsNamedNoMoreIsNotExpected()
    {
        await using var host = Host.Serving();
        await PostAsync(host, Down("n1", At(-20), At(-10)));
        await BeatAsync(host, 5);
        await PassAsync(host, At(20));
        host.CloseStore();
        host.Reopen("--heartbeat", "");
        await PassAsync(host, At(60));
        var history = await HistoryAsync(host);
        Assert.Equal("n1 unknown 4", history[^2]);
        Assert.StartsWith("n1 up 20", history[^1], Ordinal);
        Assert.Equal(JsonValueKind.Null, (await StatusAsync(host)).GetProperty("watched").ValueKind);
        Assert.Empty(await WarningsAsync(host));
    }

    [Fact]
    public async Task ArmedHeartbeatOfAMovedStoreIsSilentFromTheMoveOn()
    {
        await using var host = Host.Serving();
        await PostAsync(host, Down("n1", At(-20), At(-10)));
        await BeatAsync(host, 5);
        List<string> lines;
        using (var snapshot = host.Store.Snapshot())
            lines = [.. FactLines.Read(snapshot, null, null, null)];
        await using var other = Host.Serving();
        other.CloseStore();
        other.Clock.UtcNow = At(10_000);
        Import(other, [.. lines.Select(l => (Action<Writer>)(w => FactLine.Parse(l, other.Clock.UtcNow).Take(w)))]);
        using (var database = new SqliteConnection(StoreFiles.PathOf(other.Dir), isReadOnly: false, 100))
            database.Execute("DELETE FROM meta WHERE name = 'alive'");
        other.Reopen();
        await PassAsync(other, At(10_009));
        Assert.DoesNotContain(await HistoryAsync(other), h => h.Contains("unknown", Ordinal));
        await PassAsync(other, At(10_012));
        Assert.Equal("n1 unknown 10000", (await HistoryAsync(other))[^1]);
    }

    /// <summary>More heartbeats than are heard end nothing, also at a start.</summary>
    [Fact]
    public async Task TooManyHeartbeatsAreNotHeardAndStopNothing()
    {
        await using var host = Host.Serving();
        for (var batch = 0; batch < 3; batch++)
        {
            var alerts = Enumerable.Range(batch * 500, 500).Select(i => Watchdog(host.Clock.UtcNow, $",\"platform\":\"p{i}\"").Trim()[1..^1]);
            Assert.Equal(200, (await host.PostAsync($"[{string.Join(',', alerts)}]", Direct)).Code);
        }
        await PassAsync(host, At(2));
        host.CloseStore();
        Import(host, w => w.Import(Environment.MachineName, "INS", "another", "Watchdog", At(1)));
        host.Reopen();
        await PassAsync(host, At(20));
        await PostAsync(host, Down("n1", At(-1)));
        Assert.Empty(await CheckAsync(host));
    }

    /// <summary>With facts of another SeS, SeS's own absence is a gap only while that one was away, too.</summary>
    [Theory]
    [InlineData(0, true)]
    [InlineData(6, true)]
    [InlineData(20, false)]
    public async Task AbsencesOfSeveralIntersect(int heard, bool isGap)
    {
        await using var host = Host.Serving();
        await PostAsync(host, Down("n1", At(-20), At(-10)));
        await PassAsync(host, At(1));
        host.CloseStore();
        host.Clock.UtcNow = At(11);
        host.Reopen();
        await PostAsync(host, Down("n2", At(-20), At(-10)));
        await PassAsync(host, At(25));
        host.CloseStore();
        Import(host, w => w.Import("other", "INS", null, null, At(0)), w => w.Import("other",
            Alert("INS") with { Starts = At(heard), Ends = At(heard) }, ObservationKind.End, At(heard)));
        host.Reopen();
        await PassAsync(host, At(26));
        string[] expected = isGap ? [$"n1 unknown {Math.Max(1, heard)}", "n1 up 11"] : [];
        Assert.Equal(expected, (await HistoryAsync(host, instance: "n1")).Skip(2));
        Assert.Equal(await HistoryAsync(host), await HistoryAsync(host, At(26)));
    }

    /// <summary>
    /// Random alerts, beats, silences and absences: what is laid over the stored runs is what is derived from
    /// the facts as of then, in the history, its pages, the report and the status.
    /// </summary>
    [Fact]
    public async Task WhatIsLaidOverIsWhatIsDerived()
    {
        var seeds = Environment.GetEnvironmentVariable("SES_SOAK") == null ? 6 : 150;
        for (var seed = 1; seed <= seeds; seed++)
            await LayAsync(seed);
    }

    private static async Task LayAsync(int seed)
    {
        var random = new Random(seed);
        await using var host = Host.Serving();
        for (var i = 0; i < 120; i++)
        {
            var (now, minutes) = (host.Clock.UtcNow, random.Next(1, 12));
            var instance = $"n{random.Next(5)}";
            var more = random.Next(3) == 0 ? ",\"cluster\":\"k1\"" : "";
            switch (random.Next(10))
            {
                case 0 or 1:
                    for (var beat = 0; beat < random.Next(2, 6); beat++)
                    {
                        Assert.Equal(200, (await host.PostAsync(Watchdog(host.Clock.UtcNow, more), Direct)).Code);
                        await PassAsync(host, host.Clock.UtcNow.AddMinutes(1));
                    }
                    break;
                case 2:
                    for (var beat = 0; beat < random.Next(2, 6); beat++)
                    {
                        await PostAsync(host, Relayed("firing"));
                        await PassAsync(host, host.Clock.UtcNow.AddMinutes(1));
                    }
                    break;
                case 3:
                    await PostAsync(host, Relayed("resolved", now.AddSeconds(-20)));
                    break;
                case 4 or 5 or 6:
                    await PostAsync(host, Down(instance, now.AddMinutes(-random.Next(0, 30)), null, more));
                    break;
                case 7 or 8:
                    await PostAsync(host, Down(instance, now.AddMinutes(-random.Next(20, 40)), now.AddMinutes(-random.Next(0, 15)), more));
                    break;
                default:
                    host.CloseStore();
                    host.Clock.UtcNow = now.AddMinutes(minutes);
                    host.Reopen();
                    break;
            }
            await PassAsync(host, host.Clock.UtcNow.AddMinutes(random.Next(0, 8)));
            if (i % 10 == 9)
                Assert.Equal(string.Join('\n', await RowsAsync(host, isAsOf: true)), string.Join('\n', await RowsAsync(host, isAsOf: false)));
        }
        using var snapshot = host.Store.Snapshot();
        Assert.True(snapshot.Number("SELECT count(*) FROM gap WHERE heartbeat IS NOT NULL") > 4);
        Assert.True(snapshot.Number("SELECT count(*) FROM gap WHERE heartbeat IS NULL") > 2);
        Assert.Empty(await CheckAsync(host));
    }

    private static async Task<List<string>> RowsAsync(Host host, bool isAsOf)
    {
        using var snapshot = await host.Store.ReadAsync();
        var questions = Questions.Of(snapshot, isAsOf ? snapshot.Moment : null);
        var history = questions.History(All, null, null).Select(Text).ToList();
        var pages = new List<string>();
        (DateTime, long)? after = null;
        while (questions.History(All, null, null, after).Take(7).ToList() is { Count: > 0 } page)
        {
            pages.AddRange(page.Select(Text));
            after = (page[^1].Time, page[^1].ServiceId);
        }
        Assert.Equal(history, pages);
        (pages, after) = ([], null);
        while (questions.History(All, null, null, after, isNewestFirst: true).Take(5).ToList() is { Count: > 0 } page)
        {
            pages.AddRange(page.Select(Text));
            after = (page[^1].Time, page[^1].ServiceId);
        }
        Assert.Equal(Enumerable.Reverse(history), pages);
        var middle = Host.Now + ((snapshot.Moment - Host.Now) / 2);
        Assert.Equal(history, questions.History(All, null, middle).Concat(questions.History(All, middle, null)).Select(Text));
        return
        [
            .. history, .. questions.Present(All).Select(r => $"{r with { LastSeen = null }}"),
            .. questions.Report(All, Host.Now, null).Select(r => $"{r}"), .. questions.Report(All, middle, null).Select(r => $"{r}"),
            .. questions.Threshold(All, 3, null, null).Select(r => $"{r}"),
        ];

        static string Text(ChangeRow row) => $"{row.Service} {row.Status} {Tell(row.Time)} {row.Description} {row.Received:O}";
    }
}
