"""A mixture of experts: which experts a token goes to, what comes back, and what keeps them equally busy.

Beside the key of `transformer.py`: E experts, k that a token chooses, C places that a row has at each expert.
Both ways to bring tokens to experts give the same where no token is turned away.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from jaxgpt.core.shapes import check
from jaxgpt.core.sharding import mesh_axes, on_shards, shard
from jaxgpt.model.layers import activate

Matrices = dict[str, jax.Array]  # "up", "gate" where there is one: [E, D, F]; "down": [E, F, D]


def route(logits: jax.Array, k: int, *, normalize: bool = True) -> tuple[jax.Array, jax.Array]:
    """The k likeliest experts of each token, and the weight of each in the token's result.

        p = softmax(logits),   w_e = p_e of the k largest, over their sum where `normalize`

    Source: Jiang et al. 2024, "Mixtral of Experts", section 2.1 (normalised); Fedus et al. 2022, "Switch Transformers",
    equations 1 and 2 (not).

    Args:
      logits: [..., E].
      k: experts of a token.
      normalize: whether the weights of a token add up to 1.

    Returns:
      (weights [..., k] in float32, experts int [..., k]), the likeliest first.

    >>> weights, experts = route(jnp.log(jnp.array([0.2, 0.5, 0.3])), 2)
    >>> experts.tolist(), [round(float(w), 3) for w in weights]
    ([1, 2], [0.625, 0.375])
    """
    weights, chosen = _top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), k)
    return (weights / jnp.sum(weights, axis=-1, keepdims=True) if normalize else weights), chosen


def balance_loss(logits: jax.Array, k: int, mask: jax.Array) -> jax.Array:
    """E Σ_e f_e P_e, with f_e the share of tokens that chose e and P_e its mean probability: k where all are even.

    Source: Fedus et al. 2022, "Switch Transformers", equations 4 to 6, here without α and for k choices, as Mixtral's.

    Args:
      logits: [..., E], of one layer.
      k: experts of a token.
      mask: [...], 1 where a token counts.

    >>> all_to_one = jnp.array([[9.0, 0.0], [9.0, 0.0]])
    >>> round(float(balance_loss(all_to_one, 1, jnp.ones(2))), 3)
    2.0
    """
    check({"... E": {"logits": logits}})
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    _, chosen = _top_k(probabilities, k)
    tokens = tuple(range(logits.ndim - 1))
    share = jnp.sum(jax.nn.one_hot(chosen, logits.shape[-1]) * mask[..., None, None], axis=(*tokens, logits.ndim - 1))
    mean = jnp.sum(probabilities * mask[..., None], axis=tokens)
    return logits.shape[-1] * jnp.sum(share * mean) / jnp.square(jnp.maximum(jnp.sum(mask), 1.0))


def router_z_loss(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over tokens of logsumexp(logits)²: keeps the router's logits small.

    Source: Zoph et al. 2022, "ST-MoE", equation 5.

    Args:
      logits: [..., E].
      mask: [...], 1 where a token counts.
    """
    z = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    return jnp.sum(jnp.square(z) * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def capacity(length: int, experts: int, k: int, factor: float) -> int:
    """C = ⌈factor · T k / E⌉, at most T: how many tokens of a row an expert takes.

    Source: Fedus et al. 2022, "Switch Transformers", equation 3, a row at a time, so that it is the same on any mesh.
    """
    return min(length, math.ceil(factor * length * k / experts))


def places(chosen: jax.Array, experts: int) -> jax.Array:
    """How many choices of the same expert come before each: int [n] from int [n]."""
    _, rank, sizes = _sorted(chosen, experts)
    return rank - (jnp.cumsum(sizes) - sizes)[chosen]


def dropped_share(logits: jax.Array, k: int, mask: jax.Array, *, places_each: int) -> jax.Array:
    """The share of choices that found no place.

    Args:
      logits: [B, T, E].
      k: experts of a token.
      mask: [B, T], 1 where a token counts.
      places_each: C.
    """
    _, chosen = _top_k(logits, k)
    place = jax.vmap(lambda row: places(row.reshape(-1), logits.shape[-1]).reshape(row.shape))(chosen)
    return jnp.sum((place >= places_each) * mask[..., None]) / (k * jnp.maximum(jnp.sum(mask), 1.0))


# --- every token to all that it chose --------------------------------------------------------------------------------

def dropless(x: jax.Array, weights: jax.Array, chosen: jax.Array, matrices: Matrices, *, activation: str) -> jax.Array:
    """y_t = Σ_j w_tj · mlp_{e_tj}(x_t), however many tokens an expert then has.

    Tokens are sorted by expert, and each matrix multiplies the stretch that is its own. Where experts lie on several
    devices, each device sees the tokens of all that share its experts' axis, serves those that chose its own, and the
    results are added up where the tokens came from: exact, with shapes that do not depend on the choices.

    Source: Gale et al. 2022, "MegaBlocks", section 4, with the ragged product that XLA has.

    Args:
      x: [B, T, D].
      weights, chosen: [B, T, k], from `route`.
      matrices: of the experts.
      activation: as `layers.activate` names it.

    Returns:
      [B, T, D].
    """
    check({"B T D": {"x": x}, "B T k": {"weights": weights, "chosen": chosen}})
    names, (E, _, F) = tuple(matrices), matrices["up"].shape
    over, parts = mesh_axes("expert", E), mesh_axes("mlp", F)
    exchanged = bool(over) and set(over) <= set(mesh_axes("batch", len(x)))

    def own(x, weights, chosen, *arrays):
        shape, own_matrices = x.shape, dict(zip(names, arrays))
        x, weights, chosen = (a.reshape(-1, a.shape[-1]) for a in (x, weights, chosen))
        if exchanged:
            x, weights, chosen = (jax.lax.all_gather(a, over, tiled=True) for a in (x, weights, chosen))
        if over:
            chosen = chosen - jax.lax.axis_index(over) * len(arrays[0])
        y = ragged_experts(x, weights, chosen, own_matrices, activation=activation)
        y = jax.lax.psum(y, parts) if parts else y
        if over:
            y = jax.lax.psum_scatter(y, over, tiled=True) if exchanged else jax.lax.psum(y, over)
        return y.reshape(shape)

    rows = ("batch", "seq", None)
    laid_out = {"up": ("expert", None, "mlp"), "gate": ("expert", None, "mlp"), "down": ("expert", "mlp", None)}
    return on_shards(own, rows, rows, rows, *(laid_out[name] for name in names))(x, weights, chosen, *matrices.values())


def ragged_experts(x: jax.Array, weights: jax.Array, chosen: jax.Array, matrices: Matrices, *,
                   activation: str) -> jax.Array:
    """`dropless` on one device, for the experts 0..E-1 that it has; choices of others add nothing.

    Args:
      x: [n, D].
      weights, chosen: [n, k].
      matrices: of the experts that are here.
    """
    (n, k), E = chosen.shape, len(matrices["up"])
    rows = n * min(k, E)  # no more can be for us: a token's choices are all different
    flat = chosen.reshape(-1)
    order, rank, sizes = _sorted(jnp.where((flat >= 0) & (flat < E), flat, E), E)
    ours = (jnp.arange(rows) < jnp.sum(sizes))[:, None]
    # copies first and then a gather of unique rows: its gradient adds up k copies in a fixed order
    copies = jnp.broadcast_to(x[:, None], (n, k, x.shape[-1])).reshape(n * k, -1)
    sorted_x = jnp.where(ours, copies.at[order[:rows]].get(unique_indices=True), 0)
    ragged = functools.partial(jax.lax.ragged_dot, group_sizes=sizes)
    gate = ragged(sorted_x, matrices["gate"]) if "gate" in matrices else None
    y = ragged(activate(activation, ragged(sorted_x, matrices["up"]), gate), matrices["down"])
    y = jnp.where(ours, y, 0).at[rank].get(mode="fill", fill_value=0, unique_indices=True)
    return jnp.sum(weights[..., None] * y.reshape(n, k, -1), axis=1).astype(x.dtype)


def _top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Of [B, T, E], by each device of its own tokens: left to itself, the compiler would gather those of all."""
    top = functools.partial(jax.lax.top_k, k=k)
    return on_shards(top, ("batch", "seq", None))(x) if x.ndim == 3 else top(x)


def _sorted(chosen: jax.Array, experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(order that sorts choices by expert, earlier ones first; where each then stands; how many each expert has)."""
    order = jnp.argsort(chosen, stable=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)), unique_indices=True)
    return order, rank, jnp.sum(chosen[:, None] == jnp.arange(experts), axis=0, dtype=jnp.int32)


# --- so many places, and no more -------------------------------------------------------------------------------------

def capacity_bound(x: jax.Array, weights: jax.Array, chosen: jax.Array, matrices: Matrices, *, places_each: int,
                   activation: str) -> jax.Array:
    """`dropless`, but an expert takes the first C tokens of a row that choose it; the others pass by on the residual.

    Places go in the order of positions, so that no token depends on later ones. Rows stay on their devices until
    their tokens are in place; they then go to the devices of the experts, and come back.

    Source: Lepikhin et al. 2020, "GShard", section 3.2, with a row for a group and a scatter for the product with a
    mask.

    Args:
      x: [B, T, D].
      weights, chosen: [B, T, k], from `route`.
      matrices: of the experts.
      places_each: C, from `capacity`.
      activation: as `layers.activate` names it.

    Returns:
      [B, T, D].
    """
    (B, T, D), k, E, C = x.shape, chosen.shape[-1], len(matrices["up"]), places_each
    flat = chosen.reshape(B, T * k)
    place = jax.vmap(functools.partial(places, experts=E))(flat)
    nowhere = E * C + jnp.arange(T * k)  # beyond the end, each at its own
    where = jnp.where(place < C, flat * C + place, nowhere)

    def scatter(x, where):
        copies = jnp.broadcast_to(x[:, None], (T, k, D)).reshape(T * k, D)
        return jnp.zeros((E * C, D), x.dtype).at[where].set(copies, mode="drop", unique_indices=True)

    at_experts = shard(jax.vmap(scatter)(x, where).reshape(B, E, C, D), "batch", None, None, None)
    at_experts = shard(at_experts.swapaxes(0, 1), "expert", "batch", None, None)
    each = lambda name, y: jnp.einsum("EBCX,EXY->EBCY", y, matrices[name])  # noqa: E731
    h = activate(activation, each("up", at_experts), each("gate", at_experts) if "gate" in matrices else None)
    y = shard(each("down", shard(h, "expert", "batch", None, "mlp")), "expert", "batch", None, None)
    y = shard(y.swapaxes(0, 1), "batch", None, None, None).reshape(B, E * C, D)
    y = jax.vmap(lambda y, where: y.at[where].get(mode="fill", fill_value=0, unique_indices=True))(y, where)
    return jnp.sum(weights[..., None] * y.reshape(B, T, k, D), axis=2).astype(x.dtype)
