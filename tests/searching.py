"""Runs searches for duplicates on Beam's embedded runner, for the tests of several files."""

import pickle
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxgpt.curation.document import Document, Drop, Key


def numbered(number: int, text: str, source: str = "s") -> Document:
    """A document whose id sorts as its number does."""
    return Document(id=f"{number:032x}", text=text, source=source)


def run(searches: Sequence, parts: Mapping[str, Sequence[Document]], **options) -> tuple[list[dict], dict[str, int]]:
    """({Key: Verdict} of each search, the counters), of one pipeline for all.

    Args:
      searches: with different names.
      parts: the documents of each part, as `verify` reads them again.
      options: of the runner, such as direct_num_workers.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    folder = Path(tempfile.mkdtemp())

    def save(number, found):
        import uuid
        (folder / uuid.uuid4().hex).write_bytes(pickle.dumps((number, found)))

    pipeline = beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([], **options))
    documents = pipeline | beam.Create([(part, item) for part, items in parts.items() for item in items])
    for number, search in enumerate(searches):
        fingerprints = documents | f"fingerprints {number}" >> beam.MapTuple(
            lambda part, item, search=search: (Key(part, item.id), tuple(search.fingerprints(item))))
        (search.verdicts(fingerprints, parts.__getitem__)
         | f"save {number}" >> beam.Map(lambda found, number=number: save(number, found)))
    result = pipeline.run()
    result.wait_until_finish()
    found: list[dict] = [{} for _ in searches]
    for path in folder.iterdir():
        number, (part, verdict) = pickle.loads(path.read_bytes())
        assert Key(part, verdict.id) not in found[number]  # one verdict a document
        found[number][Key(part, verdict.id)] = verdict
    counters = result.metrics().query()["counters"]
    return found, {item.key.metric.name: item.committed for item in counters if item.key.metric.namespace == "curation"}


def clusters(verdicts: Mapping, parts: Mapping[str, Sequence[Document]]) -> set[frozenset]:
    """The clusters of two and more documents, as sets of keys, each checked: its size, and that one document stays."""
    grouped: dict[str, set] = {}
    for key, verdict in verdicts.items():
        grouped.setdefault(verdict.cluster, set()).add(key)
    for first, members in grouped.items():
        assert {verdicts[key].cluster_size for key in members} == {len(members)}
        stays = min(members, key=lambda key: (key.id, key.part))
        assert stays.id == first and [key for key in members if verdicts[key].keep] == [stays]
    assert set(verdicts) <= {Key(part, item.id) for part, items in parts.items() for item in items}
    return set(map(frozenset, grouped.values()))


def left(search, verdicts: Mapping, parts: Mapping[str, Sequence[Document]]) -> dict[str, list[Document]]:
    """What is left of each part."""
    judged = {part: [search.apply(item, verdicts.get(Key(part, item.id))) for item in items]
              for part, items in parts.items()}
    return {part: [item for item in items if not isinstance(item, Drop)] for part, items in judged.items()}
