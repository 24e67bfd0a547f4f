using System.Runtime.InteropServices;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>
/// The binary for the architecture that this machine does not have, which <c>make publish ARCH=...</c> compiles
/// and QEMU runs, and what is made of it.
/// </summary>
[Trait("Category", "E2E"), Trait("Category", "Cross")]
public sealed class CrossEndToEndTests : IDisposable
{
    private static readonly TimeSpan Soon = TimeSpan.FromMinutes(5);

    private static readonly bool IsArm = RuntimeInformation.ProcessArchitecture == Architecture.Arm64;
    private static readonly string Arch = IsArm ? "amd64" : "arm64";
    private static readonly string Emulator = IsArm ? "qemu-x86_64" : "qemu-aarch64";

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-cross-").FullName;

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    private static string Out => Path.Combine(Project.Folder, "out", Arch);

    private static string Binary => Path.Combine(Out, "ses");

    public CrossEndToEndTests() => Assert.True(File.Exists(Binary),
        $"there is no {Binary}: make publish ARCH={Arch}, which says what it takes");

    private static Task<string> RunAsync(string program, params string[] arguments) =>
        Project.RunAsync(Soon, program, arguments);

    private static Task<string> MakeAsync(string target) => RunAsync("make", "--no-print-directory",
        "-o", "out/ses", "-o", $"out/{Arch}/ses", target, $"ARCH={Arch}");

    [Fact]
    public async Task BinaryIsOfThatArchitectureStaticAndSmall()
    {
        var head = await RunAsync("readelf", "--file-header", "--program-headers", Binary);
        Assert.Contains(IsArm ? "X86-64" : "AArch64", head, Ordinal);
        Assert.DoesNotContain("INTERP", head, Ordinal);
        Assert.InRange(new FileInfo(Binary).Length, 1, 19_500_000);
    }

    [Fact]
    public async Task TakesAWebhookAnswersAQuestionAndStops()
    {
        Assert.Equal(await RunAsync(SesProcess.Binary, "--version"), await RunAsync(Emulator, Binary, "--version"));
        var port = FreePort.Next();
        await using var ses = ChildProcess.Start(Emulator, [Binary, "--port", $"{port}", "--address", "127.0.0.1",
            "--data-dir", _dir, "--onix-url", "none"], SesProcess.Unset);
        using var client = new HttpClient { BaseAddress = new Uri($"http://127.0.0.1:{port}/") };
        await EtcdOutageEndToEndTests.TakeAsync(ses, client, Soon);
        ses.Kill(Signal.Terminate);
        Assert.True(await ses.ExitAsync(Soon) == 0, ses.Output);
        Assert.Contains("everything that was acknowledged is on disk", ses.Output, Ordinal);
        // What one architecture wrote, the other reads.
        Assert.Equal(14, StoreFiles.Changes(_dir).Count);
        Assert.Contains("etcd", await RunAsync(SesProcess.Binary, "history", "--data-dir", _dir), Ordinal);
    }

    [Fact]
    public async Task PackageAndImageAreOfThatArchitecture()
    {
        await MakeAsync("deb");
        var package = Directory.GetFiles(Out, "ses_*.deb").Single();
        Assert.Equal(Arch + "\n", await RunAsync("dpkg-deb", "--field", package, "Architecture"));
        Assert.DoesNotContain("E: ", await RunAsync("lintian", "--allow-root", package), Ordinal);
        await RunAsync("dpkg-deb", "--extract", package, _dir);
        Assert.Equal(File.ReadAllBytes(Binary), File.ReadAllBytes(_dir + "/usr/bin/ses"));

        await MakeAsync("image");
        var image = Directory.GetFiles(Out, "ses-*.oci.tar").Single();
        Assert.Contains($"\"Architecture\": \"{Arch}\"", await RunAsync("skopeo", "inspect", $"oci-archive:{image}"), Ordinal);
    }
}
