using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>The status page of the native binary, as a real browser shows it.</summary>
/// <remarks>Where <c>SES_SHOTS</c> names a folder, pictures of the page are left there.</remarks>
[Trait("Category", "E2E")]
public sealed partial class StatusPageEndToEndTests
    : IClassFixture<StatusPageEndToEndTests.OneBrowser>, IAsyncLifetime
{
    /// <summary>For what SeS and a browser do at once, on a busy machine.</summary>
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(20);

    private static readonly ServiceKey Node = new("INS", "p01-dev", "etcd", "node", "n1:2379");

    private readonly Browser _browser;

    public StatusPageEndToEndTests(OneBrowser one) => _browser = one.Browser;

    /// <summary>What the test before left is gone.</summary>
    public async Task InitializeAsync()
    {
        await SetAppearanceAsync("light", 1400);
        await _browser.ConsoleAsync();
    }

    public Task DisposeAsync() => Task.CompletedTask;

    /// <summary>All tests look through the same browser, one after the other.</summary>
    public sealed class OneBrowser : IAsyncLifetime
    {
        internal Browser Browser { get; private set; } = null!;

        public async Task InitializeAsync() => Browser = await Browser.StartAsync();

        public async Task DisposeAsync() => await Browser.DisposeAsync();
    }

    public static TheoryData<string, int> Appearances => new()
    {
        { "light", 360 }, { "light", 1400 }, { "dark", 360 }, { "dark", 1400 },
    };

    // ---- Services ----

    private static readonly string[] Names =
    [
        "<script>alert(1)</script>", "\" onmouseover=\"alert(1)", "' autofocus onfocus='alert(1)",
        "a&amp;b & c&lt;",
        "line\nbreak\r\nand\ttab", "\u202egnp.exe", "שלום עולם", "مرحبا بالعالم", "</title></style></svg>",
        "<img src=x onerror=alert(1)>", "javascript:alert(1)", "--><!-- ]]>", new string('w', 190),
        string.Concat(Enumerable.Repeat("语言", 95)), "%00%0a%3Cb%3E", "../../ready", "?a=b&c=d#e+f",
        "\u0001\u001b[31m", "👩‍👩‍👧", "&#60;b&#62;", "{{7*7}}${7*7}", "`backticks`",
        "\u2028next\u2029", "etcd",
    ];

    /// <summary>Names of all kinds in every place.</summary>
    private static List<ServiceKey> Hostile(int count) =>
        [.. Enumerable.Range(0, count).Select(i => new ServiceKey(
            i % 2 == 0 ? "INS" : "O'Brien & <b>\u202eןב", Names[i % 5], Name(i), Name(i + 1),
            i % 7 == 0 ? "" : Name(i + 2)))];

    private static string Name(int number) => Names[number % Names.Length];

    private static List<ServiceKey> Plain(int count) =>
        [.. Enumerable.Range(0, count).Select(i => new ServiceKey(
            "INS", $"p{i % 10:00}-dev", $"service{i / 100}", "node", $"10.0.{i / 250}.{i % 250}:2379"))];

    private static string StatusOf(int number) =>
        (number % 3) switch { 0 => "up", 1 => "down", _ => "degraded" };

    private static DateTime Ago(double hours) => DateTime.UtcNow.AddHours(-hours);

    private static async Task RecordAsync(
        SesProcess ses, IEnumerable<(ServiceKey Service, string Status, double HoursAgo)> words)
    {
        foreach (var partition in words.GroupBy(w => w.Service.Partition))
        {
            var alerts = partition.Select(w => Dialect.Alert(
                w.Service, w.Status, Ago(w.HoursAgo), $"It is {w.Status}: {w.Service.Service}"));
            using var answer = await ses.PostAsync(
                Uri.EscapeDataString(partition.Key), Dialect.Payload([.. alerts]));
            Assert.Equal(HttpStatusCode.NoContent, answer.StatusCode);
        }
    }

    private static Task RecordAsync(
        SesProcess ses, ServiceKey service, params (string Status, double HoursAgo)[] words) =>
        RecordAsync(ses, words.Select(w => (service, w.Status, w.HoursAgo)));

    /// <summary>Each has an outage behind it, and the status that is told by its number.</summary>
    private static Task SayAllAsync(
        SesProcess ses, IReadOnlyList<ServiceKey> services, Func<int, string> statusOf) =>
        RecordAsync(ses, services.SelectMany((s, i) => new[]
        {
            (s, "up", 20.5), (s, "down", 10.5), (s, "up", 9.5), (s, statusOf(i), 3.5),
        }));

    private static Task<SesProcess> StartAsync(params string[] extra) =>
        SesProcess.StartAsync("none", extra: extra);

    private async Task OpenAsync(SesProcess ses, string target = "") =>
        await _browser.OpenAsync(new Uri(ses.Client.BaseAddress!, target));

    private async Task SetAppearanceAsync(string scheme, int width)
    {
        await _browser.ResizeAsync(width);
        await _browser.PreferAsync(scheme);
    }

    private async Task<string> TextAsync(string selector) => (await _browser.RunAsync(
        "return document.querySelector(arguments[0]).innerText", selector)).GetString()!;

    private async Task<string> PageAsync() => await TextAsync("body");

    // ---- Soundness ----

    /// <summary>What is wrong with the page that is shown, one text each. Opens all details.</summary>
    private static readonly string Examine =
        File.ReadAllText(Path.Combine(AppContext.BaseDirectory, "Data", "page-examine.js"));

    private async Task AssertSoundAsync(int width)
    {
        var wrong = await _browser.RunAsync(Examine, width);
        Assert.Empty(wrong.EnumerateArray().Select(w => w.GetString()));
        Assert.False(await _browser.HasDialogAsync());
        Assert.Empty(await _browser.ConsoleAsync());
    }

    [Fact]
    public async Task ExaminationFindsWhatIsWrong()
    {
        await _browser.OpenAsync(new Uri("data:text/html;charset=utf-8," + Uri.EscapeDataString("""
            <!DOCTYPE html><title>Bad</title>
            <style>body{margin:0;background:white;color:black}rect{fill:#ccc}</style>
            <h2>Heading</h2><p style="color:#999" onmouseover="alert(1)">Faint</p><p>Black</p>
            <p style="width:2000px">Wide</p><script>console.error('said')</script><input>
            <time datetime="2026-11-22">2026-11-21</time>
            <svg aria-label="strip"><rect class="up" height="5"/><rect class="down" height="5"/></svg>
            """)));
        var wrong = (await _browser.RunAsync(Examine, 1400)).ToString();
        foreach (var word in new[]
        {
            "there is an element script", "there is an attribute onmouseover", "it scrolls sideways",
            "it sticks out", "contrast of rgb(153, 153, 153) on 255,255,255 is 2.85", "contrast of a strip",
            "heights do not tell", "a strip is not one tab stop", "a strip does not tell its start",
            "time ", "begin with its one h1", "a field has no label", "say UTC", "renew itself",
        })
            Assert.Contains(word, wrong, Ordinal);
        Assert.Contains("said", Assert.Single(await _browser.ConsoleAsync()), Ordinal);
        await _browser.RunAsync("setTimeout(() => alert(1))");
        await Wait.UntilAsync(_browser.HasDialogAsync, Soon, "a dialog");
        await _browser.AnswerDialogAsync();
    }

    [Theory]
    [InlineData(0, "SeS knows of no service yet.")]
    [InlineData(1, "✔ The one service is up.")]
    [InlineData(30, "✖ 10 of 30 services are down. 10 are neither up nor down.")]
    public async Task PageIsSoundInBothSchemesOnAPhoneAndADesk(int count, string sentence)
    {
        await using var ses = await StartAsync();
        await SayAllAsync(ses, Hostile(count), StatusOf);
        foreach (var (scheme, width) in Appearances.Select(l => ((string)l[0], (int)l[1])))
        {
            await SetAppearanceAsync(scheme, width);
            await OpenAsync(ses);
            Assert.Equal(sentence, await TextAsync("h1,h2"));
            await KeepPictureAsync($"{count}-{scheme}-{width}");
            await AssertSoundAsync(width);
        }
    }

    [Fact]
    public async Task PageOfTwoThousandServicesIsSoundToo()
    {
        await using var ses = await StartAsync();
        await SayAllAsync(ses, Plain(2000), i => i % 100 == 0 ? "down" : "up");
        foreach (var (scheme, width) in new[] { ("dark", 360), ("light", 1400) })
        {
            await SetAppearanceAsync(scheme, width);
            await OpenAsync(ses);
            Assert.Equal("✖ 20 of 2000 services are down.", await TextAsync("h1"));
            Assert.Equal(200, await CountAsync("svg"));
            await AssertSoundAsync(width);
        }
    }

    [Fact]
    public async Task PageOfAThousandServicesWhoseStatusWasOftenRepeatedComesSoon()
    {
        await using var ses = await StartAsync();
        for (var hour = 12; hour >= 3; hour--)
            await RecordAsync(ses, Plain(1000).Select(s => (s, "down", hour + 0.5)));
        var clock = Stopwatch.StartNew();
        foreach (var path in new[] { "", "alerts/INS" })
            Assert.Contains("service9", await ses.Client.GetStringAsync(path), Ordinal);
        Assert.InRange(clock.Elapsed, TimeSpan.Zero, TimeSpan.FromSeconds(3));
    }

    [Fact]
    public async Task ServiceWithTheLongestNamesIsLinkedToAsAnyOther()
    {
        await using var ses = await StartAsync();
        var long341 = string.Concat(Enumerable.Repeat("语", 341));
        await RecordAsync(ses, new ServiceKey(long341, long341, long341[..192], long341, long341), ("up", 2));
        await OpenAsync(ses);
        await ClickAsync("details a", "语");
        await UntilAddressAsync("&range=24h");
        Assert.Equal(2, await CountAsync("dl"));
        await AssertSoundAsync(1400);
        // A browser sends as much besides.
        ses.Client.DefaultRequestHeaders.Add("User-Agent", new string('x', 800));
        foreach (var link in await LinksAsync())
        {
            using var answer = await ses.Client.GetAsync(link);
            Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
        }
    }

    [Theory]
    [MemberData(nameof(Appearances))]
    public async Task PageOfEachHostileServiceIsSound(string scheme, int width)
    {
        await using var ses = await StartAsync();
        await SayAllAsync(ses, Hostile(30), StatusOf);
        await SetAppearanceAsync(scheme, width);
        await OpenAsync(ses);
        var links = await _browser.TextsAsync(
            "return [...new Set([...document.querySelectorAll('details a')].map(a => a.href))]");
        Assert.Equal(30, links.Count);
        foreach (var link in links.Where((_, i) => i % 4 == 0))
        {
            await _browser.OpenAsync(new Uri(link));
            await AssertSoundAsync(width);
        }
        await KeepPictureAsync($"service-{scheme}-{width}");
    }

    private async Task KeepPictureAsync(string name)
    {
        if (Environment.GetEnvironmentVariable("SES_SHOTS") is { Length: > 0 } folder)
            await File.WriteAllBytesAsync(Path.Combine(folder, name + ".png"), await _browser.PictureAsync());
    }

    [Fact]
    public async Task NamesAreShownAsTheyAreAndEveryLinkOfThePageIsAnswered()
    {
        await using var ses = await StartAsync();
        var services = Hostile(30);
        await SayAllAsync(ses, services, StatusOf);
        await OpenAsync(ses);
        var named = await _browser.TextsAsync("""
            return [...document.querySelectorAll('details li a')].map(a => [
                ...a.querySelectorAll('bdi')].map(b => b.textContent).join('|'));
            """);
        var given = services.Select(s => Dialect.Shown($"{s.Service}|{s.Facet}|{s.Location}"));
        Assert.Equal(given.Order(StringComparer.Ordinal), named.Order(StringComparer.Ordinal));
        foreach (var link in await LinksAsync())
        {
            using var answer = await ses.Client.GetAsync(link);
            Assert.True(answer.StatusCode == HttpStatusCode.OK, $"{answer.StatusCode} for {link}");
        }
    }

    private async Task<List<string>> LinksAsync() => await _browser.TextsAsync(
        "return [...new Set([...document.querySelectorAll('a')].map(a => a.href))]");

    [Fact]
    public async Task TextIsTheSameWithoutJavaScript()
    {
        await using var ses = await StartAsync();
        await SayAllAsync(ses, Hostile(30), StatusOf);
        await OpenAsync(ses);
        var with = await PageAsync();
        await _browser.AllowScriptsAsync(false);
        try
        {
            await _browser.OpenAsync(
                new Uri("data:text/html,<title>off</title><script>document.title='on'</script>"));
            Assert.Equal("off", (await _browser.RunAsync("return document.title")).GetString());
            await OpenAsync(ses);
            Assert.Equal(Digits().Replace(with, "0"), Digits().Replace(await PageAsync(), "0"));
        }
        finally
        {
            await _browser.AllowScriptsAsync(true);
        }
    }

    /// <summary>The time went on in between.</summary>
    [GeneratedRegex("[0-9]+")]
    private static partial Regex Digits();

    // ---- By keyboard ----

    [Fact]
    public async Task EachLinkFieldAndStripIsReachedByTabOnce()
    {
        await using var ses = await StartAsync();
        await RecordAsync(ses, Node, ("up", 5.5), ("down", 2.5));
        await OpenAsync(ses);
        var stops = new List<string>();
        for (var i = 0; i < 40; i++)
        {
            await _browser.TypeAsync(Browser.Tab);
            var stop = (await _browser.RunAsync("""
                const e = document.activeElement;
                return e === document.body ? 'end' : e.localName + ' ' + getComputedStyle(e).outlineStyle;
                """)).GetString()!;
            if (stop == "end")
                break;
            stops.Add(stop);
        }
        Assert.Equal(["a", "input", "button", "a", "a", "a", "summary", "a", "svg", "a", "a", "a", "a", "a"],
            stops.Select(s => s.Split(' ')[0]));
        Assert.All(stops, s => Assert.EndsWith(" solid", s, Ordinal));
    }

    [Fact]
    public async Task SearchAndRangeChangeTheAddressAndWhatIsShown()
    {
        await using var ses = await StartAsync();
        var odd = Node with { Service = "a+b & \"c\" 100 %" };
        await RecordAsync(ses, Node, ("up", 5.5));
        await RecordAsync(ses, odd, ("up", 50.5), ("down", 49.5), ("up", 47.5));
        await OpenAsync(ses);
        Assert.Equal(2, await CountAsync("svg"));
        await _browser.RunAsync("document.querySelector('#search').focus()");
        await _browser.TypeAsync("B & \"C\" 100 %" + Browser.Enter);
        await UntilAddressAsync("search=B+%26+%22C%22+100+%25");
        Assert.Equal(1, await CountAsync("svg"));
        Assert.Equal(1, await CountAsync("details[open]"));
        Assert.Contains("None ended in this time.", await PageAsync(), Ordinal);
        await ClickAsync("nav a", "7d");
        await UntilAddressAsync("range=7d&search=B%20%26%20%22C%22%20100%20%25");
        Assert.Equal(1, await CountAsync("svg"));
        Assert.Contains("2 h 0 min. It is down", await PageAsync(), Ordinal);
        Assert.Equal("B & \"C\" 100 %",
            (await _browser.RunAsync("return document.querySelector('#search').value")).GetString());
        await _browser.RunAsync("document.querySelector('#search').select()");
        await _browser.TypeAsync("no such" + Browser.Enter);
        await UntilAddressAsync("range=7d&search=no+such");
        Assert.Contains("No service has “no such” in its names.", await PageAsync(), Ordinal);
    }

    private async Task<int> CountAsync(string selector) => (await _browser.RunAsync(
        "return document.querySelectorAll(arguments[0]).length", selector)).GetInt32();

    private async Task ClickAsync(string selector, string text) => await _browser.RunAsync("""
        [...document.querySelectorAll(arguments[0])].find(e => e.textContent.includes(arguments[1])).click();
        """, selector, text);

    /// <summary>Waits for a page that is loaded.</summary>
    private Task UntilAddressAsync(string end) => Wait.UntilAsync(async () =>
        (await _browser.AddressAsync()).OriginalString.EndsWith(end, Ordinal)
        && (await _browser.RunAsync("return document.readyState")).GetString() == "complete",
        Soon, "an address that ends with " + end);

    // ---- One service ----

    [Fact]
    public async Task PageOfAServiceHasTheFiguresOfTheReport()
    {
        await using var ses = await StartAsync();
        await RecordAsync(ses, Node, ("up", 20.5), ("down", 12.5), ("up", 12), ("down", 3), ("up", 2.75));
        await OpenAsync(ses);
        await ClickAsync("details a", "etcd");
        await UntilAddressAsync("&range=24h");
        Assert.Equal("etcd node n1:2379", await TextAsync("h1"));
        var before = await ReportAsync(ses);
        await _browser.OpenAsync(await _browser.AddressAsync());
        var figures = (await _browser.RunAsync("""
            return Object.fromEntries([...document.querySelectorAll('dt')].map(
                t => [t.textContent, t.nextElementSibling.textContent]));
            """)).EnumerateObject().ToDictionary(f => f.Name, f => f.Value.GetString()!);
        var after = await ReportAsync(ses);
        Assert.Equal($"{before.GetProperty("outages")}", figures["Outages"]);
        Assert.Equal((2700, 1800), (Math.Round(after.GetProperty("down_seconds").GetDouble()),
            Math.Round(after.GetProperty("longest_seconds").GetDouble())));
        Assert.Equal("45 min 0 s", figures["Down"]);
        Assert.Equal("30 min 0 s", figures["Longest outage"]);
        var share = double.Parse(figures["Availability"].Split(' ')[0], CultureInfo.InvariantCulture);
        Assert.InRange(share, before.GetProperty("availability").GetDouble() - 0.001,
            after.GetProperty("availability").GetDouble());
        var links = (await LinksAsync()).Where(l => l.Contains("format=", Ordinal)).ToList();
        Assert.Equal(4, links.Count);
        foreach (var link in links)
        {
            using var answer = await ses.Client.GetAsync(link);
            Assert.Equal(link.EndsWith("csv", Ordinal) ? "text/csv" : "application/json",
                answer.Content.Headers.ContentType?.MediaType);
            Assert.Contains("n1:2379", await answer.Content.ReadAsStringAsync(), Ordinal);
        }
        await OpenAsync(ses, "service?partition=INS&service=none");
        Assert.Contains("404", await PageAsync(), Ordinal);
    }

    private static async Task<JsonElement> ReportAsync(SesProcess ses)
    {
        var report = await ses.Client.GetStringAsync("alerts/INS/report?from=-24h");
        return JsonDocument.Parse(report).RootElement.GetProperty("services")[0];
    }

    // ---- Where it stands ----

    [Fact]
    public async Task PageWorksUnderAPathOfAProxy()
    {
        await using var ses = await StartAsync();
        await RecordAsync(ses, Node, ("up", 5.5), ("down", 2.5));
        await using var proxy = new SubPath(ses.Client.BaseAddress!);
        await _browser.OpenAsync(proxy.Root);
        await AssertLinksStayAsync();
        await ClickAsync("details a", "etcd");
        await UntilAddressAsync("&range=24h");
        await AssertLinksStayAsync();
        await ClickAsync("a", "All services");
        await UntilAddressAsync("/ses/?range=24h");
        await _browser.RunAsync("document.querySelector('#search').focus()");
        await _browser.TypeAsync("node" + Browser.Enter);
        await UntilAddressAsync("/ses/?range=24h&search=node");
        Assert.Equal(1, await CountAsync("svg"));

        async Task AssertLinksStayAsync()
        {
            using var client = new HttpClient();
            foreach (var link in await LinksAsync())
            {
                Assert.StartsWith(proxy.Root.AbsoluteUri, link, Ordinal);
                using var answer = await client.GetAsync(link);
                Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
            }
        }
    }

    [Fact]
    public async Task PageAsksForCredentialsAsTheWebhookDoes()
    {
        await using var ses = await StartAsync("--auth-mode", "basic", "--password", "right");
        foreach (var path in new[] { "", "service" })
        {
            using var answer = await ses.Client.GetAsync(path);
            Assert.Equal(HttpStatusCode.Unauthorized, answer.StatusCode);
            Assert.Equal("Basic", Assert.Single(answer.Headers.WwwAuthenticate).Scheme);
        }
        await _browser.OpenAsync(new Uri($"http://admin:right@127.0.0.1:{ses.Port}/"));
        Assert.Equal("SeS knows of no service yet.", await TextAsync("h1"));
        // The browser goes on to give them by itself.
        await OpenAsync(ses, "?range=7d");
        Assert.Equal("SeS knows of no service yet.", await TextAsync("h1"));
    }

    [Fact]
    public async Task FirstStepOfAnEmptyInstallationWorksAsItIsWritten()
    {
        await using var ses = await StartAsync();
        await OpenAsync(ses);
        var step = await TextAsync("pre");
        var body = step.Split("-d '")[1].Split('\'')[0];
        using var answer = await ses.PostAsync("INS", body);
        Assert.Equal(HttpStatusCode.NoContent, answer.StatusCode);
        await OpenAsync(ses);
        Assert.Equal("✖ The one service is down.", await TextAsync("h1"));
    }

    // ---- What went wrong ----

    [Fact]
    public async Task AwayOnixIsShownWithHowFarItIsBehind()
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var ses = await SesProcess.StartAsync(onix.Url.AbsoluteUri);
        await RecordAsync(ses, Node, ("up", 5.5));
        await UntilShownAsync(ses, "Onix has all changes.");
        onix.Stop();
        await RecordAsync(ses, Node, ("down", 4.5), ("up", 3.5));
        await UntilShownAsync(
            ses, "Onix lacks changes of 1 service, the oldest for ", "Onix confirms nothing:");
        Assert.Equal("✔ The one service is up.", await TextAsync("h1"));
        await AssertSoundAsync(1400);
        onix.Start();
        await UntilShownAsync(ses, "Onix has all changes.");
        Assert.DoesNotContain("confirms nothing", await PageAsync(), Ordinal);
    }

    [Fact]
    public async Task ServiceThatOnixRefusesIsListedWithTheReason()
    {
        await using var onix = new OnixStandIn
        {
            Refuse = key => key.Contains("n2", Ordinal) ? "<b>no</b>\u202e" : null,
        };
        onix.Start();
        await using var ses = await SesProcess.StartAsync(onix.Url.AbsoluteUri);
        await RecordAsync(ses, Node, ("up", 5.5));
        await RecordAsync(ses, Node with { Location = "n2" }, ("up", 5.5));
        await UntilShownAsync(
            ses, "Refused by Onix", "1 service; SeS tries again", "etcd node n2 since ", "<b>no</b>");
        await AssertSoundAsync(1400);
    }

    [Fact]
    public async Task QuarantinedAlertIsListedWithTheReason()
    {
        await using var ses = await StartAsync();
        using var answer = await ses.PostAsync("I&S", Dialect.Payload(
            """{"status":"firing","labels":{"alertname":"<i>Bad</i>","platform":"p","status":"up"},"startsAt":"2026-11-23T20:00:00Z"}"""));
        Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
        await UntilShownAsync(
            ses, "Quarantined alerts", "1 alert could not be mapped", "<i>Bad</i> I&S: it has no facet");
        await AssertSoundAsync(1400);
    }

    /// <summary>Opens the page until it has all of these words.</summary>
    private Task UntilShownAsync(SesProcess ses, params string[] words) => Wait.UntilAsync(async () =>
    {
        await OpenAsync(ses);
        var text = await PageAsync();
        return Array.TrueForAll(words, w => text.Contains(w, Ordinal));
    }, Soon, string.Join(", ", words));

    // ---- On paper ----

    [Fact]
    public async Task PageIsPrintedWithoutWhatOnlyAScreenCanDo()
    {
        await using var ses = await StartAsync();
        await SayAllAsync(ses, Hostile(30), StatusOf);
        await OpenAsync(ses);
        var pdf = await _browser.PrintAsync();
        Assert.StartsWith("%PDF-", Encoding.Latin1.GetString(pdf), Ordinal);
        Assert.InRange(pdf.Length, 10_000, 5_000_000);
        await _browser.PreferAsync("light", media: "print");
        Assert.Equal(0, (await _browser.RunAsync("""
            return [...document.querySelectorAll('form,nav,footer,button')]
                .filter(e => e.checkVisibility()).length;
            """)).GetInt32());
        Assert.InRange(await CountAsync("svg"), 30, 30);
    }
}
