"""A chat in the terminal."""

from __future__ import annotations

import codecs
import contextlib
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TextIO

import jax

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import write_text
from jaxgpt.inference.calls import Caller, Tool
from jaxgpt.inference.forms import Form, Turn
from jaxgpt.inference.generate import sampling_options, stream
from jaxgpt.inference.load import Loaded
from jaxgpt.tokenizer.conversation import Message
from jaxgpt.tokenizer.tokenizer import Tokenizer
from jaxgpt.tokenizer.turns import prompt_turns, stop_tokens
from jaxgpt.tools.choose import described

HELP = """\
/system TEXT  sets the system message (without TEXT: removes it) and starts over
/reset        starts over; the system message stays
/retry        another answer to your last message
/stage NAME   talks with another stage's model, starting over (without NAME: lists them)
/save FILE    writes the conversation as text
/help         this list
/quit         leaves; so does Ctrl-D. Ctrl-C stops an answer."""


class Conversation:
    """A model's side of a conversation: the messages so far, and answers that come in pieces of text.

    Args:
      loaded: the model.
      system: a system message, or None.
      seed: answer number n draws from fold_in(key(seed), n).
      tools: {name: tool} that the model may call.
      max_new_tokens, **options: of `generate.stream`.

    Raises:
      UserError: an option is impossible, or the model knows no calls.
    """

    def __init__(self, loaded: Loaded, *, system: str | None = None, seed: int = 0, max_new_tokens: int = 200,
                 tools: Mapping[str, Tool] | None = None, **options):
        sampling_options(max_new_tokens, **options)  # refuses what is impossible now, not at the first answer
        self.caller = Caller(loaded.tokenizer, tools, template=loaded.template) if tools else None
        self.functions = described(tools or ())
        self.loaded, self.options, self.max_new_tokens = loaded, options, max_new_tokens
        self.rng, self.answers = jax.random.key(seed), 0
        self.messages: list[Message] = []
        self.restart(system)

    @property
    def system(self) -> str | None:
        """The system message."""
        first = self.messages[:1]
        return first[0]["content"] if first and first[0]["role"] == "system" else None

    def restart(self, system: str | None) -> None:
        """Forgets everything but a new system message."""
        self.messages = [{"role": "system", "content": system}] if system else []

    def make_room(self) -> int:
        """Drops the oldest exchanges until an answer of `max_new_tokens`, or half a context, fits. The system message
        and the last user message stay.

        Returns:
          How many messages were dropped.

        Raises:
          UserError: even what must stay leaves no room for a single token.
        """
        context, dropped = self.loaded.config.context, 0
        room = min(self.max_new_tokens, context // 2)
        first = 1 if self.system else 0
        while len(self._prompt()) + room > context and len(self.messages) > first + 1:
            del self.messages[first:first + 2]  # a user turn and the answer to it
            dropped += 2
        if len(self._prompt()) >= context:
            raise UserError(f"this message makes a prompt of {len(self._prompt())} tokens, but the model's context is "
                            f"{context}; write a shorter one")
        return dropped

    def answer(self) -> Iterator[str]:
        """Yields the answer to the last message, piece by piece, and then adds it to the messages. Calls and results
        stand in brackets: [17*3 → 51].

        What had come is kept when the caller stops early (an interrupt, or no further iteration).
        """
        tokenizer, came, form = self.loaded.tokenizer, [], self.caller and self.caller.form
        drawn = self._tokens(request=self.answers)
        self.answers += 1
        try:
            yield from text_pieces(tokenizer, (came.append(one) or one for one in drawn), form)
        finally:
            self.messages.append({"role": "assistant", "content": content_of(tokenizer, came, form)})

    def _tokens(self, request: int) -> Iterator[int | str]:
        """The tokens of an answer, and the results of its calls as texts."""
        loaded, completion, prompt = self.loaded, [], self._prompt()
        ends = stop_tokens(loaded.tokenizer, loaded.template)
        stop = (*ends, *(self.caller.watch if self.caller else ()))
        while (left := min(self.max_new_tokens, loaded.config.context - len(prompt)) - len(completion)) > 0:
            for token in stream(loaded.params, loaded.config, [*prompt, *completion], rng=self.rng, request=request,
                                max_new_tokens=left, stop=stop, **self.options):
                completion.append(token)
                yield token
            if not self.caller or completion[-1] not in self.caller.watch:
                return
            if put_in := self.caller(completion):
                completion += put_in
                yield self.caller.form.result(put_in)
            elif completion[-1] in ends:
                return

    def transcript(self) -> str:
        """The conversation as text, a paragraph a message."""
        return "\n".join(f"{message['role']}: {_plain(message['content'])}\n" for message in self.messages)

    def _prompt(self) -> list[int]:
        return prompt_turns(self.loaded.tokenizer, self.messages, self.loaded.template, self.functions)


def text_pieces(tokenizer: Tokenizer, came: Iterable[int | str], form: Form | None = None) -> Iterator[str]:
    """The text of tokens as they come, in whole characters: one whose bytes are spread over tokens waits for its last.

    Special tokens give no text. With the form of its calls, a call and its result, a text among the tokens, stand in
    brackets: [17*3 → 51]. Bytes that no character can begin or end with become U+FFFD.
    """
    special, inside, marked = set(tokenizer.special.values()), False, form is not None and form.opening is not None
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for one in _known(tokenizer, came, form):
        if isinstance(one, str):
            piece = one
        elif marked and one == (form.closing if inside else form.opening):
            piece, inside = " → " if inside else "[", not inside
        else:
            piece = "" if one in special else decoder.decode(tokenizer.decode_bytes([one]))
            piece = piece.replace("\n", "") if inside and not form.ours else piece  # between a mark and its JSON
        if piece or one == "":
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def _known(tokenizer: Tokenizer, came: Iterable[int | str], form: Form | None) -> Iterator[int | str]:
    """The same once it is known whether a turn is a call; such calls, and results, are texts as they are shown. A text of
    nothing comes meanwhile, so that who shows them can stop."""
    turn = Turn(form)
    for one in came:
        if isinstance(one, str):
            yield one + "] "
            continue
        known, call = turn.feed(one)
        yield from (token for token, in known)
        if call is not None:
            yield f"[{tokenizer.decode(call).strip()} → "
        elif not known:
            yield ""
    yield from (token for token, in turn.end())


def content_of(tokenizer: Tokenizer, came: Sequence[int | str], form: Form | None = None) -> str | list[dict]:
    """An answer as a message has it: its text, or the parts of one with calls; of a call cut short, its text."""
    parts, after = [], 0
    for at, one in enumerate(came):
        if isinstance(one, str):
            text, (*_, call), _ = form.split(came[after:at])
            parts += [{"type": "text", "text": tokenizer.decode(text, special=False)},
                      {"type": "call", "text": tokenizer.decode(call)}, {"type": "result", "text": one}]
            after = at + 1
    rest = "".join(text_pieces(tokenizer, came[after:], form))
    parts = [part for part in [*parts, {"type": "text", "text": rest}] if part["text"] or part["type"] != "text"]
    return parts if any(part["type"] == "call" for part in parts) else rest


def _plain(content: str | list[dict]) -> str:
    shown = {"text": "{}", "call": "[{} → ", "result": "{}] "}
    if isinstance(content, str):
        return content
    return "".join(shown[part["type"]].format(part["text"].strip("\n" if part["type"] == "call" else "")) for part in content)


def chat(loaded: Loaded, *, system: str | None = None, prompt: str | None = None, temperature: float = 0.0,
         top_k: int | None = None, top_p: float | None = None, max_new_tokens: int = 200, seed: int = 0,
         tools: Mapping[str, Tool] | None = None, stages: Mapping[str, Callable[[], Loaded]] | None = None,
         input: TextIO | None = None, output: TextIO | None = None) -> int:
    """Talks with a person until they leave; with `prompt`, answers that one message.

    Args:
      loaded: the model.
      system: a system message to start with.
      prompt: the one message to answer.
      temperature, top_k, top_p, max_new_tokens: of `generate.stream`.
      seed: of the answers.
      tools: {name: tool} that the model may call.
      stages: {name: what loads the model of that stage}, for /stage.
      input, output: streams of text; the terminal where None.

    Returns:
      The exit status, 0.

    Raises:
      UserError: an option is impossible, or `prompt` does not fit the context.
    """
    output = output or sys.stdout
    options = dict(seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, max_new_tokens=max_new_tokens, tools=tools)
    conversation = Conversation(loaded, system=system, **options)
    if prompt is not None:
        _say(conversation, prompt, output)
        return 0
    _print(output, f"{loaded.stage}, {loaded.config.context} tokens of context. /help lists the commands.\n")
    while True:
        try:
            line = _read(input, output)
            if line == "/quit":
                return 0
            if line.split(" ")[0] == "/stage":
                conversation = _other_stage(conversation, line, stages or {}, options, output)
            else:
                _respond(conversation, line, output)
        except KeyboardInterrupt:
            _print(output, "\n(Ctrl-D or /quit leaves)\n")
        except EOFError:
            _print(output, "\n")
            return 0
        except UserError as error:
            _print(output, f"({error})\n")


# --- one line of the chat --------------------------------------------------------------------------------------------

def _respond(conversation: Conversation, line: str, output: TextIO) -> None:
    """Carries out a command, or answers a message."""
    command, _, argument = line.partition(" ")
    argument = argument.strip()
    if not line.startswith("/"):
        if line.strip():
            _say(conversation, line, output)
    elif command == "/help":
        _print(output, HELP + "\n")
    elif command == "/system":
        conversation.restart(argument or None)
        _print(output, f"(system message {'set' if argument else 'removed'})\n")
    elif command == "/reset":
        conversation.restart(conversation.system)
        _print(output, "(started over)\n")
    elif command == "/retry":
        _retry(conversation, output)
    elif command == "/save":
        if not argument:
            raise UserError("/save needs the name of a file")
        _print(output, f"(written to {write_text(argument, conversation.transcript())})\n")
    else:
        raise UserError(f"there is no command {command}; /help lists those there are")


def _other_stage(conversation: Conversation, line: str, stages: Mapping[str, Callable[[], Loaded]], options: dict,
                 output: TextIO) -> Conversation:
    """A new conversation with the model of another stage, under the same system message."""
    name = line.partition(" ")[2].strip()
    if name not in stages:
        here = conversation.loaded.stage
        listed = ", ".join(f"{stage} (this one)" if stage == here else stage for stage in stages) or f"{here} alone"
        raise UserError(f"{f'there is no stage {name}; ' if name else ''}stages: {listed}")
    conversation = Conversation(stages[name](), system=conversation.system, **options)
    _print(output, f"({name}; started over)\n")
    return conversation


def _say(conversation: Conversation, text: str, output: TextIO) -> None:
    if not text.strip():
        raise UserError("the message is empty")
    _answer(conversation, [*conversation.messages, {"role": "user", "content": text}], output)


def _retry(conversation: Conversation, output: TextIO) -> None:
    if not conversation.messages or conversation.messages[-1]["role"] != "assistant":
        raise UserError("there is no answer to retry")
    _answer(conversation, conversation.messages[:-1], output)


def _answer(conversation: Conversation, messages: list[Message], output: TextIO) -> None:
    """Prints the answer to `messages` as it comes. Ctrl-C stops it and keeps what has come; where nothing could come,
    the conversation is what it was."""
    before, conversation.messages = conversation.messages, messages
    try:
        if dropped := conversation.make_room():
            _print(output, f"(the context of {conversation.loaded.config.context} tokens is full: the oldest {dropped} "
                           "messages are forgotten)\n")
        with _interrupts() as interrupted, contextlib.closing(conversation.answer()) as pieces:
            for piece in pieces:
                _print(output, harmless(piece))
                if interrupted.is_set():
                    _print(output, " (stopped)")
                    break
        _print(output, "\n")
    finally:
        if conversation.messages[-1]["role"] == "user":
            conversation.messages = before


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Yields an event that Ctrl-C sets. The first one waits for the token under way, so that it never cuts into JAX; a
    second one does not wait."""
    interrupted = threading.Event()

    def note(number, frame):
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _read(source: TextIO | None, output: TextIO) -> str:
    """The next line that the person writes; raises EOFError at the end."""
    if source is None:
        try:
            import readline  # noqa: F401  (input() then edits the line and remembers earlier ones)
        except ImportError:
            pass
        return input("> ").strip()
    _print(output, "> ")
    line = source.readline()
    if not line:
        raise EOFError
    return line.strip()


def harmless(text: str) -> str:
    """Text of a model or a tool as a terminal may show it: codes that would move its cursor or change its colours are
    spelt out.

    >>> harmless("a\\x1b[2Jb\\n")
    'a\\\\x1b[2Jb\\n'
    """
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else c.encode("unicode_escape").decode() for c in text)


def _print(output: TextIO, text: str) -> None:
    output.write(text)
    output.flush()
