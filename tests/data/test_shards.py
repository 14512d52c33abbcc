"""Token shards: what is written is what tfds and we read."""

import sys

import numpy as np
import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import read_json
from jaxgpt.data.shards import TokenShards, read_manifest, token_dtype, write_shards


def documents(count, vocab_size=4096, seed=0):
    rng = np.random.default_rng(seed)
    return [(f"id{i}", rng.integers(0, vocab_size, rng.integers(1, 300)), 10 + i) for i in range(count)]


@pytest.fixture
def folder(tmp_path):
    splits = {"train": iter(documents(25)), "val": iter(documents(3, seed=1))}
    write_shards(tmp_path / "shards", splits, vocab_size=4096, documents_per_shard=10, details={"bos": 4000})
    return tmp_path / "shards"


@pytest.mark.parametrize("split, count, seed", [("train", 25, 0), ("val", 3, 1)])
def test_tfds_reads_it_without_tensorflow(folder, split, count, seed):
    import tensorflow_datasets as tfds

    records = tfds.builder_from_directory(str(folder)).as_data_source(split)
    assert len(records) == count
    for record, (name, tokens, _) in zip(records, documents(count, seed=seed)):
        assert record["id"].decode() == name
        assert record["tokens"].dtype == np.uint16 and np.array_equal(record["tokens"], tokens)
    assert "tensorflow" not in sys.modules


def test_manifest_and_lengths(folder):
    manifest = read_manifest(folder)
    expected = documents(25)
    assert manifest["splits"]["train"]["documents"] == 25
    assert manifest["splits"]["train"]["tokens"] == sum(len(tokens) for _, tokens, _ in expected)
    assert manifest["splits"]["train"]["bytes"] == sum(size for *_, size in expected)
    assert len(manifest["splits"]["train"]["shards"]) == 3 and manifest["bos"] == 4000 and manifest["dtype"] == "uint16"
    assert np.load(folder / "lengths-train.npy").tolist() == [len(tokens) for _, tokens, _ in expected]


def test_reader_gives_documents_by_index_within_its_memory(folder):
    shards = TokenShards(folder, "train", cache_bytes=1500)
    expected = documents(25)
    for index in np.random.default_rng(0).integers(0, 25, 200):
        assert np.array_equal(shards[int(index)], expected[index][1])
        assert shards._cached == sum(tokens.nbytes for tokens in shards._cache.values()) <= 1500
    assert len(shards) == 25 and [len(tokens) for tokens in shards] == shards.lengths.tolist()


def test_same_documents_same_bytes(folder, tmp_path):
    splits = {"train": documents(25), "val": documents(3, seed=1)}
    write_shards(tmp_path / "again", splits, vocab_size=4096, documents_per_shard=10, details={"bos": 4000})
    for path in sorted(folder.iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_a_failed_write_leaves_what_was_there(folder):
    def broken():
        yield from documents(5)
        raise KeyboardInterrupt

    before = read_json(folder / "manifest.json")
    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, {"train": broken()}, vocab_size=4096)
    assert read_manifest(folder) == before
    with pytest.raises(UserError, match="'train' holds no documents"):
        write_shards(folder, {"train": []}, vocab_size=4096)
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


def test_smallest_type():
    assert [token_dtype(size).name for size in (256, 257, 65536, 65537)] == ["uint8", "uint16", "uint16", "uint32"]
