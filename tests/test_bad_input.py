"""Each mistake, end to end through the command line: one sentence with names and numbers, status 2, nothing lost."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny

from jaxgpt.cli import main
from jaxgpt.core.checkpoint import complete_steps
from jaxgpt.core.files import read_json

EXPERIMENT = '''
import sys
sys.path.insert(0, {tests!r})
import tiny

def get_config():
    return tiny.experiment(tiny.Path({corpus!r}))
'''


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing is written to the home folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def data(tiny_data, tmp_path):
    """(experiment file, workdir) with documents, tokenizer and tokens made, on eight devices."""
    return started(tiny_data, tmp_path / "work", tmp_path)


@pytest.fixture
def base(tiny_base, tmp_path):
    """The same with a base model."""
    return started(tiny_base, tmp_path / "work", tmp_path, without="sft")


def started(tiny_run, workdir, tmp_path, without="nothing"):
    corpus, made = tiny_run
    shutil.copytree(made, workdir, ignore=shutil.ignore_patterns(without))
    file = tmp_path / "experiment.py"
    file.write_text(EXPERIMENT.format(tests=str(Path(tiny.__file__).parent), corpus=str(corpus)))
    return file, workdir


def files(folder):
    return {path.relative_to(folder): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


def refused(capsys, *words):
    """The sentence that a command ends with, after checking that it is one, with status 2."""
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("jaxgpt: ") and "Traceback" not in captured.err + captured.out
    assert sum(line.startswith("jaxgpt: ") for line in captured.err.splitlines()) == 1
    return last.removeprefix("jaxgpt: ")


def run(file, workdir, *words):
    return ["run", file, "--workdir", workdir, *words]


# --- documents -------------------------------------------------------------------------------------------------------

@pytest.fixture
def fresh(tiny_data, tmp_path):
    """An experiment file whose corpus is tmp_path/corpus.txt, and a workdir with nothing in it."""
    file = tmp_path / "experiment.py"
    file.write_text(EXPERIMENT.format(tests=str(Path(tiny.__file__).parent), corpus=str(tmp_path / "corpus.txt")))
    return file, tmp_path / "work", tmp_path / "corpus.txt"


@pytest.mark.parametrize("content, message", [
    (None, "corpus.txt: no such file (looked from "),
    (b"", "stage 'curate': the corpus is empty after the step 'read'"),
    (b"one document\n", "stage 'curate': the split leaves no document for '"),
    (b"fine\nnot \xff fine\n", "corpus.txt, line 2: byte 4 (0xff) is not UTF-8"),
])
def test_a_missing_empty_or_malformed_corpus(fresh, tiny_data, capsys, content, message):
    file, workdir, corpus = fresh
    if content is not None:
        corpus.write_bytes(content)
    assert message in refused(capsys, *run(file, workdir))
    shutil.copy(tiny_data[0], corpus)  # put right, the same command goes on
    assert main([*map(str, run(file, workdir, "--stage", "curate"))]) == 0


@pytest.mark.parametrize("line, message", [
    ('{"text": "a", ', "line 2: not valid JSON"), ('["a"]', "line 2: expected a JSON object, got list"),
    ('{"body": "a", "title": "b"}', "line 2: no text in the field 'text'; its fields are 'body', 'title'")])
def test_malformed_json_lines(tmp_path, capsys, line, message):
    (tmp_path / "corpus.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    file = tmp_path / "experiment.py"
    file.write_text("from jaxgpt.core.experiment import Experiment\nfrom jaxgpt.curation.sources import Jsonl\n"
                    "from jaxgpt.curation.programs import Curate\n\ndef get_config():\n"
                    f"    return Experiment('x', (Curate(source=Jsonl({str(tmp_path / 'corpus.jsonl')!r})),))\n")
    assert f"corpus.jsonl, {message}" in refused(capsys, *run(file, tmp_path / "w"))


# --- settings --------------------------------------------------------------------------------------------------------

def test_a_vocabulary_smaller_than_the_bytes_and_special_tokens(data, capsys):
    file, workdir = data
    shutil.rmtree(workdir / "tokenizer")
    shutil.rmtree(workdir / "tokenize")
    before = files(workdir)
    message = refused(capsys, *run(file, workdir, "--set", "tokenizer.vocab_size=263", "--stage", "tokenizer"))
    assert message == "vocab_size 263 is too small: 256 bytes and 8 special tokens make 264"
    assert files(workdir) == before
    assert main([*map(str, run(file, workdir, "--set", "tokenizer.vocab_size=264", "--stage", "tokenizer"))]) == 0


@pytest.mark.parametrize("stage, words, message", [
    ("pretrain", ["pretrain.batch=12"],
     "pretrain.batch=12: cannot be divided over 8 (mesh axes data 8); pretrain.batch=16 can"),
    ("pretrain", ["pretrain.batch=8", "pretrain.accumulate=2"], "pretrain.batch=8: cannot be divided over 16 "
     "(mesh axes data 8 x accumulate 2); pretrain.batch=16 can"),
    ("pretrain", ["layout.data=1", "layout.fsdp=8", "pretrain.batch=4"],
     "pretrain.batch=4: cannot be divided over 8 (mesh axes fsdp 8); pretrain.batch=8 can"),
    ("pretrain", ["layout.data=3"], "layout data 3: the sizes multiply to 3, but there are 8 devices; data 8 works"),
    ("pretrain", ["pretrain.length=64"], "length=64: longer than the 32 positions of model.context"),
    ("pretrain", ["pretrain.model.vocab_size=200"], "model.vocab_size=200: the tokenizer has 272 tokens"),
    ("sft", ["sft.batch=9"], "sft.batch=9: cannot be divided over 8"),
    ("sft", ["sft.length=64"], "length=64: longer than the 32 positions of the model's context"),
])
def test_settings_that_do_not_fit(base, capsys, stage, words, message):
    file, workdir = base
    shutil.rmtree(workdir / stage, ignore_errors=True)
    before = files(workdir)
    sets = [word for setting in words for word in ("--set", setting)]
    assert message in refused(capsys, *run(file, workdir, *sets, "--stage", stage))
    assert files(workdir) == before


def test_grpo_beyond_the_context(tiny_base, tmp_path, capsys):
    file, workdir = started(tiny_base, tmp_path / "work", tmp_path)
    before = files(workdir)
    message = refused(capsys, *run(file, workdir, "--set", "grpo.max_new_tokens=17", "--stage", "grpo"))
    assert "32" in message and ("33" in message or "17" in message)
    assert files(workdir) == before


# --- results of something else ---------------------------------------------------------------------------------------

def test_a_workdir_that_holds_a_different_experiment(base, capsys):
    file, workdir = base
    before = files(workdir)
    message = refused(capsys, *run(file, workdir, "--set", "pretrain.optim.lr=0.5"))
    assert message == (f"{workdir / 'pretrain'}: holds a different experiment: optim.lr is 0.01 there and 0.5 here; choose "
                       f"another --workdir, or remove {workdir / 'pretrain'} to run this stage anew")
    assert files(workdir) == before


def test_a_checkpoint_of_another_model(base, capsys):
    file, workdir = base
    path = workdir / "pretrain" / "manifest.json"
    manifest = read_json(path)
    manifest["outputs"]["model"]["width"] = 24
    path.write_text(json.dumps(manifest))
    before = files(workdir)
    for words in (run(file, workdir, "--stage", "sft"), ["chat", workdir, "--prompt", "hi"]):
        message = refused(capsys, *words)
        assert "20: this checkpoint is another model's: width is 16 there and 24 here" in message
    assert files(workdir) == before


@pytest.mark.parametrize("name, content, stage, message", [
    ("tokenize/tokenizer.txt", "{}", "pretrain", "tokenizer.txt, line 1: not the header of a tokenizer file"),
    ("tokenize/manifest.json", '{"stage": ', "pretrain", "manifest.json, line 1: not valid JSON"),
    ("tokenize/shards/manifest.json", None, "pretrain", "shards: no token shards here (manifest.json is missing)"),
    ("pretrain/manifest.json", "[]", "sft", "pretrain/manifest.json: not what a stage writes there"),
    ("pretrain/checkpoints/20/_CHECKPOINT_METADATA", None, "sft", "checkpoints/20: no complete checkpoint there"),
    ("pretrain/checkpoints/20/config/metadata", "{", "sft", "config/metadata, line 1: not valid JSON"),
])
def test_a_damaged_file_of_an_earlier_stage(base, capsys, name, content, stage, message):
    file, workdir = base
    if stage == "pretrain":
        shutil.rmtree(workdir / "pretrain")
    (workdir / name).unlink() if content is None else (workdir / name).write_text(content)
    before = files(workdir)
    assert message in refused(capsys, *run(file, workdir, "--stage", stage))
    assert files(workdir) == before


def test_a_corpus_shorter_than_a_row(base, capsys):
    file, workdir = base
    shutil.rmtree(workdir / "pretrain")
    before = files(workdir)
    words = ["--set", "pretrain.tokens=1e6", "--set", "pretrain.model.context=100000"]
    message = refused(capsys, *run(file, workdir, *words, "--stage", "pretrain"))
    assert "fewer than one row of 100000 + 1: give more text or a shorter length" in message
    assert files(workdir) == before


# --- a full disk -----------------------------------------------------------------------------------------------------

@pytest.fixture
def small_disk(tmp_path):
    """A folder that holds four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs to mount a small disk, which only root can ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder, leave):
    """Takes all space of a disk but `leave` bytes."""
    free = shutil.disk_usage(folder).free
    (folder / "filler").write_bytes(bytes(free - leave))


@pytest.mark.parametrize("leave", [0, 4096, 100_000])
def test_a_full_disk(tiny_base, small_disk, tmp_path, capsys, leave):
    """With nothing left the settings cannot be written, with a little the metrics can and the checkpoint cannot."""
    file, workdir = started(tiny_base, small_disk / "work", tmp_path, without="sft")
    before = files(workdir)
    fill(small_disk, leave)
    message = refused(capsys, *run(file, workdir, "--stage", "sft"))
    assert message.startswith(f"{workdir / 'sft'}") and "the disk is full" in message and "free some space" in message
    now = files(workdir)
    assert {path: now[path] for path in before} == before
    assert not (workdir / "sft" / "manifest.json").exists()
    assert tiny.params_of(workdir, "pretrain", 20)  # an earlier result can still be read
    os.remove(small_disk / "filler")
    assert main([*map(str, run(file, workdir, "--stage", "sft"))]) == 0
    assert complete_steps(workdir / "sft" / "checkpoints") == [10, 20]
    assert {path.name for path in (workdir / "sft" / "checkpoints").iterdir()} == {"10", "20"}
