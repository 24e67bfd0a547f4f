using System.ComponentModel;
using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;

namespace Ses.Tests.Support;

/// <summary>The signals that tests send, by their numbers on Linux.</summary>
internal enum Signal { Hangup = 1, Interrupt = 2, Kill = 9, Terminate = 15, Continue = 18, Stop = 19 }

/// <summary>A program that a test started, and that ends with the test.</summary>
/// <remarks>Safe for any thread. Only the process itself is ever signalled, never its children.</remarks>
internal sealed partial class ChildProcess : IAsyncDisposable
{
    /// <summary>What is kept of the output, in characters: the end, where the cause of death is.</summary>
    private const int MaxOutput = 1 << 20;

    /// <summary>How long a killed process may take to be gone: the kernel's work, when busy.</summary>
    private static readonly TimeSpan Gone = TimeSpan.FromSeconds(10);

    private readonly Process _process;
    private readonly Lock _gate = new();
    private readonly StringBuilder _output = new();

    private ChildProcess(Process process) => _process = process;

    /// <summary>Starts a program, found in PATH unless its name is a path.</summary>
    /// <param name="environment">Variables to set; a null value unsets one. The rest is inherited.</param>
    /// <exception cref="Win32Exception">There is no such program, or it cannot be run.</exception>
    public static ChildProcess Start(
        string program, IEnumerable<string> arguments,
        IReadOnlyDictionary<string, string?>? environment = null, string? folder = null)
    {
        var info = new ProcessStartInfo(program, arguments)
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            StandardOutputEncoding = Encoding.UTF8,
            StandardErrorEncoding = Encoding.UTF8,
            WorkingDirectory = folder ?? Path.GetTempPath(),
        };
        foreach (var (name, value) in environment ?? new Dictionary<string, string?>())
            info.Environment[name] = value;
        var process = new Process { StartInfo = info };
        var child = new ChildProcess(process);
        process.OutputDataReceived += (_, line) => child.Keep(line.Data);
        process.ErrorDataReceived += (_, line) => child.Keep(line.Data);
        process.Start();
        process.StandardInput.Close();
        process.BeginOutputReadLine();
        process.BeginErrorReadLine();
        return child;
    }

    public int Id => _process.Id;

    public bool HasExited => _process.HasExited;

    /// <summary>What it wrote to stdout and stderr so far, in lines; the last 1 Mi characters.</summary>
    public string Output
    {
        get
        {
            lock (_gate)
                return _output.ToString();
        }
    }

    /// <summary>Sends a signal; does nothing to a process that has already ended.</summary>
    public void Kill(Signal signal)
    {
        if (_process.HasExited)
            return;
        // ESRCH: it ended in between, and is no more than a zombie that the runtime has reaped.
        if (SendSignal(_process.Id, (int)signal) != 0 && Marshal.GetLastPInvokeError() is var error and not 3)
            throw new Win32Exception(error);
    }

    /// <summary>Waits for its end, and for the rest of its output.</summary>
    /// <returns>Its exit code; 128 and the signal's number when a signal ended it.</returns>
    /// <exception cref="TimeoutException">It still runs; the message ends with its output.</exception>
    public async Task<int> ExitAsync(TimeSpan deadline)
    {
        try
        {
            await _process.WaitForExitAsync().WaitAsync(deadline);
        }
        catch (TimeoutException)
        {
            throw new TimeoutException($"{this} did not end within {deadline}:\n{Output}");
        }
        return _process.ExitCode;
    }

    /// <summary>The memory that it occupies in RAM, in bytes (VmRSS of proc(5)).</summary>
    public long ResidentBytes() => StatusBytes("VmRSS:");

    /// <summary>The most that it has ever occupied (VmHWM).</summary>
    public long PeakBytes() => StatusBytes("VmHWM:");

    private long StatusBytes(string field)
    {
        var line = File.ReadLines($"/proc/{Id}/status")
            .First(l => l.StartsWith(field, StringComparison.Ordinal));
        var kibibytes = line[field.Length..].Replace("kB", "", StringComparison.Ordinal).Trim();
        return long.Parse(kibibytes, CultureInfo.InvariantCulture) * 1024;
    }

    /// <summary>The number of files, sockets and pipes that it has open.</summary>
    public int OpenDescriptors() => Directory.GetFileSystemEntries($"/proc/{Id}/fd").Length;

    public override string ToString() => $"{Path.GetFileName(_process.StartInfo.FileName)} ({Id})";

    /// <summary>Ends it with SIGKILL, if it still runs.</summary>
    public async ValueTask DisposeAsync()
    {
        Kill(Signal.Kill);
        await ExitAsync(Gone);
        _process.Dispose();
    }

    private void Keep(string? line)
    {
        if (line == null)
            return;
        lock (_gate)
        {
            _output.Append(line).Append('\n');
            if (_output.Length > MaxOutput)
                _output.Remove(0, _output.Length - MaxOutput / 2);
        }
    }

    [LibraryImport("libc", EntryPoint = "kill", SetLastError = true)]
    private static partial int SendSignal(int process, int signal);
}
