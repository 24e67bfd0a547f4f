// What is wrong with the status page that is shown, one text each. Opens all details.
// arguments[0]: how wide the view is.
const wrong = [], root = document.documentElement;
const all = selector => [...document.querySelectorAll(selector)];
const name = e => `${e.localName}.${e.getAttribute('class') || ''} "${(e.textContent || '').slice(0, 60)}"`;

// Nothing that a page without hostile names has not.
const elements = new Set(`html head meta title link style body main header h1 h2 h3 p section div ul li a span b bdi br
    strong small time form input label button nav details summary iframe svg pattern path rect dl dt dd pre code
    table thead tbody tr th td footer`.split(/\s+/));
const attributes = new Set(`lang charset name content rel href class method action type value for id maxlength
    aria-label aria-current aria-hidden open role tabindex viewBox preserveAspectRatio patternUnits patternTransform
    d x width height datetime src title scope`.split(/\s+/));
for (const e of all('*')) {
    if (!elements.has(e.localName)) wrong.push(`there is an element ${e.localName}`);
    for (const a of e.attributes)
        if (!attributes.has(a.name)) wrong.push(`there is an attribute ${a.name}`);
}

// It fits; what is wider than a phone scrolls by itself.
const fits = when => {
    if (root.scrollWidth > root.clientWidth)
        wrong.push(`${when} it scrolls sideways: ${root.scrollWidth} in ${root.clientWidth}`);
    for (const e of all('body :not(.skip,.hidden,.hidden *,.scroll *)')) {
        const box = e.getBoundingClientRect();
        if (box.width > 0 && (box.right > root.clientWidth + 1 || box.left < -1))
            wrong.push(`${when} it sticks out: ${name(e)}`);
    }
};
if (innerWidth !== arguments[0]) wrong.push(`the width is ${innerWidth}`);
fits('at first');
for (const d of all('details')) d.open = true;
fits('with all open');

// It can be read: contrast of WCAG 2.2, 1.4.6 (AAA), and of what is drawn, 1.4.11.
const part = c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
const light = c => .2126 * part(c[0]) + .7152 * part(c[1]) + .0722 * part(c[2]);
const ratio = (a, b) => (Math.max(light(a), light(b)) + .05) / (Math.min(light(a), light(b)) + .05);
const color = text => text.match(/[\d.]+/g).map(Number);
const back = e => {
    for (; e; e = e.parentElement) {
        const c = color(getComputedStyle(e).backgroundColor);
        if (c.length === 3 || c[3] === 1) return c;
        if (c[3] !== 0) wrong.push('a background lets another through');
    }
    wrong.push('there is no background');
    return [255, 255, 255];
};
const faint = new Map();
const read = e => {
    const style = getComputedStyle(e), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const got = ratio(color(style.color), back(e));
    if (style.opacity !== '1') wrong.push(`opacity of ${name(e)}`);
    if (got < (large ? 4.5 : 7)) faint.set(`${style.color} on ${back(e)}`, `${got.toFixed(2)} ${name(e)}`);
};
let texts = 0;
for (const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); walk.nextNode();) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || e.closest('svg')) continue;
    texts++;
    read(e);
}
if (texts < 3) wrong.push('there is no text');
all('input:not([type=hidden])').forEach(read);
// What was down or degraded stands out from what was up, and from the page.
const up = document.querySelector('path.b');
for (const e of all('path.d,path.g')) {
    const stroke = color(getComputedStyle(e).stroke);
    for (const behind of [back(e.closest('svg').parentElement), up ? color(getComputedStyle(up).stroke) : []])
        if (behind.length && ratio(stroke, behind) < 3)
            faint.set(`a strip's ${e.getAttribute('class')} on ${behind}`, ratio(stroke, behind).toFixed(2));
}
for (const [colors, what] of faint) wrong.push(`contrast of ${colors} is ${what}`);

// Strips tell by shape and in words too.
const widths = ['d', 'g'].map(c => document.querySelector(`path.${c}`)).filter(e => e).map(e => getComputedStyle(e).strokeWidth);
if (new Set(widths).size !== widths.length) wrong.push(`widths do not tell: ${widths}`);
for (const e of all('svg:not(.hidden)')) {
    if (e.tabIndex >= 0 || e.querySelector('a:not([tabindex="-1"])')) wrong.push('a strip is a tab stop');
    if (!/^(no outage|\d+ outages?, \d)/.test(e.getAttribute('aria-label') || ''))
        wrong.push(`a strip does not tell its outages: ${e.getAttribute('aria-label')}`);
}

// The rest.
for (const e of all('time'))
    if (!/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/.test(e.dateTime) || e.textContent.length < 5
        || !e.dateTime.slice(0, 16).replace('T', ' ').endsWith(e.textContent)) wrong.push(`time ${e.outerHTML}`);
if (all('h1,h2,h3,h4,h5,h6')[0]?.localName !== 'h1' || all('h1').length !== 1)
    wrong.push('it does not begin with its one h1');
for (const e of all('input:not([type=hidden])'))
    if (!e.labels.length) wrong.push('a field has no label');
if (!document.body.innerText.includes('UTC')) wrong.push('it does not say UTC');
if (all('meta[http-equiv]').length) wrong.push('it renews itself as a whole');
return [...new Set(wrong)];
