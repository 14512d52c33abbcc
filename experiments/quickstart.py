"""The whole pipeline on a laptop: documents -> tokenizer -> base -> assistant -> practice -> report.

Source:  Karpathy, "Deep Dive into LLMs like ChatGPT" (2025).
Expect:  1.77 bits per byte against 2.92 of xz; sums 21.5% after finetuning, 97.5% after
         practice; identity 98%; 8.2 minutes and 2.4 GB on 2 Zen 4 cores; commit 0d4a130, seed 0
  jaxgpt run experiments/quickstart.py
  jaxgpt chat runs/quickstart
"""

import dataclasses

from jaxgpt.core.experiment import Experiment
from jaxgpt.core.loop import Loop
from jaxgpt.core.optim import Optim
from jaxgpt.curation.decontaminate import Decontaminate, Passages
from jaxgpt.curation.duplicates import ExactDuplicates
from jaxgpt.curation.extract import Extract
from jaxgpt.curation.language import Language
from jaxgpt.curation.minhash import MinHash
from jaxgpt.curation.pii import ReplacePII
from jaxgpt.curation.programs import Curate
from jaxgpt.curation.python_docs import PythonDocs
from jaxgpt.curation.quality import C4, FineWebQuality, GopherQuality, GopherRepetition
from jaxgpt.curation.url import UrlFilter
from jaxgpt.data.programs import Tokenize, TrainTokenizer
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

IDENTITY = Identity()
ANY = None  # a rule of FineWeb that reference pages have no use for

# FineWeb's steps on reference documentation, which is signatures, lists and code: with FineWeb's own thresholds, meant for
# prose, less than a hundredth would stay. Repeated paragraphs go first (pydoc lists a method again under every subclass).
RECIPE = (
    UrlFilter(),
    Extract(extractor="resiliparse"),
    Language(),
    ExactDuplicates(),
    ExactDuplicates(name="repeated_paragraphs", unit="paragraph", min_characters=40),
    MinHash(per_source=False, verify=0.7),
    GopherRepetition(
        duplicate_paragraphs=ANY, duplicate_paragraph_characters=0.5, duplicate_lines=ANY, duplicate_line_characters=0.5,
        top_2_gram=0.4, top_3_gram=0.4, top_4_gram=0.4, duplicate_5_grams=0.6, duplicate_6_grams=0.6,
        duplicate_7_grams=0.6, duplicate_8_grams=0.6, duplicate_9_grams=0.6, duplicate_10_grams=0.6),
    GopherQuality(min_words=25, min_alphabetic_words=0.4, max_bullet_lines=ANY, min_stop_words=1),
    C4(min_sentences=ANY, min_words_per_line=ANY, remove_javascript=False, remove_policies=False,
       drop_curly_brackets=False),
    FineWebQuality(min_punctuated_lines=ANY, max_short_lines=ANY, max_duplicate_characters=ANY,
                   max_newlines_per_word=ANY),
    ReplacePII(),
    Decontaminate(against=(Passages("identity", tuple(one.question for one in IDENTITY.problems("test", 50, seed=0))),)),
)


def get_config() -> Experiment:
    size = presets.depth(4, width_per_layer=32, vocab_size=2048, context=256, tokens_per_param=1.3)
    arithmetic, identity, smalltalk = Arithmetic(digits=2, thinking=0.4), IDENTITY, Smalltalk()
    knowledge, spelling = PythonKnowledge(), Spelling()
    return Experiment(
        name="quickstart",
        stages=(
            # 1  the internet: a small web that is on every machine, as WARC files
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
