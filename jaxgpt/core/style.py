"""The look of every report: one style sheet, light and dark, from a telephone to a wide screen."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fafaf8; --surface: #ffffff; --ink: #1b1d21; --muted: #686d76; --line: #e6e6e2; --soft: #f3f3f0;
  --accent: #2563c9; --band: rgb(37 99 201 / 0.06);
  --series-0: #2563c9; --series-1: #c8601a; --series-2: #15866b; --series-3: #a23d8f; --series-4: #6b7280;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #131416; --surface: #1a1c1f; --ink: #e7e8ea; --muted: #989da6; --line: #2c2f34; --soft: #212327;
    --accent: #82adff; --band: rgb(130 173 255 / 0.08);
    --series-0: #82adff; --series-1: #f0a367; --series-2: #5cc9ad; --series-3: #dc8fce; --series-4: #a6abb4;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
    "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1080px; margin: 0 auto; padding: 72px 32px 96px; }
h1 { margin: 4px 0 20px; font-size: 42px; line-height: 1.15; letter-spacing: -0.02em; font-weight: 650; }
h2 { margin: 76px 0 20px; font-size: 22px; line-height: 1.3; letter-spacing: -0.01em; font-weight: 650; }
h3 { margin: 32px 0 12px; font-size: 16px; font-weight: 600; }
p { margin: 0 0 16px; max-width: 44em; }
a { color: var(--accent); }
.eyebrow { margin: 0; color: var(--muted); font-size: 14px; }
.lead { font-size: 18.5px; line-height: 1.62; }
.note { color: var(--muted); font-size: 14px; line-height: 1.55; }
code, pre {
  font-family: ui-monospace, SFMono-Regular, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
pre { margin: 0; font-size: 13.5px; line-height: 1.55; white-space: pre-wrap; overflow-wrap: anywhere; }

.headlines {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 1px;
  margin: 40px 0 28px;
  background: var(--line); border: 1px solid var(--line); border-radius: 12px; overflow: hidden;
}
.headline { background: var(--surface); padding: 22px 24px 20px; }
.headline b {
  display: block; font-size: 29px; line-height: 1.2; font-weight: 650; letter-spacing: -0.02em;
  white-space: nowrap;
}
.headline span { display: block; margin-top: 8px; font-size: 14.5px; line-height: 1.4; }
.headline small { display: block; margin-top: 6px; color: var(--muted); font-size: 13px; line-height: 1.45; }

.command { padding: 14px 18px; background: var(--soft); border-radius: 8px; }
.command::before { content: "$ "; color: var(--muted); user-select: none; }

.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 14.5px; line-height: 1.45; }
th {
  padding: 0 16px 10px 0; color: var(--muted); font-size: 13px; font-weight: 500; text-align: left;
  vertical-align: bottom; white-space: nowrap;
}
td { padding: 11px 16px 11px 0; border-top: 1px solid var(--line); vertical-align: top; }
td:last-child, th:last-child { padding-right: 0; }
td.first { font-weight: 600; white-space: nowrap; }
td.again { border-top-color: transparent; }
tr.again td:not(.again) { border-top-style: dotted; }
.number { text-align: right; white-space: nowrap; }
td.strong { font-weight: 600; }

.panels { display: grid; gap: 20px; }
.columns-2 { grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); }
.columns-3 { grid-template-columns: repeat(auto-fill, minmax(min(290px, 100%), 1fr)); }
figure {
  margin: 0; padding: 18px 16px 12px; background: var(--surface); border: 1px solid var(--line);
  border-radius: 12px;
}
figure svg { display: block; width: 100%; height: auto; }
.below { margin-top: 32px; }

.sample {
  margin: 0 0 20px; background: var(--surface); border: 1px solid var(--line); border-radius: 12px;
  overflow: hidden;
}
.prompt { padding: 13px 20px; background: var(--soft); border-bottom: 1px solid var(--line); }
.prompt pre { font-weight: 600; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(240px, 100%), 1fr)); }
.column { padding: 14px 20px 16px; box-shadow: -1px -1px 0 var(--line); }
.label { margin: 0 0 6px; color: var(--muted); font-size: 13px; line-height: 1.4; }
.cut { color: var(--muted); }

dl {
  display: grid; grid-template-columns: minmax(140px, max-content) minmax(0, 1fr); gap: 7px 28px;
  margin: 0; font-size: 14.5px;
}
dt { color: var(--muted); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; }
.pair {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(380px, 100%), 1fr));
  gap: 0 56px; align-items: start;
}
details { border-top: 1px solid var(--line); }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { padding: 12px 0; cursor: pointer; font-weight: 600; font-size: 15px; }
summary span { color: var(--muted); font-weight: 400; }
details > :not(summary) { margin: 4px 0 22px; }
details dl {
  font-size: 13.5px;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
footer { margin-top: 80px; padding-top: 20px; border-top: 1px solid var(--line); }

@media (max-width: 640px) {
  main { padding: 36px 18px 64px; }
  h1 { font-size: 32px; }
  h2 { margin-top: 56px; }
  .lead { font-size: 17px; }
  figure { padding: 14px 8px 8px; }
  table { min-width: 720px; }
  dl { grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 7px 16px; }
}
@media print { .headline, figure, .sample { break-inside: avoid; } body { background: #fff; } }
"""
