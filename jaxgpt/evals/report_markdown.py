"""The report as Markdown: what the page shows, for a terminal, a pull request or a model that reads it."""

from __future__ import annotations

from jaxgpt.core.page import cell, fence, markdown_table
from jaxgpt.evals import report_content as content
from jaxgpt.evals.plot import sparkline
from jaxgpt.evals.report_data import Run


def markdown_page(run: Run) -> str:
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
        _section("The machine", _list(content.machine(run))),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(run: Run) -> str:
    tiles = [
        f"- **{cell(h.value)}** {cell(h.label)}" + (f" ({cell(h.note)})" if h.note else "")
        for h in content.headlines(run)
    ]
    parts = [f"# {cell(run.name)}: a run of jaxgpt", cell(content.summary(run))]
    if tiles:
        parts.append("\n".join(tiles))
    if run.command:
        parts.append(f"Talk to it:\n\n{fence(run.command)}")
    return "\n\n".join(parts)


def _stages(run: Run) -> str:
    return _section(
        "Stages", markdown_table(content.STAGE_COLUMNS, content.stage_rows(run), numbers=4) if run.stages else ""
    )


def _curves(run: Run) -> str:
    rows = []
    for chart in content.charts(run):
        for line in (line for line in chart.series if not line.faint):
            values = [y for _, y in line.points]
            curve = sparkline(values)
            rows.append(
                (chart.title, line.label, curve, f"{values[0]:.4g}", f"{values[-1]:.4g}", chart.y_label)
            )
        if chart.reference:
            rows.append(
                (chart.title, chart.reference.label, "", "", f"{chart.reference.value:.4g}", chart.y_label)
            )
    columns = ("Curve", "Line", "Course", "First", "Last", "Unit")
    return _section("Curves", markdown_table(columns, rows) if rows else "")


def _scores(run: Run) -> str:
    if not run.scores:
        return ""
    parts = [content.SCORE_NOTE, markdown_table(content.SCORE_COLUMNS, content.score_rows(run), numbers=6)]
    leak = content.leak_sentence(run)
    return _section("Scores", "\n\n".join(parts + ([cell(leak)] if leak else [])))


def _samples(run: Run) -> str:
    blocks = []
    for prompt in run.samples:
        blocks.append(f"### {content.kind(prompt)}: {cell(prompt['prompt'])}")
        for stage, answer in prompt["completions"].items():
            blocks.append(f"{cell(stage)}\n\n{fence(answer['text'] + ('' if answer['finished'] else ' …'))}")
    return _section("Samples", "\n\n".join([content.SAMPLE_NOTE, *blocks]) if blocks else "")


def _snapshots(run: Run) -> str:
    blocks = []
    for stage in run.stages:
        shots = content.snapshots(stage)
        if shots:
            blocks.append(f"### {cell(stage.name)}: {cell(str(shots[0].get('prompt', '')))}")
        blocks += [
            f"step {shot.get('step', '?')}\n\n{fence(str(shot.get('completion', '')))}" for shot in shots
        ]
    return _section("While it learned", "\n\n".join(blocks))


def _corpus(run: Run) -> str:
    if not run.corpus:
        return ""
    steps = markdown_table(content.CORPUS_COLUMNS, content.corpus_rows(run), numbers=3)
    sources = markdown_table(content.SOURCE_COLUMNS, content.source_rows(run), numbers=4)
    return _section("The corpus", "\n\n".join((steps, sources, _list(content.digests(run)))))


def _settings(run: Run) -> str:
    blocks = []
    for stage in run.stages:
        pairs = content.flat_settings(stage)
        if pairs:
            lines = "\n".join(f"{name} = {value}" for name, value in pairs)
            blocks.append(f"<details><summary>{cell(stage.name)}</summary>\n\n{fence(lines)}\n\n</details>")
    return _section("Settings", "\n\n".join(blocks))


def _list(pairs: list[tuple[str, str]]) -> str:
    return "\n".join(f"- {cell(name)}: {cell(value)}" for name, value in pairs)


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""
