"""One server for the tests that only ask it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def scripted_run(tmp_path_factory):
    """The workdir of a run whose models say what a table says."""
    import scripted
    return scripted.write_run(tmp_path_factory.mktemp("scripted") / "scripted")


@pytest.fixture(scope="session")
def server(scripted_run):
    """A server of it, for all tests that leave it as it was."""
    import scripted
    pytest.importorskip("uvicorn", reason="needs the libraries of jaxgpt[serve]")
    running = scripted.Server(scripted_run, "--slots", "4", "--max-waiting", "1000")
    yield running
    assert running.stop() == 0
