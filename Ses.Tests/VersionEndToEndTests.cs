using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>Which version <c>.ci/version</c> tells of a repository, and who else tells it.</summary>
[Trait("Category", "E2E")]
public sealed class VersionEndToEndTests : IDisposable
{
    private static readonly TimeSpan Soon = TimeSpan.FromMinutes(2);

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-version-").FullName;

    public VersionEndToEndTests()
    {
        foreach (var file in new[] { ".ci/version", "Makefile", "Ses.csproj" })
        {
            Directory.CreateDirectory(Path.GetDirectoryName(Path.Combine(_dir, file))!);
            File.Copy(Path.Combine(Project.Folder, file), Path.Combine(_dir, file));
        }
        foreach (var file in new[] { "Ses.cs", "trim.xml" })
            File.WriteAllText(Path.Combine(_dir, file), "");
        File.WriteAllText(Path.Combine(_dir, ".gitignore"), "out/\n");
    }

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    private async Task<(int Code, string Output)> TryAsync(
        string? version, string program, params string[] arguments)
    {
        var path = program.Contains('/', Ordinal) ? Path.Combine(_dir, program) : program;
        await using var run = ChildProcess.Start(path, arguments, new Dictionary<string, string?>
        {
            ["GIT_CONFIG_GLOBAL"] = "/dev/null",
            ["GIT_CONFIG_NOSYSTEM"] = "1",
            ["GIT_DIR"] = null,
            ["MAKEFLAGS"] = null,
            ["MAKELEVEL"] = null,
            ["VERSION"] = version,
        }, _dir);
        return (await run.ExitAsync(Soon), run.Output);
    }

    /// <summary>Runs a program in the repository, which must end well; returns what it said.</summary>
    private async Task<string> RunAsync(string program, params string[] arguments)
    {
        var (code, output) = await TryAsync(null, program, arguments);
        Assert.True(code == 0, $"{program} {string.Join(' ', arguments)}: {output}");
        return output.TrimEnd('\n');
    }

    private Task<string> GitAsync(params string[] arguments) =>
        RunAsync("git", ["-c", "user.name=SeS", "-c", "user.email=ses@localhost.localdomain", .. arguments]);

    private async Task InitAsync()
    {
        await GitAsync("init", "--quiet");
        await GitAsync("add", ".");
        await CommitAsync();
    }

    private Task CommitAsync() =>
        GitAsync("commit", "--quiet", "--allow-empty", "--message", "Change something");

    private async Task<string> VersionAsync() => (await RunAsync(".ci/version")).Split(' ')[0];

    private async Task<string> HashAsync() => "g" + (await GitAsync("rev-parse", "HEAD"))[..12];

    private void Change() => File.AppendAllText(Path.Combine(_dir, "Ses.cs"), "// changed\n");

    [Fact]
    public async Task TaggedCommitIsTheReleaseWhoeverOwnsTheFolder()
    {
        await InitAsync();
        await GitAsync("tag", "v1.2.3");
        var commit = await GitAsync("log", "-1", "--format=%H %ct");
        Assert.Equal($"1.2.3 {commit}", await RunAsync(".ci/version"));
        await RunAsync("chown", "-R", "4711:4711", _dir);
        Assert.Equal($"1.2.3 {commit}", await RunAsync(".ci/version"));
    }

    [Theory]
    [InlineData("v1.2.9", "1.2.10-dev.")]
    [InlineData("v1.3.0-rc.1", "1.3.0-rc.1.dev.")]
    public async Task CommitsAfterATagAreOnTheWayToTheNext(string tag, string next)
    {
        await InitAsync();
        await GitAsync("tag", "--annotate", "--message", "A release", tag);
        await CommitAsync();
        Assert.Equal($"{next}1+{await HashAsync()}", await VersionAsync());
        await CommitAsync();
        Assert.Equal($"{next}2+{await HashAsync()}", await VersionAsync());
    }

    [Fact]
    public async Task WithoutATagOfAReleaseItIsTheCommit()
    {
        await InitAsync();
        foreach (var tag in new[] { "latest", "1.2.3", "v1.2", "v1.2.3x", "v01.2.3", "v1.2.3-a-b" })
            await GitAsync("tag", tag);
        Assert.Equal($"0.0.0+{await HashAsync()}", await VersionAsync());
    }

    [Theory]
    [InlineData(null, "0.0.0")]
    [InlineData("v1.2.3", "1.2.4-dev.0")]
    public async Task UncommittedChangesAreMarked(string? tag, string version)
    {
        await InitAsync();
        if (tag != null)
            await GitAsync("tag", tag);
        var clean = await VersionAsync();
        File.WriteAllText(Path.Combine(_dir, "untracked"), "");
        File.SetLastWriteTimeUtc(Path.Combine(_dir, "Ses.cs"), DateTime.UnixEpoch);
        Assert.Equal(clean, await VersionAsync());
        Change();
        Assert.Equal($"{version}+{await HashAsync()}.dirty", await VersionAsync());
    }

    [Fact]
    public async Task WithoutGitItIsNoneUnlessGiven()
    {
        Assert.Equal("0.0.0", await RunAsync(".ci/version"));
        Assert.Equal((0, "1.2.3\n"), await TryAsync("1.2.3", ".ci/version"));
        // Unpacked in a folder of another project, it is not that project's version.
        await GitAsync("init", "--quiet");
        await GitAsync("commit", "--quiet", "--allow-empty", "--message", "Begin another project");
        await RunAsync("mkdir", "below");
        await RunAsync("cp", "-r", ".ci", "below");
        Assert.Equal("0.0.0", await RunAsync("below/.ci/version"));
    }

    [Fact]
    public async Task GivenVersionIsTakenIfItIsOne()
    {
        await InitAsync();
        await GitAsync("tag", "v1.2.3");
        Assert.StartsWith("1.3.0-rc.1 ", (await TryAsync("1.3.0-rc.1", ".ci/version")).Output, Ordinal);
        foreach (var bad in new[] { "1.2", "v1.2.3", "1.2.3 4", "1.2.3\n4", "1.2.3-", "$(id)" })
        {
            var (code, output) = await TryAsync(bad, ".ci/version");
            Assert.Equal(1, code);
            Assert.Contains("which is none such as 1.2.3", output, Ordinal);
        }
    }

    [Fact]
    public async Task VersionsAreInDebiansOrder()
    {
        await InitAsync();
        List<string> versions = [await VersionAsync()];
        string?[] tags = ["v1.2.3-rc.1", null, "v1.2.3", .. new string?[10], "v1.2.4"];
        foreach (var tag in tags)
        {
            await CommitAsync();
            if (tag != null)
                await GitAsync("tag", tag);
            versions.Add(await VersionAsync());
        }
        Change();
        versions.Add(await VersionAsync());
        Assert.Equal(["1.2.4-dev.9", "1.2.4-dev.10"], versions[12..14].Select(v => v.Split('+')[0]));
        foreach (var (first, second) in versions.Zip(versions.Skip(1)))
            await RunAsync("dpkg", "--compare-versions",
                first.Replace('-', '~'), "lt", second.Replace('-', '~'));
    }

    /// <summary>With a compiler that only counts.</summary>
    [Fact]
    public async Task MakeBuildsAnewForAnotherCommitAndOnlyThen()
    {
        await InitAsync();
        var (compiler, builds) = (Path.Combine(_dir, "out", "dotnet"), Path.Combine(_dir, "out", "builds"));
        Directory.CreateDirectory(Path.Combine(_dir, "out"));
        File.WriteAllText(compiler, "#!/bin/sh\necho build >> out/builds\n: > out/ses\n");
        File.SetUnixFileMode(compiler, UnixFileMode.UserRead | UnixFileMode.UserExecute);
        async Task<int> BuildsAsync(params string[] arguments)
        {
            // SQLite is compiled by the build of the binary under test.
            await RunAsync("make", ["publish", $"DOTNET={compiler}", "SQLITE=Ses.csproj", .. arguments]);
            return File.ReadAllLines(builds).Length;
        }

        Assert.Equal(1, await BuildsAsync());
        Assert.Equal(1, await BuildsAsync());
        await CommitAsync();
        Assert.Equal(2, await BuildsAsync());
        Assert.Equal(2, await BuildsAsync());
        Assert.Equal(3, await BuildsAsync("VERSION=1.2.3"));
        Assert.StartsWith("1.2.3 ", File.ReadAllText(Path.Combine(_dir, "out", "version")), Ordinal);
        Assert.Equal(3, await BuildsAsync("VERSION=1.2.3"));
        Change();
        Assert.Equal(4, await BuildsAsync("VERSION=1.2.3"));
        var (code, output) = await TryAsync(null, "make", "publish", "VERSION=1.2");
        Assert.Equal(2, code);
        Assert.Contains("VERSION is \"1.2\"", output, Ordinal);
    }

    [Fact]
    public async Task ReleaseIsOfATagAndOfWhatIsCommitted()
    {
        const string Untagged = "the commit of its tag", Changed = "git status names changes";
        async Task RefusedAsync(string reason, string? version = null)
        {
            var (code, output) = await TryAsync(version, "make", "release");
            Assert.Equal(2, code);
            Assert.Contains(reason, output, Ordinal);
            Assert.False(Directory.Exists(Path.Combine(_dir, "out", "release")));
        }

        await RefusedAsync(Changed);
        await InitAsync();
        await RefusedAsync(Untagged);
        // A version that is given is no tag.
        await RefusedAsync(Untagged, "1.2.3");
        await GitAsync("tag", "v1.2.3");
        File.WriteAllText(Path.Combine(_dir, "untracked"), "");
        await RefusedAsync(Changed);
        File.Delete(Path.Combine(_dir, "untracked"));
        await CommitAsync();
        await RefusedAsync(Untagged);
        Change();
        await RefusedAsync(Changed);
    }

    [Fact]
    public async Task ProjectFileTellsTheSame()
    {
        await InitAsync();
        await GitAsync("tag", "v1.2.3");
        await CommitAsync();
        var commit = (await GitAsync("log", "-1", "--format=%H %ct")).Split(' ');
        var version = $"1.2.4-dev.1+{await HashAsync()}";
        Assert.Equal((version, "1.2.4.0", commit[0], commit[1]), await BuiltAsync());
        Assert.Equal(("1.3.0", "1.3.0.0", commit[0], commit[1]), await BuiltAsync("-p:Version=1.3.0"));
        Directory.Delete(Path.Combine(_dir, ".git"), recursive: true);
        Assert.Equal(("0.0.0", "0.0.0.0", "", ""), await BuiltAsync());

        async Task<(string, string, string, string)> BuiltAsync(params string[] arguments)
        {
            using var json = JsonDocument.Parse(await RunAsync("dotnet", ["msbuild", "Ses.csproj", "-nologo",
                "-t:GetAssemblyVersion", "-getProperty:InformationalVersion,AssemblyVersion,Commit,CommitTime",
                .. arguments]));
            var properties = json.RootElement.GetProperty("Properties");
            string Of(string name) => properties.GetProperty(name).GetString()!;
            return (Of("InformationalVersion"), Of("AssemblyVersion"), Of("Commit"), Of("CommitTime"));
        }
    }

    [Fact]
    public async Task NativeBinaryTellsWhatItWasBuiltOf()
    {
        var built = File.ReadAllText(Path.Combine(Project.Folder, "out", "version")).Trim().Split(' ');
        var commit = built.Length == 1 ? "" : $", commit {built[1]} of {Rfc3339.Format(
            DateTime.UnixEpoch.AddSeconds(long.Parse(built[2], CultureInfo.InvariantCulture)))}";
        var told = await RunAsync(SesProcess.Binary, "--version");
        var libraries = Regex.Match(told, @"^(.*), OpenSSL (3\.\d+\.\d+), SQLite 3\.\d+\.\d+$");
        Assert.Equal($"ses {built[0]}{commit}", libraries.Groups[1].Value);
        await using var ses = await SesProcess.StartAsync("none");
        var openssl = libraries.Groups[2].Value;
        Assert.Contains($",openssl=\"{openssl}\"}} 1\n", await ses.Client.GetStringAsync("metrics"), Ordinal);
        Assert.Contains($" openssl={openssl} url=", ses.Child.Output, Ordinal);
    }

    /// <summary>For git, what the context lacks is deleted: the version would be that of a change.</summary>
    [Fact]
    public void ContextOfTheImageHasEveryFileOfTheCommit()
    {
        string[] Lines(string file) => File.ReadAllLines(Path.Combine(Project.Folder, file));
        Assert.Equal(Lines(".gitignore").Select(line => "**/" + line.TrimEnd('/')),
            Lines(".dockerignore").Where(line => line[0] != '#'));
    }
}
