using System.Text.RegularExpressions;
using Xunit;

namespace Ses.Tests.Support;

/// <summary>A page of the documentation: <c>README.md</c>, or one of <c>docs/</c>.</summary>
/// <param name="Path">From the checkout's root, such as <c>docs/api.md</c>.</param>
internal sealed partial record DocsPage(string Path, string Text)
{
    /// <summary>The folder with <c>README.md</c>, above the tests.</summary>
    public static string Checkout { get; } = Root();

    public static DocsPage Readme { get; } = Read("README.md");

    /// <summary>The README, then the pages of <c>docs/</c>.</summary>
    public static IReadOnlyList<DocsPage> All { get; } =
    [
        Readme,
        .. Directory.GetFiles(System.IO.Path.Combine(Checkout, "docs"), "*.md", SearchOption.AllDirectories)
            .Select(f => System.IO.Path.GetRelativePath(Checkout, f)).Order(StringComparer.Ordinal).Select(Read),
    ];

    /// <summary>What those who contribute read, in <c>.github/</c>.</summary>
    public static IReadOnlyList<DocsPage> OfGitHub { get; } =
        [.. Directory.GetFiles(System.IO.Path.Combine(Checkout, ".github"), "*.md")
            .Select(f => System.IO.Path.GetRelativePath(Checkout, f)).Order(StringComparer.Ordinal).Select(Read)];

    /// <summary>The page with this path, or null.</summary>
    public static DocsPage? Find(string path) => All.Concat(OfGitHub).FirstOrDefault(p => p.Path == path);

    /// <summary>A page of <c>docs/</c>, such as <c>api</c>.</summary>
    public static DocsPage Named(string name) => Find($"docs/{name}.md")
        ?? throw new InvalidOperationException($"there is no docs/{name}.md");

    /// <summary>The text without its blocks of code.</summary>
    public string Prose => CodeBlock().Replace(Text, "");

    public IEnumerable<string> Chapters => Chapter().Matches(Prose).Select(m => m.Groups[1].Value);

    /// <summary>The anchors that GitHub gives the headings; of equal ones, later ones are numbered.</summary>
    public IReadOnlySet<string> Anchors
    {
        get
        {
            var anchors = new HashSet<string>();
            foreach (var anchor in Heading().Matches(Prose).Select(m => Anchor(m.Groups[1].Value)))
            {
                var numbered = anchor;
                for (var i = 1; !anchors.Add(numbered); i++)
                    numbered = $"{anchor}-{i}";
            }
            return anchors;
        }
    }

    /// <summary>
    /// As GitHub makes an anchor of a heading: in lower case, of letters, digits, <c>_</c> and <c>-</c>;
    /// each space is a <c>-</c>; of a link, its text.
    /// </summary>
    public static string Anchor(string heading) => NotInAnchor()
        .Replace(Link().Replace(heading, "$1").ToLowerInvariant(), "").Replace(' ', '-');

    /// <summary>The rows of the first table in a chapter, cut into cells.</summary>
    public List<string[]> Table(string chapter)
    {
        var lines = Section($"## {chapter}\n", "\n## ").Split('\n');
        var table = lines.SkipWhile(l => !l.StartsWith('|')).TakeWhile(l => l.StartsWith('|')).ToList();
        var rows = table.Skip(2).Select(l => l.Trim('|').Split('|').Select(c => c.Trim()).ToArray()).ToList();
        Assert.NotEmpty(rows);
        return rows;
    }

    /// <summary>The rows of all tables in a chapter, one after the other.</summary>
    public List<string[]> Tables(string chapter)
    {
        var lines = Section($"## {chapter}\n", "\n## ").Split('\n');
        // A table's first two lines are its head.
        var rows = lines.Where((l, i) => l.StartsWith('|') && i > 1 && lines[i - 1].StartsWith('|') && lines[i - 2].StartsWith('|'))
            .Select(l => l.Trim('|').Split('|').Select(c => c.Trim()).ToArray()).ToList();
        Assert.NotEmpty(rows);
        return rows;
    }

    /// <summary>The lines of the first block of code in a chapter.</summary>
    public string[] CodeOf(string chapter, string language) => Regex.Match(
        Section($"## {chapter}\n", "\n## "), $"\n```{language}\n(.+?)\n```", RegexOptions.Singleline)
        .Groups[1].Value.Split('\n');

    /// <summary>From one text to the next occurrence of another, or to the end.</summary>
    public string Section(string from, string to)
    {
        var start = Text.IndexOf(from, StringComparison.Ordinal);
        Assert.True(start >= 0, $"{Path} has no '{from}'");
        var end = Text.IndexOf(to, start + from.Length, StringComparison.Ordinal);
        return Text[start..(end < 0 ? Text.Length : end)];
    }

    private static DocsPage Read(string path) => new(path, File.ReadAllText(System.IO.Path.Combine(Checkout, path)));

    private static string Root()
    {
        for (var dir = new DirectoryInfo(AppContext.BaseDirectory); dir != null; dir = dir.Parent)
        {
            if (File.Exists(System.IO.Path.Combine(dir.FullName, "README.md")))
                return dir.FullName;
        }
        throw new FileNotFoundException("there is no README.md above the tests");
    }

    [GeneratedRegex("^```.*?^```\n", RegexOptions.Singleline | RegexOptions.Multiline)]
    private static partial Regex CodeBlock();

    /// <summary>Pictures in HTML, of which a reader may have another in the dark.</summary>
    [GeneratedRegex("<(?:img|source)\\b[^>]*?\\b(?:src|srcset)=\"([^\"]+)\"")]
    public static partial Regex Picture();

    [GeneratedRegex("^## (.+)$", RegexOptions.Multiline)]
    private static partial Regex Chapter();

    [GeneratedRegex("^#{1,6} (.+)$", RegexOptions.Multiline)]
    private static partial Regex Heading();

    [GeneratedRegex(@"[^\p{L}\p{M}\p{N}\p{Pc} -]")]
    private static partial Regex NotInAnchor();

    /// <summary>Its text, and where it leads.</summary>
    [GeneratedRegex(@"\[([^\]]*)\]\(([^)\s]*)(?:\s[^)]*)?\)")]
    public static partial Regex Link();
}
