using System.Globalization;
using System.IO.Compression;
using System.Net;
using System.Net.Sockets;
using System.Text;
using Ses.Tests.Support;
using Xunit;
using Peer = Ses.Tests.GateTests.Peer;
using Site = Ses.Tests.GateTests.Site;

namespace Ses.Tests;

/// <summary>Whatever way a sender has of writing HTTP: what it posts is taken, or is seen to be lost.</summary>
public sealed class SendersTests
{
    private const StringComparison Ordinal = StringComparison.Ordinal;
    private const int MaxBody = 16 * 1024 * 1024;

    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);

    private static Site NewSite(params string[] flags) => new(TimeProvider.System, 20_000, flags: flags);

    private static string Latin1(byte[] bytes) => Encoding.Latin1.GetString(bytes);

    private static string Body(string service, string more = "") => $$$"""
        {"version":"4","alerts":[{"status":"firing","labels":{"alertname":"A","job":"{{{service}}}"{{{more}}}},
        "startsAt":"{{{DateTime.UtcNow.AddHours(-1):yyyy-MM-dd'T'HH:mm:ss'Z'}}}"}]}
        """;

    private static string Gzip(string body, int members = 1)
    {
        using var packed = new MemoryStream();
        for (var i = 0; i < members; i++)
        {
            using var gzip = new GZipStream(packed, CompressionLevel.Optimal, leaveOpen: true);
            gzip.Write(Encoding.Latin1.GetBytes(body));
        }
        return Latin1(packed.ToArray());
    }

    private static string Chunks(string body, int size, string extension = "", string trailers = "") =>
        string.Concat(body.Chunk(size).Select(c => $"{c.Length:X}{extension}\r\n{new string(c)}\r\n"))
        + $"0{extension}\r\n{trailers}\r\n";

    private static string Sized(string body, string fields = "") => $"{fields}Content-Length: {body.Length}\r\n\r\n{body}";

    private static async Task<GateTests.Answer> AskAsync(Site site, string request)
    {
        using var peer = site.Connect();
        await peer.TrySendAsync(request);
        return await peer.ReceiveAsync() ?? throw new IOException("no answer");
    }

    // ---- What is taken ----

    [Theory]
    [InlineData("of a length")]
    [InlineData("in chunks")]
    [InlineData("in chunks of a byte")]
    [InlineData("in chunks with extensions and trailers")]
    [InlineData("in gzip")]
    [InlineData("in gzip, in chunks")]
    [InlineData("by HTTP/1.0")]
    [InlineData("by HTTP/1.0, in gzip")]
    [InlineData("to an absolute target")]
    [InlineData("after an empty line")]
    [InlineData("to a path with a slash at its end")]
    [InlineData("with a number for a version and for a label")]
    [InlineData("with lower-case times")]
    public async Task PostIsTaken(string how)
    {
        await using var site = NewSite();
        const string Line = "POST /alerts/INS HTTP/1.1\r\nHost: a\r\n", Chunked = "Transfer-Encoding: chunked\r\n",
            Packed = "Content-Encoding: gzip\r\n";
        var body = Body("s");
        Assert.Equal(204, (await AskAsync(site, how switch
        {
            "of a length" => Line + Sized(body),
            "in chunks" => $"{Line}{Chunked}\r\n{Chunks(body, 100)}",
            "in chunks of a byte" => $"{Line}{Chunked}\r\n{Chunks(body, 1)}",
            "in chunks with extensions and trailers" => $"{Line}{Chunked}Trailer: X-Sum\r\n\r\n"
                + Chunks(body, 50, " ;a=\"b c\" ; d", "X-Sum: 1\r\nContent-Length: 3\r\n"),
            "in gzip" => Line + Sized(Gzip(body), Packed),
            "in gzip, in chunks" => $"{Line}{Chunked}Content-Encoding: X-GZIP\r\n\r\n{Chunks(Gzip(body), 7)}",
            "by HTTP/1.0" => "POST /alerts/INS HTTP/1.0\r\n" + Sized(body),
            "by HTTP/1.0, in gzip" => "POST /alerts/INS HTTP/1.0\r\nConnection: keep-alive\r\n" + Sized(Gzip(body), Packed),
            "to an absolute target" => "POST HTTP://ses:8888/alerts/INS?a=b HTTP/1.1\r\nHost: other\r\n" + Sized(body),
            "after an empty line" => "\r\n" + Line + Sized(body),
            "to a path with a slash at its end" => Line.Replace("INS ", "INS/ ", Ordinal) + Sized(body),
            "with a number for a version and for a label" => Line
                + Sized(Body("s", ",\"code\":500,\"share\":0.5,\"isBad\":true").Replace("\"4\"", "4", Ordinal)),
            "with lower-case times" => Line + Sized(body.Replace("T", "t", Ordinal).Replace("Z\"", "z\"", Ordinal)),
            _ => throw new ArgumentException(how),
        })).Code);
        Assert.True(site.Knows("s"));
        if (how.Contains("number", Ordinal))
            Assert.Equal("{code=\"500\",isBad=\"true\",share=\"0.5\"}", StoreFiles.Starts(site.Dir).Single().Service.Location);
        Assert.Equal(0, site.Meters.Defects.Value);
    }

    /// <summary>The largest body, in any way that it can come.</summary>
    [Theory]
    [InlineData(false, false)]
    [InlineData(true, false)]
    [InlineData(false, true)]
    [InlineData(true, true)]
    public async Task LargestBodyIsTakenInAnyWay(bool isChunked, bool isPacked)
    {
        await using var site = NewSite();
        var random = new Random(1);
        // Letters by chance: they shrink to three quarters.
        var body = Body("large").Insert(1, $"\"a\":\"{random.GetString("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef", MaxBody / 2)}\",");
        body += new string(' ', MaxBody - body.Length);
        foreach (var (more, code) in new[] { ("", 204), (" ", 413) })
        {
            var sent = isPacked ? Gzip(body + more) : body + more;
            var fields = isPacked ? "Content-Encoding: gzip\r\n" : "";
            var before = site.Refused("body_size") + site.Meters.BadRequests.WithLabels("body_size").Value;
            Assert.Equal(code, (await AskAsync(site, "POST /alerts/INS HTTP/1.1\r\nHost: a\r\n"
                + (isChunked ? $"{fields}Transfer-Encoding: chunked\r\n\r\n{Chunks(sent, 65_536)}" : Sized(sent, fields)))).Code);
            Assert.Equal(code == 413, site.Refused("body_size") + site.Meters.BadRequests.WithLabels("body_size").Value > before);
        }
        Assert.True(site.Knows("large"));
        await Wait.UntilAsync(() => site.Gate.BytesInFlight == 0, Soon, "the room to be given back");
    }

    // ---- What is no gzip ----

    [Theory]
    [InlineData("cut", 400)]
    [InlineData("cut in its last bytes", 400)]
    [InlineData("with another sum", 400)]
    [InlineData("with another length", 400)]
    [InlineData("with more after it", 400)]
    [InlineData("of two members", 400)]
    [InlineData("deflate", 400)]
    [InlineData("empty", 400)]
    [InlineData("of nothing", 400)]
    [InlineData("that unpacks to a thousand times its size", 413)]
    public async Task WhatIsNoGzipIsRefused(string what, int code)
    {
        await using var site = NewSite();
        var packed = Gzip(Body("s"));
        var sent = what switch
        {
            "cut" => packed[..(packed.Length / 2)],
            "cut in its last bytes" => packed[..^3],
            "with another sum" => packed[..^8] + (char)(packed[^8] ^ 1) + packed[^7..],
            "with another length" => packed[..^4] + (char)(packed[^4] ^ 1) + packed[^3..],
            "with more after it" => packed + "more of it",
            "of two members" => Gzip(Body("s"), 2),
            "deflate" => packed[10..],
            "empty" => "",
            "of nothing" => Gzip(""),
            "that unpacks to a thousand times its size" => Gzip(Body("s") + new string(' ', 10_000_000)),
            _ => throw new ArgumentException(what),
        };
        var answer = await AskAsync(
            site, "POST /alerts/INS HTTP/1.1\r\nHost: a\r\n" + Sized(sent, "Content-Encoding: gzip\r\n"));
        Assert.Equal(code, answer.Code);
        Assert.Empty(StoreFiles.Starts(site.Dir));
        Assert.Equal(1, site.Meters.BadRequests.GetAllLabelValues().Sum(l => site.Meters.BadRequests.WithLabels(l).Value));
        Assert.Equal((0, 0), (site.Meters.Defects.Value, site.Gate.BytesInFlight));
    }

    // ---- HTTP/1.0 ----

    private static async Task<string> ReadToEndAsync(Socket socket)
    {
        var (text, buffer) = (new StringBuilder(), new byte[64 * 1024]);
        while (await socket.ReceiveAsync(buffer).WaitAsync(Soon) is > 0 and var count)
            text.Append(Encoding.Latin1.GetString(buffer, 0, count));
        return text.ToString();
    }

    private static async Task<Socket> SayAsync(int port, string text, int? receiveBuffer = null)
    {
        var socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        if (receiveBuffer is { } size)
            socket.ReceiveBufferSize = size;
        await socket.ConnectAsync(IPAddress.Loopback, port);
        await socket.SendAsync(Encoding.Latin1.GetBytes(text));
        return socket;
    }

    /// <summary>A history of some hundred KiB.</summary>
    private static async Task<Host> WithALongPastAsync(int events)
    {
        var host = Host.Serving();
        for (var i = 0; i < events; i += 200)
        {
            var alerts = Enumerable.Range(i, 200).Select(n => $$"""
                {"status":"firing","labels":{"platform":"p","service":"s","facet":"f","status":"{{(n % 2 == 0 ? "up" : "down")}}"},
                "annotations":{"description":"{{new string('d', 200)}}"},"startsAt":"{{Rfc3339.Format(Host.Now.AddSeconds(n - events))}}"}
                """);
            Assert.Equal(204, (await host.PostAsync($$"""{"version":"4","alerts":[{{string.Join(',', alerts)}}]}""")).Code);
        }
        return host;
    }

    [Fact]
    public async Task LongAnswerToHttp10HasNoChunksAndEndsTheConnection()
    {
        await using var host = await WithALongPastAsync(2000);
        var expected = (await host.GetAsync("/alerts/INS/history")).Body;
        Assert.InRange(expected.Length, 200_000, 2_000_000);
        using var socket = await SayAsync(host.Port, "GET /alerts/INS/history HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /live HTTP/1.0\r\n\r\n");
        var parts = (await ReadToEndAsync(socket)).Split("\r\n\r\n", 2);
        Assert.StartsWith("HTTP/1.1 200 OK\r\n", parts[0], Ordinal);
        Assert.Contains("\r\nConnection: close", parts[0], Ordinal);
        Assert.DoesNotContain("Transfer-Encoding", parts[0], Ordinal);
        Assert.DoesNotContain("Content-Length", parts[0], Ordinal);
        Assert.Equal(expected, Encoding.UTF8.GetString(Encoding.Latin1.GetBytes(parts[1])));
        using var head = await SayAsync(host.Port, "HEAD /alerts/INS/history HTTP/1.0\r\n\r\n");
        Assert.EndsWith("\r\nConnection: close\r\n\r\n", await ReadToEndAsync(head), Ordinal);
    }

    /// <summary>Without chunks an end says nothing: what is not whole is to be no end.</summary>
    [Fact]
    public async Task AnswerToHttp10ThatIsNotWholeEndsWithAReset()
    {
        await using var host = await WithALongPastAsync(20_000);
        using var socket = await SayAsync(host.Port, "GET /alerts/INS/history HTTP/1.0\r\n\r\n", receiveBuffer: 4096);
        Assert.True(await socket.ReceiveAsync(new byte[1000]).WaitAsync(Soon) > 0);
        host.Clock.Advance(TimeSpan.FromMinutes(3));
        var error = await Assert.ThrowsAsync<SocketException>(() => ReadToEndAsync(socket));
        Assert.Equal(SocketError.ConnectionReset, error.SocketErrorCode);
    }

    // ---- What is not taken is seen ----

    private const string Post = "POST /alerts/INS HTTP/1.1\r\nHost: a\r\n";

    public static readonly TheoryData<string, string, string?> Lost = new()
    {
        { "path", "POST //alerts/INS HTTP/1.1\r\nHost: a\r\n" + Sized("{}"), "//alerts/INS" },
        { "path", "POST /alert/INS?token=secret HTTP/1.1\r\nHost: a\r\n" + Sized("{}"), "/alert/INS" },
        { "path", "POST /alerts/INS/api/v3/alerts HTTP/1.1\r\nHost: a\r\n" + Sized("[]"), "/alerts/INS/api/v3/alerts" },
        { "path", "POST /api/v2/alerts HTTP/1.1\r\nHost: a\r\n" + Sized("[]"), "/api/v2/alerts" },
        { "path", "POST /%61lerts/INS HTTP/1.1\r\nHost: a\r\n" + Sized("{}"), "/%61lerts/INS" },
        { "partition", "POST /alerts HTTP/1.1\r\nHost: a\r\n" + Sized("{}"), "/alerts" },
        { "partition", "POST /alerts/ HTTP/1.1\r\nHost: a\r\n" + Sized("{}"), "/alerts/" },
        { "partition", "POST /alerts/OTHER HTTP/1.1\r\nHost: a\r\n" + Sized("{\"alerts\":[]}"), "/alerts/OTHER" },
        { "method", "POST / HTTP/1.1\r\nHost: a\r\n" + Sized("{}"), "/" },
        { "method", "PUT /alerts/INS HTTP/1.1\r\nHost: a\r\n" + Sized("{}"), "/alerts/INS" },
        { "origin", Post + Sized("{}", "Origin: http://a\r\n"), "/alerts/INS" },
        { "credentials", Post + Sized("{}", "Authorization: Basic YTpi\r\n"), null },
        { "length", Post + "\r\n", "/alerts/INS" },
        { "malformed", "\r\n\r\n" + Post + Sized("{}"), "" },
        { "body_size", Post + "Content-Length: 999999999\r\n\r\n", "/alerts/INS" },
        { "body_size", Post + "Transfer-Encoding: chunked\r\n\r\nFFFFFFF\r\n", "/alerts/INS" },
        { "content_encoding", Post + Sized("{}", "Content-Encoding: br\r\n"), "/alerts/INS" },
        { "content_encoding", Post + Sized("{}", "Content-Encoding: gzip\r\n"), "/alerts/INS" },
        { "transfer_encoding", Post + "Transfer-Encoding: gzip\r\n\r\n", "" },
        { "payload", Post + Sized("hello"), "/alerts/INS" },
        { "payload", "POST /alerts/INS/api/v2/alerts HTTP/1.1\r\nHost: a\r\n" + Sized("{}"), "/alerts/INS/api/v2/alerts" },
        { "malformed", Post + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", "" },
        { "malformed", Post + "Transfer-Encoding: chunked\r\n\r\nx\r\n", "/alerts/INS" },
        { "version", "POST /alerts/INS HTTP/3.0\r\nHost: a\r\n\r\n", "" },
        { "expectation", Post + "Expect: more\r\n\r\n", "" },
        { "head_size", Post + $"X: {new string('x', 20_000)}", "" },
        { "host", "POST /alerts/INS HTTP/1.1\r\nHost: other\r\n" + Sized("{}"), "/alerts/INS" },
    };

    [Theory]
    [MemberData(nameof(Lost))]
    public async Task PostThatIsNotTakenIsCountedByItsReasonAndLogged(string reason, string request, string? path)
    {
        string[] flags = reason is "credentials" ? ["--auth-mode", "basic", "--password", "secret"]
            : ["--hosts", "a", "--partitions", "INS"];
        await using var site = NewSite(flags);
        Assert.InRange((await AskAsync(site, request)).Code, 400, 505);
        var counted = site.Meters.BadRequests.GetAllLabelValues()
            .Where(l => site.Meters.BadRequests.WithLabels(l).Value > 0).Select(l => l[0]);
        Assert.Equal([reason], counted);
        if (path != null)
            Assert.Matches($"a POST request was refused: {reason} code=[45][0-9]{{2}}"
                + (path == "" ? " " : $" path={System.Text.RegularExpressions.Regex.Escape(path)} ") + ".*client=127.0.0.1", site.Lines.ToString());
        Assert.DoesNotContain("secret", site.Lines.ToString(), Ordinal);
        // What only asks is no lost alert.
        await AskAsync(site, "GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n");
        await AskAsync(site, "GET / HTTP/9.9\r\nHost: a\r\n\r\n");
        Assert.Equal(1, site.Meters.BadRequests.GetAllLabelValues().Sum(l => site.Meters.BadRequests.WithLabels(l).Value));
    }

    [Theory]
    [InlineData("Content-Length: 9\r\n\r\n{", false)]
    [InlineData("Content-Length: 9\r\n\r\n{", true)]
    [InlineData("Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", false)]
    [InlineData("Transfer-Encoding: chunked\r\n\r\n9\r\n{", true)]
    [InlineData("Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", true)]
    [InlineData("Content-Le", false, "head_cut")]
    [InlineData("Content-Le", true, "head_cut")]
    public async Task PostThatIsCutIsCounted(string rest, bool isReset, string reason = "body_cut")
    {
        await using var site = NewSite();
        using (var socket = await SayAsync(site.Port, Post + rest))
        {
            await Wait.UntilAsync(() => site.Meters.Connections.Value == 1, Soon, "the connection");
            if (isReset)
                socket.LingerState = new LingerOption(true, 0);
            else
                socket.Shutdown(SocketShutdown.Send);
            if (!isReset)
                Assert.StartsWith("HTTP/1.1 400 ", await ReadToEndAsync(socket), Ordinal);
        }
        await Wait.UntilAsync(() => site.Meters.BadRequests.WithLabels(reason).Value == 1, Soon, "the cut post to be counted");
        Assert.Empty(StoreFiles.Starts(site.Dir));
    }

    /// <summary>Whoever is told to come again later does: that is no loss.</summary>
    [Fact]
    public async Task PostThatGaveWayAtTheCapIsNotItsSendersFault()
    {
        await using var site = new Site(TimeProvider.System, descriptors: 20);
        using var poster = await SayAsync(site.Port, Post + "Content-Length: 50\r\n\r\nabc");
        await Wait.UntilAsync(() => site.Meters.Connections.Value == 1, Soon, "the connection");
        var others = Enumerable.Range(0, 12).Select(_ => site.Connect()).ToList();
        await Wait.UntilAsync(() => site.Refused("connections") >= 3, Soon, "connections to give way");
        await Assert.ThrowsAnyAsync<SocketException>(() => ReadToEndAsync(poster));
        others.ForEach(o => o.Dispose());
        await Wait.UntilAsync(() => site.Meters.Connections.Value == 0, Soon, "the others to end");
        Assert.Equal(0, site.Refused("body_cut"));
        Assert.Equal(0, site.Meters.BadRequests.GetAllLabelValues().Sum(l => site.Meters.BadRequests.WithLabels(l).Value));
    }

    /// <summary>Beside the packed body the unpacked one has room, whatever --max-body is.</summary>
    [Fact]
    public async Task LargeBodyInGzipHasRoom()
    {
        await using var site = NewSite("--max-body", "64MiB");
        var body = Body("large").Insert(1, $"\"a\":\"{new Random(1).GetString("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef", 60 << 20)}\",");
        Assert.Equal(204, (await AskAsync(
            site, "POST /alerts/INS HTTP/1.1\r\nHost: a\r\n" + Sized(Gzip(body), "Content-Encoding: gzip\r\n"))).Code);
        Assert.Equal(0, site.Gate.BytesInFlight);
    }

    [Fact]
    public async Task AlertsThatAreAlikeInGzipAreTaken()
    {
        await using var site = NewSite();
        var alerts = Enumerable.Range(0, 4000).Select(i => $$"""
            {"status":"firing","labels":{"alertname":"InstanceDown","job":"node","instance":"node-{{i:00000}}.example.org:9100","severity":"critical","cluster":"prod"},"annotations":{"summary":"An instance does not answer","description":"It was asked each 15 s for a minute, and did not answer at all; see the page of what to do when an instance is down."},"startsAt":"2026-11-01T00:00:00Z","generatorURL":"http://prometheus.example.org:9090/graph?g0.expr=up"}
            """.Trim());
        var packed = Gzip($$"""{"alerts":[{{string.Join(',', alerts)}}]}""");
        Assert.Equal(204, (await AskAsync(
            site, "POST /alerts/INS HTTP/1.1\r\nHost: a\r\n" + Sized(packed, "Content-Encoding: gzip\r\n"))).Code);
        Assert.Equal(4000, StoreFiles.Starts(site.Dir).Count);
    }

    /// <summary>A client that reads only once it has written all still gets its answer.</summary>
    [Theory]
    [InlineData("/nope", 16 * 1024 * 1024, 404)]
    [InlineData("/alerts/INS", (16 * 1024 * 1024) + 1, 413)]
    [InlineData("/alerts/INS", 20 * 1024 * 1024, 413)]
    public async Task EarlyAnswerReachesWhoReadsLate(string path, int length, int code)
    {
        await using var site = NewSite();
        using var socket = await SayAsync(site.Port, $"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        for (var left = length; left > 0;)
            left -= await socket.SendAsync(new byte[Math.Min(left, 256 * 1024)]);
        Assert.StartsWith($"HTTP/1.1 {code} ", await ReadToEndAsync(socket), Ordinal);
    }

    [Fact]
    public async Task PostThatIsSentAwayForNowIsNotCounted()
    {
        await using var site = NewSite();
        await site.Gate.DrainAsync(TimeSpan.Zero);
        Assert.Equal(0, site.Meters.BadRequests.GetAllLabelValues().Sum(l => site.Meters.BadRequests.WithLabels(l).Value));
        await using var host = Host.Starting();
        Assert.Equal(503, (await host.PostAsync(Body("s"))).Code);
        Assert.DoesNotMatch("ses_bad_requests_total.* [1-9]", (await host.GetAsync("/metrics")).Body);
    }

    // ---- Cases ----

    /// <summary>Of other projects' reports, sent as they are, by both sources.</summary>
    [Theory]
    [InlineData("grafana-firing.json", "checkout down")]
    [InlineData("aks-node.json", "kubernetes-nodes down")]
    [InlineData("kube-node-not-ready.json", "api down,kube-state-metrics degraded")]
    [InlineData("kps.json", "checkout degraded,kps-kube-state-metrics degraded,kps-kube-state-metrics degraded,kps-node-exporter degraded")]
    public async Task CaseIsTheSameByBothSources(string file, string expected)
    {
        var body = await File.ReadAllTextAsync(Path.Combine(AppContext.BaseDirectory, "Data", "cases", file));
        using var document = System.Text.Json.JsonDocument.Parse(body);
        // As of the day on which they were recorded.
        await using var host = Host.Serving();
        host.Clock.UtcNow = new DateTime(2026, 11, 26, 12, 0, 0, DateTimeKind.Utc);
        Assert.Equal((204, ""), Brief(await host.PostAsync(body, "/alerts/WEB")));
        Assert.Equal((200, ""), Brief(await host.PostAsync(
            document.RootElement.GetProperty("alerts").GetRawText(), "/alerts/PROM/api/v2/alerts")));
        foreach (var partition in new[] { "WEB", "PROM" })
        {
            var status = (await host.GetAsync($"/alerts/{partition}")).Json.GetProperty("services").EnumerateArray();
            Assert.Equal(expected, string.Join(',', status.Select(s =>
                $"{s.GetProperty("service").GetString()} {s.GetProperty("status").GetString()}")));
        }
        Assert.Contains("ses_quarantined_alerts 0\n", (await host.GetAsync("/metrics")).Body, Ordinal);

        static (int, string) Brief(Answer answer) => (answer.Code, answer.Body);
    }
}
