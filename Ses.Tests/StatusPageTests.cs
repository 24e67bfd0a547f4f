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
        Assert.Equal("No service yet", page.TextOf("strong"));
        Assert.Contains("curl -i http://HOST:PORT/hooks/ses/INS", page.TextOf("pre"), Ordinal);
        Assert.DoesNotContain("Platforms", page.All("h2").Select(h => h.Text));
    }

    private static string Banner(PageText page) => OfClass(page, "banner").Single().Text;

    private static IEnumerable<PageElement> OfClass(PageText page, string name) => page.Elements
        .Where(e => e.Attributes.GetValueOrDefault("class", "").Split(' ').Contains(name));

    private static List<string> Cards(PageText page) => [.. page.All("li")
        .Where(l => l.Attributes.GetValueOrDefault("class", "").StartsWith("is-", Ordinal)).Select(l => l.Text)];

    [Theory]
    [InlineData("up", "up", "✔ All 2 services are up", "✔ all up", "up")]
    [InlineData("up", "down", "✖ 1 down ✔ 1 up", "✖ 1 down", "down")]
    [InlineData("down", "down", "✖ All 2 services are down", "✖ 2 down", "down")]
    [InlineData("up", "degraded", "◆ 1 degraded ✔ 1 up", "◆ 1 degraded", "degraded")]
    [InlineData("down", "slow", "✖ 1 down ◆ 1 degraded", "✖ 1 down", "down")]
    [InlineData("up", "unknown", "? 1 unknown ✔ 1 up", "? 1 unknown", "unknown")]
    public async Task BannerTitleAndIconSayHowAllIs(string one, string other, string banner, string title, string kind)
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, (one, 2));
        await RecordAsync(host, Quorum, (other, 2));
        var page = await PageAsync(host);
        Assert.Equal(banner, Banner(page));
        Assert.Equal($"{title} – Service status", page.TextOf("title"));
        Assert.Equal($"banner {kind}", OfClass(page, "banner").Single().Attributes["class"]);
        var icons = new Dictionary<string, string>
        {
            ["up"] = "0f7a37",
            ["down"] = "8c0a14",
            ["degraded"] = "b27a00",
            ["unknown"] = "6e7681",
        };
        Assert.Contains($"fill='%23{icons[kind]}'", page.All("link").First().Attributes["href"], Ordinal);
    }

    [Fact]
    public async Task WhatIsDownIsShownWithItsBeginningAndReason()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 9), ("down", 2.5));
        var page = await PageAsync(host);
        Assert.Equal("✖ down since 09:30, 2 h 30 min etcd node in p01-dev n1:2379: It is down", Cards(page).Single());
    }

    [Fact]
    public async Task WhatBeganTogetherIsOneLineAndTheWorstAndNewestIsFirst()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Quorum, ("degraded", 0.5));
        foreach (var (platform, minutes) in new[] { ("p01-dev", 300.0), ("p02", 20), ("p02", 16), ("p02", 14.9), ("p02", 11) })
            await RecordAsync(host, Node with { Platform = platform, Location = $"n{minutes}" }, ("down", minutes / 60));
        await RecordAsync(host, Node with { Location = "old" }, ("down", 30));
        await RecordAsync(host, Node with { Service = "api", Platform = "p02", Location = "" }, ("down", 10.0 / 60));
        var page = await PageAsync(host);
        Assert.Equal(["In the last 24 hours", "For more than a day"], page.All("h3").Take(2).Select(h => h.Text));
        var cards = Cards(page);
        Assert.True(cards[0].StartsWith("✖ 3 down since 11:45, 14 min etcd × 2, api in p02 It is down Show all 3", Ordinal), cards[0]);
        Assert.StartsWith("✖ 2 down since 11:40, 20 min etcd node × 2 in p02", cards[1], Ordinal);
        Assert.StartsWith("✖ down since 07:00, 5 h 0 min etcd node in p01-dev n300", cards[2], Ordinal);
        Assert.StartsWith("◆ degraded since 11:30, 30 min etcd quorum", cards[3], Ordinal);
        Assert.StartsWith("✖ down since 2026-11-21 06:00, 1 d 6 h etcd node in p01-dev old", cards[4], Ordinal);
        Assert.Equal(3, page.All("details").First().Text.Split("since").Length - 1);
    }

    [Fact]
    public async Task AlikeAlertsAreOneLineAndLeadWithTheirName()
    {
        await using var host = Host.Serving();
        for (var i = 0; i < 3; i++)
        {
            Assert.Equal(204, (await host.PostAsync(Dialect.Payload($$"""
                {"status":"firing","labels":{"alertname":"KubePodNotReady","cluster":"k8s","namespace":"shop","pod":"api-{{i}}",
                "job":"kube-state-metrics","instance":"10.0.0.1:8080","severity":"critical"},
                "annotations":{"summary":"Pod shop/api-{{i}} is not ready"},"startsAt":"{{Rfc3339.Format(Ago(2 + i))}}"}
                """), "/alerts/INS")).Code);
        }
        var page = await PageAsync(host);
        Assert.StartsWith("✖ 3 down since 08:00, 4 h 0 min KubePodNotReady × 3 in k8s Pod shop/api-0 is not ready", Cards(page).Single(), Ordinal);
        Assert.Equal(["shop/api-0", "shop/api-1", "shop/api-2"],
            OfClass(await PageAsync(host, "/platform?partition=INS&platform=k8s"), "name").Select(n => n.Text.Split(' ')[1]));
    }

    [Fact]
    public async Task ServiceThatFlapsIsSaidToBeDownAgain()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 14), ("down", 13), ("up", 11.5), ("down", 5), ("up", 4), ("down", 2), ("up", 1.5), ("down", 1));
        Assert.StartsWith("✖ down since 11:00, 1 h 0 min, 3rd time today", Cards(await PageAsync(host)).Single(), Ordinal);
    }

    /// <summary>Where there is no style, as in lynx, only a space keeps them apart.</summary>
    [Fact]
    public async Task ChoicesDoNotRunTogetherInPlainText()
    {
        await using var host = Host.Serving();
        Assert.Equal(204, (await host.PostAsync(Dialect.Payload(Dialect.Alert(Node, "down", Ago(0), "It is down")))).Code);
        var body = (await host.GetAsync("/")).Body;
        Assert.Contains("<span aria-current=\"true\">platforms</span> <a href=\"./?show=down\">not up</a> <a", body, Ordinal);
        Assert.DoesNotMatch("</(a|span)><(a|span) (href|aria-)", body);
    }

    [Fact]
    public async Task WhatIsUnderMaintenanceNeedsNoAttentionAndAPersonsNoteStandsBesideTheRest()
    {
        await using var host = Host.Serving("--auth-mode", "basic", "--password", "p", "--editor-username", "e", "--editor-password", "q");
        async Task NoteAsync(string json) => Assert.Equal(201, (await host.SendAsync(HttpMethod.Post, "/alerts/INS/notes",
            json, Host.Basic("e", "q"))).Code);
        foreach (var (service, status) in new[] { (Node, "down"), (Quorum, "down"), (Node with { Platform = "p02" }, "down") })
        {
            var alert = Dialect.Alert(service, status, Ago(0), "It is " + status);
            Assert.Equal(204, (await host.PostAsync(Dialect.Payload(alert), "/alerts/INS", authorization: Host.Basic("admin", "p"))).Code);
        }
        await NoteAsync($$"""{"kind":"maintenance","from":"{{Rfc3339.Format(Host.Now)}}","to":"{{Rfc3339.Format(Host.Now.AddHours(2))}}","platform":"p02","text":"New disks <b>"}""");
        var next = Host.Now.AddDays(1);
        await NoteAsync($$"""{"kind":"maintenance","from":"{{Rfc3339.Format(next)}}","to":"{{Rfc3339.Format(next.AddHours(2))}}","platform":"p01*","text":"Upgrade"}""");
        await NoteAsync($$"""{"kind":"comment","from":"{{Rfc3339.Format(Host.Now)}}","facet":"node","platform":"p01-dev","text":"The provider works on it","author_name":"Ann"}""");
        host.Clock.Advance(TimeSpan.FromMinutes(3));
        var page = PageText.Parse((await host.SendAsync(HttpMethod.Get, "/", authorization: Host.Basic("admin", "p"))).Body);
        Assert.Equal("✖ 2 down ⚒ 1 under maintenance 2 platforms", Banner(page));
        var cards = Cards(page);
        Assert.Equal(3, cards.Count);
        Assert.Contains("comment: The provider works on it (Ann)", cards[0], Ordinal);
        Assert.Equal("⚒ 12:00 to 14:00 p02 New disks <b>", cards[1]);
        Assert.Equal($"⚒ {next:yyyy-MM-dd} 12:00 to 14:00 p01* Upgrade", cards[2]);
        Assert.Contains("⚒ 1 service under maintenance now", page.All("p").Select(p => p.Text));
    }

    [Fact]
    public async Task PastOutagesAreShownByDayWithTheirEndsAndLength()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 40), ("down", 30), ("up", 29), ("down", 5), ("up", 4.5), ("down", 1));
        await RecordAsync(host, Quorum, ("up", 40), ("down", 5.05), ("up", 4.6));
        foreach (var target in new[] { "/", "/outages", "/outages?partition=INS&platform=p01-dev", "/platform?partition=INS&platform=p01-dev" })
        {
            var page = await PageAsync(host, target);
            var list = page.All("ul").Where(u => u.Attributes.GetValueOrDefault("class") == "outages").Select(u => u.Text).ToList();
            Assert.Equal(2, list.Count);
            var place = target.Contains('?', Ordinal) ? "" : " in p01-dev";
            Assert.True(list[0].StartsWith($"06:57 – 07:30 33 min etcd × 2{place} It is down Show all 2 etcd node n1:2379 07:00, 30 min etcd quorum", Ordinal), list[0]);
            Assert.Equal($"06:00 – 07:00 1 h 0 min etcd node n1:2379{place} It is down", list[1]);
            Assert.Equal(["2026-11-22", "2026-11-21"], page.All("h3").Select(h => h.Text));
            Assert.Equal(["day/2026-11-22", "day/2026-11-21"],
                page.All("a").Select(a => a.Attributes["href"]).Where(h => h.StartsWith("day/", Ordinal)));
        }
        foreach (var (target, link) in new[] { ("/outages", "./?show=down"), ("/outages?partition=INS&platform=p01-dev", "platform?partition=INS&platform=p01-dev&show=down") })
        {
            var page = await PageAsync(host, target);
            Assert.Equal("✖ 1 down now: show it. Outages that have ended:", page.All("p").ElementAt(1).Text);
            Assert.Equal(link, LinkOf(page, "show it"));
        }
        Assert.DoesNotContain("down now", (await host.GetAsync("/outages?platform=p02")).Body, Ordinal);
        var day = await PageAsync(host, "/day/2026-11-22");
        Assert.Contains("11:00 – ✖ ongoing 1 h 0 min etcd node n1:2379 in p01-dev It is down", day.All("li").First().Text, Ordinal);
        static IEnumerable<string> Links(PageText page) => page.All("nav").Single().All("a").Select(a => a.Attributes["href"]);
        Assert.Equal(["../day/2026-11-21"], Links(day));
        Assert.Equal(["../day/2026-11-20", "../day/2026-11-22"], Links(await PageAsync(host, "/day/2026-11-21")));
        foreach (var link in day.All("a").Select(a => a.Attributes["href"]).Where(h => h.StartsWith("../s/", Ordinal)))
            await PageAsync(host, link[2..]);
        Assert.Contains("There were no outages.", (await PageAsync(host, "/day/2026-11-02")).All("p").Select(p => p.Text));
    }

    [Fact]
    public async Task OutagesGoOnToTheFirst()
    {
        await using var host = Host.Serving();
        var words = Enumerable.Range(0, 901).Select(i => (i % 2 == 0 ? "up" : "down", (i < 40 ? 2600 : 600) - (i / 2.0)));
        await RecordAsync(host, Node, [.. words]);
        var (target, times) = ((string?)"outages", new List<string>());
        while (target != null)
        {
            var page = await PageAsync(host, "/" + target);
            times.AddRange(page.All("ul").SelectMany(u => u.All("time")).Select(t => t.Attributes["datetime"]));
            target = page.All("a").SingleOrDefault(a => a.Text == "Earlier outages")?.Attributes["href"];
        }
        Assert.Equal(900, times.Distinct().Count());
    }

    [Fact]
    public async Task WorstPlatformsAreFirstAndServicesAreListedWhereTheyAreFew()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 2));
        await RecordAsync(host, Node with { Platform = "p02" }, ("up", 9), ("down", 2));
        await RecordAsync(host, Quorum with { Platform = "p02" }, ("up", 9));
        await RecordAsync(host, Node with { Platform = "p03" }, ("degraded", 2));
        var page = await PageAsync(host);
        Assert.Equal(["p02 2 services ✖ 1 down 88.888 % 1 of 2 was down", "p03 1 service ◆ 1 degraded 100.000 % none was down",
            "p01-dev 1 service ✔ all up 100.000 % none was down", "etcd node p01-dev n1:2379 100.000 %",
            "etcd node p02 n1:2379 ✖ down 77.777 %", "etcd quorum p02 100.000 %", "etcd node p03 n1:2379 ◆ degraded 100.000 %"],
            OfClass(page, "row").Select(r => r.Text));
        foreach (var row in OfClass(page, "row"))
            await PageAsync(host, "/" + row.Attributes["href"]);
        await RecordManyAsync(host, "up", 60, 0);
        Assert.Equal(4, OfClass(await PageAsync(host), "row").Count());
        Assert.Equal(["etcd node p02 n1:2379 ✖ down 77.777 %", "etcd node p03 n1:2379 ◆ degraded 100.000 %"],
            OfClass(await PageAsync(host, "/?show=down"), "row").Select(r => r.Text));
    }

    [Fact]
    public async Task SearchShowsServicesWithTheTextInANameAndKeepsItInTheForm()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 2));
        await RecordAsync(host, Quorum, ("up", 2));
        foreach (var target in new[] { "/?", "/platform?partition=INS&platform=p01-dev&" })
        {
            var page = await PageAsync(host, target + "search=QUORUM&range=7d");
            Assert.StartsWith("etcd quorum", Assert.Single(OfClass(page, "row")).Text, Ordinal);
            var fields = page.All("input").ToDictionary(i => i.Attributes["name"], i => i.Attributes["value"]);
            Assert.Equal(("7d", "QUORUM"), (fields["range"], fields["search"]));
            Assert.Equal(target.Contains("platform", Ordinal), fields.ContainsKey("platform"));
            Assert.All(page.All("a").Where(a => a.Text is "24h" or "30d" or "90d"),
                a => Assert.Contains("search=QUORUM", a.Attributes["href"], Ordinal));
        }
    }

    [Fact]
    public async Task SearchThatFindsNothingSaysSo()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 2));
        var page = await PageAsync(host, "/?search=%22%3Cb%3E%26");
        Assert.Contains("No service has “\"<b>&” in its names.", page.All("p").Select(p => p.Text));
        Assert.Empty(OfClass(page, "row"));
        Assert.Contains("✔ All services are up.", (await PageAsync(host, "/?show=down")).All("p").Select(p => p.Text));
    }

    /// <summary>It is 12:00: what begins now has no bar yet.</summary>
    [Theory]
    [InlineData("24h", 24, "2026-11-21T12:00:00Z")]
    [InlineData("7d", 168, "2026-11-15T12:00:00Z")]
    [InlineData("30d", 30, "2026-10-24T00:00:00Z")]
    [InlineData("90d", 90, "2026-08-25T00:00:00Z")]
    public async Task RangeIsThatOfTheStripsAndLinks(string range, int bars, string from)
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 24 * 100), ("down", 2), ("up", 1));
        var page = await PageAsync(host, Target(Node, "&range=" + range));
        Assert.Equal($"0 0 {bars} 100", OfClass(page, "tall").Single().Attributes["viewBox"]);
        Assert.Equal("1 outage, 1 h 0 min", OfClass(page, "tall").Single().Attributes["aria-label"]);
        Assert.Equal(from, OfClass(page, "ticks").Single().All("span").First().All("time").Single().Attributes["datetime"]);
        Assert.Equal(range, page.All("span").Single(s => s.Attributes.ContainsKey("aria-current")).Text);
        page = await PageAsync(host, "/?range=" + range);
        var more = range == "30d" ? "" : "&range=" + range;
        Assert.All(OfClass(page, "row"), r => Assert.Equal(more == "", !r.Attributes["href"].EndsWith("range=" + range, Ordinal)));
        Assert.Equal(range == "30d" ? 0 : 1, page.All("input").Count(i => i.Attributes.GetValueOrDefault("value") == range && range != "30d"));
    }

    [Fact]
    public void BarsAreWholeHoursAndDaysOfTheZone()
    {
        var berlin = Zone.Parse("Europe/Berlin");
        // Clocks went back on 2026-10-25, at 01:00 UTC.
        var now = new DateTime(2026, 10, 26, 8, 30, 0, DateTimeKind.Utc);
        var days = StatusPage.EdgesOf("30d", berlin, now);
        Assert.Equal((31, now), (days.Count, days[^1]));
        Assert.Equal(TimeSpan.FromHours(25), days[^2] - days[^3]);
        Assert.All(days.SkipLast(1), d => Assert.Equal(TimeSpan.Zero, berlin.Local(d).TimeOfDay));
        var hours = StatusPage.EdgesOf("24h", Zone.Parse("Asia/Kolkata"), now);
        Assert.Equal((25, now), (hours.Count, hours[^1]));
        // 08:30 is 14:00 there.
        Assert.Equal(now.AddHours(-1), StatusPage.EdgesOf("24h", Zone.Parse("Asia/Kolkata"), now.AddMilliseconds(-1))[^2]);
        Assert.All(hours.SkipLast(1), h => Assert.Equal(0, Zone.Parse("Asia/Kolkata").Local(h).Minute));
        Assert.All(PageQuery.Ranges.Keys, r => Assert.Equal(StatusPage.EdgesOf(r, berlin, now).Order().Distinct(), StatusPage.EdgesOf(r, berlin, now)));
    }

    [Fact]
    public async Task BarIsAsHighAsItsShareThatWasDownAndUnknownTimeIsLeftOut()
    {
        await using var host = Host.Serving();
        // 12 h of the 21st, 0.36 s of the 20th, all of the 19th; nothing is known before the 18th.
        await RecordAsync(host, Node, ("up", 108), ("down", 84), ("up", 60), ("down", 59), ("up", 59 - 0.0001), ("down", 36), ("up", 24), ("degraded", 6));
        var page = await PageAsync(host, Target(Node));
        var paths = OfClass(page, "tall").Single().All("path").ToDictionary(p => p.Attributes["class"], p => p.Attributes["d"]);
        Assert.Equal("M25 50h5", paths["b"]);
        Assert.Equal(("M28 50v50", "M26 50h1"), (paths["d"], paths["d a"]));
        Assert.Equal("M27 93h1", paths["l"]);
        Assert.Equal("M29 50v50", paths["g"]);
        Assert.False(paths.ContainsKey("m"));
        Assert.Equal("Down on 2026-11-21 2026-11-20 2026-11-19", page.All("p").Single(p => p.Text.StartsWith("Down on", Ordinal)).Text);
        Assert.Equal(30, OfClass(page, "hit").Count());
    }

    [Fact]
    public async Task PageOfAServiceHasItsOutagesAndMonths()
    {
        await using var host = Host.Serving("--slo", "99.9");
        await RecordAsync(host, Node, ("up", 24 * 40), ("down", 24 * 30), ("up", 24 * 30 - 0.5), ("down", 3), ("up", 2.75), ("down", 1));
        await RecordAsync(host, Quorum, ("down", 5));
        var page = await PageAsync(host, Target(Node, "&at=2026-11-22T09:10:00Z"));
        Assert.Equal("✖ down since 11:00, 1 h 0 min", Banner(page));
        var pairs = page.All("ul").Last().All("li").ToList();
        Assert.Equal(["11:00 – ✖ ongoing 1 h 0 min It is down", "09:00 – 09:15 15 min It is down"], pairs.Take(2).Select(p => p.Text));
        Assert.Equal("marked", Assert.Single(pairs, p => p.Attributes.ContainsKey("class")).Attributes["class"]);
        Assert.Equal("at", pairs[1].Attributes["id"]);
        var rows = page.All("tr").Select(r => string.Join('|', r.Within.Where(c => c.Name is "th" or "td").Select(c => c.Text))).ToList();
        Assert.Equal(["Month|Availability|Adjusted|Down|Outages|Coverage|Objective 99.9 %", "2026-11|99.757 %|99.757 %|1 h 15 min|2|100.000 %|✖ missed",
            "2026-10|99.887 %|99.887 %|30 min|1|100.000 %|✖ missed"], rows);
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
        foreach (var link in page.All("a").Where(a => a.Text is "feed" or "Badge" or "All outages of this service"))
            Assert.Equal(200, (await host.GetAsync("/" + link.Attributes["href"])).Code);
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

    [Fact]
    public async Task EveryTimeHasItsMachineReadableTwin()
    {
        await using var host = Host.Serving("--tz", "Europe/Berlin");
        await RecordAsync(host, Node, ("up", 50), ("down", 45), ("up", 44), ("down", 1));
        foreach (var target in new[] { "/", Target(Node), "/outages", "/platform?partition=INS&platform=p01-dev" })
        {
            var page = await PageAsync(host, target);
            Assert.NotEmpty(page.All("time"));
            Assert.All(page.All("time"), t =>
            {
                Assert.True(Rfc3339.TryParse(t.Attributes["datetime"], out var utc));
                Assert.EndsWith(t.Text, $"{Zone.Parse("Europe/Berlin").Local(utc):yyyy-MM-dd HH:mm}", Ordinal);
            });
            Assert.Contains(page.All("p"), p => p.Text.Contains("as of 13:00 Europe/Berlin", Ordinal));
        }
    }

    // ---- The line that renews itself ----

    [Fact]
    public async Task LiveLineTellsWhatHasChangedSinceThePageWasMade()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 5));
        await RecordAsync(host, Node with { Platform = "p02" }, ("up", 5));
        var pages = new List<string> { "/", "/platform?partition=INS&platform=p01-dev&show=down&search=n1", Target(Node, "&range=7d"), "/platform?partition=INS&platform=p02" };
        var lines = new List<string>();
        foreach (var page in pages)
            lines.Add("/" + (await PageAsync(host, page)).All("iframe").Single().Attributes["src"]);
        Assert.All(await Task.WhenAll(lines.Select(l => PageAsync(host, l))),
            p => Assert.Equal("No change since 12:00:00. Checked at 12:00:00 ✖ Not updated since 12:00:00", p.TextOf("body")));
        host.Clock.Advance(TimeSpan.FromMinutes(1));
        // It is heard of later than it was: before the page was made.
        var alert = Dialect.Alert(Node, "down", Host.Now.AddSeconds(-30), "It is down");
        Assert.Equal(204, (await host.PostAsync(Dialect.Payload(alert), "/alerts/INS")).Code);
        for (var i = 0; i < pages.Count; i++)
        {
            var answer = await host.GetAsync(lines[i]);
            var text = PageText.Parse(answer.Body);
            Assert.Equal("30", answer.Headers.GetValues("Refresh").Single());
            Assert.Contains("frame-ancestors 'self'", answer.Headers.GetValues("Content-Security-Policy").Single(), Ordinal);
            Assert.InRange(answer.Body.Length, 1, 10_000);
            if (i == 3)
            {
                Assert.StartsWith("No change", text.TextOf("body"), Ordinal);
                continue;
            }
            Assert.StartsWith("1 change since 12:00:00, show it Checked at 12:01:00", text.TextOf("body"), Ordinal);
            var link = text.All("a").Single();
            Assert.Equal("_top", link.Attributes["target"]);
            Assert.Equal(pages[i], link.Attributes["href"] == "./" ? "/" : "/" + link.Attributes["href"]);
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
            if (count > 0)
                Assert.Equal(204, (await host.PostAsync(Dialect.Payload([.. alerts]), "/alerts/INS")).Code);
        }
    }

    private static List<string> RowsOf(PageText page) =>
        [.. OfClass(page, "row").Select(r => LocationIn(r.Text)).Where(t => t != "")];

    private static string LocationIn(string row) => Location().Match(row).Value;

    [GeneratedRegex("n[0-9]{4}")]
    private static partial Regex Location();

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
            Assert.Equal("✔ All 401 services are up 2 platforms", Banner(page));
            Assert.Equal(rows.Count == 0 ? null : "./?range=7d&search=N", LinkOf(page, "First services"));
            rows.Add(RowsOf(page));
            target = LinkOf(page, "Next services");
        }
        Assert.All(rows.SkipLast(1), r => Assert.InRange(r.Count, 100, StatusPage.MostRows));
        Assert.Equal([.. Enumerable.Range(0, 250), .. Enumerable.Range(0, 151)],
            rows.SelectMany(r => r).Select(l => int.Parse(l[1..], CultureInfo.InvariantCulture)));
    }

    [Fact]
    public async Task FewServicesHaveNoLinksToPages()
    {
        await using var host = Host.Serving();
        await RecordManyAsync(host, "up", 100, 0);
        var page = await PageAsync(host, "/platform?partition=INS&platform=p01");
        Assert.Equal(100, RowsOf(page).Count);
        Assert.DoesNotContain(page.All("nav"), n => n.Attributes["aria-label"] == "Pages of services");
        page = await PageAsync(host, "/platform?partition=INS&platform=p01&offset=100");
        Assert.Empty(RowsOf(page));
        Assert.Contains("There are no further services.", page.All("p").Select(p => p.Text));
        Assert.Equal("platform?partition=INS&platform=p01", LinkOf(page, "First services"));
    }

    [Fact]
    public async Task WhatNeedsAttentionIsBoundedAndTheRestIsALinkAway()
    {
        await using var host = Host.Serving();
        await RecordManyAsync(host, "down", 203, 0);
        for (var i = 0; i < 60; i++)
            await RecordAsync(host, Node with { Platform = $"q{i:00}" }, ("down", i < 45 ? 3 : 30));
        var page = await PageAsync(host);
        Assert.Equal("✖ All 263 services are down 61 platforms", Banner(page));
        var cards = Cards(page);
        Assert.Equal(50, cards.Count);
        Assert.Contains("Show the latest 100", cards[0], Ordinal);
        Assert.Equal("11 more services that are not up", page.All("a").First(a => a.Attributes["href"] == "./?show=down").Text);
        Assert.InRange(OfClass(await PageAsync(host, "/?show=down"), "row").Count(), 100, StatusPage.MostRows);
    }

    [Fact]
    public async Task OutagesAndPartitionsThatAreLeftOutAreToldOf()
    {
        await using var host = Host.Serving();
        var words = Enumerable.Range(0, 430).Select(i => (i % 2 == 0 ? "down" : "up", 40 - (i / 12.0)));
        await RecordAsync(host, Node, [.. words]);
        for (var i = 0; i < 22; i++)
            await RecordAsync(host, Node with { Partition = $"P{i}" }, ("up", 1));
        var page = await PageAsync(host);
        Assert.Equal("outages", LinkOf(page, "All outages"));
        Assert.Equal(10, page.All("ul").Where(u => u.Attributes.GetValueOrDefault("class") == "outages").SelectMany(u => u.All("li")).Count());
        Assert.Contains("There are more.", page.All("p").Select(p => p.Text));
        page = await PageAsync(host, Target(Node));
        Assert.Equal(100, page.All("ul").Last().All("li").Count());
    }

    [Fact]
    public async Task DayOfManyOutagesIsShownPageByPage()
    {
        await using var host = Host.Serving();
        await RecordManyAsync(host, "down", 120, 130);
        var (target, outages) = ("day/2026-11-22", new List<string>());
        for (var pages = 1; target != null; pages++)
        {
            var page = await PageAsync(host, "/" + target);
            outages.AddRange(page.All("details").SelectMany(d => d.All("li")).Select(l => l.Text));
            target = LinkOf(page, "Earlier outages of the day")?[3..];
            Assert.Equal(pages < 3, target != null);
        }
        Assert.Equal(250, outages.Count);
    }

    [Fact]
    public async Task ServiceWhoseNamesAreTooLongToRedirectToIsLinkedToByThem()
    {
        await using var host = Host.Serving();
        var name = new string('\u8a9e', 330);
        var service = new ServiceKey("INS", name, "s", name, name);
        await RecordAsync(host, service, ("up", 2));
        var links = (await PageAsync(host)).All("a").Where(a => a.Attributes.GetValueOrDefault("class") == "row").Select(a => a.Attributes["href"]);
        Assert.Equal("/" + links.Last(), Target(service));
        Assert.Equal(404, (await host.GetAsync("/s/" + PageQuery.ShortOf(service))).Code);
    }

    /// <summary>A customer's page of 306 services is to be small and soon there.</summary>
    [Fact]
    public async Task PagesOfManyServicesAreSmall()
    {
        await using var host = Host.Serving();
        for (var p = 0; p < 12; p++)
        {
            var alerts = Enumerable.Range(0, 26).SelectMany(i => new[] { ("up", 500.0), ("down", 300 - i), ("up", 299.0 - i), ("down", 90 + i), ("up", 89.5 + i), (i < 3 ? "down" : "up", 2 + (p / 4.0)) }
                .Select(w => Dialect.Alert(Node with { Platform = $"p{p:00}", Location = $"service-{i}.p{p:00}.example:443" }, w.Item1, Ago(w.Item2), "It does not answer: connection refused")));
            Assert.Equal(204, (await host.PostAsync(Dialect.Payload([.. alerts]), "/alerts/INS")).Code);
        }
        foreach (var target in new[] { "/", "/?show=all", "/?show=all&range=7d", "/platform?partition=INS&platform=p03", "/outages" })
        {
            var answer = await host.GetAsync(target);
            Assert.True(answer.Body.Length <= 100 * 1024, $"{target}: {answer.Body.Length}");
            Assert.InRange(PageText.Parse(answer.Body).Elements.Count, 1, 3000);
        }
    }

    private static string Long(string name, int length) => (name + string.Concat(Enumerable.Repeat("-production", length)))[..length];

    /// <summary>Of 40 platforms with names as they are given where there are many, most down, many flapping.</summary>
    private static async Task<int> RecordHundredsAsync(Host host)
    {
        var services = Enumerable.Range(0, 40).SelectMany(p => Enumerable.Range(0, 13).Select(i => new ServiceKey("INS", Long($"platform-{p:00}", 40),
            Long($"service-{i:00}", 80), Long("answers", 40), Long($"node-{i:00}.rack-{p:00}", 120) + ".example:443"))).ToList();
        foreach (var (p, platform) in services.GroupBy(s => s.Platform).Index())
        {
            var alerts = platform.SelectMany((s, i) => new[] { ("up", 900.0), ("down", 700), ("up", 699.0), ("down", 160 - i), ("up", 100 + i) }
                .Concat(Enumerable.Range(0, 8).Select(k => (k % 2 == 0 ? "down" : "up", 26.0 - (2 * k) + (p < 20 ? 0.1 * i : p / 100.0))))
                .Append((i % 4 == 0 ? "up" : i % 4 == 1 ? "degraded" : "down", 2 + (i / 10.0)))
                .Select(w => Dialect.Alert(s, w.Item1, Ago(w.Item2), string.Concat(Enumerable.Repeat("\"a\" ", 60)))));
            Assert.Equal(204, (await host.PostAsync(Dialect.Payload([.. alerts]), "/alerts/INS")).Code);
        }
        return services.Count;
    }

    private static async Task<PageText> SmallAsync(Host host, string target)
    {
        var body = (await host.GetAsync(target)).Body;
        Assert.True(Encoding.UTF8.GetByteCount(body) <= 100 * 1024, $"{target}: {Encoding.UTF8.GetByteCount(body)}");
        return PageText.Parse(body);
    }

    /// <summary>However many services there are, however they fare and are called; and none is left out.</summary>
    [Fact]
    public async Task PagesHaveAHundredKibibytesAtMostAndTheNextOnesHaveTheOthers()
    {
        await using var host = Host.Serving();
        var count = await RecordHundredsAsync(host);
        foreach (var (start, expected) in new[] { ("?range=24h", 40), ("?range=7d", 40), ("?range=90d", 40), ("?show=all", count),
            ("?show=all&range=7d", count), ("?show=down&range=7d", 40 * 9), ("?search=rack-07&range=7d", 13),
            ($"platform?partition=INS&platform={Long("platform-03", 40)}&range=7d", 13) })
        {
            var (rows, target) = (new List<string>(), (string?)start);
            while (target != null)
            {
                var page = await SmallAsync(host, "/" + target);
                rows.AddRange(OfClass(page, "row").Select(r => r.Attributes["href"]));
                target = (LinkOf(page, "Next services") ?? LinkOf(page, "Next platforms"))?.Replace("./", "", Ordinal);
            }
            Assert.Equal((start, expected, expected), (start, rows.Count, rows.Distinct().Count()));
        }
    }

    [Fact]
    public async Task PagesOfOutagesHaveAHundredKibibytesAtMostAndGoOnToTheFirst()
    {
        await using var host = Host.Serving();
        var count = await RecordHundredsAsync(host);
        foreach (var (start, next, expected) in new[] { ("outages", "Earlier outages", count * 6), ("day/2026-11-22", "Earlier outages of the day", -1),
            ($"outages?platform={Long("platform-03", 40)}", "Earlier outages", 13 * 6) })
        {
            var (links, target) = (new List<string>(), (string?)start);
            while (target != null)
            {
                var page = await SmallAsync(host, "/" + target);
                links.AddRange(page.All("a").Select(a => a.Attributes["href"]).Where(h => h.Contains("at=", Ordinal)));
                target = LinkOf(page, next)?.Replace("../", "", Ordinal);
            }
            Assert.Equal(links.Count, links.Distinct().Count());
            if (expected > 0)
                Assert.Equal(expected, links.Count);
        }
        await SmallAsync(host, "/" + OfClass(await PageAsync(host, "/?show=all&range=7d"), "row").First().Attributes["href"]);
    }

    [Fact]
    public async Task OutageThatJustBeganHasLastedLessThanASecond()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 2), ("down", 0.002 / 3600));
        Assert.Contains("less than 1 s", Cards(await PageAsync(host))[0], Ordinal);
        host.Clock.Advance(TimeSpan.FromMilliseconds(2345));
        Assert.Contains(", 2 s", Cards(await PageAsync(host))[0], Ordinal);
    }

    [Fact]
    public async Task ServicesOfOneNameAreToldApartByTheirPartitionAndLongNamesAreCutInTheirMiddle()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node with { Platform = new string('p', 160) + "last-words" }, ("up", 9), ("down", 8), ("up", 7), ("down", 2));
        Assert.Contains("in " + new string('p', 80) + "…" + new string('p', 70) + "last-words", Cards(await PageAsync(host))[0], Ordinal);
        await RecordAsync(host, Node, ("up", 9), ("down", 8), ("up", 7), ("down", 1));
        await RecordAsync(host, Node with { Partition = "WEB" }, ("up", 9), ("down", 8), ("up", 7), ("down", 1));
        var page = await PageAsync(host);
        Assert.Contains("p01-dev · INS", Cards(page)[0], Ordinal);
        Assert.Contains("p01-dev · WEB", Cards(page)[1], Ordinal);
        Assert.Contains(OfClass(page, "row"), r => r.Text.Contains("etcd node p01-dev WEB n1:2379", Ordinal));
        Assert.Contains(OfClass(page, "outages"), r => r.Text.Contains("in p01-dev · WEB", Ordinal));
    }

    // ---- Refusals and heads ----

    [Theory]
    [InlineData("/?range=1h", "range")]
    [InlineData("/?range=24h&range=7d", "range")]
    [InlineData("/?search=a&search=b", "search")]
    [InlineData("/?show=up", "show")]
    [InlineData("/outages?before=x", "before")]
    [InlineData("/service?at=x", "at")]
    [InlineData("/day/x", "day")]
    [InlineData("/day/2026-02-30", "day")]
    [InlineData("/day/0001-01-01", "day")]
    [InlineData("/now?at=x", "at")]
    [InlineData("/?offset=0", "offset")]
    [InlineData("/?offset=-1", "offset")]
    [InlineData("/?offset=two", "offset")]
    [InlineData("/?offset=2&offset=3", "offset")]
    [InlineData("/?offset=2147483648", "offset")]
    [InlineData("/service?partition=INS&range=x", "range")]
    public async Task UnusableParameterIsAnswered400AndNamed(string target, string name)
    {
        await using var host = Host.Serving();
        Assert.Matches($"^{name}[: ]", (await host.GetAsync(target)).Problem(400));
    }

    [Theory]
    [InlineData("n1 {pod=\"a\"}", true)]
    [InlineData("{pod=\"a\"}", true)]
    [InlineData("#7bb8bc45d3{}", true)]
    [InlineData("d{}", false)]
    [InlineData("{x}", false)]
    public void OnlyALocationWithLabelsHasThem(string location, bool hasLabels) =>
        Assert.Equal(hasLabels, new ServiceKey("INS", "p", "s", "f", location).HasLabels);

    [Fact]
    public async Task ParameterOfALinkFromElsewhereIsIgnored()
    {
        await using var host = Host.Serving();
        await RecordAsync(host, Node, ("up", 2));
        foreach (var target in new[] { "/?utm_source=mail&utm_source=x", "/?%3Cb%3E=1&platform=x", "/outages?fbclid=1", "/day/2026-11-22?before=-", Target(Node, "&x=1&page=0") })
            await PageAsync(host, target);
    }

    [Theory]
    [InlineData("/platform")]
    [InlineData("/platform?partition=INS&platform=p01")]
    [InlineData("/service")]
    [InlineData("/service?partition=INS&platform=p01-dev&service=etcd&facet=node")]
    [InlineData("/service?partition=INS&platform=p01-dev&service=ETCD&facet=node&location=n1:2379")]
    public async Task PlatformOrServiceThatIsNotKnownIsAnswered404(string target)
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
            await RecordAsync(host, Node with { Location = $"n{i}.a-rather-long-name-of-a-host.in-a-domain.example:443" }, ("up", 2));
        Assert.InRange((await host.GetAsync("/?show=all")).Body.Length, 64 * 1024 + 1, 1_000_000);
        for (var i = 0; i < Web.MaxUnfinished + 5; i++)
        {
            var answer = await host.SendAsync(HttpMethod.Head, "/?show=all");
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
        foreach (var target in new[] { "/", Target(Node), "/outages", "/day/2026-11-22", "/platform?partition=INS&platform=p01-dev" })
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
            Assert.Contains("frame-src 'self'", policy);
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
        var right = Host.Basic("admin", secrets[0]);
        var words = Enumerable.Range(0, 200).Select(i => Dialect.Alert(
            Node with { Location = $"n{i}" }, "down", Ago(2), "It is down"));
        Assert.Equal(204, (await host.PostAsync(Dialect.Payload([.. words]), authorization: right)).Code);
        var one = Target(Node with { Location = "n1" });
        foreach (var target in new[] { "/", "/?search=n1", one, "/?range=y", "/service", "/now", "/outages", "/platform", "/day/2026-11-22" })
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

    /// <summary>A note is not taken for a partition with U+0000 in its name.</summary>
    private static readonly Gen<string[]> Texts = Gen.Const(0).SelectMany(_ => Hostile!.Array[Tame!.Length])
        .Select(texts => texts.Select((t, i) => i == 0 ? Dialect.Valid(t).Replace('\0', '0') : t).ToArray());

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
        Texts.Sample(texts =>
        {
            var found = Skeletons(texts);
            Assert.Equal(expected.All.Split('\n'), found.All.Split('\n'));
            Assert.Equal(expected.One.Split('\n'), found.One.Split('\n'));
        },
            iter: 150, threads: 2);
    }

    [Fact]
    public void EveryTextFromOutsideIsShownAsItIs()
    {
        Texts.Sample(texts =>
        {
            var (all, one) = Pages(texts);
            var shown = texts.Select(Single).ToList();
            var told = one.All("bdi").Select(b => b.Text).ToHashSet();
            // Partition, platform, service, facet, location, description.
            Assert.All(shown[..6], t => Assert.Contains(t, told));
            told = all.All("bdi").Select(b => b.Text).ToHashSet();
            Assert.All(new[] { shown[1], shown[5] }, t => Assert.Contains(t, told));
            var name = Dialect.Shown($"{texts[2]} {texts[3]} {texts[4]}");
            Assert.Equal(Single(Joined($"✖ down: {name} – {texts[7]}")), Single(Joined(one.TextOf("title"))));
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
            .Where(h => h.StartsWith("s/", Ordinal) || h.StartsWith("platform?", Ordinal)).Distinct().ToList();
        Assert.InRange(links.Count, 20, 300);
        foreach (var link in links)
            await PageAsync(host, "/" + link);
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
    /// The pages of a service that was down before and is again, of which a person says something, under a title;
    /// each text has one place.
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
                .Select(w => Site.Alert(service, w.Item1, Ago(w.Item2)) with { Description = texts[5], Labels = """{"a":"b"}""" }).ToList();
            store.AppendAsync(texts[0], new(alerts, [], 0, 0, 0, 0)).GetAwaiter().GetResult();
            store.AddAsync((writer, now) => NoteBook.Add(writer, new NoteDraft(null, null, new HashSet<string>())
            {
                Kind = NoteKind.Comment,
                From = Ago(2),
                Text = Dialect.Valid(texts[6] + ".").Replace('\0', ' '),
            }, Dialect.Valid(texts[0]), "editor", now)).GetAwaiter().GetResult();
            using var snapshot = store.ReadAsync().GetAwaiter().GetResult();
            string Page(PageKind kind, ServiceFilter names) => Whole(new StatusPage(Questions.Of(snapshot),
                new PageSettings(texts[7], "alerts", Counting.Plain), new PageQuery(kind, names)).Parts()!);
            return (Page(PageKind.Overview, new(null, null, null, null, null)),
                Page(PageKind.Service, new(service.Partition, service.Platform, service.Service, service.Facet, service.Location)));
        }
        finally
        {
            store.Dispose();
            Directory.Delete(dir, recursive: true);
        }
    }

    /// <summary>A page that would look as ever while SeS takes nothing tells it; why is not for everybody.</summary>
    [Theory]
    [InlineData("Overview")]
    [InlineData("Wall")]
    [InlineData("Platform")]
    public async Task PagesSayThatNoAlertsAreTaken(string page)
    {
        var kind = Enum.Parse<PageKind>(page);
        await using var host = Host.Serving();
        await host.Store.AppendAsync("INS", StoreChild.Body(Site.Alert(Site.Service(1), "down", Ago(1))));
        using var snapshot = await host.Store.ReadAsync();
        string Page(string? refusal, Audience? audience) => Whole(new StatusPage(Questions.Of(snapshot, audience: audience),
            new PageSettings("T", "alerts", Counting.Plain, refusal),
            new PageQuery(kind, new("INS", kind == PageKind.Platform ? "p1" : null, null, null, null))).Parts()!);
        var everybody = new Audience(new HashSet<string> { "INS" });
        const string Notice = "? SeS is not accepting alerts now.";
        Assert.DoesNotContain(Notice, Page(null, null), StringComparison.Ordinal);
        Assert.Contains(Notice + "</b> The disk is full.", Page("The disk is full.", null), StringComparison.Ordinal);
        Assert.Contains(Notice, Page("The disk is full.", everybody), StringComparison.Ordinal);
        Assert.DoesNotContain("disk", Page("The disk is full.", everybody), StringComparison.Ordinal);
    }

    private static string Whole(IEnumerable<ReadOnlyMemory<byte>> parts) =>
        new UTF8Encoding(false, throwOnInvalidBytes: true).GetString([.. parts.SelectMany(p => p.ToArray())]);
}
