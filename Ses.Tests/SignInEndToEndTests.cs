using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Http.Headers;
using System.Net.Http.Json;
using System.Text;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>
/// Real senders sign in to the native SeS: Alertmanager with TLS, a client certificate, a password and an
/// OIDC token, Prometheus with TLS and a password, and a real OpenID Connect provider gives out the tokens.
/// </summary>
[Trait("Category", "E2E")]
public sealed class SignInEndToEndTests
{
    public const string Audience = "urn:ses";

    private const string User = "älert:manager", Password = "pä ss\"w€rd\\";

    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);

    private static async Task ArrivesAsync(SesProcess ses, string name) => await Wait.UntilAsync(
        () => LogFiles.ReadEvents(ses.DataDir).Any(e => e.Service.Facet == name), Soon, $"{name} in SeS's log");

    // ---- TLS and passwords ----

    [Fact]
    public async Task AlertmanagerDeliversWithACertificateAndAPassword()
    {
        using var certificates = new Certificates();
        var (server, client) = (certificates.Issue("server"), certificates.Issue("client", Certificates.ForClients));
        // The name of basic authentication cannot hold a colon (RFC 7617), the password can.
        await using var ses = await LaunchAsync(certificates, server, User.Replace(":", "", StringComparison.Ordinal));
        var webhook = new Uri($"https://localhost:{ses.Port}/alerts/INS");
        var tls = $"ca_file: {certificates.Authority}, cert_file: {client.Certificate}, key_file: {client.Key}";
        string Http(string password) => $"{{tls_config: {{{tls}}}, basic_auth: {{username: "
            + $"'{User.Replace(":", "", StringComparison.Ordinal)}', password: '{password}'}}}}";
        await using var alertmanager = await Alertmanagers.StartAsync(1, webhook, Http("wrong"));

        await alertmanager.TellAsync("first");
        await Wait.UntilAsync(async () => await alertmanager.SumAsync("alertmanager_notifications_failed_total") > 0,
            Soon, "a delivery to fail");
        Assert.Empty(LogFiles.ReadEvents(ses.DataDir));
        Assert.Contains("401", alertmanager.Output, StringComparison.Ordinal);
        await alertmanager.ConfigureAsync(webhook, Http(Password));
        await alertmanager.ReloadAsync();
        await ArrivesAsync(ses, "first");

        // Another pair is put in place while alerts go on, by a rename as Kubernetes does, then a bad one.
        var failed = await alertmanager.SumAsync("alertmanager_notifications_failed_total");
        var next = certificates.Issue("next");
        File.Move(next.Certificate, server.Certificate, overwrite: true);
        File.Move(next.Key, server.Key, overwrite: true);
        await ReloadsAsync(ses, "loaded", certificates, client);
        await alertmanager.TellAsync("second");
        await ArrivesAsync(ses, "second");
        File.WriteAllText(server.Certificate, "nonsense");
        await ReloadsAsync(ses, "refused", certificates, client);
        await alertmanager.TellAsync("third");
        await ArrivesAsync(ses, "third");
        Assert.Equal(failed, await alertmanager.SumAsync("alertmanager_notifications_failed_total"));
    }

    private static async Task<SesProcess> LaunchAsync(Certificates certificates, PemPair server, string user)
    {
        var ses = SesProcess.Launch("none", null, null,
            "--tls-cert", server.Certificate, "--tls-key", server.Key, "--tls-client-ca", certificates.Authority,
            "--auth-mode", "basic", "--username", user, "--password", Password, "--metrics-auth", "true");
        await Wait.UntilAsync(() => ses.Child.Output.Contains("SeS is ready", StringComparison.Ordinal)
            || (ses.Child.HasExited ? throw new InvalidOperationException(ses.Child.Output) : false),
            Soon, "SeS");
        return ses;
    }

    /// <summary>Asks with curl, as a person would, until a certificate was reread so.</summary>
    private static Task ReloadsAsync(SesProcess ses, string outcome, Certificates certificates, PemPair client) =>
        Wait.UntilAsync(async () =>
        {
            await using var curl = ChildProcess.Start("curl", ["-s", "--cacert", certificates.Authority,
                "--cert", client.Certificate, "--key", client.Key,
                "-u", $"{User.Replace(":", "", StringComparison.Ordinal)}:{Password}",
                $"https://localhost:{ses.Port}/metrics"]);
            Assert.Equal(0, await curl.ExitAsync(Soon));
            return curl.Output.Contains($"ses_tls_reloads_total{{outcome=\"{outcome}\"}} 1\n", StringComparison.Ordinal);
        }, Soon, $"a certificate {outcome}");

    [Fact]
    public async Task PrometheusScrapesWithACertificateAndAPassword()
    {
        using var certificates = new Certificates();
        var (server, client) = (certificates.Issue("server"), certificates.Issue("client", Certificates.ForClients));
        await using var ses = await LaunchAsync(certificates, server, "prometheus");
        var dir = Directory.CreateTempSubdirectory("ses-prometheus-").FullName;
        var port = FreePort.Next();
        string Job(string name, string password) => $$"""
            - job_name: {{name}}
              scheme: https
              tls_config: {ca_file: {{certificates.Authority}}, cert_file: {{client.Certificate}}, key_file: {{client.Key}}}
              basic_auth: {username: prometheus, password: '{{password}}'}
              static_configs: [{targets: ["localhost:{{ses.Port}}"]}]
            """;
        await File.WriteAllTextAsync(Path.Combine(dir, "prometheus.yml"),
            $"global: {{scrape_interval: 1s}}\nscrape_configs:\n{Job("right", Password)}\n{Job("wrong", "x")}\n");
        await using (var prometheus = ChildProcess.Start("prometheus",
            [$"--config.file={dir}/prometheus.yml", $"--storage.tsdb.path={dir}/data",
                $"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"], folder: dir))
        using (var asker = new HttpClient())
        {
            await Wait.UntilAsync(async () => await HealthAsync(asker, port) is { Count: 2 } health
                && health["right"] == "up" && health["wrong"] == "down", Soon, "the scrapes");
        }
        Directory.Delete(dir, recursive: true);
    }

    private static async Task<Dictionary<string, string>> HealthAsync(HttpClient asker, int port)
    {
        try
        {
            var answer = await asker.GetFromJsonAsync<JsonElement>($"http://127.0.0.1:{port}/api/v1/targets");
            return answer.GetProperty("data").GetProperty("activeTargets").EnumerateArray().ToDictionary(
                t => t.GetProperty("scrapePool").GetString()!, t => t.GetProperty("health").GetString()!);
        }
        catch (HttpRequestException)
        {
            return [];
        }
    }

    [Theory]
    [InlineData("expired", "expired on")]
    [InlineData("mismatched", "is not the key of the certificate")]
    [InlineData("missing", "an existing PEM file")]
    public async Task UnusableCertificateEndsTheStartWithTwoAndOneLine(string what, string word)
    {
        using var certificates = new Certificates();
        var pair = certificates.Issue("server", fromDays: -9, toDays: what == "expired" ? -1 : 9);
        var key = what switch
        {
            "mismatched" => certificates.Issue("other").Key,
            "missing" => "/nowhere/key.pem",
            _ => pair.Key,
        };
        await using var ses = SesProcess.Launch("none", null, null, "--tls-cert", pair.Certificate, "--tls-key", key);
        Assert.Equal(2, await ses.Child.ExitAsync(Soon));
        var line = Assert.Single(ses.Child.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.StartsWith("ses: --tls-", line, StringComparison.Ordinal);
        Assert.Contains(word, line, StringComparison.Ordinal);
    }

    // ---- Guessing ----

    [Fact]
    public async Task GuessesAreAnsweredLaterAndLaterAndRightCredentialsAtOnce()
    {
        await using var ses = await SesProcess.StartAsync("none", null, null,
            "--auth-mode", "basic", "--username", "ann", "--password", "secret");
        async Task<TimeSpan> PostAsync(string password, HttpStatusCode code)
        {
            using var request = new HttpRequestMessage(HttpMethod.Post, ses.Webhook("INS"));
            request.Content = new StringContent("{\"version\":\"4\",\"alerts\":[]}");
            request.Headers.Authorization = new AuthenticationHeaderValue(
                "Basic", Convert.ToBase64String(Encoding.UTF8.GetBytes($"ann:{password}")));
            var clock = Stopwatch.StartNew();
            using var answer = await ses.Client.SendAsync(request);
            Assert.Equal(code, answer.StatusCode);
            return clock.Elapsed;
        }

        var waits = new List<TimeSpan>();
        for (var i = 0; i < 5; i++)
            waits.Add(await PostAsync($"guess {i}", HttpStatusCode.Unauthorized));
        Assert.True(waits[4] > TimeSpan.FromSeconds(3.9), $"{waits[4]}");
        Assert.True(waits[4] > waits[0], $"{waits[0]}, {waits[4]}");
        // While one more guess is held back, the right one is not.
        var held = PostAsync("guess", HttpStatusCode.Unauthorized);
        await PostAsync("secret", HttpStatusCode.NoContent);
        Assert.False(held.IsCompleted);
        await held;
    }

    // ---- Tokens ----

    internal static Task<SesProcess> StartAsync(OidcServer oidc, params string[] more) => SesProcess.StartAsync(
        "none", null, null, ["--auth-mode", "oidc", "--oidc-issuer", oidc.Issuer, "--oidc-audience", Audience, .. more]);

    internal static async Task<(HttpStatusCode Code, string Challenge)> PostAsync(SesProcess ses, string token)
    {
        using var request = new HttpRequestMessage(HttpMethod.Post, ses.Webhook("INS"));
        request.Content = new StringContent("{\"version\":\"4\",\"alerts\":[]}");
        request.Headers.Authorization = new AuthenticationHeaderValue("Bearer", token);
        using var answer = await ses.Client.SendAsync(request);
        return (answer.StatusCode, answer.Headers.WwwAuthenticate.ToString());
    }

    [Fact]
    public async Task AlertmanagerDeliversWithATokenOfItsOwn()
    {
        await using var oidc = await OidcServer.StartAsync(TimeSpan.FromMinutes(5));
        await using var ses = await StartAsync(oidc, "--metrics-auth", "true");
        var http = string.Create(CultureInfo.InvariantCulture, $"{{oauth2: {{client_id: '{OidcServer.ClientId}', "
            + $"client_secret: '{OidcServer.ClientSecret}', token_url: '{oidc.TokenUri}', "
            + $"endpoint_params: {{resource: '{Audience}'}}}}}}");
        await using var alertmanager = await Alertmanagers.StartAsync(1, ses.Webhook("INS"), http);
        await alertmanager.TellAsync("told");
        await ArrivesAsync(ses, "told");
        Assert.Equal(0, await alertmanager.SumAsync("alertmanager_notifications_failed_total"));
        foreach (var (path, code) in new[] { ("metrics", 401), ("live", 200), ("ready", 200) })
        {
            using var answer = await ses.Client.GetAsync(path);
            Assert.Equal(code, (int)answer.StatusCode);
        }
    }

    [Fact]
    public async Task TokensAreJudgedByWhatTheRealProviderSays()
    {
        await using var oidc = await OidcServer.StartAsync(TimeSpan.FromMinutes(5));
        await using var ses = await StartAsync(oidc);
        var good = await oidc.TokenAsync(Audience);
        Assert.Equal(HttpStatusCode.NoContent, (await PostAsync(ses, good)).Code);
        var (code, challenge) = await PostAsync(ses, await oidc.TokenAsync("urn:other"));
        Assert.Equal(HttpStatusCode.Unauthorized, code);
        Assert.Contains("another audience", challenge, StringComparison.Ordinal);
        (code, challenge) = await PostAsync(ses, good[..^4] + "AAAA");
        Assert.Equal(HttpStatusCode.Unauthorized, code);
        Assert.Contains("signature", challenge, StringComparison.Ordinal);
    }

    [Fact]
    public async Task KeysAreRotatedAndTheProviderMayBeAway()
    {
        SesProcess ses;
        string first;
        int port;
        await using (var oidc = await OidcServer.StartAsync(TimeSpan.FromMinutes(5), key: "first"))
        {
            port = oidc.Port;
            ses = await StartAsync(oidc);
            first = await oidc.TokenAsync(Audience);
            Assert.Equal(HttpStatusCode.NoContent, (await PostAsync(ses, first)).Code);
        }
        await using (ses)
        {
            // Away: the known key goes on.
            Assert.Equal(HttpStatusCode.NoContent, (await PostAsync(ses, first)).Code);
            await using (var oidc = await OidcServer.StartAsync(TimeSpan.FromMinutes(5), port, "second"))
            {
                var second = await oidc.TokenAsync(Audience);
                Assert.Equal(HttpStatusCode.NoContent, (await PostAsync(ses, second)).Code);
                Assert.Equal(HttpStatusCode.Unauthorized, (await PostAsync(ses, first)).Code);
            }
            // Away, and the key is not known.
            await ses.RestartAsync();
            Assert.Equal(HttpStatusCode.ServiceUnavailable, (await PostAsync(ses, first)).Code);
            await using var back = await OidcServer.StartAsync(TimeSpan.FromMinutes(5), port, "third");
            Assert.Equal(HttpStatusCode.NoContent, (await PostAsync(ses, await back.TokenAsync(Audience))).Code);
        }
    }
}

/// <summary>A token that really expires; beside the others, since it takes more than a minute.</summary>
[Trait("Category", "E2E")]
public sealed class ExpiringTokenEndToEndTests
{
    [Fact]
    public async Task TokenIsRefusedAMinuteAfterItExpired()
    {
        await using var oidc = await OidcServer.StartAsync(TimeSpan.FromSeconds(1));
        await using var ses = await SignInEndToEndTests.StartAsync(oidc);
        var token = await oidc.TokenAsync(SignInEndToEndTests.Audience);
        var clock = Stopwatch.StartNew();
        Assert.Equal(HttpStatusCode.NoContent, (await SignInEndToEndTests.PostAsync(ses, token)).Code);
        var challenge = "";
        await Wait.UntilAsync(async () =>
        {
            (var code, challenge) = await SignInEndToEndTests.PostAsync(ses, token);
            return code == HttpStatusCode.Unauthorized;
        }, TimeSpan.FromSeconds(90), "the token to be refused");
        Assert.Contains("expired", challenge, StringComparison.Ordinal);
        Assert.True(clock.Elapsed > TimeSpan.FromSeconds(59), $"refused after {clock.Elapsed}");
    }
}
