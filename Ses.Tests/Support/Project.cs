namespace Ses.Tests.Support;

/// <summary>The sources that these tests belong to.</summary>
internal static class Project
{
    /// <summary>The folder with <c>Ses.cs</c>.</summary>
    public static string Folder { get; } = Above();

    private static string Above()
    {
        for (var dir = new DirectoryInfo(AppContext.BaseDirectory); dir != null; dir = dir.Parent)
            if (File.Exists(Path.Combine(dir.FullName, "Ses.cs")))
                return dir.FullName;
        throw new FileNotFoundException("there is no Ses.cs above the tests");
    }
}
