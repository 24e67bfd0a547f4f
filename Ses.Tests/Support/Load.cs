using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Text;

namespace Ses.Tests.Support;

/// <summary>What a load came to.</summary>
/// <param name="Acknowledged">Events in requests that were answered 2xx.</param>
/// <param name="Refused">Requests answered otherwise.</param>
/// <param name="Latencies">Of each request, sorted.</param>
internal sealed record LoadResult(long Acknowledged, long Refused, TimeSpan Took, TimeSpan[] Latencies)
{
    public double PerSecond => Acknowledged / Took.TotalSeconds;

    public double Milliseconds(double quantile) =>
        Latencies[Math.Min(Latencies.Length - 1, (int)(Latencies.Length * quantile))].TotalMilliseconds;
}

/// <summary>
/// Senders that post changes of status as fast as they are acknowledged, over raw sockets, so that the
/// sender costs little of the machine. Every event is a new one: each service flips at each round.
/// </summary>
internal sealed class Load(int port, int senders, int alerts, int servicesPerSender)
{
    /// <summary>After so many requests a connection is closed and another opened.</summary>
    public long RequestsPerConnection { get; init; } = long.MaxValue;

    /// <summary>Header fields to add, each with its CR LF.</summary>
    public string Fields { get; init; } = "";

    /// <summary>Speak TLS, whatever the certificate is.</summary>
    public bool IsTls { get; init; }

    /// <summary>Send the same payload over and over, as Alertmanager repeats alerts.</summary>
    public bool Repeats { get; init; }

    /// <summary>Send the same episodes in each round.</summary>
    public bool StandsStill { get; init; }

    /// <summary>Build all payloads before the clock starts, so that it sees the receiver alone.</summary>
    public bool IsBuiltAhead { get; init; }

    /// <summary>What the names of the services begin with: another one makes others of them.</summary>
    public string Prefix { get; init; } = "s";

    /// <summary>The first round: a later one brings later episodes of the same alerts.</summary>
    public long FirstRound { get; init; }

    private static readonly DateTime Epoch = new(2026, 11, 1, 0, 0, 0, DateTimeKind.Utc);

    /// <summary>Posts for so long, or until each sender has sent so many requests.</summary>
    public async Task<LoadResult> RunAsync(TimeSpan duration, long requestsEach = long.MaxValue)
    {
        var built = !IsBuiltAhead ? null : Enumerable.Range(0, senders).AsParallel().AsOrdered()
            .Select(s => Enumerable.Range(0, (int)requestsEach).Select(i => Request(s, i)).ToArray()).ToArray();
        var clock = Stopwatch.StartNew();
        var runs = Enumerable.Range(0, senders)
            .Select(s => Task.Factory.StartNew(() => Send(s, built?[s], clock, duration, requestsEach),
                CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default)).ToList();
        var results = await Task.WhenAll(runs);
        var latencies = results.SelectMany(r => r.Latencies).ToArray();
        Array.Sort(latencies);
        return new LoadResult(results.Sum(r => r.Acknowledged), results.Sum(r => r.Refused), clock.Elapsed, latencies);
    }

    private (long Acknowledged, long Refused, List<TimeSpan> Latencies) Send(
        int sender, byte[][]? built, Stopwatch clock, TimeSpan duration, long most)
    {
        var connection = Connect();
        var (acknowledged, refused, latencies) = (0L, 0L, new List<TimeSpan>());
        var answer = new byte[64 * 1024];
        var left = RequestsPerConnection;
        byte[] bytes = [];
        for (long request = 0; request < most && clock.Elapsed < duration; request++)
        {
            if (left-- == 0)
            {
                connection.Dispose();
                (connection, left) = (Connect(), RequestsPerConnection - 1);
            }
            if (request == 0 || !Repeats)
                bytes = built?[request] ?? Request(sender, request);
            var started = clock.Elapsed;
            connection.Write(bytes);
            var code = ReadCode(connection, answer);
            latencies.Add(clock.Elapsed - started);
            acknowledged += code == 204 ? alerts : 0;
            refused += code == 204 ? 0 : 1;
            left = code < 400 ? left : 0;
        }
        connection.Dispose();
        return (acknowledged, refused, latencies);
    }

    private Stream Connect()
    {
        var socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        socket.Connect(new IPEndPoint(IPAddress.Loopback, port));
        var plain = new NetworkStream(socket, ownsSocket: true);
        if (!IsTls)
            return plain;
        var tls = new SslStream(plain);
#pragma warning disable CA5359 // What is measured is SeS, not the certificate.
        tls.AuthenticateAsClient(new SslClientAuthenticationOptions
        {
            TargetHost = "localhost",
            RemoteCertificateValidationCallback = (_, _, _, _) => true,
        });
#pragma warning restore CA5359
        return tls;
    }

    private byte[] Request(int sender, long request)
    {
        var body = new StringBuilder("{\"version\":\"4\",\"alerts\":[");
        for (var i = 0; i < alerts; i++)
        {
            var number = (request * alerts) + i;
            var (service, round) = (number % servicesPerSender, FirstRound + (StandsStill ? 0 : number / servicesPerSender));
            var time = Epoch.AddMilliseconds(round * 10).ToString("yyyy-MM-dd'T'HH:mm:ss.fff'Z'", CultureInfo.InvariantCulture);
            body.Append(i == 0 ? "" : ",").Append(CultureInfo.InvariantCulture, $$"""
                {"status":"firing","labels":{"alertname":"Node_{{(round % 2 == 0 ? "Up" : "Down")}}","platform":"p01-dev",
                """).Append(CultureInfo.InvariantCulture, $$"""
                "service":"{{Prefix}}{{sender}}","facet":"node","severity":"critical","status":"{{(round % 2 == 0 ? "up" : "down")}}",
                """).Append(CultureInfo.InvariantCulture, $$"""
                "description":"The application is not responding"},"annotations":{"location":"10.0.{{service}}.1:2379"},
                """).Append(CultureInfo.InvariantCulture, $$"""
                "startsAt":"{{time}}","endsAt":"0001-01-01T00:00:00Z","generatorURL":"http://prometheus:9090/graph",
                """).Append(CultureInfo.InvariantCulture, $$"""
                "fingerprint":"{{service:x16}}"}
                """);
        }
        body.Append("]}");
        return Encoding.UTF8.GetBytes($"POST /alerts/INS HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            + $"{Fields}Content-Type: application/json\r\nContent-Length: {body.Length}\r\n\r\n{body}");
    }

    private static int ReadCode(Stream connection, byte[] answer)
    {
        var held = 0;
        while (true)
        {
            var read = connection.Read(answer.AsSpan(held));
            if (read == 0)
                throw new IOException("the connection was closed before the answer");
            held += read;
            if (answer.AsSpan(0, held).IndexOf("\r\n\r\n"u8) >= 0)
                return int.Parse(Encoding.ASCII.GetString(answer, 9, 3), CultureInfo.InvariantCulture);
        }
    }
}
