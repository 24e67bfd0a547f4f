using System.Net;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>What happens to a data directory, and to the clock, over years.</summary>
[Trait("Category", "E2E")]
public sealed class UpkeepEndToEndTests : IDisposable
{
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-upkeep-").FullName;

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    private static async Task<(int Code, string Output)> RunAsync(string program, params string[] arguments)
    {
        await using var run = ChildProcess.Start(program, arguments);
        return (await run.ExitAsync(Soon), run.Output);
    }

    [Fact]
    public async Task CopyMadeWhileSesRunsIsABackup()
    {
        await using var ses = await SesProcess.StartAsync("none");
        var load = new Load(ses.Port, 4, 10, 200).RunAsync(TimeSpan.FromSeconds(6));
        var copies = new List<string>();
        while (!load.IsCompleted)
        {
            copies.Add(Directory.CreateDirectory(Path.Combine(_dir, $"copy-{copies.Count}")).FullName);
            var (code, output) = await RunAsync(SesProcess.Binary, "backup", "--data-dir", ses.DataDir, StoreFiles.PathOf(copies[^1]));
            Assert.True(code == 0, output);
        }
        await load;
        var all = StoreFiles.Starts(ses.DataDir);
        var last = 0;
        foreach (var copy in new[] { copies[copies.Count / 2], copies[^1] })
        {
            var kept = StoreFiles.Starts(copy);
            // The last may have been made when all had come.
            Assert.Superset(kept.ToHashSet(), all.ToHashSet());
            Assert.True(kept.Count > last);
            last = kept.Count;
            await using var restored = await SesProcess.StartAsync("none", copy);
            var answer = await restored.Client.GetStringAsync("alerts/INS?format=csv");
            Assert.Equal(kept.Select(e => e.Service).Distinct().Count(), answer.Split('\n', StringSplitOptions.RemoveEmptyEntries).Length - 1);
            restored.Kill(Signal.Terminate);
            Assert.Equal(0, await restored.Child.ExitAsync(Soon));
            var check = await RunAsync(SesProcess.Binary, "check", "--data-dir", copy);
            Assert.True(check.Code == 0, check.Output);
        }
    }

    /// <summary>It was never released, and nothing is migrated.</summary>
    [Fact]
    public async Task DirectoryOfSes01IsRefusedAndNotTouched()
    {
        foreach (var file in Directory.GetFiles(Path.Combine(AppContext.BaseDirectory, "Data", "data-dir-0.1")))
            File.Copy(file, Path.Combine(_dir, Path.GetFileName(file)));
        var before = Directory.GetFiles(_dir).ToDictionary(f => f, File.ReadAllText);
        var (code, output) = await RunAsync(SesProcess.Binary, "--onix-url", "none", "--port", "0", "--data-dir", _dir);
        Assert.Equal(2, code);
        Assert.Contains("the event log of SeS 0.1", output, Ordinal);
        Assert.Equal(before, Directory.GetFiles(_dir).Where(f => Path.GetFileName(f) != "lock").ToDictionary(f => f, File.ReadAllText));
    }

    /// <summary>Atomically: an empty file would be taken for no change at all.</summary>
    private static void SetClock(string file, string offset)
    {
        File.WriteAllText(file + ".new", offset + "\n");
        File.Move(file + ".new", file, overwrite: true);
    }

    /// <summary>What has ended and is too old goes, by itself; what is open and what is new stays.</summary>
    [Fact]
    public async Task OldFactsAreDeletedWhileItRuns()
    {
        var clock = Path.Combine(_dir, "clock");
        SetClock(clock, "+24h");
        await using var ses = await SesProcess.StartWithClockAsync(clock, "--retention", "30d");
        var now = DateTime.UtcNow.AddHours(24);
        await PostAsync(Alert("old", now.AddHours(-2), now.AddHours(-1)), Alert("open", now.AddHours(-2), null));
        Assert.Equal(["old", "open"], Services());
        SetClock(clock, $"+{24 + (31 * 24)}h");
        now = now.AddDays(31);
        await PostAsync(Alert("open", now.AddDays(-31).AddHours(-2), null), Alert("new", now.AddHours(-2), now));
        await Wait.UntilAsync(() => !Services().Contains("old"), Soon, "what is old to be deleted");
        Assert.Equal(["new", "open"], Services());
        await Wait.UntilAsync(() => ses.Child.Output.Contains("old facts were deleted", Ordinal), Soon, "the log");
        Assert.DoesNotContain("\"old\"", await ses.Client.GetStringAsync("alerts/INS/history"), Ordinal);
        using var health = JsonDocument.Parse(await ses.Client.GetStringAsync("health?format=json"));
        Assert.True(health.RootElement.GetProperty("store").GetProperty("oldest").GetDateTime()
            > now.AddDays(-31));
        ses.Kill(Signal.Terminate);
        Assert.True(await ses.Child.ExitAsync(Soon) == 0, ses.Child.Output);
        var (code, found) = await ses.CommandAsync("check");
        Assert.True(code == 0, found);

        IEnumerable<string> Services() =>
            StoreFiles.Facts(ses.DataDir).Select(f => f.Service).Distinct().Order(StringComparer.Ordinal);

        async Task PostAsync(params string[] alerts)
        {
            using var answer = await ses.PostAsync(
                "INS", $"{{\"version\":\"4\",\"alerts\":[{string.Join(',', alerts)}]}}");
            Assert.Equal(HttpStatusCode.NoContent, answer.StatusCode);
        }

        static string Alert(string service, DateTime starts, DateTime? ends) => $$$"""
            {"status":"{{{(ends == null ? "firing" : "resolved")}}}","startsAt":"{{{Rfc3339.Format(starts)}}}",
            "endsAt":"{{{(ends is { } end ? Rfc3339.Format(end) : "0001-01-01T00:00:00Z")}}}",
            "labels":{"alertname":"Down","service":"{{{service}}}","instance":"n1"}}
            """;
    }

    [Fact]
    public async Task ClockSetBackAndForthLosesAndDoublesNothing()
    {
        var clock = Path.Combine(_dir, "clock");
        // A day ahead, so that no step goes back behind the commit that the program was built from.
        Set("+24h");
        await using var ses = await SesProcess.StartWithClockAsync(clock);
        var start = DateTime.UtcNow.AddHours(24 - 3);
        await PostAsync(0, "up");
        Set("+72h");
        await LoggedAsync("the clock was set forward");
        await PostAsync(1, "down");
        await PostAsync(1, "down");
        Set("+22h");
        await LoggedAsync("the clock was set back");
        await PostAsync(1, "down");
        await PostAsync(2, "up");
        Set("+24h");
        await PostAsync(2, "up");
        await PostAsync(0, "up");

        var events = StoreFiles.Changes(ses.DataDir);
        Assert.Equal(["up", "down", "up"], events.OrderBy(e => e.Time).Select(e => e.Status));
        using var history = JsonDocument.Parse(await ses.Client.GetStringAsync("alerts/INS/history?from=-24h"));
        Assert.Equal(["up", "down", "up"], history.RootElement.GetProperty("events").EnumerateArray()
            .Select(e => e.GetProperty("status").GetString()));
        // Before all of that, which is no damage.
        Set("+1h");
        await Wait.UntilAsync(() => ses.Child.Output.Split("the clock was set back").Length == 3, Soon, "the log");
        await SoundAsync();
        Set("+24h");
        ses.Kill(Signal.Terminate);
        Assert.True(await ses.Child.ExitAsync(Soon) == 0, ses.Child.Output);
        Assert.DoesNotContain("damaged", ses.Child.Output, Ordinal);
        await SoundAsync();

        async Task SoundAsync()
        {
            var (code, found) = await ses.CommandAsync("check");
            Assert.True(code == 0, found);
        }

        void Set(string offset) => SetClock(clock, offset);

        Task LoggedAsync(string words) => Wait.UntilAsync(() => ses.Child.Output.Contains(words, Ordinal), Soon, words);

        async Task PostAsync(int minute, string status)
        {
            var body = $$$"""
                {"version":"4","alerts":[{"status":"firing","startsAt":"{{{Rfc3339.Format(start.AddMinutes(minute))}}}",
                "labels":{"platform":"p01","service":"etcd","facet":"node","status":"{{{status}}}"}}]}
                """;
            using var answer = await ses.PostAsync("INS", body);
            Assert.Equal(HttpStatusCode.NoContent, answer.StatusCode);
        }
    }
}
