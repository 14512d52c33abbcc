"""A run whose models say what a table says, so that every answer and every probability is known; and a server of it."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.core.checkpoint import Checkpoints
from jaxgpt.core.config import to_json
from jaxgpt.core.files import write_json
from jaxgpt.core.state import TrainState
from jaxgpt.model import transformer
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.tokenizer import Tokenizer

VOCAB, CONTEXT, SCALE = 264, 256, 9.0
TOKENIZER = Tokenizer(bpe.train(["no merges"], vocab_size=VOCAB), name="bytes")
CONFIG = transformer.Config(vocab_size=VOCAB, context=CONTEXT, layers=2, width=VOCAB, heads=4, mlp_width=8,
                            zero_init_outputs=True, init_std=None, norm_eps=1e-12)
LIKELY = -math.log1p((VOCAB - 1) * math.exp(-SCALE))  # log-probability of the token that the table names
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = {name: TOKENIZER.special[f"<|{name}|>"] for name in ("assistant", "call", "result", "end")}
CYCLE = {**dict(zip(map(ord, ALPHABET), map(ord, ALPHABET[1:] + "a"))), ord(" "): ord("a")}
TABLES = {
    "base": CYCLE | {SPECIAL["assistant"]: ord("a")},  # goes through the alphabet and never ends
    "assistant": CYCLE | {SPECIAL["assistant"]: ord("H"), ord("H"): ord("I"), ord("I"): SPECIAL["end"]},  # says HI
    "practice": CYCLE | {  # calls a tool: 7*8, and says OK to its result
        SPECIAL["assistant"]: SPECIAL["call"], SPECIAL["call"]: ord("7"), ord("7"): ord("*"), ord("*"): ord("8"),
        ord("8"): SPECIAL["call"], SPECIAL["result"]: ord("O"), ord("O"): ord("K"), ord("K"): SPECIAL["end"]},
}


def params_of(table: dict[int, int]):
    """A model whose layers add nothing: the norm of a one-hot embedding, and a head that is the table."""
    params = transformer.init(jax.random.key(0), CONFIG)
    head = np.zeros((VOCAB, VOCAB), np.float32)
    for token, following in table.items():
        head[token, following] = SCALE / math.sqrt(VOCAB)
    return params | {"embed": jnp.eye(VOCAB), "head": jnp.asarray(head)}


def write_run(workdir: Path, *, weights: bool = True) -> Path:
    """A run with a stage for each table; without weights, it can be asked but not answer."""
    for number, (name, table) in enumerate(TABLES.items()):
        folder = workdir / name
        model = to_json(CONFIG)
        if weights:
            checkpoints = Checkpoints(folder / "checkpoints", config=model)
            checkpoints.save(0, TrainState(params_of(table), (), jnp.zeros((), jnp.int32), jax.random.key(0)), {})
            checkpoints.close()
        TOKENIZER.save(folder / "tokenizer")
        write_json(folder / "manifest.json", {
            "stage": name, "settings": {}, "seed": 0, "inputs": {},
            "outputs": {"model": model, "checkpoint": "checkpoints/0", "tokenizer": "tokenizer"},
            "finished": f"2025-01-01 00:00:0{number} +0000"})
    return workdir


class Server:
    """`jaxgpt serve` in a process of its own, on a free port.

    Attributes:
      url: where it is.
      process: of it.
    """

    def __init__(self, workdir: Path, *options: str, warm_up: bool = False, **environment: str):
        command = [sys.executable, "-m", "jaxgpt.cli", "serve", str(workdir), "--port", "0", *options]
        command += [] if warm_up else ["--no-warm-up"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", **environment})
        self.errors: list[str] = []
        self._reader = threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True)
        self._reader.start()
        line = self.process.stdout.readline()
        found = re.search(r"at (http://\S+)", line)
        if not found:
            self._reader.join(timeout=5)
        assert found, line + "".join(self.errors)
        self.url = found[1]

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Ends it; returns its exit status."""
        self.process.send_signal(number)
        status = self.process.wait(timeout=seconds)
        self._reader.join(timeout=5)
        return status

    def memory(self) -> int:
        """Bytes of it in memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")
