using System.Diagnostics;
using System.Net;
using Ses.Tests.Support;
using Xunit;
using Xunit.Abstractions;

namespace Ses.Tests;

/// <summary>The figures of docs/design.md, on the native binary; <c>make bench</c> prints them as table rows.</summary>
[Trait("Category", "Bench")]
public sealed class BenchTests(ITestOutputHelper output)
{
    /// <summary>What the real Onix takes for an item, one request at a time.</summary>
    private static readonly TimeSpan RealPerItem = TimeSpan.FromMilliseconds(1.2);

    private void Row(string measure, string value) => output.WriteLine($"| {measure} | {value} |");

    private static string MiB(long bytes) => $"{bytes / 1048576.0:N1} MiB";

    [Fact]
    public async Task Acknowledging()
    {
        await using var ses = await SesProcess.StartAsync("none");
        await new Load(ses.Port, 32, 10, 200).RunAsync(TimeSpan.FromSeconds(2));
        var result = await new Load(ses.Port, 32, 10, 199).RunAsync(TimeSpan.FromSeconds(8));
        Row("events acknowledged a second, flushed, 32 senders x 10 alerts", $"{result.PerSecond:N0}");
        Row("latency of these, p50 / p99", $"{result.Milliseconds(0.5):N1} / {result.Milliseconds(0.99):N1} ms");
        Row("resident after it, 6,400 services", MiB(ses.Child.ResidentBytes()));
        Assert.Equal(0, result.Refused);
    }

    /// <summary>
    /// Beside the least that a receiver can do, in turn: what SeS costs. Posts are built ahead, and come over as
    /// many connections as Alertmanager would not open. What is new is flushed by both.
    /// </summary>
    [Theory]
    [InlineData(10)]
    [InlineData(1000)]
    public async Task BesideABareReceiver(int alerts)
    {
        const int Connections = 16;
        var requests = 4000 / alerts;
        var dir = Directory.CreateTempSubdirectory("ses-bench-").FullName;
        await using var ses = await SesProcess.StartAsync("none", null, null,
            "--max-services", "2000000", "--max-alerts", "20000000");
        var port = FreePort.Next();
        await using var bare = ChildProcess.Start("python3",
            [Path.Combine(AppContext.BaseDirectory, "Data", "bare_receiver.py"), $"{port}", dir + "/alerts"]);
        await Wait.UntilAsync(() => IsListeningAsync(port), TimeSpan.FromSeconds(20), "the bare receiver");
        // Known ones come again whole; new episodes are the next ones of the services of "known".
        (string Measure, Func<int, int, Load> Load)[] loads =
        [
            ("label sets never seen", (to, round) => new Load(to, Connections, alerts, int.MaxValue)
                { IsBuiltAhead = true, Prefix = $"r{round}-" }),
            ("known alerts", (to, _) => new Load(to, Connections, alerts, 1000)
                { IsBuiltAhead = true, StandsStill = true }),
            ("new episodes of known alerts", (to, round) => new Load(to, Connections, alerts, 1000)
                { IsBuiltAhead = true, FirstRound = 2 + (round * 4) }),
        ];
        foreach (var (measure, load) in loads)
        {
            var (ours, theirs) = (new List<double>(), new List<double>());
            for (var round = 0; round < 4; round++)
            {
                var rates = new[] { 0.0, 0.0 };
                for (var i = 0; i < 2; i++)
                {
                    var which = (round + i) % 2;
                    var result = await load(which == 0 ? ses.Port : port, round).RunAsync(TimeSpan.FromMinutes(2), requests);
                    Assert.Equal(0, result.Refused);
                    rates[which] = result.PerSecond;
                }
                // The first makes both warm.
                if (round > 0)
                    (ours, theirs) = ([.. ours, rates[0]], [.. theirs, rates[1]]);
            }
            var ratio = ours.Zip(theirs, (a, b) => a / b).Order().ElementAt(1);
            Row($"{measure}, {alerts} a post, {Connections} connections, a second: SeS / bare receiver",
                $"{ours.Order().ElementAt(1):N0} / {theirs.Order().ElementAt(1):N0} ({ratio:N2})");
        }
        Row("resident of SeS after it", MiB(ses.Child.ResidentBytes()));
        Directory.Delete(dir, recursive: true);
    }

    private static async Task<bool> IsListeningAsync(int port)
    {
        using var client = new System.Net.Sockets.TcpClient();
        try
        {
            await client.ConnectAsync(IPAddress.Loopback, port);
            return true;
        }
        catch (System.Net.Sockets.SocketException)
        {
            return false;
        }
    }

    /// <summary>
    /// What the gate costs: the same requests to the bare listener behind it, to the gate, and over TLS, in
    /// turn, three times each.
    /// </summary>
    [Theory]
    [InlineData(true, "requests a second, 3.8 KB of known alerts, 32 connections")]
    [InlineData(false, "requests a second, 3.8 KB of new alerts, flushed, 32 connections")]
    public async Task PassingTheGate(bool repeats, string measure)
    {
        var dir = Directory.CreateTempSubdirectory("ses-bench-").FullName;
        var (certificate, key) = Authority.Root().Issue().Write(dir, "server");
        await using var plain = await SesProcess.StartAsync("none");
        await using var tls = await SesProcess.StartAsync("none", null, null,
            "--tls-cert", certificate, "--tls-key", key);
        var (port, secret) = InnerListener.Of(plain.Child.Id);
        Load[] loads =
        [
            // The bare listener closes a connection after its hundredth request.
            new(port, 32, 10, 200) { Fields = $"Ses-Secret: {secret}\r\n", RequestsPerConnection = 90, Repeats = repeats },
            new(plain.Port, 32, 10, 200) { Repeats = repeats },
            new(tls.Port, 32, 10, 200) { IsTls = true, Repeats = repeats },
        ];
        var rates = new List<double>[] { [], [], [] };
        for (var round = 0; round < 4; round++)
        {
            for (var i = 0; i < loads.Length; i++)
            {
                var result = await loads[i].RunAsync(TimeSpan.FromSeconds(4));
                Assert.Equal(0, result.Refused);
                if (round > 0)
                    rates[i].Add(result.PerSecond / 10);
            }
        }
        double Median(int i) => rates[i].Order().ElementAt(1);
        Row(measure + ": bare listener / gate / gate with TLS",
            $"{Median(0):N0} / {Median(1):N0} / {Median(2):N0} "
            + $"({Median(1) / Median(0):P0} / {Median(2) / Median(0):P0})");
        Row("resident after it, plain / TLS",
            $"{MiB(plain.Child.ResidentBytes())} / {MiB(tls.Child.ResidentBytes())}");
        Directory.Delete(dir, recursive: true);
    }

    [Fact]
    public async Task RecordingAtTheRealOnixsSpeed()
    {
        await using var onix = new OnixStandIn { PerItem = RealPerItem };
        onix.Start();
        await using var ses = await SesProcess.StartAsync(onix.Url.AbsoluteUri);
        await new Load(ses.Port, 4, 10, 500).RunAsync(TimeSpan.FromMinutes(1), requestsEach: 100);
        var clock = Stopwatch.StartNew();
        var (changes, requests) = (onix.Changes, onix.Requests);
        // A backlog stands during all of it, as with senders that never pause.
        var load = await new Load(ses.Port, 4, 10, 499).RunAsync(TimeSpan.FromMinutes(1), requestsEach: 1500);
        await Wait.UntilAsync(() => clock.Elapsed > TimeSpan.FromSeconds(15), TimeSpan.FromSeconds(60), "15 s");
        var took = clock.Elapsed;
        (changes, requests) = (onix.Changes - changes, onix.Requests - requests);
        Row("changes recorded a second, Onix at its real speed, 4 senders x 10 alerts",
            $"{changes / took.TotalSeconds:N0} of {1 / RealPerItem.TotalSeconds:N0}");
        Row("requests to Onix a change", $"{(double)requests / changes:N4}");
        Row("latency of a POST meanwhile, p50 / p99",
            $"{load.Milliseconds(0.5):N1} / {load.Milliseconds(0.99):N1} ms");
        Row("resident meanwhile", MiB(ses.Child.ResidentBytes()));
    }

    [Fact]
    public async Task DrainingAMillionEvents()
    {
        await using var onix = new OnixStandIn { KeepsHistory = false };
        onix.Start();
        onix.Stop();
        await using var ses = await SesProcess.StartAsync(onix.Url.AbsoluteUri);
        var load = await new Load(ses.Port, 10, 100, 100).RunAsync(TimeSpan.FromMinutes(5), requestsEach: 1000);
        var resident = ses.Child.ResidentBytes();
        onix.Start();
        var clock = Stopwatch.StartNew();
        await Wait.UntilAsync(async () =>
        {
            resident = Math.Max(resident, ses.Child.ResidentBytes());
            return (await ses.Client.GetStringAsync("ready")).Contains("\"backlog_services\":0", StringComparison.Ordinal);
        }, TimeSpan.FromMinutes(10), "a million events to be drained");
        Row("backlog drained, 1,000 services", $"{load.Acknowledged:N0} events in {clock.Elapsed.TotalSeconds:N0} s");
        Row("resident at most, with that backlog", MiB(resident));
        Row("starting with a log of that size", await StartAsync(ses));
    }

    /// <summary>A million events over 90 days of 1,000 services, asked for while alerts come.</summary>
    [Fact]
    public async Task AskingAboutAMillionEvents()
    {
        var dir = Directory.CreateTempSubdirectory("ses-past-").FullName;
        await Past.WriteAsync(dir, 1_000_000, 1000, 90);
        await using var ses = await SesProcess.StartAsync("none", dir);
        var one = Past.Service(7);
        var ofOne = $"platform={one.Platform}&service={one.Service}&location={one.Location}";
        (string What, string Target)[] questions =
        [
            ("history of one service, 1,000 events", $"alerts/INS/history?{ofOne}"),
            ("report of all services", "alerts/INS/report"),
            ("report of one service with a threshold", $"alerts/INS/report?{ofOne}&threshold=1"),
            ("status of all services", "alerts/INS"),
            ("history of a day, all services", "alerts/INS/history?from=-24h"),
            ("page of all services, 90 days", "?range=90d"),
            ("page of all services, 24 hours", "?range=24h"),
            ("page of one service, 90 days",
                $"service?partition=INS&{ofOne}&facet=node&range=90d"),
            ("history of all services, 1,000,000 events", "alerts/INS/history?format=csv"),
        ];
        Row("first report of all services, indexes to be made", await TimeAsync(ses, "alerts/INS/report"));
        using var stop = new CancellationTokenSource();
        var posting = Task.Factory.StartNew(() => Post(ses, stop.Token), TaskCreationOptions.LongRunning);
        foreach (var (what, target) in questions)
        {
            List<string> times = [];
            for (var i = 0; i < 5; i++)
                times.Add(await TimeAsync(ses, target));
            Row(what, $"{string.Join(", ", times)}; slowest webhook {Interlocked.Exchange(ref _slowest, 0):N0} ms");
        }
        await stop.CancelAsync();
        await posting;
        Row("resident at most", MiB(ses.Child.PeakBytes()));
        Directory.Delete(dir, recursive: true);
    }

    private static async Task<string> TimeAsync(SesProcess ses, string target)
    {
        var clock = Stopwatch.StartNew();
        using var answer = await ses.Client.GetAsync(target, HttpCompletionOption.ResponseHeadersRead);
        answer.EnsureSuccessStatusCode();
        await using var body = await answer.Content.ReadAsStreamAsync();
        var length = 0L;
        var buffer = new byte[64 * 1024];
        for (int count; (count = await body.ReadAsync(buffer)) > 0;)
            length += count;
        return $"{clock.Elapsed.TotalMilliseconds:N0} ms ({length / 1024:N0} KiB)";
    }

    /// <summary>Of a webhook's answers since it was last told, in milliseconds.</summary>
    private double _slowest;

    /// <summary>Posts a new alert every 5 ms, on a thread of its own: the pool is busy with the answers.</summary>
    private void Post(SesProcess ses, CancellationToken stop)
    {
        using var client = new System.Net.Sockets.TcpClient("127.0.0.1", ses.Port) { NoDelay = true };
        var (stream, answer) = (client.GetStream(), new byte[4096]);
        for (var i = 0; !stop.WaitHandle.WaitOne(5); i++)
        {
            var body = $$"""
                {"version":"4","alerts":[{"status":"firing","labels":{"alertname":"Down","job":"load",
                "instance":"n{{i % 100}}"},"startsAt":"{{DateTime.UtcNow:O}}"}]}
                """;
            var request = $"POST /alerts/INS HTTP/1.1\r\nHost: a\r\nContent-Length: {body.Length}\r\n\r\n{body}";
            var clock = Stopwatch.StartNew();
            stream.Write(System.Text.Encoding.ASCII.GetBytes(request));
            var length = stream.Read(answer);
            _slowest = Math.Max(_slowest, clock.Elapsed.TotalMilliseconds);
            Assert.StartsWith("HTTP/1.1 204", System.Text.Encoding.ASCII.GetString(answer, 0, length), StringComparison.Ordinal);
        }
    }

    private static async Task<string> StartAsync(SesProcess ses)
    {
        ses.Kill(Signal.Terminate);
        await ses.Child.ExitAsync(TimeSpan.FromSeconds(20));
        var clock = Stopwatch.StartNew();
        await ses.RestartAsync();
        return $"{clock.Elapsed.TotalSeconds:N1} s";
    }

    [Fact]
    public async Task Idling()
    {
        var starts = new List<double>();
        for (var i = 0; i < 11; i++)
            starts.Add(await StartToLiveAsync());
        starts.Sort();
        Row("start to first /live, median of 11", $"{starts[5]:N1} ms");
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var ses = await SesProcess.StartAsync(onix.Url.AbsoluteUri);
        await Wait.UntilAsync(() => onix.Requests >= 3, TimeSpan.FromSeconds(20), "the first list");
        Row("resident, idle", MiB(ses.Child.ResidentBytes()));
        Row("binary", $"{new FileInfo(SesProcess.Binary).Length / 1e6:N1} MB");
    }

    private static async Task<double> StartToLiveAsync()
    {
        var port = FreePort.Next();
        var clock = Stopwatch.StartNew();
        await using var ses = SesProcess.Launch("none", null, port);
        while (clock.Elapsed < TimeSpan.FromSeconds(5))
        {
            try
            {
                using var answer = await ses.Client.GetAsync("live");
                if (answer.StatusCode == HttpStatusCode.OK)
                    return clock.Elapsed.TotalMilliseconds;
            }
            catch (HttpRequestException)
            {
                await Task.Yield();
            }
        }
        throw new TimeoutException("no /live within 5 s");
    }
}
