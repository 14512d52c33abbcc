"""The stage of chapter 1: gather and clean documents.

Source: Karpathy, "Deep Dive into LLMs like ChatGPT" (2025), "Pretraining data".
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, Stage
from jaxgpt.core.files import read_json, sha256, write_json
from jaxgpt.curation.clean import amount, drop_exact_duplicates, drop_repeated_paragraphs
from jaxgpt.curation.document import Document
from jaxgpt.curation.minhash import connected_components, linked_pairs, shingles, signature
from jaxgpt.curation.python_docs import PythonDocs
from jaxgpt.curation.remote import RemoteText
from jaxgpt.curation.sources import Jsonl, TextFiles, write_documents
from jaxgpt.curation.split import split_by_hash, split_tail

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
