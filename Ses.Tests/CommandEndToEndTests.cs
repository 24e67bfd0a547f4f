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
        await using var command = ChildProcess.Start(SesProcess.Binary, arguments, SesProcess.Unset);
        var exit = await command.ExitAsync(Soon);
        return (exit, command.Output);
    }

    /// <summary>What a terminal gets of a command, as script(1) records it.</summary>
    private async Task<string> OnATerminalAsync(params string[] arguments)
    {
        var typescript = Path.Combine(_dir, "typescript");
        await using var command = ChildProcess.Start("script",
            ["-qec", $"{SesProcess.Binary} {string.Join(' ', arguments)}", typescript],
            new Dictionary<string, string?> { ["TERM"] = "xterm" });
        await command.ExitAsync(Soon);
        return File.ReadAllText(typescript);
    }

    [Fact]
    public async Task TerminalGetsNothingOfStrangersThatItObeys()
    {
        const string Hostile = @"x\u001b]0;y\u0007\u009bz\u202eü";
        await using (var ses = await SesProcess.StartAsync("none", _dir))
        {
            var start = Rfc3339.Format(DateTime.UtcNow);
            await ses.PostAsync("INS", Body($$"""
                {"status":"firing","labels":{"alertname":"A","job":"{{Hostile}}"},"startsAt":"{{start}}"}
                """, $$$"""{"status":"firing","labels":{"alertname":"{{{Hostile}}}"}}"""));
        }
        var lines = Path.Combine(_dir, "lines");
        File.WriteAllText(lines, $$"""{"kind":"{{Hostile}}"}""" + "\n");
        string[][] commands =
        [
            .. from command in new[] { "status", "history", "report", "quarantine" }
               from format in new[] { "table", "csv", "json" }
               select new[] { command, "--format", format },
            ["export"], ["check"], ["import", lines],
        ];
        foreach (var command in commands)
        {
            var shown = await OnATerminalAsync([.. command, "--data-dir", _dir]);
            var between = shown[(shown.IndexOf('\n', Ordinal) + 1)..shown.LastIndexOf("Script done", Ordinal)];
            Assert.DoesNotContain(between, c => c is not ('\r' or '\n') && Terminal.IsUnsafe(c));
            Assert.Equal(command[0] is not "check", between.Contains("z\ufffdü", Ordinal));
        }
        Assert.Contains("\u001b]0;y\u0007\u009bz\u202eü",
            (await RunAsync("status", "--format", "csv", "--data-dir", _dir)).Output, Ordinal);
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
        Assert.Equal(Etcd.Truth.Select(t => (t.Key, Value: t.Value.SkipWhile(v => !v.StartsWith("down", Ordinal)).ToList()))
            .Where(t => t.Value.Count > 0).ToDictionary(t => t.Key, t => t.Value), await OfPagesAsync(ses));
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
            // There to the second.
            Assert.Equal(Etcd.Truth.ToDictionary(t => t.Key, t => t.Value.ConvertAll(v => v.Split('.')[0] + ".000")), OfTable((await RunAsync([.. history, "--format", "table"])).Output));
            var (exit, found) = await RunAsync("check", "--data-dir", _dir);
            Assert.Contains("Nothing is wrong: 20 observations, 6 services.", found, Ordinal);
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

    /// <summary>The outages that the pages of all services tell; found by the links of the first page.</summary>
    private static async Task<Dictionary<(string, string, string), List<string>>> OfPagesAsync(SesProcess ses)
    {
        var first = await ses.Client.GetStringAsync("?range=90d");
        Assert.Contains("All 6 services are up", first, Ordinal);
        var rows = new List<(string, string, string, string, string)>();
        foreach (var link in ServiceLink().Matches(first).Select(m => WebUtility.HtmlDecode(m.Groups[1].Value)).Distinct())
        {
            using var page = await ses.Client.GetAsync(link);
            var given = page.RequestMessage!.RequestUri!.Query[1..].Split('&').Select(p => p.Split('='))
                .ToDictionary(p => p[0], p => Uri.UnescapeDataString(p[1]));
            var outages = (await page.Content.ReadAsStringAsync()).Split("<h2>Outages</h2>")[1].Split("</section>")[0];
            rows.AddRange(OutageRow().Matches(outages).Reverse().SelectMany(m => new[] { ("down", 1), ("up", 2) }.Select(s =>
                (given["platform"], given["facet"], given.GetValueOrDefault("location", ""), s.Item1, m.Groups[s.Item2].Value))));
        }
        return Grouped(rows);
    }

    [GeneratedRegex("""(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))""")]
    private static partial Regex CsvCell();

    [GeneratedRegex(@"\S+(?: \S+)*")]
    private static partial Regex TableColumn();

    [GeneratedRegex("""href="(s/[0-9a-f]{16}[^"]*)["]""")]
    private static partial Regex ServiceLink();

    [GeneratedRegex("""<li>.*?<time datetime="([^"]+)">.*?<time datetime="([^"]+)">.*?</li>""", RegexOptions.Singleline)]
    private static partial Regex OutageRow();

    // ---- Asking while it is killed ----

    /// <summary>Nothing that is asked while the database is written and the writer is killed is half there.</summary>
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
            var (first, before) = (round * 1000, StoreFiles.Observations(_dir));
            var posting = PostAsync(ses, start, first, stop.Token);
            var asking = AskAsync(ses, stop.Token);
            for (var i = 0; i < 4; i++)
            {
                var (exit, output) = await RunAsync("history", "--data-dir", _dir, "--limit", "100000");
                Assert.Equal(0, exit);
                AssertWhole(output, start);
            }
            await Wait.UntilAsync(() => StoreFiles.Observations(_dir) > before + 10, Soon, "posts of this round");
            ses.Kill(Signal.Kill);
            await stop.CancelAsync();
            acknowledged += await posting;
            Assert.True(await asking > 0);
            var (found, told) = await RunAsync("check", "--data-dir", _dir);
            Assert.True(found == 0, told);
            await ses.RestartAsync();
        }
        var all = AssertWhole(await ses.Client.GetStringAsync("alerts/INS/history"), start);
        Assert.Equal(Assert.Single(StoreFiles.History(_dir)).Value.Count, all);
        Assert.InRange(StoreFiles.Observations(_dir), acknowledged, acknowledged + 5);
        Assert.True(acknowledged >= 50, $"only {acknowledged} were posted");
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

    // ---- Check, rebuild ----

    private static async Task FillAsync(string dir, int count = 40)
    {
        await using var ses = await SesProcess.StartAsync("none", dir);
        await PostAsync(ses, count);
    }

    private static async Task PostAsync(SesProcess ses, int count, string service = "etcd")
    {
        var start = DateTime.UtcNow.AddHours(-1);
        start = start.AddTicks(-(start.Ticks % TimeSpan.TicksPerSecond));
        for (var i = 0; i < count; i++)
            Assert.Equal(HttpStatusCode.NoContent, (await ses.PostAsync("INS", Body(Alert($"{service}{i % 5}",
                i / 5 % 2 == 0 ? "up" : "down", start.AddSeconds(i))))).StatusCode);
    }

    [Theory]
    [InlineData("UPDATE observation SET status = 3 - status WHERE id = (SELECT max(id) FROM observation)", "observation", false)]
    [InlineData("UPDATE alert SET text = 'x' WHERE id = (SELECT min(id) FROM alert)", "alert", false)]
    [InlineData("DELETE FROM timeline", "ses rebuild", true)]
    [InlineData("UPDATE timeline SET since = since - 1 WHERE at > (SELECT min(at) FROM timeline)", "ses rebuild", true)]
    [InlineData("UPDATE service SET status = 1", "ses rebuild", true)]
    public async Task CheckNamesWhatIsDamagedAndRebuildMendsWhatIsDerived(string damage, string word, bool isMended)
    {
        await FillAsync(_dir);
        Assert.Equal(0, (await RunAsync("check", "--data-dir", _dir)).Exit);
        var before = (await RunAsync("history", "--data-dir", _dir, "--format", "csv")).Output;
        using (var database = new SqliteConnection(StoreFiles.PathOf(_dir), isReadOnly: false, 100))
            database.Execute(damage);
        var (exit, output) = await RunAsync("check", "--data-dir", _dir);
        Assert.Equal(1, exit);
        Assert.Contains(word, output, Ordinal);
        Assert.Equal(0, (await RunAsync("rebuild", "--data-dir", _dir)).Exit);
        Assert.Equal(isMended ? 0 : 1, (await RunAsync("check", "--data-dir", _dir)).Exit);
        if (isMended)
            Assert.Equal(before, (await RunAsync("history", "--data-dir", _dir, "--format", "csv")).Output);
    }

    [Fact]
    public async Task RebuildAndRestoreAreRefusedBesideADaemon()
    {
        await using var ses = await SesProcess.StartAsync("none", _dir);
        await PostAsync(ses, 5);
        var backup = Path.Combine(_dir, "backup");
        Assert.Equal(0, (await RunAsync("backup", "--data-dir", _dir, backup)).Exit);
        foreach (var arguments in new[] { new[] { "rebuild" }, ["restore", backup] })
        {
            var (exit, output) = await RunAsync([.. arguments, "--data-dir", _dir]);
            Assert.Equal(2, exit);
            Assert.Contains("in use by another SeS", output, Ordinal);
        }
        Assert.Equal(HttpStatusCode.OK, (await ses.Client.GetAsync(new Uri("ready", UriKind.Relative))).StatusCode);
    }

    // ---- Backup, restore ----

    [Fact]
    public async Task BackupMadeUnderLoadIsRestored()
    {
        var (source, target) = (Path.Combine(_dir, "a"), Path.Combine(_dir, "b"));
        var backup = Path.Combine(_dir, "backup.db");
        await using (var ses = await SesProcess.StartAsync("none", source))
        {
            await PostAsync(ses, 20);
            var load = PostAsync(ses, 300, "load");
            var (exit, output) = await RunAsync("backup", "--data-dir", source, backup);
            Assert.True(exit == 0, output);
            await load;
        }
        Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(backup));
        var (again, word) = await RunAsync("backup", "--data-dir", source, backup);
        Assert.Equal(2, again);
        Assert.Contains("FILE: ", word, Ordinal);
        // Over what is there: it is gone, its log too.
        await FillAsync(target, 7);
        Assert.Equal(0, (await RunAsync("restore", "--data-dir", target, backup)).Exit);
        Assert.Equal(0, (await RunAsync("check", "--data-dir", target)).Exit);
        Assert.Equal(["lock", "ses.db"], Directory.GetFiles(target).Select(Path.GetFileName).Order());
        var (kept, all) = (StoreFiles.Starts(target), StoreFiles.Starts(source));
        Assert.InRange(kept.Count, 20, all.Count);
        Assert.Subset(all.ToHashSet(), kept.ToHashSet());
        string[] stores = [.. new[] { source, target, Path.GetDirectoryName(backup)! }.Take(2).Select(d =>
        {
            using var database = new SqliteConnection(StoreFiles.PathOf(d), isReadOnly: true, 100);
            using var id = database.Query("SELECT value FROM meta WHERE name = 'store'");
            return id.FirstText()!;
        })];
        Assert.NotEqual(stores[0], stores[1]);
        await using var restored = await SesProcess.StartAsync("none", target);
        await PostAsync(restored, 5, "after");
    }

    [Theory]
    [InlineData("")]
    [InlineData("this is not a database")]
    public async Task WhatIsNoBackupIsNotRestored(string content)
    {
        await FillAsync(_dir, 5);
        var file = Path.Combine(_dir, "file");
        File.WriteAllText(file, content);
        Assert.Equal(2, (await RunAsync("restore", "--data-dir", _dir, file)).Exit);
        Assert.Equal(2, (await RunAsync("restore", "--data-dir", _dir, file + "-nowhere")).Exit);
        Assert.Equal(2, (await RunAsync("restore", "--data-dir", _dir)).Exit);
        Assert.Equal(0, (await RunAsync("check", "--data-dir", _dir)).Exit);
        Assert.Equal(5, StoreFiles.Observations(_dir));
    }

    // ---- Export, import ----

    [Fact]
    public async Task TwoStoresAreMadeEqual()
    {
        string[] dirs = [Path.Combine(_dir, "a"), Path.Combine(_dir, "b")];
        for (var i = 0; i < 2; i++)
        {
            await using var ses = await SesProcess.StartAsync("none", dirs[i], null, "--name", $"ses-{i}");
            await PostAsync(ses, 20, $"own{i}-");
            await PostAsync(ses, 20, "both");
        }
        async Task<string> MoveAsync(string from, string to)
        {
            var lines = Path.Combine(_dir, "lines");
            var (exit, output) = await RunAsync("export", "--data-dir", from);
            Assert.Equal(0, exit);
            File.WriteAllText(lines, output);
            (exit, output) = await RunAsync("import", "--data-dir", to, lines);
            Assert.Equal(0, exit);
            return output;
        }
        Assert.Contains(": 41 new facts, 0 known, 0 refused.", await MoveAsync(dirs[0], dirs[1]), Ordinal);
        Assert.Contains(": 41 new facts, 41 known, 0 refused.", await MoveAsync(dirs[1], dirs[0]), Ordinal);
        Assert.Contains(": 0 new facts, 82 known, 0 refused.", await MoveAsync(dirs[0], dirs[1]), Ordinal);
        var histories = new List<string>();
        foreach (var dir in dirs)
        {
            await using (await SesProcess.StartAsync("none", dir))
            {
            }
            histories.Add(string.Join('\n', StoreFiles.Changes(dir).Select(c => $"{c.Service} {c.Status} {c.Time:O}").Order(StringComparer.Ordinal)));
            Assert.Equal(0, (await RunAsync("check", "--data-dir", dir)).Exit);
        }
        Assert.Equal(histories[0], histories[1]);
    }

    [Fact]
    public async Task ImportBesideADaemonIsAnswered()
    {
        var source = Path.Combine(_dir, "a");
        await FillAsync(source);
        var lines = Path.Combine(_dir, "lines");
        File.WriteAllText(lines, (await RunAsync("export", "--data-dir", source)).Output);
        await using var ses = await SesProcess.StartAsync("none", Path.Combine(_dir, "b"));
        await PostAsync(ses, 10, "own");
        var load = PostAsync(ses, 200, "load");
        Assert.Equal(0, (await RunAsync("import", "--data-dir", ses.DataDir, lines)).Exit);
        await load;
        await Wait.UntilAsync(async () => (await ses.Client.GetStringAsync("alerts/INS?format=csv"))
            .Split('\n').Count(l => l.Contains(",etcd", Ordinal)) == 5, Soon, "what was imported");
        await PostAsync(ses, 5, "after");
        ses.Kill(Signal.Terminate);
        Assert.Equal(0, await ses.Child.ExitAsync(Soon));
        Assert.Equal(0, (await RunAsync("check", "--data-dir", ses.DataDir)).Exit);
        Assert.Equal(40 + 10 + 200 + 5, StoreFiles.Observations(ses.DataDir));
    }

    [Fact]
    public async Task LineThatWasChangedIsRefusedAndTheOthersAreTaken()
    {
        await FillAsync(Path.Combine(_dir, "a"), 5);
        var lines = (await RunAsync("export", "--data-dir", Path.Combine(_dir, "a"))).Output.Split('\n')[..^1];
        lines[2] = lines[2].Replace("\"up\"", "\"down\"", Ordinal);
        var file = Path.Combine(_dir, "lines");
        File.WriteAllLines(file, [.. lines, "hello"]);
        var (exit, output) = await RunAsync("import", "--data-dir", Path.Combine(_dir, "b"), file);
        Assert.Equal(1, exit);
        Assert.Contains("line 3: the id does not match the content", output, Ordinal);
        Assert.Contains("line 7: the line is not JSON", output, Ordinal);
        Assert.Contains("7 lines: 5 new facts, 0 known, 2 refused.", output, Ordinal);
    }

    [Fact]
    public async Task AsOfTellsWhatWasKnown()
    {
        await using var ses = await SesProcess.StartAsync("none", _dir);
        await PostAsync(ses, 10);
        using var answer = JsonDocument.Parse(await ses.Client.GetStringAsync("alerts/INS/history"));
        var asOf = Of(answer.RootElement, "as_of");
        await PostAsync(ses, 10, "later");
        string[] history = ["history", "--data-dir", _dir, "--partition", "INS", "--as-of", asOf];
        Assert.Equal(answer.RootElement.GetRawText() + "\n", (await RunAsync(history)).Output);
        Assert.Equal(2, (await RunAsync("status", "--data-dir", _dir, "--as-of", "2999-01-01T00:00Z")).Exit);
    }

    /// <summary>The documented views, by the program that people have.</summary>
    [Fact]
    public async Task ViewsAreReadByDebiansSqlite()
    {
        await using var ses = await SesProcess.StartAsync("none", _dir);
        foreach (var body in Etcd.Bodies)
            Assert.Equal(HttpStatusCode.NoContent, (await ses.PostAsync("INS", body)).StatusCode);
        await ses.Client.GetStringAsync("alerts/INS");
        async Task<string[]> SqlAsync(string sql)
        {
            await using var sqlite = ChildProcess.Start("sqlite3", ["-readonly", StoreFiles.PathOf(_dir), sql]);
            Assert.Equal(0, await sqlite.ExitAsync(Soon));
            return sqlite.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        }
        Assert.Equal(
            ["node|127.0.0.1:17399|2026-11-22T11:34:55.489Z|2026-11-22T11:35:36.489Z|41.0",
                "node|127.0.0.1:17389|2026-11-22T11:35:15.489Z|2026-11-22T11:35:36.489Z|21.0"],
            await SqlAsync("""
                SELECT facet, location, from_time, to_time, seconds FROM outages
                WHERE service = 'etcd' AND facet = 'node' AND from_time LIKE '2026-11-%' ORDER BY from_time
                """));
        Assert.Equal("6", Assert.Single(await SqlAsync("SELECT count(*) FROM services WHERE status = 'up' AND since > '2026'")));
        Assert.Equal("InstanceDown resolved", Assert.Single(await SqlAsync("""
            SELECT DISTINCT description FROM history WHERE facet = 'InstanceDown' AND status = 'up' AND received > '2026'
            """)));
    }

    // ---- Quarantine ----

    [Theory]
    [InlineData("none")]
    [InlineData("basic")]
    public async Task QuarantinedAlertsAreSentAgainAfterACure(string mode)
    {
        const string bad = """{"status":"firing","labels":{"status":"down","facet":"node","svc":"db"},"startsAt":"2026-11-22T11:34:34.489Z"}""";
        var now = DateTime.UtcNow.AddMinutes(-1);
        string[] password = mode == "basic" ? ["--password", "secret word"] : [];
        await using (var ses = await SesProcess.StartAsync("none", _dir))
            Assert.Equal(HttpStatusCode.OK, (await ses.PostAsync("INS", Body(bad, Alert("etcd", "up", now), "5"))).StatusCode);
        var (exit, listed) = await RunAsync("quarantine", "--data-dir", _dir, "--format", "csv");
        Assert.Equal(0, exit);
        Assert.Contains("INS,,it has no service", listed, Ordinal);
        Assert.Contains("INS,,it is not an object", listed, Ordinal);

        await using var cured = await SesProcess.StartAsync(
            "none", _dir, null, ["--map", "service=service,svc", "--auth-mode", mode, .. password]);
        string[] retry = ["quarantine", "--data-dir", _dir, "--retry", "--url", $"http://127.0.0.1:{cured.Port}/alerts"];
        if (mode == "basic")
        {
            var (refused, word) = await RunAsync([.. retry, "--password", "wrong"]);
            Assert.Equal(2, refused);
            Assert.Contains("answered 401", word, Ordinal);
        }
        Assert.Equal((1, "2 alerts sent, 1 accepted. Left in quarantine: 1.\n"), await RunAsync([.. retry, .. password]));
        var (_, left) = await RunAsync("quarantine", "--data-dir", _dir, "--format", "csv");
        Assert.DoesNotContain("it has no service", left, Ordinal);
        Assert.Contains("it is not an object", left, Ordinal);
        Assert.Contains(StoreFiles.Changes(_dir), e => e.Service.Service == "db" && e.Status == "down");
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
            Assert.Contains("accepts only clients with a certificate", output, Ordinal);
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
        var (exit, output) = await RunAsync([.. history, "--location="]);
        // Both streams are read at once.
        Assert.Equal(4, exit);
        Assert.Equal([columns.TrimEnd(), "ses: no service matches --location ''"], output.TrimEnd().Split('\n').Order(StringComparer.Ordinal));
        (exit, output) = await RunAsync([.. history, "--platform=", "--location=n1"]);
        Assert.Equal(0, exit);
        Assert.Contains(columns + "INS,p1,etcd,node,n1,up,", output, Ordinal);
        var cursor = Regex.Match(output, @"There is more: --cursor ([\w-]+)\n").Groups[1].Value;
        Assert.Contains("INS,p1,etcd,node,n1,down,", (await RunAsync([.. history, "--cursor", cursor])).Output, Ordinal);
    }

    // ---- What cannot be ----

    [Theory]
    [InlineData("--from", "--from yesterday")]
    [InlineData("'0' is not valid", "--limit 0")]
    [InlineData("--format: 'xml' is not valid", "--format xml")]
    [InlineData("from must be before 'to'", "--from -1h --to -2h")]
    [InlineData("--threshold is not a flag", "--threshold 2")]
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
    public async Task FolderWithoutADatabaseIsNamed(string command)
    {
        foreach (var dir in new[] { _dir, Path.Combine(_dir, "nowhere") })
        {
            var (exit, output) = await RunAsync(command, "--data-dir", dir);
            Assert.Equal(2, exit);
            Assert.Contains($"--data-dir (OXSES_DATADIR): '{dir}'", output, Ordinal);
        }
    }

    [Fact]
    public async Task DatabaseOfANewerSeSOrOfOthersIsRefused()
    {
        await using (await SesProcess.StartAsync("none", _dir))
        {
        }
        foreach (var (damage, says) in new[] { ("PRAGMA user_version = 99", "has schema version 99; this SeS reads only"),
            ("PRAGMA application_id = 7", "is not a database of SeS") })
        {
            using (var database = new SqliteConnection(StoreFiles.PathOf(_dir), isReadOnly: false, 100))
                database.Execute(damage);
            foreach (var command in new[] { "status", "check" })
            {
                var (exit, output) = await RunAsync(command, "--data-dir", _dir);
                Assert.Equal(2, exit);
                Assert.Contains(says, output, Ordinal);
            }
            var (code, word) = await RunAsync("--onix-url", "none", "--port", "0", "--data-dir", _dir);
            Assert.Equal(2, code);
            Assert.Contains(says, word, Ordinal);
        }
        File.WriteAllText(StoreFiles.PathOf(_dir), "this is not a database at all, though it is long enough for one");
        Assert.Equal(2, (await RunAsync("check", "--data-dir", _dir)).Exit);
    }

    [Theory]
    [InlineData("status", "--facet NAME")]
    [InlineData("history", "--cursor CURSOR")]
    [InlineData("report", "--threshold COUNT")]
    [InlineData("check", "--data-dir DIR  (OXSES_DATADIR)")]
    [InlineData("purge", "--dry-run BOOL")]
    [InlineData("quarantine", "--retry BOOL")]
    public async Task HelpOfEachCommandListsItsFlags(string command, string says)
    {
        var (exit, output) = await RunAsync(command, "--help");
        Assert.Equal(0, exit);
        Assert.Contains(says, output, Ordinal);
        Assert.Contains(command, (await RunAsync("--help")).Output, Ordinal);
    }
}
