using System.Globalization;

namespace Ses.Tests.Support;

/// <summary>
/// The tests' own program, beside being a library of tests: a process that fills a store until it is killed,
/// and prints the number of each alert once it is acknowledged.
/// </summary>
internal static class StoreChild
{
    private const int Threads = 8, MaxAlerts = 200_000;

    public static readonly StoreRules Rules =
        new("n", new TimelineRules(TimeSpan.FromMinutes(15)), TimeSpan.FromHours(25), 100_000, 1_000_000);

    private static readonly DateTime Epoch = new(2026, 11, 23, 12, 0, 0, DateTimeKind.Utc);

    /// <summary>Starts this program on a directory.</summary>
    /// <param name="with">A program that runs it, such as strace, with its arguments.</param>
    public static ChildProcess Start(string directory, int first, params string[] with)
    {
        string[] command = [.. with, "dotnet", typeof(StoreChild).Assembly.Location, directory,
            first.ToString(CultureInfo.InvariantCulture)];
        return ChildProcess.Start(command[0], command[1..]);
    }

    /// <summary>The alerts that were acknowledged, by number.</summary>
    public static IReadOnlyList<int> Acknowledged(ChildProcess child) =>
    [
        .. child.Output.Split('\n').Select(l => l.Split(' '))
            .Where(l => l is ["stored", _]).Select(l => int.Parse(l[1], CultureInfo.InvariantCulture)),
    ];

    public static IncomingAlert Alert(int number) => new(
        new ServiceKey("INS", "p", "s", "f", $"{number % 1000}"), false, AlertSource.Webhook, "",
        $$"""{"alertname":"f","instance":"{{number % 1000}}"}""", "down", Epoch.AddSeconds(number),
        Epoch.AddSeconds(number).AddMilliseconds(500), $"{number}");

    /// <summary>What a request with these alerts brings.</summary>
    public static ReceivedAlerts Body(params IReadOnlyList<IncomingAlert> alerts) => new(alerts, [], 0, 0, 0, 0);

    public static int Main(string[] arguments)
    {
        var log = new Log(LogLevel.Trace, false, Console.Error, TimeProvider.System);
        using var store = new Store(arguments[0], Rules, TimeProvider.System, log, new Meters("test", "test"));
        var next = int.Parse(arguments[1], CultureInfo.InvariantCulture);
        var last = next + MaxAlerts;
        Task.WaitAll([.. Enumerable.Range(0, Threads).Select(_ => Task.Run(async () =>
        {
            for (int number; (number = Interlocked.Increment(ref next)) < last && !store.Failed.IsCompleted;)
            {
                try
                {
                    await store.AppendAsync("INS", Body(Alert(number)));
                    Console.Out.Write($"stored {number}\n");
                }
                catch (StoreException e)
                {
                    Console.Out.Write($"refused {number}: {e.Message}\n");
                    await Task.Delay(TimeSpan.FromMilliseconds(10));
                }
            }
        }))]);
        return store.Failed.IsCompleted ? 1 : 0;
    }
}
