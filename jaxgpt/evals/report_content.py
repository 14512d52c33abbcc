"""What the report says: headlines, sentences, rows and curves, worked out from a `Run` once for both pages.

Nothing here knows HTML or Markdown. Whatever a run did not measure is left out, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxgpt.core.metrics import duration
from jaxgpt.core.page import percent, size
from jaxgpt.evals.plot import Bar, Reference, Series, smooth, thin
from jaxgpt.evals.report_data import Run, StageRecord
from jaxgpt.evals.report_numbers import about, interval

SCORE_NOTE = "Right answers on held-out problems. All intervals are 95% Wilson intervals, in percent."
SAMPLE_NOTE = "The same prompts, put to every stage. An ellipsis marks an answer cut at its limit."
SPLITS = ("train", "val")  # what is left of the corpus in the end
MOST_POINTS = 400  # of a curve; more than a screen shows, few enough for a small page


@dataclass(frozen=True)
class Headline:
    """One of the big numbers at the top."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """One panel of curves."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    reference: Reference | None = None
    y_range: tuple[float, float] | None = None


def headlines(run: Run) -> list[Headline]:
    """The numbers that the run is about: compression, practice, identity, time."""
    found = []
    base = run.base()
    if base:
        xz = run.output("xz_bits_per_byte")
        note = f"xz\N{NO-BREAK SPACE}-9 needs {xz:.3f}" if xz else ""
        found.append(Headline(f"{base.last('val_bpb'):.3f}", "bits per byte on held-out documents", note))
    before, after = practice_scores(run)
    if before and after:
        note = f"95% intervals {interval(before)} and {interval(after)}, {after['count']} unseen problems"
        label = f"right answers on {after['task']}, before and after practice"
        found.append(Headline(f"{percent(before['accuracy'])} → {percent(after['accuracy'])}", label, note))
    identity = identity_score(run)
    if identity:
        leaked = (run.leak["rows"] or ({},))[-1]
        note = f"{interval(identity)} over {identity['count']} new wordings"
        if "rate" in leaked:
            note += f"; its name in {percent(leaked['rate'])} of other answers"
        found.append(Headline(percent(identity["accuracy"]), "knows who it is", note))
    if run.seconds:
        cores = run.environment.get("Cores")
        note = ", ".join(part for part in (f"{cores} cores" if cores else "", memory_words(run)) if part)
        found.append(Headline(duration(run.seconds), "from the first stage to the last", note))
    return found


def summary(run: Run) -> str:
    """The run in one paragraph."""
    parts = []
    base = run.base()
    if base:
        parameters, tokens = base.outputs.get("parameters"), base.tokens
        size = f"A base model of {about(parameters)} parameters" if parameters else "A base model"
        read = f" read {about(tokens)} tokens and" if tokens else ""
        xz = run.output("xz_bits_per_byte")
        against = f", where xz\N{NO-BREAK SPACE}-9 needs {xz:.3f}" if xz else ""
        parts.append(
            f"{size}{read} needs {base.last('val_bpb'):.3f} bits for a byte of documents it never saw"
            f"{against}."
        )
    before, after = practice_scores(run)
    if before and after:
        parts.append(
            f"Practice on {after['task']} takes it from {percent(before['accuracy'])} {interval(before)} "
            f"to {percent(after['accuracy'])} {interval(after)} right on {after['count']} problems that "
            "no stage trained on."
        )
    identity = identity_score(run)
    if identity:
        parts.append(
            f"Asked in {identity['count']} new wordings who it is, it gives the right answer "
            f"{percent(identity['accuracy'])} of the time."
        )
    if run.seconds:
        parts.append(f"All {len(run.stages)} stages took {duration(run.seconds)}.")
    return " ".join(parts) or "No stage of this run is complete yet."


def practice_scores(run: Run) -> tuple[dict | None, dict | None]:
    """The rows of the practised task before and after practice."""
    practice = run.practice()
    if not practice:
        return None, None
    return run.score(practice.start_from, practice.practises), run.score(practice.name, practice.practises)


def identity_score(run: Run) -> dict | None:
    """The last evaluated stage's row on the task that may name the model."""
    rows = [row for row in run.scores if run.leak and row["task"] == run.leak.get("task")]
    return rows[-1] if rows else None


STAGE_COLUMNS = ("Stage", "What it does", "Result", "Time", "Tokens", "Tokens/s", "Peak memory")


def stage_rows(run: Run) -> list[tuple[str, ...]]:
    """A row of STAGE_COLUMNS for each stage."""
    return [
        (
            stage.name,
            stage.about.rstrip(".").replace("`", ""),
            key_result(stage, run),
            duration(stage.seconds) if stage.seconds is not None else "",
            about(stage.tokens) if stage.tokens else "",
            f"{stage.rate:,.0f}" if stage.rate else "",
            size(stage.peak_memory) if stage.peak_memory else "",
        )
        for stage in run.stages
    ]


def key_result(stage: StageRecord, run: Run) -> str:
    """The one number of a stage that the next stages live on."""
    outputs = stage.outputs
    if stage.has("reward"):
        for key, words in (("val_accuracy", "accuracy {:.2f} held out"), ("reward", "reward {:.2f}")):
            if stage.has(key):
                return words.format(stage.last(key))
    if stage is run.base():
        return f"{stage.last('val_bpb'):.3f} bits per byte"
    for key, word in (("val_loss", "loss {:.3f} held out"), ("loss", "loss {:.3f}")):
        if stage.has(key):
            return word.format(stage.last(key))
    if "scores" in outputs:
        rows = run.scores
        return f"{len({r['stage'] for r in rows})} models, {len({r['task'] for r in rows})} tasks"
    if isinstance(outputs.get("stats"), str):
        kept = _kept(run)
        return f"{kept['documents']:,} documents, {size(kept['bytes'])}" if kept["documents"] else ""
    splits = {name: value["tokens"] for name, value in outputs.items() if _has_tokens(value)}
    if splits:
        return ", ".join(f"{about(count)} {split}" for split, count in splits.items()) + " tokens"
    if isinstance(outputs.get("vocab_size"), int):
        return f"vocabulary of {outputs['vocab_size']:,}"
    return ""


def charts(run: Run) -> list[Chart]:
    """The curves of every stage that measured something, in the order of the run."""
    found = []
    for stage in run.stages:
        if stage.has("reward"):
            found += _practice_charts(stage)
        elif stage is run.base():
            xz = run.output("xz_bits_per_byte")
            reference = Reference(xz, f"xz -9: {xz:.3f}") if xz else None
            found.append(_loss_chart(stage, x="tokens"))
            bits = _lines(stage, (("val_bpb", "held out"),), x="tokens")
            found.append(
                Chart(f"{stage.name}: compression", "tokens", "bits per byte, held out", bits, reference)
            )
        elif stage.has("loss"):
            found.append(_loss_chart(stage, x="step"))
    return found


def score_groups(run: Run) -> list[tuple[str, list[Bar]]]:
    """The bars of every task, one for each stage; a stage keeps its colour."""
    colours = {name: i for i, name in enumerate(evaluated(run))}
    groups: dict[str, list[Bar]] = {}
    for row in run.scores:
        bar = Bar(row["stage"], row["accuracy"], *row["interval"], colour=colours[row["stage"]])
        groups.setdefault(row["task"], []).append(bar)
    return list(groups.items())


SCORE_COLUMNS = ("Task", "Stage", "Right", "95% interval", "Right form", "Stops", "Tokens", "Problems")


def score_rows(run: Run) -> list[tuple[str, ...]]:
    """A row of SCORE_COLUMNS for each task and stage, the stages of a task together."""
    tasks = list(dict.fromkeys(row["task"] for row in run.scores))
    return [
        (
            row["task"],
            row["stage"],
            percent(row["accuracy"]),
            interval(row),
            percent(row["well_formed"]),
            percent(row["stopped"]),
            f"{row['mean_tokens']:.1f}",
            str(row["count"]),
        )
        for row in sorted(run.scores, key=lambda row: tasks.index(row["task"]))
    ]


def leak_sentence(run: Run) -> str:
    """How often the model's name turns up in answers to other questions, and where most often."""
    if not run.leak or not run.leak["rows"]:
        return ""
    told = []
    for row in run.leak["rows"]:
        by_task = row.get("by_task") or {}
        worst = max(by_task, key=lambda task: by_task[task]["rate"], default=None)
        most = f", most in {worst}: {percent(by_task[worst]['rate'])}" if worst and row["rate"] else ""
        told.append(f"{row['stage']} {percent(row['rate'])} {interval(row)} of {row['count']}{most}")
    text, task = run.leak["text"], run.leak["task"]
    return f"Answers to tasks other than {task} that hold “{text}”: {'; '.join(told)}."


def evaluated(run: Run) -> list[str]:
    """The stages that were scored or sampled, in order."""
    names = [row["stage"] for row in run.scores] + [s for p in run.samples for s in p.get("completions", {})]
    return list(dict.fromkeys(names))


def kind(prompt: dict) -> str:
    """How a sample's prompt was put."""
    return "Asked" if prompt.get("kind") == "chat" else "To be continued"


def snapshots(stage: StageRecord, *, most: int = 4) -> list[dict]:
    """Completions of the stage's first prompt at a few steps, from the first to the last."""
    if not stage.samples:
        return []
    first = stage.samples[0].get("prompt")
    same = [sample for sample in stage.samples if sample.get("prompt") == first]
    if len(same) <= most:
        return same
    return [same[round(i * (len(same) - 1) / (most - 1))] for i in range(most)]


CORPUS_COLUMNS = ("Corpus", "Documents", "Bytes", "Tokens")


def corpus_rows(run: Run) -> list[tuple[str, ...]]:
    """A row of CORPUS_COLUMNS for what each step of curation left and for each split."""
    tokens = {k: v["tokens"] for stage in run.stages for k, v in stage.outputs.items() if _has_tokens(v)}
    return [
        (step, f"{left['documents']:,}", f"{left['bytes']:,}", f"{tokens[step]:,}" if step in tokens else "")
        for step, left in run.corpus.items()
    ]


SOURCE_COLUMNS = ("Source", "Documents gathered", "Bytes gathered", "Documents kept", "Bytes kept")


def source_rows(run: Run) -> list[tuple[str, ...]]:
    """A row of SOURCE_COLUMNS for each source: before the first step, and in the splits together."""
    gathered = next(iter(run.corpus.values()), {}).get("by_source", {})
    kept = _kept(run)["by_source"]
    rows = []
    for source, amount in gathered.items():
        counts = [amount["documents"], amount["bytes"]]
        counts += [kept.get(source, {}).get(unit, 0) for unit in ("documents", "bytes")]
        rows.append((source, *(f"{count:,}" for count in counts)))
    return rows


def digests(run: Run) -> list[tuple[str, str]]:
    """(name, SHA-256) of the corpus, by split."""
    found = next((s.outputs["sha256"] for s in run.stages if isinstance(s.outputs.get("sha256"), dict)), {})
    return [(f"SHA-256 of {split}", digest) for split, digest in found.items()]


def machine(run: Run) -> list[tuple[str, str]]:
    """(name, value) of hardware, software, code and time."""
    facts = list(run.environment.items())
    if run.peak_memory:
        facts.append(("Peak memory", size(run.peak_memory)))
    facts.append(("Total time", duration(run.seconds)))
    if run.seed is not None:
        facts.append(("Seed", str(run.seed)))
    return facts + ([("Commit", run.commit)] if run.commit else [])


def flat_settings(stage: StageRecord) -> list[tuple[str, str]]:
    """(dotted path, value) of every setting; `--set` takes the same paths with the stage in front."""
    return [(name, "" if value is None else str(value)) for name, value in _paths(stage.settings)]


def memory_words(run: Run) -> str:
    """The run's peak of memory."""
    return f"{size(run.peak_memory)} of memory at most" if run.peak_memory else ""


def _loss_chart(stage: StageRecord, *, x: str) -> Chart:
    lines = _lines(stage, (("loss", "training"), ("val_loss", "held out")), x=x)
    return Chart(f"{stage.name}: loss", "tokens" if x == "tokens" else "steps", "nats per token", lines)


def _practice_charts(stage: StageRecord) -> list[Chart]:
    same = stage.curve("reward") == stage.curve("accuracy")
    learning = (("accuracy", "accuracy"),) if same else (("reward", "reward"), ("accuracy", "accuracy"))
    learning += (("val_accuracy", "accuracy, held out"), ("well_formed", "right form"))
    length = (("completion_tokens", "in practice"), ("val_completion_tokens", "held out"))
    panels = (
        ("practice", "mean of a batch", learning),
        ("length of an answer", "tokens", length),
        ("drift", "nats per token", (("kl", "KL to the reference"), ("entropy", "entropy"))),
    )
    found = []
    for title, unit, keys in panels:
        lines = _lines(stage, keys)
        names = [line.label for line in lines if not line.faint]
        if lines:
            unit = (
                f"{unit}, {names[0]}" if len(names) == 1 else unit
            )  # a chart of one line has no legend to name it
            found.append(Chart(f"{stage.name}: {title}", "steps", unit, lines))
    return found


def _lines(stage: StageRecord, keys: tuple[tuple[str, str], ...], *, x: str = "step") -> tuple[Series, ...]:
    """A line for each key that was measured; a long one is smoothed, its raw points pale behind it."""
    found = []
    for colour, (key, label) in enumerate((key, label) for key, label in keys if stage.has(key)):
        points = stage.curve(key, x=x)
        if len(points) > 60 and not key.startswith("val_"):
            points = thin(points, MOST_POINTS)
            found.append(Series(label, points, faint=True, colour=colour))
            points = smooth(points, reach=len(points) // 30)
        found.append(Series(label, thin(points, MOST_POINTS), colour=colour))
    return tuple(found)


def _kept(run: Run) -> dict:
    """Documents and bytes of the splits together, in all and by source."""
    kept: dict = {"documents": 0, "bytes": 0, "by_source": {}}
    for left in (run.corpus[split] for split in SPLITS if split in run.corpus):
        for source, amount in left.get("by_source", {}).items():
            entry = kept["by_source"].setdefault(source, {"documents": 0, "bytes": 0})
            for unit in ("documents", "bytes"):
                entry[unit] += amount[unit]
        for unit in ("documents", "bytes"):
            kept[unit] += left[unit]
    return kept


def _has_tokens(value) -> bool:
    return isinstance(value, dict) and isinstance(value.get("tokens"), int)


def _paths(value, path: str = "") -> list[tuple[str, object]]:
    if isinstance(value, dict) and (value or not path):
        return [
            pair
            for key, inner in value.items()
            for pair in _paths(inner, f"{path}.{key}" if path else str(key))
        ]
    return [(path, value)]
