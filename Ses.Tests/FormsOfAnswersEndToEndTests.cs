using System.Net;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What the native binary answers to curl: packed, as a page, and to whom.</summary>
[Trait("Category", "E2E")]
public sealed class FormsOfAnswersEndToEndTests : IDisposable
{
    private readonly string _dir = Directory.CreateTempSubdirectory("ses-forms-").FullName;

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    [Fact]
    public async Task CurlGetsGzipAPageAndWhatItsUserMay()
    {
        var password = Path.Combine(_dir, "password");
        File.WriteAllText(password, "r3ad\n");
        File.SetUnixFileMode(password, UnixFileMode.UserRead);
        await using var ses = await SesProcess.StartAsync("none", Path.Combine(_dir, "data"), extra:
            ["--read-password-file", password, "--title", "Dienste & mehr"]);
        var alerts = Enumerable.Range(1, 2000).Select(i => $$"""
            {"status":"firing","labels":{"alertname":"Down","job":"checkout","instance":"n{{i}}"},
            "annotations":{"summary":"{{Guid.NewGuid()}}"},"startsAt":"{{Rfc3339.Format(DateTime.UtcNow.AddHours(-1))}}"}
            """);
        Assert.Equal(HttpStatusCode.NoContent, (await ses.PostAsync(
            "INS", $$"""{"version":"4","alerts":[{{string.Join(',', alerts)}}]}""")).StatusCode);
        await using var bash = ChildProcess.Start("bash", ["-euxc", $$"""
            cd {{_dir}}
            ses=http://127.0.0.1:{{ses.Port}}
            curl="curl -sS -m 30 -u reader:r3ad"
            # Packed and plain are the same, of whatever length; HTTP/1.0 too.
            for path in / /metrics '/alerts/INS/history' '/alerts/INS/history?limit=20' '/alerts/INS?format=csv'; do
                $curl -D head --compressed "$ses$path" -o packed
                grep -qi '^content-encoding: gzip' head
                grep -qi '^vary:.*accept-encoding' head
                case $path in /alerts/*) $curl "$ses$path" | sed 's/"as_of":"[^"]*"//' > plain
                    sed 's/"as_of":"[^"]*"//' packed | cmp - plain ;; esac
            done
            $curl -0 --compressed "$ses/alerts/INS/history" | tail -c 14 | grep -q '"next":null}'
            plain=$($curl -o /dev/null -w '%{size_download}' "$ses/alerts/INS/history")
            packed=$($curl -H 'Accept-Encoding: gzip' -o /dev/null -w '%{size_download}' "$ses/alerts/INS/history")
            test $((packed * 4)) -lt "$plain"
            # A browser sees refusals, a program reads them.
            $curl -D head -H 'Accept: text/html' "$ses/nowhere/at/all" > page
            grep -q '^HTTP/1.1 404' head
            grep -qi '^content-type: text/html' head
            grep -q '<title>404 Not Found – Dienste &amp; mehr</title>' page
            grep -q 'href="../../"' page
            $curl "$ses/nowhere" | grep -q '"status": \?404'
            # Who may do what.
            test 401 = "$(curl -sS -o /dev/null -w '%{http_code}' "$ses/")"
            test 200 = "$(curl -sS -o /dev/null -w '%{http_code}' "$ses/ready")"
            test 403 = "$($curl -o /dev/null -w '%{http_code}' -d '{}' "$ses/alerts/INS/notes")"
            test 204 = "$(curl -sS -o /dev/null -w '%{http_code}' -d '{"version":"4","alerts":[]}' "$ses/alerts/INS")"
            """], SesProcess.Unset);
        Assert.True(await bash.ExitAsync(TimeSpan.FromSeconds(60)) == 0, bash.Output);
    }
}
