using System.Runtime.InteropServices;
using System.Text.Json;
using System.Text.RegularExpressions;
using Ses.Tests.Support;
using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>What <c>make sbom</c> says of the binaries: what they consist of, and under which licences.</summary>
[Trait("Category", "E2E")]
public partial class SbomEndToEndTests
{
    private static readonly TimeSpan Soon = TimeSpan.FromMinutes(2);

    /// <summary>Debian's names of licences, by those of SPDX.</summary>
    private static readonly Dictionary<string, string> DebianNames = new()
    {
        ["MIT"] = "Expat",
        ["BSD-3-Clause"] = "BSD-3-clause",
        ["LGPL-2.1-or-later"] = "LGPL-2.1+",
        ["GPL-3.0-or-later WITH GCC-exception-3.1"] = "GPL-3+ with GCC-Runtime-Library-3.1 exception",
        ["blessing"] = "public-domain",
        ["public-domain"] = "public-domain-tzdata",
    };

    private readonly string _out = Path.Combine(Project.Folder, "out");
    private readonly string _obj = Path.Combine(Project.Folder, "obj", "native");

    /// <param name="Reference">Its purl, or what stands for one.</param>
    /// <param name="Version">Null: bundled with something else that has one.</param>
    private sealed record Component(string Reference, string Name, string? Version, bool IsIn, string License);

    private static List<Component> Read(string file)
    {
        using var document = JsonDocument.Parse(File.ReadAllText(file));
        return [.. document.RootElement.GetProperty("components").EnumerateArray().Select(c => new Component(
            c.GetProperty("bom-ref").GetString()!, c.GetProperty("name").GetString()!,
            c.TryGetProperty("version", out var version) ? version.GetString() : null,
            c.GetProperty("scope").GetString() == "required", License(c.GetProperty("licenses")[0])))];

        static string License(JsonElement license) => license.TryGetProperty("expression", out var expression)
            ? expression.GetString()! : license.GetProperty("license").EnumerateObject().Single().Value.GetString()!;
    }

    private List<Component> Binary => Read(Path.Combine(_out, "doc", "ses.cdx.json"));

    private List<Component> Image => Read(Path.Combine(_out, "image.cdx.json"));

    private static async Task<string> RunAsync(string program, params string[] arguments) =>
        (await Project.RunAsync(Soon, program, arguments)).TrimEnd('\n');

    [Fact]
    public async Task IsValidAndWhole() => Assert.Equal("0 faults", await RunAsync("node",
        "Ses.Tests/sbom/validate.mjs", Path.Combine(_out, "doc", "ses.cdx.json"), Path.Combine(_out, "image.cdx.json")));

    [Fact]
    public async Task NamesTheBinaryAndTheVersionsThatItSays()
    {
        using var document = JsonDocument.Parse(File.ReadAllText(Path.Combine(_out, "doc", "ses.cdx.json")));
        var root = document.RootElement.GetProperty("metadata").GetProperty("component");
        Assert.Equal((await RunAsync("sha256sum", Path.Combine(_out, "ses"))).Split(' ')[0],
            root.GetProperty("hashes")[0].GetProperty("content").GetString());
        var said = Said().Match(await RunAsync(Path.Combine(_out, "ses"), "--version"));
        Assert.Equal(said.Groups[1].Value, root.GetProperty("version").GetString());
        Assert.Equal(said.Groups[3].Value, Binary.Single(c => c.Name == "sqlite").Version);
        Assert.StartsWith(said.Groups[2].Value + "-", Binary.Single(c => c.Name == "openssl").Version, Ordinal);
    }

    /// <summary>Of the assets file, of which the build took what is there, and what was fetched for it.</summary>
    [Fact]
    public void HasEachPackageThatNuGetResolved()
    {
        using var assets = JsonDocument.Parse(File.ReadAllText(Path.Combine(_obj, "project.assets.json")));
        var libraries = assets.RootElement.GetProperty("libraries").EnumerateObject().Select(l => l.Name)
            .Where(l => !l.StartsWith("runtime.", Ordinal) || l.Contains(Rid, Ordinal)).ToList();
        Assert.Contains(libraries, l => l.StartsWith("System.CommandLine/", Ordinal));
        Assert.Equal([], libraries.Except(Binary.Select(c => $"{c.Name}/{c.Version}")));
        // The compiler's answer file names what it was given.
        var given = Directory.GetFiles(_obj, "ses.ilc.rsp", SearchOption.AllDirectories).Select(File.ReadAllText).Single();
        Assert.All(Binary.Where(c => c.Reference.StartsWith("pkg:nuget/", Ordinal) && !c.Name.StartsWith("runtime.", Ordinal)),
            c => Assert.Equal(given.Contains($"/{c.Name}/{c.Version}/", OrdinalIgnoreCase), c.IsIn));
    }

    private static string Rid => RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? "linux-arm64" : "linux-x64";

    /// <summary>By the linker's map, whose archives are looked up here in another way.</summary>
    [Fact]
    public async Task HasEachLibraryThatIsLinked()
    {
        var map = Directory.GetFiles(_obj, "ses.map", SearchOption.AllDirectories).Single();
        var archives = File.ReadLines(map).Select(line => ArchivePath().Match(line)).Where(m => m.Success)
            .Select(m => m.Groups[1].Value).Distinct().ToList();
        var found = new HashSet<string>();
        foreach (var archive in archives)
            if (archive.Contains("/microsoft.netcore.app.runtime.nativeaot.", Ordinal))
                found.Add(Path.GetFileName(archive) switch
                {
                    "libz.a" => "zlib-ng",
                    var name when name.StartsWith("libbrotli", Ordinal) => "brotli",
                    _ => "Microsoft.NETCore.App.Runtime.NativeAOT." + Rid,
                });
            else if (archive.Contains("libSystem.Security.Cryptography.", Ordinal))
                found.Add($"runtime.{Rid}.Microsoft.DotNet.ILCompiler");
            else if (archive.EndsWith("/libe_sqlite3.a", Ordinal))
                found.Add("sqlite");
            else
            {
                var path = Path.GetFullPath(await RunAsync("cc", "-print-file-name=" + Path.GetFileName(archive)));
                var package = (await RunAsync("sh", "-c", $"dpkg -S {path} || dpkg -S /usr{path}")).Split('\n')[^1].Split(": ")[0];
                var version = await RunAsync("dpkg-query", "-W", "-f", "${Version}", package);
                found.Add(Binary.Single(c => c.Version == version
                    && c.Reference.Contains($"/{package.Split(':')[0]}@", Ordinal)).Name);
            }
        // What is there for certain, and all of what is linked but for what NuGet resolved.
        Assert.Superset(new HashSet<string> { "glibc", "openssl", "sqlite", "Microsoft.NETCore.App.Runtime.NativeAOT." + Rid }, found);
        Assert.Equal(found.Order(), Binary.Where(c => c.IsIn && !IsResolved(c)).Select(c => c.Name).Order());

        static bool IsResolved(Component c) => c.Reference.StartsWith("pkg:nuget/", Ordinal)
            && !c.Name.StartsWith("runtime.", Ordinal) && !c.Name.Contains(".NativeAOT.", Ordinal);
    }

    [Fact]
    public void OfTheImageHasItsOtherFilesToo() => Assert.Equal(["ca-certificates", "tzdata"],
        Image.Select(c => c.Name).Except(Binary.Select(c => c.Name)).Order());

    /// <summary>In the form of DEP-5; what is not in the binary need not be there, and is.</summary>
    [Fact]
    public void LicenceOfEachIsInTheCopyrightFile()
    {
        var copyright = File.ReadAllText(Path.Combine(_out, "doc", "copyright"));
        var stanzas = copyright.Split("\n\n").Select(s => (Files: FilesField().Match(s).Groups[1].Value.Split((char[]?)null,
            StringSplitOptions.RemoveEmptyEntries), License: LicenseField().Match(s).Groups[1].Value)).ToList();
        Assert.All(Image, c =>
        {
            var stanza = stanzas.Single(s => s.Files.Any(f => f != "*" && Regex.IsMatch($"{c.Name}/x",
                $"^{Regex.Escape(f).Replace("\\*", ".*", Ordinal)}$")));
            Assert.Equal(DebianNames.GetValueOrDefault(c.License, c.License), stanza.License);
        });
        // The text of each is there, or where the rest of it is.
        Assert.All(stanzas.Where(s => s.License != ""), s => Assert.Matches($@"(?m)^License: {Regex.Escape(s.License)}\n ", copyright));
        Assert.All(CommonLicense().Matches(copyright), m =>
            Assert.True(new FileInfo(Path.Combine(_out, "doc", "licenses", m.Groups[1].Value)).Length > 5_000, m.Value));
        Assert.Contains("License notice for Brotli",
            File.ReadAllText(Path.Combine(_out, "doc", "THIRD-PARTY-NOTICES.txt")), Ordinal);
    }

    [GeneratedRegex(@"^ses (\S+?),? .*OpenSSL (\S+), SQLite (\S+)$")]
    private static partial Regex Said();

    [GeneratedRegex(@"(\S+\.a)\(")]
    private static partial Regex ArchivePath();

    [GeneratedRegex(@"^Files:((?: \S+\n?)+)", RegexOptions.Multiline)]
    private static partial Regex FilesField();

    [GeneratedRegex(@"^License: (.+)$", RegexOptions.Multiline)]
    private static partial Regex LicenseField();

    [GeneratedRegex(@"/usr/share/common-licenses/([\w.-]*\w)")]
    private static partial Regex CommonLicense();
}
