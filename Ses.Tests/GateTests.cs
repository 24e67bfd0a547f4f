using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Text;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What strangers may send to the public port, byte by byte, and how long they may take.</summary>
public sealed class GateTests(GateTests.Running running) : IClassFixture<GateTests.Running>
{
    private const string Post = "POST /alerts/INS HTTP/1.1\r\n";
    private const string Host = "Host: a\r\n";
    private const string Live = "GET /live HTTP/1.1\r\nHost: a\r\n\r\n";

    private static readonly DateTime Now = DateTime.UtcNow;
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);
    private static int _services;

    /// <summary>One SeS for all requests: whatever one of them does, the next must be served.</summary>
    public sealed class Running : IAsyncDisposable, IDisposable
    {
        internal Site Site { get; } = new(TimeProvider.System, 20_000);

        public ValueTask DisposeAsync() => Site.DisposeAsync();

        public void Dispose() => Site.DisposeAsync().AsTask().Wait(Soon);
    }

    /// <summary>A <see cref="Front"/>, what it counts, and whether its metrics are held back.</summary>
    internal sealed class Site : IAsyncDisposable
    {
        private readonly Front _front;
        private readonly TaskCompletionSource _release = new();
        private int _scrapes, _disposed;

        public Site(TimeProvider clock, long descriptors, bool holdsMetrics = false, params string[] flags)
        {
            var log = new Log(LogLevel.Trace, json: false, TextWriter.Synchronized(Lines), clock);
            Meters = new Meters("test", "test");
            Meters.Registry.AddBeforeCollectCallback(_ =>
            {
                Interlocked.Increment(ref _scrapes);
                return holdsMetrics ? _release.Task : Task.CompletedTask;
            });
            _front = new Front(Front.OptionsOf(flags), clock, log, Meters, descriptors: descriptors);
        }

        public string Dir => _front.Dir;

        public Gate Gate => _front.Gate;

        public int Port => _front.Port;

        public StringWriter Lines { get; } = new();

        public Meters Meters { get; }

        /// <summary>Requests for /metrics that have reached their handler.</summary>
        public int Scrapes => Volatile.Read(ref _scrapes);

        public double Refused(string reason) => Meters.HttpRefused.WithLabels(reason).Value;

        public bool Knows(string service) =>
            StoreFiles.Starts(Dir).Any(s => s.Service.Service == service);

        public void Release() => _release.TrySetResult();

        public Peer Connect(int? receiveBuffer = null) => new(Port, receiveBuffer);

        /// <summary>Connects, and waits until the gate has this many connections.</summary>
        public async Task<Peer> ConnectAsync(int count)
        {
            var peer = Connect();
            await Wait.UntilAsync(() => Meters.Connections.Value == count, Soon, $"{count} connections");
            return peer;
        }

        public async ValueTask DisposeAsync()
        {
            if (Interlocked.Exchange(ref _disposed, 1) != 0)
                return;
            Release();
            await _front.DisposeAsync();
        }
    }

    internal sealed record Answer(int Code, string Head, string Body);

    /// <summary>A client that says what it is told, and reads answers as they come.</summary>
    internal sealed class Peer : IDisposable
    {
        private readonly Socket _socket = new(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp)
        {
            NoDelay = true,
        };
        private readonly byte[] _buffer = new byte[64 * 1024];
        private string _held = "";

        public Peer(int port, int? receiveBuffer)
        {
            if (receiveBuffer is { } size)
                _socket.ReceiveBufferSize = size;
            _socket.Connect(new IPEndPoint(IPAddress.Loopback, port));
        }

        public async Task SendAsync(string text)
        {
            for (ReadOnlyMemory<byte> left = Encoding.Latin1.GetBytes(text); left.Length > 0;)
                left = left[await _socket.SendAsync(left, SocketFlags.None)..];
        }

        /// <summary>Sends, unless the other side ends the connection meanwhile.</summary>
        public async Task TrySendAsync(string text)
        {
            try
            {
                await SendAsync(text);
            }
            catch (SocketException)
            {
                // It was refused before all was sent.
            }
        }

        public void EndSending() => _socket.Shutdown(SocketShutdown.Send);

        /// <summary>Null: the connection ended.</summary>
        public async Task<Answer?> ReceiveAsync(bool isHead = false)
        {
            int end;
            while ((end = _held.IndexOf("\r\n\r\n", StringComparison.Ordinal)) < 0)
            {
                if (!await MoreAsync())
                    return _held == "" ? null : throw new IOException("cut off: " + _held);
            }
            var head = _held[..(end + 2)];
            _held = _held[(end + 4)..];
            var at = head.IndexOf("\r\nContent-Length: ", StringComparison.Ordinal);
            var length = at < 0 ? 0 : int.Parse(
                head[(at + 18)..].Split('\r')[0], CultureInfo.InvariantCulture);
            for (length = isHead ? 0 : length; _held.Length < length;)
                Assert.True(await MoreAsync(), "the body is cut off: " + head + _held);
            var body = _held[..length];
            _held = _held[length..];
            return new Answer(int.Parse(head[9..12], CultureInfo.InvariantCulture), head, body);
        }

        /// <summary>Whether it has ended, by a close or a reset, with nothing more said.</summary>
        public async Task<bool> EndedAsync() => await ReceiveAsync() == null;

        public void Dispose() => _socket.Dispose();

        private async Task<bool> MoreAsync()
        {
            try
            {
                var count = await _socket.ReceiveAsync(_buffer, SocketFlags.None).WaitAsync(Soon);
                _held += Encoding.Latin1.GetString(_buffer, 0, count);
                return count > 0;
            }
            catch (SocketException)
            {
                return false;
            }
        }
    }

    private static async Task<Answer> ReceiveAsync(Peer peer, bool isHead = false) =>
        await peer.ReceiveAsync(isHead) ?? throw new IOException("closed without an answer");

    private static string Service() => $"s{Interlocked.Increment(ref _services)}";

    private static string Body(string service) => $$$"""
        {"version":"4","alerts":[{"status":"firing","labels":{"alertname":"A","job":"{{{service}}}"},
        "startsAt":"{{{Now.AddHours(-1):yyyy-MM-dd'T'HH:mm:ss'Z'}}}"}]}
        """;

    /// <summary>A whole webhook.</summary>
    private static string Webhook(string service, string fields = "") =>
        $"{Post}{Host}{fields}Content-Length: {Body(service).Length}\r\n\r\n{Body(service)}";

    // ---- What is refused ----

    private static string Head(string fields) => Post + fields + "\r\n";

    private static string Target(string target) =>
        $"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";

    private static string RequestLine(string line) => line + "Host: a\r\nContent-Length: 0\r\n\r\n";

    private static string Length(string field) => Head(Host + field + "\r\n");

    private static string Chunked(string body) => Length("Transfer-Encoding: chunked") + body;

    private static string Fields(string fields) => Head(Host + fields + "\r\nContent-Length: 0\r\n");

    public static readonly TheoryData<int, string> Refusals = new()
    {
        { 411, Head(Host) },
        { 400, Length("Content-Length: 5\r\nContent-Length: 5") },
        { 400, Length("Content-Length: 5\r\nContent-Length: 0") },
        { 400, Length("Content-Length: 0\r\nCONTENT-LENGTH: 5") },
        { 400, Length("Content-Length: 5, 5") },
        { 400, Length("Content-Length: +5") },
        { 400, Length("Content-Length: -0") },
        { 400, Length("Content-Length: 0x5") },
        { 400, Length("Content-Length: 5 5") },
        { 400, Length("Content-Length: 5\t5") },
        { 400, Length("Content-Length: 5.0") },
        { 400, Length("Content-Length: 5e0") },
        { 400, Length("Content-Length: 5;") },
        { 400, Length("Content-Length: \"5\"") },
        { 400, Length("Content-Length: \xb2") },
        { 400, Length("Content-Length: 5\0") },
        { 400, Length("Content-Length: ") },
        { 400, Length("Content-Length:") },
        { 400, Length("Content-Length: 18446744073709551621") },
        { 400, Length("Content-Length: 99999999999999999999999999") },
        { 413, Length("Content-Length: 4294967301") },
        { 413, Length("Content-Length: 999999999999999999") },
        { 400, Length("Content-Length : 0") },
        { 400, Length("Content-Length\t: 0") },
        { 400, Length(" Content-Length: 0") },
        { 411, Length("Content_Length: 5") },
        { 501, Length("Transfer-Encoding: identity") },
        { 501, Length("Transfer-Encoding: chunked, chunked") },
        { 501, Length("Transfer-Encoding: gzip, chunked") },
        { 501, Length("Transfer-Encoding: chunked;q=1") },
        { 501, Length("Transfer-Encoding: \"chunked\"") },
        { 501, Length("Transfer-Encoding: xchunked") },
        { 501, Length("Transfer-Encoding:") },
        { 400, Length("Transfer-Encoding: \u000bchunked") },
        { 400, Length("Transfer-Encoding : chunked") },
        { 400, Length("Transfer-Encoding\t: chunked") },
        { 501, Length("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity") },
        { 501, Length("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked") },
        { 400, Length("Content-Length: 5\r\nTransfer-Encoding: chunked") + "0\r\n\r\n" },
        { 400, Length("Transfer-Encoding: chunked\r\nContent-Length: 5") + "0\r\n\r\n" },
        { 400, Length("Transfer-Encoding: chunked\r\nContent-Length: 0") + "0\r\n\r\n" },
        { 400, "GET /live HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" },
        { 400, "POST /alerts/INS HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" },
        { 400, Chunked("") },
        { 400, Chunked("\r\n") },
        { 400, Chunked("x\r\n") },
        { 400, Chunked("-2\r\n{}\r\n0\r\n\r\n") },
        { 400, Chunked("+2\r\n{}\r\n0\r\n\r\n") },
        { 400, Chunked("0x2\r\n{}\r\n0\r\n\r\n") },
        { 400, Chunked(" 2\r\n{}\r\n0\r\n\r\n") },
        { 400, Chunked("2 \r\n{}\r\n0\r\n\r\n") },
        { 400, Chunked("2 2\r\n{}\r\n0\r\n\r\n") },
        { 400, Chunked("2,2\r\n{}\r\n0\r\n\r\n") },
        { 400, Chunked(";a\r\n{}\r\n0\r\n\r\n") },
        { 400, Chunked("2\n{}\r\n0\r\n\r\n") },
        { 400, Chunked("2\r{}\r\n0\r\n\r\n") },
        { 400, Chunked("2\r\r\n{}\r\n0\r\n\r\n") },
        { 400, Chunked("2;\n{}\r\n0\r\n\r\n") },
        { 400, Chunked("2;a\0\r\n{}\r\n0\r\n\r\n") },
        { 400, Chunked("2;a=\"\r\n\"{}\r\n0\r\n\r\n") },
        { 400, Chunked("2\r\n{}\n0\r\n\r\n") },
        { 400, Chunked("2\r\n{}0\r\n\r\n") },
        { 400, Chunked("2\r\n{}x\r\n0\r\n\r\n") },
        { 400, Chunked("1\r\n{}\r\n0\r\n\r\n") },
        { 400, Chunked("3\r\n{}\r\n0\r\n\r\n") },
        { 400, Chunked("2\r\n{}\r\n0\r\n\n") },
        { 400, Chunked("2\r\n{}\r\n0\n\r\n") },
        { 400, Chunked("2\r\n{}\r\n0\r\nno colon\r\n\r\n") },
        { 400, Chunked("2\r\n{}\r\n0\r\nX: a\r\n folded\r\n\r\n") },
        { 400, Chunked("2\r\n{}\r\n0\r\nX: \0\r\n\r\n") },
        { 400, Chunked("2\r\n{}\r\n0\r\n" + string.Concat(Enumerable.Repeat("X: y\r\n", 101)) + "\r\n") },
        { 400, Chunked("2;" + new string('x', 1100) + "\r\n{}\r\n0\r\n\r\n") },
        { 400, Chunked(new string('0', 16) + "2\r\n{}\r\n0\r\n\r\n") },
        { 413, Chunked("FFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n") },
        { 413, Chunked("100000002\r\n{}\r\n0\r\n\r\n") },
        { 413, Chunked("1000001\r\n{}") },
        { 415, Fields("Content-Encoding: br").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 415, Fields("Content-Encoding: gzip, gzip").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 415, Fields("Content-Encoding: gzip\r\nContent-Encoding: gzip")
            .Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 400, Length("Content-Length: 2\r\nContent-Encoding: gzip") + "{}" },
        { 400, Length("Content-Length: 0\r\nContent-Encoding: gzip") },
        { 505, RequestLine("POST /alerts/INS HTTP/1.1\r\r\n") },
        { 400, RequestLine("POST /alerts/INS\rX HTTP/1.1\r\n") },
        { 400, RequestLine("POST /alerts/INS HTTP/1.1\n") },
        { 400, Fields("X: a\rContent-Length: 5") },
        { 400, Fields("X: a\nContent-Length: 5") },
        { 400, Fields("X: a\n\rY: b") },
        { 400, Fields("X: a\r\n\nY: b") },
        { 400, Post + Host + "Content-Length: 0\r\n\n" },
        { 400, Post + Host + "Content-Length: 0\n\n" },
        { 400, Post + Host + "Content-Length: 0\n\r\n" },
        { 400, Post + Host + "Content-Length: 0\r\n\r\r\n" },
        { 400, Fields("X: \0") },
        { 400, Fields("X\0: a") },
        { 400, Fields("X: \x7f") },
        { 400, Fields("X: \x1b[2J") },
        { 400, RequestLine("POST /alerts/IN\0S HTTP/1.1\r\n") },
        { 400, "POST\0 /alerts/INS HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" },
        { 400, Post + " X: a\r\n" + Host + "Content-Length: 0\r\n\r\n" },
        { 400, Post + "\tX: a\r\n" + Host + "Content-Length: 0\r\n\r\n" },
        { 400, Fields("X: a\r\n b") },
        { 400, Fields("X: a\r\n\tb") },
        { 400, Length("Content-Length:\r\n 5") },
        { 400, Length("Content-Length: 0\r\n\t5") },
        { 400, Fields("no colon") },
        { 400, Fields("X") },
        { 400, Fields(": a") },
        { 400, Fields(" : a") },
        { 400, Fields("X Y: a") },
        { 400, Fields("X\"Y: a") },
        { 400, Fields("X(Y): a") },
        { 400, Fields("X\xe4: a") },
        { 400, Fields("{X}: a") },
        { 400, Head("Content-Length: 0\r\n") },
        { 400, Head("Host: a\r\nHost: a\r\nContent-Length: 0\r\n") },
        { 400, Head("Host: a\r\nHOST: b\r\nContent-Length: 0\r\n") },
        { 400, Head("Host:\r\nContent-Length: 0\r\n") },
        { 400, Head("Host: \t \r\nContent-Length: 0\r\n") },
        { 400, Head("Host: a b\r\nContent-Length: 0\r\n") },
        { 400, Head("Host: a/b\r\nContent-Length: 0\r\n") },
        { 400, Head("Host: a@b\r\nContent-Length: 0\r\n") },
        { 400, Head("Host: a?b\r\nContent-Length: 0\r\n") },
        { 400, Head("Host: \xe4\r\nContent-Length: 0\r\n") },
        { 400, Target("ftp://a/alerts/INS") },
        { 400, Target("http:///alerts/INS") },
        { 400, Target("http://") },
        { 400, Target("http:/a/alerts/INS") },
        { 400, Target("http://u@a/alerts/INS") },
        { 400, Target("http://a b/alerts/INS") },
        { 400, Target("http://a#b/alerts/INS") },
        { 400, RequestLine("CONNECT a:80 HTTP/1.1\r\n") },
        { 400, RequestLine("POST * HTTP/1.1\r\n") },
        { 400, RequestLine("GET * HTTP/1.1\r\n") },
        { 400, Target("alerts/INS") },
        { 400, Target("/alerts/INS#x") },
        { 400, Target("/alerts/\xc3\xa4") },
        { 400, Target("/alerts/INS\\x") },
        { 400, Target("/alerts/<INS>") },
        { 400, Target("/alerts/[INS]") },
        { 400, Target("/alerts/\"INS\"") },
        { 400, Target("/alerts/%") },
        { 400, Target("/alerts/%1") },
        { 400, Target("/alerts/%zz") },
        { 400, Target("/alerts/INS?%") },
        { 400, Target("/alerts/%u0041") },
        { 400, RequestLine("POST /alerts/INS HTTP/1.0\r\n") },
        { 200, "GET /live HTTP/1.0\r\n\r\n" },
        { 200, "GET /live HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n\r\n" },
        { 204, "OPTIONS / HTTP/1.0\r\n\r\n" },
        { 411, "POST /alerts/INS HTTP/1.0\r\n\r\n" },
        { 400, "GET /live HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n" },
        { 505, RequestLine("POST /alerts/INS HTTP/2.0\r\n") },
        { 505, RequestLine("POST /alerts/INS HTTP/1.10\r\n") },
        { 505, RequestLine("POST /alerts/INS HTTP/01.1\r\n") },
        { 400, RequestLine("POST /alerts/INS http/1.1\r\n") },
        { 400, RequestLine("POST /alerts/INS\r\n") },
        { 400, RequestLine("POST /alerts/INS XHTTP/1.1\r\n") },
        { 505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" },
        { 400, RequestLine("POST  /alerts/INS HTTP/1.1\r\n") },
        { 400, RequestLine("POST /alerts/INS  HTTP/1.1\r\n") },
        { 400, RequestLine("POST /alerts/INS HTTP/1.1 \r\n") },
        { 400, RequestLine("POST\t/alerts/INS HTTP/1.1\r\n") },
        { 400, RequestLine("POST /alerts/INS\tHTTP/1.1\r\n") },
        { 400, RequestLine(" POST /alerts/INS HTTP/1.1\r\n") },
        { 400, RequestLine("P(ST /alerts/INS HTTP/1.1\r\n") },
        { 400, "\r\n\r\n" + RequestLine("POST /alerts/INS HTTP/1.1\r\n") },
        { 400, "\r" + RequestLine("POST /alerts/INS HTTP/1.1\r\n") },
        { 400, "\n" + RequestLine("POST /alerts/INS HTTP/1.1\r\n") },
        { 400, "\0" + RequestLine("POST /alerts/INS HTTP/1.1\r\n") },
        { 400, "\x16\x03\x01\x02\0\x01" },
        { 400, "GET /live HTTP/1.1\r\nHost: a\r\nContent-Length: 300\r\n\r\n" },
        { 400, "HEAD /live HTTP/1.1\r\nHost: a\r\nContent-Length: 300\r\n\r\n" },
        { 417, Length("Content-Length: 300\r\nExpect: 200-ok") },
        { 417, Length("Content-Length: 300\r\nExpect:") },
        { 417, Length("Content-Length: 300\r\nExpect: 100-continue, x") },
        { 400, Fields("Authorization: Basic YTpi\r\nAuthorization: Basic YTpi") },
        { 431, Fields("X: " + new string('x', 17_000)) },
        { 431, RequestLine($"POST /{new string('x', 17_000)} HTTP/1.1\r\n") },
        { 431, new string('P', 17_000) },
        { 431, Fields(string.Concat(Enumerable.Repeat("X: y\r\n", 101)) + "Z: z") },
        { 404, "POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 300\r\n\r\n" },
        { 404, "POST /nothing HTTP/1.1\r\nHost: a\r\n\r\n" },
        { 405, "PUT /alerts/INS HTTP/1.1\r\nHost: a\r\nContent-Length: 300\r\n\r\n" },
        { 405, "TRACE /live HTTP/1.1\r\nHost: a\r\n\r\n" },
        { 403, Fields("Origin: http://evil.example").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 403, Fields("origin: null").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 404, Target("/alerts/..").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        // A proxy that judges paths knows no other way to write them.
        { 400, Target("/%61lerts/INS").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 400, Target("/alerts/IN%53").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 400, Target("/alerts/INS%2Ehistory").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 400, Target("/alerts/%2e").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 400, Target("/alerts/%2e%2E/INS").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 400, Target("/alerts/IN%FF").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 400, Target("/alerts/IN%C3").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 400, Target("/alerts/IN%C0%AE").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 400, Target("/alerts/IN%ED%A0%80").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 400, Target("/alerts/IN%").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 400, Target("/alerts/IN%4").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 400, Target("/alerts/IN%zz").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 404, Target("/alerts/%00").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
        { 404, Target("/alerts/%0d%0aX:y").Replace("Length: 0", "Length: 300", StringComparison.Ordinal) },
    };

    /// <summary>Also what ends a connection by right: HTTP/1.0.</summary>
    [Theory]
    [MemberData(nameof(Refusals))]
    public async Task WhatIsRefusedEndsTheConnectionAndSmugglesNothing(int code, string request)
    {
        var service = Service();
        using var peer = running.Site.Connect();
        await peer.TrySendAsync(request + Webhook(service));
        Assert.Equal(code, (await ReceiveAsync(peer)).Code);
        Assert.True(await peer.EndedAsync(), "more was answered");
        await AssertServedAsync();
        Assert.False(running.Site.Knows(service), "the hidden alert was taken");
        Assert.Equal(0, running.Site.Meters.Defects.Value);
    }

    [Theory]
    [InlineData("ses-1.example", 200)]
    [InlineData("SES-1.Example.:8888", 200)]
    [InlineData("[2001:DB8:0:0::1]:443", 200)]
    // As probes on this host name it.
    [InlineData("127.0.0.1:8888", 200)]
    [InlineData("[::1]", 200)]
    [InlineData("evil.example", 421)]
    [InlineData("ses-1.example.evil.example", 421)]
    [InlineData("ses-1.example..", 421)]
    [InlineData("ses-1.example:a", 421)]
    [InlineData("ses-1.example:evil.example:80", 421)]
    [InlineData("localhost", 421)]
    [InlineData("192.0.2.1", 421)]
    [InlineData("[2001:db8::2]", 421)]
    [InlineData(":80", 421)]
    [InlineData("[]", 421)]
    public async Task WhereHostsAreNamedOthersAreMisdirected(string host, int code)
    {
        await using var site = new Site(
            TimeProvider.System, 20_000, flags: ["--hosts", "SES-1.example, [2001:db8::1]"]);
        using var peer = site.Connect();
        await peer.SendAsync($"GET /live HTTP/1.1\r\nHost: {host}\r\n\r\n");
        var answer = await ReceiveAsync(peer);
        Assert.Equal(code, answer.Code);
        Assert.Equal(code == 421, answer.Body.Contains("not one of --hosts (OXSES_HOSTS)", StringComparison.Ordinal));
        Assert.Equal(code == 421 ? 1 : 0, site.Refused("host"));
        Assert.True(code == 200 || await peer.EndedAsync());
    }

    /// <summary>What came before has been dealt with, and has harmed nobody.</summary>
    private async Task AssertServedAsync()
    {
        var service = Service();
        using var peer = running.Site.Connect();
        await peer.SendAsync(Webhook(service));
        Assert.Equal(204, (await ReceiveAsync(peer)).Code);
        Assert.True(running.Site.Knows(service));
    }

    // ---- What looks odd and is served ----

    public static readonly TheoryData<int, string> Oddities = new()
    {
        { 400, Length("Content-Length: 0") },
        { 400, Length("Content-Length: 0002") + "{}" },
        { 400, Target("http://a/alerts/INS") },
        { 400, Target("HTTPS://[::1]:80/alerts/INS?a=b") },
        { 405, Target("http://a") },
        { 405, Target("http://a?b") },
        { 204, RequestLine("OPTIONS * HTTP/1.1\r\n") },
        { 204, RequestLine("OPTIONS /alerts/INS HTTP/1.1\r\n") },
        { 404, RequestLine("OPTIONS /nothing HTTP/1.1\r\n") },
        { 400, "\r\n" + RequestLine("POST /alerts/INS HTTP/1.1\r\n") },
        { 200, "\r\nGET /live HTTP/1.1\r\nHost: a\r\n\r\n" },
        { 400, Chunked("0\r\n\r\n") },
        { 400, Chunked("2\r\n{}\r\n0\r\n\r\n") },
        { 400, Chunked("2\r\n{}\r\n00\r\nX-Sum: a\r\nContent-Length: 5\r\nY:\r\n\r\n") },
        { 400, Chunked("1;a\r\n{\r\n1 ; b=\"c d\"\r\n}\r\n0;\r\n\r\n") },
        { 400, Length("Transfer-Encoding:\tChunked \r\nExpect: 100-continue") + "2\r\n{}\r\n0\r\n\r\n" },
        { 400, Length("Content-Length: 2\r\nContent-Encoding: identity") + "{}" },
        { 400, Length("Content-Length: 2\r\nContent-Encoding:") + "{}" },
        { 200, "GET /live HTTP/1.1\r\nHost: a\r\nContent-Encoding: br\r\n\r\n" },
        { 400, Length("Content-Length:\t2\t ") + "{}" },
        { 400, Length("content-length:2") + "{}" },
        { 404, Target("/alerts/a%2Fb/c") },
        { 404, Target("//alerts/INS") },
        { 404, Target("/alerts/../alerts/INS/x") },
        { 404, Target("/alerts/%00") },
        { 404, Target("/alerts/a%0d%0aHost:%20b") },
        { 400, Target("/alerts/%2f") },
        { 400, Target("/alerts/%ff") },
        { 404, Target("/alerts/..") },
        { 400, Target("/alerts/INS?Content-Length:%205%0d%0a") },
        { 404, "GET /a%2Fb%20%C3%BC HTTP/1.1\r\nHost: a\r\n\r\n" },
        { 200, "GET /live? HTTP/1.1\r\nHost: [::1]:80\r\n\r\n" },
        { 200, "GET /live HTTP/1.1\r\nhOST:a:\r\nContent-Length: 0\r\n\r\n" },
        { 200, "GET /live HTTP/1.1\r\nHost: a\r\nX:\r\nY:\t\t\r\nZ: \xe4\xff\r\n!#$%&'*+-.^_`|~: t\r\n\r\n" },
        { 200, "GET /live HTTP/1.1\r\nHost: a\r\nAccept: ,\"\r\nAccept: \x80;q=,\r\n\r\n" },
        { 200, "GET /live HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" },
        { 200, "GET /live HTTP/1.1\r\nHost: a\r\nSes-Secret: x\r\nSes-Secret: y\r\n\r\n" },
        { 200, "GET /live HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n\r\n" },
        { 200, "GET /live HTTP/1.1\r\nHost: a\r\n"
            + string.Concat(Enumerable.Repeat("X: y\r\n", 99)) + "\r\n" },
        { 200, "GET /live HTTP/1.1\r\nHost: a\r\nX: " + new string('x', 16_384 - 39) + "\r\n\r\n" },
        { 405, "get /live HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" },
    };

    [Theory]
    [MemberData(nameof(Oddities))]
    public async Task WhatIsWellFormedIsServedAndSoIsWhatFollows(int code, string request)
    {
        var service = Service();
        using var peer = running.Site.Connect();
        await peer.SendAsync(request + Webhook(service) + Live);
        Assert.Equal(code, (await ReceiveAsync(peer)).Code);
        Assert.Equal(204, (await ReceiveAsync(peer)).Code);
        Assert.Equal(200, (await ReceiveAsync(peer)).Code);
        Assert.True(running.Site.Knows(service));
        Assert.Equal(0, running.Site.Meters.Defects.Value);
    }

    [Fact]
    public async Task PipelinedRequestsAreEachAnsweredInOrder()
    {
        string[] services = [Service(), Service(), Service()];
        using var peer = running.Site.Connect();
        await peer.SendAsync(string.Concat(services.Select(s => Webhook(s))) + Live
            + "GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n" + Length("Content-Length: 2") + "{}" + Live);
        foreach (var code in new[] { 204, 204, 204, 200, 404, 400, 200 })
            Assert.Equal(code, (await ReceiveAsync(peer)).Code);
        Assert.All(services, s => Assert.True(running.Site.Knows(s)));
    }

    [Fact]
    public async Task RequestThatComesByteByByteIsServed()
    {
        var service = Service();
        using var peer = running.Site.Connect();
        foreach (var letter in Webhook(service))
            await peer.SendAsync($"{letter}");
        Assert.Equal(204, (await ReceiveAsync(peer)).Code);
        Assert.True(running.Site.Knows(service));
    }

    [Fact]
    public async Task HeadMayBeSplitAnywhere()
    {
        using var peer = running.Site.Connect();
        for (var at = 1; at < Live.Length; at++)
        {
            await peer.SendAsync(Live[..at]);
            await Task.Yield();
            await peer.SendAsync(Live[at..]);
            Assert.Equal(200, (await ReceiveAsync(peer)).Code);
        }
    }

    [Fact]
    public async Task BodyIsAskedForWith100Continue()
    {
        var service = Service();
        var request = Webhook(service, "Expect: 100-continue\r\n");
        var head = request.IndexOf("\r\n\r\n", StringComparison.Ordinal) + 4;
        using var peer = running.Site.Connect();
        await peer.SendAsync(request[..head]);
        Assert.Equal("HTTP/1.1 100 Continue\r\n", (await ReceiveAsync(peer)).Head);
        await peer.SendAsync(request[head..] + Live);
        Assert.Equal(204, (await ReceiveAsync(peer)).Code);
        Assert.Equal(200, (await ReceiveAsync(peer)).Code);
        Assert.True(running.Site.Knows(service));
    }

    [Fact]
    public async Task BodyThatIsRefusedIsNotAskedFor()
    {
        using var peer = running.Site.Connect();
        await peer.SendAsync(Length("Content-Length: 9000000000\r\nExpect: 100-continue"));
        Assert.Equal(413, (await ReceiveAsync(peer)).Code);
        Assert.True(await peer.EndedAsync());
    }

    [Theory]
    [InlineData("Connection: close")]
    [InlineData("connection:keep-alive , CLOSE")]
    [InlineData("Connection: x\r\nConnection: close")]
    public async Task ConnectionIsClosedWhenTheClientAsksForIt(string field)
    {
        var (first, second) = (Service(), Service());
        using var peer = running.Site.Connect();
        await peer.SendAsync(Webhook(first, field + "\r\n") + Webhook(second));
        var answer = await ReceiveAsync(peer);
        Assert.Equal(204, answer.Code);
        Assert.Contains("\r\nConnection: close\r\n", answer.Head, StringComparison.Ordinal);
        Assert.True(await peer.EndedAsync());
        Assert.True(running.Site.Knows(first));
        Assert.False(running.Site.Knows(second));
    }

    [Fact]
    public async Task HeadHasTheLengthOfGetButNoBody()
    {
        using var peer = running.Site.Connect();
        foreach (var path in new[] { "/live", "/nothing" })
        {
            var get = $"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n";
            await peer.SendAsync(get + get.Replace("GET", "HEAD", StringComparison.Ordinal) + get);
            var answers = new List<Answer>();
            for (var i = 0; i < 3; i++)
                answers.Add(await ReceiveAsync(peer, isHead: i == 1));
            Assert.All(answers, a => Assert.Equal(path == "/live" ? 200 : 404, a.Code));
            Assert.All(answers, a => Assert.Contains(
                $"\r\nContent-Length: {answers[0].Body.Length}\r\n", a.Head, StringComparison.Ordinal));
            Assert.Equal(answers[0].Body, answers[2].Body);
        }
    }

    [Fact]
    public async Task NoContentHasNoLength()
    {
        using var peer = running.Site.Connect();
        await peer.SendAsync(Webhook(Service()));
        var answer = await ReceiveAsync(peer);
        Assert.Equal(204, answer.Code);
        Assert.DoesNotContain("Content-Length", answer.Head, StringComparison.OrdinalIgnoreCase);
    }

    // ---- How long, and how many ----

    /// <summary>
    /// Lets the clock run until the condition holds; slowly, since an answer has a second of it. Tells how long
    /// that was.
    /// </summary>
    private static async Task<TimeSpan> RunAsync(ManualClock clock, Func<bool> condition, string what)
    {
        var began = clock.Timestamp;
        await Wait.UntilAsync(() =>
        {
            if (condition())
                return true;
            clock.Advance(TimeSpan.FromSeconds(0.2));
            return false;
        }, Soon, what);
        return TimeSpan.FromTicks(clock.Timestamp - began);
    }

    [Theory]
    [InlineData("", 0, "idle", 10)]
    [InlineData("GET /li", 408, "head_timeout", 10)]
    [InlineData("POST /alerts/INS HTTP/1.1\r\nHost: a\r\n", 408, "head_timeout", 10)]
    [InlineData("POST /alerts/INS HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n{}", 408,
        "body_timeout", 30)]
    public async Task WhatDoesNotComeInTimeEndsTheConnection(
        string part, int code, string reason, int seconds)
    {
        var clock = new ManualClock(Now);
        await using var site = new Site(clock, 20_000);
        using var peer = await site.ConnectAsync(1);
        await peer.SendAsync(part);
        var answer = peer.ReceiveAsync();
        var took = await RunAsync(clock, () => answer.IsCompleted, "the end");
        Assert.True(took >= TimeSpan.FromSeconds(seconds), $"after {took}");
        Assert.Equal(code, (await answer)?.Code ?? 0);
        Assert.True(await peer.EndedAsync());
        Assert.Equal(1, site.Refused(reason));
        // The client does not close; the gate does not wait for it.
        await RunAsync(clock, () => site.Meters.Connections.Value == 0, "the connection to be forgotten");
    }

    [Fact]
    public async Task ConnectionThatIsIdleAfterARequestIsClosedLater()
    {
        var clock = new ManualClock(Now);
        await using var site = new Site(clock, 20_000);
        using var peer = site.Connect();
        await peer.SendAsync(Live);
        Assert.Equal(200, (await ReceiveAsync(peer)).Code);
        var end = peer.EndedAsync();
        var took = await RunAsync(clock, () => end.IsCompleted, "the end");
        Assert.True(await end);
        Assert.True(took >= TimeSpan.FromSeconds(75), $"after {took}");
        Assert.Equal(1, site.Refused("idle"));
    }

    [Fact]
    public async Task BodyThatIsCutOffIsRefused()
    {
        var site = running.Site;
        var before = site.Refused("body_cut");
        using var peer = site.Connect();
        await peer.SendAsync(Length("Content-Length: 9") + "{");
        peer.EndSending();
        Assert.Equal(400, (await ReceiveAsync(peer)).Code);
        Assert.True(await peer.EndedAsync());
        Assert.Equal(before + 1, site.Refused("body_cut"));
    }

    /// <summary>Twice: what has not ended it the first time may be a write, which no reading ends.</summary>
    [Fact]
    public async Task OverdueConnectionIsClosedTheSecondTime()
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        using var client = new TcpClient();
        await client.ConnectAsync((IPEndPoint)listener.LocalEndpoint);
        using var connection = new ClientConnection(await listener.AcceptSocketAsync(), IPAddress.Loopback)
        {
            State = ConnectionState.Body,
        };
        connection.Expire(again: 7);
        Assert.Equal((true, 7), (connection.IsOverdue, connection.Deadline));
        await connection.Stream.WriteAsync("it is late"u8.ToArray());
        Assert.Equal(10, await client.GetStream().ReadAsync(new byte[100]).AsTask().WaitAsync(Soon));
        connection.Expire(again: 8);
        await Assert.ThrowsAsync<ObjectDisposedException>(
            async () => await connection.Socket.SendAsync("no more"u8.ToArray(), SocketFlags.None));
    }

    /// <summary>2 bodies of 16 MiB, each a byte more than half there, take all the room that there is.</summary>
    [Fact]
    public async Task StalledBodiesTakeNoRoomFromProbesQuestionsAndSmallWebhooks()
    {
        await using var site = new Site(new ManualClock(Now), 20_000);
        var half = new string(' ', 1024 * 1024);
        using var stalled = new PeerGroup();
        var large = Head($"{Host}Content-Length: {16 * 1024 * 1024}\r\n");
        for (var i = 0; i < 2; i++)
        {
            var peer = stalled.Add(site.Connect());
            await peer.SendAsync(large);
            for (var mib = 0; mib < 8; mib++)
                await peer.SendAsync(half);
            await peer.SendAsync(" ");
        }
        await Wait.UntilAsync(
            () => site.Gate.BytesInFlight > Gate.MaxBytesInFlight - (256 * 1024), Soon, "all room to be taken");
        using (var other = site.Connect())
        {
            await other.TrySendAsync(Head($"{Host}Content-Length: {300 * 1024}\r\n") + half[..(300 * 1024)]);
            Assert.Equal(503, (await ReceiveAsync(other)).Code);
        }
        Assert.Equal(1, site.Refused("bytes_in_flight"));
        var service = Service();
        using var small = site.Connect();
        await small.SendAsync(Webhook(service));
        Assert.Equal(204, (await ReceiveAsync(small)).Code);
        foreach (var path in new[] { "/live", "/ready", "/metrics", "/", "/alerts/INS/report" })
        {
            await small.SendAsync($"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            Assert.Equal(200, (await ReceiveAsync(small)).Code);
        }
        Assert.True(site.Knows(service));
    }

    private sealed class PeerGroup : IDisposable
    {
        private readonly List<Peer> _peers = [];

        public Peer Add(Peer peer)
        {
            _peers.Add(peer);
            return peer;
        }

        public void Dispose() => _peers.ForEach(p => p.Dispose());
    }

    [Theory]
    [InlineData("GET /", true)]
    [InlineData("GET /service?partition=INS", true)]
    [InlineData("HEAD /alerts/INS", true)]
    [InlineData("GET /alerts/INS/history?limit=1", true)]
    [InlineData("GET /alerts/INS/report", true)]
    [InlineData("POST /alerts/INS", false)]
    [InlineData("GET /live", false)]
    [InlineData("GET /ready", false)]
    [InlineData("GET /metrics", false)]
    public async Task QuestionsHavePlacesOfTheirOwn(string line, bool isQuestion)
    {
        await using var front = new Front(Front.OptionsOf(), TimeProvider.System,
            new Log(LogLevel.Error, false, TextWriter.Null, TimeProvider.System), new Meters("test", "test"));
        var head = RequestHead.Parse(Encoding.ASCII.GetBytes($"{line} HTTP/1.1\r\n{Host}\r\n"));
        Assert.Equal(isQuestion, front.Web.IsQuestion(head));
    }

    [Fact]
    public async Task RequestsBeyondThoseInFlightWaitTheirTurnThenAreAnswered503()
    {
        await using var site = new Site(new ManualClock(Now), descriptors: 20, holdsMetrics: true);
        using var first = site.Connect();
        using var second = site.Connect();
        foreach (var peer in new[] { first, second })
            await peer.SendAsync("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        await Wait.UntilAsync(async () =>
        {
            using var third = site.Connect();
            await third.SendAsync(Live);
            return (await ReceiveAsync(third)).Code == 503 && await third.EndedAsync();
        }, Soon, "a request beyond two in flight to be refused");
        Assert.Equal(1, site.Refused("in_flight"));
        site.Release();
        Assert.Equal(200, (await ReceiveAsync(first)).Code);
        Assert.Equal(200, (await ReceiveAsync(second)).Code);
        await first.SendAsync(Live);
        Assert.Equal(200, (await ReceiveAsync(first)).Code);
    }

    [Fact]
    public async Task AtTheCapTheOneThatWaitsLongestGivesWayAndNoneThatIsHandled()
    {
        await using var site = new Site(new ManualClock(Now), descriptors: 20, holdsMetrics: true);
        var peers = new List<Peer>();
        for (var count = 1; count <= 10; count++)
        {
            peers.Add(await site.ConnectAsync(count));
            if (count == 1)
                await peers[0].SendAsync("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
            await Wait.UntilAsync(() => site.Scrapes == 1, Soon, "a request in flight");
        }
        // A part of a head is no request: it does not keep a place.
        await peers[1].SendAsync("GET /live HTTP");
        using var eleventh = site.Connect();
        Assert.True(await peers[1].EndedAsync(), "the longest waiting was answered");
        using var twelfth = site.Connect();
        Assert.True(await peers[2].EndedAsync(), "the next was answered");
        Assert.Equal(2, site.Refused("connections"));
        await Wait.UntilAsync(() => site.Meters.Connections.Value == 10, Soon, "the twelfth in the place of the third");
        site.Release();
        Assert.Equal(200, (await ReceiveAsync(peers[0])).Code);
        foreach (var peer in peers[3..].Append(eleventh).Append(twelfth))
        {
            await peer.SendAsync(Live);
            Assert.Equal(200, (await ReceiveAsync(peer)).Code);
        }
        peers.ForEach(p => p.Dispose());
    }

    [Fact]
    public async Task ConnectionsOfOthersToTheInnerPortAreClosedAndItsOwnGoOn()
    {
        var clock = new ManualClock(Now);
        var port = FreePort.Next();
        await using var site = new Site(clock, 20_000, holdsMetrics: true, "--inner-port", $"{port}");
        using var asks = site.Connect();
        await asks.SendAsync("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        await Wait.UntilAsync(() => site.Scrapes == 1, Soon, "a request in flight");
        var few = Enumerable.Range(0, 60).Select(_ => new Peer(port, null)).ToList();
        clock.Advance(TimeSpan.FromSeconds(2));
        await few[59].SendAsync($"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n");
        Assert.Equal(403, (await ReceiveAsync(few[59])).Code);
        var many = Enumerable.Range(0, 100).Select(_ => new Peer(port, null)).ToList();
        var ended = few.Concat(many).Select(p => p.EndedAsync()).ToList();
        // The HttpListener may accept the last of them after the others were closed: 64 may stay.
        await RunAsync(clock, () => ended.Count(e => e.IsCompletedSuccessfully) >= 96,
            "the others' connections to be closed");
        Assert.All(ended.Where(e => e.IsCompletedSuccessfully), e => Assert.True(e.Result));
        site.Release();
        Assert.Equal(200, (await ReceiveAsync(asks)).Code);
        Assert.Contains("to the inner port were closed", site.Lines.ToString(), StringComparison.Ordinal);
        few.Concat(many).ToList().ForEach(p => p.Dispose());
    }

    [Fact]
    public async Task ClientThatDoesNotTakeItsAnswersIsClosed()
    {
        var clock = new ManualClock(Now);
        await using var site = new Site(clock, 20_000);
        using var peer = site.Connect(receiveBuffer: 4096);
        // More than the system's buffers hold of a connection's answers.
        var sending = peer.TrySendAsync(string.Concat(
            Enumerable.Repeat("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 2_000)));
        var (seen, still) = (-1, 0);
        await Wait.UntilAsync(() =>
        {
            still = site.Scrapes == seen ? still + 1 : 0;
            seen = site.Scrapes;
            return seen > 0 && still == 25;
        }, Soon, "the answers to be stuck");
        await RunAsync(clock, () => site.Meters.Connections.Value == 0, "the connection to be closed");
        Assert.InRange(site.Scrapes, 1, 1_999);
        Assert.Equal(1, site.Refused("answer_timeout"));
        await sending;
    }

    // ---- Chance ----

    [Fact]
    public async Task HostileTrafficDoesNoHarm()
    {
        await using var site = new Site(TimeProvider.System, 20_000);
        var seed = Random.Shared.Next();
        var tally = await new HostileTraffic(site.Port, seed, Now.AddHours(-12))
            .RunAsync(3_000, workers: 8, held: 8, atMost: TimeSpan.FromSeconds(60));
        tally.Check(site.Dir);
        Assert.True(tally.RightAnswers > 500, $"seed {seed}: {tally}");
        Assert.True(site.Meters.Defects.Value == 0, $"seed {seed}: {site.Lines}");
        await Wait.UntilAsync(
            () => site.Meters.Connections.Value == 0, Soon, "all connections to be forgotten");
    }
}
