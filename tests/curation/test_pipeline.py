"""The whole pipeline on small real files: counts, reruns, crashes, any number of workers, the same bytes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import read_json
from jaxgpt.core.metrics import Progress
from jaxgpt.curation import store
from jaxgpt.curation.control import Control, Halted
from jaxgpt.curation.document import Drop, document
from jaxgpt.curation.duplicates import ExactDuplicates
from jaxgpt.curation.engine import Engine, Job, make_tasks
from jaxgpt.curation.parts import Part, find_parts
from jaxgpt.curation.phases import cut, keys_of, segments, settings_of
from jaxgpt.curation.pipeline import read_corpus, run_pipeline, verify_counts
from jaxgpt.curation.recipe import fineweb
from jaxgpt.curation.sources import Jsonl, TextFiles
from jaxgpt.curation.split import Split
from jaxgpt.curation.warc import Warc
from jaxgpt.curation.work import copy_id


@dataclasses.dataclass(frozen=True)
class Words:
    """How many words a text has."""

    name: str = "words"

    def __call__(self, text):
        return {"count": len(text.split()), "mean": len(text) / max(1, len(text.split())), "first": text[:1]}


@dataclasses.dataclass(frozen=True)
class Enough:
    """Drops texts of few words, and fails where it is told to."""

    name: str = "enough"
    least: int = 4
    fails_on: str = ""
    measures = (Words(),)

    def __call__(self, item):
        if self.fails_on and self.fails_on in item.text:
            raise UserError(f"list.txt: holds '{self.fails_on}'")
        count = item.scores["words"]["count"]
        return item if count >= self.least else Drop("too few words", count)


@dataclasses.dataclass(frozen=True)
class Upper:
    """An edit."""

    name: str = "upper"
    measures = ()

    def __call__(self, item):
        return item.with_text(item.text.upper())


class Voice:
    """Hears everything; asks for a stop when told to."""

    def __init__(self, stop=lambda: False):
        self.lines, self.should_stop = [], stop

    def log(self, text):
        self.lines.append(text)

    def progress(self, total, unit, label):
        return Progress(total, unit, label, stream=open(os.devnull, "w"))


STEPS = (Enough(), Upper(), ExactDuplicates())


@pytest.fixture
def corpus(tmp_path):
    """Three files of JSON lines: some lines are short, some empty, some say what another said."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate("abc"):
        texts = [f"line {i} of the file {number if i % 3 else 'of all'}" for i in range(30 + 10 * number)]
        texts += ["too short", ""]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def curate(corpus, output, steps=STEPS, *, voice=None, **settings):
    settings.setdefault("split", Split(val_fraction=0.2))
    return run_pipeline(Jsonl(f"{corpus}/*.jsonl"), steps, output, voice=voice or Voice(), **settings)


def files(folder):
    """{path: content} of what a run left, but for what it remembers of the input files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*"))
            if path.is_file() and path.name not in (".inputs.json", ".lock")}


def times(folder):
    """{path: when it was written}."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in Path(folder).rglob("*.*")
            if path.is_file()}


# --- counts ----------------------------------------------------------------------------------------------------------

def test_counts_add_up_and_files_hold_what_is_counted(corpus, tmp_path):
    found = curate(corpus, tmp_path / "out")
    read, enough, upper, unique = found["steps"]
    assert read["in"]["documents"] == 126 and read["dropped"] == {"empty text": {"documents": 3, "bytes": 0}}
    assert enough["dropped"]["too few words"] == {"documents": 3, "bytes": 27}
    assert upper["documents"] == 120 and not upper["dropped"]
    # of the lines that all files share, 10 + 14 + 17, the longest file has all
    assert unique["documents"] == 120 - 10 - 14 and unique["dropped"]["duplicate"]["documents"] == 24
    assert found["splits"]["train"]["documents"] + found["splits"]["val"]["documents"] == 96
    assert {name: amount["documents"] for name, amount in read["by_source"].items()} == {
        "a.jsonl": 31, "b.jsonl": 41, "c.jsonl": 51}
    verify_counts(found["steps"])
    documents = list(read_corpus(tmp_path / "out"))
    assert len({item.text for item in documents}) == len(documents) == 96
    assert all(item.text.isupper() for item in documents)
    assert sum(len(item.text.encode()) for item in documents) == unique["bytes"]
    sides = {name: list(read_corpus(tmp_path / "out", name)) for name in ("train", "val")}
    assert [len(side) for side in sides.values()] == [found["splits"][name]["documents"] for name in sides]
    assert sorted(item.id for side in sides.values() for item in side) == sorted(item.id for item in documents)


def test_what_is_dropped_can_be_read(corpus, tmp_path):
    curate(corpus, tmp_path / "out")
    path = next((tmp_path / "out" / "3-enough" / "dropped").glob("a-*.parquet"))
    table = pyarrow.parquet.read_table(path).to_pylist()
    assert table == [{
        "id": document("too short", "").id, "text": "too short", "url": "", "date": "", "source": "a.jsonl",
        "media_type": "text/plain", "step": "enough", "reason": "too few words", "value": 2.0, "detail": None}]
    scores = pyarrow.parquet.read_table(next((tmp_path / "out" / "2-scores").glob("a-*.parquet"))).to_pylist()
    assert scores[0] == {"id": document("line 0 of the file of all", "").id, "words:count": 7, "words:mean": 25 / 7,
                         "words:first": "l"}
    kept = [row for path in (tmp_path / "out" / "4-exact_duplicates").glob("*.parquet")
            for row in pyarrow.parquet.read_table(path).to_pylist()]
    sizes = sorted(row["cluster_size"] for row in kept)
    assert sizes.count(3) == 10 and sizes.count(2) == 4 and sizes.count(1) == 82
    assert all((row["cluster"] == row["id"]) == (row["cluster_size"] > 1) for row in kept)


def test_counts_that_do_not_add_up_are_an_error(corpus, tmp_path):
    steps = curate(corpus, tmp_path / "out")["steps"]
    for number, key in ((0, "documents"), (1, "documents"), (1, "bytes")):
        wrong = json.loads(json.dumps(steps))
        wrong[number][key] += 1
        with pytest.raises(RuntimeError, match="step '"):
            verify_counts(wrong)


def test_every_warc_file_adds_up(data_folder, tmp_path):
    """The whole recipe on real files, some of them broken: each file by itself, at every step, and all together."""
    source, out = Warc(f"{data_folder}/warc/*"), tmp_path / "out"
    found = run_pipeline(source, fineweb(), out, voice=Voice(), split=None)
    verify_counts(found["steps"])
    phases = [read_json(path) for path in sorted(out.glob("*/manifest.json"))]
    assert len(phases[0]["parts"]) == 8
    for number, path in enumerate(source.files()):
        records, steps = list(source.read(path)), []
        for phase in phases:
            entry = phase["parts"][number]
            record = read_json(out / phase["phase"] / f"{entry['part']}.json")
            steps += record.get("steps", [])
            if phase["kind"] == "documents":
                dropped = sum(amount["documents"] for step in record["steps"] for amount in step["dropped"].values())
                assert {name: file["rows"] for name, file in entry["files"].items()} == {
                    f"{entry['part']}.parquet": steps[-1]["documents"], f"dropped/{entry['part']}.parquet": dropped}
        assert entry["path"] == path
        assert [step["step"] for step in steps] == ["read", *(step.name for step in fineweb())]
        verify_counts(steps)
        assert steps[0]["in"]["documents"] == len(records)
        assert steps[0]["documents"] == sum(not isinstance(record, Drop) for record in records)


def test_copies_within_a_part_are_told_apart_and_stay_on_one_side(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(["the same"] * 3 + [f"text {i}" for i in range(40)]))
    source = TextFiles(str(tmp_path / "a.txt"), separator="\n\n")
    run_pipeline(source, (), tmp_path / "all", voice=Voice(), split=Split(val_fraction=0.5))
    same = [item.id for item in read_corpus(tmp_path / "all") if item.text == "the same"]
    assert same == [document("the same", "").id, copy_id(same[0], 2), copy_id(same[0], 3)] and len(set(same)) == 3
    sides = [{item.text for item in read_corpus(tmp_path / "all", name)} for name in ("train", "val")]
    assert not sides[0] & sides[1]
    found = run_pipeline(source, (ExactDuplicates(),), tmp_path / "one", voice=Voice())
    assert found["steps"][-1]["documents"] == 41
    row, = (row for path in (tmp_path / "one" / "2-exact_duplicates").glob("*.parquet")
            for row in store.read_rows(str(path)) if row.document.text == "the same")
    assert row.cluster_size == 3


def test_the_tail_of_one_text(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name} line\n" * 500 + "é")
    source = TextFiles(str(tmp_path / "*.txt"))
    run_pipeline(source, (), tmp_path / "out", voice=Voice(), split=Split("tail", 0.1))
    text = "".join((tmp_path / f"{name}.txt").read_text() for name in "ab")
    sides = {name: "".join(item.text for item in read_corpus(tmp_path / "out", name)) for name in ("train", "val")}
    assert sides["train"] == text[:int(len(text) * 0.9)] and sides["train"] + sides["val"] == text
    counts = [len(list(read_corpus(tmp_path / "out", name))) for name in ("train", "val")]
    assert counts == [2, 1]  # the second document is divided
    read = [*(tmp_path / "out" / "1-read").glob("*.parquet")]
    before = [path.stat().st_mtime_ns for path in read]
    run_pipeline(source, (), tmp_path / "out", voice=Voice(), split=Split("tail", 0.75))
    assert before == [path.stat().st_mtime_ns for path in read]
    train = "".join(item.text for item in read_corpus(tmp_path / "out", "train"))
    assert train == text[:int(len(text) * 0.25)]


def test_a_corpus_may_stay_whole(corpus, tmp_path):
    found = curate(corpus, tmp_path / "out", split=None)
    assert found["splits"] == {} and len(list(read_corpus(tmp_path / "out"))) == 96
    with pytest.raises(UserError, match="was not divided"):
        list(read_corpus(tmp_path / "out", "train"))


# --- again -----------------------------------------------------------------------------------------------------------

def test_a_second_run_does_nothing_and_says_so(corpus, tmp_path):
    first = curate(corpus, tmp_path / "out")
    before, voice = times(tmp_path / "out"), Voice()
    assert curate(corpus, tmp_path / "out", voice=voice) == first
    assert times(tmp_path / "out") == before
    assert voice.lines == [f"{tmp_path / 'out'}: complete, and nothing has changed"]


def test_a_new_threshold_repeats_what_depends_on_it(corpus, tmp_path):
    curate(corpus, tmp_path / "out")
    before, voice = times(tmp_path / "out"), Voice()
    steps = (Enough(least=1), *STEPS[1:])
    again = curate(corpus, tmp_path / "out", steps, voice=voice)
    assert again["steps"][1]["documents"] == 123
    assert voice.lines == ["3-enough: anew, since steps.enough.least is 4 there and 1 here"]
    after = times(tmp_path / "out")
    parts = [name for name in before if name.endswith(".parquet") or "-" in Path(name).name]
    touched = {name for name in parts if before[name] != after[name]}
    assert touched == {name for name in parts if name.startswith(("3-", "4-"))} and len(touched) > 12
    fresh = curate(corpus, tmp_path / "fresh", steps)
    assert again == fresh and files(tmp_path / "out") == files(tmp_path / "fresh")


def test_a_step_less_leaves_no_folder_behind(corpus, tmp_path):
    curate(corpus, tmp_path / "out")
    (tmp_path / "out" / "5-mine").mkdir()  # not ours
    curate(corpus, tmp_path / "out", STEPS[:1])
    assert sorted(name for name in os.listdir(tmp_path / "out") if name[0].isdigit()) == [
        "1-read", "2-scores", "3-enough", "5-mine"]


def test_a_changed_file_is_done_again_alone(corpus, tmp_path):
    curate(corpus, tmp_path / "out")
    before = times(tmp_path / "out")
    with open(corpus / "b.jsonl", "a") as file:
        file.write('{"text": "one line more than before"}\n')
    again = curate(corpus, tmp_path / "out")
    assert again["steps"][0]["in"]["documents"] == 127
    after = times(tmp_path / "out")
    for phase in ("1-read", "2-scores", "3-enough"):
        kept = {Path(name).name[0] for name in before if name.startswith(phase) and name.endswith(".parquet")
                and before[name] == after.get(name)}
        assert kept == {"a", "c"}
    curate(corpus, tmp_path / "fresh")
    assert files(tmp_path / "out") == files(tmp_path / "fresh")  # the old file's parts are gone, too


def test_a_damaged_part_is_done_again(corpus, tmp_path):
    curate(corpus, tmp_path / "out")
    whole = files(tmp_path / "out")
    for name in [name for name in whole if name.startswith("3-enough/b-")]:
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / "3-enough" / "manifest.json").unlink()
    path = next((tmp_path / "out" / "3-enough").glob("a-*.parquet"))
    path.write_bytes(path.read_bytes()[:-1])
    curate(corpus, tmp_path / "out")
    assert files(tmp_path / "out") == whole


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:100])])
def test_a_complete_corpus_that_lost_a_file_is_mended(corpus, tmp_path, harm):
    curate(corpus, tmp_path / "out")
    whole = files(tmp_path / "out")
    for folder in ("2-scores", "4-exact_duplicates"):
        harm(next((tmp_path / "out" / folder).glob("a-*.parquet")))
    curate(corpus, tmp_path / "out")
    assert files(tmp_path / "out") == whole


@pytest.mark.parametrize("name", ["corpus.json", "3-enough/manifest.json", ".inputs.json"])
def test_a_damaged_record_of_what_was_done_is_written_anew(corpus, tmp_path, name):
    curate(corpus, tmp_path / "out")
    whole = files(tmp_path / "out")
    (tmp_path / "out" / name).write_text("[half")
    curate(corpus, tmp_path / "out")
    assert files(tmp_path / "out") == whole


def test_what_is_not_ours_stays(corpus, tmp_path):
    for name in ("2024-data/manifest.json", "2024-data/precious", ".run/precious"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text('"hi"')
    curate(corpus, tmp_path / "out")
    curate(corpus, tmp_path / "out", STEPS[:1])
    assert {"2024-data/manifest.json", "2024-data/precious", ".run/precious"} <= set(files(tmp_path / "out"))


@dataclasses.dataclass(frozen=True)
class Bad:
    """Gives nothing for some documents."""

    name: str = "bad"

    def __call__(self, item):
        return None if "of all" in item.text else item


def test_what_is_no_step_is_told(corpus, tmp_path):
    with pytest.raises(UserError, match="step 'bad': gave NoneType, expected a Document or a Drop"):
        curate(corpus, tmp_path / "out", (Bad(),))
    for wrong in (Upper, "upper", object()):
        with pytest.raises(ValueError, match="is no step; a step is a frozen dataclass, such as GopherQuality"):
            cut((wrong,))


def test_an_incomplete_corpus_is_not_read(corpus, tmp_path):
    with pytest.raises(UserError, match="holds no complete corpus"):
        list(read_corpus(tmp_path))
    curate(corpus, tmp_path / "out")
    (tmp_path / "out" / "corpus.json").unlink()
    with pytest.raises(UserError, match="holds no complete corpus"):
        list(read_corpus(tmp_path / "out"))
    assert len(list(read_corpus(tmp_path / "out" / "3-enough"))) == 120  # a phase by itself can be read
    with pytest.raises(UserError, match="was not divided into train and val"):
        list(read_corpus(tmp_path / "out" / "3-enough", "val"))
    with pytest.raises(UserError, match="holds no complete corpus"):
        list(read_corpus(tmp_path / "out" / "2-scores"))


def test_a_stop_leaves_nothing_that_looks_whole_and_the_same_call_goes_on(corpus, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(Halted):  # as soon as the first part is through the first phase
        curate(corpus, output, voice=Voice(lambda: any(output.glob("1-read/*.json"))))
    assert not list(output.glob("*/manifest.json")) and not (output / "corpus.json").exists()
    assert not list(output.rglob("*.partial")) and not (output / ".run").exists()
    curate(corpus, output)
    curate(corpus, tmp_path / "fresh")
    assert files(output) == files(tmp_path / "fresh")


def test_far_away(corpus, tmp_path):
    output = f"memory://{tmp_path.name}"
    try:
        far, near = curate(corpus, output), curate(corpus, tmp_path / "out")
        assert far == near and list(read_corpus(output)) == list(read_corpus(tmp_path / "out"))
    finally:
        store.remove(output)


# --- any order, any number of workers --------------------------------------------------------------------------------

def test_bins_hold_about_as_much_and_come_in_turn():
    parts = [Part(f"p{size}", "", size, "") for size in (5, 90, 10, 30, 40, 50)]
    tasks = make_tasks(parts, [["k"] * 6], bins=2)
    loads = {home: sum(task.part.bytes for task in tasks if task.bin == home) for home in ("0000", "0001")}
    assert loads == {"0000": 120, "0001": 105} and [task.bin for task in tasks[:2]] == ["0000", "0001"]
    assert [task.bin for task in make_tasks(parts, [["k"] * 6], bins=None)] == ["p90", "p50", "p40", "p30", "p10", "p5"]


def test_the_order_of_parts_does_not_matter(corpus, tmp_path):
    """The engine itself, given the tasks in the opposite order and each part a bin of its own, as clusters have it."""
    curate(corpus, tmp_path / "out")
    source, output = Jsonl(f"{corpus}/*.jsonl"), str(tmp_path / "other")
    phases, parts = cut(STEPS, Split(val_fraction=0.2)), find_parts(source.files(""), f"{output}/.inputs.json")
    keys = keys_of(phases, [settings_of(phase, (source,)) for phase in phases], parts)
    tasks = make_tasks(parts, keys, bins=None)[::-1]
    job = Job(output, (source,), phases, Control(output))
    engine = Engine(job, tasks, 0, len(segments(phases)) - 1, runner="FnApiRunner", workers=1, options=())
    engine.run()
    assert engine.error is None
    curate(corpus, output)  # finds all parts done and writes the manifests
    store.remove(f"{output}/.run")
    assert files(output) == files(tmp_path / "out")


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(corpus, tmp_path):
    curate(corpus, tmp_path / "one")
    curate(corpus, tmp_path / "two", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.slow
def test_a_job_service_writes_the_same_bytes(corpus, tmp_path):
    """The way to the runners of clusters: the graph goes to a service by Beam's protocol, which calls for workers."""
    curate(corpus, tmp_path / "one")
    curate(corpus, tmp_path / "served", runner="PortableRunner",
           options=["--job_endpoint=embed", "--environment_type=LOOPBACK"])
    assert files(tmp_path / "one") == files(tmp_path / "served")


RECIPE = '''
import dataclasses
import time

from jaxgpt.curation.duplicates import ExactDuplicates


@dataclasses.dataclass(frozen=True)
class Slow:
    name: str = "slow"
    measures = ()

    def __call__(self, document):
        time.sleep(0.01)
        return document


def get_config():
    return Slow(), ExactDuplicates()
'''


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_in_the_middle(corpus, tmp_path, workers):
    """kill -9 while parts are being written; the same command then ends with the bytes of a run that was left alone."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)

    def command(output):
        return [sys.executable, "-m", "jaxgpt.cli", "curate", "--input", f"{corpus}/*.jsonl", "--output", str(output),
                "--recipe", str(recipe), "--workers", str(workers)]

    output, fresh = tmp_path / "killed" / "out", tmp_path / "fresh" / "out"
    running = subprocess.Popen(command(output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list(output.glob("1-read/*.json")):
        time.sleep(0.02)
        assert running.poll() is None, running.stderr.read()
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert not (output / "corpus.json").exists()
    for folder in (output, fresh):
        subprocess.run(command(folder), check=True, capture_output=True, timeout=300)
    assert files(output) == files(fresh)


# --- mistakes --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_mistake_in_a_worker_is_one_sentence(corpus, tmp_path, workers, capfd):
    steps, hook = (Enough(fails_on="line 7 of the file 1"), *STEPS[1:]), threading.excepthook
    with pytest.raises(UserError) as error:
        curate(corpus, tmp_path / "out", steps, workers=workers)
    assert str(error.value) == "list.txt: holds 'line 7 of the file 1'"
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "out").glob("*/manifest.json")) and threading.excepthook is hook


def test_a_malformed_file_is_named(corpus, tmp_path):
    (corpus / "b.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(UserError, match="b.jsonl, line 2: not valid JSON"):
        curate(corpus, tmp_path / "out")


def test_nothing_left(corpus, tmp_path):
    with pytest.raises(UserError, match="the corpus is empty after the step 'enough'; dropped: too few words 123"):
        curate(corpus, tmp_path / "out", (Enough(least=1000), *STEPS[1:]))
    assert not (tmp_path / "out" / "corpus.json").exists()
    with pytest.raises(UserError, match="the split leaves no document for 'val'"):
        curate(corpus, tmp_path / "out", split=Split(val_fraction=1e-9))
    assert curate(corpus, tmp_path / "out")["steps"]


def test_a_runner_that_cannot_start_is_one_sentence(corpus, tmp_path):
    with pytest.raises(UserError, match=r"^--runner PortableRunner: Beam could not run the job, and says: .*--job_endpoint"
                                        r".* \(NotImplementedError; options for Beam follow a lone --\)$"):
        curate(corpus, tmp_path / "out", runner="PortableRunner")
    assert not (tmp_path / "out" / ".run").exists() and curate(corpus, tmp_path / "out")["steps"]


def test_a_runner_that_there_is_not(corpus, tmp_path):
    for runner, message in (("SparkRuner", "valid: FnApiRunner, DataflowRunner"), ("DirectRunner", "may download")):
        with pytest.raises(UserError, match=message):
            curate(corpus, tmp_path / "out", runner=runner)
    with pytest.raises(UserError, match="--workers 0: at least 1"):
        curate(corpus, tmp_path / "out", workers=0)
    with pytest.raises(UserError, match="--nosuch: Beam has no such option for FnApiRunner"):
        curate(corpus, tmp_path / "out", options=["--nosuch=1"])
    assert not (tmp_path / "out").exists()


# --- memory ----------------------------------------------------------------------------------------------------------

MEMORY = '''
import dataclasses, os, resource, sys
from jaxgpt.curation.control import Control, Watch
from jaxgpt.curation.document import Drop, document
from jaxgpt.curation.duplicates import ExactDuplicates
from jaxgpt.curation.parts import Part
from jaxgpt.curation.phases import cut
from jaxgpt.curation.work import work


@dataclasses.dataclass(frozen=True)
class Source:
    def read(self, path):
        for i in range(int(path)):
            yield document(f"{i} " + "a line of text\\n" * 400, "s")


@dataclasses.dataclass(frozen=True)
class Size:
    name: str = "size"

    def __call__(self, text):
        return {"characters": len(text)}


@dataclasses.dataclass(frozen=True)
class Odd:
    name: str = "odd"
    measures = (Size(),)

    def __call__(self, item):
        return item if int(item.text.split()[0]) % 2 else Drop("even")


folder, count = sys.argv[1:]
part, control = Part("a", count, 1, ""), Control(folder)
for number, phase in enumerate(cut((Odd(), ExactDuplicates()))):
    work(folder, phase, part, "key", Watch(control, number, "a"), source=Source())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
'''


@pytest.mark.slow
def test_memory_does_not_grow_with_the_part(tmp_path):
    """Every phase, on a part of 24 MB and on one of 240 MB."""
    peaks = []
    for count in (4000, 40_000):
        words = [sys.executable, "-c", MEMORY, str(tmp_path / str(count)), str(count)]
        peaks.append(int(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    assert store.row_count(str(next((tmp_path / "40000" / "3-odd").glob("*.parquet")))) == 20_000
    assert peaks[1] < 1.2 * peaks[0], peaks
