"""The three stages on small real files, through the code that runs experiments."""

import json
import lzma

import numpy as np
import pytest

from jaxgpt.core.experiment import Experiment, run
from jaxgpt.core.files import read_json
from jaxgpt.curation.duplicates import ExactDuplicates
from jaxgpt.curation.minhash import MinHash
from jaxgpt.curation.pipeline import read_corpus
from jaxgpt.curation.programs import Curate
from jaxgpt.curation.quality import GopherQuality
from jaxgpt.curation.sources import Jsonl, TextFiles
from jaxgpt.data.loader import batches
from jaxgpt.data.programs import Tokenize, TrainTokenizer, xz_bits_per_byte
from jaxgpt.data.shards import TokenShards
from jaxgpt.data.shuffle import order_key
from jaxgpt.tokenizer.tokenizer import Tokenizer

SUBJECTS = "otter heron badger maple willow river meadow lantern kettle violin harbour copper".split()


@pytest.fixture
def corpus(tmp_path):
    """60 documents, one of them twice, one nearly twice, one short."""
    rng = np.random.default_rng(0)
    texts = [f"On the {SUBJECTS[i % 12]}, part {i}.\n\n" + " ".join(rng.choice(SUBJECTS, 60)) for i in range(60)]
    texts += [texts[0], texts[1] + " and more", "too short"]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


LONG = GopherQuality(min_words=5, max_mean_word_length=None, min_alphabetic_words=None, min_stop_words=None)
STEPS = (ExactDuplicates(), MinHash(verify=0.8), LONG)


def experiment(source, steps=STEPS):
    return Experiment(name="test", stages=(
        Curate(source=source, val_fraction=0.2, steps=steps), TrainTokenizer(vocab_size=300), Tokenize()))


def test_the_three_stages(corpus, tmp_path):
    work = tmp_path / "work"
    run(experiment(Jsonl(str(corpus))), work)

    curated = read_json(work / "curate" / "manifest.json")["outputs"]
    counts = {step: entry["documents"] for step, entry in curated["steps"].items()}
    assert counts == {"read": 63, "exact_duplicates": 62, "minhash": 61, "gopher_quality": 60,
                      "train": counts["train"], "val": counts["val"]}
    parts = {split: list(read_corpus(work / "curate", split)) for split in ("train", "val")}
    assert len(parts["train"]) + len(parts["val"]) == 60 and counts["val"] == len(parts["val"]) >= 1
    assert not {item.id for item in parts["train"]} & {item.id for item in parts["val"]}
    kept = [item.text for items in parts.values() for item in items]
    assert sum(text.startswith("On the heron, part 1.") for text in kept) == 1  # of two near-duplicates one

    tokenizer = Tokenizer.load(work / "tokenizer")
    assert tokenizer.vocab_size == 300

    outputs = read_json(work / "tokenize" / "manifest.json")["outputs"]
    for split, items in parts.items():
        shards = TokenShards(work / "tokenize" / "shards", split)
        assert [tokens[0] for tokens in shards] == [tokenizer.bos] * len(items)
        shuffled = sorted(items, key=lambda item: order_key(0, item.id))
        assert [tokenizer.decode(tokens[1:]) for tokens in shards] == [item.text for item in shuffled]
        assert outputs[split] == {"documents": len(items), "tokens": int(shards.lengths.sum()),
                                  "bytes": sum(len(item.text.encode()) for item in items)}
    assert shards.manifest["tokenizer"] == tokenizer.fingerprint() and shards.manifest["corpus"] == curated["sha256"]
    compressed = sum(len(lzma.compress(item.text.encode(), preset=9)) for item in parts["val"])
    assert outputs["xz_bits_per_byte"] == pytest.approx(8 * compressed / outputs["val"]["bytes"], rel=0.001)
    assert next(batches(work / "tokenize" / "shards", "train", batch=2, length=32, seed=0))["tokens"].shape == (2, 32)


def test_same_corpus_same_files(corpus, tmp_path):
    for name in ("a", "b"):
        run(experiment(Jsonl(str(corpus))), tmp_path / name)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*")
             if path.is_file() and path.name not in ("manifest.json", "seconds.json", ".inputs.json")]
    assert len(files) > 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_the_tokenizer_does_not_see_validation(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcd " * 900 + "zyxw " * 100)
    curate = Curate(source=TextFiles(str(path)), steps=(), split="tail", val_fraction=0.1)
    run(Experiment(name="test", stages=(curate, TrainTokenizer(vocab_size=268))), tmp_path / "w")
    learned = b"".join(list(Tokenizer.load(tmp_path / "w" / "tokenizer").ranks)[256:])
    assert b"ab" in learned and b"zy" not in learned


def test_tiktoken_needs_no_training(corpus):
    assert Tokenize(tokenizer="gpt2").inputs() == ("curate",)
    assert Tokenize().inputs() == ("curate", "tokenizer")


@pytest.mark.parametrize("text", ["a", "abcd" * 5000, "".join(map(chr, range(32, 1000)))])
def test_xz_with_a_small_dictionary_is_xz(text):
    data = text.encode()
    assert xz_bits_per_byte([text]) * len(data) / 8 == pytest.approx(len(lzma.compress(data, preset=9)))
