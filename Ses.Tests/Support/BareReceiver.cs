using System.Net;
using System.Text;
using System.Text.Json;

namespace Ses.Tests.Support;

/// <summary>
/// The least that a receiver of alerts can do, to compare SeS with: it parses each payload, keeps a set of the
/// episodes, and, if it is given a file, writes what is new to it and answers once a group of requests is
/// flushed. No query, no history, no bound.
/// </summary>
internal static class BareReceiver
{
    public static int Run(int port, string? path)
    {
        using var listener = new HttpListener { Prefixes = { $"http://127.0.0.1:{port}/" } };
        using var file = path == null ? null : new FileStream(path, FileMode.Append, FileAccess.Write, FileShare.None, 0);
        var (seen, gate, waiting, text) = (new HashSet<string>(), new Lock(), new List<TaskCompletionSource>(), new StringBuilder());
        listener.Start();
        var signal = new SemaphoreSlim(0);
        new Thread(() =>
        {
            while (true)
            {
                signal.Wait();
                List<TaskCompletionSource> group;
                string lines;
                lock (gate)
                {
                    (group, waiting, lines) = (waiting, [], text.ToString());
                    text.Clear();
                }
                file?.Write(Encoding.UTF8.GetBytes(lines));
                if (file != null && lines.Length > 0)
                    Disk.Flush(file);
                group.ForEach(t => t.SetResult());
            }
        }) { IsBackground = true }.Start();
        while (true)
            _ = AnswerAsync(listener.GetContext());

        async Task AnswerAsync(HttpListenerContext context)
        {
            using var payload = await JsonDocument.ParseAsync(context.Request.InputStream);
            var done = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
            var isNew = false;
            lock (gate)
            {
                foreach (var alert in payload.RootElement.GetProperty("alerts").EnumerateArray())
                {
                    var key = $"{alert.GetProperty("labels")} {alert.GetProperty("startsAt")} {alert.GetProperty("endsAt")}";
                    if (!seen.Add(key))
                        continue;
                    isNew = true;
                    text.Append(key).Append(alert.GetProperty("annotations")).Append('\n');
                }
                if (isNew)
                    waiting.Add(done);
            }
            if (isNew)
            {
                signal.Release();
                await done.Task;
            }
            context.Response.StatusCode = 204;
            context.Response.Close();
        }
    }
}
