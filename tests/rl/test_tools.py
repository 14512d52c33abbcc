"""Practice and evaluation with tools, by a model that says what a table says: it has 7*8 calculated, and says OK."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from scripted import CONFIG, TOKENIZER, write_foreign, write_llama, write_run

from jaxgpt.core import sharding
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Experiment
from jaxgpt.core.files import read_json
from jaxgpt.core.loop import Loop
from jaxgpt.core.optim import Optim
from jaxgpt.evals.evaluate import Evaluate, evaluate
from jaxgpt.inference.load import load
from jaxgpt.pretrain.imported import Import
from jaxgpt.rl.grpo import GRPO, Practice, score
from jaxgpt.tokenizer.conversation import render_prompt, result_tokens
from jaxgpt.tokenizer.special import CALL
from jaxgpt.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class SaysOk(tiny.Letters):
    """What counts is what is said, without the call before it."""

    def reward(self, problem, completion):
        return float(completion == "OK")


PRACTICE = GRPO(start_from="practice", task=SaysOk(), steps=2, prompts=2, rollouts=8, prompt_tokens=24, max_new_tokens=24,
                kl_weight=0.1, tools="calculator", val_problems=4, optim=Optim(lr=1e-3, schedule="constant"),
                loop=Loop(log_every=1, eval_every=2, save_every=2))
SCORES = Evaluate(of=("practice", "grpo"), tasks=(SaysOk(),), problems=4, max_new_tokens=24, tools="calculator", prompts=(),
                  continuations=())
EXPERIMENT = Experiment(name="tools", stages=(Import(name="practice", folder="written by hand"), PRACTICE, SCORES))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("scripted"))


@pytest.mark.slow
def test_results_are_read_and_not_learned(workdir):
    context = tiny.context(EXPERIMENT, "grpo", workdir)
    practice, params = Practice(PRACTICE, context, CONFIG, TOKENIZER), load(workdir, "practice").params
    batch, metrics = practice.batch(params, 0)
    right = [*TOKENIZER.encode("7*8"), TOKENIZER.special[CALL]]
    call, result = [TOKENIZER.special[CALL], *right], result_tokens(TOKENIZER, "56")
    whole = [*call, *result, *TOKENIZER.encode("OK"), TOKENIZER.end]
    as_the_table_says = 0
    for row in range(16):
        problem = practice._problems[row // 8]
        prompt = render_prompt(TOKENIZER, problem.messages)
        answer = batch["targets"][row][len(prompt) - 1:][:len(whole)].tolist()
        if answer == whole:
            as_the_table_says += 1
            mask = batch["loss_mask"][row][len(prompt) - 1:]
            assert mask[:len(whole)].tolist() == [1] * len(call) + [0] * len(result) + [1] * 3 and not mask[len(whole):].any()
            assert not batch["loss_mask"][row][:len(prompt) - 1].any()
    assert 6 <= as_the_table_says <= 16 and metrics["reward"] >= as_the_table_says / 16
    again, _ = practice.batch(params, 0)
    np.testing.assert_array_equal(again["tokens"], batch["tokens"])
    assert (practice.batch(params, 1)[0]["tokens"] != batch["tokens"]).any()
    batch = {name: batch[name] for name in ("tokens", "targets", "loss_mask", "sampler_logprobs")}
    found = score(params, sharding.put(batch, sharding.batch_sharding(context.mesh, context.rules)), config=CONFIG, temperature=1.0)
    mask = batch["loss_mask"] > 0
    np.testing.assert_allclose(np.asarray(found)[mask], batch["sampler_logprobs"][mask], atol=2e-5)


@pytest.mark.slow
def test_a_run_practises_and_is_scored_with_tools(workdir):
    tiny.run_stages(EXPERIMENT, ("grpo", "evaluate"), workdir)
    assert tiny.losses(workdir, "grpo", "sampler_gap")[1] < 1e-4
    assert tiny.losses(workdir, "grpo", "reward")[1] > 0.3
    rows = read_json(workdir / "evaluate" / "scores.json")["rows"]
    assert [row["accuracy"] for row in rows if row["stage"] == "practice"] == [1.0]
    assert "7*8" not in (workdir / "evaluate" / "answers.jsonl").read_text()


LLAMA_CALL = '{"name": "calculator", "parameters": {"expression": "7*8"}}<|eot_id|>'


@pytest.mark.slow
@pytest.mark.parametrize("name, write, learned", [
    pytest.param("foreign", write_foreign, "<tool_call>7*8</tool_call>OK<|im_end|>", id="foreign"),
    pytest.param("llama", write_llama, LLAMA_CALL + "OK<|eot_id|>", id="llama")])
def test_models_from_elsewhere_practise_and_are_scored_with_tools(tmp_path, name, write, learned):
    """What the template writes around a result is not learned, and not judged."""
    loaded = load(write(tmp_path))
    stage = dataclasses.replace(PRACTICE, start_from=name, rollouts=2, prompt_tokens=400, max_new_tokens=110, temperature=0.01)
    context = tiny.context(EXPERIMENT, "grpo", tmp_path)
    practice = Practice(stage, context, loaded.config, loaded.tokenizer, loaded.template)
    batch, metrics = practice.batch(loaded.params, 0)
    assert metrics["reward"] == 1.0 and metrics["truncated"] == 0.0
    for targets, mask in zip(batch["targets"], batch["loss_mask"]):
        assert loaded.tokenizer.decode(targets[mask > 0].tolist()) == learned
    found = evaluate(loaded, SaysOk(), problems=practice.held_out[:2], max_new_tokens=110, batch=2, rng=jax.random.key(0),
                     tools=practice.tools)
    assert found.accuracy == 1.0 and {example.completion for example in found.examples} == {"OK"}


def test_what_cannot_be_called(workdir):
    context = tiny.context(EXPERIMENT, "grpo", workdir)
    with pytest.raises(UserError, match="tools: sums: no such tool; there are calculator, python, search:FOLDER"):
        Practice(dataclasses.replace(PRACTICE, tools="sums"), context, CONFIG, TOKENIZER)
    bare = Tokenizer({bytes([byte]): byte for byte in range(256)}, pattern=r"[\s\S]", name="bytes",
                     special={"<start>": 256, "<stop>": 257}, bos="<start>", end="<stop>")
    with pytest.raises(UserError, match=r"tools: the model's tokenizer has no <\|call\|>"):
        Practice(PRACTICE, context, CONFIG, bare)
