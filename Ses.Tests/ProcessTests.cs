using System.Collections.Concurrent;
using System.Globalization;
using System.Net;
using System.Net.Http.Headers;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>The native program keeps its promise however it ends, and says clearly why it did.</summary>
[Trait("Category", "E2E")]
public sealed class ProcessTests : IDisposable
{
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(30);

    /// <summary>Container engines kill after so long.</summary>
    private static readonly TimeSpan StopWithin = TimeSpan.FromSeconds(10);

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-process-").FullName;
    private readonly int _port = FreePort.Next();

    private string DataDir => Path.Combine(_dir, "data");

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    // ---- Ends ----

    [Fact]
    public async Task KilledAtAnyMomentItLosesNothingAcknowledgedAndRecordsNothingTwice()
    {
        var kills = Environment.GetEnvironmentVariable("SES_SOAK") == null ? 60 : 200;
        var seed = Environment.TickCount;
        var random = new Random(seed);
        await using var load = new Load(_port, senders: 4);
        for (var round = 0; round < kills; round++)
        {
            await using (var ses = Launch())
            {
                // Two rounds of three are killed while they serve, the third perhaps before it does.
                if (round % 3 > 0)
                    await load.MoreAsync(random.Next(1, 30));
                // Not a wait: the random moment itself.
                await Task.Delay(TimeSpan.FromMilliseconds(random.NextDouble() * 60));
                ses.Kill(Signal.Kill);
                Assert.Equal(137, await ses.ExitAsync(Soon));
            }
            // As after a crash of the host: SQLite makes the index of its log anew.
            if (round % 4 == 3)
                File.Delete(StoreFiles.PathOf(DataDir) + "-shm");
            AssertKept(load.Acknowledged, $"kill {round}, seed {seed}");
        }
        Assert.True(load.Acknowledged.Count > kills, $"only {load.Acknowledged.Count} were acknowledged");
        await load.StopAsync();
        await using var last = await ReadyAsync(Launch());
        AssertKept(load.Acknowledged, "the last start");
    }

    [Fact]
    public async Task AskedToStopUnderLoadItEndsWithCodeZeroAndAllThatItAcknowledged()
    {
        await using var load = new Load(_port, senders: 8);
        for (var round = 0; round < 5; round++)
        {
            await using var ses = Launch();
            await load.MoreAsync(100);
            ses.Kill(Signal.Terminate);
            Assert.Equal(0, await ses.ExitAsync(StopWithin));
            // It was closed in order: the log is in the database.
            Assert.False(File.Exists(StoreFiles.PathOf(DataDir) + "-wal"));
            AssertKept(load.Acknowledged, $"stop {round}");
        }
        await load.StopAsync();
    }

    /// <summary>All flushes from some moment on, one of the log, and one of the database at a checkpoint.</summary>
    [Theory]
    [InlineData(null, "")]
    [InlineData("-wal", ":when=3")]
    [InlineData("", ":when=1")]
    public async Task FailedFlushEndsItWithCodeOneAndNothingAcknowledgedIsLost(string? file, string when)
    {
        await using var load = new Load(_port, senders: 4);
        await using (var ses = Launch())
        {
            await load.MoreAsync(50);
            await using var trace = ChildProcess.Start("strace", ["-f", "-q", "-p", $"{ses.Id}", "-o", "/dev/null",
                .. file == null ? [] : new[] { "-P", StoreFiles.PathOf(DataDir) + file },
                "-e", "trace=fsync,fdatasync", "-e", $"inject=fsync,fdatasync:error=EIO{when}"]);
            if (file == "")
                await FillLogAsync(ses);
            Assert.Equal(1, await ses.ExitAsync(Soon));
            Assert.Contains("the disk can no longer be trusted", ses.Output, StringComparison.Ordinal);
        }
        AssertKept(load.Acknowledged, "the failed flush");
        await using var next = Launch();
        await load.MoreAsync(50);
        await load.StopAsync();
        AssertKept(load.Acknowledged, "the restart");
    }

    /// <summary>Until there is a checkpoint, which is what flushes the database.</summary>
    private async Task FillLogAsync(ChildProcess ses)
    {
        var text = new string('x', 4000);
        var events = new Event[500];
        for (var number = 1; number < 200 && !ses.HasExited; number++)
        {
            for (var i = 0; i < events.Length; i++)
                events[i] = new Event($"big{i}", "down", Load.At(number));
            await Sender.PostAsync(_port, Load.Body(events, text));
        }
    }

    /// <summary>
    /// SQLite goes on in silence when its files go. What is asked to be stored after that is not acknowledged.
    /// </summary>
    [Theory]
    [InlineData("", "removed")]
    [InlineData("", "replaced")]
    [InlineData("", "cut")]
    [InlineData("-wal", "removed")]
    [InlineData("-wal", "replaced")]
    [InlineData("-wal", "cut")]
    [InlineData("-shm", "removed")]
    [InlineData("-shm", "replaced")]
    [InlineData("-shm", "cut")]
    [InlineData("-shm", "cut to 100 bytes")]
    public async Task NothingIsAcknowledgedOnceAFileIsNotWhatItWas(string file, string what)
    {
        var path = StoreFiles.PathOf(DataDir) + file;
        await using var ses = await ReadyAsync(Launch());
        await using (var load = new Load(_port, senders: 4))
        {
            await load.MoreAsync(200);
            await load.StopAsync();
            var kept = load.Acknowledged.ToList();
            if (what == "replaced")
                File.Copy(path, path + ".copy");
            if (what.StartsWith("cut", StringComparison.Ordinal))
            {
                using var open = new FileStream(path, FileMode.Open, FileAccess.Write, FileShare.ReadWrite);
                open.SetLength(what == "cut" ? open.Length / 2 : 100);
            }
            else
            {
                File.Delete(path);
            }
            if (what == "replaced")
                File.Move(path + ".copy", path);
            var after = await Sender.PostAsync(_port, Load.Body([new Event("after", "down", Load.At(1))]));
            Assert.NotEqual(HttpStatusCode.NoContent, after);
            // The index of the log is mapped into memory: the kernel ends who reads beyond what was cut.
            var code = await ses.ExitAsync(Soon);
            Assert.True(code == 1 || (file == "-shm" && what.StartsWith("cut", StringComparison.Ordinal) && code is 128 + 7 or 128 + 6), $"{code}: {ses.Output}");
            if (code == 1)
                Assert.Contains(what.StartsWith("cut", StringComparison.Ordinal) ? $"{path} was cut short" : $"{path} was removed or replaced", ses.Output, StringComparison.Ordinal);
            // What is left of the log alone has all, as long as that is whole.
            if (file != "-shm")
                return;
            await using var next = await ReadyAsync(Launch());
            AssertKept(kept, "the restart");
        }
    }

    // ---- Full disks ----

    [Fact]
    public async Task FullDiskIsAnsweredWith503UntilThereIsRoomAgain()
    {
        Directory.CreateDirectory(DataDir);
        await RunAsync("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", DataDir);
        try
        {
            await using var ses = await ReadyAsync(Launch());
            var filler = Path.Combine(DataDir, "filler");
            await RefusesAsync(ses, () => Fill(filler), () => File.Delete(filler));
        }
        finally
        {
            await RunAsync("umount", DataDir);
        }
    }

    [Fact]
    public async Task FileSizeLimitIsAnsweredWith503UntilItIsRaised()
    {
        await using var ses = await ReadyAsync(Launch());
        Task LimitAsync(string size) => RunAsync("prlimit", $"--pid={ses.Id}", $"--fsize={size}:unlimited");
        await RefusesAsync(ses, () => LimitAsync("100000"), () => LimitAsync("unlimited"));
    }

    private Task RefusesAsync(ChildProcess ses, Action refuse, Action allow) => RefusesAsync(ses,
        () =>
        {
            refuse();
            return Task.CompletedTask;
        },
        () =>
        {
            allow();
            return Task.CompletedTask;
        });

    private async Task RefusesAsync(ChildProcess ses, Func<Task> refuse, Func<Task> allow)
    {
        var kept = new List<Event>();
        async Task<HttpStatusCode> RecordAsync(int number)
        {
            Event[] events = [.. Enumerable.Range(0, 8)
                .Select(i => new Event($"s{i}", "down", Load.At(number)))];
            var code = await Sender.PostAsync(_port, Load.Body(events, new string('x', 4000)));
            if (code == HttpStatusCode.NoContent)
                kept.AddRange(events);
            return code;
        }

        Assert.Equal(HttpStatusCode.NoContent, await RecordAsync(0));
        await refuse();
        var number = 1;
        for (; await RecordAsync(number) == HttpStatusCode.NoContent; number++)
            Assert.True(number < 1000, "nothing is refused");
        // A file that must not grow may still take less than that: now and then it is ready again.
        await Wait.UntilAsync(async () =>
        {
            var isRefused = await RecordAsync(number) == HttpStatusCode.ServiceUnavailable;
            number += isRefused ? 0 : 1;
            return isRefused && await Sender.GetAsync(_port, "ready") == HttpStatusCode.ServiceUnavailable;
        }, Soon, "/ready to tell of it");
        Assert.Equal(HttpStatusCode.OK, await Sender.GetAsync(_port, "live"));
        Assert.False(ses.HasExited);
        AssertKept(kept, "the refusal");
        Assert.Equal(kept.Count, StoreFiles.Observations(DataDir));

        await allow();
        await Wait.UntilAsync(async () => await Sender.GetAsync(_port, "ready") == HttpStatusCode.OK,
            Soon, "/ready once there is room");
        Assert.Equal(HttpStatusCode.NoContent, await RecordAsync(number));
        ses.Kill(Signal.Terminate);
        Assert.Equal(0, await ses.ExitAsync(StopWithin));
        AssertKept(kept, "room again");
        await using var next = await ReadyAsync(Launch());
        Assert.Equal(HttpStatusCode.NoContent, await RecordAsync(number + 1));
        AssertKept(kept, "the restart");
        next.Kill(Signal.Terminate);
        Assert.Equal(0, await next.ExitAsync(StopWithin));
    }

    private static void Fill(string path)
    {
        using var file = new FileStream(path, FileMode.Create, FileAccess.Write, FileShare.None, 0);
        foreach (var size in new[] { 65536, 4096, 1 })
        {
            try
            {
                while (true)
                    file.Write(new byte[size]);
            }
            catch (IOException)
            {
                // Full, for pieces of this size.
            }
        }
    }

    // ---- Words at the start ----

    [Fact]
    public async Task SecondOneOnADataDirectorySaysSoAndExitsWithTwo()
    {
        await using var first = await ReadyAsync(Launch());
        await using var second = Start(["--onix-url", "none", "--data-dir", DataDir,
            "--port", $"{FreePort.Next()}", "--address", "127.0.0.1"]);
        await AssertRefusedAsync(second, "in use by another SeS");
        Assert.Equal(HttpStatusCode.OK, await Sender.GetAsync(_port, "ready"));
    }

    [Fact]
    public async Task PortInUseIsReportedAndExitsWithTwo()
    {
        using var taken = new TcpListener(IPAddress.Loopback, _port);
        taken.Start();
        await using var ses = Launch();
        await AssertRefusedAsync(ses, $"--port (OXSES_PORT): '{_port}'");
    }

    [Theory]
    [InlineData("192.0.2.1")]
    [InlineData("::ffff:127.0.0.1")]
    public async Task AddressOfAnotherHostIsReportedAndExitsWithTwo(string address)
    {
        await using var ses = Start(["--onix-url", "none", "--data-dir", DataDir, "--port", "0", "--address", address]);
        await AssertRefusedAsync(ses, $"--address (OXSES_ADDRESS): '{address}' cannot be used");
    }

    [Theory]
    [InlineData("--port (OXSES_PORT): '70000' is not valid", "--port", "70000")]
    [InlineData("--retention (OXSES_RETENTION): '1h'", "--retention", "1h")]
    [InlineData("--log-level (OXSES_LOGLEVEL): 'loud'", "--log-level", "loud")]
    [InlineData("--onix-url (OXSES_ONIX_URL)", "--onix-url", "ftp://onix")]
    [InlineData("--password-file (OXSES_PASSWORD_FILE)", "--password-file", "/nowhere/secret")]
    [InlineData("--prot", "--prot", "80")]
    [InlineData("--port", "--port")]
    public async Task BadSettingIsOneLineAndExitsWithTwo(string says, params string[] arguments)
    {
        await using var ses = Start(arguments);
        await AssertRefusedAsync(ses, says);
    }

    [Fact]
    public async Task DataDirectoryThatIsAFileIsOneLineAndExitsWithTwo()
    {
        File.WriteAllText(DataDir, "");
        await using var ses = Launch();
        await AssertRefusedAsync(ses, "--data-dir (OXSES_DATADIR)");
    }

    private static async Task AssertRefusedAsync(ChildProcess ses, string says)
    {
        Assert.Equal(2, await ses.ExitAsync(Soon));
        var line = Assert.Single(ses.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.StartsWith("ses: ", line, StringComparison.Ordinal);
        Assert.Contains(says, line, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("--version", @"^ses (\d+\.){2}\d+.*, OpenSSL \d+\.\d+\.\w+, SQLite 3\.\d+\.\d+\n$")]
    [InlineData("--help", @"--data-dir DIR  \(OXSES_DATADIR\)")]
    public async Task VersionAndHelpExitWithZero(string flag, string says)
    {
        await using var ses = Start([flag]);
        Assert.Equal(0, await ses.ExitAsync(Soon));
        Assert.Matches(says, ses.Output);
    }

    // ---- What others hear of it ----

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task SystemdIsNotifiedOfReadinessLifeAndStop(bool isAbstract)
    {
        var name = isAbstract ? $"@ses-test-{Guid.NewGuid():N}" : Path.Combine(_dir, "notify");
        using var socket = new Socket(AddressFamily.Unix, SocketType.Dgram, ProtocolType.Unspecified);
        socket.Bind(new UnixDomainSocketEndPoint(isAbstract ? '\0' + name[1..] : name));
        await using var ses = Launch(new() { ["NOTIFY_SOCKET"] = name, ["WATCHDOG_USEC"] = "400000" });
        var buffer = new byte[4096];
        async Task<string> NextStateAsync()
        {
            using var deadline = new CancellationTokenSource(Soon);
            return Encoding.UTF8.GetString(buffer, 0, await socket.ReceiveAsync(buffer, deadline.Token));
        }

        var ready = await NextStateAsync();
        Assert.StartsWith("READY=1\nSTATUS=", ready, StringComparison.Ordinal);
        Assert.Equal(HttpStatusCode.OK, await Sender.GetAsync(_port, "ready"));
        for (var beat = 0; beat < 3; beat++)
            Assert.StartsWith("WATCHDOG=1\nSTATUS=", await NextStateAsync(), StringComparison.Ordinal);
        ses.Kill(Signal.Terminate);
        string word;
        while ((word = await NextStateAsync()).StartsWith("WATCHDOG=1", StringComparison.Ordinal))
            Assert.False(word.Contains("STOPPING", StringComparison.Ordinal));
        Assert.Equal("STOPPING=1", word);
        Assert.Equal(0, await ses.ExitAsync(StopWithin));
    }

    [Fact]
    public async Task PromtoolAcceptsTheMetrics()
    {
        await using var ses = await ReadyAsync(Launch());
        await using (var load = new Load(_port, senders: 2))
            await load.MoreAsync(50);
        foreach (var body in new[] { "{}", "{\"version\":\"4\",\"alerts\":[{\"status\":\"firing\"}]}" })
            await Sender.PostAsync(_port, body);
        using var client = new HttpClient();
        var metrics = Path.Combine(_dir, "metrics");
        var text = await client.GetStringAsync(new Uri($"http://127.0.0.1:{_port}/metrics"));
        Assert.Contains("ses_alerts_total{outcome=\"quarantined\"} 1\n", text, StringComparison.Ordinal);
        Assert.Contains("ses_bad_requests_total{reason=\"payload\"} 1\n", text, StringComparison.Ordinal);
        Assert.Contains("ses_store_commit_duration_seconds_bucket{le=\"+Inf\"}", text, StringComparison.Ordinal);
        File.WriteAllText(metrics, text);
        Assert.Equal("", await RunAsync("sh", "-c", $"exec promtool check metrics < '{metrics}'"));
    }

    [Fact]
    public async Task SecretsAreNeverLogged()
    {
        string[] secrets = ["s3cret-own", "s3cret-onix", "s3cret-app"];
        var file = Path.Combine(_dir, "secret");
        File.WriteAllText(file, secrets[2] + "\n");
        var nobody = $"http://127.0.0.1:{FreePort.Next()}";
        var environment = new Dictionary<string, string?>
        {
            ["OXSES_ONIX_PASSWORD"] = secrets[1],
            ["OXSES_ONIX_APPSECRET_FILE"] = file,
        };
        foreach (var mode in new[] { "basic", "oidc" })
        {
            await using var ses = await ReadyAsync(Start(["--onix-url", nobody, "--onix-auth-mode", mode,
                "--onix-client-id", "ses", "--onix-token-uri", nobody + "/token", "--data-dir", DataDir,
                "--port", $"{_port}", "--address", "127.0.0.1", "--log-level", "Trace",
                "--auth-mode", "basic", "--password", secrets[0]], environment));
            var body = Load.Body([new Event("s", "down", Load.At(0))]);
            Assert.Equal(HttpStatusCode.Unauthorized, await Sender.PostAsync(_port, body, "admin:wr0ng"));
            Assert.Equal(HttpStatusCode.NoContent,
                await Sender.PostAsync(_port, body, "admin:" + secrets[0]));
            using var client = new HttpClient { BaseAddress = new Uri($"http://127.0.0.1:{_port}/") };
            string state = "";
            Task<string> GetAsync(string path) => client.GetStringAsync(new Uri(path, UriKind.Relative));
            await Wait.UntilAsync(async () => (state = await GetAsync("ready"))
                .Contains("\"away\"", StringComparison.Ordinal), Soon, "the missing Onix to be noticed");
            var metrics = await GetAsync("metrics");
            ses.Kill(Signal.Terminate);
            Assert.Equal(0, await ses.ExitAsync(StopWithin));
            foreach (var secret in secrets.Append("wr0ng").SelectMany(s => new[] { s, Base64("admin:" + s) }))
                Assert.DoesNotContain(secret, ses.Output + state + metrics, StringComparison.Ordinal);
            Assert.Contains("SeS has stopped", ses.Output, StringComparison.Ordinal);
        }
    }

    private static string Base64(string text) => Convert.ToBase64String(Encoding.UTF8.GetBytes(text));

    // ---- What the tests share ----

    private sealed record Event(string Service, string Status, DateTime Time);

    private ChildProcess Launch(Dictionary<string, string?>? environment = null) => Start([
        "--onix-url", "none", "--data-dir", DataDir, "--port", $"{_port}", "--address", "127.0.0.1",
    ], environment);

    private ChildProcess Start(IEnumerable<string> arguments, Dictionary<string, string?>? environment = null)
    {
        var variables = SesProcess.Unset;
        foreach (var (name, value) in environment ?? [])
            variables[name] = value;
        return ChildProcess.Start(SesProcess.Binary, arguments, variables, _dir);
    }

    private async Task<ChildProcess> ReadyAsync(ChildProcess ses)
    {
        await Wait.UntilAsync(async () => ses.HasExited
            ? throw new InvalidOperationException("SeS ended: " + ses.Output)
            : await Sender.GetAsync(_port, "ready") == HttpStatusCode.OK, Soon, "/ready");
        return ses;
    }

    /// <summary>Runs a program to its end; it must end with 0.</summary>
    /// <returns>Its output.</returns>
    private static async Task<string> RunAsync(string program, params string[] arguments)
    {
        await using var child = ChildProcess.Start(program, arguments);
        var code = await child.ExitAsync(Soon);
        Assert.True(code == 0, $"{program} {string.Join(' ', arguments)} ended with {code}: {child.Output}");
        return child.Output;
    }

    /// <summary>No fact is there twice, and all acknowledged ones are.</summary>
    private void AssertKept(IEnumerable<Event> acknowledged, string when)
    {
        // Taken first: what is acknowledged later may be missing in what is read now.
        var expected = acknowledged.ToHashSet();
        var found = new HashSet<(string, string, DateTime, long)>();
        foreach (var fact in StoreFiles.Facts(DataDir))
        {
            Assert.True(found.Add(fact), $"after {when}: recorded twice: {fact}");
            expected.Remove(new Event(fact.Service, fact.Status, fact.Starts));
        }
        Assert.True(expected.Count == 0,
            $"after {when}: {expected.Count} acknowledged facts are lost: {expected.FirstOrDefault()}");
    }

    private static class Sender
    {
        private static readonly HttpClient Http = new() { Timeout = Soon };

        /// <summary>The code of the answer; 0 when there was none.</summary>
        public static async Task<HttpStatusCode> PostAsync(int port, string json, string? credentials = null)
        {
            using var request = new HttpRequestMessage(
                HttpMethod.Post, $"http://127.0.0.1:{port}/alerts/INS");
            request.Content = new ByteArrayContent(Encoding.UTF8.GetBytes(json));
            if (credentials != null)
                request.Headers.Authorization = new AuthenticationHeaderValue("Basic", Base64(credentials));
            return await SendAsync(request);
        }

        public static async Task<HttpStatusCode> GetAsync(int port, string path)
        {
            using var request = new HttpRequestMessage(HttpMethod.Get, $"http://127.0.0.1:{port}/{path}");
            return await SendAsync(request);
        }

        private static async Task<HttpStatusCode> SendAsync(HttpRequestMessage request)
        {
            try
            {
                using var answer = await Http.SendAsync(request);
                return answer.StatusCode;
            }
            catch (Exception e) when (e is HttpRequestException or SocketException)
            {
                // The latter is let through when a connection is reset as soon as it stands.
                return 0;
            }
        }
    }

    /// <summary>
    /// Senders that post changes of status without end, each payload again until it is acknowledged, as
    /// Alertmanager does.
    /// </summary>
    private sealed class Load : IAsyncDisposable
    {
        private static readonly DateTime FirstTime = DateTime.UtcNow.Date.AddDays(-1);
        private static readonly TimeSpan RetryPause = TimeSpan.FromMilliseconds(5);

        private readonly int _port;
        private readonly CancellationTokenSource _stop = new();
        private readonly List<Task> _senders;

        public Load(int port, int senders)
        {
            _port = port;
            _senders = [.. Enumerable.Range(0, senders).Select(s => Task.Run(() => SendAsync(s)))];
        }

        /// <summary>The events of all payloads that were answered 2xx so far.</summary>
        public ConcurrentQueue<Event> Acknowledged { get; } = [];

        public static DateTime At(int number) => FirstTime.AddMilliseconds(number);

        /// <summary>Waits until so many more events are acknowledged.</summary>
        public Task MoreAsync(int count)
        {
            var goal = Acknowledged.Count + count;
            return Wait.UntilAsync(() => _senders.Find(s => s.IsFaulted) is { } faulted
                ? throw faulted.Exception!
                : Acknowledged.Count >= goal, Soon, $"{count} acknowledged events");
        }

        public async Task StopAsync()
        {
            await _stop.CancelAsync();
            await Task.WhenAll(_senders).WaitAsync(Soon);
        }

        public async ValueTask DisposeAsync()
        {
            await StopAsync();
            _stop.Dispose();
        }

        public static string Body(IEnumerable<Event> events, string description = "generated")
        {
            var alerts = events.Select(e => $$$"""
                {"status":"firing","startsAt":"{{{Text(e.Time)}}}",
                "labels":{"platform":"p1","facet":"node",
                "service":"{{{e.Service}}}","status":"{{{e.Status}}}"},
                "annotations":{"description":"{{{description}}}"}}
                """);
            return "{\"version\":\"4\",\"alerts\":[" + string.Join(',', alerts) + "]}";
        }

        private static string Text(DateTime time) =>
            time.ToString("yyyy-MM-dd'T'HH:mm:ss.fff'Z'", CultureInfo.InvariantCulture);

        private async Task SendAsync(int sender)
        {
            for (var number = 0; !_stop.IsCancellationRequested; number++)
            {
                Event[] events = [.. Enumerable.Range(0, 1 + number % 4)
                    .Select(i => new Event($"s{sender}-{i}", number % 8 < 4 ? "down" : "up", At(number)))];
                var body = Body(events);
                while (!_stop.IsCancellationRequested)
                {
                    if ((int)await Sender.PostAsync(_port, body) is >= 200 and < 300)
                    {
                        Array.ForEach(events, Acknowledged.Enqueue);
                        break;
                    }
                    await Task.Delay(RetryPause);
                }
            }
        }
    }
}
