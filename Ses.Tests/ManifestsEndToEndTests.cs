using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>The files in <c>deploy/</c> for others' programs are such as these programs take.</summary>
[Trait("Category", "E2E")]
public sealed partial class ManifestsEndToEndTests
{
    private static string Deploy => Path.Combine(Project.Folder, "deploy");

    private static async Task<(int Code, string Output)> RunAsync(string program, params string[] arguments)
    {
        await using var run = ChildProcess.Start(program, arguments, folder: Deploy);
        return (await run.ExitAsync(TimeSpan.FromMinutes(1)), run.Output);
    }

    private static Task<(int Code, string Output)> ValidateAsync(string compose, string kubernetes) =>
        RunAsync("node", Path.Combine(Project.Folder, "Ses.Tests/manifests/validate.mjs"), compose, kubernetes);

    [Fact]
    public async Task ManifestsFitTheirSchemas()
    {
        Assert.Equal((0, "0 faults\n"), await ValidateAsync("compose.yaml", "kubernetes.yaml"));
        var dir = Directory.CreateTempSubdirectory("ses-manifests-").FullName;
        var (compose, kubernetes) = (Path.Combine(dir, "compose.yaml"), Path.Combine(dir, "kubernetes.yaml"));
        File.WriteAllText(compose, Read("compose.yaml").Replace("read_only:", "read_onli:", Ordinal));
        File.WriteAllText(kubernetes, Read("kubernetes.yaml").Replace("runAsNonRoot:", "runAsNonroot:", Ordinal)
            .Replace("replicas: 1", "replicas: one", Ordinal));
        var (code, output) = await ValidateAsync(compose, kubernetes);
        Directory.Delete(dir, recursive: true);
        Assert.Equal(1, code);
        Assert.Contains("read_onli", output, Ordinal);
        Assert.Contains("runAsNonroot is no known field", output, Ordinal);
        Assert.Contains("/spec/replicas", output, Ordinal);
    }

    [Theory, InlineData("compose.yaml"), InlineData("kubernetes.yaml")]
    public void ManifestsFitSesAndItsImage(string file)
    {
        var (text, image) = (Read(file), File.ReadAllText(Path.Combine(Project.Folder, "Dockerfile")));
        var named = Variable().Matches(text).Select(m => m.Value).ToList();
        Assert.NotEmpty(named);
        Assert.Equal([], named.Except(Options.Settings.Select(s => s.Variable)));
        Assert.Contains("8888", text, Ordinal);
        Assert.Contains("EXPOSE 8888\n", image, Ordinal);
        Assert.Contains("/data", text, Ordinal);
        Assert.Contains("VOLUME /data\n", image, Ordinal);
        Assert.True(file == "compose.yaml" || text.Contains("runAsUser: 65532", Ordinal));
        Assert.Contains("USER 65532:65532\n", image, Ordinal);
        // As the README has it built.
        Assert.Contains("image: ses\n", text, Ordinal);
    }

    [Fact]
    public async Task RulesAndRoutesAreTakenByTheirPrograms()
    {
        var rules = await RunAsync("promtool", "check", "rules", "rules-etcd.yml", "rules-job.yml", "rules-ses.yml", "rules-watchdog.yml");
        Assert.True(rules.Code == 0, rules.Output);
        var tests = await RunAsync("promtool", "test", "rules", "rules-job_test.yml", "rules-all_test.yml");
        Assert.True(tests.Code == 0, tests.Output);
        var config = await RunAsync("promtool", "check", "config", "prometheus.yml");
        Assert.True(config.Code == 0, config.Output);
        var alertmanager = await RunAsync("amtool", "check-config", "alertmanager.yml");
        Assert.True(alertmanager.Code == 0, alertmanager.Output);
    }

    /// <summary>SeS hears of everything, and people of what they heard before, but not of what is up.</summary>
    [Theory]
    [InlineData("ses,people", "alertname=InstanceDown", "job=web")]
    [InlineData("ses,people", "service=etcd", "status=down")]
    [InlineData("ses", "service=etcd", "status=up")]
    public async Task AlertsAreRoutedToSesAndToPeople(string receivers, params string[] labels)
    {
        var (code, output) = await RunAsync(
            "amtool", ["config", "routes", "test", "--config.file=alertmanager.yml", .. labels]);
        Assert.Equal(0, code);
        Assert.Contains(receivers, output.Split('\n'));
    }

    private static string Read(string file) => File.ReadAllText(Path.Combine(Deploy, file));

    [GeneratedRegex("OXSES_[A-Z_]+")]
    private static partial Regex Variable();
}
