using System.Net;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What docs/fleet.md shows, on the native binary: a pair, a hub of it, and who forwards nothing.</summary>
[Trait("Category", "E2E")]
public sealed class ForwardingEndToEndTests : IDisposable
{
    private const StringComparison Ordinal = StringComparison.Ordinal;

    private static readonly TimeSpan Soon = TimeSpan.FromMinutes(1);

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-forwarding-").FullName;
    private readonly DocsPage _page = DocsPage.Named("fleet");
    private readonly Dictionary<string, int> _ports = new()
    {
        ["ses-1"] = FreePort.Next(),
        ["ses-2"] = FreePort.Next(),
        ["ses-hub"] = FreePort.Next(),
        ["ses-zrh"] = FreePort.Next(),
    };

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    /// <summary>With the ports and folders of this test, and without TLS.</summary>
    private string Here(string text)
    {
        foreach (var (name, port) in _ports)
            text = Regex.Replace(text, $"https?://{name}:8888", $"http://127.0.0.1:{port}");
        return text.Replace("/etc/ses/", $"{_dir}/", Ordinal);
    }

    /// <summary>The commands of a chapter, each on a line.</summary>
    private List<string> Commands(string chapter, DocsPage? page = null) =>
        [.. Here(string.Join('\n', (page ?? _page).CodeOf(chapter, "sh")).Replace("\\\n", "", Ordinal)).Split('\n').Where(l => !l.StartsWith('#'))];

    private async Task<SesProcess> StartAsync(string command, string name)
    {
        Assert.StartsWith("ses ", command, Ordinal);
        var flags = command.Split(' ', StringSplitOptions.RemoveEmptyEntries)[1..].ToList();
        foreach (var flag in new[] { "--data-dir", "--onix-url" })
            flags.RemoveRange(flags.IndexOf(flag), 2);
        return await SesProcess.StartAsync("none", Directory.CreateDirectory(Path.Combine(_dir, name)).FullName, _ports[name], [.. flags]);
    }

    private static async Task FireAsync(SesProcess ses, string service) => Assert.Equal(HttpStatusCode.NoContent, (await ses.PostAsync("INS", $$$"""
        {"version":"4","alerts":[{"status":"firing","labels":{"alertname":"Down","job":"{{{service}}}"},"startsAt":"{{{Rfc3339.Format(DateTime.UtcNow)}}}"}]}
        """)).StatusCode);

    private static Task HasAsync(SesProcess ses, string partition, params string[] services) => Wait.UntilAsync(async () =>
    {
        using var answer = await ses.Client.GetAsync($"alerts/{partition}");
        if (!answer.IsSuccessStatusCode)
            return false;
        using var json = JsonDocument.Parse(await answer.Content.ReadAsStringAsync());
        return json.RootElement.GetProperty("services").EnumerateArray().Select(s => s.GetProperty("service").GetString()).Order().SequenceEqual(services.Order());
    }, Soon, $"{string.Join(", ", services)} in {partition} of port {ses.Port}");

    [Fact]
    public async Task ExamplesOfThePageDoWhatItSays()
    {
        var (pair, hubs) = (Commands("A pair"), Commands("A hub"));
        await using (var made = ChildProcess.Start("bash", ["-euc", pair[0]], SesProcess.Unset))
            Assert.True(await made.ExitAsync(Soon) == 0, made.Output);

        // A pair: each has what the other was told.
        await using var first = await StartAsync(pair[1], "ses-1");
        await using var second = await StartAsync(pair[2], "ses-2");
        await FireAsync(first, "a");
        await FireAsync(second, "b");
        foreach (var ses in new[] { first, second })
            await HasAsync(ses, "INS", "a", "b");

        // A site and its hub.
        await using var hub = await StartAsync(hubs[0], "ses-hub");
        await using var site = await StartAsync(hubs[1], "ses-zrh");
        await FireAsync(site, "c");
        await HasAsync(hub, "zrh-INS", "c");
        Assert.Contains(Lines(hub), l => l.Contains("\"by\":\"ses-zrh\",\"partition\":\"zrh-INS\"", Ordinal));

        // How targets and peers are.
        var health = string.Join('\n', Commands("When a target fails")).Replace(" | jq '.forward, .peers'", "", Ordinal);
        await Wait.UntilAsync(async () => (await first.BashAsync(health)).Output.Contains("\"state\":\"sent\",\"backlog\":0", Ordinal), Soon, "all to be sent");
        using (var json = JsonDocument.Parse((await first.BashAsync(health)).Output))
        {
            foreach (var (name, shown) in new[] { "forward", "peers" }.Zip(_page.CodeOf("When a target fails", "json")))
            {
                using var example = JsonDocument.Parse(Here(shown));
                Assert.Equal(Row(example.RootElement), Row(json.RootElement.GetProperty(name)));
            }
        }

        // Facts by hand: an export of one is what another knows.
        var import = string.Join('\n', Commands("Import", DocsPage.Named("api"))).Replace("ses export --data-dir /var/lib/ses",
            $"{SesProcess.Binary} export --data-dir {second.DataDir}", Ordinal);
        var (exit, told) = await second.BashAsync(import);
        Assert.True(exit == 0, told);
        using var answer = JsonDocument.Parse(told);
        using var documented = JsonDocument.Parse(DocsPage.Named("api").CodeOf("Import", "json").Single());
        Assert.Equal(documented.RootElement.EnumerateObject().Select(f => f.Name), answer.RootElement.EnumerateObject().Select(f => f.Name));
        Assert.Equal((0, Lines(second).Count, 0), (Count("new"), Count("known"), Count("refused")));
        Assert.Equal(Lines(first).Count, Lines(second).Count);

        int Count(string name) => answer.RootElement.GetProperty(name).GetInt32();
        // Of one row, all but times.
        static string Row(JsonElement rows) => string.Join(' ', rows.EnumerateArray().Single().EnumerateObject()
            .Select(f => DateTime.TryParse(f.Value.ToString(), out _) ? f.Name : f.ToString()));
    }

    /// <summary>A peer whose ways are those of this test, with a receiver at their end.</summary>
    private async Task<(SesProcess Sender, SesProcess Receiver)> StartTwoAsync(int way, int port)
    {
        var password = Path.Combine(_dir, "password");
        await File.WriteAllTextAsync(password, "imp0rt\n");
        File.SetUnixFileMode(password, UnixFileMode.UserRead);
        var receiver = await SesProcess.StartAsync("none", Directory.CreateDirectory(Path.Combine(_dir, "two")).FullName, port,
            ["--name", "two", "--import-password-file", password]);
        return (await SesProcess.StartAsync("none", Directory.CreateDirectory(Path.Combine(_dir, "one")).FullName, null,
            ["--name", "one", "--peer", $"http://127.0.0.1:{way}", "--peer-username", "import", "--peer-password-file", password]), receiver);
    }

    private static Task HasAllAsync(SesProcess receiver, SesProcess sender) =>
        Wait.UntilAsync(() => Lines(receiver).Count >= Lines(sender).Count, 2 * Soon, "all to arrive");

    /// <summary>
    /// A proxy that takes 1 MiB and passes on what comes as it comes. It reads on after its 413, or closes at once,
    /// which may look like a connection that was lost.
    /// </summary>
    [Theory]
    [InlineData("on")]
    [InlineData("off")]
    public async Task PostsAreAsLargeAsAProxyTakes(string lingering)
    {
        var (way, port) = (FreePort.Next(), FreePort.Next());
        var temporary = string.Concat(new[] { "client_body", "proxy", "fastcgi", "uwsgi", "scgi" }.Select(n => $"{n}_temp_path {_dir}/{n}; "));
        await File.WriteAllTextAsync(Path.Combine(_dir, "nginx.conf"), $$"""
            daemon off; master_process off; pid {{_dir}}/pid; error_log stderr;
            events {}
            http { access_log off; {{temporary}} client_max_body_size 1m; lingering_close {{lingering}};
            server { listen 127.0.0.1:{{way}};
            location / { proxy_pass http://127.0.0.1:{{port}}; proxy_request_buffering off; proxy_http_version 1.1; } } }
            """);
        await using var nginx = ChildProcess.Start("nginx", ["-e", "stderr", "-c", Path.Combine(_dir, "nginx.conf")]);
        var (one, two) = await StartTwoAsync(way, port);
        await using var sender = one;
        await using var receiver = two;
        two.Kill(Signal.Stop);
        for (var at = 0; at < 6000; at += 500)
        {
            var alerts = Enumerable.Range(at, 500).Select(i => $$$"""
                {"status":"firing","labels":{"alertname":"Down","job":"j{{{i}}}","text":"{{{new string('x', 300)}}}"},
                "startsAt":"{{{Rfc3339.Format(DateTime.UtcNow)}}}"}
                """);
            Assert.Equal(HttpStatusCode.NoContent,
                (await sender.PostAsync("INS", $$"""{"version":"4","alerts":[{{string.Join(',', alerts)}}]}""")).StatusCode);
        }
        two.Kill(Signal.Continue);
        await HasAllAsync(receiver, sender);
        Assert.DoesNotContain("result=\"set_aside\"", await sender.Client.GetStringAsync("metrics"), Ordinal);
    }

    [Fact]
    public async Task WhatTheDiskOfTheReceiverRefusesComesLater()
    {
        var port = FreePort.Next();
        var (one, two) = await StartTwoAsync(port, port);
        await using var sender = one;
        await using var receiver = two;
        await FireAsync(sender, "a");
        await HasAsync(receiver, "INS", "a");
        async Task LimitAsync(string bytes) =>
            Assert.Equal(0, (await receiver.BashAsync($"prlimit --pid={receiver.Child.Id} --fsize={bytes}:unlimited")).Exit);
        await LimitAsync("0");
        await FireAsync(sender, "b");
        await Wait.UntilAsync(async () => (await sender.Client.GetStringAsync("health?format=json")).Contains("answered 503", Ordinal),
            Soon, "a refusal");
        await LimitAsync("unlimited");
        await HasAsync(receiver, "INS", "a", "b");
        Assert.Equal(0, (await receiver.CommandAsync("check")).Exit);
    }

    private static List<string> Lines(SesProcess ses)
    {
        using var snapshot = Snapshot.Open(ses.DataDir, DateTime.UtcNow);
        return [.. FactLines.Read(snapshot, null, null, null)];
    }
}
