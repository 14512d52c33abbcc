"""Numbers worked out by hand, plain definitions beside the fast ones, and any text at all."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.curation.statistics import (
    SENTENCE_ENDS, LineStatistics, TextStatistics, count_sentences, line_statistics, statistics, words)

# Texts that repeat: few words and signs, many line ends. And any text at all, lone surrogates included.
REPEATING = st.lists(st.sampled_from(["a", "b", "the", "The", "word", "-", "•", "...", "…", "#", "1", ".", " ", "\n",
                                      "\n\n", "\x85", "\r\n"]), max_size=60).map("".join)
ANY = st.text(st.characters(codec=None), max_size=200)


def test_words_and_signs():
    assert words("Don't ask; J.R.R. Tolkien (1892)") == [
        "Don", "'t", "ask", ";", "J.R.R.", "Tolkien", "(", "1892", ")"]
    assert words("'Quoted' -- well-known... or: 1,000.5 me@example.org") == [
        "'", "Quoted", "'", "--", "well", "-", "known", "...", "or", ":", "1,000.5", "me@example.org"]
    assert words("See https://example.com/a?b=c#d, **now**") == [
        "See", "https://example.com/a?b=c#d,", "*", "*", "now", "*", "*"]
    assert words("naïve café 中文 ١٢٣") == ["naïve", "café", "中文", "١٢٣"]
    assert words(" \n\t\u3000") == []
    assert words("Mr. Pip, e.g. on Sept. 3 at 5 p.m., or J. Gargery. vs. xMr. ^^^^") == [
        "Mr.", "Pip", ",", "e.g.", "on", "Sept.", "3", "at", "5", "p.m.", ",", "or", "J.", "Gargery", ".", "vs.",
        "xMr", ".", "^^^^"]


@pytest.mark.parametrize("line, count", [
    ("", 0), ("   ", 0), ("one", 1), ("One. Two! Three? Four", 4), ("One.Two", 1), ("Wait... what", 1),
    ("J. R. R. Tolkien wrote it.", 1), ('"Go!" she said. (He went.) Then', 4), (".. note:: this", 1),
    ("Spaced . Out", 2)])
def test_sentences(line, count):
    assert count_sentences(line) == count


def test_words_by_hand():
    found = statistics("The cat, the dog and #1...\n- to be…\n• x")
    # The cat , the dog and # 1 ... - to be … • x: of these , # ... - … are punctuation; • is on no list of it
    assert found["words"] == 10 and found["symbols"] == 5
    assert found["mean_word_length"] == (3 + 3 + 3 + 3 + 3 + 1 + 2 + 2 + 1 + 1) / 10
    assert found["hashes_per_word"] == 1 / 15 and found["ellipses_per_word"] == 2 / 15
    assert found["bullet_lines"] == 2 / 3 and found["ellipsis_lines"] == 2 / 3
    assert found["alphabetic_words"] == 8 / 15  # The cat the dog and to be x
    assert found["stop_words"] == 4  # the, and, to, be; not The
    assert found["characters"] == 39


def test_a_word_with_one_letter_is_alphabetic_and_one_of_signs_is_a_symbol():
    found = statistics("", ["x1", "(a)", "12", "-_-", "１", "．", "»"])
    assert found["alphabetic_words"] == 2 / 7
    assert found["words"] == 3 and found["symbols"] == 4  # the full-width 1 counts as punctuation
    assert found["mean_word_length"] == (2 + 3 + 2) / 3


def test_repeated_lines_and_paragraphs_by_hand():
    text = "ab\ncd\n\nab\ncd\n\n\nef\nab\n"
    found = statistics(text)
    assert found["duplicate_paragraphs"] == 1 / 3  # "ab cd" again, then "ef ab"
    assert found["duplicate_paragraph_characters"] == 5 / len(text)
    assert found["duplicate_lines"] == 3 / 7  # ab cd ab cd ef ab, and what follows the last newline
    assert found["duplicate_line_characters"] == 6 / len(text)


def test_repeated_runs_of_words_by_hand():
    text = "one two six one two ten one two six"
    found = statistics(text)
    assert found["top_2_gram"] == len("one two") * 3 / len(text)
    assert found["top_3_gram"] == len("one two six") * 2 / len(text)
    assert found["top_4_gram"] == len("one two six one") / len(text)  # all occur once: the first of them
    assert found["duplicate_5_grams"] == 0

    text = "a b c d e f a b c d e f a b c d e"
    found = statistics(text)
    assert found["duplicate_5_grams"] == (5 + 5) / len(text)  # a-e at words 6 and 12; f-d at 11 begins inside neither
    assert found["duplicate_6_grams"] == 6 / len(text)  # a-f at 6; then too few words are left
    assert found["duplicate_10_grams"] == 10 / len(text)  # the first seven places are new; a at 6 is seen


def test_of_equally_frequent_runs_the_first_counts():
    assert statistics("long word x long word y ab ab z ab ab")["top_2_gram"] == len("long word") * 2 / 37
    assert statistics("ab ab z ab ab y long word x long word")["top_2_gram"] == len("ab ab") * 2 / 37


def test_a_run_of_words_is_not_the_same_run_of_letters():
    """Two runs are equal when their words are; "ab c" is not "a bc"."""
    found = statistics("-", ["a", "bc", "d", "e", "f", "a", "b", "cd", "e", "f"])
    assert found["duplicate_5_grams"] == 0
    assert statistics("-", ["a", "bc", "d", "e", "f"] * 2)["duplicate_5_grams"] == 6


def test_lines_by_hand():
    text = "A sentence of more than thirty letters.\n\n  \nshort\nshort\nNo end here, but it is quite long\nNo! "
    found = line_statistics(text)
    assert found["lines"] == 5
    assert found["punctuated_lines"] == 1 / 5  # the space after "No!" is not taken off
    assert found["short_lines"] == 3 / 5
    assert found["duplicate_characters"] == 5 / len(text.replace("\n", ""))
    assert found["newlines_per_word"] == 6 / 21
    assert line_statistics("x" * 30 + "\n" + "x" * 31)["short_lines"] == 1 / 2
    assert line_statistics("x" * 30 + "\n" + "x" * 31, short_line=31)["short_lines"] == 1


def test_sentence_ends():
    assert all(end in SENTENCE_ENDS for end in ".!?。！？؟।") and not any(end in SENTENCE_ENDS for end in "\"'”’,;:…")
    assert len(SENTENCE_ENDS) == 159


def test_measures():
    text = "To be, or not to be.\nTo be, or not to be."
    assert TextStatistics()(text) == statistics(text) and TextStatistics().name == "statistics"
    assert LineStatistics()(text) == line_statistics(text) and LineStatistics().name == "lines"
    assert LineStatistics(10)(text) == line_statistics(text, short_line=10) and LineStatistics(10).name != "lines"
    with pytest.raises(ValueError, match="short_line: must be at least 0 characters, not -1"):
        LineStatistics(-1)


# --- plain definitions -----------------------------------------------------------------------------------------------

def plain_top(text_words, n):
    """The characters of the most frequent n-gram, by the definition."""
    counts = Counter(" ".join(text_words[i:i + n]) for i in range(len(text_words) - n + 1))
    return max((len(ngram) * count for ngram, count in counts.items() if count == max(counts.values())), default=0)


def plain_duplicates(text_words, n):
    """The characters of the n-grams that occurred before, from left to right without overlap, by the definition."""
    seen, characters, i = set(), 0, 0
    while i + n <= len(text_words):
        ngram = tuple(text_words[i:i + n])
        if ngram in seen:
            characters, i = characters + len("".join(ngram)), i + n
        else:
            seen.add(ngram)
            i += 1
    return characters


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_repeated_runs_of_words_as_defined(text_words):
    found = statistics("." * 1000, text_words)
    for n in (2, 3, 4):
        assert found[f"top_{n}_gram"] == plain_top(text_words, n) / 1000  # one-letter words: equally frequent, equal
    for n in range(5, 11):
        assert found[f"duplicate_{n}_grams"] == plain_duplicates(text_words, n) / 1000


@given(ANY | REPEATING)
def test_any_text_has_statistics(text):
    assert "".join(words(text)) == "".join(text.split())  # each character that is not white space, once
    found = {**statistics(text), **line_statistics(text)}
    assert found["words"] + found["symbols"] == len(words(text))
    for name, value in found.items():
        assert type(value) in (int, float) and math.isfinite(value) and value >= 0, name
        if type(value) is float and not name.endswith("_per_word") and "top" not in name and "mean" not in name:
            assert value <= 1, name
    assert 0 <= count_sentences(text) <= 1 + len(text)


@given(ANY | REPEATING)
def test_names_and_types_do_not_depend_on_the_text(text):
    for measure in (statistics, line_statistics):
        assert ([(name, type(value)) for name, value in measure(text).items()]
                == [(name, type(value)) for name, value in measure("Some text.").items()])
