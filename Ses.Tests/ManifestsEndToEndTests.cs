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

    private static Task<(int Code, string Output)> ValidateAsync(string folder) =>
        RunAsync("node", Path.Combine(Project.Folder, "Ses.Tests/manifests/validate.mjs"), folder);

    /// <summary>What is said of <c>deploy/</c> with changes, each of which has to change something.</summary>
    private static async Task<(int Code, string Output)> ValidateAsync(
        params (string File, string Old, string New)[] changes)
    {
        var dir = Directory.CreateTempSubdirectory("ses-manifests-").FullName;
        try
        {
            foreach (var file in Directory.GetFiles(Deploy, "*.y*ml"))
                File.Copy(file, Path.Combine(dir, Path.GetFileName(file)));
            foreach (var (file, old, @new) in changes)
            {
                var text = File.ReadAllText(Path.Combine(dir, file));
                Assert.Contains(old, text, Ordinal);
                File.WriteAllText(Path.Combine(dir, file), text.Replace(old, @new, Ordinal));
            }
            return await ValidateAsync(dir);
        }
        finally
        {
            Directory.Delete(dir, recursive: true);
        }
    }

    /// <summary>The workflows call targets that there are.</summary>
    [Fact]
    public async Task WorkflowsAndIssueFormsAreSuchAsGitHubTakes() => Assert.Equal((0, "0 faults\n"), await RunAsync("node",
        Path.Combine(Project.Folder, "Ses.Tests/manifests/github.mjs"), Project.Folder));

    [Fact]
    public async Task ManifestsFitTheirSchemasAndEachOther()
    {
        Assert.Equal((0, "0 faults\n"), await ValidateAsync(Deploy));
        var (code, output) = await ValidateAsync(("compose.yaml", "read_only:", "read_onli:"),
            ("kubernetes.yaml", "runAsNonRoot:", "runAsNonroot:"), ("kubernetes.yaml", "replicas: 2", "replicas: two"),
            ("kubernetes.yaml", "maxUnavailable: 1", "maxUnavailible: 1"));
        Assert.Equal(1, code);
        Assert.Contains("read_onli", output, Ordinal);
        Assert.Contains("runAsNonroot is no known field", output, Ordinal);
        Assert.Contains("maxUnavailible is no known field", output, Ordinal);
        Assert.Contains("/spec/replicas", output, Ordinal);
    }

    /// <summary>The rules find both replicas, ready or not, and each of them once.</summary>
    [Theory]
    [InlineData("replicas: 2", "replicas: 1", "the StatefulSet has 2 replicas")]
    [InlineData("podManagementPolicy: Parallel", "podManagementPolicy: OrderedReady",
        "no replica waits for another one")]
    [InlineData("mountPath: /data", "mountPath: /elsewhere", "each replica has a volume for /data")]
    [InlineData("kubernetes.io/hostname", "topology.kubernetes.io/zone",
        "the replicas are on different hosts if possible")]
    [InlineData("maxUnavailable: 1", "maxUnavailable: 2", "one pod at a time may be unavailable")]
    [InlineData("  podSelector:\n    matchLabels: {app.kubernetes.io/name: ses}",
        "  podSelector:\n    matchLabels: {app.kubernetes.io/name: ses-0}", "NetworkPolicy selects the pods")]
    [InlineData("                matchLabels: {app.kubernetes.io/name: ses}",
        "                matchLabels: {app: ses}", "podAntiAffinity selects the pods")]
    [InlineData("name: ses, app.kubernetes.io/component: alerts}\n  endpoints", "name: ses}\n  endpoints",
        "the ServiceMonitor selects one Service, not 4")]
    [InlineData("component: read", "component: alerts", "the ServiceMonitor selects one Service, not 2")]
    [InlineData("name: ses, app.kubernetes.io/component: alerts}\n  endpoints", "name: ses-0}\n  endpoints",
        "the ServiceMonitor selects one Service, not 0")]
    [InlineData("  clusterIP: None\n", "", "Service ses is headless")]
    [InlineData("  publishNotReadyAddresses: true\n", "", "Service ses has pods that are not ready, too")]
    [InlineData("serviceName: ses", "serviceName: ses-read", "Service ses is the StatefulSet's serviceName")]
    [InlineData("  name: ses\n  labels: {app.kubernetes.io/name: ses, app",
        "  name: ses-a\n  labels: {app.kubernetes.io/name: ses, app",
        "the job is ses, as rules-ses.yml has it")]
    [InlineData("targetLabel: instance", "targetLabel: job", "the ServiceMonitor leaves the job alone")]
    [InlineData("- port: http\n    path", "- port: metrics\n    path",
        "Service ses has the port metrics of the ServiceMonitor")]
    [InlineData("ses-1.ses.ses.svc", "ses-2.ses.ses.svc", "the manifest has the url of replica 1")]
    [InlineData("  sessionAffinity: ClientIP\n", "  publishNotReadyAddresses: true\n",
        "people have one Service of their own, with pods that are ready")]
    [InlineData("name: http, containerPort", "name: web, containerPort", "Service ses: the pods have the port http")]
    [InlineData("    - {port: http}\n", "    - {port: web}\n", "the NetworkPolicy lets some in, to ports of the pods")]
    [InlineData("livenessProbe:\n          httpGet: {path: /live", "livenessProbe:\n          httpGet: {path: /ready",
        "livenessProbe asks for /live")]
    [InlineData("          failureThreshold: 6\n", "", "livenessProbe says how often, how long and how many times")]
    [InlineData("ses, statefulset.kubernetes.io/pod-name: ses-1}", "ses, statefulset.kubernetes.io/pod-name: ses-0}",
        "the peer of ses-0 is the other pod")]
    [InlineData("ses, statefulset.kubernetes.io/pod-name: ses-0}", "ses}", "the peer of ses-1 is the other pod")]
    [InlineData("name: peer-of-ses-1", "name: peer-of-ses-2", "the peer of ses-1 is the other pod")]
    [InlineData("http://peer-of-$(POD_NAME):8888", "http://ses:8888", "the peer of ses-0 is the other pod")]
    [InlineData("component: peer}\nspec:\n  publishNotReadyAddresses: true\n", "component: peer}\nspec:\n",
        "the peer of ses-0 is reached before it is ready, too")]
    [InlineData("$(POD_NAME):8888", "$(POD_NAME):8880", "the peer of ses-1 has the port 8880")]
    [InlineData("fieldPath: metadata.name", "fieldPath: metadata.uid", "POD_NAME is known before OXSES_PEER")]
    [InlineData("  import-password: change-me\n", "", "there is an import-password")]
    [InlineData("/secrets/import-password", "/secrets/password", "each pod brings its facts as the importer")]
    [InlineData("        - {name: OXSES_PEER_PASSWORD_FILE, value: /secrets/import-password}\n", "",
        "each pod brings its facts as the importer")]
    [InlineData("- {name: secrets, mountPath: /secrets", "- {name: secrets, mountPath: /run/secrets",
        "CREDENTIALS_DIRECTORY has the secrets")]
    [InlineData("  - to:\n    - podSelector:", "  - to:\n    - namespaceSelector:", "the NetworkPolicy lets the pods reach each other")]
    [InlineData("  - from:\n    - podSelector:", "  - from:\n    - namespaceSelector:", "the NetworkPolicy lets the pods reach each other")]
    public Task ReplicasAreTargetsOfTheRules(string old, string @new, string fault) =>
        AssertFaultAsync("kubernetes.yaml", old, @new, fault);

    /// <summary>All that Prometheus asks and tells is there, and one image is built, once.</summary>
    [Theory]
    [InlineData("compose.yaml", "  image: ses\n", "  build: ..\n  image: ses\n", "one service has a build, not 2")]
    [InlineData("compose.yaml", "    build: ..\n", "", "one service has a build, not 0")]
    [InlineData("compose.yaml", "pull_policy: never", "pull_policy: missing", "ses-2 is not pulled")]
    [InlineData("compose.yaml", "    depends_on: [ses-1]", "   ", "ses-2 waits for the image")]
    [InlineData("compose.yaml", "hostname: ses-2", "hostname: ses-1", "ses-2 is its host's name")]
    [InlineData("compose.yaml", "OXSES_PEER: \"http://ses-2:8888\"", "OXSES_PEER: \"http://ses-1:8888\"",
        "the peer of ses-1 is the other one")]
    [InlineData("compose.yaml", ", OXSES_PEER: \"http://ses-1:8888\"", "", "the peer of ses-2 is the other one")]
    [InlineData("compose.yaml", "secrets: [password, import-password]", "secrets: [password]", "ses-1 has the import-password")]
    [InlineData("compose.yaml", "  import-password:\n    file: ./import-password\n", "", "ses-2 has the import-password")]
    [InlineData("compose.yaml", "  OXSES_PEER_USERNAME: import\n", "", "ses-1 brings its facts as the importer")]
    [InlineData("compose.yaml", "/run/secrets/import-password", "/run/secrets/password", "ses-2 brings its facts as the importer")]
    [InlineData("compose.yaml", "./rules-job.yml", "./rules-etcd.yml", "rules-job.yml is mounted")]
    [InlineData("compose.yaml", "  alertmanager-2:\n", "  alertmanager-3:\n",
        "alertmanager-2:9093 is a service of compose.yaml")]
    [InlineData("prometheus.yml", "prometheus:9090", "n1:2379", "n1:2379 is a service of compose.yaml")]
    [InlineData("prometheus.yml", "prometheus:9090", "ses-1:8888", "prometheus is scraped")]
    [InlineData("prometheus.yml", "job_name: ses", "job_name: status", "the job ses has both SeS")]
    [InlineData("prometheus.yml", "rules-watchdog.yml]", "rules-watchdog.yml, rules-own.yml]",
        "rules-own.yml is mounted")]
    [InlineData("alertmanager.yml", "http://ses-2:8888", "http://ses-1:8888", "Alertmanager tells both SeS")]
    public Task FirstSightIsWhatExists(string file, string old, string @new, string fault) =>
        AssertFaultAsync(file, old, @new, fault);

    /// <summary>The job that is a comment is one that Prometheus takes, without its comment signs.</summary>
    [Fact]
    public async Task ExampleOfAJobIsOne()
    {
        var (_, output) = await ValidateAsync(
            ("prometheus.yml", "\n#- ", "\n- "), ("prometheus.yml", "\n#  ", "\n  "));
        Assert.Equal([.. Enumerable.Range(1, 3).Select(i => $"n{i}:2379 is a service of compose.yaml"), "3 faults", ""],
            output.Split('\n'));
    }

    private static async Task AssertFaultAsync(string file, string old, string @new, string fault)
    {
        var (code, output) = await ValidateAsync((file, old, @new));
        Assert.Equal(1, code);
        Assert.Contains(fault, output.Split('\n'));
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
        var rules = await RunAsync("promtool", "check", "rules", "rules-etcd.yml", "rules-job.yml", "rules-ses.yml", "rules-watchdog.yml", "rules-whole.yml");
        Assert.True(rules.Code == 0, rules.Output);
        var tests = await RunAsync("promtool", "test", "rules", "rules-job_test.yml", "rules-all_test.yml", "rules-whole_test.yml");
        Assert.True(tests.Code == 0, tests.Output);
        var config = await RunAsync("promtool", "check", "config", "prometheus.yml");
        Assert.True(config.Code == 0, config.Output);
        var alertmanager = await RunAsync("amtool", "check-config", "alertmanager.yml");
        Assert.True(alertmanager.Code == 0, alertmanager.Output);
    }

    /// <summary>What the README has Prometheus configured with.</summary>
    [Fact]
    public async Task LineOfTheReadmeIsTakenByPrometheus()
    {
        var file = Path.GetTempFileName();
        try
        {
            await File.WriteAllLinesAsync(file, DocsPage.Readme.CodeOf("Connect Prometheus", "yaml"));
            var (code, output) = await RunAsync("promtool", "check", "config", file);
            Assert.True(code == 0, output);
        }
        finally
        {
            File.Delete(file);
        }
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
