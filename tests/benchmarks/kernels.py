"""Our kernels for GPUs beside XLA's own, each with its gradient, alone on one GPU: time and what of memory it moves a second.

  python tests/benchmarks/kernels.py

Shapes are those of GPT-2 124M at 32 x 1,024 tokens. "At least" is the time that reading each input and writing each output
once takes at the rate of a copy on the same card, measured in the same run.
"""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp
from jaxgpt.model import kernels, layers, losses
from side_by_side import header, parser, probe, table

SEED = jax.random.key(0)


def cases(R: int, D: int, F: int, V: int, interpret: bool):
    """(name, ours, XLA's, arguments, what comes back of the outputs' gradients, bytes that must move)."""
    half, whole = jnp.bfloat16, jnp.float32
    draw = lambda i, *shape, dtype=half: jax.random.normal(jax.random.fold_in(SEED, i), shape, dtype)  # noqa: E731
    targets, weights = jax.random.randint(SEED, (R // 4,), 0, V), jnp.ones(R // 4)
    yield ("cross entropy, a chunk", lambda x: kernels.cross_entropy(x, targets, weights, interpret),
           lambda x: -jnp.sum(weights * losses.selective_log_softmax(x, targets)[0]), (draw(0, R // 4, V),), jnp.float32(1),
           2 * 2 * R // 4 * V)
    scale, bias = draw(1, D, dtype=whole), draw(2, D, dtype=whole)
    yield ("sum and layer norm", lambda *a: kernels.add_norm(*a, True, 1e-5, interpret),
           lambda x, y, *a: (x + y, layers.layer_norm(x + y, *a)), (draw(3, R, D), draw(4, R, D), scale, bias),
           (draw(5, R, D), draw(6, R, D)), (4 + 4) * 2 * R * D)
    yield ("sum and RMS norm", lambda x, y, s: kernels.add_norm(x, y, s, None, False, 1e-6, interpret),
           lambda x, y, s: (x + y, layers.rms_norm(x + y, s)), (draw(3, R, D), draw(4, R, D), scale),
           (draw(5, R, D), draw(6, R, D)), (4 + 4) * 2 * R * D)
    for name, approximate in (("GELU, tanh", True), ("GELU, exact", False)):
        yield (f"{name}, with bias", lambda *a, t=approximate: kernels.biased_gelu(*a, t, interpret),
               lambda x, b, t=approximate: layers.gelu(x + b.astype(x.dtype), t), (draw(7, R, F), draw(8, F, dtype=whole)),
               draw(9, R, F), (2 + 3) * 2 * R * F)


def seconds(function, *arguments, rounds: int) -> float:
    """Median time of a call, of ten in a row."""
    run = jax.jit(function)
    jax.block_until_ready(run(*arguments))
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready([run(*arguments) for _ in range(10)][-1])
        found.append((time.perf_counter() - began) / 10)
    return statistics.median(found)


def with_gradient(function):
    def run(arguments, grads):
        out, pull = jax.vjp(function, *arguments)
        return out, pull(grads)
    return run


def main() -> None:
    given = parser(__doc__).parse_args()
    backend, machine = probe()
    if backend != "gpu" and not given.smoke:
        raise SystemExit("the kernels run on a GPU, and here is none; --smoke shows that the script runs")
    print(header("kernels", machine), flush=True)
    R, D, F, V = (256, 64, 256, 300) if given.smoke else (32 * 1024, 768, 3072, 50304)
    rounds = 1 if given.smoke else 10
    block = jnp.ones((1 << 20) if given.smoke else (1 << 31), jnp.bfloat16)
    copy = 2 * block.nbytes / seconds(lambda x: x + 1, block, rounds=rounds)
    print(f"a copy moves {copy / 1e12:.2f} TB/s", flush=True)
    del block
    rows = []
    for name, ours, theirs, arguments, grads, moved in cases(R, D, F, V, interpret=backend != "gpu"):
        one, other = (seconds(with_gradient(f), arguments, grads, rounds=rounds) for f in (ours, theirs))
        rows.append([name, f"{one * 1e6:.0f}", f"{other * 1e6:.0f}", f"{moved / copy * 1e6:.0f}", f"{one / other:.2f}"])
    print("\n" + table(["", "ours, us", "XLA, us", "at least, us", "ours / XLA"], rows))


if __name__ == "__main__":
    main()
