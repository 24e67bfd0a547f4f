using System.Net.Sockets;
using System.Text;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;
using Host = Ses.Tests.Support.Host;

namespace Ses.Tests;

/// <summary>What those without credentials see of public partitions, and that they see nothing of others.</summary>
public sealed partial class PublicTests
{
    private static readonly string[] Open = ["--public", " INS,, WEB ", "--read-password", "r p", "--editor-password", "e p"];

    private static readonly ServiceKey Node = new("INS", "p01", "etcd", "node", "10.1.2.3:2379");

    private static readonly ServiceKey Closed = Node with { Partition = "SECRET" };

    private static readonly string Reader = Host.Basic("reader", "r p"), Editor = Host.Basic("editor", "e p");

    private static string Escaped(string text) => Uri.EscapeDataString(text);

    private static string Of(ServiceKey service) => $"partition={Escaped(service.Partition)}&platform={Escaped(service.Platform)}"
        + $"&service={Escaped(service.Service)}&facet={Escaped(service.Facet)}&location={Escaped(service.Location)}";

    private static async Task SayAsync(Host host, ServiceKey service, string status, double hoursAgo, string text = "It is bad") =>
        Assert.Equal(204, (await host.PostAsync(Dialect.Payload(Dialect.Alert(service, status, Host.Now.AddHours(-hoursAgo), text)),
            "/alerts/" + Escaped(service.Partition))).Code);

    private static async Task NoteAsync(Host host, string partition, string body) =>
        Assert.Equal(201, (await host.PostAsync(body, $"/alerts/{Escaped(partition)}/notes", Editor)).Code);

    private static Task<Answer> AskAsync(Host host, string path, string? by = null) =>
        host.SendAsync(HttpMethod.Get, path, authorization: by);

    /// <summary>A whole answer, with its head but for the date, a byte a character.</summary>
    private static async Task<string> RawAsync(Host host, string target, string method = "GET", string more = "")
    {
        using var client = new TcpClient();
        await client.ConnectAsync("127.0.0.1", host.Port);
        await client.GetStream().WriteAsync(Encoding.ASCII.GetBytes(
            $"{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{more}\r\n"));
        using var reader = new StreamReader(client.GetStream(), Encoding.Latin1);
        return Date().Replace(await reader.ReadToEndAsync().WaitAsync(TimeSpan.FromSeconds(60)), "");
    }

    [GeneratedRegex("(?im)^Date: .*\r\n")]
    private static partial Regex Date();

    // ---- What is open ----

    public static TheoryData<string[]> Modes =>
    [
        ["--read-password", "r p"],
        ["--auth-mode", "basic", "--password", "s p", "--read-password", "r p"],
        ["--auth-mode", "oidc", "--oidc-issuer", "https://id.example.org", "--oidc-audience", "ses", "--read-password", "r p"],
    ];

    [Theory]
    [MemberData(nameof(Modes))]
    public async Task PagesFeedAndBadgesAreOpenAndTheRestIsClosed(string[] mode)
    {
        await using var host = Host.Serving([.. mode, "--public", "INS", "--editor-password", "e p", "--metrics-auth", "true"]);
        await host.Store.AppendAsync("INS", AlertReader.Read(
            Encoding.UTF8.GetBytes(Dialect.Payload(Dialect.Alert(Node with { Location = "" }, "down", Host.Now.AddHours(-1), "t"))),
            "INS", AlertSource.Webhook, MappingRules.Default, Host.Now));
        foreach (var path in new[]
        {
            "/", "/?show=all", "/platform?partition=INS&platform=p01", "/service?" + Of(Node with { Location = "" }), "/outages",
            "/day/2026-11-22", "/wall", "/now", "/feed", "/badge.svg", "/badge.svg?range=30d",
        })
        {
            var open = await AskAsync(host, path);
            Assert.Equal((path, 200), (path, open.Code));
            Assert.Contains("Authorization", open.Headers.Vary);
            Assert.DoesNotContain("health", open.Body, Ordinal);
            Assert.DoesNotContain("alerts/", open.Body, Ordinal);
            Assert.Contains("Authorization", (await AskAsync(host, path, Reader)).Headers.Vary);
            // Wrong ones are not as none.
            Assert.Equal(401, (await host.UnfreezeAsync(AskAsync(host, path, Host.Basic("reader", "x")))).Code);
            Assert.Equal(401, (await AskAsync(host, path, "Digest x")).Code);
        }
        foreach (var path in new[]
        {
            "/health", "/metrics", "/alerts/INS", "/alerts/INS/history", "/alerts/INS/report", "/alerts/INS/outages", "/alerts/INS/notes",
            "/alerts/INS/api/v2/alerts", "/alerts/INS/api/v2/status", "/login",
        })
            (await AskAsync(host, path)).Problem(401);
        Assert.Contains("sign in", (await AskAsync(host, "/")).Body, Ordinal);
        var all = await AskAsync(host, "/", Reader);
        Assert.DoesNotContain("sign in", all.Body, Ordinal);
        Assert.Contains("health", all.Body, Ordinal);
    }

    [Fact]
    public async Task SigningInLeadsToTheOverviewAndNowhereElse()
    {
        await using var host = Host.Serving(Open);
        var asked = await RawAsync(host, "/login?next=//evil.example");
        Assert.StartsWith("HTTP/1.1 401 ", asked, Ordinal);
        Assert.Contains("WWW-Authenticate: Basic realm=\"SeS\"", asked, Ordinal);
        foreach (var user in new[] { Reader, Editor })
        {
            var answer = await RawAsync(host, "/login?next=//evil.example", more: $"Authorization: {user}\r\n");
            Assert.StartsWith("HTTP/1.1 302 ", answer, Ordinal);
            Assert.Contains("\r\nLocation: ./\r\n", answer, Ordinal);
            Assert.Contains("Cache-Control: no-store", answer, Ordinal);
        }
        await using var open = Host.Serving();
        Assert.Contains("\r\nLocation: ./\r\n", await RawAsync(open, "/login"), Ordinal);
    }

    [Theory]
    [InlineData("all partitions are open to all", "--public", "INS")]
    [InlineData("all partitions are open to all", "--public", "INS", "--editor-password", "e")]
    [InlineData(null, "--public", "INS", "--read-password", "r")]
    [InlineData(null, "--public", "INS", "--auth-mode", "basic", "--password", "s")]
    public void WhereAllIsOpenItIsRefused(string? says, params string[] flags)
    {
        if (says == null)
            Assert.Equal(["INS"], Front.OptionsOf(flags).Public!);
        else
            Assert.Contains(says, Assert.Throws<OptionsException>(() => Front.OptionsOf(flags)).Message, Ordinal);
    }

    // ---- What is left out of what is open ----

    private const string Stock = """
        {"status":"firing","labels":{"alertname":"PodNotReady","platform":"p01","job":"ksm","instance":"10.9.8.7:8080",
        "namespace":"hush","pod":"hush-0","severity":"critical"},"annotations":{"summary":"whisper"},"startsAt":"2026-11-22T11:00:00Z"}
        """;

    private static readonly string[] Hushed = ["10.1.2.3", "10.9.8.7", "hush", "whisper", "murmur", "Ann", "SECRET"];

    private static async Task<Host> TellingAsync()
    {
        var host = Host.Serving(Open);
        await SayAsync(host, Node, "up", 30);
        await SayAsync(host, Node, "down", 5, "whisper");
        await SayAsync(host, Node, "up", 4, "whisper");
        await SayAsync(host, Node with { Location = "10.1.2.34" }, "down", 0.5, "whisper");
        await SayAsync(host, Closed, "down", 1);
        Assert.Equal(204, (await host.PostAsync(Dialect.Payload(Stock))).Code);
        await NoteAsync(host, "INS", """{"kind":"comment","from":"2026-11-22T06:00:00Z","to":"2026-11-22T11:00:00Z","text":"murmur","author_name":"Ann"}""");
        await NoteAsync(host, "INS", """
            {"kind":"maintenance","from":"2026-11-22T20:00:00Z","to":"2026-11-22T22:00:00Z","text":"murmur","author_name":"Ann",
            "service":"etcd","location":"10.1.2.3:2379"}
            """);
        return host;
    }

    private static readonly string[] Pages =
    [
        "/", "/?show=all", "/?show=down&range=7d", "/platform?partition=INS&platform=p01", "/outages", "/day/2026-11-22", "/wall", "/now?at=2026-11-20",
        "/feed", "/feed?partition=INS", "/badge.svg",
    ];

    [Fact]
    public async Task NoTextNoLabelAndNoAddressIsShown()
    {
        await using var host = await TellingAsync();
        var bodies = new List<string>();
        foreach (var path in Pages)
            bodies.Add((await AskAsync(host, path)).Body);
        // Each service has a page, which is found by the overview's links.
        var links = Link().Matches(string.Concat(bodies)).Select(m => m.Groups[1].Value).Distinct().ToList();
        Assert.InRange(links.Count, 3, 10);
        foreach (var link in links)
        {
            var page = await AskAsync(host, "/" + link);
            Assert.Equal(200, page.Code);
            Assert.Contains("#", page.Body, Ordinal);
            bodies.Add(page.Body);
            bodies.Add((await RawAsync(host, "/" + link)).Split("\r\n\r\n")[0]);
            foreach (Match m in Shown().Matches(page.Body))
            {
                var other = await AskAsync(host, "/" + m.Groups[1].Value.Replace("&amp;", "&", Ordinal));
                Assert.Equal((m.Value, 200), (m.Value, other.Code));
                bodies.Add(other.Body);
            }
        }
        foreach (var hushed in Hushed)
            Assert.All(bodies, b => Assert.DoesNotContain(hushed, b, Ordinal));
        var all = string.Concat(bodies);
        Assert.Contains("PodNotReady", all, Ordinal);
        Assert.Contains("20:00", all, Ordinal);
        // They are there for who signed in.
        bodies = [];
        foreach (var path in Pages)
            bodies.Add((await AskAsync(host, path, Reader)).Body);
        Assert.All(Hushed, h => Assert.Contains(h, string.Concat(bodies), Ordinal));
    }

    [GeneratedRegex("""href="(?:\.\./)?(s/[0-9a-f]{16})[^"]*">""")]
    private static partial Regex Link();

    [GeneratedRegex("(?:href|src)=\"((?:feed|badge|now)[^\"]*)\"")]
    private static partial Regex Shown();

    [Fact]
    public async Task WhatIsHiddenCannotBeGuessed()
    {
        await using var host = await TellingAsync();
        var nobody = Node with { Location = "10.1.2.99:2379" };
        foreach (var form in new[] { "/service?{0}", "/feed?{0}", "/badge.svg?{0}", "/now?{0}", "/outages?{0}" })
        {
            var known = await RawAsync(host, form.Replace("{0}", Of(Node), Ordinal));
            Assert.Equal(await RawAsync(host, form.Replace("{0}", Of(nobody), Ordinal)),
                known.Replace("10.1.2.3:2379", "10.1.2.99:2379", Ordinal).Replace("10.1.2.3%3A2379", "10.1.2.99%3A2379", Ordinal),
                (a, b) => WithoutLength(a) == WithoutLength(b));
        }
        foreach (var search in new[] { "10.1", "hush", "8080" })
            Assert.Contains("No service has", (await AskAsync(host, $"/?search={search}")).Body, Ordinal);
        Assert.DoesNotContain("No service has", (await AskAsync(host, "/?search=etcd")).Body, Ordinal);
        Assert.Equal(404, (await AskAsync(host, "/s/" + PageQuery.ShortOf(Node))).Code);
    }

    /// <summary>A longer name makes longer answers, and widths of a badge.</summary>
    private static string WithoutLength(string answer) => Regex.Replace(answer, "(?im)^(Content-Length|ETag): .*\r\n|(width|x|textLength|viewBox)=\"[^\"]*\"|urn:uuid:[-0-9a-f]*", "");

    [Fact]
    public async Task LinkOfAnonymousReadersLeadsThoseWhoSignInToTheSame()
    {
        await using var host = await TellingAsync();
        var link = Link().Match((await AskAsync(host, "/?show=down")).Body).Groups[1].Value;
        var open = await RawAsync(host, "/" + link);
        var place = Regex.Match(open, "\r\nLocation: \\.\\.(/service[^\r]*)").Groups[1].Value;
        Assert.Contains("location=%23", place, Ordinal);
        foreach (var path in new[] { "/" + link, place })
        {
            var found = Regex.Match(await RawAsync(host, path, more: $"Authorization: {Reader}\r\n"), "\r\nLocation: (?:\\.\\./)?(service[^\r]*)").Groups[1].Value;
            Assert.Contains("location=10.", found, Ordinal);
            Assert.Equal(200, (await AskAsync(host, "/" + found, Reader)).Code);
        }
    }

    // ---- What is closed ----

    [Fact]
    public async Task ClosedAndUnknownAnswerAlike()
    {
        await using var host = await TellingAsync();
        var unknown = Node with { Partition = "NOBODY" };
        string Same(string a) => a.Replace("SECRET", "NOBODY", Ordinal);
        foreach (var form in new[]
        {
            "/platform?partition={0}&platform=p01", "/service?" + Of(unknown).Replace("NOBODY", "{0}", Ordinal), "/outages?partition={0}",
            "/now?at=2026-11-20&partition={0}", "/feed?partition={0}", "/badge.svg?partition={0}", "/badge.svg?partition={0}&range=7d",
            "/health?{0}", "/alerts/{0}", "/alerts/{0}/history", "/alerts/{0}/notes", "/alerts/{0}/report?x=1",
        })
            Assert.Equal(await RawAsync(host, form.Replace("{0}", "NOBODY", Ordinal)),
                Same(await RawAsync(host, form.Replace("{0}", "SECRET", Ordinal))),
                (a, b) => Tag().Replace(a, "") == Tag().Replace(b, ""));
        Assert.Equal(await RawAsync(host, "/s/0123456789abcdef"), await RawAsync(host, "/s/" + PageQuery.ShortOf(Closed)));
        Assert.Equal(await RawAsync(host, "/service?" + Of(Node with { Service = "none", Location = "" })),
            await RawAsync(host, "/service?" + Of(Closed)));
        Assert.Equal(200, (await AskAsync(host, "/service?" + Of(Closed), Reader)).Code);
    }

    [GeneratedRegex("(?im)^ETag: .*\r\n")]
    private static partial Regex Tag();

    private static readonly string[] Letters = ["a", "b", "Z", "0", "<", "&", "\"", "{", "}", "=", "ü", "✖", "\u202e", " ", "#", "😀"];

    private static string Name(Random random) =>
        "x" + string.Concat(Enumerable.Range(0, random.Next(1, 9)).Select(_ => Letters[random.Next(Letters.Length)])).Trim() + "y";

    /// <summary>A partition whose names and states are random, some as another partition has them.</summary>
    private static async Task FillAsync(Host host, string partition, Random random, int services)
    {
        for (var i = 0; i < services; i++)
        {
            var isAlike = random.Next(2) == 0;
            var service = isAlike ? Node with { Partition = partition, Location = $"{random.Next(4)}" }
                : new ServiceKey(partition, Name(random), Name(random), Name(random), random.Next(3) == 0 ? "" : Name(random));
            for (var hours = random.Next(1, 200); hours > 0; hours /= 2 + random.Next(3))
                await SayAsync(host, service, (string[])["up", "down", "degraded", "unknown", Name(random)] is var all ? all[random.Next(5)] : "",
                    hours, Name(random));
        }
        foreach (var kind in (string[])["maintenance", "comment", "excluded", "correction", "retired"])
        {
            var to = kind == "retired" ? "" : $"\"to\":\"2026-11-22T{random.Next(13, 23)}:00:00Z\",";
            if (random.Next(3) > 0)
                await NoteAsync(host, partition, $$"""
                    {"id":"{{kind}}","kind":"{{kind}}",{{(kind == "correction" ? "\"status\":\"down\"," : "")}}"from":"2026-11-22T0{{random.Next(9)}}:00:00Z",{{to}}
                    "service":"{{(kind == "retired" ? "none" : random.Next(2) == 0 ? "etcd" : "x*")}}","text":"t{{random.Next()}}","author_name":"a{{random.Next()}}"}
                    """);
        }
        // A heartbeat, and what cannot be mapped.
        await host.PostAsync("""
            {"version":"4","alerts":[{"status":"firing","labels":{"alertname":"Watchdog"},"startsAt":"2026-11-22T01:00:00Z"},
            {"status":"firing","labels":{},"startsAt":"2026-11-22T01:00:00Z"}]}
            """, "/alerts/" + Escaped(partition));
    }

    private static async Task<Host> FilledAsync(int seed, int closed)
    {
        var host = Host.Serving(Open);
        // What is drawn of it is to be the same.
        using (var database = new SqliteConnection(Path.Combine(host.Dir, Store.FileName), isReadOnly: false, cache: 100))
            database.Execute("UPDATE meta SET value = '0123456789abcdef0123456789abcdef' WHERE name = 'store'");
        if (closed > 0)
            await FillAsync(host, "HID1", new Random(closed), closed % 5 + 1);
        await FillAsync(host, "INS", new Random(seed), 5);
        if (closed > 0)
            await FillAsync(host, "A✖ <b>", new Random(closed + 1), 4);
        await FillAsync(host, "WEB", new Random(seed + 1), 3);
        if (closed > 0)
            await FillAsync(host, "ZZ", new Random(closed + 2), 2);
        await Wait.UntilAsync(() => host.Store.Count.Underived == 0, TimeSpan.FromSeconds(30), "all to be derived");
        host.Clock.Advance(TimeSpan.FromMinutes(10));
        return host;
    }

    /// <summary>
    /// No byte of what is answered without credentials depends on what is in partitions that are not public: it is
    /// the same whatever they hold, and whether they are there.
    /// </summary>
    [Theory]
    [InlineData(1, 11)]
    [InlineData(2, 23)]
    [InlineData(3, 37)]
    public async Task NoByteDependsOnWhatIsClosed(int seed, int closed)
    {
        await using var without = await FilledAsync(seed, 0);
        await using var with = await FilledAsync(seed, closed);
        var targets = new List<string>
        {
            "/", "/?show=down", "/?show=all&offset=2", "/?search=x&range=24h", "/?search=HID", "/?search=%3C", "/?range=90d", "/?foo=1&show=all",
            "/?page=0", "/?range=1y", "/?search=" + new string('a', 201), "/platform", "/platform?partition=INS&platform=p01",
            "/platform?partition=HID1&platform=p01", "/platform?platform=p01", "/service", "/service?" + Of(Node), "/service?" + Of(Closed),
            "/s/", "/s/0", "/outages", "/outages?partition=WEB", "/outages?partition=ZZ", "/outages?before=2026-11-22T10:00:00Z",
            "/outages?service=etcd", "/day/2026-11-22", "/day/2026-11-21", "/day/x", "/now", "/now?at=2026-11-01", "/now?at=2026-11-01&partition=HID1&platform=p01", "/wall",
            "/feed", "/feed?partition=INS", "/feed?partition=HID1", "/feed?service=etcd", "/feed?location=1", "/feed?x=1", "/badge.svg",
            "/badge.svg?range=7d", "/badge.svg?partition=ZZ", "/badge.svg?service=etcd", "/badge.svg?range=30d&platform=p01", "/health", "/login",
            "/alerts/HID1", "/alerts/INS/history", "/alerts/INS", "/nowhere", "/alerts/", "/ready?x",
        };
        var first = await RawAsync(without, "/?show=all");
        targets.AddRange(Link().Matches(first + await RawAsync(without, "/outages")).Select(m => "/" + m.Groups[1].Value).Distinct());
        targets.AddRange(Named().Matches(first).Select(m => "/" + m.Groups[1].Value.Replace("&amp;", "&", Ordinal)).Distinct());
        foreach (var target in targets.ToList().Where(t => t.StartsWith("/s/", Ordinal)))
        {
            if (Regex.Match(await RawAsync(without, target), "\r\nLocation: \\.\\.(/[^\r]*)") is { Success: true } place)
                targets.Add(place.Groups[1].Value);
        }
        Assert.True(targets.Count > 60 && first.StartsWith("HTTP/1.1 200 ", Ordinal), $"{targets.Count} targets\n{first}");
        foreach (var target in targets)
        {
            Assert.Equal(await RawAsync(without, target), await RawAsync(with, target), (a, b) => a == b);
            Assert.Equal(await RawAsync(without, target, "HEAD", "Accept: text/html\r\n"), await RawAsync(with, target, "HEAD", "Accept: text/html\r\n"));
            Assert.Equal(await RawAsync(without, target, more: "Accept-Encoding: gzip\r\n"), await RawAsync(with, target, more: "Accept-Encoding: gzip\r\n"));
        }
        var tag = Regex.Match(await RawAsync(without, "/feed"), "\r\nETag: ([^\r]*)").Groups[1].Value;
        Assert.StartsWith("HTTP/1.1 304 ", await RawAsync(with, "/feed", more: $"If-None-Match: {tag}\r\n"), Ordinal);
        // For who may see all it differs.
        foreach (var target in new[] { "/", "/wall" })
            Assert.NotEqual((await AskAsync(without, target, Reader)).Body, (await AskAsync(with, target, Reader)).Body);
    }

    [GeneratedRegex("href=\"(platform[^\"]*)\"")]
    private static partial Regex Named();
}
