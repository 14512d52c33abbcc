"""Metrics on disk, and the line of progress on a terminal and off one."""

import io
import json
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.core.metrics import TRACKERS, MetricsLog, Progress, duration, peak_flops, peak_memory_bytes, read_metrics


def write(path, *steps, **options):
    log = MetricsLog(path, **options)
    for step in steps:
        log.write(step, loss=step / 3, time=float(step))
    log.close()


def test_a_line_a_step(tmp_path):
    path = tmp_path / "stage" / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(1, loss=jnp.float32(1 / 3), val=np.float64(2.0), tokens=64, mfu=None)
    assert path.read_text() == '{"step": 1, "loss": 0.3333333, "val": 2.0, "tokens": 64}\n'  # at once: a run may be killed
    log.close()
    assert read_metrics(path) == [{"step": 1, "loss": 0.3333333, "val": 2.0, "tokens": 64}]


def test_resuming_drops_what_came_after(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 2, 4, 6)
    log = MetricsLog(path, resume=4)
    assert log.last == {"step": 4, "loss": 1.333333, "time": 4.0}
    log.close()
    assert [line["step"] for line in read_metrics(path)] == [0, 2, 4]
    write(path, 5, resume=4)
    assert [line["step"] for line in read_metrics(path)] == [0, 2, 4, 5]


def test_a_run_that_begins_anew_begins_a_new_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 2)
    write(path, 0)
    assert [line["step"] for line in read_metrics(path)] == [0]


def test_a_half_written_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 1, "loss": 2.0}\n'
    for cut in range(1, len(whole) - 1):
        path.write_text(whole + whole[:cut])
        assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("line", ['{"step": 2, "lo', "[2]", '"step"', '{"loss": 1.0}', "2"])
def test_any_other_broken_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(UserError, match="metrics.jsonl, line 2: not a line of metrics") as error:
        read_metrics(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("tracker, package", [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch, tracker, package):
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails, as where it is absent
    with pytest.raises(UserError, match=f"trackers: '{tracker}' needs the package {package}: pip install {package}"):
        MetricsLog(tmp_path / "metrics.jsonl", trackers=(tracker,))


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboardX")
    write(tmp_path / "metrics.jsonl", 1, trackers=("tensorboard",))
    assert list((tmp_path / "tensorboard").iterdir())


def test_trackers_have_names():
    assert set(TRACKERS) == {"tensorboard", "wandb"}


# --- progress --------------------------------------------------------------------------------------------------------

class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds, moved by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def step(progress, clock, seconds, count=1, **fields):
    clock[0] += seconds
    progress.update(count, **fields)


def test_off_a_terminal_a_line_now_and_then(clock):
    stream = io.StringIO()
    progress = Progress(100, "steps", "pretrain", stream=stream)
    step(progress, clock, 9.0, loss="5.0000")  # the first unit compiles: not counted in the rate
    for number in range(2, 101):
        step(progress, clock, 0.5, loss=f"{5 - number / 50:.4f}", **{"tok/s": "1,024"})
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "pretrain 13/100 steps | loss 4.7400 | tok/s 1,024 | 2.0 steps/s | ETA 43.5 s"
    assert lines[-1] == "pretrain 100/100 steps | loss 3.0000 | tok/s 1,024 | 2.0 steps/s"
    assert len(lines) == 4 and "\r" not in stream.getvalue()


def test_on_a_terminal_the_line_is_rewritten(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal()
    progress = Progress(10, "documents", "tokenize", stream=stream)
    for _ in range(4):
        step(progress, clock, 4.0)
    progress.log("a word")
    progress.close()
    shown = stream.getvalue().split("\r\x1b[2K")
    assert shown[0] == "" and shown[4] == "tokenize 4/10 documents | 4.0 s/document | ETA 24.0 s"
    assert shown[5] == "a word\n\n" and stream.getvalue().count("\n") == 2


def test_a_line_is_never_wider_than_the_terminal(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    progress = Progress(10, "steps", "a stage with a long name", stream=stream)
    step(progress, clock, 4.0, loss="1.2345")
    assert len(stream.getvalue().removeprefix("\r\x1b[2K")) == 29


def test_a_terminal_is_not_flooded(clock):
    stream = Terminal()
    progress = Progress(10_000, "steps", "fast", stream=stream)
    for _ in range(1000):
        step(progress, clock, 0.001)
    assert 5 <= stream.getvalue().count("\r") <= 10


def test_a_resumed_run_counts_its_own_rate(clock):
    stream = io.StringIO()
    progress = Progress(1000, "steps", "x", start=500, stream=stream)
    step(progress, clock, 5.0)
    step(progress, clock, 20.0, count=100)
    assert stream.getvalue() == "x 601/1,000 steps | 5.0 steps/s | ETA 1 min 20 s\n"


def test_several_at_once_and_none_at_all(clock):
    stream = io.StringIO()
    progress = Progress(0, "answers", "x", stream=stream)
    progress.update(0)
    progress.log("hello")
    progress.close()
    assert stream.getvalue().splitlines()[-1] == "hello"


@pytest.mark.parametrize("seconds, text", [
    (0, "0.0 s"), (7.25, "7.2 s"), (59.94, "59.9 s"), (59.97, "1 min 00 s"), (60, "1 min 00 s"), (119.7, "2 min 00 s"),
    (3599.6, "1 h 00 min"), (7322, "2 h 02 min"), (400_000, "111 h 06 min")])
def test_durations_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_this_machine():
    assert 1e7 < peak_memory_bytes() < 1e13
    assert peak_flops() is None  # a CPU is not in the table


def test_numbers_stay_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(1, big=123456789, small=1.23456789e-12, flag=True, text="x", array=np.float32(0.1))
    log.close()
    assert json.loads(path.read_text()) == {"step": 1, "big": 123456789, "small": 1.234568e-12, "flag": True, "text": "x",
                                            "array": 0.1}
