using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using CsCheck;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;
using Host = Ses.Tests.Support.Host;

namespace Ses.Tests;

/// <summary>The status page's text: what it says, and that no label becomes markup.</summary>
public sealed partial class StatusPageTests
{
    private static readonly ServiceKey Node = new("INS", "p01-dev", "etcd", "node", "n1:2379");

    private static readonly ServiceKey Quorum = new("INS", "p01-dev", "etcd", "quorum", "");

    private static string Target(ServiceKey service, string more = "") =>
        $"/service?partition={Escaped(service.Partition)}&platform={Escaped(service.Platform)}"
        + $"&service={Escaped(service.Service)}&facet={Escaped(service.Facet)}"
        + $"&location={Escaped(service.Location)}{more}";

    private static string Escaped(string text) => Uri.EscapeDataString(text);

    /// <summary>So many hours ago.</summary>
    private static DateTime Ago(double hours) => Host.Now.AddHours(-hours);

    private static async Task RecordAsync(
        Host host, ServiceKey service, params (string Status, double HoursAgo)[] words)
    {
        var alerts = words.Select(w => Dialect.Alert(
            service, w.Status, Ago(w.HoursAgo), "It is " + w.Status));
        var answer = await host.PostAsync(
            Dialect.Payload([.. alerts]), "/alerts/" + Escaped(service.Partition));
        Assert.Equal(204, answer.Code);
    }

    private static async Task<PageText> PageAsync(Host host, string target = "/")
    {
        var answer = await host.GetAsync(target);
        Assert.Equal(
            (200, "text/html", "utf-8"), (answer.Code, answer.Type?.MediaType, answer.Type?.CharSet));
        return PageText.Parse(answer.Body);
    }

    // ---- What it says ----

    [Fact]
    public async Task EmptyInstallationIsShownItsFirstStep()
    {
        await using var host = Host.Serving("--path", "hooks/ses");
        var page = await PageAsync(host);
        Assert.Equal("SeS knows of no service yet.", page.TextOf("h1"));
        Assert.Contains("curl -i http://HOST:PORT/hooks/ses/INS", page.TextOf("pre"), Ordinal);
        Assert.DoesNotContain("Services", page.All("h2").Select(h => h.Text));
    }

    [Theory]
    [InlineData("up", "up", "✔ All 2 services are up.")]
    [InlineData("up", "down", "✖ 1 of 2 services is down.")]
    [InlineData("down", "down", "✖ 2 of 2 services are down.")]
    [InlineData("up", "degraded", "No service is down. 1 is neither up nor down.")]
    [InlineData("down", "degraded", "✖ 1 of 2 services is down. 1 is neither up nor down.")]
    public async Task FirstHeadingIsTheWholeInASentence(string one, string other, string sentence)
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, (one, 2));
        await RecordAsync(host, Quorum, (other, 2));
        Assert.Equal(sentence, (await PageAsync(host)).All("h1").Single().Text);
    }

    [Fact]
    public async Task WhatIsDownIsShownWithItsBeginningAndReason()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 9), ("down", 2.5));
        var page = await PageAsync(host);
        var item = page.All("li").First().Text;
        Assert.StartsWith("etcd node n1:2379 INS / p01-dev down since 2026-11-22 09:30:00, for 2 h 30 min.",
            item, Ordinal);
        Assert.EndsWith("It is down", item, Ordinal);
        Assert.Equal("1 down – SeS", page.TextOf("title"));
    }

    [Fact]
    public async Task PastOutagesAreShownWithTheirEndsAndLength()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 9), ("down", 5), ("up", 4.5));
        var page = await PageAsync(host);
        Assert.Contains("etcd node n1:2379 INS / p01-dev 2026-11-22 07:00:00 to 2026-11-22 07:30:00, "
            + "30 min 0 s. It is down", page.All("li").Select(l => l.Text));
    }

    [Fact]
    public async Task DetailsAreOpenOnlyWhereSomethingIsNotUp()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 2));
        await RecordAsync(host, Node with { Platform = "p02" }, ("down", 2));
        await RecordAsync(host, Node with { Platform = "p03" }, ("degraded", 2));
        var details = (await PageAsync(host)).All("details").ToList();
        Assert.Equal([false, true, true], details.Select(d => d.Attributes.ContainsKey("open")));
        Assert.StartsWith("INS / p01-dev: 1 service, ✔ all up", details[0].Text, Ordinal);
        Assert.StartsWith("INS / p02: 1 service, ✖ 1 not up", details[1].Text, Ordinal);
    }

    [Fact]
    public async Task SearchShowsServicesWithTheTextInANameAndKeepsItInTheForm()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 2));
        await RecordAsync(host, Quorum, ("up", 2));
        var page = await PageAsync(host, "/?search=QUORUM&range=7d");
        Assert.Equal(["etcd quorum"],
            page.All("a").Select(a => a.Text).Where(t => t.StartsWith("etcd", Ordinal)));
        var fields = page.All("input").ToDictionary(i => i.Attributes["name"], i => i.Attributes["value"]);
        Assert.Equal(("7d", "QUORUM"), (fields["range"], fields["search"]));
        Assert.All(page.All("a").Where(a => a.Text is "24h" or "30d" or "90d"),
            a => Assert.Contains("search=QUORUM", a.Attributes["href"], Ordinal));
    }

    [Fact]
    public async Task SearchThatFindsNothingSaysSo()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 2));
        var page = await PageAsync(host, "/?search=%22%3Cb%3E%26");
        Assert.Contains("No service has “\"<b>&” in its names.", page.All("p").Select(p => p.Text));
        Assert.Empty(page.All("details"));
    }

    [Theory]
    [InlineData("24h", 24, 48)]
    [InlineData("7d", 7 * 24, 56)]
    [InlineData("30d", 30 * 24, 60)]
    [InlineData("90d", 90 * 24, 90)]
    public async Task RangeIsThatOfTheStripsAndLinks(string range, int hours, int intervals)
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", hours + 1), ("down", hours / 2.0), ("up", 0));
        var page = await PageAsync(host, "/?range=" + range);
        var strip = page.All("svg").Single().Attributes;
        Assert.Equal($"0 0 {intervals} 100", strip["viewBox"]);
        Assert.StartsWith($"etcd node n1:2379, {Ago(hours):yyyy-MM-dd HH:mm:ss} to 2026-11-22 12:00:00 UTC: "
            + $"down, {Ago(hours / 2.0):yyyy-MM-dd HH:mm:ss} to ", strip["aria-label"], Ordinal);
        Assert.Equal([("up", "0", $"{intervals / 2}"), ("down", $"{intervals / 2}", $"{intervals / 2}")],
            page.All("rect").Select(r => (r.Attributes["class"], r.Attributes["x"], r.Attributes["width"])));
        Assert.Equal(range, page.All("span").Single(s => s.Attributes.ContainsKey("aria-current")).Text);
        var links = page.All("a").Select(a => a.Attributes["href"]).ToList();
        Assert.Contains(Target(Node, "&range=" + range)[1..], links);
        Assert.Contains($"alerts/INS/report?from=-{range}&format=csv", links);
        Assert.Equal("50 %",
            page.All("span").Single(s => s.Attributes.GetValueOrDefault("class") == "share").Text);
    }

    [Fact]
    public async Task ConditionsOfAStripDifferInHeightToo()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 20), ("down", 15), ("degraded", 10), ("up", 5));
        var rects = (await PageAsync(host)).All("rect").ToList();
        Assert.Equal(["down", "other", "unknown", "up"],
            rects.Select(r => r.Attributes["class"]).Distinct().Order(StringComparer.Ordinal));
        var heights = rects.GroupBy(r => r.Attributes["class"])
            .Select(g => g.Select(r => r.Attributes["height"]).Distinct().Single()).ToList();
        Assert.Equal(4, heights.Distinct().Count());
    }

    [Fact]
    public async Task PageOfAServiceHasTheFiguresOfTheReport()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 20), ("down", 12), ("up", 11.5), ("down", 3), ("up", 2.75));
        await RecordAsync(host, Quorum, ("down", 5));
        var page = await PageAsync(host, Target(Node));
        var figures = page.All("dt").Zip(page.All("dd")).ToDictionary(p => p.First.Text, p => p.Second.Text);
        var report = (await host.GetAsync("/alerts/INS/report?facet=node&from=-24h")).Json
            .GetProperty("services").EnumerateArray().Single();
        double Of(string name) => report.GetProperty(name).GetDouble();
        Assert.Equal((19.25 * 3600, 2700, 2, 1800), (Of("up_seconds"), Of("down_seconds"), Of("outages"),
            Of("longest_seconds")));
        Assert.Equal(("19 h 15 min", "45 min 0 s", "2", "30 min 0 s"),
            (figures["Up"], figures["Down"], figures["Outages"], figures["Longest outage"]));
        var share = Math.Floor(Of("availability") * 1000) / 1000;
        Assert.Equal(
            share.ToString(CultureInfo.InvariantCulture) + " % of the time known", figures["Availability"]);
        Assert.Equal((1350, "22 min 30 s"), (Of("mean_seconds"), figures["Mean outage"]));
        Assert.Equal((34650, "9 h 37 min"), (Of("mean_between_seconds"), figures["Mean time between"]));
        Assert.Equal(["up", "down", "up", "down", "up"],
            page.All("li").Select(l => l.Text.Split(' ')[3]));
    }

    [Fact]
    public async Task LinksOfAServiceAreToItsOwnFigures()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 2));
        await RecordAsync(host, Node with { Location = "n2" }, ("up", 2));
        var page = await PageAsync(host, Target(Node));
        foreach (var link in page.All("a").Where(a => a.Text is "JSON"))
        {
            var answer = await host.GetAsync("/" + link.Attributes["href"]);
            Assert.Equal(200, answer.Code);
            Assert.Contains("\"n1:2379\"", answer.Body, Ordinal);
            Assert.DoesNotContain("\"n2\"", answer.Body, Ordinal);
        }
    }

    [Fact]
    public async Task LinksOfAServiceWithoutALocationAreToItsOwnFiguresToo()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Quorum, ("up", 2));
        await RecordAsync(host, Quorum with { Location = "n1" }, ("up", 2));
        var page = await PageAsync(host, Target(Quorum));
        foreach (var link in page.All("a").Where(a => a.Text is "JSON"))
        {
            var answer = await host.GetAsync("/" + link.Attributes["href"]);
            Assert.DoesNotContain("\"n1\"", answer.Body, Ordinal);
        }
    }

    [Theory]
    [InlineData("up", "all is well – SeS")]
    [InlineData("degraded", "1 not up – SeS")]
    [InlineData("down", "1 down – SeS")]
    public async Task TitleSaysThatAllIsWellOnlyWhenItIs(string status, string title)
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, (status, 2));
        Assert.Equal(title, (await PageAsync(host)).TextOf("title"));
    }

    [Fact]
    public async Task EveryTimeHasItsMachineReadableTwinInUtc()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 9), ("down", 5), ("up", 4.5), ("down", 1));
        foreach (var target in new[] { "/", Target(Node) })
        {
            var page = await PageAsync(host, target);
            Assert.NotEmpty(page.All("time"));
            Assert.All(page.All("time"), t => Assert.Equal(
                t.Text.Replace(' ', 'T') + "Z", t.Attributes["datetime"]));
            Assert.Contains(page.All("p"), p => p.Text.Contains("UTC", Ordinal));
        }
    }

    // ---- What is too much for one page ----

    /// <summary>Services of two platforms, and of the first one that is searched for.</summary>
    private static async Task RecordManyAsync(Host host, string status, int first, int second)
    {
        foreach (var (platform, count) in new[] { ("p01", first), ("p02", second) })
        {
            var alerts = Enumerable.Range(0, count).Select(i => Dialect.Alert(
                Node with { Platform = platform, Location = $"n{i:0000}" }, status, Ago(2 + (i / 3600.0)),
                "It is " + status));
            Assert.Equal(204, (await host.PostAsync(Dialect.Payload([.. alerts]), "/alerts/INS")).Code);
        }
    }

    private static List<string> RowsOf(PageText page) => [.. page.All("li")
        .Where(l => l.Attributes.GetValueOrDefault("class") == "row").Select(l => l.Text.Split(' ')[2][..5])];

    private static string? LinkOf(PageText page, string text) =>
        page.All("a").SingleOrDefault(a => a.Text == text)?.Attributes["href"];

    [Fact]
    public async Task ServicesAreShownPageByPageAndTheSummariesAreOfAll()
    {
        await using var host = Host.Serving();
        await RecordManyAsync(host, "up", 250, 151);
        var (rows, target) = (new List<List<string>>(), (string?)"./?range=7d&search=N");
        while (target != null)
        {
            var page = await PageAsync(host, target[1..]);
            Assert.Equal("✔ All 401 services are up.", page.TextOf("h1"));
            Assert.Equal(rows.Count == 0 ? null : "./?range=7d&search=N", LinkOf(page, "First 200 services"));
            Assert.All(page.All("summary"), s => Assert.Matches("p01: 250 services|p02: 151 services", s.Text));
            rows.Add(RowsOf(page));
            target = LinkOf(page, "Next 200 services");
        }
        Assert.Equal([200, 200, 1], rows.Select(r => r.Count));
        Assert.Equal([.. Enumerable.Range(0, 250), .. Enumerable.Range(0, 151)],
            rows.SelectMany(r => r).Select(l => int.Parse(l[1..], CultureInfo.InvariantCulture)));
    }

    [Fact]
    public async Task FewServicesHaveNoLinksToPages()
    {
        await using var host = Host.Serving();
        await RecordManyAsync(host, "up", 200, 0);
        var page = await PageAsync(host);
        Assert.Equal(200, RowsOf(page).Count);
        Assert.DoesNotContain(page.All("nav"), n => n.Attributes["aria-label"] == "Pages of services");
        page = await PageAsync(host, "/?page=2");
        Assert.Empty(RowsOf(page));
        Assert.Contains("There are no further services.", page.All("p").Select(p => p.Text));
        Assert.Equal("./?range=24h", LinkOf(page, "First 200 services"));
    }

    [Fact]
    public async Task LatestOfWhatIsDownAreShownAndTheOthersCounted()
    {
        await using var host = Host.Serving();
        await RecordManyAsync(host, "down", 203, 0);
        await RecordManyAsync(host, "up", 0, 3);
        var page = await PageAsync(host);
        Assert.Equal("✖ 203 of 206 services are down.", page.TextOf("h1"));
        var down = page.All("section").First();
        Assert.EndsWith("These are the latest 200; there are 3 more.", down.Text, Ordinal);
        var shown = page.All("li").Take(200).Select(l => l.Text.Split(' ')[2]).ToList();
        Assert.Equal(("n0000", "n0199"), (shown[0], shown[^1]));
        Assert.Contains("INS / p01: 203 services, ✖ 203 not up", page.All("summary").Select(s => s.Text));
        page = await PageAsync(host, "/?search=n0000");
        Assert.DoesNotContain("more.", page.All("section").First().Text, Ordinal);
    }

    [Fact]
    public async Task OutagesChangesAndPartitionsThatAreLeftOutAreCounted()
    {
        await using var host = Host.Serving();
        var words = Enumerable.Range(0, 230).Select(i => (i % 2 == 0 ? "down" : "up", 20 - (i / 12.0)));
        await RecordAsync(host, Node, [.. words]);
        for (var i = 0; i < 22; i++)
            await RecordAsync(host, Node with { Partition = $"P{i}" }, ("up", 1));
        var page = await PageAsync(host);
        Assert.EndsWith("These are the latest 50; there are 65 more.", page.All("section").Last().Text, Ordinal);
        Assert.Contains("These are the first 20; there are 3 more.", page.All("p").Select(p => p.Text));
        page = await PageAsync(host, Target(Node));
        Assert.Contains("These are the latest 200; there are 30 more.", page.All("p").Select(p => p.Text));
    }

    // ---- Refusals and heads ----

    [Theory]
    [InlineData("/?ranje=24h", "ranje")]
    [InlineData("/?platform=x", "platform")]
    [InlineData("/?range=1h", "range")]
    [InlineData("/?range=24h&range=7d", "range")]
    [InlineData("/?search=a&search=b", "search")]
    [InlineData("/service?search=a", "search")]
    [InlineData("/service?page=2", "page")]
    [InlineData("/?page=0", "page")]
    [InlineData("/?page=-1", "page")]
    [InlineData("/?page=two", "page")]
    [InlineData("/?page=2&page=3", "page")]
    [InlineData("/?page=10737419", "page")]
    [InlineData("/service?partition=INS&range=x", "range")]
    [InlineData("/?%3Cb%3E=1", "<b>")]
    public async Task UnusableParameterIsAnswered400AndNamed(string target, string name)
    {
        await using var host = Host.Serving();
        Assert.StartsWith(name + ":", (await host.GetAsync(target)).Problem(400), Ordinal);
    }

    [Theory]
    [InlineData("/service")]
    [InlineData("/service?partition=INS&platform=p01-dev&service=etcd&facet=node")]
    [InlineData("/service?partition=INS&platform=p01-dev&service=ETCD&facet=node&location=n1:2379")]
    public async Task ServiceThatIsNotKnownIsAnswered404(string target)
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 2));
        (await host.GetAsync(target)).Problem(404);
        await PageAsync(host, Target(Node));
    }

    [Fact]
    public async Task HeadIsAnsweredAsGetWithoutABody()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 2));
        foreach (var target in new[] { "/", Target(Node) })
        {
            var answer = await host.SendAsync(HttpMethod.Head, target);
            Assert.Equal((200, "", "text/html"), (answer.Code, answer.Body, answer.Type?.MediaType));
            Assert.True(answer.Headers.Contains("Content-Security-Policy"));
        }
        Assert.Contains("GET", (await host.SendAsync(HttpMethod.Delete, "/")).ContentHeaders.Allow);
    }

    [Fact]
    public async Task HeadOfALongPageIsAnsweredWithoutABodyToo()
    {
        await using var host = Host.Serving();
        for (var i = 0; i < 200; i++)
            await RecordAsync(host, Node with { Location = $"n{i}" }, ("up", 2));
        Assert.InRange((await host.GetAsync("/")).Body.Length, 100_000, 1_000_000);
        for (var i = 0; i < Web.MaxUnfinished + 5; i++)
        {
            var answer = await host.SendAsync(HttpMethod.Head, "/");
            Assert.Equal((200, ""), (answer.Code, answer.Body));
        }
    }

    [Fact]
    public async Task WhileStartingThePageIsAnswered503()
    {
        await using var host = Host.Starting();
        Assert.Contains("starting", (await host.GetAsync("/")).Problem(503), Ordinal);
    }

    [Fact]
    public async Task PolicyAllowsThePagesOwnStyleAndNothingElseToRun()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("down", 2));
        foreach (var target in new[] { "/", Target(Node) })
        {
            var answer = await host.GetAsync(target);
            var style = Assert.Single(StyleElement().Matches(answer.Body)).Groups[1].Value;
            var hash = Convert.ToBase64String(SHA256.HashData(Encoding.UTF8.GetBytes(style)));
            var policy = Assert.Single(answer.Headers.GetValues("Content-Security-Policy"))
                .Split(';', StringSplitOptions.TrimEntries);
            Assert.Contains("default-src 'none'", policy);
            Assert.Contains($"style-src 'sha256-{hash}'", policy);
            Assert.Contains("base-uri 'none'", policy);
            Assert.Contains("frame-ancestors 'none'", policy);
            Assert.DoesNotContain(policy, p => p.StartsWith("script-src", Ordinal));
            Assert.DoesNotContain(
                PageText.Parse(answer.Body).Elements, e => e.Attributes.ContainsKey("style"));
            Assert.Equal(["nosniff"], answer.Headers.GetValues("X-Content-Type-Options"));
            Assert.Equal(["no-referrer"], answer.Headers.GetValues("Referrer-Policy"));
            Assert.True(answer.Headers.CacheControl?.NoStore);
        }
    }

    [GeneratedRegex("<style>(.*?)</style>", RegexOptions.Singleline)]
    private static partial Regex StyleElement();

    [Fact]
    public async Task NoAnswerContainsASecret()
    {
        string[] secrets =
            ["pw-of-alertmanager", "pw-of-onix", Web.SecretField, Web.StreamField, Web.ClientField];
        await using var host = Host.Serving("--auth-mode", "basic", "--password", secrets[0],
            "--onix-password", secrets[1]);
        var right = "Basic " + Convert.ToBase64String(Encoding.UTF8.GetBytes("admin:" + secrets[0]));
        var words = Enumerable.Range(0, 200).Select(i => Dialect.Alert(
            Node with { Location = $"n{i}" }, "down", Ago(2), "It is down"));
        Assert.Equal(204, (await host.PostAsync(Dialect.Payload([.. words]), authorization: right)).Code);
        var one = Target(Node with { Location = "n1" });
        foreach (var target in new[] { "/", "/?search=n1", one, "/?x=y", "/service" })
        {
            foreach (var authorization in new[] { right, null })
            {
                var answer = await host.SendAsync(HttpMethod.Get, target, authorization: authorization);
                Assert.Equal(authorization == null, answer.Code == 401);
                Assert.Equal(authorization == null, answer.Headers.WwwAuthenticate.Count == 1);
                var said = $"{answer.Headers}{answer.ContentHeaders}{answer.Body}";
                Assert.DoesNotContain(secrets, s => said.Contains(s, OrdinalIgnoreCase));
                Assert.DoesNotContain(right["Basic ".Length..], said, Ordinal);
            }
        }
    }

    // ---- No label becomes markup ----

    private static readonly string[] Pieces =
    [
        "<script>alert(1)</script>", "</style>", "</title>", "</svg>", "<!--", "-->", "]]>", "<?x", "<", ">",
        "&", "&lt;", "&#60;", "&amp;amp;", "\"", "'", "\" onmouseover=\"alert(1)",
        "' autofocus onfocus='alert(1)", "=", "/", "\\", "`", "\0", "\u0001", "\u001b[31m", "\u007f",
        "\u0085", "\u009f", "\n", "\r\n", "\t", "\ud800", "\udfff", "\udfff\ud800", "😀", "\u202e", "\u2066",
        "\ufeff", "\ufffe", "\uffff", "\u2028", "\u00a0", "שלום", "مرحبا", "%00%0a", "javascript:alert(1)",
        "{0}", "{{", "../..", "?a=b&c#d", "+", " ", "x",
    ];

    private static readonly Gen<string> Hostile = Gen.OneOf(
        Gen.Int[0, Pieces.Length - 1].Select(i => Pieces[i]), Gen.Char.Select(c => c.ToString()),
        Gen.Int[0, 0x2ff].Select(c => ((char)c).ToString())).Array[1, 6].Select(string.Concat);

    /// <summary>Like the hostile, but for what it is made of.</summary>
    private static readonly string[] Tame = [.. Enumerable.Range(0, 10).Select(i => $"tame{i}")];

    [Theory]
    [InlineData("<p>a<b</p>")]
    [InlineData("<p>a & b</p>")]
    [InlineData("<p>a &nbsp; b</p>")]
    [InlineData("<p>a\u0001</p>")]
    [InlineData("<p>a")]
    [InlineData("<p><b>a</p></b>")]
    [InlineData("<p class=a>a</p>")]
    [InlineData("<p class=\"a\"b\">a</p>")]
    [InlineData("<p class=\"a\" class=\"b\">a</p>")]
    [InlineData("<p><!-- a --></p>")]
    public void MarkupThatIsNotWellFormedIsNoticed(string body) =>
        Assert.Throws<FormatException>(() => PageText.Parse("<!DOCTYPE html>" + body));

    [Fact]
    public void NoTextFromOutsideChangesTheMarkup()
    {
        var expected = Skeletons(Tame);
        Hostile.Array[Tame.Length].Sample(texts => Assert.Equal(expected, Skeletons(texts)),
            iter: 150, threads: 2);
    }

    [Fact]
    public void EveryTextFromOutsideIsShownAsItIs()
    {
        Hostile.Array[Tame.Length].Sample(texts =>
        {
            var (all, one) = Pages(texts);
            var shown = texts.Select(Single).ToList();
            foreach (var page in new[] { all, one })
            {
                var told = page.All("bdi").Select(b => b.Text).ToHashSet();
                // Partition, platform, service, facet, location, description.
                Assert.All(shown[..6], t => Assert.Contains(t, told));
            }
            // Why Onix does not answer, why it refuses; an alert's name, reason.
            Assert.All(shown[6..], t => Assert.Contains(t, all.All("bdi").Select(b => b.Text)));
            var name = Dialect.Shown($"{texts[2]} {texts[3]} {texts[4]}");
            Assert.StartsWith(Single(Joined(name)), Single(Joined(all.All("svg").Single().Attributes["aria-label"])), Ordinal);
            Assert.Equal(Single(Joined($"{name} – SeS")), Single(Joined(one.TextOf("title"))));
        }, iter: 150, threads: 2);
    }

    /// <summary>Without the characters that set parts of a name apart.</summary>
    private static string Joined(string text) =>
        text.Replace("\u2068", "", Ordinal).Replace("\u2069", "", Ordinal);

    /// <summary>Else a name that is written from right to left turns what is beside it around.</summary>
    [Fact]
    public void EveryTextFromOutsideIsSetApartFromTheTextBesideIt()
    {
        var (all, one) = Markups(Tame);
        foreach (var page in new[] { all, one })
        {
            var body = InWords().Replace(page[page.IndexOf("<body>", Ordinal)..], "");
            Assert.All(Tame, t => Assert.DoesNotContain(t, body, Ordinal));
        }
    }

    /// <summary>Isolated text; attributes, and the text of pictures, which nothing stands beside.</summary>
    [GeneratedRegex("<bdi>.*?</bdi>|<title>.*?</title>|<[^>]*>", RegexOptions.Singleline)]
    private static partial Regex InWords();

    [Fact]
    public async Task WhateverAWebhookBringsThePagesStayWellFormedAndLinksLeadToTheService()
    {
        await using var host = Host.Serving();
        await Hostile.Array[7].SampleAsync(async texts =>
        {
            var partition = "/alerts/" + Escaped(texts[0] + "x");
            var service = new ServiceKey("", texts[1], texts[2], texts[3], texts[4]);
            var answer = await host.PostAsync(
                Dialect.Payload(Dialect.Alert(service, texts[5], Ago(1), texts[6])), partition);
            Assert.Contains(answer.Code, (int[])[200, 204, 404]);
        }, iter: 100, threads: 1);
        var page = await PageAsync(host, "/");
        Assert.All(page.Elements, e => Assert.DoesNotContain(
            e.Attributes.Keys, a => a.StartsWith("on", OrdinalIgnoreCase)));
        var links = page.All("a").Select(a => a.Attributes["href"])
            .Where(h => h.StartsWith("service?", Ordinal)).Distinct().ToList();
        Assert.InRange(links.Count, 20, 100);
        foreach (var link in links)
            await PageAsync(host, "/" + link);
        Assert.Single(page.All("section"), s => s.Text.StartsWith("Quarantined alerts", Ordinal));
    }

    [Theory]
    [InlineData("""{"labels":{"alertname":"half \ud800 pair"}}""")]
    [InlineData("""{"labels":{"alertname\ud800":"x"}}""")]
    [InlineData("""{"labels":{"\udfffalertname":"x","alertname":"Bad"}}""")]
    [InlineData("""{"labels":{"alertname":5}}""")]
    [InlineData("""{"labels":[],"labels\ud800":{}}""")]
    [InlineData("5")]
    public async Task AlertInQuarantineThatIsNoTextDoesNotTakeThePageAway(string alert)
    {
        await using var host = Host.Serving();
        Assert.Equal(200, (await host.PostAsync(Dialect.Payload(alert))).Code);
        var page = await PageAsync(host);
        Assert.Contains("1 alert could not be mapped to a service", page.All("section").Single().Text, Ordinal);
    }

    [Fact]
    public async Task SearchIsTextWhateverItIs()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 2));
        var expected = (await PageAsync(host, "/?search=tame")).Skeleton;
        await Hostile.SampleAsync(async text =>
        {
            var page = await PageAsync(host, "/?search=" + Escaped(text + "☃"));
            Assert.Equal(expected, page.Skeleton);
            Assert.Equal(Dialect.Shown(text + "☃"), page.All("input").Last().Attributes["value"]);
        }, iter: 300, threads: 1);
    }

    private static string Single(string text) => string.Join(
        ' ', Dialect.Shown(text).Split(' ', StringSplitOptions.RemoveEmptyEntries));

    private static (PageText All, PageText One) Pages(string[] texts)
    {
        var (all, one) = Markups(texts);
        return (PageText.Parse(all), PageText.Parse(one));
    }

    private static (string All, string One) Skeletons(string[] texts)
    {
        var (all, one) = Pages(texts);
        return (all.Skeleton, one.Skeleton);
    }

    /// <summary>
    /// The pages of a service that was down before and is again, with an Onix that is away and refuses it,
    /// and an alert in quarantine; each text has one place.
    /// </summary>
    private static (string All, string One) Markups(string[] texts)
    {
        var dir = Directory.CreateTempSubdirectory("ses-page-").FullName;
        var clock = new ManualClock(Host.Now);
        using var store = new Store(dir, StoreChild.Rules, clock,
            new Log(LogLevel.Error, json: false, TextWriter.Null, clock), new Meters("test", "test"));
        try
        {
            var service = new ServiceKey(texts[0], texts[1], texts[2], texts[3], texts[4]);
            var alerts = new[] { ("up", 9.0), ("down", 5), ("up", 4), ("down", 1) }
                .Select(w => Site.Alert(service, w.Item1, Ago(w.Item2)) with { Description = texts[5] }).ToList();
            var aside = new UnmappableAlert("a", "f", texts[8], texts[9], Encoding.UTF8.GetBytes(
                $$$"""{"labels":{"alertname":{{{Dialect.Quoted(Dialect.Valid(texts[8]))}}}}}"""));
            store.AppendAsync(texts[0], new(alerts, [aside], 0, 0, 0, 0)).GetAwaiter().GetResult();
            var onix = new RecorderState(texts[6], null, 4, Ago(1), 1, texts[7], false);
            using var snapshot = store.ReadAsync().GetAwaiter().GetResult();
            StatusPage Page() => new(Questions.Of(snapshot),
                new DaemonState(onix, [new BarredService(service, Ago(1), texts[7])], "alerts", new([], [], [])), new PageQuery("24h", null));
            return (Whole(Page().All()), Whole(Page().One(service)!));
        }
        finally
        {
            store.Dispose();
            Directory.Delete(dir, recursive: true);
        }
    }

    private static string Whole(IEnumerable<ReadOnlyMemory<byte>> parts) =>
        new UTF8Encoding(false, throwOnInvalidBytes: true).GetString([.. parts.SelectMany(p => p.ToArray())]);
}
