using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Security.Authentication;
using System.Text;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>Who changes a secret or a certificate in its file restarts nothing.</summary>
public sealed class SecretTests : IDisposable
{
    private const StringComparison Ordinal = StringComparison.Ordinal;

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-secrets-").FullName;
    private readonly StringWriter _lines = new();
    private readonly Log _log;

    public SecretTests() => _log = new Log(LogLevel.Trace, json: false, _lines, new ManualClock(DateTime.UnixEpoch));

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    private string FileWith(string text, string name = "secret")
    {
        // As Kubernetes and careful people do it: the old one stays until the new one is whole.
        var path = Path.Combine(_dir, name);
        File.WriteAllText(path + ".new", text);
        File.Move(path + ".new", path, overwrite: true);
        return path;
    }

    [Fact]
    public async Task PasswordInAFileIsReadAgain()
    {
        var options = Front.OptionsOf("--auth-mode", "basic", "--username", "ann", "--password-file", FileWith("first\n"));
        var watch = new SecretWatch(options, null, _log);
        using var handler = new SocketsHttpHandler();
        var auth = new Auth(options, handler, TimeProvider.System, _log, new Meters("test", "test"));
        Assert.Equal((true, false), (await IsTaken("first"), await IsTaken("second")));
        FileWith("second\r\n");
        Assert.Equal((true, false), (await IsTaken("first"), await IsTaken("second")));
        watch.Check();
        Assert.Equal((false, true), (await IsTaken("first"), await IsTaken("second")));
        // In the middle of a change, and after the file went, the last one holds.
        FileWith("");
        watch.Check();
        File.Delete(Path.Combine(_dir, "secret"));
        watch.Check();
        Assert.True(await IsTaken("second"));
        Assert.Matches("INFO  reloaded setting=--password-file file=.*secret\n", _lines.ToString());
        Assert.Matches("WARN  --password-file: the file cannot be used; its previous content stays in use file=.*secret reason=",
            _lines.ToString());
        Assert.DoesNotContain("second", _lines.ToString(), Ordinal);

        // Each from an address of its own: wrong ones wait.
        async Task<bool> IsTaken(string password) => await auth.RefusalAsync(
            Users.Sender, "Basic " + Convert.ToBase64String(Encoding.UTF8.GetBytes($"ann:{password}")),
            new IPAddress(Random.Shared.Next(1, int.MaxValue)), new SignedIn()) == null;
    }

    /// <summary>What a start would refuse is not taken later either.</summary>
    [Theory]
    [InlineData("0.0.0.0", "0n1x", "first")]
    [InlineData("0.0.0.0", "  ", "first")]
    [InlineData("127.0.0.1", "0n1x", "0n1x")]
    [InlineData("0.0.0.0", "other", "other")]
    public void PasswordThatWouldBeRefusedAtAStartIsNotTaken(string address, string changed, string then)
    {
        var options = Front.OptionsOf("--auth-mode", "basic", "--address", address, "--password-file", FileWith("first"));
        FileWith(changed);
        new SecretWatch(options, null, _log).Check();
        Assert.Equal(then, options.Password.Value);
        Assert.Equal(then == "first", _lines.ToString().Contains("SeS would refuse it at its start", Ordinal));
    }

    [Fact]
    public void SecretsForOnixAreReadAgain()
    {
        var options = Front.OptionsOf("--onix-url", "http://onix", "--onix-auth-mode", "oidc", "--onix-token-uri",
            "http://id/token", "--onix-client-id", "ses", "--onix-app-secret-file", FileWith("a", "app"),
            "--onix-password-file", FileWith("b", "password"));
        (_, _) = (FileWith("c", "app"), FileWith("d", "password"));
        new SecretWatch(options, null, _log).Check();
        Assert.Equal(("c", "d"), (options.OnixAppSecret!.Value, options.OnixPassword.Value));
    }

    [Fact]
    public async Task CasOfOnixAreReadAgain()
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        var (first, second) = (Authority.Root("first"), Authority.Root("second"));
        await using var tls = new TlsInFront(onix.Url, first.Issue());
        var options = Front.OptionsOf("--onix-url", tls.Url.AbsoluteUri, "--onix-ca-file", FileWith(first.Pem, "ca.pem"),
            "--onix-insecure-skip-verify", "false");
        var client = new OnixClient(options, OnixClient.CreateHandler(options), TimeProvider.System, new Meters("test", "test"));
        var watch = new SecretWatch(options, client, _log);
        watch.Check();
        await client.EnsureModelAsync(true, CancellationToken.None);
        tls.Change(second.Issue());
        FileWith("no certificate", "ca.pem");
        watch.Check();
        FileWith(second.Pem, "ca.pem");
        watch.Check();
        await client.EnsureModelAsync(true, CancellationToken.None);
        Assert.Matches("WARN  --onix-ca-file: the file cannot be used.*\n(.*\n)*.*INFO  reloaded setting=--onix-ca-file",
            _lines.ToString());
        // The one before is trusted no more.
        tls.Change(first.Issue());
        await Assert.ThrowsAnyAsync<Exception>(() => client.EnsureModelAsync(true, CancellationToken.None));
    }

    /// <summary>Speaks TLS for a server that does not.</summary>
    private sealed class TlsInFront : IAsyncDisposable
    {
        private readonly TcpListener _listener = new(IPAddress.Loopback, 0);
        private readonly Uri _server;
        private readonly List<Socket> _sockets = [];
        private readonly Task _accepting;
        private volatile Identity _identity;

        public TlsInFront(Uri server, Identity identity)
        {
            (_server, _identity) = (server, identity);
            _listener.Start();
            _accepting = AcceptAsync();
        }

        public Uri Url => new($"https://localhost:{((IPEndPoint)_listener.LocalEndpoint).Port}/");

        /// <summary>New connections get this; there are no old ones.</summary>
        public void Change(Identity identity)
        {
            _identity = identity;
            lock (_sockets)
                _sockets.ForEach(s => s.Dispose());
        }

        public async ValueTask DisposeAsync()
        {
            _listener.Dispose();
            await _accepting;
            Change(_identity);
        }

        private async Task AcceptAsync()
        {
            while (true)
            {
                try
                {
                    var socket = await _listener.AcceptSocketAsync();
                    lock (_sockets)
                        _sockets.Add(socket);
                    _ = RelayAsync(socket);
                }
                catch (Exception e) when (e is SocketException or InvalidOperationException)
                {
                    // The listener is disposed.
                    return;
                }
            }
        }

        private async Task RelayAsync(Socket socket)
        {
            try
            {
                await using var tls = new SslStream(new NetworkStream(socket, ownsSocket: true));
                using var certificate = _identity.Load();
                await tls.AuthenticateAsServerAsync(certificate);
                using var server = new TcpClient();
                await server.ConnectAsync(_server.Host, _server.Port);
                await Task.WhenAny(tls.CopyToAsync(server.GetStream()), server.GetStream().CopyToAsync(tls));
            }
            catch (Exception e) when (e is IOException or SocketException or AuthenticationException or ObjectDisposedException)
            {
                // The client does not trust it, or has gone.
            }
        }
    }
}
