using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using CsCheck;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>What bodies say, as the store takes it; an alert that says nothing of use spoils no other.</summary>
public sealed class IncomingAlertsTests
{
    private const string Start = "2026-11-22T11:34:34.489Z", End = "2026-11-22T11:44:34.489Z",
        Never = "0001-01-01T00:00:00Z";

    private const string Dialect = "platform=p1;service=etcd;facet=node;status=down;alertname=Etcd_Node_Down";

    private const string Stock = "alertname=InstanceDown;job=etcd;instance=n1:2379";

    private static readonly DateTime Now = new(2026, 11, 26, 12, 0, 0, DateTimeKind.Utc);

    // ---- Bodies ----

    /// <summary>An alert with labels and annotations as <c>a=b;c=d</c>.</summary>
    private static string Alert(string labels, string annotations = "", string status = "firing",
        string startsAt = Start, string endsAt = Never, string url = "http://prom-0:9090/graph?g0.expr=up") =>
        $$"""
        {"status":"{{status}}","labels":{{Texts(labels)}},"annotations":{{Texts(annotations)}},
        "startsAt":"{{startsAt}}","endsAt":"{{endsAt}}","generatorURL":"{{url}}","fingerprint":"f1"}
        """;

    private static string Texts(string pairs) => JsonSerializer.Serialize(
        pairs.Split(';', StringSplitOptions.RemoveEmptyEntries).Select(p => p.Split('=', 2))
            .ToDictionary(p => p[0], p => p[1]));

    private static string Webhook(params string[] alerts) =>
        $$"""{"receiver":"ses","version":"4","alerts":[{{string.Join(',', alerts)}}],"truncatedAlerts":0}""";

    private static string Post(params string[] alerts) => $"[{string.Join(',', alerts)}]";

    private static ReceivedAlerts Read(
        string body, AlertSource source = AlertSource.Webhook, MappingRules? rules = null) =>
        AlertReader.Read(Encoding.UTF8.GetBytes(body), "INS", source, rules ?? MappingRules.Default, Now);

    private static IncomingAlert ReadOne(string alert, MappingRules? rules = null) =>
        One(Read(Webhook(alert), AlertSource.Webhook, rules));

    private static AlertSource SourceOf(bool isPost) => isPost ? AlertSource.Prometheus : AlertSource.Webhook;

    private static IncomingAlert ReadPosted(string alert) => One(Read(Post(alert), AlertSource.Prometheus));

    private static IncomingAlert One(ReceivedAlerts received)
    {
        Assert.Equal([], received.UnmappableAlerts.Select(u => u.Reason));
        return Assert.Single(received.Alerts);
    }

    private static string ReasonOf(string alert, MappingRules? rules = null)
    {
        var received = Read(Webhook(alert), AlertSource.Webhook, rules);
        Assert.Empty(received.Alerts);
        return Assert.Single(received.UnmappableAlerts).Reason;
    }

    private static DateTime Utc(string text) => DateTime.Parse(text, CultureInfo.InvariantCulture,
        DateTimeStyles.AdjustToUniversal | DateTimeStyles.AssumeUniversal);

    private static byte[] Data(params string[] path) =>
        File.ReadAllBytes(Path.Combine([AppContext.BaseDirectory, "Data", .. path]));

    private static MappingRules Map(string fields) =>
        MappingRules.Default with { Fields = FieldMap.Parse(fields) };

    private static string LocationOf(string labels) => ReadOne(Alert(labels)).Service.Location;

    // ---- The dialect ----

    [Fact]
    public void DialectAlertSaysItsStatus() => Assert.Equal(
        new IncomingAlert(new ServiceKey("INS", "p1", "etcd", "node", "n1:2379"), true, AlertSource.Webhook, "",
            """{"alertname":"A","description":"d","facet":"node","instance":"n1","platform":"p1","service":"etcd","status":"Down"}""",
            "down", Utc(Start), null, "d"),
        ReadOne(Alert("platform=p1;service=etcd;facet=node;status=Down;alertname=A;description=d;instance=n1",
            "location=n1:2379;summary=s")));

    [Fact]
    public void ResolvedDialectAlertHasAnEnd() =>
        Assert.Equal(Utc(End), ReadOne(Alert(Dialect, status: "resolved", endsAt: End)).Ends);

    [Fact]
    public void DialectAlertWithoutAnAlertStatusFires()
    {
        var alert = $$"""{"labels":{{Texts(Dialect)}},"startsAt":"{{Start}}"}""";
        Assert.Equal(ReadOne(Alert(Dialect)), ReadOne(alert));
    }

    [Theory]
    [InlineData("status=up;facet=f;service=s", true)]
    [InlineData("Status=up;FACET=f;service=s", true)]
    [InlineData("status=;facet=f;service=s;alertname=A", false)]
    [InlineData("status=up;facet=;service=s;alertname=A", false)]
    [InlineData("status=true;platform=p;service=s;alertname=A", false)]
    [InlineData("status=500;platform=p;service=s;alertname=A", false)]
    [InlineData("status=up;service=s;alertname=A", false)]
    [InlineData("facet=f;platform=p;service=s;alertname=A", false)]
    public void AlertWithStatusAndFacetIsOfTheDialect(string labels, bool dialect) =>
        Assert.Equal(dialect, ReadOne(Alert(labels, "facet=x;status=up")).Dialect);

    [Theory]
    [InlineData("status=up;platform=p;service=s;alertname=A")]
    [InlineData("status=DOWN;platform=p;service=s;alertname=A;severity=info")]
    public void StatusAndPlatformWithoutFacetIsAMistake(string labels) =>
        Assert.Contains("no facet", ReasonOf(Alert(labels)), Ordinal);

    [Fact]
    public void DialectAlertWithoutServiceIsQuarantined() =>
        Assert.Equal("it has no service", ReasonOf(Alert("status=up;facet=f;platform=p;job=j;alertname=A")));

    [Theory]
    [InlineData("", "INS")]
    [InlineData(";cluster=c", "c")]
    [InlineData(";platform=p;cluster=c", "p")]
    [InlineData(";platform=;cluster=c", "c")]
    public void PlatformFallsBackToThePartitionInBothKinds(string labels, string platform)
    {
        Assert.Equal(platform, ReadOne(Alert("status=bad;facet=f;service=s" + labels)).Service.Platform);
        Assert.Equal(platform, ReadOne(Alert(Stock + labels)).Service.Platform);
    }

    [Fact]
    public void DialectLocationIsTheAnnotationBeforeTheLabelAndMayBeMissing()
    {
        Assert.Equal("a", ReadOne(Alert(Dialect + ";location=l", "location=a")).Service.Location);
        Assert.Equal("l", ReadOne(Alert(Dialect + ";location=l", "location=")).Service.Location);
        Assert.Equal("", ReadOne(Alert(Dialect + ";instance=n1")).Service.Location);
    }

    // ---- Stock alerts ----

    [Fact]
    public void StockAlertIsDownWhileItFires()
    {
        var alert = ReadOne(Alert(Stock, "description=d"));
        Assert.Equal(new IncomingAlert(new ServiceKey("INS", "INS", "etcd", "InstanceDown", "n1:2379"), false,
            AlertSource.Webhook, "", """{"alertname":"InstanceDown","instance":"n1:2379","job":"etcd"}""", "down",
            Utc(Start), null, "d"), alert);
        Assert.Equal(alert with { Ends = Utc(End) },
            ReadOne(Alert(Stock, "description=d", status: "resolved", endsAt: End)));
    }

    [Theory]
    [InlineData("service=s;job=j", "", "s")]
    [InlineData("job=j;app=a", "", "j")]
    [InlineData("app=a;app_kubernetes_io_name=n", "", "a")]
    [InlineData("app_kubernetes_io_name=n", "", "n")]
    [InlineData("", "", "A")]
    [InlineData("", "job=x", "x")]
    [InlineData("app=a", "service=x", "a")]
    public void StockAlertNeedsOnlyAName(string labels, string annotations, string service)
    {
        var alert = ReadOne(Alert("alertname=A;" + labels, annotations)).Service;
        Assert.Equal((service, "A"), (alert.Service, alert.Facet));
    }

    [Fact]
    public void AlertWithoutANameIsQuarantined()
    {
        Assert.Equal("it has no alertname", ReasonOf(Alert("job=j;facet=f;severity=info")));
        Assert.Equal("it has no alertname", ReasonOf(Alert("alertname=;job=j", "alertname=A")));
    }

    [Theory]
    [InlineData("", "summary=s;description=d;message=m", "s")]
    [InlineData("", "description=d;message=m", "d")]
    [InlineData("", "message=m", "m")]
    [InlineData("", "runbook=r", "InstanceDown")]
    [InlineData(";message=m", "summary=s", "m")]
    public void TextIsTheSummaryFirst(string labels, string annotations, string text) =>
        Assert.Equal(text, ReadOne(Alert(Stock + labels, annotations)).Description);

    [Fact]
    public void LabelsThatNoFieldUsedFollowTheLocation()
    {
        Assert.Equal("n1:2379{device=\"sda\",mode=\"rw\"}", LocationOf(Stock + ";mode=rw;device=sda"));
        Assert.Equal("{device=\"sda\"}", LocationOf("alertname=A;job=j;device=sda"));
        Assert.Equal("n1:2379{job=\"etcd\"}", LocationOf(Stock + ";service=s"));
        Assert.Equal("n1:2379{status=\"500\"}", LocationOf(Stock + ";status=500"));
        Assert.Equal("n1:2379{Job=\"x\"}", LocationOf(Stock + ";Job=x"));
    }

    [Theory]
    [InlineData("severity=page")]
    [InlineData("Severity=page")]
    [InlineData("prometheus=monitoring/k8s;prometheus_replica=r-0;replica=a")]
    [InlineData("empty=")]
    public void LabelsThatAreNoPlaceAreLeftOut(string labels) =>
        Assert.Equal("n1:2379", LocationOf($"{Stock};{labels}"));

    [Fact]
    public void NameIsLeftOutAlsoWhereItIsNotTheFacet() =>
        Assert.Equal("n1:2379", LocationOf(Stock + ";facet=f"));

    [Fact]
    public void LabelsInTheLocationAreEscapedAsPrometheusDoes() => Assert.Equal(
        "n1:2379{a=\"say \\\"x\\\\y\\\"\\nz\"}", LocationOf(Stock + ";a=say \"x\\y\"\nz"));

    [Fact]
    public void LongLocationIsCutAfterAWholeLabelAndEndsWithItsHash()
    {
        var labels = string.Concat(Enumerable.Range(10, 40).Select(i => $";k{i}={new string('ü', 20)}"));
        var whole = "n1:2379{" + string.Join(',', Enumerable.Range(10, 40)
            .Select(i => $"k{i}=\"{new string('ü', 20)}\"")) + "}";
        var hash = Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(whole)))[..8];
        var location = LocationOf(Stock + labels);
        // 7 for the instance, 47 with its comma for each label, 12 for the end: 21 labels have room.
        Assert.Equal(whole[..(8 + 21 * 27 - 1)] + "…#" + hash, location);
        Assert.NotEqual(location, LocationOf(Stock + labels + ";z=1"));
    }

    [Theory]
    [InlineData(1024, false)]
    [InlineData(1025, true)]
    [InlineData(100_000, true)]
    public void LocationIsCutFromOneKibibyteOn(int bytes, bool isCut)
    {
        var text = new string('x', bytes);
        foreach (var location in new[] { LocationOf($"{Dialect};location={text}"),
            LocationOf($"alertname=A;instance={text}"), LocationOf($"alertname=A;l={text[..^6]}") })
        {
            Assert.Equal(isCut, location.Contains("…#", Ordinal));
            Assert.True(Encoding.UTF8.GetByteCount(location) <= 1024);
        }
        Assert.Equal(isCut ? "…#" : "xx", LocationOf($"alertname=A;location={text}")[^10..^8]);
    }

    [Fact]
    public void NamesAreTakenWithoutRegardToCase()
    {
        var alert = ReadOne(Alert("AlertName=A;JOB=etcd;Instance=n1;SEVERITY=warning", "Summary=s"));
        Assert.Equal(new ServiceKey("INS", "INS", "etcd", "A", "n1"), alert.Service);
        Assert.Equal(("degraded", "s"), (alert.Status, alert.Description));
    }

    // ---- Severity and status ----

    [Theory]
    [InlineData(Stock, "down")]
    [InlineData(Stock + ";severity=critical", "down")]
    [InlineData(Stock + ";severity=warning", "degraded")]
    [InlineData(Stock + ";severity=WARNING", "degraded")]
    [InlineData(Stock + ";severity=info", null)]
    [InlineData(Stock + ";severity=None", null)]
    [InlineData(Stock + ";status=info", "down")]
    [InlineData("service=s;facet=f;status=UP", "up")]
    [InlineData("service=s;facet=f;status=Slow", "slow")]
    [InlineData("service=s;facet=f;status=Warning", "degraded")]
    [InlineData("service=s;facet=f;status=info", null)]
    [InlineData("service=s;facet=f;status=down;severity=info", "down")]
    public void SeverityOfAStockAlertAndStatusOfADialectAlertAreMapped(string labels, string? status)
    {
        var received = Read(Webhook(Alert(labels)));
        Assert.Equal(status, received.Alerts.SingleOrDefault()?.Status);
        Assert.Equal(status == null ? 1 : 0, received.Ignored);
        Assert.Empty(received.UnmappableAlerts);
    }

    [Fact]
    public void WarningAndCriticalAlertOfOneThingAreOneService() => Assert.Equal(
        ReadOne(Alert(Stock + ";severity=warning")).Service, ReadOne(Alert(Stock + ";severity=critical")).Service);

    [Fact]
    public void StatusesReplaceTheDefaultWhole()
    {
        var rules = MappingRules.Default with { Statuses = MappingRules.ParseStatuses(" page = Bad , none=ignore") };
        Assert.Equal("bad", ReadOne(Alert(Stock + ";severity=Page"), rules).Status);
        Assert.Equal("down", ReadOne(Alert(Stock + ";severity=info"), rules).Status);
        Assert.Empty(MappingRules.ParseStatuses(""));
    }

    [Theory]
    [InlineData("warning")]
    [InlineData("=degraded")]
    [InlineData("warning=")]
    [InlineData("warning=a=b")]
    [InlineData("a=b,,c=d")]
    [InlineData("a=b,A=c")]
    public void BadStatusesAreRefused(string text) => Assert.Contains("SEVERITY=STATUS",
        Assert.Throws<FormatException>(() => MappingRules.ParseStatuses(text)).Message, Ordinal);

    [Fact]
    public void BadNamesAreRefused()
    {
        var refusal = Assert.Throws<FormatException>(() => MappingRules.ParseNames("a,,b"));
        Assert.Contains("names", refusal.Message, Ordinal);
        Assert.Equal(["a", "b c"], MappingRules.ParseNames(" a , b c "));
        Assert.Empty(MappingRules.ParseNames(" "));
    }

    [Fact]
    public void IgnoredAlertsAndHeartbeatsAreCounted()
    {
        var received = Read(Webhook(Alert("alertname=Watchdog;severity=none"), Alert("alertname=watchdog"),
            Alert("alertname=DeadMansSwitch", status: "resolved"), Alert("alertname=InfoInhibitor", startsAt: "x"),
            Alert("alertname=DatasourceNoData"), Alert("alertname=DatasourceError"), Alert(Stock)));
        Assert.Equal((1, 0, 3, 3), (received.Alerts.Count, received.UnmappableAlerts.Count,
            (int)received.Ignored, (int)received.Heartbeats));
    }

    [Fact]
    public void HeartbeatIsLookedForFirst()
    {
        var names = MappingRules.ParseNames("InstanceDown");
        var rules = MappingRules.Default with { Heartbeats = names, Ignored = names };
        var received = Read(Webhook(Alert(Stock), Alert("alertname=Watchdog")), AlertSource.Webhook, rules);
        Assert.Equal((1, 0, 1), ((int)received.Heartbeats, (int)received.Ignored, received.Alerts.Count));
    }

    // ---- --map ----

    [Theory]
    [InlineData("platform=env,'prod'", "prod")]
    [InlineData("platform=env , job", "etcd")]
    [InlineData("platform='a,b;c=d'", "a,b;c=d")]
    [InlineData("platform='first',job", "first")]
    [InlineData("platform=env,zone,'prod'", "z", "zone=z")]
    [InlineData("platform=zone,job", "etcd", "zone=z")]
    public void MapReplacesTheSourcesOfAField(string map, string platform, string annotations = "") =>
        Assert.Equal(platform, ReadOne(Alert(Stock, annotations), Map(map)).Service.Platform);

    [Fact]
    public void MapReplacesTheSourcesForBothKinds()
    {
        var rules = Map("location=instance;platform=env,'prod'");
        Assert.Equal(new ServiceKey("INS", "prod", "etcd", "node", "n1"),
            ReadOne(Alert(Dialect + ";instance=n1", "location=x"), rules).Service);
        Assert.Equal(new ServiceKey("INS", "dev", "etcd", "InstanceDown", "n1:2379"),
            ReadOne(Alert(Stock + ";env=dev"), rules).Service);
        Assert.Equal("it has no platform", ReasonOf(Alert(Stock), Map("platform=env")));
    }

    [Fact]
    public void MapDoesNotDecideWhatIsOfTheDialect()
    {
        var rules = Map("facet=component");
        Assert.True(ReadOne(Alert("status=up;facet=f;component=c;service=s"), rules).Dialect);
        Assert.False(ReadOne(Alert("status=x;component=c;alertname=A"), rules).Dialect);
    }

    // ---- Times ----

    [Theory]
    [InlineData("2026-11-22T11:34:34Z", "2026-11-22T11:34:34Z")]
    [InlineData("2026-11-22t11:34:34.5z", "2026-11-22T11:34:34.5Z")]
    [InlineData("2026-11-26T11:12:07.92607674+01:00", "2026-11-26T10:12:07.926Z")]
    [InlineData("2026-11-22T11:34:34.999999999-00:30", "2026-11-22T12:04:34.999Z")]
    public void TimesAreCutToWholeMilliseconds(string text, string utc)
    {
        var alert = ReadOne(Alert(Stock, status: "resolved", startsAt: text, endsAt: text));
        Assert.Equal((Utc(utc), Utc(utc)), (alert.Starts, alert.Ends));
        Assert.Equal(DateTimeKind.Utc, alert.Starts.Kind);
    }

    [Theory]
    [InlineData("2000-01-01T00:00:00Z", null)]
    [InlineData("1999-12-31T23:59:59.9999999Z", "startsAt is before the year 2000")]
    [InlineData("2026-11-27T12:00:00Z", null)]
    [InlineData("2026-11-27T12:00:00.0000001Z", "startsAt is more than 24 h ahead of the clock")]
    [InlineData(Never, "startsAt is before the year 2000")]
    [InlineData("", "it has no startsAt")]
    [InlineData("2026-11-22T11:34:34", "startsAt is not an RFC 3339 time with a zone")]
    [InlineData("2016-12-31T23:59:60Z", "startsAt is not an RFC 3339 time with a zone")]
    public void TimeIsBetweenTheYear2000AndADayAhead(string time, string? reason)
    {
        foreach (var labels in new[] { Dialect, Stock })
        {
            Assert.Equal(reason, Reason(Alert(labels, startsAt: time)));
            Assert.Equal(reason?.Replace("startsAt", "endsAt", Ordinal),
                Reason(Alert(labels, status: "resolved", endsAt: time)));
        }

        static string? Reason(string alert) => Read(Webhook(alert)).UnmappableAlerts.SingleOrDefault()?.Reason;
    }

    [Theory]
    [InlineData("MissingSeries", true)]
    [InlineData("Paused", true)]
    [InlineData("Updated", true)]
    [InlineData("MissingSeries, KeepLast", true)]
    [InlineData("NoData", false)]
    public void EndThatGrafanaGivesUpIsUncertain(string reason, bool isUncertain)
    {
        var annotations = "grafana_state_reason=" + reason;
        Assert.Equal(isUncertain, ReadOne(Alert(Stock, annotations, "resolved", endsAt: End)).Uncertain);
        Assert.False(ReadOne(Alert(Stock, annotations)).Uncertain);
        Assert.Equal(isUncertain, ReadPosted(Alert(Stock, annotations)).Uncertain);
    }

    // ---- Prometheus ----

    [Fact]
    public void AlertOfPrometheusSaysUntilWhenItIsValid()
    {
        var alert = ReadPosted(Alert(Stock, "summary=s", status: "nonsense", endsAt: End));
        Assert.Equal(new IncomingAlert(new ServiceKey("INS", "INS", "etcd", "InstanceDown", "n1:2379"), false,
            AlertSource.Prometheus, "http://prom-0:9090",
            """{"alertname":"InstanceDown","instance":"n1:2379","job":"etcd"}""", "down", Utc(Start), null, "s",
            Utc(End), Rule: "InstanceDown"), alert);
    }

    [Theory]
    [InlineData("\"startsAt\":\"0001-01-01T00:00:00.000Z\",\"endsAt\":\"0001-01-01T00:00:00.000Z\",")]
    [InlineData("\"startsAt\":null,\"endsAt\":\"\",")]
    [InlineData("")]
    public void AlertOfPrometheusMayHaveNoTimes(string times)
    {
        var alert = ReadPosted($$"""{{{times}}"labels":{{Texts(Stock)}}}""");
        Assert.Equal((default, null, null, ""), (alert.Starts, alert.Ends, alert.ValidUntil, alert.Sender));
    }

    [Theory]
    [InlineData("x", End, "startsAt is not an RFC 3339 time")]
    [InlineData("0001-01-01", End, "startsAt is not an RFC 3339 time")]
    [InlineData(Start, "x", "endsAt is not an RFC 3339 time")]
    [InlineData("1999-01-01T00:00:00Z", End, "startsAt is before")]
    [InlineData("2026-11-28T00:00:00Z", End, "startsAt is more than 24 h")]
    public void AlertOfPrometheusWithABadTimeIsQuarantined(string startsAt, string endsAt, string reason)
    {
        var received = Read(
            Post(Alert(Stock, startsAt: startsAt, endsAt: endsAt), Alert(Stock)), AlertSource.Prometheus);
        Assert.Contains(reason, Assert.Single(received.UnmappableAlerts).Reason, Ordinal);
        Assert.Single(received.Alerts);
    }

    [Fact]
    public void AlertOfPrometheusIsValidForADayAtMost() => Assert.Equal(
        Now.AddDays(1), ReadPosted(Alert(Stock, endsAt: "9999-12-31T23:59:59Z")).ValidUntil);

    [Theory]
    [InlineData("http://prom-0:9090/graph?g0.expr=up", "http://prom-0:9090")]
    [InlineData("HTTPS://Prom.Example", "https://prom.example")]
    [InlineData("http://user:secret@prom/x", "http://prom")]
    [InlineData("http://[::1]:9090?x=a@b", "http://[::1]:9090")]
    [InlineData("/graph", "")]
    [InlineData("http:///graph", "")]
    [InlineData("", "")]
    public void SenderIsSchemeAndHost(string url, string sender)
    {
        Assert.Equal(sender, ReadPosted(Alert(Stock, url: url)).Sender);
        Assert.Equal("", ReadOne(Alert(Stock, url: url)).Sender);
    }

    [Fact]
    public void AlertnameThatVmalertSendsTwiceIsOne()
    {
        var alert = ReadPosted("""
            {"startsAt":"2026-11-26T13:23:58.292133834+02:00","generatorURL":"http://vm:8880/vmalert/alert?group_id=1",
            "labels":{"alertname":"x","alertgroup":"g","job":"j","alertname":"Cond"},"annotations":{}}
            """);
        Assert.Equal("""{"alertgroup":"g","alertname":"Cond","job":"j"}""", alert.Labels);
        Assert.Equal(("Cond", Utc("2026-11-26T11:23:58.292Z")), (alert.Service.Facet, alert.Starts));
    }

    [Fact]
    public void CopiesOfABadAlertOfPrometheusAreQuarantinedOnce()
    {
        // Each copy that fires is valid until another time, and none has a fingerprint; an end is another.
        var (valid, longer) = ("2027-01-01T00:00:00Z", "2027-01-01T00:01:00Z");
        string[] copies = [.. new[] { ("a", valid), ("a", longer), ("b", valid), ("a", End), ("a", End) }.Select(c =>
            $$"""{"labels":{"job":"{{c.Item1}}"},"startsAt":"{{Start}}","endsAt":"{{c.Item2}}"}""")];
        var received = Read(Post(copies), AlertSource.Prometheus);
        Assert.Equal((3, 2), (received.UnmappableAlerts.Count, (int)received.MoreUnmappable));
    }

    [Theory]
    [InlineData("s08_sev_change.jsonl", 21, "down,degraded")]
    [InlineData("s13_default1m.jsonl", 20, "degraded")]
    public void RecordedPostsOfPrometheusAreMapped(string file, int count, string statuses)
    {
        var alerts = new List<IncomingAlert>();
        foreach (var line in File.ReadLines(Path.Combine(AppContext.BaseDirectory, "Data", "prometheus", file)))
        {
            using var json = JsonDocument.Parse(line);
            if (!json.RootElement.TryGetProperty("post", out var post))
                continue;
            var received = AlertReader.Read(Encoding.UTF8.GetBytes(post.GetRawText()), "INS", AlertSource.Prometheus,
                MappingRules.Default, Now.AddDays(1));
            Assert.Empty(received.UnmappableAlerts);
            alerts.AddRange(received.Alerts);
        }
        Assert.Equal(count, alerts.Count);
        Assert.Equal(statuses.Split(',').Order(), alerts.Select(a => a.Status).Distinct().Order());
        Assert.All(alerts, a => Assert.StartsWith("http://prometheus:19", a.Sender, Ordinal));
        Assert.All(alerts, a => Assert.NotNull(a.ValidUntil));
        Assert.All(alerts, a => Assert.Contains("\"severity\":", a.Labels, Ordinal));
        Assert.Equal(["shop-1:8080{case=\"A\",job=\"tgt\"}"], alerts.Where(a => a.Labels.Contains("\"A\"", Ordinal))
            .Select(a => a.Service.Location).Distinct());
    }

    // ---- Labels ----

    [Fact]
    public void LabelsAreWrittenInOneForm()
    {
        Assert.Equal(ReadOne(Alert("alertname=A;b=1;a=2")), ReadOne(Alert("a=2;alertname=A;b=1;c=")));
        var labels = """{"alertname":"A","z":"\t\n\u001f\u007f\"\\/","A\u00fc":"\ud83d\ude00<&>","é":"\u0000"}""";
        Assert.Equal("{\"Aü\":\"😀<&>\",\"alertname\":\"A\",\"z\":\"\\u0009\\u000a\\u001f\u007f\\\"\\\\/\",\"é\":\"\ufffd\"}",
            ReadOne(With("labels", labels)).Labels);
    }

    [Fact]
    public void NumbersAndTruthsAmongLabelsAreText()
    {
        var alert = ReadOne(With("labels", """{"alertname":"A","n":-1.50e3,"t":true,"f":false,"z":null}"""));
        Assert.Equal("""{"alertname":"A","f":"false","n":"-1.50e3","t":"true"}""", alert.Labels);
        Assert.Equal("5", ReadOne(With("annotations", """{"summary":5}""")).Description);
    }

    [Fact]
    public void NulInAnyValueBecomesTheReplacementCharacter()
    {
        const string Nul = "a\0b", Clean = "a\ufffdb";
        var alert = ReadOne(Alert($"platform={Nul};service={Nul};facet={Nul};status={Nul};{Nul}={Nul}",
            $"location={Nul};description={Nul}"));
        Assert.Equal(new ServiceKey("INS", Clean, Clean, Clean, Clean), alert.Service);
        Assert.Equal((Clean, Clean), (alert.Status, alert.Description));
        Assert.DoesNotContain("\\u0000", alert.Labels, Ordinal);
    }

    // ---- Recorded cases ----

    private static ReceivedAlerts ReadCase(string file) => AlertReader.Read(
        Data("cases", file), "INS", AlertSource.Webhook, MappingRules.Default, Now);

    private static string Describe(IncomingAlert a)
    {
        var to = a.Ends is { } ends ? $"to {ends:HH:mm:ss.FFF} " : "";
        return $"{a.Service}: {a.Status} {a.Starts:HH:mm:ss.FFF} {to}{a.Description}";
    }

    [Theory]
    [InlineData("grafana-firing.json",
        "INS/INS/checkout/Checkout latency/shop-1:9100{grafana_folder=\"Shop\"}: "
        + "down 10:12:07.926 Checkout is slow on shop-1")]
    [InlineData("refire-1-firing.json", "INS/INS/node/InstanceDown/h1:9100: down 10:35:42 InstanceDown")]
    [InlineData("refire-2-resolved.json",
        "INS/INS/node/InstanceDown/h1:9100: down 10:35:42 to 10:55:32 InstanceDown")]
    [InlineData("stock-updown.json",
        "INS/INS/node/InstanceDown/h1:9100: down 08:00:00 to 08:10:00 h1:9100 of job node does not answer")]
    [InlineData("sla-first-outage.json",
        "INS/INS/shop/InstanceDown/h1:9100: down 10:00:00 to 10:10:00 h1 does not answer",
        "INS/INS/shop/InstanceDown/h2:9100: down 10:55:00 h2 does not answer")]
    [InlineData("kube-node-not-ready.json",
        "INS/p01-dev/kube-state-metrics/KubeNodeNotReady/10.42.3.28:8080{"
        + "condition=\"Ready\",container=\"kube-state-metrics\","
        + "endpoint=\"http\",job=\"kube-state-metrics\",namespace=\"monitoring\",node=\"worker-1\",status=\"true\"}"
        + ": degraded 09:00:00 Node is not ready.",
        "INS/ios/api/HighErrorRate/{status=\"500\"}: down 09:00:00 api answers 5 % of ios with 500")]
    public void CaseIsMapped(string file, params string[] alerts)
    {
        var received = ReadCase(file);
        Assert.Equal(alerts, received.Alerts.Select(Describe));
        Assert.Equal((0, 0L, 0L), (received.UnmappableAlerts.Count, received.Ignored, received.Heartbeats));
    }

    [Fact]
    public void AlertsOfKubernetesAreServicesHeartbeatsOrIgnored()
    {
        var received = ReadCase("kps.json");
        Assert.Equal((2L, 1L), (received.Ignored, received.Heartbeats));
        Assert.Equal(["KubePodCrashLooping", "KubePodCrashLooping", "TargetDown", "NodeFilesystemAlmostOutOfSpace"],
            received.Alerts.Select(a => a.Service.Facet));
        Assert.All(received.Alerts, a => Assert.Equal("degraded", a.Status));
        Assert.Equal(4, received.Alerts.Select(a => a.Service).Distinct().Count());
    }

    [Fact]
    public void NodeOfAKubernetesWithLongLabelsIsAService()
    {
        var alert = One(ReadCase("aks-node.json"));
        Assert.Matches("^aks-workers-31415926-vmss00000a\\{agentpool=\"workers\",.*\"…#[0-9a-f]{8}$",
            alert.Service.Location);
        Assert.InRange(Encoding.UTF8.GetByteCount(alert.Service.Location), 900, 1024);
        Assert.Contains("topology_kubernetes_io_zone", alert.Labels, Ordinal);
    }

    // ---- A real outage, through the store ----

    private static readonly DateTime Epoch = new(2026, 11, 22, 11, 34, 0, DateTimeKind.Utc);

    /// <summary>The table of Data/etcd-outage/README.md, but that severity is no place.</summary>
    private static readonly string[] Outage =
    [
        "INS/INS/etcd/InstanceDown/127.0.0.1:17389: down 75.338, up 93.338",
        "INS/INS/etcd/InstanceDown/127.0.0.1:17399: down 55.338, up 93.338",
        "INS/p01-dev/etcd/node/127.0.0.1:17379: up 34.489",
        "INS/p01-dev/etcd/node/127.0.0.1:17389: up 35.489, down 75.489, up 96.489",
        "INS/p01-dev/etcd/node/127.0.0.1:17399: up 35.489, down 55.489, up 96.489",
        "INS/p01-dev/etcd/quorum/: up 34.489, down 75.489, up 96.489",
    ];

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(-1)]
    public async Task RecordedOutageIsTheHistoryOfTheStore(int order)
    {
        var bodies = Enumerable.Range(1, 17).Select(i => Data("etcd-outage", $"{i:00}.json")).ToList();
        if (order < 0)
            bodies.Reverse();
        Assert.Equal(Outage, await HistoryAfterAsync(bodies.SelectMany(b => Enumerable.Repeat(b, Math.Abs(order)))));
    }

    [Fact]
    public async Task ServiceWhoseSeriesGrafanaLostIsUnknown()
    {
        string[] alerts = [Alert(Stock),
            Alert(Stock, "grafana_state_reason=MissingSeries", "resolved", endsAt: "2026-11-22T11:36:00Z")];
        Assert.Equal(["INS/INS/etcd/InstanceDown/n1:2379: down 34.489, unknown 120.000"],
            await HistoryAfterAsync(alerts.Select(a => Encoding.UTF8.GetBytes(Webhook(a)))));
    }

    /// <summary>Puts bodies through a new store, all received at 11:39.</summary>
    private static async Task<List<string>> HistoryAfterAsync(IEnumerable<byte[]> bodies)
    {
        var directory = Directory.CreateTempSubdirectory("ses-incoming").FullName;
        try
        {
            var clock = new ManualClock(Epoch.AddMinutes(5));
            var rules = new StoreRules("n", new TimelineRules(TimeSpan.FromMinutes(15)), TimeSpan.FromHours(25), 100, 100);
            using var store = new Store(
                directory, rules, clock, new Log(LogLevel.Trace, false, new StringWriter(), clock), new Meters("test", "test"));
            foreach (var body in bodies)
            {
                var received = AlertReader.Read(body, "INS", AlertSource.Webhook, MappingRules.Default, clock.UtcNow);
                Assert.Empty(received.UnmappableAlerts);
                await store.AppendAsync("INS", received);
            }
            return await HistoryAsync(store);
        }
        finally
        {
            Directory.Delete(directory, recursive: true);
        }
    }

    private static async Task<List<string>> HistoryAsync(Store store)
    {
        using var snapshot = await store.ReadAsync();
        using var rows = snapshot.Query("""
            SELECT partition || '/' || platform || '/' || service || '/' || facet || '/' || location, status, time
            FROM history ORDER BY 1, 3
            """);
        var history = new SortedDictionary<string, string>(StringComparer.Ordinal);
        while (rows.Step())
        {
            var (service, change) = (rows.Text(0), string.Create(CultureInfo.InvariantCulture,
                $"{rows.Text(1)} {(Utc(rows.Text(2)) - Epoch).TotalSeconds:0.000}"));
            history[service] = history.TryGetValue(service, out var before) ? $"{before}, {change}" : change;
        }
        return [.. history.Select(h => $"{h.Key}: {h.Value}")];
    }

    // ---- Bad input ----

    /// <summary>Whether it is Prometheus's, the body, and what the reason must say.</summary>
    public static TheoryData<bool, string, string> UnusableBodies => new()
    {
        { false, "", "empty" },
        { false, "   ", "not JSON" },
        { false, "hello", "not JSON" },
        { false, "null", "not a JSON object" },
        { false, "[]", "not a JSON object" },
        { false, "{\"version\":\"4\",\"alerts\":[", "not JSON" },
        { false, "{\"version\":\"4\",\"alerts\":[]} {}", "not JSON" },
        { false, "{\"version\":\"4\",\"alerts\":[{]}", "not JSON" },
        { false, "{\"alerts\":[{\"labels\":{\"a\":\"x\0y\"}}]}", "not JSON" },
        { false, "{\"version\":\"4\"}", "no list of alerts" },
        { false, "{\"alerts\":null}", "no list of alerts" },
        { false, "{\"alerts\":{}}", "no list of alerts" },
        { false, "{\"alerts\":" + new string('[', 20_000), "not JSON" },
        { true, "", "empty" },
        { true, "{\"alerts\":[]}", "not a JSON array" },
        { true, "5", "not a JSON array" },
        { true, "[{}", "not JSON" },
        { true, "[] []", "not JSON" },
    };

    [Theory]
    [MemberData(nameof(UnusableBodies))]
    public void UnusableBodyIsRefusedWithAClearReason(bool isPost, string body, string reason)
    {
        var message = Assert.Throws<PayloadException>(() => Read(body, SourceOf(isPost))).Message;
        Assert.Contains(reason, message, Ordinal);
        Assert.True(message.Length < 300, message);
    }

    [Theory]
    [InlineData("\"version\":\"1\",")]
    [InlineData("\"version\":4,")]
    [InlineData("\"version\":{},")]
    [InlineData("\"version\":\"\\ud800\",\"\\ud800\":1,")]
    [InlineData("")]
    public void VersionDecidesNothing(string version) =>
        One(Read($$"""{{{version}}"alerts":[{{Alert(Stock)}}]}"""));

    [Fact]
    public void BodyWithoutAnAlertIsUsable()
    {
        Assert.Empty(Read(Webhook()).Alerts);
        Assert.Empty(Read("[]", AlertSource.Prometheus).Alerts);
    }

    [Fact]
    public void TruncatedAlertsAreCounted()
    {
        Assert.Equal(7, Read("""{"alerts":[],"truncatedAlerts":7}""").Truncated);
        foreach (var bad in new[] { "\"x\"", "1e99", "-1", "[]" })
            Assert.Equal(0, Read($$"""{"truncatedAlerts":{{bad}},"alerts":[]}""").Truncated);
    }

    private static string With(string field, string json) =>
        $$"""{"status":"firing","labels":{{Texts(Stock)}},"startsAt":"{{Start}}","{{field}}":{{json}}}""";

    /// <summary>The alert (each character a byte), and what the reason must say.</summary>
    public static TheoryData<string, string> BadAlerts => new()
    {
        { "null", "it is not an object" },
        { "5", "it is not an object" },
        { "\"x\"", "it is not an object" },
        { "true", "it is not an object" },
        { "[[{}]]", "it is not an object" },
        { "{}", "it has no alertname" },
        { With("labels", "null"), "it has no alertname" },
        { With("labels", "[]"), "labels is of the wrong type, or not usable as text" },
        { With("labels", $$"""{"alertname":"A","a":"{{new string('a', 256 * 1024)}}"}"""), "its labels have more than 262144 bytes" },
        { With("annotations", $$"""{"a":"{{new string('a', 1024 * 1024)}}"}"""), "its annotations have more than 1048576 bytes" },
        { With("startsAt", $"\"{new string('1', 1025)}\""), "startsAt is of the wrong type" },
        { With("labels", $"{{{string.Join(',', Enumerable.Repeat("\"alertname\":\"A\"", 10_001))}}}"), "more than 10000 labels" },
        { With("annotations", $"{{\"a\":[],{string.Join(',', Enumerable.Repeat("\"b\":\"\"", 10_001))}}}"), "annotations.a is of the wrong type" },
        { With("labels", "\"x\""), "labels is of the wrong type" },
        { With("labels", "{\"job\":{\"a\":[1]},\"alertname\":\"A\"}"), "labels.job is of the wrong type" },
        { With("labels", "{\"job\":[],\"alertname\":\"A\"}"), "labels.job is of the wrong type" },
        { With("labels", "{\"a\\nb\":[],\"alertname\":\"A\"}"), "labels is of the wrong type" },
        { With("labels", "{\"job\":\"\\ud800\",\"alertname\":\"A\"}"), "labels.job is of the wrong type" },
        { With("labels", "{\"job\":\"\\udc00\",\"alertname\":\"A\"}"), "not usable as text" },
        { With("labels", "{\"job\":\"\\ud800x\",\"alertname\":\"A\"}"), "not usable as text" },
        { With("labels", "{\"job\":\"\\ud800\\n\",\"alertname\":\"A\"}"), "not usable as text" },
        { With("labels", "{\"job\":\"\\ud800\\ud800\\udc00\",\"alertname\":\"A\"}"), "not usable as text" },
        { With("labels", "{\"\\udc00\":\"x\"}"), "a text in it is not valid Unicode" },
        { With("labels", "{\"\u00ff\":\"x\"}"), "a text in it is not valid Unicode" },
        { With("labels", "{\"job\":\"\u00ff\u00fe\",\"alertname\":\"A\"}"), "labels.job is of the wrong type" },
        { With("annotations", "7"), "annotations is of the wrong type" },
        { With("annotations", "{\"a\":\"\u00c0\u0080\"}"), "annotations.a is of the wrong type" },
        { With("annotations", "{\"a\":{}}"), "annotations.a is of the wrong type" },
        { With("status", "1"), "status is neither firing nor resolved" },
        { With("status", "null"), "status is neither firing nor resolved" },
        { With("status", "\"pending\""), "status is neither firing nor resolved" },
        { With("status", "{}"), "status is of the wrong type" },
        { With("status", "\"\\udfff\""), "status is of the wrong type" },
        { With("startsAt", "1700000000"), "startsAt is not an RFC 3339 time" },
        { With("startsAt", "[]"), "startsAt is of the wrong type" },
        { With("startsAt", "null"), "it has no startsAt" },
        { With("status", "\"resolved\""), "it has no endsAt" },
        { Alert(Dialect, status: "pending"), "status is neither firing nor resolved" },
        { Alert(Stock + ";service=" + new string('x', 193)), "service has 193 characters, more than 192" },
        { Alert(Stock + ";platform=" + new string('x', 1025)), "platform has 1025 bytes, more than 1024" },
        { Alert(Stock + ";facet=" + new string('x', 1025)), "facet has 1025 bytes, more than 1024" },
        { Alert("service=s;facet=f;status=" + new string('x', 1025)), "status has 1025 bytes, more than 1024" },
    };

    [Theory]
    [MemberData(nameof(BadAlerts))]
    public void BadAlertIsSetAsideWithItsReasonAndSpoilsNoOther(string alert, string reason)
    {
        var body = Encoding.Latin1.GetBytes(Webhook(Alert(Dialect), alert, Alert(Stock)));
        var received = AlertReader.Read(body, "INS", AlertSource.Webhook, MappingRules.Default, Now);
        Assert.Equal([true, false], received.Alerts.Select(a => a.Dialect));
        var unmappable = Assert.Single(received.UnmappableAlerts);
        Assert.Contains(reason, unmappable.Reason, Ordinal);
        Assert.True(unmappable.Reason.Length < 200, unmappable.Reason);
        Assert.Equal(Encoding.Latin1.GetBytes(alert.Replace('\n', ' ')), unmappable.Raw);
    }

    [Fact]
    public void FieldsAtTheirLimitAreTaken()
    {
        var (service, field) = (new string('x', 192), new string('x', 1024));
        var alert = ReadOne(Alert($"service={service};platform={field};facet={field};status={field}"));
        Assert.Equal(new ServiceKey("INS", field, service, field, ""), alert.Service);
    }

    [Fact]
    public void TextIsCutAtFourKibibytes() => Assert.Equal(new string('€', 1365),
        ReadOne(Alert(Stock, "summary=" + new string('€', 2000))).Description);

    [Fact]
    public void UnknownFieldsAreIgnoredHoweverDeep()
    {
        var deep = string.Concat(Enumerable.Repeat("{\"a\":[", 2000)) + string.Concat(Enumerable.Repeat("]}", 2000));
        foreach (var field in new[] { "values", "fingerprint", "generatorURL", "\\ud800" })
            One(Read($$"""{"news":{{deep}},"alerts":[{{With(field, deep)}}],"alert":5}"""));
        Assert.Equal("labels.job is of the wrong type, or not usable as text",
            ReasonOf(With("labels", $$"""{"job":{{deep}}}""")));
    }

    [Fact]
    public void OfTwoFieldsOfOneNameTheLastCounts()
    {
        Assert.Equal("B", ReadOne(With("labels", """{"alertname":"B"}""")).Service.Facet);
        Assert.Single(Read($$"""{"alerts":[1,2,3],"alerts":[{{Alert(Stock)}}]}""").Alerts);
        ReadOne($$"""{"st\u0061tus":"firing","labels":{{Texts(Stock)}},"startsAt":"{{Start}}"}""");
    }

    [Fact]
    public void UnmappableAlertHasFingerprintAndNameAndCopiesShareItsIdentity()
    {
        var received = Read(Webhook(
            Alert("alertname=A", startsAt: "x"), Alert("alertname=A", "summary=s", startsAt: "x"),
            Alert("alertname=A", startsAt: "y"), "5", "6", "5"));
        var first = received.UnmappableAlerts[0];
        Assert.Equal(("f1", "A"), (first.Fingerprint, first.Alertname));
        Assert.Equal(4, received.UnmappableAlerts.Count);
        Assert.Equal(2, received.MoreUnmappable);
    }

    [Theory]
    [InlineData(1000, 0)]
    [InlineData(1005, 5)]
    public void ThousandDifferentUnmappableAlertsAreKeptAndTheOthersCounted(int count, int more)
    {
        var received = Read(Webhook([.. Enumerable.Range(0, count).Select(i => $"{i}"), Alert(Stock)]));
        Assert.Equal((1000, more), (received.UnmappableAlerts.Count, (int)received.MoreUnmappable));
        Assert.Equal("999", Encoding.UTF8.GetString(received.UnmappableAlerts[^1].Raw));
        Assert.Single(received.Alerts);
    }

    /// <summary>16 MiB of bad alerts: neither exceptions nor memory by their number.</summary>
    [Theory]
    [InlineData("0", 1)]
    [InlineData("{}", 1)]
    [InlineData("\"x\"", 1)]
    [InlineData("{\"labels\":5}", 1)]
    [InlineData("{\"labels\":{\"\\ud800\":\"\\ud800\"}}", 1)]
    [InlineData("{\"labels\":{\"a\":\"\\udc00\"},\"x\":#}", 1000)]
    [InlineData("#", 1000)]
    public void MassOfBadAlertsCostsLittle(string alert, int kept)
    {
        var text = new StringBuilder("[");
        var count = 0;
        for (; text.Length < 16 * 1024 * 1024; count++)
            text.Append(count > 0 ? "," : "").Append(alert.Replace("#", $"{count}", Ordinal));
        var body = Encoding.UTF8.GetBytes(text.Append(']').ToString());
        var (thread, exceptions) = (Environment.CurrentManagedThreadId, 0);
        void Count(object? sender, EventArgs e) => exceptions += Environment.CurrentManagedThreadId == thread ? 1 : 0;
        AppDomain.CurrentDomain.FirstChanceException += Count;
        var before = GC.GetAllocatedBytesForCurrentThread();
        var received = AlertReader.Read(body, "INS", AlertSource.Prometheus, MappingRules.Default, Now);
        var allocated = GC.GetAllocatedBytesForCurrentThread() - before;
        AppDomain.CurrentDomain.FirstChanceException -= Count;
        Assert.Equal((kept, count - kept), (received.UnmappableAlerts.Count, (int)received.MoreUnmappable));
        Assert.Equal(0, exceptions);
        Assert.True(allocated < 1024 * 1024 + count * 1024L * (alert.Length > 2 ? 1 : 0), $"{allocated} bytes");
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void WhateverBytesComeNothingButARefusalOfTheBodyIsThrown(bool isPost)
    {
        var source = SourceOf(isPost);
        string[] alerts = [Alert(Dialect),
            Alert(Stock + ";device=sda;x=\"\\\u00fc", "summary=s", "resolved", endsAt: End)];
        var good = Encoding.UTF8.GetBytes(isPost ? Post(alerts) : Webhook(alerts));
        var marks = "\"{}[]\\,:\0\nud"u8.ToArray();
        var bytes = Gen.OneOf(Gen.Byte, Gen.Int[0, marks.Length - 1].Select(i => marks[i]));
        Gen.Select(Gen.Int[0, good.Length - 1], bytes).Array[0, 6].Sample(changes =>
        {
            var body = good.ToArray();
            foreach (var (at, value) in changes)
                body[at] = value;
            CheckAny(body, source);
        }, iter: 5000);
        Gen.OneOf(bytes.Array[0, 40], Gen.Int[0, good.Length].Select(n => good[..n])).Sample(
            body => CheckAny(body, source), iter: 2000);
    }

    private static void CheckAny(byte[] body, AlertSource source)
    {
        try
        {
            var received = AlertReader.Read(body, "INS", source, MappingRules.Default, Now);
            Assert.All(received.UnmappableAlerts, m => Assert.NotEqual("", m.Reason));
            Assert.All(received.Alerts, a => JsonDocument.Parse(a.Labels).Dispose());
        }
        catch (PayloadException e)
        {
            Assert.NotEqual("", e.Message);
        }
    }

    [Fact]
    public void GoodAlertsBesideBadOnesAreAllMapped()
    {
        var bad = BadAlerts.Select(row => (string)row[0]).Where(a => a.All(char.IsAscii)).ToArray();
        var good = Gen.Int[0, 9].Select(i => (IsGood: true, Text: Alert($"{Stock};device=d{i}")));
        var any = Gen.OneOf(good, Gen.Int[0, bad.Length - 1].Select(i => (IsGood: false, Text: bad[i])));
        Gen.Select(any.Array[0, 12], Gen.Bool).Sample((alerts, isPost) =>
        {
            string[] texts = [.. alerts.Select(a => a.Text)];
            var received = isPost ? Read(Post(texts), AlertSource.Prometheus) : Read(Webhook(texts));
            // What spoils a webhook's alert may be missing from Prometheus's.
            var devices = received.Alerts.Where(a => a.Labels.Contains("device", Ordinal))
                .Select(a => a.Service.Location);
            Assert.Equal(alerts.Where(a => a.IsGood).Select(a => ReadOne(a.Text).Service.Location), devices);
            Assert.Equal(alerts.Length,
                received.Alerts.Count + received.UnmappableAlerts.Count + received.MoreUnmappable);
        }, iter: 300);
    }

    [Fact]
    public void EqualLabelSetsInAnyOrderAreOneAlert()
    {
        var names = new[] { "alertname", "job", "Job", "a", "ü", "instance", "severity" };
        Gen.Shuffle(names).Sample(order =>
        {
            var labels = string.Join(';', order.Select(n => $"{n}={n}1"));
            Assert.Equal(ReadOne(Alert(string.Join(';', names.Select(n => $"{n}={n}1")))), ReadOne(Alert(labels)));
        }, iter: 200);
    }
}
