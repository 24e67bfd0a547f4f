using System.Net.Http.Headers;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace Ses.Tests.Support;

/// <summary>
/// A real Chromium without a screen and with an empty profile, driven by chromedriver (W3C WebDriver, and
/// Chromium's own protocol for what WebDriver has no word for). Both end with this object.
/// </summary>
internal sealed class Browser : IAsyncDisposable
{
    /// <summary>Keys that have no character, as WebDriver names them.</summary>
    public const string Tab = "\ue004", Enter = "\ue007";

    /// <summary>For each step: also the first start of a browser on a busy machine.</summary>
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(60);

    private static readonly string[] Flags =
    [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    ];

    private readonly HttpClient _http = new() { Timeout = Patience };
    private readonly string _profile = Directory.CreateTempSubdirectory("ses-browser-").FullName;
    private readonly ChildProcess _driver;
    private string _session = "";
    private int _browser;

    private Browser()
    {
        var port = FreePort.Next();
        _http.BaseAddress = new Uri($"http://127.0.0.1:{port}/");
        // What the browser keeps outside its profile is to go with it too.
        var home = new Dictionary<string, string?>
        {
            ["HOME"] = _profile,
            ["XDG_CONFIG_HOME"] = _profile,
            ["XDG_CACHE_HOME"] = _profile,
            ["TMPDIR"] = _profile,
        };
        _driver = ChildProcess.Start("chromedriver", [$"--port={port}"], home);
    }

    /// <exception cref="InvalidOperationException">It cannot be started; the message says why.</exception>
    public static async Task<Browser> StartAsync()
    {
        var browser = new Browser();
        try
        {
            await Wait.UntilAsync(browser.IsReadyAsync, Patience, "chromedriver");
            await browser.BeginAsync();
            return browser;
        }
        catch
        {
            await browser.DisposeAsync();
            throw;
        }
    }

    /// <summary>Opens an address and waits until it is loaded.</summary>
    public Task OpenAsync(Uri address) =>
        AskAsync("url", new JsonObject { ["url"] = address.OriginalString });

    public async Task<Uri> AddressAsync() => new((await RunAsync("return location.href")).GetString()!);

    /// <summary>Runs the body of a function in the page, even if the page itself may run none.</summary>
    /// <returns>What it returns, as JSON.</returns>
    public Task<JsonElement> RunAsync(string script, params JsonNode?[] arguments) =>
        AskAsync("execute/sync", new JsonObject { ["script"] = script, ["args"] = new JsonArray(arguments) });

    /// <summary>What a script returns that returns texts.</summary>
    public async Task<List<string>> TextsAsync(string script) =>
        [.. (await RunAsync(script)).EnumerateArray().Select(t => t.GetString()!)];

    /// <summary>Makes the view so large, also smaller than a window; a narrow one is a phone's.</summary>
    public Task ResizeAsync(int width, int height = 900) => DevToolsAsync(
        "Emulation.setDeviceMetricsOverride", new JsonObject
        {
            ["width"] = width,
            ["height"] = height,
            ["deviceScaleFactor"] = 1,
            ["mobile"] = width < 500,
        });

    /// <param name="scheme">light or dark.</param>
    /// <param name="media">screen or print.</param>
    public Task PreferAsync(string scheme, string media = "screen") => DevToolsAsync(
        "Emulation.setEmulatedMedia", new JsonObject
        {
            ["media"] = media,
            ["features"] = new JsonArray(
                new JsonObject { ["name"] = "prefers-color-scheme", ["value"] = scheme }),
        });

    /// <summary>Whether pages that are opened from now on may run scripts.</summary>
    public Task AllowScriptsAsync(bool allowed) => DevToolsAsync(
        "Emulation.setScriptExecutionDisabled", new JsonObject { ["value"] = !allowed });

    /// <summary>Types each character, or presses the key that it stands for.</summary>
    public async Task TypeAsync(string keys)
    {
        var strokes = keys.EnumerateRunes().SelectMany(key => new[] { "keyDown", "keyUp" }.Select(
            deed => (JsonNode)new JsonObject { ["type"] = deed, ["value"] = key.ToString() }));
        await AskAsync("actions", new JsonObject
        {
            ["actions"] = new JsonArray(new JsonObject
            {
                ["type"] = "key",
                ["id"] = "keyboard",
                ["actions"] = new JsonArray([.. strokes]),
            }),
        });
    }

    /// <summary>The page as PNG: as far as it can be scrolled to, or what is in view.</summary>
    public async Task<byte[]> PictureAsync(bool whole = true)
    {
        var picture = await DevToolsAsync("Page.captureScreenshot",
            new JsonObject { ["format"] = "png", ["captureBeyondViewport"] = whole });
        return picture.GetProperty("data").GetBytesFromBase64();
    }

    /// <summary>The page as PDF, on paper of the usual size.</summary>
    public async Task<byte[]> PrintAsync() => (await AskAsync("print", [])).GetBytesFromBase64();

    /// <summary>What the console got since it was last asked: errors, offences against the policy.</summary>
    public async Task<List<string>> ConsoleAsync() =>
        [.. (await AskAsync("se/log", new JsonObject { ["type"] = "browser" })).EnumerateArray()
            .Select(line => $"{line.GetProperty("level")} {line.GetProperty("message")}")];

    /// <summary>Whether the page has opened a dialog that waits for an answer.</summary>
    public async Task<bool> HasDialogAsync()
    {
        using var answer = await _http.GetAsync($"session/{_session}/alert/text");
        return answer.IsSuccessStatusCode;
    }

    public Task AnswerDialogAsync() => AskAsync("alert/accept", []);

    public async ValueTask DisposeAsync()
    {
        if (_session != "" && !_driver.HasExited)
        {
            using var answer = await _http.DeleteAsync($"session/{_session}");
        }
        await _driver.DisposeAsync();
        await Wait.UntilAsync(() => !Directory.Exists($"/proc/{_browser}"), Patience, "the browser to end");
        Directory.Delete(_profile, recursive: true);
        _http.Dispose();
    }

    private async Task<bool> IsReadyAsync()
    {
        if (_driver.HasExited)
            throw new InvalidOperationException($"chromedriver ended:\n{_driver.Output}");
        try
        {
            using var answer = await _http.GetAsync("status");
            return answer.IsSuccessStatusCode;
        }
        catch (HttpRequestException)
        {
            return false;
        }
    }

    private async Task BeginAsync()
    {
        var flags = Flags.Append($"--user-data-dir={Path.Combine(_profile, "profile")}")
            .Select(flag => (JsonNode)flag);
        var wanted = new JsonObject
        {
            ["browserName"] = "chrome",
            // A dialog stays, so that a test can see it.
            ["unhandledPromptBehavior"] = "ignore",
            ["goog:loggingPrefs"] = new JsonObject { ["browser"] = "ALL" },
            ["goog:chromeOptions"] = new JsonObject
            {
                ["binary"] = "/usr/bin/chromium",
                ["args"] = new JsonArray([.. flags]),
            },
        };
        var session = await SendAsync("session", new JsonObject
        {
            ["capabilities"] = new JsonObject { ["alwaysMatch"] = wanted },
        });
        _session = session.GetProperty("sessionId").GetString()!;
        _browser = session.GetProperty("capabilities").GetProperty("goog:processID").GetInt32();
    }

    private Task<JsonElement> DevToolsAsync(string method, JsonObject parameters) =>
        AskAsync("goog/cdp/execute", new JsonObject { ["cmd"] = method, ["params"] = parameters });

    private Task<JsonElement> AskAsync(string command, JsonObject body) =>
        SendAsync($"session/{_session}/{command}", body);

    private async Task<JsonElement> SendAsync(string path, JsonObject body)
    {
        using var content = new StringContent(
            body.ToJsonString(), new MediaTypeHeaderValue("application/json"));
        using var answer = await _http.PostAsync(path, content);
        using var json = JsonDocument.Parse(await answer.Content.ReadAsStringAsync());
        var value = json.RootElement.GetProperty("value").Clone();
        return answer.IsSuccessStatusCode ? value : throw new InvalidOperationException(
            $"{path}: {value.GetProperty("error")}: {value.GetProperty("message")}");
    }
}
