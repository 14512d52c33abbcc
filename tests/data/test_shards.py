"""Token shards: what is written is what tfds and we read."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import read_json, write_json
from jaxgpt.data import shards as shards_module
from jaxgpt.data.shards import TokenShards, read_manifest, token_dtype, write_shards
from jaxgpt.data.shuffle import order_key


def documents(count, vocab_size=4096, seed=0):
    rng = np.random.default_rng(seed)
    return [(f"id{i}", rng.integers(0, vocab_size, rng.integers(1, 300)), 10 + i) for i in range(count)]


def in_order(items, seed=5):
    return sorted(items, key=lambda item: order_key(seed, item[0]))


def write(folder, splits, **options):
    return write_shards(folder, splits, **{"vocab_size": 4096, "seed": 5, "documents_per_shard": 10, **options})


@pytest.fixture
def folder(tmp_path):
    splits = {"train": iter(documents(25)), "val": iter(documents(3, seed=1))}
    write(tmp_path / "shards", splits, details={"bos": 4000})
    return tmp_path / "shards"


@pytest.mark.parametrize("split, count, seed", [("train", 25, 0), ("val", 3, 1)])
def test_tfds_reads_it_without_tensorflow(folder, split, count, seed):
    import tensorflow_datasets as tfds

    records = tfds.builder_from_directory(str(folder)).as_data_source(split)
    assert len(records) == count
    for record, (name, tokens, _) in zip(records, in_order(documents(count, seed=seed))):
        assert record["id"].decode() == name
        assert record["tokens"].dtype == np.uint16 and np.array_equal(record["tokens"], tokens)
    assert "tensorflow" not in sys.modules


def test_tfds_finds_it_by_name_where_it_looks_for_datasets(folder, tmp_path):
    import tensorflow_datasets as tfds

    shutil.copytree(folder, tmp_path / "datasets" / "tokens" / "1.0.0")
    records = tfds.data_source("tokens", split="train", data_dir=str(tmp_path / "datasets"))
    assert [len(record["tokens"]) for record in records] == np.load(folder / "lengths-train.npy").tolist()


def test_tokens_are_raw_bytes_at_the_end_of_a_record(folder):
    import tensorflow_datasets as tfds

    raw = tfds.builder_from_directory(str(folder)).as_data_source(
        "train", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    for record, (name, tokens, _) in zip(raw, in_order(documents(25))):
        assert record.endswith(tokens.astype("<u2").tobytes()) and name.encode() in record
        assert len(record) - 2 * len(tokens) < 60


def test_manifest_and_lengths(folder):
    manifest = read_manifest(folder)
    expected, entry = in_order(documents(25)), manifest["splits"]["train"]
    assert entry["documents"] == 25 and entry["tokens"] == sum(len(tokens) for _, tokens, _ in expected)
    assert entry["bytes"] == sum(size for *_, size in expected)
    assert [shard["documents"] for shard in entry["shards"].values()] == [10, 10, 5]
    assert (manifest["bos"], manifest["dtype"], manifest["seed"]) == (4000, "uint16", 5)
    assert np.load(folder / "lengths-train.npy").tolist() == [len(tokens) for _, tokens, _ in expected]


@pytest.mark.parametrize("vocab_size", [200, 4096, 100_000])
def test_reader_gives_documents_by_index(tmp_path, vocab_size, monkeypatch):
    monkeypatch.setattr(shards_module, "_OPEN_SHARDS", 2)
    write(tmp_path / "shards", {"train": documents(55, vocab_size)}, vocab_size=vocab_size)
    shards, expected = TokenShards(tmp_path / "shards", "train"), in_order(documents(55, vocab_size))
    indices = np.random.default_rng(0).integers(0, 55, 200)
    for found, index in zip(shards.read(indices), indices):
        assert np.array_equal(found, expected[index][1]) and found.dtype == token_dtype(vocab_size)
        assert np.array_equal(shards[int(index)], found)
    assert len(shards._readers) == 2 and shards.read([]) == []
    assert len(shards) == 55 and [len(tokens) for tokens in shards] == shards.lengths.tolist()
    again = pickle.loads(pickle.dumps(shards))  # as for another process
    assert np.array_equal(again[54], shards[54])
    for wrong in (-1, 55):
        with pytest.raises(IndexError, match=f"document {wrong} of 55"):
            shards[wrong]


def test_same_documents_same_bytes_in_any_order(folder, tmp_path):
    splits = {"train": documents(25)[::-1], "val": documents(3, seed=1)[::-1]}
    write(tmp_path / "again", splits, details={"bos": 4000}, memory=5000)
    assert len(list(folder.iterdir())) == 9
    for path in sorted(folder.iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    write(tmp_path / "other", {"train": documents(25)}, seed=6)
    assert (tmp_path / "other" / "lengths-train.npy").read_bytes() != (folder / "lengths-train.npy").read_bytes()


def test_same_bytes_in_another_process(folder, tmp_path):
    """A protocol buffer's map has no order of its own: some processes write it the other way round."""
    name = "tokens-val.array_record-00000"
    code = (f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[2])]}\n"
            "import test_shards\n"
            f"test_shards.write({str(tmp_path / 'again')!r}, {{'val': test_shards.documents(3, seed=1)}})")
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_failed_write_leaves_what_was_there(folder):
    def broken():
        yield from documents(5)
        raise KeyboardInterrupt

    before = read_json(folder / "manifest.json")
    with pytest.raises(KeyboardInterrupt):
        write(folder, {"train": broken()})
    assert read_manifest(folder) == before
    with pytest.raises(UserError, match="'train' holds no documents"):
        write(folder, {"train": []})
    assert read_manifest(folder) == before


def test_incomplete_folders_are_refused(folder):
    with pytest.raises(UserError, match="no token shards here"):
        TokenShards(folder / "nowhere", "train")
    with pytest.raises(UserError, match="no split 'test'; it has train, val"):
        TokenShards(folder, "test")
    shard = sorted(folder.glob("*array_record*"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{shard.name}: has .* bytes, the manifest says"):
        TokenShards(folder, "train")
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: is missing"):
        TokenShards(folder, "train")


def test_shards_of_before_are_refused(folder):
    manifest = read_json(folder / "manifest.json")
    for entry in manifest["splits"].values():
        entry["shards"] = {name: shard["bytes"] for name, shard in entry["shards"].items()}
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(UserError, match="shards of an earlier version of jaxgpt; write the shards anew"):
        TokenShards(folder, "train")


def test_smallest_type():
    assert [token_dtype(size).name for size in (256, 257, 65536, 65537)] == ["uint8", "uint16", "uint16", "uint32"]
