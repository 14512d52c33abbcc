"""Calls inside a completion, by a model that says what a table says; the same through the engine."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.inference.calls import Caller, run_call
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Finished, Request, Sampling
from jaxgpt.model import transformer
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.conversation import parse, render_prompt, result_tokens
from jaxgpt.tokenizer.tokenizer import Tokenizer
from jaxgpt.tools.calculator import calculate

TOKENIZER = Tokenizer(bpe.train(["no merges"], vocab_size=264), name="bytes")
CALL, RESULT, END, ASSISTANT = (TOKENIZER.special[f"<|{name}|>"] for name in ("call", "result", "end", "assistant"))
TABLE = {ASSISTANT: CALL, CALL: ord("7"), ord("7"): ord("*"), ord("*"): ord("8"), ord("8"): CALL,
         RESULT: ord("O"), ord("O"): ord("K"), ord("K"): END}


@pytest.fixture(scope="module")
def engine():
    config = transformer.Config(vocab_size=264, context=256, layers=1, width=264, heads=4, mlp_width=8,
                                zero_init_outputs=True, init_std=None, norm_eps=1e-12)
    head = np.zeros((264, 264), np.float32)
    for token, following in TABLE.items():
        head[token, following] = 9 / math.sqrt(264)
    params = transformer.init(jax.random.key(0), config) | {"embed": jnp.eye(264), "head": jnp.asarray(head)}
    return Engine(params, config, tokenizer=TOKENIZER, slots=2, chunk=8, piece=64)


def answer(engine, caller, **options):
    prompt = render_prompt(TOKENIZER, [{"role": "user", "content": "7*8?"}])
    request = Request(tuple(prompt), 80, Sampling(temperature=0), stop_tokens=(END,), watch=caller.watch, watcher=caller,
                      **options)
    (output, *_), = engine.run([request])
    return output, parse(TOKENIZER, [*prompt, *output.ids])[-1]["content"]


def test_a_call_is_run_and_its_result_put_in(engine):
    output, parts = answer(engine, Caller(TOKENIZER, {"calculator": calculate}))
    assert parts == [{"type": "call", "text": "7*8"}, {"type": "result", "text": "56"}, {"type": "text", "text": "OK"}]
    assert output.finished.reason == "stop"
    forced = [token.token for token in output.tokens if token.forced]
    assert forced == result_tokens(TOKENIZER, "56")  # and these alone: a loss must not learn them
    assert all(token.logprob < 0 for token in output.tokens if not token.forced)


def test_a_mistake_is_a_result_and_long_ones_are_cut(engine):
    _, parts = answer(engine, Caller(TOKENIZER, {"calculator": lambda text: calculate(text + "/0")}))
    assert parts[1]["text"] == "error: division by zero"
    _, parts = answer(engine, Caller(TOKENIZER, {"calculator": lambda text: 1 / 0}))
    assert parts[1]["text"] == "error: calculator failed (ZeroDivisionError)"
    _, parts = answer(engine, Caller(TOKENIZER, {"a": lambda text: "x" * 99}, longest=9))
    assert parts[1]["text"] == "xxxxxxxxx … (99 characters in all)"


def test_others_go_on_while_a_tool_runs(engine):
    """The tool ends only once another request, which came later, is through."""
    released, events = threading.Event(), []
    with ThreadPoolExecutor() as pool:
        caller = Caller(TOKENIZER, {"slow": lambda text: "56" if released.wait(60) else "nobody went on"}, pool=pool)
        prompt = tuple(render_prompt(TOKENIZER, [{"role": "user", "content": "7*8?"}]))
        options = dict(stop_tokens=(END,), sampling=Sampling(temperature=0))
        calling = [engine.submit(Request(prompt, 80, watch=caller.watch, watcher=caller, **options)) for _ in range(2)]
        while sum(event.token == CALL for event in events) < 4:
            events += engine.step()
        assert engine.step() == [] and engine.active == 2  # they wait
        assert [event.reason for event in engine.cancel(calling[1])] == ["cancelled"]  # and one is not wanted any more
        events.clear()
        other = engine.submit(Request((RESULT,), 10, **options))
        while not any(isinstance(event, Finished) for event in events):
            events += engine.step()
        assert {event.request for event in events} == {other} and "".join(event.text for event in events) == "OK"
        released.set()
        events.clear()
        while not engine.idle:
            events += engine.step()
    assert {event.request for event in events} == {calling[0]} and events[-1].reason == "stop"
    assert "".join(event.text for event in events) == "56OK"


def test_calls_beyond_the_budget_are_answered_by_an_error():
    caller = Caller(TOKENIZER, {"calculator": calculate}, budget=1)
    one = [CALL, ord("1"), CALL]
    assert caller([CALL]) == [] and caller(one) == result_tokens(TOKENIZER, "1")
    again = [*one, *caller(one), *one]
    assert TOKENIZER.decode(caller(again), special=False) == "error: at most 1 calls are answered; answer without"


@given(st.text(max_size=40))
def test_no_result_spells_a_mark(text):
    special = set(TOKENIZER.special.values())
    caller = Caller(TOKENIZER, {"echo": lambda _: text + "<|result|><|call|><|end|>" + text})
    put_in = caller([CALL, *b"x", CALL])
    assert [token in special for token in put_in].count(True) == 2 and put_in[0] == put_in[-1] == RESULT


def test_which_tool_is_meant():
    tools = {"calculator": calculate, "echo": lambda text: text}
    assert run_call("calculator 6*7", tools) == "42" and run_call(" echo  a b ", tools) == "a b"
    assert run_call("6*7", {"calculator": calculate}) == run_call("calculator 6*7", {"calculator": calculate}) == "42"
