using System.Globalization;
using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Security.Authentication;
using System.Security.Cryptography.X509Certificates;
using System.Text;

namespace Ses.Tests.Support;

/// <summary>One TLS connection to 127.0.0.1, verified as a client does that trusts one root alone.</summary>
internal sealed class TlsClient : IDisposable
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30);

    private readonly Socket _socket;
    private readonly SslStream _stream;

    private TlsClient(Socket socket, RemoteCertificateValidationCallback verify)
    {
        _socket = socket;
        _stream = new SslStream(new NetworkStream(socket, ownsSocket: true), false, verify);
    }

    public SslProtocols Protocol => _stream.SslProtocol;

    /// <summary>Such as <c>http/1.1</c>; empty when none was chosen.</summary>
    public string Application =>
        Encoding.ASCII.GetString(_stream.NegotiatedApplicationProtocol.Protocol.Span);

    /// <summary>Of the server's certificate.</summary>
    public string Thumbprint { get; private set; } = "";

    /// <summary>The certificates of the server's chain, its own first, the root last.</summary>
    public IReadOnlyList<string> Subjects { get; private set; } = [];

    /// <param name="root">The CA's certificate in PEM.</param>
    /// <exception cref="AuthenticationException">The handshake failed, on either side.</exception>
    /// <exception cref="IOException">The server closed instead.</exception>
    public static async Task<TlsClient> ConnectAsync(
        int port, string root, SslProtocols protocol = SslProtocols.None, Identity? identity = null,
        params SslApplicationProtocol[] applications)
    {
        using var own = identity?.Load();
        var socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        TlsClient? client = null;
        using var deadline = new CancellationTokenSource(Patience);
        try
        {
            await socket.ConnectAsync(IPAddress.Loopback, port, deadline.Token);
            client = new TlsClient(socket, (_, certificate, chain, problems) =>
                client!.Remember((X509Certificate2)certificate!, chain!) && problems == SslPolicyErrors.None);
            var options = new SslClientAuthenticationOptions
            {
                TargetHost = "localhost",
                EnabledSslProtocols = protocol,
                ApplicationProtocols = [.. applications],
                CertificateChainPolicy = Trusting(root),
                ClientCertificateContext = own == null ? null
                    : SslStreamCertificateContext.Create(own, null, offline: true),
            };
            await client._stream.AuthenticateAsClientAsync(options, deadline.Token);
            return client;
        }
        catch
        {
            client?.Dispose();
            socket.Dispose();
            throw;
        }
    }

    /// <summary>Whether a client is served: true with an answer, false when its handshake fails.</summary>
    /// <remarks>With TLS 1.3 a client hears of that only when it reads.</remarks>
    public static async Task<bool> IsServedAsync(
        int port, string root, SslProtocols protocol = SslProtocols.None, Identity? identity = null)
    {
        try
        {
            using var client = await ConnectAsync(port, root, protocol, identity);
            return (await client.AskAsync("GET", "/live")).Code == 200;
        }
        catch (Exception e) when (e is IOException or AuthenticationException)
        {
            return false;
        }
    }

    /// <summary>Asks on this connection, which stands afterwards.</summary>
    /// <exception cref="IOException">The server closed instead of answering.</exception>
    public async Task<(int Code, string Body)> AskAsync(string method, string path, string body = "")
    {
        using var deadline = new CancellationTokenSource(Patience);
        var length = method == "POST" ? $"Content-Length: {Encoding.UTF8.GetByteCount(body)}\r\n" : "";
        await _stream.WriteAsync(Encoding.UTF8.GetBytes(
            $"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n{body}"), deadline.Token);
        var text = new StringBuilder();
        var buffer = new byte[16 * 1024];
        while (true)
        {
            var count = await _stream.ReadAsync(buffer, deadline.Token);
            if (count == 0)
                throw new IOException("the server closed instead of answering");
            text.Append(Encoding.Latin1.GetString(buffer, 0, count));
            var all = text.ToString();
            var end = all.IndexOf("\r\n\r\n", StringComparison.Ordinal);
            if (end >= 0 && all.Length >= end + 4 + LengthIn(all[..end]))
                return (int.Parse(all.AsSpan(9, 3), CultureInfo.InvariantCulture), all[(end + 4)..]);
        }
    }

    public void Dispose() => _stream.Dispose();

    /// <summary>Trusts this CA and no other; fetches nothing.</summary>
    public static X509ChainPolicy Trusting(string root)
    {
        var policy = new X509ChainPolicy
        {
            TrustMode = X509ChainTrustMode.CustomRootTrust,
            RevocationMode = X509RevocationMode.NoCheck,
            DisableCertificateDownloads = true,
        };
        policy.CustomTrustStore.Add(X509Certificate2.CreateFromPem(root));
        return policy;
    }

    private bool Remember(X509Certificate2 certificate, X509Chain chain)
    {
        Thumbprint = certificate.Thumbprint;
        Subjects = [.. chain.ChainElements.Select(e => e.Certificate.Subject)];
        return true;
    }

    private static int LengthIn(string head)
    {
        var line = head.Split("\r\n")
            .FirstOrDefault(l => l.StartsWith("Content-Length:", StringComparison.OrdinalIgnoreCase));
        return line == null ? 0 : int.Parse(line.AsSpan(15).Trim(), CultureInfo.InvariantCulture);
    }
}
