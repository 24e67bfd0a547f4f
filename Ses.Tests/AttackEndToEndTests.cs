using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Text;
using Ses.Tests.Support;
using Xunit;
using Xunit.Abstractions;

namespace Ses.Tests;

/// <summary>What kills a bare HttpListener does nothing to the native SeS, nor to those whom it serves.</summary>
[Trait("Category", "E2E")]
[Collection(Alone.Name)]
public sealed class AttackEndToEndTests(ITestOutputHelper output)
{
    private const long MiB = 1 << 20;

    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);

    // A slow machine slows single answers; what an attack does to others is seen in the middle of them.
    private static readonly TimeSpan Usual = TimeSpan.FromMilliseconds(100), Worst = TimeSpan.FromSeconds(5);

    private const string Post = "POST /alerts/INS HTTP/1.1\r\nHost: a\r\n";
    private const string Metrics = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";

    [Theory]
    [InlineData("chunk extension of 200 KB")]
    [InlineData("very many chunks of one byte")]
    [InlineData("POSTs without a length")]
    [InlineData("pipelined requests")]
    [InlineData("both lengths")]
    [InlineData("unread chunked body")]
    [InlineData("duplicate headers and odd hosts")]
    [InlineData("TLS where none is spoken")]
    // Those of most waiting are made side by side, each on a SeS of its own.
    [InlineData("one byte, half a head, half a body, then nothing", "pipelined requests that are refused, without end",
        "endless request line", "header lines without end")]
    [InlineData("thousands of connections", "readers that never read", "resets while a big reply is written")]
    public Task AttackHarmsNobody(params string[] attacks) => Task.WhenAll(attacks.Select(AttackHarmsNobodyAsync));

    private async Task AttackHarmsNobodyAsync(string attack)
    {
        await using var ses = await SesProcess.StartAsync("none");
        await using var others = new Others(ses);
        await others.AnsweredAsync(200);
        var (process, memory, files) = (ses.Child.Id, ses.Child.ResidentBytes(), ses.Child.OpenDescriptors());
        others.Forget();
        var clock = Stopwatch.StartNew();
        await AttackAsync(attack, ses.Port);
        await others.AnsweredAsync(50);
        var took = clock.Elapsed;
        var peak = ses.Child.ResidentBytes();
        var latencies = await others.EndAsync();
        output.WriteLine($"{attack}: {took.TotalSeconds:N1} s; others {latencies.Count} answers, median "
            + $"{latencies[latencies.Count / 2].TotalMilliseconds:N1} ms, worst {latencies[^1].TotalMilliseconds:N1} ms; "
            + $"resident {memory / MiB} to {peak / MiB} MiB");
        Assert.True(latencies[latencies.Count / 2] < Usual, $"median {latencies[latencies.Count / 2]}");
        Assert.True(latencies[^1] < Worst, $"worst {latencies[^1]}");
        await Wait.UntilAsync(() => ses.Child.ResidentBytes() <= memory + 10 * MiB, Soon,
            $"memory to return from {peak / MiB} MiB to {memory / MiB} and 10");
        await Wait.UntilAsync(() => ses.Child.OpenDescriptors() <= files + 8, Soon, "descriptors to be given back");
        Assert.Equal((process, false), (ses.Child.Id, ses.Child.HasExited));
        Assert.Contains("ses_defects_total 0\n", await ses.Client.GetStringAsync("metrics"), StringComparison.Ordinal);
        Assert.All(StoreFiles.Changes(ses.DataDir), e => Assert.Equal("other", e.Service.Service));
    }

    /// <summary>In the memory of the shipped manifests, where a cgroup can be made. An hour of it is <c>make soak</c>.</summary>
    [Fact]
    public async Task WorstOfAllPayloadsAndQuestionsTakeLittleMemory()
    {
        var time = TimeSpan.FromSeconds(
            int.Parse(Environment.GetEnvironmentVariable("SES_SOAK") ?? "20", CultureInfo.InvariantCulture));
        using var container = MemoryCgroup.TryCreate(256 * MiB);
        await using var ses = await SesProcess.StartInAsync(container);
        await using var others = new Others(ses);
        var bodies = WorstPayloads().Select(Encoding.ASCII.GetBytes).ToArray();
        string[] questions = ["", "?range=90d", "alerts/INS", "alerts/INS/history?format=csv", "alerts/INS/report?threshold=2"];
        var (clock, answers) = (Stopwatch.StartNew(), 0);
        await Task.WhenAll(Enumerable.Range(0, 8).Select(worker => Task.Run(async () =>
        {
            var random = new Random(worker);
            while (clock.Elapsed < time && !ses.Child.HasExited)
            {
                await IgnoringClosesAsync(async () =>
                {
                    using var socket = await ConnectAsync(ses.Port);
                    var body = random.Next(4) == 0 ? [] : bodies[random.Next(bodies.Length)];
                    await WriteAsync(socket, body.Length > 0 ? $"{Post}Content-Length: {body.Length}\r\n\r\n"
                        : $"GET /{questions[random.Next(questions.Length)]} HTTP/1.1\r\nHost: a\r\n\r\n");
                    await WriteAsync(socket, body);
                    if (await socket.ReceiveAsync(new byte[4096]) > 0)
                        Interlocked.Increment(ref answers);
                });
            }
        })));
        Assert.False(ses.Child.HasExited, $"after {clock.Elapsed}: {ses.Child.Output}");
        await others.AnsweredAsync(50);
        var (latencies, peak) = (await others.EndAsync(), ses.Child.PeakBytes());
        output.WriteLine($"{answers} answers in {clock.Elapsed.TotalSeconds:N0} s, {(container == null ? "no cgroup" : "256 MiB")}, "
            + $"resident at most {peak / MiB} MiB; others' median "
            + $"{latencies[latencies.Count / 2].TotalMilliseconds:N0} ms, worst {latencies[^1].TotalMilliseconds:N0} ms");
        // Of a cgroup pages of the program's file are not charged; where there is none the heap is let grow.
        Assert.Equal(0, container?.Kills() ?? 0);
        if (container == null)
            Assert.InRange(peak, 0, 400 * MiB);
        Assert.True(answers > time.TotalSeconds / 4, $"{answers}");
        Assert.Contains("ses_defects_total 0\n", await ses.Client.GetStringAsync("metrics"), StringComparison.Ordinal);
    }

    /// <summary>Payloads of 16 MiB, each of which is mostly one thing.</summary>
    private static IEnumerable<string> WorstPayloads()
    {
        const int Size = 16 * (int)MiB;
        const string Alert = """{"labels":{"alertname":"A","job":"j"},"status":"firing","startsAt":"2026-11-01T00:00:00Z","annotations":{""";
        static string Of(string start, string part, string end) =>
            start + Repeat(part, (Size - start.Length - end.Length) / part.Length).TrimEnd(',') + end;
        yield return Of("""{"version":"4","alerts":[""", "0,", "]}");
        yield return Of("""{"version":"4","alerts":[""", "{},", "]}");
        yield return Of("""{"version":"4","alerts":[""", Alert + "}},", "]}");
        yield return Of("""{"version":"4","alerts":[""" + Alert + "\"description\":\"", "x", "\"}}]}");
        yield return Of("""{"version":"4","alerts":[""" + Alert, "\"a\":\"b\",", "}}]}");
        yield return Of("""{"version":"4","alerts":[{"labels":{""", "\"a\":\"b\",", "}}]}");
        yield return Of("", "[", "");
    }

    private static Task AttackAsync(string attack, int port) => attack switch
    {
        "chunk extension of 200 KB" => ManyAsync(port, 200, 8, s => WriteAsync(s,
            $"{Post}Transfer-Encoding: chunked\r\n\r\n1;{new string('x', 200_000)}\r\nx\r\n0\r\n\r\n")),
        "very many chunks of one byte" => ManyAsync(port, 200, 8, s => WriteAsync(s,
            $"{Post}Transfer-Encoding: chunked\r\n\r\n{Repeat("1\r\nx\r\n", 20_000)}0\r\n\r\n")),
        "endless request line" => ManyAsync(port, 20, 4, s => EndlesslyAsync(s, "GET /", new string('x', 1000))),
        "header lines without end" => ManyAsync(port, 20, 4, s => EndlesslyAsync(s, Post, "X-More: and more\r\n")),
        "POSTs without a length" => ManyAsync(port, 15_000, 16, s => AskAsync(s, $"{Post}\r\n", "HTTP/1.1 411 ")),
        "one byte, half a head, half a body, then nothing" => SilentAsync(port),
        "thousands of connections" => HeldAsync(port, 6000, _ => Task.CompletedTask, TimeSpan.Zero),
        "pipelined requests" => ManyAsync(port, 200, 8, PipelineAsync),
        "pipelined requests that are refused, without end" => ManyAsync(port, 16, 16, FloodAsync),
        "both lengths" => ManyAsync(port, 2000, 8, s => AskAsync(s, $"{Post}Content-Length: 5\r\n"
            + $"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{Hidden()}", "HTTP/1.1 400 ")),
        "unread chunked body" => ManyAsync(port, 2000, 8, s => AskAsync(s, "POST /nowhere HTTP/1.1\r\nHost: a\r\n"
            + $"Transfer-Encoding: chunked\r\n\r\n{Hidden().Length:x}\r\n{Hidden()}\r\n0\r\n\r\n", "HTTP/1.1 404 ")),
        "duplicate headers and odd hosts" => ManyAsync(port, 2000, 8, s => AskAsync(s,
            $"{Post}Host: b\r\nHost: ../../c?d#e\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 400 ")),
        "resets while a big reply is written" => ManyAsync(port, 3000, 16, s =>
        {
            s.LingerState = new LingerOption(true, 0);
            return WriteAsync(s, Metrics);
        }),
        "readers that never read" => HeldAsync(port, 500, async s =>
        {
            s.ReceiveBufferSize = 1024;
            await WriteAsync(s, Repeat(Metrics, 100));
        }, TimeSpan.FromSeconds(5)),
        "TLS where none is spoken" => ManyAsync(port, 2000, 8, s => s.SendAsync(
            new byte[] { 22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3 })),
        _ => throw new ArgumentException(attack),
    };

    private static string Repeat(string text, int times) => new StringBuilder().Insert(0, text, times).ToString();

    private static string Hidden()
    {
        const string Body = """{"version":"4","alerts":[{"status":"firing","labels":{"alertname":"x","job":"hidden"},"startsAt":"2026-11-01T00:00:00Z"}]}""";
        return $"{Post}Content-Length: {Body.Length}\r\n\r\n{Body}";
    }

    /// <summary>Makes so many connections, some at a time; what SeS closes on is no error here.</summary>
    private static Task ManyAsync(int port, int count, int atOnce, Func<Socket, Task> speak) =>
        Parallel.ForEachAsync(Enumerable.Range(0, count), new ParallelOptions { MaxDegreeOfParallelism = atOnce },
            async (_, _) =>
            {
                using var socket = await ConnectAsync(port);
                await IgnoringClosesAsync(() => speak(socket));
            });

    private static async Task<Socket> ConnectAsync(int port)
    {
        var socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        await socket.ConnectAsync(IPAddress.Loopback, port);
        return socket;
    }

    private static async Task IgnoringClosesAsync(Func<Task> speak)
    {
        try
        {
            await speak();
        }
        catch (SocketException)
        {
            // SeS has closed.
        }
    }

    private static Task WriteAsync(Socket socket, string text) => WriteAsync(socket, Encoding.ASCII.GetBytes(text));

    private static async Task WriteAsync(Socket socket, ReadOnlyMemory<byte> bytes)
    {
        while (bytes.Length > 0)
            bytes = bytes[await socket.SendAsync(bytes)..];
    }

    /// <summary>Until SeS closes: bounded all the same.</summary>
    private static async Task EndlesslyAsync(Socket socket, string start, string more)
    {
        await WriteAsync(socket, start);
        for (var clock = Stopwatch.StartNew(); clock.Elapsed < Soon; await Task.Yield())
            await WriteAsync(socket, Repeat(more, 10));
        Assert.Fail("SeS took it all");
    }

    private static async Task AskAsync(Socket socket, string request, string answer)
    {
        await WriteAsync(socket, request);
        var buffer = new byte[1024];
        var count = await socket.ReceiveAsync(buffer).WaitAsync(Soon);
        Assert.StartsWith(answer, Encoding.ASCII.GetString(buffer, 0, count), StringComparison.Ordinal);
    }

    private static async Task PipelineAsync(Socket socket)
    {
        await WriteAsync(socket, Repeat("GET /live HTTP/1.1\r\nHost: a\r\n\r\n", 100));
        var (text, buffer) = (new StringBuilder(), new byte[64 * 1024]);
        while (text.ToString().Split("{\"live\":true}").Length <= 100)
        {
            var count = await socket.ReceiveAsync(buffer).WaitAsync(Soon);
            Assert.True(count > 0, "answers are missing");
            text.Append(Encoding.ASCII.GetString(buffer, 0, count));
        }
    }

    /// <summary>Sends and reads as fast as it can for a few seconds.</summary>
    private static async Task FloodAsync(Socket socket)
    {
        var clock = Stopwatch.StartNew();
        var reading = Task.Run(async () =>
        {
            var buffer = new byte[256 * 1024];
            while (clock.Elapsed < TimeSpan.FromSeconds(4))
                Assert.True(await socket.ReceiveAsync(buffer) > 0);
        });
        while (!reading.IsCompleted)
            await WriteAsync(socket, Repeat("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", 300));
        await reading;
    }

    /// <summary>Opens so many, says something on each, and holds them a while.</summary>
    private static async Task HeldAsync(int port, int count, Func<Socket, Task> speak, TimeSpan held)
    {
        var sockets = new List<Socket>();
        try
        {
            for (var i = 0; i < count; i++)
            {
                sockets.Add(await ConnectAsync(port));
                await IgnoringClosesAsync(() => speak(sockets[^1]).WaitAsync(TimeSpan.FromSeconds(0.1)).ContinueWith(
                    _ => { }, TaskScheduler.Default));
            }
            await Task.Delay(held);
        }
        finally
        {
            sockets.ForEach(s => s.Dispose());
        }
    }

    /// <summary>Each is ended by SeS, since its deadline passes.</summary>
    private static async Task SilentAsync(int port)
    {
        string[] starts = ["P", Post, $"{Post}Content-Length: 100\r\n\r\n{{\"version\":"];
        var sockets = await Task.WhenAll(Enumerable.Range(0, 900).Select(async i =>
        {
            var socket = await ConnectAsync(port);
            await WriteAsync(socket, starts[i % 3]);
            return socket;
        }));
        foreach (var socket in sockets)
        {
            var buffer = new byte[1024];
            var count = await socket.ReceiveAsync(buffer).WaitAsync(Soon);
            Assert.StartsWith("HTTP/1.1 408 ", Encoding.ASCII.GetString(buffer, 0, count), StringComparison.Ordinal);
            socket.Dispose();
        }
    }

    /// <summary>Somebody who posts alerts and asks /live all the while, one after the other.</summary>
    private sealed class Others : IAsyncDisposable
    {
        private readonly SesProcess _ses;
        private readonly CancellationTokenSource _stop = new();
        private readonly Lock _gate = new();
        private readonly List<TimeSpan> _latencies = [];
        private readonly Task _asking;
        private int _told;

        public Others(SesProcess ses)
        {
            _ses = ses;
            _asking = Task.Run(AskAsync);
        }

        public void Forget()
        {
            lock (_gate)
                _latencies.Clear();
        }

        public Task AnsweredAsync(int count)
        {
            var from = Count;
            return Wait.UntilAsync(() => _asking.IsFaulted ? throw _asking.Exception! : Count >= from + count, Soon,
                $"{count} more answers");
        }

        public async Task<List<TimeSpan>> EndAsync()
        {
            await _stop.CancelAsync();
            await _asking;
            return [.. _latencies.Order()];
        }

        public async ValueTask DisposeAsync()
        {
            await _stop.CancelAsync();
            await Task.WhenAny(_asking);
            _stop.Dispose();
        }

        private int Count
        {
            get
            {
                lock (_gate)
                    return _latencies.Count;
            }
        }

        private async Task AskAsync()
        {
            while (!_stop.IsCancellationRequested)
            {
                var clock = Stopwatch.StartNew();
                using var live = await _ses.Client.GetAsync("live");
                using var told = await _ses.PostAsync("INS", Alert(_told++));
                Assert.Equal((HttpStatusCode.OK, HttpStatusCode.NoContent), (live.StatusCode, told.StatusCode));
                lock (_gate)
                    _latencies.Add(clock.Elapsed / 2);
                await Task.Delay(5);
            }
        }

        private static string Alert(int number)
        {
            var time = DateTime.UnixEpoch.AddYears(56).AddSeconds(number).ToString("O", CultureInfo.InvariantCulture);
            return $$"""
                {"version":"4","alerts":[{"status":"firing","labels":{"platform":"p","service":"other","facet":"f",
                "status":"{{(number % 2 == 0 ? "up" : "down")}}"},"annotations":{},"startsAt":"{{time}}"}]}
                """;
        }
    }

    // ---- Payloads ----

    /// <summary>As many bytes as may come, of the worst: each alert costs something, whatever it says.</summary>
    [Theory]
    [InlineData("0", 200)]
    [InlineData("{}", 200)]
    [InlineData("[[[[[[[[]]]]]]]]", 200)]
    [InlineData("""{"labels":{}}""", 200)]
    [InlineData("""{"status":"firing","labels":{"a":"b"},"startsAt":"2026-11-22T11:34:00Z"}""", 200)]
    [InlineData("""{"status":"firing","labels":{"alertname":"a"},"startsAt":"2026-11-22T11:34:00Z"}""", 413)]
    // One, with as much as there is room for.
    [InlineData("""{"status":"firing","labels":{"alertname":"*"},"startsAt":"2026-11-22T11:34:00Z"}""", 200)]
    [InlineData("""{"status":"firing","labels":{"alertname":"a","*":"b"},"startsAt":"2026-11-22T11:34:00Z"}""", 200)]
    [InlineData("""{"status":"firing","labels":{"alertname":"a"},"annotations":{"a":"*"},"startsAt":"x"}""", 200)]
    [InlineData("""{"status":"firing","labels":{"alertname":"a"},"startsAt":"*"}""", 200)]
    [InlineData("""{"status":"firing","fingerprint":"*","labels":{},"startsAt":"x"}""", 200)]
    [InlineData("""{"status":"firing","*":"","labels":{"alertname":"a"},"startsAt":"2026-11-22T11:34:00Z"}""", 204)]
    public async Task SixteenMebibytesOfAnythingAreAnsweredInLittleMemory(string alert, int code)
    {
        await using var ses = await SesProcess.StartAsync("none");
        using var answer = await ses.PostAsync("INS", Filled(alert));
        Assert.Equal(code, (int)answer.StatusCode);
        var peak = ses.Child.PeakBytes();
        output.WriteLine($"{peak / MiB} MiB");
        Assert.True(peak < 200 * MiB, $"{peak / MiB} MiB");
        using var next = await ses.PostAsync("INS", """
            {"version":"4","alerts":[{"status":"firing","labels":{"alertname":"next"},"startsAt":"2026-11-22T11:34:00Z"}]}
            """);
        Assert.Equal(HttpStatusCode.NoContent, next.StatusCode);
    }

    private static string Filled(string alert) => """{"version":"4","alerts":["""
        + (alert.Contains('*', StringComparison.Ordinal)
            ? alert.Replace("*", new string('\u202e', ((16 << 20) - 100 - alert.Length) / 3), StringComparison.Ordinal)
            : string.Join(',', Enumerable.Repeat(alert, ((16 << 20) - 100) / (alert.Length + 1)))) + "]}";

    /// <summary>A process that lacks memory may hang in parts; ended, it is started again.</summary>
    [Fact]
    public async Task WithoutMemoryItEndsAtOnce()
    {
        var (dir, port) = (Directory.CreateTempSubdirectory("ses-memory-").FullName, FreePort.Next());
        try
        {
            // 32 MiB for all that .NET holds.
            await using var ses = ChildProcess.Start("env", ["DOTNET_GCHeapHardLimit=2000000", SesProcess.Binary,
                "--onix-url", "none", "--data-dir", dir, "--port", $"{port}", "--address", "127.0.0.1"]);
            await Wait.UntilAsync(() => ses.Output.Contains("SeS is ready", StringComparison.Ordinal), Soon, "the start");
            using var client = new HttpClient();
            // Large bodies lie outside; what is made of them does not.
            var alerts = Enumerable.Range(0, 24_000).Select(i => $$$"""
                {"status":"firing","labels":{"alertname":"a{{{i}}}","x":"{{{new string('x', 500)}}}"},"startsAt":"2026-11-22T11:34:00Z"}
                """);
            using var body = new StringContent($$"""{"alerts":[{{string.Join(',', alerts)}}]}""");
            await Assert.ThrowsAnyAsync<HttpRequestException>(
                () => client.PostAsync(new Uri($"http://127.0.0.1:{port}/alerts/INS"), body));
            Assert.Equal(1, await ses.ExitAsync(Soon));
            Assert.Contains("ses: out of memory: SeS exits", ses.Output, StringComparison.Ordinal);
        }
        finally
        {
            Directory.Delete(dir, recursive: true);
        }
    }

    // ---- Crowds ----

    [Fact]
    public async Task ThousandConnectionsThatStandTakeLittleMemory()
    {
        await using var ses = await SesProcess.StartAsync("none");
        var sockets = await Task.WhenAll(Enumerable.Range(0, 1000).Select(_ => ConnectAsync(ses.Port)));
        foreach (var socket in sockets)
            await AskAsync(socket, "GET /live HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 ");
        var resident = ses.Child.ResidentBytes();
        output.WriteLine($"1,000 connections held: {resident / (double)MiB:N1} MiB");
        Assert.True(resident < 64 * MiB, $"{resident / MiB} MiB");
        Assert.Contains("ses_connections 1001\n", await ses.Client.GetStringAsync("metrics"), StringComparison.Ordinal);
        Array.ForEach(sockets, s => s.Dispose());
    }

    [Fact]
    public async Task CrowdsOfSilentAndSlowClientsMakeNoDeliveryFail()
    {
        await using var ses = await SesProcess.StartAsync("none");
        await using var pair = await Alertmanagers.StartAsync(2, ses.Webhook("INS"));
        using var crowd = new Crowd(ses.Port);
        var told = 0;
        for (var round = 0; round < 20; round++)
        {
            // 10,000 come in the first ten rounds; the cap lets the one that idled longest go.
            if (round < 10)
                await crowd.ComeAsync(1000);
            await crowd.DribbleAsync(500);
            await pair.SendAlertAsync($"alert-{told++}");
            await Wait.UntilAsync(() => StoreFiles.Changes(ses.DataDir).Any(e => e.Service.Facet == $"alert-{told - 1}"),
                Soon, $"alert {told - 1}");
        }
        var metrics = await ses.Client.GetStringAsync("metrics");
        output.WriteLine(string.Join('\n', metrics.Split('\n').Where(l => l.StartsWith("ses_conn", StringComparison.Ordinal)
            || l.StartsWith("ses_http_refused", StringComparison.Ordinal))));
        output.WriteLine($"resident {ses.Child.ResidentBytes() / MiB} MiB, descriptors {ses.Child.OpenDescriptors()}");
        Assert.Equal(told, StoreFiles.Changes(ses.DataDir).Count);
        Assert.Equal(0, await pair.SumAsync("alertmanager_notifications_failed_total"));
        Assert.True(await pair.SumAsync("alertmanager_notifications_total") >= told);
        Assert.DoesNotContain("ses_http_refused_total{reason=\"connections\"} 0\n", metrics, StringComparison.Ordinal);
        Assert.Contains("ses_defects_total 0\n", metrics, StringComparison.Ordinal);
    }

    /// <summary>Connections that are silent, and some that send a byte now and then.</summary>
    private sealed class Crowd(int port) : IDisposable
    {
        private const string Head = "POST /alerts/INS HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n";

        private readonly List<Socket> _silent = [], _slow = [];
        private int _said;

        public async Task ComeAsync(int count)
        {
            foreach (var socket in await Task.WhenAll(Enumerable.Range(0, count).Select(_ => ConnectAsync(port))))
                _silent.Add(socket);
        }

        /// <summary>One more byte on each; those that SeS has closed come again.</summary>
        public async Task DribbleAsync(int count)
        {
            while (_slow.Count < count)
                _slow.Add(await ConnectAsync(port));
            for (var i = 0; i < count; i++)
            {
                try
                {
                    await WriteAsync(_slow[i], Head[_said % Head.Length].ToString());
                }
                catch (SocketException)
                {
                    _slow[i].Dispose();
                    _slow[i] = await ConnectAsync(port);
                }
            }
            _said++;
        }

        public void Dispose() => _silent.Concat(_slow).ToList().ForEach(s => s.Dispose());
    }
}
