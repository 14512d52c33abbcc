"""One golden step: what three steps of a fixed model on fixed tokens come to, to four digits."""

import functools

import jax
import numpy as np
import pytest
import tiny

from jaxgpt.core import sharding
from jaxgpt.core.optim import Optim, make_optimizer
from jaxgpt.core.state import TrainState
from jaxgpt.core.step import create_state, make_train_step, state_shardings
from jaxgpt.model import losses, transformer

MODEL = transformer.Config(vocab_size=64, context=16, layers=2, width=16, heads=2, kv_heads=1, loss_chunk=None)
GOLDEN = {
    "adamw": [4.168038, 4.076905, 3.971453],
    "muon": [4.168038, 4.047029, 3.936769],
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_three_steps(kind):
    mesh, rules = tiny.mesh(), sharding.get_rules("fsdp")
    axes = transformer.logical_axes(MODEL)
    optimizer = make_optimizer(Optim(kind=kind, lr=0.02, schedule="cosine", weight_decay=0.1), 10, axes)
    init = functools.partial(transformer.init, config=MODEL)
    shapes = jax.eval_shape(lambda rng: TrainState.create(rng, init(rng), optimizer), jax.random.key(0))
    shardings = state_shardings(shapes, axes, mesh=mesh, rules=rules)
    step = make_train_step(functools.partial(losses.next_token_loss, config=MODEL), optimizer, mesh=mesh, rules=rules,
                           state_shardings=shardings, clip_norm=1.0)
    # Parameters and tokens come from a formula, so that only the computation itself is under test.
    params = jax.tree.map(lambda x: 0.3 * np.sin(np.arange(x.size, dtype=np.float32) * 1.7).reshape(x.shape),
                          shapes.params)
    state = create_state(jax.random.key(0), init, optimizer, shardings=shardings,
                         params=jax.device_put(params, shardings.params))
    stream = (np.arange(4 * 17) ** 2 % 61).astype(np.int32).reshape(4, 17)
    batch = {"tokens": stream[:, :-1], "targets": stream[:, 1:], "loss_mask": np.ones((4, 16), np.float32)}
    found = []
    for _ in range(3):
        state, metrics = step(state, (), batch)
        found.append(float(metrics["loss"]))
    assert found == pytest.approx(GOLDEN[kind], rel=1e-4), (
        f"the losses of three {kind} steps are {found}. If the model, the loss, the optimizer or a schedule was meant "
        "to change, check the change against its equation and write the new numbers here; if not, it changed by "
        "accident, and `git bisect` with this test finds where.")
