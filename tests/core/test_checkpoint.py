"""What is saved comes back bit for bit, wherever it is to live; what was interrupted is not there."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgpt.core.checkpoint import Checkpoints, complete_steps, load_config, load_params
from jaxgpt.core.errors import UserError
from jaxgpt.core.state import TrainState
from jaxgpt.core.step import abstract

CONFIG = {"type": "Config", "width": 8, "windows": [None, 4]}
OPTIMIZERS = {
    "adamw": optax.adamw(0.1, mask={"b": False, "w": True}),  # a mask leaves MaskedNode, a NamedTuple without leaves
    "muon": optax.contrib.muon(0.1),
    "bfloat16": optax.adam(0.1, mu_dtype=jnp.bfloat16)}


def make_state(seed=0, optimizer="adamw", size=8):
    """A state after one update, so that nothing in it is zero by birth."""
    params = {"w": jax.random.normal(jax.random.key(seed), (size, 4)), "b": jnp.arange(4.0)}
    extra = {"key": jax.random.split(jax.random.key(seed + 1), 2), "buffer": jnp.arange(3, dtype=jnp.int8)}
    state = TrainState.create(jax.random.key(seed + 2), params, OPTIMIZERS[optimizer], extra)
    updates, opt_state = OPTIMIZERS[optimizer].update(params, state.opt_state, params)
    return TrainState(optax.apply_updates(params, updates), opt_state, state.step + 1, state.rng, state.extra)


def plain(leaf):
    return np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(plain(x), plain(y))


def on(devices, state):
    """Shardings of a state over some devices: the first dimension of what has four rows or more, split."""
    mesh = Mesh(np.asarray(jax.devices()[:devices]), ("x",))
    return jax.tree.map(lambda leaf: NamedSharding(
        mesh, PartitionSpec("x") if leaf.ndim == 2 and leaf.shape[0] % devices == 0 else PartitionSpec()), state)


def target(state, devices=1):
    return abstract(state, on(devices, state))


def save(folder, *steps, state=None, **options):
    checkpoints = Checkpoints(folder, config=CONFIG, **options)
    for step in steps:
        checkpoints.save(step, state or make_state(step), {"next_step": step})
    checkpoints.close()


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_state_comes_back_bit_for_bit(tmp_path, optimizer):
    state = make_state(optimizer=optimizer)
    save(tmp_path, 3, state=state)
    other = make_state(seed=9, optimizer=optimizer)
    checkpoints = Checkpoints(tmp_path, config=CONFIG)
    found, data = checkpoints.restore(target(other))
    checkpoints.close()
    assert_same(found, state)
    assert data == {"next_step": 3}
    assert type(found.opt_state) is type(state.opt_state)
    jax.random.normal(found.rng)  # a key, and not its bits
    assert not np.array_equal(found.params["w"], other.params["w"])


@pytest.mark.parametrize("before, after", [(8, 2), (8, 1), (1, 8), (2, 8)])
def test_a_checkpoint_fits_any_number_of_devices(tmp_path, before, after):
    state = make_state()
    save(tmp_path, 1, state=jax.device_put(state, on(before, state)))
    checkpoints = Checkpoints(tmp_path, config=CONFIG)
    found, _ = checkpoints.restore(target(state, after))
    checkpoints.close()
    assert_same(found, state)
    assert len(found.params["w"].sharding.device_set) == after
    params = load_params(tmp_path / "1", target(state, after).params)
    assert_same(params, state.params)
    assert len(params["w"].sharding.device_set) == after


def test_the_state_may_be_donated_while_it_is_being_written(tmp_path):
    """The step that follows a save takes the state's memory at once, or a copy where the writer still reads it."""
    state = make_state(size=1 << 18)  # 4 MB, so that writing takes a while
    expected = jax.tree.map(lambda leaf: plain(leaf).copy(), state)
    spoil = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, config=CONFIG)
    checkpoints.save(1, state, {})
    params = spoil(state.params)
    jax.block_until_ready(params)
    assert float(params["w"][0, 0]) == -1.0 != float(expected.params["w"][0, 0])
    checkpoints.close()
    found = load_params(tmp_path / "1", target(make_state(size=1 << 18)).params)
    np.testing.assert_array_equal(found["w"], expected.params["w"])


def test_the_newest_stay(tmp_path):
    save(tmp_path, 2, 4, 6, 8, keep=2)
    assert complete_steps(tmp_path) == [6, 8]
    checkpoints = Checkpoints(tmp_path, config=CONFIG, keep=2)
    assert checkpoints.latest() == 8
    assert checkpoints.restore(target(make_state()), 6)[1] == {"next_step": 6}
    checkpoints.close()


def break_metadata(folder):
    (folder / "4" / "_CHECKPOINT_METADATA").unlink()


def break_empty(folder):
    shutil.rmtree(folder / "4")
    (folder / "4").mkdir()


def break_temporary(folder):
    (folder / "4").rename(folder / "4.orbax-checkpoint-tmp-0")


@pytest.mark.parametrize("interrupt", [break_metadata, break_empty, break_temporary])
def test_an_interrupted_checkpoint_is_not_there(tmp_path, interrupt):
    save(tmp_path, 2, 4)
    interrupt(tmp_path)
    assert complete_steps(tmp_path) == [2]
    with pytest.raises(UserError, match="4: no complete checkpoint there"):
        load_params(tmp_path / "4", make_state().params)
    checkpoints = Checkpoints(tmp_path, config=CONFIG)
    assert checkpoints.latest() == 2
    assert checkpoints.restore(target(make_state()))[1] == {"next_step": 2}
    state = make_state(seed=5)
    checkpoints.save(4, state, {"next_step": 4})  # the step is written again, in full
    checkpoints.save(6, state, {"next_step": 6})
    checkpoints.close()
    assert complete_steps(tmp_path) == [4, 6]
    assert_same(load_params(tmp_path / "4", target(state).params), state.params)
    assert {path.name for path in tmp_path.iterdir()} == {"4", "6"}


def test_no_folder_has_no_steps(tmp_path):
    assert complete_steps(tmp_path / "nowhere") == []
    with pytest.raises(UserError, match="nowhere: no complete checkpoint there"):
        load_params(tmp_path / "nowhere", make_state().params)


def test_parameters_are_read_alone(tmp_path):
    state = make_state()
    save(tmp_path, 1, state=state)
    shutil.rmtree(tmp_path / "1" / "rest")
    assert_same(load_params(tmp_path / "1", target(state).params, config=CONFIG), state.params)
    shapes = jax.eval_shape(lambda: state.params)  # without shardings: on the first device
    assert_same(load_params(tmp_path / "1", shapes), state.params)
    assert load_config(tmp_path / "1") == CONFIG


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save(tmp_path, 1)
    other = {**CONFIG, "width": 16}
    with pytest.raises(UserError, match="another model's: width is 8 there and 16 here"):
        load_params(tmp_path / "1", make_state().params, config=other)
    checkpoints = Checkpoints(tmp_path, config=other)
    with pytest.raises(UserError, match="another model's: width is 8 there and 16 here; choose another --workdir"):
        checkpoints.restore(target(make_state()))
    checkpoints.close()
    assert complete_steps(tmp_path) == [1]


def test_a_damaged_checkpoint_is_one_sentence(tmp_path):
    save(tmp_path, 1)
    for path in (tmp_path / "1").rglob("d/*"):
        path.write_bytes(b"not an array")
    with pytest.raises(UserError, match="1: this checkpoint cannot be read; remove it") as error:
        load_params(tmp_path / "1", target(make_state()).params)
    assert len(str(error.value)) < 400 + len(str(tmp_path)) and "\n" not in str(error.value)
    checkpoints = Checkpoints(tmp_path, config=CONFIG)
    with pytest.raises(UserError, match="1: this checkpoint cannot be read"):
        checkpoints.restore(target(make_state()))
    checkpoints.close()
