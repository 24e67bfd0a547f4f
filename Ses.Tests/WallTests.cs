using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;
using Host = Ses.Tests.Support.Host;

namespace Ses.Tests;

/// <summary>The page for a screen across the room.</summary>
public sealed class WallTests
{
    private static async Task SayAsync(Host host, string platform, string service, string status, double minutesAgo) =>
        Assert.Equal(204, (await host.PostAsync(Dialect.Payload(Dialect.Alert(
            new ServiceKey("INS", platform, service, "http", ""), status, Host.Now.AddMinutes(-minutesAgo), "text")))).Code);

    private static async Task<(Answer Answer, PageText Page)> WallAsync(Host host)
    {
        var answer = await host.GetAsync("/wall");
        Assert.Equal(200, answer.Code);
        return (answer, PageText.Parse(answer.Body));
    }

    private static List<string> Tiles(PageText page) => [.. page.All("li")
        .Where(l => l.Attributes.GetValueOrDefault("class", "").StartsWith("is-", Ordinal)).Select(l => $"{l.Attributes["class"]}: {l.Text}")];

    [Fact]
    public async Task CountsTilesAndTheNewestOutagesAreOnOneScreen()
    {
        await using var host = Host.Serving("--title", "A & B");
        await SayAsync(host, "calm", "api", "up", 99);
        await SayAsync(host, "slow", "api", "degraded", 30);
        for (var i = 0; i < 7; i++)
            await SayAsync(host, i < 4 ? "bad" : "worse" + i, "s" + i, "down", 100 - (10 * i));
        await SayAsync(host, "bad", "fine", "up", 5);
        var (answer, page) = await WallAsync(host);
        Assert.Equal("✖ 7 down – A & B", page.TextOf("title"));
        var tiles = Tiles(page);
        Assert.Equal(["is-down: ✖7down", "is-degraded: ◆1degraded", "is-up: ✔2up"], tiles.Take(3).Select(t => t.Replace(" ", "", Ordinal).Replace(":", ": ", Ordinal)));
        Assert.StartsWith("is-down: ✖", tiles[3], Ordinal);
        Assert.Contains("bad", tiles[3], Ordinal);
        Assert.Contains("4 down", tiles[3], Ordinal);
        Assert.Equal(["is-down", "is-down", "is-down", "is-down", "is-degraded", "is-up"], tiles.Skip(3).Take(6).Select(t => t.Split(':')[0]));
        // The newest first, what is degraded among them.
        Assert.Equal(["degraded", "s6", "s5", "s4", "s3"], tiles.Skip(9).Select(t => Regex.Match(t, "s[0-9]|degraded").Value));
        Assert.Contains("since 11:20, 40 min", tiles[10], Ordinal);
        Assert.Equal("30", answer.Headers.GetValues("Refresh").Single());
        Assert.Contains("Not updated since 12:00:00", answer.Body, Ordinal);
        Assert.DoesNotContain("<script", answer.Body, OrdinalIgnoreCase);
        var style = Regex.Match(answer.Body, "<style>(.*?)</style>", RegexOptions.Singleline).Groups[1].Value;
        Assert.Contains($"style-src 'sha256-{Convert.ToBase64String(SHA256.HashData(Encoding.UTF8.GetBytes(style)))}'",
            answer.Headers.GetValues("Content-Security-Policy").Single(), Ordinal);
        Assert.Equal("./", page.All("a").Single().Attributes["href"]);
    }

    [Fact]
    public async Task PartitionStandsApartFromCountsWhereThereAreSeveral()
    {
        await using var host = Host.Serving();
        await SayAsync(host, "shop", "api", "down", 30);
        Assert.EndsWith("1 down", Tiles((await WallAsync(host)).Page)[1], Ordinal);
        var other = Dialect.Alert(new ServiceKey("WEB", "mail", "smtp", "tcp", ""), "down", Host.Now, "text");
        Assert.Equal(204, (await host.PostAsync(Dialect.Payload(other), "/alerts/WEB")).Code);
        Assert.Contains("is-down: ✖shop1 down · INS", Tiles((await WallAsync(host)).Page));
    }

    /// <summary>A tile of forty has room for about 26 characters a line, or less.</summary>
    [Fact]
    public async Task SmallTilesHaveSignsForCountsAndNamesWithTheirEnds()
    {
        await using var host = Host.Serving();
        var other = Dialect.Alert(new ServiceKey("WEB", "mail", "smtp", "tcp", ""), "down", Host.Now, "text");
        Assert.Equal(204, (await host.PostAsync(Dialect.Payload(other), "/alerts/WEB")).Code);
        await SayAsync(host, "a-platform-of-a-long-name", "api", "degraded", 30);
        Assert.Contains("is-degraded: ◆a-platform-of-a-long-name1 degraded · INS", Tiles((await WallAsync(host)).Page));
        for (var i = 0; i < 23; i++)
            await SayAsync(host, $"p{i}", "api", "up", 30);
        Assert.Contains("is-degraded: ◆a-platform-o…-a-long-name◆ 1 · INS", Tiles((await WallAsync(host)).Page));
        await SayAsync(host, "mail", "api", "down", 30);
        await SayAsync(host, "mail", "dns", "degraded", 30);
        Assert.Contains("is-down: ✖mail✖ 1 ◆ 1 · INS", Tiles((await WallAsync(host)).Page));
    }

    [Fact]
    public async Task WhereLittleIsDownWhatEndedLastIsShown()
    {
        await using var host = Host.Serving();
        Assert.Contains("No service yet", (await host.GetAsync("/wall")).Body, Ordinal);
        await SayAsync(host, "p", "api", "down", 60);
        await SayAsync(host, "p", "api", "up", 45);
        var tiles = Tiles((await WallAsync(host)).Page);
        Assert.Contains("no longer down", tiles[^1], Ordinal);
        Assert.Contains("since 11:15, after 15 min", tiles[^1], Ordinal);
    }

    [Fact]
    public async Task OfManyPlatformsTheWorstAreShownAndTheOthersAddedUp()
    {
        await using var host = Host.Serving();
        for (var i = 0; i < StatusPage.MostTiles; i++)
            await SayAsync(host, $"p{i:00}", "api", i == 37 ? "down" : "up", 60);
        Assert.Equal(StatusPage.MostTiles, Tiles((await WallAsync(host)).Page).Count(t => Regex.IsMatch(t, @"p\d\d.*(all 1 up|1 down)")));
        for (var i = 0; i < 5; i++)
            await SayAsync(host, $"q{i:00}", "api", "up", 60);
        var tiles = Tiles((await WallAsync(host)).Page);
        Assert.Contains("p37", tiles[2], Ordinal);
        Assert.Contains(tiles, t => t.Contains("and 6 more", Ordinal) && t.Contains("all 6 up", Ordinal));
        Assert.Equal(2 + StatusPage.MostTiles + 1, tiles.Count);
    }

    [Fact]
    public async Task LongNamesAreCut()
    {
        await using var host = Host.Serving();
        for (var i = 0; i < 60; i++)
            await SayAsync(host, new string('p', 150) + i, new string('s', 150) + i, "down", i);
        var (answer, page) = await WallAsync(host);
        Assert.DoesNotContain(new string('p', StatusPage.MostWallText + 1), answer.Body, Ordinal);
        Assert.DoesNotContain(new string('s', StatusPage.MostWallText + 1), answer.Body, Ordinal);
        Assert.InRange(answer.Body.Length, 5_000, 30_000);
        Assert.NotEmpty(Tiles(page));
    }

    [Fact]
    public async Task ItAsksAgainWhileSesStarts()
    {
        await using var host = Host.Starting();
        using var client = new HttpClient();
        using var request = new HttpRequestMessage(HttpMethod.Get, $"http://127.0.0.1:{host.Port}/wall");
        request.Headers.Accept.ParseAdd("text/html");
        using var answer = await client.SendAsync(request);
        Assert.Equal(503, (int)answer.StatusCode);
        Assert.Equal("10", answer.Headers.GetValues("Refresh").Single());
    }

    [Fact]
    public async Task ColoursHaveAContrastOfSevenAtLeast()
    {
        await using var host = Host.Serving();
        var style = Regex.Match((await host.GetAsync("/wall")).Body, "<style>(.*?)</style>", RegexOptions.Singleline).Groups[1].Value;
        var backs = Regex.Matches(style, "background:(#[0-9a-f]{3,6})").Select(m => m.Groups[1].Value).Distinct().ToList();
        Assert.InRange(backs.Count, 6, 20);
        // What is on colours is white; the others are on the page's back.
        Assert.All(backs, b => Assert.True(Contrast("#fff", b) >= 7, $"{b} {Contrast("#fff", b)}"));
        Assert.All(Regex.Matches(style, "[{;]color:(#[0-9a-f]{3,6})").Select(m => m.Groups[1].Value),
            c => Assert.True(Contrast(c, "#06080b") >= 7, c));
    }

    private static double Contrast(string one, string other)
    {
        double[] both = [Luminance(one), Luminance(other)];
        return (both.Max() + 0.05) / (both.Min() + 0.05);
    }

    private static double Luminance(string colour)
    {
        var digits = colour.Length == 4 ? string.Concat(colour[1..].Select(c => $"{c}{c}")) : colour[1..];
        double Part(int at)
        {
            var part = int.Parse(digits.AsSpan(at, 2), NumberStyles.HexNumber, CultureInfo.InvariantCulture) / 255.0;
            return part <= 0.04045 ? part / 12.92 : Math.Pow((part + 0.055) / 1.055, 2.4);
        }

        return (0.2126 * Part(0)) + (0.7152 * Part(2)) + (0.0722 * Part(4));
    }
}
