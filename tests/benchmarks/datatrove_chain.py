"""datatrove's own chain, as its example for FineWeb builds it, on WARC files of this machine.

Not run by itself. It differs from that example where a benchmark must: languages are told by py3langid, as on our side,
since lid.176 is a download; URLs are held against the lists that are given; trafilatura does not remove duplicates
(that option goes by what it has seen before); the PII step follows the search for duplicates as in FineWeb.

Source: datatrove, examples/fineweb.py.
"""

from __future__ import annotations

import contextlib
import functools
import io
from pathlib import Path

LANGUAGE_THRESHOLD = 0.65


class Py3Langid:
    """In the place of datatrove's fastText model: the best language, and all that were asked for."""

    def predict(self, doc):
        (code, score) = _identifier().classify(doc.text.replace("\n", " "))
        return (code, float(score)), {"en": float(score) if code == "en" else 0.0}


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def run(inputs: str, output: str, *, tasks: int, lists: str | None, timeout: float) -> int:
    """Takes all files of a folder through the chain, one task after the other; returns how many documents are left.

    Args:
      inputs: a folder of WARC files.
      output: an empty folder.
      tasks: how many files there are.
      lists: a folder of lists of words for the URL filter; without it the filter has no words.
      timeout: of trafilatura, seconds a page.
    """
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import (
        C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter)
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import JsonlReader, WarcReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.hashing import HashConfig
    removed = lambda name: JsonlWriter(f"{output}/removed/{name}")  # noqa: E731
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8,
                           hash_config=HashConfig(hash_fc="sha1", precision=64))
    kept, minhash, logs = f"{output}/filtered", f"{output}/minhash", f"{output}/logs"
    stages = [
        ([WarcReader(inputs),
          _url_filter(lists, removed("url")),
          Trafilatura(favour_precision=True, deduplicate=False, timeout=timeout),
          _language_filter(removed("language")),
          GopherRepetitionFilter(exclusion_writer=removed("gopher_repetition")),
          GopherQualityFilter(exclusion_writer=removed("gopher_quality")),
          C4QualityFilter(filter_no_terminal_punct=False, exclusion_writer=removed("c4")),
          FineWebQualityFilter(exclusion_writer=removed("fineweb_quality")),
          JsonlWriter(kept)], tasks),
        ([JsonlReader(kept), MinhashDedupSignature(f"{minhash}/signatures", config)], tasks),
        ([MinhashDedupBuckets(f"{minhash}/signatures", f"{minhash}/buckets", config=config)], config.num_buckets),
        ([MinhashDedupCluster(f"{minhash}/buckets", f"{minhash}/remove", config=config)], 1),
        ([JsonlReader(kept), MinhashDedupFilter(f"{minhash}/remove", exclusion_writer=removed("minhash")),
          PIIFormatter(), JsonlWriter(f"{output}/final")], tasks)]
    with contextlib.redirect_stderr(io.StringIO()):  # it logs there, whatever it is told
        for number, (steps, count) in enumerate(stages):
            LocalPipelineExecutor(steps, tasks=count, workers=1, logging_dir=f"{logs}/{number}").run()
    return sum(1 for _ in JsonlReader(f"{output}/final").run())


def _url_filter(lists: str | None, writer):
    from datatrove.pipeline.filters import URLFilter
    from tldextract import TLDExtract
    words = lambda name: _lines(Path(lists) / f"datatrove_{name}.txt") if lists else None  # noqa: E731
    found = URLFilter(banned_words=words("banned_words"), banned_subwords=words("banned_subwords"),
                      soft_banned_words=words("soft_banned_words"), use_integrated_lists=False, exclusion_writer=writer)
    found.tldextractor = TLDExtract(suffix_list_urls=(), cache_dir=None)  # otherwise it asks the network first
    return found


def _language_filter(writer):
    from datatrove.pipeline.filters import LanguageFilter
    found = LanguageFilter(languages=["en"], language_threshold=LANGUAGE_THRESHOLD, exclusion_writer=writer)
    found.model = Py3Langid()
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
