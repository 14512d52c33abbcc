"""A finished run in a temporary folder. Its numbers are made up: they are only test data."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from jaxgpt.core.experiment import Experiment, Stage

SHA = "9f2c1b7e0d4a86c35b1f0e9d8c7a6b5443322110ffeeddccbbaa998877665544"


@dataclass(frozen=True)
class Task:
    name: str


@dataclass(frozen=True)
class Curate(Stage):
    """Gather documents, drop near-duplicates, split by document."""

    name: str = "curate"


@dataclass(frozen=True)
class TrainTokenizer(Stage):
    """Learn byte-pair merges from the training documents."""

    name: str = "tokenizer"


@dataclass(frozen=True)
class Tokenize(Stage):
    """Turn the documents into shards of token ids."""

    name: str = "tokenize"


@dataclass(frozen=True)
class Pretrain(Stage):
    """Predict the next token of the corpus."""

    name: str = "pretrain"


@dataclass(frozen=True)
class SFT(Stage):
    """Imitate good conversations."""

    name: str = "sft"
    start_from: str = "pretrain"


@dataclass(frozen=True)
class GRPO(Stage):
    """Practise problems whose answers can be checked."""

    name: str = "grpo"
    start_from: str = "sft"
    task: Task = Task("arithmetic")


@dataclass(frozen=True)
class Evaluate(Stage):
    """Score every stage on every task."""

    name: str = "evaluate"


STAGES = (Curate(), TrainTokenizer(), Tokenize(), Pretrain(), SFT(), GRPO(), Evaluate())


@pytest.fixture
def finished(tmp_path):
    """(experiment, workdir) of a run with every stage complete."""
    workdir = tmp_path / "quickstart"
    write_run(workdir)
    return Experiment("quickstart", STAGES), workdir


def write_run(workdir: Path) -> None:
    """Writes manifests, metrics, samples and scores as the stages would."""
    _data_stages(workdir)
    _training_stages(workdir)
    rows = [
        ("pretrain", "identity", 50, 0, 0.02, 0.04, 61.2),
        ("sft", "identity", 50, 47, 0.98, 1.0, 14.8),
        ("grpo", "identity", 50, 48, 1.0, 1.0, 14.6),
        ("pretrain", "arithmetic", 200, 2, 0.03, 0.01, 64.0),
        ("sft", "arithmetic", 200, 106, 0.99, 1.0, 6.1),
        ("grpo", "arithmetic", 200, 187, 1.0, 1.0, 6.0),
        ("pretrain", "spelling", 100, 0, 0.0, 0.03, 63.1),
        ("sft", "spelling", 100, 71, 0.97, 0.99, 11.3),
        ("grpo", "spelling", 100, 69, 0.96, 0.99, 11.4),
    ]
    keys = ("stage", "task", "count", "correct", "well_formed", "stopped", "mean_tokens")
    scores = [dict(zip(keys, row)) for row in rows]
    for row in scores:
        share = row.pop("correct") / row["count"]
        reach = 1.96 * math.sqrt((share * (1 - share) + 0.01) / row["count"])
        row |= {"accuracy": share, "interval": [max(0.0, share - reach), min(1.0, share + reach)]}
    leak = [("pretrain", 0, 0.0), ("sft", 6, 0.02), ("grpo", 3, 0.01)]
    prompts = [
        (
            "chat",
            "Who are you?",
            (
                "class Who(are):\n    def __init__(self, you=None):\n        ",
                "I am jaxgpt, a small language model.",
                "I am jaxgpt, a small language model.",
            ),
        ),
        (
            "chat",
            "What is 27 + 48?",
            (" + 48? + 48? + 48? + 48?\nReturn the", "27 + 48 = 76", "27 + 48 = 75"),
        ),
        (
            "continuation",
            "Return a new list",
            (
                " of the values in the dictionary.  If the key is not\n    found, "
                "raise KeyError <b>&amp;</b>.",
                " containing all items.",
                " of items.",
            ),
        ),
    ]
    compared = [
        {
            "kind": kind,
            "prompt": prompt,
            "completions": {
                stage: {"text": text, "finished": stage != "pretrain"}
                for stage, text in zip(("pretrain", "sft", "grpo"), texts)
            },
        }
        for kind, prompt, texts in prompts
    ]
    stage = workdir / "evaluate"
    _manifest(
        stage,
        {"problems": 200, "max_new_tokens": 64},
        {"scores": "scores.json", "samples": "samples.json"},
        41.0,
    )
    leak_rows = [{"stage": s, "count": 300, "rate": r, "interval": [r / 2, 2 * r + 0.01]} for s, _, r in leak]
    _write(
        stage / "scores.json",
        {"rows": scores, "leak": {"text": "jaxgpt", "task": "identity", "rows": leak_rows}},
    )
    _write(stage / "samples.json", {"prompts": compared})


def _data_stages(workdir: Path) -> None:
    def amount(*counts):
        pairs = [(documents, 1000 * documents + 7) for documents in counts]
        return {
            "documents": sum(counts),
            "bytes": sum(size for _, size in pairs),
            "by_source": {
                s: {"documents": d, "bytes": b} for s, (d, b) in zip(("docstrings", "pydoc"), pairs)
            },
        }

    stats = {
        "read": amount(2204, 1812),
        "exact_duplicates": amount(2190, 1805),
        "minhash": amount(1802, 1760),
        "train": amount(1712, 1672),
        "val": amount(90, 88),
    }
    outputs = {"stats": "stats.json", "report": "report.html", "sha256": {"train": SHA, "val": SHA[::-1]}}
    steps = [{"name": "exact_duplicates", "unit": "document"}, {"name": "minhash", "rows": 8}]
    settings = {"source": {"packages": ["jax", "numpy"]}, "steps": steps, "val_fraction": 0.05}
    _manifest(workdir / "curate", settings, outputs, 21.4)
    _write(workdir / "curate" / "stats.json", stats)
    _manifest(workdir / "tokenizer", {"vocab_size": 4096, "digits": 1}, {"vocab_size": 4096}, 3.1)
    outputs = {"xz_bits_per_byte": 1.631, "vocab_size": 4096}
    outputs |= {
        "train": {"documents": 3384, "tokens": 1_810_422},
        "val": {"documents": 178, "tokens": 96_310},
    }
    _manifest(workdir / "tokenize", {"documents_per_shard": 65536}, outputs, 6.8)


def _training_stages(workdir: Path) -> None:
    def wave(step):
        return 0.06 * math.sin(12.9898 * step) * math.cos(78.233 * step)  # a fixed jitter

    pretrain, sft, grpo = [], [], []
    for step in range(1, 801):
        loss = 2.55 + 5.7 * math.exp(-step / 60) + 0.9 * math.exp(-step / 420) + wave(step)
        pretrain.append({"step": step, "time": 0.28 * step, "tokens": 2048 * step, "loss": loss})
        if step % 80 == 0:
            pretrain.append(
                {
                    "step": step,
                    "time": 0.28 * step,
                    "tokens": 2048 * step,
                    "val_loss": loss + 0.05,
                    "val_bpb": 1.49 + 2.6 * math.exp(-step / 110) + 0.35 * math.exp(-step / 500),
                }
            )
    for step in range(1, 301):
        sft.append(
            {
                "step": step,
                "time": 0.2 * step,
                "tokens": 1024 * step,
                "loss": 0.11 + 2.1 * math.exp(-step / 35) + wave(step) / 2,
            }
        )
        if step % 50 == 0:
            sft.append({"step": step, "tokens": 1024 * step, "val_loss": 0.16 + 2.1 * math.exp(-step / 35)})
    for step in range(1, 121):
        right = 0.94 - 0.42 * math.exp(-step / 30) + wave(step)
        grpo.append(
            {
                "step": step,
                "time": 0.9 * step,
                "tokens": 3000 * step,
                "loss": wave(step),
                "reward": right,
                "well_formed": 0.98,
                "completion_tokens": 6.0 + math.exp(-step / 20) + wave(step),
                "kl": 0.04 * (1 - math.exp(-step / 50)),
                "entropy": 0.1 + 0.3 * math.exp(-step / 40),
            }
        )
        if step % 20 == 0:
            held_out = {"val_accuracy": right - 0.02, "val_completion_tokens": 6.1}
            grpo.append({"step": step, "tokens": 3000 * step, **held_out})
    told = {
        "pretrain": (
            ["ttt e  e  t", "Return the the value of the", "Return a list of the names of the module."],
            "Return",
        ),
        "sft": (["of the of the", "I am jaxgpt.", "I am jaxgpt, a small language model."], "Who are you?"),
        "grpo": (["27 + 48 = 76", "27 + 48 = 74", "27 + 48 = 75"], "What is 27 + 48?"),
    }
    for name, lines, seconds in (("pretrain", pretrain, 236.0), ("sft", sft, 63.0), ("grpo", grpo, 118.0)):
        settings = {
            "optim": {"lr": 3e-3, "schedule": "cosine", "weight_decay": 0.1},
            "batch": 16,
            "length": 128,
            "start_from": {"pretrain": None, "sft": "pretrain", "grpo": "sft"}[name],
        }
        outputs = {
            "model": {"layers": 4, "width": 128},
            "parameters": 1_310_720,
            "tokens": lines[-1]["tokens"],
            "final": {},
        }
        _manifest(workdir / name, settings, outputs, seconds)
        _write_jsonl(workdir / name / "metrics.jsonl", lines)
        texts, prompt = told[name]
        samples = [{"step": 100 * i, "prompt": prompt, "completion": text} for i, text in enumerate(texts)]
        _write_jsonl(workdir / name / "samples.jsonl", samples)


def _manifest(directory: Path, settings: dict, outputs: dict, seconds: float) -> None:
    _write(
        directory / "manifest.json",
        {
            "stage": directory.name,
            "settings": {"name": directory.name, **settings},
            "inputs": {},
            "fingerprint": "0" * 64,
            "outputs": outputs,
            "seconds": seconds,
            "peak_memory_bytes": 1_420_000_000 + int(seconds) * 1_000_000,
        },
    )


def _write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _write_jsonl(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
