using System.Text.Json.Nodes;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>
/// What a real Prometheus, a pair of them and vmalert sent while targets, senders and the receiver failed,
/// posted again with a manual clock, against what the alerts did in Prometheus itself.
/// </summary>
public sealed class PrometheusScenarioTests : IDisposable
{
    private static readonly string Folder = Path.Combine(AppContext.BaseDirectory, "Data", "prometheus", "recorded");
    private readonly string _directory = Directory.CreateTempSubdirectory("ses-scenario").FullName;

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    public static TheoryData<string> Scenarios() =>
        [.. Directory.GetFiles(Folder, "*.jsonl").Select(f => Path.GetFileNameWithoutExtension(f)).Order()];

    /// <summary>Seconds outside unknown in which the timeline differs from the truth, and of unknown.</summary>
    private readonly record struct Verdict(double Wrong, double Unknown, int Outages, int Services);

    [Theory]
    [MemberData(nameof(Scenarios))]
    public async Task TimelineIsNoWorseThanTheRulesAllow(string scenario)
    {
        var lines = File.ReadLines(Path.Combine(Folder, scenario + ".jsonl")).Select(l => JsonNode.Parse(l)!).ToList();
        var truth = lines.Single(l => l["truth"] != null)["truth"]!.AsObject();
        var expected = JsonNode.Parse(File.ReadAllText(Path.Combine(Folder, "expected.json")))![scenario]!.AsObject();
        var replay = new Replay(_directory);
        var verdicts = await replay.RunAsync(lines, truth, expected.Select(e => e.Key));
        var worse = new List<string>();
        foreach (var (name, allowed) in expected)
        {
            var seen = verdicts[name];
            if (seen.Wrong > (double)allowed!["wrong"]! + 1 || seen.Unknown > (double)allowed["unknown"]! + 2
                || seen.Outages != (int)allowed["outages"]! || seen.Services != ((int?)allowed["services"] ?? 1))
                worse.Add($"{name}: {seen}, where {allowed.ToJsonString()}");
        }
        Assert.True(worse.Count == 0, $"{worse.Count} of {expected.Count}:\n{string.Join('\n', worse.Take(8))}");
    }

    private sealed class Replay(string directory)
    {
        /// <summary>No lapse is late by more.</summary>
        private static readonly TimeSpan Step = TimeSpan.FromSeconds(1);

        private readonly ManualClock _clock = new(DateTime.UnixEpoch);
        private Store? _store;
        private DateTime _first;

        public async Task<Dictionary<string, Verdict>> RunAsync(
            List<JsonNode> lines, JsonObject truth, IEnumerable<string> names)
        {
            var away = lines.Where(l => l["away"] != null).SelectMany(l => l["away"]!.AsArray())
                .Select(t => TimeOf((double)t!)).ToList();
            _clock.UtcNow = TimeOf((double)lines.First(l => l["t"] != null)["t"]!);
            Open();
            foreach (var line in lines.Where(l => l["t"] != null))
            {
                var time = TimeOf((double)line["t"]!);
                foreach (var moment in away.Where(m => m <= time).ToList())
                {
                    await AdvanceAsync(moment);
                    if (away.Count % 2 == 0)
                        _store!.Dispose();
                    else
                        Open();
                    _store = away.Count % 2 == 0 ? null : _store;
                    away.Remove(moment);
                }
                await AdvanceAsync(time);
                if (line["post"] is { } post && _store != null)
                    await PostAsync(post);
            }
            using var snapshot = await _store!.ReadAsync();
            var end = _clock.UtcNow;
            var verdicts = names.ToDictionary(
                n => n, n => Judge(snapshot, n, truth[n]?.AsArray() ?? [], end));
            _store.Dispose();
            return verdicts;
        }

        private void Open() => _store = new Store(directory, StoreChild.Rules, _clock,
            new Log(LogLevel.Error, false, TextWriter.Null, _clock), new Meters("test", "test"));

        private static DateTime TimeOf(double seconds) =>
            DateTime.UnixEpoch.AddMilliseconds(Math.Round(seconds * 1000));

        /// <summary>The store is asked at each step, so that it looks at the clock.</summary>
        private async Task AdvanceAsync(DateTime time)
        {
            while (_clock.UtcNow < time)
            {
                _clock.UtcNow = _store != null && _clock.UtcNow + Step < time ? _clock.UtcNow + Step : time;
                if (_store != null)
                    (await _store.ReadAsync()).Dispose();
            }
        }

        private async Task PostAsync(JsonNode post)
        {
            _first = _first == default ? _clock.UtcNow : _first;
            var alerts = AlertReader.Read(System.Text.Encoding.UTF8.GetBytes(post.ToJsonString()), "INS",
                AlertSource.Prometheus, MappingRules.Default, _clock.UtcNow);
            Assert.Empty(alerts.UnmappableAlerts);
            await _store!.AppendAsync("INS", alerts);
        }

        private Verdict Judge(Snapshot snapshot, string name, JsonArray truth, DateTime end)
        {
            var (rule, kind) = (name.Split('/')[0], name.Split('/')[1]);
            var fired = truth.Select(t => (From: TimeOf((double)t![0]!), To: TimeOf((double)t[1]!))).ToList();
            var services = new List<List<(DateTime From, DateTime To, long Status)>>();
            using var rows = snapshot.Query($"""
                SELECT t.service, t.at, t.until, t.status FROM timeline t JOIN service s ON s.id = t.service
                    JOIN family f ON f.id = s.family
                WHERE f.facet = ?1 AND (?2 = 'None' OR s.location LIKE '%case="' || ?2 || '"%') ORDER BY t.service, t.at
                """);
            var last = 0L;
            for (rows.Bind(1, rule).Bind(2, kind); rows.Step(); last = rows.Number(0))
            {
                if (rows.Number(0) != last)
                    services.Add([]);
                services[^1].Add((UnixTime.Read(rows.Number(1)),
                    rows.Number(2) == UnixTime.Open ? end : UnixTime.Read(rows.Number(2)), rows.Number(3)));
            }
            // Of a label with the value in it each value is a service: together they are the one that was meant.
            var moments = services.SelectMany(s => s).SelectMany(r => new[] { r.From, r.To })
                .Concat(fired.SelectMany(f => new[] { f.From, f.To })).Append(_first).Append(end)
                .Where(m => m >= _first && m <= end).Distinct().Order().ToList();
            var (wrong, unknown) = (0.0, 0.0);
            foreach (var (from, to) in moments.Zip(moments.Skip(1)))
            {
                var statuses = services.Select(s => s.Where(r => r.From <= from && r.To > from)
                    .Select(r => (long?)r.Status).FirstOrDefault()).ToList();
                var isDown = statuses.Any(s => s is 1 or 2);
                if (!isDown && statuses.Contains(3))
                    unknown += (to - from).TotalSeconds;
                else if (isDown != fired.Any(f => f.From <= from && f.To > from))
                    wrong += (to - from).TotalSeconds;
            }
            var outages = 0;
            foreach (var service in services)
            {
                var isOpen = false;
                foreach (var (_, _, status) in service)
                {
                    outages += status is 1 or 2 && !isOpen ? 1 : 0;
                    isOpen = status is 1 or 2 || (isOpen && status == 3);
                }
            }
            return new(Math.Round(wrong, 1), Math.Round(unknown, 1), outages, services.Count);
        }
    }
}
