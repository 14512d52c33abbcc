"""Small models of every family and feature, as transformers makes them: shared by the tests that compare with it."""

from __future__ import annotations

import warnings

import pytest

SHAPE = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 160, "bos_token_id": 1, "eos_token_id": 2}
ROPE = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 40, "beta_fast": 4.0,
        "beta_slow": 1.0}
FAMILIES = {
    "gpt2": ("GPT2", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 160, "bos_token_id": 1,
                      "eos_token_id": 2}),
    "llama2": ("Llama", {**SHAPE, "num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "llama3": ("Llama", {**SHAPE, "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}),
    "llama3_2": ("Llama", {**SHAPE, "rope_parameters": ROPE, "tie_word_embeddings": True}),
    "llama_linear": ("Llama", {**SHAPE, "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}}),
    "llama_yarn": ("Llama", {**SHAPE, "rope_parameters": YARN}),
    "mistral": ("Mistral", {**SHAPE, "sliding_window": 8}),
    "qwen2": ("Qwen2", SHAPE),
    "qwen2_windows": ("Qwen2", {**SHAPE, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {**SHAPE, "head_dim": 16, "tie_word_embeddings": True}),
    "mixtral": ("Mixtral", {**SHAPE, "num_local_experts": 4}),
    "qwen3_moe": ("Qwen3Moe", {**SHAPE, "head_dim": 16, "num_experts": 5, "num_experts_per_tok": 3, "norm_topk_prob": False,
                               "moe_intermediate_size": 32}),
}


def make(name: str):
    """A model of transformers with random weights, large enough that every part of it shows in the logits."""
    torch = pytest.importorskip("torch", reason="the reference implementation runs on PyTorch")
    transformers = pytest.importorskip("transformers", reason="the reference implementation")
    torch.set_num_threads(1)
    kind, settings = FAMILIES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, f"{kind}Config")(**settings)
        model = getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            draw = torch.randn(weight.shape, generator=generator)
            size = 1.0 if "wpe" in key else 0.25  # or GPT-2 repeats itself
            scale = key.endswith("weight") and ("norm" in key or ".ln_" in key)
            weight.copy_(1 + 0.3 * draw if scale else size * draw)
    return model.eval()
