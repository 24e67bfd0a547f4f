using System.Diagnostics;
using System.Globalization;
using System.IO.Compression;
using System.Net;
using System.Net.Sockets;
using System.Text;
using System.Text.Unicode;
using Xunit;

namespace Ses.Tests.Support;

/// <summary>What became of hostile traffic.</summary>
internal sealed class HostileTally
{
    /// <summary>Enough to see a pattern, few enough to read.</summary>
    private const int MaxFaults = 20;

    private readonly Lock _gate = new();
    private readonly List<string> _faults = [];
    private readonly long[] _codes = new long[600];
    private readonly List<SeenChange> _acknowledged = [];
    private long _connections, _wellFormed, _rightAnswers, _unreached;

    public long Connections => Interlocked.Read(ref _connections);

    /// <summary>Connections with nothing but well-formed requests in them.</summary>
    public long WellFormed => Interlocked.Read(ref _wellFormed);

    /// <summary>Requests of these connections that were answered as they must be.</summary>
    public long RightAnswers => Interlocked.Read(ref _rightAnswers);

    /// <summary>Connections that the system did not make: out of ports, or refused.</summary>
    public long Unreached => Interlocked.Read(ref _unreached);

    public TimeSpan Took { get; set; }

    /// <summary>Wrong answers, and answers that never came; the first of them.</summary>
    public IReadOnlyList<string> Faults
    {
        get
        {
            lock (_gate)
                return [.. _faults];
        }
    }

    /// <summary>What must be in the log: its service and time alone are filled in.</summary>
    public IReadOnlyList<SeenChange> Acknowledged
    {
        get
        {
            lock (_gate)
                return [.. _acknowledged];
        }
    }

    public void Connected() => Interlocked.Increment(ref _connections);

    public void NotConnected() => Interlocked.Increment(ref _unreached);

    public void Answered(int code) => Interlocked.Increment(ref _codes[code]);

    public void Served(int requests)
    {
        Interlocked.Increment(ref _wellFormed);
        Interlocked.Add(ref _rightAnswers, requests);
    }

    public void Fault(string what)
    {
        lock (_gate)
        {
            if (_faults.Count < MaxFaults)
                _faults.Add(what);
        }
    }

    public void Acknowledge(IEnumerable<SeenChange> events)
    {
        lock (_gate)
            _acknowledged.AddRange(events);
    }

    /// <summary>Asserts that all answers were right, and that the log has what it must.</summary>
    public void Check(string dataDir)
    {
        Assert.True(Faults.Count == 0, ToString());
        var events = StoreFiles.Starts(dataDir);
        var lost = Acknowledged.Where(e => !events.Contains((e.Service, e.Time))).ToList();
        Assert.True(lost.Count == 0,
            $"{lost.Count} acknowledged events are lost, {lost.FirstOrDefault()}: {this}");
        Assert.DoesNotContain(events, e => e.Service.Service == HostileTraffic.Smuggled);
    }

    public override string ToString() => string.Create(CultureInfo.InvariantCulture,
        $"{Connections} connections in {Took.TotalSeconds:F1} s ({Connections / Took.TotalSeconds:F0}/s), ")
        + $"{WellFormed} well-formed with {RightAnswers} right answers, {Unreached} not made; answers: "
        + string.Join(", ", _codes.Select((n, code) => (n, code)).Where(c => c.n > 0)
            .Select(c => $"{c.code}: {c.n}"))
        + string.Concat(Faults.Select(f => "\n  " + f));
}

/// <summary>
/// Connections as a hostile network makes them: real requests that are mutated, cut, smuggled, garbage, TLS,
/// silence, resets; and among them, a fifth, purely well-formed ones in odd segments and pipelines, whose
/// every answer is checked. What a connection sends follows from the seed and its number alone.
/// </summary>
/// <param name="epoch">Alerts begin then; a day or so before SeS's clock.</param>
internal sealed class HostileTraffic(int port, int seed, DateTime epoch)
{
    /// <summary>The service of alerts that must never be taken.</summary>
    public const string Smuggled = "smuggled";

    /// <summary>Longer than any limit of SeS by which it ends a connection whose client has closed.</summary>
    private const int PatienceMilliseconds = 30_000;

    private static readonly byte[][] Smugglings = [.. new[]
    {
        "Content-Length: 5\r\nContent-Length: 5", "Content-Length: 0\r\nContent-Length: 5",
        "Content-Length: 5, 5", "Content-Length: +5", "Content-Length: -0", "Content-Length: 0x5",
        "Content-Length: 5 5", "Content-Length:", "Content-Length : 5", "Content-Length\t: 5",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: identity", "Transfer-Encoding: xchunked", "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding : chunked", "Transfer-Encoding\t: chunked", "Transfer-Encoding: chunked\r\n chunked",
        "Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked\r\n\r\n2\r\n{}0\r\n", "Transfer-Encoding: chunked\r\n\r\n3\r\n{}\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2;\n{}\r\n0\r\n", "Transfer-Encoding: chunked\r\n\r\n2;a\n\r\n{}\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\n",
        "Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: a\r\n b\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n-0\r\n", "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffe\r\n{}\r\n0\r\n",
        "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
        "X: a\r\n Content-Length: 5", "X: a\r\n\tTransfer-Encoding: chunked", "X: a\nContent-Length: 5",
        "X: a\rContent-Length: 5", "X: a\0\r\nContent-Length: 0", "X\r\nContent-Length: 0",
        ": a\r\nContent-Length: 0", "Host: b\r\nContent-Length: 0", "Content-Length: 0\n\r\nX: b",
        "Content-Length: 0\r\n\nX: b", "Content-Length: 0\r\nX Y: b",
    }.Select(Encoding.Latin1.GetBytes)];

    /// <summary>What is odd and yet well-formed, and says nothing of the body.</summary>
    private static readonly byte[][] Oddities = [.. new[]
    {
        "Accept: ,,\"", "accept:*/*;q=0.1,\"a,b", "ACCEPT:\t\x80\xff \t",
        "X-Empty:", "x:y", "X-Obs: \xe4\xf6\xfc",
        "Connection: keep-alive, Upgrade", "Upgrade: h2c", "!#$%&'*+-.^_`|~: token", "Content-Type: ::::",
        "Cookie: a=b; c=\"d", "If-Modified-Since: never", "Range: bytes=5-1",
        "X-Forwarded-For: 1.2.3.4", "Ses-Secret: guess", "Ses-Client: 1.2.3.4", "Keep-Alive: timeout=0",
        "X-HTTP-Method-Override: DELETE", "Referer: http://x/\x7e", "TE: trailers", "Trailer: X",
    }.Select(Encoding.Latin1.GetBytes)];

    /// <summary>The beginning of a TLS 1.2 ClientHello.</summary>
    private static readonly byte[] Hello =
    [
        0x16, 3, 1, 0, 0x7b, 1, 0, 0, 0x77, 3, 3, .. Enumerable.Range(0, 32).Select(i => (byte)(i * 7)), 0,
        0, 4, 0x13, 1, 0x13, 2, 1, 0, 0, 0x4a, .. Enumerable.Repeat((byte)0, 74),
    ];

    private readonly int _port = port, _seed = seed;
    // SeS keeps times to the millisecond.
    private readonly DateTime _epoch =
        new(epoch.Ticks - (epoch.Ticks % TimeSpan.TicksPerSecond), DateTimeKind.Utc);
    private readonly HostileTally _tally = new();
    private int _next;

    /// <summary>What has happened so far.</summary>
    public HostileTally Tally => _tally;

    /// <summary>Makes so many connections, unless the time is up before.</summary>
    /// <param name="workers">Threads; each makes one connection at a time.</param>
    /// <param name="held">How many silent connections each keeps open.</param>
    public async Task<HostileTally> RunAsync(int connections, int workers, int held, TimeSpan atMost)
    {
        // A partition of which nothing was heard yet has no history; what is quarantined is no service.
        using (var client = new HttpClient())
        using (var body = new StringContent("""{"version":"4","alerts":[5]}"""))
        using (var answer = await client.PostAsync(new Uri($"http://127.0.0.1:{_port}/alerts/INS"), body))
            answer.EnsureSuccessStatusCode();
        var clock = Stopwatch.StartNew();
        var runs = Enumerable.Range(0, workers).Select(w => Task.Factory.StartNew(() =>
        {
            using var worker = new Worker(this, w, held);
            int number;
            while ((number = Interlocked.Increment(ref _next)) <= connections && clock.Elapsed < atMost)
                worker.Attack(number);
            _tally.Acknowledge(worker.Acknowledged);
        }, CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default)).ToList();
        await Task.WhenAll(runs);
        _tally.Took = clock.Elapsed;
        return _tally;
    }

    /// <summary>Random numbers from a seed: splitmix64, since Random takes too long to be seeded.</summary>
    private struct Dice(ulong seed)
    {
        private ulong _state = seed;

        public int Below(int bound)
        {
            _state += 0x9e3779b97f4a7c15;
            var z = (_state ^ (_state >> 30)) * 0xbf58476d1ce4e5b9;
            z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
            return (int)((z ^ (z >> 31)) % (ulong)bound);
        }

        public bool OneIn(int count) => Below(count) == 0;
    }

    /// <summary>How a connection is left.</summary>
    private enum Ending { HalfClose, Close, Reset, Hold }

    /// <summary>What a well-formed request must be answered.</summary>
    private readonly record struct Expected(int Code, bool IsHead, long Alert, bool IsOld);

    /// <summary>One thread's connections, one after the other, in memory that it keeps.</summary>
    private sealed class Worker(HostileTraffic traffic, int number, int mostHeld) : IDisposable
    {
        /// <summary>Few, so that SeS's memory does not grow with what is sent.</summary>
        private const int Services = 8;

        private readonly IPEndPoint _place = new(IPAddress.Loopback, traffic._port);
        private readonly byte[] _request = new byte[256 * 1024], _body = new byte[64 * 1024];
        private readonly byte[] _answer = new byte[256 * 1024];
        private readonly MemoryStream _packed = new();
        private readonly List<Expected> _expected = [];
        private readonly Queue<Socket> _held = [];
        private readonly List<long> _acknowledged = [];
        private Dice _dice;
        private int _length, _answerStart, _answerEnd;
        private long _alerts;
        private string _kind = "";

        public IEnumerable<SeenChange> Acknowledged => _acknowledged.Select(alert => new SeenChange(
            new SeenService("INS", "p1", Name(alert), "node", ""), "up", Time(alert), "", default));

        public void Attack(int connection)
        {
            _dice = new Dice(((ulong)(uint)traffic._seed << 32) | (uint)connection);
            (_length, _answerStart, _answerEnd) = (0, 0, 0);
            if (Connect() is not { } socket)
                return;
            var isHeld = false;
            try
            {
                isHeld = Converse(socket);
            }
            catch (SocketException e)
                when (_kind != "well-formed" && e.SocketErrorCode != SocketError.TimedOut)
            {
                // SeS ended what it had refused.
            }
            catch (Exception e) when (e is SocketException or IOException)
            {
                Fault(connection, e.Message);
            }
            if (isHeld)
                Hold(socket);
            else
                socket.Dispose();
        }

        public void Dispose()
        {
            while (_held.TryDequeue(out var socket))
                socket.Dispose();
        }

        private void Fault(int connection, string what) => traffic._tally.Fault(
            $"seed {traffic._seed}, connection {connection}, {_kind}: {what}; sent: "
            + Encoding.Latin1.GetString(_request, 0, Math.Min(_length, 2000)).ReplaceLineEndings("~"));

        private Socket? Connect()
        {
            var socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp)
            {
                NoDelay = true,
                ReceiveTimeout = PatienceMilliseconds,
                SendTimeout = PatienceMilliseconds,
            };
            try
            {
                socket.Connect(_place);
                traffic._tally.Connected();
                return socket;
            }
            catch (SocketException)
            {
                traffic._tally.NotConnected();
                socket.Dispose();
                return null;
            }
        }

        /// <summary>Keeps it open, instead of the one that is open the longest.</summary>
        private void Hold(Socket socket)
        {
            _held.Enqueue(socket);
            if (_held.Count > mostHeld)
                _held.Dequeue().Dispose();
        }

        /// <returns>Whether the connection is to be held.</returns>
        private bool Converse(Socket socket)
        {
            switch (_dice.Below(100))
            {
                case < 20:
                    WellFormed(socket);
                    return false;
                case < 55:
                    Real("mutated");
                    Mutate();
                    return Send(socket, (Ending)_dice.Below(4));
                case < 65:
                    Real("cut");
                    _length = _dice.Below(_length);
                    return Send(socket, (Ending)_dice.Below(4));
                case < 80:
                    Smuggle();
                    SendAll(socket);
                    CheckRefused(socket);
                    return false;
                case < 86:
                    Garbage();
                    return Send(socket, (Ending)_dice.Below(4));
                case < 90:
                    _kind = "TLS hello";
                    Add(Hello);
                    _length -= _dice.OneIn(2) ? _dice.Below(_length) : 0;
                    return Send(socket, (Ending)_dice.Below(3));
                case < 92:
                    Oversized();
                    return Send(socket, (Ending)_dice.Below(3));
                default:
                    _kind = "nothing";
                    return Send(socket, (Ending)_dice.Below(4));
            }
        }

        // ---- What is sent ----

        private void Add(ReadOnlySpan<byte> bytes)
        {
            bytes.CopyTo(_request.AsSpan(_length));
            _length += bytes.Length;
        }

        private static string Name(int worker, long alert) => $"well-{worker}-{alert % Services}";

        private string Name(long alert) => Name(number, alert);

        private DateTime Time(long alert) => traffic._epoch.AddMilliseconds(10 * alert);

        /// <summary>A webhook's body as Alertmanager makes it, in <see cref="_body"/>.</summary>
        private int Body(string service, DateTime time)
        {
            Utf8.TryWrite(_body, CultureInfo.InvariantCulture, $$"""
                {"receiver":"ses","status":"firing","alerts":[{"status":"firing","labels":{
                "alertname":"Node_Up",
                "facet":"node","job":"etcd","platform":"p1","service":"{{service}}","severity":"info",
                "status":"up"},"annotations":{"description":"It answers"},
                "startsAt":"{{time:yyyy-MM-dd'T'HH:mm:ss.fff'Z'}}",
                "endsAt":"0001-01-01T00:00:00Z","generatorURL":"http://prometheus:9090/graph?g0.expr=up",
                "fingerprint":"ca9a3c1e7d2b4f60"}],"groupLabels":{"alertname":"Node_Up"},"commonLabels":{},
                "commonAnnotations":{},"externalURL":"http://alertmanager:9093","version":"4",
                "groupKey":"{}:{alertname=\"Node_Up\"}","truncatedAlerts":0}
                """, out var length);
            return length;
        }

        private void Post(ReadOnlySpan<byte> body, ReadOnlySpan<byte> fields, ReadOnlySpan<byte> target,
            bool isPlain = false, bool isOld = false)
        {
            if (!isPlain && _dice.OneIn(10))
                Add("\r\n"u8);
            Add("POST "u8);
            Add(!isPlain && _dice.OneIn(10) ? "http://127.0.0.1:8888"u8 : []);
            Add(target);
            Add(isOld ? " HTTP/1.0\r\n"u8 : " HTTP/1.1\r\nHost: 127.0.0.1:8888\r\n"u8);
            Add("User-Agent: Alertmanager/0.28.1\r\n"u8);
            Add(fields);
            Add("Content-Type: application/json\r\n"u8);
            if (!isPlain && _dice.OneIn(4))
            {
                body = Pack(body);
                Add("Content-Encoding: gzip\r\n"u8);
            }
            if (!isPlain && !isOld && _dice.OneIn(3))
            {
                AddChunks(body);
                return;
            }
            Add("Content-Length: "u8);
            Utf8.TryWrite(_request.AsSpan(_length),
                $"{(_dice.OneIn(20) ? "000" : "")}{body.Length}\r\n\r\n", out var written);
            _length += written;
            Add(body);
        }

        private ReadOnlySpan<byte> Pack(ReadOnlySpan<byte> body)
        {
            _packed.SetLength(0);
            using (var gzip = new GZipStream(_packed, CompressionLevel.Fastest, leaveOpen: true))
                gzip.Write(body);
            return _packed.GetBuffer().AsSpan(0, (int)_packed.Length);
        }

        /// <summary>In chunks of any size, with extensions and trailers now and then.</summary>
        private void AddChunks(ReadOnlySpan<byte> body)
        {
            Add("Transfer-Encoding: chunked\r\n\r\n"u8);
            var most = _dice.OneIn(10) ? 1 : 1 + _dice.Below(body.Length);
            while (body.Length > 0)
            {
                var part = body[..Math.Min(body.Length, 1 + _dice.Below(most))];
                body = body[part.Length..];
                Utf8.TryWrite(_request.AsSpan(_length),
                    $"{(_dice.OneIn(20) ? "00" : "")}{part.Length:x}{(_dice.OneIn(20) ? ";a=\"b\"" : "")}\r\n", out var written);
                _length += written;
                Add(part);
                Add("\r\n"u8);
            }
            Add(_dice.OneIn(10) ? "0\r\nX-Sum: 1\r\nContent-Length: 7\r\n\r\n"u8 : "0\r\n\r\n"u8);
        }

        private void Get(
            ReadOnlySpan<byte> method, ReadOnlySpan<byte> target, ReadOnlySpan<byte> fields, bool isOld = false)
        {
            Add(method);
            Add(target);
            Add(isOld ? " HTTP/1.0\r\n"u8 : " HTTP/1.1\r\nHost: 127.0.0.1\r\n"u8);
            Add(fields);
            Add("\r\n"u8);
        }

        /// <summary>Requests that are to be spoilt; their alerts may or may not be taken.</summary>
        private void Real(string kind)
        {
            _kind = kind;
            for (var requests = _dice.OneIn(5) ? 3 : 1; requests > 0; requests--)
            {
                if (_dice.OneIn(4))
                    Get("GET "u8, "/ready"u8, "Accept: */*\r\nUser-Agent: kube-probe/1.31\r\n"u8);
                else
                    Post(_body.AsSpan(0, Body("mutant", traffic._epoch)),
                        "Accept: */*\r\n"u8, "/alerts/INS"u8);
            }
        }

        /// <summary>Spoils the request at one to four places, mostly in its head.</summary>
        private void Mutate()
        {
            for (var times = 1 + _dice.Below(4); times > 0; times--)
            {
                var at = _dice.Below(_dice.OneIn(4) ? _length : Math.Min(_length, 180));
                switch (_dice.Below(6))
                {
                    case 0:
                        _request[at] ^= (byte)(1 << _dice.Below(8));
                        break;
                    case 1:
                        _request[at] = "\0\r\n\t :%/,;\"{}0a\x7f\x80\xff"u8[_dice.Below(17)];
                        break;
                    case 2:
                        Insert(at, 1);
                        _request[at] = "\0\r\n\t :%/,;\"{}0a\x7f\x80\xff"u8[_dice.Below(17)];
                        break;
                    case 3:
                        Delete(at, 1 + _dice.Below(8));
                        break;
                    case 4:
                        // A piece stands twice.
                        var size = Math.Min(1 + _dice.Below(64), _length - at);
                        Insert(at, size);
                        break;
                    case 5:
                        Insert(at, 1);
                        _request[at] = (byte)_dice.Below(256);
                        break;
                }
            }
        }

        /// <summary>Makes room; what was there stands in it still.</summary>
        private void Insert(int at, int size)
        {
            _request.AsSpan(at, _length - at).CopyTo(_request.AsSpan(at + size));
            _length += size;
        }

        private void Delete(int at, int size)
        {
            size = Math.Min(size, _length - at - 1);
            _request.AsSpan(at + size, _length - at - size).CopyTo(_request.AsSpan(at));
            _length -= size;
        }

        /// <summary>A head that two readers may understand differently, then a whole webhook.</summary>
        private void Smuggle()
        {
            _kind = "smuggled";
            Add("POST /alerts/INS HTTP/1.1\r\nHost: a\r\n"u8);
            Add(Smugglings[_dice.Below(Smugglings.Length)]);
            Add("\r\n\r\n"u8);
            if (_dice.OneIn(2))
                Add("0\r\n\r\n"u8);
            Post(_body.AsSpan(0, Body(Smuggled, traffic._epoch)), [], "/alerts/INS"u8, isPlain: true);
        }

        private void Garbage()
        {
            _kind = "garbage";
            _length = 1 + _dice.Below(_dice.OneIn(10) ? 30_000 : 400);
            for (var i = 0; i < _length; i++)
                _request[i] = (byte)_dice.Below(256);
        }

        private void Oversized()
        {
            _kind = "oversized";
            Add("POST /alerts/INS HTTP/1.1\r\nHost: a\r\n"u8);
            switch (_dice.Below(4))
            {
                case 0:
                    Add("Content-Length: 9000000000\r\n\r\n{}"u8);
                    break;
                case 1:
                    for (var fields = 0; fields < 110; fields++)
                        Add("X: y\r\n"u8);
                    break;
                case 2:
                    Add("X: "u8);
                    _request.AsSpan(_length, 20_000).Fill((byte)'x');
                    _length += 20_000;
                    break;
                case 3:
                    Add("Content-Length: 16000000\r\n\r\n{\"version\":"u8);
                    break;
            }
        }

        // ---- How it is sent ----

        private void SendAll(Socket socket)
        {
            var step = _dice.Below(60) switch { 0 => 1, < 10 => 40, < 20 => 300, _ => int.MaxValue };
            for (var sent = 0; sent < _length;)
            {
                var size = Math.Min(_length - sent, step is 1 or int.MaxValue ? step : 1 + _dice.Below(step));
                sent += socket.Send(_request.AsSpan(sent, size));
            }
        }

        private bool Send(Socket socket, Ending ending)
        {
            if (_length > 0)
                SendAll(socket);
            switch (ending)
            {
                case Ending.HalfClose:
                    socket.Shutdown(SocketShutdown.Send);
                    while (ReceiveAnswer(socket, isHead: false) != 0)
                    {
                        // Whatever it says, it must be an answer, and come to an end.
                    }
                    return false;
                case Ending.Reset:
                    socket.LingerState = new LingerOption(true, 0);
                    return false;
                default:
                    return ending == Ending.Hold;
            }
        }

        // ---- What must be answered ----

        private void CheckRefused(Socket socket)
        {
            socket.Shutdown(SocketShutdown.Send);
            var code = ReceiveAnswer(socket, isHead: false);
            if (code is (< 400 or >= 500) and not 501)
                throw new IOException($"answered {code}");
            if ((code = ReceiveAnswer(socket, isHead: false)) != 0)
                throw new IOException($"a second request was seen, and answered {code}");
        }

        private void WellFormed(Socket socket)
        {
            _kind = "well-formed";
            _expected.Clear();
            var requests = 1 + (_dice.OneIn(3) ? _dice.Below(6) : 0);
            for (var request = 0; request < requests; request++)
                AddWellFormed(request == requests - 1 && _dice.OneIn(4));
            SendAll(socket);
            foreach (var expected in _expected)
            {
                var code = ReceiveAnswer(socket, expected.IsHead, expected.IsOld);
                if (code != expected.Code)
                    throw new IOException($"answered {code} instead of {expected.Code}");
                if (expected.Alert >= 0)
                    _acknowledged.Add(expected.Alert);
            }
            traffic._tally.Served(_expected.Count);
            socket.Shutdown(SocketShutdown.Send);
            if (ReceiveAnswer(socket, isHead: false) is > 0 and var more)
                throw new IOException($"answered {more} to nothing");
            if (_dice.OneIn(2))
                socket.LingerState = new LingerOption(true, 0);
        }

        private void AddWellFormed(bool closes)
        {
            var alert = -1L;
            Span<byte> fields = stackalloc byte[200];
            var length = 0;
            for (var odd = _dice.Below(3); odd > 0; odd--)
            {
                var oddity = Oddities[_dice.Below(Oddities.Length)];
                oddity.CopyTo(fields[length..]);
                "\r\n"u8.CopyTo(fields[(length + oddity.Length)..]);
                length += oddity.Length + 2;
            }
            if (closes)
            {
                "Connection: x , CLOSE\r\n"u8.CopyTo(fields[length..]);
                length += 23;
            }
            fields = fields[..length];
            var code = 200;
            var isHead = false;
            var isOld = closes && _dice.OneIn(2);
            switch (_dice.Below(_dice.OneIn(50) ? 11 : 8))
            {
                case 0:
                    Get("GET "u8, "/live?x=%00/../"u8, fields, isOld);
                    break;
                case 1:
                    Get("GET "u8, "/ready"u8, fields, isOld);
                    break;
                case 2:
                    (code, isHead) = _dice.OneIn(2) ? (200, true) : (404, true);
                    Get("HEAD "u8, code == 200 ? "/live"u8 : "/nothing"u8, fields, isOld);
                    break;
                case 3:
                    code = 404;
                    Get("GET "u8, "/a%2Fb/%0d%0aX:y/%c3%bc"u8, fields, isOld);
                    break;
                case 4:
                    code = 400;
                    Post("{\"version\":\"4\",\"alerts\":\0}"u8, fields, "/alerts/INS"u8, isOld: isOld);
                    break;
                case 8:
                    Get("GET "u8, "/metrics"u8, fields, isOld);
                    break;
                case 9:
                    Get("GET "u8, "/alerts/INS/history?from=-1h&limit=5"u8, fields, isOld);
                    break;
                case 10:
                    isHead = _dice.OneIn(2);
                    Get(isHead ? "HEAD "u8 : "GET "u8, "/?range=7d&search=n1"u8, fields, isOld);
                    break;
                default:
                    (code, alert) = (204, _alerts++);
                    Post(_body.AsSpan(0, Body(Name(alert), Time(alert))), fields,
                        _dice.Below(3) switch { 0 => "/alerts/INS/"u8, 1 => "/alerts/INS"u8, _ => "/alerts/INS?a=b"u8 }, isOld: isOld);
                    break;
            }
            _expected.Add(new Expected(code, isHead, alert, isOld));
        }

        /// <summary>Takes one answer from what comes.</summary>
        /// <returns>Its status code; 0 when the connection ended before it began.</returns>
        /// <exception cref="IOException">It is no answer, or cut off.</exception>
        private int ReceiveAnswer(Socket socket, bool isHead, bool isOld = false)
        {
            int end;
            while ((end = Held.IndexOf("\r\n\r\n"u8)) < 0)
            {
                if (Receive(socket))
                    continue;
                return Held.Length == 0 ? 0 : throw new IOException("an answer's head was cut off");
            }
            var head = Held[..(end + 2)];
            if (!head.StartsWith("HTTP/1.1 "u8)
                || !int.TryParse(head[9..12], CultureInfo.InvariantCulture, out var code)
                || code is < 200 or > 599)
                throw new IOException("no answer: " + Encoding.Latin1.GetString(head));
            var isChunked = code == 200 && head.IndexOf("\r\nTransfer-Encoding: chunked\r\n"u8) >= 0;
            if (isChunked && isOld)
                throw new IOException("HTTP/1.0 was answered in chunks");
            var isEndless = isOld && code == 200 && head.IndexOf("\r\nContent-Length: "u8) < 0;
            var size = isChunked || isEndless ? 0 : Length(head, code);
            _answerStart += end + 4;
            if (isChunked && !isHead)
                SkipChunks(socket);
            else if (isEndless)
                SkipAll(socket);
            else
                Skip(socket, isHead ? 0 : size);
            traffic._tally.Answered(code);
            return code;
        }

        private void Skip(Socket socket, int size)
        {
            while (size > 0)
            {
                if (Held.Length == 0 && !Receive(socket))
                    throw new IOException("an answer's body was cut off");
                var part = Math.Min(size, Held.Length);
                _answerStart += part;
                size -= part;
            }
        }

        private void SkipAll(Socket socket)
        {
            do
                _answerStart = _answerEnd;
            while (Receive(socket));
        }

        private void SkipChunks(Socket socket)
        {
            for (var size = 1; size > 0;)
            {
                int end;
                while ((end = Held.IndexOf("\r\n"u8)) < 0)
                {
                    if (!Receive(socket))
                        throw new IOException("an answer's chunk was cut off");
                }
                size = int.Parse(Held[..end], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);
                _answerStart += end + 2;
                Skip(socket, size + 2);
            }
        }

        private static int Length(ReadOnlySpan<byte> head, int code)
        {
            var at = head.IndexOf("\r\nContent-Length: "u8);
            if ((at < 0) != (code == 204))
                throw new IOException("the length is missing, or there on 204: "
                    + Encoding.Latin1.GetString(head));
            if (at < 0)
                return 0;
            var value = head[(at + 18)..];
            return int.Parse(value[..value.IndexOf((byte)'\r')], CultureInfo.InvariantCulture);
        }

        private ReadOnlySpan<byte> Held => _answer.AsSpan(_answerStart, _answerEnd - _answerStart);

        private bool Receive(Socket socket)
        {
            if (_answerEnd == _answer.Length)
            {
                Held.CopyTo(_answer);
                (_answerStart, _answerEnd) = (0, _answerEnd - _answerStart);
            }
            var count = socket.Receive(_answer.AsSpan(_answerEnd));
            _answerEnd += count;
            return count > 0;
        }
    }
}
