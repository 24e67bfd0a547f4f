using System.Globalization;
using System.Reflection;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;

namespace Ses.Tests;

/// <summary>What the README and the pages in <c>docs/</c> tell operators is what the program has and does.</summary>
public sealed partial class DocsTests
{
    private const double Kib = 1024, Mib = 1024 * 1024;

    private static readonly string Source = Read("Ses.cs");

    /// <summary>All pages, one after the other.</summary>
    private static readonly string Text = string.Join('\n', DocsPage.All.Select(p => p.Text));

    /// <summary>Every code with which <c>Ses.cs</c> answers.</summary>
    private static readonly int[] Codes =
        [200, 201, 204, 302, 304, 400, 401, 403, 404, 405, 408, 409, 411, 413, 415, 417, 421, 431, 501, 503, 505];

    /// <summary>
    /// The constants that the table of limits names; it is filled by the table after it. The writer's step is
    /// that of <see cref="RecentAlerts"/>.
    /// </summary>
    private static readonly HashSet<(Type, string)> Named = [(typeof(Writer), "SeenStep")];

    /// <summary>
    /// The table of limits: a row's name, the text that its value holds, and where the program has it, as a
    /// constant or, where a limit stands in a line of the program, as that text.
    /// </summary>
    private static readonly (string Name, string Value, string? Text)[] Limits =
    [
        ("body of a webhook", "16 MiB; at most 256 MiB", "ParseSize(text, 1024, 256 * 1024 * 1024)"),
        Limit("head of a request", typeof(RequestHead), "MaxSize", Kib),
        Limit("line before a chunk, with its extensions, and trailer field", typeof(RequestHead), "MaxChunkLine", Kib),
        Limit("compression ratio of a gzip body over 1 MiB", typeof(Gate), "MaxRatio"),
        Limit("header fields of a request", typeof(RequestHead), "MaxFields"),
        Limit("connections", typeof(Gate), "MaxConnections"),
        Limit("requests in flight", typeof(Gate), "MaxInFlight"),
        Limit("queries in flight", typeof(Gate), "MaxQuestions"),
        Limit("time in the queue", typeof(Gate), "QueueTime"),
        Limit("bodies in flight, beyond the first part of each", typeof(Gate), "MaxBytesInFlight", Mib),
        Limit("first part of a body", typeof(Gate), "FirstPart", Kib),
        Limit("buffer for a part of a body that is kept for reuse", typeof(Gate), "LargePart", Mib),
        Limit("size from which bodies are parsed one at a time", typeof(Web), "LargePayload", Mib),
        Limit("time for such a body in the queue", typeof(Web), "LargePayloadTime"),
        Limit("quarantined alerts listed in an answer", typeof(Web), "MaxListedAlerts"),
        Limit("fingerprint or name of a listed alert, in bytes", typeof(Web), "MaxShown"),
        Limit("queries computed at once", typeof(Web), "MaxActiveQuestions"),
        Limit("changes in a short history", typeof(Web), "ShortLimit"),
        Limit("time for a query in the queue", typeof(Web), "TurnTime"),
        Limit("long answers in transit at once", typeof(Web), "MaxUnfinished"),
        Limit("time that a long answer waits for its reader before it may be ended in favour of another", typeof(Web), "StalledTime"),
        Limit("time to read a long answer", typeof(Web), "AnswerTime"),
        Limit("answer that passes through the inner listener", typeof(Web), "OneWrite", Kib),
        Limit("part of a long answer", typeof(BodyWriter), "Size", Kib),
        Limit("answer that is not compressed, even if its client accepts gzip", typeof(Gzip), "Worth", Kib),
        Limit("time between two attempts of a page that is unavailable for now", typeof(RefusalPage), "RetryTime"),
        Limit("rows that determine the column widths of a table", typeof(TextTable), "MaxRows"),
        Limit("rows of services on a page", typeof(StatusPage), "MostRows"),
        Limit("services that the overview lists by itself", typeof(StatusPage), "FewServices"),
        Limit("lines under \"Needs attention\"", typeof(StatusPage), "MostIncidents"),
        Limit("the same, older than a day", typeof(StatusPage), "MostOld"),
        Limit("time between the starts of outages that share a line", typeof(Incident), "Reach"),
        Limit("lines of latest outages", typeof(StatusPage), "MostLatest"),
        Limit("outages on a page of them", typeof(StatusPage), "MostOutages"),
        Limit("size of a page at which lines under \"Needs attention\" end", typeof(StatusPage), "AttentionSize", Kib),
        Limit("size of a page at which rows of services or platforms end", typeof(StatusPage), "RowsSize", Kib),
        Limit("services inside the lines of a page", typeof(StatusPage), "FoldedSize", Kib),
        Limit("latest outages on a page", typeof(StatusPage), "LatestSize", Kib),
        Limit("a page of outages, about", typeof(StatusPage), "OutagesSize", Kib),
        Limit("time within which those ended", typeof(StatusPage), "AtOnce"),
        Limit("services in one line, when unfolded", typeof(StatusPage), "MostFolded"),
        Limit("maintenances, and stretches that nobody watched, on a page", typeof(StatusPage), "MostNotes"),
        Limit("time ahead in which shown maintenance begins", typeof(StatusPage), "Ahead"),
        Limit("partitions at the foot of the overview", typeof(StatusPage), "MostPartitions"),
        Limit("SeS at the foot of the overview", typeof(StatusPage), "MostPeers"),
        Limit("months on a service's page", typeof(StatusPage), "MostMonths"),
        Limit("name, or text of an alert or a note, in a list of a page, in bytes", typeof(StatusPage), "MostText"),
        Limit("text to search for, in characters", typeof(PageQuery), "MaxSearch"),
        Limit("delay with which the live line still counts a change", typeof(StatusPage), "Late"),
        Limit("address that a short address redirects to, in characters", typeof(PageQuery), "LongestRedirect"),
        Limit("time between renewals of the live line, in seconds", typeof(StatusPage), "RefreshSeconds"),
        Limit("platforms on the wall", typeof(StatusPage), "MostTiles"),
        Limit("outages on the wall", typeof(StatusPage), "MostNewest"),
        Limit("name on the wall, in bytes", typeof(StatusPage), "MostWallText"),
        Limit("name of a platform on a wall with more than 24", typeof(StatusPage), "MostTileText"),
        Limit("entries of a feed", typeof(Feed), "MostEntries"),
        Limit("time that a feed goes back", typeof(Feed), "Window"),
        Limit("outage that is in a feed", typeof(OutageEntries), "LeastLength"),
        Limit("recordings of a service that a feed replays", typeof(OutageEntries), "MostMoments"),
        Limit("time that a badge may be kept, in seconds", typeof(Web), "BadgeSeconds"),
        Limit("unknown time after down that ends an outage", typeof(Questions), "EndsOutage"),
        Limit("services whose changes a history sorts", typeof(Questions), "FewServices"),
        Limit("faults that a check lists", typeof(DatabaseCheck), "MaxFaults"),
        Limit("line of an import, in characters", typeof(FactLine), "MaxLength"),
        Limit("time for an answer to a command with `--url` to begin", typeof(RunningSes), "HeadTime"),
        Limit("time for the whole answer", typeof(RunningSes), "BodyTime"),
        Limit("size of the answer", typeof(RunningSes), "MaxAnswer", Mib),
        Limit("periods of a report", typeof(Question), "MaxPeriods"),
        Limit("stretches of service hours in a day", typeof(ServiceHours), "MaxStretches"),
        Limit("end of a report with periods, in the future", typeof(Question), "MaxPeriodsAhead"),
        Limit("body of a note", typeof(NoteForm), "MaxBody", Kib),
        Limit("text of a note, in bytes", typeof(NoteVersion), "MaxText"),
        Limit("author of a note, in characters", typeof(NoteVersion), "MaxAuthor"),
        Limit("versions of notes in a store", typeof(NoteBook), "MaxVersions"),
        Limit("start and end of a note, in the future", typeof(NoteBook), "MaxAhead"),
        Limit("time for an answer to a probe", typeof(Probe), "AnswerTimeout"),
        Limit("answer to a probe, and an error's to a command", typeof(Probe), "MaxAnswer", Kib),
        Limit("buffer for most answers", typeof(Gate), "SmallAnswer", Kib),
        Limit("send buffer in the kernel for a client that does not read", typeof(Gate), "SendBuffer", Kib),
        Limit("TLS handshakes in progress", typeof(Gate), "MaxHandshakes"),
        Limit("TLS handshakes of an address, in progress or failed, at once", typeof(HandshakeLimits), "AtOnce"),
        Limit("the same, in a second", typeof(HandshakeLimits), "PerSecond"),
        Limit("addresses whose handshakes are counted", typeof(HandshakeLimits), "MaxAddresses"),
        Limit("time for a TLS handshake", typeof(Gate), "HandshakeTime"),
        Limit("time for the head", typeof(Gate), "HeadTime"),
        Limit("time for the body", typeof(Gate), "BodyTime"),
        Limit("time between requests of a connection", typeof(Gate), "IdleTime"),
        Limit("time to read a part of the answer", typeof(Gate), "AnswerTime"),
        Limit("time to close after a refusal", typeof(Gate), "LingerTime"),
        Limit("pause between two parts of what still arrives then, beyond `--max-body`", typeof(Gate), "LingerPause"),
        Limit("interval of the check of deadlines", typeof(Gate), "SweepPeriod"),
        Limit("idle connection to the inner listener", typeof(Gate), "UpstreamIdleTime"),
        Limit("foreign connections to the inner listener", typeof(Gate), "MaxStrangers"),
        Limit("interval of the check for them", typeof(Gate), "StrangerTime"),
        Limit("unused descriptors in a row, after which that check stops", typeof(Linux), "MostUnused"),
        Limit("buffer for most heads", typeof(ClientConnection), "FirstSize", Kib),
        Limit("addresses remembered for their credentials", typeof(SignIns), "MaxAddresses"),
        Limit("credentials of an address that wait to be checked", typeof(SignIns), "MaxWaiting"),
        Limit("credentials of all addresses that wait", typeof(SignIns), "MaxWaitingOfAll"),
        Limit("wrong credentials of an address checked in a second", typeof(SignIns), "JudgedPerSecond"),
        Limit("first delay of an answer to wrong credentials", typeof(SignIns), "FirstDelay"),
        Limit("longest delay of such an answer", typeof(SignIns), "LongestDelay"),
        Limit("wrong credentials are forgotten after", typeof(SignIns), "Forgotten"),
        Limit("an address with correct ones is not slowed down for", typeof(SignIns), "Lately"),
        Limit("difference of clocks for tokens", typeof(Issuer), "Skew"),
        Limit("age of the issuer's keys", typeof(Issuer), "KeysAge"),
        Limit("time between requests to the issuer", typeof(Issuer), "Pause"),
        Limit("time for an answer of the issuer", typeof(Issuer), "AnswerTimeout"),
        Limit("answer of the issuer", typeof(Issuer), "MaxAnswer", Mib),
        Limit("interval at which certificate files are read again", typeof(Tls), "RereadPeriod"),
        Limit("interval at which files with secrets, and with the CAs of Onix, are read again", typeof(SecretWatch), "Period"),
        Limit("certificate that expires within", typeof(Tls), "EndsSoon"),
        ("name of the partition", "1 KiB", "Encoding.UTF8.GetByteCount(name) <= 1024"),
        Limit("alerts of a payload", typeof(AlertMapping), "MaxAlerts"),
        Limit("labels, and annotations, of an alert", typeof(AlertTexts), "Max"),
        Limit("labels of an alert, with their names", typeof(AlertFields), "MaxLabels", Kib),
        Limit("annotations of an alert, with their names", typeof(AlertFields), "MaxAnnotations", Mib),
        Limit("status, time, fingerprint of an alert", typeof(AlertFields), "MaxText", Kib),
        Limit("`generatorURL` of an alert", typeof(AlertFields), "MaxUrl", Kib),
        Limit("number of truncated alerts that a payload may state", typeof(AlertReader), "MaxTruncated"),
        Limit("depth of the JSON", typeof(AlertMapping), "MaxDepth"),
        Limit("service of an alert", typeof(AlertMapping), "MaxService"),
        Limit("platform, facet, location, status of an alert", typeof(AlertMapping), "MaxField", Kib),
        Limit("time of an alert, earliest", typeof(AlertMapping), "Earliest"),
        Limit("time of an alert, in the future", typeof(AlertMapping), "MaxAhead"),
        Limit("description", typeof(AlertMapping), "MaxDescription", Kib),
        Limit("alerts of a payload that are quarantined whole", typeof(UnmappableAlerts), "MaxKept"),
        Limit("alerts of a payload that an answer lists as too many", typeof(Stored), "MaxRefused"),
        Limit("quarantined alerts", typeof(Writer), "MaxQuarantined"),
        Limit("quarantined alerts, their size", typeof(Writer), "QuarantineSize", Mib),
        Limit("label sets, for each of `--max-services`", typeof(Options), "AlertsPerService"),
        Limit("different statuses", typeof(Writer), "MaxStatuses"),
        Limit("late firing copy of an ended episode", typeof(TimelineRules), "LateCopy"),
        Limit("observations of an alert that a copy is compared with", typeof(Writer), "NewestRows"),
        Limit("label sets held in memory, in each of two halves", typeof(RecentAlerts), "Size"),
        Limit("resolution at which an alert's last copy is stored", typeof(RecentAlerts), "SeenStep"),
        Limit("waiting for the disk, about", typeof(Store), "MaxWaiting", Mib),
        Limit("time for the disk to commit", typeof(Store), "DiskTime"),
        Limit("time for another process to end its transaction", typeof(SqliteConnection), "LockTime"),
        Limit("time for one turn of the writer", typeof(Store), "StuckTime"),
        Limit("interval of the check for changes by time alone, and of a disk that refused",
            typeof(Store), "TickPeriod"),
        Limit("services changed by time alone, or lapsed, at once", typeof(Writer), "DueAtOnce"),
        Limit("open alerts that are mapped again after a change of settings, at once", typeof(Writer), "MappedAtOnce"),
        Limit("time between signs of life in the database", typeof(Writer), "AlivePeriod"),
        Limit("time without one that counts as downtime of SeS", typeof(Writer), "LongestPause"),
        Limit("pause of the writer after which nothing lapses until it could have been sent again", typeof(Writer), "LongestTurn"),
        Limit("time for an answer to Prometheus", typeof(Web), "PrometheusTime"),
        Limit("least validity of a copy from Prometheus", typeof(Renewals), "LeastValidity"),
        Limit("validity of a copy from Prometheus without an end", typeof(Renewals), "Unstated"),
        Limit("assumed validity, if unknown after a start", typeof(Writer), "UsualValidity"),
        Limit("time beyond half the validity in which nothing lapses after SeS was away", typeof(Renewals), "ReturnTime"),
        Limit("end from Prometheus in the future that still counts as an end", typeof(Renewals), "MostTolerance"),
        Limit("the same, for an unknown rule", typeof(Renewals), "UnknownTolerance"),
        Limit("rules of Prometheus whose validity is remembered", typeof(Renewals), "MaxRules"),
        Limit("heartbeats", typeof(Heartbeats), "Max"),
        Limit("alerts of one heartbeat", typeof(Heartbeats), "MaxAlerts"),
        Limit("senders whose clocks are compared", typeof(SenderClocks), "MaxSenders"),
        Limit("senders of one alert whose ends are combined", typeof(Writer), "MaxSame"),
        Limit("space that stays free", typeof(Writer), "Reserve", Mib),
        Limit("transaction that derives", typeof(Store), "DeriveTime"),
        Limit("observations that wait to be derived", typeof(Store), "MaxUnderived"),
        Limit("transaction that derives while more wait", typeof(Store), "MaxDeriveTime"),
        Limit("observations derived before the progress is stored", typeof(Writer), "WindowSize"),
        Limit("pages of the write-ahead log before a checkpoint", typeof(Writer), "CheckpointPages"),
        Limit("write-ahead log", typeof(Writer), "LogSize", Mib),
        Limit("database connections kept for queries", typeof(Store), "MaxReaders"),
        Limit("cache of the writing connection, in KiB", typeof(Store), "WriterCache"),
        Limit("cache of a connection for queries, in KiB", typeof(Store), "ReaderCache"),
        Limit("changes of a history that are read at once, at first", typeof(Questions), "FirstBatch"),
        Limit("changes of a history that are read at once, at most", typeof(Questions), "LargestBatch"),
        Limit("changes whose texts are read at once", typeof(Questions), "TextsAtOnce"),
        Limit("text of changes that are read at once, in characters, about", typeof(Questions), "LargestText"),
        Limit("names of services, and texts of alerts, that queries share", typeof(SharedNames), "MaxNames"),
        Limit("characters of these names", typeof(SharedNames), "MaxCharacters"),
        Limit("texts stored in memory once for all alerts that have them", typeof(SharedNames), "MaxShared"),
        Limit("time between passes of retention", typeof(Retention), "Period"),
        Limit("facts that retention deletes at once", typeof(Retention), "FactsAtOnce"),
        Limit("facts of a pass by `--max-size`", typeof(Retention), "FactsOfPass"),
        Limit("time for which a barred service holds retention back", typeof(Retention), "Refused"),
        Limit("rows of a service that a purge deletes at once", typeof(Purge), "RowsAtOnce"),
        Limit("transaction of a purge", typeof(Purge), "StepTime"),
        Limit("pause between two of them", typeof(Purge), "PauseTime"),
        Limit("time between steps of the scrub", typeof(Scrub), "Period"),
        Limit("steps of the scrub until all is checked", typeof(Scrub), "StepsOfDay"),
        Limit("rows of each kind that a step checks, at least", typeof(Scrub), "LeastRows"),
        Limit("step of the clock that is logged", typeof(ClockWatch), "Jump"),
        Limit("lines that wait for the reader of SeS's own log", typeof(QueuedWriter), "MaxLines"),
        Limit("interval between warnings of one kind in the log", typeof(Log), "OftenEvery"),
        Limit("value in a line of the log, in characters", typeof(Log), "LongestValue"),
        Limit("key of an item in Onix", typeof(OnixNames), "MaxKey"),
        Limit("key of an item in Onix, when cut", typeof(OnixNames), "CutKey"),
        Limit("value of an attribute in Onix, in bytes", typeof(OnixNames), "MaxAttribute"),
        Limit("time for an answer of Onix", typeof(OnixClient), "AnswerTimeout"),
        ("time to connect to Onix", "10 s", "ConnectTimeout = TimeSpan.FromSeconds(10)"),
        ("idle connection to Onix", "20 s", "PooledConnectionIdleTimeout = TimeSpan.FromSeconds(20)"),
        Limit("items in a list of Onix", typeof(OnixClient), "ListLimit"),
        Limit("items of a list processed at once", typeof(ItemListReader), "ItemsAtOnce"),
        Limit("part of a list read at once", typeof(ItemListReader), "ReadSize", Kib),
        Limit("item in a list, and any other answer of Onix", typeof(OnixClient), "MaxAnswer", Mib),
        Limit("services decided on at once", typeof(Recorder), "ServicesAtOnce"),
        Limit("changes of a service in a turn", typeof(OutboxReader), "ChangesAtOnce"),
        Limit("services marked at once for another Onix", typeof(Outbox), "AtOnce"),
        Limit("changes in a request to Onix", typeof(Recorder), "BatchItems"),
        Limit("size of a request to Onix, about", typeof(Recorder), "BatchBytes", Mib),
        Limit("locked items read one by one", typeof(Recorder), "ReadSingly"),
        Limit("locks of a service in a row", typeof(Recorder), "MaxLocks"),
        Limit("time between lists of Onix's items", typeof(Recorder), "ListPeriod"),
        Limit("first pause while Onix is away", typeof(Recorder), "FirstPause"),
        Limit("longest pause while Onix is away", typeof(Recorder), "LongestPause"),
        Limit("first pause of a barred service", typeof(Outbox), "FirstDelay"),
        Limit("longest pause of a barred service", typeof(Outbox), "LongestDelay"),
        Limit("lines in a post to a target", typeof(Forwarder), "MaxLines"),
        Limit("size of a post to a target, about", typeof(Forwarder), "MaxBytes", Mib),
        Limit("post buffer that is kept while little is sent", typeof(Forwarder), "MostKept", Kib),
        Limit("lines of such a post that are read at once", typeof(FactForwarder), "LinesAtOnce"),
        Limit("facts that a target lacks, counted", typeof(Forwarder), "MostCounted"),
        Limit("lines tried after a refused one, to see whether they are accepted", typeof(Forwarder), "MaxNeighbours"),
        Limit("answer of a target", typeof(Forwarder), "MaxAnswer", Kib),
        Limit("text logged of an answer of a target, or of what it refuses, in bytes", typeof(Forwarder), "MaxQuoted"),
        Limit("time for an answer of a target", typeof(Forwarder), "AnswerTimeout"),
        Limit("first pause while a target accepts nothing", typeof(Forwarder), "FirstPause"),
        Limit("longest pause while a target accepts nothing", typeof(Forwarder), "LongestPause"),
        Limit("longest pause that a target may request", typeof(Forwarder), "MostObeyed"),
        Limit("time between counts of what a target lacks", typeof(Forwarder), "CountPeriod"),
        Limit("time between signs of life to another SeS", typeof(Forwarder), "AlivePeriod"),
        Limit("time that a target accepts nothing before SeS warns", typeof(Forwarder), "LongBehind"),
        Limit("time for which retention waits for a target", typeof(Retention), "LongestWait"),
        Limit("silence after which another SeS counts as away", typeof(Writer), "PeerSilent"),
        Limit("names of SeS in a store", typeof(Writer), "MaxPeers"),
        Limit("names of SeS in metrics", typeof(Web), "MaxImporters"),
        Limit("other SeS whose signs of life go to a hub with each post", typeof(FactForwarder), "MostAlive"),
        Limit("previous databases of a target that are remembered", typeof(FactForwarder), "MostFormer"),
        Limit("answers in a row from one of these, after which it counts as current again", typeof(FactForwarder), "FormerAnswers"),
        Limit("lines of `POST /import` stored at once", typeof(Web), "LinesAtOnce"),
        Limit("connections and requests in 10 s that count as quiet", typeof(MemoryTrimmer), "Quiet"),
        Limit("interval of that check", typeof(MemoryTrimmer), "Period"),
        Limit("time to finish requests when stopping", typeof(Program), "DrainTime"),
        Limit("time for Onix when stopping", typeof(Program), "RecorderTime"),
        Limit("time for the disk when stopping", typeof(Program), "StoreTime"),
        Limit("time for the reader of SeS's own log when stopping", typeof(QueuedWriter), "EndTime"),
    ];

    /// <summary>Sections of <c>Ses.cs</c> are short enough to be read at once.</summary>
    private const int MostLinesOfSection = 1000;

    [Fact]
    public void SectionsAreAsTheHeadOfTheFileLists()
    {
        var lines = Source.Split('\n');
        var begins = Enumerable.Range(0, lines.Length).Where(i => SectionHeading().IsMatch(lines[i])).ToList();
        var titles = begins.ConvertAll(i => SectionHeading().Replace(lines[i], "$1 $2"));
        Assert.Equal(Enumerable.Range(1, titles.Count), titles.Select(t => int.Parse(t.Split(' ')[0], CultureInfo.InvariantCulture)));
        var list = Source[Source.IndexOf("// SECTIONS", StringComparison.Ordinal)..Source.IndexOf("using System.Buffers;", StringComparison.Ordinal)];
        Assert.Equal(titles, ListedSection().Matches(list).Select(m => m.Value));
        foreach (var (begin, end) in begins.Zip(begins.Skip(1).Append(lines.Length)))
        {
            Assert.True(end - begin <= MostLinesOfSection, $"{lines[begin]} has {end - begin} lines");
            Assert.True(lines[begin + 1] == "//" && lines[begin + 2].StartsWith("// ", StringComparison.Ordinal), $"{lines[begin]} does not say what it is about");
        }
        // The design's table names sections, and spans of them.
        Assert.All(DocsPage.Named("design").Table("Sections").SelectMany(r => r[0].Split(" to ")),
            name => Assert.Contains(titles, t => t[(t.IndexOf(' ', StringComparison.Ordinal) + 1)..] == name));
    }

    /// <summary>Its number and its title.</summary>
    [GeneratedRegex("^// =+ ([0-9]+)\\. (.*?) =+$")]
    private static partial Regex SectionHeading();

    [GeneratedRegex("[0-9]+ [A-Z].*?(?=  |\n)")]
    private static partial Regex ListedSection();

    [Fact]
    public void SettingsAreThoseOfTheProgramInItsOrder()
    {
        var rows = DocsPage.Named("configuration").Tables("Settings");
        Assert.Equal(
            Options.Settings.Select(s => $"{s.Flag} {s.Variable} {DefaultOf(s)}"),
            rows.Select(r => $"{Plain(r[0])} {Plain(r[1])} {Plain(r[2])}"));
        Assert.All(rows, r => Assert.NotEqual("", r[3]));
    }

    [Fact]
    public async Task MetricsAreThoseOfTheProgramInItsOrder()
    {
        var meters = new Meters("1.0.0", "unknown", "3.0.22");
        var text = Encoding.UTF8.GetString(await meters.ExportAsync());
        var labels = typeof(Meters).GetFields().Select(f => f.GetValue(meters)).OfType<Prometheus.Collector>()
            .ToDictionary(c => c.Name, c => string.Join(", ", c.LabelNames));
        labels["ses_build_info"] = "version, commit, openssl";
        Assert.Contains(
            """ses_build_info{version="1.0.0",commit="unknown",openssl="3.0.22"} 1""", text, StringComparison.Ordinal);
        var rows = DocsPage.Named("operations").Table("Metrics");
        Assert.Equal(
            TypeLine().Matches(text).Select(m => (Name: m.Groups[1].Value, Type: m.Groups[2].Value))
                .Select(m => (m.Name, m.Type, labels[m.Name])),
            rows.Select(r => (Plain(r[0]), r[1], Plain(r[2]))));
        Assert.All(rows, r => Assert.NotEqual("", r[3]));
    }

    [Fact]
    public void AnswersAreThoseOfTheProgram()
    {
        var inProgram = AnswerCode().Matches(Source)
            .Select(m => int.Parse(m.Groups[1].Value, Invariant));
        Assert.Equal(Codes, inProgram.Distinct().Order());
        Assert.Equal(Codes, DocsPage.Named("api").Table("Status codes").Select(r => int.Parse(r[0], Invariant)));
        Assert.All(DocsPage.Named("api").Table("Status codes"), r => Assert.NotEqual("", r[1]));
    }

    [Fact]
    public void ExitCodesAreThoseOfTheProgram()
    {
        var inProgram = new[] { "Success", "Failure", "Usage" }
            .Select(n => Constant(typeof(Program), n).ToString());
        Assert.Equal(inProgram, DocsPage.Named("operations").Table("Exit codes").Select(r => r[0]));
    }

    [Fact]
    public void LimitsAreThoseOfTheProgramInThisOrder()
    {
        var rows = DocsPage.Named("security").Tables("Limits");
        Assert.Equal(Limits.Select(l => l.Name), rows.Select(r => r[0]));
        foreach (var (limit, row) in Limits.Zip(rows))
        {
            Assert.Matches($@"(^|, ){Regex.Escape(limit.Value)}( |$)", row[1]);
            Assert.True(limit.Text == null || Source.Contains(limit.Text, StringComparison.Ordinal),
                $"Ses.cs has no '{limit.Text}', where the limit '{limit.Name}' was");
        }
    }

    [Fact]
    public void EveryConstantOfTheProgramIsALimitOrNone()
    {
        // These are no limits: numbers of Linux, of SQLite, of formats and of exit codes, no time at all, the
        // defaults of settings, what makes a heartbeat.
        string[] others = ["CurrentFolder", "DescriptorLimit", "InodeAndSize", "ReadOnly", "SetDumpable", "UserAndGroup",
            "ApplicationId", "Version", "OldestVersion", "WriteLockByte", "WouldBlock", "BadDescriptor", "Inet", "Both", "ArenaMax", "LogHead", "LogPageHead", "MapThreshold", "MaxConfigLines", "MayWrite", "EffectiveUser", "Busy", "Corrupt", "FilesChanged", "FlushFailed",
            "FolderFlushFailed", "Full", "NoSpace", "NotADatabase", "QuotaExceeded", "TooLarge", "Insert", "Usage", "Failure",
            "Longest", "Success", "Timeless", "Open", "Limit", "DefaultPause", "DefaultStaleAfter", "ArmedBy", "Shortest", "Repeated", "Forgotten", "Kept", "Enough", "Tolerance", "MostSought", "StretchSize", "LongestName", "LongestLabel", "Lately", "SmallestGzip",
            "Least", "HeadRoom", "SilentPeers", "ColumnCount", "IsDown", "NoMatch", "ShortText", "ShortReason", "OutageMarkup", "Week", "Day", "Ok", "CannotOpen", "ReadWrite", "Reach", "ManyServices", "Up", "Degraded", "Down", "Unknown"];
        var constants = typeof(Web).Assembly.GetTypes()
            .Where(t => t.Namespace == "Ses" && !t.IsEnum)
            .SelectMany(t => t.GetFields(AllStatic | BindingFlags.DeclaredOnly))
            .Where(f => f.FieldType == typeof(int) || f.FieldType == typeof(long)
                || f.FieldType == typeof(TimeSpan))
            .Where(f => char.IsAsciiLetterUpper(f.Name[0])).ToList();
        Assert.Equal([], others.Except(constants.Select(f => f.Name)));
        var missing = constants.Where(f => !others.Contains(f.Name)).Select(f => (f.DeclaringType!, f.Name))
            .Except(Named).ToList();
        Assert.Equal([], missing);
    }

    [Fact]
    public void NamesInTheTextExist()
    {
        var variables = Options.Settings.Select(s => s.Variable).ToHashSet();
        var metrics = DocsPage.Named("operations").Table("Metrics").Select(r => Plain(r[0])).ToHashSet();
        Assert.All(VariableName().Matches(Text), m => Assert.Contains(m.Value, variables));
        Assert.All(MetricName().Matches(Text), m => Assert.Contains(m.Value, metrics));
        // The last five are of curl, amtool and chown, and a slip of the pen.
        string[] others = ["--help", "--version", "--data-binary", "--servise", "--alertmanager", "--annotation", "--reference"];
        var flags = Options.Settings.Concat(Command.All.SelectMany(c => c.Settings)).Select(s => s.Flag)
            .Concat(others).ToHashSet();
        Assert.All(FlagName().Matches(Text), m => Assert.Contains(m.Value, flags));
        var commands = Command.All.Select(c => c.Words[0]).Append("help").ToHashSet();
        Assert.All(CommandName().Matches(Text), m => Assert.Contains(m.Groups[1].Value, commands));
    }

    [Fact]
    public void CommandsOfTheStoreAreThoseOfTheProgram() => Assert.Equal(
        Command.All.SkipWhile(c => c.Name != "check").TakeWhile(c => c.Name != "note add").Select(c => "ses " + c.Name
            + (c.Argument == null ? "" : c.IsArgumentNeeded ? $" {c.Argument}" : $" [{c.Argument}]")),
        DocsPage.Named("operations").Table("Maintenance commands").Select(r => Plain(r[0])));

    [Fact]
    public void LinesOfThePageAreFacts()
    {
        var lines = DocsPage.Named("api").CodeOf("Facts as JSON lines", "json");
        Assert.Equal(6, lines.Length);
        Assert.All(lines, l => FactLine.Parse(l, DateTime.UtcNow));
        var fields = lines.SelectMany(l => JsonDocument.Parse(l).RootElement.EnumerateObject()).Select(f => f.Name);
        Assert.Equal(fields.Distinct().Order(), DocsPage.Named("api").Table("Facts as JSON lines")
            .SelectMany(r => Plain(r[0]).Split(", ")).Order());
    }

    [Fact]
    public async Task ViewsAndTablesAreThoseOfTheDatabase()
    {
        await using var host = Host.Serving();
        using var database = new SqliteConnection(StoreFiles.PathOf(host.Dir), isReadOnly: true, cache: 2048);
        var inDatabase = Column("SELECT name FROM sqlite_schema WHERE type = 'view' ORDER BY name")
            .Select(v => $"{v}: {string.Join(", ", Column($"SELECT name FROM pragma_table_info('{v}')"))}");
        Assert.Equal(inDatabase, DocsPage.Named("sql").Table("Views")
            .Select(r => $"{Plain(r[0])}: {Plain(r[1]).Split(':')[0]}").Order());

        var tables = DocsPage.Named("design").Table("The store").SelectMany(r => CodeName().Matches(r[0]).Select(m => m.Groups[1].Value));
        Assert.Equal(Column("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'").Order(StringComparer.Ordinal),
            tables.Distinct().Order(StringComparer.Ordinal));

        List<string> Column(string sql)
        {
            using var rows = database.Query(sql);
            var values = new List<string>();
            while (rows.Step())
                values.Add(rows.Text(0));
            return values;
        }
    }

    [Fact]
    public async Task SqlOfThePageFindsTheOutages()
    {
        await using var host = Host.Serving();
        foreach (var (starts, ends) in new[] { ("2026-10-03T08:00:00Z", "2026-10-03T08:10:00Z"),
            ("2026-11-03T08:00:00Z", "2026-11-03T08:01:30.5Z"), ("2026-11-20T08:00:00Z", null) })
            Assert.Equal(204, (await host.PostAsync($$$"""
                {"alerts":[{"status":"{{{(ends == null ? "firing" : "resolved")}}}","startsAt":"{{{starts}}}",
                "endsAt":"{{{ends ?? "0001-01-01T00:00:00Z"}}}",
                "labels":{"alertname":"Down","job":"etcd","instance":"n1:2379"}}]}
                """)).Code);
        // What was answered is derived when it is asked for.
        Assert.Equal(200, (await host.GetAsync("/alerts/INS")).Code);
        var code = string.Join('\n', DocsPage.Named("sql").CodeOf("Views", "sh"));
        using var database = new SqliteConnection(StoreFiles.PathOf(host.Dir), isReadOnly: true, cache: 2048);
        using var rows = database.Query(code[(code.IndexOf("\nSELECT", StringComparison.Ordinal) + 1)..^1]);
        var outages = new List<string>();
        while (rows.Step())
            outages.Add($"{rows.Text(0)} {rows.Text(1)} {rows.Text(2)} {rows.TextOrNull(3)} {rows.TextOrNull(4)}");
        Assert.Equal(
            ["Down n1:2379 2026-11-03T08:00:00.000Z 2026-11-03T08:01:30.500Z 90.5",
                "Down n1:2379 2026-11-20T08:00:00.000Z  "], outages);
    }

    /// <summary>Each row of the table of questions names the fields of what it is answered.</summary>
    [Fact]
    public async Task FieldsOfAnswersAreThoseOfTheProgram()
    {
        await using var host = Host.Serving();
        Assert.Equal(204, (await host.PostAsync("""
            {"alerts":[{"status":"firing","startsAt":"2026-11-20T08:00:00Z","labels":{"alertname":"Down","job":"etcd"}}]}
            """)).Code);
        foreach (var row in DocsPage.Named("api").Table("Queries"))
        {
            var path = Plain(row[0]).Replace("GET /{path}/{partition}", "/alerts/INS", StringComparison.Ordinal);
            var answer = (await host.GetAsync(path)).Json;
            var documented = FieldsOfRows().Match(row[1]);
            var fields = answer.GetProperty(documented.Groups[1].Value)[0].EnumerateObject().Select(f => f.Name);
            Assert.Equal(documented.Groups[2].Value.Split(", "), fields);
            var head = answer.EnumerateObject().Select(f => f.Name);
            var isCounted = path.EndsWith("report", StringComparison.Ordinal) || path.EndsWith("outages", StringComparison.Ordinal);
            Assert.Equal(isCounted ? ["as_of", "version", "settings"]
                : new[] { "as_of", "version", "pause_seconds", "stale_after_seconds" }, head.Take(isCounted ? 3 : 4));
        }
    }

    [Fact]
    public async Task HealthOfThePageIsThatOfTheProgram()
    {
        await using var host = Host.Serving("--metrics-auth", "true");
        Assert.Equal(204, (await host.PostAsync("""
            {"alerts":[{"status":"firing","startsAt":"2026-11-20T08:00:00Z","labels":{"alertname":"Down","job":"etcd"}}]}
            """)).Code);
        // What a day takes is told once it is over.
        host.Clock.Advance(TimeSpan.FromDays(2));
        var answer = (await host.GetAsync("/health")).Body;
        var documented = DocsPage.Named("api").CodeOf("Health", "text");
        Assert.Equal(NamesOf(answer.TrimEnd().Split('\n')), NamesOf(documented));

        static IEnumerable<string> NamesOf(IEnumerable<string> lines) => lines.Select(l => l.Split(':')[0])
            .Where(n => !n.StartsWith("onix.", StringComparison.Ordinal) || n == "onix.state")
            .Where(n => !n.StartsWith("heartbeats.", StringComparison.Ordinal));
    }

    [Fact]
    public void ConfigurationsAreTheFilesInDeploy()
    {
        var files = YamlFile().Matches(Text);
        Assert.Equal(3, files.Count);
        Assert.All(files, m =>
            Assert.Equal(Read(m.Groups[1].Value), m.Groups[2].Value));
    }

    [Fact]
    public void ShortConfigurationsArePartOfTheFilesInDeploy()
    {
        var prometheus = Read("deploy/prometheus.yml").Split('\n');
        AssertPart(DocsPage.Named("alerts").CodeOf("Prometheus", "yaml"), prometheus);
        AssertPart(DocsPage.Named("history").CodeOf("Heartbeats", "yaml"), Read("deploy/rules-watchdog.yml").Split('\n'));
        // The README has the same in one line, without credentials, for the SeS that it starts.
        Assert.Equal(
            ["alerting:", "  alertmanagers:", "  - {path_prefix: /alerts/INS, static_configs: [{targets: [\"localhost:8888\"]}]}"],
            DocsPage.Readme.CodeOf("Connect Prometheus", "yaml"));
    }

    [Fact]
    public void QuestionsOfTheReadmeAreAmongThoseOfThePage() => AssertPart(
        DocsPage.Readme.CodeOf("Query it", "sh"), DocsPage.Named("api").CodeOf("Queries", "sh"));

    [Fact]
    public void ReasonsOfQuarantineAreThoseOfTheProgram()
    {
        var reasons = DocsPage.Named("alerts").Section("## Quarantine\n", "\n## ");
        string[] all =
        [
            "it is not an object", "is of the wrong type, or not usable as text",
            "a text in it is not valid Unicode", "it has no alertname", "it has no ",
            "it has no facet, but a platform and the status up or down", "is not an RFC 3339 time with a zone",
            "is before the year 2000", "is more than 24 h ahead of the clock",
            "status is neither firing nor resolved", " already, as many as ", " have more than ",
            " more alerts of the same payload: copies, or beyond the first ",
        ];
        foreach (var words in all)
        {
            Assert.Contains(words, reasons, StringComparison.Ordinal);
            Assert.Contains(words, Source, StringComparison.Ordinal);
        }
    }

    /// <summary>The payload in the chapter on status and severity, and the history that the page says it gives.</summary>
    [Fact]
    public async Task PayloadGivesTheHistoryOfThePage()
    {
        var page = DocsPage.Named("alerts");
        await using var host = Host.Serving();
        Assert.Equal(204, (await host.PostAsync(string.Join('\n', page.CodeOf("Status and severity", "json")))).Code);
        var events = (await host.GetAsync("/alerts/INS/history")).Json.GetProperty("events").EnumerateArray()
            .Select(e => string.Join("  ", HistoryColumns.Select(c => e.GetProperty(c).GetString()))).ToList();
        Assert.Equal(
            page.CodeOf("Status and severity", "text").Select(l => Spaces().Replace(l, "  ")),
            events.Prepend(string.Join("  ", HistoryColumns)));
    }

    private static readonly string[] HistoryColumns =
        ["platform", "service", "facet", "location", "status", "time", "description"];

    [Fact]
    public void ReasonsOfRefusalAreThoseOfTheProgramInItsOrder()
    {
        var rows = DocsPage.Named("security").Table("Refused requests");
        Assert.Equal(Meters.RefusalReasons, rows.SelectMany(r => Plain(r[0]).Split(", ")));
        foreach (var reason in Meters.RefusalReasons)
            Assert.Contains($"\"{reason}\"", Source[Source.IndexOf(". HTTP =", StringComparison.Ordinal)..],
                StringComparison.Ordinal);
    }

    [Fact]
    public void ReasonsOfWhatIsNotTakenAreThoseOfTheProgram()
    {
        var rows = DocsPage.Named("alerts").Table("Rejected requests");
        Assert.Equal(Meters.BadReasons.Order(), rows.SelectMany(r => Plain(r[0]).Split(", ")).Order());
    }

    // ---- Where the program has its limits ----

    private const BindingFlags AllStatic = BindingFlags.Static | BindingFlags.Public | BindingFlags.NonPublic;

    private static CultureInfo Invariant => CultureInfo.InvariantCulture;

    private static (string, string, string?) Limit(string name, Type type, string constant, double unit = 1)
    {
        Named.Add((type, constant));
        return (name, Write(Constant(type, constant), unit), null);
    }

    private static object Constant(Type type, string name) => type.GetField(name, AllStatic)?.GetValue(null)
        ?? throw new InvalidOperationException($"{type.Name} has no {name}");

    /// <summary>As the page writes it: 1,024, 64 MiB, 1.5 s, 10 min.</summary>
    private static string Write(object value, double unit) => value switch
    {
        DateTime time => time.ToString("yyyy-MM-dd", Invariant),
        TimeSpan { TotalSeconds: < 0.1 } time => $"{time.TotalMilliseconds} ms",
        TimeSpan { TotalDays: > 1 } time => $"{time.TotalDays} d",
        TimeSpan { TotalHours: >= 1 } time => $"{time.TotalHours} h",
        TimeSpan { TotalMinutes: >= 1, Seconds: 0 } time => $"{time.TotalMinutes} min",
        TimeSpan time => string.Create(Invariant, $"{time.TotalSeconds} s"),
        _ => (Convert.ToDouble(value, Invariant) / unit).ToString("#,0", Invariant)
            + (unit == Mib ? " MiB" : unit == Kib ? " KiB" : ""),
    };

    // ---- The pages' parts ----

    /// <summary>The default as the user would write it, or as --help tells it in words.</summary>
    private static string DefaultOf(Setting setting) =>
        setting.Default ?? DefaultInWords().Match(setting.Help).Groups[1].Value;

    private static string Read(string file) => File.ReadAllText(Path.Combine(DocsPage.Checkout, file));

    /// <summary>All lines are among the others, in the same order.</summary>
    private static void AssertPart(string[] lines, IEnumerable<string> others)
    {
        Assert.True(lines.Length > 1);
        var left = new Queue<string>(lines);
        foreach (var other in others)
        {
            if (left.TryPeek(out var next) && next == other)
                left.Dequeue();
        }
        Assert.Equal([], left);
    }

    private static string Plain(string cell) => cell.Replace("`", "", StringComparison.Ordinal);

    [GeneratedRegex(@"# TYPE (ses_\w+) (\w+)")]
    private static partial Regex TypeLine();

    [GeneratedRegex("""(?:\b(?:Problem|Bad|Json|Reply|NoteException)\(\s*|RefusedException\("\w+", )(\d{3})\b""")]
    private static partial Regex AnswerCode();

    [GeneratedRegex(@"\(default: ([^)]+)\)")]
    private static partial Regex DefaultInWords();

    [GeneratedRegex(@"\bOXSES_[A-Z_]*[A-Z]\b")]
    private static partial Regex VariableName();

    [GeneratedRegex(@"(?<![\w-])ses_[a-z_]+[a-z]\b")]
    private static partial Regex MetricName();

    [GeneratedRegex(@"(?<![\w-])--[a-z][a-z-]*[a-z]\b")]
    private static partial Regex FlagName();

    /// <summary>At the begin of a line, of code, or after a pipe.</summary>
    [GeneratedRegex(@"(?:^|`|\| )(?:out/)?ses ([a-z]+)", RegexOptions.Multiline)]
    private static partial Regex CommandName();

    /// <summary>The name of the list, and what its rows have.</summary>
    [GeneratedRegex(@"\{""(\w+)"":\[\{([^}]+)\}\]")]
    private static partial Regex FieldsOfRows();

    [GeneratedRegex(@"`(\w+)`")]
    private static partial Regex CodeName();

    [GeneratedRegex(" {2,}")]
    private static partial Regex Spaces();

    [GeneratedRegex(@"`(deploy/[\w-]+\.yml)`:\n\n```yaml\n(.*?)```", RegexOptions.Singleline)]
    private static partial Regex YamlFile();
}
