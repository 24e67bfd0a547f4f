// Writes what a native binary consists of, as a CycloneDX 1.6 document, and .NET's notices of third parties.
// Nothing is listed by hand: packages are those of NuGet's assets file, of which those count that the compiler
// was given; native libraries are those of which the linker's map has a section. Versions are those of NuGet,
// of dpkg and, for SQLite, of the library itself. Only the licences of libraries that do not name theirs are
// known here; a library that is not known stops the build.
//
// usage: dotnet run --file .ci/sbom.cs -- OBJ BINARY ARCH "VERSION [COMMIT TIME]" FOLDER [PACKAGE...]
//   OBJ      the folder of the build, which has project.assets.json, ses.ilc.rsp and ses.map
//   FOLDER   where ses.cdx.json and THIRD-PARTY-NOTICES.txt go
//   PACKAGE  of this system, files of which are packed beside the binary
//   CC       in the environment: the compiler that found the libraries, cc unless it is set
#:property PublishAot=false
#:property JsonSerializerIsReflectionEnabledByDefault=true

using System.Diagnostics;
using System.Security.Cryptography;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using System.Xml.Linq;

if (args is not [var obj, var binary, var arch, var described, var folder, .. var packed])
{
    Console.Error.WriteLine("usage: sbom.cs OBJ BINARY ARCH VERSION FOLDER [PACKAGE...]");
    return 2;
}

// SPDX expressions, by Debian's name of the source.
Dictionary<string, string> licenses = new()
{
    ["ca-certificates"] = "MPL-2.0",
    ["gcc"] = "GPL-3.0-or-later WITH GCC-exception-3.1",
    ["glibc"] = "LGPL-2.1-or-later",
    ["libzstd"] = "BSD-3-Clause",
    ["openssl"] = "Apache-2.0",
    ["tzdata"] = "LicenseRef-public-domain",
    ["zlib"] = "Zlib",
};
// What .NET's archives contain of others, without a version of its own.
(string Archive, string Name, string License)[] bundled =
    [("libz.a", "zlib-ng", "Zlib"), ("libbrotlicommon.a", "brotli", "MIT"),
        ("libbrotlidec.a", "brotli", "MIT"), ("libbrotlienc.a", "brotli", "MIT")];

var version = described.Split(' ');
using var assets = JsonDocument.Parse(File.ReadAllText(Path.Combine(obj, "project.assets.json")));
var packages = assets.RootElement.GetProperty("project").GetProperty("restore").GetProperty("packagesPath").GetString()!;
var given = File.ReadLines(Only("ses.ilc.rsp")).Where(line => line.StartsWith("-r:", StringComparison.Ordinal))
    .Select(line => line[3..]).ToList();
// In the map of lld and of GNU ld an archive's member is FILE(MEMBER): as it stands before the section.
var linked = File.ReadLines(Only("ses.map")).Select(line => Regex.Match(line, @"(?:^| )(/?[^\s():]+\.(?:a|o))(?:\([^()]+\))?:?\("))
    .Where(m => m.Success).Select(m => Path.GetFullPath(m.Groups[1].Value)).Distinct().Order(StringComparer.Ordinal).ToList();

SortedDictionary<string, JsonObject> components = new(StringComparer.Ordinal);
SortedDictionary<string, SortedSet<string>> dependsOn = new(StringComparer.Ordinal);
var root = $"pkg:generic/ses@{Uri.EscapeDataString(version[0])}?arch={arch}";
dependsOn[root] = new(StringComparer.Ordinal);

AddPackages();
foreach (var file in linked)
    AddLinked(file);
foreach (var package in packed)
    AddDebian(package, package);

Directory.CreateDirectory(folder);
var time = version.Length > 2 ? DateTimeOffset.FromUnixTimeSeconds(long.Parse(version[2])) : DateTimeOffset.UnixEpoch;
var body = new JsonObject
{
    ["metadata"] = new JsonObject
    {
        ["timestamp"] = time.ToString("yyyy-MM-ddTHH:mm:ssZ"),
        ["lifecycles"] = new JsonArray(new JsonObject { ["phase"] = "build" }),
        ["component"] = new JsonObject
        {
            ["type"] = "application",
            ["bom-ref"] = root,
            ["name"] = "ses",
            ["version"] = version[0],
            ["description"] = "Keeps the history of service status from the alerts of Prometheus and Alertmanager",
            ["hashes"] = new JsonArray(new JsonObject
            {
                ["alg"] = "SHA-256",
                ["content"] = Convert.ToHexStringLower(SHA256.HashData(File.ReadAllBytes(binary))),
            }),
            ["licenses"] = Licenses("Apache-2.0"),
            ["purl"] = root,
        },
    },
    ["components"] = new JsonArray([.. components.Values]),
    ["dependencies"] = new JsonArray([.. dependsOn.Select(d => new JsonObject
    {
        ["ref"] = d.Key,
        ["dependsOn"] = new JsonArray([.. d.Value.Select(v => JsonValue.Create(v))]),
    })]),
};
// The same content has the same number, RFC 9562, 5.8.
var digest = SHA256.HashData(Encoding.UTF8.GetBytes(body.ToJsonString()))[..16];
digest[6] = (byte)(digest[6] & 0x0f | 0x80);
digest[8] = (byte)(digest[8] & 0x3f | 0x80);
var document = new JsonObject
{
    ["$schema"] = "http://cyclonedx.org/schema/bom-1.6.schema.json",
    ["bomFormat"] = "CycloneDX",
    ["specVersion"] = "1.6",
    ["serialNumber"] = $"urn:uuid:{new Guid(digest, bigEndian: true)}",
    ["version"] = 1,
};
foreach (var (name, value) in body)
    document[name] = value!.DeepClone();
File.WriteAllText(Path.Combine(folder, "ses.cdx.json"), document.ToJsonString(new JsonSerializerOptions
{
    WriteIndented = true,
    Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
}) + "\n");
return 0;

// The one of that name that this build has made.
string Only(string name) => Directory.GetFiles(obj, name, SearchOption.AllDirectories) is [var file]
    ? file : throw new FileNotFoundException($"{obj} has not one {name}: make clean publish");

// Each package of the assets file; one that the compiler was not given any file of, is in no binary.
void AddPackages()
{
    var rid = arch == "arm64" ? "linux-arm64" : "linux-x64";
    var target = assets.RootElement.GetProperty("targets").GetProperty($"net10.0/{rid}");
    var ofName = target.EnumerateObject().ToDictionary(p => p.Name.Split('/')[0], p => p.Name, StringComparer.OrdinalIgnoreCase);
    foreach (var package in target.EnumerateObject())
    {
        var (name, number) = (package.Name.Split('/')[0], package.Name.Split('/')[1]);
        var isIn = given.Concat(linked).Any(file => file.StartsWith(PathOf(name, number), StringComparison.Ordinal));
        var purl = AddNuGet(name, number, isIn);
        if (package.Value.TryGetProperty("dependencies", out var dependencies))
            foreach (var dependency in dependencies.EnumerateObject())
                if (ofName.TryGetValue(dependency.Name, out var found))
                    dependsOn[purl].Add(PurlOf(found.Split('/')[0], found.Split('/')[1]));
    }
    // The runtime is fetched, and no package of the project; .NET's part of OpenSSL is compiled from the compiler's.
    foreach (var download in assets.RootElement.GetProperty("project").GetProperty("frameworks").GetProperty("net10.0")
        .GetProperty("downloadDependencies").EnumerateArray())
    {
        var (name, number) = (download.GetProperty("name").GetString()!, download.GetProperty("version").GetString()!.Trim('[', ']').Split(',')[0]);
        var path = PathOf(name, number);
        if (!given.Concat(linked).Any(file => file.StartsWith(path, StringComparison.Ordinal)))
            continue;
        AddNuGet(name, number, isIn: true);
        var notices = Path.Combine(path, "THIRD-PARTY-NOTICES.TXT");
        if (name.Contains(".NativeAOT.", StringComparison.Ordinal) && File.Exists(notices))
        {
            Directory.CreateDirectory(folder);
            File.WriteAllText(Path.Combine(folder, "THIRD-PARTY-NOTICES.txt"),
                File.ReadAllText(notices).Replace("\r\n", "\n", StringComparison.Ordinal));
        }
    }
}

string PathOf(string name, string number) => Path.Combine(packages, name.ToLowerInvariant(), number) + "/";

string PurlOf(string name, string number) => $"pkg:nuget/{name}@{number}";

string AddNuGet(string name, string number, bool isIn)
{
    var purl = PurlOf(name, number);
    var nuspec = XDocument.Load(Directory.GetFiles(PathOf(name, number), "*.nuspec").Single()).Root!.Elements().Single();
    string? Of(string field) => nuspec.Elements().FirstOrDefault(e => e.Name.LocalName == field)?.Value;
    var license = nuspec.Elements().FirstOrDefault(e => e.Name.LocalName == "license");
    var expression = license?.Attribute("type")?.Value == "expression" ? license.Value
        : name == "SQLite" ? "blessing"
        : throw new InvalidDataException($"{name} {number} has no SPDX expression: say its licence in .ci/sbom.cs");
    Add(purl, new JsonObject
    {
        ["type"] = "library",
        ["bom-ref"] = purl,
        ["authors"] = new JsonArray(new JsonObject { ["name"] = Of("authors") }),
        ["name"] = name,
        ["version"] = number,
        ["scope"] = isIn ? "required" : "excluded",
        ["licenses"] = Licenses(expression),
        ["copyright"] = Of("copyright"),
        ["purl"] = purl,
    }, isIn);
    return purl;
}

// A library or an object that is linked in: of a NuGet package, of a package of the system, or SQLite.
void AddLinked(string file)
{
    var name = Path.GetFileName(file);
    if (file.StartsWith(packages, StringComparison.Ordinal))
    {
        if (bundled.FirstOrDefault(b => b.Archive == name) is { Name: { } part } found)
            Add($"bundled:{part}", new JsonObject
            {
                ["type"] = "library",
                ["bom-ref"] = $"bundled:{part}",
                ["name"] = part,
                ["description"] = "As the .NET runtime bundles it",
                ["scope"] = "required",
                ["licenses"] = Licenses(found.License),
            }, isIn: true);
        return;
    }
    if (name is "libe_sqlite3.a" or "libsqlite3.a")
    {
        // sqlite3_version[], which sqlite3_libversion returns.
        var number = Regex.Match(Encoding.Latin1.GetString(File.ReadAllBytes(file)), @"(?<![\d.])3\.\d{1,2}\.\d{1,2}(?=\0)").Value;
        if (number == "")
            throw new InvalidDataException($"{file} does not tell the version of SQLite");
        Add($"pkg:generic/sqlite@{number}", new JsonObject
        {
            ["type"] = "library",
            ["bom-ref"] = $"pkg:generic/sqlite@{number}",
            ["name"] = "sqlite",
            ["version"] = number,
            ["scope"] = "required",
            ["licenses"] = Licenses("blessing"),
            ["cpe"] = $"cpe:2.3:a:sqlite:sqlite:{number}:*:*:*:*:*:*:*",
            ["purl"] = $"pkg:generic/sqlite@{number}",
        }, isIn: true);
        return;
    }
    // Of the build itself: SeS, .NET's part of OpenSSL, and a copy of OpenSSL without what is of no use.
    if (file.StartsWith(Path.GetFullPath(obj) + "/", StringComparison.Ordinal))
    {
        if (name is "ses.o")
            return;
        if (name is "libSystem.Security.Cryptography.Native.OpenSsl.a")
        {
            foreach (var key in components.Keys.Where(k => k.StartsWith("pkg:nuget/runtime.", StringComparison.Ordinal)))
                (components[key]["scope"], _) = ("required", dependsOn[root].Add(key));
            return;
        }
        file = Path.GetFullPath(Run("sh", "-c", $"${{CC:-cc}} -print-file-name={name}"));
    }
    // A folder that is a link to one below /usr is known to dpkg under either name.
    var owner = Run("dpkg", "-S", file) is { Length: > 0 } direct ? direct
        : Run("dpkg", "-S", file.StartsWith("/usr/", StringComparison.Ordinal) ? file[4..] : "/usr" + file);
    if (owner == "")
        throw new InvalidDataException($"{file} is linked, and of no package of this system: its version is not known");
    AddDebian(owner[..owner.LastIndexOf(": ", StringComparison.Ordinal)], file);
}

void AddDebian(string package, string what)
{
    if (Run("dpkg-query", "-W", "-f", "${Package} ${Architecture} ${Version} ${source:Package}", package).Split(' ')
        is not [var name, var of, var number, var source])
        throw new InvalidDataException($"{what}: dpkg does not know {package}");
    source = Regex.Replace(source, @"^gcc-\d+(-cross)?$", "gcc");
    if (!licenses.TryGetValue(source, out var license))
        throw new InvalidDataException($"{what} is of {source}, whose licence is not known: say it in .ci/sbom.cs and deploy/debian/copyright");
    var os = File.ReadLines("/etc/os-release").Select(line => line.Split('=')).Where(pair => pair.Length == 2)
        .ToDictionary(pair => pair[0], pair => pair[1].Trim('"'));
    var purl = $"pkg:deb/{os["ID"]}/{name}@{Uri.EscapeDataString(number)}?arch={of}&distro={os["ID"]}-{os.GetValueOrDefault("VERSION_ID", "sid")}";
    var upstream = Regex.Match(number, @"^(?:\d+:)?(\d+(?:\.\d+)*)").Groups[1].Value;
    var component = new JsonObject
    {
        ["type"] = "library",
        ["bom-ref"] = purl,
        ["name"] = source,
        ["version"] = number,
        ["scope"] = "required",
        ["licenses"] = Licenses(license),
    };
    if (source is "openssl" or "glibc" or "zlib")
        component["cpe"] = $"cpe:2.3:a:{(source == "glibc" ? "gnu" : source)}:{source}:{upstream}:*:*:*:*:*:*:*";
    component["purl"] = purl;
    Add(purl, component, isIn: true);
}

void Add(string key, JsonObject component, bool isIn)
{
    components.TryAdd(key, component);
    dependsOn.TryAdd(key, new(StringComparer.Ordinal));
    if (isIn)
        dependsOn[root].Add(key);
}

// One that SPDX lists has an id, and may not be an expression.
static JsonArray Licenses(string license) => new(
    license.Contains(' ', StringComparison.Ordinal) ? new JsonObject { ["expression"] = license }
    : new JsonObject
    {
        ["license"] = license.StartsWith("LicenseRef-", StringComparison.Ordinal)
            ? new JsonObject { ["name"] = license["LicenseRef-".Length..] } : new JsonObject { ["id"] = license },
    });

// The last line that a program says; nothing if it fails.
static string Run(string program, params string[] arguments)
{
    using var process = Process.Start(new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true, RedirectStandardError = true })!;
    var error = process.StandardError.ReadToEndAsync();
    var output = process.StandardOutput.ReadToEnd();
    process.WaitForExit();
    _ = error.Result;
    return process.ExitCode == 0 ? output.TrimEnd('\n').Split('\n')[^1] : "";
}
