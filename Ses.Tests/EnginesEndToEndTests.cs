using System.Globalization;
using System.Net;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>
/// ClickHouse and PostgreSQL, made and asked as docs/fleet.md says, tell of what a SeS sent them what it tells itself,
/// though late facts, gaps and corrections have rewritten the past.
/// </summary>
[Trait("Category", "E2E")]
public sealed partial class EnginesEndToEndTests : IDisposable
{
    private const StringComparison Ordinal = StringComparison.Ordinal;

    private static readonly TimeSpan Soon = TimeSpan.FromMinutes(2);

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-engines-").FullName;
    private readonly DateTime _ends, _begins;

    public EnginesEndToEndTests()
    {
        var now = DateTime.UtcNow;
        _ends = new DateTime(now.Year, now.Month, 1, 0, 0, 0, DateTimeKind.Utc);
        _begins = _ends.AddMonths(-1);
    }

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    [Fact]
    public async Task ThreeQuestionsAreAnsweredAsSesAnswersThem()
    {
        await using var clickhouse = await ClickHouse.StartAsync(_dir);
        foreach (var statement in Statements("ClickHouse", 0))
            await clickhouse.AskAsync(statement);
        var ses = await SesProcess.StartAsync("none", Path.Combine(_dir, "data"),
            extra: ["--engine", clickhouse.Url + "?query=INSERT+INTO+ses.timeline+FORMAT+JSONEachRow"]);
        await using (ses)
        {
            await HearAsync(ses, new Random(5));
            var note = await ses.BashAsync($"""
                {SesProcess.Binary} note add --data-dir {ses.DataDir} --partition INS --service s3 --kind correction --status up \
                    --from {Rfc3339.Format(_begins.AddDays(2))} --to {Rfc3339.Format(_begins.AddDays(9))} --text 'it was none'
                {SesProcess.Binary} note add --data-dir {ses.DataDir} --partition WEB --service s2 --kind retired \
                    --from {Rfc3339.Format(_begins.AddDays(25))} --text 'it is no more'
                """);
            Assert.True(note.Exit == 0, note.Output);
            await SentAsync(ses);
            // What began last month is rewritten by what is heard only now.
            await HearAsync(ses, new Random(6));
            await SentAsync(ses);
            var told = await AnswersOfAsync(ses);
            Assert.All(told, t => Assert.NotEmpty(t));
            AssertSame(told, [.. Enumerable.Range(1, 3).Select(i => clickhouse.AskAsync(Statements("ClickHouse", i).Single()).Result)]);
            AssertSame(told, await PostgresAsync(clickhouse.Lines));
        }
    }

    /// <summary>Alerts of last month, in any order, some of which go on; severities; ends that come late.</summary>
    private async Task HearAsync(SesProcess ses, Random random)
    {
        for (var i = 0; i < 60; i++)
        {
            var (service, partition) = (random.Next(6), random.Next(2) == 0 ? "INS" : "WEB");
            var starts = _begins.AddDays(-3).AddSeconds(random.Next(34 * 86400)).AddMilliseconds(random.Next(1000));
            var ends = random.Next(12) == 0 ? (DateTime?)null : starts.AddSeconds(random.Next(1, 2 * 86400));
            var alert = $$"""
                {"status":"{{(ends == null ? "firing" : "resolved")}}","labels":{"alertname":"Down","job":"s{{service}}",
                "instance":"n{{random.Next(2)}}\\\"ä","severity":"{{(random.Next(3) == 0 ? "warning" : "critical")}}"},
                "startsAt":"{{Rfc3339.Format(starts)}}","endsAt":"{{(ends is { } end ? Rfc3339.Format(end) : "0001-01-01T00:00:00Z")}}"}
                """;
            Assert.Equal(HttpStatusCode.NoContent,
                (await ses.PostAsync(partition, $$"""{"version":"4","alerts":[{{alert}}]}""")).StatusCode);
        }
    }

    private static Task SentAsync(SesProcess ses) => Wait.UntilAsync(async () =>
    {
        using var health = JsonDocument.Parse(await ses.Client.GetStringAsync("health?format=json"));
        var engine = health.RootElement.GetProperty("forward").EnumerateArray().Single();
        return engine.GetProperty("state").GetString() == "sent"
            && health.RootElement.GetProperty("store").GetProperty("underived_observations").GetInt64() == 0;
    }, Soon, "the engine to have all");

    /// <summary>What is down, the outages and the availability of last month, a text a row.</summary>
    private async Task<List<string>[]> AnswersOfAsync(SesProcess ses)
    {
        var (down, outages, availability) = (new List<string>(), new List<string>(), new List<string>());
        var month = $"from={Rfc3339.Format(_begins)}&to={Rfc3339.Format(_ends)}";
        foreach (var partition in new[] { "INS", "WEB" })
        {
            async Task<JsonElement[]> RowsAsync(string question, string list)
            {
                using var answer = JsonDocument.Parse(await ses.Client.GetStringAsync($"alerts/{partition}{question}"));
                return [.. answer.RootElement.Clone().GetProperty(list).EnumerateArray()];
            }

            down.AddRange((await RowsAsync("", "services")).Where(r => r.GetProperty("status").GetString() == "down")
                .Select(r => Row(partition, r, r.GetProperty("since").GetDateTime())));
            outages.AddRange((await RowsAsync($"/outages?{month}", "outages")).Where(r => r.GetProperty("down_seconds").GetDecimal() > 0)
                .Select(r => Row(partition, r, r.GetProperty("from").GetDateTime(), r.GetProperty("down_seconds").GetDecimal())));
            var (up, lost) = (0m, 0m);
            foreach (var row in await RowsAsync($"/report?{month}", "services"))
            {
                up += row.GetProperty("up_seconds").GetDecimal() + row.GetProperty("degraded_seconds").GetDecimal();
                lost += row.GetProperty("down_seconds").GetDecimal();
            }
            availability.Add(Availability(partition, 100 * up / (up + lost), lost));
        }
        return [[.. down.Order(StringComparer.Ordinal)], [.. outages.Order(StringComparer.Ordinal)], availability];
    }

    private static string Row(string partition, JsonElement row, DateTime from, decimal? seconds = null) =>
        string.Create(CultureInfo.InvariantCulture, $"{partition} {row.GetProperty("platform").GetString()} {row.GetProperty("service").GetString()} "
            + $"{row.GetProperty("facet").GetString()} {row.GetProperty("location").GetString()} {from:O} {seconds:0.000}");

    private static string Availability(string partition, decimal percent, decimal lost) =>
        string.Create(CultureInfo.InvariantCulture, $"{partition} {percent:0.0000} {lost:0.000}");

    private static void AssertSame(List<string>[] told, IReadOnlyList<string> answers)
    {
        var rows = answers.Select(a => a.Split('\n', StringSplitOptions.RemoveEmptyEntries)
            .Select(l => JsonDocument.Parse(l).RootElement).ToList()).ToList();
        static DateTime Time(JsonElement time) => DateTime.Parse(time.GetString()!, CultureInfo.InvariantCulture,
            DateTimeStyles.AssumeUniversal | DateTimeStyles.AdjustToUniversal);
        static string PartitionOf(JsonElement row) => row.GetProperty("partition").GetString()!;
        Assert.Equal(told[0], rows[0].Select(r => Row(PartitionOf(r), r, Time(r.GetProperty("from")))).Order(StringComparer.Ordinal));
        Assert.Equal(told[1], rows[1].Select(r => Row(PartitionOf(r), r, Time(r.GetProperty("begun")), r.GetProperty("down_seconds").GetDecimal()))
            .Order(StringComparer.Ordinal));
        Assert.Equal(told[2], rows[2].Select(r => Availability(
            PartitionOf(r), r.GetProperty("availability").GetDecimal(), r.GetProperty("down_seconds").GetDecimal())));
    }

    /// <summary>The statements of a block of the page, for last month.</summary>
    private IEnumerable<string> Statements(string chapter, int block) => CodeBlock()
        .Matches(DocsPage.Named("fleet").Section($"## {chapter}\n", "\n## "))[block].Groups[1].Value
        .Replace("2026-11-01", $"{_begins:yyyy-MM-dd}", Ordinal).Replace("2026-12-01", $"{_ends:yyyy-MM-dd}", Ordinal)
        .Split(";\n", StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries).Select(s => s.TrimEnd(';'));

    [GeneratedRegex("```sql\n(.+?)```", RegexOptions.Singleline)]
    private static partial Regex CodeBlock();

    // ---- PostgreSQL ----

    /// <summary>The answers, a row of JSON a line, of what was sent, in another order and twice.</summary>
    private async Task<List<string>> PostgresAsync(string lines)
    {
        var sent = File.ReadAllLines(lines);
        new Random(1).Shuffle(sent);
        File.WriteAllLines(Path.Combine(_dir, "lines"), sent.Concat(sent));
        var asked = Enumerable.Range(3, 3).Select(i => $"SELECT row_to_json(q)::text FROM ({Statements("PostgreSQL", i).Single()}) AS q;");
        var script = new[] { "SET timezone = 'UTC';", "SET client_encoding = 'UTF8';" }
            .Concat(Statements("PostgreSQL", 0).Select(s => s + ";"))
            .Concat(Statements("PostgreSQL", 1).Select(s => $"\\{s.Replace("STDIN", $"'{_dir}/lines'", Ordinal)}"))
            .Concat(Statements("PostgreSQL", 2).Select(s => s + ";"))
            .Concat(asked.SelectMany(a => new[] { a, "SELECT '--';" }));
        File.WriteAllText(Path.Combine(_dir, "script.sql"), string.Join('\n', script));
        await using var bash = ChildProcess.Start("bash", ["-euc", """
            cd "$1"
            mkdir pg; chmod 755 .; chmod 644 lines script.sql
            as=
            if [ "$(id -u)" = 0 ]; then chown postgres pg; as="setpriv --reuid=postgres --regid=postgres --init-groups"; fi
            export PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
            $as initdb --pgdata pg/data --auth trust --encoding UTF8 --locale C.UTF-8 >/dev/null
            $as pg_ctl --pgdata pg/data --log pg/log --wait start -o "-c listen_addresses= -c unix_socket_directories=$1/pg -c fsync=off" >/dev/null
            trap '$as pg_ctl --pgdata pg/data --wait --mode immediate stop >/dev/null' EXIT
            $as psql --host "$1/pg" --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 --file script.sql postgres
            """, "bash", _dir]);
        var exit = await bash.ExitAsync(Soon);
        Assert.True(exit == 0, bash.Output);
        return [.. bash.Output.Split("--\n").Take(3)];
    }

    // ---- ClickHouse ----

    /// <summary>ClickHouse in a library, behind an address that takes queries as its own HTTP interface does.</summary>
    private sealed class ClickHouse : IAsyncDisposable
    {
        private readonly ChildProcess _child;
        private readonly HttpClient _client = new() { Timeout = TimeSpan.FromMinutes(1) };

        private ClickHouse(string dir)
        {
            var port = FreePort.Next();
            (Url, Lines) = ($"http://127.0.0.1:{port}/", Path.Combine(dir, "sent"));
            _child = ChildProcess.Start("node",
                [Path.Combine(Project.Folder, "Ses.Tests", "engines", "server.mjs"), $"{port}", Path.Combine(dir, "clickhouse"), Lines]);
        }

        public string Url { get; }

        /// <summary>What was inserted.</summary>
        public string Lines { get; }

        public static async Task<ClickHouse> StartAsync(string dir)
        {
            var clickhouse = new ClickHouse(dir);
            await Wait.UntilAsync(() => clickhouse._child.Output.Contains("listening", Ordinal) || clickhouse._child.HasExited, Soon, "ClickHouse");
            Assert.False(clickhouse._child.HasExited, clickhouse._child.Output);
            return clickhouse;
        }

        public async Task<string> AskAsync(string query)
        {
            using var answer = await _client.PostAsync($"{Url}?query={Uri.EscapeDataString(query)}", null);
            var text = await answer.Content.ReadAsStringAsync();
            Assert.True(answer.StatusCode == HttpStatusCode.OK, $"{query}\n{text}");
            return text;
        }

        public async ValueTask DisposeAsync()
        {
            _client.Dispose();
            await _child.DisposeAsync();
        }
    }
}
