using System.Buffers.Text;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>Who is admitted, who is not and what they are told; the OIDC issuer is a stub.</summary>
public sealed class AuthTests
{
    private const string IssuerName = "https://id.example.org/realm", Audience = "ses";

    private const string NoToken = "the token is not a signed JWT",
        Algorithm = "the algorithm of the token is not RS256, PS256 or ES256",
        Kind = "the type of the token is not one that SeS supports",
        UnknownKey = "the key of the token is not one of the issuer",
        Signature = "the signature of the token is wrong",
        OtherIssuer = "the token is from another issuer",
        OtherAudience = "the token is for another audience",
        Endless = "the token never expires", Expired = "the token has expired",
        Early = "the token is not valid yet";

    private static readonly DateTime Start = new(2026, 11, 22, 12, 0, 0, DateTimeKind.Utc);

    private static readonly long Now = new DateTimeOffset(Start).ToUnixTimeSeconds();

    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(30);

    private static readonly IPAddress Client = IPAddress.Parse("192.0.2.1");

    // Made once: an RSA key takes its time.
    private static readonly RSA
        RsaKey = RSA.Create(2048), OtherRsaKey = RSA.Create(2048), WeakRsaKey = RSA.Create(1024);

    private static readonly ECDsa
        EcKey = ECDsa.Create(ECCurve.NamedCurves.nistP256),
        OtherEcKey = ECDsa.Create(ECCurve.NamedCurves.nistP256),
        LargeEcKey = ECDsa.Create(ECCurve.NamedCurves.nistP384);

    // ---- Making tokens and keys ----

    private delegate byte[] Signer(byte[] signed);

    private static Signer Rs256(RSA key) => signed =>
        key.SignData(signed, HashAlgorithmName.SHA256, RSASignaturePadding.Pkcs1);

    private static Signer Ps256(RSA key) => signed =>
        key.SignData(signed, HashAlgorithmName.SHA256, RSASignaturePadding.Pss);

    private static Signer Es256(ECDsa key) => signed => key.SignData(
        signed, HashAlgorithmName.SHA256, DSASignatureFormat.IeeeP1363FixedFieldConcatenation);

    private static Signer Hs256(byte[] secret) => signed => HMACSHA256.HashData(secret, signed);

    private static Signer Fixed(int length, byte value) => _ => [.. Enumerable.Repeat(value, length)];

    private static string Encode(byte[] bytes) => Base64Url.EncodeToString(bytes);

    private static string Encode(string text) => Encode(Encoding.UTF8.GetBytes(text));

    private static string Join(string head, string claims, Signer signer)
    {
        var signed = $"{head}.{claims}";
        return $"{signed}.{Encode(signer(Encoding.UTF8.GetBytes(signed)))}";
    }

    private static string Claims(string? extra = null, string? iss = $"\"{IssuerName}\"",
        string? aud = $"\"{Audience}\"", string? exp = "4102444800")
    {
        var claims = new List<string> { "\"sub\":\"alertmanager\"" };
        foreach (var (name, value) in new[] { ("iss", iss), ("aud", aud), ("exp", exp) })
        {
            if (value != null)
                claims.Add($"\"{name}\":{value}");
        }
        if (extra != null)
            claims.Add(extra);
        return $"{{{string.Join(',', claims)}}}";
    }

    /// <summary>A token of JSON texts; by default a good one by the RSA key.</summary>
    private static string Token(
        string head = """{"alg":"RS256","kid":"r","typ":"JWT"}""", string? claims = null,
        Signer? by = null) =>
        Join(Encode(head), Encode(claims ?? Claims()), by ?? Rs256(RsaKey));

    private static string Good { get; } = Token();

    private static string Rsa(RSA key, string? kid, string extra = "")
    {
        var p = key.ExportParameters(false);
        return $$"""
            {"kty":"RSA","n":"{{Encode(p.Modulus!)}}","e":"{{Encode(p.Exponent!)}}"{{Kid(kid)}}{{extra}}}
            """;
    }

    private static string Curve(ECDsa key, string? kid, string name = "P-256")
    {
        var q = key.ExportParameters(false).Q;
        return $$"""
            {"kty":"EC","crv":"{{name}}","x":"{{Encode(q.X!)}}","y":"{{Encode(q.Y!)}}"{{Kid(kid)}}}
            """;
    }

    private static string Kid(string? kid) => kid == null ? "" : $",\"kid\":\"{kid}\"";

    private static string Keys(params string[] keys) => $$"""{"keys":[{{string.Join(',', keys)}}]}""";

    private static string Standard { get; } = Keys(
        Rsa(RsaKey, "r", ""","use":"sig" """), Curve(EcKey, "e"), Rsa(RsaKey, "only-rs", ""","alg":"RS256" """),
        Rsa(WeakRsaKey, "weak"), Curve(LargeEcKey, "p384", "P-384"), Curve(LargeEcKey, "lying"),
        Rsa(RsaKey, "enc", ""","use":"enc" """), Rsa(OtherRsaKey, "twin"), Rsa(RsaKey, "twin"),
        """{"kty":"oct","kid":"oct","k":"c2VjcmV0"}""",
        """{"kty":"OKP","crv":"Ed25519","kid":"o","x":"AAAA"}""",
        "null");

    /// <summary>The issuer's two documents, and what is wrong with it.</summary>
    private sealed class StubIssuer : HttpMessageHandler
    {
        private readonly Lock _gate = new();
        private readonly List<string> _asked = [];

        public string Discovery { get; set; } =
            $$"""{"issuer":"{{IssuerName}}","jwks_uri":"https://keys.example.org/jwks","other":[1]}""";

        public string Jwks { get; set; } = Standard;

        /// <summary>What happens instead of an answer; null: it answers.</summary>
        public Func<string, Task<HttpResponseMessage?>>? Instead { get; set; }

        public IReadOnlyList<string> Asked
        {
            get
            {
                lock (_gate)
                    return [.. _asked];
            }
        }

        /// <summary>How often it was asked for the first of the documents.</summary>
        public int Fetches => Asked.Count(url => url.EndsWith("/openid-configuration", Ordinal));

        protected override async Task<HttpResponseMessage> SendAsync(
            HttpRequestMessage request, CancellationToken cancellationToken)
        {
            var url = request.RequestUri!.AbsoluteUri;
            lock (_gate)
                _asked.Add(url);
            var text = url.EndsWith("/jwks", Ordinal) ? Jwks : Discovery;
            if (Instead != null && await Instead(url) is { } instead)
                return instead;
            return new HttpResponseMessage(HttpStatusCode.OK) { Content = new StringContent(text) };
        }
    }

    /// <summary>Auth with its clock, its issuer, its log and its counters.</summary>
    private sealed class Door
    {
        public Door(params string[] flags)
        {
            var log = new Log(LogLevel.Trace, json: false, TextWriter.Synchronized(Lines), Clock);
            Options = Front.OptionsOf(flags);
            Log = log;
            Auth = new Auth(Options, Issuer, Clock, log, Meters);
        }

        public static Door Oidc() => new(
            "--auth-mode", "oidc", "--oidc-issuer", IssuerName, "--oidc-audience", Audience);

        public static Door Basic(string user, string password) => new(
            "--auth-mode", "basic", "--username", user, "--password", password);

        public StringWriter Lines { get; } = new();

        public ManualClock Clock { get; } = new(Start);

        public StubIssuer Issuer { get; } = new();

        public Meters Meters { get; } = new("test", "test");

        public Options Options { get; }

        public Log Log { get; }

        public Auth Auth { get; }

        /// <param name="connection">Null: a new one.</param>
        public Task<Reply?> AskAsync(string? authorization, IPAddress? client = null, SignedIn? connection = null) =>
            Auth.RefusalAsync(Users.Sender, authorization, client ?? Client, connection ?? new SignedIn()).AsTask();

        public Task<Reply?> ShowAsync(string token) => AskAsync($"Bearer {token}");

        /// <summary>Why a token is refused; null when it is admitted.</summary>
        public async Task<string?> ReasonAsync(string token) =>
            Reason(await ShowAsync(token).WaitAsync(Soon));

        public double Failed(string reason) => Meters.AuthFailures.WithLabels(reason).Value;
    }

    /// <summary>Asserts a challenge of RFC 6750 that can stand in a header, and returns its reason.</summary>
    private static string? Reason(Reply? reply)
    {
        if (reply == null)
            return null;
        Assert.Equal(401, reply.Code);
        var (name, value) = Assert.Single(reply.Headers);
        Assert.Equal("WWW-Authenticate", name);
        const string before = "Bearer realm=\"SeS\", error=\"invalid_token\", error_description=\"";
        Assert.StartsWith(before, value, Ordinal);
        Assert.EndsWith("\"", value, Ordinal);
        var reason = value[before.Length..^1];
        // The characters of RFC 6750, 3.
        Assert.All(reason, c => Assert.True(c is >= ' ' and <= '~' and not '"' and not '\\', $"{c}"));
        Assert.InRange(reason.Length, 10, 100);
        return reason;
    }

    private static void IsUnavailable(Reply? reply)
    {
        Assert.NotNull(reply);
        Assert.Equal((503, 0), (reply.Code, reply.Headers.Count));
        Assert.Equal(TimeSpan.Zero, reply.HeldBack);
    }

    // ---- Tokens ----

    private static string At(long seconds) => (Now + seconds).ToString(CultureInfo.InvariantCulture);

    private static byte[] Pem => Encoding.ASCII.GetBytes(RsaKey.ExportSubjectPublicKeyInfoPem());

    private static string[] Parts => Good.Split('.');

    private static Dictionary<string, (string Token, string? Reason)> Tokens { get; } = new()
    {
        ["RS256"] = (Good, null),
        ["PS256"] = (Token("""{"alg":"PS256","kid":"r"}""", by: Ps256(RsaKey)), null),
        ["ES256"] = (Token("""{"alg":"ES256","kid":"e"}""", by: Es256(EcKey)), null),
        ["RS256 by a key for it alone"] = (Token("""{"alg":"RS256","kid":"only-rs"}"""), null),
        ["no kid"] = (Token("""{"alg":"ES256"}""", by: Es256(EcKey)), null),
        ["kid null"] = (Token("""{"alg":"RS256","kid":null}"""), null),
        ["the second of two keys of a name"] = (Token("""{"alg":"RS256","kid":"twin"}"""), null),
        ["the first of two keys of a name"] = (
            Token("""{"alg":"RS256","kid":"twin"}""", by: Rs256(OtherRsaKey)), null),
        ["typ at+jwt"] = (Token("""{"alg":"RS256","kid":"r","typ":"at+JWT"}"""), null),
        ["typ application/at+jwt"] = (
            Token("""{"alg":"RS256","kid":"r","typ":"application/at+jwt"}"""), null),

        ["alg none"] = (Token("""{"alg":"none","kid":"r"}"""), Algorithm),
        ["alg none, not signed"] = (Token("""{"alg":"none"}""", by: Fixed(0, 0)), Algorithm),
        ["alg None"] = (Token("""{"alg":"None"}""", by: Fixed(0, 0)), Algorithm),
        ["alg nOnE"] = (Token("""{"alg":"nOnE"}""", by: Fixed(0, 0)), Algorithm),
        ["alg empty"] = (Token("""{"alg":"","kid":"r"}"""), Algorithm),
        ["alg null"] = (Token("""{"alg":null,"kid":"r"}"""), Algorithm),
        ["no alg"] = (Token("""{"kid":"r"}"""), Algorithm),
        ["alg rs256"] = (Token("""{"alg":"rs256","kid":"r"}"""), Algorithm),
        ["alg of other case"] = (Token("""{"Alg":"RS256","kid":"r"}"""), Algorithm),
        ["RS384"] = (Token("""{"alg":"RS384","kid":"r"}""", by: signed =>
            RsaKey.SignData(signed, HashAlgorithmName.SHA384, RSASignaturePadding.Pkcs1)), Algorithm),
        ["HS256 by the key's PEM"] = (Token("""{"alg":"HS256","kid":"r"}""", by: Hs256(Pem)), Algorithm),
        ["HS256 by the key's modulus"] = (Token("""{"alg":"HS256","kid":"r"}""",
            by: Hs256(RsaKey.ExportParameters(false).Modulus!)), Algorithm),
        ["HS256 by the symmetric key"] = (
            Token("""{"alg":"HS256","kid":"oct"}""", by: Hs256("secret"u8.ToArray())), Algorithm),
        ["RS256 with a mac by the PEM"] = (Token(by: Hs256(Pem)), Signature),
        ["ES256 with a mac by the modulus"] = (Token("""{"alg":"ES256","kid":"r"}""",
            by: Hs256(RsaKey.ExportParameters(false).Modulus!)), Signature),

        ["not signed"] = (Token(by: Fixed(0, 0)), Signature),
        ["RSA signature of zeros"] = (Token(by: Fixed(256, 0)), Signature),
        ["RSA signature over the modulus"] = (Token(by: Fixed(256, 255)), Signature),
        ["RSA signature that is short"] = (Token(by: Fixed(255, 1)), Signature),
        ["RSA signature that is long"] = (Token(by: Fixed(4000, 1)), Signature),
        ["ES256 in DER"] = (Token("""{"alg":"ES256","kid":"e"}""", by: signed => EcKey.SignData(
            signed, HashAlgorithmName.SHA256, DSASignatureFormat.Rfc3279DerSequence)), Signature),
        ["ES256 of zeros"] = (Token("""{"alg":"ES256","kid":"e"}""", by: Fixed(64, 0)), Signature),
        ["ES256 over the order"] = (Token("""{"alg":"ES256","kid":"e"}""", by: Fixed(64, 255)), Signature),
        ["ES256 by another key"] = (
            Token("""{"alg":"ES256","kid":"e"}""", by: Es256(OtherEcKey)), Signature),
        ["RS256 by another key"] = (Token(by: Rs256(OtherRsaKey)), Signature),
        ["PS256 under RS256"] = (Token(by: Ps256(RsaKey)), Signature),
        ["RS256 under PS256"] = (Token("""{"alg":"PS256","kid":"r"}"""), Signature),
        ["PS256 by a key for RS256"] = (
            Token("""{"alg":"PS256","kid":"only-rs"}""", by: Ps256(RsaKey)), Signature),
        ["ES256 under RS256 by a curve"] = (
            Token("""{"alg":"RS256","kid":"e"}""", by: Es256(EcKey)), Signature),
        ["RS256 under ES256 by RSA"] = (Token("""{"alg":"ES256","kid":"r"}"""), Signature),
        ["RSA key of 1,024 bits"] = (
            Token("""{"alg":"RS256","kid":"weak"}""", by: Rs256(WeakRsaKey)), UnknownKey),
        ["P-384"] = (Token("""{"alg":"ES256","kid":"p384"}""", by: Es256(LargeEcKey)), UnknownKey),
        ["P-384 said to be P-256"] = (
            Token("""{"alg":"ES256","kid":"lying"}""", by: Es256(LargeEcKey)), UnknownKey),
        ["key for encryption"] = (Token("""{"alg":"RS256","kid":"enc"}"""), UnknownKey),
        ["unknown kid"] = (Token("""{"alg":"RS256","kid":"R"}"""), UnknownKey),
        ["empty kid"] = (Token("""{"alg":"RS256","kid":""}"""), UnknownKey),
        ["kid as a path"] = (Token("""{"alg":"RS256","kid":"../r\u0000\r\nX: y"}"""), UnknownKey),
        ["no kid, by another key"] = (Token("""{"alg":"RS256"}""", by: Rs256(WeakRsaKey)), Signature),

        ["key in the token"] = (Token($$"""{"alg":"RS256","kid":"r","jwk":{{Rsa(WeakRsaKey, "r")}}}""",
            by: Rs256(WeakRsaKey)), Signature),
        ["key in the token, unknown kid"] = (
            Token($$"""{"alg":"RS256","kid":"mine","jwk":{{Rsa(OtherRsaKey, "mine")}}}""",
            by: Rs256(OtherRsaKey)), UnknownKey),
        ["jku"] = (Token("""{"alg":"RS256","kid":"mine","jku":"https://evil.example/jwks"}""",
            by: Rs256(OtherRsaKey)), UnknownKey),
        ["x5c and x5u"] = (
            Token("""{"alg":"RS256","kid":"mine","x5u":"https://evil.example/","x5c":["AAAA"]}""",
            by: Rs256(OtherRsaKey)), UnknownKey),
        ["jwk that is not used"] = (
            Token($$"""{"alg":"RS256","kid":"r","jwk":{{Rsa(WeakRsaKey, "r")}}}"""), null),
        ["crit"] = (Token("""{"alg":"RS256","kid":"r","crit":["exp"]}"""), Kind),
        ["crit empty"] = (Token("""{"alg":"RS256","kid":"r","crit":[]}"""), Kind),
        ["crit with b64"] = (Token("""{"alg":"RS256","kid":"r","crit":["b64"],"b64":false}"""), Kind),
        ["typ dpop+jwt"] = (Token("""{"alg":"RS256","kid":"r","typ":"dpop+jwt"}"""), Kind),
        ["typ empty"] = (Token("""{"alg":"RS256","kid":"r","typ":""}"""), Kind),

        ["signature of another token"] = (
            $"{Parts[0]}.{Parts[1]}.{Token(claims: Claims("\"jti\":\"2\"")).Split('.')[2]}", Signature),
        ["claims changed"] = ($"{Parts[0]}.{Encode(Claims("\"roles\":[\"ADMIN\"]"))}.{Parts[2]}", Signature),
        ["head changed"] = ($"{Encode("""{"alg":"RS256","kid":"r"}""")}.{Parts[1]}.{Parts[2]}", Signature),

        ["one part"] = (Parts[0], NoToken),
        ["two parts"] = ($"{Parts[0]}.{Parts[1]}", NoToken),
        ["four parts"] = (Good + ".", NoToken),
        ["five parts"] = (Good + ".AA.AA", NoToken),
        ["dots"] = ("..", NoToken),
        ["many dots"] = (new string('.', 16_000), NoToken),
        ["no head"] = ($".{Parts[1]}.{Parts[2]}", NoToken),
        ["no claims"] = ($"{Parts[0]}..{Parts[2]}", NoToken),
        ["padded signature"] = (Good + "==", NoToken),
        ["signature padded with %"] = (Good + "%", NoToken),
        ["padded head"] = (
            Join(Encode("""{"alg":"RS256" }""") + "=", Encode(Claims()), Rs256(RsaKey)), NoToken),
        ["space in the signature"] = (Good.Insert(Good.Length - 3, " "), NoToken),
        ["tab in the claims"] = ($"{Parts[0]}.{Parts[1].Insert(4, "\t")}.{Parts[2]}", NoToken),
        ["space in the claims, signed"] = (Join(Parts[0], Parts[1].Insert(4, " "), Rs256(RsaKey)), NoToken),
        ["plain base64"] = ($"{Parts[0]}.{Parts[1]}.+/+/", NoToken),
        ["bits left over"] = ($"{Parts[0]}.{Parts[1]}.AB", NoToken),
        ["length that none has"] = ($"{Parts[0]}.{Parts[1]}.AAAAA", NoToken),
        ["not ASCII"] = ($"{Parts[0]}.{Parts[1]}.\u00e9\u00e9\u00e9\u00e9", NoToken),
        ["control characters"] = ($"{Parts[0]}.{Parts[1]}.\r\n\0", NoToken),
        ["head is no JSON"] = (Token("hello"), NoToken),
        ["head is null"] = (Token("null"), NoToken),
        ["head is a list"] = (Token("[]"), NoToken),
        ["head and more"] = (Token("""{"alg":"RS256","kid":"r"}{}"""), NoToken),
        ["head is empty"] = (Token(""), NoToken),
        ["head with half a character"] = (Token("""{"alg":"RS256","kid":"\ud800"}"""), NoToken),
        ["head with half a character as a name"] = (
            Token("""{"crit":{"\ud800":1},"alg":"RS256"}"""), NoToken),
        ["head that is not UTF-8"] = (
            Join(Encode([.. "{\"alg\":\""u8, 0xff, .. "\"}"u8]), Encode(Claims()), Rs256(RsaKey)), NoToken),
        ["kid is a number"] = (Token("""{"alg":"RS256","kid":1}"""), NoToken),
        ["alg twice"] = (Token("""{"alg":"none","alg":"RS256","kid":"r"}"""), NoToken),
        ["alg twice, escaped"] = (Token("""{"alg":"none","\u0061lg":"RS256","kid":"r"}"""), NoToken),
        ["head that is deep"] = (
            Token($$"""{"alg":"RS256","x":{{new string('[', 5000)}}{{new string(']', 5000)}}}"""), NoToken),
        ["claims are no JSON"] = (Token(claims: "{"), NoToken),
        ["claims are null"] = (Token(claims: "null"), NoToken),

        ["iss twice"] = (Token(claims: Claims($"\"iss\":\"{IssuerName}\"")), NoToken),
        ["aud twice"] = (Token(claims: Claims("\"aud\":\"other\"")), NoToken),
        ["exp twice"] = (Token(claims: Claims("\"exp\":1")), NoToken),
        ["iss is a list"] = (Token(claims: Claims(iss: $"[\"{IssuerName}\"]")), NoToken),
        ["iss other"] = (Token(claims: Claims(iss: "\"https://id.example.org/other\"")), OtherIssuer),
        ["iss of other case"] = (Token(claims: Claims(iss: "\"https://ID.example.org/realm\"")), OtherIssuer),
        ["iss with a slash"] = (Token(claims: Claims(iss: $"\"{IssuerName}/\"")), OtherIssuer),
        ["iss absent"] = (Token(claims: Claims(iss: null)), OtherIssuer),
        ["iss null"] = (Token(claims: Claims(iss: "null")), OtherIssuer),
        ["aud in a list"] = (Token(claims: Claims(aud: """["other","ses"]""")), null),
        ["aud escaped"] = (Token(claims: Claims(aud: """["s\u0065s"]""")), null),
        ["aud among others"] = (Token(claims: Claims(aud: """[1,null,["x"],{"ses":1},"ses"]""")), null),
        ["aud other"] = (Token(claims: Claims(aud: "\"other\"")), OtherAudience),
        ["aud of other case"] = (Token(claims: Claims(aud: "\"SES\"")), OtherAudience),
        ["aud longer"] = (Token(claims: Claims(aud: "\"ses2\"")), OtherAudience),
        ["aud with a space"] = (Token(claims: Claims(aud: "\"other ses\"")), OtherAudience),
        ["aud empty list"] = (Token(claims: Claims(aud: "[]")), OtherAudience),
        ["aud nested list"] = (Token(claims: Claims(aud: """[["ses"]]""")), OtherAudience),
        ["aud object"] = (Token(claims: Claims(aud: """{"ses":"ses"}""")), OtherAudience),
        ["aud number"] = (Token(claims: Claims(aud: "1")), OtherAudience),
        ["aud null"] = (Token(claims: Claims(aud: "null")), OtherAudience),
        ["aud absent"] = (Token(claims: Claims(aud: null)), OtherAudience),
        ["aud with half a character"] = (Token(claims: Claims(aud: """ "\ud800" """)), OtherAudience),
        ["aud list with half a character"] = (Token(claims: Claims(aud: """["ses\udc00"]""")), OtherAudience),

        ["exp absent"] = (Token(claims: Claims(exp: null)), Endless),
        ["exp null"] = (Token(claims: Claims(exp: "null")), Endless),
        ["exp is a text"] = (Token(claims: Claims(exp: "\"4102444800\"")), NoToken),
        ["exp is a truth"] = (Token(claims: Claims(exp: "true")), NoToken),
        ["exp is NaN"] = (Token(claims: Claims(exp: "NaN")), NoToken),
        ["exp huge"] = (Token(claims: Claims(exp: "1e300")), null),
        ["exp of many digits"] = (Token(claims: Claims(exp: new string('9', 5000))), null),
        ["exp hugely long ago"] = (Token(claims: Claims(exp: "-1e300")), Expired),
        ["exp 0"] = (Token(claims: Claims(exp: "0")), Expired),
        ["exp with a fraction"] = (Token(claims: Claims(exp: At(-60) + ".5")), null),
        ["exp just within the skew"] = (Token(claims: Claims(exp: At(-59))), null),
        ["exp at the skew"] = (Token(claims: Claims(exp: At(-60))), Expired),
        ["nbf long ago"] = (Token(claims: Claims("\"nbf\":-1e300")), null),
        ["nbf null"] = (Token(claims: Claims("\"nbf\":null")), null),
        ["nbf at the skew"] = (Token(claims: Claims($"\"nbf\":{At(60)}")), null),
        ["nbf just beyond the skew"] = (Token(claims: Claims($"\"nbf\":{At(61)}")), Early),
        ["nbf huge"] = (Token(claims: Claims("\"nbf\":1e300")), Early),
        ["nbf is a text"] = (Token(claims: Claims("\"nbf\":\"1\"")), NoToken),
    };

    public static TheoryData<string> TokenNames => [.. Tokens.Keys];

    [Theory]
    [MemberData(nameof(TokenNames))]
    public async Task TokenIsJudged(string name)
    {
        var (token, reason) = Tokens[name];
        var door = Door.Oidc();
        await door.Auth.PrepareAsync();
        Assert.Equal(reason, await door.ReasonAsync(token));
        Assert.Equal(reason == null ? 0 : 1, door.Failed("wrong"));
        Assert.DoesNotContain(door.Issuer.Asked, url => !url.Contains(".example.org/", Ordinal));
        Assert.DoesNotContain(token, door.Lines.ToString(), Ordinal);
    }

    [Theory]
    [InlineData("bearer", true)]
    [InlineData("BEARER", true)]
    [InlineData("Bearer  ", true)]
    [InlineData("Basic", false)]
    [InlineData("Bearers", false)]
    [InlineData("Bearer,", false)]
    public async Task SchemeIsBearerInAnyCase(string scheme, bool admitted)
    {
        var door = Door.Oidc();
        var reply = await door.AskAsync($"{scheme} {Good}");
        Assert.Equal(admitted, reply == null);
        Assert.Equal(admitted ? 0 : 1, door.Failed("scheme"));
    }

    [Theory]
    [InlineData("Basic YTpi")]
    [InlineData("Bearer")]
    [InlineData("x")]
    public async Task CredentialsOfAnotherKindGetTheChallengeAndNoErrorCode(string authorization)
    {
        // RFC 6750, 3.1: a client that used another method is told no error.
        var door = Door.Oidc();
        var reply = await door.AskAsync(authorization);
        Assert.Equal((401, ("WWW-Authenticate", "Bearer realm=\"SeS\"")), (reply!.Code, Assert.Single(reply.Headers)));
        Assert.Equal(TimeSpan.Zero, reply.HeldBack);
        Assert.Empty(door.Issuer.Asked);
    }

    [Fact]
    public async Task MissingCredentialsAreNoGuess()
    {
        foreach (var door in new[] { Door.Oidc(), Door.Basic("ann", "secret") })
        {
            for (var i = 1; i <= 10; i++)
            {
                var reply = await door.AskAsync(null);
                Assert.Equal((401, TimeSpan.Zero), (reply!.Code, reply.HeldBack));
                Assert.DoesNotContain("error", Assert.Single(reply.Headers).Value, Ordinal);
                Assert.Equal(i, door.Failed("missing"));
            }
            Assert.Equal(TimeSpan.Zero, (await door.AskAsync("Other x"))!.HeldBack);
            Assert.Equal((1, 0), (door.Failed("scheme"), door.Failed("wrong")));
        }
    }

    [Fact]
    public async Task ModeNoneAdmitsAnything()
    {
        var door = new Door("--auth-mode", "none");
        foreach (var authorization in new[] { null, "", "Basic x", "Bearer x" })
            Assert.Null(await door.AskAsync(authorization));
    }

    // ---- The issuer's documents ----

    [Fact]
    public async Task IssuerIsAskedOnceForBothDocuments()
    {
        var door = Door.Oidc();
        await door.Auth.PrepareAsync();
        for (var i = 0; i < 20; i++)
        {
            door.Clock.Advance(TimeSpan.FromMinutes(2));
            Assert.Null(await door.ReasonAsync(Good));
        }
        Assert.Equal([IssuerName + "/.well-known/openid-configuration", "https://keys.example.org/jwks"],
            door.Issuer.Asked);
    }

    [Fact]
    public async Task IssuerWithASlashAtItsEndIsAskedWithoutASecondSlash()
    {
        const string name = "https://id.example.org/";
        var door = new Door("--auth-mode", "oidc", "--oidc-issuer", name, "--oidc-audience", Audience);
        door.Issuer.Discovery = $$"""{"issuer":"{{name}}","jwks_uri":"https://keys.example.org/jwks"}""";
        Assert.Null(await door.ReasonAsync(Token(claims: Claims(iss: $"\"{name}\""))));
        Assert.Equal("https://id.example.org/.well-known/openid-configuration", door.Issuer.Asked[0]);
        Assert.Equal(OtherIssuer, await door.ReasonAsync(Good));
    }

    private static Task<HttpResponseMessage?> Answer(HttpStatusCode code, string text = "{}") =>
        Task.FromResult<HttpResponseMessage?>(new(code) { Content = new StringContent(text) });

    private static Dictionary<string, Action<StubIssuer>> Troubles { get; } = new()
    {
        ["500"] = i => i.Instead = _ => Answer(HttpStatusCode.InternalServerError),
        ["404"] = i => i.Instead = _ => Answer(HttpStatusCode.NotFound),
        ["redirect"] = i => i.Instead = _ => Answer(HttpStatusCode.Found),
        ["500 of the keys"] = i => i.Instead = url => url.EndsWith("/jwks", Ordinal)
            ? Answer(HttpStatusCode.InternalServerError) : Task.FromResult<HttpResponseMessage?>(null),
        ["away"] = i => i.Instead = _ => throw new HttpRequestException("Connection refused"),
        ["timeout"] = i => i.Instead = _ =>
            throw new TaskCanceledException("timed out", new TimeoutException()),
        ["not JSON"] = i => i.Discovery = "<html>",
        ["keys not JSON"] = i => i.Jwks = "<html>",
        ["null"] = i => i.Discovery = "null",
        ["keys null"] = i => i.Jwks = "null",
        ["a list"] = i => i.Discovery = "[]",
        ["empty"] = i => i.Discovery = "",
        ["over 1 MiB"] = i => i.Discovery = i.Discovery.PadRight(1024 * 1024 + 1),
        ["keys over 1 MiB"] = i => i.Jwks = i.Jwks.PadRight(1024 * 1024 + 1),
        ["another issuer"] = i => i.Discovery = i.Discovery.Replace("/realm", "/other", Ordinal),
        ["issuer with a slash"] = i => i.Discovery = i.Discovery.Replace("/realm", "/realm/", Ordinal),
        ["no issuer"] = i => i.Discovery = i.Discovery.Replace("\"issuer\"", "\"name\"", Ordinal),
        ["issuer twice"] = i => i.Discovery =
            i.Discovery.Replace("\"other\"", $"\"issuer\":\"{IssuerName}\",\"other\"", Ordinal),
        ["control characters"] = i => i.Discovery = i.Discovery.Replace("/realm", "\\r\\nX: y", Ordinal),
        ["no jwks_uri"] = i => i.Discovery = i.Discovery.Replace("jwks_uri", "jwks", Ordinal),
        ["jwks_uri empty"] = i => Keys(i, ""),
        ["jwks_uri relative"] = i => Keys(i, "/jwks"),
        ["jwks_uri a file"] = i => Keys(i, "file:///etc/passwd"),
        ["jwks_uri no URL"] = i => Keys(i, "http://[::1/jwks"),
        ["jwks_uri without a host"] = i => Keys(i, "http:///jwks"),
        ["jwks_uri a number"] = i => i.Discovery =
            i.Discovery.Replace("\"https://keys.example.org/jwks\"", "5", Ordinal),
        ["keys no list"] = i => i.Jwks = """{"keys":{}}""",
    };

    private static void Keys(StubIssuer issuer, string uri) => issuer.Discovery =
        issuer.Discovery.Replace("https://keys.example.org/jwks", uri, Ordinal);

    public static TheoryData<string> TroubleNames => [.. Troubles.Keys];

    [Theory]
    [MemberData(nameof(TroubleNames))]
    public async Task WithoutKeysTheAnswerIs503UntilTheIssuerIsRight(string name)
    {
        var door = Door.Oidc();
        var (discovery, jwks) = (door.Issuer.Discovery, door.Issuer.Jwks);
        Troubles[name](door.Issuer);
        await door.Auth.PrepareAsync();
        door.Clock.Advance(TimeSpan.FromSeconds(1));
        IsUnavailable(await door.ShowAsync(Good).WaitAsync(Soon));
        IsUnavailable(await door.ShowAsync(Good).WaitAsync(Soon));
        Assert.Equal(0, door.Failed("wrong"));
        // What cannot be good with any keys is refused all the same.
        Assert.Equal(Algorithm, await door.ReasonAsync(Tokens["alg none"].Token));
        Assert.Contains("the keys of the OIDC issuer are not available", door.Lines.ToString(), Ordinal);
        Assert.All(door.Lines.ToString().Split('\n', StringSplitOptions.RemoveEmptyEntries),
            line => Assert.All(line, c => Assert.InRange(c, ' ', '~')));

        (door.Issuer.Discovery, door.Issuer.Jwks, door.Issuer.Instead) = (discovery, jwks, null);
        door.Clock.Advance(TimeSpan.FromSeconds(1));
        Assert.Null(await door.ReasonAsync(Good));
        Assert.Equal(Signature, await door.ReasonAsync(Tokens["RSA signature of zeros"].Token));
    }

    [Fact]
    public async Task LongNameOfAStrangeIssuerDoesNotFloodTheLog()
    {
        var door = Door.Oidc();
        door.Issuer.Discovery = $$"""{"issuer":"{{new string('x', 500_000)}}"}""";
        await door.Auth.PrepareAsync();
        Assert.InRange(door.Lines.ToString().Length, 10, 2_000);
    }

    private static Dictionary<string, string> StrangeKeys { get; } = new()
    {
        ["number"] = "5",
        ["list"] = "[]",
        ["text"] = "\"key\"",
        ["empty"] = "{}",
        ["kid a number"] = """{"kty":"RSA","kid":5}""",
        ["n a list"] = """{"kty":"RSA","n":[1],"e":"AQAB"}""",
        ["n missing"] = """{"kty":"RSA","kid":"r","e":"AQAB"}""",
        ["n empty"] = """{"kty":"RSA","kid":"r","n":"","e":"AQAB"}""",
        ["e empty"] = Rsa(RsaKey, "r").Replace("\"AQAB\"", "\"\"", Ordinal),
        ["e zero"] = Rsa(RsaKey, "r").Replace("\"AQAB\"", "\"AA\"", Ordinal),
        ["e one"] = Rsa(RsaKey, "r").Replace("\"AQAB\"", "\"AQ\"", Ordinal),
        ["e even"] = Rsa(RsaKey, "r").Replace("\"AQAB\"", "\"Ag\"", Ordinal),
        ["e huge"] = Rsa(RsaKey, "r").Replace("\"AQAB\"", $"\"{new string('_', 400)}\"", Ordinal),
        ["n zero"] = $$"""{"kty":"RSA","kid":"r","n":"{{new string('A', 344)}}","e":"AQAB"}""",
        ["n even"] = $$"""
            {"kty":"RSA","kid":"r","e":"AQAB","n":"{{Encode([.. Enumerable.Repeat((byte)254, 256)])}}"}
            """,
        ["n huge"] = $$"""{"kty":"RSA","kid":"r","n":"{{new string('_', 40_000)}}","e":"AQAB"}""",
        ["n no base64url"] = """{"kty":"RSA","kid":"r","n":"+++","e":"AQAB"}""",
        ["n weak with zeros before it"] = $$"""
            {"kty":"RSA","kid":"r","e":"AQAB",
            "n":"{{Encode([.. new byte[128], .. WeakRsaKey.ExportParameters(false).Modulus!])}}"}
            """,
        ["point at infinity"] = """{"kty":"EC","kid":"r","crv":"P-256","x":"","y":""}""",
        ["point of zeros"] = Point(new byte[32], new byte[32]),
        ["point that is large"] = Point([.. Enumerable.Repeat((byte)255, 32)], new byte[32]),
        ["point off the curve"] = Point(
            EcKey.ExportParameters(false).Q.X!, OtherEcKey.ExportParameters(false).Q.Y!),
        ["point with a short x"] = Point(new byte[31], new byte[32]),
        ["point that is huge"] = Point(new byte[50_000], new byte[50_000]),
        ["point without y"] = """{"kty":"EC","kid":"r","crv":"P-256","x":"AAAA"}""",
        ["point no base64url"] = """{"kty":"EC","kid":"r","crv":"P-256","x":"%","y":"!"}""",
        ["crv unknown"] = """{"kty":"EC","kid":"r","crv":"secp256k1","x":"AAAA","y":"AAAA"}""",
        ["kid with half a character"] = """{"kty":"RSA","kid":"\ud800","n":"AAAA","e":"AQAB"}""",
    };

    private static string Point(byte[] x, byte[] y) =>
        $$"""{"kty":"EC","kid":"r","crv":"P-256","x":"{{Encode(x)}}","y":"{{Encode(y)}}"}""";

    public static TheoryData<string> StrangeKeyNames => [.. StrangeKeys.Keys];

    [Theory]
    [MemberData(nameof(StrangeKeyNames))]
    public async Task KeyThatSesCannotUseSpoilsNoOther(string name)
    {
        // RFC 7517, 5: such keys are to be ignored.
        var door = Door.Oidc();
        door.Issuer.Jwks = Keys(StrangeKeys[name], Rsa(RsaKey, "r"), Curve(EcKey, "e"));
        Assert.Null(await door.ReasonAsync(Good));
        Assert.Null(await door.ReasonAsync(Tokens["ES256"].Token));
        Assert.Equal(Signature, await door.ReasonAsync(Tokens["RS256 by another key"].Token));
    }

    [Fact]
    public async Task IssuerWithoutKeysRefusesAll()
    {
        var door = Door.Oidc();
        door.Issuer.Jwks = "{}";
        Assert.Equal(UnknownKey, await door.ReasonAsync(Good));
    }

    // ---- Rotation ----

    private static string New(string head = """{"alg":"RS256","kid":"new"}""") =>
        Token(head, by: Rs256(OtherRsaKey));

    [Theory]
    [InlineData("""{"alg":"RS256","kid":"new"}""", "new")]
    [InlineData("""{"alg":"RS256"}""", null)]
    [InlineData("""{"alg":"RS256","kid":"r"}""", "r")]
    public async Task TokenSignedByANewKeyIsNotRefused(string head, string? kid)
    {
        var door = Door.Oidc();
        door.Issuer.Jwks = Keys(Rsa(RsaKey, kid == "new" ? "r" : kid));
        await door.Auth.PrepareAsync();
        door.Clock.Advance(TimeSpan.FromSeconds(5));
        door.Issuer.Jwks = Keys(Rsa(OtherRsaKey, kid));
        Assert.Null(await door.ReasonAsync(New(head)));
        Assert.Equal(2, door.Issuer.Fetches);
        door.Clock.Advance(TimeSpan.FromSeconds(5));
        Assert.NotNull(await door.ReasonAsync(Token(head)));
    }

    [Fact]
    public async Task TokensWithUnknownKeysShareOneFetchASecond()
    {
        var door = Door.Oidc();
        await door.Auth.PrepareAsync();
        door.Clock.Advance(TimeSpan.FromSeconds(0.1));
        door.Issuer.Jwks = Keys(Rsa(RsaKey, "r"), Rsa(OtherRsaKey, "new"));
        var strangers = Enumerable.Range(0, 100)
            .Select(n => door.ShowAsync(Token($$"""{"alg":"RS256","kid":"x{{n}}"}"""))).ToList();
        var entitled = door.ShowAsync(New());
        Assert.All(strangers.Append(entitled), s => Assert.False(s.IsCompleted));
        // A key that is known waits for nobody.
        Assert.Null(await door.ReasonAsync(Good));
        door.Clock.Advance(TimeSpan.FromSeconds(0.8));
        Assert.Null(await door.ReasonAsync(Good));
        Assert.Equal(1, door.Issuer.Fetches);
        door.Clock.Advance(TimeSpan.FromSeconds(0.1));
        Assert.All(await Task.WhenAll(strangers).WaitAsync(Soon), r => Assert.Equal(UnknownKey, Reason(r)));
        Assert.Null(Reason(await entitled.WaitAsync(Soon)));
        Assert.Equal(2, door.Issuer.Fetches);
    }

    [Fact]
    public async Task FetchesAreASecondApartForAsLongAsStrangersCome()
    {
        var door = Door.Oidc();
        var shown = new List<Task<Reply?>>();
        for (var tenth = 0; tenth < 100; tenth++)
        {
            shown.Add(door.ShowAsync(Token($$"""{"alg":"RS256","kid":"x{{tenth}}"}""")));
            door.Clock.Advance(TimeSpan.FromSeconds(0.1));
        }
        await Wait.UntilAsync(() =>
        {
            door.Clock.Advance(TimeSpan.FromSeconds(0.1));
            return shown.All(s => s.IsCompleted);
        }, Soon, "the answers");
        foreach (var reply in shown)
            Assert.Equal(UnknownKey, Reason(await reply));
        Assert.InRange(door.Issuer.Fetches, 2, 12);
    }

    [Fact]
    public async Task TokenThatComesDuringAFetchIsJudgedByTheNextOne()
    {
        var door = Door.Oidc();
        var held = new TaskCompletionSource();
        door.Issuer.Instead = async url =>
        {
            if (url.EndsWith("/jwks", Ordinal))
                await held.Task;
            return null;
        };
        var preparing = door.Auth.PrepareAsync();
        door.Clock.Advance(TimeSpan.FromSeconds(0.5));
        door.Issuer.Jwks = Keys(Rsa(OtherRsaKey, "new"));
        var shown = door.ShowAsync(New());
        Assert.Equal(1, door.Issuer.Fetches);
        held.SetResult();
        await preparing.WaitAsync(Soon);
        await Wait.UntilAsync(() =>
        {
            door.Clock.Advance(TimeSpan.FromSeconds(0.1));
            return shown.IsCompleted;
        }, Soon, "the answer");
        Assert.Null(Reason(await shown));
        Assert.Equal(2, door.Issuer.Fetches);
    }

    [Fact]
    public async Task KeysAreFetchedAgainAfterAnHourAndWithdrawnOnesGo()
    {
        var door = Door.Oidc();
        Assert.Null(await door.ReasonAsync(Good));
        door.Issuer.Jwks = Keys(Rsa(OtherRsaKey, "new"));
        door.Clock.Advance(TimeSpan.FromHours(1));
        Assert.Null(await door.ReasonAsync(Good));
        Assert.Equal(1, door.Issuer.Fetches);
        door.Clock.Advance(TimeSpan.FromSeconds(1));
        Assert.Equal(UnknownKey, await door.ReasonAsync(Good));
        Assert.Null(await door.ReasonAsync(New()));
        Assert.Equal(2, door.Issuer.Fetches);
    }

    [Fact]
    public async Task WhileTheIssuerIsAwayKnownKeysServeForAsLongAsItTakes()
    {
        var door = Door.Oidc();
        await door.Auth.PrepareAsync();
        door.Issuer.Instead = _ => throw new HttpRequestException("Connection refused");
        for (var hour = 0; hour < 48; hour++)
        {
            door.Clock.Advance(TimeSpan.FromHours(1.1));
            Assert.Null(await door.ReasonAsync(Good));
            Assert.Equal(Signature, await door.ReasonAsync(Tokens["RSA signature of zeros"].Token));
        }
        door.Clock.Advance(TimeSpan.FromSeconds(2));
        IsUnavailable(await door.ShowAsync(New()).WaitAsync(Soon));
        door.Issuer.Instead = null;
        door.Issuer.Jwks = Keys(Rsa(OtherRsaKey, "new"));
        door.Clock.Advance(TimeSpan.FromSeconds(11));
        Assert.Null(await door.ReasonAsync(New()));
        Assert.Equal(UnknownKey, await door.ReasonAsync(Good));
    }

    [Fact]
    public async Task IssuerThatHangsHoldsUpNoTokenOfAKnownKeyBehindAnother()
    {
        var door = Door.Oidc();
        await door.Auth.PrepareAsync();
        var (held, first) = (new TaskCompletionSource(), true);
        door.Issuer.Instead = async _ =>
        {
            if (first)
                await held.Task;
            first = false;
            // As long as HttpClient waits, and a little longer.
            door.Clock.Advance(TimeSpan.FromSeconds(10.01));
            throw new TaskCanceledException("timed out");
        };
        door.Clock.Advance(TimeSpan.FromHours(2));
        var shown = Enumerable.Range(0, 20).Select(_ => door.ShowAsync(Good)).ToList();
        held.SetResult();
        Assert.All(await Task.WhenAll(shown).WaitAsync(Soon), Assert.Null);
        Assert.Equal(2, door.Issuer.Fetches);
    }

    [Fact]
    public async Task SlowIssuerCostsNoBodyThatComesMeanwhile()
    {
        var door = Door.Oidc();
        var held = new TaskCompletionSource();
        door.Issuer.Instead = async _ =>
        {
            await held.Task;
            return null;
        };
        await using var front = new Front(door.Options, door.Clock, door.Log, door.Meters, door.Auth);
        using var client = new TcpClient();
        await client.ConnectAsync(IPAddress.Loopback, front.Port);
        const string body = """{"version":"4","alerts":[]}""";
        var stream = client.GetStream();
        await stream.WriteAsync(Encoding.ASCII.GetBytes("POST /alerts/INS HTTP/1.1\r\nHost: localhost\r\n"
            + $"Authorization: Bearer {Good}\r\nContent-Length: {body.Length}\r\n\r\n"));
        await Wait.UntilAsync(() => door.Issuer.Fetches == 1, Soon, "the question to the issuer");
        for (var second = 0; second < 18; second++)
            door.Clock.Advance(TimeSpan.FromSeconds(1));
        held.SetResult();
        await stream.WriteAsync(Encoding.ASCII.GetBytes(body));
        using var reader = new StreamReader(stream, Encoding.ASCII);
        Assert.Equal("HTTP/1.1 204 No Content", await reader.ReadLineAsync().WaitAsync(Soon));
    }

    // ---- Basic ----

    private static string Basic(string userAndPassword) => Basic(Encoding.UTF8.GetBytes(userAndPassword));

    private static string Basic(byte[] credentials) => "Basic " + Convert.ToBase64String(credentials);

    [Theory]
    [InlineData("ann", "secret")]
    [InlineData("ann", "")]
    [InlineData("ann", "a:b::c:")]
    [InlineData("änn", "p€ss wörd 😀 \u0000\t")]
    [InlineData("ann", " \" \\ % + / ")]
    public async Task RightPasswordIsAdmittedAndOnlyItself(string user, string password)
    {
        var door = Door.Basic(user, password);
        Assert.Null(await door.AskAsync(Basic($"{user}:{password}")));
        var client = 0;
        foreach (var other in new[]
        {
            $"{user}:{password} ", $"{user}: {password}", $"{user}:{password}\n", $" {user}:{password}",
            $"{user}:{password}\0", user, $"{user}{password}", $":{user}:{password}", $"{user}::{password}",
            $"{user.ToUpperInvariant()}:{password}", ":", "",
        })
            Assert.Equal(401, (await door.AskAsync(Basic(other), Address(client++)))?.Code);
        Assert.Equal(12, door.Failed("wrong") + door.Failed("scheme"));
    }

    [Fact]
    public async Task PasswordInLatin1IsAnotherOne()
    {
        var door = Door.Basic("ann", "wörd");
        Assert.Null(await door.AskAsync(Basic("ann:wörd")));
        Assert.Equal(401, (await door.AskAsync(Basic(Encoding.Latin1.GetBytes("ann:wörd"))))!.Code);
        // The same letters, composed of others.
        Assert.Equal(401, (await door.AskAsync(Basic("ann:wo\u0308rd")))!.Code);
    }

    [Theory]
    [InlineData("Basic !!!")]
    [InlineData("Basic YW5uOnNlY3JldA")]
    [InlineData("Basic YW5uOnNlY3JldA===")]
    [InlineData("Basic YW5uOnNlY3JldA==, Basic x")]
    [InlineData("Basic \u00e9")]
    [InlineData("Basic ann:secret")]
    public async Task CredentialsThatAreNoBase64AreWrong(string authorization)
    {
        var door = Door.Basic("ann", "secret");
        var reply = await door.AskAsync(authorization);
        Assert.Equal((401, ("WWW-Authenticate", "Basic realm=\"SeS\", charset=\"UTF-8\"")),
            (reply!.Code, Assert.Single(reply.Headers)));
        Assert.Equal((1, SignIns.FirstDelay), (door.Failed("wrong"), reply.HeldBack));
    }

    [Theory]
    [InlineData("Bearer YW5uOnNlY3JldA==")]
    [InlineData("Digest username=\"ann\"")]
    [InlineData("YW5uOnNlY3JldA==")]
    [InlineData("BasicYW5uOnNlY3JldA==")]
    [InlineData("Basic")]
    public async Task OtherSchemesThanBasicAreCountedSo(string authorization)
    {
        var door = Door.Basic("ann", "secret");
        Assert.Equal(401, (await door.AskAsync(authorization))!.Code);
        Assert.Equal((1, 0), (door.Failed("scheme"), door.Failed("wrong")));
    }

    [Fact]
    public async Task VeryLongCredentialsAreJudgedAsOthers()
    {
        var password = new string('ü', 4_000);
        var door = Door.Basic("ann", password);
        Assert.Null(await door.AskAsync(Basic("ann:" + password)));
        Assert.Equal(401, (await door.AskAsync(Basic("ann:" + password + "u"), Address(1)))!.Code);
        Assert.Equal(401, (await door.AskAsync("Basic " + new string('A', 16_000), Address(2)))!.Code);
        Assert.Equal(401, (await door.AskAsync("Basic " + new string(' ', 16_000), Address(3)))!.Code);
        Assert.Equal(401, (await door.AskAsync(new string('x', 16_000), Address(4)))!.Code);
    }

    [Fact]
    public async Task WrongTokensAreAnsweredLaterAndRightOnesAreNeverDelayed()
    {
        var (door, right, wrong) = (Door.Oidc(), $"Bearer {Good}", $"Bearer {Tokens["exp 0"].Token}");
        var delays = new List<double>();
        for (var i = 0; i < 8; i++)
        {
            delays.Add((await door.AskAsync(wrong))!.HeldBack.TotalSeconds);
            Assert.Null(await door.AskAsync(right));
        }
        Assert.Equal([0.25, 0.5, 1, 2, 4, 5, 5, 5], delays);
        Assert.Equal(8, door.Failed("wrong"));
        Assert.Equal(SignIns.FirstDelay, (await door.AskAsync(wrong, IPAddress.Parse("192.0.2.2")))!.HeldBack);
    }

    // ---- Guessing ----

    private static readonly string Right = Basic("ann:secret"), Wrong = Basic("ann:wrong");

    [Fact]
    public async Task PasswordsAreJudgedAfterTheDelayAndNotBefore()
    {
        var door = Door.Basic("ann", "secret");
        var first = await door.AskAsync(Wrong);
        Assert.Equal((401, SignIns.FirstDelay), (first!.Code, first.HeldBack));
        foreach (var seconds in new[] { 0.5, 1, 2, 4, 5, 5 })
        {
            var asked = door.AskAsync(Wrong);
            door.Clock.Advance(TimeSpan.FromSeconds(seconds) - TimeSpan.FromMilliseconds(1));
            Assert.False(asked.IsCompleted, $"{seconds} s");
            door.Clock.Advance(TimeSpan.FromMilliseconds(1));
            var reply = await asked.WaitAsync(Soon);
            Assert.Equal((401, TimeSpan.Zero), (reply!.Code, reply.HeldBack));
        }
        Assert.Equal(7, door.Failed("wrong"));
        // The right one looks like a wrong one until then.
        var right = door.AskAsync(Right);
        door.Clock.Advance(TimeSpan.FromSeconds(4.999));
        Assert.False(right.IsCompleted);
        door.Clock.Advance(TimeSpan.FromMilliseconds(1));
        Assert.Null(await right.WaitAsync(Soon));
        // Others are not slowed.
        Assert.True(door.AskAsync(Right, IPAddress.Parse("192.0.2.2")).IsCompletedSuccessfully);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task NoMoreThanTenGuessesOfAnAddressAreJudgedInASecondWhateverItDoes(bool hasSignedIn)
    {
        var door = Door.Basic("ann", "secret");
        if (hasSignedIn)
            Assert.Null(await door.AskAsync(Right));
        var (judged, asked) = (new List<double>(), new List<Task<Reply?>>());
        for (var tick = 0; tick < 400; tick++)
        {
            for (var i = 0; i < 20; i++)
                asked.Add(door.AskAsync(Wrong, Client, i % 2 == 0 ? new SignedIn() : null));
            door.Clock.Advance(TimeSpan.FromMilliseconds(10));
            judged.Add(door.Failed("wrong"));
        }
        for (var i = 100; i < judged.Count; i++)
            Assert.InRange(judged[i] - judged[i - 100], 0, 10);
        if (hasSignedIn)
            Assert.InRange(judged[^1], 20, 25);
        door.Clock.Advance(SignIns.LongestDelay);
        var replies = await Task.WhenAll(asked).WaitAsync(Soon);
        var unjudged = replies.Where(r => r!.Code == 503).ToList();
        Assert.Equal(unjudged.Count, door.Failed("unjudged"));
        Assert.InRange(unjudged.Count, 7_900, 8_000);
        Assert.All(unjudged, r => Assert.InRange(
            int.Parse(Assert.Single(r!.Headers, h => h.Name == "Retry-After").Value, CultureInfo.InvariantCulture), 1, 5));
        Assert.All(replies.Except(unjudged), r => Assert.Equal(401, r!.Code));
    }

    [Fact]
    public async Task WhoSignedInLatelyIsNotSlowedByOthersOfItsAddress()
    {
        var door = Door.Basic("ann", "secret");
        var connection = new SignedIn();
        Assert.Null(await door.AskAsync(Right, Client, connection));
        for (var i = 0; i < 4; i++)
            Assert.Equal(401, (await door.AskAsync(Wrong))!.Code);
        Assert.True(door.AskAsync(Right).IsCompletedSuccessfully, "on a new connection");
        var guesses = Enumerable.Range(0, 50).Select(_ => door.AskAsync(Wrong)).ToList();
        // None is left to be judged: only the connection is known.
        Assert.Equal(503, (await door.AskAsync(Right))!.Code);
        Assert.True(door.AskAsync(Right, Client, connection).IsCompletedSuccessfully, "on the same connection");
        door.Clock.Advance(TimeSpan.FromSeconds(1));
        Assert.True(door.AskAsync(Right).IsCompletedSuccessfully, "on a new connection");
        // A proxy's connection has the requests of many.
        _ = door.AskAsync(Wrong, Client, connection);
        Assert.Null(connection.As);
        door.Clock.Advance(SignIns.Lately);
        Assert.Equal(50, (await Task.WhenAll(guesses).WaitAsync(Soon)).Length);
    }

    [Fact]
    public async Task AddressesWithoutAPlaceAreGuessedFromAsOne()
    {
        var failures = new SignIns(_clock);
        for (var n = 0; n < SignIns.MaxAddresses; n++)
            failures.Fail(Address(n));
        var judged = 0;
        for (var n = 0; n < 100; n++)
            judged += failures.JudgeAsync(Address(20_000 + n), () => false) is { IsCompletedSuccessfully: true } verdict
                && (await verdict).IsRight == false ? 1 : 0;
        Assert.Equal(1, judged);
    }

    [Fact]
    public async Task NoMoreThanAThousandWaitToBeJudged()
    {
        var failures = new SignIns(_clock);
        var asked = new List<Task<Verdict>>();
        for (var n = 0; n < 300; n++)
        {
            failures.Fail(Address(n));
            for (var i = 0; i < 5; i++)
                asked.Add(failures.JudgeAsync(Address(n), () => false));
        }
        Assert.Equal(SignIns.MaxWaitingOfAll, asked.Count(a => !a.IsCompleted));
        _clock.Advance(SignIns.LongestDelay);
        foreach (var one in asked)
            await one.WaitAsync(Soon);
    }

    private static IPAddress Address(int n) => new([10, (byte)(n >> 16), (byte)(n >> 8), (byte)n]);

    // ---- Failures ----

    private readonly ManualClock _clock = new(Start);

    private static double Delay(SignIns failures, string address) =>
        failures.Fail(IPAddress.Parse(address)).TotalSeconds;

    [Fact]
    public void DelayDoublesUpToFiveSecondsAndNoFurther()
    {
        var failures = new SignIns(_clock);
        var delays = Enumerable.Range(0, 1_000).Select(_ => Delay(failures, "192.0.2.1")).ToList();
        Assert.Equal([0.25, 0.5, 1, 2, 4, 5], delays.Take(6));
        Assert.All(delays.Skip(5), d => Assert.Equal(5, d));
    }

    [Fact]
    public void FailuresAreForgottenFiveMinutesAfterTheLast()
    {
        var failures = new SignIns(_clock);
        for (var i = 0; i < 4; i++)
        {
            Delay(failures, "192.0.2.1");
            _clock.Advance(SignIns.Forgotten);
        }
        Assert.Equal(4, Delay(failures, "192.0.2.1"));
        _clock.Advance(SignIns.Forgotten + TimeSpan.FromMilliseconds(1));
        Assert.Equal(0.25, Delay(failures, "192.0.2.1"));
        Assert.Equal(0.5, Delay(failures, "192.0.2.1"));
    }

    [Theory]
    [InlineData("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", true)]
    [InlineData("2001:db8:1:2::1", "2001:db8:1:3::1", false)]
    [InlineData("fe80::1%1", "fe80::2%2", true)]
    [InlineData("192.0.2.1", "192.0.2.2", false)]
    [InlineData("127.0.0.1", "::1", false)]
    public void AddressesOfIPv6AreOneByTheirFirst64Bits(string one, string other, bool same)
    {
        var failures = new SignIns(_clock);
        Assert.Equal(0.25, Delay(failures, one));
        Assert.Equal(same ? 0.5 : 0.25, Delay(failures, other));
    }

    [Fact]
    public void NoMoreThanTenThousandAddressesAreRememberedAndOldOnesGiveWay()
    {
        var failures = new SignIns(_clock);
        for (var n = 0; n < SignIns.MaxAddresses; n++)
            failures.Fail(Address(n));
        // No room: nobody else is forgotten for them.
        foreach (var delay in new[] { 0.25, 0.5, 1 })
            Assert.Equal(delay, failures.Fail(Address(20_000 + (int)(4 * delay))).TotalSeconds);
        Assert.Equal(0.5, failures.Fail(Address(0)).TotalSeconds);
        Assert.Equal(0.5, failures.Fail(Address(9_999)).TotalSeconds);
        _clock.Advance(SignIns.Forgotten + TimeSpan.FromSeconds(1));
        Assert.Equal(0.25, failures.Fail(Address(20_000)).TotalSeconds);
        Assert.Equal(0.5, failures.Fail(Address(20_000)).TotalSeconds);
    }

    [Fact]
    public async Task ManyAtOnceAreAllCounted()
    {
        var door = Door.Oidc();
        await Task.WhenAll(Enumerable.Range(0, 8).Select(_ => Task.Run(async () =>
        {
            for (var i = 0; i < 500; i++)
                await door.AskAsync("Bearer x");
        })));
        Assert.Equal(4_000, door.Failed("wrong"));
    }
}
