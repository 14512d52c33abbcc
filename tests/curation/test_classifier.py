"""The learned quality filter: it learns real differences as well as fastText, and the step applies what was learned."""

import functools
import gzip
import json
import random
import re
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.curation.classifier import (
    Classifier, LearnedQuality, features, fit_linear, load_classifier, mean_hidden, save_classifier, score,
    train_classifier)
from jaxgpt.curation.document import Drop, document
from jaxgpt.model import transformer


def paragraphs(text, least, most):
    found = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text.replace("\r\n", "\n")))
    return [part for part in found if least <= len(part.split()) <= most]


def book(folder, name):
    text = gzip.decompress((Path(folder) / "text" / "gutenberg" / f"{name}.txt.gz").read_bytes()).decode()
    return paragraphs(text[2000:-20_000], 30, 400)


def divided(positive, negative, train):
    """(positive, negative) to learn from and to test on, as many of both."""
    for texts in (positive, negative):
        random.Random(0).shuffle(texts)
    count = min(len(positive), len(negative))
    return (positive[:train], negative[:train]), (positive[train:count], negative[train:count])


@pytest.fixture(scope="module")
def novels(data_folder):
    """Paragraphs of Austen against paragraphs of Eliot."""
    return divided(book(data_folder, "pride-and-prejudice"), book(data_folder, "middlemarch"), 800)


@pytest.fixture(scope="module")
def pages(data_folder):
    """Paragraphs of PEPs against paragraphs of Wikipedia, 12 to 40 words of each."""
    with tarfile.open(Path(data_folder) / "text" / "peps.tar.gz") as archive:
        peps = [archive.extractfile(entry).read().decode() for entry in archive if entry.isfile()]
    lines = (Path(data_folder) / "text" / "wikitext2_valid.txt").read_text().splitlines()
    wikipedia = [" ".join(line.split()[:30]) for line in lines if len(line.split()) > 30]
    return divided([part for text in peps for part in paragraphs(text, 12, 40)], wikipedia, 1200)


@pytest.fixture(scope="module")
def goals(data_folder):
    """How-to questions of PIQA against science questions of ARC, without the word that both begin with."""
    questions = lambda name: [json.loads(line)["query"].removeprefix("Question: ") for line in  # noqa: E731
                              (Path(data_folder) / "eval" / name).read_text().splitlines()]
    return divided(questions("piqa.jsonl"), questions("arc_easy.jsonl"), 1200)


def accuracy(judge, positive, negative):
    return (np.mean(judge(positive)) + 1 - np.mean(judge(negative))) / 2


def ours(train, **settings):
    model = train_classifier(jax.random.key(0), *train, **settings)
    return lambda texts: score(model, texts) > 0.5


def fasttexts(folder, train):
    """fastText as its tutorial trains it on few examples, on the same normalised words."""
    fasttext = pytest.importorskip("fasttext", reason="needs fastText: pip install fasttext-numpy2-wheel")
    normalised = lambda text: " ".join(re.findall(r"[^\W_]+", text)).lower()  # noqa: E731
    lines = [f"__label__{label} {normalised(text)}" for label, texts in zip("pn", train) for text in texts]
    (folder / "train.txt").write_text("\n".join(lines))
    train = lambda: fasttext.train_supervised(  # noqa: E731
        str(folder / "train.txt"), wordNgrams=2, epoch=25, lr=0.5, thread=1, verbose=0, bucket=200_000)
    try:
        model = train()
    except RuntimeError:  # "Encountered NaN": now and then, on the same file
        model = train()
    return lambda texts: [model.predict(normalised(text))[0][0] == "__label__p" for text in texts]


@pytest.mark.parametrize("name, least", [("novels", 0.96), ("pages", 0.98), ("goals", 0.94)])
def test_it_tells_texts_apart_as_well_as_fasttext(name, least, request, tmp_path):
    train, test = request.getfixturevalue(name)
    found = accuracy(ours(train), *test)
    assert found > least
    assert found > accuracy(fasttexts(tmp_path, train), *test) - 0.01


def test_the_same_key_gives_the_same_classifier(novels):
    train, _ = novels
    small = [texts[:50] for texts in train]
    first, again, other = (train_classifier(jax.random.key(seed), *small, buckets=1000, batch=16) for seed in (0, 0, 1))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert np.array_equal(first.weights, again.weights) and first.bias == again.bias


def test_a_step_is_that_of_the_textbook():
    """One batch: Adam's first step moves each weight that has a gradient by the learning rate, against its sign."""
    model = train_classifier(jax.random.key(0), ["tea cake"], ["rain", ""], buckets=10_000, ngrams=1, epochs=1, lr=0.25)
    end, tea, cake, _ = features("tea cake", buckets=10_000, ngrams=1).tolist()
    rain = features("rain", buckets=10_000, ngrams=1).tolist()[1]
    moved = {int(i): round(float(model.weights[i]), 4) for i in np.flatnonzero(model.weights)}
    assert moved == {tea: 0.25, cake: 0.25, rain: -0.25, end: -0.25}
    assert model.bias == pytest.approx(-0.25, abs=1e-4)  # two of three are negative
    logits = [-0.25 + (2 * -0.25 + 0.25) / 3, -0.25 + 3 * -0.25 / 3, -0.25 - 0.25]
    assert score(model, ["tea", "rain", ""]) == pytest.approx(1 / (1 + np.exp(-np.array(logits))), abs=1e-4)


def test_features_by_hand():
    end, a, b, last = features("a b", buckets=2**20, ngrams=1)
    assert end == last and len({end, a, b}) == 3 and features("", buckets=2**20, ngrams=1).tolist() == [end, end]
    assert features("B, a", buckets=2**20, ngrams=1).tolist() == [end, b, a, end]
    assert len(features("a b", buckets=2**20)) == 4 + 3 and len(features("a b", buckets=2**20, ngrams=3)) == 4 + 3 + 2
    assert features("a b", buckets=2**20)[5] != features("b a", buckets=2**20)[5]
    assert len(np.unique(features(" ".join(map(str, range(5000))), buckets=2**30, ngrams=1))) > 4990


# --- the step --------------------------------------------------------------------------------------------------------

def test_the_step_drops_what_scores_low(pages, tmp_path):
    train, (peps, wikipedia) = pages
    model = train_classifier(jax.random.key(0), *train)
    save_classifier(tmp_path / "quality.npz", model)
    step = LearnedQuality(model=str(tmp_path / "quality.npz"), threshold=0.5)
    scores = score(model, peps + wikipedia)
    results = [step(document(text, "page")) for text in peps + wikipedia]
    assert [isinstance(result, Drop) for result in results] == (scores < 0.5).tolist()
    drops = [result for result in results if isinstance(result, Drop)]
    assert {drop.reason for drop in drops} == {"low learned quality"}
    assert [drop.value for drop in drops] == scores[scores < 0.5].tolist()
    measure, = step.measures
    assert measure.name == f"learned quality {model.fingerprint()}"
    kept = document(peps[0], "page").with_scores(measure)
    assert step(kept) is kept and kept.scores[measure.name] == {"score": scores[0]}


def test_what_is_saved_is_what_is_loaded(tmp_path, monkeypatch):
    model = Classifier(np.arange(5, dtype=np.float32), -0.5, ngrams=3)
    save_classifier(tmp_path / "a.npz", model)
    monkeypatch.setenv("MODELS", str(tmp_path))
    loaded = load_classifier("$MODELS/a.npz")
    assert np.array_equal(loaded.weights, model.weights) and loaded[1:] == model[1:]
    assert loaded.fingerprint() == model.fingerprint() != model._replace(bias=0.5).fingerprint()


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match="none.npz: no such file"):
        LearnedQuality(model=str(tmp_path / "none.npz")).measures[0].name
    (tmp_path / "text.npz").write_text("not numbers")
    np.savez(tmp_path / "other.npz", other=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("text.npz", "other.npz", "array.npy"):
        with pytest.raises(UserError, match=f"{name}: not a classifier that save_classifier wrote"):
            load_classifier(tmp_path / name)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="threshold: must be between 0 and 1"):
        LearnedQuality(model="a.npz", threshold=50)
    with pytest.raises(ValueError, match="model: must name a file"):
        LearnedQuality(model="")
    with pytest.raises(ValueError, match="must both have texts, not 1 and 0"):
        train_classifier(jax.random.key(0), ["a"], [])
    with pytest.raises(ValueError, match="epochs=0"):
        train_classifier(jax.random.key(0), ["a"], ["b"], epochs=0)


# --- embeddings ------------------------------------------------------------------------------------------------------

def test_the_linear_fit_is_at_its_minimum():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 5)), rng.integers(0, 2, 200)
    w, b = fit_linear(x, y, ridge=0.5)
    error = 1 / (1 + np.exp(-(x @ w + b))) - y
    assert np.abs(x.T @ error + 0.5 * w).max() < 1e-2 and abs(error.sum()) < 1e-2
    with pytest.raises(ValueError, match="both labels"):
        fit_linear(x, np.ones(200))
    with pytest.raises(ValueError, match=r"\[200, 5\] and \[3\]"):
        fit_linear(x, np.array([0, 1, 0]))


def test_embeddings_of_a_model_average_what_counts():
    config = transformer.Config(vocab_size=50, context=8, layers=1, width=16, heads=2)
    params = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), config)
    tokens, lengths = jax.random.randint(jax.random.key(1), (3, 8), 0, 50), jnp.array([8, 5, 1])
    hidden, _, _ = jax.jit(functools.partial(transformer.hidden, config=config))(params, tokens)
    embed = jax.jit(functools.partial(mean_hidden, config=config))
    expected = np.stack([hidden[row, :length].mean(0) for row, length in enumerate(lengths)])
    assert np.allclose(embed(params, tokens, lengths), expected, atol=1e-5)
    assert np.allclose(embed(params, tokens.at[1, 5:].set(0), lengths), expected, atol=1e-5)
