using System.Globalization;
using System.Net;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>The real bodies of a real outage, posted to the native binary, tell what really happened.</summary>
[Trait("Category", "E2E")]
public sealed partial class EtcdOutageEndToEndTests
{
    private static readonly string Folder = Path.Combine(AppContext.BaseDirectory, "Data", "etcd-outage");

    internal static readonly string[] Bodies =
        [.. Directory.GetFiles(Folder, "*.json").Order(StringComparer.Ordinal).Select(File.ReadAllText)];

    /// <summary>The table of the README beside the bodies: location or facet, and what happened.</summary>
    internal static readonly Dictionary<(string Platform, string Facet, string Location), List<string>> Truth =
        Rows().ToDictionary();

    private static IEnumerable<((string, string, string), List<string>)> Rows()
    {
        foreach (Match row in Row().Matches(File.ReadAllText(Path.Combine(Folder, "README.md"))))
        {
            var (facet, location) = (row.Groups[1].Value, row.Groups[2].Value.Trim('`'));
            var changes = row.Groups[4].Value.Split(", ").Select(c => c.Split(' '))
                .Select(c => $"{c[0]} {double.Parse(c[1], CultureInfo.InvariantCulture):F3}").ToList();
            yield return ((row.Groups[3].Success ? "INS" : "p01-dev", facet, location == "(none)" ? "" : location), changes);
        }
    }

    [GeneratedRegex(@"^\| etcd, (\w+), (`[^`]+`|[^ ]+)( \(platform `INS`\))? \| (.+) \|$", RegexOptions.Multiline)]
    private static partial Regex Row();

    /// <summary>Waits until a SeS is ready, which then takes all bodies and tells how the outage ended.</summary>
    internal static async Task TakeAsync(ChildProcess ses, HttpClient client, TimeSpan within)
    {
        await SesProcess.ReadyAsync(ses, client, within);
        foreach (var body in Bodies)
            Assert.Equal(HttpStatusCode.NoContent,
                (await client.PostAsync("alerts/INS", new StringContent(body))).StatusCode);
        Assert.Contains("All 6 services are up", await client.GetStringAsync(""), StringComparison.Ordinal);
    }

    internal static string Told(string status, DateTime time) =>
        $"{status} {(time - new DateTime(2026, 11, 22, 11, 34, 0, DateTimeKind.Utc)).TotalSeconds:F3}";

    public static TheoryData<string, int> Orders()
    {
        var orders = new TheoryData<string, int> { { "in order", 0 }, { "refused", 0 } };
        for (var seed = 1; seed <= 4; seed++)
        {
            orders.Add("shuffled", seed);
            orders.Add("shuffled, doubled", seed);
        }
        return orders;
    }

    [Theory]
    [MemberData(nameof(Orders))]
    public async Task HistoryIsWhatReallyHappened(string order, int seed)
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var away = new OnixStandIn();
        away.Start();
        away.Stop();
        await using var present = await SesProcess.StartAsync(onix.Url.AbsoluteUri);
        await using var alone = await SesProcess.StartAsync(away.Url.AbsoluteUri);
        foreach (var ses in new[] { present, alone })
            await PostAsync(ses, order, seed);
        away.Start();
        await Task.WhenAll(DrainedAsync(present), DrainedAsync(alone));
        if (order == "refused")
            Assert.Contains("code=\"503\"", await alone.Client.GetStringAsync("metrics"), StringComparison.Ordinal);
        foreach (var ses in new[] { present, alone })
            Check(StoreFiles.History(ses.DataDir).ToDictionary(
                h => (h.Key.Platform, h.Key.Facet, h.Key.Location),
                h => h.Value.Select(e => Told(e.Status, e.Time)).ToList()));
        Check(Recorded(away));
        foreach (var (service, told) in Recorded(onix))
        {
            // It cannot take a change before one that it holds: an ordered part, with the same end.
            Assert.Equal(told.Where(Truth[service].Contains), Truth[service].Where(told.Contains));
            Assert.Equal(Status(Truth[service][^1]), Status(told[^1]));
        }
    }

    [Fact]
    public async Task TwoSeSOnOneOnixRecordEachChangeOnce()
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var one = await SesProcess.StartAsync(onix.Url.AbsoluteUri);
        await using var other = await SesProcess.StartAsync(onix.Url.AbsoluteUri);
        await Task.WhenAll(PostAsync(one, "in order", 0), PostAsync(other, "in order", 0));
        await Task.WhenAll(DrainedAsync(one), DrainedAsync(other));
        Check(Recorded(onix));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public async Task RequestsToOneOfTwoAtRandomEndRightWithinTwoMinutes(int seed)
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var one = await SesProcess.StartAsync(onix.Url.AbsoluteUri);
        await using var other = await SesProcess.StartAsync(onix.Url.AbsoluteUri);
        var random = new Random(seed);
        foreach (var body in Bodies.OrderBy(_ => random.Next()))
            (await (random.Next(2) == 0 ? one : other).PostAsync("INS", body)).Dispose();
        await Wait.UntilAsync(
            () => Recorded(onix) is { Count: 6 } told && Truth.All(t => Status(told[t.Key][^1]) == Status(t.Value[^1])),
            TimeSpan.FromMinutes(2), "the last status of each service to be in Onix");
        Assert.All(Recorded(onix), told => Assert.Equal(
            told.Value.Where(Truth[told.Key].Contains), Truth[told.Key].Where(told.Value.Contains)));
    }

    private static string Status(string told) => told.Split(' ')[0];

    private static void Check(Dictionary<(string, string, string), List<string>> told)
    {
        Assert.Equal(6, Truth.Count);
        Assert.Equal(Truth.Keys.Order(), told.Keys.Order());
        Assert.All(Truth, t => Assert.Equal(t.Value, told[t.Key]));
    }

    private static Dictionary<(string, string, string), List<string>> Recorded(OnixStandIn onix) =>
        onix.History.GroupBy(c => (c.Platform, c.Facet, c.Location)).ToDictionary(g => g.Key, g => g.Select(c => Told(
            c.Status, DateTime.Parse(c.Time, CultureInfo.InvariantCulture, DateTimeStyles.AdjustToUniversal))).ToList());

    private static async Task PostAsync(SesProcess ses, string order, int seed)
    {
        var random = new Random(seed);
        var bodies = order.Contains("doubled", StringComparison.Ordinal) ? [.. Bodies, .. Bodies] : Bodies;
        if (seed > 0)
            random.Shuffle(bodies = [.. bodies]);
        for (var i = 0; i < bodies.Length; i++)
        {
            if (order == "refused" && i % 3 == 2)
                await RefuseAsync(ses, bodies[i]);
            // What was refused is sent again until it is taken, as Alertmanager does.
            if (order == "refused")
                await Wait.UntilAsync(async () => await CodeAsync(ses, bodies[i]) == HttpStatusCode.NoContent,
                    TimeSpan.FromSeconds(20), "a body to be taken");
            else
                Assert.Equal(HttpStatusCode.NoContent, await CodeAsync(ses, bodies[i]));
        }
    }

    private static async Task<HttpStatusCode> CodeAsync(SesProcess ses, string body)
    {
        using var answer = await ses.PostAsync("INS", body);
        return answer.StatusCode;
    }

    /// <summary>Lets the disk refuse: no file of SeS may grow, until it has answered 503 to something new.</summary>
    private static async Task RefuseAsync(SesProcess ses, string body)
    {
        await LimitFilesAsync(ses, "0");
        // What is known already needs no disk.
        Assert.Contains(await CodeAsync(ses, body),
            new[] { HttpStatusCode.ServiceUnavailable, HttpStatusCode.NoContent });
        await LimitFilesAsync(ses, "unlimited");
    }

    private static async Task LimitFilesAsync(SesProcess ses, string bytes)
    {
        await using var prlimit = ChildProcess.Start("prlimit", [$"--pid={ses.Child.Id}", $"--fsize={bytes}:unlimited"]);
        Assert.Equal(0, await prlimit.ExitAsync(TimeSpan.FromSeconds(10)));
    }

    private static Task DrainedAsync(SesProcess ses) => Wait.UntilAsync(async () =>
    {
        var ready = await ses.Client.GetStringAsync("ready");
        return ready.Contains("\"state\":\"recorded\"", StringComparison.Ordinal);
    }, TimeSpan.FromSeconds(60), "Onix to have all");
}
