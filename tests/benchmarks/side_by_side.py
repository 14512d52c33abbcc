"""What the benchmarks share: two sides that take turns in processes of their own, and the table that compares them.

Not run by itself. A script makes one `Worker` a side; each answers with the value and the seconds of one call of a
method of its side. Blocks of work alternate, so that whatever else the machine does falls on all sides alike.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def parser(doc: str) -> argparse.ArgumentParser:
    """Arguments of a script: its docstring is the help."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--smoke", action="store_true", help="tiny sizes: shows that the script runs, measures nothing")
    return made


# --- what it ran on --------------------------------------------------------------------------------------------------

def header(title: str, on: str, *packages: str) -> str:
    """One line: what was measured, `on` what, with which versions, at which commit."""
    found = {name: version(name) for name in ("jax", *packages)}
    return ", ".join([title, on, f"Python {platform.python_version()}",
                      *(f"{name} {number}" for name, number in found.items() if number), f"commit {commit()}"])


def hardware() -> str:
    """The accelerator with its count, or the processor with the cores this process may use."""
    import jax
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    simulated = f" ({jax.device_count()} simulated devices)" if jax.device_count() > 1 else ""
    return f"{cores} cores of {name}{simulated}"


def probe() -> tuple[str, str]:
    """(JAX's backend, `hardware`), asked in a process that ends: the sides then find the accelerator free."""
    code = "import jax, side_by_side; print(jax.default_backend()); print(side_by_side.hardware())"
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, text=True,
                          stdout=subprocess.PIPE, check=True)
    return tuple(done.stdout.splitlines()[-2:])


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    git = lambda *words: subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)  # noqa: E731
    name = git("rev-parse", "--short", "HEAD").stdout.strip()
    return (name + (" with changes" if git("status", "--porcelain", "-uno").stdout.strip() else "")) or "unknown"


def need(package: str, why: str) -> None:
    """Ends the program where a package is missing, with one sentence."""
    if version(package) is None:
        raise SystemExit(f"{why} needs the package {package}: pip install {package}")


def folder(path: str, holds: str, name: str) -> str:
    """The absolute path of a peer's folder; ends the program with one sentence where it is not one."""
    if not (Path(path) / holds).is_file():
        raise SystemExit(f"{name} {path}: no {holds} in it; give the folder that its repository was cloned to")
    return os.path.abspath(path)


# --- a process for each side -----------------------------------------------------------------------------------------

def serve(kind, *settings) -> None:
    """Makes a side, kind(*settings), and answers each line `METHOD JSON-ARGUMENTS` with its value and seconds."""
    replies, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not end up among the replies
    side = kind(*settings)
    for line in sys.stdin:
        method, arguments = line.split(" ", 1)
        began = time.perf_counter()
        value = getattr(side, method)(*json.loads(arguments))
        print(json.dumps({"value": value, "seconds": time.perf_counter() - began}), file=replies, flush=True)


class Worker:
    """A side in a process of its own, called like a function: worker("steps", 20)["seconds"]."""

    def __init__(self, name: str, script: str, *arguments: str):
        self.name = name
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        # sides share an accelerator: none may take all of its memory at the start
        environment = {**os.environ, "PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._process = subprocess.Popen([sys.executable, script, "--worker", *arguments], env=environment, text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, method: str, *arguments) -> dict:
        try:
            self._process.stdin.write(f"{method} {json.dumps(arguments)}\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            raise SystemExit(f"{self.name}: its process ended; what it said last is above") from None

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)


def in_turns(workers: list[Worker], rounds: int, method: str, *arguments) -> dict[str, list[float]]:
    """Seconds of each worker's call in each round; who goes first changes from round to round."""
    seconds = {worker.name: [] for worker in workers}
    for number in range(rounds):
        for worker in workers[::-1] if number % 2 else workers:
            seconds[worker.name].append(worker(method, *arguments)["seconds"])
        # a run that is cut off has then said what it found
        so_far = ", ".join(f"{name} {statistics.median(found):.4g} s" for name, found in seconds.items())
        print(f"\r{method}: round {number + 1} of {rounds}, medians {so_far}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


# --- the table -------------------------------------------------------------------------------------------------------

def ratio(ours: list[float], peer: list[float]) -> float:
    """The median over rounds of ours / the peer's in the same round."""
    return statistics.median(a / b for a, b in zip(ours, peer))


def table(columns: list[str], rows: list[list]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])
