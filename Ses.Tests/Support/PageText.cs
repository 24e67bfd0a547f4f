using System.Globalization;
using System.Net;
using System.Text;

namespace Ses.Tests.Support;

/// <summary>An element of a page.</summary>
/// <param name="Text">What stands in it and its children, with single spaces.</param>
/// <param name="Within">The elements in it, each after those in it.</param>
internal sealed record PageElement(
    string Name, IReadOnlyDictionary<string, string> Attributes, string Text, IReadOnlyList<PageElement> Within)
{
    public IEnumerable<PageElement> All(string name) => Within.Where(e => e.Name == name);
}

/// <summary>A page, read as strictly as markup can be: nothing is repaired.</summary>
/// <param name="Skeleton">Its tags and the names of their attributes, without any text or value.</param>
internal sealed record PageText(string Skeleton, IReadOnlyList<PageElement> Elements)
{
    private static readonly HashSet<string> Void = ["meta", "link", "input", "br"];

    private static readonly string[] Escapes = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];

    public IEnumerable<PageElement> All(string name) => Elements.Where(e => e.Name == name);

    public string TextOf(string name) => All(name).First().Text;

    /// <exception cref="FormatException">It is not well-formed; the message says where.</exception>
    public static PageText Parse(string page) => new Reader(page).Read();

    private sealed class Reader(string page)
    {
        private readonly StringBuilder _skeleton = new();
        private readonly List<PageElement> _elements = [];
        private readonly Stack<(string Name, Dictionary<string, string> Attributes, StringBuilder Text, int First)>
            _open = [];
        private int _at;

        public PageText Read()
        {
            Expect("<!DOCTYPE html>");
            while (_at < page.Length)
                Step();
            return _open.Count == 0 ? new PageText(_skeleton.ToString(), _elements)
                : throw Fault($"{_open.Peek().Name} is not closed");
        }

        private void Step()
        {
            if (page[_at] != '<')
                Say(Text('<'));
            else if (At("</"))
                CloseTag();
            else
                OpenTag();
        }

        private void OpenTag()
        {
            Expect("<");
            var name = Name();
            var attributes = new Dictionary<string, string>();
            while (Blank())
            {
                var attribute = Name();
                var value = "";
                if (At("="))
                {
                    Expect("=\"");
                    value = Text('"');
                    Expect("\"");
                }
                if (!attributes.TryAdd(attribute, value))
                    throw Fault($"{attribute} stands twice");
            }
            var isShape = name == "path" && At("/");
            Expect(isShape ? "/>" : ">");
            _skeleton.Append(CultureInfo.InvariantCulture, $"<{name} {string.Join(' ', attributes.Keys)}>\n");
            if (isShape || Void.Contains(name))
            {
                _elements.Add(new PageElement(name, attributes, "", []));
                Say(" ");
                return;
            }
            _open.Push((name, attributes, new StringBuilder(), _elements.Count));
            if (name == "style")
            {
                var end = page.IndexOf("</style>", _at, StringComparison.Ordinal);
                Say(page[_at..end]);
                _at = end;
            }
        }

        private void CloseTag()
        {
            Expect("</");
            var name = Name();
            Expect(">");
            if (_open.Count == 0 || _open.Peek().Name != name)
                throw Fault($"{name} is closed and was not the last to be opened");
            var (_, attributes, text, first) = _open.Pop();
            _skeleton.Append(CultureInfo.InvariantCulture, $"</{name}>\n");
            var told = name == "style" ? text.ToString() : Single(text.ToString());
            _elements.Add(new PageElement(name, attributes, told, _elements[first..]));
        }

        private bool Blank()
        {
            var start = _at;
            while (_at < page.Length && page[_at] is ' ' or '\n')
                _at++;
            return _at > start && page[_at] is not '>';
        }

        private string Name()
        {
            var start = _at;
            while (_at < page.Length && (char.IsAsciiLetterOrDigit(page[_at]) || page[_at] == '-'))
                _at++;
            return _at > start ? page[start.._at] : throw Fault("a name is missing");
        }

        /// <summary>Text up to a character that is markup, decoded.</summary>
        private string Text(char end)
        {
            var start = _at;
            for (; _at < page.Length && page[_at] != end; _at++)
            {
                if (page[_at] is '<' || (char.IsControl(page[_at]) && page[_at] != '\n'))
                    throw Fault("a character has no place in text");
                if (page[_at] == '&' && !Array.Exists(Escapes, At))
                    throw Fault("an ampersand begins no escape");
            }
            return WebUtility.HtmlDecode(page[start.._at]);
        }

        private void Say(string text)
        {
            foreach (var (_, _, heard, _) in _open)
                heard.Append(text);
        }

        private bool At(string text) => string.CompareOrdinal(page, _at, text, 0, text.Length) == 0;

        private void Expect(string text)
        {
            if (!At(text))
                throw Fault($"{text} is missing");
            _at += text.Length;
        }

        private static string Single(string text) =>
            string.Join(' ', text.Split([' ', '\n'], StringSplitOptions.RemoveEmptyEntries));

        private FormatException Fault(string what) => new(
            $"{what} at {_at}: {page[Math.Max(0, _at - 60).._at]}"
            + $">>>{page[_at..Math.Min(page.Length, _at + 60)]}");
    }
}

/// <summary>Payloads of alerts in the SeS dialect.</summary>
internal static class Dialect
{
    public static string Payload(params string[] alerts) =>
        $$"""{"version":"4","alerts":[{{string.Join(',', alerts)}}]}""";

    public static string Alert(ServiceKey service, string status, DateTime time, string description) => $$$"""
        {"status":"firing","startsAt":"{{{Rfc3339.Format(time)}}}",
        "labels":{"alertname":{{{Quoted(Valid(service.Facet))}}},"platform":{{{Quoted(service.Platform)}}},
        "service":{{{Quoted(service.Service)}}},"facet":{{{Quoted(service.Facet)}}},
        "status":{{{Quoted(status)}}}},
        "annotations":{"location":{{{Quoted(service.Location)}}},"description":{{{Quoted(description)}}}}}
        """;

    /// <summary>A string of JSON, also of what is no valid Unicode.</summary>
    public static string Quoted(string text) => $"\"{string.Concat(text.Select(c => $"\\u{(int)c:x4}"))}\"";

    /// <summary>With a mark for each half of a pair that has no other half.</summary>
    public static string Valid(string text) => string.Concat(text.EnumerateRunes());

    /// <summary>What the page shows of a text: one line, and a mark for what cannot be shown.</summary>
    public static string Shown(string text) => string.Concat(text.EnumerateRunes().Select(
        r => r.Value is '\n' or '\r' or '\t' ? " " : Rune.IsControl(r) ? "\ufffd" : r.ToString()));
}
