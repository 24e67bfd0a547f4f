using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace Ses.Tests.Support;

/// <summary>An effective change of an item, as Onix's history of changes keeps it.</summary>
internal sealed record ItemChange(string Key, string Partition, string Platform, string Service, string Facet,
    string Location, string Status, string Time, string Description, int Version, DateTime At);

/// <summary>What the database behind the stand-in is like.</summary>
internal enum Database { Up, ReadOnly, Down }

/// <summary>
/// Onix as it really answers (the recordings in Data/onix-exchanges.jsonl are replayed against it): over
/// HTTP on 127.0.0.1, one request at a time, keeping every effective change. Its faults can be switched
/// while it runs. Times that the real one takes when its database is away (30 s) are left out.
/// </summary>
internal sealed class OnixStandIn : IAsyncDisposable
{
    private static readonly Dictionary<string, string[]> Fields = new()
    {
        ["models"] = ["key", "name", "description", "managed"],
        ["itemTypes"] = ["key", "name", "description", "modelKey"],
        ["itemTypeAttributes"] = ["key", "name", "description", "type", "required", "itemTypeKey"],
        ["items"] = ["key", "name", "description", "type", "attribute", "partition", "version"],
    };

    private static readonly string[] Attributes =
        ["service", "status", "description", "location", "time", "platform", "facet"];

    private const int MaxAttribute = 2696;

    private readonly SemaphoreSlim _oneAtATime = new(1);
    private readonly Lock _gate = new();
    private readonly Dictionary<string, Item> _items = [];
    private readonly List<ItemChange> _history = [];
    private readonly HashSet<string> _sessions = [];
    private readonly HashSet<TcpClient> _connections = [];
    private TcpListener? _listener;
    private int _port;
    private bool _model;
    private double _debt;

    private sealed record Item(string Name, string Description, string Type, IReadOnlyDictionary<string, string?> Attribute,
        string Partition, int Version);

    /// <summary>The user whose rights are the restricted ones of the recordings.</summary>
    public const string OrdinaryUser = "ses";

    public Uri Url => new($"http://127.0.0.1:{_port}/");

    public Database Database { get; set; }

    /// <summary>Partitions that the ordinary user may read and write; REF is read only.</summary>
    public HashSet<string> OrdinaryRights { get; } = ["P1"];

    /// <summary>How long an item of a PUT takes.</summary>
    public TimeSpan PerItem { get; set; }

    /// <summary>Answers every request with this status instead of serving it.</summary>
    public int? AlwaysAnswer { get; set; }

    /// <summary>Requests wait while this is not completed.</summary>
    public Task Hanging { get; set; } = Task.CompletedTask;

    /// <summary>Refuses an item, by key, with a message.</summary>
    public Func<string, string?>? Refuse { get; set; }

    /// <summary>So many PUTs to come lose a database connection: their middle item is refused.</summary>
    public int LoseConnection { get; set; }

    /// <summary>So many PUTs to come are carried out, but the connection ends before the answer.</summary>
    public int DropReply { get; set; }

    /// <summary>A PUT of more items is answered with <see cref="TooManyStatus"/>.</summary>
    public int MostItems { get; set; } = int.MaxValue;

    public int TooManyStatus { get; set; } = 413;

    /// <summary>Null: basic authentication. Else what tells a good bearer token.</summary>
    public Func<string, bool>? IsToken { get; set; }

    public int Requests { get; private set; }

    /// <summary>Effective changes so far, kept or not.</summary>
    public int Changes { get; private set; }

    /// <summary>False for a bench that has no memory to spare.</summary>
    public bool KeepsHistory { get; init; } = true;

    public int TokensSeen { get; private set; }

    public IReadOnlyList<ItemChange> History
    {
        get
        {
            lock (_gate)
                return [.. _history];
        }
    }

    /// <summary>Listens, on the same port as before; Onix is there again.</summary>
    public void Start()
    {
        _listener = new TcpListener(IPAddress.Loopback, _port);
        _listener.Server.SetSocketOption(SocketOptionLevel.Socket, SocketOptionName.ReuseAddress, true);
        _listener.Start();
        _port = ((IPEndPoint)_listener.LocalEndpoint).Port;
        _ = AcceptAsync(_listener);
    }

    /// <summary>Closes the port and every connection: Onix is away.</summary>
    public void Stop()
    {
        _listener?.Dispose();
        lock (_gate)
        {
            foreach (var connection in _connections)
                connection.Dispose();
            _connections.Clear();
        }
    }

    public ValueTask DisposeAsync()
    {
        Stop();
        return ValueTask.CompletedTask;
    }

    public void DeleteItem(string key)
    {
        lock (_gate)
            _items.Remove(key);
    }

    /// <summary>Plays a backup: returns what restores items (not the history) as they are now.</summary>
    public Action Backup()
    {
        lock (_gate)
        {
            var saved = new Dictionary<string, Item>(_items);
            return () =>
            {
                lock (_gate)
                {
                    _items.Clear();
                    foreach (var (key, item) in saved)
                        _items[key] = item;
                }
            };
        }
    }

    /// <summary>Somebody else changes an item: its version moves on, and its description is another.</summary>
    public void Touch(string key)
    {
        lock (_gate)
            _items[key] = _items[key] with { Version = _items[key].Version + 1, Description = "touched" };
    }

    /// <summary>Another Onix, or one that was emptied.</summary>
    public void Empty()
    {
        lock (_gate)
        {
            _model = false;
            _items.Clear();
        }
    }

    /// <summary>Is called before each PUT of items, with their keys.</summary>
    public Action<IReadOnlyList<string>>? BeforePut { get; set; }

    /// <summary>Somebody dropped the model; items stay.</summary>
    public void RemoveModel() => _model = false;

    private async Task AcceptAsync(TcpListener listener)
    {
        try
        {
            while (true)
            {
                var connection = await listener.AcceptTcpClientAsync();
                lock (_gate)
                    _connections.Add(connection);
                _ = ServeAsync(connection);
            }
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException)
        {
            // Stopped.
        }
    }

    private async Task ServeAsync(TcpClient connection)
    {
        try
        {
            connection.NoDelay = true;
            using var stream = new BufferedStream(connection.GetStream(), 64 * 1024);
            while (await ReadRequestAsync(stream) is { } request)
            {
                await _oneAtATime.WaitAsync();
                Answer answer;
                try
                {
                    await Hanging;
                    answer = Serve(request);
                }
                finally
                {
                    _oneAtATime.Release();
                }
                if (answer.Status == 0)
                    break;
                await WriteAsync(stream, answer);
            }
        }
        catch (Exception e) when (e is IOException or ObjectDisposedException or SocketException)
        {
            // The client, or Stop, ended it.
        }
        finally
        {
            connection.Dispose();
        }
    }

    private sealed record Request(string Method, string Target, IReadOnlyDictionary<string, string> Headers, byte[] Body);

    private sealed record Answer(int Status, string Body, string? Cookie = null, (string, string)? Header = null);

    private static async Task<Request?> ReadRequestAsync(Stream stream)
    {
        var first = await ReadLineAsync(stream);
        if (string.IsNullOrEmpty(first))
            return null;
        var headers = new Dictionary<string, string>(StringComparer.OrdinalIgnoreCase);
        for (string? line; !string.IsNullOrEmpty(line = await ReadLineAsync(stream));)
            headers[line.Split(':', 2)[0]] = line.Split(':', 2)[1].Trim();
        var body = new byte[int.Parse(headers.GetValueOrDefault("Content-Length", "0"), CultureInfo.InvariantCulture)];
        await stream.ReadExactlyAsync(body);
        var parts = first.Split(' ');
        return new Request(parts[0], parts[1], headers, body);
    }

    private static async Task<string?> ReadLineAsync(Stream stream)
    {
        var line = new List<byte>();
        var one = new byte[1];
        while (await stream.ReadAsync(one) == 1)
        {
            if (one[0] == '\n')
                return Encoding.Latin1.GetString([.. line]).TrimEnd('\r');
            line.Add(one[0]);
        }
        return null;
    }

    private static async Task WriteAsync(Stream stream, Answer answer)
    {
        var body = Encoding.UTF8.GetBytes(answer.Body);
        var head = new StringBuilder($"HTTP/1.1 {answer.Status} X\r\nContent-Type: application/json\r\n");
        if (answer.Cookie != null)
            head.Append(CultureInfo.InvariantCulture, $"Set-Cookie: JSESSIONID={answer.Cookie}; Path=/; HttpOnly\r\n");
        if (answer.Header is var (name, value))
            head.Append(CultureInfo.InvariantCulture, $"{name}: {value}\r\n");
        head.Append("Transfer-Encoding: chunked\r\n\r\n");
        await stream.WriteAsync(Encoding.ASCII.GetBytes(head.ToString()));
        if (body.Length > 0)
        {
            await stream.WriteAsync(Encoding.ASCII.GetBytes($"{body.Length:x}\r\n"));
            await stream.WriteAsync(body);
            await stream.WriteAsync("\r\n"u8.ToArray());
        }
        await stream.WriteAsync("0\r\n\r\n"u8.ToArray());
        await stream.FlushAsync();
    }

    private Answer Serve(Request request)
    {
        lock (_gate)
        {
            Requests++;
            if (AlwaysAnswer is { } status)
                return new Answer(status, "");
            if (request.Target is "/ready" or "/live")
                return new Answer(200, "{}");
            var (user, refusal, cookie) = SignIn(request);
            if (refusal != null)
                return refusal;
            var answer = Route(request, user!, cookie == null);
            return answer with { Cookie = cookie };
        }
    }

    private (string? User, Answer? Refusal, string? NewSession) SignIn(Request request)
    {
        var authorization = request.Headers.GetValueOrDefault("Authorization");
        if (IsToken != null)
        {
            if (authorization == null)
                return (null, new Answer(302, "", null, ("Location", "/oidc-login")), null);
            TokensSeen++;
            return IsToken(authorization["Bearer ".Length..]) ? ("admin", null, null)
                : (null, new Answer(401, "", null, ("WWW-Authenticate", "Bearer error=\"invalid_token\"")), null);
        }
        var denied = Error(401, request.Target) with { Header = ("WWW-Authenticate", "Basic realm=\"Realm\"") };
        var credentials = authorization?.StartsWith("Basic ", StringComparison.Ordinal) == true
            ? Encoding.UTF8.GetString(Convert.FromBase64String(authorization[6..])).Split(':', 2) : null;
        if (credentials is not ["admin" or OrdinaryUser, "0n1x"])
            return (null, denied, null);
        var session = request.Headers.GetValueOrDefault("Cookie")?.Split("JSESSIONID=").Last().Split(';')[0];
        if (session != null && _sessions.Contains(session))
            return (credentials[0], null, null);
        if (Database == Database.Down)
            return (null, denied, null);
        var made = Guid.NewGuid().ToString("N");
        _sessions.Add(made);
        return (credentials[0], null, made);
    }

    private Answer Route(Request request, string user, bool hasSession)
    {
        var (path, query) = request.Target.Split('?', 2) is [var p, var q] ? (p, q) : (request.Target, "");
        var mayRead = user == "admin" || OrdinaryRights.Contains("REF");
        if (request.Method == "GET" && path == "/model/SES")
            return Database == Database.Down ? Error(500, path) : _model && mayRead
                ? new Answer(200, """{"key":"SES","name":"Service Status Model","managed":true,"version":1,"partition":"REF"}""")
                : new Answer(404, "");
        if (request.Method == "GET" && path == "/item")
            return Database == Database.Down ? Error(500, path) : List(user, query);
        if (request.Method == "GET" && path.StartsWith("/item/", StringComparison.Ordinal))
            return Get(user, path, hasSession);
        if (request.Method == "PUT" && path == "/data")
            return Database == Database.Down ? Error(500, path) : Put(request.Body, user);
        return Error(404, path);
    }

    private static Answer Error(int status, string path) =>
        new(status, JsonSerializer.Serialize(new { timestamp = 0, status, error = "Error", path }));

    private bool MayRead(string user, Item item) => user == "admin" || OrdinaryRights.Contains(item.Partition);

    private Answer List(string user, string query)
    {
        var top = int.Parse(query.Split("top=").Last().Split('&')[0], CultureInfo.InvariantCulture);
        var items = _items.Where(i => MayRead(user, i.Value)).Take(top).Select(i => Body(i.Key, i.Value));
        return new Answer(200, "{\"values\":[" + string.Join(',', items) + "]}");
    }

    private Answer Get(string user, string path, bool hasSession)
    {
        var key = Uri.UnescapeDataString(path["/item/".Length..]);
        if (key.IndexOfAny(['/', ';', '\\', '%']) >= 0)
            return Error(hasSession ? 500 : 401, path);
        return Database != Database.Down && _items.TryGetValue(key, out var item) && MayRead(user, item)
            ? new Answer(200, Body(key, item)) : new Answer(404, "");
    }

    private static string Body(string key, Item item) => JsonSerializer.Serialize(new
    {
        key,
        name = item.Name,
        description = item.Description,
        type = item.Type,
        typeName = (string?)null,
        status = 0,
        meta = new { },
        attribute = item.Attribute,
        tag = Array.Empty<string>(),
        created = "23-11-2026 00:00:00 +0000",
        version = item.Version,
        changedBy = "admin, ADMIN",
        partition = item.Partition,
    });

    private Answer Put(byte[] body, string user)
    {
        var data = JsonNode.Parse(body)!.AsObject();
        if (UnknownField(data) is { } unknown)
            return new Answer(400, Result([("N", true, "Issue reading the request body, revise the content that is "
                + $"being sent to the server: Unrecognized field \"{unknown}\"", null)]));
        var items = data["items"]?.AsArray() ?? [];
        if (items.Count > MostItems)
            return Error(TooManyStatus, "/data");
        Spend(items.Count);
        if (items.Count > 0)
            BeforePut?.Invoke([.. items.Select(i => (string)i!["key"]!)]);
        var lost = LoseConnection > 0 && items.Count > 0 ? items.Count / 2 : -1;
        LoseConnection = Math.Max(0, LoseConnection - (items.Count > 0 ? 1 : 0));
        var results = new List<(string, bool, string?, string?)>();
        foreach (var kind in new[] { "models", "itemTypes", "itemTypeAttributes" })
        {
            foreach (var node in data[kind]?.AsArray() ?? [])
                results.Add(PutModel(kind, (string)node!["key"]!, user));
        }
        for (var i = 0; i < items.Count; i++)
        {
            var key = (string)items[i]!["key"]!;
            results.Add(i == lost
                ? ("N", true, "FATAL: terminating connection due to administrator command", "Item:" + key)
                : PutItem(items[i]!.AsObject(), key, user));
        }
        if (DropReply <= 0)
            return new Answer(200, Result(results));
        DropReply--;
        return new Answer(0, "");
    }

    private static string? UnknownField(JsonObject data)
    {
        foreach (var (kind, list) in data)
        {
            if (!Fields.TryGetValue(kind, out var fields))
                return kind;
            foreach (var node in list?.AsArray() ?? [])
            {
                if (node!.AsObject().Select(f => f.Key).FirstOrDefault(f => !fields.Contains(f)) is { } unknown)
                    return unknown;
            }
        }
        return null;
    }

    /// <summary>Sleeps what is long enough to sleep, and carries the rest over, so that the average is right.</summary>
    private void Spend(int items)
    {
        _debt += items * PerItem.TotalMilliseconds;
        if (_debt < 1)
            return;
        var clock = Stopwatch.StartNew();
        Thread.Sleep((int)_debt);
        _debt -= clock.Elapsed.TotalMilliseconds;
    }

    private (string, bool, string?, string) PutModel(string kind, string key, string user)
    {
        var parent = kind == "itemTypeAttributes" ? "SES_SERVICE:" : "";
        var reference = $"{char.ToUpperInvariant(kind[0])}{kind[1..^1]}:{parent}{key}";
        if (user != "admin")
            return ("N", true, "ERROR: Role {R1} is not authorised to update the Model on partition REF.", reference);
        var operation = _model ? "N" : "I";
        // The attributes come last: with them the model is whole.
        _model |= key == "SES_SERVICE_ATTR_FACET";
        return (operation, false, null, reference);
    }

    private (string, bool, string?, string) PutItem(JsonObject node, string key, string user)
    {
        var reference = "Item:" + key;
        var held = _items.GetValueOrDefault(key);
        var version = node["version"] is { } v ? (int)v : 0;
        var attribute = (node["attribute"] as JsonObject ?? []).ToDictionary(a => a.Key, a => (string?)a.Value);
        var item = new Item((string)node["name"]!, (string)node["description"]!, (string)node["type"]!, attribute,
            (string?)node["partition"] ?? "INS", 1);
        if (!_model || (user != "admin" && !OrdinaryRights.Contains("REF")))
            return ("N", true, $"Item Type SES_SERVICE does not exist when trying to create item {key}.", reference);
        if ((Refuse?.Invoke(key) ?? Refusal(item, key, held, user)) is { } refusal)
            return ("N", true, $"Failed to create or update item with key '{key}': ERROR: {refusal}", reference);
        if (held != null && version != 0 && version != held.Version)
            return ("L", false, null, reference);
        if (held != null && held.Name == item.Name && held.Description == item.Description
            && held.Attribute.Count == attribute.Count
            && held.Attribute.All(a => attribute.GetValueOrDefault(a.Key) == a.Value))
            return ("N", false, null, reference);
        Keep(key, item with { Version = (held?.Version ?? 0) + 1 });
        return (held == null ? "I" : "U", false, null, reference);
    }

    private string? Refusal(Item item, string key, Item? held, string user)
    {
        foreach (var name in Attributes.Where(a => a != "location" && item.Attribute.GetValueOrDefault(a) == null))
            return $"Item of type 'SES_SERVICE' requires attribute '{name}'.\n  Hint: declare it.";
        foreach (var name in item.Attribute.Keys.Where(a => !Attributes.Contains(a)))
            return $"Attribute '{name}' is not allowed for item type 'SES_SERVICE'!\n  Hint: remove it.";
        if (item.Attribute.Values.Append(key).Append(item.Name).Append(item.Description).Any(t => t?.Contains('\0') == true))
            return "invalid byte sequence for encoding \"UTF8\": 0x00\n  Where: unnamed portal parameter $10";
        if (held != null && held.Partition != item.Partition)
            return $"Item {key} exist within Partition {held.Partition} but a different partition {item.Partition} "
                + "has been specified.\n  Hint: The item partition cannot be changed.";
        if (user == "admin" ? item.Partition == "NOPE" : !OrdinaryRights.Contains(item.Partition) || item.Partition == "REF")
            return $"Role {{{(user == "admin" ? "ADMIN" : "R1")}}} is not authorised to create Item {key} in partition "
                + $"{item.Partition}.\n  Hint: grant CREATE.";
        // Of what does not compress; the real one takes longer ones that do.
        if (item.Attribute.Values.Any(v => Encoding.UTF8.GetByteCount(v ?? "") > MaxAttribute))
            return "index row size 2816 exceeds maximum 2712 for index \"item_attribute_ix\"\n  Detail: Index row "
                + "references tuple (3,5) in relation \"item\".";
        if (key.Length > 100 || item.Name.Length > 200)
            return "value too long for type character varying(100)\n  Where: SQL statement";
        return Database == Database.ReadOnly
            ? $"cannot execute {(held == null ? "INSERT" : "UPDATE")} in a read-only transaction\n  Where: SQL" : null;
    }

    private void Keep(string key, Item item)
    {
        string Of(string name) => item.Attribute.GetValueOrDefault(name) ?? "";
        _items[key] = item;
        Changes++;
        if (KeepsHistory)
            _history.Add(new ItemChange(key, item.Partition, Of("platform"), Of("service"), Of("facet"), Of("location"),
                Of("status"), Of("time"), Of("description"), item.Version, DateTime.UtcNow));
    }

    private static string Result(List<(string Operation, bool Error, string? Message, string? Ref)> results) =>
        JsonSerializer.Serialize(new
        {
            values = results.Select(r => new
            {
                changed = r.Operation is "I" or "U",
                message = r.Message,
                operation = r.Operation,
                error = r.Error,
                @ref = r.Ref,
                status = r.Error ? 400 : r.Operation switch { "I" => 201, "L" => 409, _ => 200 },
            }),
            error = results.Any(r => r.Error),
            changed = results.Any(r => r.Operation is "I" or "U"),
            message = "",
        });
}
