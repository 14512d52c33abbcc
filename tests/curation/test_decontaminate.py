"""Decontamination: real evaluation items planted in real documents are found, paraphrases and other texts are not."""

import gzip
import io
import json
import pickle
import random
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.core.metrics import Progress
from jaxgpt.curation.classifier import Classifier, LearnedQuality, save_classifier
from jaxgpt.curation.decontaminate import Benchmark, Decontaminate, Passages, build_index, cut, find
from jaxgpt.curation.document import Drop, document
from jaxgpt.curation.ngrams import ngram_hashes, words_of
from jaxgpt.curation.pipeline import run_pipeline
from jaxgpt.curation.sources import Jsonl

FIELDS = {"gsm8k/test.jsonl": ("question", "answer"), "eval/hellaswag_val_subset.jsonl": ("query", "choices"),
          "eval/piqa.jsonl": ("query", "choices"), "eval/arc_challenge.jsonl": ("query", "choices"),
          "eval/arc_easy.jsonl": ("query", "choices"), "eval/openbook_qa.jsonl": ("query", "choices"),
          "eval/boolq.jsonl": ("query",), "eval/lambada_openai.jsonl": ("context", "continuation"),
          "eval/winogrande.jsonl": ("context_options", "continuation"), "eval/copa.jsonl": ("query", "choices"),
          "eval/triviaqa_sm_sub.jsonl": ("context", "answer"), "eval/mbpp_test.jsonl": ("text", "code"),
          "eval/HumanEval.jsonl.gz": ("prompt", "canonical_solution")}


@pytest.fixture(scope="module")
def step(data_folder):
    """Against all evaluation sets at hand."""
    return Decontaminate(against=tuple(Benchmark(f"$JAXGPT_DATA/{path}", fields) for path, fields in FIELDS.items()))


@pytest.fixture(scope="module")
def peps(data_folder):
    with tarfile.open(Path(data_folder) / "text" / "peps.tar.gz") as archive:
        return {entry.name: archive.extractfile(entry).read().decode() for entry in archive if entry.isfile()}


def words(text):
    return [word.lower() for word in re.findall(r"[^\W_]+", text)]


# --- words and n-grams -----------------------------------------------------------------------------------------------

def test_words_are_those_of_a_regular_expression(peps, data_folder):
    poem = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; ΑΒΓ αβγ, 東京 ١٢٣ naïve_İstanbul x² e\u0301"
    odd = ["a_b c3po 3.14 it's", "Straße 한국어 ½ ²", "a\ud800b \U0001f600c \U00020000\U00020001, \U00020000", "..."]
    for text in [*list(peps.values())[::40], poem, *odd, ""]:
        found = words_of(text)
        spans = [match.span() for match in re.finditer(r"[^\W_]+", text)]
        assert list(zip(found.starts.tolist(), found.ends.tolist())) == spans
        said, hashes = words(text), found.hashes.tolist()
        assert len(set(said)) == len(set(hashes)) == len(set(zip(said, hashes)))


def test_ngrams_by_hand():
    assert len(ngram_hashes("a b c d", 2)) == 3 and len(ngram_hashes("a b a b a", 5)) == 1
    assert len(ngram_hashes("one two", 3)) == 0 == len(ngram_hashes("", 1))
    assert np.array_equal(ngram_hashes("A,  b!\nc", 2), ngram_hashes("a b c", 2))
    assert ngram_hashes("a b", 2) != ngram_hashes("b a", 2) != ngram_hashes("ab", 1)


def test_what_is_found_is_what_comparing_words_finds():
    rng = random.Random(0)
    for _ in range(200):
        items = [" ".join(rng.choices("abc", k=rng.randrange(0, 9))) for _ in range(6)]
        text, n, least = ", ".join(rng.choices("abc", k=20)), rng.randrange(2, 7), rng.randrange(1, 5)
        items.append("a b c a b c")  # long enough for any of these
        index = build_index({"first": items[:3] + items[6:], "second": items[3:6] + items[6:]}, n=n, min_words=least)
        grams = {tuple(item.split()[i:i + n]) for item in items for i in range(len(item.split()) - n + 1)}
        grams |= {tuple(item.split()) for item in items if min(n, least) <= len(item.split()) < n}
        said = text.split(", ")
        expected = {(3 * i, 3 * (i + k) - 2) for k in range(1, n + 1) for i in range(20 - k + 1)
                    if tuple(said[i:i + k]) in grams}
        assert {(hit.start, hit.end) for hit in find(index, text)} == expected
        assert index.ignored["first"] == sum(len(item.split()) < min(n, least) for item in items[:3])


# --- real items in real documents ------------------------------------------------------------------------------------

def items_of(step):
    """Of each evaluation set 20 items, spread over it."""
    for benchmark in step.against:
        items = list(benchmark.items())
        for item in items[::-(-len(items) // 20)]:
            if len(words(item)) >= step.min_words:
                yield benchmark.title, item


def disguised(item, rng):
    """The same words in capitals, broken into lines, with other punctuation."""
    return "".join(word.upper() + rng.choice([" ", " ", "\n", ", ", " -- "]) for word in re.findall(r"[^\W_]+", item))


def test_items_are_found_wherever_they_stand(step, peps):
    rng, texts = random.Random(0), [text for text in peps.values() if len(text) < 30_000]
    planted = 0
    for title, item in items_of(step):
        text = rng.choice(texts)
        place = rng.choice([0, len(text) // 2, len(text)])
        result = step(document(f"{text[:place]}\n{disguised(item, rng)}\n{text[place:]}", "planted"))
        assert isinstance(result, Drop) and result.reason == "contaminated", (title, item)
        found, passage = result.value.split(": ", 1)
        assert found == title or " ".join(words(passage)) in " ".join(words(item))  # arc items stand in two sets
        planted += 1
    assert planted > 200


def test_paraphrases_are_not(step, peps):
    rng, texts = random.Random(1), [text for text in peps.values() if len(text) < 30_000]
    for title, item in items_of(step):
        said = words(item)
        for place in range(rng.randrange(min(13, len(said))), len(said), 13):  # one word of thirteen
            said[place] = rng.choice(["quite", "rather", "perhaps"])
        result = step(document(rng.choice(texts) + "\n" + " ".join(said), "paraphrased"))
        assert not isinstance(result, Drop), (title, item)


def test_thirteen_words_are_enough_and_twelve_are_not(step, peps):
    item = next(step.against[0].items())
    said, text = words(item)[:13], peps["pep-0008.rst"]
    assert isinstance(step(document(f"{text} {' '.join(said)} {text}", "13")), Drop)
    assert not isinstance(step(document(f"{text} {' '.join(said[:12])} {text}", "12")), Drop)


def test_real_documents_pass(step, peps, data_folder):
    """Of 736 PEPs and 9 novels one shares 13 words with one of 13 sets: a verse of the Bible that TriviaQA asks for."""
    books = {path.name: gzip.decompress(path.read_bytes()).decode()
             for path in sorted((Path(data_folder) / "text" / "gutenberg").glob("*.gz"))}
    drops = {}
    for name, text in {**peps, **books}.items():
        result = step(document(text, name))
        if isinstance(result, Drop):
            drops[name] = result.value
    assert len(peps) == 736 and len(books) == 9
    assert drops == {"war-and-peace.txt.gz":
                     "triviaqa_sm_sub: it is easier for a camel to go through the eye of a"}


def test_scores_say_how_often_and_where(step, peps):
    measure, = step.measures
    gsm8k, hellaswag = (next(benchmark.items()) for benchmark in step.against[:2])
    scores = measure(f"{peps['pep-0020.rst']}\n{gsm8k}\n{hellaswag}")
    expected = len(words(gsm8k)) - 12, len(words(hellaswag)) - 12
    assert (scores["in test"], scores["in hellaswag_val_subset"]) == expected
    assert scores["hits"] == sum(expected) and scores["set"] == "test"
    assert set(measure(peps["pep-0020.rst"])) == set(scores) and measure(peps["pep-0020.rst"])["hits"] == 0
    many = document(gsm8k, "many")
    assert Decontaminate(step.against, hits=scores["in test"] + 1)(many).text == gsm8k
    assert isinstance(Decontaminate(step.against, hits=scores["in test"])(many), Drop)


class Voice:
    """Whom a pipeline tells how it goes."""

    should_stop = staticmethod(lambda: False)
    log = staticmethod(lambda text: None)
    progress = staticmethod(lambda *told: Progress(*told, stream=io.StringIO()))


def test_in_a_pipeline(step, peps, tmp_path):
    """The step and a learned filter behind it: one file of scores for both, and counts that name the reasons."""
    item, texts = next(step.against[1].items()), sorted(peps.values(), key=len)[:20]
    texts[5], texts[11] = texts[5] + item, item + texts[11]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    save_classifier(tmp_path / "model.npz", Classifier(np.zeros(9, np.float32), bias=1.0))
    learned = LearnedQuality(str(tmp_path / "model.npz"), threshold=0.7)
    corpus = run_pipeline(Jsonl(str(tmp_path / "pages.jsonl")), (step, learned), tmp_path / "corpus", voice=Voice(),
                          split=None)
    assert [found["step"] for found in corpus["steps"]] == ["read", "decontaminate", "learned_quality"]
    assert corpus["steps"][1]["dropped"]["contaminated"]["documents"] == 2
    assert {found["value"].split(": ")[0] for found in corpus["examples"] if found["reason"] == "contaminated"} == {
        "hellaswag_val_subset"}
    assert corpus["steps"][2]["documents"] == 18  # sigmoid(1) is 0.73
    table, = (tmp_path / "corpus").glob("*-scores/*.parquet")
    columns = pyarrow.parquet.read_table(table).to_pydict()
    assert sum(hits > 0 for hits in columns[f"{step.measures[0].name}:hits"]) == 2
    assert set(columns[f"{learned.measures[0].name}:score"]) == {1 / (1 + np.exp(-1.0))}


# --- cutting ---------------------------------------------------------------------------------------------------------

def test_a_passage_is_cut_out_with_what_stands_around_it():
    secret = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    step = Decontaminate(against=(Passages("secret", (secret,)),), action="cut", window=10)
    before, after = "a" * 30 + " ", " " + "z" * 30
    cleaned = step(document(before + secret.title() + after, "page"))
    assert cleaned.text == "a" * 21 + "\n\n" + "z" * 21 and cleaned.scores == {}
    assert cleaned.id == document(before + secret.title() + after, "page").id
    assert step(document(secret + " z", "page")).reason == "contaminated"  # nothing is left
    assert step(document((before + secret) * 10 + after, "page")).reason == "contaminated"  # eleven pieces
    assert step(document((before + secret) * 9 + after, "page")).text.count("\n\n") == 9
    index = build_index({"secret": [secret]})
    assert cut(secret + after, find(index, secret + after), 0) == [after]
    untouched = document("nothing of it", "page")
    assert step(untouched).text == untouched.text


# --- the files -------------------------------------------------------------------------------------------------------

def write(path, *records):
    lines = "".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return str(path)


def test_fields_lists_and_fields_of_fields(tmp_path):
    record = {"q": "Which?", "choices": {"text": ["this one", "that one"]}, "year": 1999}
    path = write(tmp_path / "set.jsonl.gz", record, "\n", record)
    assert list(Benchmark(path, ("year", "q", "choices.text")).items()) == 2 * [
        "1999\nWhich?\nthis one", "1999\nWhich?\nthat one"]
    assert Benchmark(path).title == "set" and Benchmark(path, name="quiz").title == "quiz"


@pytest.mark.parametrize("records, fields, says", [
    ([{"text": "a"}], ("question",), "line 1: no field 'question'; its fields are 'text'"),
    ([{"question": "a"}, [1]], ("question",), "line 2: no field 'question'; it is no JSON object"),
    ([{"question": None}], ("question",), "line 1: the field 'question' must be a text or a list of texts, not None"),
    ([{"question": {"text": "a"}}], ("question.stem",), "line 1: no field 'question.stem'; its fields are 'text'"),
    (['{"question": "a"}\n', "{oops\n"], ("question",), "line 2: not valid JSON"),
    ([{"question": "too short"}], ("question",), "none of its 1 items has 8 words; give more of its fields, or a"),
    ([], ("question",), "none of its 0 items has 8 words"),
])
def test_bad_files_are_named(tmp_path, records, fields, says):
    step = Decontaminate(against=(Benchmark(write(tmp_path / "set.jsonl", *records), fields),))
    with pytest.raises(UserError) as error:
        step(document("a text", "page"))
    assert says in str(error.value) and "set" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named_before_any_document(monkeypatch):
    monkeypatch.setenv("EVALUATION_SETS", "/no/such/folder")
    step = Decontaminate(against=(Benchmark("$EVALUATION_SETS/gsm8k.jsonl"),))
    with pytest.raises(UserError, match=r"^\$EVALUATION_SETS/gsm8k.jsonl .*/no/such/folder/gsm8k.jsonl.*no such file"):
        step.measures[0].name


@pytest.mark.parametrize("settings, says", [
    ({"against": ()}, "against: must name"), ({"n": 0}, "n: must be at least 1"), ({"hits": 0}, "hits: must"),
    ({"action": "hide"}, "action: must be 'drop' or 'cut'"), ({"window": -1}, "window: must be at least 0"),
    ({"against": (Passages("a", ("b",)),) * 2}, "against: two are called 'a'"),
])
def test_bad_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Decontaminate(**{"against": (Passages("riddle", ("what has keys",)),), **settings})


def test_names_follow_content_and_travel(tmp_path):
    path = write(tmp_path / "set.jsonl", {"question": "a b c d e f g h", "answer": "i"})
    sets = Benchmark(path), Passages("set", ("A B C, D E F; G H I",)), Passages("set", ("a b c d e f g h j",))
    first, second, third = (Decontaminate(against=(found,)).measures[0] for found in sets)
    assert first.name == second.name != third.name and len({first, second, third}) == 3
    assert pickle.loads(pickle.dumps(first)).name == first.name


def test_memory_of_the_index():
    rng = np.random.default_rng(0)
    index = build_index({"set": [" ".join(map(str, rng.integers(0, 10**6, 1000))) for _ in range(100)]})
    table, = index.tables
    size = sum(array.nbytes for array in (table.hashes, table.owners, table.sieve))
    assert len(table.hashes) == 98_800 and 12 <= size / len(table.hashes) <= 14
