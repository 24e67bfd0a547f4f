using System.Diagnostics;
using System.Globalization;
using Ses.Tests.Support;
using Xunit;
using Xunit.Abstractions;

namespace Ses.Tests;

/// <summary>
/// How many alerts a second the store makes durable, how fast it derives, and how long questions take; beside
/// the flushes of the disk, of which everything else depends. Prints tables; holds nothing by the clock.
/// </summary>
[Trait("Category", "Bench")]
public sealed class StoreBenchTests(ITestOutputHelper output) : IDisposable
{
    private const int Senders = 16;

    private static readonly DateTime Epoch = new(2026, 11, 1, 0, 0, 0, DateTimeKind.Utc);
    private static readonly ServiceFilter All = new("INS", null, null, null, null);

    private readonly string _directory = Directory.CreateTempSubdirectory("ses-bench").FullName;

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    [Fact]
    public async Task AlertsASecond()
    {
        output.WriteLine($"| flushes a second of the disk | {Flushes():N0} |");
        using var store = Open();
        await RunAsync(store, "label sets never seen, 10 a request", 10, 2000, i => Alert(i, 0));
        await RunAsync(store, "known alerts, 10 a request", 10, 20_000, i => Alert(i % 20_000, 0));
        await RunAsync(store, "new episodes of known alerts, 10 a request", 10, 2000, i => Alert(i % 20_000, 1 + (i / 20_000)));
        await RunAsync(store, "label sets never seen, 1,000 a request", 1000, 60, i => Alert(1_000_000 + i, 0));
        await RunAsync(store, "known alerts, 1,000 a request", 1000, 600, i => Alert(1_000_000 + (i % 60_000), 0));
        var started = Stopwatch.GetTimestamp();
        await store.AppendAsync("INS", StoreChild.Body([.. Enumerable.Range(0, 20_000).Select(i => Alert(5, 10 + i))]));
        output.WriteLine($"| 20,000 alerts of one service, one request | {Stopwatch.GetElapsedTime(started).TotalSeconds:F2} s |");
    }

    /// <summary>Services, each with ten observations, in random order.</summary>
    [Theory]
    [InlineData(20_000)]
    [InlineData(200_000)]
    public async Task QuestionsOfManyServices(int services)
    {
        var started = Stopwatch.GetTimestamp();
        using (var store = Open())
        {
            for (var round = 0; round < 5; round++)
            {
                var order = Enumerable.Range(0, services).ToArray();
                new Random(round).Shuffle(order);
                foreach (var part in order.Chunk(1000))
                    await store.AppendAsync("INS", StoreChild.Body([.. part.Select(i => Alert(i, round)), .. part.Select(i => Ended(i, round))]));
            }
            (await store.ReadAsync()).Dispose();
        }
        var (rate, size) = (services * 10 / Stopwatch.GetElapsedTime(started).TotalSeconds,
            new FileInfo(Path.Combine(_directory, Store.FileName)).Length / (services * 10.0));
        output.WriteLine($"| {services:N0} services: observations a second, stored and derived | {rate:N0} |");
        output.WriteLine($"| bytes an observation | {size:N0} |");
        started = Stopwatch.GetTimestamp();
        using var again = Open();
        output.WriteLine($"| start to ready | {Stopwatch.GetElapsedTime(started).TotalMilliseconds:N0} ms |");
        using var snapshot = await again.ReadAsync();
        var questions = new Questions(snapshot, StoreChild.Rules.Timeline, Epoch.AddDays(30));
        Measure("present of all", () => questions.Present(All).Count());
        Measure("history of all", () => questions.History(All, null, null).Count());
        Measure("history of one service", () => questions.History(All with { Location = "77" }, null, null).Count());
        Measure("a page of 1,000 of the history", () => questions.History(All, Epoch.AddHours(3), null).Take(1000).Count());
        Measure("report of all", () => questions.Report(All, null, null).Count());
        Measure("threshold of all", () => questions.Threshold(All, 2, null, null).Count());
        Measure("history of all as of a day", () => new Questions(snapshot, StoreChild.Rules.Timeline,
            Epoch.AddDays(60), DateTime.UtcNow).History(All, null, null).Count());
    }

    private void Measure(string what, Func<int> ask)
    {
        var started = Stopwatch.GetTimestamp();
        var rows = ask();
        output.WriteLine($"| {what}, {rows:N0} rows | {Stopwatch.GetElapsedTime(started).TotalMilliseconds:N1} ms |");
    }

    private async Task RunAsync(Store store, string what, int size, int requests, Func<int, IncomingAlert> alert)
    {
        var next = -1;
        var started = Stopwatch.GetTimestamp();
        await Task.WhenAll(Enumerable.Range(0, Senders).Select(_ => Task.Run(async () =>
        {
            for (int n; (n = Interlocked.Increment(ref next)) < requests;)
                await store.AppendAsync("INS", StoreChild.Body([.. Enumerable.Range(n * size, size).Select(alert)]));
        })));
        output.WriteLine($"| {what} | {requests * size / Stopwatch.GetElapsedTime(started).TotalSeconds:N0} a second |");
    }

    private int Flushes()
    {
        using var file = new FileStream(Path.Combine(_directory, "flushes"), FileMode.Create, FileAccess.Write, FileShare.None, 0);
        var count = 0;
        for (var started = Stopwatch.GetTimestamp(); Stopwatch.GetElapsedTime(started) < TimeSpan.FromSeconds(1); count++)
        {
            file.Write(new byte[4096]);
            Disk.Flush(file);
        }
        return count;
    }

    private Store Open() => new(_directory, StoreChild.Rules with { MaxServices = 1_000_000 }, TimeProvider.System,
        new Log(LogLevel.Warn, false, TextWriter.Null, TimeProvider.System), new Meters("test", "test"));

    private static IncomingAlert Alert(int service, int episode)
    {
        var name = service.ToString(CultureInfo.InvariantCulture);
        return new(new ServiceKey("INS", $"p{service % 50}", $"s{service % 1000}", "f", name), false, AlertSource.Webhook, "",
            $$"""{"alertname":"InstanceDown","instance":"{{name}}","job":"s{{service % 1000}}","severity":"critical"}""",
            "down", Epoch.AddMinutes(episode).AddMilliseconds(service), null, "the instance does not answer");
    }

    private static IncomingAlert Ended(int service, int episode) =>
        Alert(service, episode) is var alert ? alert with { Ends = alert.Starts.AddSeconds(30) } : null!;
}
