"""Token shards: a tokenized corpus on disk, in the format of TensorFlow Datasets, without TensorFlow.

    tokens/
      tokens-train.array_record-00000 ...   a record a document: {"id": text, "tokens": [n]}, <|bos|> first
      dataset_info.json, features.json      for tfds.builder_from_directory(folder).as_data_source("train")
      lengths-train.npy                     uint32 [documents]: where rows begin is known without reading a shard
      manifest.json                         written last: a folder without it is not a dataset
"""

from __future__ import annotations

import array
import collections
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import cannot_write, read_json, write_json

NAME = "tokens"
TokenDocument = tuple[str, np.ndarray, int]  # id, tokens with <|bos|> first, bytes of its text


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id of the vocabulary.

    >>> token_dtype(65536), token_dtype(65537)
    (dtype('uint16'), dtype('uint32'))
    """
    return np.min_scalar_type(vocab_size - 1)


def write_shards(directory: str | os.PathLike, splits: dict[str, Iterable[TokenDocument]], *, vocab_size: int,
                 documents_per_shard: int = 65_536, details: dict | None = None) -> dict:
    """Writes tokenized documents and returns the manifest. The folder appears whole, in place of what was there.

    Args:
      directory: where to.
      splits: the documents of each split, read once and in order.
      vocab_size: decides the type of the ids.
      documents_per_shard: a shard's size.
      details: further members of the manifest.

    Raises:
      UserError: the disk is full, or a split is empty.
    """
    directory = Path(directory)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        dtype = token_dtype(vocab_size)
        manifest = {"vocab_size": vocab_size, "dtype": dtype.name, **(details or {}), "splits": {}}
        writer = _tfds_writer(partial, dtype, documents_per_shard)
        writer.initialize_splits(list(splits))
        for split, documents in splits.items():
            manifest["splits"][split] = _write_split(writer, partial, split, documents, dtype)
        writer.close_all()
        for split, entry in manifest["splits"].items():
            shards = sorted(partial.glob(f"{NAME}-{split}.*"))
            entry["shards"] = {shard.name: shard.stat().st_size for shard in shards}
        write_json(partial / "manifest.json", manifest)
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(partial, directory)
    except (OSError, RuntimeError) as error:  # array_record reports a full disk as a RuntimeError
        if isinstance(error, RuntimeError) and "No space left" not in str(error):
            raise
        raise cannot_write(directory, error) from error
    return manifest


def _write_split(writer, directory: Path, split: str, documents: Iterable[TokenDocument], dtype: np.dtype) -> dict:
    lengths, size = array.array("I"), 0

    def records() -> Iterator[dict]:
        nonlocal size
        for name, tokens, text_bytes in documents:
            lengths.append(len(tokens))
            size += text_bytes
            yield {"id": name, "tokens": np.asarray(tokens).astype(dtype)}

    writer.add_examples({split: records()})  # in one call: the writer rewrites its metadata after each
    if not lengths:
        raise UserError(f"the split '{split}' holds no documents, so there is nothing to tokenize")
    np.save(directory / f"lengths-{split}.npy", np.asarray(lengths, np.uint32))
    return {"documents": len(lengths), "tokens": int(np.sum(lengths, dtype=np.int64)), "bytes": size}


def _tfds_writer(directory: Path, dtype: np.dtype, documents_per_shard: int):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({
        "id": tfds.features.Text(),
        "tokens": tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes"),
    })
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version("1.0.0"), data_dir=str(directory), module_name="jaxgpt")
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    return tfds.core.SequentialWriter(info, documents_per_shard, file_format="array_record")


def read_manifest(directory: str | os.PathLike) -> dict:
    """The manifest of a folder of shards, after checking that every shard is there and whole.

    Raises:
      UserError: the folder is not a complete dataset, or a shard is missing or has another size.
    """
    directory = Path(directory)
    if not (directory / "manifest.json").exists():
        raise UserError(f"{directory}: no token shards here (manifest.json is missing); run the stage that writes them")
    manifest = read_json(directory / "manifest.json")
    for entry in manifest["splits"].values():
        for name, size in entry["shards"].items():
            actual = (directory / name).stat().st_size if (directory / name).exists() else None
            if actual != size:
                found = "is missing" if actual is None else f"has {actual} bytes"
                raise UserError(f"{directory / name}: {found}, the manifest says {size} bytes; write the shards anew")
    return manifest


class TokenShards:
    """The tokenized documents of one split, by index.

    Documents that were read lately stay in memory, up to `cache_bytes`: a small corpus is read once.

    Attributes:
      manifest: of the folder.
      lengths: [documents] how many tokens each has.
    """

    def __init__(self, directory: str | os.PathLike, split: str, *, cache_bytes: int = 2**29):
        """Raises UserError where the folder or the split is not there."""
        import tensorflow_datasets as tfds

        self.directory, self.split, self.manifest = Path(directory), split, read_manifest(directory)
        if split not in self.manifest["splits"]:
            raise UserError(f"{directory}: no split '{split}'; it has {', '.join(self.manifest['splits'])}")
        self.lengths = np.load(self.directory / f"lengths-{split}.npy", mmap_mode="r")
        self._records = tfds.builder_from_directory(str(directory)).as_data_source(split)
        self._cache: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._cached, self._cache_bytes, self._lock = 0, cache_bytes, threading.Lock()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        """The tokens of a document, `<|bos|>` first."""
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
            tokens = self._cache[index] = self._records[index]["tokens"]
            self._cached += tokens.nbytes
            while self._cached > self._cache_bytes and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
            return tokens

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))
