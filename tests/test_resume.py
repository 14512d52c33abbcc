"""Killed at any moment and started again, a run ends as if nothing had happened: the same bits.

Real processes of the command line, on one device.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

from jaxgpt.core.files import read_json
from jaxgpt.core.metrics import TIMED

pytestmark = pytest.mark.slow

STEPS = {"pretrain": 48, "sft": 48, "grpo": 24}
EXPERIMENT = """
from pathlib import Path
import tiny


def get_config():
    return tiny.experiment(Path(__file__).with_name("corpus.txt"), steps=48, sft_steps=48, grpo_steps=24, save_every=4,
                           kl_weight=0.05, updates=2)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    tiny.write_corpus(folder)
    (folder / "small.py").write_text(EXPERIMENT)
    return folder


class Process:
    """`jaxgpt run` on the experiment in a folder."""

    def __init__(self, folder: Path, workdir: Path, *options: str):
        tests = Path(__file__).parent
        self.arguments = ["run", str(folder / "small.py"), "--workdir", str(workdir), *options]
        self.workdir, self.output = workdir, workdir.with_suffix(".log")
        env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": os.pathsep.join(map(str, (tests.parent, tests)))}
        with open(self.output, "w") as output:
            self.process = subprocess.Popen([sys.executable, "-m", "jaxgpt.cli", *self.arguments], env=env,
                                            stdout=output, stderr=subprocess.STDOUT)

    def wait_for(self, stage: str, step: int) -> None:
        """Returns as soon as a stage has logged that step."""
        path = self.workdir / stage / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while last_step(path) < step:
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.001)

    def end(self, number: int | None = None) -> int:
        """Sends a signal, if one is named, and waits for the exit status."""
        if number:
            self.process.send_signal(number)
        return self.process.wait(timeout=180)


def last_step(path: Path) -> int:
    try:
        return max((json.loads(line)["step"] for line in path.read_text().splitlines()[-2:]), default=-1)
    except (OSError, ValueError):  # not there yet, or half a line
        return -1


@pytest.fixture(scope="module")
def uninterrupted(folder):
    process = Process(folder, folder / "uninterrupted")
    assert process.end() == 0, process.output.read_text()
    return process.workdir


def metrics(workdir: Path, stage: str) -> list[dict]:
    """The lines of a stage without what the clock decides."""
    lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED}
            for line in lines]


def assert_same(workdir: Path, expected: Path, stages=tuple(STEPS)) -> None:
    for stage in stages:
        assert metrics(workdir, stage) == metrics(expected, stage), stage
        found, right = (tiny.params_of(where, stage, STEPS[stage]) for where in (workdir, expected))
        for name in right:
            np.testing.assert_array_equal(found[name], right[name], err_msg=f"{stage}: {name}")
        manifests = [read_json(where / stage / "manifest.json") for where in (workdir, expected)]
        assert manifests[0]["outputs"] == manifests[1]["outputs"] and manifests[0]["inputs"] == manifests[1]["inputs"]
        checkpoints = [sorted(path.name for path in (where / stage / "checkpoints").iterdir())
                       for where in (workdir, expected)]
        assert checkpoints[0] == checkpoints[1]


def test_the_run_is_worth_resuming(uninterrupted):
    for stage, steps in STEPS.items():
        losses = tiny.losses(uninterrupted, stage)
        assert list(losses) == list(range(1, steps + 1)) and len(set(losses.values())) > steps // 2


def test_killed_at_random_moments(folder, uninterrupted):
    rng, workdir = random.Random(0), folder / "killed"
    first = Process(folder, workdir)
    time.sleep(rng.uniform(0.5, 3))  # anywhere: while importing, curating, compiling
    assert first.end(signal.SIGKILL) == -signal.SIGKILL, first.output.read_text()
    kills = [("pretrain", rng.randint(1, 16)), ("pretrain", rng.randint(20, 36)), ("sft", rng.randint(1, 36)),
             ("grpo", rng.randint(1, 8)), ("grpo", rng.randint(10, 16))]
    for stage, step in kills:
        process = Process(folder, workdir)
        process.wait_for(stage, step)
        time.sleep(rng.uniform(0, 0.01))
        assert process.end(signal.SIGKILL) == -signal.SIGKILL, process.output.read_text()
        assert not (workdir / stage / "manifest.json").exists(), f"{stage} was over before it was killed"
    process = Process(folder, workdir)
    assert process.end() == 0, process.output.read_text()
    text = process.output.read_text()
    assert "[5/6] sft: complete" in text and "grpo: resumed at step" in text
    assert_same(workdir, uninterrupted)


def test_asked_to_stop(folder, uninterrupted):
    workdir = folder / "asked"
    for stage in tiny.DATA:
        shutil.copytree(uninterrupted / stage, workdir / stage)
    process = Process(folder, workdir, "--stage", "pretrain")
    process.wait_for("pretrain", 5)
    assert process.end(signal.SIGTERM) == 0, process.output.read_text()
    text = process.output.read_text()
    assert text.endswith(f"To go on:\n  jaxgpt {' '.join(process.arguments)}\n") and "Traceback" not in text
    stopped = last_step(workdir / "pretrain" / "metrics.jsonl")
    assert 5 <= stopped < 48 and (workdir / "pretrain" / "checkpoints" / str(stopped)).is_dir()
    assert not (workdir / "pretrain" / "manifest.json").exists()

    process = Process(folder, workdir, "--stage", "pretrain")
    assert process.end() == 0 and f"resumed at step {stopped}" in process.output.read_text()
    assert metrics(workdir, "pretrain") == metrics(uninterrupted, "pretrain")
    found, right = (tiny.params_of(where, "pretrain", 48) for where in (workdir, uninterrupted))
    for name in right:
        np.testing.assert_array_equal(found[name], right[name], err_msg=name)
