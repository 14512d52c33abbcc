"""What a run and its workers tell each other: stop, how far they are, what went wrong.

Workers may be threads, processes or machines, so they speak through small files in the corpus's folder `.run`. Nothing
that a person should read passes through the engine, which would wrap it in pages of its own.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import re
import time
import traceback

from jaxgpt.core.errors import UserError
from jaxgpt.curation import store

NEAR, FAR = 0.5, 30.0  # seconds between two looks at the stop file, here and far away
MARK = "jaxgpt-told:"  # around what a worker tells through the engine


class Halted(Exception):
    """A worker leaves its part because the run is to stop."""


@dataclasses.dataclass(frozen=True)
class Control:
    """One run's line to its workers; it can be sent to them.

    Attributes:
      folder: the corpus's.
      local: whether all workers are on this machine: they report progress, and end when `driver` does.
      driver: process of the run.
    """

    folder: str
    local: bool = True
    driver: int = dataclasses.field(default_factory=os.getpid)

    def _path(self, name: str) -> str:
        return store.join(self.folder, ".run", name)

    def begin(self) -> None:
        """Forgets an earlier run, and nothing else that may lie there."""
        for name in store.names(self._path("")):
            if re.fullmatch(r"(stop|error|tasks)\.json|(progress|worker)-\d+(\.log)?", name):
                store.remove(self._path(name))

    def stop(self) -> None:
        """Asks all workers to stop."""
        store.write_json(self._path("stop.json"), {})

    def stopping(self) -> bool:
        """Whether someone asked for a stop, or something went wrong."""
        if self.local and os.getpid() != self.driver and os.getppid() != self.driver:
            os._exit(1)  # the run was killed: nobody waits for this work
        return store.exists(self._path("stop.json")) or store.exists(self._path("error.json"))

    def fail(self, error: BaseException) -> None:
        """Tells what went wrong; the first to do so is heard.

        Raises:
          RuntimeError: nothing can be written, since the disk is full: then the engine must tell.
        """
        details = "" if isinstance(error, UserError) else "".join(traceback.format_exception(error))
        told = json.dumps({"message": str(error), "details": details})
        if not store.exists(self._path("error.json")):
            try:
                store.write_json(self._path("error.json"), json.loads(told))
            except UserError:
                raise RuntimeError(f"{MARK}{base64.b64encode(told.encode()).decode()}{MARK}") from error

    def check(self, error: BaseException | None) -> None:
        """Raises what a worker told, or else what the engine ended with.

        Raises:
          UserError: the mistake of a person.
          RuntimeError: any other, with the worker's traceback.
        """
        told = None
        if store.exists(self._path("error.json")):
            told = store.read_json(self._path("error.json"))
        elif found := re.search(f"{MARK}([A-Za-z0-9+/=]+){MARK}", str(error or "")):
            told = json.loads(base64.b64decode(found[1]))
        if told:
            raise RuntimeError(told["details"]) if told["details"] else UserError(told["message"])
        if error is not None:
            raise error

    def report(self, phase: int, part: str, fraction: float) -> None:
        """How much of a part a phase has done."""
        if self.local:
            with contextlib.suppress(OSError), open(self._path(f"progress-{os.getpid()}"), "a") as file:
                file.write(json.dumps([phase, part, round(fraction, 4)]) + "\n")

    def reported(self, places: dict[str, int]) -> list[tuple[int, str, float]]:
        """What was reported since the last time; `places` remembers how far each file was read."""
        found = []
        for name in store.names(self._path("")) if self.local else ():
            if name.startswith("progress-"):
                with open(self._path(name)) as file:
                    file.seek(places.setdefault(name, 0))
                    while (line := file.readline()).endswith("\n"):
                        found.append(tuple(json.loads(line)))
                        places[name] = file.tell()
        return found

    def end(self) -> None:
        """Leaves nothing behind."""
        self.begin()
        if not store.names(self._path("")):
            store.remove(self._path(""))


class Watch:
    """A worker's look at the clock while it goes through a part: stops it when asked, reports where it is."""

    def __init__(self, control: Control, phase: int, part: str):
        self._control, self._phase, self._part, self._next = control, phase, part, 0.0

    def tick(self, fraction: float) -> None:
        """Called with every record.

        Raises:
          Halted: the run is to stop.
        """
        now = time.monotonic()
        if now >= self._next:
            self._next = now + (NEAR if self._control.local else FAR)
            if self._control.stopping():
                raise Halted
            self._control.report(self._phase, self._part, min(fraction, 0.99))
