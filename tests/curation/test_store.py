"""Files near and far: whole or not there, hashed on the way, read a row group at a time."""

import hashlib
import os
import resource
import signal

import pyarrow.parquet
import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.curation import store
from jaxgpt.curation.document import document
from jaxgpt.curation.store import Row

ROWS = [Row(document(f"text {i} é", "s", url=f"http://example.com/{i}", date="2024-01-01T00:00:00Z"),
            split="val" if i % 5 == 0 else "train", cluster="ab" * 16 if i % 7 == 0 else "",
            cluster_size=1 + (i % 7 == 0)) for i in range(100)]


def write(path, rows=ROWS, size=None):
    files = {}
    with store.writing_table(path, store.DOCUMENTS, files) as table:
        for row in rows:
            table.add(store.document_row(row), len(row.document.text) if size is None else size)
    return files[path]


@pytest.fixture(params=["near", "far"])
def folder(request, tmp_path):
    if request.param == "near":
        yield str(tmp_path / "corpus")
    else:
        yield f"memory://{tmp_path.name}"
        store.remove(f"memory://{tmp_path.name}")


def test_rows_come_back(folder):
    path = store.join(folder, "a", "part.parquet")
    written = write(path)
    assert list(store.read_rows(path)) == ROWS
    with store.reading(path) as file:
        data = file.read()
    assert written == {"rows": 100, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert store.size(path) == len(data) and store.row_count(path) == 100
    assert store.names(store.join(folder, "a")) == ["part.parquet"] and store.names(folder) == ["a"]
    assert [key for key, in store.read_table(path, ["id"])] == [row.document.id for row in ROWS]


def test_the_same_rows_are_the_same_bytes(tmp_path):
    assert write(str(tmp_path / "a.parquet")) == write(str(tmp_path / "b.parquet"))


def test_row_groups_are_bounded_by_rows_and_by_bytes(tmp_path):
    path = str(tmp_path / "a.parquet")
    write(path, size=store.GROUP_BYTES // 10)
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 10
    many = [ROWS[0]] * (store.GROUP_ROWS + 1)
    write(path, many)
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 2
    assert list(store.read_rows(path)) == many


def test_no_rows(folder):
    path = store.join(folder, "empty.parquet")
    assert write(path, [])["rows"] == 0
    assert list(store.read_rows(path)) == []


def test_a_file_that_is_not_finished_is_not_there(folder):
    path = store.join(folder, "part.parquet")
    write(path)
    with pytest.raises(ValueError, match="in the middle"):
        with store.writing_table(path, store.DOCUMENTS, {}) as table:
            table.add(store.document_row(ROWS[0]))
            raise ValueError("in the middle")
    assert list(store.read_rows(path)) == ROWS  # what was there before
    assert store.names(folder) == ["part.parquet"]


def test_removing_what_is_not_there(folder):
    store.remove(store.join(folder, "nothing"))
    assert not store.exists(folder) and store.size(folder + "/x") == -1 and store.names(folder) == []


def test_json(folder):
    path = store.join(folder, "a.json")
    store.write_json(path, {"b": 1, "a": ["é"]})
    assert store.read_json(path) == {"b": 1, "a": ["é"]}
    with pytest.raises(UserError, match="no such file"):
        store.read_json(store.join(folder, "b.json"))


def test_damaged_and_missing_files_are_named(tmp_path):
    path = tmp_path / "part.parquet"
    write(str(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="part.parquet: not the Parquet file that was written there"):
        list(store.read_rows(str(path)))
    with pytest.raises(UserError, match="gone.parquet: no such file"):
        list(store.read_rows(str(tmp_path / "gone.parquet")))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="a.json: not valid JSON"):
        store.read_json(str(tmp_path / "a.json"))
    with pytest.raises(UserError, match="nosuch"):
        store.exists("nosuch://bucket/file")


def test_a_full_disk(tmp_path):
    path, limits = str(tmp_path / "part.parquet"), resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match="part.parquet: the disk is full; free some space"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert os.listdir(tmp_path) == []
