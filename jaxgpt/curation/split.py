"""Train and validation, divided by document, so that no document is seen on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from jaxgpt.core.errors import UserError
from jaxgpt.curation.document import Document, document


def side(document_id: str, val_fraction: float) -> str:
    """"train" or "val", decided by a hash of the id alone: adding documents moves none of the others.

    >>> side("2cf24dba5fb0a30e26e8", 0.05), side("2cf24dba5fb0a30e26e8", 0.99)
    ('train', 'val')
    """
    number = int.from_bytes(hashlib.sha256(b"split" + document_id.encode()).digest()[:8], "big")
    return "val" if number < val_fraction * 2**64 else "train"


def split_by_hash(documents: Sequence[Document], val_fraction: float) -> dict[str, list[Document]]:
    """About `val_fraction` of the documents go to "val", the others to "train", each side in the order given.

    Raises:
      UserError: one side would be empty.
    """
    sides: dict[str, list[Document]] = {"train": [], "val": []}
    for item in documents:
        sides[side(item.id, val_fraction)].append(item)
    return _both(sides, len(documents), val_fraction)


def split_tail(documents: Sequence[Document], val_fraction: float) -> dict[str, list[Document]]:
    """The last `val_fraction` of the corpus's characters are "val"; a document that straddles the cut is divided there.

    This is how a corpus that is one long file (tinyshakespeare) is split: train is text[:int(n * (1 - val_fraction))].

    Raises:
      UserError: one side would be empty.

    >>> parts = split_tail([document("0123456789", "digits")], 0.1)
    >>> parts["train"][0].text, parts["val"][0].text
    ('012345678', '9')
    """
    left = int(sum(len(item.text) for item in documents) * (1 - val_fraction))
    sides: dict[str, list[Document]] = {"train": [], "val": []}
    for item in documents:
        head, tail = item.text[:left], item.text[left:]
        left -= len(head)
        for name, text in (("train", head), ("val", tail)):
            if text:
                sides[name].append(item if text == item.text else document(text, item.source))
    return _both(sides, len(documents), val_fraction)


def _both(sides: dict[str, list[Document]], count: int, val_fraction: float) -> dict[str, list[Document]]:
    for name, items in sides.items():
        if not items:
            raise UserError(f"the split leaves no document for '{name}' (documents: {count}, val_fraction: "
                            f"{val_fraction}); give more documents (TextFiles has a separator), another "
                            "val_fraction, or split='tail'")
    return sides
