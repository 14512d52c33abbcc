"""A look inside a model: its tokens, its attention, what each layer would say next, its blocks, and embeddings."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.chat.models import Model, Models
from jaxgpt.inference.load import Loaded
from jaxgpt.model import transformer
from jaxgpt.model.layers import layer_norm, rms_norm
from jaxgpt.tokenizer.tokenizer import Tokenizer

MAX_LOOK = 64  # tokens whose attention is shown
TOP = 5  # of each place of the logit lens
_ADDRESS = "https://openaipublic.blob.core.windows.net/"  # what tiktoken names the files of its cache after
_ENCODINGS = {"gpt2": ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json"),
              "cl100k_base": ("encodings/cl100k_base.tiktoken",), "o200k_base": ("encodings/o200k_base.tiktoken",)}


_ORDER = ("q", "k", "v", "q_norm", "k_norm", "o", "gate", "up", "down", "scale", "bias")


def tokenizers(models: Models) -> dict[str, Tokenizer | None]:
    """{name: tokenizer}: those of the models, alike ones once, and those of tiktoken that are at hand, which stay None
    until `tokenizer_named` reads them."""
    ours, seen = {}, set()
    for model in models.models.values():
        if (print_ := model.tokenizer.fingerprint()) not in seen:
            seen.add(print_)
            ours[models.folder.resolve().name + (f"/{model.name}" if len(seen) > 1 else "")] = model.tokenizer
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
                  or Path(tempfile.gettempdir()) / "data-gym-cache")
    cached = [name for name, files in _ENCODINGS.items()
              if all((folder / hashlib.sha1((_ADDRESS + file).encode()).hexdigest()).exists() for file in files)]
    return ours | dict.fromkeys(cached)


@functools.lru_cache(maxsize=8)
def tokenizer_named(name: str) -> Tokenizer:
    """One of tiktoken's."""
    return Tokenizer.from_tiktoken(name)


def shown(tokenizer: Tokenizer, token: int) -> dict:
    """A token as the page draws it."""
    raw = tokenizer.decode_bytes([token])
    return {"id": token, "text": raw.decode(errors="replace"), "bytes": raw.hex()}


def inspect(model: Model, tokens: Sequence[int], layer: int) -> dict:
    """Attention of a layer over some tokens, and the logit lens of all layers.

    Logit lens: softmax(unembed(final_norm(x_l))) of the residual stream x_l after each layer l.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    Args:
      model: whose.
      tokens: at most `MAX_LOOK`.
      layer: whose attention.

    Returns:
      {"tokens", "layer", "attention": for each head, for each token, the weights of the tokens up to it, "lens": for
      each layer, for each token, the likeliest next tokens}.
    """
    loaded = model.loaded
    config, T = loaded.config, len(tokens)
    padded = np.zeros((1, min(MAX_LOOK, config.context)), np.int32)
    padded[0, :T] = tokens
    weights, likely, probabilities = jax.device_get(_inspect(loaded.params, padded, layer, config=config))
    tokenizer = loaded.tokenizer
    lens = [[[{"id": token, "text": shown(tokenizer, token)["text"], "p": round(p, 5)} for token, p in zip(*place)]
             for place in zip(*map(np.ndarray.tolist, (ids[:T], ps[:T])))] for ids, ps in zip(likely, probabilities)]
    attention = [[[round(weight, 4) for weight in head[i, :i + 1].tolist()] for i in range(T)] for head in weights]
    return {"tokens": [shown(tokenizer, int(token)) for token in tokens], "layer": layer, "attention": attention,
            "lens": lens}


@functools.partial(jax.jit, static_argnames="config")
def _inspect(params, tokens, layer, *, config):
    """(attention of a layer [N, T, T], likeliest tokens of each layer [L, T, TOP], their probabilities)."""
    _, _, inside = transformer.hidden(params, tokens, config=config, capture=("attention", "hidden"))
    x = final_norm(params, inside["hidden"][:, 0], config=config)
    likely = jax.lax.top_k(jax.nn.softmax(transformer.unembed(params, x, config=config)), min(TOP, config.vocab_size))
    return inside["attention"][layer, 0].astype(jnp.float32), likely[1], likely[0]


def final_norm(params, x: jax.Array, *, config: transformer.Config) -> jax.Array:
    """The norm before the head, of any residual stream [..., D]."""
    own = params.get("final_norm", {})
    if config.norm == "rmsnorm":
        return rms_norm(x, own.get("scale"), eps=config.norm_eps)
    return layer_norm(x, own.get("scale"), own.get("bias"), eps=config.norm_eps)


def score(loaded: Loaded, tokens: Sequence[int], top: int) -> tuple[list[float], list[list[tuple[int, float]]]]:
    """How likely a model finds a text.

    Args:
      loaded: the model.
      tokens: of the text, at most a context.
      top: how many alternatives to name at each place.

    Returns:
      log p(tokens[t] | those before), for t from 1 on, and [(token, logprob)] of the likeliest at each of these places.
    """
    padded = _padded(loaded.config, tokens)
    logprobs, ids, best = jax.device_get(_score(loaded.params, padded, config=loaded.config, top=max(1, top)))
    rows = range(len(tokens) - 1)
    return logprobs[:len(rows)].tolist(), [list(zip(ids[t, :top].tolist(), best[t, :top].tolist())) for t in rows]


@functools.partial(jax.jit, static_argnames=("config", "top"))
def _score(params, tokens, *, config, top):
    x, following = transformer.hidden(params, tokens, config=config)[0][0], jnp.roll(tokens[0], -1)

    def some(part):  # of the positions, whose logits are in memory at once
        x, following = part
        logprobs = jax.nn.log_softmax(transformer.unembed(params, x, config=config))
        best, ids = jax.lax.top_k(logprobs, min(top, config.vocab_size))
        return jnp.take_along_axis(logprobs, following[:, None], axis=-1)[:, 0], ids, best

    size = math.gcd(len(x), 128)
    parts = jax.lax.map(some, (x.reshape(-1, size, x.shape[-1]), following.reshape(-1, size)))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), parts)


def _padded(config: transformer.Config, tokens: Sequence[int]) -> np.ndarray:
    """[1, T] with few different T, so that there are few programs."""
    padded = np.zeros((1, min(config.context, max(16, 1 << (len(tokens) - 1).bit_length()))), np.int32)
    padded[0, :len(tokens)] = tokens
    return padded


def embed(model: Model, lists: Sequence[Sequence[int]]) -> np.ndarray:
    """Embeddings of texts: the mean over their tokens of what the last norm puts out, scaled to length 1.

      e = m / |m|,  m = (1/T) Σ_t x_t

    Args:
      model: whose.
      lists: the tokens of each text.

    Returns:
      float32 [len(lists), D].
    """
    return np.stack([_embed_one(model.loaded, tokens) for tokens in lists])


def _embed_one(loaded: Loaded, tokens: Sequence[int]) -> np.ndarray:
    return jax.device_get(_embed(loaded.params, _padded(loaded.config, tokens), len(tokens), config=loaded.config))


@functools.partial(jax.jit, static_argnames="config")
def _embed(params, tokens, length, *, config):
    x = transformer.hidden(params, tokens, config=config)[0][0].astype(jnp.float32)
    mean = jnp.where(jnp.arange(x.shape[0])[:, None] < length, x, 0).sum(0) / length
    return mean / jnp.maximum(jnp.linalg.norm(mean), 1e-12)


def shapes(model: Model) -> dict:
    """The blocks of a model, from the embedding to the head, with the shape of each parameter."""
    config = model.config
    tree = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))
    layer = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree["layers"])
    parts = [(name, tree, 1) for name in ("embed", "positions")]
    parts += [(name, layer, config.layers) for name in ("attention_norm", "attention", "mlp_norm", "mlp")]
    parts += [(name, tree, 1) for name in ("final_norm", "head")]
    blocks = []
    for name, within, times in parts:
        leaves = sorted(jax.tree.leaves_with_path(within.get(name, {})), key=lambda leaf: _place(leaf[0]))
        if leaves:
            blocks.append({"name": name, "times": times, "count": times * sum(leaf.size for _, leaf in leaves),
                           "parameters": [{"name": "/".join(str(key.key) for key in path) or name,
                                           "shape": list(leaf.shape)} for path, leaf in leaves]})
    sizes = [size for block in blocks for one in block["parameters"] for size in one["shape"]]
    return {"name": model.name, "parameters": transformer.count_params(config), "layers": config.layers,
            "width": config.width, "heads": config.heads, "head_size": config.H, "vocab_size": config.vocab_size,
            "context": config.context, "longest": max(sizes), "blocks": blocks,
            "cache_bytes": 2 * config.layers * config.K * config.H * jnp.dtype(config.dtype).itemsize}


def _place(path) -> int:
    """Of a parameter in the order of the computation."""
    name = str(path[0].key) if path else ""
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)
