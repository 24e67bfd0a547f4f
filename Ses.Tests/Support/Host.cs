using System.Net;
using System.Net.Http.Headers;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using Xunit;

namespace Ses.Tests.Support;

/// <summary>What a request was answered with.</summary>
internal sealed record Answer(int Code, MediaTypeHeaderValue? Type, string Body,
    HttpResponseHeaders Headers, HttpContentHeaders ContentHeaders)
{
    public JsonElement Json => JsonDocument.Parse(Body).RootElement;

    /// <summary>Asserts problem details (RFC 9457) of this code, and returns the detail.</summary>
    public string Problem(int code)
    {
        Assert.Equal(code, Code);
        Assert.Equal("application/problem+json", Type?.MediaType);
        Assert.Equal(code, Json.GetProperty("status").GetInt32());
        Assert.NotEqual("", Json.GetProperty("title").GetString());
        var detail = Json.GetProperty("detail").GetString()!;
        Assert.InRange(detail.Length, 10, 300);
        return detail;
    }
}

/// <summary>A <see cref="Front"/> whose clock stands still, and a client that asks it.</summary>
internal sealed class Host : IAsyncDisposable
{
    public static readonly DateTime Now = new(2026, 11, 22, 12, 0, 0, DateTimeKind.Utc);

    public static readonly DateTime Built = new(2026, 11, 1, 0, 0, 0, DateTimeKind.Utc);

    private readonly HttpClient _http = new();
    private readonly Front _front;

    private Host(string[] flags, bool serve = true)
    {
        var log = new Log(LogLevel.Trace, json: false, TextWriter.Null, Clock);
        _front = new Front(
            Front.OptionsOf(flags), Clock, log, new Meters("test", "test"), built: Built, serve: serve);
        _http.BaseAddress = new Uri($"http://127.0.0.1:{Port}");
    }

    public static Host Serving(params string[] flags) => new(flags);

    public static Host Starting() => new([], serve: false);

    public static Host At(string address) => new(["--address", address]);

    public ManualClock Clock { get; } = new(Now);

    public string Dir => _front.Dir;

    public Gate Gate => _front.Gate;

    public int Port => _front.Port;

    /// <summary>How many facts on alerts are stored.</summary>
    public int Observations => StoreFiles.Observations(Dir);

    public Store Store => _front.Store;

    public void Serve() => _front.Serve();

    public void CloseStore() => _front.CloseStore();

    public void Reopen(params string[] flags) => _front.Reopen(flags);

    /// <summary>The value of an Authorization field.</summary>
    public static string Basic(string name, string password) =>
        "Basic " + Convert.ToBase64String(Encoding.UTF8.GetBytes($"{name}:{password}"));

    public Task<Answer> GetAsync(string path) => SendAsync(HttpMethod.Get, path);

    public Task<Answer> PostAsync(
        string body, string path = "/alerts/INS", string? authorization = null) =>
        SendAsync(HttpMethod.Post, path, body, authorization);

    public async Task<Answer> SendAsync(
        HttpMethod method, string path, string? body = null, string? authorization = null)
    {
        using var request = new HttpRequestMessage(method, path);
        if (body != null)
            request.Content = new StringContent(body, Encoding.UTF8, "application/json");
        if (authorization != null)
            Assert.True(request.Headers.TryAddWithoutValidation("Authorization", authorization));
        using var response = await _http.SendAsync(request);
        return new Answer((int)response.StatusCode, response.Content.Headers.ContentType,
            await response.Content.ReadAsStringAsync(), response.Headers, response.Content.Headers);
    }

    /// <summary>The status line of what is answered to these bytes.</summary>
    public async Task<string> SendRawAsync(string request)
    {
        using var client = new TcpClient();
        await client.ConnectAsync(IPAddress.Loopback, Port);
        var stream = client.GetStream();
        await stream.WriteAsync(Encoding.ASCII.GetBytes(request));
        using var reader = new StreamReader(stream, Encoding.ASCII);
        return await reader.ReadLineAsync().WaitAsync(TimeSpan.FromSeconds(30)) ?? "";
    }

    /// <summary>Lets the clock run until this is there; slowly, since an answer has a second of it.</summary>
    public async Task<T> UnfreezeAsync<T>(Task<T> awaited)
    {
        await Wait.UntilAsync(() =>
        {
            Clock.Advance(TimeSpan.FromSeconds(0.2));
            return awaited.IsCompleted;
        }, TimeSpan.FromSeconds(30), "an answer");
        return await awaited;
    }

    public async ValueTask DisposeAsync()
    {
        await _front.DisposeAsync();
        _http.Dispose();
    }
}
