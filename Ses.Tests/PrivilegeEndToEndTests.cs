using System.Net;
using System.Net.Http.Headers;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>What the native program lets others on its host see, and what it needs of the host.</summary>
/// <remarks>Some of these tests need root, to become another user.</remarks>
[Trait("Category", "E2E")]
public sealed partial class PrivilegeEndToEndTests : IDisposable
{
    private const int Nobody = 65534;

    private const UnixFileMode
        OwnersFile = UnixFileMode.UserRead | UnixFileMode.UserWrite,
        OwnersFolder = OwnersFile | UnixFileMode.UserExecute;

    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(30);

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-privilege-").FullName;
    private readonly int _port = FreePort.Next();
    private readonly HttpClient _http;

    public PrivilegeEndToEndTests() =>
        _http = new HttpClient { BaseAddress = new Uri($"http://127.0.0.1:{_port}/"), Timeout = Soon };

    public void Dispose()
    {
        _http.Dispose();
        Directory.Delete(_dir, recursive: true);
    }

    private string DataDir => Path.Combine(_dir, "new", "data");

    private string[] Arguments(string onix = "none") =>
        ["--port", $"{_port}", "--address", "127.0.0.1", "--data-dir", DataDir, "--onix-url", onix];

    /// <param name="before">A program that runs SeS, such as setpriv, with its arguments.</param>
    private async Task<ChildProcess> StartAsync(
        string[] before, string[] arguments, Dictionary<string, string?>? variables = null)
    {
        var environment = SesProcess.Unset;
        foreach (var (name, value) in variables ?? [])
            environment[name] = value;
        string[] line = [.. before, SesProcess.Binary, .. arguments];
        var ses = ChildProcess.Start(line[0], line[1..], environment, _dir);
        try
        {
            await Wait.UntilAsync(async () => ses.HasExited
                ? throw new InvalidOperationException("SeS ended: " + ses.Output)
                : (await GetAsync("ready")).Code == HttpStatusCode.OK, Soon, "/ready");
            return ses;
        }
        catch
        {
            await ses.DisposeAsync();
            throw;
        }
    }

    private async Task<(HttpStatusCode Code, string Body)> GetAsync(string path)
    {
        try
        {
            using var answer = await _http.GetAsync(path);
            return (answer.StatusCode, await answer.Content.ReadAsStringAsync());
        }
        catch (HttpRequestException)
        {
            return (0, "");
        }
    }

    private async Task<HttpStatusCode> PostAsync(string body, string? credentials = null)
    {
        using var request = new HttpRequestMessage(HttpMethod.Post, "alerts/INS");
        request.Content = new ByteArrayContent(Encoding.UTF8.GetBytes(body));
        if (credentials != null)
            request.Headers.Authorization = new AuthenticationHeaderValue("Basic",
                Convert.ToBase64String(Encoding.UTF8.GetBytes(credentials)));
        using var answer = await _http.SendAsync(request);
        return answer.StatusCode;
    }

    private static string Body(params string[] alerts) =>
        $$"""{"version":"4","alerts":[{{string.Join(',', alerts)}}]}""";

    private static string Alert(string labels = "\"alertname\":\"A\",\"job\":\"j\"") =>
        $$"""{"status":"firing","labels":{{{labels}}},"startsAt":"2026-11-01T10:00:00Z"}""";

    // ---- Files ----

    /// <summary>Of root's volume with a group for the container (Kubernetes, fsGroup) nothing is to be told.</summary>
    [Theory]
    [InlineData("65534:0", "700", "belongs to user 65534, not to 0, whom SeS runs as: change its owner to 0 (chown) data=")]
    [InlineData("65534:0", "755", "runs as, and is open to every user of this host: change its owner to 0 (chown), remove the permissions of others (chmod o=) data=")]
    [InlineData("0:65534", "2775", null, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")]
    [InlineData("0:65534", "2777", " is open to every user of this host: remove the permissions of others (chmod o=) data=",
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")]
    public async Task DirectoryThatOthersGetAtIsWarnedOf(
        string owner, string mode, string? warning, params string[] before)
    {
        File.SetUnixFileMode(_dir, (UnixFileMode)Convert.ToInt32("755", 8));
        await using var made = ChildProcess.Start("sh",
            ["-c", $"mkdir -p {DataDir} && chown {owner} {DataDir} && chmod {mode} {DataDir}"]);
        Assert.Equal(0, await made.ExitAsync(Soon));
        await using var ses = await StartAsync(before, Arguments());
        if (warning != null)
            Assert.Contains(warning, ses.Output, Ordinal);
        else
            Assert.DoesNotContain("the data directory", ses.Output, Ordinal);
    }

    /// <summary>As a copy that root put back by hand.</summary>
    [Theory]
    [InlineData("ses.db")]
    [InlineData("ses.db-wal")]
    [InlineData("lock")]
    public async Task FileOfRootInAServicesDirectoryIsNamedWithWhatMendsIt(string file)
    {
        File.SetUnixFileMode(_dir, (UnixFileMode)Convert.ToInt32("755", 8));
        await using var made = ChildProcess.Start("sh", ["-c", $"mkdir -p {DataDir} && chown 65534:65534 {DataDir} "
            + $"&& touch {DataDir}/{file} && chmod 600 {DataDir}/{file}"]);
        Assert.Equal(0, await made.ExitAsync(Soon));
        string[] before = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        await using var ses = ChildProcess.Start("setpriv", [.. before, SesProcess.Binary, .. Arguments()]);
        Assert.Equal(2, await ses.ExitAsync(Soon));
        Assert.Contains($"'{DataDir}/{file}' cannot be written to: it belongs to user 0, and SeS runs as user 65534: "
            + $"chown -R 65534 '{DataDir}'", ses.Output, Ordinal);
        // The command does as the page says.
        await using var mended = ChildProcess.Start("sh", ["-c", $"chown -R 65534 {DataDir} && rm {DataDir}/{file}"]);
        Assert.Equal(0, await mended.ExitAsync(Soon));
        await using var served = await StartAsync(["setpriv", .. before], Arguments());
    }

    /// <summary>
    /// Under <c>DynamicUser=</c> the data directory lies in a folder that only root may enter (systemd.exec(5)): a
    /// command of root becomes the directory's owner, and reaches it all the same.
    /// </summary>
    [Fact]
    public async Task CommandsOfRootReachADirectoryBelowAClosedFolder()
    {
        File.SetUnixFileMode(_dir, (UnixFileMode)Convert.ToInt32("755", 8));
        await using var made = ChildProcess.Start("sh", ["-c", $"mkdir -p {DataDir} && chown 65534:65534 {DataDir}"]);
        Assert.Equal(0, await made.ExitAsync(Soon));
        await using (var ses = await StartAsync(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], Arguments()))
        {
            Assert.Equal(HttpStatusCode.OK, await PostAsync(Body(Alert(), "7")));
            ses.Kill(Signal.Terminate);
            Assert.Equal(0, await ses.ExitAsync(Soon));
        }
        File.SetUnixFileMode(Path.GetDirectoryName(DataDir)!, (UnixFileMode)Convert.ToInt32("700", 8));
        var (backup, lines) = (Path.Combine(_dir, "backup"), Path.Combine(_dir, "lines"));
        string[] commands =
        [
            "status", "history", "report", "quarantine", "check", "export > " + lines, $"backup {backup}", "rebuild",
            "import " + lines, "restore " + backup, "purge --dry-run", "purge --partition INS", "check",
        ];
        foreach (var command in commands)
        {
            await using var run = ChildProcess.Start("sh",
                ["-c", $"OXSES_DATADIR={DataDir} exec {SesProcess.Binary} {command}"], folder: _dir);
            Assert.True(await run.ExitAsync(Soon) == 0, $"{command}: {run.Output}");
            Assert.Equal(command == "status", run.Output.Contains("\"services\":[{\"partition\":\"INS\"", Ordinal)
                && !run.Output.Contains("availability", Ordinal));
        }
        await using var files = ChildProcess.Start("sh", ["-c", $"stat -c '%U:%u %n' {DataDir}/*"]);
        Assert.Equal(0, await files.ExitAsync(Soon));
        Assert.All(files.Output.TrimEnd('\n').Split('\n'), l => Assert.Contains(":65534 ", l, Ordinal));
        // The directory is named as it was given.
        await using var nothing = ChildProcess.Start("sh",
            ["-c", $"rm {DataDir}/ses.db; exec {SesProcess.Binary} check --data-dir {DataDir}"]);
        Assert.Equal(2, await nothing.ExitAsync(Soon));
        Assert.Equal($"ses: --data-dir (OXSES_DATADIR): '{DataDir}' has no ses.db in it\n", nothing.Output);
    }

    /// <summary>systemd names the journal by device and inode of the stream (systemd.exec(5), JOURNAL_STREAM).</summary>
    [Theory]
    [InlineData("$(stat -L -c %d:%i /proc/self/fd/2)", true)]
    [InlineData("1:2", false)]
    public async Task JournalGetsLevelsInsteadOfTimes(string stream, bool isJournal)
    {
        var log = Path.Combine(_dir, "journal");
        await using var ses = await StartAsync(
            ["sh", "-c", $"exec 2>{log}; export JOURNAL_STREAM={stream}; exec \"$0\" \"$@\""], Arguments());
        Assert.Equal(HttpStatusCode.NotFound, (await GetAsync("alerts/INS")).Code);
        await PostAsync("hello");
        await Wait.UntilAsync(() => File.ReadAllText(log).Contains("a POST request was refused", Ordinal), Soon, "the log");
        var lines = await File.ReadAllLinesAsync(log);
        Assert.All(lines, l => Assert.Matches(isJournal ? "^<[346]>(ERROR|WARN |INFO ) " : "^20..-..-..T", l));
        Assert.Contains(lines, l => l.Contains(isJournal ? "<4>WARN  a POST request was refused" : "Z WARN  a POST request was refused", Ordinal));
        await using var second = ChildProcess.Start("sh",
            ["-c", $"exec 2>>{log}; export JOURNAL_STREAM={stream}; exec \"$0\" --port x", SesProcess.Binary]);
        Assert.Equal(2, await second.ExitAsync(Soon));
        Assert.StartsWith(isJournal ? "<3>ses: --port" : "ses: --port", (await File.ReadAllLinesAsync(log))[^1], Ordinal);
    }

    [Theory]
    [InlineData("000")]
    [InlineData("022")]
    [InlineData("077")]
    public async Task FilesAndFoldersAreForTheirOwnerAlone(string umask)
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        string[] shell = ["sh", "-c", $"umask {umask}; exec \"$0\" \"$@\""];
        for (var run = 0; run < 2; run++)
        {
            await using var ses = await StartAsync(shell, Arguments(onix.Url.AbsoluteUri));
            Assert.Equal(HttpStatusCode.OK, await PostAsync(Body(Alert(), "5")));
            string[] open = [.. Directory.GetFiles(DataDir)];
            Assert.Equal(["lock", "ses.db", "ses.db-shm", "ses.db-wal"],
                open.Select(f => Path.GetFileName(f)).Order(StringComparer.Ordinal));
            Assert.All(open, f => Assert.Equal((f, OwnersFile), (f, File.GetUnixFileMode(f))));
            // The second run comes after a crash.
            ses.Kill(run == 0 ? Signal.Kill : Signal.Terminate);
            await ses.ExitAsync(Soon);
        }
        string[] files = [.. Directory.GetFiles(DataDir)];
        Assert.Equal(["lock", "ses.db"], files.Select(f => Path.GetFileName(f)).Order(StringComparer.Ordinal));
        Assert.All(files, f => Assert.Equal((f, OwnersFile), (f, File.GetUnixFileMode(f))));
        Assert.Equal(OwnersFolder, File.GetUnixFileMode(DataDir));
    }

    [Fact]
    public async Task FilesInAFolderThatIsOpenToAllAreForTheirOwnerAlone()
    {
        // As systemd's StateDirectory is, unless it is told otherwise.
        Directory.CreateDirectory(DataDir);
        File.SetUnixFileMode(DataDir, OwnersFolder | UnixFileMode.OtherRead | UnixFileMode.OtherExecute);
        await using var ses = await StartAsync([], Arguments());
        Assert.Equal(HttpStatusCode.OK, await PostAsync(Body(Alert(), "5")));
        Assert.Equal(4, Directory.GetFiles(DataDir).Length);
        Assert.All(Directory.GetFiles(DataDir),
            f => Assert.Equal((f, OwnersFile), (f, File.GetUnixFileMode(f))));
    }

    // ---- Secrets ----

    [Theory]
    [InlineData("--password", "s3cret-own")]
    [InlineData("--password=s3cret-own")]
    [InlineData("--password:s3cret-own")]
    [InlineData("--password", "@s3cret-own")]
    public async Task SecretsAreSeenNowhere(params string[] flag)
    {
        var nobody = $"http://127.0.0.1:{FreePort.Next()}";
        await using var ses = await StartAsync([],
        [
            .. Arguments(nobody), .. flag, "--auth-mode", "basic", "--onix-auth-mode", "oidc",
            "--onix-client-id", "ses", "--onix-token-uri", nobody + "/token", "--log-level", "Trace",
        ], new()
        {
            ["OXSES_ONIX_PASSWORD"] = "s3cret-onix",
            ["OXSES_ONIX_APPSECRET"] = "s3cret-app",
        });
        Assert.Equal(HttpStatusCode.NoContent, await PostAsync(Body(Alert()),
            flag[^1].StartsWith('@') ? "admin:@s3cret-own" : "admin:s3cret-own"));
        Assert.Equal(HttpStatusCode.Unauthorized, await PostAsync(Body(Alert()), "admin:s3cret-typed"));
        var ready = "";
        await Wait.UntilAsync(async () => (ready = (await GetAsync("ready")).Body)
            .Contains("\"away\"", Ordinal), Soon, "the missing Onix to be noticed");
        var shown = new Dictionary<string, string>
        {
            ["cmdline"] = File.ReadAllText($"/proc/{ses.Id}/cmdline"),
            ["environ"] = File.ReadAllText($"/proc/{ses.Id}/environ"),
            ["metrics"] = (await GetAsync("metrics")).Body,
            ["ready"] = ready,
            ["log"] = ses.Output,
        };
        // They were all looked at, and what is no secret is there.
        Assert.Contains("--data-dir\0" + DataDir, shown["cmdline"], Ordinal);
        Assert.Contains("OXSES_ONIX_PASSWORD=***", shown["environ"], Ordinal);
        Assert.Contains("PATH=/", shown["environ"], Ordinal);
        Assert.Contains("ses_auth_failures_total{reason=\"wrong\"} 1", shown["metrics"], Ordinal);
        Assert.Contains("SeS is ready", shown["log"], Ordinal);
        foreach (var (place, text) in shown)
            Assert.False(text.Contains("s3cret", Ordinal), $"a secret is in {place}: {text}");
        foreach (var file in Directory.GetFiles(DataDir, "*.json*"))
            Assert.DoesNotContain("s3cret", File.ReadAllText(file), Ordinal);
    }

    [Theory]
    [InlineData("--passwrd=s3cret")]
    [InlineData("--passwrd:s3cret")]
    [InlineData("--passwrd", "s3cret")]
    [InlineData("--password=s3cret", "--password=s3cret")]
    [InlineData("--password", "s3cret", "s3cret")]
    [InlineData("--password=s3cret", "--port", "no")]
    public async Task SecretsAreNotRepeatedWhenTheStartIsRefused(params string[] arguments)
    {
        await using var ses = ChildProcess.Start(SesProcess.Binary, ["--data-dir", DataDir, .. arguments]);
        Assert.Equal(2, await ses.ExitAsync(Soon));
        Assert.Single(ses.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.DoesNotContain("s3cret", ses.Output, Ordinal);
    }

    // ---- Users ----

    private static readonly string[] AsNobody =
        ["setpriv", $"--reuid={Nobody}", $"--regid={Nobody}", "--clear-groups"];

    private async Task<(int Code, string Output)> RunAsync(params string[] line)
    {
        await using var child = ChildProcess.Start(line[0], line[1..], folder: _dir);
        return (await child.ExitAsync(Soon), child.Output);
    }

    /// <summary>A SeS that is nobody's, as far as it can be: no capability, and no way to one.</summary>
    private async Task<ChildProcess> StartAsNobodyAsync()
    {
        File.SetUnixFileMode(_dir, OwnersFolder | UnixFileMode.OtherExecute);
        Directory.CreateDirectory(DataDir);
        var owner = $"{Nobody}:{Nobody}";
        Assert.Equal((0, ""), await RunAsync("chown", "-R", owner, Path.GetDirectoryName(DataDir)!));
        // The folder of the build may be closed to others.
        var program = Path.Combine(_dir, "ses");
        File.Copy(SesProcess.Binary, program);
        File.SetUnixFileMode(program, OwnersFolder | UnixFileMode.OtherRead | UnixFileMode.OtherExecute);
        return await StartAsync(
            [.. AsNobody, "--no-new-privs", "--bounding-set=-all", "env", $"SES={program}", "sh", "-c",
                "shift; exec \"$SES\" \"$@\"", "sh"],
            [.. Arguments(), "--auth-mode", "basic"], new() { ["OXSES_PASSWORD"] = "s3cret" });
    }

    [Fact]
    public async Task UnprivilegedUserIsEnough()
    {
        await using var ses = await StartAsNobodyAsync();
        var status = File.ReadAllLines($"/proc/{ses.Id}/status");
        Assert.Contains($"Uid:\t{Nobody}\t{Nobody}\t{Nobody}\t{Nobody}", status);
        Assert.Contains("CapEff:\t0000000000000000", status);
        Assert.Equal(HttpStatusCode.NoContent, await PostAsync(Body(Alert()), "admin:s3cret"));
        Assert.Single(StoreFiles.Changes(DataDir));
        var (code, metrics) = await GetAsync("metrics");
        Assert.Equal(HttpStatusCode.OK, code);
        // What the process says of itself is read from /proc, which it has closed to others of its user.
        foreach (var name in new[]
        {
            "process_open_handles", "process_working_set_bytes", "process_num_threads",
            "process_cpu_seconds_total", "process_start_time_seconds",
        })
            Assert.Matches($"(?m)^{name} [1-9]|^{name} 0\\.[0-9]*[1-9]", metrics);
        Assert.Contains("ses_defects_total 0\n", metrics, Ordinal);
        ses.Kill(Signal.Terminate);
        Assert.Equal(0, await ses.ExitAsync(Soon));
        Assert.DoesNotContain("defect", ses.Output, Ordinal);
    }

    /// <summary>Without the right to give files away, which SQLite would make use of by itself.</summary>
    private static readonly string[] AsRoot = ["setpriv", "--bounding-set=-chown", "--inh-caps=-chown"];

    [Fact]
    public async Task CommandsOfRootLeaveTheDatabaseToItsOwner()
    {
        string[] closed = ["lock", "ses.db"], open = [.. closed, "ses.db-shm", "ses.db-wal"];
        // Root's alone: what is read and written for root is not the owner's.
        var (facts, backup) = (Path.Combine(_dir, "facts.jsonl"), Path.Combine(_dir, "backup.db"));
        await using (var ses = await StartAsNobodyAsync())
        {
            Assert.Equal(HttpStatusCode.NoContent, await PostAsync(Body(Alert()), "admin:s3cret"));
            await AssertOwnedAsync(open, ["status"], ["check"], ["export"], ["backup", backup]);
            File.WriteAllText(facts, (await RunAsRootAsync("export")).Output);
            File.SetUnixFileMode(facts, OwnersFile);
            Assert.Equal("0:0 600\n", (await RunAsync("stat", "--format", "%u:%g %a", backup)).Output);
            await AssertOwnedAsync(open, ["import", facts]);
            ses.Kill(Signal.Kill);
            await ses.ExitAsync(Soon);
        }
        // The log of one that was killed is there, and the memory that its users share is made anew.
        File.Delete(Path.Combine(DataDir, "ses.db-shm"));
        await AssertOwnedAsync(open, ["status"]);
        await AssertOwnedAsync(closed, ["rebuild"]);
        foreach (var (command, file) in new[] { ("import", facts), ("restore", backup) })
        {
            Array.ForEach(Directory.GetFiles(DataDir), File.Delete);
            await AssertOwnedAsync(command == "import" ? ["ses.db"] : closed, [command, file]);
            Assert.Single(StoreFiles.Facts(DataDir));
        }
        Array.ForEach(Directory.GetFiles(DataDir, "ses.db-*"), File.Delete);
        File.Delete(Path.Combine(_dir, "ses"));
        await using var next = await StartAsNobodyAsync();
        Assert.Contains("\"down\"", (await RunAsRootAsync("status")).Output, Ordinal);

        async Task<(int Code, string Output)> RunAsRootAsync(params string[] command) =>
            await RunAsync([.. AsRoot, SesProcess.Binary, command[0], "--data-dir", DataDir, .. command[1..]]);

        async Task AssertOwnedAsync(string[] files, params string[][] commands)
        {
            foreach (var command in commands)
            {
                var (code, output) = await RunAsRootAsync(command);
                Assert.True(code == 0, $"{command[0]}: {output}");
                var (_, owners) = await RunAsync(
                    ["stat", "--format", "%n %u:%g", .. Directory.GetFiles(DataDir).Order(StringComparer.Ordinal)]);
                Assert.Equal(files.Select(f => $"{Path.Combine(DataDir, f)} {Nobody}:{Nobody}"),
                    owners.Split('\n', StringSplitOptions.RemoveEmptyEntries));
            }
        }
    }

    [Theory]
    [InlineData("environ")]
    [InlineData("mem")]
    [InlineData("maps")]
    [InlineData("fd")]
    public async Task OtherProcessesOfItsUserCannotReadItsMemory(string file)
    {
        await using var ses = await StartAsNobodyAsync();
        await using var open = ChildProcess.Start("setpriv", [.. AsNobody[1..], "sleep", "60"]);
        await Wait.UntilAsync(() => File.ReadAllText($"/proc/{open.Id}/status")
            .Contains($"Uid:\t{Nobody}\t", Ordinal) && File.ReadAllText($"/proc/{open.Id}/comm") == "sleep\n",
            Soon, "another process");
        string[] Look(int id) => [.. AsNobody, "sh", "-c",
            $"if [ -d /proc/{id}/{file} ]; then ls /proc/{id}/{file}; else exec 3< /proc/{id}/{file}; fi"];
        // What is refused with SeS goes with a process that has not closed itself.
        Assert.Equal(0, (await RunAsync(Look(open.Id))).Code);
        var (code, output) = await RunAsync(Look(ses.Id));
        Assert.NotEqual(0, code);
        Assert.Contains("Permission denied", output, Ordinal);
    }

    // ---- What strangers write into the log ----

    [Theory]
    [InlineData("text")]
    [InlineData("json")]
    public async Task NothingThatStrangersSendReachesTheLogUnescaped(string format)
    {
        const string Forged = "2026-11-24T00:00:00.000Z ERROR forged";
        string[] evil =
        [
            "\u001b[31m", "\n" + Forged + "\n", "\r" + Forged, "\" level=\"PANIC", "\0", "\u009b31m",
            "\u2028" + Forged, "\u202egnp", "\u007f", "\u0085",
        ];
        await using var ses = await StartAsync([],
        [
            .. Arguments(), "--log-format", format, "--auth-mode", "basic", "--password", "s3cret",
        ]);
        // What is logged often is held back for 10 s, so these two are the ones that get through.
        var all = JsonSerializer.Serialize(string.Concat(evil));
        var labels = "\"platform\":\"p\",\"status\":\"up\",\"alertname\":" + all;
        Assert.Equal(HttpStatusCode.OK, await PostAsync(Body(Alert(labels)), "admin:s3cret"));
        Assert.Equal(HttpStatusCode.BadRequest, await PostAsync(
            $"{{\"alerts\":{all}}}", "admin:s3cret"));
        // Side by side, since answers to wrong credentials are held back.
        await Task.WhenAll(evil.SelectMany(RequestsWith).Select(SendRawAsync));
        ses.Kill(Signal.Terminate);
        Assert.Equal(0, await ses.ExitAsync(Soon));
        var lines = ses.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        foreach (var word in new[] { "alerts were quarantined", "a POST request was refused",
            "a request was refused" })
            Assert.Contains(lines, l => l.Contains(word, Ordinal));
        Assert.All(lines, line =>
        {
            Assert.DoesNotContain(line, c => Terminal.IsUnsafe(c) || (c != ' ' && char.IsWhiteSpace(c)));
            if (format == "text")
                Assert.Matches(LogLine(), line);
            else
                Assert.Equal(JsonValueKind.Object, JsonDocument.Parse(line).RootElement.ValueKind);
            Assert.False(line.StartsWith(Forged, Ordinal), line);
            Assert.DoesNotContain(" level=\"PANIC", line, Ordinal);
        });
    }

    /// <summary>Whole and broken requests with this text in each place.</summary>
    private static string[] RequestsWith(string text) =>
    [
        $"GET /{text} HTTP/1.1\r\nHost: x\r\n\r\n",
        $"{text} / HTTP/1.1\r\nHost: x\r\n\r\n",
        $"GET /{Uri.EscapeDataString(text)} HTTP/1.1\r\nHost: x\r\n\r\n",
        $"POST /alerts/{Uri.EscapeDataString(text)} HTTP/1.1\r\nHost: x\r\n"
            + "Authorization: Basic YWRtaW46czNjcmV0\r\nContent-Length: 3\r\n\r\n{ }",
        $"GET /live HTTP/1.1\r\nHost: {text}\r\n\r\n",
        $"GET /live HTTP/1.1\r\nHost: x\r\nExpect: {text}\r\n\r\n",
        $"POST /alerts/INS HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nAuthorization: {text}\r\n\r\n",
        "POST /alerts/INS HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
            + $"Authorization: Basic {Convert.ToBase64String(Encoding.UTF8.GetBytes(text))}\r\n\r\n",
    ];

    [GeneratedRegex(@"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO |WARN |ERROR|DEBUG) \S")]
    private static partial Regex LogLine();

    /// <summary>Sends bytes as they are, and reads until SeS closes or has answered.</summary>
    private async Task SendRawAsync(string request)
    {
        using var client = new TcpClient();
        await client.ConnectAsync(IPAddress.Loopback, _port);
        try
        {
            await client.Client.SendAsync(Encoding.UTF8.GetBytes(request));
            client.Client.Shutdown(SocketShutdown.Send);
            using var deadline = new CancellationTokenSource(Soon);
            var waste = new byte[4096];
            while (await client.Client.ReceiveAsync(waste, deadline.Token) > 0)
            {
                // Until it closes.
            }
        }
        catch (SocketException)
        {
            // It has closed before all was sent.
        }
    }

    // ---- Warnings ----

    [Theory]
    [InlineData("the password is the documented default: set --password", "--auth-mode", "basic")]
    [InlineData("the password is the documented default", "--auth-mode", "basic", "--password", "0n1x")]
    [InlineData("the password is empty: set --password", "--auth-mode", "basic", "--password", "")]
    [InlineData("--metrics-auth (OXSES_METRICS_AUTH) has no effect", "--metrics-auth")]
    [InlineData("--metrics-auth (OXSES_METRICS_AUTH) has no effect",
        "--metrics-auth", "--auth-mode", "none")]
    [InlineData(null)]
    [InlineData(null, "--auth-mode", "basic", "--password", "x", "--metrics-auth")]
    public async Task SettingThatProtectsLittleIsWarnedOf(string? warning, params string[] arguments)
    {
        await using var ses = await StartAsync([], [.. Arguments(), .. arguments]);
        await Wait.UntilAsync(() => ses.Output.Contains("SeS is ready", Ordinal), Soon, "the log");
        var warnings = ses.Output.Split('\n').Where(l => l.Contains(" WARN ", Ordinal)).ToList();
        if (warning == null)
            Assert.Empty(warnings);
        else
            Assert.Contains(warning, Assert.Single(warnings), Ordinal);
        Assert.DoesNotContain("0n1x", ses.Output, Ordinal);
    }
}
