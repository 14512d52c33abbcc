"""Letters inside words: hard for a model that reads tokens, and therefore worth asking."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice

from jaxgpt.tasks import task
from jaxgpt.tasks.task import Problem

WORDS = tuple("""
    air all and ant apple arm art ask baby back bag ball band bank base bath bean bear bed bee bell belt
    bird bit blue boat body bone book boot bowl box boy bread brick bus cake call camp cap car card cat
    chair city clay clock cloud coal coat code coin cold cook cool corn cow cup dark data day deer desk dish
    dog door down dress drum duck dust ear east egg end eye face fact farm fast feet file fire fish five
    flag flat floor flour fly food foot fork four fox fruit game gate gift girl glass goat gold good grass
    green hair hall hand hat head heart hill home hook horse house ice ink iron jam job juice key king kite
    knee lake lamp leaf leg lemon line lion list loop map milk mind moon mouse mouth name neck nest night
    nose note number open page paint pan paper park path pen pig plant plate queen rain red rice ring river
    road rock roof room root rope rose salt sand sea seed ship shoe shop silk sky snow soap sock song soup
    spoon star stone sun table tail tea tent time town tree wall water week wind wing wolf wood word year
    yellow zebra zero
""".split())

SPELL = ("Spell {word}.", "spell {word}", "How do you spell {word}?", "Spell the word {word}.")
COUNT = ("How many letters are in {word}?", "how many letters has {word}", "Count the letters of {word}.")


@dataclass(frozen=True)
class Spelling:
    """Spell a short word, or spell it and count its letters.

    >>> problem = Spelling().problems("test", 1, seed=0)[0]
    >>> Spelling().reward(problem, problem.answer)
    1.0
    """

    name: str = "spelling"

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        """A word asked about in one way is never in another split in another way."""
        items = [(word, wording) for word in WORDS for wording in SPELL + COUNT]
        rng = task.stream(self.name, split, seed)
        drawn = task.draw(items, split, rng, place=lambda item: task.split_of("spelling/" + item[0]))
        return [self._problem(word, wording) for word, wording in islice(drawn, count)]

    def _problem(self, word: str, wording: str) -> Problem:
        spelled = " ".join(word)
        answer = spelled if wording in SPELL else f"{spelled}: {len(word)} letters."
        question = wording.format(word=word)
        return Problem.asking(question, answer, task=self.name, key=f"{self.name}/{question}")

    def well_formed(self, problem: Problem, completion: str) -> bool:
        """Single letters with spaces between them, and the count where it was asked for."""
        counted = r": [0-9]+ letters\." if problem.answer.endswith("letters.") else ""
        return re.fullmatch(r"[a-z](?: [a-z])*" + counted, completion) is not None

    def reward(self, problem: Problem, completion: str) -> float:
        """1.0 for exactly the right letters (and count)."""
        return float(completion == problem.answer)
