// Makes the image that the last stage of the Dockerfile describes, without an engine: an OCI archive, which
// docker load, podman load and skopeo take. The same files and the same commit make the same bytes.
//
// usage: dotnet run --file .ci/oci.cs -- DOCKERFILE SOURCE ARCH "VERSION [COMMIT TIME]" ARCHIVE [FROM=FILE...]
//   SOURCE     the folder that stands for /src of the first stage
//   ARCH       amd64 or arm64
//   FROM=FILE  what is copied instead: /src/out/ses=out/arm64/ses
#:property PublishAot=false
#:property JsonSerializerIsReflectionEnabledByDefault=true

using System.Formats.Tar;
using System.IO.Compression;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;

[assembly: System.Runtime.Versioning.SupportedOSPlatform("linux")]

const UnixFileMode Folder = (UnixFileMode)0b111_101_101, Plain = (UnixFileMode)0b110_100_100;

if (args is not [var dockerfile, var source, var arch, var described, var archive, .. var instead])
{
    Console.Error.WriteLine("usage: oci.cs DOCKERFILE SOURCE ARCH VERSION ARCHIVE [FROM=FILE...]");
    return 2;
}

var version = described.Split(' ');
var time = version.Length > 2 ? DateTimeOffset.FromUnixTimeSeconds(long.Parse(version[2])) : DateTimeOffset.UnixEpoch;
var other = instead.Select(pair => pair.Split('=', 2)).ToDictionary(pair => pair[0], pair => pair[1]);
// One line for each instruction of the last stage.
var stage = Regex.Replace(File.ReadAllText(dockerfile).Split("FROM scratch\n")[1], @"\\\n\s*", " ").Split('\n')
    .Where(line => line != "" && line[0] != '#').Select(line => line.Split(' ', 2)).Select(pair => (Does: pair[0], Says: pair[1])).ToList();

JsonObject config = new(), labels = Pairs("LABEL");
JsonArray env = [.. Pairs("ENV").Select(pair => JsonValue.Create($"{pair.Key}={pair.Value}"))];
labels["org.opencontainers.image.version"] = version[0];
if (version.Length > 2)
    labels["org.opencontainers.image.revision"] = version[1];
SortedDictionary<string, TarEntry> files = new(StringComparer.Ordinal);
foreach (var (does, says) in stage)
{
    switch (does)
    {
        case "COPY":
            var copy = Regex.Match(says, @"^--from=build (?:--chown=(\d+):(\d+) )?(\S+) (\S+)$");
            if (!copy.Success)
                throw new InvalidDataException($"COPY {says}: not known here");
            Copy(copy.Groups[3].Value, copy.Groups[4].Value, Number(copy.Groups[1]), Number(copy.Groups[2]));
            break;
        case "USER":
            config["User"] = says;
            break;
        case "VOLUME":
            config["Volumes"] = new JsonObject { [says] = new JsonObject() };
            break;
        case "EXPOSE":
            config["ExposedPorts"] = new JsonObject { [$"{says}/tcp"] = new JsonObject() };
            break;
        case "ENTRYPOINT":
            config["Entrypoint"] = JsonNode.Parse(says);
            break;
        case "HEALTHCHECK":
            // Of Docker alone; others pass over it.
            var health = Regex.Match(says, @"^--interval=(\d+)s --timeout=(\d+)s --start-period=(\d+)s CMD (.*)$");
            config["Healthcheck"] = new JsonObject
            {
                ["Test"] = new JsonArray(["CMD", .. JsonNode.Parse(health.Groups[4].Value)!.AsArray().Select(part => part!.DeepClone())]),
                ["Interval"] = Nanoseconds(health.Groups[1]),
                ["Timeout"] = Nanoseconds(health.Groups[2]),
                ["StartPeriod"] = Nanoseconds(health.Groups[3]),
            };
            break;
        case "LABEL" or "ENV":
            break;
        default:
            throw new InvalidDataException($"{does} {says}: not known here");
    }
}
config["Env"] = env;
config["Labels"] = labels;

var tar = Tar(files.Values);
var layer = new MemoryStream();
using (var gzip = new GZipStream(layer, CompressionLevel.SmallestSize, leaveOpen: true))
    gzip.Write(tar);
SortedDictionary<string, byte[]> blobs = new(StringComparer.Ordinal);
var image = Blob("application/vnd.oci.image.config.v1+json", Json(new JsonObject
{
    ["created"] = time.ToString("yyyy-MM-ddTHH:mm:ssZ"),
    ["architecture"] = arch,
    ["os"] = "linux",
    ["config"] = config,
    ["rootfs"] = new JsonObject { ["type"] = "layers", ["diff_ids"] = new JsonArray($"sha256:{Hash(tar)}") },
    ["history"] = new JsonArray(new JsonObject { ["created"] = time.ToString("yyyy-MM-ddTHH:mm:ssZ"), ["created_by"] = "make image" }),
}));
var manifest = Blob("application/vnd.oci.image.manifest.v1+json", Json(new JsonObject
{
    ["schemaVersion"] = 2,
    ["mediaType"] = "application/vnd.oci.image.manifest.v1+json",
    ["config"] = image,
    ["layers"] = new JsonArray(Blob("application/vnd.oci.image.layer.v1.tar+gzip", layer.ToArray())),
}));
manifest["platform"] = new JsonObject { ["architecture"] = arch, ["os"] = "linux" };
// A tag may not have a "+".
manifest["annotations"] = new JsonObject
{
    ["io.containerd.image.name"] = $"docker.io/library/ses:{version[0].Replace('+', '-')}",
    ["org.opencontainers.image.ref.name"] = version[0].Replace('+', '-'),
};
blobs["index.json"] = Json(new JsonObject
{
    ["schemaVersion"] = 2,
    ["mediaType"] = "application/vnd.oci.image.index.v1+json",
    ["manifests"] = new JsonArray(manifest),
});
blobs["oci-layout"] = Json(new JsonObject { ["imageLayoutVersion"] = "1.0.0" });
File.WriteAllBytes(archive, Tar(blobs.Select(blob => Entry(blob.Key, blob.Value, Plain))));
return 0;

static int Number(Group group) => group.Success ? int.Parse(group.Value) : 0;

static long Nanoseconds(Group seconds) => long.Parse(seconds.Value) * 1_000_000_000;

// NAME=VALUE and NAME="VALUE" of an instruction.
JsonObject Pairs(string instruction) => new(stage.Where(line => line.Does == instruction)
    .SelectMany(line => Regex.Matches(line.Says, "([\\w.]+)=(?:\"([^\"]*)\"|(\\S+))"))
    .Select(m => KeyValuePair.Create(m.Groups[1].Value, (JsonNode?)JsonValue.Create(m.Groups[2].Value + m.Groups[3].Value))));

// A file, a link or a folder of the first stage to a place in the image, with the folders above it.
void Copy(string from, string to, int user, int group)
{
    var path = other.GetValueOrDefault(from)
        ?? (from.StartsWith("/src/", StringComparison.Ordinal) ? Path.Combine(source, from[5..]) : from);
    for (var above = Path.GetDirectoryName(to); above is { Length: > 1 }; above = Path.GetDirectoryName(above))
        files.TryAdd(above + "/", FolderEntry(above, Folder, 0, 0));
    // An empty folder, which need not be there.
    if (from == "/empty")
        files[to + "/"] = FolderEntry(to, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute, user, group);
    else if (Directory.Exists(path) && new DirectoryInfo(path).LinkTarget == null)
    {
        files[to + "/"] = FolderEntry(to, Folder, user, group);
        foreach (var entry in Directory.EnumerateFileSystemEntries(path))
            Copy(entry, $"{to}/{Path.GetFileName(entry)}", user, group);
    }
    else if (new FileInfo(path).LinkTarget is { } target)
        files[to] = Owned(new UstarTarEntry(TarEntryType.SymbolicLink, to[1..]) { LinkName = target }, user, group);
    else
        files[to] = Owned(Entry(to[1..], File.ReadAllBytes(path),
            (File.GetUnixFileMode(path) & UnixFileMode.UserExecute) != 0 ? Folder : Plain), user, group);
}

TarEntry FolderEntry(string path, UnixFileMode mode, int user, int group) =>
    Owned(new UstarTarEntry(TarEntryType.Directory, path[1..] + "/") { Mode = mode }, user, group);

UstarTarEntry Entry(string name, byte[] content, UnixFileMode mode) =>
    Owned(new UstarTarEntry(TarEntryType.RegularFile, name) { DataStream = new MemoryStream(content), Mode = mode }, 0, 0);

UstarTarEntry Owned(UstarTarEntry entry, int user, int group)
{
    (entry.Uid, entry.Gid, entry.ModificationTime) = (user, group, time);
    return entry;
}

static byte[] Tar(IEnumerable<TarEntry> entries)
{
    var stream = new MemoryStream();
    using (var writer = new TarWriter(stream, TarEntryFormat.Ustar, leaveOpen: true))
        foreach (var entry in entries)
            writer.WriteEntry(entry);
    return stream.ToArray();
}

JsonObject Blob(string type, byte[] content)
{
    blobs["blobs/sha256/" + Hash(content)] = content;
    return new JsonObject { ["mediaType"] = type, ["digest"] = $"sha256:{Hash(content)}", ["size"] = content.Length };
}

static string Hash(byte[] content) => Convert.ToHexStringLower(SHA256.HashData(content));

static byte[] Json(JsonNode node) => Encoding.UTF8.GetBytes(node.ToJsonString());
