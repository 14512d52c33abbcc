"""The whole pipeline on a laptop: documents -> tokenizer -> base -> assistant -> practice -> report.

Source:  Karpathy, "Deep Dive into LLMs like ChatGPT" (2025).
Expect:  1.64 bits per byte against 2.31 of xz; sums 19.5% after finetuning, 99.5% after
         practice; identity 98%; about 4 minutes on 2 cores of an AMD EPYC (Zen 5), commit 1024686
  jaxgpt run experiments/quickstart.py
  jaxgpt chat runs/quickstart
"""

import dataclasses

from jaxgpt.core.experiment import Experiment
from jaxgpt.core.loop import Loop
from jaxgpt.core.optim import Optim
from jaxgpt.curation.duplicates import ExactDuplicates
from jaxgpt.curation.extract import Extract
from jaxgpt.curation.programs import Curate
from jaxgpt.data.programs import Tokenize, TrainTokenizer
from jaxgpt.curation.python_docs import PythonDocs
from jaxgpt.curation.quality import GopherQuality
from jaxgpt.evals.evaluate import Evaluate, Leak
from jaxgpt.evals.report import Report
from jaxgpt.model import presets
from jaxgpt.pretrain.programs import Pretrain
from jaxgpt.rl.grpo import GRPO
from jaxgpt.sft.programs import SFT
from jaxgpt.tasks.arithmetic import Arithmetic
from jaxgpt.tasks.identity import Identity
from jaxgpt.tasks.knowledge import PythonKnowledge
from jaxgpt.tasks.smalltalk import Smalltalk
from jaxgpt.tasks.spelling import Spelling

# Reference pages are lists and code: what FineWeb's rules about lines and braces would drop is the content here.
RECIPE = (
    Extract(extractor="tags"),
    ExactDuplicates(),
    ExactDuplicates(name="repeated_paragraphs", unit="paragraph", min_characters=40),
    GopherQuality(min_words=30, max_symbols_per_word=None, max_mean_word_length=None, min_alphabetic_words=None,
                  max_bullet_lines=None, max_ellipsis_lines=None, min_stop_words=None),
)


def get_config() -> Experiment:
    size = presets.depth(4, width_per_layer=32, vocab_size=2048, context=256, tokens_per_param=1.3)
    arithmetic, identity, smalltalk = Arithmetic(digits=2, thinking=0.4), Identity(), Smalltalk()
    knowledge, spelling = PythonKnowledge(), Spelling()
    return Experiment(
        name="quickstart",
        stages=(
            # 1  the internet: a small web that is on every machine
            Curate(source=PythonDocs(), steps=RECIPE),
            # 2  text <-> tokens; one digit a token makes sums easier
            TrainTokenizer(vocab_size=2048, digits=1),
            Tokenize(),
            # 3  the base model continues documents
            Pretrain(model=presets.on_cpu(size.model), optim=size.optim, tokens=size.tokens, batch=size.batch,
                     loop=Loop(log_every=10, eval_every=100, save_every=100),
                     prompts=("The", "Return a new", "Raises an error if")),
            # 4  the assistant: of the sums it is shown, two in five are worked out, the others answered at once
            SFT(mixture=((arithmetic, 0.40), (identity, 0.30), (smalltalk, 0.15), (knowledge, 0.10), (spelling, 0.05)),
                conversations=11_500, turns=(1, 1, 2, 3), steps=480, batch=8, length=256,
                optim=dataclasses.replace(size.optim, lr=0.01, adam_lr=0.005, schedule="linear", final_fraction=0.0)),
            # 5  practice: only the final answer is rewarded, and working it out turns out to pay
            GRPO(task=arithmetic, rehearse=((identity, 0.4), (smalltalk, 0.2)), steps=60, prompts=32, rollouts=8,
                 prompt_tokens=32, max_new_tokens=40, optim=Optim(lr=2e-4, schedule="linear", final_fraction=0.0),
                 loop=Loop(log_every=1, eval_every=10, save_every=10)),
            # 6  scores of every stage, and the report
            Evaluate(of=("pretrain", "sft", "grpo"), tasks=(arithmetic, identity, smalltalk, knowledge, spelling),
                     problems=200, leak=Leak(text="jaxgpt", task="identity"),
                     prompts=("Who are you?", "What is 37 + 48?", "What is the module json for?",
                              "What is the module blorbix for?", "Hello!"),
                     continuations=("The", "Return a new")),
            Report(of=("evaluate",)),
        ),
    )
