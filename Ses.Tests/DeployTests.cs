using System.Net;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>The rules and dashboards in <c>deploy/</c> fit the program that they watch.</summary>
public sealed partial class DeployTests
{
    private const string Self = "grafana-ses.json", History = "grafana-history.json", Rules = "rules-ses.yml";

    private static readonly string Dir = Deploy();

    public static TheoryData<string> Dashboards => [Self, History];

    [Fact]
    public async Task EveryMetricThatIsNamedIsOneOfTheProgram()
    {
        var series = (await MetricsAsync()).SelectMany(m => m.Type == "histogram"
            ? [$"{m.Name}_bucket", $"{m.Name}_sum", $"{m.Name}_count"] : new[] { m.Name }).ToHashSet();
        foreach (var file in new[] { Rules, "rules-ses_test.yml", Self })
        {
            var named = MetricName().Matches(Read(file)).Select(m => m.Value).ToHashSet();
            Assert.NotEmpty(named);
            Assert.Equal([], named.Except(series));
        }
    }

    [Fact]
    public async Task TheDashboardShowsEveryMetricOfSes()
    {
        var shown = string.Join('\n', Targets(Self).Select(t => t.GetProperty("expr").GetString()));
        Assert.Equal([], (await MetricsAsync()).Select(m => m.Name)
            .Where(n => n.StartsWith("ses_", StringComparison.Ordinal))
            .Where(n => !Regex.IsMatch(shown, $@"\b{n}(_bucket|_sum|_count)?\b")));
    }

    [Fact]
    public void EveryAlertSaysHowBadItIsAndWhatToDo()
    {
        var alerts = Alerts();
        Assert.NotEmpty(alerts);
        Assert.All(alerts, alert =>
        {
            Assert.Matches(@"labels: \{severity: (critical|warning|info)\}\n", alert.Text);
            Assert.Matches("summary: \"[A-Z][^\"\n]+[^.\"\n]\"\n", alert.Text);
            Assert.Matches(@"description: >-\n +[^\n]{20,}", alert.Text);
        });
    }

    [Fact]
    public void EveryAlertIsTested()
    {
        var tests = Read("rules-ses_test.yml");
        // Some alerts have two severities.
        var alerts = Alerts().Select(a => $"{a.Name} {Severity().Match(a.Text).Groups[1].Value}").ToList();
        Assert.Equal(alerts.Distinct(), alerts);
        var tested = FiringAlert().Matches(tests).Select(m => $"{m.Groups[1].Value} {m.Groups[2].Value}").Distinct();
        Assert.Equal(alerts.Order(), tested.Order());
    }

    [Theory, MemberData(nameof(Dashboards))]
    public void PanelsHaveTheirOwnIdsTitlesAndData(string file)
    {
        var panels = Panels(file);
        Assert.NotEmpty(panels);
        Assert.Equal(panels.Count, panels.Select(p => p.GetProperty("id").GetInt32()).Distinct().Count());
        Assert.All(panels, p => Assert.NotEqual("", p.GetProperty("title").GetString()));
        var type = file == Self ? "prometheus" : "yesoreyeram-infinity-datasource";
        var asking = panels.Concat(Targets(file))
            .Concat(Variables(file).Where(v => v.GetProperty("type").GetString() == "query"));
        Assert.All(asking.Select(p => p.GetProperty("datasource")), source =>
        {
            Assert.Equal("${DS}", source.GetProperty("uid").GetString());
            Assert.Equal(type, source.GetProperty("type").GetString());
        });
        Assert.All(panels.Where(p => p.GetProperty("type").GetString() != "row"), p =>
        {
            var letters = p.GetProperty("targets").EnumerateArray()
                .Select(t => t.GetProperty("refId").GetString());
            Assert.NotEmpty(letters);
            Assert.Equal(letters.Distinct(), letters);
        });
    }

    [Theory, MemberData(nameof(Dashboards))]
    public void PanelsDoNotOverlap(string file)
    {
        var taken = new HashSet<(int, int)>();
        foreach (var panel in Panels(file))
        {
            var at = panel.GetProperty("gridPos");
            var (x, y) = (at.GetProperty("x").GetInt32(), at.GetProperty("y").GetInt32());
            var (w, h) = (at.GetProperty("w").GetInt32(), at.GetProperty("h").GetInt32());
            Assert.InRange(x, 0, 24 - w);
            for (var i = 0; i < w * h; i++)
                Assert.True(taken.Add((x + i % w, y + i / w)), $"{panel.GetProperty("title")} overlaps");
        }
    }

    [Theory, MemberData(nameof(Dashboards))]
    public void VariablesAreThoseOfTheDashboard(string file)
    {
        var names = Variables(file).Select(v => v.GetProperty("name").GetString()!).ToList();
        Assert.Equal(names.Distinct(), names);
        var used = Variable().Matches(Read(file)).Select(m => m.Groups[1].Value)
            .Where(n => !n.StartsWith("__", StringComparison.Ordinal)).Distinct();
        Assert.Equal(names.Order(), used.Order());
    }

    [Fact]
    public async Task SesAnswersWhatTheDashboardOfTheHistoryAsks()
    {
        await using var host = Host.Serving();
        var start = Rfc3339.Format(Host.Now.AddHours(-1));
        Assert.Equal(204, (await host.PostAsync($$$"""
            {"version":"4","alerts":[{"status":"firing","startsAt":"{{{start}}}",
            "labels":{"alertname":"Down","job":"a b","instance":"n1"}}]}
            """)).Code);
        foreach (var target in Targets(History))
        {
            var answer = await host.GetAsync(Address(target));
            Assert.Equal(200, answer.Code);
            var row = Assert.Single(
                answer.Json.GetProperty(target.GetProperty("root_selector").GetString()!).EnumerateArray());
            var columns = target.GetProperty("columns").EnumerateArray()
                .Select(c => c.GetProperty("selector").GetString()!);
            Assert.Equal([], columns.Except(row.EnumerateObject().Select(f => f.Name)));
        }
    }

    /// <summary>A pair, one of it, none, and both again, as the rules of its whole fire.</summary>
    [Fact]
    public async Task WholeHasTheHistoryThatItsRulesTell()
    {
        await using var host = Host.Serving();
        var rules = Read("rules-whole.yml");
        async Task FireAsync(string alert, int minute, int? until)
        {
            var labels = Regex.Match(rules, $@"alert: {alert}\n.*?labels: \{{(.+?)\}}\n", RegexOptions.Singleline).Groups[1].Value;
            var json = string.Join(',', labels.Split(", ").Select(l => l.Split(": ")).Select(l => $"\"{l[0]}\":\"{l[1]}\""));
            var start = Host.Now.AddHours(-2);
            Assert.Equal(204, (await host.PostAsync($$$"""
                {"version":"4","alerts":[{"status":"{{{(until == null ? "firing" : "resolved")}}}","labels":{"alertname":"{{{alert}}}",{{{json}}}},
                "startsAt":"{{{Rfc3339.Format(start.AddMinutes(minute))}}}","endsAt":"{{{Rfc3339.Format(until is { } end ? start.AddMinutes(end) : default)}}}"}]}
                """)).Code);
        }

        await FireAsync("Gateway_Whole_Up", 0, 10);
        await FireAsync("Gateway_Whole_Degraded", 11, 20);
        await FireAsync("Gateway_Whole_Down", 21, 30);
        await FireAsync("Gateway_Whole_Degraded", 31, 40);
        await FireAsync("Gateway_Whole_Up", 41, null);
        var history = (await host.GetAsync("/alerts/INS/history?service=gateway&facet=whole")).Json.GetProperty("events");
        Assert.Equal(["up", "degraded", "down", "degraded", "up"], history.EnumerateArray().Select(e => e.GetProperty("status").GetString()));
    }

    // ---- With Prometheus's own tool ----

    [Fact, Trait("Category", "E2E")]
    public async Task PrometheusTakesTheRulesAndTheirTestsPass()
    {
        var files = Directory.GetFiles(Dir, "rules-*.yml")
            .ToLookup(f => f.EndsWith("_test.yml", StringComparison.Ordinal));
        Assert.NotEmpty(files[true]);
        await PromtoolAsync(["check", "rules", .. files[false]]);
        await PromtoolAsync(["test", "rules", .. files[true]]);
        await PromtoolAsync(["check", "config", Path.Combine(Dir, "prometheus.yml")]);
    }

    [Fact, Trait("Category", "E2E")]
    public async Task PrometheusUnderstandsTheDashboardsQueries()
    {
        var rules = new StringBuilder("groups:\n- name: queries\n  rules:\n");
        foreach (var target in Targets(Self))
        {
            var query = target.GetProperty("expr").GetString()!
                .Replace("$__rate_interval", "1m", StringComparison.Ordinal);
            // In YAML's single quotes only those themselves mean anything; they are doubled.
            var quoted = query.Replace("'", "''", StringComparison.Ordinal);
            rules.Append("  - {record: \"q:q\", expr: '").Append(quoted).Append("'}\n");
        }
        var file = Path.GetTempFileName();
        try
        {
            await File.WriteAllTextAsync(file, rules.ToString());
            await PromtoolAsync(["check", "rules", "--lint=none", file]);
        }
        finally
        {
            File.Delete(file);
        }
    }

    private static async Task PromtoolAsync(string[] arguments)
    {
        await using var tool = ChildProcess.Start("promtool", arguments, folder: Dir);
        var exit = await tool.ExitAsync(TimeSpan.FromMinutes(3));
        Assert.True(exit == 0, $"promtool {string.Join(' ', arguments)} ended with {exit}:\n{tool.Output}");
    }

    // ---- The files ----

    private static string Read(string file) => File.ReadAllText(Path.Combine(Dir, file));

    private static async Task<List<(string Name, string Type)>> MetricsAsync()
    {
        var text = Encoding.UTF8.GetString(await new Meters("1.0.0", "unknown").ExportAsync());
        return [.. TypeLine().Matches(text).Select(m => (m.Groups[1].Value, m.Groups[2].Value))];
    }

    private static List<(string Name, string Text)> Alerts() =>
        [.. Read(Rules).Split("\n  - alert: ").Skip(1).Select(text => (text.Split('\n')[0], text))];

    private static JsonElement Root(string file) => JsonDocument.Parse(Read(file)).RootElement;

    private static IEnumerable<JsonElement> Variables(string file) =>
        Root(file).GetProperty("templating").GetProperty("list").EnumerateArray();

    /// <summary>All of them, rows and what is in closed rows included.</summary>
    private static List<JsonElement> Panels(string file) =>
        [.. Root(file).GetProperty("panels").EnumerateArray().SelectMany(
            p => p.TryGetProperty("panels", out var inner) ? inner.EnumerateArray().Prepend(p) : [p])];

    private static IEnumerable<JsonElement> Targets(string file) => Panels(file).SelectMany(
        p => p.TryGetProperty("targets", out var targets) ? targets.EnumerateArray() : []);

    /// <summary>The address that the data source makes of a query: it encodes the parameters.</summary>
    private static string Address(JsonElement target)
    {
        var parameters = target.GetProperty("url_options").GetProperty("params").EnumerateArray()
            .Select(p => (Name: p.GetProperty("key").GetString(), Value: p.GetProperty("value").GetString()!))
            .Select(p => $"{p.Name}={WebUtility.UrlEncode(Filled(p.Value))}");
        return $"{Filled(target.GetProperty("url").GetString()!)}?{string.Join('&', parameters)}";
    }

    /// <summary>As Grafana fills the variables in, when all platforms of a service are looked at.</summary>
    private static string Filled(string text) => Variable().Replace(text, m => m.Value switch
    {
        "${path}" => "alerts",
        "${partition:percentencode}" => "INS",
        "${platform}" => "",
        "${service}" => "a b",
        "${__from:date:iso}" => "2026-11-21T12:00:00.000Z",
        "${__to:date:iso}" => "2026-11-22T12:00:00.000Z",
        _ => throw new InvalidOperationException($"{m.Value} in {text}"),
    });

    private static string Deploy()
    {
        for (var dir = new DirectoryInfo(AppContext.BaseDirectory); dir != null; dir = dir.Parent)
        {
            if (Directory.Exists(Path.Combine(dir.FullName, "deploy")))
                return Path.Combine(dir.FullName, "deploy");
        }
        throw new DirectoryNotFoundException("there is no deploy above the tests");
    }

    [GeneratedRegex(@"# TYPE (\w+) (\w+)")]
    private static partial Regex TypeLine();

    [GeneratedRegex(@"(?<![\w-])(?:ses|process|dotnet)_\w+")]
    private static partial Regex MetricName();

    [GeneratedRegex("""alertname="(\w+)", alertstate="firing",[^}]*severity="(\w+)["]""")]
    private static partial Regex FiringAlert();

    [GeneratedRegex(@"severity: (\w+)")]
    private static partial Regex Severity();

    [GeneratedRegex(@"\$\{?(\w+)(?:[:.][\w:.]+)?\}?")]
    private static partial Regex Variable();
}
