using System.Collections.Concurrent;
using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Http.Headers;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>SeS signs in to Onix with a real OpenID Connect provider's tokens, which really expire.</summary>
[Trait("Category", "E2E")]
public sealed class OidcEndToEndTests
{
    private static readonly TimeSpan Arrives = TimeSpan.FromSeconds(20);

    /// <summary>The bearer tokens that Onix saw.</summary>
    private readonly ConcurrentDictionary<string, bool> _seen = new();

    [Fact]
    public async Task TokensAreRenewedAsTheyExpire()
    {
        await using var oidc = await OidcServer.StartAsync(TimeSpan.FromSeconds(5));
        await using var onix = Onix(oidc);
        await using var ses = await StartAsync(onix, oidc);
        using var pace = new PeriodicTimer(TimeSpan.FromMilliseconds(500));
        var clock = Stopwatch.StartNew();
        for (var n = 1; clock.Elapsed < TimeSpan.FromSeconds(20); n++)
        {
            await SendAlertAsync(ses, onix, n);
            await pace.WaitForNextTickAsync();
        }
        Assert.InRange(oidc.Granted, 3, 10);
        Assert.True(_seen.Count > 2, $"{_seen.Count} tokens");
        await RefusesExpiredAsync(onix, _seen.Keys.First(token => !oidc.Accepts(token)));
    }

    [Fact]
    public async Task RefusedTokenIsReplacedAtOnce()
    {
        await using var oidc = await OidcServer.StartAsync(TimeSpan.FromHours(1));
        await using var onix = Onix(oidc);
        await using var ses = await StartAsync(onix, oidc);
        await SendAlertAsync(ses, onix, 1);
        var revoked = Assert.Single(_seen.Keys);
        onix.IsToken = token => token != revoked && oidc.Accepts(token);
        await SendAlertAsync(ses, onix, 2);
        Assert.Equal(2, oidc.Granted);
    }

    private OnixStandIn Onix(OidcServer oidc)
    {
        var onix = new OnixStandIn
        {
            IsToken = token =>
            {
                _seen.TryAdd(token, true);
                return oidc.Accepts(token);
            },
        };
        onix.Start();
        return onix;
    }

    private static Task<SesProcess> StartAsync(OnixStandIn onix, OidcServer oidc) => SesProcess.StartAsync(
        onix.Url.AbsoluteUri, extra:
        [
            "--onix-auth-mode", "oidc", "--onix-token-uri", oidc.TokenUri.AbsoluteUri,
            "--onix-client-id", OidcServer.ClientId, "--onix-app-secret", OidcServer.ClientSecret,
            "--onix-username", OidcServer.User, "--onix-password", OidcServer.Password,
        ]);

    /// <summary>Posts the n-th change of a service, and waits until Onix has it.</summary>
    private static async Task SendAlertAsync(SesProcess ses, OnixStandIn onix, int n)
    {
        var status = n % 2 == 1 ? "up" : "down";
        var time = DateTime.UnixEpoch.AddYears(56).AddSeconds(n).ToString("O", CultureInfo.InvariantCulture);
        var json = $$"""
            {"version": "4", "alerts": [{"status": "firing", "fingerprint": "{{n:x16}}",
            "labels": {"platform": "p1", "service": "s1", "facet": "node", "status": "{{status}}"},
            "annotations": {}, "startsAt": "{{time}}", "endsAt": "0001-01-01T00:00:00Z"}]}
            """;
        using var answer = await ses.PostAsync("INS", json);
        Assert.Equal(HttpStatusCode.NoContent, answer.StatusCode);
        await Wait.UntilAsync(() => onix.History.Count == n, Arrives, $"change {n} in Onix");
    }

    private static async Task RefusesExpiredAsync(OnixStandIn onix, string token)
    {
        using var client = new HttpClient();
        client.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", token);
        using var answer = await client.GetAsync(new Uri(onix.Url, "model/SES"));
        Assert.Equal(HttpStatusCode.Unauthorized, answer.StatusCode);
    }
}
