using System.Globalization;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>SeS in Prometheus's list of Alertmanagers: what it answers, stores and makes of what is sent.</summary>
public sealed class PrometheusTests
{
    private const string Path = "/alerts/INS/api/v2/alerts";

    private static string Alert(DateTime? starts, DateTime? ends, string sender = "http://p1:9090", string more = "") =>
        JsonSerializer.Serialize(new
        {
            labels = JsonDocument.Parse($$"""{"alertname":"Down","job":"etcd","instance":"n1"{{more}}}""").RootElement,
            annotations = new { description = $"n1 is down, says {sender}" },
            startsAt = Text(starts),
            endsAt = Text(ends),
            generatorURL = sender == "" ? "" : sender + "/graph?g0.expr=up",
        });

    private static string Text(DateTime? time) =>
        time is { } at ? Rfc3339.Format(at) : "0001-01-01T00:00:00.000Z";

    private static string Webhook(string status, DateTime starts, DateTime? ends = null, string more = "") => $$$"""
        {"version":"4","alerts":[{"status":"{{{status}}}","labels":{"alertname":"Down","job":"etcd","instance":"n1"{{{more}}}},
        "annotations":{"description":"of Alertmanager"},"startsAt":"{{{Text(starts)}}}","endsAt":"{{{Text(ends)}}}"}]}
        """;

    private static DateTime At(double seconds) => Host.Now.AddSeconds(seconds);

    private static async Task PostAsync(Host host, params string[] alerts)
    {
        var answer = await host.PostAsync($"[{string.Join(',', alerts)}]", Path);
        Assert.Equal((200, ""), (answer.Code, answer.Body));
    }

    private static Task FireAsync(Host host, double starts, string sender = "http://p1:9090", string more = "") =>
        PostAsync(host, Alert(At(starts), host.Clock.UtcNow.AddMinutes(4), sender, more));

    private static async Task WebhookAsync(Host host, string body) =>
        Assert.Equal(204, (await host.PostAsync(body)).Code);

    /// <summary>The changes, in seconds from the beginning.</summary>
    private static async Task<List<string>> HistoryAsync(Host host)
    {
        using var snapshot = await host.Store.ReadAsync();
        return [.. Questions.Of(snapshot).History(new(null, null, null, null, null), null, null)
            .Select(c => $"{c.Status} {(c.Time - Host.Now).TotalSeconds.ToString(CultureInfo.InvariantCulture)}")];
    }

    /// <summary>Lets time go by as it does: the store looks at the clock each second.</summary>
    private static Task RunAsync(Host host, double until) => TickAsync(host.Store, host.Clock, until);

    private static DateTime Min(DateTime one, DateTime other) => one < other ? one : other;

    // ---- Answers ----

    [Fact]
    public async Task AnswersAreAlertmanagers()
    {
        await using var host = Host.Serving();
        await PostAsync(host);
        await FireAsync(host, -10);
        Assert.Equal((200, "{\"status\":\"success\"}\n"),
            (await host.PostAsync("[]", "/alerts/INS/api/v1/alerts")) is var first ? (first.Code, first.Body) : default);
        Assert.Equal("The body is not a JSON array.", (await host.PostAsync("{}", Path)).Problem(400));
        Assert.StartsWith("The body is not JSON", (await host.PostAsync("[", Path)).Problem(400), StringComparison.Ordinal);
        // A sender would drop what is answered 4xx: what is bad is set aside, and the good taken.
        await PostAsync(host, """{"labels":{"job":"etcd"},"startsAt":"2026-11-22T11:00:00Z"}""", "5",
            Alert(At(-20), At(-1), "http://p2:9090"));
        using (var snapshot = host.Store.Snapshot())
            Assert.Equal(2, QuarantinedAlert.Read(snapshot).Count());
        Assert.Equal(2, host.Observations);
        var status = (await host.GetAsync("/alerts/INS/api/v2/status")).Json;
        Assert.Equal("disabled", status.GetProperty("cluster").GetProperty("status").GetString());
        Assert.Equal((200, "OK"), (await host.GetAsync("/alerts/INS/-/ready")) is var ready ? (ready.Code, ready.Body) : default);
        Assert.Equal(404, (await host.GetAsync("/alerts/INS/api/v2/silences")).Code);
        Assert.Equal(405, (await host.SendAsync(HttpMethod.Put, Path, "[]")).Code);
        Assert.Equal(405, (await host.GetAsync("/alerts/INS/api/v1/alerts")).Code);
    }

    [Fact]
    public async Task ConnectionIsClosedAfterEachPostSoThatNoneIsLost()
    {
        await using var host = Host.Serving();
        var answer = await host.PostAsync("[]", Path);
        Assert.True(answer.Headers.ConnectionClose);
        Assert.NotEqual(true, (await host.PostAsync("""{"alerts":[]}""")).Headers.ConnectionClose);
    }

    [Fact]
    public async Task OpenAlertsAreListed()
    {
        await using var host = Host.Serving();
        await FireAsync(host, -10);
        await PostAsync(host, Alert(At(-20), At(-1), "http://p2:9090"));
        await host.PostAsync($"[{Alert(At(-5), At(200))}]", "/alerts/OTHER/api/v2/alerts");
        var listed = Assert.Single((await host.GetAsync(Path)).Json.EnumerateArray());
        Assert.Equal("n1", listed.GetProperty("labels").GetProperty("instance").GetString());
        Assert.Equal(At(-10), listed.GetProperty("startsAt").GetDateTime());
        Assert.Equal("active", listed.GetProperty("status").GetProperty("state").GetString());
        Assert.Contains("filter", (await host.GetAsync(Path + "?filter=a%3Db")).Problem(400), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("/alerts/INS/api/v2/alerts", 401)]
    [InlineData("/alerts/INS/api/v2/status", 401)]
    [InlineData("/alerts/INS/-/ready", 200)]
    public async Task CredentialsAreAskedForAsForTheWebhook(string path, int code)
    {
        await using var host = Host.Serving("--auth-mode", "basic", "--username", "u", "--password", "p");
        Assert.Equal(code, (await host.GetAsync(path)).Code);
        Assert.Equal(401, (await host.PostAsync("[]", Path)).Code);
    }

    // ---- Firing, renewed, resolved ----

    [Fact]
    public async Task CopiesThatOnlyRenewAreNotStored()
    {
        await using var host = Host.Serving();
        await FireAsync(host, -1);
        var facts = host.Observations;
        for (var minute = 1; minute <= 30; minute++)
        {
            await RunAsync(host, 60 * minute);
            await FireAsync(host, -1);
        }
        Assert.Equal((facts, 1), (host.Observations, facts));
        Assert.Equal(["down -1"], await HistoryAsync(host));
        await PostAsync(host, Alert(At(-1), At(1790)));
        Assert.Equal(["down -1", "up 1790"], await HistoryAsync(host));
    }

    [Fact]
    public async Task WhatIsNotRenewedIsUnknownFromItsLastCopyOn()
    {
        await using var host = Host.Serving();
        await FireAsync(host, -1);
        await RunAsync(host, 60);
        await FireAsync(host, -1);
        await RunAsync(host, 299);
        Assert.Equal(["down -1"], await HistoryAsync(host));
        await RunAsync(host, 310);
        Assert.Equal(["down -1", "unknown 60"], await HistoryAsync(host));
        // It was there all the time.
        await FireAsync(host, -1);
        Assert.Equal(["down -1"], await HistoryAsync(host));
        await RunAsync(host, 310 + 250);
        Assert.Equal(["down -1", "unknown 310"], await HistoryAsync(host));
        await RunAsync(host, 310 + 250 + 900);
        Assert.Equal(3, (await HistoryAsync(host)).Count);
        Assert.StartsWith("up ", (await HistoryAsync(host))[^1], StringComparison.Ordinal);
    }

    /// <summary>After a restart of Prometheus an alert comes with a new start.</summary>
    [Fact]
    public async Task NewerEpisodeLapsesTheOlderAtItsLastCopy()
    {
        await using var host = Host.Serving();
        await FireAsync(host, -1);
        await RunAsync(host, 60);
        await FireAsync(host, -1);
        await RunAsync(host, 130);
        await FireAsync(host, 129);
        Assert.Equal(["down -1", "unknown 60", "down 129"], await HistoryAsync(host));
    }

    [Fact]
    public async Task EndWithinTheToleranceForClocksIsAnEnd()
    {
        await using var host = Host.Serving();
        // Of a rule that is not known 2 s, of one whose copies are valid for 4 minutes 30 s.
        await PostAsync(host, Alert(At(-9), At(1.9), "http://p3:9090"));
        Assert.Equal(["down -9"], await HistoryAsync(host));
        host.Clock.UtcNow = At(3);
        Assert.Equal(["down -9", "up 1.9"], await HistoryAsync(host));
        await FireAsync(host, 2, more: ",\"i\":\"2\"");
        await PostAsync(host, Alert(At(2), At(32.5), more: ",\"i\":\"2\""));
        await RunAsync(host, 40);
        Assert.Contains("up 32.5", await HistoryAsync(host));
    }

    /// <summary>amtool alert add: no start, and no end unless one is given.</summary>
    [Fact]
    public async Task AlertWithoutAStartBeginsWhenItIsReceived()
    {
        await using var host = Host.Serving();
        await PostAsync(host, Alert(null, null, ""));
        await RunAsync(host, 100);
        await PostAsync(host, Alert(null, null, ""));
        Assert.Equal((1, "down 0"), (host.Observations, Assert.Single(await HistoryAsync(host))));
        await RunAsync(host, 150);
        await PostAsync(host, Alert(null, At(149), ""));
        Assert.Equal(["down 0", "up 149"], await HistoryAsync(host));
        await RunAsync(host, 200);
        await PostAsync(host, Alert(null, null, ""));
        await RunAsync(host, 510);
        Assert.Equal(["down 0", "up 149", "down 200", "unknown 200.001"], await HistoryAsync(host));
    }

    // ---- Restarts ----

    [Theory]
    [InlineData(true, 70)]
    [InlineData(false, 60)]
    public async Task AfterSesWasAwayNothingLapsesBeforeItCouldBeSentAgain(bool isStopped, int known)
    {
        var clock = new ManualClock(Host.Now);
        var directory = Directory.CreateTempSubdirectory("ses-away").FullName;
        var stale = directory + "-killed";
        var store = OpenStore(directory, clock);
        await store.AppendAsync("INS", Firing(clock));
        await TickAsync(store, clock, 70);
        if (!isStopped)
            CopyFolder(directory, stale);
        store.Dispose();
        clock.UtcNow = At(400);
        store = OpenStore(isStopped ? directory : stale, clock);
        await TickAsync(store, clock, 400 + 125);
        Assert.Equal(["down -1"], Changes(store));
        await TickAsync(store, clock, 400 + 140);
        Assert.Equal(["down -1", $"unknown {known}"], Changes(store));
        store.Dispose();
        Directory.Delete(directory, true);
        if (!isStopped)
            Directory.Delete(stale, true);

        static List<string> Changes(Store store)
        {
            using var snapshot = store.ReadAsync().GetAwaiter().GetResult();
            return [.. Questions.Of(snapshot).History(new(null, null, null, null, null), null, null)
                .Select(c => $"{c.Status} {Math.Floor((c.Time - Host.Now).TotalSeconds / 10) * 10}"
                    .Replace("down -10", "down -1", StringComparison.Ordinal))];
        }
    }

    private static void CopyFolder(string from, string to)
    {
        Directory.CreateDirectory(to);
        foreach (var file in Directory.GetFiles(from, "ses.db*"))
            File.Copy(file, System.IO.Path.Combine(to, System.IO.Path.GetFileName(file)));
    }

    private static Store OpenStore(string directory, ManualClock clock) => new(directory, StoreChild.Rules, clock,
        new Log(LogLevel.Error, false, TextWriter.Null, clock), new Meters("test", "test"));

    private static ReceivedAlerts Firing(ManualClock clock) => AlertReader.Read(
        System.Text.Encoding.UTF8.GetBytes($"[{Alert(At(-1), clock.UtcNow.AddMinutes(4))}]"), "INS",
        AlertSource.Prometheus, MappingRules.Default, clock.UtcNow);

    private static async Task TickAsync(Store store, ManualClock clock, double until)
    {
        while (clock.UtcNow < At(until))
        {
            clock.UtcNow = Min(clock.UtcNow.AddSeconds(5), At(until));
            (await store.ReadAsync()).Dispose();
        }
    }

    // ---- Several senders ----

    [Fact]
    public async Task OfAPairTheLastEndCountsAndADeadOneIsNoOutage()
    {
        await using var host = Host.Serving();
        await FireAsync(host, -1);
        await FireAsync(host, -1, "http://p2:9090");
        await RunAsync(host, 60);
        // The second dies; the first goes on, and states the end.
        for (var minute = 1; minute <= 8; minute++)
        {
            await FireAsync(host, -1);
            await RunAsync(host, 60 * minute + 60);
        }
        Assert.Equal(["down -1"], await HistoryAsync(host));
        await PostAsync(host, Alert(At(-1), At(539)));
        Assert.Equal(["down -1", "up 539"], await HistoryAsync(host));
    }

    [Theory]
    [InlineData("", "")]
    [InlineData(",\"prometheus_replica\":\"a\"", "")]
    [InlineData(",\"replica\":\"a\"", ",\"replica\":\"b\"")]
    public async Task EndThatPrometheusStatesEndsAlertmanagersToo(string ofPrometheus, string ofAlertmanager)
    {
        await using var host = Host.Serving();
        await FireAsync(host, -1, more: ofPrometheus);
        await RunAsync(host, 30);
        await WebhookAsync(host, Webhook("firing", At(-1), more: ofAlertmanager));
        await RunAsync(host, 60);
        await PostAsync(host, Alert(At(-1), At(59), more: ofPrometheus));
        Assert.Equal(["down -1", "up 59"], await HistoryAsync(host));
        // A late copy of another Alertmanager.
        await RunAsync(host, 75);
        await WebhookAsync(host, Webhook("firing", At(-1), more: ofAlertmanager));
        Assert.Equal(["down -1", "up 59"], await HistoryAsync(host));
        // It says so still.
        await RunAsync(host, 90);
        await WebhookAsync(host, Webhook("firing", At(-1), more: ofAlertmanager));
        Assert.Equal(["down -1"], await HistoryAsync(host));
        await WebhookAsync(host, Webhook("resolved", At(-1), At(80), ofAlertmanager));
        Assert.Equal(["down -1", "up 80"], await HistoryAsync(host));
    }

    [Fact]
    public async Task AlertmanagersStaysWhileAnyPrometheusHasItOpen()
    {
        await using var host = Host.Serving();
        await FireAsync(host, -1);
        await FireAsync(host, -1, "http://p2:9090");
        await WebhookAsync(host, Webhook("firing", At(-1)));
        await RunAsync(host, 30);
        await PostAsync(host, Alert(At(-1), At(29)));
        Assert.Equal(["down -1"], await HistoryAsync(host));
        await PostAsync(host, Alert(At(-1), At(29.5), "http://p2:9090"));
        Assert.Equal(["down -1", "up 29.5"], await HistoryAsync(host));
    }

    /// <summary>Alertmanager waits before it sends, and may send what has just ended.</summary>
    [Theory]
    [InlineData(15, "up 20")]
    [InlineData(25, null)]
    public async Task FirstCopyOfAlertmanagersAfterAnEndIsLateWithinTwentySeconds(int after, string? last)
    {
        await using var host = Host.Serving();
        await FireAsync(host, -1);
        await RunAsync(host, 21);
        await PostAsync(host, Alert(At(-1), At(20)));
        await RunAsync(host, 21 + after);
        await WebhookAsync(host, Webhook("firing", At(-1)));
        Assert.Equal(last == null ? ["down -1"] : ["down -1", last], await HistoryAsync(host));
    }

    [Fact]
    public async Task OtherLabelsAreAnotherAlert()
    {
        await using var host = Host.Serving();
        await FireAsync(host, -1, more: ",\"severity\":\"critical\"");
        await WebhookAsync(host, Webhook("firing", At(-1), more: ",\"severity\":\"page\""));
        await RunAsync(host, 30);
        await PostAsync(host, Alert(At(-1), At(29), more: ",\"severity\":\"critical\""));
        Assert.Equal(["down -1"], await HistoryAsync(host));
    }

    /// <summary>Labels of replicas are the sender's to choose: thousands of one alert cost no more than others.</summary>
    [Fact]
    public async Task ThousandsOfReplicasAreEachTheirOwn()
    {
        await using var host = Host.Serving();
        await WebhookAsync(host, Webhook("firing", At(-1)));
        foreach (var ends in new[] { 240, -0.5 })
        {
            var alerts = Enumerable.Range(0, 20_000).Select(i => Alert(At(-1), At(ends), more: $",\"replica\":\"{i}\""));
            await PostAsync(host, [.. alerts]);
        }
        Assert.Equal(1 + 40_000, host.Observations);
        Assert.Equal(["down -1"], await HistoryAsync(host));
    }

    // ---- Quarantine ----

    [Fact]
    public async Task RetryTakesWhatHadEndedAndLeavesWhatFired()
    {
        await using var host = Host.Serving();
        var ended = Alert(At(-30), At(-10)).Replace("Down", "", StringComparison.Ordinal);
        await PostAsync(host, ended, ended.Replace(Text(At(-10)), Text(At(240)), StringComparison.Ordinal));
        using var snapshot = host.Store.Snapshot();
        var alerts = QuarantinedAlert.Read(snapshot).ToList();
        Assert.Equal((2, 1), (alerts.Count, alerts.Count(a => a.IsLeftToPrometheus)));
        Assert.All(alerts, a => Assert.Equal(AlertSource.Prometheus, a.Source));
        var one = alerts.Single(a => !a.IsLeftToPrometheus);
        var answer = await host.PostAsync($"[{System.Text.Encoding.UTF8.GetString(one.Alert)}]", $"{Path}?cures={one.Id}");
        Assert.Equal(1, answer.Json.GetProperty("quarantined").GetArrayLength());
        var cured = System.Text.Encoding.UTF8.GetString(one.Alert).Replace("\"alertname\":\"\"", "\"alertname\":\"Down\"", StringComparison.Ordinal);
        Assert.Equal((204, ""), (await host.PostAsync($"[{cured}]", $"{Path}?cures={one.Id}")) is var taken ? (taken.Code, taken.Body) : default);
        Assert.Equal(["down -30", "up -10"], await HistoryAsync(host));
        using var after = host.Store.Snapshot();
        Assert.Single(QuarantinedAlert.Read(after));
    }

    /// <summary>What is one too many is kept as it can be sent again.</summary>
    [Fact]
    public async Task OneTooManyIsKeptAsPrometheusSentIt()
    {
        await using var host = Host.Serving("--max-services", "1");
        await FireAsync(host, -1);
        await FireAsync(host, -1);
        for (var minute = 1; minute < 4; minute++)
        {
            await PostAsync(host, Alert(At(-1), host.Clock.UtcNow.AddMinutes(4)).Replace("n1", "n2", StringComparison.Ordinal));
            await RunAsync(host, 60 * minute);
        }
        using var snapshot = host.Store.Snapshot();
        var kept = Assert.Single(QuarantinedAlert.Read(snapshot));
        Assert.Equal((AlertSource.Prometheus, true), (kept.Source, kept.IsLeftToPrometheus));
        var json = JsonDocument.Parse(kept.Alert).RootElement;
        Assert.Equal(["labels", "annotations", "startsAt", "endsAt", "generatorURL"],
            json.EnumerateObject().Select(p => p.Name));
    }
}
