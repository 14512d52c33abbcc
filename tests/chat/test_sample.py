"""`jaxgpt sample`: streams, several samples, stops, probabilities, JSON, prompts from files."""

import io
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxgpt.chat import sample as sampling
from jaxgpt.cli import main
from jaxgpt.core.errors import UserError
from jaxgpt.inference.load import Loaded
from jaxgpt.model import transformer
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.tokenizer import Tokenizer

PROMPTS = Path(__file__).parents[2] / "experiments" / "prompts"


@pytest.fixture(scope="module")
def loaded():
    """A random model over letters and a few others: nothing that it says needs to be spelt out."""
    tokenizer = Tokenizer(bpe.train(["no merges"], vocab_size=264))
    config = transformer.Config(vocab_size=264, context=64, layers=1, width=16, heads=2, init_std=0.3)
    params = dict(jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), config))
    params["head"] = params["head"].at[:, :97].set(0).at[:, 123:].set(0)
    return Loaded(params, config, tokenizer, "tiny")


def said(loaded, *arguments, **options):
    output = io.StringIO()
    assert sampling.sample(loaded, *arguments, output=output, **{"max_new_tokens": 8, **options}) == 0
    return output.getvalue()


def test_one_streams_and_several_are_separated(loaded):
    one, three = said(loaded, "Once"), said(loaded, "Once", samples=3)
    samples = three.split("-" * 40 + "\n")
    assert len(samples) == 3 and len(set(samples)) == 3 and samples[0] == one
    assert all(sample.startswith("Once") for sample in samples)


@pytest.mark.parametrize("options, words", [({"samples": 0}, "samples is 0"), ({"stop": [""]}, "stop is ''")])
def test_impossible_options(loaded, options, words):
    with pytest.raises(UserError, match=words):
        sampling.sample(loaded, **options)


def test_a_stop_ends_every_form_at_the_same_place(loaded):
    whole = json.loads(said(loaded, "Once", as_json=True, max_new_tokens=20))
    assert whole["finish_reason"] == "length" and len(whole["text"]) == len(whole["tokens"]) == 20
    stop = whole["text"][11:13]
    options = {"stop": ["@@", stop], "max_new_tokens": 20}
    cut = whole["text"][:whole["text"].index(stop)]
    found = json.loads(said(loaded, "Once", as_json=True, **options))
    assert (found["text"], found["finish_reason"], len(found["tokens"])) == (cut, "stop", len(cut))
    assert said(loaded, "Once", **options) == f"Once{cut}\n"
    assert said(loaded, "Once", samples=2, **options).startswith(f"Once{cut}\n---")


def test_probabilities_are_the_models_own(loaded):
    """Of the whole distribution, at temperature 1, whatever the sampling was."""
    found = json.loads(said(loaded, "Once", as_json=True, temperature=0.3, top_k=5))
    tokens = [loaded.tokenizer.bos, *loaded.tokenizer.encode("Once"), *(token["id"] for token in found["tokens"])]
    logits = transformer.apply(loaded.params, jnp.array([tokens]), config=loaded.config)[0]
    expected = jax.nn.log_softmax(logits)[np.arange(4, 12), tokens[5:]]
    np.testing.assert_allclose([token["logprob"] for token in found["tokens"]], expected, atol=1e-5)
    lines = said(loaded, "Once", probabilities=True, temperature=0.3, top_k=5).splitlines()
    assert lines[0] == "Once" + found["text"] and len(lines) == 9
    for line, token in zip(lines[1:], found["tokens"]):
        assert line.startswith(f"{math.exp(token['logprob']):7.2%}") and line.endswith(repr(token["text"]))


@example("a", "bab", ["ba", "b"])  # one begins earlier, the other is whole earlier
@given(st.text("ab", min_size=1, max_size=3), st.text("ab", min_size=1, max_size=3), st.lists(st.text("ab", max_size=4)))
def test_pieces_end_before_the_first_stop(first, second, pieces):
    whole = "".join(pieces)
    ends = [(at + len(stop), at) for stop in (first, second) if (at := whole.find(stop)) >= 0]
    assert "".join(sampling.before([first, second], pieces)) == whole[:min(ends, default=(0, len(whole)))[1]]


def test_prompts_from_files(loaded, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("jaxgpt.inference.load.load", lambda *_, **options: loaded)
    short = tmp_path / "prompt.txt"
    short.write_text("ab\n\n")
    assert main(["sample", "runs/x", "--prompt-file", str(short), "--max-tokens", "3", "--stop", "\\n"]) == 0
    assert capsys.readouterr().out.startswith("ab\n")
    for arguments, words in [(["--prompt", "x", "--prompt-file", str(short)], "--prompt and --prompt-file: give one of the two"),
                             (["--prompt-file", str(tmp_path / "none")], "none: no such file"),
                             (["--prompt-file", str(tmp_path)], "cannot be read")]:
        assert main(["sample", "runs/x", *arguments]) == 2
        assert words in capsys.readouterr().err
    short.write_bytes(b"\xff")
    assert main(["sample", "runs/x", "--prompt-file", str(short)]) == 2
    assert "not UTF-8 text (byte 0)" in capsys.readouterr().err


def test_the_prompts_of_the_video_are_open_ended():
    few_shot, assistant = (path.read_text().removesuffix("\n") for path in (PROMPTS / "few_shot.txt",
                                                                             PROMPTS / "in_context_assistant.txt"))
    assert few_shot.endswith(":") and few_shot.count("\n") == 9
    assert assistant.endswith("Machine:") and assistant.count("Person:") == assistant.count("Machine:") == 5
