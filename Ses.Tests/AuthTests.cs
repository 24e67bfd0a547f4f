using System.Buffers.Text;
using System.Net;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>Credentials: who is admitted, what the others are told, and how soon.</summary>
public sealed class AuthTests : IDisposable
{
    private const string Name = "https://id.example.org/realm", Audience = "ses";

    private static readonly DateTime Now = new(2026, 11, 22, 12, 0, 0, DateTimeKind.Utc);

    private static readonly IPAddress Client = IPAddress.Parse("192.0.2.7");

    private readonly ManualClock _clock = new(Now);
    private readonly StringWriter _log = new();
    private readonly Meters _meters = new("test", "test");
    private readonly IssuerStub _issuer = new();

    // Made once: each takes its time.
    private static readonly RSA _rsa = RSA.Create(2048);
    private static readonly ECDsa _curve = ECDsa.Create(ECCurve.NamedCurves.nistP256);

    public AuthTests() => _issuer.Keys = [RsaKey("r", _rsa), CurveKey("e", _curve)];

    public void Dispose() => _issuer.Dispose();

    /// <summary>Answers discovery and keys, as the test says; counts the questions.</summary>
    private sealed class IssuerStub : HttpMessageHandler
    {
        public List<object> Keys { get; set; } = [];

        public string Discovery { get; set; } =
            $$"""{"issuer":"{{Name}}","jwks_uri":"https://id.example.org/keys","extra":[1]}""";

        public HttpStatusCode Code { get; set; } = HttpStatusCode.OK;

        public string? KeysText { get; set; }

        public Exception? Failure { get; set; }

        public int Fetches;

        protected override Task<HttpResponseMessage> SendAsync(
            HttpRequestMessage request, CancellationToken cancellationToken)
        {
            if (Failure != null)
                throw Failure;
            var isDiscovery = request.RequestUri!.AbsoluteUri == Name + "/.well-known/openid-configuration";
            if (!isDiscovery)
            {
                Assert.Equal("https://id.example.org/keys", request.RequestUri.AbsoluteUri);
                Interlocked.Increment(ref Fetches);
            }
            var text = isDiscovery ? Discovery : KeysText ?? JsonSerializer.Serialize(new { keys = Keys });
            return Task.FromResult(new HttpResponseMessage(Code) { Content = new StringContent(text) });
        }
    }

    private static string Encode(ReadOnlySpan<byte> bytes) => Base64Url.EncodeToString(bytes);

    private static string Encode(string text) => Encode(Encoding.UTF8.GetBytes(text));

    private static Dictionary<string, object> RsaKey(string? id, RSA key, string? use = "sig", string? alg = null)
    {
        var parameters = key.ExportParameters(false);
        return Key(id, use, alg, ("kty", "RSA"), ("n", Encode(parameters.Modulus)),
            ("e", Encode(parameters.Exponent)));
    }

    private static Dictionary<string, object> CurveKey(string? id, ECDsa key, string name = "P-256")
    {
        var point = key.ExportParameters(false).Q;
        return Key(id, "sig", null, ("kty", "EC"), ("crv", name), ("x", Encode(point.X)), ("y", Encode(point.Y)));
    }

    private static Dictionary<string, object> Key(
        string? id, string? use, string? alg, params (string, string)[] members)
    {
        var key = members.ToDictionary(m => m.Item1, m => (object)m.Item2);
        foreach (var (name, value) in new[] { ("kid", id), ("use", use), ("alg", alg) })
        {
            if (value != null)
                key[name] = value;
        }
        return key;
    }

    private static long Seconds(DateTime time) => new DateTimeOffset(time).ToUnixTimeSeconds();

    private static string Claims(string? change = null, string? value = null)
    {
        var claims = new Dictionary<string, string>
        {
            ["iss"] = $"\"{Name}\"", ["aud"] = $"\"{Audience}\"", ["exp"] = $"{Seconds(Now) + 300}", ["sub"] = "\"am\"",
        };
        if (change != null && value == null)
            claims.Remove(change);
        else if (change != null)
            claims[change] = value!;
        return "{" + string.Join(',', claims.Select(c => $"\"{c.Key}\":{c.Value}")) + "}";
    }

    private static string Head(string algorithm, string? id, string more = "") =>
        $"{{\"alg\":\"{algorithm}\"{(id == null ? "" : $",\"kid\":\"{id}\"")}{more}}}";

    private static string Sign(string head, string claims, string? algorithm = null, RSA? rsa = null, ECDsa? curve = null)
    {
        algorithm ??= JsonDocument.Parse(head).RootElement.GetProperty("alg").GetString()!;
        var signed = $"{Encode(head)}.{Encode(claims)}";
        var bytes = Encoding.ASCII.GetBytes(signed);
        var signature = algorithm switch
        {
            "RS256" => (rsa ?? _rsa).SignData(bytes, HashAlgorithmName.SHA256, RSASignaturePadding.Pkcs1),
            "RS384" => (rsa ?? _rsa).SignData(bytes, HashAlgorithmName.SHA384, RSASignaturePadding.Pkcs1),
            "PS256" => (rsa ?? _rsa).SignData(bytes, HashAlgorithmName.SHA256, RSASignaturePadding.Pss),
            "ES256" => (curve ?? _curve).SignData(bytes, HashAlgorithmName.SHA256),
            "DER" => (curve ?? _curve).SignData(
                bytes, HashAlgorithmName.SHA256, DSASignatureFormat.Rfc3279DerSequence),
            "HS256" => HMACSHA256.HashData(Encoding.UTF8.GetBytes(_rsa.ExportSubjectPublicKeyInfoPem()), bytes),
            "zero" => new byte[64],
            _ => [],
        };
        return $"{signed}.{Encode(signature)}";
    }

    private static string Good(string id = "r", string algorithm = "RS256") => Sign(Head(algorithm, id), Claims());

    private Auth Make(params string[] flags)
    {
        var given = new Dictionary<string, string> { ["--onix-url"] = "none" };
        string[] all = flags.Length > 0 ? flags
            : ["--auth-mode", "oidc", "--oidc-issuer", Name, "--oidc-audience", Audience];
        for (var i = 0; i < all.Length; i += 2)
            given[all[i]] = all[i + 1];
        var log = new Log(LogLevel.Trace, json: false, TextWriter.Synchronized(_log), _clock);
        return new Auth(Options.Read(given, new Dictionary<string, string>()), _issuer, _clock, log, _meters);
    }

    private async Task<string?> JudgeAsync(Auth auth, string token)
    {
        var judged = auth.RefusalAsync("Bearer " + token, Client).AsTask();
        await Wait.UntilAsync(() =>
        {
            if (!judged.IsCompleted)
                _clock.Advance(TimeSpan.FromSeconds(0.1));
            return judged.IsCompleted;
        }, TimeSpan.FromSeconds(30), "a judgement");
        return await judged is not { } reply ? null
            : reply.Code == 401 ? reply.Header!.Value.Value : reply.Code.ToString(null, null);
    }

    // ---- Tokens ----

    [Theory]
    [InlineData("RS256", "r", "")]
    [InlineData("PS256", "r", "")]
    [InlineData("ES256", "e", "")]
    [InlineData("RS256", null, "")]
    [InlineData("ES256", null, "")]
    [InlineData("RS256", "r", ",\"typ\":\"JWT\"")]
    [InlineData("RS256", "r", ",\"typ\":\"at+jwt\"")]
    [InlineData("RS256", "r", ",\"jwk\":{},\"jku\":\"https://evil\",\"x5c\":[\"AAAA\"],\"x5u\":\"https://evil\"")]
    public async Task RightTokenIsAdmitted(string algorithm, string? id, string more) =>
        Assert.Null(await JudgeAsync(Make(), Sign(Head(algorithm, id, more), Claims())));

    [Theory]
    [InlineData("none", "r", "", "none", "algorithm")]
    [InlineData("None", "r", "", "none", "algorithm")]
    [InlineData("", "r", "", "none", "algorithm")]
    [InlineData("HS256", "r", "", "HS256", "algorithm")]
    [InlineData("RS384", "r", "", "RS384", "algorithm")]
    [InlineData("rs256", "r", "", "RS256", "algorithm")]
    [InlineData("RS256", "r", "", "none", "signature")]
    [InlineData("RS256", "r", "", "HS256", "signature")]
    [InlineData("RS256", "r", "", "PS256", "signature")]
    [InlineData("PS256", "r", "", "RS256", "signature")]
    [InlineData("ES256", "e", "", "DER", "signature")]
    [InlineData("ES256", "e", "", "zero", "signature")]
    [InlineData("ES256", "r", "", "ES256", "signature")]
    [InlineData("RS256", "e", "", "RS256", "signature")]
    [InlineData("RS256", "unknown", "", "RS256", "not the issuer's")]
    [InlineData("RS256", "r", ",\"crit\":[\"exp\"]", "RS256", "kind")]
    [InlineData("RS256", "r", ",\"typ\":\"logout+jwt\"", "RS256", "kind")]
    [InlineData("RS256", "r", ",\"alg\":\"RS256\"", "RS256", "no signed JWT")]
    public async Task TokenThatIsNotSignedRightlyIsRefused(
        string algorithm, string id, string more, string signature, string word)
    {
        var head = Head(algorithm, id, more);
        AssertInvalid(word, await JudgeAsync(Make(), Sign(head, Claims(), signature)));
    }

    [Fact]
    public async Task TokenThatWasChangedIsRefused()
    {
        var parts = Good().Split('.');
        var other = Claims("sub", "\"admin\"");
        AssertInvalid("signature", await JudgeAsync(Make(), $"{parts[0]}.{Encode(other)}.{parts[2]}"));
        using var strange = RSA.Create(2048);
        AssertInvalid("signature", await JudgeAsync(Make(), Sign(Head("RS256", "r"), Claims(), rsa: strange)));
    }

    [Theory]
    [InlineData("")]
    [InlineData("x")]
    [InlineData("..")]
    [InlineData("{0}.{1}")]
    [InlineData("{0}.{1}.")]
    [InlineData("{0}.{1}.{2}.")]
    [InlineData(".{1}.{2}")]
    [InlineData("{0}=.{1}.{2}")]
    [InlineData("{0}.{1}.{2}+")]
    [InlineData("{1}.{0}.{2}")]
    [InlineData("bnVsbA.bnVsbA.")]
    [InlineData("W10.W10.AAAA")]
    public async Task WhatIsNoTokenIsRefused(string form)
    {
        var parts = Good().Split('.');
        var refusal = await JudgeAsync(Make(), string.Format(null, form, parts[0], parts[1], parts[2]));
        Assert.StartsWith("Bearer realm=\"SeS\"", refusal, Ordinal);
    }

    [Theory]
    [InlineData("iss", null, "another issuer")]
    [InlineData("iss", "\"https://id.example.org/realm/\"", "another issuer")]
    [InlineData("iss", "7", "no signed JWT")]
    [InlineData("aud", null, "another audience")]
    [InlineData("aud", "\"SES\"", "another audience")]
    [InlineData("aud", "[]", "another audience")]
    [InlineData("aud", "[\"a\",7,null]", "another audience")]
    [InlineData("aud", "{\"ses\":\"ses\"}", "another audience")]
    [InlineData("exp", null, "never expires")]
    [InlineData("exp", "null", "never expires")]
    [InlineData("exp", "\"9999999999\"", "no signed JWT")]
    [InlineData("exp", "1e400", "")]
    [InlineData("exp", "-1", "expired")]
    [InlineData("nbf", "\"x\"", "no signed JWT")]
    public async Task TokenWithOtherClaimsIsRefused(string claim, string? value, string word)
    {
        var refusal = await JudgeAsync(Make(), Sign(Head("RS256", "r"), Claims(claim, value)));
        if (word != "")
            AssertInvalid(word, refusal);
    }

    [Theory]
    [InlineData("aud", "[\"a\",\"ses\"]")]
    [InlineData("nbf", "1")]
    [InlineData("exp", "99999999999.5")]
    [InlineData("scope", "\"x\"")]
    public async Task TokenWithThoseClaimsIsAdmitted(string claim, string value) =>
        Assert.Null(await JudgeAsync(Make(), Sign(Head("RS256", "r"), Claims(claim, value))));

    [Theory]
    [InlineData("exp", -59, true)]
    [InlineData("exp", -60, false)]
    [InlineData("nbf", 60, true)]
    [InlineData("nbf", 61, false)]
    public async Task ClocksMayDifferByAMinute(string claim, int seconds, bool admitted)
    {
        var token = Sign(Head("RS256", "r"), Claims(claim, $"{Seconds(Now) + seconds}"));
        Assert.Equal(admitted, await JudgeAsync(Make(), token) == null);
    }

    private static void AssertInvalid(string word, string? challenge)
    {
        Assert.StartsWith("Bearer realm=\"SeS\", error=\"invalid_token\", error_description=\"", challenge, Ordinal);
        Assert.Contains(word, challenge, Ordinal);
        Assert.All(challenge!, c => Assert.InRange(c, ' ', '~'));
    }

    // ---- Keys ----

    [Fact]
    public async Task KeysThatAreNotForThisAreNotUsed()
    {
        using var small = RSA.Create(1024);
        using var large = ECDsa.Create(ECCurve.NamedCurves.nistP384);
        _issuer.Keys =
        [
            RsaKey("small", small), RsaKey("enc", _rsa, use: "enc"), RsaKey("alg", _rsa, alg: "PS256"),
            CurveKey("p384", large, "P-384"), Key("point", "sig", null, ("kty", "EC"), ("crv", "P-256"), ("x", "AA"),
                ("y", "AA")), Key("text", "sig", null, ("kty", "RSA"), ("n", "!"), ("e", "!")), RsaKey("r", _rsa),
        ];
        var auth = Make();
        Assert.NotNull(await JudgeAsync(auth, Sign(Head("RS256", "small"), Claims(), rsa: small)));
        Assert.NotNull(await JudgeAsync(auth, Good("enc")));
        Assert.NotNull(await JudgeAsync(auth, Good("alg")));
        Assert.Null(await JudgeAsync(auth, Good("alg", "PS256")));
        Assert.NotNull(await JudgeAsync(auth, Sign(Head("ES256", "p384"), Claims(), curve: large)));
        Assert.NotNull(await JudgeAsync(auth, Good("point", "ES256")));
        Assert.NotNull(await JudgeAsync(auth, Good("text")));
        Assert.Null(await JudgeAsync(auth, Good()));
    }

    [Fact]
    public async Task KeysAreFetchedOnceAndKept()
    {
        var auth = Make();
        await auth.PrepareAsync();
        for (var i = 0; i < 5; i++)
            Assert.Null(await JudgeAsync(auth, Good()));
        Assert.Equal(1, _issuer.Fetches);
        _clock.Advance(Issuer.KeysAge + TimeSpan.FromMinutes(1));
        Assert.NotNull(await JudgeAsync(auth, Good()));
        Assert.Equal(2, _issuer.Fetches);
    }

    [Fact]
    public async Task RotatedKeyIsTakenAtOnceAndTheOldOneGoes()
    {
        var auth = Make();
        Assert.Null(await JudgeAsync(auth, Good()));
        using var next = RSA.Create(2048);
        _issuer.Keys = [RsaKey("next", next)];
        Assert.Null(await JudgeAsync(auth, Good()));
        Assert.Null(await JudgeAsync(auth, Sign(Head("RS256", "next"), Claims(), rsa: next)));
        AssertInvalid("not the issuer's", await JudgeAsync(auth, Good()));
    }

    [Fact]
    public async Task StrangersCannotMakeItAskMoreThanOnceASecond()
    {
        var auth = Make();
        await auth.PrepareAsync();
        var judged = Enumerable.Range(0, 50)
            .Select(i => auth.RefusalAsync("Bearer " + Good($"k{i}"), Client).AsTask()).ToList();
        await Wait.UntilAsync(() =>
        {
            _clock.Advance(TimeSpan.FromSeconds(0.1));
            return judged.All(j => j.IsCompleted);
        }, TimeSpan.FromSeconds(30), "all to be judged");
        Assert.All(judged, j => Assert.Equal(401, j.Result!.Code));
        Assert.InRange(_issuer.Fetches, 2, 3);
    }

    [Fact]
    public async Task IssuerAwayIsAnswered503AndKnownKeysGoOn()
    {
        var auth = Make();
        _issuer.Failure = new HttpRequestException("connection refused");
        Assert.Equal("503", await JudgeAsync(auth, Good()));
        Assert.Contains("connection refused", _log.ToString(), Ordinal);
        _issuer.Failure = null;
        Assert.Null(await JudgeAsync(auth, Good()));
        _issuer.Failure = new HttpRequestException("connection refused");
        _clock.Advance(Issuer.KeysAge + TimeSpan.FromMinutes(1));
        var late = Sign(Head("RS256", "r"), Claims("exp", $"{Seconds(_clock.UtcNow) + 300}"));
        Assert.Null(await JudgeAsync(auth, late));
        Assert.Equal("503", await JudgeAsync(auth, Good("unknown")));
    }

    [Theory]
    [InlineData("{\"issuer\":\"https://other\",\"jwks_uri\":\"https://id.example.org/keys\"}", null, 200)]
    [InlineData("{\"issuer\":\"https://id.example.org/realm\"}", null, 200)]
    [InlineData("{\"issuer\":\"https://id.example.org/realm\",\"jwks_uri\":\"/keys\"}", null, 200)]
    [InlineData("null", null, 200)]
    [InlineData("hello", null, 200)]
    [InlineData(null, "{\"keys\":", 200)]
    [InlineData(null, "[]", 200)]
    [InlineData(null, null, 500)]
    [InlineData(null, null, 404)]
    [InlineData(null, null, 302)]
    public async Task IssuerThatAnswersNonsenseIsAnswered503AndSaidWhy(string? discovery, string? keys, int code)
    {
        _issuer.Discovery = discovery ?? _issuer.Discovery;
        _issuer.KeysText = keys;
        _issuer.Code = (HttpStatusCode)code;
        Assert.Equal("503", await JudgeAsync(Make(), Good()));
        Assert.Contains("the OIDC issuer cannot be used", _log.ToString(), Ordinal);
    }

    // ---- Slowing those who guess ----

    [Fact]
    public void WrongAnswersWaitLongerAndLongerAndAreForgotten()
    {
        var failures = new Failures(_clock);
        double[] expected = [0.25, 0.5, 1, 2, 4, 5, 5, 5];
        Assert.Equal(expected, expected.Select(_ => failures.Add(Client).TotalSeconds));
        Assert.Equal(0.25, failures.Add(IPAddress.Loopback).TotalSeconds);
        _clock.Advance(Failures.Forgotten + TimeSpan.FromSeconds(1));
        Assert.Equal(0.25, failures.Add(Client).TotalSeconds);
    }

    [Fact]
    public void NetworkOfAnIPv6HostCountsAsOneAddress()
    {
        var failures = new Failures(_clock);
        Assert.Equal(0.25, failures.Add(IPAddress.Parse("2001:db8::1")).TotalSeconds);
        Assert.Equal(0.5, failures.Add(IPAddress.Parse("2001:db8::ffff:2")).TotalSeconds);
        Assert.Equal(0.25, failures.Add(IPAddress.Parse("2001:db8:0:1::1")).TotalSeconds);
    }

    [Fact]
    public void AddressesThatAreRememberedAreBounded()
    {
        var failures = new Failures(_clock);
        for (var i = 0; i < Failures.MaxAddresses; i++)
            failures.Add(new IPAddress(i + 1L));
        foreach (var _ in Enumerable.Range(0, 3))
            Assert.Equal(0.25, failures.Add(IPAddress.Parse("255.1.1.1")).TotalSeconds);
        Assert.Equal(0.5, failures.Add(new IPAddress(1L)).TotalSeconds);
        _clock.Advance(Failures.Forgotten + TimeSpan.FromSeconds(1));
        failures.Add(IPAddress.Parse("255.1.1.1"));
        Assert.Equal(0.5, failures.Add(IPAddress.Parse("255.1.1.1")).TotalSeconds);
    }

    [Fact]
    public async Task OnlyGuessesAreHeldBack()
    {
        var auth = Make("--auth-mode", "basic", "--username", "ann", "--password", "secret");
        static string Basic(string text) => "Basic " + Convert.ToBase64String(Encoding.UTF8.GetBytes(text));
        for (var i = 0; i < 3; i++)
        {
            Assert.Equal(TimeSpan.Zero, (await auth.RefusalAsync(null, Client))!.HeldBack);
            var wrong = await auth.RefusalAsync(Basic("ann:wrong"), Client);
            Assert.Equal(0.25 * (1 << i), wrong!.HeldBack.TotalSeconds);
            Assert.Null(await auth.RefusalAsync(Basic("ann:secret"), Client));
        }
        var text = Encoding.UTF8.GetString(await _meters.ExportAsync());
        Assert.Contains("ses_auth_failures_total{reason=\"missing\"} 3\n", text, Ordinal);
        Assert.Contains("ses_auth_failures_total{reason=\"wrong\"} 3\n", text, Ordinal);
    }
}
