using System.Buffers.Text;
using System.Net.Http.Headers;
using System.Net.Http.Json;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;

namespace Ses.Tests.Support;

/// <summary>
/// A certified OpenID Connect provider (<c>oidc/server.mjs</c>) with the password grant, and the check of
/// its tokens that a resource server such as Onix makes.
/// </summary>
internal sealed class OidcServer : IAsyncDisposable
{
    // Characters that forms and basic authentication have to escape.
    public const string ClientId = "onix-client", ClientSecret = "s3cr:et/+%",
        User = "ses", Password = "p&ss=w%rd";

    private static readonly TimeSpan ReadyWithin = TimeSpan.FromSeconds(30);

    private readonly ChildProcess _node;
    private RSAParameters _key;

    private OidcServer(ChildProcess node, int port)
    {
        _node = node;
        Issuer = $"http://127.0.0.1:{port}";
    }

    public string Issuer { get; }

    public int Port => new Uri(Issuer).Port;

    /// <summary>A token by client credentials, as Alertmanager's oauth2 gets one.</summary>
    public async Task<string> TokenAsync(string audience)
    {
        using var client = new HttpClient { Timeout = TimeSpan.FromSeconds(10) };
        // RFC 6749, 2.3.1: both parts are form-encoded before they are joined.
        var credentials = $"{Uri.EscapeDataString(ClientId)}:{Uri.EscapeDataString(ClientSecret)}";
        client.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue(
            "Basic", Convert.ToBase64String(Encoding.UTF8.GetBytes(credentials)));
        using var form = new FormUrlEncodedContent(new Dictionary<string, string>
        {
            ["grant_type"] = "client_credentials",
            ["resource"] = audience,
        });
        using var answer = await client.PostAsync(TokenUri, form);
        var body = await answer.Content.ReadFromJsonAsync<JsonElement>();
        return body.GetProperty("access_token").GetString()!;
    }

    public Uri TokenUri => new($"{Issuer}/token");

    /// <summary>How many access tokens were granted so far.</summary>
    public int Granted => _node.Output.Split('\n').Count(line => line == "granted");

    /// <summary>Starts the provider and waits for its signing key.</summary>
    /// <param name="lifetime">Of the access tokens; whole seconds.</param>
    /// <exception cref="DirectoryNotFoundException">Its packages are missing; the message tells.</exception>
    /// <param name="port">Null: a free one. The same again with another key is a rotation.</param>
    public static async Task<OidcServer> StartAsync(TimeSpan lifetime, int? port = null, string key = "test")
    {
        port ??= FreePort.Next();
        var node = ChildProcess.Start("node",
            ["server.mjs", $"{port}", $"{lifetime.TotalSeconds:F0}", ClientId, ClientSecret, User, Password,
                key],
            folder: Folder());
        var server = new OidcServer(node, port.Value);
        try
        {
            await Wait.UntilAsync(() => node.Output.Split('\n').Contains("ready")
                || (node.HasExited ? throw new InvalidOperationException(node.Output) : false),
                ReadyWithin, "the OpenID Connect provider");
            server._key = await KeyAsync(server.Issuer);
            return server;
        }
        catch
        {
            await server.DisposeAsync();
            throw;
        }
    }

    /// <summary>
    /// Whether Onix may take this bearer token now: signed with the provider's key (RS256), by this issuer,
    /// for <c>urn:onix</c>, with a scope <c>onix</c> and roles, and not expired, to the second.
    /// </summary>
    public bool Accepts(string bearer)
    {
        var parts = bearer.Split('.');
        if (parts.Length != 3 || !parts.All(part => Base64Url.IsValid(part)))
            return false;
        using var rsa = RSA.Create(_key);
        var signed = Encoding.ASCII.GetBytes($"{parts[0]}.{parts[1]}");
        var signature = Base64Url.DecodeFromChars(parts[2]);
        if (!rsa.VerifyData(signed, signature, HashAlgorithmName.SHA256, RSASignaturePadding.Pkcs1))
            return false;
        using var claims = JsonDocument.Parse(Base64Url.DecodeFromChars(parts[1]));
        var root = claims.RootElement;
        return root.GetProperty("iss").GetString() == Issuer
            && root.GetProperty("aud").GetString() == "urn:onix"
            && root.GetProperty("scope").GetString()!.Split(' ').Contains("onix")
            && root.GetProperty("roles").GetArrayLength() > 0
            && DateTimeOffset.UtcNow < DateTimeOffset.FromUnixTimeSeconds(root.GetProperty("exp").GetInt64());
    }

    public ValueTask DisposeAsync() => _node.DisposeAsync();

    private static async Task<RSAParameters> KeyAsync(string issuer)
    {
        using var client = new HttpClient { Timeout = TimeSpan.FromSeconds(10) };
        var keys = await client.GetFromJsonAsync<JsonElement>($"{issuer}/jwks");
        var key = keys.GetProperty("keys")[0];
        return new RSAParameters
        {
            Modulus = Base64Url.DecodeFromChars(key.GetProperty("n").GetString()),
            Exponent = Base64Url.DecodeFromChars(key.GetProperty("e").GetString()),
        };
    }

    /// <summary>The folder <c>oidc</c> of the test project's sources, where its packages are.</summary>
    private static string Folder()
    {
        for (var at = new DirectoryInfo(AppContext.BaseDirectory); at != null; at = at.Parent)
        {
            var folder = Path.Combine(at.FullName, "oidc");
            if (!File.Exists(Path.Combine(folder, "server.mjs")))
                continue;
            return Directory.Exists(Path.Combine(folder, "node_modules")) ? folder
                : throw new DirectoryNotFoundException($"no packages in {folder}: run npm ci there");
        }
        throw new DirectoryNotFoundException("no oidc/server.mjs above the tests");
    }
}
