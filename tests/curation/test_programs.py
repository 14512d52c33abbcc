"""The stage Curate, through the code that runs experiments."""

import dataclasses
import json
import shutil
import signal

import pytest

from jaxgpt.core import config
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Experiment, Stage, Stopped, run
from jaxgpt.core.files import read_json
from jaxgpt.curation.duplicates import ExactDuplicates
from jaxgpt.curation.extract import Extract
from jaxgpt.curation.pipeline import read_corpus
from jaxgpt.curation.programs import Curate
from jaxgpt.curation.python_docs import PythonDocs
from jaxgpt.curation.quality import GopherQuality
from jaxgpt.curation.sources import Jsonl, TextFiles

SHORT = GopherQuality(min_words=3, max_mean_word_length=None, min_alphabetic_words=None, min_stop_words=None)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    texts = [f"this is the text of number {i} of the corpus" for i in range(40)] + ["short", "also short", ""]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def experiment(source, **settings):
    settings = {"steps": (SHORT, ExactDuplicates()), "val_fraction": 0.2, **settings}
    return Experiment(name="test", stages=(Curate(source=source, **settings),))


def outputs(workdir):
    return read_json(workdir / "curate" / "manifest.json")["outputs"]


def test_what_it_puts_out(corpus, tmp_path, capsys):
    run(experiment(Jsonl(str(corpus))), tmp_path / "w")
    found, folder = outputs(tmp_path / "w"), tmp_path / "w" / "curate"
    assert found["documents"] == "4-exact_duplicates" and found["skipped"] == 0
    counts = {step: amount["documents"] for step, amount in found["steps"].items()}
    assert counts.pop("train") + counts.pop("val") == 40
    assert counts == {"read": 42, "gopher_quality": 40, "exact_duplicates": 40}
    stats = read_json(folder / "stats.json")
    assert stats["read"]["by_source"] == {"corpus.jsonl": {"documents": 42, "bytes": stats["read"]["bytes"]}}
    assert set(found["sha256"]) == {"train", "val"} and len(found["sha256"]["train"]) == 64
    for name in ("train", "val"):
        texts = [item.text for item in read_corpus(folder / found["documents"], name)]
        assert len(texts) == stats[name]["documents"] and sum(map(len, texts)) == stats[name]["bytes"]
    assert "gopher_quality" in (folder / "report.md").read_text()
    assert "<svg" in (folder / found["report"]).read_text()
    assert "curate: gopher_quality: 40 documents, 0.00 MB" in capsys.readouterr().err


def test_a_clean_corpus_needs_no_steps(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"document {i}" for i in range(30)))
    run(experiment(TextFiles(str(tmp_path / "a.txt"), separator="\n\n"), steps=()), tmp_path / "w")
    found = outputs(tmp_path / "w")
    assert list(found["steps"]) == ["read", "train", "val"] and found["documents"] == "1-read"


def test_several_sources_are_one_corpus(corpus, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"the document with the number {i}" for i in range(20)))
    sources = Jsonl(str(corpus)), TextFiles(str(tmp_path / "a.txt"), separator="\n\n")
    run(experiment(sources), tmp_path / "w")
    stats = read_json(tmp_path / "w" / "curate" / "stats.json")
    for step, counts in (("read", (42, 20)), ("exact_duplicates", (40, 20))):
        assert {name: found["documents"] for name, found in stats[step]["by_source"].items()} == dict(
            zip(("corpus.jsonl", "a.txt"), counts))
    with pytest.raises(ValueError, match="source: give at least one"):
        experiment(())


def test_python_docs(tmp_path):
    source = PythonDocs(modules=("textwrap", "shlex", "no.such.module"), packages=("tiktoken",))
    run(experiment(source, steps=(Extract(extractor="tags"), ExactDuplicates())), tmp_path / "w")
    found = outputs(tmp_path / "w")
    assert found["skipped"] == 1 and found["steps"]["train"]["documents"] > 20
    assert any("wrap" in item.text for item in read_corpus(tmp_path / "w" / "curate"))


def test_steps_are_set_by_name(corpus):
    chosen = config.override(experiment(Jsonl(str(corpus))), "curate.steps.gopher_quality.min_words", "4")
    assert chosen.stages[0].steps[0].min_words == 4 and chosen.stages[0].steps[1] == ExactDuplicates()
    for path, message in (
            ("gopher_qualty.min_words", "no step is called 'gopher_qualty'; did you mean 'gopher_quality'"),
            ("gopher_quality", "'gopher_quality' is a step; name one of its fields"),
            ("gopher_quality.min_word", "no field of GopherQuality is called 'min_word'; did you mean")):
        with pytest.raises(UserError) as error:
            config.override(chosen, f"curate.steps.{path}", "4")
        assert message in str(error.value)
    with pytest.raises(UserError, match="'steps' are several; name one and its field, as in curate.steps.gopher_qu"):
        config.override(chosen, "curate.steps", "()")
    bare = experiment(Jsonl(str(corpus)), steps=())
    with pytest.raises(UserError, match="no step is called 'minhash'; valid: none"):
        config.override(bare, "curate.steps.minhash.rows", "8")


def test_the_machine_may_change_and_a_threshold_may_not(corpus, tmp_path):
    run(experiment(Jsonl(str(corpus))), tmp_path / "w")
    run(experiment(Jsonl(str(corpus)), workers=2), tmp_path / "w")


@dataclasses.dataclass(frozen=True)
class Reader(Stage):
    """Reads what was curated."""

    name: str = "reader"

    def inputs(self):
        return ("curate",)

    def run(self, context):
        return {"documents": len(list(read_corpus(context.path("curate", "documents"))))}


def test_other_settings_repeat_what_depends_on_them_until_somebody_has_read_it(corpus, tmp_path, capsys):
    workdir = tmp_path / "w"
    run(experiment(Jsonl(str(corpus))), workdir)
    kept = {path: path.stat().st_mtime_ns for path in workdir.glob("curate/[12]-*/*.parquet")}
    assert len(kept) == 2
    other = experiment(Jsonl(str(corpus)), val_fraction=0.3, steps=(SHORT, ExactDuplicates(min_characters=2)))
    run(other, workdir)
    said = capsys.readouterr()
    assert "[1/1] curate: again, since steps[1].min_characters is 0 there and 2 here" in said.out
    assert "4-exact_duplicates: anew" in said.err and "1-read: anew" not in said.err
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert read_json(workdir / "curate" / "manifest.json")["settings"]["val_fraction"] == 0.3
    run(dataclasses.replace(other, stages=(*other.stages, Reader())), workdir)
    first = dataclasses.replace(other, stages=(*experiment(Jsonl(str(corpus))).stages, Reader()))
    with pytest.raises(UserError, match=r"min_characters is 2 there and 0 here; choose another --workdir, or remove "
                                        r"what was made from it \(.*reader\) to do again what that changes"):
        run(first, workdir)
    shutil.rmtree(workdir / "reader")
    run(first, workdir)
    assert outputs(workdir)["documents"] == "4-exact_duplicates" and (workdir / "reader" / "manifest.json").exists()


def test_bad_input(corpus, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(UserError, match="stage 'curate': the corpus is empty after the step 'read'"):
        run(experiment(TextFiles(str(tmp_path / "empty.txt"))), tmp_path / "w1")
    hard = (GopherQuality(min_words=10_000), ExactDuplicates())
    with pytest.raises(UserError, match="empty after the step 'gopher_quality'; dropped: too few words 42"):
        run(experiment(Jsonl(str(corpus)), steps=hard), tmp_path / "w2")
    with pytest.raises(UserError, match="no such file"):
        run(experiment(TextFiles(str(tmp_path / "nowhere"))), tmp_path / "w3")
    assert not list(tmp_path.glob("w?/curate/manifest.json"))
    for wrong in ({"val_fraction": 1.0}, {"split": "random"}, {"workers": 0}, {"runner": "Spark"},
                  {"steps": (SHORT, SHORT)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Curate(**wrong)


def test_a_stop_is_the_experiments(corpus, tmp_path):
    from jaxgpt.core.experiment import Context
    chosen = experiment(Jsonl(str(corpus)))
    context = Context(chosen, chosen.stages[0], tmp_path / "w")
    context.stop.signal = signal.SIGTERM
    with pytest.raises(Stopped):
        chosen.stages[0].run(context)
    run(chosen, tmp_path / "w")
    assert outputs(tmp_path / "w")["steps"]["read"]["documents"] == 42
