namespace Ses.Tests.Support;

/// <summary>What tells services apart. An aspect of a whole service has the location <c>""</c>.</summary>
internal sealed record SeenService(
    string Partition, string Platform, string Service, string Facet, string Location);

/// <summary>One change of the history. Times are UTC.</summary>
internal sealed record SeenChange(
    SeenService Service, string Status, DateTime Time, string Description, DateTime Received);

/// <summary>Reads SeS's database from outside, by its documented views alone.</summary>
internal static class StoreFiles
{
    /// <summary>
    /// All changes that an alert made, in order of time, once all that is stored is derived, which follows the
    /// answer to a webhook; an empty or absent folder has none.
    /// </summary>
    public static IReadOnlyList<SeenChange> Changes(string dir)
    {
        if (!File.Exists(PathOf(dir)))
            return [];
        using var database = new SqliteConnection(PathOf(dir), isReadOnly: true, cache: 2048);
        Wait.UntilAsync(() => IsDerived(database), Deadline, $"all in {dir} to be derived").GetAwaiter().GetResult();
        using var rows = database.Query("""
            SELECT partition, platform, service, facet, location, status, time, description, received FROM history
            WHERE received IS NOT NULL ORDER BY time
            """);
        var changes = new List<SeenChange>();
        while (rows.Step())
            changes.Add(new SeenChange(
                new(rows.Text(0), rows.Text(1), rows.Text(2), rows.Text(3), rows.Text(4)), rows.Text(5),
                Time(rows.Text(6)), rows.Text(7), Time(rows.Text(8))));
        return changes;
    }

    /// <summary>What happened to each service, in order of time.</summary>
    public static IReadOnlyDictionary<SeenService, IReadOnlyList<SeenChange>> History(string dir) =>
        Changes(dir).GroupBy(c => c.Service)
            .ToDictionary(g => g.Key, IReadOnlyList<SeenChange> (g) => [.. g]);

    /// <summary>The facts on episodes, derived or not: of each its service's name, what it was and its start.</summary>
    public static IReadOnlyList<(string Service, string Status, DateTime Starts, long Kind)> Facts(string dir)
    {
        if (!File.Exists(PathOf(dir)))
            return [];
        // Killed while the database was made, it is rolled back by whoever opens it next.
        using var database = new SqliteConnection(PathOf(dir), isReadOnly: !File.Exists(PathOf(dir) + "-journal"), cache: 2048);
        if (database.Number("SELECT count(*) FROM sqlite_schema") == 0)
            return [];
        using var rows = database.Query("""
            SELECT f.service, t.name, strftime('%FT%H:%M:%fZ', o.starts / 1000.0, 'unixepoch'), o.kind
            FROM observation o JOIN service s ON s.id = o.service JOIN family f ON f.id = s.family
                JOIN status t ON t.id = o.status
            """);
        var facts = new List<(string, string, DateTime, long)>();
        while (rows.Step())
            facts.Add((rows.Text(0), rows.Text(1), Time(rows.Text(2)), rows.Number(3)));
        return facts;
    }

    /// <summary>The starts of all episodes that are stored, derived or not.</summary>
    public static IReadOnlySet<(SeenService Service, DateTime Time)> Starts(string dir)
    {
        using var database = new SqliteConnection(PathOf(dir), isReadOnly: true, cache: 2048);
        using var rows = database.Query("""
            SELECT p.name, f.platform, f.service, f.facet, s.location,
                strftime('%FT%H:%M:%fZ', o.starts / 1000.0, 'unixepoch')
            FROM observation o JOIN service s ON s.id = o.service JOIN family f ON f.id = s.family
                JOIN partition p ON p.id = f.partition
            """);
        var starts = new HashSet<(SeenService, DateTime)>();
        while (rows.Step())
            starts.Add((new(rows.Text(0), rows.Text(1), rows.Text(2), rows.Text(3), rows.Text(4)),
                Time(rows.Text(5))));
        return starts;
    }

    /// <summary>How many facts on alerts are stored.</summary>
    public static int Observations(string dir)
    {
        if (!File.Exists(PathOf(dir)))
            return 0;
        using var database = new SqliteConnection(PathOf(dir), isReadOnly: true, cache: 2048);
        return (int)database.Number("SELECT count(*) FROM observation")!.Value;
    }

    private static readonly TimeSpan Deadline = TimeSpan.FromSeconds(20);

    private static bool IsDerived(SqliteConnection database) => database.Number("""
        SELECT coalesce((SELECT max(id) FROM observation), 0)
            <= coalesce((SELECT value FROM meta WHERE name = 'derived'), 0)
        """) == 1;

    public static string PathOf(string dir) => Path.Combine(dir, Store.FileName);

    private static DateTime Time(string text) =>
        Rfc3339.TryParse(text, out var time) ? time : throw new FormatException($"no time: {text}");
}
