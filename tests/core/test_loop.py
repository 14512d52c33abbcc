"""The loop on Σ m (x w - y)²: what it writes, how it stops, and that a resumed run is the uninterrupted one, to the bit."""

import dataclasses
import functools
import gzip
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.core import experiment, sharding
from jaxgpt.core.checkpoint import Checkpoints, complete_steps
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, Experiment, Stage, Stopped
from jaxgpt.core.files import read_json
from jaxgpt.core.loop import Loop, train
from jaxgpt.core.metrics import TIMED, read_metrics
from jaxgpt.core.running import listening
from jaxgpt.core.sharding import Layout
from jaxgpt.core.state import TrainState
from jaxgpt.core.step import abstract as shapes
from jaxgpt.core.step import create_state, make_train_step, state_shardings

CONFIG = {"type": "Quadratic", "size": 8}
OPTIMIZER = optax.adam(0.1)


def loss_fn(params, frozen, batch, rng):
    """Noise from the run's key, so that a resumed run must have the same key at the same step."""
    x = batch["x"] + 0.01 * jax.random.normal(rng, batch["x"].shape)
    error = jnp.sum(jnp.square(x @ params["w"] - batch["y"]), axis=-1)
    return jnp.sum(error), jnp.float32(error.size), {"largest": (jnp.max(error), jnp.float32(1))}


def init(rng):
    return {"w": jax.random.normal(rng, (8, 4))}


def batch_at(seed, step):
    rng = np.random.default_rng([seed, step])
    return {"x": rng.normal(size=(8, 8)).astype(np.float32), "y": rng.normal(size=(8, 4)).astype(np.float32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit(Stage):
    """Trains; what is to go wrong at which step is no setting, so that the resumed run is of the same experiment."""

    name: str = "fit"
    steps: int = 12
    loop: Loop = Loop(log_every=2, eval_every=4, save_every=4)

    def run(self, context, at=None, then=lambda batch: batch, config=CONFIG, seen=None):
        mesh, rules = context.mesh, context.rules
        abstract = jax.eval_shape(lambda rng: TrainState.create(rng, init(rng), OPTIMIZER), jax.random.key(0))
        shardings = state_shardings(abstract, {"w": ("embed", "mlp")}, mesh=mesh, rules=rules)
        step_fn = make_train_step(loss_fn, OPTIMIZER, mesh=mesh, rules=rules, state_shardings=shardings)
        create = functools.partial(create_state, context.rng("init"), init, OPTIMIZER, shardings=shardings)

        def batches(start):
            step = start

            def next_batch(state):
                nonlocal step
                step += 1
                batch = batch_at(context.seed, step)
                return (then(batch) if step == at else batch), {"batch_number": step}
            return next_batch

        def evaluate(state, step):
            return {"val_loss": float(jnp.sum(jnp.square(state.params["w"])))}

        state = train(context, self.loop, step_fn=step_fn, create=create, abstract_state=shapes(abstract, shardings), batches=batches,
                      steps=self.steps, config=config, evaluate=evaluate, tokens_per_step=64, flops_per_token=100.0)
        if seen is not None:
            seen.update(state=state, step_fn=step_fn, shardings=shardings)
        return {}


def fit(workdir, *, layout=Layout(data=8), stage=Fit(), devices=8, seed=0, profile=0, **options):
    """Trains in `workdir`; returns the last state, the step and its shardings."""
    chosen, seen = Experiment(name="loop", stages=(stage,), layout=layout, seed=seed), {}
    context = Context(chosen, stage, workdir, mesh=sharding.make_mesh(layout, jax.devices()[:devices]), profile=profile)
    with listening(context.stop, context.log, "stopping"):
        stage.run(context, seen=seen, **options)
    return seen


def lines(workdir, stage="fit"):
    """The metrics without what a clock says."""
    return [{key: value for key, value in line.items() if key not in TIMED}
            for line in read_metrics(workdir / stage / "metrics.jsonl")]


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def kill(batch):
    raise RuntimeError("killed")


def ask_to_stop(batch):
    os.kill(os.getpid(), signal.SIGTERM)
    return batch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: (workdir, what it left)."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, fit(workdir)


def test_one_compilation_in_twelve_steps_four_evaluations_and_three_checkpoints(tmp_path, capsys):
    fit(tmp_path)
    assert "compiled anew" not in capsys.readouterr().err  # the next test shows that it would be told


def test_the_share_of_time_that_batches_took(whole):
    workdir, _ = whole
    shares = [line["batch_time"] for line in read_metrics(workdir / "fit" / "metrics.jsonl") if "batch_time" in line]
    assert shares and all(0 < share <= 1 for share in shares)


def test_a_step_that_is_compiled_anew_is_told(tmp_path, capsys):
    fit(tmp_path, at=5, then=lambda batch: {name: value.astype(np.float16) for name, value in batch.items()})
    err = capsys.readouterr().err
    assert err.count("compiled anew") == 1 and "fit: step 5 was compiled anew" in err


def test_a_profile_of_the_steps_asked_for(tmp_path, capsys):
    fit(tmp_path, profile=2)
    assert "fit: a profile of steps 3 to 4 is in" in capsys.readouterr().err
    (trace,) = (tmp_path / "fit" / "profile").rglob("perfetto_trace.json.gz")
    with gzip.open(trace) as file:
        names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
    assert any("step" in name for name in names)
    assert list((tmp_path / "fit" / "profile").rglob("*.xplane.pb"))


def test_what_it_writes_and_when(whole):
    workdir, seen = whole
    found = lines(workdir)
    losses = [line["step"] for line in found if "loss" in line]
    assert losses == [1, 2, 4, 6, 8, 10, 12] and [line["step"] for line in found if "val_loss" in line] == [0, 4, 8, 12]
    assert [line["tokens"] for line in found if "loss" in line] == [64 * step for step in losses]
    assert all({"grad_norm", "param_norm", "largest", "batch_number"} <= set(line) for line in found if "loss" in line)
    assert all(line["batch_number"] == line["step"] for line in found if "loss" in line)
    assert not any("finite" in line for line in found)
    times = [line["time"] for line in read_metrics(workdir / "fit" / "metrics.jsonl")]
    assert times == sorted(times) and times[0] >= 0
    assert complete_steps(workdir / "fit" / "checkpoints") == [8, 12]
    assert int(seen["state"].step) == 12 and found[1]["loss"] > found[-2]["loss"]


@pytest.fixture(scope="module")
def compiled():
    """Grows by one with each program that XLA compiles or finds in its cache on disk."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: events.append(name) if name.endswith("backend_compile_duration") else None)
    return events


def test_nothing_is_compiled_after_the_first_steps(tmp_path, compiled):
    """Neither by a run that begins new nor by one that was restored; evaluations and saving are among the first steps."""
    counts = {}

    def count(batch, name):
        counts[name] = len(compiled)
        return batch

    before = len(compiled)
    fit(tmp_path / "new", at=6, then=lambda batch: count(batch, "new"))
    assert before < counts["new"] == len(compiled)
    with pytest.raises(RuntimeError):
        fit(tmp_path / "resumed", at=6, then=kill)
    fit(tmp_path / "resumed", at=6, then=lambda batch: count(batch, "resumed"))  # step 6 is its second
    assert counts["new"] < counts["resumed"] == len(compiled)


@pytest.mark.parametrize("at", [1, 3, 4, 5, 9, 12])
def test_killed_and_started_again_is_uninterrupted(whole, tmp_path, at):
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, at=at, then=kill)
    assert at < 6 or complete_steps(tmp_path / "fit" / "checkpoints")[-1] == (at - 1) // 4 * 4
    seen = fit(tmp_path)
    assert_same(seen["state"], whole[1]["state"])
    assert lines(tmp_path) == lines(whole[0])


def test_the_seed_makes_a_difference(whole, tmp_path):
    other = fit(tmp_path, seed=1)
    assert not np.array_equal(other["state"].params["w"], whole[1]["state"].params["w"])


def test_what_a_killed_run_wrote_beyond_its_checkpoint_is_dropped(whole, tmp_path):
    with pytest.raises(RuntimeError):
        fit(tmp_path, at=7, then=kill)
    path = tmp_path / "fit" / "metrics.jsonl"
    with open(path, "a") as file:
        file.write('{"step": 6, "loss": 99.0}\n{"step": 7, "lo')
    fit(tmp_path)
    assert lines(tmp_path) == lines(whole[0])


def test_time_goes_on_where_it_was(tmp_path):
    with pytest.raises(RuntimeError):
        fit(tmp_path, at=7, then=kill)
    path = tmp_path / "fit" / "metrics.jsonl"
    path.write_text('{"step": 4, "time": 1000.0}\n')
    fit(tmp_path)
    assert all(1000 <= line["time"] < 1100 for line in read_metrics(path))


def test_a_finished_run_is_read_back(whole, tmp_path):
    fit(tmp_path)
    before = (tmp_path / "fit" / "metrics.jsonl").read_bytes()
    assert_same(fit(tmp_path, at=1, then=kill)["state"], whole[1]["state"])
    assert (tmp_path / "fit" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("layout, devices", [(Layout(data=1), 1), (Layout(data=1, fsdp=2), 2)])
def test_resumed_on_other_devices_is_uninterrupted_to_rounding(whole, tmp_path, layout, devices):
    with pytest.raises(RuntimeError):
        fit(tmp_path, at=7, then=kill)
    seen = fit(tmp_path, layout=layout, devices=devices)
    assert len(seen["state"].params["w"].sharding.device_set) == devices
    np.testing.assert_allclose(seen["state"].params["w"], whole[1]["state"].params["w"], rtol=1e-4, atol=1e-5)


# --- stopping --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("at", [1, 6, 8])
def test_a_signal_saves_and_stops(whole, tmp_path, at):
    with pytest.raises(Stopped):
        fit(tmp_path, at=at, then=ask_to_stop)
    assert complete_steps(tmp_path / "fit" / "checkpoints")[-1] == at
    assert_same(fit(tmp_path)["state"], whole[1]["state"])
    assert lines(tmp_path) == lines(whole[0])


def test_a_signal_at_the_last_step_finishes(whole, tmp_path):
    assert_same(fit(tmp_path, at=12, then=ask_to_stop)["state"], whole[1]["state"])


def test_through_the_runner(whole, tmp_path):
    """SIGTERM from outside a batch function: the stage has no manifest, the same call completes it."""
    chosen = Experiment(name="loop", stages=(Fit(), Fit(name="more")))

    class Interrupted(Fit):
        def run(self, context):
            return super().run(context, at=5, then=ask_to_stop)

    with pytest.raises(Stopped):
        experiment.run(dataclasses.replace(chosen, stages=(Interrupted(), Fit(name="more"))), tmp_path)
    assert not (tmp_path / "fit" / "manifest.json").exists() and not (tmp_path / "more").exists()
    (tmp_path / "fit" / "settings.json").write_text(
        (tmp_path / "fit" / "settings.json").read_text().replace("Interrupted", "Fit"))
    experiment.run(chosen, tmp_path)
    assert lines(tmp_path) == lines(whole[0])
    assert read_json(tmp_path / "more" / "manifest.json")["stage"] == "more"


# --- what goes wrong -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("at, good", [(3, []), (6, [4]), (8, [4]), (12, [4, 8])])
def test_a_loss_that_is_not_finite_stops_the_run(whole, tmp_path, at, good):
    def spoil(batch):
        batch["x"][0, 0] = np.inf
        return batch
    with pytest.raises(UserError, match=f"stage 'fit': the loss is not finite at step {at} "):
        fit(tmp_path, at=at, then=spoil)
    assert complete_steps(tmp_path / "fit" / "checkpoints") == good
    assert all(np.isfinite(line.get("loss", 0.0)) for line in lines(tmp_path))
    assert_same(fit(tmp_path)["state"], whole[1]["state"])  # the last checkpoint is good


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    with pytest.raises(RuntimeError):
        fit(tmp_path, at=6, then=kill)
    with pytest.raises(UserError, match="another model's: size is 8 there and 16 here"):
        fit(tmp_path, config={**CONFIG, "size": 16})
    assert complete_steps(tmp_path / "fit" / "checkpoints") == [4]


def test_an_error_of_the_batches_leaves_no_checkpoint_open(tmp_path):
    """The folder can be taken up at once, and by another manager."""
    with pytest.raises(RuntimeError):
        fit(tmp_path, at=5, then=kill)
    checkpoints = Checkpoints(tmp_path / "fit" / "checkpoints", config=CONFIG)
    assert checkpoints.latest() == 4
    checkpoints.close()


@pytest.mark.parametrize("wrong", [{"log_every": 0}, {"eval_every": -1}, {"save_every": -1}, {"keep": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        Loop(**wrong)
