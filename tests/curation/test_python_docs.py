"""The embedded corpus: rendered in a process of its own, the same every time, and nothing of this machine in it."""

import os
import re
import sys

import pytest

from jaxgpt.core.files import read_json
from jaxgpt.curation.clean import amount
from jaxgpt.curation.document import document
from jaxgpt.curation.python_docs import FORBIDDEN, MODULES, PythonDocs, thin

SMALL = PythonDocs(modules=("textwrap", "difflib", "no.such.module"), packages=("tiktoken", "not_installed"))
FOLDERS = {sys.base_prefix, sys.prefix, os.getcwd()} - {"/", "/usr", "/usr/local"}
MACHINE = re.compile(r"\bat 0x[0-9a-fA-F]{6,}|" + "|".join(map(re.escape, FOLDERS)))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    return folder, list(SMALL.documents(folder))


def test_three_kinds_of_documents(small):
    folder, documents = small
    assert set(amount(documents).by_source) == {"python/pydoc", "python/topics", "tiktoken/docstrings"}
    texts = {item.source: item.text for item in documents}
    assert any("Remove any common leading whitespace" in item.text for item in documents)
    assert re.search(r"\nEncoding\.encode\(self, text, \*, allowed_special, disallowed_special\)\n    Encodes",
                     "".join(item.text for item in documents if item.source == "tiktoken/docstrings"))
    assert len(texts["python/topics"]) > 100


def test_what_cannot_be_read_is_reported(small):
    folder, _ = small
    skipped = read_json(folder / "skipped.json")
    assert set(skipped) == {"no.such.module", "not_installed"}
    assert "ModuleNotFoundError" in skipped["no.such.module"]


def test_same_bytes_under_another_hash_seed(small, tmp_path, monkeypatch):
    folder, documents = small
    monkeypatch.setenv("PYTHONHASHSEED", "123")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(SMALL.documents(tmp_path)) == documents
    assert (tmp_path / "pages.jsonl").read_bytes() == (folder / "pages.jsonl").read_bytes()


def test_nothing_of_this_machine(small):
    folder, documents = small
    for item in documents:
        assert not MACHINE.search(item.text)
    assert "IS_CHARACTER_JUNK" in "".join(item.text for item in documents)  # a default whose repr has an address


def test_thinning_is_even_and_stable():
    documents = [document(f"{i:04}" * 25, "s") for i in range(100)]
    kept = thin(documents, 5_000)
    assert len(kept) == 50 and kept == [item for item in documents if item in kept]
    assert set(thin(documents, 2_500)) < set(kept)
    assert 10 < sum(documents.index(item) < 50 for item in kept) < 40


def test_list_of_modules():
    assert len(set(MODULES)) == len(MODULES) > 200
    assert not [name for name in MODULES if name.split(".")[0] in FORBIDDEN]
    with pytest.raises(ValueError, match="modules: importing 'turtle' has side effects"):
        PythonDocs(modules=("turtle",))
    with pytest.raises(ValueError, match="max_megabytes"):
        PythonDocs(max_megabytes=0)


@pytest.mark.slow
def test_whole_corpus(tmp_path, monkeypatch):
    first = list(PythonDocs().documents(tmp_path / "a"))
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert list(PythonDocs().documents(tmp_path / "b")) == first
    assert (tmp_path / "a" / "pages.jsonl").read_bytes() == (tmp_path / "b" / "pages.jsonl").read_bytes()
    assert amount(first).bytes > 5e6
    assert not [item.id for item in first if item.source == "python/pydoc" and MACHINE.search(item.text)]
