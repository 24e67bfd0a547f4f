using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>Questions and answers over HTTP, in process.</summary>
public sealed class AskingTests
{
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(30);

    private static string Alert(string service, string status, string time, string description = "d",
        string location = "n1") => $$"""
        {"status":"firing","labels":{"platform":"p1","service":"{{service}}","facet":"node","status":"{{status}}",
        "description":{{JsonSerializer.Serialize(description)}}},
        "annotations":{"location":{{JsonSerializer.Serialize(location)}}},"startsAt":"{{time}}"}
        """;

    private static async Task RecordAsync(Host host, params string[] alerts) => Assert.Equal(204, (await host.PostAsync(
        $$"""{"version":"4","alerts":[{{string.Join(',', alerts)}}]}""")).Code);

    private static async Task<Host> WithAPastAsync(params string[] flags)
    {
        var host = Host.Serving(flags);
        await RecordAsync(host, Alert("etcd", "up", "2026-11-22T08:00:00Z"),
            Alert("etcd", "down", "2026-11-22T10:00:00.5Z", "it \"fell\",\nhard"), Alert("db", "down", "2026-11-22T09:00:00Z", location: ""));
        return host;
    }

    /// <summary>Enough changes of one service for an answer of several parts.</summary>
    private static async Task SayManyAsync(Host host, int count)
    {
        for (var i = 0; i < count; i += 200)
            await RecordAsync(host, [.. Enumerable.Range(i, 200).Select(n => Alert("etcd", n % 2 == 0 ? "up" : "down",
                Rfc3339.Format(Host.Now.AddSeconds(n - count)), new string('d', 200)))]);
    }

    // ---- Shapes ----

    /// <summary>The answer without what made it, which stands first.</summary>
    private static string Rest(Answer answer)
    {
        var head = $"{{\"as_of\":\"2026-11-22T12:00:00Z\",\"version\":\"{Program.Version}\","
            + "\"pause_seconds\":900,\"stale_after_seconds\":90000,";
        Assert.StartsWith(head, answer.Body, Ordinal);
        return "{" + answer.Body[head.Length..];
    }

    private static string RestOfReport(Answer answer)
    {
        var head = $"{{\"as_of\":\"2026-11-22T12:00:00Z\",\"version\":\"{Program.Version}\",\"settings\":{{\"pause\":\"15m\","
            + "\"stale_after\":\"25h\",\"forget\":\"30d\",\"period\":null,\"tz\":\"UTC\",\"service_hours\":null,\"slo\":null},";
        Assert.StartsWith(head, answer.Body, Ordinal);
        return "{" + answer.Body[head.Length..];
    }

    [Fact]
    public async Task AnswersHaveTheirShapes()
    {
        await using var host = await WithAPastAsync();
        var status = await host.GetAsync("/alerts/INS?service=etcd");
        Assert.Equal((200, "application/json"), (status.Code, status.Type?.ToString()));
        Assert.Equal("""{"services":[{"platform":"p1","service":"etcd","facet":"node","location":"n1","status":"down","""
            + """since":"2026-11-22T10:00:00.5Z","time":"2026-11-22T10:00:00.5Z","description":"it \"fell\",\nhard","last_seen":"2026-11-22T12:00:00Z","watched":null,"maintenance":null}]}""".Insert(0, "\"")
            + "\n", Rest(status));
        Assert.Equal("""{"events":[{"platform":"p1","service":"db","facet":"node","location":"","status":"down","time":"2026-11-22T09:00:00Z","""
            + """
            "description":"d","received":"2026-11-22T12:00:00Z"}],"next":null}
            """ + "\n", Rest(await host.GetAsync("/alerts/INS/history?service=db")));
        Assert.Equal("""{"services":[{"platform":"p1","service":"etcd","facet":"node","location":"n1","from":"2026-11-22T08:00:00Z","to":"2026-11-22T12:00:00Z","availability":50.003472,"""
            + """
            "adjusted_availability":50.003472,"coverage":100,"up_seconds":7200.5,"degraded_seconds":0,"down_seconds":7199.5,"unknown_seconds":0,"not_counted_seconds":0,"maintenance_seconds":0,"maintenance_down_seconds":0,"excluded_seconds":0,"outages":1,"longest_seconds":7199.5,"mean_seconds":7199.5,"mean_between_seconds":7200.5,"open":true}]}
            """ + "\n", RestOfReport(await host.GetAsync("/alerts/INS/report?service=etcd")));
        Assert.Equal("""
            {"services":[{"platform":"p1","service":"db","facet":"node","location":"","from":"2026-11-22T09:00:00Z","to":"2026-11-22T12:00:00Z","availability":0,"adjusted_availability":0,"coverage":100,"up_seconds":0,"degraded_seconds":0,"down_seconds":10800,"unknown_seconds":0,"not_counted_seconds":0,"maintenance_seconds":0,"maintenance_down_seconds":0,"excluded_seconds":0,"outages":1,"longest_seconds":10800,"mean_seconds":10800,"mean_between_seconds":0,"open":true}],"events":[{"platform":"p1","service":"db","facet":"node","location":"","status":"down","time":"2026-11-22T09:00:00Z","up":0,"under_threshold_seconds":0}]}
            """ + "\n", RestOfReport(await host.GetAsync("/alerts/INS/report?service=db&threshold=1")));
    }

    // ---- Reports by period ----

    [Theory]
    [InlineData("period=decade", "period: 'decade' is not valid; allowed: day, week, month, quarter, year")]
    [InlineData("tz=Europe/Atlantis", "tz: 'Europe/Atlantis' is not valid; allowed: a name of the time zone database, such as Europe/Berlin, or UTC")]
    [InlineData("service_hours=always", "service_hours: 'always' is not valid; allowed: days and hours, such as")]
    [InlineData("slo=101", "slo: '101' is not valid; allowed: a percentage above 0 and at most 100")]
    [InlineData("threshold=2&period=day", "threshold cannot be combined with period")]
    [InlineData("threshold=2&slo=99", "threshold cannot be combined with slo")]
    [InlineData("period=day&from=2000-01-01", "period: there are more than 4000 periods from 'from' to 'to'; ask for longer ones, or a shorter range")]
    [InlineData("period=month&to=2999-01-01", "to is more than 3660 days ahead of the clock")]
    [InlineData("from=2027-01-01", "from must be before now")]
    [InlineData("period=month&from=2027-01-01", "from must be before now")]
    [InlineData("period=year&from=9999-12-31", "from must be before now")]
    [InlineData("from=-1m&as_of=2026-11-22T10:00Z&to=2026-11-22T09:00Z", "from must be before 'to'")]
    [InlineData("from=2026-11-22T11:00Z&as_of=2026-11-22T10:00Z", "from must be before 'as_of'")]
    [InlineData("from=2026-11-01T00:00:00.0001Z&to=2026-11-01T00:00:00.0009Z", "from must be before 'to'")]
    [InlineData("slo==99.9", "slo: '=99.9' is not valid")]
    [InlineData("slo=99&to=2999-01-01", "to is more than 3660 days ahead of the clock")]
    public async Task WhatIsNoReportIsRefused(string query, string says)
    {
        await using var host = await WithAPastAsync();
        Assert.StartsWith(says, (await host.GetAsync($"/alerts/INS/report?{query}")).Problem(400), Ordinal);
    }

    [Theory]
    [InlineData("from=0001-01-01")]
    [InlineData("from=0001-01-01&to=2026-11-22T11:00Z")]
    [InlineData("from=0001-01-01&threshold=1")]
    [InlineData("from=1960-01-01&slo=99&tz=Europe/Berlin")]
    [InlineData("period=year&from=1990-01-01")]
    public async Task EarlyBeginIsNoFault(string query)
    {
        await using var host = await WithAPastAsync();
        var rows = (await host.GetAsync($"/alerts/INS/report?{query}")).Json.GetProperty("services").EnumerateArray().ToList();
        Assert.NotEmpty(rows);
        // What is asked for, whatever is counted of it.
        Assert.All(rows.Where(_ => query.StartsWith("from", Ordinal)), r =>
            Assert.Equal(query.Contains("0001", Ordinal) ? "0001" : "1959", r.GetProperty("from").GetString()![..4]));
        Assert.Empty((await host.GetAsync("/alerts/INS/report?period=month&from=1990-01-01&to=1995-01-01")).Json.GetProperty("services").EnumerateArray());
    }

    /// <summary>What is told as so long ago is so long before the moment that is asked about.</summary>
    [Fact]
    public async Task ReportIsTheSameAgainWithItsOwnMoment()
    {
        await using var host = await WithAPastAsync();
        foreach (var query in new[] { "from=-2h", "from=-3h&to=now&format=csv", "period=day&from=-7d&tz=America/New_York", "" })
        {
            var first = (await host.GetAsync($"/alerts/INS/report?{query}")).Body;
            var moment = first.StartsWith('{') ? first.Split('"')[3] : first.Split("\r\n")[1].Split(',')[^2];
            host.Clock.Advance(TimeSpan.FromMinutes(7));
            Assert.Equal(first, (await host.GetAsync($"/alerts/INS/report?{query}&as_of={moment}")).Body);
        }
    }

    /// <summary>A day is one of the zone: a year has four quarters everywhere.</summary>
    [Theory]
    [InlineData("Europe/Berlin")]
    [InlineData("America/New_York")]
    public async Task DaysOfARangeBeginInTheZone(string tz)
    {
        await using var host = await WithAPastAsync();
        var rows = (await host.GetAsync($"/alerts/INS/report?service=etcd&period=quarter&from=2026-01-01&to=2027-01-01&tz={tz}")).Json.GetProperty("services");
        Assert.Equal(["2026-Q4"], rows.EnumerateArray().Select(r => r.GetProperty("period").GetString()));
    }

    /// <summary>Days add up to months, months to the year, and the whole to what is told of the range.</summary>
    [Fact]
    public async Task PeriodsAddUp()
    {
        await using var host = Host.Serving();
        var random = new Random(22);
        for (var i = 0; i < 40; i++)
        {
            var start = Host.Now.AddHours(-random.Next(1, 24 * 200));
            await RecordAsync(host, $$$"""
                {"status":"resolved","startsAt":"{{{Rfc3339.Format(start)}}}","endsAt":"{{{Rfc3339.Format(start.AddMinutes(random.Next(1, 3000)))}}}",
                "labels":{"alertname":"Down","job":"j{{{i % 3}}}"}}
                """);
        }
        foreach (var (tz, hours) in new[] { ("Europe/Berlin", ""), ("America/Havana", "Mo-Fr 08:00-17:00"), ("Australia/Lord_Howe", "Sa-Mo 22:00-03:00") })
        {
            var range = $"from=2026-01-01T12:00Z&to=2026-12-31T12:00Z&tz={tz}&service_hours={Uri.EscapeDataString(hours)}";
            async Task<List<JsonElement>> RowsAsync(string query) =>
                [.. (await host.GetAsync($"/alerts/INS/report?{query}")).Json.GetProperty("services").EnumerateArray()];
            static double Sum(IEnumerable<JsonElement> rows, string of) => rows.Sum(r => r.GetProperty(of).GetDouble());
            var year = await RowsAsync($"period=year&{range}");
            Assert.Equal(["j0", "j1", "j2"], year.Select(r => r.GetProperty("service").GetString()));
            foreach (var length in new[] { "day", "month", "quarter" })
            {
                var rows = await RowsAsync($"period={length}&{range}");
                string[] figures = ["up_seconds", "down_seconds", "degraded_seconds", "unknown_seconds"];
                Assert.All(figures, f => Assert.Equal(Sum(year, f), Sum(rows, f), 3));
                Assert.All(rows, r => Assert.Equal((Time(r, "to") - Time(r, "from")).TotalSeconds,
                    figures.Append("not_counted_seconds").Sum(f => r.GetProperty(f).GetDouble()), 3));
                Assert.True(Sum(rows, "outages") >= Sum(year, "outages"));
            }
            Assert.True(Sum(year, "down_seconds") > 0);
        }

        static DateTime Time(JsonElement row, string name) => DateTime.Parse(row.GetProperty(name).GetString()!,
            System.Globalization.CultureInfo.InvariantCulture, System.Globalization.DateTimeStyles.AdjustToUniversal);
    }

    // ---- Outages ----

    /// <summary>For any range, hours and zone they are those that the report counts; pages of any size have them all.</summary>
    [Fact]
    public async Task OutagesAreThoseOfTheReport()
    {
        await using var host = Host.Serving();
        var random = new Random(7);
        for (var i = 0; i < 150; i++)
        {
            var start = Host.Now.AddMinutes(-random.Next(1, 60 * 24 * 40));
            var end = random.Next(6) == 0 ? null : (DateTime?)start.AddMinutes(random.Next(1, 4000));
            var isOver = end < Host.Now;
            await RecordAsync(host, $$$"""
                {"status":"{{{(isOver ? "resolved" : "firing")}}}","startsAt":"{{{Rfc3339.Format(start)}}}","endsAt":"{{{Rfc3339.Format(isOver ? end!.Value : default)}}}",
                "labels":{"alertname":"a","status":"{{{(random.Next(2) == 0 ? "up" : "down")}}}","facet":"f","platform":"p","service":"s{{{random.Next(4)}}}"}}
                """);
        }
        foreach (var range in new[] { "", "from=-30d&to=-10d", "from=-9d&tz=Europe/Berlin&service_hours=Mo-Fr%2008:00-17:00", "from=-20d&to=-19d" })
        {
            var all = await RowsAsync($"outages?{range}", "outages");
            Assert.NotEmpty(all);
            foreach (var row in await RowsAsync($"report?{range}", "services"))
            {
                var own = all.Where(o => Text(o, "service") == Text(row, "service")).ToList();
                Assert.Equal(row.GetProperty("outages").GetInt32(), own.Count);
                Assert.Equal(row.GetProperty("down_seconds").GetDouble(), own.Sum(o => o.GetProperty("down_seconds").GetDouble()), 3);
            }
            Assert.Equal(all.Select(o => Text(o, "from")).Order(StringComparer.Ordinal), all.Select(o => Text(o, "from")));
            Assert.All(all, o => Assert.Equal(o.GetProperty("open").GetBoolean(), o.GetProperty("to").ValueKind == JsonValueKind.Null));
            foreach (var order in new[] { "asc", "desc" })
            {
                var pages = new List<string>();
                for (var cursor = ""; ;)
                {
                    var page = (await host.GetAsync($"/alerts/INS/outages?{range}&limit=7&order={order}&cursor={cursor}")).Json;
                    pages.AddRange(page.GetProperty("outages").EnumerateArray().Select(o => o.GetRawText()));
                    if (page.GetProperty("next").GetString() is not { } next)
                        break;
                    cursor = next;
                }
                if (order == "desc")
                    pages.Reverse();
                Assert.Equal(all.Select(o => o.GetRawText()), pages);
            }
        }

        async Task<List<JsonElement>> RowsAsync(string question, string list) =>
            [.. (await host.GetAsync($"/alerts/INS/{question}")).Json.GetProperty(list).EnumerateArray()];
        static string Text(JsonElement row, string name) => row.GetProperty(name).GetString()!;
    }

    /// <summary>Its begin and end are those of the outage, whatever range is asked for: a ticket is found by them.</summary>
    [Fact]
    public async Task BoundsOfAnOutageAreNotCut()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, """
            {"status":"resolved","startsAt":"2026-11-01T20:00:00Z","endsAt":"2026-11-05T08:00:00Z","labels":{"alertname":"Down","job":"etcd"},
            "annotations":{"summary":"etcd is gone"}}
            """);
        Assert.Equal("""
            [{"platform":"INS","service":"etcd","facet":"Down","location":"","from":"2026-11-01T20:00:00Z","to":"2026-11-05T08:00:00Z","down_seconds":3600,"maintenance_seconds":0,"excluded_seconds":0,"open":false,"description":"etcd is gone","notes":[]}]
            """, (await host.GetAsync("/alerts/INS/outages?from=2026-11-04T10:00Z&to=2026-11-04T11:00Z")).Json.GetProperty("outages").GetRawText());
        Assert.StartsWith("limit: 'x' is not valid", (await host.GetAsync("/alerts/INS/outages?limit=x")).Problem(400), Ordinal);
        Assert.StartsWith("slo is not a parameter of outages", (await host.GetAsync("/alerts/INS/outages?slo=99")).Problem(400), Ordinal);
    }

    /// <summary>The last whole month, with its objective; a service that was quiet all along has its row.</summary>
    [Fact]
    public async Task MonthHasItsObjective()
    {
        await using var host = Host.Serving("--tz", "Europe/Berlin", "--slo", "99.9,INS=99");
        foreach (var (job, start, end) in new[] { ("quiet", "2026-09-01T00:00:00Z", "2026-09-01T00:01:00Z"), ("lost", "2026-10-05T00:00:00Z", "2026-10-05T08:00:00Z") })
            await RecordAsync(host, $$$"""{"status":"resolved","startsAt":"{{{start}}}","endsAt":"{{{end}}}","labels":{"alertname":"Down","job":"{{{job}}}"}}""");
        var month = await host.GetAsync("/alerts/INS/report?period=month");
        Assert.Equal("99.9,INS=99", month.Json.GetProperty("settings").GetProperty("slo").GetString());
        // October of Berlin has 745 hours; of the one nothing was known before its first outage.
        Assert.Equal(
            ["lost 2026-10 2026-09-30T22:00:00Z 2026-10-31T23:00:00Z down 28800 of 23292, left -5508: False",
                "quiet 2026-10 2026-09-30T22:00:00Z 2026-10-31T23:00:00Z down 0 of 26820, left 26820: True"],
            month.Json.GetProperty("services").EnumerateArray().Select(r => string.Create(System.Globalization.CultureInfo.InvariantCulture,
                $"{r.GetProperty("service")} {r.GetProperty("period")} {r.GetProperty("from")} {r.GetProperty("to")} down {r.GetProperty("down_seconds")} "
                + $"of {r.GetProperty("error_budget_seconds")}, left {r.GetProperty("error_budget_left_seconds")}: {r.GetProperty("slo_met")}")));
        var csv = (await host.GetAsync("/alerts/INS/report?period=month&format=csv")).Body.Split("\r\n");
        Assert.EndsWith(",open,slo_met,error_budget_seconds,error_budget_left_seconds,tz,service_hours,slo,as_of,version", csv[0], Ordinal);
        Assert.EndsWith($",false,false,23292,-5508,Europe/Berlin,,\"99.9,INS=99\",2026-11-22T12:00:00Z,{Program.Version}", csv[1], Ordinal);
        // While it lasts nothing is met yet.
        var now = await host.GetAsync("/alerts/INS/report?period=month&from=2026-11-10&service=quiet");
        Assert.Equal(JsonValueKind.Null, now.Json.GetProperty("services")[0].GetProperty("slo_met").ValueKind);
        Assert.Equal(25920, now.Json.GetProperty("services")[0].GetProperty("error_budget_seconds").GetDouble());
        Assert.Equal("2026-11", now.Json.GetProperty("services")[0].GetProperty("period").GetString());
    }

    [Theory]
    [InlineData("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0")]
    [InlineData("@SUM(1)", "'@SUM(1)")]
    [InlineData("+1", "'+1")]
    [InlineData("-2+3", "'-2+3")]
    [InlineData("a=b", "a=b")]
    public void CellThatASpreadsheetWouldComputeIsMadeText(string text, string cell)
    {
        var writer = new RowWriter(OutputFormat.Csv);
        writer.BeginList("rows", ["a", "b"]);
        writer.Row(["a", "b"], [text, -1]);
        writer.EndList();
        Assert.Equal($"a,b\r\n{cell},-1\r\n", Encoding.UTF8.GetString(writer.End().Span));
    }

    [Theory]
    [InlineData("Csv", true, "a\r\n\"x\ufffd]0;y\ufffd\ufffdz\ufffd,\ufffdü\ufffd\"\r\n")]
    [InlineData("Table", true, "A\nx\ufffd]0;y\ufffd\ufffdz\ufffd,\ufffdü\ufffd\n")]
    [InlineData("Table", false, "A\nx\ufffd]0;y\ufffd\ufffdz\ufffd,\ufffdü\ufffd\n")]
    [InlineData("Json", true, "{\"rows\":[{\"a\":\"x\ufffd]0;y\ufffd\ufffdz\ufffd,\ufffdü\ufffd\"}]}\n")]
    [InlineData("Csv", false, "a\r\n\"x\u001b]0;y\u0007\u009bz\u202e,\nü\u2066\"\r\n")]
    [InlineData("Json", false, "{\"rows\":[{\"a\":\"x\\u001B]0;y\\u0007\\u009Bz\u202e,\\nü\u2066\"}]}\n")]
    public void TerminalGetsNothingThatItObeys(string format, bool isTerminal, string expected)
    {
        var writer = new RowWriter(Enum.Parse<OutputFormat>(format), isTerminal ? 80 : null);
        writer.BeginList("rows", ["a"]);
        writer.Row(["a"], ["x\u001b]0;y\u0007\u009bz\u202e,\nü\u2066"]);
        writer.EndList();
        Assert.Equal(expected, Encoding.UTF8.GetString(writer.End().Span));
    }

    [Theory]
    [InlineData("/alerts/INS/history?format=csv", null)]
    [InlineData("/alerts/INS/history", "text/csv")]
    [InlineData("/alerts/INS/history", "text/csv, application/json")]
    public async Task CsvIsWrittenAsRfc4180Says(string path, string? accept)
    {
        await using var host = await WithAPastAsync();
        using var client = new HttpClient { BaseAddress = new Uri($"http://127.0.0.1:{host.Port}") };
        if (accept != null)
            client.DefaultRequestHeaders.TryAddWithoutValidation("Accept", accept);
        using var answer = await client.GetAsync(path);
        Assert.Equal("text/csv; charset=utf-8", answer.Content.Headers.ContentType?.ToString());
        Assert.Equal("platform,service,facet,location,status,time,description,received\r\n"
            + "p1,etcd,node,n1,up,2026-11-22T08:00:00Z,d,2026-11-22T12:00:00Z\r\n"
            + "p1,db,node,,down,2026-11-22T09:00:00Z,d,2026-11-22T12:00:00Z\r\n"
            + "p1,etcd,node,n1,down,2026-11-22T10:00:00.5Z,\"it \"\"fell\"\",\nhard\",2026-11-22T12:00:00Z\r\n",
            await answer.Content.ReadAsStringAsync());
        Assert.Equal(["Accept", "Accept-Encoding"], answer.Headers.Vary);
    }

    [Theory]
    [InlineData("application/json, text/csv")]
    [InlineData("*/*")]
    public async Task JsonIsTheRule(string accept)
    {
        await using var host = await WithAPastAsync();
        Assert.Equal("HTTP/1.1 200 OK", await host.SendRawAsync(
            $"GET /alerts/INS/report HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"));
        Assert.Equal("application/json", (await host.GetAsync("/alerts/INS/report")).Type?.MediaType);
    }

    [Theory]
    [InlineData("from=-2h", 1)]
    [InlineData("from=-3h", 2)]
    [InlineData("from=-180m&to=-119m", 2)]
    [InlineData("from=-180m&to=-120m", 1)]
    [InlineData("from=2026-11-22T09:00:00Z&to=2026-11-22T10:00:00.5Z", 1)]
    [InlineData("from=2026-11-22T10:00:00+01:00", 2)]
    [InlineData("from=2026-11-22T11:00:00%2B01:00", 1)]
    [InlineData("from=2026-11-22t11:00:00%2B01:00", 1)]
    [InlineData("from=2026-11-22t09:00z", 2)]
    [InlineData("from=2026-11-22", 3)]
    [InlineData("from=2026-11-22&to=2026-11-23", 3)]
    [InlineData("from=2026-11-21&to=2026-11-22", 0)]
    [InlineData("order=desc&from=-2h", 1)]
    [InlineData("order=asc&from=-1w&platform=p1&facet=node", 3)]
    [InlineData("from=-1w&platform=p1&facet=node", 3)]
    [InlineData("location=n1", 2)]
    [InlineData("platform=&service=db&limit=", 1)]
    [InlineData("platform=p2", 0)]
    public async Task FiltersAndRangesChoose(string query, int events)
    {
        await using var host = await WithAPastAsync();
        Assert.Equal(events, (await host.GetAsync($"/alerts/INS/history?{query}")).Json
            .GetProperty("events").GetArrayLength());
    }

    // ---- As it was known ----

    [Fact]
    public async Task AsOfAnswersAsItWasKnown()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Alert("etcd", "up", "2026-11-22T08:00:00Z"));
        await host.Clock.PassAsync(Host.Now.AddMinutes(10), null, host.Store);
        var before = await host.GetAsync("/alerts/INS/history");
        await host.Clock.PassAsync(Host.Now.AddMinutes(20), null, host.Store);
        // It came late, and corrects the past.
        await RecordAsync(host, Alert("etcd", "down", "2026-11-22T09:00:00Z"), Alert("db", "down", "2026-11-22T09:00:00Z"));
        Assert.Equal(3, (await host.GetAsync("/alerts/INS/history")).Json.GetProperty("events").GetArrayLength());
        foreach (var asOf in new[] { "2026-11-22T12:09:59.999Z", "2026-11-22T13:09:59.999%2B01:00" })
            Assert.Equal(before.Body, (await host.GetAsync($"/alerts/INS/history?as_of={asOf}")).Body);
        foreach (var (path, count) in new[] { ("", 1), ("/report", 1), ("/report?threshold=1", 1) })
        {
            var answer = (await host.GetAsync($"/alerts/INS{path}{(path.Contains('?', Ordinal) ? '&' : '?')}as_of=-10m")).Json;
            Assert.Equal(count, answer.GetProperty("services").GetArrayLength());
            Assert.Equal("2026-11-22T12:10:00Z", answer.GetProperty("as_of").GetString());
        }
        Assert.Equal("up", (await host.GetAsync("/alerts/INS?as_of=-10m")).Json.GetProperty("services")[0].GetProperty("status").GetString());
        Assert.Equal(14400 + 600, (await host.GetAsync("/alerts/INS/report?as_of=-10m")).Json.GetProperty("services")[0].GetProperty("up_seconds").GetDouble());
        Assert.Contains("p1,etcd,node,n1,up,", (await host.GetAsync("/alerts/INS?as_of=-10m&format=csv")).Body, Ordinal);
        Assert.Equal(0, (await host.GetAsync("/alerts/INS?as_of=-1h")).Json.GetProperty("services").GetArrayLength());
        Assert.Contains("as_of is ahead of the clock", (await host.GetAsync("/alerts/INS?as_of=2026-11-23T00:00Z")).Problem(400), Ordinal);
    }

    /// <summary>What is answered can be had again, to the byte, whatever comes after.</summary>
    [Fact]
    public async Task AnswerCanBeMadeAgain()
    {
        await using var host = Host.Serving();
        var random = new Random(1);
        var answers = new List<(string Path, string Body)>();
        for (var i = 0; i < 40; i++)
        {
            host.Clock.UtcNow = Host.Now.AddSeconds(i / 3);
            await RecordAsync(host, Alert($"s{random.Next(3)}", random.Next(2) == 0 ? "up" : "down",
                Rfc3339.Format(Host.Now.AddMinutes(-random.Next(100)))));
            var path = new[] { "/alerts/INS", "/alerts/INS/history", "/alerts/INS/report" }[i % 3];
            var answer = await host.GetAsync(path);
            answers.Add(($"{path}?as_of={answer.Json.GetProperty("as_of").GetString()}", answer.Body));
        }
        host.Clock.UtcNow = Host.Now.AddMinutes(1);
        foreach (var (path, body) in answers)
            Assert.Equal(body, (await host.GetAsync(path)).Body);
    }

    // ---- Refusals ----

    [Theory]
    [InlineData("/history?limt=3", "limt is not a parameter of a history; allowed: platform,")]
    [InlineData("?from=-1h", "from is not a parameter of a status")]
    [InlineData("/report?limit=3", "limit is not a parameter of a report")]
    [InlineData("/history?threshold=3", "threshold is not a parameter of a history")]
    [InlineData("/history?from=-1h&from=-2h", "from is given twice")]
    [InlineData("/history?from=yesterday", "from: 'yesterday' is not valid; allowed: RFC 3339")]
    [InlineData("/history?from=2026-11-2", "from: '2026-11-2' is not valid")]
    [InlineData("/history?from=2026-02-29", "from: '2026-02-29' is not valid")]
    [InlineData("/history?from=2026-11-22T08:00", "from: '2026-11-22T08:00' is not valid")]
    [InlineData("/history?from=2026-11-22&to=2026-11-22", "from must be before 'to'")]
    [InlineData("/history?order=newest", "order: 'newest' is not valid; allowed: asc, desc")]
    [InlineData("/report?order=desc", "order is not a parameter of a report")]
    [InlineData("/history?to=-99999999999d", "to: '-99999999999d' is not valid")]
    [InlineData("/history?to=-999999999d", "to: '-999999999d' is not valid")]
    [InlineData("/history?to=-", "to: '-' is not valid")]
    [InlineData("/history?limit=0", "limit: '0' is not valid; allowed: a whole number from 1")]
    [InlineData("/history?limit=99999999999", "limit: '99999999999' is not valid")]
    [InlineData("/report?threshold=two", "threshold: 'two' is not valid")]
    [InlineData("/history?cursor=x%00y", "cursor: ")]
    [InlineData("/history?cursor=AAAA", "cursor: 'AAAA' is not valid; allowed: the 'next' of an answer in the same order")]
    [InlineData("/history?format=xml", "format: 'xml' is not valid; allowed: json, csv")]
    [InlineData("/history?format=table", "format: 'table' is not valid; allowed: json, csv")]
    [InlineData("/history?from=-1h&to=-1h", "from must be before 'to'")]
    [InlineData("/history?%3Cscript%3E%0A=1", "<script>\ufffd is not a parameter")]
    public async Task BadParametersAreNamed(string query, string detail)
    {
        await using var host = await WithAPastAsync();
        Assert.Contains(detail, (await host.GetAsync("/alerts/INS" + query)).Problem(400), Ordinal);
    }

    [Theory]
    [InlineData("/alerts")]
    [InlineData("/alerts//history")]
    [InlineData("/alerts/INS/history/x")]
    [InlineData("/alerts/INS/else")]
    [InlineData("/alerts/INS//")]
    [InlineData("/alerts//INS")]
    [InlineData("/alerts/INS/history//")]
    [InlineData("/alerts/INS%2Fx")]
    [InlineData("/live/")]
    [InlineData("/service?partition=INS&service=nope")]
    [InlineData("/alerts/NEVER")]
    [InlineData("/alerts/NEVER/history")]
    [InlineData("/alerts/NEVER/report?threshold=2")]
    public async Task UnknownPathsAre404(string path)
    {
        await using var host = await WithAPastAsync();
        (await host.GetAsync(path)).Problem(404);
    }

    /// <summary>As those who write an url may end it.</summary>
    [Theory]
    [InlineData("/alerts/INS/")]
    [InlineData("/alerts/INS/history/")]
    [InlineData("/alerts/INS/report/?threshold=2")]
    [InlineData("/alerts/INS/api/v2/alerts/")]
    public async Task SlashAtTheEndIsNothing(string path)
    {
        await using var host = await WithAPastAsync();
        Assert.Equal((await host.GetAsync(path.Replace("/?", "?", Ordinal).TrimEnd('/'))).Body, (await host.GetAsync(path)).Body);
    }

    [Fact]
    public async Task PartitionOfWhichAnythingWasHeardIsThere()
    {
        await using var host = Host.Serving();
        const string Misfit = """{"version":"4","alerts":[{"status":"firing","labels":{}}]}""";
        const string Beat = """{"version":"4","alerts":[{"status":"firing","labels":{"alertname":"Watchdog"},"startsAt":"2026-11-22T11:00:00Z"}]}""";
        foreach (var (partition, body, code) in new[] { ("MISFITS", Misfit, 200), ("BEATS", Beat, 204), ("INS", "", 400) })
        {
            var answer = await host.GetAsync($"/alerts/{partition}/history");
            Assert.Contains($"SeS has never received anything for partition '{partition}'.", answer.Problem(404), Ordinal);
            Assert.Equal(code, (await host.PostAsync(body, $"/alerts/{partition}")).Code);
            Assert.Equal(code == 400 ? 404 : 200, (await host.GetAsync($"/alerts/{partition}/history")).Code);
            // An Alertmanager's peers ask before they send anything.
            foreach (var path in new[] { "/api/v2/alerts", "/api/v2/status", "/-/ready" })
                Assert.Equal(200, (await host.GetAsync($"/alerts/{partition}{path}")).Code);
        }
    }

    [Fact]
    public async Task HistoryIsToldNewestFirst()
    {
        await using var host = await WithAPastAsync();
        var events = (await host.GetAsync("/alerts/INS/history")).Json.GetProperty("events").EnumerateArray().ToList();
        var newest = (await host.GetAsync("/alerts/INS/history?order=desc")).Json.GetProperty("events").EnumerateArray().ToList();
        Assert.Equal(3, events.Count);
        Assert.Equal(Enumerable.Reverse(events).Select(e => e.GetRawText()), newest.Select(e => e.GetRawText()));
        var csv = (await host.GetAsync("/alerts/INS/history?order=desc&limit=1&format=csv")).Body.Split('\n');
        Assert.Contains("2026-11-22T10:00:00.5Z", csv[1], Ordinal);
        // A cursor is a place in one order.
        var (forward, back) = (await Next("asc"), await Next("desc"));
        Assert.Equal(newest[1].GetRawText(), (await host.GetAsync($"/alerts/INS/history?order=desc&limit=1&cursor={back}"))
            .Json.GetProperty("events")[0].GetRawText());
        Assert.Contains("the 'next' of an answer in the same order",
            (await host.GetAsync($"/alerts/INS/history?order=desc&cursor={forward}")).Problem(400), Ordinal);
        Assert.Contains("the 'next' of an answer in the same order",
            (await host.GetAsync($"/alerts/INS/history?cursor={back}")).Problem(400), Ordinal);

        async Task<string> Next(string order) => (await host.GetAsync($"/alerts/INS/history?order={order}&limit=1"))
            .Json.GetProperty("next").GetString()!;
    }

    [Theory]
    [InlineData("/alerts/INS/history", "GET, HEAD, OPTIONS")]
    [InlineData("/alerts/INS/report", "GET, HEAD, OPTIONS")]
    [InlineData("/", "GET, HEAD, OPTIONS")]
    [InlineData("/service", "GET, HEAD, OPTIONS")]
    public async Task PostIsNotForQuestions(string path, string allow)
    {
        await using var host = await WithAPastAsync();
        var answer = await host.PostAsync("{}", path);
        answer.Problem(405);
        Assert.Equal(allow, string.Join(", ", answer.ContentHeaders.Allow));
    }

    [Theory]
    [InlineData("/")]
    [InlineData("/service?partition=INS&platform=p1&service=etcd&facet=node&location=n1")]
    [InlineData("/alerts/INS")]
    [InlineData("/alerts/INS/history")]
    [InlineData("/alerts/INS/report")]
    public async Task QuestionsNeedTheCredentialsOfTheWebhook(string path)
    {
        await using var host = Host.Serving("--auth-mode", "basic", "--password", "secret");
        var refused = await host.GetAsync(path);
        refused.Problem(401);
        Assert.NotEmpty(refused.Headers.WwwAuthenticate);
        var right = $"Basic {Convert.ToBase64String("admin:secret"u8)}";
        Assert.NotEqual(401, (await host.SendAsync(HttpMethod.Get, path, authorization: right)).Code);
    }

    [Theory]
    [InlineData("/")]
    [InlineData("/alerts/INS")]
    [InlineData("/alerts/INS/history")]
    public async Task BeforeTheLogIsReadTheAnswerIs503(string path)
    {
        await using var host = Host.Starting();
        Assert.Contains("starting", (await host.GetAsync(path)).Problem(503), Ordinal);
        host.Serve();
        await RecordAsync(host, Alert("etcd", "up", "2026-11-22T08:00:00Z"));
        Assert.Equal(200, (await host.GetAsync(path)).Code);
    }

    // ---- Long answers ----

    [Fact]
    public async Task LongAnswerIsChunkedAndWhole()
    {
        await using var host = Host.Serving();
        await SayManyAsync(host, 4000);
        var whole = await host.GetAsync("/alerts/INS/history");
        Assert.True(whole.Headers.TransferEncodingChunked);
        Assert.InRange(whole.Body.Length, 1_000_000, 3_000_000);
        var events = whole.Json.GetProperty("events").EnumerateArray().Select(e => e.GetRawText()).ToList();
        Assert.Equal(4000, events.Distinct().Count());
        var (paged, cursor) = (new List<string>(), "");
        do
        {
            var page = (await host.GetAsync($"/alerts/INS/history?limit=999&cursor={cursor}")).Json;
            paged.AddRange(page.GetProperty("events").EnumerateArray().Select(e => e.GetRawText()));
            cursor = page.GetProperty("next").GetString();
        }
        while (cursor != null);
        Assert.Equal(events, paged);
    }

    [Fact]
    public async Task HeadOfALongAnswerHasNoBodyAndTheConnectionGoesOn()
    {
        await using var host = Host.Serving();
        await SayManyAsync(host, 1000);
        using var client = new TcpClient();
        await client.ConnectAsync("127.0.0.1", host.Port);
        var stream = client.GetStream();
        await stream.WriteAsync("HEAD /alerts/INS/history HTTP/1.1\r\nHost: a\r\n\r\nGET /live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"u8.ToArray());
        using var reader = new StreamReader(stream, Encoding.UTF8);
        var text = await reader.ReadToEndAsync().WaitAsync(Soon);
        Assert.Equal(2, text.Split("HTTP/1.1 200 OK").Length - 1);
        Assert.EndsWith("{\"live\":true}\n", text, Ordinal);
        Assert.DoesNotContain("events", text, Ordinal);
    }

    /// <summary>More than the places there are for long answers.</summary>
    [Fact]
    public async Task ClientsThatGoAwayFreeTheirPlaces()
    {
        await using var host = Host.Serving();
        await SayManyAsync(host, 6000);
        for (var i = 0; i < 2 * Web.MaxUnfinished; i++)
        {
            using var client = new TcpClient { ReceiveBufferSize = 4096 };
            await client.ConnectAsync("127.0.0.1", host.Port);
            await client.GetStream().WriteAsync("GET /alerts/INS/history HTTP/1.1\r\nHost: a\r\n\r\n"u8.ToArray());
            Assert.True(await client.GetStream().ReadAsync(new byte[100]).AsTask().WaitAsync(Soon) > 0);
            client.Client.LingerState = new LingerOption(true, 0);
        }
        await Wait.UntilAsync(async () => (await host.GetAsync("/alerts/INS/history")).Code == 200, Soon,
            "a place for a long answer");
    }

    [Fact]
    public async Task SlowReadersHoldUpNobody()
    {
        await using var host = Host.Serving();
        await SayManyAsync(host, 6000);
        var slow = new List<TcpClient>();
        for (var i = 0; i < Web.MaxUnfinished; i++)
        {
            var client = new TcpClient { ReceiveBufferSize = 4096 };
            slow.Add(client);
            await client.ConnectAsync("127.0.0.1", host.Port);
            await client.GetStream().WriteAsync("GET /alerts/INS/history HTTP/1.1\r\nHost: a\r\n\r\n"u8.ToArray());
            Assert.True(await client.GetStream().ReadAsync(new byte[100]).AsTask().WaitAsync(Soon) > 0);
        }
        Assert.Equal(200, (await host.GetAsync("/alerts/INS").WaitAsync(Soon)).Code);
        Assert.Equal(200, (await host.GetAsync("/").WaitAsync(Soon)).Code);
        await RecordAsync(host, Alert("other", "up", "2026-11-22T11:00:00Z"));
        Assert.Contains("send the request again", (await host.GetAsync("/alerts/INS/history")).Problem(503), Ordinal);
        // Then the one that waits longest gives way.
        host.Clock.Timestamp += TimeSpan.FromSeconds(1).Ticks;
        Assert.Equal(200, (await host.GetAsync("/alerts/INS/history").WaitAsync(Soon)).Code);
        var whole = await Task.WhenAll(slow.Select(c => IsWholeAsync(c.GetStream()))).WaitAsync(Soon);
        Assert.Single(whole, w => !w);
        slow.ForEach(c => c.Dispose());
        await Wait.UntilAsync(async () => (await host.GetAsync("/alerts/INS/history")).Code == 200, Soon,
            "a place for a long answer");
    }

    /// <summary>Reads an answer to its end; false when the connection ends before its last chunk.</summary>
    private static async Task<bool> IsWholeAsync(NetworkStream stream)
    {
        var (buffer, end) = (new byte[64 * 1024], "");
        try
        {
            for (int count; (count = await stream.ReadAsync(buffer)) > 0;)
            {
                end += Encoding.Latin1.GetString(buffer, Math.Max(0, count - 7), Math.Min(7, count));
                end = end[Math.Max(0, end.Length - 7)..];
                if (end == "\r\n0\r\n\r\n")
                    return true;
            }
        }
        catch (IOException)
        {
            // It was reset.
        }
        return false;
    }

    // ---- While the log changes ----

    [Fact]
    public async Task QuestionsWhileTheLogIsWrittenRotatedAndRetainedAreAnsweredWhole()
    {
        await using var host = Host.Serving("--retention", "3d");
        await RecordAsync(host, Alert("s0", "up", Rfc3339.Format(Host.Now)));
        using var stop = new CancellationTokenSource();
        var asking = Enumerable.Range(0, 2).Select(_ => Task.Run(async () =>
        {
            var asked = 0;
            while (!stop.IsCancellationRequested)
            {
                var answer = await host.GetAsync("/alerts/INS/history");
                Assert.Equal(200, answer.Code);
                var times = answer.Json.GetProperty("events").EnumerateArray()
                    .Select(e => e.GetProperty("time").GetDateTime()).ToList();
                Assert.Equal(times.Order(), times);
                Assert.Equal(200, (await host.GetAsync("/alerts/INS/report?threshold=1")).Code);
                Assert.Contains("</html>", (await host.GetAsync("/?range=90d")).Body, Ordinal);
                asked++;
            }
            return asked;
        })).ToList();
        for (var hour = 0; hour < 24 * 20; hour++)
        {
            host.Clock.UtcNow = Host.Now.AddHours(hour);
            host.Clock.Timestamp += TimeSpan.FromHours(1).Ticks;
            await RecordAsync(host, [.. Enumerable.Range(0, 3).Select(s => Alert($"s{s}", hour % 2 == 0 ? "up" : "down",
                Rfc3339.Format(host.Clock.UtcNow)))]);
        }
        await stop.CancelAsync();
        Assert.All(await Task.WhenAll(asking), asked => Assert.InRange(asked, 1, int.MaxValue));
        // What is older than 3 days is gone, but for the hour between two looks.
        await Wait.UntilAsync(async () =>
        {
            host.Clock.UtcNow = host.Clock.UtcNow.AddHours(1);
            return (await host.GetAsync("/alerts/INS/history")).Json.GetProperty("events").EnumerateArray()
                .All(e => e.GetProperty("time").GetDateTime() > Host.Now.AddHours((24 * 20) - (24 * 3) - 2));
        }, Soon, "the old facts to go");
        Assert.InRange(host.Observations, 100, 3 * 24 * 4);
    }
}
