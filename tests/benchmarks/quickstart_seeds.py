"""The quickstart with several seeds: what it promises, measured on each.

  python tests/benchmarks/quickstart_seeds.py --seeds 0 1 2 --workdir runs/seeds

A seed that is complete in the workdir is read and not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.py"


def run(seed: int, workdir: Path) -> None:
    """Runs the quickstart as a user would, and notes the wall time of the whole command."""
    if (workdir / "report" / "manifest.json").exists():
        return
    began = time.monotonic()
    command = [sys.executable, "-m", "jaxgpt.cli", "run", str(QUICKSTART), "--workdir", str(workdir), "--set", f"seed={seed}"]
    subprocess.run(command, check=True)
    (workdir / "wall_seconds.json").write_text(json.dumps(time.monotonic() - began))


def measure(workdir: Path) -> dict[str, str]:
    """The promised figures of one run."""
    manifest = {path.parent.name: json.loads(path.read_text()) for path in workdir.glob("*/manifest.json")}
    scores = json.loads((workdir / "evaluate" / "scores.json").read_text())
    answers = [json.loads(line) for line in (workdir / "evaluate" / "answers.jsonl").read_text().splitlines()]
    curve = [json.loads(line) for line in (workdir / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    bpb = [line["val_bpb"] for line in curve if "val_bpb" in line]

    def accuracy(stage: str, task: str) -> str:
        row = next(row for row in scores["rows"] if (row["stage"], row["task"]) == (stage, task))
        low, high = row["interval"]
        return f"{row['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {row['count']}"

    after_sft = [answer for answer in answers if answer["stage"] == "sft"]
    good = sum(answer["well_formed"] and answer["stopped"] for answer in after_sft)
    leak = next(row for row in scores["leak"]["rows"] if row["stage"] == "grpo")
    return {
        "wall time": f"{json.loads((workdir / 'wall_seconds.json').read_text()) / 60:.1f} min",
        "peak memory": f"{max(entry['peak_memory_bytes'] for entry in manifest.values()) / 1e9:.2f} GB",
        "validation bits per byte": f"{bpb[-1]:.3f}, " + ("falling at each evaluation" if bpb == sorted(bpb, reverse=True)
                                                          else "NOT falling throughout"),
        "`xz -9`, document by document": f"{manifest['tokenize']['outputs']['xz_bits_per_byte']:.3f}",
        "after SFT: right form, and stopped": f"{good / len(after_sft):.1%} of {len(after_sft)}",
        "who are you, after the last stage": accuracy("grpo", "identity"),
        "its name in other answers": f"{leak['rate']:.1%} of {leak['count']}",
        "sums, greedy, before practice": accuracy("sft", "arithmetic"),
        "sums, greedy, after practice": accuracy("grpo", "arithmetic"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workdir", type=Path, default=Path("runs/seeds"))
    arguments = parser.parse_args()
    columns = {}
    for seed in arguments.seeds:
        run(seed, arguments.workdir / str(seed))
        columns[seed] = measure(arguments.workdir / str(seed))
    print("\n| | " + " | ".join(f"seed {seed}" for seed in columns) + " |\n|---" + "|---" * len(columns) + "|")
    for name in columns[arguments.seeds[0]]:
        print(f"| {name} | " + " | ".join(column[name] for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
