"""Every benchmark still runs: in its smoke form, alone, in a process of its own as a person would start it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1]), "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run([sys.executable, str(FOLDER / script), *arguments], env=environment, text=True, timeout=300,
                          capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_step", "decode_step", "loader", "tokenizer", "collectives", "curation", "engine",
                                    "import_memory", "kernels", "on_one_gpu"])
def test_a_benchmark_runs_and_prints_its_table(script):
    done = run(f"{script}.py", "--smoke")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{script}, ") and ", jax " in lines[0] and ", commit " in lines[0]
    columns = [line.count("|") for line in lines if line.startswith("|")]
    assert len(columns) >= 3 and columns[0] > 3


@pytest.mark.parametrize("script, arguments, says", [
    ("train_step.py", ["--nanogpt", "no/such/folder"], "--nanogpt no/such/folder: no model.py in it"),
    ("tokenizer.py", ["--text", "no/such/file"], "--text no/such/file: no such file"),
    ("decode_step.py", ["--tokens", "1"], "--tokens 1: at least 2"),
    ("kernels.py", [], "the kernels run on a GPU, and here is none"),
    ("on_one_gpu.py", [], "on_one_gpu.py measures on a GPU, and here is none"),
    ("curation.py", ["--data", "no/such/folder"], "--data no/such/folder: no text/peps.tar.gz in it"),
])
def test_what_is_missing_is_one_sentence(script, arguments, says):
    done = run(script, *arguments)
    assert done.returncode == 1 and done.stderr.startswith(says) and len(done.stderr.splitlines()) == 1
