using System.Diagnostics;
using Ses.Tests.Support;
using Xunit;
using Xunit.Abstractions;

namespace Ses.Tests;

/// <summary>The native binary under 200,000 hostile connections: it lives, stays small, and serves.</summary>
[Trait("Category", "E2E")]
[Collection(Alone.Name)]
public sealed class GateFuzzEndToEndTests(ITestOutputHelper output)
{
    /// <summary>More threads make it no faster; half a thousand connections stand open meanwhile.</summary>
    private const int Connections = 100_000, Workers = 16, HeldEach = 32;

    /// <summary>Pages of all the services that the traffic makes are among the answers.</summary>
    private const long MaxResident = 96L << 20;

    /// <summary>For what the first requests make SeS open for good.</summary>
    private const int SpareDescriptors = 8;

    /// <summary>Half a minute is usual; on a slow machine fewer connections are made.</summary>
    private static readonly TimeSpan AtMost = TimeSpan.FromMinutes(4);

    /// <summary>Longer than any of the gate's deadlines for what it has not answered.</summary>
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);

    [Fact]
    public async Task HostileTrafficLeavesSesAliveSmallAndServing()
    {
        await using var ses = await SesProcess.StartAsync("none");
        var descriptors = ses.Child.OpenDescriptors();
        var traffic = new HostileTraffic(ses.Port, Random.Shared.Next(), DateTime.UtcNow.AddHours(-12));
        var run = traffic.RunAsync(Connections, Workers, HeldEach, AtMost);
        var peak = await WatchAsync(ses, run);
        Assert.False(ses.Child.HasExited, $"SeS ended: {ses.Child.Output}");
        var tally = await run;
        output.WriteLine($"{tally}\npeak {peak >> 20} MiB, {Cpu(ses):F1} s of CPU");

        tally.Check(ses.DataDir);
        Assert.True(tally.Unreached == 0 && tally.RightAnswers > tally.Connections / 4, $"{tally}");
        Assert.True(peak < MaxResident, $"{peak >> 20} MiB resident: {tally}");
        await Wait.UntilAsync(() => ses.Child.OpenDescriptors() <= descriptors + SpareDescriptors, Soon,
            $"the descriptors to be given back, {descriptors} as in the beginning");
        var metrics = (await ses.Client.GetStringAsync("metrics")).Split('\n');
        Assert.Contains("ses_defects_total 0", metrics);
        Assert.Contains("ses_http_refused_total{reason=\"listener\"} 0", metrics);
        Assert.Contains("ses_connections 1", metrics);
        Assert.InRange(ses.Child.ResidentBytes(), 0, MaxResident);
        ses.Kill(Signal.Terminate);
        Assert.Equal(0, await ses.Child.ExitAsync(Soon));
    }

    /// <summary>Samples the memory until the traffic or SeS ends.</summary>
    /// <returns>The most that was resident.</returns>
    private static async Task<long> WatchAsync(SesProcess ses, Task run)
    {
        var peak = 0L;
        while (!run.IsCompleted && !ses.Child.HasExited)
        {
            peak = Math.Max(peak, ses.Child.ResidentBytes());
            await Task.WhenAny(run, Task.Delay(100));
        }
        return peak;
    }

    private static double Cpu(SesProcess ses)
    {
        using var process = Process.GetProcessById(ses.Child.Id);
        return process.TotalProcessorTime.TotalSeconds;
    }
}
