"""A training step beside its peers on PyTorch, in turns on the same machine: time, ratio, and on an accelerator MFU.

  git clone https://github.com/karpathy/nanoGPT
  python tests/benchmarks/train_step.py --nanogpt nanoGPT --size small
  python tests/benchmarks/train_step.py --nanogpt nanoGPT --size 124m
  python tests/benchmarks/train_step.py --nanogpt nanoGPT --size 124m --rows 32 --length 1024 --dtype bfloat16
  python tests/benchmarks/train_step.py --transformers --size 1b --rows 8 --length 2048 --dtype bfloat16

Beside nanoGPT both sides do the same mathematics, and the losses in the table show it: the peer starts from our
parameters, sees the same batch, both use AdamW (decay on matrices only) on gradients clipped to norm 1, and our GELU is
the exact one. The Llama of transformers has the same shape and weights of its own. nanoChat's model has parts that ours
lacks (value embeddings, a smear), so only its shape is the same. On an accelerator PyTorch compiles its model and picks
its flash attention. MFU counts causal FLOPs, against the data sheet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from side_by_side import Worker, folder, header, in_turns, need, parser, probe, ratio, serve, table

RATE, BETAS, DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0
SIZES = {"small": (12, 64), "124m": (4, 64), "1b": (1, 64), "smoke": (2, 8)}  # rows, length
ROUNDS = {"small": (25, 20), "124m": (20, 1), "1b": (5, 1), "smoke": (2, 2)}  # on a CPU: rounds, steps in each


def config_of(size: str, length: int, dtype: str, peer: str, no_bias: bool = False):
    """Our model of that size."""
    from jaxgpt.model import presets, transformer
    if size == "1b":
        config = presets.llama3("1B", context=max(length, 2048))
    elif size == "124m":
        config = dataclasses.replace(presets.gpt2("124M", vocab_size=50304), activation="gelu")
    else:
        layers, width = (4, 128) if size == "small" else (2, 32)
        config = transformer.Config(vocab_size=65, context=length, layers=layers, width=width, heads=4,
                                    position="learned", norm="layernorm", norm_eps=1e-5, activation="gelu", tied=True)
    if no_bias:
        config = dataclasses.replace(config, bias=False)
    if peer == "nanochat":
        config = dataclasses.replace(config, vocab_size=-(-config.vocab_size // 64) * 64, position="rotary",
                                     norm="rmsnorm", norm_scale=False, activation="relu2", qk_norm=True, bias=False,
                                     embed_norm=True, tied=False, logit_soft_cap=15.0)
    return dataclasses.replace(config, dtype=dtype)


def batch_of(rows: int, length: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(0).integers(0, vocabulary, (rows, length + 1), np.int32)
    return tokens[:, :-1], tokens[:, 1:]


# --- the sides: steps(count) -> loss of the last ---------------------------------------------------------------------

class Ours:
    """The step of a `Pretrain` stage, as `jaxgpt run` makes it."""

    def __init__(self, job: dict):
        import jax
        from jaxgpt.core import sharding
        from jaxgpt.core.experiment import Context, Experiment
        from jaxgpt.core.memory import keep_freed_memory
        from jaxgpt.core.optim import Optim
        from jaxgpt.model import presets
        from jaxgpt.pretrain.programs import Pretrain
        keep_freed_memory()
        config = config_of(job["size"], job["length"], job["dtype"], job["peer"], job["no_bias"])
        place = {"cpu": presets.on_cpu, "gpu": presets.on_gpu, "tpu": presets.on_tpu}[jax.default_backend()]
        config = dataclasses.replace(place(config), dtype=config.dtype)
        for name in ("remat", "loss_chunk", "kernels", "activation"):
            if job[name]:
                config = dataclasses.replace(config, **{name: job[name]})
        optim = Optim(lr=RATE, schedule="constant", beta1=BETAS[0], beta2=BETAS[1], weight_decay=DECAY, clip_norm=CLIP)
        tokens = job["rows"] * job["length"]
        stage = Pretrain(model=config, optim=optim, tokens=1000 * tokens, batch=job["rows"], length=job["length"],
                         data="pretrain_data")
        context = Context(Experiment("train_step", ()), stage, Path(job["folder"]))
        self.config, self.trainable = config, stage.trainable(context)
        self.state = self.trainable.create(jax.random.key(0))
        x, y = batch_of(job["rows"], job["length"], config.vocab_size)
        batch = {"tokens": x, "targets": y, "loss_mask": np.ones(x.shape, np.float32)}
        self.batch = sharding.put(batch, sharding.batch_sharding(context.mesh, context.rules))

    def save(self, path: str) -> None:
        """Writes the parameters for the peer to start from: {"layers.attention.q.weight": array}."""
        import jax
        named = jax.tree.leaves_with_path(self.state.params)
        np.savez(path, **{".".join(key.key for key in keys): np.asarray(leaf) for keys, leaf in named})

    def flops(self, tokens: int, length: int) -> list:
        """FLOPs of a step, and the peak FLOP/s of the devices."""
        from jaxgpt.core.metrics import peak_flops
        from jaxgpt.model.transformer import flops_per_token
        return [flops_per_token(self.config, length) * tokens, peak_flops()]

    def steps(self, count: int) -> float:
        for _ in range(count):
            self.state, metrics = self.trainable.step(self.state, (), self.batch)
        return float(metrics["loss"])

    def by_kernel(self) -> None:
        from by_kernel import print_kernels

        def three() -> int:
            self.steps(3)
            return 3

        print_kernels(three)


class OnPyTorch:
    """A peer's model under the same step; `dtype` is of autocast, parameters are float32."""

    def __init__(self, job: dict):
        import torch
        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_float32_matmul_precision("highest" if job["dtype"] == "float32" else "high")
        model, self.loss = {"nanogpt": nanogpt, "nanochat": nanochat, "transformers": llama}[job["peer"]](job)
        model = model.to(self.device).train()
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        rest = [p for p in model.parameters() if p.dim() < 2]
        self.optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": DECAY},
                                            {"params": rest, "weight_decay": 0.0}], lr=RATE, betas=BETAS, eps=1e-8,
                                           **({"fused": True} if self.device == "cuda" else {}))
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.model = torch.compile(model) if job["compile"] else model
        self.bfloat16 = job["dtype"] == "bfloat16" and job["peer"] != "nanochat"  # which casts by itself
        vocabulary = config_of(job["size"], job["length"], "float32", job["peer"]).vocab_size
        x, y = batch_of(job["rows"], job["length"], vocabulary)
        self.batch = [torch.from_numpy(a.astype(np.int64)).to(self.device) for a in (x, y)]

    def steps(self, count: int) -> float:
        torch = self.torch
        for _ in range(count):
            cast = torch.autocast(self.device, torch.bfloat16) if self.bfloat16 else contextlib.nullcontext()
            with cast:
                loss = self.loss(self.model, *self.batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def nanogpt(job: dict):
    """nanoGPT's own model with our parameters."""
    import torch
    sys.path.insert(0, job["source"])
    from model import GPT, GPTConfig
    config = config_of(job["size"], job["length"], "float32", "nanogpt", job["no_bias"])
    model = GPT(GPTConfig(block_size=config.context, vocab_size=config.vocab_size, n_layer=config.layers,
                          n_head=config.heads, n_embd=config.width, dropout=0.0, bias=config.bias))
    with np.load(job["params"]) as ours, torch.no_grad():
        copy = lambda to, array: to.copy_(torch.from_numpy(array))  # noqa: E731
        copy(model.transformer.wte.weight, ours["embed"])
        copy(model.transformer.wpe.weight, ours["positions"])
        kinds = ("weight", "bias") if config.bias else ("weight",)
        copy(model.transformer.ln_f.weight, ours["final_norm.scale"])
        layers = {name: ours[name] for name in ours.files if name.startswith("layers.")}
        for i, block in enumerate(model.transformer.h):
            of = lambda name: layers[f"layers.{name}"][i]  # noqa: E731
            copy(block.ln_1.weight, of("attention_norm.scale"))
            copy(block.ln_2.weight, of("mlp_norm.scale"))
            for kind in kinds:
                copy(getattr(block.attn.c_attn, kind),
                     np.concatenate([of(f"attention.{name}.{kind}") for name in "qkv"], axis=-1).T)
                for module, name in ((block.attn.c_proj, "attention.o"), (block.mlp.c_fc, "mlp.up"),
                                     (block.mlp.c_proj, "mlp.down")):
                    copy(getattr(module, kind), of(f"{name}.{kind}").T)
    return model, lambda model, x, y: model(x, y)[1]


def nanochat(job: dict):
    """nanoChat's own model, of the same shape; every layer looks at all."""
    import torch
    sys.path.insert(0, job["source"])
    os.environ["NANOCHAT_DTYPE"] = job["dtype"]
    from nanochat.gpt import GPT, GPTConfig
    config = config_of(job["size"], job["length"], "float32", "nanochat")
    with torch.device("meta"):
        model = GPT(GPTConfig(sequence_len=config.context, vocab_size=config.vocab_size, n_layer=config.layers,
                              n_head=config.heads, n_kv_head=config.K, n_embd=config.width, window_pattern="L"))
    model.to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
    model.init_weights()
    return model, lambda model, x, y: model(x, y)


def llama(job: dict):
    """The Llama of the package transformers, of the same shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    config = config_of(job["size"], job["length"], "float32", "transformers")
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.width, intermediate_size=config.F,
        rms_norm_eps=config.norm_eps, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, num_key_value_heads=config.K,
        max_position_embeddings=config.context, rope_theta=config.rope_theta, tie_word_embeddings=True,
        attn_implementation="sdpa", use_cache=False))

    def loss(model, x, y):
        logits = model(x).logits.float()
        return torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), y.reshape(-1))
    return model, loss


# --- the comparison --------------------------------------------------------------------------------------------------

def measure(job: dict, sides: list[tuple[str, str, str]], rounds: int, block: int) -> None:
    """One table: ours first. `sides`: (name, peer or "ours", dtype)."""
    workers, losses = [], {}
    for name, peer, dtype in sides:
        print(f"starting {name}", file=sys.stderr)
        side = dict(job, dtype=dtype, peer=job["peer"] if peer == "ours" else peer, ours=peer == "ours")
        workers.append(Worker(name, __file__, json.dumps(side)))
        if len(workers) == 1:
            workers[0]("save", job["params"])
        losses[name] = [workers[-1]("steps", 1)["value"], workers[-1]("steps", 4)["value"]]
    seconds = {name: [s / block for s in values] for name, values in in_turns(workers, rounds, "steps", block).items()}
    if job["by_kernel"]:
        workers[0]("by_kernel")
    flops, peak = workers[0]("flops", job["rows"] * job["length"], job["length"])["value"]
    for worker in workers:
        worker.close()
    ours = seconds[sides[0][0]]
    rows = []
    for name, values in seconds.items():
        median = statistics.median(values)
        rows.append([name, f"{median * 1e3:.1f}", f"{min(values) * 1e3:.1f}",
                     f"{job['rows'] * job['length'] / median:,.0f}",
                     f"{flops / median / peak:.1%}" if peak else f"{flops / median / 1e9:,.0f} GFLOP/s",
                     f"{ratio(ours, values):.2f}", ", ".join(f"{loss:.4f}" for loss in losses[name])])
    print(f"\n{rounds} rounds of {block} steps in turn, {job['size']}, {job['rows']} x {job['length']} tokens\n")
    print(table(["", "median ms", "least ms", "tokens/s", "MFU" if peak else "speed", "ours / this, median of pairs",
                 "loss of steps 1 and 5"], rows))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--nanogpt", metavar="DIR", help="folder of nanoGPT")
    arguments.add_argument("--nanochat", metavar="DIR", help="folder of nanoChat")
    arguments.add_argument("--transformers", action="store_true", help="peer: the Llama of transformers (size 1b)")
    arguments.add_argument("--size", choices=("small", "124m", "1b"), default="small")
    arguments.add_argument("--rows", type=int, help="B")
    arguments.add_argument("--length", type=int, help="T")
    arguments.add_argument("--dtype", nargs="*", choices=("float32", "bfloat16"), help="ours; the first is compared")
    arguments.add_argument("--peer-dtype", nargs="*", choices=("float32", "bfloat16"), help="the peers'")
    arguments.add_argument("--rounds", type=int, help="blocks of each side")
    arguments.add_argument("--block", type=int, help="steps in a block")
    arguments.add_argument("--remat", choices=("none", "full", "dots", "names"), help="ours, on an accelerator")
    arguments.add_argument("--loss-chunk", type=int, help="ours: positions whose logits are in memory at once")
    arguments.add_argument("--kernels", choices=("auto", "xla"), help="ours: of norms, GELU and the loss, on a GPU")
    arguments.add_argument("--activation", choices=("gelu", "gelu_tanh"), help="ours, instead of the peer's")
    arguments.add_argument("--no-bias", action="store_true", help="neither side has biases, as nanoGPT trains by default")
    arguments.add_argument("--by-kernel", action="store_true", help="also what a step of ours spends in each kernel of a GPU")
    arguments.add_argument("--compile", action="store_true", help="torch.compile on a CPU too")
    given = arguments.parse_args()

    size = "smoke" if given.smoke else given.size
    sources = {"nanogpt": given.nanogpt and folder(given.nanogpt, "model.py", "--nanogpt"),
               "nanochat": given.nanochat and folder(given.nanochat, "nanochat/gpt.py", "--nanochat"),
               "transformers": "transformers" if given.transformers else None}
    peers = [peer for peer, source in sources.items() if source]
    packages = (["torch"] if peers else []) + (["transformers"] if given.transformers else [])
    for package in packages:
        need(package, "a peer")
    if (size == "1b") != bool(given.transformers) and peers:
        raise SystemExit("--size 1b is compared with --transformers, the other sizes with --nanogpt or --nanochat")

    backend, machine = probe()
    accelerator = backend != "cpu"
    print(header("train_step", machine, *packages), flush=True)
    rows, length = given.rows or SIZES[size][0], given.length or SIZES[size][1]
    rounds, block = (10, 5) if accelerator else ROUNDS[size]
    dtypes = given.dtype or (["bfloat16"] if accelerator else ["float32"])
    peer_dtypes = given.peer_dtype or (["bfloat16"] if accelerator else ["float32", "bfloat16"])
    for peer in peers or ["none"]:
        with tempfile.TemporaryDirectory() as temporary:
            job = {"size": size, "rows": rows, "length": length, "peer": peer, "source": sources.get(peer),
                   "folder": temporary, "params": os.path.join(temporary, "params.npz"), "remat": given.remat,
                   **{name: getattr(given, name) for name in ("loss_chunk", "kernels", "activation", "no_bias", "by_kernel")},
                   "compile": accelerator or given.compile}
            sides = [(f"jaxgpt {dtype}", "ours", dtype) for dtype in dtypes]
            sides += [(f"{peer} {dtype}", peer, dtype) for dtype in peer_dtypes if peer != "none"]
            measure(job, sides, given.rounds or rounds, given.block or block)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        job = json.loads(sys.argv[2])
        serve(Ours if job["ours"] else OnPyTorch, job)
    else:
        main()
