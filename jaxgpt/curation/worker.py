"""A worker process of the embedded runner: Beam's own, but silent, and deaf to the Ctrl-C that is meant for the run."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time


def main(logs: str) -> None:
    """Works until the run ends; what libraries print goes into a file of the folder `logs`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    path = os.devnull
    if os.path.isdir(logs):
        path = os.path.join(logs, f"worker-{os.getpid()}.log")
        open(os.path.join(logs, f"progress-{os.getpid()}"), "w").close()  # the run watches those who have one
    with open(path, "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    from apache_beam.runners.worker import sdk_worker_main
    sdk_worker_main.main(sys.argv[:1])


def _end_with(run: int) -> None:
    """A worker without its run, which may have been killed, would wait for work for ever."""
    while os.getppid() == run:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
