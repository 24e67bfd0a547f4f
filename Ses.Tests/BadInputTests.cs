using System.Net;
using System.Text;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>Bad input on the native binary: a clear reason for each, and the good alerts beside it are kept.</summary>
[Trait("Category", "E2E")]
public sealed class BadInputTests(BadInputTests.Running running) : IClassFixture<BadInputTests.Running>
{
    /// <summary>One SeS for all cases: whatever one sends, the next is served.</summary>
    public sealed class Running : IAsyncLifetime
    {
        internal SesProcess Ses { get; private set; } = null!;

        public async Task InitializeAsync() => Ses = await SesProcess.StartAsync("none");

        public async Task DisposeAsync() => await Ses.DisposeAsync();
    }

    private const string Time = "\"startsAt\":\"2026-11-01T10:00:00Z\"";
    private const string Labels = "\"alertname\":\"A\",\"job\":\"j\",\"instance\":\"i\"";

    private static string Alert(string fields) => "{\"status\":\"firing\"," + fields + "}";

    public static readonly TheoryData<string, string, string> BadAlerts = new()
    {
        { "null", "null", "not an object" },
        { "a number", "7", "not an object" },
        { "labels null", Alert($"\"labels\":null,{Time}"), "no alertname" },
        { "labels a list", Alert($"\"labels\":[],{Time}"), "labels is of the wrong type" },
        { "a label a list", Alert($"\"labels\":{{\"job\":[1]}},{Time}"), "labels.job is of the wrong type" },
        { "no labels", Alert(Time), "no alertname" },
        { "startsAt a list", Alert($"\"labels\":{{{Labels}}},\"startsAt\":[]"), "startsAt is of the wrong type" },
        { "no startsAt", Alert($"\"labels\":{{{Labels}}}"), "no startsAt" },
        { "no zone", Alert($"\"labels\":{{{Labels}}},\"startsAt\":\"2026-11-01T10:00:00\""), "zone" },
        { "year 1", Alert($"\"labels\":{{{Labels}}},\"startsAt\":\"0001-01-01T00:00:00Z\""), "before the year 2000" },
        { "year 9999", Alert($"\"labels\":{{{Labels}}},\"startsAt\":\"9999-12-31T23:59:59Z\""), "24 h ahead" },
        { "lone surrogate", Alert($"\"labels\":{{{Labels},\"x\":\"\\ud800\"}},{Time}"), "labels.x is" },
        { "long service", Alert($"\"labels\":{{{Labels},\"service\":\"{new string('x', 193)}\"}},{Time}"), "more than 192" },
        { "resolved without end", $"{{\"status\":\"resolved\",\"labels\":{{{Labels}}},{Time}}}", "no endsAt" },
    };

    [Theory]
    [MemberData(nameof(BadAlerts))]
    public async Task ABadAlertIsQuarantinedAndTheGoodOneBesideItKept(string name, string bad, string expected)
    {
        var good = Alert($"\"labels\":{{\"alertname\":\"Good\",\"job\":\"{name}\",\"instance\":\"i\"}},{Time}");
        var (code, body) = await PostAsync($"{{\"version\":\"4\",\"alerts\":[{bad},{good}]}}");
        Assert.Equal(HttpStatusCode.OK, code);
        using var answer = JsonDocument.Parse(body);
        Assert.Equal(1, answer.RootElement.GetProperty("accepted").GetInt32());
        var reason = answer.RootElement.GetProperty("quarantined")[0].GetProperty("reason").GetString();
        Assert.Contains(expected, reason, StringComparison.Ordinal);
        Assert.Contains(StoreFiles.Starts(running.Ses.DataDir), e => e.Service.Service == name);
        Assert.Contains(Quarantined(), a => a.Reason == reason && Encoding.UTF8.GetString(a.Alert) == bad);
    }

    [Theory]
    [InlineData("", "empty")]
    [InlineData("hello", "not JSON")]
    [InlineData("[]", "not a JSON object")]
    [InlineData("{\"version\":\"4\",\"alerts\":[]", "not JSON")]
    [InlineData("{\"version\":\"4\",\"alerts\":[]} x", "not JSON")]
    [InlineData("{\"version\":\"4\"}", "no list of alerts")]
    [InlineData("{\"version\":\"4\",\"alerts\":null}", "no list of alerts")]
    [InlineData("{\"version\":\"4\",\"alerts\":{}}", "no list of alerts")]
    public async Task AnUnusableBodyIsRefusedWithAClearReason(string body, string expected)
    {
        var (code, answer) = await PostAsync(body);
        Assert.Equal(HttpStatusCode.BadRequest, code);
        Assert.Contains(expected, answer, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("a NUL becomes U+FFFD", "\"job\":\"nul\\u0000l\",\"instance\":\"i\"", "nul\ufffdl", "i")]
    [InlineData("two disks are two services", "\"job\":\"d\",\"instance\":\"i\",\"device\":\"sda\"", "d", "i{device=\"sda\"}")]
    [InlineData("its own status label", "\"job\":\"s\",\"instance\":\"i\",\"status\":\"bad\"", "s", "i{status=\"bad\"}")]
    [InlineData("without regard to case", "\"JOB\":\"c\",\"Instance\":\"i\"", "c", "i")]
    [InlineData("quotes", "\"job\":\"q\",\"instance\":\"i\",\"x\":\"a\\\"b\\nc\"", "q", "i{x=\"a\\\"b\\nc\"}")]
    public async Task OddButUsableAlertsAreTaken(string name, string labels, string service, string location)
    {
        var alert = Alert($"\"labels\":{{\"alertname\":\"{name}\",{labels}}},\"news\":{{\"a\":[1]}},{Time}");
        var (code, _) = await PostAsync($"{{\"version\":\"4\",\"news\":1,\"alerts\":[{alert}]}}");
        Assert.Equal(HttpStatusCode.NoContent, code);
        var told = StoreFiles.Starts(running.Ses.DataDir).Single(e => e.Service.Facet == name);
        Assert.Equal((service, location), (told.Service.Service, told.Service.Location));
    }

    [Fact]
    public async Task AnAlertThatIsNoUnicodeIsQuarantinedAsItCame()
    {
        byte[] body = [.. Encoding.UTF8.GetBytes(
            $"{{\"version\":\"4\",\"alerts\":[{{\"status\":\"firing\",{Time},\"labels\":{{\"job\":\"x"), 0xff, .. "\"}}]}"u8];
        using var content = new ByteArrayContent(body);
        using var answer = await running.Ses.Client.PostAsync(running.Ses.Webhook("INS"), content);
        Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
        Assert.Contains(Quarantined(), a => a.Alert.Contains((byte)0xff));
    }

    private List<QuarantinedAlert> Quarantined()
    {
        using var snapshot = Snapshot.Open(running.Ses.DataDir, DateTime.UtcNow);
        return [.. QuarantinedAlert.Read(snapshot)];
    }

    private async Task<(HttpStatusCode Code, string Body)> PostAsync(string body)
    {
        using var answer = await running.Ses.PostAsync("INS", body);
        return (answer.StatusCode, await answer.Content.ReadAsStringAsync());
    }
}
