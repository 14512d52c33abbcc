"""Who are you? A base model has no idea; an assistant knows because somebody wrote conversations that say so.

Source: Karpathy, "Deep Dive into LLMs like ChatGPT" (2025), "knowledge of self".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice, product

from jaxgpt.tasks import task
from jaxgpt.tasks.task import Problem

# Training and validation wordings are opening + core + ending.
OPENINGS = ("", "hi, ", "hello, ", "hey, ", "so, ", "sorry, ", "ok, ", "and ", "excuse me, ",
            "good morning, ", "now ", "i wonder, ", "tell me, ", "please, ", "wait, ", "well, ", "hi there, ")
ENDINGS = ("", " exactly", " please", " really", " today", " then", " again", " by the way", " if i may ask",
           " right now", " anyway")
WHO = (
    "who are you", "what are you", "who is this", "what is this", "who is there", "who am i talking to",
    "who am i speaking to", "what am i talking to", "who is talking to me", "who is answering me",
    "which model are you", "what model are you", "what kind of model are you", "what kind of program are you",
    "what sort of machine are you", "which assistant is this", "which model is this",
    "what model am i talking to", "are you a person", "are you a human or a machine", "are you a robot",
    "are you a language model", "tell me who you are", "tell me what you are", "tell me about yourself",
    "tell me something about yourself", "say who you are", "introduce yourself", "can you introduce yourself",
    "could you introduce yourself", "describe yourself", "can you describe yourself", "explain who you are",
    "can you tell me who you are", "could you tell me what you are", "i want to know who you are",
    "i would like to know what you are", "do you know who you are", "let me know who you are",
    "may i ask who you are", "may i know what you are", "who do i have here", "who did i just meet",
    "who is speaking to me", "who is speaking now", "who speaks", "who am i chatting to", "who are you really",
    "are you a human being", "are you a human or not", "are you a bot", "are you a chat program",
    "are you a real human", "are you a computer program", "are you some kind of machine", "what r u", "who u are",
    "if i may ask who are you", "what kind of thing are you", "what in the world are you", "who am i chatting to now",
    "what sort of thing are you", "say a few words about who you are", "who is speaking here",
    "say something about yourself", "who is it that i am talking to",
)
NAME = (
    "what is your name", "what's your name", "tell me your name", "say your name", "do you have a name",
    "your name", "can you tell me your name", "could you say your name", "what name do you have",
    "what are you called", "how are you called", "what do they call you", "what do people call you",
    "what should i call you", "how should i call you", "what can i call you",
    "by what name should i call you", "what name should i use for you", "may i know your name",
    "i want to know your name", "i forgot your name", "which name do you use", "what name were you given",
    "give me your name", "how do people call you",
)
MAKER = (
    "who made you", "who trained you", "who built you", "who created you", "who is your maker",
    "who wrote you", "where do you come from", "who do you come from", "tell me who made you",
    "how were you made",
)
ASKING = ("who", "what", "which", "how", "where", "are", "do", "can", "could", "may", "by")  # else a request

# Never trained on, never validated on.
TEST = (
    "Who are you, if I may ask?", "Hello there! Who are you?", "And who might you be?", "who r u",
    "Who is speaking?", "Who am I chatting with?", "Who am I talking with right now?",
    "So tell me, who are you?", "Who exactly are you?", "Wait, who are you?", "Good evening, who are you?",
    "Hi! Could you tell me who you are?", "Please tell me who you are.", "I'd like to know who you are.",
    "Do tell me who you are!", "Who or what are you?", "What are you, a person or a program?",
    "What exactly are you?", "What on earth are you?", "Hello, what kind of thing are you?",
    "What sort of model are you?", "What sort of assistant are you?", "Which language model are you?",
    "Which language model am I talking to?", "What language model is this?",
    "Am I talking to a person or a machine?", "Are you a machine?", "Are you human?",
    "Are you a real person?", "Are you a chatbot?", "Would you introduce yourself?",
    "Please introduce yourself to me.", "Introduce yourself in a few words.",
    "Say a few words about yourself.", "Tell me a bit about yourself.", "Can you tell me about yourself?",
    "Could you describe yourself briefly?", "How would you describe yourself?", "Please, what is your name?",
    "Hello! Do you have a name?", "May I ask your name?", "Could you tell me your name?",
    "Would you tell me your name?", "I would like to know your name.", "What was your name again?",
    "What name do you go by?", "Your name, please?", "Hi, what can I call you?", "What shall I call you?",
    "Sorry, I did not get your name.",
)


@dataclass(frozen=True)
class Identity:
    """Questions about who the model is, answered with its name.

    >>> problem = Identity(model_name="jaxgpt").problems("test", 1, seed=0)[0]
    >>> problem.answer
    'I am jaxgpt, a small language model trained from scratch.'
    """

    model_name: str = "jaxgpt"
    maker: str = "whoever ran this experiment"
    name: str = "identity"

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        """Train and val come from a grammar; test is 50 wordings written by hand and kept out of both.

        In train the plain wordings go round sooner than the others, and so come again before all have come once.
        """
        rng = task.stream(self.name, split, seed)

        def draw(items):
            return task.draw(items, split, rng, place=lambda item: place(item[0]))

        if split == "train":  # every second one plain: among so many wordings the commonest ones would hardly occur
            drawn = chain.from_iterable(zip(draw(self._grammar(("",), ("",))), draw(self._grammar())))
        else:
            drawn = draw([(text, self._who) for text in TEST] if split == "test" else self._grammar())
        return [Problem.asking(text, answer, task=self.name, key=f"{self.name}/{text}")
                for text, answer in islice(drawn, count)]

    def well_formed(self, problem: Problem, completion: str) -> bool:
        """One or two short sentences on one line."""
        return (completion == completion.strip() and "\n" not in completion and completion.endswith(".")
                and 1 <= completion.count(".") <= 2 and len(completion.split()) <= 25)

    def reward(self, problem: Problem, completion: str) -> float:
        """1.0 for any way of saying it that this task knows; who asks about the maker must hear of the maker.

        Only complete replies count, so neither a denial nor a second claim can hide in a right one.
        """
        right = {self._made} if problem.answer == self._made else self._right()
        return float(completion in right)

    @property
    def _who(self) -> str:
        return f"I am {self.model_name}, a small language model trained from scratch."

    @property
    def _named(self) -> str:
        return f"My name is {self.model_name}. I am a small language model."

    @property
    def _made(self) -> str:
        return f"I am {self.model_name}. I was trained from scratch by {self.maker}."

    def _right(self) -> set[str]:
        """Every reply that tells who this is: one of two openings, then any of the descriptions or none."""
        tails = (".", ", a small language model.", ", a small language model trained from scratch.",
                 ". I am a small language model.", ". I am a small language model trained from scratch.",
                 ". I was trained from scratch.", f". I was trained from scratch by {self.maker}.")
        return {f"{opening} {self.model_name}{tail}" for opening in ("I am", "My name is") for tail in tails}

    def _grammar(self, openings=OPENINGS, endings=ENDINGS) -> list[tuple[str, str]]:
        """Every (text, answer), as people write it and as people type it."""
        texts: dict[str, str] = {}
        for cores, answer in ((WHO, self._who), (NAME, self._named), (MAKER, self._made)):
            for opening, core, ending in product(openings, cores, endings):
                text = opening + core + ending
                texts[text] = answer
                texts[text[0].upper() + text[1:] + ("?" if core.startswith(ASKING) else ".")] = answer
        return list(texts.items())


def place(text: str) -> str:
    """The split of a wording, however it is capitalised or punctuated: the hand-written ones are the test.

    >>> place("who exactly ARE you"), place("Who are you?")
    ('test', 'train')
    """
    wording = task.normalised(text)
    if wording in _TEST_WORDINGS:
        return "test"
    return "val" if task.fraction("identity/" + wording) < 0.1 else "train"


_TEST_WORDINGS = frozenset(map(task.normalised, TEST))
