using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>Who gets a refusal as a page, what is on it, and where its link leads.</summary>
public sealed class RefusalPageTests
{
    private const string Browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";

    [Theory]
    [InlineData(null, false)]
    [InlineData("*/*", false)]
    [InlineData("", false)]
    [InlineData("application/json", false)]
    [InlineData("application/json, text/plain, */*", false)]
    [InlineData("text/csv", false)]
    [InlineData("text/*", false)]
    [InlineData(Browser, true)]
    [InlineData("TEXT/HTML", true)]
    [InlineData("text/html;charset=utf-8;q=0.9, application/json;q=0.8", true)]
    [InlineData("text/html, application/json", false)]
    [InlineData("application/problem+json, text/html;q=0.9", false)]
    [InlineData("text/html;q=0.5, */*", false)]
    [InlineData("text/html;q=0.5, application/*;q=0.6, */*;q=0.1", false)]
    [InlineData("text/html, */*", true)]
    [InlineData("text/html;q=0", false)]
    [InlineData("text/html;q=0, */*;q=0", false)]
    public void HtmlIsForBrowsers(string? accept, bool expected) => Assert.Equal(expected, Preference.IsForHtml(accept));

    private sealed record Page(int Code, string Head, string Body)
    {
        public string? Field(string name) => Regex.Match(Head, $"(?im)^{name}: (.*?)\r?$") is { Success: true } match
            ? match.Groups[1].Value : null;

        public string Link => Regex.Match(Body, "<a href=\"([^\"]*)\"").Groups[1].Value;
    }

    private static async Task<Page> AskAsync(
        Host host, string target, string accept = Browser, string method = "GET", string more = "")
    {
        using var client = new TcpClient();
        await client.ConnectAsync("127.0.0.1", host.Port);
        await client.GetStream().WriteAsync(Encoding.ASCII.GetBytes(
            $"{method} {target} HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\nConnection: close\r\n{more}\r\n"));
        using var reader = new StreamReader(client.GetStream(), Encoding.UTF8);
        var parts = (await reader.ReadToEndAsync().WaitAsync(TimeSpan.FromSeconds(30))).Split("\r\n\r\n", 2);
        return new Page(int.Parse(parts[0].Split(' ')[1], null), parts[0], parts[1]);
    }

    private static void IsPage(Page page, int code, string title = "Service status")
    {
        Assert.Equal((code, "text/html; charset=utf-8"), (page.Code, page.Field("Content-Type")));
        Assert.StartsWith("<!DOCTYPE html>", page.Body, Ordinal);
        Assert.Contains($"<h1>SeS: {code} {Reply.Phrase(code)}</h1>", page.Body, Ordinal);
        Assert.Contains($"<title>{code} {Reply.Phrase(code)} – {title}</title>", page.Body, Ordinal);
        Assert.Contains("Accept", page.Field("Vary"), Ordinal);
        Assert.Equal(("nosniff", "no-store", "no-referrer"), (page.Field("X-Content-Type-Options"),
            page.Field("Cache-Control"), page.Field("Referrer-Policy")));
        Assert.DoesNotContain("<script", page.Body, OrdinalIgnoreCase);
        var style = Regex.Match(page.Body, "<style>(.*?)</style>", RegexOptions.Singleline).Groups[1].Value;
        var hash = Convert.ToBase64String(SHA256.HashData(Encoding.UTF8.GetBytes(style)));
        Assert.Equal($"default-src 'none'; style-src 'sha256-{hash}'; img-src data:; form-action 'none'; base-uri 'none'; "
            + "frame-ancestors 'self'", page.Field("Content-Security-Policy"));
    }

    public static TheoryData<int, string, string, string, string> Refusals => new()
    {
        { 400, "GET", "/alerts/INS/history?foo=1", "", "foo is not a parameter" },
        { 400, "GET", "/%61lerts", "", "The path percent-encodes" },
        { 403, "GET", "/alerts/INS/notes", "", "Notes are closed" },
        { 404, "GET", "/nowhere", "", "There is no such path" },
        { 404, "GET", "/alerts/NEVER", "", "SeS has never received anything" },
        { 405, "POST", "/", "Content-Length: 0\r\n", "The path does not support this method; allowed: GET, HEAD, OPTIONS." },
        { 415, "POST", "/alerts/INS", "Content-Length: 2\r\nContent-Encoding: br\r\n\r\n{}", "The Content-Encoding is not supported" },
    };

    [Theory]
    [MemberData(nameof(Refusals))]
    public async Task BrowserGetsAPageAndAProgramProblemDetails(int code, string method, string target, string more, string words)
    {
        await using var host = Host.Serving();
        await host.PostAsync("""{"version":"4","alerts":[{"status":"firing","labels":{}}]}""");
        var page = await AskAsync(host, target, method: method, more: more);
        IsPage(page, code);
        Assert.Contains(words, page.Body, Ordinal);
        Assert.Null(page.Field("Refresh"));
        Assert.Equal($"{Encoding.UTF8.GetByteCount(page.Body)}", page.Field("Content-Length"));
        var problem = await AskAsync(host, target, "*/*", method, more);
        Assert.Equal((code, "application/problem+json"), (problem.Code, problem.Field("Content-Type")));
        Assert.Contains("Accept", problem.Field("Vary"), Ordinal);
        Assert.Equal(page.Field("Allow"), problem.Field("Allow"));
    }

    [Fact]
    public async Task PageThatIsNotThereYetAsksAgain()
    {
        await using var host = Host.Starting();
        var page = await AskAsync(host, "/");
        IsPage(page, 503);
        Assert.Equal("10", page.Field("Refresh"));
        Assert.Contains("starting", page.Body, Ordinal);
        Assert.Contains("tries again in 10 s", page.Body, Ordinal);
        var head = await AskAsync(host, "/", method: "HEAD");
        Assert.Equal(("", page.Field("Content-Length"), "10"), (head.Body, head.Field("Content-Length"), head.Field("Refresh")));
        Assert.Null((await AskAsync(host, "/", "*/*")).Field("Refresh"));
        // What was posted is not to be asked for.
        var post = await AskAsync(host, "/alerts/INS", method: "POST", more: "Content-Length: 0\r\n");
        IsPage(post, 503);
        Assert.Null(post.Field("Refresh"));
    }

    [Fact]
    public async Task GateRefusesWithAPageToo()
    {
        await using var host = Host.Serving("--hosts", "ses-1", "--auth-mode", "basic", "--password", "s", "--title", "A <b> & B");
        IsPage(await AskAsync(host, "/"), 421, "A &lt;b&gt; &amp; B");
        var missing = await AskAsync(host, "http://ses-1/");
        IsPage(missing, 401, "A &lt;b&gt; &amp; B");
        Assert.Equal("Basic realm=\"SeS\", charset=\"UTF-8\"", missing.Field("WWW-Authenticate"));
        var head = await AskAsync(host, "/", method: "HEAD");
        Assert.Equal((421, ""), (head.Code, head.Body));
    }

    [Fact]
    public async Task WordsOfStrangersAreEscaped()
    {
        await using var host = Host.Serving();
        var page = await AskAsync(host, "/alerts/%3Cscript%3E%26%22");
        IsPage(page, 404);
        Assert.Contains("&lt;script&gt;&amp;&quot;", page.Body, Ordinal);
    }

    /// <summary>With and without a path that a proxy has before it, links lead to the same place.</summary>
    [Theory]
    [InlineData("/nowhere", "/nowhere")]
    [InlineData("/alerts/NEVER?x=../..", "/alerts/NEVER")]
    [InlineData("/alerts/NEVER/history", "/alerts/NEVER/history")]
    [InlineData("/alerts/NEVER/history/?from=../..", "/alerts/NEVER/history/")]
    [InlineData("/alerts/a%2Fb/report", "/alerts/a%2Fb/report")]
    [InlineData("/a//b/", "/a//b/")]
    [InlineData("http://a", "/")]
    public async Task LinkLeadsToTheOverview(string target, string path)
    {
        await using var host = target == "http://a" ? Host.Starting() : Host.Serving();
        var link = (await AskAsync(host, target)).Link;
        Assert.Equal("http://h/", new Uri(new Uri("http://h" + path), link).AbsoluteUri);
        Assert.Equal("http://h/status/ses/", new Uri(new Uri("http://h/status/ses" + path), link).AbsoluteUri);
    }
}
