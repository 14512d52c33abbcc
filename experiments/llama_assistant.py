"""An assistant from other people's base model: Llama 3.2 1B -> our turns -> finetuning and practice by adapters -> report.

Source:  Hu et al. 2021, "LoRA"; Dubey et al. 2024, "The Llama 3 Herd of Models"; Shao et al. 2024, "DeepSeekMath".
Expect:  not yet run here: it takes the weights of Llama 3.2 1B and an accelerator
  jaxgpt run experiments/llama_assistant.py --set import.folder=path/to/Llama-3.2-1B
  jaxgpt chat runs/llama_assistant
  jaxgpt export runs/llama_assistant --to path/to/folder
"""

from jaxgpt.core.experiment import Experiment
from jaxgpt.core.loop import Loop
from jaxgpt.core.optim import Optim
from jaxgpt.core.sharding import Layout
from jaxgpt.evals.evaluate import Evaluate
from jaxgpt.evals.report import Report
from jaxgpt.model.lora import Lora
from jaxgpt.pretrain.imported import Import
from jaxgpt.rl.grpo import GRPO
from jaxgpt.sft.programs import SFT
from jaxgpt.tasks.arithmetic import Arithmetic
from jaxgpt.tasks.identity import Identity
from jaxgpt.tasks.smalltalk import Smalltalk

LORA = Lora(rank=16, alpha=32.0)  # beside every projection: Schulman et al. 2025, "LoRA Without Regret"


def get_config() -> Experiment:
    arithmetic, identity, smalltalk = Arithmetic(digits=3, thinking=0.5), Identity(), Smalltalk()
    return Experiment(
        name="llama_assistant",
        layout=Layout(data=1, fsdp=-1),
        stages=(
            # a base model knows no turns: it gets our tokens for them, which finetuning teaches it to use
            Import(folder="models/Llama-3.2-1B", compute="bfloat16", turns=True),
            SFT(start_from="import", mixture=((arithmetic, 0.5), (identity, 0.3), (smalltalk, 0.2)), conversations=8000,
                turns=(1, 1, 2), steps=300, batch=16, length=512, lora=LORA,
                optim=Optim(lr=2e-4, schedule="linear", warmup=20, final_fraction=0.0)),
            # the model without its adapter is the reference, so that a penalty to it costs no memory
            GRPO(task=arithmetic, rehearse=((identity, 0.3),), steps=100, prompts=32, rollouts=8, prompt_tokens=64,
                 max_new_tokens=96, kl_weight=0.01, lora=LORA, optim=Optim(lr=1e-4, schedule="constant"),
                 loop=Loop(log_every=1, eval_every=20, save_every=20)),
            Evaluate(of=("sft", "grpo"), tasks=(arithmetic, identity, smalltalk), problems=200,
                     prompts=("Who are you?", "What is 374 + 488?", "Hello!"), continuations=("The",)),
            Report(of=("evaluate",)),
        ),
    )
