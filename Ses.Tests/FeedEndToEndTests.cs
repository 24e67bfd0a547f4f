using System.Net;
using System.Xml.Linq;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>The feed and the badge of the native binary.</summary>
[Trait("Category", "E2E")]
public sealed class FeedEndToEndTests
{
    [Fact]
    public async Task ExamplesOfThePageAreAnswered()
    {
        await using var ses = await SesProcess.StartAsync("none");
        var (starts, ends) = (Rfc3339.Format(DateTime.UtcNow.AddHours(-2)), Rfc3339.Format(DateTime.UtcNow.AddHours(-1)));
        Assert.Equal(HttpStatusCode.NoContent, (await ses.PostAsync("INS", $$"""
            {"alerts":[{"status":"resolved","labels":{"alertname":"Down","platform":"shop","service":"checkout"},
            "startsAt":"{{starts}}","endsAt":"{{ends}}"}]}
            """)).StatusCode);
        var commands = DocsPage.Named("page").CodeOf("Feed", "sh");
        Assert.Equal(3, commands.Length);
        foreach (var command in commands)
        {
            var (exit, output) = await ses.BashAsync(command);
            Assert.Equal(0, exit);
            XNamespace atom = "http://www.w3.org/2005/Atom";
            Assert.Equal(["✔ No longer down: checkout Down", "✖ Down: checkout Down"],
                XDocument.Parse(output).Root!.Elements(atom + "entry").Select(e => e.Element(atom + "title")!.Value));
        }
        using var feed = await ses.Client.GetAsync("feed");
        // On a connection that is kept: nothing may follow the head of a 304.
        for (var i = 0; i < 2; i++)
        {
            using var request = new HttpRequestMessage(HttpMethod.Get, "feed");
            request.Headers.IfNoneMatch.Add(feed.Headers.ETag!);
            using var known = await ses.Client.SendAsync(request);
            Assert.Equal((HttpStatusCode.NotModified, ""), (known.StatusCode, await known.Content.ReadAsStringAsync()));
        }
        Assert.Contains("aria-label=\"checkout: up\"", await ses.Client.GetStringAsync("badge.svg?service=checkout"), Ordinal);
        Assert.Contains("50.0", await ses.Client.GetStringAsync("badge.svg?service=checkout&range=24h"), Ordinal);
    }
}
