using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>Whoever reads the README finds each page, and each link on them leads somewhere.</summary>
public sealed partial class DocsLinksTests
{
    /// <summary>What a newcomer reads in one go; the rest is in <c>docs/</c>.</summary>
    private const int MostLinesOfReadme = 250;

    /// <summary>A clone has every version of every picture.</summary>
    private const int MostBytesOfPicture = 60 * 1024;

    public static TheoryData<string> Pages => [.. DocsPage.All.Select(p => p.Path)];

    public static TheoryData<string> AllPages => [.. DocsPage.All.Concat(DocsPage.OfGitHub).Select(p => p.Path)];

    [Fact]
    public void ReadmeIsShort() =>
        Assert.InRange(File.ReadLines(Path.Combine(DocsPage.Checkout, "README.md")).Count(), 1, MostLinesOfReadme);

    /// <summary>Each page begins with its title and the question that it answers; the README has the same.</summary>
    [Fact]
    public void ReadmeListsThePagesWithTheirQuestions()
    {
        var files = Directory.GetFiles(Path.Combine(DocsPage.Checkout, "docs"), "*", SearchOption.AllDirectories)
            .Select(f => Path.GetRelativePath(DocsPage.Checkout, f)).Where(f => !IsPicture(f))
            .Order(StringComparer.Ordinal);
        var pages = DocsPage.All.Where(p => p != DocsPage.Readme).ToList();
        Assert.Equal(files, pages.Select(p => p.Path));
        Assert.All(pages, p => Assert.Matches(@"^# [^\n]+\n[A-Z][^\n]+\?\n\n", p.Text));
        var expected = pages.Select(p => (p.Path, Lines: p.Text.Split('\n')))
            .Select(p => $"- [{p.Lines[0][2..]}]({p.Path}): {p.Lines[1]}");
        var listed = DocsPage.Readme.Section("## Where to read on\n", "\n## ").Split('\n')
            .Where(l => l.StartsWith("- ", StringComparison.Ordinal));
        Assert.Equal(expected.Order(StringComparer.Ordinal), listed.Order(StringComparer.Ordinal));
    }

    [Fact]
    public void EachPictureIsSmallAndShown()
    {
        var pictures = new DirectoryInfo(Path.Combine(DocsPage.Checkout, "docs")).GetFiles("*", SearchOption.AllDirectories)
            .Where(f => IsPicture(f.Name)).ToList();
        Assert.NotEmpty(pictures);
        Assert.All(pictures, p => Assert.InRange(p.Length, 1, MostBytesOfPicture));
        var shown = DocsPage.All.SelectMany(p => Targets(p).Where(IsPicture).Select(t => Path.Combine(Path.GetDirectoryName(p.Path)!, t)));
        Assert.Equal(pictures.Select(p => Path.GetRelativePath(DocsPage.Checkout, p.FullName)).Order(), shown.Distinct().Order());
    }

    /// <summary>A page with one chapter needs no contents.</summary>
    [Theory, MemberData(nameof(Pages))]
    public void ContentsAreTheHeadings(string path)
    {
        var page = DocsPage.Find(path)!;
        var chapters = page.Chapters.ToList();
        Assert.Equal(
            chapters.Count > 1 ? chapters.Select(h => $"- [{h}](#{DocsPage.Anchor(h)})") : [],
            Contents().Matches(page.Prose).Select(m => m.Value));
    }

    [Theory, MemberData(nameof(AllPages))]
    public void LinksLeadSomewhere(string path)
    {
        var page = DocsPage.Find(path)!;
        // Links of other kinds would not be seen here.
        Assert.DoesNotMatch(OtherLink(), page.Prose);
        Assert.Equal([], Targets(page).Where(target => !Leads(page, target)));
    }

    /// <summary>What a page tells to make, the Makefile makes.</summary>
    [Theory, MemberData(nameof(AllPages))]
    public void TargetsThatAreNamedExist(string path)
    {
        var targets = PhonyLine().Match(File.ReadAllText(Path.Combine(DocsPage.Checkout, "Makefile"))).Groups[1].Value.Split(' ');
        Assert.Contains("publish", targets);
        Assert.Equal([], MakeCommand().Matches(DocsPage.Find(path)!.Text).Select(m => m.Groups[1].Value).Except(targets));
    }

    [Theory, MemberData(nameof(AllPages))]
    public void FilesThatAreNamedExist(string path)
    {
        var text = DocsPage.Find(path)!.Text;
        var named = CheckoutPath().Matches(text).Select(m => m.Value)
            .Concat(RootFile().Matches(text).Select(m => m.Groups[1].Value))
            .Concat(DeployFile().Matches(text).Select(m => $"deploy/{m.Groups[1].Value}"));
        Assert.Equal([], named.Where(f => !Path.Exists(Path.Combine(DocsPage.Checkout, f))));
    }

    [Theory]
    [InlineData("Ses.cs")]
    [InlineData("Ses.csproj")]
    [InlineData("trim.xml")]
    [InlineData("Makefile")]
    public void ChaptersThatTheSourcesNameExist(string file)
    {
        var named = NamedPage().Matches(File.ReadAllText(Path.Combine(DocsPage.Checkout, file)));
        Assert.NotEmpty(named);
        Assert.All(named, m =>
        {
            var page = DocsPage.Find(m.Groups[2].Value);
            Assert.True(page != null, $"{file} names {m.Groups[2].Value}, which does not exist");
            if (m.Groups[1].Success)
                Assert.Contains(DocsPage.Anchor(m.Groups[1].Value), page.Anchors);
        });
    }

    [Theory]
    [InlineData("What to do when", "what-to-do-when")]
    [InlineData("Alerts: `ses_up`, and \"after\"", "alerts-ses_up-and-after")]
    [InlineData("A & B – well-known", "a--b--well-known")]
    [InlineData("See [Onix](onix.md)", "see-onix")]
    public void AnchorsAreThoseOfGitHub(string heading, string anchor) =>
        Assert.Equal(anchor, DocsPage.Anchor(heading));

    [Fact]
    public void HeadingsOfTheSameTextHaveNumberedAnchorsAndCodeHasNone() => Assert.Equal(
        ["page", "part", "part-1"],
        new DocsPage("docs/page.md", "# Page\n## Part\n```sh\n# no heading\n```\n### Part\n").Anchors.Order());

    [Theory]
    [InlineData("#settings", true)]
    [InlineData("#nowhere", false)]
    [InlineData("api.md", true)]
    [InlineData("api.md#queries", true)]
    [InlineData("api.md#settings", false)]
    [InlineData("../README.md#try-it", true)]
    [InlineData("README.md#try-it", false)]
    [InlineData("../deploy/prometheus.yml", true)]
    [InlineData("../deploy/prometheus.yml#global", false)]
    [InlineData("../deploy", true)]
    [InlineData("../deploy/missing.yml", false)]
    [InlineData("../../etc", false)]
    [InlineData("https://example.org/", true)]
    [InlineData("", false)]
    public void WhereALinkLeadsIsKnown(string target, bool leads) =>
        Assert.Equal(leads, Leads(DocsPage.Named("configuration"), target));

    private static bool IsPicture(string path) =>
        path.EndsWith(".png", StringComparison.Ordinal) || path.EndsWith(".svg", StringComparison.Ordinal);

    /// <summary>Where the links and the pictures of a page lead.</summary>
    private static IEnumerable<string> Targets(DocsPage page)
    {
        var prose = CodeSpan().Replace(page.Prose, "");
        return DocsPage.Link().Matches(prose).Select(m => m.Groups[2].Value)
            .Concat(DocsPage.Picture().Matches(prose).Select(m => m.Groups[1].Value));
    }

    /// <summary>To a heading of a page, or to a file or folder of the checkout; the web is taken on trust.</summary>
    private static bool Leads(DocsPage page, string target)
    {
        if (target.StartsWith("https://", StringComparison.Ordinal))
            return true;
        var cut = target.IndexOf('#', StringComparison.Ordinal);
        var (file, anchor) = cut < 0 ? (target, null) : (target[..cut], target[(cut + 1)..]);
        if (target == "")
            return false;
        var from = Path.Combine(DocsPage.Checkout, Path.GetDirectoryName(page.Path)!);
        var path = file == "" ? page.Path : Path.GetRelativePath(DocsPage.Checkout, Path.Combine(from, file));
        if (path.StartsWith("..", StringComparison.Ordinal))
            return false;
        return anchor == null
            ? Path.Exists(Path.Combine(DocsPage.Checkout, path))
            : DocsPage.Find(path)?.Anchors.Contains(anchor) == true;
    }

    [GeneratedRegex(@"^- \[.+\]\(#.+\)$", RegexOptions.Multiline)]
    private static partial Regex Contents();

    /// <summary>By reference, or in HTML; but pictures.</summary>
    [GeneratedRegex(@"^\[[^\]]+\]:|\]\[|\bhref=", RegexOptions.Multiline)]
    private static partial Regex OtherLink();

    [GeneratedRegex("`[^`\n]+`")]
    private static partial Regex CodeSpan();

    [GeneratedRegex(@"^\.PHONY: (.*)$", RegexOptions.Multiline)]
    private static partial Regex PhonyLine();

    /// <summary>In code, and not in a sentence.</summary>
    [GeneratedRegex(@"(?:^|`)make ([a-z][\w-]*)", RegexOptions.Multiline)]
    private static partial Regex MakeCommand();

    [GeneratedRegex(@"(?<![\w./-])(?:deploy|docs|Ses\.Tests)/(?:[\w./-]*\w)?")]
    private static partial Regex CheckoutPath();

    [GeneratedRegex(@"`(\w[\w.]*\.(?:cs|csproj|xml)|LICENSE|Makefile|Dockerfile)`")]
    private static partial Regex RootFile();

    /// <summary>Rules and dashboards are named without their folder, too.</summary>
    [GeneratedRegex(@"\b((?:rules|grafana)-[\w-]+\.(?:yml|json))\b")]
    private static partial Regex DeployFile();

    [GeneratedRegex("""(?:"([^"\n]+)" in )?(docs/[\w-]+\.md)""")]
    private static partial Regex NamedPage();
}
