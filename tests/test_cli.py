"""The command line as a person meets it: processes, exit statuses, what stands on which stream."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

import jaxgpt
from jaxgpt.cli import main
from jaxgpt.core.files import read_json
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.tokenizer import Tokenizer

EXPERIMENT = '''
"""Two stages that count."""

import dataclasses
import time

from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Experiment, Stage, Stopped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count(Stage):
    """Counts to `to`, a file a number; goes on where it was."""

    to: int = 3
    seconds: float = 0.0
    after: tuple[str, ...] = ()

    def __post_init__(self):
        if self.to < 1:
            raise ValueError(f"to={self.to}: at least 1")

    def inputs(self):
        return self.after

    def run(self, context):
        if self.to == 13:
            raise UserError("to=13: an unlucky number")
        done = len(list(context.directory.glob("*.txt")))
        for number in range(done + 1, self.to + 1):
            (context.directory / f"{number}.txt").write_text("x")
            context.log(f"counted {number}")
            time.sleep(self.seconds)
            context.check_stop()
        return {"counted": self.to, "from": done}


def get_config():
    return Experiment(name="counting", stages=(Count(name="one"), Count(name="two", after=("one",))))
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    """An experiment file in the current folder; in-process runs keep their compiled programs out of the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "counting.py"
    path.write_text(EXPERIMENT)
    return path


def command(*words, **options):
    return subprocess.run([sys.executable, "-m", "jaxgpt.cli", *words], capture_output=True, text=True, timeout=60, **options)


def counted(workdir, stage):
    return read_json(workdir / stage / "manifest.json")["outputs"]


# --- processes -------------------------------------------------------------------------------------------------------

def test_help_names_the_commands():
    done = command("--help")
    assert done.returncode == 0 and done.stderr == ""
    for word in ("run", "chat", "sample", "tokenize", "jaxgpt run experiments/quickstart.py"):
        assert word in done.stdout


def test_version():
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"jaxgpt {jaxgpt.__version__}\n")


def test_run_and_run_again(file, tmp_path):
    done = command("run", "counting.py", "--set", "two.to=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["[1/2] one"] * 2 + ["[2/2] two"] * 2
    assert done.stderr.splitlines() == [f"counted {i}" for i in (1, 2, 3, 1, 2, 3, 4, 5)]
    assert counted(tmp_path / "runs" / "counting", "two") == {"counted": 5, "from": 0}


def test_an_error_is_one_line_and_status_2(file, tmp_path):
    done = command("run", "counting.py", "--set", "two.to=13", cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "jaxgpt: to=13: an unlucky number")
    assert "Traceback" not in done.stderr
    assert counted(tmp_path / "runs" / "counting", "one")["counted"] == 3


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_stops_cleanly_and_says_how_to_go_on(file, tmp_path, number, status):
    workdir = tmp_path / "my run"
    words = ["run", "counting.py", "--workdir", str(workdir), "--set", "one.to=20", "--set", "one.seconds=0.05"]
    process = subprocess.Popen([sys.executable, "-m", "jaxgpt.cli", *words], cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 40
    while not (workdir / "one" / "2.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=40)
    assert process.returncode == status, err
    assert "Traceback" not in err and "stopping after this step and saving" in err
    assert not (workdir / "one" / "manifest.json").exists()
    shown = shlex.split(out.splitlines()[-1])
    assert shown[0] == "jaxgpt" and shown[1:] == words
    done = command(*shown[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 2 <= counted(workdir, "one")["from"] < 20 and counted(workdir, "one")["counted"] == 20
    assert counted(workdir, "two")["counted"] == 3


def test_a_reader_that_leaves_is_no_error(tmp_path):
    Tokenizer(bpe.train(["aaabdaaabac"], vocab_size=267)).save(tmp_path)
    words = [sys.executable, "-m", "jaxgpt.cli", "tokenize", "--tokenizer", str(tmp_path), "abc " * 50_000]
    process = subprocess.Popen(words[:-1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    process.stdin.write(words[-1])
    process.stdin.close()
    err = process.stderr.read()
    assert process.wait(40) == 0 and err == ""


# --- in this process -------------------------------------------------------------------------------------------------

def test_one_stage(file, tmp_path, capsys):
    workdir = tmp_path / "w"
    assert main(["run", str(file), "--workdir", str(workdir), "--stage", "two"]) == 2
    assert capsys.readouterr().err == f"jaxgpt: {workdir / 'one'}: stage 'one' is not complete; run it first\n"
    assert main(["run", str(file), "--workdir", str(workdir), "--stage", "one"]) == 0
    assert not (workdir / "two").exists()
    assert main(["run", str(file), "--workdir", str(workdir), "--stage", "two"]) == 0
    assert counted(workdir, "two")["counted"] == 3
    assert main(["run", str(file), "--workdir", str(workdir), "--stage", "three"]) == 2
    assert capsys.readouterr().err.endswith("jaxgpt: no stage is called 'three'; valid: one, two\n")


def test_a_stop_in_this_process_shows_the_words_it_was_given(file, tmp_path, capsys, monkeypatch):
    file.write_text(EXPERIMENT.replace("context.check_stop()", "raise Stopped"))
    assert main(["run", "counting.py", "--workdir", "a b"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "  jaxgpt run counting.py --workdir 'a b'"


@pytest.mark.parametrize("words, message", [
    (["--set", "one.to"], "--set one.to: write FIELD=VALUE, as in --set pretrain.optim.lr=1e-3"),
    (["--set", "one.too=1"], "--set one.too: no field of Count is called 'too'; did you mean 'to'?"),
    (["--set", "one.to=many"], "--set one.to=many: 'many' is not of type int"),
    (["--set", "one.to=1e999"], "--set one.to=1e999: inf is not of type int"),
    (["--set", "one.to=0"], "--set one.to=0: to=0: at least 1"),
    (["--set", "one.after=['two']"], "stage 'one' reads 'two', which is not among the stages before it: none"),
    (["--set", "three.to=1"], "no stage or field of the experiment is called 'three'"),
    (["--set", "rules=fdsp"], "rules: no preset is called 'fdsp'; valid: replicated, fsdp"),
    (["--set", "trackers=('tensorbord',)"], "there is no 'tensorbord'; valid: tensorboard, wandb"),
    (["--set", "layout.data=0"], "sizes are at least 1"),
])
def test_settings_that_cannot_be(file, tmp_path, capsys, words, message):
    assert main(["run", str(file), "--workdir", str(tmp_path / "w"), *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("jaxgpt: ") and message in captured.err and captured.err.count("\n") == 1
    assert not list((tmp_path / "w").glob("*/*"))


@pytest.mark.parametrize("source, message", [
    (None, "counting.py: no such experiment file"),
    ("def get_config():\n    return 3\n", "counting.py: get_config() returns int; it should return an Experiment"),
    ("x = 1\n", "counting.py: defines no get_config()"),
    ("import dataclasses\n\ndef get_config():\n    return {}['x']\n", "counting.py, line 4: KeyError: 'x'"),
    ("def get_config(:\n", "counting.py, line 1: SyntaxError"),
])
def test_experiment_files_that_are_none(file, capsys, source, message):
    file.unlink() if source is None else file.write_text(source)
    assert main(["run", "counting.py"]) == 2  # by a relative path, as people give it
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_tokenize_shows_tokens_with_their_ids(tmp_path, capsys):
    Tokenizer(bpe.train(["aaabdaaabac"], vocab_size=267)).save(tmp_path / "tokenizer")
    for place in (tmp_path / "tokenizer", tmp_path):  # a tokenizer's folder, or the workdir that holds one
        assert main(["tokenize", "aaabdaaabac", "--tokenizer", str(place)]) == 0
        out = capsys.readouterr().out
        assert "258" in out and "aaab" in out and "\x1b" not in out
    assert main(["tokenize", "x", "--tokenizer", "gpt5"]) == 2
    assert re.fullmatch("jaxgpt: no tiktoken encoding is called 'gpt5'; there are gpt2, .*\n", capsys.readouterr().err)


def test_tokenize_with_a_published_encoding(capsys):
    cache = os.environ.get("TIKTOKEN_CACHE_DIR")
    if not cache or not os.path.isdir(cache):
        pytest.skip("needs tiktoken's files: set TIKTOKEN_CACHE_DIR to the folder that holds them")
    assert main(["tokenize", "hello world"]) == 0
    assert "31373" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["chat", "sample"])
def test_a_model_that_is_not_there(tmp_path, capsys, name, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main([name, str(tmp_path / "nowhere"), "--prompt", "hi"]) == 2
    error = capsys.readouterr().err
    assert error == f"jaxgpt: {tmp_path / 'nowhere'}: no such folder; give the workdir of a run, such as runs/quickstart\n"


@pytest.mark.parametrize("words", [[], ["fly"], ["run"], ["chat"]])
def test_words_that_are_no_command(capsys, words):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert "usage: jaxgpt" in capsys.readouterr().err
