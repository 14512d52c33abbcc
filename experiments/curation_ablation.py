"""What each filter is worth: the same model on the same number of tokens of one web, cleaned in different ways.

The web is made here, since none is at hand: articles set in pages, and among them what crawls are full of, planted by
kind (see `Web`). Every variant leaves out one step of FineWeb's recipe; "raw" is extraction alone. All are measured in
bits per byte on one clean tenth of the articles that is nowhere in the web.

Source:  Penedo et al., "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale" (2024), section 3.
Expect:  2.22 bits per byte with the full recipe, 2.47 from raw extraction (--seeds 0 --tokens 200000 --articles 500,
         commit d3b563c); all variants stand in the README
  jaxgpt run experiments/curation_ablation.py                                    the full recipe alone
  JAXGPT_DATA=data python experiments/curation_ablation.py --seeds 0 1 2         all variants, a table and a picture
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import itertools
import random
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np

from jaxgpt.core import sharding
from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, Experiment, Stage, Stopped, run
from jaxgpt.core.files import read_json, write_text
from jaxgpt.core.loop import Loop
from jaxgpt.curation.document import Document, Drop, document
from jaxgpt.curation.extract import Extract
from jaxgpt.curation.files import find_files
from jaxgpt.curation.programs import Curate
from jaxgpt.curation.recipe import fineweb
from jaxgpt.curation.split import side
from jaxgpt.curation.warc import Warc, write_warc
from jaxgpt.data.loader import evaluation_batches
from jaxgpt.data.programs import Tokenize, TrainTokenizer
from jaxgpt.evals.intervals import mean_interval
from jaxgpt.evals.plot import Bar, interval_chart
from jaxgpt.inference.load import load
from jaxgpt.model import presets
from jaxgpt.pretrain.evaluate import validation
from jaxgpt.pretrain.programs import Pretrain

HELD_OUT = 0.1  # of the articles
DATE = "2024-02-20T21:10:55Z"
NOTICE = "Please enable JavaScript in your browser to see this page as it was meant to be seen."
CONTACT = "Write to jane.doe@mail.org, or to the server at 81.2.69.{}."


# --- articles: what is worth reading ---------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Articles:
    """The prose of Python's enhancement proposals and of nine novels, about 5 kB a page, with nothing around it.

    Attributes:
      paths: of the texts.
      count: how many pages, chosen by chance.
    """

    paths: tuple[str, ...] = ("$JAXGPT_DATA/text/peps.tar.gz", "$JAXGPT_DATA/text/gutenberg/*.txt.gz")
    count: int = 1500

    def files(self, cache_dir) -> list[str]:
        """Writes the pages as a WARC file."""
        path = Path(cache_dir) / "articles.warc.gz"
        write_warc(path, (page(address, "", blocks) for address, blocks in self.articles()))
        return [str(path)]

    def read(self, path: str) -> Iterator[Document | Drop]:
        """Yields the pages."""
        return Warc(path).read(path)

    def articles(self) -> list[tuple[str, list[str]]]:
        """(address, paragraphs) of each."""
        found = []
        for path in find_files(self.paths):
            for name, text in texts_of(path):
                for number, blocks in enumerate(in_pieces(paragraphs(text))):
                    found.append((f"https://articles.example/{name}/{number}", blocks))
        random.Random(0).shuffle(found)
        return found[:self.count]


def texts_of(path: str) -> Iterator[tuple[str, str]]:
    """(name, text) of what is in an archive, or of one book."""
    if path.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            for entry in archive:
                if entry.isfile():
                    yield Path(entry.name).stem, archive.extractfile(entry).read().decode()
    else:
        yield Path(path).stem.split(".")[0], gzip.open(path, "rt", encoding="utf-8", errors="replace").read()


def paragraphs(text: str) -> list[str]:
    """What a text says in sentences: no headings, no code, no tables."""
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text) if re.match(r"\w|[\"“]", block))
    return [block for block in blocks if len(block.split()) >= 12 and block[-1] in ".!?\"”" and "::" not in block]


def in_pieces(blocks: list[str], size: int = 5000) -> Iterator[list[str]]:
    """Runs of paragraphs of about `size` characters."""
    piece: list[str] = []
    for block in blocks:
        piece.append(block)
        if sum(map(len, piece)) >= size:
            yield piece
            piece = []


def page(address: str, around: str, blocks: list[str], tag: str = "p") -> Document:
    """Paragraphs (or list items) as a page of HTML, `around` before and after them."""
    body = "\n".join(f"<{tag}>{escape(block)}</{tag}>" for block in blocks)
    html = f"<!DOCTYPE html><html><body>{around}<article>{body}</article>{around}</body></html>"
    return document(html, "web", url=address, date=DATE, media_type="text/html")


# --- the web: articles, and what crawls are full of ------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Web:
    """Pages of a web, by kind. All but the first are planted; real pages of a crawl are added as they are.

      article   an article with menus, a cookie notice and a footer around it, sometimes notices or an address in it
      mirror    some articles again, under eight other addresses
      revision  some others, eight times, with a word in fifty changed
      language  the Universal Declaration of Human Rights in one of 388 languages
      spam      sentences of an article, and another before and after each of them
      teaser    beginnings of sentences that end in three dots
      template  sentences with places in braces that nothing was filled into
      list      short lines that end nowhere, and a few sentences

    Attributes:
      articles: those that are not held out are in the web.
      languages: the archive of the declarations.
      crawl: WARC files of real pages.
    """

    articles: Articles = Articles()
    languages: str = "$JAXGPT_DATA/langid/udhr2.zip"
    crawl: str = "$JAXGPT_DATA/warc/*.warc.gz"

    def files(self, cache_dir) -> list[str]:
        """Writes the pages as WARC files, and adds those of the crawl."""
        shares: list[list[Document]] = [[] for _ in range(8)]
        for number, found in enumerate(self.pages()):
            shares[number % len(shares)].append(found)
        for number, share in enumerate(shares):
            write_warc(Path(cache_dir) / f"web-{number}.warc.gz", share)
        return [str(Path(cache_dir) / f"web-{number}.warc.gz") for number in range(8)] + find_files(self.crawl)

    def read(self, path: str) -> Iterator[Document | Drop]:
        """Yields the pages, their kind as source."""
        for item in Warc(path, source="crawl").read(path):
            kind = re.match(r"https://(\w+)\.example/", getattr(item, "url", ""))
            yield dataclasses.replace(item, source=kind[1]) if kind else item

    def pages(self) -> Iterator[Document]:
        """All pages that are made."""
        rng = random.Random(0)
        known = [blocks for address, blocks in self.articles.articles()
                 if side(page(address, "", blocks).id, HELD_OUT) == "train"]
        some = len(known) // 20
        for number, blocks in enumerate(known):
            more = [NOTICE] * (number % 5 == 0) + [CONTACT.format(number % 256)] * (number % 10 == 1)
            yield framed("article", number, blocks + more)
        for number, blocks in enumerate(known[:some] * 8):
            yield framed("mirror", number, blocks)
        for number, blocks in enumerate(known[some:2 * some] * 8):
            yield framed("revision", number, [changed(block, rng) for block in blocks])
        for number, blocks in enumerate(declarations(find_files(self.languages)[0])):
            yield framed("language", number, blocks)
        for number, blocks in enumerate(known[:len(known) // 7]):
            for kind, lines in planted(blocks, rng).items():
                yield framed(kind, number, lines)


def planted(blocks: list[str], rng: random.Random) -> dict[str, list[str]]:
    """Pages that filters of quality are made for, of the words of an article."""
    sentences = re.split(r"(?<=[.!?]) ", " ".join(blocks))
    words, half = " ".join(blocks).split(), len(sentences) // 2
    rest = " ".join(sentences[half:]).split()
    phrase, word = rng.choice(sentences), lambda: rng.choice(words).strip(".,;:!?")
    short = [" ".join(rest[start:start + 4]).strip(".,;:!?").lower() for start in range(0, len(rest), 4)]
    return {
        "spam": [f"{phrase} {sentence} {phrase}" for sentence in sentences[:20]],
        "teaser": [" ".join(words[start:start + 12]) + "..." for start in range(0, len(words), 12)],
        "template": [f"{sentence} See {{{word()}}}." if number % 4 == 0 else sentence
                     for number, sentence in enumerate(sentences)],
        "list": [*sentences[:half][:8], *short]}


def framed(kind: str, number: int, blocks: list[str]) -> Document:
    """A page with a menu and a footer."""
    menu = "".join(f'<li><a href="/{name}">{name.title()}</a></li>' for name in
                   ("home", "news", "products", "about us", "contact", "sign in", "my account", "basket", "help"))
    around = (f"<nav><ul>{menu}</ul></nav><div class='notice'>We use cookies. <a href='/terms'>Terms of use</a></div>"
              f"<footer>Copyright 2024. All rights reserved. <ul>{menu}</ul></footer>")
    return page(f"https://{kind}.example/{number}", around, blocks)


def changed(text: str, rng: random.Random) -> str:
    """A text with a word in fifty replaced by another of its words."""
    words = text.split()
    return " ".join(rng.choice(words) if rng.random() < 0.02 else word for word in words)


def declarations(path: str) -> Iterator[list[str]]:
    """The paragraphs of each text of the archive."""
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".txt"):
                lines = archive.read(name).decode("utf-8", "replace").splitlines()
                yield [line.strip() for line in lines if line.strip()]


# --- the experiment --------------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class HeldOut(Stage):
    """Bits per byte of a model on the validation split of another stage's tokens."""

    name: str = "held_out"
    of: str = "pretrain"
    data: str = "tokenize_articles"

    def inputs(self) -> tuple[str, ...]:
        return (self.of, self.data)

    def run(self, context: Context) -> dict:
        """Measures."""
        trained, loaded = context.experiment.stage(self.of), load(context.workdir, self.of)
        mine = sharding.rows_here(trained.batch, sharding.batch_sharding(context.mesh, context.rules))
        rows = evaluation_batches(context.path(self.data, "shards"), "val", batch=trained.batch, length=trained.T,
                                  mine=mine)
        params = sharding.put(loaded.params, sharding.replicated(context.mesh))
        found = validation(params, rows, config=loaded.config, token_bytes=loaded.tokenizer.token_bytes(),
                           mesh=context.mesh, rules=context.rules)
        context.log(f"{self.name}: {found['val_bpb']:.4f} bits per byte")
        return {name: float(value) for name, value in found.items()}


def recipe(variant: str) -> tuple:
    """The steps of a variant: "full", "raw", or the name of the step that is left out."""
    if variant == "raw":
        return (Extract(),)
    return tuple(step for step in fineweb() if step.name != variant)


def variants() -> list[str]:
    """"full", "raw", and each step that can be left out of the recipe."""
    return ["full", "raw", *(step.name for step in fineweb() if step.name not in ("url_filter", "extract"))]


def experiment(variant: str = "full", *, seed: int = 0, tokens: int = 1_000_000, articles: int = 1500) -> Experiment:
    """One variant."""
    size = presets.depth(4, width_per_layer=32, vocab_size=2048, context=256, tokens_per_param=1.0)
    source = Articles(count=articles)
    return Experiment(name="curation_ablation", seed=seed, stages=(
        # what all variants share: the tokenizer, and what they are measured on
        Curate(name="articles", source=source, steps=(Extract(),), val_fraction=HELD_OUT),
        TrainTokenizer(corpus="articles", vocab_size=2048),
        Tokenize(name="tokenize_articles", corpus="articles", xz=False),
        # what differs: the steps
        Curate(source=Web(articles=source), steps=recipe(variant)),
        Tokenize(xz=False),
        Pretrain(model=presets.on_cpu(size.model), optim=size.optim, tokens=tokens, batch=size.batch,
                 loop=Loop(log_every=20, eval_every=10**6, save_every=10**6)),
        HeldOut(),
    ))


def get_config() -> Experiment:
    return experiment()


# --- all variants ----------------------------------------------------------------------------------------------------

def run_all(names: list[str], seeds: list[int], workdir: Path, **settings) -> dict[tuple[str, int], Path]:
    """Runs each variant with each seed in WORKDIR/VARIANT/SEED; returns the folders."""
    folders: dict[tuple[str, int], Path] = {}
    for seed, name in itertools.product(seeds, names):
        folder = workdir / name / str(seed)
        earlier = folders.get((name, seeds[0])) or next(iter(folders.values()), None)
        for stage in ("articles", "curate"):
            if earlier and not (folder / stage).exists():
                take_over(earlier / stage, folder / stage)
        print(f"--- {name}, seed {seed}", flush=True)
        run(experiment(name, seed=seed, **settings), folder)
        folders[name, seed] = folder
    return folders


def take_over(earlier: Path, folder: Path) -> None:
    """Copies the phases of a corpus: the pipeline finds what is already done, and does what differs."""
    for phase in earlier.iterdir():
        if phase.is_dir():
            shutil.copytree(phase, folder / phase.name)


def outputs(folder: Path, stage: str) -> dict:
    return read_json(folder / stage / "manifest.json")["outputs"]


def results(names: list[str], seeds: list[int], folders: dict[tuple[str, int], Path]) -> list[dict]:
    """Of each variant: bits per byte by seed, their differences to the first variant's, and what was trained on."""
    bpb = {name: np.array([outputs(folders[name, seed], "held_out")["val_bpb"] for seed in seeds]) for name in names}
    trained = {name: outputs(folders[name, seeds[0]], "tokenize")["train"] for name in names}
    return [{"name": name, "bpb": bpb[name], "more": bpb[name] - bpb[names[0]], "documents": trained[name]["documents"],
             "tokens": trained[name]["tokens"]} for name in names]


def report(found: list[dict], corpus: dict, tokens: int) -> str:
    """Two tables in Markdown: the variants, and what became of each kind of page in the first of them."""
    label = lambda name: name if name in ("full", "raw") else f"without {name}"  # noqa: E731
    lines = ["| | bits per byte | 95% interval | more than the full recipe | documents | million tokens | epochs |",
             "|---|---|---|---|---|---|---|"]
    for row in found:
        lines.append(f"| {label(row['name'])} | {row['bpb'].mean():.4f} | {interval(row['bpb'])} | "
                     f"{row['more'].mean():+.4f}, {interval(row['more'])} | {row['documents']:,} | "
                     f"{row['tokens'] / 1e6:.2f} | {tokens / row['tokens']:.2f} |")
    kinds = list(corpus["steps"][0]["by_source"])
    steps = [step for step in corpus["steps"] if step["dropped"] or step is corpus["steps"][0]]
    lines += ["", f"| documents left after | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for step in steps:
        left = [str(step["by_source"].get(kind, {}).get("documents", 0)) for kind in kinds]
        lines.append(f"| {step['step']} | {' | '.join(left)} |")
    return "\n".join(lines) + "\n"


def interval(values: np.ndarray) -> str:
    if len(values) < 2:
        return "one seed"
    return "[{:.4f}, {:.4f}]".format(*mean_interval(values))


def picture(found: list[dict]) -> str:
    """Bits per byte of each variant with its interval; the full recipe's as a line."""
    bars = []
    for row in found:
        mean = float(row["bpb"].mean())
        low, high = mean_interval(row["bpb"]) if len(row["bpb"]) > 1 else (mean, mean)
        bars.append(Bar(row["name"], mean, low, high))
    return interval_chart(bars, title="Bits per byte on clean text, by the step left out", x_label="bits per byte",
                          reference=bars[0].value)


def main() -> str | None:
    """Runs all; returns what went wrong, if anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of each run")
    parser.add_argument("--articles", type=int, default=1500, help="how many pages are worth reading")
    parser.add_argument("--variants", nargs="+", choices=variants(), default=variants(), metavar="VARIANT",
                        help=f"some of {', '.join(variants())}; the others are compared with the first")
    parser.add_argument("--workdir", type=Path, default=Path("runs/curation_ablation"))
    given = parser.parse_args()
    try:
        folders = run_all(given.variants, given.seeds, given.workdir, tokens=given.tokens, articles=given.articles)
    except Stopped:
        return "stopped; what is done is saved, and the same command goes on from there"
    except UserError as error:
        return str(error)
    found = results(given.variants, given.seeds, folders)
    corpus = read_json(folders[given.variants[0], given.seeds[0]] / "curate" / "corpus.json")
    told = report(found, corpus, given.tokens)
    write_text(given.workdir / "report.md", told)
    write_text(given.workdir / "bits_per_byte.svg", picture(found))
    print(f"\n{told}\n{given.workdir}: report.md, bits_per_byte.svg")


if __name__ == "__main__":
    sys.exit(main())
