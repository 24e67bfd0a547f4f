using System.Net;

namespace Ses.Tests.Support;

/// <summary>A reverse proxy that has a server under a path of its own: <c>/ses/</c>.</summary>
internal sealed class SubPath : IAsyncDisposable
{
    private readonly HttpListener _listener = new();
    private readonly HttpClient _client = new(new SocketsHttpHandler { AllowAutoRedirect = false });
    private readonly Uri _server;
    private readonly string? _refresh;
    private readonly Task _serving;

    /// <param name="refresh">What the proxy makes of a Refresh field; null: it is passed on.</param>
    public SubPath(Uri server, string? refresh = null)
    {
        (_server, _refresh) = (server, refresh);
        Root = new Uri($"http://127.0.0.1:{FreePort.Next()}/ses/");
        _listener.Prefixes.Add(Root.AbsoluteUri);
        _listener.Start();
        _serving = ServeAsync();
    }

    public Uri Root { get; }

    public async ValueTask DisposeAsync()
    {
        _listener.Close();
        await _serving;
        _client.Dispose();
    }

    private async Task ServeAsync()
    {
        while (true)
        {
            try
            {
                await PassOnAsync(await _listener.GetContextAsync());
            }
            catch (Exception e) when (e is HttpListenerException or ObjectDisposedException)
            {
                if (!_listener.IsListening)
                    return;
                // Else a client went away, such as a browser that has seen enough.
            }
        }
    }

    private async Task PassOnAsync(HttpListenerContext context)
    {
        var target = context.Request.RawUrl!["/ses/".Length..];
        using var answer = await _client.GetAsync(new Uri(_server, target));
        context.Response.StatusCode = (int)answer.StatusCode;
        foreach (var (name, values) in answer.Headers.Concat(answer.Content.Headers)
            .Where(h => h.Key is not ("Content-Length" or "Transfer-Encoding" or "Date")))
            context.Response.Headers[name] = name == "Refresh" && _refresh != null ? _refresh : string.Join(", ", values);
        await answer.Content.CopyToAsync(context.Response.OutputStream);
        context.Response.Close();
    }
}
