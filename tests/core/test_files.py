"""Files are whole or as they were."""

import errno
import hashlib
import os
import subprocess
import sys

import pytest

from jaxgpt.core import files
from jaxgpt.core.errors import UserError


def test_what_is_written_is_read(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": {"text": "naïve ☃"}}
    path = files.write_json(tmp_path / "new" / "folder" / "x.json", value)
    assert files.read_json(path) == value and list(files.read_json(path)) == ["b", "a"]
    assert path.read_text(encoding="utf-8").endswith("}\n") and "☃" in path.read_text(encoding="utf-8")
    assert files.write_bytes(path, b"\x00\xff").read_bytes() == b"\x00\xff"
    assert files.write_text(path, "é\n").read_bytes() == b"\xc3\xa9\n"
    assert [item.name for item in path.parent.iterdir()] == ["x.json"]


def test_the_hash_of_a_file(tmp_path):
    path = files.write_bytes(tmp_path / "x", b"a" * 100_000)
    assert files.sha256(path) == hashlib.sha256(b"a" * 100_000).hexdigest()


@pytest.mark.parametrize("data, message", [
    (None, "x.json: no such file"), (b'{\n "a": 1,\n}', "x.json, line 3: not valid JSON"),
    (b"", "x.json, line 1: not valid JSON"), (b"\xff\xfe", r"x.json, line \?: not valid JSON")])
def test_what_cannot_be_read_is_named(tmp_path, data, message):
    if data is not None:
        (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        files.read_json(tmp_path / "x.json")
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = files.write_text(tmp_path / "x", "old")
    code = ("import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            f"from jaxgpt.core.files import write_bytes; write_bytes({str(path)!r}, b'x' * 5000)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and f"UserError: {path}: the disk is full" in done.stderr
    assert path.read_text() == "old" and [item.name for item in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/x: cannot be written"):
        files.write_text(tmp_path / "file" / "x", "text")


def test_what_has_no_room_is_not_begun(tmp_path):
    files.check_space(tmp_path / "x", 1)
    with pytest.raises(UserError, match=r"x: the disk is full: [\d.,]+ MB are free and 1,000,000,000,000.0 MB are needed"):
        files.check_space(tmp_path / "x", 10 ** 18)


@pytest.mark.parametrize("error, full", [
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), True), (OSError(errno.EDQUOT, "quota"), True),
    (OSError("4096 requested and 512 written"), True), (RuntimeError("IO: write: No space left on device"), True),
    (OSError(errno.EACCES, "Permission denied"), False), (ValueError("something else"), False)])
def test_a_full_disk_is_told_from_other_failures(error, full):
    assert files.disk_is_full(error) == full
    assert ("the disk is full" in str(files.cannot_write("w/x", error))) == full
    assert str(files.cannot_write("w/x", error)).startswith("w/x: ")


def test_a_folder_is_whole_or_absent(tmp_path):
    with files.whole_folder(tmp_path / "made") as folder:
        (folder / "x").write_text("x")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "x").read_text() == "x"
    with pytest.raises(UserError, match="made: is there already; choose another folder"):
        with files.whole_folder(tmp_path / "made"):
            pass
    (tmp_path / "empty").mkdir()
    with files.whole_folder(tmp_path / "empty") as folder:
        (folder / "y").write_text("y")
    with pytest.raises(ZeroDivisionError):
        with files.whole_folder(tmp_path / "failed") as folder:
            (folder / "z").write_text("z")
            raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "made"]
