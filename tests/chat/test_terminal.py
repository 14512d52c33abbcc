"""The chat: through real streams, and through a real terminal with Ctrl-C and Ctrl-D."""

import contextlib
import dataclasses
import io
import os
import pty
import re
import select
import subprocess
import sys
import time

import jax
import pytest

from jaxgpt.chat import terminal
from jaxgpt.core.errors import UserError
from jaxgpt.inference.generate import generate
from jaxgpt.inference.load import Loaded
from jaxgpt.model import transformer
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.conversation import render_prompt
from jaxgpt.tokenizer.template import read_template
from jaxgpt.tokenizer.tokenizer import Tokenizer
from jaxgpt.tools.calculator import calculate

CONTEXT = 64


def tiny_model(context=CONTEXT):
    """A random model over bytes: it has nothing to say, but says it."""
    tokenizer = Tokenizer(bpe.train(["no merges"], vocab_size=264))
    config = transformer.Config(vocab_size=264, context=context, layers=1, width=16, heads=2, init_std=0.3)
    return Loaded(jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), config), config, tokenizer, "tiny")


@pytest.fixture(scope="session")
def loaded():
    return tiny_model()


def talk(loaded, *lines, **options):
    """What the chat prints, split where it waited for the person."""
    output = io.StringIO()
    options = {"max_new_tokens": 8, "temperature": 1.0, **options}
    typed = io.StringIO("".join(line + "\n" for line in lines))
    assert terminal.chat(loaded, input=typed, output=output, **options) == 0
    return output.getvalue().split("> ")


def answers_to(loaded, *texts, **options):
    """The conversation object after it has answered each of the texts."""
    conversation = terminal.Conversation(loaded, max_new_tokens=8, temperature=1.0, **options)
    for text in texts:
        conversation.messages.append({"role": "user", "content": text})
        conversation.make_room()
        "".join(conversation.answer())
    return conversation


def test_text_comes_in_whole_characters(loaded):
    tokenizer = loaded.tokenizer
    tokens = tokenizer.encode("aé€𝄞z")
    assert len(tokens) == 11  # a byte each
    assert list(terminal.text_pieces(tokenizer, tokens)) == ["a", "é", "€", "𝄞", "z"]
    assert list(terminal.text_pieces(tokenizer, tokens[:2])) == ["a", "\ufffd"]
    assert list(terminal.text_pieces(tokenizer, [tokenizer.bos, tokens[0], tokenizer.end])) == ["a"]


def test_answers_are_streamed_from_the_rendered_history(loaded):
    shown = talk(loaded, "hello", "again")
    conversation = answers_to(loaded, "hello", "again")
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2
    assert shown[1] == terminal.harmless(conversation.messages[1]["content"]) + "\n"
    assert shown[2] == terminal.harmless(conversation.messages[3]["content"]) + "\n"
    assert shown[1] != talk(loaded, "hello", seed=1)[1]

    expected = generate(
        loaded.params, loaded.config, [render_prompt(loaded.tokenizer, [{"role": "user", "content": "hello"}])],
        rng=jax.random.key(0), max_new_tokens=8, stop=(loaded.tokenizer.end,), chunk=1)[0]
    assert conversation.messages[1]["content"] == loaded.tokenizer.decode(expected.content, special=False)


def test_one_shot_equals_the_first_answer(loaded):
    output = io.StringIO()
    options = dict(max_new_tokens=8, temperature=1.0)
    assert terminal.chat(loaded, prompt="hello", output=output, **options) == 0
    assert output.getvalue() == talk(loaded, "hello")[1]
    with pytest.raises(UserError, match="the message is empty"):
        terminal.chat(loaded, prompt=" ", output=output, **options)
    with pytest.raises(UserError, match="but the model's context is 64"):
        terminal.chat(loaded, prompt="x" * 100, output=output, **options)
    with pytest.raises(UserError, match="temperature is -1"):
        terminal.chat(loaded, temperature=-1, input=io.StringIO(), output=output)


def test_commands(loaded, tmp_path):
    file = tmp_path / "conversation.txt"
    shown = talk(loaded, "/help", "/retry", "hi", "/retry", "/system Be brief.", f"/save {file}", "/reset", "yes",
                 f"/save {file}", "/nonsense", "", "/quit", "never read")
    assert "/system TEXT" in shown[1] and "no answer to retry" in shown[2]
    assert shown[3] != shown[4]  # another answer to the same message
    assert "set" in shown[5] and str(file) in shown[6] and "started over" in shown[7]
    assert "there is no command /nonsense" in shown[10] and shown[11] == ""
    assert len(shown) == 13 and shown[12] == ""
    assert terminal.harmless(file.read_text()).startswith(f"system: Be brief.\n\nuser: yes\n\nassistant: {shown[8]}"[:50])


def test_retry_replaces_the_answer(loaded, tmp_path):
    file = tmp_path / "conversation.txt"
    shown = talk(loaded, "hi", "/retry", f"/save {file}")
    assert terminal.harmless(file.read_text()) == f"user: hi\n\nassistant: {shown[2]}"
    assert shown[2] != shown[1]


def test_a_full_context_forgets_the_oldest_and_keeps_the_system_message(loaded):
    lines = [f"message {n}" for n in range(5)]
    shown = talk(loaded, *lines, system="SYS")
    assert "forgotten" not in shown[1] and "the context of 64 tokens is full: the oldest 2 messages" in shown[4]
    conversation = answers_to(loaded, *lines, system="SYS")
    assert conversation.system == "SYS" and conversation.messages[1]["role"] == "user"
    assert conversation.messages[-2]["content"] == "message 4" and len(conversation.messages) < 9
    assert len(render_prompt(loaded.tokenizer, conversation.messages[:-1])) + 8 <= CONTEXT


def test_a_message_that_does_not_fit_is_refused_and_the_chat_goes_on(loaded):
    shown = talk(loaded, "hi", "x" * 100, "/retry")
    assert "write a shorter one" in shown[2]
    assert shown[3] != shown[1] and "no answer" not in shown[3]


@pytest.fixture(scope="session")
def caller():
    """A model that calls 7*8 and says OK to the result; its stage is "practice"."""
    from scripted import CONFIG, TABLES, TOKENIZER, params_of
    return Loaded(params_of(TABLES["practice"]), CONFIG, TOKENIZER, "practice")


def test_calls_are_run_and_shown_and_stay_in_the_conversation(caller, tmp_path):
    file = tmp_path / "conversation.txt"
    options = dict(temperature=0.0, max_new_tokens=40, tools={"calculator": calculate})
    shown = talk(caller, "hi", f"/save {file}", "again", **options)
    assert shown[1] == shown[3] == "[7*8 → 56] OK\n"
    assert file.read_text() == "user: hi\n\nassistant: [7*8 → 56] OK\n"
    assert talk(caller, "hi", **{**options, "tools": None})[1] != shown[1]
    with pytest.raises(UserError, match="so it cannot call any"):
        strange = Tokenizer(caller.tokenizer.ranks, bos="<s>", end="</s>", special={"<s>": 256, "</s>": 257})
        terminal.Conversation(dataclasses.replace(caller, tokenizer=strange), tools={"calculator": calculate})


def test_a_model_from_elsewhere_calls_in_its_own_form(tmp_path):
    """The second prompt is what the template writes of the first exchange, call and result in it."""
    from scripted import FOREIGN, FOREIGN_CONFIG, FOREIGN_TABLE, params_of, write_foreign
    template = read_template(write_foreign(tmp_path, weights=False) / "foreign" / "source")
    foreign = Loaded(params_of(FOREIGN_TABLE, FOREIGN_CONFIG), FOREIGN_CONFIG, FOREIGN, "foreign", template)
    shown = talk(foreign, "hi", temperature=0.0, max_new_tokens=120, tools={"calculator": calculate})
    assert shown[1] == "[7*8 → 56] OK\n"
    conversation = terminal.Conversation(foreign, temperature=0.0, max_new_tokens=99, tools={"calculator": calculate})
    conversation.messages.append({"role": "user", "content": "hi"})
    assert "".join(conversation.answer()) == "[7*8 → 56] OK"
    conversation.messages.append({"role": "user", "content": "again"})
    prompt = FOREIGN.decode(conversation._prompt())
    assert prompt.startswith("<|im_start|>system\nTools:") and "<answer>56</answer><|im_end|>" in prompt
    assert prompt.endswith("<|im_start|>assistant\nOK<|im_end|>\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n")


def test_calls_that_are_whole_turns_are_run_and_shown(tmp_path):
    from scripted import FOREIGN_CONFIG, LLAMA, LLAMA_TABLE, params_of, write_llama
    template = read_template(write_llama(tmp_path, weights=False) / "llama" / "source")
    llama = Loaded(params_of(LLAMA_TABLE, FOREIGN_CONFIG), FOREIGN_CONFIG, LLAMA, "llama", template)
    call, options = '{"name": "calculator", "parameters": {"expression": "7*8"}}', dict(temperature=0.0, max_new_tokens=120)
    conversation = terminal.Conversation(llama, tools={"calculator": calculate}, **options)
    conversation.messages.append({"role": "user", "content": "hi"})
    assert "".join(conversation.answer()) == f"[{call} → 56] OK"
    assert conversation.messages[-1]["content"] == [
        {"type": "call", "text": call}, {"type": "result", "text": "56"}, {"type": "text", "text": "OK"}]
    conversation.messages.append({"role": "user", "content": "again"})
    assert call + '<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n"56"<|eot_id|>' in LLAMA.decode(conversation._prompt())
    assert talk(llama, "hi", tools={"calculate": calculate}, **options)[1] == call + "\n"  # which it does not call
    form = conversation.caller.form
    assert list(terminal.text_pieces(LLAMA, LLAMA.encode("a{"), form)) == ["a", "{"]
    assert list(terminal.text_pieces(LLAMA, LLAMA.encode("{a"), form)) == ["", "", "{", "a"]  # what is held back can be stopped


def test_another_stage_takes_over_under_the_same_system_message(loaded, caller):
    stages = {"tiny": lambda: loaded, "practice": lambda: caller}
    shown = talk(loaded, "/stage", "/stage nowhere", "/stage practice", "hi", "/stage", system="SYS", stages=stages,
                 temperature=0.0, max_new_tokens=4)
    assert "stages: tiny (this one), practice" in shown[1] and "there is no stage nowhere; stages: tiny" in shown[2]
    assert shown[3] == "(practice; started over)\n" and shown[4].startswith("7*8")
    assert "practice (this one)" in shown[5]
    assert "stages: tiny alone" in talk(loaded, "/stage")[1]


def test_codes_of_the_terminal_are_spelt_out(caller):
    told = {"calculator": lambda text: "\x1b]0;owned\x07\x1b[2J"}
    shown = talk(caller, "hi", temperature=0.0, max_new_tokens=60, tools=told)[1]
    assert shown == "[7*8 → \\x1b]0;owned\\x07\\x1b[2J] OK\n"


PROGRAM = """
import fcntl, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # standard input becomes this session's terminal, whose Ctrl-C reaches us
signal.signal(signal.SIGINT, signal.default_int_handler)  # else tests started with & in a script hand down that it is ignored
sys.path.insert(0, sys.argv[1])
from test_terminal import terminal, tiny_model
sys.exit(terminal.chat(tiny_model(8192), temperature=0, max_new_tokens=8000))  # greedy, it never comes to an end
"""


class Terminal:
    """A chat in a process of its own, at a pseudo-terminal."""

    def __init__(self):
        self.ours, theirs = pty.openpty()
        command = [sys.executable, "-c", PROGRAM, os.path.dirname(__file__)]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        self.shown = ""

    def write(self, text):
        os.write(self.ours, text.encode())

    def wait_for(self, pattern, *, insist=None, seconds=180):
        """Reads until `pattern` matches what has come since the last match; writes `insist` again every second."""
        until = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown, re.DOTALL)):
            assert time.monotonic() < until, f"no {pattern!r} in {self.shown!r}"
            if select.select([self.ours], [], [], 1)[0]:
                self.shown += os.read(self.ours, 4096).decode(errors="replace")
            elif insist:
                self.write(insist)
        self.shown = self.shown[found.end():]

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self.ours)


def test_control_c_stops_the_answer_and_control_d_leaves():
    window = Terminal()
    try:
        window.wait_for("/help lists the commands.*> ")
        window.write("hello\n")
        window.wait_for("hello\r\n.{20}")  # an answer is under way
        window.write("\x03")
        window.wait_for(r"\(stopped\)\r\n.*> ")
        # At the prompt there is nothing to stop. (A Ctrl-C between Python's printing the prompt and its waiting for a
        # line is not seen until something else comes, hence again.)
        window.write("\x03")
        window.wait_for(r"\(Ctrl-D or /quit leaves\)\r\n.*> ", insist="\x03")
        window.write("\x04")
        assert window.process.wait(timeout=30) == 0
    finally:
        window.close()
