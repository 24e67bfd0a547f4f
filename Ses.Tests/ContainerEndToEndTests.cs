using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>
/// The image that the Dockerfile describes, without an engine: its last stage put together in a folder, as
/// the root of a process that is number 1, of another user, with everything but the data folder read-only.
/// </summary>
[Trait("Category", "E2E")]
public sealed partial class ContainerEndToEndTests : IAsyncLifetime
{
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(20);

    private readonly string _root = Directory.CreateTempSubdirectory("ses-root-").FullName;
    private readonly int _port = FreePort.Next();
    private readonly string _stage = LastStage();
    private readonly List<string> _mounts = [];

    private static string LastStage()
    {
        for (var dir = new DirectoryInfo(AppContext.BaseDirectory); dir != null; dir = dir.Parent)
        {
            var path = Path.Combine(dir.FullName, "Dockerfile");
            if (File.Exists(path))
                return Continued().Replace(File.ReadAllText(path).Split("FROM scratch")[1], " ");
        }
        throw new FileNotFoundException("there is no Dockerfile above the tests");
    }

    private string User => UserLine().Match(_stage).Groups[1].Value;

    private Dictionary<string, string?> Variables() => Variable().Matches(EnvLine().Match(_stage).Value)
        .ToDictionary(m => m.Groups[1].Value, m => (string?)m.Groups[2].Value);

    public async Task InitializeAsync()
    {
        foreach (Match copy in CopyLine().Matches(_stage))
        {
            var (from, to) = (copy.Groups[2].Value, _root + copy.Groups[3].Value);
            Directory.CreateDirectory(Path.GetDirectoryName(to)!);
            if (from == "/empty")
                Directory.CreateDirectory(to);
            else
                await RunAsync("cp", "-r", from == "/src/out/ses" ? SesProcess.Binary
                    : from.StartsWith("/src/", Ordinal) ? Path.Combine(Project.Folder, from["/src/".Length..]) : from, to);
            if (copy.Groups[1].Success)
                await RunAsync("chown", copy.Groups[1].Value, to);
        }
        await RunAsync("chmod", "755", _root);
        // What an engine adds to each container; without /dev/urandom the runtime waits for ever.
        Directory.CreateDirectory(Path.Combine(_root, "proc"));
        Directory.CreateDirectory(Path.Combine(_root, "dev"));
        File.WriteAllText(Path.Combine(_root, "dev", "urandom"), "");
        File.WriteAllText(Path.Combine(_root, "etc", "hosts"), "127.0.0.1 localhost onix.example\n");
        await MountAsync(_root, "--bind", _root);
        await MountAsync(Path.Combine(_root, "data"), "--bind", Path.Combine(_root, "data"));
        await MountAsync(Path.Combine(_root, "dev", "urandom"), "--bind", "/dev/urandom");
        await RunAsync("mount", "-o", "remount,ro,bind", _root);
    }

    private async Task MountAsync(string place, params string[] what)
    {
        await RunAsync("mount", [.. what, place]);
        _mounts.Add(place);
    }

    public async Task DisposeAsync()
    {
        foreach (var mount in _mounts.AsEnumerable().Reverse())
            await RunAsync("umount", mount);
        Directory.Delete(_root, recursive: true);
    }

    private static async Task RunAsync(string program, params string[] arguments)
    {
        await using var run = ChildProcess.Start(program, arguments);
        Assert.True(await run.ExitAsync(Soon) == 0, $"{program} {string.Join(' ', arguments)}: {run.Output}");
    }

    /// <summary>Starts a program in the root, as process 1 of the image's user.</summary>
    private ChildProcess Start(params string[] command) => ChildProcess.Start("unshare",
        ["--fork", "--kill-child", "--pid", "--mount", "--mount-proc=/proc", $"--root={_root}",
            $"--setgid={User.Split(':')[1]}", $"--setuid={User.Split(':')[0]}", .. command],
        new Dictionary<string, string?>(Variables())
        {
            ["OXSES_PORT"] = $"{_port}",
            ["OXSES_ADDRESS"] = "127.0.0.1",
            ["OXSES_ONIX_URL"] = "none"
        });

    /// <summary>unshare does not take its child with it when it is killed.</summary>
    private sealed class KilledAtTheEnd(int id) : IDisposable
    {
        private readonly Process _process = Process.GetProcessById(id);

        public void Dispose()
        {
            if (!_process.HasExited)
                _process.Kill();
            _process.Dispose();
        }
    }

    private static int ChildOf(ChildProcess parent) => int.Parse(
        File.ReadAllText($"/proc/{parent.Id}/task/{parent.Id}/children").Trim(), CultureInfo.InvariantCulture);

    [Fact]
    public async Task ImageServesIsProbedAndStopsInOrder()
    {
        Assert.Matches("""ENTRYPOINT \["/ses"\]""", _stage);
        Assert.Contains("CMD [\"/ses\", \"probe\"]", _stage, Ordinal);
        await using var ses = Start("/ses");
        await Wait.UntilAsync(() => ses.HasExited || File.ReadAllText(
            $"/proc/{ses.Id}/task/{ses.Id}/children") != "", Soon, "process 1");
        using var kill = new KilledAtTheEnd(ChildOf(ses));
        using var client = new HttpClient { BaseAddress = new Uri($"http://127.0.0.1:{_port}/") };
        await EtcdOutageEndToEndTests.TakeAsync(ses, client, Soon);
        // The image has the zone database.
        Assert.Contains("\"period\":\"2026-11\"", await client.GetStringAsync(
            "alerts/INS/report?period=month&tz=Australia/Lord_Howe&from=2026-11-10&to=2026-11-20"), Ordinal);
        await using (var probe = Start("/ses", "probe"))
            Assert.Equal((0, "{\"ready\":true,\"onix\":{\"state\":\"none\"}}\n"), (await probe.ExitAsync(Soon), probe.Output));

        await RunAsync("kill", "-TERM", $"{ChildOf(ses)}");
        Assert.True(await ses.ExitAsync(Soon) == 0, ses.Output);
        Assert.Contains("everything that was acknowledged is on disk", ses.Output, Ordinal);
        Assert.Equal(14, StoreFiles.Changes(Path.Combine(_root, "data")).Count);
        Assert.Equal(["data", "dev", "etc", "proc", "ses", "usr"], Directory.GetFileSystemEntries(_root).Select(Path.GetFileName).Order());
        await using (var probe = Start("/ses", "probe"))
            Assert.Equal(1, await probe.ExitAsync(Soon));
    }

    /// <summary>The file has all that it needs: no library, no name service, no certificate of the host.</summary>
    [Fact]
    public async Task BinaryIsStaticAndSmall()
    {
        var binary = File.ReadAllBytes(Path.Combine(_root, "ses"));
        // The whole image, with the CAs, without the zones, is under 19 MB.
        Assert.InRange(binary.Length, 1, 18_700_000);
        await using var ldd = ChildProcess.Start("ldd", [Path.Combine(_root, "ses")]);
        await ldd.ExitAsync(Soon);
        Assert.Contains("statically linked", ldd.Output, Ordinal);
    }

    /// <summary>What <c>make image</c> makes is the image of the Dockerfile, the same bytes each time.</summary>
    [Fact]
    public async Task ArchiveHasTheSameFilesAndSettings()
    {
        var dir = Directory.CreateTempSubdirectory("ses-image-").FullName;
        try
        {
            var archives = new List<byte[]>();
            var made = "";
            for (var i = 0; i < 2; i++)
            {
                await Project.RunAsync(TimeSpan.FromMinutes(5), "make", "--no-print-directory", "-o", "out/ses", "image");
                made = Directory.GetFiles(Path.Combine(Project.Folder, "out"), "ses-*.oci.tar").Single();
                archives.Add(File.ReadAllBytes(made));
            }
            Assert.Equal(archives[0], archives[1]);

            await RunAsync("skopeo", "copy", "--quiet", $"oci-archive:{made}", $"dir:{dir}/image");
            await using var inspect = ChildProcess.Start("skopeo", ["inspect", "--config", $"oci-archive:{made}"]);
            Assert.Equal(0, await inspect.ExitAsync(Soon));
            using var document = JsonDocument.Parse(inspect.Output);
            var config = document.RootElement.GetProperty("config");
            Assert.Equal(User, config.GetProperty(nameof(User)).GetString());
            Assert.Equal(Variables().Select(v => $"{v.Key}={v.Value}"), config.GetProperty("Env").EnumerateArray().Select(v => v.GetString()));
            Assert.Equal("/ses", config.GetProperty("Entrypoint")[0].GetString());
            Assert.True(config.GetProperty("Volumes").TryGetProperty("/data", out _));
            Assert.True(config.GetProperty("ExposedPorts").TryGetProperty("8888/tcp", out _));
            Assert.Equal("Apache-2.0", config.GetProperty("Labels").GetProperty("org.opencontainers.image.licenses").GetString());

            using var manifest = JsonDocument.Parse(File.ReadAllText($"{dir}/image/manifest.json"));
            var layer = manifest.RootElement.GetProperty("layers")[0].GetProperty("digest").GetString()!["sha256:".Length..];
            await RunAsync("tar", "-C", Directory.CreateDirectory($"{dir}/root").FullName, "-xzf", $"{dir}/image/{layer}");
            foreach (var part in new[] { "ses", "usr", "etc/ssl" })
                await RunAsync("diff", "--recursive", "--no-dereference", $"{_root}/{part}", $"{dir}/root/{part}");
            Assert.Equal(["data", "etc", "ses", "usr"], Directory.GetFileSystemEntries($"{dir}/root").Select(Path.GetFileName).Order());
            Assert.Equal((65532u, 65532u), Disk.OwnerOf($"{dir}/root/data"));
        }
        finally
        {
            Directory.Delete(dir, recursive: true);
        }
    }

    [GeneratedRegex(@"\\\n\s*")]
    private static partial Regex Continued();

    [GeneratedRegex(@"^COPY --from=build (?:--chown=(\S+) )?(\S+) (\S+)$", RegexOptions.Multiline)]
    private static partial Regex CopyLine();

    [GeneratedRegex(@"^USER (\S+)$", RegexOptions.Multiline)]
    private static partial Regex UserLine();

    [GeneratedRegex(@"^ENV .*$", RegexOptions.Multiline)]
    private static partial Regex EnvLine();

    [GeneratedRegex(@"(\w+)=(\S+)")]
    private static partial Regex Variable();
}
