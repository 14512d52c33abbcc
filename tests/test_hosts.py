"""Two processes with four devices each, joined over the loopback: the same losses as one device, and one end for both.

Real processes of the command line, as on two hosts that share the workdir.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from jaxgpt.core import distributed
from jaxgpt.core.checkpoint import complete_steps
from jaxgpt.core.config import load
from jaxgpt.core.errors import UserError
from jaxgpt.core.files import read_json

STEPS = 20
EXPERIMENT = f"""
import dataclasses
from pathlib import Path
import tiny
from jaxgpt.evals.evaluate import Evaluate


def get_config():
    chosen = tiny.experiment(Path(__file__).with_name("corpus.txt"), steps={STEPS}, sft_steps=10, grpo_steps=2,
                             kl_weight=0.05, updates=2)
    base = chosen.stage("pretrain")
    base = dataclasses.replace(base, loop=dataclasses.replace(base.loop, save_every=5, keep=10))
    practice = chosen.stage("grpo")
    optim = dataclasses.replace(practice.optim, eps=1e-3)  # else AdamW makes a whole step of a gradient that is rounding
    practice = dataclasses.replace(practice, loop=dataclasses.replace(practice.loop, eval_every=0), optim=optim)
    scores = Evaluate(of=("sft",), tasks=(tiny.Letters("a"),), problems=8, max_new_tokens=4, continuations=())
    return dataclasses.replace(chosen, stages=(*chosen.stages[:3], base, chosen.stage("sft"), scores, practice))
"""
FSDP = ("--set", "layout.data=2", "--set", "layout.fsdp=4")  # data between the hosts
TENSOR = ("--set", "rules=fsdp_tensor_sequence", "--set", "layout.data=1", "--set", "layout.tensor=2",
          "--set", "layout.sequence=4", "--set", "pretrain.prompts=()")


class Hosts:
    """`jaxgpt run --distributed` on the experiment in a folder, in two processes."""

    def __init__(self, folder: Path, workdir: Path, *options: str):
        tests, port = Path(__file__).parent, free_port()
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4",
               "PYTHONPATH": os.pathsep.join(map(str, (tests.parent, tests)))}
        self.arguments = ["run", str(folder / "small.py"), "--workdir", str(workdir), *options]
        self.workdir, self.processes = workdir, []
        self.outputs = [workdir.with_name(f"{workdir.name}-{index}.log") for index in range(2)]
        self.arguments = [[*self.arguments, "--distributed", f"127.0.0.1:{port},{index},2"] for index in range(2)]
        for arguments, output in zip(self.arguments, self.outputs):
            with open(output, "w") as file:
                self.processes.append(subprocess.Popen([sys.executable, "-m", "jaxgpt.cli", *arguments], env=env,
                                                       stdout=file, stderr=subprocess.STDOUT))

    def text(self, index: int) -> str:
        """What a process said, without the lines of the libraries below: of Gloo, whose threads tear each other's lines
        apart so that a number or a line end can stand alone, and of XLA's (W)arnings."""
        lines = self.outputs[index].read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not re.search(r"\[Gloo\]|peer ranks|^W\d{4} |^[\d\s]*$", line))

    def wait_for(self, stage: str, step: int) -> None:
        """Returns as soon as a stage has logged that step."""
        path, deadline = self.workdir / stage / "metrics.jsonl", time.monotonic() + 180
        while last_step(path) < step:
            assert all(process.poll() is None for process in self.processes), self.text(0) + self.text(1)
            assert time.monotonic() < deadline, self.text(0) + self.text(1)
            time.sleep(0.01)

    def end(self, limit: float = 180) -> tuple[int, int]:
        """The exit statuses of both, which must come within `limit` seconds."""
        deadline = time.monotonic() + limit
        try:
            return tuple(process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes)
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def last_step(path: Path) -> int:
    try:
        return max((json.loads(line)["step"] for line in path.read_text().splitlines()[-2:]), default=-1)
    except (OSError, ValueError):  # not there yet, or half a line
        return -1


def same(found: dict[int, float], expected: dict[int, float]) -> None:
    assert found.keys() == expected.keys() and len(found) > 1
    worst = max(found, key=lambda step: abs(found[step] / expected[step] - 1))
    assert found[worst] == pytest.approx(expected[worst], rel=1e-5), f"step {worst}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    tiny.write_corpus(folder)
    (folder / "small.py").write_text(EXPERIMENT)
    return folder


@pytest.fixture(scope="module")
def chosen(folder):
    return load(folder / "small.py")


@pytest.fixture(scope="module")
def alone(folder, chosen):
    """The workdir of the base model and the assistant on one device."""
    tiny.run_stages(chosen, (*tiny.DATA, "pretrain", "sft"), folder / "alone")
    return folder / "alone"


@pytest.fixture(scope="module")
def both(folder):
    """The same on two processes with four devices each, all stages."""
    hosts = Hosts(folder, folder / "both", *FSDP)
    assert hosts.end() == (0, 0), hosts.text(0) + hosts.text(1)
    return hosts


def from_step(start: Path, workdir: Path, step: int) -> Path:
    """A workdir whose base model was trained up to a step elsewhere."""
    for stage in tiny.DATA:
        shutil.copytree(start / stage, workdir / stage)
    shutil.copytree(start / "pretrain" / "checkpoints" / str(step), workdir / "pretrain" / "checkpoints" / str(step))
    lines = (start / "pretrain" / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    (workdir / "pretrain" / "metrics.jsonl").write_text("".join(kept))
    return workdir


# --- the same as one -------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_two_hosts_agree_with_one_device(alone, both):
    losses = tiny.losses(alone, "pretrain")
    assert list(losses) == list(range(1, STEPS + 1)) and losses[STEPS] < losses[1] - 1
    for stage in ("pretrain", "sft"):
        same(tiny.losses(both.workdir, stage), tiny.losses(alone, stage))
        same(tiny.losses(both.workdir, stage, "val_loss"), tiny.losses(alone, stage, "val_loss"))
    samples = [(work / "pretrain" / "samples.jsonl").read_text() for work in (both.workdir, alone)]
    assert samples[0] == samples[1] and samples[0].count("\n") == 6


@pytest.mark.slow
def test_practice_and_scores_are_those_of_one_device(both, chosen, tmp_path):
    work = shutil.copytree(both.workdir, tmp_path / "work", ignore=shutil.ignore_patterns("grpo", "evaluate"))
    tiny.run_stages(chosen, ("grpo",), work)  # from the same assistant, so that the first batch is the same
    for key in ("reward", "well_formed", "completion_tokens", "ratio", "kl", "entropy", "grad_norm"):
        found, expected = (tiny.losses(where, "grpo", key)[1] for where in (both.workdir, work))
        assert found == pytest.approx(expected, rel=1e-4), key
    scores = read_json(both.workdir / "evaluate" / "scores.json")["rows"]
    assert [(row["stage"], row["count"]) for row in scores] == [("sft", 8)]


@pytest.mark.slow
def test_one_process_writes_and_speaks(both):
    assert both.text(1) == ""
    assert both.text(0).count("pretrain: done in") == 1 and "8 x cpu: data 2 x fsdp 4" in both.text(0)
    for stage in ("pretrain", "sft"):
        steps = [json.loads(line)["step"] for line in (both.workdir / stage / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(steps) and max(map(steps.count, steps)) <= 2  # a step, and an evaluation at it
    assert {path.name for path in both.workdir.iterdir() if path.name.startswith(".")} == {".lock"}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_their_checkpoint_goes_on_elsewhere(alone, both, chosen, tmp_path, devices):
    work = from_step(both.workdir, tmp_path / "work", 10)
    tiny.run_stages(chosen, ("pretrain",), work, tiny.mesh(devices, data=1, fsdp=devices))
    assert complete_steps(work / "pretrain" / "checkpoints") == [10, 15, 20]
    same(tiny.losses(work, "pretrain"), tiny.losses(alone, "pretrain"))


# --- one end for both ------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_stopped_and_killed_they_go_on(folder, alone):
    """From one device's checkpoint, with tensors split between the hosts, so that each has all rows of a batch."""
    work = from_step(alone, folder / "stopped", 5)
    hosts = Hosts(folder, work, "--stage", "pretrain", *TENSOR)
    hosts.wait_for("pretrain", 8)
    hosts.processes[1].send_signal(signal.SIGTERM)
    assert hosts.end() == (0, 0), hosts.text(0) + hosts.text(1)
    assert hosts.text(0).endswith(f"To go on:\n  jaxgpt {shlex.join(hosts.arguments[0])}\n") and hosts.text(1) == ""
    stopped = last_step(work / "pretrain" / "metrics.jsonl")
    assert not list(work.glob(".run-*"))
    assert 8 <= stopped < STEPS and max(complete_steps(work / "pretrain" / "checkpoints")) == stopped

    hosts = Hosts(folder, work, "--stage", "pretrain", *TENSOR)
    hosts.wait_for("pretrain", stopped + 1)
    hosts.processes[1].kill()
    status, killed = hosts.end(limit=120)
    assert killed == -signal.SIGKILL and f"resumed at step {stopped}" in hosts.text(0)
    if status == 2:  # Gloo noticed it; else JAX did, after a minute without a heartbeat, and aborted the process
        assert "jaxgpt: another process is gone or cannot be reached; start the same command" in hosts.text(0)
    else:
        assert status == -signal.SIGABRT and "another task died" in hosts.text(0)
    assert "Traceback" not in hosts.text(0) and not (work / "pretrain" / "manifest.json").exists()

    hosts = Hosts(folder, work, "--stage", "pretrain", *TENSOR)
    assert hosts.end() == (0, 0), hosts.text(0) + hosts.text(1)
    same(tiny.losses(work, "pretrain"), tiny.losses(alone, "pretrain"))


@pytest.mark.slow
def test_a_mistake_ends_both_with_its_sentence(folder):
    hosts = Hosts(folder, folder / "mistake", "--set", "pretrain.bach=3")
    assert hosts.end() == (2, 2)
    for index in range(2):
        assert hosts.text(index).startswith("jaxgpt: --set pretrain.bach: no field of Pretrain is called 'bach'")
        assert hosts.text(index).count("\n") == 1
    assert not (folder / "mistake").exists()


@pytest.mark.slow
def test_a_mistake_that_one_alone_finds_ends_both(folder, alone):
    """Process 0 alone reads the corpus; the other waits for it meanwhile."""
    hosts = Hosts(folder, folder / "missing", "--set", "curate.source.paths=nowhere.txt")
    assert hosts.end() == (2, 2)
    assert hosts.text(1).startswith("jaxgpt: process 0 ended: ") and hosts.text(1).count("\n") == 1
    assert "nowhere.txt" in hosts.text(0) and hosts.text(1).endswith(hosts.text(0).splitlines()[-1][8:] + "\n")
    assert "Traceback" not in hosts.text(0)


# --- joining ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, message", [
    ("10.0.0.1", "write HOST:PORT,INDEX,COUNT: 10.0.0.1"), ("10.0.0.1:1234,1", "write HOST:PORT,INDEX,COUNT"),
    ("10.0.0.1:port,0,2", "write HOST:PORT"), (":1234,0,2", "write HOST:PORT"), ("h:1,-1,2", "write HOST:PORT"),
    ("h:1234,2,2", "INDEX is 2, but with COUNT 2 it is from 0 to 1"), ("h:1234,0,0", "COUNT is at least 1"),
    ("h:70000,0,2", "PORT is from 1 to 65535")])
def test_words_that_name_no_host(text, message):
    with pytest.raises(UserError, match=message) as error:
        distributed.parse(text)
    assert str(error.value).startswith(f"--distributed {text}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("text, message", [
    ("127.0.0.1:{port},1,2", "the coordinator has not answered at 127.0.0.1:{port} within 1 s; start the same command"),
    ("127.0.0.1:{port},0,2", "the 2 processes have not all come at 127.0.0.1:{port} within 1 s; start the same"),
    ("", "JAX cannot tell by itself which hosts there are")])
def test_hosts_that_do_not_come(text, message):
    port = free_port()
    code = ("from jaxgpt.core import distributed, errors\ntry:\n"
            f"  distributed.initialize({text.format(port=port)!r}, timeout=1)\n"
            "except errors.UserError as error:\n  raise SystemExit(f'jaxgpt: {error}')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode in (1, 2) and message.format(port=port) in done.stderr
    assert done.stderr.startswith("jaxgpt: --distributed") and done.stderr.count("\n") == 1


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} cannot be used here .*; choose another"):
            distributed.initialize(f"127.0.0.1:{port},0,2")


def test_one_process_alone_needs_no_agreement():
    agreement = distributed.Agreement()
    assert [agreement.ask(flag, after=()) for flag in (False, True, False)] == [False, True, False]
    assert distributed.count() == 1 and distributed.is_main() and distributed.from_main(7) == 7
    assert distributed.all_or_none(lambda: 3) == 3 and distributed.total([1, 2]).tolist() == [1, 2]
