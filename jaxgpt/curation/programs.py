"""The stage of chapter 1: gather and clean documents.

Source: Karpathy, "Deep Dive into LLMs like ChatGPT" (2025), "Pretraining data"; Penedo et al., "The FineWeb Datasets"
(2024).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, Stage, Stopped
from jaxgpt.core.files import read_json, write_json
from jaxgpt.curation.control import Halted
from jaxgpt.curation.document import Search, Source, Step
from jaxgpt.curation.engine import LOCAL, check_runner
from jaxgpt.curation.funnel import stats, unread
from jaxgpt.curation.funnel_html import write_reports
from jaxgpt.curation.phases import cut
from jaxgpt.curation.pipeline import run_pipeline
from jaxgpt.curation.python_docs import PythonDocs
from jaxgpt.curation.recipe import fineweb
from jaxgpt.curation.split import Split


@dataclasses.dataclass(frozen=True)
class Curate(Stage):
    """Documents from a source through a recipe of filters, without duplicates, divided into train and validation.

    Attributes:
      source: where the documents come from; several in a tuple are one corpus.
      steps: the recipe, in order; () leaves a corpus that is clean as it is. `--set curate.steps.NAME.FIELD=VALUE`.
      val_fraction: the part held out.
      split: "hash" divides by document; "tail" holds out the end of the corpus, for a corpus that is one text.
      runner: Beam's; FnApiRunner is this machine.
      workers: processes of this machine.
    """

    name: str = "curate"
    source: Source | tuple[Source, ...] = PythonDocs()
    steps: tuple[Step | Search, ...] = fineweb()
    val_fraction: float = 0.05
    split: str = "hash"
    runner: str = LOCAL
    workers: int = 1
    redoes: ClassVar[bool] = True

    def __post_init__(self):
        if self.source == ():
            raise ValueError("source: give at least one")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction: must be between 0 and 1, not {self.val_fraction}")
        try:
            check_runner(self.runner, self.workers)
        except UserError as error:
            raise ValueError(str(error)) from error
        cut(self.steps, self._split())

    def _split(self) -> Split:
        return Split(self.split, self.val_fraction)

    def run(self, context: Context) -> dict:
        """Writes a folder of Parquet for each phase (see pipeline.py), stats.json, report.md and report.html.

        In a folder that was made with other settings, only the phases that depend on these are done again.

        Raises:
          UserError: a malformed source, an empty corpus, or one that cannot be split.
        """
        try:
            corpus = run_pipeline(self.source, self.steps, context.directory, voice=context, split=self._split(),
                                  runner=self.runner, workers=self.workers)
        except Halted:
            raise Stopped from None
        except UserError as error:
            raise UserError(f"stage '{self.name}': {error}") from error
        for step in corpus["steps"]:
            context.log(f"{self.name}: {step['step']}: {step['documents']:,} documents, {step['bytes'] / 1e6:.2f} MB")
        skipped = unread(corpus) + _not_made(context.directory / "source")
        for sentence in skipped:
            context.log(f"{self.name}: {sentence}")
        left = stats(corpus)
        write_json(context.directory / "stats.json", left)
        write_reports(corpus, context.directory, title=f"{context.experiment.name}: {self.name}")
        totals = {name: {unit: amount[unit] for unit in ("documents", "bytes")} for name, amount in left.items()}
        return {"documents": corpus["documents"], "stats": "stats.json", "report": "report.html",
                "sha256": {name: side["sha256"] for name, side in corpus["splits"].items()}, "steps": totals,
                "skipped": len(skipped)}


def _not_made(folder: Path) -> list[str]:
    """What sources that make their own files could not make, and why."""
    return [f"skipped {name}: {reason}" for path in sorted(folder.rglob("skipped.json"))
            for name, reason in read_json(path).items()]
