using System.Globalization;
using System.Text;
using System.Text.Json;
using CsCheck;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>What an alert means; one that means nothing is quarantined with a clear reason and spoils no other.</summary>
public sealed class AlertsTests
{
    private const string Start = "2026-11-22T11:34:34.489Z", End = "2026-11-22T11:44:34.489Z",
        Never = "0001-01-01T00:00:00Z";

    private const string Dialect = "platform=p1;service=etcd;facet=node;status=down;alertname=Etcd_Node_Down";

    private const string Stock = "alertname=InstanceDown;job=etcd;instance=n1:2379";

    private static readonly DateTime Now = new(2026, 11, 22, 12, 0, 0, DateTimeKind.Utc);

    private static readonly DateTime StartTime = new(2026, 11, 22, 11, 34, 34, 489, DateTimeKind.Utc);

    /// <summary>An alert with labels and annotations as <c>a=b;c=d</c>.</summary>
    private static string Alert(string labels, string annotations = "", string status = "firing",
        string startsAt = Start, string endsAt = Never) =>
        $$"""
        {"status":"{{status}}","labels":{{Texts(labels)}},"annotations":{{Texts(annotations)}},
        "startsAt":"{{startsAt}}","endsAt":"{{endsAt}}","generatorURL":"http://p","fingerprint":"f1"}
        """;

    private static string Texts(string pairs) => JsonSerializer.Serialize(
        pairs.Split(';', StringSplitOptions.RemoveEmptyEntries).Select(p => p.Split('=', 2))
            .ToDictionary(p => p[0], p => p[1]));

    private static string Body(params string[] alerts) =>
        $$"""{"receiver":"ses","version":"4","alerts":[{{string.Join(',', alerts)}}],"truncatedAlerts":0}""";

    private static Payload Read(string body, FieldMap? map = null) =>
        AlertMapping.Read(Encoding.UTF8.GetBytes(body), "INS", map ?? FieldMap.Default, Now);

    private static MappedAlert ReadOne(string alert, string? map = null)
    {
        var payload = Read(Body(alert), map == null ? null : FieldMap.Parse(map));
        Assert.Empty(payload.UnmappableAlerts);
        return Assert.Single(payload.MappedAlerts);
    }

    private static string ReasonOf(string alert)
    {
        var payload = Read(Body(alert));
        Assert.Empty(payload.MappedAlerts);
        return Assert.Single(payload.UnmappableAlerts).Reason;
    }

    private static DateTime Utc(string text) => DateTime.Parse(text, CultureInfo.InvariantCulture,
        DateTimeStyles.AdjustToUniversal | DateTimeStyles.AssumeUniversal);

    // ---- The dialect of SeS ----

    [Fact]
    public void DialectAlertGivesItsStatusAtItsStart()
    {
        var alert = ReadOne(
            Alert(Dialect + ";description=d;instance=n1;severity=page", "location=n1:2379"));
        Assert.Equal(new MappedAlert(new ServiceKey("INS", "p1", "etcd", "node", "n1:2379"), "d", false, "down",
            StartTime, null), alert);
    }

    [Fact]
    public void ResolvedDialectAlertSaysTheSameAsAFiringOne() =>
        Assert.Equal(ReadOne(Alert(Dialect)), ReadOne(Alert(Dialect, status: "resolved", endsAt: End)));

    [Fact]
    public void DialectAlertNeedsNoEndNorAnAlertStatus()
    {
        var alert = $$"""{"labels":{{Texts(Dialect)}},"startsAt":"{{Start}}"}""";
        Assert.Equal(ReadOne(Alert(Dialect)), ReadOne(alert));
    }

    [Fact]
    public void DialectLocationIsTheAnnotationBeforeTheLabelAndMayBeMissing()
    {
        Assert.Equal("a", ReadOne(Alert(Dialect + ";location=l", "location=a")).Service.Location);
        Assert.Equal("l", ReadOne(Alert(Dialect + ";location=l", "location=")).Service.Location);
        Assert.Equal("", ReadOne(Alert(Dialect + ";instance=n1")).Service.Location);
    }

    [Fact]
    public void DialectFieldsAreLabelsBeforeAnnotations()
    {
        Assert.Equal("etcd", ReadOne(Alert(Dialect, "service=other")).Service.Service);
        Assert.Equal("x", ReadOne(Alert("platform=p;facet=f;status=up", "service=x")).Service.Service);
    }

    [Fact]
    public void NamesAreTakenWithoutRegardToCase()
    {
        var alert = ReadOne(
            Alert("Platform=p1;SERVICE=etcd;fAcEt=node;Status=up", "LOCATION=n1;Description=d"));
        Assert.Equal(new MappedAlert(new ServiceKey("INS", "p1", "etcd", "node", "n1"), "d", false, "up",
            StartTime, null), alert);
        Assert.Equal("etcd", ReadOne(Alert("AlertName=A;JOB=etcd;Instance=n1")).Service.Service);
        Assert.Equal("n1", ReadOne(Alert("AlertName=A;JOB=etcd;Instance=n1")).Service.Location);
    }

    [Theory]
    [InlineData("status=up;platform=p1;service=s;facet=f", false)]
    [InlineData("status=500;alertname=Http;job=web", true)]
    [InlineData("status=;platform=p1;service=s;facet=f", true)]
    [InlineData("status=up;platform=;facet=;alertname=A;job=web", true)]
    [InlineData("platform=p1;service=s;facet=f", true)]
    public void AlertWithStatusAndPlatformOrFacetSpeaksTheDialect(string labels, bool stock) =>
        Assert.Equal(stock, ReadOne(Alert(labels)).Stock);

    [Fact]
    public void DialectWithFacetAloneLacksItsPlatform() =>
        Assert.Equal("it has no platform", ReasonOf(Alert("status=up;facet=node;service=etcd")));

    [Fact]
    public void DescriptionFallsBackToTheAlertsName()
    {
        Assert.Equal("Etcd_Node_Down", ReadOne(Alert(Dialect)).Description);
        Assert.Equal("", ReadOne(Alert("platform=p;service=s;facet=f;status=up")).Description);
        Assert.Equal("InstanceDown", ReadOne(Alert(Stock)).Description);
    }

    // ---- Stock alerts ----

    [Fact]
    public void StockAlertIsDownWhileItFires()
    {
        var alert = ReadOne(Alert(Stock));
        Assert.Equal(new MappedAlert(new ServiceKey("INS", "INS", "etcd", "InstanceDown", "n1:2379"),
            "InstanceDown", true, "down", StartTime, null), alert);
        Assert.Equal(Utc(End), ReadOne(Alert(Stock, status: "resolved", endsAt: End)).EndsAt);
    }

    [Theory]
    [InlineData("platform=p;cluster=c", "p")]
    [InlineData("cluster=c", "c")]
    [InlineData("platform=;cluster=c", "c")]
    [InlineData("", "INS")]
    public void StockPlatformIsTheClusterElseThePartition(string labels, string platform) =>
        Assert.Equal(platform, ReadOne(Alert(Stock + ";" + labels)).Service.Platform);

    [Theory]
    [InlineData("description=d;summary=s;message=m", "d")]
    [InlineData("summary=s;message=m", "s")]
    [InlineData("message=m", "m")]
    [InlineData("runbook=r", "InstanceDown")]
    public void StockDescriptionIsTheFirstOfItsSources(string annotations, string description) =>
        Assert.Equal(description, ReadOne(Alert(Stock, annotations)).Description);

    [Fact]
    public void StockServiceAndFacetAreLabelsBeforeTheirFallbacks()
    {
        var service = ReadOne(Alert(Stock + ";service=s;facet=f;location=l")).Service;
        Assert.Equal(new ServiceKey("INS", "INS", "s", "f",
            """l{alertname="InstanceDown",instance="n1:2379",job="etcd"}"""), service);
    }

    [Fact]
    public void LabelsThatNoFieldUsedFollowTheLocation()
    {
        var one = ReadOne(Alert(Stock + ";severity=page;device=sda")).Service;
        var two = ReadOne(Alert(Stock + ";severity=page;device=sdb")).Service;
        Assert.Equal("""n1:2379{device="sda",severity="page"}""", one.Location);
        Assert.Equal("""n1:2379{device="sdb",severity="page"}""", two.Location);
        Assert.Equal("""{device="sda"}""", ReadOne(Alert("alertname=A;job=j;device=sda")).Service.Location);
    }

    [Fact]
    public void LabelsOfTheSenderAreNoPartOfTheLocation() =>
        Assert.Equal("n1:2379", ReadOne(Alert(
            Stock + ";prometheus=k8s;prometheus_replica=p-0;replica=1;empty=")).Service.Location);

    [Fact]
    public void ValuesInTheSuffixAreEscapedAsPrometheusDoes()
    {
        var alert = Alert(Stock + ";a=say \"x\\y\"\nz");
        Assert.Equal("n1:2379{a=\"say \\\"x\\\\y\\\"\\nz\"}", ReadOne(alert).Service.Location);
    }

    [Fact]
    public void StockAlertWithAStatusLabelOfItsOwnIsDownWhileItFires()
    {
        var alert = ReadOne(Alert(Stock + ";status=500"));
        Assert.Equal(("down", """n1:2379{status="500"}"""), (alert.Status, alert.Service.Location));
    }

    [Fact]
    public void StockAlertNeitherFiringNorResolvedIsQuarantined()
    {
        Assert.Equal("status is neither firing nor resolved", ReasonOf(Alert(Stock, status: "pending")));
        Assert.Equal("status is neither firing nor resolved",
            ReasonOf($$"""{"labels":{{Texts(Stock)}},"startsAt":"{{Start}}"}"""));
    }

    // ---- --map ----

    [Theory]
    [InlineData("platform=env,'prod'", "prod")]
    [InlineData("platform=env , job", "etcd")]
    [InlineData("platform='a,b;c=d'", "a,b;c=d")]
    [InlineData("platform='it';service=service,job", "it")]
    public void MapReplacesTheSourcesOfAStockField(string map, string platform) =>
        Assert.Equal(platform, ReadOne(Alert(Stock), map).Service.Platform);

    [Fact]
    public void MapReplacesTheSourcesForBothKinds()
    {
        const string Map = "location=instance;platform=env,'prod'";
        Assert.Equal(new ServiceKey("INS", "prod", "etcd", "node", "n1"),
            ReadOne(Alert(Dialect + ";instance=n1", "location=x"), Map).Service);
        Assert.Equal(new ServiceKey("INS", "dev", "etcd", "InstanceDown", "n1:2379"),
            ReadOne(Alert(Stock + ";env=dev"), Map).Service);
    }

    [Fact]
    public void LabelThatAMapUsesIsNotInTheSuffix()
    {
        Assert.Equal("n1:2379{severity=\"page\"}",
            ReadOne(Alert(Stock + ";env=dev;severity=page"), "platform=env").Service.Location);
        Assert.Equal("here{instance=\"n1:2379\"}", ReadOne(Alert(Stock), "location='here'").Service.Location);
    }

    // ---- Limits ----

    [Theory]
    [InlineData(4096, 0, 4096)]
    [InlineData(4097, 0, 4096)]
    [InlineData(4095, 1, 4095)]
    [InlineData(4093, 1, 4096)]
    [InlineData(0, 100_000, 4095)]
    public void DescriptionIsCutAt4KiBAtAWholeCharacter(int letters, int euros, int bytes)
    {
        var text = new string('a', letters) + new string('€', euros);
        var description = ReadOne(Alert(Dialect, "description=" + text)).Description;
        Assert.Equal(bytes, Encoding.UTF8.GetByteCount(description));
        Assert.StartsWith(description, text, Ordinal);
    }

    [Fact]
    public void DescriptionIsNotCutWithinASurrogatePair()
    {
        var text = "a" + string.Concat(Enumerable.Repeat("😀", 2000));
        Assert.Equal(text[..(1 + 2 * 1023)], ReadOne(Alert(Dialect, "description=" + text)).Description);
    }

    [Theory]
    [InlineData("service", 192)]
    [InlineData("platform", 1024)]
    [InlineData("facet", 1024)]
    [InlineData("location", 1024)]
    public void FieldOfTheKeyOverItsLimitIsQuarantined(string field, int limit)
    {
        var labels = Dialect.Split(';').Where(l => !l.StartsWith(field, Ordinal));
        string With(int length) => Alert($"{string.Join(';', labels)};{field}={new string('x', length)}");
        Assert.Single(Read(Body(With(limit))).MappedAlerts);
        var reason = ReasonOf(With(limit + 1));
        Assert.Contains(field, reason, Ordinal);
        Assert.Contains($"more than {limit}", reason, Ordinal);
    }

    [Theory]
    [InlineData("2000-01-01T00:00:00Z", null)]
    [InlineData("1999-12-31T23:59:59.9999999Z", "startsAt is before the year 2000")]
    [InlineData("2000-01-01T00:59:59+01:00", "startsAt is before the year 2000")]
    [InlineData("2026-11-23T12:00:00Z", null)]
    [InlineData("2026-11-23T12:00:00.0000001Z", "startsAt is more than 24 h ahead of the clock")]
    [InlineData("0001-01-01T00:00:00Z", "startsAt is before the year 2000")]
    [InlineData("9999-12-31T23:59:59Z", "startsAt is more than 24 h ahead of the clock")]
    public void TimeIsBetweenTheYear2000AndADayAhead(string time, string? reason)
    {
        foreach (var alert in new[] { Alert(Dialect, startsAt: time), Alert(Stock, startsAt: time) })
        {
            var payload = Read(Body(alert));
            Assert.Equal(reason, payload.UnmappableAlerts.SingleOrDefault()?.Reason);
            Assert.Equal(reason == null ? 1 : 0, payload.MappedAlerts.Count);
        }
        var ended = Read(Body(Alert(Stock, status: "resolved", endsAt: time)));
        Assert.Equal(reason?.Replace("startsAt", "endsAt", Ordinal), ended.UnmappableAlerts.SingleOrDefault()?.Reason);
    }

    // ---- Bad inputs ----

    public static TheoryData<string, string> UnusableBodies => new()
    {
        { "", "empty" },
        { "   ", "not JSON" },
        { "hello", "not JSON" },
        { "null", "not a JSON object" },
        { "[]", "not a JSON object" },
        { "\"x\"", "not a JSON object" },
        { "{\"version\":\"4\",\"alerts\":[", "not JSON" },
        { "{\"version\":\"4\",\"alerts\":[]} {}", "not JSON" },
        { "{\"version\":\"4\",\"alerts\":[{]}", "not JSON" },
        { "{\"version\":\"4\",\"alerts\":[{\"labels\":{\"a\":\"x\0y\"}}]}", "not JSON" },
        { "{'version':'4'}", "not JSON" },
        { "{\"alerts\":[]}", "version" },
        { "{\"version\":\"3\",\"alerts\":[]}", "version is 3" },
        { "{\"version\":4,\"alerts\":[]}", "version" },
        { "{\"version\":\"\\ud800\",\"alerts\":[]}", "not JSON" },
        { "{\"version\":\"4\"}", "no list of alerts" },
        { "{\"version\":\"4\",\"alerts\":null}", "no list of alerts" },
        { "{\"version\":\"4\",\"alerts\":{}}", "no list of alerts" },
        { "{\"version\":\"4\",\"alerts\":" + new string('[', 20_000), "not JSON" },
    };

    [Theory]
    [MemberData(nameof(UnusableBodies))]
    public void UnusableBodyIsRefusedWithAClearReason(string body, string expected)
    {
        var message = Assert.Throws<PayloadException>(() => Read(body)).Message;
        Assert.Contains(expected, message, Ordinal);
        Assert.True(message.Length < 300, message);
    }

    [Fact]
    public void PayloadWithoutAnAlertIsUsable() => Assert.Empty(Read(Body()).MappedAlerts);

    private static string With(string field, string json) =>
        $$"""{"status":"firing","labels":{{Texts(Stock)}},"startsAt":"{{Start}}","{{field}}":{{json}}}""";

    /// <summary>What it is, the alert (each character a byte), and what the reason must tell.</summary>
    public static TheoryData<string, string, string> UnmappableAlerts => new()
    {
        { "null", "null", "not an object" },
        { "number", "5", "not an object" },
        { "text", "\"x\"", "not an object" },
        { "list", "[]", "not an object" },
        { "empty object", "{}", "no service" },
        { "null labels", With("labels", "null"), "no service" },
        { "labels a list", With("labels", "[]"), "labels" },
        { "labels a text", With("labels", "\"x\""), "labels" },
        { "label a number", With("labels", "{\"job\":5}"), "labels.job" },
        { "label an object", With("labels", "{\"job\":{}}"), "labels.job" },
        { "label null", With("labels", "{\"job\":null,\"alertname\":\"A\"}"), "no service" },
        { "annotations a number", With("annotations", "7"), "annotations" },
        { "status a number", With("status", "1"), "status" },
        { "status null", With("status", "null"), "status" },
        { "startsAt a number", With("startsAt", "1700000000"), "startsAt" },
        { "startsAt null", With("startsAt", "null"), "no startsAt" },
        { "startsAt empty", With("startsAt", "\"\""), "no startsAt" },
        { "startsAt without a zone", With("startsAt", "\"2026-11-22T11:34:34\""), "startsAt" },
        { "startsAt unset", With("startsAt", $"\"{Never}\""), "startsAt is before the year 2000" },
        { "startsAt far ahead", With("startsAt", "\"9999-12-31T23:59:59Z\""), "startsAt is more than 24 h" },
        { "startsAt out of range", With("startsAt", "\"9999-12-31T23:59:59-05:00\""), "startsAt" },
        { "no endsAt", With("status", "\"resolved\""), "no endsAt" },
        { "unset endsAt", Alert(Stock, status: "resolved"), "endsAt is before the year 2000" },
        { "lone surrogate", With("labels", "{\"job\":\"\\ud800\",\"alertname\":\"A\"}"), "labels.job" },
        { "lone surrogate in a name", With("labels", "{\"\\udc00\":\"x\"}"), "text" },
        { "lone surrogate in the status", With("status", "\"\\udfff\""), "status" },
        { "invalid UTF-8", With("labels", "{\"job\":\"\u00ff\u00fe\",\"alertname\":\"A\"}"), "labels.job" },
        { "overlong UTF-8", With("annotations", "{\"a\":\"\u00c0\u0080\"}"), "annotations.a" },
        { "100 KB in a stock label", With("labels", "{\"job\":\"j\",\"alertname\":\"A\",\"x\":\""
            + new string('x', 100_000) + "\"}"), "location has" },
        { "100 KB of service", With("labels", "{\"alertname\":\"A\",\"job\":\"" + new string('x', 100_000)
            + "\"}"), "service has 100000 characters" },
    };

    [Theory]
    [MemberData(nameof(UnmappableAlerts))]
    public void BadAlertIsQuarantinedWithAClearReasonAndSpoilsNoOther(string what, string alert, string expected)
    {
        var body = Encoding.Latin1.GetBytes(Body(Alert(Dialect), alert, Alert(Stock)));
        var payload = AlertMapping.Read(body, "INS", FieldMap.Default, Now);
        Assert.True(payload.MappedAlerts.Count == 2, what);
        var unmappable = Assert.Single(payload.UnmappableAlerts);
        Assert.Contains(expected, unmappable.Reason, Ordinal);
        Assert.True(unmappable.Reason.Length < 200, unmappable.Reason);
        Assert.DoesNotContain((byte)'\n', unmappable.Raw);
        Assert.Equal(Encoding.Latin1.GetBytes(alert.Replace('\n', ' ')), unmappable.Raw);
    }

    [Fact]
    public void TextIsNotBlamedOnItsTypeWhenItIsItsCharactersThatAreWrong() =>
        Assert.Contains("not usable as text", ReasonOf(With("labels", "{\"job\":\"\\ud800\"}")),
            Ordinal);

    [Fact]
    public void NestingAThousandDeepSpoilsNoOtherAlert()
    {
        var deep = new string('[', 1000) + new string(']', 1000);
        var payload = Read(Body(Alert(Dialect), With("news", deep), Alert(Stock)));
        Assert.Contains(payload.MappedAlerts, r => !r.Stock);
        Assert.Contains(payload.MappedAlerts, r => r.Stock);
        Assert.Equal(3, payload.MappedAlerts.Count + payload.UnmappableAlerts.Count);
        Assert.All(payload.UnmappableAlerts, m => Assert.Contains("deep", m.Reason, Ordinal));
    }

    [Fact]
    public void NestingAThousandDeepInALabelIsQuarantinedWithAShortReason()
    {
        var deep = string.Concat(Enumerable.Repeat("{\"a\":", 1000)) + "1" + new string('}', 1000);
        var payload = Read(Body(Alert(Dialect), With("labels", $$"""{"job":{{deep}}}"""), Alert(Stock)));
        Assert.Equal(2, payload.MappedAlerts.Count);
        var reason = Assert.Single(payload.UnmappableAlerts).Reason;
        Assert.Contains("labels.job", reason, Ordinal);
        Assert.True(reason.Length < 200, reason);
    }

    [Fact]
    public void UnknownFieldsAreIgnoredWherever()
    {
        var deep = new string('[', 1000) + new string(']', 1000);
        var alert = With("news", "{\"a\":[1,null,{\"b\":\"\"}]}");
        var body = $$"""{"news":{{deep}},"version":"4","more":{"alerts":5},"alerts":[{{alert}}],"x":null}""";
        Assert.Single(Read(body).MappedAlerts);
        Assert.Empty(Read(body).UnmappableAlerts);
    }

    [Fact]
    public void NulInAnyValueBecomesTheReplacementCharacter()
    {
        const string Nul = "a\0b", Clean = "a\ufffdb";
        var dialect = ReadOne(Alert($"platform={Nul};service={Nul};facet={Nul};status={Nul}",
            $"location={Nul};description={Nul}"));
        Assert.Equal(new MappedAlert(new ServiceKey("INS", Clean, Clean, Clean, Clean), Clean, false, Clean,
            StartTime, null), dialect);
        var stock = ReadOne(Alert($"{Stock};{Nul}={Nul}"));
        Assert.Equal($"n1:2379{{{Clean}=\"{Clean}\"}}", stock.Service.Location);
    }

    [Fact]
    public void HugeLabelThatNoFieldUsesHarmsNoDialectAlert() =>
        Assert.Equal(ReadOne(Alert(Dialect)), ReadOne(Alert(Dialect + ";x=" + new string('x', 100_000))));

    [Fact]
    public void TwoDisksOfOneMachineAreTwoServices()
    {
        var payload = Read(Body(Alert(Stock + ";device=sda"), Alert(Stock + ";device=sdb")));
        Assert.Equal(2, payload.MappedAlerts.Select(r => r.Service).Distinct().Count());
    }

    [Fact]
    public void MappedAlertsAreInOrderOfTheirStart()
    {
        var payload = Read(Body(Alert(Dialect), Alert(Dialect, startsAt: "2026-11-22T11:00:00Z"),
            Alert(Dialect, startsAt: "2026-11-22T12:00:00+02:00")));
        Assert.Equal(["10:00", "11:00", "11:34"],
            payload.MappedAlerts.Select(r => r.StartsAt.ToString("HH:mm", CultureInfo.InvariantCulture)));
    }

    [Fact]
    public void TruncatedAlertsAreCounted()
    {
        Assert.Equal(7, Read("""{"version":"4","alerts":[],"truncatedAlerts":7}""").Truncated);
        Assert.Equal(0, Read("""{"version":"4","alerts":[],"truncatedAlerts":"x"}""").Truncated);
        Assert.Equal(0, Read("""{"version":"4","alerts":[],"truncatedAlerts":1e99}""").Truncated);
    }

    [Fact]
    public void UnmappableAlertHasFingerprintAndNameAndCopiesShareItsIdentity()
    {
        var alert = Alert("alertname=A", startsAt: "x");
        var (one, two) = (Read(Body(alert)).UnmappableAlerts[0], Read(Body(alert)).UnmappableAlerts[0]);
        Assert.Equal(("f1", "A"), (one.Fingerprint, one.Alertname));
        Assert.Equal(one.Identity, two.Identity);
        Assert.NotEqual(one.Identity, Read(Body(Alert("alertname=A", startsAt: "y"))).UnmappableAlerts[0].Identity);
        Assert.NotEqual("", Read(Body("5")).UnmappableAlerts[0].Fingerprint);
        Assert.NotEqual(Read(Body("5")).UnmappableAlerts[0].Identity, Read(Body("6")).UnmappableAlerts[0].Identity);
    }

    [Fact]
    public void WhateverBytesComeNothingButARefusalOfTheBodyIsThrown()
    {
        var good = Encoding.UTF8.GetBytes(Body(Alert(Dialect), Alert(Stock + ";device=sda", "summary=s")));
        var marks = "\"{}[]\\,:\0\n"u8.ToArray();
        var bytes = Gen.OneOf(Gen.Byte, Gen.Int[0, marks.Length - 1].Select(i => marks[i]));
        Gen.Select(Gen.Int[0, good.Length - 1], bytes)
            .Array[1, 6].Sample(changes =>
            {
                var body = good.ToArray();
                foreach (var (at, value) in changes)
                    body[at] = value;
                try
                {
                    var payload = AlertMapping.Read(body, "INS", FieldMap.Default, Now);
                    Assert.All(payload.UnmappableAlerts, m => Assert.NotEqual("", m.Reason));
                }
                catch (PayloadException e)
                {
                    Assert.NotEqual("", e.Message);
                }
            }, iter: 5000);
    }

    // ---- RFC 3339 ----

    [Theory]
    [InlineData("2026-11-22T11:34:34Z", "2026-11-22T11:34:34Z")]
    [InlineData("2026-11-22T11:34:34.489Z", "2026-11-22T11:34:34.489Z")]
    [InlineData("2026-11-22T11:34:34.100Z", "2026-11-22T11:34:34.1Z")]
    [InlineData("2026-11-22T11:34:34.12345678Z", "2026-11-22T11:34:34.1234567Z")]
    [InlineData("2026-11-22T11:34:34.123456789Z", "2026-11-22T11:34:34.1234567Z")]
    [InlineData("2026-11-22T11:34:34.123456789+02:00", "2026-11-22T09:34:34.1234567Z")]
    [InlineData("2026-11-22T11:34:34.999999999Z", "2026-11-22T11:34:34.9999999Z")]
    [InlineData("2026-11-22T11:34:34+05:30", "2026-11-22T06:04:34Z")]
    [InlineData("2026-11-22T00:00:00-14:00", "2026-11-22T14:00:00Z")]
    [InlineData("2026-11-22T11:34:34-00:00", "2026-11-22T11:34:34Z")]
    [InlineData("2024-02-29T23:59:59.9Z", "2024-02-29T23:59:59.9Z")]
    [InlineData("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z")]
    public void TimeIsTakenAtAnyOffsetAndFraction(string text, string utc)
    {
        Assert.True(Rfc3339.TryParse(text, out var time));
        Assert.Equal(DateTimeKind.Utc, time.Kind);
        Assert.Equal(utc, Rfc3339.Format(time));
    }

    [Theory]
    [InlineData(null)]
    [InlineData("")]
    [InlineData("2026-11-22")]
    [InlineData("2026-11-22T11:34:34")]
    [InlineData("2026-11-22T11:34:34.489123")]
    [InlineData("2026-11-22T11:34:34.Z")]
    [InlineData("2026-11-22T11:34:34,5Z")]
    [InlineData("2026-11-22 11:34:34Z ")]
    [InlineData(" 2026-11-22T11:34:34Z")]
    [InlineData("2026-11-22T11:34:34ZZ")]
    [InlineData("2026-11-22T11:34:34.5Zjunk")]
    [InlineData("2026-11-22T24:00:00Z")]
    [InlineData("2026-11-22T11:34:61Z")]
    [InlineData("2026-02-29T11:34:34Z")]
    [InlineData("2026-13-01T11:34:34Z")]
    [InlineData("2026-11-22T11:34:34+25:00")]
    [InlineData("2026-11-22T11:34:34+02")]
    [InlineData("22026-11-22T11:34:34Z")]
    [InlineData("٢٠٢٦-11-22T11:34:34Z")]
    [InlineData("0001-01-01T00:00:00+01:00")]
    [InlineData("9999-12-31T23:59:59-01:00")]
    public void TimeThatIsNoneIsRefused(string? text) => Assert.False(Rfc3339.TryParse(text, out _));

    /// <summary>RFC 3339 allows them; Go, and so Alertmanager, neither makes nor takes them.</summary>
    [Theory]
    [InlineData("2016-12-31T23:59:60Z")]
    [InlineData("2026-11-22t11:34:34z")]
    [InlineData("2026-11-22T11:34:34z")]
    public void LeapSecondAndLowerCaseAreQuarantinedWithAClearReason(string time) =>
        Assert.Contains("startsAt", ReasonOf(Alert(Dialect, startsAt: time)), Ordinal);
}
