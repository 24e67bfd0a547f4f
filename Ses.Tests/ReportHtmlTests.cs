using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;
using static Ses.Tests.Support.Made;

namespace Ses.Tests;

/// <summary>Reports as documents: what stands in them, and that they can be made again and proved.</summary>
public sealed partial class ReportHtmlTests : IDisposable
{
    private readonly string _directory = Directory.CreateTempSubdirectory("ses-report").FullName;
    private readonly ManualClock _clock = new(AsOf);

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    private static string Page(params ReportChapter[] chapters) => Encoding.UTF8.GetString(ReportPage.Of(chapters).Span);

    // ---- What it says ----

    [Fact]
    public void PartsStandInTheirOrder()
    {
        var page = Page(Chapter());
        Assert.NotEmpty(PageText.Parse(page).Elements);
        string[] parts =
        [
            "Availability of <bdi>shop</bdi>", "October 2026, Europe/Berlin, all hours, objective 99.9 %", "From 2026-10-01 00:00 to 2026-11-01 00:00",
            "As of 2026-11-01 08:00", "<code>ses report --partition INS", "10 of 12 met, 1 missed, 1 met with only 93.2 % of its time known.",
            "<h2>Services</h2>", "checkout http", "<svg role=\"img\"", "all 12 services", "<h2>Outages</h2>",
            "maintenance 22:00 to 02:00 (announced 2026-10-06)", "<h2>Notes</h2>", "<h2>Gaps</h2>", "SeS was away",
            "Watchdog of INS is silent", "<h2>How the figures are calculated</h2>", "Signature", "SeS 1.0.0; pause 15m", new string('a', 64),
            "ses export --from 2026-09-30T22:00:00Z --as-of 2026-11-01T07:00:00Z | sha256sum",
        ];
        var at = 0;
        foreach (var part in parts)
        {
            var next = page.IndexOf(part, at, Ordinal);
            Assert.True(next >= 0, $"{part} does not come next");
            at = next + part.Length;
        }
        Assert.Equal(3, page.Split("How the figures are calculated")[1].Split("</p>")[0].Split("<br>").Length - 1);
    }

    [Fact]
    public void NotesHaveAllVersions()
    {
        var notes = PageText.Parse(Page(Chapter())).All("li").Select(l => l.Text).ToList();
        Assert.Equal(
            [
                "comment 2026-10-01 02:00, no end, platform shop, k1 1. a <b>new</b> provider 2026-10-01 02:00, no end; ed, received 2026-10-01 02:00, announced",
                "maintenance 2026-10-10 22:00 to 2026-10-11 02:00, platform shop, service db, m1 "
                    + "1. upgrade of the database 2026-10-10 22:00 to 2026-10-11 02:00; ed, received 2026-10-06 10:00, announced "
                    + "2. upgrade to 17 2026-10-10 22:00 to 2026-10-11 02:00; ed, received 2026-10-07 10:00, announced",
                "correction (up) 2026-10-13 12:00 to 2026-10-13 12:03, platform shop, service login, c1 "
                    + "1. the alert's own fault 2026-10-13 12:00 to 2026-10-13 12:03; ed, received 2026-10-13 13:00, added afterwards",
                "maintenance 2026-10-20 22:00 to 2026-10-21 00:00, platform shop, service mail withdrawn, m2 "
                    + "1. new disks 2026-10-20 22:00 to 2026-10-21 00:00; ed, received 2026-10-16 10:00, announced "
                    + "2. postponed 2026-10-20 22:00 to 2026-10-21 00:00; ed, received 2026-10-19 10:00, withdrawn",
                "excluded 2026-10-21 14:00 to 2026-10-21 15:00, platform shop, service checkout, e1 "
                    + "1. the provider's 2026-10-21 14:00 to 2026-10-21 15:00; ed, Jane Doe, received 2026-10-22 08:30, added afterwards",
            ], notes.Select(n => BlanksPattern().Replace(n, " ").Replace(" , ", ", ", Ordinal).Trim()));
        // What was withdrawn, and not why.
        Assert.Equal(["maintenance 2026-10-20 22:00 to 2026-10-21 00:00, platform shop, service mail", "new disks"],
            PageText.Parse(Page(Chapter())).All("s").Select(s => BlanksPattern().Replace(s.Text, " ").Trim()));
    }

    [Fact]
    public void NothingOfStrangersBecomesMarkup()
    {
        const string Evil = "</bdi><script>alert(1)</script><a href='x' \"y\"&\u0007";
        PageText Of(string text)
        {
            var key = new ServiceKey(text, text, text, text, text);
            var version = new NoteVersion("id", NoteKind.Correction, From, null, new(text, text, text, text, text), text, text, text, text, false, From);
            var note = new Note([version, version with { IsWithdrawn = true }]);
            var report = PlatformReport.All(Counting(), AsOf, [Row(key)], [Outage(key, "2026-10-21T12:05", null, note)]).Single();
            return PageText.Parse(Page(new ReportChapter(report, new(AsOf, text, text, text, text, text), [note],
                [new(From, To, text)], new Dictionary<ServiceKey, Strip> { [key] = new(From, To, 10) })));
        }
        Assert.Equal(Of("plain").Skeleton, Of(Evil).Skeleton);
        Assert.Empty(Of(Evil).All("script"));
    }

    [Fact]
    public void PageNeedsNothingFromElsewhere()
    {
        var page = Page(Chapter(), Chapter(Report(slo: null)));
        Assert.DoesNotMatch("(src=|@import|https?:|<script|url\\((?!#))", page);
        Assert.Equal(["data:,"], HrefPattern().Matches(page).Select(m => m.Groups[1].Value));
        Assert.Equal(2, PageText.Parse(page).All("section").Count());
        // Of a platform without an objective there is nothing to be met.
        Assert.DoesNotContain("OBJECTIVE", page.Split("<section>")[2], Ordinal);
    }

    /// <summary>Shades alone would not be told apart on paper.</summary>
    [Fact]
    public void StripsDifferInHeight()
    {
        var strip = new Strip(From, From.AddHours(5), 5);
        foreach (var (i, status) in new[] { Status.Up, Status.Down, Status.Unknown, (Status)9 }.Index())
            strip.Add(From.AddHours(i), From.AddHours(i + 1), status);
        var chapter = Chapter(PlatformReport.All(Counting(), AsOf, [Row(Key("a"))], []).Single());
        var page = Page(chapter with { Strips = new Dictionary<ServiceKey, Strip> { [Key("a")] = strip } });
        Assert.Equal(["up 0 55", "down 1 100", "unknown 2 20", "other 3 80"], PageText.Parse(page).All("rect").Where(r => r.Attributes.ContainsKey("x"))
            .Select(r => $"{r.Attributes["class"]} {r.Attributes["x"]} {r.Attributes["height"]}"));
    }

    [Fact]
    public void SeveralPeriodsHaveStripsOnce()
    {
        var rows = Enumerable.Range(1, 10).Select(m => Row(Key("a"), period: $"2026-{m:00}", from: Utc($"2026-{m:00}-01"), to: Utc($"2026-{m + 1:00}-01")));
        var page = PageText.Parse(Page(Chapter(PlatformReport.All(Counting(), AsOf, [.. rows], []).Single())));
        Assert.Equal(2, page.All("table").Count(t => t.Text.StartsWith("SERVICE", Ordinal)));
        Assert.Single(page.All("svg"), s => s.Attributes.ContainsKey("role"));
    }

    // ---- Made again, and proved ----

    private static IncomingAlert Alert(string platform, string status, string starts, string partition = "INS") => new(
        new(partition, platform, "s", "f", ""), true, AlertSource.Webhook, "", $$"""{"status":"{{status}}","p":"{{platform}}"}""",
        status, Utc(starts), null, status);

    private async Task FillAsync(params string[] platforms)
    {
        using var store = new Store(_directory, StoreChild.Rules, _clock, new Log(LogLevel.Trace, false, TextWriter.Null, _clock),
            new Meters("test", "test"));
        _clock.UtcNow = Utc("2026-09-15");
        await store.AppendAsync("INS", StoreChild.Body([.. platforms.Select(p => Alert(p, "up", "2026-09-15"))]));
        _clock.UtcNow = Utc("2026-10-05T10:00");
        await store.AppendAsync("INS", StoreChild.Body([.. platforms.Select(p => Alert(p, "down", "2026-10-05T10:00"))]));
        _clock.UtcNow = Utc("2026-10-05T11:00");
        await store.AppendAsync("INS", StoreChild.Body([.. platforms.Select(p => Alert(p, "up", "2026-10-05T11:00"))]));
        _clock.UtcNow = AsOf;
        using (await store.ReadAsync())
        {
        }
    }

    private Task<string> RunAsync(string command, params string[] arguments) => RunAsync(null, command, arguments);

    private async Task<string> RunAsync(int? width, string command, params string[] arguments)
    {
        var output = new MemoryStream();
        var (flags, _) = Program.ParseFlags(["--data-dir", _directory, .. arguments], Command.All.Single(c => c.Name == command));
        Assert.Equal(0, await new CommandRunner(flags, new Dictionary<string, string> { ["OXSES_TZ"] = "Europe/Berlin" }, output, width, _clock)
            .RunAsync(command));
        return Encoding.UTF8.GetString(output.ToArray());
    }

    /// <summary>The arguments of a command of a page, as a shell takes them.</summary>
    private static string[] ArgumentsOf(string page, string command)
    {
        var text = System.Net.WebUtility.HtmlDecode(Regex.Match(page, $"<code>ses {command} (.*?)( \\| sha256sum)?</code>", RegexOptions.Singleline).Groups[1].Value);
        return [.. WordPattern().Matches(text).Select(w => w.Groups[1].Success
            ? w.Groups[1].Value.Replace(@"'\''", "'", Ordinal) : w.Value)];
    }

    [Fact]
    public async Task SameMomentGivesTheSameBytesAndItsDigestIsThatOfTheExport()
    {
        await FillAsync("shop", "it's <odd>");
        var pages = await RunAsync("report", "--period", "month", "--slo", "99.9", "--format", "html", "--service", "s");
        Assert.Contains("October 2026, Europe/Berlin, all hours, objective 99.9 %", pages, Ordinal);
        _clock.Advance(TimeSpan.FromDays(40));
        foreach (var chapter in pages.Split("<section>")[1..])
        {
            var again = await RunAsync("report", ArgumentsOf(chapter, "report"));
            Assert.Equal(chapter.Split("</section>")[0], again.Split("<section>")[1].Split("</section>")[0]);
            Assert.Equal(again, await RunAsync("report", ArgumentsOf(again, "report")));
            var export = await RunAsync("export", ArgumentsOf(chapter, "export"));
            Assert.NotEqual("", export);
            Assert.Contains($"<code>{Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(export)))}</code>", chapter, Ordinal);
        }
    }

    /// <summary>Of the answer by HTTP the same table is made, while a period lasts too.</summary>
    [Theory]
    [InlineData("2026-10-05T10:30Z")]
    [InlineData("2026-11-01T06:30Z")]
    public async Task TableOfASesThatRunsIsTheSame(string asOf)
    {
        await FillAsync("shop", "k8s");
        string[] arguments = ["--partition", "INS", "--period", "month", "--from", "2026-10-01", "--slo", "99.9,k8s=99", "--as-of", asOf,
            "--service-hours", "Mo-Fr 08:00-18:00"];
        var table = await RunAsync("report", [.. arguments, "--format", "table"]);
        RunningAnswer Read(Subject subject, string json)
        {
            using var document = JsonDocument.Parse(json);
            return RunningAnswer.Read(Question.Parse(subject, "INS", subject == Subject.Report ? [new("period", "month")] : [], AsOf), document.RootElement);
        }
        var answer = Read(Subject.Report, await RunAsync("report", [.. arguments, "--format", "json"]));
        var outages = Read(Subject.Outages, await RunAsync("outages", "--partition", "INS", "--as-of", asOf, "--service-hours", "Mo-Fr 08:00-18:00", "--format", "json"));
        var (counting, moment) = answer.Origin;
        var reports = PlatformReport.All(counting, moment, [.. answer.Reports("INS", moment)], [.. outages.OutagesOf("INS")]);
        Assert.Equal(table, string.Join('\n', reports.Select(r => new ReportText(int.MaxValue).Of(r, r.Time(moment), false))));
        Assert.Contains(" so far, Europe/Berlin, Mo-Fr 08:00-18:00", table, Ordinal);
    }

    [Fact]
    public async Task RangeWithoutPeriodsIsPrintedToo()
    {
        await FillAsync("shop");
        var page = await RunAsync("report", "--from", "2026-10-05", "--to", "2026-10-06", "--format", "html");
        Assert.Contains("2026-10-05 00:00 to 2026-10-06 00:00, Europe/Berlin, all hours", page, Ordinal);
        Assert.Contains("95.833", page, Ordinal);
        Assert.NotEmpty(PageText.Parse(await RunAsync("report", "--format", "html")).Elements);
    }

    [Fact]
    public async Task TerminalGetsADocumentThatCannotSteerIt()
    {
        await FillAsync("z\u202e\u009bz");
        Assert.Contains("\u202e", await RunAsync("report", "--format", "html"), Ordinal);
        var shown = await RunAsync(80, "report", "--format", "html");
        Assert.Contains("<bdi>z\ufffd\ufffdz</bdi>", shown, Ordinal);
        Assert.DoesNotContain(shown, c => c != '\n' && Terminal.IsUnsafe(c));
    }

    [Fact]
    public async Task EachPlatformHasAFileWithASafeName()
    {
        await FillAsync("shop", "../../etc", ".x", "a/b", "a_b", "a b", "支払い");
        var folder = Directory.CreateDirectory(Path.Combine(_directory, "out")).FullName;
        var target = Path.Combine(_directory, "target");
        File.WriteAllText(target, "kept");
        File.CreateSymbolicLink(Path.Combine(folder, "INS-shop-2026-10.html"), target);
        for (var i = 0; i < 2; i++)
        {
            var told = await RunAsync("report", "--period", "month", "--format", "html", "--output", folder);
            Assert.Equal(7, Directory.GetFiles(folder).Length);
            Assert.Equal(Directory.GetFiles(folder).Order(StringComparer.Ordinal), told.TrimEnd('\n').Split('\n').Order(StringComparer.Ordinal));
        }
        Assert.All(Directory.GetFiles(folder), f => Assert.Matches(@"^INS-[\w._-]+-2026-10\.html$", Path.GetFileName(f)));
        Assert.Contains(Path.Combine(folder, "INS-支払い-2026-10.html"), Directory.GetFiles(folder));
        Assert.Contains(Path.Combine(folder, "INS-a_b-2026-10.html"), Directory.GetFiles(folder));
        // The link was replaced, not followed.
        Assert.Equal("kept", File.ReadAllText(target));
        Assert.Null(new FileInfo(Path.Combine(folder, "INS-shop-2026-10.html")).LinkTarget);
        var page = File.ReadAllText(Path.Combine(folder, "INS-shop-2026-10.html"));
        Assert.Equal(page, await RunAsync("report", ArgumentsOf(page, "report")));
    }

    [Theory]
    [InlineData("--output: '{0}/none' is not a directory", "--format", "html", "--output", "{0}/none")]
    [InlineData("--output: '{0}/ses.db' is not a directory", "--format", "html", "--output", "{0}/ses.db")]
    [InlineData("--output is empty", "--format", "html", "--output", "")]
    [InlineData("--output needs --format html", "--format", "csv", "--output", "{0}")]
    [InlineData("--threshold and --format html cannot be used together", "--format", "html", "--threshold", "2")]
    [InlineData("--format: 'pdf' is not valid; allowed: table, json, csv, html", "--format", "pdf")]
    public async Task WhatCannotBePrintedIsRefused(string says, params string[] arguments)
    {
        await FillAsync("shop");
        var e = await Assert.ThrowsAsync<OptionsException>(() =>
            RunAsync("report", [.. arguments.Select(a => a.Replace("{0}", _directory, Ordinal))]));
        Assert.Equal(says.Replace("{0}", _directory, Ordinal), e.Message);
    }

    [Fact]
    public async Task OtherCommandsHaveNoDocument()
    {
        await FillAsync("shop");
        Assert.Contains("allowed: table, json, csv", (await Assert.ThrowsAsync<OptionsException>(() =>
            RunAsync("status", "--format", "html"))).Message, Ordinal);
    }

    // ---- On paper ----

    [Fact]
    [Trait("Category", "E2E")]
    public async Task MonthOfAPlatformTakesTwoPages()
    {
        var path = Path.Combine(_directory, "report.html");
        File.WriteAllText(path, Page(Chapter()));
        await using var browser = await Browser.StartAsync();
        await browser.OpenAsync(new Uri("file://" + path));
        Assert.Equal(2, PdfPagePattern().Count(Encoding.Latin1.GetString(await browser.PrintAsync())));
    }

    [GeneratedRegex(@"/Type\s*/Page\b")]
    private static partial Regex PdfPagePattern();

    [GeneratedRegex(@"\s+")]
    private static partial Regex BlanksPattern();

    [GeneratedRegex("href=\"([^\"]*)\"")]
    private static partial Regex HrefPattern();

    [GeneratedRegex(@"'((?:[^']|'\\'')*)'|[^ \n]+")]
    private static partial Regex WordPattern();
}
