using System.Globalization;
using System.Net.Http.Json;
using System.Text.Json;

namespace Ses.Tests.Support;

/// <summary>Real Alertmanagers, one or a clustered pair, that send to one webhook.</summary>
internal sealed class Alertmanagers : IAsyncDisposable
{
    private static readonly TimeSpan ReadyWithin = TimeSpan.FromSeconds(60);

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-alertmanagers-").FullName;
    private readonly HttpClient _client = new() { Timeout = TimeSpan.FromSeconds(10) };
    private readonly List<ChildProcess> _children = [];
    private int[] _ports = [];

    /// <summary>Where each listens on 127.0.0.1.</summary>
    public IReadOnlyList<int> Ports => _ports;

    private string Config => Path.Combine(_dir, "alertmanager.yml");

    /// <param name="http">Lines of <c>http_config</c>, in YAML's flow style.</param>
    public static async Task<Alertmanagers> StartAsync(int count, Uri webhook, string http = "{}")
    {
        var alertmanagers = new Alertmanagers();
        try
        {
            await alertmanagers.RunAsync(count, webhook, http);
            return alertmanagers;
        }
        catch
        {
            await alertmanagers.DisposeAsync();
            throw;
        }
    }

    private async Task RunAsync(int count, Uri webhook, string http)
    {
        _ports = [.. Enumerable.Range(0, count).Select(_ => FreePort.Next())];
        int[] gossip = [.. _ports.Select(_ => FreePort.Next())];
        await ConfigureAsync(webhook, http);
        for (var i = 0; i < count; i++)
        {
            string[] cluster = count == 1 ? ["--cluster.listen-address="] :
            [
                $"--cluster.listen-address=127.0.0.1:{gossip[i]}",
                $"--cluster.advertise-address=127.0.0.1:{gossip[i]}",
                $"--cluster.peer=127.0.0.1:{gossip[count - 1 - i]}", "--cluster.peer-timeout=1s",
                "--cluster.settle-timeout=5s",
            ];
            _children.Add(ChildProcess.Start(EtcdRig.AlertmanagerProgram(),
            [
                $"--config.file={Config}", $"--storage.path={Path.Combine(_dir, $"data-{i}")}",
                $"--web.listen-address=127.0.0.1:{_ports[i]}", "--log.level=warn", .. cluster,
            ], folder: _dir));
        }
        await Wait.UntilAsync(async () =>
        {
            if (_children.Find(c => c.HasExited) is { } ended)
                throw new InvalidOperationException($"{ended} ended:\n{ended.Output}");
            foreach (var port in _ports)
            {
                if (!await IsReadyAsync(port, count))
                    return false;
            }
            return true;
        }, ReadyWithin, "the Alertmanagers");
    }

    private async Task<bool> IsReadyAsync(int port, int count)
    {
        try
        {
            var status = await _client.GetFromJsonAsync<JsonElement>($"http://127.0.0.1:{port}/api/v2/status");
            var cluster = status.GetProperty("cluster");
            return count == 1 || (cluster.GetProperty("status").GetString() == "ready"
                && cluster.GetProperty("peers").GetArrayLength() == count);
        }
        catch (Exception e) when (e is HttpRequestException or TaskCanceledException)
        {
            // Not yet there, or too busy to answer in time.
            return false;
        }
    }

    /// <summary>Writes the configuration; those that run take it with <see cref="ReloadAsync"/>.</summary>
    public Task ConfigureAsync(Uri webhook, string http) => File.WriteAllTextAsync(Config, $"""
        route:
          receiver: ses
          group_by: [alertname]
          group_wait: 1s
          group_interval: 1s
          repeat_interval: 1h
        receivers:
        - name: ses
          webhook_configs:
          - url: "{webhook}"
            http_config: {http}

        """);

    public async Task ReloadAsync()
    {
        foreach (var port in _ports)
        {
            using var answer = await _client.PostAsync($"http://127.0.0.1:{port}/-/reload", null);
            answer.EnsureSuccessStatusCode();
        }
    }

    /// <summary>Tells all of them of an alert that fires from now on.</summary>
    public async Task SendAlertAsync(string name)
    {
        object[] alerts =
        [
            new
            {
                labels = new { alertname = name, job = "told", instance = name },
                startsAt = DateTime.UtcNow.ToString("O", CultureInfo.InvariantCulture),
            },
        ];
        foreach (var port in _ports)
        {
            using var answer = await _client.PostAsJsonAsync($"http://127.0.0.1:{port}/api/v2/alerts", alerts);
            answer.EnsureSuccessStatusCode();
        }
    }

    /// <summary>A counter of the webhook's notifications, of all of them together.</summary>
    public async Task<double> SumAsync(string metric)
    {
        var sum = 0.0;
        foreach (var port in _ports)
        {
            var text = await _client.GetStringAsync($"http://127.0.0.1:{port}/metrics");
            sum += text.Split('\n')
                .Where(l => l.StartsWith(metric + "{", StringComparison.Ordinal)
                    && l.Contains("integration=\"webhook\"", StringComparison.Ordinal))
                .Sum(l => double.Parse(l[(l.LastIndexOf(' ') + 1)..], CultureInfo.InvariantCulture));
        }
        return sum;
    }

    public string Output => string.Join('\n', _children.Select(c => c.Output));

    public async ValueTask DisposeAsync()
    {
        foreach (var child in _children)
            await child.DisposeAsync();
        _client.Dispose();
        Directory.Delete(_dir, recursive: true);
    }
}
