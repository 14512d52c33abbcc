"""A quality filter learned from examples: texts one wants against texts one has.

    score(text) = sigmoid(bias + mean over the text's words and pairs of words of weight[hash mod buckets])

This is fastText's classifier with its embedding and its head multiplied out: with two classes they only ever act
through their product, one number a feature. Learning that number itself is a convex problem, takes a tenth of the time,
and errs no more often (tests/curation/test_classifier.py). GPT-3 chose its pages with the same model.

    model = train_classifier(jax.random.key(0), wanted, found)
    save_classifier("quality.npz", model)
    threshold = float(np.quantile(score(model, some_pages), 0.9))    # keeps the best tenth, as DCLM does
    steps = (..., LearnedQuality(model="quality.npz", threshold=threshold), ...)

Sources: Joulin et al., "Bag of Tricks for Efficient Text Classification" (2016); Brown et al., "Language Models are
Few-Shot Learners" (2020), appendix A; Li et al., "DataComp-LM" (2024), section 4.4.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import write_bytes
from jaxgpt.curation.document import Document, Drop, Value
from jaxgpt.curation.files import find_files, open_file
from jaxgpt.curation.ngrams import runs, words_of


_END = np.array([0x5851F42D4C957F2D], np.uint64)  # the hash of no word that is likely


class Classifier(NamedTuple):
    """A trained classifier.

    Attributes:
      weights: [buckets] float32, of the features that fall there.
      bias: added to every logit.
      ngrams: features are runs of up to this many words.
    """

    weights: np.ndarray
    bias: float
    ngrams: int = 2

    def fingerprint(self) -> str:
        """Tells classifiers apart: 12 hexadecimal digits of a hash of all numbers."""
        content = self.weights.tobytes() + np.float32(self.bias).tobytes() + bytes([self.ngrams])
        return hashlib.sha256(content).hexdigest()[:12]


def features(text: str, *, buckets: int, ngrams: int = 2) -> np.ndarray:
    """The buckets of a text's words, pairs of words, and so on up to `ngrams`: [features] int64.

    Each end of the text counts as a word, so that how it begins and ends is among the pairs.

    >>> features("Tea, tea", buckets=1000).shape  # 4 words, 3 pairs
    (7,)
    """
    hashes = np.concatenate([_END, words_of(text).hashes, _END])
    every = [run for _, run in zip(range(ngrams), runs(hashes))]
    return (np.concatenate(every) % np.uint64(buckets)).astype(np.int64)


def score(classifier: Classifier, texts: Iterable[str]) -> np.ndarray:
    """How much each text is like the positive examples: [texts] float64, from 0 to 1.

    >>> weights = np.zeros(1000, np.float32)
    >>> weights[features("tea", buckets=1000, ngrams=1)[1]] = 6.0
    >>> score(Classifier(weights, bias=-1.0, ngrams=1), ["Tea!", "tea cake", "cake"]).round(2)
    array([0.73, 0.62, 0.27])
    """
    buckets, logits = len(classifier.weights), []
    for text in texts:
        found = classifier.weights[features(text, buckets=buckets, ngrams=classifier.ngrams)]
        logits.append(classifier.bias + found.mean(dtype=np.float64))
    return 1 / (1 + np.exp(-np.array(logits)))


# --- learning --------------------------------------------------------------------------------------------------------

def train_classifier(rng, positive: Sequence[str], negative: Sequence[str], *, buckets: int = 2**20, ngrams: int = 2,
                     epochs: int = 5, batch: int = 64, lr: float = 0.5) -> Classifier:
    """Learns to tell two kinds of texts apart, by logistic regression with Adam and a rate that falls to 0.

        loss = mean over texts of log(1 + exp(-+ logit)),    - for positive texts

    Args:
      rng: key of the order in which texts come; the same key gives the same classifier.
      positive: texts one wants, such as reference works.
      negative: texts one has, such as any pages. About as many and as long as the others.
      buckets: of the hashed features; 4 bytes each.
      ngrams: features are runs of up to this many words.
      epochs: how often each text is seen.
      batch: texts in a step.
      lr: the first learning rate. Features are averaged, so weights are large numbers, and so is the rate.

    Raises:
      ValueError: one side has no text, or a setting is below 1.
    """
    import jax
    import jax.numpy as jnp
    import optax
    if not positive or not negative:
        raise ValueError(f"positive, negative: must both have texts, not {len(positive)} and {len(negative)}")
    if min(buckets, ngrams, epochs, batch) < 1:
        raise ValueError(f"buckets={buckets}, ngrams={ngrams}, epochs={epochs}, batch={batch}: must each be at least 1")
    adam = optax.scale_by_adam()

    def loss(params, ids, rows, share, labels):
        means = jax.ops.segment_sum(params["weights"][ids] * share, rows, num_segments=len(labels))
        return jnp.mean(optax.sigmoid_binary_cross_entropy(params["bias"] + means, labels))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, rate, batch):
        updates, state = adam.update(jax.grad(loss)(params, *batch), state)
        return jax.tree.map(lambda param, update: param - rate * update, params, updates), state

    params = {"weights": jnp.zeros(buckets, jnp.float32), "bias": jnp.zeros((), jnp.float32)}
    state = adam.init(params)
    inputs = [features(text, buckets=buckets, ngrams=ngrams) for text in (*positive, *negative)]
    labels = np.repeat(np.array([1, 0], np.float32), [len(positive), len(negative)])
    order = np.concatenate([jax.random.permutation(key, len(labels)) for key in jax.random.split(rng, epochs)])
    steps = -(-len(order) // batch)
    for number, ragged in enumerate(_batches(inputs, labels, order, batch)):
        params, state = step(params, state, lr * (1 - number / steps), ragged)
    return Classifier(np.asarray(params["weights"]), float(params["bias"]), ngrams)


def _batches(inputs: list[np.ndarray], labels: np.ndarray, order: np.ndarray, batch: int) -> Iterator[tuple]:
    """(ids, rows, share, labels) of each batch: features one after the other, which text each is of, 1 / its features.

    All batches are padded to the size of the largest, with features of share 0, so that one program takes them all.
    """
    groups = [order[start:start + batch] for start in range(0, len(order), batch)]
    groups[-1] = np.resize(groups[-1], min(batch, len(order)))
    size = max(sum(len(inputs[i]) for i in group) for group in groups)
    for group in groups:
        lengths = np.array([len(inputs[i]) for i in group])
        ids, rows, share = np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(size, np.float32)
        count = lengths.sum()
        ids[:count] = np.concatenate([inputs[i] for i in group])
        rows[:count] = np.repeat(np.arange(len(group)), lengths)
        share[:count] = np.repeat(1 / lengths, lengths)
        yield ids, rows, share, labels[group]


# --- a linear model on embeddings ------------------------------------------------------------------------------------

def mean_hidden(params, tokens, lengths, *, config):
    """What a language model makes of texts: its last hidden state, averaged over the positions of each text.

    Args:
      params: of `jaxgpt.model.transformer`.
      tokens: int [B, T], padded at the end.
      lengths: int [B], positions that count; at least 1.
      config: what the model is.

    Returns:
      float32 [B, D].
    """
    import jax.numpy as jnp

    from jaxgpt.model import transformer
    x, _, _ = transformer.hidden(params, tokens, config=config)
    counts = jnp.arange(tokens.shape[1]) < lengths[:, None]
    return jnp.einsum("btd,bt->bd", x.astype(jnp.float32), counts / lengths[:, None])


def fit_linear(x: np.ndarray, y: np.ndarray, *, ridge: float = 1.0) -> tuple[np.ndarray, float]:
    """Logistic regression on embeddings, such as those of `mean_hidden`.

        minimises  sum of log(1 + exp(-y_i (w.x_i + b))) + ridge/2 |w|^2,    y_i in {-1, 1}

    Source: Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning" (2009), section 4.4.

    Args:
      x: [n, D] embeddings.
      y: [n] labels, 0 or 1.
      ridge: how strongly weights are held to 0.

    Returns:
      (w [D], b): the logit of an embedding is x @ w + b.

    Raises:
      ValueError: shapes do not fit, or only one label occurs.

    >>> w, b = fit_linear(np.array([[0.0], [1.0], [3.0], [4.0]]), np.array([0, 0, 1, 1]))
    >>> bool(abs(2.0 * w[0] + b) < 1e-3)  # between the two
    True
    """
    from scipy.optimize import minimize
    x, sign = np.asarray(x, np.float64), np.where(np.asarray(y) > 0, 1.0, -1.0)
    if x.ndim != 2 or sign.shape != x.shape[:1] or len(set(sign)) != 2:
        raise ValueError(f"x, y: must be [n, D] and [n] with both labels, not {list(x.shape)} and {list(sign.shape)} "
                         f"with {len(set(sign))}")

    def loss(packed: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = packed[:-1], packed[-1]
        margin = sign * (x @ w + b)
        slope = -sign * np.exp(-np.logaddexp(0, margin))  # of the loss in each logit
        return np.logaddexp(0, -margin).sum() + ridge / 2 * w @ w, np.append(x.T @ slope + ridge * w, slope.sum())

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    return found[:-1], float(found[-1])


# --- the file and the step -------------------------------------------------------------------------------------------

def save_classifier(path: str | os.PathLike, classifier: Classifier) -> None:
    """Writes a classifier to one .npz file, whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    content = io.BytesIO()
    np.savez(content, weights=classifier.weights, bias=np.float32(classifier.bias), ngrams=classifier.ngrams)
    write_bytes(path, content.getvalue())


def load_classifier(path: str | os.PathLike) -> Classifier:
    """Reads what `save_classifier` wrote, near or far (`files.find_files`).

    Raises:
      UserError: there is no such file, or it is something else.
    """
    found = find_files(os.fspath(path))[0]
    try:
        with open_file(found) as file, np.load(file) as held:
            return Classifier(held["weights"], float(held["bias"]), int(held["ngrams"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a classifier that save_classifier wrote ({error})") from error


@dataclasses.dataclass(frozen=True)
class LearnedScore:
    """A classifier's score of a text.

    Attributes:
      model: the path of its file.
    """

    model: str

    @property
    def name(self) -> str:
        """Under which scores are kept; tells classifiers apart by content."""
        return _load(self.model)[1]

    def __call__(self, text: str) -> Mapping[str, Value]:
        """The `score`, from 0 to 1."""
        return {"score": float(score(_load(self.model)[0], [text])[0])}


@functools.lru_cache(maxsize=8)
def _load(path: str) -> tuple[Classifier, str]:
    """The classifier, read once in a process, and its measure's name."""
    classifier = load_classifier(path)
    return classifier, f"learned quality {classifier.fingerprint()}"


@dataclasses.dataclass(frozen=True)
class LearnedQuality:
    """Drops texts that a classifier scores below a threshold.

    Attributes:
      model: the path of its file, from `save_classifier`.
      threshold: lower scores are dropped.
    """

    model: str
    threshold: float = 0.5
    name: str = "learned_quality"

    def __post_init__(self):
        if not self.model:
            raise ValueError("model: must name a file that save_classifier wrote")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold: must be between 0 and 1, not {self.threshold}")

    @property
    def measures(self) -> tuple[LearnedScore]:
        """The classifier's score."""
        return (LearnedScore(self.model),)

    def __call__(self, document: Document) -> Document | Drop:
        """The document, or the drop with its score."""
        measure, = self.measures
        document = document.with_scores(measure)
        found = document.scores[measure.name]["score"]
        return document if found >= self.threshold else Drop("low learned quality", found)
