"""Signals and locks, without an experiment around them."""

import os
import signal

import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.core.running import Stop, alone_in, exit_status, listening


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_the_first_signal_asks_and_the_second_ends(number, status):
    stop, said, before = Stop(), [], signal.getsignal(number)
    with listening(stop, said.append, "stopping"):
        assert not stop.asked()
        os.kill(os.getpid(), number)
        assert stop.asked() and said == ["stopping"] and exit_status(stop.signal) == status
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before and exit_status(None) == 0


def test_a_folder_has_one_run(tmp_path):
    folder = tmp_path / "new" / "run"
    with alone_in(folder, "--output"):
        with pytest.raises(UserError, match="run: another run is working there; .* choose another --output"):
            with alone_in(folder, "--output"):
                pass
    with alone_in(folder, "--output"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"):
        with alone_in(tmp_path / "file", "--output"):
            pass
