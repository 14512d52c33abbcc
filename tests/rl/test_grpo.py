"""GRPO, the stage: what a batch of practice holds, what an update does to it, and that practice pays."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxgpt.core import sharding
from jaxgpt.core.errors import UserError
from jaxgpt.core.files import read_json
from jaxgpt.core.metrics import read_metrics
from jaxgpt.inference.generate import Rollouts
from jaxgpt.rl.advantages import group_advantages
from jaxgpt.rl.grpo import GRPO, Practice, grpo_loss
from jaxgpt.tokenizer.conversation import render_prompt
from jaxgpt.tokenizer.tokenizer import Tokenizer

PROMPT, NEW = 16, 4  # of the tiny experiment's GRPO


@dataclasses.dataclass(frozen=True)
class AnythingGoes(tiny.Letters):
    """Rewards whatever it is shown."""

    def reward(self, problem, completion):
        return 1.0


class Room:
    """A GRPO stage of the tiny experiment, with what its `run` makes, on one device."""

    def __init__(self, base, **settings):
        corpus, workdir = base
        experiment = tiny.experiment(corpus, **settings)
        self.context = tiny.context(experiment, "grpo", workdir)
        self.stage = self.context.stage
        self.tokenizer = Tokenizer.load(workdir / "tokenize")
        self.practice = Practice(self.stage, self.context, tiny.MODEL, self.tokenizer)
        self.trainable = self.stage.trainable(self.context, tiny.MODEL)
        self.checkpoint = workdir / "sft" / "checkpoints" / "20"

    def params(self):
        return self.trainable.load(self.checkpoint)

    def state(self):
        return self.trainable.create(self.context.rng("init"), self.params())

    def put(self, batch):
        return sharding.put(batch, sharding.batch_sharding(self.context.mesh, self.context.rules))

    def update(self, state, batch, frozen=()):
        state, metrics = self.trainable.step(state, frozen, self.put(batch))
        return state, {name: float(value) for name, value in metrics.items()}

    def prompts(self, step: int):
        problems = self.practice._problems[step * 8:(step + 1) * 8]
        return [render_prompt(self.tokenizer, problem.messages) for problem in problems for _ in range(4)]


@pytest.fixture(scope="module")
def room(tiny_base):
    return Room(tiny_base)


@pytest.fixture(scope="module")
def params(room):
    return room.params()


@pytest.fixture(scope="module")
def batch(room, params):
    return room.practice.batch(params, 0)[0]


def chosen(batch, row: int) -> list[int]:
    """The targets of a row that the mask keeps."""
    return batch["targets"][row][batch["loss_mask"][row] > 0].tolist()


def test_the_mask_covers_the_completion_and_its_stop_token(room, batch):
    end, finished = room.tokenizer.end, 0
    assert batch["tokens"].shape == (32, PROMPT + NEW - 1)
    for row, prompt in enumerate(room.prompts(0)):
        completion = chosen(batch, row)
        places = np.flatnonzero(batch["loss_mask"][row])
        assert list(places) == list(range(len(prompt) - 1, len(prompt) - 1 + len(completion)))
        assert batch["tokens"][row, :len(prompt)].tolist() == prompt
        assert end not in completion[:-1] and (completion[-1] == end or len(completion) == NEW)
        behind = len(prompt) - 1 + len(completion)
        assert not batch["targets"][row, behind:].any() and not batch["sampler_logprobs"][row, behind:].any()
        finished += completion[-1] == end
    assert 0 < finished < 32  # both kinds are there


def test_rewards_are_the_tasks_and_0_for_the_unfinished(room, batch, params):
    rewards = [float(chosen(batch, row) == [ord("a"), room.tokenizer.end]) for row in range(32)]
    assert 0 < sum(rewards) < 32
    groups = np.repeat(np.arange(8), 4)
    expected = group_advantages(np.array(rewards, np.float32), groups, scale="group")
    np.testing.assert_array_equal(batch["advantages"], expected)
    assert np.abs(batch["advantages"].reshape(8, 4).sum(axis=1)).max() < 1e-5  # each against its own group
    _, metrics = room.practice.batch(params, 0)
    assert metrics["reward"] == pytest.approx(np.mean(rewards))
    stopped = [chosen(batch, row)[-1] == room.tokenizer.end for row in range(32)]
    assert metrics["truncated"] == pytest.approx(1 - np.mean(stopped))
    assert metrics["completion_tokens"] == pytest.approx(batch["loss_mask"].sum() / 32)

    practice = Practice(dataclasses.replace(room.stage, task=AnythingGoes()), room.context, tiny.MODEL, room.tokenizer)
    _, metrics = practice.batch(params, 0)
    assert metrics["reward"] == pytest.approx(1 - metrics["truncated"])


def test_a_token_that_nobody_can_read_is_not_an_answer(tiny_base, room):
    wide = dataclasses.replace(tiny.MODEL, vocab_size=512)
    practice = Practice(room.stage, room.context, wide, room.tokenizer)
    letter, = room.tokenizer.encode("a")
    rolled = Rollouts(np.array([[1, letter, room.tokenizer.end], [1, 400, room.tokenizer.end]]),
                      np.array([[0, 1, 1], [0, 1, 1]]), None, np.array([True, True]))
    rewards, _ = practice._rewards(practice._problems[:2], rolled)
    assert rewards.tolist() == [1.0, 0.0]  # the task sees a character that stands for nothing


def test_truncated_completions_can_be_masked(room, batch, params):
    stage = dataclasses.replace(room.stage, truncated="mask")
    masked, _ = Practice(stage, room.context, tiny.MODEL, room.tokenizer).batch(params, 0)
    stopped = np.array([chosen(batch, row)[-1] == room.tokenizer.end for row in range(32)])
    np.testing.assert_array_equal(masked["loss_mask"], batch["loss_mask"] * stopped[:, None])
    np.testing.assert_array_equal(masked["advantages"], batch["advantages"])


def test_the_ratio_is_1_at_the_first_step_and_the_gradient_is_not_0(room, batch):
    _, metrics = room.update(room.state(), batch)
    assert metrics["ratio"] == 1.0 and metrics["clip_fraction"] == 0.0 and metrics["policy_kl"] == 0.0
    assert metrics["grad_norm"] > 1e-3
    assert metrics["sampler_gap"] < 1e-4


def test_the_stop_token_is_trained(room, batch, params):
    loss = jax.jit(jax.grad(lambda params, mask: grpo_loss(
        params, (), {**batch, "loss_mask": mask}, None, config=tiny.MODEL, temperature=1.0, clip=(0.2, 0.2),
        kl_weight=0.0, aggregation="token_mean", max_new_tokens=NEW)[0]))
    stops = batch["loss_mask"] * (batch["targets"] == room.tokenizer.end)
    assert stops.sum() > 0
    norm = lambda mask: sum(float(jnp.sum(leaf ** 2)) for leaf in jax.tree.leaves(loss(params, mask)))  # noqa: E731
    assert norm(stops) > 1e-6
    assert norm(batch["loss_mask"]) != norm(batch["loss_mask"] - stops)
    assert norm(np.zeros_like(stops)) == 0.0


@jax.jit
def sampler_gap(params, batch, temperature):
    _, _, metrics = grpo_loss(params, (), batch, None, config=tiny.MODEL, temperature=temperature, clip=(0.2, 0.2),
                              kl_weight=0.0, aggregation="token_mean", max_new_tokens=NEW)
    return metrics["sampler_gap"][0] / metrics["sampler_gap"][1]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_trainer_agree(room, params, temperature):
    stage = dataclasses.replace(room.stage, temperature=temperature)
    batch, _ = Practice(stage, room.context, tiny.MODEL, room.tokenizer).batch(params, 1)

    assert sampler_gap(params, batch, temperature) < 1e-4 < 1e-2 < sampler_gap(params, batch, temperature / 2)


def test_the_kl_penalty(tiny_base, batch):
    room = Room(tiny_base, kl_weight=0.1)
    frozen = room.params()
    state, first = room.update(room.state(), batch, frozen)
    # two forward passes that a compiler may fuse differently: log-probabilities apart by a rounding, its square in the KL
    assert 0 <= first["kl"] < 1e-12 and first["ratio"] == 1.0
    _, second = room.update(state, room.practice.batch(state.params, 1)[0], frozen)
    assert second["kl"] > 1e-12

    free = Room(tiny_base)
    _, without = free.update(free.state(), batch)
    assert first["grad_norm"] == pytest.approx(without["grad_norm"], rel=1e-5)  # at its minimum it has no gradient
    assert "kl" not in without


def test_two_updates_on_one_batch(tiny_base):
    room = Room(tiny_base, updates=2)
    state = room.state()
    batch, _ = room.practice.batch(state.params, 0)
    state, first = room.update(state, batch)
    assert first["ratio"] == pytest.approx(1.0, abs=1e-5) and first["grad_norm"] > 1e-3
    _, second = room.update(state, batch)
    assert abs(second["ratio"] - 1.0) > 1e-5 and second["policy_kl"] > 1e-6


def test_a_batch_follows_from_seed_step_and_params_alone(tiny_base, room, params, batch):
    later = room.practice.batch(params, 2)[0]
    again = Practice(room.stage, room.context, tiny.MODEL, room.tokenizer)
    for expected, step in ((later, 2), (batch, 0)):  # in another order
        found = again.batch(params, step)[0]
        assert found.keys() == expected.keys()
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert not np.array_equal(later["tokens"], batch["tokens"])

    chosen_seed = dataclasses.replace(room.context.experiment, seed=1)
    other = tiny.context(chosen_seed, "grpo", room.context.workdir)
    assert not np.array_equal(Practice(room.stage, other, tiny.MODEL, room.tokenizer).batch(params, 0)[0]["tokens"],
                              batch["tokens"])


def test_the_programs_named_are_the_programs_run(tiny_base, room, params, batch):
    for settings in ({}, {"updates": 2, "kl_weight": 0.1}):
        other = Room(tiny_base, **settings)
        found = other.stage.programs(other.context)
        assert list(found) == (["rollout", "score", "train_step"] if settings else ["rollout", "train_step"])
        real = other.put(batch)
        if settings:
            score, arguments = found["score"]
            real = {**real, "old_logprobs": other.practice._score(params, other.put(batch))}
            assert score.lower(*arguments).as_text() == other.practice._score.lower(params, other.put(batch)).as_text()
        step, arguments = found["train_step"]
        lowered = other.trainable.step.lower(other.state(), params if settings else (), real)
        assert step.lower(*arguments).as_text() == lowered.as_text()
    rollout, arguments = found["rollout"]
    shapes = jax.eval_shape(rollout, *arguments)
    assert shapes.tokens.shape == (32, PROMPT + NEW)
    rollout.lower(*arguments)


def test_rehearsal_is_judged_by_its_own_task(tiny_base, room, params):
    other = dataclasses.replace(AnythingGoes(), name="other")
    stage = dataclasses.replace(room.stage, rehearse=((other, 1.0),))
    practice = Practice(stage, room.context, tiny.MODEL, room.tokenizer)
    tasks = [problem.task for problem in practice._problems[:8]]
    assert sorted(tasks) == ["letters"] * 4 + ["other"] * 4
    batch, metrics = practice.batch(params, 0)
    for group, task in enumerate(tasks):
        rows = [chosen(batch, row) for row in range(4 * group, 4 * group + 4)]
        rewards = [float(row[-1] == room.tokenizer.end and (task == "other" or row[:-1] == [ord("a")])) for row in rows]
        expected = group_advantages(np.array(rewards, np.float32), np.zeros(4, np.int32))
        np.testing.assert_allclose(batch["advantages"][4 * group:4 * group + 4], expected, atol=1e-6)
    assert metrics["accuracy"] != metrics["reward"]


def test_a_prompt_longer_than_there_is_room_for(tiny_base):
    message = r"grpo.prompt_tokens=9: the problem 'say \d+' takes (\d+) tokens; set it to at least \1"
    with pytest.raises(UserError, match=message):
        Room(tiny_base, prompt_tokens=9)


def refused(tiny_base, **settings):
    corpus, workdir = tiny_base
    with pytest.raises(UserError) as caught:
        tiny.run_stages(tiny.experiment(corpus, **settings), ("grpo",), workdir)
    return str(caught.value)


def test_bad_input(tiny_base):
    assert "more together than the model's context of 32" in refused(tiny_base, max_new_tokens=17)
    assert not (tiny_base[1] / "grpo" / "checkpoints").exists()
    for settings, message in (({"rollouts": 1}, "rollouts=1: a group needs at least 2"),
                              ({"steps": 0}, "steps, prompts"),
                              ({"clip": (0.2, -0.1)}, "clip="), ({"kl_weight": -1.0}, "kl_weight=-1.0"),
                              ({"rehearse": ((tiny.Letters(), 1.0),)}, "called alike .letters, letters."),
                              ({"temperature": 0.0}, "temperature=0.0: practice needs chance")):
        with pytest.raises(ValueError, match=message):
            GRPO(**{"task": tiny.Letters("a"), "steps": 1, **settings})


@pytest.mark.slow
def test_practice_pays(tiny_base, tmp_path):
    corpus, workdir = tiny_base
    work = shutil.copytree(workdir, tmp_path / "work")
    tiny.run_stages(tiny.experiment(corpus, grpo_steps=30), ("grpo",), work)
    lines = read_metrics(work / "grpo" / "metrics.jsonl")
    rewards = [line["reward"] for line in lines if "reward" in line]
    assert len(rewards) == 30 and np.mean(rewards[:3]) < 0.5 and np.mean(rewards[-5:]) > 0.9
    assert all(line["ratio"] == 1.0 for line in lines if "ratio" in line)
    accuracy = tiny.losses(work, "grpo", "val_accuracy")
    assert list(accuracy) == [0, 4, 8, 12, 16, 20, 24, 28, 30] and accuracy[30] == 1.0
    outputs = read_json(work / "grpo" / "manifest.json")["outputs"]
    assert outputs["checkpoint"] == "checkpoints/30" and outputs["final"]["val_accuracy"] == 1.0
