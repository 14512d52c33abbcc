"""What the README shows is what happens: its Python runs, its files exist, its command lines parse."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from jaxgpt.cli import _parser

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_prints_what_its_comment_says():
    code, = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    shown = re.search(r"print\(.*\)  # (\S+)", code)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue().strip() == shown


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:jaxgpt|experiments|tests)/[\w/]+\.(?:py|md))`", TEXT))))
def test_files_that_are_named_exist(path):
    assert (ROOT / path).is_file()


NAMES = "run|curate|plan|chat|serve|sample|tokenize|import|export|info"
COMMANDS = sorted({line for line in re.findall(rf"jaxgpt (?:{NAMES}) (?:'[^'\n]*'|[^`'\n|])*", TEXT) if "FILE" not in line and "WORKDIR" not in line})


@pytest.mark.parametrize("line", COMMANDS)
def test_command_lines_parse(line):
    words = shlex.split(line, comments=True)[1:]
    arguments = _parser().parse_args(words)
    assert callable(arguments.command)
    if words[0] in ("run", "plan"):
        assert (ROOT / arguments.experiment).is_file()


def test_no_figure_is_missing():
    assert COMMANDS and not re.findall(r"@[A-Z]+@|[A-Z]+_SECTION|[A-Z]+_OUTPUT", TEXT)
