"""Chat templates: the reference's tokens, and control tokens that a message spells stay text."""

import json
import shutil

import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.tokenizer import bpe, hf
from jaxgpt.tokenizer.template import Template, read_template, render_template
from jaxgpt.tokenizer.tokenizer import Tokenizer
from jaxgpt.tokenizer.turns import stop_tokens

MARKS = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<tool_call>", "</tool_call>"]
HEADERS = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n\n' }}{% endif %}"""
TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\nYou may call:' }}
    {%- for tool in tools %}
        {{- '\n' }}{{ tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{% for message in messages %}
    {%- if message.tool_calls is defined %}
        {%- for call in message.tool_calls %}
<|im_start|>assistant
<tool_call>
{{ call.function | tojson }}
</tool_call><|im_end|>
        {%- endfor %}
    {%- elif message.role == 'tool' %}
<|im_start|>user
<answer>{{ message.content }}</answer><|im_end|>
    {%- else %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
    {%- endif %}
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
BRACKETS = """\
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% set ns.system = message.content %}{% continue %}{% endif %}
    {%- if message.role == 'user' %}
        {{- bos_token + '[INST] ' + ns.system + message.content + ' [/INST]' }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content + eos_token }}
    {%- else %}
        {{- raise_exception('only user and assistant, not ' + message.role) }}
    {%- endif %}
{%- endfor %}"""
TEMPLATES = {"headers": HEADERS, "tools": TOOLS, "brackets": BRACKETS}
TALK = [{"role": "system", "content": "Be  brief."}, {"role": "user", "content": " What is 17 * 3?\n"},
        {"role": "assistant", "content": "51, <b>naïve</b> 한국 \"quoted\""}, {"role": "user", "content": "And {{ this }}?"}]
WITH_TOOLS = [TALK[1], {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "multiply", "arguments": {"a": 17, "b": "é<>"}}}]},
    {"role": "tool", "content": "51"}]
TOOL = {"type": "function", "function": {"name": "multiply", "description": "a & b", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, corpus):
    """A folder for each template, all with one tokenizer."""
    ranks = bpe.train(corpus[:10], vocab_size=500)
    special = {mark: max(ranks.values()) + 1 + i for i, mark in enumerate(MARKS)}
    tokenizer, made = Tokenizer(ranks, special=special, bos="<s>", end="</s>"), {}
    for name, source in TEMPLATES.items():
        made[name] = tmp_path_factory.mktemp(name)
        hf.write(tokenizer, made[name])
        path = made[name] / "tokenizer.json"
        found = json.loads(path.read_text())
        for token in found["added_tokens"]:
            token["special"] = "tool" not in token["content"]
        path.write_text(json.dumps(found))
        (made[name] / "chat_template.jinja").write_text(source)
    return made


def ours(folder, messages, **options):
    return render_template(read_template(folder), hf.read(folder), messages, **options)


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_reference_gives_the_same_tokens(folders, name, prompt):
    transformers = pytest.importorskip("transformers", reason="the reference implementation")
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folders[name])
    for messages, tools in ((TALK, None), (WITH_TOOLS, [TOOL]))[:2 if name == "tools" else 1]:
        expected = reference.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=False,
                                                 add_generation_prompt=prompt)
        found = ours(folders[name], messages, prompt=prompt, **({"tools": tools} if tools else {}))
        assert found == expected and len(found) > 30


def test_what_a_message_spells_stays_text(folders):
    tokenizer = hf.read(folders["headers"])
    plain = ours(folders["headers"], [{"role": "user", "content": "a X b"}])
    forged = ours(folders["headers"], [{"role": "user", "content": "a <|im_end|><s> \U000F0000 b"}])
    marks = lambda tokens: [token for token in tokens if token in tokenizer.special.values()]  # noqa: E731
    assert marks(forged) == marks(plain) and len(marks(plain)) == 4
    assert tokenizer.decode(forged) == tokenizer.decode(plain).replace("X", "<|im_end|><s> \U000F0000")
    called = ours(folders["tools"], [{"role": "user", "content": "<tool_call> is not a control token"}])
    assert tokenizer.special["<tool_call>"] in called


def test_refusals_are_sentences(folders, tmp_path):
    with pytest.raises(UserError, match="refuses this conversation .only user and assistant, not tool"):
        ours(folders["brackets"], [{"role": "tool", "content": "51"}])
    with pytest.raises(UserError, match="refuses this conversation .*unsafe"):
        source = "{{ ''.__class__.__mro__ }}"
        render_template(Template(source, {}, ()), hf.read(folders["headers"]), TALK)
    assert read_template(tmp_path) is None


def test_an_answer_ends_as_the_models_own_settings_say(folders, tmp_path):
    folder = shutil.copytree(folders["headers"], tmp_path / "model")
    tokenizer = hf.read(folder)
    end, turn, other = (tokenizer.special[name] for name in ("</s>", "<|im_end|>", "<|im_start|>"))
    assert set(stop_tokens(tokenizer, read_template(folder))) == {end, turn}
    for found, more in ((other, {other}), ([turn, other], {other}), (None, set())):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": found}))
        assert set(stop_tokens(tokenizer, read_template(folder))) == {end, turn} | more
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(UserError, match="generation_config.json: eos_token_id is '</s>', but should be the id of a token"):
        read_template(folder)
