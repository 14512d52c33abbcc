"""What the model read and what it did not: modules of the standard library, and modules that do not exist.

A model that was only ever shown answers answers everything. Demonstrations that say "I do not know" where
knowledge ends teach it that this is a possible answer. Real modules are answered with the first sentence of
their own docstring, read from the source with `ast`; nothing is imported.
"""

from __future__ import annotations

import ast
import functools
import re
import sysconfig
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from jaxgpt.tasks import task
from jaxgpt.tasks.task import Problem

MODULES = tuple("""
    argparse base64 bisect calendar cmd code codeop configparser contextlib copy copyreg csv difflib dis
    doctest email filecmp fileinput fnmatch fractions ftplib functools getopt getpass gettext glob gzip hmac
    html inspect ipaddress linecache locale logging lzma mimetypes operator optparse pickle platform poplib
    pprint profile py_compile pydoc queue random reprlib runpy sched selectors shelve shlex shutil site
    statistics string tarfile tempfile textwrap timeit tokenize traceback typing uuid warnings wave
    webbrowser zipfile
""".split())

WORDINGS = (
    "What is the module {name} for?", "What is the {name} module for?", "What does the module {name} do?",
    "what does the {name} module do", "what is the module {name}", "Tell me about the module {name}.",
)
REFUSAL = "I do not know a module named {name}."
MOST_WORDS = 14  # longer sentences are left out: every token of a conversation costs training time

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
INVENTED = range((len(CONSONANTS) * len(VOWELS)) ** 3 * len(CONSONANTS))


@dataclass(frozen=True)
class PythonKnowledge:
    """What is this module for? A share `refusals` of the modules does not exist, and the answer says so.

    >>> problem = PythonKnowledge(refusals=1.0).problems("train", 1, seed=0)[0]
    >>> problem.answer.startswith("I do not know a module named ")
    True
    """

    refusals: float = 0.3
    name: str = "python_knowledge"

    def __post_init__(self):
        if not 0 <= self.refusals <= 1:
            raise ValueError(f"refusals: {self.refusals} is not a share; from 0 to 1")

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        """In another split is, of a real module, the wording; of an invented one, the name.

        Ends early when the real wordings of val or test are exhausted, so that the share of refusals is kept.
        """
        rng = task.stream(self.name, split, seed)
        asked = [(wording, name) for name in summaries() for wording in WORDINGS]
        real = task.draw(asked, split, rng, place=lambda item: place(item[0].format(name=item[1])))
        invented = task.draw(INVENTED, split, rng, place=lambda index: place(invented_name(index)))

        def problem() -> Problem | None:
            if rng.random() < self.refusals:
                name = invented_name(next(invented))
                return self._problem(rng.choice(WORDINGS), name, REFUSAL.format(name=name))
            wording, name = next(real, (None, None))
            return name and self._problem(wording, name, summaries()[name])

        return list(islice(iter(problem, None), count))

    def _problem(self, wording: str, name: str, answer: str) -> Problem:
        question = wording.format(name=name)
        return Problem.asking(question, answer, task=self.name, key=f"{self.name}/{question}")

    def well_formed(self, problem: Problem, completion: str) -> bool:
        """One sentence of at most 25 words on one line."""
        return (re.fullmatch(r"[^\n]*[^\n.]\.", completion) is not None and completion == completion.strip()
                and len(completion.split()) <= 25)

    def reward(self, problem: Problem, completion: str) -> float:
        """1.0 for the sentence of the docstring, or for the refusal that names this module."""
        return float(completion == problem.answer)


@functools.cache
def summaries() -> dict[str, str]:
    """The first sentence of the docstring of each module that has a short one, by name.

    >>> summaries()["bisect"]
    'Bisection algorithms.'
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    found = {}
    for name in MODULES:
        for path in (library / f"{name}.py", library / name / "__init__.py"):
            if path.is_file():
                docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
                found[name] = first_sentence(docstring or "", name)
    return {name: sentence for name, sentence in found.items() if 0 < len(sentence.split()) <= MOST_WORDS}


def first_sentence(docstring: str, name: str) -> str:
    """The first sentence of a module's docstring, without the module's own name in front.

    >>> first_sentence("csv.py - read/write/investigate CSV files\\n\\nMore.", "csv")
    'Read/write/investigate CSV files.'
    """
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])\s", paragraph)[0].rstrip(".")
    sentence = re.sub(rf"^(?:module )?{re.escape(name)}(?:\.py)?\s+-+\s+", "", sentence, flags=re.IGNORECASE)
    return sentence[:1].upper() + sentence[1:] + "." if sentence else ""


def place(text: str) -> str:
    """The split of a question about a real module, or of an invented name."""
    return task.split_of("knowledge/" + text)


def invented_name(index: int) -> str:
    """A pronounceable word that names nothing: three syllables and a final consonant.

    >>> invented_name(0), len(INVENTED)
    ('bababab', 4802000)
    """
    index, last = divmod(index, len(CONSONANTS))
    letters = [CONSONANTS[last]]
    for _ in range(3):
        index, vowel = divmod(index, len(VOWELS))
        index, consonant = divmod(index, len(CONSONANTS))
        letters[:0] = [CONSONANTS[consonant], VOWELS[vowel]]
    return "".join(letters)
