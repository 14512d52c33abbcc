"""The command `jaxgpt curate`: files in, a corpus and its funnel out."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Sequence

from jaxgpt.core import config
from jaxgpt.core.errors import UserError
from jaxgpt.core.metrics import Progress
from jaxgpt.core.running import Stop, alone_in, exit_status, listening
from jaxgpt.curation import funnel, store
from jaxgpt.curation.control import Halted
from jaxgpt.curation.funnel_html import write_reports
from jaxgpt.curation.phases import cut
from jaxgpt.curation.pipeline import run_pipeline
from jaxgpt.curation.recipe import fineweb
from jaxgpt.curation.sources import source_for
from jaxgpt.curation.split import Split

STOPPING = "stopping; what is complete is kept (once more to stop at once)"


class Terminal:
    """Speaks on standard error, and knows whether a stop was asked for."""

    def __init__(self):
        self._progress, self.stop = Progress(0, "", ""), Stop()

    def log(self, text: str) -> None:
        """A line."""
        self._progress.log(text)

    def progress(self, total: int, unit: str, label: str) -> Progress:
        """A line of progress."""
        self._progress = Progress(total, unit, label)
        return self._progress

    def should_stop(self) -> bool:
        """Whether a signal asked for a stop."""
        return self.stop.asked()


def curate(arguments, words: Sequence[str]) -> int:
    """Runs the command; returns its exit status.

    Args:
      arguments: parsed by cli.py.
      words: what was typed after `jaxgpt`, to be typed again.

    Raises:
      UserError: no such file, step, field or runner, and what run_pipeline raises.
    """
    steps, split = _steps(arguments), _split(arguments.val_fraction)
    try:
        cut(steps, split)
    except ValueError as error:
        raise UserError(f"{arguments.recipe or '--set'}: {error}") from error
    if not arguments.output.strip():
        raise UserError("--output: an empty name; give the folder that the corpus goes to")
    inputs = arguments.input[0] if len(arguments.input) == 1 else tuple(arguments.input)
    source, terminal, output = source_for(inputs, field=arguments.field), Terminal(), arguments.output
    lock = alone_in(output, "--output") if store.is_local(output) else contextlib.nullcontext()
    with lock, listening(terminal.stop, terminal.log, STOPPING):
        try:
            corpus = run_pipeline(source, steps, output, voice=terminal, split=split, runner=arguments.runner,
                                  workers=arguments.workers, options=arguments.options)
        except Halted:
            print(f"stopped; what is complete is kept. To go on:\n  {shlex.join(['jaxgpt', *words])}", flush=True)
            return exit_status(terminal.stop.signal)
    write_reports(corpus, output, title=os.path.basename(output.rstrip("/")) or output)
    print(funnel.text_table(corpus))
    print(f"documents: {store.join(output, corpus['documents'])}\nreport: {store.join(output, 'report.html')}")
    unread = funnel.unread(corpus)
    for sentence in unread:
        print(sentence, file=sys.stderr)
    return 1 if unread and arguments.strict else 0


def _steps(arguments) -> tuple:
    """The recipe: a file's or FineWeb's, without the steps that are not wanted, with the fields that are set."""
    steps = _recipe(arguments.recipe) if arguments.recipe else fineweb()
    names = [step.name for step in steps]
    for name in arguments.without:
        if name not in names:
            raise UserError(f"--without {name}: no step is called that; valid: {', '.join(names)}")
    steps = tuple(step for step in steps if step.name not in arguments.without)
    for text in arguments.overrides:
        path, equals, value = text.partition("=")
        if not equals or "." not in path:
            raise UserError(f"--set {text}: write STEP.FIELD=VALUE, as in --set gopher_quality.min_words=40")
        steps = config.override(steps, path, value)
    return steps


def _recipe(path: str) -> tuple:
    """The steps that a file's get_config() returns, or those of the Curate stage of its experiment."""
    found = config.load(path)
    for stage in getattr(found, "stages", ()):
        if isinstance(getattr(stage, "steps", None), tuple):
            return stage.steps
    if not isinstance(found, tuple) or not all(hasattr(step, "name") for step in found):
        raise UserError(f"{path}: get_config() returns {type(found).__name__}; it should return a tuple of steps, or an "
                        "Experiment with a Curate stage")
    return found


def _split(val_fraction: float) -> Split:
    try:
        return Split("hash", val_fraction)
    except ValueError as error:
        raise UserError(f"--val-fraction {val_fraction}: {str(error).removeprefix('val_fraction: ')}") from error
