"""Language identification on the Universal Declaration of Human Rights in 300 languages, and a model of our own."""

import gzip
import pickle
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.core.errors import UserError
from jaxgpt.curation.document import Drop, document
from jaxgpt.curation.language import Language, LanguageIdentification

# The declaration's names of languages, ISO 639-3, and py3langid's.
CODES = dict(pair.split(":") for pair in """
    afr:af amh:am arb:ar azj:az bel:be ben:bn bos:bs bre:br bul:bg cat:ca ces:cs cym:cy dan:da deu:de ekk:et ell:el
    eng:en epo:eo eus:eu fao:fo fin:fi fra:fr gle:ga glg:gl guj:gu hat:ht heb:he hin:hi hrv:hr hun:hu hye:hy ind:id
    isl:is ita:it jav:jv jpn:ja kan:kn kat:ka kaz:kk khk:mn khm:km kin:rw kir:ky kor:ko lao:lo lat:la lit:lt ltz:lb
    lvs:lv mal:ml mar:mr mkd:mk mlt:mt mly:ms nld:nl nno:nn nob:no pan:pa pes:fa plt:mg pol:pl por:pt ron:ro rus:ru
    sin:si slk:sk slv:sl sme:se spa:es sqi:sq srp:sr swe:sv swh:sw tam:ta tel:te tgl:tl tha:th tur:tr uig:ug ukr:uk
    urd:ur vie:vi wln:wa xho:xh cmn:zh zul:zu""".split())
ENGLISH = "Everyone has the right to freedom of thought, conscience and religion."
GERMAN = "Jeder hat das Recht auf Gedanken-, Gewissens- und Religionsfreiheit."


@pytest.fixture(scope="module")
def declarations(data_folder):
    """{name of a language and script: its declaration}."""
    with zipfile.ZipFile(Path(data_folder) / "langid" / "udhr2.zip") as archive:
        return {Path(name).stem: archive.read(name).decode() for name in archive.namelist() if name.endswith(".txt")}


def test_whole_declarations(declarations):
    measure, found = LanguageIdentification(), {}
    for name, text in declarations.items():
        found[name] = measure(text)["code"]
    known = {name: CODES[name[:3]] for name in declarations if name[:3] in CODES}
    wrong = {name for name in known if found[name] != known[name]}
    assert len(known) == 97 and len(set(known.values())) == 81
    assert len(wrong) <= 9, wrong  # Bosnian for Croatian, Serbian in Latin letters, Greek with all its accents, ...
    assert [name for name in found if found[name] == "en"] == ["eng", "sco"]  # and Scots


def test_single_sentences(declarations):
    """Every eighth line of 60 characters or more."""
    measure, right, known, english, others = LanguageIdentification(), 0, 0, 0, 0
    for name, text in declarations.items():
        for line in [line for line in map(str.strip, text.split("\n")) if len(line) >= 60][::8]:
            found = measure(line)
            if name[:3] in CODES:
                known, right = known + 1, right + (found["code"] == CODES[name[:3]])
            if name != "eng":
                others, english = others + 1, english + (found["code"] == "en" and found["score"] > 0.65)
    assert known > 600 and right / known > 0.90
    assert others > 2500 and english / others < 0.005


def test_english_passages_stay(data_folder):
    passages = []
    for path in sorted((Path(data_folder) / "text" / "gutenberg").glob("*.gz")):
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            text = file.read()
        passages += [text[start:start + 4000] for start in range(0, len(text) - 4000, 80_000)]
    scores = [LanguageIdentification()(passage) for passage in passages]
    assert len(passages) > 100 and {found["code"] for found in scores} == {"en"}
    assert min(found["score"] for found in scores) > 0.85


def test_a_sample_tells_the_language_of_a_long_text(declarations):
    """As surely as all of it."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier
    whole = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    long = [text for name, text in declarations.items() if name[:3] in CODES and len(text) > 9000][::3]
    same = [whole.classify(text.replace("\n", " "))[0] == LanguageIdentification()(text)["code"] for text in long]
    assert len(same) > 20 and sum(same) >= len(same) - 1
    mixed = declarations["eng"][:2000] + declarations["deu"]
    assert LanguageIdentification()(mixed[:2000])["code"] == "en" and LanguageIdentification()(mixed)["code"] == "de"


def test_the_filter():
    keeps = Language(threshold=0.5)
    kept = keeps(document(f"{ENGLISH}\n{ENGLISH}", "web"))
    assert kept.text == f"{ENGLISH}\n{ENGLISH}" and kept.scores["language"]["code"] == "en"
    assert keeps(document(GERMAN, "web")) == Drop("another language", "de")
    assert Language(languages=("de", "en"))(document(GERMAN, "web")).text == GERMAN
    assert Language(languages=None)(document(GERMAN, "web")).text == GERMAN
    assert keeps(document("", "web")).reason == keeps(document("7 + 7", "web")).reason == "language uncertain"
    score = kept.scores["language"]["score"]
    assert Language(threshold=score)(kept) == Drop("language uncertain", score)  # greater, not at least
    assert Language(threshold=score - 0.0001)(kept) is kept


def test_what_is_known_is_not_measured_again():
    known = document(GERMAN, "web").with_scores(LanguageIdentification())
    measured = Language(languages=("de",))(known)
    assert measured is known and Language().measures == (LanguageIdentification(),)
    assert pickle.loads(pickle.dumps(Language()))(known) == Drop("another language", "de")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_a_language(text):
    found = LanguageIdentification()(text)
    assert found["code"] and 0 < found["score"] <= 1 and found == LanguageIdentification()(text)


def test_a_fasttext_model(tmp_path, monkeypatch):
    """Three languages learnt from a few lines: the file that a user brings is read."""
    fasttext = pytest.importorskip("fasttext", reason="reads fastText models: pip install fasttext-numpy2-wheel")
    lines = {"en": ENGLISH, "de": GERMAN, "fr": "Toute personne a droit à la liberté de pensée et de religion."}
    (tmp_path / "lines.txt").write_text("".join(f"__label__{code} {line}\n" for code, line in lines.items()) * 50)
    trained = fasttext.train_supervised(str(tmp_path / "lines.txt"), dim=16, epoch=20, bucket=2000, minn=2, maxn=4,
                                        lr=0.5, thread=12, verbose=0)  # each thread sets a tenth of the first weights
    trained.save_model(str(tmp_path / "tiny.bin"))
    monkeypatch.setenv("MODELS", str(tmp_path))
    step = Language(model="$MODELS/tiny.bin")
    assert step(document(ENGLISH.replace("of", "of\n"), "web")).scores[step.measures[0].name]["code"] == "en"
    assert step(document(GERMAN, "web")) == Drop("another language", "de")
    assert step.measures[0].name != Language().measures[0].name
    assert 0 <= LanguageIdentification("$MODELS/tiny.bin")("\ud800")["score"] <= 1
    with pytest.raises(UserError, match="languages: .*tiny.bin knows no 'nl'; it knows de, en, fr"):
        Language(languages=("de", "nl"), model="$MODELS/tiny.bin")(document(GERMAN, "web"))


def test_a_model_that_is_not_there(tmp_path):
    (tmp_path / "text.bin").write_text("not a model")
    with pytest.raises(UserError, match="none.bin: no such language model; give model='py3langid', or the path"):
        LanguageIdentification(str(tmp_path / "none.bin"))("text")
    with pytest.raises(UserError, match="text.bin: (not a fastText classifier|to read a fastText model, pip)"):
        LanguageIdentification(str(tmp_path / "text.bin"))("text")


def test_a_language_that_the_model_does_not_know():
    with pytest.raises(UserError, match="languages: py3langid knows no 'eng'; it knows ace, af,"):
        Language(languages=("en", "eng"))(document(ENGLISH, "web"))


@pytest.mark.parametrize("settings, message", [
    (dict(languages="en"), "languages: must be codes in a tuple"), (dict(languages=()), "languages: must be"),
    (dict(threshold=1.0), "threshold: must be a probability"), (dict(threshold=-0.1), "threshold: must be"),
    (dict(model=""), "model: must be 'py3langid' or the path of a fastText model"),
])
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Language(**settings)
