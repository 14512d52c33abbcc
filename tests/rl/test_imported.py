"""A model from elsewhere is finetuned and practises in turns of its own template, and goes out as what it came."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny

from jaxgpt.chat.models import Model
from jaxgpt.chat.terminal import Conversation
from jaxgpt.evals.evaluate import Evaluate
from jaxgpt.inference.load import load
from jaxgpt.model import hf, transformer
from jaxgpt.model.lora import Lora
from jaxgpt.pretrain import imported
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer import hf as hf_tokenizer
from jaxgpt.tokenizer.tokenizer import Tokenizer
from jaxgpt.tokenizer.turns import prompt_turns

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
CONFIG = transformer.Config(vocab_size=272, context=64, layers=2, width=16, heads=2, mlp_width=24, init_std=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama in bfloat16 with tokens for turns in ChatML."""
    folder = tmp_path_factory.mktemp("source") / "chat"
    folder.mkdir()
    params = jax.jit(lambda: transformer.init(jax.random.key(0), CONFIG))()
    hf.write_params(params, CONFIG, folder, family="llama", dtype="bfloat16")
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ranks = {token: rank for token, rank in bpe.train(["no merges"], vocab_size=264).items() if rank < 256}
    hf_tokenizer.write(Tokenizer(ranks, special={name: 256 + i for i, name in enumerate(names)}, bos=names[0], end=names[0]), folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


@pytest.mark.slow
def test_finetuning_practice_and_scores_in_its_own_turns(folder, tmp_path):
    stage = imported.Import(folder=str(folder))
    chosen = tiny.experiment(tmp_path / "none", rules="replicated", sft_steps=30, grpo_steps=2, kl_weight=0.1, prompt_tokens=48,
                             max_new_tokens=4)
    sft = dataclasses.replace(chosen.stage("sft"), start_from="import", length=64, lora=Lora(rank=4), turns=(1,),
                              optim=dataclasses.replace(tiny.ADAMW, lr=3e-2))
    grpo = dataclasses.replace(chosen.stage("grpo"), lora=Lora(rank=4))
    scores = Evaluate(of=("import", "sft", "grpo"), tasks=(tiny.Letters(),), problems=16, max_new_tokens=4, prompts=("hello",),
                      continuations=())
    chosen = dataclasses.replace(chosen, stages=(stage, sft, grpo, scores))
    work = tmp_path / "work"
    tiny.run_stages(chosen, ("import", "sft", "grpo", "evaluate"), work)

    assert tiny.losses(work, "sft")[30] < 0.5 * tiny.losses(work, "sft")[1]
    before, after = load(work, "import"), load(work, "grpo")
    assert after.template == before.template and after.tokenizer.special == before.tokenizer.special
    prompt = prompt_turns(after.tokenizer, [{"role": "user", "content": "say 1"}], after.template)
    assert after.tokenizer.decode(prompt) == "<|im_start|>user\nsay 1<|im_end|>\n<|im_start|>assistant\n"
    rows = json.loads((work / "evaluate" / "scores.json").read_text())["rows"]
    stopped = {row["stage"]: row["stopped"] for row in rows}
    assert stopped["import"] < 0.2 and stopped["sft"] > 0.8 and stopped["grpo"] > 0.8  # it has learned to end its turn

    conversation = Conversation(after, temperature=0.0, max_new_tokens=12)
    conversation.messages = [{"role": "user", "content": "say 1"}]
    assert "".join(conversation.answer()) in ("a", "b", "c")  # and not what follows the end of the turn
    assert set(Model.of_stage(work, "grpo").stops) == {after.tokenizer.special[name] for name in ("<|endoftext|>", "<|im_end|>")}

    assert imported.export(work, tmp_path / "out", stage="grpo") == "llama"
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHATML
    again, _, _ = hf.read_params(tmp_path / "out", mesh=tiny.mesh(), rules={})
    jax.tree.map(np.testing.assert_array_equal, again, after.params)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(request, tmp_path_factory):
    """A base model without turns, tied and not, with two rows that no token has."""
    folder = tmp_path_factory.mktemp("base") / request.param
    folder.mkdir()
    config = dataclasses.replace(CONFIG, vocab_size=259)
    if request.param == "gpt2":
        config = dataclasses.replace(config, position="learned", norm="layernorm", activation="gelu_tanh", bias=True, tied=True)
    hf.write_params(jax.jit(lambda: transformer.init(jax.random.key(0), config))(), config, folder, family=request.param)
    ranks = {bytes([byte]): byte for byte in range(256)}
    hf_tokenizer.write(Tokenizer(ranks, special={"<|endoftext|>": 256}, bos="<|endoftext|>", end="<|endoftext|>"), folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


@pytest.mark.slow
def test_a_base_model_is_given_turns(base, tmp_path):
    stage = imported.Import(folder=str(base), turns=True)
    chosen = tiny.experiment(tmp_path / "none", rules="replicated", sft_steps=20)
    sft = dataclasses.replace(chosen.stage("sft"), start_from="import", length=64)
    chosen, work = dataclasses.replace(chosen, stages=(stage, sft)), tmp_path / "work"
    tiny.run_stages(chosen, ("import", "sft"), work)
    old, config, _ = hf.read_params(base, mesh=tiny.mesh(), rules={})
    loaded = load(work, "import")
    assert loaded.config == stage.model and loaded.config.vocab_size == 320 and loaded.template is None
    assert loaded.tokenizer.vocab_size == 257 + 8 and loaded.tokenizer.special["<|endoftext|>"] == 256
    grown = loaded.params["embed"]
    np.testing.assert_array_equal(grown[:257], old["embed"][:257])
    np.testing.assert_array_equal(grown[loaded.tokenizer.bos], old["embed"][256])
    np.testing.assert_allclose(grown[-1], np.mean(old["embed"][:257], axis=0), atol=1e-6)
    tokens = np.arange(20)[None]
    before, after = (np.asarray(transformer.apply(params, tokens, config=settings)) for params, settings in (
        (old, config), (loaded.params, loaded.config)))
    np.testing.assert_allclose(after[..., :257], before[..., :257], atol=1e-5)
    assert tiny.losses(work, "sft")[20] < 0.7 * tiny.losses(work, "sft")[1]
    assert imported.export(work, tmp_path / "out", stage="sft") == base.name
    assert hf_tokenizer.load(tmp_path / "out").special == loaded.tokenizer.special


def test_turns_are_for_base_models(folder, base, tmp_path):
    with pytest.raises(imported.UserError, match="has a chat template, in whose turns it is finetuned as it is; set turns=False"):
        imported.with_turns(folder, hf_tokenizer.read(folder))
    ours = tmp_path / "ours"
    hf_tokenizer.write(Tokenizer(bpe.train(["no merges"], vocab_size=264)), ours)
    (ours / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(imported.UserError, match="its tokenizer has <|bos|> already"):
        imported.with_turns(ours, hf_tokenizer.read(ours))
