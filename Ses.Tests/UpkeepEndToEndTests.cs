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
            Assert.ProperSuperset(kept.ToHashSet(), all.ToHashSet());
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
        ses.Kill(Signal.Terminate);
        Assert.True(await ses.Child.ExitAsync(Soon) == 0, ses.Child.Output);
        Assert.Equal(0, (await RunAsync(SesProcess.Binary, "check", "--data-dir", ses.DataDir)).Code);

        // Atomically: an empty file would be taken for no change at all.
        void Set(string offset)
        {
            File.WriteAllText(clock + ".new", offset + "\n");
            File.Move(clock + ".new", clock, overwrite: true);
        }

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
