"""Token shards: a tokenized corpus on disk, in the format of TensorFlow Datasets, without TensorFlow.

    shards/
      tokens-train.array_record-00000 ...   a record a document: {"id": text, "tokens": [n]}, <|bos|> first
      dataset_info.json, features.json      for tfds.builder_from_directory(folder).as_data_source("train")
      lengths-train.npy                     uint32 [documents]: where rows begin is known without reading a shard
      manifest.json                         written last: a folder without it is not a dataset

Documents lie in an order that a hash of (seed, id) decides, so that neighbours have nothing in common and the same
documents make the same bytes. A record is a tf.train.Example whose tokens are raw bytes and come last: TFDS decodes it,
and so does one np.frombuffer.
"""

from __future__ import annotations

import array
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import cannot_write, disk_is_full, read_json, write_json
from jaxgpt.data.shuffle import shuffled

NAME = "tokens"
_OPEN_SHARDS = 16
TokenDocument = tuple[str, np.ndarray, int]  # id, tokens with <|bos|> first, bytes of its text


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id of the vocabulary.

    >>> token_dtype(65536), token_dtype(65537)
    (dtype('uint16'), dtype('uint32'))
    """
    return np.min_scalar_type(vocab_size - 1)


def write_shards(directory: str | os.PathLike, splits: dict[str, Iterable[TokenDocument]], *, vocab_size: int,
                 seed: int = 0, documents_per_shard: int = 65_536, memory: int = 2**27,
                 details: dict | None = None) -> dict:
    """Writes tokenized documents and returns the manifest. The folder appears whole, in place of what was there.

    Args:
      directory: where to.
      splits: the documents of each split, read once, in any order.
      vocab_size: decides the type of the ids.
      seed: decides the order in which they are written.
      documents_per_shard: a shard's size.
      memory: bytes of documents that are sorted at a time; what is more goes to disk and back.
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
        manifest = {"vocab_size": vocab_size, "dtype": dtype.name, "seed": seed, **(details or {}), "splits": {}}
        for split, documents in splits.items():
            packed = ((name, np.asarray(tokens).astype(dtype).tobytes(), size) for name, tokens, size in documents)
            ordered = shuffled(packed, seed=seed, directory=partial, memory=memory)
            manifest["splits"][split] = _write_split(partial, split, ordered, dtype, documents_per_shard)
        _write_info(partial, dtype, manifest["splits"])
        write_json(partial / "manifest.json", manifest)
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(partial, directory)
    except (OSError, RuntimeError) as error:  # array_record reports a full disk as a RuntimeError
        if isinstance(error, RuntimeError) and not disk_is_full(error):
            raise
        raise cannot_write(directory, error) from error
    return manifest


def _write_split(directory: Path, split: str, documents: Iterable, dtype: np.dtype, documents_per_shard: int) -> dict:
    from array_record.python.array_record_module import ArrayRecordWriter

    lengths, size, shards, writer = array.array("I"), 0, {}, None
    for item in documents:
        if len(lengths) % documents_per_shard == 0:
            if writer:
                writer.close()
            name = f"{NAME}-{split}.array_record-{len(shards):05d}"
            # One document a group, for random access; not compressed: it would save a fifth and double the time to read
            writer = ArrayRecordWriter(str(directory / name), "group_size:1,uncompressed")
            shards[name] = {"documents": 0, "record_bytes": 0}
        record = _record(item.id, item.data)
        writer.write(record)
        shards[name]["documents"] += 1
        shards[name]["record_bytes"] += len(record)
        lengths.append(len(item.data) // dtype.itemsize)
        size += item.text_bytes
    if not lengths:
        raise UserError(f"the split '{split}' holds no documents, so there is nothing to tokenize")
    writer.close()
    for name, entry in shards.items():
        entry["bytes"] = (directory / name).stat().st_size
    np.save(directory / f"lengths-{split}.npy", np.asarray(lengths, np.uint32))
    return {"documents": len(lengths), "tokens": int(np.sum(lengths, dtype=np.int64)), "bytes": size, "shards": shards}


def _record(name: str, data: bytes) -> bytes:
    """A tf.train.Example; its features in alphabetical order, which they are not by themselves."""
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    feature = {key: tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))
               for key, value in (("id", name.encode()), ("tokens", data))}
    example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def _write_info(directory: Path, dtype: np.dtype, splits: dict) -> None:
    """What TFDS needs to read the folder."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({
        "id": tfds.features.Text(),
        "tokens": tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes"),
    })
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version("1.0.0"), data_dir=str(directory), module_name="jaxgpt")
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict([
        tfds.core.SplitInfo(
            name=split, shard_lengths=[shard["documents"] for shard in entry["shards"].values()],
            num_bytes=sum(shard["record_bytes"] for shard in entry["shards"].values()),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=directory, template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}", dataset_name=NAME,
                split=split, filetype_suffix="array_record"))
        for split, entry in splits.items()]))
    info.write_to_directory(directory)


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
        for name, shard in entry["shards"].items():
            if not isinstance(shard, dict):
                raise UserError(f"{directory}: shards of an earlier version of jaxgpt; write the shards anew")
            actual = (directory / name).stat().st_size if (directory / name).exists() else None
            if actual != shard["bytes"]:
                found = "is missing" if actual is None else f"has {actual} bytes"
                raise UserError(f"{directory / name}: {found}, the manifest says {shard['bytes']} bytes; "
                                "write the shards anew")
    return manifest


class TokenShards:
    """The tokenized documents of one split, by index. Nothing of them stays in memory.

    Attributes:
      manifest: of the folder.
      lengths: [documents] how many tokens each has, on disk.
      dtype: of the tokens.
    """

    def __init__(self, directory: str | os.PathLike, split: str):
        """Raises UserError where the folder or the split is not there."""
        self.directory, self.split, self.manifest = Path(directory), split, read_manifest(directory)
        if split not in self.manifest["splits"]:
            raise UserError(f"{directory}: no split '{split}'; it has {', '.join(self.manifest['splits'])}")
        self.lengths = np.load(self.directory / f"lengths-{split}.npy", mmap_mode="r")
        self.dtype = np.dtype(self.manifest["dtype"])
        shards = self.manifest["splits"][split]["shards"]
        self._names = list(shards)
        self._ends = np.cumsum([shard["documents"] for shard in shards.values()])
        self._readers: dict[int, object] = {}

    def __reduce__(self):
        return TokenShards, (self.directory, self.split)  # another process opens the files for itself

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The tokens of some documents, `<|bos|>` first; fastest for thousands at a time, in ascending order."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"document {indices.min() if indices.min() < 0 else indices.max()} of {len(self)}")
        shards = np.searchsorted(self._ends, indices, side="right")
        cuts = np.flatnonzero(np.diff(shards)) + 1
        records = []
        for number, members in zip(shards[[0, *cuts]].tolist(), np.split(indices, cuts)) if len(indices) else ():
            begin = int(self._ends[number - 1]) if number else 0
            records += self._reader(number).read((members - begin).tolist())
        size = self.dtype.itemsize
        return [np.frombuffer(record, self.dtype, count, len(record) - count * size)
                for record, count in zip(records, self.lengths[indices].tolist())]

    def _reader(self, number: int):
        """Of a shard; neighbouring documents are read together, so that few shards are open at a time."""
        from array_record.python.array_record_module import ArrayRecordReader

        if number not in self._readers:
            if len(self._readers) == _OPEN_SHARDS:
                self._readers.pop(next(iter(self._readers))).close()
            self._readers[number] = ArrayRecordReader(str(self.directory / self._names[number]),
                                                      options="readahead_buffer_size:0", file_reader_buffer_size=2**15)
        return self._readers[number]

    def __getitem__(self, index: int) -> np.ndarray:
        """The tokens of a document, `<|bos|>` first."""
        return self.read([index])[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        for begin in range(0, len(self), 4096):
            yield from self.read(np.arange(begin, min(begin + 4096, len(self))))
