"""The funnel: what each step of a recipe took in, kept and dropped, as rows, as Markdown and for the terminal.

All of it is worked out from what corpus.json holds (see pipeline.py); funnel_html.py draws the same as a page.
"""

from __future__ import annotations

from jaxgpt.core.page import cell, fence, markdown_table, percent, size
from jaxgpt.curation.split import SPLITS

COLUMNS = ("Step", "In", "Kept", "Dropped", "Share", "Text kept")
REASON_COLUMNS = ("Reason", "Documents", "Share", "Text")
SOURCE_COLUMNS = ("Source", "Read", "Kept", "Share", "Text kept")
MOST_SOURCES = 30
LINES = 12  # of an example


def stats(corpus: dict) -> dict[str, dict]:
    """{step or split: {documents, bytes, by_source}}: what was left after each step, and on each side."""
    left = {step["step"]: step for step in corpus["steps"]} | corpus["splits"]
    return {name: {key: amount[key] for key in ("documents", "bytes", "by_source")} for name, amount in left.items()}


def kept(corpus: dict) -> dict:
    """Documents and bytes at the end."""
    return {unit: corpus["steps"][-1][unit] for unit in ("documents", "bytes")}


def summary(corpus: dict) -> str:
    """The funnel in a sentence or two."""
    first, end = corpus["steps"][0], kept(corpus)
    files = f"{corpus['parts']:,} file{'s' if corpus['parts'] != 1 else ''}"
    text = (f"Of {first['documents']:,} documents in {files} ({size(corpus['bytes'])}) {end['documents']:,} are left "
            f"({share(end['documents'], first['documents'])}), {size(end['bytes'])} of text.")
    worst = max(corpus["steps"][1:], key=lambda step: step["in"]["documents"] - step["documents"], default=first)
    lost = worst["in"]["documents"] - worst["documents"]
    if lost and worst is not first:
        text += f" The step {worst['step']} drops most, {lost:,}, and most of those for “{reasons(worst)[0][0]}”."
    return text


def unread(corpus: dict) -> list[str]:
    """A sentence for each kind of record that could not be read, with an example."""
    found = []
    for reason, amount in corpus["steps"][0]["dropped"].items():
        if reason.startswith("unreadable"):
            values = [str(example["value"]) for example in examples_of(corpus, "read", reason) if example["value"]]
            found.append(f"{reason}: {amount['documents']:,}" + (f", such as {values[0]}" if values else ""))
    return found


def rows(corpus: dict) -> list[tuple[str, ...]]:
    """A row of COLUMNS for each step."""
    found = []
    for step in corpus["steps"]:
        taken, left = step["in"]["documents"], step["documents"]
        found.append((step["step"], f"{taken:,}", f"{left:,}", f"{taken - left:,}" if taken > left else "",
                      share(taken - left, taken) if taken > left else "", size(step["bytes"])))
    return found


def reasons(step: dict) -> list[tuple[str, dict]]:
    """(reason, documents and bytes), the commonest first."""
    return sorted(step["dropped"].items(), key=lambda item: (-item[1]["documents"], item[0]))


def reason_rows(step: dict) -> list[tuple[str, ...]]:
    """A row of REASON_COLUMNS for each reason of a step."""
    taken = step["in"]["documents"]
    return [(name, f"{amount['documents']:,}", share(amount["documents"], taken),
             size(amount["bytes"]) if amount["bytes"] else "") for name, amount in reasons(step)]


def source_rows(corpus: dict) -> list[tuple[str, ...]]:
    """A row of SOURCE_COLUMNS for each source, the largest first; many small ones share the last row."""
    read, left = corpus["steps"][0]["by_source"], corpus["steps"][-1]["by_source"]
    nothing = {"documents": 0, "bytes": 0}
    found = sorted(read, key=lambda name: (-read[name]["documents"], name))
    groups = [(name, [name]) for name in found[:MOST_SOURCES]]
    if rest := found[MOST_SOURCES:]:
        groups.append((f"{len(rest):,} others", rest))
    result = []
    for title, names in groups:
        before = sum(read[name]["documents"] for name in names)
        after, text = (sum(left.get(name, nothing)[unit] for name in names) for unit in ("documents", "bytes"))
        result.append((title, f"{before:,}", f"{after:,}", share(after, before), size(text)))
    return result


def settings_of(corpus: dict, step: str) -> list[tuple[str, str]]:
    """(field, value) of a step; `--set` takes the same names."""
    chosen = corpus["settings"].get(step, {})
    return [(name, _value(value)) for name, value in chosen.items() if name not in ("type", "name", "measures")]


def examples_of(corpus: dict, step: str, reason: str) -> list[dict]:
    """The examples of a reason; of "kept" those that are left in the end."""
    return [example for example in corpus["examples"] if (example["step"], example["reason"]) == (step, reason)]


def about_example(example: dict) -> str:
    """Where an example is from, and what was measured."""
    value = example["value"]
    measured = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return ", ".join(part for part in (example["url"] or example["source"], measured) if part)


def excerpt(example: dict) -> str:
    """The first lines of an example, as they are."""
    lines = example["text"].strip().splitlines()
    return "\n".join(lines[:LINES])


def share(part: int, whole: int) -> str:
    """A part of a whole in percent, with a decimal where it is small.

    >>> share(1, 4), share(1, 400), share(0, 0)
    ('25%', '0.25%', '0%')
    """
    ratio = part / whole if whole else 0.0
    return f"{ratio:.2%}" if 0 < ratio < 0.01 else percent(ratio)


def _value(value) -> str:
    if isinstance(value, list):
        text = ", ".join(_value(item) for item in value)
        return text if len(text) < 200 else f"{text[:200]}…"
    if isinstance(value, dict):
        inner = ", ".join(f"{name} {_value(item)}" for name, item in value.items() if name != "type")
        return f"{value['type']}({inner})" if "type" in value else inner
    return "" if value is None else str(value)


# --- for the terminal ------------------------------------------------------------------------------------------------

def text_table(corpus: dict) -> str:
    """The funnel as lines of text."""
    table = [COLUMNS, *rows(corpus)]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    lines = []
    for row in table:
        cells = [text.ljust(width) if i == 0 else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


# --- as Markdown -----------------------------------------------------------------------------------------------------

def markdown(corpus: dict, title: str) -> str:
    """The whole report; the page beside it says the same with a picture."""
    parts = [f"# {cell(title)}", cell(summary(corpus)), _bars(corpus), markdown_table(COLUMNS, rows(corpus), numbers=5)]
    for step in corpus["steps"]:
        if step["dropped"] or settings_of(corpus, step["step"]):
            parts += _step(corpus, step)
    parts += ["## By source", markdown_table(SOURCE_COLUMNS, source_rows(corpus), numbers=4)]
    if left := examples_of(corpus, "", "kept"):
        parts += ["## What is left", *(block for example in left for block in _example(example))]
    for name in SPLITS:
        if side := corpus["splits"].get(name):
            parts.append(f"- {name}: {side['documents']:,} documents, {size(side['bytes'])}, SHA-256 {side['sha256']}")
    return "\n\n".join(parts) + "\n"


def _bars(corpus: dict) -> str:
    """A picture of letters: documents kept after each step."""
    most, wide = max(1, corpus["steps"][0]["in"]["documents"]), max(len(step["step"]) for step in corpus["steps"])
    lines = []
    for step in corpus["steps"]:
        full = round(48 * step["documents"] / most)
        lost = max(round(48 * step["in"]["documents"] / most) - full, 0)
        lines.append(f"{step['step'].rjust(wide)} {'█' * full}{'░' * lost} {step['documents']:,}")
    return fence("\n".join(lines))


def _step(corpus: dict, step: dict) -> list[str]:
    name = step["step"]
    parts = [f"## {cell(name)}"]
    if chosen := settings_of(corpus, name):
        parts.append(cell("; ".join(f"{field} {value or 'none'}" for field, value in chosen)))
    if step["dropped"]:
        parts.append(markdown_table(REASON_COLUMNS, reason_rows(step), numbers=3))
    for reason, _ in reasons(step):
        if found := examples_of(corpus, name, reason):
            parts += [f"### {cell(name)}: {cell(reason)}", *(block for example in found for block in _example(example))]
    return parts


def _example(example: dict) -> list[str]:
    text = excerpt(example)
    return [cell(about_example(example) or example["id"]), *([fence(text)] if text else [])]
