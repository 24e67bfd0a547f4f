using System.Net;
using System.Text;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>Notes on the native binary: by command beside a daemon, by HTTP, and through a kill.</summary>
[Trait("Category", "E2E")]
public sealed class NotesEndToEndTests : IDisposable
{
    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(30);

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-notes-").FullName;

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    private async Task<SesProcess> StartAsync()
    {
        var password = Path.Combine(_dir, "editor-password");
        File.WriteAllText(password, "s3cret\n");
        File.SetUnixFileMode(password, UnixFileMode.UserRead);
        var ses = await SesProcess.StartAsync("none", Path.Combine(_dir, "data"), extra: ["--editor-password-file", password]);
        var alerts = Enumerable.Range(1, 5).Select(i => $$"""
            {"status":"firing","labels":{"alertname":"Down","platform":"shop","job":"checkout","instance":"n{{i}}"},
            "startsAt":"{{Rfc3339.Format(DateTime.UtcNow.AddHours(-1))}}"}
            """);
        Assert.Equal(HttpStatusCode.NoContent, (await ses.PostAsync(
            "INS", $$"""{"version":"4","alerts":[{{string.Join(',', alerts)}}]}""")).StatusCode);
        ses.Client.DefaultRequestHeaders.Authorization =
            new("Basic", Convert.ToBase64String(Encoding.UTF8.GetBytes("editor:s3cret")));
        return ses;
    }

    private static Task<HttpResponseMessage> NoteAsync(SesProcess ses, string json) =>
        ses.Client.PostAsync("alerts/INS/notes", new StringContent(json));

    [Fact]
    public async Task ExamplesOfThePageDoWhatItSays()
    {
        await using var ses = await StartAsync();
        var page = DocsPage.Named("reports");
        var commands = page.CodeOf("Notes on the host", "sh").Where(l => l.StartsWith("ses ", Ordinal)).ToList();
        Assert.Equal(4, commands.Count);
        var told = new List<string>();
        foreach (var command in commands)
        {
            // The page shows the id that one got.
            var id = told.Count == 0 ? "--id 3f9a2c71d0 --format table" : "";
            var (exit, output) = await ses.BashAsync($"{SesProcess.Binary} {command[4..]} --data-dir {ses.DataDir} {id}");
            Assert.True(exit == 0, $"{command}\n{output}");
            told.Add(output);
        }
        Assert.Contains(page.CodeOf("Notes on the host", "text").Single(), told[0], Ordinal);
        Assert.Contains("\"version\":2", told[1], Ordinal);
        Assert.Contains("\"to\":\"2026-12-02T03:00:00Z\"", told[1], Ordinal);
        Assert.Contains("\"withdrawn\":true", told[2], Ordinal);
        using var list = JsonDocument.Parse(told[3]);
        Assert.Equal([1, 2, 3], list.RootElement.GetProperty("notes").EnumerateArray().Select(n => n.GetProperty("version").GetInt32()));

        var requests = string.Join('\n', DocsPage.Named("api").CodeOf("Notes", "sh"))
            .Replace("/etc/ses/editor-password", Path.Combine(_dir, "editor-password"), Ordinal).Replace("curl ", "curl -sf ", Ordinal);
        var (code, answers) = await ses.BashAsync(requests);
        Assert.True(code == 0, answers);
        Assert.Contains("\"author\":\"editor\",\"author_name\":\"Jane Doe\"", answers, Ordinal);
        Assert.Contains("the provider's line was cut", answers, Ordinal);
        Assert.Contains("{\"as_of\":", answers, Ordinal);
    }

    [Fact]
    public async Task CommandAndDaemonHaveTheSameNotes()
    {
        await using var ses = await StartAsync();
        async Task<string> UnderAsync() => string.Join(' ', (await JsonOfAsync(ses, "alerts/INS")).GetProperty("services").EnumerateArray()
            .Select(s => s.GetProperty("maintenance").GetString() ?? "none").Distinct());
        Assert.Equal("none", await UnderAsync());
        Assert.Equal(3, (await ses.CommandAsync("status", "--fail-if-down")).Exit);
        for (var i = 0; i < 5; i++)
        {
            var command = $"{SesProcess.Binary} note add --data-dir {ses.DataDir} --id w{i} --kind maintenance --for 1h --service checkout --text work";
            Assert.Equal((0, $"w{i}"), (await ses.BashAsync(command)) is var (code, answer)
                ? (code, JsonDocument.Parse(answer[answer.IndexOf('{', Ordinal)..]).RootElement.GetProperty("id").GetString()) : default);
            // At once, and in the other's eyes.
            Assert.Equal($"w{i}", await UnderAsync());
            Assert.Equal(0, (await ses.CommandAsync("status", "--fail-if-down")).Exit);
            Assert.Equal(HttpStatusCode.Created, (await NoteAsync(ses, $$"""{"id":"w{{i}}","withdrawn":true,"version":1}""")).StatusCode);
            Assert.Equal("none", await UnderAsync());
            Assert.Equal(3, (await ses.CommandAsync("status", "--fail-if-down")).Exit);
        }
        // A SeS that runs says the same.
        Assert.Equal(HttpStatusCode.Created, (await NoteAsync(ses, """{"id":"w0","withdrawn":false}""")).StatusCode);
        var (down, _) = await ses.BashAsync($"{SesProcess.Binary} status --fail-if-down --partition INS --url {ses.Client.BaseAddress}alerts");
        Assert.Equal(0, down);
        Assert.Equal(HttpStatusCode.Created, (await NoteAsync(ses, """{"id":"w0","withdrawn":true}""")).StatusCode);
        async Task RefusedAsync(int exit, string said, string arguments)
        {
            var (code, output) = await ses.BashAsync($"{SesProcess.Binary} note {arguments} --data-dir {ses.DataDir}");
            Assert.Contains(said, output, Ordinal);
            Assert.Equal(exit, code);
        }

        await RefusedAsync(1, "id: there is no note 'x' in partition 'INS'", "withdraw --id x");
        await RefusedAsync(2, "--id is missing", "withdraw");
        await RefusedAsync(2, "--kind: note 'w0' is of kind maintenance, which cannot be changed", "add --id w0 --kind comment");
        await RefusedAsync(2, "--text: missing; give the text of the note", "add --kind comment");
        await RefusedAsync(2, "--to: 'tomorrow' is not valid; allowed:", "add --kind comment --to tomorrow --text t");
        await RefusedAsync(2, "--for: 'long' is not valid; allowed: a duration such as 4h", "add --kind comment --for long --text t");
        await RefusedAsync(2, "--to: '' is not valid", "add --kind comment --to '' --text t");
        await RefusedAsync(2, "--partition: SeS has never received an alert for 'TYPO'; there are: INS", "add --partition TYPO --kind comment --text t");
        // What is added holds again.
        Assert.Contains("\"withdrawn\":false", (await ses.BashAsync(
            $"{SesProcess.Binary} note add --id w0 --data-dir {ses.DataDir} --from 2026-12-05T22:00 --tz Europe/Berlin --for 90m")).Output, Ordinal);
        await RefusedAsync(2, "--for and --to cannot be used together", "add --kind comment --for 1h --to 2026-12-01 --text t");
        await RefusedAsync(2, "note add, note list, note withdraw are", "");
    }

    private static async Task<JsonElement> JsonOfAsync(SesProcess ses, string path)
    {
        using var json = JsonDocument.Parse(await ses.Client.GetStringAsync(path));
        return json.RootElement.Clone();
    }

    [Fact]
    public async Task NoteThatWasAcknowledgedIsThereAfterAKillAndOneThatTheDiskRefusesIsNot()
    {
        await using var ses = await StartAsync();
        for (var i = 0; i < 3; i++)
        {
            Assert.Equal(HttpStatusCode.Created, (await NoteAsync(ses,
                $$"""{"id":"k{{i}}","kind":"comment","from":"2026-11-22T08:00Z","text":"t"}""")).StatusCode);
            ses.Kill(Signal.Kill);
            await ses.RestartAsync();
            Assert.Equal(i + 1, (await JsonOfAsync(ses, "alerts/INS/notes")).GetProperty("notes").GetArrayLength());
        }
        async Task LimitAsync(string bytes) => Assert.Equal(0, (await ses.BashAsync($"prlimit --pid={ses.Child.Id} --fsize={bytes}:unlimited")).Exit);
        await LimitAsync("0");
        const string Another = """{"id":"full","kind":"comment","from":"2026-11-22T08:00Z","text":"t"}""";
        Assert.Equal(HttpStatusCode.ServiceUnavailable, (await NoteAsync(ses, Another)).StatusCode);
        await LimitAsync("unlimited");
        await Wait.UntilAsync(async () => (await NoteAsync(ses, Another)).StatusCode == HttpStatusCode.Created, Soon, "the disk to take it");
        Assert.Equal(4, (await JsonOfAsync(ses, "alerts/INS/notes?versions=true")).GetProperty("notes").GetArrayLength());
        Assert.Equal(0, (await ses.CommandAsync("check")).Exit);
    }
}
