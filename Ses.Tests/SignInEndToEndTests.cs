using System.Collections.Concurrent;
using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Http.Headers;
using System.Text;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>
/// Real senders sign in to the native SeS: Alertmanager with a password and with tokens of its own, which a
/// real OpenID Connect provider gives out.
/// </summary>
[Trait("Category", "E2E")]
public sealed class SignInEndToEndTests
{
    public const string Audience = "urn:ses";

    private const string User = "älert manager", Password = "pä ss:\"w€rd\\";

    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);

    private static async Task ArrivesAsync(SesProcess ses, string name) => await Wait.UntilAsync(
        () => StoreFiles.Changes(ses.DataDir).Any(e => e.Service.Facet == name), Soon, $"{name} in SeS's log");

    // ---- Passwords ----

    [Fact]
    public async Task AlertsArriveOnceAlertmanagersPasswordIsRight()
    {
        await using var ses = await SesProcess.StartAsync("none", null, null,
            "--auth-mode", "basic", "--username", User, "--password", Password);
        string Http(string password) => $"{{basic_auth: {{username: '{User}', password: '{password}'}}}}";
        await using var alertmanager = await Alertmanagers.StartAsync(1, ses.Webhook("INS"), Http("wrong"));
        await alertmanager.SendAlertAsync("first");
        await Wait.UntilAsync(async () => await alertmanager.SumAsync("alertmanager_notifications_failed_total") > 0,
            Soon, "a delivery to fail");
        Assert.Empty(StoreFiles.Changes(ses.DataDir));
        Assert.Contains("401", alertmanager.Output, StringComparison.Ordinal);
        Assert.DoesNotContain("ses_auth_failures_total{reason=\"wrong\"} 0\n",
            await ses.Client.GetStringAsync("metrics"), StringComparison.Ordinal);
        await alertmanager.ConfigureAsync(ses.Webhook("INS"), Http(Password));
        await alertmanager.ReloadAsync();
        await ArrivesAsync(ses, "first");
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

        await PostAsync("secret", HttpStatusCode.NoContent);
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

    [Fact]
    public async Task FloodOfGuessesIsNotLookedAt()
    {
        await using var ses = await SesProcess.StartAsync("none", null, null,
            "--auth-mode", "basic", "--username", "ann", "--password", "secret");
        async Task<(HttpStatusCode Code, bool SaysWhen)> GuessAsync(string password)
        {
            using var request = new HttpRequestMessage(HttpMethod.Get, new Uri($"http://127.0.0.1:{ses.Port}/"));
            request.Headers.Authorization = new AuthenticationHeaderValue(
                "Basic", Convert.ToBase64String(Encoding.UTF8.GetBytes($"ann:{password}")));
            using var answer = await ses.Client.SendAsync(request);
            return (answer.StatusCode, answer.Headers.RetryAfter != null);
        }

        var clock = Stopwatch.StartNew();
        var answers = new ConcurrentBag<(HttpStatusCode Code, bool SaysWhen)>();
        await Task.WhenAll(Enumerable.Range(0, 16).Select(async worker =>
        {
            for (var i = 0; clock.Elapsed < TimeSpan.FromSeconds(2); i++)
                answers.Add(await GuessAsync($"{worker} {i}"));
        }));
        Assert.InRange(answers.Count(a => a.Code == HttpStatusCode.Unauthorized), 1, 10 * clock.Elapsed.TotalSeconds);
        Assert.All(answers.Where(a => a.Code != HttpStatusCode.Unauthorized),
            a => Assert.Equal((HttpStatusCode.ServiceUnavailable, true), a));
        Assert.True(answers.Count > 200, $"{answers.Count}");
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
        await alertmanager.SendAlertAsync("told");
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
