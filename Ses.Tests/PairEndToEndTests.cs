using System.Collections.Concurrent;
using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using Xunit.Abstractions;

namespace Ses.Tests;

/// <summary>
/// Two SeS that name each other, under what befalls a pair in years, for <c>SES_SOAK</c> seconds: each is killed
/// and cut off from its senders, from the other and from Onix, so that of each alert one at least hears.
/// </summary>
[Trait("Category", "E2E")]
public sealed partial class PairEndToEndTests(ITestOutputHelper output) : IDisposable
{
    private const StringComparison Ordinal = StringComparison.Ordinal;

    private static readonly TimeSpan Soon = TimeSpan.FromMinutes(2);

    private static readonly TimeSpan Length = TimeSpan.FromSeconds(
        int.Parse(Environment.GetEnvironmentVariable("SES_SOAK") ?? "40", CultureInfo.InvariantCulture));

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-pair-").FullName;

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    /// <summary>Both SeS, and the ways between them.</summary>
    private sealed class Pair : IAsyncDisposable
    {
        private readonly double[] _sent = new double[2];

        private Pair(Relay[] to, Relay[] toOnix) => (To, ToOnix) = (to, toOnix);

        public SesProcess[] Ses { get; } = new SesProcess[2];

        /// <summary>The way on which the other one sends to each.</summary>
        public Relay[] To { get; }

        /// <summary>The way on which each sends to Onix; none: they have none.</summary>
        public Relay[] ToOnix { get; }

        /// <summary>Whether senders reach it.</summary>
        public bool[] IsHearing { get; } = [true, true];

        /// <summary>Of one that is there from the first word on.</summary>
        /// <param name="clock">See <see cref="SesProcess.LaunchWithClock"/>; null: the machine's.</param>
        public static async Task<Pair> StartAsync(string dir, OnixStandIn? onix = null, string? clock = null, params string[] extra)
        {
            var password = Path.Combine(dir, "import-password");
            await File.WriteAllTextAsync(password, "imp0rt\n");
            File.SetUnixFileMode(password, UnixFileMode.UserRead);
            int[] ports = [FreePort.Next(), FreePort.Next()];
            var pair = new Pair([new(ports[0]), new(ports[1])], onix == null ? [] : [new(onix.Url.Port), new(onix.Url.Port)]);
            for (var i = 0; i < 2; i++)
            {
                var data = Directory.CreateDirectory(Path.Combine(dir, $"ses-{i + 1}")).FullName;
                string[] flags = ["--name", $"ses-{i + 1}", "--import-password-file", password, "--peer", pair.To[1 - i].Url,
                    "--peer-username", "import", "--peer-password-file", password, .. extra];
                pair.Ses[i] = clock != null ? SesProcess.LaunchWithClock(clock, data, ports[i], flags)
                    : SesProcess.Launch(onix == null ? "none" : pair.ToOnix[i].Url, data, ports[i], flags);
            }
            await Task.WhenAll(pair.Ses.Select(s => s.ReadyAsync()));
            return pair;
        }

        /// <summary>Kills one and starts it again, perhaps with other files.</summary>
        public async Task KillAsync(int which, Func<Task>? meanwhile = null)
        {
            _sent[which] += await SentNowAsync(which);
            Ses[which].Kill(Signal.Kill);
            await Ses[which].Child.ExitAsync(Soon);
            if (meanwhile != null)
                await meanwhile();
            await Ses[which].RestartAsync();
        }

        /// <summary>Lines that the other one took, in all lives.</summary>
        public async Task<double> SentAsync(int which) => _sent[which] + await SentNowAsync(which);

        private async Task<double> SentNowAsync(int which)
        {
            var sent = SentLines().Match(await Ses[which].Client.GetStringAsync("metrics"));
            return sent.Success ? double.Parse(sent.Groups[1].Value, CultureInfo.InvariantCulture) : 0;
        }

        /// <summary>What it has, in an order that is the same for both.</summary>
        public async Task<List<string>> LinesAsync(int which)
        {
            var file = Ses[which].DataDir + ".jsonl";
            var (exit, told) = await Ses[which].BashAsync($"{SesProcess.Binary} export --data-dir {Ses[which].DataDir} > {file}");
            Assert.True(exit == 0, told);
            return [.. File.ReadLines(file).Select(l => Recorded().Replace(l, "")).Order(StringComparer.Ordinal)];
        }

        /// <summary>Waits until both have the same facts, and returns these.</summary>
        public async Task<List<string>> UnitedAsync()
        {
            List<string> first = [], second = [];
            try
            {
                await Wait.UntilAsync(async () =>
                {
                    (first, second) = (await LinesAsync(0), await LinesAsync(1));
                    return first.SequenceEqual(second);
                }, Soon, "both to have the same");
            }
            catch (TimeoutException)
            {
                Assert.Fail($"ses-1 alone has {string.Join('\n', first.Except(second).Take(5))}\n"
                    + $"ses-2 alone has {string.Join('\n', second.Except(first).Take(5))}\n"
                    + await Ses[0].Client.GetStringAsync("health?format=json"));
            }
            return first;
        }

        /// <summary>The rows of the history, as its address tells them; of one moment, they are in any order.</summary>
        public async Task<List<string>> HistoryAsync(int which)
        {
            using var json = JsonDocument.Parse(await Ses[which].Client.GetStringAsync("alerts/INS/history"));
            return [.. json.RootElement.GetProperty("events").EnumerateArray().Select(e => e.GetRawText()).Order(StringComparer.Ordinal)];
        }

        public async ValueTask DisposeAsync()
        {
            foreach (var ses in Ses)
                await ses.DisposeAsync();
            Array.ForEach([.. To, .. ToOnix], t => t.Dispose());
        }
    }

    /// <summary>
    /// A service that is down and up in turn. It changes when somebody knows of the change before, and not
    /// sooner: a sender can be asked for no more.
    /// </summary>
    private sealed class Flapping(int number, bool isRelayed)
    {
        private readonly Random _random = new(number);
        private DateTime _next = DateTime.UtcNow.AddSeconds(number % 8);

        public string Name => $"s{number}";

        public string Place => $"n{number}";

        public bool IsRelayed => isRelayed;

        public List<(string Status, DateTime Time)> Truth { get; } = [];

        /// <summary>Of the last change: who knows of it.</summary>
        public bool[] Knows { get; } = [true, true];

        public bool IsDown => Truth is [.., ("down", _)];

        /// <summary>When each was last told of it.</summary>
        public DateTime[] Told { get; } = new DateTime[2];

        public void Change(DateTime now)
        {
            if (now < _next || !(Knows[0] || Knows[1]))
                return;
            Truth.Add((IsDown ? "up" : "down", now));
            (Knows[0], Knows[1]) = (false, false);
            (Told[0], Told[1]) = (default, default);
            _next = now.AddSeconds(2 + _random.NextDouble() * 5);
        }

        private static string Written(DateTime time) =>
            time.ToString("yyyy-MM-dd'T'HH:mm:ss.fff'Z'", CultureInfo.InvariantCulture);

        /// <summary>The last episode, as Prometheus or Alertmanager tells it.</summary>
        public string Alert(DateTime now)
        {
            var labels = $$"""{"alertname":"Down","job":"{{Name}}","instance":"{{Place}}","severity":"critical"}""";
            var (starts, ends) = IsDown ? (Truth[^1].Time, (DateTime?)null) : (Truth[^2].Time, Truth[^1].Time);
            return isRelayed ? $$"""
                {"status":"{{(ends == null ? "firing" : "resolved")}}","labels":{{labels}},"annotations":{"summary":"it is down"},
                "startsAt":"{{Written(starts)}}","endsAt":"{{(ends is { } end ? Written(end) : "0001-01-01T00:00:00Z")}}"}
                """ : $$"""
                {"labels":{{labels}},"annotations":{"summary":"it is down"},"startsAt":"{{Written(starts)}}",
                "endsAt":"{{Written(ends ?? now.AddSeconds(30))}}","generatorURL":"http://prometheus:9090/graph?x"}
                """;
        }
    }

    /// <summary>
    /// Prometheus, which tells each change once and again every few seconds whoever took it, and Alertmanager,
    /// which tells each until it is taken, and what fires every ten seconds.
    /// </summary>
    private sealed class Senders(Pair pair, IReadOnlyList<Flapping> services)
    {
        private static readonly TimeSpan Resend = TimeSpan.FromSeconds(3), Repeat = TimeSpan.FromSeconds(10);

        private readonly HttpClient _client = new() { Timeout = TimeSpan.FromSeconds(5) };
        private readonly Lock _gate = new();

        /// <summary>Services are as they are from then on.</summary>
        public volatile bool IsStill;

        public ConcurrentQueue<double> Took { get; } = [];

        public Task RunAsync(CancellationToken stop) =>
            Task.WhenAll(FlapAsync(stop), TellAsync(0, true, stop), TellAsync(1, true, stop), TellAsync(0, false, stop), TellAsync(1, false, stop));

        private async Task FlapAsync(CancellationToken stop)
        {
            for (; !stop.IsCancellationRequested; await Task.Delay(50, CancellationToken.None))
            {
                lock (_gate)
                {
                    var now = new DateTime(DateTime.UtcNow.Ticks / TimeSpan.TicksPerMillisecond * TimeSpan.TicksPerMillisecond, DateTimeKind.Utc);
                    foreach (var service in services.Where(_ => !IsStill))
                        service.Change(now);
                }
            }
        }

        private async Task TellAsync(int which, bool isRelayed, CancellationToken stop)
        {
            for (; !stop.IsCancellationRequested; await Task.Delay(100, CancellationToken.None))
            {
                List<(Flapping Service, int Change)> told;
                string alerts;
                lock (_gate)
                {
                    var now = DateTime.UtcNow;
                    told = [.. services.Where(s => s.IsRelayed == isRelayed && s.Truth.Count > 0 && (isRelayed
                        ? !s.Knows[which] || (s.IsDown && now - s.Told[which] > Repeat)
                        : now - s.Told[which] > Resend)).Select(s => (s, s.Truth.Count))];
                    alerts = string.Join(',', told.Select(t => t.Service.Alert(now)));
                    // Prometheus does not mind whether it was taken.
                    told.ForEach(t => t.Service.Told[which] = now);
                }
                if (told.Count > 0 && pair.IsHearing[which] && await IsTakenAsync(which, isRelayed, alerts))
                {
                    lock (_gate)
                    {
                        foreach (var (service, change) in told.Where(t => t.Change == t.Service.Truth.Count))
                            service.Knows[which] = true;
                    }
                }
            }
        }

        private async Task<bool> IsTakenAsync(int which, bool isRelayed, string alerts)
        {
            var (path, body) = isRelayed ? ("alerts/INS", $$"""{"version":"4","alerts":[{{alerts}}]}""") : ("alerts/INS/api/v2/alerts", $"[{alerts}]");
            var clock = Stopwatch.StartNew();
            try
            {
                using var answer = await _client.PostAsync(new Uri($"http://127.0.0.1:{pair.Ses[which].Port}/{path}"),
                    new StringContent(body, Encoding.UTF8, "application/json"));
                Took.Enqueue(clock.Elapsed.TotalSeconds);
                return answer.IsSuccessStatusCode;
            }
            catch (Exception e) when (e is HttpRequestException or OperationCanceledException)
            {
                return false;
            }
        }

        /// <summary>Whether both know of all.</summary>
        public bool IsAllKnown
        {
            get
            {
                lock (_gate)
                    return services.All(s => s.Truth.Count > 0 && s.Knows is [true, true]);
            }
        }
    }

    /// <summary>What befalls a pair, one after the other: a time of it, and how it is mended.</summary>
    private static async Task BefallAsync(Pair pair, int number, TimeSpan time)
    {
        async Task CutAsync(Way way, params Relay[] ways)
        {
            Array.ForEach(ways, w => w.Way = way);
            await Task.Delay(time);
            Array.ForEach(ways, w => w.Way = Way.Open);
        }

        async Task DeafAsync(int which)
        {
            pair.IsHearing[which] = false;
            await Task.Delay(time);
            pair.IsHearing[which] = true;
        }

        var one = number / 2 % 2;
        var (to, onix) = (pair.To, pair.ToOnix);
        await (number switch
        {
            0 or 2 or 8 => pair.KillAsync(one),
            1 or 3 => DeafAsync(one),
            4 => CutAsync(Way.Refused, to),
            5 => CutAsync(Way.CutInAnswers, to),
            6 => CutAsync(Way.Hanging, to),
            7 => CutAsync(Way.CutInAnswers, to[0]),
            9 => Task.WhenAll(DeafAsync(1), CutAsync(Way.Refused, to)),
            10 => Task.WhenAll(DeafAsync(0), CutAsync(Way.CutInAnswers, to)),
            11 => Task.WhenAll(CutAsync(Way.Hanging, to[1]), pair.KillAsync(0)),
            12 => CutAsync(Way.Refused, onix[0]),
            13 => CutAsync(Way.CutInAnswers, onix),
            14 => CutAsync(Way.Hanging, onix[1]),
            _ => CutAsync(Way.Refused, [.. onix, .. to]),
        });
    }

    private const int Faults = 16;

    private static async Task FaultsAsync(Pair pair)
    {
        // A Prometheus that is not heard for over 130 s lapses, if it is not the other that hears it.
        var time = TimeSpan.FromSeconds(Math.Min(Length.TotalSeconds / Faults * 0.7, 200));
        var clock = Stopwatch.StartNew();
        for (var i = 0; i < Faults || clock.Elapsed < Length; i++)
        {
            await BefallAsync(pair, i % Faults, time);
            // Both hear a while, so that what one missed comes again.
            await Task.Delay(0.3 * time);
        }
    }

    [GeneratedRegex("\"recorded\":\"[^\"]*\",?")]
    private static partial Regex Recorded();

    [GeneratedRegex("^ses_forward_lines_total\\{target=\"peer\",result=\"sent\"\\} ([0-9]+)$", RegexOptions.Multiline)]
    private static partial Regex SentLines();

    private static void AssertTrue(string dir, IEnumerable<Flapping> services)
    {
        var history = StoreFiles.Changes(dir).ToLookup(c => c.Service.Service);
        foreach (var service in services)
            Assert.Equal(service.Truth, history[service.Name].OrderBy(c => c.Time).Select(c => (c.Status, c.Time)));
    }

    /// <summary>The number of facts that a SeS took itself.</summary>
    private static int Own(List<string> lines, int which) => lines.Count(l => l.Contains($"\"by\":\"ses-{which + 1}\"", Ordinal));

    [Fact]
    public async Task PairAgreesWhateverBefallsIt()
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var pair = await Pair.StartAsync(_dir, onix);
        List<Flapping> services = [.. Enumerable.Range(0, 40).Select(i => new Flapping(i, isRelayed: i % 2 == 1))];
        var senders = new Senders(pair, services);
        using var stop = new CancellationTokenSource();
        var sending = senders.RunAsync(stop.Token);
        await FaultsAsync(pair);
        await CalmAsync();
        var lines = await AssertAgreeAsync();
        for (var i = 0; i < 2; i++)
        {
            var (own, sent) = (Own(lines, i), await pair.SentAsync(i));
            output.WriteLine($"ses-{i + 1}: {own} facts of its own, {sent} lines sent");
            // What was sent and not noted is sent again, of a kill and of each answer that was cut.
            Assert.InRange(sent, 0.7 * own, 1.5 * own + 100);
        }
        output.WriteLine($"{services.Sum(s => s.Truth.Count)} changes, {senders.Took.Count} posts, "
            + $"{senders.Took.Order().ElementAt(senders.Took.Count / 2):N3} s in the median");
        await AssertInOnixAsync();
        await AssertQuietAsync();

        // One comes back with nothing, and gets what it had once taken itself, too.
        var before = lines;
        await pair.KillAsync(0, () =>
        {
            foreach (var file in Directory.GetFiles(pair.Ses[0].DataDir))
                File.Delete(file);
            return Task.CompletedTask;
        });
        await MoreAsync();
        lines = await AssertAgreeAsync();
        Assert.Equal([], before.Except(lines));

        // The other is put back to what it was a while ago.
        var backup = Path.Combine(_dir, "backup.db");
        var (exit, told) = await pair.Ses[1].BashAsync($"{SesProcess.Binary} backup --data-dir {pair.Ses[1].DataDir} {backup}");
        Assert.True(exit == 0, told);
        await MoreAsync();
        before = await AssertAgreeAsync();
        await pair.KillAsync(1, async () =>
        {
            foreach (var file in Directory.GetFiles(pair.Ses[1].DataDir, "ses.db*"))
                File.Delete(file);
            (exit, told) = await pair.Ses[1].BashAsync($"{SesProcess.Binary} restore --data-dir {pair.Ses[1].DataDir} {backup}");
            Assert.True(exit == 0, told);
        });
        await MoreAsync();
        lines = await AssertAgreeAsync();
        Assert.Equal([], before.Except(lines));
        await AssertQuietAsync();
        await stop.CancelAsync();
        await sending;
        await AssertInOnixAsync();
        foreach (var ses in pair.Ses)
            Assert.Equal(0, (await ses.CommandAsync("check")).Exit);

        // A few changes more, heard by both.
        async Task MoreAsync()
        {
            senders.IsStill = false;
            await Task.Delay(TimeSpan.FromSeconds(3));
            await CalmAsync();
        }

        Task CalmAsync()
        {
            senders.IsStill = true;
            return Wait.UntilAsync(() => senders.IsAllKnown, Soon, "both to know of all");
        }

        async Task<List<string>> AssertAgreeAsync()
        {
            var lines = await pair.UnitedAsync();
            Array.ForEach(pair.Ses, s => AssertTrue(s.DataDir, services));
            var (one, other) = (await pair.HistoryAsync(0), await pair.HistoryAsync(1));
            Assert.Equal(one, other);
            Assert.DoesNotContain(one, e => e.Contains("\"unknown\"", Ordinal));
            return lines;
        }

        // Each change once and in order, whichever of the two wrote it.
        async Task AssertInOnixAsync()
        {
            List<(Flapping Service, List<(string Status, DateTime Time)> Recorded)> all = [];
            await Wait.UntilAsync(() =>
            {
                all = [.. services.Select(s => (s, Oracle.Recorded(onix, new ServiceKey("INS", "INS", s.Name, "Down", s.Place))))];
                return all.All(a => a.Recorded is [.., var last] && last == a.Service.Truth[^1]);
            }, Soon, "Onix to have all");
            foreach (var (service, recorded) in all)
                Assert.Equal(service.Truth, recorded);
            output.WriteLine($"{all.Sum(a => a.Recorded.Count)} changes in Onix, by {onix.Requests} requests");
        }

        // Prometheus goes on telling what fires: that is no fact. A sign of life has some 70 bytes, its request 300.
        async Task AssertQuietAsync()
        {
            var (first, bytes) = ((await pair.SentAsync(0), await pair.SentAsync(1)), pair.To.Sum(t => t.Bytes));
            await Task.Delay(TimeSpan.FromSeconds(6));
            Assert.Equal(first, (await pair.SentAsync(0), await pair.SentAsync(1)));
            Assert.InRange(pair.To.Sum(t => t.Bytes) - bytes, 0, 4 * 500);
        }
    }

    /// <summary>One that was away for a day learns what happened meanwhile, and nothing is unknown of it.</summary>
    [Fact]
    public async Task OneThatWasAwayForADayLearnsWhatItMissed()
    {
        var clock = Path.Combine(_dir, "clock");
        // A day ahead, so that no step goes back behind the commit that the program was built from.
        var ahead = TimeSpan.FromDays(1);
        SetClock(ahead);
        await using var pair = await Pair.StartAsync(_dir, clock: clock);
        var begun = new DateTime((DateTime.UtcNow + ahead).Ticks / TimeSpan.TicksPerSecond * TimeSpan.TicksPerSecond, DateTimeKind.Utc);
        await TellAsync(0, Alert("ends", 0, null), Alert("stays", 0, null));
        await TellAsync(1, Alert("ends", 0, null), Alert("stays", 0, null));
        await pair.UnitedAsync();
        await pair.KillAsync(1, async () =>
        {
            // One whose clock jumps by more than 5 min between two facts was away itself.
            for (var passed = TimeSpan.Zero; passed < TimeSpan.FromDays(1); passed += TimeSpan.FromMinutes(4))
            {
                SetClock(ahead + passed);
                var hours = (int)passed.TotalHours;
                await TellAsync(0, [Alert("stays", 0, null), Alert($"at {passed}", hours, null), .. hours >= 3 ? [Alert("ends", 0, 3)] : (string[])[],
                    .. hours >= 5 ? [Alert("passes", 5, hours < 7 ? null : 7)] : (string[])[],
                    .. hours >= 20 ? [Alert("begins", 20, null)] : (string[])[]]);
            }
        });
        await pair.UnitedAsync();
        for (var i = 0; i < 2; i++)
        {
            await TellAsync(i, Alert("stays", 0, null), Alert("begins", 20, null));
            var history = StoreFiles.Changes(pair.Ses[i].DataDir).OrderBy(c => c.Time)
                .ToLookup(c => c.Service.Service, c => (c.Status, (c.Time - begun).TotalHours));
            Assert.Equal([("down", 0), ("up", 3)], history["ends"]);
            Assert.Equal([("down", 5), ("up", 7)], history["passes"]);
            Assert.Equal([("down", 0)], history["stays"]);
            Assert.Equal([("down", 20)], history["begins"]);
        }
        var (one, other) = (await pair.HistoryAsync(0), await pair.HistoryAsync(1));
        Assert.Equal(one, other);
        Assert.DoesNotContain(one, e => e.Contains("\"unknown\"", Ordinal));

        // As a whole: what is read is never a part.
        void SetClock(TimeSpan offset)
        {
            File.WriteAllText(clock + ".new", $"+{offset.TotalSeconds:F0}s");
            File.Move(clock + ".new", clock, overwrite: true);
        }

        string Alert(string service, int from, int? to) => $$"""
            {"status":"{{(to == null ? "firing" : "resolved")}}","labels":{"alertname":"Down","job":"{{service}}","instance":"n1"},
            "startsAt":"{{Rfc3339.Format(begun.AddHours(from))}}","endsAt":"{{(to is { } end ? Rfc3339.Format(begun.AddHours(end)) : "0001-01-01T00:00:00Z")}}"}
            """;

        async Task TellAsync(int which, params string[] alerts)
        {
            using var answer = await pair.Ses[which].PostAsync("INS", $$"""{"version":"4","alerts":[{{string.Join(',', alerts)}}]}""");
            Assert.Equal(HttpStatusCode.NoContent, answer.StatusCode);
        }
    }

    /// <summary>A receiver that hangs costs its sender no time and no memory, and gets all when it goes on.</summary>
    [Fact]
    public async Task OneThatHangsIsNotNoticedByTheSendersOfTheOther()
    {
        await using var pair = await Pair.StartAsync(_dir, null, null, "--max-services", "30000");
        var ses = pair.Ses[0];
        await PostAsync(0, 2000);
        await pair.UnitedAsync();
        pair.Ses[1].Kill(Signal.Stop);
        await PostAsync(2000, 2000);
        var memory = ses.Child.ResidentBytes();
        var took = await PostAsync(4000, 20_000);
        var (median, grown) = (took.Order().ElementAt(took.Count / 2), ses.Child.ResidentBytes() - memory);
        var health = await ses.Client.GetStringAsync("health?format=json");
        output.WriteLine($"{median:N3} s in the median, {took.Max():N3} s at most; {grown / 1048576.0:N1} MiB more; {health}");
        Assert.InRange(median, 0, 1);
        Assert.InRange(grown, long.MinValue, 32L << 20);
        pair.Ses[1].Kill(Signal.Continue);
        await Wait.UntilAsync(async () => (await pair.LinesAsync(1)).Count >= 24_000, Soon, "the other to have all");
        await pair.UnitedAsync();

        // As many facts, a hundred in each post.
        async Task<List<double>> PostAsync(int first, int count)
        {
            var took = new List<double>();
            for (var at = first; at < first + count; at += 100)
            {
                var alerts = Enumerable.Range(at, 100).Select(i => $$$"""
                    {"status":"firing","labels":{"alertname":"Down","job":"j{{{i}}}"},"startsAt":"{{{Rfc3339.Format(DateTime.UtcNow)}}}"}
                    """);
                var clock = Stopwatch.StartNew();
                using var answer = await ses.PostAsync("INS", $$"""{"version":"4","alerts":[{{string.Join(',', alerts)}}]}""");
                Assert.Equal(HttpStatusCode.NoContent, answer.StatusCode);
                took.Add(clock.Elapsed.TotalSeconds);
            }
            return took;
        }
    }
}
