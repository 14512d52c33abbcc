"""Llama 3 8B from scratch on FineWeb, for a TPU slice: 10 tokens a parameter, 8,192 positions.

Source:  Grattafiori et al. 2024, "The Llama 3 Herd of Models", tables 3 and 4 (shape, learning rate, batch).
Expect:  not yet run here: it takes a slice. Its plan for 64 v5p chips stands in the README:
  jaxgpt plan experiments/llama3_8b.py --on v5p-128
  JAXGPT_DATA=/data jaxgpt run experiments/llama3_8b.py --distributed
  (documents as JSON lines with a "text" field, in $JAXGPT_DATA/fineweb/*.jsonl.gz)
"""

from jaxgpt.core.experiment import Experiment
from jaxgpt.core.loop import Loop
from jaxgpt.core.optim import Optim
from jaxgpt.core.sharding import Layout
from jaxgpt.curation.programs import Curate
from jaxgpt.curation.sources import Jsonl
from jaxgpt.data.programs import Tokenize
from jaxgpt.model import presets
from jaxgpt.pretrain.programs import Pretrain

BATCH, CONTEXT = 256, 8192  # two million tokens a step


def get_config() -> Experiment:
    return Experiment(
        name="llama3_8b",
        layout=Layout(data=1, fsdp=-1),
        stages=(
            # FineWeb is clean and deduplicated as it comes.
            Curate(source=Jsonl("$JAXGPT_DATA/fineweb/*.jsonl.gz"), val_fraction=0.0005, steps=()),
            Tokenize(tokenizer="cl100k_base", xz=False),
            Pretrain(
                model=presets.on_tpu(presets.llama3("8B", context=CONTEXT)),
                optim=Optim(lr=3e-4, schedule="cosine", warmup=2000, final_fraction=0.1, beta1=0.9, beta2=0.95,
                            weight_decay=0.1, clip_norm=1.0),
                tokens=38_000 * BATCH * CONTEXT, batch=BATCH,
                loop=Loop(log_every=10, eval_every=1000, save_every=500)),
        ),
    )
