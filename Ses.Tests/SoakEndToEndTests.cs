using System.Collections.Concurrent;
using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Text;
using Ses.Tests.Support;
using Xunit;
using Xunit.Abstractions;

namespace Ses.Tests;

/// <summary>
/// What years are made of, in short: 300 services that flap, a Prometheus that scrapes and judges them each
/// second, a pair of Alertmanagers, an Onix that goes away, a SeS that is killed. <c>SES_SOAK</c> says for how
/// many seconds; Onix goes away twelve times, SeS is killed six times.
/// </summary>
[Trait("Category", "E2E")]
public sealed class SoakEndToEndTests(ITestOutputHelper output)
{
    private const int Services = 300;

    private static readonly TimeSpan ScrapeInterval = TimeSpan.FromSeconds(1);

    /// <summary>From a scrape until the rule tells what it found, on a busy machine.</summary>
    private static readonly TimeSpan Late = TimeSpan.FromSeconds(6);

    /// <summary>Prometheus dates what it is told to when it began to ask; that takes a second at most.</summary>
    private static readonly TimeSpan Early = TimeSpan.FromSeconds(1);

    private static readonly TimeSpan Soon = TimeSpan.FromMinutes(2);

    private static readonly TimeSpan Length = TimeSpan.FromSeconds(
        int.Parse(Environment.GetEnvironmentVariable("SES_SOAK") ?? "60", CultureInfo.InvariantCulture));

    /// <summary>
    /// The truth: each service is up and down in turn, with a period of its own, until the end. It changes
    /// when Prometheus is first told, so that a machine that stands still for a while changes nothing.
    /// </summary>
    private sealed class Truth(DateTime start)
    {
        private readonly List<(string Status, DateTime Time)>[] _told =
            [.. Enumerable.Range(0, Services).Select(_ => new List<(string, DateTime)>())];
        private readonly ConcurrentQueue<(DateTime From, DateTime To)> _pauses = [];
        private DateTime _scraped;

        public DateTime End { get; set; } = DateTime.MaxValue;

        /// <summary>Longer than the rules, groups and a restart of SeS take, so that each change is told.</summary>
        private static TimeSpan Phase(int service) => TimeSpan.FromSeconds(15 + service * 7 % 46);

        private static DateTime Min(DateTime a, DateTime b) => a < b ? a : b;

        private DateTime First(int service) => start + Phase(service) * (service % 10 / 10.0) - Phase(service);

        public string At(int service, DateTime time) =>
            (Min(time, End) - First(service)).Ticks / Phase(service).Ticks % 2 == 0 ? "up" : "down";

        /// <summary>What Prometheus was told of a service: each change, and first how it was then.</summary>
        public IReadOnlyList<(string Status, DateTime Time)> Told(int service) => _told[service];

        /// <summary>For how long the scrapes were late, near a time.</summary>
        public TimeSpan PauseNear(DateTime time) => _pauses
            .Where(p => p.From < time + Late && p.To > time - Late)
            .Aggregate(TimeSpan.Zero, (sum, p) => sum + (p.To - p.From));

        /// <summary>A scrape, one at a time.</summary>
        public string Metrics()
        {
            var now = DateTime.UtcNow;
            if (_scraped != default && now - _scraped > 1.5 * ScrapeInterval)
                _pauses.Enqueue((_scraped, now));
            _scraped = now;
            var text = new StringBuilder("# TYPE service_up gauge\n");
            for (var i = 0; i < Services; i++)
            {
                var status = At(i, now);
                if (_told[i].Count == 0 || _told[i][^1].Status != status)
                    _told[i].Add((status, now));
                text.Append(CultureInfo.InvariantCulture,
                    $"service_up{{service=\"s-{i}\"}} {(status == "up" ? 1 : 0)}\n");
            }
            return text.ToString();
        }
    }

    private sealed record Sample(TimeSpan At, long Resident, int Descriptors, long LogBytes);

    [Fact]
    public async Task HistoryIsRightAndNothingGrows()
    {
        var dir = Directory.CreateTempSubdirectory("ses-soak-").FullName;
        var truth = new Truth(DateTime.UtcNow);
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var ses = await SesProcess.StartAsync(onix.Url.AbsoluteUri);
        await using var alertmanagers = await Alertmanagers.StartAsync(2, ses.Webhook("INS"));
        using var target = Target(truth, out var targetPort);
        await using var prometheus = await PrometheusAsync(dir, targetPort, ses.Port, alertmanagers.Ports);

        var samples = await RunAsync(ses, onix);
        truth.End = DateTime.UtcNow;
        await SettledAsync(ses, truth);
        Tell(samples, ses);

        AssertTrue(StoreFiles.Changes(ses.DataDir), truth);
        foreach (var service in StoreFiles.History(ses.DataDir))
        {
            var key = service.Key;
            // What is heard after something later is in the log; Onix has it if it was still to be written.
            var late = service.Value.Where(
                e => service.Value.Any(later => later.Time > e.Time && later.Received < e.Received))
                .Select(e => (e.Status, e.Time)).ToList();
            var told = service.Value.Select(e => (e.Status, e.Time)).ToList();
            var recorded = Oracle.Recorded(onix,
                new ServiceKey(key.Partition, key.Platform, key.Service, key.Facet, key.Location));
            // What was corrected later stays in Onix, and the correction comes a millisecond after it.
            Assert.Equal(told.Except(late), recorded.Where(told.Contains).Except(late));
            Assert.Equal(told[^1].Status, recorded[^1].Status);
        }
        await using (var check = ChildProcess.Start(SesProcess.Binary, ["check", "--data-dir", ses.DataDir]))
            Assert.True(await check.ExitAsync(Soon) == 0, check.Output);
        AssertFlat(samples);
        Directory.Delete(dir, recursive: true);
    }

    /// <summary>Each change of the truth, once, in order, in time.</summary>
    private static void AssertTrue(IReadOnlyList<SeenChange> events, Truth truth)
    {
        Assert.Equal(Services, events.Select(e => e.Service).Distinct().Count());
        foreach (var service in events.GroupBy(e => e.Service.Service))
        {
            var told = service.OrderBy(e => e.Time).Select(e => (e.Status, e.Time)).ToList();
            // A scrape that fails ends an alert, which begins anew with the next.
            told = [.. told.Where((e, i) =>
                i == 0 || e.Status != told[i - 1].Status || truth.PauseNear(e.Time) == TimeSpan.Zero)];
            var happened = truth.Told(int.Parse(service.Key[2..], CultureInfo.InvariantCulture)).ToList();
            // How it was at first may have ended before anybody was told.
            if (happened[0].Status != told[0].Status
                && happened[1].Time - happened[0].Time < Late + truth.PauseNear(happened[0].Time))
                happened.RemoveAt(0);
            Assert.Equal(happened.Select(c => c.Status), told.Select(c => c.Status));
            Assert.All(happened.Zip(told), pair =>
            {
                var pause = truth.PauseNear(pair.First.Time);
                Assert.InRange(
                    pair.Second.Time, pair.First.Time - Early - pause, pair.First.Time + Late + pause);
            });
        }
    }

    private static void AssertFlat(List<Sample> samples)
    {
        var (second, last) = (Quarter(samples, 1), Quarter(samples, 3));
        // SeS is young again after each kill: what a short run sees is mostly how it grows up.
        var slack = Length > TimeSpan.FromMinutes(20) ? 1.1 : 1.3;
        Assert.InRange(Median(last), 0, (long)(Median(second) * slack));
        Assert.InRange(last.Max(s => s.Descriptors), 1, second.Max(s => s.Descriptors) + 16);
    }

    private static List<Sample> Quarter(List<Sample> samples, int number) =>
        samples.Slice(samples.Count * number / 4, samples.Count / 4);

    private static long Median(List<Sample> samples) =>
        samples.Select(s => s.Resident).Order().ElementAt(samples.Count / 2);

    /// <summary>The database is as large as its observations, and what is derived from them.</summary>
    private void Tell(List<Sample> samples, SesProcess ses)
    {
        output.WriteLine("| after | resident | descriptors | log |");
        output.WriteLine("|---|---|---|---|");
        for (var i = 1; i <= 12; i++)
        {
            var s = samples[samples.Count * i / 12 - 1];
            output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"| {s.At:hh\\:mm\\:ss} | {s.Resident / 1048576.0:N1} MiB | {s.Descriptors} | {s.LogBytes / 1048576.0:N2} MiB |"));
        }
        var observations = StoreFiles.Observations(ses.DataDir);
        var size = new FileInfo(StoreFiles.PathOf(ses.DataDir)).Length;
        // An empty database has some 200 KiB.
        var most = 256 * 1024 + observations * 400;
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"| {observations} observations | {size} bytes | at most {most} | {(double)size / observations:N0} each |"));
        Assert.InRange(size, observations * 50L, most);
    }

    /// <summary>The time of the soak: a look each second, and what befalls SeS and Onix meanwhile.</summary>
    private static async Task<List<Sample>> RunAsync(SesProcess ses, OnixStandIn onix)
    {
        var samples = new List<Sample>();
        var (away, killed) = (false, 0);
        var clock = Stopwatch.StartNew();
        using var timer = new PeriodicTimer(TimeSpan.FromSeconds(1));
        while (clock.Elapsed < Length && await timer.WaitForNextTickAsync())
        {
            // The last third of each twelfth is without Onix, and each sixth ends with a kill.
            var isAway = clock.Elapsed.TotalSeconds / Length.TotalSeconds * 12 % 1 > 0.67;
            if (isAway != away)
            {
                away = isAway;
                if (away)
                    onix.Stop();
                else
                    onix.Start();
            }
            if (clock.Elapsed > Length * ((killed + 0.8) / 6))
            {
                killed++;
                ses.Kill(Signal.Kill);
                await ses.RestartAsync();
            }
            samples.Add(new Sample(clock.Elapsed, ses.Child.ResidentBytes(), ses.Child.OpenDescriptors(),
                Directory.GetFiles(ses.DataDir, "ses.db*").Sum(f => new FileInfo(f).Length)));
        }
        if (away)
            onix.Start();
        return samples;
    }

    private static Task SettledAsync(SesProcess ses, Truth truth) => Wait.UntilAsync(async () =>
    {
        var ready = await ses.Client.GetStringAsync("ready");
        var history = StoreFiles.History(ses.DataDir);
        return ready.Contains("\"state\":\"recorded\"", StringComparison.Ordinal) && history.Count == Services
            && history.All(s => s.Value[^1].Status == truth.At(
                int.Parse(s.Key.Service[2..], CultureInfo.InvariantCulture), truth.End));
    }, Soon, "SeS and Onix to have all");

    private static HttpListener Target(Truth truth, out int port)
    {
        var listener = new HttpListener();
        listener.Prefixes.Add($"http://127.0.0.1:{port = FreePort.Next()}/");
        listener.Start();
        _ = ServeAsync();
        return listener;

        async Task ServeAsync()
        {
            while (listener.IsListening)
            {
                try
                {
                    var context = await listener.GetContextAsync();
                    context.Response.ContentType = "text/plain; version=0.0.4";
                    context.Response.Close(Encoding.UTF8.GetBytes(truth.Metrics()), willBlock: true);
                }
                catch (Exception e) when (e is HttpListenerException or ObjectDisposedException)
                {
                    // Prometheus went away, or the test ended.
                }
            }
        }
    }

    private static async Task<ChildProcess> PrometheusAsync(
        string dir, int target, int ses, IReadOnlyList<int> alertmanagers)
    {
        var (config, rules) = (Path.Combine(dir, "prometheus.yml"), Path.Combine(dir, "rules.yml"));
        await File.WriteAllTextAsync(rules, """
            groups:
            - name: services
              rules:
              - alert: Service_Down
                expr: service_up == 0
                labels: {platform: p01, facet: node, status: down}
                annotations: {description: The service does not answer}
              - alert: Service_Up
                expr: service_up == 1
                labels: {platform: p01, facet: node, status: up}
                annotations: {description: The service answers}

            """);
        await File.WriteAllTextAsync(config, $$"""
            global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
            rule_files: ["{{rules}}"]
            alerting:
              alertmanagers:
              - static_configs:
                - targets: [{{string.Join(", ", alertmanagers.Select(p => $"'127.0.0.1:{p}'"))}}]
            scrape_configs:
            - job_name: services
              static_configs: [{targets: ["127.0.0.1:{{target}}"]}]
            - job_name: ses
              static_configs: [{targets: ["127.0.0.1:{{ses}}"]}]

            """);
        return ChildProcess.Start("prometheus",
        [
            $"--config.file={config}", $"--storage.tsdb.path={Path.Combine(dir, "prometheus")}",
            $"--web.listen-address=127.0.0.1:{FreePort.Next()}", "--log.level=warn",
        ], folder: dir);
    }
}
