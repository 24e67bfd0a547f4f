using System.Net;
using System.Net.Sockets;

namespace Ses.Tests.Support;

/// <summary>What becomes of the connections of a relay.</summary>
internal enum Way
{
    Open,

    /// <summary>Nobody listens, and what was open is reset.</summary>
    Refused,

    /// <summary>Connections are taken, and nothing moves until this ends.</summary>
    Hanging,

    /// <summary>Requests arrive, and each answer ends after some bytes.</summary>
    CutInAnswers,
}

/// <summary>A way by TCP to a port of 127.0.0.1, for what networks do.</summary>
internal sealed class Relay : IDisposable
{
    private const int BytesOfAnswer = 20;

    private readonly int _target;
    private readonly Lock _gate = new();
    private readonly HashSet<Socket> _open = [];
    private TaskCompletionSource _moving = new();
    private TcpListener _listener;
    private Way _way;
    private long _bytes;
    private bool _isGone;

    public Relay(int target)
    {
        _target = target;
        _moving.SetResult();
        _listener = Listen();
    }

    public int Port { get; } = FreePort.Next();

    public string Url => $"http://127.0.0.1:{Port}/";

    /// <summary>That went to the target so far.</summary>
    public long Bytes => Interlocked.Read(ref _bytes);

    public Way Way
    {
        get => _way;
        set
        {
            lock (_gate)
            {
                if (value == _way)
                    return;
                var before = _way;
                _way = value;
                if (value == Way.Hanging)
                    _moving = new(TaskCreationOptions.RunContinuationsAsynchronously);
                else
                    _moving.TrySetResult();
                if (value == Way.Refused)
                {
                    _listener.Stop();
                    foreach (var socket in _open)
                        Reset(socket);
                    _open.Clear();
                }
                if (before == Way.Refused)
                    _listener = Listen();
            }
        }
    }

    public void Dispose()
    {
        Way = Way.Refused;
        lock (_gate)
            _isGone = true;
    }

    private TcpListener Listen()
    {
        var listener = new TcpListener(IPAddress.Loopback, Port);
        listener.Start();
        _ = AcceptAsync(listener);
        return listener;
    }

    private async Task AcceptAsync(TcpListener listener)
    {
        try
        {
            while (true)
                _ = ConnectAsync(await listener.AcceptSocketAsync());
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException or InvalidOperationException)
        {
            // It was stopped.
        }
    }

    private async Task ConnectAsync(Socket client)
    {
        var server = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        lock (_gate)
        {
            if (_way == Way.Refused || _isGone)
            {
                Reset(client);
                return;
            }
            _open.Add(client);
            _open.Add(server);
        }
        try
        {
            await server.ConnectAsync(IPAddress.Loopback, _target);
            await Task.WhenAny(PumpAsync(client, server, isAnswer: false), PumpAsync(server, client, isAnswer: true));
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException)
        {
            // The target is down.
        }
        lock (_gate)
        {
            _open.Remove(client);
            _open.Remove(server);
        }
        Reset(client);
        Reset(server);
    }

    /// <summary>Until one side ends: what is HTTP has no more to say then.</summary>
    private async Task PumpAsync(Socket from, Socket to, bool isAnswer)
    {
        var buffer = new byte[16 * 1024];
        try
        {
            while (await from.ReceiveAsync(buffer) is > 0 and var count)
            {
                await _moving.Task;
                var isCut = isAnswer && _way == Way.CutInAnswers;
                await to.SendAsync(buffer.AsMemory(0, isCut ? Math.Min(count, BytesOfAnswer) : count));
                if (isCut)
                    return;
                if (!isAnswer)
                    Interlocked.Add(ref _bytes, count);
            }
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException)
        {
            // One of them went away, or the way was cut.
        }
    }

    private static void Reset(Socket socket)
    {
        socket.LingerState = new LingerOption(true, 0);
        socket.Dispose();
    }
}
