"""Text that is on every machine, a small tokenizer trained on it, and tiktoken's files where given."""

import shutil
from pathlib import Path

import pytest
from pydoc_data.topics import topics

from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.tokenizer import Tokenizer

ODD_TEXTS = [
    "",
    " ",
    "\n",
    "a" * 300,
    "ab" * 200,
    " " * 1000 + "x" + " " * 129 + "\n",
    "\t \n" * 200,
    "1234567890" * 7,
    "I'm you'LL we'Ve 'S 'quoted' it’s",
    "naïve café, 東京タワー, Здравствуй, مرحبا, हिन्दी, 한국어",
    "😀👩‍👩‍👧🏳️‍🌈 e\u0301 \u202e \x00\x1b[31m\x7f\u2028\ufeff",
    "def f(x):\n    if x:\r\n\t\treturn {'a': [1, 22, 333, 4444]}  # ...\n\n\n",
    "<|end|><|endoftext|><|bos|>",
]


@pytest.fixture(scope="session")
def odd_texts() -> list[str]:
    return ODD_TEXTS


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """About 130 kB of the language reference."""
    return [topics[name] for name in sorted(topics)][:40]


@pytest.fixture(scope="session")
def tokenizer(corpus) -> Tokenizer:
    return Tokenizer(bpe.train(corpus, vocab_size=800), name="small")


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """No merges: every token is a byte, so that expected tokens can be written by hand."""
    return Tokenizer(bpe.train(["-"], vocab_size=264), name="bytes")


@pytest.fixture(scope="session")
def tiktoken_files(data_folder, tmp_path_factory):
    """TIKTOKEN_CACHE_DIR set to a copy of the cache, since tiktoken deletes files that it does not expect."""
    cache = Path(data_folder) / "tiktoken_cache"
    if not cache.is_dir():
        pytest.skip("needs the folder tiktoken_cache in JAXGPT_DATA")
    copy = tmp_path_factory.mktemp("tiktoken_cache")
    for file in cache.iterdir():
        shutil.copyfile(file, copy / file.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(copy))
        yield copy
