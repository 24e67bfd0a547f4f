using Xunit;
using static System.StringComparison;

namespace Ses.Tests;

/// <summary>Tables for people.</summary>
public sealed class TextTableTests
{
    private static readonly DateTime Noon = new(2026, 11, 22, 12, 0, 0, DateTimeKind.Utc);

    private static string[] Written(int width, string[] columns, params object?[][] rows)
    {
        var table = new TextTable(width);
        table.Begin(columns);
        foreach (var row in rows)
            table.Add(row);
        return table.End().TrimEnd('\n').Split('\n');
    }

    [Fact]
    public void FiguresStandRightAndSpansOfTimeHaveTheirUnits() => Assert.Equal(
        [
            "SERVICE  AVAILABILITY        DOWN  OUTAGES   MEAN  OPEN",
            "etcd           99.999  1 h 32 min       12  7.5 s  yes",
            "payment       100.000           -        0      -  no",
        ],
        Written(int.MaxValue, ["service", "availability", "down_seconds", "outages", "mean_seconds", "open"],
            ["etcd", 99.9999, 5520.0, 12, 7.5, true], ["payment", 100.0, 0.0, 0, null, false]));

    [Theory]
    [InlineData("ascii", 5)]
    [InlineData("支払い", 6)]
    [InlineData("한국어", 6)]
    [InlineData("ﾊﾝｶｸ", 4)]
    [InlineData("ｆｕｌｌ", 8)]
    [InlineData("e\u0301te\u0301", 3)]
    [InlineData("🔥x", 3)]
    [InlineData("𠮷", 2)]
    [InlineData("Größe…", 6)]
    public void TextsAreMeasuredInColumns(string text, int columns)
    {
        Assert.Equal(columns, Terminal.Columns(text));
        var lines = Written(int.MaxValue, ["service", "status"], [text, "up"], ["12345678", "down"]);
        Assert.Equal(lines[2].IndexOf("down", Ordinal),
            Terminal.Columns(lines[1][..lines[1].IndexOf("up", Ordinal)]));
    }

    [Theory]
    [InlineData("short", 5, "short")]
    [InlineData("longer", 5, "long…")]
    [InlineData("支払い", 5, "支払…")]
    [InlineData("支払い", 4, "支…")]
    [InlineData("e\u0301te\u0301s", 3, "e\u0301t…")]
    public void CutTextFitsAndSaysThatItIsCut(string text, int columns, string cut)
    {
        Assert.Equal(cut, Terminal.Cut(text, columns));
        Assert.InRange(Terminal.Columns(cut), 0, columns);
    }

    private static readonly string[] Status =
        ["partition", "platform", "service", "facet", "location", "status", "since", "time", "description", "last_seen", "watched"];

    private static readonly object?[][] Services =
    [
        ["INS", "INS", "etcd", "Down", "n1:2379", "down", Noon, Noon, new string('x', 100), Noon.AddMilliseconds(1), null],
        ["INS", "INS", "payment", "Down", "n2:2379", "up", Noon, Noon, "Down resolved", Noon.AddMilliseconds(1), null],
    ];

    [Fact]
    public void NarrowTerminalGetsWhatIsOfMostUse() => Assert.Equal(
        [
            "PLATFORM  SERVICE  FACET  LOCATION  STATUS  SINCE                 DESCRIPTION",
            "INS       etcd     Down   n1:2379   down    2026-11-22T12:00:00Z  xxxxxxxxxxxxx…",
            "INS       payment  Down   n2:2379   up      2026-11-22T12:00:00Z  Down resolved",
            "(--format csv also has: PARTITION, TIME, LAST SEEN, WATCHED)",
        ],
        Written(80, Status, Services));

    [Fact]
    public void WhatIsWrongIsReadOnANarrowTerminal() => Assert.Equal(
        [
            "PARTITION  ALERTNAME  REASON              LABELS",
            "INS        Odd        it has no startsAt  {alertname=\"Odd\", severity=\"warning\",…",
            "(--format csv also has: RECORDED, ID)",
        ],
        Written(80, ["recorded", "partition", "alertname", "reason", "labels", "id"],
            [Noon, "INS", "Odd", "it has no startsAt", "{alertname=\"Odd\", severity=\"warning\", team=\"x\"}", new string('0', 32)]));

    [Fact]
    public void NoLineIsLongerThanTheTerminal()
    {
        for (var width = 1; width < 260; width++)
        {
            var lines = Written(width, Status, Services);
            Assert.All(lines, l => Assert.InRange(Terminal.Columns(l), 0, width));
            // What fits is not cut.
            Assert.Equal(width >= 230, lines.Length == 3 && !lines.Any(l => l.Contains('…')));
        }
    }

    [Fact]
    public void ColumnsKeepTheirWidthOverAllRows()
    {
        var table = new TextTable(40);
        table.Begin(["service", "description"]);
        var text = "";
        for (var i = 0; i < 3000; i++)
        {
            table.Add([$"s{i}", new string('x', i % 100)]);
            if (table.IsFull)
                text += table.Take();
        }
        text += table.End();
        var lines = text.TrimEnd('\n').Split('\n');
        Assert.Equal(3001, lines.Length);
        Assert.All(lines, l => Assert.InRange(l.Length, 1, 40));
    }

    [Theory]
    [InlineData(0, "0 B")]
    [InlineData(1023, "1023 B")]
    [InlineData(1536, "1.5 KiB")]
    [InlineData(71512064, "68.2 MiB")]
    [InlineData(5e15, "4547.5 TiB")]
    public void BytesHaveTheirLargestUnit(double bytes, string text) => Assert.Equal(text, Quantity.Sized(bytes));
}
