using System.Collections.Concurrent;
using System.Globalization;
using System.Net;
using System.Text;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;
using static Ses.Tests.PrometheusEndToEndTests;

namespace Ses.Tests;

/// <summary>
/// Debian's Prometheus with SeS in its list of Alertmanagers, beside a real one that has SeS as a receiver, and
/// what the targets really did.
/// </summary>
[Trait("Category", "E2E")]
public sealed class PrometheusEndToEndTests
{
    internal static readonly TimeSpan Soon = TimeSpan.FromMinutes(1);

    /// <summary>Scrape and evaluation are a second apart each, and the machine is busy.</summary>
    private const double Late = 8, Early = 0.5;

    internal sealed record Change(string Status, DateTime Time);

    /// <summary>A target whose conditions are set, Prometheus, Alertmanager and SeS.</summary>
    internal sealed class Rig : IAsyncDisposable
    {
        private readonly string _dir = Directory.CreateTempSubdirectory("ses-prometheus-").FullName;
        private readonly HttpListener _target = new();
        private readonly ConcurrentDictionary<string, int> _conditions = [];
        private readonly int _targetPort = FreePort.Next(), _alertmanagerPort = FreePort.Next();
        private readonly int[] _ports = [FreePort.Next(), FreePort.Next()];
        private ChildProcess? _alertmanager;
        private int _scrapes;
        private string _conditionsDown = "";

        public SesProcess Ses { get; private set; } = null!;

        public ChildProcess[] Prometheus { get; } = new ChildProcess[2];

        /// <summary>What each condition really did.</summary>
        public ConcurrentDictionary<string, List<Change>> Truth { get; } = [];

        public static async Task<Rig> StartAsync(string[] cases, int prometheus, string pause = "15m")
        {
            var rig = new Rig();
            try
            {
                await rig.RunAsync(cases, prometheus, pause);
                return rig;
            }
            catch
            {
                await rig.DisposeAsync();
                throw;
            }
        }

        private async Task RunAsync(string[] cases, int prometheus, string pause)
        {
            // What one of a pair misses, since the machine is busy, is to be no end that the other cannot confirm.
            const string Selected = """condition{instance!="removed",instance!="severity"}""";
            _conditionsDown = (prometheus > 1 ? $"last_over_time({Selected}[5m])" : Selected) + " == 1";
            Array.ForEach(cases, c => _conditions[c] = 0);
            _target.Prefixes.Add($"http://127.0.0.1:{_targetPort}/");
            _target.Start();
            _ = ServeAsync();
            Ses = await SesProcess.StartAsync("none", null, null, "--pause", pause);
            await File.WriteAllTextAsync(Path.Combine(_dir, "alertmanager.yml"), $$"""
                route: {receiver: ses, group_by: [instance], group_wait: 1s, group_interval: 1s, repeat_interval: 1h}
                receivers:
                - name: ses
                  webhook_configs: [{url: "{{Ses.Webhook("RELAYED")}}"}]
                inhibit_rules:
                - source_matchers: [instance="plain"]
                  target_matchers: [instance="inhibited"]
                  equal: [job]

                """);
            _alertmanager = ChildProcess.Start(EtcdRig.AlertmanagerProgram(),
            [
                $"--config.file={Path.Combine(_dir, "alertmanager.yml")}", $"--storage.path={Path.Combine(_dir, "am")}",
                $"--web.listen-address=127.0.0.1:{_alertmanagerPort}", "--log.level=warn", "--cluster.listen-address=",
            ], folder: _dir);
            await AmtoolAsync("silence", "add", "instance=silenced", "--duration=1h", "--comment=x", "--author=x");
            await WriteRulesAsync(isGone: false);
            for (var i = 0; i < prometheus; i++)
                StartPrometheus(i);
            await Wait.UntilAsync(() => Volatile.Read(ref _scrapes) >= 5 * prometheus, Soon, "Prometheus");
        }

        public void StartPrometheus(int number)
        {
            var config = Path.Combine(_dir, $"prometheus-{number}.yml");
            File.WriteAllText(config, $$"""
                global:
                  scrape_interval: 1s
                  scrape_timeout: 1s
                  evaluation_interval: 1s
                  external_labels: {replica: "{{number}}"}
                rule_files: ["{{Path.Combine(_dir, "rules.yml")}}"]
                alerting:
                  alertmanagers:
                  - static_configs: [{targets: ["127.0.0.1:{{_alertmanagerPort}}"]}]
                  - static_configs: [{targets: ["127.0.0.1:{{Ses.Port}}"]}]
                    path_prefix: /alerts/INS
                    timeout: 2s
                scrape_configs:
                - job_name: conditions
                  honor_labels: true
                  static_configs: [{targets: ["127.0.0.1:{{_targetPort}}"]}]

                """);
            Prometheus[number] = ChildProcess.Start("prometheus",
            [
                $"--config.file={config}", $"--storage.tsdb.path={Path.Combine(_dir, $"tsdb-{number}")}",
                $"--web.listen-address=127.0.0.1:{_ports[number]}", "--log.level=warn",
                "--rules.alert.resend-delay=10s",
            ], folder: _dir);
        }

        public void ForgetSeries(int number) =>
            Directory.Delete(Path.Combine(_dir, $"tsdb-{number}"), recursive: true);

        public Task WriteRulesAsync(bool isGone) => File.WriteAllTextAsync(Path.Combine(_dir, "rules.yml"), $$$"""
            groups:
            - name: conditions
              rules:
              - alert: Condition
                expr: {{{_conditionsDown}}}
                labels: {severity: critical}
              - alert: {{{(isGone ? "Unused" : "Removed")}}}
                expr: condition{instance="removed"} == {{{(isGone ? 7 : 1)}}}
                labels: {severity: critical}
              - alert: Severity
                expr: condition{instance="severity"} == 1
                labels: {severity: {{{(isGone ? "critical" : "warning")}}}}

            """);

        public async Task AmtoolAsync(params string[] arguments) => await Wait.UntilAsync(async () =>
        {
            await using var amtool = ChildProcess.Start(
                "amtool", [.. arguments, $"--alertmanager.url=http://127.0.0.1:{_alertmanagerPort}"]);
            return await amtool.ExitAsync(Soon) == 0;
        }, Soon, "amtool");

        private async Task ServeAsync()
        {
            while (_target.IsListening)
            {
                try
                {
                    var context = await _target.GetContextAsync();
                    Interlocked.Increment(ref _scrapes);
                    context.Response.ContentType = "text/plain; version=0.0.4";
                    context.Response.Close(Encoding.UTF8.GetBytes(string.Concat(_conditions.Select(
                        c => $"condition{{instance=\"{c.Key}\"}} {c.Value}\n"))), willBlock: true);
                }
                catch (Exception e) when (e is HttpListenerException or ObjectDisposedException)
                {
                    // Prometheus went away, or the test ended.
                }
            }
        }

        public void Set(string condition, bool isDown)
        {
            _conditions[condition] = isDown ? 1 : 0;
            Truth.GetOrAdd(condition, _ => []).Add(new(isDown ? "down" : "up", DateTime.UtcNow));
        }

        public async Task<List<Change>> HistoryAsync(string instance, string partition = "INS")
        {
            using var said = await Ses.Client.GetAsync($"alerts/{partition}/history?location={instance}");
            // Nothing was heard yet.
            if (said.StatusCode == HttpStatusCode.NotFound)
                return [];
            using var answer = JsonDocument.Parse(await said.EnsureSuccessStatusCode().Content.ReadAsStringAsync());
            return [.. answer.RootElement.GetProperty("events").EnumerateArray().Select(e =>
                new Change(e.GetProperty("status").GetString()!, e.GetProperty("time").GetDateTime()))];
        }

        /// <summary>Waits until the history of a condition has these statuses, up first where it is known.</summary>
        public async Task<List<Change>> UntilAsync(string instance, string statuses, TimeSpan? within = null)
        {
            List<Change> history = [];
            try
            {
                await Wait.UntilAsync(async () =>
                {
                    history = await HistoryAsync(instance);
                    return Statuses(history) == statuses;
                }, within ?? Soon, statuses);
            }
            catch (TimeoutException)
            {
                Assert.Fail($"{instance}: {string.Join(", ", history)}, not {statuses}\n{Ses.Child.Output}");
            }
            return history;
        }

        public static string Statuses(List<Change> history) =>
            string.Join(' ', history.Select(c => c.Status).SkipWhile((s, i) => i == 0 && s == "up"));

        public async ValueTask DisposeAsync()
        {
            foreach (var prometheus in Prometheus.Where(p => p != null))
                await prometheus.DisposeAsync();
            if (_alertmanager != null)
                await _alertmanager.DisposeAsync();
            if (Ses != null)
                await Ses.DisposeAsync();
            _target.Close();
            Directory.Delete(_dir, recursive: true);
        }
    }

    internal static void AssertWhen(DateTime expected, DateTime seen)
    {
        var late = (seen - expected).TotalSeconds;
        Assert.True(late > -Early && late < Late, string.Create(CultureInfo.InvariantCulture,
            $"{late:0.000} s late: {seen:O} for {expected:O}"));
    }

    /// <summary>
    /// Outages that Alertmanager tells nobody of are in the history; a killed Prometheus makes no false up; what
    /// it never tells the end of is unknown.
    /// </summary>
    [Fact]
    public async Task HistoryIsThatOfTheTargetsWhateverAlertmanagerKeepsAndPrometheusForgets()
    {
        string[] cases = ["plain", "silenced", "inhibited", "kept", "forgotten", "removed", "severity"];
        await using var rig = await Rig.StartAsync(cases, prometheus: 1, pause: "20s");
        Array.ForEach(cases, c => rig.Set(c, isDown: true));
        foreach (var instance in cases)
            AssertWhen(rig.Truth[instance][0].Time, (await rig.UntilAsync(
                instance, instance == "severity" ? "degraded" : "down"))[^1].Time);
        await Wait.UntilAsync(async () => (await rig.HistoryAsync("plain", "RELAYED")).Count > 0, Soon, "the webhook");
        foreach (var instance in new[] { "silenced", "inhibited", "plain" })
        {
            rig.Set(instance, isDown: false);
            AssertWhen(rig.Truth[instance][^1].Time, (await rig.UntilAsync(instance, "down up"))[^1].Time);
        }
        Assert.Empty(await rig.HistoryAsync("silenced", "RELAYED"));
        Assert.Empty(await rig.HistoryAsync("inhibited", "RELAYED"));
        await rig.WriteRulesAsync(isGone: true);
        rig.Prometheus[0].Kill(Signal.Hangup);
        AssertWhen(DateTime.UtcNow, (await rig.UntilAsync("severity", "degraded down"))[^1].Time);
        rig.Prometheus[0].Kill(Signal.Kill);
        await rig.Prometheus[0].ExitAsync(Soon);
        rig.Set("forgotten", isDown: false);
        // With its series it would take the last value of each for another five minutes.
        rig.ForgetSeries(0);
        rig.StartPrometheus(0);
        // It comes back with a new start: in between nobody could know.
        var kept = await rig.UntilAsync("kept", "down unknown down");
        Assert.InRange(kept[^1].Time - kept[^2].Time, TimeSpan.Zero, TimeSpan.FromMinutes(1));
        rig.Set("kept", isDown: false);
        AssertWhen(rig.Truth["kept"][^1].Time, (await rig.UntilAsync("kept", "down unknown down up"))[^1].Time);
        // Neither has a last copy that says so: unknown for the validity, and for --pause.
        foreach (var instance in new[] { "forgotten", "removed" })
        {
            var history = await rig.UntilAsync(instance, "down unknown up", TimeSpan.FromMinutes(4));
            Assert.InRange(history[^1].Time - history[^2].Time,
                TimeSpan.FromSeconds(130 + 20), TimeSpan.FromSeconds(130 + 20 + 15));
        }
    }

}

/// <summary>A pair of Prometheus.</summary>
[Trait("Category", "E2E")]
public sealed class PrometheusPairEndToEndTests
{
    /// <summary>A pair with replica labels: one history, also while one of them is dead.</summary>
    [Fact]
    public async Task OfAPairEitherKeepsTheHistory()
    {
        await using var rig = await Rig.StartAsync(["first", "second"], prometheus: 2);
        rig.Set("first", isDown: true);
        AssertWhen(rig.Truth["first"][0].Time, (await rig.UntilAsync("first", "down"))[^1].Time);
        List<JsonElement> alerts = [];
        await Wait.UntilAsync(async () =>
        {
            alerts = [.. JsonDocument.Parse(await rig.Ses.Client.GetStringAsync("alerts/INS/api/v2/alerts")).RootElement.EnumerateArray()];
            return alerts.Count == 2;
        }, Soon, "both to have said so");
        // The one that saw it later: between the last copy of the other and the start that this one saw, nobody could know.
        var later = alerts.MaxBy(a => a.GetProperty("startsAt").GetDateTime()).GetProperty("labels").GetProperty("replica").GetString();
        rig.Prometheus[later == "0" ? 0 : 1].Kill(Signal.Kill);
        rig.Set("second", isDown: true);
        AssertWhen(rig.Truth["second"][0].Time, (await rig.UntilAsync("second", "down"))[^1].Time);
        // Until what the dead one said has lapsed.
        await Wait.UntilAsync(async () => JsonDocument.Parse(await rig.Ses.Client.GetStringAsync(
            "alerts/INS/api/v2/alerts")).RootElement.GetArrayLength() == 2, TimeSpan.FromMinutes(4), "a lapse");
        await rig.UntilAsync("first", "down");
        foreach (var instance in new[] { "first", "second" })
        {
            rig.Set(instance, isDown: false);
            AssertWhen(rig.Truth[instance][^1].Time, (await rig.UntilAsync(instance, "down up"))[^1].Time);
        }
    }

}

/// <summary>Prometheus or SeS is away for a while.</summary>
[Trait("Category", "E2E")]
public sealed class PrometheusAbsenceEndToEndTests
{
    /// <summary>
    /// Prometheus is stopped for 3 and for 8 minutes, SeS is away for 2 and for 8, each beside the others:
    /// <c>make soak</c>. Else it is 20 s each.
    /// </summary>
    [Fact]
    public async Task AbsencesMakeNoFalseUpAndNoFalseOutage()
    {
        var isLong = Environment.GetEnvironmentVariable("SES_SOAK") != null;
        TimeSpan Of(int minutes) => isLong ? TimeSpan.FromMinutes(minutes) : TimeSpan.FromSeconds(20);
        await Task.WhenAll(
            StoppedSenderAsync(Of(3)), StoppedSenderAsync(Of(8)), AbsentSesAsync(Of(2)), AbsentSesAsync(Of(8)));
    }

    private static async Task StoppedSenderAsync(TimeSpan length)
    {
        await using var rig = await Rig.StartAsync(["lasting", "ending"], prometheus: 1);
        foreach (var instance in new[] { "lasting", "ending" })
        {
            rig.Set(instance, isDown: true);
            AssertWhen(rig.Truth[instance][0].Time, (await rig.UntilAsync(instance, "down"))[^1].Time);
        }
        rig.Prometheus[0].Kill(Signal.Stop);
        rig.Set("ending", isDown: false);
        await Task.Delay(length);
        // Its state goes on while it is stopped, and it does not know of the end before it wakes up; after more
        // than five minutes it ends all, and begins it anew.
        if (length > TimeSpan.FromMinutes(3) - Soon / 2)
            Assert.Equal("down unknown", Rig.Statuses(await rig.HistoryAsync("lasting")));
        var woken = DateTime.UtcNow;
        rig.Prometheus[0].Kill(Signal.Continue);
        AssertWhen(woken, (await rig.UntilAsync("ending", "down up"))[^1].Time);
        var isLong = length > TimeSpan.FromMinutes(5);
        await rig.UntilAsync("lasting", isLong ? "down up down" : "down");
        rig.Set("lasting", isDown: false);
        AssertWhen(rig.Truth["lasting"][^1].Time,
            (await rig.UntilAsync("lasting", isLong ? "down up down up" : "down up"))[^1].Time);
    }

    private static async Task AbsentSesAsync(TimeSpan length)
    {
        string[] cases = ["lasting", "ending", "beginning"];
        await using var rig = await Rig.StartAsync(cases, prometheus: 1);
        foreach (var instance in new[] { "lasting", "ending" })
        {
            rig.Set(instance, isDown: true);
            AssertWhen(rig.Truth[instance][0].Time, (await rig.UntilAsync(instance, "down"))[^1].Time);
        }
        rig.Ses.Kill(Signal.Terminate);
        Assert.Equal(0, await rig.Ses.Child.ExitAsync(Soon));
        rig.Set("ending", isDown: false);
        rig.Set("beginning", isDown: true);
        await Task.Delay(length);
        await rig.Ses.RestartAsync();
        AssertWhen(rig.Truth["ending"][^1].Time, (await rig.UntilAsync("ending", "down up"))[^1].Time);
        AssertWhen(rig.Truth["beginning"][0].Time, (await rig.UntilAsync("beginning", "down"))[^1].Time);
        Assert.Equal("down", Rig.Statuses(await rig.HistoryAsync("lasting")));
        foreach (var instance in new[] { "lasting", "beginning" })
        {
            rig.Set(instance, isDown: false);
            AssertWhen(rig.Truth[instance][^1].Time, (await rig.UntilAsync(instance, "down up"))[^1].Time);
        }
    }

    /// <summary>The commands of the page, with Debian's amtool.</summary>
    [Fact]
    public async Task AmtoolSendsAndListsAlerts()
    {
        await using var ses = await SesProcess.StartAsync("none");
        var page = DocsPage.Named("alerts").Section("## Other senders\n", "\n## ");
        var commands = page[(page.IndexOf("```sh\n", StringComparison.Ordinal) + 6)..].Split("\n```")[0]
            .Replace("localhost:8888", $"127.0.0.1:{ses.Port}", StringComparison.Ordinal);
        await using var shell = ChildProcess.Start("bash", ["-ec", commands]);
        Assert.Equal(0, await shell.ExitAsync(Soon));
        Assert.Contains("BackupFailed", shell.Output, StringComparison.Ordinal);
        Assert.Contains("the backup of n1 failed", shell.Output, StringComparison.Ordinal);
        Assert.Contains("\"status\":\"down\"", await ses.Client.GetStringAsync("alerts/INS"), StringComparison.Ordinal);
    }
}
