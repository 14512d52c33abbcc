"""The same experiment on one device and on eight: the same losses, up to the order in which sums are taken."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
import tiny

from jaxgpt.core import sharding
from jaxgpt.core.step import abstract
from jaxgpt.data.loader import batches

LAYOUTS = {"fsdp": {"data": 2, "fsdp": 4}, "fsdp_tensor": {"data": 1, "fsdp": 4, "tensor": 2},
           "fsdp_tensor_sequence": {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2},
           "replicated": {"data": 2, "fsdp": 2, "expert": 2}}
PARTS = {"fsdp": 4, "fsdp_tensor": 8, "fsdp_tensor_sequence": 4, "replicated": 1}  # of the parameters
QUICK_FIRST = [pytest.param(rules, marks=[] if rules == "fsdp" else pytest.mark.slow) for rules in LAYOUTS]


def mesh(rules: str | None):
    """Eight devices laid out for those rules; one device for None."""
    return tiny.mesh(8, **LAYOUTS[rules]) if rules else tiny.mesh()


def experiment(corpus, kind: str, rules: str | None, steps: int = 20):
    optim = {"adamw": tiny.ADAMW, "muon": tiny.MUON}[kind]
    chosen = tiny.experiment(corpus, optim=optim, rules=rules or "fsdp", steps=steps)
    stage = chosen.stage("pretrain")
    stage = dataclasses.replace(stage, prompts=(), loop=dataclasses.replace(stage.loop, eval_every=0, keep=10))
    return dataclasses.replace(chosen, stages=tuple(stage if old.name == "pretrain" else old for old in chosen.stages))


@pytest.fixture(scope="module")
def pretrain(tiny_data, tmp_path_factory):
    """pretrain(kind, rules) -> the workdir of 20 steps; each is run once."""
    corpus, workdir = tiny_data
    done = {}

    def run(kind, rules):
        if (kind, rules) not in done:
            done[kind, rules] = shutil.copytree(workdir, tmp_path_factory.mktemp("devices") / "work")
            tiny.run_stages(experiment(corpus, kind, rules), ("pretrain",), done[kind, rules], mesh(rules))
        return done[kind, rules]

    return run


def same(found: dict[int, float], expected: dict[int, float]) -> None:
    assert found.keys() == expected.keys()
    worst = max(found, key=lambda step: abs(found[step] / expected[step] - 1))
    assert found[worst] == pytest.approx(expected[worst], rel=1e-5), f"step {worst}"


def test_every_preset_is_here():
    assert set(LAYOUTS) == set(sharding.RULES) == set(PARTS)


@pytest.mark.parametrize("rules", LAYOUTS)
@pytest.mark.parametrize("kind", [pytest.param("adamw"), pytest.param("muon", marks=pytest.mark.slow)])
def test_eight_devices_agree_with_one(pretrain, kind, rules):
    one = tiny.losses(pretrain(kind, None), "pretrain")
    assert list(one) == list(range(1, 21)) and one[20] < one[1] - 1
    same(tiny.losses(pretrain(kind, rules), "pretrain"), one)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("rules", LAYOUTS)
def test_the_state_is_really_sharded(tiny_data, kind, rules):
    corpus, workdir = tiny_data
    context = tiny.context(experiment(corpus, kind, rules), "pretrain", workdir, mesh(rules))
    trainable = context.stage.trainable(context)
    parts = PARTS[rules]

    def share(tree) -> float:
        """How much of a tree one device holds."""
        leaves = jax.tree.leaves(tree)
        held = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
        return held / sum(np.prod(leaf.shape) for leaf in leaves)

    state = abstract(trainable.abstract_state, trainable.shardings)
    assert share(state.params) == pytest.approx(1 / parts, rel=0.05)  # the norms are small and whole everywhere
    assert share(state.opt_state) == pytest.approx(1 / parts, rel=0.05)


def test_a_step_is_born_runs_and_stays_sharded(tiny_data):
    corpus, workdir = tiny_data
    context = tiny.context(experiment(corpus, "adamw", "fsdp_tensor"), "pretrain", workdir, mesh("fsdp_tensor"))
    trainable = context.stage.trainable(context)
    state = trainable.create(context.rng("init"))
    batch = next(batches(workdir / "tokenize" / "shards", "train", batch=8, length=32, seed=0))
    batch = sharding.put(batch, sharding.batch_sharding(context.mesh, context.rules))
    for _ in range(2):
        up = state.params["layers"]["mlp"]["up"]["weight"]  # [L, D, F]
        assert {shard.data.shape for shard in up.addressable_shards} == {(2, 16 // 4, 64 // 2)}
        assert len({shard.device for shard in up.addressable_shards}) == 8
        state, _ = trainable.step(state, (), batch)


@pytest.mark.parametrize("rules", QUICK_FIRST)
def test_a_resumed_run_may_have_other_devices(tiny_data, pretrain, tmp_path, rules):
    corpus, workdir = tiny_data
    one = pretrain("adamw", None)
    for before, after, start in ((None, rules, one), (rules, None, pretrain("adamw", rules))):
        work = shutil.copytree(workdir, tmp_path / str(after))
        shutil.copytree(start / "pretrain" / "checkpoints" / "10", work / "pretrain" / "checkpoints" / "10")
        lines = (start / "pretrain" / "metrics.jsonl").read_text().splitlines(keepends=True)
        (work / "pretrain" / "metrics.jsonl").write_text("".join(lines[:10]))
        tiny.run_stages(experiment(corpus, "adamw", after), ("pretrain",), work, mesh(after))
        same(tiny.losses(work, "pretrain"), tiny.losses(one, "pretrain"))


@pytest.mark.slow
@pytest.mark.parametrize("rules", LAYOUTS)
def test_finetuning_and_practice_on_eight_devices(tiny_base, tmp_path, rules):
    corpus, workdir = tiny_base
    work = tmp_path / "work"
    shutil.copytree(workdir, work, ignore=shutil.ignore_patterns("sft"))
    chosen = tiny.experiment(corpus, rules=rules)
    tiny.run_stages(chosen, ("sft",), work, mesh(rules))
    same(tiny.losses(work, "sft"), tiny.losses(workdir, "sft"))
    same(tiny.losses(work, "sft", "val_loss"), tiny.losses(workdir, "sft", "val_loss"))

    shutil.rmtree(work / "sft")
    shutil.copytree(workdir / "sft", work / "sft")  # the very same start, so that the first batch is the same
    alone = shutil.copytree(work, tmp_path / "alone")
    tiny.run_stages(tiny.experiment(corpus, rules=rules, grpo_steps=1, kl_weight=0.1, max_new_tokens=5), ("grpo",), work, mesh(rules))
    tiny.run_stages(tiny.experiment(corpus, grpo_steps=1, kl_weight=0.1, max_new_tokens=5), ("grpo",), alone)
    for key in ("reward", "completion_tokens", "ratio", "kl", "entropy", "grad_norm"):
        assert tiny.losses(work, "grpo", key)[1] == pytest.approx(tiny.losses(alone, "grpo", key)[1], rel=1e-4), key
