using System.Text;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>What the sender, the reader and the editor may do, in each mode.</summary>
public sealed class ReaderTests
{
    private const string Alerts = """
        {"version":"4","alerts":[{"status":"firing","labels":{"alertname":"InstanceDown","job":"etcd","instance":"n1"},
        "startsAt":"2026-11-22T11:34:34.489Z"}]}
        """;

    private const string Note = """{"kind":"comment","from":"2026-11-22","text":"t"}""";

    private static readonly string[] Asking =
    [
        "/", "/service?partition=INS&platform=INS&service=etcd&facet=InstanceDown&location=n1", "/health", "/alerts/INS",
        "/alerts/INS/history", "/alerts/INS/report", "/alerts/INS/outages", "/alerts/INS/api/v2/alerts",
        "/alerts/INS/api/v2/status",
    ];

    private static readonly string[] Basic = ["--auth-mode", "basic", "--username", "am", "--password", "s p"];

    private static readonly string[] Oidc =
        ["--auth-mode", "oidc", "--oidc-issuer", "https://id.example.org", "--oidc-audience", "ses"];

    private static readonly string[] Reader = ["--read-password", "r:p"], Editor = ["--editor-password", "e p"];

    private static string By(string user) => $"Basic {Convert.ToBase64String(Encoding.UTF8.GetBytes(user switch
    {
        "sender" => "am:s p",
        "reader" => "reader:r:p",
        "editor" => "editor:e p",
        _ => user,
    }))}";

    private static Task<Answer> AskAsync(Host host, string path, string? user, HttpMethod? method = null) =>
        host.SendAsync(method ?? HttpMethod.Get, path, authorization: user == null ? null : By(user));

    private static async Task KnowAsync(Host host) => await host.Store.AppendAsync("INS", AlertReader.Read(
        Encoding.UTF8.GetBytes(Alerts), "INS", AlertSource.Webhook, MappingRules.Default, Host.Now));

    [Theory]
    [InlineData("sender")]
    [InlineData("reader")]
    [InlineData("editor")]
    public async Task AllThreeMayAsk(string user)
    {
        await using var host = Host.Serving([.. Basic, .. Reader, .. Editor, "--metrics-auth", "true"]);
        Assert.Equal(204, (await host.PostAsync(Alerts, authorization: By("sender"))).Code);
        foreach (var path in (string[])[.. Asking, "/metrics", "/ready", "/live"])
        {
            Assert.Equal(200, (await AskAsync(host, path, user)).Code);
            Assert.Equal(200, (await AskAsync(host, path, user, HttpMethod.Head)).Code);
            Assert.Equal(path is "/ready" or "/live" ? 200 : 401, (await AskAsync(host, path, null)).Code);
        }
    }

    [Fact]
    public async Task EachMayDoNoMore()
    {
        await using var host = Host.Serving([.. Basic, .. Reader, .. Editor]);
        Assert.Equal(204, (await host.PostAsync(Alerts, authorization: By("sender"))).Code);
        foreach (var path in new[] { "/alerts/INS", "/alerts/INS/api/v2/alerts" })
        {
            Assert.Equal("These credentials are for reading; alerts need the sender's.",
                (await host.PostAsync(Alerts, path, By("reader"))).Problem(403));
            Assert.Equal("These credentials are for notes and reading; alerts need the sender's.",
                (await host.PostAsync(Alerts, path, By("editor"))).Problem(403));
        }
        const string Notes = "/alerts/INS/notes";
        Assert.Equal("These credentials are for reading; notes need the editor's.",
            (await host.PostAsync(Note, Notes, By("reader"))).Problem(403));
        Assert.Equal("These credentials are for reading; notes need the editor's.", (await AskAsync(host, Notes, "reader")).Problem(403));
        (await host.PostAsync(Note, Notes, By("sender"))).Problem(403);
        Assert.Equal(201, (await host.PostAsync(Note, Notes, By("editor"))).Code);
        // What the sender's own credentials are needed for is lost: it is counted.
        Assert.Contains("ses_bad_requests_total{reason=\"credentials\"} 4",
            (await host.GetAsync("/metrics")).Body.Split('\n'));
        Assert.Equal(1, host.Observations);
    }

    [Fact]
    public async Task WithoutAModeAReaderClosesQuestionsAlone()
    {
        await using var host = Host.Serving(Reader);
        Assert.Equal(204, (await host.PostAsync(Alerts)).Code);
        foreach (var path in Asking)
        {
            var refused = await AskAsync(host, path, null);
            refused.Problem(401);
            Assert.Equal("Basic realm=\"SeS\", charset=\"UTF-8\"", Assert.Single(refused.Headers.WwwAuthenticate).ToString());
            Assert.Equal(200, (await AskAsync(host, path, "reader")).Code);
        }
        // Nor is anything told at /ready to those who bring nothing, or what is wrong.
        Assert.Equal(200, (await AskAsync(host, "/ready", null)).Code);
        Assert.Equal(401, (await host.UnfreezeAsync(AskAsync(host, "/ready", "reader:wrong"))).Code);
        Assert.Equal(200, (await AskAsync(host, "/metrics", null)).Code);
    }

    [Fact]
    public async Task WithoutAModeAndAReaderAllIsOpenButNotes()
    {
        await using var host = Host.Serving(Editor);
        Assert.Equal(204, (await host.PostAsync(Alerts)).Code);
        foreach (var path in Asking)
            Assert.Equal(200, (await AskAsync(host, path, null)).Code);
        Assert.Equal(401, (await AskAsync(host, "/alerts/INS/notes", null)).Code);
        Assert.Equal(200, (await AskAsync(host, "/alerts/INS/notes", "editor")).Code);
    }

    [Fact]
    public async Task BesideTokensPeopleSignInByPassword()
    {
        await using var host = Host.Serving([.. Oidc, .. Reader, .. Editor]);
        await KnowAsync(host);
        foreach (var path in Asking)
        {
            var refused = await AskAsync(host, path, null);
            refused.Problem(401);
            Assert.Equal(["Bearer", "Basic"], refused.Headers.WwwAuthenticate.Select(c => c.Scheme));
            Assert.Equal(200, (await AskAsync(host, path, "reader")).Code);
            Assert.Equal(200, (await AskAsync(host, path, "editor")).Code);
        }
        Assert.Equal(["Bearer"], (await host.PostAsync(Alerts)).Headers.WwwAuthenticate.Select(c => c.Scheme));
        (await host.PostAsync(Alerts, authorization: By("reader"))).Problem(403);
        Assert.Equal(["Basic"], (await AskAsync(host, "/alerts/INS/notes", null)).Headers.WwwAuthenticate.Select(c => c.Scheme));
        (await host.SendAsync(HttpMethod.Get, "/alerts/INS/notes", authorization: "Bearer a.b.c")).Problem(401);
    }

    [Fact]
    public async Task WrongPasswordIsNobodys()
    {
        await using var host = Host.Serving([.. Basic, .. Reader, .. Editor]);
        await KnowAsync(host);
        foreach (var wrong in new[] { "reader:s p", "am:r:p", "reader:", "editor:r:p", "reader:r:p " })
            (await host.UnfreezeAsync(AskAsync(host, "/", wrong))).Problem(401);
        Assert.Equal(200, (await host.UnfreezeAsync(AskAsync(host, "/", "reader"))).Code);
        // On a connection whose last password was the reader's another one is judged anew.
        (await host.UnfreezeAsync(AskAsync(host, "/", "reader:x"))).Problem(401);
        Assert.Equal(200, (await host.UnfreezeAsync(AskAsync(host, "/", "sender"))).Code);
    }

    [Theory]
    [InlineData("'reader' is the user of --username", "--auth-mode", "basic", "--username", "reader", "--password", "s", "--read-password", "p")]
    [InlineData("'x' is the user of --read-username", "--read-username", "x", "--read-password", "p", "--editor-username", "x", "--editor-password", "q")]
    [InlineData("--read-password (OXSES_READ_PASSWORD): the password is empty", "--read-password", " ")]
    public void UsersThatCannotBeToldApartAreRefused(string says, params string[] flags) =>
        Assert.Contains(says, Assert.Throws<OptionsException>(() => Front.OptionsOf(flags)).Message, Ordinal);

    [Fact]
    public void SameNameIsFreeWhereItIsNotUsed()
    {
        Front.OptionsOf("--username", "reader", "--read-password", "p");
        Front.OptionsOf("--read-username", "editor", "--editor-password", "p");
    }

    [Fact]
    public void ReaderIsInTheWarnings()
    {
        IReadOnlyList<string> Warnings(params string[] flags) => Front.OptionsOf(["--address", "0.0.0.0", .. flags]).Warnings;
        Assert.Contains(Warnings(), w => w.StartsWith("anyone who can reach this host may post alerts and read the history: ", Ordinal));
        Assert.Contains(Warnings(Reader), w => w.StartsWith("anyone who can reach this host may post alerts: ", Ordinal));
        Assert.Contains(Warnings(Reader), w => w.StartsWith("passwords are sent unencrypted", Ordinal));
        Assert.Contains(Warnings("--metrics-auth", "true"), w => w.Contains("has no effect", Ordinal));
        Assert.DoesNotContain(Warnings([.. Reader, "--metrics-auth", "true"]), w => w.Contains("has no effect", Ordinal));
    }

    [Fact]
    public void PasswordOfTheReaderIsReadAgainFromItsFile()
    {
        var path = Path.GetTempFileName();
        try
        {
            File.WriteAllText(path, "one\n");
            var options = Front.OptionsOf("--read-password-file", path);
            Assert.Equal("one", options.ReadPassword!.Value);
            var (setting, _, isUsable) = Assert.Single(options.SecretFiles);
            Assert.Equal(("--read-password-file", false, true), (setting.Flag, isUsable(" "), isUsable("two")));
        }
        finally
        {
            File.Delete(path);
        }
    }
}
