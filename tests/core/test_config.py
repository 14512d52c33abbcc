import dataclasses
from typing import Literal

import pytest

from jaxgpt.core import config
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Experiment, Stage
from jaxgpt.core.optim import Optim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Stage):
    name: str = "train"
    optim: Optim = Optim()
    steps: int = 10
    prompts: tuple[str, ...] = ()
    limit: int | None = None
    kind: Literal["a", "b"] = "a"
    mixture: dict[str, float] = dataclasses.field(default_factory=lambda: {"x": 1.0})


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...] = ()


EXPERIMENT = Experiment(name="tiny", stages=(Train(), Train(name="again")))


@pytest.mark.parametrize("path, text, read, expected", [
    ("train.optim.lr", "1e-3", lambda e: e.stages[0].optim.lr, 1e-3),
    ("again.steps", "1e6", lambda e: e.stages[1].steps, 1_000_000),
    ("seed", "7", lambda e: e.seed, 7),
    ("layout.fsdp", "4", lambda e: e.layout.fsdp, 4),
    ("train.prompts", "['a', 'b']", lambda e: e.stages[0].prompts, ("a", "b")),
    ("train.limit", "5", lambda e: e.stages[0].limit, 5),
    ("train.kind", "b", lambda e: e.stages[0].kind, "b"),
    ("train.mixture.x", "3", lambda e: e.stages[0].mixture["x"], 3.0),
    ("name", "12", lambda e: e.name, "12"),
])
def test_override_sets_one_field_with_its_type(path, text, read, expected):
    changed = config.override(EXPERIMENT, path, text)
    assert read(changed) == expected and type(read(changed)) is type(expected)
    assert read(EXPERIMENT) != expected  # the original is as it was


def test_none_is_spelled_none():
    limited = config.override(EXPERIMENT, "train.limit", "5")
    assert config.override(limited, "train.limit", "none").stages[0].limit is None


@pytest.mark.parametrize("path, text, message", [
    ("train.optim.lrr", "1", "no field of Optim is called 'lrr'; did you mean 'lr'?"),
    ("trian.steps", "1", "no stage or field of the experiment is called 'trian'; did you mean 'train'?"),
    ("train.steps", "many", "'many' is not of type int"),
    ("train.steps", "1.5", "1.5 is not of type int"),
    ("train.steps", "true", "True is not of type int"),
    ("train.kind", "c", "'c' is not one of 'a', 'b'"),
    ("train.optim.lr", "-1", "a learning rate is above 0"),
    ("train.optim", "1", "'optim' is a Optim; name one of its fields: kind, lr"),
    ("train", "1", "'train' is a stage; name one of its fields"),
    ("train.steps.x", "1", "int has no fields, so '.x' leads nowhere"),
    ("train.mixture.y", "1", "no key is called 'y'; valid: x"),
])
def test_override_refuses_with_the_valid_choices(path, text, message):
    with pytest.raises(UserError) as error:
        config.override(EXPERIMENT, path, text)
    assert message in str(error.value)


def test_a_tuple_of_named_things_goes_by_their_names():
    mixture = (Part("one", 1), Part("two", 2))
    assert config.override(mixture, "two.weight", "3") == (Part("one", 1), Part("two", 3))
    for path, message in (("three.weight", "--set three.weight: no step is called 'three'; valid: one, two"),
                          ("two", "--set two: 'two' is a step; name one of its fields, as in two.FIELD=VALUE")):
        with pytest.raises(UserError) as error:
            config.override(mixture, path, "3")
        assert str(error.value) == message
    with pytest.raises(UserError, match="no step is called 'one'; valid: none, there is no step"):
        config.override((), "one.weight", "3")
    with pytest.raises(UserError, match="'parts' are several; name one and its field, as in parts.one.FIELD=VALUE"):
        config.override(Whole(mixture), "parts", "3")
    with pytest.raises(UserError, match="no part is called 'three'"):
        config.override(Whole(mixture), "parts.three.weight", "3")


def test_json_round_trip():
    optim = Optim(kind="muon", lr=0.02, adam_lr=0.01)
    assert config.from_json(Optim, config.to_json(optim)) == optim


def test_json_with_an_unknown_field_is_refused():
    with pytest.raises(UserError, match="no field of Optim is called 'momentun'; did you mean 'momentum'"):
        config.from_json(Optim, {"momentun": 0.9})


def test_choices_of_hardware_are_no_difference():
    saved = {"model": {"type": "Config", "width": 8, "remat": "none"}}
    now = {"model": {"type": "Config", "width": 8, "remat": "full", "attention": "xla", "kernels": "xla"}}
    assert config.first_difference(saved, now) is None
    now["model"]["width"] = 16
    assert config.first_difference(saved, now) == "model.width is 8 there and 16 here"
    assert config.first_difference({"type": "Other", "remat": 1}, {"type": "Other", "remat": 2})


def test_first_difference_names_the_path():
    assert config.first_difference({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}) == "a.b[1] is 2 there and 3 here"
    assert config.first_difference({"a": 1}, {"a": 1}) is None


@pytest.mark.parametrize("source, message", [
    (None, "no such experiment file"),
    ("x = 1\n", "defines no get_config"),
    ("def get_config(:\n", "line 1: SyntaxError"),
    ("\nimport no_such_module\n", "line 2: ModuleNotFoundError"),
    ("def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
])
def test_a_file_that_does_not_load_is_one_sentence(tmp_path, source, message):
    path = tmp_path / "experiment.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(UserError, match=message) as error:
        config.load(path)
    assert str(path) in str(error.value)
