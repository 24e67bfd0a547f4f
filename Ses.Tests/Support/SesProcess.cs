using System.Net;
using System.Net.Http.Headers;
using System.Net.Sockets;
using System.Text;

namespace Ses.Tests.Support;

/// <summary>Gives out TCP ports of 127.0.0.1 that nobody listens on.</summary>
/// <remarks>
/// From below the kernel's ephemeral range (32768 on), so that no outgoing connection takes the port of a
/// server that is down for a while, and no client that dials such a port ends up talking to itself.
/// </remarks>
internal static class FreePort
{
    private const int First = 20_000, Count = 12_000;

    // Test runs side by side begin at different places.
    private static int _next = Random.Shared.Next(Count);

    /// <summary>A free port, never the same twice in one test run.</summary>
    public static int Next()
    {
        for (var tried = 0; tried < Count; tried++)
        {
            var port = First + (Interlocked.Increment(ref _next) & int.MaxValue) % Count;
            using var listener = new TcpListener(IPAddress.Loopback, port);
            try
            {
                listener.Start();
                return port;
            }
            catch (SocketException)
            {
                // Taken; the next one.
            }
        }
        throw new InvalidOperationException($"no free port from {First} to {First + Count - 1}");
    }
}

/// <summary>The native SeS, run as a user runs it, on 127.0.0.1.</summary>
internal sealed class SesProcess : IAsyncDisposable
{
    private static readonly TimeSpan ReadyWithin = TimeSpan.FromSeconds(20);
    private static readonly TimeSpan Gone = TimeSpan.FromSeconds(20);
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30);

    private readonly string[] _arguments;
    private readonly bool _ownsDataDir;
    private readonly string? _clock;
    private readonly MemoryCgroup? _memory;
    private ChildProcess _child;

    private SesProcess(int port, string? dataDir, string onixUrl, string[] extra, string? clock = null, MemoryCgroup? memory = null)
    {
        Port = port;
        (_clock, _memory) = (clock, memory);
        _ownsDataDir = dataDir == null;
        DataDir = dataDir ?? Directory.CreateTempSubdirectory("ses-data-").FullName;
        _arguments =
        [
            "--port", $"{port}", "--address", "127.0.0.1",
            "--data-dir", DataDir, "--onix-url", onixUrl, .. extra,
        ];
        _child = Run(_arguments);
        var isSecure = extra.Contains("--tls-cert");
        Client = new HttpClient(isSecure ? Secure(extra) : new SocketsHttpHandler())
        {
            BaseAddress = new Uri($"{(isSecure ? "https" : "http")}://127.0.0.1:{port}/"),
            Timeout = TimeSpan.FromSeconds(30),
        };
    }

    /// <summary>
    /// Takes any certificate of the server; that is not what these requests are for. Where clients need one,
    /// it is <c>client.pem</c> with <c>client.key</c> beside the file of the CA.
    /// </summary>
    private static HttpClientHandler Secure(string[] extra)
    {
        var handler = new HttpClientHandler
        {
            ServerCertificateCustomValidationCallback =
                HttpClientHandler.DangerousAcceptAnyServerCertificateValidator,
        };
        if (Array.IndexOf(extra, "--tls-client-ca") is var at and >= 0)
        {
            var dir = Path.GetDirectoryName(extra[at + 1])!;
            handler.ClientCertificates.Add(new Identity(File.ReadAllText(Path.Combine(dir, "client.pem")),
                File.ReadAllText(Path.Combine(dir, "client.key"))).Load());
        }
        return handler;
    }

    /// <summary>The native program: <c>SES_BINARY</c>, else <c>out/ses</c> above the tests.</summary>
    /// <exception cref="FileNotFoundException">It was not built; the message says how to.</exception>
    public static string Binary => Environment.GetEnvironmentVariable("SES_BINARY") is { Length: > 0 } named
        ? Path.GetFullPath(named)
        : Above(AppContext.BaseDirectory)
            .Select(dir => Path.Combine(dir, "out", "ses")).FirstOrDefault(File.Exists)
            ?? throw new FileNotFoundException("no out/ses above the tests: run make, or set SES_BINARY");

    public int Port { get; }

    public string DataDir { get; }

    /// <summary>Asks this SeS; the base address is its root.</summary>
    public HttpClient Client { get; }

    /// <summary>The process that runs now; another one after each restart.</summary>
    public ChildProcess Child => _child;

    /// <summary>Starts SeS, without waiting for more than the start of the process.</summary>
    /// <param name="dataDir">Null: a temporary folder, which goes with this object.</param>
    public static SesProcess Launch(
        string onixUrl, string? dataDir = null, int? port = null, params string[] extra) =>
        new(port ?? FreePort.Next(), dataDir, onixUrl, extra);

    /// <summary>Starts SeS and waits until it takes alerts.</summary>
    /// <exception cref="InvalidOperationException">It ended instead; the message has its output.</exception>
    public static async Task<SesProcess> StartAsync(
        string onixUrl, string? dataDir = null, int? port = null, params string[] extra) =>
        await StartedAsync(Launch(onixUrl, dataDir, port, extra));

    /// <summary>
    /// Starts SeS without an Onix, with a wall clock of the test's. libfaketime gets between a program and its
    /// libc, so this is the binary that is linked to one.
    /// </summary>
    /// <param name="clock">A file with how far that clock is ahead, such as <c>+2d</c>; to be replaced as a whole.</param>
    public static SesProcess LaunchWithClock(string clock, string? dataDir, int port, params string[] extra) =>
        new(port, dataDir, "none", extra, clock);

    /// <summary>Like <see cref="LaunchWithClock"/>, and waits until it takes alerts.</summary>
    public static Task<SesProcess> StartWithClockAsync(string clock, params string[] extra) =>
        StartedAsync(LaunchWithClock(clock, null, FreePort.Next(), extra));

    /// <summary>Starts SeS without an Onix in a memory cgroup, if there is one, and waits until it takes alerts.</summary>
    public static Task<SesProcess> StartInAsync(MemoryCgroup? memory, params string[] extra) =>
        StartedAsync(new SesProcess(FreePort.Next(), null, "none", extra, memory: memory));

    private static async Task<SesProcess> StartedAsync(SesProcess ses)
    {
        try
        {
            await ses.ReadyAsync();
            return ses;
        }
        catch
        {
            await ses.DisposeAsync();
            throw;
        }
    }

    /// <summary>Where Alertmanager has to send the alerts of a partition.</summary>
    public Uri Webhook(string partition) => new(Client.BaseAddress!, $"alerts/{partition}");

    /// <summary>Posts a webhook's body, as Alertmanager does.</summary>
    public async Task<HttpResponseMessage> PostAsync(string partition, string json)
    {
        using var content = new ByteArrayContent(Encoding.UTF8.GetBytes(json));
        content.Headers.ContentType = new MediaTypeHeaderValue("application/json");
        return await Client.PostAsync(Webhook(partition), content);
    }

    /// <summary>Runs what the documents show for a SeS at http://ses-1:8888 with this one.</summary>
    public async Task<(int Exit, string Output)> BashAsync(string script)
    {
        await using var bash = ChildProcess.Start("bash",
            ["-euc", script.Replace("http://ses-1:8888", Client.BaseAddress!.ToString().TrimEnd('/'), StringComparison.Ordinal)], Unset);
        return (await bash.ExitAsync(Patience), bash.Output);
    }

    public void Kill(Signal signal) => _child.Kill(signal);

    /// <summary>Waits until <c>GET /ready</c> answers 200.</summary>
    public Task ReadyAsync() => ReadyAsync(_child, Client, ReadyWithin);

    /// <summary>Waits until <c>GET /ready</c> of a SeS that was started in another way answers 200.</summary>
    /// <exception cref="InvalidOperationException">It ended instead; the message has its output.</exception>
    public static Task ReadyAsync(ChildProcess ses, HttpClient client, TimeSpan within) => Wait.UntilAsync(async () =>
    {
        if (ses.HasExited)
            throw new InvalidOperationException($"SeS ended with {await ses.ExitAsync(Gone)}:\n{ses.Output}");
        try
        {
            using var answer = await client.GetAsync("ready");
            return answer.StatusCode == HttpStatusCode.OK;
        }
        catch (HttpRequestException)
        {
            return false;
        }
    }, within, $"{client.BaseAddress}ready");

    /// <summary>Starts it again with the same settings, port and folder; waits until it is ready.</summary>
    /// <remarks>One that still runs is asked to end first; it has 20 s for that.</remarks>
    public async Task RestartAsync()
    {
        Kill(Signal.Terminate);
        await _child.ExitAsync(Gone);
        await _child.DisposeAsync();
        _child = Run(_arguments);
        await ReadyAsync();
    }

    /// <summary>Runs a command on its data directory, with the same clock.</summary>
    public async Task<(int Exit, string Output)> CommandAsync(string command, params string[] flags)
    {
        await using var child = Run([command, "--data-dir", DataDir, .. flags]);
        return (await child.ExitAsync(Gone), child.Output);
    }

    public async ValueTask DisposeAsync()
    {
        Client.Dispose();
        await _child.DisposeAsync();
        if (_ownsDataDir)
            Directory.Delete(DataDir, recursive: true);
    }

    /// <summary>The variables of whoever runs the tests that SeS would read, without a value.</summary>
    public static Dictionary<string, string?> Unset => Environment.GetEnvironmentVariables().Keys.Cast<string>()
        .Where(name => name.StartsWith("OXSES_", StringComparison.Ordinal) || name == "STATE_DIRECTORY")
        .ToDictionary(name => name, _ => (string?)null);

    private ChildProcess Run(string[] arguments)
    {
        var environment = Unset;
        var binary = Binary;
        if (_clock != null)
        {
            binary = Path.Combine(Path.GetDirectoryName(binary)!, "dynamic", "ses");
            environment["LD_PRELOAD"] = Directory.GetDirectories("/usr/lib")
                .Select(dir => Path.Combine(dir, "faketime", "libfaketimeMT.so.1")).Single(File.Exists);
            environment["FAKETIME_TIMESTAMP_FILE"] = _clock;
            environment["FAKETIME_NO_CACHE"] = environment["FAKETIME_DONT_FAKE_MONOTONIC"] = "1";
        }
        string[] command = [.. _memory?.Run(binary) ?? [binary], .. arguments];
        return ChildProcess.Start(command[0], command[1..], environment, Path.GetDirectoryName(DataDir));
    }

    private static IEnumerable<string> Above(string dir)
    {
        for (var at = new DirectoryInfo(dir); at != null; at = at.Parent)
            yield return at.FullName;
    }
}
