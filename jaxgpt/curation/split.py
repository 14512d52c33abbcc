"""Train and validation, divided by document, so that no document is seen on both sides."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator

from jaxgpt.core.errors import UserError
from jaxgpt.curation.document import Document, document

SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class Split:
    """How a corpus is divided.

    Attributes:
      kind: "hash" divides by document; "tail" holds out the end of the corpus, for a corpus that is one text.
      val_fraction: the part held out: of the documents, about, or exactly of the characters. 0 holds nothing out.
    """

    kind: str = "hash"
    val_fraction: float = 0.05

    def __post_init__(self):
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction: must be at least 0 and below 1, not {self.val_fraction}")
        if self.kind not in ("hash", "tail"):
            raise ValueError(f"split: must be 'hash' or 'tail', not {self.kind!r}")

    @property
    def waits(self) -> bool:
        """Whether it must know the length of the whole corpus."""
        return self.kind == "tail"


def side(document_id: str, val_fraction: float) -> str:
    """"train" or "val", decided by a hash of the id alone: adding documents moves none of the others.

    The first 16 digits of the id decide. Copies within one file share them (see work.py), so they stay on one side.

    >>> side("2cf24dba5fb0a30e26e83b2ac5b9e29e", 0.05), side("2cf24dba5fb0a30e26e83b2ac5b9e29e", 0.99)
    ('train', 'val')
    """
    number = int.from_bytes(hashlib.sha256(b"split" + document_id[:16].encode()).digest()[:8], "big")
    return "val" if number < val_fraction * 2**64 else "train"


def cut_at(item: Document, left: int) -> Iterator[tuple[str, Document]]:
    """A document's share of each side, where the first `left` characters from its start are "train".

    A document that straddles the cut is divided there. This is how a corpus that is one long file (tinyshakespeare) is
    split: train is text[:int(n * (1 - val_fraction))].

    >>> [(name, share.text) for name, share in cut_at(document("0123456789", "digits"), 9)]
    [('train', '012345678'), ('val', '9')]
    """
    left = max(0, left)
    for name, text in zip(SPLITS, (item.text[:left], item.text[left:])):
        if text == item.text:
            yield name, item
        elif text:
            yield name, document(text, item.source, url=item.url, date=item.date)


def check_sides(counts: dict[str, int], split: Split) -> None:
    """Refuses a corpus that one side gets nothing of.

    Raises:
      UserError: names the side.
    """
    for name in SPLITS if split.val_fraction else ():
        if not counts.get(name):
            raise UserError(f"the split leaves no document for '{name}' (documents: {sum(counts.values())}, "
                            f"val_fraction: {split.val_fraction}); give more documents (TextFiles has a separator), "
                            "another val_fraction, or split='tail'")
