// SeS, Service Status: a daemon that keeps a trustworthy history of when services were up and down.
//
// It receives alerts, from Prometheus itself and from Alertmanager's webhooks, stores what each alert says as
// facts in its own database, derives the history of each service's status from them, brings every change of
// it to the Onix CMDB, and shows people and programs what happened when.
//
// THE PROMISE. A 2xx answer means: every fact of the payload is on disk, flushed, and every unusable alert is
// on disk too, in quarantine, with the reason (of a payload with thousands of them the first whole, of the
// rest the number). What is on disk reaches Onix in order and once in effect, but for what came after Onix
// held something later, whatever crashes, restarts or is down for however long.
//
// THE FLOW
//
//     Prometheus,
//     Alertmanager --> Gate (whole requests) --> Auth --> Web --> Alerts (map) --> Store (commit) --> 2xx
//                                                                                    |
//                                                              Timeline (derive services that are behind)
//                                                                                    |
//                  Onix <-- OnixClient <-- Recorder (decide, batch) <-- Outbox (marked services)
//                                                                                    |
//     people, programs <-- Gate <-- Web <-- StatusPage, Answers <-- Questions <-- Store (snapshots)
//
// ENDPOINTS
//
//     POST /{path}/{partition}            Alertmanager's webhook; {path} is "alerts" unless --path differs
//     POST /{path}/{partition}/api/v2/alerts   Prometheus, and whoever else speaks to an Alertmanager
//     GET  the same, and .../api/v2/status     the open alerts, and what such clients ask first
//     GET  /{path}/{partition}            the current status of each service; JSON or CSV
//     GET  /{path}/{partition}/history    each change of status, in order of time
//     GET  /{path}/{partition}/report     availability and outages
//     GET  /{path}/{partition}/outages    each time down
//     POST, GET /{path}/{partition}/notes what people say of the history, for the editor
//     GET  /, /service                    the status page, and that of one service
//     GET  /health                        how SeS is, whole; text or JSON
//     GET  /live, /ready                  probes; /ready reports Onix's state, but depends on the disk alone
//     GET  /metrics                       Prometheus's text format
//
// COMMANDS, beside the daemon: ses status, history, report, outages, check, rebuild, backup, restore, export, import,
// purge, note add, note list, note withdraw, probe, quarantine
//
// FILES in the data directory
//
//     ses.db, ses.db-wal, ses.db-shm   the database, its write-ahead log, and the memory its users share
//     lock                             held while a daemon uses the directory
//
// GLOSSARY
//
//     partition      a part of Onix that services are in; the last segment of the webhook's path
//     service        what has a status: a platform, service, facet (aspect) and location in a partition
//     dialect        alerts whose labels name a status: "status" and "facet"
//     stock alert    any other alert: its severity says what its service is while it fires
//     episode        one firing of an alert, from its start to its end
//     observation    a copy of an episode that brought something new: the fact that is stored
//     timeline       the status of a service at each moment, derived from all its observations
//     heartbeat      an alert that always fires: while it is silent, nobody watches
//     gap            a stretch in which nothing could have been received
//     note           what a person says of a stretch: maintenance, excluded, correction, comment, retired
//     outage         the time that a service is down, until it is up
//     quarantine     the alerts that cannot be mapped to a service, until they are sent again
//     outbox         what Onix is known to hold of each service, and which are marked: it lacks their changes
//     barred         a service whose change Onix refuses
//     lock           Onix's refusal of a change to an item that somebody else has changed meanwhile
//
// EXIT CODES
//
//     0   asked to stop, and everything acknowledged is on disk
//     1   the disk can no longer be trusted (a flush failed), or a defect; the supervisor restarts
//     2   a bad setting, a port or a data directory in use: restarting alone does not help
//     3   ses status --fail-if-down: a service is down
//     4   ses status, history, report, outages: no service matches
//
// SECTIONS, each using only those above it
//
//     1 Options   2 Log   3 Metrics   4 Alerts   5 Timeline   6 Database   7 Notes   8 Store   9 Lines
//    10 Questions  11 Asking  12 Reports  13 Onix  14 Recorder  15 HTTP  16 Auth  17 Status page
//    18 Printed reports  19 Web  20 TLS  21 Gate  22 Linux  23 Commands  24 Main

using System.Buffers;
using System.Buffers.Binary;
using System.Buffers.Text;
using System.Collections;
using System.Collections.Concurrent;
using System.CommandLine;
using System.CommandLine.Help;
using System.CommandLine.Invocation;
using System.CommandLine.Parsing;
using System.ComponentModel;
using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.IO.Compression;
using System.Net;
using System.Net.Http.Headers;
using System.Net.Security;
using System.Net.Sockets;
using System.Numerics;
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Security;
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

/// <summary>A secret. What a file has is read again while SeS runs, so that nobody need restart it.</summary>
/// <param name="path">Null: it was given itself.</param>
internal sealed class Secret(string value, string? path = null)
{
    private volatile string _value = value;

    public string Value => _value;

    public string? Path => path;

    /// <summary>What a file holds, without line ends.</summary>
    public static string Read(string path) => File.ReadAllText(path).TrimEnd('\r', '\n');

    /// <summary>What the file has now, if that is another; null while it is empty, as in the middle of a change.</summary>
    /// <exception cref="IOException">It cannot be read.</exception>
    public string? Changed() => path != null && Read(path) is { Length: > 0 } now && now != _value ? now : null;

    public void Take(string value) => _value = value;

    public override string ToString() => "...";
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
    public required int InnerPort { get; init; }
    /// <summary>Null: all addresses.</summary>
    public required IPAddress? Address { get; init; }
    /// <summary>Names and addresses that clients may ask for, as <see cref="HostOf"/> has them; null: any.</summary>
    public required IReadOnlySet<string>? Hosts { get; init; }
    public required string Username { get; init; }
    public required Secret Password { get; init; }
    public required string EditorUsername { get; init; }
    /// <summary>Null: nobody may read or write notes by HTTP.</summary>
    public required Secret? EditorPassword { get; init; }
    /// <summary>As the issuer names itself, to the letter.</summary>
    public required string? OidcIssuer { get; init; }
    public required string? OidcAudience { get; init; }
    public required bool MetricsAuth { get; init; }
    /// <summary>Null: plain HTTP.</summary>
    public required string? TlsCert { get; init; }
    public required string? TlsKey { get; init; }
    /// <summary>Null: no certificate is asked of clients.</summary>
    public required string? TlsClientCa { get; init; }
    /// <summary>Null: no Onix, the store alone.</summary>
    public required Uri? OnixUrl { get; init; }
    public required AuthMode OnixAuthMode { get; init; }
    public required string OnixUsername { get; init; }
    public required Secret OnixPassword { get; init; }
    public required string? OnixClientId { get; init; }
    public required Secret? OnixAppSecret { get; init; }
    public required Uri? OnixTokenUri { get; init; }
    public required bool OnixInsecureSkipVerify { get; init; }
    public required string? OnixCaFile { get; init; }
    public required string DataDir { get; init; }
    public required TimeSpan Retention { get; init; }
    public required int MaxBody { get; init; }
    public required MappingRules Mapping { get; init; }
    /// <summary>Null: the one that is stored, at the first start that of the host.</summary>
    public required string? Name { get; init; }
    public required TimeSpan Pause { get; init; }
    public required TimeSpan StaleAfter { get; init; }
    public required TimeSpan Forget { get; init; }
    /// <summary>How reports count where a question does not say so.</summary>
    public required Counting Counting { get; init; }
    /// <summary>Null: all.</summary>
    public required IReadOnlySet<string>? Partitions { get; init; }
    public required int MaxServices { get; init; }
    public required int MaxAlerts { get; init; }
    /// <summary>In bytes; null: none.</summary>
    public required long? MaxSize { get; init; }
    /// <summary>What the user should know, though it stops nothing; logged once at the start.</summary>
    public required IReadOnlyList<string> Warnings { get; init; }

    private const string Listening = "Listening", Meaning = "What alerts mean", Onix = "Onix",
        Keeping = "Keeping", Telling = "Telling";

    /// <summary>
    /// Each service has some label sets: as many as its severities, and as its labels change.
    /// </summary>
    private const int AlertsOfService = 10;

    public static readonly Setting
        PathSetting = new(Listening, "--path", "OXSES_PATH", "PATH", "alerts",
            "Path of the webhook: POST /PATH/PARTITION"),
        PortSetting = new(Listening, "--port", "OXSES_PORT", "PORT", "8888",
            "TCP port, 1 to 65535; 0: a free one, which the log names"),
        AddressSetting = new(Listening, "--address", "OXSES_ADDRESS", "ADDRESS", null,
            "IPv4 or IPv6 address to listen on (default: all)"),
        InnerPortSetting = new(Listening, "--inner-port", "OXSES_INNER_PORT", "PORT", "0",
            "Port on 127.0.0.1 behind the public one, for a firewall's rule; 0: a free one"),
        HostsSetting = new(Listening, "--hosts", "OXSES_HOSTS", "NAMES", null,
            "Hosts that requests may name, such as ses-1,[2001:db8::1]; others are answered 421 (default: all)"),
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
        EditorUsernameSetting = new(Listening, "--editor-username", "OXSES_EDITOR_USERNAME", "NAME", "editor",
            "User that may read and write notes, with whatever --auth-mode"),
        EditorPasswordSetting = new(Listening, "--editor-password", "OXSES_EDITOR_PASSWORD", "SECRET", null,
            "Password of that user; without one notes are written on the host alone", Secret: true),
        MaxBodySetting = new(Listening, "--max-body", "OXSES_MAXBODY", "SIZE", "16MiB",
            "Largest body of a webhook, such as 512KiB or 16MiB; at most 256MiB"),
        PartitionsSetting = new(Listening, "--partitions", "OXSES_PARTITIONS", "NAMES", null,
            "Partitions whose alerts are taken, such as INS,DEV (default: all)"),
        MapSetting = new(Meaning, "--map", "OXSES_MAP", "MAP", null,
            "Where a field comes from: \"platform=platform,cluster,'prod';location=instance\""),
        StatusSetting = new(Meaning, "--status", "OXSES_STATUS", "STATUSES", MappingRules.DefaultStatuses,
            "Status by severity, in the dialect by status; ignore: no service; all others are down"),
        IgnoreSetting = new(Meaning, "--ignore", "OXSES_IGNORE", "ALERTS", MappingRules.DefaultIgnored,
            "Names of alerts that are about no service"),
        HeartbeatSetting = new(Meaning, "--heartbeat", "OXSES_HEARTBEAT", "ALERTS",
            MappingRules.DefaultHeartbeats, "Names of alerts that always fire, and are about no service"),
        PauseSetting = new(Meaning, "--pause", "OXSES_PAUSE", "TIME", "15m",
            "Longest \"for\" of your rules: so long a status may rest on no alert before it is unknown"),
        StaleAfterSetting = new(Meaning, "--stale-after", "OXSES_STALE_AFTER", "TIME", "25h",
            "An alert that Alertmanager has not repeated for so long is given up; more than repeat_interval"),
        ForgetSetting = new(Telling, "--forget", "OXSES_FORGET", "TIME", "30d",
            "A service without an alert for so long is left out of status and page"),
        OnixUrlSetting = new(Onix, "--onix-url", "OXSES_ONIX_URL", "URL", "http://localhost:8080",
            "Onix's web API; none: no Onix, the store alone"),
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
            "Where the database is kept (default: $STATE_DIRECTORY, else ses-data)"),
        RetentionSetting = new(Keeping, "--retention", "OXSES_RETENTION", "TIME", "400d",
            "How long facts are kept, such as 90d; at least 1d"),
        MaxSizeSetting = new(Keeping, "--max-size", "OXSES_MAX_SIZE", "SIZE", null,
            "Largest size of the database, such as 10GiB: the oldest facts go before it is reached"),
        MaxServicesSetting = new(Keeping, "--max-services", "OXSES_MAX_SERVICES", "COUNT", "100000",
            "Alerts of further services are quarantined; 1 to 10000000"),
        MaxAlertsSetting = new(Keeping, "--max-alerts", "OXSES_MAX_ALERTS", "COUNT", null,
            $"Alerts with further label sets are quarantined (default: {AlertsOfService} a service)"),
        NameSetting = new(Keeping, "--name", "OXSES_NAME", "NAME", null,
            "Of this SeS, which its facts carry (default: the stored one, at first the host's)"),
        LogLevelSetting = new(Telling, "--log-level", "OXSES_LOGLEVEL", "LEVEL", "Trace",
            "Least level logged: Panic, Fatal, Error, Warn, Info, Debug, Trace"),
        LogFormatSetting = new(Telling, "--log-format", "OXSES_LOGFORMAT", "FORMAT", "text", "text or json"),
        TzSetting = new(Telling, "--tz", "OXSES_TZ", "ZONE", "UTC",
            "Time zone of a report's periods and hours, and of notes, such as Europe/Berlin"),
        ServiceHoursSetting = new(Telling, "--service-hours", "OXSES_SERVICE_HOURS", "HOURS", null,
            "Report these alone: \"Mo-Fr 08:00-18:00; Sa 10:00-14:00\""),
        SloSetting = new(Telling, "--slo", "OXSES_SLO", "PERCENT", null,
            "Objective of a report, such as 99.9, or by platform 99.9,k8s-1=99.95"),
        MetricsSetting = new(Telling, "--metrics", "OXSES_METRICS", "BOOL", "true", "Serve GET /metrics");

    /// <summary>Every setting, in the order of --help; docs/configuration.md is held against it.</summary>
    public static IReadOnlyList<Setting> Settings { get; } =
    [
        PathSetting, PortSetting, AddressSetting, InnerPortSetting, HostsSetting, TlsCertSetting, TlsKeySetting,
        TlsClientCaSetting, AuthModeSetting, UsernameSetting, PasswordSetting, PasswordSetting.File,
        OidcIssuerSetting, OidcAudienceSetting, EditorUsernameSetting, EditorPasswordSetting, EditorPasswordSetting.File,
        MetricsAuthSetting, MaxBodySetting, PartitionsSetting,
        MapSetting, StatusSetting, IgnoreSetting, HeartbeatSetting, PauseSetting, StaleAfterSetting,
        OnixUrlSetting, OnixAuthModeSetting, OnixUsernameSetting, OnixPasswordSetting,
        OnixPasswordSetting.File, OnixClientIdSetting, OnixAppSecretSetting, OnixAppSecretSetting.File,
        OnixTokenUriSetting, OnixSkipVerifySetting, OnixCaFileSetting,
        DataDirSetting, RetentionSetting, MaxSizeSetting, MaxServicesSetting, MaxAlertsSetting, NameSetting,
        ForgetSetting, TzSetting, ServiceHoursSetting, SloSetting, LogLevelSetting, LogFormatSetting, MetricsSetting,
    ];

    /// <summary>What holds where no daemon has run yet.</summary>
    public static readonly TimeSpan DefaultPause = TimeSpan.FromMinutes(15),
        DefaultStaleAfter = TimeSpan.FromHours(25);

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
        var maxServices = source.Parse(MaxServicesSetting, v => ParseCount(v, 10_000_000), "1 to 10000000");
        var options = new Options
        {
            LogLevel = source.Text(LogLevelSetting)!.Equals("warning", StringComparison.OrdinalIgnoreCase)
                ? LogLevel.Warn : source.Enum<LogLevel>(LogLevelSetting),
            LogJson = source.OneOf(LogFormatSetting, "text", "json") == "json",
            Metrics = source.Bool(MetricsSetting),
            AuthMode = source.Enum<AuthMode>(AuthModeSetting),
            Path = source.Parse(PathSetting, ParsePath, "a path such as alerts or hooks/ses, no ?, # or %"),
            Port = PortOf(source, PortSetting),
            InnerPort = PortOf(source, InnerPortSetting),
            Address = AddressOf(source),
            Hosts = source.Optional(HostsSetting, ParseHosts,
                "names and addresses without a port, such as ses-1,10.0.0.1,[2001:db8::1]"),
            Username = source.Required(UsernameSetting),
            Password = source.SecretOf(PasswordSetting) ?? new Secret(""),
            EditorUsername = source.Required(EditorUsernameSetting),
            EditorPassword = source.SecretOf(EditorPasswordSetting),
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
            OnixPassword = source.SecretOf(OnixPasswordSetting) ?? new Secret(""),
            OnixClientId = source.Text(OnixClientIdSetting),
            OnixAppSecret = source.SecretOf(OnixAppSecretSetting),
            OnixTokenUri = source.Optional(OnixTokenUriSetting, ParseUrl, "an http or https URL"),
            OnixInsecureSkipVerify = skipVerify && caFile == null,
            OnixCaFile = caFile,
            DataDir = DataDirOf(flags, variables),
            Retention = source.Parse(RetentionSetting, ParseDays, "at least 1d, such as 90d or 2400h"),
            MaxBody = source.Parse(MaxBodySetting, ParseBodySize, "a size from 1KiB to 256MiB"),
            Partitions = source.Text(PartitionsSetting) is { Length: > 0 } names
                ? names.Split(',', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries)
                    .ToHashSet() : null,
            Mapping = new MappingRules(
                source.Text(MapSetting) is { Length: > 0 } ? source.Parse(MapSetting, FieldMap.Parse)
                    : FieldMap.Default,
                source.Parse(StatusSetting, MappingRules.ParseStatuses),
                source.Parse(IgnoreSetting, MappingRules.ParseNames),
                source.Parse(HeartbeatSetting, MappingRules.ParseNames))
            {
                Text = string.Join(MappingRules.Separator, new[]
                {
                    MapSetting, StatusSetting, IgnoreSetting, HeartbeatSetting,
                }.Select(source.Text)),
            },
            Name = source.Optional(NameSetting, ParseName, "1 to 200 characters, none of them a control"),
            Pause = source.Parse(PauseSetting, v => ParseTime(v, TimeSpan.Zero, TimeSpan.FromDays(7)),
                "0s to 7d, such as 15m"),
            StaleAfter = source.Parse(StaleAfterSetting,
                v => ParseTime(v, TimeSpan.FromMinutes(1), TimeSpan.FromDays(365)), "1m to 365d, such as 25h"),
            Forget = source.Parse(ForgetSetting,
                v => ParseTime(v, TimeSpan.FromHours(1), TimeSpan.FromDays(36500)), "1h to 36500d, such as 30d"),
            Counting = CountingOf(source),
            MaxServices = maxServices,
            MaxAlerts = source.Text(MaxAlertsSetting) is not { Length: > 0 } ? maxServices * AlertsOfService
                : source.Parse(MaxAlertsSetting, v => ParseCount(v, 100_000_000), "1 to 100000000"),
            MaxSize = source.Text(MaxSizeSetting) is not { Length: > 0 } ? null
                : source.Parse(MaxSizeSetting, ParseDatabaseSize, "a size from 16MiB to 100TiB"),
            Warnings = source.Warnings,
        };
        if (options.TlsKey != null)
            source.WarnIfOpen(TlsKeySetting, options.TlsKey);
        options.CheckTogether(source.Warnings);
        return options;
    }

    private const string Prefix = "OXSES_";

    /// <summary>The file of settings that the Go SeS read from its working directory.</summary>
    private const string ConfigFile = "config.toml";

    /// <summary>
    /// Refuses to start beside settings that the Go SeS would have read, and this one does not.
    /// </summary>
    /// <exception cref="OptionsException">The folder has them; the message names the variables to set.</exception>
    public static void CheckNoConfigFile(string folder)
    {
        var path = System.IO.Path.Combine(folder, ConfigFile);
        if (!File.Exists(path))
            return;
        var (section, variables) = ("", new List<string>());
        foreach (var line in File.ReadLines(path).Take(MaxConfigLines).Select(l => l.Trim()))
        {
            if (line is ['[', .. var inner, ']'])
                section = inner.Trim('[', ']', ' ');
            if (line.StartsWith('#') || line.Split('=', 2) is not [var key, _])
                continue;
            // [Onix] URL is OXSES_ONIX_URL, and so is Onix.URL; its own stand below another name, or none.
            var variable = Named(section + key) ?? Named(key);
            if (variable != null)
                variables.Add(variable);
        }
        if (variables.Count > 0)
            throw new OptionsException($"{ConfigFile} in the working directory is not read any more: set "
                + $"{string.Join(", ", variables.Distinct())} in the environment instead, and move the file away");

        static string? Named(string key) =>
            Settings.Select(s => s.Variable).FirstOrDefault(v => Joined(v) == Joined(Prefix + key));

        static string Joined(string name) => string.Concat(name.Where(char.IsAsciiLetterOrDigit)).ToUpperInvariant();
    }

    private const int MaxConfigLines = 10_000;

    private static string DataDirOf(
        IReadOnlyDictionary<string, string> flags, IReadOnlyDictionary<string, string> variables) =>
        flags.GetValueOrDefault(DataDirSetting.Flag) is { Length: > 0 } flag ? flag
        : variables.GetValueOrDefault(DataDirSetting.Variable) is { Length: > 0 } variable ? variable
        : variables.GetValueOrDefault("STATE_DIRECTORY") is { Length: > 0 } state ? state.Split(':')[0]
        : DefaultDataDir;

    public const string DefaultDataDir = "ses-data";

    /// <summary>
    /// The data directory of a command: where none is named, and none is in the working directory, that of the
    /// service on this host, as <c>deploy/ses.service</c> and <c>/etc/default/ses</c> have it.
    /// </summary>
    /// <param name="root">Of the file system.</param>
    public static string FindDataDir(
        IReadOnlyDictionary<string, string> flags, IReadOnlyDictionary<string, string> variables, string root = "/")
    {
        var dir = DataDirOf(flags, variables);
        if (flags.ContainsKey(DataDirSetting.Flag) || dir != DefaultDataDir || Directory.Exists(dir))
            return dir;
        try
        {
            var set = DataDirSetting.Variable + "=";
            if (File.ReadLines(System.IO.Path.Combine(root, "etc/default/ses"))
                .Select(l => l.Trim()).LastOrDefault(l => l.StartsWith(set, StringComparison.Ordinal))
                ?[set.Length..].Trim('"', '\'') is { Length: > 0 } named)
                return named;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // There is no service, or its settings are not for this user.
        }
        // Under DynamicUser= a link to where only root may look.
        var service = System.IO.Path.Combine(root, "var/lib/ses");
        return Directory.Exists(service) || new FileInfo(service).LinkTarget != null ? service : dir;
    }

    /// <summary>How reports count, as the environment says.</summary>
    /// <exception cref="OptionsException">A value that cannot be used.</exception>
    public static Counting CountingOf(IReadOnlyDictionary<string, string> variables) =>
        CountingOf(new SettingSource(new Dictionary<string, string>(), variables));

    /// <summary>In which a command reads and tells times.</summary>
    /// <exception cref="OptionsException">A value that cannot be used.</exception>
    public static Zone ZoneOf(
        IReadOnlyDictionary<string, string> flags, IReadOnlyDictionary<string, string> variables) =>
        new SettingSource(flags, variables).Parse(TzSetting, Zone.Parse);

    /// <summary>How long a flag of a command says.</summary>
    /// <exception cref="OptionsException">It says nothing of the kind.</exception>
    public static TimeSpan TimeOf(Setting setting, string text) =>
        ParseTime(text, TimeSpan.FromSeconds(1), NoteBook.MaxAhead) ?? throw Bad(setting, text, "such as 4h, 90m or 2d");

    private static Counting CountingOf(SettingSource source) => new(null, source.Parse(TzSetting, Zone.Parse),
        source.Optional(ServiceHoursSetting, ServiceHours.Parse), source.Optional(SloSetting, Objectives.Parse));

    /// <summary>The user and the password that are given, by flags before variables; null: none are.</summary>
    /// <exception cref="OptionsException">A value that cannot be used.</exception>
    public static (string Name, string Password)? CredentialsOf(
        IReadOnlyDictionary<string, string> flags, IReadOnlyDictionary<string, string> variables)
    {
        var source = new SettingSource(flags, variables);
        var isGiven = new[] { UsernameSetting, PasswordSetting, PasswordSetting.File }.Any(source.IsGiven);
        return isGiven ? (source.Required(UsernameSetting), source.SecretOf(PasswordSetting)?.Value ?? "") : null;
    }

    /// <summary>Where a SeS of these settings is asked on its own host.</summary>
    /// <returns>Also whether it takes only clients that have a certificate.</returns>
    /// <exception cref="OptionsException">A value that cannot be used.</exception>
    public static (Uri Url, bool NeedsCertificate) OwnUrl(
        IReadOnlyDictionary<string, string> flags, IReadOnlyDictionary<string, string> variables)
    {
        var source = new SettingSource(flags, variables);
        var place = new IPEndPoint(AddressOf(source) ?? IPAddress.Any, PortOf(source, PortSetting));
        return (OwnUrl(place, source.Text(TlsCertSetting) is { Length: > 0 }),
            source.Text(TlsClientCaSetting) is { Length: > 0 });
    }

    /// <summary>Where this host reaches what listens there.</summary>
    public static Uri OwnUrl(IPEndPoint place, bool isTls)
    {
        var address = place.Address.Equals(IPAddress.Any) ? IPAddress.Loopback
            : place.Address.Equals(IPAddress.IPv6Any) ? IPAddress.IPv6Loopback : place.Address;
        return new Uri($"{(isTls ? "https" : "http")}://{new IPEndPoint(address, place.Port)}");
    }

    /// <summary>A BOOL of a command; false when it is not given.</summary>
    /// <exception cref="OptionsException">It is neither true nor false.</exception>
    public static bool BoolOf(Setting setting, IReadOnlyDictionary<string, string> flags) =>
        flags.ContainsKey(setting.Flag)
        && new SettingSource(flags, new Dictionary<string, string>()).Bool(setting);

    private static int PortOf(SettingSource source, Setting setting) =>
        source.Parse(setting, ParsePort, "a number from 0 to 65535");

    private static IPAddress? AddressOf(SettingSource source) =>
        source.Optional(AddressSetting, ParseAddress, "an address such as 127.0.0.1 or ::1");

    private void CheckTogether(List<string> warnings)
    {
        Need(OnixUrl != null && OnixAuthMode == AuthMode.Oidc, $"{OnixAuthModeSetting} oidc",
            (OnixTokenUriSetting, OnixTokenUri?.AbsoluteUri), (OnixClientIdSetting, OnixClientId),
            (OnixAppSecretSetting, OnixAppSecret?.Value));
        Need(AuthMode == AuthMode.Oidc, $"{AuthModeSetting} oidc",
            (OidcIssuerSetting, OidcIssuer), (OidcAudienceSetting, OidcAudience));
        Need(TlsKey != null || TlsClientCa != null,
            $"{(TlsKey != null ? TlsKeySetting : TlsClientCaSetting)}", (TlsCertSetting, TlsCert));
        Need(TlsCert != null, $"{TlsCertSetting}", (TlsKeySetting, TlsKey));
        if (OidcIssuer?.StartsWith("http:", StringComparison.OrdinalIgnoreCase) == true)
            warnings.Add($"the keys of tokens are fetched in the clear: {OidcIssuerSetting} is no https URL");
        if (MetricsAuth && AuthMode == AuthMode.None)
            warnings.Add($"{MetricsAuthSetting} closes nothing, since {AuthModeSetting} is none");
        // Prometheus and Alertmanager listen so, too: it is told, not changed.
        if (AuthMode == AuthMode.None && TlsClientCa == null && IsReachable)
            warnings.Add("whoever reaches this host may post alerts and read the history: set "
                + $"{AuthModeSetting}, or {AddressSetting} to 127.0.0.1");
        if (EditorPassword != null && string.IsNullOrWhiteSpace(EditorPassword.Value))
            throw new OptionsException($"{EditorPasswordSetting}: the password is empty");
        if (EditorPassword != null && AuthMode == AuthMode.Basic && EditorUsername == Username)
            throw new OptionsException($"{EditorUsernameSetting}: '{Username}' is the user of {UsernameSetting} already: "
                + "who sends alerts is not to write notes");
        if ((AuthMode == AuthMode.Basic || EditorPassword != null) && TlsCert == null && IsReachable)
            warnings.Add($"passwords go in the clear: set {TlsCertSetting}, or {AddressSetting} to 127.0.0.1 "
                + "behind a proxy with TLS");
        var flaw = FlawOf(Password.Value);
        if (IsRefused(Password.Value))
            throw new OptionsException($"{PasswordSetting}: the password is {flaw}, which is refused where others "
                + $"reach SeS: set another, or {AddressSetting} to 127.0.0.1");
        if (flaw != null)
            warnings.Add($"the password is {flaw}: set {PasswordSetting}");
        if (OnixUrl?.Scheme == Uri.UriSchemeHttps && OnixInsecureSkipVerify)
            warnings.Add($"Onix's certificate is not verified: set {OnixCaFileSetting}, "
                + $"or {OnixSkipVerifySetting} to false");
    }

    /// <summary>From other hosts.</summary>
    private bool IsReachable => Address == null || !IPAddress.IsLoopback(Address);

    /// <summary>Others could sign in with it.</summary>
    private bool IsRefused(string password) => IsReachable && FlawOf(password) != null;

    private string? FlawOf(string password) => AuthMode != AuthMode.Basic ? null
        : string.IsNullOrWhiteSpace(password) ? "empty"
        : password == PasswordSetting.Default ? "the documented default" : null;

    /// <summary>The secrets that files hold, and whether another one of each could be used.</summary>
    public IEnumerable<(Setting Setting, Secret Secret, Func<string, bool> IsUsable)> SecretFiles =>
        new (Setting Setting, Secret? Secret, Func<string, bool> IsUsable)[]
        {
            (PasswordSetting, Password, p => !IsRefused(p)),
            (EditorPasswordSetting, EditorPassword, p => !string.IsNullOrWhiteSpace(p)),
            (OnixPasswordSetting, OnixPassword, _ => true), (OnixAppSecretSetting, OnixAppSecret, _ => true),
        }.Where(s => s.Secret?.Path != null).Select(s => (s.Setting.File, s.Secret!, s.IsUsable));

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

    /// <summary>
    /// A host as hosts are compared: without its port and a dot at its end, in lower case, an IPv6 address
    /// in brackets and its short form (RFC 5952); null if it is none.
    /// </summary>
    /// <param name="authority">As a Host field has it (RFC 9110, 7.2).</param>
    public static string? HostOf(string authority)
    {
        var colon = authority.IndexOf(':', Math.Max(0, authority.IndexOf(']', StringComparison.Ordinal)));
        if (colon >= 0 && authority.AsSpan(colon + 1).ContainsAnyExceptInRange('0', '9'))
            return null;
        var name = colon < 0 ? authority : authority[..colon];
        if (name is ['[', .. var inner, ']'])
            return IPAddress.TryParse(inner, out var address)
                && address.AddressFamily == AddressFamily.InterNetworkV6 ? $"[{address}]" : null;
        name = name.EndsWith('.') ? name[..^1] : name;
        return name.Length > 0 && name.All(c => char.IsAsciiLetterOrDigit(c) || "-._".Contains(c))
            ? name.ToLowerInvariant() : null;
    }

    private static HashSet<string>? ParseHosts(string text)
    {
        // With a port already, a second one makes it none.
        var hosts = text.Split(',', StringSplitOptions.TrimEntries)
            .Select(h => HostOf(h + ":0") ?? "").ToHashSet();
        return hosts.Contains("") ? null : hosts;
    }

    public static Uri? ParseUrl(string text) =>
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

    private static TimeSpan? ParseTime(string text, TimeSpan least, TimeSpan most)
    {
        TimeSpan? unit = text is [.., var letter] ? letter switch
        {
            's' => TimeSpan.FromSeconds(1),
            'm' => TimeSpan.FromMinutes(1),
            'h' => TimeSpan.FromHours(1),
            'd' => TimeSpan.FromDays(1),
            _ => null,
        } : null;
        return unit is { } one && ParseCount(text[..^1], int.MaxValue, 0) is { } count
            && one * count >= least && one * count <= most ? one * count : null;
    }

    private static int? ParseCount(string text, int most, int least = 1) =>
        int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out var count)
            && count >= least && count <= most ? count : null;

    private static string? ParseName(string text) =>
        text.Length <= 200 && !text.Any(char.IsControl) ? text : null;

    private static readonly (string Name, long Size)[] SizeUnits =
        [("TiB", 1L << 40), ("GiB", 1L << 30), ("MiB", 1L << 20), ("KiB", 1L << 10), ("", 1)];

    private static long? ParseSize(string text, long least, long most)
    {
        var (name, size) = SizeUnits.First(u => text.EndsWith(u.Name, StringComparison.Ordinal));
        return long.TryParse(
            text[..^name.Length], NumberStyles.None, CultureInfo.InvariantCulture, out var count)
            && count <= most / size && count * size >= least ? count * size : null;
    }

    private static int? ParseBodySize(string text) => (int?)ParseSize(text, 1024, 256 * 1024 * 1024);

    private static long? ParseDatabaseSize(string text) => ParseSize(text, 16L << 20, 100L << 40);

    public static OptionsException Bad(Setting setting, string value, string allowed)
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
            // Manifests and env files leave variables empty that they do not set.
            (_flags, _variables) = (flags, variables.Where(v => v.Value != "").ToDictionary());
            foreach (var name in variables.Keys.Where(v => v.StartsWith(Prefix, StringComparison.Ordinal)))
            {
                if (Settings.Any(s => s.Variable == name))
                    continue;
                Warnings.Add($"{name} is no setting of SeS and is ignored"
                    + NearestName.Of(name, Settings.Select(s => s.Variable), Prefix));
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

        /// <param name="parse">Throws a <see cref="FormatException"/> that tells what is allowed.</param>
        public T Parse<T>(Setting setting, Func<string, T> parse) where T : class
        {
            try
            {
                return parse(Text(setting) ?? "");
            }
            catch (FormatException e)
            {
                throw Bad(setting, Text(setting) ?? "", e.Message);
            }
        }

        /// <summary>Null when there is none, or an empty one.</summary>
        public T? Optional<T>(Setting setting, Func<string, T?> parse, string allowed) where T : class =>
            Text(setting) is null or "" ? null : Parse(setting, parse, allowed);

        /// <summary>Null when there is none, or an empty one.</summary>
        /// <param name="parse">Throws a <see cref="FormatException"/> that tells what is allowed.</param>
        public T? Optional<T>(Setting setting, Func<string, T> parse) where T : class =>
            Text(setting) is null or "" ? null : Parse(setting, parse);

        /// <summary>The path of a file that must be there; null when none is named.</summary>
        public string? Path(Setting setting) => Text(setting) is not { Length: > 0 } path ? null
            : File.Exists(path) ? path : throw Bad(setting, path, "an existing PEM file");

        /// <summary>As Go's ParseBool, too, from which people come.</summary>
        public bool Bool(Setting setting) => Parse(setting, v => v.ToLowerInvariant() switch
        {
            "true" or "1" or "t" or "yes" or "on" => true,
            "false" or "0" or "f" or "no" or "off" => false,
            _ => (bool?)null,
        }, "true, false");

        public string OneOf(Setting setting, params string[] allowed) =>
            Parse(setting, v => Array.Find(allowed, a => a.Equals(v, StringComparison.OrdinalIgnoreCase)),
                string.Join(", ", allowed));

        public T Enum<T>(Setting setting) where T : struct, Enum =>
            System.Enum.Parse<T>(OneOf(setting, [.. System.Enum.GetNames<T>().Select(
                n => char.IsLower(setting.Default![0]) ? n.ToLowerInvariant() : n)]), ignoreCase: true);

        /// <summary>
        /// The secret itself, or what the file holds that is named instead, without line ends; else what
        /// systemd hands over by the flag's name (systemd.exec(5), LoadCredential).
        /// </summary>
        public Secret? SecretOf(Setting setting)
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
                    return new Secret(secret);
            }
            var credential = _variables.GetValueOrDefault("CREDENTIALS_DIRECTORY") is { Length: > 0 } dir
                ? System.IO.Path.Combine(dir, setting.Flag[2..]) : null;
            return File.Exists(credential) ? ReadSecret(setting.File, credential)
                : setting.Default is { } text ? new Secret(text) : null;
        }

        /// <summary>
        /// Warns of a secret that every user of the host can read. What a container engine or systemd hands over
        /// lies in memory, where nobody else sees it, often as a link to a file with the mode 0644.
        /// </summary>
        public void WarnIfOpen(Setting setting, string path)
        {
            if ((File.GetUnixFileMode(path) & UnixFileMode.OtherRead) != 0
                && new DriveInfo(path).DriveType != DriveType.Ram)
                Warnings.Add($"{setting}: every user of this host can read '{path}': chmod o= it");
        }

        private Secret ReadSecret(Setting setting, string path)
        {
            try
            {
                var secret = new Secret(Secret.Read(path), path);
                WarnIfOpen(setting, path);
                return secret;
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
            {
                throw Bad(setting, path, "a file that can be read (" + e.Message + ")");
            }
        }
    }
}

/// <summary>What somebody who mistyped a name may have meant.</summary>
internal static class NearestName
{
    /// <returns>How a message goes on that says that there is no such name; empty: none is near.</returns>
    /// <param name="prefix">What all names begin with.</param>
    public static string Of(string name, IEnumerable<string> names, string prefix = "")
    {
        var rest = name.Length > prefix.Length ? name[prefix.Length..] : name;
        var nearest = names.MinBy(n => Distance(n[prefix.Length..], rest));
        // Of one letter any is near.
        return nearest != null
            && Distance(nearest[prefix.Length..], rest) <= Math.Min(rest.Length - 1, Math.Max(2, rest.Length / 3))
            ? $"; the nearest is {nearest}" : "";
    }

    /// <summary>Levenshtein's.</summary>
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

// ================================== 2. Log ===================================
//
// One line an event on standard error, as text or JSON, with fields after the message. Values come
// from strangers, so control characters are always escaped; all others stay as they are. Nothing is logged per alert that a busy
// site would drown in: what a stranger can cause goes through Often, which lets one line of a kind
// pass every ten seconds, with the number of those held back.

/// <param name="isJournal">systemd's journal reads it: it has the time, and takes the level from a prefix.</param>
internal sealed class Log(
    LogLevel least, bool json, TextWriter output, TimeProvider clock, bool isJournal = false)
{
    private static readonly TimeSpan OftenEvery = TimeSpan.FromSeconds(10);

    /// <summary>In characters; an exception with its places has fewer.</summary>
    private const int LongestValue = 16 * 1024;

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
        var line = (isJournal ? JournalPrefix(level) : "")
            + (json ? Json(level, message, fields) : Text(level, message, fields));
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
        var line = new StringBuilder(isJournal ? "" : Now() + " ")
            .Append(level.ToString().ToUpperInvariant().PadRight(5)).Append(' ')
            .Append(message.Any(Terminal.Obeys) ? Escaped(message) : Whole(message));
        foreach (var (key, value) in fields)
        {
            var text = TextOf(value);
            line.Append(' ').Append(key).Append('=');
            if (text.Length > 0 && !text.Any(c => c is <= ' ' or '"' || char.IsWhiteSpace(c) || Terminal.Obeys(c)))
                line.Append(text);
            else
                line.Append('"').Append(Escaped(text)).Append('"');
        }
        return line.ToString();
    }

    private static string TextOf(object? value)
    {
        var text = Convert.ToString(value, CultureInfo.InvariantCulture) ?? "";
        return text.Length <= LongestValue ? text : text[..LongestValue] + "…";
    }

    /// <summary>As JSON has it, and also what turns text around or hides in it.</summary>
    private static string Escaped(string text) => WithoutHidden(
        JsonEncodedText.Encode(Whole(text), ReadableJson.Options.Encoder).ToString());

    private static string WithoutHidden(string json) => json.Any(Terminal.Obeys) ? string.Concat(json.Select(
        c => Terminal.Obeys(c) ? string.Create(CultureInfo.InvariantCulture, $"\\u{(int)c:X4}") : $"{c}")) : json;

    /// <summary>sd-daemon(3): the level of syslog.</summary>
    public static string JournalPrefix(LogLevel level) => level switch
    {
        <= LogLevel.Error => "<3>",
        LogLevel.Warn => "<4>",
        LogLevel.Info => "<6>",
        _ => "<7>",
    };

    /// <summary>Half a character, which no encoding can write, becomes U+FFFD.</summary>
    private static string Whole(string text) => Encoding.UTF8.GetString(Encoding.UTF8.GetBytes(text));

    private string Json(LogLevel level, string message, (string Key, object? Value)[] fields)
    {
        var buffer = new ArrayBufferWriter<byte>();
        using (var writer = new Utf8JsonWriter(buffer, ReadableJson.Options))
        {
            writer.WriteStartObject();
            writer.WriteString("time", Now());
            writer.WriteString("level", level.ToString().ToLowerInvariant());
            writer.WriteString("msg", Whole(message));
            foreach (var (key, value) in fields)
                writer.WriteString(key, Whole(TextOf(value)));
            writer.WriteEndObject();
        }
        return WithoutHidden(Encoding.UTF8.GetString(buffer.WrittenSpan));
    }
}

/// <summary>JSON that people read too: only what JSON demands is escaped.</summary>
internal static class ReadableJson
{
    public static readonly JsonWriterOptions Options =
        new() { Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping };
}

/// <summary>Text from strangers, as a terminal may get it.</summary>
internal static class Terminal
{
    /// <summary>Control characters, C1 too, and those that turn text around or hide in it.</summary>
    public static bool Obeys(char c) =>
        char.IsControl(c) || char.GetUnicodeCategory(c) == UnicodeCategory.Format;

    /// <summary>One line, with U+FFFD for each character that a terminal obeys.</summary>
    public static string Plain(string text) => string.Concat(text.Select(c => Obeys(c) ? '\ufffd' : c));

    /// <summary>How many columns of a terminal a text takes.</summary>
    public static int Columns(string text) => Ascii.IsValid(text) ? text.Length : text.EnumerateRunes().Sum(Columns);

    /// <summary>As much of a text as fits, with an ellipsis at its end if that is not all.</summary>
    public static string Cut(string text, int columns)
    {
        if (Columns(text) <= columns)
            return text;
        var (length, left) = (0, columns - 1);
        foreach (var rune in text.EnumerateRunes())
        {
            left -= Columns(rune);
            if (left < 0)
                break;
            length += rune.Utf16SequenceLength;
        }
        return text[..length] + "…";
    }

    /// <summary>Blocks of which all but a few take two columns: East Asian Width (Unicode, annex 11), W and F.</summary>
    private static readonly (int First, int Last)[] Wide =
    [
        (0x1100, 0x115F), (0x2E80, 0x303E), (0x3041, 0xA4CF), (0xA960, 0xA97F), (0xAC00, 0xD7A3), (0xF900, 0xFAFF),
        (0xFE30, 0xFE6F), (0xFF01, 0xFF60), (0xFFE0, 0xFFE6), (0x1F300, 0x1F64F), (0x1F680, 0x1F6FF),
        (0x1F900, 0x1F9FF), (0x1FA70, 0x1FAFF), (0x20000, 0x3FFFD),
    ];

    private static int Columns(Rune rune) =>
        Rune.GetUnicodeCategory(rune) is UnicodeCategory.NonSpacingMark or UnicodeCategory.EnclosingMark ? 0
        : Array.Exists(Wide, w => rune.Value >= w.First && rune.Value <= w.Last) ? 2 : 1;
}

/// <summary>Quantities as people read them.</summary>
internal static class Quantity
{
    /// <summary>Bytes in their largest unit.</summary>
    public static string Sized(double bytes)
    {
        string[] units = ["B", "KiB", "MiB", "GiB", "TiB"];
        var unit = 0;
        for (; bytes >= 1024 && unit < units.Length - 1; unit++)
            bytes /= 1024;
        return string.Create(CultureInfo.InvariantCulture, $"{bytes:0.#} {units[unit]}");
    }

    /// <summary>A span of time as a setting has it, such as 15m.</summary>
    public static string Setting(TimeSpan time)
    {
        var seconds = (long)time.TotalSeconds;
        var (unit, length) = new[] { ("d", 86400), ("h", 3600), ("m", 60), ("s", 1) }
            .First(u => seconds % u.Item2 == 0 && (seconds > 0 || u.Item1 == "s"));
        return $"{seconds / length}{unit}";
    }

    /// <summary>A span of time with its two largest units.</summary>
    public static string Lasted(TimeSpan time) => time switch
    {
        { TotalSeconds: < 0 } => "0 s",
        { TotalSeconds: < 10 } => time.TotalSeconds.ToString("0.###", CultureInfo.InvariantCulture) + " s",
        { TotalMinutes: < 1 } => $"{time.Seconds} s",
        { TotalHours: < 1 } => $"{time.Minutes} min {time.Seconds} s",
        { TotalDays: < 1 } => $"{time.Hours} h {time.Minutes} min",
        _ => $"{time.Days} d {time.Hours} h",
    };
}

/// <summary>Words beside an answer, for whoever reads them, if anybody does.</summary>
internal static class StandardError
{
    public static void WriteLine(string line)
    {
        try
        {
            Console.Error.WriteLine(Terminal.Plain(line));
        }
        catch (Exception e) when (Disk.Refused(e))
        {
            // It is closed, or its file takes no more; the exit code tells.
        }
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
    public static string Format(DateTime utc)
    {
        Span<byte> text = stackalloc byte[Longest];
        return Encoding.ASCII.GetString(text[..Format(utc, text)]);
    }

    public const int Longest = 28;

    /// <returns>How many bytes were written.</returns>
    public static int Format(DateTime utc, Span<byte> text)
    {
        DateTime.SpecifyKind(utc, DateTimeKind.Utc).TryFormat(text, out _, "O", CultureInfo.InvariantCulture);
        var length = text[..(Longest - 1)].TrimEnd((byte)'0').TrimEnd((byte)'.').Length;
        text[length] = (byte)'Z';
        return length + 1;
    }

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
        "accept", "connections", "handshakes", "handshake", "handshake_timeout", "idle", "head_timeout",
        "head_cut", "head_size", "malformed", "version", "transfer_encoding", "expectation", "host", "body_timeout",
        "body_cut",
        "body_size", "content_encoding", "bytes_in_flight", "in_flight", "listener", "answer_timeout",
    ];

    /// <summary>Why what was posted will never be taken as it is: the gate's reasons, then those of Web.</summary>
    public static IReadOnlyList<string> BadReasons { get; } =
    [
        "handshake", "head_timeout", "head_cut", "head_size", "malformed", "version", "transfer_encoding", "expectation",
        "host", "body_timeout", "body_cut", "body_size", "content_encoding",
        "path", "partition", "method", "origin", "credentials", "length", "payload",
    ];

    public CollectorRegistry Registry { get; } = Prometheus.Metrics.NewCustomRegistry();

    public readonly Counter Alerts, Truncated, BadRequests, Requests;
    public readonly Counter OnixRequests, OnixChanges, Defects;
    public readonly Counter ConnectionsTotal, HttpRefused, AuthFailures, TlsReloads, Questions;
    public readonly Histogram WebhookDuration, CommitDuration, OnixDuration, QuestionDuration;
    public readonly Gauge StoreSize, StoreFree, Underived, Damage, Services, LabelSets, Quarantined;
    public readonly Gauge Backlog, BacklogAge, Barred, ConfirmationAge, Ready;
    public readonly Gauge Connections, TlsExpiry, Watched, UnderMaintenance;

    private readonly Lock _gate = new();
    // Guarded by _gate.
    private Task _last = Task.CompletedTask;
    private Task<byte[]>? _next;

    public Meters(string version, string commit, string openssl = "unknown")
    {
        var make = Prometheus.Metrics.WithCustomRegistry(Registry);
        DotNetStats.Register(Registry);
        Counter Count(string name, string help, params string[] labels) =>
            make.CreateCounter(name, help, labels);
        Gauge Level(string name, string help, params string[] labels) => make.CreateGauge(name, help, labels);
        Histogram Time(string name, string help, params string[] labels) =>
            make.CreateHistogram(name, help, labels, new HistogramConfiguration { Buckets = Seconds });

        Alerts = Count("ses_alerts_total", "Alerts received: new (it brought something), known (a copy), "
            + "ignored, heartbeat (about no service), quarantined, not_taken (of other partitions).",
            "outcome");
        Truncated = Count("ses_alerts_truncated_total", "Alerts that Alertmanager cut off before sending.");
        BadRequests = Count("ses_bad_requests_total",
            "Posts that could not be taken, and never will as they are, by the reason.", "reason");
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
            "Requests answered 401: missing, scheme (of another kind), wrong; 503: unjudged.", "reason");
        TlsExpiry = Level("ses_tls_certificate_expiry_timestamp_seconds",
            "When the certificate in use expires, in Unix time; 0 without TLS.");
        TlsReloads = Count("ses_tls_reloads_total", "Changed certificates: loaded, refused.", "outcome");
        StoreSize = Level("ses_store_bytes", "Size of the database and its log.");
        StoreFree = make.CreateGauge("ses_store_free_bytes", "Bytes that are free on the database's disk.",
            new GaugeConfiguration { SuppressInitialValue = true });
        CommitDuration = Time("ses_store_commit_duration_seconds",
            "Time to write and flush what waiting requests brought.");
        Underived = Level("ses_store_underived_observations",
            "Observations that are on disk, and not in the timeline yet.");
        Damage = Level("ses_store_damaged", "1 once a fault was found in the database: see ses check.");
        Services = Level("ses_services", "Services that SeS knows of.");
        LabelSets = Level("ses_label_sets", "Alerts, by their labels, that SeS knows of.");
        Quarantined = Level("ses_quarantined_alerts", "Alerts in quarantine.");
        Watched = Level("ses_watched", "1 while a heartbeat beats: somebody watches; 0 while it is silent.",
            "partition", "platform", "heartbeat");
        UnderMaintenance = Level("ses_under_maintenance",
            "Services under announced maintenance, of partitions that have any.", "partition");
        Backlog = Level("ses_onix_backlog_services",
            "Services with changes that Onix has not confirmed, refused ones too.");
        BacklogAge = Level("ses_onix_backlog_oldest_seconds", "Since the first of them waits.");
        OnixRequests = Count("ses_onix_requests_total", "Requests to Onix.", "request", "outcome");
        OnixDuration = Time("ses_onix_request_duration_seconds", "Duration of requests to Onix.", "request");
        OnixChanges = Count("ses_onix_changes_total",
            "Changes by what became of them: recorded, unchanged (Onix had it), "
            + "late (Onix held something later), barred (Onix refuses), dropped (refused for 30 days).",
            "outcome");
        Barred = Level("ses_onix_barred_services", "Services whose change Onix refuses.");
        ConfirmationAge = Level("ses_onix_confirmation_age_seconds", "Since Onix last confirmed anything.");
        Ready = Level("ses_ready", "1 while alerts can be made durable.");
        Defects = Count("ses_defects_total", "Exceptions that nothing expected; each is in the log.");
        make.CreateGauge("ses_build_info", "What runs here.", "version", "commit", "openssl")
            .WithLabels(version, commit, openssl).Set(1);
        Preset(Alerts, "new", "known", "ignored", "heartbeat", "quarantined", "not_taken");
        Preset(HttpRefused, [.. RefusalReasons]);
        Preset(BadRequests, [.. BadReasons]);
        Preset(AuthFailures, "missing", "scheme", "wrong", "unjudged");
        Preset(TlsReloads, "loaded", "refused");
        Preset(OnixChanges, "recorded", "unchanged", "late", "barred", "dropped");
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
// Reads the bodies of Alertmanager's webhook and of Prometheus, and maps each alert in them to a service and
// its status, as the store takes it. Each alert is read on its own, so that one bad field spoils one alert,
// and without an exception, so that a bad one costs no more than a good one. An alert with the labels
// "status" and "facet" is in the SeS dialect, and its status is that label; any other is a stock alert, and
// its severity decides its status. Alerts that cannot be mapped are quarantined, with a reason.

/// <summary>Who sends an alert: Alertmanager's webhook, or Prometheus itself.</summary>
internal enum AlertSource { Webhook = 0, Prometheus = 1 }

/// <summary>The five fields that identify a service. A missing location is the empty text.</summary>
internal readonly record struct ServiceKey(
    string Partition, string Platform, string Service, string Facet, string Location)
{
    public override string ToString() => $"{Partition}/{Platform}/{Service}/{Facet}/{Location}";
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
/// <param name="Rule">Of Prometheus's alone: the name of the rule.</param>
internal sealed record IncomingAlert(
    ServiceKey Service, bool Dialect, AlertSource Source, string Sender, string Labels, string Status,
    DateTime Starts, DateTime? Ends, string Description, DateTime? ValidUntil = null, bool Uncertain = false,
    string Rule = "");

/// <summary>An alert that cannot be mapped to a service, whole.</summary>
/// <param name="Identity">Fingerprint, status, start, end and reason: copies of it are kept once.</param>
/// <param name="Raw">The alert as it came, without line breaks.</param>
internal sealed record UnmappableAlert(
    string Identity, string Fingerprint, string Alertname, string Reason, byte[] Raw);

/// <summary>Is thrown when a body as a whole is unusable; the message is the reason, a sentence.</summary>
internal sealed class PayloadException(string message, int code = 400) : Exception(message)
{
    /// <summary>Of the answer.</summary>
    public int Code => code;
}

/// <summary>Where the value of a field comes from.</summary>
internal enum FieldSourceKind { Label, AnnotationFirst, Literal, Partition, AlertName }

internal readonly record struct FieldSource(FieldSourceKind Kind, string Name);

/// <summary>The sources of each field, of which the first that is present and not empty counts.</summary>
internal sealed class FieldMap
{
    private static readonly string[] Fields = ["platform", "service", "facet", "location", "description"];

    private static readonly FieldSource InPartition = new(FieldSourceKind.Partition, "");

    public static FieldMap Default { get; } = new(
        new()
        {
            ["platform"] = [.. Labels("platform", "cluster"), InPartition],
            ["service"] = Labels("service"),
            ["facet"] = Labels("facet"),
            ["location"] = [new(FieldSourceKind.AnnotationFirst, "location")],
            ["description"] = Labels("description"),
        },
        new()
        {
            ["platform"] = [.. Labels("platform", "cluster"), InPartition],
            ["service"] = [.. Labels("service", "job", "app", "app_kubernetes_io_name"),
                new(FieldSourceKind.AlertName, "")],
            ["facet"] = Labels("facet", "alertname"),
            ["location"] = Labels("location", "instance"),
            ["description"] = Labels("summary", "description", "message"),
        });

    private readonly Dictionary<string, FieldSource[]> _dialect, _stock;

    private FieldMap(Dictionary<string, FieldSource[]> dialect, Dictionary<string, FieldSource[]> stock) =>
        (_dialect, _stock) = (dialect, stock);

    private static FieldSource[] Labels(params string[] names) =>
        [.. names.Select(n => new FieldSource(FieldSourceKind.Label, n))];

    public FieldSource[] Of(string field, bool stock) => (stock ? _stock : _dialect)[field];

    /// <summary>
    /// Reads <c>platform=platform,cluster,'prod';location=instance</c>: the sources of the fields named
    /// are replaced for both kinds of alert; a text in single quotes is a literal.
    /// </summary>
    /// <exception cref="FormatException">What is allowed instead.</exception>
    public static FieldMap Parse(string text)
    {
        var map = new FieldMap(new(Default._dialect), new(Default._stock));
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

/// <summary>The alerts of one body.</summary>
/// <param name="UnmappableAlerts">Each once, the first of them whole.</param>
/// <param name="MoreUnmappable">All others: copies, and what came after those.</param>
/// <param name="Ignored">Alerts that are about no service, by name, severity or status.</param>
/// <param name="Heartbeats">Copies of alerts that always fire.</param>
/// <param name="Truncated">Alerts that Alertmanager cut off before sending.</param>
internal sealed record ReceivedAlerts(
    IReadOnlyList<IncomingAlert> Alerts, IReadOnlyList<UnmappableAlert> UnmappableAlerts, long MoreUnmappable,
    long Ignored, long Heartbeats, long Truncated)
{
    public AlertSource Source { get; init; }

    /// <summary>What its heartbeats say, the last copy of each.</summary>
    public IReadOnlyCollection<Beat> Beats { get; init; } = [];

    /// <summary>Each alert of the body has a service.</summary>
    public bool IsAllMapped =>
        Alerts.Count > 0 && UnmappableAlerts.Count == 0 && Ignored == 0 && Heartbeats == 0;
}

/// <summary>A copy of an alert that always fires: whoever sent it is there.</summary>
/// <param name="Platform">For which it speaks; empty: for its partition.</param>
/// <param name="Name">As --heartbeat has it.</param>
/// <param name="Alert">A hash of sender and labels: each alert of this name beats for itself.</param>
/// <param name="Ends">Alertmanager says that nobody renewed it; null: it fires.</param>
internal sealed record Beat(string Platform, string Name, long Alert, AlertSource Source, DateTime? Ends);

/// <summary>What alerts mean, by the settings.</summary>
/// <param name="Statuses">
/// By severity, of the dialect by status, in any case; <see cref="Ignore"/>: the alert is left out.
/// </param>
/// <param name="Ignored">Names of alerts that are about no service, in any case.</param>
/// <param name="Heartbeats">Names of alerts that always fire, in any case; they are looked for first.</param>
internal sealed record MappingRules(
    FieldMap Fields, IReadOnlyDictionary<string, string> Statuses, IReadOnlySet<string> Ignored,
    HashSet<string> Heartbeats)
{
    public const string DefaultStatuses = "warning=degraded,info=ignore,none=ignore",
        DefaultIgnored = "InfoInhibitor,DatasourceNoData,DatasourceError",
        DefaultHeartbeats = "Watchdog,DeadMansSwitch", Ignore = "ignore";

    public static MappingRules Default { get; } =
        Parse(string.Join(Separator, "", DefaultStatuses, DefaultIgnored, DefaultHeartbeats));

    /// <summary>Stands in no setting.</summary>
    public const char Separator = '\u001e';

    /// <summary>The settings that made it: --map, --status, --ignore, --heartbeat.</summary>
    public required string Text { get; init; }

    /// <summary>Reads what <see cref="Text"/> gave.</summary>
    /// <exception cref="FormatException">Another SeS wrote it.</exception>
    public static MappingRules Parse(string text) =>
        text.Split(Separator) is [var map, var statuses, var ignored, var heartbeats]
            ? new(map == "" ? FieldMap.Default : FieldMap.Parse(map), ParseStatuses(statuses),
                ParseNames(ignored), ParseNames(heartbeats))
            { Text = text }
            : throw new FormatException("four settings");

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
    public static HashSet<string> ParseNames(string text)
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
        var (alerts, unmappable) = (new List<IncomingAlert>(), new UnmappableAlerts(now));
        var (ignored, heartbeats) = (0L, 0L);
        var beats = new Dictionary<string, Beat>();
        var (alert, context) = (new AlertFields(source), new Context(partition, source, rules, now));
        var reader = JsonText.NewReader(body[list]);
        reader.Read();
        while (reader.Read() && reader.TokenType != JsonTokenType.EndArray)
        {
            var start = list.Start.Value + (int)reader.TokenStartIndex;
            alert.Read(ref reader);
            switch (Map(alert, context, out var mapped))
            {
                case Outcome.Mapped when alerts.Count == AlertMapping.MaxAlerts:
                    throw new PayloadException(
                        $"The body has more than {AlertMapping.MaxAlerts} alerts.", 413);
                case Outcome.Mapped:
                    alerts.Add(mapped!);
                    break;
                case Outcome.Ignored:
                    ignored++;
                    break;
                case Outcome.Heartbeat:
                    heartbeats++;
                    if (BeatOf(alert, context) is { } beat && beats.Count < Heartbeats.Max)
                        beats[$"{beat.Alert}\n{beat.Name}\n{beat.Platform}"] = beat;
                    break;
                default:
                    unmappable.Add(alert, body, start..(list.Start.Value + (int)reader.BytesConsumed));
                    break;
            }
        }
        return new(alerts, unmappable.Kept, unmappable.More, ignored, heartbeats, truncated)
        {
            Source = source,
            Beats = beats.Values,
        };
    }

    /// <summary>To which service an alert belongs that is stored with its labels; null: to none.</summary>
    /// <param name="service">To which it was mapped by the rules of before.</param>
    public static ServiceKey? MapAnew(
        ServiceKey service, string labels, bool isDialect, MappingRules before, MappingRules rules)
    {
        ServiceKey? Map(MappingRules by, AlertTexts annotations)
        {
            var body = Encoding.UTF8.GetBytes($$"""
                {"alerts":[{"labels":{{labels}},"annotations":{{annotations.ToJson()}},"status":"firing",
                "startsAt":"2026-01-01T00:00:00Z"}]}
                """);
            return Read(body, service.Partition, AlertSource.Webhook, by, DateTime.UnixEpoch.AddYears(100)).Alerts
                is [var mapped] ? mapped.Service : null;
        }

        // What the labels did not give came from annotations, which are not stored.
        var (plain, annotations) = (Map(before, new AlertTexts()), new AlertTexts());
        (string Field, string Value, string? Plain)[] fields =
        [
            ("platform", service.Platform, plain?.Platform), ("service", service.Service, plain?.Service),
            ("facet", service.Facet, plain?.Facet), ("location", service.Location, plain?.Location),
        ];
        foreach (var (field, value, _) in fields.Where(f => f.Value != f.Plain))
        {
            foreach (var source in before.Fields.Of(field, !isDialect))
            {
                if (source.Kind is FieldSourceKind.Label or FieldSourceKind.AnnotationFirst)
                    annotations.Add(source.Name, value);
            }
        }
        annotations.Sort();
        // Where that does not tell how it was mapped, it stays where it is until it is heard again.
        return Map(before, annotations) == service ? Map(rules, annotations) : service;
    }

    /// <summary>One request is not to spoil what the metric counts.</summary>
    private const int MaxTruncated = 1_000_000;

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
            var name = JsonText.Read(ref reader, AlertFields.MaxText);
            reader.Read();
            if (name == "alerts" && reader.TokenType == JsonTokenType.StartArray)
                alerts = SkipArray(ref reader);
            else if (name == "truncatedAlerts" && reader.TokenType == JsonTokenType.Number)
                truncated = reader.TryGetInt64(out var count) ? Math.Clamp(count, 0, MaxTruncated) : 0;
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

    /// <summary>
    /// Null: it says nothing. An end that Prometheus states tells that it is there, and not that it watches.
    /// </summary>
    private static Beat? BeatOf(AlertFields alert, Context context)
    {
        var isPrometheus = context.Source == AlertSource.Prometheus;
        var isResolved = isPrometheus ? alert.HasEnded(context.Now) : alert.Status == "resolved";
        if (isResolved && isPrometheus)
            return null;
        var ends = !isResolved ? (DateTime?)null
            : alert.HasEnded(context.Now) && Rfc3339.TryParse(alert.EndsAt!.ToUpperInvariant(), out var stated)
                ? stated : context.Now;
        _ = context.Rules.Heartbeats.TryGetValue(alert.Labels.Get("alertname")!, out var name);
        var platform = context.Rules.Fields.Of("platform", !alert.IsDialect)
            .Where(s => s.Kind == FieldSourceKind.Label).Select(s => alert.Labels.Get(s.Name))
            .FirstOrDefault(v => !string.IsNullOrEmpty(v)) ?? "";
        return Encoding.UTF8.GetByteCount(platform) > AlertMapping.MaxField ? null : new Beat(platform, name!,
            Checksum.Hash(context.Source, SenderOf(alert, context), alert.Labels.ToJson()), context.Source, ends);
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
            service, alert.IsDialect, context.Source, SenderOf(alert, context),
            alert.Labels.ToJson(), status, starts, isPrometheus ? null : ends,
            AlertMapping.Clip(description, AlertMapping.MaxDescription), isPrometheus ? ends : null,
            (isPrometheus || ends != null) && IsGivenUp(alert),
            isPrometheus ? AlertMapping.Clip(name ?? "", AlertMapping.MaxField) : "");
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

    /// <summary>Alertmanager is one sender, whatever generatorURL says.</summary>
    private static string SenderOf(AlertFields alert, Context context) =>
        context.Source == AlertSource.Prometheus ? SenderOf(alert.GeneratorUrl) : "";

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

    /// <summary>Of status, times, fingerprint and names of fields, and of the URL, in bytes.</summary>
    public const int MaxText = 1024, MaxUrl = 64 * 1024;

    /// <summary>Of all labels, and of all annotations, with their names, in bytes. Real ones have some KiB.</summary>
    public const int MaxLabels = 256 * 1024, MaxAnnotations = 1024 * 1024;

    public bool IsDialect { get; private set; }

    /// <summary>Why it cannot be mapped, the first reason that was found; null: none was.</summary>
    public string? Reason { get; private set; }

    public void Fail(string reason) => Reason ??= reason;

    /// <summary>An end was sent that is not later.</summary>
    public bool HasEnded(DateTime now) =>
        Rfc3339.TryParse(EndsAt ?? "", out var ends) && ends != default && ends <= now;

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
        var name = JsonText.Read(ref reader, MaxText);
        reader.Read();
        switch (name)
        {
            case "labels":
                ReadTexts(ref reader, name, Labels, MaxLabels);
                break;
            case "annotations":
                ReadTexts(ref reader, name, Annotations, MaxAnnotations);
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
                Fingerprint = JsonText.Read(ref reader, MaxText);
                break;
            case "generatorURL":
                GeneratorUrl = JsonText.Read(ref reader, MaxUrl);
                break;
        }
        reader.Skip();
    }

    private string? ReadText(ref Utf8JsonReader reader, string field)
    {
        var text = JsonText.Read(ref reader, MaxText);
        if (text == null && reader.TokenType != JsonTokenType.Null)
            FailType(field);
        return text;
    }

    private void ReadTexts(ref Utf8JsonReader reader, string field, AlertTexts texts, int most)
    {
        // Of two fields of one name the last counts, and of two labels too.
        texts.Clear();
        if (reader.TokenType is not (JsonTokenType.StartObject or JsonTokenType.Null))
            FailType(field);
        if (reader.TokenType != JsonTokenType.StartObject)
            return;
        var left = most;
        while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
        {
            if (texts.Count == AlertTexts.Max)
                Fail($"it has more than {AlertTexts.Max} {field}");
            left -= Math.Min(left + 1, reader.ValueSpan.Length);
            var name = texts.Count == AlertTexts.Max || left < 0 ? null : JsonText.Read(ref reader);
            reader.Read();
            left -= Math.Min(left + 1, reader.ValueSpan.Length);
            if (left < 0)
                Fail($"its {field} have more than {most} bytes");
            else if (name == null)
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
    /// <summary>Real alerts have some tens; a text that stands twice counts twice.</summary>
    public const int Max = 10_000;

    /// <summary>They tell how bad it is and which Prometheus sent it; the name is the facet.</summary>
    private static readonly string[] NoPlace = ["severity", "alertname", .. AlertLabels.OfReplica];

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

    /// <summary>As Prometheus writes them.</summary>
    public override string ToString() =>
        $"{{{string.Join(", ", _entries.Select(e => AlertMapping.WriteLabel(e.Name, e.Value)))}}}";

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

/// <summary>Labels as an alert is stored with them.</summary>
internal static class AlertLabels
{
    /// <summary>They tell which of several Prometheus sent it.</summary>
    public static readonly string[] OfReplica = ["prometheus", "prometheus_replica", "replica"];

    /// <summary>The same for what each of a pair sends of one thing.</summary>
    public static string WithoutReplica(string labels)
    {
        if (!Array.Exists(OfReplica, n => labels.Contains($"\"{n}\":", StringComparison.OrdinalIgnoreCase)))
            return labels;
        var texts = new AlertTexts();
        var reader = JsonText.NewReader(Encoding.UTF8.GetBytes(labels));
        reader.Read();
        while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
        {
            var name = JsonText.Read(ref reader)!;
            reader.Read();
            if (!OfReplica.Contains(name, StringComparer.OrdinalIgnoreCase))
                texts.Add(name, JsonText.Read(ref reader)!);
        }
        return texts.ToJson();
    }
}

/// <summary>
/// The alerts of one body that cannot be mapped: the first 1,000 that differ whole, of the others the number.
/// </summary>
internal sealed class UnmappableAlerts(DateTime now)
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
        // Prometheus sends no fingerprint: its alerts are their labels. Each copy that fires has another end.
        var labels = alert.Labels.Count == 0 ? null : alert.Labels.ToJson();
        var fingerprint = alert.Fingerprint ?? Convert.ToHexStringLower(
            SHA256.HashData(labels == null ? raw : Encoding.UTF8.GetBytes(labels)).AsSpan(0, 8));
        var identity = string.Join('\n', fingerprint, alert.Status, alert.StartsAt,
            alert.Status == null && !alert.HasEnded(now) ? null : alert.EndsAt, alert.Reason);
        // Within valid JSON a line break can only stand between tokens.
        var line = raw.ToArray();
        line.AsSpan().Replace((byte)'\n', (byte)' ');
        line.AsSpan().Replace((byte)'\r', (byte)' ');
        var unmappable = new UnmappableAlert(
            identity, fingerprint, alert.Labels.Get("alertname") ?? "", alert.Reason!, line);
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
    /// <param name="most">Null for a text of more bytes, which is not read.</param>
    public static string? Read(ref Utf8JsonReader reader, int most = int.MaxValue) => reader.TokenType switch
    {
        _ when reader.ValueSpan.Length > most => null,
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

/// <summary>What an alert may hold; the limits are told in docs/security.md.</summary>
internal static class AlertMapping
{
    /// <summary>Deeper nesting makes the body as a whole unusable; real bodies have four levels.</summary>
    public const int MaxDepth = 10_000;

    /// <summary>Real ones have some 300 bytes each: --max-body is reached before.</summary>
    public const int MaxAlerts = 25_000;

    /// <summary>Onix's item name, "{service} Service", holds 200 characters.</summary>
    private const int MaxService = 192;

    public const int MaxField = 1024, MaxDescription = 4096;

    /// <summary>No monitoring is older; a time before it is an unset one.</summary>
    public static readonly DateTime Earliest = new(2000, 1, 1, 0, 0, 0, DateTimeKind.Utc);

    /// <summary>An event further ahead would stay its service's latest for ever.</summary>
    public static readonly TimeSpan MaxAhead = TimeSpan.FromHours(24);

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
}

// ================================ 5. Timeline ================================
//
// What happened, derived from what was received. A fact is an observation: a copy of an alert that brought
// something new. Episodes tells what a copy brings, given the observations of its alert; Timeline turns all
// observations of a service into runs of one status. Both take an alert's observations in the order in which
// they were received and by the same rules, so that a copy which is not stored would have changed nothing,
// and facts from elsewhere, doubled or late, may lie among them.
// A rule's number is its place in the text on alerts and history: 3.2 are copies from Alertmanager.

/// <summary>What a service is at a moment. From 4 on: other words of the dialect, as stored.</summary>
internal enum Status { Up = 0, Degraded = 1, Down = 2, Unknown = 3 }

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

/// <summary>A stretch of time in which nothing could have been received (5).</summary>
/// <param name="To">Exclusive; the greatest time: it goes on.</param>
/// <param name="Id">Of the fact that tells of its begin.</param>
internal sealed record Gap(DateTime From, DateTime To, long Id)
{
    public bool Has(DateTime time) => time >= From && time < To;
}

/// <summary>The gaps that services of one platform have, in order; none touches another.</summary>
/// <param name="All">SeS's own, and those of heartbeats, united.</param>
/// <param name="OfHeartbeats">In these an end that Alertmanager states is uncertain (3.4).</param>
internal sealed record Gaps(IReadOnlyList<Gap> All, IReadOnlyList<Gap> OfHeartbeats)
{
    public static readonly Gaps None = new([], []);

    /// <summary>The gap that a time lies in; null: none.</summary>
    public Gap? At(DateTime time) => At(All, time);

    public bool IsHeartbeatSilent(DateTime time) => At(OfHeartbeats, time) != null;

    private static Gap? At(IReadOnlyList<Gap> gaps, DateTime time) =>
        FirstAfter(gaps, time) is > 0 and var next && gaps[next - 1].Has(time) ? gaps[next - 1] : null;

    /// <summary>The next time at which a gap begins or ends; the greatest time: none does.</summary>
    public DateTime NextAfter(DateTime time)
    {
        var next = FirstAfter(All, time);
        return next > 0 && All[next - 1].Has(time) ? All[next - 1].To
            : next < All.Count ? All[next].From : DateTime.MaxValue;
    }

    /// <summary>The place of the first gap that begins after a time.</summary>
    private static int FirstAfter(IReadOnlyList<Gap> gaps, DateTime time)
    {
        var (low, high) = (0, gaps.Count);
        while (low < high)
        {
            var middle = (low + high) / 2;
            if (gaps[middle].From <= time)
                low = middle + 1;
            else
                high = middle;
        }
        return low;
    }

    /// <summary>The end of the last gap that overlaps a stretch, or that stretch's own end (3.5).</summary>
    public DateTime LastEnd(DateTime from, DateTime to)
    {
        var last = FirstAfter(All, to) - 1;
        return last >= 0 && All[last].To > from && All[last].To > to ? All[last].To : to;
    }

    public bool Overlaps(DateTime from, DateTime to) =>
        FirstAfter(All, to) is > 0 and var next && All[next - 1].To > from;

    /// <summary>When the last gap before a time ended; null: there was none.</summary>
    public DateTime? EndBefore(DateTime time)
    {
        var last = FirstAfter(All, time) - 1;
        if (last >= 0 && All[last].To > time)
            last--;
        return last < 0 ? null : All[last].To;
    }

    /// <summary>The moments at which gaps begin or end.</summary>
    public IEnumerable<DateTime> Edges() => All.SelectMany(g => new[] { g.From, g.To });

    public bool HasEdge(DateTime time) => FirstAfter(All, time) is > 0 and var next
        && (All[next - 1].From == time || All[next - 1].To == time || (next > 1 && All[next - 2].To == time));

    /// <summary>What is in force at a moment of a run: in a gap only what rests on an open alert.</summary>
    public Run Lay(in Run run, DateTime time) => !run.Open && run.Status != Status.Unknown && At(time) is { } gap
        ? run with { Status = Status.Unknown, Observation = -gap.Id } : run;

    /// <summary>The runs of a service with its gaps laid over them.</summary>
    public IEnumerable<Run> Lay(IEnumerable<Run> runs)
    {
        foreach (var run in runs)
        {
            var from = run.From;
            var next = run.Open || run.Status == Status.Unknown ? DateTime.MaxValue : NextAfter(from);
            for (; next < (run.To ?? DateTime.MaxValue); (from, next) = (next, NextAfter(next)))
                yield return Lay(run, from) with { From = from, To = next };
            yield return Lay(run, from) with { From = from };
        }
    }

    /// <summary>Unites stretches that overlap or touch; each has the id of its first.</summary>
    public static List<Gap> Unite(IEnumerable<Gap> gaps)
    {
        var (united, sorted) = (new List<Gap>(), gaps.ToList());
        sorted.Sort(static (a, b) => a.From != b.From ? a.From.CompareTo(b.From) : a.Id.CompareTo(b.Id));
        foreach (var gap in sorted)
        {
            if (gap.To <= gap.From)
                continue;
            if (united.Count == 0 || united[^1].To < gap.From)
                united.Add(gap);
            else if (united[^1].To < gap.To)
                united[^1] = united[^1] with { To = gap.To };
        }
        return united;
    }

    /// <summary>What is left of stretches without others; both united.</summary>
    public static IEnumerable<Gap> Except(List<Gap> gaps, List<Gap> others)
    {
        foreach (var gap in gaps)
        {
            var from = gap.From;
            foreach (var other in others.Where(o => o.To > gap.From && o.From < gap.To))
            {
                if (other.From > from)
                    yield return gap with { From = from, To = other.From };
                from = other.To;
            }
            if (from < gap.To)
                yield return gap with { From = from };
        }
    }

    /// <summary>The stretches that two lists have in common, with the ids of the first; both united.</summary>
    public static List<Gap> Intersect(IReadOnlyList<Gap> gaps, IReadOnlyList<Gap> others)
    {
        var common = new List<Gap>();
        for (int i = 0, j = 0; i < gaps.Count && j < others.Count;)
        {
            var (from, to) = (gaps[i].From > others[j].From ? gaps[i].From : others[j].From,
                gaps[i].To < others[j].To ? gaps[i].To : others[j].To);
            if (from < to)
                common.Add(new(from, to, gaps[i].Id));
            if (gaps[i].To < others[j].To)
                i++;
            else
                j++;
        }
        return common;
    }
}

/// <summary>A stretch of one status.</summary>
/// <param name="To">Null: it is the last.</param>
/// <param name="Open">
/// The status is that of an open alert, so that no gap touches it. Unknown after an uncertain end is not
/// open, also while an alert of something better is.
/// </param>
/// <param name="Observation">
/// Its id: of an open run that which gave the alert this status, else that which ended the last alert.
/// 0: the service had no episode yet; in a gap minus the gap's.
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

    /// <summary>A sender said when it ended.</summary>
    public bool IsStated;

    public AlertSource Source;

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
                Source = _traits.Source,
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
            (episode.Ends, episode.IsUncertain, episode.IsStated) = (DateTime.MaxValue, false, false);
            episode.Opened = copy.Received;
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
        (episode.Ends, episode.IsUncertain, episode.IsStated) = (observation.Ends!.Value, isUncertain, !isUncertain);
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
    /// An end that Alertmanager states while a heartbeat is silent is none: it gives up what nobody renews.
    /// One that Prometheus stated, too, is exact.
    /// </summary>
    public readonly void GiveUpIn(Gaps gaps)
    {
        HashSet<DateTime>? exact = null;
        foreach (ref var episode in All)
        {
            if (!episode.IsStated || episode.Source != AlertSource.Webhook || !gaps.IsHeartbeatSilent(episode.Ends))
                continue;
            exact ??= EndsOfPrometheus();
            if (!exact.Contains(episode.Ends))
                (episode.IsUncertain, episode.IsStated, episode.Stated) = (true, false, episode.Ends);
        }
    }

    private readonly HashSet<DateTime> EndsOfPrometheus()
    {
        var ends = new HashSet<DateTime>();
        foreach (ref readonly var episode in All)
        {
            if (episode.IsStated && episode.Source == AlertSource.Prometheus)
                ends.Add(episode.Ends);
        }
        return ends;
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
    /// <param name="gaps">Those of its platform; null: what is stored and told Onix knows of none.</param>
    /// <returns>When the result changes by time alone; null: never.</returns>
    public static DateTime? Derive(
        ReadOnlySpan<Observation> observations, Func<long, AlertTraits> traitsOf, DateTime? knownFrom,
        DateTime? oldest, DateTime now, TimelineRules rules, List<Run> runs,
        List<(long Alert, DateTime Starts)>? open = null, Gaps? gaps = null)
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
        if (gaps?.OfHeartbeats.Count > 0)
            episodes.GiveUpIn(gaps);
        if (isDialect)
            episodes.EndOpposed();
        foreach (ref readonly var episode in episodes.All)
        {
            if (!episode.HasEnd)
                open?.Add((episode.Alert, episode.Starts));
        }
        using var sweep = new TimelineSweep(episodes, isDialect, now, rules.Pause, gaps, runs);
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
    private readonly Gaps? _gaps;
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
        in EpisodeBuffer episodes, bool isDialect, DateTime now, TimeSpan pause, Gaps? gaps, List<Run> runs)
    {
        _episodes = episodes.All;
        _agains = episodes.Agains;
        (_isDialect, _now, _pause, _runs) = (isDialect, now, pause, runs);
        _gaps = gaps is { All.Count: > 0 } ? gaps : null;
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
            AddUncertain(Timeline.Severity(episode.Status), new(UnknownUntil(episode), episode.EndedBy));
        else
            _uncertain = default;
        if (moment.Kind == Kind.Start)
        {
            episode.IsOpen = true;
            AddOpen(moment.Index);
        }
    }

    /// <summary>Until a while after it was given up, or after a gap in which it could not be heard (3.5).</summary>
    private readonly DateTime UnknownUntil(in Episode episode)
    {
        var from = _gaps?.LastEnd(episode.Until, episode.Stated) ?? episode.Stated;
        return from < DateTime.MaxValue - _pause ? from + _pause : DateTime.MaxValue;
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
        if (time > _lastEnd || _last < 0 || IsSaidLater(_episodes[index], _episodes[_last]))
            _last = index;
        _lastEnd = time;
    }

    /// <summary>Of two that end at one time: in the dialect one that begins then too, else the worse.</summary>
    private readonly bool IsSaidLater(in Episode one, in Episode other) =>
        _isDialect && one.IsEmpty != other.IsEmpty ? one.IsEmpty : IsWorse(one, other);

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
        {
            var until = _isDialect ? KeptFrom(time, out run) : UpFrom(time, out run);
            if (_gaps == null)
                return until;
            run = _gaps.Lay(run, time);
            var next = _gaps.NextAfter(time);
            return next < until ? next : until;
        }
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

// ================================ 6. Database ================================
//
// SQLite, through its own C interface: connections, statements that are prepared once and bound by place,
// and errors by their code. Only the store uses it. In the native binary SQLite is linked in; else it is a
// package's library. Before 3.51.3 a database in WAL mode can be damaged when one connection moves the
// log into the database while another commits (https://sqlite.org/wal.html, "WAL-reset bug").

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

    /// <summary>A new file that only its owner can read and write; no link is followed (O_EXCL).</summary>
    /// <exception cref="IOException">Something of that name is there.</exception>
    public static FileStream Create(string path) => new(path, new FileStreamOptions
    {
        Mode = FileMode.CreateNew,
        Access = FileAccess.Write,
        Share = FileShare.ReadWrite | FileShare.Delete,
        BufferSize = 0,
        UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite,
    });

    [LibraryImport("libc", EntryPoint = "open", SetLastError = true,
        StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Open(string path, int flags, uint mode = 0);

    /// <summary>EWOULDBLOCK of errno(3).</summary>
    private const int WouldBlock = 11;

    /// <summary>Opens a file, or makes it, for this process alone (flock(2)). No link is followed.</summary>
    /// <returns>Null: another process has it.</returns>
    /// <exception cref="IOException">It cannot be opened, or is a link.</exception>
    public static SafeFileHandle? OpenAlone(string path)
    {
        const int ReadWriteCreateCloseOnExec = 0x2 | 0x40 | 0x80000, ExclusiveAtOnce = 2 | 4, OwnersFile = 0x180;
        var noFollow = RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? 0x8000 : 0x20000;
        var file = new SafeFileHandle(
            Open(path, ReadWriteCreateCloseOnExec | noFollow, OwnersFile), ownsHandle: true);
        if (!file.IsInvalid && Lock((int)file.DangerousGetHandle(), ExclusiveAtOnce) == 0)
            return file;
        var error = Marshal.GetLastPInvokeError();
        file.Dispose();
        return error == WouldBlock ? null : throw new IOException(Marshal.GetPInvokeErrorMessage(error));
    }

    [LibraryImport("libc", EntryPoint = "flock", SetLastError = true)]
    private static partial int Lock(int handle, int operation);

    /// <summary>What a path leads to, symbolic links followed; null if nothing.</summary>
    public static unsafe FileStatus? StatusOf(string path)
    {
        // struct statx of statx(2): the inode at 32, the size at 40, the device at 136.
        var status = stackalloc byte[256];
        return Statx(CurrentFolder, path, 0, InodeAndSize, status) == 0
            ? new FileStatus(*(ulong*)(status + 136), *(ulong*)(status + 32), *(long*)(status + 40)) : null;
    }

    /// <summary>Becomes another user for good, with that group alone.</summary>
    public static bool Become(uint user, uint group) =>
        SetGroups(0, 0) == 0 && SetGroup(group) == 0 && SetUser(user) == 0;

    /// <summary>Whether this user may write there, or to a file system that is not read-only.</summary>
    public static bool IsWritable(string path) => MayAccess(CurrentFolder, path, MayWrite, EffectiveUser) == 0;

    [LibraryImport("libc", EntryPoint = "faccessat", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int MayAccess(int folder, string path, int mode, int flags);

    // W_OK and AT_EACCESS.
    private const int MayWrite = 2, EffectiveUser = 0x200;

    /// <summary>Whose this process is.</summary>
    [LibraryImport("libc", EntryPoint = "geteuid")]
    public static partial uint UserId();

    [LibraryImport("libc", EntryPoint = "setgroups")]
    private static partial int SetGroups(nuint count, nint groups);

    [LibraryImport("libc", EntryPoint = "setgid")]
    private static partial int SetGroup(uint group);

    [LibraryImport("libc", EntryPoint = "setuid")]
    private static partial int SetUser(uint user);

    /// <summary>Whose a path is; null: nothing is there.</summary>
    public static unsafe (uint User, uint Group)? OwnerOf(string path)
    {
        // Of struct statx: the user at 20, the group at 24.
        var status = stackalloc byte[256];
        return Statx(CurrentFolder, path, 0, UserAndGroup, status) == 0
            ? (*(uint*)(status + 20), *(uint*)(status + 24)) : null;
    }

    /// <summary>STATX_UID and STATX_GID.</summary>
    private const int UserAndGroup = 0x8 | 0x10;

    /// <summary>Bytes that are free for this user, and all, of the file system of a folder.</summary>
    public static (long Free, long Total) Space(string folder)
    {
        var drive = new DriveInfo(folder);
        return (drive.AvailableFreeSpace, drive.TotalSize);
    }

    /// <summary>
    /// The other process that has a byte of a file locked, as proc_locks(5) tells. The file is not opened:
    /// closing it would end this process's own locks on it (fcntl(2)).
    /// </summary>
    public static int? LockHolder(string path, long place)
    {
        if (StatusOf(path) is not { } file || !File.Exists("/proc/locks"))
            return null;
        foreach (var line in File.ReadLines("/proc/locks"))
        {
            // 1: POSIX  ADVISORY  WRITE 4711 08:01:1234 120 120
            var fields = line.Split(' ', StringSplitOptions.RemoveEmptyEntries);
            if (fields is [_, _, _, _, var process, var inode, var first, var last]
                && inode.EndsWith($":{file.Inode}", StringComparison.Ordinal)
                && long.Parse(first, CultureInfo.InvariantCulture) <= place
                && (last == "EOF" || long.Parse(last, CultureInfo.InvariantCulture) >= place)
                && process != $"{Environment.ProcessId}")
                return int.Parse(process, CultureInfo.InvariantCulture);
        }
        return null;
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

/// <summary>What a data directory must be.</summary>
internal static class DataDir
{
    /// <summary>
    /// The working directory by a name that leads there at once: under <c>DynamicUser=</c> the folder above the
    /// data directory is closed to all but root, and .NET would make any other name an absolute one.
    /// </summary>
    public const string Entered = "/proc/self/cwd";

    /// <summary>
    /// Becomes the owner of the directory if this is root: what a command makes there, such as the shared
    /// memory's file, must be the daemon's. It is entered before, since the owner may not be allowed to.
    /// </summary>
    /// <returns>By which name the directory is reached from now on.</returns>
    /// <exception cref="DataDirException">The owner could not be taken.</exception>
    public static string BecomeOwner(string dir)
    {
        if (!Environment.IsPrivilegedProcess || Disk.OwnerOf(dir) is not { User: > 0 } owner)
            return dir;
        Environment.CurrentDirectory = dir;
        return Disk.Become(owner.User, owner.Group) ? Directory.Exists(Entered) ? Entered : "."
            : throw new DataDirException($"'{dir}': cannot become its owner, user {owner.User}");
    }

    /// <summary>One process per data directory: holds the lock file until it is disposed.</summary>
    public static SafeFileHandle Claim(string dir)
    {
        try
        {
            Directory.CreateDirectory(
                dir, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
            CheckLinks(dir);
            CheckOwner(dir);
            return Disk.OpenAlone(Path.Combine(dir, LockName))
                ?? throw new DataDirException($"'{dir}' is in use by another SeS");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new DataDirException($"'{dir}' cannot be used: {e.Message}");
        }
    }

    private const string LockName = "lock";

    /// <summary>What SeS and SQLite open there to write to, whatever was there before.</summary>
    private static readonly string[] Written =
    [
        LockName, .. from file in new[] { "ses.db", "ses.db.restored" }
            from end in new[] { "", "-wal", "-shm", "-journal" } select file + end,
    ];

    /// <summary>
    /// What SeS and SQLite write to must be in the directory itself, which may well be a link: a link in it
    /// would have them write elsewhere, and SQLite look for its log there.
    /// </summary>
    /// <exception cref="DataDirException">A file of SeS there is a symbolic link.</exception>
    public static void CheckLinks(string dir)
    {
        if (Written.FirstOrDefault(f => new FileInfo(Path.Combine(dir, f)).LinkTarget != null) is { } link)
            throw new DataDirException($"'{dir}': {link} is a symbolic link, which is not followed: put the file "
                + "itself there, or make the directory the link");
    }

    /// <exception cref="DataDirException">It, or the database in it, is closed to this user.</exception>
    public static void CheckOpen(string dir)
    {
        var isOpen = !File.Exists(Path.Combine(dir, "ses.db")) || Disk.IsWritable(Path.Combine(dir, "ses.db"));
        try
        {
            _ = Directory.EnumerateFileSystemEntries(dir).Any();
        }
        catch (UnauthorizedAccessException)
        {
            isOpen = false;
        }
        catch (IOException)
        {
            // It is not there.
        }
        if (!isOpen)
            throw new DataDirException(
                $"'{dir}' is closed to user {Disk.UserId()}: run this as root, or as whom SeS runs as");
    }

    /// <summary>Root's files in a service's directory come of a copy that root put there.</summary>
    /// <exception cref="DataDirException">A file of SeS there cannot be written to by this user.</exception>
    private static void CheckOwner(string dir)
    {
        foreach (var path in Written.Select(f => Path.Combine(dir, f)))
        {
            if (Disk.OwnerOf(path) is { } owner && !Disk.IsWritable(path))
                throw new DataDirException($"'{path}' cannot be written to: it belongs to user {owner.User}, and SeS runs "
                    + $"as user {Disk.UserId()}: chown -R {Disk.UserId()} '{dir}'");
        }
    }

    /// <summary>
    /// Who else gets at the directory, and what to do about it; null: nobody. The volume of a container is root's
    /// as a rule, who gets everywhere, and open to its group: then only what all may write is told.
    /// </summary>
    public static string? Exposure(string dir)
    {
        var (user, mode) = (Disk.OwnerOf(dir)?.User ?? 0, File.GetUnixFileMode(Path.GetFullPath(dir)));
        var isOthers = user != 0 && user != Disk.UserId();
        var others = UnixFileMode.OtherWrite | (user == 0 && Disk.UserId() != 0 ? 0
            : UnixFileMode.OtherRead | UnixFileMode.OtherExecute);
        var isOpen = (mode & others) != 0;
        return !isOthers && !isOpen ? null : "the data directory"
            + (isOthers ? $" belongs to user {user}, not to {Disk.UserId()}, whom SeS runs as" : "")
            + (isOthers && isOpen ? ", and" : "") + (isOpen ? " is open to every user of this host" : "") + ":"
            + (isOthers ? $" chown it to {Disk.UserId()}" : "") + (isOthers && isOpen ? "," : "")
            + (isOpen ? " chmod o= it" : "");
    }

    /// <exception cref="DataDirException">It cannot hold a database of SeS.</exception>
    public static void Check(string folder)
    {
        // WAL needs memory that all processes share, which no network file system has.
        var drive = new DriveInfo(folder);
        if (drive.DriveType == DriveType.Network)
            throw new DataDirException(
                $"'{folder}' is on a network file system ({drive.DriveFormat}); SeS needs a local disk");
        if (Directory.EnumerateFiles(folder, "events-*.jsonl").Any())
            throw new DataDirException($"'{folder}' has the event log of SeS 0.1, which was never released; "
                + "begin with an empty directory");
    }
}

/// <summary>SQLite refused; the message names what was done, the code and SQLite's own words.</summary>
/// <param name="code">SQLite's extended result code.</param>
/// <param name="errno">Of the last call to the system that failed, 0 if none did.</param>
/// <param name="sql">What was being done; for the log.</param>
internal sealed class SqliteException(int code, int errno, string reason, string? sql = null)
    : Exception(sql == null ? reason : $"{reason}: {sql}")
{
    /// <summary>Without what was being done.</summary>
    public string Reason => reason;

    // From errno(3) and sqlite3.h.
    private const int TooLarge = 27, NoSpace = 28, QuotaExceeded = 122;
    private const int Busy = 5, NotADatabase = 26, FlushFailed = 1034, FolderFlushFailed = 1290;

    public int Code => code;

    /// <summary>There is no space, whichever way that was noticed; it may go on when there is.</summary>
    public bool IsFull => code == Full || errno is TooLarge or NoSpace or QuotaExceeded;

    public const int Corrupt = 11;

    public const int Full = 13;

    /// <summary>No code of SQLite's: its files are not those that it opened.</summary>
    public const int FilesChanged = -1;

    /// <summary>What is on disk cannot be trusted: the process must end.</summary>
    public bool IsFlush => code is FlushFailed or FolderFlushFailed or FilesChanged;

    /// <summary>The file, its folder or the file system cannot be written to.</summary>
    public bool IsReadOnly => (code & 0xFF) is 8 or 14;

    /// <summary>Another process holds the lock for writing.</summary>
    public bool IsBusy => (code & 0xFF) == Busy;

    /// <summary>The file is no database, or its head is damaged.</summary>
    public bool IsNoDatabase => (code & 0xFF) == NotADatabase;

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
        var code = raw.sqlite3_open_v2(path, out _connection, flags | raw.SQLITE_OPEN_NOMUTEX,
            path.StartsWith(DataDir.Entered, StringComparison.Ordinal) ? PlainPaths.Name : null);
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

    /// <summary>Ends a transaction without a change, unless SQLite has done so by itself.</summary>
    public void Rollback()
    {
        if (raw.sqlite3_get_autocommit(_connection) == 0)
            Execute("ROLLBACK");
    }

    /// <summary>
    /// Waits for the end of a transaction that another connection is in: what it records is earlier than now.
    /// </summary>
    public void AwaitOthers()
    {
        Execute("BEGIN IMMEDIATE");
        Rollback();
    }

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
    public (int Logged, int Moved) Checkpoint() => Checkpoint(raw.SQLITE_CHECKPOINT_PASSIVE);

    /// <summary>
    /// The same with the lock for writing, so that nothing is added meanwhile and the log can start anew; as
    /// before where that lock, or a reader, would have to be waited for.
    /// </summary>
    public (int Logged, int Moved) CheckpointAlone()
    {
        _ = raw.sqlite3_busy_timeout(_connection, 0);
        try
        {
            return Checkpoint(raw.SQLITE_CHECKPOINT_FULL);
        }
        finally
        {
            _ = raw.sqlite3_busy_timeout(_connection, (int)LockTime.TotalMilliseconds);
        }
    }

    private (int Logged, int Moved) Checkpoint(int mode)
    {
        var code = raw.sqlite3_wal_checkpoint_v2(_connection, "main", mode, out var logged, out var moved);
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
            $"{raw.sqlite3_errmsg(_connection).utf8_to_string()} (SQLite's code {code}, errno {errno})", what);
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
        _database.Check(Sqlite.BindInt64(_handle, place, value), _sql);
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
        _database.Check(Sqlite.BindNull(_handle, place), _sql);
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
        var code = Sqlite.Step(_handle);
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
    public void Reset() => _ = Sqlite.Reset(_handle);

    public void Dispose() => _statement.Dispose();
}

/// <summary>
/// What is called for each row, column and parameter (a third of the time of the package's own way), and what
/// the package lacks.
/// </summary>
internal static unsafe partial class Sqlite
{
    [LibraryImport("e_sqlite3", EntryPoint = "sqlite3_column_int64")]
    [SuppressGCTransition]
    public static partial long ColumnInt64(nint statement, int column);

    [LibraryImport("e_sqlite3", EntryPoint = "sqlite3_column_type")]
    [SuppressGCTransition]
    public static partial int ColumnType(nint statement, int column);

    [LibraryImport("e_sqlite3", EntryPoint = "sqlite3_bind_int64")]
    [SuppressGCTransition]
    public static partial int BindInt64(nint statement, int place, long value);

    [LibraryImport("e_sqlite3", EntryPoint = "sqlite3_bind_null")]
    [SuppressGCTransition]
    public static partial int BindNull(nint statement, int place);

    [LibraryImport("e_sqlite3", EntryPoint = "sqlite3_step")]
    public static partial int Step(nint statement);

    [LibraryImport("e_sqlite3", EntryPoint = "sqlite3_reset")]
    public static partial int Reset(nint statement);

    /// <summary>Replaces SQLite's own checkpoints; the hook is called after each commit.</summary>
    [LibraryImport("e_sqlite3", EntryPoint = "sqlite3_wal_hook")]
    public static partial nint WalHook(
        nint connection, delegate* unmanaged[Cdecl]<nint, nint, byte*, int, int> hook, nint context);

    [LibraryImport("e_sqlite3", EntryPoint = "sqlite3_system_errno")]
    public static partial int SystemErrno(nint connection);

    [LibraryImport("e_sqlite3", EntryPoint = "sqlite3_vfs_find")]
    public static partial PlainPaths.FileSystem* FindFileSystem(nint name);

    [LibraryImport("e_sqlite3", EntryPoint = "sqlite3_vfs_register")]
    public static partial int Register(PlainPaths.FileSystem* system, int isDefault);
}

/// <summary>
/// SQLite's own file system (sqlite3_vfs), but for names, which stay as they are given: SQLite would follow each
/// link in them to an absolute name, which may be closed to this user.
/// </summary>
internal static unsafe class PlainPaths
{
    private const int Ok = 0, CannotOpen = 14;

    /// <summary>The begin of a sqlite3_vfs of version 3, and the rest.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct FileSystem
    {
        public int Version, SizeOfFile, LongestName;
        public nint Next, Name, Data, Open, Delete, Access;
        public delegate* unmanaged[Cdecl]<FileSystem*, byte*, int, byte*, int> FullName;
        public nint OpenLibrary, LibraryError, Symbol, CloseLibrary, Randomness, Sleep, Time, LastError, TimeInt64,
            SetSystemCall, GetSystemCall, NextSystemCall;
    }

    public static string Name { get; } = Registered("ses-plain");

    /// <summary>It lives as long as the process.</summary>
    private static string Registered(string name)
    {
        var system = (FileSystem*)NativeMemory.Alloc((nuint)sizeof(FileSystem));
        *system = *Sqlite.FindFileSystem(0);
        system->Name = Marshal.StringToCoTaskMemUTF8(name);
        system->FullName = &Copy;
        _ = Sqlite.Register(system, isDefault: 0);
        return name;
    }

    [UnmanagedCallersOnly(CallConvs = [typeof(CallConvCdecl)])]
    private static int Copy(FileSystem* system, byte* name, int room, byte* full)
    {
        var text = MemoryMarshal.CreateReadOnlySpanFromNullTerminated(name);
        if (text.Length >= room)
            return CannotOpen;
        text.CopyTo(new Span<byte>(full, room));
        full[text.Length] = 0;
        return Ok;
    }
}

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

    /// <summary>No time is further from 1970.</summary>
    public const long Limit = 62_000_000_000_000;
}

// ================================= 7. Notes ==================================
//
// What people say of the history: announced maintenance, outages that do not count, what really was, comments,
// and services that are no more. A note is changed by a further version, and ended by one that withdraws it; all
// stay. Which is the last, and which was in force at a moment, goes by when they were received.

/// <summary>A stretch of time in whole milliseconds since 1970, from its begin up to its end.</summary>
internal readonly record struct Interval(long From, long To)
{
    /// <summary>Those that overlap or touch are one; in order.</summary>
    public static Interval[] United(IEnumerable<Interval> spans)
    {
        var united = new List<Interval>();
        foreach (var span in spans.Where(s => s.To > s.From).OrderBy(s => s.From))
        {
            if (united.Count > 0 && span.From <= united[^1].To)
                united[^1] = united[^1] with { To = Math.Max(united[^1].To, span.To) };
            else
                united.Add(span);
        }
        return [.. united];
    }

    /// <summary>What of the first is not in the second; both are united.</summary>
    public static Interval[] Without(Interval[] spans, Interval[] others)
    {
        var left = new List<Interval>();
        foreach (var span in spans)
        {
            var from = span.From;
            foreach (var other in Within(others, span.From, span.To))
            {
                left.Add(new Interval(from, other.From));
                from = other.To;
            }
            left.Add(new Interval(from, span.To));
        }
        return United(left);
    }

    /// <summary>The parts of united spans that lie in a stretch.</summary>
    public static IEnumerable<Interval> Within(Interval[] spans, long from, long to)
    {
        // The first that ends later than the stretch begins.
        var (low, high) = (0, spans.Length);
        while (low < high)
        {
            var middle = (low + high) / 2;
            if (spans[middle].To > from)
                high = middle;
            else
                low = middle + 1;
        }
        for (; low < spans.Length && spans[low].From < to; low++)
            yield return new Interval(Math.Max(from, spans[low].From), Math.Min(to, spans[low].To));
    }

    /// <summary>The parts of a stretch that are within hours; null: all of it is.</summary>
    public static IEnumerable<Interval> Counted(Interval[]? hours, long from, long to) =>
        from >= to ? [] : hours == null ? [new Interval(from, to)] : Within(hours, from, to);

    /// <summary>For how long united spans are in a stretch.</summary>
    public static long Length(Interval[] spans, long from, long to) =>
        spans.Length == 0 ? 0 : Within(spans, from, to).Sum(s => s.To - s.From);
}

internal enum NoteKind { Maintenance = 0, Excluded = 1, Correction = 2, Comment = 3, Retired = 4 }

/// <summary>The services that a note is about, those too that come later.</summary>
/// <param name="Platform">Exact, or what begins so if it ends in *; null: any. So are those after it.</param>
internal sealed record NoteFilter(
    string Partition, string? Platform, string? Service, string? Facet, string? Location)
{
    public bool Takes(ServiceKey service) => Partition == service.Partition && Fits(Platform, service.Platform)
        && Fits(Service, service.Service) && Fits(Facet, service.Facet) && Fits(Location, service.Location);

    /// <summary>Whether a name is what a pattern takes; null takes all.</summary>
    public static bool Fits(string? pattern, string name) => pattern == null
        || (pattern.EndsWith('*') ? name.AsSpan().StartsWith(pattern.AsSpan(0, pattern.Length - 1)) : name == pattern);
}

/// <summary>A version of a note.</summary>
/// <param name="Id">Of the note; each partition has its own.</param>
/// <param name="To">Exclusive; null: it has no end.</param>
/// <param name="Status">What really was, of a correction; else null.</param>
/// <param name="Author">Who signed in.</param>
/// <param name="AuthorName">Who that says to be; null: nothing was said.</param>
/// <param name="Received">When a SeS took it.</param>
internal sealed record NoteVersion(string Id, NoteKind Kind, DateTime From, DateTime? To, NoteFilter Filter, string? Status,
    string Text, string Author, string? AuthorName, bool IsWithdrawn, DateTime Received)
{
    /// <summary>Its place among the facts of the store; 0: it is not stored.</summary>
    public long Row { get; init; }

    /// <summary>The SeS that took it.</summary>
    public string By { get; init; } = "";

    /// <summary>When this store took it.</summary>
    public DateTime Recorded { get; init; }

    public Interval Span => new(UnixTime.From(From), To is { } to ? UnixTime.From(to) : UnixTime.Open);

    /// <summary>In bytes; and in characters, of an author's name.</summary>
    public const int MaxText = 4096, MaxAuthor = 200;

    /// <summary>Whether another says the same: the same author need not have said it.</summary>
    public bool Says(NoteVersion other) => other with
    {
        Author = Author,
        Received = Received,
        Recorded = Recorded,
        Row = Row,
        By = By,
    } == this;

    public static bool IsId(string text) => text.Length is > 0 and <= 64
        && text.All(c => char.IsAsciiLetterOrDigit(c) || "._-".Contains(c));

    /// <summary>What is wrong with it, named by its field; null: nothing.</summary>
    public string? Flaw()
    {
        if (!IsId(Id))
            return "id: it is not 1 to 64 of A-Z a-z 0-9 . _ -";
        if (To <= From)
            return "to: it is not after from";
        if ((Kind == NoteKind.Correction) != (Status != null))
            return Status == null ? "status: a correction says what really was, such as down"
                : "status: only a correction has one";
        if (Status is "" || Status?.Any(c => c != char.ToLowerInvariant(c) || char.IsControl(c)) == true)
            return "status: it is empty, or not in lower case";
        if (string.IsNullOrWhiteSpace(Text))
            return "text: it is empty: what does the note say?";
        if (Encoding.UTF8.GetByteCount(Text) is > MaxText and var size)
            return $"text: it has {size} bytes, more than {MaxText}";
        foreach (var (name, value) in new[] { ("partition", Filter.Partition), ("platform", Filter.Platform),
            ("service", Filter.Service), ("facet", Filter.Facet), ("location", Filter.Location), ("status", Status) })
        {
            if (Encoding.UTF8.GetByteCount(value ?? "") is > AlertMapping.MaxField and var bytes)
                return $"{name}: it has {bytes} bytes, more than {AlertMapping.MaxField}";
            // SQLite takes it for a text's end.
            if (value?.Contains('\0') == true)
                return $"{name}: it has the character U+0000";
        }
        if (Author == "" || Author.Any(char.IsControl) || (AuthorName != null && string.IsNullOrWhiteSpace(AuthorName)))
            return "author_name: it is empty: leave it out";
        return Author.Length > MaxAuthor || AuthorName?.Length > MaxAuthor
            ? $"author_name: it has more than {MaxAuthor} characters" : null;
    }
}

/// <summary>Is thrown for a version that cannot be taken.</summary>
/// <param name="code">Of HTTP.</param>
/// <param name="message">Begins with the field.</param>
internal sealed class NoteException(int code, string message) : Exception(message)
{
    public int Code => code;
}

/// <summary>What a new version says. What it does not give stays as it was.</summary>
/// <param name="Id">Null: of a new note.</param>
/// <param name="Version">The number that the last version is to have, 0: there is to be none; null: any.</param>
/// <param name="Given">The names of the fields that were given, also of those that are null.</param>
internal sealed record NoteDraft(string? Id, long? Version, IReadOnlySet<string> Given)
{
    public NoteKind? Kind { get; init; }
    public DateTime? From { get; init; }
    public DateTime? To { get; init; }
    public string? Platform { get; init; }
    public string? Service { get; init; }
    public string? Facet { get; init; }
    public string? Location { get; init; }
    public string? Status { get; init; }
    public string? Text { get; init; }
    public string? AuthorName { get; init; }
    public bool? IsWithdrawn { get; init; }

    /// <summary>The version that it makes of a note; null: of none.</summary>
    /// <param name="received">Later than any version of it.</param>
    /// <exception cref="NoteException">It makes none.</exception>
    public NoteVersion Of(Note? note, string id, string partition, string author, DateTime received)
    {
        var last = note?.Last;
        if (last == null && IsWithdrawn == true)
            throw new NoteException(404, $"id: there is no note '{id}' of partition '{partition}'");
        if (Version is { } expected && expected != (note?.Versions.Count ?? 0))
            throw new NoteException(409, $"version: the last one of '{id}' is {note?.Versions.Count ?? 0}, not {expected}");
        if (Kind is { } kind && last?.Kind is { } before && kind != before)
            throw new NoteException(400, $"kind: '{id}' is {NameOf(before)}, and a note stays what it is");
        T? Field<T>(string name, T? given, T? was) => Given.Contains(name) ? given : was;
        var made = new NoteVersion(id,
            Kind ?? last?.Kind ?? throw Missing("kind", string.Join(" or ", Kinds)),
            From ?? last?.From ?? throw Missing("from", "when it begins"),
            Field("to", To, last?.To),
            new NoteFilter(partition, Field("platform", Platform, last?.Filter.Platform),
                Field("service", Service, last?.Filter.Service), Field("facet", Facet, last?.Filter.Facet),
                Field("location", Location, last?.Filter.Location)),
            Field("status", Status, last?.Status), Text ?? last?.Text ?? throw Missing("text", "what it says"),
            author, Field("author_name", AuthorName, last?.AuthorName), IsWithdrawn ?? last?.IsWithdrawn ?? false, received);
        return made.Flaw() is { } flaw ? throw new NoteException(400, flaw) : made;
    }

    private static NoteException Missing(string field, string what) => new(400, $"{field}: it is missing; needed: {what}");

    /// <summary>As notes name them.</summary>
    public static readonly string[] Kinds = ["maintenance", "excluded", "correction", "comment", "retired"];

    public static string NameOf(NoteKind kind) => Kinds[(int)kind];

    public static NoteKind? KindOf(string? name) =>
        Array.IndexOf(Kinds, name) is >= 0 and var kind ? (NoteKind)kind : null;
}

/// <summary>A note with all its versions, in the order in which they were received; there is one at least.</summary>
internal sealed record Note(IReadOnlyList<NoteVersion> Versions)
{
    /// <summary>What holds.</summary>
    public NoteVersion Last => Versions[^1];

    /// <summary>
    /// The time of it that was announced: that the last version covers, and that the one covered which was in
    /// force then. Work is announced before, never after.
    /// </summary>
    /// <param name="takes">Whether a version is about what is asked for.</param>
    public Interval[] Announced(Func<NoteFilter, bool> takes)
    {
        if (Last.IsWithdrawn || !takes(Last.Filter))
            return [];
        var spans = new List<Interval>();
        for (var i = 0; i < Versions.Count; i++)
        {
            var (version, last) = (Versions[i], Last.Span);
            if (version.IsWithdrawn || version.Kind != Last.Kind || !takes(version.Filter))
                continue;
            var until = i + 1 < Versions.Count ? UnixTime.From(Versions[i + 1].Received) : UnixTime.Open;
            var from = Math.Max(version.Span.From, UnixTime.From(version.Received));
            spans.Add(new(Math.Max(from, last.From), Math.Min(Math.Min(version.Span.To, until), last.To)));
        }
        return Interval.United(spans);
    }
}

// ================================= 8. Store ==================================
//
// The promise that SeS makes to its senders: a 2xx means the facts are on disk. One SQLite database in WAL
// mode, fully synchronised. One thread writes. It commits what all waiting requests brought in one
// transaction, and derives in others, short ones, what the facts of a service say: its timeline and its
// present. Facts are appended and never changed; what is derived can be made again from them. Questions
// have connections of their own, and each sees one snapshot.

/// <summary>Is thrown when facts could not be stored; the sender is answered 503, and repeats.</summary>
internal sealed class StoreException(string message) : Exception(message);

/// <summary>What the store is told by the settings.</summary>
/// <param name="Name">
/// Of this SeS, as the facts that it takes have it; null: the stored one, or the host's.
/// </param>
/// <param name="StaleAfter">An open episode of Alertmanager that is not repeated for so long lapses.</param>
/// <param name="MaxServices">Alerts of further ones are quarantined; also of further partitions.</param>
/// <param name="MaxAlerts">Further label sets are quarantined.</param>
/// <param name="Onix">Whom changes are marked for, by its URL; null: nobody.</param>
/// <param name="Retention">Facts are kept for so long; null: for ever.</param>
/// <param name="MaxSize">Of the database in bytes: the oldest facts go before it is reached.</param>
/// <param name="Mapping">What alerts are mapped by; null: none come.</param>
internal sealed record StoreRules(
    string? Name, TimelineRules Timeline, TimeSpan StaleAfter, long MaxServices, long MaxAlerts,
    string? Onix = null, TimeSpan? Retention = null, long? MaxSize = null, MappingRules? Mapping = null)
{
    /// <summary>A service of which nothing was heard for so long is not listed.</summary>
    public TimeSpan Forget { get; init; } = TimeSpan.FromDays(30);

    public static StoreRules Of(Options options) => new(options.Name, new TimelineRules(options.Pause),
        options.StaleAfter, options.MaxServices, options.MaxAlerts, options.OnixUrl?.AbsoluteUri,
        options.Retention, options.MaxSize, options.Mapping)
    {
        Forget = options.Forget,
    };
}

/// <summary>The names of the four statuses that have a number of their own.</summary>
internal static class StatusNames
{
    public static readonly string[] Own = ["up", "degraded", "down", "unknown"];
}

/// <summary>
/// The tables. A time is whole milliseconds since 1970 UTC. A <c>sum</c> is CRC-32C over the row's other
/// values in their order, since SQLite has no checksums of its own; names are in an index too, and compared
/// with it. Facts, state and what is derived are told apart at each table.
/// </summary>
internal static class Schema
{
    /// <summary>"SeS1", so that file(1) and SQLite's tools can tell what it is.</summary>
    public const int ApplicationId = 0x53655331;

    public const int Version = 1;

    public const string Tables = """
        -- State: the last id given, through which observation the timeline is derived, the store's id.
        CREATE TABLE meta(name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
        CREATE INDEX meta_value ON meta(name, value);
        -- Facts: the SeS that took facts; partitions, statuses, families of services by name.
        -- State: own, it is a name that this SeS has or had; heard, the latest receipt that came from another.
        CREATE TABLE peer(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, own INTEGER NOT NULL DEFAULT 0,
            heard INTEGER NOT NULL DEFAULT 0) STRICT;
        -- State of a partition: when a webhook first brought an alert that fires, and whether one that has ended.
        CREATE TABLE partition(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, firing INTEGER,
            resolved INTEGER NOT NULL DEFAULT 0) STRICT;
        CREATE TABLE status(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
        CREATE TABLE family(id INTEGER PRIMARY KEY, partition INTEGER NOT NULL, platform TEXT NOT NULL,
            service TEXT NOT NULL, facet TEXT NOT NULL, UNIQUE(partition, platform, service, facet)) STRICT;
        -- Facts: the first receipt of anything of a partition; heartbeat: that one was armed, of a platform or,
        -- where that is null, of the partition.
        CREATE TABLE receipt(id INTEGER PRIMARY KEY, partition INTEGER NOT NULL, platform TEXT, heartbeat TEXT,
            by INTEGER NOT NULL, received INTEGER NOT NULL, recorded INTEGER NOT NULL, sum INTEGER NOT NULL) STRICT;
        -- Facts: in which nothing could have been received. Its begin is one, its end another, with the same
        -- begin; received: since when it was known. partition null: SeS was away; else that heartbeat was silent.
        CREATE TABLE gap(id INTEGER PRIMARY KEY, partition INTEGER, platform TEXT, heartbeat TEXT,
            by INTEGER NOT NULL, begins INTEGER NOT NULL, ends INTEGER, received INTEGER NOT NULL,
            recorded INTEGER NOT NULL, sum INTEGER NOT NULL) STRICT;
        CREATE INDEX gap_begins ON gap(begins);
        -- Facts: the versions of notes, a row each; note: its id, of which each partition has its own. A name that
        -- is null is any, one that ends in * is what begins so.
        CREATE TABLE note(id INTEGER PRIMARY KEY, partition INTEGER NOT NULL, note TEXT NOT NULL, by INTEGER NOT NULL,
            kind INTEGER NOT NULL, begins INTEGER NOT NULL, ends INTEGER, platform TEXT, service TEXT, facet TEXT,
            location TEXT, status TEXT, text TEXT NOT NULL, author TEXT NOT NULL, author_name TEXT,
            withdrawn INTEGER NOT NULL, received INTEGER NOT NULL, recorded INTEGER NOT NULL, sum INTEGER NOT NULL) STRICT;
        CREATE INDEX note_version ON note(partition, note, received);
        -- State, once a minute: each alert that beats. platform '': it speaks for the partition; last: its last
        -- beat; away: for how long SeS was not there since.
        CREATE TABLE beat(partition INTEGER NOT NULL, platform TEXT NOT NULL, heartbeat TEXT NOT NULL,
            alert INTEGER NOT NULL, source INTEGER NOT NULL, last INTEGER NOT NULL, away INTEGER NOT NULL,
            PRIMARY KEY(partition, platform, heartbeat, alert)) STRICT, WITHOUT ROWID;
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
        -- Derived: alert, starts. State: seen, a copy, and the last one was not an hour later; away: for how
        -- long SeS was not there since, which does not make it stale; own: it is this SeS's to give up.
        CREATE TABLE open(alert INTEGER PRIMARY KEY, service INTEGER NOT NULL, starts INTEGER NOT NULL,
            seen INTEGER NOT NULL, away INTEGER NOT NULL, own INTEGER NOT NULL) STRICT;
        CREATE INDEX open_seen ON open(seen + away) WHERE own;
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
        -- State: what Onix confirmed of each service's item, and what it is to get. version 0: there is none; own:
        -- this SeS knows of the change that Onix holds, and what came of it, else another one wrote it;
        -- next: no change that Onix lacks is earlier, null: it has all; marks: how often it was marked, marked:
        -- since when; due: not before; tries, barred, error: how often, since when and why it was refused.
        CREATE TABLE onix(service INTEGER PRIMARY KEY, key TEXT, version INTEGER NOT NULL DEFAULT 0,
            status TEXT, at INTEGER, own INTEGER NOT NULL DEFAULT 0, next INTEGER,
            marks INTEGER NOT NULL DEFAULT 0, marked INTEGER, due INTEGER,
            tries INTEGER NOT NULL DEFAULT 0, barred INTEGER, error TEXT) STRICT;
        CREATE INDEX onix_waiting ON onix(due, next, marked, barred) WHERE next IS NOT NULL;
        -- State: changes that were sent to Onix, as long as nothing is known of what came of them.
        CREATE TABLE sent(service INTEGER NOT NULL, at INTEGER NOT NULL, status TEXT NOT NULL,
            PRIMARY KEY(service, at, status)) STRICT, WITHOUT ROWID;
        -- Facts, bounded: alerts that could not be mapped, and who sent them.
        CREATE TABLE quarantine(id INTEGER PRIMARY KEY, recorded INTEGER NOT NULL, partition TEXT NOT NULL,
            source INTEGER NOT NULL, identity BLOB NOT NULL UNIQUE, reason TEXT NOT NULL, alert BLOB NOT NULL) STRICT;
        -- State: each run of ses purge: whose it was, and how much it took. service null: the whole partition;
        -- ended null: it goes on, or was interrupted.
        CREATE TABLE purge(id INTEGER PRIMARY KEY, begun INTEGER NOT NULL, ended INTEGER, user TEXT NOT NULL,
            uid INTEGER NOT NULL, host TEXT NOT NULL, partition TEXT NOT NULL, service TEXT,
            services INTEGER NOT NULL DEFAULT 0, alerts INTEGER NOT NULL DEFAULT 0,
            observations INTEGER NOT NULL DEFAULT 0, quarantined INTEGER NOT NULL DEFAULT 0) STRICT;
        INSERT INTO status VALUES (0, 'up'), (1, 'degraded'), (2, 'down'), (3, 'unknown');
        """;

    /// <exception cref="DataDirException">Another program's database, or a newer SeS's.</exception>
    public static void Check(SqliteConnection database)
    {
        if (database.Number("PRAGMA application_id") != ApplicationId)
            throw new DataDirException($"{Store.FileName} is no database of SeS");
        if (database.Number("PRAGMA user_version") is var version && version != Version)
            throw new DataDirException(
                $"{Store.FileName} has version {version}; this SeS knows {Version} alone");
    }

    /// <summary>The tables, indexes and views that are missing, or are not as they were made.</summary>
    public static IEnumerable<string> Changed(SqliteConnection database)
    {
        using var model = new SqliteConnection(":memory:", isReadOnly: false, 1000);
        model.Execute(Tables + Views);
        using var objects = model.Query("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL");
        using var same = database.Query("SELECT 1 FROM sqlite_schema WHERE name = ?1 AND sql = ?2");
        while (objects.Step())
        {
            if (same.Bind(1, objects.Text(0)).Bind(2, objects.Text(1)).Number() == null)
                yield return objects.Text(0);
        }
    }

    /// <summary>For people with sqlite3 -readonly; times are text, in UTC.</summary>
    public const string Views = """
        CREATE VIEW services AS
            SELECT p.name AS partition, f.platform, f.service, f.facet, s.location, t.name AS status,
                strftime('%Y-%m-%dT%H:%M:%fZ', s.since / 1000.0, 'unixepoch') AS since
            FROM service s JOIN family f ON f.id = s.family JOIN partition p ON p.id = f.partition
                LEFT JOIN status t ON t.id = s.status;
        CREATE VIEW history AS
            SELECT strftime('%Y-%m-%dT%H:%M:%fZ', r.at / 1000.0, 'unixepoch') AS time, p.name AS partition,
                f.platform, f.service, f.facet, s.location, t.name AS status,
                CASE WHEN r.status = 0 AND a.dialect = 0
                    THEN json_extract(a.labels, '$.alertname') || ' resolved'
                    ELSE coalesce(o.text, a.text, '') END AS description,
                strftime('%Y-%m-%dT%H:%M:%fZ', o.received / 1000.0, 'unixepoch') AS received
            FROM timeline r JOIN service s ON s.id = r.service JOIN family f ON f.id = s.family
                JOIN partition p ON p.id = f.partition JOIN status t ON t.id = r.status
                LEFT JOIN observation o ON o.id = r.observation LEFT JOIN alert a ON a.id = o.alert
            WHERE r.at = r.since;
        -- Unknown time of less than a day between two downs does not end an outage, and is no down time.
        CREATE VIEW outages AS
            WITH downs AS (SELECT service, at, until,
                    lag(until) OVER (PARTITION BY service ORDER BY at) AS before
                FROM timeline WHERE status = 2),
            begun AS (SELECT d.*, before IS NULL OR at - before >= 86400000 OR EXISTS (SELECT 1 FROM timeline n
                    WHERE n.service = d.service AND n.at >= before AND n.at < d.at AND n.status <> 3) AS begins
                FROM downs d),
            numbered AS (SELECT *, sum(begins) OVER (PARTITION BY service ORDER BY at) AS outage FROM begun)
            SELECT p.name AS partition, f.platform, f.service, f.facet, s.location,
                strftime('%Y-%m-%dT%H:%M:%fZ', min(r.at) / 1000.0, 'unixepoch') AS from_time,
                CASE WHEN max(r.until) < 9000000000000000
                    THEN strftime('%Y-%m-%dT%H:%M:%fZ', max(r.until) / 1000.0, 'unixepoch') END AS to_time,
                CASE WHEN max(r.until) < 9000000000000000
                    THEN sum(r.until - r.at) / 1000.0 END AS seconds
            FROM numbered r JOIN service s ON s.id = r.service JOIN family f ON f.id = s.family
                JOIN partition p ON p.id = f.partition
            GROUP BY r.service, r.outage;
        """;
}

/// <summary>What became of the alerts of a request.</summary>
internal readonly record struct Stored(long New, long Known, long Quarantined)
{
    public const int MaxRefused = 100;

    /// <summary>Of the quarantined ones those that are one too many, the first of them; null: none.</summary>
    public IReadOnlyList<UnmappableAlert>? Refused { get; init; }
}

/// <summary>The database, its one writer, and what questions read from.</summary>
internal sealed class Store : IDisposable
{
    public const string FileName = "ses.db";

    /// <summary>Connections that are kept for questions; others are closed after use.</summary>
    private const int MaxReaders = 4;

    /// <summary>Longer than any commit, checkpoint and lock together.</summary>
    private static readonly TimeSpan StuckTime = TimeSpan.FromSeconds(60);

    /// <summary>What may wait for the writer, about; more is answered 503.</summary>
    private const int MaxWaiting = 64 * 1024 * 1024;

    private const int WriterCache = 16 * 1024, ReaderCache = 2 * 1024;

    /// <summary>Where more observations wait to be derived, requests wait for that.</summary>
    private const int MaxUnderived = 20_000;

    /// <summary>A transaction that derives holds requests up for no longer.</summary>
    private static readonly TimeSpan
        DeriveTime = TimeSpan.FromMilliseconds(20), MaxDeriveTime = TimeSpan.FromMilliseconds(100);

    /// <summary>
    /// How soon what changes with time alone is looked for, and a disk that refused is tried again.
    /// </summary>
    public static readonly TimeSpan TickPeriod = TimeSpan.FromSeconds(1);

    /// <summary>A commit takes some milliseconds, on a busy disk a second.</summary>
    private static readonly TimeSpan DiskTime = TimeSpan.FromSeconds(10);

    // For life.
    private readonly string _path;
    private readonly TimeProvider _clock;
    private readonly Log _log;
    private readonly Thread _thread;
    private readonly Writer _writer;
    private readonly RecentAlerts _recent = new();
    private readonly Renewals _renewals = new();
    private readonly TaskCompletionSource<string> _failed =
        new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly ConcurrentBag<Reader> _readers = [];
    private readonly WeakReference<SharedNames> _names = new(new SharedNames());
    private readonly Meters _meters;
    private long _turned;
    private int _isClosed;

    // The writer's thread's: questions that wait until all that was there when they came is derived.
    private readonly Queue<(TaskCompletionSource<DateTime> Question, long Through)> _asked = [];

    // Guarded by _gate.
    private readonly object _gate = new();
    private List<Request> _waiting = [];
    private long _waitingBytes;
    private readonly List<TaskCompletionSource<DateTime>> _questions = [];
    private List<Change> _changes = [];
    private bool _stopping;
    private string? _refusal;

    /// <summary>Completes when something was marked for Onix since the last that did.</summary>
    private volatile TaskCompletionSource _marked = new(TaskCreationOptions.RunContinuationsAsynchronously);

    /// <summary>What one webhook brought, waiting for its transaction.</summary>
    private sealed class Request(string partition, ReceivedAlerts alerts, IReadOnlyList<UInt128> keys,
        UInt128? cures, DateTime received)
    {
        public string Partition => partition;
        public ReceivedAlerts Alerts => alerts;
        public IReadOnlyList<UInt128> Keys => keys;
        public UInt128? Cures => cures;
        public DateTime Received => received;
        public Stored Result { get; set; }
        public TaskCompletionSource<Stored> Done { get; } =
            new(TaskCreationOptions.RunContinuationsAsynchronously);

        public long Size { get; } = alerts.Alerts.Sum(a => 200L + a.Labels.Length + a.Description.Length)
            + alerts.UnmappableAlerts.Sum(u => 200L + u.Raw.Length);
    }

    /// <summary>A change of state, waiting for its transaction.</summary>
    private sealed record Change(Action Run, Action<StoreException> Fail);

    /// <summary>Opens the database, makes it if there is none, and starts the writer.</summary>
    /// <exception cref="DataDirException">It was written by a newer SeS, or is none of SeS's.</exception>
    /// <exception cref="SqliteException">SQLite refused.</exception>
    public Store(string directory, StoreRules rules, TimeProvider clock, Log log, Meters meters)
    {
        _path = Path.Combine(Path.GetFullPath(directory), FileName);
        (_clock, _log, _meters) = (clock, log, meters);
        _turned = clock.GetTimestamp();
        DataDir.Check(directory);
        _writer = new Writer(_path, WriterCache, rules, _recent, _clock, _renewals) { IsDaemon = true };
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

    public const string DamageText = "the database is damaged: ses check tells what, and how to mend it";

    // ---- Requests ----

    /// <summary>Completes when all that a request brought is on disk, flushed.</summary>
    /// <param name="cures">
    /// The quarantined alert that was sent again: it is struck off if it is mapped now.
    /// </param>
    /// <param name="within">The disk is to have it within this time; null: ten seconds.</param>
    /// <exception cref="StoreException">Not all of it is; it is to be sent again.</exception>
    public Task<Stored> AppendAsync(
        string partition, ReceivedAlerts alerts, UInt128? cures = null, TimeSpan? within = null)
    {
        var now = Now();
        alerts = _renewals.Judge(alerts, now);
        var keys = _recent.KeysOf(alerts.Alerts);
        if (alerts.IsAllMapped && cures == null && _recent.Knows(keys, alerts.Alerts, now)
            && !_writer.Watching.AwaitsAlerts && !_failed.Task.IsCompleted && _writer.HasItsFiles)
        {
            _recent.Renew(_renewals, keys, alerts.Alerts, now);
            return Task.FromResult(new Stored(0, alerts.Alerts.Count, 0));
        }
        var request = new Request(partition, alerts, keys, cures, now);
        lock (_gate)
        {
            if (_stopping || _refusal != null)
                throw new StoreException(_stopping ? "SeS is shutting down." : _refusal!);
            if (_waitingBytes > MaxWaiting)
                throw new StoreException("Too much is waiting for the disk.");
            _waiting.Add(request);
            _waitingBytes += request.Size;
            Monitor.Pulse(_gate);
        }
        return AnswerAsync(request, within ?? DiskTime);
    }

    private async Task<Stored> AnswerAsync(Request request, TimeSpan within)
    {
        try
        {
            return await request.Done.Task.WaitAsync(within, _clock);
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
    /// A snapshot that has all that was answered 2xx before, and all that time has brought. While one is open
    /// the log cannot start anew: it is to be short.
    /// </summary>
    public async Task<Snapshot> ReadAsync()
    {
        var caughtUp = new TaskCompletionSource<DateTime>(TaskCreationOptions.RunContinuationsAsynchronously);
        lock (_gate)
        {
            if (_stopping)
                throw new StoreException("SeS is shutting down.");
            _questions.Add(caughtUp);
            Monitor.Pulse(_gate);
        }
        var moment = await caughtUp.Task;
        var snapshot = Snapshot();
        snapshot.Moment = moment;
        return snapshot;
    }

    /// <summary>A snapshot in which what was heard last may not be derived yet.</summary>
    public Snapshot Snapshot() =>
        new(_readers.TryTake(out var reader) ? reader : new Reader(_path, ReaderCache), GiveBack, Now(), Names());

    /// <summary>They go when no question is answered any more.</summary>
    private SharedNames Names()
    {
        lock (_names)
        {
            if (!_names.TryGetTarget(out var names))
                _names.SetTarget(names = new SharedNames());
            return names;
        }
    }

    private void GiveBack(Reader reader)
    {
        if (_readers.Count < MaxReaders)
            _readers.Add(reader);
        else
            reader.Dispose();
    }

    // ---- Notes ----

    /// <summary>Runs what a person brought in a transaction, which is flushed when it completes.</summary>
    /// <exception cref="StoreException">It is not stored; it is to be sent again.</exception>
    public async Task<T> AddAsync<T>(Func<Writer, DateTime, T> add)
    {
        var done = new TaskCompletionSource<T>(TaskCreationOptions.RunContinuationsAsynchronously);
        void Run()
        {
            T result = default!;
            var now = Now();
            _writer.Commit([() => result = add(_writer, now)], now);
            done.TrySetResult(result);
        }

        lock (_gate)
        {
            if (_stopping || _refusal != null)
                throw new StoreException(_stopping ? "SeS is shutting down." : _refusal!);
            _changes.Add(new(Run, e => done.TrySetException(e)));
            Monitor.Pulse(_gate);
        }
        try
        {
            return await done.Task.WaitAsync(DiskTime, _clock);
        }
        catch (TimeoutException)
        {
            throw new StoreException("The disk does not answer.");
        }
    }

    // ---- State ----

    /// <summary>Changes what is no fact, in a transaction that is not flushed by itself.</summary>
    /// <exception cref="StoreException">The store is closed, or the disk refuses.</exception>
    public async Task<T> ChangeAsync<T>(Func<Writer, T> change)
    {
        var done = new TaskCompletionSource<T>(TaskCreationOptions.RunContinuationsAsynchronously);
        lock (_gate)
        {
            if (_stopping)
                throw new StoreException("SeS is shutting down.");
            _changes.Add(new(() => done.SetResult(_writer.Change(change, Now())), e => done.TrySetException(e)));
            Monitor.Pulse(_gate);
        }
        return await done.Task;
    }

    /// <summary>Completes once something is marked for Onix that was not when it was asked.</summary>
    public Task Marked => _marked.Task;

    /// <summary>What is known of those who send.</summary>
    public Watching Watching => _writer.Watching;

    /// <summary>
    /// How many services and label sets there are, and observations that are not derived yet.
    /// </summary>
    public (long Services, long LabelSets, long Underived) Count =>
        (_writer.Services, _writer.LabelSets, _writer.Underived);

    /// <summary>Bytes of the database with its log, and bytes that are free.</summary>
    public (long Used, long Free) Size() => StoreSize.OnDisk(_path);

    public StoreSize Size(Snapshot snapshot) => StoreSize.Of(snapshot, _path);

    public bool IsStopping
    {
        get
        {
            lock (_gate)
                return _stopping;
        }
    }

    /// <summary>The writer has not come round for so long: the disk hangs.</summary>
    public bool IsStuck => _clock.GetElapsedTime(Volatile.Read(ref _turned)) > StuckTime;

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
            Fail(e.IsDamage ? DamageText : "the disk can no longer be trusted", e.Message, e.Reason);
        }
        catch (Exception e)
        {
            _meters.Defects.Inc();
            Fail("a defect in SeS: nothing can be stored", e, "a defect, which the log tells");
        }
        finally
        {
            EndRequests(new StoreException("SeS is shutting down."));
        }
    }

    /// <summary>One transaction of facts if any wait, and one that derives. False: to stop.</summary>
    private bool Turn()
    {
        var work = Wait();
        Volatile.Write(ref _turned, _clock.GetTimestamp());
        if (work.Requests.Count > 0)
            Commit(work.Requests);
        foreach (var change in work.Changes)
            Run(change);
        foreach (var question in work.Questions)
            _asked.Enqueue((question, _writer.LastObservation));
        if (work.IsStopping && work.Requests.Count == 0 && work.Changes.Count == 0)
        {
            Leave();
            return false;
        }
        try
        {
            // Not at once: what was refused may be more than is tried, and senders are to be told meanwhile.
            if (_refusal != null && work.Requests.Count == 0)
                Commit([]);
            _writer.Derive(Now(), IsDerivedEnough(), isAsked: _asked.Count > 0);
            _writer.Upkeep(Now(), _clock, _log, _meters);
            Answer(isRefused: false);
        }
        catch (SqliteException e) when (e.IsFull || e.IsBusy)
        {
            Refuse(e);
            // What is derived may lag behind while the disk refuses; no fact is acknowledged then.
            Answer(isRefused: true);
        }
        if (_writer.TakeMarked())
            Interlocked.Exchange(ref _marked,
                new(TaskCreationOptions.RunContinuationsAsynchronously)).TrySetResult();
        return true;
    }

    /// <summary>A last sign of life: what was open until now was heard.</summary>
    private void Leave()
    {
        try
        {
            _writer.Leave(Now());
        }
        catch (SqliteException e) when (e.IsFull || e.IsBusy)
        {
            // The one before has to do.
        }
    }

    /// <summary>
    /// Requests that come meanwhile wait for as long as the commit took, so that more of them share the next
    /// flush; for longer if a question waits, or too much.
    /// </summary>
    private Func<bool> IsDerivedEnough()
    {
        var (began, committed) = (_clock.GetTimestamp(), _clock.GetElapsedTime(_turned));
        var isMuch = _writer.Underived > MaxUnderived;
        var longest = isMuch
            ? new(Math.Clamp(committed.Ticks, DeriveTime.Ticks, MaxDeriveTime.Ticks)) : DeriveTime;
        return () => _clock.GetElapsedTime(began) is var taken && (taken > longest
            || (taken > committed && !isMuch && _asked.Count == 0 && Volatile.Read(ref _waitingBytes) > 0));
    }

    /// <summary>
    /// Answers the questions for which all that was acknowledged before them is derived. What is recorded
    /// from now on is later than their moment.
    /// </summary>
    private void Answer(bool isRefused)
    {
        if (_asked.Count == 0 || (!isRefused && _writer.IsDue(Now())))
            return;
        if (!isRefused)
            _writer.AwaitOthers();
        var moment = _writer.Close(Now().AddMilliseconds(-1));
        // What was to be derived may have been purged.
        while (_asked.TryPeek(out var asked)
            && (isRefused || _writer.Derived >= asked.Through || !_writer.IsBehind))
            _asked.Dequeue().Question.TrySetResult(moment);
    }

    private void Run(Change change)
    {
        try
        {
            change.Run();
        }
        catch (SqliteException e)
        {
            Refuse(e);
            change.Fail(new StoreException(Refusal!));
            if (!e.IsFull && !e.IsBusy)
                throw;
        }
    }

    /// <summary>What waits for the writer.</summary>
    private sealed record Work(List<Request> Requests, List<TaskCompletionSource<DateTime>> Questions,
        List<Change> Changes, bool IsStopping);

    private Work Wait()
    {
        lock (_gate)
        {
            // What is behind waits, too, while the disk refuses: it is tried again at the next tick.
            var isIdle = (!_writer.IsWorking && _asked.Count == 0) || _refusal != null;
            if (_waiting.Count == 0 && _questions.Count == 0 && _changes.Count == 0 && !_stopping && isIdle)
                Monitor.Wait(_gate, TickPeriod);
            var work = new Work(_waiting, [.. _questions], _changes, _stopping);
            (_waiting, _waitingBytes, _changes) = ([], 0, []);
            _questions.Clear();
            return work;
        }
    }

    private void Commit(List<Request> requests)
    {
        var began = _clock.GetTimestamp();
        try
        {
            _writer.Commit(requests.Select(r => (Action)(() => r.Result = _writer.Take(
                r.Partition, r.Alerts, r.Keys, r.Cures, r.Received))), Now(), isProbe: requests.Count == 0);
            SetRefusal(null);
            if (requests.Count > 0)
                _meters.CommitDuration.Observe(_clock.GetElapsedTime(began).TotalSeconds);
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
            : e.IsBusy ? $"Another process holds the database{Holder()}."
            : e.IsDamage ? "The database is damaged: ses check tells what." : "The disk refused.");
    }

    /// <summary>The process that holds SQLite's lock for writing, if the system tells.</summary>
    private string Holder() =>
        Disk.LockHolder(_path + "-shm", WriteLockByte) is { } id ? $" (process {id})" : "";

    /// <summary>
    /// Of the lock for writing in the shared memory's file (sqlite.org/walformat.html, 2.3.1).
    /// </summary>
    private const int WriteLockByte = 120;

    private void SetRefusal(string? refusal)
    {
        lock (_gate)
            _refusal = refusal;
        _writer.IsRefusing = refusal != null;
    }

    private void Fail(string what, object reason, string shown)
    {
        _log.Error(what, ("reason", reason));
        SetRefusal("The store failed.");
        _failed.TrySetResult(shown);
    }

    private void EndRequests(StoreException why)
    {
        lock (_gate)
        {
            _stopping = true;
            foreach (var request in _waiting)
                request.Done.TrySetException(why);
            foreach (var question in _questions.Concat(_asked.Select(a => a.Question)))
                question.TrySetException(why);
            foreach (var change in _changes)
                change.Fail(why);
            _waiting.Clear();
            _questions.Clear();
            _changes.Clear();
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
        // What is closed last moves the log into the database and deletes it: if the files cannot be trusted
        // the next start is to find them as they are.
        if (Interlocked.Exchange(ref _isClosed, 1) != 0 || _failed.Task.IsCompleted)
            return;
        while (_readers.TryTake(out var reader))
            reader.Dispose();
        _writer.Dispose();
    }
}

/// <summary>The facts of one service at a time, and the runs that are held of it.</summary>
internal sealed class ServiceFacts(SqliteConnection database) : IDisposable
{
    private readonly SqliteStatement
        _observations = database.Query("""
            SELECT id, alert, kind, starts, ends, status, received, by FROM observation
            WHERE service = ?1 AND id <= ?2 ORDER BY alert, starts, received, kind
            """),
        _traits = database.Query("SELECT id, dialect, source FROM alert WHERE service = ?1"),
        _lapses = database.Query(
            "SELECT alert, starts FROM observation WHERE service = ?1 AND kind = 3 AND id <= ?2 AND text = ?3"),
        _runs = database.Query("""
            SELECT at, until, status, open, observation, since FROM timeline WHERE service = ?1 ORDER BY at
            """);

    private readonly List<Observation> _facts = [];
    private readonly List<long> _by = [];
    private readonly Dictionary<long, AlertTraits> _traitsOf = [];
    private HashSet<long>? _own;

    /// <summary>The text of a lapse that counts for all who heard the episode: the others are silent.</summary>
    public const string ForSilent = "given up also for others, of which nothing is heard any more";

    public void Dispose()
    {
        _observations.Dispose();
        _traits.Dispose();
        _lapses.Dispose();
        _runs.Dispose();
    }

    /// <summary>In order of alert, start, receipt and kind; valid until others are read.</summary>
    public ReadOnlySpan<Observation> Observations => CollectionsMarshal.AsSpan(_facts);

    /// <exception cref="SqliteException">Its row is damaged.</exception>
    public AlertTraits TraitsOf(long alert) => _traitsOf.TryGetValue(alert, out var traits) ? traits
        : throw new SqliteException(SqliteException.Corrupt, 0,
            $"alert {alert} has observations, but its row is not of their service: ses check");

    /// <param name="through">The last observation that counts.</param>
    public void Read(long service, long through = long.MaxValue)
    {
        _facts.Clear();
        _by.Clear();
        var hasLapse = false;
        _observations.Bind(1, service).Bind(2, through);
        while (_observations.Step())
        {
            _facts.Add(ObservationOf(_observations));
            _by.Add(_observations.Number(7));
            hasLapse |= _facts[^1].Kind == ObservationKind.Lapse;
        }
        if (hasLapse)
            DropEarlyLapses(service, through);
        _traitsOf.Clear();
        _traits.Bind(1, service);
        while (_traits.Step())
            _traitsOf[_traits.Number(0)] =
                new AlertTraits(_traits.Number(1) != 0, (AlertSource)_traits.Number(2));
    }

    /// <summary>
    /// An episode is given up once each SeS that heard it has given it up, or is silent: one that was cut off
    /// does not speak for the others.
    /// </summary>
    private void DropEarlyLapses(long service, long through)
    {
        var (lapsed, kept) = (new HashSet<(long, DateTime, long)>(), 0);
        // In the order of receipt: who hears it again takes it back.
        for (var i = 0; i < _facts.Count; i++)
        {
            var (alert, starts) = (_facts[i].Alert, _facts[i].Starts);
            if (_facts[i].Kind == ObservationKind.Lapse)
                lapsed.Add((alert, starts, PeerOf(i)));
            else
                lapsed.Remove((alert, starts, PeerOf(i)));
        }
        var heard = new HashSet<(long, DateTime)>();
        for (var i = 0; i < _facts.Count; i++)
        {
            if (_facts[i].Kind != ObservationKind.Lapse
                && !lapsed.Contains((_facts[i].Alert, _facts[i].Starts, PeerOf(i))))
                heard.Add((_facts[i].Alert, _facts[i].Starts));
        }
        if (heard.Count > 0)
        {
            for (_lapses.Bind(1, service).Bind(2, through).Bind(3, ForSilent); _lapses.Step();)
                heard.Remove((_lapses.Number(0), UnixTime.Read(_lapses.Number(1))));
        }
        for (var i = 0; i < _facts.Count; i++)
        {
            if (_facts[i].Kind != ObservationKind.Lapse || !heard.Contains((_facts[i].Alert, _facts[i].Starts)))
                _facts[kept++] = _facts[i];
        }
        _facts.RemoveRange(kept, _facts.Count - kept);
    }

    /// <summary>Who took a fact; this SeS is one under all its names.</summary>
    private long PeerOf(int fact)
    {
        if (_own == null)
        {
            _own = [];
            using var own = database.Query("SELECT id FROM peer WHERE own = 1");
            while (own.Step())
                _own.Add(own.Number(0));
        }
        return _own.Contains(_by[fact]) ? 0 : _by[fact];
    }

    /// <summary>Derives the timeline from what was read; see <see cref="Timeline.Derive"/>.</summary>
    public DateTime? Derive(DateTime? knownFrom, DateTime now, TimelineRules rules, List<Run> runs,
        List<(long Alert, DateTime Starts)>? open = null, Gaps? gaps = null) =>
        Timeline.Derive(Observations, TraitsOf, knownFrom, null, now, rules, runs, open, gaps);

    /// <summary>The runs that are held of a service, and of each when its status began.</summary>
    public void ReadRuns(long service, List<Run> runs, List<long> since)
    {
        runs.Clear();
        since.Clear();
        _runs.Bind(1, service);
        while (_runs.Step())
        {
            runs.Add(RunOf(_runs));
            since.Add(_runs.Number(5));
        }
    }

    /// <summary>A row of at, until, status, open, observation.</summary>
    public static Run RunOf(SqliteStatement row) => new(UnixTime.Read(row.Number(0)),
        row.Number(1) == UnixTime.Open ? null : UnixTime.Read(row.Number(1)), (Status)row.Number(2), row.Number(3) != 0,
        row.Number(4));

    /// <summary>When the status of each run began: with the first run of those that have the same.</summary>
    public static void AddSince(List<Run> runs, List<long> since)
    {
        since.Clear();
        for (var i = 0; i < runs.Count; i++)
        {
            var goesOn = i > 0 && runs[i - 1].Status == runs[i].Status && runs[i - 1].To == runs[i].From;
            since.Add(goesOn ? since[^1] : UnixTime.From(runs[i].From));
        }
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

    /// <summary>More words for a status are a mistake in a rule, such as a value for one.</summary>
    public const int MaxStatuses = 1000;

    /// <summary>Of quarantined alerts, in bytes, about.</summary>
    private const int QuarantineSize = 64 * 1024 * 1024;

    /// <summary>A sign of life is written so often, so that a start can tell how long SeS was away.</summary>
    private static readonly TimeSpan AlivePeriod = TimeSpan.FromMinutes(1);

    /// <summary>Rows of an alert's newest episodes that are looked at to judge a copy.</summary>
    private const int NewestRows = 64;

    /// <summary>Senders of one alert whose ends are brought together.</summary>
    private const int MaxSame = 16;

    /// <summary>How exactly an open episode's last copy is known: less often is less written.</summary>
    private static readonly TimeSpan SeenStep = RecentAlerts.SeenStep;

    private readonly SqliteConnection _database;
    private readonly WalPages _pages;
    private readonly DatabaseFiles _files;
    private readonly ServiceFacts _facts;
    private readonly StoreRules _rules;
    private readonly RecentAlerts _recent;
    private readonly Renewals _renewals;
    private readonly TimeProvider _clock;
    private readonly string _path, _folder;
    private readonly Retention _retention;

    private readonly SqliteStatement _begin, _commit, _setMeta, _insertPartition, _updatePartition, _insertReceipt,
        _insertGap, _insertBeat, _insertStatus, _findFamily, _insertFamily, _findService, _insertService, _findAlert, _ofGroup, _insertAlert,
        _newest, _ofStart, _insertObservation, _see, _insertQuarantined, _trimQuarantine,
        _oldestQuarantined, _deleteQuarantined, _cure, _version,
        _behind, _due, _stale, _openAlert, _abandoned, _service, _insertRun, _deleteRun, _endRun,
        _updateRun, _updateService, _openOfService, _insertOpen, _ownOpen, _deleteOpen, _hear,
        _alertText, _deleteService, _deleteFamily;

    // Names, loaded at the start and after a rollback.
    private readonly Dictionary<string, long> _partitions = [];
    private readonly Dictionary<long, DateTime> _knownFrom = [];
    private readonly Dictionary<string, Status> _statuses = [];
    private readonly Dictionary<Status, string> _statusNames = [];
    private readonly long _self;
    private readonly string _own;
    private long _seenVersion;
    private bool _isMarked, _hasOthers, _hasPrometheus;
    private long _services, _alerts, _lastId, _derived, _lastObservation, _quarantined, _trimmed;
    // What is recorded in this transaction, was last, and is to be later than.
    private DateTime _recorded, _lastRecorded, _closed, _alive;

    /// <summary>The last sign of life of the process before.</summary>
    private readonly DateTime _aliveBefore;

    // Of a transaction of facts: whether it wrote, and what the cache learns from it.
    private bool _isDirty;
    private readonly List<(UInt128 Key, RecentAlert Alert)> _learned = [];
    private readonly List<(RenewedEpisode Episode, IncomingAlert Copy, DateTime Received)> _renewed = [];

    // Services still to be derived before the mark moves to _windowEnd.
    private readonly Queue<long> _window = new();
    private long _windowEnd;
    private DateTime _ticked;

    // Used again for each service.
    private readonly List<Observation> _newestFacts = [];
    private readonly List<Run> _made = [], _held = [];
    private readonly List<long> _madeSince = [], _heldSince = [];
    private readonly List<(long Alert, DateTime Starts)> _open = [];
    private readonly List<StatusChange> _toldBefore = [], _told = [];
    private readonly Dictionary<long, long> _heldOpen = [], _lastSeen = [];

    /// <exception cref="DataDirException">It was written by a newer SeS, or is none of SeS's.</exception>
    /// <exception cref="SqliteException">SQLite refused, or what is there could not be flushed.</exception>
    public Writer(string path, int cache, StoreRules rules, RecentAlerts recent, TimeProvider clock,
        Renewals? renewals = null)
    {
        (_rules, _recent, _renewals, _path, _clock) = (rules, recent, renewals ?? new Renewals(), path, clock);
        _folder = Path.GetDirectoryName(Path.GetFullPath(path))!;
        if (!File.Exists(path))
        {
            var log = Store.FileName + "-wal";
            if (Disk.StatusOf(path + "-wal") is { Size: > 0 })
                throw new DataDirException($"'{_folder}' has {log}, but not {Store.FileName}, of which that is a "
                    + $"part: put it back, or a backup in its place (ses restore); to begin anew, remove {log}");
            // SQLite would let others read it, and gives its other files the same rights.
            Disk.Create(path).Dispose();
        }
        _database = new SqliteConnection(path, isReadOnly: false, cache);
        _database.Execute(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;");
        _pages = new WalPages(_database);
        Migrate();
        // What a process that died has left may not be flushed, and nothing may count before it is.
        _ = _database.Checkpoint();
        SqliteStatement Of(string sql) => _database.Prepare(sql);
        (_begin, _commit) = (Of("BEGIN IMMEDIATE"), Of("COMMIT"));
        _setMeta = Of("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value");
        _insertPartition = Of("INSERT INTO partition(id, name) VALUES (?1, ?2)");
        _updatePartition = Of("UPDATE partition SET firing = ?2, resolved = ?3 WHERE id = ?1");
        _insertReceipt = Of("INSERT INTO receipt VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)");
        _insertGap = Of("INSERT INTO gap VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)");
        _insertBeat = Of("INSERT OR REPLACE INTO beat VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)");
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
        _ofGroup = Of("""
            SELECT id, source, labels FROM alert WHERE service = ?1 AND hash BETWEEN ?2 AND ?2 | 4294967295 LIMIT ?3
            """);
        _insertAlert = Of("INSERT INTO alert VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)");
        _alertText = Of("SELECT text FROM alert WHERE id = ?1");
        _deleteService = Of("""
            DELETE FROM service WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM alert WHERE service = ?1)
            RETURNING family
            """);
        _deleteFamily =
            Of("DELETE FROM family WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM service WHERE family = ?1)");
        _self = PeerOf(NameOf(rules));
        var own = _own = OwnPeers();
        // The last parameter: not only what this SeS has heard itself.
        const string facts = "SELECT id, alert, kind, starts, ends, status, received FROM observation";
        _newest = Of($"""
            {facts} WHERE service = ?1 AND alert = ?2 AND (?4 OR by IN ({own}))
            ORDER BY starts DESC, received DESC, kind DESC LIMIT ?3
            """);
        _ofStart = Of($"""
            {facts} WHERE service = ?1 AND alert = ?2 AND starts = ?3 AND (?5 OR by IN ({own}))
            ORDER BY received DESC, kind DESC LIMIT ?4
            """);
        _insertObservation =
            Of("INSERT INTO observation VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)");
        _see = Of("""
            UPDATE open SET seen = CASE WHEN seen + ?3 <= ?2 OR away > 0 THEN ?2 ELSE seen END, away = 0
            WHERE alert = ?1 AND seen < ?2 RETURNING seen
            """);
        _insertQuarantined = Of("INSERT OR IGNORE INTO quarantine VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)");
        _trimQuarantine = Of("""
            DELETE FROM quarantine WHERE id <= (SELECT id FROM quarantine ORDER BY id DESC LIMIT 1 OFFSET ?1)
            """);
        _oldestQuarantined = Of("SELECT id, length(alert) FROM quarantine ORDER BY id LIMIT 1");
        _deleteQuarantined = Of("DELETE FROM quarantine WHERE id = ?1");
        _cure = Of("DELETE FROM quarantine WHERE identity = ?1 RETURNING length(alert)");
        _version = Of("PRAGMA data_version");
        _behind = Of("SELECT DISTINCT service FROM observation WHERE id > ?1 AND id <= ?2 ORDER BY service");
        _due = Of("SELECT id FROM service WHERE due <= ?1 ORDER BY due LIMIT ?2");
        _stale = Of($"""
            SELECT {OpenColumns} FROM open o WHERE o.own AND o.seen + o.away <= ?1 ORDER BY o.seen + o.away LIMIT ?2
            """);
        _openAlert = Of($"SELECT {OpenColumns} FROM open o WHERE o.own AND o.alert = ?1 AND o.starts = ?2");
        _abandoned = Of($"""
            SELECT {OpenColumns} FROM open o WHERE o.alert > ?1 AND o.alert <= ?2 AND o.seen + o.away <= ?3
                AND EXISTS (SELECT 1 FROM observation b WHERE {OfEpisode} AND b.by NOT IN ({own}))
                AND NOT EXISTS (SELECT 1 FROM observation b JOIN peer p ON p.id = b.by
                    WHERE {OfEpisode} AND b.kind <> 3 AND (p.own OR p.heard > ?4)
                        AND NOT EXISTS (SELECT 1 FROM observation l WHERE l.service = o.service
                            AND l.alert = o.alert AND l.starts = o.starts AND l.kind = 3
                            AND (l.by = b.by OR p.own AND l.by IN ({own}))))
            ORDER BY o.alert
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
        _insertOpen = Of($"""
            INSERT INTO open VALUES (?1, ?2, ?3, ?4, ?5, coalesce((SELECT kind <> 3 FROM observation
                WHERE service = ?2 AND alert = ?1 AND starts = ?3 AND by IN ({own})
                ORDER BY received DESC LIMIT 1), 0))
            """);
        _ownOpen = Of("UPDATE open SET own = 1 WHERE alert = ?1 AND own = 0");
        _deleteOpen = Of("DELETE FROM open WHERE alert = ?1");
        _hear = Of("UPDATE peer SET heard = ?2 WHERE id = ?1 AND heard < ?2");
        _facts = new ServiceFacts(_database);
        Outbox = new Outbox(_database);
        _retention = new Retention(_database, this, rules);
        var alive = _database.Number("SELECT value FROM meta WHERE name = 'alive'");
        _back = clock.GetUtcNow().UtcDateTime;
        // What it took itself is a sign of life, too: of a process that was killed the noted one may be older.
        var taken = _database.Number($"""
            SELECT max(received) FROM (SELECT received FROM receipt WHERE by IN ({_own})
                UNION ALL SELECT received FROM observation WHERE by IN ({_own})
                    AND id > (SELECT max(id) FROM observation) - 1000)
            """);
        _aliveBefore = _taken = alive is { } last ? UnixTime.Read(Math.Max(last, taken ?? last)) : _back;
        Load();
        Count();
        _toldPurged = _purged;
        ApplyRules();
        _seenVersion = _version.Number()!.Value;
        _files = new DatabaseFiles(path);
    }

    /// <summary>What Onix holds and is to get.</summary>
    public Outbox Outbox { get; }

    /// <summary>Whether the database is the one that was opened. Safe from any thread.</summary>
    public bool HasItsFiles => _files.AreThere;

    public long Services => Volatile.Read(ref _services);

    public long LabelSets => Volatile.Read(ref _alerts);

    /// <summary>The last observation may be gone since it was derived.</summary>
    public long Underived => Math.Max(0, Volatile.Read(ref _lastObservation) - Volatile.Read(ref _derived));

    /// <summary>The given name, else that of before, else the host's; it is stored.</summary>
    private string NameOf(StoreRules rules)
    {
        using var stored = _database.Query("SELECT value FROM meta WHERE name = 'name'");
        var name = rules.Name ?? stored.FirstText() ?? Environment.MachineName;
        _setMeta.Bind(1, "name").Bind(2, name).Run();
        return name;
    }

    /// <summary>Begins anew with what other settings made: the timeline, or what Onix was given.</summary>
    private void ApplyRules()
    {
        var pause = (long)_rules.Timeline.Pause.TotalMilliseconds;
        if (_database.Number("SELECT value FROM meta WHERE name = 'pause'") != pause)
        {
            _setMeta.Bind(1, "derived").Bind(2, _windowEnd = _derived = 0).Run();
            _setMeta.Bind(1, "pause").Bind(2, pause).Run();
        }
        _setMeta.Bind(1, "stale_after").Bind(2, (long)_rules.StaleAfter.TotalMilliseconds).Run();
        _setMeta.Bind(1, "forget").Bind(2, (long)_rules.Forget.TotalMilliseconds).Run();
        using var stored = _database.Query("SELECT value FROM meta WHERE name = 'onix'");
        if (stored.FirstText() == (_rules.Onix ?? ""))
            return;
        Outbox.BeginAnew();
        _setMeta.Bind(1, "onix").Bind(2, _rules.Onix ?? "").Run();
    }

    /// <summary>Whether some service's latest observations are not derived yet.</summary>
    public bool IsBehind => _derived < _lastObservation;

    /// <summary>Whether there is more to do without anything that comes.</summary>
    public bool IsWorking => IsBehind || IsMapping || _retention.IsWorking;

    /// <summary>Through which observation all services are derived.</summary>
    public long Derived => _derived;

    public long LastObservation => _lastObservation;

    /// <exception cref="DataDirException">Another program's database, or a newer SeS's.</exception>
    private void Migrate()
    {
        // Another process may make it at the same time.
        _database.Execute("BEGIN IMMEDIATE");
        if (_database.Number("PRAGMA user_version") == 0
            && _database.Number("SELECT count(*) FROM sqlite_schema") == 0)
            _database.Execute($"""
                PRAGMA application_id = {Schema.ApplicationId}; {Schema.Tables} {Schema.Views}
                INSERT INTO meta VALUES ('store', '{RandomNumberGenerator.GetHexString(32, lowercase: true)}');
                PRAGMA user_version = {Schema.Version};
                """);
        _database.Execute("COMMIT");
        Schema.Check(_database);
    }

    /// <summary>The number of a SeS that takes facts; it is made if it is new.</summary>
    private long PeerOf(string name)
    {
        if (_peers.TryGetValue(name, out var id))
            return id;
        using (var insert = _database.Query("INSERT OR IGNORE INTO peer(name) VALUES (?1)"))
            insert.Bind(1, name).Run();
        using var find = _database.Query("SELECT id FROM peer WHERE name = ?1");
        return _peers[name] = find.Bind(1, name).Number()!.Value;
    }

    private readonly Dictionary<string, long> _peers = [];

    /// <summary>This SeS, under all the names that it had, for a list in SQL.</summary>
    private string OwnPeers()
    {
        _database.Execute($"UPDATE peer SET own = 1 WHERE id = {_self} AND own = 0");
        var own = new List<long>();
        using var rows = _database.Query("SELECT id FROM peer WHERE own = 1");
        while (rows.Step())
            own.Add(rows.Number(0));
        return string.Join(',', own);
    }

    private void Load()
    {
        _peers.Clear();
        _partitions.Clear();
        _knownFrom.Clear();
        _statuses.Clear();
        _statusNames.Clear();
        _deliveries.Clear();
        using (var rows = _database.Query("SELECT id, name, firing, resolved FROM partition"))
        {
            while (rows.Step())
            {
                _partitions[rows.Text(1)] = rows.Number(0);
                _deliveries[rows.Number(0)] = new(rows.NumberOrNull(2) is { } firing ? UnixTime.Read(firing) : null,
                    rows.Number(3) != 0);
            }
        }
        LoadHeartbeats();
        using (var rows = _database.Query("SELECT partition, min(received) FROM receipt GROUP BY partition"))
        {
            while (rows.Step())
                _knownFrom[rows.Number(0)] = UnixTime.Read(rows.Number(1));
        }
        using (var rows = _database.Query("SELECT id, name FROM status"))
        {
            while (rows.Step())
            {
                var status = _statuses[rows.Text(1)] = (Status)rows.Number(0);
                _statusNames[status] = rows.Text(1);
            }
        }
        _purged = _database.Number("SELECT max(ended) FROM purge") ?? 0;
        _hasOthers = _database.Number("SELECT 1 FROM peer WHERE own = 0") != null;
        _hasPrometheus = _database.Number("SELECT 1 FROM meta WHERE name = 'prometheus'") != null;
        _lastId = _database.Number("SELECT value FROM meta WHERE name = 'last_id'") ?? 3;
        _windowEnd = _derived = _database.Number("SELECT value FROM meta WHERE name = 'derived'") ?? 0;
        using (var mapping = _database.Query("SELECT value FROM meta WHERE name = 'mapping'"))
            _mapping = mapping.FirstText();
        _lastObservation = _database.Number("SELECT max(id) FROM observation") ?? 0;
        // Never earlier than before, whatever the clock says now.
        _lastRecorded = UnixTime.Read(
            _database.Number("SELECT recorded FROM observation ORDER BY id DESC LIMIT 1") ?? 0);
        _quarantined = _trimmed = _database.Number("SELECT sum(length(alert)) FROM quarantine") ?? 0;
        _window.Clear();
    }

    /// <summary>Counts services and label sets, which takes some ms for each 100,000.</summary>
    private void Count()
    {
        var began = _clock.GetTimestamp();
        _services = _database.Number("SELECT count(*) FROM service") ?? 0;
        _alerts = _database.Number("SELECT count(*) FROM alert") ?? 0;
        (_isCountDue, _counted, _countTime) = (false, _clock.GetTimestamp(), _clock.GetElapsedTime(began));
    }

    // Whether another process has written since they were counted, when that was, and how long it took.
    private bool _isCountDue;
    private long _counted;
    private TimeSpan _countTime;

    // ---- Facts ----

    /// <summary>Runs requests in one transaction, flushed; without any change nothing is written.</summary>
    /// <param name="isProbe">Writes something in any case, to see whether the disk takes it again.</param>
    /// <exception cref="SqliteException">Nothing of it was stored.</exception>
    public void Commit(IEnumerable<Action> requests, DateTime now, bool isProbe = false)
    {
        _isDirty = isProbe;
        _learned.Clear();
        _renewed.Clear();
        CheckSpace(now);
        InTransaction(now, () =>
        {
            if (IsDaemon)
                NoteAbsence(now);
            foreach (var request in requests)
                request();
            TrimQuarantine();
            if (_isDirty)
                _setMeta.Bind(1, "last_id").Bind(2, _lastId).Run();
        });
        _files.Check();
        _taken = now;
        _recent.Learn(_learned);
        foreach (var (episode, copy, received) in _renewed)
            _renewals.Renew(episode, copy, received);
    }

    /// <summary>Before the space that checkpoints and retention need is gone.</summary>
    private void CheckSpace(DateTime now)
    {
        if (now - _spaceSeen < TimeSpan.FromSeconds(1) && now >= _spaceSeen && _hasSpace)
            return;
        var (free, total) = Disk.Space(_folder);
        (_spaceSeen, _hasSpace) = (now, free >= Math.Min(Reserve, total / 10));
        if (!_hasSpace)
            throw new SqliteException(SqliteException.Full, 0,
                $"{free / 1024 / 1024} MiB are free, less than the reserve for checkpoints and retention");
    }

    private DateTime _spaceSeen;
    private bool _hasSpace;

    /// <summary>Bytes that stay free; on a small file system a tenth of it.</summary>
    private const long Reserve = 64 * 1024 * 1024;

    /// <exception cref="SqliteException">Nothing of it was stored.</exception>
    internal void InTransaction(DateTime now, Action write)
    {
        // Before, too: a log that was cut is as long as it was once it is written to.
        _files.Check();
        _begin.Run();
        try
        {
            // Another process has written, such as an import.
            if (_version.Number() is { } version && version != _seenVersion)
            {
                Load();
                _recent.Clear();
                (_seenVersion, _isCountDue) = (version, true);
            }
            // Another process may have held the lock until now, and have asked meanwhile.
            var begun = _clock.GetUtcNow().UtcDateTime;
            _recorded = new[] { now, begun, _lastRecorded, _closed.AddMilliseconds(1) }.Max();
            var pages = _pages.Count;
            write();
            _commit.Run();
            if (_pages.Count > pages)
                _files.CheckLog(pages);
        }
        catch (Exception e)
        {
            // The space that was there may be gone.
            _hasSpace &= e is not SqliteException { IsFull: true };
            _database.Rollback();
            Load();
            Count();
            // It is noted anew with what is tried next.
            _heartbeats.Return(-_returned);
            throw;
        }
        finally
        {
            _returned = default;
        }
    }

    // The absence that the transaction notes.
    private TimeSpan _returned;

    /// <summary>Changes state, or what is derived, in a transaction that is not flushed by itself.</summary>
    public T Change<T>(Func<Writer, T> change, DateTime now)
    {
        T result = default!;
        Unflushed(now, () => result = change(this));
        return result;
    }

    /// <summary>With the next facts, or made again after a loss of power.</summary>
    private void Unflushed(DateTime now, Action write)
    {
        _database.Execute("PRAGMA synchronous = NORMAL");
        try
        {
            InTransaction(now, write);
        }
        finally
        {
            _database.Execute("PRAGMA synchronous = FULL");
        }
    }

    /// <summary>Takes what one request brought, within a transaction.</summary>
    /// <param name="keys">Of the alerts: <see cref="RecentAlerts.KeyOf"/>.</param>
    public Stored Take(string partition, ReceivedAlerts alerts, IReadOnlyList<UInt128> keys, UInt128? cures,
        DateTime received)
    {
        var brought = 0;
        _refused = [];
        _refusals = 0;
        var isHeard = alerts.Alerts.Count > 0 || alerts.Ignored > 0 || alerts.Heartbeats > 0;
        long? place = isHeard ? PartitionOf(partition, received) : null;
        for (var i = 0; i < alerts.Alerts.Count; i++)
        {
            var alert = alerts.Alerts[i];
            if (place is { } there)
                brought += Take(there, alert, keys[i], received) ? 1 : 0;
            else
                RefuseOneTooMany(alert, "partitions", _rules.MaxServices, "--max-services");
        }
        if (place is { } heard)
        {
            // What is heard of first is judged by what was heard before.
            foreach (var beat in alerts.Beats)
                Note(_heartbeats.Take(heard, beat, received));
            Note(_heartbeats.TakeAlerts(heard, alerts.Alerts, received));
            NoteDelivery(heard, alerts, received);
        }
        foreach (var one in alerts.UnmappableAlerts)
            Quarantine(partition, alerts.Source, one.Identity, one.Reason, one.Raw);
        if (alerts.MoreUnmappable > 0)
            Quarantine(partition, alerts.Source, $"more\n{alerts.MoreUnmappable}\n{alerts.UnmappableAlerts[0].Identity}",
                $"{alerts.MoreUnmappable} more of the same payload, copies or beyond the first "
                + $"{UnmappableAlerts.MaxKept}", "null"u8);
        if (cures is { } id && alerts.IsAllMapped && _refusals == 0)
            Cure(id);
        return new Stored(brought, alerts.Alerts.Count - brought - _refusals,
            _refusals + alerts.UnmappableAlerts.Count + alerts.MoreUnmappable)
        {
            Refused = _refusals > 0 ? _refused : null,
        };
    }

    // Of the request that is being taken.
    private List<UnmappableAlert> _refused = [];
    private long _refusals;

    private void RefuseOneTooMany(IncomingAlert alert, string things, long most, string setting)
    {
        var reason = $"there are {most} {things} already, as many as {setting} allows";
        Quarantine(alert.Service.Partition, alert.Source, $"{alert.Labels}\n{alert.Starts.Ticks}\n{alert.Ends?.Ticks}", reason,
            Encoding.UTF8.GetBytes(JsonOf(alert)));
        _refusals++;
        if (_refused.Count < Stored.MaxRefused)
            _refused.Add(new UnmappableAlert("", "", alert.Service.Facet, reason, []));
    }

    private void Cure(UInt128 id)
    {
        Span<byte> identity = stackalloc byte[16];
        BinaryPrimitives.WriteUInt128BigEndian(identity, id);
        if (_cure.Bind(1, identity).Step())
        {
            _quarantined = _trimmed -= _cure.Number(0);
            _isDirty = true;
        }
        _cure.Reset();
    }

    private long NextId()
    {
        _isDirty = true;
        _lastRecorded = _recorded;
        return ++_lastId;
    }

    /// <summary>Null: there are too many.</summary>
    private long? PartitionOf(string name, DateTime received)
    {
        var isThere = _partitions.TryGetValue(name, out var id);
        if (isThere && _knownFrom.ContainsKey(id))
            return id;
        if (!isThere && _partitions.Count >= _rules.MaxServices)
            return null;
        // A note may have named it before anything was received of it.
        id = PlaceOf(name);
        AddReceipt(id, null, null, received, _self);
        _knownFrom[id] = received;
        return id;
    }

    /// <summary>The first receipt of anything of a partition, or the arming of a heartbeat.</summary>
    private void AddReceipt(long partition, string? platform, string? heartbeat, DateTime received, long by)
    {
        var (id, at, recorded) = (NextId(), UnixTime.From(received), UnixTime.From(_recorded));
        _insertReceipt.Bind(1, id).Bind(2, partition).Bind(3, platform).Bind(4, heartbeat).Bind(5, by).Bind(6, at)
            .Bind(7, recorded)
            .Bind(8, Checksum.OfReceipt(id, partition, platform, heartbeat, by, at, recorded)).Run();
    }

    /// <summary>The begin of a gap, or its end.</summary>
    private void AddGap(long? partition, string? platform, string? heartbeat, DateTime from, DateTime? to,
        DateTime known, long by)
    {
        var (id, begins, received) = (NextId(), UnixTime.From(from), UnixTime.From(known));
        long? ends = to is { } end ? UnixTime.From(end) : null;
        var recorded = UnixTime.From(_recorded);
        var sum = Checksum.OfGap(id, partition, platform, heartbeat, by, begins, ends, received, recorded);
        _insertGap.Bind(1, id).Bind(2, partition).Bind(3, platform).Bind(4, heartbeat).Bind(5, by).Bind(6, begins)
            .Bind(7, ends).Bind(8, received).Bind(9, recorded).Bind(10, sum).Run();
    }

    /// <summary>Stores a version of a note; a partition of which nothing was heard is made.</summary>
    /// <param name="by">Null: this SeS took it.</param>
    public NoteVersion Add(NoteVersion note, string? by = null)
    {
        var (peer, partition) = (by == null ? _self : PeerOf(by), PlaceOf(note.Filter.Partition));
        var (id, recorded) = (NextId(), UnixTime.From(_recorded));
        using var insert = _database.Query("""
            INSERT INTO note VALUES
                (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)
            """);
        insert.Bind(1, id).Bind(2, partition).Bind(3, note.Id).Bind(4, peer).Bind(5, (long)note.Kind)
            .Bind(6, note.Span.From).Bind(7, note.To == null ? null : note.Span.To).Bind(8, note.Filter.Platform)
            .Bind(9, note.Filter.Service).Bind(10, note.Filter.Facet).Bind(11, note.Filter.Location).Bind(12, note.Status)
            .Bind(13, note.Text).Bind(14, note.Author).Bind(15, note.AuthorName).Bind(16, note.IsWithdrawn ? 1 : 0)
            .Bind(17, UnixTime.From(note.Received)).Bind(18, recorded)
            .Bind(19, Checksum.OfNote(id, partition, peer, note, recorded)).Run();
        // Questions know a status by its number.
        if (note.Status is { } status)
            _ = StatusOf(status);
        return note with { Row = id, Recorded = UnixTime.Read(recorded), By = by ?? NameOf(_rules) };
    }

    /// <summary>The connection, for what is read within a transaction.</summary>
    public SqliteConnection Database => _database;

    /// <summary>As it can be sent again.</summary>
    private static string JsonOf(IncomingAlert alert)
    {
        var isPrometheus = alert.Source == AlertSource.Prometheus;
        var json = new StringBuilder("{");
        if (!isPrometheus)
            json.Append(CultureInfo.InvariantCulture,
                $"\"status\":\"{(alert.Ends == null ? "firing" : "resolved")}\",");
        json.Append("\"labels\":").Append(alert.Labels).Append(",\"annotations\":{\"description\":");
        JsonText.Write(json, alert.Description);
        if (alert.Dialect)
            JsonText.Write(json.Append(",\"location\":"), alert.Service.Location);
        json.Append(CultureInfo.InvariantCulture, $"}},\"startsAt\":\"{Rfc3339.Format(alert.Starts)}\"");
        if ((alert.Ends ?? alert.ValidUntil) is { } ends)
            json.Append(CultureInfo.InvariantCulture, $",\"endsAt\":\"{Rfc3339.Format(ends)}\"");
        if (isPrometheus)
            JsonText.Write(json.Append(",\"generatorURL\":"), alert.Sender);
        return json.Append('}').ToString();
    }

    /// <summary>
    /// Whether it brings something new; it does not when it was quarantined, being one too many.
    /// </summary>
    private bool Take(long partition, IncomingAlert alert, UInt128 key, DateTime received)
    {
        var last = _lastId;
        var (service, id) = _recent.Find(key) is { } found
            ? (found.Service, found.Alert) : Place(partition, alert);
        if (service == 0)
            return false;
        if (_statuses.Count >= MaxStatuses && !_statuses.ContainsKey(alert.Status))
        {
            RefuseOneTooMany(alert, "statuses", MaxStatuses, "SeS");
            return false;
        }
        var traits = new AlertTraits(alert.Dialect, alert.Source);
        if (alert.Starts == default)
            alert = alert with { Starts = OpenSince(service, id, alert.Source) ?? Earlier(received, alert.Ends) };
        var copy = new AlertCopy(alert.Starts, alert.Ends, StatusOf(alert.Status), received, alert.Uncertain);
        // By what this SeS has heard itself, else it would not count as one that did.
        var isNew = id > last;
        if (isNew)
            _newestFacts.Clear();
        else
            ReadNewest(service, id, alert.Starts, alsoOfOthers: false);
        var kind = Episodes.Decide(CollectionsMarshal.AsSpan(_newestFacts), copy, traits);
        if (kind == null && alert.Ends == null && _hasOthers)
        {
            // It fires again if another has heard its end.
            ReadNewest(service, id, alert.Starts, alsoOfOthers: true);
            kind = Episodes.Decide(CollectionsMarshal.AsSpan(_newestFacts), copy, traits);
        }
        var seen = UnixTime.From(received);
        if (kind is { } brings)
        {
            LapseOlder(service, id, alert, received);
            var isKnownText = isNew || alert.Description == _alertText.Bind(1, id).FirstText();
            Observe(service, id, brings, copy, isKnownText ? null : alert.Description, _self);
            if (_hasOthers)
                _ownOpen.Bind(1, id).Run();
        }
        else if (alert.Ends == null)
            seen = _see.Bind(1, id).Bind(2, seen).Bind(3, (long)SeenStep.TotalMilliseconds).Number() ?? seen;
        Learn(key, service, id, alert, kind, UnixTime.Read(seen), received);
        // What began before SeS was there comes late.
        if (kind == ObservationKind.Start && alert.Ends == null && alert.Starts > _back)
            _clocks.Add(alert.Service.Partition, alert.Sender, received - alert.Starts);
        if (kind is ObservationKind.End or ObservationKind.Start)
            EndRelayed(service, id, alert, received);
        return kind != null;
    }

    private static DateTime Earlier(DateTime received, DateTime? ends) => ends < received ? ends.Value : received;

    /// <summary>The start of an alert's open episode; null: none is open.</summary>
    private DateTime? OpenSince(long service, long alert, AlertSource source)
    {
        ReadNewest(service, alert, DateTime.MaxValue, alsoOfOthers: false);
        return OpenOfNewest(source);
    }

    /// <summary>The same, of the facts that were read last.</summary>
    private DateTime? OpenOfNewest(AlertSource source) =>
        Episodes.Open(CollectionsMarshal.AsSpan(_newestFacts), new(Dialect: false, source));

    /// <summary>A newer episode of Prometheus's: the one before it lapses at its last copy (3.1).</summary>
    private void LapseOlder(long service, long id, IncomingAlert alert, DateTime received)
    {
        if (alert.Source != AlertSource.Prometheus || _newestFacts.Count == 0)
            return;
        var newest = _newestFacts[^1];
        if (newest.Starts < alert.Starts && _renewals.LastCopy(id, newest.Starts) is { } last
            && OpenOfNewest(alert.Source) == newest.Starts)
            Observe(service, id, ObservationKind.Lapse, new AlertCopy(newest.Starts,
                last > newest.Starts ? last : newest.Starts, newest.Status, received), null, _self);
    }

    /// <summary>
    /// An end that Prometheus states ends Alertmanager's open episode of the same labels, too, once no
    /// Prometheus has one open; also where Alertmanager's first copy comes within 20 s after it (1).
    /// </summary>
    private void EndRelayed(long service, long id, IncomingAlert alert, DateTime received)
    {
        var isPrometheus = alert.Source == AlertSource.Prometheus;
        if (!_hasPrometheus || isPrometheus == (alert.Ends == null))
            return;
        var same = SameAlerts(service, alert.Labels);
        if (StatedEnd(service, same, received) is not { } ends)
            return;
        foreach (var (relayed, source, labels) in same)
        {
            if (source != AlertSource.Webhook || !(isPrometheus || relayed == id)
                || OpenSince(service, relayed, source) is not { } starts || starts > ends)
                continue;
            Observe(service, relayed, ObservationKind.End,
                new AlertCopy(starts, ends, _newestFacts[^1].Status, received), null, _self);
            var key = _recent.KeyOf(alert with { Source = source, Sender = "", Labels = labels });
            _learned.Add((key, RecentAlert.Place(service, relayed)));
        }
    }

    /// <summary>
    /// Alerts of a service that differ in source, sender and labels of replicas alone. There are as many as
    /// senders; where there are too many to be that, they are not looked at.
    /// </summary>
    private List<(long Id, AlertSource Source, string Labels)> SameAlerts(long service, string labels)
    {
        var (same, group) = (new List<(long, AlertSource, string)>(), AlertLabels.WithoutReplica(labels));
        _ofGroup.Bind(1, service).Bind(2, Checksum.FirstOfGroup(group)).Bind(3, MaxSame + 1);
        while (_ofGroup.Step())
        {
            var other = _ofGroup.Text(2);
            if (AlertLabels.WithoutReplica(other) == group)
                same.Add((_ofGroup.Number(0), (AlertSource)_ofGroup.Number(1), other));
        }
        return same.Count <= MaxSame ? same : [];
    }

    /// <summary>
    /// The greatest end that a Prometheus stated just now; null: none did, or one has the alert open.
    /// </summary>
    private DateTime? StatedEnd(
        long service, List<(long Id, AlertSource Source, string Labels)> same, DateTime received)
    {
        DateTime? end = null;
        foreach (var (id, source, _) in same)
        {
            if (source != AlertSource.Prometheus)
                continue;
            if (OpenSince(service, id, source) != null)
                return null;
            if (_newestFacts is [.., { Kind: ObservationKind.End } last]
                && received - last.Received <= TimelineRules.LateCopy && (end == null || last.Ends > end))
                end = last.Ends;
        }
        return end;
    }

    /// <summary>What the cache knows of an alert: its newest episode as it is after this copy.</summary>
    private void Learn(UInt128 key, long service, long id, IncomingAlert alert, ObservationKind? kind,
        DateTime seen, DateTime received)
    {
        var newest = _newestFacts.Count == 0 ? DateTime.MinValue : _newestFacts[^1].Starts;
        // An uncertain end is replaced by any that is stated.
        var isNewest = kind != null ? kind != ObservationKind.Lapse && alert.Starts >= newest
            : alert.Ends == null && alert.Starts == newest && newest == OpenOfNewest(alert.Source);
        if (isNewest && alert is { Source: AlertSource.Prometheus, Ends: null })
            _renewed.Add((new(service, id, alert.Starts), alert, received));
        _learned.Add((key, isNewest
            ? new RecentAlert(service, id, alert.Starts, alert.Ends, alert.Status, seen)
            : RecentAlert.Place(service, id)));
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
            if (areServicesMany)
                RefuseOneTooMany(alert, "services", _rules.MaxServices, "--max-services");
            else
                RefuseOneTooMany(alert, "label sets", _rules.MaxAlerts, "--max-alerts");
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
        if (alert.Source == AlertSource.Prometheus && !_hasPrometheus)
        {
            _setMeta.Bind(1, "prometheus").Bind(2, 1).Run();
            _hasPrometheus = true;
        }
        var id = NextId();
        var sum = Checksum.OfAlert(id, service, alert.Dialect ? 1 : 0, (long)alert.Source, alert.Sender,
            alert.Labels, hash, alert.Description);
        _insertAlert.Bind(1, id).Bind(2, service).Bind(3, alert.Dialect ? 1 : 0).Bind(4, (long)alert.Source)
            .Bind(5, alert.Sender).Bind(6, alert.Labels).Bind(7, hash).Bind(8, alert.Description).Bind(9, sum)
            .Run();
        return id;
    }

    /// <summary>Its number, made if it is new.</summary>
    private Status StatusOf(string name)
    {
        if (_statuses.TryGetValue(name, out var status))
            return status;
        // From its name, so that it orders statuses of one severity alike in all stores.
        long id = BinaryPrimitives.ReadInt32LittleEndian(SHA256.HashData(Encoding.UTF8.GetBytes(name)))
            & int.MaxValue;
        id |= 4;
        while (_statusNames.ContainsKey((Status)id))
            id = (id & int.MaxValue) + 1;
        _insertStatus.Bind(1, id).Bind(2, name).Run();
        _isDirty = true;
        _statusNames[(Status)id] = name;
        return _statuses[name] = (Status)id;
    }

    /// <summary>The alert's newest observations, and those of an older start, in the index's order.</summary>
    private void ReadNewest(long service, long alert, DateTime starts, bool alsoOfOthers)
    {
        var others = alsoOfOthers ? 1 : 0;
        _newestFacts.Clear();
        _newest.Bind(1, service).Bind(2, alert).Bind(3, NewestRows).Bind(4, others);
        while (_newest.Step())
            _newestFacts.Add(ServiceFacts.ObservationOf(_newest));
        if (_newestFacts.Count == NewestRows && starts <= _newestFacts[^1].Starts)
        {
            _newestFacts.RemoveAll(f => f.Starts == starts);
            _ofStart.Bind(1, service).Bind(2, alert).Bind(3, UnixTime.From(starts)).Bind(4, NewestRows)
                .Bind(5, others);
            while (_ofStart.Step())
                _newestFacts.Add(ServiceFacts.ObservationOf(_ofStart));
        }
        _newestFacts.Reverse();
    }

    private void Observe(
        long service, long alert, ObservationKind kind, AlertCopy copy, string? text, long by)
    {
        var id = NextId();
        var (recorded, received) = (UnixTime.From(_recorded), UnixTime.From(copy.Received));
        var starts = UnixTime.From(copy.Starts);
        long? ends = copy.Ends is { } end ? UnixTime.From(end) : null;
        var sum = Checksum.OfObservation(
            id, recorded, received, by, service, alert, (long)kind, starts, ends, (long)copy.Status, text);
        _insertObservation.Bind(1, id).Bind(2, recorded).Bind(3, received).Bind(4, by).Bind(5, service)
            .Bind(6, alert).Bind(7, (long)kind).Bind(8, starts).Bind(9, ends).Bind(10, (long)copy.Status)
            .Bind(11, text).Bind(12, sum).Run();
        _lastObservation = id;
    }

    private void Quarantine(
        string partition, AlertSource source, string identity, string reason, ReadOnlySpan<byte> alert)
    {
        var hash = SHA256.HashData(Encoding.UTF8.GetBytes(partition + "\n" + identity)).AsSpan(0, 16);
        _insertQuarantined.Bind(1, _lastId + 1).Bind(2, UnixTime.From(_recorded)).Bind(3, partition)
            .Bind(4, (long)source).Bind(5, hash).Bind(6, reason).Bind(7, alert).Run();
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

    /// <summary>Whether time alone has changed a service, or had an episode lapse.</summary>
    public bool IsDue(DateTime now) => _due.Bind(1, UnixTime.From(now)).Bind(2, 1).Number() != null
        || (IsTaking && (
            _stale.Bind(1, UnixTime.From(now - _rules.StaleAfter - SeenStep)).Bind(2, 1).Number() != null
            || (!IsBehind && _renewals.IsDue(now))
            || IsAbandonedDue(now)));

    /// <summary>See <see cref="SqliteConnection.AwaitOthers"/>.</summary>
    public void AwaitOthers() => _database.AwaitOthers();

    /// <summary>
    /// The moment of a question: what is recorded from now on is later. After the clock was set back it is
    /// earlier than the last facts were recorded.
    /// </summary>
    public DateTime Close(DateTime now)
    {
        var isSetBack = _lastRecorded - now > TimeSpan.FromSeconds(1);
        _closed = now > _lastRecorded || isSetBack ? now : _lastRecorded;
        return _closed;
    }

    /// <summary>Derives services that are behind, or that time alone has changed, in a transaction.</summary>
    /// <param name="isOver">Asked after each service: it ends, to go on later.</param>
    /// <param name="isAsked">A question waits: what time has brought is not put off.</param>
    public void Derive(DateTime now, Func<bool> isOver, bool isAsked = false)
    {
        var isTime = now - _ticked >= TimeSpan.FromSeconds(1) || now < _ticked || IsMapping
            || (isAsked && IsDue(now));
        if (!IsBehind && !isTime)
            return;
        _isDirty = false;
        // A lapse is a fact, but time makes it again.
        Unflushed(now, () =>
        {
            if (isTime)
                Tick(now);
            DeriveWindow(now, isOver);
        });
        if (isTime && IsTaking)
            _taken = now;
    }

    private void DeriveWindow(DateTime now, Func<bool> isOver)
    {
        FillWindow();
        while (_window.TryDequeue(out var service))
        {
            Derive(service, now);
            if (isOver())
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

    /// <summary>A sign of life, and what heartbeats said last.</summary>
    private void NoteAlive(DateTime now)
    {
        _setMeta.Bind(1, "alive").Bind(2, UnixTime.From(_alive = now)).Run();
        if (_renewals.Longest() is { } validity)
            _setMeta.Bind(1, "validity").Bind(2, (long)validity.TotalMilliseconds).Run();
        foreach (var heartbeat in _heartbeats.TakeChanged())
        {
            foreach (var (alert, source, last) in heartbeat.Alerts)
                _insertBeat.Bind(1, heartbeat.Key.Partition).Bind(2, heartbeat.Key.Platform)
                    .Bind(3, heartbeat.Key.Name).Bind(4, alert).Bind(5, (long)source).Bind(6, UnixTime.From(last))
                    .Bind(7, (long)heartbeat.Away.TotalMilliseconds).Run();
        }
    }

    /// <summary>Nothing comes any more.</summary>
    public void Leave(DateTime now)
    {
        if (IsTaking)
            Unflushed(now, () => NoteAlive(now));
    }

    /// <summary>Whether senders send here; else it is a command's, for which time does not go by.</summary>
    public bool IsDaemon { get; init; }

    /// <summary>Alerts are refused: senders are told to send them again.</summary>
    public bool IsRefusing { get; set; }

    private bool IsTaking => IsDaemon && !IsRefusing;

    // Until when alerts were taken, as far as that is known, and since when again.
    private DateTime _taken, _back;

    /// <summary>
    /// To be called before anything is taken: time in which SeS was away, stopped, or took no alerts. It
    /// does not count towards staleness or silence, and is a gap if it is long (5).
    /// </summary>
    private void NoteAbsence(DateTime now)
    {
        var away = now - _taken;
        if (away <= LongestTurn && away >= TimeSpan.Zero)
            return;
        _renewals.Return(now);
        _back = now;
        if (away < TimeSpan.Zero)
            return;
        _heartbeats.Return(_returned = away);
        if (away <= LongestPause)
            return;
        _isDirty = true;
        using var shift = _database.Query("UPDATE open SET away = min(?1 - seen, away + ?2)");
        shift.Bind(1, UnixTime.From(now)).Bind(2, (long)away.TotalMilliseconds).Run();
        AddGap(null, null, null, _taken, null, now, _self);
        AddGap(null, null, null, _taken, now, now, _self);
    }

    // ---- Heartbeats ----

    private Heartbeats _heartbeats = new();

    /// <summary>As facts have them; of what is known already, beats are the latest.</summary>
    private void LoadHeartbeats()
    {
        var heartbeats = new Heartbeats();
        using (var rows = _database.Query($"""
            SELECT partition, coalesce(platform, ''), heartbeat, max(received) FROM receipt
            WHERE heartbeat IS NOT NULL AND by IN ({_own}) GROUP BY 1, 2, 3
            """))
        {
            while (rows.Step())
            {
                if (IsExpected(rows.Text(2)))
                    heartbeats.LoadArmed(HeartbeatOf(rows), UnixTime.Read(rows.Number(3)));
            }
        }
        using (var rows = _database.Query($"""
            SELECT partition, coalesce(platform, ''), heartbeat, begins, max(ends) FROM gap
            WHERE heartbeat IS NOT NULL AND by IN ({_own}) GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
            """))
        {
            while (rows.Step())
                heartbeats.LoadGap(HeartbeatOf(rows), UnixTime.Read(rows.Number(3)),
                    rows.NumberOrNull(4) is { } ends ? UnixTime.Read(ends) : null);
        }
        using (var rows = _database.Query("SELECT partition, platform, heartbeat, alert, source, last, away FROM beat"))
        {
            while (rows.Step())
            {
                if (IsExpected(rows.Text(2)) && rows.Number(5) <= UnixTime.From(_clock.GetUtcNow().UtcDateTime))
                    heartbeats.LoadBeat(HeartbeatOf(rows), rows.Number(3), (AlertSource)rows.Number(4),
                        UnixTime.Read(rows.Number(5)), TimeSpan.FromMilliseconds(rows.Number(6)));
            }
        }
        heartbeats.EndLoading(_taken);
        heartbeats.KeepBeats(_heartbeats, k => _partitions.ContainsValue(k.Partition));
        _heartbeats = heartbeats;
    }

    /// <summary>Whether --heartbeat names it.</summary>
    private bool IsExpected(string heartbeat) => _rules.Mapping?.Heartbeats.Contains(heartbeat) != false;

    private bool _areUnexpectedEnded;

    /// <summary>What --heartbeat named before, and is silent, watches no more.</summary>
    private void EndUnexpected(DateTime now)
    {
        var ended = new List<HeartbeatFact>();
        using (var open = _database.Query($"""
            SELECT partition, coalesce(platform, ''), heartbeat, begins FROM gap
            WHERE heartbeat IS NOT NULL AND by IN ({_own}) GROUP BY 1, 2, 3, 4 HAVING max(ends) IS NULL
            """))
        {
            while (open.Step())
            {
                if (!IsExpected(open.Text(2)))
                    ended.Add(new(HeartbeatOf(open), false, UnixTime.Read(open.Number(3)), now, now));
            }
        }
        Note(ended);
        _areUnexpectedEnded = true;
    }

    private static HeartbeatKey HeartbeatOf(SqliteStatement row) => new(row.Number(0), row.Text(1), row.Text(2));

    /// <summary>Stores what heartbeats brought.</summary>
    private void Note(IEnumerable<HeartbeatFact> facts)
    {
        foreach (var ((partition, platform, name), armed, from, to, known) in facts)
        {
            var of = platform == "" ? null : platform;
            if (armed)
                AddReceipt(partition, of, name, known, _self);
            else
                AddGap(partition, of, name, from, to, known, _self);
        }
    }

    /// <summary>What is known of those who send; safe from any thread.</summary>
    public Watching Watching => Volatile.Read(ref _watching);

    private Watching _watching = new([], [], []);

    private void Publish(DateTime now)
    {
        var (rows, unresolved) = (new List<WatchRow>(), new List<string>());
        foreach (var (name, id) in _partitions)
        {
            foreach (var h in _heartbeats.All().Where(h => h.Key.Partition == id))
                rows.Add(new(name, h.Key.Platform, h.Key.Name, h.Armed, h.Row, h.Last, h.Silent,
                    Heartbeats.IsForgotten(h, now) || (h.Armed == null && now - h.Last > Heartbeats.Forgotten)));
            if (_deliveries.TryGetValue(id, out var delivery)
                && delivery is { Firing: { } firing, Resolved: false } && now - firing >= TimeSpan.FromDays(1))
                unresolved.Add(name);
        }
        rows.Sort(static (a, b) => string.CompareOrdinal($"{a.Whose}\n{a.Name}", $"{b.Whose}\n{b.Name}"));
        unresolved.Sort(string.CompareOrdinal);
        Volatile.Write(ref _watching, new(rows, unresolved, _clocks.Off()));
    }

    // What webhooks brought of each partition, and by how much the clocks of senders differ.
    private readonly Dictionary<long, Delivery> _deliveries = [];
    private readonly SenderClocks _clocks = new();

    private sealed record Delivery(DateTime? Firing, bool Resolved);

    private void NoteDelivery(long partition, ReceivedAlerts alerts, DateTime received)
    {
        if (alerts.Source != AlertSource.Webhook)
            return;
        var before = _deliveries.GetValueOrDefault(partition) ?? new(null, false);
        var delivery = new Delivery(before.Firing ?? (alerts.Alerts.Any(a => a.Ends == null) ? received : null),
            before.Resolved || alerts.Alerts.Any(a => a.Ends != null));
        if (delivery == before)
            return;
        _deliveries[partition] = delivery;
        _updatePartition.Bind(1, partition).Bind(2, delivery.Firing is { } firing ? UnixTime.From(firing) : null)
            .Bind(3, delivery.Resolved ? 1 : 0).Run();
        _isDirty = true;
    }

    /// <summary>Longer, and copies of Prometheus's may have been lost.</summary>
    private static readonly TimeSpan LongestTurn = TimeSpan.FromSeconds(10);

    /// <summary>Of Prometheus's defaults.</summary>
    private static readonly TimeSpan UsualValidity = TimeSpan.FromMinutes(4);

    // Whether what was open before the start is known to _renewals.
    private bool _isRestored;

    /// <summary>What Prometheus has not renewed (3.4).</summary>
    private List<OpenEpisode> Lapsed(DateTime now)
    {
        if (!_isRestored)
            Restore();
        _isRestored = true;
        var lapsed = new List<OpenEpisode>();
        foreach (var ((service, alert, starts), last) in _renewals.TakeLapsed(now, DueAtOnce))
        {
            _openAlert.Bind(1, alert).Bind(2, UnixTime.From(starts));
            if (_openAlert.Step())
                // It fired, if but once.
                lapsed.Add(EpisodeOf(_openAlert) with
                {
                    Seen = Math.Max(UnixTime.From(last), UnixTime.From(starts) + 1),
                });
            _openAlert.Reset();
        }
        return lapsed;
    }

    /// <summary>What was open before the start was heard until the last sign of life.</summary>
    private void Restore()
    {
        var validity = _database.Number("SELECT value FROM meta WHERE name = 'validity'") is { } milliseconds
            ? TimeSpan.FromMilliseconds(milliseconds) : UsualValidity;
        using var open = _database.Query("""
            SELECT o.service, o.alert, o.starts, max(o.seen, ?1) FROM open o JOIN alert a ON a.id = o.alert
            WHERE o.own AND a.source = 1
            """);
        for (open.Bind(1, UnixTime.From(_aliveBefore)); open.Step();)
            _renewals.Restore(new(open.Number(0), open.Number(1), UnixTime.Read(open.Number(2))),
                UnixTime.Read(open.Number(3)), validity);
    }

    /// <summary>Longer, and that SeS was away is a gap.</summary>
    private static readonly TimeSpan LongestPause = TimeSpan.FromMinutes(5);

    /// <summary>What time alone brings: lapses, as facts, and services whose status changes.</summary>
    private void Tick(DateTime now)
    {
        _ticked = now;
        if (IsTaking)
        {
            NoteAbsence(now);
            if (!_areUnexpectedEnded)
                EndUnexpected(now);
            Note(_heartbeats.TakeSilent(now));
            if (now - _alive >= AlivePeriod || now < _alive)
                NoteAlive(now);
            Publish(now);
        }
        if (IsMapping)
            MapAnew(_rules.Mapping!, now);
        if (IsTaking)
        {
            GiveUp(Stale(now), now);
            if (!IsBehind)
                GiveUp(Lapsed(now), now);
            GiveUp(Abandoned(now), now, ServiceFacts.ForSilent);
        }
        var due = new List<long>();
        _due.Bind(1, UnixTime.From(now)).Bind(2, DueAtOnce);
        while (_due.Step())
            due.Add(_due.Number(0));
        foreach (var service in due)
            Derive(service, now);
    }

    private const string OfEpisode = "b.service = o.service AND b.alert = o.alert AND b.starts = o.starts";

    /// <summary>Of an <see cref="OpenEpisode"/>, from the table open as o.</summary>
    private const string OpenColumns = $"""
        o.alert, o.service, o.starts, o.seen, coalesce((SELECT status FROM observation b
            WHERE {OfEpisode} ORDER BY received DESC LIMIT 1), 2)
        """;

    /// <summary>An open episode, and its last copy.</summary>
    private readonly record struct OpenEpisode(
        long Alert, long Service, long Starts, long Seen, Status Status);

    /// <summary>
    /// Those that this SeS heard, and not for too long: only who heard one gives it up, and once.
    /// </summary>
    private List<OpenEpisode> Stale(DateTime now)
    {
        var open = new List<OpenEpisode>();
        _stale.Bind(1, UnixTime.From(now - _rules.StaleAfter - SeenStep)).Bind(2, DueAtOnce);
        while (_stale.Step())
            open.Add(EpisodeOf(_stale));
        return open;
    }

    private static OpenEpisode EpisodeOf(SqliteStatement row) => new(
        row.Number(0), row.Number(1), row.Number(2), row.Number(3), (Status)row.Number(4));

    // When the open alerts of others are looked through again, and up to which they are.
    private DateTime _abandonedDue;
    private long _abandonedAt;

    private bool IsAbandonedDue(DateTime now) =>
        _hasOthers && (now >= _abandonedDue || _abandonedDue - now > SeenStep);

    /// <summary>
    /// Once an hour, some at a time: those that others heard who have all given them up or are silent, and
    /// that this SeS gave up too if it heard them.
    /// </summary>
    private List<OpenEpisode> Abandoned(DateTime now)
    {
        var open = new List<OpenEpisode>();
        if (!IsAbandonedDue(now))
            return open;
        var last = _database.Number($"""
            SELECT max(alert) FROM (SELECT alert FROM open WHERE alert > {_abandonedAt}
                ORDER BY alert LIMIT {DueAtOnce})
            """);
        if (last == null)
        {
            (_abandonedDue, _abandonedAt) = (now + SeenStep, 0);
            return open;
        }
        _abandoned.Bind(1, _abandonedAt).Bind(2, last.Value)
            .Bind(3, UnixTime.From(now - _rules.StaleAfter - SeenStep))
            .Bind(4, UnixTime.From(now - _rules.StaleAfter));
        while (_abandoned.Step())
            open.Add(EpisodeOf(_abandoned));
        _abandonedAt = last.Value;
        return open;
    }

    private void GiveUp(List<OpenEpisode> episodes, DateTime now, string? text = null)
    {
        foreach (var (alert, service, starts, seen, status) in episodes)
        {
            var end = UnixTime.Read(Math.Max(seen, starts));
            Observe(service, alert, ObservationKind.Lapse,
                new AlertCopy(UnixTime.Read(starts), end, status, now), text, _self);
            _deleteOpen.Bind(1, alert).Run();
        }
        if (episodes.Count > 0)
            _recent.Clear();
    }

    /// <summary>The settings by which alerts were mapped so far; null: none came.</summary>
    private string? _mapping;

    /// <summary>Through which alert the open ones are mapped by other settings; after a restart anew.</summary>
    private long _mappedAnew;

    private const int MappedAtOnce = 200;

    // What is not derived yet may open more.
    private bool IsMapping => _rules.Mapping is { } mapping && _mapping != mapping.Text && !IsBehind;

    /// <summary>
    /// What is open and belongs elsewhere by other settings lapses where it was, and goes on there: until its
    /// next copy comes hours may go by, in which it would be nowhere.
    /// </summary>
    private void MapAnew(MappingRules rules, DateTime now)
    {
        var (moved, gone) = (new List<IncomingAlert>(), new List<OpenEpisode>());
        if (_mapping is { } before)
        {
            using var open = _database.Query($"""
                SELECT {OpenColumns}, p.name, f.platform, f.service, f.facet, s.location, a.labels, a.dialect, a.source,
                    a.sender, a.text
                FROM open o JOIN alert a ON a.id = o.alert JOIN service s ON s.id = a.service
                    JOIN family f ON f.id = s.family JOIN partition p ON p.id = f.partition
                WHERE o.own AND o.alert > ?1 ORDER BY o.alert LIMIT ?2
                """);
            var (rulesBefore, count) = (MappingRules.Parse(before), 0);
            for (open.Bind(1, _mappedAnew).Bind(2, MappedAtOnce); open.Step(); count++)
            {
                var service = new ServiceKey(
                    open.Text(5), open.Text(6), open.Text(7), open.Text(8), open.Text(9));
                var episode = EpisodeOf(open);
                _mappedAnew = episode.Alert;
                var alert = new IncomingAlert(service, open.Number(11) != 0, (AlertSource)open.Number(12),
                    open.Text(13), open.Text(10), NameOf(episode.Status), UnixTime.Read(episode.Starts), null,
                    open.Text(14));
                var other = AlertReader.MapAnew(service, alert.Labels, alert.Dialect, rulesBefore, rules);
                if (other == service)
                    continue;
                gone.Add(episode);
                if (other is { } place)
                    moved.Add(alert with { Service = place });
            }
            GiveUp(gone, now);
            foreach (var alert in moved)
                Take(_partitions[alert.Service.Partition], alert, _recent.KeyOf(alert), now);
            if (count == MappedAtOnce)
                return;
        }
        _setMeta.Bind(1, "mapping").Bind(2, _mapping = rules.Text).Run();
        _mappedAnew = 0;
    }

    /// <summary>Derives one service, and writes what differs from what is held.</summary>
    /// <param name="mark">Whether Onix is to get what changed.</param>
    internal void Derive(long service, DateTime now, bool mark = true)
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
        if (mark && _rules.Onix != null)
            Mark(service, now);
        WriteOpen(service, now);
        var last = _made.Count == 0 ? default : _made[^1];
        long seen = 0;
        foreach (var fact in _facts.Observations)
            seen = Math.Max(seen, UnixTime.From(fact.Received));
        _updateService.Bind(1, service).Bind(2, _made.Count == 0 ? null : (long)last.Status)
            .Bind(3, _made.Count == 0 ? null : _madeSince[^1])
            .Bind(4, last.Open ? 1 : 0).Bind(5, due is { } at ? UnixTime.From(at) : null).Bind(6, seen).Run();
    }

    private void WriteRuns(long service, long partition)
    {
        _facts.ReadRuns(service, _held, _heldSince);
        ServiceFacts.AddSince(_made, _madeSince);
        var i = 0;
        for (var j = 0; j < _made.Count; j++)
        {
            for (; i < _held.Count && _held[i].From < _made[j].From; i++)
                _deleteRun.Bind(1, service).Bind(2, UnixTime.From(_held[i].From)).Run();
            if (i == _held.Count || _held[i].From != _made[j].From)
                Insert(service, partition, _made[j], _madeSince[j]);
            else
                Update(service, _made[j], _madeSince[j], _held[i], _heldSince[i++]);
        }
        for (; i < _held.Count; i++)
            _deleteRun.Bind(1, service).Bind(2, UnixTime.From(_held[i].From)).Run();
    }

    private void Insert(long service, long partition, Run run, long since) =>
        _insertRun.Bind(1, service).Bind(2, UnixTime.From(run.From)).Bind(3, UntilOf(run)).Bind(4, since)
            .Bind(5, (long)run.Status).Bind(6, run.Open ? 1 : 0).Bind(7, run.Observation).Bind(8, partition).Run();

    /// <summary>Names only the columns that changed: indexes have others.</summary>
    private void Update(long service, Run run, long since, Run held, long heldSince)
    {
        var at = UnixTime.From(run.From);
        if (held with { To = run.To } != run || since != heldSince)
            _updateRun.Bind(1, service).Bind(2, at).Bind(3, UntilOf(run)).Bind(4, since)
                .Bind(5, (long)run.Status).Bind(6, run.Open ? 1 : 0).Bind(7, run.Observation).Run();
        else if (held.To != run.To)
            _endRun.Bind(1, service).Bind(2, at).Bind(3, UntilOf(run)).Run();
    }

    private static long UntilOf(Run run) => run.To is { } to ? UnixTime.From(to) : UnixTime.Open;

    /// <summary>
    /// Marks a service for Onix from the first change on that Onix was not told, or was told else.
    /// </summary>
    private void Mark(long service, DateTime now)
    {
        Timeline.ForOnix(CollectionsMarshal.AsSpan(_held), _toldBefore);
        Timeline.ForOnix(CollectionsMarshal.AsSpan(_made), _told);
        var same = 0;
        while (same < Math.Min(_toldBefore.Count, _told.Count)
            && _toldBefore[same].Time == _told[same].Time && _toldBefore[same].Status == _told[same].Status)
            same++;
        if (same == _toldBefore.Count && same == _told.Count)
        {
            // Another SeS may have heard less.
            if (same > 0)
                _isMarked |= Outbox.MarkIfElse(service, NameOf(_told[^1].Status), now)
                    || Outbox.MarkIfGone(service, now);
            return;
        }
        var first = same == _told.Count ? _toldBefore[same].Time
            : same == _toldBefore.Count || _told[same].Time < _toldBefore[same].Time ? _told[same].Time
            : _toldBefore[same].Time;
        Outbox.Mark(service, first, now);
        if (same < _toldBefore.Count)
            Outbox.Own(service, _toldBefore[^1].Time, NameOf(_toldBefore[^1].Status));
        _isMarked = true;
    }

    private string NameOf(Status status) => _statusNames[status];

    /// <summary>Whether something was marked for Onix since this was asked last.</summary>
    public bool TakeMarked()
    {
        var isMarked = _isMarked;
        _isMarked = false;
        return isMarked;
    }

    /// <summary>Which episodes are open, and when their last copy came, as far as facts tell.</summary>
    private void WriteOpen(long service, DateTime now)
    {
        _heldOpen.Clear();
        _lastSeen.Clear();
        _openOfService.Bind(1, service);
        while (_openOfService.Step())
            _heldOpen[_openOfService.Number(0)] = _openOfService.Number(1);
        foreach (var (alert, start) in _open)
        {
            var starts = UnixTime.From(start);
            var isHeld = _heldOpen.Remove(alert, out var held);
            if (isHeld && held == starts)
                continue;
            // What came late, from elsewhere or before a restart, is given the whole time from now on.
            var seen = LastSeen(alert);
            var away = Math.Max(0, UnixTime.From(now) - seen);
            if (isHeld)
                _deleteOpen.Bind(1, alert).Run();
            _insertOpen.Bind(1, alert).Bind(2, service).Bind(3, starts).Bind(4, seen).Bind(5, away).Run();
        }
        foreach (var alert in _heldOpen.Keys)
            _deleteOpen.Bind(1, alert).Run();
    }

    private long LastSeen(long alert)
    {
        if (_lastSeen.Count == 0)
        {
            foreach (var fact in _facts.Observations)
            {
                ref var seen = ref CollectionsMarshal.GetValueRefOrAddDefault(_lastSeen, fact.Alert, out _);
                seen = Math.Max(seen, UnixTime.From(fact.Received));
            }
        }
        return _lastSeen[alert];
    }

    // ---- Facts of other stores ----

    /// <summary>
    /// Takes the first receipt of a partition, or the arming of a heartbeat, from a line; false: it is here.
    /// </summary>
    public bool Import(string by, string partition, string? platform, string? heartbeat, DateTime received)
    {
        var (peer, place, at) = (PeerOf(by), PlaceOf(partition), UnixTime.From(received));
        using var known = _database.Query("""
            SELECT 1 FROM receipt WHERE partition = ?1 AND by = ?2 AND received = ?3 AND platform IS ?4
                AND heartbeat IS ?5
            """);
        if (known.Bind(1, place).Bind(2, peer).Bind(3, at).Bind(4, platform).Bind(5, heartbeat).Number() != null)
            return false;
        AddReceipt(place, platform, heartbeat, received, peer);
        _hear.Bind(1, peer).Bind(2, at).Run();
        if (!_knownFrom.TryGetValue(place, out var first) || received < first)
        {
            _knownFrom[place] = received;
            // All its services are known from then on.
            _database.Execute($"""
                UPDATE service SET due = 0 WHERE family IN (SELECT id FROM family WHERE partition = {place})
                """);
        }
        return true;
    }

    /// <summary>Takes the begin or end of a gap from a line; false: it is here.</summary>
    public bool Import(string by, string? partition, string? platform, string? heartbeat, DateTime begins,
        DateTime? ends, DateTime received)
    {
        var (peer, place) = (PeerOf(by), partition == null ? (long?)null : PlaceOf(partition));
        using var known = _database.Query("""
            SELECT 1 FROM gap WHERE partition IS ?1 AND platform IS ?2 AND heartbeat IS ?3 AND by = ?4
                AND begins = ?5 AND ends IS ?6 AND received = ?7
            """);
        known.Bind(1, place).Bind(2, platform).Bind(3, heartbeat).Bind(4, peer).Bind(5, UnixTime.From(begins))
            .Bind(6, ends is { } end ? UnixTime.From(end) : null).Bind(7, UnixTime.From(received));
        if (known.Number() != null)
            return false;
        AddGap(place, platform, heartbeat, begins, ends, received, peer);
        _hear.Bind(1, peer).Bind(2, UnixTime.From(received)).Run();
        return true;
    }

    /// <summary>Takes an observation from a line; false: it is here.</summary>
    public bool Import(string by, IncomingAlert alert, ObservationKind kind, DateTime received)
    {
        var peer = PeerOf(by);
        var (service, id) = Place(PlaceOf(alert.Service.Partition), alert);
        var copy = new AlertCopy(alert.Starts, alert.Ends, StatusOf(alert.Status), received);
        using var known = _database.Query("""
            SELECT o.text FROM observation o WHERE service = ?1 AND alert = ?2 AND starts = ?3 AND received = ?4
                AND kind = ?5 AND ends IS ?6 AND status = ?7 AND by = ?8
            """);
        known.Bind(1, service).Bind(2, id).Bind(3, UnixTime.From(copy.Starts)).Bind(4, UnixTime.From(received))
            .Bind(5, (long)kind).Bind(6, copy.Ends is { } ends ? UnixTime.From(ends) : null)
            .Bind(7, (long)copy.Status).Bind(8, peer);
        var first = _alertText.Bind(1, id).FirstText();
        while (known.Step())
        {
            if ((known.TextOrNull(0) ?? first) == alert.Description)
                return false;
        }
        Observe(service, id, kind, copy, alert.Description == first ? null : alert.Description, peer);
        _hear.Bind(1, peer).Bind(2, UnixTime.From(received)).Run();
        return true;
    }

    /// <summary>Its number, whether anything was received of it or not.</summary>
    private long PlaceOf(string partition)
    {
        if (_partitions.TryGetValue(partition, out var id))
            return id;
        _insertPartition.Bind(1, id = NextId()).Bind(2, partition).Run();
        return _partitions[partition] = id;
    }

    // ---- Making it anew ----

    /// <summary>What a service is that is not derived yet.</summary>
    public const string SetUnderived = "UPDATE service SET status = NULL, since = NULL, open = 0, due = NULL";

    /// <summary>Makes the indexes anew, after damage.</summary>
    public void Reindex() => _database.Execute($"""
        REINDEX; DROP VIEW IF EXISTS services; DROP VIEW IF EXISTS history; DROP VIEW IF EXISTS outages;
        {Schema.Views}
        """);

    /// <summary>Throws away what is derived, to be derived anew; last copies of open episodes stay.</summary>
    public void Rebuild(DateTime now) => InTransaction(now, () =>
    {
        _database.Execute("DELETE FROM timeline; " + SetUnderived);
        _setMeta.Bind(1, "derived").Bind(2, _windowEnd = _derived = 0).Run();
        _window.Clear();
    });

    /// <summary>Makes a store another one than that which it is a copy of.</summary>
    public static string NewStoreId => "UPDATE meta SET value = "
        + $"'{RandomNumberGenerator.GetHexString(32, lowercase: true)}' WHERE name = 'store'";

    /// <summary>Writes a consistent, compact copy, flushed; the file may not be there yet.</summary>
    public static void Backup(SqliteConnection source, string path)
    {
        // Made before, since SQLite lets others read what it makes; one that a crash left goes.
        File.Delete(path);
        Disk.Create(path).Dispose();
        using (var copy = source.Query("VACUUM INTO ?1"))
            copy.Bind(1, path).Run();
        using (var copy = new SqliteConnection(path, isReadOnly: false, 2048))
            copy.Execute(NewStoreId);
        using (var file = new FileStream(path, FileMode.Open, FileAccess.ReadWrite))
            Disk.Flush(file);
        Disk.FlushFolder(Path.GetDirectoryName(Path.GetFullPath(path))!);
    }

    // ---- Upkeep ----

    /// <summary>Pages in the log from which on they are moved into the database.</summary>
    private const int CheckpointPages = 4000;

    /// <summary>
    /// A log that grew beyond, since a reader kept it from starting anew, is cut in such steps.
    /// </summary>
    private const long LogSize = 64 * 1024 * 1024;

    /// <summary>What another thread moves, so that commits go on; tried again after a second.</summary>
    private Task<(int Logged, int Moved)>? _checkpoint;
    private SqliteConnection? _checkpointer;
    private long _checkpointed;

    /// <summary>To be called after each turn: moves the log, and deletes what is too old.</summary>
    /// <exception cref="SqliteException">A flush failed; SQLite's own checkpoint hides that.</exception>
    public void Upkeep(DateTime now, TimeProvider clock, Log log, Meters meters)
    {
        CheckpointFrom(CheckpointPages, clock);
        _retention.Step(now, clock, log, meters);
        // Not in the transaction that found it, and not for over a twentieth of the time: another process may
        // wait for that, and write often.
        if (_isCountDue && clock.GetElapsedTime(_counted) >= 20 * _countTime)
            Count();
        if (_purged > _toldPurged)
            TellPurged(log);
        TellSilent(log);
        // Before the next alert comes, so that a balancer knows.
        CheckSpace(now);
    }

    // The heartbeats that were told to be silent.
    private readonly HashSet<string> _toldSilent = [];

    private void TellSilent(Log log)
    {
        foreach (var row in Watching.Heartbeats)
        {
            var key = $"{row.Whose}\n{row.Name}";
            if (row.IsAlarming && _toldSilent.Add(key))
                log.Warn("no data: a heartbeat is silent", ("heartbeat", row.Name), ("of", row.Whose),
                    ("since", Rfc3339.Format(row.Silent!.Value)));
            else if (row.Silent == null && _toldSilent.Remove(key))
                log.Info("data again: a heartbeat is back", ("heartbeat", row.Name), ("of", row.Whose));
        }
    }

    // When the last purge ended, and the last that was told.
    private long _purged, _toldPurged;

    private void TellPurged(Log log)
    {
        foreach (var purge in PurgeRecord.Read(_database).Where(p => p.Ended > UnixTime.Read(_toldPurged)))
            log.Warn("ses purge took facts out", ("partition", purge.Partition), ("service", purge.Service),
                ("user", purge.User), ("uid", purge.Uid), ("host", purge.Host),
                ("services", purge.Taken.Services), ("alerts", purge.Taken.Alerts),
                ("observations", purge.Taken.Observations), ("quarantined", purge.Taken.Quarantined));
        _toldPurged = _purged;
    }

    /// <summary>
    /// To be called by a command after each transaction: the log stays short. It is not cut, which a daemon
    /// beside it would take for damage.
    /// </summary>
    public void MoveLog()
    {
        if (_pages.Count < CheckpointPages)
            return;
        // Most of it while others write.
        _ = _database.Checkpoint();
        var (logged, moved) = _database.CheckpointAlone();
        _pages.Count = logged == moved ? 0 : _pages.Count;
    }

    /// <summary>Begins to take out all that there is of a partition, or of its services of a name.</summary>
    public Purge BeginPurge(PurgeRecord record)
    {
        // A daemon beside it may cut the log to that.
        _files.LeastLog = LogSize;
        return new(_database, this, record);
    }

    /// <summary>Moves the log into the database when it has so many pages.</summary>
    private void CheckpointFrom(int pages, TimeProvider clock)
    {
        if (_pages.Count < pages || _checkpoint is { IsCompleted: false })
            return;
        var isRest = _checkpoint != null;
        _checkpoint?.GetAwaiter().GetResult();
        _checkpoint = null;
        if (!isRest && _pages.Count > 2 * pages)
        {
            if (clock.GetElapsedTime(_checkpointed) < Store.TickPeriod)
                return;
            _checkpointed = clock.GetTimestamp();
            _checkpointer ??= new SqliteConnection(_path, isReadOnly: false, cache: 1024);
            _checkpoint = Task.Factory.StartNew(_checkpointer.Checkpoint, CancellationToken.None,
                TaskCreationOptions.LongRunning, TaskScheduler.Default);
            return;
        }
        var (logged, moved) = _database.Checkpoint();
        _pages.Count = logged == moved ? 0 : _pages.Count;
        // Another process would take a log that this one cuts for a broken one.
        if (logged != moved || _files.LogSize <= LogSize || !IsDaemon)
            return;
        // Cutting gigabytes at once would hold a commit up.
        _files.LeastLog = Math.Max(LogSize, _files.LogSize - LogSize);
        _database.Execute($"PRAGMA journal_size_limit = {_files.LeastLog}");
    }

    /// <summary>
    /// Derives services again from which retention took facts; Onix is to get nothing for it.
    /// </summary>
    internal void Retained(IEnumerable<long> services, DateTime now)
    {
        foreach (var service in services)
            Derive(service, now, mark: false);
    }

    /// <summary>
    /// Deletes a service of which no alert is left, and its family if that was its last; false: one is.
    /// </summary>
    internal bool DeleteIfEmpty(long service)
    {
        if (_deleteService.Bind(1, service).Number() is not { } family)
            return false;
        _deleteFamily.Bind(1, family).Run();
        Outbox.Forget(service);
        return true;
    }

    /// <summary>What retention does, in a transaction; caches forget what may be gone.</summary>
    internal void Retain(DateTime now, Action delete)
    {
        Unflushed(now, delete);
        _recent.Clear();
        Count();
    }

    public void Dispose()
    {
        _checkpoint?.Wait();
        _checkpointer?.Dispose();
        _facts.Dispose();
        _pages.Dispose();
        _files.Dispose();
        _database.Dispose();
    }
}

/// <summary>
/// Deletes facts that are older than they are to be kept, some at a time: whole episodes that have ended, but
/// a dialect service's last one, and what Onix has yet to get.
/// </summary>
internal sealed class Retention
{
    private const int FactsAtOnce = 200, FactsOfPass = 10_000;

    private static readonly TimeSpan Period = TimeSpan.FromHours(1), Refused = TimeSpan.FromDays(30);

    private readonly SqliteConnection _database;
    private readonly Writer _writer;
    private readonly StoreRules _rules;
    private readonly SqliteStatement _next, _isKept, _latest, _earliest, _deleteFact, _deleteAlert;

    // The pass that is made: it goes through the observations up to _until.
    private DateTime _due, _sizeDue;
    private long _at, _until, _deleted, _oldest;

    // Services of which changes went that Onix had not taken.
    private readonly HashSet<long> _dropped = [];

    // How far passes by size have come, and what they deleted since they began anew: what is kept for good
    // must not hold up what comes after it.
    private long _sized, _deletedBySize;

    public Retention(SqliteConnection database, Writer writer, StoreRules rules)
    {
        (_database, _writer, _rules) = (database, writer, rules);
        _next = database.Prepare("""
            SELECT o.id, o.service, o.alert, o.starts, a.dialect, max(o.starts, coalesce(o.ends, o.received))
            FROM observation o JOIN alert a ON a.id = o.alert
            WHERE o.id > ?1 AND o.id <= ?2 ORDER BY o.id LIMIT ?3
            """);
        _isKept = database.Prepare("""
            SELECT EXISTS (SELECT 1 FROM open WHERE alert = ?2 AND starts = ?3)
                OR EXISTS (SELECT 1 FROM observation
                    WHERE service = ?1 AND alert = ?2 AND starts = ?3 AND id > ?4)
                OR EXISTS (SELECT 1 FROM onix WHERE service = ?1 AND next IS NOT NULL
                    AND coalesce(barred, ?5) >= ?5)
            """);
        _latest = database.Prepare("SELECT max(starts) FROM observation WHERE service = ?1");
        _earliest = database.Prepare("""
            SELECT min(starts) FROM observation WHERE service = ?1 AND (?2 IS NULL OR alert = ?2) AND id > ?3
            """);
        _deleteFact = database.Prepare("DELETE FROM observation WHERE id = ?1");
        _deleteAlert = database.Prepare("""
            DELETE FROM alert WHERE id = ?2
                AND NOT EXISTS (SELECT 1 FROM observation WHERE service = ?1 AND alert = ?2)
            """);
    }

    /// <summary>Whether there is more to do at once.</summary>
    public bool IsWorking => _at < _until;

    /// <summary>One short transaction, if it is time.</summary>
    public void Step(DateTime now, TimeProvider clock, Log log, Meters meters)
    {
        if (!IsWorking && IsDue(now))
            Begin(now, log);
        if (!IsWorking)
            return;
        _writer.Retain(now, () => Delete(now));
        if (IsWorking)
            return;
        if (_dropped.Count > 0)
            log.Warn("changes went that Onix had refused for 30 days", ("services", _dropped.Count));
        meters.OnixChanges.WithLabels("dropped").Inc(_dropped.Count);
        _dropped.Clear();
        if (_deleted > 0)
            log.Info("old facts were deleted", ("observations", _deleted),
                ("before", Rfc3339.Format(UnixTime.Read(_oldest))));
    }

    /// <summary>Each hour, and when the database has grown too large.</summary>
    private bool IsDue(DateTime now)
    {
        var isSizeDue = _rules.MaxSize != null && (now >= _sizeDue || _sizeDue - now > Period);
        if (isSizeDue)
            _sizeDue = now + Store.TickPeriod;
        return now >= _due || _due - now > Period || (isSizeDue && IsTooLarge);
    }

    /// <summary>A twentieth is left for what comes while facts are deleted.</summary>
    private bool IsTooLarge => _rules.MaxSize is { } most && Size > most - (most / 20);

    /// <summary>Bytes of pages in use: free ones are used again.</summary>
    private long Size => _database.Number("PRAGMA page_size")!.Value
        * (_database.Number("PRAGMA page_count") - _database.Number("PRAGMA freelist_count"))!.Value;

    private void Begin(DateTime now, Log log)
    {
        (_due, _deleted) = (now + Period, 0);
        var first = _database.Number("SELECT min(id) FROM observation") ?? 0;
        if (first == 0)
            return;
        var until = _rules.Retention is { } time ? ObservationLog.LastUntil(_database, now - time) : 0;
        _at = first - 1;
        if (IsTooLarge)
        {
            log.Often("the database reaches --max-size: facts go before --retention has them go",
                ("bytes", Size), ("max", _rules.MaxSize));
            using var pass = _database.Query(
                "SELECT max(id) FROM (SELECT id FROM observation WHERE id > ?1 ORDER BY id LIMIT ?2)");
            if (until <= _sized)
                _at = Math.Max(_at, _sized);
            _sized = pass.Bind(1, Math.Max(_sized, until)).Bind(2, FactsOfPass).Number() ?? 0;
            // The next one at once, unless all is looked through: then soon, if that was of use.
            _sizeDue = _sized > 0 ? default : now + (_deletedBySize > 0 ? Store.TickPeriod : Period);
            _deletedBySize = _sized > 0 ? _deletedBySize : 0;
            until = Math.Max(until, _sized);
        }
        _until = Math.Max(until, _at);
        if (IsWorking && _rules.Retention is { } kept)
            _writer.Retain(now, () => KeepFrom(UnixTime.From(now - kept)));
    }

    /// <summary>Nothing before that time is counted any more: what was before is not all there.</summary>
    private void KeepFrom(long time)
    {
        _oldest = time > _oldest ? time : _oldest;
        _database.Execute($"""
            INSERT INTO meta VALUES ('oldest', {time}) ON CONFLICT DO UPDATE SET value = max(value, excluded.value);
            DELETE FROM receipt AS r WHERE heartbeat IS NOT NULL AND EXISTS (SELECT 1 FROM gap g
                WHERE g.partition = r.partition AND g.platform IS r.platform AND g.heartbeat = r.heartbeat
                    AND g.ends - g.begins > {(long)Heartbeats.Forgotten.TotalMilliseconds} AND g.ends < {time}
                    AND r.received <= g.ends);
            DELETE FROM gap AS g WHERE begins < {time} AND EXISTS (SELECT 1 FROM gap e WHERE e.begins = g.begins
                AND e.ends < {time} AND (e.by = g.by OR e.by IN (SELECT id FROM peer WHERE own)
                    AND g.by IN (SELECT id FROM peer WHERE own)) AND e.partition IS g.partition AND e.platform IS g.platform
                AND e.heartbeat IS g.heartbeat);
            DELETE FROM note AS n WHERE NOT EXISTS (SELECT 1 FROM note v
                WHERE v.partition = n.partition AND v.note = n.note AND (v.recorded >= {time}
                    OR (v.ends IS NULL OR v.ends >= {time}) AND NOT (SELECT l.withdrawn FROM note l
                        WHERE l.partition = n.partition AND l.note = n.note ORDER BY l.received DESC LIMIT 1)))
            """);
    }

    private void Delete(DateTime now)
    {
        var (services, facts) = (new HashSet<long>(), new List<(long Id, long Service, long Alert)>());
        var (count, refused) = (0, UnixTime.From(now - Refused));
        var oldest = 0L;
        var latest = new Dictionary<long, long?>();
        var earliest = new Dictionary<(long, long?), long?>();
        // An older episode that was heard later ends where this one begins.
        long? EarliestOf(long service, long? alert) => earliest.TryGetValue((service, alert), out var starts)
            ? starts : earliest[(service, alert)] =
                _earliest.Bind(1, service).Bind(2, alert).Bind(3, _until).Number();
        // A dialect service's last status goes on after its end.
        long? LatestOf(long service) => latest.TryGetValue(service, out var starts) ? starts
            : latest[service] = _latest.Bind(1, service).Number();
        _next.Bind(1, _at).Bind(2, _until).Bind(3, FactsAtOnce);
        while (_next.Step())
        {
            (count, _at) = (count + 1, _next.Number(0));
            var (service, alert, starts) = (_next.Number(1), _next.Number(2), _next.Number(3));
            var isDialect = _next.Number(4) != 0;
            var isNeeded = starts > EarliestOf(service, isDialect ? null : alert)
                || (isDialect && starts == LatestOf(service));
            if (!isNeeded && _isKept.Bind(1, service).Bind(2, alert).Bind(3, starts).Bind(4, _until)
                .Bind(5, refused).Number() == 0)
            {
                facts.Add((_at, service, alert));
                oldest = Math.Max(oldest, _next.Number(5));
            }
        }
        if (facts.Count > 0)
            KeepFrom(oldest);
        foreach (var (id, service, _) in facts)
        {
            _deleteFact.Bind(1, id).Run();
            services.Add(service);
        }
        foreach (var service in services)
        {
            if (_database.Number($"SELECT 1 FROM onix WHERE service = {service} AND next IS NOT NULL") != null)
                _dropped.Add(service);
        }
        _writer.Retained(services, now);
        foreach (var (_, service, alert) in facts)
            _deleteAlert.Bind(1, service).Bind(2, alert).Run();
        foreach (var service in services)
            _ = _writer.DeleteIfEmpty(service);
        _deleted += facts.Count;
        _deletedBySize += facts.Count;
        if (count < FactsAtOnce)
            _at = _until;
    }
}

/// <summary>How much a purge takes; alerts are label sets.</summary>
internal readonly record struct PurgeSum(long Services, long Alerts, long Observations, long Quarantined)
{
    public override string ToString() => $"{Services} services, {Alerts} alerts, {Observations} observations, "
        + $"{Quarantined} quarantined alerts";
}

/// <summary>Reads versions of notes from a database.</summary>
internal static class StoredNotes
{
    /// <summary>What <see cref="VersionOf"/> takes.</summary>
    public const string Columns = """
        n.id, p.name, n.note, b.name, n.kind, n.begins, n.ends, n.platform, n.service, n.facet, n.location, n.status,
        n.text, n.author, n.author_name, n.withdrawn, n.received, n.recorded
        """;

    public const int ColumnCount = 18;

    public const string From = "FROM note n JOIN partition p ON p.id = n.partition JOIN peer b ON b.id = n.by";

    public static NoteVersion VersionOf(SqliteStatement row) => new(row.Text(2), (NoteKind)row.Number(4),
        UnixTime.Read(row.Number(5)), row.NumberOrNull(6) is { } ends ? UnixTime.Read(ends) : null,
        new NoteFilter(row.Text(1), row.TextOrNull(7), row.TextOrNull(8), row.TextOrNull(9), row.TextOrNull(10)),
        row.TextOrNull(11), row.Text(12), row.Text(13), row.TextOrNull(14), row.Number(15) != 0,
        UnixTime.Read(row.Number(16)))
    {
        Row = row.Number(0),
        By = row.Text(3),
        Recorded = UnixTime.Read(row.Number(17)),
    };
}

/// <summary>What is kept of a run of ses purge.</summary>
/// <param name="Ended">Null: it goes on, or was interrupted.</param>
/// <param name="User">Who ran it, on <paramref name="Host"/>, with the number <paramref name="Uid"/>.</param>
/// <param name="Service">The services of this name; null: the whole partition.</param>
internal sealed record PurgeRecord(DateTime Begun, string User, long Uid, string Host, string Partition,
    string? Service, DateTime? Ended = null, PurgeSum Taken = default)
{
    /// <summary>All there are, the earliest first.</summary>
    public static IEnumerable<PurgeRecord> Read(SqliteConnection database)
    {
        using var rows = database.Query("""
            SELECT begun, user, uid, host, partition, service, ended, services, alerts, observations, quarantined
            FROM purge ORDER BY id
            """);
        while (rows.Step())
            yield return new PurgeRecord(UnixTime.Read(rows.Number(0)), rows.Text(1), rows.Number(2), rows.Text(3),
                rows.Text(4), rows.TextOrNull(5), rows.NumberOrNull(6) is { } ended ? UnixTime.Read(ended) : null,
                new PurgeSum(rows.Number(7), rows.Number(8), rows.Number(9), rows.Number(10)));
    }
}

/// <summary>
/// Deletes what there was of a partition, or of its services of a name, when it began, in short transactions,
/// whether a daemon writes meanwhile or not: what that takes since then stays. Interrupted, it is begun again.
/// </summary>
internal sealed class Purge
{
    private const int RowsAtOnce = 500;

    /// <summary>A transaction takes no longer than about this; then others may write.</summary>
    public static readonly TimeSpan
        StepTime = TimeSpan.FromMilliseconds(20), PauseTime = TimeSpan.FromMilliseconds(25);

    /// <summary>Of the families meant: ?1 is the partition's name, ?2 the services' or null.</summary>
    private const string Families = """
        FROM partition p CROSS JOIN family f ON f.partition = p.id AND (?2 IS NULL OR f.service = ?2)
        """;

    private readonly SqliteConnection _database;
    private readonly Writer _writer;
    private readonly PurgeRecord _record;
    private readonly SqliteStatement[] _deleteRows;
    private readonly SqliteStatement _deleteFacts, _deleteAlerts, _lastQuarantined, _deleteQuarantined,
        _isThere, _setUnderived, _note;

    // Its number in the table of purges, the last id that is meant, the services, and which of them comes next.
    private readonly long _id, _until;
    private readonly List<long> _services = [];
    private int _next;
    private long _quarantinedAt;
    private PurgeSum _taken;

    /// <summary>Begins it: what is stored from now on is not meant.</summary>
    public Purge(SqliteConnection database, Writer writer, PurgeRecord record)
    {
        (_database, _writer, _record) = (database, writer, record);
        (_id, _until) = Begin();
        using (var services = Query(database, $"SELECT s.id {Families} CROSS JOIN service s ON s.family = f.id "
            + $"WHERE p.name = ?1 AND s.id <= {_until}", record.Partition, record.Service))
        {
            while (services.Step())
                _services.Add(services.Number(0));
        }
        // As they are stored: rows of services side by side are on the same pages.
        _services.Sort();
        SqliteStatement Of(string sql) => database.Prepare(sql);
        _deleteFacts = Of($"""
            DELETE FROM observation WHERE id IN (
                SELECT id FROM observation WHERE service = ?1 AND id <= {_until} LIMIT {RowsAtOnce})
            """);
        _deleteAlerts = Of($"""
            DELETE FROM alert WHERE id IN (SELECT a.id FROM alert a WHERE a.service = ?1 AND a.id <= {_until}
                AND NOT EXISTS (SELECT 1 FROM observation WHERE service = ?1 AND alert = a.id) LIMIT {RowsAtOnce})
            """);
        _deleteRows = [
            Of($"""
                DELETE FROM timeline WHERE service = ?1
                    AND at IN (SELECT at FROM timeline WHERE service = ?1 LIMIT {RowsAtOnce})
                """),
            Of($"""
                DELETE FROM open WHERE alert IN (
                    SELECT alert FROM open WHERE service = ?1 LIMIT {RowsAtOnce})
                """),
            _deleteFacts, _deleteAlerts];
        _lastQuarantined = Of($"""
            SELECT max(id) FROM (SELECT id FROM quarantine WHERE id > ?1 AND id <= {_until}
                ORDER BY id LIMIT {RowsAtOnce})
            """);
        _deleteQuarantined = Of("DELETE FROM quarantine WHERE id > ?1 AND id <= ?2 AND partition = ?3");
        _isThere = Of("SELECT 1 FROM service WHERE id = ?1");
        _setUnderived = Of(Writer.SetUnderived + " WHERE id = ?1");
        _note = Of("""
            UPDATE purge SET services = ?2, alerts = ?3, observations = ?4, quarantined = ?5, ended = ?6
            WHERE id = ?1
            """);
    }

    /// <summary>So far.</summary>
    public PurgeSum Taken => _taken;

    /// <summary>Services that stay, since facts of them came after it began.</summary>
    public long Kept { get; private set; }

    /// <summary>Services that are done, and all that are meant.</summary>
    public (long Done, long All) Progress => (_next, _services.Count);

    /// <summary>How much there is to take; null: no such partition, or no such service in it.</summary>
    public static PurgeSum? Sum(SqliteConnection database, string partition, string? service)
    {
        const string Services = $"{Families} CROSS JOIN service s ON s.family = f.id";
        if (Count($"SELECT 1 {Families} WHERE p.name = ?1 LIMIT 1") == null && (service != null || Count("""
            SELECT 1 FROM partition WHERE name = ?1 UNION ALL SELECT 1 FROM quarantine WHERE partition = ?1
            """) == null))
            return null;
        return new PurgeSum(Count($"SELECT count(*) {Services} WHERE p.name = ?1") ?? 0,
            Count($"SELECT count(*) {Services} CROSS JOIN alert a ON a.service = s.id WHERE p.name = ?1") ?? 0,
            Count($"SELECT count(*) {Services} CROSS JOIN observation o ON o.service = s.id WHERE p.name = ?1") ?? 0,
            service != null ? 0 : Count("SELECT count(*) FROM quarantine WHERE partition = ?1") ?? 0);

        long? Count(string sql)
        {
            using var rows = Query(database, sql, partition, service);
            return rows.Number();
        }
    }

    /// <summary>
    /// The partitions, or the names of services in one, up to one more than <paramref name="most"/>.
    /// </summary>
    public static List<string> Names(SqliteConnection database, string? partition, int most)
    {
        using var rows = partition == null
            ? database.Query($"""
                SELECT name FROM partition UNION SELECT partition FROM quarantine ORDER BY 1 LIMIT {most + 1}
                """)
            : Query(database, $"SELECT DISTINCT f.service {Families} WHERE p.name = ?1 ORDER BY 1 LIMIT {most + 1}",
                partition, null);
        var names = new List<string>();
        while (rows.Step())
            names.Add(rows.Text(0));
        return names;
    }

    private static SqliteStatement Query(
        SqliteConnection database, string sql, string partition, string? service)
    {
        var rows = database.Query(sql).Bind(1, partition);
        return service == null ? rows : rows.Bind(2, service);
    }

    private (long Id, long Until) Begin()
    {
        var (id, until) = (0L, 0L);
        _writer.InTransaction(_record.Begun, () =>
        {
            using var insert = _database.Query("""
                INSERT INTO purge(begun, user, uid, host, partition, service) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                RETURNING id
                """);
            id = insert.Bind(1, UnixTime.From(_record.Begun)).Bind(2, _record.User).Bind(3, _record.Uid)
                .Bind(4, _record.Host).Bind(5, _record.Partition).Bind(6, _record.Service).Number()!.Value;
            until = _database.Number("SELECT value FROM meta WHERE name = 'last_id'") ?? 0;
        });
        return (id, until);
    }

    /// <summary>One short transaction, which is not flushed by itself.</summary>
    /// <param name="isOver">Asked after each service: the transaction ends.</param>
    /// <returns>Whether there is more.</returns>
    public bool Step(DateTime now, Func<bool> isOver) => _writer.Change(_ =>
    {
        bool isMore;
        do
            isMore = TakeNext(now);
        while (isMore && !isOver());
        Note(null);
        return isMore;
    }, now);

    private bool TakeNext(DateTime now)
    {
        if (_next == _services.Count)
            return _record.Service == null && TakeQuarantined();
        if (Take(_services[_next], now))
            _next++;
        return true;
    }

    /// <summary>
    /// Whether all of a service that is meant is gone; if not, it counts as one that is not derived yet.
    /// </summary>
    private bool Take(long service, DateTime now)
    {
        foreach (var delete in _deleteRows)
        {
            delete.Bind(1, service).Run();
            var count = _database.Changes;
            if (delete == _deleteFacts)
                _taken = _taken with { Observations = _taken.Observations + count };
            else if (delete == _deleteAlerts)
                _taken = _taken with { Alerts = _taken.Alerts + count };
            if (count < RowsAtOnce)
                continue;
            _setUnderived.Bind(1, service).Run();
            return false;
        }
        if (_writer.DeleteIfEmpty(service))
            _taken = _taken with { Services = _taken.Services + 1 };
        else if (_isThere.Bind(1, service).Number() != null)
        {
            _writer.Derive(service, now);
            Kept++;
        }
        return true;
    }

    private bool TakeQuarantined()
    {
        if (_lastQuarantined.Bind(1, _quarantinedAt).Number() is not { } last)
            return false;
        _deleteQuarantined.Bind(1, _quarantinedAt).Bind(2, last).Bind(3, _record.Partition).Run();
        _taken = _taken with { Quarantined = _taken.Quarantined + _database.Changes };
        _quarantinedAt = last;
        return true;
    }

    private void Note(DateTime? ended) => _note.Bind(1, _id).Bind(2, _taken.Services).Bind(3, _taken.Alerts)
        .Bind(4, _taken.Observations).Bind(5, _taken.Quarantined)
        .Bind(6, ended is { } time ? UnixTime.From(time) : null).Run();

    /// <summary>
    /// Has all of it flushed. A whole partition is forgotten, with when it was heard of first, unless anything
    /// of it came since the purge began.
    /// </summary>
    public void End(DateTime now) => _writer.InTransaction(now, () =>
    {
        Note(now);
        if (_record.Service != null)
            return;
        using var receipts = _database.Query($"""
            DELETE FROM receipt AS r WHERE id <= {_until}
                AND partition = (SELECT id FROM partition WHERE name = ?1)
                AND NOT EXISTS (SELECT 1 FROM family f WHERE f.partition = r.partition)
            """);
        receipts.Bind(1, _record.Partition).Run();
        foreach (var table in (string[])["gap", "beat"])
        {
            using var silent = _database.Query($"""
                DELETE FROM {table} AS g WHERE partition = (SELECT id FROM partition WHERE name = ?1)
                    AND NOT EXISTS (SELECT 1 FROM receipt r WHERE r.partition = g.partition)
                """);
            silent.Bind(1, _record.Partition).Run();
        }
        using var notes = _database.Query($"""
            DELETE FROM note WHERE id <= {_until} AND partition = (SELECT id FROM partition WHERE name = ?1)
            """);
        notes.Bind(1, _record.Partition).Run();
        using var partition = _database.Query($"""
            DELETE FROM partition AS p WHERE name = ?1 AND id <= {_until}
                AND NOT EXISTS (SELECT 1 FROM note n WHERE n.partition = p.id)
                AND NOT EXISTS (SELECT 1 FROM family f WHERE f.partition = p.id)
                AND NOT EXISTS (SELECT 1 FROM receipt r WHERE r.partition = p.id)
            """);
        partition.Bind(1, _record.Partition).Run();
    });
}

/// <summary>Observations in the order in which they were recorded.</summary>
internal static class ObservationLog
{
    /// <summary>
    /// The last one recorded until a moment, by halving: recorded never decreases; 0: none.
    /// </summary>
    public static long LastUntil(SqliteConnection database, DateTime moment)
    {
        // Asked for in one, they would be looked for in all rows.
        using var ends = database.Query("""
            SELECT coalesce((SELECT min(id) FROM observation), 0),
                coalesce((SELECT max(id) FROM observation), 0),
                (SELECT recorded FROM observation ORDER BY id DESC LIMIT 1)
            """);
        using var before =
            database.Query("SELECT id, recorded FROM observation WHERE id <= ?1 ORDER BY id DESC LIMIT 1");
        ends.Step();
        var (low, high, until) = (ends.Number(0) - 1, ends.Number(1), UnixTime.From(moment));
        // Most ask for now.
        if (ends.NumberOrNull(2) <= until)
            return high;
        while (low < high)
        {
            var middle = low + ((high - low + 1) / 2);
            before.Bind(1, middle);
            var isThere = before.Step();
            if (isThere && before.Number(1) > until)
                high = before.Number(0) - 1;
            else
                low = middle;
            before.Reset();
        }
        return Math.Max(low, 0);
    }
}

/// <summary>What Onix holds of a service, and what of it waits.</summary>
/// <param name="Key">Of its item; null: the plain one.</param>
/// <param name="Version">0: Onix holds no item of it.</param>
/// <param name="IsOwn">This SeS wrote what Onix holds, or had it in its timeline.</param>
/// <param name="Next">No change that Onix lacks is earlier.</param>
/// <param name="Marks">
/// How often it was marked: what was decided before it was marked again may be wrong.
/// </param>
/// <param name="Barred">Since when Onix refuses it.</param>
/// <param name="IsUnanswered">A change was sent, and what Onix made of it is not known.</param>
internal sealed record WaitingService(
    long Id, ServiceKey Service, string? Key, long Version, string? Status, DateTime? At, bool IsOwn,
    DateTime Next, long Marks, int Tries, DateTime? Barred, string? Error, bool IsUnanswered);

/// <summary>
/// The transactional outbox: what Onix holds of each service, and which have changes for it. A service is
/// marked in the transaction that derives it. Used by the writer's thread alone.
/// </summary>
internal sealed class Outbox(SqliteConnection database)
{
    private const int AtOnce = 1000;

    private static readonly TimeSpan
        FirstDelay = TimeSpan.FromSeconds(1), LongestDelay = TimeSpan.FromMinutes(10);

    /// <summary>A service may have been deleted while Onix was asked.</summary>
    private const string IsThere = "EXISTS (SELECT 1 FROM service WHERE id = ?1)";

    private readonly SqliteStatement
        _mark = database.Prepare($"""
            INSERT INTO onix(service, next, marks, marked) SELECT ?1, ?2, 1, ?3 WHERE {IsThere} ON CONFLICT DO UPDATE
            SET next = min(coalesce(next, excluded.next), excluded.next), marks = marks + 1,
                marked = coalesce(marked, excluded.marked)
            """),
        _hold = database.Prepare($"""
            INSERT INTO onix(service, key, version, status, at, own) SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE {IsThere}
            ON CONFLICT DO UPDATE SET own = max(excluded.own,
                    CASE WHEN status IS excluded.status AND at IS excluded.at THEN own ELSE 0 END,
                    EXISTS (SELECT 1 FROM sent t WHERE t.service = onix.service AND t.at = excluded.at
                        AND t.status = excluded.status)),
                key = excluded.key, version = excluded.version, status = excluded.status, at = excluded.at
            """),
        _send = database.Prepare($"INSERT OR IGNORE INTO sent SELECT ?1, ?2, ?3 WHERE {IsThere}"),
        _answered = database.Prepare("DELETE FROM sent WHERE service = ?1"),
        _forget = database.Prepare("DELETE FROM onix WHERE service = ?1"),
        _markIfElse = database.Prepare("""
            UPDATE onix SET next = min(coalesce(next, at), at), marks = marks + 1, marked = coalesce(marked, ?3)
            WHERE service = ?1 AND own = 0 AND version > 0 AND at IS NOT NULL AND status <> ?2
            """),
        _markIfGone = database.Prepare("""
            UPDATE onix SET next = 0, marks = marks + 1, marked = ?2
            WHERE service = ?1 AND version = 0 AND next IS NULL
            """),
        _own = database.Prepare("UPDATE onix SET own = 1 WHERE service = ?1 AND at = ?2 AND status = ?3"),
        _settle = database.Prepare("""
            UPDATE onix SET next = ?3, marked = CASE WHEN ?3 IS NULL THEN NULL ELSE marked END
            WHERE service = ?1 AND marks = ?2
            """),
        _accept = database.Prepare("""
            UPDATE onix SET due = NULL, tries = 0, barred = NULL, error = NULL
            WHERE service = ?1 AND due IS NOT NULL
            """),
        _putOff = database.Prepare("""
            UPDATE onix SET due = ?2, tries = tries + 1, barred = coalesce(barred, ?3), error = ?4
            WHERE service = ?1
            """),
        _key = database.Prepare("UPDATE onix SET key = ?2 WHERE service = ?1"),
        _retry = database.Prepare("UPDATE onix SET due = ?1 WHERE next IS NOT NULL AND due > ?1"),
        _retryPartition = database.Prepare("""
            UPDATE onix SET due = ?1 WHERE next IS NOT NULL AND due > ?1 AND service IN (SELECT s.id
                FROM partition p JOIN family f ON f.partition = p.id JOIN service s ON s.family = f.id
                WHERE p.name = ?2)
            """);

    /// <summary>A change of the service's that Onix may lack is at that time, none earlier.</summary>
    public void Mark(long service, DateTime first, DateTime now) =>
        _mark.Bind(1, service).Bind(2, UnixTime.From(first)).Bind(3, UnixTime.From(now)).Run();

    /// <summary>Marks a service if Onix holds another status, from another SeS.</summary>
    public bool MarkIfElse(long service, string status, DateTime now)
    {
        _markIfElse.Bind(1, service).Bind(2, status).Bind(3, UnixTime.From(now)).Run();
        return database.Changes > 0;
    }

    /// <summary>Marks a service whose item is gone from Onix: it gets its whole history.</summary>
    public bool MarkIfGone(long service, DateTime now)
    {
        _markIfGone.Bind(1, service).Bind(2, UnixTime.From(now)).Run();
        return database.Changes > 0;
    }

    /// <summary>A change goes to Onix now: where its answer is lost, it is known again by this.</summary>
    public void Send(long service, DateTime at, string status) =>
        _send.Bind(1, service).Bind(2, UnixTime.From(at)).Bind(3, status).Run();

    /// <summary>What Onix made of the changes that were sent is known.</summary>
    public void Answer(long service) => _answered.Bind(1, service).Run();

    /// <summary>The service is gone.</summary>
    public void Forget(long service)
    {
        _forget.Bind(1, service).Run();
        Answer(service);
    }

    /// <summary>Onix holds this; <paramref name="at"/> null: an item that has no time.</summary>
    /// <param name="isOwn">This SeS wrote it.</param>
    public void Hold(
        long service, string? key, long version, string? status, DateTime? at, bool isOwn = false)
    {
        _hold.Bind(1, service).Bind(2, key).Bind(3, version).Bind(4, status)
            .Bind(5, at is { } time ? UnixTime.From(time) : null).Bind(6, isOwn ? 1 : 0).Run();
        Answer(service);
    }

    /// <summary>
    /// The timeline had this change, and has it no more: if it is what Onix holds, Onix is to be told so.
    /// </summary>
    public void Own(long service, DateTime at, string status) =>
        _own.Bind(1, service).Bind(2, UnixTime.From(at)).Bind(3, status).Run();

    /// <summary>
    /// Onix has all changes before a time, or all there are, unless it was marked meanwhile.
    /// </summary>
    public void Settle(WaitingService service, DateTime? next)
    {
        _settle.Bind(1, service.Id).Bind(2, service.Marks)
            .Bind(3, next is { } time ? UnixTime.From(time) : null).Run();
        _accept.Bind(1, service.Id).Run();
    }

    /// <summary>Onix refuses it: it is tried again after 1, 2, 4 s and so on, up to 10 minutes.</summary>
    public void Bar(WaitingService service, string reason, DateTime now) =>
        PutOff(service, DelayOf(service), reason, now);

    /// <summary>It was locked again and again: others go first.</summary>
    public void StepBack(WaitingService service, DateTime now) =>
        _putOff.Bind(1, service.Id).Bind(2, UnixTime.From(now + DelayOf(service)))
            .Bind(3, null as long?).Bind(4, null as string).Run();

    private void PutOff(WaitingService service, TimeSpan delay, string reason, DateTime now) =>
        _putOff.Bind(1, service.Id).Bind(2, UnixTime.From(now + delay)).Bind(3, UnixTime.From(now))
            .Bind(4, reason).Run();

    private static TimeSpan DelayOf(WaitingService service)
    {
        var delay = FirstDelay * Math.Pow(2, Math.Min(service.Tries, 20));
        return delay < LongestDelay ? delay : LongestDelay;
    }

    public void SetKey(long service, string key) => _key.Bind(1, service).Bind(2, key).Run();

    /// <summary>
    /// All that are barred are due, or those of a partition: what cured one has cured others.
    /// </summary>
    public void Retry(DateTime now, string? partition = null)
    {
        if (partition == null)
            _retry.Bind(1, UnixTime.From(now)).Run();
        else
            _retryPartition.Bind(1, UnixTime.From(now)).Bind(2, partition).Run();
    }

    // ---- Another Onix ----

    /// <summary>Onix is to get the whole history, of all services: it is another, or went back.</summary>
    public void BeginAnew() => SetAnew(0);

    /// <summary>Marks the next services for that; false: there are no more.</summary>
    public bool MarkNext(DateTime now)
    {
        if (database.Number("SELECT value FROM meta WHERE name = 'onix_anew'") is not { } from)
            return false;
        var last = database.Number(
            $"SELECT max(id) FROM (SELECT id FROM service WHERE id > {from} ORDER BY id LIMIT {AtOnce})");
        database.Execute(last == null ? "DELETE FROM meta WHERE name = 'onix_anew'" : $"""
            INSERT INTO onix(service, next, marks, marked)
                SELECT id, 0, 1, {UnixTime.From(now)} FROM service WHERE id > {from} AND id <= {last}
            ON CONFLICT DO UPDATE SET key = NULL, version = 0, status = NULL, at = NULL, next = 0,
                own = 0, marks = marks + 1, marked = coalesce(marked, excluded.marked), due = NULL, tries = 0,
                barred = NULL, error = NULL
            """);
        if (last is { } id)
            SetAnew(id);
        return last != null;
    }

    private void SetAnew(long from) => database.Execute(
        $"INSERT INTO meta VALUES ('onix_anew', {from}) ON CONFLICT DO UPDATE SET value = excluded.value");
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
internal sealed class DatabaseFiles(string path) : IDisposable
{
    private readonly (string Path, FileStatus Status)[] _files =
        [.. new[] { path, path + "-wal", path + "-shm" }.Select(p => (p, Disk.StatusOf(p)
            ?? throw new SqliteException(SqliteException.FilesChanged, 0, $"{p} is not there")))];

    /// <summary>To what the log may be cut when it starts anew.</summary>
    public long LeastLog { get; set; } = long.MaxValue;

    public long LogSize => _files[1].Status.Size;

    /// <summary>
    /// What was cut from the log while a transaction was appended is zeros now, up to that, as the random salt of
    /// the last page before it (sqlite.org/fileformat2.html, 4.1). Which salt it is says nothing: another process
    /// may have begun the log anew since the commit.
    /// </summary>
    /// <param name="pages">In the log before the transaction.</param>
    /// <exception cref="SqliteException">It was cut.</exception>
    public void CheckLog(int pages)
    {
        if (pages == 0)
            return;
        Span<byte> head = stackalloc byte[LogHead], page = stackalloc byte[LogPageHead];
        _ = RandomAccess.Read(_log, head, 0);
        long pageSize = BinaryPrimitives.ReadInt32BigEndian(head[8..]);
        _ = RandomAccess.Read(_log, page, LogHead + ((pages - 1) * (LogPageHead + pageSize)));
        if (!head[16..24].ContainsAnyExcept((byte)0) || !page[8..16].ContainsAnyExcept((byte)0))
            throw new SqliteException(SqliteException.FilesChanged, 0, $"{_files[1].Path} was cut short");
    }

    private const int LogHead = 32, LogPageHead = 24;

    // SQLite holds no lock on the log, which closing this would end.
    private readonly SafeFileHandle _log =
        File.OpenHandle(path + "-wal", share: FileShare.ReadWrite | FileShare.Delete);

    public void Dispose() => _log.Dispose();

    /// <summary>Whether they are those that were opened. Safe from any thread.</summary>
    public bool AreThere => Array.TrueForAll(_files, f => IsSame(Disk.StatusOf(f.Path), f.Status));

    private static bool IsSame(FileStatus? now, FileStatus before) =>
        now?.Device == before.Device && now?.Inode == before.Inode;

    /// <summary>To be called before a transaction, and after it, before it is acknowledged.</summary>
    /// <exception cref="SqliteException">A file is not the one that was opened, or shorter.</exception>
    public void Check()
    {
        foreach (ref var file in _files.AsSpan())
        {
            var now = Disk.StatusOf(file.Path);
            if (!IsSame(now, file.Status))
                throw new SqliteException(
                    SqliteException.FilesChanged, 0, $"{file.Path} was removed or replaced");
            var least = file.Path.EndsWith("-wal", StringComparison.Ordinal)
                ? Math.Min(file.Status.Size, LeastLog) : file.Status.Size;
            if (now!.Value.Size < least)
                throw new SqliteException(SqliteException.FilesChanged, 0, $"{file.Path} was cut short");
            file.Status = now.Value;
        }
    }
}

/// <summary>CRC-32C of a row's values.</summary>
internal struct Checksum()
{
    public static long OfReceipt(long id, long partition, string? platform, string? heartbeat, long by,
        long received, long recorded) =>
        new Checksum().Add(id).Add(partition).Add(platform ?? "\0").Add(heartbeat ?? "\0").Add(by).Add(received)
            .Add(recorded).Value;

    public static long OfGap(long id, long? partition, string? platform, string? heartbeat, long by, long begins,
        long? ends, long received, long recorded) =>
        new Checksum().Add(id).Add(partition ?? -1).Add(platform ?? "\0").Add(heartbeat ?? "\0").Add(by).Add(begins)
            .Add(ends ?? -1).Add(received).Add(recorded).Value;

    public static long OfNote(long id, long partition, long by, NoteVersion note, long recorded) =>
        new Checksum().Add(id).Add(partition).Add(note.Id).Add(by).Add((long)note.Kind).Add(note.Span.From)
            .Add(note.Span.To).Add(note.Filter.Platform ?? "\0").Add(note.Filter.Service ?? "\0")
            .Add(note.Filter.Facet ?? "\0").Add(note.Filter.Location ?? "\0").Add(note.Status ?? "\0").Add(note.Text)
            .Add(note.Author).Add(note.AuthorName ?? "\0").Add(note.IsWithdrawn ? 1 : 0).Add(UnixTime.From(note.Received))
            .Add(recorded).Value;

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

    /// <summary>
    /// What finds an alert among those of its service; texts are compared all the same. The upper half is
    /// that of all alerts which differ in source, sender and labels of replicas alone.
    /// </summary>
    public static long Hash(AlertSource source, string sender, string labels) =>
        FirstOfGroup(AlertLabels.WithoutReplica(labels)) | (uint)Half($"{(int)source}\n{sender}\n{labels}");

    /// <summary>The least that alerts with these labels, replicas aside, can have.</summary>
    public static long FirstOfGroup(string labels) => (long)Half(labels) << 32;

    private static int Half(string text) =>
        BinaryPrimitives.ReadInt32LittleEndian(SHA256.HashData(Encoding.UTF8.GetBytes(text)));
}

/// <summary>
/// The newest episode of an alert, as it is on disk. Starts of no time: only its place is known.
/// </summary>
internal readonly record struct RecentAlert(
    long Service, long Alert, DateTime Starts, DateTime? Ends, string Status, DateTime Seen)
{
    public static RecentAlert Place(long service, long alert) =>
        new(service, alert, DateTime.MinValue, null, "", DateTime.MinValue);
}

/// <summary>
/// Looks for damage in a database: that of its structure, which SQLite finds, facts that do not fit their
/// checksums or are not in their index, and derived rows that are not what the facts give.
/// </summary>
internal sealed class DatabaseCheck(SqliteConnection database, TimelineRules rules, DateTime now) : IDisposable
{
    /// <summary>So many are named.</summary>
    public const int MaxFaults = 20;

    private readonly List<string> _faults = [];
    private readonly ServiceFacts _facts = new(database);
    private readonly List<Run> _made = [], _held = [];
    private readonly List<long> _madeSince = [], _heldSince = [];
    private readonly long _derived = database.Number("SELECT value FROM meta WHERE name = 'derived'") ?? 0;

    private readonly SqliteStatement
        _observations = database.Query("""
            SELECT id, recorded, received, by, service, alert, kind, starts, ends, status, text, sum,
                EXISTS (SELECT 1 FROM observation i INDEXED BY observation_service WHERE i.service = o.service
                    AND i.alert = o.alert AND i.starts = o.starts AND i.received = o.received
                    AND i.kind = o.kind AND i.ends IS o.ends AND i.status = o.status AND i.by = o.by
                    AND i.id = o.id)
            FROM observation o WHERE id > ?1 ORDER BY id LIMIT ?2
            """),
        _alerts = database.Query("""
            SELECT id, service, dialect, source, sender, labels, hash, text, sum FROM alert
            WHERE id > ?1 ORDER BY id LIMIT ?2
            """),
        _services = database.Query("""
            SELECT s.id, (SELECT min(received) FROM receipt r WHERE r.partition = f.partition),
                s.status, s.since, s.open, s.due
            FROM service s LEFT JOIN family f ON f.id = s.family WHERE s.id > ?1 ORDER BY s.id LIMIT ?2
            """);

    /// <summary>What was found, a line each.</summary>
    public IReadOnlyList<string> Faults => _faults;

    public long Observations { get; private set; }

    public long Services { get; private set; }

    /// <summary>Checks all there is.</summary>
    /// <param name="tell">Is told what is checked next.</param>
    /// <exception cref="SqliteException">It cannot be read at all.</exception>
    public void CheckAll(Action<string> tell)
    {
        tell("structure and indexes");
        CheckStructure();
        tell("facts");
        for (var last = (long?)0; last != null;)
            last = CheckAlerts(last.Value, 10_000);
        for (var last = (long?)0; last != null;)
            last = CheckObservations(last.Value, 10_000);
        if (_faults.Count > 0)
            return;
        tell("what is derived");
        for (var last = (long?)0; last != null;)
            last = CheckServices(last.Value, 10_000);
    }

    /// <summary>The pages, tables against their indexes, and what the tables and views are.</summary>
    public void CheckStructure()
    {
        foreach (var name in Schema.Changed(database))
            Add($"structure: {name} is not as it was made");
        CheckReceipts();
        CheckGaps();
        CheckNotes();
        using var check = database.Query($"PRAGMA integrity_check({MaxFaults})");
        while (check.Step())
        {
            if (check.Text(0) != "ok")
                Add($"structure: {check.Text(0)}");
        }
    }

    private void CheckReceipts()
    {
        using var rows = database.Query(
            "SELECT id, partition, platform, heartbeat, by, received, recorded, sum FROM receipt");
        while (rows.Step())
        {
            if (Checksum.OfReceipt(rows.Number(0), rows.Number(1), rows.TextOrNull(2), rows.TextOrNull(3),
                rows.Number(4), rows.Number(5), rows.Number(6)) != rows.Number(7))
                AddFact("receipt", rows.Number(0));
        }
    }

    private void CheckGaps()
    {
        using var rows = database.Query(
            "SELECT id, partition, platform, heartbeat, by, begins, ends, received, recorded, sum FROM gap");
        while (rows.Step())
        {
            if (Checksum.OfGap(rows.Number(0), rows.NumberOrNull(1), rows.TextOrNull(2), rows.TextOrNull(3),
                rows.Number(4), rows.Number(5), rows.NumberOrNull(6), rows.Number(7), rows.Number(8))
                != rows.Number(9))
                AddFact("gap", rows.Number(0));
        }
    }

    private void CheckNotes()
    {
        using var rows = database.Query($"SELECT {StoredNotes.Columns}, n.partition, n.by, n.sum {StoredNotes.From}");
        while (rows.Step())
        {
            var note = StoredNotes.VersionOf(rows);
            if (Checksum.OfNote(note.Row, rows.Number(StoredNotes.ColumnCount), rows.Number(StoredNotes.ColumnCount + 1), note,
                UnixTime.From(note.Recorded)) != rows.Number(StoredNotes.ColumnCount + 2))
                AddFact("note", note.Row);
        }
    }

    /// <summary>Checks some alerts after one; the last of them, or null if there are no more.</summary>
    public long? CheckAlerts(long after, int count)
    {
        long? last = null;
        for (_alerts.Bind(1, after).Bind(2, count); _alerts.Step();)
        {
            last = _alerts.Number(0);
            if (Checksum.OfAlert(_alerts.Number(0), _alerts.Number(1), _alerts.Number(2), _alerts.Number(3),
                _alerts.Text(4), _alerts.Text(5), _alerts.Number(6), _alerts.Text(7)) != _alerts.Number(8))
                AddFact("alert", last.Value);
        }
        return last;
    }

    /// <summary>The same of observations, each with its place in the index.</summary>
    public long? CheckObservations(long after, int count)
    {
        long? last = null;
        for (_observations.Bind(1, after).Bind(2, count); _observations.Step(); Observations++)
        {
            var rows = _observations;
            last = rows.Number(0);
            if (Checksum.OfObservation(rows.Number(0), rows.Number(1), rows.Number(2), rows.Number(3),
                rows.Number(4), rows.Number(5), rows.Number(6), rows.Number(7), rows.NumberOrNull(8),
                rows.Number(9), rows.TextOrNull(10)) != rows.Number(11))
                AddFact("observation", last.Value);
            else if (rows.Number(12) == 0)
                Add($"observation {last}: it is not in its index; ses rebuild makes that again");
        }
        return last;
    }

    /// <summary>
    /// The same of services that are not behind: their timeline is made again, and compared.
    /// </summary>
    public long? CheckServices(long after, int count)
    {
        long? last = null;
        for (_services.Bind(1, after).Bind(2, count); _services.Step(); Services++)
        {
            last = _services.Number(0);
            if (_services.NumberOrNull(2) is { } status
                && !(_services.NumberOrNull(5) <= UnixTime.From(now)) && !IsDerived(last.Value, status))
                Add($"service {last}: its timeline is not what its facts give; ses rebuild makes it again");
        }
        return last;
    }

    private bool IsDerived(long service, long status)
    {
        _facts.Read(service);
        foreach (var fact in _facts.Observations)
        {
            if (fact.Id > _derived)
                return true;
        }
        DateTime? knownFrom = _services.NumberOrNull(1) is { } from ? UnixTime.Read(from) : null;
        _ = _facts.Derive(knownFrom, now, rules, _made);
        _facts.ReadRuns(service, _held, _heldSince);
        // The clock was set back since.
        if (_held.Count > 0 && _held[^1].From > now)
            return true;
        ServiceFacts.AddSince(_made, _madeSince);
        return _made.Count > 0 && (long)_made[^1].Status == status && _madeSince[^1] == _services.Number(3)
            && _made[^1].Open == (_services.Number(4) != 0) && _made.SequenceEqual(_held)
            && _madeSince.SequenceEqual(_heldSince);
    }

    private void AddFact(string table, long id) =>
        Add($"{table} {id}: a fact does not fit its checksum; a backup or another SeS may have it");

    private void Add(string fault)
    {
        if (_faults.Count < MaxFaults)
            _faults.Add(fault);
    }

    public void Dispose()
    {
        _observations.Dispose();
        _alerts.Dispose();
        _services.Dispose();
        _facts.Dispose();
    }
}

/// <summary>
/// Goes over all facts and all that is derived, slowly, so that damage is found before somebody needs what is
/// damaged: a part each second, all within a day.
/// </summary>
internal sealed class Scrub(Store store, TimeProvider clock, Log log, Meters meters)
{
    public static readonly TimeSpan Period = TimeSpan.FromSeconds(1);

    /// <summary>Rows of each kind in a step, at least.</summary>
    private const int LeastRows = 20;

    private const int StepsOfDay = 86_400;

    private volatile string? _damage;
    private int _isRunning;
    private long _alert, _observation, _service;
    private DateTime _structure;

    /// <summary>What was found first; null: nothing.</summary>
    public string? Damage => _damage;

    /// <summary>To be called every <see cref="Period"/>.</summary>
    public void Step()
    {
        if (Interlocked.Exchange(ref _isRunning, 1) != 0)
            return;
        try
        {
            Check();
        }
        catch (SqliteException e)
        {
            if (e.IsDamage)
                Tell(e.Message);
            else
                log.Often("the database could not be looked through", ("reason", e.Message));
        }
        finally
        {
            Volatile.Write(ref _isRunning, 0);
        }
    }

    private void Check()
    {
        using var snapshot = store.Snapshot();
        using var check = new DatabaseCheck(snapshot.Database, snapshot.Rules, snapshot.Moment);
        var (services, labelSets, _) = store.Count;
        _alert = check.CheckAlerts(_alert, RowsOf(labelSets)) ?? 0;
        _observation = check.CheckObservations(
            _observation, RowsOf(snapshot.Number("SELECT max(id) FROM observation") ?? 0)) ?? 0;
        _service = check.CheckServices(_service, RowsOf(services)) ?? 0;
        if (clock.GetUtcNow().UtcDateTime - _structure > TimeSpan.FromDays(1))
        {
            // Not at the start, which has enough to do.
            if (_structure != default)
                check.CheckStructure();
            _structure = clock.GetUtcNow().UtcDateTime;
        }
        if (check.Faults is [var fault, ..])
            Tell(fault);
    }

    private static int RowsOf(long all) => (int)Math.Max(LeastRows, (all / StepsOfDay) + 1);

    private void Tell(string fault)
    {
        if (_damage == null)
            log.Error(Store.DamageText, ("fault", fault));
        meters.Damage.Set(1);
        _damage ??= fault;
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

    public UInt128[] KeysOf(IReadOnlyList<IncomingAlert> alerts)
    {
        var keys = new UInt128[alerts.Count];
        for (var i = 0; i < keys.Length; i++)
            keys[i] = KeyOf(alerts[i]);
        return keys;
    }

    /// <summary>Whether copies tell nothing that is not on disk.</summary>
    public bool Knows(UInt128[] keys, IReadOnlyList<IncomingAlert> alerts, DateTime now)
    {
        for (var i = 0; i < keys.Length; i++)
        {
            if (!Knows(keys[i], alerts[i], now))
                return false;
        }
        return true;
    }

    private bool Knows(UInt128 key, IncomingAlert alert, DateTime now) => Find(key) is { } held
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

    /// <summary>Notes copies of Prometheus's that tell nothing but that their alerts still fire.</summary>
    public void Renew(Renewals renewals, UInt128[] keys, IReadOnlyList<IncomingAlert> alerts, DateTime now)
    {
        for (var i = 0; i < keys.Length; i++)
        {
            if (alerts[i] is { Source: AlertSource.Prometheus, Ends: null } && Find(keys[i]) is { } held)
                renewals.Renew(new(held.Service, held.Alert, held.Starts), alerts[i], now);
        }
    }
}

/// <summary>An open episode of Prometheus's.</summary>
internal readonly record struct RenewedEpisode(long Service, long Alert, DateTime Starts);

/// <summary>
/// Until when the open episodes of Prometheus hold. Prometheus says of each firing alert, every minute or so,
/// until when that is valid: one that is not renewed within its validity lapses. What only renews is not
/// stored; after a crash the last copy of each is the last sign of life of SeS.
/// </summary>
internal sealed class Renewals
{
    /// <summary>Prometheus sends again after a minute, or what its evaluations make of that.</summary>
    private static readonly TimeSpan
        LeastValidity = TimeSpan.FromSeconds(130), Unstated = TimeSpan.FromMinutes(5);

    /// <summary>For clocks that differ: how far ahead of the receipt the end of a resolved copy may be.</summary>
    private static readonly TimeSpan
        MostTolerance = TimeSpan.FromSeconds(30), UnknownTolerance = TimeSpan.FromSeconds(2);

    /// <summary>Added to half the validity, within which Prometheus sends again after SeS was away.</summary>
    private static readonly TimeSpan ReturnTime = TimeSpan.FromSeconds(10);

    /// <summary>More rules, of all senders, are not remembered.</summary>
    private const int MaxRules = 100_000;

    private readonly record struct Renewal(RenewedEpisode Episode, DateTime Last, TimeSpan Validity);

    private readonly object _gate = new();
    private readonly Dictionary<long, Renewal> _renewals = [];

    /// <summary>By the hash of sender and rule: two of one hash share what clocks are allowed.</summary>
    private readonly Dictionary<int, TimeSpan> _validities = [];

    // Since when SeS takes alerts without a break, and no later than when the next one lapses.
    private DateTime _since, _nextDue = DateTime.MaxValue;

    /// <summary>
    /// Tells firing copies of Prometheus's from resolved ones: the former get until when they are valid, the
    /// latter their end.
    /// </summary>
    public ReceivedAlerts Judge(ReceivedAlerts alerts, DateTime received) =>
        alerts.Source != AlertSource.Prometheus ? alerts
            : alerts with { Alerts = [.. alerts.Alerts.Select(a => Judge(a, received))] };

    private IncomingAlert Judge(IncomingAlert alert, DateTime received)
    {
        lock (_gate)
        {
            var rule = HashCode.Combine(alert.Sender, alert.Rule);
            var tolerance = !_validities.TryGetValue(rule, out var validity) ? UnknownTolerance
                : validity / 4 < MostTolerance ? validity / 4 : MostTolerance;
            if (alert.ValidUntil is { } ends && ends <= received + tolerance)
                return alert with { Ends = ends, ValidUntil = null };
            validity = alert.ValidUntil - received ?? Unstated;
            if (_validities.Count < MaxRules || _validities.ContainsKey(rule))
                _validities[rule] = validity;
            return alert with { ValidUntil = received + validity };
        }
    }

    /// <summary>A firing copy of an open episode.</summary>
    public void Renew(RenewedEpisode episode, IncomingAlert copy, DateTime received)
    {
        lock (_gate)
            Set(new Renewal(episode, received, copy.ValidUntil - received ?? Unstated));
    }

    /// <summary>An episode that was open before a start.</summary>
    public void Restore(RenewedEpisode episode, DateTime last, TimeSpan validity)
    {
        lock (_gate)
        {
            if (!_renewals.ContainsKey(episode.Alert))
                Set(new Renewal(episode, last, validity));
        }
    }

    private void Set(in Renewal renewal)
    {
        _renewals[renewal.Episode.Alert] = renewal;
        if (DueOf(renewal) is var due && due < _nextDue)
            _nextDue = due;
    }

    /// <summary>The longest validity of what is open; null: nothing is.</summary>
    public TimeSpan? Longest()
    {
        lock (_gate)
            return _renewals.Count == 0 ? null : _renewals.Values.Max(r => r.Validity);
    }

    /// <summary>SeS takes alerts again: nothing lapses before each could be sent again.</summary>
    public void Return(DateTime now)
    {
        lock (_gate)
            _since = now;
    }

    /// <summary>When the last copy of an episode was; null: that is not known.</summary>
    public DateTime? LastCopy(long alert, DateTime starts)
    {
        lock (_gate)
            return _renewals.TryGetValue(alert, out var renewal) && renewal.Episode.Starts == starts
                ? renewal.Last : null;
    }

    public bool IsDue(DateTime now)
    {
        lock (_gate)
            return now >= _nextDue;
    }

    /// <summary>Episodes whose last copy, at this time, holds no longer; they are forgotten.</summary>
    public List<(RenewedEpisode Episode, DateTime Last)> TakeLapsed(DateTime now, int most)
    {
        var lapsed = new List<(RenewedEpisode Episode, DateTime Last)>();
        lock (_gate)
        {
            if (now < _nextDue)
                return lapsed;
            _nextDue = DateTime.MaxValue;
            foreach (var renewal in _renewals.Values)
            {
                var due = DueOf(renewal);
                if (due <= now && lapsed.Count < most)
                    lapsed.Add((renewal.Episode, renewal.Last));
                else if (due < _nextDue)
                    _nextDue = due;
            }
            lapsed.ForEach(l => _renewals.Remove(l.Episode.Alert));
        }
        return lapsed;
    }

    private DateTime DueOf(in Renewal renewal)
    {
        var lapses = renewal.Last + (renewal.Validity > LeastValidity ? renewal.Validity : LeastValidity);
        var returned = _since + (renewal.Validity / 2) + ReturnTime;
        return lapses > returned ? lapses : returned;
    }
}

/// <param name="Platform">Empty: it speaks for its partition.</param>
internal sealed record HeartbeatKey(long Partition, string Platform, string Name);

/// <summary>What a heartbeat brought: it was armed, or a gap of it begins or ends.</summary>
/// <param name="To">Null: it begins.</param>
/// <param name="Known">When it was armed; since when the gap, or its end, is known.</param>
internal sealed record HeartbeatFact(
    HeartbeatKey Heartbeat, bool IsArmed, DateTime From, DateTime? To, DateTime Known);

/// <summary>The last beat of one alert of a heartbeat.</summary>
/// <param name="Alert">See <see cref="Beat"/>.</param>
internal sealed record LastBeat(long Alert, AlertSource Source, DateTime Last);

/// <summary>A heartbeat: an alert that always fires, of all who send it for a partition or a platform.</summary>
internal sealed class Heartbeat(HeartbeatKey key)
{
    public HeartbeatKey Key => key;

    /// <summary>Null: it has yet to beat three times in a row.</summary>
    public DateTime? Armed { get; set; }

    /// <summary>Beats in a row.</summary>
    public int Row { get; set; }

    /// <summary>The last beat, and the last one that is not one with that before.</summary>
    public DateTime Last { get; set; }
    public DateTime Counted { get; set; }

    /// <summary>For so long SeS was away since the last beat.</summary>
    public TimeSpan Away { get; set; }

    /// <summary>Until when its Prometheus was certainly there.</summary>
    public DateTime Watched { get; set; }

    /// <summary>Since when it is silent; null: it beats.</summary>
    public DateTime? Silent { get; set; }

    /// <summary>The end of its last gap, and when Alertmanager said that nobody renews it.</summary>
    public DateTime GapEnd { get; set; }
    public DateTime Resolved { get; set; }

    /// <summary>The last beat of each alert; they are few.</summary>
    public List<LastBeat> Alerts { get; } = [];

    public void Add(LastBeat beat)
    {
        Alerts.RemoveAll(a => a.Alert == beat.Alert);
        Alerts.Add(beat);
    }

    public bool IsChanged { get; set; }
}

/// <summary>How a heartbeat is.</summary>
/// <param name="Platform">Empty: it speaks for its partition.</param>
/// <param name="Armed">Null: it has yet to beat three times in a row.</param>
/// <param name="Silent">Since when it is silent; null: it beats.</param>
/// <param name="IsForgotten">Nobody expects it any more.</param>
internal sealed record WatchRow(string Partition, string Platform, string Name, DateTime? Armed, int Row, DateTime Last,
    DateTime? Silent, bool IsForgotten)
{
    /// <summary>The partition, or the platform in it.</summary>
    public string Whose => Platform == "" ? Partition : $"{Partition}/{Platform}";

    /// <summary>Nobody watches, and is expected to.</summary>
    public bool IsAlarming => Silent != null && !IsForgotten;

    /// <summary>What people should know of it; null: all is well.</summary>
    public string? Trouble => IsForgotten ? null
        : Silent is { } since ? $"No data from {Whose} since {Rfc3339.Format(since)}: {Name} is silent"
        : Armed != null ? null
        : $"{Name} of {Whose} is not armed: {Row} of {Heartbeats.ArmedBy} beats in a row, the last at {Rfc3339.Format(Last)}; "
            + "they may be 10 minutes apart, which needs a repeat_interval of 1m for it";
}

/// <summary>What is known of those who send.</summary>
/// <param name="Unresolved">
/// Partitions of which webhooks brought alerts that fire for a day, and never one that has ended.
/// </param>
/// <param name="Clocks">What is to be said of those that are over a minute off.</param>
internal sealed record Watching(IReadOnlyList<WatchRow> Heartbeats, IReadOnlyList<string> Unresolved,
    IReadOnlyList<string> Clocks)
{
    /// <summary>An alert ends the gap of a heartbeat that nobody expects any more.</summary>
    public bool AwaitsAlerts { get; } = Heartbeats.Any(h => h is { IsForgotten: true, Silent: not null });

    /// <summary>What people should know, a sentence each.</summary>
    public IEnumerable<string> Troubles() => Heartbeats.Select(h => h.Trouble).OfType<string>()
        .Concat(Unresolved.Select(p => $"Alerts of {p} never end: its webhook needs send_resolved: true"))
        .Concat(Clocks);
}

/// <summary>By how much the clocks of senders differ: receipt minus start of new episodes, in seconds.</summary>
internal sealed class SenderClocks
{
    private const int MaxSenders = 1000, Kept = 5, Enough = 3;

    /// <summary>In seconds.</summary>
    private const int Tolerance = 60;

    private readonly Dictionary<string, List<double>> _offsets = [];

    /// <param name="sender">Empty: Alertmanager, which sends late; only a clock ahead is told there.</param>
    public void Add(string partition, string sender, TimeSpan offset)
    {
        var name = sender == "" ? $"what posts to {partition}" : sender;
        if (!_offsets.TryGetValue(name, out var offsets))
        {
            if (_offsets.Count == MaxSenders)
                return;
            _offsets[name] = offsets = [];
        }
        offsets.Add(sender == "" ? Math.Min(0, offset.TotalSeconds) : offset.TotalSeconds);
        if (offsets.Count > Kept)
            offsets.RemoveAt(0);
    }

    /// <summary>Alerts may come late, but all of them do only where the clock is wrong.</summary>
    public List<string> Off()
    {
        var off = new List<string>();
        foreach (var (sender, offsets) in _offsets)
        {
            var (least, most) = (offsets.Min(), offsets.Max());
            if (most < -Tolerance || (offsets.Count >= Enough && least > Tolerance))
                off.Add(string.Create(CultureInfo.InvariantCulture,
                    $"The clock of {sender} is {(least > 0 ? least : -most):0} s {(least > 0 ? "behind" : "ahead")}: its alerts have wrong times"));
        }
        return off;
    }
}

/// <summary>
/// Tells when nobody watches: alerts that always fire no longer come (5). What they say is a fact when a
/// heartbeat is armed, falls silent or is back; single beats are noted once a minute.
/// </summary>
internal sealed class Heartbeats
{
    /// <summary>Of all partitions and platforms; further ones are not heard.</summary>
    public const int Max = 1000;

    /// <summary>Of one heartbeat; the one that was silent longest gives way.</summary>
    public const int MaxAlerts = 100;

    /// <summary>Beats in a row, none later than the other by more, which arm it.</summary>
    public const int ArmedBy = 3;

    /// <summary>Beats that are further apart have a gap between them; copies that are closer are one.</summary>
    private static readonly TimeSpan Longest = TimeSpan.FromMinutes(10), Shortest = TimeSpan.FromSeconds(10);

    /// <summary>Alertmanager goes on repeating what nobody renews, for what Prometheus's default is.</summary>
    private static readonly TimeSpan Repeated = TimeSpan.FromMinutes(4);

    /// <summary>Nobody expects it any more.</summary>
    public static readonly TimeSpan Forgotten = TimeSpan.FromDays(7);

    private readonly Dictionary<HeartbeatKey, Heartbeat> _heartbeats = [];

    public IReadOnlyCollection<Heartbeat> All() => _heartbeats.Values;

    // ---- As stored ----

    public void LoadArmed(HeartbeatKey key, DateTime armed)
    {
        if (Of(key) is { } heartbeat)
            heartbeat.Armed = armed;
    }

    /// <summary>In order of time.</summary>
    public void LoadGap(HeartbeatKey key, DateTime from, DateTime? to)
    {
        if (!_heartbeats.TryGetValue(key, out var heartbeat))
            return;
        heartbeat.Silent = to == null ? from : null;
        heartbeat.GapEnd = to ?? heartbeat.GapEnd;
        if (to - from > Forgotten && to >= heartbeat.Armed)
            heartbeat.Armed = null;
    }

    public void LoadBeat(HeartbeatKey key, long alert, AlertSource source, DateTime last, TimeSpan away)
    {
        if (Of(key) is not { } heartbeat)
            return;
        heartbeat.Add(new(alert, source, last));
        Watch(heartbeat, source, last);
        if (last > heartbeat.Last)
            (heartbeat.Last, heartbeat.Counted, heartbeat.Away) = (last, last, away);
    }

    /// <summary>Of what is armed, and no beat is stored of, it beat when SeS was last there.</summary>
    public void EndLoading(DateTime taken)
    {
        foreach (var heartbeat in _heartbeats.Values.Where(h => h is { Armed: not null, Alerts.Count: 0 }))
            heartbeat.Last = heartbeat.Counted = heartbeat.Watched =
                Later(taken, Later(heartbeat.Armed!.Value, heartbeat.GapEnd));
    }

    /// <summary>Takes over the beats that have come since they were stored.</summary>
    /// <param name="isThere">Not of what was rolled back, or purged.</param>
    public void KeepBeats(Heartbeats before, Func<HeartbeatKey, bool> isThere)
    {
        foreach (var (key, old) in before._heartbeats)
        {
            if (!isThere(key) || Of(key) is not { } heartbeat || old.Alerts.Count == 0)
                continue;
            (heartbeat.Row, heartbeat.Last, heartbeat.Counted) = (old.Row, old.Last, old.Counted);
            (heartbeat.Away, heartbeat.Watched, heartbeat.Resolved) = (old.Away, old.Watched, old.Resolved);
            heartbeat.IsChanged = old.IsChanged;
            old.Alerts.ForEach(heartbeat.Add);
        }
    }

    /// <summary>What is to be stored of beats.</summary>
    public List<Heartbeat> TakeChanged()
    {
        var changed = _heartbeats.Values.Where(h => h.IsChanged).ToList();
        changed.ForEach(h => h.IsChanged = false);
        return changed;
    }

    // ---- What comes ----

    /// <summary>Null: there are too many.</summary>
    private Heartbeat? Of(HeartbeatKey key)
    {
        if (!_heartbeats.TryGetValue(key, out var heartbeat) && _heartbeats.Count < Max)
            _heartbeats[key] = heartbeat = new(key);
        return heartbeat;
    }

    /// <summary>A copy of a heartbeat.</summary>
    public IEnumerable<HeartbeatFact> Take(long partition, Beat beat, DateTime received)
    {
        if (Of(new(partition, beat.Platform, beat.Name)) is not { } heartbeat)
            return [];
        var facts = new List<HeartbeatFact>();
        if (FindSilent(heartbeat, received) is { } silent)
            facts.Add(silent);
        if (beat.Ends is { } ends)
            Resolve(heartbeat, beat.Alert, ends, received, facts);
        else if (!(beat.Source == AlertSource.Webhook && heartbeat.Silent != null && received >= heartbeat.Resolved
            && received - heartbeat.Resolved <= TimelineRules.LateCopy))
            Hear(heartbeat, beat, received, facts);
        return facts;
    }

    private static void Hear(Heartbeat heartbeat, Beat beat, DateTime received, List<HeartbeatFact> facts)
    {
        if (heartbeat.Silent != null)
            facts.Add(End(heartbeat, received));
        var isInRow = received - heartbeat.Counted <= Longest + heartbeat.Away;
        if (received - heartbeat.Counted > Shortest || received < heartbeat.Counted)
            (heartbeat.Row, heartbeat.Counted) = (isInRow ? Math.Min(heartbeat.Row + 1, ArmedBy) : 1, received);
        if (heartbeat.Armed == null && heartbeat.Row == ArmedBy)
        {
            heartbeat.Armed = received;
            facts.Add(new(heartbeat.Key, true, received, null, received));
        }
        // The clock was set back.
        if (received < heartbeat.Last)
            heartbeat.Watched = DateTime.MinValue;
        (heartbeat.Last, heartbeat.Away, heartbeat.IsChanged) = (received, TimeSpan.Zero, true);
        Watch(heartbeat, beat.Source, received);
        heartbeat.Add(new(beat.Alert, beat.Source, received));
        // The last one is the latest.
        if (heartbeat.Alerts.Count > MaxAlerts)
            heartbeat.Alerts.RemoveAt(0);
    }

    private static void Watch(Heartbeat heartbeat, AlertSource source, DateTime beat)
    {
        heartbeat.Watched = Later(heartbeat.Watched, source == AlertSource.Webhook ? beat - Repeated : beat);
    }

    private static DateTime Later(DateTime one, DateTime other) => one > other ? one : other;

    /// <summary>Alertmanager says that nobody has renewed it since four minutes before.</summary>
    private static void Resolve(
        Heartbeat heartbeat, long alert, DateTime ends, DateTime received, List<HeartbeatFact> facts)
    {
        var from = ends - Repeated;
        if (heartbeat.Alerts.Exists(a => a.Last >= (a.Alert == alert ? ends : from)))
            return;
        heartbeat.Row = 0;
        if (heartbeat.Armed == null)
            return;
        heartbeat.Resolved = received;
        if (heartbeat.Silent == null)
            facts.Add(Begin(heartbeat, from, received));
    }

    private static HeartbeatFact Begin(Heartbeat heartbeat, DateTime from, DateTime known)
    {
        from = Later(from, Later(heartbeat.Armed!.Value, heartbeat.GapEnd));
        heartbeat.Silent = from;
        return new(heartbeat.Key, false, from, null, known);
    }

    /// <summary>Of one that was silent for so long that nobody expected it, it is to be armed again.</summary>
    private static HeartbeatFact End(Heartbeat heartbeat, DateTime at)
    {
        var from = heartbeat.Silent!.Value;
        if (at - from > Forgotten)
            heartbeat.Armed = null;
        (heartbeat.Silent, heartbeat.GapEnd, heartbeat.Row) = (null, at, 0);
        return new(heartbeat.Key, false, from, at, at);
    }

    /// <summary>What fell silent.</summary>
    public IEnumerable<HeartbeatFact> TakeSilent(DateTime now)
    {
        foreach (var heartbeat in _heartbeats.Values)
        {
            if (FindSilent(heartbeat, now) is { } silent)
                yield return silent;
        }
    }

    private static HeartbeatFact? FindSilent(Heartbeat heartbeat, DateTime now)
    {
        if (heartbeat.Armed == null || heartbeat.Silent != null || now - heartbeat.Last <= Longest + heartbeat.Away)
            return null;
        return Begin(heartbeat, heartbeat.Watched, now);
    }

    /// <summary>SeS could not hear anything for so long.</summary>
    public void Return(TimeSpan away)
    {
        foreach (var heartbeat in _heartbeats.Values)
        {
            heartbeat.Away += away;
            heartbeat.IsChanged = true;
        }
    }

    public static bool IsForgotten(Heartbeat heartbeat, DateTime now) =>
        heartbeat.Silent is { } since && now - since > Forgotten;

    /// <summary>Alerts that came, of a partition.</summary>
    public IEnumerable<HeartbeatFact> TakeAlerts(
        long partition, IReadOnlyList<IncomingAlert> alerts, DateTime received)
    {
        if (alerts.Count == 0)
            yield break;
        foreach (var heartbeat in _heartbeats.Values.Where(h => h.Key.Partition == partition))
        {
            if (IsForgotten(heartbeat, received) && (heartbeat.Key.Platform == ""
                || alerts.Any(a => a.Service.Platform == heartbeat.Key.Platform)))
                yield return End(heartbeat, received);
        }
    }
}

/// <summary>A connection that questions take turns on.</summary>
internal sealed class Reader(string path, int cache) : IDisposable
{
    private readonly Dictionary<Status, string> _statuses = [];
    private ServiceFacts? _facts;

    public SqliteConnection Database { get; } = new(path, isReadOnly: true, cache);

    public ServiceFacts Facts => _facts ??= new ServiceFacts(Database);

    /// <summary>A status's name; names are only added.</summary>
    public string NameOf(Status status)
    {
        if (_statuses.TryGetValue(status, out var name))
            return name;
        using var rows = Database.Query("SELECT id, name FROM status");
        while (rows.Step())
            _statuses[(Status)rows.Number(0)] = rows.Text(1);
        return _statuses.GetValueOrDefault(status)
            ?? throw new SqliteException(SqliteException.Corrupt, 0, $"there is no status {(long)status}");
    }

    public void Dispose()
    {
        _facts?.Dispose();
        Database.Dispose();
    }
}

/// <summary>How much history a database has, and how much room a day of it takes.</summary>
/// <param name="Since">When the first was heard of which retention has left anything; null: nothing was.</param>
/// <param name="Bytes">Of the database and its log.</param>
/// <param name="Free">Bytes on its file system.</param>
/// <param name="BytesADay">About, by the facts of the last week; null: there is less than a day of them.</param>
internal sealed record StoreSize(DateTime? Since, long Bytes, long Free, double? BytesADay)
{
    private static readonly TimeSpan Week = TimeSpan.FromDays(7), Day = TimeSpan.FromDays(1);

    /// <param name="path">Of the database.</param>
    public static StoreSize Of(Snapshot snapshot, string path)
    {
        var (bytes, free) = OnDisk(path);
        var heard = snapshot.Number("SELECT min(received) FROM receipt");
        DateTime? first = heard is { } time ? UnixTime.Read(time) : null;
        var since = snapshot.Oldest > first ? snapshot.Oldest : first;
        return new StoreSize(since, bytes, free, BytesOfDay(snapshot, since));
    }

    /// <summary>Bytes of the database with its log, and bytes that are free beside it.</summary>
    public static (long Used, long Free) OnDisk(string path) => ((Disk.StatusOf(path)?.Size ?? 0)
        + (Disk.StatusOf(path + "-wal")?.Size ?? 0), Disk.Space(Path.GetDirectoryName(path)!).Free);

    /// <summary>
    /// Services, label sets and observations are numbered together, so that a number stands for as many bytes as
    /// another, about. What is free within the file does not count, nor does what an import brought of earlier days.
    /// </summary>
    private static double? BytesOfDay(Snapshot snapshot, DateTime? since)
    {
        const int Samples = 500;
        var span = snapshot.Moment - since < Week ? snapshot.Moment - since : Week;
        if (span is not { } days || days < Day || snapshot.Number("SELECT min(id) FROM observation") is not { } first)
            return null;
        var last = snapshot.LastObservation(snapshot.Moment);
        var before = Math.Max(first - 1, snapshot.LastObservation(snapshot.Moment - days));
        using var one = snapshot.Query("SELECT received FROM observation WHERE id > ?1 ORDER BY id LIMIT 1");
        var fresh = 0;
        for (var i = 0; i < Samples; i++)
        {
            if (one.Bind(1, before + ((last - before) * i / Samples)).Number() > UnixTime.From(snapshot.Moment - days))
                fresh++;
        }
        var used = ((snapshot.Number("PRAGMA page_count") ?? 0) - (snapshot.Number("PRAGMA freelist_count") ?? 0))
            * (snapshot.Number("PRAGMA page_size") ?? 0);
        return (double)(last - before) * fresh / Samples / days.TotalDays * used / (last - first + 1);
    }

    /// <summary>One sentence for people.</summary>
    public string Sentence(DateTime now)
    {
        var age = Since is not { } since ? "No history yet"
            : now - since < Day ? $"{Quantity.Lasted(now - since)} of history"
            : (long)(now - since).TotalDays is > 1 and var days ? $"{days} days of history" : "1 day of history";
        return $"{age} in {Quantity.Sized(Bytes)}; "
            + (BytesADay is { } day ? $"a day takes about {Quantity.Sized(day)}, " : "") + $"{Quantity.Sized(Free)} are free.";
    }
}

/// <summary>A connection on one state of the database; to be disposed soon.</summary>
internal sealed class Snapshot : IDisposable
{
    private readonly Reader _reader;
    private readonly Action<Reader> _giveBack;
    private int _isDisposed;

    /// <param name="names">Those of the questions that are answered meanwhile; null: there are none.</param>
    public Snapshot(Reader reader, Action<Reader> giveBack, DateTime moment, SharedNames? names = null)
    {
        (_reader, _giveBack, Moment, Names) = (reader, giveBack, moment, names ?? new SharedNames());
        try
        {
            reader.Database.Execute("BEGIN");
            // The state is taken with the first read.
            _ = reader.Database.Number("SELECT 1 FROM meta");
        }
        catch (SqliteException)
        {
            reader.Dispose();
            throw;
        }
        Names.Enter();
    }

    public SharedNames Names { get; }

    /// <summary>
    /// The last whole millisecond, once no process is in a transaction that began before it: what that records
    /// is earlier, so that it is in an answer as of then.
    /// </summary>
    public static DateTime Settled(string folder, TimeProvider clock)
    {
        var path = Path.Combine(folder, Store.FileName);
        try
        {
            if (File.Exists(path))
            {
                using var database = new SqliteConnection(path, isReadOnly: false, cache: 100);
                database.AwaitOthers();
            }
        }
        catch (SqliteException e) when (e.IsBusy || e.IsReadOnly)
        {
            // It is asked all the same; where nothing can be written, nothing is.
        }
        return UnixTime.Read(UnixTime.From(clock.GetUtcNow().UtcDateTime) - 1);
    }

    /// <exception cref="DataDirException">There is no database in it.</exception>
    public static void CheckThere(string folder)
    {
        if (!File.Exists(Path.Combine(folder, Store.FileName)))
            throw new DataDirException($"'{folder}' has no {Store.FileName} in it");
    }

    /// <summary>A snapshot beside the daemon, or without one.</summary>
    /// <param name="folder">The data directory.</param>
    /// <exception cref="DataDirException">There is no database in it.</exception>
    public static Snapshot Open(string folder, DateTime now)
    {
        CheckThere(folder);
        var path = Path.Combine(folder, Store.FileName);
        var reader = new Reader(path, cache: 16 * 1024);
        Schema.Check(reader.Database);
        return new Snapshot(reader, r => r.Dispose(), UnixTime.Read(UnixTime.From(now)));
    }

    /// <summary>When it was taken: what is recorded later is not in it.</summary>
    public DateTime Moment { get; set; }

    /// <summary>The settings of the rules by which the timeline is derived.</summary>
    public TimelineRules Rules => new(TimeOf("pause"));

    public TimeSpan StaleAfter => TimeOf("stale_after");

    /// <summary>A service of which nothing was heard for so long is not listed.</summary>
    public TimeSpan Forget => TimeOf("forget");

    private TimeSpan TimeOf(string name) =>
        TimeSpan.FromMilliseconds(Number($"SELECT value FROM meta WHERE name = '{name}'") ?? 0);

    /// <summary>The oldest time that retention has left; nothing before it is counted.</summary>
    public DateTime? Oldest =>
        Number("SELECT value FROM meta WHERE name = 'oldest'") is { } oldest ? UnixTime.Read(oldest) : null;

    /// <summary>Whether anything of a partition is stored, if only a heartbeat or what could not be mapped.</summary>
    public bool HasHeardOf(string partition)
    {
        using var rows = Query("""
            SELECT 1 FROM partition WHERE name = ?1 UNION ALL SELECT 1 FROM quarantine WHERE partition = ?1 LIMIT 1
            """);
        return rows.Bind(1, partition).Number() != null;
    }

    /// <summary>
    /// The services whose timeline lacks what was heard last, or what time brought, or has what was recorded
    /// after the moment: while more comes than is derived, and where no daemon runs.
    /// </summary>
    public IReadOnlySet<long> Behind()
    {
        var behind = new HashSet<long>();
        using var rows = _reader.Database.Query("""
            SELECT service FROM observation
                WHERE id > min(coalesce((SELECT value FROM meta WHERE name = 'derived'), 0), ?2)
            UNION ALL SELECT id FROM service WHERE due < ?1 - 5000
            """);
        for (rows.Bind(1, UnixTime.From(Moment)).Bind(2, Through); rows.Step();)
            behind.Add(rows.Number(0));
        return behind;
    }

    /// <summary>
    /// The last observation that was recorded until the moment; where the clock was set back since, the last
    /// of all.
    /// </summary>
    public long Through => Number("SELECT recorded FROM observation ORDER BY id DESC LIMIT 1")
        > UnixTime.From(Moment + TimeSpan.FromSeconds(1)) ? long.MaxValue : LastObservation(Moment);

    public string NameOf(Status status) => _reader.NameOf(status);

    public ServiceFacts Facts => _reader.Facts;

    public SqliteConnection Database => _reader.Database;

    /// <summary>A query; dispose it before the snapshot.</summary>
    public SqliteStatement Query(string sql) => _reader.Database.Query(sql);

    /// <summary>For temporary tables; the database itself cannot be written to.</summary>
    public void Execute(string sql) => _reader.Database.Execute(sql);

    /// <summary>The last observation recorded until a moment.</summary>
    public long LastObservation(DateTime moment) => ObservationLog.LastUntil(_reader.Database, moment);

    /// <summary>The first column of the first row, as a number; null where there is none.</summary>
    public long? Number(string sql) => _reader.Database.Number(sql);

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _isDisposed, 1) != 0)
            return;
        Names.Leave();
        _reader.Database.Rollback();
        _giveBack(_reader);
    }
}

// ================================= 9. Lines ==================================
//
// A fact as it travels from store to store: one line of JSON, always the same for the same fact. Its id is a
// hash of the line without the id and the time of recording, so that lines can be taken any number of times,
// from several SeS, in any order, and the result is their union.

/// <summary>Writes facts as lines.</summary>
internal static class FactLines
{
    /// <summary>As lines name the kinds of observations.</summary>
    private static readonly string[] Kinds = ["start", "end", "again", "lapse"];

    private static readonly string[] Sources = ["webhook", "prometheus"];

    public static ObservationKind? KindOf(string? name) =>
        Array.IndexOf(Kinds, name) is >= 0 and var kind ? (ObservationKind)kind : null;

    public static AlertSource? SourceOf(string? name) =>
        Array.IndexOf(Sources, name) is >= 0 and var source ? (AlertSource)source : null;

    /// <summary>The facts of a store in the order in which they were recorded.</summary>
    /// <param name="from">Only what was recorded from then on.</param>
    public static IEnumerable<string> Read(Snapshot snapshot, DateTime? from, DateTime? to, string? partition) =>
        ReadPage(snapshot, from, to, partition, 0, int.MaxValue).Lines;

    /// <summary>The same in parts, since a snapshot may not be held for as long as somebody reads.</summary>
    /// <param name="after">The last of the part before.</param>
    /// <returns>The last one; null: there are no more.</returns>
    public static (List<string> Lines, long? Last) ReadPage(
        Snapshot snapshot, DateTime? from, DateTime? to, string? partition, long after, int most)
    {
        var facts = Observations(snapshot, from, to, partition, after, most).ToList();
        long? last = facts.Count < most ? null : facts[^1].Id;
        facts.AddRange(Receipts(snapshot, from, to, partition).Concat(Gaps(snapshot, from, to, partition))
            .Concat(Notes(snapshot, from, to, partition)).Where(r => r.Id > after && r.Id <= (last ?? long.MaxValue)));
        return ([.. facts.OrderBy(f => f.Id).Select(f => f.Line)], last);
    }

    private static IEnumerable<(long Id, string Line)> Receipts(
        Snapshot snapshot, DateTime? from, DateTime? to, string? partition)
    {
        using var rows = snapshot.Query("""
            SELECT r.id, b.name, p.name, r.platform, r.heartbeat, r.received, r.recorded FROM receipt r
                JOIN peer b ON b.id = r.by JOIN partition p ON p.id = r.partition
            WHERE r.recorded >= ?1 AND r.recorded <= ?2 AND (?3 IS NULL OR p.name = ?3) ORDER BY r.id
            """);
        for (Bind(rows, from, to, partition); rows.Step();)
            yield return (rows.Number(0), Receipt(rows.Text(1), rows.Text(2), rows.TextOrNull(3), rows.TextOrNull(4),
                UnixTime.Read(rows.Number(5)), UnixTime.Read(rows.Number(6)), out _));
    }

    private static IEnumerable<(long Id, string Line)> Gaps(
        Snapshot snapshot, DateTime? from, DateTime? to, string? partition)
    {
        using var rows = snapshot.Query("""
            SELECT g.id, b.name, p.name, g.platform, g.heartbeat, g.begins, g.ends, g.received, g.recorded
            FROM gap g JOIN peer b ON b.id = g.by LEFT JOIN partition p ON p.id = g.partition
            WHERE g.recorded >= ?1 AND g.recorded <= ?2 AND (?3 IS NULL OR p.name = ?3 OR g.partition IS NULL)
            ORDER BY g.id
            """);
        for (Bind(rows, from, to, partition); rows.Step();)
            yield return (rows.Number(0), Gap(rows.Text(1), rows.TextOrNull(2), rows.TextOrNull(3),
                rows.TextOrNull(4), UnixTime.Read(rows.Number(5)),
                rows.NumberOrNull(6) is { } ends ? UnixTime.Read(ends) : null, UnixTime.Read(rows.Number(7)),
                UnixTime.Read(rows.Number(8)), out _));
    }

    private static IEnumerable<(long Id, string Line)> Notes(
        Snapshot snapshot, DateTime? from, DateTime? to, string? partition)
    {
        using var rows = snapshot.Query($"""
            SELECT {StoredNotes.Columns} {StoredNotes.From}
            WHERE n.recorded >= ?1 AND n.recorded <= ?2 AND (?3 IS NULL OR p.name = ?3) ORDER BY n.id
            """);
        for (Bind(rows, from, to, partition); rows.Step();)
        {
            var note = StoredNotes.VersionOf(rows);
            yield return (note.Row, Note(note.By, note, note.Recorded, out _));
        }
    }

    private static IEnumerable<(long Id, string Line)> Observations(
        Snapshot snapshot, DateTime? from, DateTime? to, string? partition, long after, int most)
    {
        using var rows = snapshot.Query("""
            SELECT o.id, b.name, p.name, f.platform, f.service, f.facet, s.location, a.dialect, a.source,
                a.sender, a.labels, t.name, o.starts, o.ends, coalesce(o.text, a.text), o.kind, o.received,
                o.recorded
            FROM observation o CROSS JOIN peer b ON b.id = o.by CROSS JOIN alert a ON a.id = o.alert
                CROSS JOIN service s ON s.id = o.service CROSS JOIN family f ON f.id = s.family
                CROSS JOIN partition p ON p.id = f.partition CROSS JOIN status t ON t.id = o.status
            WHERE o.id > ?4 AND o.recorded >= ?1 AND o.recorded <= ?2 AND (?3 IS NULL OR p.name = ?3)
            ORDER BY o.id LIMIT ?5
            """);
        Bind(rows, from, to, partition);
        rows.Bind(4, Math.Max(after, from is { } first ? snapshot.LastObservation(first.AddMilliseconds(-1)) : 0))
            .Bind(5, most);
        while (rows.Step())
        {
            var alert = new IncomingAlert(
                new(rows.Text(2), rows.Text(3), rows.Text(4), rows.Text(5), rows.Text(6)), rows.Number(7) != 0,
                (AlertSource)rows.Number(8), rows.Text(9), rows.Text(10), rows.Text(11),
                UnixTime.Read(rows.Number(12)),
                rows.NumberOrNull(13) is { } ends ? UnixTime.Read(ends) : null, rows.Text(14));
            yield return (rows.Number(0), Observation(rows.Text(1), alert, (ObservationKind)rows.Number(15),
                UnixTime.Read(rows.Number(16)), UnixTime.Read(rows.Number(17)), out _));
        }
    }

    private static void Bind(SqliteStatement rows, DateTime? from, DateTime? to, string? partition) =>
        rows.Bind(1, from is { } first ? UnixTime.From(first) : 0)
            .Bind(2, to is { } last ? UnixTime.From(last) : UnixTime.Open).Bind(3, partition);

    /// <summary>The first receipt of anything of a partition, or that a heartbeat was armed.</summary>
    public static string Receipt(string by, string partition, string? platform, string? heartbeat,
        DateTime received, DateTime recorded, out string id)
    {
        var line = new Line(heartbeat == null ? "partition" : "heartbeat");
        line.Text("by", by).Text("partition", partition);
        if (heartbeat != null)
            line.TextOrNull("platform", platform).Text("heartbeat", heartbeat);
        return line.Time("received", received).End(recorded, out id);
    }

    /// <summary>The begin of a gap, or its end.</summary>
    public static string Gap(string by, string? partition, string? platform, string? heartbeat, DateTime begins,
        DateTime? ends, DateTime received, DateTime recorded, out string id) =>
        new Line("gap").Text("by", by).TextOrNull("partition", partition).TextOrNull("platform", platform)
            .TextOrNull("heartbeat", heartbeat).Time("begins", begins).Time("ends", ends).Time("received", received)
            .End(recorded, out id);

    /// <summary>A version of a note.</summary>
    public static string Note(string by, NoteVersion note, DateTime recorded, out string id)
    {
        var (partition, platform, service, facet, location) = note.Filter;
        return new Line("note").Text("by", by).Text("partition", partition).Text("note", note.Id)
            .Text("note_kind", NoteDraft.NameOf(note.Kind)).Time("from", note.From).Time("to", note.To)
            .TextOrNull("platform", platform).TextOrNull("service", service).TextOrNull("facet", facet)
            .TextOrNull("location", location).TextOrNull("status", note.Status).Text("text", note.Text)
            .Text("author", note.Author).TextOrNull("author_name", note.AuthorName)
            .Json("withdrawn", note.IsWithdrawn ? "true" : "false").Time("received", note.Received)
            .End(recorded, out id);
    }

    /// <summary>A copy of an alert that brought something new.</summary>
    public static string Observation(string by, IncomingAlert alert, ObservationKind kind, DateTime received,
        DateTime recorded, out string id)
    {
        var (partition, platform, service, facet, location) = alert.Service;
        var line = new Line("observation");
        line.Text("by", by).Text("partition", partition).Text("platform", platform).Text("service", service)
            .Text("facet", facet).Text("location", location).Json("dialect", alert.Dialect ? "true" : "false")
            .Text("source", Sources[(int)alert.Source]).Text("sender", alert.Sender)
            .Text("alert", AlertId(alert)).Text("what", Kinds[(int)kind]).Text("status", alert.Status)
            .Time("starts", alert.Starts).Time("ends", alert.Ends).Time("received", received);
        return line.End(recorded, out id,
            rest => rest.Json("labels", alert.Labels).Text("description", alert.Description));
    }

    /// <summary>Tells alerts apart without their labels: 16 hexadecimal digits.</summary>
    private static string AlertId(IncomingAlert alert)
    {
        var json = new StringBuilder("{\"source\":");
        JsonText.Write(json, Sources[(int)alert.Source]);
        JsonText.Write(json.Append(",\"sender\":"), alert.Sender);
        return Hash(json.Append(",\"labels\":").Append(alert.Labels).Append('}').ToString(), 16);
    }

    private static string Hash(string text, int digits) =>
        Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(text)))[..digits];

    /// <summary>A line while it is written.</summary>
    private sealed class Line(string kind)
    {
        private readonly StringBuilder _fields = new();

        public Line Text(string name, string value)
        {
            JsonText.Write(_fields.Append(CultureInfo.InvariantCulture, $",\"{name}\":"), value);
            return this;
        }

        public Line TextOrNull(string name, string? value) => value == null ? Json(name, "null") : Text(name, value);

        public Line Json(string name, string value)
        {
            _fields.Append(CultureInfo.InvariantCulture, $",\"{name}\":").Append(value);
            return this;
        }

        public Line Time(string name, DateTime? time) =>
            Json(name, time is { } at ? $"\"{Written(at)}\"" : "null");

        /// <summary>
        /// Adds the id after the kind, and the time of recording, which are not part of the id.
        /// </summary>
        public string End(DateTime recorded, out string id, Action<Line>? rest = null)
        {
            var length = _fields.Length;
            rest?.Invoke(this);
            var fields = _fields.ToString();
            id = Hash($"{{\"kind\":\"{kind}\"{fields}}}", 32);
            return $"{{\"kind\":\"{kind}\",\"id\":\"{id}\"{fields[..length]},\"recorded\":"
                + $"\"{Written(recorded)}\"{fields[length..]}}}";
        }

        private static string Written(DateTime time) =>
            time.ToString("yyyy-MM-dd'T'HH:mm:ss.fff'Z'", CultureInfo.InvariantCulture);
    }
}

/// <summary>Is thrown for a line that cannot be taken; the message is the reason.</summary>
internal sealed class LineException(string reason) : Exception(reason);

/// <summary>A line that was read, to be taken into a store.</summary>
/// <param name="Take">Within a transaction of the writer; false: the fact is there.</param>
internal sealed record FactLine(Func<Writer, bool> Take)
{
    /// <summary>Of a fact; labels are at most some KiB.</summary>
    public const int MaxLength = 1024 * 1024;

    /// <exception cref="LineException">It is no line of a fact, or was changed.</exception>
    /// <param name="now">No fact is from before the year 2000, nor more than a day ahead of that.</param>
    public static FactLine Parse(string line, DateTime now)
    {
        try
        {
            if (line.Length > MaxLength)
                throw new LineException($"it is longer than {MaxLength} characters");
            using var json = JsonDocument.Parse(line);
            var root = json.RootElement;
            return root.ValueKind != JsonValueKind.Object ? throw new LineException("it is no JSON object")
                : Text(root, "kind") switch
                {
                    "partition" or "heartbeat" => ParseReceipt(root, now),
                    "gap" => ParseGap(root, now),
                    "note" => ParseNote(root, now),
                    "observation" => ParseObservation(root, now),
                    var kind => throw new LineException($"this SeS knows no facts of the kind '{kind}'"),
                };
        }
        catch (JsonException)
        {
            throw new LineException("it is not JSON");
        }
        catch (InvalidOperationException)
        {
            throw new LineException("a text in it is not valid Unicode");
        }
    }

    private static FactLine ParseReceipt(JsonElement root, DateTime now)
    {
        var (by, partition, received) = (Name(root, "by"), Name(root, "partition"), Time(root, "received", now));
        var heartbeat = Text(root, "kind") == "heartbeat" ? Name(root, "heartbeat") : null;
        var platform = heartbeat == null ? null : NameOrNull(root, "platform");
        FactLines.Receipt(by, partition, platform, heartbeat, received, Time(root, "recorded", now), out var id);
        CheckId(root, id);
        return new(w => w.Import(by, partition, platform, heartbeat, received));
    }

    private static FactLine ParseGap(JsonElement root, DateTime now)
    {
        var (by, received) = (Name(root, "by"), Time(root, "received", now));
        var (partition, platform) = (NameOrNull(root, "partition"), NameOrNull(root, "platform"));
        var heartbeat = NameOrNull(root, "heartbeat");
        if (partition == null != (heartbeat == null) || (platform != null && heartbeat == null))
            throw new LineException("heartbeat: a gap is of SeS, without a partition, or of a heartbeat, with one");
        var (begins, ends) = (Time(root, "begins", now), TimeOrNull(root, "ends", now));
        FactLines.Gap(by, partition, platform, heartbeat, begins, ends, received, Time(root, "recorded", now), out var id);
        CheckId(root, id);
        return new(w => w.Import(by, partition, platform, heartbeat, begins, ends, received));
    }

    private static FactLine ParseNote(JsonElement root, DateTime now)
    {
        string? OrNull(string name) => IsNull(root, name) ? null : Text(root, name);
        var by = Name(root, "by");
        var note = new NoteVersion(Text(root, "note"), NoteDraft.KindOf(Text(root, "note_kind"))
                ?? throw new LineException("note_kind: it is none"),
            Time(root, "from", now + NoteBook.MaxAhead), TimeOrNull(root, "to", now + NoteBook.MaxAhead),
            new NoteFilter(Name(root, "partition"), OrNull("platform"), OrNull("service"), OrNull("facet"), OrNull("location")),
            OrNull("status"), Text(root, "text"), Text(root, "author"), OrNull("author_name"),
            root.TryGetProperty("withdrawn", out var withdrawn) && withdrawn.ValueKind == JsonValueKind.True,
            Time(root, "received", now));
        if (note.Flaw() is { } flaw)
            throw new LineException(flaw);
        FactLines.Note(by, note, Time(root, "recorded", now), out var id);
        CheckId(root, id);
        return new(w => NoteBook.Import(w, by, note));
    }

    private static FactLine ParseObservation(JsonElement root, DateTime now)
    {
        var (by, received) = (Name(root, "by"), Time(root, "received", now));
        var kind = FactLines.KindOf(Text(root, "what")) ?? throw new LineException("what: it is no kind");
        var labels = new AlertTexts();
        foreach (var label in Field(root, "labels", JsonValueKind.Object).EnumerateObject())
            labels.Add(label.Name, label.Value.GetString() ?? throw new LineException("labels: not all texts"));
        labels.Sort();
        var ends = TimeOrNull(root, "ends", now);
        if (ends == null != kind is ObservationKind.Start or ObservationKind.Again)
            throw new LineException("ends: an end and a lapse have one, a start and an again have none");
        var alert = new IncomingAlert(
            new(Name(root, "partition"), Text(root, "platform"), Text(root, "service"), Text(root, "facet"),
                Text(root, "location")),
            root.TryGetProperty("dialect", out var dialect) && dialect.ValueKind == JsonValueKind.True,
            FactLines.SourceOf(Text(root, "source")) ?? throw new LineException("source: it is none"),
            Text(root, "sender"), labels.ToJson(), Text(root, "status"), Time(root, "starts", now),
            ends, Text(root, "description"));
        if (AlertMapping.Unusable(alert.Service, alert.Status) is { } flaw)
            throw new LineException(flaw);
        if (alert.Status == "" || alert.Status.Any(c => c != char.ToLowerInvariant(c)))
            throw new LineException("status: it is empty, or not in lower case");
        if (Encoding.UTF8.GetByteCount(alert.Description) > AlertMapping.MaxDescription)
            throw new LineException($"description: it has more than {AlertMapping.MaxDescription} bytes");
        FactLines.Observation(by, alert, kind, received, Time(root, "recorded", now), out var id);
        CheckId(root, id);
        return new(w => w.Import(by, alert, kind, received));
    }

    private static void CheckId(JsonElement root, string id)
    {
        if (Text(root, "id") != id)
            throw new LineException("its id is not that of its content: it was changed");
    }

    private static JsonElement Field(JsonElement root, string name, JsonValueKind kind) =>
        root.TryGetProperty(name, out var value) && value.ValueKind == kind ? value
            : throw new LineException($"{name}: it is missing, or of the wrong type");

    private static string Text(JsonElement root, string name) =>
        Field(root, name, JsonValueKind.String).GetString()!;

    private static string Name(JsonElement root, string name) =>
        Text(root, name) is { Length: > 0 } text && Encoding.UTF8.GetByteCount(text) <= AlertMapping.MaxField
            ? text : throw new LineException($"{name}: it is empty, or longer than {AlertMapping.MaxField} bytes");

    private static bool IsNull(JsonElement root, string name) =>
        root.TryGetProperty(name, out var value) && value.ValueKind == JsonValueKind.Null;

    private static string? NameOrNull(JsonElement root, string name) => IsNull(root, name) ? null : Name(root, name);

    private static DateTime? TimeOrNull(JsonElement root, string name, DateTime now) =>
        IsNull(root, name) ? null : Time(root, name, now);

    private static DateTime Time(JsonElement root, string name, DateTime now) =>
        AlertMapping.ReadTime(Text(root, name), name, now, out var time, out var reason) ? time
            : throw new LineException(reason);
}

/// <summary>What became of a draft.</summary>
/// <param name="Note">With the version that it made, or that said the same; null: it was refused.</param>
internal sealed record NoteAnswer(Note? Note, bool IsNew, NoteException? Refusal = null);

/// <summary>The notes of a store: all versions, those that it took itself and those that were imported.</summary>
internal static class NoteBook
{
    /// <summary>Versions in a store; a script that has gone mad can write no more.</summary>
    public const int MaxVersions = 50_000;

    /// <summary>How far ahead of the clock a note may begin and end.</summary>
    public static readonly TimeSpan MaxAhead = TimeSpan.FromDays(3660);

    /// <summary>The notes of a partition, or of all, in the order of partitions and ids.</summary>
    /// <param name="until">Versions that were recorded later do not count.</param>
    /// <param name="withText">False: each text is empty, since all together may be long.</param>
    public static IEnumerable<Note> Read(SqliteConnection database, long until, string? partition = null,
        string? id = null, bool withText = true)
    {
        using var rows = database.Query($"""
            SELECT {(withText ? StoredNotes.Columns : StoredNotes.Columns.Replace("n.text", "''", StringComparison.Ordinal))}
            {StoredNotes.From}
            WHERE n.recorded <= ?1 AND (?2 IS NULL OR p.name = ?2) AND (?3 IS NULL OR n.note = ?3)
            ORDER BY n.partition, n.note, n.received
            """);
        rows.Bind(1, until).Bind(2, partition).Bind(3, id);
        var versions = new List<NoteVersion>();
        while (rows.Step())
        {
            var version = StoredNotes.VersionOf(rows);
            if (versions.Count > 0
                && (versions[0].Id != version.Id || versions[0].Filter.Partition != version.Filter.Partition))
            {
                yield return new Note(Ordered(database, versions));
                versions = [];
            }
            versions.Add(version);
        }
        if (versions.Count > 0)
            yield return new Note(Ordered(database, versions));
    }

    /// <summary>Of those that two SeS received in one millisecond the order is that of their lines' bytes.</summary>
    private static List<NoteVersion> Ordered(SqliteConnection database, List<NoteVersion> versions)
    {
        for (var i = 1; i < versions.Count; i++)
        {
            if (versions[i].Received == versions[i - 1].Received)
                return [.. versions.OrderBy(v => v.Received)
                    .ThenBy(v => LineOf(database, v), StringComparer.Ordinal)];
        }
        return versions;
    }

    /// <summary>As it is exported.</summary>
    public static string LineOf(SqliteConnection database, NoteVersion version) =>
        FactLines.Note(version.By, WithText(database, version), version.Recorded, out _);

    /// <summary>A version with its text, which may not have been read.</summary>
    public static NoteVersion WithText(SqliteConnection database, NoteVersion version)
    {
        using var text = database.Query("SELECT text FROM note WHERE id = ?1");
        return version with { Text = text.Bind(1, version.Row).FirstText() ?? "" };
    }

    /// <summary>Stores what a draft makes of its note, within a transaction of the writer.</summary>
    public static NoteAnswer Add(Writer writer, NoteDraft draft, string partition, string author, DateTime now)
    {
        var note = draft.Id == null ? null
            : Read(writer.Database, long.MaxValue, partition, id: draft.Id).FirstOrDefault();
        // It is to be the last one, whatever the clocks of others said.
        var received = note?.Last.Received >= now ? note.Last.Received.AddMilliseconds(1) : now;
        try
        {
            var made = draft.Of(
                note, draft.Id ?? RandomNumberGenerator.GetHexString(10, lowercase: true), partition, author, received);
            return note != null && made.Says(note.Last) ? new(note, IsNew: false)
                : writer.Database.Number("SELECT count(*) FROM note") >= MaxVersions
                ? throw new NoteException(503, $"there are {MaxVersions} versions of notes already")
                : new(new Note([.. note?.Versions ?? [], writer.Add(made)]), IsNew: true);
        }
        catch (NoteException e)
        {
            return new(null, IsNew: false, e);
        }
    }

    /// <summary>Takes a version from a line; false: it is here.</summary>
    public static bool Import(Writer writer, string by, NoteVersion version)
    {
        var known = Read(writer.Database, long.MaxValue, version.Filter.Partition, id: version.Id).FirstOrDefault();
        if (known?.Versions.Any(v => v.By == by && v with { By = "", Row = 0, Recorded = default } == version) == true)
            return false;
        writer.Add(version, by);
        return true;
    }
}

// =============================== 10. Questions ===============================
//
// What people and programs ask, answered from one snapshot: the present of services, their changes in order
// of time, availability by periods of a zone, within service hours and against an objective, outages, and for
// how long too few of a group were up. Rows come one at a time, in the order of an index, so that memory does
// not grow with the answer; only outages are held. A question as of a day in the past is
// answered from a timeline that is derived anew, from the facts recorded until then, into a temporary table.

/// <summary>Which services are meant; null: whatever it is.</summary>
internal sealed record ServiceFilter(
    string? Partition, string? Platform, string? Service, string? Facet, string? Location);

/// <summary>The present of a service.</summary>
/// <param name="Since">When its status began.</param>
/// <param name="Time">When it was last said, by another alert.</param>
/// <param name="LastSeen">The last copy of its alerts, or the last beat of a heartbeat that speaks for it.</param>
/// <param name="IsWatched">False: nobody watches, and the status is the last known; null: no heartbeat tells.</param>
/// <param name="Maintenance">The id of the note by which it is under maintenance; null: it is not.</param>
internal sealed record PresentRow(long Id, ServiceKey Service, string Status, DateTime Since, DateTime Time,
    string Description, DateTime? LastSeen, bool? IsWatched, string? Maintenance);

/// <summary>A change of status.</summary>
/// <param name="Place">What a cursor needs beside the time.</param>
internal sealed record ChangeRow(
    long Place, ServiceKey Service, string Status, DateTime Time, string Description, DateTime? Received);

/// <summary>A time zone, of the system's database.</summary>
internal sealed class Zone
{
    /// <summary>No clock differs more from UTC, and none is set twice within that.</summary>
    private static readonly TimeSpan Reach = TimeSpan.FromHours(15);

    private readonly TimeZoneInfo _zone;

    private Zone(string name, TimeZoneInfo zone) => (Name, _zone) = (name, zone);

    public static Zone Utc { get; } = new("UTC", TimeZoneInfo.Utc);

    public string Name { get; }

    /// <exception cref="FormatException">There is no such zone; the message tells what is allowed.</exception>
    public static Zone Parse(string name)
    {
        if (name == Utc.Name)
            return Utc;
        var isName = name.Length is > 0 and < 100 && char.IsAsciiLetter(name[0])
            && name.All(c => char.IsAsciiLetterOrDigit(c) || "_+-/".Contains(c))
            // Of this host alone, or with seconds that no clock shows.
            && name is not ("localtime" or "posixrules") && !name.StartsWith("right/", StringComparison.Ordinal)
            && !name.StartsWith("posix/", StringComparison.Ordinal);
        try
        {
            if (isName)
                return new Zone(name, TimeZoneInfo.FindSystemTimeZoneById(name));
        }
        catch (Exception e) when (e is TimeZoneNotFoundException or InvalidTimeZoneException or SecurityException)
        {
            if (!Directory.Exists("/usr/share/zoneinfo"))
                throw new FormatException("UTC alone, since this host has no zone database: its package is tzdata");
        }
        throw new FormatException("a name of the zone database, such as Europe/Berlin, or UTC");
    }

    private TimeSpan Offset(DateTime utc) => _zone.GetUtcOffset(DateTime.SpecifyKind(utc, DateTimeKind.Utc));

    public DateTime Local(DateTime utc) => utc + Offset(utc);

    /// <summary>When what begins at a local time does so: of a time that comes twice, the first.</summary>
    public DateTime Begin(DateTime local) => Moments(local).First;

    /// <summary>When what ends at a local time does so: of a time that comes twice, the second.</summary>
    public DateTime End(DateTime local) => Moments(local).Last;

    /// <summary>In UTC; of a time that is skipped, the moment of the jump.</summary>
    private (DateTime First, DateTime Last) Moments(DateTime local)
    {
        var moments = new[] { local - Reach, local, local + Reach }
            .Select(u => local - Offset(u)).Where(u => Local(u) == local).ToList();
        if (moments.Count > 0)
            return (moments.Min(), moments.Max());
        var (before, after) = (local - Reach, local + Reach);
        while (after - before > TimeSpan.FromTicks(1))
        {
            var middle = before + ((after - before) / 2);
            if (Local(middle) > local)
                after = middle;
            else
                before = middle;
        }
        return (after, after);
    }
}

/// <summary>The hours of a week in which a service is to be up, as a contract has them.</summary>
internal sealed class ServiceHours
{
    private const int Day = 24 * 60;

    private static readonly string[] Days = ["Mo", "Tu", "We", "Th", "Fr", "Sa", "Su"];

    /// <summary>In minutes from the begin of each day; what ends after midnight belongs to the day it began on.</summary>
    private readonly Interval[][] _hours = [[], [], [], [], [], [], []];

    /// <summary>Of a day, once what overlaps is one.</summary>
    private const int MaxStretches = 24;

    private ServiceHours(string text) => Text = text;

    /// <summary>As it was given.</summary>
    public string Text { get; }

    public const string Allowed = "days and hours, such as \"Mo-Fr 08:00-12:00,13:00-17:00; Sa,Su 10:00-14:00\"";

    /// <exception cref="FormatException">The message tells what is allowed.</exception>
    public static ServiceHours Parse(string text)
    {
        var hours = new ServiceHours(text);
        foreach (var rule in text.Split(';', StringSplitOptions.TrimEntries))
        {
            if (rule.Split(' ', 2, StringSplitOptions.TrimEntries) is not [var days, var times])
                throw new FormatException(Allowed);
            var stretches = times.Split(',', StringSplitOptions.TrimEntries).Select(ParseStretch).ToList();
            foreach (var day in days.Split(',', StringSplitOptions.TrimEntries).SelectMany(ParseDays).Distinct())
                hours._hours[day] = Interval.United(hours._hours[day].Concat(stretches));
        }
        return hours._hours.All(h => h.Length <= MaxStretches) ? hours
            : throw new FormatException($"at most {MaxStretches} stretches a day");
    }

    private static IEnumerable<int> ParseDays(string text)
    {
        var ends = text.Split('-', StringSplitOptions.TrimEntries).Select(d => Array.IndexOf(Days, d)).ToList();
        if (ends.Count > 2 || ends.Contains(-1))
            throw new FormatException(Allowed);
        // Saturday to Monday goes over the end of the week.
        return Enumerable.Range(0, ((ends[^1] - ends[0] + 7) % 7) + 1).Select(i => (ends[0] + i) % 7);
    }

    private static Interval ParseStretch(string text)
    {
        if (text.Split('-', StringSplitOptions.TrimEntries) is not [var begin, var end]
            || ParseTime(begin) is not (>= 0 and < Day and var from) || ParseTime(end) is not { } to)
            throw new FormatException(Allowed);
        return new Interval(from, to > from ? to : to + Day);
    }

    private static int? ParseTime(string text) => text.Length == 5 && text[2] == ':'
        && int.TryParse(text.AsSpan(0, 2), NumberStyles.None, CultureInfo.InvariantCulture, out var hour)
        && int.TryParse(text.AsSpan(3), NumberStyles.None, CultureInfo.InvariantCulture, out var minute)
        && minute < 60 && (hour * 60) + minute is var time && time <= Day ? time : null;

    /// <summary>The hours that touch a stretch.</summary>
    public Interval[] Within(Zone zone, DateTime from, DateTime to)
    {
        var spans = new List<Interval>();
        for (var day = zone.Local(from).Date.AddDays(-2); day <= zone.Local(to).Date; day = day.AddDays(1))
            spans.AddRange(_hours[((int)day.DayOfWeek + 6) % 7].Select(h => new Interval(
                UnixTime.From(zone.Begin(day.AddMinutes(h.From))), UnixTime.From(zone.End(day.AddMinutes(h.To))))));
        return Interval.United(spans);
    }
}

internal enum PeriodLength { Day, Week, Month, Quarter, Year }

/// <summary>A day, week, month, quarter or year of a zone.</summary>
/// <param name="Name">Such as 2026-11-01, 2026-W44 (ISO 8601), 2026-11, 2026-Q4 and 2026.</param>
internal sealed record Period(string Name, DateTime From, DateTime To)
{
    /// <summary>The period in which a moment lies.</summary>
    public static Period Of(PeriodLength length, Zone zone, DateTime moment)
    {
        var period = OfDay(length, zone, zone.Local(moment).Date);
        // Where clocks are set back over midnight, the day before comes again.
        return moment < period.To ? period : OfDay(length, zone, zone.Local(period.To).Date);
    }

    private static Period OfDay(PeriodLength length, Zone zone, DateTime day)
    {
        var first = length switch
        {
            PeriodLength.Day => day,
            PeriodLength.Week => day.AddDays(-(((int)day.DayOfWeek + 6) % 7)),
            PeriodLength.Month => new DateTime(day.Year, day.Month, 1),
            PeriodLength.Quarter => new DateTime(day.Year, day.Month - ((day.Month - 1) % 3), 1),
            _ => new DateTime(day.Year, 1, 1),
        };
        var next = length switch
        {
            PeriodLength.Day => first.AddDays(1),
            PeriodLength.Week => first.AddDays(7),
            PeriodLength.Month => first.AddMonths(1),
            PeriodLength.Quarter => first.AddMonths(3),
            _ => first.AddYears(1),
        };
        var name = length switch
        {
            PeriodLength.Day => $"{first:yyyy-MM-dd}",
            PeriodLength.Week => $"{ISOWeek.GetYear(first):0000}-W{ISOWeek.GetWeekOfYear(first):00}",
            PeriodLength.Month => $"{first:yyyy-MM}",
            PeriodLength.Quarter => $"{first:yyyy}-Q{((first.Month - 1) / 3) + 1}",
            _ => $"{first:yyyy}",
        };
        // One ends where the next begins, at its first midnight.
        return new Period(name, zone.Begin(first), zone.Begin(next));
    }

    public static IEnumerable<Period> All(PeriodLength length, Zone zone, DateTime from, DateTime to)
    {
        for (var period = Of(length, zone, from); period.From < to; period = Of(length, zone, period.To))
            yield return period;
    }
}

/// <summary>What a service did in a range: each of its milliseconds is one of the first five.</summary>
/// <param name="NotCounted">Outside of service hours, not known yet, or ahead of the clock.</param>
/// <param name="Ahead">Of what is not counted, what is to come within service hours and outside of maintenance.</param>
/// <param name="Maintenance">Known and counted, under maintenance; <paramref name="MaintenanceDown"/>: of that, down.</param>
/// <param name="Excluded">Down, excluded, and not under maintenance.</param>
/// <param name="Outages">Those with a millisecond down in the range.</param>
/// <param name="IsOpen">One of them goes on at the end of the range, or of the clock.</param>
internal readonly record struct Figures(
    long NotCounted, long Unknown, long Down, long Degraded, long Up, long Ahead, long Maintenance, long MaintenanceDown,
    long Excluded, int Outages, long Longest, bool IsOpen)
{
    public long Known => Up + Degraded + Down;

    /// <summary>Up and degraded in percent of what is known; null: nothing is.</summary>
    public double? Availability => Share(Up + Degraded, Known);

    /// <summary>What adjusted availability is a share of: without maintenance, and without what was down and excluded.</summary>
    public long Base => Known - Maintenance - Excluded;

    /// <summary>Of that, down.</summary>
    public long BaseDown => Down - MaintenanceDown - Excluded;

    public double? AdjustedAvailability => Share(Base - BaseDown, Base);

    /// <summary>The known share of the counted time, in percent; null: nothing is counted.</summary>
    public double? Coverage => Share(Known, Known + Unknown);

    /// <summary>Null: there is no outage. In milliseconds.</summary>
    public double? Mean => Outages == 0 ? null : (double)Down / Outages;

    /// <summary>Time up and degraded for each outage, in milliseconds.</summary>
    public double? MeanBetween => Outages == 0 ? null : (double)(Up + Degraded) / Outages;

    /// <summary>How long it may be down for an objective, in milliseconds.</summary>
    /// <param name="objective">In percent.</param>
    public decimal Budget(decimal objective) => (100 - objective) * (Base + Ahead) / 100;

    public decimal BudgetLeft(decimal objective) => Budget(objective) - BaseDown;

    /// <summary>Null: that cannot be said, for lack of knowledge or while the range lasts.</summary>
    public bool? IsMet(decimal objective, bool lasts) =>
        BudgetLeft(objective) < 0 ? false : lasts || Base == 0 ? null : true;

    private static double? Share(long part, long whole) => whole > 0 ? 100.0 * part / whole : null;
}

/// <summary>Adds up the runs of one service, in order, over a range.</summary>
/// <param name="left">Nothing before it is known any more.</param>
/// <param name="now">Nothing after it is known.</param>
/// <param name="hours">Outside of these nothing is counted; null: all is.</param>
internal sealed class FiguresSum(Interval range, long left, long now, Interval[]? hours, Interval[] maintenance, Interval[] excluded)
{
    private readonly long[] _times = new long[4];
    private readonly Interval[] _excluded = Interval.Without(excluded, maintenance);
    private long _maintenance, _maintenanceDown, _excludedDown, _outage, _longest, _unknownSince, _until;
    private int _outages;
    private bool _isOpen, _isCounted;

    private const int Up = 0, Degraded = 1, Down = 2, Unknown = 3;

    private long End => Math.Min(range.To, now);

    public void Add(long at, long until, Status status)
    {
        if (at >= End || until <= at)
            return;
        var kind = status switch
        {
            Status.Up => Up,
            Status.Down => Down,
            Status.Unknown => Unknown,
            _ => Degraded,
        };
        var counted = 0L;
        var (from, to) = (Math.Max(Math.Max(at, range.From), left), Math.Min(until, End));
        foreach (var part in Interval.Counted(hours, from, to))
        {
            counted += part.To - part.From;
            var maintained = kind == Unknown ? 0 : Interval.Length(maintenance, part.From, part.To);
            _maintenance += maintained;
            _maintenanceDown += kind == Down ? maintained : 0;
            _excludedDown += kind == Down ? Interval.Length(_excluded, part.From, part.To) : 0;
        }
        _times[kind] += counted;
        // While it was retired it was nothing.
        _isOpen &= at <= _until;
        _until = until;
        Follow(kind, Math.Min(until, End) - at, counted);
    }

    /// <summary>Whether an outage goes on, and how long it has been down within the range.</summary>
    private void Follow(int kind, long length, long counted)
    {
        _unknownSince = kind == Unknown ? _unknownSince + length : 0;
        var goesOn = _isOpen && kind == Unknown && _unknownSince < Questions.EndsOutage.TotalMilliseconds;
        if (kind == Down)
        {
            (_outage, _isCounted) = _isOpen ? (_outage, _isCounted) : (0, false);
            _outage += counted;
            if (_outage > 0 && !_isCounted)
                (_outages, _isCounted) = (_outages + 1, true);
            _longest = Math.Max(_longest, _outage);
        }
        _isOpen = kind == Down || goesOn;
    }

    public Figures Result
    {
        get
        {
            var ahead = Interval.Counted(hours, Math.Max(now, range.From), range.To);
            return new Figures(range.To - range.From - _times.Sum(), _times[Unknown], _times[Down], _times[Degraded],
                _times[Up], ahead.Sum(a => a.To - a.From - Interval.Length(maintenance, a.From, a.To)),
                _maintenance, _maintenanceDown, _excludedDown, _outages, _longest, _isOpen && _isCounted && _until >= End);
        }
    }
}

/// <summary>An objective for availability in percent, and others for some platforms.</summary>
internal sealed record Objectives(string Text, decimal? All, IReadOnlyDictionary<string, decimal> ByPlatform)
{
    public const string Allowed = "a percentage above 0 and at most 100, such as 99.9, or with exceptions by platform, "
        + "such as 99.9,k8s-1=99.95";

    /// <exception cref="FormatException">The message tells what is allowed.</exception>
    public static Objectives Parse(string text)
    {
        decimal? all = null;
        var byPlatform = new Dictionary<string, decimal>();
        foreach (var part in text.Split(',', StringSplitOptions.TrimEntries))
        {
            var equals = part.LastIndexOf('=');
            if (!decimal.TryParse(part.AsSpan(equals + 1), NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture,
                out var objective) || objective is <= 0 or > 100 || equals == 0
                || (equals < 0 ? all != null : !byPlatform.TryAdd(part[..equals].TrimEnd(), objective)))
                throw new FormatException(Allowed);
            if (equals < 0)
                all = objective;
        }
        return new Objectives(text, all, byPlatform);
    }

    /// <summary>Null: there is none for it.</summary>
    public decimal? Of(string platform) => ByPlatform.TryGetValue(platform, out var own) ? own : All;
}

/// <summary>How a report counts.</summary>
/// <param name="Period">Null: the range is one.</param>
/// <param name="Hours">Null: all hours.</param>
/// <param name="Objectives">Null: none.</param>
internal sealed record Counting(PeriodLength? Period, Zone Zone, ServiceHours? Hours, Objectives? Objectives)
{
    public static Counting Plain { get; } = new(null, Zone.Utc, null, null);
}

/// <summary>A time down.</summary>
/// <param name="To">Null: it goes on.</param>
/// <param name="Down">So much of it is counted in the range that is asked for, in milliseconds.</param>
/// <param name="Description">Of the alert that began it.</param>
internal sealed record OutageRow(
    long Id, ServiceKey Service, DateTime From, DateTime? To, long Down, string Description, long Observation)
{
    /// <summary>Of <see cref="Down"/>, under maintenance.</summary>
    public long Maintenance { get; init; }

    /// <summary>Of <see cref="Down"/>, excluded and not under maintenance.</summary>
    public long Excluded { get; init; }

    /// <summary>Those that touch it and are not withdrawn, in the order of their begins.</summary>
    public IReadOnlyList<Note> Notes { get; init; } = [];

    /// <summary>Until when it is known to be down.</summary>
    public DateTime Last { get; init; }
}

/// <summary>A row of a report.</summary>
/// <param name="Period">Its name; null: the range is one.</param>
internal sealed record ReportRow(ServiceKey Service, string? Period, DateTime From, DateTime To, Figures Figures);

/// <summary>How many services there are of each kind; those that are not known yet count as none.</summary>
internal readonly record struct ServiceCounts(long Known, long Down, long Other)
{
    public long NotUp => Down + Other;
}

/// <summary>An outage that has ended.</summary>
internal sealed record Outage(ServiceKey Service, DateTime From, DateTime To, string Description);

/// <summary>How a service fared in an interval; of several the greatest, which is the worst.</summary>
internal enum Condition { Nothing, Up, Unknown, Other, Down }

/// <summary>A service's range in equal intervals, for a picture of it.</summary>
internal sealed class Strip(DateTime from, DateTime to, int intervals)
{
    private readonly Condition[] _worst = new Condition[intervals];

    /// <summary>The worst of each interval; <see cref="Condition.Nothing"/>: not known.</summary>
    public IReadOnlyList<Condition> Worst => _worst;

    public void Add(DateTime at, DateTime until, Status status)
    {
        var (begin, end) = (at > from ? at : from, until < to ? until : to);
        if (begin >= end)
            return;
        var condition = status switch
        {
            Status.Up => Condition.Up,
            Status.Down => Condition.Down,
            Status.Unknown => Condition.Unknown,
            _ => Condition.Other,
        };
        for (var i = IntervalOf(begin); i <= IntervalOf(end.AddTicks(-1)); i++)
            _worst[i] = _worst[i] > condition ? _worst[i] : condition;
    }

    private int IntervalOf(DateTime time) =>
        (int)((Int128)(time - from).Ticks * intervals / (to - from).Ticks);
}

/// <summary>A change of a group.</summary>
/// <param name="Up">How many are up after it.</param>
/// <param name="Under">Where it makes them enough again: for how long they were too few.</param>
internal readonly record struct ThresholdRow(
    ServiceKey Service, string Status, DateTime Time, int Up, TimeSpan Under);

/// <param name="Recovery">A stock alert's has no text of its own: what was sent is the outage's; else "".</param>
internal readonly record struct StoredTexts(string Text, string Recovery);

/// <summary>
/// Names of services and texts of alerts by their numbers, which never change: all questions that are
/// answered at a time share them. Bounded.
/// </summary>
internal sealed class SharedNames
{
    private const int MaxNames = 300_000, MaxCharacters = 8 * 1024 * 1024, MaxShared = 10_000;

    private readonly Dictionary<long, ServiceKey> _services = [], _families = [];
    private readonly Dictionary<long, StoredTexts> _alerts = [];
    private readonly HashSet<string> _texts = [];
    private int _characters, _questions;

    /// <summary>How many questions share them.</summary>
    public int Questions => Volatile.Read(ref _questions);

    public void Enter() => Interlocked.Increment(ref _questions);

    public void Leave() => Interlocked.Decrement(ref _questions);

    public ServiceKey? Service(long id) => _services.TryGetValue(id, out var name) ? name : null;

    public ServiceKey? Family(long id) => _families.TryGetValue(id, out var name) ? name : null;

    public void AddService(long id, ServiceKey name) => Add(_services, id, name, name.Location.Length);

    public void AddFamily(long id, ServiceKey name) => Add(_families, id, name,
        name.Partition.Length + name.Platform.Length + name.Service.Length + name.Facet.Length);

    public StoredTexts? Texts(long alert) => _alerts.TryGetValue(alert, out var texts) ? texts : null;

    public void AddTexts(long alert, StoredTexts texts)
    {
        if (_alerts.Count < MaxNames && _characters + texts.Text.Length + texts.Recovery.Length <= MaxCharacters)
            _alerts.TryAdd(alert, new StoredTexts(Shared(texts.Text), Shared(texts.Recovery)));
    }

    /// <summary>Many alerts have the same.</summary>
    private string Shared(string text)
    {
        if (_texts.TryGetValue(text, out var known))
            return known;
        if (_texts.Count < MaxShared)
            _texts.Add(text);
        _characters += text.Length;
        return text;
    }

    private void Add(Dictionary<long, ServiceKey> names, long id, ServiceKey name, int characters)
    {
        if (names.Count < MaxNames && _characters + characters <= MaxCharacters && names.TryAdd(id, name))
            _characters += characters;
    }
}

/// <summary>The names of services by their numbers.</summary>
internal sealed class ServiceNames(Snapshot snapshot) : IDisposable
{
    private readonly SqliteStatement
        _service = snapshot.Query("SELECT family, location FROM service WHERE id = ?1"),
        _family = snapshot.Query("""
            SELECT p.name, f.platform, f.service, f.facet FROM family f JOIN partition p ON p.id = f.partition
            WHERE f.id = ?1
            """);

    private readonly List<(long Id, int Index)> _missing = [];
    private readonly List<ServiceKey> _names = [];

    public void Dispose()
    {
        _service.Dispose();
        _family.Dispose();
    }

    /// <summary>Of many at once: those not known yet are read in the order in which they are stored.</summary>
    /// <returns>Valid until the next are read.</returns>
    public IReadOnlyList<ServiceKey> Of(IEnumerable<long> services)
    {
        _missing.Clear();
        _names.Clear();
        lock (snapshot.Names)
        {
            foreach (var id in services)
            {
                var known = snapshot.Names.Service(id);
                if (known == null)
                    _missing.Add((id, _names.Count));
                _names.Add(known ?? default);
            }
            _missing.Sort();
            foreach (var (id, index) in _missing)
                _names[index] = Read(id);
        }
        return _names;
    }

    private ServiceKey Read(long id)
    {
        if (!_service.Bind(1, id).Step())
            return default;
        var (number, location) = (_service.Number(0), _service.Text(1));
        _service.Reset();
        if (snapshot.Names.Family(number) is not { } family)
        {
            _ = _family.Bind(1, number).Step();
            family = new ServiceKey(_family.Text(0), _family.Text(1), _family.Text(2), _family.Text(3), "");
            _family.Reset();
            snapshot.Names.AddFamily(number, family);
        }
        var name = family with { Location = location };
        snapshot.Names.AddService(id, name);
        return name;
    }
}

/// <summary>Which of some services are up.</summary>
/// <param name="services">Their numbers, ascending: of all services no more can be held for each.</param>
internal sealed class UpServices(long[] services)
{
    private readonly BitArray _up = new(services.Length);

    public int Count { get; private set; }

    public void Set(long service, bool isUp)
    {
        var place = Array.BinarySearch(services, service);
        if (_up[place] != isUp)
            Count += isUp ? 1 : -1;
        _up[place] = isUp;
    }
}

/// <summary>The text of the observation that made a run, and when that was received.</summary>
internal sealed class ObservedTexts(Snapshot snapshot) : IDisposable
{
    private readonly SqliteStatement
        _observation = snapshot.Query("SELECT alert, text, received FROM observation WHERE id = ?1"),
        _alert = snapshot.Query("""
            SELECT text, CASE dialect WHEN 0 THEN json_extract(labels, '$.alertname') || ' resolved' ELSE '' END
            FROM alert WHERE id = ?1
            """);

    /// <summary>A row of a table, and for which of the changes it is read.</summary>
    private readonly record struct Place(long Id, int Index, bool IsUp, bool HasText = false)
        : IComparable<Place>
    {
        public int CompareTo(Place other) => Id.CompareTo(other.Id);

        public string TextOf(StoredTexts texts, ReadOnlySpan<(string Text, DateTime? Received)> told) =>
            IsUp && texts.Recovery != "" ? texts.Recovery : HasText ? told[Index].Text : texts.Text;
    }

    // Kept, since they are large.
    private readonly List<Place> _places = [];
    private readonly List<(string Text, DateTime? Received)> _told = [];

    public (string Text, DateTime? Received) Of(long observation, bool isUp)
    {
        _places.Clear();
        _places.Add(new(observation, 0, isUp));
        return Read()[0];
    }

    /// <summary>Of many at once, in the order in which they are stored, which is many times faster.</summary>
    /// <returns>Valid until the next are read.</returns>
    public IReadOnlyList<(string Text, DateTime? Received)> Of(IEnumerable<StatusChange> changes)
    {
        _places.Clear();
        foreach (var change in changes)
            _places.Add(new(change.Observation, _places.Count, change.Status == Status.Up));
        return Read();
    }

    private List<(string Text, DateTime? Received)> Read()
    {
        CollectionsMarshal.SetCount(_told, _places.Count);
        var places = CollectionsMarshal.AsSpan(_places);
        var told = CollectionsMarshal.AsSpan(_told);
        places.Sort();
        foreach (ref var place in places)
        {
            if (!_observation.Bind(1, place.Id).Step())
            {
                (told[place.Index], place) = (("", null), place with { Id = 0 });
                continue;
            }
            var text = _observation.TextOrNull(1);
            told[place.Index] = (text ?? "", UnixTime.Read(_observation.Number(2)));
            place = place with { Id = _observation.Number(0), HasText = text != null };
            _observation.Reset();
        }
        places.Sort();
        lock (snapshot.Names)
        {
            foreach (ref var place in places)
            {
                if (snapshot.Names.Texts(place.Id) is { } texts)
                    (told[place.Index].Text, place) = (place.TextOf(texts, told), place with { Id = 0 });
            }
        }
        foreach (ref var place in places)
        {
            if (place.Id == 0 || (place.HasText && !place.IsUp) || !_alert.Bind(1, place.Id).Step())
                continue;
            var texts = new StoredTexts(_alert.Text(0), _alert.Text(1));
            _alert.Reset();
            told[place.Index].Text = place.TextOf(texts, told);
            lock (snapshot.Names)
                snapshot.Names.AddTexts(place.Id, texts);
        }
        return _told;
    }

    public void Dispose()
    {
        _observation.Dispose();
        _alert.Dispose();
    }
}

/// <summary>A time in which nothing could have been received.</summary>
/// <param name="To">Null: it goes on.</param>
/// <param name="What">Who was silent.</param>
internal sealed record SilentTime(DateTime From, DateTime? To, string What);

/// <summary>The gaps that a snapshot knows of, as they hold for the services of each platform (5).</summary>
internal sealed class GapFacts
{
    private sealed record Armed(HeartbeatKey Heartbeat, long By, DateTime At, DateTime Last);

    private sealed record Absence(long By, Gap Gap);

    private sealed record Silence(HeartbeatKey Heartbeat, long By, Gap Gap);

    private sealed record Taker(long Partition, long By);

    private sealed record GapText(string Text, DateTime Received);

    private readonly List<Armed> _armed = [];
    private readonly List<Silence> _silences = [];
    private readonly List<Absence> _absences = [];
    private readonly HashSet<Taker> _takers = [];
    private readonly HashSet<long> _partitions = [];
    private readonly Dictionary<string, Gaps> _gaps = [];
    private readonly Dictionary<string, bool?> _watched = [];

    private readonly Dictionary<DateTime, HashSet<long>> _affected = [];

    /// <summary>The names that --heartbeat has; null: no daemon has run.</summary>
    private readonly HashSet<string>? _expected;

    /// <summary>What the begin of each gap says.</summary>
    private readonly Dictionary<long, GapText> _texts = [];

    private IEnumerable<Gap> AbsencesOf(long by) => _absences.Where(a => a.By == by).Select(a => a.Gap);

    private IEnumerable<Gap> SilencesOf(HeartbeatKey heartbeat, long by) =>
        _silences.Where(s => s.By == by && s.Heartbeat == heartbeat).Select(s => s.Gap);

    /// <param name="until">Facts that were recorded later do not count.</param>
    public GapFacts(Snapshot snapshot, long until)
    {
        using (var mapping = snapshot.Query("SELECT value FROM meta WHERE name = 'mapping'"))
            _expected = mapping.FirstText() is { } text ? MappingRules.Parse(text).Heartbeats : null;
        // This SeS is one, 0, under all its names.
        using (var rows = snapshot.Query("SELECT id, own, heard FROM peer"))
        {
            while (rows.Step())
            {
                if (rows.Number(1) == 0)
                    _absences.Add(new(rows.Number(0), new(UnixTime.Read(rows.Number(2)), DateTime.MaxValue, 0)));
            }
        }
        using (var rows = snapshot.Query("""
            SELECT partition, coalesce(platform, ''), heartbeat, CASE b.own WHEN 0 THEN r.by ELSE 0 END,
                min(received), max(received) FROM receipt r JOIN peer b ON b.id = r.by
            WHERE recorded <= ?1 GROUP BY 1, 2, 3, 4
            """))
        {
            for (rows.Bind(1, until); rows.Step();)
            {
                var by = rows.Number(3);
                if (rows.TextOrNull(2) is { } name)
                    _armed.Add(new(new(rows.Number(0), rows.Text(1), name), by, UnixTime.Read(rows.Number(4)),
                        UnixTime.Read(rows.Number(5))));
                else
                    _takers.Add(new(rows.Number(0), by));
                _partitions.Add(rows.Number(0));
            }
        }
        using (var rows = snapshot.Query("""
            SELECT min(g.id), g.partition, coalesce(g.platform, ''), g.heartbeat,
                CASE b.own WHEN 0 THEN g.by ELSE 0 END, g.begins, max(g.ends), min(g.received), p.name
            FROM gap g JOIN peer b ON b.id = g.by LEFT JOIN partition p ON p.id = g.partition
            WHERE g.recorded <= ?1 GROUP BY 2, 3, 4, 5, 6 ORDER BY 6
            """))
        {
            for (rows.Bind(1, until); rows.Step();)
            {
                var gap = new Gap(UnixTime.Read(rows.Number(5)),
                    rows.NumberOrNull(6) is { } ends ? UnixTime.Read(ends) : DateTime.MaxValue, rows.Number(0));
                var by = rows.Number(4);
                if (rows.NumberOrNull(1) is { } partition)
                    _silences.Add(new(new(partition, rows.Text(2), rows.Text(3)), by, gap));
                else
                    _absences.Add(new(by, gap));
                var of = rows.TextOrNull(8) + (rows.Text(2) == "" ? "" : "/" + rows.Text(2));
                _texts[gap.Id] = new(rows.TextOrNull(3) is { } name ? $"{NoData}{name} of {of} is silent"
                    : NoData + "SeS was away", UnixTime.Read(rows.Number(7)));
            }
        }
    }

    public bool IsEmpty => _texts.Count == 0;

    /// <summary>What a run in a gap says.</summary>
    /// <param name="observation">Minus the gap's id.</param>
    public (string Text, DateTime? Received) TextOf(long observation) =>
        _texts.TryGetValue(-observation, out var text) ? (text.Text, text.Received) : ("", null);

    /// <summary>Those of them that touch a range, and who was silent.</summary>
    public IEnumerable<SilentTime> Within(long partition, string platform, DateTime from, DateTime to) =>
        Of(partition, platform).All.Where(g => g.From < to && g.To > from).Select(g => new SilentTime(
            g.From, g.To == DateTime.MaxValue ? null : g.To, TextOf(-g.Id).Text.Replace(NoData, "", StringComparison.Ordinal)));

    private const string NoData = "no data: ";

    /// <summary>The gaps of a partition's services of a platform.</summary>
    public Gaps Of(long partition, string platform)
    {
        if (IsEmpty)
            return Gaps.None;
        var place = $"{partition}\n{platform}";
        if (!_gaps.TryGetValue(place, out var gaps))
        {
            var silent = SilentOf(partition, platform);
            // The first, if it took any, is this SeS: a gap has its id.
            var takers = _takers.Where(t => t.Partition == partition).ToList();
            takers.Sort(static (a, b) => a.By.CompareTo(b.By));
            var absent = Common(takers.ConvertAll(t => Gaps.Unite(AbsencesOf(t.By)))).Where(g => _texts.ContainsKey(g.Id));
            _gaps[place] = gaps = new(Gaps.Unite(absent.Concat(silent)), silent);
        }
        return gaps;
    }

    /// <summary>
    /// A platform's heartbeat speaks for it in place of the partition's, from its arming on.
    /// </summary>
    private List<Gap> SilentOf(long partition, string platform)
    {
        var (ofPartition, silent) = (new List<Gap>(), new List<Gap>());
        // In which the platform's own heartbeat is expected.
        var (heartbeats, expected) = (new HashSet<HeartbeatKey>(), new List<Gap>());
        foreach (var armed in _armed.Where(a => IsOf(a, partition, platform)))
        {
            heartbeats.Add(armed.Heartbeat);
            if (armed.Heartbeat.Platform == "")
                continue;
            var forgotten = ForgottenAt(armed);
            expected.Add(new(armed.At, forgotten ?? DateTime.MaxValue, 0));
            if (armed.Last > forgotten)
                expected.Add(new(armed.Last, DateTime.MaxValue, 0));
        }
        foreach (var heartbeat in heartbeats)
        {
            // It is silent for those who are not away, if any is not.
            var armed = _armed.Where(a => a.Heartbeat == heartbeat).ToList();
            var common = Common(armed.ConvertAll(
                a => Gaps.Unite(SilencesOf(heartbeat, a.By).Concat(AbsencesOf(a.By)))));
            var any = Gaps.Unite(armed.SelectMany(a => SilencesOf(heartbeat, a.By)));
            (heartbeat.Platform == "" ? ofPartition : silent).AddRange(Gaps.Intersect(any, common));
        }
        silent.AddRange(Gaps.Except(Gaps.Unite(ofPartition), Gaps.Unite(expected)));
        return Gaps.Unite(silent);
    }

    /// <summary>When a heartbeat that nobody expected any more was given up; null: it was not.</summary>
    private DateTime? ForgottenAt(Armed armed)
    {
        DateTime? at = null;
        foreach (var gap in SilencesOf(armed.Heartbeat, armed.By))
        {
            if (gap.To < DateTime.MaxValue && gap.To - gap.From > Heartbeats.Forgotten && !(gap.To < at))
                at = gap.To;
        }
        return at;
    }

    private static bool IsOf(Armed armed, long partition, string platform) => armed.Heartbeat.Partition == partition
        && (armed.Heartbeat.Platform == "" || armed.Heartbeat.Platform == platform);

    /// <summary>What the gaps of all have in common; none: nothing.</summary>
    private static List<Gap> Common(List<List<Gap>> all)
    {
        var common = all.Count == 0 ? [] : all[0];
        foreach (var gaps in all)
            common = Gaps.Intersect(common, gaps);
        return common;
    }

    /// <summary>
    /// The services of which the stored runs with gaps laid over are not what the facts give: an alert ended
    /// while a heartbeat was silent, or was given up because of a gap (3.4, 3.5).
    /// </summary>
    /// <param name="from">Gaps that ended earlier do not matter.</param>
    public IReadOnlySet<long> Affected(Snapshot snapshot, DateTime from)
    {
        if (_affected.TryGetValue(from, out var affected))
            return affected;
        _affected[from] = affected = [];
        if (IsEmpty)
            return affected;
        using (var ended = snapshot.Query("""
            SELECT r.service FROM main.timeline r INDEXED BY timeline_time
            WHERE r.partition = ?1 AND r.at >= ?2 AND r.at < ?3
            """))
        {
            foreach (var partition in _partitions)
            {
                foreach (var gap in Gaps.Unite(_silences.Where(s => s.Heartbeat.Partition == partition
                    && s.Gap.To > from).Select(s => s.Gap)))
                {
                    ended.Bind(1, partition).Bind(2, UnixTime.From(gap.From))
                        .Bind(3, gap.To < DateTime.MaxValue ? UnixTime.From(gap.To) : UnixTime.Open);
                    while (ended.Step())
                        affected.Add(ended.Number(0));
                }
            }
        }
        // What was given up is unknown; of all partitions, which are more than need be.
        var gaps = new Gaps(Gaps.Unite(_silences.Select(s => s.Gap)
            .Concat(_absences.Where(a => a.Gap.Id != 0).Select(a => a.Gap)).Where(g => g.To > from)), []);
        using var unknown = snapshot.Query("""
            SELECT r.service, r.at, r.until FROM main.timeline r INDEXED BY timeline_ended
                CROSS JOIN observation o ON o.id = r.observation
            WHERE r.status IN (1, 2, 3) AND r.status = 3 AND r.until < 9000000000000000 AND r.until > ?1 AND o.kind = 3
            UNION ALL SELECT s.id, s.since, 9000000000000000
                FROM service s INDEXED BY service_attention WHERE s.status = 3 AND s.status <> 0
            """);
        for (unknown.Bind(1, from > DateTime.UnixEpoch ? UnixTime.From(from) : 0); unknown.Step();)
        {
            var until = unknown.Number(2) == UnixTime.Open ? DateTime.MaxValue : UnixTime.Read(unknown.Number(2));
            if (gaps.Overlaps(UnixTime.Read(unknown.Number(1)), until))
                affected.Add(unknown.Number(0));
        }
        return affected;
    }

    /// <summary>Whether somebody watches a platform's services at a moment; null: no heartbeat says.</summary>
    public bool? IsWatched(long partition, string platform, DateTime now)
    {
        var place = $"{partition}\n{platform}";
        if (!_watched.TryGetValue(place, out var isWatched))
            _watched[place] = isWatched = !_armed.Any(a => IsOf(a, partition, platform) && a.Last > (ForgottenAt(a) ?? default)
                && _expected?.Contains(a.Heartbeat.Name) != false) ? null : !Of(partition, platform).IsHeartbeatSilent(now);
        return isWatched;
    }
}

/// <summary>What notes say of a service.</summary>
/// <param name="All">Those that hold, in the order of their begins.</param>
/// <param name="Corrections">What they say that was, in order; none overlaps another.</param>
/// <param name="Retired">From when to when the service is no more, unless an alert comes that began later; each by itself.</param>
internal sealed record ServiceNotes(
    IReadOnlyList<Note> All, Interval[] Maintenance, Interval[] Excluded,
    IReadOnlyList<(Interval Span, NoteVersion Note)> Corrections, Interval[] Retired)
{
    public static readonly ServiceNotes None = new([], [], [], [], []);

    /// <summary>The note by which a moment is under maintenance, of several the one that was received last.</summary>
    public Note? MaintenanceAt(DateTime moment, ServiceKey service)
    {
        var at = UnixTime.From(moment);
        return Interval.Length(Maintenance, at, at + 1) == 0 ? null : All.Where(n => n.Last.Kind == NoteKind.Maintenance
            && Interval.Length(n.Announced(f => f.Takes(service)), at, at + 1) > 0).MaxBy(n => n.Last.Received);
    }

    /// <summary>Those that touch a stretch.</summary>
    public IReadOnlyList<Note> Touching(long from, long to) =>
        All.Count == 0 ? [] : [.. All.Where(n => n.Last.Span.From < to && n.Last.Span.To > from)];
}

/// <summary>The notes of a store, as they hold for services.</summary>
internal sealed class NoteFacts
{
    private readonly List<Note> _notes;

    /// <summary>By the platform that they name alone; null: they name none, or several.</summary>
    private readonly ILookup<(string Partition, string? Platform), Note> _ofPlatform;

    // Services come in the order of families.
    private ServiceKey _family;
    private List<Note> _ofFamily = [];
    private ServiceNotes? _ofAll;

    /// <summary>Those whose last version was received first come first.</summary>
    private readonly Comparer<Note> _byReceipt;

    /// <param name="until">Versions that were recorded later do not count.</param>
    public NoteFacts(Snapshot snapshot, long until)
    {
        var database = snapshot.Database;
        _byReceipt = Comparer<Note>.Create((a, b) =>
            a.Last.Received != b.Last.Received ? a.Last.Received.CompareTo(b.Last.Received)
            : string.CompareOrdinal(NoteBook.LineOf(database, a.Last), NoteBook.LineOf(database, b.Last)));
        _notes = [.. NoteBook.Read(database, until, withText: false).Where(n => !n.Last.IsWithdrawn)
            .OrderBy(n => n.Last.From)];
        _ofPlatform = _notes.ToLookup(n => (n.Last.Filter.Partition,
            n.Last.Filter.Platform is { } platform && !platform.EndsWith('*') ? platform : null));
    }

    /// <summary>Those that hold, of a kind.</summary>
    public IEnumerable<Note> Of(NoteKind kind) => _notes.Where(n => n.Last.Kind == kind);

    public ServiceNotes Of(ServiceKey service)
    {
        if (_notes.Count == 0)
            return ServiceNotes.None;
        var family = service with { Location = "" };
        if (_family != family)
        {
            bool OfFamily(Note note) => (note.Last.Filter with { Location = null }).Takes(family);
            (_family, _ofFamily) = (family, [.. _ofPlatform[(family.Partition, family.Platform)]
                .Concat(_ofPlatform[(family.Partition, null)]).Where(OfFamily).OrderBy(n => n.Last.From)]);
            _ofAll = _ofFamily.Count == 0 ? ServiceNotes.None
                : _ofFamily.Exists(n => n.Versions.Any(v => v.Filter.Location != null)) ? null : Made(_ofFamily, service);
        }
        return _ofAll ?? Made(_ofFamily.FindAll(n => n.Last.Filter.Takes(service)), service);
    }

    private ServiceNotes Made(List<Note> notes, ServiceKey service)
    {
        IEnumerable<Note> Of(NoteKind kind) => notes.Where(n => n.Last.Kind == kind);
        var corrections = new List<(Interval Span, NoteVersion Note)>();
        Interval[] taken = [];
        // Of those that overlap holds what was received last.
        foreach (var note in Of(NoteKind.Correction).OrderDescending(_byReceipt))
        {
            corrections.AddRange(Interval.Without([note.Last.Span], taken).Select(s => (s, note.Last)));
            taken = Interval.United(taken.Append(note.Last.Span));
        }
        corrections.Sort(static (a, b) => a.Span.From.CompareTo(b.Span.From));
        return new ServiceNotes(notes,
            Interval.United(Of(NoteKind.Maintenance).SelectMany(n => n.Announced(f => f.Takes(service)))),
            Interval.United(Of(NoteKind.Excluded).Select(n => n.Last.Span)), corrections,
            [.. Of(NoteKind.Retired).Select(n => n.Last.Span)]);
    }
}

/// <summary>Answers questions from a snapshot.</summary>
/// <param name="asOf">Answers from what was recorded until then; null: all.</param>
internal sealed class Questions(Snapshot snapshot, TimelineRules rules, DateTime now, DateTime? asOf = null)
{
    /// <summary>Answers by the rules that are stored.</summary>
    /// <param name="asOf">Null: as of the snapshot.</param>
    public static Questions Of(Snapshot snapshot, DateTime? asOf = null) =>
        new(snapshot, snapshot.Rules, snapshot.Moment, asOf);

    public Snapshot Snapshot => snapshot;

    /// <summary>An unknown of so long ends an outage.</summary>
    public static readonly TimeSpan EndsOutage = TimeSpan.FromDays(1);

    /// <summary>Up to so many, or one in so many, are few: their runs are sorted.</summary>
    private const int FewServices = 20;

    private readonly DateTime? _oldest = snapshot.Oldest;
    private ServiceFilter? _derived;
    private DateTime? _derivedFrom;
    private bool _isDerivedWithNotes;

    private GapFacts? _gapFacts;
    private readonly Dictionary<string, long> _partitionIds = [];

    private GapFacts GapFacts => _gapFacts ??= new GapFacts(snapshot, Recorded);

    private NoteFacts? _noteFacts;

    private NoteFacts NoteFacts => _noteFacts ??= new NoteFacts(snapshot, Recorded);

    private readonly Dictionary<string, Status> _statuses = [];

    private Status StatusOf(string name)
    {
        if (!_statuses.TryGetValue(name, out var status))
        {
            using var rows = snapshot.Query("SELECT id FROM status WHERE name = ?1");
            _statuses[name] = status = (Status)(rows.Bind(1, name).Number() ?? (long)Status.Unknown);
        }
        return status;
    }

    /// <summary>What is laid over a service's runs: corrections, up to the clock, and where it is no more (null).</summary>
    private List<(Interval Span, Status? Status, long Row)> OverlayOf(long id, ServiceKey service)
    {
        var notes = NoteFacts.Of(service);
        if (notes.Corrections.Count == 0 && notes.Retired.Length == 0)
            return [];
        // As of a day on which nothing had come of it, it was none.
        using var heard = snapshot.Query("SELECT 1 FROM observation WHERE service = ?1 AND id <= ?2 LIMIT 1");
        if (heard.Bind(1, id).Bind(2, Through).Number() == null)
            return [];
        var now = UnixTime.From(Moment);
        var retired = RetiredOf(id, notes);
        var laid = retired.Where(r => r.From <= now).Select(r => (Span: r, Status: (Status?)null, Row: 0L)).ToList();
        foreach (var (span, note) in notes.Corrections.Where(c => c.Span.From <= now))
            laid.AddRange(Interval.Without([span], retired).Where(s => s.From <= now)
                .Select(s => (s, (Status?)StatusOf(note.Status!), note.Row)));
        laid.Sort(static (a, b) => a.Span.From.CompareTo(b.Span.From));
        return laid;
    }

    /// <summary>When a service is no more, ahead of the clock too.</summary>
    private Interval[] RetiredOf(long id, ServiceNotes notes) => notes.Retired.Length == 0 ? [] : Interval.United(
        notes.Retired.Select(r => r with { To = Math.Min(r.To, LaterAlert(id, r.From) ?? UnixTime.Open) }));

    /// <summary>The first alert of a service that began later; null: none did.</summary>
    private long? LaterAlert(long service, long from)
    {
        using var alert = snapshot.Query("""
            SELECT min(starts) FROM observation WHERE service = ?1 AND starts > ?2 AND starts <= ?3 AND id <= ?4
            """);
        return alert.Bind(1, service).Bind(2, from).Bind(3, UnixTime.From(Moment)).Bind(4, Through).Number();
    }

    /// <summary>The last observation that counts.</summary>
    private long Through => asOf is { } past ? snapshot.LastObservation(past) : snapshot.Through;

    /// <summary>The runs of a service with notes laid over them.</summary>
    private IEnumerable<Run> Lay(List<(Interval Span, Status? Status, long Row)> overlay, IEnumerable<Run> runs)
    {
        var (next, told, now) = (0, -1, UnixTime.From(Moment));
        // No gap touches what a note says.
        Run Noted(int i) => new(UnixTime.Read(overlay[i].Span.From),
            overlay[i].Span.To > now ? null : UnixTime.Read(overlay[i].Span.To), overlay[i].Status!.Value, true, -overlay[i].Row);
        foreach (var run in runs)
        {
            var (from, end) = (UnixTime.From(run.From), run.To is { } to ? UnixTime.From(to) : UnixTime.Open);
            for (; next < overlay.Count && overlay[next].Span.From < end && from < end; next++)
            {
                var span = overlay[next].Span;
                if (span.From > from)
                    yield return run with { From = UnixTime.Read(from), To = UnixTime.Read(span.From) };
                if (overlay[next].Status != null && told < next)
                    yield return Noted(next);
                (told, from) = (next, Math.Max(from, span.To > now ? UnixTime.Open : span.To));
                if (span.To > end)
                    break;
            }
            if (from < end)
                yield return run with { From = UnixTime.Read(from) };
        }
        for (; next < overlay.Count; next++)
        {
            if (overlay[next].Status != null && told < next)
                yield return Noted(next);
        }
    }

    /// <summary>The services that a note's filter takes, in no order.</summary>
    /// <param name="isListed">Only those that status and page list.</param>
    private IEnumerable<long> Matching(NoteFilter filter, bool isListed = false)
    {
        using var rows = BoundTo(filter, "s.id", isListed ? $"AND {Listed}" : "");
        if (isListed)
            rows.Bind(20, Forgotten);
        while (rows.Step())
            yield return rows.Number(0);
    }

    /// <summary>How many services a note's filter takes, of those that were known.</summary>
    public long CountMatching(NoteFilter filter)
    {
        using var count = BoundTo(filter, "count(*)", asOf == null ? ""
            : "AND EXISTS (SELECT 1 FROM observation o WHERE o.service = s.id AND o.id <= ?10)");
        if (asOf != null)
            count.Bind(10, Through);
        return count.Number() ?? 0;
    }

    private SqliteStatement BoundTo(NoteFilter filter, string columns, string condition = "")
    {
        (string Column, string? Pattern)[] names = [("f.platform", filter.Platform), ("f.service", filter.Service),
            ("f.facet", filter.Facet), ("s.location", filter.Location)];
        var rows = snapshot.Query($"""
            SELECT {columns} FROM partition p CROSS JOIN family f ON f.partition = p.id CROSS JOIN service s ON s.family = f.id
            WHERE p.name = ?1
            """ + string.Concat(names.Select((n, i) => n.Pattern == null ? ""
                : n.Pattern.EndsWith('*') ? $" AND substr({n.Column}, 1, length(?{i + 2})) = ?{i + 2}"
                : $" AND {n.Column} = ?{i + 2}")) + $" {condition}");
        rows.Bind(1, filter.Partition);
        foreach (var (i, (_, pattern)) in names.Index())
        {
            if (pattern != null)
                rows.Bind(i + 2, pattern.EndsWith('*') ? pattern[..^1] : pattern);
        }
        return rows;
    }

    /// <summary>The services whose runs notes change from a time on.</summary>
    private HashSet<long> Noted(DateTime from, string? partition = null) => [.. NoteFacts.Of(NoteKind.Correction)
        .Concat(NoteFacts.Of(NoteKind.Retired)).Select(n => n.Last)
        .Where(n => n.From <= Moment && !(n.To <= from) && (partition == null || n.Filter.Partition == partition))
        .SelectMany(n => Matching(n.Filter))];

    /// <summary>Of each partition that has announced maintenance, how many services are under it now.</summary>
    public Dictionary<string, int> UnderMaintenance()
    {
        var (services, now) = (new Dictionary<string, HashSet<long>>(), UnixTime.From(Moment));
        foreach (var note in NoteFacts.Of(NoteKind.Maintenance))
        {
            if (!services.TryGetValue(note.Last.Filter.Partition, out var those))
                services[note.Last.Filter.Partition] = those = [];
            // Both versions have to be about it.
            var inForce = note.Versions.LastOrDefault(v => v.Received <= Moment);
            if (inForce != null && Interval.Length(note.Announced(_ => true), now, now + 1) > 0)
                those.UnionWith(inForce == note.Last ? Matching(note.Last.Filter, isListed: true)
                    : Matching(note.Last.Filter, isListed: true).Intersect(Matching(inForce.Filter)));
        }
        // What is no more is not counted.
        foreach (var note in NoteFacts.Of(NoteKind.Retired).Select(n => n.Last).Where(n => n.From <= Moment && !(n.To <= Moment)))
        {
            if (services.TryGetValue(note.Filter.Partition, out var those))
                those.ExceptWith(Matching(note.Filter).Where(s => those.Contains(s) && LaterAlert(s, note.Span.From) == null).ToList());
        }
        return services.ToDictionary(s => s.Key, s => s.Value.Count);
    }

    private readonly Dictionary<long, Note> _withText = [];

    /// <summary>A note whose last version has its text.</summary>
    private Note WithText(Note note)
    {
        if (!_withText.TryGetValue(note.Last.Row, out var whole))
            _withText[note.Last.Row] = whole =
                new Note([.. note.Versions.SkipLast(1), NoteBook.WithText(snapshot.Database, note.Last)]);
        return whole;
    }

    /// <summary>What the observation, the gap or the note says on which a run rests.</summary>
    private (string Text, DateTime? Received) TextOf(ObservedTexts texts, long observation, bool isUp)
    {
        if (observation >= 0)
            return texts.Of(observation, isUp);
        if (GapFacts.TextOf(observation) is { Text: not "" } gap)
            return gap;
        using var note = snapshot.Query(
            "SELECT text, author || coalesce(', ' || author_name, ''), received FROM note WHERE id = ?1");
        return note.Bind(1, -observation).Step()
            ? ($"corrected: {note.Text(0)} ({note.Text(1)})", UnixTime.Read(note.Number(2))) : ("", null);
    }

    /// <summary>Facts that were recorded later are not in the answer.</summary>
    private long Recorded =>
        asOf == null && snapshot.Through == long.MaxValue ? long.MaxValue : UnixTime.From(Moment);

    /// <summary>The gaps of a service, or of another one of its platform.</summary>
    private Gaps GapsOf(ServiceKey service) =>
        GapFacts.IsEmpty ? Gaps.None : GapFacts.Of(PartitionId(service.Partition), service.Platform);

    private long PartitionId(string name)
    {
        if (!_partitionIds.TryGetValue(name, out var id))
        {
            using var rows = snapshot.Query("SELECT id FROM partition WHERE name = ?1");
            _partitionIds[name] = id = rows.Bind(1, name).Number() ?? 0;
        }
        return id;
    }

    /// <summary>The moment that the answers are of; what is later is not yet.</summary>
    public DateTime Moment => asOf ?? now;

    /// <summary>The present of each service that a filter takes, in the order of names.</summary>
    /// <param name="services">Only of these, in this order; null: of all.</param>
    public IEnumerable<PresentRow> Present(
        ServiceFilter filter, IEnumerable<(long Id, ServiceKey Service)>? services = null)
    {
        var timeline = Timeline(filter, Moment - Recent);
        using var runs = snapshot.Query($"""
            SELECT since, at, status, observation, open FROM {timeline} WHERE service = ?1 AND (?2 OR status <> 3)
            ORDER BY at DESC LIMIT 1
            """);
        using var seen = snapshot.Query($"""
            SELECT max(max(received), coalesce((SELECT max(seen) FROM open WHERE service = ?1 AND ?3), 0))
            FROM observation WHERE service = ?1 AND id <= ?2 AND kind <> 3
            """);
        seen.Bind(2, Through).Bind(3, asOf == null ? 1 : 0);
        using var earlier = snapshot.Query($"""
            SELECT at, until, status, open, observation FROM {timeline} WHERE service = ?1 AND at < ?2 ORDER BY at
            """);
        IEnumerable<Run> Before(long service, DateTime end)
        {
            for (earlier.Bind(1, service).Bind(2, UnixTime.From(end)); earlier.Step();)
            {
                var run = ServiceFacts.RunOf(earlier);
                yield return run with { To = run.To < end ? run.To : end };
            }
        }

        using var texts = new ObservedTexts(snapshot);
        var forgotten = UnixTime.From(Moment - snapshot.Forget);
        foreach (var (id, service) in services ?? Services(filter))
        {
            var isWatched = IsWatched(service.Partition, service.Platform);
            // While nobody watches it is what it was before, as far as that is known.
            if (!runs.Bind(1, id).Bind(2, isWatched == false ? 0 : 1).Step()
                && !(isWatched == false && runs.Bind(1, id).Bind(2, 1).Step()))
                continue;
            var (since, time, status) =
                (UnixTime.Read(runs.Number(0)), UnixTime.Read(runs.Number(1)), (Status)runs.Number(2));
            var (observation, isOpen) = (runs.Number(3), runs.Number(4) != 0);
            runs.Reset();
            var last = seen.Bind(1, id).Number() ?? 0;
            if (services == null && !isOpen && last < forgotten && !HasOpen(id))
                continue;
            // Since a gap it is so again.
            if (!isOpen && status != Status.Unknown && GapsOf(service).EndBefore(Moment) is { } again)
                (since, time) = (again > since ? again : since, again > time ? again : time);
            if (OverlayOf(id, service) is { Count: > 0 } overlay)
            {
                var gaps = GapsOf(service);
                var before = gaps.All.Count > 0 ? gaps.Lay(Before(id, since)) : Before(id, since);
                var laid = Lay(overlay, before.Append(new Run(since, null, status, isOpen, observation))).ToList();
                if (laid is not [.., { To: null } now])
                    continue;
                // What a note says began then; what was before and after it, goes on after it.
                var first = laid.Count - 1;
                while (first > 0 && laid[first - 1].Status == now.Status && laid[first - 1].To == laid[first].From)
                    first--;
                (since, time) = (laid[first].From, time > now.From ? time : now.From);
                (status, observation) = (now.Status, now.Observation);
            }
            var beat = asOf == null && Beat(service) is { } told && told > last ? told : last;
            yield return new PresentRow(id, service, snapshot.NameOf(status), since, time,
                TextOf(texts, observation, status == Status.Up).Text, beat == 0 ? null : UnixTime.Read(beat), isWatched,
                NoteFacts.Of(service).MaintenanceAt(Moment, service)?.Last.Id);
        }
    }

    /// <summary>The gaps of a platform's services that touch a range.</summary>
    public IEnumerable<SilentTime> Silent(string partition, string platform, DateTime from, DateTime to) =>
        GapFacts.Within(PartitionId(partition), platform, from, to);

    /// <summary>Whether somebody watches a platform's services; null: no heartbeat tells.</summary>
    public bool? IsWatched(string partition, string platform) =>
        GapFacts.IsWatched(PartitionId(partition), platform, Moment);

    /// <summary>An uncertain end in an earlier gap is over by now.</summary>
    private TimeSpan Recent => rules.Pause + EndsOutage;

    private bool HasOpen(long service)
    {
        using var open = snapshot.Query("SELECT 1 FROM open WHERE service = ?1");
        return asOf == null && open.Bind(1, service).Number() != null;
    }

    private Dictionary<(long Partition, string Platform), long>? _beats;

    /// <summary>The last beat that speaks for a service; null: none does.</summary>
    private long? Beat(ServiceKey service)
    {
        if (_beats == null)
        {
            _beats = [];
            using var rows = snapshot.Query("SELECT partition, platform, max(last) FROM beat GROUP BY 1, 2");
            while (rows.Step())
                _beats[(rows.Number(0), rows.Text(1))] = rows.Number(2);
        }
        var partition = PartitionId(service.Partition);
        return _beats.TryGetValue((partition, service.Platform), out var own) ? own
            : _beats.TryGetValue((partition, ""), out var all) ? all : null;
    }

    /// <summary>The changes of the services that a filter takes, in order of time.</summary>
    /// <param name="from">Inclusive; null: from the first on.</param>
    /// <param name="to">Exclusive; null: up to the last.</param>
    /// <param name="after">Goes on after this change: its time and <see cref="ChangeRow.Place"/>.</param>
    /// <param name="isNewestFirst">The other way round.</param>
    public IEnumerable<ChangeRow> History(ServiceFilter filter, DateTime? from, DateTime? to,
        (DateTime Time, long Place)? after = null, bool isNewestFirst = false)
    {
        using var texts = new ObservedTexts(snapshot);
        using var changes = Changes(filter, new(from, to, after, isNewestFirst), withGaps: true).GetEnumerator();
        var ahead = (Task<List<ChangeRow>>?)Task.FromResult(Next(changes, texts, FirstBatch));
        try
        {
            for (var size = FirstBatch; ahead!.GetAwaiter().GetResult() is { Count: > 0 } rows;)
            {
                size = Math.Min(2 * size, LargestBatch);
                ahead = size < LargestBatch ? null : Task.Run(() => Next(changes, texts, LargestBatch));
                foreach (var row in rows)
                    yield return row;
                ahead ??= Task.FromResult(Next(changes, texts, size));
            }
        }
        finally
        {
            // What it reads from is disposed next. Whether it failed nobody asks any more.
            if (ahead != null)
                Task.WaitAny(ahead);
        }
    }

    /// <summary>
    /// So many changes are held to be told: their texts are read in the order in which they are stored, in a
    /// long answer while those before are told. The first are few, since often no more is wanted.
    /// </summary>
    private const int FirstBatch = 256, LargestBatch = 16 * 1024, TextsAtOnce = 4096;

    /// <summary>In characters, of a batch; those that are read at once may be more.</summary>
    private const int LargestText = 2 * 1024 * 1024;

    /// <summary>Questions that are answered at a time share what may be held.</summary>
    private int ShareOf(int size) => Math.Max(FirstBatch, size / Math.Max(1, snapshot.Names.Questions));

    private List<ChangeRow> Next(
        IEnumerator<(ServiceKey Service, long Id, StatusChange Change)> changes, ObservedTexts texts,
        int size)
    {
        var (rows, length) = (new List<ChangeRow>(), 0);
        var batch = new List<(ServiceKey Service, long Id, StatusChange Change)>();
        var (most, longest, atOnce) = (ShareOf(size), ShareOf(LargestText), ShareOf(TextsAtOnce));
        for (var isMore = true; isMore && rows.Count < most && length < longest;)
        {
            batch.Clear();
            while (batch.Count < Math.Min(most - rows.Count, atOnce) && (isMore = changes.MoveNext()))
                batch.Add(changes.Current);
            var told = texts.Of(batch.Select(c => c.Change));
            for (var i = 0; i < batch.Count; i++)
            {
                var (service, id, change) = batch[i];
                var (text, received) = change.Observation < 0 ? TextOf(texts, change.Observation, isUp: false) : told[i];
                rows.Add(new ChangeRow(id, service, snapshot.NameOf(change.Status), change.Time, text, received));
                length += text.Length + service.Platform.Length + service.Service.Length
                    + service.Facet.Length + service.Location.Length;
            }
        }
        return rows;
    }

    /// <summary>
    /// A row for each service that was known before the end of the range, or for each of its periods before whose
    /// end it was; without a begin the range begins with its first known moment, and without both it is the last
    /// whole period.
    /// </summary>
    public IEnumerable<ReportRow> Report(
        ServiceFilter filter, DateTime? from, DateTime? to, Counting? how = null)
    {
        var counting = how ?? Counting.Plain;
        if (counting.Period is { } last && from == null && to == null)
        {
            var whole = Period.Of(last, counting.Zone, Period.Of(last, counting.Zone, Moment).From.AddMilliseconds(-1));
            (from, to) = (whole.From, whole.To);
        }
        var (left, end, now) = (_oldest ?? AlertMapping.Earliest, to ?? Moment, UnixTime.From(Moment));
        // Nothing is known of earlier.
        var begin = from > AlertMapping.Earliest ? from.Value : AlertMapping.Earliest;
        if (end <= begin)
            yield break;
        var given = counting.Period is { } length && from != null
            ? Period.All(length, counting.Zone, begin, end).ToList() : null;
        var hours = counting.Hours?.Within(counting.Zone, given?[0].From ?? begin,
            counting.Period is { } touching ? Period.Of(touching, counting.Zone, end.AddMilliseconds(-1)).To : end);
        foreach (var (id, service, runs) in Runs(filter, given?[0].From ?? from ?? DateTime.MinValue))
        {
            var ranges = given;
            List<FiguresSum> sums = [];
            var known = DateTime.MaxValue;
            var begun = 0;
            var notes = NoteFacts.Of(service);
            var retired = RetiredOf(id, notes);
            var counted = retired.Length == 0 ? hours : Interval.Without(hours ?? [new(0, UnixTime.Open)], retired);
            foreach (var run in runs)
            {
                if (sums.Count == 0)
                {
                    known = run.From > left ? run.From : left;
                    if (known >= (given?[^1].To ?? end))
                        break;
                    ranges ??= counting.Period is { } each ? [.. Period.All(each, counting.Zone, known, end)]
                        : [new Period("", from ?? known, end)];
                    sums = ranges.ConvertAll(r => new FiguresSum(
                        new Interval(UnixTime.From(r.From), UnixTime.From(r.To)), UnixTime.From(left), now, counted,
                        notes.Maintenance, notes.Excluded));
                }
                var until = run.To == null ? UnixTime.Open : UnixTime.From(run.To.Value);
                while (begun < sums.Count && ranges![begun].To <= run.From)
                    begun++;
                // What is before a period tells whether an outage goes on in it.
                for (var i = begun; i < sums.Count && (run.To == null || ranges![i].From < run.To + EndsOutage); i++)
                    sums[i].Add(UnixTime.From(run.From), until, run.Status);
            }
            for (var i = 0; i < sums.Count; i++)
            {
                // It may have been retired all the while.
                var (begins, ends) = (UnixTime.From(ranges![i].From), UnixTime.From(ranges[i].To));
                if (known < ranges[i].To && Interval.Length(retired, begins, ends) < ends - begins)
                    yield return new ReportRow(service, counting.Period == null ? null : ranges[i].Name, ranges[i].From,
                        ranges[i].To, sums[i].Result);
            }
        }
    }

    /// <summary>
    /// The outages with counted time down in a range, in the order of their begins, of one begin in that of
    /// services. Their begins and ends are not cut; they are held until all are known.
    /// </summary>
    /// <param name="after">With which the last answer ended.</param>
    public IEnumerable<OutageRow> Outages(ServiceFilter filter, DateTime? from, DateTime? to, Counting counting,
        (DateTime Time, long Place)? after = null, bool isNewestFirst = false)
    {
        var begin = UnixTime.From(Left(from) ?? AlertMapping.Earliest);
        var end = UnixTime.From(to < Moment ? to.Value : Moment);
        var hours = counting.Hours?.Within(counting.Zone, UnixTime.Read(begin), UnixTime.Read(end));
        var found = new List<OutageRow>();
        var earlier = new List<(long Id, ServiceKey Service)>();
        void Find(long id, ServiceKey service, List<Run> runs) =>
            found.AddRange(OutagesOf(id, service, runs, new Interval(begin, end), hours).Where(o => o.Down > 0));
        foreach (var (id, service, some) in Runs(filter, UnixTime.Read(begin)))
        {
            var runs = some.ToList();
            // What notes say is there from the first on: what went on a day before is meant.
            if (runs.Find(r => r.To == null || UnixTime.From(r.To.Value) > begin - (long)EndsOutage.TotalMilliseconds)
                is { Status: Status.Down or Status.Unknown })
                earlier.Add((id, service));
            else
                Find(id, service, runs);
        }
        // What went on there may have begun earlier.
        foreach (var (id, service, runs) in Runs(filter, DateTime.MinValue, earlier))
            Find(id, service, [.. runs]);
        var direction = isNewestFirst ? -1 : 1;
        found.Sort((a, b) => direction * (a.From, a.Id).CompareTo((b.From, b.Id)));
        using var texts = new ObservedTexts(snapshot);
        foreach (var outage in found)
        {
            if (after is not { } last || direction * (outage.From, outage.Id).CompareTo((last.Time, last.Place)) > 0)
                yield return outage with
                {
                    Description = TextOf(texts, outage.Observation, isUp: false).Text,
                    Notes = [.. NoteFacts.Of(outage.Service).Touching(UnixTime.From(outage.From), UnixTime.From(outage.To ?? Moment))
                        .Where(n => n.Last.Kind != NoteKind.Retired || !HasComeBack(outage, n.Last)).Select(WithText)],
                };
        }
    }

    /// <summary>Whether a service that was retired is back with an outage.</summary>
    private bool HasComeBack(OutageRow outage, NoteVersion retired) =>
        LaterAlert(outage.Id, retired.Span.From) <= UnixTime.From(outage.From);

    private IEnumerable<OutageRow> OutagesOf(long id, ServiceKey service, List<Run> runs, Interval range, Interval[]? hours)
    {
        OutageRow? outage = null;
        var silent = TimeSpan.Zero;
        var notes = NoteFacts.Of(service);
        var excluded = Interval.Without(notes.Excluded, notes.Maintenance);
        var end = DateTime.MinValue;
        foreach (var run in runs)
        {
            var until = run.To ?? Moment;
            // It was retired in between.
            if (outage != null && run.From > end)
            {
                yield return outage with { To = outage.Last };
                outage = null;
            }
            end = until;
            silent = run.Status == Status.Unknown ? silent + (until - run.From) : TimeSpan.Zero;
            if (run.Status == Status.Down)
            {
                outage ??= new OutageRow(id, service, run.From, null, 0, "", run.Observation);
                var (from, to) = (Math.Max(range.From, UnixTime.From(run.From)), Math.Min(range.To, UnixTime.From(until)));
                outage = outage with { Last = until };
                foreach (var part in Interval.Counted(hours, from, to))
                {
                    outage = outage with
                    {
                        Down = outage.Down + (part.To - part.From),
                        Maintenance = outage.Maintenance + Interval.Length(notes.Maintenance, part.From, part.To),
                        Excluded = outage.Excluded + Interval.Length(excluded, part.From, part.To),
                    };
                }
            }
            else if (outage != null && (run.Status != Status.Unknown || silent >= EndsOutage))
            {
                yield return outage with { To = outage.Last };
                outage = null;
            }
        }
        if (outage != null)
            yield return end < Moment ? outage with { To = outage.Last } : outage;
    }

    /// <summary>
    /// The runs of each service that a filter takes, from the last on that began a day or more before a time:
    /// an outage that goes on there may have begun earlier. They are to be read before the next service is.
    /// </summary>
    /// <param name="services">Only of these, in this order; null: of all.</param>
    public IEnumerable<(long Id, ServiceKey Service, IEnumerable<Run> Runs)> Runs(
        ServiceFilter filter, DateTime from, IEnumerable<(long Id, ServiceKey Service)>? services = null)
    {
        using var rows = snapshot.Query($"""
            SELECT at, until, status, open, observation FROM {Timeline(filter, from)}
            WHERE service = ?1 AND until > ?2 ORDER BY at
            """);
        var first = from > DateTime.UnixEpoch + EndsOutage ? UnixTime.From(from - EndsOutage) : 0;
        IEnumerable<Run> Of(long service)
        {
            for (rows.Bind(1, service).Bind(2, first); rows.Step();)
                yield return ServiceFacts.RunOf(rows);
        }

        foreach (var (id, service) in services ?? Services(filter))
        {
            var runs = GapsOf(service) is { All.Count: > 0 } gaps ? gaps.Lay(Of(id)) : Of(id);
            yield return (id, service, OverlayOf(id, service) is { Count: > 0 } notes ? Lay(notes, runs) : runs);
        }
    }

    /// <summary>
    /// The notes about services that a filter may take, withdrawn ones too, of which a version touches a range,
    /// in the order of their begins.
    /// </summary>
    public IReadOnlyList<Note> Notes(ServiceFilter filter, DateTime? from, DateTime? to)
    {
        bool Touches(NoteVersion note) => !(note.From >= to) && !(note.To <= from)
            && Fits(note.Filter.Platform, filter.Platform) && Fits(note.Filter.Service, filter.Service)
            && Fits(note.Filter.Facet, filter.Facet) && Fits(note.Filter.Location, filter.Location);
        static bool Fits(string? pattern, string? name) => name == null || NoteFilter.Fits(pattern, name);
        return [.. NoteBook.Read(snapshot.Database, Recorded, filter.Partition).Where(n => n.Versions.Any(Touches))
            .OrderBy(n => n.Last.From)];
    }

    /// <summary>A beginning, but not before what retention has left.</summary>
    private DateTime? Left(DateTime? from) => _oldest > (from ?? DateTime.MinValue) ? _oldest : from;

    /// <summary>
    /// The changes of a group, how many are up after each, and for how long too few were, as Onix's report
    /// ox_ses_events_threshold has them where it is right. It begins with the first change of all.
    /// </summary>
    public IEnumerable<ThresholdRow> Threshold(
        ServiceFilter filter, int threshold, DateTime? from, DateTime? to)
    {
        var up = new UpServices(Ids(filter));
        DateTime? since = null;
        var until = to is { } end && end < Moment ? end : Moment;
        if (_oldest is { } oldest && oldest < until)
        {
            var isDown = false;
            foreach (var (id, status) in StatusesAt(filter, oldest))
            {
                isDown |= status == Status.Down;
                up.Set(id, status == Status.Up);
            }
            since = isDown && up.Count < threshold ? oldest : null;
        }
        foreach (var (service, id, change) in Changes(filter, new(null, until), withGaps: false))
        {
            if (change.Status == Status.Unknown)
                continue;
            var under = TimeSpan.Zero;
            if (change.Status is Status.Up or Status.Down)
                up.Set(id, change.Status == Status.Up);
            if (change.Status == Status.Down)
                since ??= up.Count < threshold ? change.Time : null;
            if (up.Count >= threshold && since is { } began)
                (under, since) = (change.Time - began, null);
            if (from == null || change.Time >= from)
                yield return new ThresholdRow(
                    service, snapshot.NameOf(change.Status), change.Time, up.Count, under);
        }
    }

    /// <summary>What each service was just before a time, and told Onix; those not known are left out.</summary>
    private IEnumerable<(long Id, Status Status)> StatusesAt(ServiceFilter filter, DateTime time)
    {
        using var rows = snapshot.Query($"""
            SELECT status FROM {Timeline(filter, null)}
            WHERE service = ?1 AND at < ?2 AND status <> 3 ORDER BY at DESC LIMIT 1
            """);
        foreach (var (id, _) in Services(filter))
        {
            if (rows.Bind(1, id).Bind(2, UnixTime.From(time)).Number() is { } status)
                yield return (id, (Status)status);
        }
    }

    // ---- Services, changes and texts ----

    /// <summary>The services that a filter takes, in the order of names.</summary>
    /// <param name="condition">A further one, where the filter has none.</param>
    public IEnumerable<(long Id, ServiceKey Service)> Services(ServiceFilter filter, string condition = "")
    {
        using var rows = Bound(filter, $"""
            SELECT s.id, f.id, p.name, f.platform, f.service, f.facet, s.location {From(filter)} {condition}
            ORDER BY p.name, f.platform, f.service, f.facet, s.location
            """);
        if (condition != "")
            rows.Bind(20, Forgotten);
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

    /// <summary>Whether a filter takes any service, a forgotten one too.</summary>
    public bool HasService(ServiceFilter filter)
    {
        using var one = Bound(filter, $"SELECT 1 {From(filter)} LIMIT 1");
        return one.Number() != null;
    }

    /// <summary>The numbers of the services that a filter takes, ascending.</summary>
    private long[] Ids(ServiceFilter filter)
    {
        using var count = Bound(filter, $"SELECT count(*) {From(filter)}");
        var ids = new long[count.Number() ?? 0];
        using var rows = Bound(filter, $"SELECT s.id {From(filter)}");
        for (var i = 0; rows.Step(); i++)
            ids[i] = rows.Number(0);
        Array.Sort(ids);
        return ids;
    }

    /// <summary>What a filter gives, in the order of columns.</summary>
    private static (string Column, string? Value)[] Given(ServiceFilter filter)
    {
        (string Column, string? Value)[] fields =
            [("p.name", filter.Partition), ("f.platform", filter.Platform),
            ("f.service", filter.Service), ("f.facet", filter.Facet), ("s.location", filter.Location)];
        return [.. fields.Where(f => f.Value != null)];
    }

    /// <summary>
    /// The part of a query that a filter makes: its services. Its parameters are from the eleventh on, so that
    /// the query can have others.
    /// </summary>
    private static string From(ServiceFilter filter) => """
        FROM partition p CROSS JOIN family f ON f.partition = p.id CROSS JOIN service s ON s.family = f.id
        """ + string.Concat(
            Given(filter).Select((f, i) => $" {(i == 0 ? "WHERE" : "AND")} {f.Column} = ?{11 + i}"));

    private SqliteStatement Bound(ServiceFilter filter, string sql)
    {
        var statement = snapshot.Query(sql);
        foreach (var (i, (_, value)) in Given(filter).Index())
            statement.Bind(11 + i, value);
        return statement;
    }

    /// <summary>Which changes are asked for, and in which order of time; of one time in that of services.</summary>
    private readonly record struct ChangeRange(
        DateTime? From, DateTime? To, (DateTime Time, long Place)? After = null, bool IsNewestFirst = false)
    {
        /// <summary>Whether a change comes after the one with which the last answer ended.</summary>
        public bool IsAhead(DateTime time, long service) =>
            After is not { } last || IsBefore((last.Time, last.Place), (time, service));

        public bool IsBefore((DateTime, long) one, (DateTime, long) other) =>
            IsNewestFirst ? one.CompareTo(other) > 0 : one.CompareTo(other) < 0;
    }

    /// <summary>In order of time: by the index of a partition, or sorted, where services are few in it.</summary>
    /// <param name="withGaps">False: as Onix is told, which knows of no gaps.</param>
    private IEnumerable<(ServiceKey Service, long Id, StatusChange Change)> Changes(
        ServiceFilter filter, ChangeRange range, bool withGaps)
    {
        using var names = new ServiceNames(snapshot);
        var isLaid = withGaps && !GapFacts.IsEmpty;
        var table = Timeline(filter, withGaps ? Left(range.From) ?? DateTime.MinValue : null, withNotes: withGaps);
        using var changes = (isLaid ? LaidChanges(filter, table, range)
            : StoredChanges(filter, table, range, "AND at = since").Select(c => (c.Service, c.Change)))
            .GetEnumerator();
        var batch = new List<(long Service, StatusChange Change)>();
        for (var isMore = true; isMore;)
        {
            batch.Clear();
            while (batch.Count < FirstBatch && (isMore = changes.MoveNext()))
                batch.Add(changes.Current);
            var told = names.Of(batch.Select(c => c.Service));
            for (var i = 0; i < batch.Count; i++)
                yield return (told[i], batch[i].Service, batch[i].Change);
        }
    }

    /// <summary>
    /// With gaps laid over: what is stored, and at the edges of each gap the services that it touches.
    /// </summary>
    private IEnumerable<(long Service, StatusChange Change)> LaidChanges(
        ServiceFilter filter, string table, ChangeRange range)
    {
        var services = ServicesWithGaps(filter);
        var ids = services.Select(s => s.Id).ToArray();
        using var run = snapshot.Query($"""
            SELECT at, until, status, open, observation FROM {table} WHERE service = ?1 AND at < ?2 ORDER BY at DESC LIMIT 1
            """);
        Run? RunAt(long service, DateTime before)
        {
            // A service that is retired is nothing.
            var found = run.Bind(1, service).Bind(2, UnixTime.From(before)).Step()
                && run.Number(1) >= UnixTime.From(before) ? ServiceFacts.RunOf(run) : (Run?)null;
            run.Reset();
            return found;
        }

        // What a service changes to at a time; null: it does not.
        StatusChange? ChangeAt(long service, Gaps gaps, DateTime time)
        {
            if (RunAt(service, time.AddMilliseconds(1)) is not { } at)
                return null;
            at = gaps.Lay(at, time);
            var isSame = RunAt(service, time) is { } before
                && gaps.Lay(before, time.AddMilliseconds(-1)).Status == at.Status;
            return isSame ? null : new StatusChange(time, at.Status, at.Observation);
        }

        IEnumerable<(long Service, StatusChange Change)> Stored()
        {
            foreach (var (service, change, isChange) in StoredChanges(filter, table, range, ""))
            {
                var gaps = services[Array.BinarySearch(ids, service)].Gaps;
                if (gaps.HasEdge(change.Time))
                    continue;
                if (gaps.At(change.Time) != null)
                {
                    if (ChangeAt(service, gaps, change.Time) is { } laid)
                        yield return (service, laid);
                }
                else if (isChange)
                    yield return (service, change);
            }
        }

        IEnumerable<(long Service, StatusChange Change)> AtEdges()
        {
            var (first, last) = (Left(range.From) ?? DateTime.MinValue, range.To < Moment ? range.To.Value : Moment);
            List<DateTime> edges = [.. services.Select(s => s.Gaps).Distinct().SelectMany(g => g.Edges()).Distinct()
                .Where(e => e >= first && (e < last || (e == last && !(range.To <= Moment)))).Order()];
            if (range.IsNewestFirst)
                edges.Reverse();
            foreach (var edge in edges.Where(e => range.IsAhead(e, range.IsNewestFirst ? long.MinValue : long.MaxValue)))
            {
                for (var i = 0; i < services.Count; i++)
                {
                    var (id, gaps) = services[range.IsNewestFirst ? services.Count - 1 - i : i];
                    if (gaps.HasEdge(edge) && range.IsAhead(edge, id) && ChangeAt(id, gaps, edge) is { } change)
                        yield return (id, change);
                }
            }
        }

        using var stored = Stored().GetEnumerator();
        using var atEdges = AtEdges().GetEnumerator();
        for (bool isStored = stored.MoveNext(), isAtEdge = atEdges.MoveNext(); isStored || isAtEdge;)
        {
            if (isStored && (!isAtEdge || range.IsBefore((stored.Current.Change.Time, stored.Current.Service),
                (atEdges.Current.Change.Time, atEdges.Current.Service))))
            {
                yield return stored.Current;
                isStored = stored.MoveNext();
            }
            else
            {
                yield return atEdges.Current;
                isAtEdge = atEdges.MoveNext();
            }
        }
    }

    /// <summary>The services that a filter takes with their gaps, in the order of their numbers.</summary>
    private List<(long Id, Gaps Gaps)> ServicesWithGaps(ServiceFilter filter)
    {
        var services = new List<(long Id, Gaps Gaps)>();
        using var rows = Bound(filter, $"SELECT s.id, p.id, f.platform {From(filter)} ORDER BY s.id");
        while (rows.Step())
            services.Add((rows.Number(0), GapFacts.Of(rows.Number(1), rows.Text(2))));
        return services;
    }

    /// <summary>The runs that are stored, in order of time and service, and whether they change the status.</summary>
    private IEnumerable<(long Service, StatusChange Change, bool IsChange)> StoredChanges(
        ServiceFilter filter, string table, ChangeRange range, string condition)
    {
        var of = $"service IN (SELECT s.id {From(filter)})";
        if (filter.Partition != null && !AreFew(filter))
            of = "partition = (SELECT id FROM partition WHERE name = ?11)"
                + (Given(filter).Length == 1 ? "" : " AND +" + of);
        var (ahead, order) = range.IsNewestFirst ? ("<", "DESC") : (">", "");
        using var rows = Bound(filter, $"""
            SELECT service, at, status, observation, at = since FROM {table}
            WHERE {of}
                AND at >= ?1 AND at < ?2 {condition} AND (?3 IS NULL OR at {ahead} ?3 OR service {ahead} ?4)
            ORDER BY at {order}, service {order}
            """);
        // Of the changes at the time of the last one, those of the services after it are still to come.
        var last = range.After is { } after ? UnixTime.From(after.Time) : (long?)null;
        var first = Left(range.From) is { } begin ? UnixTime.From(begin) : long.MinValue;
        var end = range.To is { } to ? UnixTime.From(to) : UnixTime.Open;
        rows.Bind(1, range.IsNewestFirst ? first : Math.Max(first, last ?? first))
            .Bind(2, range.IsNewestFirst ? Math.Min(end, last + 1 ?? end) : end);
        if (last is { } time)
            rows.Bind(3, time).Bind(4, range.After!.Value.Place);
        while (rows.Step())
            yield return (rows.Number(0), new StatusChange(UnixTime.Read(rows.Number(1)), (Status)rows.Number(2),
                rows.Number(3)), rows.Number(4) != 0);
    }

    /// <summary>Whether a filter takes so few services of its partition that their runs can be sorted.</summary>
    private bool AreFew(ServiceFilter filter)
    {
        if (Given(filter).Length == 1)
            return false;
        using var matching = Bound(filter, $"SELECT count(*) {From(filter)}");
        var count = matching.Number();
        return count <= FewServices
            || count < snapshot.Number("SELECT count(*) FROM service") / FewServices;
    }

    /// <summary>
    /// The table of the timeline, which as of the past is derived first; as of now, of those services of
    /// which it is behind.
    /// </summary>
    /// <param name="from">Gaps that ended before do not matter; null: none do.</param>
    /// <param name="withNotes">With corrections, and without what is retired.</param>
    private string Timeline(ServiceFilter filter, DateTime? from, bool withNotes = false)
    {
        var isDerived = _derived == filter && _isDerivedWithNotes == withNotes
            && (from == null ? _derivedFrom == null : from >= _derivedFrom);
        if (asOf == null && !isDerived)
        {
            _behind ??= snapshot.Behind();
            var noted = withNotes ? Noted(from ?? DateTime.MinValue, filter.Partition) : [];
            _anew = from is { } since ? new HashSet<long>(AffectedOf(filter, since).Concat(_behind).Concat(noted)) : _behind;
        }
        if (asOf == null && _anew!.Count == 0)
        {
            // The table is another filter's.
            _derived = null;
            return "main.timeline";
        }
        if (!isDerived && asOf is { } moment)
            Derive(moment, snapshot.LastObservation(moment), Services(filter), from != null, withNotes);
        else if (!isDerived)
            Derive(now, snapshot.Through, filter == Every ? Named(_anew!)
                : Services(filter).Where(s => _anew!.Contains(s.Id)), from != null, withNotes);
        (_derived, _derivedFrom, _isDerivedWithNotes) = (filter, from, withNotes);
        return asOf != null ? "temp.timeline" : """
            (SELECT * FROM main.timeline WHERE service NOT IN (SELECT service FROM temp.timeline)
            UNION ALL SELECT * FROM temp.timeline)
            """;
    }

    /// <summary>Where a filter takes few, those: to find them among all takes longer.</summary>
    private IEnumerable<long> AffectedOf(ServiceFilter filter, DateTime from)
    {
        if (GapFacts.IsEmpty || filter == Every)
            return GapFacts.Affected(snapshot, from);
        using var some = Bound(filter, $"SELECT s.id {From(filter)} LIMIT {MostDerived + 1}");
        var ids = new List<long>();
        while (some.Step())
            ids.Add(some.Number(0));
        return ids.Count <= MostDerived ? ids : GapFacts.Affected(snapshot, from);
    }

    private const int MostDerived = 500;

    // The services that are behind, and those that are derived anew: of some, gaps make another timeline.
    private IReadOnlySet<long>? _behind, _anew;

    private void Derive(
        DateTime moment, long through, IEnumerable<(long Id, ServiceKey Service)> services, bool withGaps, bool withNotes)
    {
        var (facts, runs, since) = (snapshot.Facts, new List<Run>(), new List<long>());
        snapshot.Execute("""
            DROP TABLE IF EXISTS temp.timeline;
            CREATE TEMP TABLE timeline(service INTEGER NOT NULL, at INTEGER NOT NULL, until INTEGER NOT NULL,
                since INTEGER NOT NULL, status INTEGER NOT NULL, open INTEGER NOT NULL,
                observation INTEGER NOT NULL, partition INTEGER NOT NULL,
                PRIMARY KEY(service, at)) WITHOUT ROWID;
            """);
        using var insert =
            snapshot.Query("INSERT INTO temp.timeline VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)");
        using var partitions = snapshot.Query("""
            SELECT p.name, p.id, (SELECT min(received) FROM receipt r
                WHERE r.partition = p.id AND r.recorded <= ?1) FROM partition p
            """);
        var known = new Dictionary<string, (long Id, DateTime? From)>();
        var until = through == long.MaxValue ? through : UnixTime.From(moment);
        for (partitions.Bind(1, until); partitions.Step();)
            known[partitions.Text(0)] = (partitions.Number(1),
                partitions.NumberOrNull(2) is { } from ? UnixTime.Read(from) : null);
        foreach (var (service, key) in services)
        {
            facts.Read(service, through);
            var (partition, knownFrom) = known[key.Partition];
            _ = facts.Derive(knownFrom, moment, rules, runs, gaps: withGaps ? GapsOf(key) : null);
            if (withNotes && OverlayOf(service, key) is { Count: > 0 } overlay)
                runs = [.. Lay(overlay, runs)];
            ServiceFacts.AddSince(runs, since);
            for (var i = 0; i < runs.Count; i++)
            {
                insert.Bind(1, service).Bind(2, UnixTime.From(runs[i].From))
                    .Bind(3, runs[i].To is { } to ? UnixTime.From(to) : UnixTime.Open)
                    .Bind(4, since[i]).Bind(5, (long)runs[i].Status).Bind(6, runs[i].Open ? 1 : 0)
                    .Bind(7, runs[i].Observation).Bind(8, partition).Run();
            }
        }
        snapshot.Execute("""
            CREATE INDEX temp.timeline_time ON timeline(partition, at, service, status, since, observation)
            """);
    }

    // ---- For the page ----

    /// <summary>Not a service of which nothing has been heard for too long.</summary>
    private const string Listed = """
        (s.open <> 0 OR s.seen >= ?20 OR s.status IS NULL OR EXISTS (SELECT 1 FROM open o WHERE o.service = s.id))
        """;

    private long Forgotten => UnixTime.From(Moment - snapshot.Forget);

    /// <summary>
    /// What services are that gaps make another than what is stored: an alert ended while a heartbeat is silent.
    /// So do notes.
    /// </summary>
    private Dictionary<long, Correction> Corrected()
    {
        if (_corrected != null)
            return _corrected;
        _corrected = [];
        var affected = Named([.. GapFacts.Affected(snapshot, Moment - Recent), .. Noted(Moment)]);
        if (affected.Count == 0)
            return _corrected;
        using var stored = snapshot.Query("SELECT status FROM service WHERE id = ?1");
        var present = Present(Every, affected).ToDictionary(p => p.Id, p => p.Status);
        foreach (var (id, service) in affected)
        {
            if (stored.Bind(1, id).Number() is { } status && snapshot.NameOf((Status)status) is var name
                && present.GetValueOrDefault(id) is var shown && name != shown)
                _corrected[id] = new(service, name, shown);
        }
        return _corrected;
    }

    private static readonly ServiceFilter Every = new(null, null, null, null, null);

    /// <summary>Some services with their names, in the order of their numbers.</summary>
    private List<(long Id, ServiceKey Service)> Named(IEnumerable<long> services)
    {
        using var names = new ServiceNames(snapshot);
        var ids = services.Order().ToList();
        return [.. ids.Zip(names.Of(ids))];
    }

    /// <param name="Now">Null: it is retired.</param>
    private sealed record Correction(ServiceKey Service, string Stored, string? Now);

    private Dictionary<long, Correction>? _corrected;

    /// <summary>How many services have a status, are down, are neither up nor down.</summary>
    public ServiceCounts Counts()
    {
        using var counts = snapshot.Query($"""
            SELECT count(status), total(status = 2), total(status NOT IN (0, 2)) FROM service s WHERE {Listed}
            """);
        counts.Bind(20, Forgotten).Step();
        var corrected = Corrected().Values;
        long Change(Func<string?, bool> isOf) => corrected.Count(c => isOf(c.Now)) - corrected.Count(c => isOf(c.Stored));
        return new(counts.Number(0) + Change(s => s != null), counts.Number(1) + Change(s => s == "down"),
            counts.Number(2) + Change(s => s is not ("up" or "down" or null)));
    }

    /// <summary>The services that the page lists, in the order of names.</summary>
    public IEnumerable<(long Id, ServiceKey Service)> ListedServices() => Services(Every, $"WHERE {Listed}")
        .Where(s => !Corrected().TryGetValue(s.Id, out var corrected) || corrected.Now != null);

    /// <summary>The services that are down, the latest first.</summary>
    public IEnumerable<(long Id, ServiceKey Service)> Down()
    {
        foreach (var (id, (service, _, now)) in Corrected())
        {
            if (now == "down")
                yield return (id, service);
        }
        using var rows = snapshot.Query("""
            SELECT s.id, p.name, f.platform, f.service, f.facet, s.location
            FROM service s INDEXED BY service_attention CROSS JOIN family f ON f.id = s.family
                CROSS JOIN partition p ON p.id = f.partition
            WHERE s.status = 2 AND s.status <> 0 ORDER BY s.since DESC
            """);
        while (rows.Step())
        {
            if (!Corrected().ContainsKey(rows.Number(0)))
                yield return (rows.Number(0),
                    new ServiceKey(rows.Text(1), rows.Text(2), rows.Text(3), rows.Text(4), rows.Text(5)));
        }
    }

    /// <summary>
    /// Of platforms of partitions: how many services each has, those without a status yet among them, and how
    /// many have one that is not up. By indexes: a page need not read all services.
    /// </summary>
    public Dictionary<(string Partition, string Platform), (long All, long NotUp)> Groups(
        IEnumerable<(string Partition, string Platform)> groups)
    {
        var counts = new Dictionary<(string, string), (long All, long NotUp)>();
        using var members = snapshot.Query($"""
            SELECT count(*) FROM partition p CROSS JOIN family f ON f.partition = p.id
                CROSS JOIN service s ON s.family = f.id WHERE p.name = ?1 AND f.platform = ?2 AND {Listed}
            """);
        members.Bind(20, Forgotten);
        foreach (var (partition, platform) in groups)
            counts[(partition, platform)] =
                (members.Bind(1, partition).Bind(2, platform).Number() ?? 0, 0);
        using var rows = snapshot.Query($"""
            SELECT p.name, f.platform, count(*) FROM service s INDEXED BY service_attention
                CROSS JOIN family f ON f.id = s.family CROSS JOIN partition p ON p.id = f.partition
            WHERE s.status <> 0 AND {Listed} GROUP BY f.partition, f.platform
            """);
        void Add((string, string) group, long notUp, long all)
        {
            if (counts.TryGetValue(group, out var before))
                counts[group] = (before.All + all, before.NotUp + notUp);
        }

        for (rows.Bind(20, Forgotten); rows.Step();)
            Add((rows.Text(0), rows.Text(1)), rows.Number(2), 0);
        foreach (var (service, stored, now) in Corrected().Values)
            Add((service.Partition, service.Platform), (now is "up" or null ? 0 : 1) - (stored == "up" ? 0 : 1), now == null ? -1 : 0);
        return counts;
    }

    /// <summary>The partitions that have services, in the order of names.</summary>
    public IEnumerable<string> Partitions()
    {
        using var rows = snapshot.Query("""
            SELECT name FROM partition p WHERE EXISTS (SELECT 1 FROM family f WHERE f.partition = p.id)
            ORDER BY name
            """);
        while (rows.Step())
            yield return rows.Text(0);
    }

    /// <summary>Outages that ended after a time, the latest first.</summary>
    public IEnumerable<Outage> Ended(DateTime from)
    {
        var affected = new HashSet<long>(GapFacts.Affected(snapshot, from).Concat(Noted(from)));
        using var stored = StoredEnded(from, affected).GetEnumerator();
        using var laid = LaidEnded(from, affected).OrderByDescending(o => o.To).GetEnumerator();
        for (bool isStored = stored.MoveNext(), isLaid = laid.MoveNext(); isStored || isLaid;)
        {
            var takesStored = isStored && !(isLaid && laid.Current.To > stored.Current.To);
            yield return takesStored ? stored.Current : laid.Current;
            if (takesStored)
                isStored = stored.MoveNext();
            else
                isLaid = laid.MoveNext();
        }
    }

    /// <summary>Those of services of which gaps make another timeline.</summary>
    private IEnumerable<Outage> LaidEnded(DateTime from, HashSet<long> services)
    {
        if (services.Count == 0)
            yield break;
        using var texts = new ObservedTexts(snapshot);
        foreach (var (id, service, runs) in Runs(Every, from, Named(services)))
        {
            foreach (var outage in OutagesOf(id, service, [.. runs], default, null))
            {
                if (outage.To > from)
                    yield return new Outage(
                        service, outage.From, outage.To.Value, TextOf(texts, outage.Observation, isUp: false).Text);
            }
        }
    }

    private IEnumerable<Outage> StoredEnded(DateTime from, HashSet<long> others)
    {
        using var rows = snapshot.Query("""
            SELECT r.since, r.until, r.observation, p.name, f.platform, f.service, f.facet, s.location, r.service
            FROM main.timeline r CROSS JOIN service s ON s.id = r.service CROSS JOIN family f ON f.id = s.family
                CROSS JOIN partition p ON p.id = f.partition
            WHERE r.status IN (1, 2, 3) AND r.status = 2 AND r.until < 9000000000000000 AND r.until > ?1
                AND NOT EXISTS (SELECT 1 FROM main.timeline n
                    WHERE n.service = r.service AND n.at = r.until AND n.status = 2)
            ORDER BY r.until DESC
            """);
        using var texts = new ObservedTexts(snapshot);
        for (rows.Bind(1, UnixTime.From(from)); rows.Step();)
        {
            if (!others.Contains(rows.Number(8)))
                yield return new Outage(
                    new ServiceKey(rows.Text(3), rows.Text(4), rows.Text(5), rows.Text(6), rows.Text(7)),
                    UnixTime.Read(rows.Number(0)), UnixTime.Read(rows.Number(1)),
                    texts.Of(rows.Number(2), isUp: false).Text);
        }
    }

    /// <summary>The latest changes of a service from a time on, the last one first.</summary>
    public IEnumerable<ChangeRow> Latest(long id, ServiceKey service, DateTime from)
    {
        using var texts = new ObservedTexts(snapshot);
        foreach (var run in Enumerable.Reverse(ChangesOf(id, service, from)))
        {
            var (text, received) = TextOf(texts, run.Observation, run.Status == Status.Up);
            yield return new ChangeRow(id, service, snapshot.NameOf(run.Status), run.From, text, received);
        }
    }

    private List<Run> ChangesOf(long id, ServiceKey service, DateTime from)
    {
        var (changes, before) = (new List<Run>(), (Run?)null);
        foreach (var run in Runs(Every, from, [(id, service)]).SelectMany(r => r.Runs))
        {
            if (run.From >= from && run.Status != before?.Status)
                changes.Add(run);
            before = run;
        }
        return changes;
    }
}

// ================================ 11. Asking =================================
//
// Questions about the past and their answers, to programs by HTTP and on the command line alike. A question
// is parsed from parameters, each of which may stand once; an answer is rows, told as JSON, CSV (RFC 4180)
// or, on a terminal, a table. It is written a part at a time: memory does not grow with the answer.

/// <summary>Is thrown when a question cannot be understood; the message names the parameter.</summary>
internal sealed class QuestionException(string message) : Exception(message);

internal enum Subject { Status, History, Report, Outages }

internal enum OutputFormat { Json, Csv, Table, Html }

/// <summary>A question, understood.</summary>
/// <param name="From">Null: from the first word on.</param>
/// <param name="To">Null: up to the last word; a report, up to now.</param>
/// <param name="Threshold">Only of a report.</param>
/// <param name="Limit">Of a history's events; null: all.</param>
/// <param name="After">Where in a history the last answer ended.</param>
/// <param name="IsNewestFirst">Of a history.</param>
/// <param name="AsOf">From what was recorded until then; null: all.</param>
internal sealed record Question(
    Subject Subject, ServiceFilter Filter, DateTime? From, DateTime? To, int? Threshold, int? Limit,
    (DateTime Time, long Place)? After, bool IsNewestFirst, DateTime? AsOf, OutputFormat? Format, Counting Counting)
{
    /// <summary>The parameters that choose services.</summary>
    public static readonly string[] Names = ["platform", "service", "facet", "location"];

    private static readonly string[]
        Common = [.. Names, "as_of", "format"],
        OfHistory = [.. Common, "from", "to", "order", "limit", "cursor"],
        OfCounting = ["period", "tz", "service_hours", "slo"],
        OfReport = [.. Common, "from", "to", "threshold", .. OfCounting],
        OfOutages = [.. OfHistory, "tz", "service_hours"];

    /// <summary>As many rows a service.</summary>
    public const int MaxPeriods = 4000;

    /// <summary>What lies further ahead is no period of a contract.</summary>
    private static readonly TimeSpan MaxPeriodsAhead = TimeSpan.FromDays(3660);

    public static string[] ParametersOf(Subject subject) => subject switch
    {
        Subject.Status => Common,
        Subject.History => OfHistory,
        Subject.Outages => OfOutages,
        _ => OfReport,
    };

    /// <summary>Understands parameters; an empty one, but for a location, is as if absent.</summary>
    /// <exception cref="QuestionException">One is unknown, stands twice, or cannot be used.</exception>
    public static Question Parse(Subject subject, string? partition,
        IEnumerable<KeyValuePair<string, string>> parameters, DateTime now, Counting? standard = null)
    {
        var given = Once(parameters, ParametersOf(subject), subject switch
        {
            Subject.Status => "a status",
            Subject.History => "a history",
            Subject.Outages => "outages",
            _ => "a report",
        });
        var isNewestFirst = Parse(given, "order", v => v switch
        {
            "asc" => false,
            "desc" => true,
            _ => (bool?)null,
        }, "asc, desc") == true;
        // What is so long ago is so long before the moment that is asked about.
        var asOf = Parse(given, "as_of", v => ParseTime(v, now), TimeAllowed);
        var counting = given.ContainsKey("threshold") ? Counting.Plain : ParseCounting(given, standard ?? Counting.Plain);
        var question = new Question(subject,
            FilterOf(partition, given),
            Parse(given, "from", v => ParseTime(v, asOf ?? now, counting.Zone), TimeAllowed),
            Parse(given, "to", v => ParseTime(v, asOf ?? now, counting.Zone), TimeAllowed),
            Parse(given, "threshold", ParseCount, $"a whole number from 1 to {int.MaxValue}"),
            Parse(given, "limit", ParseCount, $"a whole number from 1 to {int.MaxValue}"),
            Parse(given, "cursor", v => ParseCursor(v, isNewestFirst), "what an answer in this order gave as next"),
            isNewestFirst,
            asOf,
            Parse(given, "format", v => v switch
            {
                "json" => OutputFormat.Json,
                "csv" => OutputFormat.Csv,
                _ => (OutputFormat?)null,
            }, "json, csv"),
            counting);
        var isCounted = subject is Subject.Report or Subject.Outages;
        if (isCounted)
            question = question with { From = Whole(question.From), To = Whole(question.To) };
        if (question.From >= question.To)
            throw new QuestionException("from: it is not before to");
        if (isCounted && question.To == null && question.From >= (asOf ?? now))
            throw new QuestionException($"from: it is not before {(asOf == null ? "now" : "as_of")}");
        if (question.Threshold != null && Array.Find(OfCounting, given.ContainsKey) is { } other)
            throw new QuestionException($"threshold: it goes without {other}");
        if (question.Counting != Counting.Plain && question.To > now + MaxPeriodsAhead)
            throw new QuestionException($"to: it is over {MaxPeriodsAhead.TotalDays} days ahead of the clock");
        if (question is { Counting.Period: { } period, From: { } first }
            && Period.All(period, question.Counting.Zone, first > AlertMapping.Earliest ? first : AlertMapping.Earliest,
                question.To ?? now).Skip(MaxPeriods).Any())
            throw new QuestionException($"period: there are more than {MaxPeriods} from 'from' to 'to'");
        CheckAsOf(question.AsOf, now);
        return question;
    }

    /// <summary>The services that parameters choose.</summary>
    public static ServiceFilter FilterOf(string? partition, Dictionary<string, string> given) => new(
        partition, given.GetValueOrDefault("platform"), given.GetValueOrDefault("service"),
        given.GetValueOrDefault("facet"), given.GetValueOrDefault("location"));

    /// <exception cref="QuestionException">It is ahead of the clock.</exception>
    public static void CheckAsOf(DateTime? asOf, DateTime now)
    {
        if (asOf > now)
            throw new QuestionException($"as_of: it is ahead of the clock, which is at {Rfc3339.Format(now)}");
    }

    /// <summary>Of its milliseconds, by which is counted.</summary>
    public static DateTime? Whole(DateTime? time) => time?.AddTicks(-(time.Value.Ticks % TimeSpan.TicksPerMillisecond));

    private static Counting ParseCounting(Dictionary<string, string> given, Counting standard) => new(
        Parse(given, "period", v => v switch
        {
            "day" => PeriodLength.Day,
            "week" => PeriodLength.Week,
            "month" => PeriodLength.Month,
            "quarter" => PeriodLength.Quarter,
            "year" => PeriodLength.Year,
            _ => (PeriodLength?)null,
        }, "day, week, month, quarter, year") ?? standard.Period,
        Parse(given, "tz", Zone.Parse) ?? standard.Zone,
        Parse(given, "service_hours", ServiceHours.Parse) ?? standard.Hours,
        Parse(given, "slo", Objectives.Parse) ?? standard.Objectives);

    /// <param name="parse">Throws a <see cref="FormatException"/> that tells what is allowed.</param>
    /// <exception cref="QuestionException">It is given, and is not what is allowed.</exception>
    private static T? Parse<T>(Dictionary<string, string> given, string name, Func<string, T> parse) where T : class
    {
        try
        {
            return given.TryGetValue(name, out var value) ? parse(value) : null;
        }
        catch (FormatException e)
        {
            throw new QuestionException($"{name}: '{Shown(given[name])}' is not usable; allowed: {e.Message}");
        }
    }

    /// <summary>Whether an answer may have a limit, and go on.</summary>
    public static bool IsPaged(Subject subject) => subject is Subject.History or Subject.Outages;

    /// <summary>The lists that the answer has in JSON.</summary>
    public IEnumerable<string> Lists => Subject switch
    {
        Subject.Status => [Answers.Services],
        Subject.History => [Answers.Events],
        Subject.Outages => [Answers.Outages],
        _ => Threshold == null ? [Answers.Services] : [Answers.Services, Answers.Events],
    };

    /// <summary>Whether an answer has this list: in CSV there is place for one.</summary>
    public bool HasList(string name, OutputFormat format) =>
        Threshold == null || format != OutputFormat.Csv || name == Answers.Events;

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

    public const string TimeAllowed =
        "RFC 3339 such as 2026-11-22T11:34:00Z, a day such as 2026-11-22, or so long ago, such as -24h, -7d or -90m";

    /// <exception cref="QuestionException">It is given, and is not what is allowed.</exception>
    public static T? Parse<T>(
        Dictionary<string, string> given, string name, Func<string, T?> parse, string allowed)
        where T : struct => !given.TryGetValue(name, out var value) ? null
            : parse(value) ?? throw new QuestionException(
                $"{name}: '{Shown(value)}' is not usable; allowed: {allowed}");

    /// <summary>One line of it, and not all.</summary>
    public static string Shown(string value) =>
        string.Concat((value.Length > 100 ? value[..100] + "..." : value)
            .Select(c => char.IsControl(c) || char.IsSurrogate(c) ? '\ufffd' : c));

    /// <summary>In UTC; a plus that a query lost to a space is taken for one.</summary>
    /// <param name="zone">In which a day begins; null: UTC.</param>
    public static DateTime? ParseTime(string text, DateTime now, Zone? zone = null)
    {
        const int Day = 10, Minutes = 16;
        if (text == "")
            return null;
        if (zone != null && text.Length == Day
            && DateTime.TryParseExact(text, "yyyy-MM-dd", CultureInfo.InvariantCulture, DateTimeStyles.None, out var date)
            && date.Year is > 1 and < 9999)
            return zone.Begin(date);
        // Seconds may be left out, and the time of a day that begins.
        var whole = text.Length == Day ? text + "T00:00:00Z"
            : text.Length > Minutes && text[Minutes - 3] == ':' && text[Minutes] != ':'
            ? text.Insert(Minutes, ":00") : text;
        if (Rfc3339.TryParse(whole.Replace(' ', '+').ToUpperInvariant(), out var time))
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

    public static int? ParseCount(string text) =>
        int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out var count) && count > 0
            ? count : null;

    /// <summary>What <see cref="ParseCursor"/> takes.</summary>
    public static string Cursor(DateTime time, long place, bool isNewestFirst) =>
        Base64Url.EncodeToString(Encoding.UTF8.GetBytes(string.Create(
            CultureInfo.InvariantCulture, $"{UnixTime.From(time)}/{place}{(isNewestFirst ? Descending : "")}")));

    private const string Descending = "/desc";

    private static (DateTime, long)? ParseCursor(string text, bool isNewestFirst)
    {
        if (!Base64Url.IsValid(text))
            return null;
        var place = Encoding.UTF8.GetString(Base64Url.DecodeFromChars(text));
        if (place.EndsWith(Descending, StringComparison.Ordinal) != isNewestFirst)
            return null;
        var parts = place.Split('/');
        return parts.Length == (isNewestFirst ? 3 : 2)
            && long.TryParse(parts[0], NumberStyles.None, CultureInfo.InvariantCulture, out var time)
            && time <= UnixTime.Limit
            && long.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out var service)
            ? (UnixTime.Read(time), service) : null;
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

/// <summary>Writes the open alerts of a partition as Alertmanager's interface has them (v2).</summary>
internal sealed class OpenAlerts : BodyWriter
{
    /// <summary>Go's for none: who sends it says when it ends.</summary>
    private const string NoTime = "0001-01-01T00:00:00.000Z";

    private readonly Utf8JsonWriter _json;

    private OpenAlerts() => _json = new Utf8JsonWriter(Buffer, ReadableJson.Options);

    public static IEnumerable<ReadOnlyMemory<byte>> Write(Snapshot snapshot, string partition)
    {
        var alerts = new OpenAlerts();
        using var rows = snapshot.Query("""
            SELECT a.labels, a.text, a.sender, o.starts, o.seen
            FROM open o CROSS JOIN alert a ON a.id = o.alert CROSS JOIN service s ON s.id = a.service
                CROSS JOIN family f ON f.id = s.family
            WHERE f.partition = (SELECT id FROM partition WHERE name = ?1) ORDER BY o.alert
            """);
        alerts._json.WriteStartArray();
        for (rows.Bind(1, partition); rows.Step();)
        {
            alerts.Add(rows);
            if (alerts.IsFull)
                yield return alerts.Take();
        }
        alerts._json.WriteEndArray();
        alerts._json.Flush();
        yield return alerts.Take();
    }

    private void Add(SqliteStatement row)
    {
        var labels = row.Text(0);
        _json.WriteStartObject();
        _json.WriteStartObject("annotations");
        _json.WriteString("summary", row.Text(1));
        _json.WriteEndObject();
        _json.WriteString("endsAt", NoTime);
        _json.WriteString("fingerprint",
            Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(labels)).AsSpan(0, 8)));
        _json.WriteStartArray("receivers");
        _json.WriteStartObject();
        _json.WriteString("name", "ses");
        _json.WriteEndObject();
        _json.WriteEndArray();
        _json.WriteString("startsAt", Rfc3339.Format(UnixTime.Read(row.Number(3))));
        _json.WriteStartObject("status");
        _json.WriteStartArray("inhibitedBy");
        _json.WriteEndArray();
        _json.WriteStartArray("silencedBy");
        _json.WriteEndArray();
        _json.WriteString("state", "active");
        _json.WriteEndObject();
        _json.WriteString("updatedAt", Rfc3339.Format(UnixTime.Read(row.Number(4))));
        _json.WriteString("generatorURL", row.Text(2));
        _json.WritePropertyName("labels");
        _json.WriteRawValue(labels);
        _json.WriteEndObject();
        _json.Flush();
    }
}

/// <summary>Writes rows in a format.</summary>
internal sealed class RowWriter : BodyWriter
{
    private readonly Utf8JsonWriter? _json;
    private readonly TextTable? _table;
    private readonly bool _isPlain;
    private int _lists;

    /// <param name="width">
    /// Of the terminal: for one each format is free of what it obeys, as a table always is; null: it is none.
    /// </param>
    public RowWriter(OutputFormat format, int? width = null)
    {
        _isPlain = width != null || format == OutputFormat.Table;
        if (format == OutputFormat.Json)
            _json = new Utf8JsonWriter(Buffer, ReadableJson.Options);
        if (format == OutputFormat.Table)
            _table = new TextTable(width ?? int.MaxValue);
        _json?.WriteStartObject();
    }

    public void BeginList(string name, IReadOnlyList<string> columns)
    {
        _json?.WriteStartArray(name);
        if (_json != null)
            return;
        if (_lists++ > 0)
            Put("\n");
        if (_table != null)
            _table.Begin(columns);
        else
            Row(columns, columns);
    }

    /// <summary>Texts, numbers (double or int), yes or no (bool), times (DateTime), or nothing.</summary>
    public void Row(IReadOnlyList<string> columns, IReadOnlyList<object?> cells)
    {
        if (_table != null)
        {
            _table.Add(cells);
            if (_table.IsFull)
                Put(_table.Take());
            return;
        }
        if (_json == null)
        {
            for (var i = 0; i < cells.Count; i++)
            {
                Put(i == 0 ? "" : ",");
                PutCsv(cells[i]);
            }
            Put("\r\n");
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
        Put(_table?.End() ?? "");
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
            case DateTime time:
                Span<byte> text = stackalloc byte[Rfc3339.Longest];
                _json?.WriteStringValue(text[..Rfc3339.Format(time, text)]);
                break;
            case string[] texts:
                _json?.WriteStartArray();
                foreach (var one in texts)
                    _json?.WriteStringValue(Shown(one));
                _json?.WriteEndArray();
                break;
            case JsonElement element:
                if (_json != null)
                    element.WriteTo(_json);
                break;
            default:
                _json?.WriteStringValue(Shown(value));
                break;
        }
    }

    /// <summary>Only in JSON.</summary>
    public void BeginObject(string name) => _json?.WriteStartObject(name);

    public void EndObject() => _json?.WriteEndObject();

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
        string text => text,
        string[] texts => string.Join(' ', texts),
        bool flag => flag ? "true" : "false",
        _ => Convert.ToString(value, CultureInfo.InvariantCulture) ?? "",
    };

    private string Shown(object? value) => _isPlain ? Terminal.Plain(Text(value)) : Text(value);

    /// <summary>RFC 4180: quoted where it must be.</summary>
    private void PutCsv(object? value)
    {
        if (value is DateTime time)
        {
            Buffer.Advance(Rfc3339.Format(time, Buffer.GetSpan(Rfc3339.Longest)));
            return;
        }
        var text = Shown(value);
        // A spreadsheet takes such a cell for a formula, and labels come from strangers (OWASP, CSV injection).
        if (value is string && text.Length > 0 && "=+-@\t\r\n＝＋－＠".Contains(text[0]))
            text = "'" + text;
        Put(text.AsSpan().ContainsAny(Quoted)
            ? $"\"{text.Replace("\"", "\"\"", StringComparison.Ordinal)}\"" : text);
    }

    private static readonly SearchValues<char> Quoted = SearchValues.Create("\",\r\n");
}

/// <summary>
/// A table for people: spans of time as one says them, figures at the right of their columns, and no line longer
/// than the terminal is wide. What is of least use there is left out first, then texts are cut, the longest first.
/// </summary>
/// <param name="width">Of the terminal, in its columns.</param>
/// <param name="leastText">No text is cut shorter.</param>
internal sealed class TextTable(int width, int leastText = TextTable.ShortText)
{
    /// <summary>Rows that are looked at before columns have their width.</summary>
    private const int MaxRows = 1000;

    /// <summary>No text is cut shorter, and none that says what is wrong.</summary>
    private const int ShortText = 8, ShortReason = 24;

    private const string Gap = "  ", Seconds = "_seconds";

    /// <summary>Columns of times, which are of use only whole.</summary>
    public static readonly string[] Times = ["since", "time", "last_seen", "received", "recorded", "from", "to"];

    private static readonly string[]
        Percentages = ["availability", "available", "adjusted_availability", "coverage"],
        Counts = ["outages", "up"];

    /// <summary>What is left out where not all fits, in this order, then what has the same in each row.</summary>
    private static readonly string[]
        LeastUse =
        [
            "id", "last_seen", "received", "watched", "mean_between_seconds", "mean_seconds", "degraded_seconds",
            "notes", "unknown_seconds", "up_seconds", "not_counted_seconds", "maintenance_down_seconds", "excluded_seconds",
            "error_budget_seconds", "coverage", "recorded", "maintenance_seconds", "availability", "available",
        ],
        Places = ["partition", "platform"],
        LastUse =
        [
            "alertname", "description", "partition", "platform", "open", "longest_seconds", "outages", "facet", "location",
        ];

    private readonly List<string[]> _rows = [];
    private IReadOnlyList<string> _columns = [];
    private List<int>? _shown;
    private int[] _widths = [];

    public bool IsFull => _rows.Count >= MaxRows;

    public void Begin(IReadOnlyList<string> columns)
    {
        (_columns, _shown) = (columns, null);
        _rows.Add([.. columns.Select(Head)]);
    }

    public void Add(IReadOnlyList<object?> cells) => _rows.Add([.. cells.Select((c, i) => Shown(_columns[i], c))]);

    /// <summary>The rows that came since it was called before.</summary>
    public string Take()
    {
        if (_shown == null)
            Fit();
        var text = new StringBuilder();
        foreach (var row in _rows)
        {
            var line = string.Join(Gap, _shown!.Select(i => Padded(row[i], i)));
            text.Append(Terminal.Cut(line.TrimEnd(), width)).Append('\n');
        }
        _rows.Clear();
        return text.ToString();
    }

    /// <summary>The rest, and what was left out.</summary>
    public string End()
    {
        var text = Take();
        var hidden = _columns.Where((_, i) => !_shown!.Contains(i)).Select(Head).ToList();
        return hidden.Count == 0 ? text
            : text + Terminal.Cut($"(--format csv has also: {string.Join(", ", hidden)})", width) + "\n";
    }

    /// <summary>Chooses columns and their widths by the first rows.</summary>
    private void Fit()
    {
        _widths = [.. _columns.Select((_, i) => _rows.Max(r => Terminal.Columns(r[i])))];
        _shown = [.. Enumerable.Range(0, _columns.Count)];
        var empty = _shown.Where(i => _rows.Skip(1).All(r => r[i] is "" or "-")).Select(i => _columns[i]);
        var alike = _shown.Where(i => Places.Contains(_columns[i]) && _rows.Skip(1).All(r => r[i] == _rows[1][i]))
            .Select(i => _columns[i]);
        // When a status was last said is of use only where it is not when it began; a period has a name.
        string[] again = _columns.Contains("since") ? ["time"] : _columns.Contains("outages") ? ["from", "to"] : [];
        // Of notes it is what one needs.
        var least = _columns.Contains("kind") ? [.. LeastUse.Skip(1), "warnings", "matches", "author_name"] : LeastUse;
        foreach (var column in empty.Concat(least).Concat(again).Concat(alike).Concat(LastUse).ToList())
        {
            if (Over(i => Math.Min(_widths[i], LeastWidth(_columns[i]))) > 0 && _shown.Count > 2)
                _shown.RemoveAll(i => _columns[i] == column);
        }
        for (var over = Over(i => _widths[i]); over > 0; over--)
        {
            var longest = _shown.MaxBy(i => _widths[i] > LeastWidth(_columns[i]) ? _widths[i] : 0);
            if (_widths[longest] <= LeastWidth(_columns[longest]))
                break;
            _widths[longest]--;
        }
    }

    /// <summary>By how much a line is too long.</summary>
    private long Over(Func<int, long> widthOf) => _shown!.Sum(widthOf) + (Gap.Length * (_shown!.Count - 1)) - width;

    private string Padded(string cell, int column)
    {
        var (text, space) = (Terminal.Cut(cell, _widths[column]), _widths[column] - Terminal.Columns(cell));
        return space <= 0 ? text
            : IsFigure(_columns[column]) ? new string(' ', space) + text : text + new string(' ', space);
    }

    public static string Head(string column) => column switch
    {
        "adjusted_availability" => "ADJUSTED",
        "error_budget_seconds" => "BUDGET",
        "error_budget_left_seconds" => "BUDGET LEFT",
        "outage" => "OUTAGES",
        _ => column.Replace(Seconds, "", StringComparison.Ordinal).Replace('_', ' ').ToUpperInvariant(),
    };

    /// <summary>What a column is cut to; figures, times and ids are of use only whole.</summary>
    private int LeastWidth(string column) => column is "reason" or "labels" ? ShortReason
        : column is "id" or "objective" or "budget_left" || Times.Contains(column) || IsFigure(column) ? int.MaxValue
        : leastText;

    private static bool IsFigure(string column) => column.EndsWith(Seconds, StringComparison.Ordinal)
        || Percentages.Contains(column) || Counts.Contains(column);

    private static string Shown(string column, object? cell) => cell switch
    {
        null => IsFigure(column) || column == "slo_met" ? "-" : "",
        double seconds when column.EndsWith(Seconds, StringComparison.Ordinal) =>
            seconds == 0 ? "-" : (seconds < 0 ? "-" : "") + Quantity.Lasted(TimeSpan.FromSeconds(Math.Abs(seconds))),
        // Never rounded up: 100 only without an outage.
        double share when Percentages.Contains(column) =>
            (Math.Truncate(share * 1000) / 1000).ToString("0.000", CultureInfo.InvariantCulture),
        bool flag => flag ? "yes" : "no",
        DateTime time => Rfc3339.Format(time.AddTicks(-(time.Ticks % TimeSpan.TicksPerSecond))),
        _ => Terminal.Plain(RowWriter.Text(cell)),
    };
}

/// <summary>Writes the answers to questions.</summary>
/// <param name="version">Of SeS: the bytes of an answer hold for one.</param>
/// <param name="width">Of the terminal; null: it is none.</param>
internal sealed class Answers(Questions questions, string version, int? width = null)
{
    private static readonly string[]
        StatusColumns =
            [.. Question.Names, "status", "since", "time", "description", "last_seen", "watched", "maintenance"],
        EventColumns = [.. Question.Names, "status", "time", "description", "received"],
        FigureColumns = ["from", "to", "availability", "adjusted_availability", "coverage", "up_seconds",
            "degraded_seconds", "down_seconds", "unknown_seconds", "not_counted_seconds", "maintenance_seconds",
            "maintenance_down_seconds", "excluded_seconds", "outages", "longest_seconds", "mean_seconds",
            "mean_between_seconds", "open"],
        OutageColumns = [.. Question.Names, "from", "to", "down_seconds", "maintenance_seconds", "excluded_seconds",
            "open", "description", "notes"],
        ObjectiveColumns = ["slo_met", "error_budget_seconds", "error_budget_left_seconds"],
        ThresholdColumns = [.. Question.Names, "status", "time", "up", "under_threshold_seconds"];

    /// <summary>The lists of answers.</summary>
    public const string Services = "services", Events = "events", Outages = "outages";

    /// <summary>Where a history goes on that was told up to its limit; null: there is no more.</summary>
    public string? Next { get; private set; }

    /// <summary>Rows that were told so far, and how many services of them are down now.</summary>
    public (long Rows, long Down) Told { get; private set; }

    /// <summary>What made a report, in CSV on each row: a file that is sent on must say so.</summary>
    public static readonly string[] MadeColumns = ["tz", "service_hours", "slo", "as_of", "version"];

    /// <summary>The columns of a list, as it is named in JSON.</summary>
    public static string[] Columns(Question question, string list, OutputFormat format)
    {
        var columns = question.Subject switch
        {
            Subject.Status => StatusColumns,
            Subject.History => EventColumns,
            Subject.Outages => OutageColumns,
            _ when list == Events => ThresholdColumns,
            _ => [.. Question.Names, .. question.Counting.Period == null ? [] : (string[])["period"], .. FigureColumns,
                .. question.Counting.Objectives == null ? [] : ObjectiveColumns,
                .. format == OutputFormat.Csv ? MadeColumns : []],
        };
        // The partition is told where the question does not name it.
        return question.Filter.Partition == null ? ["partition", .. columns] : columns;
    }

    /// <summary>The answer in parts, each valid until the next is asked for.</summary>
    /// <exception cref="SqliteException">The database is damaged.</exception>
    public IEnumerable<ReadOnlyMemory<byte>> Write(Question question, OutputFormat format)
    {
        var writer = new RowWriter(format, width);
        WriteHead(writer, question);
        _format = format;
        var lists = question.Subject switch
        {
            Subject.Status => List(writer, Services, question, Status(question)),
            Subject.History => History(writer, question),
            Subject.Outages => OutagesOf(writer, question),
            _ when question.HasList(Services, format) => List(writer, Services, question, Report(question)),
            _ => [],
        };
        foreach (var part in lists)
            yield return part;
        if (question.Threshold is { } threshold)
        {
            foreach (var part in List(writer, Events, question, Under(question, threshold)))
                yield return part;
        }
        yield return writer.End();
    }

    /// <summary>What made the answer: with these it can be made again.</summary>
    private void WriteHead(RowWriter writer, Question question)
    {
        var (pause, staleAfter) = (questions.Snapshot.Rules.Pause, questions.Snapshot.StaleAfter);
        writer.Property("as_of", questions.Moment);
        writer.Property("version", version);
        if (question.Subject is Subject.Status or Subject.History)
        {
            writer.Property("pause_seconds", pause.TotalSeconds);
            writer.Property("stale_after_seconds", staleAfter.TotalSeconds);
            return;
        }
        writer.BeginObject("settings");
        writer.Property("pause", Quantity.Setting(pause));
        writer.Property("stale_after", Quantity.Setting(staleAfter));
        writer.Property("forget", Quantity.Setting(questions.Snapshot.Forget));
        writer.Property("period", question.Counting.Period?.ToString().ToLowerInvariant());
        foreach (var (column, value) in MadeColumns.Zip(Made(question)).Take(3))
            writer.Property(column, value);
        writer.EndObject();
    }

    private object?[] Made(Question question) =>
    [
        question.Counting.Zone.Name, question.Counting.Hours?.Text, question.Counting.Objectives?.Text, questions.Moment,
        version,
    ];

    private OutputFormat _format;

    private IEnumerable<ReadOnlyMemory<byte>> List(
        RowWriter writer, string name, Question question, IEnumerable<List<object?>> rows)
    {
        var columns = Columns(question, name, _format);
        writer.BeginList(name, columns);
        foreach (var row in rows)
        {
            writer.Row(columns, row);
            Told = Told with { Rows = Told.Rows + 1 };
            if (writer.IsFull)
                yield return writer.Take();
        }
        writer.EndList();
    }

    private readonly List<object?> _row = [];

    /// <summary>Valid until the next row is made.</summary>
    private List<object?> Row(Question question, ServiceKey service, params ReadOnlySpan<object?> cells)
    {
        _row.Clear();
        if (question.Filter.Partition == null)
            _row.Add(service.Partition);
        ReadOnlySpan<object?> names = [service.Platform, service.Service, service.Facet, service.Location];
        _row.AddRange(names);
        _row.AddRange(cells);
        return _row;
    }

    private IEnumerable<List<object?>> Status(Question question) => questions.Present(question.Filter).Select(p =>
    {
        Told = Told with { Down = Told.Down + (p.Status == "down" && p.Maintenance == null ? 1 : 0) };
        return Row(question, p.Service, p.Status, p.Since, p.Time, p.Description, p.LastSeen, p.IsWatched, p.Maintenance);
    });

    private IEnumerable<ReadOnlyMemory<byte>> History(RowWriter writer, Question question) => Page(writer, Events, question,
        questions.History(question.Filter, question.From, question.To, question.After, question.IsNewestFirst),
        r => Row(question, r.Service, r.Status, r.Time, r.Description, r.Received), r => (r.Time, r.Place));

    private IEnumerable<ReadOnlyMemory<byte>> OutagesOf(RowWriter writer, Question question) => Page(writer, Outages, question,
        questions.Outages(
            question.Filter, question.From, question.To, question.Counting, question.After, question.IsNewestFirst),
        r => Row(question, r.Service, r.From, r.To, Seconds(r.Down), Seconds(r.Maintenance), Seconds(r.Excluded),
            r.To == null, r.Description, r.Notes.Select(n => n.Last.Id).ToArray()),
        r => (r.From, r.Id));

    /// <summary>The rows up to the limit, and where they go on.</summary>
    private IEnumerable<ReadOnlyMemory<byte>> Page<T>(RowWriter writer, string name, Question question, IEnumerable<T> rows,
        Func<T, List<object?>> cellsOf, Func<T, (DateTime Time, long Place)> placeOf)
    {
        var columns = Columns(question, name, _format);
        var left = question.Limit ?? int.MaxValue;
        (DateTime Time, long Place)? last = null;
        writer.BeginList(name, columns);
        foreach (var row in rows)
        {
            if (left-- == 0)
                break;
            last = placeOf(row);
            Told = Told with { Rows = Told.Rows + 1 };
            writer.Row(columns, cellsOf(row));
            if (writer.IsFull)
                yield return writer.Take();
        }
        writer.EndList();
        Next = left < 0 && last is var (time, place) ? Question.Cursor(time, place, question.IsNewestFirst) : null;
        writer.Property("next", Next);
    }

    private IEnumerable<List<object?>> Report(Question question)
    {
        var made = Made(question);
        foreach (var r in questions.Report(question.Filter, question.From, question.To, question.Counting))
        {
            var row = Row(question, r.Service);
            if (r.Period != null)
                row.Add(r.Period);
            var f = r.Figures;
            row.AddRange((ReadOnlySpan<object?>)[r.From, r.To, Rounded(f.Availability, f.Down),
                Rounded(f.AdjustedAvailability, f.BaseDown), Rounded(f.Coverage, f.Unknown), Seconds(f.Up), Seconds(f.Degraded), Seconds(f.Down), Seconds(f.Unknown),
                Seconds(f.NotCounted), Seconds(f.Maintenance), Seconds(f.MaintenanceDown), Seconds(f.Excluded), f.Outages,
                Seconds(f.Longest), f.Mean / 1000, f.MeanBetween / 1000, f.IsOpen]);
            if (question.Counting.Objectives is { } objectives)
                row.AddRange(objectives.Of(r.Service.Platform) is not { } objective ? [null, null, null]
                    : (ReadOnlySpan<object?>)[f.IsMet(objective, r.To > questions.Moment), Seconds(f.Budget(objective)),
                        (double)(Math.Floor(f.BudgetLeft(objective)) / 1000)]);
            if (_format == OutputFormat.Csv)
                row.AddRange(made);
            yield return row;
        }
    }

    private static double Seconds(long milliseconds) => milliseconds / 1000.0;

    private static double Seconds(decimal milliseconds) => (double)Math.Round(milliseconds / 1000, 3);

    /// <summary>100 only if nothing is left out.</summary>
    private static double? Rounded(double? share, long left) => share is not { } known ? null
        : Math.Min(Math.Round(known, 6), left > 0 ? 99.999999 : 100);

    private IEnumerable<List<object?>> Under(Question question, int threshold) =>
        questions.Threshold(question.Filter, threshold, question.From, question.To).Select(r =>
            Row(question, r.Service, r.Status, r.Time, r.Up, r.Under.TotalSeconds));
}

/// <summary>Which notes are asked for.</summary>
/// <param name="Filter">Those that may be about such services.</param>
/// <param name="HasAllVersions">False: the last one of each.</param>
internal sealed record NoteQuestion(
    ServiceFilter Filter, DateTime? From, DateTime? To, NoteKind? Kind, string? Id, DateTime? AsOf, bool HasAllVersions)
{
    public static readonly string[] Parameters = [.. Question.Names, "from", "to", "kind", "id", "as_of", "versions"];

    /// <exception cref="QuestionException">A parameter is unknown, stands twice, or cannot be used.</exception>
    public static NoteQuestion Parse(
        string? partition, IEnumerable<KeyValuePair<string, string>> parameters, DateTime now, Zone zone)
    {
        var given = Question.Once(parameters, Parameters, "notes");
        DateTime? Time(string name) => Question.Parse(given, name, v => Question.ParseTime(v, now, zone), Question.TimeAllowed);
        var question = new NoteQuestion(Question.FilterOf(partition, given), Time("from"), Time("to"),
            Question.Parse(given, "kind", v => NoteDraft.KindOf(v), string.Join(", ", NoteDraft.Kinds)),
            given.GetValueOrDefault("id"), Time("as_of"),
            Question.Parse(given, "versions", v => bool.TryParse(v, out var flag) ? flag : (bool?)null, "true, false") == true);
        if (question.From >= question.To)
            throw new QuestionException("from: it is not before to");
        Question.CheckAsOf(question.AsOf, now);
        return question;
    }
}

/// <summary>Notes as people and programs write and read them.</summary>
internal sealed class NoteForm(Questions questions)
{
    /// <summary>In bytes: a text of the longest, with each character escaped, and the names.</summary>
    public const int MaxBody = 64 * 1024;

    public static readonly string[]
        Fields =
        [
            "id", "version", "kind", "from", "to", .. Question.Names, "status", "text", "author_name", "withdrawn",
        ],
        Columns =
        [
            "id", "version", "kind", "from", "to", "partition", .. Question.Names, "status", "text", "author",
            "author_name", "withdrawn", "received", "recorded", "matches", "warnings",
        ];

    /// <summary>What JSON says: <c>{"kind": "maintenance", "from": "2026-12-01T22:00+01:00", ...}</c>.</summary>
    /// <param name="zone">In which a day begins.</param>
    /// <exception cref="NoteException">It is no such object.</exception>
    public static NoteDraft Read(ReadOnlyMemory<byte> body, DateTime now, Zone zone)
    {
        var given = new Dictionary<string, string?>();
        try
        {
            using var json = JsonDocument.Parse(body);
            if (json.RootElement.ValueKind != JsonValueKind.Object)
                throw new NoteException(400, "The body is no JSON object");
            foreach (var field in json.RootElement.EnumerateObject())
            {
                var isUsable = field.Name switch
                {
                    var name when !Fields.Contains(name) => true,
                    "withdrawn" => field.Value.ValueKind is JsonValueKind.True or JsonValueKind.False,
                    "version" => field.Value.ValueKind == JsonValueKind.Number,
                    _ => field.Value.ValueKind is JsonValueKind.String or JsonValueKind.Null,
                };
                var value = field.Value.ValueKind == JsonValueKind.String ? field.Value.GetString()
                    : field.Value.ValueKind == JsonValueKind.Null ? null : field.Value.GetRawText();
                if (!isUsable || !given.TryAdd(field.Name, value))
                    throw new NoteException(400, $"{AlertMapping.Clip(field.Name, 100)}: it "
                        + (isUsable ? "stands twice" : "is of the wrong type"));
            }
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            throw new NoteException(400, e is JsonException ? "The body is not JSON" : "A text in it is not valid Unicode");
        }
        return Parse(given, now, zone);
    }

    /// <param name="given">What fields say, by name.</param>
    /// <exception cref="NoteException">A field is unknown, or cannot be used.</exception>
    public static NoteDraft Parse(IReadOnlyDictionary<string, string?> given, DateTime now, Zone zone)
    {
        if (given.Keys.FirstOrDefault(k => !Fields.Contains(k)) is { } unknown)
            throw new NoteException(400,
                $"{AlertMapping.Clip(unknown, 100)}: it is no field of a note; there are {string.Join(", ", Fields)}");
        T? Usable<T>(string name, Func<string, T?> parse, string allowed) where T : struct =>
            given.GetValueOrDefault(name) is not { } text ? null
            : parse(text) ?? throw new NoteException(400, $"{name}: '{Question.Shown(text)}' is not usable; allowed: {allowed}");
        DateTime? Time(string name) => Usable(name, v => ParseTime(v, now, zone) is { } time
            && time >= AlertMapping.Earliest && time <= now + NoteBook.MaxAhead ? Question.Whole(time) : null,
            $"{Question.TimeAllowed}, from the year 2000 to {NoteBook.MaxAhead.TotalDays} days ahead");
        var id = given.GetValueOrDefault("id");
        if (id != null && !NoteVersion.IsId(id))
            throw new NoteException(400, $"id: '{Question.Shown(id)}' is not usable; allowed: 1 to 64 of A-Z a-z 0-9 . _ -");
        return new NoteDraft(id, Usable("version", v => long.TryParse(
            v, NumberStyles.None, CultureInfo.InvariantCulture, out var number) ? number : (long?)null, "a whole number"),
            given.Keys.ToHashSet())
        {
            Kind = Usable("kind", v => NoteDraft.KindOf(v), string.Join(", ", NoteDraft.Kinds)),
            From = Time("from"),
            To = Time("to"),
            Platform = given.GetValueOrDefault("platform"),
            Service = given.GetValueOrDefault("service"),
            Facet = given.GetValueOrDefault("facet"),
            Location = given.GetValueOrDefault("location"),
            Status = given.GetValueOrDefault("status"),
            Text = given.GetValueOrDefault("text"),
            AuthorName = given.GetValueOrDefault("author_name"),
            IsWithdrawn = Usable("withdrawn", v => bool.TryParse(v, out var flag) ? flag : (bool?)null, "true, false"),
        };
    }

    /// <summary>As of a question, or without an offset, in the zone.</summary>
    public static DateTime? ParseTime(string text, DateTime now, Zone zone)
    {
        string[] local = ["yyyy-MM-dd'T'HH:mm", "yyyy-MM-dd'T'HH:mm:ss"];
        return DateTime.TryParseExact(text, local, CultureInfo.InvariantCulture, DateTimeStyles.None, out var time)
            && time.Year is > 1 and < 9999 ? zone.Begin(time) : Question.ParseTime(text, now, zone);
    }

    /// <summary>What whoever wrote the last version should know.</summary>
    /// <param name="matches">So many services it is about.</param>
    public static IEnumerable<string> Warnings(Note note, long matches)
    {
        var last = note.Last;
        if (last.IsWithdrawn && note.Versions is [.., { IsWithdrawn: true }, _])
            yield return "it was withdrawn before, and still is: \"withdrawn\": false takes that back";
        if (last.IsWithdrawn)
            yield break;
        if (matches == 0)
            yield return "it matches no service that is known";
        if (last.Kind == NoteKind.Maintenance)
        {
            var held = note.Announced(_ => true);
            if (held.Length == 0)
                yield return "it was over when it was received, so that it holds nowhere: excluded is for what was not announced";
            else if (held is not [var span] || span != last.Span)
                yield return $"not all of it was announced: it holds from {string.Join(" and from ", held.Select(Told))}; "
                    + "excluded is for what was not";
        }
        if (last is { Kind: NoteKind.Excluded or NoteKind.Correction, To: null })
            yield return "it has no end: it holds until a version gives it one";
    }

    private static string Told(Interval span) => Rfc3339.Format(UnixTime.Read(span.From))
        + (span.To == UnixTime.Open ? " on" : $" to {Rfc3339.Format(UnixTime.Read(span.To))}");

    /// <summary>The last version as JSON.</summary>
    public byte[] Write(Note note)
    {
        var writer = new RowWriter(OutputFormat.Json);
        foreach (var (column, cell) in Columns.Zip(Cells(note)))
            writer.Property(column, cell);
        return writer.End().ToArray();
    }

    private object?[] Cells(Note note)
    {
        var (v, matches) = (note.Last, questions.CountMatching(note.Last.Filter));
        return
        [
            v.Id, note.Versions.Count, NoteDraft.NameOf(v.Kind), v.From, v.To, v.Filter.Partition, v.Filter.Platform,
            v.Filter.Service, v.Filter.Facet, v.Filter.Location, v.Status, v.Text, v.Author, v.AuthorName, v.IsWithdrawn,
            v.Received, v.Recorded, (int)matches, Warnings(note, matches).ToArray(),
        ];
    }

    /// <summary>The notes that are asked for, in parts, each valid until the next is asked for.</summary>
    /// <param name="width">Of the terminal; null: it is none.</param>
    public IEnumerable<ReadOnlyMemory<byte>> Write(NoteQuestion question, OutputFormat format, int? width)
    {
        var writer = new RowWriter(format, width);
        writer.Property("as_of", questions.Moment);
        writer.BeginList("notes", Columns);
        foreach (var note in questions.Notes(question.Filter, question.From, question.To))
        {
            if ((question.Id ?? note.Last.Id) != note.Last.Id || (question.Kind ?? note.Last.Kind) != note.Last.Kind)
                continue;
            for (var i = question.HasAllVersions ? 1 : note.Versions.Count; i <= note.Versions.Count; i++)
                writer.Row(Columns, Cells(new Note([.. note.Versions.Take(i)])));
            if (writer.IsFull)
                yield return writer.Take();
        }
        writer.EndList();
        yield return writer.End();
    }

    /// <summary>The last version in a line, for who wrote it.</summary>
    public string Line(Note note, Zone zone)
    {
        var (v, matches) = (note.Last, questions.CountMatching(note.Last.Filter));
        string At(DateTime time) => $"{zone.Local(time):yyyy-MM-dd HH:mm}";
        string?[] names = [v.Filter.Platform, v.Filter.Service, v.Filter.Facet, v.Filter.Location];
        return string.Join("  ", new[]
        {
            v.Id, $"version {note.Versions.Count}", (v.IsWithdrawn ? "withdrawn " : "") + NoteDraft.NameOf(v.Kind),
            $"{At(v.From)} to {(v.To is { } to ? At(to) : "…")} ({zone.Name})",
            names.All(n => n == null) ? "all" : string.Join(' ', names.Select(n => n == "" ? "''" : n ?? "*").Reverse().SkipWhile(n => n == "*").Reverse()),
            matches == 1 ? "1 service" : $"{matches} services",
        });
    }
}

// ================================ 12. Reports ================================
//
// What people read of a period: the verdicts on a platform's services, their figures and their outages, with what
// was said of these. The same tables are made for a terminal and for paper. A figure of several services is the
// share that their times added up have, never the mean of percentages, and percentages are cut, never rounded up.

/// <summary>A service of a report, with a row for each period before whose end it was known.</summary>
/// <param name="Name">As much of its names as tells it apart from the others of its platform.</param>
internal sealed record ReportedService(ServiceKey Key, string Name, IReadOnlyList<ReportRow> Rows);

/// <summary>The cells of a table; its columns are named as <see cref="TextTable"/> knows them.</summary>
internal sealed record ReportTable(IReadOnlyList<string> Columns, IReadOnlyList<string[]> Rows);

/// <summary>A report on the services of one platform.</summary>
/// <param name="rows">One at least; in the order of periods.</param>
/// <param name="outages">In the order of their begins.</param>
/// <param name="asOf">What is later is not known yet.</param>
internal sealed class PlatformReport(
    Counting counting, DateTime asOf, IReadOnlyList<ReportRow> rows, IReadOnlyList<OutageRow> outages)
{
    private const double LeastCoverage = 95;

    private readonly decimal? _objective = counting.Objectives?.Of(rows[0].Service.Platform);
    private readonly Dictionary<ServiceKey, string> _names = NamesOf([.. rows.Select(r => r.Service).Distinct()]);

    private static readonly string[] OutageColumns = ["outage", "from", "to", "down_seconds", "notes"];

    /// <summary>One for each platform, in the order of names.</summary>
    public static List<PlatformReport> All(
        Counting counting, DateTime asOf, IReadOnlyList<ReportRow> rows, IReadOnlyList<OutageRow> outages)
    {
        var byPlatform = outages.ToLookup(o => (o.Service.Partition, o.Service.Platform));
        return [.. rows.GroupBy(r => (r.Service.Partition, r.Service.Platform))
            .Select(g => new PlatformReport(counting, asOf, [.. g], [.. byPlatform[g.Key]]))];
    }

    public string Partition => rows[0].Service.Partition;

    public string Platform => rows[0].Service.Platform;

    public DateTime From { get; } = rows.Min(r => r.From);

    public DateTime To { get; } = rows.Max(r => r.To);

    /// <summary>The periods, in order; one of them is null if the range is none.</summary>
    public IReadOnlyList<string?> Periods { get; } =
        [.. rows.OrderBy(r => r.From).Select(r => r.Period).Distinct()];

    /// <summary>Those that missed their objective first, then the least available.</summary>
    public IReadOnlyList<ReportedService> Services => field ??= [.. rows.GroupBy(r => r.Service)
        .Select(g => new ReportedService(g.Key, _names[g.Key], [.. g]))
        .OrderBy(s => !s.Rows.Any(IsMissed)).ThenBy(s => AdjustedOf(s.Rows) ?? 101)
        .ThenBy(s => s.Name, StringComparer.Ordinal)];

    // ---- In words ----

    /// <summary>What is reported on: the periods, their zone, the hours that count, the objective.</summary>
    public string Subject => $"{Range}, {counting.Zone.Name}, {counting.Hours?.Text ?? "all hours"}"
        + (_objective is { } objective ? $", objective {Percent(objective)} %" : "");

    /// <summary>The periods that are reported on.</summary>
    public string Range => Periods[0] is not { } first ? $"{Time(From)} to {Time(To)}"
        : TitleOf(first, From) + (Periods.Count == 1 ? "" : $" to {TitleOf(Periods[^1]!, rows.Max(r => r.From))}")
            + (To > asOf ? " so far" : "");

    private string TitleOf(string period, DateTime from) => counting.Period switch
    {
        PeriodLength.Month => counting.Zone.Local(from).ToString("MMMM yyyy", CultureInfo.InvariantCulture),
        PeriodLength.Quarter => $"{period[^2..]} {period[..4]}",
        _ => period,
    };

    /// <summary>To the minute, in the zone of the report.</summary>
    public string Time(DateTime time) =>
        counting.Zone.Local(time).ToString("yyyy-MM-dd HH:mm", CultureInfo.InvariantCulture);

    /// <summary>That of its document: partition, platform and period, as far as that is no odd name.</summary>
    /// <param name="isPlain">False: with a hash, where another one's is the same.</param>
    public string FileName(bool isPlain)
    {
        const int Longest = 80;
        string Safe(string name) => string.Concat(AlertMapping.Clip(name, Longest)
            .Select(c => char.IsLetterOrDigit(c) || c is '-' or '_' or '.' ? c : '_')).Trim('.');
        var range = Periods[0] == null ? $"{Time(From)[..10]}_{Time(To)[..10]}"
            : Periods.Count == 1 ? Periods[0] : $"{Periods[0]}_{Periods[^1]}";
        isPlain &= Safe(Partition) == Partition && Safe(Platform) == Platform;
        var hash = SHA256.HashData(Encoding.UTF8.GetBytes($"{Partition}/{Platform}")).AsSpan(0, 4);
        return $"{Safe(Partition)}-{Safe(Platform)}{(isPlain ? "" : "-" + Convert.ToHexStringLower(hash))}-{range}.html";
    }

    /// <summary>The whole in a sentence.</summary>
    public string Verdict => _objective == null ? Summary : string.Join(", ", Verdicts());

    private string Summary
    {
        get
        {
            var failed = Services.Count(s => s.Rows.Any(r => r.Figures.Outages > 0));
            return AdjustedOf(rows) == null ? $"nothing is known of {Counted(Services.Count, "service")}"
                : $"adjusted availability of {Counted(Services.Count, "service")}: {Adjusted(rows)} %, "
                    + (failed == 0 ? "no outage" : $"outages of {failed}");
        }
    }

    private IEnumerable<string> Verdicts()
    {
        var met = rows.Where(IsMet).ToList();
        var sparse = met.Where(IsSparse).ToList();
        var (missed, lasting) = (rows.Count(IsMissed), rows.Count(r => IsMetOf(r) == null && r.To > asOf));
        var isSoFar = lasting > 0 && met.Count == 0;
        yield return isSoFar ? $"{lasting} of {rows.Count} within the budget so far"
            : $"{met.Count - sparse.Count} of {rows.Count} met";
        if (missed > 0)
            yield return $"{missed} missed";
        if (sparse is [{ Figures.Coverage: { } coverage }])
            yield return $"1 met on {Percent(Math.Floor((decimal)coverage * 10) / 10)} % of its time";
        if (sparse.Count > 1)
            yield return $"{sparse.Count} met on less than {LeastCoverage} % of their time";
        if (lasting > 0 && !isSoFar)
            yield return $"{lasting} within the budget so far";
        if (rows.Count - met.Count - missed - lasting is > 0 and var unknown)
            yield return $"{unknown} not known";
    }

    public static string Counted(long count, string what) => $"{count} {what}{(count == 1 ? "" : "s")}";

    public static string Percent(decimal share) => share.ToString("0.#########", CultureInfo.InvariantCulture);

    private bool? IsMetOf(ReportRow row) =>
        _objective is { } objective ? row.Figures.IsMet(objective, row.To > asOf) : null;

    private bool IsMet(ReportRow row) => IsMetOf(row) == true;

    public bool IsMissed(ReportRow row) => IsMetOf(row) == false;

    /// <summary>So little is known that a verdict says little.</summary>
    private static bool IsSparse(ReportRow row) => row.Figures.Coverage < LeastCoverage;

    /// <summary>Whether a verdict has the mark that says so.</summary>
    public bool HasMarks => _objective != null && rows.Any(r => IsSparse(r) && IsMetOf(r) != null);

    // ---- Figures ----

    private static long Sum(IReadOnlyList<ReportRow> of, Func<Figures, long> part) => of.Sum(r => part(r.Figures));

    /// <summary>In percent, in thousandths; null: without a base.</summary>
    private static decimal? Share(long part, long whole) =>
        whole == 0 ? null : Math.Floor(100_000m * part / whole) / 1000;

    private static string Shown(decimal? share) => share?.ToString("0.000", CultureInfo.InvariantCulture) ?? "-";

    private static decimal? AdjustedOf(IReadOnlyList<ReportRow> of)
    {
        var whole = Sum(of, f => f.Base);
        return Share(whole - Sum(of, f => f.BaseDown), whole);
    }

    private static string Adjusted(IReadOnlyList<ReportRow> of) => Shown(AdjustedOf(of));

    /// <summary>In hours, minutes and seconds.</summary>
    /// <param name="isBrief">Without the seconds of a minute or more.</param>
    public static string Lasted(long milliseconds, bool isBrief = false)
    {
        var (hours, minutes, seconds) = (milliseconds / 3_600_000, milliseconds / 60_000 % 60, milliseconds / 1000 % 60);
        return milliseconds == 0 ? "-"
            : hours > 0 ? $"{hours} h" + (minutes > 0 ? $" {minutes} min" : "")
            : minutes > 0 ? $"{minutes} min" + (seconds > 0 && !isBrief ? $" {seconds} s" : "")
            : Quantity.Lasted(TimeSpan.FromMilliseconds(milliseconds));
    }

    private string VerdictOn(ReportRow row) => (IsMetOf(row) switch
    {
        true => "✔ met",
        false => "✖ missed",
        null => row.To > asOf ? "so far" : "unknown",
    }) + (IsSparse(row) && IsMetOf(row) != null ? " ?" : "");

    private string BudgetLeft(ReportRow row)
    {
        var (budget, left) = ((long)row.Figures.Budget(_objective!.Value), row.Figures.BudgetLeft(_objective.Value));
        string Text(long milliseconds) => milliseconds == 0 ? "0 s" : Lasted(milliseconds, isBrief: true);
        return $"{(left < 0 ? "-" + Text((long)Math.Ceiling(-left)) : Text((long)left))} of {Text(budget)}";
    }

    // ---- Tables ----

    /// <summary>The services of one period, and their sum.</summary>
    public ReportTable Figures()
    {
        string[] verdicts = _objective == null ? [] : ["objective", "budget_left"];
        var cells = Services.Select(s => Cells(s.Name, s.Rows,
            _objective == null ? [] : [VerdictOn(s.Rows[0]), BudgetLeft(s.Rows[0])])).ToList();
        if (cells.Count > 1)
            cells.Add(Cells($"all {cells.Count} services", rows, [.. verdicts.Select(_ => "")]));
        return new(["service", "adjusted_availability", "available", .. verdicts, "down_seconds", "outages",
            "maintenance_seconds", "unknown_seconds"], cells);
    }

    private static string[] Cells(string name, IReadOnlyList<ReportRow> of, string[] verdict) =>
    [
        name, Adjusted(of), Shown(Share(Sum(of, f => f.Up + f.Degraded), Sum(of, f => f.Known))),
        .. verdict, Lasted(Sum(of, f => f.Down)), $"{Sum(of, f => f.Outages)}", Lasted(Sum(of, f => f.Maintenance)),
        Lasted(Sum(of, f => f.Unknown)),
    ];

    /// <summary>The adjusted availability of each service in each period and in all, and their sums.</summary>
    /// <param name="most">Columns beside the services' that a table may have; what is left has one of its own.</param>
    public IEnumerable<ReportTable> ByPeriod(int most)
    {
        List<(string Name, IReadOnlyList<ReportRow> Rows)> lines = [.. Services.Select(s => (s.Name, s.Rows))];
        if (lines.Count > 1)
            lines.Add(($"all {lines.Count} services", rows));
        foreach (var some in Periods.Append("total").Chunk(Math.Max(1, most)))
            yield return new(["service", .. some!], [.. lines.Select(l => (string[])
                [l.Name, .. some.Select(p => p == "total" ? CellOf(l.Rows) : CellOf([.. l.Rows.Where(r => r.Period == p)]))])]);
    }

    /// <summary>Only of one service and one period there is a verdict.</summary>
    private string CellOf(IReadOnlyList<ReportRow> of) => Adjusted(of).PadLeft(7)
        + (of is not [var row] || IsMetOf(row) == null ? ""
            : (IsMissed(row) ? " ✖" : "") + (IsSparse(row) ? " ?" : ""));

    /// <param name="isShort">Days of the report's own year are told without it.</param>
    public ReportTable Outages(bool isShort)
    {
        var last = isShort ? counting.Zone.Local(To.AddMilliseconds(-1)).Year : 0;
        var isOneYear = counting.Zone.Local(From).Year == last;
        string Day(DateTime time) => Time(time)[(isOneYear && counting.Zone.Local(time).Year == last ? 5 : 0)..];
        return new(OutageColumns, [.. outages.Select(o => (string[])
        [
            _names.GetValueOrDefault(o.Service) ?? o.Service.Service, Day(o.From), o.To is { } to ? Day(to) : "goes on",
            Lasted(o.Down), string.Join("; ", o.Notes.Select(n => NoteOn(n, o, Day))),
        ])]);
    }

    private string NoteOn(Note note, OutageRow outage, Func<DateTime, string> day)
    {
        var (last, kind) = (note.Last, NoteDraft.NameOf(note.Last.Kind));
        if (last.Kind == NoteKind.Maintenance)
        {
            // Of a night of work the times are enough beside those of the outage.
            string Of(DateTime time) => last.To - last.From < TimeSpan.FromDays(1) ? Time(time)[^5..] : day(time);
            var since = note.Versions[0].Received;
            var (from, until) = (Math.Max(last.Span.From, UnixTime.From(outage.From)),
                Math.Min(last.Span.To, UnixTime.From(outage.To ?? asOf)));
            var announced = Interval.Length(note.Announced(f => f.Takes(outage.Service)), from, until);
            return $"{kind} {Of(last.From)} to {(last.To is { } to ? Of(to) : "no end")} "
                + $"({(announced == 0 ? "added" : announced == until - from ? "announced" : "in part announced")} {day(since)[..^6]})";
        }
        var when = last.Received >= outage.To ? "after the outage" : last.Received >= outage.From ? "during it" : "before it";
        return $"{kind}{(last.Status == null ? "" : $", {last.Status}")}: {last.Text} "
            + $"({AuthorOf(last)}, {day(last.Received)}, {when})";
    }

    public static string AuthorOf(NoteVersion version) =>
        version.Author + (version.AuthorName == null ? "" : $", {version.AuthorName}");

    /// <summary>What tells services of a platform apart: a location does where it must, its labels likewise.</summary>
    private static Dictionary<ServiceKey, string> NamesOf(List<ServiceKey> services)
    {
        var names = new Dictionary<ServiceKey, string>();
        Func<ServiceKey, string>[] ways =
        [
            s => Joined(s.Service, s.Facet), s => Joined(s.Service, s.Facet, s.Location.Split('{')[0]),
            s => Joined(s.Service, s.Facet, s.Location),
        ];
        foreach (var way in ways)
        {
            foreach (var alike in services.Where(s => !names.ContainsKey(s)).GroupBy(way).ToList())
            {
                if (alike.Count() == 1 || way == ways[^1])
                    foreach (var service in alike)
                        names[service] = alike.Key;
            }
        }
        return names;
    }

    private static string Joined(params string[] names) => string.Join(' ', names.Where(n => n != ""));
}

/// <summary>Writes reports for a terminal.</summary>
/// <param name="width">In its columns.</param>
internal sealed class ReportText(int width)
{
    /// <param name="withPartition">Whether there are others than the first one's.</param>
    public string Of(PlatformReport report, string asOf, bool withPartition)
    {
        var tables = report.Periods.Count == 1 ? [report.Figures()] : report.ByPeriod(Fitting(report)).ToList();
        var figures = string.Join('\n', tables.Select(Written));
        var outages = report.Outages(isShort: true);
        var text = new StringBuilder();
        void Line(string line) => text.Append(Terminal.Cut(line, width)).Append('\n');
        foreach (var line in Head(
            (withPartition ? report.Partition + "/" : "") + $"{report.Platform}: {report.Subject}", $"as of {asOf}", figures))
            Line(line);
        Line(report.Verdict);
        text.Append('\n').Append(figures);
        if (report.HasMarks)
            Line("? less than 95 % of the time is known");
        text.Append('\n');
        if (outages.Rows.Count == 0)
            Line("no outages");
        else
            text.Append(Written(outages));
        return text.ToString();
    }

    /// <summary>One line, as wide as what stands below, or two where that is too narrow.</summary>
    private IEnumerable<string> Head(string subject, string asOf, string below)
    {
        var (plain, widest) = (Terminal.Plain(subject), Math.Min(width, below.Split('\n').Max(Terminal.Columns)));
        var space = widest - Terminal.Columns(plain) - asOf.Length;
        return space >= 2 ? [plain + new string(' ', space) + asOf]
            : Terminal.Columns(plain) + 2 + asOf.Length <= width ? [$"{plain}  {asOf}"] : [plain, asOf];
    }

    /// <summary>So many columns of percentages fit beside the names, which may be cut for them.</summary>
    private int Fitting(PlatformReport report)
    {
        const int LongestName = 32, Percentage = 9, Mark = 2, Gap = 2;
        var names = report.Services.Max(s => Terminal.Columns(Terminal.Plain(s.Name)));
        var cell = Math.Max(report.Periods.Max(p => p!.Length), Percentage + (report.HasMarks ? Mark : 0)) + Gap;
        return Math.Max(1, (width - Math.Min(names, LongestName)) / cell);
    }

    private string Written(ReportTable table)
    {
        // Names and notes are read.
        const int LeastText = 18;
        var text = new TextTable(width, LeastText);
        text.Begin(table.Columns);
        foreach (var row in table.Rows)
            text.Add(row);
        return text.End();
    }
}

// ================================= 13. Onix ==================================
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
/// <param name="Time">Null: an item without a time that can be read, which somebody else made.</param>
internal sealed record OnixItem(string Key, ServiceKey Service, string Status, DateTime? Time, long Version);

/// <summary>A change to write: the item with this key, if Onix still holds this version of it.</summary>
internal sealed record ItemChange(
    string Key, ServiceKey Service, string Status, DateTime Time, string Description, long Version)
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
[JsonSerializable(typeof(ItemBody))]
[JsonSerializable(typeof(TokenResponse))]
internal sealed partial class OnixJson : JsonSerializerContext;

/// <summary>Names in Onix; existing installations and reports depend on each.</summary>
internal static class OnixNames
{
    public const string Model = "SES", ItemType = "SES_SERVICE";

    private const int MaxKey = 100, CutKey = 91;

    /// <summary>
    /// Onix's index over the values of attributes takes rows of 2,712 bytes: a value beyond is refused.
    /// </summary>
    private const int MaxAttribute = 2600;

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
        var service = change.Service;
        static string Value(string text) => AlertMapping.Clip(text, MaxAttribute);
        return new ItemBody
        {
            Key = change.Key,
            Name = service.Service + " Service",
            Description = change.Description,
            Type = ItemType,
            Partition = service.Partition,
            Version = change.Version,
            Attribute = new Dictionary<string, string?>
            {
                ["service"] = service.Service,
                ["status"] = Value(change.Status),
                ["description"] = Value(change.Description),
                ["location"] = service.Location,
                ["time"] = Rfc3339.Format(change.Time),
                ["platform"] = service.Platform,
                ["facet"] = service.Facet,
            },
        };
    }

    public static OnixItem Held(ItemBody item)
    {
        string Of(string name) => item.Attribute?.GetValueOrDefault(name) ?? "";
        var service = new ServiceKey(
            item.Partition ?? "", Of("platform"), Of("service"), Of("facet"), Of("location"));
        return new OnixItem(item.Key ?? "", service, Of("status"),
            Rfc3339.TryParse(Of("time"), out var time) ? time : null, item.Version);
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

/// <summary>Reads Onix's list of items as it comes: a large one is never held as a whole.</summary>
internal sealed class ItemListReader
{
    private const int ItemsAtOnce = 500, ReadSize = 64 * 1024;

    private readonly List<OnixItem> _items = [];
    private JsonReaderState _state;
    private bool _isInValues, _hasValues;

    /// <exception cref="JsonException">It is no JSON, or no list.</exception>
    public async Task ReadAsync(
        Stream body, Func<IReadOnlyList<OnixItem>, Task> take, CancellationToken stop)
    {
        var (buffer, held, read) = (new byte[ReadSize], 0, 0);
        do
        {
            if (held == buffer.Length)
                Array.Resize(ref buffer, 2 * held);
            read = await body.ReadAsync(buffer.AsMemory(held), stop);
            held += read;
            var used = Scan(buffer.AsSpan(0, held), read == 0);
            buffer.AsSpan(used, held - used).CopyTo(buffer);
            held -= used;
            if (_items.Count < ItemsAtOnce && read > 0)
                continue;
            await take(_items);
            _items.Clear();
        }
        while (read > 0);
        if (!_hasValues)
            throw new JsonException("the list has no values");
    }

    /// <summary>Takes the items that are there as a whole; how many bytes it has used.</summary>
    private int Scan(ReadOnlySpan<byte> json, bool isLast)
    {
        var reader = new Utf8JsonReader(json, isLast, _state);
        while (true)
        {
            var before = reader;
            if (!reader.Read())
                break;
            if (reader.TokenType == JsonTokenType.PropertyName && reader.CurrentDepth == 1)
                _isInValues = reader.ValueTextEquals("values"u8);
            _hasValues |= _isInValues && reader.TokenType == JsonTokenType.StartArray;
            if (!_isInValues || reader.TokenType != JsonTokenType.StartObject || reader.CurrentDepth != 2)
                continue;
            var start = (int)reader.TokenStartIndex;
            if (!reader.TrySkip())
            {
                reader = before;
                break;
            }
            _items.Add(OnixNames.Held(JsonSerializer.Deserialize(
                json[start..(int)reader.BytesConsumed], OnixJson.Default.ItemBody)!));
        }
        _state = reader.CurrentState;
        return (int)reader.BytesConsumed;
    }
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
    private volatile HttpClient _http;
    private readonly TimeProvider _clock;
    private readonly Meters _meters;
    private readonly string _base;
    private string? _ca;
    // Kept from request to request: a body is large, and there is one at a time.
    private readonly ArrayBufferWriter<byte> _body = new();
    private string? _token;
    private long _tokenTaken;
    private TimeSpan _tokenLife;

    public OnixClient(Options options, HttpMessageHandler handler, TimeProvider clock, Meters meters)
    {
        (_options, _clock, _meters) = (options, clock, meters);
        _http = NewClient(handler);
        _ca = options.OnixCaFile is { } path ? File.ReadAllText(path) : null;
        _base = options.OnixUrl!.AbsoluteUri.TrimEnd('/');
    }

    private static HttpClient NewClient(HttpMessageHandler handler) =>
        new(handler) { Timeout = Timeout.InfiniteTimeSpan };

    /// <summary>Trusts what the CA file has now. False: it has the same.</summary>
    /// <exception cref="CryptographicException">It holds no certificate.</exception>
    /// <exception cref="IOException">It cannot be read.</exception>
    public bool RereadCa()
    {
        if (File.ReadAllText(_options.OnixCaFile!) is var now && now == _ca)
            return false;
        // A request that is under way ends as it began.
        _http = NewClient(CreateHandler(_options));
        _ca = now;
        return true;
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
    /// <returns>Whether they were missing.</returns>
    public async Task<bool> EnsureModelAsync(bool again, CancellationToken stop)
    {
        if (!again && await AskAsync("model", HttpMethod.Get, "/model/" + OnixNames.Model, null,
            (answer, _) => Task.FromResult(answer.StatusCode switch
            {
                HttpStatusCode.OK => true,
                HttpStatusCode.NotFound => false,
                _ => throw Unexpected(answer),
            }), stop))
            return false;
        var result = await AskAsync("model", HttpMethod.Put, "/data", OnixNames.ModelData(),
            (answer, limit) => ReadAsync(answer, OnixJson.Default.DataResult, limit), stop);
        if (result.Values?.Find(v => v.Error) is { } refused)
            throw new OnixException(
                $"Onix refuses the model SES ({FirstLine(refused.Message)}); {LeastRights}");
        return true;
    }

    /// <summary>
    /// All items that the user may read, some at a time; an item that is not listed is absent.
    /// </summary>
    public Task ListAsync(Func<IReadOnlyList<OnixItem>, Task> take, CancellationToken stop) =>
        AskAsync("list", HttpMethod.Get, $"/item?type={OnixNames.ItemType}&top={ListLimit}", null,
            async (answer, limit) =>
            {
                if (answer.StatusCode != HttpStatusCode.OK)
                    throw Unexpected(answer);
                try
                {
                    using var body = await answer.Content.ReadAsStreamAsync(limit);
                    await new ItemListReader().ReadAsync(body, take, limit);
                    return true;
                }
                catch (Exception e) when (e is JsonException or IOException)
                {
                    throw Unreadable(e);
                }
            }, stop);

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
                AuthMode.Basic => Basic(_options.OnixUsername, _options.OnixPassword.Value),
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
            throw Unreadable(e);
        }
    }

    private static OnixException Unreadable(Exception e) => new($"Onix's answer cannot be read: {e.Message}");

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
                ["password"] = _options.OnixPassword.Value,
                ["scope"] = "openid onix",
            }),
        };
        // RFC 6749, 2.3.1: id and secret are form-encoded before they are joined.
        request.Headers.Authorization = Basic(
            Uri.EscapeDataString(_options.OnixClientId!), Uri.EscapeDataString(_options.OnixAppSecret!.Value));
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

// =============================== 14. Recorder ================================
//
// Brings the history to Onix, in order and once in effect. It takes the services that are marked in the
// store, decides for each, from what Onix holds and from the service's timeline, which changes Onix lacks,
// and sends these in order of time over all services, guarded by Onix's versions, so that two SeS never write
// a change twice nor overwrite a later one. Deciding again changes nothing. What Onix confirmed and the
// mark's end are one transaction; a service whose change Onix refuses keeps its mark, and is tried again
// later.
//
// One change of an item goes in one request, never a chain of them: were Onix to move on by one version
// between, the second of a chain would find its version and overwrite what another SeS wrote.

/// <summary>How the Recorder is doing, for probes and metrics.</summary>
/// <param name="Trouble">Why Onix confirms nothing; null while it does.</param>
/// <param name="Confirmed">When Onix last confirmed anything; null: not since the start.</param>
/// <param name="Backlog">
/// Services with changes that Onix has not confirmed, those that it refuses too.
/// </param>
/// <param name="Oldest">Since when the first of them waits.</param>
/// <param name="BarredReason">Onix's words on one of those that it refuses.</param>
/// <param name="IsAnew">Onix is another, or lost what it had: services are still being marked for all of it.</param>
internal sealed record RecorderState(string? Trouble, DateTime? Confirmed, long Backlog, DateTime? Oldest,
    long Barred, string? BarredReason, bool IsAnew)
{
    /// <summary>In a word, for programs.</summary>
    public string Word => Trouble != null ? "away" : Confirmed == null ? "starting"
        : Backlog > 0 || IsAnew ? "behind" : "recorded";

    public const string NotAsked = "Onix was not asked yet",
        LostAll = "Onix came back without what it had, and gets the whole history again", HasAll = "Onix has all changes";

    public bool IsNotAsked => Trouble == null && Confirmed == null;

    /// <summary>In one sentence without its point, for people.</summary>
    public string Sentence => (Trouble == null ? "" : $"Onix confirms nothing: {Trouble}; ")
        + (IsNotAsked ? NotAsked : IsAnew ? LostAll : Backlog == 0 ? HasAll
            : $"Onix lacks changes of {Backlog} services"
                + (Barred == 0 ? "" : $", of which it refuses {Barred}: {BarredReason}"));
}

/// <summary>A service whose change Onix refuses.</summary>
internal sealed record BarredService(ServiceKey Service, DateTime Since, string Reason);

/// <summary>A change of status as Onix is told it.</summary>
internal readonly record struct ToldChange(DateTime Time, string Status, long Observation);

/// <summary>Decides, purely, which changes Onix lacks.</summary>
internal static class OnixChanges
{
    /// <summary>
    /// The changes later than what Onix holds, in order. A run that began earlier, lasts beyond it and has
    /// another status comes 1 ms after it, so that what Onix has last is always what is; but not if another
    /// SeS wrote what Onix holds, of something that this one has not heard.
    /// </summary>
    /// <param name="told">
    /// The timeline without unknown, from the last run on that began before what Onix holds.
    /// </param>
    /// <param name="status">What Onix holds; null: it has no item.</param>
    public static List<ToldChange> Lacking(
        IReadOnlyList<ToldChange> told, string? status, DateTime? at, bool isOwn)
    {
        var (lacking, last) = (new List<ToldChange>(), status);
        foreach (var change in told)
        {
            if (!isOwn && change.Time <= at)
                continue;
            var time = at is { } held && change.Time <= held ? held.AddMilliseconds(1) : change.Time;
            // It lasts no longer than that millisecond.
            if (lacking.Count > 0 && lacking[^1].Time == time)
            {
                lacking.RemoveAt(lacking.Count - 1);
                last = lacking.Count > 0 ? lacking[^1].Status : status;
            }
            if (change.Status == last)
                continue;
            lacking.Add(change with { Time = time });
            last = change.Status;
        }
        return lacking;
    }
}

/// <summary>One service's share of a turn.</summary>
internal sealed class Job(WaitingService waiting, List<ToldChange> changes, DateTime? rest)
{
    public WaitingService Waiting => waiting;

    /// <summary>In order; those later than the turn's horizon are for another turn.</summary>
    public List<ToldChange> Changes => changes;

    public string Key { get; } = waiting.Key ?? OnixNames.Key(waiting.Service);

    /// <summary>What Onix is known to hold; 0: nothing.</summary>
    public long Version { get; set; } = waiting.Version;

    /// <summary>How many of the changes Onix has confirmed.</summary>
    public int Done { get; set; }

    /// <summary>Of the first change that is left for another turn; null: there is none.</summary>
    public DateTime? Rest { get; private set; } = rest;

    /// <summary>It was refused or locked, and waits for another turn.</summary>
    public bool IsStopped { get; set; }

    /// <summary>
    /// Of the first change that Onix lacks after those that it confirmed; null: there is none.
    /// </summary>
    public DateTime? Next => Done < changes.Count ? changes[Done].Time : Rest;

    /// <summary>Leaves what is later than a horizon for another turn.</summary>
    public void Cut(DateTime horizon)
    {
        var count = changes.FindIndex(c => c.Time > horizon);
        if (count < 0)
            return;
        Rest = changes[count].Time;
        changes.RemoveRange(count, changes.Count - count);
    }

    public bool IsAlternate => Key == OnixNames.AlternateKey(waiting.Service);
}

/// <summary>Reads from a snapshot what waits for Onix, and what Onix holds.</summary>
internal sealed class OutboxReader(Snapshot snapshot) : IDisposable
{
    /// <summary>Changes of a service that are looked at in one turn.</summary>
    private const int ChangesAtOnce = 16;

    private const string Columns = """
        SELECT o.service, p.name, f.platform, f.service, f.facet, s.location, o.key, o.version, o.status, o.at,
            o.own, o.next, o.marks, o.tries, o.barred, o.error,
            EXISTS (SELECT 1 FROM sent t WHERE t.service = o.service)
        FROM onix o CROSS JOIN service s ON s.id = o.service CROSS JOIN family f ON f.id = s.family
            CROSS JOIN partition p ON p.id = f.partition
        WHERE o.next IS NOT NULL AND
        """;

    /// <summary>Services that wait and are not put off, those with the earliest changes first.</summary>
    public List<WaitingService> Waiting(int most) =>
        Read($"{Columns} o.due IS NULL ORDER BY o.next LIMIT ?1", most);

    /// <summary>Services that were put off until now.</summary>
    public List<WaitingService> Due(DateTime now, int most) =>
        Read($"{Columns} o.due <= ?2 ORDER BY o.due LIMIT ?1", most, now);

    private List<WaitingService> Read(string sql, int most, DateTime? now = null)
    {
        var services = new List<WaitingService>();
        using var rows = snapshot.Query(sql);
        rows.Bind(1, most);
        if (now is { } time)
            rows.Bind(2, UnixTime.From(time));
        while (rows.Step())
            services.Add(new WaitingService(rows.Number(0),
                new ServiceKey(rows.Text(1), rows.Text(2), rows.Text(3), rows.Text(4), rows.Text(5)),
                rows.TextOrNull(6), rows.Number(7), rows.TextOrNull(8), TimeOf(rows, 9), rows.Number(10) != 0,
                UnixTime.Read(rows.Number(11)), rows.Number(12), (int)rows.Number(13), TimeOf(rows, 14),
                rows.TextOrNull(15), rows.Number(16) != 0));
        return services;
    }

    private static DateTime? TimeOf(SqliteStatement rows, int column) =>
        rows.NumberOrNull(column) is { } time ? UnixTime.Read(time) : null;

    /// <summary>When the next of those that were put off is due; null: none was.</summary>
    public DateTime? NextDue() =>
        snapshot.Number("SELECT min(due) FROM onix WHERE next IS NOT NULL AND due IS NOT NULL") is { } due
            ? UnixTime.Read(due) : null;

    /// <summary>What Onix lacks of a service, the first changes.</summary>
    public Job JobOf(WaitingService service)
    {
        using var rows = snapshot.Query("""
            SELECT at, status, observation FROM timeline
            WHERE service = ?1 AND status <> 3 AND observation <> 0 AND at >= coalesce((SELECT max(at)
                FROM timeline WHERE service = ?1 AND status <> 3 AND observation <> 0 AND at <= ?2), 0)
            ORDER BY at
            """);
        rows.Bind(1, service.Id).Bind(2, service.At is { } at ? UnixTime.From(at) : 0);
        var told = new List<ToldChange>();
        while (told.Count < ChangesAtOnce + 2 && rows.Step())
        {
            var status = snapshot.NameOf((Status)rows.Number(1));
            if (told.Count == 0 || told[^1].Status != status)
                told.Add(new ToldChange(UnixTime.Read(rows.Number(0)), status, rows.Number(2)));
        }
        AddAffirmation(service, told);
        var lacking = OnixChanges.Lacking(told, service.Status, service.At, service.IsOwn);
        DateTime? rest = lacking.Count > ChangesAtOnce ? lacking[ChangesAtOnce].Time : null;
        if (rest != null)
            lacking.RemoveRange(ChangesAtOnce, lacking.Count - ChangesAtOnce);
        return new Job(service, lacking, rest);
    }

    /// <summary>
    /// If another SeS wrote what Onix holds, and this one has heard later that the run which began before
    /// goes on, as when each hears half, that is a change.
    /// </summary>
    private void AddAffirmation(WaitingService service, List<ToldChange> told)
    {
        if (service.IsOwn || service.At is not { } at || told.Count == 0 || told[0].Time > at
            || told[0].Status == service.Status)
            return;
        using var rows = snapshot.Query("""
            SELECT starts, id FROM observation WHERE service = ?1 AND starts > ?2 AND starts < ?3
                AND status = (SELECT id FROM status WHERE name = ?4) AND kind = 0
            ORDER BY starts LIMIT 1
            """);
        rows.Bind(1, service.Id).Bind(2, UnixTime.From(at))
            .Bind(3, told.Count > 1 ? UnixTime.From(told[1].Time) : UnixTime.Open).Bind(4, told[0].Status);
        if (rows.Step())
            told[0] = told[0] with { Time = UnixTime.Read(rows.Number(0)), Observation = rows.Number(1) };
    }

    /// <summary>The services that Onix refuses, the longest first.</summary>
    public IReadOnlyList<BarredService> Barred(int most)
    {
        return [.. Read($"{Columns} o.barred IS NOT NULL ORDER BY o.barred LIMIT ?1", most)
            .Select(s => new BarredService(s.Service, s.Barred!.Value, s.Error ?? ""))];
    }

    /// <summary>How many services Onix refuses, and of how many partitions.</summary>
    public (long Services, long Partitions) CountBarred()
    {
        using var rows = snapshot.Query("""
            SELECT count(*), count(DISTINCT f.partition) FROM onix o CROSS JOIN service s ON s.id = o.service
                CROSS JOIN family f ON f.id = s.family WHERE o.next IS NOT NULL AND o.barred IS NOT NULL
            """);
        rows.Step();
        return (rows.Number(0), rows.Number(1));
    }

    /// <summary>How much waits.</summary>
    public (long Backlog, DateTime? Oldest, long Barred, string? Reason) Sum()
    {
        using var rows = snapshot.Query(
            "SELECT count(*), min(marked), count(barred) FROM onix WHERE next IS NOT NULL");
        rows.Step();
        using var reason = snapshot.Query(
            "SELECT error FROM onix WHERE next IS NOT NULL AND barred IS NOT NULL LIMIT 1");
        // Those that are to be marked, when Onix gets the whole history again.
        var more = snapshot.Number("""
            SELECT count(*) FROM service s LEFT JOIN onix o ON o.service = s.id
            WHERE o.next IS NULL AND s.id > (SELECT value FROM meta WHERE name = 'onix_anew')
            """) ?? 0;
        return (rows.Number(0) + more, TimeOf(rows, 1), rows.Number(2),
            rows.Number(2) > 0 ? reason.FirstText() : null);
    }

    /// <summary>Which service an item is, and what is known of it; null: no service of this store.</summary>
    public (long Service, string? Key, long Version, string? Status, DateTime? At)? Find(ServiceKey service)
    {
        _find ??= snapshot.Query("""
            SELECT s.id, o.key, coalesce(o.version, 0), o.status, o.at
            FROM partition p CROSS JOIN family f ON f.partition = p.id CROSS JOIN service s ON s.family = f.id
                LEFT JOIN onix o ON o.service = s.id
            WHERE p.name = ?1 AND f.platform = ?2 AND f.service = ?3 AND f.facet = ?4 AND s.location = ?5
            """);
        _find.Bind(1, service.Partition).Bind(2, service.Platform).Bind(3, service.Service)
            .Bind(4, service.Facet).Bind(5, service.Location);
        if (!_find.Step())
            return null;
        var found = (_find.Number(0), _find.TextOrNull(1), _find.Number(2), _find.TextOrNull(3),
            TimeOf(_find, 4));
        _find.Reset();
        return found;
    }

    private SqliteStatement? _find;

    public void Dispose() => _find?.Dispose();

    /// <summary>Services of which Onix held an item, by their number, after a number.</summary>
    public List<long> Held(long after, int most)
    {
        var services = new List<long>();
        using var rows = snapshot.Query(
            "SELECT service FROM onix WHERE service > ?1 AND version > 0 ORDER BY service LIMIT ?2");
        rows.Bind(1, after).Bind(2, most);
        while (rows.Step())
            services.Add(rows.Number(0));
        return services;
    }
}

/// <summary>Runs as one task; nothing else touches its fields but <see cref="State"/>.</summary>
internal sealed class Recorder(
    Store store, OnixClient onix, string url, TimeProvider clock, Log log, Meters meters)
{
    /// <summary>Services decided on at a time: memory must not grow with the backlog.</summary>
    private const int ServicesAtOnce = 1000;

    /// <summary>Onix takes no more items a second in larger requests.</summary>
    private const int BatchItems = 500, BatchBytes = 1024 * 1024;

    /// <summary>When more items are locked than this, one list costs Onix less than reading each.</summary>
    private const int ReadSingly = 20;

    /// <summary>Locked this often in a row, a service's change steps back behind those of others.</summary>
    private const int MaxLocks = 3;

    private static readonly TimeSpan
        ListPeriod = TimeSpan.FromMinutes(1),
        FirstPause = TimeSpan.FromSeconds(0.5), LongestPause = TimeSpan.FromSeconds(30);

    private readonly Dictionary<long, int> _locks = [];
    private bool _isListed, _isModelMissing, _hasRefusedAll, _acceptsOthers;
    private long _nextList;
    private volatile string? _trouble;
    private long _confirmed;

    /// <summary>Works until it is stopped; nothing that Onix does ends it.</summary>
    public async Task RunAsync(CancellationToken stop)
    {
        var failures = 0;
        var isBegun = false;
        while (!stop.IsCancellationRequested)
        {
            var marked = store.Marked;
            try
            {
                // What Onix refused before the start it may take now.
                if (!isBegun)
                    await ChangeAsync(w => w.Outbox.Retry(Now));
                isBegun = true;
                var worked = await WorkAsync(stop);
                if (_trouble != null)
                    log.Info("Onix is back", ("onix", url));
                (failures, _trouble) = (0, null);
                if (!worked)
                    await IdleAsync(marked, stop);
            }
            catch (OperationCanceledException) when (stop.IsCancellationRequested)
            {
                break;
            }
            catch (Exception e)
            {
                if (store.IsStopping)
                    break;
                Complain(e);
                await PauseAsync(failures++, stop);
            }
        }
    }

    private DateTime Now => UnixTime.Read(UnixTime.From(clock.GetUtcNow().UtcDateTime));

    private void Complain(Exception e)
    {
        var expected = e is OnixException or IOException or StoreException or SqliteException;
        var trouble = expected ? e.Message : "a defect in SeS, which its log tells";
        if (!expected)
            meters.Defects.Inc();
        if (trouble != _trouble)
            log.Warn("Onix confirms nothing; SeS keeps the changes and tries again",
                ("reason", expected ? trouble : "a defect in SeS: " + e));
        _trouble = trouble;
    }

    /// <summary>Doubling, capped, with jitter so that two SeS do not march in step.</summary>
    private async Task PauseAsync(int failures, CancellationToken stop)
    {
        var pause = FirstPause * Math.Pow(2, Math.Min(failures, 10));
        pause = (pause < LongestPause ? pause : LongestPause) * (0.5 + (Random.Shared.NextDouble() / 2));
        try
        {
            await Task.Delay(pause, clock, stop);
        }
        catch (OperationCanceledException)
        {
            // RunAsync sees it.
        }
    }

    /// <summary>One round of all that there is to do; false when there was nothing.</summary>
    private async Task<bool> WorkAsync(CancellationToken stop)
    {
        while (await store.ChangeAsync(w => w.Outbox.MarkNext(Now)))
            _isListed = false;
        if (!_isListed || clock.GetTimestamp() >= _nextList)
            await ListAsync(null, stop);
        // It is another Onix, or went back: that comes first.
        if (!_isListed)
            return true;
        var jobs = await Task.Run(ReadJobs, stop);
        if (jobs.Count == 0)
            return false;
        await SendAsync(jobs, stop);
        return true;
    }

    private async Task IdleAsync(Task marked, CancellationToken stop)
    {
        var wait = TimeSpan.FromSeconds(
            Math.Max(0, (_nextList - clock.GetTimestamp()) / (double)clock.TimestampFrequency));
        using (var snapshot = store.Snapshot())
        {
            if (new OutboxReader(snapshot).NextDue() is { } due)
                wait = due - Now < wait ? due - Now : wait;
        }
        if (wait <= TimeSpan.Zero)
            return;
        using var both = CancellationTokenSource.CreateLinkedTokenSource(stop);
        await await Task.WhenAny(marked, Task.Delay(wait, clock, both.Token));
        await both.CancelAsync();
    }

    private Task<bool> ChangeAsync(Action<Writer> change) => store.ChangeAsync(writer =>
    {
        change(writer);
        return true;
    });

    /// <summary>The state as of now. Safe from any thread.</summary>
    public RecorderState State()
    {
        using var snapshot = store.Snapshot();
        var (backlog, oldest, barred, reason) = new OutboxReader(snapshot).Sum();
        var confirmed = Volatile.Read(ref _confirmed);
        return new(_trouble, confirmed == 0 ? null : UnixTime.Read(confirmed), backlog, oldest, barred, reason,
            snapshot.Number("SELECT 1 FROM meta WHERE name = 'onix_anew'") != null);
    }

    private void NoteConfirmed() => Volatile.Write(ref _confirmed, UnixTime.From(Now));

    // ---- What Onix holds ----

    /// <summary>Learns what Onix holds of all services.</summary>
    /// <param name="keys">Those of items that are asked for.</param>
    /// <returns>These items, if they are listed.</returns>
    private async Task<Dictionary<string, OnixItem>> ListAsync(
        IReadOnlyCollection<string>? keys, CancellationToken stop)
    {
        var wasMissing = (!_isListed || _isModelMissing) && await onix.EnsureModelAsync(_isModelMissing, stop);
        _isModelMissing = false;
        var started = clock.GetTimestamp();
        var (seen, found, went) = (new HashSet<long>(), new Dictionary<string, OnixItem>(), false);
        await onix.ListAsync(async items =>
        {
            foreach (var item in items)
            {
                if (keys?.Contains(item.Key) == true)
                    found[item.Key] = item;
            }
            went |= await LearnAsync(items, seen);
        }, stop);
        var cost = clock.GetElapsedTime(started);
        var period = cost * 100 > ListPeriod ? cost * 100 : ListPeriod;
        _nextList = clock.GetTimestamp() + (long)(period.TotalSeconds * clock.TimestampFrequency);
        NoteConfirmed();
        _isListed = true;
        if (went)
            await BeginAnewAsync("Onix went back, as after a restored backup");
        else
            await ForgetGoneAsync(seen, wasMissing);
        return found;
    }

    /// <summary>Stores what differs from what is known, and marks it; true: Onix went back.</summary>
    private async Task<bool> LearnAsync(IReadOnlyList<OnixItem> items, HashSet<long> seen)
    {
        var differing = new List<(long Service, OnixItem Item, bool IsMarked)>();
        using (var snapshot = store.Snapshot())
        {
            using var reader = new OutboxReader(snapshot);
            foreach (var item in items)
            {
                // Two items may say that they are one service: the one holds that it was found with.
                if (reader.Find(item.Service) is not { } known
                    || (!seen.Add(known.Service) && item.Key != (known.Key ?? OnixNames.Key(item.Service))))
                    continue;
                if (item.Version < known.Version)
                    return true;
                var isElse = item.Status != known.Status || item.Time != known.At;
                if (isElse || item.Version != known.Version)
                    differing.Add((known.Service, item, isElse));
            }
        }
        if (differing.Count > 0)
            await ChangeAsync(w =>
            {
                foreach (var (service, item, isMarked) in differing)
                {
                    Hold(w, service, item);
                    if (isMarked)
                        w.Outbox.Mark(service, item.Time ?? DateTime.UnixEpoch, Now);
                }
            });
        return false;
    }

    private static void Hold(Writer writer, long service, OnixItem item) => writer.Outbox.Hold(service,
        item.Key == OnixNames.Key(item.Service) ? null : item.Key, item.Version, item.Status, item.Time);

    /// <summary>
    /// An item that is gone was deleted: it waits for its service's next observation, and then gets its whole
    /// history. If all are gone it is another Onix.
    /// </summary>
    private async Task ForgetGoneAsync(HashSet<long> seen, bool wasModelMissing)
    {
        for (var after = 0L; ;)
        {
            List<long> held;
            using (var snapshot = store.Snapshot())
                held = new OutboxReader(snapshot).Held(after, ServicesAtOnce);
            if (held.Count == 0)
                return;
            if (seen.Count == 0)
            {
                await BeginAnewAsync(wasModelMissing ? "Onix has neither model nor items any more"
                    : "Onix has lost all items");
                return;
            }
            after = held[^1];
            var gone = held.Where(s => !seen.Contains(s)).ToList();
            if (gone.Count == 0)
                continue;
            await ChangeAsync(w => gone.ForEach(s => w.Outbox.Hold(s, null, 0, null, null)));
            log.Info("items are gone from Onix; the next observation of their services makes them again, "
                + "with their whole history", ("items", gone.Count));
        }
    }

    /// <summary>Gives Onix the whole history again, before any other change.</summary>
    private async Task BeginAnewAsync(string reason)
    {
        await ChangeAsync(w => w.Outbox.BeginAnew());
        NoteAnew(reason);
    }

    private void NoteAnew(string reason)
    {
        log.Warn($"{reason}; giving it the whole history again", ("onix", url));
        _isListed = false;
        _locks.Clear();
    }

    // ---- A turn: read, decide, send, confirm ----

    /// <summary>What waits, up to a horizon: no service that was left out has an earlier change.</summary>
    private List<Job> ReadJobs()
    {
        using var snapshot = store.Snapshot();
        using var reader = new OutboxReader(snapshot);
        var waiting = reader.Waiting(ServicesAtOnce + 1);
        var horizon = waiting.Count > ServicesAtOnce ? waiting[^1].Next : DateTime.MaxValue;
        var jobs = waiting.Take(ServicesAtOnce).Concat(reader.Due(Now, ServicesAtOnce))
            .Select(reader.JobOf).ToList();
        foreach (var job in jobs)
            horizon = job.Rest < horizon ? job.Rest.Value : horizon;
        jobs.ForEach(j => j.Cut(horizon));
        return jobs;
    }

    /// <summary>Sends all changes in order of time.</summary>
    private async Task SendAsync(List<Job> jobs, CancellationToken stop)
    {
        var done = jobs.Where(j => j.Changes.Count == 0).ToList();
        var unanswered = done.Where(j => j.Next == null && j.Waiting.IsUnanswered).ToList();
        if (unanswered.Count > 0)
        {
            await LearnAnswersAsync(unanswered, stop);
            return;
        }
        if (done.Count > 0)
            await ChangeAsync(w => done.ForEach(j => w.Outbox.Settle(j.Waiting, j.Next)));
        foreach (var job in done.Where(j => j.Rest == null))
            meters.OnixChanges.WithLabels(
                job.Waiting.At > job.Waiting.Next ? "late" : "unchanged").Inc();
        var changes = new Queue<(Job Job, ToldChange Change)>(jobs
            .SelectMany(j => j.Changes.Select(c => (Job: j, Change: c)))
            .OrderBy(c => c.Change.Time).ThenBy(c => c.Job.Waiting.Id));
        (_accepts, _refused) = (false, []);
        while (NextBatch(changes) is { Count: > 0 } batch && await SendBatchAsync(batch, stop))
        {
        }
        NoteOutcome();
    }

    /// <summary>
    /// Onix may hold a change that was sent, whose answer was lost, and that the timeline has no more: a
    /// service is not done before that is known. It stays marked, and is decided on again.
    /// </summary>
    private async Task LearnAnswersAsync(List<Job> unanswered, CancellationToken stop)
    {
        if (unanswered.Count > ReadSingly)
            await ListAsync(null, stop);
        else
        {
            foreach (var job in unanswered)
            {
                if (await onix.GetAsync(job.Key, stop) is { } item && !await TakeAsync(job, item))
                    return;
            }
        }
        await ChangeAsync(w => unanswered.ForEach(j => w.Outbox.Answer(j.Waiting.Id)));
    }

    /// <summary>The next changes in order, of each item at most one.</summary>
    private List<(Job Job, ItemChange Change)> NextBatch(Queue<(Job Job, ToldChange Change)> changes)
    {
        var (batch, keys, bytes) = (new List<(Job Job, ItemChange Change)>(), new HashSet<string>(), 0);
        using var snapshot = store.Snapshot();
        using var texts = new ObservedTexts(snapshot);
        while (batch.Count < BatchItems && bytes < BatchBytes && changes.TryPeek(out var next))
        {
            var (job, change) = next;
            if (!job.IsStopped && !keys.Add(job.Key))
                break;
            changes.Dequeue();
            if (job.IsStopped)
                continue;
            var (text, _) = texts.Of(change.Observation, change.Status == StatusNames.Own[(int)Status.Up]);
            // The description goes twice; a character is at most three bytes, escaped ones are few.
            bytes += 1024 + (3 * ((2 * text.Length) + (2 * job.Waiting.Service.Location.Length)));
            batch.Add((job, new ItemChange(job.Key, job.Waiting.Service, change.Status, change.Time, text,
                job.Version > 0 ? job.Version : ItemChange.Insert)));
        }
        return batch;
    }

    /// <summary>Sends one request, and stores what Onix made of it; false: the turn is over.</summary>
    private async Task<bool> SendBatchAsync(List<(Job Job, ItemChange Change)> batch, CancellationToken stop)
    {
        await ChangeAsync(w => batch.ForEach(b =>
            w.Outbox.Send(b.Job.Waiting.Id, b.Change.Time, b.Change.Status)));
        var results = await PutAsync([.. batch.Select(b => b.Change)], stop);
        var accepted = new List<(Job Job, ItemChange Change)>();
        var refused = new List<(Job Job, string Reason)>();
        var (locked, wentBack, modelIsMissing) = (new List<Job>(), false, false);
        foreach (var ((job, change), result) in batch.Zip(results))
        {
            if (result.IsAccepted)
            {
                wentBack |= result.Outcome == ChangeOutcome.Inserted && change.Version > 0;
                job.Version = result.Outcome switch
                {
                    ChangeOutcome.Inserted => 1,
                    ChangeOutcome.Updated => change.Version + 1,
                    _ => change.Version,
                };
                job.Done++;
                accepted.Add((job, change));
                continue;
            }
            job.IsStopped = true;
            if (result.Outcome == ChangeOutcome.Locked)
                locked.Add(job);
            else if (IsModelMissing(result.Message))
                modelIsMissing = true;
            else
                refused.Add((job, result.Message));
        }
        await StoreAsync(accepted, refused, wentBack);
        if (modelIsMissing)
        {
            (_isModelMissing, _nextList) = (true, 0);
            throw new OnixException(
                "Onix has no item type SES_SERVICE, or the user may not read partition REF");
        }
        if (wentBack)
            NoteAnew("Onix went back: an item that it held is gone");
        return !wentBack && await RefreshAsync(locked, stop);
    }

    /// <summary>Puts changes, halving what Onix refuses whole.</summary>
    private async Task<IReadOnlyList<ChangeResult>> PutAsync(List<ItemChange> changes, CancellationToken stop)
    {
        try
        {
            return await onix.PutAsync(changes, stop);
        }
        catch (OnixRequestRefusedException e) when (changes.Count == 1)
        {
            return [new ChangeResult(ChangeOutcome.Refused, e.Message)];
        }
        catch (OnixRequestRefusedException)
        {
            var half = changes.Count / 2;
            return [.. await PutAsync([.. changes.Take(half)], stop),
                .. await PutAsync([.. changes.Skip(half)], stop)];
        }
    }

    private static bool IsModelMissing(string message) =>
        message.StartsWith($"Item Type {OnixNames.ItemType} does not exist", StringComparison.Ordinal);

    /// <summary>What Onix confirmed and the marks' ends, what it refused: one transaction.</summary>
    private async Task StoreAsync(
        List<(Job Job, ItemChange Change)> accepted, List<(Job Job, string Reason)> refused, bool wentBack)
    {
        var cured = accepted.Where(a => a.Job.Waiting.Barred != null)
            .Select(a => a.Job.Waiting.Service.Partition).Distinct().ToList();
        var isCured = accepted.Count > 0 && _hasRefusedAll;
        _accepts |= accepted.Count > 0;
        _hasRefusedAll &= accepted.Count == 0;
        _refused.AddRange(refused.Select(r => r.Job.Waiting));
        var barred = refused.Where(r => !IsClash(r.Reason) || r.Job.IsAlternate).ToList();
        await ChangeAsync(w =>
        {
            foreach (var (job, change) in accepted)
            {
                w.Outbox.Hold(job.Waiting.Id, job.Waiting.Key, job.Version, change.Status, change.Time,
                    isOwn: true);
                w.Outbox.Settle(job.Waiting, job.Next);
            }
            foreach (var (job, reason) in barred)
                w.Outbox.Bar(job.Waiting, reason, Now);
            foreach (var (job, _) in refused.Except(barred))
                w.Outbox.SetKey(job.Waiting.Id, OnixNames.AlternateKey(job.Waiting.Service));
            if (isCured)
                w.Outbox.Retry(Now);
            foreach (var partition in cured)
                w.Outbox.Retry(Now, partition);
            if (wentBack)
                w.Outbox.BeginAnew();
        });
        foreach (var (job, _) in accepted)
            _locks.Remove(job.Waiting.Id);
        meters.OnixChanges.WithLabels("recorded").Inc(accepted.Count);
        if (accepted.Count > 0)
            NoteConfirmed();
        if (cured.Count > 0)
            log.Info("Onix takes services again that it had refused",
                ("services", accepted.Count(a => a.Job.Waiting.Barred != null)));
        Tell(barred);
    }

    /// <summary>
    /// As soon as Onix accepts something after having refused everything, all barred are due. That these are
    /// refused again says something of Onix only if it has taken nothing else meanwhile.
    /// </summary>
    private void NoteOutcome()
    {
        if (_accepts)
            _acceptsOthers = true;
        else if (_refused.Count > 0 && _refused.TrueForAll(s => s.Barred != null))
            (_hasRefusedAll, _acceptsOthers) = (_hasRefusedAll || !_acceptsOthers, false);
        else
            _hasRefusedAll |= _refused.Count > 0;
    }

    // Of the turn: whether Onix accepted anything, and the services whose changes it refused.
    private bool _accepts;
    private List<WaitingService> _refused = [];

    /// <summary>The key exists in another partition, perhaps one that the user may not read.</summary>
    private static bool IsClash(string message) =>
        message.Contains("exist within Partition", StringComparison.Ordinal);

    private void Tell(List<(Job Job, string Reason)> barred)
    {
        var first = barred.Where(b => b.Job.Waiting.Barred == null).ToList();
        if (first.Count == 0)
            return;
        meters.OnixChanges.WithLabels("barred").Inc(first.Count);
        using var snapshot = store.Snapshot();
        var (services, partitions) = new OutboxReader(snapshot).CountBarred();
        log.Often("Onix refuses changes; those of other services go on",
            ("service", first[0].Job.Waiting.Service), ("key", first[0].Job.Key), ("reason", first[0].Reason),
            ("services", services), ("partitions", partitions));
    }

    /// <summary>
    /// Learns what Onix holds of locked items; false: Onix went back, and the turn is over.
    /// </summary>
    private async Task<bool> RefreshAsync(List<Job> locked, CancellationToken stop)
    {
        var unseen = locked;
        if (locked.Count <= ReadSingly)
        {
            unseen = [];
            foreach (var job in locked)
            {
                if (await onix.GetAsync(job.Key, stop) is not { } item)
                    unseen.Add(job);
                else if (!await TakeAsync(job, item))
                    return false;
            }
        }
        if (unseen.Count == 0)
            return true;
        var list = await ListAsync(unseen.Select(j => j.Key).ToHashSet(), stop);
        foreach (var job in unseen.Where(_ => _isListed))
        {
            if (list.GetValueOrDefault(job.Key) is { } item)
                await TakeAsync(job, item);
            else
                await BarAsync(job, "Onix holds an item with this key that the user may not read");
        }
        return _isListed;
    }

    /// <summary>Learns from a locked item; false: Onix went back.</summary>
    private async Task<bool> TakeAsync(Job job, OnixItem item)
    {
        var service = job.Waiting;
        if (item.Service != service.Service && job.IsAlternate)
        {
            await BarAsync(job, "Onix holds another service under this key");
            return true;
        }
        if (item.Service == service.Service && item.Version < job.Version)
        {
            await BeginAnewAsync("Onix went back, as after a restored backup");
            return false;
        }
        var locks = _locks[service.Id] = _locks.GetValueOrDefault(service.Id) + 1;
        await ChangeAsync(w =>
        {
            if (item.Service != service.Service)
                w.Outbox.SetKey(service.Id, OnixNames.AlternateKey(service.Service));
            else
                Hold(w, service.Id, item);
            if (locks > MaxLocks)
                w.Outbox.StepBack(service, Now);
        });
        return true;
    }

    private async Task BarAsync(Job job, string reason)
    {
        await ChangeAsync(w => w.Outbox.Bar(job.Waiting, reason, Now));
        Tell([(job, reason)]);
    }
}

// ================================= 15. HTTP ==================================
//
// The forms of requests and answers: HTTP/1.1 and 1.0 (RFC 9110, RFC 9112), parsed strictly, from bytes
// alone. What two parsers could understand differently is refused, never mended, so that no request can be
// smuggled past this one. Of a head only the fields that SeS uses are kept; the others are checked and
// dropped.

/// <summary>What a request is answered with.</summary>
internal sealed record Reply(int Code, string ContentType, byte[] Body)
{
    public IReadOnlyList<(string Name, string Value)> Headers { get; init; } = [];

    /// <summary>How long the answer waits: it slows those down who guess.</summary>
    public TimeSpan HeldBack { get; init; }

    /// <summary>
    /// Why alerts that are posted will never be taken as they are: the label of <c>ses_bad_requests_total</c>.
    /// </summary>
    public string? BadReason { get; init; }

    public static Reply Json(
        int code, Action<Utf8JsonWriter> content, string contentType = "application/json")
    {
        var buffer = new ArrayBufferWriter<byte>();
        using (var json = new Utf8JsonWriter(buffer, ReadableJson.Options))
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
        201 => "Created",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
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

/// <summary>
/// Memory that is given back at once: what large bodies leave in the managed heap lies there until it is
/// collected, and a container has no room for several.
/// </summary>
internal sealed unsafe class LargeBuffer(int size) : MemoryManager<byte>
{
    private byte* _bytes = (byte*)NativeMemory.Alloc((nuint)size);
    private int _size = size;

    /// <summary>What is in it stays; spans of it from before do not.</summary>
    public void Resize(int size)
    {
        _bytes = (byte*)NativeMemory.Realloc(_bytes, (nuint)size);
        _size = size;
    }

    public override Span<byte> GetSpan() => new(_bytes, _size);

    public override MemoryHandle Pin(int elementIndex = 0) => new(_bytes + elementIndex);

    public override void Unpin()
    {
    }

    public UnmanagedMemoryStream Read(int from, int length) => new(_bytes + from, length);

    protected override void Dispose(bool disposing)
    {
        NativeMemory.Free(_bytes);
        _bytes = null;
        _size = 0;
    }
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
/// <param name="Target">In origin form (RFC 9112, 3.2.1), percent-encoded, as it was sent; or <c>*</c>.</param>
/// <param name="Host">With its port, as it was sent; null: HTTP/1.0 needs none.</param>
/// <param name="Length">Of the body in bytes; null when the request names none.</param>
/// <param name="IsChunked">The body comes in chunks (RFC 9112, 7.1).</param>
/// <param name="ContentEncoding">Of the body (RFC 9110, 8.4), in lower case; null: none.</param>
/// <param name="IsOld">HTTP/1.0: the answer has no chunks, and ends the connection.</param>
/// <param name="Closes">The connection is to be closed after the answer.</param>
/// <param name="Expects">The client waits for 100 Continue before it sends the body.</param>
/// <param name="IsOfPage">A browser sends it for a page, perhaps of another site (Fetch, 3.2).</param>
internal sealed record RequestHead(
    string Method, string Target, string? Host, string? Authorization, string? Accept, long? Length, bool IsChunked,
    string? ContentEncoding, bool IsOld, bool Closes, bool Expects, bool IsOfPage)
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
        HexDigits = SearchValues.Create("0123456789ABCDEFabcdef"u8),
        Token = SearchValues.Create(Encoding.ASCII.GetBytes("!#$%&'*+-.^_`|~" + Letters));

    public bool IsRead => Method is "GET" or "HEAD";

    /// <summary>It brings something: with PUT, by mistake.</summary>
    public bool IsPost => Method is "POST" or "PUT";

    /// <summary>RFC 9110, 8.4.1.3.</summary>
    public bool IsGzip => ContentEncoding is "gzip" or "x-gzip";

    /// <summary>A body follows, or may follow in the eyes of another reader.</summary>
    public bool MayHaveBody => IsChunked || (IsRead || Method == "OPTIONS" ? Length > 0 : Length != 0);

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
    /// <exception cref="RefusedException">It is not HTTP/1, or not of the kind that SeS takes.</exception>
    public static RequestHead Parse(ReadOnlySpan<byte> head)
    {
        var end = head.IndexOf("\r\n"u8);
        var (method, target, authority, isOld) = ParseRequestLine(head[..end]);
        var fields = new HeaderFields();
        for (var lines = head[(end + 2)..]; (end = lines.IndexOf("\r\n"u8)) > 0; lines = lines[(end + 2)..])
            fields.Add(lines[..end]);
        if (fields.Host == null && !isOld)
            throw Malformed("There is no Host.");
        if (fields.TransferEncoding != null)
            CheckChunked(fields, isOld);
        var request = new RequestHead(method, target, authority ?? fields.Host, fields.Authorization, fields.Accept,
            fields.Length, fields.TransferEncoding != null, fields.ContentEncoding, isOld, fields.Closes || isOld,
            fields.Expects && !isOld, fields.IsOfPage);
        if (request.IsRead && request.MayHaveBody)
            throw Malformed($"A {method} takes no body.");
        return request;
    }

    /// <summary>Two readers of such a head might see two ends of its body (RFC 9112, 6.1).</summary>
    private static void CheckChunked(HeaderFields fields, bool isOld)
    {
        if (isOld)
            throw Malformed("HTTP/1.0 has no Transfer-Encoding.");
        if (fields.Length != null)
            throw Malformed("A body has a Content-Length or a Transfer-Encoding, not both.");
        if (!fields.TransferEncoding!.Equals("chunked", StringComparison.OrdinalIgnoreCase))
            throw new RefusedException("transfer_encoding", 501, "The only Transfer-Encoding that SeS takes is chunked.");
    }

    /// <returns>The authority is that of an absolute target (RFC 9112, 3.2.2), which stands for the Host.</returns>
    private static (string Method, string Target, string? Authority, bool IsOld) ParseRequestLine(
        ReadOnlySpan<byte> line)
    {
        var parts = Encoding.Latin1.GetString(line).Split(' ');
        if (parts.Length != 3 || line[..parts[0].Length].ContainsAnyExcept(Token))
            throw Malformed("The request line is not 'METHOD TARGET HTTP/1.1'.");
        if (parts[2] is not ("HTTP/1.1" or "HTTP/1.0"))
            throw parts[2].StartsWith("HTTP/", StringComparison.Ordinal)
                ? new RefusedException("version", 505, "SeS speaks HTTP/1.1 and HTTP/1.0 only.")
                : Malformed("The request line does not end with HTTP/1.1.");
        var (authority, target) = parts[1] == "*" && parts[0] == "OPTIONS" ? (null, "*") : SplitTarget(parts[1]);
        if (target.AsSpan().ContainsAnyExcept(TargetCharacters) || !IsEncodedRightly(target))
            throw Malformed("A character of the target must be percent-encoded, or is so wrongly.");
        return (parts[0], target, authority, parts[2] == "HTTP/1.0");
    }

    private static (string? Authority, string Target) SplitTarget(string target)
    {
        if (target.StartsWith('/'))
            return (null, target);
        var rest = target.StartsWith("http://", StringComparison.OrdinalIgnoreCase) ? target[7..]
            : target.StartsWith("https://", StringComparison.OrdinalIgnoreCase) ? target[8..] : "";
        var end = rest.IndexOfAny(['/', '?']);
        var authority = end < 0 ? rest : rest[..end];
        if (authority == "" || authority.AsSpan().ContainsAnyExcept(HostCharacters))
            throw Malformed("The target begins neither with a slash nor with http:// and a host.");
        return (authority, end < 0 ? "/" : rest[end] == '?' ? "/" + rest[end..] : rest[end..]);
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
            "Host", "Authorization", "Accept", "Content-Length", "Transfer-Encoding", "Content-Encoding", "Connection",
            "Expect", "Origin",
        ];

        private int _count;

        public string? Host, Authorization, Accept, TransferEncoding, ContentEncoding;
        public long? Length;
        public bool Closes, Expects, IsOfPage;

        public void Add(ReadOnlySpan<byte> line)
        {
            if (++_count > MaxFields)
                throw new RefusedException("head_size", 431, $"There are over {MaxFields} header fields.");
            var colon = CheckField(line);
            var value = line[(colon + 1)..].Trim(" \t"u8);
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
                    Join(ref Accept, value);
                    break;
                case "Content-Length":
                    if (Length != null || value.Length > 18 || !long.TryParse(
                        value, NumberStyles.None, CultureInfo.InvariantCulture, out var length))
                        throw Malformed("The Content-Length is no number, or stands twice.");
                    Length = length;
                    break;
                case "Transfer-Encoding":
                    Join(ref TransferEncoding, value);
                    break;
                case "Content-Encoding":
                    Join(ref ContentEncoding, value.ToLowerInvariant());
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

        private static void Join(ref string? field, string value) => field = field == null ? value : $"{field}, {value}";
    }

    // ---- Chunks ----

    /// <summary>In bytes: of the line before a chunk, with its extensions, and of a trailer field.</summary>
    public const int MaxChunkLine = 1024;

    /// <summary>The size of the chunk that follows; its extensions are of no use here, and are passed over.</summary>
    /// <param name="line">Without its end.</param>
    /// <exception cref="RefusedException">It does not begin with a size, in hexadecimal digits.</exception>
    public static int ParseChunkSize(ReadOnlySpan<byte> line)
    {
        var end = line.IndexOfAnyExcept(HexDigits) is >= 0 and var other ? other : line.Length;
        if (end is 0 or > 16 || line.ContainsAny(Controls)
            || (end < line.Length && line[end..].TrimStart(" \t"u8) is not [(byte)';', ..]))
            throw Malformed("A chunk does not begin with its size.");
        return (int)Math.Min(int.MaxValue, ulong.Parse(line[..end], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture));
    }

    /// <summary>Where the colon of a header or trailer field is.</summary>
    /// <exception cref="RefusedException">It is none.</exception>
    public static int CheckField(ReadOnlySpan<byte> line)
    {
        var colon = line.IndexOf((byte)':');
        if (colon < 1 || line[..colon].ContainsAnyExcept(Token))
            throw Malformed("A header field's name is no token, or its line is folded.");
        return line[colon..].ContainsAny(Controls) ? throw Malformed("A header field has a control character.") : colon;
    }
}

// ================================= 16. Auth ==================================
//
// Who may ask: anyone, those who know a name and a password (basic, RFC 7617), or those with a token of an
// OIDC issuer (bearer, RFC 6750). Secrets are compared in constant time. Passwords can be guessed: the more
// wrong ones came from an address, the later the next ones are judged, and few wait at a time; who signed in
// from there lately is not slowed by the others behind it. Tokens cannot; wrong ones are answered late.

/// <summary>What became of credentials.</summary>
/// <param name="IsRight">Null: they were not judged, since too many of the address wait.</param>
/// <param name="Wait">For how long the answer is held back, or after what time to come again.</param>
internal readonly record struct Verdict(bool? IsRight, TimeSpan Wait);

/// <summary>
/// How addresses signed in lately, and so when their next credentials are judged. An answer that does not come
/// at once tells that a guess was wrong: what counts is how many are judged, not when they are answered.
/// </summary>
internal sealed class SignIns(TimeProvider clock)
{
    /// <summary>Further addresses are treated as one.</summary>
    public const int MaxAddresses = 10_000;

    /// <summary>Credentials that wait to be judged, of an address and of all.</summary>
    public const int MaxWaiting = 4, MaxWaitingOfAll = 1000;

    /// <summary>Wrong credentials of an address that are judged in a second; after a pause twice as many.</summary>
    public const int JudgedPerSecond = 5;

    public static readonly TimeSpan
        FirstDelay = TimeSpan.FromSeconds(0.25), LongestDelay = TimeSpan.FromSeconds(5),
        Forgotten = TimeSpan.FromMinutes(5), Lately = TimeSpan.FromHours(24);

    private sealed class Address
    {
        public int Failures, Waiting;
        public long Failed, Counted;
        public long? SignedIn;

        public bool HasSignedInLately(TimeProvider clock) =>
            SignedIn is { } last && clock.GetElapsedTime(last) < Lately;

        /// <summary>How many may be judged; up to <see cref="JudgedPerSecond"/>.</summary>
        public double Left = JudgedPerSecond;
    }

    private readonly Lock _gate = new();
    private readonly Dictionary<IPAddress, Address> _addresses = [];
    private readonly Address _others = new();
    private int _waiting;
    private long _tidied;

    /// <summary>
    /// Judges at once while nothing wrong came from the address, or something right lately; else after the
    /// delay, not before.
    /// </summary>
    public async Task<Verdict> JudgeAsync(IPAddress client, Func<bool> isRight)
    {
        Address address;
        TimeSpan delay;
        lock (_gate)
        {
            address = Find(client);
            delay = DelayOf(address);
            var isTrusted = address.Failures == 0 || address.HasSignedInLately(clock);
            if (isTrusted && Judge(address, isRight) is { } judged)
                return new(judged, judged ? TimeSpan.Zero : delay);
            if (address.Waiting == MaxWaiting || _waiting == MaxWaitingOfAll)
                return new(null, delay);
            address.Waiting++;
            _waiting++;
        }
        await Task.Delay(delay, clock);
        lock (_gate)
        {
            address.Waiting--;
            _waiting--;
            return Judge(address, isRight) is { } judged ? new(judged, TimeSpan.Zero) : new(null, delay);
        }
    }

    /// <summary>Null: too many were judged in this second.</summary>
    private bool? Judge(Address address, Func<bool> isRight)
    {
        var passed = clock.GetElapsedTime(address.Counted).TotalSeconds;
        address.Left = Math.Min(JudgedPerSecond, address.Left + (passed * JudgedPerSecond));
        address.Counted = clock.GetTimestamp();
        if (address.Left < 1)
            return null;
        if (!isRight())
        {
            address.Left--;
            Fail(address);
            return false;
        }
        address.SignedIn = clock.GetTimestamp();
        return true;
    }

    /// <summary>Counts a failure of this address, and returns how long its answer has to wait.</summary>
    public TimeSpan Fail(IPAddress client)
    {
        lock (_gate)
        {
            var address = Find(client);
            var delay = DelayOf(address);
            Fail(address);
            return delay;
        }
    }

    private void Fail(Address address)
    {
        address.Failures++;
        address.Failed = clock.GetTimestamp();
    }

    private static TimeSpan DelayOf(Address address) => TimeSpan.FromSeconds(Math.Min(
        LongestDelay.TotalSeconds, FirstDelay.TotalSeconds * Math.Pow(2, Math.Min(address.Failures, 30))));

    private Address Find(IPAddress client)
    {
        var key = Network(client);
        if (!_addresses.TryGetValue(key, out var address))
        {
            if (_addresses.Count >= MaxAddresses && clock.GetElapsedTime(_tidied) > Forgotten / 10)
                Forget();
            address = _addresses.Count < MaxAddresses ? _addresses[key] = new Address() : _others;
        }
        if (clock.GetElapsedTime(address.Failed) > Forgotten)
            address.Failures = 0;
        return address;
    }

    private void Forget()
    {
        _tidied = clock.GetTimestamp();
        var old = _addresses.Where(a => clock.GetElapsedTime(a.Value.Failed) > Forgotten && a.Value.Waiting == 0
            && !a.Value.HasSignedInLately(clock)).ToList();
        old.ForEach(a => _addresses.Remove(a.Key));
    }

    /// <summary>One host is given 2^64 addresses of IPv6 and can use them all.</summary>
    public static IPAddress Network(IPAddress client)
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

/// <summary>
/// Whether the last password on a connection was right: its next one is judged at once. A wrong one ends that,
/// since a proxy's connection has the requests of many.
/// </summary>
internal sealed class SignedIn
{
    public bool Has { get; set; }

    /// <summary>With the editor's.</summary>
    public bool HasEditor { get; set; }
}

/// <summary>Judges the credentials of requests.</summary>
internal sealed class Auth
{
    private readonly Options _options;
    private readonly Log _log;
    private readonly Meters _meters;
    private readonly Credentials _sender;
    private readonly Credentials? _editor;
    private readonly SignIns _signIns;
    private readonly Issuer? _issuer;

    /// <param name="handler">Dials the OIDC issuer; not used with another mode.</param>
    public Auth(Options options, HttpMessageHandler handler, TimeProvider clock, Log log, Meters meters)
    {
        (_options, _log, _meters) = (options, log, meters);
        _sender = new Credentials(options.Username, options.Password);
        _editor = options.EditorPassword is { } password ? new Credentials(options.EditorUsername, password) : null;
        _signIns = new SignIns(clock);
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
    /// <param name="connection">On which it came; it learns of what was right.</param>
    public async ValueTask<Reply?> RefusalAsync(
        string? authorization, IPAddress client, SignedIn connection)
    {
        if (_options.AuthMode == AuthMode.None)
            return null;
        if (authorization == null)
            return Unauthorized("missing", null, TimeSpan.Zero);
        var given = authorization.Split(' ', 2, StringSplitOptions.TrimEntries);
        var scheme = _issuer == null ? "Basic" : "Bearer";
        if (given.Length != 2 || !given[0].Equals(scheme, StringComparison.OrdinalIgnoreCase))
            return Unauthorized("scheme", null, TimeSpan.Zero);
        if (_issuer == null)
            return await PasswordRefusalAsync(given[1], client, connection);
        try
        {
            if (await _issuer.RefusalAsync(given[1]) is not { } reason)
                return null;
            LogRefused(client, reason);
            return Unauthorized("wrong", reason, _signIns.Fail(client));
        }
        catch (IssuerException e)
        {
            LogFailure(e);
            return Reply.Problem(503, "The OIDC issuer's keys cannot be had; SeS's log says why.");
        }
    }

    private async ValueTask<Reply?> PasswordRefusalAsync(string base64, IPAddress client, SignedIn connection)
    {
        connection.Has = connection.Has && _sender.Are(base64);
        if (connection.Has)
            return null;
        var (isRight, wait) = await _signIns.JudgeAsync(client, () => _sender.Are(base64));
        connection.Has = isRight == true;
        return connection.Has ? null : Refused(client, isRight, wait);
    }

    /// <summary>
    /// The same for notes, which need the editor's, whoever may post alerts; 403 where there is none, or they are
    /// the sender's.
    /// </summary>
    public async ValueTask<Reply?> EditorRefusalAsync(string? authorization, IPAddress client, SignedIn connection)
    {
        if (_editor == null)
            return Reply.Problem(403, $"Notes are closed: {Options.EditorPasswordSetting.File} is not set. On the host they "
                + "are written with ses note.");
        if (authorization?.Split(' ', 2, StringSplitOptions.TrimEntries) is not [var scheme, var base64])
            return Unauthorized("missing", null, TimeSpan.Zero, isBasic: true);
        if (!scheme.Equals("Basic", StringComparison.OrdinalIgnoreCase))
            return Unauthorized("scheme", null, TimeSpan.Zero, isBasic: true);
        connection.HasEditor = connection.HasEditor && _editor.Are(base64);
        if (connection.HasEditor)
            return null;
        var isSender = false;
        var (isRight, wait) = await _signIns.JudgeAsync(client, () => _editor.Are(base64)
            || (isSender = _options.AuthMode == AuthMode.Basic && _sender.Are(base64)));
        connection.HasEditor = isRight == true && !isSender;
        return connection.HasEditor ? null
            : isSender ? Reply.Problem(403, "These credentials are for alerts and questions; notes need the editor's.")
            : Refused(client, isRight, wait, isBasic: true);
    }

    /// <param name="isRight">Null: they were not judged.</param>
    private Reply Refused(IPAddress client, bool? isRight, TimeSpan wait, bool isBasic = false)
    {
        LogRefused(client, isRight == null ? "too many from there wait" : "wrong");
        if (isRight == false)
            return Unauthorized("wrong", null, wait, isBasic);
        _meters.AuthFailures.WithLabels("unjudged").Inc();
        return Reply.Problem(503, "Wrong credentials came from this address, and these were not looked at: "
            + "send the request again later.") with
        {
            Headers = [("Retry-After", $"{Math.Max(1, Math.Ceiling(wait.TotalSeconds))}")],
        };
    }

    private void LogRefused(IPAddress client, string reason) =>
        _log.Often("credentials were refused", ("client", client), ("reason", reason));

    /// <summary>A name and a password, as Basic has them (RFC 7617).</summary>
    private sealed class Credentials(string name, Secret password)
    {
        // Of the password that it was made of: the file may have another by now.
        private volatile Tuple<string, byte[]> _expected = Expected(name, password.Value);

        public bool Are(string base64)
        {
            var given = new byte[base64.Length];
            return Convert.TryFromBase64String(base64, given, out var length) && CryptographicOperations.FixedTimeEquals(
                SHA256.HashData(given.AsSpan(0, length)), ExpectedNow());
        }

        private byte[] ExpectedNow()
        {
            var (value, expected) = (password.Value, _expected);
            if (!ReferenceEquals(expected.Item1, value))
                _expected = expected = Expected(name, value);
            return expected.Item2;
        }

        private static Tuple<string, byte[]> Expected(string name, string password) =>
            new(password, SHA256.HashData(Encoding.UTF8.GetBytes($"{name}:{password}")));
    }

    /// <summary>The challenge of RFC 9110, 11.6.1, with RFC 6750, 3 for tokens.</summary>
    private Reply Unauthorized(string reason, string? description, TimeSpan heldBack, bool isBasic = false)
    {
        _meters.AuthFailures.WithLabels(reason).Inc();
        var challenge = _issuer == null || isBasic ? "Basic realm=\"SeS\", charset=\"UTF-8\""
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

// ============================== 17. Status page ==============================
//
// What people see: HTML and CSS without a script. First one sentence for the whole, then what is down now,
// then all services by partition and platform, then past outages, and what SeS could not take or pass on.
// Labels come from strangers, so all text is escaped. Links are relative: the page works under any path.

/// <summary>An alert that could not be mapped, as it is kept.</summary>
/// <param name="Id">For a retry.</param>
/// <param name="Alert">As it came: JSON.</param>
internal sealed record QuarantinedAlert(
    string Id, DateTime Recorded, string Partition, AlertSource Source, string Alertname, string Reason, byte[] Alert)
{
    /// <summary>Those of a partition, or all, the latest first.</summary>
    /// <param name="largest">Of an alert of more bytes neither the JSON nor the name is read.</param>
    public static IEnumerable<QuarantinedAlert> Read(
        Snapshot snapshot, string? partition = null, int largest = int.MaxValue)
    {
        using var rows = snapshot.Query("""
            SELECT identity, recorded, partition, reason, CASE WHEN length(alert) <= ?2 THEN alert END, source
            FROM quarantine WHERE ?1 IS NULL OR partition = ?1 ORDER BY id DESC
            """);
        for (rows.Bind(1, partition).Bind(2, largest); rows.Step();)
        {
            var alert = rows.Bytes(4).ToArray();
            yield return new QuarantinedAlert(Convert.ToHexStringLower(rows.Bytes(0)),
                UnixTime.Read(rows.Number(1)), rows.Text(2), (AlertSource)rows.Number(5), NameOf(alert),
                rows.Text(3), alert);
        }
    }

    /// <summary>What <see cref="Id"/> says; null: it is none.</summary>
    public static UInt128? IdOf(string? text) => text?.Length == 32
        && UInt128.TryParse(text, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out var id)
        ? id : null;

    /// <summary>As Prometheus writes them; empty: it has none that can be read.</summary>
    public string Labels => FieldsOf(Alert)?.Labels is { Count: > 0 } labels ? labels.ToString() : "";

    private static string NameOf(byte[] json) => FieldsOf(json)?.Labels.Get("alertname") ?? "";

    private static AlertFields? FieldsOf(byte[] json)
    {
        if (!json.AsSpan().StartsWith("{"u8))
            return null;
        var alert = new AlertFields(AlertSource.Webhook);
        var reader = JsonText.NewReader(json);
        reader.Read();
        alert.Read(ref reader);
        return alert;
    }

    /// <summary>
    /// A copy of Prometheus's that was valid beyond its receipt: taken later, it would be the end of an alert
    /// that fired. Prometheus sends what fires again by itself.
    /// </summary>
    public bool IsOutdated => Source == AlertSource.Prometheus && FieldsOf(Alert) is { } alert
        && !alert.HasEnded(Recorded);
}

/// <summary>What the page shows beside the services: Onix's state, and the quarantine.</summary>
/// <param name="Onix">Null: SeS runs without one.</param>
/// <param name="Barred">The first of the services whose changes Onix refuses.</param>
/// <param name="Watching">What is known of those who send.</param>
internal sealed record DaemonState(
    RecorderState? Onix, IReadOnlyList<BarredService> Barred, string Path, Watching Watching);

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
/// <param name="Page">Which rows of services, from 1 on.</param>
internal sealed record PageQuery(string Range, string? Search, int Page = 1)
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
        // The rows before a page are counted.
        var last = int.MaxValue / StatusPage.MostRows;
        var page = Question.Parse(given, "page",
            v => Question.ParseCount(v) is { } count && count <= last ? count : (int?)null,
            $"a whole number from 1 to {last}");
        return (new PageQuery(range, given.GetValueOrDefault("search"), page ?? 1), given);
    }

    public bool Takes(ServiceKey service) => Search == null
        || service.ToString().Contains(Search, StringComparison.OrdinalIgnoreCase);
}

/// <summary>The pages, as HTML in parts.</summary>
internal sealed class StatusPage(Questions questions, DaemonState daemon, PageQuery query)
{
    /// <summary>Rows of services on a page; the next ones are on the next page.</summary>
    public const int MostRows = 200;

    /// <summary>A quarantined alert of more bytes is shown without its name, which is somewhere in it.</summary>
    private const int LargestNamed = 64 * 1024;

    /// <summary>
    /// Of what is down, of past outages, a service's changes, partitions, what was set aside: no more of each.
    /// </summary>
    private const int MostDown = 200, MostOutages = 50, MostChanges = 200, MostPartitions = 20;

    public const int MostSetAside = 20;

    /// <summary>Of outages and changes that are left out, more are not counted.</summary>
    private const int MostCounted = 1000;

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
    private readonly DateTime _from = questions.Moment - query.Length;

    // ---- The page of all ----

    /// <summary>The page of all services.</summary>
    /// <exception cref="SqliteException">The database is damaged.</exception>
    public IEnumerable<ReadOnlyMemory<byte>> All()
    {
        var all = questions.Counts();
        var isUnwatched = daemon.Watching.Heartbeats.Any(h => h.IsAlarming);
        Begin(isUnwatched && all.NotUp == 0 ? "no data" : Title(all), Sentence(all, isUnwatched));
        foreach (var trouble in daemon.Watching.Troubles().Take(MostSetAside))
            _html.Add($"<p class=\"other word\">◆ <bdi>{trouble}</bdi></p>");
        if (all.Known == 0)
            AddFirstStep();
        foreach (var part in Down())
            yield return part;
        if (all.Known > 0)
        {
            _html.Add($"<h2>Services</h2>");
            AddForm();
        }
        var rows = questions.ListedServices().Where(s => query.Takes(s.Service))
            .Skip((query.Page - 1) * MostRows).Take(MostRows + 1).ToList();
        if (all.Known > 0 && rows.Count == 0)
            AddNoRows();
        foreach (var part in Rows(rows.Take(MostRows).ToList()))
            yield return part;
        AddPages(rows.Count > MostRows);
        if (rows.Count > 0)
            AddOutages();
        AddSetAside();
        yield return End(isOfAll: true);
    }

    private static readonly ServiceFilter Every = new(null, null, null, null, null);

    private void AddNoRows()
    {
        if (query.Page > 1)
            _html.Add($"<p>There are no further services.</p>");
        else
            _html.Add($"<p>No service has “<bdi>{query.Search}</bdi>” in its names.</p>");
    }

    private IEnumerable<ReadOnlyMemory<byte>> Rows(List<(long Id, ServiceKey Service)> services)
    {
        var groups = questions.Groups(
            services.Select(s => (s.Service.Partition, s.Service.Platform)).Distinct());
        (string, string)? open = null;
        foreach (var (_, service, runs) in questions.Runs(Every, _from, services))
        {
            var group = (service.Partition, service.Platform);
            if (open != group)
            {
                _html.Add($"{new Markup(open == null ? "" : "</ul></details>")}");
                BeginGroup(group.Partition, group.Platform, groups[group]);
            }
            open = group;
            AddService(service, runs);
            if (_html.IsFull)
                yield return _html.Take();
        }
        _html.Add($"{new Markup(open == null ? "" : "</ul></details>")}");
    }

    /// <summary>The links to the first and to the next rows.</summary>
    private void AddPages(bool isMore)
    {
        if (query.Page == 1 && !isMore)
            return;
        _html.Add($"<nav aria-label=\"Pages of services\">");
        if (query.Page > 1)
            _html.Add($"<a href=\"./?{PageOf(1)}\">First {MostRows} services</a>");
        if (isMore)
            _html.Add($"<a href=\"./?{PageOf(query.Page + 1)}\">Next {MostRows} services</a>");
        _html.Add($"</nav>");
    }

    private string PageOf(int page) => Query(("range", query.Range), ("search", query.Search),
        ("page", page == 1 ? null : page.ToString(CultureInfo.InvariantCulture)));

    private static string Title(ServiceCounts all) => all.Down > 0 ? $"{all.Down} down"
        : all.NotUp > 0 ? $"{all.NotUp} not up" : all.Known == 0 ? "no service yet" : "all is well";

    private static Markup Sentence(ServiceCounts all, bool isUnwatched)
    {
        var others = all.Other == 0 ? "" : $" {all.Other} {(all.Other == 1 ? "is" : "are")} neither up nor down.";
        if (all.Known == 0)
            return Markup.Of($"SeS knows of no service yet.");
        if (all.Down > 0 && all.Known > 1)
            return Markup.Of($"<span class=\"down\">✖ {all.Down} of {all.Known} services ")
                + Markup.Of($"{(all.Down == 1 ? "is" : "are")} down.</span>{others}");
        if (all.Down > 0)
            return Markup.Of($"<span class=\"down\">✖ The one service is down.</span>");
        if (all.Other > 0)
            return Markup.Of($"No service is down.{others}");
        if (isUnwatched)
            return Markup.Of($"<span class=\"other\">◆ No service was down when it was last seen.</span>");
        var who = all.Known == 1 ? "The one service is" : $"All {all.Known} services are";
        return Markup.Of($"<span class=\"up\">✔ {who} up.</span>");
    }

    private static string Counted(long count, string what) => $"{count} {what}{(count == 1 ? "" : "s")}";

    private void AddFirstStep() => _html.Add($$"""
        <p>Send it an alert, and this page will show the service:</p>
        <pre>curl -i http://HOST:PORT/{{daemon.Path}}/INS -d '{"version":"4","alerts":[{"status":"firing",
        "labels":{"alertname":"Down","job":"etcd","instance":"n1:2379"},
        "startsAt":"{{Rfc3339.Format(questions.Moment)}}"}]}'</pre>
        <p>Then have Alertmanager send all alerts, by a receiver with</p>
        <pre>webhook_configs:
        - url: http://HOST:PORT/{{daemon.Path}}/INS
          send_resolved: true</pre>
        <p>“INS” is the partition of Onix that the services are to be in; without an Onix, any name.</p>
        """);

    /// <summary>What is down, the latest first.</summary>
    private IEnumerable<ReadOnlyMemory<byte>> Down()
    {
        var (down, more) = Split(questions.Down().Where(s => query.Takes(s.Service)), MostDown);
        if (down.Count == 0)
            yield break;
        _html.Add($"<section class=\"alarm\"><h2>Down now</h2><ul>");
        foreach (var present in questions.Present(Every, down))
        {
            _html.Add($"""
                <li>{Link(present.Service)} <span class="soft">{Group(present.Service)}</span><br>
                <span class="word down">down</span> since {Time(present.Since)},
                for {Quantity.Lasted(questions.Moment - present.Since)}. <bdi>{present.Description}</bdi></li>
                """);
            if (_html.IsFull)
                yield return _html.Take();
        }
        _html.Add($"</ul>{AndMore("latest", down.Count, more)}</section>");
    }

    /// <summary>The first of them, and how many are left out; of those, few over the most are counted.</summary>
    private static (List<T> First, int More) Split<T>(IEnumerable<T> all, int most)
    {
        var (first, more) = (new List<T>(), 0);
        foreach (var one in all)
        {
            if (first.Count < most)
                first.Add(one);
            else if (++more > MostCounted)
                break;
        }
        return (first, more);
    }

    private static Markup AndMore(string which, int count, long more) => more <= 0 ? default : Markup.Of($"""
        <p class="soft">These are the {which} {count}; there are {(more > MostCounted ? "over " : "")}
        {Math.Min(more, MostCounted)} more.</p>
        """);

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

    private void BeginGroup(string partition, string platform, (long All, long NotUp) members)
    {
        var open = members.NotUp > 0 || query.Search != null ? " open" : "";
        var isUnwatched = questions.IsWatched(partition, platform) == false;
        var state = members.NotUp == 0 && isUnwatched ? Markup.Of($"<span class=\"other\">◆ no data</span>")
            : members.NotUp == 0 ? Markup.Of($"<span class=\"up\">✔ all up</span>")
            : Markup.Of($"<span class=\"down\">✖ {members.NotUp} not up</span>");
        _html.Add($"""
            <details{open}><summary><bdi>{partition}</bdi> / <bdi>{platform}</bdi>:
            {Counted(members.All, "service")}, {state}</summary>
            <ul><li class="row soft"><span class="strip ends"><span>{Time(_from)}</span>
            <span>{Time(questions.Moment)}</span></span></li>
            """);
    }

    private void AddService(ServiceKey service, IEnumerable<Run> runs)
    {
        var (strip, figures, status) = AddUp(runs);
        if (status is not { } last)
            return;
        _html.Add($"""
            <li class="row"><span>{Link(service)}</span>{StatusText(questions.Snapshot.NameOf(last))}
            <span class="strip">{StripOf(strip.Worst, Name(service))}</span>
            <span class="share">{Share(figures.Availability)}</span></li>
            """);
    }

    /// <summary>How a service fared in the range, and how it is at its end; null: it is not known.</summary>
    private (Strip Strip, Figures Figures, Status? Last) AddUp(IEnumerable<Run> runs)
    {
        var strip = new Strip(_from, questions.Moment, query.Intervals);
        var (from, now) = (UnixTime.From(_from), UnixTime.From(questions.Moment));
        var sum = new FiguresSum(new Interval(from, now), from, now, null, [], []);
        Status? last = null;
        foreach (var run in runs)
        {
            strip.Add(run.From, run.To ?? questions.Moment, run.Status);
            sum.Add(UnixTime.From(run.From), run.To is { } until ? UnixTime.From(until) : now, run.Status);
            last = run.Status;
        }
        return (strip, sum.Result, last);
    }

    private void AddOutages()
    {
        _html.Add($"<section><h2>Past outages</h2>");
        var (outages, more) = Split(questions.Ended(_from).Where(o => query.Takes(o.Service)), MostOutages);
        if (outages.Count == 0)
            _html.Add($"<p>None ended in this time.</p>");
        _html.Add($"<ul>");
        foreach (var outage in outages)
            _html.Add($"""
                <li>{Link(outage.Service)} <span class="soft">{Group(outage.Service)}</span><br>
                {Time(outage.From)} to {Time(outage.To)}, {Quantity.Lasted(outage.To - outage.From)}.
                <bdi>{outage.Description}</bdi></li>
                """);
        _html.Add($"</ul>{AndMore("latest", outages.Count, more)}</section>");
    }

    /// <summary>What SeS could not map, and what Onix does not take.</summary>
    private void AddSetAside()
    {
        if (daemon.Onix?.Barred > 0)
        {
            _html.Add($"""
                <section><h2>Refused by Onix</h2>
                <p>{Counted(daemon.Onix.Barred, "service")}; SeS tries again.</p><ul>
                """);
            foreach (var barred in daemon.Barred)
                _html.Add($"""
                    <li>{Link(barred.Service)} since {Time(barred.Since)}: <bdi>{barred.Reason}</bdi></li>
                    """);
            var more = daemon.Onix.Barred - daemon.Barred.Count;
            _html.Add($"</ul>{AndMore("first", daemon.Barred.Count, more)}</section>");
        }
        if (questions.Snapshot.Number("SELECT count(*) FROM quarantine") is not ({ } count and > 0))
            return;
        _html.Add($"""
            <section><h2>Quarantined alerts</h2>
            <p>{Counted(count, "alert")} could not be mapped to a service; ses quarantine shows them. The
            latest:</p><ul>
            """);
        var latest = QuarantinedAlert.Read(questions.Snapshot, largest: LargestNamed).Take(MostSetAside);
        foreach (var alert in latest)
            _html.Add($"""
                <li>{Time(alert.Recorded)} <bdi>{(alert.Alertname == "" ? "(no name)" : alert.Alertname)}</bdi>
                <span class="soft"><bdi>{alert.Partition}</bdi></span>: <bdi>{alert.Reason}</bdi></li>
                """);
        _html.Add($"</ul>{AndMore("latest", MostSetAside, count - MostSetAside)}</section>");
    }

    // ---- The page of one ----

    /// <summary>The page of one service; null: it is not known.</summary>
    /// <exception cref="SqliteException">The database is damaged.</exception>
    public IEnumerable<ReadOnlyMemory<byte>>? One(ServiceKey service)
    {
        var filter = new ServiceFilter(
            service.Partition, service.Platform, service.Service, service.Facet, service.Location);
        var present = questions.Present(filter).FirstOrDefault();
        return present == null ? null : One(filter, present);
    }

    private IEnumerable<ReadOnlyMemory<byte>> One(ServiceFilter filter, PresentRow present)
    {
        var (id, service, strip, figures) = questions.Runs(filter, _from).Select(r =>
        {
            var sum = AddUp(r.Runs);
            return (r.Id, r.Service, sum.Strip, sum.Figures);
        }).First();
        Begin(Name(service), Names(service));
        _html.Add($"""
            <p><a href="./?{Query(("range", query.Range))}">All services</a></p>
            <p>{StatusText(present.Status)} since {Time(present.Since)},
            for {Quantity.Lasted(questions.Moment - present.Since)}. <bdi>{present.Description}</bdi></p>
            {LastSeen(present)}
            <dl><dt>Partition</dt><dd><bdi>{service.Partition}</bdi></dd>
            <dt>Platform</dt><dd><bdi>{service.Platform}</bdi></dd>
            <dt>Service</dt><dd><bdi>{service.Service}</bdi></dd>
            <dt>Facet</dt><dd><bdi>{service.Facet}</bdi></dd>
            <dt>Location</dt><dd><bdi>{(service.Location == "" ? "(none)" : service.Location)}</bdi></dd></dl>
            <nav aria-label="Range">
            """);
        foreach (var range in PageQuery.Ranges.Keys)
            AddRange(range, Target(service, range));
        _html.Add($"</nav>{StripOf(strip.Worst, Name(service))}");
        _html.Add($"<p class=\"ends soft\"><span>{Time(_from)}</span><span>{Time(questions.Moment)}</span></p>");
        AddFigures(figures);
        AddChanges(id, service);
        yield return End();
    }

    private static Markup LastSeen(PresentRow present) => present is { IsWatched: false, LastSeen: { } seen }
        ? Markup.Of($"<p class=\"other word\">◆ No data since {Time(seen)}: so it was when it was last seen.</p>") : default;

    private void AddFigures(Figures f) => _html.Add($"""
        <h2>Figures of these {query.Range}</h2>
        <dl><dt>Availability</dt><dd>{Share(f.Availability)} of the time known</dd>
        <dt>Up</dt><dd>{Lasted(f.Up)}</dd><dt>Degraded</dt><dd>{Lasted(f.Degraded)}</dd>
        <dt>Down</dt><dd>{Lasted(f.Down)}</dd><dt>Unknown</dt><dd>{Lasted(f.Unknown)}</dd>
        <dt>Outages</dt><dd>{f.Outages}{(f.IsOpen ? ", the last still open" : "")}</dd>
        <dt>Longest outage</dt><dd>{(f.Outages == 0 ? "none" : Lasted(f.Longest))}</dd>
        <dt>Mean outage</dt><dd>{(f.Mean is { } mean ? Lasted(mean) : "none")}</dd>
        <dt>Mean time between</dt>
        <dd>{(f.MeanBetween is { } between ? Lasted(between) : "no outage")}</dd></dl>
        """);

    private static string Lasted(double milliseconds) => Quantity.Lasted(TimeSpan.FromMilliseconds(milliseconds));

    private void AddChanges(long id, ServiceKey service)
    {
        var (changes, more) = Split(questions.Latest(id, service, _from), MostChanges);
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
            </ul>{AndMore("latest", changes.Count, more)}
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
            <p class="soft">As of {Time(questions.Moment)}. All times are in UTC. The page renews itself every
            {RefreshSeconds} s. {Onix()}</p>
            """);
    }

    private Markup Onix()
    {
        if (daemon.Onix is not { } onix)
            return default;
        var oldest = onix.Oldest is { } time ? $", the oldest for {Quantity.Lasted(questions.Moment - time)}" : "";
        if (onix.IsNotAsked)
            return Markup.Of($"{RecorderState.NotAsked}.");
        var behind = onix.IsAnew ? Markup.Of($"<strong>{RecorderState.LostAll}.</strong>")
            : onix.Backlog == 0 ? Markup.Of($"{RecorderState.HasAll}.")
            : Markup.Of($"<strong>Onix lacks changes of {Counted(onix.Backlog, "service")}{oldest}.</strong>");
        return onix.Trouble == null ? behind
            : Markup.Of($"{behind} <strong>Onix confirms nothing:</strong> <bdi>{onix.Trouble}</bdi>");
    }

    private ReadOnlyMemory<byte> End(bool isOfAll = false)
    {
        _html.Add($"</main><footer class=\"soft\">");
        var (partitions, more) = Split(isOfAll ? questions.Partitions() : [], MostPartitions);
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
        _html.Add($"{AndMore("first", partitions.Count, more)}");
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

    /// <summary>
    /// Equal intervals are drawn as one. Height repeats the colour's meaning: down is tall, unknown is low.
    /// </summary>
    private Markup StripOf(IReadOnlyList<Condition> strip, string name)
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
            aria-label="{name}, {Written(_from)} to {Written(questions.Moment)} UTC: {summary}">
            {new Markup(bars.ToString())}</svg>
            """);
    }

    private DateTime Edge(int interval) => _from + (query.Length * interval / query.Intervals);
}

// ============================ 18. Printed reports ============================
//
// A report as a document that is handed to a customer: HTML without a script, complete in itself, for A4 paper
// and in black and white. The same question as of the same moment gives the same bytes, and the digest of the
// facts that were recorded since the period began shows later that none of them was changed.

/// <summary>With what a report can be made again, and its facts be proved.</summary>
/// <param name="Command">That makes it again.</param>
/// <param name="Settings">Those of the rules.</param>
/// <param name="Export">The command that writes its facts.</param>
/// <param name="Digest">The SHA-256 of what that writes.</param>
internal sealed record ReportOrigin(
    DateTime AsOf, string Command, string Version, string Settings, string Export, string Digest)
{
    /// <summary>The SHA-256 of the lines that ses export writes.</summary>
    public static string DigestOf(Snapshot snapshot, DateTime from, DateTime asOf)
    {
        const int LinesAtOnce = 10_000;
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        for (long? after = 0; after != null;)
        {
            (var lines, after) = FactLines.ReadPage(snapshot, from, asOf, null, after.Value, LinesAtOnce);
            foreach (var line in lines)
                hash.AppendData(Encoding.UTF8.GetBytes(line + "\n"));
        }
        return Convert.ToHexStringLower(hash.GetHashAndReset());
    }
}

/// <summary>What a printed report has of a platform beside its tables.</summary>
/// <param name="Strips">How each service fared, in equal intervals.</param>
internal sealed record ReportChapter(PlatformReport Report, ReportOrigin Origin, IReadOnlyList<Note> Notes,
    IReadOnlyList<SilentTime> Silent, IReadOnlyDictionary<ServiceKey, Strip> Strips);

/// <summary>Writes a document of chapters, each on pages of its own.</summary>
internal sealed class ReportPage
{
    private const string Style = """
        @page{size:A4;margin:13mm 13mm 15mm;@bottom-right{content:counter(page) " / " counter(pages);
        font:8pt sans-serif}}
        *{box-sizing:border-box}
        body{margin:0 auto;max-width:190mm;background:#fff;color:#000;font:9pt/1.35 sans-serif;overflow-wrap:anywhere}
        @media screen{body{padding:8mm}}section+section{break-before:page}
        h1{font-size:15pt;margin:0}h2{font-size:10.5pt;margin:4mm 0 1mm;break-after:avoid}p{margin:1mm 0}
        .verdict{font-size:11.5pt;font-weight:bold;margin:2.5mm 0}
        code{font:7.5pt monospace;unicode-bidi:isolate}
        table{width:100%;border-collapse:collapse;font-size:8pt}
        thead{display:table-header-group}tr{break-inside:avoid}
        th,td{padding:.6mm 1.2mm;text-align:left;vertical-align:top;border-bottom:.2mm solid #999}
        th{font-size:6pt;border-bottom:.4mm solid #000;overflow-wrap:normal}
        .n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}.w{white-space:nowrap}
        .missed td,.all td{font-weight:bold}.all td{border-top:.4mm solid #000}
        .name{width:42mm}svg{display:block;width:100%;min-width:42mm;height:3.5mm;shape-rendering:crispEdges}
        .patterns{position:absolute;width:0;height:0}
        .up{fill:#bbb}.down{fill:#000}.other{fill:url(#stripes)}.unknown{fill:url(#dots)}
        ul{margin:0;padding-left:4mm}li{break-inside:avoid}
        .small{font-size:7.5pt}
        .sign{display:flex;gap:8mm;margin-top:12mm;break-inside:avoid}.sign span{flex:1;border-top:.2mm solid #000}
        footer{margin-top:4mm;border-top:.2mm solid #999;padding-top:1mm;font-size:7.5pt;break-inside:avoid}
        """;

    private readonly HtmlWriter _html = new();

    /// <summary>The document.</summary>
    public static ReadOnlyMemory<byte> Of(IReadOnlyList<ReportChapter> chapters)
    {
        var page = new ReportPage();
        page.Begin(string.Join(", ", chapters.Select(c => c.Report.Platform).Distinct()), chapters[0].Report.Range);
        foreach (var chapter in chapters)
            page.Add(chapter);
        page._html.Add($"</body></html>\n");
        return page._html.Take();
    }

    private void Begin(string platforms, string range) => _html.Add($"""
        <!DOCTYPE html>
        <html lang="en"><head><meta charset="utf-8"><title>{platforms}: {range}</title>
        <meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
        <style>{new Markup(Style)}</style></head><body>
        <svg class="patterns" aria-hidden="true"><defs>
        <pattern id="stripes" width="1" height="10" patternUnits="userSpaceOnUse"><rect width=".5" height="10"></rect></pattern>
        <pattern id="dots" width="1" height="10" patternUnits="userSpaceOnUse"><rect width=".5" height="5"></rect></pattern>
        </defs></svg>

        """);

    private void Add(ReportChapter chapter)
    {
        var (report, origin) = (chapter.Report, chapter.Origin);
        _html.Add($"""
            <section><h1>Availability of <bdi>{report.Platform}</bdi></h1>
            <p>Partition <bdi>{report.Partition}</bdi>. {report.Subject}.<br>
            From {report.Time(report.From)} to {report.Time(report.To)}.</p>
            <p>As of {report.Time(origin.AsOf)} ({Rfc3339.Format(origin.AsOf)}). This makes it again:
            <code>{origin.Command}</code></p>
            <p class="verdict">{Sentence(report.Verdict)}</p>

            """);
        AddFigures(chapter);
        AddOutages(report);
        AddNotes(report, chapter.Notes);
        AddSilent(report, chapter.Silent);
        AddEnd(report, origin);
    }

    private static string Sentence(string text) => char.ToUpperInvariant(text[0]) + text[1..] + ".";

    // ---- Tables ----

    private void AddFigures(ReportChapter chapter)
    {
        const int PeriodsAtOnce = 6;
        var report = chapter.Report;
        var tables = report.Periods.Count == 1 ? [report.Figures()] : report.ByPeriod(PeriodsAtOnce).ToList();
        _html.Add($"<h2>Services</h2>\n");
        foreach (var (index, table) in tables.Index())
        {
            BeginTable(table.Columns);
            foreach (var (i, row) in table.Rows.Index())
            {
                var service = i < report.Services.Count ? report.Services[i] : null;
                var kind = service == null ? "all" : service.Rows.Any(report.IsMissed) ? "missed" : "";
                // Of several tables the first has the strips, which are of the whole range.
                AddRow(table.Columns, row, kind, service == null || index > 0 ? default
                    : StripOf(chapter.Strips[service.Key], service.Name));
            }
            _html.Add($"</tbody></table>\n");
        }
        _html.Add($"""
            <p class="small">Strips: black and full is down, striped is degraded, grey is up, low is unknown, empty is not
            known yet or not reached. {(report.HasMarks ? "? marks a verdict on less than 95 % of the time." : "")}</p>

            """);
    }

    private void BeginTable(IReadOnlyList<string> columns)
    {
        _html.Add($"<table><thead><tr>");
        foreach (var column in columns)
            _html.Add($"<th class=\"{ClassOf(column)}\">{TextTable.Head(column)}</th>");
        _html.Add($"</tr></thead><tbody>\n");
    }

    /// <param name="below">Below the text of the first cell.</param>
    private void AddRow(IReadOnlyList<string> columns, string[] cells, string kind = "", Markup below = default)
    {
        _html.Add($"<tr class=\"{kind}\">");
        foreach (var (i, cell) in cells.Index())
            _html.Add($"<td class=\"{ClassOf(columns[i])}\"><bdi>{cell}</bdi>{(i == 0 ? below : default)}</td>");
        _html.Add($"</tr>\n");
    }

    /// <summary>Figures stand at the right, and only texts are broken.</summary>
    private static string ClassOf(string column) => column switch
    {
        "service" or "outage" => "name",
        "notes" or "budget_left" => "",
        "objective" or "from" or "to" => "w",
        _ => "n",
    };

    /// <summary>Height and pattern tell the same as the shade does.</summary>
    private static Markup StripOf(Strip strip, string name)
    {
        var (bars, worst) = (new StringBuilder(), strip.Worst);
        for (int i = 0, next; i < worst.Count; i = next)
        {
            for (next = i + 1; next < worst.Count && worst[next] == worst[i];)
                next++;
            var (kind, height) = worst[i] switch
            {
                Condition.Down => ("down", 100),
                Condition.Other => ("other", 80),
                Condition.Up => ("up", 55),
                Condition.Unknown => ("unknown", 20),
                _ => ("", 0),
            };
            if (height > 0)
                bars.Append(Markup.Of($"""
                    <rect class="{kind}" x="{i}" y="{100 - height}" width="{next - i}" height="{height}"></rect>
                    """).Text);
        }
        return Markup.Of($"""
            <svg role="img" viewBox="0 0 {worst.Count} 100" preserveAspectRatio="none" aria-label="{name}">{new Markup(bars.ToString())}</svg>
            """);
    }

    private void AddOutages(PlatformReport report)
    {
        var table = report.Outages(isShort: false);
        _html.Add($"<h2>Outages</h2>\n");
        if (table.Rows.Count == 0)
        {
            _html.Add($"<p>There was none.</p>\n");
            return;
        }
        BeginTable(table.Columns);
        foreach (var row in table.Rows)
            AddRow(table.Columns, row);
        _html.Add($"</tbody></table>\n");
    }

    // ---- What was said, what was not heard ----

    private void AddNotes(PlatformReport report, IReadOnlyList<Note> notes)
    {
        _html.Add($"<h2>Notes</h2>\n");
        _html.Add($"{new Markup(notes.Count == 0 ? "<p>There are none.</p>\n" : "<ul>")}");
        foreach (var note in notes)
        {
            var last = note.Last;
            var title = Markup.Of($"""
                <strong>{NoteDraft.NameOf(last.Kind)}</strong>{(last.Status == null ? "" : $" ({last.Status})")}
                {report.Time(last.From)} to {(last.To is { } to ? report.Time(to) : "no end")}, <bdi>{Meant(last.Filter)}</bdi>
                """);
            _html.Add($"<li>{(last.IsWithdrawn ? Markup.Of($"<s>{title}</s> withdrawn") : title)}, {last.Id}");
            foreach (var (i, version) in note.Versions.Index())
                AddVersion(report, note, version, i + 1);
            _html.Add($"</li>\n");
        }
        _html.Add($"{new Markup(notes.Count == 0 ? "" : "</ul>\n")}");
    }

    private void AddVersion(PlatformReport report, Note note, NoteVersion version, int number)
    {
        var text = Markup.Of($"<bdi>{version.Text}</bdi>");
        var isStruck = note.Last.IsWithdrawn && !version.IsWithdrawn;
        var when = version.IsWithdrawn ? "withdrawn" : version.Received <= version.From ? "announced"
            : version.To == null || version.Received < version.To ? "added meanwhile" : "added afterwards";
        // What the heading does not say.
        var was = (version.Status == note.Last.Status ? "" : $"{version.Status}, ")
            + (version.Filter == note.Last.Filter ? "" : $"{Meant(version.Filter)}, ");
        _html.Add($"""
            <br>{number}. {(isStruck ? Markup.Of($"<s>{text}</s>") : text)} <span class="small"><bdi>{was}</bdi>{report.Time(version.From)} to
            {(version.To is { } to ? report.Time(to) : "no end")}; <bdi>{PlatformReport.AuthorOf(version)}</bdi>, received
            {report.Time(version.Received)}, {when}</span>
            """);
    }

    private static string Meant(NoteFilter filter)
    {
        string?[] names = [filter.Platform, filter.Service, filter.Facet, filter.Location];
        var given = Question.Names.Zip(names).Where(n => n.Second != null).Select(n => $"{n.First} {n.Second}").ToList();
        return given.Count == 0 ? "all services" : string.Join(", ", given);
    }

    private void AddSilent(PlatformReport report, IReadOnlyList<SilentTime> silent)
    {
        _html.Add($"<h2>Gaps</h2>\n");
        if (silent.Count == 0)
        {
            _html.Add($"<p>None is known.</p>\n");
            return;
        }
        string[] columns = ["from", "to", "notes"];
        _html.Add($"<table><thead><tr><th>FROM</th><th>TO</th><th>SILENT</th></tr></thead><tbody>\n");
        foreach (var (from, to, what) in silent)
            AddRow(columns, [report.Time(from), to is { } end ? report.Time(end) : "goes on", what]);
        _html.Add($"</tbody></table>\n");
    }

    // ---- The end ----

    private void AddEnd(PlatformReport report, ReportOrigin origin) => _html.Add($"""
        <h2>How the figures are made</h2>
        <p class="small">Availability is the time up and degraded, in percent of the time up, degraded and down; time unknown
        or outside of the hours is none of it.<br>
        Adjusted availability is that without announced maintenance, and without what was down of excluded time: (up + degraded -
        maintenance + maintenance down) / (up + degraded + down - maintenance - excluded).<br>
        The budget is what of the time that adjusted availability is a share of may be down by the objective; it is met while some,
        or nothing, is left.<br>
        An outage begins and ends with down, and less than a day unknown does not end it. Figures of several services are of their
        times added up; percentages are cut, never rounded up.</p>
        <p class="sign"><span>Place, date</span><span>Name</span><span>Signature</span></p>
        <footer>SeS {origin.Version}; {origin.Settings}. The facts recorded from {report.Time(report.From)} on, up to the moment that
        this report is of, have the SHA-256 <code>{origin.Digest}</code>, by <code>{origin.Export} | sha256sum</code></footer></section>

        """);
}

// ================================== 19. Web ==================================
//
// What is answered to whom, on a bare HttpListener that only the gate can reach: it binds to loopback, and
// answers those requests alone that carry this process's secret. Its traps shape this section: it answers
// 200 to whatever is left unanswered when it is stopped, so it is never stopped, closed or disposed; a
// handler sets 503 first, and the 2xx is set in one place, after the flush. Each request is queued, none
// awaited by the accept loop.

/// <summary>Answers requests; the store and the Recorder are given once they are there.</summary>
internal sealed class Web
{
    /// <summary>Fields that the gate sets: the process's secret, and the address of the client.</summary>
    public const string SecretField = "Ses-Secret", ClientField = "Ses-Client";

    /// <summary>A field that the gate sets for who brought credentials, which it found to be right.</summary>
    public const string TrustedField = "Ses-Trusted";

    /// <summary>Of the webhook: the id of the quarantined alert that is sent again.</summary>
    public const string CuresParameter = "cures";

    /// <summary>How the 404 for a partition begins that is not known.</summary>
    public const string NeverHeard = "Nothing was ever heard";

    /// <summary>Below a partition: where Prometheus posts to.</summary>
    public const string AlertsPath = "/api/v2/alerts";

    /// <summary>A header field for the gate: the id of the body to <see cref="TakeStreamedBody"/>.</summary>
    public const string StreamField = "Ses-Stream";

    /// <summary>
    /// The listener writes as much at once, with the head. A second write would wait for an acknowledgement,
    /// which is delayed by 40 ms, so a longer answer goes past the listener.
    /// </summary>
    private const int OneWrite = 15 * 1024;

    /// <summary>Answers too long to be held that are being read at once.</summary>
    public const int MaxUnfinished = 12;

    /// <summary>Of quarantined alerts in an answer; and bytes of a text of theirs. All are on disk.</summary>
    private const int MaxListedAlerts = 100, MaxShown = 200;

    /// <summary>
    /// Questions that are computed at once, of the short ones and of the long ones: other requests need a
    /// core.
    /// </summary>
    public const int MaxActiveQuestions = 2;

    /// <summary>Of more than so many bytes one is read at a time, and waits its turn for so long.</summary>
    private const int LargePayload = 1024 * 1024;

    private static readonly TimeSpan LargePayloadTime = TimeSpan.FromSeconds(10);

    /// <summary>A history of so many changes is short.</summary>
    private const int ShortLimit = 1000;

    /// <summary>
    /// So long an answer may take with its reader: the database's log cannot start anew meanwhile.
    /// </summary>
    private static readonly TimeSpan AnswerTime = TimeSpan.FromMinutes(2);

    /// <summary>How long a question waits for its turn.</summary>
    private static readonly TimeSpan TurnTime = TimeSpan.FromSeconds(10);

    /// <summary>A long answer that waits so long for its reader gives way to another at the cap.</summary>
    private static readonly TimeSpan StalledTime = TimeSpan.FromSeconds(1);

    private readonly Options _options;
    private readonly TimeProvider _clock;
    private readonly Log _log;
    private readonly Meters _meters;
    private readonly Auth _auth;
    private readonly DateTime _built, _started;
    private readonly string[] _hook;
    private readonly byte[] _secret;
    // Never stopped, closed or disposed: each answers 200 to requests that nobody has answered.
    private readonly HttpListener _listener = new() { IgnoreWriteExceptions = true };
    private readonly SemaphoreSlim
        _shortTurns = new(MaxActiveQuestions), _longTurns = new(MaxActiveQuestions), _largePayloads = new(1);
    private readonly ConcurrentDictionary<string, StreamedBody> _streamedBodies = [];
    // Guarded by itself: the long answers that are being read.
    private readonly HashSet<StreamedBody> _unfinished = [];
    private volatile Store? _store;
    private volatile Scrub? _scrub;
    private volatile Recorder? _recorder;
    private volatile bool _draining;

    /// <param name="built">When the program's commit was made: an earlier clock is wrong.</param>
    public Web(Options options, Auth auth, DateTime built, TimeProvider clock, Log log, Meters meters)
    {
        (_options, _auth, _built, _clock, _log, _meters) = (options, auth, built, clock, log, meters);
        _started = clock.GetUtcNow().UtcDateTime;
        (_hook, _secret) = (options.Path.Split('/'), Encoding.UTF8.GetBytes(Secret));
        meters.Registry.AddBeforeCollectCallback(SetGauges);
    }

    /// <summary>Never ends, but by a defect.</summary>
    public Task Accepting { get; private set; } = Task.CompletedTask;

    /// <summary>What a request must carry to be answered.</summary>
    public string Secret { get; } = RandomNumberGenerator.GetHexString(32);

    /// <summary>
    /// Listens on 127.0.0.1; only probes and metrics get more than 503 until <see cref="Serve"/>.
    /// </summary>
    /// <exception cref="HttpListenerException">The port is in use, or there is no free one.</exception>
    public IPEndPoint Start()
    {
        for (var attempt = 1; ; attempt++)
        {
            try
            {
                var place = _options.InnerPort != 0
                    ? new IPEndPoint(IPAddress.Loopback, _options.InnerPort) : FreePlace();
                _listener.Prefixes.Clear();
                _listener.Prefixes.Add($"http://{place}/");
                _listener.Start();
                Accepting = AcceptAsync();
                return place;
            }
            catch (HttpListenerException) when (attempt < 10 && _options.InnerPort == 0)
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
    public void Serve(Store store, Recorder? recorder, Scrub? scrub = null) =>
        (_scrub, _recorder, _store) = (scrub, recorder, store);

    /// <summary>From now on webhooks are answered 503, and /ready too.</summary>
    public void Drain() => _draining = true;

    // ---- Judging by the head alone ----

    private enum Resource
    {
        None, Live, Ready, Metrics, Health, Webhook, History, Report, Outages, Notes, Page, Service,

        /// <summary>Below a partition, as Alertmanager has them: for Prometheus and its like.</summary>
        Alerts, FirstAlerts, PeerStatus, PeerReady,
    }

    /// <summary>What alerts are posted to.</summary>
    private static bool TakesAlerts(Resource resource) =>
        resource is Resource.Webhook or Resource.Alerts or Resource.FirstAlerts;

    /// <summary>
    /// Prometheus keeps its connections, and sends nothing again: one that is closed between two posts loses
    /// the second.
    /// </summary>
    public bool IsFromPrometheus(RequestHead head) =>
        head.Method == "POST" && Route(head.Target).Resource is Resource.Alerts or Resource.FirstAlerts;

    /// <summary>
    /// Judges a request before its body is read, so that a stranger cannot make SeS hold one. Null: it may
    /// come; else its answer.
    /// </summary>
    public async ValueTask<Reply?> RefusalAsync(RequestHead head, IPAddress client, SignedIn connection)
    {
        var (resource, partition) = Route(head.Target);
        var started = _clock.GetTimestamp();
        var refusal = PathRefusal(head.Target) ?? MethodRefusal(resource, partition, head)
            ?? (resource == Resource.Notes ? await _auth.EditorRefusalAsync(head.Authorization, client, connection)
                : NeedsCredentials(resource) || (resource == Resource.Ready && head.Authorization != null)
                ? await _auth.RefusalAsync(head.Authorization, client, connection) : null);
        var takesAlerts = TakesAlerts(resource) && !head.IsRead;
        if (takesAlerts || (resource == Resource.Notes && !head.IsRead))
            refusal ??= BodyRefusal(head) ?? Unavailable();
        // It is no alert that was lost.
        if (resource == Resource.Notes)
            return refusal;
        if (head.IsPost && refusal?.BadReason is { } reason)
            CountBad(reason, refusal.Code, head.Target, $"{client}");
        // Auth has logged it.
        else if (takesAlerts && refusal?.Code == 401)
            _meters.BadRequests.WithLabels("credentials").Inc();
        if (takesAlerts && refusal != null)
            Count(refusal, started);
        return refusal;
    }

    /// <summary>
    /// Counts what was meant as alerts, and is lost unless somebody mends what sends it; whatever its path.
    /// </summary>
    /// <param name="target">Null: the head could not be read.</param>
    public void CountBad(string reason, int code, string? target, string? client)
    {
        _meters.BadRequests.WithLabels(reason).Inc();
        _log.Often("a post could not be taken: " + reason, ("code", code),
            ("path", target is null ? null : AlertMapping.Clip(target.Split('?', 2)[0], MaxShown)), ("client", client));
    }

    /// <summary>All but probes, and metrics unless the settings ask for it.</summary>
    private bool NeedsCredentials(Resource resource) =>
        !(resource is Resource.None or Resource.Live or Resource.Ready or Resource.PeerReady
            || (resource == Resource.Metrics && !_options.MetricsAuth));

    /// <summary>Questions have places of their own, so that webhooks and probes keep theirs.</summary>
    public bool IsQuestion(RequestHead head) => head.IsRead && Route(head.Target).Resource
        is Resource.Webhook or Resource.History or Resource.Report or Resource.Outages or Resource.Notes
            or Resource.Page or Resource.Service
        or Resource.Health or Resource.Alerts or Resource.PeerStatus;

    /// <summary>
    /// What needs no encoding (RFC 3986, 2.3) is not to be encoded: a proxy that judges paths would not know
    /// /%61lerts. What is encoded is to be UTF-8.
    /// </summary>
    private static Reply? PathRefusal(string target)
    {
        var path = target.AsSpan(0, target.IndexOf('?') is >= 0 and var end ? end : target.Length);
        if (!path.Contains('%'))
            return null;
        var bytes = new List<byte>();
        for (var i = 0; i < path.Length; i++)
        {
            if (path[i] != '%')
            {
                bytes.Add((byte)path[i]);
                continue;
            }
            if (i + 2 >= path.Length || !byte.TryParse(path.Slice(i + 1, 2), NumberStyles.AllowHexSpecifier,
                CultureInfo.InvariantCulture, out var encoded))
                return Bad("path", Reply.Problem(400, "The path has a '%' without two hexadecimal digits."));
            if (char.IsAsciiLetterOrDigit((char)encoded) || "-._~".Contains((char)encoded))
                return Bad("path", Reply.Problem(
                    400, $"The path encodes '{(char)encoded}', which needs none: write it as it is."));
            bytes.Add(encoded);
            i += 2;
        }
        return Utf8.IsValid(CollectionsMarshal.AsSpan(bytes)) ? null
            : Bad("path", Reply.Problem(400, "The path is not UTF-8."));
    }

    private static Reply Bad(string reason, Reply reply) => reply with { BadReason = reason };

    private Reply? MethodRefusal(Resource resource, string partition, RequestHead head)
    {
        var allowed = resource switch
        {
            Resource.FirstAlerts => "OPTIONS, POST",
            Resource.Webhook or Resource.Alerts or Resource.Notes => "GET, HEAD, OPTIONS, POST",
            _ => "GET, HEAD, OPTIONS",
        };
        // HAProxy's check, unless it is told otherwise, and a question about all (RFC 9110, 9.3.7).
        if (head.Method == "OPTIONS" && (resource != Resource.None || head.Target == "*"))
            return new Reply(204, "", []) { Headers = [("Allow", allowed)] };
        if (resource == Resource.None)
            return Bad("path", Reply.Problem(
                404, $"There is no such path; post alerts to /{_options.Path}/PARTITION."));
        if (IsOfPartition(resource) && !IsPartition(partition))
            return Bad("partition", Reply.Problem(
                404, $"The partition is missing or not usable: post alerts to /{_options.Path}/PARTITION."));
        var isPost = head.Method == "POST" && (TakesAlerts(resource) || resource == Resource.Notes);
        if (isPost && head.IsOfPage)
            return Bad("origin", Reply.Problem(403, "A web page may not post here, since it may be of any site."));
        return isPost || (head.IsRead && resource != Resource.FirstAlerts) ? null : NotAllowed(allowed);
    }

    private static bool IsOfPartition(Resource resource) => resource is Resource.Webhook or Resource.History
        or Resource.Report or Resource.Outages or Resource.Notes or Resource.Alerts or Resource.FirstAlerts or Resource.PeerStatus
        or Resource.PeerReady;

    /// <summary>Of a mistaken or made-up name: what it would make in the store stays for good.</summary>
    private Reply NotTaken(string partition, ReceivedAlerts alerts)
    {
        _meters.Alerts.WithLabels("not_taken").Inc(alerts.Alerts.Count + alerts.UnmappableAlerts.Count
            + alerts.MoreUnmappable + alerts.Ignored + alerts.Heartbeats);
        _log.Often("alerts were refused, of a partition that --partitions does not name",
            ("partition", partition));
        return Bad("partition", Reply.Problem(
            404, $"Alerts of partition '{partition}' are not taken: {Options.PartitionsSetting} does not name it."));
    }

    private static Reply NotAllowed(string allowed) =>
        Bad("method", Reply.Problem(405, $"Allowed: {allowed}.") with { Headers = [("Allow", allowed)] });

    private Reply? BodyRefusal(RequestHead head)
    {
        if (head.Length == null && !head.IsChunked)
            return Bad("length", Reply.Problem(411, "Send the body with a Content-Length, or in chunks."));
        if (head.Length > _options.MaxBody)
            return Bad("body_size", BodyTooLarge);
        if (head.IsGzip || head.ContentEncoding is null or "" or "identity")
            return null;
        var reply = Reply.Problem(415, "The only Content-Encoding that SeS takes is gzip.");
        return Bad("content_encoding", reply with { Headers = [("Accept-Encoding", "gzip")] });
    }

    /// <summary>Also once it is there, where its head does not tell.</summary>
    public Reply BodyTooLarge => Reply.Problem(413, $"The body is larger than --max-body, {_options.MaxBody} bytes.");

    /// <summary>Why no alert can be taken now, whatever it contains.</summary>
    private Reply? Unavailable() =>
        _draining ? Reply.Problem(503, "SeS is shutting down.")
        : _store == null ? Reply.Problem(503, "SeS is starting: its database is being opened.")
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
            ["health"] => (Resource.Health, ""),
            _ when !segments.Take(_hook.Length).SequenceEqual(_hook) => (Resource.None, ""),
            _ when segments.Length <= _hook.Length + 1 =>
                (Resource.Webhook, segments.ElementAtOrDefault(_hook.Length) ?? ""),
            // A slash at the end of an url is easily written.
            [.., ""] => (OfPartition(segments.AsSpan(_hook.Length + 1)[..^1]), segments[_hook.Length]),
            _ => (OfPartition(segments.AsSpan(_hook.Length + 1)), segments[_hook.Length]),
        };
    }

    /// <summary>What the segments after a partition name.</summary>
    private static Resource OfPartition(ReadOnlySpan<string> segments) => segments switch
    {
        [] => Resource.Webhook,
        ["history"] => Resource.History,
        ["report"] => Resource.Report,
        ["outages"] => Resource.Outages,
        ["notes"] => Resource.Notes,
        ["api", "v2", "alerts"] => Resource.Alerts,
        ["api", "v1", "alerts"] => Resource.FirstAlerts,
        ["api", "v2", "status"] => Resource.PeerStatus,
        ["-", "ready" or "healthy"] => Resource.PeerReady,
        _ => Resource.None,
    };

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
        if (!IsFromGate(context.Request))
        {
            Send(context.Response, new Reply(403, "", []));
            return;
        }
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
        var (resource, partition) = Route(request.RawUrl ?? "");
        switch (resource)
        {
            case Resource.Live:
                return Reply.Json(IsAlive ? 200 : 503, json => json.WriteBoolean("live", IsAlive));
            case Resource.Ready:
                return ReadyReply(IsTrusted(request));
            case Resource.Metrics:
                return new Reply(
                    200, "text/plain; version=0.0.4; charset=utf-8", await _meters.ExportAsync());
            case Resource.Health:
                return HealthReply(request);
            case Resource.Webhook when request.HttpMethod == "GET":
                return await AskAsync("status", () => AnswerAsync(Subject.Status, request, partition));
            case Resource.Alerts when request.HttpMethod == "GET":
                return await AskAsync("alerts", () => ListAlertsAsync(request, partition));
            case Resource.PeerStatus:
                return PeerStatusReply();
            case Resource.PeerReady:
                return Unavailable() ?? (_store!.Refusal is { } refusal ? Reply.Problem(503, refusal)
                    : new Reply(200, "text/plain; charset=utf-8", "OK"u8.ToArray()));
            case Resource.History:
                return await AskAsync("history", () => AnswerAsync(Subject.History, request, partition));
            case Resource.Report:
                return await AskAsync("report", () => AnswerAsync(Subject.Report, request, partition));
            case Resource.Outages:
                return await AskAsync("outages", () => AnswerAsync(Subject.Outages, request, partition));
            case Resource.Notes when request.HttpMethod == "GET":
                return await AskAsync("notes", () => ListNotesAsync(request, partition));
            case Resource.Notes:
                return Unavailable() ?? await AskAsync("notes", () => TakeNoteAsync(request, partition));
            case Resource.Page or Resource.Service:
                return await AskAsync("page", () => ShowAsync(request.RawUrl ?? ""));
            default:
                var started = _clock.GetTimestamp();
                var post = new Post(partition, resource != Resource.Webhook, resource == Resource.FirstAlerts);
                var reply = Unavailable() ?? await TakeInTurnAsync(_store!, request, post);
                if (reply.BadReason is { } reason)
                    CountBad(reason, reply.Code, request.RawUrl, request.Headers[ClientField]);
                Count(reply, started);
                return reply;
        }
    }

    /// <summary>Where alerts are posted to, and so by whom.</summary>
    /// <param name="IsFirst">In the first version of Alertmanager's interface.</param>
    private readonly record struct Post(string Partition, bool IsPrometheus, bool IsFirst);

    private bool IsFromGate(HttpListenerRequest request) => CryptographicOperations.FixedTimeEquals(
        Encoding.UTF8.GetBytes(request.Headers[SecretField] ?? ""), _secret);

    /// <summary>A payload takes several times its size while it is read: large ones are read one by one.</summary>
    private async Task<Reply> TakeInTurnAsync(Store store, HttpListenerRequest request, Post post)
    {
        if (request.ContentLength64 <= LargePayload)
            return await TakeAsync(store, request, post);
        if (!await _largePayloads.WaitAsync(LargePayloadTime))
        {
            // The listener would close the connection while the gate sends.
            await request.InputStream.CopyToAsync(Stream.Null);
            return Reply.Problem(503, "Other large payloads are being read.");
        }
        try
        {
            return await TakeAsync(store, request, post);
        }
        finally
        {
            // With much memory free, many times its size would be taken before what it left is collected.
            MemoryTrimmer.Trim();
            _largePayloads.Release();
        }
    }

    private async Task<Reply> TakeAsync(Store store, HttpListenerRequest request, Post post)
    {
        ReceivedAlerts alerts;
        try
        {
            alerts = await ReadAsync(request, post);
        }
        catch (PayloadException e)
        {
            return Bad("payload", Reply.Problem(e.Code, e.Message));
        }
        if (_options.Partitions?.Contains(post.Partition) == false)
            return NotTaken(post.Partition, alerts);
        var cures = Parameters(request.RawUrl ?? "").FirstOrDefault(p => p.Key == CuresParameter).Value;
        // Whoever retries is to be told.
        return await KeepAsync(store, alerts, post with { IsPrometheus = post.IsPrometheus && cures == null },
            QuarantinedAlert.IdOf(cures));
    }

    /// <summary>The body is not held any longer.</summary>
    /// <exception cref="PayloadException">It cannot be processed as a whole.</exception>
    private async Task<ReceivedAlerts> ReadAsync(HttpListenerRequest request, Post post)
    {
        var length = (int)request.ContentLength64;
        ReceivedAlerts Read(ReadOnlySpan<byte> body) => AlertReader.Read(body, post.Partition,
            post.IsPrometheus ? AlertSource.Prometheus : AlertSource.Webhook, _options.Mapping,
            _clock.GetUtcNow().UtcDateTime);
        var part = ArrayPool<byte>.Shared.Rent(Math.Min(length, BodyWriter.Size));
        using var large = length > part.Length ? new LargeBuffer(length) : null;
        try
        {
            if (large == null)
            {
                await request.InputStream.ReadExactlyAsync(part, 0, length);
                return Read(part.AsSpan(0, length));
            }
            // The listener's stream fills arrays alone.
            for (var there = 0; there < length;)
            {
                var count = await request.InputStream.ReadAsync(part.AsMemory(0, Math.Min(part.Length, length - there)));
                if (count == 0)
                    throw new EndOfStreamException();
                part.AsSpan(0, count).CopyTo(large.GetSpan()[there..]);
                there += count;
            }
            return Read(large.GetSpan());
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(part);
        }
    }

    /// <summary>
    /// Prometheus sends to one Alertmanager after the other: while one does not answer, people wait.
    /// </summary>
    private static readonly TimeSpan PrometheusTime = TimeSpan.FromSeconds(1);

    /// <summary>The one place from which alerts are answered 2xx: after the flush.</summary>
    private async Task<Reply> KeepAsync(Store store, ReceivedAlerts alerts, Post post, UInt128? cures)
    {
        var partition = post.Partition;
        if (alerts.Truncated > 0)
        {
            _meters.Truncated.Inc(alerts.Truncated);
            _log.Often("Alertmanager cut alerts off before sending: raise max_alerts of its receiver",
                ("partition", partition), ("alerts", alerts.Truncated));
        }
        Stored stored;
        try
        {
            stored = await store.AppendAsync(partition, alerts, cures, post.IsPrometheus ? PrometheusTime : null);
        }
        catch (StoreException e)
        {
            return Reply.Problem(503, e.Message);
        }
        Count(alerts, stored);
        if (stored.Quarantined == 0)
            return TakenReply(post);
        List<UnmappableAlert> quarantined = [.. alerts.UnmappableAlerts, .. stored.Refused ?? []];
        _log.Often("alerts were quarantined", ("partition", partition), ("alerts", stored.Quarantined),
            ("alertname", AlertMapping.Clip(quarantined[0].Alertname, MaxShown)),
            ("reason", quarantined[0].Reason));
        return post.IsPrometheus ? TakenReply(post)
            : Reply.Json(200, json => WriteQuarantined(json, stored, alerts, quarantined));
    }

    /// <summary>As Alertmanager answers each of its kinds of clients.</summary>
    private static Reply TakenReply(Post post) => post.IsFirst
        ? Reply.Json(200, json => json.WriteString("status", "success"))
        : post.IsPrometheus ? new Reply(200, "", []) : new Reply(204, "", []);

    /// <summary>What amtool and Grafana ask an Alertmanager before anything else.</summary>
    private Reply PeerStatusReply() => Reply.Json(200, json =>
    {
        json.WriteStartObject("cluster");
        json.WriteString("status", "disabled");
        json.WriteEndObject();
        json.WriteStartObject("versionInfo");
        foreach (var name in (string[])["branch", "buildDate", "buildUser", "goVersion", "revision"])
            json.WriteString(name, "");
        json.WriteString("version", "ses " + Program.Version);
        json.WriteEndObject();
        json.WriteStartObject("config");
        json.WriteString("original", "");
        json.WriteEndObject();
        json.WriteString("uptime", Rfc3339.Format(_started));
    });

    private void Count(ReceivedAlerts alerts, Stored stored)
    {
        _meters.Alerts.WithLabels("new").Inc(stored.New);
        _meters.Alerts.WithLabels("known").Inc(stored.Known);
        _meters.Alerts.WithLabels("ignored").Inc(alerts.Ignored);
        _meters.Alerts.WithLabels("heartbeat").Inc(alerts.Heartbeats);
        _meters.Alerts.WithLabels("quarantined").Inc(stored.Quarantined);
    }

    private static void WriteQuarantined(
        Utf8JsonWriter json, Stored stored, ReceivedAlerts alerts, List<UnmappableAlert> quarantined)
    {
        json.WriteNumber("accepted", stored.New + stored.Known + alerts.Ignored + alerts.Heartbeats);
        json.WriteStartArray("quarantined");
        foreach (var alert in quarantined.Take(MaxListedAlerts))
        {
            json.WriteStartObject();
            json.WriteString("fingerprint", AlertMapping.Clip(alert.Fingerprint, MaxShown));
            json.WriteString("alertname", AlertMapping.Clip(alert.Alertname, MaxShown));
            json.WriteString("reason", alert.Reason);
            json.WriteEndObject();
        }
        json.WriteEndArray();
        if (stored.Quarantined > Math.Min(quarantined.Count, MaxListedAlerts))
            json.WriteNumber("more", stored.Quarantined - Math.Min(quarantined.Count, MaxListedAlerts));
    }

    // ---- Questions ----

    /// <param name="name">Of what is asked, in metrics.</param>
    private async Task<Reply> AskAsync(string name, Func<Task<Reply>> answer)
    {
        var started = _clock.GetTimestamp();
        Reply reply;
        try
        {
            reply = Starting() ?? await answer();
        }
        catch (QuestionException e)
        {
            reply = Reply.Problem(400, e.Message + ".");
        }
        catch (StoreException e)
        {
            reply = Reply.Problem(503, e.Message);
        }
        catch (SqliteException e)
        {
            reply = Unreadable(e);
        }
        _meters.QuestionDuration.WithLabels(name).Observe(_clock.GetElapsedTime(started).TotalSeconds);
        _meters.Questions.WithLabels(name, reply.Code.ToString(CultureInfo.InvariantCulture)).Inc();
        return reply;
    }

    private Reply? Starting() => _store == null
        ? Reply.Problem(503, "SeS is starting: its database is being opened.") : null;

    private async Task<Reply> AnswerAsync(Subject subject, HttpListenerRequest request, string partition)
    {
        var snapshot = await _store!.ReadAsync();
        var isTaken = false;
        try
        {
            var question = Question.Parse(
                subject, partition, Parameters(request.RawUrl ?? ""), snapshot.Moment, _options.Counting);
            var format = question.Format
                ?? (IsForCsv(request.Headers["Accept"]) ? OutputFormat.Csv : OutputFormat.Json);
            var type = format == OutputFormat.Csv ? "text/csv; charset=utf-8" : "application/json";
            if (!snapshot.HasHeardOf(partition))
                return Reply.Problem(404, $"{NeverHeard} of partition '{partition}'.");
            if (question.AsOf < snapshot.Oldest)
                throw new QuestionException(
                    $"as_of: nothing before {Rfc3339.Format(snapshot.Oldest.Value)} is kept");
            var answers = new Answers(Questions.Of(snapshot, question.AsOf), Program.Version);
            var isShort = question.Filter.Service != null || (subject == Subject.History
                && question.Limit <= ShortLimit && question.AsOf == null);
            isTaken = true;
            return await StreamAsync(
                snapshot, answers.Write(question, format), isShort, type, [("Vary", "Accept")]);
        }
        finally
        {
            if (!isTaken)
                snapshot.Dispose();
        }
    }

    /// <summary>Takes a version of a note.</summary>
    private async Task<Reply> TakeNoteAsync(HttpListenerRequest request, string partition)
    {
        if (request.ContentLength64 > NoteForm.MaxBody)
        {
            // The listener would close the connection while the gate sends.
            await request.InputStream.CopyToAsync(Stream.Null);
            return Reply.Problem(413, $"A note has at most {NoteForm.MaxBody} bytes.");
        }
        var body = new byte[request.ContentLength64];
        await request.InputStream.ReadExactlyAsync(body);
        if (Parameters(request.RawUrl ?? "").FirstOrDefault().Key is { } parameter)
            throw new QuestionException($"{AlertMapping.Clip(parameter, MaxShown)}: a note takes no parameters");
        using (var before = _store!.Snapshot())
        {
            if (!before.HasHeardOf(partition))
                return Reply.Problem(404, $"{NeverHeard} of partition '{partition}'.");
        }
        try
        {
            var draft = NoteForm.Read(body, _clock.GetUtcNow().UtcDateTime, _options.Counting.Zone);
            var answer = await _store!.AddAsync(
                (writer, now) => NoteBook.Add(writer, draft, partition, _options.EditorUsername, now));
            if (answer.Refusal is { } refusal)
                throw refusal;
            using var snapshot = _store.Snapshot();
            var form = new NoteForm(Questions.Of(snapshot));
            var version = form.Write(answer.Note!);
            return answer.IsNew ? new Reply(201, "application/json", version) : new Reply(200, "application/json", version);
        }
        catch (NoteException e)
        {
            return Reply.Problem(e.Code, e.Message + ".");
        }
    }

    private async Task<Reply> ListNotesAsync(HttpListenerRequest request, string partition)
    {
        var snapshot = await _store!.ReadAsync();
        var isTaken = false;
        try
        {
            var question = NoteQuestion.Parse(
                partition, Parameters(request.RawUrl ?? ""), snapshot.Moment, _options.Counting.Zone);
            if (!snapshot.HasHeardOf(partition))
                return Reply.Problem(404, $"{NeverHeard} of partition '{partition}'.");
            isTaken = true;
            return await StreamAsync(snapshot, new NoteForm(Questions.Of(snapshot, question.AsOf))
                .Write(question, OutputFormat.Json, null), isShort: false, "application/json", []);
        }
        finally
        {
            if (!isTaken)
                snapshot.Dispose();
        }
    }

    /// <summary>The alerts that are open, as Alertmanager lists them; none is silenced or inhibited here.</summary>
    private async Task<Reply> ListAlertsAsync(HttpListenerRequest request, string partition)
    {
        if (Parameters(request.RawUrl ?? "").Any(p => p.Key == "filter"))
            throw new QuestionException("filter: SeS lists all open alerts of a partition; leave it out");
        var snapshot = await _store!.ReadAsync();
        return await StreamAsync(
            snapshot, OpenAlerts.Write(snapshot, partition), isShort: false, "application/json", []);
    }

    private async Task<Reply> ShowAsync(string target)
    {
        var isOne = Route(target).Resource == Resource.Service;
        var (query, given) = PageQuery.Parse(Parameters(target), isOne
            ? ["partition", "platform", "service", "facet", "location"] : ["search", "page"]);
        var snapshot = await _store!.ReadAsync();
        var isTaken = false;
        try
        {
            var barred = new OutboxReader(snapshot).Barred(StatusPage.MostSetAside);
            var daemon = new DaemonState(_recorder?.State(), barred, _options.Path, _store.Watching);
            var page = new StatusPage(Questions.Of(snapshot), daemon, query);
            var parts = isOne ? page.One(new ServiceKey(given.GetValueOrDefault("partition", ""),
                given.GetValueOrDefault("platform", ""), given.GetValueOrDefault("service", ""),
                given.GetValueOrDefault("facet", ""), given.GetValueOrDefault("location", ""))) : page.All();
            if (parts == null)
                return Reply.Problem(404, "SeS knows of no such service.");
            isTaken = true;
            return await StreamAsync(snapshot, parts, isOne, "text/html; charset=utf-8",
                [("Content-Security-Policy", StatusPage.Policy), ("Referrer-Policy", "no-referrer")]);
        }
        finally
        {
            if (!isTaken)
                snapshot.Dispose();
        }
    }

    /// <summary>Whether CSV is named, and JSON not before it (RFC 9110, 12.5.1, without weights).</summary>
    private static bool IsForCsv(string? accept)
    {
        var csv = accept?.IndexOf("text/csv", StringComparison.OrdinalIgnoreCase) ?? -1;
        var json = accept?.IndexOf("application/json", StringComparison.OrdinalIgnoreCase) ?? -1;
        return csv >= 0 && (json < 0 || csv < json);
    }

    private Reply Unreadable(SqliteException e)
    {
        _log.Error(e.IsDamage ? Store.DamageText
            : "the database could not be read", ("reason", e.Message));
        if (e.IsDamage)
            _meters.Damage.Set(1);
        return Reply.Problem(503, e.IsDamage
            ? "The database is damaged: ses check tells what, and how to mend it."
            : e.IsFull ? "The disk is full: there is no space for what is asked."
            : "The database could not be read; the log of SeS says why.");
    }

    /// <summary>An answer that is made a part at a time: whole when it is short.</summary>
    private async Task<Reply> StreamAsync(Snapshot snapshot, IEnumerable<ReadOnlyMemory<byte>> answer,
        bool isShort, string type, (string, string)[] headers)
    {
        var parts = new AnswerParts(snapshot, answer.GetEnumerator(), isShort ? _shortTurns : _longTurns);
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
        finally
        {
            parts?.Dispose();
        }
    }

    /// <summary>The parts of an answer that are still to be made, and what they are made from.</summary>
    private sealed record AnswerParts(
        Snapshot Snapshot, IEnumerator<ReadOnlyMemory<byte>> Parts, SemaphoreSlim Turns) : IDisposable
    {
        public void Dispose()
        {
            Parts.Dispose();
            Snapshot.Dispose();
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
        AnswerParts parts, ReadOnlyMemory<byte> first, ReadOnlyMemory<byte>? second)
    {
        var made = new Queue<ReadOnlyMemory<byte>?>([first, second]);
        async Task<ReadOnlyMemory<byte>?> NextPartAsync()
        {
            try
            {
                return made.TryDequeue(out var part) ? part : await NextAsync(parts);
            }
            catch (Exception e) when (e is TimeoutException or SqliteException)
            {
                // The client sees that the last chunk is missing.
                _log.Error("a long answer could not be ended", ("reason", e.Message));
                throw new IOException(e.Message, e);
            }
        }

        System.Threading.ITimer? deadline = null;
        void End(StreamedBody body)
        {
            deadline?.Dispose();
            lock (_unfinished)
                _unfinished.Remove(body);
            parts.Dispose();
        }

        var streamed = new StreamedBody(NextPartAsync, End, _clock);
        deadline = _clock.CreateTimer(_ =>
        {
            _log.Often("a long answer was not read to its end in time; ask in pages, with a limit",
                ("seconds", AnswerTime.TotalSeconds));
            streamed.Abort();
        }, null, AnswerTime, Timeout.InfiniteTimeSpan);
        return streamed;
    }

    /// <summary>
    /// Makes the next part when it is its turn, on a thread of its own: webhooks shall not wait.
    /// </summary>
    /// <exception cref="TimeoutException">Its turn did not come.</exception>
    private static async Task<ReadOnlyMemory<byte>?> NextAsync(AnswerParts parts)
    {
        if (!await parts.Turns.WaitAsync(TurnTime))
            throw new TimeoutException("too much is being asked at once");
        try
        {
            return await Task.Factory.StartNew(
                () => parts.Parts.MoveNext() ? parts.Parts.Current : (ReadOnlyMemory<byte>?)null,
                CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default);
        }
        finally
        {
            parts.Turns.Release();
        }
    }

    /// <summary>The body with this id, which whoever takes it disposes of; null when there is none.</summary>
    public StreamedBody? TakeStreamedBody(string id) =>
        _streamedBodies.TryRemove(id, out var body) ? body : null;

    // ---- Probes and gauges ----

    /// <summary>Why alerts cannot be made durable now; null when they can.</summary>
    private string? Unready() =>
        _draining ? "shutting down" : _store is not { } store ? "starting: the database is being opened"
        : _clock.GetUtcNow().UtcDateTime < _built ? "the clock is earlier than the program's making"
        : store.Refusal;

    /// <summary>Of a probe: who brings credentials is answered only if they are right.</summary>
    private bool IsTrusted(HttpListenerRequest request) =>
        _options.AuthMode == AuthMode.None || request.Headers[TrustedField] != null;

    private Reply ReadyReply(bool isTrusted)
    {
        var reason = Unready();
        return Reply.Json(reason == null ? 200 : 503, json =>
        {
            json.WriteBoolean("ready", reason == null);
            if (reason != null)
                json.WriteString("reason", reason);
            if (_scrub?.Damage is { } damage)
                json.WriteString("damage", damage);
            if (isTrusted && _store?.Watching.Troubles().ToList() is { Count: > 0 } troubles)
                WriteWarnings(json, troubles);
            json.WriteStartObject("onix");
            WriteOnix(json);
            json.WriteEndObject();
        });
    }

    private static void WriteWarnings(Utf8JsonWriter json, IEnumerable<string> warnings)
    {
        json.WriteStartArray("warnings");
        foreach (var warning in warnings.Take(MaxListedAlerts))
            json.WriteStringValue(warning);
        json.WriteEndArray();
    }

    /// <summary>How SeS is, whole, for people who may see it; plain text unless JSON is asked for.</summary>
    private Reply HealthReply(HttpListenerRequest request)
    {
        if (Starting() is { } starting)
            return starting;
        try
        {
            var given = Question.Once(Parameters(request.RawUrl ?? ""), ["format"], "the health");
            var isJson = given.GetValueOrDefault("format") switch
            {
                "json" => true,
                "text" => false,
                null => request.Headers["Accept"]?.Contains("application/json", StringComparison.Ordinal) == true,
                _ => throw new QuestionException("format: it is neither text nor json"),
            };
            var reply = Reply.Json(200, WriteHealth);
            return isJson ? reply : new Reply(200, "text/plain; charset=utf-8", TextOf(reply.Body));
        }
        catch (QuestionException e)
        {
            return Reply.Problem(400, e.Message + ".");
        }
        catch (SqliteException e)
        {
            return Unreadable(e);
        }
    }

    private void WriteHealth(Utf8JsonWriter json)
    {
        var (store, reason) = (_store!, Unready());
        using var snapshot = store.Snapshot();
        var (services, labelSets, underived) = store.Count;
        var size = store.Size(snapshot);
        json.WriteBoolean("ready", reason == null);
        json.WriteString("reason", reason);
        json.WriteString("version", Program.Version);
        WriteWarnings(json, _options.Warnings.Concat(store.Watching.Troubles()));
        json.WriteStartArray("heartbeats");
        foreach (var heartbeat in store.Watching.Heartbeats.Take(MaxListedAlerts))
        {
            json.WriteStartObject();
            json.WriteString("heartbeat", heartbeat.Name);
            json.WriteString("of", heartbeat.Whose);
            json.WriteString("last", Rfc3339.Format(heartbeat.Last));
            if (heartbeat.Armed is { } armed)
                json.WriteString("armed", Rfc3339.Format(armed));
            if (heartbeat.Silent is { } silent)
                json.WriteString("silent", Rfc3339.Format(silent));
            json.WriteEndObject();
        }
        json.WriteEndArray();
        json.WriteStartObject("store");
        json.WriteNumber("services", services);
        json.WriteNumber("max_services", _options.MaxServices);
        json.WriteNumber("label_sets", labelSets);
        json.WriteNumber("max_label_sets", _options.MaxAlerts);
        json.WriteNumber("underived_observations", underived);
        json.WriteNumber("bytes", size.Bytes);
        json.WriteNumber("free_bytes", size.Free);
        if (size.Since is { } since)
        {
            json.WriteString("since", Rfc3339.Format(since));
            json.WriteNumber("days", Math.Round((snapshot.Moment - since).TotalDays, 1));
        }
        if (size.BytesADay is { } day)
            json.WriteNumber("bytes_per_day", Math.Round(day));
        if (snapshot.Oldest is { } oldest)
            json.WriteString("oldest", Rfc3339.Format(oldest));
        json.WriteString("damage", _scrub?.Damage);
        json.WriteEndObject();
        json.WriteNumber("quarantined_alerts", snapshot.Number("SELECT count(*) FROM quarantine") ?? 0);
        json.WriteStartObject("onix");
        WriteOnix(json);
        json.WriteStartArray("barred");
        foreach (var barred in new OutboxReader(snapshot).Barred(MaxListedAlerts))
        {
            json.WriteStartObject();
            json.WriteString("service", barred.Service.ToString());
            json.WriteString("since", Rfc3339.Format(barred.Since));
            json.WriteString("reason", barred.Reason);
            json.WriteEndObject();
        }
        json.WriteEndArray();
        json.WriteEndObject();
    }

    /// <summary>A line a value: <c>store.services: 12</c>.</summary>
    private static byte[] TextOf(byte[] json)
    {
        using var document = JsonDocument.Parse(json);
        var text = new StringBuilder();
        void Append(string name, JsonElement element)
        {
            if (element.ValueKind == JsonValueKind.Object)
                foreach (var property in element.EnumerateObject())
                    Append(name == "" ? property.Name : $"{name}.{property.Name}", property.Value);
            else if (element.ValueKind == JsonValueKind.Array)
                foreach (var (index, item) in element.EnumerateArray().Index())
                    Append($"{name}.{index + 1}", item);
            else if (element.ValueKind != JsonValueKind.Null)
                text.Append(CultureInfo.InvariantCulture,
                    $"{name}: {(element.ValueKind == JsonValueKind.String ? element.GetString() : element.GetRawText())}\n");
        }

        Append("", document.RootElement);
        return Encoding.UTF8.GetBytes(text.ToString());
    }

    private void WriteOnix(Utf8JsonWriter json)
    {
        if (_options.OnixUrl == null)
        {
            json.WriteString("state", "none");
            return;
        }
        json.WriteString("url", _options.OnixUrl.AbsoluteUri);
        if (_recorder?.State() is not { } state)
        {
            json.WriteString("state", "starting");
            return;
        }
        json.WriteString("state", state.Word);
        if (state.Trouble != null)
            json.WriteString("reason", state.Trouble);
        json.WriteNumber("backlog_services", state.Backlog);
        json.WriteNumber("backlog_oldest_seconds", Age(state.Oldest));
        if (state.Confirmed is { } confirmed)
            json.WriteString("confirmed", Rfc3339.Format(confirmed));
        json.WriteNumber("barred_services", state.Barred);
        if (state.BarredReason != null)
            json.WriteString("barred_reason", state.BarredReason);
    }

    /// <summary>False: the disk hangs, and a supervisor may try what a restart does.</summary>
    public bool IsAlive => _store?.IsStuck != true;

    /// <summary>One line for <c>systemctl status</c>.</summary>
    public string StatusLine()
    {
        var onix = _options.OnixUrl == null ? "no Onix" : _recorder?.State().Sentence ?? RecorderState.NotAsked;
        var trouble = _store?.Watching.Troubles().FirstOrDefault() is { } first ? $"; {first}" : "";
        // A line end would begin another field of sd_notify(3).
        return Terminal.Plain(
            Unready() is { } reason ? $"Not ready: {reason}; {onix}" : $"Taking alerts; {onix}{trouble}");
    }

    private double Age(DateTime? since) =>
        since is { } time
            ? Math.Max(0, Math.Round((_clock.GetUtcNow().UtcDateTime - time).TotalSeconds, 3)) : 0;

    /// <summary>Of armed heartbeats; one that nobody expects any more is told no longer.</summary>
    private void SetWatched(IReadOnlyList<WatchRow> heartbeats)
    {
        var told = heartbeats.Where(h => h is { Armed: not null, IsForgotten: false })
            .ToDictionary(h => (string[])[h.Partition, h.Platform, h.Name], h => h.Silent == null ? 1 : 0);
        foreach (var labels in _meters.Watched.GetAllLabelValues().Where(l => !told.Keys.Any(t => t.SequenceEqual(l))))
            _meters.Watched.RemoveLabelled(labels);
        foreach (var (labels, watched) in told)
            _meters.Watched.WithLabels(labels).Set(watched);
    }

    private void SetGauges()
    {
        _meters.Ready.Set(Unready() == null ? 1 : 0);
        if (_store is { } store)
        {
            var (services, labelSets, underived) = store.Count;
            var (used, free) = store.Size();
            _meters.Services.Set(services);
            _meters.LabelSets.Set(labelSets);
            _meters.Underived.Set(underived);
            _meters.StoreSize.Set(used);
            _meters.StoreFree.Set(free);
            SetWatched(store.Watching.Heartbeats);
            using var snapshot = store.Snapshot();
            _meters.Quarantined.Set(snapshot.Number("SELECT count(*) FROM quarantine") ?? 0);
            var maintained = Questions.Of(snapshot).UnderMaintenance();
            foreach (var labels in _meters.UnderMaintenance.GetAllLabelValues().Where(l => !maintained.ContainsKey(l[0])))
                _meters.UnderMaintenance.RemoveLabelled(labels);
            foreach (var (partition, count) in maintained)
                _meters.UnderMaintenance.WithLabels(partition).Set(count);
        }
        if (_recorder?.State() is not { } state)
            return;
        _meters.Backlog.Set(state.Backlog);
        _meters.BacklogAge.Set(Age(state.Oldest));
        _meters.Barred.Set(state.Barred);
        _meters.ConfirmationAge.Set(Age(state.Confirmed));
    }
}

// ================================== 20. TLS ==================================
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
            CipherSuitesPolicy = new CipherSuitesPolicy(
            [
                TlsCipherSuite.TLS_AES_128_GCM_SHA256, TlsCipherSuite.TLS_AES_256_GCM_SHA384,
                TlsCipherSuite.TLS_CHACHA20_POLY1305_SHA256,
                TlsCipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                TlsCipherSuite.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
                TlsCipherSuite.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                TlsCipherSuite.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
                TlsCipherSuite.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
                TlsCipherSuite.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
            ]),
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

// ================================= 21. Gate ==================================
//
// The public port, and all that strangers ever touch. The gate reads whole requests strictly, within limits
// of size and time, has Web judge each by its head, and only then hands it to the HttpListener, over a few
// kept connections on loopback. A client that is slow, silent or hostile costs its own connection and
// little memory, never a handler. Connections are capped: at the cap, the one that has waited longest
// for a whole request, or for its turn, gives way to the new one.

/// <summary>What a connection is doing; all but Handled have a deadline.</summary>
internal enum ConnectionState { Handshake, Idle, Head, Body, Handled, Answer, Linger }

/// <summary>
/// How many handshakes of an address may be under way, or have failed lately. A hello can be sent again and
/// again for nothing, and costs the server up to 5 ms (P-384), so that some hundred a second would take the
/// port down. One that succeeds does not count.
/// </summary>
internal sealed class HandshakeLimits(TimeProvider clock)
{
    public const int AtOnce = Gate.MaxHandshakes, PerSecond = 50;

    /// <summary>Further addresses are treated as one.</summary>
    public const int MaxAddresses = 10_000;

    private sealed class Address
    {
        public double Left = AtOnce;
        public long Seen;
    }

    private readonly Dictionary<IPAddress, Address> _addresses = [];
    private readonly Address _others = new();

    public bool Take(IPAddress client)
    {
        var address = Find(client, isAdded: true);
        var now = clock.GetTimestamp();
        address.Left = Math.Min(
            AtOnce, address.Left + (clock.GetElapsedTime(address.Seen, now).TotalSeconds * PerSecond));
        address.Seen = now;
        if (address.Left < 1)
            return false;
        address.Left--;
        return true;
    }

    public void GiveBack(IPAddress client) => Find(client, isAdded: false).Left++;

    private Address Find(IPAddress client, bool isAdded)
    {
        var key = SignIns.Network(client);
        if (_addresses.TryGetValue(key, out var address))
            return address;
        if (isAdded && _addresses.Count >= MaxAddresses)
            Forget();
        return isAdded && _addresses.Count < MaxAddresses ? _addresses[key] = new Address() : _others;
    }

    /// <summary>Those that have all again, once there are so many addresses.</summary>
    private void Forget()
    {
        if (clock.GetElapsedTime(_forgot).TotalSeconds * PerSecond < AtOnce)
            return;
        _forgot = clock.GetTimestamp();
        var idle = _addresses.Where(a => clock.GetElapsedTime(a.Value.Seen).TotalSeconds * PerSecond >= AtOnce)
            .Select(a => a.Key).ToList();
        idle.ForEach(a => _addresses.Remove(a));
    }

    private long _forgot;
}


/// <summary>A client's connection. One task serves it; the gate's timer and cap can end it.</summary>
internal sealed class ClientConnection(Socket socket, IPAddress client) : IDisposable
{
    /// <summary>Holds most heads, and most alerts with them.</summary>
    private const int FirstSize = 4 * 1024;

    private byte[] _buffer = [];
    private int _start, _end;

    public IPAddress Client => client;

    public Socket Socket => socket;

    public SignedIn SignedIn { get; } = new();

    /// <summary>The plain connection, until TLS is put over it.</summary>
    public Stream Stream { get; set; } = new NetworkStream(socket, ownsSocket: true);

    public ConnectionState State { get; set; }

    /// <summary>A timestamp of the clock.</summary>
    public long Deadline { get; set; }

    /// <summary>Its deadline has passed: what it waits for ends as if the client had closed.</summary>
    public volatile bool IsOverdue;

    /// <summary>Its place among those that wait, and may be ended for a new one.</summary>
    public LinkedListNode<ClientConnection>? Waiting { get; set; }

    /// <summary>What is served now brings something, or will, as far as can be seen.</summary>
    public bool IsPost { get; set; }

    /// <summary>It was ended for a new one: what it lacks is not its client's fault.</summary>
    public volatile bool HasGivenWay;

    /// <summary>Of what is served now; null until its head is there.</summary>
    public string? Target { get; set; }

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
internal sealed class Upstream(Socket socket, ConcurrentDictionary<int, Upstream> all) : IDisposable
{
    private readonly byte[] _buffer = new byte[8 * 1024];
    private readonly int _port = ((IPEndPoint)socket.LocalEndPoint!).Port;
    private int _end;

    public long LastUsed { get; set; }

    /// <param name="all">By their ports: it is added before the listener knows of it, until its end.</param>
    public static async Task<Upstream> ConnectAsync(
        IPEndPoint place, ConcurrentDictionary<int, Upstream> all)
    {
        var socket = new Socket(place.AddressFamily, SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        Upstream? upstream = null;
        try
        {
            socket.Bind(new IPEndPoint(place.Address, 0));
            upstream = new Upstream(socket, all);
            all[upstream._port] = upstream;
            await socket.ConnectAsync(place);
            return upstream;
        }
        catch
        {
            upstream?.Dispose();
            socket.Dispose();
            throw;
        }
    }

    public void Dispose()
    {
        _ = all.TryRemove(new(_port, this));
        socket.Dispose();
    }

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

    /// <summary>Connections to the inner port that are not the gate's own.</summary>
    private const int MaxStrangers = 64;

    private static readonly TimeSpan StrangerTime = TimeSpan.FromSeconds(1);

    /// <summary>Begun by a first byte; one takes some milliseconds.</summary>
    public const int MaxHandshakes = 256;

    /// <summary>Alertmanager sends one request for each group and waits for its answer.</summary>
    public const int MaxInFlight = 1024;

    /// <summary>Of questions: most of them wait, since two are computed at once.</summary>
    public const int MaxQuestions = 128;

    /// <summary>Of bodies held at once, beyond the first part of each; twice --max-body, if that is more.</summary>
    public const long MaxBytesInFlight = 32L * 1024 * 1024;

    /// <summary>How much larger than in gzip a body of over 1 MiB may be: alerts that are alike shrink to a 120th.</summary>
    public const int MaxRatio = 400;

    /// <summary>Head and end of a member (RFC 1952, 2.3), in bytes.</summary>
    private const int SmallestGzip = 18;

    /// <summary>Of the head that the HttpListener gets, but for what the client's has in it.</summary>
    private const int HeadRoom = 512;

    /// <summary>As much of a body is taken room for before any of it is there.</summary>
    private const int FirstPart = 8 * 1024;

    /// <summary>Larger parts are no array of the pool.</summary>
    private const int LargePart = 1024 * 1024;

    /// <summary>Of a connection in the kernel, where answers wait for a client that does not read.</summary>
    private const int SendBuffer = 128 * 1024;

    /// <summary>Holds most answers with their heads; a larger one takes more.</summary>
    private const int SmallAnswer = 1024;

    /// <summary>The longest wait for whatever a client has to do next.</summary>
    private static readonly TimeSpan
        HandshakeTime = TimeSpan.FromSeconds(5), HeadTime = TimeSpan.FromSeconds(10),
        BodyTime = TimeSpan.FromSeconds(30), AnswerTime = TimeSpan.FromSeconds(30), QueueTime = TimeSpan.FromSeconds(5);

    /// <summary>Longer than Prometheus's usual scrape interval of a minute, so that its connection stands.</summary>
    private static readonly TimeSpan IdleTime = TimeSpan.FromSeconds(75);

    /// <summary>A close with bytes unread would take the answer away from a client that still sends.</summary>
    private static readonly TimeSpan LingerTime = TimeSpan.FromSeconds(2), LingerPause = TimeSpan.FromMilliseconds(10);

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
    private readonly ConcurrentDictionary<int, Upstream> _ownUpstreams = [];
    private long _strangersEnded;
    // Guarded by _gate.
    private readonly HashSet<ClientConnection> _connections = [];
    // Guarded by _gate: all but those being answered, the one that waits longest first.
    private readonly LinkedList<ClientConnection> _waiting = [], _handshakes = [];
    private readonly HandshakeLimits _handshakeLimits;

    private Socket _listener = null!;
    private IPEndPoint _inner = null!;
    private System.Threading.ITimer? _sweeper;
    private volatile bool _draining;
    private int _unanswered;
    private long _work;
    private long _bytesInFlight;

    /// <summary>Of bodies, as held for them.</summary>
    public long BytesInFlight => Interlocked.Read(ref _bytesInFlight);

    /// <param name="tls">Null: plain HTTP.</param>
    /// <param name="descriptors">How many the process may have open.</param>
    public Gate(
        Options options, Web web, Tls? tls, long descriptors, TimeProvider clock, Log log, Meters meters)
    {
        (_options, _web, _tls, _clock, _log, _meters) = (options, web, tls, clock, log, meters);
        _handshakeLimits = new HandshakeLimits(clock);
        _maxConnections = (int)Math.Min(MaxConnections, descriptors / 2);
        // A request in flight takes two descriptors more: both ends of the connection on loopback.
        _slots = new SemaphoreSlim((int)Math.Min(MaxInFlight, descriptors / 8));
        _questionSlots = new SemaphoreSlim((int)Math.Clamp(descriptors / 64, 1, MaxQuestions));
    }

    public IPEndPoint Place => (IPEndPoint)_listener!.LocalEndPoint!;

    /// <summary>Listens, and returns where: with port 0 the system has chosen one.</summary>
    /// <param name="inherited">A socket that listens already, instead of address and port; else null.</param>
    /// <exception cref="SocketException">The port is in use, or the address is not this host's.</exception>
    public IPEndPoint Start(Socket? inherited = null)
    {
        _listener = inherited ?? Listen(_options.Address, _options.Port);
        _inner = _web.Start();
        _sweeper = _clock.CreateTimer(_ => Sweep(), null, SweepPeriod, SweepPeriod);
        Accepting = Task.WhenAny(AcceptAsync(), _web.Accepting).Unwrap();
        return Place;
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
                EndStrangers();
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
        longest.HasGivenWay = true;
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
        if (_clock.GetElapsedTime(_strangersEnded, now) >= StrangerTime)
            EndStrangers();
    }

    /// <summary>
    /// Other users of the host can connect to the HttpListener, where a connection lives for 90 s without a
    /// request: they are not to take the descriptors.
    /// </summary>
    private void EndStrangers()
    {
        _strangersEnded = _clock.GetTimestamp();
        var strangers = Linux.ConnectionsTo(_inner.Port).Where(c => !_ownUpstreams.ContainsKey(c.Port)).ToList();
        if (strangers.Count <= MaxStrangers)
            return;
        strangers.ForEach(c => Linux.EndConnection(c.Descriptor));
        _log.Often("connections to the inner port were closed: nobody else is to use it",
            ("connections", strangers.Count), ("port", _inner.Port));
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
            if (connection.IsPost && e.Reply.Code != 503)
                _web.CountBad(e.Message, e.Reply.Code, connection.Target, $"{connection.Client}");
            else
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
        var first = new byte[PostStart.Length];
        var count = await connection.Socket.ReceiveAsync(first, SocketFlags.Peek);
        if (count == 0 && !connection.IsOverdue)
            throw new IOException("the client closed without a byte");
        connection.IsPost = IsPost(first.AsSpan(0, count));
        if (count > 0 && char.IsAsciiLetter((char)first[0]))
            throw new RefusedException("handshake", 400, "This port speaks TLS: ask with https.");
        var tls = new SslStream(connection.Stream);
        connection.Stream = tls;
        BeginHandshake(connection);
        try
        {
            await tls.AuthenticateAsServerAsync(options);
            lock (_gate)
                _handshakeLimits.GiveBack(connection.Client);
        }
        catch (Exception e) when (e is AuthenticationException or IOException or Win32Exception)
        {
            if (!EndHandshake(connection))
                throw new IOException("the TLS handshake gave way to another", e);
            Refused(connection.IsOverdue ? "handshake_timeout" : "handshake");
            _log.Often("a TLS handshake failed", ("client", connection.Client),
                ("reason", e.GetBaseException().Message));
            throw new IOException("the TLS handshake failed", e);
        }
        finally
        {
            EndHandshake(connection);
        }
        Enter(connection, ConnectionState.Idle, HeadTime);
    }

    /// <summary>At the cap the one that has taken longest gives way: a client in good faith takes little.</summary>
    /// <exception cref="IOException">Too many of the address's have not succeeded.</exception>
    private void BeginHandshake(ClientConnection connection)
    {
        lock (_gate)
        {
            if (!_handshakeLimits.Take(connection.Client))
            {
                Refused("handshakes");
                throw new IOException("too many handshakes of the address have not succeeded");
            }
            if (_handshakes.Count >= MaxHandshakes && _handshakes.First is { Value: var longest })
            {
                _handshakes.RemoveFirst();
                Refused("handshakes");
                longest.Abort();
            }
            _handshakes.AddLast(connection);
        }
    }

    /// <summary>False: it had ended before, having given way.</summary>
    private bool EndHandshake(ClientConnection connection)
    {
        lock (_gate)
            return _handshakes.Remove(connection);
    }

    /// <summary>Serves one request. False: the connection ends.</summary>
    private async Task<bool> ServeOneAsync(ClientConnection connection)
    {
        await connection.WaitAsync();
        if (!connection.IsOverdue)
            Enter(connection, ConnectionState.Head, HeadTime);
        if (await ReadHeadAsync(connection) is not { } head)
            return false;
        if (!IsHostMeant(head, connection.Client))
            throw new RefusedException("host", 421, $"The Host is none of {Options.HostsSetting} of this SeS.");
        Enter(connection, ConnectionState.Handled, Timeless);
        if (await _web.RefusalAsync(head, connection.Client, connection.SignedIn) is { } refusal)
        {
            var goesOn = await AnswerAsync(
                connection, refusal, head.Method == "HEAD", head.Closes || head.MayHaveBody);
            // All of it may have gone without a wait: others have their turn before the next request.
            await Task.Yield();
            return goesOn;
        }
        var room = HeadRoom + head.Target.Length + (head.Accept?.Length ?? 0);
        using var sent = new MessageBuffer(this, room, head.Length ?? _options.MaxBody, isCounted: !head.IsRead);
        if (!head.IsRead)
            await ReadBodyAsync(connection, head, sent);
        using var unpacked = head.IsGzip && !head.IsRead ? Unpack(sent, room) : null;
        var request = unpacked ?? sent;
        request.Prepend(HeadFor(head, connection.Client, request.Length - room));
        return await HandOverAsync(connection, head, request);
    }

    /// <summary>
    /// Whether the request is for a host of --hosts. A page whose name was made to lead here (DNS rebinding)
    /// names its own. Probes on this host name the address by which they reach it, which no page can.
    /// </summary>
    private bool IsHostMeant(RequestHead head, IPAddress client)
    {
        // No browser leaves the Host out, as HTTP/1.0 may.
        if (_options.Hosts == null || head.Host == null)
            return true;
        var host = Options.HostOf(head.Host);
        return host != null && (_options.Hosts.Contains(host) || (IPAddress.TryParse(host, out var address)
            && (address.Equals(client) || (IPAddress.IsLoopback(address) && IPAddress.IsLoopback(client)))));
    }

    private static ReadOnlySpan<byte> PostStart => "POST "u8;

    private static bool IsPost(ReadOnlySpan<byte> request) => request.StartsWith(PostStart) || request.StartsWith("PUT "u8);

    private async ValueTask<RequestHead?> ReadHeadAsync(ClientConnection connection)
    {
        (connection.Target, var length, var mayBeEmptyLine) = (null, 0, true);
        while (true)
        {
            // One that a client sends after the body before is no request line (RFC 9112, 2.2).
            if (mayBeEmptyLine && connection.Received is [(byte)'\r', (byte)'\n', ..])
            {
                connection.Take(2);
                mayBeEmptyLine = false;
            }
            connection.IsPost = IsPost(connection.Received.TrimStart("\r\n"u8));
            var isBegun = mayBeEmptyLine && connection.Received is [(byte)'\r'];
            if (!isBegun && (length = RequestHead.Find(connection.Received)) > 0)
                break;
            var isMore = false;
            try
            {
                isMore = await connection.ReceiveAsync();
            }
            catch (Exception e) when (!connection.HasGivenWay && connection.Received.Length > 0
                && e is (IOException or SocketException))
            {
                // As if the client had closed: a reset, or what TLS makes of an end within a record.
            }
            if (isMore)
                continue;
            if (connection.Received.Length > 0 && connection.IsOverdue)
                throw new RefusedException("head_timeout", 408,
                    $"The head did not arrive within {HeadTime.TotalSeconds} s.");
            if (connection.IsPost)
                throw new RefusedException("head_cut", 400, "The head ended before it was whole.");
            if (connection.IsOverdue)
                Refused("idle");
            return null;
        }
        var head = RequestHead.Parse(connection.Received[..length]);
        connection.Target = head.Target;
        connection.Take(length);
        return head;
    }

    /// <summary>The head that the HttpListener gets: nothing in it but what was checked.</summary>
    private byte[] HeadFor(RequestHead head, IPAddress client, int length) => Encoding.Latin1.GetBytes(
        $"{(head.IsRead ? "GET" : head.Method)} {head.Target} HTTP/1.1\r\nHost: {_inner}\r\n"
        + $"{Web.SecretField}: {_web.Secret}\r\n{Web.ClientField}: {client}\r\n"
        + (head.Authorization == null ? "" : $"{Web.TrustedField}: yes\r\n")
        + (head.Accept == null ? "" : $"Accept: {head.Accept}\r\n")
        + (head.IsRead ? "\r\n" : $"Content-Length: {length}\r\n\r\n"));

    // ---- Bodies ----

    private async Task ReadBodyAsync(ClientConnection connection, RequestHead head, MessageBuffer request)
    {
        try
        {
            if (head.Expects && connection.Received.IsEmpty)
                await WriteAsync(connection, "HTTP/1.1 100 Continue\r\n\r\n"u8.ToArray());
            Enter(connection, ConnectionState.Body, BodyTime);
            if (head.IsChunked)
                await ReadChunksAsync(connection, request);
            else
                await ReadPartAsync(connection, request, (int)head.Length!.Value);
        }
        catch (Exception e) when (!connection.HasGivenWay
            && e is (IOException or SocketException or ObjectDisposedException))
        {
            throw BodyCut(connection);
        }
    }

    private static RefusedException BodyCut(ClientConnection connection) => connection.IsOverdue
        ? new RefusedException("body_timeout", 408, $"The body did not arrive within {BodyTime.TotalSeconds} s.")
        : new RefusedException("body_cut", 400, "The body ended before it was whole.");

    private static async Task ReadPartAsync(ClientConnection connection, MessageBuffer request, int left)
    {
        var there = Math.Min(left, connection.Received.Length);
        request.Add(connection.Received[..there]);
        connection.Take(there);
        for (left -= there; left > 0;)
        {
            var count = await connection.Stream.ReadAsync(request.Room(left));
            if (count == 0)
                throw BodyCut(connection);
            request.Length += count;
            left -= count;
        }
    }

    /// <summary>RFC 9112, 7.1; what follows the last chunk is read, and of no use here.</summary>
    private async Task ReadChunksAsync(ClientConnection connection, MessageBuffer request)
    {
        var left = (long)_options.MaxBody;
        while (true)
        {
            left -= TakeWholeChunks(connection, request, left);
            var size = RequestHead.ParseChunkSize(TakeLine(connection, await FindLineAsync(connection)));
            if (size == 0)
                break;
            if ((left -= size) < 0)
                throw new RefusedException("body_size", _web.BodyTooLarge);
            await ReadPartAsync(connection, request, size);
            if (await FindLineAsync(connection) is var end && !TakeLine(connection, end).IsEmpty)
                throw new RefusedException("malformed", 400, "A chunk is longer than its size.");
        }
        for (var fields = 0; ; fields++)
        {
            var end = await FindLineAsync(connection);
            var line = TakeLine(connection, end);
            if (line.IsEmpty)
                return;
            RequestHead.CheckField(line);
            if (fields == RequestHead.MaxFields)
                throw new RefusedException("malformed", 400, $"There are over {RequestHead.MaxFields} trailer fields.");
        }
    }

    /// <summary>
    /// Takes the chunks that are there as a whole, up to the last, and up to what is odd: of a body in chunks of
    /// a byte, most. Returns how many bytes they hold, at most so many.
    /// </summary>
    private static long TakeWholeChunks(ClientConnection connection, MessageBuffer request, long most)
    {
        for (var taken = 0L; ;)
        {
            var there = connection.Received;
            var line = there.IndexOf((byte)'\n');
            if (line is < 1 or > RequestHead.MaxChunkLine || there[line - 1] != '\r')
                return taken;
            var size = RequestHead.ParseChunkSize(there[..(line - 1)]);
            var end = line + 1L + size;
            if (size == 0 || taken + size > most || end + 2 > there.Length || there[(int)end] != '\r'
                || there[(int)end + 1] != '\n')
                return taken;
            request.Add(there.Slice(line + 1, size));
            connection.Take((int)end + 2);
            taken += size;
        }
    }

    /// <summary>Waits for a line of a body in chunks. Returns its length, without its end.</summary>
    private static async ValueTask<int> FindLineAsync(ClientConnection connection)
    {
        int end;
        while ((end = Start(connection).IndexOf((byte)'\n')) < 0)
        {
            if (Start(connection).Length > RequestHead.MaxChunkLine)
                throw new RefusedException("malformed", 400,
                    $"A line of the chunked body is over {RequestHead.MaxChunkLine} bytes.");
            if (!await connection.ReceiveAsync())
                throw BodyCut(connection);
        }
        return end > 0 && connection.Received[end - 1] == '\r' ? end - 1
            : throw new RefusedException("malformed", 400, "A line ends without a carriage return.");

        static ReadOnlySpan<byte> Start(ClientConnection connection) =>
            connection.Received[..Math.Min(connection.Received.Length, RequestHead.MaxChunkLine + 2)];
    }

    /// <summary>Valid until more is received.</summary>
    private static ReadOnlySpan<byte> TakeLine(ClientConnection connection, int length)
    {
        var line = connection.Received[..length];
        connection.Take(length + 2);
        return line;
    }

    /// <summary>Unpacks a body of gzip (RFC 1952) that is one member, as HTTP's clients make it.</summary>
    /// <exception cref="RefusedException">It is none, or it unpacks to too much.</exception>
    private MessageBuffer Unpack(MessageBuffer packed, int room)
    {
        var most = (int)Math.Min(_options.MaxBody, Math.Max(LargePart, (long)MaxRatio * (packed.Length - room)));
        var body = new MessageBuffer(this, room, most + 1, isCounted: true);
        try
        {
            if (packed.Length - room < SmallestGzip)
                throw new InvalidDataException();
            using var gzip = new GZipStream(packed.ReadBody(), CompressionMode.Decompress);
            while (gzip.Read(body.Room(most + 1 - body.Length + room).Span) is > 0 and var count)
            {
                body.Length += count;
                if (body.Length - room > most)
                    throw new RefusedException("body_size", 413, $"The body unpacks to more than --max-body, "
                        + $"{_options.MaxBody} bytes, or to over {MaxRatio} times its size.");
            }
            // A body that is cut off within its last eight bytes, or goes on after them, is not found otherwise.
            if (BinaryPrimitives.ReadUInt32LittleEndian(packed.Bytes.Span[^4..]) != body.Length - room)
                throw new InvalidDataException();
            packed.Dispose();
            return body;
        }
        catch (Exception e)
        {
            body.Dispose();
            if (e is not InvalidDataException)
                throw;
            throw new RefusedException("content_encoding", 400, "The body is not what its Content-Encoding, gzip, says.");
        }
    }


    /// <summary>
    /// The bytes of one HTTP message: a whole request on its way to the HttpListener, or an answer. What a
    /// request's body takes beyond its first part is counted, and refused when all together hold too much.
    /// </summary>
    /// <param name="room">For a head that is added when the length of the body is known.</param>
    /// <param name="expected">How many bytes it will hold beyond that, at most, as far as that is known.</param>
    private sealed class MessageBuffer(Gate gate, int room, long expected, bool isCounted) : IDisposable
    {
        private readonly int _room = room;
        private int _start = room;
        // Of the pool, or large; none before the first byte.
        private byte[] _pooled = [];
        private LargeBuffer? _large;
        private Memory<byte> _buffer;
        private long _counted;

        /// <summary>With the room for the head.</summary>
        public int Length { get; set; } = room;

        public ReadOnlyMemory<byte> Bytes => _buffer[_start..Length];

        /// <summary>What was added after the room.</summary>
        public Stream ReadBody() => _large != null ? _large.Read(_room, Length - _room)
            : new MemoryStream(_pooled, _room, Length - _room, writable: false);

        public void Prepend(ReadOnlySpan<byte> head)
        {
            if (_buffer.IsEmpty)
                Grow(_room);
            _start = _room - head.Length;
            head.CopyTo(_buffer.Span[_start..]);
        }

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
            if (Length >= _buffer.Length)
                Grow(_buffer.IsEmpty ? _room + (int)Math.Min(expected, FirstPart) : 2 * Length);
            return _buffer.Slice(Length, Math.Min(atMost, _buffer.Length - Length));
        }

        public void Dispose()
        {
            Count(0);
            if (_pooled.Length > 0)
                ArrayPool<byte>.Shared.Return(_pooled);
            (_large as IDisposable)?.Dispose();
            (_pooled, _large, _buffer) = ([], null, default);
        }

        private void Grow(int size)
        {
            var isLarge = isCounted && size > LargePart;
            // The last step of a large body is as large as it needs to be, so that the largest has room.
            size = isLarge ? (int)Math.Min(size, _room + expected) : size;
            Count(isCounted ? Math.Max(0, size - _room - FirstPart) : 0);
            if (_large != null)
            {
                _large.Resize(size);
                _buffer = _large.Memory;
                return;
            }
            var before = _pooled;
            if (isLarge)
                (_large, _pooled) = (new LargeBuffer(size), []);
            else
                _pooled = ArrayPool<byte>.Shared.Rent(size);
            _buffer = _large?.Memory ?? _pooled;
            before.AsSpan(0, Math.Min(Length, before.Length)).CopyTo(_buffer.Span);
            if (before.Length > 0)
                ArrayPool<byte>.Shared.Return(before);
        }

        private void Count(long bytes)
        {
            // As it came and unpacked, one body of the largest has room.
            var most = Math.Max(MaxBytesInFlight, 2L * gate._options.MaxBody);
            var all = Interlocked.Add(ref gate._bytesInFlight, bytes - _counted);
            var isMore = bytes > _counted;
            _counted = bytes;
            if (isMore && all > most)
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
            var closes = head.Closes || _draining || _web.IsFromPrometheus(head);
            using var answer = new MessageBuffer(this, 0, SmallAnswer, isCounted: false);
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
                // Without chunks the connection's end is the body's: a reset tells that it is not whole.
                var untilClose = body != null && head.IsOld && head.Method != "HEAD";
                if (untilClose)
                    connection.Socket.LingerState = new LingerOption(true, 0);
                await WriteAsync(connection, answer.Bytes);
                if (body != null && head.Method != "HEAD")
                    await RelayAsync(connection, body, !head.IsOld, answer);
                if (untilClose)
                    connection.Socket.LingerState = new LingerOption(false, 0);
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

    /// <summary>Sends a long answer, each part as a chunk, or, to HTTP/1.0, as it is.</summary>
    private async Task RelayAsync(ClientConnection connection, StreamedBody body, bool inChunks, MessageBuffer answer)
    {
        while (true)
        {
            Enter(connection, ConnectionState.Handled, Timeless);
            var part = await body.NextAsync();
            answer.Length = 0;
            if (inChunks)
                AddChunk(answer, (part ?? default).Span);
            await WriteAsync(connection, inChunks ? answer.Bytes : part ?? default);
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
                upstream = KeptUpstream() ?? await Upstream.ConnectAsync(_inner, _ownUpstreams);
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
            var (length, keepsAlive, id) = Rewrite(answerHead.Span, closes, !head.IsOld, answer);
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
        ReadOnlySpan<byte> head, bool closes, bool takesChunks, MessageBuffer answer)
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
            answer.Add(takesChunks ? "Transfer-Encoding: chunked\r\n"u8 : []);
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
            + (reply.Code == 204 ? ""
                : $"Content-Type: {reply.ContentType}\r\nContent-Length: {reply.Body.Length}\r\n")
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
        // Until the client closes, or its time is up; beyond a whole body slowly, so that a flood costs nothing.
        var left = (long)_options.MaxBody;
        while (await connection.Socket.ReceiveAsync(Waste, SocketFlags.None) is > 0 and var count)
        {
            if ((left -= count) < 0)
                await Task.Delay(LingerPause, _clock);
        }
        return false;
    }
}

// ================================= 22. Linux =================================
//
// What the host provides: as many descriptors as the process may have, protection of its secrets, and
// systemd's notification socket (sd_notify(3): one datagram for each change of state).

internal static partial class Linux
{
    /// <summary>
    /// OpenSSL also offers groups of finite fields, whose handshakes cost 200 times as much, before anybody has
    /// shown a credential; .NET cannot choose them. To be called before anything uses OpenSSL. Who names a
    /// configuration of his own has that.
    /// </summary>
    /// <returns>False: the system allows no file in memory.</returns>
    public static bool ChooseTlsGroups()
    {
        if (Environment.GetEnvironmentVariable("OPENSSL_CONF") != null)
            return true;
        var file = CreateMemoryFile("openssl.cnf", 0);
        var path = $"/proc/self/fd/{file}";
        return file >= 0 && Write(file, TlsGroups, (nuint)TlsGroups.Length) == TlsGroups.Length
            && File.Exists(path) && SetEnvironment("OPENSSL_CONF", path, 1) == 0;
    }

    // As config(5) and SSL_CONF_cmd(3) of OpenSSL have it.
    private static readonly byte[] TlsGroups = """
        openssl_conf = init
        [init]
        ssl_conf = ssl
        [ssl]
        system_default = tls
        [tls]
        Groups = X25519:P-256:P-384
        MinProtocol = TLSv1.2

        """u8.ToArray();

    [LibraryImport("libc", EntryPoint = "memfd_create", SetLastError = true,
        StringMarshalling = StringMarshalling.Utf8)]
    private static partial int CreateMemoryFile(string name, uint flags);

    /// <summary>The descriptors of this process's ends of connections to a port, and the ports of the others.</summary>
    public static IEnumerable<(int Descriptor, int Port)> ConnectionsTo(int port)
    {
        // Descriptors are given from the lowest on. Nothing is opened: there may be none left.
        for (int descriptor = 0, unused = 0; unused < MostUnused; descriptor++)
        {
            var (local, errno) = PortOf(descriptor, isRemote: false);
            unused = errno == BadDescriptor ? unused + 1 : 0;
            if (local == port && PortOf(descriptor, isRemote: true).Port is > 0 and var remote)
                yield return (descriptor, remote);
        }
    }

    public static void EndConnection(int descriptor) => _ = Shutdown(descriptor, Both);

    /// <summary>Further ones are not looked for behind so many that are not in use.</summary>
    private const int MostUnused = 1024;

    // From errno(3), socket(2) and shutdown(2).
    private const int BadDescriptor = 9, Inet = 2, Both = 2;

    /// <summary>Of an IPv4 socket; 0: it is none, or has none.</summary>
    private static unsafe (int Port, int Errno) PortOf(int descriptor, bool isRemote)
    {
        var address = stackalloc byte[128];
        var length = 128;
        var code = isRemote ? RemoteAddress(descriptor, address, &length) : LocalAddress(descriptor, address, &length);
        if (code != 0)
            return (0, Marshal.GetLastPInvokeError());
        return (*(ushort*)address == Inet ? BinaryPrimitives.ReadUInt16BigEndian(new(address + 2, 2)) : 0, 0);
    }

    [LibraryImport("libc", EntryPoint = "getsockname", SetLastError = true)]
    private static unsafe partial int LocalAddress(int descriptor, byte* address, int* length);

    [LibraryImport("libc", EntryPoint = "getpeername", SetLastError = true)]
    private static unsafe partial int RemoteAddress(int descriptor, byte* address, int* length);

    [LibraryImport("libc", EntryPoint = "shutdown")]
    private static partial int Shutdown(int descriptor, int how);

    /// <summary>Whether standard error is what systemd made it, the journal's (systemd.exec(5), JOURNAL_STREAM).</summary>
    public static bool IsJournal
    {
        get
        {
            if (Environment.GetEnvironmentVariable("JOURNAL_STREAM")?.Split(':') is not [var device, var inode]
                || Disk.StatusOf("/proc/self/fd/2") is not { } status)
                return false;
            // As makedev(3) joins the two parts of a device's number.
            var (major, minor) = (status.Device & uint.MaxValue, status.Device >> 32);
            var number = (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & ~0xffUL) << 12) | ((major & ~0xfffUL) << 32);
            return device == number.ToString(CultureInfo.InvariantCulture)
                && inode == status.Inode.ToString(CultureInfo.InvariantCulture);
        }
    }

    /// <summary>
    /// The C library keeps an area of memory for each of the threads that use SQLite, and gives little of it
    /// back: one for all of them takes a third less under many questions.
    /// </summary>
    public static void ShareMemory()
    {
        _ = SetMemoryOption(ArenaMax, 1);
        // What is larger is given back to the system at once. The library would raise this as it learns.
        _ = SetMemoryOption(MapThreshold, 256 * 1024);
    }

    // From malloc.h.
    private const int ArenaMax = -8, MapThreshold = -3;

    [LibraryImport("libc", EntryPoint = "mallopt")]
    private static partial int SetMemoryOption(int option, int value);

    /// <summary>
    /// A process that has no memory left may go on in parts, and hang: it ends at once, with exit code 1, and
    /// its supervisor starts it again. What was acknowledged is on disk.
    /// </summary>
    public static void EndWithoutMemory() => AppDomain.CurrentDomain.FirstChanceException += (_, e) =>
    {
        if (e.Exception is OutOfMemoryException or ThreadStartException)
        {
            _ = Write(2, NoMemory, (nuint)NoMemory.Length);
            End(1);
        }
    };

    /// <summary>
    /// Where a stream was closed by whoever started SeS, the next file that is opened would be taken for it: the
    /// database would get the log.
    /// </summary>
    public static void FillStandardStreams()
    {
        while (Open("/dev/null", ReadWrite) is var descriptor and >= 0)
        {
            if (descriptor > 2)
            {
                _ = Close(descriptor);
                break;
            }
        }
    }

    private const int ReadWrite = 2;

    [LibraryImport("libc", EntryPoint = "open", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Open(string path, int flags);

    [LibraryImport("libc", EntryPoint = "close")]
    private static partial int Close(int descriptor);

    /// <summary>Of the terminal that standard output is, in columns; where that is not known, no limit.</summary>
    public static int TerminalWidth() =>
        ReadWindowSize(1, GetWindowSize, out var size) == 0 && size.Columns > 0 ? size.Columns : int.MaxValue;

    private const nuint GetWindowSize = 0x5413;

    private record struct WindowSize(ushort Rows, ushort Columns, ushort Width, ushort Height);

    [LibraryImport("libc", EntryPoint = "ioctl")]
    private static partial int ReadWindowSize(int descriptor, nuint request, out WindowSize size);

    private static readonly byte[] NoMemory = "ses: there is no memory left; SeS ends\n"u8.ToArray();

    [LibraryImport("libc", EntryPoint = "write")]
    private static partial nint Write(int descriptor, byte[] text, nuint length);

    [LibraryImport("libc", EntryPoint = "_exit")]
    private static partial void End(int code);

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

    /// <summary>For libraries in C, which do not see what .NET sets.</summary>
    [LibraryImport("libc", EntryPoint = "setenv", StringMarshalling = StringMarshalling.Utf8)]
    public static partial int SetEnvironment(string name, string value, int overwrite);

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
            Trim();
            _tidied = now;
        }
        _seen = now;
    }

    public static void Trim() =>
        GC.Collect(2, GCCollectionMode.Aggressive, blocking: true, compacting: true);
}

/// <summary>Reads secrets and CAs in files again, as they are rotated; Tls does so with the certificates of the port.</summary>
internal sealed class SecretWatch(Options options, OnixClient? onix, Log log)
{
    public static readonly TimeSpan Period = TimeSpan.FromSeconds(10);

    /// <summary>To be called every <see cref="Period"/>.</summary>
    public void Check()
    {
        foreach (var (setting, secret, isUsable) in options.SecretFiles)
            Try(setting, secret.Path!, () =>
            {
                if (secret.Changed() is not { } changed)
                    return false;
                if (!isUsable(changed))
                    throw new IOException("it would be refused at a start");
                secret.Take(changed);
                return true;
            });
        if (onix != null && options.OnixCaFile is { } path)
            Try(Options.OnixCaFileSetting, path, onix.RereadCa);
    }

    private void Try(Setting setting, string path, Func<bool> reread)
    {
        try
        {
            if (reread())
                log.Info("read again", ("setting", setting.Flag), ("file", path));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or CryptographicException)
        {
            log.Often($"{setting.Flag}: what the file has now is not used, what it had before still is",
                ("file", path), ("reason", e.Message));
        }
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

// =============================== 23. Commands ================================
//
// What the program does besides serving: it answers questions from a data directory, lists the quarantine,
// checks a database, makes it anew, copies it, and brings facts from one store to another; beside a daemon
// where that is possible. It also probes a SeS on the same host.

/// <summary>One thing to do, other than to serve.</summary>
/// <param name="Argument">How --help names the argument that is no flag; null: there is none.</param>
/// <param name="IsArgumentNeeded">Without it there is nothing to do.</param>
internal sealed record Command(string Name, string Help, string Example, IReadOnlyList<Setting> Settings,
    string? Argument = null, bool IsArgumentNeeded = false)
{
    private static readonly Setting
        Partition = Flag("--partition", "NAME", "Only services of this partition"),
        From = Flag("--from", "TIME", "From this time on, such as 2026-11-22T11:34:00Z, 2026-11-22 or -24h"),
        To = Flag("--to", "TIME", "Up to this time"),
        AsOf = Flag("--as-of", "TIME", "From what was recorded until then, as it was known"),
        Order = Flag("--order", "ORDER", "asc, or desc: the newest first (default: asc)"),
        Limit = Flag("--limit", "COUNT", "At most so many rows"),
        Cursor = Flag("--cursor", "CURSOR", "Go on after an answer's next"),
        Format = Flag("--format", "FORMAT", "table, json or csv (default: table on a terminal, else json)"),
        ReportFormat = Flag("--format", "FORMAT", "table, json, csv or html (default: table on a terminal, else json)");

    private static readonly Setting[] Filters =
    [
        Options.DataDirSetting, Partition, Flag("--platform", "NAME", "Only services of this platform"),
        Flag("--service", "NAME", "Only services of this name"), Flag("--facet", "NAME", "Only this facet"),
        Flag("--location", "NAME", "Only this location"),
    ];

    private static readonly Setting
        NoteId = Flag("--id", "ID", "Of the note"),
        NoteText = Flag("--text", "TEXT", "What it says, at most 4 KiB"),
        Author = Flag("--author", "NAME", "Who says it; the user of this host is kept in any case");

    private static readonly Setting[] Running =
    [
        new("Flags", "--url", "", "URL", null,
            "Ask the SeS that runs there, such as http://ses-1:8888/alerts; needs --partition"),
        Flag("--token-file", "FILE", "File with a bearer token for it"),
        Options.UsernameSetting, Options.PasswordSetting, Options.PasswordSetting.File,
    ];

    public static readonly Setting
        OutputSetting = Flag("--output", "DIR", "With html: one file a platform, in this directory"),
        FailIfDownSetting = Flag("--fail-if-down", "BOOL", "Exit with 3 if one of the services is down"),
        ForSetting = Flag("--for", "TIME", "How long, such as 4h or 90m, instead of --to"),
        DryRunSetting = Flag("--dry-run", "BOOL", "Only tell how much that is, and what was purged before"),
        RetrySetting = Flag("--retry", "BOOL", "Send the alerts to a running SeS again, after a cure"),
        UrlSetting = new("Flags", "--url", "", "URL", "http://localhost:8888/alerts",
            "Its webhook, without the partition"),
        TokenFileSetting = Flag("--token-file", "FILE", "File with a bearer token for it");

    public static IReadOnlyList<Command> All { get; } =
    [
        new("status", "Tells the current status of each service.", "ses status --service etcd --fail-if-down",
            [.. Filters, AsOf, FailIfDownSetting, Format, .. Running]),
        new("history", "Tells each change of status, in order of time.",
            "ses history --service etcd --from -24h",
            [.. Filters, From, To, AsOf, Order, Limit, Cursor, Format, .. Running]),
        new("report", "Tells availability and outages of each service.",
            "ses report --service etcd --facet node --from -7d --threshold 2",
            [.. Filters, From, To, AsOf, Flag("--threshold", "COUNT",
                "Also for how long fewer than so many of these were up"),
                Flag("--period", "LENGTH", "A row for each day, week, month, quarter or year"),
                Options.TzSetting, Options.ServiceHoursSetting, Options.SloSetting, ReportFormat, OutputSetting, .. Running]),
        new("outages", "Tells each time that a service was down, in order of its begin.",
            "ses outages --from -30d --order desc --limit 10",
            [.. Filters, From, To, AsOf, Order, Limit, Cursor, Options.TzSetting, Options.ServiceHoursSetting, Format, .. Running]),
        new("check", "Looks through the database and tells what is damaged, and how to mend it.",
            "ses check --data-dir /var/lib/ses", [Options.DataDirSetting]),
        new("rebuild", "Makes indexes and the timeline anew from the facts; not beside a daemon.",
            "ses rebuild --data-dir /var/lib/ses", [Options.DataDirSetting]),
        new("backup", "Writes a consistent copy of the database, beside a daemon too.",
            "ses backup /var/backups/ses.db", [Options.DataDirSetting], "FILE", true),
        new("restore", "Puts a backup in the place of the database; not beside a daemon.",
            "ses restore /var/backups/ses.db", [Options.DataDirSetting], "FILE", true),
        new("export", "Writes facts as lines of JSON, in the order in which they were recorded.",
            "ses export --from -24h > facts.jsonl",
            [Options.DataDirSetting, Partition, Flag("--from", "TIME", "Only what was recorded from then on"),
                Flag("--as-of", "TIME", "Only what was recorded until then")]),
        new("import", "Takes lines of ses export, of any SeS, any number of times: the union.",
            "ssh other ses export | ses import", [Options.DataDirSetting], "FILE"),
        new("purge", "Takes out what a mistake or a stranger made, beside a daemon too, and keeps a record.",
            "ses purge --partition test --dry-run",
            [Options.DataDirSetting, Flag("--partition", "NAME", "All of this partition"),
                Flag("--service", "NAME", "Only its services of this name"), DryRunSetting]),
        new("note add", "Writes a note: announced work, an outage that does not count, what really was, a comment.",
            "ses note add --kind maintenance --from 2026-12-01T22:00+01:00 --for 4h --platform shop --text Upgrade",
            [Options.DataDirSetting, Flag("--partition", "NAME", "Of this partition (default: where there is one, that)"),
                Flag("--kind", "KIND", "maintenance, excluded, correction, comment or retired"),
                Flag("--from", "TIME", "Since when, such as 2026-12-01T22:00+01:00, 2026-12-01 or -2h (default: now)"),
                Flag("--to", "TIME", "Until when; none: it has no end"), ForSetting,
                Flag("--platform", "NAME", "Only services of this platform; shop*: that begin so. So do the next three"),
                Flag("--service", "NAME", "Only services of this name"), Flag("--facet", "NAME", "Only this facet"),
                Flag("--location", "NAME", "Only this location"),
                Flag("--status", "STATUS", "Of a correction: what really was, such as down or up"), NoteText, Author,
                Flag("--id", "ID", "Of the note: of one that is there, this is a new version"), Options.TzSetting, Format]),
        new("note list", "Lists notes, those too that were withdrawn.", "ses note list --from -30d --kind excluded",
            [Options.DataDirSetting, Flag("--partition", "NAME", "Only notes of this partition"),
                Flag("--platform", "NAME", "Only notes that may be about this platform; so do the next three"),
                Flag("--service", "NAME", "About this service"), Flag("--facet", "NAME", "About this facet"),
                Flag("--location", "NAME", "About this location"), From, To, Flag("--kind", "KIND", "Only this kind"), NoteId, AsOf,
                Flag("--versions", "BOOL", "All versions, not only the last of each"), Options.TzSetting, Format]),
        new("note withdraw", "Ends a note as if it had not been written; all its versions stay.",
            "ses note withdraw --id 3f9a2c71d0 --text postponed",
            [Options.DataDirSetting, Flag("--partition", "NAME", "Of this partition"), NoteId, NoteText, Author,
                Options.TzSetting, Format]),
        new("probe", "Asks a SeS on this host whether it is ready; for HEALTHCHECK and scripts.", "ses probe",
            [Options.PortSetting, Options.AddressSetting, Options.TlsCertSetting, Options.TlsKeySetting,
                Options.TlsClientCaSetting]),
        new("quarantine", "Lists the alerts that could not be mapped.", "ses quarantine --retry",
            [Options.DataDirSetting, Partition, Format, RetrySetting, UrlSetting, TokenFileSetting,
                Options.UsernameSetting, Options.PasswordSetting, Options.PasswordSetting.File]),
    ];

    public string[] Words { get; } = Name.Split(' ');

    /// <summary>The command with which arguments begin; null: there is none.</summary>
    public static Command? Of(string[] args) => All.FirstOrDefault(c => args.Take(c.Words.Length).SequenceEqual(c.Words));

    private static Setting Flag(string flag, string value, string help) =>
        new("Flags", flag, "", value, null, help);
}

/// <summary>Asks a SeS on this host through its port, as any client does.</summary>
internal static class Probe
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(3);

    /// <param name="needsCertificate">Of a client: a probe has none, and is content with a handshake.</param>
    /// <returns>Whether it answered 2xx, and what it said.</returns>
    public static async Task<(bool IsThere, string Says)> AskAsync(Uri target, bool needsCertificate)
    {
        // It is the same host: who answers is not the question, and the certificate may name another.
        var isThere = false;
        using var handler = new HttpClientHandler
        {
            UseProxy = false,
            ServerCertificateCustomValidationCallback = (_, _, _, _) => isThere = true,
        };
        using var client = new HttpClient(handler) { Timeout = Patience };
        try
        {
            using var answer = await client.GetAsync(target);
            return (answer.IsSuccessStatusCode, (await answer.Content.ReadAsStringAsync()).Trim());
        }
        catch (HttpRequestException) when (isThere && needsCertificate)
        {
            return (true, $"{target} is there; it takes only clients with a certificate, and a probe has none");
        }
        catch (Exception e) when (e is HttpRequestException or TaskCanceledException)
        {
            return (false, $"{target} does not answer: {Reason(e)}");
        }
    }

    public static string Reason(Exception e) =>
        e is HttpRequestException { InnerException: { } inner } ? inner.Message : e.Message;
}

/// <summary>Carries commands out.</summary>
/// <param name="width">Of the terminal, where people read; null: it is none.</param>
internal sealed class CommandRunner(
    IReadOnlyDictionary<string, string> flags, IReadOnlyDictionary<string, string> variables, Stream output,
    int? width, TimeProvider clock)
{
    // As it is reached: once its owner was taken by another name than was given.
    private string _dir = Options.FindDataDir(flags, variables);

    // By where it was called: the working directory becomes the data directory.
    private readonly string? _folder = flags.GetValueOrDefault(Command.OutputSetting.Flag) switch
    {
        null => null,
        "" => throw new OptionsException($"{Command.OutputSetting.Flag}: it is empty"),
        var folder => Path.GetFullPath(folder),
    };

    // Who runs it, and may read what the owner may not.
    private (string Name, long Id) _user;
    private AuthenticationHeaderValue? _credentials;

    private DateTime Now => UnixTime.Read(UnixTime.From(clock.GetUtcNow().UtcDateTime));

    /// <summary>What is no flag.</summary>
    private string? Argument => flags.GetValueOrDefault("");

    /// <returns>The exit code.</returns>
    /// <exception cref="OptionsException">A flag cannot be used.</exception>
    /// <exception cref="DataDirException">The data directory cannot be used.</exception>
    public async Task<int> RunAsync(string name)
    {
        if (name == "probe")
            return await ProbeAsync() ? 0 : 1;
        var isQuestion = Enum.TryParse<Subject>(name, ignoreCase: true, out var subject);
        CheckCredentials(isQuestion ? flags.ContainsKey(Command.UrlSetting.Flag) ? null : Command.UrlSetting.Flag
            : name == "quarantine" && !Options.BoolOf(Command.RetrySetting, flags) ? Command.RetrySetting.Flag : null);
        if (isQuestion && flags.TryGetValue(Command.UrlSetting.Flag, out var url))
            return await AskAsync(subject, url);
        DataDir.CheckLinks(_dir);
        DataDir.CheckOpen(_dir);
        // Before the directory's owner is taken.
        _user = name is "purge" or "note add" or "note withdraw" ? (Environment.UserName, Disk.UserId()) : default;
        if (name is "backup" or "rebuild" or "note add" or "note withdraw")
            Snapshot.CheckThere(_dir);
        // Opened before: the directory's owner may not be able to.
        using var file = name is "restore" or "import" or "backup" && Argument != null
            ? OpenArgument(isNew: name == "backup") : null;
        var given = _dir;
        if (name == "quarantine")
            _credentials = Credentials();
        _dir = DataDir.BecomeOwner(given);
        try
        {
            return await RunAsync(name, subject, file);
        }
        catch (DataDirException e)
        {
            // It may have been entered by another name.
            throw new DataDirException(e.Message.Replace(_dir, given, StringComparison.Ordinal)
                + (given == Options.DefaultDataDir ? ", and no service of this host has a data directory" : ""));
        }
    }

    private async Task<int> RunAsync(string name, Subject subject, FileStream? file) =>
        name switch
        {
            "check" => Check(),
            "rebuild" => Rebuild(),
            "backup" => Backup(file!),
            "restore" => Restore(file!),
            "export" => Export(),
            "import" => Import(file ?? Console.OpenStandardInput()),
            "purge" => RunPurge(),
            "note list" => ListNotes(),
            "note add" or "note withdraw" => AddNote(isWithdrawn: name == "note withdraw"),
            "quarantine" => Options.BoolOf(Command.RetrySetting, flags) ? await RetryAsync() ? 0 : 1 : List(),
            _ => Ask(subject),
        };

    /// <param name="needed">The flag without which nobody is asked; null: it is given.</param>
    private void CheckCredentials(string? needed)
    {
        string[] credentials = [Command.TokenFileSetting.Flag, Options.UsernameSetting.Flag, Options.PasswordSetting.Flag,
            Options.PasswordSetting.File.Flag];
        var given = credentials.Where(flags.ContainsKey).ToList();
        if (needed != null && credentials.Append(Command.UrlSetting.Flag).FirstOrDefault(flags.ContainsKey) is { } useless
            && useless != needed)
            throw new OptionsException($"{useless} needs {needed}");
        if (given.Count > 1 && given[0] == Command.TokenFileSetting.Flag)
            throw new OptionsException($"{given[0]} and {given[1]} exclude each other");
    }

    private FileStream OpenArgument(bool isNew)
    {
        try
        {
            var file = new FileStream(Argument!, new FileStreamOptions
            {
                Mode = isNew ? FileMode.CreateNew : FileMode.Open,
                Access = isNew ? FileAccess.ReadWrite : FileAccess.Read,
                UnixCreateMode = isNew ? UnixFileMode.UserRead | UnixFileMode.UserWrite : null,
            });
            if (isNew)
                Disk.FlushFolder(Path.GetDirectoryName(file.Name)!);
            return file;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            var reason = e switch
            {
                FileNotFoundException or DirectoryNotFoundException =>
                    isNew ? "its folder is missing" : "it is missing",
                UnauthorizedAccessException => "access is denied, or it is a folder",
                _ => e.Message,
            };
            throw new OptionsException($"FILE: '{Argument}' cannot be {(isNew ? "made" : "read")}: {reason}");
        }
    }

    private int Ask(Subject subject)
    {
        using var snapshot = Snapshot.Open(_dir, Snapshot.Settled(_dir, clock));
        var (question, format) = (Understand(subject, snapshot.Moment), Format(subject == Subject.Report));
        var failsIfDown = Options.BoolOf(Command.FailIfDownSetting, flags);
        CheckKept(question.AsOf, snapshot);
        var questions = Questions.Of(snapshot, question.AsOf);
        if (IsForPeople(question, format))
            return Report(questions, question, format);
        var answers = new Answers(questions, Program.Version, width);
        foreach (var part in answers.Write(question, format))
            output.Write(part.Span);
        if (format == OutputFormat.Table && subject == Subject.Status)
        {
            Print("");
            Print(StoreSize.Of(snapshot, Path.Combine(_dir, Store.FileName)).Sentence(snapshot.Moment));
        }
        if (format != OutputFormat.Json)
            TellMore(answers.Next);
        return answers.Told.Rows > 0 || (subject != Subject.Status && questions.HasService(question.Filter))
            ? CodeOf(answers.Told.Down, failsIfDown) : NothingMatches();
    }

    private Question Understand(Subject subject, DateTime now)
    {
        try
        {
            return Question.Parse(subject, flags.GetValueOrDefault("--partition"), Parameters(Question.ParametersOf(subject)), now,
                subject is Subject.Report or Subject.Outages && !flags.ContainsKey(Command.UrlSetting.Flag)
                    ? Options.CountingOf(variables) : null);
        }
        catch (QuestionException e)
        {
            throw Flagged(e);
        }
    }

    /// <summary>What is wrong with a parameter, as it is wrong with the flag for it.</summary>
    private static OptionsException Flagged(QuestionException e) => new("--"
        + e.Message.Replace("as_of", "as-of", StringComparison.Ordinal)
            .Replace("service_hours", "service-hours", StringComparison.Ordinal));

    /// <summary>What is asked, as over HTTP.</summary>
    private IEnumerable<KeyValuePair<string, string>> Parameters(string[] names) =>
        from flag in flags
        let name = flag.Key[2..].Replace('-', '_')
        where name != "format" && names.Contains(name)
        select KeyValuePair.Create(name, flag.Value);

    private static void TellMore(string? next)
    {
        if (next != null)
            StandardError.WriteLine($"There is more: --cursor {next}");
    }

    /// <summary>What the exit code says of an answer.</summary>
    private static int CodeOf(long down, bool failsIfDown) => down > 0 && failsIfDown ? Program.IsDown : 0;

    private int NothingMatches()
    {
        var given = flags.Where(f => Question.Names.Contains(f.Key[2..]) || f.Key == "--partition")
            .Select(f => $"{f.Key} '{f.Value}'").ToList();
        output.Flush();
        StandardError.WriteLine(
            given.Count == 0 ? "ses: no service is known yet" : $"ses: no service matches {string.Join(", ", given)}");
        return Program.NoMatch;
    }

    // ---- A SeS that runs ----

    /// <summary>Writes the answers of a SeS that runs as if it were the store's own.</summary>
    private async Task<int> AskAsync(Subject subject, string url)
    {
        const int EventsAtOnce = 10_000;
        if (flags.ContainsKey(Options.DataDirSetting.Flag))
            throw new OptionsException($"{Command.UrlSetting.Flag} and {Options.DataDirSetting.Flag} exclude each other");
        if (flags.GetValueOrDefault("--partition") is not { Length: > 0 } partition)
            throw new OptionsException($"--partition is needed with {Command.UrlSetting.Flag}");
        if (partition is "." or "..")
            throw new OptionsException($"--partition: '{partition}' is not usable; it names no partition");
        var (question, format) = (Understand(subject, Now), Format(subject == Subject.Report));
        if (format == OutputFormat.Html)
            throw new OptionsException($"--format: html goes without {Command.UrlSetting.Flag}: it needs the database");
        var failsIfDown = Options.BoolOf(Command.FailIfDownSetting, flags);
        using var ses = new RunningSes(url, Credentials());
        if (IsForPeople(question, format))
            return await ReportAsync(ses, question, partition);
        var writer = new RowWriter(format, width);
        var lists = question.Lists.Where(l => question.HasList(l, format)).ToList();
        var given = Parameters(Question.ParametersOf(subject)).ToDictionary();
        var (rows, down, left, next) = (0L, 0L, question.Limit ?? int.MaxValue, (string?)null);
        do
        {
            if (Question.IsPaged(subject))
                given["limit"] = $"{Math.Min(left, EventsAtOnce)}";
            var isFirst = next == null;
            var answer = await ses.AskAsync(question, partition, given);
            question = answer?.Question ?? question;
            foreach (var (name, value) in isFirst ? answer?.Head ?? [] : [])
                writer.Property(name, value);
            foreach (var list in lists)
            {
                var columns = Answers.Columns(question, list, format);
                if (isFirst)
                    writer.BeginList(list, columns);
                foreach (var row in answer?.Lists[list] ?? [])
                {
                    writer.Row(columns, columns.Length > row.Length ? [.. row, .. answer!.Made] : row);
                    (rows, left) = (rows + 1, left - 1);
                    down += subject == Subject.Status && row[Array.IndexOf(columns, "status")] is "down"
                        && row[Array.IndexOf(columns, "maintenance")] == null ? 1 : 0;
                    if (writer.IsFull)
                        output.Write(writer.Take().Span);
                }
                next = answer?.Next;
                if (next == null || left <= 0)
                    writer.EndList();
            }
            given["cursor"] = next ?? "";
        }
        while (next != null && left > 0);
        if (Question.IsPaged(subject))
            writer.Property("next", next);
        output.Write(writer.End().Span);
        if (format != OutputFormat.Json)
            TellMore(next);
        return rows > 0 || (Question.IsPaged(subject) && await IsKnownAsync(ses, partition))
            ? CodeOf(down, failsIfDown) : NothingMatches();
    }

    private async Task<bool> IsKnownAsync(RunningSes ses, string partition)
    {
        var given = Parameters(Question.ParametersOf(Subject.Status)).Where(p => Question.Names.Contains(p.Key)).Append(new("from", "-1s"));
        var report = Question.Parse(Subject.Report, partition, given, Now);
        return (await ses.AskAsync(report, partition, given))?.Lists[Answers.Services].Count > 0;
    }

    // ---- Reports for people ----

    /// <summary>A table of periods, and each document.</summary>
    /// <exception cref="OptionsException">Flags exclude each other.</exception>
    private bool IsForPeople(Question question, OutputFormat format)
    {
        var isHtml = format == OutputFormat.Html;
        if (flags.ContainsKey(Command.OutputSetting.Flag) && !isHtml)
            throw new OptionsException($"{Command.OutputSetting.Flag} needs --format html");
        if (isHtml && question.Threshold != null)
            throw new OptionsException("--threshold goes without --format html");
        return isHtml || (format == OutputFormat.Table && question is { Subject: Subject.Report, Counting.Period: not null });
    }

    private int Report(Questions questions, Question question, OutputFormat format)
    {
        var rows = questions.Report(question.Filter, question.From, question.To, question.Counting).ToList();
        if (rows.Count == 0)
            return NoRows(questions.HasService(question.Filter));
        var outages = questions.Outages(
            question.Filter, rows.Min(r => r.From), rows.Max(r => r.To), question.Counting).ToList();
        var reports = PlatformReport.All(question.Counting, questions.Moment, rows, outages);
        if (format == OutputFormat.Table)
            WriteTables(reports, question.Counting, questions.Moment);
        else if (_folder != null)
            WriteFiles(_folder, reports, r => ReportPage.Of([ChapterOf(questions, question, r)]));
        else
            WritePage(ReportPage.Of(reports.ConvertAll(r => ChapterOf(questions, question, r))));
        return 0;
    }

    private void WritePage(ReadOnlyMemory<byte> page)
    {
        if (width == null)
            output.Write(page.Span);
        else
            Array.ForEach(Encoding.UTF8.GetString(page.Span).TrimEnd('\n').Split('\n'), Print);
    }

    private int NoRows(bool isKnown)
    {
        if (!isKnown)
            return NothingMatches();
        StandardError.WriteLine("ses: no service was known in that time");
        return Program.NoMatch;
    }

    private void WriteTables(List<PlatformReport> reports, Counting counting, DateTime asOf)
    {
        var text = new ReportText(width ?? int.MaxValue);
        var hasPartitions = reports.Select(r => r.Partition).Distinct().Count() > 1;
        var moment = counting.Zone.Local(asOf).ToString("yyyy-MM-dd HH:mm", CultureInfo.InvariantCulture);
        output.Write(Encoding.UTF8.GetBytes(string.Join('\n', reports.Select(r => text.Of(r, moment, hasPartitions)))));
    }

    /// <summary>What is there already of that name is replaced, a link too: none is followed.</summary>
    /// <exception cref="OptionsException">The directory cannot be used.</exception>
    private void WriteFiles(string folder, List<PlatformReport> reports, Func<PlatformReport, ReadOnlyMemory<byte>> pageOf)
    {
        if (!Directory.Exists(folder))
            throw new OptionsException($"{Command.OutputSetting.Flag}: '{folder}' is no directory");
        var names = new HashSet<string>();
        foreach (var report in reports)
        {
            var name = report.FileName(isPlain: true);
            var path = Path.Combine(folder, names.Add(name) ? name : report.FileName(isPlain: false));
            var page = pageOf(report);
            var written = $"{path}.{Environment.ProcessId}";
            try
            {
                using (var file = new FileStream(written, FileMode.CreateNew))
                    file.Write(page.Span);
                File.Move(written, path, overwrite: true);
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                File.Delete(written);
                throw new OptionsException($"{Command.OutputSetting.Flag}: '{folder}' cannot be written to: {e.Message}");
            }
            Print(path);
        }
    }

    private ReportChapter ChapterOf(Questions questions, Question question, PlatformReport report)
    {
        const int Intervals = 100;
        var filter = question.Filter with { Partition = report.Partition, Platform = report.Platform };
        // Each day has as many.
        var days = Math.Max(1, (int)Math.Round((report.To - report.From).TotalDays));
        var strips = new Dictionary<ServiceKey, Strip>();
        foreach (var (_, service, runs) in questions.Runs(filter, report.From))
        {
            var strip = strips[service] = new Strip(report.From, report.To, days > Intervals ? Intervals : Intervals / days * days);
            foreach (var run in runs)
                strip.Add(run.From, run.To ?? questions.Moment, run.Status);
        }
        return new(report, OriginOf(questions, question, report), questions.Notes(filter, report.From, report.To),
            [.. questions.Silent(report.Partition, report.Platform, report.From, report.To)], strips);
    }

    // Most chapters are of the same time.
    private (DateTime From, string Digest)? _digest;

    private string DigestOf(Snapshot snapshot, DateTime from, DateTime asOf)
    {
        if (_digest?.From != from)
            _digest = (from, ReportOrigin.DigestOf(snapshot, from, asOf));
        return _digest.Value.Digest;
    }

    private ReportOrigin OriginOf(Questions questions, Question question, PlatformReport report)
    {
        var (snapshot, counting, asOf) = (questions.Snapshot, question.Counting, Rfc3339.Format(questions.Moment));
        var given = Parameters(Question.ParametersOf(Subject.Report)).ToDictionary();
        (given["platform"], given["as_of"], given["tz"]) = (report.Platform, asOf, counting.Zone.Name);
        if (counting.Hours is { } hours)
            given["service_hours"] = hours.Text;
        if (counting.Objectives is { } objectives)
            given["slo"] = objectives.Text;
        // In an order of its own: the command writes itself.
        var command = string.Concat(Question.ParametersOf(Subject.Report).Where(given.ContainsKey)
            .Select(p => $" --{p.Replace('_', '-')} {Quoted(given[p])}"));
        var settings = $"pause {Quantity.Setting(snapshot.Rules.Pause)}, stale after {Quantity.Setting(snapshot.StaleAfter)}, "
            + $"forget {Quantity.Setting(snapshot.Forget)}";
        return new(questions.Moment, $"ses report --partition {Quoted(report.Partition)}{command} --format html",
            Program.Version, settings, $"ses export --from {Rfc3339.Format(report.From)} --as-of {asOf}",
            DigestOf(snapshot, report.From, questions.Moment));
    }

    /// <summary>As one argument for a shell.</summary>
    private static string Quoted(string text) =>
        text != "" && text.All(c => char.IsAsciiLetterOrDigit(c) || "-_./:,+=@%".Contains(c)) ? text
            : !text.Any(char.IsControl) ? $"'{text.Replace("'", "'\\''", StringComparison.Ordinal)}'"
            : $"$'{string.Concat(text.Select(c => char.IsControl(c) ? $"\\u{(int)c:x4}" : c is '\'' or '\\' ? $"\\{c}" : $"{c}"))}'";

    /// <summary>The same table from the answers of a SeS that runs; notes are not in them.</summary>
    private async Task<int> ReportAsync(RunningSes ses, Question question, string partition)
    {
        var given = Parameters(Question.ParametersOf(Subject.Report)).ToDictionary();
        if (await ses.AskAsync(question, partition, given) is not { } answer)
            return NothingMatches();
        var outages = new List<OutageRow>();
        try
        {
            var (counting, asOf) = answer.Origin;
            var rows = answer.Reports(partition, asOf).ToList();
            if (rows.Count == 0)
                return NoRows(await IsKnownAsync(ses, partition));
            foreach (var name in given.Keys.Except(Question.ParametersOf(Subject.Outages)))
                given.Remove(name);
            (given["from"], given["to"]) = (Rfc3339.Format(rows.Min(r => r.From)), Rfc3339.Format(rows.Max(r => r.To)));
            given["as_of"] = Rfc3339.Format(asOf);
            do
            {
                var page = await ses.AskAsync(question with { Subject = Subject.Outages }, partition, given);
                outages.AddRange(page?.OutagesOf(partition) ?? []);
                given["cursor"] = page?.Next ?? "";
            }
            while (given["cursor"] != "");
            WriteTables(PlatformReport.All(counting, asOf, rows, outages), counting, asOf);
            return 0;
        }
        catch (FormatException e)
        {
            throw new CommandException($"{Command.UrlSetting.Flag}: the answer is not of SeS: {e.Message}");
        }
    }

    private static void CheckKept(DateTime? asOf, Snapshot snapshot)
    {
        if (asOf < snapshot.Oldest)
            throw new OptionsException(
                $"--as-of: nothing before {Rfc3339.Format(snapshot.Oldest.Value)} is kept");
    }

    private OutputFormat Format(bool isReport = false) => flags.GetValueOrDefault("--format") switch
    {
        null => width != null ? OutputFormat.Table : OutputFormat.Json,
        "table" => OutputFormat.Table,
        "json" => OutputFormat.Json,
        "csv" => OutputFormat.Csv,
        "html" when isReport => OutputFormat.Html,
        var other => throw new OptionsException(
            $"--format: '{other}' is not usable; allowed: table, json, csv{(isReport ? ", html" : "")}"),
    };

    // ---- Check, rebuild ----

    private int Check()
    {
        using var snapshot = Snapshot.Open(_dir, Now);
        using var check = new DatabaseCheck(snapshot.Database, snapshot.Rules, snapshot.Moment);
        try
        {
            check.CheckAll(Tell);
        }
        catch (SqliteException e) when (e.IsDamage)
        {
            Print($"structure: {e.Reason}");
            Print("It cannot be read to its end: put a backup in its place (ses restore).");
            return 1;
        }
        foreach (var fault in check.Faults)
            Print(fault);
        Print(check.Faults.Count == 0
            ? $"Nothing is wrong: {check.Observations} observations, {check.Services} services."
            : $"{check.Faults.Count} faults{(check.Faults.Count == DatabaseCheck.MaxFaults ? " or more" : "")}. "
                + "ses rebuild mends indexes and what is derived; facts come from a backup (ses restore), or from "
                + "another SeS (ses export there, ses import here).");
        return check.Faults.Count == 0 ? 0 : 1;
    }

    /// <summary>Progress, for people.</summary>
    private static void Tell(string what) => StandardError.WriteLine($"ses: {what} ...");

    private int Rebuild()
    {
        using var claim = DataDir.Claim(_dir);
        using var writer = OpenWriter();
        Tell("indexes");
        writer.Reindex();
        writer.Rebuild(Now);
        for (long told = -1; writer.IsBehind;)
        {
            var began = clock.GetTimestamp();
            writer.Derive(Now, () => clock.GetElapsedTime(began) > TimeSpan.FromSeconds(1));
            var percent = 100 * writer.Derived / Math.Max(1, writer.LastObservation);
            if (percent / 10 != told)
                Tell($"timeline, {percent} %");
            told = percent / 10;
        }
        Print("The indexes and the timeline are made anew.");
        return 0;
    }

    /// <summary>The database, with the settings that are stored in it.</summary>
    private Writer OpenWriter()
    {
        var path = Path.Combine(_dir, Store.FileName);
        var rules = new StoreRules(null, new TimelineRules(Options.DefaultPause), Options.DefaultStaleAfter,
            long.MaxValue, long.MaxValue);
        if (File.Exists(path))
        {
            using var stored = Snapshot.Open(_dir, Now);
            using var onix = stored.Query("SELECT value FROM meta WHERE name = 'onix'");
            rules = rules with
            {
                Timeline = stored.Rules,
                StaleAfter = stored.StaleAfter,
                Forget = stored.Forget,
                Onix = onix.FirstText() is { Length: > 0 } url ? url : null,
            };
        }
        return new Writer(path, 16 * 1024, rules, new RecentAlerts(), clock);
    }

    // ---- Copies ----

    private int Backup(FileStream target)
    {
        // SQLite makes it beside the database: the owner may not be able to write elsewhere.
        var copy = Path.Combine(_dir, $"{Store.FileName}.backup-{Environment.ProcessId}");
        try
        {
            using (var source = new SqliteConnection(Path.Combine(_dir, Store.FileName), isReadOnly: true, 2048))
            {
                Schema.Check(source);
                Tell("copying");
                Writer.Backup(source, copy);
            }
            using (var made = File.OpenRead(copy))
                made.CopyTo(target);
            Disk.Flush(target);
        }
        catch (Exception e) when (e is SqliteException or IOException or UnauthorizedAccessException)
        {
            // What is half a copy must not look like one; the file may be another user's.
            target.SetLength(0);
            try
            {
                File.Delete(target.Name);
            }
            catch (UnauthorizedAccessException)
            {
                // It is empty.
            }
            throw;
        }
        finally
        {
            File.Delete(copy);
        }
        Print($"{Argument} is a copy of {Store.FileName}.");
        return 0;
    }

    private int Restore(FileStream backup)
    {
        using var claim = DataDir.Claim(_dir);
        var path = Path.Combine(_dir, Store.FileName);
        var copy = path + ".restored";
        try
        {
            // One that a crash left.
            File.Delete(copy);
            using (var target = Disk.Create(copy))
            {
                backup.CopyTo(target);
                Disk.Flush(target);
            }
            MakeUsable(copy);
            // Before: SQLite would take the other database's log for this one's.
            foreach (var rest in new[] { path + "-wal", path + "-shm" })
                File.Delete(rest);
            File.Move(copy, path, overwrite: true);
            Disk.FlushFolder(_dir);
        }
        finally
        {
            File.Delete(copy);
        }
        Print($"{Store.FileName} is what {Argument} was.");
        return 0;
    }

    /// <exception cref="OptionsException">It is no sound database of this version.</exception>
    private void MakeUsable(string copy)
    {
        try
        {
            using var database = new SqliteConnection(copy, isReadOnly: false, 2048);
            Schema.Check(database);
            using var check = database.Query("PRAGMA quick_check(1)");
            if (check.FirstText() is var found && found != "ok")
                throw new OptionsException($"FILE: '{Argument}' is damaged: {found}");
            database.Execute(Writer.NewStoreId);
        }
        catch (SqliteException e)
        {
            throw new OptionsException($"FILE: '{Argument}' cannot be used: "
                + (e.IsNoDatabase ? "it is no database, or its head is damaged"
                    : e.IsDamage ? "it is damaged, or was cut short" : e.Reason));
        }
        catch (DataDirException e)
        {
            throw new OptionsException(
                "FILE: " + e.Message.Replace(Store.FileName, $"'{Argument}'", StringComparison.Ordinal));
        }
    }

    // ---- Facts as lines ----

    private int Export()
    {
        const int LinesAtOnce = 10_000;
        DateTime? from, asOf;
        using (var snapshot = Snapshot.Open(_dir, Now))
        {
            DateTime? Time(string flag) => !flags.TryGetValue(flag, out var text) ? null
                : Question.ParseTime(text, snapshot.Moment) ?? throw new OptionsException(
                    $"{flag}: '{text}' is not usable; allowed: {Question.TimeAllowed}");
            (from, asOf) = (Time("--from"), Time("--as-of"));
            if (asOf > snapshot.Moment)
                throw new OptionsException(
                    $"--as-of: it is ahead of the clock, which is at {Rfc3339.Format(snapshot.Moment)}");
            CheckKept(asOf, snapshot);
        }
        for (long? after = 0; after != null;)
        {
            List<string> lines;
            using (var snapshot = Snapshot.Open(_dir, Now))
                (lines, after) = FactLines.ReadPage(
                    snapshot, from, asOf, flags.GetValueOrDefault("--partition"), after.Value, LinesAtOnce);
            foreach (var line in lines)
                output.Write(Encoding.UTF8.GetBytes(Shown(line) + "\n"));
        }
        return 0;
    }

    /// <summary>Takes lines in short transactions, so that a daemon beside it goes on.</summary>
    private int Import(Stream input)
    {
        const int LinesAtOnce = 200, MaxTold = 10;
        Directory.CreateDirectory(
            _dir, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
        using var reader = new StreamReader(input, new UTF8Encoding(false, throwOnInvalidBytes: false));
        using var writer = OpenWriter();
        var (number, added, known, refused) = (0L, 0L, 0L, 0L);
        var lines = new List<FactLine>();
        void Commit() => writer.Commit([() =>
        {
            foreach (var line in lines)
            {
                if (line.Take(writer))
                    added++;
                else
                    known++;
            }
            lines.Clear();
        }], Now);

        while (ReadLine(reader) is { } text)
        {
            number++;
            if (number % 100_000 == 0)
                Tell($"{number} lines");
            try
            {
                if (text != "")
                    lines.Add(FactLine.Parse(text, Now));
            }
            catch (LineException e)
            {
                if (refused++ < MaxTold)
                    StandardError.WriteLine($"ses: line {number}: {e.Message}");
            }
            if (lines.Count == LinesAtOnce)
                Commit();
        }
        Commit();
        Print($"{number} lines: {added} new facts, {known} known, {refused} refused.");
        return refused == 0 ? 0 : 1;
    }

    /// <summary>A line as far as one may be long, and a character more of one that is longer.</summary>
    private static string? ReadLine(StreamReader reader)
    {
        var line = new StringBuilder();
        for (var isBegun = false; ; isBegun = true)
        {
            if (reader.Read() is not (>= 0 and var next))
                return isBegun ? line.ToString() : null;
            if (next == '\n')
                return line.ToString().TrimEnd('\r');
            if (line.Length <= FactLine.MaxLength)
                line.Append((char)next);
        }
    }

    // ---- Notes ----

    private int AddNote(bool isWithdrawn)
    {
        var (zone, format) = (Options.ZoneOf(flags, variables), Format());
        if (isWithdrawn && !flags.ContainsKey("--id"))
            throw new OptionsException("--id is missing: of the note");
        var partition = PartitionOf(flags.GetValueOrDefault("--id"));
        var draft = DraftOf(isWithdrawn, partition, zone);
        var (answer, now) = ((NoteAnswer)null!, Now);
        using (var writer = OpenWriter())
            writer.Commit([() => answer = NoteBook.Add(writer, draft, partition, _user.Name, now)], now);
        if (answer.Refusal is { } refusal)
            throw refusal.Code == 400 ? new OptionsException(Flagged(refusal.Message)) : new CommandException(refusal.Message);
        using var snapshot = Snapshot.Open(_dir, Now);
        var (note, questions) = (answer.Note!, Questions.Of(snapshot));
        var form = new NoteForm(questions);
        foreach (var warning in NoteForm.Warnings(note, questions.CountMatching(note.Last.Filter)))
            StandardError.WriteLine($"ses: {warning}");
        if (format == OutputFormat.Table)
            Print(Terminal.Plain(form.Line(note, zone)));
        else
            output.Write(form.Write(note));
        return 0;
    }

    private NoteDraft DraftOf(bool isWithdrawn, string partition, Zone zone)
    {
        string[] fields = ["id", "kind", "from", "to", .. Question.Names, "status", "text"];
        var given = fields.Where(n => flags.ContainsKey("--" + n)).ToDictionary(n => n, n => (string?)flags["--" + n]);
        if (flags.TryGetValue("--author", out var author))
            given["author_name"] = author;
        // What is added holds, also if it was withdrawn before.
        given["withdrawn"] = isWithdrawn ? "true" : "false";
        if (given.GetValueOrDefault("to") == "none")
            given["to"] = null;
        var begins = given.GetValueOrDefault("id") is { } id ? BeginOf(id, partition) : null;
        if (begins == null)
            given.TryAdd("from", Rfc3339.Format(Now));
        if (flags.TryGetValue(Command.ForSetting.Flag, out var length))
        {
            if (given.ContainsKey("to"))
                throw new OptionsException($"{Command.ForSetting.Flag} and --to exclude each other");
            var from = given.GetValueOrDefault("from") is { } begin ? NoteForm.ParseTime(begin, Now, zone) : begins;
            given["to"] = from is { } known ? Rfc3339.Format(known + Options.TimeOf(Command.ForSetting, length)) : null;
        }
        try
        {
            return NoteForm.Parse(given, Now, zone);
        }
        catch (NoteException e)
        {
            throw new OptionsException(Flagged(e.Message));
        }
    }

    /// <summary>When a note that is there begins.</summary>
    private DateTime? BeginOf(string id, string partition)
    {
        using var snapshot = Snapshot.Open(_dir, Now);
        return NoteBook.Read(snapshot.Database, long.MaxValue, partition, id, withText: false).FirstOrDefault()?.Last.From;
    }

    /// <summary>A message that begins with a field, with the flag for it.</summary>
    private static string Flagged(string message) => "--" + message.Replace("author_name:", "author:", StringComparison.Ordinal);

    /// <summary>The partition that is named, or meant where none is.</summary>
    /// <param name="id">Of a note of it, if one is there.</param>
    /// <exception cref="OptionsException">There is none, or there are several.</exception>
    private string PartitionOf(string? id)
    {
        using var snapshot = Snapshot.Open(_dir, Now);
        var named = flags.GetValueOrDefault("--partition");
        if (named != null && snapshot.HasHeardOf(named))
            return named;
        var partitions = id == null ? [] : NoteBook.Read(snapshot.Database, long.MaxValue, id: id, withText: false)
            .Select(n => n.Last.Filter.Partition).Distinct().ToList();
        if (partitions.Count == 0)
            partitions = [.. Questions.Of(snapshot).Partitions()];
        return named == null && partitions is [var only] ? only : throw new OptionsException(Terminal.Plain(
            (named == null ? "--partition is missing" : $"--partition: nothing was ever heard of '{named}'")
            + (partitions.Count == 0 ? ": none is known yet" : $"; there are: {string.Join(", ", partitions.Take(10))}")));
    }

    private int ListNotes()
    {
        using var snapshot = Snapshot.Open(_dir, Snapshot.Settled(_dir, clock));
        NoteQuestion question;
        try
        {
            question = NoteQuestion.Parse(flags.GetValueOrDefault("--partition"), Parameters(NoteQuestion.Parameters),
                snapshot.Moment, Options.ZoneOf(flags, variables));
        }
        catch (QuestionException e)
        {
            throw Flagged(e);
        }
        CheckKept(question.AsOf, snapshot);
        foreach (var part in new NoteForm(Questions.Of(snapshot, question.AsOf)).Write(question, Format(), width))
            output.Write(part.Span);
        return 0;
    }

    // ---- Purge ----

    private int RunPurge()
    {
        var (partition, service) = (flags.GetValueOrDefault("--partition"), flags.GetValueOrDefault("--service"));
        var isDryRun = Options.BoolOf(Command.DryRunSetting, flags);
        if (partition == null && (service != null || !isDryRun))
            throw new OptionsException("--partition is missing: it names the partition that is meant");
        if (isDryRun)
            return TellPurge(partition, service);
        _ = SumOf(partition!, service);
        using var writer = OpenWriter();
        var purge = writer.BeginPurge(
            new PurgeRecord(Now, _user.Name, _user.Id, Environment.MachineName, partition!, service));
        for (var told = 0L; ;)
        {
            var began = clock.GetTimestamp();
            if (!purge.Step(Now, () => clock.GetElapsedTime(began) > Purge.StepTime))
                break;
            writer.MoveLog();
            var (done, all) = purge.Progress;
            if (10 * done / Math.Max(1, all) is var tenth && tenth != told)
                Tell($"{done} of {all} services");
            told = tenth;
            // A daemon beside it that waits to write looks for that only now and then.
            Thread.Sleep(Purge.PauseTime);
        }
        purge.End(Now);
        Print($"Purged: {purge.Taken}.");
        if (purge.Kept > 0)
            Print($"{purge.Kept} services stay, with what came of them meanwhile.");
        return 0;
    }

    private int TellPurge(string? partition, string? service)
    {
        using var snapshot = Snapshot.Open(_dir, Now);
        foreach (var purge in PurgeRecord.Read(snapshot.Database))
            Print(Terminal.Plain($"{Rfc3339.Format(purge.Begun)} {purge.User} (uid {purge.Uid}) on {purge.Host} purged "
                + $"{(purge.Service is { } name ? $"service '{name}' of " : "")}partition '{purge.Partition}': "
                + $"{purge.Taken}{(purge.Ended == null ? "; it did not end, or goes on" : "")}."));
        if (partition != null)
            Print($"It would purge: {SumOf(partition, service)}.");
        return 0;
    }

    /// <exception cref="OptionsException">There is no such partition, or service in it.</exception>
    private PurgeSum SumOf(string partition, string? service)
    {
        const int MaxNamed = 10;
        using var snapshot = Snapshot.Open(_dir, Now);
        if (Purge.Sum(snapshot.Database, partition, service) is { } sum)
            return sum;
        var isThere = service != null && Purge.Sum(snapshot.Database, partition, null) != null;
        var names = Purge.Names(snapshot.Database, isThere ? partition : null, MaxNamed);
        var named = names.Count is 0 or > MaxNamed ? "" : $"; there are: {string.Join(", ", names)}";
        throw new OptionsException(Terminal.Plain(isThere
            ? $"--service: '{partition}' has no service '{service}'{named}"
            : $"--partition: there is no '{partition}'{named}"));
    }

    /// <summary>At once: a large log takes its time.</summary>
    private void Print(string line)
    {
        output.Write(Encoding.UTF8.GetBytes(Shown(line) + "\n"));
        output.Flush();
    }

    private string Shown(string line) => width != null ? Terminal.Plain(line) : line;

    // ---- Probe ----

    private async Task<bool> ProbeAsync()
    {
        var (url, needsCertificate) = Options.OwnUrl(flags, variables);
        var (isThere, says) = await Probe.AskAsync(new Uri(url, "ready"), needsCertificate);
        Print(says);
        return isThere;
    }

    // ---- Quarantine ----

    private int List()
    {
        string[] columns = ["recorded", "partition", "alertname", "reason", "labels", "id"];
        using var snapshot = Snapshot.Open(_dir, Now);
        var writer = new RowWriter(Format(), width);
        writer.BeginList("alerts", columns);
        foreach (var alert in QuarantinedAlert.Read(snapshot, flags.GetValueOrDefault("--partition")))
        {
            writer.Row(columns,
                [alert.Recorded, alert.Partition, alert.Alertname, alert.Reason, alert.Labels, alert.Id]);
            if (writer.IsFull)
                output.Write(writer.Take().Span);
        }
        writer.EndList();
        output.Write(writer.End().Span);
        return 0;
    }

    /// <summary>Sends each alert to a running SeS, which strikes those off that it can map now.</summary>
    private async Task<bool> RetryAsync()
    {
        using var ses = new RunningSes(
            flags.GetValueOrDefault(Command.UrlSetting.Flag) ?? Command.UrlSetting.Default!, _credentials);
        List<QuarantinedAlert> alerts;
        using (var snapshot = Snapshot.Open(_dir, Now))
            alerts = [.. QuarantinedAlert.Read(snapshot, flags.GetValueOrDefault("--partition"))];
        var (sent, cured) = (0, 0);
        foreach (var alert in alerts.Where(a => !a.IsOutdated))
        {
            sent++;
            if (await ses.IsTakenAsync(alert))
                cured++;
        }
        Print($"{sent} alerts sent: {cured} accepted, {alerts.Count - cured} stay in quarantine.");
        if (sent < alerts.Count)
            Print($"{alerts.Count - sent} are of Prometheus, and fired: it sends such alerts again by itself.");
        return cured == alerts.Count;
    }

    private AuthenticationHeaderValue? Credentials()
    {
        if (flags.GetValueOrDefault(Command.TokenFileSetting.Flag) is { } path)
        {
            var token = File.Exists(path) ? File.ReadAllText(path).Trim()
                : throw new OptionsException($"{Command.TokenFileSetting}: '{path}' is not there");
            return token != "" && token.All(c => c is > ' ' and < '\x7f') ? new AuthenticationHeaderValue("Bearer", token)
                : throw new OptionsException($"{Command.TokenFileSetting}: '{path}' holds no token");
        }
        return Options.CredentialsOf(flags, variables) is not var (name, password) ? null
            : new AuthenticationHeaderValue("Basic", Convert.ToBase64String(Encoding.UTF8.GetBytes($"{name}:{password}")));
    }
}

/// <summary>Is thrown when a command fails through no fault of its flags; the message is for the user.</summary>
internal sealed class CommandException(string message) : Exception(message);

/// <summary>What cannot be written there is told as such: the disk that it may be on is not SeS's.</summary>
internal sealed class StandardOutput : Stream
{
    private readonly Stream _stream = Console.OpenStandardOutput();

    public override void Write(ReadOnlySpan<byte> buffer)
    {
        try
        {
            _stream.Write(buffer);
        }
        catch (Exception e) when (Disk.Refused(e))
        {
            throw new CommandException($"standard output cannot be written to: {e.Message}");
        }
    }

    public override void Write(byte[] buffer, int offset, int count) => Write(buffer.AsSpan(offset, count));

    public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default)
    {
        Write(buffer.Span);
        return ValueTask.CompletedTask;
    }

    public override void Flush()
    {
    }

    public override bool CanRead => false;

    public override bool CanSeek => false;

    public override bool CanWrite => true;

    public override long Length => throw new NotSupportedException();

    public override long Position
    {
        get => throw new NotSupportedException();
        set => throw new NotSupportedException();
    }

    public override int Read(byte[] buffer, int offset, int count) => throw new NotSupportedException();

    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    public override void SetLength(long value) => throw new NotSupportedException();
}

/// <summary>What a SeS that runs answered to a question.</summary>
/// <param name="Question">With what that one's own settings added.</param>
/// <param name="Head">What made it.</param>
/// <param name="Lists">The rows of each list, by its name, with the columns of this program.</param>
/// <param name="Made">What made a report, as it stands on each row of CSV.</param>
/// <param name="Next">Where a history goes on.</param>
internal sealed record RunningAnswer(
    Question Question, IReadOnlyList<(string Name, object? Value)> Head, IReadOnlyDictionary<string, List<object?[]>> Lists,
    IReadOnlyList<object?> Made, string? Next)
{
    /// <exception cref="InvalidOperationException">It is another's.</exception>
    /// <exception cref="KeyNotFoundException">It is another's.</exception>
    public static RunningAnswer Read(Question question, JsonElement json)
    {
        _ = json.GetProperty("version").GetString();
        if (question.Subject == Subject.Report && json.GetProperty("settings").GetProperty("slo").GetString() is { } slo)
            question = question with { Counting = question.Counting with { Objectives = Objectives.Parse(slo) } };
        var head = json.EnumerateObject().Where(p => p.Value.ValueKind != JsonValueKind.Array && p.Name != "next")
            .Select(p => (p.Name, Cell(p.Name, p.Value))).ToList();
        var lists = question.Lists.ToDictionary(l => l, l => json.GetProperty(l).EnumerateArray()
            .Select(r => Row(r, Answers.Columns(question, l, OutputFormat.Json))).ToList());
        object?[] made = question.Subject != Subject.Report ? [] : [.. Answers.MadeColumns.Select(
            c => json.TryGetProperty(c, out var own) ? Cell(c, own) : Cell(c, json.GetProperty("settings").GetProperty(c)))];
        var next = Question.IsPaged(question.Subject) ? json.GetProperty("next").GetString() : null;
        return next != null && lists.Values.All(l => l.Count == 0)
            ? throw new InvalidOperationException("it goes on without an end")
            : new RunningAnswer(question, head, lists, made, next);
    }

    /// <summary>How a report was counted, and the moment that it is of.</summary>
    public (Counting Counting, DateTime AsOf) Origin => (Question.Counting with
    {
        Zone = Zone.Parse(Made[0] as string ?? ""),
        Hours = Made[1] is string hours ? ServiceHours.Parse(hours) : null,
    }, Rfc3339.TryParse(Made[3] as string ?? "", out var moment) ? moment : throw new FormatException("there is no as_of"));

    /// <summary>The rows of a report.</summary>
    /// <exception cref="FormatException">They are another's.</exception>
    public IEnumerable<ReportRow> Reports(string partition, DateTime asOf) => RowsOf(Answers.Services).Select(row =>
    {
        long Of(string column) => row.Milliseconds(column);
        var (service, to) = (row.Service(partition), row.Of<DateTime>("to"));
        var figures = new Figures(Of("not_counted"), Of("unknown"), Of("down"), Of("degraded"), Of("up"), 0,
            Of("maintenance"), Of("maintenance_down"), Of("excluded"), (int)row.Of<double>("outages"), Of("longest"),
            row.Of<bool>("open"));
        // What lies ahead only the budget tells.
        if (to > asOf && Question.Counting.Objectives?.Of(service.Platform) is < 100 and var objective)
            figures = figures with { Ahead = (long)((Of("error_budget") * 100 / (100 - objective)) - figures.Budget(0)) };
        return new ReportRow(service, row["period"] as string, row.Of<DateTime>("from"), to, figures);
    });

    /// <summary>Outages; their notes are told by ids alone, and left out.</summary>
    /// <exception cref="FormatException">They are another's.</exception>
    public IEnumerable<OutageRow> OutagesOf(string partition) => RowsOf(Answers.Outages).Select(row => new OutageRow(0,
        row.Service(partition), row.Of<DateTime>("from"), row["to"] as DateTime?, row.Milliseconds("down"),
        row.Of<string>("description"), 0));

    private IEnumerable<NamedCells> RowsOf(string list)
    {
        var columns = Answers.Columns(Question, list, OutputFormat.Json);
        return Lists[list].Select(r => new NamedCells(columns, r));
    }

    private readonly record struct NamedCells(string[] Columns, object?[] Cells)
    {
        public object? this[string column] => Array.IndexOf(Columns, column) is >= 0 and var at ? Cells[at] : null;

        public T Of<T>(string column) =>
            this[column] is T cell ? cell : throw new FormatException($"there is no usable {column}");

        public long Milliseconds(string span) => (long)Math.Round(Of<double>(span + "_seconds") * 1000);

        public ServiceKey Service(string partition) => new(partition, Of<string>("platform"), Of<string>("service"),
            Of<string>("facet"), Of<string>("location"));
    }

    private static object?[] Row(JsonElement row, string[] columns)
    {
        _ = row.GetProperty("service").GetString();
        return [.. columns.Select(c => row.TryGetProperty(c, out var cell) && cell.ValueKind != JsonValueKind.Object
            ? Cell(c, cell) : null)];
    }

    private static object? Cell(string column, JsonElement cell) => cell.ValueKind switch
    {
        JsonValueKind.True or JsonValueKind.False => cell.GetBoolean(),
        JsonValueKind.Number => cell.GetDouble(),
        JsonValueKind.Null => null,
        JsonValueKind.Object => cell.Clone(),
        JsonValueKind.Array => cell.EnumerateArray().Select(e => e.GetString() ?? "").ToArray(),
        _ when TextTable.Times.Contains(column) && Rfc3339.TryParse(cell.GetString() ?? "", out var time) => time,
        _ => cell.GetString(),
    };
}

/// <summary>A SeS that runs, asked and told by HTTP as by any client.</summary>
internal sealed class RunningSes : IDisposable
{
    /// <summary>A history comes by pages of less than a hundredth of that.</summary>
    private const int MaxAnswer = 512 << 20;

    /// <summary>For the head of an answer, and for all of a long one.</summary>
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30), LongPatience = TimeSpan.FromMinutes(10);

    private readonly Uri _url;
    private readonly HttpClient _client;

    /// <param name="url">Its webhook, without the partition.</param>
    /// <exception cref="OptionsException">It is no URL.</exception>
    public RunningSes(string url, AuthenticationHeaderValue? credentials)
    {
        _url = Options.ParseUrl(url.TrimEnd('/') + "/")
            ?? throw Options.Bad(Command.UrlSetting, url, "an http or https URL without credentials");
        _client = new HttpClient { Timeout = Patience, DefaultRequestHeaders = { Authorization = credentials } };
    }

    /// <summary>The answer to a question; null: nothing was ever heard of the partition.</summary>
    /// <exception cref="OptionsException">It refuses the question.</exception>
    /// <exception cref="CommandException">It cannot be reached, or does not answer as SeS does.</exception>
    public async Task<RunningAnswer?> AskAsync(
        Question question, string partition, IEnumerable<KeyValuePair<string, string>> parameters)
    {
        var path = Uri.EscapeDataString(partition)
            + (question.Subject == Subject.Status ? "" : $"/{question.Subject}".ToLowerInvariant());
        var query = string.Join('&', parameters.Select(p => $"{p.Key}={Uri.EscapeDataString(p.Value)}"));
        using var request = new HttpRequestMessage(
            HttpMethod.Get, new Uri(_url, path + (query == "" ? "" : $"?{query}")));
        request.Headers.Accept.ParseAdd("application/json");
        using var answer = await SendAsync(request);
        if (!answer.IsSuccessStatusCode)
        {
            var detail = await DetailAsync(answer);
            return answer.StatusCode == HttpStatusCode.NotFound && detail.StartsWith(Web.NeverHeard, StringComparison.Ordinal)
                ? null : throw Refused(answer, detail);
        }
        using var patience = new CancellationTokenSource(LongPatience);
        try
        {
            await answer.Content.LoadIntoBufferAsync(MaxAnswer, patience.Token);
            using var json = JsonDocument.Parse(await answer.Content.ReadAsStreamAsync(patience.Token));
            return RunningAnswer.Read(question, json.RootElement);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or KeyNotFoundException or FormatException)
        {
            throw Failed(request, "sent something other than SeS's answer: does the URL end in its --path?");
        }
        catch (Exception e) when (e is IOException or HttpRequestException or OperationCanceledException)
        {
            throw Failed(request, $"did not send all of its answer: {Probe.Reason(e)}");
        }
    }

    /// <summary>Sends an alert of the quarantine.</summary>
    /// <returns>Whether it could be mapped.</returns>
    /// <exception cref="OptionsException">It refuses the alert.</exception>
    /// <exception cref="CommandException">It cannot be reached, or takes nothing now.</exception>
    public async Task<bool> IsTakenAsync(QuarantinedAlert alert)
    {
        var isPrometheus = alert.Source == AlertSource.Prometheus;
        var path = Uri.EscapeDataString(alert.Partition) + (isPrometheus ? Web.AlertsPath : "");
        var list = $"[{Encoding.UTF8.GetString(alert.Alert)}]";
        using var body = new StringContent(
            isPrometheus ? list : $"{{\"version\":\"4\",\"alerts\":{list}}}", Encoding.UTF8, "application/json");
        using var request = new HttpRequestMessage(HttpMethod.Post, new Uri(_url, $"{path}?{Web.CuresParameter}={alert.Id}"));
        request.Content = body;
        using var answer = await SendAsync(request);
        // Too large for a --max-body that is smaller now: the others may do.
        if (!answer.IsSuccessStatusCode && answer.StatusCode != HttpStatusCode.RequestEntityTooLarge)
            throw Refused(answer, await DetailAsync(answer));
        return answer.StatusCode == HttpStatusCode.NoContent;
    }

    private async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request)
    {
        try
        {
            return await _client.SendAsync(request, HttpCompletionOption.ResponseHeadersRead);
        }
        catch (TaskCanceledException)
        {
            throw Failed(request, $"did not answer within {Patience.TotalSeconds} s");
        }
        catch (HttpRequestException e)
        {
            throw Failed(request, $"cannot be reached: {Probe.Reason(e)}");
        }
    }

    private static CommandException Failed(HttpRequestMessage request, string how) =>
        new($"{Command.UrlSetting.Flag}: {request.RequestUri} {how}");

    private static Exception Refused(HttpResponseMessage answer, string detail)
    {
        var says = $"{Command.UrlSetting.Flag}: {answer.RequestMessage?.RequestUri} answered {(int)answer.StatusCode}"
            + (detail == "" ? "" : $": {detail}");
        return (int)answer.StatusCode < 500 ? new OptionsException(says) : new CommandException(says);
    }

    /// <summary>What a problem's detail says (RFC 9457); of another body its begin.</summary>
    private static async Task<string> DetailAsync(HttpResponseMessage answer)
    {
        const int Enough = 1024;
        var body = (await answer.Content.ReadAsStringAsync()).Trim();
        try
        {
            using var problem = JsonDocument.Parse(body);
            if (problem.RootElement.GetProperty("detail").GetString() is { } detail)
                return detail;
        }
        catch (Exception e) when (e is JsonException or KeyNotFoundException or InvalidOperationException)
        {
            // Another server may stand there.
        }
        return body.Length > Enough ? body[..Enough] + "..." : body;
    }

    public void Dispose() => _client.Dispose();
}

// ================================= 24. Main ==================================
//
// Reads arguments and environment, puts the parts together, and decides the exit code.

internal static class Program
{
    private const int Usage = 2, Failure = 1, Success = 0;

    /// <summary>Exit codes of questions.</summary>
    public const int IsDown = 3, NoMatch = 4;

    /// <summary>Less than the 10 s that container engines wait before they kill.</summary>
    private static readonly TimeSpan
        DrainTime = TimeSpan.FromSeconds(5), RecorderTime = TimeSpan.FromSeconds(1),
        StoreTime = TimeSpan.FromSeconds(2);

    public static readonly string Version = typeof(Program).Assembly
        .GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion ?? "unknown";

    private static readonly string Commit = Metadata("Commit") is { Length: > 0 } hash ? hash : "unknown";

    /// <summary>When the program's commit was made; the year 1 when that is not known.</summary>
    private static readonly DateTime Built = long.TryParse(
        Metadata("CommitTime"), NumberStyles.None, CultureInfo.InvariantCulture, out var seconds)
        ? DateTime.UnixEpoch.AddSeconds(seconds) : DateTime.MinValue;

    /// <summary>
    /// Such as 3.0.22: of the library that is linked in, or was loaded. Hashes need it as well as TLS, so that
    /// a daemon has it anyway.
    /// </summary>
    private static string OpenSsl
    {
        get
        {
            // OpenSSL_version_num(3): 0xMNN00PP0; before 3.0 0xMNNFFPPS, where P is a letter.
            var number = SafeEvpPKeyHandle.OpenSslVersion;
            long Part(int at) => (number >> at) & 0xFF;
            return number >= 0x3000_0000 ? $"{number >> 28}.{Part(20)}.{Part(4)}"
                : $"{number >> 28}.{Part(20)}.{Part(12)}{(char)('a' - 1 + Part(4))}";
        }
    }

    /// <summary>What the build said of the program under this name.</summary>
    private static string? Metadata(string name) => typeof(Program).Assembly
        .GetCustomAttributes<AssemblyMetadataAttribute>().FirstOrDefault(a => a.Key == name)?.Value;

    public static async Task<int> Main(string[] args)
    {
        try
        {
            Linux.FillStandardStreams();
            // The runtime would set the mode of a terminal's keypad; SeS writes plain text alone.
            Environment.SetEnvironmentVariable("TERM", null);
            if (args is ["help", ..])
                args = [.. args.Skip(args is [_, "help"] ? 2 : 1), "--help"];
            var command = Command.Of(args);
            var (flags, exit) = ParseFlags(command == null ? args : args[command.Words.Length..], command);
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
            return Fail(Usage, e.Message);
        }
        catch (CommandException e)
        {
            return Fail(Failure, e.Message);
        }
        catch (DataDirException e)
        {
            return Fail(Usage, $"{Options.DataDirSetting}: {e.Message}");
        }
        catch (SqliteException e) when (e.IsNoDatabase)
        {
            return Fail(Usage, $"{Options.DataDirSetting}: {Store.FileName} is no database, or its head is "
                + "damaged: put a backup in its place (ses restore)");
        }
        catch (SqliteException e) when (e.IsReadOnly)
        {
            return Fail(Usage, $"{Options.DataDirSetting}: it cannot be written to: {e.Reason}");
        }
        catch (SqliteException e)
        {
            return Fail(Failure, e.IsDamage
                ? $"{Store.FileName} is damaged, or its log is another database's: ses check tells what; ses "
                    + $"rebuild mends indexes, ses restore puts a backup in its place: {e.Reason}"
                : $"the disk refuses: {e.Reason}");
        }
        catch (Exception e) when (Disk.Refused(e))
        {
            return Fail(Failure, $"the disk refuses: {e.Message}");
        }
        catch (Exception e)
        {
            return Fail(Failure, $"a defect in SeS: {e}");
        }
    }

    /// <summary>Says on standard error why there is no more to do. Returns the exit code.</summary>
    private static int Fail(int code, string reason)
    {
        var level = Linux.IsJournal ? Log.JournalPrefix(LogLevel.Error) : "";
        foreach (var line in $"ses: {reason}".Split('\n'))
            StandardError.WriteLine(level + line);
        return code;
    }

    // ---- Command line ----

    /// <summary>
    /// What the command line gave, by flag; or the code to exit with, after help or the version.
    /// </summary>
    /// <param name="command">Null: to serve.</param>
    /// <param name="help">Where help and version go; null: to standard output.</param>
    internal static (IReadOnlyDictionary<string, string> Flags, int? Exit) ParseFlags(
        string[] args, Command? command = null, TextWriter? help = null)
    {
        var root = new RootCommand("Keeps the history of service status that Alertmanager tells.");
        var settings = command?.Settings ?? Options.Settings;
        var options = settings.Select(s => new Option<string?>(s.Flag)
        {
            Description = s.Help,
            HelpName = s.Value,
            Arity = s.Value == "BOOL" ? ArgumentArity.ZeroOrOne : ArgumentArity.ExactlyOne,
        }).ToList();
        foreach (var option in options)
            root.Add(option);
        var argument = new Argument<string?>("FILE") { Arity = ArgumentArity.ZeroOrOne };
        if (command?.Argument != null)
            root.Add(argument);
        root.Options.OfType<HelpOption>().Single().Action = new HelpText(command);
        root.Options.OfType<VersionOption>().Single().Action = new VersionText();
        // --flag= is the empty value, which the parser would look for in the next argument.
        args = [.. args.SelectMany(a => a.EndsWith('=') && options.Exists(o => o.Name == a[..^1])
            ? new[] { a[..^1], "" } : [a])];
        CheckValues(args, options, command);
        // A secret may begin with an @; it names no file of arguments.
        var parsed = root.Parse(args, new ParserConfiguration { ResponseFileTokenReplacer = null });
        var given = new Dictionary<string, string>();
        bool IsGiven(Setting setting) =>
            parsed.GetResult(options.First(o => o.Name == setting.Flag)) is { Implicit: false };
        // What is wrong beside it does not keep from help, unless that is asked of a command that there is not.
        if (parsed.Action is HelpText or VersionText && !(command == null && args is [[not '-', ..], ..]))
        {
            using var output = help ?? new StreamWriter(new StandardOutput());
            return (given, parsed.Invoke(
                new InvocationConfiguration { Output = output, EnableDefaultExceptionHandler = false }));
        }
        // What follows a mistyped flag may be a secret, and is not repeated.
        if (parsed.UnmatchedTokens is [var unknown, ..])
        {
            var shown = settings.Any(s => s.Secret && IsGiven(s)) ? "An argument"
                : unknown.Contains('=', StringComparison.Ordinal) ? $"'{unknown.Split('=')[0]}=...'" : $"'{unknown}'";
            throw new OptionsException(unknown.StartsWith('-') ? NoFlag(unknown.Split('=', ':', ' ')[0], command)
                : command == null && unknown == args[0] ? NoCommand(shown, unknown) : NoArgument(shown, unknown, command));
        }
        if (parsed.Errors is [var error, ..])
            throw new OptionsException((error.SymbolResult is not OptionResult { Option: var option } result ? error.Message
                : result.Tokens.Count == 0 ? NoValue(option)
                : $"{option.Name} is given {result.Tokens.Count} times.") + $" {Advice(command)}");
        foreach (var option in options)
        {
            if (parsed.GetResult(option) is { Implicit: false })
                given[option.Name] = parsed.GetValue(option) ?? "true";
        }
        if (command?.Argument != null && parsed.GetValue(argument) is { } text)
            given[""] = text;
        else if (command?.IsArgumentNeeded == true)
            throw new OptionsException($"{command.Argument} is missing. {Advice(command)}");
        return (given, null);
    }

    /// <summary>The parser would take the next flag for the value of one that has none, as of an empty variable.</summary>
    private static void CheckValues(string[] args, List<Option<string?>> options, Command? command)
    {
        for (var i = 0; i < args.Length && args[i] != "--"; i++)
        {
            if (options.Find(o => o.Name == args[i]) is not { Arity.MinimumNumberOfValues: 1 } option)
                continue;
            var next = args.ElementAtOrDefault(++i);
            if (next == "--help" || options.Exists(o => o.Name == next))
                throw new OptionsException($"{NoValue(option)} {Advice(command)}");
        }
    }

    private static string NoValue(Option option) => $"{option.Name} needs a value: {option.Name} {option.HelpName}.";

    private static string Advice(Command? command) => $"Try {NameOf(command)} --help.";

    private static string NameOf(Command? command) => command == null ? "ses" : $"ses {command.Name}";

    private static string NoFlag(string flag, Command? command)
    {
        var owners = Command.All.Prepend(null)
            .Where(c => c != command && (c?.Settings ?? Options.Settings).Any(s => s.Flag == flag)).Select(NameOf).ToList();
        return $"{flag} is no flag of {NameOf(command)}" + (owners.Count > 0 ? $", but of {string.Join(", ", owners)}"
            : NearestName.Of(flag, (command?.Settings ?? Options.Settings).Select(s => s.Flag).Append("--help"), "--"))
            + $". {Advice(command)}";
    }

    /// <param name="shown">The name, as far as it may be told.</param>
    private static string NoCommand(string shown, string name) => $"{shown} is no command of SeS"
        + (Command.All.Where(c => c.Words.Length > 1 && c.Words[0] == name).Select(c => c.Name).ToList() is { Count: > 0 } longer
            ? $", but {string.Join(", ", longer)} are" : NearestName.Of(name.ToLowerInvariant(), Command.All.Select(c => c.Name).Append("help"))) + $". {Advice(null)}";

    /// <param name="shown">The argument, as far as it may be told.</param>
    private static string NoArgument(string shown, string argument, Command? command) =>
        command == null && Command.All.Any(c => c.Name == argument)
            ? $"'{argument}' is a command, and comes first: ses {argument} --help tells its flags."
            : $"{shown} belongs to no flag; quote a value that has spaces. {Advice(command)}";

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
            output.WriteLine($"{command.Help}\n\nUsage: ses {command.Name} [--flag VALUE]..."
                + (command.Argument == null ? "" : command.IsArgumentNeeded ? $" {command.Argument}"
                    : $" [{command.Argument}]") + "\n");
            foreach (var setting in command.Settings)
                WriteSetting(output, setting);
            output.WriteLine($"""

                Example:
                  {command.Example}

                Exit codes: 0 all is well, 1 something is wrong, 2 a flag or the data directory is not usable{Further(command)}.
                """);
        }

        private static string Further(Command command) =>
            (command.Settings.Contains(Command.FailIfDownSetting) ? ",\n  3 a service is down, with --fail-if-down" : "")
            + (Enum.TryParse<Subject>(command.Name, ignoreCase: true, out _) ? ",\n  4 no service matches" : "");

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
                SeS keeps the history of service status: it receives Alertmanager's webhooks, stores
                what alerts say, and brings each change of status to the Onix CMDB.

                Usage: ses [--flag VALUE]...            serve
                       ses COMMAND [--flag VALUE]...    see ses help COMMAND

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
                output.WriteLine($"  {command.Name,-15}{command.Help}");
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
            var commit = Built == DateTime.MinValue ? "" : $", commit {Commit} of {Rfc3339.Format(Built)}";
            parseResult.InvocationConfiguration.Output.WriteLine(
                $"ses {Version}{commit}, OpenSSL {OpenSsl}, SQLite {SqliteConnection.Version}");
            return Success;
        }
    }

    private static async Task<int> RunAsync(Command command, IReadOnlyDictionary<string, string> flags,
        IReadOnlyDictionary<string, string> variables)
    {
        await using var output = new BufferedStream(new StandardOutput(), BodyWriter.Size);
        var code = await new CommandRunner(flags, variables, output,
            Console.IsOutputRedirected ? null : Linux.TerminalWidth(), TimeProvider.System).RunAsync(command.Name);
        await output.FlushAsync();
        return code;
    }

    // ---- A run ----

    private static async Task<int> RunAsync(Options options)
    {
        Options.CheckNoConfigFile(Environment.CurrentDirectory);
        Linux.EndWithoutMemory();
        Linux.ShareMemory();
        var areGroupsChosen = Linux.ChooseTlsGroups();
        await using var lines = new QueuedWriter(Console.Error);
        var log = new Log(options.LogLevel, options.LogJson, lines, TimeProvider.System, Linux.IsJournal);
        var meters = new Meters(Version, Commit, OpenSsl);
        using var claim = DataDir.Claim(options.DataDir);
        var auth = new Auth(options, Auth.CreateHandler(), TimeProvider.System, log, meters);
        var web = new Web(options, auth, Built, TimeProvider.System, log, meters);
        using var tls = OpenTls(options, log, meters);
        var gate = new Gate(options, web, tls, Linux.RaiseDescriptors(), TimeProvider.System, log, meters);
        log.Info("SeS listens", ("version", Version), ("commit", Commit), ("openssl", OpenSsl),
            ("url", Listen(gate, options)), ("address", gate.Place), ("auth", options.AuthMode.ToString().ToLowerInvariant()),
            ("data", Path.GetFullPath(options.DataDir)), ("onix", options.OnixUrl?.AbsoluteUri ?? "none"));
        foreach (var warning in options.Warnings)
            log.Warn(warning);
        if (DataDir.Exposure(options.DataDir) is { } exposure)
            log.Warn(exposure, ("data", Path.GetFullPath(options.DataDir)));
        if (options.TlsCert != null && !areGroupsChosen)
            log.Warn("TLS offers groups of finite fields too, whose handshakes are dear: there is no /proc, or "
                + "memfd_create(2) is refused");

        using var stop = new CancellationTokenSource();
        using var systemd = new Systemd(Environment.GetEnvironmentVariable("NOTIFY_SOCKET"), log);
        using var signals = new Signals(stop);
        // Nobody waits for it: it logs its failure, and the first token asks again.
        _ = auth.PrepareAsync();
        // A root that is read only has no other place where SQLite could sort.
        _ = Linux.SetEnvironment("SQLITE_TMPDIR", Path.GetFullPath(options.DataDir), 1);
        var store = new Store(options.DataDir, StoreRules.Of(options), TimeProvider.System, log, meters);
        var (onix, recorder) = OpenRecorder(options, store, log, meters);
        var recording = recorder?.RunAsync(stop.Token) ?? Task.CompletedTask;
        var scrub = new Scrub(store, TimeProvider.System, log, meters);
        web.Serve(store, recorder, scrub);
        log.Info("SeS is ready");
        systemd.Notify("READY=1\nSTATUS=" + web.StatusLine());

        var memoryTrimmer = new MemoryTrimmer(() => gate.Work);
        var clockWatch = new ClockWatch(TimeProvider.System, log);
        var secretWatch = new SecretWatch(options, onix, log);
        using (new Timer(_ => memoryTrimmer.Check(), null, MemoryTrimmer.Period, MemoryTrimmer.Period))
        using (new Timer(_ => clockWatch.Check(), null, ClockWatch.Jump, ClockWatch.Jump))
        using (new Timer(_ => secretWatch.Check(), null, SecretWatch.Period, SecretWatch.Period))
        using (new Timer(_ => scrub.Step(), null, Scrub.Period, Scrub.Period))
        using (new Timer(_ => _ = FeedAsync(systemd, web, gate, options), null,
            systemd.IsThere ? WatchdogPeriod() : Timeout.InfiniteTimeSpan, WatchdogPeriod()))
            await Task.WhenAny(store.Failed, gate.Accepting, Task.Delay(Timeout.Infinite, stop.Token));
        if (gate.Accepting.IsCompleted)
        {
            meters.Defects.Inc();
            log.Error("a defect in SeS: connections are taken no more",
                ("exception", gate.Accepting.Exception));
        }
        return await EndAsync(gate, store, recording, stop, systemd, log);
    }

    /// <summary>
    /// Tells systemd the state, and that SeS lives if a client of its port can see so: what hangs is started
    /// again.
    /// </summary>
    private static async Task FeedAsync(Systemd systemd, Web web, Gate gate, Options options)
    {
        var own = Options.OwnUrl(gate.Place, options.TlsCert != null);
        var (isThere, _) = await Probe.AskAsync(new Uri(own, "live"), options.TlsClientCa != null);
        string status;
        try
        {
            status = web.StatusLine();
        }
        catch (SqliteException e)
        {
            status = $"The database could not be read: {e.Reason}";
        }
        systemd.Notify((web.IsAlive && isThere ? "WATCHDOG=1\n" : "") + "STATUS=" + status);
    }

    private static async Task<int> EndAsync(Gate gate, Store store, Task recording,
        CancellationTokenSource stop, Systemd systemd, Log log)
    {
        var isAsked = stop.IsCancellationRequested;
        systemd.Notify("STOPPING=1");
        log.Info("SeS stops: no more alerts are taken");
        await gate.DrainAsync(DrainTime);
        await stop.CancelAsync();
        await Task.WhenAny(recording, Task.Delay(RecorderTime));
        var stopped = Task.Run(store.Dispose);
        await Task.WhenAny(stopped, Task.Delay(StoreTime));
        var reason = !stopped.IsCompleted ? "it does not answer"
            : store.Failed.IsCompleted ? await store.Failed : null;
        if (reason == null)
            log.Info("SeS has stopped: everything acknowledged is on disk");
        else
            log.Error("SeS ends: the store failed; nothing acknowledged is lost", ("reason", reason));
        return reason == null && isAsked ? Success : Failure;
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
        catch (HttpListenerException e)
        {
            throw new OptionsException(
                $"{Options.InnerPortSetting}: '{options.InnerPort}' cannot be listened on: {e.Message}");
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

    private static (OnixClient? Onix, Recorder? Recorder) OpenRecorder(
        Options options, Store store, Log log, Meters meters)
    {
        if (options.OnixUrl == null)
            return default;
        try
        {
            var onix = new OnixClient(
                options, OnixClient.CreateHandler(options), TimeProvider.System, meters);
            return (onix, new Recorder(
                store, onix, options.OnixUrl.AbsoluteUri, TimeProvider.System, log, meters));
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
