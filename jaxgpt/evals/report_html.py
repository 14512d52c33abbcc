"""The report as one HTML page: style and drawings inside, nothing fetched, every text escaped."""

from __future__ import annotations

from html import escape

from jaxgpt.core.page import definitions, html_table
from jaxgpt.core.page import html_page as page
from jaxgpt.evals import report_content as content
from jaxgpt.evals.plot import bar_chart, line_chart, panels
from jaxgpt.evals.report_data import Run, StageRecord


def html_page(run: Run) -> str:
    """The whole page; a section whose stage did not run is left out."""
    sections = (
        _head(run),
        _stages(run),
        _curves(run),
        _scores(run),
        _samples(run),
        _snapshots(run),
        _corpus(run),
        _settings(run),
        _machine(run),
    )
    return page(f"{run.name}: a run of jaxgpt", sections)


def _head(run: Run) -> str:
    cells = "".join(
        f'<div class="headline"><b>{escape(h.value)}</b>'
        f"<span>{escape(h.label)}</span><small>{escape(h.note)}</small></div>"
        for h in content.headlines(run)
    )
    return (
        f'<header><p class="eyebrow">A run of jaxgpt</p><h1>{escape(run.name)}</h1>'
        f'<p class="lead">{escape(content.summary(run))}</p>'
        + (f'<div class="headlines">{cells}</div>' if cells else "")
        + (
            f'<p class="label">Talk to it</p><pre class="command">{escape(run.command)}</pre>'
            if run.command
            else ""
        )
        + "</header>"
    )


def _stages(run: Run) -> str:
    if not run.stages:
        return ""
    return (
        "<section><h2>Stages</h2>"
        + html_table(content.STAGE_COLUMNS, content.stage_rows(run), numbers=4)
        + "</section>"
    )


def _curves(run: Run) -> str:
    charts = [
        line_chart(
            c.series,
            title=c.title,
            x_label=c.x_label,
            y_label=c.y_label,
            reference=c.reference,
            y_range=c.y_range,
        )
        for c in content.charts(run)
    ]
    return f"<section><h2>Curves</h2>{panels(charts)}</section>" if charts else ""


def _scores(run: Run) -> str:
    if not run.scores:
        return ""
    bars = [bar_chart(bars, title=task) for task, bars in content.score_groups(run)]
    bars = panels(bars, columns=2 if len(bars) in (1, 2, 4) else 3)
    rows = html_table(content.SCORE_COLUMNS, content.score_rows(run), numbers=6, strong=2)
    told = "".join(
        f'<p class="note">{escape(note)}</p>'
        for note in (content.SCORE_NOTE, content.leak_sentence(run))
        if note
    )
    return f'<section><h2>Scores</h2>{told}{bars}<div class="below">{rows}</div></section>'


def _samples(run: Run) -> str:
    cards = [_sample(prompt) for prompt in run.samples]
    if not cards:
        return ""
    note = f'<p class="note">{content.SAMPLE_NOTE}</p>'
    return f"<section><h2>Samples</h2>{note}{''.join(cards)}</section>"


def _sample(prompt: dict) -> str:
    answers = "".join(
        f'<div class="column"><p class="label">{escape(stage)}</p>{_completion(answer)}</div>'
        for stage, answer in prompt.get("completions", {}).items()
    )
    return (
        f'<div class="sample"><div class="prompt"><p class="label">{content.kind(prompt)}</p>'
        f'<pre>{escape(prompt["prompt"])}</pre></div><div class="columns">{answers}</div></div>'
    )


def _completion(answer: dict) -> str:
    cut = "" if answer.get("finished") else '<span class="cut"> …</span>'
    return f"<pre>{escape(answer['text'])}{cut}</pre>"


def _snapshots(run: Run) -> str:
    found = [(stage, shots) for stage in run.stages if (shots := content.snapshots(stage))]
    if not found:
        return ""
    return "<section><h2>While it learned</h2>" + "".join(_snapshot(*pair) for pair in found) + "</section>"


def _snapshot(stage: StageRecord, shots: list[dict]) -> str:
    columns = "".join(
        f'<div class="column"><p class="label">step {escape(str(s.get("step", "?")))}</p>'
        f"<pre>{escape(str(s.get('completion', '')))}</pre></div>"
        for s in shots
    )
    prompt = escape(str(shots[0].get("prompt", "")))
    return (
        f'<div class="sample"><div class="prompt"><p class="label">{escape(stage.name)}</p>'
        f'<pre>{prompt or "(nothing)"}</pre></div><div class="columns">{columns}</div></div>'
    )


def _settings(run: Run) -> str:
    blocks = []
    for stage in run.stages:
        pairs = content.flat_settings(stage)
        if pairs:
            count = f"{len(pairs)} settings" if len(pairs) > 1 else "1 setting"
            blocks.append(
                f"<details><summary>{escape(stage.name)} <span>{count}</span></summary>"
                f"{definitions(pairs)}</details>"
            )
    return f"<section><h2>Settings</h2>{''.join(blocks)}</section>" if blocks else ""


def _corpus(run: Run) -> str:
    if not run.corpus:
        return ""
    steps = html_table(content.CORPUS_COLUMNS, content.corpus_rows(run), numbers=3)
    sources = html_table(content.SOURCE_COLUMNS, content.source_rows(run), numbers=4)
    digests = f'<div class="below">{definitions(content.digests(run))}</div>'
    count = f"{len(content.source_rows(run))} of them"
    sources = f"<details><summary>Sources <span>{count}</span></summary>{sources}</details>"
    return f'<section><h2>The corpus</h2>{steps}<div class="below">{sources}</div>{digests}</section>'


def _machine(run: Run) -> str:
    pairs = content.machine(run)
    half = (len(pairs) + 1) // 2
    columns = "".join(definitions(part) for part in (pairs[:half], pairs[half:]) if part)
    return f'<section><h2>The machine</h2><div class="pair">{columns}</div></section>'
