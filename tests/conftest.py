"""Before JAX starts: eight simulated CPU devices and a compilation cache that outlives the run."""

import gc
import os
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "jaxgpt-test-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
sys.path.insert(0, str(Path(__file__).parent))  # tests of several rooms share tiny.py


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets compiled programs when they are many: each takes some sixteen memory mappings, Linux allows a process 65,530,
    and beyond that XLA crashes."""
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_text().count("\n") > 15_000:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def data_folder():
    """The folder of real data named by JAXGPT_DATA; tests that need it skip where it is absent."""
    folder = os.environ.get("JAXGPT_DATA")
    if not folder or not os.path.isdir(folder):
        pytest.skip("needs real data: set JAXGPT_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """(corpus, workdir) of the tiny experiment with its documents, tokenizer and tokens made. Copy before adding to it."""
    import tiny
    folder = tmp_path_factory.mktemp("tiny")
    corpus, workdir = tiny.write_corpus(folder), folder / "work"
    tiny.run_stages(tiny.experiment(corpus), tiny.DATA, workdir)
    return corpus, workdir


@pytest.fixture(scope="session")
def tiny_base(tiny_data, tmp_path_factory):
    """The same with a base model and an assistant, trained on one device."""
    import shutil

    import tiny
    corpus, workdir = tiny_data
    trained = shutil.copytree(workdir, tmp_path_factory.mktemp("base") / "work")
    tiny.run_stages(tiny.experiment(corpus), ("pretrain", "sft"), trained)
    return corpus, trained
