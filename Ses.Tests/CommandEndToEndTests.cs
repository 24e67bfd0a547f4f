using System.Globalization;
using System.Net;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;
using Etcd = Ses.Tests.EtcdOutageEndToEndTests;

namespace Ses.Tests;

/// <summary>The commands of the native binary, beside a daemon and without one.</summary>
[Trait("Category", "E2E")]
public sealed partial class CommandEndToEndTests : IDisposable
{
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(20);

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-command-").FullName;

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    private static async Task<(int Exit, string Output)> RunAsync(params string[] arguments)
    {
        var unset = Environment.GetEnvironmentVariables().Keys.Cast<string>()
            .Where(n => n.StartsWith("OXSES_", Ordinal)).ToDictionary(n => n, _ => (string?)null);
        await using var command = ChildProcess.Start(SesProcess.Binary, arguments, unset);
        var exit = await command.ExitAsync(Soon);
        return (exit, command.Output);
    }

    private static string Alert(string service, string status, DateTime time) => $$$"""
        {"status":"firing","labels":{"platform":"p1","service":"{{{service}}}","facet":"node","status":"{{{status}}}",
        "description":"{{{new string('d', 300)}}}"},"annotations":{"location":"n1"},"startsAt":"{{{Rfc3339.Format(time)}}}"}
        """;

    private static string Body(params string[] alerts) =>
        $$"""{"version":"4","alerts":[{{string.Join(',', alerts)}}]}""";

    // ---- One story ----

    [Fact]
    public async Task TheOutageIsReportedAlikeInEachWay()
    {
        await using var ses = await SesProcess.StartAsync("none", _dir);
        foreach (var body in Etcd.Bodies)
            Assert.Equal(HttpStatusCode.NoContent, (await ses.PostAsync("INS", body)).StatusCode);
        Assert.Equal(Etcd.Truth, OfJson(await ses.Client.GetStringAsync("alerts/INS/history")));
        Assert.Equal(Etcd.Truth, OfCsv(await ses.Client.GetStringAsync("alerts/INS/history?format=csv")));
        Assert.Equal(Etcd.Truth, await OfPagesAsync(ses));
        foreach (var isRunning in new[] { true, false })
        {
            if (!isRunning)
            {
                ses.Kill(Signal.Terminate);
                Assert.Equal(0, await ses.Child.ExitAsync(Soon));
            }
            string[] history = ["history", "--data-dir", _dir, "--partition", "INS"];
            Assert.Equal(Etcd.Truth, OfJson((await RunAsync(history)).Output));
            Assert.Equal(Etcd.Truth, OfCsv((await RunAsync([.. history, "--format", "csv"])).Output));
            Assert.Equal(Etcd.Truth, OfTable((await RunAsync([.. history, "--format", "table"])).Output));
            var (exit, found) = await RunAsync("check", "--data-dir", _dir);
            Assert.Contains("Nothing is wrong: 14 events of 6 services.", found, Ordinal);
            Assert.Equal(0, exit);
        }
    }

    private static Dictionary<(string, string, string), List<string>> Grouped(
        IEnumerable<(string Platform, string Facet, string Location, string Status, string Time)> rows) =>
        rows.GroupBy(r => (r.Platform, r.Facet, r.Location)).ToDictionary(g => g.Key, g => g.Select(r =>
            Etcd.Told(r.Status, DateTime.Parse(r.Time, CultureInfo.InvariantCulture,
                DateTimeStyles.AdjustToUniversal | DateTimeStyles.AssumeUniversal))).ToList());

    private static Dictionary<(string, string, string), List<string>> OfJson(string text)
    {
        using var json = JsonDocument.Parse(text);
        Assert.Equal(JsonValueKind.Null, json.RootElement.GetProperty("next").ValueKind);
        return Grouped([.. json.RootElement.GetProperty("events").EnumerateArray().Select(e =>
            (Of(e, "platform"), Of(e, "facet"), Of(e, "location"), Of(e, "status"), Of(e, "time")))]);
    }

    private static string Of(JsonElement e, string name) => e.GetProperty(name).GetString()!;

    private static Dictionary<(string, string, string), List<string>> OfCsv(string text)
    {
        var rows = text.Split('\n', StringSplitOptions.RemoveEmptyEntries)
            .Select(l => CsvCell().Matches(l.TrimEnd('\r')).Select(m => m.Groups[1].Success
                ? m.Groups[1].Value.Replace("\"\"", "\"", Ordinal) : m.Groups[2].Value).ToArray()).ToList();
        Assert.Equal(["platform", "service", "facet", "location", "status", "time", "description", "received"], rows[0]);
        return Grouped(rows.Skip(1).Select(r => (r[0], r[2], r[3], r[4], r[5])));
    }

    private static Dictionary<(string, string, string), List<string>> OfTable(string text)
    {
        var lines = text.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        var starts = TableColumn().Matches(lines[0]).Select(m => m.Index).ToList();
        string Cell(string line, int i) => line[starts[i]..starts[i + 1]].TrimEnd();
        return Grouped(lines.Skip(1).Select(l => (Cell(l, 0), Cell(l, 2), Cell(l, 3), Cell(l, 4), Cell(l, 5))));
    }

    /// <summary>The changes that the pages of all services tell; found by the links of the first page.</summary>
    private static async Task<Dictionary<(string, string, string), List<string>>> OfPagesAsync(SesProcess ses)
    {
        var first = await ses.Client.GetStringAsync("?range=90d");
        Assert.Contains("All 6 services are up.", first, Ordinal);
        var rows = new List<(string, string, string, string, string)>();
        foreach (var link in ServiceLink().Matches(first).Select(m => WebUtility.HtmlDecode(m.Groups[1].Value)).Distinct())
        {
            var given = link.Split('?')[1].Split('&').Select(p => p.Split('='))
                .ToDictionary(p => p[0], p => Uri.UnescapeDataString(p[1]));
            var changes = (await ses.Client.GetStringAsync(link)).Split("<h2>Changes</h2>")[1];
            rows.AddRange(PageChange().Matches(changes).Reverse().Select(m => (given["platform"], given["facet"],
                given.GetValueOrDefault("location", ""), m.Groups[2].Value, m.Groups[1].Value)));
        }
        return Grouped(rows);
    }

    [GeneratedRegex("""(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))""")]
    private static partial Regex CsvCell();

    [GeneratedRegex(@"\S+")]
    private static partial Regex TableColumn();

    [GeneratedRegex("""href="(service\?[^"]+)["]""")]
    private static partial Regex ServiceLink();

    [GeneratedRegex("""<li><time datetime="([^"]+)">[^<]+</time> <span class="word \w+">. (?:<bdi>)?(\w+)""")]
    private static partial Regex PageChange();

    // ---- Asking while it is killed ----

    /// <summary>Nothing that is asked while the log is written and the writer is killed is half there.</summary>
    [Fact]
    public async Task QuestionsWhileItIsKilledAreAnsweredWhole()
    {
        await using var ses = await SesProcess.StartAsync("none", _dir);
        var start = DateTime.UtcNow.AddHours(-1);
        start = start.AddTicks(-(start.Ticks % TimeSpan.TicksPerSecond));
        var acknowledged = 0;
        for (var round = 0; round < 5; round++)
        {
            using var stop = new CancellationTokenSource();
            var first = round * 1000;
            var posting = PostAsync(ses, start, first, stop.Token);
            var asking = AskAsync(ses, stop.Token);
            for (var i = 0; i < 4; i++)
            {
                var (exit, output) = await RunAsync("history", "--data-dir", _dir, "--limit", "100000");
                Assert.Equal(0, exit);
                AssertWhole(output, start);
            }
            ses.Kill(Signal.Kill);
            await stop.CancelAsync();
            acknowledged += await posting;
            Assert.True(await asking > 0);
            var (found, told) = await RunAsync("check", "--data-dir", _dir);
            Assert.True(found == 0, told);
            await ses.RestartAsync();
        }
        var all = AssertWhole(await ses.Client.GetStringAsync("alerts/INS/history"), start);
        Assert.Equal(Assert.Single(LogFiles.History(_dir)).Value.Count, all);
        Assert.InRange(LogFiles.ReadEvents(_dir).Count, acknowledged, acknowledged + 5);
        Assert.True(acknowledged > 50, $"only {acknowledged} were posted");
    }

    /// <summary>Posts one change after the other, until it is stopped; returns how many were acknowledged.</summary>
    private static async Task<int> PostAsync(SesProcess ses, DateTime start, int first, CancellationToken stop)
    {
        var count = 0;
        while (!stop.IsCancellationRequested && count < 1000)
        {
            try
            {
                var time = start.AddSeconds(first + count);
                using var answer = await ses.PostAsync("INS", Body(Alert("etcd", count % 2 == 0 ? "up" : "down", time)));
                Assert.Equal(HttpStatusCode.NoContent, answer.StatusCode);
                count++;
            }
            catch (HttpRequestException)
            {
                break;
            }
        }
        return count;
    }

    /// <summary>Asks until it is stopped; returns how many answers there were.</summary>
    private static async Task<int> AskAsync(SesProcess ses, CancellationToken stop)
    {
        for (var count = 0; ; count++)
        {
            try
            {
                if (stop.IsCancellationRequested)
                    return count;
                using var json = JsonDocument.Parse(await ses.Client.GetStringAsync("alerts/INS/history", stop));
                Assert.All(json.RootElement.GetProperty("events").EnumerateArray(),
                    e => Assert.Equal(300, Of(e, "description").Length));
                Assert.Contains("</html>", await ses.Client.GetStringAsync("", stop), Ordinal);
            }
            catch (Exception e) when (e is HttpRequestException or OperationCanceledException or IOException)
            {
                return count;
            }
        }
    }

    /// <summary>Each event is one that was posted, in order of time; returns how many there are.</summary>
    private static int AssertWhole(string answer, DateTime start)
    {
        using var json = JsonDocument.Parse(answer);
        var last = DateTime.MinValue;
        var events = json.RootElement.GetProperty("events").EnumerateArray().ToList();
        foreach (var e in events)
        {
            Assert.True(Rfc3339.TryParse(Of(e, "time"), out var time));
            var number = (int)(time - start).TotalSeconds % 1000;
            Assert.Equal(number % 2 == 0 ? "up" : "down", Of(e, "status"));
            Assert.Equal(300, Of(e, "description").Length);
            Assert.True(time > last);
            last = time;
        }
        return events.Count;
    }

    // ---- Check ----

    [Fact]
    public async Task CheckReportsWhatIsWrong()
    {
        var clock = new ManualClock(new DateTime(2026, 11, 1, 12, 0, 0, DateTimeKind.Utc));
        var log = new EventLog(_dir, TimeSpan.FromDays(400), clock,
            new Log(LogLevel.Error, false, TextWriter.Null, clock), new Meters("test", "test"));
        for (var day = 0; day < 3; day++)
        {
            clock.UtcNow = new DateTime(2026, 11, 1 + day, 12, 0, 0, DateTimeKind.Utc);
            await log.AppendAsync(new Payload([new(Site.Service(1), "d", false, day % 2 == 0 ? "up" : "down",
                clock.UtcNow, null)], [], 0), "INS");
        }
        log.Stop();
        Assert.Equal(0, (await RunAsync("check", "--data-dir", _dir)).Exit);
        Assert.Equal(0, (await RunAsync("report", "--data-dir", _dir)).Exit);
        var files = Directory.GetFiles(_dir, "events-*.jsonl").Order(StringComparer.Ordinal).ToList();
        Assert.Equal(2, Directory.GetFiles(_dir, "*.index").Length);
        Assert.Equal(3, files.Count);

        await ExpectAsync(files[0], text => text.Replace("\"status\":\"up\"", "\"status\":up", Ordinal), "line 2 does not parse");
        await ExpectAsync(files[0], text => text[..^5], "its last line is cut off");
        await ExpectAsync(files[1], text => text.Replace("\"status\":\"up\"", "\"status\":\"down\"", Ordinal),
            "is not as the file before left it");
        await ExpectAsync(files[1], text => text[(text.IndexOf('\n', Ordinal) + 1)..], "stands in the first line");
        await ExpectAsync(files[0].Replace(".jsonl", ".index", Ordinal), text => text[..^1] + "x",
            "says what the file does not");
        await ExpectAsync(files[1], text => string.Join('\n', text.Split('\n')
            .Where(l => !l.StartsWith("{\"window\"", Ordinal))), "it has no window of INS/");
        await ExpectAsync(files[0], text => text.Replace("\"events\":[{", "\"events\":[{\"x\":{", Ordinal)
            .Replace("{\"end\"", "{\"window\":{\"partition\":\"INS\",\"events\":[]}}\n{\"end\"", Ordinal) + "spoilt\n", "does not parse");
        var copy = Directory.CreateDirectory(Path.Combine(_dir, "copy")).FullName;
        foreach (var file in Directory.GetFiles(_dir))
        {
            File.Copy(file, Path.Combine(copy, Path.GetFileName(file)));
            File.SetLastWriteTimeUtc(Path.Combine(copy, Path.GetFileName(file)), DateTime.UtcNow);
        }
        Assert.Equal(0, (await RunAsync("check", "--data-dir", copy)).Exit);
        var cursor = Path.Combine(_dir, "cursor.json");
        File.WriteAllText(cursor, "{\"url\":\"http://onix/\",\"file\":1,\"offset\":1234}");
        await ExpectAsync(cursor, text => text[..^5], "it does not parse");
        Assert.Contains("cursor.json: file 1, byte 1234", (await RunAsync("check", "--data-dir", _dir)).Output, Ordinal);
    }

    /// <summary>A service that was silent for longer than the log goes back is forgotten, and may speak again.</summary>
    [Fact]
    public async Task CheckKnowsWhatRetentionForgets()
    {
        var clock = new ManualClock(new DateTime(2026, 11, 1, 12, 0, 0, DateTimeKind.Utc));
        var log = new EventLog(_dir, TimeSpan.FromDays(2), clock,
            new Log(LogLevel.Error, false, TextWriter.Null, clock), new Meters("test", "test"))
        { KeepFrom = int.MaxValue };
        for (var day = 1; day <= 8; day++)
        {
            clock.UtcNow = new DateTime(2026, 11, day, 12, 0, 0, DateTimeKind.Utc);
            clock.Timestamp += TimeSpan.FromDays(1).Ticks;
            foreach (var number in day is 1 or 7 ? new[] { 1, 2 } : [2])
                await log.AppendAsync(new Payload([new(Site.Service(number), "d", false,
                    day % 2 == 0 ? "up" : "down", clock.UtcNow, null)], [], 0), "INS");
        }
        log.Stop();
        var (exit, output) = await RunAsync("check", "--data-dir", _dir);
        Assert.True(exit == 0, output);
        Assert.Contains("of 2 services", output, Ordinal);
    }

    private async Task ExpectAsync(string path, Func<string, string> spoil, string fault)
    {
        var whole = File.ReadAllBytes(path);
        var changed = File.GetLastWriteTimeUtc(path);
        File.WriteAllBytes(path, Encoding.Latin1.GetBytes(spoil(Encoding.Latin1.GetString(whole))));
        var (exit, output) = await RunAsync("check", "--data-dir", _dir);
        Assert.Contains(fault, output, Ordinal);
        Assert.Equal(1, exit);
        File.WriteAllBytes(path, whole);
        File.SetLastWriteTimeUtc(path, changed);
        Assert.Equal(0, (await RunAsync("check", "--data-dir", _dir)).Exit);
    }

    // ---- Quarantine ----

    [Theory]
    [InlineData("none")]
    [InlineData("basic")]
    public async Task QuarantinedAlertsAreSentAgainAfterACure(string mode)
    {
        const string bad = """{"status":"firing","labels":{"alertname":"NoJob"},"startsAt":"2026-11-22T11:34:34.489Z"}""";
        var now = DateTime.UtcNow.AddMinutes(-1);
        string[] password = mode == "basic" ? ["--password", "secret word"] : [];
        await using (var ses = await SesProcess.StartAsync("none", _dir))
            Assert.Equal(HttpStatusCode.OK, (await ses.PostAsync("INS", Body(bad, Alert("etcd", "up", now), "5"))).StatusCode);
        var (exit, listed) = await RunAsync("quarantine", "--data-dir", _dir, "--format", "csv");
        Assert.Equal(0, exit);
        Assert.Contains("INS,NoJob,it has no service", listed, Ordinal);
        Assert.Contains("INS,,it is not an object", listed, Ordinal);

        await using var cured = await SesProcess.StartAsync(
            "none", _dir, null, ["--map", "service=service,job,alertname", "--auth-mode", mode, .. password]);
        string[] retry = ["quarantine", "--data-dir", _dir, "--retry", "--url", $"http://127.0.0.1:{cured.Port}/alerts"];
        if (mode == "basic")
        {
            var (refused, word) = await RunAsync([.. retry, "--password", "wrong"]);
            Assert.Equal(2, refused);
            Assert.Contains("answered 401", word, Ordinal);
        }
        Assert.Equal((1, "2 alerts sent: 1 accepted, 1 stay in quarantine.\n"), await RunAsync([.. retry, .. password]));
        var (_, left) = await RunAsync("quarantine", "--data-dir", _dir, "--format", "csv");
        Assert.DoesNotContain("NoJob", left, Ordinal);
        Assert.Contains("it is not an object", left, Ordinal);
        Assert.Contains(LogFiles.ReadEvents(_dir), e => e.Service.Service == "NoJob" && e.Status == "down");
        await cured.RestartAsync();
        var (_, still) = await RunAsync("quarantine", "--data-dir", _dir, "--format", "csv");
        Assert.Equal(left, still);
    }

    // ---- Probe ----

    [Fact]
    public async Task ProbeOfASeSThatAsksForCertificatesSeesThatItIsThere()
    {
        var root = Authority.Root();
        var (certificate, key) = root.Issue().Write(_dir, "server");
        var ca = Path.Combine(_dir, "clients.pem");
        File.WriteAllText(ca, root.Pem);
        root.Issue("client", Purpose.Client).Write(_dir, "client");
        int port;
        string[] tls = ["--tls-cert", certificate, "--tls-client-ca", ca];
        await using (var ses = await SesProcess.StartAsync(
            "none", Path.Combine(_dir, "data"), null, [.. tls, "--tls-key", key]))
        {
            port = ses.Port;
            var (exit, output) = await RunAsync(["probe", "--port", $"{port}", .. tls]);
            Assert.True(exit == 0, output);
            Assert.Contains("takes only clients with a certificate", output, Ordinal);
            // Who does not know of it is told what happened.
            (exit, output) = await RunAsync(["probe", "--port", $"{port}", "--tls-cert", certificate]);
            Assert.Equal(1, exit);
            Assert.Contains("does not answer", output, Ordinal);
        }
        var (after, word) = await RunAsync(["probe", "--port", $"{port}", .. tls]);
        Assert.Equal(1, after);
        Assert.Contains("refused", word, Ordinal);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task ProbeReportsWhetherSeSIsReady(bool isSecure)
    {
        string[] tls = [];
        if (isSecure)
        {
            var (certificate, key) = Authority.Root().Issue().Write(_dir, "server");
            tls = ["--tls-cert", certificate, "--tls-key", key];
        }
        int port;
        await using (var ses = await SesProcess.StartAsync("none", Path.Combine(_dir, "data"), null, tls))
        {
            port = ses.Port;
            Assert.Equal((0, "{\"ready\":true,\"onix\":{\"state\":\"none\"}}\n"),
                await RunAsync(["probe", "--port", $"{port}", .. tls]));
        }
        var (exit, output) = await RunAsync(["probe", "--port", $"{port}", .. tls]);
        Assert.Equal(1, exit);
        Assert.Contains("does not answer", output, Ordinal);
    }

    [Fact]
    public async Task EmptyValueMayFollowAnEqualsSign()
    {
        await using (var ses = await SesProcess.StartAsync("none", _dir))
        {
            var now = DateTime.UtcNow.AddMinutes(-1);
            Assert.Equal(HttpStatusCode.NoContent, (await ses.PostAsync("INS", Body(
                Alert("etcd", "up", now), Alert("etcd", "down", now.AddSeconds(1))))).StatusCode);
        }
        string[] history = ["history", "--data-dir", _dir, "--format", "csv", "--limit=1"];
        const string columns = "partition,platform,service,facet,location,status,time,description,received\n";
        Assert.Equal((0, columns), await RunAsync([.. history, "--location="]));
        var (exit, output) = await RunAsync([.. history, "--platform=", "--location=n1"]);
        Assert.Equal(0, exit);
        Assert.Contains(columns + "INS,p1,etcd,node,n1,up,", output, Ordinal);
        var cursor = Regex.Match(output, @"There is more: --cursor ([\w-]+)\n").Groups[1].Value;
        Assert.Contains("INS,p1,etcd,node,n1,down,", (await RunAsync([.. history, "--cursor", cursor])).Output, Ordinal);
    }

    // ---- What cannot be ----

    [Theory]
    [InlineData("--from", "--from yesterday")]
    [InlineData("'0' is not usable", "--limit 0")]
    [InlineData("--format: 'xml' is not usable", "--format xml")]
    [InlineData("from: it is not before to", "--from -1h --to -2h")]
    [InlineData("--threshold is no flag", "--threshold 2")]
    public async Task BadFlagsAreNamed(string says, string flags)
    {
        await using (await SesProcess.StartAsync("none", _dir))
        {
        }
        var (exit, output) = await RunAsync(["history", "--data-dir", _dir, .. flags.Split(' ')]);
        Assert.Equal(2, exit);
        Assert.Contains(says, Assert.Single(output.Split('\n', StringSplitOptions.RemoveEmptyEntries)), Ordinal);
    }

    [Theory]
    [InlineData("history")]
    [InlineData("check")]
    [InlineData("quarantine")]
    public async Task FolderWithoutALogIsNamed(string command)
    {
        foreach (var dir in new[] { _dir, Path.Combine(_dir, "nowhere") })
        {
            var (exit, output) = await RunAsync(command, "--data-dir", dir);
            Assert.Equal(2, exit);
            Assert.Contains($"--data-dir (OXSES_DATADIR): '{dir}'", output, Ordinal);
        }
    }

    [Fact]
    public async Task LogOfANewerSeSIsRefused()
    {
        File.WriteAllText(Path.Combine(_dir, "events-000001-2026-11-01.jsonl"), "{\"ses\":2,\"created\":\"2026-11-01T00:00:00Z\"}\n");
        var (exit, output) = await RunAsync("status", "--data-dir", _dir);
        Assert.Equal(2, exit);
        Assert.Contains("which a newer SeS wrote", output, Ordinal);
    }

    [Theory]
    [InlineData("status", "--facet NAME")]
    [InlineData("history", "--cursor CURSOR")]
    [InlineData("report", "--threshold COUNT")]
    [InlineData("check", "--data-dir DIR  (OXSES_DATADIR)")]
    [InlineData("quarantine", "--retry BOOL")]
    public async Task HelpOfEachCommandListsItsFlags(string command, string says)
    {
        var (exit, output) = await RunAsync(command, "--help");
        Assert.Equal(0, exit);
        Assert.Contains(says, output, Ordinal);
        Assert.Contains(command, (await RunAsync("--help")).Output, Ordinal);
    }
}
