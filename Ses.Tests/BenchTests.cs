using System.Diagnostics;
using Ses.Tests.Support;
using Xunit;
using Xunit.Abstractions;

namespace Ses.Tests;

/// <summary>The figures of the README, on the native binary; <c>make bench</c> prints them as table rows.</summary>
[Trait("Category", "Bench")]
public sealed class BenchTests(ITestOutputHelper output)
{
    private void Row(string measure, string value) => output.WriteLine($"| {measure} | {value} |");

    [Fact]
    public async Task Acknowledging()
    {
        await using var ses = await SesProcess.StartAsync("none");
        await new Load(ses.Port, 32, 10, 200).RunAsync(TimeSpan.FromSeconds(2));
        var result = await new Load(ses.Port, 32, 10, 199).RunAsync(TimeSpan.FromSeconds(8));
        Row("events acknowledged a second, flushed, 32 senders x 10", $"{result.PerSecond:N0}");
        Row("latency of these, p50 / p99", $"{result.Milliseconds(0.5):N1} / {result.Milliseconds(0.99):N1} ms");
        Row("resident after it", $"{ses.Child.ResidentBytes() / 1048576.0:N1} MiB");
        Assert.Equal(0, result.Refused);
    }
}
