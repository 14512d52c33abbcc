"""Curation on one core, step by step; the whole chain beside datatrove's; two workers beside one; memory; a whole dump.

  pip install datatrove spacy nltk tldextract pyahocorasick faust-cchardet python-magic fasteners orjson warcio
  JAXGPT_DATA=data python tests/benchmarks/curation.py
  JAXGPT_DATA=data python tests/benchmarks/curation.py --only workers --long
  JAXGPT_DATA=data python tests/benchmarks/curation.py --only steps projection --dollars 0.03

Pages are real ones, and copies of them with words changed (web_pages.py). The chain is FineWeb's on both sides, with
the same extractor, language model and lists of words, each side in a process of its own on the same core, in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import os
import random
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import web_pages
from side_by_side import Worker, header, in_turns, parser, probe, ratio, serve, table, version

SECTIONS = ("steps", "chain", "workers", "memory", "projection")
PEER = ("datatrove", "spacy", "nltk", "tldextract", "pyahocorasick", "faust-cchardet", "python-magic", "fasteners",
        "orjson", "warcio")  # datatrove, and what its steps ask for when they are made
NOT_FINEWEB = ("extract: resiliparse", "measure: contamination", "decontaminate", "measure: learned quality",
               "learned_quality")
PATIENCE = 10.0  # seconds before datatrove gives up on a page: none should be lost because a machine is busy
LISTS = {"words": "banned_words", "soft_words": "soft_banned_words", "subwords": "banned_subwords"}
EVALUATIONS = {"gsm8k/test.jsonl": ("question", "answer"), "eval/hellaswag_val_subset.jsonl": ("query", "choices"),
               "eval/arc_challenge.jsonl": ("query", "choices"), "eval/piqa.jsonl": ("query", "choices")}


def recipe(data: str | None) -> tuple:
    """FineWeb's steps; its URL filter with the lists of words where there are any."""
    from jaxgpt.curation.recipe import fineweb
    lists = {name: f"{data}/urlfilter/datatrove_{file}.txt" for name, file in LISTS.items()} if data else {}
    return tuple(dataclasses.replace(step, **lists) if step.name == "url_filter" else step for step in fineweb())


class Silence:
    """Whom a pipeline tells how it goes when nobody listens."""

    def log(self, text: str) -> None:
        pass

    def progress(self, total: int, unit: str, label: str):
        from jaxgpt.core.metrics import Progress
        return Progress(total, unit, label, stream=io.StringIO())

    def should_stop(self) -> bool:
        return False


# --- the sides, each in a process of its own -------------------------------------------------------------------------

class Ours:
    """Our chain, and its steps one by one."""

    def __init__(self, data: str, core: str):
        self.data = data or None
        stay_on(core)

    def chain(self, inputs: str, output: str, workers: int = 1, kinds: str = "all") -> int:
        """From WARC files (or JSON lines) to a corpus; returns how many documents are left.

        Args:
          inputs: a folder.
          output: a folder, as empty afterwards as before.
          workers: processes.
          kinds: "all" steps of the recipe, "records" for those that look at one document at a time, or "searches".
        """
        from jaxgpt.curation.phases import is_search
        from jaxgpt.curation.pipeline import run_pipeline
        from jaxgpt.curation.sources import source_for
        kind = lambda step: "searches" if is_search(step) else "records"  # noqa: E731
        steps = tuple(step for step in recipe(self.data) if kinds in ("all", kind(step)))
        source = source_for(tuple(map(str, sorted(Path(inputs).iterdir()))))
        with tempfile.TemporaryDirectory(dir=output) as folder:
            corpus = run_pipeline(source, steps, folder, voice=Silence(), split=None, workers=workers)
        return corpus["steps"][-1]["documents"]

    def peak(self, *arguments) -> int:
        """The most bytes of memory that one process has had when the chain ends: this one, or one that it started."""
        self.chain(*arguments)
        return 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

    def steps(self, inputs: str) -> list[tuple[str, int, int, float]]:
        """(name, documents, bytes, seconds) of each step on all documents, whatever other steps say of them."""
        return list(rates(inputs, self.data))


class Datatrove:
    """datatrove's chain."""

    def __init__(self, data: str, core: str):
        self.lists = f"{data}/urlfilter" if data else None
        stay_on(core)

    def chain(self, inputs: str, output: str) -> int:
        """The same."""
        import datatrove_chain
        with tempfile.TemporaryDirectory(dir=output) as folder:
            return datatrove_chain.run(inputs, folder, tasks=len(os.listdir(inputs)), lists=self.lists,
                                       timeout=PATIENCE)


def stay_on(core: str) -> None:
    """Binds this process, and those that it will start, to a core."""
    if core and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})


def a_core() -> str:
    return str(max(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ""


# --- steps -----------------------------------------------------------------------------------------------------------

def rates(inputs: str, data: str | None) -> Iterable[tuple[str, int, int, float]]:
    """(name, documents, bytes of their text, seconds) of reading, and of each measure and step of the recipe."""
    from jaxgpt.curation.document import Document
    from jaxgpt.curation.extract import Extract
    from jaxgpt.curation.phases import is_search
    from jaxgpt.curation.warc import Warc
    began, found = time.perf_counter(), []
    for path in sorted(Path(inputs).iterdir()):
        found += [item for item in Warc(str(path)).read(str(path)) if isinstance(item, Document)]
    yield "read WARC", len(found), size_of(found), time.perf_counter() - began
    for step in itertools.chain(recipe(data), extras(found, data)):
        if is_search(step):
            yield timed(f"{step.name}: fingerprints", lambda item: list(step.fingerprints(item)), found)[0]
            continue
        for measure in step.measures:
            if measure.name not in found[0].scores:
                name = re.sub(" [0-9a-f]{12}$", "", measure.name)  # without a fingerprint
                row, found = timed(f"measure: {name}", lambda item: item.with_scores(measure), found)
                yield row
        if isinstance(step, Extract):  # timed on pages as they are on the web, not on those that we have set
            crawled = [item for item in found if not item.url.startswith(web_pages.PLACE)] or found
            for extractor in ("resiliparse", "trafilatura"):
                yield timed(f"extract: {extractor}", dataclasses.replace(step, extractor=extractor), crawled)[0]
            found = [item for item in map(step, found) if isinstance(item, Document)]
        else:
            yield timed(step.name, step, found)[0]


def extras(pages: list, data: str | None) -> Iterable:
    """Steps that FineWeb's recipe has not: decontamination, and a classifier of a megaword of weights."""
    import numpy as np

    from jaxgpt.curation.classifier import Classifier, LearnedQuality, save_classifier
    from jaxgpt.curation.decontaminate import Benchmark, Decontaminate, Passages
    if data:
        yield Decontaminate(tuple(Benchmark(f"{data}/{path}", fields) for path, fields in EVALUATIONS.items()))
    else:
        yield Decontaminate((Passages("a page", (pages[0].text,)),))
    with tempfile.TemporaryDirectory() as folder:
        save_classifier(f"{folder}/model.npz", Classifier(np.ones(2**20, np.float32), 0.0))
        yield LearnedQuality(f"{folder}/model.npz")


def timed(name: str, function: Callable, items: list) -> tuple[tuple[str, int, int, float], list]:
    """The row of a function on all items, and what it gave. A few items go first, so that lists and models are read."""
    for item in items[:3]:
        function(item)
    began = time.perf_counter()
    results = [function(item) for item in items]
    return (name, len(items), size_of(items), time.perf_counter() - began), results


def size_of(items: Iterable) -> int:
    return sum(len(item.text.encode()) for item in items)


def steps_section(given, folder: Path) -> list:
    inputs = made(folder, given.pages, given.files, given.data)
    worker = Worker("jaxgpt", __file__, "jaxgpt", given.data or "", a_core())
    rows = [max_rate(same) for same in zip(*(worker("steps", inputs)["value"] for _ in range(given.rounds)))]
    worker.close()
    print(f"\nStep by step, one core, {given.pages} pages; each step on all documents; median of {given.rounds}\n")
    print(table(["", "documents", "documents/s", "MB/s of its input", "ms a document"],
                [[name, count, f"{count / seconds:,.0f}", f"{size / 1e6 / seconds:,.1f}",
                  f"{1e3 * seconds / count:.3f}"] for name, count, size, seconds in rows]))
    return rows


def max_rate(same: tuple) -> tuple[str, int, int, float]:
    """Of one step in all rounds: its row with the median time."""
    name, count, size, _ = same[0]
    return name, count, size, statistics.median(row[3] for row in same)


# --- the chain -------------------------------------------------------------------------------------------------------

def chain_section(given, folder: Path) -> None:
    inputs, output, core = made(folder, given.pages, given.files, given.data), str(folder), a_core()
    sides = [Worker("jaxgpt", __file__, "jaxgpt", given.data or "", core)]
    missing = [package for package in PEER if not version(package)]
    if missing:
        print(f"\ndatatrove is left out: pip install {' '.join(missing)}")
    else:
        sides.append(Worker("datatrove", __file__, "datatrove", given.data or "", core))
    left = {}
    for side in sides:
        left[side.name] = side("chain", inputs, output)["value"]  # imports libraries, and reads files that are new
    seconds = in_turns(sides, given.rounds, "chain", inputs, output)
    for side in sides:
        side.close()
    size = sum(path.stat().st_size for path in Path(inputs).iterdir())
    print(f"\nThe whole chain, one core, {given.pages} pages in {given.files} files, {size / 1e6:.1f} MB of WARC; "
          f"{given.rounds} rounds\n")
    print(table(["", "documents left", "median s", "least s", "pages/s", "this / ours, of the time"],
                [[name, left[name], f"{statistics.median(values):.1f}", f"{min(values):.1f}",
                  f"{given.pages / statistics.median(values):.1f}", f"{ratio(values, seconds['jaxgpt']):.2f}"]
                 for name, values in seconds.items()]))


def workers_section(given, folder: Path) -> None:
    count = given.long_pages if given.long else given.pages
    inputs = made(folder, count, max(given.files, 8), given.data)
    worker = Worker("jaxgpt", __file__, "jaxgpt", given.data or "", "")
    seconds = {1: [], 2: []}
    for number in range(1 if given.long else given.rounds):
        for workers in (1, 2) if number % 2 == 0 else (2, 1):
            seconds[workers].append(worker("chain", inputs, str(folder), workers)["seconds"])
    worker.close()
    print(f"\nWorkers, {count} pages in {max(given.files, 8)} files; median of {len(seconds[1])}\n")
    print(table(["workers", "s", "pages/s", "one worker's time / this"],
                [[workers, f"{statistics.median(values):.1f}", f"{count / statistics.median(values):.1f}",
                  f"{ratio(seconds[1], values):.2f}"] for workers, values in seconds.items()]))


# --- memory ----------------------------------------------------------------------------------------------------------

def memory_section(given, folder: Path) -> None:
    rows = []
    sizes = (given.pages // 4, given.pages // 4 * 10)
    for count in sizes:
        inputs = made(folder, count, 2, given.data)
        rows.append(["steps that see one document", f"{count:,} pages", peak(given, inputs, folder, "records")])
    texts = (given.texts, given.texts * 10)
    for count in texts:
        inputs = short_texts(folder, count)
        rows.append(["searches for duplicates", f"{count:,} texts", peak(given, inputs, folder, "searches")])
    each = (rows[3][2] - rows[2][2]) / (texts[1] - texts[0])
    print("\nMemory: the most that a process has had, as the input grows tenfold\n")
    print(table(["", "input", "MB"], [[name, size, f"{found / 1e6:.0f}"] for name, size, found in rows]))
    print(f"\nThe steps that see one document: {rows[1][2] / rows[0][2]:.2f} times the memory for ten times the input. "
          f"The searches: {each:,.0f} bytes a document on the embedded runner, which groups ids and hashes in memory.")


def peak(given, inputs: str, folder: Path, kinds: str) -> int:
    worker = Worker("jaxgpt", __file__, "jaxgpt", given.data or "", "")
    found = worker("peak", inputs, str(folder), 1, kinds)["value"]
    worker.close()
    return found


def short_texts(folder: Path, count: int) -> str:
    """A folder of JSON lines: texts of 60 words that have nothing in common."""
    import json
    place, rng = folder / f"texts-{count}", random.Random(0)
    place.mkdir(exist_ok=True)
    for number in range(2):
        with open(place / f"{number}.jsonl", "w") as file:
            for _ in range(count // 2):
                file.write(json.dumps({"text": " ".join(f"{rng.randrange(10**6):x}" for _ in range(60))}) + "\n")
    return str(place)


# --- a whole dump ----------------------------------------------------------------------------------------------------

def projection_section(given, rows: list) -> None:
    """Core-hours and dollars of one dump: by documents (as if pages were like ours), and by bytes."""
    lines, total = [], [0.0, 0.0]
    for name, count, size, seconds in rows:
        if name in NOT_FINEWEB:
            continue
        html = name == "read WARC" or name.startswith(("url", "extract"))
        documents = given.dump * (1.0 if html or "language" in name else given.english)
        each = given.html if html else given.text
        hours = [documents * seconds / count / 3600, documents * each * seconds / size / 3600]
        total = [a + b for a, b in zip(total, hours)]
        lines.append([name, f"{documents / 1e9:.1f}", *(f"{value:,.0f}" for value in hours),
                      *(f"{value * given.dollars:,.0f}" for value in hours)])
    lines.append(["all", "", *(f"{value:,.0f}" for value in total),
                  *(f"{value * given.dollars:,.0f}" for value in total)])
    print(f"\nOne dump of Common Crawl, {given.dump / 1e9:.1f} billion pages, at {given.dollars} dollars a core-hour\n")
    print(table(["", "billion documents", "core-hours by document", "by byte", "dollars by document", "by byte"],
                lines))
    print(f"\nMeasured: seconds a document and a byte, above. Projected: everything else. The number of pages, their "
          f"{given.html:,} bytes of HTML and {given.text:,} of text, and the share of {given.english:.0%} that is "
          "English are arguments; every English page is counted at every later step, although filters drop many. "
          "Reading over a network, Beam's own work (which the chain has) and what a cluster leaves idle are not in it.")


# --- all of it -------------------------------------------------------------------------------------------------------

def made(folder: Path, count: int, files: int, data: str | None) -> str:
    """A folder of WARC files with so many pages, made when first asked for."""
    place = folder / f"pages-{count}-{files}"
    if not place.exists():
        print(f"making {count} pages", file=sys.stderr, flush=True)
        web_pages.write_pages(place, count, files, data)
    return str(place)


def arguments() -> argparse.ArgumentParser:
    found = parser(__doc__)
    found.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION",
                       help=f"some of: {', '.join(SECTIONS)}")
    found.add_argument("--data", metavar="FOLDER", default=os.environ.get("JAXGPT_DATA"),
                       help="warc/*.warc.gz, html/*.gz, text/peps.tar.gz ...; $JAXGPT_DATA where not given")
    found.add_argument("--pages", type=int, default=1000)
    found.add_argument("--files", type=int, default=4, help="that the pages are in")
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--long", action="store_true", help="workers: work of five minutes and more, once")
    found.add_argument("--long-pages", type=int, default=20_000, help="how many pages that is")
    found.add_argument("--texts", type=int, default=5000, help="memory: that searches compare, and ten times as many")
    found.add_argument("--dollars", type=float, default=0.04, help="projection: of a core-hour")
    found.add_argument("--dump", type=float, default=3e9, help="projection: pages")
    found.add_argument("--html", type=int, default=140_000, help="projection: bytes of HTML a page")
    found.add_argument("--text", type=int, default=4000, help="projection: bytes of text a page")
    found.add_argument("--english", type=float, default=0.45, help="projection: share of pages")
    return found


def main() -> None:
    given = arguments().parse_args()
    if given.smoke:
        given.pages, given.files, given.rounds, given.long_pages, given.texts = 60, 2, 1, 60, 20
    given.data = None if given.smoke else web_pages.data_folder(given.data)
    _, hardware = probe()
    print(header("curation", hardware, "apache-beam", "trafilatura", "datatrove"))
    with tempfile.TemporaryDirectory() as temporary:
        folder, rows = Path(temporary), []
        if "steps" in given.only or "projection" in given.only:
            rows = steps_section(given, folder)
        for name, section in (("chain", chain_section), ("workers", workers_section), ("memory", memory_section)):
            if name in given.only:
                section(given, folder)
        if "projection" in given.only:
            projection_section(given, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve({"jaxgpt": Ours, "datatrove": Datatrove}[sys.argv[2]], *sys.argv[3:])
    else:
        main()
