"""What a run says of itself: metrics.jsonl always, TensorBoard and W&B where asked, and one line of progress."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import jax

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import cannot_write, write_text

# Dense bfloat16 peak of one device, FLOP/s, by a piece of its device_kind. Source: the makers' data sheets.
PEAK_FLOPS = {"TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12, "TPU v5": 459e12,
              "TPU v6": 918e12, "TPU7x": 2307e12, "A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}

# Metrics that the clock decides: two runs of one experiment differ in them.
TIMED = ("time", "tokens_per_second", "mfu", "batch_time")


def peak_flops() -> float | None:
    """Peak FLOP/s of all devices together; None where the device is not in the table (a CPU)."""
    kind = jax.devices()[0].device_kind
    found = [peak for name, peak in PEAK_FLOPS.items() if name.lower() in kind.lower()]
    return found[0] * jax.device_count() if found else None


def compilations() -> int:
    """How many programs JAX has compiled in this process, or read from its cache, since this was first asked."""
    return len(_compilations())


@functools.cache
def _compilations() -> list[str]:
    seen: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: seen.append(event) if event.endswith("backend_compile_duration") else None)
    return seen


def peak_memory_bytes(on_device: bool = True) -> int:
    """The most memory this process has held: of the device where one was used and counts it, of the host otherwise."""
    stats = jax.local_devices()[0].memory_stats() if on_device else None
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes on macOS, KiB elsewhere
    return (stats or {}).get("peak_bytes_in_use", 0) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class MetricsLog:
    """Appends one JSON object a line to `path`; lines that a killed run wrote beyond `resume` are dropped first.

    Args:
      path: DIRECTORY/metrics.jsonl.
      resume: the step the run goes on from; at 0 the file begins anew.
      trackers: "tensorboard" and "wandb", each where its package is installed.
      name: of the run, for W&B.

    Raises:
      UserError: a tracker is asked for and not installed.
    """

    def __init__(self, path: str | Path, *, resume: int = 0, trackers: tuple[str, ...] = (), name: str = "jaxgpt"):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        old = read_metrics(self.path) if resume and self.path.exists() else []
        kept = [line for line in old if line["step"] <= resume]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.last = kept[-1] if kept else {}
        self._file = open(self.path, "a", encoding="utf-8")
        self._trackers = [TRACKERS[tracker](self.path.parent, name) for tracker in trackers]

    def write(self, step: int, **values) -> None:
        """Writes what was measured at `step`."""
        values = {key: _rounded(value) for key, value in values.items() if value is not None}
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise cannot_write(self.path, error) from error
        for write, _ in self._trackers:
            write(step, values)

    def close(self) -> None:
        """Returns when every line is on disk."""
        for _, close in self._trackers:
            close()
        try:
            with self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a metrics file; a half-written last line (a killed run's) is left out.

    Raises:
      UserError: any other line is not a JSON object with a step.
    """
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            value["step"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}: not a line of metrics (a JSON object with a 'step')") from error
        found.append(value)
    return found


def _rounded(value):
    return float(f"{float(value):.7g}") if isinstance(value, float) or hasattr(value, "dtype") else value


def _tensorboard(directory: Path, name: str):
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("trackers: 'tensorboard' needs the package tensorboardX: pip install tensorboardX") from error
    writer = SummaryWriter(str(directory / "tensorboard"))

    def write(step: int, values: dict) -> None:
        for key, value in values.items():
            if isinstance(value, (int, float)):
                writer.add_scalar(key, value, step)
    return write, writer.close


def _wandb(directory: Path, name: str):
    try:
        import wandb
    except ImportError as error:
        raise UserError("trackers: 'wandb' needs the package wandb: pip install wandb") from error
    # one run for each stage of a workdir, whichever process it is resumed in
    identity = hashlib.sha256(str(directory.absolute()).encode()).hexdigest()[:16]
    run = wandb.init(project="jaxgpt", name=name, dir=str(directory), id=identity, resume="allow")
    return (lambda step, values: run.log(values, step=step)), run.finish


# {name: (directory, name of the run) -> (write(step, values), close())}
TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb}


class Progress:
    """One line that says how far, how fast and how long still; rewritten in place on a terminal, else now and then.

    Args:
      total: of the units.
      unit: "steps", "documents".
      label: what is going on.
      start: units done before (by an earlier run).
      stream: where the line goes; standard error where None.
    """

    def __init__(self, total: int, unit: str, label: str, *, start: int = 0, stream=None):
        self.total, self.unit, self.label, self.done = total, unit, label, start
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._began = self._last = time.monotonic()
        self._start, self._shown = None, False

    def update(self, count: int = 1, **fields) -> None:
        """`count` more units are done; `fields` are shown behind, in order."""
        self.done += count
        now = time.monotonic()
        if self._start is None and count:
            self._began, self._start = now, self.done  # the first unit compiles: it says nothing of the rate
        every = 0.1 if self._live else 15.0
        if now - self._last >= every or self.done >= self.total:
            self._last, self._shown = now, True
            self._write(self._line(now, fields))

    def _line(self, now: float, fields: dict) -> str:
        elapsed, done = now - self._began, self.done - (self.done if self._start is None else self._start)
        rate = done / elapsed if elapsed > 0 and done > 0 else 0.0
        parts = [f"{self.label} {self.done:,}/{self.total:,} {self.unit}"]
        parts += [f"{name} {value}" for name, value in fields.items() if value is not None]
        if rate:
            parts += [f"{rate:,.1f} {self.unit}/s" if rate >= 1 else f"{1 / rate:,.1f} s/{self.unit.rstrip('s')}"]
            parts += [f"ETA {duration((self.total - self.done) / rate)}"] if self.done < self.total else []
        return " | ".join(parts)

    def _write(self, line: str) -> None:
        if self._live:  # a line that wraps could not be rewritten in place
            line = line[:shutil.get_terminal_size().columns - 1]
        self._stream.write(f"\r\x1b[2K{line}" if self._live else line + "\n")
        self._stream.flush()

    def log(self, text: str) -> None:
        """A line of its own above the progress."""
        self._stream.write(f"\r\x1b[2K{text}\n" if self._live else text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leaves the last line where it stands."""
        if self._live and self._shown:
            self._stream.write("\n")
            self._stream.flush()


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(7.25), duration(95), duration(7322)
    ('7.2 s', '1 min 35 s', '2 h 02 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
