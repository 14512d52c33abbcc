"""The recipe of FineWeb: which steps, in which order. (Being built.)"""

from __future__ import annotations

import importlib


def fineweb():
    """FineWeb's steps with its thresholds."""
    found = []
    for module, name in (("url", "UrlFilter"), ("extract", "Extract"), ("language", "Language"), ("quality", "GopherRepetition"),
                         ("quality", "GopherQuality"), ("quality", "C4"), ("quality", "FineWebQuality"),
                         ("duplicates", "ExactDuplicates"), ("minhash", "MinHash"), ("pii", "ReplacePII")):
        try:
            found.append(getattr(importlib.import_module(f"jaxgpt.curation.{module}"), name)())
        except (ImportError, AttributeError):
            pass
    return tuple(found)
