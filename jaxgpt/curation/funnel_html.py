"""The funnel as one HTML page: a picture, tables, and examples of what was dropped to read; nothing is fetched."""

from __future__ import annotations

import os
from html import escape

from jaxgpt.core.page import definitions, html_page, html_table, size
from jaxgpt.curation import funnel, store
from jaxgpt.curation.funnel_picture import picture
from jaxgpt.curation.split import SPLITS


def page(corpus: dict, title: str) -> str:
    """The whole page."""
    steps = "".join(_step(corpus, step) for step in corpus["steps"])
    return html_page(title, (_head(corpus, title), _funnel(corpus), f"<section><h2>Step by step</h2>{steps}</section>",
                             _left(corpus), _sources(corpus)))


def _head(corpus: dict, title: str) -> str:
    read, end = corpus["steps"][0]["in"], funnel.kept(corpus)
    unread = sum(amount["documents"] for name, amount in corpus["steps"][0]["dropped"].items()
                 if name.startswith("unreadable"))
    files = f"in {corpus['parts']:,} file{'s' if corpus['parts'] != 1 else ''}, {size(corpus['bytes'])}"
    cells = [(f"{read['documents']:,}", "records read", files),
             (f"{end['documents']:,}", "documents left", funnel.share(end["documents"], read["documents"])),
             (size(end["bytes"]), "of text left", f"of {size(corpus['steps'][0]['bytes'])} read"),
             (f"{unread:,}", "records that cannot be read", funnel.share(unread, read["documents"]))]
    tiles = "".join(f'<div class="headline"><b>{escape(value)}</b><span>{escape(label)}</span>'
                    f"<small>{escape(note)}</small></div>" for value, label, note in cells)
    return (f'<header><p class="eyebrow">A corpus</p><h1>{escape(title)}</h1>'
            f'<p class="lead">{escape(funnel.summary(corpus))}</p><div class="headlines">{tiles}</div></header>')


def _funnel(corpus: dict) -> str:
    table = html_table(funnel.COLUMNS, funnel.rows(corpus), numbers=5, strong=2)
    return (f'<section><h2>The funnel</h2><figure><div class="scroll"><div style="min-width: 720px">{picture(corpus)}'
            f'</div></div></figure><div class="below">{table}</div></section>')


def _step(corpus: dict, step: dict) -> str:
    name = step["step"]
    lost = step["in"]["documents"] - step["documents"]
    heading = f'{escape(name)} <span>drops {f"{lost:,}" if lost else "none"} of {step["in"]["documents"]:,}</span>'
    inside = []
    if chosen := funnel.settings_of(corpus, name):
        inside.append(definitions(chosen))
    if step["dropped"]:
        inside.append(html_table(funnel.REASON_COLUMNS, funnel.reason_rows(step), numbers=3))
    for reason, amount in funnel.reasons(step):
        if found := funnel.examples_of(corpus, name, reason):
            inside.append(f"<h3>{escape(reason)}</h3>" + "".join(map(_example, found)))
    if not inside:
        return ""
    body = "".join(f"<div>{part}</div>" for part in inside)
    return f"<details><summary>{heading}</summary>{body}</details>"


def _example(example: dict) -> str:
    text = funnel.excerpt(example)
    label = escape(funnel.about_example(example) or example["id"])
    below = f'<div class="column"><pre>{escape(text)}</pre></div>' if text else ""
    return f'<div class="sample"><div class="prompt label">{label}</div>{below}</div>'


def _left(corpus: dict) -> str:
    found = funnel.examples_of(corpus, "", "kept")
    return f"<section><h2>What is left</h2>{''.join(map(_example, found))}</section>" if found else ""


def _sources(corpus: dict) -> str:
    table = html_table(funnel.SOURCE_COLUMNS, funnel.source_rows(corpus), numbers=4)
    sides = [(name, f"{side['documents']:,} documents, {size(side['bytes'])}, SHA-256 {side['sha256']}")
             for name in SPLITS if (side := corpus["splits"].get(name)) and side["documents"]]
    return f'<section><h2>By source</h2>{table}<div class="below">{definitions(sides)}</div></section>'


def write_reports(corpus: dict, folder: str | os.PathLike, *, title: str) -> None:
    """Writes report.md and report.html into a folder."""
    for name, text in (("report.md", funnel.markdown(corpus, title)), ("report.html", page(corpus, title))):
        with store.writing(store.join(folder, name)) as file:
            file.write(text.encode("utf-8", "replace"))
