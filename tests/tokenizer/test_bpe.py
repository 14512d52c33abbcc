"""BPE training: worked by hand, and the fast trainer against the reference."""

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.core.errors import UserError
from jaxgpt.tokenizer import bpe
from jaxgpt.tokenizer.special import SPECIAL_TOKENS

TRAINERS = ("rustbpe", "reference")


def merges(texts, count, **settings):
    """The tokens that `count` merges make, in order."""
    ranks = bpe.train(texts, 256 + count + len(SPECIAL_TOKENS), **settings)
    assert list(ranks.values()) == list(range(256 + count))
    assert list(ranks)[:256] == [bytes([byte]) for byte in range(256)]
    return list(ranks)[256:]


def possible_merges(texts, trainer):
    with pytest.raises(UserError) as error:
        bpe.train(texts, 100_000, trainer=trainer)
    return int(regex.search(r"only (\d+)", str(error.value)).group(1))


@pytest.mark.parametrize("trainer", TRAINERS)
class TestByHand:
    def test_the_example_of_wikipedia(self, trainer):
        # a a a b d a a a b a c: (a,a) 4 times. Then Z=aa: Z a b d Z a b a c, where (Z,a) and (a,b) are
        # twice and the smaller left rank wins: Y=ab. Then Z Y d Z Y a c: (Z,Y) twice.
        assert merges(["aaabdaaabac"], 3, trainer=trainer) == [b"aa", b"ab", b"aaab"]

    def test_ties_go_to_the_smaller_left_rank(self, trainer):
        # Pieces "ab" and " cd": (a,b), (space,c) and (c,d) occur once; space is the smallest byte, then a. By
        # then (c,d) is gone, and the token " c" with d is all that is left to merge.
        assert merges(["ab cd"], 3, trainer=trainer) == [b" c", b"ab", b" cd"]

    def test_ties_of_the_left_rank_go_to_the_smaller_right_rank(self, trainer):
        assert merges(["xb", "xc", "xa"], 3, trainer=trainer) == [b"xa", b"xb", b"xc"]

    def test_bytes_are_smaller_than_tokens_made_of_them(self, trainer):
        # After Z=aa, which is there twice, (Z,b), (Z,c) and (x,y) are there once: x is smaller than Z, 256.
        assert merges(["aab", "aac", "xy"], 4, trainer=trainer) == [b"aa", b"xy", b"aab", b"aac"]

    def test_frequency_comes_before_rank(self, trainer):
        assert merges(["ab", "xy", "xy"], 2, trainer=trainer) == [b"xy", b"ab"]

    def test_overlapping_pairs_count_each_time_and_merge_from_the_left(self, trainer):
        # (a,a) is twice in "aaa", so it beats (b,c), once. The rest is (aa,a) once, and bc is the smaller.
        assert merges(["aaa", "bc"], 3, trainer=trainer) == [b"aa", b"bc", b"aaa"]

    def test_no_token_crosses_the_border_of_a_piece(self, trainer):
        assert possible_merges(["a" + "1" * 3 + "b"], trainer) == 2  # 11 and 111
        assert possible_merges(["a1b2c3"] * 5, trainer) == 0

    def test_no_merges_gives_the_bytes(self, trainer):
        assert merges(["hello"], 0, trainer=trainer) == []


class TestTrainersAgree:
    @pytest.mark.parametrize("digits", [1, 2, 3])
    def test_on_the_language_reference(self, corpus, digits):
        pattern = bpe.split_pattern(digits)
        fast, slow = (merges(corpus, 400, pattern=pattern, trainer=trainer) for trainer in TRAINERS)
        assert fast == slow

    def test_digits_make_a_difference(self):
        texts = ["2024 2025 2026 1234"]
        assert len({tuple(merges(texts, 3, pattern=bpe.split_pattern(digits))) for digits in (2, 3)}) == 2
        assert not any(token.isdigit() for token in merges(texts + ["abcd"], 3, pattern=bpe.split_pattern(1)))

    def test_on_odd_texts(self, odd_texts):
        most = {possible_merges(odd_texts, trainer) for trainer in TRAINERS}
        assert len(most) == 1
        count = most.pop()
        assert merges(odd_texts, count, trainer="rustbpe") == merges(odd_texts, count, trainer="reference")

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.text(alphabet="aab b1\n", min_size=1, max_size=40), min_size=1, max_size=8))
    def test_on_repetitive_texts_until_no_pair_is_left(self, texts):
        most = {possible_merges(texts, trainer) for trainer in TRAINERS}
        assert len(most) == 1
        count = most.pop()
        learned = merges(texts, count, trainer="rustbpe")
        assert learned == merges(texts, count, trainer="reference")
        assert len(set(learned)) == len(learned)

    def test_the_order_of_the_texts_does_not_matter(self, corpus):
        assert merges(corpus, 100) == merges(reversed(corpus), 100)

    def test_surrogates_that_stand_alone_are_replaced(self):
        texts = ["a\ud800b \ud83d\ude00"]  # the second word is one character, written as a pair of surrogates
        for trainer in TRAINERS:
            assert merges(texts, 2, trainer=trainer) == merges(["a\ufffdb 😀"], 2, trainer=trainer)


class TestSplitPattern:
    @pytest.mark.parametrize("text, pieces", [
        ("Hello, world!", ["Hello", ",", " world", "!"]),
        ("I'm you'LL 'tis", ["I", "'m", " you", "'LL", " '", "tis"]),
        ("a  b\tc", ["a", " ", " b", "\tc"]),
        ("x = 12345\n\n  y", ["x", " =", " ", "123", "45", "\n\n", " ", " y"]),
        ("f(a)\n", ["f", "(a", ")\n"]),
        ("naïve 東京", ["naïve", " 東京"]),
        (" " * 300 + "x", [" " * 128, " " * 128, " " * 43, " x"]),
    ])
    def test_by_hand(self, text, pieces):
        assert regex.findall(bpe.PATTERN, text) == pieces

    @pytest.mark.parametrize("digits, pieces", [(1, list("12345")), (2, ["12", "34", "5"]), (9, ["12345"])])
    def test_digits(self, digits, pieces):
        assert regex.findall(bpe.split_pattern(digits), "12345") == pieces

    @settings(max_examples=300, deadline=None)
    @given(st.text())
    def test_nothing_is_lost(self, text):
        assert "".join(regex.findall(bpe.PATTERN, text)) == text

    @settings(max_examples=300, deadline=None)
    @given(st.text(alphabet="aB'sSlL12 ·\t\n\r(.é東٣", max_size=60))
    def test_python_and_tiktoken_cut_alike(self, text):
        # A vocabulary that knows exactly the pieces that Python finds: tiktoken looks up a whole piece first,
        # so it gives one token for each piece if it finds the same ones.
        pieces = regex.findall(bpe.PATTERN, text)
        tokens = [bytes([byte]) for byte in range(256)]
        tokens += sorted({piece.encode() for piece in pieces} - set(tokens))
        ranks = {token: rank for rank, token in enumerate(tokens)}
        encoding = tiktoken.Encoding("pieces", pat_str=bpe.PATTERN, mergeable_ranks=ranks, special_tokens={})
        assert encoding.encode_ordinary(text) == [ranks[piece.encode()] for piece in pieces]

    @pytest.mark.parametrize("unit", [" ", "\t ", " \n", "\n", "a", "1", "'"])
    def test_very_long_runs_are_no_trouble(self, unit):
        text = unit * 1_500_000 + "x"
        ranks = bpe.train([text, "qz"], 265)
        encoding = tiktoken.Encoding("long", pat_str=bpe.PATTERN, mergeable_ranks=ranks, special_tokens={})
        assert encoding.decode(encoding.encode_ordinary(text)) == text


class TestMistakes:
    @pytest.mark.parametrize("trainer", TRAINERS)
    @pytest.mark.parametrize("texts", [[], [""], ["", ""]])
    def test_an_empty_corpus(self, texts, trainer):
        with pytest.raises(UserError, match="the corpus is empty"):
            bpe.train(iter(texts), 300, trainer=trainer)

    @pytest.mark.parametrize("vocab_size", [-1, 0, 256, 263])
    def test_a_vocabulary_too_small(self, vocab_size):
        with pytest.raises(UserError, match=f"vocab_size {vocab_size} .* 8 special tokens make 264"):
            bpe.train(["text"], vocab_size)

    @pytest.mark.parametrize("trainer", TRAINERS)
    def test_a_corpus_too_small(self, trainer):
        with pytest.raises(UserError, match="500 asks for 236 merges, .* only 3: .* at most 267"):
            bpe.train(["abcd"], 500, trainer=trainer)
        assert len(bpe.train(["abcd"], 267, trainer=trainer)) == 259

    def test_an_error_in_the_corpus_comes_through(self):
        def texts():
            yield "some text"
            raise UserError("page 2 cannot be read")

        for trainer in TRAINERS:
            with pytest.raises(UserError, match="page 2 cannot be read"):
                bpe.train(texts(), 300, trainer=trainer)

    def test_wrong_arguments(self):
        with pytest.raises(ValueError, match="digits: got 0"):
            bpe.split_pattern(0)
        with pytest.raises(ValueError, match="trainer: got 'fast', but there are rustbpe and reference"):
            bpe.train(["text"], 300, trainer="fast")
        with pytest.raises(ValueError, match="one string"):
            bpe.train("text", 300)
