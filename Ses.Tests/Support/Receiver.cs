using System.Collections.Concurrent;
using System.Net;
using System.Text;

namespace Ses.Tests.Support;

/// <summary>What facts are forwarded to: takes lines, and answers as it is told.</summary>
internal sealed class Receiver : IDisposable
{
    private readonly HttpListener _listener = new();
    private readonly int _port = FreePort.Next();

    public Receiver()
    {
        _listener.Prefixes.Add($"http://127.0.0.1:{_port}/");
        _listener.Start();
        _ = ServeAsync();
    }

    public string Url => $"http://127.0.0.1:{_port}/";

    /// <summary>What is answered to a post; null: as a SeS does, 200.</summary>
    public Func<HttpListenerContext, string[], int?>? Answering { get; set; }

    /// <summary>Of the database that it claims to have.</summary>
    public string StoreId { get; set; } = "0123456789abcdef0123456789abcdef";

    public ConcurrentQueue<string[]> Posts { get; } = [];

    /// <summary>The lines of the posts that were answered 200, without signs of life.</summary>
    public ConcurrentQueue<string> Taken { get; } = [];

    public ConcurrentQueue<string> Alive { get; } = [];

    private async Task ServeAsync()
    {
        while (_listener.IsListening)
        {
            try
            {
                _ = AnswerAsync(await _listener.GetContextAsync());
            }
            catch (Exception e) when (e is HttpListenerException or ObjectDisposedException)
            {
                return;
            }
        }
    }

    private async Task AnswerAsync(HttpListenerContext context)
    {
        await Task.Yield();
        try
        {
            using var reader = new StreamReader(context.Request.InputStream);
            var lines = (await reader.ReadToEndAsync()).Split('\n', StringSplitOptions.RemoveEmptyEntries);
            Posts.Enqueue(lines);
            var code = Answering?.Invoke(context, lines) ?? 200;
            // The lines are taken, and nobody hears so.
            if (code is 200 or -200)
            {
                foreach (var line in lines)
                    (line.StartsWith("{\"kind\":\"alive\"", StringComparison.Ordinal) ? Alive : Taken).Enqueue(line);
            }
            if (code < 0)
            {
                context.Response.Abort();
                return;
            }
            context.Response.StatusCode = code;
            if (code == 200)
                await context.Response.OutputStream.WriteAsync(
                    Encoding.UTF8.GetBytes($$"""{"store":"{{StoreId}}","new":{{lines.Length - 1}},"known":0,"refused":0}"""));
            context.Response.Close();
        }
        catch (Exception e) when (e is HttpListenerException or ObjectDisposedException or IOException or InvalidOperationException)
        {
            // The sender went away, or the test ended.
        }
    }

    public void Dispose() => _listener.Close();
}
