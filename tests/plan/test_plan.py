"""Plans: what is counted by hand, what the TPU's own compiler says, and what is refused."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from jaxgpt.cli import main
from jaxgpt.core import config
from jaxgpt.core.experiment import Experiment
from jaxgpt.core.optim import Optim
from jaxgpt.core.sharding import Layout
from jaxgpt.curation.programs import Curate
from jaxgpt.curation.sources import Jsonl
from jaxgpt.data.programs import Tokenize
from jaxgpt.model import presets
from jaxgpt.model.transformer import Config, count_params
from jaxgpt.plan import show, sweep
from jaxgpt.plan.hardware import parse_target
from jaxgpt.plan.plan import make_plan
from jaxgpt.pretrain.programs import Pretrain

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                                  reason="needs the TPU's compiler: pip install -e '.[tpu]'")
SMALL = Config(vocab_size=512, context=128, layers=2, width=128, heads=2, dtype="bfloat16")


def experiment(model=SMALL, **settings) -> Experiment:
    layout = settings.pop("layout", Layout())
    stage = Pretrain(model=model, optim=Optim(), tokens=10 * 16 * model.context, batch=16, **settings)
    return Experiment(name="small", layout=layout, stages=(Curate(source=Jsonl("x.jsonl")), Tokenize(tokenizer="gpt2"), stage))


# --- GPU: counted ----------------------------------------------------------------------------------------------------

def test_a_gpu_plan_counts_the_state_as_it_lies():
    (program,) = make_plan(experiment(layout=Layout(data=2, fsdp=4)), parse_target("h200-8")).programs
    assert program.name == "train_step" and program.compiled is None
    scales = 5 * 128  # norms are not split
    split = 4 * ((count_params(SMALL) - scales) // 4 + scales)
    assert program.parameters == split and program.optimizer == 2 * split + 4 + 4  # two moments, two counts
    assert program.peak > program.parameters + program.optimizer


def test_the_time_of_the_whole_stage_is_that_of_its_steps():
    plan = make_plan(experiment(), parse_target("h100-8"))
    (program,) = plan.programs
    text = "\n".join(show.program_lines(plan, program, price=3.0))
    assert program.training.steps == 10 and program.cost.tokens == 16 * 128
    hours = 10 * program.estimate.seconds / 3600 * 8
    assert "10 steps, 20,480 tokens" in text and f"{hours:,.1f} chip-hours, {hours * 3:,.2f} at 3 a chip-hour" in text
    assert "counted, not compiled" in text


def test_what_does_not_fit_says_what_to_change():
    model = dataclasses.replace(presets.llama3("8B"), remat="none")
    plan = make_plan(experiment(model), parse_target("h100-8"))
    (program,) = plan.programs
    assert not plan.fits(program)
    text = "\n".join(show.program_lines(plan, program))
    assert "DOES NOT FIT" in text and "--set layout.fsdp=8" in text and "pretrain.optim.moments=bfloat16" in text
    fixed = experiment(dataclasses.replace(model, remat="full"), layout=Layout(data=1, fsdp=-1), accumulate=2)
    smaller = make_plan(fixed, parse_target("h100-8"))
    assert smaller.programs[0].peak < program.peak / 3 and smaller.fits(smaller.programs[0])


def test_a_sweep_ranks_what_fits_by_its_time():
    model = dataclasses.replace(presets.gpt2("124M", vocab_size=50304), dtype="bfloat16")
    stage = experiment(model)
    seen = []
    ranked = sweep.sweep(stage, parse_target("h100-4"), most=5, each=lambda candidate, plan: seen.append(plan))
    assert len(ranked) == 5 and len(seen) == 10 and seen[0] is None
    assert [candidate.seconds for candidate, _ in ranked] == sorted(candidate.seconds for candidate, _ in ranked)
    assert {candidate.remat for candidate, _ in ranked} <= set(sweep.REMATS)
    chosen, plan = ranked[0]
    assert plan.mesh_shape == {**chosen.layout, "expert": 1}
    again = stage
    for word in sweep.words(chosen, "pretrain").replace("--set ", "").split():
        again = config.override(again, *word.split("=", 1))
    assert again == chosen.experiment


def test_layouts_multiply_to_the_devices():
    found = list(sweep.layouts(8))
    assert all(one["data"] * one["fsdp"] * one["tensor"] * one["sequence"] == 8 for one in found)
    assert len({tuple(one.values()) for one in found}) == len(found) == 20  # 2³ in four places


# --- TPU: compiled ---------------------------------------------------------------------------------------------------

@needs_libtpu
def test_every_program_of_a_small_experiment_compiles_for_a_tpu():
    plan = make_plan(experiment(prompts=("x",), layout=Layout(data=2, fsdp=2)), parse_target("v5e-4"))
    assert [program.name for program in plan.programs] == ["train_step", "evaluate", "prefill", "decode"]
    step = plan.programs[0]
    assert step.compiled.fits and plan.capacity(step) == 15.75 * 2 ** 30
    assert step.compiled.arguments >= step.parameters + step.optimizer + step.inputs  # XLA pads
    assert {one.kind for one in step.compiled.collectives} & {"all-gather", "all-reduce"}
    assert all(one.group in (2, 4) for one in step.compiled.collectives)


@needs_libtpu
def test_the_compiler_says_when_there_is_no_room():
    model = dataclasses.replace(SMALL, width=8192, heads=64, layers=4, vocab_size=32768)
    plan = make_plan(experiment(model), parse_target("v5e-4"), only="train_step")
    (program,) = plan.programs
    assert not plan.fits(program) and program.peak > plan.capacity(program) == 15.75 * 2 ** 30
    assert "--set layout.fsdp=4" in "\n".join(show.program_lines(plan, program))


@needs_libtpu
@pytest.mark.slow
def test_eight_billion_parameters_on_64_chips_of_v5p():
    """The recipe with two rows a chip: splash attention, everything recomputed, the state split over all chips."""
    chosen = config.load(EXPERIMENTS / "llama3_8b.py")
    for word in ("pretrain.batch=128", "pretrain.model.remat=full"):
        chosen = config.override(chosen, *word.split("="))
    plan = make_plan(chosen, parse_target("v5p-128"), stage="pretrain", only="train_step")
    (program,) = plan.programs
    state = (program.parameters + program.optimizer) / 2 ** 30
    assert plan.fits(program) and 1.3 < state < 1.5  # 8.03e9 parameters and two moments, 4 bytes each, over 64
    whole = 4 * count_params(program.training.config)
    assert all(one.size < whole / 8 for one in program.compiled.collectives)  # never all parameters at once
    assert sum(one.sent for one in program.compiled.collectives) < 5 * whole


# --- refused ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("words, message", [
    (["--on", "v5p-100"], "v5p-100: no such slice; the nearest are v5p-64 and v5p-128"),
    (["--on", "h200-8", "--set", "layout.fsdp=3"],
     "layout data -1 x fsdp 3: the sizes multiply to 3, but there are 8 devices; data 8 works"),
    (["--on", "h200-8", "--set", "pretrain.accumulate=1", "--set", "pretrain.batch=12"],
     "pretrain.batch=12: cannot be divided over 8"),
    (["--on", "h200-8", "--stage", "curate"], "curate: nothing to plan, since no stage of it runs a compiled program"),
    (["--on", "h200-8", "--price", "-1"], "--price -1.0: a price of one chip for an hour, from 0 to a million"),
])
def test_one_sentence_for_what_cannot_be(capsys, monkeypatch, words, message):
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    assert main(["plan", str(EXPERIMENTS / "gpt2_124m.py"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_plan_from_the_command_line(capsys):
    assert main(["plan", str(EXPERIMENTS / "gpt2_124m.py"), "--on", "h200-8", "--price", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("gpt2_124m on h200-8: 8 x h200, 1 host; layout data 8, rules 'fsdp'\n")
    assert "pretrain/train_step" in out and "fits" in out and "a chip-hour" in out


def test_a_gpu_plan_follows_the_rules_and_the_kernel():
    """Held whole on every device, the state counts whole; so do the weights of attention where no kernel takes the case."""
    whole = dataclasses.replace(experiment(layout=Layout(data=1, fsdp=8)), rules="replicated")
    split = dataclasses.replace(whole, rules="fsdp")
    peaks = [make_plan(one, parse_target("h100-8")).programs[0] for one in (whole, split)]
    assert peaks[0].parameters == 4 * count_params(SMALL) and peaks[0].peak > peaks[1].peak + 3 * peaks[1].parameters
    apart, across = (make_plan(experiment(attend_across=across), parse_target("h100-8")).programs[0].peak
                     for across in (False, True))
    assert apart - across >= 2 * 4 * 2 * 2 * 128 * 128  # two rows a device, two heads, in float32, with gradients


def test_the_expert_axis_splits_rows_as_data_does():
    data, expert = (make_plan(experiment(layout=layout), parse_target("h100-8")).programs[0]
                    for layout in (Layout(data=8), Layout(data=1, expert=8)))
    assert data.cost.flops == expert.cost.flops and data.estimate.seconds == pytest.approx(expert.estimate.seconds)


@pytest.mark.parametrize("words", [["layout.data=1", "layout.fsdp=8", "rules=replicated"], ["layout.data=8"],
                                   ["layout.data=4", "layout.tensor=2", "rules=fsdp_tensor"],
                                   ["layout.data=1", "layout.fsdp=8", "pretrain.batch=24",
                                    "pretrain.model.remat=none"]])
def test_advice_can_be_taken(words):
    """Each override that is advised gives an experiment that can be planned, and needs less."""
    chosen = experiment(dataclasses.replace(presets.llama3("8B"), remat="names"), layout=Layout())
    chosen = config.override(chosen, "pretrain.tokens", str(10 * 24 * 8192))
    for word in words:
        chosen = config.override(chosen, *word.split("="))
    plan = make_plan(chosen, parse_target("h100-8"))
    (program,) = plan.programs
    taken = 0
    for text in show.program_lines(plan, program):
        changes = re.findall(r"--set (\S+)", text)
        if changes:
            better = chosen
            for word in sorted(changes, key=lambda word: word != "layout.data=1"):
                better = config.override(better, *word.split("=", 1))
            assert make_plan(better, parse_target("h100-8")).programs[0].peak < program.peak, text
            taken += 1
    assert not plan.fits(program) and taken >= 2


def test_a_sweep_of_what_trains_nothing_is_refused(capsys):
    words = ["plan", str(EXPERIMENTS / "quickstart.py"), "--on", "h100-8", "--stage", "tokenizer", "--sweep"]
    assert main(words) == 2
    assert "stage 'tokenizer' trains nothing, so there is nothing to sweep; those that train: pretrain, sft, grpo" in \
        capsys.readouterr().err
