"""The funnel drawn: a stream of documents that falls from step to step, what is dropped turning off to its reason.

Widths are numbers of documents, the same for the stream and for what leaves it, as in a Sankey diagram. Records that
never were documents, two thirds of a crawl's, are named and not drawn. The drawing is SVG text whose colours are the
page's; it stands in the page and fetches nothing.
"""

from __future__ import annotations

from html import escape

from jaxgpt.core.page import size
from jaxgpt.curation.funnel import reasons, share

WIDTH, STREAM = 1000, 300  # of the drawing, and of the stream where all documents are in it
NAMES, LEFT, LABELS, BYTES = 158, 176, 540, 868  # where names end, and where stream, reasons and amounts of text begin
ROW, LINE, TURN, HEAD = 54, 19, 9, 34  # least height of a step, height of a label, radius of a turn, height of the head
MOST = 6  # reasons of a step that have a label of their own
INK, MUTED, KEPT, LOST = "var(--ink)", "var(--muted)", "var(--series-0)", "var(--series-1)"


def picture(corpus: dict) -> str:
    """The drawing of all steps."""
    steps = corpus["steps"]
    scale, most = STREAM / max(1, steps[0]["documents"]), _most_text(steps)
    y, parts = HEAD, [_text(LEFT, 16, "documents", MUTED), _text(LABELS + 10, 16, "dropped, and why", MUTED),
                      _text(BYTES, 16, "text kept", MUTED)]
    for number, step in enumerate(steps):
        height, drawn = _row(step, y, scale, most, read=number == 0)
        parts += drawn
        y += height
    width, end = _wide(steps[-1]["documents"], scale), steps[-1]["documents"]
    parts.append(f'<path d="M{LEFT},{y} h{width:.1f} l{-width / 2:.1f},14 z" fill="{KEPT}"/>')
    parts.append(_text(NAMES, y + 14, f"{end:,} left", INK, anchor="end", bold=True))
    return (f'<svg viewBox="0 0 {WIDTH} {y + 24:.1f}" role="img" xmlns="http://www.w3.org/2000/svg" font-size="13" '
            f'font-family="inherit"><title>Documents kept and dropped by each step</title>{"".join(parts)}</svg>')


def _row(step: dict, y: float, scale: float, most: int, *, read: bool) -> tuple[float, list[str]]:
    """The height of a step, and its drawing; of the step that reads, what is no document is only named."""
    taken, left = step["in"]["documents"], step["documents"]
    flows = _flows(step)
    right, below, drawn = LEFT + taken * scale, y + 14, []
    for label, count in flows:
        thick = 0.0 if read else max(1.5, count * scale)
        if not read:
            drawn.append(_turn(right - count * scale, right, y, below + max(0, (LINE - thick) / 2), thick))
        middle = below + max(LINE, thick) / 2
        drawn.append(_text(LABELS + 10, middle + 4.5, label, INK,
                           more=f"{count:,} · {share(count, taken)}"))
        right -= count * scale
        below += max(LINE, thick) + 3
    height = max(ROW, below - y + 10)
    width = _wide(left, scale)
    bar = 118 * min(1.0, step["bytes"] / most)
    drawn += [f'<path d="M0,{y} H{WIDTH}" stroke="var(--line)"/>',
              f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{height:.1f}" fill="{KEPT}"/>',
              _text(NAMES, y + 23, step["step"], INK, anchor="end", bold=True),
              _text(NAMES, y + 41, f"{left:,}", MUTED, anchor="end"),
              _text(BYTES, y + 23, size(step["bytes"]), INK, more=_cut(step)),
              f'<rect x="{BYTES}" y="{y + 31}" width="{max(1.0, bar):.1f}" height="7" rx="2" fill="{KEPT}" '
              'opacity="0.55"/>']
    return height, drawn


def _cut(step: dict) -> str:
    """How much less text there is after a step, where it is one percent and more."""
    lost = step["in"]["bytes"] - step["bytes"]
    return f"−{share(lost, step['in']['bytes'])}" if lost >= 0.01 * step["in"]["bytes"] > 0 else ""


def _most_text(steps: list[dict]) -> int:
    """The most bytes of text after a step, once markup is gone: after the last step that leaves less than a third."""
    mean = [step["bytes"] / max(1, step["documents"]) for step in steps]
    start = max((i for i in range(1, len(steps)) if mean[i] < mean[i - 1] / 3), default=0)
    return max(1, *(step["bytes"] for step in steps[start:]))


def _flows(step: dict) -> list[tuple[str, int]]:
    """(reason, documents), the commonest first; the rare ones together."""
    found = [(name, amount["documents"]) for name, amount in reasons(step)]
    if len(found) > MOST:
        rest = found[MOST - 1:]
        found = found[:MOST - 1] + [(f"{len(rest)} other reasons", sum(count for _, count in rest))]
    return found


def _turn(a: float, b: float, top: float, y: float, thick: float) -> str:
    """A flow that leaves the stream at `top`, between a and b, and turns to the right at height y."""
    wide = max(b - a, 0.0)
    a = b - max(wide, 1.5)
    outer = TURN + thick
    path = (f"M{b:.1f},{top} V{y - TURN:.1f} a{TURN},{TURN} 0 0 0 {TURN},{TURN} H{LABELS} v{thick:.1f} "
            f"H{b + TURN:.1f} a{outer:.1f},{outer:.1f} 0 0 1 {-outer:.1f},{-outer:.1f} V{top} H{b:.1f} z")
    return f'<path d="{path}" fill="{LOST}" opacity="0.6"/>'


def _wide(count: int, scale: float) -> float:
    return max(1.5, count * scale) if count else 0.0


def _text(x: float, y: float, text: str, fill: str, *, anchor: str = "start", bold: bool = False,
          more: str = "") -> str:
    shown = text if len(text) < 34 else text[:33] + "…"
    weight = ' font-weight="600"' if bold else ""
    tail = f'<tspan fill="{MUTED}" dx="8">{escape(more)}</tspan>' if more else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" text-anchor="{anchor}"{weight}>{escape(shown)}{tail}</text>'
