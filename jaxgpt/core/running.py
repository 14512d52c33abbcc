"""Manners of a run: alone in its folder, and ready to stop when a signal asks for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import cannot_write


class Stop:
    """Whether a stop was asked for.

    Attributes:
      signal: the number of the signal that did; None before.
    """

    def __init__(self):
        self.signal: int | None = None

    def asked(self) -> bool:
        """Whether one did."""
        return self.signal is not None


@contextlib.contextmanager
def listening(stop: Stop, log: Callable[[str], None], sentence: str) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask for a clean stop, which `log` answers with a sentence; a second one ends at once.

    Raises:
      KeyboardInterrupt: a second one came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number, frame):
        if stop.asked():
            raise KeyboardInterrupt
        stop.signal = number
        with contextlib.suppress(RuntimeError):  # the signal may have interrupted a write to the same stream
            log(sentence)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_status(number: int | None) -> int:
    """Of a command that a signal stopped cleanly: 130 after Ctrl-C, so that a script does not go on; 0 after SIGTERM.

    Whoever preempts a machine sends SIGTERM and starts the command again: to it the stop is no failure.

    >>> exit_status(signal.SIGINT), exit_status(signal.SIGTERM)
    (130, 0)
    """
    return 128 + number if number == signal.SIGINT else 0


@contextlib.contextmanager
def alone_in(folder: str | os.PathLike, option: str) -> Iterator[None]:
    """Holds the lock of a folder of this machine, so that two runs never write into it.

    Args:
      folder: made where it is not there.
      option: of the command line, that names another.

    Raises:
      UserError: another run holds it, or the folder cannot be written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = open(Path(folder) / ".lock", "w")
    except OSError as error:
        raise cannot_write(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{folder}: another run is working there; wait for it, or choose another "
                            f"{option}") from error
        yield
