"""Characters of Shakespeare on a CPU: the shape of nanoGPT's quickstart, GPT-2 with 4 layers.

Source:  Karpathy, nanoGPT, "I only have a macbook": 4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps.
Expect:  1.8821 nats per character on the validation split, mean of 3 seeds (1.8883, 1.8761, 1.8819);
         21.4 ms a step on 2 cores of an AMD EPYC (Zen 5), commit 1024686
  jaxgpt run experiments/shakespeare_char.py
  jaxgpt sample runs/shakespeare_char --prompt "ROMEO:"
"""

from jaxgpt.core.experiment import Experiment
from jaxgpt.core.loop import Loop
from jaxgpt.core.optim import Optim
from jaxgpt.curation.programs import Curate
from jaxgpt.curation.remote import RemoteText
from jaxgpt.data.programs import Tokenize, TrainTokenizer
from jaxgpt.model import transformer
from jaxgpt.pretrain.programs import Pretrain

SHAKESPEARE = RemoteText(
    path="text/tinyshakespeare.txt",
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed")


def get_config() -> Experiment:
    return Experiment(
        name="shakespeare_char",
        stages=(
            # The last tenth is held out, as in nanoGPT; it is one text, so nothing is cleaned.
            Curate(source=SHAKESPEARE, split="tail", val_fraction=0.1, steps=()),
            TrainTokenizer(vocab_size=256 + 8),  # bytes and special tokens: in this text a byte is a character
            Tokenize(),
            Pretrain(
                model=transformer.Config(
                    vocab_size=264, context=64, layers=4, width=128, heads=4, position="learned", norm="layernorm",
                    norm_eps=1e-5, activation="gelu", tied=True, unroll=4),
                optim=Optim(lr=1e-3, schedule="cosine", warmup=100, final_fraction=0.1, beta1=0.9, beta2=0.99,
                            weight_decay=0.1, clip_norm=1.0),
                tokens=2000 * 12 * 64, batch=12,
                loop=Loop(log_every=20, eval_every=500, save_every=500),
                prompts=("ROMEO:", "\n"), sample_tokens=200),
        ),
    )
