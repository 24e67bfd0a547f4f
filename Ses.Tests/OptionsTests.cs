using System.Globalization;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>A flag wins over its variable, that over the default; a wrong value is refused in one line.</summary>
public sealed class OptionsTests : IDisposable
{
    private static readonly string[] Secrets = ["--password", "--onix-password", "--onix-app-secret", "--read-password", "--editor-password",
        "--import-password", "--peer-password", "--peer-token", "--hub-password", "--hub-token", "--engine-password", "--engine-token"];

    private readonly string _dir = Directory.CreateTempSubdirectory("ses-options-").FullName;

    public void Dispose() => Directory.Delete(_dir, recursive: true);

    /// <summary>Of each setting its default and two others, as <see cref="Show"/> tells them.</summary>
    public static TheoryData<string, string, string, string> Values => new()
    {
        { "--path", "alerts", "hooks/ses", "a" },
        { "--port", "8888", "0", "65535" },
        { "--address", "", "127.0.0.1", "::1" },
        { "--inner-port", "0", "8887", "65535" },
        { "--hosts", "", "ses-1,[2001:db8::1]", "10.0.0.1" },
        { "--auth-mode", "None", "Basic", "None" },
        { "--metrics-auth", "false", "true", "false" },
        { "--username", "admin", "ann", "bob" },
        { "--password", "0n1x", "pass 1", "pass 2" },
        { "--max-body", "16384KiB", "512KiB", "1KiB" },
        { "--partitions", "", "A,B", "C" },
        { "--public", "", "A,B", "C" },
        { "--map", "platform=platform,cluster,", "platform=a,b", "platform=c" },
        { "--status", "info=ignore,none=ignore,warning=degraded", "warning=down", "" },
        { "--ignore", "DatasourceError,DatasourceNoData,InfoInhibitor", "A,B", "" },
        { "--heartbeat", "DeadMansSwitch,Watchdog", "A", "" },
        { "--pause", "900s", "0s", "60s" },
        { "--stale-after", "90000s", "3600s", "86400s" },
        { "--forget", "2592000s", "7200s", "86400s" },
        { "--title", "Service status", "Ä & <b>", "ACME" },
        { "--tz", "UTC", "Europe/Berlin", "America/New_York" },
        { "--service-hours", "", "Mo-Fr 08:00-17:00", "Su 10:00-24:00" },
        { "--slo", "", "99.9", "99,k8s-1=99.95" },
        { "--max-size", "", "16777216", "1099511627776" },
        { "--max-services", "100000", "1", "10000000" },
        { "--max-alerts", "1000000", "1", "100000000" },
        { "--name", "", "a", "ses zrh-a" },
        { "--tls-cert", "", "/dev/null", "/etc/passwd" },
        { "--tls-key", "", "/dev/null", "/etc/passwd" },
        { "--tls-client-ca", "", "/dev/null", "/etc/passwd" },
        { "--oidc-issuer", "", "https://id/realm", "http://id/r/" },
        { "--oidc-audience", "", "ses", "urn:ses" },
        { "--read-username", "reader", "ann", "bob" },
        { "--read-password", "", "pass 1", "pass 2" },
        { "--editor-username", "editor", "ann", "bob" },
        { "--editor-password", "", "pass 1", "pass 2" },
        { "--import-username", "import", "ann", "bob" },
        { "--import-password", "", "pass 1", "pass 2" },
        { "--peer", "", "https://x/", "http://y/ses" },
        { "--peer-username", "", "ann", "bob" },
        { "--peer-password", "", "pass 1", "pass 2" },
        { "--peer-token", "", "t1", "t2" },
        { "--peer-ca-file", "", "/dev/null", "/etc/passwd" },
        { "--hub", "", "https://x/", "http://y/ses" },
        { "--hub-username", "", "ann", "bob" },
        { "--hub-password", "", "pass 1", "pass 2" },
        { "--hub-token", "", "t1", "t2" },
        { "--hub-ca-file", "", "/dev/null", "/etc/passwd" },
        { "--hub-prefix", "", "zrh-", "ber-" },
        { "--engine", "", "https://x/?query=a+b", "http://y/ses" },
        { "--engine-username", "", "ann", "bob" },
        { "--engine-password", "", "pass 1", "pass 2" },
        { "--engine-token", "", "t1", "t2" },
        { "--engine-ca-file", "", "/dev/null", "/etc/passwd" },
        { "--onix-url", "http://localhost:8080/", "https://onix/base", "none" },
        { "--onix-auth-mode", "Basic", "None", "Basic" },
        { "--onix-username", "admin", "ann", "bob" },
        { "--onix-password", "0n1x", "pass 1", "pass 2" },
        { "--onix-client-id", "", "c1", "c2" },
        { "--onix-app-secret", "", "s1", "s2" },
        { "--onix-token-uri", "", "https://id/token", "http://id/t" },
        { "--onix-insecure-skip-verify", "true", "false", "true" },
        { "--onix-ca-file", "", "/dev/null", "/etc/passwd" },
        { "--data-dir", "ses-data", "/var/a", "b" },
        { "--retention", "9600h", "24h", "48h" },
        { "--log-level", "Trace", "Panic", "Warn" },
        { "--log-format", "text", "json", "text" },
        { "--metrics", "true", "false", "true" },
    };

    private static string Show(Options o, string flag) => flag switch
    {
        "--path" => o.Path,
        "--port" => o.Port.ToString(CultureInfo.InvariantCulture),
        "--address" => o.Address?.ToString() ?? "",
        "--inner-port" => o.InnerPort.ToString(CultureInfo.InvariantCulture),
        "--hosts" => string.Join(',', o.Hosts ?? new HashSet<string>()),
        "--auth-mode" => o.AuthMode.ToString(),
        "--username" => o.Username,
        "--password" => o.Password.Value,
        "--max-body" => $"{o.MaxBody / 1024}KiB",
        "--public" => string.Join(',', o.Public ?? new HashSet<string>()),
        "--partitions" => string.Join(',', o.Partitions ?? new HashSet<string>()),
        "--status" => string.Join(',', o.Mapping.Statuses.Select(s => $"{s.Key}={s.Value}").Order(StringComparer.Ordinal)),
        "--ignore" => string.Join(',', o.Mapping.Ignored.Order(StringComparer.Ordinal)),
        "--heartbeat" => string.Join(',', o.Mapping.Heartbeats.Order(StringComparer.Ordinal)),
        "--pause" => $"{o.Pause.TotalSeconds}s",
        "--stale-after" => $"{o.StaleAfter.TotalSeconds}s",
        "--forget" => $"{o.Forget.TotalSeconds}s",
        "--title" => o.Title,
        "--tz" => o.Counting.Zone.Name,
        "--service-hours" => o.Counting.Hours?.Text ?? "",
        "--slo" => o.Counting.Objectives?.Text ?? "",
        "--max-size" => $"{o.MaxSize}",
        "--max-services" => $"{o.MaxServices}",
        "--max-alerts" => $"{o.MaxAlerts}",
        "--name" => o.Name ?? "",
        "--map" => "platform=" + string.Join(',', o.Mapping.Fields.Of("platform", stock: false).Select(s => s.Name)),
        "--onix-url" => o.OnixUrl?.AbsoluteUri ?? "none",
        "--onix-auth-mode" => o.OnixAuthMode.ToString(),
        "--onix-username" => o.OnixUsername,
        "--onix-password" => o.OnixPassword.Value,
        "--onix-client-id" => o.OnixClientId ?? "",
        "--onix-app-secret" => o.OnixAppSecret?.Value ?? "",
        "--onix-token-uri" => o.OnixTokenUri?.AbsoluteUri ?? "",
        "--onix-insecure-skip-verify" => o.OnixInsecureSkipVerify ? "true" : "false",
        "--onix-ca-file" => o.OnixCaFile ?? "",
        "--data-dir" => o.DataDir,
        "--retention" => $"{o.Retention.TotalHours}h",
        "--log-level" => o.LogLevel.ToString(),
        "--log-format" => o.LogJson ? "json" : "text",
        "--metrics-auth" => o.MetricsAuth ? "true" : "false",
        "--read-username" => o.ReadUsername,
        "--read-password" => o.ReadPassword?.Value ?? "",
        "--editor-username" => o.EditorUsername,
        "--editor-password" => o.EditorPassword?.Value ?? "",
        "--oidc-issuer" => o.OidcIssuer ?? "",
        "--oidc-audience" => o.OidcAudience ?? "",
        "--tls-cert" => o.TlsCert ?? "",
        "--tls-key" => o.TlsKey ?? "",
        "--tls-client-ca" => o.TlsClientCa ?? "",
        "--metrics" => o.Metrics ? "true" : "false",
        "--import-username" => o.ImportUsername,
        "--import-password" => o.ImportPassword?.Value ?? "",
        _ when o.Targets.FirstOrDefault(t => flag.StartsWith("--" + t.Name, Ordinal)) is { } target =>
            flag[(target.Name.Length + 2)..] switch
            {
                "" => target.Url.AbsoluteUri,
                "-username" => target.Username ?? "",
                "-password" => target.Password?.Value ?? "",
                "-token" => target.Token?.Value ?? "",
                "-ca-file" => target.CaFile ?? "",
                _ => target.Prefix,
            },
        _ when flag.StartsWith("--peer", Ordinal) || flag.StartsWith("--hub", Ordinal)
            || flag.StartsWith("--engine", Ordinal) => "",
        _ => throw new ArgumentException(flag),
    };

    private static Setting SettingOf(string flag) => Options.Settings.Single(s => s.Flag == flag);

    private static Dictionary<string, string> Given(params string[] pairs) =>
        pairs.Chunk(2).ToDictionary(p => p[0], p => p[1]);

    private static Options Read(
        Dictionary<string, string> flags, Dictionary<string, string>? variables = null) =>
        Options.Read(flags, variables ?? []);

    private static string Refusal(
        Dictionary<string, string> flags, Dictionary<string, string>? variables = null) =>
        Assert.Throws<OptionsException>(() => Read(flags, variables)).Message;

    private string FileWith(string text, string name = "secret")
    {
        var path = Path.Combine(_dir, name);
        File.WriteAllText(path, text);
        File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite);
        return path;
    }

    // ---- Where values come from ----

    [Theory]
    [MemberData(nameof(Values))]
    public void FlagWinsOverVariableWhichWinsOverTheDefault(
        string flag, string standard, string fromVariable, string fromFlag)
    {
        var variables = Given(SettingOf(flag).Variable, fromVariable);
        Assert.Equal(standard, Show(Read([]), flag));
        Assert.Equal(fromVariable, Show(Read(Companions(flag), variables), flag));
        Assert.Equal(fromFlag, Show(Read(new(Companions(flag)) { [flag] = fromFlag }), flag));
        Assert.Equal(fromFlag, Show(Read(new(Companions(flag)) { [flag] = fromFlag }, variables), flag));
    }

    /// <summary>What else must be given with a flag: certificate and key go together.</summary>
    private static Dictionary<string, string> Companions(string flag)
    {
        // Where others reach SeS, the default password is refused.
        if (flag == "--auth-mode")
            return Given("--password", "x");
        // Without it nothing is closed.
        if (flag == "--public")
            return Given("--read-password", "x");
        if (flag.Split('-') is [_, _, "peer" or "hub" or "engine", var part, ..])
        {
            var target = string.Join('-', flag.Split('-').Take(3));
            return part switch
            {
                "username" => Given(target, "http://x", target + "-password", "x"),
                "password" => Given(target, "http://x", target + "-username", "x"),
                _ => Given(target, "http://x"),
            };
        }
        string[] pair = flag.StartsWith("--tls-", Ordinal) ? ["--tls-cert", "--tls-key"] : [];
        return pair.Where(f => f != flag).ToDictionary(f => f, _ => "/dev/zero");
    }

    [Fact]
    public void EverySettingIsInTheTableAbove()
    {
        var tested = Values.Select(row => (string)row[0]).Concat(Secrets.Select(s => s + "-file"));
        Assert.Equal(Options.Settings.Select(s => s.Flag).Order(), tested.Order());
    }

    [Fact]
    public void EverySettingHasItsOwnFlagAndVariable()
    {
        Assert.All(Options.Settings, s => Assert.StartsWith("--", s.Flag, Ordinal));
        Assert.All(Options.Settings, s => Assert.StartsWith("OXSES_", s.Variable, Ordinal));
        Assert.Distinct(Options.Settings.Select(s => s.Flag));
        Assert.Distinct(Options.Settings.Select(s => s.Variable));
    }

    [Theory]
    [InlineData("--log-level", "tRACE", "Trace")]
    [InlineData("--log-format", "JSON", "json")]
    [InlineData("--metrics", "False", "false")]
    [InlineData("--auth-mode", "BASIC", "Basic")]
    [InlineData("--onix-auth-mode", "none", "None")]
    [InlineData("--path", "/hooks/ses/", "hooks/ses")]
    [InlineData("--retention", "1d", "24h")]
    [InlineData("--max-body", "2048", "2KiB")]
    [InlineData("--max-body", "256MiB", "262144KiB")]
    [InlineData("--address", "", "")]
    [InlineData("--hosts", "SES-1.Example., ses_2,[2001:DB8:0::1],[::FFFF:10.0.0.1]",
        "ses-1.example,ses_2,[2001:db8::1],[::ffff:10.0.0.1]")]
    [InlineData("--hosts", "", "")]
    public void CaseOfValuesIsFreeAndUnitsAreUnderstood(string flag, string value, string shown) =>
        Assert.Equal(shown, Show(Read(new(Companions(flag)) { [flag] = value }), flag));

    [Fact]
    public void StateDirectoryIsTheDefaultDataDirectory()
    {
        Assert.Equal("/var/lib/ses", Read([], Given("STATE_DIRECTORY", "/var/lib/ses")).DataDir);
        Assert.Equal("/var/lib/a", Read([], Given("STATE_DIRECTORY", "/var/lib/a:/var/lib/b")).DataDir);
        Assert.Equal("ses-data", Read([], Given("STATE_DIRECTORY", "")).DataDir);
        Assert.Equal("d", Read([], Given("STATE_DIRECTORY", "/var/lib/ses", "OXSES_DATADIR", "d")).DataDir);
        Assert.Equal("f", Read(Given("--data-dir", "f"), Given("STATE_DIRECTORY", "/s")).DataDir);
    }

    // ---- Bad values ----

    public static TheoryData<string, string, string> BadValues => new()
    {
        { "--path", "", "alerts" },
        { "--path", "/", "alerts" },
        { "--path", "a b", "alerts" },
        { "--path", "a?b", "alerts" },
        { "--path", "a//b", "alerts" },
        { "--path", "a%20b", "alerts" },
        { "--path", "import", "a path of SeS itself" },
        { "--path", "/outages/x", "a path of SeS itself" },
        { "--pause", "2147483647d", "7d" },
        { "--peer", "ses-b:8888", "http or https URL" },
        { "--port", "65536", "0 to 65535" },
        { "--port", "-1", "0 to 65535" },
        { "--port", "80a", "0 to 65535" },
        { "--port", "", "0 to 65535" },
        { "--port", "99999999999999999999", "0 to 65535" },
        { "--address", "localhost", "127.0.0.1" },
        { "--address", "[::1]x", "127.0.0.1" },
        { "--address", "256.1.1.1", "127.0.0.1" },
        { "--hosts", "ses:8888", "without a port" },
        { "--hosts", "a,,b", "without a port" },
        { "--hosts", ",", "without a port" },
        { "--hosts", ".", "without a port" },
        { "--hosts", "::1", "without a port" },
        { "--hosts", "[::1", "without a port" },
        { "--hosts", "[ses]", "without a port" },
        { "--hosts", "[::1]:1", "without a port" },
        { "--hosts", "http://ses", "without a port" },
        { "--hosts", "zürich", "without a port" },
        { "--hosts", "a b", "without a port" },
        { "--auth-mode", "digest", "none, basic" },
        { "--public", ",", "INS,WEB" },
        { "--public", " , ", "INS,WEB" },
        { "--username", "", "not empty" },
        { "--max-body", "1023", "1KiB to 256MiB" },
        { "--max-body", "257MiB", "1KiB to 256MiB" },
        { "--max-body", "16MB", "1KiB to 256MiB" },
        { "--max-body", "-1", "1KiB to 256MiB" },
        { "--max-body", "9223372036854775807KiB", "1KiB to 256MiB" },
        { "--map", "plattform=a", "platform, service, facet, location, description" },
        { "--map", "platform", "FIELD=SOURCE" },
        { "--map", "platform=", "label or annotation" },
        { "--map", "platform='a", "'text'" },
        { "--map", "platform='a'b", "'text'" },
        { "--onix-url", "", "not empty" },
        { "--metrics-auth", "2", "true, false" },
        { "--oidc-issuer", "id/realm", "http" },
        { "--tls-cert", "/nowhere/cert.pem", "existing PEM file" },
        { "--tls-key", "/nowhere/key.pem", "existing PEM file" },
        { "--tls-client-ca", "/nowhere/ca.pem", "existing PEM file" },
        { "--onix-url", "localhost:8080", "http" },
        { "--onix-url", "ftp://onix", "http" },
        { "--onix-url", "http://onix#a", "http" },
        { "--onix-auth-mode", "kerberos", "none, basic, oidc" },
        { "--onix-username", "", "not empty" },
        { "--onix-token-uri", "id/token", "http" },
        { "--onix-insecure-skip-verify", "yea", "true, false" },
        { "--onix-ca-file", "/nowhere/ca.pem", "existing PEM file" },
        { "--retention", "23h", "at least 1d" },
        { "--retention", "0d", "at least 1d" },
        { "--retention", "400", "at least 1d" },
        { "--retention", "d", "at least 1d" },
        { "--retention", "1.5d", "at least 1d" },
        { "--retention", "99999999d", "at least 1d" },
        { "--log-level", "verbose", "panic, fatal, error, warn, info, debug, trace" },
        { "--log-level", "3", "panic, fatal, error, warn, info, debug, trace" },
        { "--log-format", "xml", "text, json" },
        { "--metrics", "ture", "true, false" },
        { "--title", "", "1 to 80 characters" },
        { "--title", " ", "1 to 80 characters" },
        { "--title", new string('t', 81), "1 to 80 characters" },
    };

    [Theory]
    [MemberData(nameof(BadValues))]
    public void BadValueIsRefusedNamingFlagVariableValueAndWhatIsAllowed(
        string flag, string value, string allowed)
    {
        var setting = SettingOf(flag);
        // An empty variable is as none.
        foreach (var message in value == "" ? [Refusal(Given(flag, value))] : new[]
            { Refusal(Given(flag, value)), Refusal([], Given(setting.Variable, value)) })
        {
            Assert.Contains(flag + " ", message, Ordinal);
            Assert.Contains(setting.Variable, message, Ordinal);
            Assert.Contains($"'{value}'", message, Ordinal);
            Assert.Contains(allowed, message, OrdinalIgnoreCase);
        }
    }

    [Theory]
    [MemberData(nameof(BadValues))]
    public void NoMessageContainsASecret(string flag, string value, string allowed)
    {
        Assert.NotEqual("", allowed);
        var flags = Given(flag, value);
        foreach (var secret in Secrets)
            flags[secret] = "hunter2";
        Assert.DoesNotContain("hunter2", Refusal(flags), Ordinal);
    }

    [Theory]
    [InlineData("--onix-url", "http://ann:hunter2@onix:8080")]
    [InlineData("--peer", "http://ann:hunter2@ses-b:8888")]
    [InlineData("--hub", "http://hub?password=hunter2")]
    [InlineData("--engine", "ftp://ch?password=hunter2")]
    [InlineData("--onix-token-uri", "http://ann:hunter2@onix:8080")]
    [InlineData("--onix-url", "ann:hunter2@onix:8080")]
    [InlineData("--onix-url", "http:/ann:hunter2@onix")]
    [InlineData("--oidc-issuer", "ann:hunter2@id")]
    [InlineData("--onix-url", "http://onix?token=hunter2")]
    public void UrlWithCredentialsIsRefusedWithoutPrintingThem(string flag, string value)
    {
        var message = Refusal(Given(flag, value));
        Assert.Contains(flag, message, Ordinal);
        Assert.DoesNotContain("hunter2", message, Ordinal);
    }

    [Fact]
    public void BadValueWithALineBreakIsPrintedInOneLine() =>
        Assert.DoesNotContain("\n", Refusal(Given("--port", "80\n81")), Ordinal);

    /// <summary>As a number it would be 0.0.34.184.</summary>
    [Fact]
    public void NumberIsNoAddress() =>
        Assert.Contains("--address", Refusal(Given("--address", "8888")), Ordinal);

    [Fact]
    public void TitleHasNoControlCharacters() =>
        Assert.Contains("'a\ufffdb' is not valid", Refusal(Given("--title", "a\u0085b")), Ordinal);

    [Fact]
    public void CaFileWithoutACertificateIsRefused() =>
        Assert.Throws<System.Security.Cryptography.CryptographicException>(
        () => OnixClient.CreateHandler(Options.Read(
            new Dictionary<string, string> { ["--onix-ca-file"] = FileWith("no certificate", "ca.pem") },
            new Dictionary<string, string>())));

    [Fact]
    public void CaFileWithAnExplicitSkipVerifyIsRefused()
    {
        var pem = FileWith("", "ca.pem");
        var message = Refusal(Given("--onix-ca-file", pem), Given("OXSES_ONIX_INSECURESKIPVERIFY", "true"));
        Assert.Contains("--onix-ca-file", message, Ordinal);
        Assert.Contains("--onix-insecure-skip-verify", message, Ordinal);
        Refusal(Given("--onix-ca-file", pem, "--onix-insecure-skip-verify", "true"));

        Assert.False(Read(Given("--onix-ca-file", pem)).OnixInsecureSkipVerify);
        var both = Read(Given("--onix-ca-file", pem, "--onix-insecure-skip-verify", "false"));
        Assert.False(both.OnixInsecureSkipVerify);
    }

    [Fact]
    public void OidcTowardsOnixNeedsTokenUriClientAndSecret()
    {
        var flags = Given("--onix-auth-mode", "oidc");
        (string, string)[] needed =
            [("--onix-token-uri", "http://id/token"), ("--onix-client-id", "c"), ("--onix-app-secret", "s")];
        foreach (var (flag, value) in needed)
        {
            Assert.StartsWith(SettingOf(flag).ToString(), Refusal(flags), Ordinal);
            flags[flag] = value;
        }
        Assert.Equal(AuthMode.Oidc, Read(flags).OnixAuthMode);
        var without = Read(Given("--onix-auth-mode", "oidc", "--onix-url", "none"));
        Assert.Null(without.OnixUrl);
    }

    // ---- Secrets ----

    [Theory]
    [InlineData("--password-file")]
    [InlineData("--onix-password-file")]
    [InlineData("--onix-app-secret-file")]
    [InlineData("--tls-key")]
    public void SecretThatAllCanReadIsWarnedOfUnlessItIsInMemory(string flag)
    {
        // Of these alone it is known what they are on: this folder's disk, and memory.
        foreach (var (folder, isWarned) in new[] { (AppContext.BaseDirectory, true), ("/dev/shm", false) })
        {
            var dir = Directory.CreateDirectory(Path.Combine(folder, "ses-" + Guid.NewGuid())).FullName;
            try
            {
                var (file, link) = (Path.Combine(dir, "..data"), Path.Combine(dir, "secret"));
                File.WriteAllText(file, "x");
                File.CreateSymbolicLink(link, file);
                var flags = new Dictionary<string, string>(Local) { [flag] = link };
                if (flag == "--tls-key")
                    flags["--tls-cert"] = "/dev/null";
                File.SetUnixFileMode(file, UnixFileMode.UserRead | UnixFileMode.GroupRead);
                Assert.Empty(Read(flags).Warnings);
                File.SetUnixFileMode(file, UnixFileMode.UserRead | UnixFileMode.OtherRead);
                Assert.Equal(isWarned
                    ? [$"{SettingOf(flag)}: every user of this host can read '{link}': remove the permissions of others (chmod o=)"] : [],
                    Read(flags).Warnings);
            }
            finally
            {
                Directory.Delete(dir, recursive: true);
            }
        }
    }

    [Theory]
    [InlineData("--password")]
    [InlineData("--onix-password")]
    [InlineData("--onix-app-secret")]
    public void SecretComesFromAFileWithoutItsLineEnd(string flag)
    {
        var (setting, path) = (SettingOf(flag), FileWith("pä ss\r\n"));
        Assert.True(setting.Secret);
        Assert.Equal("pä ss", Show(Read(Given(flag + "-file", path)), flag));
        Assert.Equal("pä ss", Show(Read([], Given(setting.Variable + "_FILE", path)), flag));
    }

    [Theory]
    [InlineData("--password")]
    [InlineData("--onix-password")]
    [InlineData("--onix-app-secret")]
    public void AnyFlagOfASecretWinsOverItsVariables(string flag)
    {
        var (setting, path) = (SettingOf(flag), FileWith("from file"));
        var direct = Given(setting.Variable, "direct");
        var file = Given(setting.Variable + "_FILE", path);
        Assert.Equal("from file", Show(Read(Given(flag + "-file", path), direct), flag));
        Assert.Equal("flag", Show(Read(Given(flag, "flag"), file), flag));
    }

    [Theory]
    [InlineData("--password")]
    [InlineData("--onix-password")]
    [InlineData("--onix-app-secret")]
    public void SecretGivenTwiceInOnePlaceIsRefused(string flag)
    {
        var (variable, path) = (SettingOf(flag).Variable, FileWith("hunter2"));
        var flags = Refusal(Given(flag, "hunter2", flag + "-file", path));
        Assert.Contains($"{flag} and {flag}-file", flags, Ordinal);
        var variables = Refusal([], Given(variable, "hunter2", variable + "_FILE", path));
        Assert.Contains($"{variable} and {variable}_FILE", variables, Ordinal);
        Assert.DoesNotContain("hunter2", flags + variables, Ordinal);
    }

    [Theory]
    [InlineData("--password")]
    [InlineData("--onix-password")]
    [InlineData("--onix-app-secret")]
    public void MissingSecretFileIsRefusedByName(string flag)
    {
        var missing = Path.Combine(_dir, "missing");
        foreach (var path in new[] { missing, _dir })
        {
            var message = Refusal([], Given(SettingOf(flag).Variable + "_FILE", path));
            Assert.Contains($"{flag}-file ({SettingOf(flag).Variable}_FILE)", message, Ordinal);
            Assert.Contains($"'{path}'", message, Ordinal);
        }
    }

    // ---- The data directory of commands ----

    [Theory]
    [InlineData("", "", false, "ses-data")]
    [InlineData("var/lib/ses", "", false, "var/lib/ses")]
    [InlineData("var/lib/ses elsewhere", "OXSES_PORT=1\n OXSES_DATADIR=\"{0}/elsewhere\" \n", false, "elsewhere")]
    [InlineData("var/lib/ses elsewhere", "#OXSES_DATADIR={0}/elsewhere\nOXSES_DATADIR=\n", false, "var/lib/ses")]
    [InlineData("var/lib/ses", "OXSES_DATADIR={0}/elsewhere\n", false, "elsewhere")]
    [InlineData("var/lib/private", "", true, "var/lib/ses")]
    public void CommandFindsTheDirectoryOfTheService(string folders, string settings, bool isLink, string found)
    {
        var root = Directory.CreateTempSubdirectory("ses-root-").FullName;
        try
        {
            foreach (var folder in folders.Split(' ', StringSplitOptions.RemoveEmptyEntries))
                Directory.CreateDirectory(Path.Combine(root, folder));
            if (isLink)
                File.CreateSymbolicLink(Path.Combine(root, "var/lib/ses"), "private/ses");
            if (settings != "")
                File.WriteAllText(
                    Path.Combine(Directory.CreateDirectory(Path.Combine(root, "etc/default")).FullName, "ses"),
                    settings.Replace("{0}", root, Ordinal));
            var none = new Dictionary<string, string>();
            Assert.Equal(found == "ses-data" ? found : Path.Combine(root, found), Options.FindDataDir(none, none, root));
            // What is named is taken, whether it is there or not.
            Assert.Equal("ses-data", Options.FindDataDir(Given("--data-dir", "ses-data"), none, root));
            Assert.Equal("x", Options.FindDataDir(none, Given("OXSES_DATADIR", "x"), root));
            Assert.Equal("y", Options.FindDataDir(none, Given("STATE_DIRECTORY", "y:z"), root));
        }
        finally
        {
            Directory.Delete(root, recursive: true);
        }
    }

    // ---- Warnings ----

    [Theory]
    [InlineData("OXSES_PROT", "OXSES_PORT")]
    [InlineData("OXSES_LOG_LEVEL", "OXSES_LOGLEVEL")]
    [InlineData("OXSES_ONIX_PASSWORT", "OXSES_ONIX_PASSWORD")]
    public void UnknownVariableIsWarnedOfWithTheNearestName(string name, string nearest)
    {
        var warning = Assert.Single(Read(Local, Given(name, "hunter2", "PATH", "/bin")).Warnings);
        Assert.Contains(name + " ", warning, Ordinal);
        Assert.EndsWith(nearest, warning, Ordinal);
        Assert.DoesNotContain("hunter2", warning, Ordinal);
    }

    [Fact]
    public void VariableThatIsNearNoneIsWarnedOfWithoutOne() => Assert.Equal(
        ["OXSES_CONSUMERS is not a setting of SeS and is ignored"], Read(Local, Given("OXSES_CONSUMERS", "x")).Warnings);

    // ---- From the Go SeS ----

    [Theory]
    [InlineData("1", true)]
    [InlineData("TRUE", true)]
    [InlineData("t", true)]
    [InlineData("Yes", true)]
    [InlineData("on", true)]
    [InlineData("0", false)]
    [InlineData("F", false)]
    [InlineData("no", false)]
    public void TruthIsWrittenInManyWays(string text, bool value) =>
        Assert.Equal(value, Read(Local, Given("OXSES_METRICS", text)).Metrics);

    [Theory]
    [InlineData("Warning")]
    [InlineData("warn")]
    public void WarningIsALevel(string text) => Assert.Equal(LogLevel.Warn, Read(Local, Given("OXSES_LOGLEVEL", text)).LogLevel);

    [Theory]
    [InlineData("--peer (OXSES_PEER) is needed with --peer-username", "--peer-username", "a")]
    [InlineData("--hub (OXSES_HUB) is needed with --hub-prefix", "--hub-prefix", "a")]
    [InlineData("--peer-password-file (OXSES_PEER_PASSWORD_FILE) is needed with", "--peer", "http://x", "--peer-username", "a")]
    [InlineData("--peer-username (OXSES_PEER_USERNAME) is needed with", "--peer", "http://x", "--peer-password", "a")]
    [InlineData("cannot be used together", "--peer", "http://x", "--peer-username", "a", "--peer-password", "p", "--peer-token", "t")]
    [InlineData("--peer-ca-file (OXSES_PEER_CA_FILE): '/nowhere' is not valid; allowed: an existing PEM file",
        "--peer", "http://x", "--peer-ca-file", "/nowhere")]
    [InlineData("--peer and --hub have the same URL", "--peer", "http://x", "--hub", "http://x/")]
    public void WhatATargetNeedsIsSaid(string refusal, params string[] flags) =>
        Assert.Contains(refusal, Refusal(Given(flags)), Ordinal);

    [Fact]
    public void CredentialsInTheClearAreWarnedOf()
    {
        Assert.Contains(Read(Given("--hub", "http://ses-hub", "--hub-token", "t")).Warnings,
            w => w == "credentials are sent unencrypted: --hub (OXSES_HUB) is not an https URL");
        Assert.DoesNotContain(Read(Given("--hub", "https://ses-hub", "--hub-token", "t")).Warnings,
            w => w.Contains("--hub", Ordinal));
    }

    /// <summary>As manifests leave what they do not set.</summary>
    [Fact]
    public void EmptyVariableIsAsNone()
    {
        var empty = Options.Settings.Select(s => s.Variable).ToDictionary(v => v, _ => "");
        var (options, none) = (Read(Local, empty), Read(Local, []));
        Assert.Equal(none with
        {
            Warnings = options.Warnings,
            Mapping = options.Mapping,
            Password = options.Password,
            OnixPassword = options.OnixPassword,
            Targets = options.Targets,
        }, options);
        Assert.Empty(options.Targets);
        Assert.Equal(none.Password.Value, options.Password.Value);
        Assert.Equal(none.Mapping.Text, options.Mapping.Text);
        Assert.Equal(none.Warnings, options.Warnings);
    }

    [Theory]
    [InlineData("Port = \"8888\"\n", "OXSES_PORT")]
    [InlineData("LogLevel = 'Info'\n[Onix]\n  URL = 'http://onix'\n  AuthMode=\"basic\"\n[x]\nPath='a'",
        "OXSES_LOGLEVEL, OXSES_ONIX_URL, OXSES_ONIX_AUTHMODE, OXSES_PATH")]
    [InlineData("Onix.InsecureSkipVerify = true\r\n", "OXSES_ONIX_INSECURESKIPVERIFY")]
    [InlineData("# Port = 1\nbaseURL = 'https://example.org'\ntitle = 'A site'\n[params]\nauthor = 'x'\n", null)]
    [InlineData("", null)]
    public void FileOfSettingsIsRefusedWithWhatToSet(string text, string? variables)
    {
        File.WriteAllText(Path.Combine(_dir, "config.toml"), text);
        if (variables == null)
            Options.CheckNoConfigFile(_dir);
        else
            Assert.Equal($"config.toml in the working directory is not read any more: set {variables} in the environment "
                + "instead, and move the file away",
                Assert.Throws<OptionsException>(() => Options.CheckNoConfigFile(_dir)).Message);
        Options.CheckNoConfigFile(Path.Combine(_dir, "nothing"));
    }

    [Fact]
    public void KnownVariablesAndThoseOfOthersAreNotWarnedOf() =>
        Assert.Empty(Read(Local,
            Given("OXSES_PORT", "1", "OXSES_PASSWORD_FILE", FileWith("x"), "XSES_A", "")).Warnings);

    [Fact]
    public void UnverifiedCertificateOfOnixIsWarnedOf()
    {
        var warning = Assert.Single(Read(new(Local) { ["--onix-url"] = "https://onix" }).Warnings);
        Assert.Contains("--onix-ca-file", warning, Ordinal);
        var verified = Read(
            new(Local) { ["--onix-url"] = "https://onix", ["--onix-insecure-skip-verify"] = "false" });
        Assert.Empty(verified.Warnings);
        Assert.Empty(Read(new(Local) { ["--onix-url"] = "http://onix" }).Warnings);
    }

    private static readonly Dictionary<string, string> Local = Given("--address", "127.0.0.1");

    [Fact]
    public void DefaultPasswordIsWarnedOfWithoutPrintingIt()
    {
        var warning = Assert.Single(Read(new(Local) { ["--auth-mode"] = "basic" }).Warnings);
        Assert.Contains("--password (OXSES_PASSWORD)", warning, Ordinal);
        Assert.DoesNotContain("0n1x", warning, Ordinal);
        Assert.Empty(Read(new(Local) { ["--auth-mode"] = "basic", ["--password"] = "x" }).Warnings);
    }

    [Theory]
    [InlineData("", "", "anyone who can reach this host")]
    [InlineData("", "0.0.0.0", "anyone who can reach this host")]
    [InlineData("", "::1", null)]
    [InlineData("oidc", "", null)]
    [InlineData("basic", "", "passwords are sent unencrypted")]
    [InlineData("basic", "127.0.0.1", null)]
    [InlineData("basic tls", "", null)]
    [InlineData("tls", "", "anyone who can reach this host")]
    [InlineData("tls clients", "", null)]
    public void WhatIsOpenToOthersIsWarnedOf(string mode, string address, string? says)
    {
        var flags = new Dictionary<string, string>();
        if (address != "")
            flags["--address"] = address;
        if (mode.StartsWith("basic", Ordinal))
            (flags["--auth-mode"], flags["--password"]) = ("basic", "x");
        if (mode == "oidc")
            (flags["--auth-mode"], flags["--oidc-issuer"], flags["--oidc-audience"]) = ("oidc", "https://i", "a");
        if (mode.Contains("tls", Ordinal))
            (flags["--tls-cert"], flags["--tls-key"]) = ("/dev/zero", "/dev/zero");
        if (mode.Contains("clients", Ordinal))
            flags["--tls-client-ca"] = "/dev/zero";
        var warnings = Read(flags).Warnings;
        if (says == null)
            Assert.Empty(warnings);
        else
            Assert.Contains(says, Assert.Single(warnings), Ordinal);
    }

    [Theory]
    [InlineData(null, "the documented default")]
    [InlineData("", "empty")]
    public void PasswordThatAllKnowIsRefusedWhereOthersReachSeS(string? password, string says)
    {
        var flags = Given("--auth-mode", "basic");
        if (password != null)
            flags["--password"] = password;
        var e = Assert.Throws<OptionsException>(() => Read(flags));
        Assert.StartsWith($"--password (OXSES_PASSWORD): the password is {says}", e.Message, Ordinal);
        Assert.DoesNotContain("0n1x", e.Message, Ordinal);
    }

    // ---- Command line ----

    [Fact]
    public void HelpListsEverySettingAndNoSecretsDefault()
    {
        using var output = new StringWriter();
        Assert.Equal(0, Program.ParseFlags(["--help"], help: output).Exit);
        var help = output.ToString();
        Assert.All(Options.Settings, s => Assert.Contains($"  {s.Flag} {s.Value}  ({s.Variable})", help,
            Ordinal));
        Assert.All(Options.Settings.Where(s => s is { Default: not null, Secret: false }),
            s => Assert.Contains($"(default: {s.Default})", help, Ordinal));
        Assert.All(Options.Settings.Where(s => s is { Default: not null, Secret: true }),
            s => Assert.DoesNotContain(s.Default!, help, Ordinal));
    }

    [Fact]
    public void CommandLineGivesTheFlagsThatWereGiven()
    {
        var (flags, exit) = Program.ParseFlags(["--port", "1", "--path=a", "--metrics", "--password", ""]);
        Assert.Null(exit);
        Assert.Equal(Given("--port", "1", "--path", "a", "--metrics", "true", "--password", ""),
            new Dictionary<string, string>(flags));
    }

    [Theory]
    [InlineData("--prot", "1")]
    [InlineData("--port")]
    [InlineData("stray")]
    [InlineData("--port", "1", "--port", "2")]
    public void UnusableCommandLineIsRefused(params string[] args) =>
        Assert.Contains("--help", Assert.Throws<OptionsException>(() => Program.ParseFlags(args)).Message,
            Ordinal);

    [Theory]
    [InlineData("--password", "my", "hunter2")]
    [InlineData("--password", "hunter2", "--password", "hunter2")]
    [InlineData("--pasword=hunter2")]
    public void UnusableCommandLineIsRefusedWithoutPrintingASecret(params string[] args) =>
        Assert.DoesNotContain("hunter2",
            Assert.Throws<OptionsException>(() => Program.ParseFlags(args)).Message, Ordinal);

    // ---- Credentials of systemd ----

    [Fact]
    public void CredentialIsReadWhereNothingElseGivesTheSecret()
    {
        var dir = Directory.CreateTempSubdirectory("ses-credentials-").FullName;
        File.WriteAllText(Path.Combine(dir, "password"), "of systemd\n");
        var variables = new Dictionary<string, string> { ["CREDENTIALS_DIRECTORY"] = dir };
        Assert.Equal("of systemd", Options.Read(new Dictionary<string, string>(), variables).Password.Value);
        Assert.Equal("0n1x", Options.Read(new Dictionary<string, string>(), variables).OnixPassword.Value);
        variables["OXSES_PASSWORD"] = "of the variable";
        Assert.Equal("of the variable", Options.Read(new Dictionary<string, string>(), variables).Password.Value);
        Directory.Delete(dir, recursive: true);
    }
}
