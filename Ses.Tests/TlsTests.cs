using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Security.Authentication;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>Certificates: what is refused at the start, reread later, and asked of clients.</summary>
public sealed class TlsTests : IDisposable
{
    private const string Live = "GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n";

    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(30);

    private readonly Certificates _certificates = new();

    // Certificates are judged by the clock that SeS is given, so it begins with today.
    private readonly ManualClock _clock = new(DateTime.UtcNow);

    public void Dispose() => _certificates.Dispose();

    private Host Start(PemPair pair, string? clientCa = null) => new(
        ["--tls-cert", pair.Certificate, "--tls-key", pair.Key,
            .. clientCa == null ? Array.Empty<string>() : ["--tls-client-ca", clientCa]], clock: _clock);

    // ---- At the start ----

    [Theory]
    [InlineData("key of another", "--tls-key", "is not the key of the certificate")]
    [InlineData("key as certificate", "--tls-cert", "holds no certificate in PEM")]
    [InlineData("certificate as key", "--tls-key", "holds no private key in PEM")]
    [InlineData("broken certificate", "--tls-cert", "certificate")]
    [InlineData("encrypted key", "--tls-key", "is encrypted")]
    [InlineData("expired", "--tls-cert", "expired on")]
    [InlineData("not yet valid", "--tls-cert", "is not valid before")]
    [InlineData("not for servers", "--tls-cert", "is not for servers")]
    [InlineData("empty CA", "--tls-client-ca", "holds no certificate in PEM")]
    [InlineData("CA is a folder", "--tls-client-ca", "cannot be read")]
    public void UnusableFilesAreRefusedInOneLineThatNamesTheSetting(string what, string flag, string word)
    {
        var (good, other) = (_certificates.Issue("good"), _certificates.Issue("other"));
        using var key = RSA.Create(2048);
        var encrypted = key.ExportEncryptedPkcs8PrivateKeyPem(
            "secret", new PbeParameters(PbeEncryptionAlgorithm.Aes256Cbc, HashAlgorithmName.SHA256, 1000));
        var (certificate, keyFile, clientCa) = what switch
        {
            "key of another" => (good.Certificate, other.Key, null),
            "key as certificate" => (good.Key, good.Key, null),
            "certificate as key" => (good.Certificate, good.Certificate, null),
            "broken certificate" => (_certificates.Write("broken.pem",
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"), good.Key, null),
            "encrypted key" => (good.Certificate, _certificates.Write("encrypted.key", encrypted), null),
            "expired" => Of(_certificates.Issue("expired", fromDays: -20, toDays: -1)),
            "not yet valid" => Of(_certificates.Issue("early", fromDays: 2)),
            "not for servers" => Of(_certificates.Issue("client", Certificates.ForClients)),
            "empty CA" => (good.Certificate, good.Key, _certificates.Write("empty.pem", "")),
            _ => (good.Certificate, good.Key, (string?)Path.GetTempPath()),
        };
        var log = new Log(LogLevel.Trace, json: false, TextWriter.Null, _clock);
        var message = Assert.Throws<CertificateException>(() => new Tls(
            certificate, keyFile, clientCa, _clock, log, new Meters("test", "test"))).Message;
        Assert.StartsWith(flag + " (OXSES_TLS_", message, Ordinal);
        Assert.Contains(word, message, Ordinal);
        Assert.DoesNotContain('\n', message);

        static (string, string, string?) Of(PemPair pair) => (pair.Certificate, pair.Key, null);
    }

    [Theory]
    [InlineData(13, true, "the certificate expires soon")]
    [InlineData(15, true, null)]
    [InlineData(90, false, "names no host")]
    public async Task DoubtfulCertificateIsWarnedOf(int days, bool namesHosts, string? words)
    {
        await using var host = Start(_certificates.Issue("server", toDays: days, namesHosts: namesHosts));
        if (words == null)
            Assert.DoesNotContain("WARN", host.LogText, Ordinal);
        else
            Assert.Contains(words, host.LogText, Ordinal);
    }

    [Fact]
    public async Task ExpiryIsAMetric()
    {
        await using var host = Start(_certificates.Issue("server", toDays: 30));
        var at = await host.MetricAsync("ses_tls_certificate_expiry_timestamp_seconds");
        Assert.InRange(at - DateTimeOffset.UtcNow.ToUnixTimeSeconds(), 29.9 * 86400, 30.1 * 86400);
    }

    // ---- Handshakes ----

    [Theory]
    [InlineData(SslProtocols.Tls12, false)]
    [InlineData(SslProtocols.Tls13, false)]
    [InlineData(SslProtocols.Tls12, true)]
    [InlineData(SslProtocols.Tls13, true)]
    public async Task NewProtocolsAreSpokenAndHttp11IsChosen(SslProtocols protocol, bool isRsa)
    {
        await using var host = Start(_certificates.Issue("server", isRsa: isRsa));
        await using var tls = await ConnectAsync(host, protocol: protocol);
        Assert.Equal(protocol, tls.SslProtocol);
        Assert.Equal(SslApplicationProtocol.Http11, tls.NegotiatedApplicationProtocol);
        Assert.StartsWith("HTTP/1.1 200 ", await AskAsync(tls), Ordinal);
    }

    [Fact]
    public async Task OldProtocolIsRefusedAndCounted()
    {
        await using var host = Start(_certificates.Issue("server"));
#pragma warning disable CA5397, CS0618, SYSLIB0039 // An old protocol on purpose.
        await Assert.ThrowsAnyAsync<Exception>(() => ConnectAsync(host, protocol: SslProtocols.Tls11));
#pragma warning restore CA5397, CS0618, SYSLIB0039
        await CountedAsync(host, "handshake", 1);
    }

    [Fact]
    public async Task PlainHttpIsToldToSpeakTls()
    {
        await using var host = Start(_certificates.Issue("server"));
        Assert.Equal("HTTP/1.1 400 Bad Request", await host.SendRawAsync(Live));
        await CountedAsync(host, "handshake", 1);
    }

    [Theory]
    [InlineData(new byte[0])]
    [InlineData(new byte[] { 22 })]
    [InlineData(new byte[] { 22, 3, 1, 2, 0, 1 })]
    public async Task SilentHandshakeIsClosedInTime(byte[] sent)
    {
        await using var host = Start(_certificates.Issue("server"));
        using var socket = await host.ConnectAsync();
        await socket.SendAsync(sent);
        var closed = ReadToEndAsync(new NetworkStream(socket));
        await host.UnfreezeAsync(closed);
        await CountedAsync(host, "handshake_timeout", 1);
    }

    // ---- Clients' certificates ----

    [Theory]
    [InlineData("none", false)]
    [InlineData("another CA's", false)]
    [InlineData("expired", false)]
    [InlineData("for servers", false)]
    [InlineData("right", true)]
    [InlineData("for any purpose", true)]
    public async Task ClientsAreAdmittedByTheirCertificate(string kind, bool admitted)
    {
        using var strangers = new Certificates();
        var client = kind switch
        {
            "none" => null,
            "another CA's" => strangers.Issue("client", Certificates.ForClients),
            "expired" => _certificates.Issue("client", Certificates.ForClients, fromDays: -9, toDays: -1),
            "for servers" => _certificates.Issue("client", Certificates.ForServers),
            "right" => _certificates.Issue("client", Certificates.ForClients),
            _ => _certificates.Issue("client", purpose: null),
        };
        await using var host = Start(_certificates.Issue("server"), _certificates.Authority);
        // With TLS 1.3 a client hears of its refusal only when it reads.
        var answer = "";
        try
        {
            await using var tls = await ConnectAsync(host, client);
            answer = await AskAsync(tls);
        }
        catch (Exception e) when (!admitted && e is IOException or AuthenticationException)
        {
            // Told by an alert, or by the close.
        }
        Assert.Equal(admitted, answer.StartsWith("HTTP/1.1 200 ", Ordinal));
        await CountedAsync(host, "handshake", admitted ? 0 : 1);
        if (!admitted)
            Assert.Contains("a TLS handshake failed", host.LogText, Ordinal);
    }

    // ---- Files that change ----

    [Fact]
    public async Task ChangedPairServesNewConnectionsAndStandingOnesGoOn()
    {
        var (first, second) = (_certificates.Issue("first"), _certificates.Issue("second"));
        await using var host = Start(first);
        await using var standing = await ConnectAsync(host);
        Assert.StartsWith("HTTP/1.1 200 ", await AskAsync(standing), Ordinal);
        await using (var before = await ConnectAsync(host))
            Assert.Equal("CN=first", before.RemoteCertificate!.Subject);
        File.Copy(second.Certificate, first.Certificate, overwrite: true);
        File.Copy(second.Key, first.Key, overwrite: true);
        _clock.Advance(Tls.RereadPeriod);
        await using (var after = await ConnectAsync(host))
            Assert.Equal("CN=second", after.RemoteCertificate!.Subject);
        Assert.StartsWith("HTTP/1.1 200 ", await AskAsync(standing), Ordinal);
        Assert.Equal(1, await host.MetricAsync("ses_tls_reloads_total{outcome=\"loaded\"}"));
    }

    [Fact]
    public async Task BadPairLaterKeepsTheOldOneAndIsToldOnce()
    {
        var (first, second) = (_certificates.Issue("first"), _certificates.Issue("second"));
        await using var host = Start(first);
        File.Copy(second.Certificate, first.Certificate, overwrite: true);
        for (var i = 0; i < 5; i++)
            _clock.Advance(Tls.RereadPeriod);
        await using (var tls = await ConnectAsync(host))
            Assert.Equal("CN=first", tls.RemoteCertificate!.Subject);
        Assert.Equal(1, await host.MetricAsync("ses_tls_reloads_total{outcome=\"refused\"}"));
        Assert.Single(host.LogText.Split('\n'), l => l.Contains("the changed certificate is not used", Ordinal));
        File.Delete(first.Key);
        _clock.Advance(Tls.RereadPeriod);
        File.Copy(second.Key, first.Key, overwrite: true);
        _clock.Advance(Tls.RereadPeriod);
        await using var after = await ConnectAsync(host);
        Assert.Equal("CN=second", after.RemoteCertificate!.Subject);
    }

    // ---- What they share ----

    private async Task<SslStream> ConnectAsync(
        Host host, PemPair? client = null, SslProtocols protocol = SslProtocols.None)
    {
        var tls = new SslStream(new NetworkStream(await host.ConnectAsync(), ownsSocket: true));
        var options = new SslClientAuthenticationOptions
        {
            TargetHost = "localhost",
            EnabledSslProtocols = protocol,
            ApplicationProtocols = [SslApplicationProtocol.Http2, SslApplicationProtocol.Http11],
            CertificateChainPolicy = new X509ChainPolicy
            {
                TrustMode = X509ChainTrustMode.CustomRootTrust,
                RevocationMode = X509RevocationMode.NoCheck,
            },
        };
        options.CertificateChainPolicy.CustomTrustStore.Add(_certificates.Root);
        if (client != null)
            options.ClientCertificateContext = SslStreamCertificateContext.Create(
                X509Certificate2.CreateFromPemFile(client.Certificate, client.Key), null, offline: true);
        await tls.AuthenticateAsClientAsync(options).WaitAsync(Soon);
        return tls;
    }

    private static async Task<string> AskAsync(Stream stream)
    {
        await stream.WriteAsync(Encoding.ASCII.GetBytes(Live));
        var buffer = new byte[4096];
        var count = await stream.ReadAsync(buffer).AsTask().WaitAsync(Soon);
        return Encoding.ASCII.GetString(buffer, 0, count);
    }

    private static async Task<int> ReadToEndAsync(Stream stream)
    {
        using var sink = new MemoryStream();
        await stream.CopyToAsync(sink);
        return (int)sink.Length;
    }

    private static Task CountedAsync(Host host, string reason, int count) => Wait.UntilAsync(
        async () => await host.MetricAsync($"ses_http_refused_total{{reason=\"{reason}\"}}") == count,
        Soon, $"{count} counted as {reason}");
}
