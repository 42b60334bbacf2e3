"""Style and script of the HTML pages: light and dark, phone and print; plain CSS and a few lines of JavaScript.

The page is whole without the script: it then shows one slice of each view, and tables stay in their order.
"""

from sdm_cli.runs.report import class_colour

STYLE = """
:root {
  --paper: #ffffff; --card: #f6f7f9; --ink: #1d232b; --soft: #57606c; --line: #d9dde3; --accent: #0b5cad;
  --toward: #000000; --strength: 78%; --lit: 0.14;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1d2126; --ink: #e7e9ec; --soft: #a3abb5; --line: #363c44; --accent: #7fb6f2;
    --toward: #ffffff; --strength: 85%; --lit: 0.22;
  }
}
* { box-sizing: border-box; }
html { background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 72rem; padding: 0 1.25rem 3rem; overflow-wrap: anywhere; }
header { padding-top: 2.5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 1.3rem; margin: 3rem 0 1rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 0.5rem; }
a { color: var(--accent); }
.subtitle { color: var(--soft); margin: 0.35rem 0 0; }
.note, footer { color: var(--soft); font-size: 0.875rem; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
nav ul, .legend, .tiles { list-style: none; padding: 0; margin: 1rem 0 0; display: flex; flex-wrap: wrap; }
nav ul { gap: 0.25rem 1.25rem; font-size: 0.9rem; }
.sentences { padding-left: 1.1rem; max-width: 48rem; }
.sentences li { margin: 0.25rem 0; }
.tiles { gap: 0.75rem; }
.tiles li { background: var(--card); border-radius: 0.5rem; padding: 0.75rem 1rem; min-width: 8.5rem; flex: 0 1 auto; }
.tiles b { display: block; white-space: nowrap; font-size: 1.6rem; line-height: 1.2; font-weight: 600; }
.tiles b, td { font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: 0.875rem; }
.scroll { overflow-x: auto; margin: 0 0 1.25rem; }
.scroll:focus-visible, summary:focus-visible, button:focus-visible, input:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px;
}
table { border-collapse: collapse; font-size: 0.9rem; min-width: 50%; overflow-wrap: normal; }
th, td { padding: 0.35rem 0.75rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom-color: var(--soft); vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 500; max-width: 20rem; overflow: hidden; text-overflow: ellipsis; }
th button { all: unset; cursor: pointer; }
th button::after { content: " \\2195"; color: var(--soft); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
summary { cursor: pointer; color: var(--accent); margin: 1rem 0 0.5rem; }
.charts, .views { display: grid; gap: 1.5rem 2rem; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.charts + .charts { margin-top: 2rem; }
.views { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; font-size: 0.95rem; margin-bottom: 0.25rem; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.chart text { paint-order: stroke; stroke: var(--paper); stroke-width: 3; }
.chart .name { fill: var(--ink); font-size: 12px; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart .begin { stroke: var(--soft); stroke-width: 1; }
.chart .curve { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
.chart .thick { stroke-width: 2.6; }
.chart .dashed { stroke-dasharray: 5 3; stroke-width: 1.3; }
.chart .alarm { fill: currentColor; }
.chart .area { fill: currentColor; opacity: var(--lit); }
.chart .box { fill: currentColor; fill-opacity: var(--lit); stroke: currentColor; stroke-width: 1.3; }
.chart .whisker { stroke: currentColor; stroke-width: 1.3; }
.chart .median { stroke: currentColor; stroke-width: 2.6; }
.chart circle { fill: currentColor; fill-opacity: 0.75; stroke: var(--paper); stroke-width: 0.6; }
.legend { gap: 0.2rem 1rem; margin-top: 0.4rem; font-size: 0.85rem; }
.legend li { display: flex; align-items: center; gap: 0.4rem; }
.key { display: inline-block; width: 1.1rem; border-top: 3px solid currentColor; flex: none; }
.key.dashed { border-top: 2px dashed currentColor; }
dl { max-width: 56rem; font-size: 0.9rem; }
dt { font-weight: 600; margin-top: 0.5rem; }
dd { margin: 0; }
.k-ink { color: var(--ink); }
.k-soft { color: var(--soft); }
.slice[hidden] { display: none; }
.slice svg { display: block; margin: 0 auto; max-width: 100%; height: auto; max-height: 24rem; }
.view { background: #0a0c0e; color: #e7e9ec; border-radius: 0.4rem; padding: 0.5rem; }
.view { display: flex; flex-direction: column; }
.view figcaption { font-weight: 500; font-size: 0.85rem; }
.view .stage { flex: 1; display: flex; flex-direction: column; justify-content: center; }
.view output { color: #b9c0c9; font-weight: 400; }
.view input { width: 100%; margin: 0.5rem 0 0; accent-color: #9cc7f5; }
.outline { fill: none; stroke: currentColor; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.prediction { stroke-width: 2; }
.reference { stroke-width: 1.6; stroke-dasharray: 5 4; stroke: color-mix(in srgb, currentColor 40%, #ffffff); }
.halo { stroke-width: 3.4; stroke: #000000; stroke-opacity: 0.75; }
.edge { fill: #e7e9ec; stroke: #0a0c0e; stroke-width: 0.14em; paint-order: stroke; font-family: system-ui, sans-serif; }
.edge { text-anchor: middle; dominant-baseline: central; }
.switches { border: 0; padding: 0; margin: 0.75rem 0 0; display: flex; gap: 0.25rem 1.25rem; flex-wrap: wrap; }
.overlays:has(#show-prediction:not(:checked)) .prediction { display: none; }
.overlays:has(#show-reference:not(:checked)) .reference { display: none; }
@media (max-width: 45rem) {
  h1 { font-size: 1.6rem; }
  body { padding: 0 1rem 2rem; }
  .views { grid-template-columns: minmax(0, 1fr); }
  .tiles li { flex: 1 1 8.5rem; padding: 0.6rem 0.75rem; }
  .tiles b { font-size: 1.3rem; }
}
@media print {
  :root {
    --paper: #ffffff; --card: #f6f7f9; --ink: #000000; --soft: #444444; --line: #cccccc; --accent: #000000;
    --toward: #000000; --strength: 78%; --lit: 0.14;
  }
  @page { margin: 15mm; }
  html { font-size: 10pt; }
  body { max-width: none; padding: 0; }
  header { padding-top: 0; }
  nav, .switches, .view input, summary { display: none; }
  .charts { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .views { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .scroll { overflow: visible; }
  th button::after { content: none; }
  .charts figure, .views, .tiles, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  h2 { margin-top: 1.5rem; }
  table { font-size: 8pt; }
  th, td { padding: 0.15rem 0.4rem; white-space: normal; }
  details::details-content { content-visibility: visible; }
  .view, .chart, .key { print-color-adjust: exact; }
}
"""

SCRIPT = """
for (const view of document.querySelectorAll('.view')) {
  const slices = view.querySelectorAll('.slice');
  const slider = view.querySelector('input'), said = view.querySelector('output');
  const show = () => {
    slices.forEach((slice, index) => { slice.hidden = index !== Number(slider.value); });
    said.textContent = slices[slider.value].dataset.place;
    slider.setAttribute('aria-valuetext', said.textContent);
  };
  if (slider) {
    slider.hidden = false;
    slider.addEventListener('input', show);
    show();
  }
}
for (const table of document.querySelectorAll('table.sortable')) {
  const headings = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  headings.forEach((heading, column) => {
    const button = document.createElement('button');
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener('click', () => {
      const down = heading.getAttribute('aria-sort') === 'ascending';
      const key = row => row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) => {
        const x = parseFloat(key(a)), y = parseFloat(key(b));
        if (column > 0 && (isNaN(x) || isNaN(y)) && !(isNaN(x) && isNaN(y))) return isNaN(x) ? 1 : -1;
        const order = column > 0 && !isNaN(x) ? x - y : key(a).localeCompare(key(b), 'en', {numeric: true});
        return down ? -order : order;
      });
      headings.forEach(other => other.removeAttribute('aria-sort'));
      heading.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      body.append(...rows);
    });
  });
}
addEventListener('beforeprint', () => {
  for (const details of document.querySelectorAll('details')) details.open = true;
});
"""


def class_style(n_classes: int) -> str:
    """Colours of so many foreground classes: toned for the paper in charts, full over scans."""
    rules = []
    for index in range(1, n_classes + 1):
        colour = class_colour(index)
        rules.append(f".k{index} {{ color: color-mix(in srgb, {colour} var(--strength), var(--toward)); }}")
        rules.append(f".view .k{index} {{ color: {colour}; }}")
    return "\n".join(rules) + "\n"
