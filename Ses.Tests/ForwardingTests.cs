using System.Diagnostics;
using System.Net;
using System.Text;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>Facts travel: what is sent, what becomes of answers, and what a receiver takes.</summary>
public sealed class ForwardingTests : IDisposable
{
    private const StringComparison Ordinal = StringComparison.Ordinal;

    private static readonly TimeSpan Soon = TimeSpan.FromSeconds(60);

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-forward-").FullName;
    private readonly StringWriter _log = new();
    private readonly Meters _meters = new("test", "test");

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    private Log Log => new(LogLevel.Trace, json: false, TextWriter.Synchronized(_log), TimeProvider.System);

    /// <summary>A store, and what forwards of it.</summary>
    private sealed class Sender : IAsyncDisposable
    {
        private readonly CancellationTokenSource _stop = new();
        private readonly Task _running;

        public Sender(ForwardingTests test, string name, params string[] flags)
        {
            var options = Front.OptionsOf(["--name", name, .. flags]);
            Store = new(Directory.CreateDirectory(Path.Combine(test._dir, name)).FullName, StoreRules.Of(options),
                TimeProvider.System, test.Log, test._meters);
            Forwarder = new FactForwarder(options.Targets.Single(), Store, TimeProvider.System, test.Log, test._meters);
            _running = Forwarder.RunAsync(_stop.Token);
        }

        public Store Store { get; }

        public Forwarder Forwarder { get; }

        public async Task HearAsync(int count, int first = 0, string partition = "INS")
        {
            for (var i = first; i < first + count; i++)
                await Store.AppendAsync(partition, StoreChild.Body(Site.Alert(Site.Service(i, partition), "down", DateTime.UtcNow)));
        }

        public async Task<List<string>> LinesAsync()
        {
            using var snapshot = await Store.ReadAsync();
            return [.. FactLines.Read(snapshot, null, null, null)];
        }

        public async ValueTask DisposeAsync()
        {
            await _stop.CancelAsync();
            await _running;
            Store.Dispose();
            _stop.Dispose();
        }
    }

    private static string IdOf(string line) => line.Split("\"id\":\"")[1][..32];

    private static async Task AssertHasAllAsync(Receiver receiver, Sender sender)
    {
        var lines = await sender.LinesAsync();
        await Wait.UntilAsync(() => receiver.Taken.Distinct().Count() >= lines.Count, Soon, "all lines");
        // Each came after the one before it, but for those that were sent again.
        Assert.Equal(lines, receiver.Taken.Distinct());
        await Wait.UntilAsync(() => sender.Forwarder.State is { Backlog: 0, Oldest: null, Trouble: null }, Soon, "no backlog");
    }

    private double Failures(string reason) => _meters.ForwardFailures.WithLabels("peer", reason).Value;

    [Fact]
    public async Task FactsAreSentInOrderOnceWithASignOfLife()
    {
        using var receiver = new Receiver();
        await using (var sender = new Sender(this, "a", "--peer", receiver.Url + "base/", "--peer-username", "u", "--peer-password", "p:w"))
        {
            receiver.Answering = (context, _) =>
            {
                Assert.Equal(("POST", "/base/import", "application/x-ndjson", "Basic " + Convert.ToBase64String("u:p:w"u8)),
                    (context.Request.HttpMethod, context.Request.RawUrl, context.Request.ContentType,
                        context.Request.Headers["Authorization"]!));
                return null;
            };
            await sender.HearAsync(700);
            await AssertHasAllAsync(receiver, sender);
            Assert.Equal(701, receiver.Taken.Count);
            Assert.All(receiver.Posts, p => Assert.StartsWith("{\"kind\":\"alive\",\"by\":\"a\",\"at\":\"2", p[0], Ordinal));
            Assert.Equal(701, _meters.ForwardLines.WithLabels("peer", "sent").Value);
        }
        // The position is kept: only what is new is sent.
        await using var again = new Sender(this, "a", "--peer", receiver.Url + "base/", "--peer-username", "u", "--peer-password", "p:w");
        await again.HearAsync(1, first: 700);
        await AssertHasAllAsync(receiver, again);
        Assert.Equal(702, receiver.Taken.Count);
    }

    [Fact]
    public async Task TokenIsSentToo()
    {
        using var receiver = new Receiver { Answering = (context, _) => context.Request.Headers["Authorization"] == "Bearer t1" ? 200 : 401 };
        await using var sender = new Sender(this, "a", "--hub", receiver.Url, "--hub-token", "t1", "--hub-prefix", "zrh-");
        await sender.HearAsync(3);
        await Wait.UntilAsync(() => receiver.Taken.Count == 4, Soon, "lines");
        Assert.All(receiver.Taken, l => Assert.Contains("\"partition\":\"zrh-INS\"", l, Ordinal));
        // The ids are those of what is sent.
        Assert.All(receiver.Taken, l => Assert.NotNull(FactLine.Parse(l, DateTime.UtcNow)));
        Assert.DoesNotContain(receiver.Taken.Select(IdOf), (await sender.LinesAsync()).Select(IdOf).Contains);
    }

    /// <summary>Whatever goes wrong on the way is tried again, and nothing is skipped.</summary>
    [Theory]
    [InlineData(401, "401")]
    [InlineData(403, "403")]
    [InlineData(404, "404")]
    [InlineData(409, "409")]
    [InlineData(302, "302")]
    [InlineData(429, "429")]
    [InlineData(500, "500")]
    [InlineData(503, "503")]
    // An HttpListener that aborts answers 200 all the same, without a body: of the second the lines were taken.
    [InlineData(-1, "answer")]
    [InlineData(-200, "answer")]
    public async Task WhatIsNotTakenIsSentAgain(int code, string reason)
    {
        var failures = 0;
        using var receiver = new Receiver
        {
            Answering = (_, _) => Interlocked.Increment(ref failures) <= 2 ? code : null,
        };
        await using var sender = new Sender(this, "a", "--peer", receiver.Url);
        await sender.HearAsync(20);
        await AssertHasAllAsync(receiver, sender);
        Assert.Equal(2, Failures(reason));
        Assert.Contains("the peer accepts nothing; SeS retries", _log.ToString(), Ordinal);
        Assert.Contains("the peer accepts what is sent again", _log.ToString(), Ordinal);
    }

    [Fact]
    public async Task RetryAfterIsObeyed()
    {
        DateTime? refused = null, came = null;
        using var receiver = new Receiver
        {
            Answering = (context, _) =>
            {
                if (refused == null)
                {
                    context.Response.Headers["Retry-After"] = "4";
                    refused = DateTime.UtcNow;
                    return 503;
                }
                came ??= DateTime.UtcNow;
                return null;
            },
        };
        await using var sender = new Sender(this, "a", "--peer", receiver.Url);
        await sender.HearAsync(1);
        await AssertHasAllAsync(receiver, sender);
        Assert.InRange((came!.Value - refused!.Value).TotalSeconds, 3.9, 30);
    }

    [Fact]
    public async Task WhatAnswersAsNoSeSDoesHasTakenNothing()
    {
        var isOther = true;
        using var receiver = new Receiver
        {
            Answering = (context, _) =>
            {
                if (!isOther)
                    return null;
                context.Response.OutputStream.Write("<html>welcome</html>"u8);
                return 201;
            },
        };
        await using var sender = new Sender(this, "a", "--peer", receiver.Url);
        await sender.HearAsync(5);
        await Wait.UntilAsync(() => Failures("answer") > 0, Soon, "a failure");
        Assert.Contains("is the URL right?", sender.Forwarder.State.Trouble, Ordinal);
        isOther = false;
        await AssertHasAllAsync(receiver, sender);
    }

    /// <summary>One line in thousands is refused: it alone is set aside, and told.</summary>
    [Theory]
    [InlineData(400, 1500)]
    [InlineData(422, 0)]
    [InlineData(413, 2999)]
    public async Task LineThatIsRefusedByItselfIsSetAside(int code, int bad)
    {
        var services = Enumerable.Range(0, 3000).Select(i => Site.Service(i)).ToList();
        using var receiver = new Receiver { Answering = (_, _) => 500 };
        await using var sender = new Sender(this, "a", "--peer", receiver.Url);
        await sender.Store.AppendAsync("INS", StoreChild.Body([.. services.Select(s => Site.Alert(s, "down", DateTime.UtcNow))]));
        var all = await sender.LinesAsync();
        var refused = IdOf(all[bad + 1]);
        receiver.Posts.Clear();
        receiver.Answering = (_, lines) => lines.Any(l => l.Contains(refused, Ordinal)) ? code : null;
        await Wait.UntilAsync(() => sender.Forwarder.State is { Backlog: 0, Trouble: null, Last: not null }, Soon, "the rest");
        Assert.Equal(all.Count - 1, receiver.Taken.Distinct().Count());
        Assert.DoesNotContain(receiver.Taken, l => l.Contains(refused, Ordinal));
        Assert.Equal(1, _meters.ForwardLines.WithLabels("peer", "set_aside").Value);
        Assert.Contains(refused, _log.ToString(), Ordinal);
        Assert.InRange(receiver.Posts.Count, 10, 60);
    }

    /// <summary>A receiver that refuses everything has another schema: nothing is passed over.</summary>
    [Fact]
    public async Task WhereAllIsRefusedNothingIsSetAside()
    {
        var isBroken = true;
        using var receiver = new Receiver { Answering = (_, lines) => isBroken && lines.Length > 1 ? 400 : null };
        await using var sender = new Sender(this, "a", "--peer", receiver.Url);
        await sender.HearAsync(30);
        await Wait.UntilAsync(() => Failures("400") >= 1, Soon, "a failure");
        Assert.Contains("schema differs", sender.Forwarder.State.Trouble, Ordinal);
        Assert.Equal(0, _meters.ForwardLines.WithLabels("peer", "set_aside").Value);
        isBroken = false;
        await AssertHasAllAsync(receiver, sender);
    }

    [Fact]
    public async Task PostsAreAsSmallAsTheReceiverWants()
    {
        using var receiver = new Receiver { Answering = (_, lines) => lines.Length > 101 ? 413 : null };
        await using var sender = new Sender(this, "a", "--peer", receiver.Url);
        await sender.Store.AppendAsync("INS", StoreChild.Body(
            [.. Enumerable.Range(0, 2000).Select(i => Site.Alert(Site.Service(i), "down", DateTime.UtcNow))]));
        await AssertHasAllAsync(receiver, sender);
        Assert.Equal(0, _meters.ForwardLines.WithLabels("peer", "set_aside").Value);
    }

    /// <summary>A receiver that lost its database gets all facts, also those of others.</summary>
    [Fact]
    public async Task ReceiverThatLostItsOwnGetsEverything()
    {
        using var receiver = new Receiver();
        await using var sender = new Sender(this, "a", "--peer", receiver.Url);
        var others = new List<string>();
        await using (var other = new Sender(this, "b", "--peer", "http://127.0.0.1:1"))
        {
            await other.HearAsync(10, first: 100);
            others = await other.LinesAsync();
        }
        await sender.HearAsync(10);
        await ImportAsync(sender.Store, others);
        await sender.HearAsync(1, first: 50);
        await Wait.UntilAsync(() => receiver.Taken.Count == 12, Soon, "its own");
        Assert.All(receiver.Taken, l => Assert.Contains("\"by\":\"a\"", l, Ordinal));
        receiver.Taken.Clear();
        receiver.StoreId = "another";
        await sender.HearAsync(1, first: 51);
        var all = await sender.LinesAsync();
        await Wait.UntilAsync(() => receiver.Taken.Distinct().Count() == all.Count, Soon, "everything");
        Assert.Equal(all.Select(IdOf).Order(), receiver.Taken.Select(IdOf).Distinct().Order());
        // From then on its own again.
        receiver.Taken.Clear();
        await ImportAsync(sender.Store, await MadeLinesAsync("c"));
        await sender.HearAsync(1, first: 52);
        await Wait.UntilAsync(() => !receiver.Taken.IsEmpty, Soon, "the next");
        Assert.All(receiver.Taken, l => Assert.Contains("\"by\":\"a\"", l, Ordinal));
    }

    /// <summary>As a peer it got a part: as a hub, or with a prefix, it gets all.</summary>
    [Theory]
    [InlineData("--hub")]
    [InlineData("--hub", "--hub-prefix", "zrh-")]
    public async Task TargetThatIsNamedAsAnotherGetsEverything(params string[] flags)
    {
        using var receiver = new Receiver();
        await using (var sender = new Sender(this, "a", "--peer", receiver.Url))
        {
            await ImportAsync(sender.Store, await MadeLinesAsync("b"));
            await sender.HearAsync(3);
            await Wait.UntilAsync(() => receiver.Taken.Count == 4, Soon, "its own");
            await Wait.UntilAsync(() => sender.Forwarder.State is { Backlog: 0, Trouble: null, Last: not null }, Soon, "no backlog");
        }
        receiver.Taken.Clear();
        await using var again = new Sender(this, "a", [flags[0], receiver.Url, .. flags[1..]]);
        await Wait.UntilAsync(() => receiver.Taken.Count == 8, Soon, "all");
        Assert.Equal(4, receiver.Taken.Count(l => l.Contains("\"by\":\"b\"", Ordinal)));
    }

    /// <summary>A balancer before several SeS does not have all facts sent with each post.</summary>
    [Fact]
    public async Task SeveralSeSBehindOneUrlAreTold()
    {
        var posts = 0;
        using var receiver = new Receiver();
        receiver.Answering = (_, _) =>
        {
            receiver.StoreId = $"store {Interlocked.Increment(ref posts) % 3}";
            return null;
        };
        await using var sender = new Sender(this, "a", "--hub", receiver.Url);
        await sender.HearAsync(20);
        await Wait.UntilAsync(() => _log.ToString().Contains("does the URL lead to several SeS?", Ordinal), Soon, "a failure");
        Assert.InRange(receiver.Posts.Count, 3, 60);
        receiver.Answering = null;
        receiver.StoreId = "store 1";
        receiver.Taken.Clear();
        await sender.HearAsync(1, first: 20);
        var all = await sender.LinesAsync();
        await Wait.UntilAsync(() => sender.Forwarder.State is { Backlog: 0, Trouble: null } && receiver.Taken.Contains(all[^1]), Soon, "the last");
    }

    private async Task<List<string>> MadeLinesAsync(string name)
    {
        await using var other = new Sender(this, name, "--peer", "http://127.0.0.1:1");
        await other.HearAsync(3, first: 200);
        return await other.LinesAsync();
    }

    private static async Task ImportAsync(Store store, IEnumerable<string> lines)
    {
        var import = new LineImport();
        foreach (var line in lines)
            Assert.NotNull(import.Add(line, DateTime.UtcNow));
        Assert.Empty(await store.AddAsync((w, _) => import.Take(w)));
    }

    // ---- POST /import ----

    private static readonly string Importer = Host.Basic("import", "i p");

    private static Host Taking(params string[] flags) => Host.Serving(["--import-password", "i p", "--name", "hub", .. flags]);

    private static string Line(int number, string by = "site", string partition = "INS") => FactLines.Observation(by,
        Site.Alert(Site.Service(number, partition), "down", Host.Now.AddHours(-1)), ObservationKind.Start, Host.Now.AddHours(-1),
        Host.Now.AddHours(-1), out _);

    private static string Alive(string by, DateTime? at = null) => FactLines.Alive(by, at ?? Host.Now);

    private static Task<Answer> ImportAsync(Host host, params string[] lines) =>
        host.PostAsync(string.Join('\n', lines) + "\n", "/import", Importer);

    private static (int New, int Known, int Refused) Counts(Answer answer)
    {
        Assert.Equal((200, "application/json"), (answer.Code, answer.Type?.MediaType));
        return (answer.Json.GetProperty("new").GetInt32(), answer.Json.GetProperty("known").GetInt32(),
            answer.Json.GetProperty("refused").GetInt32());
    }

    [Fact]
    public async Task LinesAreTakenOnceAndBadOnesGoIntoQuarantine()
    {
        await using var host = Taking();
        string[] lines = [Alive("site"), .. Enumerable.Range(0, 1200).Select(i => Line(i)), "", "no line",
            Line(5).Replace("\"down\"", "\"up\"", Ordinal)];
        var answer = await ImportAsync(host, lines);
        Assert.Equal((1200, 0, 2), Counts(answer));
        Assert.Equal(host.Store.Id, answer.Json.GetProperty("store").GetString());
        Assert.Equal(32, host.Store.Id.Length);
        Assert.Equal((0, 1200, 2), Counts(await ImportAsync(host, lines)));
        Assert.Equal(1200, host.Observations);
        using var snapshot = host.Store.Snapshot();
        var bad = QuarantinedAlert.Read(snapshot).ToList();
        Assert.Equal([("INS", "the id does not match the content: the line was changed"), ("", "the line is not JSON")],
            bad.Select(q => (q.Partition, q.Reason)));
        Assert.Equal("no line", Encoding.UTF8.GetString(bad[1].Alert));
        Assert.All(bad, q => Assert.Equal(AlertSource.Line, q.Source));
        var metrics = (await host.GetAsync("/metrics")).Body;
        Assert.Contains("ses_import_lines_total{by=\"site\",result=\"new\"} 1200", metrics, Ordinal);
        Assert.Contains("ses_import_lines_total{by=\"site\",result=\"known\"} 1200", metrics, Ordinal);
        Assert.Contains("ses_import_lines_total{by=\"site\",result=\"refused\"} 4", metrics, Ordinal);
    }

    [Fact]
    public async Task OnlyTheImporterBringsFacts()
    {
        await using (var closed = Host.Serving())
        {
            Assert.StartsWith("Imports are closed: --import-password-file", (await closed.PostAsync(Line(1), "/import")).Problem(403), Ordinal);
            Assert.Equal(0, closed.Observations);
        }
        await using var host = Taking("--auth-mode", "basic", "--password", "s", "--editor-password", "e", "--read-password", "r");
        Assert.Equal(401, (await host.PostAsync(Line(1), "/import")).Code);
        foreach (var (name, password) in new[] { ("admin", "s"), ("editor", "e"), ("reader", "r") })
            Assert.Contains("facts need the importer's", (await host.PostAsync(Line(1), "/import", Host.Basic(name, password))).Problem(403), Ordinal);
        Assert.Equal(0, host.Observations);
        Assert.Equal((1, 0, 0), Counts(await ImportAsync(host, Line(1))));
        // It may do nothing else.
        foreach (var path in new[] { "/", "/alerts/INS", "/health", "/alerts/INS/notes" })
            Assert.Contains("These credentials are for the facts of other SeS",
                (await host.SendAsync(HttpMethod.Get, path, authorization: Importer)).Problem(403), Ordinal);
        Assert.Equal(403, (await host.PostAsync("{}", "/alerts/INS", Importer)).Code);
        Assert.Equal(405, (await host.SendAsync(HttpMethod.Get, "/import", authorization: Importer)).Code);
        Assert.Equal(404, (await host.PostAsync(Line(1), "/import/x", Importer)).Code);
    }

    [Fact]
    public async Task SeSOfTheSameNameIsRefused()
    {
        await using var host = Taking();
        Assert.Contains("'hub' is the name of this SeS", (await ImportAsync(host, Alive("hub"), Line(1))).Problem(409), Ordinal);
        Assert.Equal(0, host.Observations);
        // What it once took itself is brought back by another.
        Assert.Equal((1, 0, 0), Counts(await ImportAsync(host, Alive("site"), Line(1, by: "hub"))));
    }

    [Fact]
    public async Task WhatIsOneTooManyIsRefusedAndTheRestTaken()
    {
        await using var host = Taking("--max-services", "2");
        Assert.Equal((2, 0, 1), Counts(await ImportAsync(host, Line(1), Line(2), Line(3))));
        using var snapshot = host.Store.Snapshot();
        Assert.Equal("there are 2 services already, as many as --max-services allows", QuarantinedAlert.Read(snapshot).Single().Reason);
        Assert.Equal((0, 1, 0), Counts(await ImportAsync(host, Line(1))));
    }

    [Fact]
    public async Task LineOfAnyLengthIsReadAndATooLongOneRefused()
    {
        await using var host = Taking();
        Assert.Equal((1, 0, 1), Counts(await ImportAsync(host, new string('x', 5 * 1024 * 1024), Line(1))));
        using var snapshot = host.Store.Snapshot();
        Assert.StartsWith("the line is longer than", QuarantinedAlert.Read(snapshot).Single().Reason, Ordinal);
    }

    /// <summary>A copy that tells nothing new here does, once another SeS has heard the alert's end.</summary>
    [Fact]
    public async Task WhatAnotherHeardIsNotForgottenByWhatIsRemembered()
    {
        await using var host = Taking();
        var alert = Site.Alert(Site.Service(1), "down", Host.Now.AddHours(-2));
        host.Clock.Advance(TimeSpan.FromHours(-2));
        await host.Store.AppendAsync("INS", StoreChild.Body(alert));
        Assert.Equal(new Stored(0, 1, 0), await host.Store.AppendAsync("INS", StoreChild.Body(alert)));
        host.Clock.Advance(TimeSpan.FromHours(2));
        var end = FactLines.Observation("site", alert with { Ends = Host.Now.AddHours(-1) }, ObservationKind.End, Host.Now.AddHours(-1),
            Host.Now, out _);
        Assert.Equal((1, 0, 0), Counts(await ImportAsync(host, end)));
        Assert.Equal(new Stored(1, 0, 0), await host.Store.AppendAsync("INS", StoreChild.Body(alert)));
    }

    /// <summary>Names that somebody makes up keep no SeS out that is known.</summary>
    [Fact]
    public async Task MadeUpNamesKeepNoneOutThatIsKnown()
    {
        await using var host = Taking();
        Assert.Equal((1, 0, 0), Counts(await ImportAsync(host, Alive("site"), Line(1))));
        // These two are among them.
        await host.Store.AddAsync((w, _) =>
        {
            for (var i = 0; i < Writer.MaxPeers - 2; i++)
                w.NotePeerAlive($"made up {i}", Host.Now);
            return true;
        });
        Assert.Equal((0, 0, 2), Counts(await ImportAsync(host, Alive("another"), Line(2, by: "one more"))));
        Assert.Equal((2, 0, 0), Counts(await ImportAsync(host, Alive("site"), Line(3), Line(4, by: "hub"))));
    }

    [Fact]
    public async Task MetricsHaveSoManyNamesOfSeS()
    {
        await using var host = Taking();
        for (var i = 0; i < 1010; i++)
            Assert.Equal(200, (await ImportAsync(host, Alive($"made up {i}"))).Code);
        var series = (await host.GetAsync("/metrics")).Body.Split('\n').Count(l => l.StartsWith("ses_import_lines_total{", Ordinal));
        Assert.Equal(2 * 1001, series);
    }

    /// <summary>A SeS whose clock is ahead does not live for as long after it fell silent.</summary>
    [Fact]
    public async Task SignOfLifeIsNeverAhead()
    {
        await using var host = Taking();
        var later = Host.Now.AddHours(20);
        await ImportAsync(host, Alive("site", later), FactLines.Receipt("site", "INS", null, null, later, later, out _),
            FactLines.Gap("site", null, null, null, Host.Now, later, later, later, out _),
            FactLines.Observation("site", Site.Alert(Site.Service(1), "down", Host.Now), ObservationKind.Start, later, later, out _));
        var health = (await host.SendAsync(HttpMethod.Get, "/health?format=json")).Json;
        Assert.InRange(health.GetProperty("peers")[0].GetProperty("last").GetDateTime(), Host.Now, Host.Now.AddMinutes(1));
    }

    /// <summary>Whoever has the password does not keep the writer busy with versions of one note.</summary>
    [Fact]
    public async Task ThousandsOfVersionsOfANoteAreTakenSwiftly()
    {
        await using var host = Taking();
        string Version(int i) => FactLines.Note("site", new NoteVersion("n1", NoteKind.Comment, Host.Now, null,
            new NoteFilter("INS", null, null, null, null), null, "t", "x", null, false, Host.Now.AddDays(-1).AddMilliseconds(i)), Host.Now, out _);
        string[] lines = [.. Enumerable.Range(0, 6000).Select(Version)];
        var clock = Stopwatch.StartNew();
        Assert.Equal((6000, 0, 0), Counts(await ImportAsync(host, lines)));
        Assert.Equal((0, 6000, 0), Counts(await ImportAsync(host, lines)));
        // A version at a time, read with all before it, took a minute.
        Assert.InRange(clock.Elapsed.TotalSeconds, 0, 20);
    }

    /// <summary>One that began with the database of the other is told how it is a peer of it.</summary>
    [Fact]
    public async Task CopyOfTheOtherIsNoPeerOfIt()
    {
        await using var host = Taking();
        host.CloseStore();
        host.Reopen("--import-password", "i p", "--name", "second");
        Assert.StartsWith("'hub' was the name of this SeS, or of the SeS that its database was copied from: start this one without a database",
            (await ImportAsync(host, Alive("hub"), Line(1, by: "hub"))).Problem(409), Ordinal);
        Assert.StartsWith("'second' is the name of this SeS", (await ImportAsync(host, Alive("second"))).Problem(409), Ordinal);
    }

    // ---- What it means ----

    private static async Task<List<(string Status, string Description)>> HistoryAsync(Host host, string partition = "INS") =>
        [.. (await host.GetAsync($"/alerts/{partition}/history")).Json.GetProperty("events").EnumerateArray()
            .Select(e => (e.GetProperty("status").GetString()!, e.GetProperty("description").GetString()!))];

    /// <summary>A SeS counts as one that takes a partition though another was first.</summary>
    [Fact]
    public async Task EachOfAPairTakesAPartitionByItself()
    {
        await using var host = Taking();
        await ImportAsync(host, FactLines.Receipt("site", "INS", null, null, Host.Now.AddHours(-1), Host.Now.AddHours(-1), out _));
        await host.Store.AppendAsync("INS", StoreChild.Body(Site.Alert(Site.Service(1), "down", Host.Now)));
        using var snapshot = host.Store.Snapshot();
        Assert.Equal(["site", "hub"], FactLines.Read(snapshot, null, null, null)
            .Where(l => l.StartsWith("{\"kind\":\"partition\"", Ordinal)).Select(l => l.Split("\"by\":\"")[1].Split('"')[0]));
    }

    /// <summary>A hub knows nothing of a site of which nothing comes for over five minutes.</summary>
    [Fact]
    public async Task WhatASilentSiteHasIsUnknownToAHub()
    {
        await using var host = Taking();
        var start = Host.Now.AddHours(-1);
        var up = FactLines.Observation("site", Site.Alert(Site.Service(1), "down", start) with
        {
            Ends = start.AddMinutes(1),
            Dialect = false,
        }, ObservationKind.End, start.AddMinutes(1), start, out _);
        await ImportAsync(host, Alive("site"), FactLines.Receipt("site", "INS", null, null, start, start, out _), up, Line(2));
        async Task<string> StatesAsync() => string.Join(' ', (await host.GetAsync("/alerts/INS")).Json.GetProperty("services").EnumerateArray()
            .Select(s => $"{s.GetProperty("status")}/{s.GetProperty("watched")}"));
        Assert.Equal("up/ down/", await StatesAsync());
        host.Clock.Advance(TimeSpan.FromMinutes(4));
        Assert.Equal("up/ down/", await StatesAsync());
        host.Clock.Advance(TimeSpan.FromMinutes(2));
        // Nobody watches, and this is what was last known.
        Assert.Equal("up/False down/False", await StatesAsync());
        Assert.Contains(("unknown", "no data: nothing comes from site"), await HistoryAsync(host));
        await ImportAsync(host, Alive("site", Host.Now.AddMinutes(6)));
        Assert.Equal("up/ down/", await StatesAsync());
        Assert.DoesNotContain(("unknown", "no data: nothing comes from site"), await HistoryAsync(host));
    }

    [Fact]
    public async Task HealthNamesPeersAndTargets()
    {
        await using var host = Taking();
        await ImportAsync(host, Alive("site", Host.Now.AddMinutes(-1)), Line(1));
        Assert.Contains("<p>Facts from <bdi>site</bdi> until ", (await host.GetAsync("/")).Body, Ordinal);
        var health = (await host.SendAsync(HttpMethod.Get, "/health?format=json")).Json;
        var peer = health.GetProperty("peers").EnumerateArray().Single();
        Assert.Equal(("site", Host.Now.AddMinutes(-1)), (peer.GetProperty("name").GetString(), peer.GetProperty("last").GetDateTime()));
    }
}
