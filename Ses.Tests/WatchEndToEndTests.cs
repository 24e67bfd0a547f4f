using System.Net;
using System.Text;
using System.Text.Json;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>The native SeS, killed and away for minutes of its clock: what nobody could hear is unknown.</summary>
[Trait("Category", "E2E")]
public sealed class WatchEndToEndTests
{
    private static async Task PostAsync(SesProcess ses, string name, DateTime starts, DateTime ends)
    {
        using var body = new StringContent($$$"""
            [{"labels":{"alertname":"{{{name}}}","job":"etcd","instance":"n1"},"startsAt":"{{{Rfc3339.Format(starts)}}}",
            "endsAt":"{{{Rfc3339.Format(ends)}}}","generatorURL":"http://p1:9090/graph"}]
            """, Encoding.UTF8, "application/json");
        using var answer = await ses.Client.PostAsync("alerts/INS/api/v2/alerts", body);
        Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
    }

    private static async Task<List<(string Status, DateTime Time, string Text)>> HistoryAsync(SesProcess ses) =>
        Rows(await ses.Client.GetStringAsync("alerts/INS/history"));

    private static List<(string Status, DateTime Time, string Text)> Rows(string json) =>
        [.. JsonDocument.Parse(json).RootElement.GetProperty("events").EnumerateArray().Select(e =>
            (e.GetProperty("status").GetString()!, e.GetProperty("time").GetDateTime(), e.GetProperty("description").GetString()!))];

    [Fact]
    public async Task WhatSesMissedWhileItWasKilledIsUnknown()
    {
        var clock = Path.GetTempFileName();
        await File.WriteAllTextAsync(clock, "+0");
        try
        {
            await using var ses = await SesProcess.StartWithClockAsync(clock);
            var begun = DateTime.UtcNow;
            await PostAsync(ses, "Down", begun.AddMinutes(-20), begun.AddMinutes(-10));
            // Beats that are closer than 10 s are one.
            for (var beat = 0; beat < 3; beat++)
            {
                await PostAsync(ses, "Watchdog", begun.AddDays(-1), DateTime.UtcNow.AddMinutes(4));
                if (beat < 2)
                    await Wait.UntilAsync(() => DateTime.UtcNow > begun.AddSeconds(11 * (beat + 1)), TimeSpan.FromMinutes(1), "the next beat");
            }
            await Wait.UntilAsync(async () => (await ses.Client.GetStringAsync("metrics")).Contains(
                "ses_watched{partition=\"INS\",platform=\"\",heartbeat=\"Watchdog\"} 1\n", StringComparison.Ordinal),
                TimeSpan.FromMinutes(1), "the heartbeat to be armed");
            ses.Kill(Signal.Kill);
            await ses.Child.ExitAsync(TimeSpan.FromMinutes(1));
            var killed = DateTime.UtcNow;
            await File.WriteAllTextAsync(clock, "+8m");
            await ses.RestartAsync();
            var back = DateTime.UtcNow.AddMinutes(8);
            await Wait.UntilAsync(async () => (await HistoryAsync(ses)) is [.., ("up", _, _)], TimeSpan.FromMinutes(1), "the gap");
            var history = await HistoryAsync(ses);
            Assert.Equal(["down", "up", "unknown", "up"], history.Select(h => h.Status));
            Assert.Equal("no data: SeS was away", history[2].Text);
            // What it took last is a sign of life; what came back is known from then on.
            Assert.InRange(history[2].Time, begun.AddSeconds(20), killed);
            Assert.InRange(history[3].Time, back.AddSeconds(-20), back.AddSeconds(1));
            // The heartbeat is armed, and was not silent: SeS was.
            var status = JsonDocument.Parse(await ses.Client.GetStringAsync("alerts/INS")).RootElement.GetProperty("services")[0];
            Assert.Equal(("up", true), (status.GetProperty("status").GetString(), status.GetProperty("watched").GetBoolean()));
            Assert.DoesNotContain("warnings", await ses.Client.GetStringAsync("ready"), StringComparison.Ordinal);
            // The commands tell the same, and the facts are exported.
            var (exit, told) = await ses.CommandAsync("history", "--format", "json");
            Assert.Equal(0, exit);
            Assert.Equal(history, Rows(told));
            (exit, told) = await ses.CommandAsync("export");
            Assert.Equal((0, 1, 2), (exit, told.Split("\"kind\":\"heartbeat\"").Length - 1, told.Split("\"kind\":\"gap\"").Length - 1));
            (exit, told) = await ses.CommandAsync("check");
            Assert.True(exit == 0, told);
        }
        finally
        {
            File.Delete(clock);
        }
    }
}
