namespace Ses.Tests.Support;

/// <summary>A clock that stands still until it is told; its timers fire when it is advanced.</summary>
internal sealed class ManualClock(DateTime utcNow) : TimeProvider
{
    private readonly Lock _gate = new();
    private readonly List<ManualTimer> _timers = [];
    private DateTime _utcNow = utcNow;
    private long _timestamp;

    public DateTime UtcNow
    {
        get
        {
            lock (_gate)
                return _utcNow;
        }
        set
        {
            lock (_gate)
                _utcNow = value;
        }
    }

    /// <summary>In ticks of 100 ns. Set by itself it fires no timer.</summary>
    public long Timestamp
    {
        get
        {
            lock (_gate)
                return _timestamp;
        }
        set
        {
            lock (_gate)
                _timestamp = value;
        }
    }

    public override long TimestampFrequency => TimeSpan.TicksPerSecond;

    public override DateTimeOffset GetUtcNow() => new(DateTime.SpecifyKind(UtcNow, DateTimeKind.Utc));

    public override long GetTimestamp() => Timestamp;

    /// <summary>Moves the time and the timestamp, and fires each timer that is due once.</summary>
    public void Advance(TimeSpan time)
    {
        List<ManualTimer> due;
        lock (_gate)
        {
            _utcNow += time;
            _timestamp += time.Ticks;
            due = [.. _timers.Where(t => t.Due <= _timestamp)];
            foreach (var timer in due)
                timer.Due = timer.Period > 0 ? _timestamp + timer.Period : long.MaxValue;
        }
        foreach (var timer in due)
            timer.Fire();
    }

    public override ITimer CreateTimer(
        TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
    {
        var timer = new ManualTimer(this, callback, state);
        timer.Change(dueTime, period);
        lock (_gate)
            _timers.Add(timer);
        return timer;
    }

    private sealed class ManualTimer(ManualClock clock, TimerCallback callback, object? state) : ITimer
    {
        public long Due { get; set; }

        public long Period { get; private set; }

        public void Fire() => callback(state);

        public bool Change(TimeSpan dueTime, TimeSpan period)
        {
            lock (clock._gate)
            {
                Due = dueTime < TimeSpan.Zero ? long.MaxValue : clock._timestamp + dueTime.Ticks;
                Period = period.Ticks;
            }
            return true;
        }

        public void Dispose()
        {
            lock (clock._gate)
                clock._timers.Remove(this);
        }

        public ValueTask DisposeAsync()
        {
            Dispose();
            return ValueTask.CompletedTask;
        }
    }
}
