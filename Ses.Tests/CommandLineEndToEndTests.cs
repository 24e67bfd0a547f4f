using System.Net;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>The native binary as people and scripts type it: "Command line" in docs/api.md.</summary>
[Trait("Category", "E2E")]
public sealed partial class CommandLineEndToEndTests : IDisposable
{
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(30);

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-line-").FullName;

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    private async Task<(int Exit, string Output)> RunAsync(params string[] arguments)
    {
        await using var command = ChildProcess.Start(SesProcess.Binary, arguments, SesProcess.Unset, _dir);
        var exit = await command.ExitAsync(Soon);
        return (exit, command.Output);
    }

    /// <summary>In a shell whose <c>ses</c> is the binary.</summary>
    private async Task<(int Exit, string Output)> ShellAsync(string script)
    {
        var bin = Directory.CreateDirectory(Path.Combine(_dir, "bin")).FullName;
        if (!File.Exists(Path.Combine(bin, "ses")))
            File.CreateSymbolicLink(Path.Combine(bin, "ses"), SesProcess.Binary);
        var environment = SesProcess.Unset;
        environment["PATH"] = $"{bin}:{Environment.GetEnvironmentVariable("PATH")}";
        await using var shell = ChildProcess.Start("sh", ["-c", script], environment, _dir);
        var exit = await shell.ExitAsync(Soon);
        return (exit, shell.Output);
    }

    private static string Alert(string name, string job, string instance, string ends = "0001-01-01T00:00:00Z") => $$$"""
        {"status":"{{{(ends.StartsWith("0001", Ordinal) ? "firing" : "resolved")}}}","startsAt":"{{{Start}}}","endsAt":"{{{ends}}}",
        "labels":{"alertname":"{{{name}}}","job":"{{{job}}}","instance":"{{{instance}}}","severity":"critical"}}
        """;

    private static readonly string
        Start = Rfc3339.Format(new DateTime(DateTime.UtcNow.AddHours(-1).Ticks / 10_000_000 * 10_000_000, DateTimeKind.Utc)),
        End = Rfc3339.Format(new DateTime(DateTime.UtcNow.AddMinutes(-30).Ticks / 10_000_000 * 10_000_000, DateTimeKind.Utc));

    private static string Body(params string[] alerts) => $$"""{"version":"4","alerts":[{{string.Join(',', alerts)}}]}""";

    /// <summary>etcd's node n1 is down, payment was; one alert cannot be mapped.</summary>
    private Task<SesProcess> StartAsync(params string[] extra) => SesProcess.StartAsync("none", Path.Combine(_dir, "ses-data"), null, extra);

    private static async Task FillAsync(SesProcess ses)
    {
        using var answer = await ses.PostAsync("INS", Body(Alert("Down", "etcd", "n1"), Alert("Slow", "payment", "p1", End),
            """{"status":"firing","labels":{"alertname":"Odd","severity":"warning"}}"""));
        Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
    }

    // ---- What is wrong is named ----

    [Theory]
    [InlineData("'statsu' is not a command of SeS; the nearest is status. Try ses --help.", "statsu")]
    [InlineData("'statsu' is not a command of SeS; the nearest is status. Try ses --help.", "help", "statsu")]
    [InlineData("'statsu' is not a command of SeS; the nearest is status. Try ses --help.", "statsu", "--help")]
    [InlineData("'STATUS' is not a command of SeS; the nearest is status. Try ses --help.", "STATUS")]
    [InlineData("'wxyzwxyz' is not a command of SeS. Try ses --help.", "wxyzwxyz")]
    [InlineData("-p is not a flag of ses. Try ses --help.", "-p", "8888")]
    [InlineData("--service needs a value: --service NAME. Try ses status --help.", "status", "--service", "--fail-if-down")]
    [InlineData("--port needs a value: --port PORT. Try ses --help.", "help", "--port")]
    [InlineData("-password is not a flag of ses status; the nearest is --password. Try ses status --help.", "status", "-password hunter2")]
    [InlineData("'password=...' belongs to no flag; quote a value that has spaces. Try ses status --help.", "status", "password=hunter2")]
    [InlineData("'password=...' is not a command of SeS. Try ses --help.", "password=hunter2")]
    [InlineData("--auth-mode (OXSES_AUTHMODE): 'basi' is not valid; allowed: none, basic, oidc", "--auth-mode", "basi")]
    [InlineData("--partition: '..' is not valid; allowed: the name of a partition", "status", "--url", "http://127.0.0.1:1/alerts", "--partition", "..")]
    [InlineData("--token-file needs --url", "status", "--token-file", "/dev/null")]
    [InlineData("--password needs --url", "report", "--password", "hunter2")]
    [InlineData("--url needs --retry", "quarantine", "--url", "http://127.0.0.1:1/alerts")]
    [InlineData("--token-file and --password cannot be used together", "status", "--url", "http://127.0.0.1:1/alerts",
        "--partition", "INS", "--token-file", "/dev/null", "--password", "hunter2")]
    [InlineData("--token-file: '/dev/null' holds no token", "status", "--url", "http://127.0.0.1:1/alerts",
        "--partition", "INS", "--token-file", "/dev/null")]
    [InlineData("'status' is a command and must come first: ses status --help lists its flags.", "--port", "0", "status")]
    [InlineData("--prot is not a flag of ses; the nearest is --port. Try ses --help.", "--prot", "8888")]
    [InlineData("--prot is not a flag of ses; the nearest is --port. Try ses --help.", "--prot=8888")]
    [InlineData("-port is not a flag of ses; the nearest is --port. Try ses --help.", "-port", "8888")]
    [InlineData("--pasword is not a flag of ses; the nearest is --password. Try ses --help.", "--pasword", "hunter2")]
    [InlineData("--wxyzwxyz is not a flag of ses. Try ses --help.", "--wxyzwxyz")]
    [InlineData("--threshold is not a flag of ses history, but of ses report. Try ses history --help.", "history", "--threshold", "2")]
    [InlineData("--retention is not a flag of ses status, but of ses. Try ses status --help.", "status", "--retention", "2d")]
    [InlineData("'etcd' belongs to no flag; quote a value that has spaces. Try ses status --help.", "status", "etcd")]
    [InlineData("'b' belongs to no flag; quote a value that has spaces. Try ses backup --help.", "backup", "a", "b")]
    [InlineData("An argument belongs to no flag; quote a value that has spaces. Try ses --help.", "--password", "my", "hunter2")]
    [InlineData("FILE is missing. Try ses backup --help.", "backup")]
    [InlineData("--port needs a value: --port PORT. Try ses --help.", "--port")]
    [InlineData("--port is given 2 times. Try ses --help.", "--port", "1", "--port", "2")]
    [InlineData("--order: 'up' is not valid; allowed: asc, desc", "history", "--order", "up", "--data-dir", "ses-data")]
    [InlineData("--fail-if-down: 'x' is not valid; allowed: true, false", "status", "--fail-if-down", "x", "--data-dir", "ses-data")]
    [InlineData("--partition is needed with --url", "status", "--url", "http://127.0.0.1:1/alerts")]
    [InlineData("--url and --data-dir cannot be used together", "status", "--url", "http://127.0.0.1:1/alerts", "--data-dir", "x")]
    [InlineData("--url: 'ftp://x' is not valid; allowed: an http or https URL without credentials",
        "status", "--partition", "INS", "--url", "ftp://x")]
    public async Task WrongArgumentIsNamed(string says, params string[] arguments)
    {
        await using (await StartAsync())
        {
        }
        var (exit, output) = await RunAsync(arguments);
        Assert.Equal($"ses: {says}\n", output);
        Assert.Equal(2, exit);
    }

    [Fact]
    public async Task HelpIsThatOfTheCommand()
    {
        Assert.Equal(await RunAsync("--help"), await RunAsync("help"));
        Assert.Equal(await RunAsync("status", "--help"), await RunAsync("help", "status"));
        Assert.Equal(0, (await RunAsync("help", "status")).Exit);
    }

    // ---- The page's examples ----

    /// <summary>Each line after a prompt, and what it is answered.</summary>
    [Fact]
    public async Task MistypedCommandsOfThePageAreAnsweredSo()
    {
        var lines = DocsPage.Named("api").CodeOf("Command line", "text");
        var script = string.Join('\n', lines.Where(l => l.StartsWith("$ ", Ordinal)).Select(l => $"echo '{l}'; {l[2..]} 2>&1"));
        Assert.Equal(string.Join('\n', lines) + "\n", (await ShellAsync(script)).Output);
    }

    [Fact]
    public async Task QuestionsOfThePageAreAnswered()
    {
        await using var ses = await StartAsync();
        await FillAsync(ses);
        foreach (var line in DocsPage.Named("api").CodeOf("Queries on the command line", "sh").Where(l => !l.StartsWith('#')))
        {
            var (exit, output) = await ShellAsync(line);
            Assert.Equal(line.Contains("--fail-if-down", Ordinal) ? 3 : line.Contains("--facet node", Ordinal) ? 4 : 0, exit);
            Assert.True(output.Contains("\"etcd\"", Ordinal) || output.Contains("{alertname=\\\"Odd\\\", severity=\\\"warning\\\"}", Ordinal)
                || exit == 4 || File.ReadAllText(Path.Combine(_dir, "etcd.csv")).Contains(",etcd,Down,n1,down,", Ordinal), output);
        }
        foreach (var line in DocsPage.Named("api").CodeOf("Querying another SeS", "sh"))
        {
            var (exit, output) = await ShellAsync(line.Replace("ses-1:8888", $"127.0.0.1:{ses.Port}", Ordinal));
            Assert.Equal(0, exit);
            Assert.Contains("etcd", output, Ordinal);
        }
    }

    /// <summary>The README's other ways to ask, and the copy that Datasette is given.</summary>
    [Fact]
    public async Task DatabaseIsAskedAsTheDocumentsSay()
    {
        await using var ses = await StartAsync();
        await FillAsync(ses);
        var readme = DocsPage.Readme.Section("\nThe [command line]", "\n## ").Split("```sh\n")[1].Split("```")[0];
        foreach (var line in readme.Split('\n', StringSplitOptions.RemoveEmptyEntries))
        {
            var (exit, output) = await ShellAsync(line);
            Assert.True(exit == 0, output);
            Assert.Contains("etcd", output, Ordinal);
        }
        // Datasette is not there: it is given a database with the views.
        var backup = DocsPage.Named("sql").CodeOf("Datasette", "sh");
        Assert.StartsWith("datasette history.db", backup[1], Ordinal);
        var copy = await ShellAsync(backup[0].Replace("/var/lib/ses", "ses-data", Ordinal) + " && sqlite3 history.db 'SELECT * FROM outages'");
        Assert.True(copy.Exit == 0, copy.Output);
        Assert.Contains("etcd", copy.Output, Ordinal);
    }

    [Fact]
    public async Task ScriptOfThePageTellsTheCodesApart()
    {
        var script = string.Join('\n', DocsPage.Named("api").CodeOf("Exit codes", "sh"));
        Assert.Contains("SeS cannot tell", (await ShellAsync("export OXSES_DATADIR=nowhere\n" + script)).Output, Ordinal);
        await using var ses = await StartAsync();
        Assert.Contains("SeS knows no such service", (await ShellAsync(script)).Output, Ordinal);
        foreach (var (ends, says) in new[] { ("0001-01-01T00:00:00Z", "lacks its quorum"), (End, "has its quorum") })
        {
            Assert.Equal(HttpStatusCode.NoContent, (await ses.PostAsync("INS", Body(Alert("quorum", "etcd", "", ends)))).StatusCode);
            Assert.Contains(says, (await ShellAsync(script)).Output, Ordinal);
        }
    }

    [Fact]
    public void ExitCodesOfThePageAreThoseOfTheProgram() => Assert.Equal(
        ["0", "1", "2", $"{Program.IsDown}", $"{Program.NoMatch}"],
        DocsPage.Named("api").Table("Exit codes").Select(r => r[0]));

    // ---- Exit codes ----

    [Theory]
    [InlineData(0, "status")]
    [InlineData(3, "status", "--fail-if-down")]
    [InlineData(0, "status", "--fail-if-down", "false")]
    [InlineData(0, "status", "--fail-if-down", "--service", "payment")]
    [InlineData(4, "status", "--fail-if-down", "--service", "etdc")]
    [InlineData(4, "status", "--service", "etdc")]
    [InlineData(4, "report", "--service", "etdc")]
    [InlineData(4, "history", "--service", "etdc")]
    [InlineData(0, "history", "--service", "etcd", "--from", "-1s")]
    [InlineData(0, "report", "--service", "etcd", "--threshold", "1")]
    [InlineData(0, "report", "--period", "month", "--from", "-40d", "--tz", "Europe/Berlin", "--slo", "99.9,x=99")]
    [InlineData(0, "report", "--service-hours", "Mo-Su 00:00-24:00")]
    [InlineData(0, "outages")]
    [InlineData(0, "outages", "--order", "desc", "--limit", "1")]
    [InlineData(4, "outages", "--service", "etdc")]
    public async Task ExitCodeTellsAlikeOfTheDirectoryAndOfARunningSeS(int code, params string[] arguments)
    {
        await using var ses = await StartAsync("--auth-mode", "basic", "--password", "secret word");
        ses.Client.DefaultRequestHeaders.Authorization = new("Basic", Convert.ToBase64String("admin:secret word"u8));
        await FillAsync(ses);
        foreach (var format in new[] { "json", "csv", "table" })
        {
            string[] asked = [.. arguments, "--partition", "INS", "--format", format];
            string[] url = ["--url", $"http://127.0.0.1:{ses.Port}/alerts/", "--password", "secret word"];
            var (own, there) = (await RunAsync(asked), await RunAsync([.. asked, .. url]));
            Assert.Equal(code, own.Exit);
            Assert.Equal(code, there.Exit);
            Assert.Equal(code == 4, own.Output.Contains("ses: no service matches --", Ordinal));
            // Times pass, only the table of the status tells of the store, and what is no answer comes by another way.
            Assert.Equal(Lasting().Replace(own.Output, "").Split('\n').Order(), Lasting().Replace(there.Output, "").Split('\n').Order());
        }
    }

    [GeneratedRegex("""\d{4}-\d\d-\d\dT[\d:.]+Z|[^\n]* of history in [^\n]*\n|"as_of":"[^"]+"|[\d.]+(?=[,}])|\d+ min \d+ s|\d+ h \d+ min|\d+\.\d{3}|(?<=\n)\n| +""")]
    private static partial Regex Lasting();

    [Fact]
    public async Task WhoCannotBeAskedIsNamed()
    {
        int port;
        await using (var ses = await StartAsync("--auth-mode", "basic", "--password", "secret word"))
        {
            port = ses.Port;
            string[] status = ["status", "--partition", "INS", "--url", $"http://127.0.0.1:{port}"];
            Assert.Equal((2, $"ses: --url: http://127.0.0.1:{port}/alerts/INS answered 401: Credentials are missing or wrong.\n"),
                await RunAsync([.. status[..^1], status[^1] + "/alerts"]));
            var (exit, output) = await RunAsync([.. status[..^1], status[^1] + "/nope", "--password", "secret word"]);
            Assert.Equal(2, exit);
            Assert.Contains("answered 404: ", output, Ordinal);
            (exit, output) = await RunAsync([.. status[..^1], status[^1] + "/alerts", "--password", "secret word"]);
            Assert.Equal(4, exit);
            Assert.EndsWith("ses: no service matches --partition 'INS'\n", output, Ordinal);
        }
        var (away, says) = await RunAsync("status", "--partition", "INS", "--url", $"http://127.0.0.1:{port}/alerts");
        Assert.Equal((1, $"ses: --url: http://127.0.0.1:{port}/alerts/INS cannot be reached: Connection refused\n"), (away, says));
    }

    /// <summary>More changes than are fetched at once; and a limit among them.</summary>
    [Fact]
    public async Task LongHistoryOfARunningSeSIsWhole()
    {
        const int Changes = 25_000;
        await using var ses = await StartAsync();
        var time = DateTime.UtcNow.AddDays(-1);
        for (var i = 0; i < Changes; i += 1000)
        {
            var alerts = Enumerable.Range(i, 1000).Select(n => $$$"""
                {"status":"firing","startsAt":"{{{Rfc3339.Format(time.AddSeconds(n))}}}",
                "labels":{"status":"{{{(n % 2 == 0 ? "up" : "down")}}}","platform":"p","service":"s","facet":"f","alertname":"a"}}
                """);
            Assert.Equal(HttpStatusCode.NoContent, (await ses.PostAsync("INS", Body([.. alerts]))).StatusCode);
        }
        async Task<string[]> LinesAsync(string flags)
        {
            var (exit, output) = await ShellAsync($"ses history --partition INS --format csv {flags} 2>more > lines");
            Assert.Equal((0, ""), (exit, output));
            return [.. File.ReadAllLines(Path.Combine(_dir, "lines")), File.ReadAllText(Path.Combine(_dir, "more"))];
        }

        var url = $"--url http://127.0.0.1:{ses.Port}/alerts";
        var own = await LinesAsync("");
        Assert.Equal(Changes + 2, own.Length);
        Assert.Equal(own, await LinesAsync(url));
        const string limited = "--limit 15000 --order desc";
        own = await LinesAsync(limited);
        Assert.StartsWith("There is more: --cursor ", own[^1], Ordinal);
        Assert.Equal(own, await LinesAsync($"{limited} {url}"));
    }

    [Fact]
    public async Task AnswerThatIsNoneOrEndsEarlyIsNotTakenForOne()
    {
        using var other = new HttpListener();
        var port = FreePort.Next();
        other.Prefixes.Add($"http://127.0.0.1:{port}/");
        other.Start();
        const string Head = """{"as_of":"2026-11-22T12:00:00Z","version":"1.0.0","services":""";
        string[] bodies =
        [
            "<html>hello</html>", "null", "5", "[]", "{}", """{"services":[]}""", """{"version":"1","services":null}""",
            Head + "{}}", Head + "[1]}", Head + "[{}]}", Head + """[{"service":1}]}""", Head + """[{"service":"\ud800"}]}""",
            Head + """[{"platform":"p","ser""",
        ];
        var serving = Task.Run(async () =>
        {
            foreach (var body in bodies)
            {
                var context = await other.GetContextAsync();
                context.Response.ContentLength64 = body.Length + (body.EndsWith("ser", Ordinal) ? 100 : 0);
                await context.Response.OutputStream.WriteAsync(System.Text.Encoding.UTF8.GetBytes(body));
                await context.Response.OutputStream.FlushAsync();
                if (body.EndsWith("ser", Ordinal))
                    context.Response.Abort();
                else
                    context.Response.Close();
            }
        });
        foreach (var _ in bodies)
        {
            var (exit, output) = await RunAsync("status", "--partition", "INS", "--url", $"http://127.0.0.1:{port}/alerts", "--format", "table");
            Assert.Equal(1, exit);
            Assert.Matches($"^ses: --url: http://127.0.0.1:{port}/alerts/INS (sent something other than|did not send all)", output);
            Assert.DoesNotContain('\n', output.TrimEnd('\n'));
        }
        await serving;
    }

    [Theory]
    [InlineData(2, false)]
    [InlineData(100_000, true)]
    public async Task ErrorWithoutAUsableBodyIsReportedByItsCode(int length, bool isWhole)
    {
        using var other = new HttpListener();
        var port = FreePort.Next();
        other.Prefixes.Add($"http://127.0.0.1:{port}/");
        other.Start();
        var serving = Task.Run(async () =>
        {
            var context = await other.GetContextAsync();
            (context.Response.StatusCode, context.Response.ContentLength64) = (404, isWhole ? length : length + 10);
            await context.Response.OutputStream.WriteAsync(new byte[length]);
            await context.Response.OutputStream.FlushAsync();
            if (isWhole)
                context.Response.Close();
            else
                context.Response.Abort();
        });
        Assert.Equal((2, $"ses: --url: http://127.0.0.1:{port}/alerts/INS answered 404\n"),
            await RunAsync("status", "--partition", "INS", "--url", $"http://127.0.0.1:{port}/alerts"));
        // Whoever reads no further than a limit closes the connection.
        Assert.True(await Record.ExceptionAsync(() => serving) is null or HttpListenerException or IOException);
    }

    /// <summary>The exit code tells, whoever reads: what is said beside an answer may have nowhere to go.</summary>
    [Theory]
    [InlineData(4, "status --service nope 2>&-")]
    [InlineData(4, "status --service nope 2>/dev/full")]
    [InlineData(2, "bogus 2>&-")]
    [InlineData(2, "status --data-dir nowhere 2>/dev/full")]
    [InlineData(0, "check 2>&-")]
    [InlineData(0, "backup copy 2>&-")]
    [InlineData(0, "status <&-")]
    [InlineData(1, "status >/dev/full")]
    [InlineData(1, "help >/dev/full")]
    [InlineData(1, "--version >/dev/full")]
    public async Task ExitCodeHoldsWhereNobodyReads(int code, string command)
    {
        await using (var ses = await StartAsync())
            await FillAsync(ses);
        var (exit, output) = await ShellAsync($"ses {command}");
        Assert.Equal(code, exit);
        if (code == 1)
            Assert.StartsWith("ses: standard output cannot be written to: ", output, Ordinal);
        if (command.StartsWith("backup", Ordinal))
            Assert.Equal(0, (await ShellAsync("ses backup copy2 && cmp -n 16 copy copy2")).Exit);
    }

    // ---- The terminal ----

    /// <summary>On a terminal of 80 columns that obeys a lot, nothing is written that is no text.</summary>
    [Theory]
    [InlineData("status", "xterm-256color")]
    [InlineData("report", "xterm")]
    [InlineData("history", "linux")]
    [InlineData("quarantine", "screen")]
    [InlineData("help", "xterm")]
    [InlineData("statsu", "xterm")]
    public async Task TerminalGetsTextAloneAndNoLineTooLong(string command, string terminal)
    {
        await using (var ses = await StartAsync())
            await FillAsync(ses);
        var environment = SesProcess.Unset;
        environment["TERM"] = terminal;
        var typescript = Path.Combine(_dir, "typescript");
        await using var shown = ChildProcess.Start("script",
            ["-qec", $"stty cols 80; {SesProcess.Binary} {command}", typescript], environment, _dir);
        await shown.ExitAsync(Soon);
        var lines = File.ReadAllText(typescript).Split('\n')[1..^2].Select(l => l.TrimEnd('\r')).ToList();
        Assert.All(lines, l => Assert.DoesNotContain(l, Terminal.IsUnsafe));
        if (command is "help" or "statsu")
            return;
        Assert.All(lines, l => Assert.InRange(Terminal.Columns(l), 0, 80));
        Assert.Contains(lines, l => l.Contains("etcd", Ordinal) || l.Contains("{alertname", Ordinal));
        Assert.Equal(command == "status", lines.Any(l => HowMuch().IsMatch(l)));
    }

    [GeneratedRegex(@"^(\d+ (ms|s|min|h|days)|[\d.]+ s)( \d+ (s|min))? of history in [\d.]+ [KM]iB; [\d.]+ [GT]iB are free\.$")]
    private static partial Regex HowMuch();

    // ---- Which database ----

    [Fact]
    public async Task DirectoryThatIsClosedIsNamedToWhoMayNotLook()
    {
        await using (await StartAsync())
        {
        }
        var data = Path.Combine(_dir, "ses-data");
        File.SetUnixFileMode(_dir, (UnixFileMode)Convert.ToInt32("755", 8));
        await using var command = ChildProcess.Start("setpriv",
            ["--reuid=65534", "--regid=65534", "--clear-groups", SesProcess.Binary, "status", "--data-dir", data], SesProcess.Unset, _dir);
        Assert.Equal(2, await command.ExitAsync(Soon));
        var documented = DocsPage.Named("api").CodeOf("Which database", "text").Single();
        Assert.Equal(documented.Replace("/var/lib/ses", data, Ordinal).Replace("1000", "65534", Ordinal) + "\n", command.Output);
    }

    // ---- Completion ----

    /// <summary>Where a setting has a list of values, the shell offers these, and the program takes no others.</summary>
    [Fact]
    public async Task ShellOffersTheValuesThatTheProgramTakes()
    {
        await using (await StartAsync())
        {
        }
        var offered = OfferedValues().Matches(File.ReadAllText(Path.Combine(Project.Folder, "deploy", "ses.bash")))
            .SelectMany(m => m.Groups[1].Value.Split(" | ").Select(f => (Flag: f, Values: m.Groups[2].Value)))
            .ToDictionary(o => o.Flag, o => o.Values);
        var taken = new Dictionary<string, string>();
        foreach (var flag in Options.Settings.Where(s => s.Value != "BOOL").Select(s => s.Flag))
        {
            var refused = Record.Exception(() => Options.Read(
                new Dictionary<string, string> { [flag] = "?" }, new Dictionary<string, string>()))?.Message ?? "";
            if (Allowed().Match(refused) is { Success: true } match)
                taken[flag] = match.Groups[1].Value.Replace(", ", " ", Ordinal);
        }
        foreach (var (command, flag) in new[] { ("status", "--format"), ("history", "--order"), ("note list", "--kind") })
            taken[flag] = Allowed().Match((await RunAsync([.. command.Split(' '), flag, "?"])).Output).Groups[1].Value.Replace(", ", " ", Ordinal);
        // Case does not count.
        Assert.Equal(taken.OrderBy(t => t.Key).Select(t => $"{t.Key} {t.Value.ToLowerInvariant()}"),
            offered.OrderBy(o => o.Key).Select(o => $"{o.Key} {o.Value.ToLowerInvariant()}"));
    }

    [GeneratedRegex(@"^ +(--[a-z| -]+)\) words=""([^""]+)""", RegexOptions.Multiline)]
    private static partial Regex OfferedValues();

    [GeneratedRegex(@"allowed: (\w+(?:, \w+)+)\s*$")]
    private static partial Regex Allowed();
}
