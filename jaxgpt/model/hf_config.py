"""config.json of a Hugging Face folder <-> our Config. What we cannot say, or do not know, is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import read_json
from jaxgpt.model.config import Config, LinearScaling, RopeScaling, YarnScaling

ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
                 "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "mixtral": "MixtralForCausalLM",
                 "qwen3_moe": "Qwen3MoeForCausalLM"}

# Fields of config.json by the name of ours; what they mean is the same.
_GPT2_FIELDS = {"vocab_size": "vocab_size", "context": "n_positions", "layers": "n_layer", "width": "n_embd",
                "heads": "n_head", "mlp_width": "n_inner", "norm_eps": "layer_norm_epsilon",
                "tied": "tie_word_embeddings"}
_LLAMA_FIELDS = {"vocab_size": "vocab_size", "context": "max_position_embeddings", "layers": "num_hidden_layers",
                 "width": "hidden_size", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads",
                 "head_dim": "head_dim", "mlp_width": "intermediate_size", "norm_eps": "rms_norm_eps",
                 "tied": "tie_word_embeddings"}
_MIXTRAL_FIELDS = {**_LLAMA_FIELDS, "experts": "num_local_experts", "experts_per_token": "num_experts_per_tok",
                   "balance_loss": "router_aux_loss_coef"}
_QWEN3_MOE_FIELDS = {**_MIXTRAL_FIELDS, "experts": "num_experts", "mlp_width": "moe_intermediate_size",
                     "norm_topk": "norm_topk_prob"}
_FIELDS = {"gpt2": _GPT2_FIELDS, "mixtral": _MIXTRAL_FIELDS, "qwen3_moe": _QWEN3_MOE_FIELDS}  # others as llama

# What a field that is not there stands for, where that is not None.
_ABSENT = {
    "gpt2": {"n_positions": 1024, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
             "activation_function": "gelu_new"},
    "llama": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
              "hidden_act": "silu"},
    "mistral": {"max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
                "num_key_value_heads": 8, "sliding_window": 4096, "hidden_act": "silu"},
    "qwen2": {"max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
              "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "hidden_act": "silu"},
    "qwen3": {"max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "head_dim": 128,
              "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "hidden_act": "silu"},
    "mixtral": {"max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
                "num_key_value_heads": 8, "rope_theta": 1e6, "hidden_act": "silu", "num_local_experts": 8,
                "num_experts_per_tok": 2, "router_aux_loss_coef": 0.001},
    "qwen3_moe": {"max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
                  "num_key_value_heads": 4, "sliding_window": 4096, "hidden_act": "silu", "num_experts": 128,
                  "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False,
                  "router_aux_loss_coef": 0.001},
}

_NULL_SAYS_SOMETHING = ("sliding_window", "num_key_value_heads", "head_dim")

# Fields that change what the model is, and the values by which it is one of ours (also where they are absent).
_ONLY = {
    "gpt2": {"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
             "add_cross_attention": (False,)},
    "llama": {"attention_bias": (False,), "mlp_bias": (False,)},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"attention_bias": (False,)},
    "mixtral": {},
    "qwen3_moe": {"attention_bias": (False,), "decoder_sparse_step": (1,), "mlp_only_layers": ([],)},
}
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}

# Fields that say nothing about the logits.
_SILENT = frozenset("""
    architectures model_type torch_dtype dtype transformers_version use_cache initializer_range attention_dropout
    attn_pdrop embd_pdrop resid_pdrop bos_token_id eos_token_id pad_token_id summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj task_specific_params n_ctx pretraining_tp id2label label2id
    return_dict chunk_size_feed_forward problem_type reorder_and_upcast_attn max_length output_past
    output_router_logits router_jitter_noise max_window_layers use_sliding_window sliding_window layer_types rope_theta
    rope_scaling rope_parameters
    activation_function hidden_act""".split())


def read_config(folder: str | Path) -> tuple[str, Config]:
    """What model a folder holds.

    Returns:
      (its family, a key of `hf_names.FAMILIES`; its settings, in float32).

    Raises:
      UserError: it has no config.json, or one with an architecture, a kind of rotary position, or a field that we do
        not have.
    """
    path = Path(folder) / "config.json"
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object")
    family = found.get("model_type")
    if family not in ARCHITECTURES:
        raise UserError(f"{path}: model_type is {family!r}; supported: {', '.join(ARCHITECTURES)}")
    wrong = [name for name in found.get("architectures") or () if name != ARCHITECTURES[family]]
    if wrong:
        raise UserError(f"{path}: architectures names {wrong[0]!r}; supported: {ARCHITECTURES[family]}")
    if family == "qwen3_moe" and "num_local_experts" in found:  # as transformers 5 writes it
        found["num_experts"] = found.pop("num_local_experts")
    fields = {**_ABSENT[family],
              **{name: value for name, value in found.items() if value is not None or name in _NULL_SAYS_SOMETHING}}
    names = _FIELDS.get(family, _LLAMA_FIELDS)
    _refuse_unknown(path, family, found, names)
    settings = {ours: fields.get(theirs) for ours, theirs in names.items()}
    settings |= _gpt2(path, fields) if family == "gpt2" else _llama(path, family, fields)
    try:
        return family, Config(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: not a model that can be ({error})") from error


def _refuse_unknown(path: Path, family: str, found: dict, names: Mapping[str, str]) -> None:
    for name, allowed in _ONLY[family].items():
        if found.get(name, allowed[0]) not in (*allowed, None):
            raise UserError(f"{path}: {name} is {found[name]!r}; supported: {', '.join(map(repr, allowed))}")
    for name in ("vocab_size", *(names[ours] for ours in ("layers", "width", "heads"))):
        if type(found.get(name)) is not int:
            raise UserError(f"{path}: {name} is {found.get(name)!r}, but should be a whole number")
    known = {*_SILENT, *names.values(), *_ONLY[family]}
    if family == "qwen3_moe":
        known.add("intermediate_size")  # of layers without experts, which there are none of
    for name, value in found.items():
        if name not in known and value and not name.startswith("_"):
            raise UserError(f"{path}: {name} is {_short(value)}, a field that {family} does not have here; supported: "
                            f"{', '.join(sorted(known - _SILENT))}")


def _gpt2(path: Path, fields: dict) -> dict:
    name = fields["activation_function"]
    if name not in _ACTIVATIONS:
        raise UserError(f"{path}: activation_function is {name!r}; supported: {', '.join(_ACTIVATIONS)}")
    return {"position": "learned", "norm": "layernorm", "bias": True, "activation": _ACTIVATIONS[name]}


def _llama(path: Path, family: str, fields: dict) -> dict:
    if fields["hidden_act"] != "silu":
        raise UserError(f"{path}: hidden_act is {fields['hidden_act']!r}; supported: silu")
    theta, scaling = _rope(path, fields)
    return {"position": "rotary", "norm": "rmsnorm", "activation": "swiglu", "rope_theta": theta,
            "rope_scaling": scaling, "qkv_bias": True if family == "qwen2" else None,
            "qk_norm": family in ("qwen3", "qwen3_moe"), "windows": _read_windows(path, family, fields)}


def _rope(path: Path, fields: dict) -> tuple[float, RopeScaling | LinearScaling | YarnScaling | None]:
    """Rotary positions, as config.json says it before transformers 5 (rope_theta, rope_scaling) or since."""
    field = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
    found = fields.get(field) or {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: {field} is {_short(found)}, but should be an object")
    theta = found.get("rope_theta", fields.get("rope_theta", 10_000.0))
    kind = found.get("rope_type", found.get("type", "default"))
    try:
        if kind == "default":
            return float(theta), None
        if kind == "llama3":
            return float(theta), RopeScaling(
                factor=float(found["factor"]), low=float(found["low_freq_factor"]),
                high=float(found["high_freq_factor"]), context=int(found["original_max_position_embeddings"]))
        if kind == "linear":
            return float(theta), LinearScaling(factor=float(found["factor"]))
        if kind == "yarn":
            return float(theta), _yarn(found, fields["max_position_embeddings"])
    except KeyError as error:
        raise UserError(f"{path}: {field} lacks {error.args[0]!r}, which rope_type {kind} needs") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {field} is {_short(found)} ({error})") from error
    raise UserError(f"{path}: {field}.rope_type is {kind!r}; supported: default, linear, llama3, yarn")


def _yarn(found: dict, context: int) -> YarnScaling:
    original = int(found.get("original_max_position_embeddings") or context)
    factor = float(context / original if "factor" in found and found["factor"] is None else found["factor"])
    attention = found.get("attention_factor")
    if attention is None and found.get("mscale") and found.get("mscale_all_dim"):  # DeepSeek's
        over, under = (1 + 0.1 * found[name] * math.log(factor) for name in ("mscale", "mscale_all_dim"))
        attention = over / under
    return YarnScaling(factor=factor, context=original, fast=float(found.get("beta_fast") or 32),
                       slow=float(found.get("beta_slow") or 1), whole=bool(found.get("truncate", True)),
                       attention=None if attention is None else float(attention))


def _write_rope(scaling: RopeScaling | LinearScaling | YarnScaling) -> dict:
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, YarnScaling):
        said = {} if scaling.attention is None else {"attention_factor": scaling.attention}
        said |= {} if scaling.whole else {"truncate": False}
        return {"rope_type": "yarn", "factor": scaling.factor, "original_max_position_embeddings": scaling.context,
                "beta_fast": scaling.fast, "beta_slow": scaling.slow, **said}
    return {"rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high, "original_max_position_embeddings": scaling.context}


def _read_windows(path: Path, family: str, fields: dict) -> tuple[int | None, ...]:
    layers, window = fields["num_hidden_layers"], fields.get("sliding_window")
    if family == "llama":
        return (None,)
    if family in ("mistral", "mixtral"):
        return (window,)
    if not fields.get("use_sliding_window"):
        window = None
    if family == "qwen3_moe":
        return (window,)
    kinds = fields.get("layer_types")
    if kinds is None:
        first = fields["max_window_layers"]
        each = tuple(None if i < first else window for i in range(layers))
    else:
        sees = {"full_attention": None, "sliding_attention": window}
        wrong = next((kind for kind in kinds if kind not in sees), None)
        if wrong is not None or len(kinds) != layers:
            raise UserError(f"{path}: layer_types holds {wrong!r} among {len(kinds)} layers; supported: "
                            f"full_attention and sliding_attention, {layers} of them")
        each = tuple(sees[kind] for kind in kinds)
    return each[:1] if len(set(each)) == 1 else each


# --- the other way ---------------------------------------------------------------------------------------------------

def family_of(config: Config, wanted: str | None = None) -> str:
    """The family that a model is written as: `wanted` where it can say the model, otherwise the first that can.

    Raises:
      UserError: none can; names the settings that stand in the way of the nearest.
    """
    refusals = {family: _cannot_say(config, family) for family in ARCHITECTURES}
    fitting = [family for family, refusal in refusals.items() if not refusal]
    if wanted in fitting:
        return wanted
    if not fitting:
        nearest = min(refusals, key=lambda family: len(refusals[family]))
        raise UserError(f"no family of Hugging Face's is this model; as {nearest}, {'; '.join(refusals[nearest])}")
    return fitting[0]


def _cannot_say(config: Config, family: str) -> list[str]:
    """The settings that a family does not have."""
    gpt2 = family == "gpt2"
    right = {
        "position": ("learned",) if gpt2 else ("rotary",),
        "norm": ("layernorm",) if gpt2 else ("rmsnorm",),
        "norm_scale": (True,), "embed_norm": (False,), "logit_soft_cap": (None,),
        "activation": ("gelu_tanh", "gelu") if gpt2 else ("swiglu",),
        "bias": (gpt2,),
        "qkv_bias": (None, True) if gpt2 else (True,) if family == "qwen2" else (None, False),
        "qk_norm": (family in ("qwen3", "qwen3_moe"),),
        "norm_topk": (True,) if family == "mixtral" else (True, False),
    }
    wrong = [f"{name} should be {' or '.join(map(str, values))}, but is {getattr(config, name)}"
             for name, values in right.items() if getattr(config, name) not in values]
    if (config.experts is not None) != (family in ("mixtral", "qwen3_moe")):
        wrong.append(f"experts should be {'a number' if config.experts is None else None}, but is {config.experts}")
    if gpt2 and (config.K != config.heads or config.heads * config.H != config.width):
        wrong.append("heads should have keys of their own and divide the width")
    windows = set(config.windows[:config.layers])
    sayable = {**dict.fromkeys(("mistral", "mixtral", "qwen3_moe"), len(windows) == 1),
               **dict.fromkeys(("qwen2", "qwen3"), len(windows - {None}) <= 1)}
    if not sayable.get(family, windows == {None}):
        several = "of one kind" if family in ("qwen2", "qwen3") else "the same everywhere"
        right = several if family in sayable else "None"
        wrong.append(f"windows should be {right}, but are {config.windows}")
    return wrong


def write_config(config: Config, family: str, dtype: str, tokens: Mapping[str, Any] | None = None) -> dict:
    """config.json of a model.

    Args:
      config: the model.
      family: from `family_of`.
      dtype: of its weights.
      tokens: "bos_token_id", "eos_token_id" and so on.
    """
    names = _FIELDS.get(family, _LLAMA_FIELDS)
    said = {"kv_heads": config.K, "head_dim": config.H, "mlp_width": config.F}
    fields = {theirs: said.get(ours, getattr(config, ours)) for ours, theirs in names.items()}
    if config.head_dim is None and family != "qwen3":  # theirs is 128 where it is not said
        fields.pop("head_dim", None)
    if family == "gpt2":
        fields |= {"n_inner": config.mlp_width,
                   "activation_function": {"gelu_tanh": "gelu_new", "gelu": "gelu"}[config.activation]}
    else:
        fields |= {"hidden_act": "silu", "rope_theta": config.rope_theta}
        if config.rope_scaling:
            fields["rope_scaling"] = _write_rope(config.rope_scaling)
        fields |= _write_windows(config, family)
    if family in ("llama", "qwen3", "qwen3_moe"):
        fields["attention_bias"] = False
    if family == "qwen3_moe":
        fields |= {"decoder_sparse_step": 1, "mlp_only_layers": [],
                   "intermediate_size": config.F * config.experts_per_token}
    return {"architectures": [ARCHITECTURES[family]], "model_type": family, **fields, **(tokens or {}),
            "initializer_range": config.init_std or 0.02, "torch_dtype": dtype}


def _write_windows(config: Config, family: str) -> dict:
    each = [config.windows[i % len(config.windows)] for i in range(config.layers)]
    window = next(filter(None, each), None)
    if family == "llama":
        return {}
    if family in ("mistral", "mixtral"):
        return {"sliding_window": window}
    if window is None:
        return {"use_sliding_window": False}
    if family == "qwen3_moe":
        return {"use_sliding_window": True, "sliding_window": window}
    kinds = ["full_attention" if seen is None else "sliding_attention" for seen in each]
    return {"use_sliding_window": True, "sliding_window": window, "layer_types": kinds,
            "max_window_layers": kinds.index("sliding_attention")}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
