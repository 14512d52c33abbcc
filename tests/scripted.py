"""A run whose models say what a table says, so that every answer and every probability is known; and a server of it."""

from __future__ import annotations

import dataclasses
import json
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
from jaxgpt.model import hf as hf_model
from jaxgpt.model import transformer
from jaxgpt.tokenizer import bpe, hf
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


def params_of(table: dict[int, int], config: transformer.Config = CONFIG):
    """A model whose layers add nothing: the norm of a one-hot embedding, and a head that is the table."""
    params = transformer.init(jax.random.key(0), config)
    head = np.zeros((VOCAB, VOCAB), np.float32)
    for token, following in table.items():
        head[token, following] = SCALE / math.sqrt(VOCAB)
    return params | {"embed": jnp.eye(VOCAB), "head": jnp.asarray(head)}


# A model from elsewhere, of Qwen's form: it calls 7*8 at the opening of a turn, and says OK at that behind a result.
CHATML = """\
{%- if tools %}<|im_start|>system
Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
<|im_start|>{{ 'user' if message.role == 'tool' else message.role }}
{% if message.role == 'tool' %}<answer>{{ message.content }}</answer>{% else %}{{ message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant{{ ':' if messages[-1].role == 'tool' else '\n' }}{% endif %}"""
FOREIGN = Tokenizer(TOKENIZER.ranks, name="foreign", bos="<|im_start|>", end="<|im_end|>", special={
    "<|im_start|>": 256, "<|im_end|>": 257, "<tool_call>": 258, "</tool_call>": 259})
FOREIGN_CONFIG = dataclasses.replace(CONFIG, context=1024)  # room for what it is told of its tools
FOREIGN_TABLE = {ord("\n"): 258, 258: ord("7"), ord("7"): ord("*"), ord("*"): ord("8"), ord("8"): 259,
                 ord(":"): ord("O"), ord("O"): ord("K"), ord("K"): 257}

# One of Llama's: a call is a whole turn. Tokens of its own hold the JSON around 7*8, which a table could not tell apart.
HEADERS = """\
{%- macro header(role) %}<|start_header_id|>{{ role }}<|end_header_id|>{% endmacro %}
{%- if tools %}{{ header('system') }}
Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}<|eot_id|>{% endif %}
{%- for message in messages %}
{{- header('ipython' if message.role == 'tool' else message.role) + '\n' }}
{%- if message.tool_calls %}
{%- if message.tool_calls | length > 1 %}{{ raise_exception('one call in a turn') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
{%- else %}{{ message.content | tojson if message.role == 'tool' else message.content }}{% endif %}<|eot_id|>
{%- endfor %}
{%- if add_generation_prompt %}{{ header('assistant') + (':' if messages[-1].role == 'tool' else '\n') }}{% endif %}"""
BEFORE, BEHIND, OTHER = b'{"name": "calculator", "parameters": {"expression": "', b'"}}', b'{"answer": "'
LLAMA = Tokenizer({**TOKENIZER.ranks, BEFORE: 261, BEHIND: 262, OTHER: 263}, name="llama", bos="<|start_header_id|>",
                  end="<|eot_id|>", special={"<|start_header_id|>": 256, "<|end_header_id|>": 257, "<|eot_id|>": 258,
                                             "<|eom_id|>": 259, "<|python_tag|>": 260})
LLAMA_TABLE = {ord("\n"): 261, 260: 261, 261: ord("7"), ord("7"): ord("*"), ord("*"): ord("8"), ord("8"): 262, 262: 258,
               ord(":"): ord("O"), ord("O"): ord("K"), ord("K"): 258, 263: ord("7")}


def write_run(workdir: Path, *, weights: bool = True) -> Path:
    """A run with a stage for each table; without weights, it can be asked but not answer."""
    for number, (name, table) in enumerate(TABLES.items()):
        _write_stage(workdir / name, table, TOKENIZER, CONFIG, number, weights=weights)
    return workdir


def write_foreign(workdir: Path, *, weights: bool = True) -> Path:
    """A run whose one model came from elsewhere, with a chat template."""
    folder = workdir / "foreign"
    _write_stage(folder, FOREIGN_TABLE, FOREIGN, FOREIGN_CONFIG, 0, weights=weights, folder="source")
    _write_template(folder / "source", FOREIGN, CHATML)
    return workdir


def write_llama(workdir: Path, *, weights: bool = True) -> Path:
    """The same of Llama's form."""
    folder = workdir / "llama"
    _write_stage(folder, LLAMA_TABLE, LLAMA, FOREIGN_CONFIG, 0, weights=weights, folder="source")
    _write_template(folder / "source", Tokenizer(TOKENIZER.ranks, name="llama", special=LLAMA.special, end="<|eot_id|>",
                                                 bos="<|start_header_id|>"), HEADERS)
    write_json(folder / "source" / "generation_config.json", {"eos_token_id": [258, 259]})
    return workdir


def write_folder(folder: Path) -> Path:
    """A Hugging Face folder with the model that goes through the alphabet."""
    folder.mkdir()
    hf_model.write_params(params_of(TABLES["base"]), CONFIG, folder, family="llama",
                          tokens={"bos_token_id": TOKENIZER.bos, "eos_token_id": TOKENIZER.end})
    hf.write(TOKENIZER, folder)
    return folder


def _write_template(folder: Path, tokenizer: Tokenizer, template: str) -> None:
    hf.write(tokenizer, folder)
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    for token in found["added_tokens"]:
        token["special"] = "tool" not in token["content"]
    path.write_text(json.dumps(found))
    (folder / "chat_template.jinja").write_text(template)


def _write_stage(stage: Path, table: dict[int, int], tokenizer: Tokenizer, config: transformer.Config, number: int,
                 *, weights: bool = True, **outputs):
    model = to_json(config)
    if weights:
        checkpoints = Checkpoints(stage / "checkpoints", config=model)
        checkpoints.save(0, TrainState(params_of(table, config), (), jnp.zeros((), jnp.int32), jax.random.key(0)), {})
        checkpoints.close()
    tokenizer.save(stage / "tokenizer")
    write_json(stage / "manifest.json", {
        "stage": stage.name, "settings": {}, "seed": 0, "inputs": {},
        "outputs": {"model": model, "checkpoint": "checkpoints/0", "tokenizer": "tokenizer", **outputs},
        "finished": f"2025-01-01 00:00:0{number} +0000"})


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
