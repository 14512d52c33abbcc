"""Several hosts as one: who writes, what all must agree on, and how all end when one does.

Every host runs the same command on the same workdir, a folder that all of them see. Process 0 writes the files and
speaks; where it alone decides something, the others are told, so that all take the same way. With one process all of
this costs nothing.

  initialize(text)      joins the processes; afterwards `jax.devices()` are those of all hosts
  is_main()             whether this process writes and speaks
  all_or_none(work)     a mistake of one is a mistake of all
  from_main(number), total(array), fetch(tree)    what must be gathered
  wait(), seen(path)    until all have come; until a file that process 0 wrote is here
  Agreement()           whether any process asks for a stop: the same answer at the same step
  ends_together(folder), leave(error)    a process that fails takes the others along
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import write_text

T = TypeVar("T")

_FORM = "write HOST:PORT,INDEX,COUNT: 10.0.0.1:1234,0,2 on the first of two hosts and 10.0.0.1:1234,1,2 on the other"
_SENTENCE = 1024  # bytes of what is told to the others
_LOOK, _SHARED, _SILENT = 0.25, 60.0, 60  # seconds: between looks for a notice; until a file is seen; without heartbeat
_barriers = itertools.count()
_leaving = threading.Lock()
_notice: Path | None = None  # where this process would leave word of its failure


# --- joining and leaving ---------------------------------------------------------------------------------------------

def initialize(text: str = "", *, timeout: float = 300) -> None:
    """Joins this process to the others; to be called before anything else asks JAX for a device.

    Args:
      text: HOST:PORT,INDEX,COUNT: the address of process 0, the number of this process and how many there are. Empty
        where JAX finds them by itself: on Cloud TPU, and under Slurm, Open MPI and Kubernetes.
      timeout: seconds to wait for the others.

    Raises:
      UserError: `text` is not of that form, JAX finds nothing, or the port is taken.
    """
    address, index, count = parse(text) if text else (None, None, None)
    if index == 0:
        _check_port(address)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from our own clean stop
    late = threading.Timer(timeout, _too_late, (address, index, count, timeout))  # JAX itself would dump its stack
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(address, count, index, initialization_timeout=int(timeout) + 60,
                                   heartbeat_timeout_seconds=_SILENT)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed: JAX cannot tell by itself which hosts there are here "
                        f"({_first_line(error)}); {_FORM}" if not text else
                        f"--distributed {text}: {_first_line(error)}") from error
    finally:
        late.cancel()


def parse(text: str) -> tuple[str, int, int]:
    """The address of process 0, the index of this process and the count of all.

    Raises:
      UserError: the text does not spell them.

    >>> parse("10.0.0.1:1234,1,2")
    ('10.0.0.1:1234', 1, 2)
    """
    parts = text.split(",")
    host, _, port = parts[0].rpartition(":")
    if len(parts) != 3 or not host or not all(re.fullmatch("[0-9]+", part) for part in (port, *parts[1:])):
        raise UserError(f"--distributed {text}: {_FORM}")
    index, count = int(parts[1]), int(parts[2])
    if index >= count:
        raise UserError(f"--distributed {text}: INDEX is {index}, but with COUNT {count} it is from 0 to {count - 1}"
                        if count else f"--distributed {text}: COUNT is at least 1")
    if not 0 < int(port) < 65536:
        raise UserError(f"--distributed {text}: PORT is from 1 to 65535")
    return parts[0], index, count


def _check_port(address: str) -> None:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            raise UserError(f"--distributed: port {port} cannot be used here ({error.strerror}); choose another, the "
                            "same on every host") from error


def _too_late(address: str | None, index: int | None, count: int | None, timeout: float) -> None:
    who = f"the {count} processes have not all come" if index == 0 else "the coordinator has not answered"
    where = f" at {address}" if address else ""
    print(f"jaxgpt: --distributed: {who}{where} within {timeout:g} s; start the same command on every host, and let "
          "them reach that port of the first", file=sys.stderr, flush=True)
    os._exit(2)


# --- what all know ---------------------------------------------------------------------------------------------------

def count() -> int:
    """How many processes there are; one, without waking any device, where `initialize` was not called."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is process 0, which alone writes files and speaks."""
    return count() == 1 or jax.process_index() == 0


def total(array) -> np.ndarray:
    """The sum of an array over all processes, on each."""
    array = np.asarray(array)
    return array if count() == 1 else multihost_utils.process_allgather(array).sum(axis=0, dtype=array.dtype)


def from_main(number: int) -> int:
    """A number below 2³¹ as process 0 has it."""
    return int(total(np.int32(number if is_main() else 0)))


def fetch(tree: Any) -> Any:
    """Arrays of the mesh as NumPy arrays, whole, on each host; all hosts must call it."""
    if count() == 1:
        return jax.device_get(tree)

    def one(x):
        here = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return np.asarray(x) if here else multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(one, tree)


def all_or_none(work: Callable[[], T]) -> T:
    """Does some work on each process; where it is a user's mistake on any, all raise.

    Raises:
      UserError: this process's own, or that of the first of the others.
    """
    if count() == 1:
        return work()
    own, result = None, None
    try:
        result = work()
    except UserError as error:
        own = error
    sentences = np.zeros((count(), _SENTENCE), np.uint8)
    text = np.frombuffer(str(own or "").encode()[:_SENTENCE], np.uint8)
    sentences[jax.process_index(), :len(text)] = text
    if own:
        total(sentences)
        raise own
    for index, sentence in enumerate(total(sentences)):
        if sentence.any():
            raise UserError(f"process {index} ended: {bytes(sentence).rstrip(bytes(1)).decode(errors='ignore')}")
    return result


def wait() -> None:
    """Returns when all processes have come here, however long that takes; no device waits meanwhile."""
    if count() > 1:
        from orbax.checkpoint import multihost
        multihost.get_barrier_sync_fn()(key=f"jaxgpt/{next(_barriers)}", timeout_ms=2 ** 31 - 1)


def seen(path: Path) -> None:
    """Returns when this host sees a file that process 0 has written; network file systems take their time.

    Raises:
      UserError: it does not within a minute.
    """
    began = time.monotonic()
    while not path.exists():
        if time.monotonic() - began > _SHARED:
            raise UserError(f"{path}: process {jax.process_index()} does not see what process 0 wrote; --workdir must "
                            "name one folder that all hosts share, such as a bucket or a network disk")
        time.sleep(_LOOK)


class Agreement:
    """Whether any process asks for a stop: at each step all get the same answer, one step late.

    The flags are added up on the devices behind the step's own work, so that nobody waits for the answer. Only
    simulated devices do wait: they run programs side by side, and collectives of two at once could starve each other.
    """

    def __init__(self):
        self._asked, self._in_order = None, jax.default_backend() != "cpu"
        if count() > 1:
            mesh = jax.make_mesh((jax.device_count(),), ("device",), axis_types=(AxisType.Auto,))
            self._split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("device",), ()))
            self._sum = jax.jit(jnp.sum, out_shardings=whole)

    def ask(self, flag: bool, *, after: Any) -> bool:
        """Gives this process's flag of this step; returns whether any was set at the step before.

        Args:
          flag: whether this process is to stop.
          after: arrays that the step computes.
        """
        if count() == 1:
            return flag
        if not self._in_order:
            jax.block_until_ready(after)
        flags = np.full(jax.local_device_count(), flag, np.int32)
        before, self._asked = self._asked, self._sum(jax.make_array_from_process_local_data(self._split, flags))
        if not self._in_order:
            self._asked.block_until_ready()
        return before is not None and bool(before)


# --- ending together -------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def ends_together(folder: Path, *, clean: type[Exception]) -> Iterator[None]:
    """Within, a process that `leave`s puts a notice into the folder, and those that see it end with its sentence.

    A process that is gone without a word is noticed by those that compute with it, or within a minute by JAX, which
    aborts them.

    Args:
      folder: the workdir.
      clean: what all raise together, and nobody has to be told of.

    Raises:
      UserError: the processes do not share the folder.
    """
    global _notice
    if count() == 1:
        yield
        return
    run = folder / f".run-{from_main(int.from_bytes(os.urandom(3)))}"
    if is_main():
        for old in folder.glob(".run-*"):
            old.unlink()
        run.touch()
    all_or_none(lambda: seen(run))
    notices = {index: run.with_name(f"{run.name}-{index}") for index in range(count())}
    _notice, over = notices.pop(jax.process_index()), threading.Event()
    watcher = threading.Thread(target=_watch, args=(notices, over), daemon=True)
    watcher.start()
    stopped = None
    try:
        yield
    except clean as error:
        stopped = error  # after any other exception the watcher goes on until this process has left
    over.set()
    watcher.join()
    wait()
    if is_main():
        run.unlink()
    if stopped:
        raise stopped


def _watch(notices: dict[int, Path], over: threading.Event) -> None:
    while not over.wait(_LOOK):
        for index, path in notices.items():
            with contextlib.suppress(OSError):
                _end(2, f"jaxgpt: process {index} ended: {path.read_text(encoding='utf-8')}")


def leave(error: BaseException) -> NoReturn:
    """Says what went wrong and ends this process at once: at a usual exit JAX would wait for those that are gone."""
    status, told = 1, f"{type(error).__name__}: {_first_line(error)}"
    shown = "".join(traceback.format_exception(error)).rstrip()
    if isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in _LOST):
        error = UserError("another process is gone or cannot be reached; start the same command on every host again, "
                          f"and it goes on from the last checkpoint ({told})")
    if isinstance(error, UserError):
        status, told, shown = 2, str(error), f"jaxgpt: {error}"
    elif isinstance(error, KeyboardInterrupt):
        status, told, shown = 130, "it was interrupted", ""
    if _notice:
        with contextlib.suppress(OSError, UserError):
            write_text(_notice, told)
    _end(status, shown)


_LOST = ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "heartbeat")  # in what JAX says of a broken connection


def _end(status: int, text: str) -> NoReturn:
    _leaving.acquire()  # and never released: whoever comes second has nothing to add
    if text:
        print(text, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep((6 if is_main() else 4) * _LOOK)  # all should have read the notice; JAX aborts those that lose process 0
    os._exit(status)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
