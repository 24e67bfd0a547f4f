using System.Globalization;
using System.Text;
using System.Text.RegularExpressions;
using System.Xml;
using System.Xml.Linq;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>The feed: what is in it when, and that nothing that was in it is ever missing; and the badge.</summary>
public sealed partial class FeedTests : IDisposable
{
    private const string Editor = "editor", Password = "p w:ö";
    private static readonly ServiceFilter All = new(null, null, null, null, null);
    private static readonly XNamespace Atom = "http://www.w3.org/2005/Atom", Svg = "http://www.w3.org/2000/svg";

    private readonly string _directory = Directory.CreateTempSubdirectory("ses-feed").FullName;

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    private static Host WithEditor() => Host.Serving("--editor-password", Password);

    private static async Task NoteAsync(Host host, string body) =>
        Assert.Equal(201, (await host.PostAsync(body, "/alerts/INS/notes", Host.Basic(Editor, Password))).Code);

    /// <summary>A stock alert that fired from a time to another, or still does.</summary>
    private static async Task FireAsync(
        Host host, string service, string from, string? to = null, string platform = "shop", string severity = "critical") =>
        Assert.Equal(204, (await host.PostAsync($$"""
            {"version":"4","alerts":[{"status":"{{(to == null ? "firing" : "resolved")}}","labels":{"alertname":"Down","platform":"{{platform}}",
            "job":"{{service}}","instance":"n1:80","severity":"{{severity}}"},"annotations":{"summary":"secret text"},
            "startsAt":"2026-11-22T{{from}}Z"{{(to == null ? "" : $",\"endsAt\":\"2026-11-22T{to}Z\"")}}}]}
            """)).Code);

    /// <summary>A feed, held against what RFC 4287 asks of one.</summary>
    private static XElement Parsed(string body)
    {
        using var text = new StringReader(body);
        using var reader = XmlReader.Create(text, new XmlReaderSettings { DtdProcessing = DtdProcessing.Prohibit, CheckCharacters = true });
        var feed = XDocument.Load(reader).Root!;
        Assert.Equal(Atom + "feed", feed.Name);
        Assert.NotEqual("", feed.Element(Atom + "author")!.Element(Atom + "name")!.Value);
        Assert.Single(feed.Elements(Atom + "link"), l => l.Attribute("rel")?.Value == "self");
        var ids = new List<string>();
        foreach (var part in feed.Elements(Atom + "entry").Prepend(feed))
        {
            ids.Add(part.Elements(Atom + "id").Single().Value);
            Assert.Matches("^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$", ids[^1]);
            Assert.NotEqual("", part.Elements(Atom + "title").Single().Value);
            foreach (var time in part.Elements(Atom + "updated").Concat(part.Elements(Atom + "published")))
                Assert.Matches(@"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$", time.Value);
            Assert.Single(part.Elements(Atom + "updated"));
        }
        Assert.Equal(ids.Distinct(), ids);
        var updated = feed.Elements(Atom + "entry").Select(e => (DateTime)e.Element(Atom + "updated")!).ToList();
        Assert.Equal(updated.OrderDescending(), updated);
        Assert.Equal((DateTime)feed.Element(Atom + "updated")!, updated.FirstOrDefault((DateTime)feed.Element(Atom + "updated")!));
        return feed;
    }

    private static async Task<XElement> FeedAsync(Host host, string query = "")
    {
        var answer = await host.GetAsync("/feed" + query);
        Assert.Equal((200, "application/atom+xml"), (answer.Code, answer.Type?.MediaType));
        return Parsed(answer.Body);
    }

    /// <summary>As <c>updated title | content</c>, the latest first.</summary>
    private static async Task<List<string>> EntriesAsync(Host host, string query = "") => [.. (await FeedAsync(host, query))
        .Elements(Atom + "entry").Select(e => $"{Time(e)} {e.Element(Atom + "title")!.Value} | {e.Element(Atom + "content")!.Value}")];

    private static string Time(XElement entry) => entry.Element(Atom + "updated")!.Value[11..16];

    private static async Task<List<string>> IdsAsync(Host host) =>
        [.. (await FeedAsync(host)).Elements(Atom + "entry").Select(e => e.Element(Atom + "id")!.Value)];

    private static async Task TitlesAsync(Host host, params string[] titles) =>
        Assert.Equal(titles, (await EntriesAsync(host)).Select(e => e.Split(" | ")[0]));

    // ---- What is in it when ----

    [Fact]
    public async Task OutageAndItsEndAreOneEntryEachOnceItLastedFiveMinutes()
    {
        await using var host = Host.Serving();
        await FireAsync(host, "web", "11:58:00");
        // What is asked is of the millisecond before.
        host.Clock.Advance(TimeSpan.FromMinutes(3));
        Assert.Empty(await EntriesAsync(host));
        host.Clock.Advance(TimeSpan.FromMilliseconds(1));
        Assert.Equal(["12:03 ✖ Down: web Down n1:80 | web Down n1:80 of platform shop went down at 2026-11-22 11:58 (UTC)."],
            await EntriesAsync(host));
        var ids = await IdsAsync(host);
        host.Clock.Advance(TimeSpan.FromMinutes(20));
        await FireAsync(host, "web", "11:58:00", "12:20:00");
        Assert.Equal([
            "12:23 ✔ No longer down: web Down n1:80 | web Down n1:80 of platform shop has not been down since 2026-11-22 12:20 (UTC). "
                + "It was down from 2026-11-22 11:58 (UTC), for 22 min.",
            "12:03 ✖ Down: web Down n1:80 | web Down n1:80 of platform shop went down at 2026-11-22 11:58 (UTC)."], await EntriesAsync(host));
        Assert.Equal(ids[0], (await IdsAsync(host))[1]);
        Assert.DoesNotContain("secret", (await host.GetAsync("/feed")).Body, Ordinal);
    }

    [Fact]
    public async Task ShortOrDegradedIsInNoFeedUnlessItWasSeenLongerOnce()
    {
        await using var host = Host.Serving();
        await FireAsync(host, "short", "11:00:00", "11:04:59");
        await FireAsync(host, "slow", "11:00:00", severity: "warning");
        await FireAsync(host, "late", "11:58:00");
        host.Clock.Advance(TimeSpan.FromMinutes(4));
        await TitlesAsync(host, "12:03 ✖ Down: late Down n1:80");
        // It ended before it had lasted so long, which came to be known later.
        await FireAsync(host, "late", "11:58:00", "12:01:00");
        await TitlesAsync(host, "12:04 ✔ No longer down: late Down n1:80", "12:03 ✖ Down: late Down n1:80");
    }

    [Fact]
    public async Task EndThatIsTakenBackSaysSo()
    {
        await using var host = Host.Serving();
        await FireAsync(host, "web", "11:00:00", "11:30:00");
        host.Clock.Advance(TimeSpan.FromMinutes(1));
        await FireAsync(host, "web", "11:00:00");
        await TitlesAsync(host, "12:01 ↩ Taken back: web Down n1:80 no longer down", "12:00 ✖ Down: web Down n1:80");
        Assert.EndsWith("That is taken back: it was still down, or went down again within the same outage.", (await EntriesAsync(host))[0], Ordinal);
        host.Clock.Advance(TimeSpan.FromMinutes(1));
        await FireAsync(host, "web", "11:00:00", "12:01:30");
        await TitlesAsync(host, "12:02 ✔ No longer down: web Down n1:80", "12:00 ✖ Down: web Down n1:80");
    }

    [Fact]
    public async Task OutageThatBeganSoonerIsAnotherAndTheFirstIsAPartOfIt()
    {
        await using var host = Host.Serving();
        await FireAsync(host, "web", "11:00:00", "11:30:00");
        host.Clock.Advance(TimeSpan.FromMinutes(1));
        await FireAsync(host, "web", "10:50:00", "11:10:00", severity: "page");
        var entries = await EntriesAsync(host);
        Assert.Equal(["12:01 ↩ Taken back: web Down n1:80 down", "12:01 ↩ Taken back: web Down n1:80 no longer down",
            "12:01 ✔ No longer down: web Down n1:80", "12:01 ✖ Down: web Down n1:80"],
            entries.Select(e => e.Split(" | ")[0]).Order(StringComparer.Ordinal));
        Assert.EndsWith("That is taken back: it is a part of the outage that began at 2026-11-22 10:50 (UTC).",
            entries.Single(e => e.Contains("n1:80 down |", Ordinal)), Ordinal);
    }

    [Theory]
    [InlineData("correction", "up", "a correction says that it was “up” then")]
    [InlineData("correction", "degraded", "a correction says that it was “degraded” then")]
    [InlineData("retired", null, "the service is retired, and was already retired then")]
    public async Task WhatANoteTakesAwayIsAnUpdatedEntryThatSaysSo(string kind, string? status, string reason)
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "11:00:00", "11:30:00");
        var ids = await IdsAsync(host);
        host.Clock.Advance(TimeSpan.FromMinutes(2));
        await NoteAsync(host, $$"""
            {"id":"n","kind":"{{kind}}","from":"2026-11-22T11:00Z","to":"2026-11-22T12:00Z","text":"internal","author_name":"Jane"
            {{(status == null ? "" : $",\"status\":\"{status}\"")}}}
            """);
        var entries = await EntriesAsync(host);
        Assert.Equal([
            "12:02 ↩ Taken back: web Down n1:80 no longer down | This entry said that web Down n1:80 of platform shop had not been down since "
                + $"2026-11-22 11:30 (UTC). That is taken back: {reason}.",
            "12:02 ↩ Taken back: web Down n1:80 down | This entry said that web Down n1:80 of platform shop went down at "
                + $"2026-11-22 11:00 (UTC). That is taken back: {reason}."], entries);
        Assert.Equal(ids, await IdsAsync(host));
        Assert.DoesNotMatch("internal|Jane|editor", (await host.GetAsync("/feed")).Body);
        // The note is withdrawn, and all is as it was.
        host.Clock.Advance(TimeSpan.FromMinutes(2));
        await NoteAsync(host, """{"id":"n","withdrawn":true}""");
        await TitlesAsync(host, "12:04 ✔ No longer down: web Down n1:80", "12:04 ✖ Down: web Down n1:80");
        Assert.Equal(ids, await IdsAsync(host));
    }

    [Fact]
    public async Task OutageThatACorrectionMakesIsInTheFeedAndStaysWhenItIsWithdrawn()
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "08:00:00", "08:01:00");
        await NoteAsync(host, """
            {"id":"n","kind":"correction","status":"down","from":"2026-11-22T10:00Z","to":"2026-11-22T11:00Z","service":"web","text":"t"}
            """);
        await TitlesAsync(host, "12:00 ✔ No longer down: web Down n1:80", "12:00 ✖ Down: web Down n1:80");
        var ids = await IdsAsync(host);
        host.Clock.Advance(TimeSpan.FromMinutes(1));
        await NoteAsync(host, """{"id":"n","withdrawn":true}""");
        await TitlesAsync(host, "12:01 ↩ Taken back: web Down n1:80 no longer down", "12:01 ↩ Taken back: web Down n1:80 down");
        Assert.Equal(ids, await IdsAsync(host));
        Assert.All(await EntriesAsync(host), e => Assert.EndsWith("the correction that said so was changed or withdrawn.", e, Ordinal));
    }

    [Theory]
    [InlineData("10:00", "12:00", "It is excluded: it does not count.")]
    [InlineData("11:10", "11:20", "Part of it is excluded: that part does not count.")]
    public async Task ExclusionIsSaidOfTheOutage(string from, string to, string said)
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "11:00:00", "11:30:00");
        host.Clock.Advance(TimeSpan.FromMinutes(1));
        await NoteAsync(host, $$"""{"kind":"excluded","from":"2026-11-22T{{from}}Z","to":"2026-11-22T{{to}}Z","text":"t"}""");
        Assert.Equal($"12:01 ✖ Down: web Down n1:80 | web Down n1:80 of platform shop went down at 2026-11-22 11:00 (UTC). {said}",
            (await EntriesAsync(host))[0]);
    }

    [Fact]
    public async Task MaintenanceIsAnEntryThatItsVersionsUpdate()
    {
        await using var host = WithEditor();
        await FireAsync(host, "web", "08:00:00", "08:01:00");
        await NoteAsync(host, """
            {"id":"m","kind":"maintenance","from":"2026-11-22T12:10Z","to":"2026-11-22T14:00Z","platform":"shop","text":"New disks"}
            """);
        Assert.Equal(["12:00 ⚒ Maintenance of platform shop: 2026-11-22 12:10 (UTC) to 2026-11-22 14:00 (UTC) | "
            + "Maintenance of platform shop, 2026-11-22 12:10 (UTC) to 2026-11-22 14:00 (UTC). New disks"], await EntriesAsync(host));
        host.Clock.Advance(TimeSpan.FromMinutes(5));
        await NoteAsync(host, """{"id":"m","to":"2026-11-22T15:00Z"}""");
        Assert.EndsWith("15:00 (UTC). It was announced for 2026-11-22 12:10 (UTC) to 2026-11-22 14:00 (UTC) before. New disks",
            (await EntriesAsync(host)).Single(), Ordinal);
        host.Clock.Advance(TimeSpan.FromMinutes(10));
        await FireAsync(host, "web", "12:12:00");
        host.Clock.Advance(TimeSpan.FromMinutes(5));
        Assert.EndsWith("That was under announced maintenance.", (await EntriesAsync(host))[0], Ordinal);
        Assert.Single(await EntriesAsync(host, "?platform=shop&service=web"), e => e.Contains('⚒', Ordinal));
        await NoteAsync(host, """{"id":"m","withdrawn":true}""");
        Assert.Contains("12:20 ↩ Taken back: maintenance of platform shop | The maintenance of platform shop, "
            + "2026-11-22 12:10 (UTC) to 2026-11-22 15:00 (UTC), is withdrawn.", await EntriesAsync(host));
    }

    [Fact]
    public async Task FeedOfAPlatformOrServiceHasNoOthersAndAnIdOfItsOwn()
    {
        await using var host = Host.Serving();
        await FireAsync(host, "web", "11:00:00");
        await FireAsync(host, "db", "11:01:00", platform: "back office");
        async Task HasAsync(string query, string services) => Assert.Equal(services, string.Join(' ', (await EntriesAsync(host, query))
            .Select(e => SentenceOfService().Match(e).Groups[1].Value)));
        await HasAsync("", "db web");
        await HasAsync("?partition=INS", "db web");
        await HasAsync("?platform=back+office", "db");
        await HasAsync("?service=web&facet=Down&location=n1:80", "web");
        var feeds = new[] { await FeedAsync(host), await FeedAsync(host, "?platform=shop"), await FeedAsync(host, "?service=web") };
        Assert.Equal(3, feeds.Select(f => f.Element(Atom + "id")!.Value).Distinct().Count());
        Assert.Equal("Service status: shop", feeds[1].Element(Atom + "title")!.Value);
        Assert.Equal("feed?platform=shop", feeds[1].Elements(Atom + "link").First().Attribute("href")!.Value);
        Assert.Equal("There is no such service.", (await host.GetAsync("/feed?platform=other")).Problem(404));
        Assert.StartsWith("range is not a parameter of the feed; allowed: partition, platform,", (await host.GetAsync("/feed?range=7d")).Problem(400), Ordinal);
    }

    [Fact]
    public async Task FeedThatTheClientHasIsNotSentAgain()
    {
        await using var host = Host.Serving();
        Assert.Empty(await EntriesAsync(host));
        await FireAsync(host, "web", "11:00:00");
        var answer = await host.GetAsync("/feed");
        Assert.Equal("no-cache, private", answer.Headers.CacheControl?.ToString());
        async Task<string> AgainAsync(string tags) => await host.SendRawAsync(
            $"GET /feed HTTP/1.1\r\nHost: a\r\nIf-None-Match: {tags}\r\nConnection: close\r\n\r\n");
        Assert.Equal("HTTP/1.1 304 Not Modified", await AgainAsync($"\"other\", {answer.Headers.ETag}"));
        Assert.Equal("HTTP/1.1 200 OK", await AgainAsync("\"other\""));
        await FireAsync(host, "db", "11:00:00");
        Assert.Equal("HTTP/1.1 200 OK", await AgainAsync($"{answer.Headers.ETag}"));
    }

    [Fact]
    public async Task NamesOfStrangersAreTextInFeedAndBadge()
    {
        await using var host = Host.Serving();
        const string Name = """<b>&\"'\u202e\ufffe\u0001]]>x""";
        Assert.Equal(204, (await host.PostAsync($$"""
            {"alerts":[{"status":"firing","labels":{"alertname":"Down","platform":"{{Name}}","job":"{{Name}}","instance":"n{a=\"secret\"}"},
            "startsAt":"2026-11-22T11:00:00Z"}]}
            """)).Code);
        var entry = (await EntriesAsync(host)).Single();
        Assert.StartsWith("12:00 ✖ Down: <b>&\"'\ufffd\ufffd\ufffd]]>x Down n | ", entry, Ordinal);
        Assert.DoesNotContain("secret", entry, Ordinal);
        var query = "?service=" + Uri.EscapeDataString("<b>&\"'\u202e\ufffe\u0001]]>x");
        Assert.Equal("Service status: <b>&\"'\ufffd\ufffd\ufffd]]>x", (await FeedAsync(host, query)).Element(Atom + "title")!.Value);
        Assert.Equal("<b>&\"'\ufffd\ufffd\ufffd]]>x: down", (await BadgeAsync(host, query)).Element(Svg + "title")!.Value);
    }

    [Fact]
    public async Task FeedHasTheLatestFiftyOfThirtyDays()
    {
        await using var host = Host.Serving();
        for (var i = 0; i < Feed.MostEntries + 5; i++)
        {
            await FireAsync(host, $"s{i:00}", "11:00:00");
            host.Clock.Advance(TimeSpan.FromMinutes(1));
        }
        var entries = await EntriesAsync(host);
        Assert.Equal(Enumerable.Range(5, Feed.MostEntries).Reverse().Select(i => $"s{i:00}"),
            entries.Select(e => SentenceOfService().Match(e).Groups[1].Value));
        host.Clock.Advance(Feed.Window - TimeSpan.FromMinutes(10));
        Assert.Equal(10, (await EntriesAsync(host)).Count);
    }

    /// <summary>A long past costs nothing, unless more became known of it.</summary>
    [Fact]
    public async Task FeedGoesThroughWhatIsNewAlone()
    {
        await using var host = Host.Serving();
        for (var i = 0; i < 60; i++)
        {
            // The first ones were too short for a feed.
            var length = TimeSpan.FromMinutes(i < 20 ? 2 : 20);
            var starts = host.Clock.UtcNow;
            host.Clock.Advance(length);
            Assert.Equal(204, (await host.PostAsync(Dialect.Payload(
                Dialect.Alert(Services[0], "down", starts, ""), Dialect.Alert(Services[0], "up", starts + length, "")))).Code);
            host.Clock.Advance(TimeSpan.FromHours(8));
        }
        using var snapshot = await host.Store.ReadAsync();
        long Bytes(DateTime floor)
        {
            var before = GC.GetAllocatedBytesForCurrentThread();
            _ = new Feed(Questions.Of(snapshot), All, Zone.Utc).EntriesSince(floor, snapshot.Moment - Feed.Window);
            return GC.GetAllocatedBytesForCurrentThread() - before;
        }

        _ = Bytes(snapshot.Moment - TimeSpan.FromDays(1));
        var (lately, all) = (Bytes(snapshot.Moment - TimeSpan.FromDays(1)), Bytes(snapshot.Moment - Feed.Window));
        Assert.True(lately * 3 < all, $"{lately} of {all} bytes");
    }

    // ---- Random histories ----

    private static readonly ServiceKey[] Services = [.. Enumerable.Range(0, 3).Select(i => new ServiceKey("INS", $"p{i / 2}", $"s{i}", "f", ""))];

    /// <summary>
    /// Whatever comes in whatever order: an entry that was in the feed stays in it, under its id, is never older
    /// than it was, and what it says does not change without its time. A feed from a later time on is a part of
    /// the whole, and those of services are all of it. What is down by the timeline is down in the feed.
    /// </summary>
    [Theory]
    [InlineData(2)]
    [InlineData(13)]
    [InlineData(24)]
    [InlineData(104)]
    [InlineData(34)]
    public async Task EntryThatWasInTheFeedStaysAndIsNeverOlder(int seed)
    {
        const int Steps = 64;
        var random = new Random(seed);
        var clock = new ManualClock(Host.Now);
        using var store = new Store(_directory, StoreChild.Rules, clock,
            new Log(LogLevel.Trace, false, TextWriter.Null, clock), new Meters("test", "test"));
        var seen = new Dictionary<string, FeedEntry>();
        var episodes = new List<IncomingAlert>();
        var notes = new List<string>();
        for (var step = 0; step < Steps; step++)
        {
            clock.Advance(TimeSpan.FromSeconds(random.Next(3) == 0 ? random.Next(30) : random.Next(2400)));
            if (random.Next(5) > 0)
                await StepAsync(store, random, clock.UtcNow, episodes, notes);
            clock.Advance(TimeSpan.FromSeconds(random.Next(2) * random.Next(900)));
            using var snapshot = await store.ReadAsync();
            Check(Questions.Of(snapshot), step, random, seen);
        }
        Assert.True(seen.Count > 5, $"{seen.Count} entries");
    }

    private static async Task StepAsync(Store store, Random random, DateTime now, List<IncomingAlert> episodes, List<string> notes)
    {
        DateTime Ago(int seconds) => Question.TruncateToMilliseconds(now.AddSeconds(-random.Next(seconds)))!.Value;
        var kind = random.Next(10);
        if (kind < 3 || episodes.Count == 0)
        {
            var service = Services[random.Next(Services.Length)];
            var (starts, number) = (Ago(7200), random.Next(3));
            episodes.Add(new(service, false, AlertSource.Webhook, "", $$"""{"alertname":"a{{number}}","service":"{{service.Service}}"}""",
                random.Next(4) == 0 ? "degraded" : "down", starts, random.Next(3) == 0 ? starts.AddSeconds(random.Next(1, 3600)) : null, "d"));
            await store.AppendAsync("INS", StoreChild.Body(episodes[^1]));
        }
        else if (kind < 7)
        {
            var i = random.Next(episodes.Count);
            // It ends, again and again, or fires again.
            var ends = episodes[i].Starts.AddSeconds(random.Next(1, 1 + Math.Max(1, (int)(now - episodes[i].Starts).TotalSeconds)));
            episodes[i] = episodes[i] with { Ends = random.Next(4) == 0 ? null : Question.TruncateToMilliseconds(ends), Uncertain = random.Next(6) == 0 };
            await store.AppendAsync("INS", StoreChild.Body(episodes[i]));
        }
        else
        {
            var id = notes.Count > 0 && random.Next(2) == 0 ? notes[random.Next(notes.Count)] : null;
            var (from, kinds) = (Ago(7200), new[] { "correction", "correction", "excluded", "maintenance", "retired", "comment" });
            var fields = new Dictionary<string, string?> { ["id"] = id, ["text"] = "t" };
            if (id != null && random.Next(2) == 0)
                fields["withdrawn"] = random.Next(3) == 0 ? "false" : "true";
            else
            {
                fields["from"] = Rfc3339.Format(from);
                fields["to"] = random.Next(5) == 0 ? null : Rfc3339.Format(from.AddSeconds(random.Next(60, 9000)));
                if (id == null)
                {
                    fields["kind"] = kinds[random.Next(kinds.Length)];
                    fields["status"] = fields["kind"] == "correction" ? new[] { "up", "down", "degraded" }[random.Next(3)] : null;
                }
                fields["service"] = random.Next(3) == 0 ? null : $"s{random.Next(3)}";
            }
            if (id == null)
                fields.Remove("id");
            var draft = NoteForm.Parse(fields, now, Zone.Utc);
            var answer = await store.AddAsync((writer, at) => NoteBook.Add(writer, draft, "INS", "e", at));
            if (answer.Refusal is { } refusal && refusal.Code != 404 && !refusal.Message.Contains("status", Ordinal))
                throw refusal;
            if (answer.Note is { } note && !notes.Contains(note.Last.Id))
                notes.Add(note.Last.Id);
        }
    }

    private static void Check(Questions questions, int step, Random random, Dictionary<string, FeedEntry> seen)
    {
        var earliest = questions.Moment - Feed.Window;
        var feed = new Feed(questions, All, Zone.Utc);
        var entries = feed.Entries();
        var now = entries.ToDictionary(e => e.Id);
        foreach (var (id, before) in seen)
        {
            if (!now.TryGetValue(id, out var entry))
            {
                Assert.True(entries.Count == Feed.MostEntries && before.Updated <= entries[^1].Updated, $"{questions.Moment:O}: {before} is gone");
                continue;
            }
            Assert.True(entry.Updated >= before.Updated, $"{questions.Moment:O}: {before} is older: {entry}");
            Assert.True(entry.Updated > before.Updated || entry.Text == before.Text, $"{questions.Moment:O}: {before} has changed in silence: {entry}");
            Assert.True(entry.Updated <= questions.Moment);
        }
        foreach (var entry in entries)
            seen[entry.Id] = entry;
        // What is found in other ways takes its time.
        if (step % 8 != 7)
            return;
        Parsed(Encoding.UTF8.GetString(feed.Write().Span));
        var floor = questions.Moment.AddSeconds(-random.Next(40_000));
        Assert.Equal(entries.TakeWhile(e => e.Updated >= floor), feed.EntriesSince(floor, earliest));
        var least = entries.Count == Feed.MostEntries ? entries[^1].Updated.AddTicks(1) : earliest;
        Assert.Equal(entries.Where(e => e.Updated >= least).Select(e => e.Id).Order(StringComparer.Ordinal),
            Services.SelectMany(s => new Feed(questions, new(s.Partition, s.Platform, s.Service, s.Facet, s.Location), Zone.Utc).Entries())
                .Where(e => e.Updated >= least).Select(e => e.Id).Concat(entries.Where(e => e.Updated >= least && IsOfWork(e)).Select(e => e.Id))
                .Distinct().Order(StringComparer.Ordinal));
        var down = questions.Outages(All, earliest, null, Counting.Plain)
            .Where(o => o.Last - o.From >= OutageEntries.LeastLength).Select(o => IdOf(o)).ToHashSet();
        Assert.True(entries.Count == Feed.MostEntries || down.IsSubsetOf(now.Keys), "an outage is in no entry");
        var all = questions.Outages(All, earliest, null, Counting.Plain).Select(IdOf).ToHashSet();
        Assert.All(entries.Where(e => e.Text.Title.StartsWith('✖')), e => Assert.Contains(e.Id, all));
        Assert.All(entries.Where(e => e.Text.Title.StartsWith('↩') && !IsOfWork(e)), e => Assert.DoesNotContain(e.Id, down));
    }

    /// <summary>Also of a service that was never heard of.</summary>
    private static bool IsOfWork(FeedEntry entry) => entry.Text.Title.Contains("aintenance", Ordinal);

    private static string IdOf(OutageRow outage) => FeedEntry.IdOf("outage", outage.Service.Partition, outage.Service.Platform,
        outage.Service.Service, outage.Service.Facet, outage.Service.Location, UnixTime.From(outage.From).ToString(CultureInfo.InvariantCulture));

    // ---- The badge ----

    private static async Task<XElement> BadgeAsync(Host host, string query, int code = 200)
    {
        var answer = await host.GetAsync("/badge.svg" + query);
        Assert.Equal((code, "image/svg+xml", "max-age=30"), (answer.Code, answer.Type?.MediaType, answer.Headers.CacheControl?.ToString()));
        Assert.StartsWith("default-src 'none';", answer.Headers.GetValues("Content-Security-Policy").Single(), Ordinal);
        using var text = new StringReader(answer.Body);
        using var reader = XmlReader.Create(text, new XmlReaderSettings { DtdProcessing = DtdProcessing.Prohibit });
        var svg = XDocument.Load(reader).Root!;
        Assert.Equal((Svg + "svg", "img"), (svg.Name, svg.Attribute("role")?.Value));
        Assert.Equal(svg.Element(Svg + "title")!.Value, svg.Attribute("aria-label")!.Value);
        // Texts have their places whatever the font, and nothing comes from elsewhere.
        var (width, texts) = ((int)svg.Attribute("width")!, svg.Descendants(Svg + "text").ToList());
        Assert.All(texts, t => Assert.InRange((int)t.Attribute("x")! + (int)t.Attribute("textLength")!, 1, width - 6));
        Assert.True((int)texts[0].Attribute("x")! + (int)texts[0].Attribute("textLength")! < (int)texts[1].Attribute("x")!);
        Assert.DoesNotMatch("href|<script|<style|url\\(|on[a-z]+=", answer.Body);
        return svg;
    }

    private static async Task<string> ShownAsync(Host host, string query, int code = 200) =>
        string.Join(" | ", (await BadgeAsync(host, query, code)).Descendants(Svg + "text").Select(t => t.Value));

    [Fact]
    public async Task BadgeShowsTheWorstOfWhatItIsAbout()
    {
        await using var host = WithEditor();
        Assert.Equal("services | ? not known", await ShownAsync(host, ""));
        await FireAsync(host, "web", "08:00:00", "09:00:00");
        Assert.Equal("services | ✔ up", await ShownAsync(host, ""));
        await FireAsync(host, "db", "08:00:00", "09:00:00", platform: "back");
        Assert.Equal("services | ✔ all 2 up", await ShownAsync(host, ""));
        await FireAsync(host, "slow", "11:00:00", severity: "warning");
        Assert.Equal("services | ◆ 1 of 3 degraded", await ShownAsync(host, ""));
        Assert.Equal("slow Down n1:80 | ◆ degraded", await ShownAsync(host, "?service=slow&facet=Down&location=n1:80"));
        await FireAsync(host, "web", "11:00:00");
        Assert.Equal("services | ✖ 1 of 3 down", await ShownAsync(host, ""));
        Assert.Equal("web | ✖ down", await ShownAsync(host, "?partition=INS&service=web"));
        Assert.Equal("back | ✔ up", await ShownAsync(host, "?platform=back"));
        Assert.Equal("web: down", (await BadgeAsync(host, "?service=web")).Element(Svg + "title")!.Value);
        await NoteAsync(host, """{"kind":"maintenance","from":"2026-11-22T11:00Z","to":"2026-11-22T14:00Z","service":"web","text":"t"}""");
        Assert.Equal("web | ⚒ under maintenance", await ShownAsync(host, "?service=web"));
        Assert.Equal("services | ◆ 1 of 3 degraded", await ShownAsync(host, ""));
        await NoteAsync(host, """{"kind":"retired","from":"2026-11-22T11:30Z","service":"slow","text":"t"}""");
        Assert.Equal("services | ⚒ 1 of 2 under maintenance", await ShownAsync(host, ""));
        await NoteAsync(host, """{"kind":"correction","status":"down","from":"2026-11-22T11:30Z","service":"db","text":"t"}""");
        Assert.Equal("back | ✖ down", await ShownAsync(host, "?platform=back"));
    }

    [Fact]
    public async Task BadgeOfWhatIsNotKnownIsAPictureToo()
    {
        await using var host = Host.Serving();
        await FireAsync(host, "web", "11:00:00");
        Assert.Equal("nobody | ? not known", await ShownAsync(host, "?service=nobody", 404));
        Assert.Equal("nobody | ? not known", await ShownAsync(host, "?service=nobody&range=7d", 404));
        Assert.StartsWith("range: '1y' is not valid; allowed: 24h, 7d, 30d, 90d", (await host.GetAsync("/badge.svg?range=1y")).Problem(400), Ordinal);
        Assert.StartsWith("color is not a parameter of the badge;", (await host.GetAsync("/badge.svg?color=red")).Problem(400), Ordinal);
        // It is heard of no more.
        await FireAsync(host, "web", "11:00:00", "11:30:00");
        host.Clock.Advance(TimeSpan.FromDays(40));
        Assert.Equal("web | ? not known", await ShownAsync(host, "?service=web"));
    }

    [Fact]
    public async Task BadgeOfARangeShowsTheAvailabilityCutToThousandths()
    {
        await using var host = Host.Serving();
        await FireAsync(host, "web", "11:00:00", "11:00:04");
        // Four seconds of the hour that is known of it, 99.8889 %.
        Assert.Equal("web, 24 hours | 99.888 %", await ShownAsync(host, "?service=web&range=24h"));
        await FireAsync(host, "db", "11:00:00", "11:30:00");
        Assert.Equal("services, 7 days | 74.944 %", await ShownAsync(host, "?range=7d"));
    }

    [Theory]
    [InlineData(Badge.Down)]
    [InlineData(Badge.Degraded)]
    [InlineData(Badge.Unknown)]
    [InlineData(Badge.Maintained)]
    [InlineData(Badge.Up)]
    [InlineData(Badge.Back)]
    public void WhiteOnEachColourIsReadable(string colour)
    {
        double Part(int at)
        {
            var value = int.Parse(colour.AsSpan(at, 2), NumberStyles.HexNumber, CultureInfo.InvariantCulture) / 255.0;
            return value <= 0.04045 ? value / 12.92 : Math.Pow((value + 0.055) / 1.055, 2.4);
        }

        Assert.InRange(1.05 / ((0.2126 * Part(1)) + (0.7152 * Part(3)) + (0.0722 * Part(5)) + 0.05), 7, 21);
    }

    // ---- The page ----

    [Fact]
    public async Task EntryOfThePageIsThatOfTheProgram()
    {
        await using var host = Host.Serving();
        await FireAsync(host, "checkout", "11:00:00", "11:47:00");
        var entries = (await FeedAsync(host)).Elements(Atom + "entry").Select(e => e.ToString(SaveOptions.DisableFormatting)
            .Replace(" xmlns=\"http://www.w3.org/2005/Atom\"", "", Ordinal));
        Assert.Contains(string.Join('\n', DocsPage.Named("page").CodeOf("Entries", "xml")), entries);
    }

    [Theory]
    [InlineData("html")]
    [InlineData("markdown")]
    public async Task BadgesOfThePageAreAnswered(string language)
    {
        await using var host = Host.Serving();
        await FireAsync(host, "checkout", "11:00:00", "11:47:00");
        var addresses = AddressOfBadge().Matches(string.Join('\n', DocsPage.Named("page").CodeOf("Badge", language)));
        Assert.NotEmpty(addresses);
        foreach (var address in addresses.Select(a => a.Groups[1].Value))
            await BadgeAsync(host, address);
    }

    [GeneratedRegex(@"\| (\S+) Down n1:80 of")]
    private static partial Regex SentenceOfService();

    [GeneratedRegex(@"https://status\.example\.com/badge\.svg([^\s"")]*)")]
    private static partial Regex AddressOfBadge();
}
