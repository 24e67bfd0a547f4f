using System.Globalization;
using System.Text;
using System.Text.RegularExpressions;

namespace Ses.Tests.Support;

/// <summary>
/// The HttpListener behind a native SeS's gate: its port, and the secret without which it answers nobody,
/// read from the process's memory. Only root can, and the bench alone has a use for it.
/// </summary>
internal static partial class InnerListener
{
    private const int Part = 1 << 20;

    /// <exception cref="InvalidOperationException">SeS has handed no request over yet.</exception>
    public static (int Port, string Secret) Of(int process)
    {
        using var memory = new FileStream($"/proc/{process}/mem", FileMode.Open, FileAccess.Read);
        foreach (var region in File.ReadLines($"/proc/{process}/maps").Where(l => l.Contains(" rw-p ", StringComparison.Ordinal)))
        {
            var bounds = region.Split(' ')[0].Split('-')
                .Select(b => long.Parse(b, NumberStyles.HexNumber, CultureInfo.InvariantCulture)).ToArray();
            for (var at = bounds[0]; at < bounds[1]; at += Part)
            {
                if (Head().Match(Read(memory, at, (int)Math.Min(Part, bounds[1] - at))) is { Success: true } found)
                    return (int.Parse(found.Groups[1].Value, CultureInfo.InvariantCulture), found.Groups[2].Value);
            }
        }
        throw new InvalidOperationException("no request to the inner listener is in the process's memory");
    }

    private static string Read(FileStream memory, long at, int length)
    {
        var bytes = new byte[length];
        try
        {
            memory.Position = at;
            return Encoding.Latin1.GetString(bytes, 0, memory.ReadAtLeast(bytes, length, throwOnEndOfStream: false));
        }
        catch (IOException)
        {
            // A page that is there no more.
            return "";
        }
    }

    [GeneratedRegex(@"Host: 127\.0\.0\.1:(\d+)\r\nSes-Secret: ([0-9A-F]{32})\r\n")]
    private static partial Regex Head();
}
