"""The command line: `jaxgpt run | curate | plan | chat | serve | sample | tokenize`, and those of `model_commands.py`.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import shlex
import sys
from pathlib import Path

import jaxgpt
from jaxgpt import model_commands
from jaxgpt.core.errors import UserError

STATUS = ("The exit status is 0 when all is done and after a clean stop by SIGTERM (a preemption), 130 after Ctrl-C, 2 "
          "after a mistake that you can mend.")


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 done (or stopped cleanly by SIGTERM), 1 a plan that does not fit,
    2 a mistake that the user can mend, 130 stopped by Ctrl-C, cleanly or not."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    arguments.words = sys.argv[1:] if argv is None else argv
    try:
        return arguments.command(arguments) or 0
    except UserError as error:
        print(f"jaxgpt: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxgpt", description="The whole of 'Deep Dive into LLMs like ChatGPT' in JAX: from documents to a model "
        "you can talk to.", epilog="Start with: jaxgpt run experiments/quickstart.py")
    parser.add_argument("--version", action="version", version=f"jaxgpt {jaxgpt.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run an experiment's stages; the same command resumes", description=(
        "Runs the stages of an experiment that are not yet complete in the workdir. Stopped by Ctrl-C, SIGTERM or a "
        "crash, the same command goes on where it was. " + STATUS))
    run.add_argument("experiment", metavar="FILE", help="a Python file that defines get_config()")
    run.add_argument("--workdir", metavar="DIR", help="where results go (default: runs/NAME)")
    run.add_argument("--stage", metavar="NAME", help="run this stage only")
    run.add_argument("--set", metavar="FIELD=VALUE", action="append", default=[], dest="overrides",
                     help="change a setting, e.g. pretrain.optim.lr=1e-3 or seed=1; may be repeated")
    run.add_argument("--distributed", metavar="HOST:PORT,INDEX,COUNT", nargs="?", const="", help=(
        "on several hosts: the same command on each, with a workdir that all share; alone on Cloud TPU, elsewhere with "
        "the address of the first host, the number of this one and how many there are"))
    run.add_argument("--profile", metavar="STEPS", type=int, default=0,
                     help="trace so many steps of each stage that trains, for Perfetto or TensorBoard")
    run.set_defaults(command=_run)

    _add_curate(commands)
    plan = commands.add_parser("plan", help="what an experiment needs on hardware that is not there", description=(
        "Compiles every program of an experiment for a TPU slice without having it (or counts it, for GPUs), and "
        "prints memory, operations, collectives, time and cost."))
    plan.add_argument("experiment", metavar="FILE", help="a Python file that defines get_config()")
    plan.add_argument("--on", metavar="TARGET", required=True,
                      help="v5e-16, v5p-128, v6e-256, h200-8 and so on, or a topology such as v5p:4x4x4")
    plan.add_argument("--stage", metavar="NAME", help="plan this stage only")
    plan.add_argument("--set", metavar="FIELD=VALUE", action="append", default=[], dest="overrides",
                      help="change a setting, as in run; may be repeated")
    plan.add_argument("--price", metavar="PRICE", type=float, help="of one chip for an hour, for the cost of a run")
    plan.add_argument("--sweep", action="store_true",
                      help="try layouts and rematerialisation policies of the stage that trains first, and rank them")
    plan.set_defaults(command=_plan)

    chat = commands.add_parser("chat", help="talk to a trained model in the terminal")
    _model_arguments(chat)
    chat.add_argument("--system", metavar="TEXT", help="a system message to start with")
    chat.add_argument("--prompt", metavar="TEXT", help="answer this one message and leave")
    _sampling_arguments(chat, temperature=0.0, tokens=200)
    chat.add_argument("--tools", metavar="LIST", default="",
                      help="what the model may call: calculator,python,search:FOLDER (default: nothing)")
    chat.set_defaults(command=_chat)

    _add_serve(commands)
    sample = commands.add_parser("sample", help="continue a text with any stage's model")
    _model_arguments(sample)
    sample.add_argument("--prompt", metavar="TEXT", default="", help="what to continue (default: an empty document)")
    sample.add_argument("--prompt-file", metavar="FILE", help="continue what a file holds, without the newline at its "
                        "end, e.g. experiments/prompts/few_shot.txt")
    sample.add_argument("--samples", metavar="N", type=int, default=1, help="how many continuations (default: 1)")
    _sampling_arguments(sample, temperature=0.8, tokens=100)
    sample.add_argument("--stop", metavar="TEXT", action="append", default=[],
                        help="end before this text; may be repeated ('\\n' is a newline)")
    sample.add_argument("--probabilities", action="store_true", help="show the probability of each new token")
    sample.add_argument("--json", action="store_true", help="print a line of JSON for each sample, with its tokens")
    sample.set_defaults(command=_sample)

    tokenize = commands.add_parser("tokenize", help="show the tokens of a text in colour, with their ids")
    tokenize.add_argument("text", metavar="TEXT", nargs="?", help="the text (default: standard input)")
    tokenize.add_argument("--tokenizer", metavar="NAME|DIR", default="gpt2",
                          help="one of tiktoken's encodings, or a folder or workdir with a tokenizer (default: gpt2)")
    tokenize.set_defaults(command=_tokenize)
    model_commands.add(commands, _prepare_jax)
    return parser


def _add_curate(commands) -> None:
    curate = commands.add_parser("curate", help="make a corpus of web pages or texts; the same command resumes",
                                 usage="%(prog)s --input FILES [FILES ...] --output DIR [options] [-- OPTIONS OF BEAM]",
                                 description=(
        "Reads WARC, WET, JSON lines, Parquet, TFDS datasets or text, of one kind or several, takes it through "
        "FineWeb's recipe (URL filter, extraction, language, quality, duplicates, personal data) and writes Parquet, "
        "with what was dropped and why beside it. "
        "With other thresholds only what depends on them is done again. " + STATUS))
    curate.add_argument("--input", metavar="FILES", nargs="+", required=True,
                        help="paths or addresses; * and variables expand, e.g. 's3://bucket/*.warc.gz'; or the "
                        "folder of a TFDS dataset")
    curate.add_argument("--output", metavar="DIR", required=True, help="where the corpus and its report go")
    curate.add_argument("--recipe", metavar="FILE", help="a Python file whose get_config() returns the steps, or an "
                        "experiment (default: FineWeb's)")
    curate.add_argument("--set", metavar="STEP.FIELD=VALUE", action="append", default=[], dest="overrides",
                        help="change a step, e.g. gopher_quality.min_words=40; may be repeated")
    curate.add_argument("--without", metavar="STEP", action="append", default=[],
                        help="leave a step out; may be repeated")
    curate.add_argument("--field", metavar="NAME",
                        help="where JSON lines, Parquet and TFDS datasets have the text (default: text)")
    curate.add_argument("--val-fraction", metavar="SHARE", type=float, default=0.0,
                        help="share of the documents to mark as validation (default: 0)")
    curate.add_argument("--workers", metavar="N", type=int, default=1, help="processes of this machine (default: 1)")
    curate.add_argument("--runner", metavar="NAME", default="FnApiRunner", help="of Beam (default: FnApiRunner, this "
                        "machine); its options follow a --, e.g. --runner DataflowRunner -- --project=NAME")
    curate.add_argument("--strict", action="store_true", help="exit with status 1 if a record could not be read")
    curate.add_argument("options", metavar="OPTIONS", nargs="*", help=argparse.SUPPRESS)
    curate.set_defaults(command=_curate)


def _add_serve(commands) -> None:
    serve = commands.add_parser("serve", help="an OpenAI-compatible server, with a page to look inside", description=(
        "Serves the models of a run by OpenAI's API, and a page at / with a chat, a playground, tokenizers and a look "
        "inside. SIGTERM and Ctrl-C let what is under way come to its end."))
    serve.add_argument("workdir", metavar="WORKDIR|FOLDER",
                       help="of a run, e.g. runs/quickstart; or a Hugging Face folder")
    serve.add_argument("--stage", metavar="NAME", action="append",
                       help="serve this model; may be repeated (default: all)")
    serve.add_argument("--host", metavar="ADDRESS", default="127.0.0.1",
                       help="where to listen (default: 127.0.0.1, reached from this machine alone)")
    serve.add_argument("--port", metavar="N", type=int, default=8000, help="0 takes a free one (default: 8000)")
    serve.add_argument("--api-key", metavar="KEY", help="what clients must send (default: $JAXGPT_API_KEY, or no key)")
    serve.add_argument("--slots", metavar="N", type=int, default=8, help="answers a model writes at once (default: 8)")
    serve.add_argument("--context", metavar="N", type=int, help="most tokens of a prompt with its answer; each slot takes "
                       "memory for so many (default: the model's context)")
    serve.add_argument("--max-waiting", metavar="N", type=int, default=256,
                       help="answers that wait for a slot; more are refused with status 429 (default: 256)")
    serve.add_argument("--timeout", metavar="SECONDS", type=float, default=600.0, help="of an answer (default: 600)")
    serve.add_argument("--tools", metavar="LIST", default="",
                       help="run these in a chat: calculator,python,search:FOLDER (default: none)")
    serve.add_argument("--int8", action="store_true", help="hold the weights in eight bits")
    serve.add_argument("--int8-cache", action="store_true", help="hold keys and values in eight bits")
    serve.add_argument("--draft", metavar="WORKDIR|FOLDER", help="a small model with the same tokenizer that guesses ahead: "
                       "the same answers in fewer passes (default: none)")
    serve.add_argument("--no-warm-up", action="store_true",
                       help="answer at once, and compile when somebody asks (default: compile first)")
    serve.set_defaults(command=_serve)


def _model_arguments(parser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR|FOLDER",
                        help="of a run, e.g. runs/quickstart; or a Hugging Face folder")
    parser.add_argument("--stage", metavar="NAME", help="whose model (default: the last that is complete)")
    parser.add_argument("--int8", action="store_true", help="hold the weights in eight bits")


def _sampling_arguments(parser, *, temperature: float, tokens: int) -> None:
    parser.add_argument("--temperature", type=float, default=temperature, help=f"0 is greedy (default: {temperature})")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample among the K most likely tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample among the likeliest tokens of mass P")
    parser.add_argument("--max-tokens", type=int, default=tokens, metavar="N", help=f"at most N (default: {tokens})")
    parser.add_argument("--seed", type=_seed, default=0, help="of the sampling (default: 0)")


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2 ** 32:
        raise argparse.ArgumentTypeError(f"{text}: from 0 to 4294967295")
    return value


def _run(arguments) -> int:
    _prepare_jax()
    if arguments.distributed is None:
        return _run_stages(arguments)
    from jaxgpt.core import distributed
    distributed.initialize(arguments.distributed)
    try:
        return _run_stages(arguments)
    except BaseException as error:
        distributed.leave(error)


def _experiment(arguments):
    """The experiment that a file and its overrides describe."""
    from jaxgpt.core import config, experiment
    chosen = config.load(arguments.experiment)
    if not isinstance(chosen, experiment.Experiment):
        raise UserError(f"{arguments.experiment}: get_config() returns {type(chosen).__name__}; it should return an "
                        "Experiment")
    for text in arguments.overrides:
        path, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: write FIELD=VALUE, as in --set pretrain.optim.lr=1e-3")
        chosen = config.override(chosen, path, value)
    return chosen


def _run_stages(arguments) -> int:
    from jaxgpt.core import distributed, experiment, running
    if arguments.profile < 0:
        raise UserError(f"--profile {arguments.profile}: a number of steps, 0 for none")
    chosen = distributed.all_or_none(lambda: _experiment(arguments))
    workdir = Path(arguments.workdir or Path("runs") / chosen.name)
    try:
        experiment.run(chosen, workdir, only=arguments.stage, profile=arguments.profile)
    except experiment.Stopped as stopped:
        command = shlex.join(["jaxgpt", *arguments.words])
        if distributed.is_main():
            print(f"stopped; what is done is saved. To go on:\n  {command}", flush=True)
        return running.exit_status(stopped.signal)
    if not distributed.is_main():
        return 0
    report = workdir / "report" / "report.html"
    if report.exists() and arguments.stage in (None, "report"):
        print(f"report: {report}")
    if any(getattr(stage, "start_from", None) for stage in chosen.stages) and not arguments.stage:
        print(f"talk to it: jaxgpt chat {shlex.quote(str(workdir))}")
    return 0


def _curate(arguments) -> int:
    from jaxgpt.curation.command import curate
    return curate(arguments, arguments.words)


def _plan(arguments) -> int:
    _prepare_jax()
    os.environ["JAX_PLATFORMS"] = "cpu"  # what is planned for is not here, and what is here is not needed
    from jaxgpt.plan import show
    from jaxgpt.plan.hardware import parse_target
    from jaxgpt.plan.plan import make_plan
    target, chosen = parse_target(arguments.on), _experiment(arguments)
    if arguments.price is not None and not 0 <= arguments.price < 1e6:
        raise UserError(f"--price {arguments.price}: a price of one chip for an hour, from 0 to a million")
    if arguments.sweep:
        return 0 if show.print_sweep(chosen, target, stage=arguments.stage) else 1
    shown = []

    def each(plan, program):
        if not shown:
            print(show.heading(plan), flush=True)
        shown.append(program)
        print("\n".join(["", *show.program_lines(plan, program, arguments.price)]), flush=True)

    plan = make_plan(chosen, target, stage=arguments.stage, each=each)
    return 0 if all(map(plan.fits, plan.programs)) else 1


def _chat(arguments) -> int:
    _prepare_jax()
    from jaxgpt.chat import terminal
    from jaxgpt.inference.load import is_folder, load, stages
    from jaxgpt.tools.choose import choose
    workdir, tools = Path(arguments.workdir), choose(arguments.tools)

    def model(stage):
        return load(workdir, stage, int8=arguments.int8).for_decoding()

    others = {name: functools.partial(model, name) for name in (() if is_folder(workdir) else stages(workdir))}
    return terminal.chat(model(arguments.stage), system=arguments.system, prompt=arguments.prompt, tools=tools, stages=others,
                         **_sampling(arguments))


def _serve(arguments) -> int:
    _prepare_jax()
    from jaxgpt.chat.serving import serve
    return serve(arguments.workdir, stages=arguments.stage, host=arguments.host, port=arguments.port,
                 key=arguments.api_key or os.environ.get("JAXGPT_API_KEY"), slots=arguments.slots,
                 max_waiting=arguments.max_waiting, seconds=arguments.timeout, tools=arguments.tools,
                 warm_up=not arguments.no_warm_up, int8=arguments.int8, int8_cache=arguments.int8_cache,
                 draft=arguments.draft, context=arguments.context)


def _sample(arguments) -> int:
    _prepare_jax()
    from jaxgpt.chat.sample import sample
    from jaxgpt.core.files import read_text
    from jaxgpt.inference.load import load
    prompt = arguments.prompt
    if arguments.prompt_file is not None:
        if prompt:
            raise UserError("--prompt and --prompt-file: give one of the two")
        prompt = read_text(arguments.prompt_file).removesuffix("\n")
    loaded = load(Path(arguments.workdir), arguments.stage, int8=arguments.int8)
    if not (arguments.probabilities or arguments.json):  # which need the stacked weights too
        loaded = loaded.for_decoding()
    return sample(loaded, prompt, samples=arguments.samples, stop=[text.replace("\\n", "\n") for text in arguments.stop],
                  probabilities=arguments.probabilities, as_json=arguments.json, **_sampling(arguments))


def _sampling(arguments) -> dict:
    return {"temperature": arguments.temperature, "top_k": arguments.top_k, "top_p": arguments.top_p,
            "max_new_tokens": arguments.max_tokens, "seed": arguments.seed}


def _tokenize(arguments) -> int:
    from jaxgpt.tokenizer.show import coloured
    from jaxgpt.tokenizer.tokenizer import Tokenizer
    path = Path(arguments.tokenizer)
    if (path / "tokenizer").is_dir():
        path = path / "tokenizer"
    tokenizer = Tokenizer.load(path) if path.exists() else Tokenizer.from_tiktoken(arguments.tokenizer)
    text = sys.stdin.buffer.read().decode(errors="replace") if arguments.text is None else arguments.text
    sys.stdout.reconfigure(errors="replace")  # for terminals that lack a character
    print(coloured(tokenizer, text, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    return 0


def _prepare_jax() -> None:
    """Keeps compiled programs between runs, so that the second start is quick, and scratch memory between steps."""
    from jaxgpt.core.libtpu import quiet_without_tpu
    from jaxgpt.core.memory import keep_freed_memory
    keep_freed_memory()
    quiet_without_tpu()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs at length what it raises as well
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(home):  # "~" stays where nobody is at home, as in some containers
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(home, "jaxgpt", "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


if __name__ == "__main__":
    sys.exit(main())
