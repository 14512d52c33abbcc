"""Models and tokenizers as llama2.c reads them: played by a few lines of NumPy here, and by its own `run` where there is one."""

import dataclasses
import json
import os
import struct
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.cli import main
from jaxgpt.core import experiment
from jaxgpt.core.errors import UserError
from jaxgpt.inference.generate import generate
from jaxgpt.inference.load import load
from jaxgpt.model import hf, llama2c, presets, transformer
from jaxgpt.model.config import LinearScaling
from jaxgpt.pretrain import imported
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer import hf as hf_tokenizer
from jaxgpt.tokenizer.tokenizer import Tokenizer

TEXT = "the cat sat on the mat, the rat sat on the cat and that was that. \u00e9t\u00e9 " * 3
CONFIG = transformer.Config(vocab_size=320, context=64, layers=2, width=16, heads=4, kv_heads=2, mlp_width=24, norm_eps=1e-5,
                            init_std=0.3)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def exported(request, tmp_path_factory):
    """A model with tokens of ours and a few spare rows, imported, and exported for llama2.c."""
    folder = tmp_path_factory.mktemp("llama2c")
    config = dataclasses.replace(CONFIG, tied=request.param)
    params = jax.jit(lambda: transformer.init(jax.random.key(0), config))()
    (folder / "source").mkdir()
    hf.write_params(params, config, folder / "source", family="llama")
    hf_tokenizer.write(Tokenizer(bpe.train([TEXT], vocab_size=290)), folder / "source")
    experiment.run(imported.import_experiment(str(folder / "source")), folder / "work")
    assert main(["export", str(folder / "work"), "--to", str(folder / "out"), "--format", "llama2.c"]) == 0
    return load(folder / "work"), folder / "out"


def read_tokenizer(path, size):
    data, at, found = path.read_bytes(), 4, []
    for _ in range(size):
        score, length = struct.unpack_from("<fI", data, at)
        found.append((data[at + 8:at + 8 + length], score))
        at += 8 + length
    assert at == len(data) and max(len(token) for token, _ in found) == struct.unpack_from("<I", data)[0]
    return found


class Reader:
    """The file as `run` maps it, and its arithmetic."""

    def __init__(self, path):
        data = path.read_bytes()
        self.D, self.F, self.L, self.N, self.K, size, self.T = struct.unpack_from("<7i", data)
        self.V, H = abs(size), self.D // self.N
        self.weights, self.at = np.frombuffer(data, "<f4", offset=28), 0
        D, F, L, V, kv = self.D, self.F, self.L, self.V, self.K * H
        self.embed, self.att_norm = self._take(V, D), self._take(L, D)
        self.q, self.k, self.v, self.o = self._take(L, D, D), self._take(L, kv, D), self._take(L, kv, D), self._take(L, D, D)
        self.mlp_norm, self.gate, self.down, self.up = self._take(L, D), self._take(L, F, D), self._take(L, D, F), self._take(L, F, D)
        self.norm, _ = self._take(D), self._take(self.T, H)
        self.head = self.embed if size > 0 else self._take(V, D)
        assert self.at == len(self.weights)

    def _take(self, *shape):
        self.at += (count := int(np.prod(shape)))
        return self.weights[self.at - count:self.at].reshape(shape)

    def logits(self, tokens):
        norm = lambda x, w: w * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)  # noqa: E731
        T, H, x = len(tokens), self.D // self.N, self.embed[tokens]
        angle = np.arange(T)[:, None] / 10_000 ** (np.arange(0, H, 2) / H)
        def turn(x):
            a, b = x[..., ::2], x[..., 1::2]
            cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
            return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)
        for i in range(self.L):
            y = norm(x, self.att_norm[i])
            q, k = turn((y @ self.q[i].T).reshape(T, self.N, H)), turn((y @ self.k[i].T).reshape(T, self.K, H))
            k, v = (np.repeat(a, self.N // self.K, 1) for a in (k, (y @ self.v[i].T).reshape(T, self.K, H)))
            scores = np.where(np.tri(T, dtype=bool), np.einsum("tnh,snh->nts", q, k) / H ** 0.5, -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            x = x + np.einsum("nts,snh->tnh", p / p.sum(-1, keepdims=True), v).reshape(T, -1) @ self.o[i].T
            y = norm(x, self.mlp_norm[i])
            gate = y @ self.gate[i].T
            x = x + (gate / (1 + np.exp(-gate)) * (y @ self.up[i].T)) @ self.down[i].T
        return norm(x, self.norm) @ self.head.T


def test_the_file_gives_the_same_logits(exported):
    loaded, out = exported
    rows, _, _ = imported.llama2c_tokenizer.pieces(loaded.tokenizer, loaded.config.vocab_size)
    assert sorted(rows) == list(range(loaded.config.vocab_size)) and rows[1] == loaded.tokenizer.bos
    assert [loaded.tokenizer.decode_bytes([token]) for token in rows[3:259]] == [bytes([byte]) for byte in range(256)]
    theirs = np.random.default_rng(0).integers(0, loaded.config.vocab_size, 20)
    ours = transformer.apply(loaded.params, jnp.array(rows[theirs])[None], config=loaded.config)[0]
    reference = np.asarray(ours)[:, rows]
    np.testing.assert_allclose(Reader(out / "model.bin").logits(theirs), reference, rtol=0, atol=1e-5 * np.abs(reference).max())


def test_the_tokenizer_merges_as_ours_does(exported):
    """By the rule of `run`: the pair of the best score first; here on pieces of text, as `run` knows no pieces."""
    loaded, out = exported
    found = read_tokenizer(out / "tokenizer.bin", loaded.config.vocab_size)
    rows, _, _ = imported.llama2c_tokenizer.pieces(loaded.tokenizer, loaded.config.vocab_size)
    score = {token: (score, number) for number, (token, score) in enumerate(found) if score > -1e10}
    for text in ("the", " that", "cat", " \u00e9t\u00e9", " xyz", "\u2603"):
        tokens = [bytes([byte]) for byte in text.encode()]
        while best := max(((score[a + b][0], -i) for i, (a, b) in enumerate(zip(tokens, tokens[1:])) if a + b in score), default=None):
            tokens[-best[1]:2 - best[1]] = [tokens[-best[1]] + tokens[1 - best[1]]]
        assert [rows[score[token][1]] for token in tokens] == loaded.tokenizer.encode(text)


@pytest.mark.skipif("LLAMA2C" not in os.environ, reason="LLAMA2C does not name llama2.c's compiled run")
def test_run_prints_the_same_greedy_tokens(exported):
    loaded, out = exported
    tokenizer = loaded.tokenizer
    for prompt in ("", "the cat", "\u00e9t\u00e9 sat"):
        tokens = [tokenizer.bos, *tokenizer.encode(" " + prompt if prompt else "")]
        steps = 40
        answer, = generate(loaded.params, loaded.config, [tokens], rng=jax.random.key(0), temperature=0.0,
                           max_new_tokens=steps + 1 - len(tokens), stop=(tokenizer.bos,))
        said = subprocess.run([os.environ["LLAMA2C"], out / "model.bin", "-z", out / "tokenizer.bin", "-t", "0", "-n", str(steps),
                               "-i", prompt], capture_output=True, check=True).stdout
        rows, spelt, _ = imported.llama2c_tokenizer.pieces(tokenizer, loaded.config.vocab_size)
        number = {token: i for i, token in enumerate(rows)}
        expected, before = b"", tokenizer.bos
        for token in [*tokens[1:], *answer.content]:
            piece = spelt[number[token]].replace(b"<0x00>", b"\0")
            piece = piece[1:] if before == tokenizer.bos and piece[:1] == b" " else piece
            expected += piece if len(piece) > 1 or piece.isspace() or 32 <= piece[0] < 127 else b""  # `run` prints no other bytes
            before = token
        assert said == expected + b"\n"


def test_every_setting_of_a_model_is_compared():
    known = [*llama2c.ONLY, *llama2c.SAID, *llama2c.SILENT, *llama2c.DERIVED]
    assert sorted(known) == sorted(field.name for field in dataclasses.fields(transformer.Config))


@pytest.mark.parametrize("change, words", [
    ({"qk_norm": True, "activation": "relu2", "logit_soft_cap": 15.0},
     "activation should be swiglu, but is relu2; qk_norm should be False, but is True; logit_soft_cap should be None, but is 15.0"),
    ({"rope_theta": 5e5}, "rope_theta should be 10000.0, but is 500000.0"),
    ({"norm_eps": 1e-6}, "norm_eps should be 1e-05, but is 1e-06"),
    ({"qkv_bias": True}, "qkv_bias should be False"), ({"windows": (8, None)}, "windows should be None"),
    ({"head_dim": 8}, "head_dim should be 16/4"), ({"experts": 4}, "experts should be None"),
    ({"rope_scaling": LinearScaling(2.0)}, "rope_scaling should be None"),
])
def test_what_it_cannot_say_is_named(change, words):
    assert "; ".join(llama2c.refusals(dataclasses.replace(CONFIG, **change))).startswith(words)
    assert llama2c.refusals(CONFIG) == llama2c.refusals(presets.llama2()) == []


def test_refusals_leave_nothing(exported, tmp_path, capsys, monkeypatch):
    loaded, out = exported
    work = str(out.with_name("work"))
    assert main(["export", work, "--to", str(tmp_path / "out"), "--format", "llama2.c", "--dtype", "bfloat16"]) == 2
    assert "--dtype bfloat16: llama2.c's weights are float32" in capsys.readouterr().err
    other = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, qk_norm=True))
    monkeypatch.setattr(imported, "load", lambda *_: other)
    with pytest.raises(UserError, match="llama2.c cannot play import: qk_norm should be False, but is True"):
        imported.export_llama2c(work, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def merged_as_run_does(found, text):
    """Its encoding: the opening token, a space, characters or their bytes, then the pair of the best score, again and again."""
    number = {token: i for i, (token, _) in reversed(list(enumerate(found)))}
    tokens = [1]
    for character in " " * bool(text) + text:
        spelt = character.encode()
        tokens += [number[spelt]] if spelt in number else [byte + 3 for byte in spelt]
    while True:
        pairs = [(found[number[both]][1], -i, number[both]) for i, (a, b) in enumerate(zip(tokens, tokens[1:]))
                 if (both := found[a][0] + found[b][0]) in number and found[number[both]][1] > -1e10]
        if not pairs:
            return tokens
        _, at, new = max(pairs)
        tokens[-at:2 - at] = [new]


def test_a_tokenizer_of_llama_2s_kind_encodes_as_it_did(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="the reference implementation of tokenizer.json")
    from tokenizers import decoders, models, normalizers, trainers
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=330, special_tokens=first, show_progress=False, max_token_length=8))
    found = json.loads(made.to_str())
    found["added_tokens"] = [token for token in found["added_tokens"] if not token["content"].startswith("<0x")]
    vocabulary = found["model"]["vocab"]
    found["model"]["merges"] = [[token[:i], token[i:]] for token in sorted(vocabulary, key=vocabulary.get)
                                for i in range(1, len(token)) if {token[:i], token[i:]} <= set(vocabulary)]  # as published
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    tokenizer = hf_tokenizer.read(tmp_path)
    rows, spelt, scores = imported.llama2c_tokenizer.pieces(tokenizer, 340)
    assert list(rows) == list(range(340))
    for text in ("", "the cat sat", "that  was \u2603 \u00e9t\u00e9", "zebra\n"):
        assert merged_as_run_does(list(zip(spelt, scores)), text) == [1, *tokenizer.encode(text)]
    vocabulary["<0x00>"], vocabulary["<0x01>"] = vocabulary["<0x01>"], vocabulary["<0x00>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"wants the token that opens a text to be 1 .found: 1. and <0x00> to be 3 .found: 4."):
        imported.llama2c_tokenizer.pieces(hf_tokenizer.read(tmp_path), 340)


def test_a_tokenizer_laid_out_otherwise_is_refused():
    tokenizer = Tokenizer(bpe.train([TEXT], vocab_size=290), normalization="NFC")
    with pytest.raises(UserError, match="puts text into the form NFC first"):
        imported.llama2c_tokenizer.pieces(tokenizer, 320)
