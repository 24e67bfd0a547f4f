using System.IO.Compression;
using System.Net;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>Who gets gzip, of which answers, and that a packed answer is the plain one.</summary>
public sealed class GzipTests
{
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(30);

    [Theory]
    [InlineData(null, false)]
    [InlineData("", false)]
    [InlineData("gzip", true)]
    [InlineData("X-GZip", true)]
    [InlineData("gzip, deflate, br, zstd", true)]
    [InlineData("br;q=1.0, gzip;q=0.8, *;q=0.1", true)]
    [InlineData("gzip ; q=0.001", true)]
    [InlineData("gzip;x=y;Q=1.000", true)]
    [InlineData("gzip;q=0", false)]
    [InlineData("gzip;q=0.000, *", false)]
    [InlineData("*", true)]
    [InlineData("*;q=0", false)]
    [InlineData("br, deflate", false)]
    [InlineData("identity", false)]
    [InlineData("identity, *;q=0.5", false)]
    [InlineData("gzip;q=0.5, identity;q=0.6", false)]
    [InlineData("gzip;q=0.5, identity;q=0.5", true)]
    [InlineData("gzip;q=0.5, identity;q=0", true)]
    [InlineData("gzip;q=1.001", false)]
    [InlineData("gzip;q=-1", false)]
    [InlineData("gzip;q=high", false)]
    [InlineData("gzip;q=", false)]
    [InlineData(",,;,gzip", true)]
    [InlineData("gzipped", false)]
    public void GzipIsForThoseWhoTakeIt(string? acceptEncoding, bool expected) =>
        Assert.Equal(expected, Preference.IsForGzip(acceptEncoding));

    /// <summary>Changes whose texts gzip makes little smaller.</summary>
    private static async Task SayManyAsync(Host host, int count)
    {
        var random = new Random(1);
        for (var i = 0; i < count; i += 200)
        {
            var alerts = Enumerable.Range(i, 200).Select(n => $$$"""
                {"status":"firing","labels":{"platform":"p1","service":"etcd","facet":"node",
                "status":"{{{(n % 2 == 0 ? "up" : "down")}}}",
                "description":"{{{Convert.ToHexString(Bytes(random, 200))}}}"},
                "startsAt":"{{{Rfc3339.Format(Host.Now.AddSeconds(n - count))}}}"}
                """);
            Assert.Equal(204, (await host.PostAsync($$"""{"version":"4","alerts":[{{string.Join(',', alerts)}}]}""")).Code);
        }
    }

    private static byte[] Bytes(Random random, int count)
    {
        var bytes = new byte[count];
        random.NextBytes(bytes);
        return bytes;
    }

    private static async Task<HttpResponseMessage> AskAsync(
        Host host, string path, string? acceptEncoding, HttpMethod? method = null, Version? version = null)
    {
        using var client = new HttpClient();
        using var request = new HttpRequestMessage(method ?? HttpMethod.Get, $"http://127.0.0.1:{host.Port}{path}");
        request.Version = version ?? HttpVersion.Version11;
        if (acceptEncoding != null)
            request.Headers.TryAddWithoutValidation("Accept-Encoding", acceptEncoding);
        return await client.SendAsync(request);
    }

    private static async Task<string> TextAsync(HttpResponseMessage answer)
    {
        var body = await answer.Content.ReadAsStreamAsync();
        using var reader = new StreamReader(answer.Content.Headers.ContentEncoding.Count == 0 ? body
            : new GZipStream(body, CompressionMode.Decompress));
        return await reader.ReadToEndAsync();
    }

    private static string HeadOf(HttpResponseMessage answer) => string.Join('\n', answer.Headers
        .Concat(answer.Content.Headers).Where(h => h.Key != "Date").Select(h => $"{h.Key}: {string.Join(", ", h.Value)}").Order());

    [Theory]
    [InlineData("/", true)]
    [InlineData("/metrics", true)]
    [InlineData("/alerts/INS/history", true)]
    [InlineData("/alerts/INS/history?limit=2", true)]
    [InlineData("/alerts/INS/history?format=csv", true)]
    [InlineData("/alerts/INS/report?period=day&from=2026-11-01", false)]
    [InlineData("/alerts/INS/api/v2/alerts", true)]
    [InlineData("/alerts/INS/history?from=now", false)]
    [InlineData("/health?format=json", false)]
    [InlineData("/alerts/NEVER", false)]
    public async Task PackedAnswerIsThePlainOne(string path, bool isPacked)
    {
        await using var host = Host.Serving();
        await SayManyAsync(host, 400);
        using var plain = await AskAsync(host, path, null);
        using var packed = await AskAsync(host, path, "br, gzip");
        Assert.Empty(plain.Content.Headers.ContentEncoding);
        Assert.Equal(isPacked ? ["gzip"] : [], packed.Content.Headers.ContentEncoding);
        Assert.All([plain, packed], a => Assert.Contains("Accept-Encoding", string.Join(", ", a.Headers.Vary), Ordinal));
        var (before, after) = (await TextAsync(plain), await TextAsync(packed));
        // Some figures change with each request.
        var isOfNow = path is "/metrics" or "/health?format=json";
        if (isOfNow)
            Assert.Equal(before.Split('\n').Length, after.Split('\n').Length);
        else
            Assert.Equal(before, after);
        Assert.Equal(isPacked, before.Length > Gzip.Worth);
        using var head = await AskAsync(host, path, "gzip", HttpMethod.Head);
        if (!isOfNow)
            Assert.Equal(HeadOf(packed), HeadOf(head));
        Assert.Equal(isPacked ? ["gzip"] : [], head.Content.Headers.ContentEncoding);
    }

    [Theory]
    [InlineData("/live")]
    [InlineData("/ready")]
    [InlineData("/alerts/INS/-/ready")]
    public async Task ProbesArePlain(string path)
    {
        await using var host = Host.Serving();
        using var answer = await AskAsync(host, path, "gzip");
        Assert.Empty(answer.Content.Headers.ContentEncoding);
        Assert.Empty(answer.Headers.Vary);
    }

    [Fact]
    public async Task OldClientGetsGzipUntilTheConnectionCloses()
    {
        await using var host = Host.Serving();
        await SayManyAsync(host, 400);
        using var plain = await AskAsync(host, "/alerts/INS/history", null);
        using var packed = await AskAsync(host, "/alerts/INS/history", "gzip", version: HttpVersion.Version10);
        Assert.Equal(["gzip"], packed.Content.Headers.ContentEncoding);
        Assert.Null(packed.Headers.TransferEncodingChunked);
        Assert.Equal(await TextAsync(plain), await TextAsync(packed));
    }

    [Fact]
    public async Task EachPartCanBeUnpackedBeforeTheNextIsMade()
    {
        var parts = new Queue<byte[]?>(["{\"a\":["u8.ToArray(), [], "1,2,3"u8.ToArray(), null]);
        using var body = new StreamedBody(b =>
        {
            var part = parts.Dequeue();
            return Task.FromResult(b.Packed(part == null ? (ReadOnlyMemory<byte>?)null : part));
        }, _ => { }, TimeProvider.System);
        body.Pack();
        var (all, read) = (new MemoryStream(), new List<string>());
        while (await body.NextAsync() is { } part)
        {
            all.Write(part.Span);
            using var gzip = new GZipStream(new MemoryStream(all.ToArray()), CompressionMode.Decompress);
            using var text = new MemoryStream();
            gzip.CopyTo(text);
            read.Add(Encoding.UTF8.GetString(text.ToArray()));
        }
        Assert.Equal(["{\"a\":[", "{\"a\":[", "{\"a\":[1,2,3", "{\"a\":[1,2,3"], read);
        Assert.Empty(parts);
        Assert.Null(await body.NextAsync());
        // The last part has what ends it: a checksum and its length (RFC 1952, 2.3.1).
        Assert.Equal(11, BitConverter.ToInt32(all.ToArray().AsSpan()[^4..]));
    }

    /// <summary>Its client sees that the answer is not whole: without a last chunk, or reset.</summary>
    [Theory]
    [InlineData("1.1")]
    [InlineData("1.0")]
    public async Task PackedAnswerThatIsNotReadInTimeEndsBrokenOff(string version)
    {
        await using var host = Host.Serving();
        await SayManyAsync(host, 6000);
        using var client = new TcpClient { ReceiveBufferSize = 4096 };
        await client.ConnectAsync("127.0.0.1", host.Port);
        var stream = client.GetStream();
        await stream.WriteAsync(Encoding.ASCII.GetBytes(
            $"GET /alerts/INS/history HTTP/{version}\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n"));
        var head = new byte[500];
        await stream.ReadExactlyAsync(head).AsTask().WaitAsync(Soon);
        Assert.Contains("Content-Encoding: gzip\r\n", Encoding.Latin1.GetString(head), Ordinal);
        host.Clock.Advance(TimeSpan.FromMinutes(2));
        await Assert.ThrowsAnyAsync<IOException>(async () =>
        {
            using var rest = new MemoryStream();
            await stream.CopyToAsync(rest).WaitAsync(Soon);
            if (version == "1.1" && !rest.ToArray().AsSpan().EndsWith("\r\n0\r\n\r\n"u8))
                throw new IOException("there is no last chunk");
        });
    }
}
