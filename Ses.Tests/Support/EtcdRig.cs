using System.Net.Http.Json;
using System.Text.Json;

namespace Ses.Tests.Support;

/// <summary>
/// What SeS is made for, run for real: three etcd nodes, a Prometheus that scrapes and judges them each
/// second by <c>Data/etcd-outage/rules.yml</c>, and two clustered Alertmanagers that tell the receivers.
/// All on 127.0.0.1, in a temporary folder that goes with it.
/// </summary>
internal sealed class EtcdRig : IAsyncDisposable
{
    // The longest of all starts is that of a cluster of Alertmanagers: it settles for some seconds.
    private static readonly TimeSpan ReadyWithin = TimeSpan.FromSeconds(60);

    private readonly HttpClient _client = new() { Timeout = TimeSpan.FromSeconds(5) };
    private readonly string _dir = Directory.CreateTempSubdirectory("ses-rig-").FullName;
    private readonly Node[] _nodes = [.. Enumerable.Range(1, 3).Select(
        i => new Node($"n{i}", FreePort.Next(), FreePort.Next()))];
    private readonly ChildProcess?[] _running = new ChildProcess?[3];
    private readonly List<ChildProcess> _watchers = [];

    private EtcdRig()
    {
    }

    private sealed record Node(string Name, int ClientPort, int PeerPort);

    /// <summary>The nodes as Prometheus names them, <c>127.0.0.1:PORT</c>, by their index.</summary>
    public IReadOnlyList<string> Instances => [.. _nodes.Select(n => $"127.0.0.1:{n.ClientPort}")];

    /// <summary>What all the programs wrote; for the message of a failure.</summary>
    public string Output => string.Join("\n", _running.OfType<ChildProcess>().Concat(_watchers)
        .Select(child => $"=== {child}\n{child.Output}"));

    /// <summary>
    /// Starts all and waits until each is ready, Prometheus last, so that it sees no node down at first.
    /// </summary>
    /// <param name="repeat">After how long an Alertmanager tells again what still fires.</param>
    /// <param name="receivers">Webhooks, each told everything.</param>
    /// <exception cref="TimeoutException">One of the programs is not there after a minute.</exception>
    public static async Task<EtcdRig> StartAsync(TimeSpan repeat, params Uri[] receivers)
    {
        var rig = new EtcdRig();
        try
        {
            for (var i = 0; i < rig._nodes.Length; i++)
                rig.StartNode(i);
            var alertmanagers = rig.StartAlertmanagersAsync(repeat, receivers);
            await Task.WhenAll(
                [alertmanagers, rig.NodeReadyAsync(0), rig.NodeReadyAsync(1), rig.NodeReadyAsync(2)]);
            await rig.StartPrometheusAsync(await alertmanagers);
            return rig;
        }
        catch
        {
            await rig.DisposeAsync();
            throw;
        }
    }

    /// <summary>Ends a node with SIGKILL.</summary>
    public void KillNode(int index) => _running[index]!.Kill(Signal.Kill);

    /// <summary>Starts a node again on its data; waits until it serves, which takes a quorum.</summary>
    public async Task RestartNodeAsync(int index)
    {
        await _running[index]!.DisposeAsync();
        StartNode(index);
        await NodeReadyAsync(index);
    }

    public async ValueTask DisposeAsync()
    {
        foreach (var child in _running.OfType<ChildProcess>().Concat(_watchers))
            await child.DisposeAsync();
        _client.Dispose();
        Directory.Delete(_dir, recursive: true);
    }

    private void StartNode(int index)
    {
        var node = _nodes[index];
        var client = $"http://127.0.0.1:{node.ClientPort}";
        var peer = $"http://127.0.0.1:{node.PeerPort}";
        _running[index] = ChildProcess.Start("etcd",
        [
            "--name", node.Name, "--data-dir", Path.Combine(_dir, node.Name),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster",
            string.Join(',', _nodes.Select(n => $"{n.Name}=http://127.0.0.1:{n.PeerPort}")),
            "--initial-cluster-state", "new", "--initial-cluster-token", Path.GetFileName(_dir),
            "--log-level", "warn", "--logger", "zap",
        ], folder: _dir);
    }

    private Task NodeReadyAsync(int index) => ReadyAsync(_running[index]!,
        $"http://{Instances[index]}/health", answer => answer.GetProperty("health").GetString() == "true");

    /// <returns>The ports that they listen on.</returns>
    private async Task<int[]> StartAlertmanagersAsync(TimeSpan repeat, Uri[] receivers)
    {
        int[] web = [FreePort.Next(), FreePort.Next()], gossip = [FreePort.Next(), FreePort.Next()];
        var config = Path.Combine(_dir, "alertmanager.yml");
        await File.WriteAllTextAsync(config, AlertmanagerConfig(repeat, receivers));
        ChildProcess[] pair =
        [
            StartAlertmanager(config, web[0], gossip[0], gossip[1]),
            StartAlertmanager(config, web[1], gossip[1], gossip[0]),
        ];
        await Task.WhenAll(pair.Zip(web, (child, port) =>
            ReadyAsync(child, $"http://127.0.0.1:{port}/api/v2/status", HasPeer)));
        return web;

        static bool HasPeer(JsonElement answer) => answer.GetProperty("cluster") is var cluster
            && cluster.GetProperty("status").GetString() == "ready"
            && cluster.GetProperty("peers").GetArrayLength() == 2;
    }

    /// <remarks>
    /// The second one waits for 2 s (usually 15) for word that the first has delivered, before it does so.
    /// </remarks>
    private ChildProcess StartAlertmanager(string config, int web, int gossip, int peer)
    {
        var child = ChildProcess.Start(AlertmanagerProgram(),
        [
            $"--config.file={config}", $"--storage.path={Path.Combine(_dir, $"alertmanager-{web}")}",
            $"--web.listen-address=127.0.0.1:{web}", $"--cluster.listen-address=127.0.0.1:{gossip}",
            $"--cluster.advertise-address=127.0.0.1:{gossip}", $"--cluster.peer=127.0.0.1:{peer}",
            "--cluster.peer-timeout=2s", "--cluster.settle-timeout=10s", "--log.level=warn",
        ], folder: _dir);
        _watchers.Add(child);
        return child;
    }

    private async Task StartPrometheusAsync(int[] alertmanagers)
    {
        var config = Path.Combine(_dir, "prometheus.yml");
        await File.WriteAllTextAsync(config, PrometheusConfig(alertmanagers));
        var port = FreePort.Next();
        var child = ChildProcess.Start("prometheus",
        [
            $"--config.file={config}", $"--storage.tsdb.path={Path.Combine(_dir, "prometheus")}",
            $"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
        ], folder: _dir);
        _watchers.Add(child);
        await ReadyAsync(child, $"http://127.0.0.1:{port}/api/v1/alertmanagers", answer =>
            answer.GetProperty("data").GetProperty("activeAlertmanagers").GetArrayLength()
                == alertmanagers.Length);
    }

    private string PrometheusConfig(int[] alertmanagers) => $"""
        global: {"{"}scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s{"}"}
        rule_files: ["{Path.Combine(AppContext.BaseDirectory, "Data", "etcd-outage", "rules.yml")}"]
        alerting:
          alertmanagers:
          - static_configs:
            - targets: [{Quoted(alertmanagers.Select(port => $"127.0.0.1:{port}"))}]
        scrape_configs:
        - job_name: etcd
          static_configs:
          - targets: [{Quoted(Instances)}]

        """;

    private static string AlertmanagerConfig(TimeSpan repeat, Uri[] receivers) => $"""
        route:
          receiver: ses
          group_by: [service, alertname]
          group_wait: 1s
          group_interval: 3s
          repeat_interval: {repeat.TotalSeconds:F0}s
        receivers:
        - name: ses
          webhook_configs:
        {string.Join('\n', receivers.Select(url => $"  - url: \"{url}\""))}

        """;

    private static string Quoted(IEnumerable<string> texts) =>
        string.Join(", ", texts.Select(t => $"\"{t}\""));

    /// <summary>Debian calls it prometheus-alertmanager, everybody else alertmanager.</summary>
    internal static string AlertmanagerProgram() =>
        (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':')
            .Any(dir => File.Exists(Path.Combine(dir, "prometheus-alertmanager")))
        ? "prometheus-alertmanager" : "alertmanager";

    private Task ReadyAsync(ChildProcess child, string url, Func<JsonElement, bool> ready)
    {
        return Wait.UntilAsync(AskAsync, ReadyWithin, $"{child} at {url}");

        async Task<bool> AskAsync()
        {
            if (child.HasExited)
                throw new InvalidOperationException($"{child} ended:\n{child.Output}");
            try
            {
                return ready(await _client.GetFromJsonAsync<JsonElement>(url));
            }
            catch (Exception e) when (e is HttpRequestException or TaskCanceledException)
            {
                // Not yet there, or too busy to answer in time.
                return false;
            }
        }
    }
}
