"""GPT-2 124M on 10 billion tokens of FineWeb: the llm.c reproduction as a recipe, for an accelerator.

Source:  Karpathy, llm.c discussion 481, "Reproducing GPT-2 (124M) in llm.c in 90 minutes for $20" (2024).
Expect:  validation loss near 3.29 after 18,865 steps on llm.c's own run; not yet run here: it takes an accelerator.
  JAXGPT_DATA=/data jaxgpt run experiments/gpt2_124m.py
  (documents of FineWeb's 10B-token sample as JSON lines with a "text" field, in $JAXGPT_DATA/fineweb10B/*.jsonl.gz)
"""

from jaxgpt.core.experiment import Experiment
from jaxgpt.core.loop import Loop
from jaxgpt.core.optim import Optim
from jaxgpt.curation.programs import Curate
from jaxgpt.curation.sources import Jsonl
from jaxgpt.data.programs import Tokenize
from jaxgpt.model import presets
from jaxgpt.pretrain.programs import Pretrain

BATCH, CONTEXT = 512, 1024  # half a million tokens a step


def get_config() -> Experiment:
    # 50304 rows instead of 50257: the special tokens of conversations fit, and matrix units like multiples of 128
    model = presets.on_gpu(presets.gpt2("124M", vocab_size=50304, context=CONTEXT))
    return Experiment(
        name="gpt2_124m",
        stages=(
            # FineWeb is clean and deduplicated as it comes.
            Curate(source=Jsonl("$JAXGPT_DATA/fineweb10B/*.jsonl.gz"), val_fraction=0.001, steps=()),
            Tokenize(tokenizer="gpt2", xz=False),
            Pretrain(
                model=model,
                optim=Optim(lr=6e-4, schedule="cosine", warmup=700, final_fraction=0.0, beta1=0.9, beta2=0.95,
                            weight_decay=0.1, clip_norm=1.0),
                # 32 rows at a time on each of 8 GPUs; on one, --set pretrain.accumulate=16
                tokens=18_865 * BATCH * CONTEXT, batch=BATCH, accumulate=2,
                attend_across=True,  # as llm.c does
                loop=Loop(log_every=10, eval_every=250, save_every=1000),
                prompts=("Hello, I am a language model,",)),
        ),
    )
