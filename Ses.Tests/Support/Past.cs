namespace Ses.Tests.Support;

/// <summary>Makes a data directory with a past, through the store itself.</summary>
internal static class Past
{
    /// <summary>
    /// So many events, alternately down and up, spread evenly over services and over the days until now. A
    /// service is down for a tenth of the time.
    /// </summary>
    public static async Task WriteAsync(string dir, int events, int services, int days)
    {
        var end = DateTime.UtcNow;
        var clock = new ManualClock(end.AddDays(-days));
        using var store = new Store(dir, StoreChild.Rules with { MaxServices = 1_000_000, MaxAlerts = 10_000_000 },
            clock, new Log(LogLevel.Error, json: false, TextWriter.Null, clock), new Meters("test", "test"));
        var step = TimeSpan.FromDays(days) / events;
        for (var i = 0; i < events;)
        {
            var alerts = new List<IncomingAlert>();
            for (; alerts.Count < Math.Min(services, 500) && i < events; i++)
            {
                var isUp = i / services % 2 == 1;
                // An outage ends a fifth of a round after it began, and the next begins a round and more later.
                var time = end.AddDays(-days) + (step * (isUp ? i - (services * 4 / 5) : i));
                alerts.Add(Site.Alert(Service(i % services), isUp ? "up" : "down",
                    time.AddTicks(-(time.Ticks % TimeSpan.TicksPerMillisecond))) with
                {
                    Description = isUp ? "It answers" : "It does not answer",
                });
            }
            clock.UtcNow = end.AddDays(-days) + (step * i);
            await store.AppendAsync("INS", StoreChild.Body(alerts));
        }
        (await store.ReadAsync()).Dispose();
    }

    public static ServiceKey Service(int number) =>
        new("INS", $"p{number % 10:00}-dev", $"service{number / 100}", "node", $"10.0.{number / 250}.{number % 250}:2379");
}
