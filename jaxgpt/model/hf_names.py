"""Where each parameter of ours lies in a Hugging Face folder: one table a family.

Our layers are stacked, so that "layers/attention/q/weight" is one array [L, D, N·H]; theirs has a tensor a layer, and
`#` stands for its number. So are the experts of a layer, [L, E, D, F] here; `@` stands for the number of one. Most of
their matrices are [out, in] and ours [in, out]: those are turned. GPT-2's are [in, out] as ours, and hold queries, keys
and values side by side: there, a parameter is one of three parts of a tensor.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a parameter lies.

    Attributes:
      tensor: its name in the folder, with `#` for the number of the layer and `@` for that of the expert.
      turned: whether it is [out, in] there, and [in, out] here.
      part, parts: which of how many equal parts of the tensor's last dimension it is.
    """

    tensor: str
    turned: bool = False
    part: int = 0
    parts: int = 1

    def name(self, *numbers: int) -> str:
        """The tensor's name with the numbers of layer and expert in it, as many as it takes."""
        found = self.tensor
        for mark, number in zip("#@", numbers):
            found = found.replace(mark, str(number))
        return found


def turned(tensor: str) -> Place:
    """A matrix that is [out, in] there."""
    return Place(tensor, turned=True)


def third(part: int, tensor: str) -> Place:
    """One of the three parts of a tensor: queries, keys, values."""
    return Place(tensor, part=part, parts=3)


GPT2 = {
    "embed":                         Place("transformer.wte.weight"),                   # [V, D]; also the head
    "positions":                     Place("transformer.wpe.weight"),                   # [T, D]
    "layers/attention_norm/scale":   Place("transformer.h.#.ln_1.weight"),
    "layers/attention_norm/bias":    Place("transformer.h.#.ln_1.bias"),
    "layers/attention/q/weight":     third(0, "transformer.h.#.attn.c_attn.weight"),    # [D, 3 D]
    "layers/attention/k/weight":     third(1, "transformer.h.#.attn.c_attn.weight"),
    "layers/attention/v/weight":     third(2, "transformer.h.#.attn.c_attn.weight"),
    "layers/attention/q/bias":       third(0, "transformer.h.#.attn.c_attn.bias"),
    "layers/attention/k/bias":       third(1, "transformer.h.#.attn.c_attn.bias"),
    "layers/attention/v/bias":       third(2, "transformer.h.#.attn.c_attn.bias"),
    "layers/attention/o/weight":     Place("transformer.h.#.attn.c_proj.weight"),
    "layers/attention/o/bias":       Place("transformer.h.#.attn.c_proj.bias"),
    "layers/mlp_norm/scale":         Place("transformer.h.#.ln_2.weight"),
    "layers/mlp_norm/bias":          Place("transformer.h.#.ln_2.bias"),
    "layers/mlp/up/weight":          Place("transformer.h.#.mlp.c_fc.weight"),          # [D, F]
    "layers/mlp/up/bias":            Place("transformer.h.#.mlp.c_fc.bias"),
    "layers/mlp/down/weight":        Place("transformer.h.#.mlp.c_proj.weight"),        # [F, D]
    "layers/mlp/down/bias":          Place("transformer.h.#.mlp.c_proj.bias"),
    "final_norm/scale":              Place("transformer.ln_f.weight"),
    "final_norm/bias":               Place("transformer.ln_f.bias"),
    "head":                          turned("lm_head.weight"),                          # where it is not the embedding
}

LLAMA = {
    "embed":                         Place("model.embed_tokens.weight"),                # [V, D]
    "layers/attention_norm/scale":   Place("model.layers.#.input_layernorm.weight"),
    "layers/attention/q/weight":     turned("model.layers.#.self_attn.q_proj.weight"),  # [N H, D]
    "layers/attention/k/weight":     turned("model.layers.#.self_attn.k_proj.weight"),  # [K H, D]
    "layers/attention/v/weight":     turned("model.layers.#.self_attn.v_proj.weight"),
    "layers/attention/o/weight":     turned("model.layers.#.self_attn.o_proj.weight"),  # [D, N H]
    "layers/mlp_norm/scale":         Place("model.layers.#.post_attention_layernorm.weight"),
    "layers/mlp/gate/weight":        turned("model.layers.#.mlp.gate_proj.weight"),     # [F, D]
    "layers/mlp/up/weight":          turned("model.layers.#.mlp.up_proj.weight"),
    "layers/mlp/down/weight":        turned("model.layers.#.mlp.down_proj.weight"),     # [D, F]
    "final_norm/scale":              Place("model.norm.weight"),
    "head":                          turned("lm_head.weight"),                          # [V, D]
}

MISTRAL = LLAMA

QWEN2 = {
    **LLAMA,
    "layers/attention/q/bias":       Place("model.layers.#.self_attn.q_proj.bias"),
    "layers/attention/k/bias":       Place("model.layers.#.self_attn.k_proj.bias"),
    "layers/attention/v/bias":       Place("model.layers.#.self_attn.v_proj.bias"),
}

QWEN3 = {
    **LLAMA,
    "layers/attention/q_norm":       Place("model.layers.#.self_attn.q_norm.weight"),   # [H]
    "layers/attention/k_norm":       Place("model.layers.#.self_attn.k_norm.weight"),
}

MIXTRAL = {
    **LLAMA,
    "layers/mlp/router/weight":      turned("model.layers.#.block_sparse_moe.gate.weight"),          # [E, D]
    "layers/mlp/gate/weight":        turned("model.layers.#.block_sparse_moe.experts.@.w1.weight"),  # [F, D]
    "layers/mlp/up/weight":          turned("model.layers.#.block_sparse_moe.experts.@.w3.weight"),
    "layers/mlp/down/weight":        turned("model.layers.#.block_sparse_moe.experts.@.w2.weight"),  # [D, F]
}

QWEN3_MOE = {
    **QWEN3,
    "layers/mlp/router/weight":      turned("model.layers.#.mlp.gate.weight"),                       # [E, D]
    "layers/mlp/gate/weight":        turned("model.layers.#.mlp.experts.@.gate_proj.weight"),        # [F, D]
    "layers/mlp/up/weight":          turned("model.layers.#.mlp.experts.@.up_proj.weight"),
    "layers/mlp/down/weight":        turned("model.layers.#.mlp.experts.@.down_proj.weight"),        # [D, F]
}

FAMILIES = {"gpt2": GPT2, "llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3, "mixtral": MIXTRAL,
            "qwen3_moe": QWEN3_MOE}

# Tensors that some folders hold and no model needs: masks and constants, and the head of a model whose head is the
# embedding.
IGNORED = (r"\.attn\.(masked_)?bias$", r"\.rotary_emb\.inv_freq$")


def path_name(path) -> str:
    """The name of a parameter: the keys of its path in the tree, joined by "/"."""
    return "/".join(str(key.key) for key in path)
