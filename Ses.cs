// SeS, Service Status: a daemon that keeps a trustworthy history of when services were up and down.
//
// It receives Alertmanager's webhooks, turns each alert into status events, puts them on disk, brings
// every change of status to the Onix CMDB, and shows people and programs what happened when.
//
// THE PROMISE. A 2xx answer means: every event of the payload is on disk, flushed (or so old that its
// place in the history is long past, which is counted), and every unusable alert is on disk too, in
// quarantine, with the reason. What is on disk reaches Onix in order and once in effect, but for what
// came after Onix held something later, whatever crashes, restarts or is down for however long.
//
// THE FLOW
//
//     Alertmanager --> Gate (whole requests) --> Auth --> Web --> Alerts (map) --> EventLog (flush) --> 2xx
//                                                                                     |
//                 Onix <-- OnixClient <-- Recorder (decide, batch) <-- EventLog.Read (from the cursor)
//                                                                                     |
//     people, programs <-- Gate <-- Web <-- StatusPage, Answers <-- History <-- Archive (the log's files)
//
// ENDPOINTS
//
//     POST /{path}/{partition}            Alertmanager's webhook; {path} is "alerts" unless --path differs
//     GET  /{path}/{partition}            the current status of each service; JSON or CSV
//     GET  /{path}/{partition}/history    each change of status, in order of time
//     GET  /{path}/{partition}/report     availability and outages
//     GET  /, /service                    the status page, and that of one service
//     GET  /live, /ready                  probes; /ready reports Onix's state, but depends on the disk alone
//     GET  /metrics                       Prometheus's text format
//
// COMMANDS, beside the daemon: ses status, history, report, check, probe, quarantine
//
// FILES in the data directory
//
//     events-000001-2026-11-23.jsonl   the event log, one JSON object a line, files numbered upwards
//     events-000001-2026-11-23.index   where each service's events stand in it; may be deleted
//     cursor.json                      how far Onix has confirmed the log, and the barred services
//     quarantine.jsonl                 alerts that could not be mapped, whole, with reason and time
//     lock                             held while a process uses the directory
//
// GLOSSARY
//
//     partition      a part of Onix that services are in; the last segment of the webhook's path
//     service        what has a status: a platform, service, facet (aspect) and location in a partition
//     dialect        alerts whose labels name a status: "status", with "platform" or "facet"
//     stock alert    any other alert: its service is down while it fires, and up once it is resolved
//     status event   the fact that a service has a status from a time on; the event log holds these
//     window         a service's last eight events in order of time; it tells new events from copies
//     quarantine     the file of alerts that cannot be mapped to a service, until they are sent again
//     backlog        the events that Onix has not confirmed; barred: a service whose change Onix refuses
//     outage         the time from an event "down" to the next "up" of the same service
//     lock           Onix's refusal of a change to an item that somebody else has changed meanwhile
//
// EXIT CODES
//
//     0   asked to stop, and everything acknowledged is on disk
//     1   the disk can no longer be trusted (a flush failed), or a defect; the supervisor restarts
//     2   a bad setting, a port or a data directory in use: restarting alone does not help
//
// SECTIONS, each using only those above it
//
//     1 Options   2 Log   3 Metrics   4 Alerts   5 Order   6 Archive   7 Event log   8 History   9 Asking
//    10 Onix     11 Recorder  12 HTTP  13 Auth  14 Status page  15 Web  16 TLS  17 Gate  18 Linux
//    19 Commands  20 Main
//
//     Sections 5b Timeline, 9b Database, 9c Store, 9d Incoming alerts and 9e Questions take over from 4 to 9:
//     they are built and tested, and the daemon does not use them yet (docs/design.md, "The store to come").

using System.Buffers;
using System.Buffers.Binary;
using System.Buffers.Text;
using System.Collections.Concurrent;
using System.CommandLine;
using System.CommandLine.Help;
using System.CommandLine.Invocation;
using System.ComponentModel;
using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Net;
using System.Net.Http.Headers;
using System.Net.Security;
using System.Net.Sockets;
using System.Numerics;
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Security.Authentication;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization;
using System.Text.Json.Serialization.Metadata;
using System.Text.Unicode;
using Microsoft.Win32.SafeHandles;
using Prometheus;
using SQLitePCL;

[assembly: System.Runtime.Versioning.SupportedOSPlatform("linux")]

namespace Ses;

// ================================ 1. Options =================================
//
// One table of settings feeds everything: flags, environment variables, --help and the check of
// unknown variables. A flag wins over its variable, which wins over the default. A bad value ends
// the start with exit code 2 and one line that names the flag, the variable, the value and what is
// allowed. Secrets can come from a file, and are never printed.

/// <summary>Is thrown when a setting cannot be used; the message is the one line for the user.</summary>
internal sealed class OptionsException(string message) : Exception(message);

internal enum LogLevel { Panic, Fatal, Error, Warn, Info, Debug, Trace }

internal enum AuthMode { None, Basic, Oidc }

/// <summary>One row of the table of settings.</summary>
/// <param name="Variable">Empty: a flag of a command, which has none.</param>
/// <param name="Value">How --help names the value, such as <c>PORT</c>.</param>
/// <param name="Default">The default as the user would write it; null when there is none.</param>
/// <param name="Secret">Never printed; has a <c>-file</c> and a <c>_FILE</c> form as well.</param>
internal sealed record Setting(
    string Group, string Flag, string Variable, string Value, string? Default, string Help,
    bool Secret = false)
{
    /// <summary>The form that names a file which holds the secret.</summary>
    public Setting File => new(Group, Flag + "-file", Variable + "_FILE", "FILE", null, "File with " + Flag);

    public override string ToString() => Variable == "" ? Flag : $"{Flag} ({Variable})";
}

/// <summary>All settings of a run, checked; made by <see cref="Read"/>.</summary>
internal sealed record Options
{
    public required LogLevel LogLevel { get; init; }
    public required bool LogJson { get; init; }
    public required bool Metrics { get; init; }
    public required AuthMode AuthMode { get; init; }
    public required string Path { get; init; }
    public required int Port { get; init; }
    /// <summary>Null: all addresses.</summary>
    public required IPAddress? Address { get; init; }
    public required string Username { get; init; }
    public required string Password { get; init; }
    /// <summary>As the issuer names itself, to the letter.</summary>
    public required string? OidcIssuer { get; init; }
    public required string? OidcAudience { get; init; }
    public required bool MetricsAuth { get; init; }
    /// <summary>Null: plain HTTP.</summary>
    public required string? TlsCert { get; init; }
    public required string? TlsKey { get; init; }
    /// <summary>Null: no certificate is asked of clients.</summary>
    public required string? TlsClientCa { get; init; }
    /// <summary>Null: no Onix, the event log alone.</summary>
    public required Uri? OnixUrl { get; init; }
    public required AuthMode OnixAuthMode { get; init; }
    public required string OnixUsername { get; init; }
    public required string OnixPassword { get; init; }
    public required string? OnixClientId { get; init; }
    public required string? OnixAppSecret { get; init; }
    public required Uri? OnixTokenUri { get; init; }
    public required bool OnixInsecureSkipVerify { get; init; }
    public required string? OnixCaFile { get; init; }
    public required string DataDir { get; init; }
    public required TimeSpan Retention { get; init; }
    public required int MaxBody { get; init; }
    public required FieldMap Map { get; init; }
    /// <summary>What the user should know, though it stops nothing; logged once at the start.</summary>
    public required IReadOnlyList<string> Warnings { get; init; }

    private const string Listening = "Listening", Onix = "Onix", Keeping = "Keeping", Telling = "Telling";

    public static readonly Setting
        PathSetting = new(Listening, "--path", "OXSES_PATH", "PATH", "alerts",
            "Path of the webhook: POST /PATH/PARTITION"),
        PortSetting = new(Listening, "--port", "OXSES_PORT", "PORT", "8888",
            "TCP port, 1 to 65535; 0: a free one, which the log names"),
        AddressSetting = new(Listening, "--address", "OXSES_ADDRESS", "ADDRESS", null,
            "IPv4 or IPv6 address to listen on (default: all)"),
        TlsCertSetting = new(Listening, "--tls-cert", "OXSES_TLS_CERT", "FILE", null,
            "PEM file of the certificate, then its chain; with it only https is spoken"),
        TlsKeySetting = new(Listening, "--tls-key", "OXSES_TLS_KEY", "FILE", null,
            "PEM file of the certificate's key, not encrypted"),
        TlsClientCaSetting = new(Listening, "--tls-client-ca", "OXSES_TLS_CLIENTCA", "FILE", null,
            "PEM file of CAs: clients must have a certificate of one of them"),
        AuthModeSetting = new(Listening, "--auth-mode", "OXSES_AUTHMODE", "MODE", "none",
            "Who may post alerts: none (anyone), basic (RFC 7617), oidc (RFC 6750)"),
        OidcIssuerSetting = new(Listening, "--oidc-issuer", "OXSES_OIDC_ISSUER", "URL", null,
            "Issuer of the bearer tokens, as it names itself, with --auth-mode oidc"),
        OidcAudienceSetting = new(Listening, "--oidc-audience", "OXSES_OIDC_AUDIENCE", "NAME", null,
            "Audience that the tokens must be for"),
        MetricsAuthSetting = new(Listening, "--metrics-auth", "OXSES_METRICS_AUTH", "BOOL", "false",
            "Ask for credentials at /metrics too"),
        UsernameSetting = new(Listening, "--username", "OXSES_USERNAME", "NAME", "admin",
            "User that Alertmanager signs in as, with --auth-mode basic"),
        PasswordSetting = new(Listening, "--password", "OXSES_PASSWORD", "SECRET", "0n1x",
            "Password of that user", Secret: true),
        MaxBodySetting = new(Listening, "--max-body", "OXSES_MAXBODY", "SIZE", "16MiB",
            "Largest body of a webhook, such as 512KiB or 16MiB; at most 256MiB"),
        MapSetting = new(Listening, "--map", "OXSES_MAP", "MAP", null,
            "Where a field comes from: \"platform=platform,cluster,'prod';location=instance\""),
        OnixUrlSetting = new(Onix, "--onix-url", "OXSES_ONIX_URL", "URL", "http://localhost:8080",
            "Onix's web API; none: no Onix, the event log alone"),
        OnixAuthModeSetting = new(Onix, "--onix-auth-mode", "OXSES_ONIX_AUTHMODE", "MODE", "basic",
            "How to sign in to Onix: none, basic, oidc"),
        OnixUsernameSetting = new(Onix, "--onix-username", "OXSES_ONIX_USERNAME", "NAME", "admin",
            "User in Onix; needs read on REF, read and create on the partitions written to"),
        OnixPasswordSetting = new(Onix, "--onix-password", "OXSES_ONIX_PASSWORD", "SECRET", "0n1x",
            "Password of that user", Secret: true),
        OnixClientIdSetting = new(Onix, "--onix-client-id", "OXSES_ONIX_CLIENTID", "ID", null,
            "OIDC client, with --onix-auth-mode oidc"),
        OnixAppSecretSetting = new(Onix, "--onix-app-secret", "OXSES_ONIX_APPSECRET", "SECRET", null,
            "The client's secret", Secret: true),
        OnixTokenUriSetting = new(Onix, "--onix-token-uri", "OXSES_ONIX_TOKENURI", "URL", null,
            "OIDC token endpoint"),
        OnixSkipVerifySetting = new(Onix, "--onix-insecure-skip-verify", "OXSES_ONIX_INSECURESKIPVERIFY",
            "BOOL", "true", "Accept any certificate of Onix"),
        OnixCaFileSetting = new(Onix, "--onix-ca-file", "OXSES_ONIX_CAFILE", "FILE", null,
            "PEM file of the CAs that Onix's certificate is verified against"),
        DataDirSetting = new(Keeping, "--data-dir", "OXSES_DATADIR", "DIR", null,
            "Where the event log is kept (default: $STATE_DIRECTORY, else ses-data)"),
        RetentionSetting = new(Keeping, "--retention", "OXSES_RETENTION", "TIME", "400d",
            "How long events are kept, such as 90d; at least 1d"),
        LogLevelSetting = new(Telling, "--log-level", "OXSES_LOGLEVEL", "LEVEL", "Trace",
            "Least level logged: Panic, Fatal, Error, Warn, Info, Debug, Trace"),
        LogFormatSetting = new(Telling, "--log-format", "OXSES_LOGFORMAT", "FORMAT", "text", "text or json"),
        MetricsSetting = new(Telling, "--metrics", "OXSES_METRICS", "BOOL", "true", "Serve GET /metrics");

    /// <summary>Every setting, in the order of --help; docs/configuration.md is held against it.</summary>
    public static IReadOnlyList<Setting> Settings { get; } =
    [
        PathSetting, PortSetting, AddressSetting, TlsCertSetting, TlsKeySetting, TlsClientCaSetting,
        AuthModeSetting, UsernameSetting, PasswordSetting, PasswordSetting.File,
        OidcIssuerSetting, OidcAudienceSetting, MetricsAuthSetting, MaxBodySetting, MapSetting,
        OnixUrlSetting, OnixAuthModeSetting, OnixUsernameSetting, OnixPasswordSetting,
        OnixPasswordSetting.File, OnixClientIdSetting, OnixAppSecretSetting, OnixAppSecretSetting.File,
        OnixTokenUriSetting, OnixSkipVerifySetting, OnixCaFileSetting,
        DataDirSetting, RetentionSetting,
        LogLevelSetting, LogFormatSetting, MetricsSetting,
    ];

    /// <summary>Reads and checks all settings.</summary>
    /// <param name="flags">What the command line gave, by flag.</param>
    /// <param name="variables">The environment.</param>
    /// <exception cref="OptionsException">A value that cannot be used.</exception>
    public static Options Read(
        IReadOnlyDictionary<string, string> flags, IReadOnlyDictionary<string, string> variables)
    {
        var source = new SettingSource(flags, variables);
        var skipVerify = source.Bool(OnixSkipVerifySetting);
        var caFile = source.Path(OnixCaFileSetting);
        if (caFile != null && skipVerify && source.IsGiven(OnixSkipVerifySetting))
            throw new OptionsException($"{OnixCaFileSetting} and {OnixSkipVerifySetting} exclude each other");
        var options = new Options
        {
            LogLevel = source.Enum<LogLevel>(LogLevelSetting),
            LogJson = source.OneOf(LogFormatSetting, "text", "json") == "json",
            Metrics = source.Bool(MetricsSetting),
            AuthMode = source.Enum<AuthMode>(AuthModeSetting),
            Path = source.Parse(PathSetting, ParsePath, "a path such as alerts or hooks/ses, no ?, # or %"),
            Port = PortOf(source),
            Address = AddressOf(source),
            Username = source.Required(UsernameSetting),
            Password = source.Secret(PasswordSetting) ?? "",
            OidcIssuer = source.Optional(
                OidcIssuerSetting, v => ParseUrl(v) == null ? null : v, "an http or https URL"),
            OidcAudience = source.Text(OidcAudienceSetting),
            MetricsAuth = source.Bool(MetricsAuthSetting),
            TlsCert = source.Path(TlsCertSetting),
            TlsKey = source.Path(TlsKeySetting),
            TlsClientCa = source.Path(TlsClientCaSetting),
            OnixUrl = source.Required(OnixUrlSetting) == "none" ? null
                : source.Parse(OnixUrlSetting, ParseUrl, "an http or https URL without credentials, or none"),
            OnixAuthMode = source.Enum<AuthMode>(OnixAuthModeSetting),
            OnixUsername = source.Required(OnixUsernameSetting),
            OnixPassword = source.Secret(OnixPasswordSetting) ?? "",
            OnixClientId = source.Text(OnixClientIdSetting),
            OnixAppSecret = source.Secret(OnixAppSecretSetting),
            OnixTokenUri = source.Optional(OnixTokenUriSetting, ParseUrl, "an http or https URL"),
            OnixInsecureSkipVerify = skipVerify && caFile == null,
            OnixCaFile = caFile,
            DataDir = DataDirOf(flags, variables),
            Retention = source.Parse(RetentionSetting, ParseDays, "at least 1d, such as 90d or 2400h"),
            MaxBody = source.Parse(MaxBodySetting, ParseSize, "a size from 1KiB to 256MiB"),
            Map = source.Text(MapSetting) is { Length: > 0 } map ? ParseMap(map) : FieldMap.Default,
            Warnings = source.Warnings,
        };
        options.CheckTogether(source.Warnings);
        return options;
    }

    /// <summary>The data directory alone, for commands that need nothing else.</summary>
    public static string DataDirOf(
        IReadOnlyDictionary<string, string> flags, IReadOnlyDictionary<string, string> variables) =>
        flags.GetValueOrDefault(DataDirSetting.Flag) is { Length: > 0 } flag ? flag
        : variables.GetValueOrDefault(DataDirSetting.Variable) is { Length: > 0 } variable ? variable
        : variables.GetValueOrDefault("STATE_DIRECTORY") is { Length: > 0 } state ? state.Split(':')[0]
        : "ses-data";

    /// <summary>Where a SeS of these settings is asked on its own host.</summary>
    /// <returns>Also whether it takes only clients that have a certificate.</returns>
    /// <exception cref="OptionsException">A value that cannot be used.</exception>
    public static (Uri Url, bool NeedsCertificate) OwnUrl(
        IReadOnlyDictionary<string, string> flags, IReadOnlyDictionary<string, string> variables)
    {
        var source = new SettingSource(flags, variables);
        var address = AddressOf(source) is not { } given || given.Equals(IPAddress.Any) ? IPAddress.Loopback
            : given.Equals(IPAddress.IPv6Any) ? IPAddress.IPv6Loopback : given;
        var scheme = source.Text(TlsCertSetting) is null or "" ? "http" : "https";
        return (new Uri($"{scheme}://{new IPEndPoint(address, PortOf(source))}"),
            source.Text(TlsClientCaSetting) is { Length: > 0 });
    }

    /// <summary>A BOOL of a command; false when it is not given.</summary>
    /// <exception cref="OptionsException">It is neither true nor false.</exception>
    public static bool BoolOf(Setting setting, IReadOnlyDictionary<string, string> flags) =>
        flags.ContainsKey(setting.Flag)
        && new SettingSource(flags, new Dictionary<string, string>()).Bool(setting);

    private static int PortOf(SettingSource source) =>
        source.Parse(PortSetting, ParsePort, "a number from 0 to 65535");

    private static IPAddress? AddressOf(SettingSource source) =>
        source.Optional(AddressSetting, ParseAddress, "an address such as 127.0.0.1 or ::1");

    private void CheckTogether(List<string> warnings)
    {
        Need(OnixUrl != null && OnixAuthMode == AuthMode.Oidc, $"{OnixAuthModeSetting} oidc",
            (OnixTokenUriSetting, OnixTokenUri?.AbsoluteUri), (OnixClientIdSetting, OnixClientId),
            (OnixAppSecretSetting, OnixAppSecret));
        Need(AuthMode == AuthMode.Oidc, $"{AuthModeSetting} oidc",
            (OidcIssuerSetting, OidcIssuer), (OidcAudienceSetting, OidcAudience));
        Need(TlsKey != null || TlsClientCa != null,
            $"{(TlsKey != null ? TlsKeySetting : TlsClientCaSetting)}", (TlsCertSetting, TlsCert));
        Need(TlsCert != null, $"{TlsCertSetting}", (TlsKeySetting, TlsKey));
        if (OidcIssuer?.StartsWith("http:", StringComparison.OrdinalIgnoreCase) == true)
            warnings.Add($"the keys of tokens are fetched in the clear: {OidcIssuerSetting} is no https URL");
        if (MetricsAuth && AuthMode == AuthMode.None)
            warnings.Add($"{MetricsAuthSetting} closes nothing, since {AuthModeSetting} is none");
        if (AuthMode == AuthMode.Basic && Password == "")
            warnings.Add($"the password is empty: set {PasswordSetting}");
        if (OnixUrl?.Scheme == Uri.UriSchemeHttps && OnixInsecureSkipVerify)
            warnings.Add($"Onix's certificate is not verified: set {OnixCaFileSetting}, "
                + $"or {OnixSkipVerifySetting} to false");
        if (AuthMode == AuthMode.Basic && Password == PasswordSetting.Default)
            warnings.Add($"the password is the documented default: set {PasswordSetting}");
    }

    private static void Need(bool applies, string with, params (Setting Setting, string? Value)[] needed)
    {
        foreach (var (setting, value) in needed)
        {
            if (applies && string.IsNullOrEmpty(value))
                throw new OptionsException($"{setting} is needed with {with}");
        }
    }

    private static string? ParsePath(string text)
    {
        var path = text.Trim('/');
        var usable = path.Length > 0 && path.All(c => char.IsAsciiLetterOrDigit(c) || "-._~/".Contains(c));
        return usable && !path.Contains("//", StringComparison.Ordinal) ? path : null;
    }

    private static int? ParsePort(string text) =>
        int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out var port)
            && port < 65536 ? port : null;

    private static IPAddress? ParseAddress(string text) =>
        IPAddress.TryParse(text, out var address) && (address.AddressFamily == AddressFamily.InterNetworkV6
            || address.ToString() == text) ? address : null;

    private static Uri? ParseUrl(string text) =>
        Uri.TryCreate(text, UriKind.Absolute, out var url) && url.Scheme is "http" or "https"
            && url.UserInfo == "" && url.Query == "" && url.Fragment == "" ? url : null;

    private static TimeSpan? ParseDays(string text)
    {
        var unit = text.EndsWith('d') ? 24 : text.EndsWith('h') ? 1 : 0;
        return unit > 0
            && int.TryParse(text[..^1], NumberStyles.None, CultureInfo.InvariantCulture, out var count)
            && (long)count * unit is >= 24 and <= 24 * 36500
            ? TimeSpan.FromHours((double)count * unit) : null;
    }

    private static int? ParseSize(string text)
    {
        var (unit, digits) = text switch
        {
            _ when text.EndsWith("MiB", StringComparison.Ordinal) => (1024 * 1024, text[..^3]),
            _ when text.EndsWith("KiB", StringComparison.Ordinal) => (1024, text[..^3]),
            _ => (1, text),
        };
        return long.TryParse(digits, NumberStyles.None, CultureInfo.InvariantCulture, out var count)
            && count <= int.MaxValue && count * unit is >= 1024 and <= 256 * 1024 * 1024
            ? (int)(count * unit) : null;
    }

    private static FieldMap ParseMap(string text)
    {
        try
        {
            return FieldMap.Parse(text);
        }
        catch (FormatException e)
        {
            throw Bad(MapSetting, text, e.Message);
        }
    }

    private static OptionsException Bad(Setting setting, string value, string allowed)
    {
        // One line, and no secret: a URL may have credentials before its @, and a query.
        var at = setting.Value == "URL" ? value.LastIndexOf('@') : -1;
        var shown = setting.Secret ? "..." : at < 0 ? value : "..." + value[at..];
        if (setting.Value == "URL" && shown.Contains('?', StringComparison.Ordinal))
            shown = shown[..shown.IndexOf('?', StringComparison.Ordinal)] + "?...";
        shown = string.Concat(shown.Select(c => char.IsControl(c) ? '\ufffd' : c));
        return new OptionsException($"{setting}: '{shown}' is not usable; allowed: {allowed}");
    }

    /// <summary>Where values come from: a flag before its variable before the default.</summary>
    private sealed class SettingSource
    {
        private readonly IReadOnlyDictionary<string, string> _flags, _variables;

        public List<string> Warnings { get; } = [];

        public SettingSource(
            IReadOnlyDictionary<string, string> flags, IReadOnlyDictionary<string, string> variables)
        {
            (_flags, _variables) = (flags, variables);
            foreach (var name in variables.Keys.Where(v => v.StartsWith("OXSES_", StringComparison.Ordinal)))
            {
                if (Settings.Any(s => s.Variable == name))
                    continue;
                var nearest = Settings.MinBy(s => Distance(s.Variable, name))!.Variable;
                Warnings.Add($"{name} is no setting of SeS and is ignored; the nearest is {nearest}");
            }
        }

        public bool IsGiven(Setting setting) =>
            _flags.ContainsKey(setting.Flag) || _variables.ContainsKey(setting.Variable);

        public string? Text(Setting setting) =>
            _flags.GetValueOrDefault(setting.Flag) ?? _variables.GetValueOrDefault(setting.Variable)
            ?? setting.Default;

        public string Required(Setting setting) =>
            Text(setting) is { Length: > 0 } text ? text
            : throw Bad(setting, "", "a value that is not empty");

        public T Parse<T>(Setting setting, Func<string, T?> parse, string allowed) where T : struct =>
            parse(Text(setting) ?? "") ?? throw Bad(setting, Text(setting) ?? "", allowed);

        public T Parse<T>(Setting setting, Func<string, T?> parse, string allowed) where T : class =>
            parse(Text(setting) ?? "") ?? throw Bad(setting, Text(setting) ?? "", allowed);

        /// <summary>Null when there is none, or an empty one.</summary>
        public T? Optional<T>(Setting setting, Func<string, T?> parse, string allowed) where T : class =>
            Text(setting) is null or "" ? null : Parse(setting, parse, allowed);

        /// <summary>The path of a file that must be there; null when none is named.</summary>
        public string? Path(Setting setting) => Text(setting) is not { Length: > 0 } path ? null
            : File.Exists(path) ? path : throw Bad(setting, path, "an existing PEM file");

        public bool Bool(Setting setting) => OneOf(setting, "true", "false") == "true";

        public string OneOf(Setting setting, params string[] allowed) =>
            Parse(setting, v => Array.Find(allowed, a => a.Equals(v, StringComparison.OrdinalIgnoreCase)),
                string.Join(", ", allowed));

        public T Enum<T>(Setting setting) where T : struct, Enum =>
            System.Enum.Parse<T>(OneOf(setting, System.Enum.GetNames<T>()));

        /// <summary>
        /// The secret itself, or what the file holds that is named instead, without line ends; else what
        /// systemd hands over by the flag's name (systemd.exec(5), LoadCredential).
        /// </summary>
        public string? Secret(Setting setting)
        {
            foreach (var given in new[] { _flags, _variables })
            {
                var (direct, file) = given == _flags ? (setting.Flag, setting.File.Flag)
                    : (setting.Variable, setting.File.Variable);
                if (given.ContainsKey(direct) && given.ContainsKey(file))
                    throw new OptionsException($"{direct} and {file} exclude each other");
                if (given.TryGetValue(file, out var path))
                    return ReadSecret(setting.File, path);
                if (given.TryGetValue(direct, out var secret))
                    return secret;
            }
            var credential = _variables.GetValueOrDefault("CREDENTIALS_DIRECTORY") is { Length: > 0 } dir
                ? System.IO.Path.Combine(dir, setting.Flag[2..]) : null;
            return File.Exists(credential) ? ReadSecret(setting.File, credential) : setting.Default;
        }

        private static string ReadSecret(Setting setting, string path)
        {
            try
            {
                return File.ReadAllText(path).TrimEnd('\r', '\n');
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
            {
                throw Bad(setting, path, "a file that can be read (" + e.Message + ")");
            }
        }

        /// <summary>Levenshtein's distance, for the nearest name.</summary>
        private static int Distance(string a, string b)
        {
            var row = Enumerable.Range(0, b.Length + 1).ToArray();
            for (var i = 1; i <= a.Length; i++)
            {
                var diagonal = row[0];
                row[0] = i;
                for (var j = 1; j <= b.Length; j++)
                {
                    var replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
                    diagonal = row[j];
                    row[j] = Math.Min(replaced, Math.Min(row[j], row[j - 1]) + 1);
                }
            }
            return row[^1];
        }
    }
}

// ================================== 2. Log ===================================
//
// One line an event on standard error, as text or JSON, with fields after the message. Values come
// from strangers, so control characters are always escaped. Nothing is logged per alert that a busy
// site would drown in: what a stranger can cause goes through Often, which lets one line of a kind
// pass every ten seconds, with the number of those held back.

internal sealed class Log(LogLevel least, bool json, TextWriter output, TimeProvider clock)
{
    private static readonly TimeSpan OftenEvery = TimeSpan.FromSeconds(10);

    private readonly Lock _gate = new();
    private readonly Dictionary<string, (long Next, int Held)> _often = [];

    public void Error(string message, params (string Key, object? Value)[] fields) =>
        Write(LogLevel.Error, message, fields);

    public void Warn(string message, params (string Key, object? Value)[] fields) =>
        Write(LogLevel.Warn, message, fields);

    public void Info(string message, params (string Key, object? Value)[] fields) =>
        Write(LogLevel.Info, message, fields);

    public void Debug(string message, params (string Key, object? Value)[] fields) =>
        Write(LogLevel.Debug, message, fields);

    /// <summary>A warning that a stranger can cause: one of its message each ten seconds at most.</summary>
    public void Often(string message, params (string Key, object? Value)[] fields)
    {
        int held;
        lock (_gate)
        {
            var now = clock.GetTimestamp();
            var (next, before) = _often.GetValueOrDefault(message);
            if (now < next)
            {
                _often[message] = (next, before + 1);
                return;
            }
            _often[message] = (now + (long)(OftenEvery.TotalSeconds * clock.TimestampFrequency), 0);
            held = before;
        }
        Write(LogLevel.Warn, message, held == 0 ? fields : [.. fields, ("held_back", held)]);
    }

    private void Write(LogLevel level, string message, (string Key, object? Value)[] fields)
    {
        if (level > least)
            return;
        if ((output as QueuedWriter)?.TakeDropped() is > 0 and var dropped)
            Write(level, "lines of the log were dropped, since nobody read them", [("lines", dropped)]);
        var line = json ? Json(level, message, fields) : Text(level, message, fields);
        try
        {
            lock (_gate)
                output.WriteLine(line);
        }
        catch (IOException)
        {
            // Nobody reads the log any more; that must not stop the service.
        }
    }

    private string Now() =>
        clock.GetUtcNow().ToString("yyyy-MM-dd'T'HH:mm:ss.fff'Z'", CultureInfo.InvariantCulture);

    private string Text(LogLevel level, string message, (string Key, object? Value)[] fields)
    {
        var line = new StringBuilder(Now())
            .Append(' ').Append(level.ToString().ToUpperInvariant().PadRight(5)).Append(' ')
            .Append(message.Any(char.IsControl) ? Escaped(message) : Whole(message));
        foreach (var (key, value) in fields)
        {
            var text = Convert.ToString(value, CultureInfo.InvariantCulture) ?? "";
            line.Append(' ').Append(key).Append('=');
            if (text.Length > 0 && text.All(c => c is > ' ' and not '"' and < '\u007f'))
                line.Append(text);
            else
                line.Append('"').Append(Escaped(text)).Append('"');
        }
        return line.ToString();
    }

    private static string Escaped(string text) => JsonEncodedText.Encode(Whole(text)).ToString();

    /// <summary>Half a character, which no encoding can write, becomes U+FFFD.</summary>
    private static string Whole(string text) => Encoding.UTF8.GetString(Encoding.UTF8.GetBytes(text));

    private string Json(LogLevel level, string message, (string Key, object? Value)[] fields)
    {
        var buffer = new ArrayBufferWriter<byte>();
        using (var writer = new Utf8JsonWriter(buffer))
        {
            writer.WriteStartObject();
            writer.WriteString("time", Now());
            writer.WriteString("level", level.ToString().ToLowerInvariant());
            writer.WriteString("msg", Whole(message));
            foreach (var (key, value) in fields)
                writer.WriteString(key, Whole(Convert.ToString(value, CultureInfo.InvariantCulture) ?? ""));
            writer.WriteEndObject();
        }
        return Encoding.UTF8.GetString(buffer.WrittenSpan);
    }
}

/// <summary>
/// Writes lines by a thread of its own: whoever reads them may stall, and that must not stop the service.
/// Lines wait meanwhile, up to a limit. Those beyond it are dropped, and counted when there is room again.
/// </summary>
internal sealed class QueuedWriter : TextWriter
{
    private const int MaxLines = 10_000;

    /// <summary>How long an end waits for whoever reads.</summary>
    private static readonly TimeSpan EndTime = TimeSpan.FromSeconds(1);

    private readonly TextWriter _output;
    private readonly BlockingCollection<string> _lines = new(MaxLines);
    private readonly TaskCompletionSource _ended = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private int _dropped;

    public QueuedWriter(TextWriter output)
    {
        _output = output;
        new Thread(Work) { Name = "log", IsBackground = true }.Start();
    }

    public override Encoding Encoding => _output.Encoding;

    public override void WriteLine(string? value)
    {
        try
        {
            if (!_lines.TryAdd(value ?? ""))
                Interlocked.Increment(ref _dropped);
        }
        catch (InvalidOperationException)
        {
            // The process ends, and this line comes too late.
        }
    }

    /// <summary>How many lines were dropped since the last call; 0 until there is room to log it.</summary>
    public int TakeDropped() => _lines.Count < MaxLines / 2 ? Interlocked.Exchange(ref _dropped, 0) : 0;

    private void Work()
    {
        foreach (var line in _lines.GetConsumingEnumerable())
        {
            try
            {
                _output.WriteLine(line);
            }
            catch (Exception e) when (Disk.Refused(e))
            {
                // Nobody reads the log any more, or its file takes no more.
            }
        }
        _ended.SetResult();
    }

    /// <summary>Returns when all is written, or when the time for it is over.</summary>
    public override async ValueTask DisposeAsync()
    {
        _lines.CompleteAdding();
        await Task.WhenAny(_ended.Task, Task.Delay(EndTime));
        await base.DisposeAsync();
    }
}

/// <summary>Times as Alertmanager writes them (RFC 3339); SeS keeps them to 100 ns, in UTC.</summary>
internal static class Rfc3339
{
    private static readonly string[] Formats =
        ["yyyy-MM-dd'T'HH:mm:ss.FFFFFFF'Z'", "yyyy-MM-dd'T'HH:mm:ss.FFFFFFFzzz"];

    /// <summary>Such as <c>2026-11-22T11:34:34.489Z</c>, without trailing zeros, as Go writes it.</summary>
    public static string Format(DateTime utc) =>
        utc.ToString("yyyy-MM-dd'T'HH:mm:ss.FFFFFFF'Z'", CultureInfo.InvariantCulture);

    /// <summary>Takes any offset and any fraction of a second, but never a time without a zone.</summary>
    public static bool TryParse(string? text, out DateTime utc)
    {
        utc = default;
        if (text is null || text.Length is < 20 or > 64)
            return false;
        var dot = text.IndexOf('.', StringComparison.Ordinal);
        var end = dot < 0 ? -1 : text.AsSpan(dot + 1).IndexOfAnyExceptInRange('0', '9');
        if (end == 0)
            return false;
        if (end > 7)
            text = string.Concat(text.AsSpan(0, dot + 8), text.AsSpan(dot + 1 + end));
        var parsed = DateTimeOffset.TryParseExact(
            text, Formats, CultureInfo.InvariantCulture, DateTimeStyles.AssumeUniversal, out var time);
        utc = time.UtcDateTime;
        return parsed;
    }
}

// ================================ 3. Metrics =================================
//
// prometheus-net's registry and text export; none of its servers. The names below are the interface:
// the table in docs/operations.md is held against them.

internal sealed class Meters
{
    /// <summary>
    /// From 0.1 ms to 52 s, doubling: a flush is at the one end, Onix's timeout at the other.
    /// </summary>
    private static readonly double[] Seconds = Histogram.ExponentialBuckets(0.0001, 2, 20);

    /// <summary>The gate's, in the order of a connection's life.</summary>
    public static IReadOnlyList<string> RefusalReasons { get; } =
    [
        "accept", "connections", "handshake", "handshake_timeout", "idle", "head_timeout", "head_size",
        "malformed", "version", "transfer_encoding", "expectation", "body_timeout", "body_cut",
        "bytes_in_flight", "in_flight", "listener", "answer_timeout",
    ];

    public CollectorRegistry Registry { get; } = Prometheus.Metrics.NewCustomRegistry();

    public readonly Counter Alerts, Events, Truncated, BadRequests, Requests;
    public readonly Counter LogEvents, LogBytes, BrokenLines, QuarantineDropped;
    public readonly Counter OnixRequests, OnixEvents, OnixDropped, Defects;
    public readonly Counter ConnectionsTotal, HttpRefused, AuthFailures, TlsReloads, Questions;
    public readonly Histogram WebhookDuration, FlushDuration, OnixDuration, QuestionDuration;
    public readonly Gauge LogSize, Services, Backlog, BacklogAge, Barred, ConfirmationAge, Ready;
    public readonly Gauge Connections, TlsExpiry;

    private readonly Lock _gate = new();
    // Guarded by _gate.
    private Task _last = Task.CompletedTask;
    private Task<byte[]>? _next;

    public Meters(string version, string commit)
    {
        var make = Prometheus.Metrics.WithCustomRegistry(Registry);
        DotNetStats.Register(Registry);
        Counter Count(string name, string help, params string[] labels) =>
            make.CreateCounter(name, help, labels);
        Gauge Level(string name, string help) => make.CreateGauge(name, help);
        Histogram Time(string name, string help, params string[] labels) =>
            make.CreateHistogram(name, help, labels, new HistogramConfiguration { Buckets = Seconds });

        Alerts = Count("ses_alerts_total", "Alerts received: accepted, quarantined.", "outcome");
        Events = Count("ses_events_total",
            "Status events received: new, known (a copy), stale (older than its service's whole window).",
            "outcome");
        Truncated = Count("ses_alerts_truncated_total", "Alerts that Alertmanager cut off before sending.");
        BadRequests = Count("ses_bad_requests_total", "Payloads that could not be processed.");
        Requests = Count("ses_webhook_requests_total", "Answers of the webhook by status code.", "code");
        WebhookDuration = Time("ses_webhook_duration_seconds", "From the request's head to the answer.");
        Questions = Count("ses_questions_total",
            "Answers to questions about the past, by what was asked and status code.", "subject", "code");
        QuestionDuration = Time("ses_question_duration_seconds",
            "From a question's head to the end of its answer's first part.", "subject");
        Connections = Level("ses_connections", "Connections of clients that are open.");
        ConnectionsTotal = Count("ses_connections_total", "Connections of clients that were taken.");
        HttpRefused = Count("ses_http_refused_total",
            "Requests and connections that the gate ended, by the reason.", "reason");
        AuthFailures = Count("ses_auth_failures_total",
            "Requests answered 401: missing, scheme (of another kind), wrong.", "reason");
        TlsExpiry = Level("ses_tls_certificate_expiry_timestamp_seconds",
            "When the certificate in use expires, in Unix time; 0 without TLS.");
        TlsReloads = Count("ses_tls_reloads_total", "Changed certificates: loaded, refused.", "outcome");
        LogEvents = Count("ses_log_events_total", "Events written to the event log.");
        LogBytes = Count("ses_log_bytes_total", "Bytes written to the event log.");
        LogSize = Level("ses_log_size_bytes", "Size of the event log's files.");
        FlushDuration = Time("ses_log_flush_duration_seconds", "Time to write and flush a group of events.");
        BrokenLines = Count("ses_log_broken_lines_total", "Lines of the event log that do not parse.");
        QuarantineDropped = Count("ses_quarantine_dropped_total",
            "Quarantined alerts that were dropped because the quarantine was full.");
        Services = Level("ses_services", "Services that SeS knows of.");
        Backlog = Level("ses_backlog_events", "Events that Onix has not confirmed yet.");
        BacklogAge = Level("ses_backlog_oldest_seconds", "Since the oldest of them was received.");
        OnixRequests = Count("ses_onix_requests_total", "Requests to Onix.", "request", "outcome");
        OnixDuration = Time("ses_onix_request_duration_seconds", "Duration of requests to Onix.", "request");
        OnixEvents = Count("ses_onix_events_total",
            "New events by what became of them: recorded, unchanged (no change of status), "
            + "late (Onix held something later), barred (Onix refuses).", "outcome");
        OnixDropped = Count("ses_onix_dropped_total",
            "Services barred for over 30 days of which retention deleted events.");
        Barred = Level("ses_onix_barred_services", "Services whose change Onix refuses.");
        ConfirmationAge = Level("ses_onix_confirmation_age_seconds", "Since Onix last confirmed anything.");
        Ready = Level("ses_ready", "1 while alerts can be made durable.");
        Defects = Count("ses_defects_total", "Exceptions that nothing expected; each is in the log.");
        make.CreateGauge("ses_build_info", "What runs here.", "version", "commit")
            .WithLabels(version, commit).Set(1);
        Preset(Alerts, "accepted", "quarantined");
        Preset(HttpRefused, [.. RefusalReasons]);
        Preset(AuthFailures, "missing", "scheme", "wrong");
        Preset(TlsReloads, "loaded", "refused");
        Preset(Events, "new", "known", "stale");
        Preset(OnixEvents, "recorded", "unchanged", "late", "barred");
    }

    /// <summary>A series that is there from the start can be alerted on when it first moves.</summary>
    private static void Preset(Counter counter, params string[] outcomes)
    {
        foreach (var outcome in outcomes)
            counter.WithLabels(outcome);
    }

    /// <summary>
    /// The text of /metrics. It is dear to write, so all who ask while one is written share the next.
    /// </summary>
    public Task<byte[]> ExportAsync()
    {
        lock (_gate)
            return _next ??= ExportAfterAsync(_last);
    }

    private async Task<byte[]> ExportAfterAsync(Task before)
    {
        await Task.Yield();
        // If that failed, its exception is for those who asked for it.
        await Task.WhenAny(before);
        lock (_gate)
            (_last, _next) = (_next!, null);
        using var text = new MemoryStream();
        await Registry.CollectAndExportAsTextAsync(text);
        return text.ToArray();
    }
}

// ================================= 4. Alerts =================================
//
// Maps the alerts of a webhook to services and their status. A payload is cut into its alerts first, each
// of which is then parsed on its own, so that one bad field spoils one alert. An alert with the label
// "status" and one of "platform" and "facet" is in the SeS dialect; any other is a stock alert, which
// is down while it fires. Alerts that cannot be mapped are quarantined, with a reason.

/// <summary>The five fields that identify a service. A missing location is the empty text.</summary>
internal readonly record struct ServiceKey(
    string Partition, string Platform, string Service, string Facet, string Location)
{
    public override string ToString() => $"{Partition}/{Platform}/{Service}/{Facet}/{Location}";
}

/// <summary>An alert, mapped to a service and its status.</summary>
/// <param name="Stock">
/// Down while it fires; else the service has <paramref name="Status"/> from the alert's start on.
/// </param>
/// <param name="EndsAt">Only of a stock alert that is resolved.</param>
internal sealed record MappedAlert(
    ServiceKey Service, string Description, bool Stock, string Status, DateTime StartsAt, DateTime? EndsAt);

/// <summary>An alert that cannot be mapped to a service, whole.</summary>
/// <param name="Identity">Fingerprint, status, start, end and reason: copies of it are kept once.</param>
/// <param name="Raw">The alert as it came, without line breaks.</param>
internal sealed record UnmappableAlert(
    string Identity, string Fingerprint, string Alertname, string Reason, byte[] Raw);

/// <summary>The body of a webhook, its alerts mapped.</summary>
/// <param name="Truncated">Alerts that Alertmanager cut off before sending.</param>
internal sealed record Payload(
    IReadOnlyList<MappedAlert> MappedAlerts, IReadOnlyList<UnmappableAlert> UnmappableAlerts, long Truncated);

/// <summary>Is thrown when a body as a whole is unusable; the message is the reason, a sentence.</summary>
internal sealed class PayloadException(string message) : Exception(message);

/// <summary>Where the value of a field comes from.</summary>
internal enum FieldSourceKind { Label, AnnotationFirst, Literal, Partition, AlertName }

internal readonly record struct FieldSource(FieldSourceKind Kind, string Name);

/// <summary>The sources of each field, of which the first that is present and not empty counts.</summary>
internal sealed class FieldMap
{
    private static readonly string[] Fields = ["platform", "service", "facet", "location", "description"];

    public static readonly FieldSource InPartition = new(FieldSourceKind.Partition, "");

    public static FieldMap Default { get; } = new(
        new()
        {
            ["platform"] = Labels("platform"),
            ["service"] = Labels("service"),
            ["facet"] = Labels("facet"),
            ["location"] = [new(FieldSourceKind.AnnotationFirst, "location")],
            ["description"] = Labels("description"),
        },
        new()
        {
            ["platform"] = [.. Labels("platform", "cluster"), InPartition],
            ["service"] = Labels("service", "job"),
            ["facet"] = Labels("facet", "alertname"),
            ["location"] = Labels("location", "instance"),
            ["description"] = Labels("description", "summary", "message"),
        });

    private readonly Dictionary<string, FieldSource[]> _dialect, _stock;

    public FieldMap(Dictionary<string, FieldSource[]> dialect, Dictionary<string, FieldSource[]> stock) =>
        (_dialect, _stock) = (dialect, stock);

    public static FieldSource[] Labels(params string[] names) =>
        [.. names.Select(n => new FieldSource(FieldSourceKind.Label, n))];

    public FieldSource[] Of(string field, bool stock) => (stock ? _stock : _dialect)[field];

    /// <summary>
    /// Reads <c>platform=platform,cluster,'prod';location=instance</c>: the sources of the fields named
    /// are replaced for both kinds of alert; a text in single quotes is a literal.
    /// </summary>
    /// <param name="defaults">Has the fields that are not named.</param>
    /// <exception cref="FormatException">What is allowed instead.</exception>
    public static FieldMap Parse(string text, FieldMap? defaults = null)
    {
        var (dialect, stock) = ((defaults ?? Default)._dialect, (defaults ?? Default)._stock);
        var map = new FieldMap(new(dialect), new(stock));
        foreach (var rule in Split(text, ';'))
        {
            var equals = rule.IndexOf('=', StringComparison.Ordinal);
            var field = equals < 0 ? rule : rule[..equals].Trim();
            if (equals < 0 || !Fields.Contains(field))
                throw new FormatException($"FIELD=SOURCE,... with a field of {string.Join(", ", Fields)}");
            FieldSource[] sources = [.. Split(rule[(equals + 1)..], ',').Select(ParseSource)];
            map._dialect[field] = map._stock[field] = sources;
        }
        return map;
    }

    private static FieldSource ParseSource(string text)
    {
        var source = text.Trim();
        if (source.Length == 0 || source.Count(c => c == '\'') is not (0 or 2))
            throw new FormatException("for each source the name of a label or annotation, or a 'text'");
        if (source[0] != '\'')
            return new(FieldSourceKind.Label, source);
        return source[^1] == '\'' ? new(FieldSourceKind.Literal, source[1..^1])
            : throw new FormatException("a literal as 'text', without a quote inside");
    }

    /// <summary>Splits where no quote is open.</summary>
    private static IEnumerable<string> Split(string text, char separator)
    {
        var (start, quoted) = (0, false);
        for (var i = 0; i <= text.Length; i++)
        {
            if (i < text.Length && text[i] == '\'')
                quoted = !quoted;
            if (i < text.Length && (quoted || text[i] != separator))
                continue;
            yield return text[start..i];
            start = i + 1;
        }
    }
}

/// <summary>One alert as it is sent; absent and null fields are null.</summary>
internal sealed class AlertBody
{
    public string? Status { get; init; }
    public Dictionary<string, string?>? Labels { get; init; }
    public Dictionary<string, string?>? Annotations { get; init; }
    public string? StartsAt { get; init; }
    public string? EndsAt { get; init; }
    public string? Fingerprint { get; init; }
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase)]
[JsonSerializable(typeof(AlertBody))]
internal sealed partial class AlertJson : JsonSerializerContext;

/// <summary>Maps the alerts of payloads to services; pure, so that two SeS map alike.</summary>
internal static class AlertMapping
{
    /// <summary>Deeper nesting makes the body as a whole unusable; real bodies have four levels.</summary>
    public const int MaxDepth = 10_000;

    /// <summary>Onix's item name, "{service} Service", holds 200 characters.</summary>
    private const int MaxService = 192;

    public const int MaxField = 1024, MaxDescription = 4096;

    /// <summary>No monitoring is older; a time before it is an unset one.</summary>
    private static readonly DateTime Earliest = new(2000, 1, 1, 0, 0, 0, DateTimeKind.Utc);

    /// <summary>An event further ahead would stay its service's latest for ever.</summary>
    public static readonly TimeSpan MaxAhead = TimeSpan.FromHours(24);

    /// <summary>They identify the Prometheus that sent the alert, not the service.</summary>
    private static readonly string[] SenderLabels = ["prometheus", "prometheus_replica", "replica"];

    /// <summary>Cuts a payload into alerts and maps each; in order of their start.</summary>
    /// <exception cref="PayloadException">Not JSON, no alerts, or a version other than 4.</exception>
    public static Payload Read(ReadOnlySpan<byte> body, string partition, FieldMap map, DateTime now)
    {
        var mapped = new List<MappedAlert>();
        var unmappable = new List<UnmappableAlert>();
        var (slices, truncated) = Cut(body);
        foreach (var slice in slices)
        {
            var raw = body[slice];
            var alert = ParseAlert(raw, out var reason);
            if (alert != null && ReadAlert(alert, partition, map, now, out reason) is { } usable)
                mapped.Add(usable);
            else
                unmappable.Add(MakeUnmappable(alert, reason, raw));
        }
        mapped.Sort((a, b) => a.StartsAt.CompareTo(b.StartsAt));
        return new Payload(mapped, unmappable, truncated);
    }

    private static (List<Range> Alerts, long Truncated) Cut(ReadOnlySpan<byte> body)
    {
        if (body.IsEmpty)
            throw new PayloadException("The body is empty.");
        List<Range>? alerts = null;
        string? version = null;
        long truncated = 0;
        var reader = new Utf8JsonReader(body, new JsonReaderOptions { MaxDepth = MaxDepth });
        try
        {
            if (!reader.Read() || reader.TokenType != JsonTokenType.StartObject)
                throw new PayloadException("The body is not a JSON object.");
            while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
            {
                var (isAlerts, isVersion, isTruncated) = (reader.ValueTextEquals("alerts"u8),
                    reader.ValueTextEquals("version"u8), reader.ValueTextEquals("truncatedAlerts"u8));
                reader.Read();
                if (isAlerts && reader.TokenType == JsonTokenType.StartArray)
                    alerts = CutArray(ref reader);
                else if (isVersion && reader.TokenType == JsonTokenType.String)
                    version = reader.GetString();
                else if (isTruncated && reader.TokenType == JsonTokenType.Number)
                    truncated = reader.TryGetInt64(out var count) ? count : 0;
                else
                    reader.Skip();
            }
            // What follows the object must be white space: else this throws.
            reader.Read();
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            throw new PayloadException($"The body is not JSON: {e.Message}");
        }
        if (version != "4")
            throw new PayloadException(
                $"The version is {version ?? "missing"}; Alertmanager's webhooks have 4.");
        return (alerts ?? throw new PayloadException("The body has no list of alerts."), truncated);
    }

    private static List<Range> CutArray(ref Utf8JsonReader reader)
    {
        var slices = new List<Range>();
        while (reader.Read() && reader.TokenType != JsonTokenType.EndArray)
        {
            var start = (int)reader.TokenStartIndex;
            reader.Skip();
            slices.Add(start..(int)reader.BytesConsumed);
        }
        return slices;
    }

    private static AlertBody? ParseAlert(ReadOnlySpan<byte> raw, out string reason)
    {
        reason = "it is not an object";
        try
        {
            return JsonSerializer.Deserialize(raw, AlertJson.Default.AlertBody);
        }
        catch (JsonException e)
        {
            reason = e.Message.Contains("depth", StringComparison.Ordinal) ? "it is nested too deeply"
                : e.Path is { Length: > 1 } path
                ? $"{path[2..]} is of the wrong type, or not usable as text" : reason;
            return null;
        }
        catch (InvalidOperationException)
        {
            reason = "a text in it is not valid Unicode";
            return null;
        }
    }

    public static UnmappableAlert MakeUnmappable(AlertBody? alert, string reason, ReadOnlySpan<byte> raw)
    {
        // Within valid JSON a line break can only stand between tokens.
        var line = raw.ToArray();
        line.AsSpan().Replace((byte)'\n', (byte)' ');
        line.AsSpan().Replace((byte)'\r', (byte)' ');
        var fingerprint = alert?.Fingerprint ?? Convert.ToHexStringLower(SHA256.HashData(raw).AsSpan(0, 8));
        var identity = string.Join('\n', fingerprint, alert?.Status, alert?.StartsAt, alert?.EndsAt, reason);
        var name = alert?.Labels?.GetValueOrDefault("alertname") ?? "";
        return new UnmappableAlert(identity, fingerprint, name, reason, line);
    }

    /// <summary>Null, with the reason, when the alert cannot be mapped.</summary>
    private static MappedAlert? ReadAlert(
        AlertBody alert, string partition, FieldMap map, DateTime now, out string reason)
    {
        var labels = new LabelLookup(alert.Labels);
        var annotations = new LabelLookup(alert.Annotations);
        var status = labels.Get("status");
        var stock = status == null || (labels.Get("platform") == null && labels.Get("facet") == null);
        var used = new HashSet<string>(StringComparer.OrdinalIgnoreCase);
        string? Field(string name) => First(map.Of(name, stock), labels, annotations, partition, used);

        var service = new ServiceKey(partition, Field("platform") ?? "", Field("service") ?? "",
            Field("facet") ?? "", Field("location") ?? "");
        var description = Field("description") ?? labels.Get("alertname") ?? "";
        if (stock)
            service = service with { Location = service.Location + UnusedLabels(alert.Labels, used) };
        reason = Unusable(service, status) ?? "";
        if (reason != "" || !ReadTime(alert.StartsAt, "startsAt", now, out var startsAt, out reason))
            return null;
        var clipped = Clip(description, MaxDescription);
        if (!stock)
            return new MappedAlert(service, clipped, false, status!, startsAt, null);
        if (alert.Status == "firing")
            return new MappedAlert(service, clipped, true, "down", startsAt, null);
        if (alert.Status != "resolved")
            reason = "status is neither firing nor resolved";
        else if (ReadTime(alert.EndsAt, "endsAt", now, out var endsAt, out reason))
            return new MappedAlert(service, clipped, true, "down", startsAt, endsAt);
        return null;
    }

    private static string? First(
        FieldSource[] sources, LabelLookup labels, LabelLookup annotations, string partition,
        HashSet<string> used)
    {
        foreach (var (kind, name) in sources)
        {
            var value = kind switch
            {
                FieldSourceKind.Literal => name,
                FieldSourceKind.Partition => partition,
                FieldSourceKind.AnnotationFirst => annotations.Get(name) ?? labels.Get(name),
                _ => labels.Get(name) ?? annotations.Get(name),
            };
            if (string.IsNullOrEmpty(value))
                continue;
            if (kind is FieldSourceKind.Label or FieldSourceKind.AnnotationFirst)
                used.Add(name);
            return value;
        }
        return null;
    }

    /// <summary>The labels that no field used, as Prometheus writes them: an alert is its labels.</summary>
    private static string UnusedLabels(Dictionary<string, string?>? labels, HashSet<string> used)
    {
        var unused = (labels ?? []).Where(l => !string.IsNullOrEmpty(l.Value)
            && !used.Contains(l.Key) && !SenderLabels.Contains(l.Key))
            .OrderBy(l => l.Key, StringComparer.Ordinal).ToList();
        if (unused.Count == 0)
            return "";
        var text = new StringBuilder("{");
        foreach (var (name, value) in unused)
            text.Append(text.Length > 1 ? "," : "")
                .Append(WriteLabel(LabelLookup.Clean(name), LabelLookup.Clean(value!)));
        return text.Append('}').ToString();
    }

    /// <summary>As Prometheus writes it: <c>device="sda"</c>.</summary>
    public static string WriteLabel(string name, string value) =>
        $"{name}=\"{value.Replace("\\", "\\\\", StringComparison.Ordinal)
            .Replace("\"", "\\\"", StringComparison.Ordinal)
            .Replace("\n", "\\n", StringComparison.Ordinal)}\"";

    /// <summary>Why no service can be made of it; null: one can.</summary>
    public static string? Unusable(ServiceKey service, string? status)
    {
        foreach (var (name, value) in new[]
            { ("platform", service.Platform), ("service", service.Service), ("facet", service.Facet) })
        {
            if (value == "")
                return $"it has no {name}";
        }
        if (service.Service.Length > MaxService)
            return $"service has {service.Service.Length} characters, more than {MaxService}";
        foreach (var (name, value) in new[] { ("platform", service.Platform), ("facet", service.Facet),
            ("location", service.Location), ("status", status ?? "") })
        {
            if (Encoding.UTF8.GetByteCount(value) is > MaxField and var bytes)
                return $"{name} has {bytes} bytes, more than {MaxField}";
        }
        return null;
    }

    /// <summary>False, with the reason, when the text is no time, or none that can be meant.</summary>
    public static bool ReadTime(
        string? text, string name, DateTime now, out DateTime time, out string reason)
    {
        reason = "";
        if (string.IsNullOrEmpty(text))
            reason = $"it has no {name}";
        if (!Rfc3339.TryParse(text, out time))
            reason = reason != "" ? reason : $"{name} is no RFC 3339 time with a zone";
        else if (time < Earliest)
            reason = $"{name} is before the year 2000";
        else if (time > now + MaxAhead)
            reason = $"{name} is more than 24 h ahead of the clock";
        return reason == "";
    }

    /// <summary>Cut to so many bytes of UTF-8, at a whole character.</summary>
    public static string Clip(string text, int bytes)
    {
        if (text.Length <= bytes / 3 || Encoding.UTF8.GetByteCount(text) <= bytes)
            return text;
        var (end, size) = (0, 0);
        foreach (var rune in text.EnumerateRunes())
        {
            size += rune.Utf8SequenceLength;
            if (size > bytes)
                break;
            end += rune.Utf16SequenceLength;
        }
        return text[..end];
    }

    /// <summary>Labels or annotations, looked up without regard to case, the exact name first.</summary>
    private readonly struct LabelLookup(Dictionary<string, string?>? texts)
    {
        /// <summary>Null when absent, null or empty.</summary>
        public string? Get(string name)
        {
            if (texts == null)
                return null;
            if (!texts.TryGetValue(name, out var value))
            {
                foreach (var (key, other) in texts)
                {
                    if (key.Equals(name, StringComparison.OrdinalIgnoreCase))
                        value = other;
                }
            }
            return string.IsNullOrEmpty(value) ? null : Clean(value);
        }

        /// <summary>Onix and its database take any character but NUL.</summary>
        public static string Clean(string value) => value.Replace('\0', '\ufffd');
    }
}

// ================================= 5. Order ==================================
//
// Order is by time, not by arrival: Alertmanager flushes each group by its own clock, so an "up" can
// arrive minutes before the "down" that came first. For each service there is a window of its last
// events in order of time; an event that the window lacks is put where its time says.

/// <summary>One word on a service's status.</summary>
/// <param name="Time">When it became so, UTC.</param>
/// <param name="Received">When SeS heard of it, UTC.</param>
/// <param name="StartsAt">The start of the stock alert that said so; else <paramref name="Time"/>.</param>
internal sealed record StatusEvent(
    ServiceKey Service, string Status, DateTime Time, string Description, DateTime Received,
    DateTime StartsAt)
{
    public bool Same(StatusEvent other) => Time == other.Time && Status == other.Status;

    public int CompareTo(StatusEvent other) => Compare(Time, Status, other.Time, other.Status);

    /// <summary>
    /// The order that is meant by older, later and last: by time, at equal times down last.
    /// </summary>
    public static int Compare(DateTime time, string status, DateTime otherTime, string otherStatus)
    {
        var byTime = time.CompareTo(otherTime);
        if (byTime != 0)
            return byTime;
        var byDown = (status == "down").CompareTo(otherStatus == "down");
        return byDown != 0 ? byDown : string.CompareOrdinal(status, otherStatus);
    }
}

internal enum Place { New, Known, Stale }

/// <summary>A service's last events in order of time, at most <see cref="Size"/>.</summary>
internal sealed class Window
{
    public const int Size = 8;

    private readonly List<StatusEvent> _events = new(2);

    public IReadOnlyList<StatusEvent> Events => _events;

    /// <summary>When the service was last heard of, copies included.</summary>
    public DateTime Heard { get; set; }

    public Place PlaceOf(StatusEvent e)
    {
        foreach (var held in _events)
        {
            if (held.Same(e))
                return Place.Known;
        }
        return _events.Count >= Size && e.CompareTo(_events[0]) < 0 ? Place.Stale : Place.New;
    }

    /// <summary>Puts a new event where its time says; the oldest beyond the size falls out.</summary>
    public void Add(StatusEvent e)
    {
        if (PlaceOf(e) != Place.New)
            return;
        Insert(_events, e);
        if (_events.Count > Size)
            _events.RemoveAt(0);
    }

    public static void Insert(List<StatusEvent> events, StatusEvent e)
    {
        var at = events.Count;
        while (at > 0 && e.CompareTo(events[at - 1]) < 0)
            at--;
        events.Insert(at, e);
    }
}

/// <summary>Windows of services.</summary>
internal static class Windows
{
    /// <summary>Adds an event to its service's window, which is made if there is none.</summary>
    public static void Add(this Dictionary<ServiceKey, Window> windows, StatusEvent e)
    {
        if (!windows.TryGetValue(e.Service, out var window))
            windows[e.Service] = window = new Window();
        window.Add(e);
    }
}

/// <summary>A place in the log: just before the byte at an offset of a file.</summary>
internal readonly record struct Cursor(int File, long Offset) : IComparable<Cursor>
{
    public int CompareTo(Cursor other) => (File, Offset).CompareTo((other.File, other.Offset));
}

/// <summary>As much of an event as a history needs, and where the rest of it stands.</summary>
/// <param name="Ticks">Its time, UTC, in 100 ns from the year 1.</param>
/// <param name="Place">Of its line, or of the line with the window that has it.</param>
internal readonly record struct Mark(long Ticks, string Status, Cursor Place) : IComparable<Mark>
{
    public DateTime Time => new(Ticks, DateTimeKind.Utc);

    public int CompareTo(Mark other) => Ticks != other.Ticks ? Ticks.CompareTo(other.Ticks)
        : StatusEvent.Compare(Time, Status, other.Time, other.Status);
}

/// <summary>A mark of one of several services, which go by number.</summary>
internal readonly record struct ServiceMark(int Service, Mark Mark) : IComparable<ServiceMark>
{
    public int CompareTo(ServiceMark other) => Mark.CompareTo(other.Mark) is var byMark and not 0
        ? byMark : Service.CompareTo(other.Service);
}

/// <summary>
/// Puts one service's marks in order of time, in little memory: since none comes that is older than a full
/// window, what falls out of it is settled.
/// </summary>
internal struct Course
{
    private Mark[]? _window;
    private int _count;

    /// <summary>Takes the next mark in the order of the log; true when that has settled one.</summary>
    public bool Add(in Mark mark, out Mark settled)
    {
        var window = _window ??= new Mark[Window.Size];
        settled = default;
        var at = _count;
        while (at > 0 && mark.CompareTo(window[at - 1]) < 0)
            at--;
        var isKnown = at > 0 && window[at - 1].CompareTo(mark) == 0;
        if (isKnown || (at == 0 && _count == Window.Size))
            return false;
        if (_count < Window.Size)
        {
            Array.Copy(window, at, window, at + 1, _count++ - at);
            window[at] = mark;
            return false;
        }
        settled = window[0];
        Array.Copy(window, 1, window, 0, at - 1);
        window[at - 1] = mark;
        return true;
    }

    /// <summary>What the end of the log has settled.</summary>
    public readonly ReadOnlySpan<Mark> Rest => _window.AsSpan(0, _count);
}

/// <summary>What a mapped alert means, given what was said before.</summary>
internal static class Interpretation
{
    /// <summary>
    /// A firing copy of a resolved alert within this time is a late one, from the other Alertmanager of
    /// a pair; after it, the alert fires again with its old start, as after Prometheus was away.
    /// </summary>
    private static readonly TimeSpan LateCopy = TimeSpan.FromMinutes(1);

    private static readonly TimeSpan JustAfter = TimeSpan.FromMilliseconds(1);

    /// <summary>
    /// The events that an alert stands for, in order: one, or two for a resolved stock alert.
    /// </summary>
    /// <param name="last">The last word on the service so far.</param>
    public static IReadOnlyList<StatusEvent> Events(MappedAlert alert, StatusEvent? last, DateTime now)
    {
        StatusEvent Event(string status, DateTime time) =>
            new(alert.Service, status, time, alert.Description, now, alert.StartsAt);

        if (!alert.Stock)
            return [Event(alert.Status, alert.StartsAt)];
        var own = last != null && last.StartsAt == alert.StartsAt ? last : null;
        if (alert.EndsAt is not { } endsAt)
        {
            return own switch
            {
                { Status: "down" } => [own],
                { Status: "up" } when now - own.Received > LateCopy => [Event("down", own.Time + JustAfter)],
                { Status: "up" } when own.Time <= alert.StartsAt => [own],
                _ => [Event("down", alert.StartsAt)],
            };
        }
        // The down is told again: it may still be on its way to the disk, and the up is nothing without it.
        if (own is { Status: "down" })
            return [own, Event("up", endsAt > own.Time ? endsAt : own.Time + JustAfter)];
        return endsAt > alert.StartsAt
            ? [Event("down", alert.StartsAt), Event("up", endsAt)] : [Event("up", endsAt)];
    }
}

// ================================ 5b. Timeline ================================
//
// What happened, derived from what was received. A fact is an observation: a copy of an alert that brought
// something new. Episodes tells what a copy brings, given the observations of its alert; Timeline turns all
// observations of a service into runs of one status. Both take an alert's observations in the order in which
// they were received and by the same rules, so that a copy which is not stored would have changed nothing,
// and facts from elsewhere, doubled or late, may lie among them.
// A rule's number is its place in the text on alerts and history: 3.2 are copies from Alertmanager.

/// <summary>What a service is at a moment. From 4 on: other words of the dialect, as stored.</summary>
internal enum Status { Up = 0, Degraded = 1, Down = 2, Unknown = 3 }

/// <summary>Who sends an alert: Alertmanager's webhook, or Prometheus itself.</summary>
internal enum AlertSource { Webhook = 0, Prometheus = 1 }

/// <summary>
/// What an observation brought: an episode, an end, a copy that opens an ended episode again or changes an
/// open one's status, or an end that no sender stated.
/// </summary>
internal enum ObservationKind { Start = 0, End = 1, Again = 2, Lapse = 3 }

/// <summary>A copy of an episode that brought something new: the fact that is stored.</summary>
/// <param name="Starts">The episode's. All times are UTC, in whole milliseconds.</param>
/// <param name="Ends">Null: it fires. A lapse's is the uncertain end.</param>
/// <param name="Received">By whoever received it; a lapse's is when the episode was given up.</param>
internal readonly record struct Observation(
    long Id, long Alert, ObservationKind Kind, DateTime Starts, DateTime? Ends, Status Status,
    DateTime Received);

/// <summary>One copy of an alert as it arrived.</summary>
/// <param name="Ends">Null: it fires.</param>
/// <param name="Uncertain">The end is no recovery: Grafana lost the series, or paused the rule (3.4).</param>
internal readonly record struct AlertCopy(
    DateTime Starts, DateTime? Ends, Status Status, DateTime Received, bool Uncertain = false);

/// <param name="Dialect">It has the labels <c>status</c> and <c>facet</c>; else it is a stock alert.</param>
internal readonly record struct AlertTraits(bool Dialect, AlertSource Source);

/// <summary>The settings of the timeline.</summary>
/// <param name="Pause">
/// For so long after the end of a dialect alert its status goes on, and after the giving up of an episode the
/// service stays unknown (3.5, 4.3).
/// </param>
internal sealed record TimelineRules(TimeSpan Pause)
{
    /// <summary>
    /// A firing copy of an ended episode within this time is a late one, from another Alertmanager; later,
    /// the alert fires again with its old start, as after Prometheus was away.
    /// </summary>
    public static readonly TimeSpan LateCopy = TimeSpan.FromSeconds(20);
}

/// <summary>A stretch of one status.</summary>
/// <param name="To">Null: it is the last.</param>
/// <param name="Open">
/// The status is that of an open alert, so that no gap touches it. Unknown after an uncertain end is not
/// open, also while an alert of something better is.
/// </param>
/// <param name="Observation">
/// Its id: of an open run that which gave the alert this status, else that which ended the last alert.
/// 0: the service had no episode yet.
/// </param>
internal readonly record struct Run(DateTime From, DateTime? To, Status Status, bool Open, long Observation);

/// <summary>A change of a service's status.</summary>
internal readonly record struct StatusChange(DateTime Time, Status Status, long Observation);

/// <summary>What copies of an alert bring, and which of its episodes is open.</summary>
internal static class Episodes
{
    /// <summary>What a copy brings that is not known; null: nothing.</summary>
    /// <param name="known">
    /// Of the copy's alert, in order of start, receipt and kind: those of the copy's start and of the newest
    /// start at least; others change nothing. None was received later than the copy.
    /// </param>
    public static ObservationKind? Decide(
        ReadOnlySpan<Observation> known, in AlertCopy copy, AlertTraits traits)
    {
        using var episodes = new EpisodeBuffer(known.Length + 1);
        episodes.Receive(known, traits, copy.Starts);
        var kind = copy.Ends == null ? ObservationKind.Start
            : copy.Uncertain ? ObservationKind.Lapse : ObservationKind.End;
        return episodes.Take(new(0, 0, kind, copy.Starts, copy.Ends, copy.Status, copy.Received));
    }

    /// <summary>The start of an alert's open episode, of which it has at most one; null: none is.</summary>
    /// <param name="known">As for <see cref="Decide"/>.</param>
    public static DateTime? Open(ReadOnlySpan<Observation> known, AlertTraits traits)
    {
        using var episodes = new EpisodeBuffer(known.Length);
        episodes.Receive(known, traits);
        episodes.EndSuperseded();
        for (var i = episodes.All.Length - 1; i >= 0; i--)
        {
            if (!episodes.All[i].HasEnd)
                return episodes.All[i].Starts;
        }
        return null;
    }
}

/// <summary>One firing of an alert, as its observations have it.</summary>
internal struct Episode
{
    public long Alert;
    public DateTime Starts;

    /// <summary>Of several stated ends the greatest; MaxValue: none is known.</summary>
    public DateTime Ends;

    /// <summary>Nobody stated the end.</summary>
    public bool IsUncertain;

    /// <summary>When the end in force was first stated, or the episode given up.</summary>
    public DateTime Stated;

    /// <summary>The observation that ended it.</summary>
    public long EndedBy;

    /// <summary>The status as of the observations taken so far, and the one that gave it.</summary>
    public Status Status;
    public long StatusBy;

    /// <summary>The same at the start.</summary>
    public Status FirstStatus;
    public long FirstBy;

    /// <summary>When it was first received, and when the last copy was that opened it.</summary>
    public DateTime Heard, Opened;

    /// <summary>When it was last opened beside a newer one: only what is opened later ends it.</summary>
    public DateTime OpenedAsOlder;

    /// <summary>The first and last of the copies that opened it again or changed its status, or -1.</summary>
    public int FirstAgain, LastAgain;

    public bool IsDialect, IsHeard, IsOpen;

    public readonly bool HasEnd => Ends != DateTime.MaxValue;

    /// <summary>Its end; one before its start leaves nothing of it but its start.</summary>
    public readonly DateTime Until => Ends > Starts ? Ends : Starts;

    public readonly bool IsEmpty => Until == Starts;
}

/// <summary>A copy that opened an episode again, or changed an open one's status.</summary>
/// <param name="Next">The next one of the episode, or -1.</param>
internal record struct AgainCopy(
    int Episode, DateTime Received, Status Status, long Observation, bool Opens, int Next = -1);

/// <summary>The episodes of one service's alerts, each alert's in order of their starts.</summary>
internal ref struct EpisodeBuffer
{
    private readonly Episode[] _episodes;
    private readonly AgainCopy[] _agains;
    private int _count, _againCount;

    // The alert whose observations are being taken: its first episode, and the newest that was received.
    private int _first, _newest;
    private AlertTraits _traits;
    private long _alert;

    /// <summary>Has room for the episodes of so many observations.</summary>
    public EpisodeBuffer(int observations)
    {
        _episodes = ArrayPool<Episode>.Shared.Rent(observations);
        _agains = ArrayPool<AgainCopy>.Shared.Rent(observations);
    }

    public readonly Span<Episode> All => _episodes.AsSpan(0, _count);

    public readonly Span<AgainCopy> Agains => _agains.AsSpan(0, _againCount);

    public readonly void Dispose()
    {
        ArrayPool<Episode>.Shared.Return(_episodes);
        ArrayPool<AgainCopy>.Shared.Return(_agains);
    }

    /// <summary>Takes an alert's observations in the order in which they were received.</summary>
    /// <param name="alert">In order of start, receipt and kind.</param>
    /// <param name="expected">Makes room for an episode that may yet be taken.</param>
    public void Receive(ReadOnlySpan<Observation> alert, AlertTraits traits, DateTime? expected = null)
    {
        (_first, _newest, _traits, _alert) = (_count, -1, traits, alert.IsEmpty ? 0 : alert[0].Alert);
        foreach (ref readonly var observation in alert)
        {
            if (expected < observation.Starts)
                AddEpisode(expected.Value);
            AddEpisode(observation.Starts);
        }
        if (expected is { } last)
            AddEpisode(last);
        if (IsInOrderOfReceipt(alert))
        {
            foreach (ref readonly var observation in alert)
                Take(observation);
        }
        else
            TakeSorted(alert);
    }

    /// <summary>Adds an episode of which nothing was received yet, unless it is there.</summary>
    private void AddEpisode(DateTime starts)
    {
        if (_count == _first || _episodes[_count - 1].Starts < starts)
            _episodes[_count++] = new()
            {
                Alert = _alert,
                Starts = starts,
                Ends = DateTime.MaxValue,
                IsDialect = _traits.Dialect,
                FirstAgain = -1,
            };
    }

    private static bool IsInOrderOfReceipt(ReadOnlySpan<Observation> alert)
    {
        for (var i = 1; i < alert.Length; i++)
        {
            if (new Receipt(alert[i - 1], 0).CompareTo(new Receipt(alert[i], 1)) > 0)
                return false;
        }
        return true;
    }

    private void TakeSorted(ReadOnlySpan<Observation> alert)
    {
        var receipts = ArrayPool<Receipt>.Shared.Rent(alert.Length);
        for (var i = 0; i < alert.Length; i++)
            receipts[i] = new(alert[i], i);
        var sorted = receipts.AsSpan(0, alert.Length);
        sorted.Sort(static (a, b) => a.CompareTo(b));
        foreach (var receipt in sorted)
            Take(alert[receipt.Index]);
        ArrayPool<Receipt>.Shared.Return(receipts);
    }

    /// <summary>
    /// The place of an observation in the order of receipt. What was received in the same millisecond is
    /// ordered so that it means the same in every store: a copy that fires is followed by an end.
    /// </summary>
    private readonly struct Receipt(in Observation observation, int index)
    {
        private readonly DateTime _time = observation.Received;
        private readonly int _kind = observation.Kind switch
        {
            ObservationKind.Start => 0,
            ObservationKind.Again => 1,
            ObservationKind.Lapse => 2,
            _ => 3,
        };

        public int Index => index;

        public int CompareTo(in Receipt other) => _time != other._time ? _time.CompareTo(other._time)
            : _kind != other._kind ? _kind - other._kind : index - other.Index;
    }

    /// <summary>Takes what was received next of the alert, and tells what it brings; null: nothing.</summary>
    public ObservationKind? Take(in Observation observation)
    {
        var index = Find(observation.Starts);
        ref var episode = ref _episodes[index];
        var isNew = !episode.IsHeard;
        if (isNew)
        {
            episode.IsHeard = true;
            episode.Heard = episode.Opened = observation.Received;
            (episode.FirstStatus, episode.FirstBy) = (observation.Status, observation.Id);
            (episode.Status, episode.StatusBy) = (observation.Status, observation.Id);
            _newest = Math.Max(_newest, index);
        }
        if (observation.Ends == null && isNew)
        {
            if (index < _newest && _episodes[_newest].IsUncertain)
                episode.OpenedAsOlder = observation.Received;
            return ObservationKind.Start;
        }
        if (observation.Ends == null)
            return Fire(index, observation);
        return observation.Kind == ObservationKind.Lapse
            ? GiveUp(index, observation, isNew) : End(ref episode, observation);
    }

    private readonly int Find(DateTime starts)
    {
        var (low, high) = (_first, _count - 1);
        while (low < high)
        {
            var middle = (low + high) / 2;
            if (_episodes[middle].Starts < starts)
                low = middle + 1;
            else
                high = middle;
        }
        return low;
    }

    /// <summary>
    /// A firing copy of an episode that is known (3.1, 3.2): one that has ended is opened again, whole,
    /// unless the copy is late or there is a newer episode that has not lapsed.
    /// </summary>
    private ObservationKind? Fire(int index, in Observation copy)
    {
        ref var episode = ref _episodes[index];
        var isOlder = index < _newest;
        if ((isOlder && !_episodes[_newest].IsUncertain) || IsLate(episode, copy))
            return null;
        var opens = episode.HasEnd || Successor(index) >= 0;
        if (!opens && episode.Status == copy.Status)
            return null;
        if (opens)
        {
            (episode.Ends, episode.IsUncertain, episode.Opened) = (DateTime.MaxValue, false, copy.Received);
            if (isOlder)
                episode.OpenedAsOlder = copy.Received;
        }
        AddAgain(index, copy, opens);
        (episode.Status, episode.StatusBy) = (copy.Status, copy.Id);
        return ObservationKind.Again;
    }

    /// <summary>Only Alertmanagers send late copies; any is that was received with the end.</summary>
    private readonly bool IsLate(in Episode episode, in Observation copy)
    {
        var isRelayed = _traits.Source == AlertSource.Webhook && !episode.IsUncertain;
        var late = isRelayed ? TimelineRules.LateCopy : TimeSpan.Zero;
        return episode.HasEnd && copy.Received - episode.Stated <= late;
    }

    private void AddAgain(int index, in Observation copy, bool opens)
    {
        ref var episode = ref _episodes[index];
        _agains[_againCount] = new(index, copy.Received, copy.Status, copy.Id, opens);
        if (episode.FirstAgain < 0)
            episode.FirstAgain = _againCount;
        else
            _agains[episode.LastAgain].Next = _againCount;
        episode.LastAgain = _againCount++;
    }

    /// <summary>A stated end replaces any other but a later stated one (3.1).</summary>
    private static ObservationKind? End(ref Episode episode, in Observation copy)
    {
        if (episode.HasEnd && !episode.IsUncertain && copy.Ends <= episode.Ends)
            return null;
        SetEnd(ref episode, copy, isUncertain: false);
        return ObservationKind.End;
    }

    /// <summary>What has a stated end, or ended as a newer episode began, is not given up (3.4).</summary>
    private readonly ObservationKind? GiveUp(int index, in Observation lapse, bool isNew)
    {
        ref var episode = ref _episodes[index];
        if (episode.HasEnd && !(episode.IsUncertain && lapse.Ends > episode.Ends))
            return null;
        if (!isNew && !episode.HasEnd && _traits.Source == AlertSource.Webhook
            && Successor(index) is >= 0 and var next && _episodes[next].Starts <= lapse.Received)
            return null;
        SetEnd(ref episode, lapse, isUncertain: true);
        return ObservationKind.Lapse;
    }

    private static void SetEnd(ref Episode episode, in Observation observation, bool isUncertain)
    {
        (episode.Ends, episode.IsUncertain) = (observation.Ends!.Value, isUncertain);
        (episode.Stated, episode.EndedBy) = (observation.Received, observation.Id);
    }

    /// <summary>The newer episode at whose start this one ends, if no end is known; or -1.</summary>
    private readonly int Successor(int index)
    {
        for (var i = index + 1; i < _count; i++)
        {
            if (_episodes[i].IsHeard && _episodes[i].Opened > _episodes[index].OpenedAsOlder)
                return i;
        }
        return -1;
    }

    /// <summary>
    /// Ends the open episodes of the alert but the newest where the next one begins (3.1). For one from
    /// Prometheus, which lapses there, it is the same: that start says what the service is.
    /// </summary>
    public readonly void EndSuperseded()
    {
        for (var i = _first; i < _count; i++)
        {
            ref var episode = ref _episodes[i];
            if (!episode.HasEnd && Successor(i) is >= 0 and var next)
                (episode.Ends, episode.EndedBy) = (_episodes[next].Starts, _episodes[next].FirstBy);
        }
    }

    /// <summary>
    /// In the dialect up and down exclude each other: the start of one ends the other's earlier episodes of
    /// the service, which are then not given up later (3.4, 4.2).
    /// </summary>
    public readonly void EndOpposed()
    {
        var rented = ArrayPool<OpposedStart>.Shared.Rent(_count);
        var (count, ups) = (0, 0);
        foreach (ref readonly var episode in All)
        {
            if (!episode.IsDialect || episode.FirstStatus is not (Status.Up or Status.Down))
                continue;
            rented[count++] = new(episode.FirstStatus, episode.Starts, episode.Heard, episode.FirstBy);
            ups += episode.FirstStatus == Status.Up ? 1 : 0;
        }
        rented.AsSpan(0, count).Sort(static (a, b) => a.CompareTo(b));
        foreach (ref var episode in All)
        {
            if (episode.IsDialect)
                EndOpposed(ref episode, rented.AsSpan(0, ups), rented.AsSpan(ups, count - ups));
        }
        ArrayPool<OpposedStart>.Shared.Return(rented);
    }

    private readonly record struct OpposedStart(Status Status, DateTime Starts, DateTime Heard, long By)
    {
        public int CompareTo(in OpposedStart other) => Status != other.Status ? Status - other.Status
            : Starts != other.Starts ? Starts.CompareTo(other.Starts)
            : Heard != other.Heard ? Heard.CompareTo(other.Heard) : By.CompareTo(other.By);
    }

    /// <summary>Ends an episode at the first start that opposes the status which it has then.</summary>
    private readonly void EndOpposed(
        ref Episode episode, ReadOnlySpan<OpposedStart> ups, ReadOnlySpan<OpposedStart> downs)
    {
        var (from, status, again) = (episode.Starts.AddTicks(1), episode.FirstStatus, episode.FirstAgain);
        while (true)
        {
            var until = again < 0 ? DateTime.MaxValue : _agains[again].Received;
            var opposed = status == Status.Up ? downs : status == Status.Down ? ups : [];
            var at = FirstFrom(opposed, from);
            if (at < opposed.Length && opposed[at].Starts < until)
            {
                EndAt(ref episode, opposed[at]);
                return;
            }
            if (again < 0)
                return;
            from = until > from ? until : from;
            (status, again) = (_agains[again].Status, _agains[again].Next);
        }
    }

    private static int FirstFrom(ReadOnlySpan<OpposedStart> starts, DateTime time)
    {
        var (low, high) = (0, starts.Length);
        while (low < high)
        {
            var middle = (low + high) / 2;
            if (starts[middle].Starts < time)
                low = middle + 1;
            else
                high = middle;
        }
        return low;
    }

    private static void EndAt(ref Episode episode, in OpposedStart opposed)
    {
        var wasKnown = opposed.Starts <= episode.Stated && opposed.Heard <= episode.Stated;
        if (opposed.Starts < episode.Ends || (episode.IsUncertain && wasKnown))
            (episode.Ends, episode.IsUncertain, episode.EndedBy) = (opposed.Starts, false, opposed.By);
    }
}

/// <summary>The history of a service.</summary>
internal static class Timeline
{
    /// <summary>
    /// Makes the runs of one service as of a moment: in order, each up to the next. What is ahead of the
    /// moment is not yet. Neighbours differ in status or in being open, but where the first episode begins.
    /// </summary>
    /// <param name="observations">All of the service, in order of alert, start, receipt and kind.</param>
    /// <param name="knownFrom">The first receipt of anything of the partition; null: there was none.</param>
    /// <param name="oldest">
    /// The oldest time that retention has left: before it no stock service without an open alert is up, but
    /// not known, or unknown if it follows an outage.
    /// </param>
    /// <param name="runs">Is cleared first.</param>
    /// <param name="open">Gets the open episodes, of an alert at most one: what may yet lapse.</param>
    /// <returns>When the result changes by time alone; null: never.</returns>
    public static DateTime? Derive(
        ReadOnlySpan<Observation> observations, Func<long, AlertTraits> traitsOf, DateTime? knownFrom,
        DateTime? oldest, DateTime now, TimelineRules rules, List<Run> runs,
        List<(long Alert, DateTime Starts)>? open = null)
    {
        runs.Clear();
        open?.Clear();
        if (observations.IsEmpty)
            return null;
        var isDialect = false;
        using var episodes = new EpisodeBuffer(observations.Length);
        for (int from = 0, to; from < observations.Length; from = to)
        {
            to = from + 1;
            while (to < observations.Length && observations[to].Alert == observations[from].Alert)
                to++;
            var traits = traitsOf(observations[from].Alert);
            isDialect |= traits.Dialect;
            episodes.Receive(observations[from..to], traits);
            episodes.EndSuperseded();
        }
        if (isDialect)
            episodes.EndOpposed();
        foreach (ref readonly var episode in episodes.All)
        {
            if (!episode.HasEnd)
                open?.Add((episode.Alert, episode.Starts));
        }
        using var sweep = new TimelineSweep(episodes, isDialect, now, rules.Pause, runs);
        return sweep.Run(knownFrom, oldest);
    }

    /// <summary>
    /// The changes of a service as Onix is told them: from its first episode on, and while it is unknown the
    /// status before goes on (4).
    /// </summary>
    /// <param name="changes">Is cleared first.</param>
    public static void ForOnix(ReadOnlySpan<Run> runs, List<StatusChange> changes)
    {
        changes.Clear();
        foreach (ref readonly var run in runs)
        {
            if (run.Observation != 0 && run.Status != Status.Unknown
                && (changes.Count == 0 || changes[^1].Status != run.Status))
                changes.Add(new(run.From, run.Status, run.Observation));
        }
    }

    /// <summary>2 down, 1 any other, 0 up: the worst of the open ones is the status.</summary>
    public static int Severity(Status status) => status switch { Status.Down => 2, Status.Up => 0, _ => 1 };
}

/// <summary>
/// Goes through the moments at which episodes of a service begin, change or end, and appends runs.
/// </summary>
internal ref struct TimelineSweep
{
    /// <summary>In the order in which they are applied at one time.</summary>
    private enum Kind { End, Again, EmptyStart, Lapse, Start }

    private readonly record struct Moment(DateTime Time, Kind Kind, int Index)
    {
        public int CompareTo(in Moment other) => Time != other.Time ? Time.CompareTo(other.Time)
            : Kind != other.Kind ? Kind - other.Kind : Index - other.Index;
    }

    /// <summary>An episode that is open while it has this status.</summary>
    private readonly record struct OpenStatus(int Episode, Status Status);

    /// <summary>Until when an uncertain end makes the service unknown.</summary>
    private record struct UncertainEnd(DateTime Until, long Observation);

    [InlineArray(3)]
    private struct PerSeverity<T>
    {
        private T _first;
    }

    private readonly Span<Episode> _episodes;
    private readonly ReadOnlySpan<AgainCopy> _agains;
    private readonly bool _isDialect;
    private readonly DateTime _now;
    private readonly TimeSpan _pause;
    private readonly List<Run> _runs;
    private readonly Moment[] _moments;
    private readonly OpenStatus[] _openStatuses;
    private readonly int _count;
    private DateTime _firstStart = DateTime.MaxValue, _upFrom;

    // Where it is: the next moment, the next one that is a start, and up to when there are runs.
    private int _next, _nextStart;
    private DateTime _time;

    // Of each severity: the size of the heap of open episodes, the latest start first, in which ended ones
    // stay until they come first; and the uncertain end that counts longest.
    private PerSeverity<int> _open;
    private PerSeverity<UncertainEnd> _uncertain;

    // What ended last, the worst of several.
    private DateTime _lastEnd = DateTime.MinValue;
    private int _last = -1;

    public TimelineSweep(
        in EpisodeBuffer episodes, bool isDialect, DateTime now, TimeSpan pause, List<Run> runs)
    {
        _episodes = episodes.All;
        _agains = episodes.Agains;
        (_isDialect, _now, _pause, _runs) = (isDialect, now, pause, runs);
        _moments = ArrayPool<Moment>.Shared.Rent((2 * _episodes.Length) + _agains.Length);
        _openStatuses = ArrayPool<OpenStatus>.Shared.Rent(3 * (_episodes.Length + _agains.Length));
        for (var i = 0; i < _episodes.Length; i++)
        {
            ref var episode = ref _episodes[i];
            (episode.Status, episode.StatusBy) = (episode.FirstStatus, episode.FirstBy);
            if (episode.Starts < _firstStart)
                _firstStart = episode.Starts;
            _moments[_count++] = new(episode.Starts, episode.IsEmpty ? Kind.EmptyStart : Kind.Start, i);
            if (episode.HasEnd)
                _moments[_count++] = new(episode.Until,
                    episode.IsUncertain ? Kind.Lapse : Kind.End, i);
        }
        for (var i = 0; i < _agains.Length; i++)
            _moments[_count++] = new(_agains[i].Received, Kind.Again, i);
        _moments.AsSpan(0, _count).Sort(static (a, b) => a.CompareTo(b));
    }

    public readonly void Dispose()
    {
        ArrayPool<Moment>.Shared.Return(_moments);
        ArrayPool<OpenStatus>.Shared.Return(_openStatuses);
    }

    public DateTime? Run(DateTime? knownFrom, DateTime? oldest)
    {
        _upFrom = knownFrom < _firstStart ? knownFrom.Value : _firstStart;
        if (oldest > _upFrom)
            _upFrom = oldest.Value;
        _time = !_isDialect && _upFrom < _firstStart ? _upFrom : _firstStart;
        if (_time > _now)
            return _time;
        while (_next < _count && _moments[_next].Time <= _now)
        {
            var time = _moments[_next].Time;
            AppendUntil(time);
            for (; _next < _count && _moments[_next].Time == time; _next++)
                Apply(_moments[_next]);
        }
        return AppendToNow();
    }

    private void AppendUntil(DateTime time)
    {
        while (_time < time)
        {
            var until = StatusFrom(_time, out var run);
            Append(run);
            _time = until < time ? until : time;
        }
    }

    /// <summary>Appends up to the moment as of which is derived, and tells when the next change is.</summary>
    private DateTime? AppendToNow()
    {
        var due = _next < _count ? _moments[_next].Time : DateTime.MaxValue;
        while (true)
        {
            var until = StatusFrom(_time, out var run);
            Append(run);
            if (until > _now)
                return until < due ? until : due < DateTime.MaxValue ? due : null;
            _time = until;
        }
    }

    private readonly void Append(in Run run)
    {
        if (_runs.Count == 0)
        {
            if (run.Status != Status.Unknown || run.Observation != 0)
                _runs.Add(run);
            return;
        }
        ref var last = ref CollectionsMarshal.AsSpan(_runs)[^1];
        var isFirstEpisode = last.Observation == 0 && run.Observation != 0;
        if (last.Status == run.Status && last.Open == run.Open && !isFirstEpisode)
            return;
        last = last with { To = run.From };
        _runs.Add(run);
    }

    private void Apply(in Moment moment)
    {
        if (moment.Kind == Kind.Again)
        {
            ApplyAgain(_agains[moment.Index]);
            return;
        }
        ref var episode = ref _episodes[moment.Index];
        if (moment.Kind is Kind.End or Kind.Lapse)
            Close(moment.Index, moment.Time);
        if (moment.Kind == Kind.Lapse)
            AddUncertain(Timeline.Severity(episode.Status), new(episode.Stated + _pause, episode.EndedBy));
        else
            _uncertain = default;
        if (moment.Kind == Kind.Start)
        {
            episode.IsOpen = true;
            AddOpen(moment.Index);
        }
    }

    /// <summary>A copy that opens an episode again ends the unknown (3.5); one may change a status.</summary>
    private void ApplyAgain(in AgainCopy again)
    {
        if (again.Opens && !(_isDialect && WorstOpen() < 0))
            _uncertain = default;
        ref var episode = ref _episodes[again.Episode];
        if (again.Received >= episode.Until || episode.Status == again.Status)
            return;
        (episode.Status, episode.StatusBy) = (again.Status, again.Observation);
        if (episode.IsOpen)
            AddOpen(again.Episode);
    }

    private void Close(int index, DateTime time)
    {
        _episodes[index].IsOpen = false;
        if (time > _lastEnd || _last < 0 || IsWorse(_episodes[index], _episodes[_last]))
            _last = index;
        _lastEnd = time;
    }

    private static bool IsWorse(in Episode one, in Episode other)
    {
        var bySeverity = Timeline.Severity(one.Status) - Timeline.Severity(other.Status);
        return bySeverity != 0 ? bySeverity > 0
            : one.Starts != other.Starts ? one.Starts > other.Starts : one.Status > other.Status;
    }

    private void AddUncertain(int severity, UncertainEnd uncertain)
    {
        if (uncertain.Until >= _uncertain[severity].Until)
            _uncertain[severity] = uncertain;
    }

    private void AddOpen(int index)
    {
        var added = new OpenStatus(index, _episodes[index].Status);
        var severity = Timeline.Severity(added.Status);
        var heap = HeapOf(severity);
        var at = _open[severity]++;
        for (; at > 0 && IsBefore(heap[(at - 1) / 2], added); at = (at - 1) / 2)
            heap[at] = heap[(at - 1) / 2];
        heap[at] = added;
    }

    /// <summary>Puts another in the place of a heap's first.</summary>
    private readonly void ReplaceFirst(Span<OpenStatus> heap, OpenStatus other)
    {
        var at = 0;
        for (var child = 1; child < heap.Length; child = (2 * at) + 1)
        {
            if (child + 1 < heap.Length && IsBefore(heap[child], heap[child + 1]))
                child++;
            if (!IsBefore(other, heap[child]))
                break;
            heap[at] = heap[child];
            at = child;
        }
        if (!heap.IsEmpty)
            heap[at] = other;
    }

    private readonly bool IsBefore(OpenStatus one, OpenStatus other)
    {
        var (starts, otherStarts) = (_episodes[one.Episode].Starts, _episodes[other.Episode].Starts);
        return starts != otherStarts ? starts < otherStarts : one.Status < other.Status;
    }

    private readonly Span<OpenStatus> HeapOf(int severity)
    {
        var size = _episodes.Length + _agains.Length;
        return _openStatuses.AsSpan(severity * size, size);
    }

    /// <summary>The severity of the worst open episode, the first of its heap; -1: none is open.</summary>
    private int WorstOpen()
    {
        for (var severity = 2; severity >= 0; severity--)
        {
            var heap = HeapOf(severity);
            ref var size = ref _open[severity];
            while (size > 0)
            {
                var (episode, status) = heap[0];
                if (_episodes[episode].IsOpen && _episodes[episode].Status == status)
                    return severity;
                size--;
                ReplaceFirst(heap[..size], heap[size]);
            }
        }
        return -1;
    }

    /// <summary>The run that begins at a time (4), and when it ends if nothing happens.</summary>
    private DateTime StatusFrom(DateTime time, out Run run)
    {
        var severity = WorstOpen();
        if (UncertainAt(time, severity) is { } uncertain)
        {
            run = new(time, null, Status.Unknown, false, uncertain.Observation);
            return uncertain.Until;
        }
        if (severity < 0)
            return _isDialect ? KeptFrom(time, out run) : UpFrom(time, out run);
        ref var episode = ref _episodes[HeapOf(severity)[0].Episode];
        run = new(time, null, episode.Status, true, episode.StatusBy);
        return DateTime.MaxValue;
    }

    /// <summary>The longest of the uncertain ends of what is worse than all that is open (3.5).</summary>
    private readonly UncertainEnd? UncertainAt(DateTime time, int openSeverity)
    {
        var longest = default(UncertainEnd);
        for (var severity = openSeverity + 1; severity <= 2; severity++)
        {
            if (_uncertain[severity].Until > longest.Until)
                longest = _uncertain[severity];
        }
        if (longest != default && openSeverity < 0 && _isDialect)
            return longest with { Until = DateTime.MaxValue };
        return longest.Until > time ? longest : null;
    }

    /// <summary>A dialect service without an open alert keeps its last status, if not for too long.</summary>
    private DateTime KeptFrom(DateTime time, out Run run)
    {
        for (; _nextStart < _count; _nextStart++)
        {
            if (_nextStart >= _next && _moments[_nextStart].Kind is Kind.Start or Kind.EmptyStart)
                break;
        }
        var over = _lastEnd + _pause;
        var isKept = _now < over || (_nextStart < _count && _moments[_nextStart].Time <= over);
        ref var last = ref _episodes[_last];
        run = new(time, null, isKept ? last.Status : Status.Unknown, false, last.EndedBy);
        return isKept ? over : DateTime.MaxValue;
    }

    /// <summary>A stock service without an open alert is up, as far back as anything is known.</summary>
    private readonly DateTime UpFrom(DateTime time, out Run run)
    {
        var by = _last < 0 ? 0 : _episodes[_last].EndedBy;
        run = time >= _upFrom ? new(time, null, Status.Up, false, by)
            : new(time, null, Status.Unknown, false, _runs.Count == 0 ? 0 : by);
        return time >= _upFrom ? DateTime.MaxValue : _upFrom;
    }
}

// ================================ 6. Archive =================================
//
// The files of the event log as they are read: JSON lines, numbered upwards, a day each. A file begins with
// every service's window, so that whoever begins in any file has the windows as they were there.
//
//     {"ses":1,"created":"..."}                                        the format's version
//     {"window":{"partition":...,"heard":"...","events":[...]}}        one for each service
//     {"time":"...","partition":...,"status":"down",...}               an event
//     {"end":"..."}                                                    the process ended in order
//
// Beside a file that is closed lies its index, made when first it is asked for, and made again when it is
// missing or does not fit. The newest file grows, so its index is kept in memory, slice by slice; only what
// came after the last whole slice is read for each question.
//
// A service's last eight events being known at any place, what falls out of that window is settled: so a
// history is put in the order of time while it is read, in little memory.

/// <summary>Is thrown when a flush failed: what is on disk cannot be trusted any more.</summary>
internal sealed class FlushException(string message) : IOException(message);

/// <summary>What tells a file from another of its name, and its size in bytes.</summary>
internal readonly record struct FileStatus(ulong Device, ulong Inode, long Size);

/// <summary>
/// fsync(2), for files and folders. .NET's own flushes (Flush(true), FlushToDisk) say nothing when it
/// fails with EIO, as of 10.0.12, and it has none for a folder.
/// </summary>
internal static partial class Disk
{
    /// <summary>O_RDONLY; O_DIRECTORY is not the same number on every processor.</summary>
    private const int ReadOnly = 0;

    /// <exception cref="FlushException">The disk failed.</exception>
    public static void Flush(FileStream file)
    {
        if (Fsync((int)file.SafeFileHandle.DangerousGetHandle()) != 0)
            throw new FlushException($"cannot flush {file.Name}: {Marshal.GetLastPInvokeErrorMessage()}");
        GC.KeepAlive(file);
    }

    /// <exception cref="FlushException">The disk failed.</exception>
    public static void FlushFolder(string path)
    {
        var handle = Open(path, ReadOnly);
        if (handle < 0)
            throw new FlushException($"cannot open {path}: {Marshal.GetLastPInvokeErrorMessage()}");
        var result = Fsync(handle);
        var error = Marshal.GetLastPInvokeErrorMessage();
        _ = Close(handle);
        if (result != 0)
            throw new FlushException($"cannot flush {path}: {error}");
    }

    /// <summary>Whether it says that the disk takes no more; .NET tells EFBIG as an argument.</summary>
    public static bool Refused(Exception e) =>
        e is IOException or UnauthorizedAccessException or ArgumentOutOfRangeException;

    /// <summary>A file that only its owner can read and write, empty.</summary>
    public static FileStream Create(string path) => new(path, new FileStreamOptions
    {
        Mode = FileMode.Create,
        Access = FileAccess.Write,
        Share = FileShare.ReadWrite | FileShare.Delete,
        BufferSize = 0,
        UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite,
    });

    [LibraryImport("libc", EntryPoint = "open", SetLastError = true,
        StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Open(string path, int flags);

    /// <summary>What a path leads to, symbolic links followed; null if nothing.</summary>
    public static unsafe FileStatus? StatusOf(string path)
    {
        // struct statx of statx(2): the inode at 32, the size at 40, the device at 136.
        var status = stackalloc byte[256];
        return Statx(CurrentFolder, path, 0, InodeAndSize, status) == 0
            ? new FileStatus(*(ulong*)(status + 136), *(ulong*)(status + 32), *(long*)(status + 40)) : null;
    }

    /// <summary>AT_FDCWD; STATX_INO and STATX_SIZE.</summary>
    private const int CurrentFolder = -100, InodeAndSize = 0x100 | 0x200;

    [LibraryImport("libc", EntryPoint = "statx", SetLastError = true,
        StringMarshalling = StringMarshalling.Utf8)]
    private static unsafe partial int Statx(int folder, string path, int flags, uint mask, byte* status);

    [LibraryImport("libc", EntryPoint = "fsync", SetLastError = true)]
    private static partial int Fsync(int handle);

    [LibraryImport("libc", EntryPoint = "close")]
    private static partial int Close(int handle);
}

/// <summary>Is thrown when a data directory cannot be used at all; the start ends with exit code 2.</summary>
internal sealed class DataDirException(string message) : Exception(message);

/// <summary>Events read from a place on, and the place after them.</summary>
internal sealed record Chunk(IReadOnlyList<StatusEvent> Events, Cursor Next);

/// <summary>A file of the log; nothing at or after its end is to be read.</summary>
internal sealed record LogFile(int Number, string Path, DateOnly Date, long End)
{
    /// <summary>The files of a folder, in order, each with all that it holds.</summary>
    /// <exception cref="IOException">The folder is not there, or cannot be read.</exception>
    public static IReadOnlyList<LogFile> Find(string dir)
    {
        var files = new SortedDictionary<int, LogFile>();
        foreach (var path in Directory.GetFiles(dir, "events-*.jsonl"))
        {
            var parts = System.IO.Path.GetFileNameWithoutExtension(path).Split('-', 3);
            if (parts.Length == 3
                && int.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out var number)
                && DateOnly.TryParseExact(parts[2], "yyyy-MM-dd", CultureInfo.InvariantCulture,
                    DateTimeStyles.None, out var date)
                && new FileInfo(path) is { Exists: true } file) // Retention may have deleted it just now.
                files[number] = new LogFile(number, path, date, file.Length);
        }
        return [.. files.Values];
    }

    public string IndexPath => System.IO.Path.ChangeExtension(Path, "index");
}

/// <summary>Any line of the log; which fields are there tells its kind.</summary>
internal sealed class LogLine
{
    /// <summary>How much is read at once; a line is at most a tenth of it.</summary>
    public const int ReadSize = 1024 * 1024;

    public const int FormatVersion = 1;

    public int? Ses { get; init; }
    public string? Deleted { get; init; }
    public string? End { get; init; }
    public WindowLine? Window { get; init; }
    public string? Time { get; init; }
    public string? Partition { get; init; }
    public string? Platform { get; init; }
    public string? Service { get; init; }
    public string? Facet { get; init; }
    public string? Location { get; init; }
    public string? Status { get; init; }
    public string? Description { get; init; }
    public string? Received { get; init; }
    public string? StartsAt { get; init; }

    /// <summary>Null when a field is missing or not usable.</summary>
    public StatusEvent? ToEvent() => Partition == null || Platform == null || Service == null || Facet == null
        ? null : ToEvent(new ServiceKey(Partition, Platform, Service, Facet, Location ?? ""));

    public StatusEvent? ToEvent(ServiceKey service)
    {
        if (Status == null || !Rfc3339.TryParse(Time, out var time)
            || !Rfc3339.TryParse(Received, out var received))
            return null;
        return new StatusEvent(service, Status, time, Description ?? "", received,
            Rfc3339.TryParse(StartsAt, out var startsAt) ? startsAt : time);
    }

    /// <summary>Lets windows be as they are after this line.</summary>
    public void AddTo(Dictionary<ServiceKey, Window> windows)
    {
        if (Window != null)
            windows[Window.Key] = Window.ToWindow();
        if (Time != null && ToEvent() is { } e)
            windows.Add(e);
    }

    /// <summary>A file's lines with the offset after each; null for one that does not parse.</summary>
    public static IEnumerable<(T? Line, long Next)> Parsed<T>(
        string path, long from, long to, JsonTypeInfo<T> type) where T : class
    {
        foreach (var (line, next) in Raw(path, from, to))
            yield return (Parse(line.Span, type), next);
    }

    /// <summary>Null when it does not parse.</summary>
    public static T? Parse<T>(ReadOnlySpan<byte> line, JsonTypeInfo<T> type) where T : class
    {
        try
        {
            return JsonSerializer.Deserialize(line, type);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            // The latter for text that is not valid Unicode.
            return null;
        }
    }

    /// <summary>
    /// Whole lines, without their end; a torn tail is left out. Each is valid until the next.
    /// </summary>
    public static IEnumerable<(ReadOnlyMemory<byte> Line, long Next)> Raw(string path, long from, long to)
    {
        using var handle = Open(path);
        var buffer = ArrayPool<byte>.Shared.Rent(ReadSize);
        try
        {
            var held = 0;
            var position = from;
            while (position < to)
            {
                if (held == buffer.Length)
                    buffer = Grow(buffer);
                var want = (int)Math.Min(buffer.Length - held, to - position);
                var read = RandomAccess.Read(handle, buffer.AsSpan(held, want), position);
                if (read == 0)
                    break;
                position += read;
                var (start, end) = (0, held + read);
                for (int length; (length = buffer.AsSpan(start, end - start).IndexOf((byte)'\n')) >= 0;)
                {
                    var line = buffer.AsMemory(start, length);
                    start += length + 1;
                    yield return (line, position - (end - start));
                }
                held = end - start;
                buffer.AsSpan(start, held).CopyTo(buffer);
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    /// <summary>For reading, whoever writes it or deletes it meanwhile.</summary>
    public static SafeFileHandle Open(string path) =>
        File.OpenHandle(path, share: FileShare.ReadWrite | FileShare.Delete);

    private static byte[] Grow(byte[] buffer)
    {
        var larger = ArrayPool<byte>.Shared.Rent(buffer.Length * 2);
        buffer.CopyTo(larger, 0);
        ArrayPool<byte>.Shared.Return(buffer);
        return larger;
    }
}

internal sealed class WindowLine
{
    public string Partition { get; init; } = "";
    public string Platform { get; init; } = "";
    public string Service { get; init; } = "";
    public string Facet { get; init; } = "";
    public string Location { get; init; } = "";
    public string? Heard { get; init; }
    public List<LogLine> Events { get; init; } = [];

    public ServiceKey Key => new(Partition, Platform, Service, Facet, Location);

    public Window ToWindow()
    {
        var window = new Window { Heard = Rfc3339.TryParse(Heard, out var heard) ? heard : default };
        var key = Key;
        foreach (var line in Events)
        {
            if (line.ToEvent(key) is { } e)
                window.Add(e);
        }
        return window;
    }
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase)]
[JsonSerializable(typeof(LogLine))]
internal sealed partial class LogJson : JsonSerializerContext;

/// <summary>
/// Where each service's events stand in a file. In bytes, little-endian, as it lies beside the file: a head;
/// for each service its hash (in order of these), its first mark, how many marks it has, and how many of them
/// are in its window at the head of the file; for each mark its ticks, and 40 bits of the line's offset with
/// 24 bits of the status's number; the statuses, each as a length and UTF-8.
/// </summary>
internal sealed class FileIndex : IDisposable
{
    private const uint Magic = 0x69536553, Version = 2;

    private const int StatusBits = 24;

    private readonly byte[] _bytes;
    private readonly List<string> _statuses = [];

    /// <param name="LogLength">Of the log's file, and when that was changed last: it fits no other.</param>
    /// <param name="Least">Ticks of the earliest event; greater than the latest's when there is none.</param>
    /// <param name="Padding">Named, so that it is zero, and not what memory held before.</param>
    private readonly record struct Head(
        uint Magic, uint Version, long LogLength, long LogChanged, long Least, long Greatest, int Services,
        int Marks, int Length, int Padding = 0);

    private readonly record struct Entry(UInt128 Hash, int First, int Count, int InWindow, int Padding = 0);

    private readonly record struct Place(long Ticks, long Where);

    private FileIndex(byte[] bytes, int file)
    {
        (_bytes, FileNumber) = (bytes, file);
        for (var rest = bytes.AsSpan(StatusesAt(At), At.Length - StatusesAt(At)); rest.Length > 0;)
        {
            var length = MemoryMarshal.Read<int>(rest);
            _statuses.Add(Encoding.UTF8.GetString(rest.Slice(sizeof(int), length)));
            rest = rest[(sizeof(int) + length)..];
        }
    }

    public void Dispose() => ArrayPool<byte>.Shared.Return(_bytes);

    public int FileNumber { get; }

    /// <summary>Of the earliest of the file's events; greater than the latest's when there is none.</summary>
    public long Least => At.Least;

    private Head At => MemoryMarshal.Read<Head>(_bytes);

    private static int StatusesAt(Head head) => Unsafe.SizeOf<Head>()
        + (head.Services * Unsafe.SizeOf<Entry>()) + (head.Marks * Unsafe.SizeOf<Place>());

    /// <summary>
    /// The marks of the services that are wanted, in the order of the log, and which of them only stood in
    /// the window at the head of the file.
    /// </summary>
    /// <param name="wanted">Numbers of services by their hash.</param>
    public IEnumerable<(int Service, bool InWindow, Mark Mark)> Marks(
        IReadOnlyDictionary<UInt128, int> wanted)
    {
        var head = At;
        for (var i = 0; i < head.Services; i++)
        {
            var entry = Read<Entry>(Unsafe.SizeOf<Head>(), i);
            if (!wanted.TryGetValue(entry.Hash, out var service))
                continue;
            for (var j = 0; j < entry.Count; j++)
            {
                var place = Read<Place>(
                    Unsafe.SizeOf<Head>() + (head.Services * Unsafe.SizeOf<Entry>()), entry.First + j);
                var status = _statuses[(int)(place.Where & ((1 << StatusBits) - 1))];
                yield return (service, j < entry.InWindow,
                    new Mark(place.Ticks, status, new Cursor(FileNumber, place.Where >> StatusBits)));
            }
        }
    }

    private T Read<T>(int start, int number) where T : struct =>
        MemoryMarshal.Read<T>(_bytes.AsSpan(start + (number * Unsafe.SizeOf<T>())));

    /// <summary>What a service is found by; nobody can make up two services with the same.</summary>
    public static UInt128 Hash(ServiceKey service) => Hash(Encoding.UTF8.GetBytes(string.Join(
        '\0', service.Partition, service.Platform, service.Service, service.Facet, service.Location)));

    private static UInt128 Hash(ReadOnlySpan<byte> key)
    {
        Span<byte> hash = stackalloc byte[SHA256.HashSizeInBytes];
        SHA256.HashData(key, hash);
        return MemoryMarshal.Read<UInt128>(hash);
    }

    // ---- Beside its file ----

    /// <summary>
    /// The index of a file to which nothing will be written: as it lies there, or made from the lines.
    /// </summary>
    /// <exception cref="IOException">The file is gone, or cannot be read.</exception>
    public static FileIndex Of(LogFile file)
    {
        var changed = File.GetLastWriteTimeUtc(file.Path).Ticks;
        if (Kept(file, changed, ReadWhole) is { } kept)
            return new FileIndex(kept, file.Number);
        var bytes = new Making(file).Bytes(changed, out var length);
        Save(file.IndexPath, bytes.AsSpan(0, length));
        return new FileIndex(bytes, file.Number);
    }

    /// <summary>The index of a part of a file, and where that part ends. It needs no disposal.</summary>
    /// <param name="from">Where a line begins.</param>
    /// <param name="atLeast">The part ends with the line that makes it so long, or with the file.</param>
    /// <exception cref="IOException">The file is gone, or cannot be read.</exception>
    public static (FileIndex Index, long End) OfPart(LogFile file, long from, long atLeast)
    {
        var making = new Making(file, from, atLeast);
        var bytes = making.Bytes(changed: 0, out var length);
        var index = new FileIndex(bytes[..length], file.Number);
        ArrayPool<byte>.Shared.Return(bytes);
        return (index, making.End);
    }

    /// <summary>Whether the index beside a file claims to fit, and is not what would be made now.</summary>
    /// <exception cref="IOException">The file is gone, or cannot be read.</exception>
    public static bool IsWrong(LogFile file)
    {
        var changed = File.GetLastWriteTimeUtc(file.Path).Ticks;
        if (Kept(file, changed, ReadWhole) is not { } kept)
            return false;
        var made = new Making(file).Bytes(changed, out var length);
        var isWrong = kept.Length < length || !made.AsSpan(0, length).SequenceEqual(kept.AsSpan(0, length));
        ArrayPool<byte>.Shared.Return(made);
        ArrayPool<byte>.Shared.Return(kept);
        return isWrong;
    }

    /// <summary>The time of a file's latest event, in ticks; an index that is not there is made.</summary>
    /// <exception cref="IOException">The file is gone, or cannot be read.</exception>
    public static long Greatest(LogFile file)
    {
        var changed = File.GetLastWriteTimeUtc(file.Path).Ticks;
        if (Kept(file, changed, (_, head) => (long?)head.Greatest) is { } kept)
            return kept;
        using var index = Of(file);
        return index.At.Greatest;
    }

    /// <summary>Null: it has become shorter.</summary>
    private static byte[]? ReadWhole(SafeFileHandle handle, Head head)
    {
        var bytes = ArrayPool<byte>.Shared.Rent(head.Length);
        if (RandomAccess.Read(handle, bytes.AsSpan(0, head.Length), 0) == head.Length)
            return bytes;
        ArrayPool<byte>.Shared.Return(bytes);
        return null;
    }

    /// <summary>Reads an index that lies beside its file and fits it; null: it is to be made anew.</summary>
    private static T? Kept<T>(LogFile file, long changed, Func<SafeFileHandle, Head, T?> read)
    {
        try
        {
            using var handle = LogLine.Open(file.IndexPath);
            Head head = default;
            var size = RandomAccess.Read(handle, MemoryMarshal.AsBytes(new Span<Head>(ref head)), 0);
            var isWhole = size == Unsafe.SizeOf<Head>() && head.Magic == Magic && head.Version == Version
                && head.LogLength == file.End && head.LogChanged == changed
                && head.Length == RandomAccess.GetLength(handle) && StatusesAt(head) <= head.Length;
            return isWhole ? read(handle, head) : default;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return default;
        }
    }

    /// <summary>
    /// Flushed before it has its name. Whoever may not write, or has no room, goes without.
    /// </summary>
    private static void Save(string path, ReadOnlySpan<byte> bytes)
    {
        var copy = $"{path}.{Environment.ProcessId}.{Environment.CurrentManagedThreadId}.tmp";
        try
        {
            try
            {
                using (var file = Disk.Create(copy))
                {
                    file.Write(bytes);
                    Disk.Flush(file);
                }
                File.Move(copy, path, overwrite: true);
            }
            catch (Exception e) when (Disk.Refused(e))
            {
                File.Delete(copy);
            }
        }
        catch (Exception e) when (Disk.Refused(e))
        {
            // The folder may not be written to, so nothing is left there.
        }
    }

    // ---- Making ----

    /// <summary>Reads a file's lines once and puts their places in order of service.</summary>
    private sealed class Making
    {
        private readonly Dictionary<UInt128, int> _numbers = [];
        private readonly List<(UInt128 Hash, int Count, int InWindow)> _services = [];
        private readonly List<(int Service, Place Place)> _marks = [];
        private readonly Dictionary<string, int> _statuses = [];
        private readonly LogFile _file;
        private long _least = long.MaxValue, _greatest = long.MinValue;

        public Making(LogFile file, long from = 0, long atLeast = long.MaxValue)
        {
            (_file, End) = (file, from);
            var scan = new LineScan();
            foreach (var (line, next) in LogLine.Raw(file.Path, from, file.End))
            {
                if (line.Span.StartsWith("{\"window\":"u8))
                    AddWindow(line.Span, End);
                else if (line.Span.StartsWith(LineScan.Start) && scan.Read(line.Span))
                    AddEvent(scan, End);
                End = next;
                if (End - from >= atLeast)
                    break;
            }
        }

        /// <summary>The place after the last whole line that was read.</summary>
        public long End { get; private set; }

        private void AddEvent(LineScan scan, long offset)
        {
            _least = Math.Min(_least, scan.Ticks);
            _greatest = Math.Max(_greatest, scan.Ticks);
            Add(Hash(scan.Key), scan.Ticks, scan.Status, offset, isEvent: true);
        }

        private void AddWindow(ReadOnlySpan<byte> line, long offset)
        {
            if (LogLine.Parse(line, LogJson.Default.LogLine)?.Window is not { } window)
                return;
            var hash = Hash(window.Key);
            foreach (var e in window.ToWindow().Events)
                Add(hash, e.Time.Ticks, e.Status, offset, isEvent: false);
        }

        private void Add(UInt128 hash, long ticks, string status, long offset, bool isEvent)
        {
            if (!_numbers.TryGetValue(hash, out var service))
            {
                _numbers[hash] = service = _services.Count;
                _services.Add((hash, 0, 0));
            }
            if (!_statuses.TryGetValue(status, out var number))
                _statuses[status] = number = _statuses.Count;
            var (_, count, inWindow) = _services[service];
            _services[service] = (hash, count + 1, isEvent ? inWindow : inWindow + 1);
            _marks.Add((service, new Place(ticks, (offset << StatusBits) | (uint)number)));
        }

        public byte[] Bytes(long changed, out int length)
        {
            var texts = _statuses.OrderBy(s => s.Value).Select(s => Encoding.UTF8.GetBytes(s.Key)).ToList();
            var head = new Head(Magic, Version, _file.End, changed, _least, _greatest, _services.Count,
                _marks.Count, 0);
            head = head with { Length = length = StatusesAt(head) + texts.Sum(t => sizeof(int) + t.Length) };
            var bytes = ArrayPool<byte>.Shared.Rent(length);
            MemoryMarshal.Write(bytes, head);
            var entries = MemoryMarshal.Cast<byte, Entry>(
                bytes.AsSpan(Unsafe.SizeOf<Head>()))[.._services.Count];
            var places = MemoryMarshal.Cast<byte, Place>(
                bytes.AsSpan(Unsafe.SizeOf<Head>() + (_services.Count * Unsafe.SizeOf<Entry>())));
            Arrange(entries, places);
            var rest = bytes.AsSpan(StatusesAt(head));
            foreach (var text in texts)
            {
                MemoryMarshal.Write(rest, text.Length);
                text.CopyTo(rest[sizeof(int)..]);
                rest = rest[(sizeof(int) + text.Length)..];
            }
            return bytes;
        }

        private void Arrange(Span<Entry> entries, Span<Place> places)
        {
            var next = new int[_services.Count];
            var (first, number) = (0, 0);
            foreach (var service in Enumerable.Range(0, _services.Count).OrderBy(s => _services[s].Hash))
            {
                var (hash, count, inWindow) = _services[service];
                entries[number++] = new Entry(hash, first, count, inWindow);
                next[service] = first;
                first += count;
            }
            foreach (var (service, place) in _marks)
                places[next[service]++] = place;
        }
    }
}

/// <summary>The index of the newest file, which all questions share. Safe for concurrent use.</summary>
/// <param name="size">Of a slice, in bytes of the log.</param>
internal sealed class Slices(long size = Slices.Size)
{
    /// <summary>As much may be read for each question.</summary>
    public const long Size = 4 * 1024 * 1024;

    // Held while a slice is read, so that those who ask at once read it once.
    private readonly Lock _gate = new();
    private readonly List<(FileIndex Index, long End)> _slices = [];
    private int _file;

    /// <summary>Indexes that cover a file, one after the other.</summary>
    /// <exception cref="IOException">The file is gone, or cannot be read.</exception>
    public IReadOnlyList<FileIndex> Of(LogFile file)
    {
        var (indexes, end) = Whole(file);
        return end < file.End ? [.. indexes, FileIndex.OfPart(file, end, long.MaxValue).Index] : indexes;
    }

    private (List<FileIndex> Indexes, long End) Whole(LogFile file)
    {
        lock (_gate)
        {
            // Whoever still asks about a file that is closed meanwhile reads it alone.
            if (file.Number < _file)
                return ([], 0);
            if (file.Number > _file)
                _slices.Clear();
            _file = file.Number;
            for (var end = EndOf(_slices); file.End - end >= size;)
            {
                var (index, next) = FileIndex.OfPart(file, end, size);
                // What is left may be a torn line.
                if (next == end)
                    break;
                _slices.Add((index, end = next));
            }
            // There may be more than there was when the question came.
            var whole = _slices.TakeWhile(s => s.End <= file.End).ToList();
            return (whole.ConvertAll(s => s.Index), EndOf(whole));
        }
    }

    private static long EndOf(List<(FileIndex Index, long End)> slices) =>
        slices.Count > 0 ? slices[^1].End : 0;
}

/// <summary>Reads what an index needs of an event's line, without making objects of it.</summary>
internal sealed class LineScan
{
    /// <summary>What the line of an event begins with.</summary>
    public static ReadOnlySpan<byte> Start => "{\"time\":"u8;

    private static readonly byte[][] Fields =
        [.. new[] { "partition", "platform", "service", "facet", "location", "status", "time", "received" }
            .Select(Encoding.ASCII.GetBytes)];

    private const int StatusField = 5, TimeField = 6;

    // Five fields of at most 1 KiB each in UTF-16, and a status, which is longer only in a made-up line.
    private readonly byte[] _text = new byte[64 * 1024], _key = new byte[64 * 1024];
    private readonly Range[] _ranges = new Range[TimeField];
    private readonly Dictionary<int, string> _known = [];
    private int _keyLength;

    public long Ticks { get; private set; }

    public string Status { get; private set; } = "";

    /// <summary>As <see cref="FileIndex.Hash(ServiceKey)"/> has it.</summary>
    public ReadOnlySpan<byte> Key => _key.AsSpan(0, _keyLength);

    /// <summary>False: it is no line of an event.</summary>
    public bool Read(ReadOnlySpan<byte> line)
    {
        try
        {
            return ReadFields(line);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or ArgumentException)
        {
            // The second for text that is not valid Unicode, the third for text that is too long.
            return false;
        }
    }

    private bool ReadFields(ReadOnlySpan<byte> line)
    {
        var (used, found) = (0, 0);
        Array.Clear(_ranges);
        var json = new Utf8JsonReader(line);
        json.Read();
        while (json.Read() && json.TokenType == JsonTokenType.PropertyName)
        {
            var field = FieldOf(ref json);
            json.Read();
            if (field < 0)
                json.Skip();
            else if (json.TokenType != JsonTokenType.String)
                return false;
            else if (field >= TimeField)
            {
                if (!json.TryGetDateTimeOffset(out var time))
                    return false;
                if (field == TimeField)
                    Ticks = time.UtcTicks;
                found |= 1 << field;
            }
            else
            {
                var length = json.CopyString(_text.AsSpan(used));
                (_ranges[field], found) = (used..(used + length), found | (1 << field));
                used += length;
            }
        }
        // All but the location, which a line may lack.
        if ((found | (1 << 4)) != (1 << Fields.Length) - 1)
            return false;
        MakeKey();
        Status = StatusOf(_text.AsSpan(_ranges[StatusField]));
        return true;
    }

    private static int FieldOf(ref Utf8JsonReader json)
    {
        for (var i = 0; i < Fields.Length; i++)
        {
            if (json.ValueTextEquals(Fields[i]))
                return i;
        }
        return -1;
    }

    private void MakeKey()
    {
        _keyLength = 0;
        for (var field = 0; field < StatusField; field++)
        {
            if (field > 0)
                _key[_keyLength++] = 0;
            var text = _text.AsSpan(_ranges[field]);
            text.CopyTo(_key.AsSpan(_keyLength));
            _keyLength += text.Length;
        }
    }

    private static string StatusOf(ReadOnlySpan<byte> text) =>
        text.SequenceEqual("up"u8) ? "up" : text.SequenceEqual("down"u8) ? "down"
        : Encoding.UTF8.GetString(text);
}

/// <summary>A service of which there is a word, and its last events in order of time.</summary>
internal sealed record KnownService(ServiceKey Service, IReadOnlyList<StatusEvent> Last)
{
    public StatusEvent LastEvent => Last[^1];
}

/// <summary>The files of the log as they stood at one moment; for one question at a time.</summary>
/// <param name="slices">Of the newest file.</param>
internal sealed class Archive(IReadOnlyList<LogFile> files, Slices slices)
{
    /// <summary>Changes of status that are looked for at a time.</summary>
    public const int PageSize = 8 * 1024;

    /// <summary>The log of a folder, whether a SeS is using it or not.</summary>
    /// <exception cref="DataDirException">There is no log in it, or a newer SeS wrote it.</exception>
    public static Archive Open(string dir)
    {
        try
        {
            if (LogFile.Find(dir) is { Count: > 0 } files)
                return new Archive(files, new Slices());
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new DataDirException($"'{dir}' cannot be read: {e.Message}");
        }
        throw new DataDirException($"'{dir}' has no event log in it");
    }

    // Its end is read once a question, not once a page.
    private IReadOnlyList<FileIndex>? _newest;

    public IReadOnlyList<LogFile> Files => files;

    /// <summary>All services, as the newest file has them.</summary>
    /// <exception cref="DataDirException">A newer SeS wrote it.</exception>
    /// <exception cref="IOException">It cannot be read.</exception>
    public IReadOnlyList<KnownService> Known()
    {
        var windows = new Dictionary<ServiceKey, Window>();
        foreach (var (line, _) in LogLine.Parsed(files[^1].Path, 0, files[^1].End, LogJson.Default.LogLine))
        {
            if (line?.Ses > LogLine.FormatVersion)
                throw new DataDirException(
                    $"{files[^1].Path} has format {line.Ses}, which a newer SeS wrote");
            line?.AddTo(windows);
        }
        return [.. windows.Where(w => w.Value.Events.Count > 0)
            .Select(w => new KnownService(w.Key, w.Value.Events))];
    }

    /// <summary>
    /// What was said of services: the marks of each in order of time, whatever comes of others in between.
    /// At least all from a time on, and of each service the last before it.
    /// </summary>
    /// <param name="from">In ticks; marks before it may be left out, but for the last one.</param>
    /// <param name="to">In ticks; marks after it may be left out. It is asked again and again.</param>
    /// <exception cref="IOException">A file cannot be read.</exception>
    public IEnumerable<(int Service, Mark Mark)> Marks(
        IReadOnlyList<ServiceKey> services, long from, Func<long> to)
    {
        var wanted = new Dictionary<UInt128, int>();
        for (var i = 0; i < services.Count; i++)
            wanted[FileIndex.Hash(services[i])] = i;
        var courses = new Course[services.Count];
        int? first = null;
        foreach (var index in files.Skip(FirstFor(from)).SelectMany(Indexes))
        {
            first ??= index.FileNumber;
            // What comes too late settles nothing; what comes before it, in later files, still counts.
            var isTooLate = index.Least > to();
            if (isTooLate && index.FileNumber != first)
                continue;
            foreach (var (service, inWindow, mark) in index.Marks(wanted))
            {
                if ((inWindow ? index.FileNumber == first : !isTooLate)
                    && courses[service].Add(mark, out var settled))
                    yield return (service, settled);
            }
        }
        for (var i = 0; i < courses.Length; i++)
        {
            for (var j = 0; j < courses[i].Rest.Length; j++)
                yield return (i, courses[i].Rest[j]);
        }
    }

    /// <summary>The first file with an event at or after a time; else the newest.</summary>
    private int FirstFor(long from)
    {
        if (from <= 0)
            return 0;
        for (var i = 0; i < files.Count - 1; i++)
        {
            try
            {
                if (FileIndex.Greatest(files[i]) >= from)
                    return i;
            }
            catch (Exception e) when (e is FileNotFoundException)
            {
                // Retention has deleted it since.
            }
        }
        return files.Count - 1;
    }

    /// <summary>Each is valid until the next; none, if retention has deleted the file since.</summary>
    private IEnumerable<FileIndex> Indexes(LogFile file)
    {
        if (file == files[^1])
        {
            foreach (var slice in _newest ??= slices.Of(file))
                yield return slice;
        }
        else if (TryOpen(file) is { } index)
        {
            using (index)
                yield return index;
        }
    }

    /// <summary>Null: retention has deleted it since.</summary>
    private static FileIndex? TryOpen(LogFile file)
    {
        try
        {
            return FileIndex.Of(file);
        }
        catch (FileNotFoundException)
        {
            return null;
        }
    }

    /// <summary>
    /// The changes of status of some services, in order of time and then of service. What repeats the status
    /// before it is no change.
    /// </summary>
    /// <param name="from">In ticks.</param>
    /// <param name="to">In ticks; what is at it or later is left out.</param>
    /// <param name="after">Only what comes after this place in that order; null: from the beginning.</param>
    /// <param name="pageSize">So many are looked for at a time.</param>
    /// <exception cref="IOException">A file cannot be read.</exception>
    public IEnumerable<ServiceMark> Changes(IReadOnlyList<ServiceKey> services, long from, long to,
        ServiceMark? after = null, int pageSize = PageSize)
    {
        IReadOnlyList<ServiceMark> page;
        do
        {
            page = Page(services, from, to, after, pageSize);
            foreach (var change in page)
                yield return change;
            after = page.Count > 0 ? page[^1] : null;
        }
        while (page.Count == pageSize);
    }

    /// <summary>The first so many.</summary>
    private IReadOnlyList<ServiceMark> Page(
        IReadOnlyList<ServiceKey> services, long from, long to, ServiceMark? after, int most)
    {
        var page = new PriorityQueue<ServiceMark, ServiceMark>(
            Comparer<ServiceMark>.Create((a, b) => b.CompareTo(a)));
        var last = new string?[services.Count];
        long Bound() => page.Count < most ? to : page.Peek().Mark.Ticks;
        foreach (var (service, mark) in Marks(services, Math.Max(from, after?.Mark.Ticks ?? 0), Bound))
        {
            if (last[service] == mark.Status)
                continue;
            last[service] = mark.Status;
            var change = new ServiceMark(service, mark);
            if (mark.Ticks < from || mark.Ticks >= to
                || (after is { } before && change.CompareTo(before) <= 0))
                continue;
            if (page.Count < most)
                page.Enqueue(change, change);
            else if (change.CompareTo(page.Peek()) < 0)
                page.EnqueueDequeue(change, change);
        }
        return [.. page.UnorderedItems.Select(i => i.Element).Order()];
    }

    /// <summary>The events of marks, but for those whose line is gone, or does not parse any more.</summary>
    public IEnumerable<(ServiceMark Change, StatusEvent Event)> Events(
        IEnumerable<ServiceMark> changes, IReadOnlyList<ServiceKey> services)
    {
        var paths = files.ToDictionary(f => f.Number, f => f.Path);
        var (number, handle) = (0, (SafeFileHandle?)null);
        try
        {
            foreach (var change in changes)
            {
                if (number != change.Mark.Place.File)
                {
                    handle?.Dispose();
                    handle = null;
                    number = change.Mark.Place.File;
                    handle = TryOpenLines(paths[number]);
                }
                if (handle != null && Read(handle, services[change.Service], change.Mark) is { } e)
                    yield return (change, e);
            }
        }
        finally
        {
            handle?.Dispose();
        }
    }

    private static SafeFileHandle? TryOpenLines(string path)
    {
        try
        {
            return LogLine.Open(path);
        }
        catch (FileNotFoundException)
        {
            return null;
        }
    }

    private static StatusEvent? Read(SafeFileHandle handle, ServiceKey service, Mark mark)
    {
        var buffer = ArrayPool<byte>.Shared.Rent(1024);
        try
        {
            while (true)
            {
                var size = RandomAccess.Read(handle, buffer, mark.Place.Offset);
                var length = buffer.AsSpan(0, size).IndexOf((byte)'\n');
                if (length >= 0)
                    return EventOf(buffer.AsSpan(0, length), service, mark);
                if (size < buffer.Length || size >= LogLine.ReadSize)
                    return null;
                var larger = ArrayPool<byte>.Shared.Rent(2 * buffer.Length);
                ArrayPool<byte>.Shared.Return(buffer);
                buffer = larger;
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    private static StatusEvent? EventOf(ReadOnlySpan<byte> text, ServiceKey service, Mark mark)
    {
        var line = LogLine.Parse(text, LogJson.Default.LogLine);
        var events = line?.Window is { } window ? window.Events : line == null ? [] : [line];
        return events.Select(l => l.ToEvent(service))
            .FirstOrDefault(e => e?.Time.Ticks == mark.Ticks && e.Status == mark.Status);
    }
}

// =============================== 7. Event log ================================
//
// The promise that SeS makes to Alertmanager: a 2xx means the events are on disk. One thread owns the
// files, to which it only appends; all requests that arrive while it flushes share its next flush. A start
// reads the newest file only.
//
// A crash can tear only the last line, which is cut. What a dead process left may never have been
// flushed, so after any disorderly end the file is copied, flushed and renamed over before it is trusted.

/// <summary>Is thrown when events cannot be made durable now; the sender is answered 503.</summary>
internal sealed class LogRefusedException(string message) : Exception(message);

/// <summary>As much of a quarantined alert as a start needs.</summary>
internal sealed class QuarantineLine
{
    public string? Id { get; init; }
    /// <summary>Only in a line that says so of an alert of an earlier line: it was mapped since.</summary>
    public string? Cured { get; init; }
}

/// <summary>A quarantined alert.</summary>
internal sealed class QuarantinedAlert
{
    public string? Id { get; init; }
    public string? Cured { get; init; }
    public string? Received { get; init; }
    public string? Partition { get; init; }
    public string? Reason { get; init; }
    public string? Fingerprint { get; init; }
    /// <summary>As it came; not there when its bytes are no text.</summary>
    public JsonElement? Alert { get; init; }

    /// <summary>Null when it has none that is text.</summary>
    [JsonIgnore]
    public string? Alertname
    {
        get
        {
            try
            {
                return Alert is { ValueKind: JsonValueKind.Object } alert
                    && alert.TryGetProperty("labels", out var labels)
                    && labels.ValueKind == JsonValueKind.Object
                    && labels.TryGetProperty("alertname", out var name)
                    && name.ValueKind == JsonValueKind.String
                    ? name.GetString() : null;
            }
            catch (InvalidOperationException)
            {
                // Half a character, escaped, is JSON, but not text.
                return null;
            }
        }
    }

    /// <summary>The alerts of a quarantine file, from an offset on, but for those that were cured.</summary>
    public static IReadOnlyList<QuarantinedAlert> Read(string path, long from)
    {
        var alerts = new OrderedDictionary<string, QuarantinedAlert>();
        var lines = LogLine.Parsed(
            path, from, new FileInfo(path).Length, QuarantineJson.Default.QuarantinedAlert);
        foreach (var (line, _) in lines)
        {
            if (line?.Cured is { } cured)
                alerts.Remove(cured);
            else if (line?.Id is { } id)
                alerts[id] = line;
        }
        return [.. alerts.Values];
    }
}

/// <summary>A quarantined alert may be nested as deeply as a body; its line adds a level.</summary>
[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, MaxDepth = 10_001)]
[JsonSerializable(typeof(QuarantineLine))]
[JsonSerializable(typeof(QuarantinedAlert))]
internal sealed partial class QuarantineJson : JsonSerializerContext;

/// <summary>Writes lines of the log; one for a thread.</summary>
internal sealed class LineWriter(IBufferWriter<byte> output)
{
    // The log is read by people too: only what JSON demands is escaped.
    private static readonly JsonWriterOptions Relaxed =
        new() { Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    private readonly Utf8JsonWriter _json = new(output, Relaxed);

    public void Head(DateTime created, DateTime? deleted) => Line(json =>
    {
        json.WriteNumber("ses", LogLine.FormatVersion);
        json.WriteString("created", Rfc3339.Format(created));
        if (deleted is { } date)
            json.WriteString("deleted", Rfc3339.Format(date));
    });

    public void End(DateTime time) => Line(json => json.WriteString("end", Rfc3339.Format(time)));

    public void Event(StatusEvent e)
    {
        _json.WriteStartObject();
        _json.WriteString("time", Rfc3339.Format(e.Time));
        Service(e.Service);
        EventFields(e);
        Finish();
    }

    public void Window(ServiceKey service, Window window)
    {
        _json.WriteStartObject();
        _json.WriteStartObject("window");
        Service(service);
        _json.WriteString("heard", Rfc3339.Format(window.Heard));
        _json.WriteStartArray("events");
        foreach (var e in window.Events)
        {
            _json.WriteStartObject();
            _json.WriteString("time", Rfc3339.Format(e.Time));
            EventFields(e);
            _json.WriteEndObject();
        }
        _json.WriteEndArray();
        _json.WriteEndObject();
        Finish();
    }

    public void Cured(string id, DateTime received) => Line(json =>
    {
        json.WriteString("received", Rfc3339.Format(received));
        json.WriteString("cured", id);
    });

    public void Quarantine(
        UnmappableAlert alert, string partition, string id, DateTime received) => Line(json =>
    {
        json.WriteString("received", Rfc3339.Format(received));
        json.WriteString("partition", partition);
        json.WriteString("reason", alert.Reason);
        json.WriteString("fingerprint", alert.Fingerprint);
        json.WriteString("id", id);
        if (System.Text.Unicode.Utf8.IsValid(alert.Raw))
        {
            json.WritePropertyName("alert");
            json.WriteRawValue(alert.Raw, skipInputValidation: true);
        }
        else
        {
            json.WriteBase64String("alertBase64", alert.Raw);
        }
    });

    private void Service(ServiceKey service)
    {
        _json.WriteString("partition", service.Partition);
        _json.WriteString("platform", service.Platform);
        _json.WriteString("service", service.Service);
        _json.WriteString("facet", service.Facet);
        _json.WriteString("location", service.Location);
    }

    private void EventFields(StatusEvent e)
    {
        _json.WriteString("status", e.Status);
        _json.WriteString("description", e.Description);
        _json.WriteString("received", Rfc3339.Format(e.Received));
        if (e.StartsAt != e.Time)
            _json.WriteString("startsAt", Rfc3339.Format(e.StartsAt));
    }

    private void Line(Action<Utf8JsonWriter> content)
    {
        _json.WriteStartObject();
        content(_json);
        Finish();
    }

    private void Finish()
    {
        _json.WriteEndObject();
        _json.Flush();
        output.Write("\n"u8);
        _json.Reset();
    }
}

/// <summary>
/// Makes events and unmappable alerts durable, and reads events back. Safe for concurrent use.
/// </summary>
internal sealed class EventLog
{
    /// <summary>What may wait for the disk; more is answered 503.</summary>
    public const int MaxPending = 64 * 1024 * 1024;

    private const int QuarantineLimit = 64 * 1024 * 1024;

    /// <summary>As much of the quarantine's end is read for the status page.</summary>
    private const int LatestQuarantined = 128 * 1024;

    /// <summary>A start reads the newest file.</summary>
    private const int LargeFile = 32 * 1024 * 1024;

    /// <summary>
    /// The clock may have been set back: then a new file waits this long after the last one.
    /// </summary>
    private static readonly TimeSpan ClockBackPause = TimeSpan.FromHours(1);

    /// <summary>A head may be large, and most of a full disk's last room.</summary>
    private static readonly TimeSpan RefusedFilePause = TimeSpan.FromMinutes(1);

    private static readonly TimeSpan Housekeeping = TimeSpan.FromSeconds(30);

    /// <summary>How soon a refusing disk is asked again, though no alert comes.</summary>
    private static readonly TimeSpan ProbePeriod = TimeSpan.FromSeconds(1);

    /// <summary>Room for a large payload.</summary>
    private const int ProbeSize = 64 * 1024;

    /// <summary>A write and its flush take some milliseconds, on a busy disk a second.</summary>
    private static readonly TimeSpan DiskTime = TimeSpan.FromSeconds(10);

    private const string NoAnswer = "The disk does not answer.";

    // For life.
    private readonly string _dir;
    private readonly TimeSpan _retention;
    private readonly TimeProvider _clock;
    private readonly Log _log;
    private readonly Meters _meters;
    private readonly Thread _writer;
    private readonly Slices _slices = new();
    private readonly TaskCompletionSource<string> _failed =
        new(TaskCreationOptions.RunContinuationsAsynchronously);

    // Guarded by _gate.
    private readonly object _gate = new();
    private readonly Dictionary<ServiceKey, Track> _services = [];
    private readonly SortedDictionary<int, LogFile> _files = [];
    private readonly Dictionary<UInt128, Batch?> _quarantined = [];
    private Batch _current = new();
    private Batch? _spare;
    private Cursor _flushed;
    private long _appended;
    private bool _stopping;
    private string? _refusal;
    // Since when something is to be written, a timestamp; null while there is nothing.
    private long? _waits;
    private TaskCompletionSource _news = new(TaskCreationOptions.RunContinuationsAsynchronously);

    // Owned by the writer thread, once it runs.
    private FileStream _file = null!;
    private FileStream _quarantine = null!;
    private long _length, _headLength, _quarantineLength;
    private DateOnly _fileDate;
    private DateTime? _deleted;
    private long _rotated, _retained;
    private long? _fileRefused;

    /// <summary>A service's window, and its events on their way to the disk.</summary>
    private sealed class Track(ServiceKey service)
    {
        public ServiceKey Service => service;
        public Window Window { get; init; } = new();
        public List<(StatusEvent Event, Batch Batch)> Pending { get; } = [];

        public StatusEvent? Last
        {
            get
            {
                var last = Window.Events.Count > 0 ? Window.Events[^1] : null;
                foreach (var (e, _) in Pending)
                    last = last == null || e.CompareTo(last) > 0 ? e : last;
                return last;
            }
        }

        /// <summary>
        /// The same alert, with the texts that are held already: windows are what memory is for.
        /// </summary>
        public MappedAlert Share(MappedAlert alert) => alert with
        {
            Service = service,
            Description = Window.Events.FirstOrDefault(e => e.Description == alert.Description)?.Description
                ?? alert.Description,
        };
    }

    /// <summary>What shares one flush.</summary>
    private sealed class Batch
    {
        public ArrayBufferWriter<byte> Lines { get; }
        public ArrayBufferWriter<byte> Quarantined { get; }
        public List<(Track Track, StatusEvent Event)> Events { get; } = [];
        public List<UInt128> QuarantinedIds { get; } = [];
        public List<UInt128> CuredIds { get; } = [];
        public LineWriter LineWriter { get; }
        public LineWriter QuarantineWriter { get; }
        public TaskCompletionSource Done { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);

        public Batch()
        {
            (Lines, Quarantined) = (new ArrayBufferWriter<byte>(64 * 1024), new ArrayBufferWriter<byte>());
            (LineWriter, QuarantineWriter) = (new LineWriter(Lines), new LineWriter(Quarantined));
        }

        private Batch(Batch done) => (Lines, Quarantined, LineWriter, QuarantineWriter) =
            (done.Lines, done.Quarantined, done.LineWriter, done.QuarantineWriter);

        public int Size => Lines.WrittenCount + Quarantined.WrittenCount + CuredIds.Count;

        /// <summary>
        /// An empty batch with the buffers of one that is done, unless they have grown too large.
        /// </summary>
        public static Batch After(Batch done)
        {
            if (done.Lines.Capacity + done.Quarantined.Capacity > 2 * LogLine.ReadSize)
                return new Batch();
            done.Lines.ResetWrittenCount();
            done.Quarantined.ResetWrittenCount();
            return new Batch(done);
        }
    }

    /// <summary>Opens the log, mends what a crash left, and starts the writer.</summary>
    /// <exception cref="DataDirException">The directory was written by a newer SeS.</exception>
    /// <exception cref="IOException">The disk refused.</exception>
    public EventLog(string dir, TimeSpan retention, TimeProvider clock, Log log, Meters meters)
    {
        (_dir, _retention, _clock, _log, _meters) = (dir, retention, clock, log, meters);
        foreach (var leftover in Directory.GetFiles(dir, "*.tmp").Concat(Directory.GetFiles(dir, "*.index")
            .Where(index => !File.Exists(Path.ChangeExtension(index, "jsonl")))))
            File.Delete(leftover);
        foreach (var file in LogFile.Find(dir))
            _files[file.Number] = file;
        if (_files.Count == 0)
            StartFile(1);
        else
            Resume(_files.Keys.Last());
        OpenQuarantine();
        _meters.LogSize.Set(_files.Values.Sum(f => f.End));
        _meters.Services.Set(_services.Count);
        _rotated = clock.GetTimestamp();
        _writer = new Thread(WriteLoop) { Name = "event log", IsBackground = true };
        _writer.Start();
    }

    /// <summary>
    /// Completes, with the reason, when the disk can no longer be trusted: the process must end.
    /// </summary>
    public Task<string> Failed => _failed.Task;

    /// <summary>Why nothing can be made durable at the moment; null when all is well.</summary>
    public string? Refusal
    {
        get
        {
            lock (_gate)
                return _stopping ? "shutting down" : IsStuck ? NoAnswer : _refusal;
        }
    }

    /// <summary>What is to be written has waited for too long: the disk hangs.</summary>
    public bool IsStuck
    {
        get
        {
            lock (_gate)
                return _waits is { } since && _clock.GetElapsedTime(since) > DiskTime;
        }
    }

    /// <summary>How far the log is flushed, and how many events were appended since the start.</summary>
    public (Cursor Flushed, long Appended) Position
    {
        get
        {
            lock (_gate)
                return (_flushed, _appended);
        }
    }

    /// <summary>The beginning of the oldest file.</summary>
    public Cursor Oldest
    {
        get
        {
            lock (_gate)
                return new Cursor(_files.Keys.First(), 0);
        }
    }

    /// <summary>Retention leaves this file and the later ones alone: Onix lacks what they hold.</summary>
    public int KeepFrom { get; set; }

    // ---- Writing ----

    /// <summary>
    /// Makes a payload durable: completes when all its events and unmappable alerts are flushed. Hands
    /// over all that is new first, and only then waits for copies that another request is having flushed.
    /// </summary>
    /// <param name="cures">The quarantined alert that this is, when it could be mapped.</param>
    /// <exception cref="LogRefusedException">Not all of it is durable; send it again.</exception>
    public async Task AppendAsync(Payload payload, string partition, UInt128? cures = null)
    {
        var counts = new int[3];
        var waits = new HashSet<Batch>();
        lock (_gate)
        {
            if (_stopping)
                throw new LogRefusedException("SeS is shutting down.");
            if (_current.Size > MaxPending)
                throw new LogRefusedException("Too much is waiting for the disk.");
            if (IsStuck)
                throw Unanswered();
            var now = Now();
            foreach (var alert in payload.MappedAlerts)
                Record(alert, now, counts, waits);
            foreach (var alert in payload.UnmappableAlerts)
                SetAside(alert, partition, now, waits);
            if (cures is { } cured && payload is { MappedAlerts.Count: > 0, UnmappableAlerts.Count: 0 })
                Cure(cured, waits);
            if (_current.Size > 0)
            {
                _waits ??= _clock.GetTimestamp();
                Monitor.Pulse(_gate);
            }
        }
        try
        {
            foreach (var batch in waits)
                await batch.Done.Task.WaitAsync(DiskTime, _clock);
        }
        catch (TimeoutException)
        {
            throw Unanswered();
        }
        _meters.Events.WithLabels("known").Inc(counts[(int)Place.Known]);
        _meters.Events.WithLabels("stale").Inc(counts[(int)Place.Stale]);
        _meters.Alerts.WithLabels("accepted").Inc(payload.MappedAlerts.Count);
        _meters.Alerts.WithLabels("quarantined").Inc(payload.UnmappableAlerts.Count);
    }

    private LogRefusedException Unanswered()
    {
        _log.Often("the disk does not answer; Alertmanager is told to send events again");
        return new LogRefusedException(NoAnswer);
    }

    /// <summary>To the millisecond, as Prometheus has it.</summary>
    private DateTime Now()
    {
        var now = _clock.GetUtcNow().UtcDateTime;
        return now.AddTicks(-(now.Ticks % TimeSpan.TicksPerMillisecond));
    }

    private void Record(MappedAlert alert, DateTime now, int[] counts, HashSet<Batch> waits)
    {
        if (!_services.TryGetValue(alert.Service, out var track))
            _services[alert.Service] = track = new Track(alert.Service);
        track.Window.Heard = now;
        foreach (var e in Interpretation.Events(track.Share(alert), track.Last, now))
        {
            var place = track.Window.PlaceOf(e);
            var pending = track.Pending.Find(p => p.Event.Same(e));
            if (pending.Event != null)
            {
                place = Place.Known;
                waits.Add(pending.Batch);
            }
            else if (place == Place.New)
            {
                track.Pending.Add((e, _current));
                _current.Events.Add((track, e));
                _current.LineWriter.Event(e);
                waits.Add(_current);
            }
            else if (place == Place.Stale)
            {
                _log.Often("event is older than all that is known of its service; not kept",
                    ("service", e.Service), ("status", e.Status), ("time", Rfc3339.Format(e.Time)));
            }
            counts[(int)place]++;
        }
    }

    private void SetAside(UnmappableAlert alert, string partition, DateTime now, HashSet<Batch> waits)
    {
        var hash = SHA256.HashData(Encoding.UTF8.GetBytes(partition + "\n" + alert.Identity));
        var id = System.Buffers.Binary.BinaryPrimitives.ReadUInt128BigEndian(hash);
        if (_quarantined.TryGetValue(id, out var batch))
        {
            if (batch != null)
                waits.Add(batch);
            return;
        }
        _quarantined[id] = _current;
        _current.QuarantinedIds.Add(id);
        _current.QuarantineWriter.Quarantine(
            alert, partition, id.ToString("x32", CultureInfo.InvariantCulture), now);
        waits.Add(_current);
        _log.Often("alert quarantined", ("partition", partition), ("alertname", alert.Alertname),
            ("fingerprint", alert.Fingerprint), ("reason", alert.Reason));
    }

    private void Cure(UInt128 id, HashSet<Batch> waits)
    {
        // One that another request is having flushed is looked at by the next retry.
        if (!_quarantined.TryGetValue(id, out var batch) || batch != null)
            return;
        _current.CuredIds.Add(id);
        waits.Add(_current);
    }

    /// <summary>Flushes what is waiting, ends the file in order and stops the writer.</summary>
    public void Stop()
    {
        lock (_gate)
        {
            _stopping = true;
            Monitor.Pulse(_gate);
        }
        _writer.Join();
    }

    private void WriteLoop()
    {
        while (!_failed.Task.IsCompleted)
        {
            Batch? batch = null;
            bool stopping;
            lock (_gate)
            {
                if (_current.Size == 0 && !_stopping)
                    Monitor.Wait(_gate, _refusal == null ? Housekeeping : ProbePeriod);
                stopping = _stopping;
                if (_current.Size > 0)
                    (batch, _current, _spare) = (_current, _spare ?? new Batch(), null);
            }
            Rotate();
            if (_failed.Task.IsCompleted && batch != null)
                Refuse(batch, new LogRefusedException("The disk failed."));
            if (_failed.Task.IsCompleted || (batch == null && stopping))
                break;
            if (batch == null)
            {
                Probe();
                continue;
            }
            Write(batch);
            lock (_gate)
                _spare = Batch.After(batch);
        }
        if (!_failed.Task.IsCompleted)
            WriteEnd();
        else
            Refuse(_current, new LogRefusedException("The disk failed."));
        _file.Dispose();
        _quarantine.Dispose();
    }

    private void Write(Batch batch)
    {
        var started = _clock.GetTimestamp();
        try
        {
            // Unmappable alerts first: written twice they are dropped as copies, and events are the promise.
            _quarantineLength = Put(_quarantine, _quarantineLength, batch.Quarantined.WrittenSpan);
            _length = Put(_file, _length, batch.Lines.WrittenSpan);
        }
        catch (LogRefusedException e)
        {
            Refuse(batch, e);
            return;
        }
        _meters.FlushDuration.Observe(_clock.GetElapsedTime(started).TotalSeconds);
        if (StrikeOff(batch.CuredIds) is { } refusal && batch.Size == batch.CuredIds.Count)
        {
            Refuse(batch, refusal);
            return;
        }
        Commit(batch);
        if (_quarantineLength > QuarantineLimit)
            HalveQuarantine();
    }

    /// <summary>An alert is cured when its events are on disk; one not struck off is sent again.</summary>
    /// <returns>Why the disk refused; null when it did not.</returns>
    private LogRefusedException? StrikeOff(List<UInt128> ids)
    {
        if (ids.Count == 0)
            return null;
        var lines = new ArrayBufferWriter<byte>();
        var writer = new LineWriter(lines);
        foreach (var id in ids)
            writer.Cured(id.ToString("x32", CultureInfo.InvariantCulture), Now());
        try
        {
            _quarantineLength = Put(_quarantine, _quarantineLength, lines.WrittenSpan);
        }
        catch (LogRefusedException e)
        {
            _log.Often("cured alerts could not be struck off the quarantine", ("reason", e.Message));
            return e;
        }
        lock (_gate)
        {
            foreach (var id in ids)
                _quarantined.Remove(id);
        }
        return null;
    }

    /// <summary>Puts whole lines on disk, or leaves the file as it was and throws.</summary>
    private long Put(FileStream file, long length, ReadOnlySpan<byte> lines)
    {
        if (lines.IsEmpty)
            return length;
        try
        {
            RandomAccess.Write(file.SafeFileHandle, lines, length);
        }
        catch (Exception e) when (Disk.Refused(e))
        {
            Undo(file, length);
            throw new LogRefusedException($"The disk refused: {e.Message}");
        }
        try
        {
            Disk.Flush(file);
        }
        catch (FlushException e)
        {
            // The kernel may have dropped the pages and would call the next flush a success.
            Fail($"a flush failed, so what is on disk cannot be trusted: {e.Message}");
            throw new LogRefusedException("The disk failed.");
        }
        return length + lines.Length;
    }

    private void Undo(FileStream file, long length)
    {
        try
        {
            RandomAccess.SetLength(file.SafeFileHandle, length);
        }
        catch (Exception e) when (Disk.Refused(e))
        {
            Fail($"a refused write could not be undone: {e.Message}");
        }
    }

    private void Fail(string reason)
    {
        lock (_gate)
            _stopping = true;
        _failed.TrySetResult(reason);
    }

    /// <summary>The disk has answered; what came meanwhile waits from now on.</summary>
    private void EndWait() => _waits = _current.Size > 0 ? _clock.GetTimestamp() : null;

    private void Commit(Batch batch)
    {
        TaskCompletionSource news;
        lock (_gate)
        {
            EndWait();
            Welcome();
            foreach (var (track, e) in batch.Events)
            {
                track.Pending.RemoveAll(p => ReferenceEquals(p.Event, e));
                track.Window.Add(e);
            }
            foreach (var id in batch.QuarantinedIds)
                _quarantined[id] = null;
            _flushed = new Cursor(_flushed.File, _length);
            _appended += batch.Events.Count;
            news = _news;
            _news = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
            // Counted before anyone can see that they are there.
            _meters.Services.Set(_services.Count);
            _meters.Events.WithLabels("new").Inc(batch.Events.Count);
            _meters.LogEvents.Inc(batch.Events.Count);
            _meters.LogBytes.Inc(batch.Lines.WrittenCount);
            _meters.LogSize.Inc(batch.Lines.WrittenCount);
        }
        batch.Done.SetResult();
        news.SetResult();
    }

    private void Refuse(Batch batch, LogRefusedException reason)
    {
        lock (_gate)
        {
            EndWait();
            if (_refusal == null)
                _log.Error("the disk takes no events; Alertmanager is told to send them again",
                    ("reason", reason.Message));
            _refusal = reason.Message;
            foreach (var (track, e) in batch.Events)
                track.Pending.RemoveAll(p => ReferenceEquals(p.Event, e));
            foreach (var id in batch.QuarantinedIds)
                _quarantined.Remove(id);
        }
        batch.Done.SetException(reason);
    }

    /// <summary>
    /// Asks a disk that refused whether it takes events again: /ready must not wait for an alert.
    /// </summary>
    private void Probe()
    {
        lock (_gate)
        {
            if (_refusal == null)
                return;
        }
        // The log's own file, since a limit may be on its size; spaces, that nobody has acknowledged.
        var spaces = new byte[ProbeSize];
        spaces.AsSpan().Fill((byte)' ');
        try
        {
            RandomAccess.Write(_file.SafeFileHandle, spaces, _length);
            lock (_gate)
                Welcome();
        }
        catch (Exception e) when (Disk.Refused(e))
        {
            // It still refuses, as the log has said.
        }
        finally
        {
            Undo(_file, _length);
        }
    }

    private void Welcome()
    {
        if (_refusal != null)
            _log.Info("the disk takes events again");
        _refusal = null;
    }

    private void WriteEnd()
    {
        var line = new ArrayBufferWriter<byte>();
        new LineWriter(line).End(_clock.GetUtcNow().UtcDateTime);
        try
        {
            _length = Put(_file, _length, line.WrittenSpan);
        }
        catch (LogRefusedException e)
        {
            // Nothing is lost: the next start takes the end for a disorderly one.
            _log.Warn("the log could not be ended in order", ("reason", e.Message));
        }
    }

    // ---- Files ----

    /// <summary>Goes on in the newest file, after making sure that what it holds is on disk.</summary>
    private void Resume(int number)
    {
        var (_, path, date, length) = _files[number];
        long end = 0;
        var ended = false;
        foreach (var (line, next) in Lines(number, 0, length, whole: true))
        {
            end = next;
            ended = line?.End != null;
            if (line?.Ses != null || line?.Window != null)
                _headLength = next;
            if (line?.Ses > LogLine.FormatVersion)
                throw new DataDirException($"{path} has format {line.Ses}, which a newer SeS wrote");
            if (Rfc3339.TryParse(line?.Deleted, out var deleted))
                _deleted = deleted;
            if (line != null)
                Apply(line);
        }
        if (!ended || end != length)
        {
            Replace(path, 0, end);
            _log.Info("the log was not ended in order; its newest file was made safe", ("file", path));
        }
        (_file, _length, _fileDate) = (OpenFile(path), end, date);
        _flushed = new Cursor(number, end);
    }

    private void Apply(LogLine line)
    {
        if (line.Window is { } head)
            _services[head.Key] = new Track(head.Key) { Window = head.ToWindow() };
        if (line.Time == null || line.ToEvent() is not { } e)
            return;
        if (!_services.TryGetValue(e.Service, out var track))
            _services[e.Service] = track = new Track(e.Service);
        track.Window.Add(e with { Service = track.Service });
        track.Window.Heard = e.Received > track.Window.Heard ? e.Received : track.Window.Heard;
    }

    /// <summary>Copies a part of a file, flushes, renames the copy over it, flushes the folder.</summary>
    private void Replace(string path, long start, long end)
    {
        var copy = path + ".tmp";
        try
        {
            using (var from = File.OpenRead(path))
            using (var to = Disk.Create(copy))
            {
                from.Position = start;
                from.CopyTo(to);
                to.SetLength(end - start);
                Disk.Flush(to);
            }
            File.Move(copy, path, overwrite: true);
        }
        catch
        {
            File.Delete(copy);
            throw;
        }
        Disk.FlushFolder(_dir);
    }

    /// <summary>A file ends with the day, or when it is large.</summary>
    private void Rotate()
    {
        var today = DateOnly.FromDateTime(_clock.GetUtcNow().UtcDateTime);
        var isOver = today > _fileDate
            || (today < _fileDate && _clock.GetElapsedTime(_rotated) >= ClockBackPause);
        // Where there are very many services, most of a file shall still be events.
        if ((!isOver && (_length < LargeFile || _length < 4 * _headLength))
            || (_fileRefused is { } refused && _clock.GetElapsedTime(refused) < RefusedFilePause))
            return;
        // First, since it makes room.
        Retain(today);
        try
        {
            StartFile(_flushed.File + 1);
            _rotated = _clock.GetTimestamp();
        }
        catch (FlushException e)
        {
            Fail(e.Message);
        }
        catch (Exception e) when (Disk.Refused(e))
        {
            _log.Often("the log's next file could not be made; going on in the last", ("reason", e.Message));
            _fileRefused = _clock.GetTimestamp();
        }
    }

    /// <summary>Makes a file that begins with the windows, whole, before it gets its name.</summary>
    private void StartFile(int number)
    {
        var now = _clock.GetUtcNow().UtcDateTime;
        var date = DateOnly.FromDateTime(now);
        var name = string.Create(CultureInfo.InvariantCulture, $"events-{number:D6}-{date:yyyy-MM-dd}.jsonl");
        var path = Path.Combine(_dir, name);
        FileStream file = Disk.Create(path + ".tmp");
        try
        {
            WriteHead(file, now);
            Disk.Flush(file);
            File.Move(path + ".tmp", path, overwrite: false);
        }
        catch
        {
            file.Dispose();
            File.Delete(path + ".tmp");
            throw;
        }
        Disk.FlushFolder(_dir);
        _file?.Dispose();
        (_file, _length, _headLength, _fileDate) = (file, file.Length, file.Length, date);
        _meters.LogSize.Inc(_length);
        lock (_gate)
        {
            if (_files.TryGetValue(_flushed.File, out var last))
                _files[last.Number] = last with { End = _flushed.Offset };
            _files[number] = new LogFile(number, path, date, _length);
            _flushed = new Cursor(number, _length);
        }
    }

    private void WriteHead(FileStream file, DateTime now)
    {
        var buffer = new ArrayBufferWriter<byte>();
        var writer = new LineWriter(buffer);
        writer.Head(now, _deleted);
        List<KeyValuePair<ServiceKey, Track>> services;
        lock (_gate)
        {
            // What was last heard before the oldest file that is left has no history any more.
            foreach (var (key, track) in _services.Where(s => s.Value.Window.Heard < _deleted
                && s.Value.Pending.Count == 0).ToList())
                _services.Remove(key);
            services = [.. _services.Where(s => s.Value.Window.Events.Count > 0)];
        }
        // The events of windows are changed by this thread alone.
        foreach (var (key, track) in services)
        {
            writer.Window(key, track.Window);
            if (buffer.WrittenCount < LogLine.ReadSize)
                continue;
            file.Write(buffer.WrittenSpan);
            buffer.ResetWrittenCount();
        }
        file.Write(buffer.WrittenSpan);
    }

    /// <summary>Deletes the files of at most two days, if they are old enough and Onix has them.</summary>
    private void Retain(DateOnly today)
    {
        if (_retained != 0 && _clock.GetElapsedTime(_retained) < TimeSpan.FromHours(20))
            return;
        _retained = _clock.GetTimestamp();
        var keep = today.AddDays(-(int)_retention.TotalDays);
        var days = new HashSet<DateOnly>();
        while (true)
        {
            var (number, file) = _files.First();
            // A file that was made while the clock was ahead is as old as the one after it.
            var date = _files.Values.Select(f => f.Date).FirstOrDefault(d => d <= today, today);
            days.Add(date);
            if (days.Count > 2 || date >= keep || number >= KeepFrom || number == _flushed.File)
                return;
            try
            {
                File.Delete(file.Path);
                File.Delete(file.IndexPath);
            }
            catch (Exception e) when (Disk.Refused(e))
            {
                _log.Warn("a file of the log has reached its retention and could not be deleted",
                    ("file", file.Path), ("reason", e.Message));
                return;
            }
            _meters.LogSize.Dec(file.End);
            _deleted = date.ToDateTime(TimeOnly.MinValue, DateTimeKind.Utc);
            lock (_gate)
                _files.Remove(number);
            _log.Info("a file of the log has reached its retention and is deleted", ("file", file.Path));
        }
    }

    private static FileStream OpenFile(string path) => new(path, new FileStreamOptions
    {
        Mode = FileMode.Open,
        Access = FileAccess.Write,
        Share = FileShare.ReadWrite | FileShare.Delete,
        BufferSize = 0,
    });

    // ---- The Recorder's cursor ----

    public const string CursorFile = "cursor.json";

    private string CursorPath => Path.Combine(_dir, CursorFile);

    /// <summary>What the Recorder saved last; null when there is nothing that can be read.</summary>
    public byte[]? LoadCursor()
    {
        try
        {
            return File.ReadAllBytes(CursorPath);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    /// <summary>
    /// Replaces it as a whole. It is not flushed: the cursor may lag, and says when it is lost.
    /// </summary>
    /// <exception cref="IOException">The disk refused; what was saved before is still there.</exception>
    public void SaveCursor(byte[] content)
    {
        using (var file = Disk.Create(CursorPath + ".tmp"))
            file.Write(content);
        File.Move(CursorPath + ".tmp", CursorPath, overwrite: true);
    }

    /// <summary>There is no Onix now; one that comes later starts at the oldest event.</summary>
    public void ForgetCursor() => File.Delete(CursorPath);

    // ---- Quarantine ----

    public const string QuarantineFile = "quarantine.jsonl";

    private string QuarantinePath => Path.Combine(_dir, QuarantineFile);

    private void OpenQuarantine()
    {
        if (!File.Exists(QuarantinePath))
            Disk.Create(QuarantinePath).Dispose();
        var length = 0L;
        foreach (var (line, next) in LogLine.Parsed(
            QuarantinePath, 0, new FileInfo(QuarantinePath).Length, QuarantineJson.Default.QuarantineLine))
        {
            length = next;
            if (IdOf(line?.Id) is { } id)
                _quarantined[id] = null;
            if (IdOf(line?.Cured) is { } cured)
                _quarantined.Remove(cured);
        }
        // As with the log: what a dead process may have left unflushed is not trusted until it is.
        if (length > 0)
            Replace(QuarantinePath, 0, length);
        (_quarantine, _quarantineLength) = (OpenFile(QuarantinePath), length);
        RandomAccess.SetLength(_quarantine.SafeFileHandle, length);
        Disk.FlushFolder(_dir);
    }

    /// <summary>How many alerts are quarantined, and the latest of them, the last one last.</summary>
    public (int Count, IReadOnlyList<QuarantinedAlert> Latest) Quarantine()
    {
        int count;
        lock (_gate)
            count = _quarantined.Count;
        if (count == 0)
            return (0, []);
        var length = new FileInfo(QuarantinePath).Length;
        return (count, QuarantinedAlert.Read(QuarantinePath, Math.Max(0, length - LatestQuarantined)));
    }

    /// <summary>Null when it is none.</summary>
    public static UInt128? IdOf(string? text) =>
        UInt128.TryParse(text, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out var id)
            ? id : null;

    /// <summary>Drops the older half of the quarantine, counted.</summary>
    private void HalveQuarantine()
    {
        try
        {
            var lines = LogLine.Parsed(
                QuarantinePath, 0, _quarantineLength, QuarantineJson.Default.QuarantineLine).ToList();
            var cut = lines.First(l => l.Next >= _quarantineLength / 2).Next;
            Replace(QuarantinePath, cut, _quarantineLength);
            _quarantine.Dispose();
            (_quarantine, _quarantineLength) = (OpenFile(QuarantinePath), _quarantineLength - cut);
            var dropped = lines.Where(l => l.Next <= cut).ToList();
            lock (_gate)
            {
                foreach (var (line, _) in dropped)
                {
                    if (IdOf(line?.Id) is { } id)
                        _quarantined.Remove(id);
                }
            }
            _meters.QuarantineDropped.Inc(dropped.Count);
            _log.Warn("the quarantine was full; its older half is dropped", ("alerts", dropped.Count));
        }
        catch (FlushException e)
        {
            Fail(e.Message);
        }
        catch (Exception e) when (Disk.Refused(e))
        {
            _log.Often("the quarantine could not be cut", ("reason", e.Message));
        }
    }

    // ---- Reading ----

    /// <summary>All that is flushed now, for questions about the past.</summary>
    public Archive Archive()
    {
        lock (_gate)
            return new Archive([.. _files.Values.Select(f => f with { End = EndOf(f.Number) })], _slices);
    }

    /// <summary>The services of which anything is on disk.</summary>
    public IReadOnlyList<KnownService> Known()
    {
        lock (_gate)
            return [.. _services.Values.Where(t => t.Window.Events.Count > 0)
                .Select(t => new KnownService(t.Service, [.. t.Window.Events]))];
    }

    /// <summary>Completes when there is something flushed after a place.</summary>
    public Task WaitAsync(Cursor after, CancellationToken stop)
    {
        lock (_gate)
            return after.CompareTo(_flushed) < 0 ? Task.CompletedTask : _news.Task.WaitAsync(stop);
    }

    /// <summary>Reads at most so many events from a place up to another, which is flushed.</summary>
    public Chunk Read(Cursor place, Cursor to, int most)
    {
        var events = new List<StatusEvent>();
        while (true)
        {
            var end = place.File == to.File ? to.Offset : EndOf(place.File);
            foreach (var (line, next) in Lines(place.File, place.Offset, end, whole: false))
            {
                if (line?.Time != null && line.ToEvent() is { } e)
                    events.Add(e);
                place = place with { Offset = next };
                if (events.Count == most)
                    return new Chunk(events, place);
            }
            if (place.File >= to.File || NextFile(place.File) is not { } following)
                return new Chunk(events, place with { Offset = end });
            place = new Cursor(following, 0);
        }
    }

    /// <summary>The windows as they were at a place, of the services that are wanted.</summary>
    public Dictionary<ServiceKey, Window> WindowsAt(Cursor place, Func<ServiceKey, bool> wanted)
    {
        var windows = new Dictionary<ServiceKey, Window>();
        foreach (var (line, next) in Lines(place.File, 0, EndOf(place.File), whole: false))
        {
            if (line?.Window is { } head && wanted(head.Key))
                windows[head.Key] = head.ToWindow();
            if (line?.Window != null || line?.Ses != null)
                continue;
            if (next > place.Offset)
                break;
            if (line?.Time != null && line.ToEvent() is { } e && wanted(e.Service))
                windows.Add(e);
        }
        return windows;
    }

    /// <summary>Whether a place is one of this log: in a file, not past its end, between two lines.</summary>
    public bool Holds(Cursor place)
    {
        string path;
        lock (_gate)
        {
            if (!_files.TryGetValue(place.File, out var file) || place.Offset < 0)
                return false;
            path = file.Path;
        }
        if (place.Offset == 0)
            return true;
        if (place.Offset > EndOf(place.File))
            return false;
        using var handle = File.OpenHandle(path, share: FileShare.ReadWrite | FileShare.Delete);
        Span<byte> before = stackalloc byte[1];
        return RandomAccess.Read(handle, before, place.Offset - 1) == 1 && before[0] == (byte)'\n';
    }

    /// <summary>How many events stand between a place and another.</summary>
    public long Count(Cursor from, Cursor to)
    {
        long count = 0;
        for (int? file = from.File; file is { } number && number <= to.File; file = NextFile(number))
        {
            var start = number == from.File ? from.Offset : 0;
            var end = number == to.File ? to.Offset : EndOf(number);
            count += LogLine.Raw(PathOf(number), start, end)
                .Count(l => l.Line.Span.StartsWith(LineScan.Start));
        }
        return count;
    }

    private string PathOf(int file)
    {
        lock (_gate)
            return _files[file].Path;
    }

    private long EndOf(int file)
    {
        lock (_gate)
            return file == _flushed.File ? _flushed.Offset : _files[file].End;
    }

    private int? NextFile(int file)
    {
        lock (_gate)
            return _files.Keys.Where(f => f > file).Select(f => (int?)f).FirstOrDefault();
    }

    /// <summary>A file's lines with the offset after each; null for one that does not parse.</summary>
    private IEnumerable<(LogLine? Line, long Next)> Lines(int file, long from, long to, bool whole)
    {
        var path = PathOf(file);
        foreach (var (line, next) in LogLine.Parsed(path, from, to, LogJson.Default.LogLine))
        {
            if (line == null || (line.Time != null && line.ToEvent() == null))
            {
                // Counted where each line is read once: when the file is opened.
                if (whole)
                    _meters.BrokenLines.Inc();
                _log.Often("a line of the log does not parse; passed over", ("file", path), ("before", next));
            }
            yield return (line, next);
        }
    }

}

/// <summary>Looks through a data directory for what is wrong, whether a SeS is using it or not.</summary>
internal sealed class Inspection(Archive archive, string dir)
{
    /// <summary>Of a file's faults, so many are told.</summary>
    private const int MostFaults = 20;

    private readonly Dictionary<ServiceKey, Window> _windows = [];
    // Of the file's head: the services that have a window there, and before when the others are forgotten.
    private readonly HashSet<ServiceKey> _inHead = [];
    private DateTime _deleted;
    private List<string> _faults = [];

    public long Events { get; private set; }

    public int Services => _windows.Count;

    /// <summary>Each file, what it holds, and what is wrong with it.</summary>
    public IEnumerable<(string Name, string Summary, IReadOnlyList<string> Faults)> CheckFiles()
    {
        foreach (var file in archive.Files)
        {
            _faults = [];
            var summary = CheckLog(file);
            yield return (Path.GetFileName(file.Path), summary, _faults);
        }
        foreach (var (name, check) in new (string, Func<string, string>)[]
            { (EventLog.CursorFile, CheckCursor), (EventLog.QuarantineFile, CheckQuarantine) })
        {
            _faults = [];
            if (File.Exists(Path.Combine(dir, name)))
                yield return (name, check(Path.Combine(dir, name)), _faults);
        }
    }

    private string CheckLog(LogFile file)
    {
        var (events, number, end, isHead) = (0L, 0, 0L, true);
        _inHead.Clear();
        _deleted = default;
        foreach (var (line, next) in LogLine.Parsed(file.Path, 0, file.End, LogJson.Default.LogLine))
        {
            number++;
            if (isHead && line != null && line.Ses == null && line.Window == null)
            {
                isHead = false;
                EndHead();
            }
            CheckLine(file, line, number);
            events += line?.Time != null ? 1 : 0;
            line?.AddTo(_windows);
            end = next;
        }
        if (isHead)
            EndHead();
        // A SeS that runs may be about to end the newest file's last line.
        if (end != file.End && file != archive.Files[^1])
            Fault("its last line is cut off");
        Events += events;
        CheckIndex(file);
        return $"{events} events, {file.End} bytes";
    }

    private void CheckLine(LogFile file, LogLine? line, int number)
    {
        if (line == null || (line.Time != null && line.ToEvent() == null))
            Fault($"line {number} does not parse");
        else if (number == 1 ? line.Ses == null : line.Ses != null)
            Fault($"line {number}: the format's version stands in the first line, and only there");
        else if (line.Ses > LogLine.FormatVersion)
            Fault($"it has format {line.Ses}, which a newer SeS wrote");
        else if (line.Window != null)
            Compare(file, line.Window, number);
        if (Rfc3339.TryParse(line?.Deleted, out var deleted))
            _deleted = deleted;
    }

    private void Fault(string text)
    {
        if (_faults.Count < MostFaults)
            _faults.Add(text);
    }

    /// <summary>A file begins with the windows as the one before it left them.</summary>
    private void Compare(LogFile file, WindowLine line, int number)
    {
        _inHead.Add(line.Key);
        if (file == archive.Files[0])
            return;
        var before = _windows.GetValueOrDefault(line.Key)?.Events ?? [];
        if (!before.Select(e => (e.Time, e.Status)).SequenceEqual(
            line.ToWindow().Events.Select(e => (e.Time, e.Status))))
            Fault($"line {number}: the window of {line.Key} is not as the file before left it");
    }

    /// <summary>A service has no window where it was last heard before what retention has deleted.</summary>
    private void EndHead()
    {
        foreach (var (service, window) in _windows.Where(w => !_inHead.Contains(w.Key)).ToList())
        {
            if (window.Events.Any(e => e.Received >= _deleted))
                Fault($"it has no window of {service}");
            _windows.Remove(service);
        }
    }

    private void CheckIndex(LogFile file)
    {
        if (FileIndex.IsWrong(file))
            Fault($"{Path.GetFileName(file.IndexPath)} says what the file does not; delete it, so that it is "
                + "made again");
    }

    private string CheckCursor(string path)
    {
        if (CursorBody.Parse(File.ReadAllBytes(path)) is { } cursor)
            return $"file {cursor.File}, byte {cursor.Offset}";
        Fault("it does not parse; Onix will be compared with all that is kept");
        return "no place";
    }

    private string CheckQuarantine(string path)
    {
        var number = 0;
        foreach (var (line, _) in LogLine.Parsed(
            path, 0, new FileInfo(path).Length, QuarantineJson.Default.QuarantineLine))
        {
            number++;
            if (line == null)
                Fault($"line {number} does not parse");
        }
        return $"{number} lines";
    }
}

// ================================ 8. History =================================
//
// What a service's marks, in order of time, say of a range of time. "up" and "down" are what counts; any
// other status leaves its service as it was. Before the first of them nothing is known, which is neither up
// nor down. Ranges take in their beginning and not their end, so that those side by side share nothing.

/// <summary>What is known of one service over a range.</summary>
/// <param name="Availability">In percent of the time that is known; null when nothing is.</param>
/// <param name="Longest">Of the outages, as far as they lie in the range.</param>
/// <param name="IsOpen">It is down at the end of the range.</param>
internal readonly record struct Figures(
    double? Availability, TimeSpan Up, TimeSpan Down, int Outages, TimeSpan Longest, bool IsOpen)
{
    /// <summary>Null: there is no outage.</summary>
    public TimeSpan? Mean => Outages == 0 ? null : Down / Outages;

    /// <summary>Time up for each outage, which is the mean time between failures.</summary>
    public TimeSpan? MeanBetween => Outages == 0 ? null : Up / Outages;
}

/// <summary>A time that a service was down, and is no more.</summary>
internal readonly record struct Outage(int Service, Mark Start, DateTime End);

/// <summary>How a service fared in an interval; of several the greatest, which is the worst.</summary>
internal enum Condition { Nothing, Up, Unknown, Other, Down }

/// <summary>Adds up one service over a range.</summary>
/// <param name="from">In ticks.</param>
/// <param name="to">In ticks, not in the future: nobody knows yet what will have been.</param>
/// <param name="intervals">How many equal parts of the range are looked at by themselves; 0: none.</param>
internal sealed class Tally(long from, long to, int intervals = 0)
{
    private readonly Condition[] _strip = new Condition[intervals];
    private Condition _shown = Condition.Unknown;
    private bool? _isUp;
    private int _before;
    private bool _wasUp;
    private long _since, _shownSince;
    private TimeSpan _up, _down, _longest;
    private int _outages;
    private Mark _outage;

    /// <summary>The worst of each interval.</summary>
    public IReadOnlyList<Condition> Strip => _strip;

    /// <summary>
    /// What was said before the range fills a window, and none of it is "up": what is older may yet tell how
    /// the range began, and since when.
    /// </summary>
    public bool IsCut => _before >= Window.Size && !_wasUp;

    /// <summary>Takes the next mark; returns the outage that it ends, if it touches the range.</summary>
    public Outage? Add(int service, in Mark mark)
    {
        if (mark.Ticks <= from)
            (_before, _wasUp) = (_before + 1, _wasUp || mark.Status == "up");
        if (mark.Ticks >= to)
            return null;
        Show(mark.Status switch { "up" => Condition.Up, "down" => Condition.Down, _ => Condition.Other },
            mark.Ticks);
        if (mark.Status is not ("up" or "down") || _isUp == (mark.Status == "up"))
            return null;
        var ended = _isUp == false && mark.Ticks > from
            ? new Outage(service, _outage, mark.Time) : (Outage?)null;
        Count(mark.Ticks);
        _isUp = mark.Status == "up";
        if (_isUp == false)
            _outage = mark;
        return ended;
    }

    /// <summary>After the last mark: what it all comes to.</summary>
    public Figures Finish()
    {
        Show(_shown, to);
        Count(to);
        var known = _up + _down;
        return new Figures(known > TimeSpan.Zero ? 100.0 * _up.Ticks / known.Ticks : null,
            _up, _down, _outages, _longest, IsOpen: _isUp == false && to > from);
    }

    /// <summary>Adds what has passed since the last change between up and down.</summary>
    private void Count(long ticks)
    {
        var passed = new TimeSpan(Math.Max(0, ticks - Math.Max(_since, from)));
        _since = ticks;
        if (_isUp == true)
            _up += passed;
        if (_isUp != false || passed == TimeSpan.Zero)
            return;
        _down += passed;
        _outages++;
        _longest = passed > _longest ? passed : _longest;
    }

    /// <summary>Marks the intervals that the condition until now has touched.</summary>
    private void Show(Condition next, long ticks)
    {
        var since = Math.Max(_shownSince, from);
        if (ticks > since && intervals > 0)
        {
            var last = IntervalOf(ticks - 1);
            for (var i = IntervalOf(since); i <= last; i++)
                _strip[i] = _strip[i] > _shown ? _strip[i] : _shown;
        }
        (_shown, _shownSince) = (next, ticks);
    }

    private int IntervalOf(long ticks) => (int)((Int128)(ticks - from) * intervals / (to - from));
}

/// <summary>
/// Follows how many locations are up, and for how long fewer than a threshold were, as Onix's report
/// ox_ses_events_threshold does where it is right.
/// </summary>
internal sealed class Threshold(int threshold)
{
    private readonly HashSet<int> _up = [];
    private long? _under;

    /// <summary>Takes the next change of all services together, in order of time.</summary>
    /// <returns>
    /// How many are up after it; and, when it makes them enough again, how long they had been too few: from
    /// the first "down" after which they were.
    /// </returns>
    public (int Up, TimeSpan Under) Add(in ServiceMark change)
    {
        var under = TimeSpan.Zero;
        if (change.Mark.Status == "up")
            _up.Add(change.Service);
        if (change.Mark.Status == "down")
        {
            _up.Remove(change.Service);
            if (_up.Count < threshold)
                _under ??= change.Mark.Ticks;
        }
        if (_up.Count >= threshold && _under is { } since)
            (under, _under) = (new TimeSpan(change.Mark.Ticks - since), null);
        return (_up.Count, under);
    }
}

// ================================= 9. Asking =================================
//
// Questions about the past and their answers, to programs by HTTP and on the command line alike. A question
// is parsed from parameters, each of which may stand once; an answer is rows, told as JSON, CSV (RFC 4180)
// or, on a terminal, a table. It is written a part at a time: memory does not grow with the answer.

/// <summary>Is thrown when a question cannot be understood; the message names the parameter.</summary>
internal sealed class QuestionException(string message) : Exception(message);

internal enum Subject { Status, History, Report }

internal enum OutputFormat { Json, Csv, Table }

/// <summary>Which services are meant; null: whatever it is.</summary>
internal sealed record ServiceFilter(
    string? Partition, string? Platform, string? Service, string? Facet, string? Location)
{
    public bool Takes(ServiceKey service) =>
        (Partition ?? service.Partition) == service.Partition
        && (Platform ?? service.Platform) == service.Platform
        && (Service ?? service.Service) == service.Service
        && (Facet ?? service.Facet) == service.Facet
        && (Location ?? service.Location) == service.Location;
}

/// <summary>A question, understood.</summary>
/// <param name="From">Null: from the first word on.</param>
/// <param name="To">Null: up to the last word; a report, up to now.</param>
/// <param name="Threshold">Only of a report.</param>
/// <param name="Limit">Of a history's events; null: all.</param>
/// <param name="After">Where in a history the last answer ended.</param>
internal sealed record Question(
    Subject Subject, ServiceFilter Filter, DateTime? From, DateTime? To, int? Threshold, int? Limit,
    (ServiceKey Service, Mark Mark)? After, OutputFormat? Format)
{
    private static readonly string[]
        Common = ["platform", "service", "facet", "location", "format"],
        OfHistory = [.. Common, "from", "to", "limit", "cursor"],
        OfReport = [.. Common, "from", "to", "threshold"];

    /// <summary>Understands parameters; an empty one, but for a location, is as if absent.</summary>
    /// <exception cref="QuestionException">One is unknown, stands twice, or cannot be used.</exception>
    public static Question Parse(Subject subject, string? partition,
        IEnumerable<KeyValuePair<string, string>> parameters, DateTime now)
    {
        var known = subject switch
        {
            Subject.Status => Common,
            Subject.History => OfHistory,
            _ => OfReport,
        };
        var given = Once(parameters, known, $"a {subject.ToString().ToLowerInvariant()}");
        var question = new Question(subject,
            new ServiceFilter(
                partition, given.GetValueOrDefault("platform"), given.GetValueOrDefault("service"),
                given.GetValueOrDefault("facet"), given.GetValueOrDefault("location")),
            Parse(given, "from", v => ParseTime(v, now), TimeAllowed),
            Parse(given, "to", v => ParseTime(v, now), TimeAllowed),
            Parse(given, "threshold", ParseCount, "a whole number from 1"),
            Parse(given, "limit", ParseCount, "a whole number from 1"),
            Parse(given, "cursor", ParseCursor, "what an answer gave as next"),
            Parse(given, "format", v => v switch
            {
                "json" => OutputFormat.Json,
                "csv" => OutputFormat.Csv,
                _ => (OutputFormat?)null,
            }, "json, csv"));
        if (question.From >= question.To)
            throw new QuestionException("from: it is not before to");
        return question;
    }

    /// <summary>The parameters that are given, by name.</summary>
    /// <param name="of">What is asked, with its article.</param>
    /// <exception cref="QuestionException">One is unknown, or stands twice.</exception>
    public static Dictionary<string, string> Once(
        IEnumerable<KeyValuePair<string, string>> parameters, IReadOnlyCollection<string> known, string of)
    {
        var given = new Dictionary<string, string>();
        foreach (var (name, value) in parameters)
        {
            if (!known.Contains(name))
                throw new QuestionException(
                    $"{Shown(name)}: it is no parameter of {of}; there are {string.Join(", ", known)}");
            // Nothing for a location means that there is none.
            if ((value != "" || name == "location") && !given.TryAdd(name, value))
                throw new QuestionException($"{name}: it stands twice");
        }
        return given;
    }

    private const string TimeAllowed =
        "RFC 3339 such as 2026-11-22T11:34:00Z, or so long ago, such as -24h, -7d or -90m";

    private static T? Parse<T>(
        Dictionary<string, string> given, string name, Func<string, T?> parse, string allowed)
        where T : struct => !given.TryGetValue(name, out var value) ? null
            : parse(value) ?? throw new QuestionException(
                $"{name}: '{Shown(value)}' is not usable; allowed: {allowed}");

    /// <summary>One line of it, and not all.</summary>
    private static string Shown(string value) =>
        string.Concat((value.Length > 100 ? value[..100] + "..." : value)
            .Select(c => char.IsControl(c) || char.IsSurrogate(c) ? '\ufffd' : c));

    /// <summary>In UTC; a plus that a query lost to a space is taken for one.</summary>
    public static DateTime? ParseTime(string text, DateTime now)
    {
        if (Rfc3339.TryParse(text.Replace(' ', '+'), out var time))
            return time;
        if (text == "now")
            return now;
        var unit = text[^1] switch
        {
            's' => TimeSpan.TicksPerSecond,
            'm' => TimeSpan.TicksPerMinute,
            'h' => TimeSpan.TicksPerHour,
            'd' => TimeSpan.TicksPerDay,
            'w' => 7 * TimeSpan.TicksPerDay,
            _ => 0,
        };
        return unit > 0 && text[0] == '-' && text.Length > 2
            && int.TryParse(
                text.AsSpan(1..^1), NumberStyles.None, CultureInfo.InvariantCulture, out var count)
            && count < now.Ticks / unit ? now.AddTicks(-count * unit) : null;
    }

    private static int? ParseCount(string text) =>
        int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out var count) && count > 0
            ? count : null;

    /// <summary>What <see cref="ParseCursor"/> takes.</summary>
    public static string Cursor(ServiceKey service, Mark mark) => Base64Url.EncodeToString(
        Encoding.UTF8.GetBytes(string.Join('\0',
            mark.Ticks.ToString(CultureInfo.InvariantCulture), mark.Status,
            service.Partition, service.Platform, service.Service, service.Facet, service.Location)));

    private static (ServiceKey, Mark)? ParseCursor(string text)
    {
        if (!Base64Url.IsValid(text))
            return null;
        var parts = Encoding.UTF8.GetString(Base64Url.DecodeFromChars(text)).Split('\0');
        return parts.Length == 7
            && long.TryParse(parts[0], NumberStyles.None, CultureInfo.InvariantCulture, out var ticks)
            && ticks <= DateTime.MaxValue.Ticks
            ? (new ServiceKey(parts[2], parts[3], parts[4], parts[5], parts[6]),
                new Mark(ticks, parts[1], default)) : null;
    }
}

/// <summary>Writes the body of an answer, which is taken part by part as it grows.</summary>
internal abstract class BodyWriter
{
    /// <summary>As much of an answer is held.</summary>
    public const int Size = 64 * 1024;

    protected ArrayBufferWriter<byte> Buffer { get; } = new(Size + (8 * 1024));

    public bool IsFull => Buffer.WrittenCount >= Size;

    /// <summary>What was written so far; valid until the next is written.</summary>
    public ReadOnlyMemory<byte> Take()
    {
        var part = Buffer.WrittenMemory;
        Buffer.ResetWrittenCount();
        return part;
    }

    protected void Put(string text) => Encoding.UTF8.GetBytes(text, Buffer);
}

/// <summary>Writes rows in a format.</summary>
internal sealed class RowWriter : BodyWriter
{
    /// <summary>Rows of a table that are looked at before its columns have their width.</summary>
    private const int TableRows = 1000;

    // Answers are read by people too: only what JSON demands is escaped.
    private static readonly JsonWriterOptions Relaxed =
        new() { Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    private readonly Utf8JsonWriter? _json;
    private readonly List<string[]>? _table;
    private int[]? _widths;
    private int _lists;

    public RowWriter(OutputFormat format)
    {
        if (format == OutputFormat.Json)
            _json = new Utf8JsonWriter(Buffer, Relaxed);
        if (format == OutputFormat.Table)
            _table = [];
        _json?.WriteStartObject();
    }

    public void BeginList(string name, IReadOnlyList<string> columns)
    {
        _json?.WriteStartArray(name);
        if (_json != null)
            return;
        if (_lists++ > 0)
            Put("\n");
        Row(columns, columns);
    }

    /// <summary>Texts, numbers (double or int), yes or no (bool), times (DateTime), or nothing.</summary>
    public void Row(IReadOnlyList<string> columns, IReadOnlyList<object?> cells)
    {
        if (_table != null)
        {
            _table.Add([.. cells.Select(c => Plain(Text(c)))]);
            if (_table.Count == TableRows)
                PutTable();
            return;
        }
        if (_json == null)
        {
            Put(string.Join(',', cells.Select(Csv)) + "\r\n");
            return;
        }
        _json.WriteStartObject();
        for (var i = 0; i < cells.Count; i++)
            Property(columns[i], cells[i]);
        _json.WriteEndObject();
        _json.Flush();
    }

    public void EndList()
    {
        _json?.WriteEndArray();
        PutTable();
        _widths = null;
    }

    /// <summary>Only in JSON: CSV has no place for it.</summary>
    public void Property(string name, object? value)
    {
        _json?.WritePropertyName(name);
        switch (value)
        {
            case null:
                _json?.WriteNullValue();
                break;
            case double number:
                _json?.WriteNumberValue(number);
                break;
            case int number:
                _json?.WriteNumberValue(number);
                break;
            case bool flag:
                _json?.WriteBooleanValue(flag);
                break;
            default:
                _json?.WriteStringValue(Text(value));
                break;
        }
    }

    public ReadOnlyMemory<byte> End()
    {
        if (_json != null)
        {
            _json.WriteEndObject();
            _json.Flush();
            Put("\n");
        }
        return Take();
    }

    public static string Text(object? value) => value switch
    {
        DateTime time => Rfc3339.Format(time),
        bool flag => flag ? "true" : "false",
        _ => Convert.ToString(value, CultureInfo.InvariantCulture) ?? "",
    };

    /// <summary>RFC 4180: quoted where it must be.</summary>
    private static string Csv(object? value)
    {
        var text = Text(value);
        return text.AsSpan().ContainsAny("\",\r\n")
            ? $"\"{text.Replace("\"", "\"\"", StringComparison.Ordinal)}\"" : text;
    }

    /// <summary>Labels come from strangers, and a terminal obeys control characters.</summary>
    private static string Plain(string text) => string.Concat(text.Select(c =>
        char.IsControl(c) || char.GetUnicodeCategory(c) == UnicodeCategory.Format ? '\ufffd' : c));

    /// <summary>Columns are as wide as their first rows are.</summary>
    private void PutTable()
    {
        if (_table is not { Count: > 0 } rows)
            return;
        _widths ??= [.. Enumerable.Range(0, rows[0].Length).Select(i => rows.Max(r => r[i].Length))];
        foreach (var row in rows)
            Put(string.Join("  ", row.Select((c, i) => c.PadRight(_widths[i]))).TrimEnd() + "\n");
        rows.Clear();
    }
}

/// <summary>Answers questions from the log as it was when it was made.</summary>
/// <param name="known">All services, with their last events in order of time.</param>
internal sealed class Answers(
    Archive archive, IReadOnlyList<KnownService> known, DateTime now)
{
    private static readonly string[]
        Names = ["platform", "service", "facet", "location"],
        StatusColumns = [.. Names, "status", "since", "time", "description"],
        EventColumns = [.. Names, "status", "time", "description", "received"],
        ReportColumns = [.. Names, "availability", "up_seconds", "down_seconds", "outages", "longest_seconds",
            "mean_seconds", "mean_between_seconds", "open"],
        ThresholdColumns = [.. Names, "status", "time", "up", "under_threshold_seconds"];

    /// <summary>The order of services in answers.</summary>
    public static readonly Comparer<ServiceKey> ByName = Comparer<ServiceKey>.Create((a, b) =>
        string.CompareOrdinal(a.Partition, b.Partition) is var p and not 0 ? p
        : string.CompareOrdinal(a.Platform, b.Platform) is var f and not 0 ? f
        : string.CompareOrdinal(a.Service, b.Service) is var s and not 0 ? s
        : string.CompareOrdinal(a.Facet, b.Facet) is var c and not 0 ? c
        : string.CompareOrdinal(a.Location, b.Location));

    public Archive Archive => archive;

    public IReadOnlyList<KnownService> Known => known;

    public DateTime Now => now;

    /// <summary>Where a history goes on that was told up to its limit; null: there is no more.</summary>
    public string? Next { get; private set; }

    /// <summary>The services that a filter takes, in the order of their names.</summary>
    public List<ServiceKey> Services(ServiceFilter filter) =>
        [.. known.Select(k => k.Service).Where(filter.Takes).Order(ByName)];

    /// <summary>The answer in parts, each valid until the next is asked for.</summary>
    /// <exception cref="IOException">The log cannot be read.</exception>
    public IEnumerable<ReadOnlyMemory<byte>> Write(Question question, OutputFormat format)
    {
        var writer = new RowWriter(format);
        var lists = question.Subject switch
        {
            Subject.Status => List(writer, "services", Columns(question, StatusColumns), Status(question)),
            Subject.History => History(writer, question),
            _ when question.Threshold == null || format != OutputFormat.Csv =>
                List(writer, "services", Columns(question, ReportColumns), Report(question)),
            _ => [],
        };
        foreach (var part in lists)
            yield return part;
        if (question.Threshold is { } threshold)
        {
            foreach (var part in List(writer, "events", Columns(question, ThresholdColumns),
                Under(question, new Threshold(threshold))))
                yield return part;
        }
        yield return writer.End();
    }

    private static IEnumerable<ReadOnlyMemory<byte>> List(
        RowWriter writer, string name, IReadOnlyList<string> columns, IEnumerable<object?[]> rows)
    {
        writer.BeginList(name, columns);
        foreach (var row in rows)
        {
            writer.Row(columns, row);
            if (writer.IsFull)
                yield return writer.Take();
        }
        writer.EndList();
    }

    /// <summary>The partition is told where the question does not name it.</summary>
    private static string[] Columns(Question question, string[] columns) =>
        question.Filter.Partition == null ? ["partition", .. columns] : columns;

    private static object?[] Row(Question question, ServiceKey service, params object?[] cells)
    {
        object?[] row = [service.Platform, service.Service, service.Facet, service.Location, .. cells];
        return question.Filter.Partition == null ? [service.Partition, .. row] : row;
    }

    private IEnumerable<object?[]> Status(Question question)
    {
        var wanted = known.Where(k => question.Filter.Takes(k.Service))
            .OrderBy(k => k.Service, ByName).ToList();
        foreach (var (one, since) in wanted.Zip(Since(wanted)))
        {
            var e = one.LastEvent;
            yield return Row(question, one.Service, e.Status, since, e.Time, e.Description);
        }
    }

    /// <summary>When each service's last run of one status began.</summary>
    public IReadOnlyList<DateTime> Since(IReadOnlyList<KnownService> of)
    {
        var since = new DateTime[of.Count];
        var older = new List<int>();
        for (var i = 0; i < of.Count; i++)
        {
            var (last, first) = (of[i].Last, of[i].Last.Count - 1);
            while (first > 0 && last[first - 1].Status == last[^1].Status)
                first--;
            since[i] = last[first].Time;
            if (first == 0 && last.Count == Window.Size)
                older.Add(i);
        }
        // The others' began before all that is in memory.
        var status = new string?[older.Count];
        var services = older.Select(i => of[i].Service).ToList();
        foreach (var (number, mark) in archive.Marks(services, 0, () => long.MaxValue))
        {
            if (status[number] != mark.Status)
                since[older[number]] = mark.Time;
            status[number] = mark.Status;
        }
        return since;
    }

    private IEnumerable<ReadOnlyMemory<byte>> History(RowWriter writer, Question question)
    {
        var columns = Columns(question, EventColumns);
        var services = Services(question.Filter);
        var left = question.Limit ?? int.MaxValue;
        (ServiceKey Service, Mark Mark)? next = null;
        writer.BeginList("events", columns);
        var (from, to) = (question.From?.Ticks ?? 0, question.To?.Ticks ?? long.MaxValue);
        var changes = archive.Changes(services, from, to, After(services, question.After),
            (int)Math.Min(Archive.PageSize, left + 1L));
        foreach (var (change, e) in archive.Events(changes, services))
        {
            if (left-- == 0)
                break;
            next = left == 0 ? (services[change.Service], change.Mark) : null;
            writer.Row(columns, Row(question, e.Service, e.Status, e.Time, e.Description, e.Received));
            if (writer.IsFull)
                yield return writer.Take();
        }
        writer.EndList();
        Next = left < 0 && next is { } place ? Question.Cursor(place.Service, place.Mark) : null;
        writer.Property("next", Next);
    }

    /// <summary>A cursor's place among the services there are now: new ones may have come between.</summary>
    private static ServiceMark? After(List<ServiceKey> services, (ServiceKey Service, Mark Mark)? after) =>
        after is not { } place ? null
        : new ServiceMark(services.BinarySearch(place.Service, ByName) is var at && at >= 0 ? at : ~at - 1,
            place.Mark);

    /// <summary>The latest changes of a service, from a time on, the last one last.</summary>
    public IEnumerable<StatusEvent> Latest(ServiceKey service, DateTime from, int most)
    {
        var latest = new Queue<ServiceMark>();
        foreach (var change in archive.Changes([service], from.Ticks, long.MaxValue))
        {
            latest.Enqueue(change);
            if (latest.Count > most)
                latest.Dequeue();
        }
        return archive.Events(latest, [service]).Select(e => e.Event);
    }

    private IEnumerable<object?[]> Report(Question question)
    {
        var services = Services(question.Filter);
        var (tallies, _) = Tallies(services, question.From, question.To, 0, 0);
        for (var i = 0; i < services.Count; i++)
        {
            var f = tallies[i].Finish();
            yield return Row(question, services[i],
                Rounded(f), f.Up.TotalSeconds,
                f.Down.TotalSeconds, f.Outages, f.Longest.TotalSeconds, f.Mean?.TotalSeconds,
                f.MeanBetween?.TotalSeconds, f.IsOpen);
        }
    }

    /// <summary>100 only without an outage.</summary>
    private static double? Rounded(in Figures figures) => figures.Availability is not { } share ? null
        : Math.Min(Math.Round(share, 6), figures.Down > TimeSpan.Zero ? 99.999999 : 100);

    /// <summary>Adds up services over a range, up to now at most.</summary>
    /// <param name="most">The latest so many outages that ended are told.</param>
    public (IReadOnlyList<Tally> Tallies, IReadOnlyList<Outage> Outages) Tallies(
        IReadOnlyList<ServiceKey> services, DateTime? from, DateTime? to, int intervals, int most)
    {
        var end = to is { } given && given < now ? given : now;
        var start = from ?? DateTime.MinValue;
        var tallies = new Tally[services.Count];
        var outages = new PriorityQueue<Outage, long>();
        int[] all = [.. Enumerable.Range(0, services.Count)];
        AddUp(all, start.Ticks);
        // How these fared when the range began was said before the file that it begins in.
        AddUp([.. all.Where(i => tallies[i].IsCut)], 0);
        return (tallies, [.. outages.UnorderedItems.Select(o => o.Element).OrderByDescending(o => o.End)]);

        void AddUp(int[] numbers, long since)
        {
            if (numbers.Length == 0)
                return;
            foreach (var i in numbers)
                tallies[i] = new Tally(start.Ticks, end.Ticks, intervals);
            List<ServiceKey> these = [.. numbers.Select(i => services[i])];
            foreach (var (number, mark) in archive.Marks(these, since, () => end.Ticks))
            {
                var tally = tallies[numbers[number]];
                if (tally.Add(numbers[number], mark) is not { } outage || most == 0
                    || (since > 0 && tally.IsCut))
                    continue;
                if (outages.Count < most)
                    outages.Enqueue(outage, outage.End.Ticks);
                else
                    outages.EnqueueDequeue(outage, outage.End.Ticks);
            }
        }
    }

    private IEnumerable<object?[]> Under(Question question, Threshold threshold)
    {
        var services = Services(question.Filter);
        var from = question.From?.Ticks ?? 0;
        var to = Math.Min(question.To?.Ticks ?? long.MaxValue, now.Ticks);
        // From the first word on, whatever the range: how many are up follows from all that was.
        foreach (var change in archive.Changes(services, 0, to))
        {
            var (up, under) = threshold.Add(change);
            if (change.Mark.Ticks >= from)
                yield return Row(question, services[change.Service], change.Mark.Status,
                    change.Mark.Time, up, under.TotalSeconds);
        }
    }
}

// ================================ 9b. Database ===============================
//
// SQLite, through its own C interface: connections, statements that are prepared once and bound by place,
// and errors by their code. Only the store uses it. In the native binary SQLite is linked in; else it is a
// package's library. Before 3.51.3 a database in WAL mode can be damaged when one connection moves the
// log into the database while another commits (https://sqlite.org/wal.html, "WAL-reset bug").

/// <summary>SQLite refused; the message names what was done, the code and SQLite's own words.</summary>
/// <param name="code">SQLite's extended result code.</param>
/// <param name="errno">Of the last call to the system that failed, 0 if none did.</param>
internal sealed class SqliteException(int code, int errno, string message) : Exception(message)
{
    // From errno(3) and sqlite3.h.
    private const int TooLarge = 27, NoSpace = 28, QuotaExceeded = 122;
    private const int Busy = 5, Full = 13, NotADatabase = 26, FlushFailed = 1034, FolderFlushFailed = 1290;

    public int Code => code;

    /// <summary>There is no space, whichever way that was noticed; it may go on when there is.</summary>
    public bool IsFull => code == Full || errno is TooLarge or NoSpace or QuotaExceeded;

    public const int Corrupt = 11;

    /// <summary>No code of SQLite's: its files are not those that it opened.</summary>
    public const int FilesChanged = -1;

    /// <summary>What is on disk cannot be trusted: the process must end.</summary>
    public bool IsFlush => code is FlushFailed or FolderFlushFailed or FilesChanged;

    /// <summary>Another process holds the lock for writing.</summary>
    public bool IsBusy => (code & 0xFF) == Busy;

    /// <summary>The file is damaged.</summary>
    public bool IsDamage => (code & 0xFF) is Corrupt or NotADatabase;
}

/// <summary>One connection; used by one thread at a time.</summary>
internal sealed class SqliteConnection : IDisposable
{
    /// <summary>The first without the fault named above.</summary>
    private const int OldestVersion = 3_051_003;

    private static readonly TimeSpan LockTime = TimeSpan.FromSeconds(5);

    private readonly sqlite3 _connection;
    private readonly List<SqliteStatement> _statements = [];

    static SqliteConnection() => raw.SetProvider(new SQLite3Provider_e_sqlite3());

    /// <param name="cache">In KiB.</param>
    /// <exception cref="SqliteException">It cannot be opened, or SQLite is too old.</exception>
    public SqliteConnection(string path, bool isReadOnly, int cache)
    {
        if (raw.sqlite3_libversion_number() < OldestVersion)
            throw new SqliteException(
                0, 0, $"SQLite {Version} can damage a database: 3.51.3 or later is needed");
        var flags = isReadOnly ? raw.SQLITE_OPEN_READONLY
            : raw.SQLITE_OPEN_READWRITE | raw.SQLITE_OPEN_CREATE;
        var code = raw.sqlite3_open_v2(path, out _connection, flags | raw.SQLITE_OPEN_NOMUTEX, null);
        Check(code, $"open {path}");
        _ = raw.sqlite3_extended_result_codes(_connection, 1);
        _ = raw.sqlite3_busy_timeout(_connection, (int)LockTime.TotalMilliseconds);
        Execute($"""
            PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0;
            PRAGMA temp_store = FILE; PRAGMA cache_size = -{cache};
            """);
    }

    public static string Version => raw.sqlite3_libversion().utf8_to_string();

    internal sqlite3 Handle => _connection;

    /// <summary>How many rows the last statement inserted, updated or deleted.</summary>
    public int Changes => raw.sqlite3_changes(_connection);

    /// <summary>Runs statements that give no rows.</summary>
    public void Execute(string sql) => Check(raw.sqlite3_exec(_connection, sql), sql);

    /// <summary>Prepares a statement that lives as long as the connection.</summary>
    public SqliteStatement Prepare(string sql)
    {
        var statement = new SqliteStatement(this, sql);
        _statements.Add(statement);
        return statement;
    }

    /// <summary>A statement to be used once, and disposed.</summary>
    public SqliteStatement Query(string sql) => new(this, sql);

    /// <summary>The first column of the first row, as a number; null where there is none.</summary>
    public long? Number(string sql)
    {
        using var statement = new SqliteStatement(this, sql);
        return statement.Number();
    }

    /// <summary>
    /// Moves committed pages from the log into the database, as far as no reader needs them there.
    /// </summary>
    /// <returns>Pages in the log, and how many of them were moved.</returns>
    public (int Logged, int Moved) Checkpoint()
    {
        var code = raw.sqlite3_wal_checkpoint_v2(_connection, "main", raw.SQLITE_CHECKPOINT_PASSIVE,
            out var logged, out var moved);
        // Busy: another connection checkpoints.
        if ((code & 0xFF) != raw.SQLITE_BUSY)
            Check(code, "checkpoint");
        return (logged, moved);
    }

    /// <exception cref="SqliteException">The code is not SQLITE_OK.</exception>
    internal void Check(int code, string what)
    {
        if (code == raw.SQLITE_OK)
            return;
        var errno = Sqlite.SystemErrno(_connection.DangerousGetHandle());
        throw new SqliteException(code, errno,
            $"{raw.sqlite3_errmsg(_connection).utf8_to_string()} (SQLite's code {code}, errno {errno}): "
            + what);
    }

    public void Dispose()
    {
        foreach (var statement in _statements)
            statement.Dispose();
        _connection.Dispose();
    }
}

/// <summary>A prepared statement. Binding its first parameter begins it anew.</summary>
internal sealed class SqliteStatement : IDisposable
{
    private readonly SqliteConnection _database;
    private readonly sqlite3_stmt _statement;
    private readonly nint _handle;
    private readonly string _sql;

    public SqliteStatement(SqliteConnection database, string sql)
    {
        (_database, _sql) = (database, sql);
        database.Check(raw.sqlite3_prepare_v3(
            database.Handle, sql, raw.SQLITE_PREPARE_PERSISTENT, out _statement), sql);
        _handle = _statement.DangerousGetHandle();
    }

    public SqliteStatement Bind(int place, long value)
    {
        Begin(place);
        _database.Check(raw.sqlite3_bind_int64(_statement, place, value), _sql);
        return this;
    }

    public SqliteStatement Bind(int place, long? value) =>
        value is { } number ? Bind(place, number) : BindNull(place);

    public SqliteStatement Bind(int place, string? text)
    {
        if (text == null)
            return BindNull(place);
        Begin(place);
        _database.Check(raw.sqlite3_bind_text(_statement, place, text), _sql);
        return this;
    }

    public SqliteStatement Bind(int place, ReadOnlySpan<byte> bytes)
    {
        Begin(place);
        _database.Check(raw.sqlite3_bind_blob(_statement, place, bytes), _sql);
        return this;
    }

    private SqliteStatement BindNull(int place)
    {
        Begin(place);
        _database.Check(raw.sqlite3_bind_null(_statement, place), _sql);
        return this;
    }

    private void Begin(int place)
    {
        if (place == 1)
            Reset();
    }

    /// <summary>Goes to the next row; false, and begun anew, when there is none.</summary>
    public bool Step()
    {
        var code = raw.sqlite3_step(_statement);
        if (code == raw.SQLITE_ROW)
            return true;
        Reset();
        if (code != raw.SQLITE_DONE)
            _database.Check(code, _sql);
        return false;
    }

    /// <summary>Runs to its end; rows are passed over.</summary>
    public void Run()
    {
        while (Step())
        {
        }
    }

    /// <summary>The first column of the first row, as a number; null where there is none.</summary>
    public long? Number()
    {
        var number = Step() ? NumberOrNull(0) : null;
        Reset();
        return number;
    }

    /// <summary>The first column of the first row, as text; null where there is none.</summary>
    public string? FirstText()
    {
        var text = Step() ? TextOrNull(0) : null;
        Reset();
        return text;
    }

    public long Number(int column) => Sqlite.ColumnInt64(_handle, column);

    public long? NumberOrNull(int column) =>
        Sqlite.ColumnType(_handle, column) == raw.SQLITE_NULL ? null : Sqlite.ColumnInt64(_handle, column);

    public string Text(int column) => raw.sqlite3_column_text(_statement, column).utf8_to_string() ?? "";

    public string? TextOrNull(int column) => raw.sqlite3_column_text(_statement, column).utf8_to_string();

    /// <summary>Valid until the next step.</summary>
    public ReadOnlySpan<byte> Bytes(int column) => raw.sqlite3_column_blob(_statement, column);

    /// <summary>Ends a query before its last row; no transaction may end with one open.</summary>
    public void Reset() => _ = raw.sqlite3_reset(_statement);

    public void Dispose() => _statement.Dispose();
}

/// <summary>
/// What the hot passes over rows call for each column (a third of the time of the package's own way), and
/// what the package lacks.
/// </summary>
internal static unsafe partial class Sqlite
{
    [LibraryImport("e_sqlite3", EntryPoint = "sqlite3_column_int64")]
    [SuppressGCTransition]
    public static partial long ColumnInt64(nint statement, int column);

    [LibraryImport("e_sqlite3", EntryPoint = "sqlite3_column_type")]
    [SuppressGCTransition]
    public static partial int ColumnType(nint statement, int column);

    /// <summary>Replaces SQLite's own checkpoints; the hook is called after each commit.</summary>
    [LibraryImport("e_sqlite3", EntryPoint = "sqlite3_wal_hook")]
    public static partial nint WalHook(
        nint connection, delegate* unmanaged[Cdecl]<nint, nint, byte*, int, int> hook, nint context);

    [LibraryImport("e_sqlite3", EntryPoint = "sqlite3_system_errno")]
    public static partial int SystemErrno(nint connection);
}

// ================================= 9c. Store =================================
//
// The promise that SeS makes to its senders: a 2xx means the facts are on disk. One SQLite database in WAL
// mode, fully synchronised. One thread writes. It commits what all waiting requests brought in one
// transaction, and derives in others, short ones, what the facts of a service say: its timeline and its
// present. Facts are appended and never changed; what is derived can be made again from them. Questions
// have connections of their own, and each sees one snapshot.

/// <summary>Is thrown when facts could not be stored; the sender is answered 503, and repeats.</summary>
internal sealed class StoreException(string message) : Exception(message);

/// <summary>What the store is told by the settings.</summary>
/// <param name="StaleAfter">An open episode of Alertmanager that is not repeated for so long lapses.</param>
/// <param name="MaxServices">Alerts of further ones are quarantined.</param>
/// <param name="MaxAlerts">Further label sets are quarantined.</param>
/// <param name="Name">Of this SeS, as the facts that it takes have it.</param>
internal sealed record StoreRules(
    string Name, TimelineRules Timeline, TimeSpan StaleAfter, long MaxServices, long MaxAlerts);

/// <summary>Whole milliseconds since 1970 UTC, as the database has times.</summary>
internal static class UnixTime
{
    /// <summary>The end of a run that goes on; no time is as late.</summary>
    public const long Open = 9_000_000_000_000_000;

    public static long From(DateTime time) =>
        (time.Ticks - DateTime.UnixEpoch.Ticks) / TimeSpan.TicksPerMillisecond;

    /// <exception cref="SqliteException">No year has it: the row is damaged.</exception>
    public static DateTime Read(long milliseconds) => Math.Abs(milliseconds) <= Limit
        ? DateTime.UnixEpoch.AddTicks(milliseconds * TimeSpan.TicksPerMillisecond)
        : throw new SqliteException(
            SqliteException.Corrupt, 0, $"a time of {milliseconds} ms is out of range");

    private const long Limit = 62_000_000_000_000;
}

/// <summary>The names of the four statuses that have a number of their own.</summary>
internal static class StatusNames
{
    public static readonly string[] Own = ["up", "degraded", "down", "unknown"];
}

/// <summary>
/// The tables. A time is whole milliseconds since 1970 UTC. A <c>sum</c> is CRC-32C over the row's other
/// values in their order, since SQLite has no checksums of its own. Facts, state and what is derived are
/// told apart at each table.
/// </summary>
internal static class Schema
{
    /// <summary>"SeS1", so that file(1) and SQLite's tools can tell what it is.</summary>
    public const int ApplicationId = 0x53655331;

    public const int Version = 1;

    public const string Tables = """
        -- State: the last id given, through which observation the timeline is derived, the store's id.
        CREATE TABLE meta(name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
        -- Facts: the SeS that took facts, this one is 1; partitions, statuses, families of services by name.
        CREATE TABLE peer(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
        CREATE TABLE partition(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
        CREATE TABLE status(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
        CREATE TABLE family(id INTEGER PRIMARY KEY, partition INTEGER NOT NULL, platform TEXT NOT NULL,
            service TEXT NOT NULL, facet TEXT NOT NULL, UNIQUE(partition, platform, service, facet)) STRICT;
        -- Fact: the first receipt of anything of a partition.
        CREATE TABLE receipt(id INTEGER PRIMARY KEY, partition INTEGER NOT NULL, by INTEGER NOT NULL,
            received INTEGER NOT NULL, recorded INTEGER NOT NULL, sum INTEGER NOT NULL) STRICT;
        -- Facts: id, family, location. Derived: the present. open: it rests on an open alert; due: when it
        -- changes by itself; seen: the last observation; status null: not derived yet.
        CREATE TABLE service(id INTEGER PRIMARY KEY, family INTEGER NOT NULL, location TEXT NOT NULL,
            status INTEGER, since INTEGER, open INTEGER NOT NULL DEFAULT 0, due INTEGER,
            seen INTEGER NOT NULL DEFAULT 0, UNIQUE(family, location)) STRICT;
        CREATE INDEX service_due ON service(due) WHERE due IS NOT NULL;
        CREATE INDEX service_attention ON service(status, since) WHERE status <> 0;
        -- Fact: a label set of a sender, as mapped to a service; the hash finds candidates, texts decide.
        CREATE TABLE alert(id INTEGER PRIMARY KEY, service INTEGER NOT NULL, dialect INTEGER NOT NULL,
            source INTEGER NOT NULL, sender TEXT NOT NULL, labels TEXT NOT NULL, hash INTEGER NOT NULL,
            text TEXT NOT NULL, sum INTEGER NOT NULL) STRICT;
        CREATE INDEX alert_service ON alert(service, hash);
        -- Fact: a copy of an alert that brought something new; text null: the alert's.
        CREATE TABLE observation(id INTEGER PRIMARY KEY, recorded INTEGER NOT NULL, received INTEGER NOT NULL,
            by INTEGER NOT NULL, service INTEGER NOT NULL, alert INTEGER NOT NULL, kind INTEGER NOT NULL,
            starts INTEGER NOT NULL, ends INTEGER, status INTEGER NOT NULL, text TEXT,
            sum INTEGER NOT NULL) STRICT;
        CREATE INDEX observation_service
            ON observation(service, alert, starts, received, kind, ends, status, by);
        -- Derived: alert, starts. State: seen, the last copy, to the hour.
        CREATE TABLE open(alert INTEGER PRIMARY KEY, service INTEGER NOT NULL, starts INTEGER NOT NULL,
            seen INTEGER NOT NULL) STRICT;
        CREATE INDEX open_seen ON open(seen);
        CREATE INDEX open_service ON open(service);
        -- Derived: the runs of each service. until: 9e15 for the last; since: when its status began, since
        -- runs of one status follow each other where one rests on an open alert and the other does not.
        CREATE TABLE timeline(service INTEGER NOT NULL, at INTEGER NOT NULL, until INTEGER NOT NULL,
            since INTEGER NOT NULL, status INTEGER NOT NULL, open INTEGER NOT NULL,
            observation INTEGER NOT NULL, partition INTEGER NOT NULL,
            PRIMARY KEY(service, at)) STRICT, WITHOUT ROWID;
        CREATE INDEX timeline_time ON timeline(partition, at, service, status, since, observation);
        CREATE INDEX timeline_ended ON timeline(until, at, status)
            WHERE status IN (1, 2, 3) AND until < 9000000000000000;
        -- Facts, bounded: alerts that could not be mapped.
        CREATE TABLE quarantine(id INTEGER PRIMARY KEY, recorded INTEGER NOT NULL, partition TEXT NOT NULL,
            identity BLOB NOT NULL UNIQUE, reason TEXT NOT NULL, alert BLOB NOT NULL) STRICT;
        INSERT INTO status VALUES (0, 'up'), (1, 'degraded'), (2, 'down'), (3, 'unknown');
        """;

    /// <summary>For people with sqlite3 -readonly; times are text, in UTC.</summary>
    public const string Views = """
        CREATE VIEW services AS
            SELECT p.name AS partition, f.platform, f.service, f.facet, s.location, t.name AS status,
                strftime('%FT%H:%M:%fZ', s.since / 1000.0, 'unixepoch') AS since
            FROM service s JOIN family f ON f.id = s.family JOIN partition p ON p.id = f.partition
                LEFT JOIN status t ON t.id = s.status;
        CREATE VIEW history AS
            SELECT strftime('%FT%H:%M:%fZ', r.at / 1000.0, 'unixepoch') AS time, p.name AS partition,
                f.platform, f.service, f.facet, s.location, t.name AS status,
                coalesce(o.text, a.text, '') AS description,
                strftime('%FT%H:%M:%fZ', o.received / 1000.0, 'unixepoch') AS received
            FROM timeline r JOIN service s ON s.id = r.service JOIN family f ON f.id = s.family
                JOIN partition p ON p.id = f.partition JOIN status t ON t.id = r.status
                LEFT JOIN observation o ON o.id = r.observation LEFT JOIN alert a ON a.id = o.alert
            WHERE r.at = r.since;
        CREATE VIEW outages AS
            SELECT p.name AS partition, f.platform, f.service, f.facet, s.location,
                strftime('%FT%H:%M:%fZ', r.since / 1000.0, 'unixepoch') AS from_time,
                CASE WHEN max(r.until) < 9000000000000000
                    THEN strftime('%FT%H:%M:%fZ', max(r.until) / 1000.0, 'unixepoch') END AS to_time,
                CASE WHEN max(r.until) < 9000000000000000
                    THEN (max(r.until) - r.since) / 1000.0 END AS seconds
            FROM timeline r JOIN service s ON s.id = r.service JOIN family f ON f.id = s.family
                JOIN partition p ON p.id = f.partition
            WHERE r.status = 2 GROUP BY r.service, r.since;
        """;
}

/// <summary>An alert as the store takes it; times UTC, whole milliseconds.</summary>
/// <param name="Sender">Empty for Alertmanager, whose partition is one sender.</param>
/// <param name="Labels">
/// As JSON, sorted by name: two alerts are one if this, source and sender are the same.
/// </param>
/// <param name="Status">In lower case.</param>
/// <param name="Starts">Of Prometheus's <c>default</c>: none was sent.</param>
/// <param name="Ends">Null: it fires, or it is Prometheus's: see <paramref name="ValidUntil"/>.</param>
/// <param name="Description">As sent, that of an end too.</param>
/// <param name="ValidUntil">
/// Of Prometheus's alone: the end as sent, until when a firing copy is valid and past which one is resolved,
/// but at most a day ahead; null: none was sent.
/// </param>
/// <param name="Uncertain">Its end, if it has one, is no recovery (3.4).</param>
internal sealed record IncomingAlert(
    ServiceKey Service, bool Dialect, AlertSource Source, string Sender, string Labels, string Status,
    DateTime Starts, DateTime? Ends, string Description, DateTime? ValidUntil = null, bool Uncertain = false);

/// <summary>What became of the alerts of a request.</summary>
internal readonly record struct Stored(int New, int Known, int Quarantined);

/// <summary>The database, its one writer, and what questions read from.</summary>
internal sealed class Store : IDisposable
{
    public const string FileName = "ses.db";

    /// <summary>What may wait for the writer, about; more is answered 503.</summary>
    private const int MaxWaiting = 64 * 1024 * 1024;

    private const int WriterCache = 16 * 1024, ReaderCache = 2 * 1024;

    /// <summary>Pages in the log from which on they are moved into the database.</summary>
    private const int CheckpointPages = 4000;

    /// <summary>Observations that may wait to be derived while requests wait for the writer.</summary>
    private const int MaxUnderived = 5000;

    /// <summary>A transaction that derives holds requests up for no longer.</summary>
    private static readonly TimeSpan DeriveTime = TimeSpan.FromMilliseconds(20);

    /// <summary>
    /// How soon what changes with time alone is looked for, and a disk that refused is tried again.
    /// </summary>
    public static readonly TimeSpan TickPeriod = TimeSpan.FromSeconds(1);

    /// <summary>A commit takes some milliseconds, on a busy disk a second.</summary>
    private static readonly TimeSpan DiskTime = TimeSpan.FromSeconds(10);

    // For life.
    private readonly string _path;
    private readonly StoreRules _rules;
    private readonly TimeProvider _clock;
    private readonly Log _log;
    private readonly Thread _thread;
    private readonly Writer _writer;
    private readonly RecentAlerts _recent = new();
    private readonly TaskCompletionSource<string> _failed =
        new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly ConcurrentBag<Reader> _readers = [];

    // Guarded by _gate.
    private readonly object _gate = new();
    private List<Request> _waiting = [];
    private long _waitingBytes;
    private readonly List<TaskCompletionSource> _questions = [];
    private bool _stopping;
    private string? _refusal;

    /// <summary>What one webhook brought, waiting for its transaction.</summary>
    private sealed class Request(string partition, IReadOnlyList<IncomingAlert> alerts,
        IReadOnlyList<UnmappableAlert> unmappable, DateTime received)
    {
        public string Partition => partition;
        public IReadOnlyList<IncomingAlert> Alerts => alerts;
        public IReadOnlyList<UnmappableAlert> Unmappable => unmappable;
        public DateTime Received => received;
        public Stored Result { get; set; }
        public TaskCompletionSource<Stored> Done { get; } =
            new(TaskCreationOptions.RunContinuationsAsynchronously);

        public long Size { get; } = alerts.Sum(a => 200L + a.Labels.Length + a.Description.Length)
            + unmappable.Sum(u => 200L + u.Raw.Length);
    }

    /// <summary>Opens the database, makes it if there is none, and starts the writer.</summary>
    /// <exception cref="DataDirException">It was written by a newer SeS, or is none of SeS's.</exception>
    /// <exception cref="SqliteException">SQLite refused.</exception>
    public Store(string directory, StoreRules rules, TimeProvider clock, Log log)
    {
        (_path, _rules, _clock, _log) = (Path.Combine(directory, FileName), rules, clock, log);
        _writer = new Writer(_path, WriterCache, rules, _recent);
        _thread = new Thread(WriteLoop) { Name = "store", IsBackground = true };
        _thread.Start();
    }

    /// <summary>
    /// Completes, with the reason, when the disk can no longer be trusted: the process must end.
    /// </summary>
    public Task<string> Failed => _failed.Task;

    /// <summary>Why nothing can be stored at the moment; null when all is well.</summary>
    public string? Refusal
    {
        get
        {
            lock (_gate)
                return _stopping ? "shutting down" : _refusal;
        }
    }

    // ---- Requests ----

    /// <summary>Completes when all that a request brought is on disk, flushed.</summary>
    /// <exception cref="StoreException">Not all of it is; it is to be sent again.</exception>
    public Task<Stored> AppendAsync(
        string partition, IReadOnlyList<IncomingAlert> alerts, IReadOnlyList<UnmappableAlert> unmappable)
    {
        var now = Now();
        if (unmappable.Count == 0 && alerts.Count > 0 && alerts.All(a => _recent.Knows(a, now)))
            return Task.FromResult(new Stored(0, alerts.Count, 0));
        var request = new Request(partition, alerts, unmappable, now);
        lock (_gate)
        {
            if (_stopping)
                throw new StoreException("SeS is shutting down.");
            if (_waitingBytes > MaxWaiting)
                throw new StoreException("Too much is waiting for the disk.");
            _waiting.Add(request);
            _waitingBytes += request.Size;
            Monitor.Pulse(_gate);
        }
        return AnswerAsync(request);
    }

    private async Task<Stored> AnswerAsync(Request request)
    {
        try
        {
            return await request.Done.Task.WaitAsync(DiskTime, _clock);
        }
        catch (TimeoutException)
        {
            _log.Often("the disk does not answer; the sender is told to send its alerts again");
            throw new StoreException("The disk does not answer.");
        }
    }

    /// <summary>To the millisecond.</summary>
    private DateTime Now() => UnixTime.Read(UnixTime.From(_clock.GetUtcNow().UtcDateTime));

    // ---- Questions ----

    /// <summary>
    /// A snapshot that has all that was answered 2xx before. While one is open the log cannot start anew:
    /// it is to be short.
    /// </summary>
    public async Task<Snapshot> ReadAsync()
    {
        var caughtUp = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        lock (_gate)
        {
            if (_stopping)
                throw new StoreException("SeS is shutting down.");
            _questions.Add(caughtUp);
            Monitor.Pulse(_gate);
        }
        await caughtUp.Task;
        return new Snapshot(
            _readers.TryTake(out var reader) ? reader : new Reader(_path, ReaderCache), _readers.Add);
    }

    // ---- The writer's thread ----

    private void WriteLoop()
    {
        try
        {
            while (Turn())
            {
            }
        }
        catch (SqliteException e)
        {
            Fail(e);
        }
        finally
        {
            EndRequests(new StoreException("SeS is shutting down."));
        }
    }

    /// <summary>One transaction of facts if any wait, and one that derives. False: to stop.</summary>
    private bool Turn()
    {
        var (requests, questions, isStopping) = Wait();
        if (requests.Count > 0)
            Commit(requests);
        if (isStopping && requests.Count == 0)
        {
            foreach (var question in questions)
                question.SetException(new StoreException("SeS is shutting down."));
            return false;
        }
        try
        {
            if (_refusal != null)
                Commit([]);
            Derive(questions);
            _writer.CheckpointFrom(CheckpointPages);
        }
        catch (SqliteException e) when (e.IsFull || e.IsBusy)
        {
            Refuse(e);
        }
        finally
        {
            // What is derived may lag behind while the disk refuses; no fact is acknowledged then.
            foreach (var question in questions)
                question.TrySetResult();
        }
        return true;
    }

    private (List<Request> Requests, List<TaskCompletionSource> Questions, bool IsStopping) Wait()
    {
        lock (_gate)
        {
            // What is behind waits, too, while the disk refuses: it is tried again at the next tick.
            var isIdle = !_writer.IsBehind || _refusal != null;
            if (_waiting.Count == 0 && _questions.Count == 0 && !_stopping && isIdle)
                Monitor.Wait(_gate, TickPeriod);
            var taken = (_waiting, _questions.ToList(), _stopping);
            (_waiting, _waitingBytes) = ([], 0);
            _questions.Clear();
            return taken;
        }
    }

    private void Commit(List<Request> requests)
    {
        try
        {
            _writer.Commit(requests.Select(r => (Action)(() => r.Result = _writer.Take(
                r.Partition, r.Alerts, r.Unmappable, r.Received))), Now());
            SetRefusal(null);
            foreach (var request in requests)
                request.Done.SetResult(request.Result);
        }
        catch (SqliteException e)
        {
            Refuse(e);
            var refusal = new StoreException(Refusal!);
            foreach (var request in requests)
                request.Done.TrySetException(refusal);
            if (e.IsFlush || e.IsDamage)
                throw;
        }
    }

    private void Refuse(SqliteException e)
    {
        _log.Often("facts cannot be stored; senders are told to send them again", ("reason", e.Message));
        SetRefusal(e.IsFull ? "The disk is full."
            : e.IsBusy ? "Another process holds the database." : "The disk refused.");
    }

    private void SetRefusal(string? refusal)
    {
        lock (_gate)
            _refusal = refusal;
    }

    /// <summary>
    /// For as long as a transaction may last; to the end where a question waits, with requests in between.
    /// </summary>
    private void Derive(List<TaskCompletionSource> questions)
    {
        // What comes meanwhile is not waited for, else a question would wait as long as requests come.
        var through = questions.Count > 0 ? _writer.LastObservation : 0;
        do
        {
            _writer.Derive(Now(), DeriveTime, _clock);
            List<Request> requests;
            lock (_gate)
            {
                requests = _waiting;
                (_waiting, _waitingBytes) = ([], 0);
            }
            if (requests.Count > 0)
                Commit(requests);
        }
        while (_writer.Derived < through || _writer.LastObservation - _writer.Derived > MaxUnderived);
    }

    private void Fail(SqliteException e)
    {
        _log.Error("the disk can no longer be trusted", ("reason", e.Message));
        SetRefusal("The disk failed.");
        _failed.TrySetResult(e.Message);
    }

    private void EndRequests(StoreException why)
    {
        lock (_gate)
        {
            _stopping = true;
            foreach (var request in _waiting)
                request.Done.TrySetException(why);
            foreach (var question in _questions)
                question.TrySetException(why);
            _waiting.Clear();
            _questions.Clear();
        }
    }

    /// <summary>Stores what waits, and closes.</summary>
    public void Dispose()
    {
        lock (_gate)
        {
            _stopping = true;
            Monitor.Pulse(_gate);
        }
        _thread.Join();
        foreach (var reader in _readers)
            reader.Dispose();
        _writer.Dispose();
    }
}

/// <summary>The facts of one service at a time, and the runs that are held of it.</summary>
internal sealed class ServiceFacts(SqliteConnection database)
{
    private readonly SqliteStatement
        _observations = database.Prepare("""
            SELECT id, alert, kind, starts, ends, status, received FROM observation
            WHERE service = ?1 AND id <= ?2 ORDER BY alert, starts, received, kind
            """),
        _traits = database.Prepare("SELECT id, dialect, source FROM alert WHERE service = ?1"),
        _runs = database.Prepare("""
            SELECT at, until, status, open, observation FROM timeline WHERE service = ?1 ORDER BY at
            """);

    private readonly List<Observation> _facts = [];
    private readonly Dictionary<long, AlertTraits> _traitsOf = [];

    /// <summary>In order of alert, start, receipt and kind; valid until others are read.</summary>
    public ReadOnlySpan<Observation> Observations => CollectionsMarshal.AsSpan(_facts);

    public AlertTraits TraitsOf(long alert) => _traitsOf[alert];

    /// <param name="through">The last observation that counts.</param>
    public void Read(long service, long through = long.MaxValue)
    {
        _facts.Clear();
        _observations.Bind(1, service).Bind(2, through);
        while (_observations.Step())
            _facts.Add(ObservationOf(_observations));
        _traitsOf.Clear();
        _traits.Bind(1, service);
        while (_traits.Step())
            _traitsOf[_traits.Number(0)] =
                new AlertTraits(_traits.Number(1) != 0, (AlertSource)_traits.Number(2));
    }

    /// <summary>Derives the timeline from what was read; see <see cref="Timeline.Derive"/>.</summary>
    public DateTime? Derive(DateTime? knownFrom, DateTime now, TimelineRules rules, List<Run> runs,
        List<(long Alert, DateTime Starts)>? open = null) =>
        Timeline.Derive(Observations, TraitsOf, knownFrom, null, now, rules, runs, open);

    /// <summary>The runs that are held of a service.</summary>
    public void ReadRuns(long service, List<Run> runs)
    {
        runs.Clear();
        _runs.Bind(1, service);
        while (_runs.Step())
            runs.Add(new Run(UnixTime.Read(_runs.Number(0)),
                _runs.Number(1) == UnixTime.Open ? null : UnixTime.Read(_runs.Number(1)),
                (Status)_runs.Number(2), _runs.Number(3) != 0, _runs.Number(4)));
    }

    /// <summary>When the status of a run began: with the first run of those that have the same.</summary>
    public static DateTime SinceOf(List<Run> runs, int run)
    {
        while (run > 0 && runs[run - 1].Status == runs[run].Status && runs[run - 1].To == runs[run].From)
            run--;
        return runs[run].From;
    }

    /// <summary>A row of id, alert, kind, starts, ends, status, received.</summary>
    public static Observation ObservationOf(SqliteStatement row) => new(row.Number(0), row.Number(1),
        (ObservationKind)row.Number(2), UnixTime.Read(row.Number(3)),
        row.NumberOrNull(4) is { } ends ? UnixTime.Read(ends) : null, (Status)row.Number(5),
        UnixTime.Read(row.Number(6)));
}

/// <summary>The connection that writes, used by the store's thread alone.</summary>
internal sealed class Writer : IDisposable
{
    /// <summary>Observations whose services are derived before the mark of progress moves.</summary>
    private const int WindowSize = 20_000;

    /// <summary>Services that time alone has changed, and lapses, taken at once.</summary>
    private const int DueAtOnce = 1000;

    private const int MaxQuarantined = 10_000;

    /// <summary>Of quarantined alerts, in bytes, about.</summary>
    private const int QuarantineSize = 64 * 1024 * 1024;

    /// <summary>A sign of life is written so often, so that a start can tell how long SeS was away.</summary>
    private static readonly TimeSpan AlivePeriod = TimeSpan.FromMinutes(1);

    /// <summary>Rows of an alert's newest episodes that are looked at to judge a copy.</summary>
    private const int NewestRows = 64;

    /// <summary>How exactly an open episode's last copy is known: less often is less written.</summary>
    private static readonly TimeSpan SeenStep = RecentAlerts.SeenStep;

    private readonly SqliteConnection _database;
    private readonly WalPages _pages;
    private readonly DatabaseFiles _files;
    private readonly ServiceFacts _facts;
    private readonly StoreRules _rules;
    private readonly RecentAlerts _recent;

    private readonly SqliteStatement _begin, _commit, _rollback, _setMeta, _insertPartition, _insertReceipt,
        _insertStatus, _findFamily, _insertFamily, _findService, _insertService, _findAlert, _insertAlert,
        _newest, _ofStart, _insertObservation, _see, _insertQuarantined, _trimQuarantine,
        _oldestQuarantined, _deleteQuarantined,
        _behind, _due, _stale, _service, _insertRun, _deleteRun, _endRun,
        _updateRun, _updateService, _openOfService, _insertOpen, _moveOpen, _deleteOpen, _alertText;

    // Names, loaded at the start and after a rollback.
    private readonly Dictionary<string, long> _partitions = [];
    private readonly Dictionary<long, DateTime> _knownFrom = [];
    private readonly Dictionary<string, Status> _statuses = [];
    private readonly long _self;
    private long _services, _alerts, _lastId, _derived, _lastObservation, _quarantined, _trimmed;
    private DateTime _recorded, _alive;

    // Of a transaction of facts: whether it wrote, and what the cache learns from it.
    private bool _isDirty;
    private readonly List<(UInt128 Key, RecentAlert Alert)> _learned = [];

    // Services still to be derived before the mark moves to _windowEnd.
    private readonly Queue<long> _window = new();
    private long _windowEnd;
    private DateTime _ticked;

    // Used again for each service.
    private readonly List<Observation> _newestFacts = [];
    private readonly List<Run> _made = [], _held = [];
    private readonly List<(long Alert, DateTime Starts)> _open = [];
    private readonly Dictionary<long, long> _heldOpen = [];

    public Writer(string path, int cache, StoreRules rules, RecentAlerts recent)
    {
        (_rules, _recent) = (rules, recent);
        _database = new SqliteConnection(path, isReadOnly: false, cache);
        _database.Execute(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;");
        _pages = new WalPages(_database);
        Migrate();
        SqliteStatement Of(string sql) => _database.Prepare(sql);
        (_begin, _commit, _rollback) = (Of("BEGIN IMMEDIATE"), Of("COMMIT"), Of("ROLLBACK"));
        _setMeta = Of("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value");
        _insertPartition = Of("INSERT INTO partition VALUES (?1, ?2)");
        _insertReceipt = Of("INSERT INTO receipt VALUES (?1, ?2, ?3, ?4, ?5, ?6)");
        _insertStatus = Of("INSERT INTO status VALUES (?1, ?2)");
        _findFamily = Of("""
            SELECT id FROM family WHERE partition = ?1 AND platform = ?2 AND service = ?3 AND facet = ?4
            """);
        _insertFamily = Of("INSERT INTO family VALUES (?1, ?2, ?3, ?4, ?5)");
        _findService = Of("SELECT id FROM service WHERE family = ?1 AND location = ?2");
        _insertService = Of("INSERT INTO service(id, family, location) VALUES (?1, ?2, ?3)");
        _findAlert = Of("""
            SELECT id FROM alert
            WHERE service = ?1 AND hash = ?2 AND source = ?3 AND sender = ?4 AND labels = ?5
            """);
        _insertAlert = Of("INSERT INTO alert VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)");
        _alertText = Of("SELECT text FROM alert WHERE id = ?1");
        const string facts = "SELECT id, alert, kind, starts, ends, status, received FROM observation ";
        _newest = Of(facts
            + "WHERE service = ?1 AND alert = ?2 ORDER BY starts DESC, received DESC, kind DESC LIMIT ?3");
        _ofStart = Of(facts + """
            WHERE service = ?1 AND alert = ?2 AND starts = ?3 ORDER BY received DESC, kind DESC LIMIT ?4
            """);
        _insertObservation =
            Of("INSERT INTO observation VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)");
        _see = Of("UPDATE open SET seen = ?2 WHERE alert = ?1 AND seen < ?2");
        _insertQuarantined = Of("INSERT OR IGNORE INTO quarantine VALUES (?1, ?2, ?3, ?4, ?5, ?6)");
        _trimQuarantine = Of("""
            DELETE FROM quarantine WHERE id <= (SELECT id FROM quarantine ORDER BY id DESC LIMIT 1 OFFSET ?1)
            """);
        _oldestQuarantined = Of("SELECT id, length(alert) FROM quarantine ORDER BY id LIMIT 1");
        _deleteQuarantined = Of("DELETE FROM quarantine WHERE id = ?1");
        _behind = Of("SELECT DISTINCT service FROM observation WHERE id > ?1 AND id <= ?2 ORDER BY service");
        _due = Of("SELECT id FROM service WHERE due <= ?1 ORDER BY due LIMIT ?2");
        _stale = Of("""
            SELECT o.alert, o.service, o.starts, o.seen, coalesce((SELECT status FROM observation b
                WHERE b.service = o.service AND b.alert = o.alert AND b.starts = o.starts
                ORDER BY received DESC LIMIT 1), 2)
            FROM open o WHERE o.seen <= ?1 ORDER BY o.seen LIMIT ?2
            """);
        _service = Of("""
            SELECT f.partition, s.status, s.since, s.open, s.due, s.seen
            FROM service s JOIN family f ON f.id = s.family WHERE s.id = ?1
            """);
        _insertRun = Of("INSERT INTO timeline VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)");
        _deleteRun = Of("DELETE FROM timeline WHERE service = ?1 AND at = ?2");
        _endRun = Of("UPDATE timeline SET until = ?3 WHERE service = ?1 AND at = ?2");
        _updateRun = Of("""
            UPDATE timeline SET until = ?3, since = ?4, status = ?5, open = ?6, observation = ?7
            WHERE service = ?1 AND at = ?2
            """);
        _updateService = Of("""
            UPDATE service SET status = ?2, since = ?3, open = ?4, due = ?5, seen = ?6 WHERE id = ?1
            """);
        _openOfService = Of("SELECT alert, starts FROM open WHERE service = ?1");
        _insertOpen = Of("INSERT INTO open VALUES (?1, ?2, ?3, ?4)");
        _moveOpen = Of("UPDATE open SET starts = ?2, seen = max(seen, ?3) WHERE alert = ?1");
        _deleteOpen = Of("DELETE FROM open WHERE alert = ?1");
        _facts = new ServiceFacts(_database);
        _self = PeerOf(rules.Name);
        Load();
        _files = new DatabaseFiles(path);
    }

    /// <summary>Whether some service's latest observations are not derived yet.</summary>
    public bool IsBehind => _derived < _lastObservation;

    /// <summary>Through which observation all services are derived.</summary>
    public long Derived => _derived;

    public long LastObservation => _lastObservation;

    /// <exception cref="DataDirException">Another program's database, or a newer SeS's.</exception>
    private void Migrate()
    {
        var application = _database.Number("PRAGMA application_id");
        var version = _database.Number("PRAGMA user_version");
        if (version == 0 && _database.Number("SELECT count(*) FROM sqlite_schema") == 0)
            _database.Execute($"""
                BEGIN IMMEDIATE; PRAGMA application_id = {Schema.ApplicationId};
                {Schema.Tables} {Schema.Views}
                PRAGMA user_version = {Schema.Version}; COMMIT;
                """);
        else if (application != Schema.ApplicationId)
            throw new DataDirException($"{Store.FileName} is no database of SeS");
        else if (version != Schema.Version)
            throw new DataDirException(
                $"{Store.FileName} has version {version}, which this SeS does not know");
    }

    /// <summary>The number of a SeS that takes facts; it is made if it is new.</summary>
    private long PeerOf(string name)
    {
        using (var insert = _database.Query("INSERT OR IGNORE INTO peer(name) VALUES (?1)"))
            insert.Bind(1, name).Run();
        using var find = _database.Query("SELECT id FROM peer WHERE name = ?1");
        return find.Bind(1, name).Number()!.Value;
    }

    private void Load()
    {
        _partitions.Clear();
        _knownFrom.Clear();
        _statuses.Clear();
        using (var rows = _database.Query("SELECT id, name FROM partition"))
        {
            while (rows.Step())
                _partitions[rows.Text(1)] = rows.Number(0);
        }
        using (var rows = _database.Query("SELECT partition, min(received) FROM receipt GROUP BY partition"))
        {
            while (rows.Step())
                _knownFrom[rows.Number(0)] = UnixTime.Read(rows.Number(1));
        }
        using (var rows = _database.Query("SELECT id, name FROM status"))
        {
            while (rows.Step())
                _statuses[rows.Text(1)] = (Status)rows.Number(0);
        }
        _services = _database.Number("SELECT count(*) FROM service") ?? 0;
        _alerts = _database.Number("SELECT count(*) FROM alert") ?? 0;
        _lastId = _database.Number("SELECT value FROM meta WHERE name = 'last_id'") ?? 3;
        _windowEnd = _derived = _database.Number("SELECT value FROM meta WHERE name = 'derived'") ?? 0;
        _lastObservation = _database.Number("SELECT max(id) FROM observation") ?? 0;
        _recorded = UnixTime.Read(
            _database.Number("SELECT recorded FROM observation ORDER BY id DESC LIMIT 1") ?? 0);
        _quarantined = _trimmed = _database.Number("SELECT sum(length(alert)) FROM quarantine") ?? 0;
        _window.Clear();
    }

    // ---- Facts ----

    /// <summary>Runs requests in one transaction, flushed; without any change nothing is written.</summary>
    /// <exception cref="SqliteException">Nothing of it was stored.</exception>
    public void Commit(IEnumerable<Action> requests, DateTime now)
    {
        _recorded = now > _recorded ? now : _recorded;
        _isDirty = false;
        _learned.Clear();
        InTransaction(() =>
        {
            foreach (var request in requests)
                request();
            TrimQuarantine();
            if (_isDirty || now - _alive >= AlivePeriod || now < _alive)
            {
                _setMeta.Bind(1, "last_id").Bind(2, _lastId).Run();
                _setMeta.Bind(1, "alive").Bind(2, UnixTime.From(_alive = now)).Run();
            }
        });
        _files.Check();
        _recent.Learn(_learned);
    }

    private void InTransaction(Action write)
    {
        // Before, too: a log that was cut is as long as it was once it is written to.
        _files.Check();
        _begin.Run();
        try
        {
            write();
            _commit.Run();
        }
        catch (SqliteException)
        {
            // Where SQLite has rolled back by itself this is an error, which says no more.
            try
            {
                _rollback.Run();
            }
            catch (SqliteException)
            {
            }
            Load();
            throw;
        }
    }

    /// <summary>Takes what one request brought, within a transaction.</summary>
    public Stored Take(string partition, IReadOnlyList<IncomingAlert> alerts,
        IReadOnlyList<UnmappableAlert> unmappable, DateTime received)
    {
        var place = PartitionOf(partition, received);
        var (brought, quarantined) = (0, 0);
        foreach (var alert in alerts)
        {
            if (Take(place, alert, received) is { } isNew)
                brought += isNew ? 1 : 0;
            else
                quarantined++;
        }
        foreach (var one in unmappable)
            Quarantine(partition, one.Identity, one.Reason, one.Raw);
        return new Stored(brought, alerts.Count - brought - quarantined, quarantined + unmappable.Count);
    }

    private long NextId()
    {
        _isDirty = true;
        return ++_lastId;
    }

    private long PartitionOf(string name, DateTime received)
    {
        if (_partitions.TryGetValue(name, out var id))
            return id;
        _insertPartition.Bind(1, id = NextId()).Bind(2, name).Run();
        var (receipt, at) = (NextId(), UnixTime.From(received));
        var recorded = UnixTime.From(_recorded);
        _insertReceipt.Bind(1, receipt).Bind(2, id).Bind(3, _self).Bind(4, at).Bind(5, recorded)
            .Bind(6, Checksum.OfReceipt(receipt, id, _self, at, recorded)).Run();
        _knownFrom[id] = received;
        return _partitions[name] = id;
    }

    /// <summary>Whether it brings something new; null when it was quarantined, being one too many.</summary>
    private bool? Take(long partition, IncomingAlert alert, DateTime received)
    {
        var key = _recent.KeyOf(alert);
        var (service, id) = _recent.Find(key) is { } found
            ? (found.Service, found.Alert) : Place(partition, alert);
        if (service == 0)
            return null;
        var copy = new AlertCopy(alert.Starts, alert.Ends, StatusOf(alert.Status), received, alert.Uncertain);
        ReadNewest(service, id, alert.Starts);
        var traits = new AlertTraits(alert.Dialect, alert.Source);
        var kind = Episodes.Decide(CollectionsMarshal.AsSpan(_newestFacts), copy, traits);
        if (kind is { } brings)
            Observe(service, id, brings, alert, copy);
        else if (alert.Ends == null)
            _see.Bind(1, id).Bind(2, UnixTime.From(received.AddTicks(-(received.Ticks % SeenStep.Ticks))))
                .Run();
        Learn(key, service, id, alert, copy, kind);
        return kind != null;
    }

    /// <summary>What the cache knows of an alert: its newest episode as it is after this copy.</summary>
    private void Learn(
        UInt128 key, long service, long id, IncomingAlert alert, AlertCopy copy, ObservationKind? kind)
    {
        var newest = _newestFacts.Count == 0 ? DateTime.MinValue : _newestFacts[^1].Starts;
        var isNewest = kind != null ? alert.Starts >= newest
            : alert.Ends == null && alert.Starts == newest && newest == Episodes.Open(
                CollectionsMarshal.AsSpan(_newestFacts), new AlertTraits(alert.Dialect, alert.Source));
        _learned.Add((key, isNewest
            ? new RecentAlert(service, id, alert.Starts, alert.Ends, alert.Status, copy.Received)
            : new RecentAlert(service, id, DateTime.MinValue, null, "", DateTime.MinValue)));
    }

    /// <summary>The service and the alert, made if they are new; zeros when there are too many.</summary>
    private (long Service, long Alert) Place(long partition, IncomingAlert alert)
    {
        var (_, platform, name, facet, location) = alert.Service;
        var family = _findFamily.Bind(1, partition).Bind(2, platform).Bind(3, name).Bind(4, facet).Number();
        var service = family == null ? null : _findService.Bind(1, family.Value).Bind(2, location).Number();
        var hash = Checksum.Hash(alert.Source, alert.Sender, alert.Labels);
        var id = service == null ? null : _findAlert.Bind(1, service.Value).Bind(2, hash)
            .Bind(3, (long)alert.Source).Bind(4, alert.Sender).Bind(5, alert.Labels).Number();
        if (id != null)
            return (service!.Value, id.Value);
        var areServicesMany = service == null && _services >= _rules.MaxServices;
        if (areServicesMany || _alerts >= _rules.MaxAlerts)
        {
            Quarantine(alert.Service.Partition, alert.Labels, areServicesMany
                ? $"there are {_rules.MaxServices} services already, as many as --max-services allows"
                : $"there are {_rules.MaxAlerts} label sets already, as many as --max-alerts allows",
                Encoding.UTF8.GetBytes(alert.Labels));
            return default;
        }
        if (family == null)
            _insertFamily.Bind(1, (family = NextId()).Value).Bind(2, partition).Bind(3, platform)
                .Bind(4, name).Bind(5, facet).Run();
        if (service == null)
        {
            _insertService.Bind(1, (service = NextId()).Value).Bind(2, family.Value).Bind(3, location).Run();
            _services++;
        }
        _alerts++;
        return (service.Value, Insert(service.Value, alert, hash));
    }

    private long Insert(long service, IncomingAlert alert, long hash)
    {
        var id = NextId();
        var sum = Checksum.OfAlert(id, service, alert.Dialect ? 1 : 0, (long)alert.Source, alert.Sender,
            alert.Labels, hash, alert.Description);
        _insertAlert.Bind(1, id).Bind(2, service).Bind(3, alert.Dialect ? 1 : 0).Bind(4, (long)alert.Source)
            .Bind(5, alert.Sender).Bind(6, alert.Labels).Bind(7, hash).Bind(8, alert.Description).Bind(9, sum)
            .Run();
        return id;
    }

    private Status StatusOf(string name)
    {
        if (_statuses.TryGetValue(name, out var status))
            return status;
        var id = _statuses.Values.Max(s => (long)s) + 1;
        _insertStatus.Bind(1, id).Bind(2, name).Run();
        _isDirty = true;
        return _statuses[name] = (Status)id;
    }

    /// <summary>The alert's newest observations, and those of an older start, in the index's order.</summary>
    private void ReadNewest(long service, long alert, DateTime starts)
    {
        _newestFacts.Clear();
        _newest.Bind(1, service).Bind(2, alert).Bind(3, NewestRows);
        while (_newest.Step())
            _newestFacts.Add(ServiceFacts.ObservationOf(_newest));
        if (_newestFacts.Count == NewestRows && starts <= _newestFacts[^1].Starts)
        {
            _newestFacts.RemoveAll(f => f.Starts == starts);
            _ofStart.Bind(1, service).Bind(2, alert).Bind(3, UnixTime.From(starts)).Bind(4, NewestRows);
            while (_ofStart.Step())
                _newestFacts.Add(ServiceFacts.ObservationOf(_ofStart));
        }
        _newestFacts.Reverse();
    }

    private void Observe(long service, long id, ObservationKind kind, IncomingAlert alert, AlertCopy copy)
    {
        var text = alert.Description == _alertText.Bind(1, id).FirstText() ? null : alert.Description;
        Observe(service, id, kind, copy, text);
    }

    private void Observe(long service, long alert, ObservationKind kind, AlertCopy copy, string? text)
    {
        var id = NextId();
        var (recorded, received) = (UnixTime.From(_recorded), UnixTime.From(copy.Received));
        var starts = UnixTime.From(copy.Starts);
        long? ends = copy.Ends is { } end ? UnixTime.From(end) : null;
        var sum = Checksum.OfObservation(
            id, recorded, received, _self, service, alert, (long)kind, starts, ends, (long)copy.Status, text);
        _insertObservation.Bind(1, id).Bind(2, recorded).Bind(3, received).Bind(4, _self).Bind(5, service)
            .Bind(6, alert).Bind(7, (long)kind).Bind(8, starts).Bind(9, ends).Bind(10, (long)copy.Status)
            .Bind(11, text).Bind(12, sum).Run();
        _lastObservation = id;
    }

    private void Quarantine(string partition, string identity, string reason, ReadOnlySpan<byte> alert)
    {
        var hash = SHA256.HashData(Encoding.UTF8.GetBytes(partition + "\n" + identity)).AsSpan(0, 16);
        _insertQuarantined.Bind(1, _lastId + 1).Bind(2, UnixTime.From(_recorded)).Bind(3, partition)
            .Bind(4, hash).Bind(5, reason).Bind(6, alert).Run();
        if (_database.Changes == 0)
            return;
        NextId();
        _quarantined += alert.Length;
    }

    /// <summary>The oldest give way to the latest.</summary>
    private void TrimQuarantine()
    {
        if (_quarantined == _trimmed)
            return;
        _trimQuarantine.Bind(1, MaxQuarantined).Run();
        while (_quarantined > QuarantineSize && _oldestQuarantined.Step())
        {
            var (id, size) = (_oldestQuarantined.Number(0), _oldestQuarantined.Number(1));
            _oldestQuarantined.Reset();
            _deleteQuarantined.Bind(1, id).Run();
            _quarantined -= size;
        }
        _trimmed = _quarantined;
    }

    // ---- What is derived ----

    /// <summary>Derives services that are behind, or that time alone has changed, in a transaction.</summary>
    /// <param name="time">It ends after so long.</param>
    public void Derive(DateTime now, TimeSpan time, TimeProvider clock)
    {
        var isTime = now - _ticked >= TimeSpan.FromSeconds(1) || now < _ticked;
        if (!IsBehind && !isTime)
            return;
        _recorded = now > _recorded ? now : _recorded;
        var began = clock.GetTimestamp();
        _isDirty = false;
        // Not flushed by itself: with the next facts, or made again after a loss of power. A lapse is a fact.
        _database.Execute("PRAGMA synchronous = NORMAL");
        try
        {
            InTransaction(() => DeriveWindow(now, time, clock, began, isTime));
        }
        finally
        {
            _database.Execute("PRAGMA synchronous = FULL");
        }
    }

    private void DeriveWindow(DateTime now, TimeSpan time, TimeProvider clock, long began, bool isTime)
    {
        if (isTime)
            Tick(now);
        FillWindow();
        while (_window.TryDequeue(out var service))
        {
            Derive(service, now);
            if (clock.GetElapsedTime(began) > time)
                break;
        }
        if (_window.Count == 0 && _derived != _windowEnd)
            _setMeta.Bind(1, "derived").Bind(2, _derived = _windowEnd).Run();
        if (_isDirty)
            _setMeta.Bind(1, "last_id").Bind(2, _lastId).Run();
    }

    private void FillWindow()
    {
        if (_window.Count > 0 || !IsBehind)
            return;
        _windowEnd = Math.Min(_lastObservation, _derived + WindowSize);
        _behind.Bind(1, _derived).Bind(2, _windowEnd);
        while (_behind.Step())
            _window.Enqueue(_behind.Number(0));
    }

    /// <summary>What time alone brings: lapses, as facts, and services whose status changes.</summary>
    private void Tick(DateTime now)
    {
        _ticked = now;
        var stale = new List<(long Alert, long Service, long Starts, long Seen, Status Status)>();
        _stale.Bind(1, UnixTime.From(now - _rules.StaleAfter - SeenStep)).Bind(2, DueAtOnce);
        while (_stale.Step())
            stale.Add((_stale.Number(0), _stale.Number(1), _stale.Number(2), _stale.Number(3),
                (Status)_stale.Number(4)));
        foreach (var (alert, service, starts, seen, status) in stale)
        {
            var end = UnixTime.Read(Math.Max(seen, starts));
            Observe(service, alert, ObservationKind.Lapse,
                new AlertCopy(UnixTime.Read(starts), end, status, now), null);
            _deleteOpen.Bind(1, alert).Run();
        }
        if (stale.Count > 0)
            _recent.Clear();
        var due = new List<long>();
        _due.Bind(1, UnixTime.From(now)).Bind(2, DueAtOnce);
        while (_due.Step())
            due.Add(_due.Number(0));
        foreach (var service in due)
            Derive(service, now);
    }

    /// <summary>Derives one service, and writes what differs from what is held.</summary>
    private void Derive(long service, DateTime now)
    {
        _service.Bind(1, service);
        if (!_service.Step())
            throw new SqliteException(0, 0, $"service {service} has observations, but no row: ses check");
        var partition = _service.Number(0);
        _service.Reset();
        _facts.Read(service);
        DateTime? knownFrom = _knownFrom.TryGetValue(partition, out var from) ? from : null;
        var due = _facts.Derive(knownFrom, now, _rules.Timeline, _made, _open);
        WriteRuns(service, partition);
        WriteOpen(service);
        var last = _made.Count == 0 ? default : _made[^1];
        long seen = 0;
        foreach (var fact in _facts.Observations)
            seen = Math.Max(seen, UnixTime.From(fact.Received));
        _updateService.Bind(1, service).Bind(2, _made.Count == 0 ? null : (long)last.Status)
            .Bind(3, _made.Count == 0 ? null : UnixTime.From(ServiceFacts.SinceOf(_made, _made.Count - 1)))
            .Bind(4, last.Open ? 1 : 0).Bind(5, due is { } at ? UnixTime.From(at) : null).Bind(6, seen).Run();
    }

    private void WriteRuns(long service, long partition)
    {
        _facts.ReadRuns(service, _held);
        var (since, i) = (0L, 0);
        for (var j = 0; j < _made.Count; j++)
        {
            var run = _made[j];
            if (j == 0 || _made[j - 1].Status != run.Status || _made[j - 1].To != run.From)
                since = UnixTime.From(run.From);
            for (; i < _held.Count && _held[i].From < run.From; i++)
                _deleteRun.Bind(1, service).Bind(2, UnixTime.From(_held[i].From)).Run();
            var isHeld = i < _held.Count && _held[i].From == run.From;
            Write(service, partition, run, since, isHeld ? _held[i++] : null);
        }
        for (; i < _held.Count; i++)
            _deleteRun.Bind(1, service).Bind(2, UnixTime.From(_held[i].From)).Run();
    }

    private void Write(long service, long partition, Run run, long since, Run? held)
    {
        var (at, until) = (UnixTime.From(run.From), run.To is { } to ? UnixTime.From(to) : UnixTime.Open);
        if (held == null)
            _insertRun.Bind(1, service).Bind(2, at).Bind(3, until).Bind(4, since).Bind(5, (long)run.Status)
                .Bind(6, run.Open ? 1 : 0).Bind(7, run.Observation).Bind(8, partition).Run();
        else if (held.Value with { To = run.To } == run && since == at)
        {
            if (held.Value.To != run.To)
                _endRun.Bind(1, service).Bind(2, at).Bind(3, until).Run();
        }
        else
            _updateRun.Bind(1, service).Bind(2, at).Bind(3, until).Bind(4, since).Bind(5, (long)run.Status)
                .Bind(6, run.Open ? 1 : 0).Bind(7, run.Observation).Run();
    }

    /// <summary>Which episodes are open, and when their last copy came, as far as facts tell.</summary>
    private void WriteOpen(long service)
    {
        _heldOpen.Clear();
        _openOfService.Bind(1, service);
        while (_openOfService.Step())
            _heldOpen[_openOfService.Number(0)] = _openOfService.Number(1);
        foreach (var (alert, start) in _open)
        {
            var starts = UnixTime.From(start);
            if (!_heldOpen.Remove(alert, out var held))
                _insertOpen.Bind(1, alert).Bind(2, service).Bind(3, starts).Bind(4, LastSeen(alert)).Run();
            else if (held != starts)
                _moveOpen.Bind(1, alert).Bind(2, starts).Bind(3, LastSeen(alert)).Run();
        }
        foreach (var alert in _heldOpen.Keys)
            _deleteOpen.Bind(1, alert).Run();
    }

    private long LastSeen(long alert)
    {
        var seen = DateTime.UnixEpoch;
        foreach (var fact in _facts.Observations)
            seen = fact.Alert == alert && fact.Received > seen ? fact.Received : seen;
        return UnixTime.From(seen);
    }

    /// <summary>Throws away what is derived, to be derived anew; last copies of open episodes stay.</summary>
    public void Rebuild() => InTransaction(() =>
    {
        _database.Execute("""
            DELETE FROM timeline; UPDATE service SET status = NULL, since = NULL, open = 0, due = NULL
            """);
        _setMeta.Bind(1, "derived").Bind(2, _windowEnd = _derived = 0).Run();
        _window.Clear();
    });

    /// <summary>Writes a consistent, compact copy, flushed; the file may not be there yet.</summary>
    public void Backup(string path)
    {
        using (var copy = _database.Query("VACUUM INTO ?1"))
            copy.Bind(1, path).Run();
        using (var file = new FileStream(path, FileMode.Open, FileAccess.ReadWrite))
            Disk.Flush(file);
        Disk.FlushFolder(Path.GetDirectoryName(Path.GetFullPath(path))!);
    }

    /// <summary>Moves the log into the database when it has so many pages.</summary>
    /// <exception cref="SqliteException">A flush failed; SQLite's own checkpoint hides that.</exception>
    public void CheckpointFrom(int pages)
    {
        if (_pages.Count < pages)
            return;
        var (logged, moved) = _database.Checkpoint();
        _pages.Count = logged == moved ? 0 : logged - moved;
    }

    public void Dispose()
    {
        _pages.Dispose();
        _database.Dispose();
    }
}

/// <summary>Counts the pages of the write-ahead log, as SQLite names them after each commit.</summary>
internal sealed unsafe class WalPages : IDisposable
{
    private readonly int* _count = (int*)NativeMemory.AllocZeroed(sizeof(int));

    public WalPages(SqliteConnection database) =>
        Sqlite.WalHook(database.Handle.DangerousGetHandle(), &Committed, (nint)_count);

    public int Count { get => *_count; set => *_count = value; }

    [UnmanagedCallersOnly(CallConvs = [typeof(CallConvCdecl)])]
    private static int Committed(nint context, nint connection, byte* name, int pages)
    {
        *(int*)context = pages;
        return 0;
    }

    public void Dispose() => NativeMemory.Free(_count);
}

/// <summary>
/// The three files of the database, by name: SQLite goes on in silence when one is removed, replaced or cut.
/// </summary>
internal sealed class DatabaseFiles(string path)
{
    private readonly (string Path, FileStatus Status)[] _files =
        [.. new[] { path, path + "-wal", path + "-shm" }.Select(p => (p, Disk.StatusOf(p)
            ?? throw new SqliteException(SqliteException.FilesChanged, 0, $"{p} is not there")))];

    /// <summary>To be called before a transaction, and after it, before it is acknowledged.</summary>
    /// <exception cref="SqliteException">A file is not the one that was opened, or shorter.</exception>
    public void Check()
    {
        foreach (ref var file in _files.AsSpan())
        {
            var now = Disk.StatusOf(file.Path);
            if (now == null || now.Value.Device != file.Status.Device || now.Value.Inode != file.Status.Inode)
                throw new SqliteException(
                    SqliteException.FilesChanged, 0, $"{file.Path} was removed or replaced");
            if (now.Value.Size < file.Status.Size)
                throw new SqliteException(SqliteException.FilesChanged, 0, $"{file.Path} was cut short");
            file.Status = now.Value;
        }
    }
}

/// <summary>CRC-32C of a row's values.</summary>
internal struct Checksum()
{
    public static long OfReceipt(long id, long partition, long by, long received, long recorded) =>
        new Checksum().Add(id).Add(partition).Add(by).Add(received).Add(recorded).Value;

    public static long OfAlert(
        long id, long service, long dialect, long source, string sender, string labels, long hash,
        string text) =>
        new Checksum().Add(id).Add(service).Add(dialect).Add(source).Add(sender).Add(labels).Add(hash)
            .Add(text).Value;

    public static long OfObservation(long id, long recorded, long received, long by, long service, long alert,
        long kind, long starts, long? ends, long status, string? text) =>
        new Checksum().Add(id).Add(recorded).Add(received).Add(by).Add(service).Add(alert).Add(kind)
            .Add(starts).Add(ends ?? -1).Add(status).Add(text ?? "\0").Value;

    private uint _crc = uint.MaxValue;

    public readonly long Value => ~_crc;

    public Checksum Add(long value)
    {
        _crc = BitOperations.Crc32C(_crc, (ulong)value);
        return this;
    }

    /// <summary>Its UTF-8, and its length: two texts side by side are not one.</summary>
    public Checksum Add(string text)
    {
        foreach (var c in text)
            _crc = BitOperations.Crc32C(_crc, c);
        return Add(text.Length);
    }

    /// <summary>What finds an alert; its texts are compared all the same.</summary>
    public static long Hash(AlertSource source, string sender, string labels) =>
        BinaryPrimitives.ReadInt64LittleEndian(
            SHA256.HashData(Encoding.UTF8.GetBytes($"{(int)source}\n{sender}\n{labels}")));
}

/// <summary>
/// The newest episode of an alert, as it is on disk. Starts of no time: only its place is known.
/// </summary>
internal readonly record struct RecentAlert(
    long Service, long Alert, DateTime Starts, DateTime? Ends, string Status, DateTime Seen);

/// <summary>
/// Looks for damage in a database: that of its structure, which SQLite finds, facts that do not fit their
/// checksums, and derived rows that are not what the facts give.
/// </summary>
internal sealed class DatabaseCheck(SqliteConnection database, TimelineRules rules, DateTime now)
{
    /// <summary>Of each kind so many are named.</summary>
    private const int MaxFaults = 20;

    private readonly List<string> _faults = [];

    public long Observations { get; private set; }

    public long Services { get; private set; }

    /// <summary>What is wrong, a line each; none: it is sound.</summary>
    /// <exception cref="SqliteException">It cannot be read at all.</exception>
    public IReadOnlyList<string> Run()
    {
        using (var check = database.Query($"PRAGMA integrity_check({MaxFaults})"))
        {
            while (check.Step())
            {
                if (check.Text(0) != "ok")
                    _faults.Add($"structure: {check.Text(0)}");
            }
        }
        CheckReceipts();
        CheckAlerts();
        CheckObservations();
        if (_faults.Count == 0)
            CheckDerived();
        return _faults;
    }

    private void CheckReceipts()
    {
        using var rows = database.Query("SELECT id, partition, by, received, recorded, sum FROM receipt");
        while (rows.Step())
        {
            if (Checksum.OfReceipt(rows.Number(0), rows.Number(1), rows.Number(2), rows.Number(3),
                rows.Number(4)) != rows.Number(5))
                Fault("receipt", rows.Number(0));
        }
    }

    private void CheckAlerts()
    {
        using var rows = database.Query(
            "SELECT id, service, dialect, source, sender, labels, hash, text, sum FROM alert");
        while (rows.Step())
        {
            if (Checksum.OfAlert(rows.Number(0), rows.Number(1), rows.Number(2), rows.Number(3), rows.Text(4),
                rows.Text(5), rows.Number(6), rows.Text(7)) != rows.Number(8))
                Fault("alert", rows.Number(0));
        }
    }

    private void CheckObservations()
    {
        using var rows = database.Query("""
            SELECT id, recorded, received, by, service, alert, kind, starts, ends, status, text, sum
            FROM observation
            """);
        for (; rows.Step(); Observations++)
        {
            if (Checksum.OfObservation(rows.Number(0), rows.Number(1), rows.Number(2), rows.Number(3),
                rows.Number(4), rows.Number(5), rows.Number(6), rows.Number(7), rows.NumberOrNull(8),
                rows.Number(9), rows.TextOrNull(10)) != rows.Number(11))
                Fault("observation", rows.Number(0));
        }
    }

    private void Fault(string table, long id)
    {
        if (_faults.Count < MaxFaults)
            _faults.Add(
                $"{table} {id}: a fact does not fit its checksum; a backup or another SeS may have it");
    }

    /// <summary>Only of services that are not behind; their timeline is made again, and compared.</summary>
    private void CheckDerived()
    {
        var facts = new ServiceFacts(database);
        var derived = database.Number("SELECT value FROM meta WHERE name = 'derived'") ?? 0;
        var (made, held) = (new List<Run>(), new List<Run>());
        using var services = database.Query("""
            SELECT s.id, (SELECT min(received) FROM receipt r WHERE r.partition = f.partition),
                s.status, s.since, s.open
            FROM service s JOIN family f ON f.id = s.family
            WHERE s.status IS NOT NULL AND (s.due IS NULL OR s.due > ?1)
            """);
        services.Bind(1, UnixTime.From(now));
        for (; services.Step(); Services++)
        {
            var service = services.Number(0);
            facts.Read(service);
            if (facts.Observations.ToArray().Any(o => o.Id > derived))
                continue;
            DateTime? knownFrom = services.NumberOrNull(1) is { } from ? UnixTime.Read(from) : null;
            _ = facts.Derive(knownFrom, now, rules, made);
            facts.ReadRuns(service, held);
            var isPresent = made.Count > 0 && (long)made[^1].Status == services.Number(2)
                && UnixTime.From(ServiceFacts.SinceOf(made, made.Count - 1)) == services.Number(3)
                && made[^1].Open == (services.Number(4) != 0);
            if ((!isPresent || !made.SequenceEqual(held)) && _faults.Count < MaxFaults)
                _faults.Add($"service {service}: its timeline is not what its facts give; "
                    + "ses rebuild makes it again");
        }
    }
}

/// <summary>
/// The alerts that came last, so that repeated copies cost no query; bounded. Keys are hashes with a random
/// key of the process, since label sets are chosen by strangers: two of one key cannot be made.
/// </summary>
internal sealed class RecentAlerts
{
    /// <summary>In each of two generations; some 200 bytes each.</summary>
    private const int Size = 50_000;

    /// <summary>How exactly an open episode's last copy is known: less often is less written.</summary>
    public static readonly TimeSpan SeenStep = TimeSpan.FromHours(1);

    private readonly byte[] _key = RandomNumberGenerator.GetBytes(32);
    private readonly object _gate = new();
    private Dictionary<UInt128, RecentAlert> _young = [], _old = [];

    public UInt128 KeyOf(IncomingAlert alert)
    {
        var text = $"{(int)alert.Source}\n{alert.Sender}\n{alert.Labels}\n{alert.Service}";
        var size = _key.Length + Encoding.UTF8.GetMaxByteCount(text.Length);
        var buffer = ArrayPool<byte>.Shared.Rent(size);
        _key.CopyTo(buffer, 0);
        var length = _key.Length + Encoding.UTF8.GetBytes(text, buffer.AsSpan(_key.Length));
        Span<byte> hash = stackalloc byte[32];
        SHA256.HashData(buffer.AsSpan(0, length), hash);
        ArrayPool<byte>.Shared.Return(buffer);
        return BinaryPrimitives.ReadUInt128LittleEndian(hash);
    }

    /// <summary>Whether a copy tells nothing that is not on disk.</summary>
    public bool Knows(IncomingAlert alert, DateTime now) => Find(KeyOf(alert)) is { } held
        && held.Starts == alert.Starts && (alert.Ends is { } ends ? held.Ends >= ends
            : held.Ends == null && held.Status == alert.Status
                && now - held.Seen < SeenStep && now >= held.Seen);

    public RecentAlert? Find(UInt128 key)
    {
        lock (_gate)
        {
            if (_young.TryGetValue(key, out var held))
                return held;
            if (!_old.Remove(key, out held))
                return null;
            _young[key] = held;
            return held;
        }
    }

    /// <summary>Takes what a commit has put on disk.</summary>
    public void Learn(List<(UInt128 Key, RecentAlert Alert)> learned)
    {
        lock (_gate)
        {
            foreach (var (key, alert) in learned)
                _young[key] = alert;
            if (_young.Count < Size)
                return;
            (_young, _old) = ([], _young);
        }
    }

    public void Clear()
    {
        lock (_gate)
            (_young, _old) = ([], []);
    }
}

/// <summary>A connection that questions take turns on.</summary>
internal sealed class Reader(string path, int cache) : IDisposable
{
    private ServiceFacts? _facts;

    public SqliteConnection Database { get; } = new(path, isReadOnly: true, cache);

    public ServiceFacts Facts => _facts ??= new ServiceFacts(Database);

    public void Dispose() => Database.Dispose();
}

/// <summary>A connection on one state of the database; to be disposed soon.</summary>
internal sealed class Snapshot : IDisposable
{
    private readonly Reader _reader;
    private readonly Action<Reader> _giveBack;

    public Snapshot(Reader reader, Action<Reader> giveBack)
    {
        (_reader, _giveBack) = (reader, giveBack);
        reader.Database.Execute("BEGIN");
        // The state is taken with the first read.
        _ = reader.Database.Number("SELECT 1 FROM meta");
    }

    public ServiceFacts Facts => _reader.Facts;

    /// <summary>A query; dispose it before the snapshot.</summary>
    public SqliteStatement Query(string sql) => _reader.Database.Query(sql);

    /// <summary>For temporary tables; the database itself cannot be written to.</summary>
    public void Execute(string sql) => _reader.Database.Execute(sql);

    /// <summary>The last observation recorded until a moment, by halving: recorded never decreases.</summary>
    public long LastObservation(DateTime moment)
    {
        using var ends = Query("SELECT coalesce(min(id), 0), coalesce(max(id), 0) FROM observation");
        using var before =
            Query("SELECT id, recorded FROM observation WHERE id <= ?1 ORDER BY id DESC LIMIT 1");
        ends.Step();
        var (low, high, until) = (ends.Number(0) - 1, ends.Number(1), UnixTime.From(moment));
        while (low < high)
        {
            var middle = low + ((high - low + 1) / 2);
            before.Bind(1, middle);
            var isThere = before.Step();
            if (isThere && before.Number(1) > until)
                high = before.Number(0) - 1;
            else
                low = middle;
        }
        return low;
    }

    public void Dispose()
    {
        _reader.Database.Execute("ROLLBACK");
        _giveBack(_reader);
    }
}

// =============================== 9e. Questions ===============================
//
// What people and programs ask, answered from one snapshot: the present of services, their changes in order
// of time, availability, and for how long too few of a group were up. Rows come one at a time, in the order
// of an index, so that memory does not grow with the answer. A question as of a day in the past is
// answered from a timeline that is derived anew, from the facts recorded until then, into a temporary table.

/// <summary>The present of a service.</summary>
/// <param name="Status">Null: it is not derived, or not known yet.</param>
internal sealed record PresentRow(ServiceKey Service, string Status, DateTime Since, string Description);

/// <summary>A change of status.</summary>
/// <param name="Place">What a cursor needs beside the time.</param>
internal sealed record ChangeRow(
    long Place, ServiceKey Service, string Status, DateTime Time, string Description, DateTime? Received);

/// <summary>How a service fared in a range; the four times add up to its known part.</summary>
/// <param name="Outages">Each begins and ends with down; unknown of less than a day does not end it.</param>
/// <param name="Longest">The longest outage's time down, as far as it lies in the range.</param>
/// <param name="IsOpen">An outage goes on at the end of the range.</param>
internal readonly record struct Availability(
    TimeSpan Up, TimeSpan Degraded, TimeSpan Down, TimeSpan Unknown, int Outages, TimeSpan Longest,
    bool IsOpen)
{
    /// <summary>Up and degraded in percent of what is known; null: nothing is.</summary>
    public double? Percent => Up + Degraded + Down is { Ticks: > 0 } known
        ? 100.0 * (Up + Degraded).Ticks / known.Ticks : null;
}

/// <summary>A change of a group.</summary>
/// <param name="Up">How many are up after it.</param>
/// <param name="Under">Where it makes them enough again: for how long they were too few.</param>
internal readonly record struct ThresholdRow(
    ServiceKey Service, string Status, DateTime Time, int Up, TimeSpan Under);

/// <summary>Answers questions from a snapshot.</summary>
/// <param name="asOf">Answers from what was recorded until then; null: all.</param>
internal sealed class Questions(Snapshot snapshot, TimelineRules rules, DateTime now, DateTime? asOf = null)
{
    /// <summary>An unknown of so long ends an outage.</summary>
    private static readonly TimeSpan EndsOutage = TimeSpan.FromDays(1);

    /// <summary>So few services' changes are sorted, rather than found among all of a partition.</summary>
    private const int FewServices = 1000;

    private readonly Dictionary<Status, string> _statuses = [];
    private bool _isDerived;

    /// <summary>The moment that the answers are of; what is later is not yet.</summary>
    public DateTime Moment => asOf ?? now;

    /// <summary>The present of each service that a filter takes, in the order of names.</summary>
    public IEnumerable<PresentRow> Present(ServiceFilter filter)
    {
        using var runs = snapshot.Query(
            $"SELECT since, status, observation FROM {Timeline} WHERE service = ?1 ORDER BY at DESC LIMIT 1");
        using var texts = new ObservedTexts(snapshot);
        foreach (var (id, service) in Services(filter))
        {
            if (!runs.Bind(1, id).Step())
                continue;
            var status = (Status)runs.Number(1);
            yield return new PresentRow(service, NameOf(status), UnixTime.Read(runs.Number(0)),
                texts.Of(runs.Number(2), status).Text);
            runs.Reset();
        }
    }

    /// <summary>The changes of the services that a filter takes, in order of time.</summary>
    /// <param name="from">Inclusive; null: from the first on.</param>
    /// <param name="to">Exclusive; null: up to the last.</param>
    /// <param name="after">Goes on after this change: its time and <see cref="ChangeRow.Place"/>.</param>
    public IEnumerable<ChangeRow> History(
        ServiceFilter filter, DateTime? from, DateTime? to, (DateTime Time, long Place)? after = null)
    {
        using var texts = new ObservedTexts(snapshot);
        foreach (var (service, id, change) in Changes(filter, from, to, after))
        {
            var (text, received) = texts.Of(change.Observation, change.Status);
            yield return new ChangeRow(id, service, NameOf(change.Status), change.Time, text, received);
        }
    }

    /// <summary>How each known service that a filter takes fared, in the order of names.</summary>
    /// <param name="to">Null, or later than the moment of the answer: that moment.</param>
    public IEnumerable<(ServiceKey Service, Availability Availability)> Report(
        ServiceFilter filter, DateTime? from, DateTime? to)
    {
        var end = to is { } given && given < Moment ? given : Moment;
        using var runs = snapshot.Query(
            $"SELECT at, until, status FROM {Timeline} WHERE service = ?1 ORDER BY at");
        foreach (var (id, service) in Services(filter))
        {
            var sum = new AvailabilitySum(from ?? DateTime.MinValue, end);
            var isKnown = false;
            for (runs.Bind(1, id); runs.Step(); isKnown = true)
                sum.Add(UnixTime.Read(runs.Number(0)), runs.Number(1) == UnixTime.Open ? end
                    : UnixTime.Read(runs.Number(1)), (Status)runs.Number(2));
            if (isKnown)
                yield return (service, sum.Result);
        }
    }

    /// <summary>
    /// The changes of a group, how many are up after each, and for how long too few were, as Onix's report
    /// ox_ses_events_threshold has them where it is right. It begins with the first change of all.
    /// </summary>
    public IEnumerable<ThresholdRow> Threshold(
        ServiceFilter filter, int threshold, DateTime? from, DateTime? to)
    {
        var up = new HashSet<long>();
        DateTime? since = null;
        var until = to is { } end && end < Moment ? end : Moment;
        foreach (var (service, id, change) in Changes(filter, null, until, null))
        {
            if (change.Status == Status.Unknown)
                continue;
            var under = TimeSpan.Zero;
            if (change.Status == Status.Up)
                up.Add(id);
            if (change.Status == Status.Down)
            {
                up.Remove(id);
                since ??= up.Count < threshold ? change.Time : null;
            }
            if (up.Count >= threshold && since is { } began)
                (under, since) = (change.Time - began, null);
            if (from == null || change.Time >= from)
                yield return new ThresholdRow(service, NameOf(change.Status), change.Time, up.Count, under);
        }
    }

    // ---- Services, changes and texts ----

    /// <summary>The services that a filter takes, in the order of names.</summary>
    public IEnumerable<(long Id, ServiceKey Service)> Services(ServiceFilter filter)
    {
        (string Column, string? Value)[] fields =
            [("p.name", filter.Partition), ("f.platform", filter.Platform),
            ("f.service", filter.Service), ("f.facet", filter.Facet), ("s.location", filter.Location)];
        var given = fields.Where(f => f.Value != null).ToArray();
        var conditions = string.Join(" AND ", given.Select((f, i) => $"{f.Column} = ?{i + 1}"));
        using var rows = snapshot.Query($"""
            SELECT s.id, f.id, p.name, f.platform, f.service, f.facet, s.location
            FROM partition p CROSS JOIN family f ON f.partition = p.id CROSS JOIN service s ON s.family = f.id
            {(given.Length == 0 ? "" : "WHERE ")}{conditions}
            ORDER BY p.name, f.platform, f.service, f.facet, s.location
            """);
        for (var i = 0; i < given.Length; i++)
            rows.Bind(i + 1, given[i].Value);
        var (family, names) = (0L, default(ServiceKey));
        while (rows.Step())
        {
            // The services of a family stand together, and share its names.
            if (rows.Number(1) != family)
                (family, names) = (rows.Number(1),
                    new ServiceKey(rows.Text(2), rows.Text(3), rows.Text(4), rows.Text(5), ""));
            yield return (rows.Number(0), names with { Location = rows.Text(6) });
        }
    }

    /// <summary>Holds the names of the services that a filter takes: at most --max-services.</summary>
    private IEnumerable<(ServiceKey Service, long Id, StatusChange Change)> Changes(
        ServiceFilter filter, DateTime? from, DateTime? to, (DateTime Time, long Place)? after)
    {
        var services = Services(filter).ToDictionary(s => s.Id, s => s.Service);
        var areFew = services.Count <= FewServices || filter.Partition == null;
        var ofThese = areFew ? "service IN (SELECT value FROM json_each(?5))"
            : "partition = (SELECT id FROM partition WHERE name = ?5)";
        using var rows = snapshot.Query($"""
            SELECT service, at, status, observation FROM {Timeline}
            WHERE {ofThese}
                AND at >= ?1 AND at < ?2 AND at = since AND (at > ?3 OR service > ?4)
            ORDER BY at, service
            """);
        // Of the changes at the time of the last one, those of later services are still to come.
        var first = Math.Max(from is { } begin ? UnixTime.From(begin) : long.MinValue,
            after is { } last ? UnixTime.From(last.Time) : long.MinValue);
        rows.Bind(1, first).Bind(2, to is { } end ? UnixTime.From(end) : UnixTime.Open)
            .Bind(3, after is { } at ? UnixTime.From(at.Time) : long.MinValue).Bind(4, after?.Place ?? 0)
            .Bind(5, areFew ? $"[{string.Join(',', services.Keys)}]" : filter.Partition);
        while (rows.Step())
        {
            if (services.TryGetValue(rows.Number(0), out var service))
                yield return (service, rows.Number(0),
                    new StatusChange(UnixTime.Read(rows.Number(1)), (Status)rows.Number(2), rows.Number(3)));
        }
    }

    private string NameOf(Status status)
    {
        if (_statuses.Count == 0)
        {
            using var rows = snapshot.Query("SELECT id, name FROM status");
            while (rows.Step())
                _statuses[(Status)rows.Number(0)] = rows.Text(1);
        }
        return _statuses[status];
    }

    /// <summary>The text of the observation that made a run, and when that was received.</summary>
    private sealed class ObservedTexts(Snapshot snapshot) : IDisposable
    {
        private readonly SqliteStatement _texts = snapshot.Query("""
            SELECT coalesce(o.text, a.text), o.received,
                CASE WHEN a.dialect = 0 THEN json_extract(a.labels, '$.alertname') END
            FROM observation o JOIN alert a ON a.id = o.alert WHERE o.id = ?1
            """);

        /// <summary>A stock alert's recovery has no text of its own: what was sent is the outage's.</summary>
        public (string Text, DateTime? Received) Of(long observation, Status status)
        {
            if (!_texts.Bind(1, observation).Step())
                return ("", null);
            var text = status == Status.Up && _texts.TextOrNull(2) is { } alert
                ? $"{alert} resolved" : _texts.Text(0);
            var received = UnixTime.Read(_texts.Number(1));
            _texts.Reset();
            return (text, received);
        }

        public void Dispose() => _texts.Dispose();
    }

    /// <summary>The table of the timeline, which as of the past is derived first.</summary>
    private string Timeline
    {
        get
        {
            if (asOf is { } moment && !_isDerived)
                Derive(moment);
            _isDerived = true;
            return asOf == null ? "main.timeline" : "temp.timeline";
        }
    }

    private void Derive(DateTime moment)
    {
        var through = snapshot.LastObservation(moment);
        var (facts, runs) = (snapshot.Facts, new List<Run>());
        snapshot.Execute("""
            DROP TABLE IF EXISTS temp.timeline;
            CREATE TEMP TABLE timeline(service INTEGER NOT NULL, at INTEGER NOT NULL, until INTEGER NOT NULL,
                since INTEGER NOT NULL, status INTEGER NOT NULL, open INTEGER NOT NULL,
                observation INTEGER NOT NULL, partition INTEGER NOT NULL,
                PRIMARY KEY(service, at)) WITHOUT ROWID;
            """);
        using var insert =
            snapshot.Query("INSERT INTO temp.timeline VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)");
        using var services = snapshot.Query("""
            SELECT s.id, f.partition,
                (SELECT min(received) FROM receipt r WHERE r.partition = f.partition AND r.recorded <= ?1)
            FROM service s JOIN family f ON f.id = s.family ORDER BY s.id
            """);
        services.Bind(1, UnixTime.From(moment));
        while (services.Step())
        {
            facts.Read(services.Number(0), through);
            DateTime? knownFrom = services.NumberOrNull(2) is { } from ? UnixTime.Read(from) : null;
            _ = facts.Derive(knownFrom, moment, rules, runs);
            for (var i = 0; i < runs.Count; i++)
                insert.Bind(1, services.Number(0)).Bind(2, UnixTime.From(runs[i].From))
                    .Bind(3, runs[i].To is { } to ? UnixTime.From(to) : UnixTime.Open)
                    .Bind(4, UnixTime.From(ServiceFacts.SinceOf(runs, i))).Bind(5, (long)runs[i].Status)
                    .Bind(6, runs[i].Open ? 1 : 0).Bind(7, runs[i].Observation).Bind(8, services.Number(1))
                    .Run();
        }
        snapshot.Execute("""
            CREATE INDEX temp.timeline_time ON timeline(partition, at, service, status, since, observation)
            """);
    }

    /// <summary>Adds up the runs of one service, in order, over a range.</summary>
    private struct AvailabilitySum(DateTime from, DateTime to)
    {
        private TimeSpan _up, _degraded, _down, _unknown, _longest, _outage, _unknownSince;
        private int _outages;
        private bool _isOpen;

        public readonly Availability Result =>
            new(_up, _degraded, _down, _unknown, _outages, _longest, _isOpen && to > from);

        public void Add(DateTime at, DateTime until, Status status)
        {
            var (begin, end) = (at > from ? at : from, until < to ? until : to);
            var counted = end > begin ? end - begin : TimeSpan.Zero;
            Follow(status, until - at, counted);
            switch (status)
            {
                case Status.Up: _up += counted; break;
                case Status.Down: _down += counted; break;
                case Status.Unknown: _unknown += counted; break;
                default: _degraded += counted; break;
            }
        }

        /// <summary>Whether an outage goes on, and how long it has been down within the range.</summary>
        private void Follow(Status status, TimeSpan length, TimeSpan counted)
        {
            _unknownSince = status == Status.Unknown ? _unknownSince + length : TimeSpan.Zero;
            if (status == Status.Down)
            {
                _outage = (_isOpen ? _outage : TimeSpan.Zero) + counted;
                // An outage counts once some of it lies in the range.
                if (counted > TimeSpan.Zero && _outage == counted)
                    _outages++;
                _longest = _outage > _longest ? _outage : _longest;
            }
            _isOpen = status == Status.Down
                || (_isOpen && status == Status.Unknown && _unknownSince < EndsOutage);
        }
    }
}

// ============================ 9d. Incoming alerts ============================
//
// Reads the bodies of Alertmanager's webhook and of Prometheus, and maps each alert in them to a service and
// its status, as the store takes it. Each alert is read on its own, so that one bad field spoils one alert,
// and without an exception, so that a bad one costs no more than a good one. An alert with the labels
// "status" and "facet" is in the SeS dialect, and its status is that label; any other is a stock alert, and
// its severity decides its status. Alerts that cannot be mapped are quarantined, with a reason.

/// <summary>The alerts of one body.</summary>
/// <param name="UnmappableAlerts">Each once, the first of them whole.</param>
/// <param name="MoreUnmappable">All others: copies, and what came after those.</param>
/// <param name="Ignored">Alerts that are about no service, by name, severity or status.</param>
/// <param name="Heartbeats">Alerts that always fire.</param>
/// <param name="Truncated">Alerts that Alertmanager cut off before sending.</param>
internal sealed record ReceivedAlerts(
    IReadOnlyList<IncomingAlert> Alerts, IReadOnlyList<UnmappableAlert> UnmappableAlerts, long MoreUnmappable,
    long Ignored, long Heartbeats, long Truncated);

/// <summary>What alerts mean, by the settings.</summary>
/// <param name="Statuses">
/// By severity, of the dialect by status, in any case; <see cref="Ignore"/>: the alert is left out.
/// </param>
/// <param name="Ignored">Names of alerts that are about no service, in any case.</param>
/// <param name="Heartbeats">Names of alerts that always fire, in any case; they are looked for first.</param>
internal sealed record MappingRules(
    FieldMap Fields, IReadOnlyDictionary<string, string> Statuses, IReadOnlySet<string> Ignored,
    IReadOnlySet<string> Heartbeats)
{
    public const string DefaultStatuses = "warning=degraded,info=ignore,none=ignore",
        DefaultIgnored = "InfoInhibitor,DatasourceNoData,DatasourceError",
        DefaultHeartbeats = "Watchdog,DeadMansSwitch", Ignore = "ignore";

    private static readonly FieldMap DefaultFields = new(
        new()
        {
            ["platform"] = [.. FieldMap.Labels("platform", "cluster"), FieldMap.InPartition],
            ["service"] = FieldMap.Labels("service"),
            ["facet"] = FieldMap.Labels("facet"),
            ["location"] = [new(FieldSourceKind.AnnotationFirst, "location")],
            ["description"] = FieldMap.Labels("description"),
        },
        new()
        {
            ["platform"] = [.. FieldMap.Labels("platform", "cluster"), FieldMap.InPartition],
            ["service"] = [.. FieldMap.Labels("service", "job", "app", "app_kubernetes_io_name"),
                new(FieldSourceKind.AlertName, "")],
            ["facet"] = FieldMap.Labels("facet", "alertname"),
            ["location"] = FieldMap.Labels("location", "instance"),
            ["description"] = FieldMap.Labels("summary", "description", "message"),
        });

    public static MappingRules Default { get; } = new(DefaultFields, ParseStatuses(DefaultStatuses),
        ParseNames(DefaultIgnored), ParseNames(DefaultHeartbeats));

    /// <summary>As <see cref="FieldMap.Parse"/>; fields that are not named keep the defaults here.</summary>
    /// <exception cref="FormatException">What is allowed instead.</exception>
    public static FieldMap ParseFields(string text) => FieldMap.Parse(text, DefaultFields);

    /// <summary>Reads <c>warning=degraded,info=ignore</c>; an empty text names no severity.</summary>
    /// <exception cref="FormatException">What is allowed instead.</exception>
    public static IReadOnlyDictionary<string, string> ParseStatuses(string text)
    {
        var statuses = new Dictionary<string, string>(StringComparer.OrdinalIgnoreCase);
        foreach (var rule in Split(text))
        {
            var equals = rule.IndexOf('=', StringComparison.Ordinal);
            var severity = rule[..Math.Max(equals, 0)].TrimEnd();
            var status = rule[(equals + 1)..].TrimStart();
            if (severity == "" || status == "" || status.Contains('=', StringComparison.Ordinal)
                || !statuses.TryAdd(severity, status.ToLowerInvariant()))
                throw new FormatException($"SEVERITY=STATUS,... or SEVERITY={Ignore}, each severity once");
        }
        return statuses;
    }

    /// <summary>Reads <c>Watchdog,DeadMansSwitch</c>; an empty text names no alert.</summary>
    /// <exception cref="FormatException">What is allowed instead.</exception>
    public static IReadOnlySet<string> ParseNames(string text)
    {
        var names = Split(text);
        return !names.Contains("") ? names.ToHashSet(StringComparer.OrdinalIgnoreCase)
            : throw new FormatException("names of alerts with commas between them");
    }

    private static string[] Split(string text) =>
        text.Trim() == "" ? [] : text.Split(',', StringSplitOptions.TrimEntries);
}

/// <summary>Reads bodies and maps their alerts; pure, so that two SeS map alike.</summary>
internal static class AlertReader
{
    /// <summary>Reasons of Grafana for the end of an alert that is no recovery.</summary>
    private static readonly string[] GivenUp = ["MissingSeries", "Paused", "Updated"];

    /// <summary>No time is too far ahead of it.</summary>
    private static readonly DateTime Endless = DateTime.MaxValue - AlertMapping.MaxAhead;

    /// <summary>What the alerts of a body are mapped by.</summary>
    private sealed record Context(string Partition, AlertSource Source, MappingRules Rules, DateTime Now);

    private enum Outcome { Mapped, Ignored, Heartbeat, Unmappable }

    /// <summary>Maps the alerts of a body, in the order in which they were sent.</summary>
    /// <param name="body">
    /// Of a webhook an object with the list <c>alerts</c>, as Alertmanager and Grafana send it; of Prometheus
    /// that list alone.
    /// </param>
    /// <exception cref="PayloadException">It is no JSON, or has no list of alerts.</exception>
    public static ReceivedAlerts Read(
        ReadOnlySpan<byte> body, string partition, AlertSource source, MappingRules rules, DateTime now)
    {
        var (list, truncated) = FindAlerts(body, source);
        var (alerts, unmappable) = (new List<IncomingAlert>(), new UnmappableAlerts());
        var (ignored, heartbeats) = (0L, 0L);
        var (alert, context) = (new AlertFields(source), new Context(partition, source, rules, now));
        var reader = JsonText.NewReader(body[list]);
        reader.Read();
        while (reader.Read() && reader.TokenType != JsonTokenType.EndArray)
        {
            var start = list.Start.Value + (int)reader.TokenStartIndex;
            alert.Read(ref reader);
            switch (Map(alert, context, out var mapped))
            {
                case Outcome.Mapped:
                    alerts.Add(mapped!);
                    break;
                case Outcome.Ignored:
                    ignored++;
                    break;
                case Outcome.Heartbeat:
                    heartbeats++;
                    break;
                default:
                    unmappable.Add(alert, body, start..(list.Start.Value + (int)reader.BytesConsumed));
                    break;
            }
        }
        return new(alerts, unmappable.Kept, unmappable.More, ignored, heartbeats, truncated);
    }

    /// <summary>Where the list of alerts is, all of the body being JSON, and how many were cut off.</summary>
    private static (Range Alerts, long Truncated) FindAlerts(ReadOnlySpan<byte> body, AlertSource source)
    {
        if (body.IsEmpty)
            throw new PayloadException("The body is empty.");
        var reader = JsonText.NewReader(body);
        try
        {
            reader.Read();
            var found = source == AlertSource.Webhook ? FindInObject(ref reader)
                : reader.TokenType == JsonTokenType.StartArray ? (SkipArray(ref reader), 0)
                : throw new PayloadException("The body is not a JSON array.");
            // What follows must be white space: else this throws.
            reader.Read();
            return found;
        }
        catch (JsonException e)
        {
            throw new PayloadException($"The body is not JSON: {e.Message}");
        }
    }

    private static (Range Alerts, long Truncated) FindInObject(ref Utf8JsonReader reader)
    {
        if (reader.TokenType != JsonTokenType.StartObject)
            throw new PayloadException("The body is not a JSON object.");
        (Range? alerts, long truncated) = (null, 0);
        while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
        {
            var name = JsonText.Read(ref reader);
            reader.Read();
            if (name == "alerts" && reader.TokenType == JsonTokenType.StartArray)
                alerts = SkipArray(ref reader);
            else if (name == "truncatedAlerts" && reader.TokenType == JsonTokenType.Number)
                truncated = reader.TryGetInt64(out var count) ? Math.Max(count, 0) : 0;
            else
                reader.Skip();
        }
        return (alerts ?? throw new PayloadException("The body has no list of alerts."), truncated);
    }

    private static Range SkipArray(ref Utf8JsonReader reader)
    {
        var start = (int)reader.TokenStartIndex;
        reader.Skip();
        return start..(int)reader.BytesConsumed;
    }

    private static Outcome Map(AlertFields alert, Context context, out IncomingAlert? mapped)
    {
        mapped = null;
        if (alert.Reason != null)
            return Outcome.Unmappable;
        var (rules, name) = (context.Rules, alert.Labels.Get("alertname"));
        if (name != null && rules.Heartbeats.Contains(name))
            return Outcome.Heartbeat;
        if (name != null && rules.Ignored.Contains(name))
            return Outcome.Ignored;
        CheckKind(alert, name);
        var status = StatusOf(alert, rules);
        if (alert.Reason == null && status == MappingRules.Ignore)
            return Outcome.Ignored;
        mapped = alert.Reason == null ? Map(alert, name, status, context) : null;
        return mapped == null ? Outcome.Unmappable : Outcome.Mapped;
    }

    /// <summary>Sets aside what can only be a dialect alert with a mistake, and what has no name.</summary>
    private static void CheckKind(AlertFields alert, string? name)
    {
        if (alert.IsDialect)
            return;
        var status = alert.Labels.Get("status")?.ToLowerInvariant();
        if (status is "up" or "down" && alert.Labels.Get("platform") != null)
            alert.Fail("it has no facet, but a platform and the status up or down");
        else if (name == null)
            alert.Fail("it has no alertname");
    }

    private static string StatusOf(AlertFields alert, MappingRules rules)
    {
        var text = alert.Labels.Get(alert.IsDialect ? "status" : "severity");
        return text != null && rules.Statuses.TryGetValue(text, out var status) ? status
            : alert.IsDialect ? text!.ToLowerInvariant() : "down";
    }

    /// <summary>Null when the alert cannot be mapped; it then has the reason.</summary>
    private static IncomingAlert? Map(AlertFields alert, string? name, string status, Context context)
    {
        var service = ServiceOf(alert, name, context);
        var description = ValueOf(alert, "description", name, context) ?? name ?? "";
        if (AlertMapping.Unusable(service with { Location = "" }, status) is { } flaw)
            alert.Fail(flaw);
        // Labels are left over once all fields have theirs.
        service = service with { Location = LocationOf(service.Location, alert) };
        var (starts, ends) = TimesOf(alert, context);
        var isPrometheus = context.Source == AlertSource.Prometheus;
        return alert.Reason != null ? null : new IncomingAlert(
            service, alert.IsDialect, context.Source, isPrometheus ? SenderOf(alert.GeneratorUrl) : "",
            alert.Labels.ToJson(), status, starts, isPrometheus ? null : ends,
            AlertMapping.Clip(description, AlertMapping.MaxDescription), isPrometheus ? ends : null,
            (isPrometheus || ends != null) && IsGivenUp(alert));
    }

    // ---- Fields ----

    private static ServiceKey ServiceOf(AlertFields alert, string? name, Context context)
    {
        string Value(string field) => ValueOf(alert, field, name, context) ?? "";
        return new(context.Partition, Value("platform"), Value("service"), Value("facet"), Value("location"));
    }

    /// <summary>The first of a field's sources among the labels, else among the annotations.</summary>
    private static string? ValueOf(AlertFields alert, string field, string? name, Context context)
    {
        var sources = context.Rules.Fields.Of(field, !alert.IsDialect);
        var (first, second) = sources[0].Kind == FieldSourceKind.AnnotationFirst
            ? (alert.Annotations, alert.Labels) : (alert.Labels, alert.Annotations);
        var fallback = Array.FindIndex(
            sources, s => s.Kind is not (FieldSourceKind.Label or FieldSourceKind.AnnotationFirst));
        var named = fallback < 0 ? sources : sources.AsSpan(0, fallback);
        if ((first.Use(named) ?? second.Use(named)) is { } value)
            return value;
        return fallback < 0 ? null : sources[fallback].Kind switch
        {
            FieldSourceKind.Literal => sources[fallback].Name,
            FieldSourceKind.Partition => context.Partition,
            _ => name,
        };
    }

    /// <summary>
    /// The place, and of a stock alert the labels that no field used: an alert is its labels. One that is too
    /// long is cut after a whole label, and told apart from others by its hash.
    /// </summary>
    private static string LocationOf(string place, AlertFields alert)
    {
        List<string> labels = alert.IsDialect ? [] : alert.Labels.Unused();
        var whole = labels.Count == 0 ? place : $"{place}{{{string.Join(',', labels)}}}";
        if (Encoding.UTF8.GetByteCount(whole) <= AlertMapping.MaxField)
            return whole;
        var digest = SHA256.HashData(Encoding.UTF8.GetBytes(whole)).AsSpan(0, 4);
        var hash = $"…#{Convert.ToHexStringLower(digest)}";
        var space = AlertMapping.MaxField - Encoding.UTF8.GetByteCount(hash);
        var text = new StringBuilder(AlertMapping.Clip(place, space));
        space -= Encoding.UTF8.GetByteCount(place);
        foreach (var label in labels)
        {
            space -= 1 + Encoding.UTF8.GetByteCount(label);
            if (space < 0)
                break;
            text.Append(text.Length == place.Length ? '{' : ',').Append(label);
        }
        return text.Append(hash).ToString();
    }

    // ---- Start and end ----

    /// <summary>The start, and the end, if there is one; of Prometheus's until when it is valid.</summary>
    private static (DateTime Starts, DateTime? Ends) TimesOf(AlertFields alert, Context context)
    {
        if (context.Source == AlertSource.Prometheus)
        {
            var latest = context.Now + AlertMapping.MaxAhead;
            var starts = IsUnset(alert.StartsAt) ? default
                : TimeOf(alert, alert.StartsAt, "startsAt", context.Now);
            DateTime? ends = IsUnset(alert.EndsAt) ? null : TimeOf(alert, alert.EndsAt, "endsAt", Endless);
            return (starts, ends > latest ? latest : ends);
        }
        // A dialect alert may lack what Alertmanager says of each.
        var isFiring = alert.Status == "firing" || (alert.Status == null && alert.IsDialect);
        if (!isFiring && alert.Status != "resolved")
            alert.Fail("status is neither firing nor resolved");
        return (TimeOf(alert, alert.StartsAt, "startsAt", context.Now),
            isFiring ? null : TimeOf(alert, alert.EndsAt, "endsAt", context.Now));
    }

    /// <summary>Zero is what Go writes for no time.</summary>
    private static bool IsUnset(string? text) => string.IsNullOrEmpty(text)
        || (text.StartsWith("0001-", StringComparison.Ordinal)
            && Rfc3339.TryParse(text.ToUpperInvariant(), out var time) && time == default);

    /// <summary>In whole milliseconds; RFC 3339 allows t and z. No time: the alert has the reason.</summary>
    private static DateTime TimeOf(AlertFields alert, string? text, string name, DateTime now)
    {
        if (!AlertMapping.ReadTime(text?.ToUpperInvariant(), name, now, out var time, out var reason))
            alert.Fail(reason);
        return time.AddTicks(-(time.Ticks % TimeSpan.TicksPerMillisecond));
    }

    /// <summary>Grafana gives one reason or several.</summary>
    private static bool IsGivenUp(AlertFields alert) =>
        alert.Annotations.Get("grafana_state_reason")?.Split(", ").Any(GivenUp.Contains) == true;

    /// <summary>Scheme and host of a URL, without credentials; empty when there are none.</summary>
    private static string SenderOf(string? url)
    {
        var colon = url?.IndexOf("://", StringComparison.Ordinal) ?? -1;
        if (colon <= 0)
            return "";
        var host = url.AsSpan(colon + 3);
        var end = host.IndexOfAny('/', '?', '#');
        host = end < 0 ? host : host[..end];
        host = host[(host.LastIndexOf('@') + 1)..];
        return host.IsEmpty ? ""
            : AlertMapping.Clip($"{url.AsSpan(0, colon)}://{host}".ToLowerInvariant(), AlertMapping.MaxField);
    }
}

/// <summary>The fields of one alert, as sent; used for all alerts of a body, one after the other.</summary>
internal sealed class AlertFields(AlertSource source)
{
    public AlertTexts Labels { get; } = new();
    public AlertTexts Annotations { get; } = new();

    // Null: absent, or null. What the sender says of status does not count if it is Prometheus.
    public string? Status { get; private set; }
    public string? StartsAt { get; private set; }
    public string? EndsAt { get; private set; }
    public string? Fingerprint { get; private set; }
    public string? GeneratorUrl { get; private set; }

    public bool IsDialect { get; private set; }

    /// <summary>Why it cannot be mapped, the first reason that was found; null: none was.</summary>
    public string? Reason { get; private set; }

    public void Fail(string reason) => Reason ??= reason;

    /// <summary>Reads what stands at the reader, up to its end, and forgets the alert before.</summary>
    public void Read(ref Utf8JsonReader reader)
    {
        Labels.Clear();
        Annotations.Clear();
        Status = StartsAt = EndsAt = Fingerprint = GeneratorUrl = Reason = null;
        if (reader.TokenType != JsonTokenType.StartObject)
        {
            Fail("it is not an object");
            reader.Skip();
            return;
        }
        while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
            ReadField(ref reader);
        Labels.Sort();
        Annotations.Sort();
        IsDialect = Labels.Get("status") != null && Labels.Get("facet") != null;
    }

    private void ReadField(ref Utf8JsonReader reader)
    {
        var name = JsonText.Read(ref reader);
        reader.Read();
        switch (name)
        {
            case "labels":
                ReadTexts(ref reader, name, Labels);
                break;
            case "annotations":
                ReadTexts(ref reader, name, Annotations);
                break;
            case "status" when source == AlertSource.Webhook:
                Status = ReadText(ref reader, name);
                break;
            case "startsAt":
                StartsAt = ReadText(ref reader, name);
                break;
            case "endsAt":
                EndsAt = ReadText(ref reader, name);
                break;
            case "fingerprint":
                Fingerprint = JsonText.Read(ref reader);
                break;
            case "generatorURL":
                GeneratorUrl = JsonText.Read(ref reader);
                break;
        }
        reader.Skip();
    }

    private string? ReadText(ref Utf8JsonReader reader, string field)
    {
        var text = JsonText.Read(ref reader);
        if (text == null && reader.TokenType != JsonTokenType.Null)
            FailType(field);
        return text;
    }

    private void ReadTexts(ref Utf8JsonReader reader, string field, AlertTexts texts)
    {
        // Of two fields of one name the last counts, and of two labels too.
        texts.Clear();
        if (reader.TokenType is not (JsonTokenType.StartObject or JsonTokenType.Null))
            FailType(field);
        if (reader.TokenType != JsonTokenType.StartObject)
            return;
        while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
        {
            var name = JsonText.Read(ref reader);
            reader.Read();
            if (name == null)
                Fail("a text in it is not valid Unicode");
            else if (JsonText.Read(ref reader) is { } text)
                texts.Add(name, text);
            else if (reader.TokenType == JsonTokenType.Null)
                texts.Add(name, "");
            else
                FailType(name.Length <= 100 && !name.Any(char.IsControl) ? $"{field}.{name}" : field);
            reader.Skip();
        }
    }

    private void FailType(string field) => Fail($"{field} is of the wrong type, or not usable as text");
}

/// <summary>Labels or annotations of one alert, found by name without regard to case.</summary>
internal sealed class AlertTexts
{
    /// <summary>They tell how bad it is and which Prometheus sent it; the name is the facet.</summary>
    private static readonly string[] NoPlace =
        ["severity", "prometheus", "prometheus_replica", "replica", "alertname"];

    private readonly List<Entry> _entries = [];

    private record struct Entry(string Name, string Value, int Index, bool IsUsed = false);

    public int Count => _entries.Count;

    public void Clear() => _entries.Clear();

    public void Add(string name, string value) => _entries.Add(new(name, value, _entries.Count));

    /// <summary>By name, of each the last; without empty ones, which for Prometheus are absent.</summary>
    public void Sort()
    {
        _entries.Sort(static (a, b) =>
            string.CompareOrdinal(a.Name, b.Name) is not 0 and var order ? order : a.Index - b.Index);
        var count = 0;
        for (var i = 0; i < _entries.Count; i++)
        {
            var isLast = i + 1 == _entries.Count || _entries[i + 1].Name != _entries[i].Name;
            if (isLast && _entries[i].Value != "")
                _entries[count++] = _entries[i];
        }
        _entries.RemoveRange(count, _entries.Count - count);
    }

    /// <summary>Null when it is absent or empty.</summary>
    public string? Get(string name) => Find(name) is >= 0 and var i ? _entries[i].Value : null;

    /// <summary>The first of the sources that is there, which is then no longer among the unused.</summary>
    public string? Use(ReadOnlySpan<FieldSource> sources)
    {
        foreach (var source in sources)
        {
            var i = Find(source.Name);
            if (i < 0)
                continue;
            _entries[i] = _entries[i] with { IsUsed = true };
            return _entries[i].Value;
        }
        return null;
    }

    /// <summary>The exact name before others, of these the first by name.</summary>
    private int Find(string name)
    {
        var found = -1;
        for (var i = 0; i < _entries.Count; i++)
        {
            if (_entries[i].Name == name)
                return i;
            if (found < 0 && _entries[i].Name.Equals(name, StringComparison.OrdinalIgnoreCase))
                found = i;
        }
        return found;
    }

    /// <summary>What no field used and what tells of the place, as Prometheus writes it.</summary>
    public List<string> Unused() =>
    [
        .. _entries.Where(e => !e.IsUsed && !NoPlace.Contains(e.Name, StringComparer.OrdinalIgnoreCase))
            .Select(e => AlertMapping.WriteLabel(e.Name, e.Value)),
    ];

    /// <summary>
    /// As JSON, the same for the same texts: sorted by name, without spaces; only quotes, backslashes and
    /// control characters, these as <c>\u0009</c>, are escaped.
    /// </summary>
    public string ToJson()
    {
        var json = new StringBuilder("{");
        foreach (var (name, value, _, _) in _entries)
        {
            JsonText.Write(json.Append(json.Length > 1 ? "," : ""), name);
            JsonText.Write(json.Append(':'), value);
        }
        return json.Append('}').ToString();
    }
}

/// <summary>
/// The alerts of one body that cannot be mapped: the first 1,000 that differ whole, of the others the number.
/// </summary>
internal sealed class UnmappableAlerts
{
    public const int MaxKept = 1000;

    private readonly List<UnmappableAlert> _kept = [];
    private readonly HashSet<string> _identities = [];

    /// <summary>Where those that are kept stand in the body, by a hash of their bytes.</summary>
    private readonly Dictionary<int, Range> _places = [];

    public IReadOnlyList<UnmappableAlert> Kept => _kept;

    public long More { get; private set; }

    /// <summary>Copies cost little, as does what comes after the last that is kept.</summary>
    public void Add(AlertFields alert, ReadOnlySpan<byte> body, Range place)
    {
        if (_kept.Count >= MaxKept || IsCopy(body, place, out var hash) || !Keep(alert, body[place]))
            More++;
        else
            _places[hash] = place;
    }

    private bool IsCopy(ReadOnlySpan<byte> body, Range place, out int hash)
    {
        var code = new HashCode();
        code.AddBytes(body[place]);
        hash = code.ToHashCode();
        return _places.TryGetValue(hash, out var known) && body[known].SequenceEqual(body[place]);
    }

    private bool Keep(AlertFields alert, ReadOnlySpan<byte> raw)
    {
        // Prometheus sends no fingerprint, and each copy has another end: its alerts are their labels.
        var labels = alert.Labels.Count == 0 ? null : alert.Labels.ToJson();
        var unmappable = AlertMapping.MakeUnmappable(new AlertBody
        {
            Labels = new() { ["alertname"] = alert.Labels.Get("alertname") },
            Fingerprint = alert.Fingerprint ?? (labels == null ? null
                : Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(labels)).AsSpan(0, 8))),
            Status = alert.Status,
            StartsAt = alert.StartsAt,
            EndsAt = alert.Status == null ? null : alert.EndsAt,
        }, alert.Reason!, raw);
        if (!_identities.Add(unmappable.Identity))
            return false;
        _kept.Add(unmappable);
        return true;
    }
}

/// <summary>Texts in JSON, read without an exception and written in one form.</summary>
internal static class JsonText
{
    public static Utf8JsonReader NewReader(ReadOnlySpan<byte> json) =>
        new(json, new JsonReaderOptions { MaxDepth = AlertMapping.MaxDepth });

    /// <summary>
    /// A name, a text, a number, true or false as text, without NUL; null for all else, and for what is not
    /// valid Unicode.
    /// </summary>
    public static string? Read(ref Utf8JsonReader reader) => reader.TokenType switch
    {
        JsonTokenType.PropertyName or JsonTokenType.String =>
            IsUnicode(reader) ? reader.GetString()!.Replace('\0', '\ufffd') : null,
        JsonTokenType.Number or JsonTokenType.True or JsonTokenType.False =>
            Encoding.UTF8.GetString(reader.ValueSpan),
        _ => null,
    };

    /// <summary>The reader checks the form of escapes, but neither surrogates nor bytes above 127.</summary>
    private static bool IsUnicode(in Utf8JsonReader reader)
    {
        var text = reader.ValueSpan;
        if (!Utf8.IsValid(text))
            return false;
        var isAfterHigh = false;
        for (var i = reader.ValueIsEscaped ? 0 : text.Length; i < text.Length; i++)
        {
            var c = '\0';
            if (text[i] == '\\' && text[++i] == 'u')
            {
                c = (char)ushort.Parse(
                    text.Slice(i + 1, 4), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);
                i += 4;
            }
            if (char.IsLowSurrogate(c) != isAfterHigh)
                return false;
            isAfterHigh = char.IsHighSurrogate(c);
        }
        return !isAfterHigh;
    }

    /// <summary>Within quotes; the text has no lone surrogates.</summary>
    public static void Write(StringBuilder json, string text)
    {
        json.Append('"');
        foreach (var c in text)
        {
            if (c is '"' or '\\')
                json.Append('\\').Append(c);
            else if (c < ' ')
                json.Append(CultureInfo.InvariantCulture, $"\\u{(int)c:x4}");
            else
                json.Append(c);
        }
        json.Append('"');
    }
}

// ================================= 10. Onix ==================================
//
// Onix is the CMDB that keeps each change of an item. It serves one request at a time, answers 200 when
// it refuses every item, 404 when its database is away, and guards items by a version: equal writes,
// anything else is "L", -1 inserts only, and an absent item is inserted whatever the version is.
// This section exchanges requests and answers; the Recorder decides what an answer means for the history.

/// <summary>
/// Is thrown when Onix is away, slow or denies access: the result is unknown, try again later.
/// </summary>
internal sealed class OnixException(string message) : Exception(message);

/// <summary>
/// Is thrown when Onix refuses a request as a whole, with 400 or 413: a smaller one may do.
/// </summary>
internal sealed class OnixRequestRefusedException(string message) : Exception(message);

/// <summary>A service as Onix holds it.</summary>
internal sealed record OnixItem(string Key, ServiceKey Service, string Status, DateTime Time, long Version)
{
    /// <summary>Whether an event is later than the item's, in the order that windows have.</summary>
    public bool IsBefore(StatusEvent e) => StatusEvent.Compare(Time, Status, e.Time, e.Status) < 0;
}

/// <summary>A change to write: the item with this key, if Onix still holds this version of it.</summary>
internal sealed record ItemChange(string Key, StatusEvent Event, long Version)
{
    /// <summary>The version that inserts, and never overwrites.</summary>
    public const long Insert = -1;
}

internal enum ChangeOutcome { Inserted, Updated, Unchanged, Locked, Refused }

/// <summary>Onix's result for one change, with Onix's own message.</summary>
internal readonly record struct ChangeResult(ChangeOutcome Outcome, string Message)
{
    public bool IsAccepted => Outcome is not (ChangeOutcome.Refused or ChangeOutcome.Locked);
}

internal sealed class DataBody
{
    public List<ModelBody>? Models { get; init; }
    public List<ItemTypeBody>? ItemTypes { get; init; }
    public List<ItemTypeAttributeBody>? ItemTypeAttributes { get; init; }
    public List<ItemBody>? Items { get; init; }
}

internal sealed record ModelBody(string Key, string Name, string Description, bool Managed);

internal sealed record ItemTypeBody(string Key, string Name, string Description, string ModelKey);

internal sealed record ItemTypeAttributeBody(
    string Key, string Name, string Description, string Type, bool Required, string ItemTypeKey);

internal sealed class ItemBody
{
    public string? Key { get; init; }
    public string? Name { get; init; }
    public string? Description { get; init; }
    public string? Type { get; init; }
    public Dictionary<string, string?>? Attribute { get; init; }
    public string? Partition { get; init; }
    public long Version { get; init; }
}

internal sealed class ItemList
{
    public List<ItemBody>? Values { get; init; }
}

internal sealed class DataResult
{
    public List<ValueResult>? Values { get; init; }
}

internal sealed class ValueResult
{
    public string? Operation { get; init; }
    public bool Error { get; init; }
    public string? Message { get; init; }
}

internal sealed class TokenResponse
{
    [JsonPropertyName("access_token")]
    public string? AccessToken { get; init; }

    [JsonPropertyName("expires_in")]
    public int? ExpiresIn { get; init; }
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase,
    DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull)]
[JsonSerializable(typeof(DataBody))]
[JsonSerializable(typeof(DataResult))]
[JsonSerializable(typeof(ItemList))]
[JsonSerializable(typeof(ItemBody))]
[JsonSerializable(typeof(TokenResponse))]
internal sealed partial class OnixJson : JsonSerializerContext;

/// <summary>Names in Onix; existing installations and reports depend on each.</summary>
internal static class OnixNames
{
    public const string Model = "SES", ItemType = "SES_SERVICE";

    private const int MaxKey = 100, CutKey = 91;

    /// <summary>Onix's firewall refuses these in a path, so that the item could not be read.</summary>
    private static readonly SearchValues<char> Refused = SearchValues.Create("/;\\%");

    /// <summary><c>{platform}_{service}_{facet}_{location}</c>, as it always was.</summary>
    public static string Key(ServiceKey service)
    {
        var key = Plain(service);
        return key.Length <= MaxKey ? key : AlternateKey(service);
    }

    /// <summary>For a service whose key is another's, or too long: cut, with a hash of the five.</summary>
    public static string AlternateKey(ServiceKey service)
    {
        var key = Plain(service);
        var cut = Math.Min(key.Length, CutKey);
        if (cut < key.Length && char.IsHighSurrogate(key[cut - 1]))
            cut--;
        var five = string.Join('\n', service.Partition, service.Platform, service.Service, service.Facet,
            service.Location);
        return $"{key[..cut]}_{Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(five)))[..8]}";
    }

    private static string Plain(ServiceKey service)
    {
        var location = service.Location == "" ? "_" : service.Location.Replace(':', '_').Replace('.', '_');
        var key = $"{service.Platform}_{service.Service}_{service.Facet}_{location}";
        return string.Create(key.Length, key, (span, from) =>
        {
            for (var i = 0; i < span.Length; i++)
                span[i] = char.IsControl(from[i]) || Refused.Contains(from[i]) ? '_' : from[i];
        });
    }

    public static ItemBody Item(ItemChange change)
    {
        var (service, e) = (change.Event.Service, change.Event);
        return new ItemBody
        {
            Key = change.Key,
            Name = service.Service + " Service",
            Description = e.Description,
            Type = ItemType,
            Partition = service.Partition,
            Version = change.Version,
            Attribute = new Dictionary<string, string?>
            {
                ["service"] = service.Service,
                ["status"] = e.Status,
                ["description"] = e.Description,
                ["location"] = service.Location,
                ["time"] = Rfc3339.Format(e.Time),
                ["platform"] = service.Platform,
                ["facet"] = service.Facet,
            },
        };
    }

    /// <summary>An item without status or time, which somebody else made, is older than any event.</summary>
    public static OnixItem Held(ItemBody item)
    {
        string Of(string name) => item.Attribute?.GetValueOrDefault(name) ?? "";
        var location = Of("location");
        var service = new ServiceKey(item.Partition ?? "", Of("platform"), Of("service"), Of("facet"),
            location == "_" ? "" : location);
        return new OnixItem(item.Key ?? "", service, Of("status"),
            Rfc3339.TryParse(Of("time"), out var time) ? time : DateTime.MinValue, item.Version);
    }

    public static DataBody ModelData() => new()
    {
        Models = [new(Model, "Service Status Model",
            "Defines the Service item that capture status change information.", true)],
        ItemTypes = [new(ItemType, "SeS Service",
            "Defines a service that is monitored for status changes.", Model)],
        ItemTypeAttributes =
        [
            Attribute("NAME", "service", "The name of the service for which events are recorded."),
            Attribute("STATUS", "status", "The status of the service."),
            Attribute("LOCATION", "location", "The location of the service, typically a URI.",
                required: false),
            Attribute("DESCRIPTION", "description", "The description of the service status."),
            Attribute("TIME", "time", "The time of the event.", type: "date"),
            Attribute("PLATFORM", "platform", "The platform for the event."),
            Attribute("FACET", "facet", "The aspect of the service this event relates to (e.g. category)"),
        ],
    };

    private static ItemTypeAttributeBody Attribute(
        string key, string name, string description, string type = "string", bool required = true) =>
        new($"{ItemType}_ATTR_{key}", name, description, type, required, ItemType);
}

/// <summary>Sends requests to Onix, one at a time; only the Recorder uses it.</summary>
internal sealed class OnixClient
{
    /// <summary>Longer than Onix's own 30 s, after which it answers with an error.</summary>
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(60);

    /// <summary>More items than any site has; Onix takes the number as a limit.</summary>
    private const int ListLimit = 1_000_000;

    private const string LeastRights = "the user needs read on partition REF, and read and create on the "
        + "partitions written to, once an administrator's SeS has made the model";

    private readonly Options _options;
    private readonly HttpClient _http;
    private readonly TimeProvider _clock;
    private readonly Meters _meters;
    private readonly string _base;
    // Kept from request to request: a body is large, and there is one at a time.
    private readonly ArrayBufferWriter<byte> _body = new();
    private string? _token;
    private long _tokenTaken;
    private TimeSpan _tokenLife;

    public OnixClient(Options options, HttpMessageHandler handler, TimeProvider clock, Meters meters)
    {
        (_options, _clock, _meters) = (options, clock, meters);
        _http = new HttpClient(handler) { Timeout = Timeout.InfiniteTimeSpan };
        _base = options.OnixUrl!.AbsoluteUri.TrimEnd('/');
    }

    /// <summary>
    /// Connects to Onix: one connection, kept for less than Onix's own 30 s, without redirects.
    /// </summary>
    /// <exception cref="CryptographicException">The CA file holds no certificate.</exception>
    public static SocketsHttpHandler CreateHandler(Options options)
    {
        var tls = new SslClientAuthenticationOptions();
        if (options.OnixCaFile != null)
        {
            tls.CertificateChainPolicy = new X509ChainPolicy
            {
                TrustMode = X509ChainTrustMode.CustomRootTrust,
                RevocationMode = X509RevocationMode.NoCheck,
            };
            tls.CertificateChainPolicy.CustomTrustStore.ImportFromPemFile(options.OnixCaFile);
            if (tls.CertificateChainPolicy.CustomTrustStore.Count == 0)
                throw new CryptographicException("there is none in it");
        }
        else if (options.OnixInsecureSkipVerify)
        {
#pragma warning disable CA5359 // The user's explicit setting, warned of at the start.
            tls.RemoteCertificateValidationCallback = (_, _, _, _) => true;
#pragma warning restore CA5359
        }
        return new SocketsHttpHandler
        {
            AllowAutoRedirect = false,
            ConnectTimeout = TimeSpan.FromSeconds(10),
            MaxConnectionsPerServer = 1,
            PooledConnectionIdleTimeout = TimeSpan.FromSeconds(20),
            SslOptions = tls,
            // Onix's session cookie saves it 9 ms of password hashing a request.
            UseCookies = options.OnixAuthMode == AuthMode.Basic,
        };
    }

    /// <summary>Makes sure that model, item type and attributes are there.</summary>
    /// <param name="again">Write them even if the model can be read: an item type was missing.</param>
    public async Task EnsureModelAsync(bool again, CancellationToken stop)
    {
        if (!again && await AskAsync("model", HttpMethod.Get, "/model/" + OnixNames.Model, null,
            (answer, _) => Task.FromResult(answer.StatusCode switch
            {
                HttpStatusCode.OK => true,
                HttpStatusCode.NotFound => false,
                _ => throw Unexpected(answer),
            }), stop))
            return;
        var result = await AskAsync("model", HttpMethod.Put, "/data", OnixNames.ModelData(),
            (answer, limit) => ReadAsync(answer, OnixJson.Default.DataResult, limit), stop);
        if (result.Values?.Find(v => v.Error) is { } refused)
            throw new OnixException(
                $"Onix refuses the model SES ({FirstLine(refused.Message)}); {LeastRights}");
    }

    /// <summary>All items that the user may read; an item that is not listed is absent.</summary>
    public async Task<Dictionary<string, OnixItem>> ListAsync(CancellationToken stop)
    {
        var path = $"/item?type={OnixNames.ItemType}&top={ListLimit}";
        var list = await AskAsync("list", HttpMethod.Get, path, null,
            (answer, limit) => ReadAsync(answer, OnixJson.Default.ItemList, limit), stop);
        return (list.Values ?? throw new OnixException("Onix's list has no values"))
            .Select(OnixNames.Held).DistinctBy(i => i.Key).ToDictionary(i => i.Key);
    }

    /// <summary>Null for 404, which proves nothing: the database may be away.</summary>
    public Task<OnixItem?> GetAsync(string key, CancellationToken stop) =>
        AskAsync<OnixItem?>("item", HttpMethod.Get, "/item/" + Uri.EscapeDataString(key), null,
            async (answer, limit) => answer.StatusCode == HttpStatusCode.NotFound ? null
                : OnixNames.Held(await ReadAsync(answer, OnixJson.Default.ItemBody, limit)), stop);

    /// <summary>Writes changes, each guarded by its version; one answer for each, in order.</summary>
    /// <exception cref="OnixRequestRefusedException">
    /// The request as a whole was answered 400 or 413.
    /// </exception>
    public async Task<IReadOnlyList<ChangeResult>> PutAsync(
        IReadOnlyList<ItemChange> changes, CancellationToken stop)
    {
        var data = new DataBody { Items = [.. changes.Select(OnixNames.Item)] };
        var result = await AskAsync("data", HttpMethod.Put, "/data", data, (answer, limit) =>
            answer.StatusCode is HttpStatusCode.BadRequest or HttpStatusCode.RequestEntityTooLarge
            ? throw new OnixRequestRefusedException(
                $"Onix answered {(int)answer.StatusCode} to the whole request")
            : ReadAsync(answer, OnixJson.Default.DataResult, limit), stop);
        var values = result.Values ?? [];
        if (values.Count != changes.Count)
            throw new OnixException($"Onix gave {values.Count} answers to {changes.Count} changes");
        return [.. values.Select(Result)];
    }

    private static ChangeResult Result(ValueResult value) => new(value switch
    {
        { Error: true } => ChangeOutcome.Refused,
        { Operation: "I" } => ChangeOutcome.Inserted,
        { Operation: "U" } => ChangeOutcome.Updated,
        { Operation: "L" } => ChangeOutcome.Locked,
        { Operation: "N" } => ChangeOutcome.Unchanged,
        _ => throw new OnixException($"Onix answered with operation '{value.Operation}'"),
    }, FirstLine(value.Message));

    /// <summary>Reads an answer, whose reading is part of the time that it may take.</summary>
    private delegate Task<T> Reader<T>(HttpResponseMessage answer, CancellationToken limit);

    private async Task<T> AskAsync<T>(string kind, HttpMethod method, string path, DataBody? data,
        Reader<T> read, CancellationToken stop)
    {
        using var body = new Utf8JsonWriter(_body);
        _body.ResetWrittenCount();
        if (data != null)
            JsonSerializer.Serialize(body, data, OnixJson.Default.DataBody);
        for (var renewed = false; ; renewed = true)
        {
            using var request = new HttpRequestMessage(method, _base + path);
            if (data != null)
            {
                request.Content = new ReadOnlyMemoryContent(_body.WrittenMemory);
                request.Content.Headers.ContentType = new MediaTypeHeaderValue("application/json");
            }
            request.Headers.Authorization = _options.OnixAuthMode switch
            {
                AuthMode.Basic => Basic(_options.OnixUsername, _options.OnixPassword),
                AuthMode.Oidc => new AuthenticationHeaderValue("Bearer", await TokenAsync(stop)),
                _ => null,
            };
            var mayRenew = _options.OnixAuthMode == AuthMode.Oidc && !renewed;
            var (done, result) = await ExchangeAsync<(bool, T?)>(kind, request, async (answer, limit) =>
                mayRenew && answer.StatusCode == HttpStatusCode.Unauthorized ? (false, default)
                : (true, await read(answer, limit)), stop);
            if (done)
                return result!;
            _token = null;
        }
    }

    /// <summary>
    /// Sends a request and reads its answer within the patience; failures become one exception.
    /// </summary>
    private async Task<T> ExchangeAsync<T>(
        string kind, HttpRequestMessage request, Reader<T> read, CancellationToken stop)
    {
        using var patience = new CancellationTokenSource(Patience, _clock);
        using var limit = CancellationTokenSource.CreateLinkedTokenSource(stop, patience.Token);
        var started = _clock.GetTimestamp();
        var outcome = "failed";
        try
        {
            using var answer = await _http.SendAsync(
                request, HttpCompletionOption.ResponseHeadersRead, limit.Token);
            outcome = ((int)answer.StatusCode).ToString(CultureInfo.InvariantCulture);
            return await read(answer, limit.Token);
        }
        catch (HttpRequestException e)
        {
            throw new OnixException($"{request.RequestUri!.Authority} cannot be reached: "
                + (e.InnerException?.Message ?? e.Message));
        }
        catch (OperationCanceledException) when (!stop.IsCancellationRequested)
        {
            outcome = "timeout";
            throw new OnixException($"Onix gave no answer within {Patience.TotalSeconds} s");
        }
        finally
        {
            _meters.OnixRequests.WithLabels(kind, outcome).Inc();
            _meters.OnixDuration.WithLabels(kind).Observe(_clock.GetElapsedTime(started).TotalSeconds);
        }
    }

    /// <summary>Reads as it comes, so that a large answer is never held as a whole; only of a 200.</summary>
    private async Task<T> ReadAsync<T>(HttpResponseMessage answer,
        JsonTypeInfo<T> type, CancellationToken limit) where T : class
    {
        if (answer.StatusCode != HttpStatusCode.OK)
            throw Unexpected(answer);
        try
        {
            using var body = await answer.Content.ReadAsStreamAsync(limit);
            return await JsonSerializer.DeserializeAsync(body, type, limit)
                ?? throw new OnixException("Onix's answer is empty");
        }
        catch (Exception e) when (e is JsonException or IOException)
        {
            throw new OnixException($"Onix's answer cannot be read: {e.Message}");
        }
    }

    private OnixException Unexpected(HttpResponseMessage answer) => new(answer.StatusCode switch
    {
        HttpStatusCode.Unauthorized =>
            "Onix answered 401: the credentials are wrong, or its database is away",
        HttpStatusCode.Redirect => "Onix answered 302: it wants OIDC, see --onix-auth-mode",
        HttpStatusCode.NotFound => $"Onix answered 404: {_base} may not be its web API",
        _ => $"Onix answered {(int)answer.StatusCode}",
    });

    private static AuthenticationHeaderValue Basic(string user, string password) =>
        new("Basic", Convert.ToBase64String(Encoding.UTF8.GetBytes($"{user}:{password}")));

    private static string FirstLine(string? text) => (text ?? "").Split('\n', 2)[0];

    // ---- OIDC: the password grant (RFC 6749, 4.3), renewed before it expires ----

    private async Task<string> TokenAsync(CancellationToken stop)
    {
        if (_token != null && _clock.GetElapsedTime(_tokenTaken) < _tokenLife)
            return _token;
        using var request = new HttpRequestMessage(HttpMethod.Post, _options.OnixTokenUri)
        {
            Content = new FormUrlEncodedContent(new Dictionary<string, string>
            {
                ["grant_type"] = "password",
                ["username"] = _options.OnixUsername,
                ["password"] = _options.OnixPassword,
                ["scope"] = "openid onix",
            }),
        };
        // RFC 6749, 2.3.1: id and secret are form-encoded before they are joined.
        request.Headers.Authorization = Basic(
            Uri.EscapeDataString(_options.OnixClientId!), Uri.EscapeDataString(_options.OnixAppSecret!));
        var asked = _clock.GetTimestamp();
        var token = await ExchangeAsync("token", request, (answer, limit) =>
            answer.StatusCode == HttpStatusCode.OK ? ReadAsync(answer, OnixJson.Default.TokenResponse, limit)
            : throw new OnixException($"the token endpoint answered {(int)answer.StatusCode}"), stop);
        // A fifth of its life is left for clocks and the way; without expires_in, a minute is safe.
        (_tokenTaken, _tokenLife) = (asked, TimeSpan.FromSeconds((token.ExpiresIn ?? 60) * 0.8));
        return _token = token.AccessToken
            ?? throw new OnixException("the token endpoint gave no access_token");
    }
}

// =============================== 11. Recorder ================================
//
// Brings what is in the log to Onix, in order and once in effect. It reads from its cursor on, decides
// for each service, from what Onix holds and what it read, which change is next, and sends these guarded
// by Onix's versions, so that two SeS never write a change twice nor overwrite a later one. Deciding
// again changes nothing, so the cursor may lag. It moves on only past what Onix has confirmed, or past
// services whose change Onix refuses: those are barred, and tried again from their own place.
//
// One change of an item goes in one request, never a chain of them: were Onix to move on by one version
// between, the second of a chain would find its version and overwrite what another SeS wrote.

/// <summary>A service whose change Onix refuses.</summary>
/// <param name="Place">Where the log is to be read from for it.</param>
/// <param name="First">The change that Onix refused.</param>
internal sealed record BarredService(
    Cursor Place, StatusEvent First, DateTime Since, string Reason, TimeSpan Delay, DateTime NextTry)
{
    public static readonly TimeSpan
        FirstDelay = TimeSpan.FromSeconds(1), LongestDelay = TimeSpan.FromMinutes(10);

    /// <summary>How long it is to the next try; none if the clock was set back meanwhile.</summary>
    public TimeSpan Wait(DateTime now) =>
        NextTry > now && NextTry - now <= LongestDelay ? NextTry - now : TimeSpan.Zero;

    public BarredService Again(DateTime now, string reason)
    {
        var delay = Delay * 2 > LongestDelay ? LongestDelay : Delay * 2;
        return this with { Reason = reason, Delay = delay, NextTry = now + delay };
    }
}

internal sealed class CursorBody
{
    public string? Url { get; init; }
    public int File { get; init; }
    public long Offset { get; init; }
    public List<BarredBody>? Barred { get; init; }

    /// <summary>Null: it was cut by a loss of power, since it is not flushed.</summary>
    public static CursorBody? Parse(byte[] content)
    {
        try
        {
            return JsonSerializer.Deserialize(content, CursorJson.Default.CursorBody);
        }
        catch (JsonException)
        {
            return null;
        }
    }
}

internal sealed class BarredBody
{
    public int File { get; init; }
    public long Offset { get; init; }
    public string? Since { get; init; }
    public string? Reason { get; init; }
    public LogLine? First { get; init; }
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase,
    DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull)]
[JsonSerializable(typeof(CursorBody))]
internal sealed partial class CursorJson : JsonSerializerContext;

/// <summary>How the Recorder is doing, for probes and metrics.</summary>
/// <param name="Trouble">Why Onix confirms nothing; null while it does.</param>
internal sealed record RecorderState(
    Cursor Cursor, string? Trouble, DateTime? Confirmed, long Backlog, DateTime? Oldest,
    IReadOnlyList<KeyValuePair<ServiceKey, BarredService>> Barred);

/// <summary>One service's share of a turn.</summary>
internal sealed class Job
{
    /// <summary>Its window as it was before, plus all that was just read, in order of time.</summary>
    public List<StatusEvent> Events { get; }

    public ServiceKey Service { get; }
    public IReadOnlyList<StatusEvent> Read { get; }
    /// <summary>The last word in Onix that this turn found there.</summary>
    public OnixItem? Found { get; set; }
    public bool IsBarred { get; set; }
    public int Locks { get; set; }

    public Job(ServiceKey service, Window? window, IReadOnlyList<StatusEvent> read)
    {
        (Service, Read, Events) = (service, read, [.. window?.Events ?? []]);
        foreach (var e in read)
        {
            if (!Events.Exists(o => o.Same(e)))
                Window.Insert(Events, e);
        }
    }

    /// <summary>The first event later than what Onix holds that changes the status; null when done.</summary>
    public StatusEvent? Next(OnixItem? held)
    {
        foreach (var e in Events)
        {
            if (held == null || (held.IsBefore(e) && e.Status != held.Status))
                return e;
        }
        return null;
    }
}

/// <summary>Runs as one task; nothing else touches its fields but <see cref="Snapshot"/>.</summary>
internal sealed class Recorder
{
    /// <summary>Events decided on at a time: memory must not grow with the backlog.</summary>
    private const int ChunkSize = 1000;

    /// <summary>Onix takes no more items a second in larger requests.</summary>
    private const int BatchItems = 500, BatchBytes = 1024 * 1024;

    /// <summary>When more items are locked than this, one list costs Onix less than reading each.</summary>
    private const int ReadSingly = 20;

    /// <summary>A change locked this often in one turn means an Onix that cannot be understood now.</summary>
    private const int MaxLocks = 10;

    private static readonly TimeSpan
        ListPeriod = TimeSpan.FromMinutes(1), SavePeriod = TimeSpan.FromSeconds(1),
        FirstPause = TimeSpan.FromSeconds(0.5), LongestPause = TimeSpan.FromSeconds(30),
        BarredHoldsRetention = TimeSpan.FromDays(30);

    private readonly EventLog _eventLog;
    private readonly OnixClient _onix;
    private readonly string _url;
    private readonly TimeProvider _clock;
    private readonly Log _log;
    private readonly Meters _meters;

    private Dictionary<ServiceKey, Window> _windows = [];
    private Dictionary<string, OnixItem> _held = [];
    private readonly Dictionary<ServiceKey, string> _alternateKeys = [];
    private readonly Dictionary<ServiceKey, BarredService> _barred = [];
    private HashSet<ServiceKey> _again = [];
    private readonly HashSet<StatusEvent> _written = [];
    private Cursor _cursor, _counted;
    private Turn? _turn;
    private bool _fresh, _listed, _modelMissing, _refusedAll, _acceptsOthers, _unsaved;
    private long _nextList, _saved;
    private long _backlogBase, _appendedBase;
    private string? _trouble;
    private DateTime? _confirmed;
    private volatile RecorderState _state;

    /// <summary>What was read and is not settled yet; it is taken up again after trouble.</summary>
    private sealed record Turn(Cursor Start, Chunk Chunk, IReadOnlyDictionary<ServiceKey, Job> Jobs);

    /// <summary>Finds the cursor. Only after this may the log be appended to.</summary>
    /// <exception cref="IOException">The log cannot be read.</exception>
    public Recorder(
        EventLog eventLog, OnixClient onix, string url, TimeProvider clock, Log log, Meters meters)
    {
        (_eventLog, _onix, _url, _clock, _log, _meters) = (eventLog, onix, url, clock, log, meters);
        if (!Load())
            StartOver();
        _counted = _cursor;
        Publish();
    }

    /// <summary>Works until it is stopped; nothing that Onix does ends it.</summary>
    public async Task RunAsync(CancellationToken stop)
    {
        var failures = 0;
        while (!stop.IsCancellationRequested)
        {
            try
            {
                var worked = await WorkAsync(stop);
                if (_trouble != null)
                    _log.Info("Onix is back", ("onix", _url));
                (failures, _trouble) = (0, null);
                Publish();
                if (!worked)
                    await IdleAsync(stop);
            }
            catch (OperationCanceledException) when (stop.IsCancellationRequested)
            {
                break;
            }
            catch (Exception e)
            {
                Complain(e);
                await PauseAsync(failures++, stop);
            }
        }
        Save();
    }

    private void Complain(Exception e)
    {
        var expected = e is OnixException or IOException;
        var trouble = expected ? e.Message : "a defect in SeS, which its log tells";
        if (!expected)
            _meters.Defects.Inc();
        if (trouble != _trouble)
            _log.Warn("Onix confirms nothing; SeS keeps the events and tries again",
                ("reason", expected ? trouble : "a defect in SeS: " + e));
        _trouble = trouble;
        Publish();
    }

    /// <summary>Doubling, capped, with jitter so that two SeS do not march in step.</summary>
    private async Task PauseAsync(int failures, CancellationToken stop)
    {
        var pause = FirstPause * Math.Pow(2, Math.Min(failures, 10));
        pause = (pause < LongestPause ? pause : LongestPause) * (0.5 + (Random.Shared.NextDouble() / 2));
        try
        {
            await Task.Delay(pause, _clock, stop);
        }
        catch (OperationCanceledException)
        {
            // RunAsync sees it.
        }
    }

    /// <summary>One round of all that there is to do; false when there was nothing.</summary>
    private async Task<bool> WorkAsync(CancellationToken stop)
    {
        if (!_listed || _clock.GetTimestamp() >= _nextList)
            await ListAsync(stop);
        var worked = await RetryBarredAsync(stop);
        _turn ??= NextTurn();
        if (_turn == null)
            return worked;
        await SettleAsync([.. _turn.Jobs.Values], _turn.Start, stop);
        Confirm(_turn);
        _turn = null;
        if (_clock.GetElapsedTime(_saved) >= SavePeriod)
            Save();
        return true;
    }

    private async Task IdleAsync(CancellationToken stop)
    {
        var now = _clock.GetUtcNow().UtcDateTime;
        var wait = TimeSpan.FromSeconds(
            Math.Max(0, (_nextList - _clock.GetTimestamp()) / (double)_clock.TimestampFrequency));
        if (_unsaved && wait > SavePeriod)
            wait = SavePeriod;
        foreach (var barred in _barred.Values)
            wait = barred.Wait(now) < wait ? barred.Wait(now) : wait;
        if (wait <= TimeSpan.Zero)
            return;
        using var both = CancellationTokenSource.CreateLinkedTokenSource(stop);
        var timer = Task.Delay(wait, _clock, both.Token);
        await await Task.WhenAny(_eventLog.WaitAsync(_cursor, both.Token), timer);
        if (_unsaved && timer.IsCompleted)
            Save();
        await both.CancelAsync();
    }

    // ---- The cursor ----

    private bool Load()
    {
        var saved = _eventLog.LoadCursor() is { } content ? CursorBody.Parse(content) : null;
        if (saved == null || saved.Url != _url || !_eventLog.Holds(new Cursor(saved.File, saved.Offset)))
            return false;
        _cursor = new Cursor(saved.File, saved.Offset);
        foreach (var body in saved.Barred ?? [])
            LoadBarred(body);
        KeepForRetention();
        _windows = _eventLog.WindowsAt(_cursor, _ => true);
        CountBacklog();
        return true;
    }

    private void LoadBarred(BarredBody body)
    {
        if (body.First?.ToEvent() is not { } first)
            return;
        var since = Rfc3339.TryParse(body.Since, out var time) ? time : _clock.GetUtcNow().UtcDateTime;
        _barred[first.Service] = new BarredService(new Cursor(body.File, body.Offset), first, since,
            body.Reason ?? "", BarredService.FirstDelay, _clock.GetUtcNow().UtcDateTime);
        _ = PlaceOf(first.Service);
    }

    /// <summary>A barred service's place; the oldest one if retention has deleted it after 30 days.</summary>
    private Cursor PlaceOf(ServiceKey service)
    {
        var barred = _barred[service];
        if (_eventLog.Holds(barred.Place))
            return barred.Place;
        _meters.OnixDropped.Inc();
        _log.Warn("events of a barred service were deleted by retention before Onix took them",
            ("service", service));
        _barred[service] = barred with { Place = _eventLog.Oldest };
        return _eventLog.Oldest;
    }

    /// <summary>From the oldest event kept: Onix is new here, or went back, or the place was lost.</summary>
    private void StartOver()
    {
        (_cursor, _fresh, _turn) = (_eventLog.Oldest, true, null);
        _barred.Clear();
        _again = [];
        // Before the log is read, which takes its time.
        KeepForRetention();
        _windows = _eventLog.WindowsAt(_cursor, _ => true);
        CountBacklog();
        Save();
    }

    private void Save()
    {
        var body = new CursorBody
        {
            Url = _url,
            File = _cursor.File,
            Offset = _cursor.Offset,
            Barred = _barred.Count == 0 ? null : [.. _barred.Values.Select(b => new BarredBody
            {
                File = b.Place.File,
                Offset = b.Place.Offset,
                Since = Rfc3339.Format(b.Since),
                Reason = b.Reason,
                First = LineOf(b.First),
            })],
        };
        _saved = _clock.GetTimestamp();
        try
        {
            _eventLog.SaveCursor(JsonSerializer.SerializeToUtf8Bytes(body, CursorJson.Default.CursorBody));
            _unsaved = false;
        }
        catch (Exception e) when (Disk.Refused(e))
        {
            _log.Often("the cursor could not be saved; after a restart some events are looked at again",
                ("reason", e.Message));
        }
    }

    private static LogLine LineOf(StatusEvent e) => new()
    {
        Time = Rfc3339.Format(e.Time),
        Partition = e.Service.Partition,
        Platform = e.Service.Platform,
        Service = e.Service.Service,
        Facet = e.Service.Facet,
        Location = e.Service.Location,
        Status = e.Status,
        Description = e.Description,
        Received = Rfc3339.Format(e.Received),
        StartsAt = Rfc3339.Format(e.StartsAt),
    };

    private void KeepForRetention()
    {
        var now = _clock.GetUtcNow().UtcDateTime;
        // The clock may have been ahead when they were barred.
        foreach (var (service, barred) in _barred.Where(b => b.Value.Since > now).ToList())
            _barred[service] = barred with { Since = now };
        _eventLog.KeepFrom = _barred.Values.Where(b => now - b.Since < BarredHoldsRetention)
            .Select(b => b.Place.File).Append(_cursor.File).Min();
    }

    private void CountBacklog()
    {
        var (flushed, appended) = _eventLog.Position;
        (_backlogBase, _appendedBase) = (_eventLog.Count(_cursor, flushed), appended);
    }

    /// <summary>All but the backlog, which <see cref="Snapshot"/> adds.</summary>
    [MemberNotNull(nameof(_state))]
    private void Publish() => _state = new(_cursor, _trouble, _confirmed, 0, null, [.. _barred]);

    /// <summary>The state as of now; reads the log when there is a backlog. Safe from any thread.</summary>
    public RecorderState Snapshot()
    {
        var state = _state;
        var (flushed, appended) = _eventLog.Position;
        var backlog = Math.Max(0, Volatile.Read(ref _backlogBase) + appended - _appendedBase);
        var oldest = backlog == 0 || !_eventLog.Holds(state.Cursor) ? null
            : _eventLog.Read(state.Cursor, flushed, 1).Events is [var first, ..]
            ? first.Received : (DateTime?)null;
        return state with { Backlog = backlog, Oldest = oldest };
    }

    // ---- What Onix holds ----

    private async Task ListAsync(CancellationToken stop)
    {
        if (!_listed || _modelMissing)
            await _onix.EnsureModelAsync(_modelMissing, stop);
        _modelMissing = false;
        var started = _clock.GetTimestamp();
        var known = _held;
        _held = await _onix.ListAsync(stop);
        var cost = _clock.GetElapsedTime(started);
        var period = cost * 100 > ListPeriod ? cost * 100 : ListPeriod;
        _nextList = _clock.GetTimestamp() + (long)(period.TotalSeconds * _clock.TimestampFrequency);
        _confirmed = _clock.GetUtcNow().UtcDateTime;
        if (known.Values.Any(k => _held.TryGetValue(k.Key, out var now) && now.Version < k.Version))
        {
            _log.Warn("Onix went back, as after a restored backup; giving it the whole history again");
            StartOver();
        }
        ForgetGone(known);
        DecideAgain();
        _listed = true;
    }

    /// <summary>An item that was known and is gone was deleted: it waits for its next new event.</summary>
    private void ForgetGone(Dictionary<string, OnixItem> known)
    {
        foreach (var service in _windows.Keys.ToList())
        {
            var key = KeyOf(service);
            var settled = !_fresh && (!_listed || known.ContainsKey(key));
            if (!settled || _held.ContainsKey(key) || _barred.ContainsKey(service))
                continue;
            _windows.Remove(service);
            _log.Info("an item is gone from Onix; its next event makes it again", ("key", key));
        }
        _fresh = false;
    }

    /// <summary>What was no change when it was read may be one now that another SeS was here.</summary>
    private void DecideAgain()
    {
        foreach (var (service, window) in _windows)
        {
            if (!_barred.ContainsKey(service) && new Job(service, window, []).Next(HeldOf(service)) != null)
                _again.Add(service);
        }
    }

    private string KeyOf(ServiceKey service)
    {
        if (_alternateKeys.TryGetValue(service, out var alternate))
            return alternate;
        var key = OnixNames.Key(service);
        var held = _held.GetValueOrDefault(key);
        if (held?.Service == service)
            return key;
        // The key is another's, or it was when this service's item was made.
        alternate = OnixNames.AlternateKey(service);
        if (held == null && _held.GetValueOrDefault(alternate)?.Service != service)
            return key;
        return _alternateKeys[service] = alternate;
    }

    private OnixItem? HeldOf(ServiceKey service) => _held.GetValueOrDefault(KeyOf(service));

    // ---- A turn: read, decide, send, confirm ----

    private Turn? NextTurn()
    {
        var chunk = _eventLog.Read(_cursor, _eventLog.Position.Flushed, ChunkSize);
        if (chunk.Events.Count == 0 && _again.Count == 0)
        {
            MoveTo(chunk.Next);
            return null;
        }
        var read = chunk.Events.GroupBy(e => e.Service).ToDictionary(g => g.Key, g => g.ToList());
        var jobs = new Dictionary<ServiceKey, Job>();
        foreach (var service in read.Keys.Union(_again).Where(s => !_barred.ContainsKey(s)))
            jobs[service] = new Job(
                service, _windows.GetValueOrDefault(service), read.GetValueOrDefault(service, []));
        _again = [];
        return new Turn(_cursor, chunk, jobs);
    }

    /// <summary>
    /// Sends the jobs' changes, the next of each in every round, until all are done or barred.
    /// </summary>
    private async Task SettleAsync(IReadOnlyList<Job> jobs, Cursor place, CancellationToken stop)
    {
        foreach (var job in jobs)
            job.Found ??= HeldOf(job.Service);
        var open = jobs.Where(j => !j.IsBarred).ToList();
        while (open.Count > 0)
        {
            var round = new List<(Job Job, ItemChange Change)>();
            foreach (var job in open)
            {
                var held = HeldOf(job.Service);
                if (job.Next(held) is { } e)
                    round.Add((job, new ItemChange(
                        KeyOf(job.Service), e, held?.Version ?? ItemChange.Insert)));
            }
            foreach (var batch in Batches(round, r => r.Change))
                await SendAsync(batch, place, stop);
            open = [.. round.Select(r => r.Job).Where(j => !j.IsBarred)];
        }
    }

    private static IEnumerable<List<T>> Batches<T>(IReadOnlyList<T> all, Func<T, ItemChange> change)
    {
        var (batch, bytes) = (new List<T>(), 0);
        foreach (var one in all)
        {
            var e = change(one).Event;
            // The description goes twice; a character is at most three bytes, escaped ones are few.
            bytes += 1024 + (3 * ((2 * e.Description.Length) + (2 * e.Service.Location.Length)));
            if (batch.Count == BatchItems || (bytes > BatchBytes && batch.Count > 0))
            {
                yield return batch;
                (batch, bytes) = ([], 0);
            }
            batch.Add(one);
        }
        if (batch.Count > 0)
            yield return batch;
    }

    private async Task SendAsync(
        List<(Job Job, ItemChange Change)> batch, Cursor place, CancellationToken stop)
    {
        var results = await PutAsync([.. batch.Select(b => b.Change)], stop);
        _refusedAll |= results.All(r => r.Outcome == ChangeOutcome.Refused);
        var locked = new List<(Job Job, ItemChange Change)>();
        for (var i = 0; i < batch.Count; i++)
        {
            var (job, change) = batch[i];
            if (results[i].Outcome == ChangeOutcome.Locked)
                locked.Add(batch[i]);
            else if (results[i].Outcome == ChangeOutcome.Refused)
                Refused(job, change, results[i].Message, place);
            else
                _written.Add(change.Event);
        }
        foreach (var (job, change) in locked)
        {
            if (++job.Locks > MaxLocks)
                throw new OnixException($"Onix locks {change.Key} again and again");
        }
        foreach (var (job, change) in await RefreshAsync(locked, l => l.Change.Key, stop))
            Bar(job, change, "Onix holds an item with this key that the user may not read", place);
        foreach (var (job, _) in locked)
            job.Found = HeldOf(job.Service);
    }

    /// <summary>Puts changes, halving what Onix refuses whole, and notes what it now holds.</summary>
    private async Task<IReadOnlyList<ChangeResult>> PutAsync(List<ItemChange> changes, CancellationToken stop)
    {
        IReadOnlyList<ChangeResult> results;
        try
        {
            results = await _onix.PutAsync(changes, stop);
        }
        catch (OnixRequestRefusedException e) when (changes.Count == 1)
        {
            results = [new ChangeResult(ChangeOutcome.Refused, e.Message)];
        }
        catch (OnixRequestRefusedException)
        {
            var half = changes.Count / 2;
            return [.. await PutAsync([.. changes.Take(half)], stop),
                .. await PutAsync([.. changes.Skip(half)], stop)];
        }
        for (var i = 0; i < changes.Count; i++)
            Note(changes[i], results[i].Outcome);
        if (results.Any(r => r.Outcome == ChangeOutcome.Refused && IsModelMissing(r.Message)))
            throw ModelIsMissing();
        if (results.Any(r => r.IsAccepted))
            NoteAccepted();
        return results;
    }

    private void Note(ItemChange change, ChangeOutcome outcome)
    {
        var version = outcome switch
        {
            ChangeOutcome.Inserted => 1,
            ChangeOutcome.Updated => change.Version + 1,
            ChangeOutcome.Unchanged => change.Version,
            _ => 0,
        };
        if (version == 0)
            return;
        var e = change.Event;
        _held[change.Key] = new OnixItem(change.Key, e.Service, e.Status, e.Time, version);
        _confirmed = _clock.GetUtcNow().UtcDateTime;
    }

    /// <summary>As soon as Onix accepts something after refusing everything, all barred are due.</summary>
    private void NoteAccepted()
    {
        if (_refusedAll)
        {
            foreach (var (service, barred) in _barred.ToList())
                _barred[service] = barred with { NextTry = _clock.GetUtcNow().UtcDateTime };
        }
        (_refusedAll, _acceptsOthers) = (false, true);
    }

    private static bool IsModelMissing(string message) =>
        message.StartsWith($"Item Type {OnixNames.ItemType} does not exist", StringComparison.Ordinal);

    private OnixException ModelIsMissing()
    {
        (_modelMissing, _nextList) = (true, 0);
        return new OnixException("Onix has no item type SES_SERVICE, or the user may not read partition REF");
    }

    private void Refused(Job job, ItemChange change, string message, Cursor place)
    {
        if (IsClash(message) && _alternateKeys.TryAdd(job.Service, OnixNames.AlternateKey(job.Service)))
            return;
        Bar(job, change, message, place);
    }

    /// <summary>The key exists in another partition, perhaps one that the user may not read.</summary>
    private static bool IsClash(string message) =>
        message.Contains("exist within Partition", StringComparison.Ordinal);

    private void Bar(Job job, ItemChange change, string reason, Cursor place)
    {
        var now = _clock.GetUtcNow().UtcDateTime;
        job.IsBarred = true;
        _barred[job.Service] = new BarredService(
            place, change.Event, now, reason, BarredService.FirstDelay, now + BarredService.FirstDelay);
        _log.Often("Onix refuses a service's change; the others go on", ("service", job.Service),
            ("key", change.Key), ("reason", reason));
    }

    /// <summary>Learns what Onix holds of locked items; returns those that cannot be seen.</summary>
    private async Task<List<T>> RefreshAsync<T>(List<T> locked, Func<T, string> keyOf, CancellationToken stop)
    {
        var unseen = locked;
        if (locked.Count <= ReadSingly)
        {
            unseen = [];
            foreach (var one in locked)
            {
                if (await _onix.GetAsync(keyOf(one), stop) is { } item)
                    _held[item.Key] = item;
                else
                    unseen.Add(one);
            }
        }
        if (unseen.Count == 0)
            return unseen;
        var list = await _onix.ListAsync(stop);
        foreach (var one in unseen.Where(u => list.ContainsKey(keyOf(u))))
            _held[keyOf(one)] = list[keyOf(one)];
        return [.. unseen.Where(u => !list.ContainsKey(keyOf(u)))];
    }

    /// <summary>
    /// The turn is settled: windows take what was read, each event is counted, the cursor moves.
    /// </summary>
    private void Confirm(Turn turn)
    {
        foreach (var e in turn.Chunk.Events)
        {
            var job = turn.Jobs.GetValueOrDefault(e.Service);
            if (job is { IsBarred: false })
                _windows.Add(e);
            if (turn.Start.CompareTo(_counted) >= 0)
                _meters.OnixEvents.WithLabels(Outcome(job, e)).Inc();
        }
        _counted = _counted.CompareTo(turn.Chunk.Next) < 0 ? turn.Chunk.Next : _counted;
        _written.Clear();
        MoveTo(turn.Chunk.Next);
        Volatile.Write(ref _backlogBase, _backlogBase - turn.Chunk.Events.Count);
    }

    private void MoveTo(Cursor place)
    {
        _unsaved |= _cursor != place;
        _cursor = place;
        Publish();
        KeepForRetention();
    }

    private string Outcome(Job? job, StatusEvent e)
    {
        if (job == null || job.IsBarred)
            return "barred";
        if (_written.Contains(e) || (job.Found?.Time == e.Time && job.Found.Status == e.Status))
            return "recorded";
        return job.Found == null || job.Found.IsBefore(e) ? "unchanged" : "late";
    }

    // ---- Barred services ----

    /// <summary>Sends the refused changes that are due; what is accepted is caught up in one pass.</summary>
    private async Task<bool> RetryBarredAsync(CancellationToken stop)
    {
        var accepted = new HashSet<ServiceKey>();
        var tried = new HashSet<ServiceKey>();
        while (true)
        {
            var now = _clock.GetUtcNow().UtcDateTime;
            // What cured one service of a partition has cured its others: no need to wait for each.
            var due = _barred.Where(b => !tried.Contains(b.Key) && (b.Value.Wait(now) == TimeSpan.Zero
                || accepted.Any(a => a.Partition == b.Key.Partition))).Select(b => b.Key).ToList();
            if (due.Count == 0)
                break;
            tried.UnionWith(due);
            await RetryAsync(due, accepted, stop);
        }
        if (accepted.Count > 0)
            await CatchUpAsync(accepted, stop);
        else if (tried.Count > 0)
            // That they are refused again says something of Onix only if it has taken nothing else meanwhile.
            (_refusedAll, _acceptsOthers) = (_refusedAll || !_acceptsOthers, false);
        _unsaved |= tried.Count > 0;
        KeepForRetention();
        return accepted.Count > 0;
    }

    private async Task RetryAsync(List<ServiceKey> due, HashSet<ServiceKey> accepted, CancellationToken stop)
    {
        var changes = new List<ItemChange>();
        foreach (var service in due)
        {
            var (held, first) = (HeldOf(service), _barred[service].First);
            if (held == null || (held.IsBefore(first) && held.Status != first.Status))
                changes.Add(new ItemChange(KeyOf(service), first, held?.Version ?? ItemChange.Insert));
            else
                accepted.Add(service);
        }
        foreach (var batch in Batches(changes, c => c))
        {
            var results = await PutAsync(batch, stop);
            var locked = new List<ItemChange>();
            foreach (var (change, result) in batch.Zip(results))
            {
                if (result.Outcome == ChangeOutcome.Refused)
                    RefusedAgain(change, result.Message);
                else if (result.Outcome == ChangeOutcome.Locked)
                    locked.Add(change);
                else
                    accepted.Add(change.Event.Service);
            }
            var unseen = await RefreshAsync(locked, c => c.Key, stop);
            foreach (var change in unseen)
                RefusedAgain(change, "Onix holds an item with this key that the user may not read");
            accepted.UnionWith(locked.Except(unseen).Select(c => c.Event.Service));
        }
    }

    private void RefusedAgain(ItemChange change, string reason)
    {
        var service = change.Event.Service;
        if (IsClash(reason))
            _alternateKeys.TryAdd(service, OnixNames.AlternateKey(service));
        _barred[service] = _barred[service].Again(_clock.GetUtcNow().UtcDateTime, reason);
    }

    /// <summary>
    /// One pass over the log, from the earliest place to the cursor, for the services given.
    /// </summary>
    private async Task CatchUpAsync(HashSet<ServiceKey> services, CancellationToken stop)
    {
        var place = services.Select(PlaceOf).Min();
        var windows = _eventLog.WindowsAt(place, services.Contains);
        var left = new HashSet<ServiceKey>(services);
        for (var first = true; ; first = false)
        {
            var chunk = _eventLog.Read(place, _cursor, ChunkSize);
            var read = chunk.Events.Where(e => left.Contains(e.Service)).ToLookup(e => e.Service);
            var touched = left.Where(s => first || read.Contains(s));
            List<Job> jobs = [.. touched.Select(s => new Job(s, windows.GetValueOrDefault(s), [.. read[s]]))];
            await SettleAsync(jobs, place, stop);
            _written.ExceptWith(jobs.SelectMany(j => j.Events));
            foreach (var job in jobs.Where(j => j.IsBarred))
                left.Remove(job.Service);
            foreach (var e in chunk.Events.Where(e => left.Contains(e.Service)))
                windows.Add(e);
            if (chunk.Next.CompareTo(_cursor) >= 0 || chunk.Next == place)
                break;
            place = chunk.Next;
        }
        // A turn that was begun left them out: it must begin again, with them.
        _turn = null;
        foreach (var service in left)
        {
            _barred.Remove(service);
            _windows[service] = windows.GetValueOrDefault(service) ?? new Window();
        }
        if (left.Count > 0)
            _log.Info("Onix takes services again that it had refused", ("services", left.Count));
    }
}

// ================================= 12. HTTP ==================================
//
// The forms of requests and answers: HTTP/1.1 (RFC 9110, RFC 9112), parsed strictly, from bytes alone. What
// two parsers could understand differently is refused, never mended, so that no request can be smuggled past
// this one. Of a head only the fields that SeS uses are kept; the others are checked and dropped.

/// <summary>What a request is answered with.</summary>
internal sealed record Reply(int Code, string ContentType, byte[] Body)
{
    public IReadOnlyList<(string Name, string Value)> Headers { get; init; } = [];

    /// <summary>How long the answer waits: it slows those down who guess.</summary>
    public TimeSpan HeldBack { get; init; }

    public static Reply Json(
        int code, Action<Utf8JsonWriter> content, string contentType = "application/json")
    {
        var buffer = new ArrayBufferWriter<byte>();
        using (var json = new Utf8JsonWriter(buffer))
        {
            json.WriteStartObject();
            content(json);
            json.WriteEndObject();
        }
        return new Reply(code, contentType, [.. buffer.WrittenSpan, (byte)'\n']);
    }

    /// <summary>
    /// Problem details (RFC 9457); Alertmanager logs the body, so the detail is for its reader.
    /// </summary>
    public static Reply Problem(int code, string detail) => Json(code, json =>
    {
        json.WriteString("title", Phrase(code));
        json.WriteNumber("status", code);
        json.WriteString("detail", detail);
    }, "application/problem+json");

    /// <summary>The reason phrase of a status line (RFC 9110, 15; RFC 6585, 5).</summary>
    public static string Phrase(int code) => code switch
    {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => throw new ArgumentOutOfRangeException(nameof(code), code, "it has no phrase here"),
    };
}

/// <summary>The body of an answer that is too long for the listener, or to be held.</summary>
/// <param name="next">Makes the next part, valid until the one after it; null at the body's end.</param>
/// <param name="end">Is called when the body is needed no more, whether it was sent whole or not.</param>
internal sealed class StreamedBody(
    Func<Task<ReadOnlyMemory<byte>?>> next, Action<StreamedBody> end, TimeProvider clock) : IDisposable
{
    private long _partMade = Busy;

    /// <summary>While the next part is being made.</summary>
    public const long Busy = -1;

    /// <summary>When the last part was made, a timestamp of the clock; or <see cref="Busy"/>.</summary>
    public long PartMade => Volatile.Read(ref _partMade);

    /// <summary>Ends the connection that the body is sent over.</summary>
    public Action Abort { get; set; } = () => { };

    public async Task<ReadOnlyMemory<byte>?> NextAsync()
    {
        Volatile.Write(ref _partMade, Busy);
        try
        {
            return await next();
        }
        finally
        {
            Volatile.Write(ref _partMade, clock.GetTimestamp());
        }
    }

    public void Dispose() => end(this);
}

/// <summary>Is thrown when a request is served no further; the connection ends with the answer.</summary>
/// <param name="reason">The label of <c>ses_http_refused_total</c>.</param>
internal sealed class RefusedException(string reason, Reply reply) : Exception(reason)
{
    public RefusedException(string reason, int code, string detail)
        : this(reason, Reply.Problem(code, detail))
    {
    }

    public Reply Reply => reply;
}

/// <summary>The head of a request, as far as SeS uses it.</summary>
/// <param name="Target">In origin form (RFC 9112, 3.2.1), percent-encoded, as it was sent.</param>
/// <param name="Length">Of the body in bytes; null when the request names none.</param>
/// <param name="Closes">The client wants the connection closed after the answer.</param>
/// <param name="Expects">The client waits for 100 Continue before it sends the body.</param>
/// <param name="IsOfPage">A browser sends it for a page, perhaps of another site (Fetch, 3.2).</param>
internal sealed record RequestHead(
    string Method, string Target, string? Authorization, string? Accept, long? Length, bool Closes,
    bool Expects, bool IsOfPage)
{
    /// <summary>In bytes, with the empty line at its end.</summary>
    public const int MaxSize = 16 * 1024;

    public const int MaxFields = 100;

    private const string Letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

    private static readonly SearchValues<char>
        TargetCharacters = SearchValues.Create("/?:@-._~!$&'()*+,;=%" + Letters),
        HostCharacters = SearchValues.Create(":[]-._~!$&'()*+,;=%" + Letters);

    private static readonly SearchValues<byte>
        Controls = SearchValues.Create(
            [.. Enumerable.Range(0, 128).Where(b => b < 32 && b != '\t' || b == 127).Select(b => (byte)b)]),
        Token = SearchValues.Create(Encoding.ASCII.GetBytes("!#$%&'*+-.^_`|~" + Letters));

    public bool IsRead => Method is "GET" or "HEAD";

    /// <summary>The length of the head that these bytes begin with; 0 while it is not all there.</summary>
    /// <exception cref="RefusedException">It will never be one; or it is too large.</exception>
    public static int Find(ReadOnlySpan<byte> bytes)
    {
        if (bytes.Length > 0 && !Token.Contains(bytes[0]))
            throw Malformed(bytes[0] == 0x16 ? "This port does not speak TLS." : "The method is no token.");
        for (var at = 0; ;)
        {
            var line = bytes[at..].IndexOf((byte)'\n');
            if (line < 0)
                break;
            if (line == 0 || bytes[at + line - 1] != '\r')
                throw Malformed("A line ends without a carriage return.");
            if (line == 1)
                return at + 2;
            at += line + 1;
        }
        return bytes.Length < MaxSize ? 0
            : throw new RefusedException("head_size", 431, $"The head is larger than {MaxSize} bytes.");
    }

    /// <param name="head">From the method to the empty line, as <see cref="Find"/> found it.</param>
    /// <exception cref="RefusedException">It is not HTTP/1.1, or not of the kind that SeS takes.</exception>
    public static RequestHead Parse(ReadOnlySpan<byte> head)
    {
        var end = head.IndexOf("\r\n"u8);
        var (method, target) = ParseRequestLine(head[..end]);
        var fields = new HeaderFields();
        for (var lines = head[(end + 2)..]; (end = lines.IndexOf("\r\n"u8)) > 0; lines = lines[(end + 2)..])
            fields.Add(lines[..end]);
        if (fields.Host == null)
            throw Malformed("There is no Host.");
        if (fields.IsEncoded)
            throw new RefusedException("transfer_encoding", 411, "Send the body with a Content-Length.");
        var request = new RequestHead(method, target, fields.Authorization, fields.Accept,
            fields.Length, fields.Closes, fields.Expects, fields.IsOfPage);
        if (request.IsRead && request.Length > 0)
            throw Malformed($"A {method} takes no body.");
        return request;
    }

    private static (string Method, string Target) ParseRequestLine(ReadOnlySpan<byte> line)
    {
        var parts = Encoding.Latin1.GetString(line).Split(' ');
        if (parts.Length != 3 || line[..parts[0].Length].ContainsAnyExcept(Token))
            throw Malformed("The request line is not 'METHOD TARGET HTTP/1.1'.");
        if (parts[2] != "HTTP/1.1")
            throw parts[2].StartsWith("HTTP/", StringComparison.Ordinal)
                ? new RefusedException("version", 505, "SeS speaks HTTP/1.1 only.")
                : Malformed("The request line does not end with HTTP/1.1.");
        if (!parts[1].StartsWith('/'))
            throw Malformed("The target does not begin with a slash.");
        if (parts[1].AsSpan().ContainsAnyExcept(TargetCharacters) || !IsEncodedRightly(parts[1]))
            throw Malformed("A character of the target must be percent-encoded, or is so wrongly.");
        return (parts[0], parts[1]);
    }

    private static bool IsEncodedRightly(string target)
    {
        for (var at = target.IndexOf('%'); at >= 0; at = target.IndexOf('%', at + 1))
        {
            if (at + 2 >= target.Length || !char.IsAsciiHexDigit(target[at + 1])
                || !char.IsAsciiHexDigit(target[at + 2]))
                return false;
        }
        return true;
    }

    private static RefusedException Malformed(string detail) => new("malformed", 400, detail);

    /// <summary>The header fields that matter; each of these may stand once.</summary>
    private struct HeaderFields
    {
        private static readonly string[] Names =
        [
            "Host", "Authorization", "Accept", "Content-Length", "Transfer-Encoding", "Connection", "Expect",
            "Origin",
        ];

        private int _count;

        public string? Host, Authorization, Accept;
        public long? Length;
        public bool IsEncoded, Closes, Expects, IsOfPage;

        public void Add(ReadOnlySpan<byte> line)
        {
            if (++_count > MaxFields)
                throw new RefusedException("head_size", 431, $"There are over {MaxFields} header fields.");
            var colon = line.IndexOf((byte)':');
            if (colon < 1 || line[..colon].ContainsAnyExcept(Token))
                throw Malformed("A header field's name is no token, or its line is folded.");
            var value = line[(colon + 1)..].Trim(" \t"u8);
            if (value.ContainsAny(Controls))
                throw Malformed("A header field has a control character.");
            foreach (var name in Names)
            {
                if (Ascii.EqualsIgnoreCase(line[..colon], name))
                    Keep(name, Encoding.Latin1.GetString(value));
            }
        }

        private void Keep(string name, string value)
        {
            switch (name)
            {
                case "Host":
                    if (value == "" || value.AsSpan().ContainsAnyExcept(HostCharacters))
                        throw Malformed("The Host is not usable.");
                    Once(ref Host, name, value);
                    break;
                case "Authorization":
                    Once(ref Authorization, name, value);
                    break;
                case "Accept":
                    Accept = Accept == null ? value : $"{Accept}, {value}";
                    break;
                case "Content-Length":
                    if (Length != null || value.Length > 18 || !long.TryParse(
                        value, NumberStyles.None, CultureInfo.InvariantCulture, out var length))
                        throw Malformed("The Content-Length is no number, or stands twice.");
                    Length = length;
                    break;
                case "Transfer-Encoding":
                    IsEncoded = true;
                    break;
                case "Origin":
                    IsOfPage = true;
                    break;
                case "Connection":
                    Closes |= value.Split(',', StringSplitOptions.TrimEntries)
                        .Contains("close", StringComparer.OrdinalIgnoreCase);
                    break;
                case "Expect":
                    Expects = value.Equals("100-continue", StringComparison.OrdinalIgnoreCase) ? true
                        : throw new RefusedException("expectation", 417, "SeS knows of 100-continue only.");
                    break;
            }
        }

        private static void Once(ref string? field, string name, string value) =>
            field = field == null ? value : throw Malformed($"{name} stands twice.");
    }
}

// ================================= 13. Auth ==================================
//
// Who may ask: anyone, those who know a name and a password (basic, RFC 7617), or those with a token of an
// OIDC issuer (bearer, RFC 6750). Secrets are compared in constant time. The more wrong credentials came from
// an address, the later they are refused; right ones are never delayed, so nobody can lock others out.

/// <summary>How often addresses gave wrong credentials lately.</summary>
internal sealed class SignInFailures(TimeProvider clock)
{
    /// <summary>Failures of further addresses are not counted: each is treated as the first.</summary>
    public const int MaxAddresses = 10_000;

    public static readonly TimeSpan
        FirstDelay = TimeSpan.FromSeconds(0.25), LongestDelay = TimeSpan.FromSeconds(5),
        Forgotten = TimeSpan.FromMinutes(5);

    private readonly Lock _gate = new();
    private readonly Dictionary<IPAddress, (int Count, long Last)> _failed = [];
    private long _tidied;

    /// <summary>Counts a failure of this address, and returns how long its answer has to wait.</summary>
    public TimeSpan Add(IPAddress client)
    {
        lock (_gate)
        {
            var key = Network(client);
            var (count, last) = _failed.GetValueOrDefault(key);
            if (count > 0 && clock.GetElapsedTime(last) > Forgotten)
                count = 0;
            if (count == 0 && _failed.Count >= MaxAddresses && clock.GetElapsedTime(_tidied) > Forgotten / 10)
                Forget();
            if (count > 0 || _failed.Count < MaxAddresses)
                _failed[key] = (count + 1, clock.GetTimestamp());
            return TimeSpan.FromSeconds(Math.Min(
                LongestDelay.TotalSeconds, FirstDelay.TotalSeconds * Math.Pow(2, Math.Min(count, 30))));
        }
    }

    private void Forget()
    {
        _tidied = clock.GetTimestamp();
        var old = _failed.Where(f => clock.GetElapsedTime(f.Value.Last) > Forgotten).ToList();
        old.ForEach(f => _failed.Remove(f.Key));
    }

    /// <summary>One host is given 2^64 addresses of IPv6 and can use them all.</summary>
    private static IPAddress Network(IPAddress client)
    {
        if (client.AddressFamily != AddressFamily.InterNetworkV6)
            return client;
        var bytes = client.GetAddressBytes();
        bytes.AsSpan(8).Clear();
        return new IPAddress(bytes);
    }
}

/// <summary>Is thrown when the issuer's keys cannot be had, so that no token can be judged.</summary>
internal sealed class IssuerException(string message) : Exception(message);

internal sealed class IssuerMetadata
{
    public string? Issuer { get; init; }
    [JsonPropertyName("jwks_uri")]
    public string? JwksUri { get; init; }
}

internal sealed class JsonWebKeySet
{
    /// <summary>Each is read by itself: one that is not understood is ignored (RFC 7517, 5).</summary>
    public List<JsonElement>? Keys { get; init; }
}

/// <summary>A JSON Web Key (RFC 7517; RFC 7518, 6).</summary>
internal sealed class JsonWebKey
{
    public string? Kty { get; init; }
    public string? Kid { get; init; }
    public string? Use { get; init; }
    public string? Alg { get; init; }
    public string? Crv { get; init; }
    public string? N { get; init; }
    public string? E { get; init; }
    public string? X { get; init; }
    public string? Y { get; init; }
}

internal sealed class JwtHeader
{
    public string? Alg { get; init; }
    public string? Kid { get; init; }
    public string? Typ { get; init; }
    public JsonElement? Crit { get; init; }
}

internal sealed class JwtClaims
{
    public string? Iss { get; init; }
    /// <summary>A text or a list of texts (RFC 7519, 4.1.3).</summary>
    public JsonElement Aud { get; init; }
    public double? Exp { get; init; }
    public double? Nbf { get; init; }
}

[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, AllowDuplicateProperties = false)]
[JsonSerializable(typeof(IssuerMetadata))]
[JsonSerializable(typeof(JsonWebKeySet))]
[JsonSerializable(typeof(JsonWebKey))]
[JsonSerializable(typeof(JwtHeader))]
[JsonSerializable(typeof(JwtClaims))]
internal sealed partial class OidcJson : JsonSerializerContext;

/// <summary>A public key of the issuer; of RSA from 2,048 bits on, or of the curve P-256.</summary>
internal sealed class IssuerKey
{
    private readonly Lock _gate = new();
    private readonly RSA? _rsa;
    private readonly ECDsa? _curve;
    private readonly string? _algorithm;

    public string? Id { get; }

    private IssuerKey(JsonWebKey body)
    {
        (Id, _algorithm) = (body.Kid, body.Alg);
        if (body is { Kty: "RSA", N: { Length: > 0 } n, E: { Length: > 0 } e })
            _rsa = RSA.Create(new RSAParameters
            {
                Modulus = Base64Url.DecodeFromChars(n),
                Exponent = Base64Url.DecodeFromChars(e),
            });
        else if (body is { Kty: "EC", Crv: "P-256", X: { } x, Y: { } y })
            _curve = ECDsa.Create(new ECParameters
            {
                Curve = ECCurve.NamedCurves.nistP256,
                Q = new ECPoint { X = Base64Url.DecodeFromChars(x), Y = Base64Url.DecodeFromChars(y) },
            });
    }

    /// <summary>Null when SeS has no use for it: another kind, too short, for encryption, broken.</summary>
    public static IssuerKey? From(JsonElement json)
    {
        try
        {
            if (json.Deserialize(OidcJson.Default.JsonWebKey) is not { Use: null or "sig" } body)
                return null;
            var key = new IssuerKey(body);
            return key._rsa is { KeySize: >= 2048 } || key._curve != null ? key : null;
        }
        catch (Exception e) when (e is JsonException or FormatException or CryptographicException)
        {
            return null;
        }
    }

    /// <param name="algorithm">One of RS256, PS256, ES256 (RFC 7518, 3.1); no other verifies.</param>
    public bool Verifies(string algorithm, ReadOnlySpan<byte> signed, ReadOnlySpan<byte> signature)
    {
        if (_algorithm != null && _algorithm != algorithm)
            return false;
        lock (_gate)
        {
            return algorithm switch
            {
                "RS256" => _rsa?.VerifyData(
                    signed, signature, HashAlgorithmName.SHA256, RSASignaturePadding.Pkcs1) == true,
                "PS256" => _rsa?.VerifyData(
                    signed, signature, HashAlgorithmName.SHA256, RSASignaturePadding.Pss) == true,
                "ES256" => signature.Length == 64 && _curve?.VerifyData(signed, signature,
                    HashAlgorithmName.SHA256, DSASignatureFormat.IeeeP1363FixedFieldConcatenation) == true,
                _ => false,
            };
        }
    }
}

/// <summary>
/// Judges bearer tokens (JWT, RFC 7519) by the keys that the issuer publishes (OpenID Connect Discovery).
/// </summary>
internal sealed class Issuer
{
    /// <summary>Clocks differ; by more than this, and the token is refused.</summary>
    public static readonly TimeSpan Skew = TimeSpan.FromSeconds(60);

    /// <summary>Keys are asked for again after so long, so that one that was withdrawn goes.</summary>
    public static readonly TimeSpan KeysAge = TimeSpan.FromHours(1);

    /// <summary>Between two questions to the issuer, whoever causes them.</summary>
    public static readonly TimeSpan Pause = TimeSpan.FromSeconds(1);

    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(10);

    private static readonly SearchValues<char> Alphabet =
        SearchValues.Create("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_");

    /// <summary>Of the issuer's answers, in bytes.</summary>
    private const int MaxAnswer = 1024 * 1024;

    private readonly string _issuer, _audience;
    private readonly TimeProvider _clock;
    private readonly HttpClient _http;
    private readonly SemaphoreSlim _turn = new(1);
    // Changed by whoever holds the turn.
    private volatile IReadOnlyList<IssuerKey>? _keys;
    private bool _everAsked;
    // When the last question began, when it ended, and when the keys were had.
    private long _began, _ended, _got;
    private IssuerException? _failure;

    public Issuer(string issuer, string audience, HttpMessageHandler handler, TimeProvider clock)
    {
        (_issuer, _audience, _clock) = (issuer, audience, clock);
        _http = new HttpClient(handler) { Timeout = Patience, MaxResponseContentBufferSize = MaxAnswer };
    }

    /// <summary>Why the token is refused, for <c>error_description</c>; null: it is valid.</summary>
    /// <exception cref="IssuerException">The keys that it needs cannot be had now.</exception>
    public async ValueTask<string?> RefusalAsync(string token)
    {
        var arrived = _clock.GetTimestamp();
        var parts = token.Split('.');
        if (parts.Length != 3 || !Read(parts[0], OidcJson.Default.JwtHeader, out var head)
            || !Read(parts[1], OidcJson.Default.JwtClaims, out var claims)
            || !IsEncoded(parts[2]))
            return "the token is no signed JWT";
        if (head.Alg is not ("RS256" or "PS256" or "ES256"))
            return "the algorithm of the token is not RS256, PS256 or ES256";
        if (head.Crit != null || head.Typ?.ToLowerInvariant() is not (null or "jwt" or "at+jwt"
            or "application/at+jwt" or "application/jwt"))
            return "the token is of a kind that SeS does not know";
        var signed = Encoding.ASCII.GetBytes($"{parts[0]}.{parts[1]}");
        var signature = Base64Url.DecodeFromChars(parts[2]);
        bool IsSigned(IReadOnlyList<IssuerKey> keys) =>
            keys.Any(k => k.Verifies(head.Alg, signed, signature));
        var keys = await KeysAsync(head.Kid, arrived, anew: false);
        // Not every issuer names its keys, or gives a new one a new name.
        if (!IsSigned(keys) && !IsSigned(keys = await KeysAsync(head.Kid, arrived, anew: true)))
            return keys.Count == 0 ? "the key of the token is not the issuer's" : "the signature is wrong";
        return Refusal(claims);
    }

    /// <summary>Asks for the keys if that was not done for long; then no token has to wait.</summary>
    /// <exception cref="IssuerException">They cannot be had.</exception>
    public Task RefreshAsync() => AskAsync(() => _keys == null || _clock.GetElapsedTime(_got) > KeysAge);

    private string? Refusal(JwtClaims claims)
    {
        var now = (_clock.GetUtcNow() - DateTimeOffset.UnixEpoch).TotalSeconds;
        return claims.Iss != _issuer ? "the token is another issuer's"
            : !IsFor(claims.Aud) ? "the token is for another audience"
            : claims.Exp is not { } end ? "the token never expires"
            : now >= end + Skew.TotalSeconds ? "the token has expired"
            : claims.Nbf is { } start && now < start - Skew.TotalSeconds ? "the token is not valid yet"
            : null;
    }

    private bool IsFor(JsonElement audience)
    {
        try
        {
            return audience.ValueKind switch
            {
                JsonValueKind.String => audience.ValueEquals(_audience),
                JsonValueKind.Array => audience.EnumerateArray()
                    .Any(a => a.ValueKind == JsonValueKind.String && a.ValueEquals(_audience)),
                _ => false,
            };
        }
        catch (InvalidOperationException)
        {
            // Half a character, escaped, is no text.
            return false;
        }
    }

    /// <summary>As RFC 7515, 2 has it; .NET's decoder takes padding and white space as well.</summary>
    private static bool IsEncoded(string part) =>
        Base64Url.IsValid(part) && !part.AsSpan().ContainsAnyExcept(Alphabet);

    private static bool Read<T>(string part, JsonTypeInfo<T> type, [NotNullWhen(true)] out T? value)
        where T : class
    {
        value = null;
        if (!IsEncoded(part))
            return false;
        try
        {
            value = JsonSerializer.Deserialize(Base64Url.DecodeFromChars(part), type);
        }
        catch (JsonException)
        {
            // Whatever it is, it is no token.
        }
        return value != null;
    }

    // ---- Keys ----

    /// <summary>
    /// The keys that the token may be signed with. One that is not known is asked for after the token
    /// arrived, so that a token signed with a new key is never refused.
    /// </summary>
    /// <param name="anew">Those that are known do not fit.</param>
    private async ValueTask<IReadOnlyList<IssuerKey>> KeysAsync(string? id, long arrived, bool anew)
    {
        IReadOnlyList<IssuerKey> Fitting() => [.. (_keys ?? []).Where(k => id == null || k.Id == id)];
        // While somebody asks, known keys serve the others: an issuer that hangs holds up one token.
        if (!anew && Fitting() is { Count: > 0 } known && (!AreOld() || _turn.CurrentCount == 0))
            return known;
        try
        {
            await AskAsync(() => anew || Fitting().Count == 0 ? !_everAsked || _began < arrived : AreOld());
        }
        catch (IssuerException) when (Fitting().Count > 0)
        {
            // The issuer is away: the keys that it gave before are still used.
        }
        var keys = Fitting();
        return keys.Count > 0 || _failure == null ? keys : throw _failure;
    }

    private bool AreOld() =>
        _clock.GetElapsedTime(_got) > KeysAge && _clock.GetElapsedTime(_ended) > Patience;

    private async Task AskAsync(Func<bool> isNeeded)
    {
        await _turn.WaitAsync();
        try
        {
            if (!isNeeded())
                return;
            if (_everAsked && Pause - _clock.GetElapsedTime(_began) is { Ticks: > 0 } early)
                await Task.Delay(early, _clock);
            (_everAsked, _began) = (true, _clock.GetTimestamp());
            _keys = await FetchAsync();
            (_failure, _got) = (null, _clock.GetTimestamp());
        }
        catch (IssuerException e)
        {
            (_failure, _ended) = (e, _clock.GetTimestamp());
            throw;
        }
        finally
        {
            _turn.Release();
        }
    }

    private async Task<IReadOnlyList<IssuerKey>> FetchAsync()
    {
        var discovery = await GetAsync(
            _issuer.TrimEnd('/') + "/.well-known/openid-configuration", OidcJson.Default.IssuerMetadata);
        if (discovery.Issuer != _issuer)
            throw new IssuerException($"the issuer names itself '{discovery.Issuer}', not '{_issuer}'");
        if (!Uri.TryCreate(discovery.JwksUri, UriKind.Absolute, out var place)
            || (place.Scheme != Uri.UriSchemeHttps && place.Scheme != new Uri(_issuer).Scheme))
            throw new IssuerException($"the issuer's jwks_uri is not usable: '{discovery.JwksUri}'");
        var keys = await GetAsync(discovery.JwksUri, OidcJson.Default.JsonWebKeySet);
        return [.. (keys.Keys ?? []).Select(IssuerKey.From).OfType<IssuerKey>()];
    }

    private async Task<T> GetAsync<T>(string url, JsonTypeInfo<T> type) where T : class
    {
        try
        {
            using var answer = await _http.GetAsync(url);
            if (!answer.IsSuccessStatusCode)
                throw new IssuerException($"{url} answered {(int)answer.StatusCode}");
            return JsonSerializer.Deserialize(await answer.Content.ReadAsByteArrayAsync(), type)
                ?? throw new IssuerException($"{url} answered null");
        }
        catch (Exception e) when (e is HttpRequestException or TaskCanceledException or JsonException
            or InvalidOperationException or UriFormatException or NotSupportedException)
        {
            throw new IssuerException($"{url} cannot be read: {e.Message}");
        }
    }
}

/// <summary>Judges the credentials of requests.</summary>
internal sealed class Auth
{
    private readonly Options _options;
    private readonly Log _log;
    private readonly Meters _meters;
    private readonly byte[] _expected;
    private readonly SignInFailures _failures;
    private readonly Issuer? _issuer;

    /// <param name="handler">Dials the OIDC issuer; not used with another mode.</param>
    public Auth(Options options, HttpMessageHandler handler, TimeProvider clock, Log log, Meters meters)
    {
        (_options, _log, _meters) = (options, log, meters);
        _expected = SHA256.HashData(Encoding.UTF8.GetBytes($"{options.Username}:{options.Password}"));
        _failures = new SignInFailures(clock);
        if (options.AuthMode == AuthMode.Oidc)
            _issuer = new Issuer(options.OidcIssuer!, options.OidcAudience!, handler, clock);
    }

    /// <summary>For asking the issuer: at the address that it names, with the system's CAs.</summary>
    public static SocketsHttpHandler CreateHandler() => new() { AllowAutoRedirect = false };

    /// <summary>Fetches the issuer's keys before they are needed, and logs when it cannot.</summary>
    public async Task PrepareAsync()
    {
        try
        {
            await (_issuer?.RefreshAsync() ?? Task.CompletedTask);
        }
        catch (IssuerException e)
        {
            LogFailure(e);
        }
    }

    /// <summary>Null when the request is admitted, else the answer: 401, or 503 without the issuer.</summary>
    /// <param name="authorization">The value of the request's Authorization field; null when absent.</param>
    /// <param name="client">Its answers wait the longer the more it guesses.</param>
    public async ValueTask<Reply?> RefusalAsync(string? authorization, IPAddress client)
    {
        if (_options.AuthMode == AuthMode.None)
            return null;
        if (authorization == null)
            return Unauthorized("missing", null, client);
        var given = authorization.Split(' ', 2, StringSplitOptions.TrimEntries);
        var scheme = _issuer == null ? "Basic" : "Bearer";
        if (given.Length != 2 || !given[0].Equals(scheme, StringComparison.OrdinalIgnoreCase))
            return Unauthorized("scheme", null, client);
        if (_issuer == null)
            return IsPassword(given[1]) ? null : Unauthorized("wrong", null, client);
        try
        {
            return await _issuer.RefusalAsync(given[1]) is { } reason
                ? Unauthorized("wrong", reason, client) : null;
        }
        catch (IssuerException e)
        {
            LogFailure(e);
            return Reply.Problem(503, "The OIDC issuer's keys cannot be had; SeS's log says why.");
        }
    }

    private bool IsPassword(string base64)
    {
        var credentials = new byte[base64.Length];
        return Convert.TryFromBase64String(base64, credentials, out var length)
            && CryptographicOperations.FixedTimeEquals(
                SHA256.HashData(credentials.AsSpan(0, length)), _expected);
    }

    /// <summary>The challenge of RFC 9110, 11.6.1, with RFC 6750, 3 for tokens.</summary>
    private Reply Unauthorized(string reason, string? description, IPAddress client)
    {
        var heldBack = reason == "missing" ? TimeSpan.Zero : _failures.Add(client);
        _meters.AuthFailures.WithLabels(reason).Inc();
        if (heldBack > TimeSpan.Zero)
            _log.Often("credentials were refused", ("client", client), ("reason", description ?? reason));
        var challenge = _issuer == null ? "Basic realm=\"SeS\", charset=\"UTF-8\""
            : "Bearer realm=\"SeS\""
                + (description == null ? ""
                    : $", error=\"invalid_token\", error_description=\"{description}\"");
        var detail = _issuer == null || description == null ? "Credentials are missing or wrong."
            : $"The bearer token is refused: {description}.";
        return Reply.Problem(401, detail) with
        {
            Headers = [("WWW-Authenticate", challenge)],
            HeldBack = heldBack,
        };
    }

    private void LogFailure(IssuerException e) =>
        _log.Often("no bearer token can be judged: the OIDC issuer cannot be used",
            ("reason", e.Message.Length <= 500 ? e.Message : e.Message[..500]));
}

// ============================== 14. Status page ==============================
//
// What people see: HTML and CSS without a script. First one sentence for the whole, then what is down now,
// then all services by partition and platform, then past outages, and what SeS could not take or pass on.
// Labels come from strangers, so all text is escaped. Links are relative: the page works under any path.

/// <summary>What the page shows beside the services: Onix's state, and the quarantine.</summary>
/// <param name="Onix">Null: SeS runs without one.</param>
/// <param name="Quarantined">How many alerts there are, and the latest of them.</param>
internal sealed record DaemonState(
    RecorderState? Onix, int QuarantinedCount, IReadOnlyList<QuarantinedAlert> Quarantined, string Path);

/// <summary>Writes HTML, a part at a time.</summary>
internal sealed class HtmlWriter : BodyWriter
{
    /// <summary>Adds markup; what is put into it is escaped, unless it is <see cref="Markup"/>.</summary>
    public void Add(ref HtmlInterpolation markup) => Put(markup.ToString());

    /// <summary>Text for an element or a quoted attribute; control characters are not for HTML.</summary>
    public static string Escape(string text)
    {
        if (!text.AsSpan().ContainsAny(Special) && !text.Any(char.IsSurrogate))
            return text;
        var escaped = new StringBuilder(text.Length + 16);
        foreach (var rune in text.EnumerateRunes())
            escaped.Append(rune.Value switch
            {
                '<' => "&lt;",
                '>' => "&gt;",
                '&' => "&amp;",
                '"' => "&quot;",
                '\'' => "&#39;",
                '\n' or '\t' or '\r' => " ",
                _ => Rune.IsControl(rune) ? "\ufffd" : rune.ToString(),
            });
        return escaped.ToString();
    }

    private static readonly SearchValues<char> Special = SearchValues.Create(
        [.. "<>&\"'", .. Enumerable.Range(0, 160).Select(c => (char)c).Where(char.IsControl)]);
}

/// <summary>Text that is HTML already.</summary>
internal readonly record struct Markup(string Text)
{
    public static Markup Of(ref HtmlInterpolation markup) => new(markup.ToString());

    public static Markup operator +(Markup one, Markup other) => new(one.Text + other.Text);
}

/// <summary>An interpolated string whose holes are escaped, unless they are <see cref="Markup"/>.</summary>
[InterpolatedStringHandler]
internal readonly ref struct HtmlInterpolation(int literalLength, int formattedCount)
{
    private readonly StringBuilder _text = new(literalLength + (16 * formattedCount));

    public void AppendLiteral(string literal) => _text.Append(literal);

    public void AppendFormatted(string? text) => _text.Append(HtmlWriter.Escape(text ?? ""));

    public void AppendFormatted(long number) => _text.Append(CultureInfo.InvariantCulture, $"{number}");

    public void AppendFormatted(Markup markup) => _text.Append(markup.Text);

    public override string ToString() => _text.ToString();
}

/// <summary>What a visitor wants to see; it stands in the page's address.</summary>
/// <param name="Search">Only services with this text in one of their names; null: all.</param>
internal sealed record PageQuery(string Range, string? Search)
{
    /// <summary>The ranges to choose from, each with the intervals that its strips have.</summary>
    public static readonly IReadOnlyDictionary<string, (TimeSpan Length, int Intervals)> Ranges =
        new Dictionary<string, (TimeSpan, int)>
        {
            ["24h"] = (TimeSpan.FromHours(24), 48),
            ["7d"] = (TimeSpan.FromDays(7), 56),
            ["30d"] = (TimeSpan.FromDays(30), 60),
            ["90d"] = (TimeSpan.FromDays(90), 90),
        };

    public TimeSpan Length => Ranges[Range].Length;

    public int Intervals => Ranges[Range].Intervals;

    /// <param name="more">Parameters that the page has besides these.</param>
    /// <exception cref="QuestionException">One is unknown, stands twice, or cannot be used.</exception>
    public static (PageQuery PageQuery, Dictionary<string, string> Given) Parse(
        IEnumerable<KeyValuePair<string, string>> parameters, params string[] more)
    {
        var given = Question.Once(parameters, ["range", .. more], "this page");
        var range = given.GetValueOrDefault("range", "24h");
        if (!Ranges.ContainsKey(range))
            throw new QuestionException($"range: it is none of {string.Join(", ", Ranges.Keys)}");
        return (new PageQuery(range, given.GetValueOrDefault("search")), given);
    }

    public bool Takes(ServiceKey service) => Search == null
        || service.ToString().Contains(Search, StringComparison.OrdinalIgnoreCase);
}

/// <summary>The pages, as HTML in parts.</summary>
internal sealed class StatusPage(Answers answers, DaemonState daemon, PageQuery query)
{
    /// <summary>Of past outages, of a service's changes, of what was set aside: no more of each.</summary>
    private const int MostOutages = 50, MostChanges = 200, MostSetAside = 20;

    /// <summary>Of a strip's bad times, so many are read out.</summary>
    private const int MaxSpokenIntervals = 12;

    private const int RefreshSeconds = 30;

    private const string Style = """
        :root{color-scheme:light dark;--back:#fff;--fore:#1b1f24;--soft:#57606a;--line:#d0d7de;
        --panel:#f6f8fa;--link:#0a53be;
        --up:#1a7f37;--down:#b3121d;--other:#8a5a00;--unknown:#818b98;--downback:#ffebe9}
        @media (prefers-color-scheme:dark){:root{--back:#0d1117;--fore:#e6edf3;--soft:#9aa4af;--line:#30363d;
        --panel:#161b22;--link:#79b8ff;--up:#3fb950;--down:#ff7b72;--other:#e3b341;--unknown:#6e7681;
        --downback:#3c1618}}
        *{box-sizing:border-box}
        body{margin:0 auto;max-width:75rem;padding:1rem;background:var(--back);color:var(--fore);
        font:16px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
        h1{font-size:1.6rem;margin:.3em 0;line-height:1.25}h2{font-size:1.15rem;margin:1.6em 0 .5em}
        a{color:var(--link)}a:focus-visible,summary:focus-visible,svg:focus-visible,input:focus-visible,
        button:focus-visible{outline:2px solid var(--link);outline-offset:2px}
        .soft,small{color:var(--soft);font-size:.875rem}
        .up{color:var(--up)}.down{color:var(--down)}.other{color:var(--other)}.word{font-weight:600}
        ul{list-style:none;margin:0;padding:0}
        li{padding:.5rem 0;border-top:1px solid var(--line)}
        .alarm li{background:var(--downback);padding:.5rem .6rem;border:0;border-left:4px solid var(--down);
        margin:.3rem 0}
        .row{display:grid;grid-template-columns:minmax(0,2fr) 7.5rem minmax(0,3fr) 5.5rem;gap:.2rem 1rem;
        align-items:center}.row .strip{grid-column:3}
        .row .share{text-align:right;font-variant-numeric:tabular-nums}
        details{border:1px solid var(--line);border-radius:6px;margin:.5rem 0;padding:0 .8rem}
        summary{cursor:pointer;padding:.6rem 0;font-weight:600}
        svg{display:block;width:100%;height:1.75rem;background:var(--panel)}
        svg .up{fill:var(--up)}svg .down{fill:var(--down)}svg .other{fill:var(--other)}
        svg .unknown{fill:var(--unknown)}
        .ends{display:flex;justify-content:space-between;gap:1rem}
        form{display:flex;flex-wrap:wrap;gap:.6rem;align-items:center;margin:1rem 0}
        input,button{font:inherit;color:inherit;background:var(--back);border:1px solid var(--soft);
        border-radius:6px;padding:.35rem .6rem;max-width:100%}
        nav a,.chosen{display:inline-block;padding:.35rem .5rem}.chosen{font-weight:600}
        dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.2rem 1rem;margin:.5rem 0}
        dd{margin:0}
        pre{background:var(--panel);padding:.8rem;white-space:pre-wrap;border-radius:6px}
        footer{margin-top:2rem;border-top:1px solid var(--line);padding-top:.8rem}
        @media (max-width:45rem){.row{grid-template-columns:minmax(0,1fr) auto}.row .strip{grid-column:1/-1;
        grid-row:2}.row .share{grid-column:2;grid-row:3}.ends span:last-child{text-align:right}}
        @media print{form,nav,footer{display:none}body{max-width:none}li,details{break-inside:avoid}
        svg{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
        """;

    /// <summary>Nothing but this style, and requests to where the page came from.</summary>
    public static string Policy { get; } = "default-src 'none'; style-src 'sha256-"
        + Convert.ToBase64String(SHA256.HashData(Encoding.UTF8.GetBytes(Style)))
        + "'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

    private readonly HtmlWriter _html = new();
    private readonly DateTime _from = answers.Now - query.Length;

    // ---- The page of all ----

    /// <summary>The page of all services.</summary>
    /// <exception cref="IOException">The log cannot be read.</exception>
    public IEnumerable<ReadOnlyMemory<byte>> All()
    {
        var all = answers.Known.OrderBy(k => k.Service, Answers.ByName).ToList();
        var shown = all.Where(k => query.Takes(k.Service)).ToList();
        var down = shown.Where(k => k.LastEvent.Status == "down").ToList();
        Begin(Title(all), Sentence(all));
        if (all.Count == 0)
            AddFirstStep();
        if (down.Count > 0)
            AddDown(down);
        if (all.Count > 0)
        {
            _html.Add($"<h2>Services</h2>");
            AddForm();
        }
        if (all.Count > 0 && shown.Count == 0)
            _html.Add($"<p>No service has “<bdi>{query.Search}</bdi>” in its names.</p>");
        var services = shown.Select(k => k.Service).ToList();
        var (tallies, outages) = answers.Tallies(services, _from, null, query.Intervals, MostOutages);
        var at = 0;
        foreach (var group in shown.GroupBy(k => (k.Service.Partition, k.Service.Platform)))
        {
            var members = group.ToList();
            BeginGroup(group.Key.Partition, group.Key.Platform, members);
            foreach (var known in members)
            {
                AddService(known, tallies[at], at++);
                if (_html.IsFull)
                    yield return _html.Take();
            }
            _html.Add($"</ul></details>");
        }
        if (services.Count > 0)
            AddOutages(services, outages);
        AddSetAside();
        yield return End(all.Select(k => k.Service.Partition).Distinct());
    }

    private static string Title(List<KnownService> all)
    {
        var down = all.Count(k => k.LastEvent.Status == "down");
        var bad = all.Count(k => k.LastEvent.Status != "up");
        return down > 0 ? $"{down} down" : bad > 0 ? $"{bad} not up"
            : all.Count == 0 ? "no service yet" : "all is well";
    }

    private static Markup Sentence(List<KnownService> all)
    {
        var down = all.Count(k => k.LastEvent.Status == "down");
        var other = all.Count(k => k.LastEvent.Status is not ("up" or "down"));
        var others = other == 0 ? "" : $" {other} {(other == 1 ? "is" : "are")} neither up nor down.";
        if (all.Count == 0)
            return Markup.Of($"SeS knows of no service yet.");
        if (down > 0 && all.Count > 1)
            return Markup.Of($"<span class=\"down\">✖ {down} of {all.Count} services ")
                + Markup.Of($"{(down == 1 ? "is" : "are")} down.</span>{others}");
        if (down > 0)
            return Markup.Of($"<span class=\"down\">✖ The one service is down.</span>");
        if (other > 0)
            return Markup.Of($"No service is down.{others}");
        var who = all.Count == 1 ? "The one service is" : $"All {all.Count} services are";
        return Markup.Of($"<span class=\"up\">✔ {who} up.</span>");
    }

    private static string Counted(long count, string what) => $"{count} {what}{(count == 1 ? "" : "s")}";

    private void AddFirstStep() => _html.Add($$"""
        <p>Send it an alert, and this page will show the service:</p>
        <pre>curl -i http://HOST:PORT/{{daemon.Path}}/INS -d '{"version":"4","alerts":[{"status":"firing",
        "labels":{"alertname":"Down","job":"etcd","instance":"n1:2379"},
        "startsAt":"{{Rfc3339.Format(answers.Now)}}"}]}'</pre>
        <p>Then have Alertmanager send all alerts, by a receiver with</p>
        <pre>webhook_configs:
        - url: http://HOST:PORT/{{daemon.Path}}/INS
          send_resolved: true</pre>
        <p>“INS” is the partition of Onix that the services are to be in; without an Onix, any name.</p>
        """);

    private void AddDown(List<KnownService> down)
    {
        _html.Add($"<section class=\"alarm\"><h2>Down now</h2><ul>");
        foreach (var (known, since) in down.Zip(answers.Since(down)))
        {
            var service = known.Service;
            _html.Add($"""
                <li>{Link(service)} <span class="soft">{Group(service)}</span><br>
                <span class="word down">down</span> since {Time(since)}, for {Lasted(answers.Now - since)}.
                <bdi>{known.LastEvent.Description}</bdi></li>
                """);
        }
        _html.Add($"</ul></section>");
    }

    private void AddForm()
    {
        _html.Add($"""
            <form method="get" action="./"><input type="hidden" name="range" value="{query.Range}">
            <label for="search">Name contains</label>
            <input id="search" name="search" type="search" maxlength="200" value="{query.Search}">
            <button>Show</button>
            <nav aria-label="Range">
            """);
        foreach (var range in PageQuery.Ranges.Keys)
            AddRange(range, "./?" + Query(("range", range), ("search", query.Search)));
        _html.Add($"</nav></form>");
    }

    private void AddRange(string range, string target)
    {
        if (range == query.Range)
            _html.Add($"<span class=\"chosen\" aria-current=\"true\">{range}</span>");
        else
            _html.Add($"<a href=\"{target}\">{range}</a>");
    }

    private void BeginGroup(string partition, string platform, List<KnownService> members)
    {
        var bad = members.Count(m => m.LastEvent.Status != "up");
        var open = bad > 0 || query.Search != null ? " open" : "";
        var state = bad == 0 ? Markup.Of($"<span class=\"up\">✔ all up</span>")
            : Markup.Of($"<span class=\"down\">✖ {bad} not up</span>");
        _html.Add($"""
            <details{open}><summary><bdi>{partition}</bdi> / <bdi>{platform}</bdi>:
            {Counted(members.Count, "service")}, {state}</summary>
            <ul><li class="row soft"><span class="strip ends"><span>{Time(_from)}</span>
            <span>{Time(answers.Now)}</span></span></li>
            """);
    }

    private void AddService(KnownService known, Tally tally, int number)
    {
        var service = known.Service;
        var figures = tally.Finish();
        _html.Add($"""
            <li class="row"><span>{Link(service)}</span>{StatusText(known.LastEvent.Status)}
            <span class="strip">{Strip(tally.Strip, Name(service))}</span>
            <span class="share">{Share(figures.Availability)}</span></li>
            """);
    }

    private void AddOutages(List<ServiceKey> services, IReadOnlyList<Outage> outages)
    {
        _html.Add($"<section><h2>Past outages</h2>");
        if (outages.Count == 0)
            _html.Add($"<p>None ended in this time.</p>");
        _html.Add($"<ul>");
        var starts = outages.Select(o => new ServiceMark(o.Service, o.Start)).ToList();
        var texts = answers.Archive.Events(starts, services)
            .ToDictionary(e => e.Change, e => e.Event.Description);
        foreach (var outage in outages)
        {
            var service = services[outage.Service];
            _html.Add($"""
                <li>{Link(service)} <span class="soft">{Group(service)}</span><br>
                {Time(outage.Start.Time)} to {Time(outage.End)},
                {Lasted(outage.End - outage.Start.Time)}.
                <bdi>{texts.GetValueOrDefault(new ServiceMark(outage.Service, outage.Start))}</bdi></li>
                """);
        }
        _html.Add($"</ul>{AndNoMore(outages.Count, MostOutages)}</section>");
    }

    private static Markup AndNoMore(int count, int most) =>
        count < most ? default : Markup.Of($"<p class=\"soft\">These are the latest {most}.</p>");

    /// <summary>What SeS could not map, and what Onix does not take.</summary>
    private void AddSetAside()
    {
        if (daemon.Onix?.Barred is { Count: > 0 } barred)
        {
            _html.Add($"""
                <section><h2>Refused by Onix</h2>
                <p>{Counted(barred.Count, "service")}; SeS tries again.</p><ul>
                """);
            foreach (var (service, refusal) in barred.Take(MostSetAside))
                _html.Add($"""
                    <li>{Link(service)} since {Time(refusal.Since)}: <bdi>{refusal.Reason}</bdi></li>
                    """);
            _html.Add($"</ul></section>");
        }
        if (daemon.QuarantinedCount == 0)
            return;
        _html.Add($"""
            <section><h2>Quarantined alerts</h2>
            <p>{Counted(daemon.QuarantinedCount, "alert")} could not be mapped to a service, and can be seen
            whole in quarantine.jsonl. The latest:</p><ul>
            """);
        foreach (var alert in daemon.Quarantined.Reverse().Take(MostSetAside))
        {
            var received = Rfc3339.TryParse(alert.Received, out var time) ? Time(time) : default;
            _html.Add($"""
                <li>{received} <bdi>{alert.Alertname ?? "(no name)"}</bdi>
                <span class="soft"><bdi>{alert.Partition}</bdi></span>: <bdi>{alert.Reason}</bdi></li>
                """);
        }
        _html.Add($"</ul></section>");
    }

    // ---- The page of one ----

    /// <summary>The page of one service, which is known.</summary>
    /// <exception cref="IOException">The log cannot be read.</exception>
    public IEnumerable<ReadOnlyMemory<byte>> One(ServiceKey service)
    {
        var known = answers.Known.First(k => k.Service == service);
        var (tallies, _) = answers.Tallies([service], _from, null, query.Intervals, 0);
        var figures = tallies[0].Finish();
        var since = answers.Since([known])[0];
        Begin(Name(service), Names(service));
        _html.Add($"""
            <p><a href="./?{Query(("range", query.Range))}">All services</a></p>
            <p>{StatusText(known.LastEvent.Status)} since {Time(since)}, for {Lasted(answers.Now - since)}.
            <bdi>{known.LastEvent.Description}</bdi></p>
            <dl><dt>Partition</dt><dd><bdi>{service.Partition}</bdi></dd>
            <dt>Platform</dt><dd><bdi>{service.Platform}</bdi></dd>
            <dt>Service</dt><dd><bdi>{service.Service}</bdi></dd>
            <dt>Facet</dt><dd><bdi>{service.Facet}</bdi></dd>
            <dt>Location</dt><dd><bdi>{(service.Location == "" ? "(none)" : service.Location)}</bdi></dd></dl>
            <nav aria-label="Range">
            """);
        foreach (var range in PageQuery.Ranges.Keys)
            AddRange(range, Target(service, range));
        _html.Add($"</nav>{Strip(tallies[0].Strip, Name(service))}");
        _html.Add($"<p class=\"ends soft\"><span>{Time(_from)}</span><span>{Time(answers.Now)}</span></p>");
        AddFigures(figures);
        AddChanges(service);
        yield return End([]);
    }

    private void AddFigures(Figures f) => _html.Add($"""
        <h2>Figures of these {query.Range}</h2>
        <dl><dt>Availability</dt><dd>{Share(f.Availability)} of the time known</dd>
        <dt>Up</dt><dd>{Lasted(f.Up)}</dd><dt>Down</dt><dd>{Lasted(f.Down)}</dd>
        <dt>Outages</dt><dd>{f.Outages}{(f.IsOpen ? ", the last still open" : "")}</dd>
        <dt>Longest outage</dt><dd>{(f.Outages == 0 ? "none" : Lasted(f.Longest))}</dd>
        <dt>Mean outage</dt><dd>{(f.Mean is { } mean ? Lasted(mean) : "none")}</dd>
        <dt>Mean time between</dt>
        <dd>{(f.MeanBetween is { } between ? Lasted(between) : "no outage")}</dd></dl>
        """);

    private void AddChanges(ServiceKey service)
    {
        var changes = answers.Latest(service, _from, MostChanges).Reverse().ToList();
        _html.Add($"<h2>Changes</h2>");
        if (changes.Count == 0)
            _html.Add($"<p>There was none in this time.</p>");
        _html.Add($"<ul>");
        foreach (var e in changes)
            _html.Add($"<li>{Time(e.Time)} {StatusText(e.Status)} <bdi>{e.Description}</bdi></li>");
        var of = Query(("platform", service.Platform), ("service", service.Service), ("facet", service.Facet),
            ("location", service.Location), ("from", "-" + query.Range));
        var target = $"{daemon.Path}/{Uri.EscapeDataString(service.Partition)}";
        _html.Add($"""
            </ul>{AndNoMore(changes.Count, MostChanges)}
            <p>All changes as <a href="{target}/history?{of}&amp;format=json">JSON</a> or
            <a href="{target}/history?{of}&amp;format=csv">CSV</a>, figures as
            <a href="{target}/report?{of}&amp;format=json">JSON</a> or
            <a href="{target}/report?{of}&amp;format=csv">CSV</a>.</p>
            """);
    }

    // ---- What all pages have ----

    private void Begin(string title, Markup sentence)
    {
        _html.Add($"""
            <!DOCTYPE html>
            <html lang="en"><head><meta charset="utf-8"><title>{title} – SeS</title>
            <meta name="viewport" content="width=device-width, initial-scale=1">
            <meta http-equiv="refresh" content="{RefreshSeconds}"><link rel="icon" href="data:,">
            <style>{new Markup(Style)}</style></head><body><main><h1>{sentence}</h1>
            <p class="soft">As of {Time(answers.Now)}. All times are in UTC. The page renews itself every
            {RefreshSeconds} s. {Onix()}</p>
            """);
    }

    private Markup Onix()
    {
        if (daemon.Onix is not { } onix)
            return default;
        var oldest = onix.Oldest is { } time ? $", the oldest received {Lasted(answers.Now - time)} ago" : "";
        var behind = onix.Backlog == 0 ? Markup.Of($"Onix has all changes.")
            : Markup.Of($"<strong>Onix is behind by {Counted(onix.Backlog, "event")}{oldest}.</strong>");
        return onix.Trouble == null ? behind
            : Markup.Of($"{behind} <strong>Onix confirms nothing:</strong> <bdi>{onix.Trouble}</bdi>");
    }

    private ReadOnlyMemory<byte> End(IEnumerable<string> partitions)
    {
        _html.Add($"</main><footer class=\"soft\">");
        foreach (var partition in partitions)
        {
            var target = $"{daemon.Path}/{Uri.EscapeDataString(partition)}";
            _html.Add($"""
                <p><bdi>{partition}</bdi>: <a href="{target}">status</a>,
                <a href="{target}/history?from=-{query.Range}">history</a>
                (<a href="{target}/history?from=-{query.Range}&amp;format=csv">CSV</a>),
                <a href="{target}/report?from=-{query.Range}">report</a>
                (<a href="{target}/report?from=-{query.Range}&amp;format=csv">CSV</a>)</p>
                """);
        }
        _html.Add($"<p>SeS, Service Status</p></footer></body></html>\n");
        return _html.Take();
    }

    private static Markup Group(ServiceKey service) =>
        Markup.Of($"<bdi>{service.Partition}</bdi> / <bdi>{service.Platform}</bdi>");

    /// <summary>Where there can be no markup; U+2068 and U+2069 set a part apart from the others.</summary>
    private static string Name(ServiceKey service) => string.Join(' ',
        new[] { service.Service, service.Facet, service.Location }.Where(p => p != "")
            .Select(p => Ascii.IsValid(p) ? p : $"\u2068{p}\u2069"));

    private Markup Link(ServiceKey service) =>
        Markup.Of($"<a href=\"{Target(service, query.Range)}\">{Names(service)}</a>");

    /// <summary>Each by itself, whichever way it is written.</summary>
    private static Markup Names(ServiceKey service) => Markup.Of(
        $"<bdi>{service.Service}</bdi> <bdi>{service.Facet}</bdi> <bdi>{service.Location}</bdi>");

    private static string Target(ServiceKey service, string range) => "service?" + Query(
        ("partition", service.Partition), ("platform", service.Platform), ("service", service.Service),
        ("facet", service.Facet), ("location", service.Location), ("range", range));

    private static string Query(params (string Name, string? Value)[] parameters) => string.Join('&',
        parameters.Where(p => !string.IsNullOrEmpty(p.Value) || p is ("location", not null))
            .Select(p => $"{p.Name}={Uri.EscapeDataString(p.Value!)}"));

    private static Markup StatusText(string status) => status switch
    {
        "up" => Markup.Of($"<span class=\"word up\">✔ up</span>"),
        "down" => Markup.Of($"<span class=\"word down\">✖ down</span>"),
        _ => Markup.Of($"<span class=\"word other\">◆ <bdi>{status}</bdi></span>"),
    };

    private static Markup Time(DateTime time) =>
        Markup.Of($"<time datetime=\"{Rfc3339.Format(time)}\">{Written(time)}</time>");

    private static string Written(DateTime time) =>
        time.ToString("yyyy-MM-dd HH:mm:ss", CultureInfo.InvariantCulture);

    /// <summary>Rounded down, so that only what was never down is at 100 %.</summary>
    private static string Share(double? availability) => availability is not { } share ? "unknown"
        : string.Create(CultureInfo.InvariantCulture, $"{Math.Floor(share * 1000) / 1000:0.###} %");

    /// <summary>In its two largest units.</summary>
    private static string Lasted(TimeSpan time) => time switch
    {
        { TotalSeconds: < 0 } => "0 s",
        { TotalSeconds: < 10 } => time.TotalSeconds.ToString("0.###", CultureInfo.InvariantCulture) + " s",
        { TotalMinutes: < 1 } => $"{time.Seconds} s",
        { TotalHours: < 1 } => $"{time.Minutes} min {time.Seconds} s",
        { TotalDays: < 1 } => $"{time.Hours} h {time.Minutes} min",
        _ => $"{time.Days} d {time.Hours} h",
    };

    /// <summary>
    /// Equal intervals are drawn as one. Height repeats the colour's meaning: down is tall, unknown is low.
    /// </summary>
    private Markup Strip(IReadOnlyList<Condition> strip, string name)
    {
        var (bars, bad) = (new StringBuilder(), new List<string>());
        for (int i = 0, next; i < strip.Count; i = next)
        {
            for (next = i + 1; next < strip.Count && strip[next] == strip[i];)
                next++;
            var (kind, top) = strip[i] switch
            {
                Condition.Up => ("up", 40),
                Condition.Down => ("down", 0),
                Condition.Other => ("other", 20),
                _ => ("unknown", 80),
            };
            var title = (kind == "other" ? "neither up nor down" : kind)
                + $", {Written(Edge(i))} to {Written(Edge(next))}";
            if (kind != "up")
                bad.Add(title);
            bars.Append(Markup.Of($"""
                <rect class="{kind}" x="{i}" y="{top}" width="{next - i}" height="{100 - top}">
                <title>{title}</title></rect>
                """).Text);
        }
        var summary = bad.Count == 0 ? "up all the time" : string.Join("; ", bad.Take(MaxSpokenIntervals))
            + (bad.Count > MaxSpokenIntervals ? $"; and {bad.Count - MaxSpokenIntervals} more" : "")
            + (strip.Contains(Condition.Up) ? "; else up" : "");
        return Markup.Of($"""
            <svg role="img" tabindex="0" viewBox="0 0 {strip.Count} 100" preserveAspectRatio="none"
            aria-label="{name}, {Written(_from)} to {Written(answers.Now)} UTC: {summary}">
            {new Markup(bars.ToString())}</svg>
            """);
    }

    private DateTime Edge(int interval) => _from + (query.Length * interval / query.Intervals);
}

// ================================== 15. Web ==================================
//
// What is answered to whom, on a bare HttpListener that only the gate can reach: it binds to loopback, and
// answers those requests alone that carry this process's secret. Its traps shape this section: it answers
// 200 to whatever is left unanswered when it is stopped, so it is never stopped, closed or disposed; a
// handler sets 503 first, and the 2xx is set in one place, after the flush. Each request is queued, none
// awaited by the accept loop.

/// <summary>Answers requests; the log and the Recorder are given once they are there.</summary>
internal sealed class Web
{
    /// <summary>Fields that the gate sets: the process's secret, and the address of the client.</summary>
    public const string SecretField = "Ses-Secret", ClientField = "Ses-Client";

    /// <summary>Of the webhook: the id of the quarantined alert that is sent again.</summary>
    public const string CuresParameter = "cures";

    /// <summary>A header field for the gate: the id of the body to <see cref="TakeStreamedBody"/>.</summary>
    public const string StreamField = "Ses-Stream";

    /// <summary>
    /// The listener writes as much at once, with the head. A second write would wait for an acknowledgement,
    /// which is delayed by 40 ms, so a longer answer goes past the listener.
    /// </summary>
    private const int OneWrite = 15 * 1024;

    /// <summary>Answers too long to be held that are being read at once; each holds up to 5 MiB.</summary>
    public const int MaxUnfinished = 32;

    /// <summary>Of quarantined alerts in an answer; and bytes of a text of theirs. All are on disk.</summary>
    private const int MaxListedAlerts = 100, MaxShown = 200;

    /// <summary>Questions that are computed at once; other requests need a core, too.</summary>
    public const int MaxActiveQuestions = 2;

    /// <summary>How long a question waits for its turn.</summary>
    private static readonly TimeSpan TurnTime = TimeSpan.FromSeconds(10);

    /// <summary>A long answer that waits so long for its reader gives way to another at the cap.</summary>
    private static readonly TimeSpan StalledTime = TimeSpan.FromSeconds(1);

    private readonly Options _options;
    private readonly TimeProvider _clock;
    private readonly Log _log;
    private readonly Meters _meters;
    private readonly Auth _auth;
    private readonly DateTime _built;
    private readonly string[] _hook;
    private readonly byte[] _secret;
    // Never stopped, closed or disposed: each answers 200 to requests that nobody has answered.
    private readonly HttpListener _listener = new() { IgnoreWriteExceptions = true };
    private readonly SemaphoreSlim _turns = new(MaxActiveQuestions);
    private readonly ConcurrentDictionary<string, StreamedBody> _streamedBodies = [];
    // Guarded by itself: the long answers that are being read.
    private readonly HashSet<StreamedBody> _unfinished = [];
    private volatile EventLog? _eventLog;
    private volatile Recorder? _recorder;
    private volatile bool _draining;

    /// <param name="built">When the program's commit was made: an earlier clock is wrong.</param>
    public Web(Options options, Auth auth, DateTime built, TimeProvider clock, Log log, Meters meters)
    {
        (_options, _auth, _built, _clock, _log, _meters) = (options, auth, built, clock, log, meters);
        (_hook, _secret) = (options.Path.Split('/'), Encoding.UTF8.GetBytes(Secret));
        meters.Registry.AddBeforeCollectCallback(SetGauges);
    }

    /// <summary>Never ends, but by a defect.</summary>
    public Task Accepting { get; private set; } = Task.CompletedTask;

    /// <summary>What a request must carry to be answered.</summary>
    public string Secret { get; } = RandomNumberGenerator.GetHexString(32);

    /// <summary>
    /// Listens on a free port of 127.0.0.1; only probes and metrics get more than 503 until
    /// <see cref="Serve"/>.
    /// </summary>
    /// <exception cref="HttpListenerException">There is no free port.</exception>
    public IPEndPoint Start()
    {
        for (var attempt = 1; ; attempt++)
        {
            try
            {
                var place = FreePlace();
                _listener.Prefixes.Clear();
                _listener.Prefixes.Add($"http://{place}/");
                _listener.Start();
                Accepting = AcceptAsync();
                return place;
            }
            catch (HttpListenerException) when (attempt < 10)
            {
                // Another process took the port in between.
            }
        }
    }

    /// <summary>HttpListener cannot choose a port itself.</summary>
    private static IPEndPoint FreePlace()
    {
        using var probe = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        probe.Bind(new IPEndPoint(IPAddress.Loopback, 0));
        return (IPEndPoint)probe.LocalEndPoint!;
    }

    /// <summary>From now on webhooks are taken.</summary>
    public void Serve(EventLog eventLog, Recorder? recorder) => (_recorder, _eventLog) = (recorder, eventLog);

    /// <summary>From now on webhooks are answered 503, and /ready too.</summary>
    public void Drain() => _draining = true;

    // ---- Judging by the head alone ----

    private enum Resource { None, Live, Ready, Metrics, Webhook, History, Report, Page, Service }

    /// <summary>
    /// Judges a request before its body is read, so that a stranger cannot make SeS hold one. Null: it may
    /// come; else its answer.
    /// </summary>
    public async ValueTask<Reply?> RefusalAsync(RequestHead head, IPAddress client)
    {
        var (resource, partition) = Route(head.Target);
        var started = _clock.GetTimestamp();
        var refusal = MethodRefusal(resource, partition, head) ?? (NeedsCredentials(resource)
            ? await _auth.RefusalAsync(head.Authorization, client) : null);
        if (resource != Resource.Webhook || head.IsRead)
            return refusal;
        refusal ??= LengthRefusal(head.Length, client) ?? Unavailable();
        if (refusal != null)
            Count(refusal, started);
        return refusal;
    }

    /// <summary>All but probes, and metrics unless the settings ask for it.</summary>
    private bool NeedsCredentials(Resource resource) =>
        !(resource is Resource.None or Resource.Live or Resource.Ready
            || (resource == Resource.Metrics && !_options.MetricsAuth));

    /// <summary>Questions have places of their own, so that webhooks and probes keep theirs.</summary>
    public bool IsQuestion(RequestHead head) => head.IsRead && Route(head.Target).Resource
        is Resource.Webhook or Resource.History or Resource.Report or Resource.Page or Resource.Service;

    private Reply? MethodRefusal(Resource resource, string partition, RequestHead head) => resource switch
    {
        Resource.None => Reply.Problem(
            404, $"There is no such path; post alerts to /{_options.Path}/PARTITION."),
        Resource.Webhook or Resource.History or Resource.Report when !IsPartition(partition) => Reply.Problem(
            404,
            $"The partition is missing or not usable: post alerts to /{_options.Path}/PARTITION."),
        Resource.Webhook when head.Method == "POST" && head.IsOfPage => Reply.Problem(
            403, "A web page may not post alerts, since it may be of any site."),
        Resource.Webhook => head.Method == "POST" || head.IsRead ? null : NotAllowed("GET, HEAD, POST"),
        _ => head.IsRead ? null : NotAllowed("GET, HEAD"),
    };

    private static Reply NotAllowed(string allowed) =>
        Reply.Problem(405, $"Allowed: {allowed}.") with { Headers = [("Allow", allowed)] };

    private Reply? LengthRefusal(long? length, IPAddress client) =>
        length == null ? Bad(411, "Send the body with a Content-Length.", $"{client}")
        : length > _options.MaxBody
            ? Bad(413, $"The body is larger than --max-body, {_options.MaxBody} bytes.", $"{client}")
        : null;

    /// <summary>Why no alert can be taken now, whatever it contains.</summary>
    private Reply? Unavailable() =>
        _draining ? Reply.Problem(503, "SeS is shutting down.")
        : _eventLog == null ? Reply.Problem(503, "SeS is starting: its log is being read.")
        : _clock.GetUtcNow().UtcDateTime < _built ? Reply.Problem(
            503, "The clock of SeS's host is wrong: it is earlier than the program's making.")
        : null;

    /// <summary>What a target names; the path is cut at its slashes, then decoded.</summary>
    private (Resource Resource, string Partition) Route(string target)
    {
        var segments = target.Split('?', 2)[0].Split('/').Skip(1).Select(Uri.UnescapeDataString).ToArray();
        return segments switch
        {
            [""] => (Resource.Page, ""),
            ["service"] => (Resource.Service, ""),
            ["live"] => (Resource.Live, ""),
            ["ready"] => (Resource.Ready, ""),
            ["metrics"] when _options.Metrics => (Resource.Metrics, ""),
            _ when !segments.Take(_hook.Length).SequenceEqual(_hook) => (Resource.None, ""),
            _ when segments.Length <= _hook.Length + 1 =>
                (Resource.Webhook, segments.ElementAtOrDefault(_hook.Length) ?? ""),
            _ when segments.Length == _hook.Length + 2 && segments[^1] == "history" =>
                (Resource.History, segments[^2]),
            _ when segments.Length == _hook.Length + 2 && segments[^1] == "report" =>
                (Resource.Report, segments[^2]),
            _ => (Resource.None, ""),
        };
    }

    /// <summary>The parameters of a target's query, as a form writes them.</summary>
    private static IEnumerable<KeyValuePair<string, string>> Parameters(string target)
    {
        var query = target.Split('?', 2).ElementAtOrDefault(1) ?? "";
        foreach (var parameter in query.Split('&', StringSplitOptions.RemoveEmptyEntries))
        {
            var parts = parameter.Replace('+', ' ').Split('=', 2);
            yield return new(Uri.UnescapeDataString(parts[0]),
                Uri.UnescapeDataString(parts.ElementAtOrDefault(1) ?? ""));
        }
    }

    private static bool IsPartition(string name) =>
        name is not ("" or "." or "..") && !name.Any(char.IsControl)
        && Encoding.UTF8.GetByteCount(name) <= 1024;

    private void Count(Reply reply, long started)
    {
        _meters.WebhookDuration.Observe(_clock.GetElapsedTime(started).TotalSeconds);
        _meters.Requests.WithLabels(reply.Code.ToString(CultureInfo.InvariantCulture)).Inc();
    }

    // ---- Answering ----

    private async Task AcceptAsync()
    {
        while (true)
        {
            try
            {
                // Owned by the gate, which waits for each answer.
                _ = HandleAsync(await _listener.GetContextAsync());
            }
            catch (HttpListenerException e)
            {
                _log.Often("a request could not be accepted", ("reason", e.Message));
                await Task.Delay(TimeSpan.FromMilliseconds(10), _clock);
            }
        }
    }

    private async Task HandleAsync(HttpListenerContext context)
    {
        await Task.Yield();
        Reply reply;
        try
        {
            context.Response.StatusCode = 503;
            reply = await AnswerAsync(context.Request);
        }
        catch (Exception e)
        {
            _meters.Defects.Inc();
            _log.Error("a defect in SeS: a request could not be answered", ("exception", e));
            reply = Reply.Problem(503, "SeS could not process this; its log says why.");
        }
        Send(context.Response,
            reply.Body.Length > OneWrite ? StreamedReply(reply, StreamedBodyOf(reply.Body)) : reply);
    }

    private void Send(HttpListenerResponse response, Reply reply)
    {
        try
        {
            response.StatusCode = reply.Code;
            response.KeepAlive = reply.Code != 403;
            if (reply.ContentType != "")
                response.ContentType = reply.ContentType;
            foreach (var (name, value) in reply.Headers)
                response.Headers[name] = value;
            response.ContentLength64 = reply.Body.Length;
            response.OutputStream.Write(reply.Body);
            response.Close();
        }
        catch (Exception e) when (e is HttpListenerException or ObjectDisposedException or IOException
            or InvalidOperationException)
        {
            _log.Debug("an answer could not be sent", ("code", reply.Code), ("reason", e.Message));
            if (reply.Headers.FirstOrDefault(h => h.Name == StreamField).Value is { } id)
                TakeStreamedBody(id)?.Dispose();
        }
    }

    private async Task<Reply> AnswerAsync(HttpListenerRequest request)
    {
        if (!IsFromGate(request))
            return new Reply(403, "", []);
        var (resource, partition) = Route(request.RawUrl ?? "");
        switch (resource)
        {
            case Resource.Live:
                return Reply.Json(200, json => json.WriteBoolean("live", true));
            case Resource.Ready:
                return ReadyReply();
            case Resource.Metrics:
                return new Reply(
                    200, "text/plain; version=0.0.4; charset=utf-8", await _meters.ExportAsync());
            case Resource.Webhook when request.HttpMethod == "GET":
                return await AskAsync(Subject.Status, request, partition);
            case Resource.History:
                return await AskAsync(Subject.History, request, partition);
            case Resource.Report:
                return await AskAsync(Subject.Report, request, partition);
            case Resource.Page or Resource.Service:
                return await AskAsync(null, request, partition);
            default:
                var started = _clock.GetTimestamp();
                var reply = Unavailable() ?? await TakeAsync(_eventLog!, request, partition);
                Count(reply, started);
                return reply;
        }
    }

    private bool IsFromGate(HttpListenerRequest request) => CryptographicOperations.FixedTimeEquals(
        Encoding.UTF8.GetBytes(request.Headers[SecretField] ?? ""), _secret);

    private async Task<Reply> TakeAsync(EventLog eventLog, HttpListenerRequest request, string partition)
    {
        var length = (int)request.ContentLength64;
        var body = ArrayPool<byte>.Shared.Rent(length);
        Payload payload;
        try
        {
            await request.InputStream.ReadExactlyAsync(body, 0, length);
            payload = AlertMapping.Read(
                body.AsSpan(0, length), partition, _options.Map, _clock.GetUtcNow().UtcDateTime);
        }
        catch (PayloadException e)
        {
            return Bad(400, e.Message, request.Headers[ClientField]);
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(body);
        }
        var cures = Parameters(request.RawUrl ?? "").FirstOrDefault(p => p.Key == CuresParameter).Value;
        return await KeepAsync(eventLog, payload, partition, EventLog.IdOf(cures));
    }

    /// <summary>The one place from which a webhook is answered 2xx: after the flush.</summary>
    private async Task<Reply> KeepAsync(
        EventLog eventLog, Payload payload, string partition, UInt128? cures)
    {
        if (payload.Truncated > 0)
        {
            _meters.Truncated.Inc(payload.Truncated);
            _log.Often("Alertmanager cut alerts off before sending: raise max_alerts of its receiver",
                ("partition", partition), ("alerts", payload.Truncated));
        }
        try
        {
            await eventLog.AppendAsync(payload, partition, cures);
        }
        catch (LogRefusedException e)
        {
            return Reply.Problem(503, e.Message);
        }
        if (payload.UnmappableAlerts.Count == 0)
            return new Reply(204, "", []);
        return Reply.Json(200, json =>
        {
            json.WriteNumber("accepted", payload.MappedAlerts.Count);
            json.WriteStartArray("quarantined");
            foreach (var alert in payload.UnmappableAlerts.Take(MaxListedAlerts))
            {
                json.WriteStartObject();
                json.WriteString("fingerprint", AlertMapping.Clip(alert.Fingerprint, MaxShown));
                json.WriteString("alertname", AlertMapping.Clip(alert.Alertname, MaxShown));
                json.WriteString("reason", alert.Reason);
                json.WriteEndObject();
            }
            json.WriteEndArray();
            if (payload.UnmappableAlerts.Count > MaxListedAlerts)
                json.WriteNumber("more", payload.UnmappableAlerts.Count - MaxListedAlerts);
        });
    }

    private Reply Bad(int code, string detail, string? client)
    {
        _meters.BadRequests.Inc();
        _log.Often("a payload could not be processed",
            ("code", code), ("reason", detail), ("client", client));
        return Reply.Problem(code, detail);
    }

    // ---- Questions ----

    /// <param name="subject">Null: a page is asked for.</param>
    private async Task<Reply> AskAsync(Subject? subject, HttpListenerRequest request, string partition)
    {
        var started = _clock.GetTimestamp();
        Reply reply;
        try
        {
            reply = Starting() ?? (subject is { } asked
                ? await AnswerAsync(asked, request, partition) : await ShowAsync(request.RawUrl ?? ""));
        }
        catch (QuestionException e)
        {
            reply = Reply.Problem(400, e.Message + ".");
        }
        var name = subject?.ToString().ToLowerInvariant() ?? "page";
        _meters.QuestionDuration.WithLabels(name).Observe(_clock.GetElapsedTime(started).TotalSeconds);
        _meters.Questions.WithLabels(name, reply.Code.ToString(CultureInfo.InvariantCulture)).Inc();
        return reply;
    }

    private Reply? Starting() =>
        _eventLog == null ? Reply.Problem(503, "SeS is starting: its log is being read.") : null;

    private async Task<Reply> AnswerAsync(Subject subject, HttpListenerRequest request, string partition)
    {
        var question = Question.Parse(
            subject, partition, Parameters(request.RawUrl ?? ""), _clock.GetUtcNow().UtcDateTime);
        var format = question.Format
            ?? (IsForCsv(request.Headers["Accept"]) ? OutputFormat.Csv : OutputFormat.Json);
        var type = format == OutputFormat.Csv ? "text/csv; charset=utf-8" : "application/json";
        return await StreamAsync(OpenAnswers().Write(question, format), type, [("Vary", "Accept")]);
    }

    private async Task<Reply> ShowAsync(string target)
    {
        var isOne = Route(target).Resource == Resource.Service;
        var (query, given) = PageQuery.Parse(Parameters(target), isOne
            ? ["partition", "platform", "service", "facet", "location"] : ["search"]);
        var answers = OpenAnswers();
        var (count, latest) = _eventLog!.Quarantine();
        var daemon = new DaemonState(_recorder?.Snapshot(), count, latest, _options.Path);
        var page = new StatusPage(answers, daemon, query);
        var service = new ServiceKey(given.GetValueOrDefault("partition", ""),
            given.GetValueOrDefault("platform", ""), given.GetValueOrDefault("service", ""),
            given.GetValueOrDefault("facet", ""), given.GetValueOrDefault("location", ""));
        if (isOne && !answers.Known.Any(k => k.Service == service))
            return Reply.Problem(404, "SeS knows of no such service.");
        return await StreamAsync(isOne ? page.One(service) : page.All(), "text/html; charset=utf-8",
            [("Content-Security-Policy", StatusPage.Policy), ("Referrer-Policy", "no-referrer")]);
    }

    /// <summary>Whether CSV is named, and JSON not before it (RFC 9110, 12.5.1, without weights).</summary>
    private static bool IsForCsv(string? accept)
    {
        var csv = accept?.IndexOf("text/csv", StringComparison.OrdinalIgnoreCase) ?? -1;
        var json = accept?.IndexOf("application/json", StringComparison.OrdinalIgnoreCase) ?? -1;
        return csv >= 0 && (json < 0 || csv < json);
    }

    private Answers OpenAnswers() =>
        new(_eventLog!.Archive(), _eventLog.Known(), _clock.GetUtcNow().UtcDateTime);

    /// <summary>An answer that is made a part at a time: whole when it is short.</summary>
    private async Task<Reply> StreamAsync(
        IEnumerable<ReadOnlyMemory<byte>> answer, string type, (string, string)[] headers)
    {
        var parts = answer.GetEnumerator();
        try
        {
            var first = (await NextAsync(parts))!.Value.ToArray();
            var second = await NextAsync(parts);
            var reply = new Reply(200, type, first) { Headers = [.. headers, .. Guards] };
            if (second == null)
                return reply;
            var streamed = StreamedBodyOf(parts, first, second);
            if (!TakePlace(streamed))
                return Reply.Problem(503, "Too many long answers are being read; ask again.");
            parts = null;
            return StreamedReply(reply, streamed);
        }
        catch (TimeoutException)
        {
            return Reply.Problem(503, "Too much is being asked at once; ask again.");
        }
        catch (IOException e)
        {
            _log.Error("the log could not be read", ("reason", e.Message));
            return Reply.Problem(503, "The log could not be read; the log of SeS says why.");
        }
        finally
        {
            parts?.Dispose();
        }
    }

    /// <summary>At the cap, the body that waits longest for its reader gives way. False: none does.</summary>
    private bool TakePlace(StreamedBody body)
    {
        StreamedBody? longest = null;
        lock (_unfinished)
        {
            if (_unfinished.Count >= MaxUnfinished)
            {
                longest = _unfinished.Where(b => b.PartMade != StreamedBody.Busy).MinBy(b => b.PartMade);
                if (longest == null || _clock.GetElapsedTime(longest.PartMade) < StalledTime)
                    return false;
                _unfinished.Remove(longest);
            }
            _unfinished.Add(body);
        }
        longest?.Abort();
        return true;
    }

    /// <summary>What keeps a browser from making more of an answer than it is.</summary>
    private static readonly (string, string)[] Guards =
        [("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")];

    /// <summary>The head of an answer whose body the gate fetches by its id, past the listener.</summary>
    private Reply StreamedReply(Reply reply, StreamedBody body)
    {
        var id = RandomNumberGenerator.GetHexString(32);
        _streamedBodies[id] = body;
        return reply with { Body = [], Headers = [.. reply.Headers, (StreamField, id)] };
    }

    /// <summary>A body that is there as a whole.</summary>
    private StreamedBody StreamedBodyOf(ReadOnlyMemory<byte> body)
    {
        return new StreamedBody(() =>
        {
            var part = body[..Math.Min(body.Length, BodyWriter.Size)];
            body = body[part.Length..];
            return Task.FromResult(part.IsEmpty ? (ReadOnlyMemory<byte>?)null : part);
        }, _ => { }, _clock);
    }

    private StreamedBody StreamedBodyOf(
        IEnumerator<ReadOnlyMemory<byte>> parts, ReadOnlyMemory<byte> first, ReadOnlyMemory<byte>? second)
    {
        var made = new Queue<ReadOnlyMemory<byte>?>([first, second]);
        async Task<ReadOnlyMemory<byte>?> NextPartAsync()
        {
            try
            {
                return made.TryDequeue(out var part) ? part : await NextAsync(parts);
            }
            catch (Exception e) when (e is TimeoutException or IOException)
            {
                // The client sees that the last chunk is missing.
                _log.Error("a long answer could not be ended", ("reason", e.Message));
                throw new IOException(e.Message, e);
            }
        }

        void End(StreamedBody body)
        {
            lock (_unfinished)
                _unfinished.Remove(body);
            parts.Dispose();
        }

        return new StreamedBody(NextPartAsync, End, _clock);
    }

    /// <summary>
    /// Makes the next part when it is its turn, on a thread of its own: webhooks shall not wait.
    /// </summary>
    /// <exception cref="TimeoutException">Its turn did not come.</exception>
    private async Task<ReadOnlyMemory<byte>?> NextAsync(IEnumerator<ReadOnlyMemory<byte>> parts)
    {
        if (!await _turns.WaitAsync(TurnTime))
            throw new TimeoutException("too much is being asked at once");
        try
        {
            return await Task.Factory.StartNew(
                () => parts.MoveNext() ? parts.Current : (ReadOnlyMemory<byte>?)null,
                CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default);
        }
        finally
        {
            _turns.Release();
        }
    }

    /// <summary>The body with this id, which whoever takes it disposes of; null when there is none.</summary>
    public StreamedBody? TakeStreamedBody(string id) =>
        _streamedBodies.TryRemove(id, out var body) ? body : null;

    // ---- Probes and gauges ----

    /// <summary>Why alerts cannot be made durable now; null when they can.</summary>
    private string? Unready() =>
        _draining ? "shutting down" : _eventLog is not { } eventLog ? "starting: the log is being read"
        : _clock.GetUtcNow().UtcDateTime < _built ? "the clock is earlier than the program's making"
        : eventLog.Refusal;

    private Reply ReadyReply()
    {
        var reason = Unready();
        return Reply.Json(reason == null ? 200 : 503, json =>
        {
            json.WriteBoolean("ready", reason == null);
            if (reason != null)
                json.WriteString("reason", reason);
            json.WriteStartObject("onix");
            WriteOnix(json);
            json.WriteEndObject();
        });
    }

    private void WriteOnix(Utf8JsonWriter json)
    {
        if (_options.OnixUrl == null)
        {
            json.WriteString("state", "none");
            return;
        }
        json.WriteString("url", _options.OnixUrl.AbsoluteUri);
        if (_recorder?.Snapshot() is not { } state)
        {
            json.WriteString("state", "starting");
            return;
        }
        json.WriteString("state", state.Trouble != null ? "away" : state.Confirmed == null ? "starting"
            : state.Backlog > 0 ? "behind" : "recorded");
        if (state.Trouble != null)
            json.WriteString("reason", state.Trouble);
        json.WriteNumber("backlog_events", state.Backlog);
        json.WriteNumber("backlog_oldest_seconds", Age(state.Oldest));
        if (state.Confirmed is { } confirmed)
            json.WriteString("confirmed", Rfc3339.Format(confirmed));
        json.WriteNumber("barred_services", state.Barred.Count);
        if (state.Barred.Count > 0)
            json.WriteString("barred_reason", state.Barred[0].Value.Reason);
    }

    /// <summary>False: the disk hangs, and a supervisor may try what a restart does.</summary>
    public bool IsAlive => _eventLog?.IsStuck != true;

    /// <summary>One line for <c>systemctl status</c>.</summary>
    public string StatusLine()
    {
        var onix = _recorder?.Snapshot() is not { } state
            ? (_options.OnixUrl == null ? "no Onix" : "Onix starting")
            : state.Trouble != null ? $"Onix away, {state.Backlog} events waiting: {state.Trouble}"
            : $"Onix has all but {state.Backlog} events, {state.Barred.Count} services barred";
        return Unready() is { } reason ? $"Not ready: {reason}; {onix}" : $"Taking alerts; {onix}";
    }

    private double Age(DateTime? since) =>
        since is { } time
            ? Math.Max(0, Math.Round((_clock.GetUtcNow().UtcDateTime - time).TotalSeconds, 3)) : 0;

    private void SetGauges()
    {
        _meters.Ready.Set(Unready() == null ? 1 : 0);
        if (_recorder?.Snapshot() is not { } state)
            return;
        _meters.Backlog.Set(state.Backlog);
        _meters.BacklogAge.Set(Age(state.Oldest));
        _meters.Barred.Set(state.Barred.Count);
        _meters.ConfirmationAge.Set(Age(state.Confirmed));
    }
}

// ================================== 16. TLS ==================================
//
// The server's side of TLS 1.2 and 1.3: certificate and key in PEM, and the CAs of clients' certificates.
// The files are read again every few seconds. Changed files that are usable serve new connections; others
// are logged once, and the old certificate stays in use. Open connections keep the one they began with.

/// <summary>Is thrown when certificate, key or CA cannot be used; names the setting and why.</summary>
internal sealed class CertificateException(string message) : Exception(message);

internal sealed class Tls : IDisposable
{
    public static readonly TimeSpan RereadPeriod = TimeSpan.FromSeconds(10);

    /// <summary>A certificate that ends sooner is warned of.</summary>
    public static readonly TimeSpan EndsSoon = TimeSpan.FromDays(14);

    /// <summary>P-256, P-384 and P-521: those that TLS 1.3 signs with (RFC 8446, 4.2.3).</summary>
    private static readonly string[] Curves = ["1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35"];

    private const string
        ServerAuthentication = "1.3.6.1.5.5.7.3.1", ClientAuthentication = "1.3.6.1.5.5.7.3.2";

    private readonly string _certificatePath, _keyPath;
    private readonly string? _clientCaPath;
    private readonly TimeProvider _clock;
    private readonly Log _log;
    private readonly Meters _meters;
    private readonly System.Threading.ITimer _timer;
    private CertificateFiles _seen;
    // The last failure, so that one that lasts is logged once and not at each check.
    private string? _unreadable;
    private DateTime _ends;
    private bool _expiryIsLogged;
    private volatile SslServerAuthenticationOptions _current;

    /// <summary>What the files held, to see whether they have changed.</summary>
    private sealed record CertificateFiles(string Certificate, string Key, string? ClientCa);

    /// <exception cref="CertificateException">The files cannot be used.</exception>
    public Tls(string certificate, string key, string? clientCa, TimeProvider clock, Log log, Meters meters)
    {
        (_certificatePath, _keyPath, _clientCaPath) = (certificate, key, clientCa);
        (_clock, _log, _meters) = (clock, log, meters);
        _seen = ReadFiles();
        _current = Load(_seen);
        _timer = clock.CreateTimer(_ => Reread(), null, RereadPeriod, RereadPeriod);
    }

    /// <summary>How each error about the certificate begins.</summary>
    private string Certificate => $"{Options.TlsCertSetting}: the certificate in '{_certificatePath}'";

    /// <summary>What a new connection is to be served with.</summary>
    public SslServerAuthenticationOptions Current => _current;

    public void Dispose() => _timer.Dispose();

    private void Reread()
    {
        WarnOfExpiry();
        try
        {
            var files = ReadFiles();
            _unreadable = null;
            if (files == _seen)
                return;
            _seen = files;
            _current = Load(files);
            _meters.TlsReloads.WithLabels("loaded").Inc();
            _log.Info("certificate read again", ("file", _certificatePath));
        }
        catch (CertificateException e) when (e.Message == _unreadable)
        {
            // It was logged and counted.
        }
        catch (CertificateException e)
        {
            _unreadable = e.Message;
            _meters.TlsReloads.WithLabels("refused").Inc();
            _log.Warn("the changed certificate is not used, the one before it still is",
                ("reason", e.Message));
        }
    }

    /// <summary>Logs once for each certificate, at the start or when its expiry comes near.</summary>
    private void WarnOfExpiry()
    {
        if (_expiryIsLogged || _clock.GetUtcNow().UtcDateTime <= _ends - EndsSoon)
            return;
        _expiryIsLogged = true;
        _log.Warn("the certificate expires soon",
            ("file", _certificatePath), ("at", Rfc3339.Format(_ends)));
    }

    private CertificateFiles ReadFiles() => new(
        ReadFile(Options.TlsCertSetting, _certificatePath), ReadFile(Options.TlsKeySetting, _keyPath),
        _clientCaPath == null ? null : ReadFile(Options.TlsClientCaSetting, _clientCaPath));

    private static string ReadFile(Setting setting, string path)
    {
        try
        {
            return File.ReadAllText(path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw new CertificateException($"{setting}: '{path}' cannot be read: {e.Message}");
        }
    }

    private SslServerAuthenticationOptions Load(CertificateFiles files)
    {
        var chain = Certificates(Options.TlsCertSetting, _certificatePath, files.Certificate);
        var options = new SslServerAuthenticationOptions
        {
            ServerCertificateContext = Context(chain, files),
            EnabledSslProtocols = SslProtocols.Tls12 | SslProtocols.Tls13,
            ApplicationProtocols = [SslApplicationProtocol.Http11],
            AllowRenegotiation = false,
        };
        if (files.ClientCa != null)
            RequireClients(
                options, Certificates(Options.TlsClientCaSetting, _clientCaPath!, files.ClientCa));
        (_ends, _expiryIsLogged) = (chain[0].NotAfter.ToUniversalTime(), false);
        _meters.TlsExpiry.Set((_ends - DateTime.UnixEpoch).TotalSeconds);
        WarnOfExpiry();
        return options;
    }

    private SslStreamCertificateContext Context(X509Certificate2Collection chain, CertificateFiles files)
    {
        try
        {
            Check(chain[0]);
            return SslStreamCertificateContext.Create(WithKey(files), [.. chain.Skip(1)], offline: true);
        }
        catch (Exception e) when (e is CryptographicException or NotSupportedException or ArgumentException)
        {
            throw new CertificateException(
                $"{Certificate} cannot be used: {e.Message}");
        }
    }

    private static X509Certificate2Collection Certificates(Setting setting, string path, string text)
    {
        var found = new X509Certificate2Collection();
        try
        {
            found.ImportFromPem(text);
        }
        catch (CryptographicException e)
        {
            throw new CertificateException($"{setting}: '{path}' holds a broken certificate: {e.Message}");
        }
        return found.Count > 0 ? found
            : throw new CertificateException($"{setting}: '{path}' holds no certificate in PEM");
    }

    private X509Certificate2 WithKey(CertificateFiles files)
    {
        if (files.Key.Contains("ENCRYPTED", StringComparison.Ordinal))
            throw new CertificateException(
                $"{Options.TlsKeySetting}: '{_keyPath}' is encrypted; SeS needs it without a passphrase");
        try
        {
            return X509Certificate2.CreateFromPem(files.Certificate, files.Key);
        }
        catch (Exception e) when (e is CryptographicException or ArgumentException)
        {
            throw new CertificateException(files.Key.Contains("PRIVATE KEY-----", StringComparison.Ordinal)
                ? $"{Options.TlsKeySetting}: '{_keyPath}' is not the key of the certificate "
                    + $"in '{_certificatePath}'"
                : $"{Options.TlsKeySetting}: '{_keyPath}' holds no private key in PEM");
        }
    }

    private void Check(X509Certificate2 certificate)
    {
        var now = _clock.GetUtcNow().UtcDateTime;
        var begins = certificate.NotBefore.ToUniversalTime();
        var ends = certificate.NotAfter.ToUniversalTime();
        if (now > ends)
            throw new CertificateException($"{Certificate} expired on {Rfc3339.Format(ends)}");
        if (now < begins)
            throw new CertificateException($"{Certificate} is not valid before {Rfc3339.Format(begins)}");
        if (certificate.Extensions.OfType<X509EnhancedKeyUsageExtension>().FirstOrDefault() is { } usage
            && !usage.EnhancedKeyUsages.Cast<Oid>().Any(o => o.Value == ServerAuthentication))
            throw new CertificateException($"{Certificate} is not for servers");
        using var rsa = certificate.GetRSAPublicKey();
        using var curve = certificate.GetECDsaPublicKey();
        var isTaken = rsa?.KeySize >= 2048 || Curves.Contains(curve?.ExportParameters(false).Curve.Oid?.Value);
        if (!isTaken)
            throw new CertificateException(
                $"{Certificate} has a key that clients refuse; "
                + "use RSA of 2048 bits or more, P-256, P-384 or P-521");
        if (!certificate.Extensions.OfType<X509SubjectAlternativeNameExtension>().Any())
            _log.Warn("the certificate names no host (no subjectAltName): most clients refuse it",
                ("file", _certificatePath));
    }

    private static void RequireClients(
        SslServerAuthenticationOptions options, X509Certificate2Collection authorities)
    {
        var policy = new X509ChainPolicy
        {
            TrustMode = X509ChainTrustMode.CustomRootTrust,
            RevocationMode = X509RevocationMode.NoCheck,
            DisableCertificateDownloads = true,
        };
        policy.CustomTrustStore.AddRange(authorities);
        policy.ApplicationPolicy.Add(new Oid(ClientAuthentication));
        options.ClientCertificateRequired = true;
        options.CertificateChainPolicy = policy;
    }
}

// ================================= 17. Gate ==================================
//
// The public port, and all that strangers ever touch. The gate reads whole requests strictly, within limits
// of size and time, has Web judge each by its head, and only then hands it to the HttpListener, over a few
// kept connections on loopback. A client that is slow, silent or hostile costs its own connection and
// little memory, never a handler. Connections are capped: at the cap, the one that has waited longest
// for a whole request, or for its turn, gives way to the new one.

/// <summary>What a connection is doing; all but Handled have a deadline.</summary>
internal enum ConnectionState { Handshake, Idle, Head, Body, Handled, Answer, Linger }

/// <summary>A client's connection. One task serves it; the gate's timer and cap can end it.</summary>
internal sealed class ClientConnection(Socket socket, IPAddress client) : IDisposable
{
    /// <summary>Holds most heads, and most alerts with them.</summary>
    private const int FirstSize = 4 * 1024;

    private byte[] _buffer = [];
    private int _start, _end;

    public IPAddress Client => client;

    public Socket Socket => socket;

    /// <summary>The plain connection, until TLS is put over it.</summary>
    public Stream Stream { get; set; } = new NetworkStream(socket, ownsSocket: true);

    public ConnectionState State { get; set; }

    /// <summary>A timestamp of the clock.</summary>
    public long Deadline { get; set; }

    /// <summary>Its deadline has passed: what it waits for ends as if the client had closed.</summary>
    public volatile bool IsOverdue;

    /// <summary>Its place among those that wait, and may be ended for a new one.</summary>
    public LinkedListNode<ClientConnection>? Waiting { get; set; }

    /// <summary>What was received beyond the last head, and not taken.</summary>
    public ReadOnlySpan<byte> Received => _buffer.AsSpan(_start, _end - _start);

    public void Take(int length) => _start += length;

    /// <summary>Waits for bytes; holds no memory meanwhile, unless some were received before.</summary>
    public async ValueTask WaitAsync()
    {
        if (_start < _end)
            return;
        Release();
        _ = await Stream.ReadAsync(Memory<byte>.Empty);
    }

    /// <summary>Receives more of a head. False: the client closed.</summary>
    public async ValueTask<bool> ReceiveAsync()
    {
        if (_start > 0 || _end == _buffer.Length)
            MakeRoom();
        var count = await Stream.ReadAsync(_buffer.AsMemory(_end));
        _end += count;
        return count > 0;
    }

    private void MakeRoom()
    {
        var size = _end - _start < FirstSize ? FirstSize : RequestHead.MaxSize;
        var roomier = _buffer.Length >= size ? _buffer : ArrayPool<byte>.Shared.Rent(size);
        var length = _end - _start;
        Received.CopyTo(roomier);
        if (roomier != _buffer)
            Release();
        (_buffer, _start, _end) = (roomier, 0, length);
    }

    /// <summary>Ends what it waits for, so that the task that serves it can still answer.</summary>
    /// <param name="again">When it is closed, if that ended nothing.</param>
    public void Expire(long again)
    {
        if (IsOverdue || State is ConnectionState.Answer or ConnectionState.Linger)
        {
            Abort();
            return;
        }
        (IsOverdue, Deadline) = (true, again);
        Shutdown(SocketShutdown.Receive);
    }

    public void Shutdown(SocketShutdown how)
    {
        try
        {
            socket.Shutdown(how);
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException)
        {
            // It is closed already.
        }
    }

    /// <summary>Closes it under whoever serves it.</summary>
    public void Abort() => socket.Dispose();

    public void Dispose()
    {
        Release();
        Stream.Dispose();
    }

    private void Release()
    {
        if (_buffer.Length > 0)
            ArrayPool<byte>.Shared.Return(_buffer);
        (_buffer, _start, _end) = ([], 0, 0);
    }
}

/// <summary>A connection to the HttpListener; it carries one request at a time.</summary>
internal sealed class Upstream(Socket socket) : IDisposable
{
    private readonly byte[] _buffer = new byte[8 * 1024];
    private int _end;

    public long LastUsed { get; set; }

    public static async Task<Upstream> ConnectAsync(IPEndPoint place)
    {
        var socket = new Socket(place.AddressFamily, SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        try
        {
            await socket.ConnectAsync(place);
            return new Upstream(socket);
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    public void Dispose() => socket.Dispose();

    public async ValueTask SendAsync(ReadOnlyMemory<byte> request)
    {
        while (request.Length > 0)
            request = request[await socket.SendAsync(request, SocketFlags.None)..];
    }

    /// <summary>The head of the answer, and how many of the bytes after it are there already.</summary>
    public async ValueTask<(ReadOnlyMemory<byte> Head, ReadOnlyMemory<byte> Part)> ReceiveHeadAsync()
    {
        _end = 0;
        while (true)
        {
            var count = await socket.ReceiveAsync(_buffer.AsMemory(_end), SocketFlags.None);
            if (count == 0)
                throw new IOException("the HTTP listener closed without an answer");
            _end += count;
            var length = _buffer.AsSpan(0, _end).IndexOf("\r\n\r\n"u8);
            if (length >= 0)
                return (_buffer.AsMemory(0, length), _buffer.AsMemory(length + 4, _end - length - 4));
        }
    }

    /// <summary>The next part of the answer's body.</summary>
    public async ValueTask<ReadOnlyMemory<byte>> ReceiveAsync()
    {
        var count = await socket.ReceiveAsync(_buffer, SocketFlags.None);
        return count > 0 ? _buffer.AsMemory(0, count)
            : throw new IOException("the HTTP listener cut an answer off");
    }
}

/// <summary>The acceptor of the public port.</summary>
internal sealed class Gate
{
    /// <summary>Half the process's descriptors, if those are fewer.</summary>
    public const int MaxConnections = 4096;

    /// <summary>Alertmanager sends one request for each group and waits for its answer.</summary>
    public const int MaxInFlight = 1024;

    /// <summary>Of questions: most of them wait, since two are computed at once.</summary>
    public const int MaxQuestions = 128;

    /// <summary>Of bodies held at once, beyond the first part of each, whatever --max-body is.</summary>
    public const long MaxBytesInFlight = 256L * 1024 * 1024;

    /// <summary>As much of a body is taken room for before any of it is there.</summary>
    private const int FirstPart = 8 * 1024;

    /// <summary>Of a connection in the kernel, where answers wait for a client that does not read.</summary>
    private const int SendBuffer = 128 * 1024;

    /// <summary>Holds most answers with their heads; a larger one takes more.</summary>
    private const int SmallAnswer = 1024;

    /// <summary>The longest wait for whatever a client has to do next.</summary>
    private static readonly TimeSpan
        HandshakeTime = TimeSpan.FromSeconds(5), HeadTime = TimeSpan.FromSeconds(10),
        BodyTime = TimeSpan.FromSeconds(30), AnswerTime = TimeSpan.FromSeconds(30),
        // Longer than Prometheus's usual scrape interval of a minute, so that its connection stands.
        IdleTime = TimeSpan.FromSeconds(75),
        QueueTime = TimeSpan.FromSeconds(5),
        // A close with bytes unread would take the answer away from a client that still sends.
        LingerTime = TimeSpan.FromSeconds(2), LingerPause = TimeSpan.FromMilliseconds(10);

    /// <summary>Less than the 15 s after which the HttpListener closes by itself.</summary>
    private static readonly TimeSpan UpstreamIdleTime = TimeSpan.FromSeconds(5);

    /// <summary>A handled request has the time that it takes: the client is not waited for.</summary>
    private static readonly TimeSpan Timeless = TimeSpan.FromDays(365);

    private static readonly TimeSpan SweepPeriod = TimeSpan.FromMilliseconds(250);

    private static readonly byte[] StreamFieldStart = Encoding.ASCII.GetBytes(Web.StreamField + ": ");

    /// <summary>Receives what clients send beyond the end, which is discarded.</summary>
    private static readonly byte[] Waste = new byte[64 * 1024];

    private readonly Options _options;
    private readonly Web _web;
    private readonly Tls? _tls;
    private readonly TimeProvider _clock;
    private readonly Log _log;
    private readonly Meters _meters;
    private readonly int _maxConnections;
    private readonly SemaphoreSlim _slots, _questionSlots;
    private readonly ConcurrentStack<Upstream> _upstreams = [];
    private readonly TaskCompletionSource _drained = new(TaskCreationOptions.RunContinuationsAsynchronously);

    private readonly Lock _gate = new();
    // Guarded by _gate.
    private readonly HashSet<ClientConnection> _connections = [];
    // Guarded by _gate: all but those being answered, the one that waits longest first.
    private readonly LinkedList<ClientConnection> _waiting = [];

    private Socket _listener = null!;
    private IPEndPoint _inner = null!;
    private System.Threading.ITimer? _sweeper;
    private volatile bool _draining;
    private int _unanswered;
    private long _work;
    private long _bytesInFlight;

    /// <param name="tls">Null: plain HTTP.</param>
    /// <param name="descriptors">How many the process may have open.</param>
    public Gate(
        Options options, Web web, Tls? tls, long descriptors, TimeProvider clock, Log log, Meters meters)
    {
        (_options, _web, _tls, _clock, _log, _meters) = (options, web, tls, clock, log, meters);
        _maxConnections = (int)Math.Min(MaxConnections, descriptors / 2);
        // A request in flight takes two descriptors more: both ends of the connection on loopback.
        _slots = new SemaphoreSlim((int)Math.Min(MaxInFlight, descriptors / 8));
        _questionSlots = new SemaphoreSlim((int)Math.Clamp(descriptors / 64, 1, MaxQuestions));
    }

    /// <summary>Listens, and returns where: with port 0 the system has chosen one.</summary>
    /// <param name="inherited">A socket that listens already, instead of address and port; else null.</param>
    /// <exception cref="SocketException">The port is in use, or the address is not this host's.</exception>
    public IPEndPoint Start(Socket? inherited = null)
    {
        _listener = inherited ?? Listen(_options.Address, _options.Port);
        _inner = _web.Start();
        _sweeper = _clock.CreateTimer(_ => Sweep(), null, SweepPeriod, SweepPeriod);
        Accepting = Task.WhenAny(AcceptAsync(), _web.Accepting).Unwrap();
        return (IPEndPoint)_listener.LocalEndPoint!;
    }

    /// <summary>Ends when connections are taken no more: when it drains, or by a defect.</summary>
    public Task Accepting { get; private set; } = Task.CompletedTask;

    /// <summary>How many connections and requests there were so far.</summary>
    public long Work => Volatile.Read(ref _work);

    /// <summary>Takes no more connections, answers 503 to what comes, waits for what is in flight.</summary>
    public async Task DrainAsync(TimeSpan atMost)
    {
        _draining = true;
        _web.Drain();
        _listener.Dispose();
        if (Volatile.Read(ref _unanswered) > 0)
            await Task.WhenAny(_drained.Task, Task.Delay(atMost, _clock));
    }

    /// <param name="address">Null or ::, all of both families, where the host has both.</param>
    private static Socket Listen(IPAddress? address, int port)
    {
        var all = address == null || address.Equals(IPAddress.IPv6Any);
        if (all)
            address = Socket.OSSupportsIPv6 ? IPAddress.IPv6Any : IPAddress.Any;
        var socket = new Socket(address!.AddressFamily, SocketType.Stream, ProtocolType.Tcp);
        try
        {
            if (address.AddressFamily == AddressFamily.InterNetworkV6)
                socket.DualMode = all;
            socket.Bind(new IPEndPoint(address, port));
            socket.Listen(MaxConnections);
            return socket;
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    // ---- Connections ----

    private async Task AcceptAsync()
    {
        while (!_draining)
        {
            try
            {
                Admit(await _listener.AcceptAsync());
            }
            catch (Exception e) when (_draining && e is SocketException or ObjectDisposedException)
            {
                return;
            }
            catch (SocketException e)
            {
                // Descriptors have run out, or the client has gone already.
                _log.Often("a connection could not be accepted", ("reason", e.Message));
                Refused("accept");
                lock (_gate)
                    GiveWay();
                await Task.Delay(TimeSpan.FromMilliseconds(10), _clock);
            }
        }
    }

    private void Admit(Socket socket)
    {
        if ((socket.RemoteEndPoint as IPEndPoint)?.Address is not { } client)
        {
            socket.Dispose();
            return;
        }
        socket.NoDelay = true;
        socket.SendBufferSize = SendBuffer;
        var connection = new ClientConnection(
            socket, client.IsIPv4MappedToIPv6 ? client.MapToIPv4() : client);
        Enter(connection, ConnectionState.Idle, HeadTime);
        lock (_gate)
        {
            if (_connections.Count >= _maxConnections && !GiveWay())
            {
                // All are being answered: the new one has to come again.
                Refused("connections");
                connection.Dispose();
                return;
            }
            _connections.Add(connection);
            connection.Waiting = _waiting.AddLast(connection);
            _meters.Connections.Set(_connections.Count);
        }
        _meters.ConnectionsTotal.Inc();
        Interlocked.Increment(ref _work);
        // Owned by _connections, until it leaves.
        _ = ServeAsync(connection);
    }

    /// <summary>Ends the connection that has waited longest. False: none waits.</summary>
    private bool GiveWay()
    {
        if (_waiting.First is not { Value: var longest })
            return false;
        Forget(longest);
        Refused("connections");
        longest.Abort();
        return true;
    }

    private void Forget(ClientConnection connection)
    {
        _connections.Remove(connection);
        if (connection.Waiting is { List: not null } waiting)
            _waiting.Remove(waiting);
        _meters.Connections.Set(_connections.Count);
    }

    /// <summary>From now on the connection does this, and has so long for it.</summary>
    private void Enter(ClientConnection connection, ConnectionState state, TimeSpan time)
    {
        connection.Deadline = _clock.GetTimestamp() + (long)(time.TotalSeconds * _clock.TimestampFrequency);
        connection.State = state;
    }

    /// <summary>Puts it at the end of those that wait, or takes it from them.</summary>
    private void Await(ClientConnection connection, bool waits)
    {
        lock (_gate)
        {
            if (connection.Waiting is { List: not null } waiting)
                _waiting.Remove(waiting);
            if (waits && _connections.Contains(connection))
                _waiting.AddLast(connection.Waiting!);
        }
    }

    private void Sweep()
    {
        var now = _clock.GetTimestamp();
        List<ClientConnection> late;
        lock (_gate)
            late = [.. _connections.Where(c => c.State != ConnectionState.Handled && now >= c.Deadline)];
        foreach (var connection in late)
        {
            if (connection.State == ConnectionState.Answer)
                Refused("answer_timeout");
            connection.Expire(now + _clock.TimestampFrequency);
        }
        var young = new List<Upstream>();
        while (KeptUpstream() is { } kept)
            young.Add(kept);
        if (young.Count > 0)
            _upstreams.PushRange([.. young]);
    }

    private void Refused(string reason) => _meters.HttpRefused.WithLabels(reason).Inc();

    // ---- A connection's life ----

    private async Task ServeAsync(ClientConnection connection)
    {
        await Task.Yield();
        try
        {
            await ConverseAsync(connection);
        }
        catch (Exception e) when (e is IOException or SocketException or ObjectDisposedException)
        {
            // The client has gone, or was ended by its deadline or by the cap, which were counted.
        }
        catch (Exception e)
        {
            _meters.Defects.Inc();
            _log.Error("a defect in SeS: a connection could not be served", ("exception", e));
        }
        finally
        {
            lock (_gate)
                Forget(connection);
            connection.Dispose();
        }
    }

    private async Task ConverseAsync(ClientConnection connection)
    {
        try
        {
            if (_tls != null)
                await HandshakeAsync(connection, _tls.Current);
            while (await ServeOneAsync(connection))
            {
                Enter(connection, ConnectionState.Idle, IdleTime);
                Await(connection, waits: true);
            }
        }
        catch (RefusedException e)
        {
            Await(connection, waits: true);
            Refused(e.Message);
            _log.Often("a request was refused: " + e.Message, ("client", connection.Client),
                ("code", e.Reply.Code));
            await AnswerAsync(connection, e.Reply, isHead: false, closes: true);
        }
    }

    /// <exception cref="RefusedException">The client sends HTTP to a port that expects TLS.</exception>
    /// <exception cref="IOException">The handshake failed, which was counted.</exception>
    private async Task HandshakeAsync(ClientConnection connection, SslServerAuthenticationOptions options)
    {
        Enter(connection, ConnectionState.Handshake, HandshakeTime);
        await connection.WaitAsync();
        var first = new byte[1];
        var count = await connection.Socket.ReceiveAsync(first, SocketFlags.Peek);
        if (count == 0 && !connection.IsOverdue)
            throw new IOException("the client closed without a byte");
        if (count == 1 && char.IsAsciiLetter((char)first[0]))
            throw new RefusedException("handshake", 400, "This port speaks TLS: ask with https.");
        var tls = new SslStream(connection.Stream);
        connection.Stream = tls;
        try
        {
            await tls.AuthenticateAsServerAsync(options);
        }
        catch (Exception e) when (e is AuthenticationException or IOException or Win32Exception)
        {
            Refused(connection.IsOverdue ? "handshake_timeout" : "handshake");
            _log.Often("a TLS handshake failed", ("client", connection.Client),
                ("reason", e.GetBaseException().Message));
            throw new IOException("the TLS handshake failed", e);
        }
        Enter(connection, ConnectionState.Idle, HeadTime);
    }

    /// <summary>Serves one request. False: the connection ends.</summary>
    private async Task<bool> ServeOneAsync(ClientConnection connection)
    {
        await connection.WaitAsync();
        if (!connection.IsOverdue)
            Enter(connection, ConnectionState.Head, HeadTime);
        if (await ReadHeadAsync(connection) is not { } head)
            return false;
        Enter(connection, ConnectionState.Handled, Timeless);
        if (await _web.RefusalAsync(head, connection.Client) is { } refusal)
        {
            // What follows may be a body, if only in the eyes of another reader.
            var isAlone = head.IsRead || head.Length == 0;
            var goesOn = await AnswerAsync(
                connection, refusal, head.Method == "HEAD", head.Closes || !isAlone);
            // All of it may have gone without a wait: others have their turn before the next request.
            await Task.Yield();
            return goesOn;
        }
        var innerHead = HeadFor(head, connection.Client);
        using var request = new MessageBuffer(
            this, innerHead.Length + (head.Length ?? 0), isCounted: head.Length > 0);
        request.Add(innerHead);
        if (head.Length > 0)
            await ReadBodyAsync(connection, head, request);
        return await HandOverAsync(connection, head, request);
    }

    private async ValueTask<RequestHead?> ReadHeadAsync(ClientConnection connection)
    {
        int length;
        while ((length = RequestHead.Find(connection.Received)) == 0)
        {
            if (await connection.ReceiveAsync())
                continue;
            if (connection.Received.Length > 0 && connection.IsOverdue)
                throw new RefusedException("head_timeout", 408,
                    $"The head did not arrive within {HeadTime.TotalSeconds} s.");
            if (connection.IsOverdue)
                Refused("idle");
            return null;
        }
        var head = RequestHead.Parse(connection.Received[..length]);
        connection.Take(length);
        return head;
    }

    /// <summary>The head that the HttpListener gets: nothing in it but what was checked.</summary>
    private byte[] HeadFor(RequestHead head, IPAddress client) => Encoding.Latin1.GetBytes(
        $"{(head.IsRead ? "GET" : head.Method)} {head.Target} HTTP/1.1\r\nHost: {_inner}\r\n"
        + $"{Web.SecretField}: {_web.Secret}\r\n{Web.ClientField}: {client}\r\n"
        + (head.Accept == null ? "" : $"Accept: {head.Accept}\r\n")
        + (head.Length == null ? "\r\n" : $"Content-Length: {head.Length}\r\n\r\n"));

    private async Task ReadBodyAsync(ClientConnection connection, RequestHead head, MessageBuffer request)
    {
        var left = (int)head.Length!.Value;
        var there = Math.Min(left, connection.Received.Length);
        if (head.Expects && there == 0)
            await WriteAsync(connection, "HTTP/1.1 100 Continue\r\n\r\n"u8.ToArray());
        Enter(connection, ConnectionState.Body, BodyTime);
        request.Add(connection.Received[..there]);
        connection.Take(there);
        for (left -= there; left > 0;)
        {
            var count = await connection.Stream.ReadAsync(request.Room(left));
            if (count == 0)
                throw connection.IsOverdue
                    ? new RefusedException("body_timeout", 408,
                        $"The body did not arrive within {BodyTime.TotalSeconds} s.")
                    : new RefusedException("body_cut", 400, "The body is shorter than its Content-Length.");
            request.Length += count;
            left -= count;
        }
    }

    /// <summary>
    /// The bytes of one HTTP message: a whole request on its way to the HttpListener, or an answer. What a
    /// request's body takes beyond its first part is counted, and refused when all together hold too much.
    /// </summary>
    /// <param name="expected">How many bytes it will hold, as far as that is known.</param>
    private sealed class MessageBuffer(Gate gate, long expected, bool isCounted) : IDisposable
    {
        private byte[] _buffer = [];
        private long _counted;
        private bool _isPooled;

        public int Length { get; set; }

        public ReadOnlyMemory<byte> Bytes => _buffer.AsMemory(0, Length);

        public void Add(ReadOnlySpan<byte> bytes)
        {
            while (bytes.Length > 0)
            {
                var room = Room(bytes.Length).Span;
                bytes[..room.Length].CopyTo(room);
                bytes = bytes[room.Length..];
                Length += room.Length;
            }
        }

        /// <summary>Where the next bytes go, as far as there is room; memory is taken as they come.</summary>
        /// <exception cref="RefusedException">All bodies together hold too much.</exception>
        public Memory<byte> Room(int atMost)
        {
            if (Length == _buffer.Length)
                Grow(Length == 0 ? (int)Math.Min(expected, FirstPart) : 2 * Length);
            return _buffer.AsMemory(Length, Math.Min(atMost, _buffer.Length - Length));
        }

        public void Dispose()
        {
            Interlocked.Add(ref gate._bytesInFlight, -_counted);
            if (_isPooled)
                ArrayPool<byte>.Shared.Return(_buffer);
            (_buffer, _counted, _isPooled) = ([], 0, false);
        }

        private void Grow(int size)
        {
            // The last step of a large body is as large as it needs to be, so that the largest has room.
            var isLast = isCounted && size >= expected && size > LogLine.ReadSize;
            var larger = isLast ? new byte[expected] : ArrayPool<byte>.Shared.Rent(size);
            Bytes.CopyTo(larger);
            var length = Length;
            Dispose();
            (_buffer, Length, _isPooled) = (larger, length, !isLast);
            _counted = isCounted ? Math.Max(0, larger.Length - FirstPart) : 0;
            if (Interlocked.Add(ref gate._bytesInFlight, _counted) > MaxBytesInFlight && _counted > 0)
                throw new RefusedException("bytes_in_flight", 503, "Too much is in flight.");
        }
    }

    // ---- Handing over, and answering ----

    /// <summary>Has the HttpListener answer, and sends that on. False: the connection ends.</summary>
    private async Task<bool> HandOverAsync(
        ClientConnection connection, RequestHead head, MessageBuffer request)
    {
        Enter(connection, ConnectionState.Handled, Timeless);
        Interlocked.Increment(ref _unanswered);
        Interlocked.Increment(ref _work);
        try
        {
            var closes = head.Closes || _draining;
            using var answer = new MessageBuffer(this, SmallAnswer, isCounted: false);
            StreamedBody? body;
            var slots = _web.IsQuestion(head) ? _questionSlots : _slots;
            var isLate = await TakeSlotAsync(slots);
            try
            {
                if (isLate && connection.Socket.Poll(0, SelectMode.SelectError))
                    throw new IOException("the client has gone meanwhile: nobody waits for the answer");
                Await(connection, waits: false);
                body = await ExchangeAsync(connection, head, closes, request, answer);
            }
            finally
            {
                slots.Release();
            }
            // From here on a slow reader holds nothing but its connection.
            Await(connection, waits: true);
            using (body)
            {
                await WriteAsync(connection, answer.Bytes);
                if (body != null && head.Method != "HEAD")
                    await RelayAsync(connection, body, answer);
            }
            return !closes || await LingerAsync(connection);
        }
        finally
        {
            if (Interlocked.Decrement(ref _unanswered) == 0 && _draining)
                _drained.TrySetResult();
        }
    }

    private void Stall(ClientConnection connection)
    {
        Refused("answer_timeout");
        connection.Abort();
    }

    /// <summary>Sends a long answer, each part as a chunk.</summary>
    private async Task RelayAsync(ClientConnection connection, StreamedBody body, MessageBuffer answer)
    {
        while (true)
        {
            Enter(connection, ConnectionState.Handled, Timeless);
            var part = await body.NextAsync();
            answer.Length = 0;
            AddChunk(answer, (part ?? default).Span);
            await WriteAsync(connection, answer.Bytes);
            if (part == null)
                return;
        }
    }

    /// <summary>RFC 9112, 7.1; an empty one ends the body.</summary>
    private static void AddChunk(MessageBuffer answer, ReadOnlySpan<byte> part)
    {
        answer.Add(Encoding.ASCII.GetBytes($"{part.Length:x}\r\n"));
        answer.Add(part);
        answer.Add("\r\n"u8);
    }

    /// <summary>Adds the listener's answer; of a long one only the head, and returns its body.</summary>
    private async Task<StreamedBody?> ExchangeAsync(
        ClientConnection connection, RequestHead head, bool closes, MessageBuffer request,
        MessageBuffer answer)
    {
        Upstream? upstream = null;
        StreamedBody? body = null;
        var isKept = false;
        try
        {
            ReadOnlyMemory<byte> answerHead, part;
            try
            {
                upstream = KeptUpstream() ?? await Upstream.ConnectAsync(_inner);
                await upstream.SendAsync(request.Bytes);
                request.Dispose();
                (answerHead, part) = await upstream.ReceiveHeadAsync();
            }
            catch (Exception e) when (e is IOException or SocketException)
            {
                _meters.Defects.Inc();
                _log.Error("a defect in SeS: its HTTP listener did not answer", ("exception", e));
                throw new RefusedException("listener", 503, "SeS could not process this; its log says why.");
            }
            var (length, keepsAlive, id) = Rewrite(answerHead.Span, closes, answer);
            body = id == null ? null : _web.TakeStreamedBody(id);
            if (body != null)
                body.Abort = () => Stall(connection);
            for (var left = length; left > 0; left -= part.Length, part = default)
            {
                if (part.Length == 0)
                    part = await upstream.ReceiveAsync();
                if (head.Method != "HEAD")
                    answer.Add(part.Span);
            }
            isKept = keepsAlive;
            return body;
        }
        catch
        {
            body?.Dispose();
            throw;
        }
        finally
        {
            if (isKept)
                Keep(upstream!);
            else
                upstream?.Dispose();
        }
    }

    /// <summary>Takes one of the places of requests in flight. True: it had to wait for its turn.</summary>
    /// <exception cref="RefusedException">Its turn did not come.</exception>
    private static async ValueTask<bool> TakeSlotAsync(SemaphoreSlim slots)
    {
        if (slots.Wait(0))
            return false;
        return await slots.WaitAsync(QueueTime)
            ? true : throw new RefusedException("in_flight", 503, "Too many requests are in flight.");
    }

    /// <summary>Takes one that is young enough, closing those that are not; null: there is none.</summary>
    private Upstream? KeptUpstream()
    {
        while (_upstreams.TryPop(out var kept))
        {
            if (_clock.GetElapsedTime(kept.LastUsed) < UpstreamIdleTime)
                return kept;
            kept.Dispose();
        }
        return null;
    }

    private void Keep(Upstream upstream)
    {
        upstream.LastUsed = _clock.GetTimestamp();
        _upstreams.Push(upstream);
    }

    /// <summary>Adds the head of the listener's answer as the client gets it.</summary>
    private static (long Length, bool KeepsAlive, string? StreamId) Rewrite(
        ReadOnlySpan<byte> head, bool closes, MessageBuffer answer)
    {
        var (length, keepsAlive, streamId) = (0L, true, (string?)null);
        foreach (var range in head.Split("\r\n"u8))
        {
            var line = head[range];
            if (line.StartsWith("Connection: "u8))
                keepsAlive = !line.EndsWith("close"u8);
            else if (line.StartsWith("Content-Length: "u8))
                length = long.Parse(line["Content-Length: ".Length..], CultureInfo.InvariantCulture);
            else if (line.StartsWith(StreamFieldStart))
                streamId = Encoding.ASCII.GetString(line[StreamFieldStart.Length..]);
            else if (!line.StartsWith("Keep-Alive: "u8) && !line.StartsWith("Server: "u8))
            {
                answer.Add(line);
                answer.Add("\r\n"u8);
            }
        }
        if (streamId != null)
            answer.Add("Transfer-Encoding: chunked\r\n"u8);
        // A 204 has no Content-Length (RFC 9110, 8.6).
        else if (!head.StartsWith("HTTP/1.1 204"u8))
            answer.Add(Encoding.ASCII.GetBytes($"Content-Length: {length}\r\n"));
        answer.Add(closes ? "Connection: close\r\n\r\n"u8 : "\r\n"u8);
        return (length, keepsAlive, streamId);
    }

    /// <summary>A slow reader has its time for each part.</summary>
    private ValueTask WriteAsync(ClientConnection connection, ReadOnlyMemory<byte> bytes)
    {
        Enter(connection, ConnectionState.Answer, AnswerTime);
        return connection.Stream.WriteAsync(bytes);
    }

    /// <summary>Answers for the gate itself. False: the connection ends.</summary>
    private async Task<bool> AnswerAsync(ClientConnection connection, Reply reply, bool isHead, bool closes)
    {
        if (reply.HeldBack > TimeSpan.Zero)
        {
            Enter(connection, ConnectionState.Answer, reply.HeldBack + AnswerTime);
            await Task.Delay(reply.HeldBack, _clock);
        }
        var head = $"HTTP/1.1 {reply.Code} {Reply.Phrase(reply.Code)}\r\nDate: {_clock.GetUtcNow():R}\r\n"
            + string.Concat(reply.Headers.Select(h => $"{h.Name}: {h.Value}\r\n"))
            + $"Content-Type: {reply.ContentType}\r\nContent-Length: {reply.Body.Length}\r\n"
            + (closes ? "Connection: close\r\n\r\n" : "\r\n");
        byte[] body = isHead ? [] : reply.Body;
        await WriteAsync(connection, (byte[])[.. Encoding.Latin1.GetBytes(head), .. body]);
        return !closes || await LingerAsync(connection);
    }

    /// <summary>Closes without taking the answer away from a client that still sends.</summary>
    private async Task<bool> LingerAsync(ClientConnection connection)
    {
        Enter(connection, ConnectionState.Linger, LingerTime);
        if (connection.Stream is SslStream tls)
            await tls.ShutdownAsync();
        connection.Shutdown(SocketShutdown.Send);
        // Until the client closes, or its time is up; slowly, so that a flood costs nothing.
        while (await connection.Socket.ReceiveAsync(Waste, SocketFlags.None) > 0)
            await Task.Delay(LingerPause, _clock);
        return false;
    }
}

// ================================= 18. Linux =================================
//
// What the host provides: as many descriptors as the process may have, protection of its secrets, and
// systemd's notification socket (sd_notify(3): one datagram for each change of state).

internal static partial class Linux
{
    private const int DescriptorLimit = 7, SetDumpable = 4;

    /// <summary>
    /// Raises the soft limit of open files to the hard one, which .NET does not do for native programs.
    /// </summary>
    /// <returns>The limit from now on.</returns>
    public static long RaiseDescriptors()
    {
        if (GetLimit(DescriptorLimit, out var limit) != 0)
            return 1024;
        var raised = limit with { Soft = limit.Hard };
        var now = SetLimit(DescriptorLimit, raised) == 0 ? raised.Soft : limit.Soft;
        return (long)Math.Min(now, int.MaxValue);
    }

    /// <summary>
    /// Overwrites secrets where the kernel shows a process's arguments and environment, and keeps other
    /// processes of the same user from its memory: no core dump, no debugger.
    /// </summary>
    /// <param name="names">Flags and variables whose values are secret.</param>
    public static unsafe void Hide(IReadOnlySet<string> names)
    {
        _ = Control(SetDumpable, 0, 0, 0, 0);
        // A root without /proc, as of a bare chroot, shows nothing to those inside.
        if (!File.Exists("/proc/self/stat"))
            return;
        // proc_pid_stat(5): fields 48 to 51 are where both lie; field 3 follows the name in parentheses.
        var fields = File.ReadAllText("/proc/self/stat").Split(')')[^1].Trim().Split(' ');
        var places = fields[45..49].Select(f => long.Parse(f, CultureInfo.InvariantCulture)).ToArray();
        Overwrite(new Span<byte>((void*)places[0], (int)(places[1] - places[0])), names);
        Overwrite(new Span<byte>((void*)places[2], (int)(places[3] - places[2])), names);
    }

    /// <param name="texts">Each ended by a NUL: <c>NAME=value</c>, or a flag and then its value.</param>
    private static void Overwrite(Span<byte> texts, IReadOnlySet<string> names)
    {
        var isValue = false;
        for (int length; (length = texts.IndexOf((byte)0)) >= 0; texts = texts[(length + 1)..])
        {
            // The command line takes a colon for the equals sign, too.
            var equals = texts[..length].IndexOfAny((byte)'=', (byte)':');
            var isNamed = names.Contains(Encoding.UTF8.GetString(texts[..(equals < 0 ? length : equals)]));
            if (isValue)
                texts[..length].Fill((byte)'*');
            else if (isNamed && equals >= 0)
                texts[(equals + 1)..length].Fill((byte)'*');
            isValue = !isValue && isNamed && equals < 0;
        }
    }

    private record struct ResourceLimit(ulong Soft, ulong Hard);

    [LibraryImport("libc", EntryPoint = "getrlimit")]
    private static partial int GetLimit(int resource, out ResourceLimit limit);

    [LibraryImport("libc", EntryPoint = "setrlimit")]
    private static partial int SetLimit(int resource, in ResourceLimit limit);

    [LibraryImport("libc", EntryPoint = "prctl")]
    private static partial int Control(int option, nuint a, nuint b, nuint c, nuint d);
}

/// <summary>Gives memory back to the system when it is quiet again after work.</summary>
internal sealed class MemoryTrimmer(Func<long> work)
{
    /// <summary>Less work than this between two checks is quiet: probes and scrapes.</summary>
    public const int Quiet = 100;

    public static readonly TimeSpan Period = TimeSpan.FromSeconds(10);

    private long _seen, _tidied;

    /// <summary>To be called every <see cref="Period"/>.</summary>
    public void Check()
    {
        var now = work();
        if (now - _seen < Quiet && now - _tidied >= Quiet)
        {
            GC.Collect(2, GCCollectionMode.Aggressive, blocking: true, compacting: true);
            _tidied = now;
        }
        _seen = now;
    }
}

/// <summary>
/// Logs when the clock is set: by it SeS judges which events are too far ahead, or too old to keep.
/// </summary>
internal sealed class ClockWatch(TimeProvider clock, Log log)
{
    /// <summary>Less than this between two checks is the clock's own correction.</summary>
    public static readonly TimeSpan Jump = TimeSpan.FromSeconds(10);

    private readonly DateTimeOffset _began = clock.GetUtcNow();
    private readonly long _start = clock.GetTimestamp();
    private TimeSpan _lead;

    /// <summary>To be called now and then.</summary>
    public void Check()
    {
        var lead = clock.GetUtcNow() - _began - clock.GetElapsedTime(_start);
        if ((lead - _lead).Duration() < Jump)
            return;
        log.Warn(lead > _lead ? "the clock was set forward, or the host slept" : "the clock was set back",
            ("seconds", (long)(lead - _lead).Duration().TotalSeconds));
        _lead = lead;
    }
}

internal sealed class Systemd(string? socketPath, Log log) : IDisposable
{
    private readonly Socket? _socket = string.IsNullOrEmpty(socketPath) ? null
        : new Socket(AddressFamily.Unix, SocketType.Dgram, ProtocolType.Unspecified) { Blocking = false };

    public bool IsThere => _socket != null;

    /// <summary>The socket that systemd listens on for SeS (sd_listen_fds(3)); null: there is none.</summary>
    /// <exception cref="SocketException">What was handed over is no socket.</exception>
    /// <exception cref="OptionsException">It is another kind of socket, or there are several.</exception>
    public static Socket? Listening()
    {
        const int First = 3;
        if (Environment.GetEnvironmentVariable("LISTEN_PID") != $"{Environment.ProcessId}"
            || Environment.GetEnvironmentVariable("LISTEN_FDS") is not { } count || count == "0")
            return null;
        if (count != "1")
            throw new OptionsException($"LISTEN_FDS: '{count}' sockets; SeS listens on one");
        var socket = new Socket(new SafeSocketHandle(First, ownsHandle: true));
        return socket.AddressFamily is AddressFamily.InterNetwork or AddressFamily.InterNetworkV6
            && socket.SocketType == SocketType.Stream
            && (int)socket.GetSocketOption(SocketOptionLevel.Socket, SocketOptionName.AcceptConnection)! != 0
            ? socket : throw new OptionsException("LISTEN_FDS: the socket does not listen for TCP");
    }

    /// <summary>Sends such as <c>READY=1</c>; several are joined by line breaks.</summary>
    public void Notify(string state)
    {
        try
        {
            // A leading @ means Linux's abstract namespace, which begins with a NUL.
            _socket?.SendTo(Encoding.UTF8.GetBytes(state), new UnixDomainSocketEndPoint(
                socketPath![0] == '@' ? '\0' + socketPath[1..] : socketPath));
        }
        catch (SocketException e)
        {
            log.Often("systemd could not be notified", ("reason", e.Message));
        }
    }

    public void Dispose() => _socket?.Dispose();
}

// =============================== 19. Commands ================================
//
// What the program does besides serving: it answers questions from a data directory, checks one, and lists
// the quarantine, whether a SeS is using the directory or not. Nothing here writes to it but the indexes.
// It also probes a SeS on the same host.

/// <summary>One thing to do, other than to serve.</summary>
internal sealed record Command(string Name, string Help, string Example, IReadOnlyList<Setting> Settings)
{
    private static readonly Setting
        Partition = Flag("--partition", "NAME", "Only services of this partition"),
        From = Flag("--from", "TIME", "From this time on, such as 2026-11-22T11:34:00Z or -24h"),
        To = Flag("--to", "TIME", "Up to this time"),
        Format = Flag("--format", "FORMAT", "table, json or csv (default: table on a terminal, else json)");

    private static readonly Setting[] Filters =
    [
        Options.DataDirSetting, Partition, Flag("--platform", "NAME", "Only services of this platform"),
        Flag("--service", "NAME", "Only services of this name"), Flag("--facet", "NAME", "Only this facet"),
        Flag("--location", "NAME", "Only this location"),
    ];

    public static readonly Setting
        RetrySetting = Flag("--retry", "BOOL", "Send the alerts to a running SeS again, after a cure"),
        UrlSetting = new("Flags", "--url", "", "URL", "http://localhost:8888/alerts",
            "Its webhook, without the partition"),
        TokenFileSetting = Flag("--token-file", "FILE", "File with a bearer token for it");

    public static IReadOnlyList<Command> All { get; } =
    [
        new("status", "Tells the current status of each service.", "ses status", [.. Filters, Format]),
        new("history", "Tells each change of status, in order of time.",
            "ses history --service etcd --from -24h",
            [.. Filters, From, To, Flag("--limit", "COUNT", "At most so many events"),
                Flag("--cursor", "CURSOR", "Go on after an answer's next"), Format]),
        new("report", "Tells availability and outages of each service.",
            "ses report --service etcd --facet node --from -7d --threshold 2",
            [.. Filters, From, To, Flag("--threshold", "COUNT",
                "Also for how long fewer than so many of these were up"), Format]),
        new("check", "Looks through a data directory and tells what is wrong in it.",
            "ses check --data-dir /var/lib/ses", [Options.DataDirSetting]),
        new("probe", "Asks a SeS on this host whether it is ready; for HEALTHCHECK and scripts.", "ses probe",
            [Options.PortSetting, Options.AddressSetting, Options.TlsCertSetting, Options.TlsKeySetting,
                Options.TlsClientCaSetting]),
        new("quarantine", "Lists the alerts that could not be mapped.", "ses quarantine --retry",
            [Options.DataDirSetting, Partition, Format, RetrySetting, UrlSetting, TokenFileSetting,
                Options.UsernameSetting, Options.PasswordSetting, Options.PasswordSetting.File]),
    ];

    private static Setting Flag(string flag, string value, string help) =>
        new("Flags", flag, "", value, null, help);
}

/// <summary>Carries commands out.</summary>
/// <param name="isTerminal">Tables are for people.</param>
internal sealed class CommandRunner(
    IReadOnlyDictionary<string, string> flags, IReadOnlyDictionary<string, string> variables, Stream output,
    bool isTerminal, TimeProvider clock)
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30), ProbeTime = TimeSpan.FromSeconds(3);

    private readonly string _dir = Options.DataDirOf(flags, variables);

    private DateTime Now => clock.GetUtcNow().UtcDateTime;

    /// <returns>Whether all is well.</returns>
    /// <exception cref="OptionsException">A flag cannot be used.</exception>
    /// <exception cref="DataDirException">The data directory cannot be used.</exception>
    public Task<bool> RunAsync(string name) => name switch
    {
        "check" => Task.FromResult(Check()),
        "probe" => ProbeAsync(),
        "quarantine" => Options.BoolOf(Command.RetrySetting, flags) ? RetryAsync() : Task.FromResult(List()),
        _ => Task.FromResult(Ask(Enum.Parse<Subject>(name, ignoreCase: true))),
    };

    private bool Ask(Subject subject)
    {
        var parameters = flags.Where(f => f.Key is not ("--data-dir" or "--partition" or "--format"))
            .Select(f => KeyValuePair.Create(f.Key[2..], f.Value));
        Question question;
        try
        {
            question = Question.Parse(subject, flags.GetValueOrDefault("--partition"), parameters, Now);
        }
        catch (QuestionException e)
        {
            throw new OptionsException("--" + e.Message);
        }
        var (archive, format) = (Archive.Open(_dir), Format());
        var answers = new Answers(archive, archive.Known(), Now);
        foreach (var part in answers.Write(question, format))
            output.Write(part.Span);
        if (format != OutputFormat.Json && answers.Next is { } next)
            Console.Error.WriteLine($"There is more: --cursor {next}");
        return true;
    }

    private OutputFormat Format() => flags.GetValueOrDefault("--format") switch
    {
        null => isTerminal ? OutputFormat.Table : OutputFormat.Json,
        "table" => OutputFormat.Table,
        "json" => OutputFormat.Json,
        "csv" => OutputFormat.Csv,
        var other => throw new OptionsException(
            $"--format: '{other}' is not usable; allowed: table, json, csv"),
    };

    // ---- Check ----

    private bool Check()
    {
        var inspection = new Inspection(Archive.Open(_dir), _dir);
        var faults = 0;
        foreach (var (name, summary, found) in inspection.CheckFiles())
        {
            Print(found.Count == 0 ? $"{name}: {summary}" : $"{name}: {summary}; {found.Count} faults");
            foreach (var fault in found)
                Print("  " + fault);
            faults += found.Count;
        }
        Print(faults == 0 ? $"Nothing is wrong: {inspection.Events} events of {inspection.Services} services."
            : $"{faults} faults. What does not parse is passed over; the rest of the log is used.");
        return faults == 0;
    }

    /// <summary>At once: a large log takes its time.</summary>
    private void Print(string line)
    {
        output.Write(Encoding.UTF8.GetBytes(line + "\n"));
        output.Flush();
    }

    // ---- Probe ----

    private async Task<bool> ProbeAsync()
    {
        var (url, needsCertificate) = Options.OwnUrl(flags, variables);
        var target = new Uri(url, "ready");
        // It is the same host: who answers is not the question, and the certificate may name another.
        var isThere = false;
        using var handler = new HttpClientHandler
        {
            UseProxy = false,
            ServerCertificateCustomValidationCallback = (_, _, _, _) => isThere = true,
        };
        using var client = new HttpClient(handler) { Timeout = ProbeTime };
        try
        {
            using var answer = await client.GetAsync(target);
            Print((await answer.Content.ReadAsStringAsync()).Trim());
            return answer.IsSuccessStatusCode;
        }
        catch (HttpRequestException) when (isThere && needsCertificate)
        {
            Print($"{target} is there; it takes only clients with a certificate, and a probe has none");
            return true;
        }
        catch (Exception e) when (e is HttpRequestException or TaskCanceledException)
        {
            Print($"{target} does not answer: {Reason(e)}");
            return false;
        }
    }

    private static string Reason(Exception e) =>
        e is HttpRequestException { InnerException: { } inner } ? inner.Message : e.Message;

    // ---- Quarantine ----

    private IEnumerable<QuarantinedAlert> Quarantined()
    {
        var path = Path.Combine(_dir, EventLog.QuarantineFile);
        if (!File.Exists(path))
            throw new DataDirException($"'{_dir}' has no {EventLog.QuarantineFile} in it");
        return QuarantinedAlert.Read(path, 0)
            .Where(a => (flags.GetValueOrDefault("--partition") ?? a.Partition) == a.Partition);
    }

    private bool List()
    {
        string[] columns = ["received", "partition", "alertname", "reason", "fingerprint", "id"];
        var writer = new RowWriter(Format());
        writer.BeginList("alerts", columns);
        foreach (var alert in Quarantined())
        {
            writer.Row(columns, [alert.Received, alert.Partition, alert.Alertname, alert.Reason,
                alert.Fingerprint, alert.Id]);
            if (writer.IsFull)
                output.Write(writer.Take().Span);
        }
        writer.EndList();
        output.Write(writer.End().Span);
        return true;
    }

    /// <summary>Sends each alert to a running SeS, which strikes those off that it can map now.</summary>
    private async Task<bool> RetryAsync()
    {
        using var client = new HttpClient { Timeout = Patience };
        client.DefaultRequestHeaders.Authorization = Credentials();
        var url = (flags.GetValueOrDefault(Command.UrlSetting.Flag) ?? Command.UrlSetting.Default!)
            .TrimEnd('/');
        var (sent, cured, alerts) = (0, 0, Quarantined().ToList());
        foreach (var alert in alerts.Where(a => a.Alert != null))
        {
            var partition = Uri.EscapeDataString(alert.Partition ?? "");
            var target = $"{url}/{partition}?{Web.CuresParameter}={alert.Id}";
            var payload = $"{{\"version\":\"4\",\"alerts\":[{alert.Alert!.Value.GetRawText()}]}}";
            using var body = new StringContent(payload, Encoding.UTF8, "application/json");
            sent++;
            if (await PostAsync(client, target, body) == HttpStatusCode.NoContent)
                cured++;
        }
        Print($"{sent} alerts sent: {cured} accepted, {alerts.Count - cured} stay in quarantine.");
        return cured == alerts.Count;
    }

    private static async Task<HttpStatusCode> PostAsync(HttpClient client, string target, HttpContent body)
    {
        try
        {
            using var answer = await client.PostAsync(new Uri(target), body);
            // Too large for a --max-body that is smaller now: the others may do.
            return answer.IsSuccessStatusCode || answer.StatusCode == HttpStatusCode.RequestEntityTooLarge
                ? answer.StatusCode : throw new OptionsException(
                    $"{Command.UrlSetting}: {target} answered {(int)answer.StatusCode}: "
                    + (await answer.Content.ReadAsStringAsync()).Trim());
        }
        catch (Exception e) when (e is HttpRequestException or UriFormatException or TaskCanceledException)
        {
            throw new OptionsException($"{Command.UrlSetting}: {target} cannot be reached: {Reason(e)}");
        }
    }

    private AuthenticationHeaderValue? Credentials()
    {
        if (flags.GetValueOrDefault(Command.TokenFileSetting.Flag) is { } path)
            return File.Exists(path) ? new AuthenticationHeaderValue("Bearer", File.ReadAllText(path).Trim())
                : throw new OptionsException($"{Command.TokenFileSetting}: '{path}' is not there");
        var options = Options.Read(
            flags.Where(f => Options.Settings.Any(s => s.Flag == f.Key)).ToDictionary(), variables);
        return new AuthenticationHeaderValue("Basic", Convert.ToBase64String(
            Encoding.UTF8.GetBytes($"{options.Username}:{options.Password}")));
    }
}

// ================================= 20. Main ==================================
//
// Reads arguments and environment, puts the parts together, and decides the exit code.

internal static class Program
{
    private const int Usage = 2, Failure = 1, Success = 0;

    /// <summary>Less than the 10 s that container engines wait before they kill.</summary>
    private static readonly TimeSpan
        DrainTime = TimeSpan.FromSeconds(5), RecorderTime = TimeSpan.FromSeconds(1),
        LogTime = TimeSpan.FromSeconds(2);

    private static readonly string Version = typeof(Program).Assembly
        .GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion ?? "unknown";

    private static readonly string Commit = Metadata("Commit") is { Length: > 0 } hash ? hash : "unknown";

    /// <summary>When the program's commit was made; the year 1 when that is not known.</summary>
    private static readonly DateTime Built = long.TryParse(
        Metadata("CommitTime"), NumberStyles.None, CultureInfo.InvariantCulture, out var seconds)
        ? DateTime.UnixEpoch.AddSeconds(seconds) : DateTime.MinValue;

    /// <summary>What the build said of the program under this name.</summary>
    private static string? Metadata(string name) => typeof(Program).Assembly
        .GetCustomAttributes<AssemblyMetadataAttribute>().FirstOrDefault(a => a.Key == name)?.Value;

    public static async Task<int> Main(string[] args)
    {
        try
        {
            var command = Command.All.FirstOrDefault(c => c.Name == args.FirstOrDefault());
            var (flags, exit) = ParseFlags(command == null ? args : args[1..], command);
            if (exit is { } code)
                return code;
            var variables = Environment.GetEnvironmentVariables()
                .Cast<System.Collections.DictionaryEntry>()
                .ToDictionary(e => (string)e.Key, e => (string?)e.Value ?? "");
            Linux.Hide(Options.Settings.Where(s => s.Secret)
                .SelectMany(s => new[] { s.Flag, s.Variable }).ToHashSet());
            return command == null ? await RunAsync(Options.Read(flags, variables))
                : await RunAsync(command, flags, variables);
        }
        catch (OptionsException e)
        {
            await Console.Error.WriteLineAsync($"ses: {e.Message}");
            return Usage;
        }
        catch (DataDirException e)
        {
            await Console.Error.WriteLineAsync($"ses: {Options.DataDirSetting}: {e.Message}");
            return Usage;
        }
        catch (Exception e) when (Disk.Refused(e))
        {
            await Console.Error.WriteLineAsync($"ses: the disk refuses: {e.Message}");
            return Failure;
        }
        catch (Exception e)
        {
            await Console.Error.WriteLineAsync($"ses: a defect in SeS: {e}");
            return Failure;
        }
    }

    // ---- Command line ----

    /// <summary>
    /// What the command line gave, by flag; or the code to exit with, after help or the version.
    /// </summary>
    /// <param name="command">Null: to serve.</param>
    internal static (IReadOnlyDictionary<string, string> Flags, int? Exit) ParseFlags(
        string[] args, Command? command = null)
    {
        var root = new RootCommand("Keeps the history of service status that Alertmanager tells.");
        var options = (command?.Settings ?? Options.Settings).Select(s => new Option<string?>(s.Flag)
        {
            Description = s.Help,
            HelpName = s.Value,
            Arity = s.Value == "BOOL" ? ArgumentArity.ZeroOrOne : ArgumentArity.ExactlyOne,
        }).ToList();
        foreach (var option in options)
            root.Add(option);
        root.Options.OfType<HelpOption>().Single().Action = new HelpText(command);
        root.Options.OfType<VersionOption>().Single().Action = new VersionText();
        // --flag= is the empty value, which the parser would look for in the next argument.
        args = [.. args.SelectMany(a => a.EndsWith('=') && options.Exists(o => o.Name == a[..^1])
            ? new[] { a[..^1], "" } : [a])];
        // A secret may begin with an @; it names no file of arguments.
        var parsed = root.Parse(args, new ParserConfiguration { ResponseFileTokenReplacer = null });
        var given = new Dictionary<string, string>();
        if (parsed.Action is HelpText or VersionText)
            return (given, parsed.Invoke());
        // What follows a mistyped flag may be a secret, and is not repeated.
        if (parsed.UnmatchedTokens is [var unknown, ..])
            throw new OptionsException(unknown.StartsWith('-')
                ? $"{unknown.Split('=', ':')[0]} is no flag of SeS. Try ses --help."
                : "An argument belongs to no flag; quote a value that has spaces. Try ses --help.");
        if (parsed.Errors is [var error, ..])
            throw new OptionsException($"{error.Message} Try ses --help.");
        foreach (var option in options)
        {
            if (parsed.GetResult(option) is { Implicit: false })
                given[option.Name] = parsed.GetValue(option) ?? "true";
        }
        return (given, null);
    }

    private sealed class HelpText(Command? command) : SynchronousCommandLineAction
    {
        public override int Invoke(ParseResult parseResult)
        {
            var output = parseResult.InvocationConfiguration.Output;
            if (command == null)
                WriteServing(output);
            else
                WriteCommand(output, command);
            return Success;
        }

        private static void WriteCommand(TextWriter output, Command command)
        {
            output.WriteLine($"{command.Help}\n\nUsage: ses {command.Name} [--flag VALUE]...\n");
            foreach (var setting in command.Settings)
                WriteSetting(output, setting);
            output.WriteLine($"""

                Example:
                  {command.Example}

                Exit codes: 0 all is well, 1 something is wrong, 2 a flag or the data directory is not usable.
                """);
        }

        private static void WriteSetting(TextWriter output, Setting setting)
        {
            var variable = setting.Variable == "" ? "" : $"  ({setting.Variable})";
            output.WriteLine($"  {setting.Flag} {setting.Value}{variable}");
            var standard = setting.Default == null || setting.Secret ? "" : $" (default: {setting.Default})";
            output.WriteLine($"        {setting.Help}{standard}");
        }

        private static void WriteServing(TextWriter output)
        {
            output.WriteLine("""
                SeS keeps the history of service status: it receives Alertmanager's webhooks, puts
                status events on disk, and brings each change to the Onix CMDB.

                Usage: ses [--flag VALUE]...            serve
                       ses COMMAND [--flag VALUE]...    see ses COMMAND --help

                Each setting has a flag and an environment variable; the flag wins.
                """);
            foreach (var group in Options.Settings.GroupBy(s => s.Group))
            {
                output.WriteLine($"\n{group.Key}:");
                foreach (var setting in group)
                    WriteSetting(output, setting);
            }
            output.WriteLine("\nCommands:");
            foreach (var command in Command.All)
                output.WriteLine($"  {command.Name,-12}{command.Help}");
            output.WriteLine("""

                Other:
                  --help, --version

                Example, without an Onix:
                  ses --onix-url none --data-dir /var/lib/ses

                Exit codes: 0 asked to stop, 1 the disk or SeS failed, 2 a setting is wrong.
                """);
        }
    }

    private sealed class VersionText : SynchronousCommandLineAction
    {
        public override int Invoke(ParseResult parseResult)
        {
            parseResult.InvocationConfiguration.Output.WriteLine(Built == DateTime.MinValue
                ? $"ses {Version}" : $"ses {Version}, commit {Commit} of {Rfc3339.Format(Built)}");
            return Success;
        }
    }

    private static async Task<int> RunAsync(Command command, IReadOnlyDictionary<string, string> flags,
        IReadOnlyDictionary<string, string> variables)
    {
        using var output = new BufferedStream(Console.OpenStandardOutput(), BodyWriter.Size);
        var isWell = await new CommandRunner(flags, variables, output, !Console.IsOutputRedirected,
            TimeProvider.System).RunAsync(command.Name);
        await output.FlushAsync();
        return isWell ? Success : Failure;
    }

    // ---- A run ----

    private static async Task<int> RunAsync(Options options)
    {
        await using var lines = new QueuedWriter(Console.Error);
        var log = new Log(options.LogLevel, options.LogJson, lines, TimeProvider.System);
        foreach (var warning in options.Warnings)
            log.Warn(warning);
        var meters = new Meters(Version, Commit);
        using var claim = Claim(options.DataDir);
        var auth = new Auth(options, Auth.CreateHandler(), TimeProvider.System, log, meters);
        var web = new Web(options, auth, Built, TimeProvider.System, log, meters);
        using var tls = OpenTls(options, log, meters);
        var gate = new Gate(options, web, tls, Linux.RaiseDescriptors(), TimeProvider.System, log, meters);
        log.Info("SeS listens", ("version", Version), ("commit", Commit), ("url", Listen(gate, options)),
            ("data", Path.GetFullPath(options.DataDir)), ("onix", options.OnixUrl?.AbsoluteUri ?? "none"));

        using var stop = new CancellationTokenSource();
        using var systemd = new Systemd(Environment.GetEnvironmentVariable("NOTIFY_SOCKET"), log);
        using var signals = new Signals(stop);
        // Nobody waits for it: it logs its failure, and the first token asks again.
        _ = auth.PrepareAsync();
        var eventLog = OpenLog(options, log, meters);
        var recorder = OpenRecorder(options, eventLog, log, meters);
        var recording = recorder?.RunAsync(stop.Token) ?? Task.CompletedTask;
        web.Serve(eventLog, recorder);
        log.Info("SeS is ready");
        systemd.Notify("READY=1\nSTATUS=" + web.StatusLine());

        var memoryTrimmer = new MemoryTrimmer(() => gate.Work);
        var clockWatch = new ClockWatch(TimeProvider.System, log);
        using (new Timer(_ => memoryTrimmer.Check(), null, MemoryTrimmer.Period, MemoryTrimmer.Period))
        using (new Timer(_ => clockWatch.Check(), null, ClockWatch.Jump, ClockWatch.Jump))
        using (new Timer(_ => systemd.Notify(
            (web.IsAlive ? "WATCHDOG=1\n" : "") + "STATUS=" + web.StatusLine()), null,
            systemd.IsThere ? WatchdogPeriod() : Timeout.InfiniteTimeSpan, WatchdogPeriod()))
            await Task.WhenAny(eventLog.Failed, gate.Accepting, Task.Delay(Timeout.Infinite, stop.Token));
        if (gate.Accepting.IsCompleted)
        {
            meters.Defects.Inc();
            log.Error("a defect in SeS: connections are taken no more",
                ("exception", gate.Accepting.Exception));
        }
        return await EndAsync(gate, eventLog, recording, stop, systemd, log);
    }

    private static async Task<int> EndAsync(Gate gate, EventLog eventLog, Task recording,
        CancellationTokenSource stop, Systemd systemd, Log log)
    {
        var isAsked = stop.IsCancellationRequested;
        systemd.Notify("STOPPING=1");
        log.Info("SeS stops: no more alerts are taken");
        await gate.DrainAsync(DrainTime);
        await stop.CancelAsync();
        await Task.WhenAny(recording, Task.Delay(RecorderTime));
        var stopped = Task.Run(eventLog.Stop);
        await Task.WhenAny(stopped, Task.Delay(LogTime));
        var reason = !stopped.IsCompleted ? "it does not answer"
            : eventLog.Failed.IsCompleted ? await eventLog.Failed : null;
        if (reason == null)
            log.Info("SeS has stopped: everything acknowledged is on disk");
        else
            log.Error("SeS ends: the disk failed; nothing acknowledged is lost", ("reason", reason));
        return reason == null && isAsked ? Success : Failure;
    }

    /// <summary>One process per data directory: holds the lock file until it is disposed.</summary>
    private static FileStream Claim(string dir)
    {
        try
        {
            Directory.CreateDirectory(
                dir, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
            return new FileStream(Path.Combine(dir, "lock"), new FileStreamOptions
            {
                Mode = FileMode.OpenOrCreate,
                Access = FileAccess.ReadWrite,
                Share = FileShare.None,
                UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite,
            });
        }
        catch (IOException e) when (File.Exists(Path.Combine(dir, "lock")))
        {
            throw new OptionsException(
                $"{Options.DataDirSetting}: '{dir}' is in use by another SeS ({e.Message})");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new OptionsException($"{Options.DataDirSetting}: '{dir}' cannot be used: {e.Message}");
        }
    }

    /// <summary>Where alerts are to be posted.</summary>
    private static string Listen(Gate gate, Options options)
    {
        try
        {
            var place = gate.Start(Systemd.Listening());
            var host = place.Address.Equals(IPAddress.Any) || place.Address.Equals(IPAddress.IPv6Any)
                ? $"localhost:{place.Port}" : place.ToString();
            return $"{(options.TlsCert == null ? "http" : "https")}://{host}/{options.Path}/PARTITION";
        }
        catch (SocketException e)
        {
            var place = e.SocketErrorCode is SocketError.AddressNotAvailable or SocketError.InvalidArgument
                ? $"{Options.AddressSetting}: '{options.Address}'"
                : $"{Options.PortSetting}: '{options.Port}' on "
                    + (options.Address?.ToString() ?? "all addresses");
            throw new OptionsException($"{place} cannot be listened on: {e.Message}");
        }
    }

    private static Tls? OpenTls(Options options, Log log, Meters meters)
    {
        try
        {
            return options.TlsCert == null ? null : new Tls(options.TlsCert, options.TlsKey!,
                options.TlsClientCa, TimeProvider.System, log, meters);
        }
        catch (CertificateException e)
        {
            throw new OptionsException(e.Message);
        }
    }

    private static EventLog OpenLog(Options options, Log log, Meters meters)
    {
        try
        {
            return new EventLog(options.DataDir, options.Retention, TimeProvider.System, log, meters);
        }
        catch (DataDirException e)
        {
            throw new OptionsException($"{Options.DataDirSetting}: {e.Message}");
        }
    }

    private static Recorder? OpenRecorder(Options options, EventLog eventLog, Log log, Meters meters)
    {
        if (options.OnixUrl == null)
        {
            // An Onix that is switched on later gets the whole history.
            eventLog.KeepFrom = int.MaxValue;
            eventLog.ForgetCursor();
            return null;
        }
        try
        {
            var onix = new OnixClient(
                options, OnixClient.CreateHandler(options), TimeProvider.System, meters);
            return new Recorder(
                eventLog, onix, options.OnixUrl.AbsoluteUri, TimeProvider.System, log, meters);
        }
        catch (CryptographicException e)
        {
            throw new OptionsException($"{Options.OnixCaFileSetting}: '{options.OnixCaFile}' "
                + $"holds no certificate in PEM: {e.Message}");
        }
    }

    /// <summary>
    /// Half of what systemd allows, as sd_watchdog_enabled(3) advises; else for the status line.
    /// </summary>
    private static TimeSpan WatchdogPeriod() =>
        long.TryParse(Environment.GetEnvironmentVariable("WATCHDOG_USEC"), NumberStyles.None,
            CultureInfo.InvariantCulture, out var microseconds) && microseconds > 0
            ? TimeSpan.FromMicroseconds(microseconds / 2.0) : TimeSpan.FromSeconds(10);

    /// <summary>
    /// SIGTERM and SIGINT ask to stop; a file size limit is an error of a write, not the end.
    /// </summary>
    private sealed class Signals : IDisposable
    {
        private const PosixSignal FileSizeExceeded = (PosixSignal)25;

        private readonly PosixSignalRegistration[] _registrations;

        public Signals(CancellationTokenSource stop)
        {
            void Stop(PosixSignalContext context)
            {
                context.Cancel = true;
                stop.Cancel();
            }

            _registrations =
            [
                PosixSignalRegistration.Create(PosixSignal.SIGTERM, Stop),
                PosixSignalRegistration.Create(PosixSignal.SIGINT, Stop),
                PosixSignalRegistration.Create(FileSizeExceeded, context => context.Cancel = true),
            ];
        }

        public void Dispose() => Array.ForEach(_registrations, r => r.Dispose());
    }
}
