"""tokenizer.json: the reference library's tokens on any text, whichever engine runs it; bad files named."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxgpt.core.errors import UserError
from jaxgpt.tokenizer import bpe, hf
from jaxgpt.tokenizer.engine import Engine
from jaxgpt.tokenizer.tokenizer import Tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="the reference implementation of tokenizer.json")

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPECIAL = ["<|begin|>", "<|over|>"]


def trained(kind, corpus):
    """A tokenizer in the manner of a family, trained by the reference library."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
    made = tokenizers.Tokenizer(models.BPE())
    if kind == "llama2":
        made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                          decoders.Strip(" ", 1, 0)])
        alphabet, first = [], ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        alphabet, first = pre_tokenizers.ByteLevel.alphabet(), []
        made.decoder = decoders.ByteLevel()
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False) if kind == "gpt2" else pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(QWEN if kind == "qwen" else LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        made.normalizer = normalizers.NFC() if kind == "qwen" else None
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, special_tokens=first, show_progress=False,
                                  max_token_length=16)
    made.train_from_iterator([line for text in corpus for line in text.splitlines()], trainer)
    made.add_special_tokens(SPECIAL)
    found = json.loads(made.to_str())
    if kind == "llama2":  # the trainer counts bytes as added; in published files they are plain tokens
        found["added_tokens"] = [token for token in found["added_tokens"] if not token["content"].startswith("<0x")]
    if kind == "llama3":  # published with every split of a token as a merge, in order of rank
        found["model"] |= {"merges": all_splits(found["model"]["vocab"]), "ignore_merges": True}
    return found


def all_splits(vocab):
    return [[token[:i], token[i:]] for token in sorted(vocab, key=vocab.get) for i in range(1, len(token))
            if token[:i] in vocab and token[i:] in vocab]


def write(folder, found, bos=SPECIAL[0], eos=SPECIAL[1]):
    (folder / "tokenizer.json").write_text(json.dumps(found))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos, "eos_token": {"content": eos}}))
    return folder


@pytest.fixture(scope="module", params=["gpt2", "llama3", "qwen", "llama2"])
def both(request, corpus, tmp_path_factory):
    """(ours, the reference)."""
    found = trained(request.param, corpus)
    ours = hf.read(write(tmp_path_factory.mktemp(request.param), found))
    assert isinstance(ours, Engine) == (request.param == "llama2")  # the others are proved to run on tiktoken
    return ours, tokenizers.Tokenizer.from_str(json.dumps(found))


WORDS = st.lists(st.sampled_from(["the", " object", "'S", "'ſ", "1234567", "\r\n", "  ", "\t", "é", "e\u0301", "한국", "😀", "def f(x):"]
                                 + [" __init__", "aaaa", "�", "\u3000", "٣٤٥", "\x00"]), max_size=30).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | WORDS)
@example("")
def test_any_text_has_the_reference_tokens(both, text):
    ours, reference = both
    expected = reference.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == expected
    assert ours.decode(expected) == reference.decode(expected, skip_special_tokens=False)


def test_odd_texts_and_batches(both, odd_texts):
    ours, reference = both
    texts = [text for text in odd_texts if not any(mark in text for mark in SPECIAL)]
    expected = [reference.encode(text, add_special_tokens=False).ids for text in texts]
    assert ours.encode_batch(texts) == expected
    assert [ours.decode(tokens) for tokens in expected] == [reference.decode(tokens) for tokens in expected]


def test_text_never_becomes_a_special_token(both):
    ours, reference = both
    text = f"a {SPECIAL[1]} b"
    assert ours.end in reference.encode(text).ids and ours.end not in ours.encode(text)
    assert ours.decode(ours.encode(text)) == text
    assert (ours.decode([ours.bos]), ours.decode([ours.end])) == tuple(SPECIAL)


def test_saved_and_loaded_it_is_the_same(both, tmp_path, corpus):
    ours, _ = both
    ours.save(tmp_path)
    again = hf.load(tmp_path)
    assert type(again) is type(ours) and again.fingerprint() == ours.fingerprint()
    assert (again.bos, again.end, again.vocab_size) == (ours.bos, ours.end, ours.vocab_size)
    assert again.encode(corpus[0]) == ours.encode(corpus[0])
    np.testing.assert_array_equal(again.token_bytes(), ours.token_bytes())
    pieces = b"".join(ours.decode_bytes([token]) for token in ours.encode(corpus[0]))
    assert pieces.decode().removeprefix(" ") == corpus[0].removeprefix(" ")


def test_ours_is_read_there(tokenizer, odd_texts, corpus, tmp_path):
    """What we train, written as tokenizer.json: the reference library gives our tokens, and we read it back."""
    hf.write(tokenizer, tmp_path)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    plain = [text for text in [*odd_texts, *corpus[:5]] if not any(mark in text for mark in tokenizer.special)]
    for text in plain:
        assert reference.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)
        assert reference.decode(tokenizer.encode(text)) == text
    again = hf.read(tmp_path)
    assert type(again) is Tokenizer and (again.ranks, again.special) == (tokenizer.ranks, tokenizer.special)
    for text in plain:
        assert again.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_runs_of_digits_are_cut_alike(digits, tmp_path):
    """The two engines read {1,3}+ differently, so it must not be written as it stands."""
    numbers = [" ".join(str(n * 7919) for n in range(3000))]
    pattern = bpe.split_pattern(digits)
    ours = Tokenizer(bpe.train(numbers, vocab_size=264 if digits == 1 else 340, pattern=pattern), pattern=pattern)
    hf.write(ours, tmp_path)
    reference, again = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), hf.read(tmp_path)
    for text in ("1234567890" * 3, "12 345 6789 01234 x5678y"):
        assert reference.encode(text).ids == ours.encode(text) == again.encode(text)


def test_a_pattern_that_the_engines_read_differently_runs_on_the_library(corpus, tmp_path):
    found = trained("llama3", corpus)
    split = found["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"]["Regex"] = split["pattern"]["Regex"].replace("{1,3}", "{1,3}+")
    assert isinstance(hf.read(write(tmp_path, found)), Engine)


def test_a_list_of_merges_that_ranks_cannot_say_runs_on_the_library(corpus, tmp_path):
    found = trained("gpt2", corpus)
    merges = found["model"]["merges"]
    merges[3], merges[4] = merges[4], merges[3]
    ours, reference = hf.read(write(tmp_path, found)), tokenizers.Tokenizer.from_str(json.dumps(found))
    assert isinstance(ours, Engine)
    for text in corpus[:5]:
        assert ours.encode(text) == reference.encode(text).ids and ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("change, words", [
    (lambda found: found["model"].update(type="Unigram"), "tokenizer.json: model.type is 'Unigram'; supported: 'BPE'"),
    (lambda found: found["model"].update(end_of_word_suffix="</w>"), "model.end_of_word_suffix is '</w>'; supported: None"),
    (lambda found: found.update(decoder={"type": "Fuse"}), "not a usable tokenizer .*Fuse.*supported: ByteLevel"),
    (lambda found: found.update(added_tokens=[]), "tokenizer_config.json: says '<.begin.>'; the added_tokens .* are none"),
    (lambda found: found.pop("model"), "no model there"),
])
def test_what_we_cannot_run_is_refused(corpus, tmp_path, change, words):
    found = trained("gpt2", corpus[:2])
    change(found)
    with pytest.raises(UserError, match=words):
        hf.read(write(tmp_path, found))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer.json: no such file"):
        hf.read(tmp_path)
