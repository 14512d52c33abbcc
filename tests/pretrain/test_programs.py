"""Pretraining, the stage: a tiny model on a tiny corpus, from token shards to a checkpoint."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxgpt.core import sharding
from jaxgpt.core.config import first_difference, from_json, to_json
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import identity
from jaxgpt.core.files import read_json
from jaxgpt.core.loop import Loop
from jaxgpt.core.metrics import TIMED, read_metrics
from jaxgpt.data.loader import batches
from jaxgpt.data.mixture import Mixture, Phase
from jaxgpt.data.programs import Tokenize, TrainTokenizer
from jaxgpt.inference import generate
from jaxgpt.inference.load import load
from jaxgpt.model import transformer
from jaxgpt.pretrain.programs import Pretrain, continuations, write_samples
from jaxgpt.tokenizer.tokenizer import Tokenizer


def test_the_loss_falls(tiny_base):
    _, workdir = tiny_base
    losses, val = tiny.losses(workdir, "pretrain"), tiny.losses(workdir, "pretrain", "val_loss")
    assert list(losses) == list(range(1, 21)) and list(val) == [0, 10, 20]
    assert losses[1] == pytest.approx(math.log(tiny.VOCAB), rel=0.01)  # before the first update: a uniform guess
    assert losses[20] < losses[1] - 2 and val[20] < val[10] - 0.5 < val[0] - 1
    tokens = [line["tokens"] for line in read_metrics(workdir / "pretrain" / "metrics.jsonl")]
    assert tokens == sorted(tokens) and tokens[-1] == 20 * 8 * 32


def test_outputs_are_what_later_stages_read(tiny_base):
    _, workdir = tiny_base
    outputs = read_json(workdir / "pretrain" / "manifest.json")["outputs"]
    assert from_json(transformer.Config, outputs["model"]) == tiny.MODEL
    assert (workdir / "pretrain" / outputs["checkpoint"] / "params").is_dir()
    assert Tokenizer.load(workdir / "pretrain" / outputs["tokenizer"]).vocab_size == tiny.VOCAB
    params = tiny.params_of(workdir, "pretrain", 20)
    assert outputs["parameters"] == sum(leaf.size for leaf in params.values())
    assert outputs["steps"] == 20 and outputs["tokens"] == 20 * 8 * 32
    final = {"val_loss": tiny.losses(workdir, "pretrain", "val_loss")[20], "step": 20,
             "loss": tiny.losses(workdir, "pretrain")[20]}
    assert final.items() <= outputs["final"].items()
    assert not set(TIMED) & set(outputs["final"])  # chance: would change the fingerprint


def test_samples_come_with_each_evaluation(tiny_base):
    _, workdir = tiny_base
    lines = [json.loads(line) for line in (workdir / "pretrain" / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["prompt"]) for line in lines] == [(s, p) for s in (0, 10, 20) for p in ("river", "")]
    assert all(isinstance(line["completion"], str) and "<|" not in line["completion"] for line in lines)


def test_a_model_may_have_more_rows_than_the_tokenizer_has_tokens(tiny_base):
    tokenizer = Tokenizer.load(tiny_base[1] / "tokenize")
    wide = dataclasses.replace(tiny.MODEL, vocab_size=4096)  # untrained, it says almost only spare tokens
    params = jax.jit(lambda: transformer.init(jax.random.key(0), wide))()
    (prompt, text), = continuations(params, wide, tokenizer, ("river",), 16, jax.random.key(0))
    assert prompt == "river" and "\N{REPLACEMENT CHARACTER}" in text


def test_write_samples(tmp_path):
    path = tmp_path / "samples.jsonl"
    for step, text in ((0, "é\n"), (10, "x"), (20, "y"), (10, "again")):  # 10 anew: killed after 20
        write_samples(path, step, [("p", text), ("q", text)])
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["step"], line["completion"]) for line in lines] == [(0, "é\n")] * 2 + [(10, "again")] * 2
    path.write_text('{"step": 0}\nnot a sample\n')
    with pytest.raises(UserError, match=r"samples.jsonl, line 2: not a sample"):
        write_samples(path, 20, [])


def test_the_program_named_is_the_program_run(tiny_base):
    corpus, workdir = tiny_base
    context = tiny.context(tiny.experiment(corpus), "pretrain", workdir)
    stage = context.stage
    programs = stage.programs(context)
    assert set(programs) == {"train_step", "evaluate", "prefill", "decode"}
    step, arguments = programs["train_step"]
    lowered = step.lower(*arguments)

    trainable = stage.trainable(context)
    state = trainable.create(context.rng("init"))
    batch = next(batches(workdir / "tokenize" / "shards", "train", batch=8, length=32, seed=0))
    batch = sharding.put(batch, sharding.batch_sharding(context.mesh, context.rules))
    assert lowered.as_text() == trainable.step.lower(state, (), batch).as_text()
    _, metrics = lowered.compile()(state, (), batch)
    assert float(metrics["loss"]) == pytest.approx(tiny.losses(workdir, "pretrain")[1], rel=1e-6)


def test_the_generation_named_is_the_generation_run(tiny_base, monkeypatch):
    corpus, workdir = tiny_base
    context = tiny.context(tiny.experiment(corpus), "pretrain", workdir)
    programs, seen = context.stage.programs(context), {}
    prefill, inputs = programs["prefill"]
    decoding, after = programs["decode"]
    for name in ("begin_jit", "decode_chunk"):
        run = getattr(generate, name)
        monkeypatch.setattr(generate, name, lambda *args, name=name, run=run, **options: (
            seen.setdefault(name, jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), args)), run(*args, **options))[1])
    loaded = load(workdir, "pretrain")
    continuations(loaded.params, loaded.config, loaded.tokenizer, context.stage.prompts, context.stage.sample_tokens,
                  jax.random.key(0))
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes(inputs) == seen["begin_jit"] and shapes(after.arguments(None)) == seen["decode_chunk"]
    assert after.program == "prefill" and jax.eval_shape(prefill, *inputs)[0]._fields == after.arguments(None)[1]._fields


def test_naming_programs_reads_and_writes_nothing(tmp_path):
    context = tiny.context(tiny.experiment(tmp_path / "absent.txt"), "pretrain", tmp_path / "absent")
    step, arguments = context.stage.programs(context)["train_step"]
    state, metrics = jax.eval_shape(step, *arguments)
    assert metrics["loss"].shape == () and jax.tree.structure(state) == jax.tree.structure(arguments[0])
    assert not list(tmp_path.iterdir())


def mixed(corpus):
    """The tiny experiment with its tokens twice, under two names, and a base model that is trained on both."""
    chosen = tiny.experiment(corpus)
    mixture = Mixture((Phase((("tokenize", 0.7), ("again", 0.3)), until=0.5), Phase((("again", 1),))))
    loop = Loop(log_every=1, eval_every=4, save_every=4, keep=9)
    base = dataclasses.replace(chosen.stage("pretrain"), tokens=8 * 8 * 32, data=mixture, packing="best_fit",
                               prompts=(), loop=loop)
    return dataclasses.replace(chosen, stages=(*chosen.stages[:3], Tokenize(name="again", xz=False), base))


def test_a_mixture_packed_by_best_fit_resumes_to_the_bit(tiny_data, tmp_path):
    corpus, workdir = tiny_data
    whole, chosen = shutil.copytree(workdir, tmp_path / "whole"), mixed(corpus)
    assert chosen.stage("pretrain").inputs() == ("tokenize", "again")
    tiny.run_stages(chosen, ("again", "pretrain"), whole)
    part = shutil.copytree(whole, tmp_path / "part", ignore=shutil.ignore_patterns("pretrain"))
    shutil.copytree(whole / "pretrain" / "checkpoints" / "4", part / "pretrain" / "checkpoints" / "4")
    tiny.run_stages(chosen, ("pretrain",), part)
    found, expected = tiny.params_of(part, "pretrain", 8), tiny.params_of(whole, "pretrain", 8)
    assert any((found[name] != tiny.params_of(whole, "pretrain", 4)[name]).any() for name in found)
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    for key in ("val_loss", "val_bpb"):
        values = tiny.losses(whole, "pretrain", key)
        assert list(values) == [0, 4, 8] and values[8] < values[0]
        for name in ("tokenize", "again"):  # the same text
            assert tiny.losses(whole, "pretrain", f"{key}/{name}") == values


@pytest.mark.slow
def test_experts_train_alike_on_one_device_and_on_eight(tiny_data, tmp_path):
    """Their balance is part of the loss, not of the validation loss."""
    corpus, workdir = tiny_data
    model = dataclasses.replace(tiny.MODEL, experts=4, mlp_width=32, capacity_factor=1.0, balance_loss=0.1)
    chosen = tiny.experiment(corpus, rules="fsdp_tensor")
    base = dataclasses.replace(chosen.stage("pretrain"), model=model, tokens=8 * 8 * 32, prompts=())
    chosen = dataclasses.replace(chosen, stages=(*chosen.stages[:3], base))
    found = {}
    for name, on in (("one", None), ("eight", tiny.mesh(8, expert=4, tensor=2))):
        folder = shutil.copytree(workdir, tmp_path / name)
        tiny.run_stages(chosen, ("pretrain",), folder, on)
        found[name] = {key: tiny.losses(folder, "pretrain", key)
                       for key in ("loss", "cross_entropy", "balance_loss", "dropped", "val_loss")}
    one = found["one"]
    assert one["loss"][8] == pytest.approx(one["cross_entropy"][8] + 0.1 * one["balance_loss"][8], rel=1e-5)
    assert one["cross_entropy"][8] < one["cross_entropy"][1] and 0 < one["dropped"][8] < 0.5
    assert one["val_loss"][8] < one["val_loss"][0] == pytest.approx(one["cross_entropy"][1], rel=0.01)
    for key, values in one.items():
        assert list(found["eight"][key].values()) == pytest.approx(list(values.values()), rel=5e-3, abs=5e-3), key


def test_datasets_of_different_tokenizers_are_not_mixed(tiny_data, tmp_path):
    corpus, workdir = tiny_data
    work, chosen = shutil.copytree(workdir, tmp_path / "work"), mixed(corpus)
    other = TrainTokenizer(name="other", vocab_size=tiny.VOCAB - 1)
    again = Tokenize(name="again", tokenizer="other", xz=False)
    chosen = dataclasses.replace(chosen, stages=(*chosen.stages[:3], other, again, chosen.stage("pretrain")))
    tiny.run_stages(chosen, ("other", "again"), work)
    with pytest.raises(UserError, match="stage 'pretrain': 'tokenize' and 'again' have different tokenizers"):
        tiny.run_stages(chosen, ("pretrain",), work)


def test_the_number_of_workers_may_change_between_a_run_and_its_resumption(tmp_path):
    chosen = mixed(tmp_path / "corpus.txt")
    before = {"seed": chosen.seed, "settings": to_json(chosen.stage("pretrain"))}
    after = identity(chosen, dataclasses.replace(chosen.stage("pretrain"), workers=2))
    assert first_difference(before, after) is None
    other = identity(chosen, dataclasses.replace(chosen.stage("pretrain"), packing="concat"))
    assert "packing is 'best_fit' there and 'concat' here" in first_difference(before, other)


@pytest.mark.parametrize("settings, message", [
    ({"packing": "first_fit"}, "packing: must be one of 'concat', 'best_fit', not 'first_fit'"),
    ({"workers": -1}, "workers=-1: at least 0"),
    ({"tokens": 255}, "tokens=255: fewer than one step of 8 x 32"),
    ({"length": 33}, "length=33: longer than the 32 positions"),
    ({"length": 0}, "length=0: at least 1"),
    ({"batch": 0}, "batch=0: at least 1"),
    ({"accumulate": 0}, "divisible by accumulate=0"),
    ({"accumulate": 3}, "batch=8: at least 1, and divisible by accumulate=3"),
])
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Pretrain(**{"model": tiny.MODEL, "tokens": 1024, "batch": 8, **settings})


def test_a_vocabulary_smaller_than_the_tokenizers(tiny_data, tmp_path):
    corpus, workdir = tiny_data
    work = shutil.copytree(workdir, tmp_path / "work")
    chosen = tiny.experiment(corpus)
    small = dataclasses.replace(chosen.stage("pretrain"), model=dataclasses.replace(tiny.MODEL, vocab_size=271))
    chosen = dataclasses.replace(chosen, stages=(*chosen.stages[:3], small))
    with pytest.raises(UserError, match="model.vocab_size=271: the tokenizer has 272 tokens"):
        tiny.run_stages(chosen, ("pretrain",), work)
    with pytest.raises(UserError, match=r"pretrain.batch=8: cannot be divided over 3"):
        tiny.run_stages(tiny.experiment(corpus), ("pretrain",), work, tiny.mesh(3, data=3))
    assert not (work / "pretrain" / "checkpoints").exists()
