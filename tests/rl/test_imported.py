"""A model from elsewhere is finetuned and practises in turns of its own template, and goes out as what it came."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny

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

    assert imported.export(work, tmp_path / "out", stage="grpo") == "llama"
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHATML
    again, _, _ = hf.read_params(tmp_path / "out", mesh=tiny.mesh(), rules={})
    jax.tree.map(np.testing.assert_array_equal, again, after.params)
