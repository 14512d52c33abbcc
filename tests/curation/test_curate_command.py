"""`jaxgpt curate` as a person meets it."""

import json
import signal
import subprocess
import sys
import time

import pytest

from jaxgpt.cli import main
from jaxgpt.core.files import read_json
from jaxgpt.curation.pipeline import read_corpus

RECIPE = '''
import dataclasses
import time

from jaxgpt.curation.document import Drop
from jaxgpt.curation.duplicates import ExactDuplicates


@dataclasses.dataclass(frozen=True)
class Long:
    """Drops what is short, and takes its time."""

    name: str = "long"
    least: int = 10
    seconds: float = 0.0
    measures = ()

    def __post_init__(self):
        if self.least < 1:
            raise ValueError(f"least: must be at least 1, not {self.least}")

    def __call__(self, document):
        time.sleep(self.seconds)
        return document if len(document.text) >= self.least else Drop("too short", len(document.text))


def get_config():
    return Long(), ExactDuplicates()
'''


@pytest.fixture
def words(tmp_path, monkeypatch):
    """What to type after `jaxgpt curate`, for three files of thirty lines in the current folder."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abc"):
        texts = [*(f"line {i} of file {number}" for i in range(30)), "short", "line 1 of file 0"]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "recipe.py").write_text(RECIPE)
    return ["curate", "--input", "*.jsonl", "--output", "out", "--recipe", "recipe.py"]


def refused(capsys, words):
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("jaxgpt: ") and "Traceback" not in " ".join(said)
    return said[-1].removeprefix("jaxgpt: ")


def test_it_prints_the_funnel(words, tmp_path, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split() for line in out[:4]] == [
        ["Step", "In", "Kept", "Dropped", "Share", "Text", "kept"],
        ["read", "96", "96", "1.56", "kB"], ["long", "96", "93", "3", "3%", "1.55", "kB"],
        ["exact_duplicates", "93", "90", "3", "3%", "1.5", "kB"]]
    assert out[4:] == ["documents: out/2-exact_duplicates", "report: out/report.html"]
    assert len(list(read_corpus("out"))) == len(list(read_corpus("out", "train"))) == 90
    assert (tmp_path / "out" / "report.md").read_text().startswith("# out\n")


def test_again_and_with_another_threshold(words, capsys):
    main(words)
    capsys.readouterr()
    assert main(words) == 0
    assert "out: complete, and nothing has changed" in capsys.readouterr().err
    assert main([*words, "--set", "long.least=3"]) == 0
    said = capsys.readouterr()
    assert "1-read: anew, since steps.long.least is 10 there and 3 here" in said.err and "96    96" in said.out
    assert main([*words, "--without", "long", "--val-fraction", "0.3"]) == 0
    assert [step["step"] for step in read_json("out/corpus.json")["steps"]] == ["read", "exact_duplicates"]
    assert len(list(read_corpus("out", "val"))) > 10


def test_an_experiment_is_a_recipe_too(words, tmp_path, capsys):
    (tmp_path / "experiment.py").write_text(
        "from jaxgpt.core.experiment import Experiment\nfrom jaxgpt.curation.programs import Curate\n"
        "from jaxgpt.curation.duplicates import ExactDuplicates\n"
        "def get_config():\n    return Experiment('x', (Curate(steps=(ExactDuplicates(),)),))\n")
    assert main([*words[:-1], "experiment.py"]) == 0
    assert [step["step"] for step in read_json("out/corpus.json")["steps"]] == ["read", "exact_duplicates"]


@pytest.mark.parametrize("more, message", [
    (["--set", "lang.least=3"], "no step is called 'lang'; did you mean 'long'? valid: long, exact_duplicates"),
    (["--set", "long.most=3"], "--set long.most: no field of Long is called 'most'; valid: least, name, seconds"),
    (["--set", "long.least=0"], "--set long.least=0: least: must be at least 1, not 0"),
    (["--set", "long.least=many"], "'many' is not of type int"),
    (["--set", "long=3"], "--set long=3: write STEP.FIELD=VALUE, as in --set gopher_quality.min_words=40"),
    (["--without", "minhash"], "--without minhash: no step is called that; valid: long, exact_duplicates"),
    (["--runner", "Flink"], "--runner Flink: there is no runner of that name; valid: FnApiRunner, DataflowRunner"),
    (["--workers", "0"], "--workers 0: at least 1"),
    (["--val-fraction", "1"], "--val-fraction 1.0: must be at least 0 and below 1, not 1.0"),
    (["--field", "body"], "a.jsonl, line 1: no text in the field 'body'; its fields are 'text'"),
    (["--recipe", "nosuch.py"], "nosuch.py: no such experiment file"),
    (["--set", "long.name=exact_duplicates"], "steps: two are called 'exact_duplicates'; give one another name="),
    (["--set", "long.name=../up"], "steps: the name '../up' is that of a folder: letters, digits, _ and - only"),
    (["--output", ""], "--output: an empty name; give the folder that the corpus goes to"),
    (["--output", "."], "a.jsonl: lies in ., where the corpus goes; choose another folder for the corpus, or other"),
    (["--", "stray"], "stray: not expected there; options for Beam begin with -- and follow a lone --"),
    (["--", "--no_such_option=1"], "--no_such_option: Beam has no such option for FnApiRunner"),
])
def test_mistakes_are_one_sentence(words, capsys, more, message):
    assert message in refused(capsys, [*words, *more])


def test_files_that_are_not_there_or_not_known(words, tmp_path, capsys):
    words[2] = "*.warc.gz"
    assert refused(capsys, words).startswith("*.warc.gz: no such file (looked from ")
    (tmp_path / "a.pdf").write_text("x")
    words[2] = "a.pdf"
    assert "a.pdf: not a kind of file that is read here; those end in .warc" in refused(capsys, words)


def test_what_a_run_wrote_is_not_read_by_it(words, capsys):
    assert main(words) == 0
    words[2] = "out/2-*/*.parquet"
    assert "/a-" in (said := refused(capsys, words)) and "lies in out, where the corpus goes" in said
    assert main([*words[:4], "other", *words[5:]]) == 0
    assert "exact_duplicates 90 90" in " ".join(capsys.readouterr().out.split())


def test_files_of_several_kinds_are_one_corpus(words, tmp_path, capsys):
    (tmp_path / "d.txt").write_text("a line of another file\n")
    assert main([*words[:2], "*.jsonl", "d.txt", *words[3:]]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "read 97 97" in out and "exact_duplicates 94 91" in out
    texts = {item.source: item.text for item in read_corpus("out")}
    assert set(texts) == {"a.jsonl", "b.jsonl", "c.jsonl", "d.txt"} and texts["d.txt"] == "a line of another file\n"
    assert main([*words[:2], "*.jsonl", *words[3:]]) == 0  # one source less: what is left of the other goes
    assert "exact_duplicates 93 90" in " ".join(capsys.readouterr().out.split())


def test_a_recipe_that_is_none(words, tmp_path, capsys):
    (tmp_path / "recipe.py").write_text("def get_config():\n    return 3\n")
    assert "recipe.py: get_config() returns int; it should return a tuple of steps" in refused(capsys, words)


def test_what_cannot_be_read_is_named_and_fails_when_strict(words, tmp_path, capsys):
    (tmp_path / "d.warc").write_bytes(b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 12\r\n\r\n"
                                      b"no http here\r\n\r\n"
                                      b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\n"
                                      b"Content-Length: 26\r\n\r\nThere is one document here\r\n\r\n")
    words[2] = "d.warc"
    assert main(words) == 0
    assert "unreadable: no HTTP header: 1" in capsys.readouterr().err
    assert main([*words, "--strict"]) == 1


def test_two_runs_do_not_share_a_folder(words, capsys):
    import fcntl
    main(words)
    with open("out/.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refused(capsys, words) == "out: another run is working there; wait for it, or choose another --output"


@pytest.mark.slow
@pytest.mark.parametrize("number, workers, status", [(signal.SIGINT, "1", 130), (signal.SIGTERM, "2", 0)])
def test_a_signal_stops_and_the_same_command_goes_on(words, tmp_path, number, workers, status):
    command = [sys.executable, "-m", "jaxgpt.cli", *words, "--set", "long.seconds=0.03", "--workers", workers]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob("1-read/*.json")):
        time.sleep(0.02)
        assert running.poll() is None, running.stderr.read()
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == status and "Traceback" not in err
    assert out.startswith("stopped; what is complete is kept. To go on:\n  jaxgpt curate --input '*.jsonl' --output")
    assert not (tmp_path / "out" / "corpus.json").exists() and not (tmp_path / "out" / ".run").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "exact_duplicates  93    90" in done.stdout
