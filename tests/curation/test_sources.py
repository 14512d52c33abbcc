"""Sources: real files, good and bad."""

import gzip
import json

import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.curation.document import document
from jaxgpt.curation.sources import Jsonl, TextFiles, read_documents, write_documents


def test_text_files_are_sorted_and_named(tmp_path, monkeypatch):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first, é\n", encoding="utf-8")
    with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
        file.write("third")
    monkeypatch.chdir(tmp_path)
    found = list(TextFiles("*.txt*").documents())
    assert [(item.text, item.source) for item in found] == [
        ("first, é\n", "a.txt"), ("second", "b.txt"), ("third", "c.txt.gz")]


def test_paths_expand_variables(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setenv("FOLDER_OF_TEXT", str(tmp_path))
    assert [item.text for item in TextFiles("$FOLDER_OF_TEXT/a.txt").documents()] == ["text"]
    monkeypatch.delenv("FOLDER_OF_TEXT")
    with pytest.raises(UserError, match="environment variable that is not set"):
        list(TextFiles("$FOLDER_OF_TEXT/a.txt").documents())


def test_separator_divides_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\n\n\nthree\n")
    found = list(TextFiles(str(tmp_path / "a.txt"), separator="\n\n").documents())
    assert [item.text for item in found] == ["one", "two", "three\n"]


def test_text_survives_to_the_byte(tmp_path):
    text = "a\r\nb\x85c\u2028d\rtab\t\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert next(TextFiles(str(tmp_path / "a.txt")).documents()).text == text


def test_ids_are_hashes_of_the_text():
    assert document("x", "here").id == document("x", "there").id != document("y", "here").id


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one"}\n\n{"body": "  "}\n{"body": "lone \\ud800 surrogate"}\n')
    assert [item.text for item in Jsonl(str(path), field="body").documents()] == ["one", "lone \ufffd surrogate"]


@pytest.mark.parametrize("line, message", [
    (b'{"text": "fine"', "line 2: not valid JSON"),
    (b'["text"]', "line 2: expected a JSON object, got list"),
    (b'{"title": "x", "body": "y"}', "line 2: no text in the field 'text'; its fields are 'title', 'body'"),
    (b'{"text": 3}', "line 2: no text in the field 'text'"),
    (b'{"text": "\xff"}', "line 2: byte 10 \\(0xff\\) is not UTF-8"),
])
def test_bad_jsonl_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(UserError, match=f"bad.jsonl, {message}"):
        list(Jsonl(str(path)).documents())


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="nowhere.txt: no such file"):
        list(TextFiles(str(tmp_path / "nowhere.txt")).documents())
    (tmp_path / "latin.txt").write_bytes("ok\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.txt, line 2: byte 3 \(0xe9\) is not UTF-8"):
        list(TextFiles(str(tmp_path / "latin.txt")).documents())
    (tmp_path / "broken.txt.gz").write_bytes(b"not gzip at all")
    with pytest.raises(UserError, match="broken.txt.gz, line 1: cannot be read"):
        list(TextFiles(str(tmp_path / "broken.txt.gz")).documents())
    with pytest.raises(ValueError, match="paths"):
        TextFiles(())


def test_documents_round_trip(tmp_path):
    documents = [document("line\nline\u2028é", "a"), document("b", "b")]
    write_documents(tmp_path / "deep" / "d.jsonl", documents)
    assert list(read_documents(tmp_path / "deep" / "d.jsonl")) == documents
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["d.jsonl"]
    (tmp_path / "other.jsonl").write_text(json.dumps({"id": "x"}) + "\n")
    with pytest.raises(UserError, match="other.jsonl, line 1: not a document"):
        list(read_documents(tmp_path / "other.jsonl"))
