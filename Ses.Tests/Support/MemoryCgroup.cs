using System.Globalization;

namespace Ses.Tests.Support;

/// <summary>A memory cgroup, as the one that an engine gives a container.</summary>
/// <remarks>What is in it has to have ended before it is disposed.</remarks>
internal sealed class MemoryCgroup : IDisposable
{
    private readonly string _path;

    private MemoryCgroup(string path) => _path = path;

    /// <summary>Null where this machine, or this user, makes none.</summary>
    /// <param name="limit">Bytes; the kernel ends who takes more.</param>
    public static MemoryCgroup? TryCreate(long limit)
    {
        // Version 1 has a tree for each resource, version 2 one tree for all.
        foreach (var (root, file) in new[] { ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max") })
        {
            var path = Path.Combine(root, $"ses-test-{Environment.ProcessId}-{Guid.NewGuid():N}");
            try
            {
                if (!Directory.Exists(root))
                    continue;
                Directory.CreateDirectory(path);
                var group = new MemoryCgroup(path);
                if (File.Exists(Path.Combine(path, file)))
                {
                    File.WriteAllText(Path.Combine(path, file), limit.ToString(CultureInfo.InvariantCulture));
                    return group;
                }
                group.Dispose();
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                // Not to be had here.
            }
        }
        return null;
    }

    /// <summary>A command that runs a program in it, from the program's first instruction on.</summary>
    public string[] Run(string program) =>
        ["sh", "-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\"", _path, program];

    /// <summary>How often its members wanted more than there is, and the kernel had to end one.</summary>
    public long Kills()
    {
        // memory.oom_control of version 1, memory.events of version 2: "oom_kill 0".
        var file = new[] { "memory.oom_control", "memory.events" }.Select(name => Path.Combine(_path, name)).First(File.Exists);
        return File.ReadLines(file).Where(line => line.StartsWith("oom_kill ", StringComparison.Ordinal))
            .Select(line => long.Parse(line[9..], CultureInfo.InvariantCulture)).Single();
    }

    public void Dispose() => Directory.Delete(_path);
}
