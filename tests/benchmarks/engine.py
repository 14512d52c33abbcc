"""The engine beside transformers' `generate`, and many requests at once beside one after another.

  pip install torch==2.13.0 transformers
  python tests/benchmarks/engine.py
  python tests/benchmarks/engine.py --size 8b                       # an accelerator: share of memory bandwidth, throughput
  python tests/benchmarks/engine.py --size gsm8k                    # as many answers as GSM8K's test asks: predicted, and
                                                                    # on an accelerator measured

GPT-2 124M with random weights on both sides, float32, greedy, no token ends a completion. Batch 1 and 8 are paired with
`generate` in turns; the time of a call that draws one token is taken off. The mixed requests have prompts of 8 to 120
tokens and completions of 16 to 128; "one after another" is the same engine with one slot.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time

import numpy as np
from decode_step import Transformers, prompts_of, shape
from side_by_side import Worker, header, in_turns, parser, probe, ratio, serve, table, version

MIXED = 64


class Ours:
    """jaxgpt.inference.engine.Engine, one for each number of slots."""

    def __init__(self, job: dict):
        import jax
        from jaxgpt.core.memory import keep_freed_memory
        from jaxgpt.model import presets, transformer
        keep_freed_memory()
        self.config = dataclasses.replace(presets.gpt2("124M"), dtype=job["dtype"], **shape(job["smoke"]))
        self.params = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), self.config)
        self.context, self.prompt, self.tokens = (32, (2, 8), (2, 16)) if job["smoke"] else (256, (8, 120), (16, 128))
        self.engines = {}

    def engine(self, slots: int, chunk: int):
        from jaxgpt.inference.engine import Engine
        if (slots, chunk) not in self.engines:
            self.engines[slots, chunk] = Engine(self.params, self.config, slots=slots, chunk=chunk,
                                                context=self.context)
        return self.engines[slots, chunk]

    def draw(self, batch: int, prompt: int, tokens: int) -> int:
        from jaxgpt.inference.request import Request, Sampling
        rows = prompts_of(batch, prompt).tolist()
        requests = [Request(tuple(row), tokens, Sampling(temperature=0)) for row in rows]
        engine = self.engine(batch, 64)
        engine.forget()  # nothing of the round before is to be copied
        return min(len(outputs[0].tokens) for outputs in engine.run(requests))

    def compile(self, slots: int) -> int:
        return self.engine(slots, 16).warm_up()

    def mixed(self, slots: int, count: int) -> int:
        from jaxgpt.inference.request import Request, Sampling
        rng = np.random.default_rng(1)
        requests = [Request(tuple(rng.integers(0, self.config.vocab_size, rng.integers(*self.prompt)).tolist()),
                            int(rng.integers(*self.tokens)), Sampling(temperature=0)) for _ in range(count)]
        engine = self.engine(slots, 16)
        engine.forget()
        return sum(len(outputs[0].tokens) for outputs in engine.run(requests))


def beside_transformers(given, job) -> list[list]:
    workers = [Worker("jaxgpt", __file__, json.dumps({**job, "ours": True}))]
    if version("torch") and version("transformers") and not given.smoke:
        workers.append(Worker("transformers", __file__, json.dumps({**job, "ours": False})))
    rows = []
    for batch in given.batch:
        for worker in workers:
            for count in (1, given.tokens):  # compiles
                if worker("draw", batch, given.prompt, count)["value"] != count:
                    raise SystemExit(f"{worker.name}: drew another number of tokens than asked for")
        whole = in_turns(workers, given.rounds, "draw", batch, given.prompt, given.tokens)
        start = in_turns(workers, given.rounds, "draw", batch, given.prompt, 1)
        seconds = {name: [(w - statistics.median(start[name])) / (given.tokens - 1) for w in whole[name]] for name in whole}
        for name, values in seconds.items():
            median = statistics.median(values)
            rows.append([f"batch {batch}", name, f"{median * 1e3:.1f}", f"{batch / median:,.0f}",
                         f"{1 / ratio(seconds['jaxgpt'], values):.2f}"])
    for worker in workers:
        worker.close()
    return rows


def continuous(given, job) -> list[list]:
    worker, seconds = Worker("jaxgpt", __file__, json.dumps({**job, "ours": True})), {slots: [] for slots in given.slots}
    for slots in given.slots:
        worker("compile", slots)
    for _ in range(given.mixed_rounds):
        for slots in given.slots:
            found = worker("mixed", slots, given.requests)
            seconds[slots].append(found["seconds"])
    worker.close()
    return [[f"{slots} slots", given.requests, f"{found['value'] / statistics.median(values):,.0f}",
             f"{ratio(seconds[given.slots[0]], values):.2f}"] for slots, values in seconds.items()]


# --- an accelerator --------------------------------------------------------------------------------------------------

def on_accelerator(given) -> None:
    """Llama 3.1 8B's shape in bfloat16 with random weights: tokens a second against what reading the weights allows."""
    import jax
    import jax.numpy as jnp
    from jaxgpt.inference.engine import Engine
    from jaxgpt.inference.request import Request, Sampling
    from jaxgpt.model import presets, transformer
    config = dataclasses.replace(presets.llama3_1("8B"), dtype="bfloat16")
    if given.smoke:
        config = dataclasses.replace(config, layers=2, width=64, heads=4, kv_heads=2, head_dim=None, mlp_width=128,
                                     vocab_size=256)
    shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))
    fill = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, jnp.bfloat16), static_argnums=1)
    params = jax.tree.map(lambda leaf: fill(jax.random.key(leaf.size), leaf.shape), shapes)
    size = sum(leaf.size for leaf in jax.tree.leaves(params)) - config.vocab_size * config.width  # but one row of these
    rows = []
    for batch in given.batch:
        engine = Engine(params, config, slots=batch, chunk=64, context=512, alternatives=0)
        requests = [Request(tuple(row), 129, Sampling(temperature=0))
                    for row in np.random.default_rng(0).integers(0, config.vocab_size, (batch, 64)).tolist()]
        engine.run(requests)  # compiles
        for request in requests:
            engine.submit(request)
        while engine.waiting:  # all prompts are read then
            engine.step()
        drawn, began = engine.tokens_drawn, time.perf_counter()
        while not engine.idle:
            engine.step()
        rate = (engine.tokens_drawn - drawn) / (time.perf_counter() - began)
        rows.append([batch, f"{batch / rate * 1e3:.2f}", f"{rate:,.0f}", f"{rate / batch * size * 2 / 1e12:.2f} TB/s"])
        print(rows[-1], flush=True)
        if given.by_kernel:
            from by_kernel import print_kernels
            # the first token of each comes with its prompt
            print_kernels(lambda: sum(len(outputs[0].tokens) - 1 for outputs in engine.run(requests)) // batch)
    print("\n" + table(["batch", "ms a step", "tokens/s", "weights read a second"], rows))


def gsm8k(given) -> None:
    """1,319 answers of 256 tokens by a model of depth 20 in bfloat16: by the time model on several chips, and here."""
    import jax
    import jax.numpy as jnp
    from jaxgpt.inference.engine import Engine
    from jaxgpt.inference.request import Request, Sampling
    from jaxgpt.model import presets, transformer
    from jaxgpt.plan.cost import decode_cost
    from jaxgpt.plan.hardware import CHIPS
    from jaxgpt.plan.roofline import step_time
    questions, prompt, answer, slots = 1319, 100, 256, 256  # a question is about so long
    config = dataclasses.replace(presets.depth(20, vocab_size=32_768, context=2048).model, dtype="bfloat16")
    steps, rows = -(-questions // slots) * answer, []
    for name in ("v5e", "v5p", "v6e", "h100", "h200"):
        found = step_time(decode_cost(config, batch=slots, context=prompt + answer // 2, axes={}), CHIPS[name])
        rows.append([f"{name}, predicted", f"{found.seconds * 1e3:.1f}", f"{questions * answer / (steps * found.seconds):,.0f}",
                     f"{steps * found.seconds:,.1f}"])
    if jax.default_backend() != "cpu" or given.smoke:
        if given.smoke:
            config, questions, answer, slots = dataclasses.replace(config, layers=1, width=64, heads=2, kv_heads=2), 5, 4, 2
        params = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), config)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        engine = Engine(params, config, slots=slots, context=512, chunk=64, alternatives=0)
        draw = np.random.default_rng(0).integers(0, config.vocab_size, (questions, prompt))
        requests = [Request(tuple(row), answer, Sampling(temperature=0)) for row in draw.tolist()]
        began = time.perf_counter()
        engine.run(requests)
        print(f"the first time, with compiling: {time.perf_counter() - began:.1f} s", flush=True)
        engine.forget()
        began, before = time.perf_counter(), engine.tokens_drawn
        engine.run(requests)
        took = time.perf_counter() - began
        rows.append(["here, measured", "", f"{(engine.tokens_drawn - before) / took:,.0f}", f"{took:,.1f}"])
    print("\n" + table(["chip", "ms a step of 256", "tokens/s", "seconds for 1,319 x 256"], rows))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--size", choices=("124m", "8b", "gsm8k"), default="124m")
    arguments.add_argument("--batch", type=int, nargs="*")
    arguments.add_argument("--slots", type=int, nargs="*", default=[1, 16, 32])
    arguments.add_argument("--requests", type=int, default=MIXED)
    arguments.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    arguments.add_argument("--tokens", type=int, default=64, help="tokens to draw, at least 2")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--mixed-rounds", type=int, default=3, help="of the mixed requests, which take minutes")
    arguments.add_argument("--by-kernel", action="store_true", help="with 8b: also what a step spends in each kernel of a GPU")
    given = arguments.parse_args()
    given.batch = given.batch or ([1, 8] if given.size == "124m" else [1, 2, 4, 8, 16, 32, 64, 128, 256])
    if given.smoke:
        given.batch, given.prompt, given.tokens, given.rounds = [1, 2], 4, 4, 2
        given.slots, given.requests, given.mixed_rounds = [1, 2], 4, 1
    peer = version("torch") and version("transformers") and not given.smoke
    print(header("engine", probe()[1], *(("torch", "transformers") if peer else ())), flush=True)
    if given.size != "124m":
        return on_accelerator(given) if given.size == "8b" else gsm8k(given)
    job = {"dtype": "float32", "smoke": given.smoke}
    print(f"\nprompts of {given.prompt}, {given.tokens} tokens drawn, {given.rounds} rounds\n")
    print(table(["", "", "median ms a step", "tokens/s", "ours / this, tokens/s"], beside_transformers(given, job)), flush=True)
    print("\nmixed requests\n")
    print(table(["", "requests", "tokens/s", "of one after another"], continuous(given, job)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        job = json.loads(sys.argv[2])
        serve(Ours if job["ours"] else Transformers, job)
    else:
        main()
