using System.Globalization;
using System.Net;
using System.Text;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>Notes: which hold when, how they are written, and what they change in answers.</summary>
public sealed class NotesTests
{
    private const string Editor = "editor", Password = "p w:ö";
    private static readonly ServiceFilter All = new(null, null, null, null, null);

    private static Host WithEditor(params string[] flags) => Host.Serving(["--editor-password", Password, .. flags]);

    private static Task<Answer> NoteAsync(Host host, string body, string partition = "INS") =>
        host.PostAsync(body, $"/alerts/{partition}/notes", Host.Basic(Editor, Password));

    private static Task<Answer> NotesAsync(Host host, string query = "") =>
        host.SendAsync(HttpMethod.Get, $"/alerts/INS/notes{query}", authorization: Host.Basic(Editor, Password));

    private static DateTime At(string time) => DateTime.Parse(
        $"2026-11-22T{time}Z", CultureInfo.InvariantCulture, DateTimeStyles.AdjustToUniversal);

    /// <summary>A stock alert that fired from a time to another, or still does.</summary>
    private static async Task FireAsync(Host host, string service, string from, string? to = null, string location = "n1") =>
        Assert.Equal(204, (await host.PostAsync($$"""
            {"version":"4","alerts":[{"status":"{{(to == null ? "firing" : "resolved")}}","labels":{"alertname":"Down","platform":"shop",
            "job":"{{service}}","instance":"{{location}}"},"annotations":{"summary":"{{service}} is down"},
            "startsAt":"2026-11-22T{{from}}:00Z"{{(to == null ? "" : $",\"endsAt\":\"2026-11-22T{to}:00Z\"")}}}]}
            """)).Code);

    // ---- Which versions hold ----

    private static NoteVersion Version(string from, string? to, string received, bool isWithdrawn = false, string? platform = null) => new(
        "n", NoteKind.Maintenance, At(from), to == null ? null : At(to), new("INS", platform, null, null, null), null, "t", "a", null,
        isWithdrawn, At(received));

    private static string Spans(Interval[] spans) => string.Join(' ', spans.Select(s => $"{UnixTime.Read(s.From):HH:mm}-"
        + (s.To == UnixTime.Open ? "" : $"{UnixTime.Read(s.To):HH:mm}")));

    [Fact]
    public void WorkIsAnnouncedBeforeNeverAfter()
    {
        void Holds(string expected, params NoteVersion[] versions) => Assert.Equal(expected, Spans(new Note(versions).Announced(_ => true)));
        Holds("10:00-12:00", Version("10:00", "12:00", "09:00"));
        Holds("10:30-12:00", Version("10:00", "12:00", "10:30"));
        Holds("", Version("10:00", "12:00", "13:00"));
        Holds("10:00-", Version("10:00", null, "09:00"));
        // An end moved later counts from when that was said: in time, and once it was over.
        Holds("10:00-14:00", Version("10:00", "12:00", "09:00"), Version("10:00", "14:00", "11:00"));
        Holds("10:00-12:00 13:00-14:00", Version("10:00", "12:00", "09:00"), Version("10:00", "14:00", "13:00"));
        // One moved sooner counts back, a begin moved later too.
        Holds("10:00-11:00", Version("10:00", "12:00", "09:00"), Version("10:00", "11:00", "12:30"));
        Holds("10:30-12:00", Version("10:00", "12:00", "09:00"), Version("10:30", "12:00", "13:00"));
        // A begin moved sooner after the fact does not.
        Holds("10:00-12:00", Version("10:00", "12:00", "09:00"), Version("08:00", "12:00", "13:00"));
        Holds("", Version("10:00", "12:00", "09:00"), Version("10:00", "12:00", "11:00", isWithdrawn: true));
        // Taken back, it holds from then on, and before it was withdrawn.
        Holds("10:00-10:30 11:00-12:00", Version("10:00", "12:00", "09:00"), Version("10:00", "12:00", "10:30", isWithdrawn: true),
            Version("10:00", "12:00", "11:00"));
        // Moved to another time.
        Holds("20:00-21:00", Version("10:00", "12:00", "09:00"), Version("20:00", "21:00", "09:30"));
        // To other services: for each only while both versions are about it.
        var moved = new Note([Version("10:00", "12:00", "09:00", platform: "a"), Version("10:00", "12:00", "11:00", platform: "b*")]);
        Assert.Equal("", Spans(moved.Announced(f => f.Matches(new("INS", "a", "s", "f", "")))));
        Assert.Equal("11:00-12:00", Spans(moved.Announced(f => f.Matches(new("INS", "bc", "s", "f", "")))));
    }

    [Theory]
    [InlineData(null, null, true)]
    [InlineData("shop", null, true)]
    [InlineData("sho", null, false)]
    [InlineData("sho*", "web", true)]
    [InlineData("*", "w*", true)]
    [InlineData("Shop", null, false)]
    [InlineData("shop*", "web*", true)]
    [InlineData("shopx*", null, false)]
    public void FilterTakesWhatIsNamedOrBeginsSo(string? platform, string? service, bool takes)
    {
        var filter = new NoteFilter("INS", platform, service, null, null);
        Assert.Equal(takes, filter.Matches(new("INS", "shop", "web", "f", "n1")));
        Assert.False(filter.Matches(new("DEV", "shop", "web", "f", "n1")));
    }

    // ---- By HTTP ----

    [Fact]
    public async Task VersionsHaveTheirShape()
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "08:00", "09:00");
        var made = await NoteAsync(host, """
            {"id":"up-1","kind":"maintenance","from":"2026-11-22T22:00+01:00","to":"2026-11-23T02:00:00Z","platform":"sh*","service":"web",
            "text":"Upgrade \"2\"","author_name":"Jané"}
            """);
        Assert.Equal((201, "application/json"), (made.Code, made.Type?.ToString()));
        Assert.Equal("""
            {"id":"up-1","version":1,"kind":"maintenance","from":"2026-11-22T21:00:00Z","to":"2026-11-23T02:00:00Z","partition":"INS","platform":"sh*","service":"web","facet":null,"location":null,"status":null,"text":"Upgrade \"2\"","author":"editor","author_name":"Jané","withdrawn":false,"received":"2026-11-22T12:00:00Z","recorded":"2026-11-22T12:00:00Z","matches":1,"warnings":[]}
            """ + "\n", made.Body);
        // Said again: nothing is stored.
        var again = await NoteAsync(host, """{"id":"up-1","text":"Upgrade \"2\"","platform":"sh*"}""");
        Assert.Equal((200, made.Body), (again.Code, again.Body));
        // What is left out stays; null is any, and open.
        var changed = await NoteAsync(host, """{"id":"up-1","to":null,"platform":null,"version":1}""");
        Assert.Equal((201, 2, JsonValueKind.Null, JsonValueKind.Null, "web"), (changed.Code, changed.Json.GetProperty("version").GetInt32(),
            changed.Json.GetProperty("to").ValueKind, changed.Json.GetProperty("platform").ValueKind, changed.Json.GetProperty("service").GetString()));
        Assert.Equal("version: note 'up-1' is at version 2, not 1.", (await NoteAsync(host, """{"id":"up-1","text":"x","version":1}""")).Problem(409));
        Assert.Equal(201, (await NoteAsync(host, """{"id":"up-1","withdrawn":true}""")).Code);
        var list = await NotesAsync(host, "?versions=true");
        Assert.Equal("2026-11-22T12:00:00Z", list.Json.GetProperty("as_of").GetString());
        Assert.Equal([1, 2, 3], list.Json.GetProperty("notes").EnumerateArray().Select(n => n.GetProperty("version").GetInt32()));
        Assert.True((await NotesAsync(host)).Json.GetProperty("notes").EnumerateArray().Single().GetProperty("withdrawn").GetBoolean());
    }

    [Fact]
    public async Task NotesOfADifferentTimeKindOrServiceAreNotListed()
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "08:00", "09:00");
        Assert.Equal(201, (await NoteAsync(host,
            """{"id":"a","kind":"comment","from":"2026-11-22T08:00Z","to":"2026-11-22T09:00Z","service":"web*","text":"t"}""")).Code);
        host.Clock.Advance(TimeSpan.FromMinutes(1));
        Assert.Equal(201, (await NoteAsync(host, """{"id":"b","kind":"excluded","from":"2026-11-22T08:30Z","to":"2026-11-22T09:00Z","text":"t"}""")).Code);
        async Task ListsAsync(string expected, string query) => Assert.Equal(expected, string.Join(' ',
            (await NotesAsync(host, query)).Json.GetProperty("notes").EnumerateArray().Select(n => n.GetProperty("id").GetString())));
        await ListsAsync("a b", "");
        await ListsAsync("a", "?kind=comment");
        await ListsAsync("b", "?id=b");
        await ListsAsync("a b", "?service=web1");
        await ListsAsync("b", "?service=db");
        await ListsAsync("a", "?to=2026-11-22T08:30Z");
        await ListsAsync("", "?from=2026-11-22T09:00Z");
        await ListsAsync("a", "?as_of=2026-11-22T12:00:30Z");
        Assert.Equal("kind: 'x' is not valid; allowed: maintenance, excluded, correction, comment, retired.", (await NotesAsync(host, "?kind=x")).Problem(400));
        Assert.StartsWith("limit is not a parameter of notes;", (await NotesAsync(host, "?limit=1")).Problem(400), Ordinal);
        Assert.StartsWith("SeS has never received anything", (await host.SendAsync(
            HttpMethod.Get, "/alerts/OTHER/notes", authorization: Host.Basic(Editor, Password))).Problem(404), Ordinal);
    }

    [Theory]
    [InlineData("x", "The body is not JSON.")]
    [InlineData("[]", "The body is not a JSON object.")]
    [InlineData("""{"kind":"comment","from":"2026-11-22","text":"t"} x""", "The body is not JSON.")]
    [InlineData("""{"author":"me"}""", "author is not a field of a note; allowed: id, version, kind,")]
    [InlineData("""{"kind":"outage"}""", "kind: 'outage' is not valid; allowed: maintenance, excluded, correction, comment, retired.")]
    [InlineData("""{"kind":1}""", "kind is of the wrong type.")]
    [InlineData("""{"withdrawn":"true"}""", "withdrawn is of the wrong type.")]
    [InlineData("""{"version":"1"}""", "version is of the wrong type.")]
    [InlineData("""{"version":1.5}""", "version: '1.5' is not valid; allowed: a whole number.")]
    [InlineData("""{"text":"a","text":"b"}""", "text is given twice.")]
    [InlineData("""{"from":"yesterday"}""", "from: 'yesterday' is not valid; allowed: RFC 3339")]
    [InlineData("""{"from":"1999-12-31"}""", "from: '1999-12-31' is not valid; allowed: RFC 3339")]
    [InlineData("""{"kind":"comment","from":"2026-11-22","to":"2040-01-01","text":"t"}""", "to: '2040-01-01' is not valid; allowed: RFC 3339")]
    [InlineData("""{"from":"2026-11-22","text":"t"}""", "kind: missing; give maintenance or excluded or")]
    [InlineData("""{"kind":"comment","text":"t"}""", "from: missing; give the time when the note begins")]
    [InlineData("""{"kind":"comment","from":"2026-11-22"}""", "text: missing; give the text of the note")]
    [InlineData("""{"kind":"comment","from":"2026-11-22","text":" "}""", "text: must not be empty")]
    [InlineData("""{"kind":"comment","from":"2026-11-22","to":"2026-11-22","text":"t"}""", "to: must be after from.")]
    [InlineData("""{"kind":"comment","from":"2026-11-22","status":"up","text":"t"}""", "status: only a correction may have a status.")]
    [InlineData("""{"kind":"correction","from":"2026-11-22","text":"t"}""", "status: a correction needs the true status")]
    [InlineData("""{"kind":"correction","from":"2026-11-22","status":"Down","text":"t"}""", "status: must not be empty, and must be in lower case.")]
    [InlineData("""{"id":"a b"}""", "id: 'a b' is not valid; allowed: 1 to 64 of")]
    [InlineData("""{"id":null}""", "kind: missing; give maintenance or")]
    [InlineData("""{"kind":"comment","from":"2026-11-22","text":"t","author_name":" "}""", "author_name: must not be empty or contain")]
    [InlineData("""{"kind":"comment","from":"2026-11-22","text":"t","author_name":"a\nb"}""", "author_name: must not be empty or contain control characters; leave it")]
    [InlineData("""{"kind":"comment","from":"2026-11-22","text":"a\u0000b"}""", "text: must not contain the character U+0000.")]
    [InlineData("""{"kind":"comment","from":"2026-11-22","text":"t","service":"a\u0000b"}""", "service: must not contain the character U+0000.")]
    [InlineData("""{"id":"known","kind":"excluded"}""", "kind: note 'known' is of kind comment, which cannot be changed.")]
    [InlineData("""{"text":"\ud800"}""", "A string in the body is not valid Unicode.")]
    public async Task WhatIsNoNoteIsRefusedByItsField(string body, string problem)
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "08:00", "09:00");
        Assert.StartsWith("foo: a note takes no parameters", (await host.PostAsync(
            body, "/alerts/INS/notes?foo=1", Host.Basic(Editor, Password))).Problem(400), Ordinal);
        Assert.Equal(201, (await NoteAsync(host, """{"id":"known","kind":"comment","from":"2026-11-22","text":"t"}""")).Code);
        Assert.StartsWith(problem, (await NoteAsync(host, body)).Problem(400), Ordinal);
        Assert.Single((await NotesAsync(host, "?versions=true")).Json.GetProperty("notes").EnumerateArray());
    }

    [Fact]
    public async Task LimitsOfANoteAreExact()
    {
        await using var host = WithEditor();
        Assert.Equal("SeS has never received anything for partition 'INS'.", (await NoteAsync(host, "{}")).Problem(404));
        await FireAsync(host, "web", "08:00", "09:00");
        string Body(string text, string name = "n", string? platform = null) => JsonSerializer.Serialize(
            new Dictionary<string, string?> { ["kind"] = "comment", ["from"] = "2026-11-22", ["text"] = text, ["author_name"] = name, ["platform"] = platform });
        Assert.Equal(201, (await NoteAsync(host, Body(new string('ö', 2048)))).Code);
        Assert.Equal("text has 4098 bytes, more than 4096.", (await NoteAsync(host, Body(new string('ö', 2049)))).Problem(400));
        Assert.Equal(201, (await NoteAsync(host, Body("t", new string('ö', 200)))).Code);
        Assert.Equal("author_name has more than 200 characters.", (await NoteAsync(host, Body("t", new string('ö', 201)))).Problem(400));
        Assert.Equal("platform has 1025 bytes, more than 1024.", (await NoteAsync(host, Body("t", platform: new string('p', 1025)))).Problem(400));
        var space = new string(' ', NoteForm.MaxBody - Body("t").Length);
        Assert.Equal(201, (await NoteAsync(host, Body("t") + space)).Code);
        Assert.Equal("The note is too large: its body may have at most 65536 bytes.", (await NoteAsync(host, Body("t") + space + " ")).Problem(413));
        Assert.Equal("id: there is no note 'x' in partition 'INS'.", (await NoteAsync(host, """{"id":"x","withdrawn":true}""")).Problem(404));
        foreach (var method in new[] { HttpMethod.Delete, HttpMethod.Put })
            Assert.Equal("The path does not support this method; allowed: GET, HEAD, OPTIONS, POST.", (await host.SendAsync(
                method, "/alerts/INS/notes", "{}", Host.Basic(Editor, Password))).Problem(405));
    }

    [Fact]
    public async Task NotesNeedTheEditorWhoeverMayPostAlerts()
    {
        const string Body = """{"kind":"comment","from":"2026-11-22","text":"t"}""";
        await using (var host = Host.Serving())
        {
            Assert.StartsWith("Notes are closed: --editor-password-file", (await host.PostAsync(Body, "/alerts/INS/notes")).Problem(403), Ordinal);
            Assert.StartsWith("Notes are closed", (await host.GetAsync("/alerts/INS/notes")).Problem(403), Ordinal);
        }
        await using (var host = WithEditor("--auth-mode", "basic", "--username", "am", "--password", "secret"))
        {
            var missing = await host.PostAsync(Body, "/alerts/INS/notes");
            missing.Problem(401);
            Assert.Equal("Basic realm=\"SeS\", charset=\"UTF-8\"", Assert.Single(missing.Headers.WwwAuthenticate).ToString());
            Assert.Equal("These credentials are for sending alerts and reading; notes need the editor's.",
                (await host.PostAsync(Body, "/alerts/INS/notes", Host.Basic("am", "secret"))).Problem(403));
            (await host.PostAsync(Body, "/alerts/INS/notes", "Bearer x")).Problem(401);
            Assert.Equal(404, (await host.PostAsync(Body, "/alerts/INS/notes", Host.Basic(Editor, Password))).Code);
            // On a connection on which the editor signed in others do not.
            (await host.UnfreezeAsync(host.PostAsync(Body, "/alerts/INS/notes", Host.Basic(Editor, "wrong")))).Problem(401);
            // Nor is the editor a sender.
            (await host.PostAsync("""{"version":"4","alerts":[]}""", authorization: Host.Basic(Editor, Password))).Problem(403);
        }
        Assert.Contains("'editor' is the user of --username", Assert.Throws<OptionsException>(() =>
            Front.OptionsOf(["--auth-mode", "basic", "--username", "editor", "--password", "s", "--editor-password", "p"])).Message, Ordinal);
        Assert.Contains("the password is empty", Assert.Throws<OptionsException>(() => Front.OptionsOf(["--editor-password", " "])).Message, Ordinal);
    }

    [Fact]
    public async Task WarningsTellWhatANoteDoesNotDo()
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "08:00", "09:00");
        async Task WarnsAsync(string body, params string[] warnings) => Assert.Equal(warnings,
            (await NoteAsync(host, body)).Json.GetProperty("warnings").EnumerateArray().Select(w => w.GetString()![..Math.Min(40, w.GetString()!.Length)]));
        await WarnsAsync("""{"kind":"maintenance","from":"2026-11-22T12:00Z","to":"2026-11-22T13:00Z","text":"t"}""");
        await WarnsAsync("""{"kind":"maintenance","from":"2026-11-22T11:00Z","to":"2026-11-22T13:00Z","text":"t"}""", "the maintenance was announced only in pa");
        Assert.Contains("it counts from 2026-11-22T12:00:00Z to 2026-11-22T13:00:00Z; for the rest", (await NoteAsync(host,
            """{"kind":"maintenance","from":"2026-11-22T11:00Z","to":"2026-11-22T13:00Z","text":"u"}""")).Body, Ordinal);
        await NoteAsync(host, """{"id":"w","kind":"comment","from":"2026-11-22T10:00Z","text":"t"}""");
        await WarnsAsync("""{"id":"w","withdrawn":true}""");
        await WarnsAsync("""{"id":"w","text":"another"}""", "the note was withdrawn before and still ");
        await WarnsAsync("""{"kind":"maintenance","from":"2026-11-22T10:00Z","to":"2026-11-22T11:00Z","text":"t"}""", "the maintenance was over before SeS rece");
        await WarnsAsync("""{"kind":"excluded","from":"2026-11-22T10:00Z","text":"t","service":"db"}""",
            "the note matches no known service", "the note has no end: it holds until a la");
        await WarnsAsync("""{"kind":"correction","status":"up","from":"2026-11-22T10:00Z","text":"t"}""", "the note has no end: it holds until a la");
        await WarnsAsync("""{"kind":"comment","from":"2026-11-22T10:00Z","text":"t"}""");
    }

    // ---- What they change ----

    private static async Task<string> StatusAsync(Host host, string query = "") => string.Join('\n', (await host.GetAsync("/alerts/INS" + query)).Json
        .GetProperty("services").EnumerateArray().Select(s => $"{s.GetProperty("service")} {s.GetProperty("status")} {s.GetProperty("since").GetString()![11..16]} "
            + $"{s.GetProperty("maintenance")} {s.GetProperty("description")}"));

    private static async Task<string> HistoryAsync(Host host, string query = "") => string.Join('\n', (await host.GetAsync("/alerts/INS/history" + query)).Json
        .GetProperty("events").EnumerateArray().Select(e => $"{e.GetProperty("service")} {e.GetProperty("status")} {e.GetProperty("time").GetString()![11..16]} "
            + $"{e.GetProperty("description")}"));

    [Fact]
    public async Task CorrectionIsWhatWas()
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "08:00", "09:00");
        await FireAsync(host, "db", "08:00");
        await NoteAsync(host, """{"id":"a","kind":"correction","status":"down","service":"web","from":"2026-11-22T07:00Z","to":"2026-11-22T07:30Z","text":"nobody saw it"}""");
        await NoteAsync(host, """{"id":"b","kind":"correction","status":"up","service":"db","from":"2026-11-22T08:00Z","text":"the probe was broken","author_name":"Ann"}""");
        const string Corrected = """
            web down 07:00 corrected: nobody saw it (editor)
            web down 08:00 web is down
            db up 08:00 corrected: the probe was broken (editor, Ann)
            web up 09:00 Down resolved
            """;
        Assert.Equal(Corrected, await HistoryAsync(host));
        Assert.Equal(Corrected, string.Join('\n', (await HistoryAsync(host, "?order=desc")).Split('\n').Reverse()));
        Assert.Equal("db up 08:00  corrected: the probe was broken (editor, Ann)\nweb up 09:00  Down resolved", await StatusAsync(host));
        var report = (await host.GetAsync("/alerts/INS/report?from=2026-11-22T06:00Z&service=web")).Json.GetProperty("services")[0];
        Assert.Equal((5400.0, 2), (report.GetProperty("down_seconds").GetDouble(), report.GetProperty("outages").GetInt32()));
        var page = (await host.GetAsync("/")).Body;
        Assert.Contains("All 2 services are up", page, Ordinal);
        // Of those that overlap holds what was received last.
        host.Clock.Advance(TimeSpan.FromMinutes(1));
        await NoteAsync(host, """{"id":"c","kind":"correction","status":"broken","service":"*","from":"2026-11-22T07:10Z","to":"2026-11-22T08:30Z","text":"t"}""");
        Assert.Equal("web down 07:00, web broken 07:10, db broken 07:10, web down 08:30, db up 08:30, web up 09:00", string.Join(", ",
            (await HistoryAsync(host)).Split('\n').Select(l => string.Join(' ', l.Split(' ')[..3]))));
        // As it was known before.
        Assert.Equal(Corrected, await HistoryAsync(host, "?as_of=2026-11-22T12:00:30Z"));
        Assert.Equal("db up 08:30  corrected: the probe was broken (editor, Ann)\nweb up 09:00  Down resolved", await StatusAsync(host));
    }

    [Fact]
    public async Task MaintenanceIsAState()
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "11:00");
        await NoteAsync(host, """{"id":"up","kind":"maintenance","platform":"shop","from":"2026-11-22T13:00Z","to":"2026-11-22T14:00Z","text":"t"}""");
        host.Clock.Advance(TimeSpan.FromSeconds(1));
        Assert.Equal("web down 11:00  web is down", await StatusAsync(host));
        // What lies ahead of a day and is announced is no base of its budget.
        var row = (await host.GetAsync("/alerts/INS/report?period=day&from=2026-11-22T00:00Z&to=2026-11-22T01:00Z&slo=90")).Json.GetProperty("services")[0];
        Assert.Equal(0.1 * (3600 + (11 * 3600)), row.GetProperty("error_budget_seconds").GetDouble(), 6);
        Assert.Contains("ses_under_maintenance{partition=\"INS\"} 0", (await host.GetAsync("/metrics")).Body, Ordinal);
        host.Clock.UtcNow = At("13:30");
        Assert.Equal("web down 11:00 up web is down", await StatusAsync(host));
        Assert.Contains("ses_under_maintenance{partition=\"INS\"} 1", (await host.GetAsync("/metrics")).Body, Ordinal);
        var outage = (await host.GetAsync("/alerts/INS/outages?from=2026-11-22T12:00Z")).Json.GetProperty("outages")[0];
        Assert.Equal((5400.0, 1800.0, 0.0, "up"), (outage.GetProperty("down_seconds").GetDouble(), outage.GetProperty("maintenance_seconds").GetDouble(),
            outage.GetProperty("excluded_seconds").GetDouble(), outage.GetProperty("notes")[0].GetString()));
        host.Clock.UtcNow = At("14:00");
        Assert.Equal("web down 11:00  web is down", await StatusAsync(host));
    }

    [Fact]
    public async Task RetiredIsNoMoreUntilALaterAlertBegins()
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "08:00", "09:00");
        await FireAsync(host, "old", "08:00");
        await NoteAsync(host, """{"id":"r","kind":"retired","service":"old","from":"2026-11-22T10:00Z","text":"replaced"}""");
        await NoteAsync(host, """{"kind":"correction","status":"down","from":"2026-11-22T10:30Z","to":"2026-11-22T10:45Z","text":"all were"}""");
        Assert.Equal("web up 10:45  Down resolved", await StatusAsync(host));
        Assert.DoesNotContain("old", (await host.GetAsync("/")).Body.Split("Latest outages")[0], Ordinal);
        var rows = (await host.GetAsync("/alerts/INS/report?from=2026-11-22T06:00Z")).Json.GetProperty("services");
        Assert.Equal((7200.0, 4 * 3600.0, false), (rows[0].GetProperty("down_seconds").GetDouble(), rows[0].GetProperty("not_counted_seconds").GetDouble(),
            rows[0].GetProperty("open").GetBoolean()));
        // After its end there is none.
        Assert.Equal(["web"], (await host.GetAsync("/alerts/INS/report?from=2026-11-22T10:00Z")).Json.GetProperty("services").EnumerateArray()
            .Select(s => s.GetProperty("service").GetString()));
        var ended = (await host.GetAsync("/alerts/INS/outages?service=old")).Json.GetProperty("outages")[0];
        Assert.Equal(("2026-11-22T10:00:00Z", false), (ended.GetProperty("to").GetString(), ended.GetProperty("open").GetBoolean()));
        // An alert that began before is none, a later one is.
        await FireAsync(host, "old", "09:30", location: "n1");
        Assert.Equal("web up 10:45  Down resolved", await StatusAsync(host));
        await FireAsync(host, "old", "08:00", "11:00");
        await FireAsync(host, "old", "09:30", "11:00");
        await FireAsync(host, "old", "11:30");
        Assert.Equal("old down 11:30  old is down\nweb up 10:45  Down resolved", await StatusAsync(host));
        Assert.Equal("old down 08:00 old is down\nold down 11:30 old is down", await HistoryAsync(host, "?service=old"));
        // The note is told beside no later outage.
        Assert.DoesNotContain("r", (await host.GetAsync("/alerts/INS/outages?service=old")).Json.GetProperty("outages").EnumerateArray()
            .SelectMany(o => o.GetProperty("notes").EnumerateArray()).Select(n => n.GetString()));
    }

    /// <summary>As of then only the services are counted that were known.</summary>
    [Fact]
    public async Task ListAsOfThenStaysTheSame()
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "08:00", "09:00");
        await NoteAsync(host, """{"kind":"comment","from":"2026-11-22T10:00Z","text":"t"}""");
        host.Clock.Advance(TimeSpan.FromSeconds(1));
        const string AsOf = "?as_of=2026-11-22T12:00:00Z";
        var before = (await NotesAsync(host, AsOf)).Body;
        host.Clock.Advance(TimeSpan.FromSeconds(1));
        await FireAsync(host, "new", "08:00", "09:00");
        Assert.Contains("\"matches\":1,", before, Ordinal);
        Assert.Equal(before, (await NotesAsync(host, AsOf)).Body);
        Assert.Contains("\"matches\":2,", (await NotesAsync(host)).Body, Ordinal);
    }

    [Fact]
    public async Task OnixAndThresholdKnowNothingOfNotes()
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "08:00", "09:00");
        var before = (await host.GetAsync("/alerts/INS/report?threshold=1")).Json.GetProperty("events").ToString();
        await NoteAsync(host, """{"kind":"correction","status":"down","from":"2026-11-22T10:00Z","to":"2026-11-22T11:00Z","text":"t"}""");
        Assert.Equal(before, (await host.GetAsync("/alerts/INS/report?threshold=1")).Json.GetProperty("events").ToString());
        using var snapshot = await host.Store.ReadAsync();
        Assert.Equal(0, snapshot.Number("SELECT count(*) FROM timeline WHERE at = " + UnixTime.From(At("10:00"))));
    }

    /// <summary>
    /// A report that was sent, then three notes and a resolved alert that came late: with its as_of the same
    /// bytes, without it each difference is that of one of these.
    /// </summary>
    [Fact]
    public async Task ReportIsMadeAgainToTheByteAfterCorrections()
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "08:00", "08:20");
        await FireAsync(host, "db", "09:00");
        await FireAsync(host, "mail", "10:00", "10:10");
        const string Question = "/report?period=day&from=2026-11-22&to=2026-11-23&slo=99&format=csv";
        const string AsOf = "&as_of=2026-11-22T12:00:00Z";
        var first = await host.GetAsync("/alerts/INS" + Question);
        Assert.Equal(first.Body, (await host.GetAsync("/alerts/INS" + Question + AsOf)).Body);
        host.Clock.Advance(TimeSpan.FromSeconds(30));
        await NoteAsync(host, """{"kind":"excluded","service":"web","from":"2026-11-22T08:00Z","to":"2026-11-22T08:30Z","text":"the line"}""");
        await NoteAsync(host, """{"kind":"correction","status":"up","service":"mail","from":"2026-11-22T10:00Z","to":"2026-11-22T10:05Z","text":"the probe"}""");
        await NoteAsync(host, """{"kind":"correction","status":"down","service":"mail","from":"2026-11-22T11:00Z","to":"2026-11-22T12:00Z","text":"nobody saw it"}""");
        await FireAsync(host, "db", "09:00", "09:30");
        Assert.Equal(first.Body, (await host.GetAsync("/alerts/INS" + Question + AsOf)).Body);
        var (before, after) = (Rows(first), Rows(await host.GetAsync("/alerts/INS" + Question)));
        Dictionary<string, string>[] Rows(Answer answer)
        {
            var lines = answer.Body.Split("\r\n", StringSplitOptions.RemoveEmptyEntries).Select(l => l.Split(',')).ToList();
            return [.. lines.Skip(1).Select(l => lines[0].Zip(l).ToDictionary(p => p.First, p => p.Second))];
        }

        string Differences(int row) => string.Join(' ', before[row].Where(c => c.Key is "down_seconds" or "excluded_seconds" or "outages" or "open")
            .Where(c => after[row][c.Key] != c.Value).Select(c => $"{c.Key}:{c.Value}>{after[row][c.Key]}"));
        Assert.Equal(["db", "mail", "web"], before.Select(r => r["service"]));
        // The resolved alert that came late.
        Assert.Equal("down_seconds:10800>1800 open:true>false", Differences(0));
        // Ten minutes, of which five were none, and an hour that nobody saw.
        Assert.Equal("down_seconds:600>3900 outages:1>2", Differences(1));
        Assert.Equal("excluded_seconds:0>1200", Differences(2));
    }

    // ---- Facts ----

    [Fact]
    public async Task StoresWithNotesAreUnited()
    {
        await using var one = WithEditor("--name", "one");
        await using var other = WithEditor("--name", "other");
        await FireAsync(one, "web", "08:00", "09:00");
        await FireAsync(other, "web", "08:00", "09:00");
        await NoteAsync(one, """{"id":"n","kind":"correction","status":"down","from":"2026-11-22T10:00Z","to":"2026-11-22T11:00Z","text":"one"}""");
        other.Clock.Advance(TimeSpan.FromMinutes(1));
        one.Clock.Advance(TimeSpan.FromMinutes(2));
        await NoteAsync(other, """{"id":"n","kind":"correction","status":"slow","from":"2026-11-22T10:00Z","to":"2026-11-22T11:30Z","text":"other"}""");
        await NoteAsync(one, """{"id":"n","to":"2026-11-22T10:30Z"}""");
        var lines = Lines(one).Concat(Lines(other)).Where(l => l.Contains("\"kind\":\"note\"", Ordinal)).ToList();
        Assert.Equal(3, lines.Count);
        foreach (var host in new[] { one, other })
        {
            for (var times = 0; times < 2; times++)
            {
                await host.Store.AddAsync((w, _) => lines.Count(l => FactLine.Parse(l, Host.Now.AddDays(1)).Take(w)));
                Assert.Equal(3, Lines(host).Count(l => l.Contains("\"kind\":\"note\"", Ordinal)));
            }
        }
        static string[] Told(Host host) => [.. Lines(host).Where(l => l.Contains("\"kind\":\"note\"", Ordinal))
            .Select(l => l[..l.IndexOf(",\"recorded\"", Ordinal)]).Order()];
        Assert.Equal(Told(one), Told(other));
        one.Clock.UtcNow = other.Clock.UtcNow = At("12:03");
        const string Last = "web down 08:00 web is down\nweb up 09:00 Down resolved\nweb down 10:00 corrected: one (editor)\nweb up 10:30 Down resolved";
        Assert.Equal(Last, await HistoryAsync(one, "?to=2026-11-22T11:59Z"));
        Assert.Equal(Last, await HistoryAsync(other, "?to=2026-11-22T11:59Z"));
        // What one store did not know, it does not know as of then.
        Assert.Equal("web down 10:00 corrected: one (editor), web up 11:00 Down resolved",
            string.Join(", ", (await HistoryAsync(one, "?as_of=2026-11-22T12:00:30Z")).Split('\n')[2..]));
    }

    private static List<string> Lines(Host host)
    {
        using var snapshot = host.Store.Snapshot();
        return [.. FactLines.Read(snapshot, null, null, null)];
    }

    /// <summary>Of versions that two SeS received in one millisecond the order is that of their lines.</summary>
    [Fact]
    public async Task OrderOfVersionsOfOneMillisecondIsThatOfTheirLines()
    {
        await using var one = WithEditor("--name", "one");
        await using var other = WithEditor("--name", "other");
        await FireAsync(one, "web", "08:00", "09:00");
        await FireAsync(other, "web", "08:00", "09:00");
        foreach (var (host, text) in new[] { (one, "a"), (other, "b") })
            await NoteAsync(host, $$"""{"id":"n","kind":"comment","from":"2026-11-22T10:00Z","text":"{{text}}"}""");
        var lines = Lines(one).Concat(Lines(other)).Where(l => l.Contains("\"kind\":\"note\"", Ordinal)).Order(StringComparer.Ordinal).ToList();
        await one.Store.AddAsync((w, _) => lines.Count(l => FactLine.Parse(l, Host.Now).Take(w)));
        await other.Store.AddAsync((w, _) => lines.Count(l => FactLine.Parse(l, Host.Now).Take(w)));
        var last = JsonDocument.Parse(lines[1]).RootElement.GetProperty("text").GetString();
        foreach (var host in new[] { one, other })
            Assert.Equal(last, (await NotesAsync(host)).Json.GetProperty("notes")[0].GetProperty("text").GetString());
    }

    [Fact]
    public async Task DamagedNoteIsFound()
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "08:00", "09:00");
        await NoteAsync(host, """{"kind":"comment","from":"2026-11-22T10:00Z","text":"t"}""");
        host.CloseStore();
        using var database = new SqliteConnection(StoreFiles.PathOf(host.Dir), isReadOnly: false, cache: 100);
        IReadOnlyList<string> Faults()
        {
            using var check = new DatabaseCheck(database, StoreChild.Rules.Timeline, Host.Now);
            check.CheckAll(_ => { });
            return check.Faults;
        }

        Assert.Empty(Faults());
        database.Execute("UPDATE note SET author = 'somebody else'");
        Assert.Contains("a fact does not match its checksum", Assert.Single(Faults()), Ordinal);
    }

    // ---- The page of notes ----

    [Fact]
    public void PageNamesFieldsKindsAndCodes()
    {
        var page = DocsPage.Named("api");
        static IEnumerable<string> Names(string cell) => cell.Split(", ").Select(n => n.Trim('`'));
        Assert.Equal(NoteDraft.Kinds, DocsPage.Named("reports").Table("Notes").Select(r => r[0].Trim('`')));
        Assert.Equal(NoteForm.Fields, page.Table("Notes").SelectMany(r => Names(r[0])));
        Assert.Equal(NoteForm.Columns, JsonDocument.Parse(page.CodeOf("Notes", "json").Single()).RootElement.EnumerateObject().Select(p => p.Name));
    }
}
