"""All that is measured on one GPU, in one command: what a card that is lent for minutes should leave behind.

  git clone https://github.com/karpathy/nanoGPT
  python tests/benchmarks/on_one_gpu.py --nanogpt nanoGPT --minutes 12

The measurements run one after another, those that matter most first, each in a process of its own that is stopped at its
limit: what it has printed by then counts. One that no longer fits into the minutes is left out, and that is said. Before
all of them a tiny model is trained, which shows whether the card and what is installed work.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from side_by_side import folder, header, parser, probe, table


def measurements(nanogpt: str | None) -> list[tuple[int, str]]:
    """(seconds at most, script and arguments), the most important first."""
    peer = f" --nanogpt {shlex.quote(nanogpt)}" if nanogpt else ""
    gpt2, llama = "train_step.py --size 124m --length 1024 --rows 64", "train_step.py --size 1b --length 2048"
    return [(60, "train_step.py --smoke"), (180, gpt2 + peer), (120, f"{llama} --rows 16"), (180, "engine.py --size gsm8k"),
            (120, "engine.py --size 8b --batch 1 64 256 --by-kernel"), (60, "kernels.py"),
            (100, f"{gpt2} --kernels xla --rounds 4"), (100, f"{llama} --rows 24 --rounds 4"),
            (100, f"{gpt2} --rounds 4 --by-kernel"), (100, f"{llama} --rows 16 --rounds 4 --by-kernel")]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--nanogpt", metavar="DIR", help="folder of nanoGPT; without it, our step alone")
    arguments.add_argument("--minutes", type=float, default=12, help="in all (default: 12)")
    given = arguments.parse_args()
    nanogpt = given.nanogpt and str(Path(folder(given.nanogpt, "model.py", "--nanogpt")).resolve())
    backend, machine = probe()
    if backend != "gpu" and not given.smoke:
        raise SystemExit("on_one_gpu.py measures on a GPU, and here is none; --smoke shows that it runs")
    print(header("on_one_gpu", machine, "torch"), flush=True)
    began, ended = time.monotonic(), []
    for limit, command in measurements(nanogpt)[:1 if given.smoke else None]:
        if (left := began + 60 * given.minutes - time.monotonic()) < limit:
            ended.append([command, f"left out: may take {limit}, and {left:.0f} are left", ""])
            continue
        print(f"\n=== {command}\n", flush=True)
        start = time.monotonic()
        how = _run(command, limit)
        ended.append([command, how, f"{time.monotonic() - start:.0f}"])
    print("\n" + table(["", "how it ended", "seconds"], ended))


def _run(command: str, limit: int) -> str:
    """Runs a script of this folder, with what it prints on the screen; says how it ended."""
    script, *words = shlex.split(command)
    process = subprocess.Popen([sys.executable, str(Path(__file__).parent / script), *words],
                               stderr=subprocess.STDOUT, start_new_session=True)
    try:
        status = process.wait(limit)
        return "done" if status == 0 else f"failed with status {status}"
    except subprocess.TimeoutExpired:
        return "stopped at its limit"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the sides that it started
            process.wait()


if __name__ == "__main__":
    main()
