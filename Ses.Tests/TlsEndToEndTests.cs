using System.Globalization;
using System.Net.Http.Json;
using System.Security.Authentication;
using System.Text;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;
using Xunit.Abstractions;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>The programs that talk to SeS get through its TLS, also while its certificate changes.</summary>
[Trait("Category", "E2E")]
public sealed class TlsEndToEndTests : IDisposable
{
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);

    /// <summary>Files are looked at each 10 s.</summary>
    private static readonly TimeSpan Reread = TimeSpan.FromSeconds(40);

    private readonly ITestOutputHelper _output;
    private readonly Authority _root = Authority.Root();
    private readonly Identity _server;
    private readonly string _dir = Directory.CreateTempSubdirectory("ses-tls-e2e-").FullName;
    private readonly string _ca, _cert, _key, _clientCert, _clientKey;

    public TlsEndToEndTests(ITestOutputHelper output)
    {
        _output = output;
        _ca = Path.Combine(_dir, "ca.pem");
        File.WriteAllText(_ca, _root.Pem);
        _server = _root.Issue();
        (_cert, _key) = _server.Write(_dir, "server");
        (_clientCert, _clientKey) = _root.Issue("alertmanager", Purpose.Client).Write(_dir, "client");
    }

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    private string[] Secure => ["--tls-cert", _cert, "--tls-key", _key];

    private string[] SecureForClients => [.. Secure, "--tls-client-ca", _ca];

    private static string Alert(string instance) =>
        "{\"version\":\"4\",\"alerts\":[{\"status\":\"firing\","
        + $"\"startsAt\":\"{DateTime.UtcNow:O}\",\"labels\":"
        + $"{{\"alertname\":\"Down\",\"job\":\"j\",\"instance\":\"{instance}\"}}}}]}}";

    private static async Task<double> MetricAsync(SesProcess ses, string name)
    {
        var text = await ses.Client.GetStringAsync("metrics");
        var line = text.Split('\n').First(l => l.StartsWith(name + " ", Ordinal));
        return double.Parse(line.AsSpan(name.Length + 1), CultureInfo.InvariantCulture);
    }

    // ---- curl ----

    [Theory]
    [InlineData("--tls-max", "1.2")]
    [InlineData("--tlsv1.3")]
    [InlineData("--http1.1")]
    [InlineData("--http2")]
    public async Task CurlPostsAnAlertWithAClientCertificate(params string[] how)
    {
        await using var ses = await SesProcess.StartAsync("none", extra: SecureForClients);
        var (code, answer) = await CurlAsync(ses,
            ["--cacert", _ca, "--cert", _clientCert, "--key", _clientKey, .. how]);
        Assert.Equal((0, "204"), (code, answer));
        Assert.Single(StoreFiles.Changes(ses.DataDir));
    }

    [Fact]
    public async Task CurlIsRefusedWithoutARightCertificateAndRefusesAWrongOne()
    {
        var otherCa = Path.Combine(_dir, "other.pem");
        File.WriteAllText(otherCa, Authority.Root("Other").Pem);
        await using var ses = await SesProcess.StartAsync("none", extra: SecureForClients);
        foreach (var arguments in new string[][]
        {
            ["--cacert", _ca],
            ["--cacert", _ca, "--tls-max", "1.2"],
            ["--cacert", _ca, "--cert", _cert, "--key", _key],
            ["--cacert", otherCa, "--cert", _clientCert, "--key", _clientKey],
        })
        {
            var before = await MetricAsync(ses, "ses_http_refused_total{reason=\"handshake\"}");
            Assert.NotEqual(0, (await CurlAsync(ses, arguments)).Code);
            await Wait.UntilAsync(async () => await MetricAsync(
                ses, "ses_http_refused_total{reason=\"handshake\"}") == before + 1, Soon,
                "the failure to be counted: " + string.Join(' ', arguments));
        }
        Assert.Empty(StoreFiles.Changes(ses.DataDir));
        Assert.Single(ses.Child.Output.Split('\n'), l => l.Contains("a TLS handshake failed", Ordinal));
    }

    /// <summary>Handshakes in finite fields cost 200 times as much; CBC suites leak.</summary>
    [Theory]
    [InlineData(true, "--curves", "X25519")]
    [InlineData(true, "--curves", "P-256")]
    [InlineData(true, "--curves", "P-384")]
    [InlineData(true, "--tls-max", "1.2", "--ciphers", "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES256-GCM-SHA384")]
    [InlineData(false, "--curves", "ffdhe2048")]
    [InlineData(false, "--curves", "ffdhe8192")]
    [InlineData(false, "--tls-max", "1.2", "--ciphers", "ECDHE-RSA-AES128-SHA:ECDHE-ECDSA-AES128-SHA")]
    [InlineData(false, "--tls-max", "1.2", "--ciphers", "AES128-GCM-SHA256:DHE-RSA-AES128-GCM-SHA256")]
    public async Task HandshakesAreCheapAndTheirCiphersSound(bool isTaken, params string[] how)
    {
        await using var ses = await SesProcess.StartAsync("none", extra: SecureForClients);
        var (code, answer) = await CurlAsync(
            ses, ["--cacert", _ca, "--cert", _clientCert, "--key", _clientKey, .. how]);
        Assert.Equal(isTaken ? (0, "204") : (35, "000"), (code, answer));
    }

    private static async Task<(int Code, string Answer)> CurlAsync(SesProcess ses, string[] arguments)
    {
        await using var curl = ChildProcess.Start("curl",
        [
            "--silent", "--max-time", "30", "--output", "/dev/null", "--write-out", "%{http_code}", "--data",
            Alert("n1"), .. arguments, $"https://localhost:{ses.Port}/alerts/INS",
            "--resolve", $"localhost:{ses.Port}:127.0.0.1",
        ]);
        return (await curl.ExitAsync(Soon), curl.Output.Trim());
    }

    // ---- Alertmanager ----

    /// <summary>Requests that failed, each of which it repeats.</summary>
    private static Task<double> FailedAsync(Alertmanagers alertmanager) =>
        alertmanager.SumAsync("alertmanager_notification_requests_failed_total");

    /// <summary>
    /// Nothing failed, but for what a machine brings about that stands still: for the 10 s that Alertmanager
    /// gives a delivery, or the 5 s that SeS gives a handshake.
    /// </summary>
    private static async Task NoneFailedAsync(SesProcess ses, Alertmanagers alertmanager, int others = 0)
    {
        var failed = await FailedAsync(alertmanager) + others;
        var late = alertmanager.Output.Split('\n').Count(l => l.Contains("context deadline exceeded", Ordinal))
            + await MetricAsync(ses, "ses_http_refused_total{reason=\"handshake_timeout\"}");
        Assert.True(failed <= late,
            $"{failed} failed; Alertmanager said: {alertmanager.Output}; SeS said: {ses.Child.Output}");
    }

    private string TlsConfig(bool hasClient = true) =>
        $"{{ca_file: {_ca}, server_name: localhost"
        + (hasClient ? $", cert_file: {_clientCert}, key_file: {_clientKey}}}" : "}");

    private static Task ReceivedAsync(SesProcess ses, int count, Alertmanagers alertmanager) => Wait.UntilAsync(
        () => StoreFiles.Changes(ses.DataDir).Count >= count, Soon,
        $"{count} events; Alertmanager said: {alertmanager.Output}; SeS said: {ses.Child.Output}");

    [Fact]
    public async Task AlertmanagerDeliversWithClientCertificateAndPassword()
    {
        await using var ses = await SesProcess.StartAsync("none",
            extra: [.. SecureForClients, "--auth-mode", "basic", "--username", "am", "--password", "s3cret"]);
        await using var right = await Alertmanagers.StartAsync(1, ses.Webhook("INS"),
            $"{{tls_config: {TlsConfig()}, basic_auth: {{username: am, password: s3cret}}}}");
        await using var wrong = await Alertmanagers.StartAsync(1, ses.Webhook("INS"),
            $"{{tls_config: {TlsConfig(hasClient: false)}, basic_auth: {{username: am, password: s3cret}}}}");
        await wrong.SendAlertAsync("wrong");
        await Wait.UntilAsync(async () => await FailedAsync(wrong) > 0, Soon, "a delivery to fail");
        for (var i = 0; i < 10; i++)
            await right.SendAlertAsync($"n{i}");
        await ReceivedAsync(ses, 10, right);
        await NoneFailedAsync(ses, right);
        Assert.DoesNotContain(StoreFiles.Changes(ses.DataDir),
            e => e.Service.Location.Contains("wrong", Ordinal));
    }

    [Theory]
    [InlineData("rewritten")]
    [InlineData("linked")]
    public async Task CertificateIsChangedWhileAlertmanagerDeliversAndNoDeliveryFails(string how)
    {
        if (how == "linked")
            await LinkAsync(_server, "1");
        await using var ses = await SesProcess.StartAsync("none", extra: SecureForClients);
        await using var alertmanager = await Alertmanagers.StartAsync(
            1, ses.Webhook("INS"), $"{{tls_config: {TlsConfig()}}}");
        await using var steady = new Steady(ses.Port, _root.Pem, ClientIdentity);
        var told = 0;
        async Task DeliverUntilAsync(Func<bool> condition, string what)
        {
            await Wait.UntilAsync(async () =>
            {
                await alertmanager.SendAlertAsync($"n{told++}");
                return condition();
            }, Reread, what);
            await ReceivedAsync(ses, told, alertmanager);
        }

        await DeliverUntilAsync(() => steady.Last == _server.Thumbprint, "the first certificate");
        var next = _root.Issue();
        await ChangeAsync(how, next, "2");
        await DeliverUntilAsync(() => steady.Last == next.Thumbprint, "the next certificate");
        await ChangeAsync(how, new Identity(_root.Issue().Certificate, next.Key), "3");
        await DeliverUntilAsync(
            () => ses.Child.Output.Contains("the changed certificate cannot be used", Ordinal), "the bad pair");
        var seen = steady.Count;
        await DeliverUntilAsync(() => steady.Count >= seen + 5, "connections after the bad pair");
        Assert.Equal(next.Thumbprint, steady.Last);
        var last = _root.Issue();
        await ChangeAsync(how, last, "4");
        await DeliverUntilAsync(() => steady.Last == last.Thumbprint, "the last certificate");

        await NoneFailedAsync(ses, alertmanager, steady.Failed);
        Assert.Equal(Enumerable.Range(0, told).Select(i => $"n{i}").Order(StringComparer.Ordinal),
            StoreFiles.Changes(ses.DataDir).Select(e => e.Service.Location).Order(StringComparer.Ordinal));
        Assert.Equal(2, await MetricAsync(ses, "ses_tls_reloads_total{outcome=\"loaded\"}"));
        // Two files that are rewritten may be seen between one and the other.
        Assert.InRange(await MetricAsync(ses, "ses_tls_reloads_total{outcome=\"refused\"}"), 1, 3);
    }

    private Identity ClientIdentity => new(File.ReadAllText(_clientCert), File.ReadAllText(_clientKey));

    private Task ChangeAsync(string how, Identity identity, string generation)
    {
        if (how == "linked")
            return LinkAsync(identity, generation);
        identity.Write(_dir, "server");
        return Task.CompletedTask;
    }

    /// <summary>
    /// As Kubernetes does: the files link into ..data, which links to a folder and is renamed over.
    /// </summary>
    private async Task LinkAsync(Identity identity, string generation)
    {
        identity.Write(Directory.CreateDirectory(Path.Combine(_dir, ".." + generation)).FullName, "server");
        await using var swap = ChildProcess.Start("sh",
            ["-c", $"ln -s ..{generation} ..data_tmp && mv -T ..data_tmp ..data"], folder: _dir);
        Assert.Equal(0, await swap.ExitAsync(Soon));
        foreach (var path in new[] { _cert, _key }.Where(p => new FileInfo(p).LinkTarget == null))
        {
            File.Delete(path);
            File.CreateSymbolicLink(path, Path.Combine("..data", Path.GetFileName(path)));
        }
    }

    /// <summary>Connects anew again and again; each connection must be served.</summary>
    private sealed class Steady : IAsyncDisposable
    {
        private readonly CancellationTokenSource _stop = new();
        private readonly Task _running;
        private volatile string _last = "";
        private volatile int _count, _failed;

        public Steady(int port, string root, Identity identity) => _running = Task.Run(async () =>
        {
            while (!_stop.IsCancellationRequested)
            {
                try
                {
                    using var client = await TlsClient.ConnectAsync(port, root, identity: identity);
                    Assert.Equal(200, (await client.AskAsync("GET", "/live")).Code);
                    (_last, _count) = (client.Thumbprint, _count + 1);
                }
                catch (Exception e) when (e is IOException or AuthenticationException)
                {
                    _failed++;
                }
                await Task.Delay(20);
            }
        });

        /// <summary>Of the certificate that was last served.</summary>
        public string Last => _running.IsFaulted ? throw _running.Exception! : _last;

        public int Count => _count;

        public int Failed => _failed;

        public async ValueTask DisposeAsync()
        {
            await _stop.CancelAsync();
            await _running.WaitAsync(Soon);
        }
    }

    // ---- Prometheus ----

    [Fact]
    public async Task PrometheusScrapesWithClientCertificateAndPassword()
    {
        await using var ses = await SesProcess.StartAsync("none", extra:
        [
            .. SecureForClients, "--metrics-auth", "--auth-mode", "basic", "--username", "prom",
            "--password", "s3cret",
        ]);
        string Job(string name, string tls, string password) => $$"""
            - job_name: {{name}}
              scheme: https
              tls_config: {{tls}}
              basic_auth: {username: prom, password: {{password}}}
              static_configs: [{targets: ["127.0.0.1:{{ses.Port}}"]}]

            """;
        var config = Path.Combine(_dir, "prometheus.yml");
        File.WriteAllText(config, "global: {scrape_interval: 1s}\nscrape_configs:\n"
            + Job("right", TlsConfig(), "s3cret") + Job("no-certificate", TlsConfig(false), "s3cret")
            + Job("no-password", TlsConfig(), "wr0ng"));
        var port = FreePort.Next();
        await using var prometheus = ChildProcess.Start("prometheus",
        [
            $"--config.file={config}", $"--storage.tsdb.path={Path.Combine(_dir, "prometheus")}",
            $"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
        ], folder: _dir);
        using var http = new HttpClient { BaseAddress = new Uri($"http://127.0.0.1:{port}/") };
        var told = "";
        async Task<Dictionary<string, (string Health, string Error)>> TargetsAsync()
        {
            try
            {
                told = await http.GetStringAsync("api/v1/targets");
            }
            catch (HttpRequestException)
            {
                return [];
            }
            using var answer = JsonDocument.Parse(told);
            return answer.RootElement.GetProperty("data").GetProperty("activeTargets").EnumerateArray()
                .ToDictionary(t => t.GetProperty("scrapePool").GetString()!, t => (
                    t.GetProperty("health").GetString()!, t.GetProperty("lastError").GetString()!));
        }

        await Wait.UntilAsync(async () => !prometheus.HasExited
            && await TargetsAsync() is { Count: 3 } targets
            && targets.Values.All(t => t.Health != "unknown"), Soon, "three scrapes");
        var judged = await TargetsAsync();
        Assert.True(judged["right"] == ("up", ""), told);
        Assert.Equal("down", judged["no-certificate"].Health);
        _output.WriteLine("without a certificate Prometheus says: " + judged["no-certificate"].Error);
        Assert.Equal("down", judged["no-password"].Health);
        Assert.Contains("401", judged["no-password"].Error, Ordinal);
        var up = await http.GetStringAsync("api/v1/query?query=ses_ready");
        Assert.Contains("\"job\":\"right\"", up, Ordinal);
    }

    // ---- The start ----

    [Theory]
    [InlineData("expired", "expired on")]
    [InlineData("not yet valid", "is not valid before")]
    [InlineData("for clients", "is not for servers")]
    [InlineData("mismatched", "is not the key of the certificate")]
    [InlineData("missing certificate", "--tls-cert (OXSES_TLS_CERT)")]
    [InlineData("missing key", "--tls-key (OXSES_TLS_KEY)")]
    [InlineData("key is a directory", "--tls-key (OXSES_TLS_KEY)")]
    [InlineData("no key named", "--tls-key (OXSES_TLS_KEY) is needed with --tls-cert (OXSES_TLS_CERT)")]
    [InlineData("empty CA", "--tls-client-ca (OXSES_TLS_CLIENTCA)")]
    [InlineData("broken", "cannot be used")]
    [InlineData("encrypted key", "is encrypted")]
    public async Task UnusableFilesAreOneLineAndExitWithTwo(string what, string says)
    {
        var now = DateTimeOffset.UtcNow;
        var (arguments, identity) = (SecureForClients, _server);
        switch (what)
        {
            case "expired":
                identity = _root.Issue(begins: now.AddDays(-3), ends: now.AddDays(-1));
                break;
            case "not yet valid":
                identity = _root.Issue(begins: now.AddDays(1));
                break;
            case "for clients":
                identity = ClientIdentity;
                break;
            case "mismatched":
                identity = _server with { Key = ClientIdentity.Key };
                break;
            case "broken":
                identity = _root.Issue(purpose: Purpose.Broken);
                break;
            case "encrypted key":
                identity = _server with { Key = _server.EncryptedKey() };
                break;
            case "missing certificate":
                arguments = ["--tls-cert", Path.Combine(_dir, "nowhere.pem"), "--tls-key", _key];
                break;
            case "missing key":
                arguments = ["--tls-cert", _cert, "--tls-key", Path.Combine(_dir, "nowhere.key")];
                break;
            case "key is a directory":
                arguments = ["--tls-cert", _cert, "--tls-key", _dir];
                break;
            case "no key named":
                arguments = ["--tls-cert", _cert];
                break;
            case "empty CA":
                File.WriteAllText(_ca, "");
                break;
        }
        identity.Write(_dir, "server");
        await using var ses = ChildProcess.Start(SesProcess.Binary,
        [
            "--port", "0", "--address", "127.0.0.1", "--onix-url", "none",
            "--data-dir", Path.Combine(_dir, "data"), .. arguments,
        ]);
        Assert.Equal(2, await ses.ExitAsync(Soon));
        var line = Assert.Single(ses.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.StartsWith("ses: ", line, Ordinal);
        Assert.Contains(says, line, Ordinal);
    }

    // ---- Many ----

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task ThousandConnectionsAreHeldInLittleMemory(bool asksClients)
    {
        const int Count = 1000;
        await using var ses = await SesProcess.StartAsync(
            "none", extra: asksClients ? SecureForClients : Secure);
        var idle = ses.Child.ResidentBytes();
        var clients = new List<TlsClient>();
        var identity = ClientIdentity;
        try
        {
            for (var i = 0; i < Count; i += 20)
                clients.AddRange(await Task.WhenAll(Enumerable.Range(0, 20).Select(_ => AskAsync())));
            async Task<TlsClient> AskAsync()
            {
                var client = await TlsClient.ConnectAsync(
                    ses.Port, _root.Pem, identity: asksClients ? identity : null);
                Assert.Equal(200, (await client.AskAsync("GET", "/live")).Code);
                return client;
            }

            var silent = ses.Child.ResidentBytes();
            foreach (var client in clients)
                Assert.Equal(204, (await client.AskAsync("POST", "/alerts/INS", Alert("n1"))).Code);
            var held = ses.Child.ResidentBytes();
            Assert.True(await MetricAsync(ses, "ses_connections") >= Count);
            Assert.Equal(200, (await clients[0].AskAsync("GET", "/live")).Code);
            _output.WriteLine($"resident: {idle >> 20} MiB idle, "
                + $"{silent >> 20} MiB with {Count} connections, "
                + $"{held >> 20} MiB when each has posted");
            // OpenSSL takes some 45 KiB a connection, and 10 more with a client's certificate.
            Assert.InRange(held, 0, 96L << 20);
        }
        finally
        {
            clients.ForEach(c => c.Dispose());
        }
        await Wait.UntilAsync(async () => await MetricAsync(ses, "ses_connections") < 10, Soon,
            "the connections to be gone");
    }
}
