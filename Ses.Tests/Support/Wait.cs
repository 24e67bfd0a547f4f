using System.Diagnostics;

namespace Ses.Tests.Support;

/// <summary>Waits for what a test needs to be true, and says what it was when it never came.</summary>
internal static class Wait
{
    private static readonly TimeSpan Pause = TimeSpan.FromMilliseconds(20);

    /// <summary>Returns as soon as the condition holds. It is asked at least once.</summary>
    /// <param name="what">What is waited for, as the end of "waited in vain for ...".</param>
    /// <exception cref="TimeoutException">The condition did not hold within the deadline.</exception>
    public static Task UntilAsync(Func<bool> condition, TimeSpan deadline, string what) =>
        UntilAsync(() => Task.FromResult(condition()), deadline, what);

    /// <inheritdoc cref="UntilAsync(Func{bool}, TimeSpan, string)"/>
    /// <remarks>The deadline also bounds a condition that hangs; what it throws ends the wait.</remarks>
    public static async Task UntilAsync(Func<Task<bool>> condition, TimeSpan deadline, string what)
    {
        var clock = Stopwatch.StartNew();
        while (true)
        {
            var left = deadline - clock.Elapsed;
            if (left < Pause)
                left = Pause;
            try
            {
                if (await condition().WaitAsync(left))
                    return;
            }
            catch (TimeoutException)
            {
                throw new TimeoutException($"waited {deadline} in vain for {what}");
            }
            if (clock.Elapsed >= deadline)
                throw new TimeoutException($"waited {deadline} in vain for {what}");
            await Task.Delay(Pause);
        }
    }
}
