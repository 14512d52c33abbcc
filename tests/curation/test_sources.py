"""Sources: real files, good and bad, near and far."""

import functools
import gzip
import http.server
import json
import pickle
import threading

import pytest
import zstandard

from jaxgpt.core.errors import UserError
from jaxgpt.curation.document import Document, Drop, document
from jaxgpt.curation.files import find_files, open_file
from jaxgpt.curation.sources import Jsonl, Parquet, TextFiles, Tfds, source_for
from jaxgpt.curation.warc import Warc, write_warc


def read(source, cache_dir=None):
    """What a source gives where other processes read its files."""
    source = pickle.loads(pickle.dumps(source))
    return [item for path in source.files(cache_dir) for item in source.read(path)]


def texts(source):
    return [item.text for item in read(source)]


# --- text -------------------------------------------------------------------------------------------------------------

def test_text_files_are_sorted_and_named(tmp_path, monkeypatch):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first, é\n", encoding="utf-8")
    with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
        file.write("third")
    (tmp_path / "d.txt.zst").write_bytes(zstandard.compress(b"four") + zstandard.compress(b"th"))
    monkeypatch.chdir(tmp_path)
    assert [(item.text, item.source) for item in read(TextFiles("*.txt*"))] == [
        ("first, é\n", "a.txt"), ("second", "b.txt"), ("third", "c.txt.gz"), ("fourth", "d.txt.zst")]


def test_paths_expand_variables(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setenv("FOLDER_OF_TEXT", str(tmp_path))
    assert texts(TextFiles("$FOLDER_OF_TEXT/a.txt")) == ["text"]
    monkeypatch.delenv("FOLDER_OF_TEXT")
    with pytest.raises(UserError, match="environment variable that is not set"):
        TextFiles("$FOLDER_OF_TEXT/a.txt").files()


def test_separator_divides_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\n\n\nthree\n")
    assert texts(TextFiles(str(tmp_path / "a.txt"), separator="\n\n")) == ["one", "two", "three\n"]


def test_text_survives_to_the_byte(tmp_path):
    text = "a\r\nb\x85c\u2028d\rtab\t\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert texts(TextFiles(str(tmp_path / "a.txt"))) == [text]


def test_ids_are_hashes_of_the_text():
    assert document("x", "here").id == document("x", "there").id != document("y", "here").id


# --- rows -------------------------------------------------------------------------------------------------------------

ROWS = [{"body": "one", "n": 1}, {"body": "  "}, {"body": "two", "url": "http://a.example", "date": "2024-02-20"},
        {"body": "lone \ud800 surrogate", "url": None}]
READ = [document("one", "rows"), Drop("empty text"),
        document("two", "rows", url="http://a.example", date="2024-02-20"), document("lone \ufffd surrogate", "rows")]


def without_source(items):
    return [item if isinstance(item, Drop) else (item.id, item.text, item.url, item.date) for item in items]


@pytest.mark.parametrize("name, pack", [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress),
                                        ("a.jsonl.zst", zstandard.compress)])
def test_json_lines(tmp_path, name, pack):
    lines = "\n\n".join(json.dumps(row) for row in ROWS) + "\n"
    (tmp_path / name).write_bytes(pack(lines.encode()))
    items = read(Jsonl(str(tmp_path / name), field="body"))
    assert without_source(items) == without_source(READ)
    assert {item.source for item in items if isinstance(item, Document)} == {name}


@pytest.mark.parametrize("line, message", [
    (b'{"text": "fine"', "line 2: not valid JSON"),
    (b'["text"]', "line 2: expected a JSON object, got list"),
    (b'{"title": "x", "body": "y"}', "line 2: no text in the field 'text'; its fields are 'title', 'body'"),
    (b'{"text": 3}', "line 2: the field 'text' is int, not text"),
    (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "line 2: not JSON that can be read here"),
    (b"[" * 100_000, "line 2: not JSON that can be read here"),
    (b'{"text": "\xff"}', "line 2: byte 10 \\(0xff\\) is not UTF-8"),
])
def test_bad_json_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(UserError, match=f"bad.jsonl, {message}"):
        read(Jsonl(str(path)))


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet
    rows = [{**row, "body": row["body"].replace("\ud800", "\ufffd")} for row in ROWS] * 200  # several batches
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(
        [("body", "string"), ("url", "string"), ("date", "string"), ("n", "int64")])), tmp_path / "a.parquet")
    assert without_source(read(Parquet(str(tmp_path / "a.parquet"), field="body"))) == without_source(READ) * 200
    with pytest.raises(UserError, match="a.parquet: no column 'text'; its columns are 'body', 'url', 'date', 'n'"):
        read(Parquet(str(tmp_path / "a.parquet")))
    with pytest.raises(UserError, match="a.parquet, row 0: the field 'n' is int, not text"):
        read(Parquet(str(tmp_path / "a.parquet"), field="n"))
    (tmp_path / "b.parquet").write_text("not Parquet at all")
    with pytest.raises(UserError, match="b.parquet, row 0: cannot be read as Parquet"):
        read(Parquet(str(tmp_path / "b.parquet")))


# --- TFDS -------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A folder with a small TFDS dataset of two shards."""
    import numpy as np
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    folder, counts = tmp_path_factory.mktemp("tfds") / "teas" / "1.0.0", [300, 200]
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {"text": tfds.features.Text(), "url": tfds.features.Text(), "number": tfds.features.Scalar(np.int64)})
    numbers = iter(range(sum(counts)))
    for shard, count in enumerate(counts):
        writer = ArrayRecordWriter(str(folder / f"teas-train.array_record-0000{shard}-of-00002"), "group_size:1")
        for _ in range(count):
            number = next(numbers)
            row = {"text": f"Tee {number}, größer", "url": f"http://a.example/{number}", "number": number}
            writer.write(features.serialize_example(features.encode_example(row)))
        writer.close()
    info = tfds.core.DatasetInfo(features=features, builder=tfds.core.dataset_info.DatasetIdentity(
        name="teas", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name="teas"))
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name="teas", split="train",
                                             filetype_suffix="array_record")
    info.set_splits(tfds.core.splits.SplitDict([tfds.core.SplitInfo(
        name="train", shard_lengths=counts, num_bytes=10_000, filename_template=template)]))
    info.write_to_directory(folder)
    return str(folder)


def test_tfds_without_tensorflow(dataset):
    import sys
    source = Tfds(dataset)
    assert len(source.files()) == 2
    items = read(source)
    assert [item.text for item in items] == [f"Tee {number}, größer" for number in range(500)]
    assert [item.url for item in items] == [f"http://a.example/{number}" for number in range(500)]
    assert {item.source for item in items} == {"teas"} and "tensorflow" not in sys.modules
    assert source_for(dataset) == source


def test_bad_tfds(dataset, tmp_path):
    with pytest.raises(UserError, match="no split 'test'; its splits are 'train'"):
        Tfds(dataset, split="test").files()
    with pytest.raises(UserError, match="no feature 'body'; its features are 'number', 'text', 'url'"):
        Tfds(dataset, field="body").files()
    with pytest.raises(UserError, match="record 0: the field 'number' is [a-z0-9]+, not text"):
        read(Tfds(dataset, field="number"))
    with pytest.raises(UserError, match="no_such_dataset: neither a folder with a TFDS dataset nor the name"):
        Tfds("no_such_dataset").files()
    with pytest.raises(UserError, match="mnist: not prepared here; prepare it with file_format='array_record'"):
        Tfds("mnist").files()
    with pytest.raises(UserError, match="neither a folder with a TFDS dataset"):
        Tfds(str(tmp_path)).files()
    with pytest.raises(ValueError, match=r"split: must be the name of a whole split, such as 'train', not 'train\["):
        Tfds(dataset, split="train[:9]")


def test_tfds_in_another_format(dataset, tmp_path):
    import pathlib
    for path in pathlib.Path(dataset).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes().replace(b'"array_record"', b'"tfrecord"'))
    with pytest.raises(UserError, match="its files are in the format tfrecord; prepare it again with file_format="):
        Tfds(str(tmp_path)).files()


# --- which source -----------------------------------------------------------------------------------------------------

def test_the_source_that_suits_the_files(tmp_path):
    names = {"a.warc.gz": Warc, "b.wet": Warc, "c.wet.txt": Warc, "d.jsonl": Jsonl, "e.jsonl.zst": Jsonl,
             "f.ndjson.gz": Jsonl, "g.parquet": Parquet, "h.txt": TextFiles, "i.md.gz": TextFiles}
    for name, kind in names.items():
        (tmp_path / name).write_bytes(b"")
        assert source_for(str(tmp_path / name)) == kind(str(tmp_path / name))
    assert source_for((f"{tmp_path}/*.jsonl", f"{tmp_path}/f*"), field="body") == Jsonl(
        (f"{tmp_path}/*.jsonl", f"{tmp_path}/f*"), field="body")
    several = source_for(f"{tmp_path}/*", field="body")
    assert [type(source) for source in several] == [Warc, Jsonl, Parquet, TextFiles]
    paths = tuple(f"{tmp_path}/{name}" for name in ("d.jsonl", "e.jsonl.zst", "f.ndjson.gz"))
    assert several[1] == Jsonl(paths, field="body")
    with pytest.raises(UserError, match="--field body: .*a.warc.gz has no fields; JSON lines, Parquet and TFDS"):
        source_for((f"{tmp_path}/a*", f"{tmp_path}/h*"), field="body")
    (tmp_path / "j.pdf").write_bytes(b"")
    with pytest.raises(UserError, match=r"j.pdf: not a kind of file that is read here; those end in \.warc, .*\.rst"):
        source_for(f"{tmp_path}/j.*")
    for paths in (str(tmp_path), (f"{tmp_path}/d.jsonl", str(tmp_path))):
        with pytest.raises(UserError, match="a folder; name the files in it, such as '.*/\\*.warc.gz'"):
            source_for(paths)
    with pytest.raises(UserError, match="^'': names no file"):
        source_for(("", f"{tmp_path}/d.jsonl"))
    with pytest.raises(UserError, match="k.txt: no such file"):
        source_for(f"{tmp_path}/k.txt")


# --- bad files, files far away ----------------------------------------------------------------------------------------

def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="nowhere.txt: no such file"):
        TextFiles(str(tmp_path / "nowhere.txt")).files()
    (tmp_path / "latin.txt").write_bytes("ok\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.txt, line 2: byte 3 \(0xe9\) is not UTF-8"):
        read(TextFiles(str(tmp_path / "latin.txt")))
    whole = gzip.compress(b"text" * 1000)
    for name, content in (("a.gz", b"not gzip at all"), ("b.gz", whole[:-20]), ("c.gz", whole[:12] + whole[20:]),
                          ("d.zst", b"not zstd"), ("e.zst", zstandard.compress(b"text" * 1000)[:-5])):
        (tmp_path / f"broken.txt.{name}").write_bytes(content)
        with pytest.raises(UserError, match=f"broken.txt.{name}, line 1: cannot be read"):
            read(TextFiles(str(tmp_path / f"broken.txt.{name}")))
    for source in (TextFiles, Jsonl, Parquet):
        with pytest.raises(ValueError, match="paths: name at least one file"):
            source(())


def test_files_far_away():
    import fsspec
    for name in ("b.jsonl", "a.jsonl", "folder/c.jsonl"):
        with fsspec.open(f"memory://rows/{name}", "wt") as file:
            file.write(json.dumps({"text": name}))
    assert texts(Jsonl("memory://rows/*.jsonl")) == ["a.jsonl", "b.jsonl"]
    assert texts(Jsonl("memory://rows/**/*.jsonl")) == ["a.jsonl", "b.jsonl", "folder/c.jsonl"]
    assert texts(source_for(("memory://rows/b.jsonl", "memory://rows/b*"))) == ["b.jsonl"]
    with pytest.raises(UserError, match="memory://rows/d.jsonl: no such file"):
        Jsonl("memory://rows/d.jsonl").files()
    with pytest.raises(UserError, match="nowhere://a: this kind of address cannot be opened here"):
        find_files("nowhere://a")


def test_files_on_a_web_server(tmp_path):
    pytest.importorskip("aiohttp", reason="http addresses need fsspec[http]")
    import pyarrow
    import pyarrow.parquet
    rows = [f"row {number}" for number in range(1000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)  # which cannot give ranges
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        assert texts(source_for(f"{base}/a.parquet"))[999] == "row 999"
        assert texts(source_for(f"{base}/a.txt.gz")) == ["text"]
        with open_file(f"{base}/a.txt.gz") as file:
            file.seek(2)
            assert file.read(1) == b"\x08"
        server.shutdown()


def test_pages_and_where_they_come_from(tmp_path):
    page = document("<p>tea", "x", url="http://a.example", date="2024-02-20T00:00:00Z", media_type="text/html")
    write_warc(tmp_path / "tea.warc.gz", [page])
    item, = read(source_for(str(tmp_path / "*.warc.gz")))
    assert item.id == page.id and item.source == "tea"
