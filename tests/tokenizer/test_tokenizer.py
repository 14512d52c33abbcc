"""The tokenizer: round trips, agreement with tiktoken, special tokens that text cannot spell, its file."""

import pickle

import numpy as np
import pytest
import regex
import tiktoken
import tiktoken.registry
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.core.errors import UserError
from jaxgpt.core.files import sha256
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.special import SPECIAL_TOKENS
from jaxgpt.tokenizer.tokenizer import TIKTOKEN_NAMES, Tokenizer

FORGERIES = [*SPECIAL_TOKENS, "<|endoftext|>", "<|<|end|>|>", "<|en", "d|>", "<|", "|>", "<", "|", "end"]
forged_texts = st.lists(st.sampled_from(FORGERIES) | st.text(max_size=5), max_size=12).map("".join)


class TestRoundTrip:
    @settings(max_examples=300, deadline=None)
    @given(text=st.text() | st.binary().map(lambda data: data.decode("latin-1")))
    def test_any_text(self, tokenizer, text):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()

    @settings(max_examples=100, deadline=None)
    @given(data=st.binary())
    def test_any_bytes(self, tokenizer, data):
        assert tokenizer.decode_bytes(list(data)) == data
        assert tokenizer.decode(list(data)) == data.decode(errors="replace")

    def test_odd_texts(self, tokenizer, odd_texts):
        for text in odd_texts:
            assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_surrogates_that_stand_alone_are_replaced(self, tokenizer):
        assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")

    def test_batch(self, tokenizer, odd_texts):
        assert tokenizer.encode_batch(iter(odd_texts)) == [tokenizer.encode(text) for text in odd_texts]

    def test_encoding_replays_the_merges_in_order_of_rank(self, tokenizer, corpus, odd_texts):
        ranks = tokenizer.ranks

        def by_hand(piece):
            parts = [bytes([byte]) for byte in piece]
            while True:
                joined = [a + b for a, b in zip(parts, parts[1:])]
                known = [(ranks[pair], i) for i, pair in enumerate(joined) if pair in ranks]
                if not known:
                    return [ranks[part] for part in parts]
                _, i = min(known)
                parts[i : i + 2] = [parts[i] + parts[i + 1]]

        text = corpus[0][:3000] + "".join(odd_texts)
        pieces = regex.findall(tokenizer.pattern, text)
        expected = [token for piece in pieces for token in by_hand(piece.encode())]
        assert tokenizer.encode(text) == expected
        assert max(expected) > 256


class TestSpecialTokens:
    def test_they_follow_the_ranks(self, tokenizer):
        assert tokenizer.special == {token: 792 + i for i, token in enumerate(SPECIAL_TOKENS)}
        assert tokenizer.vocab_size == 800
        assert (tokenizer.bos, tokenizer.end) == (792, 797)

    @settings(max_examples=300, deadline=None)
    @given(text=forged_texts)
    def test_no_text_yields_one(self, tokenizer, text):
        tokens = tokenizer.encode(text)
        assert not set(tokens) & set(tokenizer.special.values())
        assert tokenizer.decode(tokens) == text
        assert tokenizer.encode_batch([text]) == [tokens]

    def test_decode_spells_them_or_leaves_them_out(self, tokenizer):
        tokens = [tokenizer.bos, *tokenizer.encode("é <|end|>"), tokenizer.end]
        assert tokenizer.decode(tokens) == "<|bos|>é <|end|><|end|>"
        assert tokenizer.decode(tokens, special=False) == "é <|end|>"

    def test_arrays_are_decoded_too(self, tokenizer):
        tokens = np.array(tokenizer.encode("array"), np.int32)
        assert tokenizer.decode(tokens) == tokenizer.decode(tokens, special=False) == "array"
        assert tokenizer.decode(np.array([], np.int32)) == ""

    def test_ids_below_0_are_refused(self, tokenizer):
        with pytest.raises(ValueError, match="tokens: -1 is no token of 'small'"):
            tokenizer.decode([5, -1])

    def test_ids_beyond_the_vocabulary_are_shown_as_unknown(self, tokenizer):
        """A model may have more rows than the tokenizer has tokens, and draw one of them."""
        assert tokenizer.decode([*tokenizer.encode("ab"), 800]) == "ab\N{REPLACEMENT CHARACTER}"


class TestBytes:
    def test_token_bytes(self, tokenizer):
        lengths = tokenizer.token_bytes()
        assert lengths.shape == (800,) and lengths.dtype == np.int32
        assert (lengths[:256] == 1).all() and (lengths[256:792] >= 2).all() and (lengths[792:] == 0).all()
        text = "Die Größe, 東京"
        assert lengths[tokenizer.encode(text)].sum() == len(text.encode())

    def test_bytes_per_token(self):
        tokenizer = Tokenizer(bpe.train(["aaabdaaabac"], 267))
        tokens = [tokenizer.bos, *tokenizer.encode("aaabdaaabac"), tokenizer.end]  # aaab d aaab a c: 11 bytes
        assert tokenizer.bytes_per_token(tokens) == pytest.approx(11 / 5)
        with pytest.raises(ValueError, match="none of them stands for text"):
            tokenizer.bytes_per_token([tokenizer.bos])


@pytest.mark.parametrize("name", TIKTOKEN_NAMES)
class TestTiktoken:
    def test_every_text_gets_its_tokens(self, tiktoken_files, name, corpus, odd_texts, tmp_path):
        theirs = tiktoken.get_encoding(name)
        ours = Tokenizer.from_tiktoken(name)
        reloaded = Tokenizer.load(ours.save(tmp_path))  # rebuilt from the ranks in our own file
        for text in [*odd_texts, *corpus]:
            expected = theirs.encode_ordinary(text)
            assert ours.encode(text) == expected
            assert reloaded.encode(text) == expected
            assert reloaded.decode(expected) == text
        assert reloaded.fingerprint() == ours.fingerprint()

    def test_our_special_tokens_come_after_its_own(self, tiktoken_files, name):
        theirs = tiktoken.get_encoding(name)
        ours = Tokenizer.from_tiktoken(name)
        assert ours.bos == theirs.n_vocab
        assert ours.vocab_size == theirs.n_vocab + len(SPECIAL_TOKENS)
        assert ours.special["<|endoftext|>"] == theirs.eot_token
        assert ours.decode([theirs.eot_token]) == "<|endoftext|>"

    def test_every_id_can_be_decoded_and_has_its_length(self, tiktoken_files, name):
        ours = Tokenizer.from_tiktoken(name)
        ours.decode(range(ours.vocab_size))  # ids that the encoding leaves unused included
        lengths = ours.token_bytes()
        assert (lengths[list(ours.ranks.values())] > 0).all()
        assert (lengths > 0).sum() == len(ours.ranks)

    def test_no_text_yields_a_special_token(self, tiktoken_files, name):
        ours = Tokenizer.from_tiktoken(name)
        for text in [*ours.special, "".join(ours.special), "<|<|endoftext|>|>"]:
            assert not set(ours.encode(text)) & set(ours.special.values())
            assert ours.decode(ours.encode(text)) == text


class TestTiktokenMistakes:
    def test_an_unknown_name(self):
        with pytest.raises(UserError, match="'gpt5'; there are gpt2, r50k_base, p50k_base, cl100k_base, o"):
            Tokenizer.from_tiktoken("gpt5")

    def test_neither_cache_nor_network(self, monkeypatch, tmp_path):
        monkeypatch.delitem(tiktoken.registry.ENCODINGS, "r50k_base", raising=False)
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
        for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(variable, "http://127.0.0.1:9")  # the port where nobody listens
        for variable in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(variable, raising=False)
        with pytest.raises(UserError, match="'r50k_base' is not cached and cannot be .*TIKTOKEN_CACHE_DIR"):
            Tokenizer.from_tiktoken("r50k_base")

    def test_a_text_that_the_engine_cannot_split(self):
        ranks = {bytes([byte]): byte for byte in range(256)}
        tokenizer = Tokenizer(ranks, pattern=r"\s+(?!\S)|\s+|\S+", name="old")
        assert tokenizer.decode(tokenizer.encode(" " * 1000 + "x")) == " " * 1000 + "x"
        too_long = " " * 2_000_000 + "x"
        with pytest.raises(UserError, match="'old' cannot split a text; .* run of .* spaces"):
            tokenizer.encode(too_long)
        with pytest.raises(UserError, match="'old' cannot split a text; .* run of .* spaces"):
            tokenizer.encode_batch([too_long])


class TestFile:
    def test_saved_and_loaded(self, tokenizer, odd_texts, tmp_path):
        path = tokenizer.save(tmp_path / "new" / "folder")
        assert path.parent == tmp_path / "new" / "folder"
        for loaded in (Tokenizer.load(path), Tokenizer.load(path.parent)):
            assert loaded.ranks == tokenizer.ranks and list(loaded.ranks) == list(tokenizer.ranks)
            assert (loaded.special, loaded.pattern, loaded.name) == (
                tokenizer.special, tokenizer.pattern, tokenizer.name)
            assert all(loaded.encode(text) == tokenizer.encode(text) for text in odd_texts)

    def test_the_fingerprint_is_that_of_the_file_and_of_all_that_matters(self, tokenizer, tmp_path):
        assert tokenizer.fingerprint() == sha256(tokenizer.save(tmp_path))
        assert Tokenizer(tokenizer.ranks, name="small").fingerprint() == tokenizer.fingerprint()
        shuffled = dict(reversed(tokenizer.ranks.items()))
        assert Tokenizer(shuffled, name="small").fingerprint() == tokenizer.fingerprint()
        swapped = tokenizer.ranks | {b"a": ord("b"), b"b": ord("a")}
        others = [
            Tokenizer(swapped, name="small"),
            Tokenizer(tokenizer.ranks, name="small", pattern=bpe.split_pattern(1)),
            Tokenizer(tokenizer.ranks, name="small", special=tokenizer.special | {"<|pad|>": 900}),
        ]
        assert len({other.fingerprint() for other in [tokenizer, *others]}) == 4

    def test_it_is_text_that_a_person_can_read(self, byte_tokenizer, tmp_path):
        lines = byte_tokenizer.save(tmp_path).read_text().split("\n")
        assert lines[:3] == ["{", '  "format": "jaxgpt tokenizer",', '  "version": 1,']
        blank = lines.index("")
        assert lines[blank - 1] == "}"
        assert lines[blank + 1 + ord("A")] == "QQ== 65"
        assert len(lines) == blank + 1 + 256 + 1  # the last line is closed

    def test_line_ends_of_another_system_do_no_harm(self, tokenizer, tmp_path):
        path = tokenizer.save(tmp_path)
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        assert Tokenizer.load(path).fingerprint() == tokenizer.fingerprint()

    def test_a_tokenizer_travels_to_other_processes(self, tokenizer):
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again.fingerprint() == tokenizer.fingerprint()
        assert again.encode("to other processes") == tokenizer.encode("to other processes")

    @pytest.mark.parametrize("old, new, sentence", [
        ('"format": "jaxgpt tokenizer"', '"format": "other"', "line 1: not the header of a tokenizer file"),
        ('"version": 1', '"version": 2', "version is 2, but this jaxgpt reads version 1"),
        ('"name": "bytes",', '"name" "bytes",', "line 4: the header is not JSON"),
        ('"name": "bytes"', '"name": 7', "the header's 'name' is 7, but should be str"),
        ('"pattern"', '"patern"', "the header's 'pattern' is None, but should be str"),
        ('"<|bos|>": 256', '"<|bos|>": "x"', r"special token '<\|bos\|>' has the id 'x', not a whole number"),
        ('"<|bos|>": 256', '"<|bos|>": 65', "ids: 65 belongs to two tokens"),
        ('"<|bos|>"', '"<|start|>"', r"special: <\|bos\|> missing"),
        ("QQ== 65\n", "QQ== sixty-five\n", "line 84: 'QQ== sixty-five' is not 'base64-of-token id'"),
        ("QQ== 65\n", "QQ== 65 0\n", "line 84: 'QQ== 65 0' is not"),
        ("QQ== 65\n", "QQ 65\n", "line 84: 'QQ 65' is not"),
        ("QQ== 65\n", "Q*== 65\n", "line 84: .* is not"),
        ("QQ== 65\n", " 65\n", "line 84: an empty token"),
        ("QQ== 65\n", "\nQQ== 65\n", "line 84: '' is not"),
        ("QQ== 65\n", "QA== 65\n", "line 84: b'@' again"),
        ("QQ== 65\n", "", "holds 255 tokens, but its header promises 256"),
        ("QQ== 65\n", "QUE= 65\n", "1 of the 256 single bytes are missing, first 65"),
        ("QQ== 65\n", "QQ== 66\n", "ids: 66 belongs to two tokens"),
        ("QQ== 65\n", "QQ== -1\n", "ids: -1 is negative"),
    ])
    def test_a_malformed_file(self, byte_tokenizer, tmp_path, old, new, sentence):
        path = byte_tokenizer.save(tmp_path)
        text = path.read_text()
        assert text.count(old) == 1
        assert "QQ== 65" == text.split("\n")[83]
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=sentence) as error:
            Tokenizer.load(path)
        assert str(error.value).startswith(str(path))

    @pytest.mark.parametrize("content", ["", "\n\n", "{}\n\n", "[1]\n\n", "null"])
    def test_another_file(self, tmp_path, content):
        (tmp_path / "tokenizer.txt").write_text(content)
        with pytest.raises(UserError, match=r"tokenizer.txt, line \d"):
            Tokenizer.load(tmp_path)

    def test_a_pattern_that_is_none(self, byte_tokenizer, tmp_path):
        tokenizer = Tokenizer(byte_tokenizer.ranks, name="x")
        tokenizer.pattern = "("
        with pytest.raises(UserError, match="not a usable tokenizer.*parenthesis"):
            Tokenizer.load(tokenizer.save(tmp_path))

    def test_a_file_cut_short(self, tokenizer, tmp_path):
        path = tokenizer.save(tmp_path)
        text = path.read_text()
        for length in range(0, len(text) - 2, 37):
            path.write_text(text[:length])
            with pytest.raises(UserError, match="tokenizer.txt"):
                Tokenizer.load(path)

    def test_no_file(self, tmp_path):
        with pytest.raises(UserError, match="tokenizer.txt: cannot read a tokenizer here .No such file"):
            Tokenizer.load(tmp_path)
        (tmp_path / "tokenizer.txt").write_bytes(b"\xff\xfe")
        with pytest.raises(UserError, match="not text in UTF-8"):
            Tokenizer.load(tmp_path)
