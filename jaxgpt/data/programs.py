"""The stages of chapters 1 and 2: gather and clean documents, train a tokenizer, turn the text into tokens.

Source: Karpathy, "Deep Dive into LLMs like ChatGPT" (2025), "Pretraining data" and "Tokenization".
"""

from __future__ import annotations

import dataclasses
import itertools
import lzma
from collections.abc import Iterable, Iterator

import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, Stage
from jaxgpt.core.files import read_json, sha256, write_json
from jaxgpt.data.clean import amount, drop_exact_duplicates, drop_repeated_paragraphs
from jaxgpt.data.documents import Document, Jsonl, TextFiles, read_documents, write_documents
from jaxgpt.data.minhash import connected_components, linked_pairs, shingles, signature
from jaxgpt.data.python_docs import PythonDocs
from jaxgpt.data.remote import RemoteText
from jaxgpt.data.shards import TokenDocument, write_shards
from jaxgpt.data.split import split_by_hash, split_tail
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.tokenizer import TIKTOKEN_NAMES, Tokenizer

SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class Curate(Stage):
    """Documents from a source, cleaned, without duplicates, divided into train and validation.

    Attributes:
      source: where the documents come from.
      min_characters: shorter documents are dropped.
      repeated_paragraph: a paragraph of at least this many characters stays only where it stands first; None keeps all.
      near_duplicate_threshold: of documents at least this similar (Jaccard, runs of 5 words) one stays; None keeps all.
      val_fraction: the part held out.
      split: "hash" divides by document; "tail" holds out the end of the corpus, for a corpus that is one text.
    """

    name: str = "curate"
    source: PythonDocs | TextFiles | Jsonl | RemoteText = PythonDocs()
    min_characters: int = 200
    repeated_paragraph: int | None = 40
    near_duplicate_threshold: float | None = 0.8
    val_fraction: float = 0.05
    split: str = "hash"

    def __post_init__(self):
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction: must be between 0 and 1, not {self.val_fraction}")
        if self.near_duplicate_threshold is not None and not 0 < self.near_duplicate_threshold <= 1:
            raise ValueError("near_duplicate_threshold: must be above 0 and at most 1, not "
                             f"{self.near_duplicate_threshold}")
        if self.split not in ("hash", "tail"):
            raise ValueError(f"split: must be 'hash' or 'tail', not {self.split!r}")

    def run(self, context: Context) -> dict:
        """Writes documents/train.jsonl, documents/val.jsonl and stats.json (what each step left, by source).

        Raises:
          UserError: a malformed source, an empty corpus, or one that cannot be split.
        """
        stats = {}

        def after(step: str, documents: list[Document]) -> list[Document]:
            stats[step] = dataclasses.asdict(amount(documents))
            context.log(f"{self.name}: {step}: {len(documents):,} documents, {stats[step]['bytes'] / 1e6:.2f} MB")
            context.check_stop()
            if not documents:
                raise UserError(f"stage '{self.name}': the corpus is empty after the step '{step}' "
                                f"(source: {self.source})")
            return documents

        cache = context.directory / "source"
        documents = after("gathered", list(self.source.documents(cache)))
        documents = after("exact duplicates dropped", drop_exact_duplicates(documents))
        if self.near_duplicate_threshold is not None:
            unique = drop_near_duplicates(documents, self.near_duplicate_threshold, context)
            documents = after("near-duplicates dropped", unique)
        if self.repeated_paragraph is not None:
            cleaned = drop_repeated_paragraphs(documents, min_characters=self.repeated_paragraph)
            documents = after("repeated paragraphs dropped", drop_exact_duplicates(cleaned))
        long_enough = [item for item in documents if len(item.text) >= self.min_characters]
        documents = after("short documents dropped", long_enough)
        divide = {"hash": split_by_hash, "tail": split_tail}[self.split]
        parts = divide(documents, self.val_fraction)
        hashes = {}
        for split in SPLITS:
            stats[split] = dataclasses.asdict(amount(parts[split]))
            write_documents(context.directory / "documents" / f"{split}.jsonl", parts[split])
            hashes[split] = sha256(context.directory / "documents" / f"{split}.jsonl")
        write_json(context.directory / "stats.json", stats)
        skipped = read_json(cache / "skipped.json") if (cache / "skipped.json").exists() else {}
        for name, reason in skipped.items():
            context.log(f"{self.name}: skipped {name}: {reason}")
        totals = {step: {"documents": entry["documents"], "bytes": entry["bytes"]} for step, entry in stats.items()}
        return {"documents": "documents", "stats": "stats.json", "sha256": hashes, "steps": totals,
                "skipped": len(skipped)}


def drop_near_duplicates(documents: list[Document], threshold: float, context: Context) -> list[Document]:
    """Of each cluster of near-duplicates keeps the longest document (of equals the one with the smallest id)."""
    progress, signatures = context.progress(len(documents), "documents", "minhash"), []
    for item in documents:
        signatures.append(signature(shingles(item.text)))
        progress.update()
    progress.close()
    components = connected_components(len(documents), linked_pairs(np.stack(signatures), threshold))
    clusters: dict[int, list[Document]] = {}
    for item, cluster in zip(documents, components):
        clusters.setdefault(cluster, []).append(item)
    kept = {min(items, key=lambda item: (-len(item.text), item.id)).id for items in clusters.values()}
    return [item for item in documents if item.id in kept]


@dataclasses.dataclass(frozen=True)
class TrainTokenizer(Stage):
    """Byte-level BPE, learned from the training split alone.

    Attributes:
      vocab_size: tokens in all: 256 bytes, the special tokens, and what is learned.
      digits: how many digits a token may hold at most; 1 makes arithmetic easier for a small model.
      corpus: the stage that wrote the documents.
      trainer: "rustbpe", or "reference" for the same result slowly.
    """

    name: str = "tokenizer"
    vocab_size: int = 4096
    digits: int = 1
    corpus: str = "curate"
    trainer: str = "rustbpe"

    def inputs(self) -> tuple[str, ...]:
        return (self.corpus,)

    def run(self, context: Context) -> dict:
        """Writes the tokenizer; reports how many bytes a token stands for on text that it did not see.

        Raises:
          UserError: the vocabulary is too small, or larger than the corpus can fill.
        """
        folder = context.path(self.corpus, "documents")
        pattern = bpe.split_pattern(digits=self.digits)
        texts = (item.text for item in read_documents(folder / "train.jsonl"))
        ranks = bpe.train(texts, self.vocab_size, pattern=pattern, trainer=self.trainer)
        tokenizer = Tokenizer(ranks, pattern=pattern, name=f"{context.experiment.name} {self.name}")
        path = tokenizer.save(context.directory)
        held_out = [item.text for item in read_documents(folder / "val.jsonl")]
        tokens = sum(map(len, tokenizer.encode_batch(held_out)))
        bytes_per_token = sum(len(text.encode("utf-8")) for text in held_out) / tokens
        context.log(f"{self.name}: {tokenizer.vocab_size:,} tokens, {bytes_per_token:.2f} bytes each on validation")
        return {"tokenizer": path.name, "fingerprint": tokenizer.fingerprint(), "vocab_size": tokenizer.vocab_size,
                "val_bytes_per_token": round(bytes_per_token, 4)}


@dataclasses.dataclass(frozen=True)
class Tokenize(Stage):
    """Both splits as token shards, and what a general compressor makes of the validation split.

    Attributes:
      corpus: the stage that wrote the documents.
      tokenizer: the stage that wrote the tokenizer, or the name of one of tiktoken's encodings, such as "gpt2".
      documents_per_shard: a shard's size.
      xz: whether to measure the compressor.
    """

    name: str = "tokenize"
    corpus: str = "curate"
    tokenizer: str = "tokenizer"
    documents_per_shard: int = 65_536
    xz: bool = True

    def inputs(self) -> tuple[str, ...]:
        return (self.corpus,) if self._encoding() else (self.corpus, self.tokenizer)

    def _encoding(self) -> bool:
        return self.tokenizer in TIKTOKEN_NAMES

    def run(self, context: Context) -> dict:
        """Writes shards/ (see shards.py).

        Raises:
          UserError: the corpus or the tokenizer is missing, or the disk is full.
        """
        if self._encoding():
            tokenizer = Tokenizer.from_tiktoken(self.tokenizer)
        else:
            tokenizer = Tokenizer.load(context.path(self.tokenizer, "tokenizer"))
        paths = {split: context.path(self.corpus, "documents") / f"{split}.jsonl" for split in SPLITS}
        total = context.output(self.corpus, "steps")
        progress = context.progress(sum(total[split]["documents"] for split in SPLITS), "documents", "tokenize")

        def watched(documents: Iterable[TokenDocument]) -> Iterator[TokenDocument]:
            for item in documents:
                yield item
                progress.update()
                context.check_stop()

        manifest = write_shards(
            context.directory / "shards",
            {split: watched(encode(tokenizer, read_documents(path))) for split, path in paths.items()},
            vocab_size=tokenizer.vocab_size, documents_per_shard=self.documents_per_shard,
            details={"bos": tokenizer.bos, "tokenizer": tokenizer.fingerprint(),
                     "corpus": context.output(self.corpus, "sha256")})
        progress.close()
        outputs = {"shards": "shards", "vocab_size": tokenizer.vocab_size,
                   "tokenizer": tokenizer.save(context.directory).name,
                   "tokenizer_fingerprint": tokenizer.fingerprint()}
        for split, entry in manifest["splits"].items():
            outputs[split] = {name: entry[name] for name in ("documents", "tokens", "bytes")}
            context.log(f"{self.name}: {split}: {entry['tokens']:,} tokens, {entry['bytes'] / 1e6:.2f} MB")
        if self.xz:
            outputs["xz_bits_per_byte"] = xz_bits_per_byte(item.text for item in read_documents(paths["val"]))
            context.log(f"{self.name}: xz -9 needs {outputs['xz_bits_per_byte']:.4f} bits per byte on validation")
        return outputs


def encode(tokenizer: Tokenizer, documents: Iterable[Document], *, together: int = 256) -> Iterator[TokenDocument]:
    """Yields (id, tokens, bytes) of each document, `<|bos|>` first; `together` documents are encoded at a time."""
    documents = iter(documents)
    while group := list(itertools.islice(documents, together)):
        for item, tokens in zip(group, tokenizer.encode_batch(item.text for item in group)):
            yield item.id, np.array([tokenizer.bos, *tokens]), len(item.text.encode("utf-8"))


def xz_bits_per_byte(texts: Iterable[str]) -> float:
    """What `xz -9` needs when it compresses each text by itself: 8 * compressed bytes / bytes, over all texts.

    The dictionary is no larger than the text, where `xz` would set 64 MB aside: the same bytes, twenty times as fast.

    >>> round(xz_bits_per_byte(["abcd" * 1000]), 2)
    0.19
    """
    compressed = total = 0
    for text in texts:
        data = text.encode("utf-8")
        dictionary = min(max(len(data), 4096), 64 * 2**20)
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}]
        compressed += len(lzma.compress(data, filters=filters))
        total += len(data)
    return 8 * compressed / max(1, total)
