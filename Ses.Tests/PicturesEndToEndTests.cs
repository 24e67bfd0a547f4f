using System.Security.Cryptography;
using System.Text;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>
/// The pictures in the documents show the pages as they are now: each is made from recorded facts, with a clock
/// that stands still, and the digest of the page that it shows is kept beside it. <c>make pictures</c> makes them anew.
/// </summary>
[Trait("Category", "E2E")]
public sealed class PicturesEndToEndTests
{
    /// <summary>When they are taken, counted from <see cref="Host.Now"/>: 26 minutes into an incident.</summary>
    private static readonly TimeSpan Later = new(4, 24, 0);

    /// <summary>Of a page without problems: platforms whose services are all up.</summary>
    private static readonly string[] Calm = ["core-stage", "us1-edge"];

    private static readonly string Facts = Path.Combine(Project.Folder, "Ses.Tests/Data/pages/facts.jsonl");
    private static readonly string Digests = Path.Combine(Project.Folder, "Ses.Tests/Data/pages/SHA256SUMS");
    private static readonly string Pictures = Path.Combine(Project.Folder, "docs/page");

    private sealed record Picture(string Name, string Target, int Width, int Height, string Scheme = "light");

    private static readonly Picture[] Busy =
    [
        new("overview", "", 1100, 1440), new("dark", "", 1100, 1440, "dark"), new("phone", "", 360, 760, "dark"),
        new("wide", "", 2560, 1150), new("wall", "wall", 1280, 720), new("outages", "outages", 1280, 640),
        new("day", "day/2026-11-22", 1280, 640),
        new("service", "service?partition=INS&platform=eu1-edge&service=dns&facet=http&location=dns-1.eu1-edge.example:443", 1280, 1000),
    ];

    /// <summary>Fails when a page has changed and its picture has not: run make pictures, and look at them.</summary>
    [Fact]
    public async Task PicturesShowThePagesAsTheyAre()
    {
        var shown = new SortedDictionary<string, string>(StringComparer.Ordinal);
        await using var browser = await Browser.StartAsync();
        await SeeAsync(browser, await File.ReadAllTextAsync(Facts), Busy, shown);
        var calm = (await File.ReadAllLinesAsync(Facts)).Where(line => line.Contains("\"alive\"", Ordinal) || Calm.Any(p => line.Contains($"\"platform\":\"{p}\"", Ordinal)));
        await SeeAsync(browser, string.Join('\n', calm), [new("calm", "", 900, 460)], shown);
        await using (var starting = Host.Starting())
            await SeeAsync(browser, starting.Port, new("starting", "", 1280, 200), shown);

        var digests = string.Concat(shown.Select(s => $"{s.Value}  {s.Key}\n"));
        if (IsMaking)
            await File.WriteAllTextAsync(Digests, digests);
        var stale = digests.Split('\n').Except(await File.ReadAllLinesAsync(Digests)).Select(line => line.Split(' ')[^1]).Where(name => name != "");
        Assert.True(!stale.Any(), $"{string.Join(", ", stale)} changed since the pictures in docs/page were made: run make pictures, and look at them.");
        Assert.Equal(shown.Keys.Where(name => name.EndsWith(".png", Ordinal)), Directory.GetFiles(Pictures).Select(Path.GetFileName).Order(StringComparer.Ordinal));
    }

    private static bool IsMaking => Environment.GetEnvironmentVariable("SES_PICTURES") == "1";

    /// <summary>Imports facts into a new SeS and takes pictures of it.</summary>
    private static async Task SeeAsync(
        Browser browser, string facts, IEnumerable<Picture> pictures, SortedDictionary<string, string> shown)
    {
        await using var host = Host.Serving("--slo", "99.5", "--import-password", "secret");
        host.Clock.Advance(Later);
        var answer = await host.PostAsync(facts, "/import", Host.Basic("import", "secret"));
        Assert.True(answer.Code == 200, answer.Body);
        foreach (var picture in pictures)
            await SeeAsync(browser, host.Port, picture, shown);
    }

    private static async Task SeeAsync(Browser browser, int port, Picture picture, SortedDictionary<string, string> shown)
    {
        await browser.ResizeAsync(picture.Width, picture.Height);
        await browser.PreferAsync(picture.Scheme);
        await browser.OpenAsync(new Uri($"http://127.0.0.1:{port}/{picture.Target}"));
        var path = Path.Combine(Pictures, picture.Name + ".png");
        if (IsMaking)
        {
            await File.WriteAllBytesAsync(path, await browser.PictureAsync(whole: false));
            // A quarter of the size, and nobody sees the difference.
            await Project.RunAsync(TimeSpan.FromMinutes(1), "pngquant", "--force", "--strip", "--output", path, "64", path);
        }
        var page = (await browser.RunAsync("return document.documentElement.outerHTML")).GetString()!;
        shown.Add(picture.Name + ".html", Digest(Encoding.UTF8.GetBytes(page)));
        shown.Add(picture.Name + ".png", Digest(await File.ReadAllBytesAsync(path)));
    }

    private static string Digest(byte[] bytes) => Convert.ToHexStringLower(SHA256.HashData(bytes));
}
