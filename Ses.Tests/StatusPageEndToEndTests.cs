using System.Diagnostics;
using System.Net;
using System.Text;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>The status pages of the native binary, as real browsers show them.</summary>
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

    private async Task<string> ValueAsync(string script) => (await _browser.RunAsync(script)).ToString();

    private async Task<int> CountAsync(string selector) => (await _browser.RunAsync(
        "return document.querySelectorAll(arguments[0]).length", selector)).GetInt32();

    private async Task ClickAsync(string selector, string text) => await _browser.RunAsync("""
        [...document.querySelectorAll(arguments[0])].find(e => e.textContent.includes(arguments[1])).click();
        """, selector, text);

    /// <summary>Waits for a page that is loaded.</summary>
    private Task UntilAddressAsync(string part) => Wait.UntilAsync(async () =>
        (await _browser.AddressAsync()).OriginalString.Contains(part, Ordinal)
        && await ValueAsync("return document.readyState") == "complete", Soon, "an address with " + part);

    private async Task<List<string>> LinksAsync() => await _browser.TextsAsync(
        "return [...new Set([...document.querySelectorAll('a')].map(a => new URL(a.getAttribute('href'), location).href))]");

    // ---- Soundness ----

    /// <summary>What is wrong with the page that is shown, one text each. Opens all details.</summary>
    private static readonly string Examine = DataFile("page-examine.js");

    private static string DataFile(string name) => File.ReadAllText(Path.Combine(AppContext.BaseDirectory, "Data", name));

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
            <!DOCTYPE html><title>Bad</title><meta http-equiv="refresh" content="99">
            <style>body{margin:0;background:white;color:black}path{stroke:#ccc;stroke-width:1}</style>
            <h2>Heading</h2><p style="color:#777" onmouseover="alert(1)">Faint</p><p>Black</p>
            <p style="width:2000px">Wide</p><script>console.error('said')</script><input>
            <time datetime="2026-11-22T05:00:00Z">05:01</time>
            <svg aria-label="strip" tabindex="0"><path class="d" d="M0 1h5"/><path class="g" d="M0 1h5"/></svg>
            """)));
        var wrong = (await _browser.RunAsync(Examine, 1400)).ToString();
        foreach (var word in new[]
        {
            "there is an element script", "there is an attribute onmouseover", "it scrolls sideways",
            "it sticks out", "contrast of rgb(119, 119, 119) on 255,255,255 is 4.48", "contrast of a strip",
            "widths do not tell", "a strip is a tab stop", "a strip does not tell its outages",
            "time ", "begin with its one h1", "a field has no label", "say UTC", "renews itself",
        })
            Assert.Contains(word, wrong, Ordinal);
        Assert.Contains("said", Assert.Single(await _browser.ConsoleAsync()), Ordinal);
        await _browser.RunAsync("setTimeout(() => alert(1))");
        await Wait.UntilAsync(_browser.HasDialogAsync, Soon, "a dialog");
        await _browser.AnswerDialogAsync();
    }

    [Theory]
    [InlineData(0, "No service yet")]
    [InlineData(1, "✔ The only service is up")]
    [InlineData(30, "✖ 10 down")]
    public async Task OverviewIsSoundInBothSchemesOnAPhoneAndADesk(int count, string banner)
    {
        await using var ses = await StartAsync();
        await SayAllAsync(ses, Hostile(count), StatusOf);
        foreach (var (scheme, width) in Appearances.Select(l => ((string)l[0], (int)l[1])))
        {
            await SetAppearanceAsync(scheme, width);
            await OpenAsync(ses);
            Assert.Equal(banner, await TextAsync(".banner strong"));
            await KeepPictureAsync($"{count}-{scheme}-{width}");
            await AssertSoundAsync(width);
        }
    }

    [Fact]
    public async Task OtherPagesAreSoundWhateverTheNames()
    {
        await using var ses = await StartAsync();
        var services = Hostile(30);
        await SayAllAsync(ses, services, StatusOf);
        await OpenAsync(ses);
        var links = await _browser.TextsAsync("return [...document.querySelectorAll('a.row')].map(a => a.href)");
        var (platforms, rows) = (links.Where(l => l.Contains("/platform?", Ordinal)).ToList(), links.Where(l => l.Contains("/s/", Ordinal)).ToList());
        Assert.Equal((10, 30), (platforms.Count, rows.Count));
        var targets = rows.Where((_, i) => i % 4 == 0).Append(platforms[0]).Append(platforms[7])
            .Append($"{ses.Client.BaseAddress}outages").Append($"{ses.Client.BaseAddress}day/{DateTime.UtcNow:yyyy-MM-dd}").ToList();
        foreach (var (scheme, width) in new[] { ("light", 360), ("dark", 1400), ("light", 2560) })
        {
            await SetAppearanceAsync(scheme, width);
            foreach (var target in targets)
            {
                await _browser.OpenAsync(new Uri(target));
                await AssertSoundAsync(width);
            }
        }
    }

    [Fact]
    public async Task LongPageOfServicesIsSoundToo()
    {
        await using var ses = await StartAsync();
        await SayAllAsync(ses, Plain(500), i => i % 100 == 0 ? "down" : "up");
        foreach (var (scheme, width) in new[] { ("dark", 360), ("light", 1400) })
        {
            await SetAppearanceAsync(scheme, width);
            await OpenAsync(ses, "?show=all");
            Assert.Equal("✖ 5 down", await TextAsync(".banner strong"));
            Assert.InRange(await CountAsync("svg[role=img]"), 100, StatusPage.MostRows);
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
        foreach (var path in new[] { "?search=service9", "alerts/INS" })
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
        await ClickAsync("a.row[href^='service?']", "语");
        await UntilAddressAsync("/service?");
        Assert.Equal(1, await CountAsync("dl"));
        await AssertSoundAsync(1400);
        // A browser sends as much besides.
        ses.Client.DefaultRequestHeaders.Add("User-Agent", new string('x', 800));
        foreach (var link in await LinksAsync())
        {
            using var answer = await ses.Client.GetAsync(link);
            Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
        }
    }

    private async Task KeepPictureAsync(string name)
    {
        if (Environment.GetEnvironmentVariable("SES_SHOTS") is { Length: > 0 } folder)
            await File.WriteAllBytesAsync(Path.Combine(folder, name + ".png"), await _browser.PictureAsync());
    }

    [Fact]
    public async Task NamesAreShownAsTheyAreWithoutJavaScriptTooAndEveryLinkIsAnswered()
    {
        await using var ses = await StartAsync();
        var services = Hostile(30);
        await SayAllAsync(ses, services, StatusOf);
        await OpenAsync(ses);
        var named = await _browser.TextsAsync("""
            return [...document.querySelectorAll('a.row[href^="s/"] .name')].map(n => [
                ...n.querySelectorAll('bdi')].map(b => b.textContent).join('|'));
            """);
        var given = services.Select(s => new[] { ShortName.Of(s).Lead, s.Platform, s.Partition, ShortName.Of(s).About })
            .Select(parts => Dialect.Shown(string.Join('|', parts.Select(StatusPage.Brief))));
        Assert.Equal(given.Order(StringComparer.Ordinal), named.Order(StringComparer.Ordinal));
        foreach (var link in await LinksAsync())
        {
            using var answer = await ses.Client.GetAsync(link);
            Assert.True(answer.StatusCode == HttpStatusCode.OK, $"{answer.StatusCode} for {link}");
        }
        var with = await PageAsync();
        await _browser.AllowScriptsAsync(false);
        try
        {
            await _browser.OpenAsync(
                new Uri("data:text/html,<title>off</title><script>document.title='on'</script>"));
            Assert.Equal("off", await ValueAsync("return document.title"));
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

    // ---- For all readers ----

    /// <summary>What axe finds in the page that is shown, one text each.</summary>
    private async Task<List<string>> ViolationsAsync() => await _browser.TextsAsync(
        await File.ReadAllTextAsync(Path.Combine(Project.Folder, "Ses.Tests/axe/node_modules/axe-core/axe.min.js")) + """
        ;return axe.run(document, { iframes: false, preload: false, resultTypes: ['violations'],
            runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'], rules: { 'color-contrast-enhanced': { enabled: true } } })
            .then(r => r.violations.map(v => `${v.id} on ${location.href}: ${v.nodes.map(n => n.html + ' ' + n.failureSummary).join('; ')}`));
        """);

    /// <summary>Of each kind: with what is down, degraded, under maintenance and long gone; WCAG 2.2 at A and AA, contrast at AAA.</summary>
    [Fact]
    public async Task AxeFindsNothingInAnyKindOfPage()
    {
        await _browser.OpenAsync(new Uri("data:text/html,<p style='color:%23666'>Faint</p><img src='data:,'>"));
        var found = string.Join(' ', await ViolationsAsync());
        Assert.All(["color-contrast-enhanced", "image-alt", "html-has-lang"], rule => Assert.Contains(rule, found, Ordinal));

        await using var ses = await StartAsync("--slo", "99.9");
        await RecordAsync(ses, Node, ("up", 700), ("down", 500), ("up", 499), ("down", 2.5));
        await RecordAsync(ses, Node with { Location = "n2:2379" }, ("up", 700), ("down", 2.5));
        await RecordAsync(ses, Node with { Facet = "quorum" }, ("degraded", 30));
        await RecordAsync(ses, Node with { Platform = "p02" }, ("up", 30));
        var service = (await ses.Client.GetAsync("s/" + PageQuery.ShortOf(Node))).RequestMessage!.RequestUri!.PathAndQuery[1..];
        foreach (var (scheme, width) in new[] { ("light", 1400), ("dark", 360) })
        {
            await SetAppearanceAsync(scheme, width);
            foreach (var target in new[] { "", "?show=all&search=etcd", "platform?partition=INS&platform=p01-dev", service, "outages",
                $"day/{DateTime.UtcNow:yyyy-MM-dd}", "service?partition=INS&service=none", $"now?at={Rfc3339.Format(Ago(1))}" })
            {
                await OpenAsync(ses, target);
                Assert.Empty(await ViolationsAsync());
            }
        }
        Assert.NotNull(await _browser.ConsoleAsync());
    }

    [Fact]
    public async Task AllIsReachedByTabInTheOrderOfThePage()
    {
        await using var ses = await StartAsync();
        await RecordAsync(ses, Node, ("up", 5.5), ("down", 2.5));
        await RecordAsync(ses, Node with { Location = "n2:2379" }, ("up", 5.5), ("down", 4.5), ("up", 4), ("down", 2.5));
        var service = "s/" + PageQuery.ShortOf(Node);
        foreach (var target in new[] { "", service, "outages" })
        {
            await OpenAsync(ses, target);
            var expected = await _browser.TextsAsync("""
                window.stops = [...document.querySelectorAll('a[href],input:not([type=hidden]),button,summary,[tabindex="0"]')]
                    .filter(e => e.tabIndex >= 0 && e.checkVisibility());
                return stops.map((e, i) => i + ' solid');
                """);
            var reached = new List<string>();
            for (var i = 0; i < expected.Count + 3; i++)
            {
                await _browser.TypeAsync(Browser.Tab);
                var stop = await ValueAsync("""
                    const e = document.activeElement;
                    return e === document.body ? 'end' : e.localName === 'iframe' ? 'frame'
                        : stops.indexOf(e) + ' ' + getComputedStyle(e).outlineStyle;
                    """);
                if (stop == "end")
                    break;
                if (stop != "frame")
                    reached.Add(stop);
            }
            Assert.Equal(expected, reached);
        }
        await OpenAsync(ses);
        await _browser.TypeAsync(Browser.Tab);
        Assert.Equal("Skip to content", await ValueAsync("return document.activeElement.innerText"));
        await _browser.TypeAsync(Browser.Enter);
        await UntilAddressAsync("#main");
        await _browser.TypeAsync(Browser.Tab);
        Assert.Equal("true", await ValueAsync(
            "return document.querySelector('main').contains(document.activeElement) ? 'true' : document.activeElement.outerHTML"));
    }

    [Theory]
    [InlineData("lynx", "-dump", "-nolist", "-width=120")]
    [InlineData("w3m", "-dump", "-cols", "120")]
    public async Task BrowsersOfTextSayHowAllIs(string browser, params string[] flags)
    {
        await using var ses = await StartAsync();
        await RecordAsync(ses, Node, ("up", 5.5), ("down", 2.5));
        await RecordAsync(ses, Node with { Service = "mail", Facet = "smtp", Location = "m1" }, ("up", 5.5), ("degraded", 1.5));
        var text = "";
        foreach (var target in new[] { "", "s/" + PageQuery.ShortOf(Node) })
        {
            await using var child = ChildProcess.Start(browser, [.. flags, new Uri(ses.Client.BaseAddress!, target).AbsoluteUri],
                new Dictionary<string, string?> { ["LC_ALL"] = "C.UTF-8" });
            Assert.Equal(0, await child.ExitAsync(Soon));
            text += Blanks().Replace(child.Output, " ");
        }
        foreach (var words in new[] { "1 down", "1 degraded", "etcd node", "n1:2379", "mail smtp in p01-dev", "degraded since", ", 2 h 30 min",
            "p01-dev", "All outages", "ongoing", "Availability" })
            Assert.Contains(words, text, Ordinal);
    }

    [GeneratedRegex(@"\s+")]
    private static partial Regex Blanks();

    [Fact]
    public async Task QuestionsOfAReadersDayAreAnsweredWithinTwoClicks()
    {
        await using var ses = await StartAsync("--slo", "99.9");
        await RecordAsync(ses, Node, ("up", 24 * 70), ("down", 24 * 35), ("up", (24 * 35) - 2), ("down", 2.5));
        await RecordAsync(ses, Node with { Platform = "p02", Service = "mail" }, ("up", 24 * 70));
        // Is it us or them?
        await OpenAsync(ses);
        Assert.Equal(["p01-dev ✖ 1 down", "p02 ✔ all up"], await _browser.TextsAsync("""
            return [...document.querySelectorAll('a.row[href^="platform"]')].map(
                r => r.querySelector('.name bdi').textContent + ' ' + r.querySelector('.states').textContent);
            """));
        // Since when? It is on the overview, and on the service's page, where last month is, too.
        Assert.Contains(", 2 h 30 min", await TextAsync(".cards li"), Ordinal);
        await ClickAsync(".cards a", "etcd");
        await UntilAddressAsync("/service?");
        Assert.Contains(", 2 h 30 min", await TextAsync(".banner"), Ordinal);
        Assert.Contains($"{DateTime.UtcNow.AddDays(-35):yyyy-MM}", await TextAsync("tbody"), Ordinal);
        Assert.Contains("✖ missed", await TextAsync("tbody"), Ordinal);
        // Tell me when it changes; show it on our page; and where the bars lead.
        foreach (var (text, type) in new[] { ("feed", "application/atom+xml"), ("Badge", "image/svg+xml"), ("JSON", "application/json"), ("CSV", "text/csv") })
        {
            var link = await ValueAsync($"return [...document.querySelectorAll('section a')].find(a => a.textContent === '{text}').href");
            using var answer = await ses.Client.GetAsync(link);
            Assert.Equal((HttpStatusCode.OK, type), (answer.StatusCode, answer.Content.Headers.ContentType?.MediaType));
        }
        await _browser.RunAsync("[...document.querySelectorAll('svg.tall a')].at(-1).dispatchEvent(new MouseEvent('click'))");
        await UntilAddressAsync($"/day/{DateTime.UtcNow:yyyy-MM-dd}");
        Assert.Contains("etcd node", await PageAsync(), Ordinal);
    }

    [Fact]
    public async Task SearchAndRangeChangeTheAddressAndWhatIsShown()
    {
        await using var ses = await StartAsync();
        var odd = Node with { Service = "a+b & \"c\" 100 %" };
        await RecordAsync(ses, Node, ("up", 5.5));
        await RecordAsync(ses, odd, ("up", 50.5), ("down", 49.5), ("up", 47.5));
        await OpenAsync(ses);
        Assert.Equal(2, await CountAsync("a.row[href^='s/']"));
        await _browser.RunAsync("document.querySelector('#search').focus()");
        await _browser.TypeAsync("B & \"C\" 100 %" + Browser.Enter);
        await UntilAddressAsync("search=B+%26+%22C%22+100+%25");
        Assert.Equal(1, await CountAsync("a.row"));
        await ClickAsync("nav a", "7d");
        await UntilAddressAsync("range=7d&search=B%20%26%20%22C%22%20100%20%25");
        Assert.Equal(1, await CountAsync("a.row"));
        Assert.Equal("1 outage, 2 h 0 min", await ValueAsync("return document.querySelector('a.row svg').getAttribute('aria-label')"));
        Assert.Equal("B & \"C\" 100 %", await ValueAsync("return document.querySelector('#search').value"));
        await _browser.RunAsync("document.querySelector('#search').select()");
        await _browser.TypeAsync("no such" + Browser.Enter);
        await UntilAddressAsync("range=7d&search=no+such");
        Assert.Contains("No service has “no such” in its names.", await PageAsync(), Ordinal);
    }

    // ---- The live line ----

    /// <summary>What a reader has done with the page.</summary>
    private Task<string> StateAsync() => ValueAsync("""
        const field = document.querySelector('#search');
        return [scrollY, field.value, field.selectionStart, document.activeElement.id, history.length,
            document.querySelectorAll('details[open]').length, performance.timeOrigin].join();
        """);

    private Task UntilFrameAsync(string condition) => Wait.UntilAsync(async () => await ValueAsync(
        $"const frame = frames[0].document; return frame.readyState === 'complete' && ({condition})") == "True", Soon, condition);

    /// <summary>Renewed by its own Refresh, which this proxy makes a second, and by script, as often as it is in five minutes.</summary>
    [Fact]
    public async Task ReaderKeepsAllOverRenewalsAndARestart()
    {
        await using var ses = await StartAsync();
        await RecordAsync(ses, Plain(40).Select(s => (s, "down", 2.5)));
        await using var proxy = new SubPath(ses.Client.BaseAddress!, refresh: "1");
        foreach (var root in new[] { proxy.Root, ses.Client.BaseAddress! })
        {
            await _browser.ResizeAsync(1000, 500);
            await _browser.OpenAsync(root);
            await _browser.RunAsync("""
                document.querySelector('details').open = true;
                document.querySelector('#search').focus();
                """);
            await _browser.TypeAsync("some");
            await _browser.RunAsync("document.querySelector('#search').setSelectionRange(2, 2); scrollTo(0, 300);");
            await UntilFrameAsync("frame.body.innerText.startsWith('No change since')");
            var before = await StateAsync();
            Assert.StartsWith("300,some,2,search,", before, Ordinal);
            await RecordAsync(ses, Node with { Location = $"{root.Port}" }, ("down", 0.001));
            for (var renewal = 0; renewal < (root == proxy.Root ? 2 : 10); renewal++)
            {
                await _browser.RunAsync(root == proxy.Root ? "frames[0].isOld = true" : "frames[0].isOld = true; frames[0].location.reload()");
                await UntilFrameAsync("!frames[0].isOld && frame.body.innerText.startsWith('1 change since')");
            }
            Assert.Equal(before, await StateAsync());
        }

        // Not updated for 75 s: it says so.
        const string IsStale = "getComputedStyle(frame.querySelector('.stale')).visibility === 'visible'";
        await UntilFrameAsync($"!({IsStale}) && frame.getAnimations().length === 1");
        await _browser.RunAsync("frames[0].document.getAnimations()[0].currentTime = 76000");
        await UntilFrameAsync(IsStale);

        // A refused connection leaves the frame dead, until the page is opened anew; nothing else is lost.
        var state = await StateAsync();
        ses.Kill(Signal.Terminate);
        await ses.Child.ExitAsync(Soon);
        await _browser.RunAsync("frames[0].location.reload()");
        await Wait.UntilAsync(async () => await ValueAsync("return document.querySelector('iframe').contentDocument === null") == "True", Soon, "the frame to fail");
        Assert.Equal(state, await StateAsync());
        await ses.RestartAsync();
        Assert.Equal(state, await StateAsync());
        await _browser.RunAsync("location.reload()");
        await UntilFrameAsync("frame.body.innerText.startsWith('No change since')");
        // Its link opens the page around it.
        await RecordAsync(ses, Node with { Location = "new" }, ("down", 0.001));
        await _browser.RunAsync("frames[0].location.reload()");
        await UntilFrameAsync("frame.body.innerText.startsWith('1 change since')");
        await _browser.RunAsync("frames[0].document.querySelector('a').click()");
        await UntilFrameAsync("frame.body.innerText.startsWith('No change since')");
        await _browser.ConsoleAsync();
    }

    // ---- Where it stands ----

    [Fact]
    public async Task PagesWorkUnderAPathOfAProxy()
    {
        await using var ses = await StartAsync();
        await RecordAsync(ses, Node, ("up", 5.5), ("down", 2.5), ("up", 1));
        await using var proxy = new SubPath(ses.Client.BaseAddress!);
        await _browser.OpenAsync(proxy.Root);
        await AssertLinksStayAsync();
        await ClickAsync("h3 a", "-");
        await UntilAddressAsync("/ses/day/");
        await AssertLinksStayAsync();
        await ClickAsync(".outages a", "etcd");
        await UntilAddressAsync("/ses/service?");
        await AssertLinksStayAsync();
        await ClickAsync("header a", "p01-dev");
        await UntilAddressAsync("/ses/platform?");
        await AssertLinksStayAsync();
        await ClickAsync("header a", "Service status");
        await UntilAddressAsync("/ses/");
        await _browser.RunAsync("document.querySelector('#search').focus()");
        await _browser.TypeAsync("node" + Browser.Enter);
        await UntilAddressAsync("/ses/?range=30d&search=node");
        Assert.Equal(1, await CountAsync("a.row"));

        async Task AssertLinksStayAsync()
        {
            using var client = new HttpClient();
            foreach (var link in (await LinksAsync()).Append(await ValueAsync("return document.querySelector('iframe')?.src ?? location.href")))
            {
                Assert.StartsWith(proxy.Root.AbsoluteUri, link, Ordinal);
                using var answer = await client.GetAsync(link);
                Assert.True(answer.StatusCode == HttpStatusCode.OK, link);
            }
        }
    }

    [Fact]
    public async Task PagesAskForCredentialsAsTheWebhookDoes()
    {
        await using var ses = await StartAsync("--auth-mode", "basic", "--password", "right");
        foreach (var path in new[] { "", "platform", "service", "outages", "day/2026-11-14", "now" })
        {
            using var answer = await ses.Client.GetAsync(path);
            Assert.Equal(HttpStatusCode.Unauthorized, answer.StatusCode);
            Assert.Equal("Basic", Assert.Single(answer.Headers.WwwAuthenticate).Scheme);
        }
        await _browser.OpenAsync(new Uri($"http://admin:right@127.0.0.1:{ses.Port}/"));
        Assert.Equal("No service yet", await TextAsync(".banner"));
        // The browser goes on to give them by itself, in the frame too.
        await OpenAsync(ses, "?range=7d");
        Assert.Equal("No service yet", await TextAsync(".banner"));
        await UntilFrameAsync("frame.body.innerText.startsWith('No change since')");
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
        Assert.Equal("✖ The only service is down", await TextAsync(".banner strong"));
    }

    [Fact]
    public async Task AddressesOfTheDocumentsAreAnswered()
    {
        await using var ses = await StartAsync();
        await RecordAsync(ses, new ServiceKey("INS", "shop", "checkout", "Down", "n1:80"), ("up", 5), ("down", 4), ("up", 2));
        var commands = DocsPage.Named("page").CodeOf("Addresses", "sh");
        Assert.Equal(6, commands.Length);
        foreach (var command in commands)
        {
            var (exit, output) = await ses.BashAsync(command);
            Assert.Equal(0, exit);
            Assert.Contains("<h1>", output, Ordinal);
        }
    }

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
        await _browser.PreferAsync("dark", media: "print");
        Assert.Equal("0", await ValueAsync("""
            return [...document.querySelectorAll('form,nav,iframe,footer,button,.skip')].filter(e => e.checkVisibility()).length;
            """));
        // A dark page is dark on screens only.
        Assert.Equal("rgb(20, 24, 29)", await ValueAsync("return getComputedStyle(document.body).color"));
        Assert.Equal(40, await CountAsync("svg[role=img]"));
    }
}
