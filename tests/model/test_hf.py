"""Models of transformers, read by us: the same logits, gradients, continuations, losses; and ours, read there."""

import copy
import dataclasses
import functools
import json
import logging
import warnings

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.core import sharding
from jaxgpt.core.errors import UserError
from jaxgpt.inference.generate import generate
from jaxgpt.model import config as config_module
from jaxgpt.model import hf, hf_config, losses, safetensors, transformer

torch = pytest.importorskip("torch", reason="the reference implementation runs on PyTorch")
transformers = pytest.importorskip("transformers", reason="the reference implementation")
T = 48


@dataclasses.dataclass
class Pair:
    """One model, theirs and ours, and the folder that ours was read from."""

    name: str
    theirs: torch.nn.Module
    folder: object
    params: object
    config: transformer.Config
    family: str


def one_device():
    return sharding.make_mesh(sharding.Layout(), jax.devices()[:1])


def read(folder, mesh=None, rules="replicated", **options):
    return hf.read_params(folder, mesh=mesh or one_device(), rules=sharding.get_rules(rules), **options)


@pytest.fixture(scope="module", params=families.FAMILIES)
def pair(request, tmp_path_factory):
    model, folder = families.make(request.param), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return Pair(request.param, model, folder, *read(folder))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(3, 96, (2, T))


@functools.partial(jax.jit, static_argnames="config")
def logits(params, tokens, config, **options):
    return transformer.apply(params, tokens, config=config, **options)


def theirs(pair, tokens, **options):
    with torch.no_grad():
        return pair.theirs(torch.tensor(np.asarray(tokens)), **options).logits.numpy()


def close(ours, reference, tolerance):
    """Within a part of the largest value."""
    np.testing.assert_allclose(ours, reference, rtol=0, atol=tolerance * np.abs(reference).max())


# --- the same numbers ------------------------------------------------------------------------------------------------

def test_logits(pair, tokens):
    """48 positions: beyond the window where there is one, and beyond the original context where that is stretched."""
    close(logits(pair.params, tokens, pair.config), theirs(pair, tokens), 1e-5)


@pytest.mark.parametrize("name, field, other", [
    ("llama3_2", "rope_scaling", None), ("llama_linear", "rope_scaling", None),
    ("llama_yarn", "rope_scaling", None), ("mistral", "windows", (None,)), ("qwen2_windows", "windows", (None,)),
    ("llama3", "rope_theta", 10_000.0), ("gpt2", "activation", "gelu"), ("llama2", "norm_eps", 1e-2),
    ("qwen3_moe", "norm_topk", True), ("mixtral", "experts_per_token", 1)])
def test_logits_would_show_a_feature_left_out(name, field, other, tokens, tmp_path):
    model = families.make(name)
    model.save_pretrained(tmp_path)
    params, config, _ = read(tmp_path)
    assert getattr(config, field) != other
    changed = logits(params, tokens, dataclasses.replace(config, **{field: other}))
    with torch.no_grad():
        reference = model(torch.tensor(tokens)).logits.numpy()
    assert np.abs(changed - reference).max() > 1e-4 * np.abs(reference).max()


@pytest.mark.slow
def test_gradients(pair, tokens, tmp_path):
    """Theirs are written as weights, and read into our tree as weights are."""
    def loss(params):
        x = logits(params, tokens[:, :-1], pair.config)
        return -losses.selective_log_softmax(x, jnp.asarray(tokens[:, 1:]))[0].mean()

    ours = jax.jit(jax.grad(loss))(pair.params)
    pair.theirs.zero_grad()
    inputs = torch.tensor(tokens)
    pair.theirs(inputs, labels=inputs).loss.backward()
    gradients = copy.deepcopy(pair.theirs)
    with torch.no_grad():
        for weight, source in zip(gradients.parameters(), pair.theirs.parameters()):
            weight.copy_(source.grad)
    gradients.save_pretrained(tmp_path)
    reference = read(tmp_path)[0]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(reference))

    def agree(ours, reference):  # GPT-2's biases of keys shift all scores of a query alike: their gradient is rounding
        np.testing.assert_allclose(ours, reference, rtol=0, atol=max(1e-4 * np.abs(reference).max(), 1e-6 * largest))

    jax.tree.map(agree, ours, reference)


@pytest.mark.slow
def test_greedy_continuations_over_64_tokens(pair, tokens):
    """Prompts of different lengths: theirs padded on the left, ours on the right, with our cache."""
    lengths = [5, 12]
    prompts = [row[:length].tolist() for row, length in zip(tokens, lengths)]
    padded = torch.tensor([[0] * (max(lengths) - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (max(lengths) - n) + [1] * n for n in lengths])
    with torch.no_grad():
        expected = pair.theirs.generate(padded, attention_mask=mask, max_new_tokens=64, do_sample=False,
                                        eos_token_id=None, pad_token_id=0)[:, max(lengths):]
    found = generate(pair.params, pair.config, prompts, rng=jax.random.key(0), max_new_tokens=64, temperature=0.0)
    assert [completion.tokens for completion in found] == expected.tolist()
    assert len({token for completion in found for token in completion.tokens}) > 8  # it does not merely repeat itself


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches(pair, tokens, side):
    """Ours takes padding as a segment of its own; logits of real tokens are theirs with an attention mask."""
    real = np.ones((2, T), bool)
    real[0, slice(0, 20) if side == "left" else slice(T - 20, T)] = False
    positions = np.where(real, real.cumsum(1) - 1, 0)
    ours = logits(pair.params, tokens, pair.config, positions=jnp.asarray(positions),
                  segment_ids=jnp.asarray(real.astype(np.int32)))
    reference = theirs(pair, tokens, attention_mask=torch.tensor(real.astype(int)),
                       position_ids=torch.tensor(positions))
    close(np.asarray(ours)[real], reference[real], 1e-5)


def test_loss_of_packed_documents_is_that_of_each_alone(pair, tokens):
    lengths = (20, 9, 19)
    row = tokens[:1]
    starts = np.cumsum((0, *lengths))[:-1]
    targets, mask = np.roll(row, -1, axis=1), np.ones_like(row)
    mask[0, starts + np.array(lengths) - 1] = 0  # the last token of a document predicts nothing
    batch = {"tokens": row, "targets": targets, "loss_mask": mask,
             "positions": np.concatenate([np.arange(n) for n in lengths])[None],
             "segment_ids": np.repeat(np.arange(3), lengths)[None]}
    total, weight, _ = jax.jit(functools.partial(losses.next_token_loss, config=pair.config, auxiliary=False))(
        pair.params, (), batch, jax.random.key(0))
    each = []
    for start, n in zip(starts, lengths):
        alone = torch.tensor(row[:, start:start + n])
        with torch.no_grad():
            each.append(float(pair.theirs(alone, labels=alone).loss) * (n - 1))
    assert int(weight) == T - 3
    assert float(total) == pytest.approx(sum(each), rel=1e-5)


# --- in and out ------------------------------------------------------------------------------------------------------

def write(params, config, folder, family, **options):
    folder.mkdir()
    hf.write_params(params, config, folder, family=hf_config.family_of(config, family),
                    tokens={"bos_token_id": 1, "eos_token_id": 2}, **options)
    return folder


def by_name(folder):
    return {name: stored.read((slice(None),) * len(stored.shape)) for name, stored in safetensors.open_folder(folder).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_out_again_is_byte_for_byte_what_came_in(pair, tmp_path, dtype):
    source = tmp_path / "source"
    copy.deepcopy(pair.theirs).to(getattr(torch, dtype)).save_pretrained(source)
    params, config, family = read(source)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
    before, after = by_name(source), by_name(write(params, config, tmp_path / "out", family, shard_bytes=8_000))
    assert before.keys() == after.keys() and len(list((tmp_path / "out").glob("model-*"))) > 2
    for name, array in before.items():
        assert (array.dtype, array.shape, array.tobytes()) == (after[name].dtype, after[name].shape, after[name].tobytes())


def test_what_we_write_loads_there_without_a_warning(pair, tokens, tmp_path, caplog):
    folder = write(pair.params, pair.config, tmp_path / "out", pair.family, shard_bytes=8_000)
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
            model.generate(torch.tensor(tokens[:, :4]), max_new_tokens=2, do_sample=False, pad_token_id=0)
    finally:
        logger.removeHandler(handler)
    assert said == [] and not any(info.values())
    assert type(model) is type(pair.theirs) and model.dtype == torch.float32
    with torch.no_grad():
        np.testing.assert_array_equal(model(torch.tensor(tokens)).logits.numpy(), theirs(pair, tokens))
    assert read(folder)[1] == pair.config


@pytest.mark.parametrize("rules, layout", [("fsdp", {"fsdp": 8}), ("fsdp_tensor", {"fsdp": 2, "tensor": 2, "data": 2})])
def test_shards_are_read_where_they_belong(pair, rules, layout, tokens):
    mesh = sharding.make_mesh(sharding.Layout(**{"data": 1, **layout}))
    params, config, _ = read(pair.folder, mesh, rules, dtype="bfloat16")
    assert not params["layers"]["attention"]["q"]["weight"].sharding.is_fully_replicated
    for ours, alone in zip(jax.tree.leaves(params), jax.tree.leaves(pair.params)):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(alone.astype(jnp.bfloat16)))


def test_names_of_openais_first_folders_are_known(tmp_path):
    """Without "transformer." before them, with masks among them, and with the head of a model that has none."""
    config = transformer.Config(vocab_size=16, context=8, layers=2, width=8, heads=2, position="learned", norm="layernorm",
                                norm_eps=1e-5, activation="gelu_tanh", bias=True, tied=True)
    params = jax.jit(lambda: transformer.init(jax.random.key(0), config))()
    folder = write(params, config, tmp_path / "gpt2", "gpt2")
    arrays = {name.removeprefix("transformer."): array for name, array in by_name(folder).items()}
    arrays |= {"h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32), "lm_head.weight": arrays["wte.weight"]}
    safetensors.write_file(folder / safetensors.SINGLE, [
        (name, array.dtype, array.shape, lambda array=array: array) for name, array in arrays.items()])
    found, again, _ = read(folder)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_types_are_cast_only_on_purpose(folder):
    params, config, _ = read(folder, dtype="float16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float16")}
    exact, _, _ = read(folder)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b).astype(np.float16)), params, exact)
    mixed = dict(by_name(folder))
    mixed["model.norm.weight"] = mixed["model.norm.weight"].astype(jnp.bfloat16)
    (folder / safetensors.INDEX).unlink()
    safetensors.write_file(folder / safetensors.SINGLE, [
        (name, array.dtype, array.shape, lambda array=array: array) for name, array in mixed.items()])
    with pytest.raises(UserError, match="holds tensors of types BF16 and F32; say which to take with --dtype"):
        read(folder)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(read(folder, dtype="bfloat16")[0])} == {"bfloat16"}


@pytest.mark.parametrize("fields, expected", [  # as the authors' own files say it
    ({"model_type": "mistral", "sliding_window": 4096, "rope_theta": 10000.0}, {"windows": (4096,)}),
    ({"model_type": "mistral", "sliding_window": None, "rope_theta": 1e6}, {"windows": (None,), "rope_theta": 1e6}),
    ({"model_type": "mistral"}, {"windows": (4096,), "kv_heads": 8, "norm_eps": 1e-6}),
    ({"model_type": "llama", "rope_scaling": None, "pretraining_tp": 1, "mlp_bias": False}, {"rope_scaling": None}),
    ({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3"}}, {"rope_theta": 5e5, "rope_scaling": config_module.RopeScaling(32.0)}),
    ({"model_type": "qwen2", "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
     {"rope_scaling": config_module.YarnScaling(factor=4.0, context=32768)}),
    ({"model_type": "llama", "max_position_embeddings": 64, "rope_scaling": {
        "rope_type": "yarn", "factor": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0}},
     {"rope_scaling": config_module.YarnScaling(factor=2.0, context=64, attention=1.0)}),
    ({"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 21,
      "use_mrope": False}, {"windows": (None,), "qkv_bias": True, "kv_heads": 32}),
    ({"model_type": "qwen3", "num_key_value_heads": 8}, {"head_dim": 128, "qk_norm": True, "kv_heads": 8}),
    ({"model_type": "mixtral", "sliding_window": None}, {"rope_theta": 1e6, "experts": 8, "experts_per_token": 2,
                                                         "norm_topk": True, "windows": (None,), "mlp_width": 8}),
    ({"model_type": "qwen3_moe", "num_experts": 16, "router_aux_loss_coef": 0.01, "mlp_only_layers": []},
     {"experts": 16, "experts_per_token": 8, "norm_topk": False, "mlp_width": 768, "balance_loss": 0.01}),
])
def test_what_files_leave_out_or_say_in_older_ways(tmp_path, fields, expected):
    shape = {"vocab_size": 8, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 32, "intermediate_size": 8}
    (tmp_path / "config.json").write_text(json.dumps({**shape, **fields}))
    _, config = hf_config.read_config(tmp_path)
    assert {name: getattr(config, name) for name in expected} == expected


# --- bad input -------------------------------------------------------------------------------------------------------

@pytest.fixture
def folder(tmp_path):
    """A small Llama in two files, written by us."""
    config = transformer.Config(vocab_size=16, context=8, layers=2, width=8, heads=2, kv_heads=1, head_dim=4, mlp_width=12)
    return write(jax.jit(lambda: transformer.init(jax.random.key(0), config))(), config, tmp_path / "llama", "llama",
                 shard_bytes=2_000)


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("fields, words", [
    ({"model_type": "mamba"}, "config.json: model_type is 'mamba'; supported: gpt2, llama"),
    ({"architectures": ["LlamaForTokenClassification"]}, "architectures names 'LlamaForTokenClassification'; supported: Llama"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "rope_scaling.rope_type is 'dynamic'; supported: default, linear, llama3, yarn"),
    ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling lacks 'factor'"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling lacks 'factor', which rope_type yarn needs"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling is .*factor is at least 1"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: silu"),
    ({"attention_bias": True}, "attention_bias is True; supported: False"),
    ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}, a field that llama does not have here"),
    ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two', but should be a whole number"),
    ({"num_key_value_heads": 3}, "not a model that can be .*kv_heads=3"),
    ({"model_type": "qwen3_moe", "architectures": None, "mlp_only_layers": [0]},
     "mlp_only_layers is \\[0\\]; supported: \\[\\]"),
    ({"model_type": "qwen3_moe", "architectures": None, "decoder_sparse_step": 2}, "decoder_sparse_step is 2; supported: 1"),
    ({"model_type": "mixtral", "architectures": None, "num_experts_per_tok": 9}, "experts_per_token=9: at most experts=8"),
    ({"intermediate_size": 24}, r"model.*safetensors: model.layers.0.mlp.*proj.weight should have shape \[.*24.*\], "
                                r"as config.json says, but has \[.*12.*\]"),
    ({"num_hidden_layers": 3}, "no file there holds tensor model.layers.2.self_attn.k_proj.weight, of shape \\[4, 8\\]"),
    ({"num_hidden_layers": 1}, "holds tensor model.layers.1.* which a llama with these settings does not have"),
])
def test_a_config_that_is_not_ours_is_refused_in_a_sentence(folder, fields, words):
    change(folder, **fields)
    with pytest.raises(UserError, match=words) as refusal:
        read(folder)
    assert "\n" not in str(refusal.value)


def test_damaged_files_are_named(folder, tmp_path):
    first, *_, last = sorted(folder.glob("model-*"))
    kept = last.read_bytes()
    last.write_bytes(kept[:-4])
    with pytest.raises(UserError, match=f"{last.name}: .* should end at byte {len(kept)}, but the file has {len(kept) - 4}"):
        read(folder)
    last.unlink()
    with pytest.raises(UserError, match=f"{last.name}: no such file, but model.safetensors.index.json says that it holds"):
        read(folder)
    first.write_bytes(b"PK\x03\x04" * 9)
    with pytest.raises(UserError, match=f"{first.name}: not a safetensors file"):
        read(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="no model.safetensors .*pytorch_model.bin are pickles"):
        read(folder)
    with pytest.raises(UserError, match="absent: no such folder"):
        read(tmp_path / "absent")


def test_models_that_no_family_has_are_refused_by_setting():
    config = transformer.Config(vocab_size=16, context=8, layers=2, width=8, heads=2, activation="relu2", logit_soft_cap=15.0)
    with pytest.raises(UserError, match="as llama, logit_soft_cap should be None, but is 15.0; activation should be swiglu"):
        hf_config.family_of(config)
