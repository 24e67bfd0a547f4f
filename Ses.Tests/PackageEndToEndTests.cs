using System.Globalization;
using System.Net;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>What <c>make install</c> and <c>make deb</c> put on a host, and how it fares there.</summary>
[Trait("Category", "E2E")]
public sealed partial class PackageEndToEndTests : IAsyncLifetime
{
    private static readonly TimeSpan Soon = TimeSpan.FromMinutes(2);

    private const UnixFileMode OwnerAndGroup =
        UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.GroupRead;

    private readonly string _root = Directory.CreateTempSubdirectory("ses-host-").FullName;

    public Task InitializeAsync() => Task.CompletedTask;

    public Task DisposeAsync()
    {
        Directory.Delete(_root, recursive: true);
        return Task.CompletedTask;
    }

    private static Task<string> RunAsync(string program, params string[] arguments) =>
        Project.RunAsync(Soon, program, arguments);

    // The binary is there: what is built here is what is packed.
    private static Task<string> MakeAsync(params string[] arguments) =>
        RunAsync("make", ["--no-print-directory", "-o", "out/ses", .. arguments]);

    // That of out/ses.
    private static string Version =>
        File.ReadAllText(Path.Combine(Project.Folder, "out", "version")).Split(' ', '\n')[0];

    private IEnumerable<string> Files() => Directory.EnumerateFiles(_root, "*", SearchOption.AllDirectories)
        .Select(f => f[_root.Length..]).Order(StringComparer.Ordinal);

    [Fact]
    public async Task InstallPutsEachFileInItsPlaceAndUninstallLeavesTheSettings()
    {
        await MakeAsync("install", $"DESTDIR={_root}", "PREFIX=/opt/ses");
        Assert.Equal(
        [
            "/etc/default/ses", "/etc/systemd/system/ses.service", "/etc/systemd/system/ses.socket",
            "/opt/ses/bin/ses", "/opt/ses/share/bash-completion/completions/ses", "/opt/ses/share/man/man8/ses.8.gz",
        ], Files());
        var unit = File.ReadAllText(_root + "/etc/systemd/system/ses.service");
        Assert.Contains("\nExecStart=/opt/ses/bin/ses\n", unit, Ordinal);

        Assert.Equal(OwnerAndGroup, File.GetUnixFileMode(_root + "/etc/default/ses"));
        File.WriteAllText(_root + "/etc/default/ses", "OXSES_PORT=9000\n");
        await MakeAsync("install", $"DESTDIR={_root}", "PREFIX=/opt/ses");
        Assert.Equal("OXSES_PORT=9000\n", File.ReadAllText(_root + "/etc/default/ses"));
        await MakeAsync("uninstall", $"DESTDIR={_root}", "PREFIX=/opt/ses");
        Assert.Equal(["/etc/default/ses"], Files());
    }

    [Fact]
    public async Task UnitsAreValidAndMayDoNextToNothing()
    {
        await MakeAsync("install", $"DESTDIR={_root}", "PREFIX=/usr", "UNITDIR=/etc/systemd/system");
        foreach (var target in new[] { "sysinit", "basic", "network-online", "multi-user", "sockets", "shutdown" })
            File.WriteAllText($"{_root}/etc/systemd/system/{target}.target", $"[Unit]\nDescription={target}\n");
        Assert.Equal("", await RunAsync("systemd-analyze", $"--root={_root}", "--man=no", "verify",
            "ses.service", "ses.socket"));
        var level = Level().Match(await RunAsync("systemd-analyze", $"--root={_root}", "--offline=true",
            "--threshold=15", "security", "ses.service"));
        Assert.InRange(double.Parse(level.Groups[1].Value, CultureInfo.InvariantCulture), 0.1, 1.5);
    }

    [Fact]
    public async Task ManualAndSettingsNameEveryFlagAndVariable()
    {
        await MakeAsync("install", $"DESTDIR={_root}", "PREFIX=/usr");
        var page = await RunAsync("gzip", "-dc", _root + "/usr/share/man/man8/ses.8.gz");
        Assert.Contains($"\"ses {Version.Replace("-", "\\-", Ordinal)}\"", page, Ordinal);
        var defaults = File.ReadAllText(_root + "/etc/default/ses");
        Assert.All(Options.Settings, setting =>
        {
            Assert.Contains(setting.Flag.Replace("-", "\\-", Ordinal) + " ", page, Ordinal);
            Assert.Contains(setting == Options.AddressSetting ? "\nOXSES_ADDRESS=127.0.0.1\n" : $"\n#{setting.Variable}=",
                defaults, Ordinal);
        });
        // But for the address: nobody else is let in unasked.
        Assert.Equal(1, defaults.Split('\n').Count(line => line is not ("" or ['#', ..])));
        Assert.Contains("\nListenStream=127.0.0.1:8888\n",
            File.ReadAllText(_root + "/usr/lib/systemd/system/ses.socket"), Ordinal);
        Assert.All(Command.All, c => Assert.Contains($"\n.SS ses {c.Name}\n", page, Ordinal));
        // As they stand, the settings are those that SeS has without them.
        var file = Path.Combine(_root, "settings");
        File.WriteAllText(file, Commented().Replace(defaults, ""));
        var data = Directory.CreateDirectory(Path.Combine(_root, "data")).FullName;
        await using var ses = ChildProcess.Start("sh", ["-c",
            $"set -a; . {file}; OXSES_DATADIR={data} OXSES_PORT=0 OXSES_ONIX_URL=none; exec {SesProcess.Binary}"]);
        await Wait.UntilAsync(() => ses.HasExited || ses.Output.Contains("SeS is ready", Ordinal), Soon, "SeS");
        Assert.False(ses.HasExited, ses.Output);
        Assert.Contains(" address=127.0.0.1:", ses.Output, Ordinal);
    }

    [Theory]
    [InlineData("ses his", "history")]
    [InlineData("ses --onix-p", "--onix-password --onix-password-file")]
    [InlineData("ses history --fo", "--format")]
    [InlineData("ses report --tls", "")]
    [InlineData("ses --log-level D", "Debug")]
    [InlineData("ses --metrics-auth t", "true")]
    [InlineData("ses status --fail-if-down f", "false")]
    [InlineData("ses --auth-mode b", "basic")]
    [InlineData("ses report --format j", "json")]
    [InlineData("ses help rep", "report")]
    [InlineData("ses not", "note")]
    [InlineData("ses note w", "withdraw")]
    [InlineData("ses note add --ki", "--kind")]
    [InlineData("ses note add --kind e", "excluded")]
    [InlineData("ses note list --ver", "--versions --version")]
    [InlineData("ses hel", "help")]
    [InlineData("ses status --fail-if-down --as", "--as-of")]
    [InlineData("ses report --format = t", "table")]
    [InlineData("ses export > /etc/hostn", "/etc/hostname")]
    [InlineData("ses backup /var/lib/x /et", "/etc")]
    [InlineData("ses status -/touch\\tpwned/e# --as", "--as-of")]
    [InlineData("ses check --data-dir /et", "/etc")]
    public async Task ShellCompletesWhatTheHelpLists(string typed, string offered)
    {
        var script = "source deploy/ses.bash; read -ra COMP_WORDS <<<\"$1\"; "
            + "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _ses \"$2\"; echo \"${COMPREPLY[*]}\"";
        Assert.Equal(offered + "\n", await RunAsync("bash", "-c", script, "bash", typed, SesProcess.Binary));
        Assert.False(File.Exists(Path.Combine(Project.Folder, "pwned")));
    }

    /// <summary>
    /// On a Debian of which only dpkg and what its scripts need is there, made of this host's own files.
    /// </summary>
    [Fact]
    public async Task PackageIsInstalledUpgradedOverRunningDataAndRemoved()
    {
        await MakeAsync("deb");
        var package = Directory.GetFiles(Path.Combine(Project.Folder, "out"), "ses_*.deb").Single();
        Assert.Equal(Version.Replace('-', '~') + "\n", await RunAsync("dpkg-deb", "--field", package, "Version"));
        Assert.DoesNotContain("E: ", await RunAsync("lintian", "--allow-root", package), Ordinal);
        await RunAsync("bash", "-c", """
            set -eo pipefail; cd "$1"; arch=$(dpkg --print-architecture)
            mkdir -p usr/{bin,sbin,lib,lib64} var/lib/dpkg/{info,updates,triggers} etc tmp dev proc
            ln -s usr/{bin,sbin,lib,lib64} .
            for p in dash coreutils grep libc6 libcrypt1 libacl1 libattr1 libgmp10 libselinux1 libpcre2-8-0 \
                libssl3 perl-base init-system-helpers dpkg sed; do dpkg -L $p:$arch || dpkg -L $p; done 2>/dev/null | sort -u \
                | while read -r f; do if [ -f "$f" ]; then echo "${f#/}"; fi; done > tmp/files
            tar -C / --no-recursion -c -T tmp/files | tar -x
            ln -sf dash usr/bin/sh
            cp /var/lib/dpkg/status var/lib/dpkg/status
            echo "alerts:x:4711:4711::/:/bin/sh" > etc/passwd
            chmod 755 .
            """, "bash", _root);
        var defaults = _root + "/etc/default/ses";
        await DpkgAsync("--install", package);
        Assert.True(File.Exists(_root + "/usr/lib/systemd/system/ses.service"));
        Assert.NotNull(new FileInfo(_root + "/etc/systemd/system/multi-user.target.wants/ses.service").LinkTarget);
        Assert.Contains("OXSES_PORT=8888", File.ReadAllText(defaults), Ordinal);
        Assert.Equal(OwnerAndGroup, File.GetUnixFileMode(defaults));
        Assert.Equal((0u, 0u), Disk.OwnerOf(defaults));

        var port = FreePort.Next();
        File.WriteAllText(defaults, $"OXSES_PORT={port}\nOXSES_ADDRESS=127.0.0.1\nOXSES_ONIX_URL=none\n");
        Directory.CreateDirectory(_root + "/var/lib/ses");
        await RunAsync("chown", "4711:4711", _root + "/var/lib/ses");
        using var client = new HttpClient { BaseAddress = new Uri($"http://127.0.0.1:{port}/") };
        await using (var ses = Serve())
        {
            await SesProcess.ReadyAsync(ses, client, Soon);
            foreach (var body in EtcdOutageEndToEndTests.Bodies)
                Assert.Equal(HttpStatusCode.NoContent,
                    (await client.PostAsync("alerts/INS", new StringContent(body))).StatusCode);
            // The file of the running program is replaced, and the program runs on until it is restarted.
            await DpkgAsync("--install", await NewerAsync(package));
            Assert.Contains("All 6 services are up", await client.GetStringAsync(""), Ordinal);
            ses.Kill(Signal.Terminate);
            Assert.True(await ses.ExitAsync(Soon) == 0, ses.Output);
        }
        Assert.Contains("OXSES_ONIX_URL=none", File.ReadAllText(defaults), Ordinal);
        await using (var ses = Serve())
        {
            await SesProcess.ReadyAsync(ses, client, Soon);
            Assert.Contains("All 6 services are up", await client.GetStringAsync(""), Ordinal);
            ses.Kill(Signal.Terminate);
            Assert.True(await ses.ExitAsync(Soon) == 0, ses.Output);
        }

        await DpkgAsync("--remove", "ses");
        Assert.False(File.Exists(_root + "/usr/bin/ses"));
        Assert.True(File.Exists(defaults));
        Assert.Contains("the history stays in /var/lib/ses", await DpkgAsync("--purge", "ses"), Ordinal);
        Assert.False(File.Exists(defaults));
        Assert.Equal(14, StoreFiles.Changes(_root + "/var/lib/ses").Count);
    }

    private Task<string> DpkgAsync(string does, string what) =>
        RunAsync("dpkg", $"--root={_root}", "--force-confdef", "--force-confold", does, what);

    /// <summary>The same package as if it were of a later release, whose settings' file differs.</summary>
    private async Task<string> NewerAsync(string package)
    {
        var dir = Path.Combine(_root, "newer");
        await RunAsync("dpkg-deb", "-R", package, dir);
        var control = Path.Combine(dir, "DEBIAN", "control");
        File.WriteAllText(control, Regex.Replace(File.ReadAllText(control), "(?m)^Version: (.*)$", "Version: $1+1"));
        File.AppendAllText(Path.Combine(dir, "etc/default/ses"), "\n# A later release says more.\n");
        await RunAsync("dpkg-deb", "--root-owner-group", "-b", dir, dir + ".deb");
        return dir + ".deb";
    }

    /// <summary>As the unit does it: another user, the variables of the settings' file, the state directory.</summary>
    private ChildProcess Serve() => ChildProcess.Start("unshare", ["--mount", "sh", "-c", $"""
        mount -t proc proc {_root}/proc
        touch {_root}/dev/urandom && mount --bind /dev/urandom {_root}/dev/urandom
        set -a; . {_root}/etc/default/ses; STATE_DIRECTORY=/var/lib/ses
        exec chroot --userspec=4711:4711 {_root} /usr/bin/ses
        """]);

    [Fact]
    public async Task ListensOnTheSocketOfSystemd()
    {
        var port = FreePort.Next();
        var data = Directory.CreateDirectory(Path.Combine(_root, "data")).FullName;
        await using var ses = ChildProcess.Start("systemd-socket-activate", ["-l", $"127.0.0.1:{port}",
            SesProcess.Binary, "--onix-url", "none", "--data-dir", data, "--port", "1"]);
        using var client = new HttpClient { BaseAddress = new Uri($"http://127.0.0.1:{port}/") };
        await SesProcess.ReadyAsync(ses, client, Soon);
        Assert.Contains($"127.0.0.1:{port}/alerts", ses.Output, Ordinal);
        ses.Kill(Signal.Terminate);
        Assert.True(await ses.ExitAsync(Soon) == 0, ses.Output);
    }

    [GeneratedRegex(@"Overall exposure level for ses\.service: ([\d.]+)")]
    private static partial Regex Level();

    [GeneratedRegex(@"(?m)^#(?=OXSES_\w+=.)")]
    private static partial Regex Commented();
}
