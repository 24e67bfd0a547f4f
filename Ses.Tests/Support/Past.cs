namespace Ses.Tests.Support;

/// <summary>Makes a data directory with a past, through the event log itself.</summary>
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
        using var lines = new StringWriter();
        var log = new EventLog(dir, TimeSpan.FromDays(400), clock,
            new Log(LogLevel.Error, json: false, TextWriter.Synchronized(lines), clock), new Meters("test", "test"));
        var step = TimeSpan.FromDays(days) / events;
        for (var i = 0; i < events;)
        {
            var alerts = new List<MappedAlert>();
            for (; alerts.Count < Math.Min(services, 500) && i < events; i++)
            {
                var isUp = i / services % 2 == 1;
                // An outage ends a fifth of a round after it began, and the next begins a round and more later.
                var time = end.AddDays(-days) + (step * (isUp ? i - (services * 4 / 5) : i));
                alerts.Add(new MappedAlert(Service(i % services), isUp ? "It answers" : "It does not answer", false,
                    isUp ? "up" : "down", time.AddTicks(-(time.Ticks % TimeSpan.TicksPerMillisecond)), null));
            }
            clock.UtcNow = end.AddDays(-days) + (step * i);
            await log.AppendAsync(new Payload(alerts, [], 0), "INS");
        }
        log.Stop();
    }

    public static ServiceKey Service(int number) =>
        new("INS", $"p{number % 10:00}-dev", $"service{number / 100}", "node", $"10.0.{number / 250}.{number % 250}:2379");
}
