using System.Net;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>The faults of <see cref="OnixFaultTests"/>, with the native binary, killed in the middle.</summary>
[Trait("Category", "E2E")]
public sealed class OnixFaultEndToEndTests
{
    [Theory]
    [MemberData(nameof(OnixFaultTests.Faults), MemberType = typeof(OnixFaultTests))]
    public async Task WebhooksAreAnsweredAndAllIsInOnixAfterwards(string fault, bool nothingArrives)
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var ses = await SesProcess.StartAsync(onix.Url.AbsoluteUri);
        await PostRoundAsync(ses, 1);
        await DrainedAsync(ses);
        var before = onix.Changes;
        var cure = OnixFaultTests.Break(onix, fault);
        for (var second = 2; second <= 6; second++)
            await PostRoundAsync(ses, second);
        Assert.True(!nothingArrives || onix.Changes == before);
        ses.Kill(Signal.Kill);
        await ses.RestartAsync();
        cure();
        await DrainedAsync(ses);
        var expected = Oracle.History(
            Enumerable.Range(1, 6).Select(s => (OnixFaultTests.StatusOf(s), Site.At(s))));
        for (var i = 0; i < 10; i++)
            Assert.Equal(expected, Oracle.Recorded(onix, Site.Service(i)));
    }

    private static async Task PostRoundAsync(SesProcess ses, int second)
    {
        var alerts = Enumerable.Range(0, 10).Select(i => Site.Service(i)).Select(s => $$$"""
            {"status":"firing","startsAt":"{{{Rfc3339.Format(Site.At(second))}}}",
            "annotations":{"location":"{{{s.Location}}}"},
            "labels":{"platform":"{{{s.Platform}}}","service":"{{{s.Service}}}","facet":"{{{s.Facet}}}",
            "status":"{{{OnixFaultTests.StatusOf(second)}}}"}}
            """);
        using var answer = await ses.PostAsync("INS", $"{{\"version\":\"4\",\"alerts\":[{string.Join(',', alerts)}]}}");
        Assert.Equal(HttpStatusCode.NoContent, answer.StatusCode);
    }

    private static Task DrainedAsync(SesProcess ses) => Wait.UntilAsync(async () =>
    {
        var ready = await ses.Client.GetStringAsync("ready");
        return ready.Contains("\"state\":\"recorded\"", StringComparison.Ordinal)
            && ready.Contains("\"barred_services\":0", StringComparison.Ordinal);
    }, TimeSpan.FromSeconds(60), "Onix to have all");
}
