"""Conversations by the templates of models from elsewhere: what is learned of them, and where a turn ends."""

import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.conversation import render
from jaxgpt.tokenizer.template import Template
from jaxgpt.tokenizer.tokenizer import Tokenizer
from jaxgpt.tokenizer.turns import end_of_turn, prompt_turns, render_turns

CONTROLS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA2 = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}\
{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"""
LAST_ONLY = """{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ '<|im_start|>' + m.content + '<|im_end|>' }}\
{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"""
TALK = [{"role": "user", "content": "hi <|im_end|>"}, {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "and"}, {"role": "assistant", "content": "no </s>"}]


@pytest.fixture(scope="module")
def tokenizer():
    ranks = {bytes([byte]): byte for byte in range(256)}
    return Tokenizer(ranks, special={name: 256 + i for i, name in enumerate(CONTROLS)}, bos="<s>", end="</s>")


def template(source):
    return Template(source, {"bos_token": "<s>"}, CONTROLS)


def learned(tokenizer, messages, source):
    tokens, mask = render_turns(tokenizer, messages, template(source))
    assert len(tokens) == len(mask) and set(mask) <= {0, 1}
    spans, before = [], 0
    for token, kept in zip(tokens, mask):
        if kept:
            spans += [] if before else [[]]
            spans[-1].append(token)
        before = kept
    return tokens, [tokenizer.decode(span) for span in spans]


@pytest.mark.parametrize("source, spans, end", [
    (CHATML, ["yes<|im_end|>", "no </s><|im_end|>"], "<|im_end|>"), (LLAMA2, [" yes </s>", " no </s> </s>"], "</s>")])
def test_what_the_assistant_says_and_its_end_is_learned(tokenizer, source, spans, end):
    """What a user or an assistant spells of control tokens is text, also in between."""
    tokens, found = learned(tokenizer, TALK, source)
    assert found == spans
    assert end_of_turn(tokenizer, template(source)) == tokenizer.special[end]
    controls = [token for token in tokens if token > 255]
    assert controls.count(tokenizer.special[end]) == (4 if source == CHATML else 2)


def test_an_answer_follows_the_prompt_for_it(tokenizer):
    tokens, _ = render_turns(tokenizer, TALK, template(CHATML))
    prompt = prompt_turns(tokenizer, TALK[:3], template(CHATML))
    assert tokens[:len(prompt)] == prompt and tokenizer.decode(tokens[len(prompt):]) == "no </s><|im_end|>\n"


def test_a_template_that_rewrites_turns_is_refused(tokenizer):
    with pytest.raises(UserError, match="writes turn 2 of a conversation in another way once others follow it"):
        render_turns(tokenizer, TALK, template(LAST_ONLY))
    assert learned(tokenizer, TALK[:2], LAST_ONLY)[1] == ["yes<|im_end|>"]


def test_a_turn_without_an_end_is_refused(tokenizer):
    with pytest.raises(UserError, match="ends the assistant's turn with no special token"):
        end_of_turn(tokenizer, template("{% for m in messages %}{{ m.content }}{% endfor %}"))


def test_calls_inside_a_turn_are_refused(tokenizer):
    parts = [{"role": "user", "content": "1"}, {"role": "assistant", "content": [{"type": "call", "text": "1"}]}]
    with pytest.raises(UserError, match="calls inside a turn cannot be written"):
        render_turns(tokenizer, parts, template(CHATML))


def test_without_a_template_it_is_our_way():
    tokenizer = Tokenizer(bpe.train(["-"], vocab_size=264))
    assert render_turns(tokenizer, TALK) == render(tokenizer, TALK)
    assert end_of_turn(tokenizer) == tokenizer.end
