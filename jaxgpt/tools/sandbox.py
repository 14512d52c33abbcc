"""Python for a model: its program runs in a process walled off from everything, and what it printed comes back.

The program gets a new session, an empty environment, a user of its own without rights, namespaces of its own (no network,
no other process, no file but Python's own library, read only), a small disk in memory, and limits on time, memory,
processes, files and output. `_inside.py` builds the walls. Where the system has none to give (it takes Linux, and root or
user namespaces), the sandbox is refused, unless `walled=False` says that limits alone are enough.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxgpt.core.errors import UserError

_INSIDE = Path(__file__).with_name("_inside.py")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may take.

    Attributes:
      seconds: of the clock, and of a processor.
      memory: bytes of address space of each process.
      processes: at once, threads included.
      file_size, disk: bytes of a file, and of all.
      output: bytes that are kept; a program that prints more is ended.
    """

    seconds: float = 5.0
    memory: int = 512 * 2 ** 20
    processes: int = 16
    file_size: int = 16 * 2 ** 20
    disk: int = 32 * 2 ** 20
    output: int = 16 * 2 ** 10


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a program did: what it printed, errors included, and how it ended ("ok", "error", "time" or "output")."""

    output: str
    ended: str


@dataclasses.dataclass(frozen=True)
class Python:
    """The tool: a program in, what it printed out, or a sentence that begins with "error:"."""

    limits: Limits = Limits()
    walled: bool = True

    def __call__(self, code: str) -> str:
        ran = run_python(code, self.limits, walled=self.walled)
        printed = ran.output.rstrip()
        said = {"time": f"error: it ran longer than {self.limits.seconds:g} s and was ended",
                "output": f"error: it printed more than {self.limits.output:,} bytes and was ended",
                "error": "" if printed else "error: it ended without a word (killed for memory or by a crash)",
                "ok": "" if printed else "it printed nothing"}[ran.ended]
        return "\n".join(filter(None, (printed, said)))


@functools.cache
def refusal() -> str:
    """Why no program can be walled off here; "" where one can."""
    if not sys.platform.startswith("linux"):
        return f"it takes Linux, and this is {sys.platform}"
    try:
        return "" if _run("print('in')", Limits(), walled=True).output == "in\n" else "Python does not start inside"
    except _CannotWallOff as error:
        return str(error)


def run_python(code: str, limits: Limits = Limits(), *, walled: bool = True) -> Ran:
    """Runs a program and returns what it printed.

    Args:
      code: Python; its own library is there and no other package.
      limits: see `Limits`.
      walled: False runs it with limits alone: it can then read files, reach the network and see other processes.

    Raises:
      UserError: it cannot be walled off here, with the reason.
    """
    if walled and refusal():
        raise UserError(f"Python for a model cannot be walled off from this machine ({refusal()}); "
                        "walled=False runs it with limits alone, as you, with your files and network")
    return _run(code, limits, walled=walled)


class _CannotWallOff(Exception):
    pass


def _run(code: str, limits: Limits, *, walled: bool) -> Ran:
    executable = os.path.realpath(sys.executable)
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        script = "/tmp/main.py" if walled else os.path.join(folder, "main.py")
        if not walled:
            Path(script).write_text(code, encoding="utf-8", errors="surrogatepass")
        settings = {"code": code, "script": script, "root": folder, "walled": walled, "executable": executable,
                    "python": [os.path.realpath(sys.base_prefix), executable], "disk": limits.disk,
                    "user": random.SystemRandom().randrange(2 ** 24, 2 ** 30),  # counts processes for itself alone
                    "limits": {"AS": limits.memory, "CPU": int(limits.seconds) + 1, "FSIZE": limits.file_size,
                               "NPROC": limits.processes, "NOFILE": 64, "CORE": 0}}
        if not walled:
            del settings["limits"]["NPROC"]  # would count all that this user runs
        return _watched(settings, folder, limits)


def _watched(settings: dict, folder: str, limits: Limits) -> Ran:
    """Starts the inside, and ends it where it takes too long or prints too much."""
    heard, says = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _START, str(_INSIDE), str(says)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={}, cwd=folder, start_new_session=True, pass_fds=(says,))
    os.close(says)
    child = None
    try:
        process.stdin.write(json.dumps(settings).encode())
        process.stdin.close()
        with os.fdopen(heard) as lines:
            for line in lines:  # ends when the program begins
                word, _, rest = line.strip().partition(" ")
                if word == "cannot":
                    raise _CannotWallOff(rest)
                child = int(rest) if word == "child" else child
        output, ended = _read(process, limits)
    finally:
        for pid in filter(None, (child, process.pid)):
            try:
                os.kill(pid, signal.SIGKILL) if pid == child else os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        code = process.wait()
        process.stdout.close()
    return Ran(output.decode("utf-8", "replace"), ended or ("error" if code else "ok"))


_START = ("import os, runpy, sys; path, says = sys.argv[1:]; fd = int(says); os.dup2(fd, 3) if fd != 3 else os.set_inheritable(3, True);"
          " os.close(fd) if fd != 3 else None; runpy.run_path(path, run_name='__main__')")


def _read(process: subprocess.Popen, limits: Limits) -> tuple[bytes, str]:
    """What it prints until it ends, or until a limit does: (bytes, "", "time" or "output")."""
    deadline, found, pipe = time.monotonic() + limits.seconds, b"", process.stdout.fileno()
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([pipe], [], [], left)[0]:
            break
        piece = os.read(pipe, 65536)
        if not piece:
            return found, "" if _ends(process, deadline) else "time"
        found += piece
        if len(found) > limits.output:
            return found[:limits.output], "output"
    return found, "time"


def _ends(process: subprocess.Popen, deadline: float) -> bool:
    try:
        process.wait(max(deadline - time.monotonic(), 0.01))
        return True
    except subprocess.TimeoutExpired:
        return False
