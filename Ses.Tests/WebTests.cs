using System.Globalization;
using System.Net;
using System.Net.Http.Headers;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>Each answer of the table, from a real listener with a real store.</summary>
public sealed class WebTests
{
    private const string Alert = """
        {"status":"firing","labels":{"alertname":"InstanceDown","job":"etcd","instance":"n1"},
        "startsAt":"2026-11-22T11:34:34.489Z","endsAt":"0001-01-01T00:00:00Z","fingerprint":"f1"}
        """;

    private static string Body(params string[] alerts) =>
        $$"""{"version":"4","alerts":[{{string.Join(',', alerts)}}]}""";

    private static string Basic(string userAndPassword, string scheme = "Basic") =>
        $"{scheme} {Convert.ToBase64String(Encoding.UTF8.GetBytes(userAndPassword))}";

    // ---- Webhooks that are taken ----

    [Fact]
    public async Task AlertsOnDiskAreAnswered204WithoutABody()
    {
        await using var host = Host.Serving();
        var answer = await host.PostAsync(Body(Alert));
        Assert.Equal((204, ""), (answer.Code, answer.Body));
        var e = Assert.Single(StoreFiles.Changes(host.Dir));
        Assert.Equal(new SeenService("INS", "INS", "etcd", "InstanceDown", "n1"), e.Service);
        Assert.Equal(204, (await host.PostAsync(Body(Alert))).Code);
        Assert.Equal(1, host.Observations);
    }

    [Fact]
    public async Task PayloadWithoutAlertsIsAnswered204()
    {
        await using var host = Host.Serving();
        Assert.Equal(204, (await host.PostAsync(Body())).Code);
    }

    [Fact]
    public async Task QuarantinedAlertsAreAnswered200WithTheReasons()
    {
        await using var host = Host.Serving();
        var bad = """{"status":"firing","labels":{"alertname":"Bad \u0007"},"startsAt":"x","fingerprint":"f2"}""";
        var answer = await host.PostAsync(Body(bad, Alert, "5"));
        Assert.Equal((200, "application/json"), (answer.Code, answer.Type?.MediaType));
        Assert.Equal(1, answer.Json.GetProperty("accepted").GetInt32());
        var quarantined = answer.Json.GetProperty("quarantined").EnumerateArray().ToList();
        Assert.Equal(2, quarantined.Count);
        Assert.Equal("f2", quarantined[0].GetProperty("fingerprint").GetString());
        Assert.Equal("Bad \u0007", quarantined[0].GetProperty("alertname").GetString());
        Assert.Equal("startsAt is not an RFC 3339 time with a zone", quarantined[0].GetProperty("reason").GetString());
        Assert.Equal("it is not an object", quarantined[1].GetProperty("reason").GetString());
        Assert.Equal(1, host.Observations);
        using var snapshot = host.Store.Snapshot();
        Assert.Equal(["5", bad], QuarantinedAlert.Read(snapshot).Select(a => Encoding.UTF8.GetString(a.Alert)));
    }

    /// <summary>An answer is not many times as large as its request.</summary>
    [Fact]
    public async Task FirstHundredQuarantinedAlertsAreListed()
    {
        await using var host = Host.Serving();
        var alerts = string.Join(',', Enumerable.Range(0, 250).Select(i => $$"""{"startsAt":"{{i}}"}""").Prepend(
            $$$"""{"labels":{"alertname":"{{{new string('n', 500)}}}"}}"""));
        var answer = await host.PostAsync($$"""{"version":"4","alerts":[{{alerts}}]}""");
        Assert.Equal(200, answer.Code);
        Assert.Equal(100, answer.Json.GetProperty("quarantined").GetArrayLength());
        Assert.Equal(151, answer.Json.GetProperty("more").GetInt32());
        Assert.Equal(200, answer.Json.GetProperty("quarantined")[0].GetProperty("alertname").GetString()!.Length);
        Assert.InRange(answer.Body.Length, 1, 15 * 1024);
    }

    [Theory]
    [InlineData("/alerts/INS", "INS")]
    [InlineData("/alerts/in%20s%2Fx", "in s/x")]
    [InlineData("/alerts/%C3%A4", "ä")]
    [InlineData("/alerts/INS?x=y", "INS")]
    public async Task PartitionIsThePathsLastPartDecoded(string path, string partition)
    {
        await using var host = Host.Serving();
        Assert.Equal(204, (await host.PostAsync(Body(Alert), path)).Code);
        Assert.Equal(partition, Assert.Single(StoreFiles.Changes(host.Dir)).Service.Partition);
    }

    [Fact]
    public async Task PathIsWhatTheSettingSays()
    {
        await using var host = Host.Serving("--path", "hooks/ses");
        Assert.Equal(204, (await host.PostAsync(Body(Alert), "/hooks/ses/INS")).Code);
        (await host.PostAsync(Body(Alert), "/alerts/INS")).Problem(404);
        (await host.PostAsync(Body(Alert), "/hooks/INS")).Problem(404);
    }

    [Fact]
    public async Task MapOfTheSettingsIsUsed()
    {
        await using var host = Host.Serving("--map", "platform='prod'");
        Assert.Equal(204, (await host.PostAsync(Body(Alert))).Code);
        Assert.Equal("prod", Assert.Single(StoreFiles.Changes(host.Dir)).Service.Platform);
    }

    // ---- Refusals ----

    [Theory]
    [InlineData("", "empty")]
    [InlineData("hello", "not JSON")]
    [InlineData("{\"version\":\"4\"}", "no list of alerts")]
    public async Task UnusableBodyIsAnswered400(string body, string expected)
    {
        await using var host = Host.Serving();
        Assert.Contains(expected, (await host.PostAsync(body)).Problem(400), Ordinal);
        Assert.Equal(0, host.Observations);
    }

    [Theory]
    [InlineData(null)]
    [InlineData("Basic")]
    [InlineData("Basic ")]
    [InlineData("Basic !!!")]
    [InlineData("Basic YW5uOnNlY3JldA")]
    [InlineData("Bearer YW5uOnNlY3JldA==")]
    [InlineData("YW5uOnNlY3JldA==")]
    [InlineData("Basic YW5uOndyb25n")]
    [InlineData("Basic Ym9iOnNlY3JldA==")]
    [InlineData("Basic YW5uOnNlY3JldCA=")]
    [InlineData("Basic Og==")]
    public async Task MissingOrWrongCredentialsAreAnswered401(string? authorization)
    {
        await using var host = Host.Serving(
            "--auth-mode", "basic", "--username", "ann", "--password", "secret");
        var answer = await host.UnfreezeAsync(host.PostAsync(Body(Alert), authorization: authorization));
        Assert.Equal("Credentials are missing or wrong.", answer.Problem(401));
        var challenge = Assert.Single(answer.Headers.WwwAuthenticate);
        Assert.Equal("Basic", challenge.Scheme);
        Assert.Contains("realm=", challenge.Parameter, Ordinal);
        Assert.Contains("charset=\"UTF-8\"", challenge.Parameter, Ordinal);
        Assert.Equal(0, host.Observations);
    }

    [Theory]
    [InlineData("ann", "secret", "Basic")]
    [InlineData("ann", "secret", "basic")]
    [InlineData("änn", "p€ss:wörd 😀", "BASIC")]
    [InlineData("ann", "", "Basic")]
    public async Task RightCredentialsAreAdmitted(string user, string password, string scheme)
    {
        await using var host = Host.Serving(
            "--auth-mode", "basic", "--username", user, "--password", password);
        var answer = await host.PostAsync(Body(Alert), authorization: Basic($"{user}:{password}", scheme));
        Assert.Equal(204, answer.Code);
    }

    [Theory]
    [InlineData("/alert/INS")]
    [InlineData("/alerts/INS/more/x")]
    [InlineData("/Alerts/INS")]
    [InlineData("/live/x")]
    public async Task NoSuchPathIsAnswered404(string path)
    {
        await using var host = Host.Serving();
        Assert.Contains("/alerts/PARTITION", (await host.PostAsync(Body(Alert), path)).Problem(404),
            Ordinal);
    }

    [Fact]
    public async Task PartitionThatIsNotNamedIsNotTaken()
    {
        await using var host = Host.Serving("--partitions", "INS, M\u00fcnchen 2");
        Assert.Contains("'DEV': --partitions (OXSES_PARTITIONS)",
            (await host.PostAsync(Body(Alert), "/alerts/DEV")).Problem(404), Ordinal);
        Assert.Equal(0, host.Observations);
        Assert.Contains("ses_alerts_total{outcome=\"not_taken\"} 1",
            (await host.GetAsync("/metrics")).Body.Split('\n'));
        Assert.Equal(204, (await host.PostAsync(Body(Alert), "/alerts/INS")).Code);
        Assert.Equal(204, (await host.PostAsync(Body(Alert), "/alerts/M%C3%BCnchen%202")).Code);
        // What was taken before is still told.
        Assert.Equal(404, (await host.GetAsync("/alerts/DEV")).Code);
    }

    [Theory]
    [InlineData("/alerts/M%C3%BCnchen%202")]
    [InlineData("/alerts/a%2Fb")]
    public async Task PathMayEncodeWhatNeedsIt(string path)
    {
        await using var host = Host.Serving();
        Assert.Equal(204, (await host.PostAsync(Body(Alert), path)).Code);
    }

    [Theory]
    [InlineData("/alerts")]
    [InlineData("/alerts/")]
    [InlineData("/alerts/a%0Ab")]
    [InlineData("/alerts/%00")]
    public async Task MissingOrUnusablePartitionIsNamedIn404(string path)
    {
        await using var host = Host.Serving();
        Assert.Contains("partition", (await host.PostAsync(Body(Alert), path)).Problem(404),
            OrdinalIgnoreCase);
        Assert.Equal(0, host.Observations);
    }

    [Theory]
    [InlineData("PUT", "/alerts/INS", "POST")]
    [InlineData("DELETE", "/alerts/INS", "POST")]
    [InlineData("POST", "/live", "GET")]
    [InlineData("POST", "/ready", "GET")]
    [InlineData("DELETE", "/metrics", "GET")]
    public async Task NoSuchMethodIsAnswered405WithAllow(string method, string path, string allowed)
    {
        await using var host = Host.Serving();
        var body = method is "PUT" or "POST" ? "{}" : null;
        var answer = await host.SendAsync(new HttpMethod(method), path, body);
        answer.Problem(405);
        Assert.Contains(allowed, answer.ContentHeaders.Allow);
        Assert.DoesNotContain(method, answer.ContentHeaders.Allow);
    }

    [Theory]
    [InlineData("/alerts/INS", "GET,HEAD,OPTIONS,POST")]
    [InlineData("/alerts/INS/api/v1/alerts", "OPTIONS,POST")]
    [InlineData("/", "GET,HEAD,OPTIONS")]
    public async Task OptionsTellsWhatIsAllowed(string path, string allowed)
    {
        await using var host = Host.Serving("--auth-mode", "basic", "--password", "secret");
        var answer = await host.SendAsync(HttpMethod.Options, path);
        Assert.Equal((204, ""), (answer.Code, answer.Body));
        Assert.Equal(allowed, string.Join(',', answer.ContentHeaders.Allow.Order()));
    }

    [Fact]
    public async Task BodyWithoutALengthIsAnswered411()
    {
        await using var host = Host.Serving();
        var answer = await host.SendRawAsync("POST /alerts/INS HTTP/1.1\r\nHost: localhost\r\n\r\n");
        Assert.StartsWith("HTTP/1.1 411 ", answer, Ordinal);
        Assert.Equal(204, (await host.PostAsync(Body(Alert))).Code);
    }

    [Fact]
    public async Task BodyOverTheLimitIsAnswered413()
    {
        await using var host = Host.Serving("--max-body", "1024");
        Assert.Equal(204, (await host.PostAsync(Body(Alert).PadRight(1024))).Code);
        Assert.Contains("1024", (await host.PostAsync(Body(Alert).PadRight(1025))).Problem(413),
            Ordinal);
        Assert.StartsWith("HTTP/1.1 413 ", await host.SendRawAsync(
            "POST /alerts/INS HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000000\r\n\r\n"),
            Ordinal);
    }

    [Fact]
    public async Task BodyThatDoesNotArriveInTimeIsAnswered408()
    {
        await using var host = Host.Serving();
        var answer = host.SendRawAsync(
            "POST /alerts/INS HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{");
        Assert.StartsWith("HTTP/1.1 408 ", await host.UnfreezeAsync(answer), Ordinal);
        Assert.Equal(0, host.Observations);
    }

    [Fact]
    public async Task WhileStartingWebhooksAreAnswered503()
    {
        await using var host = Host.Starting();
        Assert.Contains("starting", (await host.PostAsync(Body(Alert))).Problem(503), Ordinal);
        Assert.Equal(0, host.Observations);
        host.Serve();
        Assert.Equal(204, (await host.PostAsync(Body(Alert))).Code);
    }

    [Fact]
    public async Task ClockBeforeTheBuildIsAnswered503()
    {
        await using var host = Host.Serving();
        host.Clock.UtcNow = Host.Built.AddSeconds(-1);
        Assert.Contains("clock", (await host.PostAsync(Body(Alert))).Problem(503), Ordinal);
        Assert.Equal(503, (await host.GetAsync("/ready")).Code);
        Assert.Equal(0, host.Observations);
        host.Clock.UtcNow = Host.Now;
        Assert.Equal(204, (await host.PostAsync(Body(Alert))).Code);
    }

    [Fact]
    public async Task LogThatTakesNothingIsAnswered503()
    {
        await using var host = Host.Serving();
        host.CloseStore();
        (await host.PostAsync(Body(Alert))).Problem(503);
        Assert.Equal(503, (await host.GetAsync("/ready")).Code);
        Assert.Equal(200, (await host.GetAsync("/live")).Code);
        Assert.Equal(0, host.Observations);
    }

    [Fact]
    public async Task WhileShuttingDownOpenConnectionsAreAnswered503AndNewOnesAreNotTaken()
    {
        await using var host = Host.Serving();
        using var probe = new HttpClient { BaseAddress = new Uri($"http://127.0.0.1:{host.Port}") };
        foreach (var client in new[] { (await host.GetAsync("/live")).Code, (int)(await probe.GetAsync("/live")).StatusCode })
            Assert.Equal(200, client);
        await host.Gate.DrainAsync(TimeSpan.Zero);
        Assert.Contains("shutting down", (await host.PostAsync(Body(Alert))).Problem(503), Ordinal);
        Assert.Equal(HttpStatusCode.ServiceUnavailable, (await probe.GetAsync("/ready")).StatusCode);
        await Assert.ThrowsAsync<HttpRequestException>(() => host.GetAsync("/live"));
        Assert.Equal(0, host.Observations);
    }

    // ---- Seeing inside ----

    [Fact]
    public async Task LiveAnswersBeforeTheLogIsReadAndReadyAfterIt()
    {
        await using var host = Host.Starting();
        Assert.Equal(200, (await host.GetAsync("/live")).Code);
        var starting = await host.GetAsync("/ready");
        Assert.Equal((503, false), (starting.Code, starting.Json.GetProperty("ready").GetBoolean()));
        Assert.Contains("starting", starting.Json.GetProperty("reason").GetString(), Ordinal);
        host.Serve();
        var ready = await host.GetAsync("/ready");
        Assert.Equal((200, true), (ready.Code, ready.Json.GetProperty("ready").GetBoolean()));
        Assert.Equal("none", ready.Json.GetProperty("onix").GetProperty("state").GetString());
    }

    [Fact]
    public async Task ProbesAndMetricsNeedNoCredentials()
    {
        await using var host = Host.Serving("--auth-mode", "basic", "--password", "secret");
        foreach (var path in new[] { "/live", "/ready", "/metrics" })
            Assert.Equal(200, (await host.GetAsync(path)).Code);
    }

    [Fact]
    public async Task HeadIsAnsweredAsGetWithoutABody()
    {
        await using var host = Host.Serving();
        var answer = await host.SendAsync(HttpMethod.Head, "/live");
        Assert.Equal((200, ""), (answer.Code, answer.Body));
    }

    [Fact]
    public async Task MetricsCountWhatBecameOfTheAlerts()
    {
        await using var host = Host.Serving();
        await host.PostAsync(Body(Alert));
        await host.PostAsync(Body(Alert, "5"));
        await host.PostAsync("hello");
        await host.PostAsync("""{"version":"4","alerts":[],"truncatedAlerts":3}""");
        var answer = await host.GetAsync("/metrics");
        Assert.Equal((200, "text/plain"), (answer.Code, answer.Type?.MediaType));
        foreach (var line in new[]
        {
            "ses_alerts_total{outcome=\"new\"} 1", "ses_alerts_total{outcome=\"known\"} 1",
            "ses_alerts_total{outcome=\"quarantined\"} 1", "ses_bad_requests_total{reason=\"payload\"} 1",
            "ses_quarantined_alerts 1", "ses_label_sets 1",
            "ses_alerts_truncated_total 3",
            "ses_webhook_requests_total{code=\"204\"} 2", "ses_webhook_requests_total{code=\"200\"} 1",
            "ses_webhook_requests_total{code=\"400\"} 1", "ses_services 1", "ses_ready 1",
            "ses_defects_total 0",
        })
            Assert.Contains(line, answer.Body.Split('\n'));
    }

    [Fact]
    public async Task HealthIsToldInTextAndJson()
    {
        await using var host = Host.Serving("--auth-mode", "basic", "--password", "secret");
        Assert.Equal(401, (await host.GetAsync("/health")).Code);
        var authorization = "Basic " + Convert.ToBase64String("admin:secret"u8);
        await host.PostAsync(Body(Alert, "5"), authorization: authorization);
        var text = await host.SendAsync(HttpMethod.Get, "/health", null, authorization);
        Assert.Equal((200, "text/plain"), (text.Code, text.Type?.MediaType));
        foreach (var line in new[] { "ready: true", "store.services: 1", "store.label_sets: 1", "quarantined_alerts: 1",
            "onix.state: none", "store.max_services: 100000" })
            Assert.Contains(line, text.Body.Split('\n'));
        var json = (await host.SendAsync(HttpMethod.Get, "/health?format=json", null, authorization)).Json;
        Assert.True(json.GetProperty("ready").GetBoolean());
        Assert.InRange(json.GetProperty("store").GetProperty("bytes").GetInt64(), 10_000, 10_000_000);
        Assert.Equal(0, json.GetProperty("onix").GetProperty("barred").GetArrayLength());
        (await host.SendAsync(HttpMethod.Get, "/health?x=1", null, authorization)).Problem(400);
        (await host.SendAsync(HttpMethod.Get, "/health?format=xml", null, authorization)).Problem(400);
        (await host.SendAsync(HttpMethod.Post, "/health", "{}", authorization)).Problem(405);
        Assert.Equal(0, json.GetProperty("warnings").GetArrayLength());
        await using var warned = Host.Serving("--metrics-auth", "true");
        Assert.Contains("warnings.1: --metrics-auth (OXSES_METRICS_AUTH) has no effect",
            (await warned.GetAsync("/health")).Body, StringComparison.Ordinal);
    }

    /// <summary>A disk that hangs holds the writer, and a supervisor may try what a restart does.</summary>
    [Fact]
    public async Task LiveSeesThatTheDiskHangs()
    {
        await using var host = Host.Serving();
        using var disk = new ManualResetEventSlim();
        var writing = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        var change = host.Store.ChangeAsync(_ =>
        {
            writing.SetResult();
            return disk.Wait(TimeSpan.FromMinutes(1));
        });
        await writing.Task;
        host.Clock.Advance(TimeSpan.FromSeconds(60));
        Assert.Equal(200, (await host.GetAsync("/live")).Code);
        host.Clock.Advance(TimeSpan.FromSeconds(1));
        var stuck = await host.GetAsync("/live");
        disk.Set();
        Assert.Equal((503, "{\"live\":false}\n"), (stuck.Code, stuck.Body));
        Assert.True(await change);
        await Wait.UntilAsync(async () => (await host.GetAsync("/live")).Code == 200, TimeSpan.FromSeconds(20), "/live");
    }

    [Fact]
    public async Task WhatIsOneTooManyIsAnswered200WithTheReason()
    {
        await using var host = Host.Serving("--max-services", "1");
        Assert.Equal(204, (await host.PostAsync(Body(Alert))).Code);
        var other = Alert.Replace("etcd", "other", StringComparison.Ordinal);
        foreach (var path in new[] { "/alerts/INS", "/alerts/OTHER" })
        {
            var answer = await host.PostAsync(Body(Alert, other), path);
            Assert.Equal(200, answer.Code);
            Assert.Contains("as many as --max-services allows",
                answer.Json.GetProperty("quarantined")[0].GetProperty("reason").GetString(), StringComparison.Ordinal);
        }
        // The one that there is goes on.
        Assert.Equal(204, (await host.PostAsync(Body(Alert))).Code);
        Assert.Contains("ses_services 1", (await host.GetAsync("/metrics")).Body.Split('\n'));
    }

    /// <summary>Of thousands that cannot be mapped the first are kept whole, the rest as a number.</summary>
    [Fact]
    public async Task ManyMisfitsAreBoundedAndCounted()
    {
        await using var host = Host.Serving();
        var alerts = string.Join(',', Enumerable.Range(0, 5000).Select(i => $$"""{"startsAt":"{{i}}"}"""));
        var answer = await host.PostAsync($$"""{"alerts":[{{alerts}}]}""");
        Assert.Equal(200, answer.Code);
        Assert.Equal(4900, answer.Json.GetProperty("more").GetInt32());
        using var snapshot = host.Store.Snapshot();
        var kept = QuarantinedAlert.Read(snapshot).ToList();
        Assert.Equal(UnmappableAlerts.MaxKept + 1, kept.Count);
        Assert.Contains(kept, a => a.Reason.StartsWith("4000 more alerts of the same payload", StringComparison.Ordinal));
        Assert.Contains("ses_alerts_total{outcome=\"quarantined\"} 5000", (await host.GetAsync("/metrics")).Body.Split('\n'));
    }

    [Fact]
    public async Task MetricsSwitchedOffAreNotFound()
    {
        await using var host = Host.Serving("--metrics", "false");
        (await host.GetAsync("/metrics")).Problem(404);
        Assert.Equal(200, (await host.GetAsync("/live")).Code);
    }

    [Theory]
    [InlineData("")]
    [InlineData("0.0.0.0")]
    [InlineData("127.0.0.1")]
    public async Task AddressIsListenedOn(string address)
    {
        await using var host = Host.At(address);
        Assert.Equal(204, (await host.PostAsync(Body(Alert))).Code);
        var answer = await host.SendRawAsync("GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n");
        Assert.StartsWith("HTTP/1.1 200 ", answer, Ordinal);
    }

    [Theory]
    [InlineData("::1", "::1")]
    [InlineData("::", "::1")]
    [InlineData("::", "127.0.0.1")]
    [InlineData("", "::1")]
    public async Task BothFamiliesOfAddressesAreListenedOn(string address, string from)
    {
        await using var host = Host.At(address);
        var client = IPAddress.Parse(from);
        using var socket = new Socket(client.AddressFamily, SocketType.Stream, ProtocolType.Tcp);
        await socket.ConnectAsync(client, host.Port);
        await socket.SendAsync(Encoding.ASCII.GetBytes("GET /live HTTP/1.1\r\nHost: [::1]\r\n\r\n"));
        var answer = new byte[64];
        var count = await socket.ReceiveAsync(answer).WaitAsync(TimeSpan.FromSeconds(30));
        Assert.StartsWith("HTTP/1.1 200 ", Encoding.ASCII.GetString(answer, 0, count), Ordinal);
    }

    [Fact]
    public async Task ManyAtOnceAreAllOnDisk()
    {
        await using var host = Host.Serving();
        var answers = await Task.WhenAll(Enumerable.Range(0, 100).Select(i => host.PostAsync(
            Body(Alert.Replace("\"n1\"", $"\"n{i}\"", Ordinal)))));
        Assert.All(answers, a => Assert.Equal(204, a.Code));
        Assert.Equal(100, host.Observations);
    }
}
