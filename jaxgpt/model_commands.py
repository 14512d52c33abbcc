"""The commands about models from elsewhere: `jaxgpt import | export | info`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jaxgpt.core.errors import UserError


def add(commands, prepare: Callable[[], None]) -> None:
    """Adds the commands to a parser's; `prepare` is called before JAX is."""
    dtypes = ("float32", "bfloat16", "float16")
    bring = commands.add_parser("import", help="read a Hugging Face folder into a workdir", description=(
        "Reads a model (GPT-2, Llama, Qwen, Mistral) with its tokenizer; sample, export and later stages then find it "
        "in the workdir."))
    bring.add_argument("source", metavar="DIR|HF_ID", help="a folder with config.json, safetensors and tokenizer.json, "
                       "or the name of one on huggingface.co")
    bring.add_argument("--to", metavar="WORKDIR", required=True, help="where it goes")
    bring.add_argument("--dtype", choices=dtypes, help="of the parameters (default: what the files have)")
    bring.add_argument("--compute", choices=dtypes[:2], default="float32",
                       help="of activations and products (default: float32)")
    bring.add_argument("--turns", action="store_true", help="give a base model without a chat template our tokens for turns, "
                       "for finetuning")
    bring.set_defaults(command=lambda arguments: (prepare(), _import(arguments))[1])

    send = commands.add_parser("export", help="write a model as a Hugging Face folder, or for llama2.c")
    send.add_argument("workdir", metavar="WORKDIR", help="of a run or an import")
    send.add_argument("--to", metavar="DIR", required=True, help="a new folder")
    send.add_argument("--stage", metavar="NAME", help="whose model (default: the last that is complete)")
    send.add_argument("--format", choices=("huggingface", "llama2.c"), default="huggingface",
                      help="llama2.c: model.bin and tokenizer.bin for its run (default: huggingface)")
    send.add_argument("--dtype", choices=dtypes, help="of the weights (default: that of the parameters; llama2.c's are "
                      "float32)")
    send.set_defaults(command=lambda arguments: (prepare(), _export(arguments))[1])

    info = commands.add_parser("info", help="a model's parameters, FLOPs, KV cache and memory")
    info.add_argument("what", metavar="EXPERIMENT|FOLDER",
                      help="an experiment file, a workdir, or a Hugging Face folder")
    info.add_argument("--stage", metavar="NAME", help="whose model (default: an experiment's first, a workdir's last)")
    info.add_argument("--length", metavar="T", type=int, help="positions that are counted (default: the context)")
    info.set_defaults(command=lambda arguments: (prepare(), _info(arguments))[1])


def _import(arguments) -> int:
    from jaxgpt.core import experiment
    from jaxgpt.pretrain.imported import download, import_experiment
    folder = arguments.source
    if not Path(folder).exists() and folder.count("/") == 1 and not folder.startswith((".", "~", "/")):
        folder = download(folder)
    experiment.run(import_experiment(folder, arguments.dtype, arguments.compute, arguments.turns), arguments.to)
    print(f"try it: jaxgpt sample {arguments.to} --prompt 'Once upon a time'")
    return 0


def _export(arguments) -> int:
    from jaxgpt.pretrain.imported import export, export_llama2c
    if arguments.format == "llama2.c":
        if arguments.dtype not in (None, "float32"):
            raise UserError(f"--dtype {arguments.dtype}: llama2.c's weights are float32")
        export_llama2c(arguments.workdir, arguments.to, stage=arguments.stage)
        print(f"try it: ./run {arguments.to}/model.bin -z {arguments.to}/tokenizer.bin -i 'Once upon a time'")
        return 0
    family = export(arguments.workdir, arguments.to, stage=arguments.stage, dtype=arguments.dtype)
    print(f"written to {arguments.to}, as a {family}")
    return 0


def _info(arguments) -> int:
    from jaxgpt.plan.info import describe
    if arguments.length is not None and arguments.length < 1:
        raise UserError(f"--length {arguments.length}: at least 1")
    config = _config(Path(arguments.what), arguments.stage)
    print("\n".join(describe(config, length=arguments.length)))
    return 0


def _config(path: Path, stage: str | None):
    """The model of an experiment file, a Hugging Face folder or a workdir."""
    if path.is_dir() and (path / "config.json").exists():
        from jaxgpt.model.hf_config import read_config
        return read_config(path)[1]
    if path.is_dir():
        from jaxgpt.inference.load import find
        return find(path, stage)[1]
    from jaxgpt.core.config import load
    from jaxgpt.model.transformer import Config
    chosen = load(path)
    models = {one.name: one.model for one in getattr(chosen, "stages", ())
              if isinstance(getattr(one, "model", None), Config)}
    if not models or (stage and stage not in models):
        raise UserError(f"{path}: {f'stage {stage!r}' if stage else 'no stage'} says what a model is; stages that do: "
                        f"{', '.join(models) or 'none'}")
    return models[stage or next(iter(models))]
