using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>The examples of the README and the pages that need nothing but SeS: they are run, and give what is shown.</summary>
public sealed partial class DocsExamplesTests : IDisposable
{
    private const StringComparison Ordinal = StringComparison.Ordinal;

    private static readonly DateTime Day = Host.Now.Date;

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-docs-").FullName;

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    // ---- The worked examples of docs/history.md ----

    public static TheoryData<string> WorkedExamples =>
        [.. Heading().Matches(DocsPage.Named("history").Section("## Worked examples\n", "\n## ")).Select(m => m.Groups[1].Value)];

    /// <summary>What the first table of an example has SeS receive gives the history in the second one, 20 minutes later
    /// if no other time is named.</summary>
    [Theory, MemberData(nameof(WorkedExamples))]
    public async Task WorkedExampleGivesItsHistory(string heading)
    {
        var page = DocsPage.Named("history").Section($"### {heading}\n", "\n##");
        var (received, history) = (Rows(page, "| received |"), Rows(page, "| service |", "| as_of |"));
        await using var host = Host.Serving();
        foreach (var (time, row) in received.SelectMany(r => Times(r[0]).Select(t => (t, r))).OrderBy(e => e.t))
        {
            await PassAsync(host, time);
            var isDirect = row[1] == "Prometheus";
            var alert = AlertOf(row[2], row[3], At(row[4]), row[5] == "4 min later" ? time.AddMinutes(4) : row[5] == "" ? null : At(row[5]));
            var answer = isDirect ? await host.PostAsync($"[{alert}]", "/alerts/INS/api/v2/alerts")
                : await host.PostAsync($$"""{"version":"4","alerts":[{{alert}}]}""");
            Assert.Equal(isDirect ? 200 : 204, answer.Code);
        }
        var asked = Asked().Match(page);
        await PassAsync(host, asked.Success ? At(asked.Groups[1].Value) : host.Clock.UtcNow.AddMinutes(20));

        var isAsOf = history[0].Length == 4;
        foreach (var group in history.GroupBy(r => isAsOf ? r[0] : ""))
        {
            var asOf = group.Key == "" ? "" : "?as_of=" + Rfc3339.Format(At(group.Key));
            var events = (await host.GetAsync("/alerts/INS/history" + asOf)).Json.GetProperty("events").EnumerateArray()
                .Select(e => $"{e.GetProperty("service")} {e.GetProperty("location")} {e.GetProperty("time").GetDateTime():HH:mm:ss} {e.GetProperty("status")}");
            Assert.Equal(group.Select(r => string.Join(' ', isAsOf ? r[1..] : r)).Order(ByText), events.Order(ByText));
        }
    }

    private static readonly StringComparer ByText = StringComparer.Ordinal;

    /// <summary>In steps that are none of SeS's own absence.</summary>
    private static async Task PassAsync(Host host, DateTime until)
    {
        if (until > host.Clock.UtcNow)
            await host.Clock.PassAsync(until, TimeSpan.FromSeconds(10), host.Store);
    }

    /// <summary>The rows of the first table whose head begins with one of these.</summary>
    private static List<string[]> Rows(string text, params string[] heads) => [.. text.Split('\n')
        .SkipWhile(l => !heads.Any(h => l.StartsWith(h, Ordinal))).Skip(2).TakeWhile(l => l.StartsWith('|'))
        .Select(l => l[1..^1].Split('|').Select(c => c.Trim(' ', '`')).ToArray())];

    private static DateTime At(string time) => Day + TimeSpan.Parse(time, CultureInfo.InvariantCulture);

    /// <summary>A time, or each minute of a stretch.</summary>
    private static IEnumerable<DateTime> Times(string cell)
    {
        var words = cell.Split(' ', ',');
        for (var time = At(words[0]); time <= At(words.ElementAtOrDefault(2) ?? words[0]); time = time.AddMinutes(1))
            yield return time;
    }

    /// <summary>An alert that is written as a series.</summary>
    private static string AlertOf(string series, string status, DateTime starts, DateTime? ends)
    {
        var labels = Label().Matches(series).Select(m => (m.Groups[1].Value, m.Groups[2].Value)).Prepend(("alertname", series[..series.IndexOf('{', Ordinal)]));
        return $$"""
            {"status":"{{status}}","labels":{{{string.Join(',', labels.Select(l => $"\"{l.Item1}\":\"{l.Item2}\""))}}},"generatorURL":"http://p1:9090/graph",
            "startsAt":"{{Rfc3339.Format(starts)}}","endsAt":"{{(ends is { } end ? Rfc3339.Format(end) : "0001-01-01T00:00:00Z")}}"}
            """;
    }

    // ---- Others ----

    [Fact]
    public async Task QuarantinedAlertOfThePageIsAnsweredSo()
    {
        var page = DocsPage.Named("alerts");
        await using var host = Host.Serving();
        host.Clock.Advance(TimeSpan.FromDays(2));
        var answer = await host.PostAsync(BodyOf(page.CodeOf("Quarantine", "sh").Single()));
        Assert.Equal((200, page.CodeOf("Quarantine", "json").Single()), (answer.Code, answer.Body.TrimEnd()));
    }

    [Fact]
    public async Task HistoryOfThePageIsThatOfTheFirstAlert()
    {
        await using var host = Host.Serving();
        var shown = DocsPage.Named("api").CodeOf("Queries", "json").Single();
        var (json, first) = (JsonDocument.Parse(shown).RootElement, JsonDocument.Parse(shown).RootElement.GetProperty("events")[0]);
        host.Clock.Advance(first.GetProperty("received").GetDateTime() - host.Clock.UtcNow);
        var body = BodyOf(Blocks(DocsPage.Readme, "Try it", "sh")[1].Single());
        Assert.Equal(204, (await host.PostAsync(body.Replace("'$(date -u +%FT%TZ)'", first.GetProperty("time").GetString(), Ordinal))).Code);
        // An answer is as of the millisecond that is over: in this one more may be recorded.
        host.Clock.Advance(json.GetProperty("as_of").GetDateTime().AddMilliseconds(1) - host.Clock.UtcNow);
        var answer = await host.GetAsync("/alerts/INS/history");
        Assert.Equal(Version().Replace(shown, ""), Version().Replace(answer.Body.TrimEnd(), ""));
    }

    [Fact]
    public async Task FirstAlertOfTheReadmeIsSeenOnThePage()
    {
        await using var host = Host.Serving();
        var command = Blocks(DocsPage.Readme, "Try it", "sh")[1].Single();
        Assert.Equal(204, (await host.PostAsync(BodyOf(command).Replace("'$(date -u +%FT%TZ)'", Rfc3339.Format(Host.Now), Ordinal))).Code);
        var page = (await host.GetAsync("/")).Body;
        Assert.Contains("etcd", page, Ordinal);
        Assert.Contains("is down", page, Ordinal);
        // make run shows the same command.
        Assert.Contains(command.Replace("\"", "\\\"", Ordinal).Replace("$(date", "\\$$(date", Ordinal).Replace("8888", "$(PORT)", Ordinal),
            File.ReadAllText(Path.Combine(DocsPage.Checkout, "Makefile")), Ordinal);
    }

    public static TheoryData<string> Daemons => [.. DocsPage.All.SelectMany(p => ShellBlock().Matches(p.Text))
        .SelectMany(m => m.Groups[1].Value.Replace("\\\n", "", Ordinal).Split('\n')).Where(l => Daemon().IsMatch(l)).Distinct()];

    /// <summary>Each command that starts a daemon has settings that it can be started with.</summary>
    [Theory, MemberData(nameof(Daemons))]
    public void DaemonOfThePageHasUsableSettings(string command)
    {
        foreach (Match file in SecretFile().Matches(command))
            File.WriteAllText(Path.Combine(_dir, file.Groups[1].Value), "s3cret-0123456789");
        var words = Word().Matches(command.Replace("/etc/ses/", $"{_dir}/", Ordinal)).Select(m => m.Value.Replace("'", "", Ordinal).Replace("\"", "", Ordinal)).ToList();
        var start = words.IndexOf("ses");
        var variables = words[..start].Select(w => w.Split('=', 2)).ToDictionary(w => w[0], w => w[1]);
        var flags = words[(start + 1)..].Chunk(2).ToDictionary(w => w[0], w => w[1]);
        var options = Options.Read(flags, variables);
        if (command.Contains("9000", Ordinal))
            Assert.Equal((9000, "/var/lib/ses"), (options.Port, options.DataDir));
    }

    private static string BodyOf(string command) => command[(command.IndexOf("-d '", Ordinal) + 4)..^1];

    /// <summary>The blocks of a language in a chapter, each a list of lines.</summary>
    private static List<string[]> Blocks(DocsPage page, string chapter, string language) =>
        [.. Regex.Matches(page.Section($"## {chapter}\n", "\n## "), $"\n```{language}\n(.+?)\n```", RegexOptions.Singleline).Select(m => m.Groups[1].Value.Split('\n'))];

    [GeneratedRegex("^### (.+)$", RegexOptions.Multiline)]
    private static partial Regex Heading();

    [GeneratedRegex(@"\b[Aa]sked at (\d\d:\d\d)\b")]
    private static partial Regex Asked();

    [GeneratedRegex("\"version\":\"[^\"]*\"")]
    private static partial Regex Version();

    [GeneratedRegex("(\\w+)=\"([^\"]*)\"")]
    private static partial Regex Label();

    [GeneratedRegex("```sh\n(.+?)```", RegexOptions.Singleline)]
    private static partial Regex ShellBlock();

    [GeneratedRegex(@"^(?:OXSES_\S+ )*ses(?: --|$)")]
    private static partial Regex Daemon();

    [GeneratedRegex(@"/etc/ses/([\w.-]+)")]
    private static partial Regex SecretFile();

    [GeneratedRegex("""(?:"[^"]*"|'[^']*'|[^\s"'])+""")]
    private static partial Regex Word();
}
