"""jaxgpt: the whole of "Deep Dive into LLMs like ChatGPT" in JAX, each stage a pure function you can reuse."""

__version__ = "0.1.0"
