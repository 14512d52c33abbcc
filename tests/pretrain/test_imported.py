"""From a Hugging Face folder to a workdir that sample loads, and back; nothing half-written remains."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
import tiny

from jaxgpt.cli import main
from jaxgpt.core import experiment
from jaxgpt.core.errors import UserError
from jaxgpt.inference.load import load
from jaxgpt.model import hf, safetensors, transformer
from jaxgpt.model.lora import Lora
from jaxgpt.pretrain import imported
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer import hf as hf_tokenizer
from jaxgpt.tokenizer.tokenizer import Tokenizer

CONFIG = transformer.Config(vocab_size=272, context=32, layers=2, width=16, heads=4, kv_heads=2, head_dim=4, mlp_width=24,
                            init_std=0.3)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A Llama in bfloat16 with a tokenizer of 264 tokens."""
    folder = tmp_path_factory.mktemp("source") / "llama"
    folder.mkdir()
    params = jax.jit(lambda: transformer.init(jax.random.key(0), CONFIG))()
    hf.write_params(params, CONFIG, folder, family="llama", dtype="bfloat16", shard_bytes=10_000)
    hf_tokenizer.write(Tokenizer(bpe.train(["no merges"], vocab_size=264)), folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}<|end|>")
    return folder


@pytest.fixture(scope="module")
def workdir(source, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("work") / "imported"
    experiment.run(imported.import_experiment(str(source)), workdir)
    return workdir


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_what_is_imported_is_what_load_finds(workdir, source):
    loaded = load(workdir)
    config, stored = loaded.config, safetensors.open_folder(source)
    assert (loaded.stage, config.heads, config.K, config.dtype) == ("import", 4, 2, "float32")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}
    whole = stored["model.layers.1.self_attn.q_proj.weight"].read((slice(None), slice(None)))
    np.testing.assert_array_equal(loaded.params["layers"]["attention"]["q"]["weight"][1], whole.T)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("héllo")) == "héllo"


@pytest.mark.slow
def test_commands(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    work, out = str(tmp_path / "work"), str(tmp_path / "out")
    assert main(["import", str(source), "--to", work]) == 0
    assert main(["import", str(source), "--to", work]) == 0  # once more: complete
    assert "import: complete" in capsys.readouterr().out
    assert main(["sample", work, "--prompt", "a", "--temperature", "0", "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("a")
    assert main(["export", work, "--to", out]) == 0
    assert "as a llama" in capsys.readouterr().out
    before, after = safetensors.open_folder(source), safetensors.open_folder(out)
    for name, one in before.items():
        whole = (slice(None),) * len(one.shape)
        assert one.read(whole).tobytes() == after[name].read(whole).tobytes() and one.dtype == after[name].dtype
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    for what in (work, out):
        assert main(["info", what, "--length", "32"]) == 0
        said = capsys.readouterr().out
        assert f"{transformer.count_params(CONFIG):,}" in said and "layers/attention/q/weight" in said
        assert "KV cache: 128 bytes a token in float32" in said and "FLOPs a token (causal" in said
    assert main(["export", work, "--to", out]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.slow
def test_pretraining_goes_on_from_an_imported_model(source, tmp_path):
    """In bfloat16 there, in float32 here; its tokenizer makes the tokens, and the export is of its family still."""
    stage = imported.Import(folder=str(source))
    chosen = tiny.experiment(tiny.write_corpus(tmp_path), rules="replicated")
    further = dataclasses.replace(chosen.stage("pretrain"), model=stage.model, start_from="import", tokens=4 * 8 * 32, prompts=(),
                                  lora=Lora(rank=2))
    stages = (stage, chosen.stage("curate"), dataclasses.replace(chosen.stage("tokenize"), tokenizer="import"), further)
    work = tmp_path / "work"
    tiny.run_stages(dataclasses.replace(chosen, stages=stages), ("import", "curate", "tokenize", "pretrain"), work)
    before, after = load(work, "import").params, load(work, "pretrain").params
    np.testing.assert_array_equal(after["embed"], np.asarray(before["embed"], np.float32))
    assert (np.asarray(before["layers"]["mlp"]["up"]["weight"], np.float32) != after["layers"]["mlp"]["up"]["weight"]).any()
    assert imported.export(work, tmp_path / "out", stage="pretrain") == "llama"
    assert hf_tokenizer.load(tmp_path / "out").encode("river") == load(work, "import").tokenizer.encode("river")


def test_a_conversation_is_written_as_the_folder_says(workdir):
    from jaxgpt.chat.terminal import Conversation
    loaded = load(workdir)
    conversation = Conversation(loaded, temperature=0.0)
    conversation.messages = [{"role": "user", "content": "a<|end|>"}]
    bos, end = loaded.tokenizer.bos, loaded.tokenizer.end
    assert conversation._prompt() == [bos, *b"a<|end|>", end]


def test_a_base_model_of_others_cannot_chat(source, tmp_path, capsys):
    folder = shutil.copytree(source, tmp_path / "source")
    found = json.loads((folder / "tokenizer.json").read_text())
    found["added_tokens"] = [{"id": 256, "content": "<|endoftext|>", "special": True}]
    (folder / "tokenizer.json").write_text(json.dumps(found))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    (folder / "chat_template.jinja").unlink()
    assert main(["import", str(folder), "--to", str(tmp_path / "work"), "--dtype", "float32"]) == 0
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(load(tmp_path / "work").params)} == {"float32"}
    assert main(["chat", str(tmp_path / "work"), "--prompt", "hello"]) == 2
    assert "has no token for <|bos|>" in capsys.readouterr().err


def test_ours_goes_out_with_its_tokenizer(tmp_path):
    """A model trained here, of a shape that a family has."""
    from jaxgpt.core.checkpoint import Checkpoints
    from jaxgpt.core.config import to_json
    from jaxgpt.core.files import write_json
    from jaxgpt.core.state import TrainState
    params = jax.jit(lambda: transformer.init(jax.random.key(0), CONFIG))()
    tokenizer, stage = Tokenizer(bpe.train(["no merges"], vocab_size=264)), tmp_path / "work" / "base"
    tokenizer.save(stage / "tokenizer")
    checkpoints = Checkpoints(stage / "checkpoints", config=to_json(CONFIG))
    checkpoints.save(1, TrainState(params, (), jax.numpy.zeros((), jax.numpy.int32), jax.random.key(0)), {})
    checkpoints.close()
    write_json(stage / "manifest.json", {
        "stage": "base", "settings": {}, "seed": 0, "inputs": {}, "finished": "2025-01-01 00:00:00 +0000",
        "outputs": {"model": to_json(CONFIG), "checkpoint": "checkpoints/1", "tokenizer": "tokenizer"}})
    assert imported.export(tmp_path / "work", tmp_path / "out", dtype="float16") == "llama"
    _, config, stored = hf.check_folder(tmp_path / "out")
    assert {one.dtype for one in stored.values()} == {"F16"} and config.norm_eps == CONFIG.norm_eps
    assert hf_tokenizer.read(tmp_path / "out").ranks == tokenizer.ranks


@pytest.mark.parametrize("damage, words", [
    (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    (lambda folder: sorted(folder.glob("model-*"))[1].unlink(), "model-00002-of-.*: no such file, but .* says that it holds"),
    (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
])
def test_nothing_half_written_remains(source, tmp_path, capsys, damage, words):
    folder, work = shutil.copytree(source, tmp_path / "source"), tmp_path / "work"
    damage(folder)
    assert main(["import", str(folder), "--to", str(work)]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said) and said.count("\n") == 1
    assert not work.exists() or files(work) == []


def test_a_tokenizer_that_disagrees_with_the_embedding_is_refused(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "source")
    found = json.loads((folder / "tokenizer.json").read_text())
    found["added_tokens"].append({"id": 272, "content": "<|extra|>", "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"tokenizer.json: has the token 272 \('<\|extra\|>'\), but the embedding of the model "
                                        "has 272 rows"):
        experiment.run(imported.import_experiment(str(folder)), tmp_path / "work")
    assert files(tmp_path / "work") == []


def test_a_failed_export_leaves_nothing(workdir, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(safetensors, "write_file", full)
    with pytest.raises(UserError, match="the disk is full"):
        imported.export(workdir, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_folder_and_cannot_be_had(capsys, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="it fetches models by name")
    def offline(*_, **__):
        raise OSError("no network")
    monkeypatch.setattr(hub, "snapshot_download", offline)
    assert main(["import", "openai-community/gpt2", "--to", str(tmp_path / "work")]) == 2
    said = capsys.readouterr().err
    assert "openai-community/gpt2: no such folder, and no such model could be had from huggingface.co" in said
    assert main(["import", str(tmp_path / "absent"), "--to", str(tmp_path / "work")]) == 2
    assert "absent: no such folder" in capsys.readouterr().err and not (tmp_path / "work").exists()
