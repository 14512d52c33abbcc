"""The dial at 20: a base model of GPT-2's class, Muon and all, on FineWeb-Edu, for 16 TPU chips or one GPU box.

Source:  Karpathy, nanochat (2025), the d20 model: 20 layers of width 1280, its own tokenizer of 32,768, 20 tokens for
         each weight of layers and head.
Expect:  not yet run here: it takes an accelerator. What it needs on 16 v5e chips says the first of these:
  jaxgpt plan experiments/depth20.py --on v5e-16
  JAXGPT_DATA=/data jaxgpt run experiments/depth20.py --distributed
  (documents as JSON lines with a "text" field, in $JAXGPT_DATA/fineweb-edu/*.jsonl.gz)
"""

from jaxgpt.core.experiment import Experiment
from jaxgpt.core.loop import Loop
from jaxgpt.core.sharding import Layout
from jaxgpt.curation.programs import Curate
from jaxgpt.curation.sources import Jsonl
from jaxgpt.data.programs import Tokenize, TrainTokenizer
from jaxgpt.model import presets
from jaxgpt.pretrain.programs import Pretrain

VOCAB, CONTEXT = 32_768, 2048


def get_config() -> Experiment:
    size = presets.depth(20, vocab_size=VOCAB, context=CONTEXT, tokens_per_param=20.0)
    return Experiment(
        name="depth20",
        layout=Layout(data=1, fsdp=-1),
        stages=(
            Curate(source=Jsonl("$JAXGPT_DATA/fineweb-edu/*.jsonl.gz"), val_fraction=0.0005, steps=()),
            TrainTokenizer(vocab_size=VOCAB),
            Tokenize(tokenizer="tokenizer", xz=False),
            Pretrain(
                model=presets.on_tpu(size.model), optim=size.optim, tokens=size.tokens, batch=size.batch,
                loop=Loop(log_every=10, eval_every=500, save_every=500),
                prompts=("The capital of France is", "If 5 * x + 3 = 13, then x is")),
        ),
    )
