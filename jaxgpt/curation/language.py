"""Which language a text is in, and a filter by it.

py3langid brings its model of 140 languages along. fastText's own, which FineWeb used, and others in its format are read
from a file that the user brings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxgpt.core.errors import UserError
from jaxgpt.curation.document import Document, Drop, Measure, Value
from jaxgpt.tokenizer.bpe import valid_unicode

PY3LANGID = "py3langid"
SAMPLE = 6000  # characters of a text that py3langid reads: it takes time, and the language no longer changes with more


class _Identifier(NamedTuple):
    classify: Callable[[str], tuple[str, float]]  # of a text without line ends
    codes: frozenset[str]  # all that it can say


@dataclasses.dataclass(frozen=True)
class LanguageIdentification:
    """The most likely language of a text.

    py3langid is a naive Bayes classifier over byte n-grams, with codes of two letters where there are such (en, de). Of
    a text of more than 6,000 characters it is given 2,000 each from the beginning, the middle and the end.

    Sources: Lui and Baldwin, "langid.py: An Off-the-shelf Language Identification Tool" (2012); Joulin et al., "Bag of
    Tricks for Efficient Text Classification" (2016), for fastText.

    Attributes:
      model: "py3langid", or the path of a fastText model such as lid.176.bin, with `~` and variables expanded.

    >>> LanguageIdentification()("The kettle is on the hob.\\nWould you like a cup of tea?")["code"]
    'en'
    """

    model: str = PY3LANGID

    def __post_init__(self):
        if not self.model:
            raise ValueError(f"model: must be '{PY3LANGID}' or the path of a fastText model; this is an empty text")

    @property
    def name(self) -> str:
        """Where a document keeps the result: another place for each model."""
        return "language" if self.model == PY3LANGID else f"language by {self.model}"

    def __call__(self, text: str) -> Mapping[str, Value]:
        """{"code": the language, "score": its probability, to four digits}

        Raises:
          UserError: the model is not there, or the package that reads it.
        """
        code, score = _identifier(self.model).classify(valid_unicode(text).replace("\n", " "))
        return {"code": code, "score": round(score, 4)}


@dataclasses.dataclass(frozen=True)
class Language:
    """Keeps texts that are surely in one of some languages.

    The threshold is FineWeb's, for fastText's lid.176: probabilities of other models mean other things. Of 436 passages
    of 4,000 characters from English books and Wikipedia, py3langid gives none less than 0.88.

    Source: Penedo et al., "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale" (2024).

    Attributes:
      name: in reports and overrides.
      languages: codes as the model gives them, two letters for most of py3langid's; None keeps all.
      threshold: a text stays where the probability of its language is greater.
      model: as of `LanguageIdentification`.

    >>> from jaxgpt.curation.document import document
    >>> Language()(document("Der Kessel steht auf dem Herd. Möchten Sie eine Tasse Tee?", "web"))
    Drop(reason='another language', value='de')
    """

    name: str = "language"
    languages: tuple[str, ...] | None = ("en",)
    threshold: float = 0.65
    model: str = PY3LANGID

    def __post_init__(self):
        if self.languages is not None and (not self.languages or not isinstance(self.languages, tuple)):
            raise ValueError("languages: must be codes in a tuple, as in ('en',), or None for all, not "
                             f"{self.languages!r}")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold: must be a probability from 0 to less than 1, not {self.threshold}")
        LanguageIdentification(self.model)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What it judges by."""
        return (LanguageIdentification(self.model),)

    def __call__(self, document: Document) -> Document | Drop:
        """The document, or why not: its language by its code, or how probable the likeliest one is.

        Raises:
          UserError: the model is not there, or does not know one of the languages.
        """
        measure, = self.measures
        document = document.with_scores(measure)
        found = document.scores[measure.name]
        if self.languages is not None:
            _check_codes(self.languages, self.model)
        if found["score"] <= self.threshold:
            return Drop("language uncertain", found["score"])
        if self.languages is not None and found["code"] not in self.languages:
            return Drop("another language", found["code"])
        return document


@functools.lru_cache(maxsize=64)
def _check_codes(languages: tuple[str, ...], model: str) -> None:
    known = _identifier(model).codes
    if unknown := sorted(set(languages) - known):
        raise UserError(f"languages: {model} knows no '{unknown[0]}'; it knows {', '.join(sorted(known))}")


@functools.lru_cache(maxsize=4)
def _identifier(model: str) -> _Identifier:
    """The model, loaded once in a process."""
    return _py3langid() if model == PY3LANGID else _fasttext(os.path.expandvars(os.path.expanduser(model)))


def _py3langid() -> _Identifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return _Identifier(lambda text: identifier.classify(_sample(text)), frozenset(identifier.labels))


def _sample(text: str) -> str:
    """The beginning, the middle and the end of a long text."""
    if len(text) <= SAMPLE:
        return text
    third, middle = SAMPLE // 3, len(text) // 2
    return " ".join([text[:third], text[middle - third // 2:middle + third // 2], text[-third:]])


def _fasttext(path: str) -> _Identifier:
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such language model; give model='{PY3LANGID}', or the path of a fastText model "
                        "such as lid.176.bin from https://fasttext.cc/docs/en/language-identification.html")
    try:
        import fasttext
    except ImportError:
        raise UserError(f"{path}: to read a fastText model, pip install fasttext-numpy2-wheel") from None
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a note on its own history
            loaded = fasttext.load_model(path)
        labels = {label: label.removeprefix("__label__") for label in loaded.get_labels()}
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a fastText classifier ({error})") from error

    def classify(text: str) -> tuple[str, float]:
        found = loaded.f.predict(text + "\n", 1, 0.0, "strict")  # .predict does the same, but not with every NumPy
        return (labels[found[0][1]], min(1.0, found[0][0])) if found else ("", 0.0)

    return _Identifier(classify, frozenset(labels.values()))
