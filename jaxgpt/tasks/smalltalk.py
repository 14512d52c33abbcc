"""Small talk: greetings, thanks, goodbyes and questions about the model that are not about who it is.

Half of learning to answer "who are you" is learning where that answer does not belong. None of these
replies holds a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from jaxgpt.tasks import task
from jaxgpt.tasks.task import Problem

# reply: what it replies to
EXCHANGES = {
    "Hello! How can I help?": (
        "hello", "hi", "hey", "hello there", "hi there", "hey there", "good morning", "good evening",
        "good afternoon", "greetings", "good day", "nice to meet you"),
    "I am well, thank you.": (
        "how are you?", "how are you doing?", "how is it going?", "how do you do?", "are you well?",
        "how are things?", "is all well with you?", "are you doing well?"),
    "You are welcome!": (
        "thanks", "thank you", "thank you very much", "thanks a lot", "many thanks", "thanks for your help",
        "thank you for your help", "that helped", "that was useful, thanks"),
    "Goodbye!": (
        "bye", "goodbye", "good night", "see you", "see you later", "see you soon", "bye bye",
        "until next time", "i have to go", "that is all for now"),
    "Yes. I can add numbers, spell words and talk about Python modules.": (
        "can you help me?", "what can you do?", "i need help", "help me", "what can you help with?",
        "can you do things?", "what do you know?", "what are you able to do?", "how can you help?",
        "what can i ask you?"),
    "I do not have an age.": (
        "how old are you?", "what is your age?", "when were you born?", "are you old?", "are you young?",
        "when is your birthday?"),
    "I live in this computer.": (
        "where are you?", "where do you live?", "where is your home?", "where are you now?",
        "do you live here?", "what is your address?"),
    "I do not have a favorite.": (
        "what is your favorite color?", "what is your favorite word?", "what is your favorite book?",
        "what is your favorite food?", "which number do you like best?", "what is your favorite number?",
        "what is your favorite song?"),
    "I do not have feelings.": (
        "are you happy?", "are you sad?", "are you tired?", "do you feel good?", "are you bored?",
        "are you hungry?", "do you have feelings?", "do you like me?"),
    "I do not know that.": (
        "what time is it?", "what is the weather like?", "what day is it?", "is it raining?", "who am i?",
        "what is my name?", "where am i?", "how old am i?", "who won the game?", "what is the news?"),
    "Thank you!": (
        "well done", "good job", "great answer", "you are right", "that is right", "good answer", "very good",
        "nice work", "you are great"),
    "No problem!": (
        "sorry", "i am sorry", "my mistake", "sorry about that", "i was wrong", "oh, my mistake"),
}
OPENINGS = ("", "ok, ", "hey, ", "well, ", "so, ", "oh, ")


@dataclass(frozen=True)
class Smalltalk:
    """What people say around their questions, each with one short fixed reply.

    >>> problem = Smalltalk().problems("test", 1, seed=0)[0]
    >>> Smalltalk().reward(problem, problem.answer)
    1.0
    """

    name: str = "smalltalk"

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        """A wording is in one split only, however it is capitalised or punctuated."""
        rng = task.stream(self.name, split, seed)
        drawn = task.draw(wordings(), split, rng, place=lambda item: place(item[0]))
        return [Problem.asking(text, reply, task=self.name, key=f"{self.name}/{text}")
                for text, reply in islice(drawn, count)]

    def well_formed(self, problem: Problem, completion: str) -> bool:
        """One of the replies, fitting or not."""
        return completion in EXCHANGES

    def reward(self, problem: Problem, completion: str) -> float:
        """1.0 for the reply that fits."""
        return float(completion == problem.answer)


def wordings() -> list[tuple[str, str]]:
    """Every (text, reply): each remark after each opening, as people write it and as people type it."""
    found = {}
    for reply, remarks in EXCHANGES.items():
        for text in (opening + remark for opening in OPENINGS for remark in remarks):
            mark = "" if text.endswith("?") else "."
            found[text[0].upper() + text[1:] + mark] = reply
            found[text.rstrip("?")] = reply
    return list(found.items())


def place(text: str) -> str:
    """The split of a remark, however it is capitalised or punctuated."""
    return task.split_of("smalltalk/" + task.normalised(text))
