"""Decoding with a cache beside transformers' `generate`: milliseconds a token and tokens a second, in turns.

  pip install torch==2.13.0 transformers
  python tests/benchmarks/decode_step.py
  python tests/benchmarks/decode_step.py --batch 1 8 32 --tokens 64 --prompt 64 --dtype bfloat16

GPT-2 124M with random weights on both sides, greedy, the same prompts, and no token ends a completion. A call reads the
prompts and draws the tokens; the time of a call that draws one token is taken off, so that prefill and start do not
count. Without torch and transformers ours runs alone.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys

import numpy as np
from side_by_side import Worker, header, in_turns, parser, probe, ratio, serve, table, version

VOCABULARY = 50257


def shape(smoke: bool) -> dict:
    return {"layers": 2, "width": 32, "heads": 2} if smoke else {"layers": 12, "width": 768, "heads": 12}


def prompts_of(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, (batch, length), np.int32)


# --- the sides: draw(batch, prompt, tokens) -> how many tokens each row got ------------------------------------------

class Ours:
    """`begin` and `decode` of jaxgpt.inference.decode, as `generate` calls them: all tokens in one program."""

    def __init__(self, job: dict):
        import jax
        from jaxgpt.core.memory import keep_freed_memory
        from jaxgpt.model import presets, transformer
        keep_freed_memory()
        self.config = dataclasses.replace(presets.gpt2("124M"), dtype=job["dtype"], **shape(job["smoke"]))
        self.params = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), self.config)
        if job["dtype"] == "bfloat16":
            self.params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), self.params)

    def draw(self, batch: int, prompt: int, tokens: int) -> int:
        import jax
        import jax.numpy as jnp
        from jaxgpt.inference.decode import begin_jit, decode_chunk
        rng, stop, options = jax.random.key(0), jnp.array([-1]), {"temperature": jnp.zeros(batch)}
        prompts, lengths = jnp.asarray(prompts_of(batch, prompt)), jnp.full(batch, prompt)
        state, *_ = begin_jit(self.params, prompts, lengths, lengths + tokens, jnp.arange(batch), rng, stop, options,
                              config=self.config, slots=prompt + tokens)
        *_, counts = decode_chunk(self.params, state, rng, stop, options, config=self.config, steps=max(tokens - 1, 1))
        return 1 + int(counts.min())


class Transformers:
    """GPT2LMHeadModel.generate."""

    def __init__(self, job: dict):
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel
        self.torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        sizes = shape(job["smoke"])
        config = GPT2Config(n_layer=sizes["layers"], n_embd=sizes["width"], n_head=sizes["heads"], eos_token_id=None,
                            bos_token_id=None, pad_token_id=0)
        self.model = GPT2LMHeadModel(config).eval().to(self.device, getattr(torch, job["dtype"]))

    def draw(self, batch: int, prompt: int, tokens: int) -> int:
        torch = self.torch
        rows = torch.from_numpy(prompts_of(batch, prompt).astype(np.int64)).to(self.device)
        with torch.inference_mode():
            out = self.model.generate(rows, attention_mask=torch.ones_like(rows), do_sample=False,
                                      max_new_tokens=tokens)
        return out.cpu().shape[1] - prompt


# --- the comparison --------------------------------------------------------------------------------------------------

def per_token(workers: list[Worker], batch: int, prompt: int, tokens: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of one decode step in each round."""
    for worker in workers:
        for count in (1, tokens):  # compiles
            got = worker("draw", batch, prompt, count)["value"]
            if got != count:
                raise SystemExit(f"{worker.name}: drew {got} tokens instead of {count}")
    whole = in_turns(workers, rounds, "draw", batch, prompt, tokens)
    start = in_turns(workers, rounds, "draw", batch, prompt, 1)
    return {name: [(w - statistics.median(start[name])) / (tokens - 1) for w in whole[name]] for name in whole}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32])
    arguments.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    arguments.add_argument("--tokens", type=int, default=64, help="tokens to draw, at least 2")
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights")
    arguments.add_argument("--rounds", type=int, default=7)
    given = arguments.parse_args()
    if given.tokens < 2 or given.prompt + given.tokens > 1024:
        raise SystemExit(f"--tokens {given.tokens}: at least 2, and with the prompt at most 1024")
    if given.smoke:
        given.batch, given.prompt, given.tokens, given.rounds = [2], 4, 4, 2
    peer = version("torch") and version("transformers") and not given.smoke
    print(header("decode_step", probe()[1], *(("torch", "transformers") if peer else ())))
    job = {"dtype": given.dtype, "smoke": given.smoke}
    workers = [Worker("jaxgpt", __file__, json.dumps({**job, "ours": True}))]
    if peer:
        workers.append(Worker("transformers", __file__, json.dumps({**job, "ours": False})))
    rows = []
    for batch in given.batch:
        seconds = per_token(workers, batch, given.prompt, given.tokens, given.rounds)
        for name, values in seconds.items():
            median = statistics.median(values)
            rows.append([batch, name, f"{median * 1e3:.2f}", f"{min(values) * 1e3:.2f}", f"{batch / median:,.0f}",
                         f"{ratio(seconds['jaxgpt'], values):.2f}"])
    for worker in workers:
        worker.close()
    print(f"\nprompts of {given.prompt}, {given.tokens} tokens drawn, {given.dtype}, {given.rounds} rounds\n")
    print(table(["batch", "", "median ms a step", "least ms", "tokens/s", "ours / this"], rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        job = json.loads(sys.argv[2])
        serve(Ours if job["ours"] else Transformers, job)
    else:
        main()
