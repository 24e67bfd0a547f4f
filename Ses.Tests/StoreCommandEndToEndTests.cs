using System.Globalization;
using System.Net;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;
using Etcd = Ses.Tests.EtcdOutageEndToEndTests;

namespace Ses.Tests;

/// <summary>The commands that check, copy and unite databases, with the bodies of a real outage.</summary>
[Trait("Category", "E2E")]
public sealed partial class StoreCommandEndToEndTests : IDisposable
{
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);

    private const string OfEtcd = "alerts/INS/history?service=etcd&format=csv";

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-store-command-").FullName;

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    private static async Task<(int Exit, string Output)> RunAsync(params string[] arguments)
    {
        await using var command = ChildProcess.Start(SesProcess.Binary, arguments, SesProcess.Unset);
        var exit = await command.ExitAsync(Soon);
        return (exit, command.Output);
    }

    private static string Told(string service, string status, DateTime time, string text) => $$$"""
        {"version":"4","alerts":[{"status":"firing","startsAt":"{{{Rfc3339.Format(time)}}}",
        "labels":{"platform":"p1","service":"{{{service}}}","facet":"node","status":"{{{status}}}"},
        "annotations":{"description":"{{{text}}}"}}]}
        """;

    private static async Task StoreAsync(SesProcess ses, string body)
    {
        using var answer = await ses.PostAsync("INS", body);
        Assert.Equal(HttpStatusCode.NoContent, answer.StatusCode);
    }

    private static async Task StopAsync(SesProcess ses)
    {
        ses.Kill(Signal.Terminate);
        Assert.True(await ses.Child.ExitAsync(Soon) == 0, ses.Child.Output);
    }

    /// <summary>Runs a line of bash, in which $ses is the program; all of a pipe must end well.</summary>
    private static async Task<(int Exit, string Output)> ShellAsync(string line)
    {
        await using var shell = ChildProcess.Start("bash", ["-o", "pipefail", "-c", line],
            new Dictionary<string, string?> { ["ses"] = SesProcess.Binary });
        return (await shell.ExitAsync(Soon), shell.Output);
    }

    private async Task<string[]> ExportAsync(string dir)
    {
        var file = Path.Combine(_dir, "exported");
        Assert.Equal((0, ""), await ShellAsync($"\"$ses\" export --data-dir {dir} > {file}"));
        return File.ReadAllLines(file);
    }

    private static Dictionary<(string, string, string), List<string>> OfCsv(string csv)
    {
        var lines = csv.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        Assert.StartsWith("platform,service,facet,location,status,time,", lines[0], Ordinal);
        return lines.Skip(1).Select(l => l.Split(',')).GroupBy(c => (c[0], c[2], c[3])).ToDictionary(
            g => g.Key, g => g.Select(c => Etcd.Told(c[4], DateTime.Parse(c[5], CultureInfo.InvariantCulture,
                DateTimeStyles.AdjustToUniversal))).ToList());
    }

    // ---- Check ----

    [Fact]
    public async Task NoCommandFollowsALink()
    {
        var (data, target, backup) = (Directory.CreateDirectory(Path.Combine(_dir, "data")).FullName,
            Path.Combine(_dir, "target"), Path.Combine(_dir, "backup.db"));
        File.WriteAllText(backup, "");
        foreach (var name in new[] { "ses.db", "ses.db-wal", "ses.db-shm", "lock" })
        {
            var link = Path.Combine(data, name);
            File.CreateSymbolicLink(link, target);
            string[][] commands =
            [
                ["check"], ["rebuild"], ["backup", Path.Combine(_dir, "new.db")], ["restore", backup],
                ["export"], ["import", backup], ["history"], ["quarantine"], ["--port", "0", "--onix-url", "none"],
            ];
            foreach (var command in commands)
            {
                var (exit, output) = await RunAsync([.. command, "--data-dir", data]);
                Assert.Equal(2, exit);
                Assert.Contains($"{name} is a symbolic link, which is not followed", output, StringComparison.Ordinal);
            }
            File.Delete(link);
        }
        Assert.Equal((0, "0 lines: 0 new facts, 0 known, 0 refused.\n"),
            await RunAsync("import", "--data-dir", data, backup));
        File.CreateSymbolicLink(Path.Combine(_dir, "link.db"), target);
        var (made, why) = await RunAsync("backup", "--data-dir", data, Path.Combine(_dir, "link.db"));
        Assert.True(made == 2 && why.Contains("cannot be created", StringComparison.Ordinal), why);
        Assert.False(File.Exists(target));
    }

    [Fact]
    public async Task CheckNamesAFactOfWhichAByteWasChanged()
    {
        const string text = "as it was told the second time";
        var time = DateTime.UtcNow.AddMinutes(-2);
        await using (var ses = await SesProcess.StartAsync("none", _dir))
        {
            await StoreAsync(ses, Told("etcd", "down", time, "as it was told first"));
            await StoreAsync(ses, Told("etcd", "down", time.AddSeconds(1), text));
            await StopAsync(ses);
        }
        var path = StoreFiles.PathOf(_dir);
        var bytes = File.ReadAllBytes(path);
        var at = bytes.AsSpan().IndexOf(Encoding.UTF8.GetBytes(text));
        Assert.True(at > 0 && at == bytes.AsSpan().LastIndexOf(Encoding.UTF8.GetBytes(text)));
        foreach (var isChanged in new[] { false, true, false })
        {
            bytes[at] = (byte)(isChanged ? 'A' : 'a');
            File.WriteAllBytes(path, bytes);
            var (exit, found) = await RunAsync("check", "--data-dir", _dir);
            Assert.Equal(isChanged ? 1 : 0, exit);
            if (isChanged)
                Assert.Matches(@"(?m)^observation \d+: a fact does not match its checksum", found);
            else
                Assert.Contains("Nothing is wrong: 2 observations, 1 services.", found, Ordinal);
        }
    }

    // ---- Copies ----

    [Fact]
    public async Task BackupBesideADaemonUnderLoadIsRestoredElsewhere()
    {
        var (here, there) = (Path.Combine(_dir, "here"), Path.Combine(_dir, "there"));
        var backup = Path.Combine(_dir, "backup.db");
        Directory.CreateDirectory(there);
        await using (var ses = await SesProcess.StartAsync("none", Directory.CreateDirectory(here).FullName))
        {
            foreach (var body in Etcd.Bodies)
                await StoreAsync(ses, body);
            var load = new Load(ses.Port, senders: 4, alerts: 10, servicesPerSender: 50)
                .RunAsync(TimeSpan.FromSeconds(5));
            await Wait.UntilAsync(() => StoreFiles.Observations(here) > 1000, Soon, "some load");
            var (exit, output) = await RunAsync("backup", "--data-dir", here, backup);
            Assert.True(exit == 0, output);
            Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(backup));
            var (refused, why) = await RunAsync("backup", "--data-dir", here, backup);
            Assert.Equal(2, refused);
            Assert.Contains($"FILE: '{backup}'", why, Ordinal);
            Assert.Equal(0, (await load).Refused);
            await StopAsync(ses);
        }
        var (restored, word) = await RunAsync("restore", "--data-dir", there, backup);
        Assert.True(restored == 0, word);
        (restored, word) = await RunAsync("check", "--data-dir", there);
        Assert.True(restored == 0, word);
        var (all, kept) = (await ExportAsync(here), await ExportAsync(there));
        Assert.InRange(kept.Length, 1000, all.Length - 1);
        Assert.Equal(all.Take(kept.Length), kept);
        string[] paths = [StoreFiles.PathOf(here), backup, StoreFiles.PathOf(there)];
        Assert.Equal(3, paths.Select(StoreId).Distinct().Count());
        await using var other = await SesProcess.StartAsync("none", there);
        Assert.Equal(Etcd.Truth, OfCsv(await other.Client.GetStringAsync(OfEtcd)));
    }

    private static string? StoreId(string path)
    {
        using var database = new SqliteConnection(path, isReadOnly: true, cache: 2048);
        using var id = database.Query("SELECT value FROM meta WHERE name = 'store'");
        return id.FirstText();
    }

    [Fact]
    public async Task RestoreIsRefusedBesideADaemonAndOfADamagedCopy()
    {
        var (data, backup) = (Path.Combine(_dir, "data"), Path.Combine(_dir, "backup.db"));
        await using (var ses = await SesProcess.StartAsync("none", Directory.CreateDirectory(data).FullName))
        {
            await StoreAsync(ses, Etcd.Bodies[0]);
            Assert.Equal(0, (await RunAsync("backup", "--data-dir", data, backup)).Exit);
            foreach (var body in Etcd.Bodies)
                await StoreAsync(ses, body);
            await RefusedAsync(backup, "is in use by another SeS");
            Assert.Equal(Etcd.Truth, OfCsv(await ses.Client.GetStringAsync(OfEtcd)));
            await StopAsync(ses);
        }
        var before = await ExportAsync(data);
        var bytes = File.ReadAllBytes(backup);
        foreach (var (name, copy) in new[] { ("half", bytes[..(bytes.Length / 2)]), ("empty", []),
            ("other", Encoding.UTF8.GetBytes(string.Concat(Enumerable.Repeat("no database ", 1000)))) })
        {
            var path = Path.Combine(_dir, name);
            File.WriteAllBytes(path, copy);
            await RefusedAsync(path, $"ses: FILE: '{path}' ");
        }
        await RefusedAsync(Path.Combine(_dir, "nowhere"), "cannot be read");
        Assert.Equal(before, await ExportAsync(data));
        // A question of before has left the memory that it shared with others.
        Assert.Equal(["lock", "ses.db"], Directory.GetFiles(data).Select(Path.GetFileName)
            .Where(name => name is not ("ses.db-shm" or "ses.db-wal")).Order());

        async Task RefusedAsync(string file, string says)
        {
            var (exit, output) = await RunAsync("restore", "--data-dir", data, file);
            Assert.Equal(2, exit);
            Assert.Contains(says, output, Ordinal);
            Assert.Equal(0, output.Trim().Count(c => c == '\n'));
        }
    }

    [Fact]
    public async Task PurgeBesideADaemonTakesWhatIsMeantAlone()
    {
        string[] purge = ["purge", "--data-dir", _dir, "--partition", "junk"];
        await using (var ses = await SesProcess.StartAsync("none", _dir))
        {
            foreach (var body in Etcd.Bodies)
                await StoreAsync(ses, body);
            for (var i = 0; i < 30; i++)
            {
                using var answer = await ses.PostAsync("junk", Told($"s{i}", "down", DateTime.UtcNow, "made up"));
                Assert.Equal(HttpStatusCode.NoContent, answer.StatusCode);
            }
            var load = new Load(ses.Port, senders: 4, alerts: 10, servicesPerSender: 50)
                .RunAsync(TimeSpan.FromSeconds(3));
            var (exit, output) = await RunAsync(purge);
            Assert.True(exit == 0, output);
            Assert.Contains("Purged: 30 services, 30 alerts, 30 observations, 0 quarantined alerts.", output, Ordinal);
            Assert.Equal(0, (await load).Refused);
            Assert.Equal(Etcd.Truth, OfCsv(await ses.Client.GetStringAsync(OfEtcd)));
            (exit, output) = await RunAsync(purge);
            Assert.Equal(2, exit);
            Assert.Contains("--partition: there is no 'junk'", output, Ordinal);
            await Wait.UntilAsync(() => ses.Child.Output.Contains("ses purge deleted facts", Ordinal), Soon, "its log");
            await StopAsync(ses);
        }
        Assert.Contains("purged partition 'junk': 30 services",
            (await RunAsync("purge", "--data-dir", _dir, "--dry-run")).Output, Ordinal);
        var (checkedAs, found) = await RunAsync("check", "--data-dir", _dir);
        Assert.True(checkedAs == 0, found);
    }

    [Fact]
    public async Task RebuildIsRefusedWhereThereIsNoDatabase()
    {
        var there = Path.Combine(_dir, "mistyped");
        var (exit, output) = await RunAsync("rebuild", "--data-dir", there);
        Assert.Equal(2, exit);
        Assert.Contains($"'{there}' has no ses.db in it", output, Ordinal);
        Assert.False(Directory.Exists(there));
    }

    // ---- Facts as lines ----

    [Fact]
    public async Task ExportTellsATimeThatItCannotUse()
    {
        var data = Path.Combine(_dir, "data");
        await using (var ses = await SesProcess.StartAsync("none", Directory.CreateDirectory(data).FullName))
            await StoreAsync(ses, Etcd.Bodies[0]);
        foreach (var (flag, value, says) in new[] { ("--from", "", "--from: '' is not valid"),
            ("--as-of", "2099-01-01T00:00Z", "--as-of is ahead of the clock") })
        {
            var (exit, output) = await RunAsync("export", "--data-dir", data, flag, value);
            Assert.Equal(2, exit);
            Assert.StartsWith($"ses: {says}", output, Ordinal);
        }
    }


    [Fact]
    public async Task ExportAndImportMakeTwoStoresEqual()
    {
        string[] dirs =
        [
            Directory.CreateDirectory(Path.Combine(_dir, "one")).FullName,
            Directory.CreateDirectory(Path.Combine(_dir, "two")).FullName,
        ];
        await using (var one = await SesProcess.StartAsync("none", dirs[0], null, "--name", "ses-1"))
        await using (var two = await SesProcess.StartAsync("none", dirs[1], null, "--name", "ses-2"))
        {
            for (var i = 0; i < Etcd.Bodies.Length; i++)
            {
                // Each third goes to both.
                if (i % 3 != 1)
                    await StoreAsync(one, Etcd.Bodies[i]);
                if (i % 3 != 2)
                    await StoreAsync(two, Etcd.Bodies[i]);
            }
            await StopAsync(one);
            await StopAsync(two);
        }
        var counts = new[] { (await ExportAsync(dirs[0])).Length, (await ExportAsync(dirs[1])).Length };
        var sum = counts.Sum();
        await PipeAsync(dirs[0], dirs[1], counts[0], added: counts[0]);
        await PipeAsync(dirs[1], dirs[0], sum, added: counts[1]);
        await PipeAsync(dirs[0], dirs[1], sum, added: 0);
        await PipeAsync(dirs[1], dirs[0], sum, added: 0);
        string[] history = ["history", "--partition", "INS", "--format", "csv", "--data-dir"];
        string[] histories =
        [
            Lines((await RunAsync([.. history, dirs[0]])).Output),
            Lines((await RunAsync([.. history, dirs[1]])).Output),
        ];
        Assert.Equal(Etcd.Truth, OfCsv(histories[0]));
        Assert.Equal(histories[0], histories[1]);
        foreach (var dir in dirs)
        {
            // Daemons derive the same, and hold it.
            await using var ses = await SesProcess.StartAsync("none", dir);
            Assert.Equal(histories[0], Lines(await ses.Client.GetStringAsync(OfEtcd)));
            await StopAsync(ses);
            var (exit, found) = await RunAsync("check", "--data-dir", dir);
            Assert.True(exit == 0, found);
        }
        Assert.Equal(Ids(await ExportAsync(dirs[0])), Ids(await ExportAsync(dirs[1])));

        static string Lines(string csv) => csv.ReplaceLineEndings("\n");

        static IEnumerable<string> Ids(string[] lines) =>
            lines.Select(l => FactId().Match(l).Groups[1].Value).Order(StringComparer.Ordinal);

        static async Task PipeAsync(string from, string to, int lines, int added) => Assert.Equal(
            (0, $"{lines} lines: {added} new facts, {lines - added} known, 0 refused.\n"),
            await ShellAsync($"\"$ses\" export --data-dir {from} | \"$ses\" import --data-dir {to}"));
    }

    // ---- As it was known ----

    [Fact]
    public async Task AnswersAreGivenAsTheyWereKnown()
    {
        var time = DateTime.UtcNow.AddHours(-1);
        var from = Rfc3339.Format(time.AddMinutes(-1));
        await using var ses = await SesProcess.StartAsync("none", _dir);
        await StoreAsync(ses, Told("etcd", "down", time, "it is down"));
        var report = await ses.Client.GetStringAsync($"alerts/INS/report?from={from}");
        string asOf;
        using (var json = JsonDocument.Parse(report))
            asOf = json.RootElement.GetProperty("as_of").GetString()!;
        await StoreAsync(ses, Told("etcd", "up", time.AddMinutes(1), "it is up"));
        foreach (var isRunning in new[] { true, false })
        {
            if (!isRunning)
                await StopAsync(ses);
            Assert.Equal(["down"], await StatusesAsync("status", "services", "--as-of", asOf));
            Assert.Equal(["up"], await StatusesAsync("status", "services"));
            Assert.Equal(["down"], await StatusesAsync("history", "events", "--as-of", asOf));
            Assert.Equal(["down", "up"], await StatusesAsync("history", "events"));
            // To the byte.
            string[] again = ["report", "--data-dir", _dir, "--partition", "INS", "--from", from];
            Assert.Equal((0, report), await RunAsync([.. again, "--as-of", asOf]));
            Assert.NotEqual((0, report), await RunAsync(again));
        }
        var (exit, output) = await RunAsync(
            "status", "--data-dir", _dir, "--as-of", Rfc3339.Format(DateTime.UtcNow.AddHours(1)));
        Assert.Equal(2, exit);
        Assert.Contains("--as-of", output, Ordinal);

        async Task<IEnumerable<string>> StatusesAsync(string command, string list, params string[] flags)
        {
            var (_, answer) = await RunAsync([command, "--data-dir", _dir, .. flags]);
            using var json = JsonDocument.Parse(answer);
            return [.. json.RootElement.GetProperty(list).EnumerateArray().Select(e => e.GetProperty("status").GetString()!)];
        }
    }

    [GeneratedRegex("\"id\":\"([0-9a-f]{32})\"")]
    private static partial Regex FactId();
}
