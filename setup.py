"""Packaging of jaxgpt: `pip install -e .` and, for the tests, `pip install -e '.[test]'`."""

from setuptools import find_packages, setup

SERVE = ["starlette>=0.46", "uvicorn>=0.34"]

setup(
    name="jaxgpt",
    version="0.1.0",
    description="From web pages to a model you can talk to, in JAX: every stage of an LLM as a pure function.",
    python_requires=">=3.11",
    packages=find_packages(include=["jaxgpt", "jaxgpt.*"]),
    package_data={"jaxgpt.chat": ["page.html"]},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "tiktoken>=0.14",
        "tokenizers>=0.23",  # of imported models whose tokenizer is SentencePiece's
        "jinja2>=3.1.6",  # their chat templates
        "tensorflow-datasets>=4.9.10",  # the format of the token shards; TensorFlow itself is not needed
        "array_record>=0.8.1",
        "grain>=0.2.18",
        "rustbpe>=0.1.0",
        "apache-beam>=2.77",  # the engine of curation: on a laptop, Dataflow, Flink or Spark
        "fastwarc>=2.0",
        "trafilatura>=2.3",
        "lxml>=6.0",
        "lxml_html_clean>=0.4",  # of trafilatura's own needs, where pip does not find it by itself
        "tld>=0.13",  # registered domains
        "resiliparse>=2.0",
        "py3langid>=0.4",  # brings its model
        "pyarrow>=20",
        "fsspec[http]>=2025.1",  # files near and far
        "numpy>=2.0",
        "regex>=2024.0",  # the split pattern, in the reference BPE trainer
    ],
    extras_require={
        "test": ["pytest>=8", "pytest-xdist>=3", "hypothesis>=6", "datatrove==0.10.1", "spacy>=3.8", "fasteners", "warcio",
                 "tldextract", "pyahocorasick", "fasttext-numpy2-wheel", *SERVE, "openai>=2", "schemathesis>=4",
                 "playwright>=1.50"],  # the last drives the system's own Chromium
        "reference": ["torch>=2.13", "transformers>=5.24"],  # what imported models are compared with, in tests
        "hub": ["huggingface_hub>=1.0"],  # jaxgpt import NAME
        "serve": SERVE,
        "metrics": ["tensorboardX", "wandb"],
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
    },
    entry_points={"console_scripts": ["jaxgpt=jaxgpt.cli:main"]},
)
