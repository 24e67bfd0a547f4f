using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Security.Authentication;
using System.Text;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>Which certificates are taken, how they are changed, and who gets through a handshake.</summary>
public sealed class TlsTests : IDisposable
{
    private const string
        CertSetting = "--tls-cert (OXSES_TLS_CERT)", KeySetting = "--tls-key (OXSES_TLS_KEY)",
        CaSetting = "--tls-client-ca (OXSES_TLS_CLIENTCA)";

    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(30);

    private static readonly Authority Root = Authority.Root();
    private static readonly Authority Other = Authority.Root("Other Root");
    private static readonly Identity Server = Root.Issue();
    private static readonly Identity Client = Root.Issue("alertmanager", Purpose.Client);

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-tls-").FullName;
    private readonly ManualClock _clock = new(DateTime.UtcNow);
    private readonly StringWriter _lines = new();
    private readonly Meters _meters = new("test", "test");
    private readonly Log _log;

    public TlsTests()
    {
        _log = new Log(LogLevel.Trace, json: false, TextWriter.Synchronized(_lines), _clock);
        Write(Server);
        File.WriteAllText(CaPath, Root.Pem);
    }

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    private string CertPath => Path.Combine(_dir, "server.pem");

    private string KeyPath => Path.Combine(_dir, "server.key");

    private string CaPath => Path.Combine(_dir, "ca.pem");

    private static DateTimeOffset Now => DateTimeOffset.UtcNow;

    private string[] Lines => _lines.ToString().Split('\n', StringSplitOptions.RemoveEmptyEntries);

    private double Loaded => _meters.TlsReloads.WithLabels("loaded").Value;

    private double Refused => _meters.TlsReloads.WithLabels("refused").Value;

    private void Write(Identity identity) => identity.Write(_dir, "server");

    private Tls Open(bool asksClients = false) =>
        new(CertPath, KeyPath, asksClients ? CaPath : null, _clock, _log, _meters);

    private int LinesOf(string message) => Lines.Count(l => l.Contains(message, Ordinal));

    // ---- What is refused at the start ----

    public static TheoryData<string, string, string> Unusable => new()
    {
        { "certificate missing", CertSetting, "cannot be read" },
        { "certificate a directory", CertSetting, "cannot be read" },
        { "certificate empty", CertSetting, "holds no certificate in PEM" },
        { "certificate is the key", CertSetting, "holds no certificate in PEM" },
        { "certificate cut off", CertSetting, "holds no certificate in PEM" },
        { "certificate garbled", CertSetting, "holds a broken certificate" },
        { "certificate expired", CertSetting, "expired on 20" },
        { "certificate not yet valid", CertSetting, "is not valid before 20" },
        { "certificate for clients", CertSetting, "is not for servers" },
        { "certificate with a broken extension", CertSetting, "cannot be used" },
        { "certificate with a short key", CertSetting, "has a key that clients refuse" },
        { "certificate with an odd curve", CertSetting, "has a key that clients refuse" },
        { "certificate with an Edwards curve", CertSetting, "has a key that clients refuse" },
        { "key missing", KeySetting, "cannot be read" },
        { "key a directory", KeySetting, "cannot be read" },
        { "key empty", KeySetting, "holds no private key in PEM" },
        { "key of another certificate", KeySetting, "is not the key of the certificate in" },
        { "key is the certificate", KeySetting, "holds no private key in PEM" },
        { "key encrypted", KeySetting, "is encrypted" },
        { "CA missing", CaSetting, "cannot be read" },
        { "CA empty", CaSetting, "holds no certificate in PEM" },
        { "CA a directory", CaSetting, "cannot be read" },
    };

    [Theory]
    [MemberData(nameof(Unusable))]
    public void WhatCannotBeUsedIsRefusedInOneLineThatNamesSettingFileAndReason(
        string what, string setting, string reason)
    {
        Spoil(what);
        var message = Assert.Throws<CertificateException>(() => Open(asksClients: true)).Message;
        Assert.StartsWith(setting + ": ", message, Ordinal);
        Assert.Contains($"'{(setting == CertSetting ? CertPath : setting == KeySetting ? KeyPath : CaPath)}'",
            message, Ordinal);
        Assert.Contains(reason, message, Ordinal);
        Assert.DoesNotContain(message, char.IsControl);
        Assert.DoesNotContain("PRIVATE", message, Ordinal);
    }

    private void Spoil(string what)
    {
        switch (what)
        {
            case "certificate missing":
                File.Delete(CertPath);
                break;
            case "key missing":
                File.Delete(KeyPath);
                break;
            case "CA missing":
                File.Delete(CaPath);
                break;
            case "certificate a directory":
                Replace(CertPath);
                break;
            case "key a directory":
                Replace(KeyPath);
                break;
            case "CA a directory":
                Replace(CaPath);
                break;
            case "certificate empty":
                File.WriteAllText(CertPath, "");
                break;
            case "key empty":
                File.WriteAllText(KeyPath, "");
                break;
            case "CA empty":
                File.WriteAllText(CaPath, "\n");
                break;
            case "certificate is the key":
                File.WriteAllText(CertPath, Server.Key);
                break;
            case "key is the certificate":
                File.WriteAllText(KeyPath, Server.Certificate);
                break;
            case "certificate cut off":
                File.WriteAllText(CertPath, Server.Certificate[..200]);
                break;
            case "certificate garbled":
                File.WriteAllText(CertPath, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
                break;
            case "certificate expired":
                Write(Root.Issue(begins: Now.AddDays(-9), ends: Now.AddDays(-1)));
                break;
            case "certificate not yet valid":
                Write(Root.Issue(begins: Now.AddDays(1)));
                break;
            case "certificate for clients":
                Write(Client);
                break;
            case "certificate with a broken extension":
                Write(Root.Issue(purpose: Purpose.Broken));
                break;
            case "certificate with a short key":
                Write(Root.Issue(kind: KeyKind.ShortRsa));
                break;
            case "certificate with an odd curve":
                Write(Root.Issue(kind: KeyKind.OddCurve));
                break;
            case "certificate with an Edwards curve":
                Write(new Identity(Ed25519Certificate, Ed25519Key));
                break;
            case "key of another certificate":
                File.WriteAllText(KeyPath, Root.Issue().Key);
                break;
            case "key encrypted":
                File.WriteAllText(KeyPath, Server.EncryptedKey());
                break;
            default:
                throw new ArgumentOutOfRangeException(nameof(what), what, "no such case");
        }
    }

    // .NET makes none, and reads no such key. Valid until 2125.
    private const string Ed25519Key = """
        -----BEGIN PRIVATE KEY-----
        MC4CAQAwBQYDK2VwBCIEIH2mrUFf/FGQpfKyGxquWLqcU7APm32xxMaz19ITjwZ4
        -----END PRIVATE KEY-----
        """;

    private const string Ed25519Certificate = """
        -----BEGIN CERTIFICATE-----
        MIIBVTCCAQegAwIBAgIUSHWvFcarVyTbf+kaMDX6ngz2ltwwBQYDK2VwMBQxEjAQ
        BgNVBAMMCWxvY2FsaG9zdDAgFw0yNjAxMDEwMDAwMDBaGA8yMTI1MTIwODAwMDAw
        MFowFDESMBAGA1UEAwwJbG9jYWxob3N0MCowBQYDK2VwAyEANQ0fC8eLqaqatq1o
        87VLL1IdFcyeM+oZLs0MvXKhxQKjaTBnMB0GA1UdDgQWBBSESHh/7Bmf357Uj/vG
        wYQmcWVJXjAfBgNVHSMEGDAWgBSESHh/7Bmf357Uj/vGwYQmcWVJXjAPBgNVHRMB
        Af8EBTADAQH/MBQGA1UdEQQNMAuCCWxvY2FsaG9zdDAFBgMrZXADQQAacS0Xt65A
        JQrX/KPdutwGV3TD7tYK59mWt7i2hHvCrwWyt5k6+YmHeP7FvnrxNiLVfDWhWhsL
        e37vnimbffwN
        -----END CERTIFICATE-----
        """;

    private static void Replace(string path)
    {
        File.Delete(path);
        Directory.CreateDirectory(path);
    }

    [Theory]
    [InlineData("server")]
    [InlineData("any")]
    [InlineData("rsa")]
    public void UsablePairIsTakenWithoutAWarning(string kind)
    {
        Write(kind switch
        {
            "server" => Server,
            "any" => Root.Issue(purpose: Purpose.Any),
            _ => Root.Issue(kind: KeyKind.Rsa),
        });
        using var tls = Open(asksClients: true);
        Assert.Empty(Lines);
        Assert.Equal((0, 0), (Loaded, Refused));
    }

    [Fact]
    public void CertificateWithoutAHostIsWarnedOf()
    {
        Write(Root.Issue(hasHosts: false));
        using var tls = Open();
        Assert.Contains("no subjectAltName", Assert.Single(Lines), Ordinal);
    }

    // ---- Expiry ----

    [Fact]
    public void GaugeSaysWhenTheCertificateInUseEnds()
    {
        Assert.Equal(0, _meters.TlsExpiry.Value);
        Write(Root.Issue(ends: DateTimeOffset.FromUnixTimeSeconds(4_000_000_000)));
        using var tls = Open();
        Assert.Equal(4_000_000_000, _meters.TlsExpiry.Value);
        Write(Root.Issue(ends: DateTimeOffset.FromUnixTimeSeconds(4_000_000_123)));
        _clock.Advance(Tls.RereadPeriod);
        Assert.Equal(4_000_000_123, _meters.TlsExpiry.Value);
        Write(Root.Issue(begins: Now.AddDays(-9), ends: Now.AddDays(-1)));
        _clock.Advance(Tls.RereadPeriod);
        Assert.Equal(4_000_000_123, _meters.TlsExpiry.Value);
    }

    [Theory]
    [InlineData(13.9, 1)]
    [InlineData(14.1, 0)]
    public void CertificateThatEndsWithin14DaysIsWarnedOf(double days, int warnings)
    {
        Write(Root.Issue(ends: Now.AddDays(days)));
        using var tls = Open();
        Assert.Equal(warnings, LinesOf("WARN  the certificate expires soon"));
    }

    [Fact]
    public void CertificateThatComesToItsEndWhileSeSRunsIsWarnedOf()
    {
        Write(Root.Issue(ends: Now.AddDays(15)));
        using var tls = Open();
        _clock.Advance(Tls.RereadPeriod);
        Assert.Equal(0, LinesOf("expires soon"));
        _clock.Advance(TimeSpan.FromDays(1.5));
        Assert.Equal(1, LinesOf("expires soon"));
        for (var i = 0; i < 5; i++)
            _clock.Advance(Tls.RereadPeriod);
        Assert.Equal(1, LinesOf("expires soon"));
    }

    // ---- Reading again ----

    [Fact]
    public void ChangedPairIsUsedFromTheNextRereadOn()
    {
        using var tls = Open();
        var before = tls.Current;
        _clock.Advance(Tls.RereadPeriod);
        Assert.Same(before, tls.Current);
        Assert.Equal((0, 0), (Loaded, Refused));
        var next = Root.Issue();
        Write(next);
        Assert.Same(before, tls.Current);
        _clock.Advance(Tls.RereadPeriod);
        Assert.Equal(next.Thumbprint, tls.Current.ServerCertificateContext!.TargetCertificate.Thumbprint);
        Assert.Equal((1, 0), (Loaded, Refused));
        Assert.Contains("certificate reloaded", Assert.Single(Lines), Ordinal);
    }

    [Theory]
    [MemberData(nameof(Unusable))]
    public void WhatIsSpoiledLaterIsLoggedOnceAndTheOldPairStaysUntilItIsMended(
        string what, string setting, string reason)
    {
        using var tls = Open(asksClients: true);
        var before = tls.Current;
        Spoil(what);
        for (var i = 0; i < 6; i++)
            _clock.Advance(Tls.RereadPeriod);
        Assert.Same(before, tls.Current);
        var line = Assert.Single(Lines);
        Assert.Contains("WARN", line, Ordinal);
        Assert.Contains(setting, line, Ordinal);
        Assert.Contains(reason, line, Ordinal);
        Assert.Equal((0, 1), (Loaded, Refused));

        foreach (var path in new[] { CertPath, KeyPath, CaPath }.Where(Directory.Exists))
            Directory.Delete(path);
        var next = Root.Issue();
        Write(next);
        File.WriteAllText(CaPath, Root.Pem);
        _clock.Advance(Tls.RereadPeriod);
        Assert.Equal(next.Thumbprint, tls.Current.ServerCertificateContext!.TargetCertificate.Thumbprint);
        Assert.Equal((1, 1), (Loaded, Refused));
    }

    [Fact]
    public void EachOtherBadPairIsLoggedHoweverSoonItFollows()
    {
        // The log's own clock stands still: what strangers cause would be held back.
        var log = new Log(LogLevel.Trace, json: false, _lines, new ManualClock(DateTime.UtcNow));
        using var tls = new Tls(CertPath, KeyPath, null, _clock, log, _meters);
        Spoil("key encrypted");
        _clock.Advance(Tls.RereadPeriod);
        Spoil("key empty");
        _clock.Advance(Tls.RereadPeriod);
        Assert.Equal((1, 1), (LinesOf("is encrypted"), LinesOf("holds no private key")));
        Assert.Equal(2, Refused);
    }

    [Fact]
    public void SymbolicLinksAreFollowedAnewAtEachReread()
    {
        // As Kubernetes does: the files link into ..data, which links to a folder that changes.
        var next = Root.Issue();
        foreach (var (folder, identity) in new[] { ("..1", Server), ("..2", next) })
            identity.Write(Directory.CreateDirectory(Path.Combine(_dir, folder)).FullName, "server");
        foreach (var path in new[] { CertPath, KeyPath })
        {
            File.Delete(path);
            File.CreateSymbolicLink(path, Path.Combine("..data", Path.GetFileName(path)));
        }
        Directory.CreateSymbolicLink(Path.Combine(_dir, "..data"), "..1");
        using var tls = Open();
        Directory.Delete(Path.Combine(_dir, "..data"));
        Directory.CreateSymbolicLink(Path.Combine(_dir, "..data"), "..2");
        _clock.Advance(Tls.RereadPeriod);
        Assert.Equal(next.Thumbprint, tls.Current.ServerCertificateContext!.TargetCertificate.Thumbprint);
        Assert.Equal((1, 0), (Loaded, Refused));
    }

    [Fact]
    public void NothingIsReadAfterItsEnd()
    {
        var tls = Open();
        tls.Dispose();
        Write(Root.Issue());
        _clock.Advance(Tls.RereadPeriod);
        Assert.Equal((0, 0), (Loaded, Refused));
    }

    // ---- Handshakes ----

    /// <summary>A SeS without a process, behind TLS.</summary>
    private sealed class Host : IAsyncDisposable
    {
        private readonly TlsTests _test;
        private readonly Tls _tls;
        private readonly Front _front;

        public Host(TlsTests test, bool asksClients = false)
        {
            (_test, _tls) = (test, test.Open(asksClients));
            var options = Front.OptionsOf("--tls-cert", test.CertPath, "--tls-key", test.KeyPath);
            _front = new Front(options, test._clock, test._log, test._meters, tls: _tls);
        }

        public int Port => _front.Port;

        public string Dir => _front.Dir;

        public Task<TlsClient> ConnectAsync(
            SslProtocols protocol = SslProtocols.None, Identity? identity = null,
            params SslApplicationProtocol[] applications) =>
            TlsClient.ConnectAsync(Port, Root.Pem, protocol, identity, applications);

        public Task<bool> ServesAsync(SslProtocols protocol = SslProtocols.None, Identity? identity = null) =>
            TlsClient.IsServedAsync(Port, Root.Pem, protocol, identity);

        public double Count(string reason) => _test._meters.HttpRefused.WithLabels(reason).Value;

        public Task CountedAsync(string reason, double count) =>
            Wait.UntilAsync(() => Count(reason) >= count, Soon, $"{reason} to be counted {count} times");

        public async Task<TcpClient> PlainAsync()
        {
            var client = new TcpClient();
            await client.ConnectAsync(IPAddress.Loopback, Port);
            return client;
        }

        public Task GoneAsync() =>
            Wait.UntilAsync(() => _test._meters.Connections.Value == 0, Soon, "all connections to be gone");

        public async ValueTask DisposeAsync()
        {
            await _front.DisposeAsync();
            _tls.Dispose();
        }
    }

    [Theory]
    [InlineData(SslProtocols.Tls12, KeyKind.P256)]
    [InlineData(SslProtocols.Tls13, KeyKind.P256)]
    [InlineData(SslProtocols.Tls12, KeyKind.Rsa)]
    [InlineData(SslProtocols.Tls13, KeyKind.Rsa)]
    public async Task Tls12And13AreServed(SslProtocols protocol, KeyKind kind)
    {
        Write(Root.Issue(kind: kind));
        await using var host = new Host(this);
        using var client = await host.ConnectAsync(protocol);
        Assert.Equal(protocol, client.Protocol);
        for (var i = 0; i < 3; i++)
            Assert.Equal((200, "{\"live\":true}\n"), await client.AskAsync("GET", "/live"));
        var alert = "{\"labels\":{\"alertname\":\"A\",\"job\":\"j\"},\"startsAt\":\"2026-11-01T10:00:00Z\","
            + $"\"status\":\"firing\",\"annotations\":{{\"description\":\"{new string('x', 100_000)}\"}}}}";
        var body = $"{{\"version\":\"4\",\"alerts\":[{alert}]}}";
        Assert.Equal(204, (await client.AskAsync("POST", "/alerts/INS", body)).Code);
        Assert.Single(StoreFiles.Changes(host.Dir));
        Assert.Equal((0, 0), (host.Count("handshake"), host.Count("handshake_timeout")));
    }

    [Theory]
    [InlineData(1, 0x15, 70)]
    [InlineData(2, 0x15, 70)]
    [InlineData(3, 0x16, null)]
    public async Task Tls10And11AreRefusedByTheirVersion(int minor, int type, int? alert)
    {
        Write(Root.Issue(kind: KeyKind.Rsa));
        await using var host = new Host(this);
        using var client = await host.PlainAsync();
        await client.GetStream().WriteAsync(ClientHello((byte)minor));
        var answer = new byte[7];
        await client.GetStream().ReadExactlyAsync(answer).AsTask().WaitAsync(Soon);
        Assert.Equal(type, answer[0]);
        if (alert == null)
            return;
        // Fatal, protocol_version (RFC 5246, 7.2).
        Assert.Equal((2, alert), (answer[5], answer[6]));
        await host.CountedAsync("handshake", 1);
    }

    /// <summary>A ClientHello (RFC 5246, 7.4.1.2) of TLS 1.<paramref name="minor"/> minus one.</summary>
    private static byte[] ClientHello(byte minor)
    {
        byte[] extensions =
        [
            0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0,
            0, 13, 0, 8, 0, 6, 4, 1, 8, 4, 4, 3,
        ];
        byte[] ciphers = [0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x13, 0xc0, 0x14, 0, 0x2f, 0, 0x35];
        byte[] hello =
        [
            3, minor, .. new byte[32], 0, 0, (byte)ciphers.Length, .. ciphers, 1, 0,
            0, (byte)extensions.Length, .. extensions,
        ];
        return [0x16, 3, 1, 0, (byte)(hello.Length + 4), 1, 0, 0, (byte)hello.Length, .. hello];
    }

    [Fact]
    public async Task Http11IsChosenFromWhatAClientOffers()
    {
        await using var host = new Host(this);
        using (var both = await host.ConnectAsync(
            SslProtocols.None, null, SslApplicationProtocol.Http2, SslApplicationProtocol.Http11))
        {
            Assert.Equal("http/1.1", both.Application);
            Assert.Equal(200, (await both.AskAsync("GET", "/live")).Code);
        }
        using (var none = await host.ConnectAsync())
            Assert.Equal("", none.Application);
        await Assert.ThrowsAsync<AuthenticationException>(
            () => host.ConnectAsync(SslProtocols.None, null, SslApplicationProtocol.Http2));
        await host.CountedAsync("handshake", 1);
    }

    [Fact]
    public async Task IntermediateCertificatesAreSent()
    {
        Write(Root.Intermediate().Issue());
        await using var host = new Host(this);
        using var client = await host.ConnectAsync();
        Assert.Equal(["CN=localhost", "CN=Test Intermediate", "CN=Test Root"], client.Subjects);
        Assert.Equal(200, (await client.AskAsync("GET", "/live")).Code);
    }

    [Fact]
    public async Task OpenConnectionGoesOnOverAReloadAndANewOneGetsTheNewCertificate()
    {
        await using var host = new Host(this);
        using var standing = await host.ConnectAsync();
        Assert.Equal(200, (await standing.AskAsync("GET", "/live")).Code);
        var next = Root.Issue();
        Write(next);
        _clock.Advance(Tls.RereadPeriod);
        Assert.Equal(200, (await standing.AskAsync("GET", "/live")).Code);
        Assert.Equal(Server.Thumbprint, standing.Thumbprint);
        using var fresh = await host.ConnectAsync();
        Assert.Equal(next.Thumbprint, fresh.Thumbprint);
        Assert.Equal(200, (await fresh.AskAsync("GET", "/live")).Code);
    }

    [Theory]
    [InlineData("GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")]
    [InlineData("POST /alerts/INS HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")]
    public async Task PlainHttpIsAnswered400WithAClearReason(string request)
    {
        await using var host = new Host(this);
        using var client = await host.PlainAsync();
        await client.GetStream().WriteAsync(Encoding.ASCII.GetBytes(request));
        using var reader = new StreamReader(client.GetStream(), Encoding.ASCII);
        client.Client.Shutdown(SocketShutdown.Send);
        var answer = await reader.ReadToEndAsync().WaitAsync(Soon);
        Assert.StartsWith("HTTP/1.1 400 Bad Request\r\n", answer, Ordinal);
        Assert.Contains("https", answer, Ordinal);
        Assert.Contains("\r\nConnection: close\r\n", answer, Ordinal);
        await host.CountedAsync("handshake", 1);
        Assert.Equal(1, LinesOf("a request was refused: handshake") + LinesOf("a POST request was refused: handshake"));
    }

    // ---- Clients' certificates ----

    public static TheoryData<string, SslProtocols> Strangers()
    {
        var data = new TheoryData<string, SslProtocols>();
        string[] strangers = ["nobody", "of another CA", "expired", "not yet valid", "a server", "forged"];
        foreach (var who in strangers)
        {
            data.Add(who, SslProtocols.Tls12);
            data.Add(who, SslProtocols.Tls13);
        }
        return data;
    }

    [Theory]
    [MemberData(nameof(Strangers))]
    public async Task ClientWithoutARightCertificateIsRefusedAndCounted(string who, SslProtocols protocol)
    {
        await using var host = new Host(this, asksClients: true);
        var identity = who switch
        {
            "of another CA" => Other.Issue("alertmanager", Purpose.Client),
            "expired" => Root.Issue(
                "alertmanager", Purpose.Client, begins: Now.AddDays(-9), ends: Now.AddMinutes(-1)),
            "not yet valid" => Root.Issue("alertmanager", Purpose.Client, begins: Now.AddHours(1)),
            "a server" => Root.Issue("alertmanager"),
            // It names the right issuer, but another key has signed it.
            "forged" => Authority.Root().Issue("alertmanager", Purpose.Client),
            _ => null,
        };
        Assert.False(await host.ServesAsync(protocol, identity));
        await host.CountedAsync("handshake", 1);
        await host.GoneAsync();
        Assert.Equal((1, 0), (host.Count("handshake"), _meters.Defects.Value));
        var line = Assert.Single(Lines);
        Assert.Contains("WARN  a TLS handshake failed client=127.0.0.1 reason=", line, Ordinal);
    }

    [Theory]
    [InlineData(SslProtocols.Tls12)]
    [InlineData(SslProtocols.Tls13)]
    public async Task ClientWithARightCertificateIsServed(SslProtocols protocol)
    {
        await using var host = new Host(this, asksClients: true);
        Assert.True(await host.ServesAsync(protocol, Client));
        Assert.True(await host.ServesAsync(protocol, Root.Issue("a", Purpose.Any)));
        Assert.True(await host.ServesAsync(protocol, Root.Issue("a", Purpose.Client, KeyKind.Rsa)));
        Assert.Equal(0, host.Count("handshake"));
    }

    [Fact]
    public async Task ClientOfARemovedCaIsRefusedAfterTheReload()
    {
        await using var host = new Host(this, asksClients: true);
        // Each connection may resume the one before it.
        for (var i = 0; i < 3; i++)
            Assert.True(await host.ServesAsync(identity: Client));
        File.WriteAllText(CaPath, Other.Pem);
        _clock.Advance(Tls.RereadPeriod);
        Assert.Equal(1, Loaded);
        Assert.False(await host.ServesAsync(identity: Client));
        Assert.True(await host.ServesAsync(identity: Other.Issue("alertmanager", Purpose.Client)));
        File.WriteAllText(CaPath, Other.Pem + "\n" + Root.Pem);
        _clock.Advance(Tls.RereadPeriod);
        Assert.True(await host.ServesAsync(identity: Client));
    }

    [Fact]
    public async Task ClientsAreJudgedByTheTimeOfTheirHandshakeNotOfTheLoad()
    {
        await using var host = new Host(this, asksClients: true);
        var begins = DateTimeOffset.FromUnixTimeSeconds(Now.ToUnixTimeSeconds() + 2);
        var (late, early) = (Root.Issue("a", Purpose.Client, begins: begins),
            Root.Issue("b", Purpose.Client, ends: begins));
        Assert.True(await host.ServesAsync(identity: early));
        await Wait.UntilAsync(() => Now > begins.AddSeconds(1), Soon, "the certificate's time");
        Assert.True(await host.ServesAsync(identity: late));
        Assert.False(await host.ServesAsync(identity: early));
    }

    // ---- Handshakes that fail ----

    [Theory]
    [InlineData("nothing")]
    [InlineData("half a hello")]
    [InlineData("a hello, and no more")]
    public async Task HandshakeThatDoesNotEndIsClosedAfterItsTime(string sent)
    {
        await using var host = new Host(this);
        using var client = await host.PlainAsync();
        var hello = ClientHello(3);
        await client.GetStream().WriteAsync(
            hello.AsMemory(0, sent == "nothing" ? 0 : sent == "half a hello" ? 40 : hello.Length));
        var closed = DrainAsync(client);
        await Wait.UntilAsync(() =>
        {
            _clock.Advance(TimeSpan.FromSeconds(1));
            return closed.IsCompleted;
        }, Soon, "the connection to be closed");
        await host.CountedAsync("handshake_timeout", 1);
        await host.GoneAsync();
        Assert.Equal((1, 0), (host.Count("handshake_timeout"), host.Count("handshake")));
        Assert.Equal(0, _meters.Defects.Value);
    }

    [Fact]
    public async Task HandshakeHasItsTimeAndNoMore()
    {
        await using var host = new Host(this);
        using var client = await host.PlainAsync();
        await client.GetStream().WriteAsync(ClientHello(3));
        // Its answer tells that the handshake is on its way.
        await client.GetStream().ReadExactlyAsync(new byte[5]).AsTask().WaitAsync(Soon);
        var closed = DrainAsync(client);
        _clock.Advance(TimeSpan.FromSeconds(4.5));
        Assert.Equal(1, _meters.Connections.Value);
        Assert.Equal(0, host.Count("handshake_timeout"));
        _clock.Advance(TimeSpan.FromSeconds(0.75));
        await closed.WaitAsync(Soon);
        await host.CountedAsync("handshake_timeout", 1);
    }

    /// <summary>A hello costs the server more than its sender, who can send the same again and again.</summary>
    [Fact]
    public async Task HandshakesThatFailAreBoundedAndThoseThatSucceedAreNot()
    {
        await using var host = new Host(this);
        for (var i = 0; i < 300; i++)
            Assert.True(await host.ServesAsync());
        Assert.Equal(0, host.Count("handshakes"));
        for (var i = 0; i < 260; i++)
        {
            using var client = await host.PlainAsync();
            await client.GetStream().WriteAsync(new byte[] { 0x16, 3, 1, 0, 5, 9, 9, 9, 9, 9 });
            client.Client.Shutdown(SocketShutdown.Send);
            await DrainAsync(client).WaitAsync(Soon);
        }
        Assert.Equal((256, 4), (host.Count("handshake"), host.Count("handshakes")));
        Assert.False(await host.ServesAsync());
        _clock.Advance(TimeSpan.FromSeconds(0.1));
        for (var i = 0; i < 20; i++)
            Assert.True(await host.ServesAsync());
    }

    /// <summary>Whoever begins many does not keep others from theirs, nor from the port.</summary>
    [Fact]
    public async Task OfTheHandshakesInProgressTheLongestGivesWay()
    {
        await using var host = new Host(this);
        var clients = new List<TcpClient>();
        for (var i = 0; i < 256; i++)
        {
            clients.Add(await host.PlainAsync());
            await clients[i].GetStream().WriteAsync(ClientHello(3).AsMemory(0, 40));
        }
        await Wait.UntilAsync(() => _meters.Connections.Value == 256, Soon, "256 connections");
        var first = DrainAsync(clients[0]);
        Assert.Equal((0, false), (host.Count("handshakes"), first.IsCompleted));
        // Once all of them have begun. An address has no more at once.
        _clock.Advance(TimeSpan.FromSeconds(1));
        await Wait.UntilAsync(async () =>
        {
            Assert.True(await host.ServesAsync());
            return host.Count("handshakes") == 1;
        }, Soon, "a handshake to give way");
        await first.WaitAsync(Soon);
        await Wait.UntilAsync(() => _meters.Connections.Value == 255, Soon, "all others to be gone");
        Assert.Equal((1, 0), (host.Count("handshakes"), host.Count("handshake")));
        clients.ForEach(c => c.Dispose());
        await host.GoneAsync();
        Assert.Equal(0, _meters.Defects.Value);
    }

    [Theory]
    [InlineData(new byte[] { 0x16, 3, 1, 0, 5, 9, 9, 9, 9, 9 })]
    [InlineData(new byte[] { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 })]
    [InlineData(new byte[] { 0x16, 3, 1, 0xff, 0xff })]
    [InlineData(new byte[] { 0x80, 0x2e, 1, 3, 1 })]
    public async Task GarbageIsAFailedHandshake(byte[] garbage)
    {
        await using var host = new Host(this);
        using var client = await host.PlainAsync();
        await client.GetStream().WriteAsync(garbage);
        client.Client.Shutdown(SocketShutdown.Send);
        await DrainAsync(client).WaitAsync(Soon);
        await host.CountedAsync("handshake", 1);
        await host.GoneAsync();
        Assert.Equal((1, 0), (host.Count("handshake"), _meters.Defects.Value));
        Assert.All(Assert.Single(Lines), c => Assert.InRange(c, ' ', '~'));
    }

    [Fact]
    public async Task ConnectionThatClosesWithoutAByteIsNoFailedHandshake()
    {
        await using var host = new Host(this);
        for (var i = 0; i < 3; i++)
            (await host.PlainAsync()).Dispose();
        await Wait.UntilAsync(() => _meters.ConnectionsTotal.Value == 3, Soon, "three connections");
        await host.GoneAsync();
        Assert.Equal((0, 0), (host.Count("handshake"), host.Count("handshake_timeout")));
        Assert.Empty(Lines);
    }

    [Fact]
    public async Task ManyFailedHandshakesAreCountedAndLoggedOnce()
    {
        await using var host = new Host(this, asksClients: true);
        for (var i = 0; i < 20; i++)
            Assert.False(await host.ServesAsync());
        await host.CountedAsync("handshake", 20);
        Assert.Single(Lines);
    }

    /// <summary>Reads until the other side has closed, in whatever way.</summary>
    private static async Task DrainAsync(TcpClient client)
    {
        var waste = new byte[4096];
        try
        {
            while (await client.Client.ReceiveAsync(waste) > 0)
            {
                // Until it closes.
            }
        }
        catch (SocketException)
        {
            // It has reset the connection.
        }
    }
}
