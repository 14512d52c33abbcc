"""Stages run in order, once; what is complete is left alone, and nothing is mixed with another experiment's results."""

import dataclasses
import json
import os
import signal
import threading

import jax
import numpy as np
import pytest

from jaxgpt.core import experiment
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, Experiment, Stage, Stopped
from jaxgpt.core.files import read_json
from jaxgpt.core.sharding import Layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Write(Stage):
    """Writes one line to `ran.txt` each time it runs, so that runs can be counted, and puts `value` out."""

    name: str = "first"
    value: int = 1
    after: tuple[str, ...] = ()

    def inputs(self):
        return self.after

    def run(self, context):
        with open(context.directory / "ran.txt", "a") as file:
            file.write("ran\n")
        return {"value": self.value + sum(context.output(name, "value") for name in self.after), "file": "ran.txt"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fail(Write):
    """Writes, and raises while the file `fuse` stands beside the workdir."""

    error: str = "ValueError"

    def run(self, context):
        outputs = super().run(context)
        assert not (context.directory / "manifest.json").exists()
        if (context.workdir.parent / "fuse").exists():
            raise {"ValueError": ValueError, "OSError": OSError, "UserError": UserError}[self.error]("burnt")
        return outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signal(Write):
    """Sends a signal to its own process."""

    signal: int = signal.SIGTERM
    times: int = 1

    def run(self, context):
        assert not context.should_stop()
        for _ in range(self.times):
            os.kill(os.getpid(), self.signal)
        assert context.should_stop()
        return super().run(context)


def runs(workdir, name):
    path = workdir / name / "ran.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def files(folder):
    return {path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def pair(first=1, second=10, **settings):
    return Experiment(name="pair", stages=(Write(value=first), Write(name="second", value=second, after=("first",))),
                      **settings)


# --- order and completion --------------------------------------------------------------------------------------------

def test_stages_run_once_and_see_what_earlier_ones_put_out(tmp_path, capsys):
    work = tmp_path / "work"
    experiment.run(pair(), work)
    assert read_json(work / "second" / "manifest.json")["outputs"] == {"value": 11, "file": "ran.txt"}
    before = files(work)
    experiment.run(pair(), work)
    assert files(work) == before and runs(work, "first") == runs(work, "second") == 1
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["[1/2] first: running", "[1/2] first: done in 0.0 s"]
    assert out[-2:] == ["[1/2] first: complete", "[2/2] second: complete"]


def test_the_manifest_says_what_was_done(tmp_path):
    experiment.run(pair(seed=5), tmp_path)
    found = read_json(tmp_path / "second" / "manifest.json")
    assert (found["stage"], found["seed"], found["settings"]["value"]) == ("second", 5, 10)
    assert found["inputs"] == {"first": experiment.fingerprint(tmp_path, "first")}
    assert found["seconds"] >= 0 and found["peak_memory_bytes"] > 1e6 and found["finished"] and found["version"]


@pytest.mark.parametrize("error, raised, message", [
    ("ValueError", ValueError, "burnt"), ("UserError", UserError, "burnt"),
    ("OSError", UserError, "stage 'second': .*second: burnt")])
def test_a_stage_that_raises_has_no_manifest_and_is_run_again(tmp_path, error, raised, message):
    chosen = Experiment(name="x", stages=(Write(), Fail(name="second", error=error), Write(name="third")))
    work, fuse = tmp_path / "work", tmp_path / "fuse"
    fuse.touch()
    with pytest.raises(raised, match=message):
        experiment.run(chosen, work)
    assert (work / "first" / "manifest.json").exists()
    assert not (work / "second" / "manifest.json").exists() and not (work / "third").exists()
    fuse.unlink()
    experiment.run(chosen, work)
    assert [runs(work, name) for name in ("first", "second", "third")] == [1, 2, 1]


def test_time_of_earlier_attempts_is_counted(tmp_path):
    chosen = Experiment(name="x", stages=(Fail(),))
    (tmp_path / "fuse").touch()
    with pytest.raises(ValueError):
        experiment.run(chosen, tmp_path / "work")
    (tmp_path / "work" / "first" / "seconds.json").write_text("100.0")
    (tmp_path / "fuse").unlink()
    experiment.run(chosen, tmp_path / "work")
    assert 100 <= read_json(tmp_path / "work" / "first" / "manifest.json")["seconds"] < 110


def test_a_stage_that_fails_before_it_makes_anything_can_be_put_right(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Refuse(Stage):
        name: str = "refuse"
        size: int = 3

        def run(self, context):
            if self.size % 2:
                raise UserError(f"size={self.size}: must be even")
            return {}

    with pytest.raises(UserError, match="must be even"):
        experiment.run(Experiment(name="x", stages=(Refuse(),)), tmp_path)
    assert not (tmp_path / "refuse").exists()
    experiment.run(Experiment(name="x", stages=(Refuse(size=4),)), tmp_path)


def test_only_runs_one_stage_whose_inputs_are_complete(tmp_path):
    with pytest.raises(UserError, match="stage 'first' is not complete; run it first"):
        experiment.run(pair(), tmp_path, only="second")
    assert not (tmp_path / "second").exists()
    experiment.run(pair(), tmp_path, only="first")
    assert not (tmp_path / "second").exists()
    experiment.run(pair(), tmp_path, only="second")
    assert runs(tmp_path, "first") == runs(tmp_path, "second") == 1
    with pytest.raises(UserError, match="no stage is called 'third'; valid: first, second"):
        experiment.run(pair(), tmp_path, only="third")


# --- another experiment ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("other, message", [
    (pair(second=20), "second: holds a different experiment: value is 10 there and 20 here"),
    (pair(seed=7), "first: holds a different experiment: seed is 0 there and 7 here")])
def test_a_workdir_that_holds_a_different_experiment_is_left_as_it_is(tmp_path, other, message):
    experiment.run(pair(), tmp_path)
    before = files(tmp_path)
    with pytest.raises(UserError, match=message):
        experiment.run(other, tmp_path)
    assert files(tmp_path) == before


def test_so_is_one_whose_stage_is_half_done(tmp_path):
    work = tmp_path / "work"
    (tmp_path / "fuse").touch()
    with pytest.raises(ValueError):
        experiment.run(Experiment(name="x", stages=(Fail(value=1),)), work)
    before = files(work)
    with pytest.raises(UserError, match="value is 1 there and 2 here; choose another --workdir, or remove .*first"):
        experiment.run(Experiment(name="x", stages=(Fail(value=2),)), work)
    assert files(work) == before


def test_the_layout_may_change(tmp_path):
    experiment.run(pair(), tmp_path)
    experiment.run(pair(layout=Layout(data=2, fsdp=4), rules="replicated"), tmp_path)
    assert runs(tmp_path, "first") == 1


def rebuild(work, value):
    """Makes `first` anew with another value."""
    for path in (work / "first").iterdir():
        path.unlink()
    experiment.run(pair(first=value), work, only="first")


def test_a_complete_stage_whose_input_was_rebuilt_is_refused(tmp_path):
    experiment.run(pair(), tmp_path)
    rebuild(tmp_path, 1)
    experiment.run(pair(), tmp_path)  # the same again is the same
    rebuild(tmp_path, 2)
    with pytest.raises(UserError, match="second: was made from another 'first' than the one in .*; remove .*second"):
        experiment.run(pair(first=2), tmp_path)


def test_an_input_that_this_run_rebuilds_is_noticed_too(tmp_path):
    experiment.run(pair(), tmp_path)
    for path in (tmp_path / "first").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="second: was made from another 'first'"):
        experiment.run(pair(first=2), tmp_path)
    assert read_json(tmp_path / "second" / "manifest.json")["outputs"]["value"] == 11


def test_a_half_done_stage_does_not_go_on_with_another_input(tmp_path):
    work = tmp_path / "work"
    (tmp_path / "fuse").touch()

    def chosen(value):
        return Experiment(name="x", stages=(Write(value=value), Fail(name="second", after=("first",))))
    with pytest.raises(ValueError, match="burnt"):
        experiment.run(chosen(1), work)
    rebuild(work, 2)
    with pytest.raises(UserError, match="second: was made from another 'first'"):
        experiment.run(chosen(2), work)


@pytest.mark.parametrize("text, message", [
    ('{"stage": "first", ', r"manifest.json, line 2: not valid JSON"), ("[1, 2]", "'stage' is missing"),
    ('{"stage": "first", "settings": {}}', "'seed' is missing")])
def test_a_malformed_manifest_is_named(tmp_path, text, message):
    experiment.run(pair(), tmp_path)
    path = tmp_path / "first" / "manifest.json"
    path.write_text(text + "\n")
    with pytest.raises(UserError, match=message) as error:
        experiment.run(pair(), tmp_path)
    assert str(path) in str(error.value)


# --- one at a time, and stopping -------------------------------------------------------------------------------------

def test_two_runs_never_share_a_workdir(tmp_path):
    inside, leave = threading.Event(), threading.Event()

    @dataclasses.dataclass(frozen=True)
    class Wait(Stage):
        name: str = "wait"

        def run(self, context):
            inside.set()
            assert leave.wait(20)
            return {}

    chosen = Experiment(name="x", stages=(Wait(),))
    thread = threading.Thread(target=experiment.run, args=(chosen, tmp_path))
    thread.start()
    assert inside.wait(20)
    try:
        with pytest.raises(UserError, match="another run is working there"):
            experiment.run(chosen, tmp_path)
    finally:
        leave.set()
        thread.join()
    experiment.run(chosen, tmp_path)  # the lock went with the run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_stage_that_is_nearly_done(tmp_path, number):
    chosen = Experiment(name="x", stages=(Signal(signal=int(number)), Write(name="second")))
    before = signal.getsignal(number)
    with pytest.raises(Stopped):
        experiment.run(chosen, tmp_path)
    assert signal.getsignal(number) is before
    assert (tmp_path / "first" / "manifest.json").exists() and not (tmp_path / "second").exists()
    experiment.run(chosen, tmp_path)
    assert runs(tmp_path, "first") == runs(tmp_path, "second") == 1


def test_a_signal_in_the_last_stage_lets_it_finish(tmp_path):
    experiment.run(Experiment(name="x", stages=(Signal(),)), tmp_path)
    assert (tmp_path / "first" / "manifest.json").exists()


def test_a_second_signal_ends_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        experiment.run(Experiment(name="x", stages=(Signal(times=2),)), tmp_path)
    assert not (tmp_path / "first").exists()


# --- names -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stages, message", [
    ((Write(), Write()), "two are called 'first'; give one another name="),
    ((Write(after=("zero",)),), "'first' reads 'zero', which is not among the stages before it: none"),
    ((Write(name="a"), Write(name="b", after=("c",)), Write(name="c")), "'b' reads 'c', .* before it: a$"),
    ((Write(after=("first",)),), "'first' reads 'first', which is not")])
def test_stages_out_of_order_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        Experiment(name="x", stages=stages)


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ValueError, match="there is no 'tensorbord'; valid: tensorboard, wandb"):
        Experiment(name="x", stages=(), trackers=("tensorbord",))


# --- context ---------------------------------------------------------------------------------------------------------

def context(seed=0, stage="first", workdir="w"):
    chosen = pair(seed=seed)
    return Context(chosen, chosen.stage(stage), workdir)


def test_randomness_follows_from_seed_stage_and_labels():
    def bits(context, *labels):
        return tuple(jax.random.key_data(context.rng(*labels)).tolist())
    assert bits(context(), "init") == bits(context(), "init")
    different = [bits(context(), "init"), bits(context(), "init", 1), bits(context(), "init", 2), bits(context()),
                 bits(context(stage="second"), "init"), bits(context(seed=1), "init")]
    assert len(set(different)) == len(different)


def test_a_key_is_the_same_on_every_machine():
    """A number written down: a change of the rule would change every run."""
    assert jax.random.key_data(context().rng("init")).tolist() == [2810214585, 2131379686]


def test_outputs_are_found_by_name(tmp_path):
    experiment.run(pair(), tmp_path)
    here = context(stage="second", workdir=tmp_path)
    assert here.output("first", "value") == 1 and here.path("first", "file") == tmp_path / "first" / "ran.txt"
    with pytest.raises(UserError, match="stage 'first' put out no 'valu'; it has: value, file"):
        here.output("first", "valu")
    with pytest.raises(UserError, match="stage 'second' needs 'third', which is not complete in"):
        here.output("third", "value")


def test_the_mesh_is_that_of_the_layout():
    chosen = dataclasses.replace(pair(), layout=Layout(data=2, fsdp=-1))
    mesh = Context(chosen, chosen.stages[0], "w").mesh
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1, "expert": 1}
    with pytest.raises(UserError, match="8 device"):
        Context(dataclasses.replace(chosen, layout=Layout(data=3)), chosen.stages[0], "w").mesh


def test_settings_are_kept_as_json(tmp_path):
    experiment.run(pair(), tmp_path)
    settings = json.loads((tmp_path / "second" / "settings.json").read_text())
    assert settings["settings"] == {"type": "Write", "name": "second", "value": 10, "after": ["first"]}
    np.testing.assert_equal(settings["inputs"], {"first": experiment.fingerprint(tmp_path, "first")})
