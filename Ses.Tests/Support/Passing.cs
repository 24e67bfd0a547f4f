namespace Ses.Tests.Support;

/// <summary>Lets time go by for stores, as it does for a daemon: a leap is time in which it was away.</summary>
internal static class Passing
{
    /// <summary>No leap: SeS was not away.</summary>
    private static readonly TimeSpan Step = TimeSpan.FromMinutes(5);

    /// <summary>Sets the clock forward in steps, each of which the stores come round in.</summary>
    public static async Task PassAsync(this ManualClock clock, DateTime until, TimeSpan? step, params Store[] stores)
    {
        while (clock.UtcNow < until)
        {
            var next = clock.UtcNow + (step ?? Step);
            clock.UtcNow = next < until ? next : until;
            foreach (var store in stores)
                (await store.ReadAsync()).Dispose();
        }
    }
}
