"""The recipe of FineWeb: which steps, in which order.

    read -> address -> text -> language -> quality, four filters -> duplicates -> personal data
"""

from __future__ import annotations

from jaxgpt.curation.document import Search, Step
from jaxgpt.curation.duplicates import ExactDuplicates
from jaxgpt.curation.extract import Extract
from jaxgpt.curation.language import Language
from jaxgpt.curation.minhash import MinHash
from jaxgpt.curation.pii import ReplacePII
from jaxgpt.curation.quality import C4, FineWebQuality, GopherQuality, GopherRepetition
from jaxgpt.curation.url import UrlFilter


def fineweb() -> tuple[Step | Search, ...]:
    """FineWeb's steps with FineWeb's thresholds, in its order.

    Beside them exact duplicates go before MinHash, which then has fewer documents to hash and keeps the same ones. The
    documents of all crawls are compared at once; FineWeb does it crawl by crawl (`MinHash(per_source=True)`). The
    lists of the address filter are files that a user names: without them it passes every address. Decontamination takes
    the evaluation sets that a user names, so it is not among them.

    Source: Penedo et al., "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale" (2024).

    >>> [step.name for step in fineweb()][:4]
    ['url_filter', 'extract', 'language', 'gopher_repetition']
    """
    return (UrlFilter(), Extract(), Language(), GopherRepetition(), GopherQuality(), C4(), FineWebQuality(),
            ExactDuplicates(), MinHash(), ReplacePII())
