using System.Text;
using System.Text.Json;

namespace Ses.Tests.Support;

/// <summary>What tells services apart. An aspect of a whole service has the location <c>""</c>.</summary>
internal sealed record LoggedService(
    string Partition, string Platform, string Service, string Facet, string Location);

/// <summary>One event line of SeS's log. Times are UTC.</summary>
internal sealed record LoggedEvent(
    LoggedService Service, string Status, DateTime Time, string Description, DateTime Received);

/// <summary>Reads SeS's event log by its published format alone, knowing nothing of the program.</summary>
internal static class LogFiles
{
    private const string LineStart = "{\"time\":";

    /// <summary>
    /// All events, in the order of the log, while SeS may be writing: a line without its end is left out,
    /// and so are the lines that are no events. An empty or absent folder has none.
    /// </summary>
    /// <exception cref="JsonException">A whole event line is not as documented.</exception>
    public static IReadOnlyList<LoggedEvent> ReadEvents(string dir) =>
        !Directory.Exists(dir) ? []
        : [.. Directory.GetFiles(dir, "events-*.jsonl")
            .Order(StringComparer.Ordinal)
            .SelectMany(WholeLines)
            .Where(line => line.StartsWith(LineStart, StringComparison.Ordinal))
            .Select(Parse)];

    /// <summary>
    /// What happened to each service: its events in order of time, at equal times <c>down</c> last, each
    /// time and status once, and runs of one status told as their first.
    /// </summary>
    public static IReadOnlyDictionary<LoggedService, IReadOnlyList<LoggedEvent>> History(string dir) =>
        ReadEvents(dir).GroupBy(e => e.Service).ToDictionary(g => g.Key, g => Changes(g));

    private static IReadOnlyList<LoggedEvent> Changes(IEnumerable<LoggedEvent> events)
    {
        var changes = new List<LoggedEvent>();
        foreach (var e in events.OrderBy(e => e.Time).ThenBy(e => e.Status == "down" ? 1 : 0)
            .ThenBy(e => e.Status, StringComparer.Ordinal))
        {
            if (changes.Count == 0 || changes[^1].Status != e.Status)
                changes.Add(e);
        }
        return changes;
    }

    private static IEnumerable<string> WholeLines(string path)
    {
        using var file = new FileStream(
            path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
        using var reader = new StreamReader(file, Encoding.UTF8);
        var text = reader.ReadToEnd();
        return text[..(text.LastIndexOf('\n') + 1)].Split('\n', StringSplitOptions.RemoveEmptyEntries);
    }

    private static LoggedEvent Parse(string line)
    {
        using var document = JsonDocument.Parse(line);
        var root = document.RootElement;
        var service = new LoggedService(
            Text("partition"), Text("platform"), Text("service"), Text("facet"), Text("location"));
        return new LoggedEvent(service, Text("status"), Time("time"), Text("description"), Time("received"));

        JsonElement Field(string name) => root.TryGetProperty(name, out var value)
            ? value : throw new JsonException($"no {name} in {line}");
        string Text(string name) => Field(name).GetString()
            ?? throw new JsonException($"{name} is null in {line}");
        DateTime Time(string name) => Field(name).GetDateTimeOffset().UtcDateTime;
    }
}
