using System.Diagnostics;
using System.Net;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>
/// Real proxies and real clients before the native binary, with the examples of docs/alerts.md and docs/operations.md as they stand
/// there, but for the ports.
/// </summary>
[Trait("Category", "E2E")]
public sealed class SendersEndToEndTests
{
    private const StringComparison Ordinal = StringComparison.Ordinal;

    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);

    private static string Body(string service) => $$$"""
        {"version":"4","alerts":[{"status":"firing","labels":{"alertname":"A","job":"{{{service}}}"},
        "startsAt":"{{{DateTime.UtcNow.AddHours(-1):yyyy-MM-dd'T'HH:mm:ss'Z'}}}"}]}
        """;

    private static bool Knows(SesProcess ses, string service) =>
        StoreFiles.Starts(ses.DataDir).Any(s => s.Service.Service == service);

    /// <summary>A script of docs/alerts.md, or the configuration of a proxy in docs/operations.md.</summary>
    private static string Example(string language) => string.Concat((language is "nginx" or "haproxy"
        ? DocsPage.Named("operations").CodeOf("Reverse proxies", language)
        : DocsPage.Named("alerts").CodeOf("Scripts", language)).Select(l => l + "\n"));

    private static string At(string text, SesProcess ses) => text.Replace(":8888", $":{ses.Port}", Ordinal);

    /// <summary>Runs a client to its end.</summary>
    private static async Task<string> RunAsync(string program, params string[] arguments)
    {
        await using var child = ChildProcess.Start(program, arguments);
        var code = await child.ExitAsync(Soon);
        Assert.True(code == 0, $"{program} ended with {code}: {child.Output}");
        return child.Output.Trim();
    }

    /// <summary>A program that listens, until the test ends.</summary>
    private sealed class Proxy(ChildProcess child, string folder, int port) : IAsyncDisposable
    {
        public HttpClient Client { get; } = new() { BaseAddress = new Uri($"http://127.0.0.1:{port}/"), Timeout = Soon };

        public int Port => port;

        public string Output => child.Output;

        /// <summary>nginx with these servers, whose port 80 becomes one that is free.</summary>
        public static async Task<Proxy> NginxAsync(string servers)
        {
            var (folder, port) = (Directory.CreateTempSubdirectory("ses-nginx-").FullName, FreePort.Next());
            var temporary = string.Concat(new[] { "client_body", "proxy", "fastcgi", "uwsgi", "scgi" }
                .Select(name => $"{name}_temp_path {folder}/{name}; "));
            await File.WriteAllTextAsync(Path.Combine(folder, "conf"), $$"""
                daemon off; master_process off; pid {{folder}}/pid; error_log stderr;
                events {}
                http { access_log off; {{temporary}}
                {{servers.Replace("listen 80;", $"listen 127.0.0.1:{port};", Ordinal)}} }
                """);
            return await StartedAsync(ChildProcess.Start("nginx", ["-e", "stderr", "-c", Path.Combine(folder, "conf")]), folder, port);
        }

        public static async Task<Proxy> HaproxyAsync(string text)
        {
            var (folder, port) = (Directory.CreateTempSubdirectory("ses-haproxy-").FullName, FreePort.Next());
            await File.WriteAllTextAsync(Path.Combine(folder, "cfg"), "global\n  log stdout format raw local0\n"
                + text.Replace("bind :80", $"bind 127.0.0.1:{port}", Ordinal).Replace("mode http\n", "mode http\n  log global\n", Ordinal));
            return await StartedAsync(ChildProcess.Start("haproxy", ["-db", "-f", Path.Combine(folder, "cfg")]), folder, port);
        }

        private static async Task<Proxy> StartedAsync(ChildProcess child, string folder, int port)
        {
            var proxy = new Proxy(child, folder, port);
            await Wait.UntilAsync(async () =>
            {
                if (child.HasExited)
                    throw new InvalidOperationException(child.Output);
                try
                {
                    using var answer = await proxy.Client.GetAsync("");
                    return true;
                }
                catch (HttpRequestException)
                {
                    return false;
                }
            }, Soon, "the proxy");
            return proxy;
        }

        public async ValueTask DisposeAsync()
        {
            Client.Dispose();
            await child.DisposeAsync();
            Directory.Delete(folder, recursive: true);
        }
    }

    // ---- Proxies ----

    [Fact]
    public async Task NginxPassesOnInEachOfItsWays()
    {
        await using var ses = await SesProcess.StartAsync("none");
        var servers = At(Example("nginx"), ses);
        const string More = "proxy_http_version 1.1; ";
        var upstream = $"proxy_pass http://127.0.0.1:{ses.Port}/;";
        servers = servers[..servers.LastIndexOf('}')] + $$"""
            location /v11/ { {{More}}{{upstream}} }
            location /unbuffered/ { {{More}}proxy_request_buffering off; proxy_buffering off; {{upstream}} }
            }
            """;
        await using var nginx = await Proxy.NginxAsync(servers);
        // A history that SeS sends in parts.
        using (var posted = await ses.PostAsync("MANY", Many()))
            Assert.Equal(HttpStatusCode.NoContent, posted.StatusCode);
        var history = await ses.Client.GetStringAsync("alerts/MANY/history");
        Assert.InRange(history.Length, 200_000, 10_000_000);
        using var document = JsonDocument.Parse(history);
        var same = $"alerts/MANY/history?as_of={document.RootElement.GetProperty("as_of").GetString()}";
        foreach (var way in new[] { "ses", "v11", "unbuffered" })
        {
            Assert.Equal(HttpStatusCode.OK, (await nginx.Client.GetAsync($"{way}/ready")).StatusCode);
            Assert.Equal(HttpStatusCode.OK, (await nginx.Client.GetAsync($"{way}/")).StatusCode);
            Assert.Equal(history, await nginx.Client.GetStringAsync($"{way}/{same}"));
            foreach (var inChunks in new[] { false, true })
            {
                var service = $"{way}-{inChunks}";
                using var request = new HttpRequestMessage(HttpMethod.Post, $"{way}/alerts/INS")
                {
                    Content = new ByteArrayContent(Encoding.UTF8.GetBytes(Body(service))),
                };
                request.Headers.TransferEncodingChunked = inChunks;
                using var answer = await nginx.Client.SendAsync(request);
                Assert.Equal((service, HttpStatusCode.NoContent), (service, answer.StatusCode));
                Assert.True(Knows(ses, service), service);
            }
        }
        Assert.Contains("ses_defects_total 0\n", await ses.Client.GetStringAsync("metrics"), Ordinal);
    }

    private static string Many()
    {
        var alerts = Enumerable.Range(0, 2000).Select(i => $$$"""
            {"status":"firing","labels":{"alertname":"A","job":"j{{{i}}}"},"startsAt":"2026-11-01T00:00:00Z","annotations":{"summary":"{{{new string('x', 100)}}}"}}
            """);
        return $$"""{"alerts":[{{string.Join(',', alerts)}}]}""";
    }

    /// <summary>A body that nginx got a part of, and passes on as it comes.</summary>
    [Fact]
    public async Task BodyThatAProxyCutsIsCounted()
    {
        await using var ses = await SesProcess.StartAsync("none");
        await using var nginx = await Proxy.NginxAsync($$"""
            server { listen 80; client_body_timeout 1s; location / {
            proxy_http_version 1.1; proxy_request_buffering off; proxy_pass http://127.0.0.1:{{ses.Port}}; } }
            """);
        using var client = new System.Net.Sockets.TcpClient();
        await client.ConnectAsync(IPAddress.Loopback, nginx.Port);
        await client.GetStream().WriteAsync("POST /alerts/INS HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"ale"u8.ToArray());
        await Wait.UntilAsync(async () => (await ses.Client.GetStringAsync("metrics")).Contains(
            "ses_bad_requests_total{reason=\"body_cut\"} 1\n", Ordinal), Soon, "the cut body to be counted");
    }

    [Theory]
    [InlineData("option httpchk GET /ready")]
    [InlineData("option httpchk")]
    [InlineData("option httpchk HEAD /live HTTP/1.0")]
    [InlineData("option httpchk\n  http-check send meth GET uri /live ver HTTP/1.1 hdr Host ses")]
    public async Task HaproxyFindsSesUpAndPassesOn(string check)
    {
        await using var ses = await SesProcess.StartAsync("none");
        await using var haproxy = await Proxy.HaproxyAsync(At(Example("haproxy"), ses)
            .Replace("option httpchk GET /ready", check, Ordinal).Replace("inter 2s", "inter 200ms", Ordinal));
        using var client = haproxy.Client;
        using var content = new StringContent(Body("s"));
        using var answer = await client.PostAsync("alerts/INS", content);
        Assert.Equal(HttpStatusCode.NoContent, answer.StatusCode);
        Assert.True(Knows(ses, "s"));
        // A check that fails would have been logged by now.
        var checks = Stopwatch.StartNew();
        await Wait.UntilAsync(() => checks.Elapsed > TimeSpan.FromSeconds(1), Soon, "some checks");
        Assert.DoesNotContain("DOWN", haproxy.Output, Ordinal);
        using var again = await client.GetAsync("ready");
        Assert.Equal(HttpStatusCode.OK, again.StatusCode);
    }

    // ---- Clients ----

    [Fact]
    public async Task ExamplesOfScriptsPost()
    {
        await using var ses = await SesProcess.StartAsync("none");
        var folder = Directory.CreateTempSubdirectory("ses-scripts-").FullName;
        try
        {
            string File(string name, string language)
            {
                var path = Path.Combine(folder, name);
                System.IO.File.WriteAllText(path, At(Example(language), ses));
                return path;
            }

            Assert.Equal("", await RunAsync("sh", File("post.sh", "sh")));
            Assert.Equal("204", await RunAsync("python3", File("post.py", "python")));
            Assert.Equal("204", await RunAsync("node", File("post.mjs", "js")));
            Assert.Equal(["db-1", "db-2", "db-3"], StoreFiles.Starts(ses.DataDir)
                .Select(s => s.Service.Location).Order(StringComparer.Ordinal));
            Assert.All(StoreFiles.Starts(ses.DataDir), s => Assert.Equal("BackupFailed", s.Service.Service));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    /// <summary>Bodies whose length a client does not know when it begins.</summary>
    [Theory]
    [InlineData("curl", "curl -sS -f -T - -X POST URL < FILE")]
    [InlineData("curl-1.0", "curl -sS -f --http1.0 --data-binary @FILE URL")]
    [InlineData("curl-proxy", "curl -sS -f -x PLACE --data-binary @FILE URL")]
    [InlineData("curl-expect", "curl -sS -f -H 'Expect: 100-continue' -H 'Transfer-Encoding: chunked' --data-binary @FILE URL")]
    [InlineData("python", """
        python3 -c "
        import http.client
        c = http.client.HTTPConnection('127.0.0.1', PORT)
        c.request('POST', '/alerts/INS/', (bytes([b]) for b in open('FILE', 'rb').read()))
        r = c.getresponse()
        assert r.status == 204 and r.read() == b''
        c.request('GET', '/live')
        assert c.getresponse().status == 200"
        """)]
    [InlineData("node", """
        node -e "
        const r = require('http').request('URL', { method: 'POST' }, a => process.exit(a.statusCode == 204 ? 0 : 1));
        const text = require('fs').readFileSync('FILE');
        for (let i = 0; i < text.length; i += 50) r.write(text.subarray(i, i + 50));
        r.end();"
        """)]
    public async Task ClientThatStreamsIsTaken(string service, string script)
    {
        await using var ses = await SesProcess.StartAsync("none");
        var file = Path.Combine(ses.DataDir, "body.json");
        await File.WriteAllTextAsync(file, Body(service));
        await RunAsync("sh", "-ec", script.Replace("URL", $"http://127.0.0.1:{ses.Port}/alerts/INS", Ordinal)
            .Replace("PLACE", $"http://127.0.0.1:{ses.Port}", Ordinal)
            .Replace("PORT", $"{ses.Port}", Ordinal).Replace("FILE", file, Ordinal));
        Assert.True(Knows(ses, service));
    }

    /// <summary>Browsers of HTTP/1.0, and those who probe with it.</summary>
    [Theory]
    [InlineData("lynx", "-dump", "-nolist", "URL")]
    [InlineData("w3m", "-dump", "URL")]
    public async Task PageIsShownByTextBrowsers(string program, params string[] arguments)
    {
        await using var ses = await SesProcess.StartAsync("none");
        using (var posted = await ses.PostAsync("INS", Body("shown-in-text")))
            Assert.Equal(HttpStatusCode.NoContent, posted.StatusCode);
        Assert.Contains("shown-in-text", await RunAsync(
            program, [.. arguments.Select(a => a.Replace("URL", $"http://127.0.0.1:{ses.Port}/", Ordinal))]), Ordinal);
    }
}
