using Xunit;

namespace Ses.Tests.Support;

/// <summary>The sources that these tests belong to.</summary>
internal static class Project
{
    /// <summary>The folder with <c>Ses.cs</c>.</summary>
    public static string Folder { get; } = Above();

    /// <summary>Runs a program in that folder, apart from a make that runs the tests; it must end well.</summary>
    /// <returns>What it wrote.</returns>
    public static async Task<string> RunAsync(TimeSpan within, string program, params string[] arguments)
    {
        await using var run = ChildProcess.Start(program, arguments, new Dictionary<string, string?>
        {
            ["LC_ALL"] = "C.UTF-8",
            ["MAKEFLAGS"] = null,
            ["MAKELEVEL"] = null,
        }, Folder);
        Assert.True(await run.ExitAsync(within) == 0, $"{program} {string.Join(' ', arguments)}: {run.Output}");
        return run.Output;
    }

    private static string Above()
    {
        for (var dir = new DirectoryInfo(AppContext.BaseDirectory); dir != null; dir = dir.Parent)
            if (File.Exists(Path.Combine(dir.FullName, "Ses.cs")))
                return dir.FullName;
        throw new FileNotFoundException("there is no Ses.cs above the tests");
    }
}
