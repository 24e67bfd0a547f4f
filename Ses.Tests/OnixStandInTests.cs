using System.Net.Http.Headers;
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>The stand-in is no friendlier than the real Onix, whose recorded answers it is held against.</summary>
public sealed class OnixStandInTests
{
    [Fact]
    public async Task AnswersAllRecordedExchangesAsOnixDid()
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        onix.OrdinaryRights.Clear();
        using var session = new HttpClient(new SocketsHttpHandler { AllowAutoRedirect = false });
        using var bare = new HttpClient(new SocketsHttpHandler { AllowAutoRedirect = false, UseCookies = false });
        var path = Path.Combine(AppContext.BaseDirectory, "Data", "onix-exchanges.jsonl");
        var exchanges = File.ReadLines(path).Select(l => JsonNode.Parse(l)!).ToList();
        var differences = new List<string>();
        foreach (var exchange in exchanges)
        {
            var name = (string)exchange["name"]!;
            SetUp(onix, exchange, name);
            // These two show what happens without a session cookie.
            var client = name is "database-down-login" ? bare : session;
            differences.AddRange((await CompareAsync(onix, client, exchange)).Select(d => $"{name}: {d}"));
        }
        Assert.Equal(52, exchanges.Count);
        Assert.True(differences.Count == 0, string.Join("\n", differences));
    }

    private static void SetUp(OnixStandIn onix, JsonNode exchange, string name)
    {
        onix.Database = (string)exchange["database"]! switch
        {
            "down" => Database.Down,
            "read-only" => Database.ReadOnly,
            _ => Database.Up,
        };
        string[] rights = name.StartsWith("user-no-rights", StringComparison.Ordinal) ? ["P1"] : ["P1", "REF"];
        onix.OrdinaryRights.UnionWith(rights);
        onix.OrdinaryRights.IntersectWith(rights);
    }

    private static async Task<List<string>> CompareAsync(OnixStandIn onix, HttpClient client, JsonNode exchange)
    {
        var (asked, expected) = (exchange["request"]!, exchange["response"]!);
        using var request = new HttpRequestMessage(
            new HttpMethod((string)asked["method"]!), onix.Url.AbsoluteUri.TrimEnd('/') + (string)asked["path"]!);
        if (asked["body"] is { } body)
            request.Content = new StringContent(body.ToJsonString(), Encoding.UTF8, "application/json");
        if ((string?)exchange["user"] is { } user)
        {
            var credentials = user.Contains("wrong", StringComparison.Ordinal) ? "admin:wrong" : $"{user}:0n1x";
            request.Headers.Authorization =
                new AuthenticationHeaderValue("Basic", Convert.ToBase64String(Encoding.UTF8.GetBytes(credentials)));
        }
        using var answer = await client.SendAsync(request);
        var text = await answer.Content.ReadAsStringAsync();
        var differences = new List<string>();
        if ((int)answer.StatusCode != (int)expected["status"]!)
            differences.Add($"status {(int)answer.StatusCode} instead of {expected["status"]}");
        else if (expected["body"] is JsonObject recorded)
            CompareBodies(recorded, JsonNode.Parse(text)!.AsObject(), differences);
        else if ((string?)expected["body"] == "" && text != "")
            differences.Add($"a body instead of none: {text}");
        return differences;
    }

    private static void CompareBodies(JsonObject expected, JsonObject actual, List<string> differences)
    {
        if (expected["values"] is not JsonArray values)
        {
            CompareFields(expected, actual, ["key", "attribute", "version", "partition", "status", "path"], differences);
            return;
        }
        var given = actual["values"]!.AsArray();
        if (values.Count != given.Count)
            differences.Add($"{given.Count} values instead of {values.Count}");
        else if (values.Count > 0 && values[0]!["key"] == null)
            for (var i = 0; i < values.Count; i++)
                CompareValues(values[i]!, given[i]!, differences);
        else
            foreach (var item in values)
                if (given.FirstOrDefault(g => JsonNode.DeepEquals(g!["key"], item!["key"])) is { } same)
                    CompareFields(item!, same, ["attribute", "version", "partition", "type", "name"], differences);
                else
                    differences.Add($"{item!["key"]} is not listed");
    }

    private static void CompareValues(JsonNode expected, JsonNode actual, List<string> differences)
    {
        CompareFields(expected, actual, ["operation", "status", "error", "changed", "ref"], differences);
        string First(JsonNode node) => ((string?)node["message"] ?? "").Split('\n')[0].Split(':')[0];
        if (First(expected) != First(actual))
            differences.Add($"message '{First(actual)}' instead of '{First(expected)}'");
    }

    private static void CompareFields(JsonNode expected, JsonNode actual, string[] names, List<string> differences)
    {
        foreach (var name in names.Where(n => expected.AsObject().ContainsKey(n)))
        {
            if (!JsonNode.DeepEquals(expected[name], actual[name]))
                differences.Add($"{name} is {actual[name]?.ToJsonString()} instead of {expected[name]?.ToJsonString()}");
        }
    }

    /// <summary>So a chain of changes in one request could overwrite another writer: SeS sends none.</summary>
    [Fact]
    public async Task SecondOfAChainIsWrittenWhenAnotherWriterMovedTheVersionByOne()
    {
        await using var onix = new OnixStandIn();
        onix.Start();
        await using var site = new Site(onix.Url);
        await site.RecordAsync(Site.Service(1), "up", 1);
        await site.DrainedAsync();
        await site.RecordAsync(Site.Service(1), "down", 100);
        await site.DrainedAsync();
        var key = OnixNames.Key(Site.Service(1));
        using var client = new HttpClient();
        client.DefaultRequestHeaders.Authorization =
            new AuthenticationHeaderValue("Basic", Convert.ToBase64String("admin:0n1x"u8));
        ItemChange[] chain = [Of("down", 10, 1), Of("up", 20, 2)];
        var data = new DataBody { Items = [.. chain.Select(OnixNames.Item)] };
        using var content = new ByteArrayContent(JsonSerializer.SerializeToUtf8Bytes(data, OnixJson.Default.DataBody));
        await client.PutAsync(new Uri(onix.Url, "data"), content);
        Assert.Equal("up", onix.History[^1].Status);
        Assert.Equal("2026-11-01T00:00:20Z", onix.History[^1].Time);

        ItemChange Of(string status, double second, long version) =>
            new(key, Site.Service(1), status, Site.At(second), "", version);
    }
}
