"""What the forward pass of a layer keeps for the backward pass: policies of rematerialisation by name.

Named in a layer are "qkv" (queries, keys and values, after rotary), "attention" (the kernel's result with its
log-sum-exp, without which the kernel would run again), "attention_out" (after the projection) and "mlp_up" (the products
before the activation). The result of the mlp has no name: the backward pass does not read it.

Kept of a layer, in elements a token beside its input D (key in `transformer.py`; F twice where there is a gate):

    none     everything, the weights of an "xla" attention [N, T] included
    dots     (N + 2K) H + N H + D + F, before rotary
    names    (N + 2K) H + N H + D; the mlp is computed again
    offload  the same, in the host's memory
    full     nothing
"""

from __future__ import annotations

import jax

ATTENTION = ("qkv", "attention", "attention_out")


def policy(name: str):
    """The policy of `jax.checkpoint` called "full", "names", "offload" or "dots"."""
    policies = jax.checkpoint_policies
    if name == "full":
        return policies.nothing_saveable
    if name == "names":
        return policies.save_only_these_names(*ATTENTION)
    if name == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=list(ATTENTION), offload_src="device",
            offload_dst="pinned_host")
    return policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable,
                                            policies.save_only_these_names("attention"))
