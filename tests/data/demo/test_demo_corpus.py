"""The corpus of the demo: it is reproducible, leaks nothing, and its grammar is right."""

import hashlib
import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List

import pytest

from luna_fairseq import cli
from luna_fairseq.data.demo.clauses import Clause
from luna_fairseq.data.demo.corpus import generate
from luna_fairseq.data.demo.grammar import Grammar
from luna_fairseq.data.demo.inflection import contract, number_de, number_en
from luna_fairseq.data.demo.lexicon import rows
from luna_fairseq.data.demo.phrases import noun_phrase
from luna_fairseq.data.demo.sentences import Sentences
from luna_fairseq.data.demo.words import IRREGULAR, WAS, Pair
from support.trees import snapshot

SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, List[str]]:
    """The corpus of the default size: ``train.en`` and so on."""
    out = tmp_path_factory.mktemp("corpus")
    assert cli.main(["prepare", "demo", str(out)]) == 0
    files = [f"{split}.{lang}" for split in SPLITS for lang in ("en", "de")]
    assert sorted(path.name for path in out.iterdir()) == sorted([*files, "settings.json"])
    return {name: (out / name).read_text(encoding="utf-8").splitlines() for name in files}


@pytest.fixture(scope="module")
def grammar() -> Any:
    return Grammar(random.Random(0))


def noun(grammar: Any, name: str) -> Any:
    return next(noun for noun in [*grammar.simple, *grammar.compounds] if noun.en == name)


def verb(grammar: Any, name: str) -> Any:
    tables = (grammar.transitive, grammar.dative, grammar.ditransitive, grammar.intransitive, grammar.motion)
    return next(verb for table in tables for verb in table if verb.en == name)


def pronoun(grammar: Any, name: str) -> Any:
    return next(phrase for phrase in grammar.pronouns if phrase.en == name)


def phrase(grammar: Any, name: str, determiner: str, plural: bool = False, adjective: str = "") -> Any:
    found = next((a for a in grammar.adjectives if a.en == adjective), None)
    assert bool(found) == bool(adjective)
    return noun_phrase(noun(grammar, name), determiner, plural, found)


# ------------------------------------------------------------------------------------------ the corpus
def test_sizes_and_distinctness(corpus: Dict[str, List[str]]) -> None:
    assert [len(corpus[f"{split}.en"]) for split in SPLITS] == [24000, 500, 500]
    for lang in ("en", "de"):
        sentences = [s for split in SPLITS for s in corpus[f"{split}.{lang}"]]
        assert len(sentences) == 25000
        # Distinct over all splits, so nothing of valid or test is in train.
        assert len(set(sentences)) == 25000


def test_vocabulary(corpus: Dict[str, List[str]]) -> None:
    for lang in ("en", "de"):
        counts: Dict[str, int] = {}
        for sentence in corpus[f"train.{lang}"]:
            for word in sentence.split():
                word = word.strip(".,?").lower()
                counts[word] = counts.get(word, 0) + 1
        assert sum(count >= 20 for count in counts.values()) >= 300


def test_plain_text(corpus: Dict[str, List[str]]) -> None:
    for name, sentences in corpus.items():
        for sentence in sentences:
            assert sentence[0].isupper(), (name, sentence)
            assert sentence[-1] in ".?", (name, sentence)
            assert sentence == " ".join(sentence.split()), (name, sentence)
            assert not set(sentence) & set("|*_/0123456789"), (name, sentence)
            assert " ." not in sentence, (name, sentence)
            assert " ," not in sentence, (name, sentence)


def test_seed_decides(tmp_path: Path) -> None:
    sizes = ["--train", "200", "--valid", "20", "--test", "20"]
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert cli.main(["prepare", "demo", str(tmp_path / name), "--seed", seed, *sizes]) == 0
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        assert file.read_bytes() != (tmp_path / "c" / file.name).read_bytes()


def test_another_corpus_does_not_take_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same one does: an interrupted command is given again."""
    sizes = ["--valid", "2", "--test", "2"]
    for _ in range(2):
        assert cli.main(["prepare", "demo", str(tmp_path / "text"), "--train", "20", *sizes]) == 0
    before = snapshot(tmp_path)
    assert cli.main(["prepare", "demo", str(tmp_path / "text"), "--train", "30", *sizes]) == 1
    said = f"{tmp_path}/text was begun with train 20, not 30: repeat it, or name another folder"
    assert capsys.readouterr().err == f"luna-fairseq prepare demo: {said}\n"
    assert snapshot(tmp_path) == before


def test_a_seed_keeps_its_sentences() -> None:
    """What a seed gives is part of the demo: its checkpoints go on only with the same data."""
    lines = "".join(f"{pair.en}\t{pair.de}\n" for pair in generate(300, 1))
    assert (
        hashlib.sha256(lines.encode()).hexdigest()
        == "ef0c7d8a5b24f85de98c4b2f1fc4237691de5410d41fa7ca4e522b8dc1a7736e"
    )


def test_one_translation_for_every_sentence(grammar: Any) -> None:
    """Over several seeds together: generate() sees only one of them."""
    translations: Dict[str, str] = {}
    for seed in range(3):
        for pair in generate(4000, seed):
            assert translations.setdefault(pair.en, pair.de) == pair.de


def test_two_translations_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([Pair("A.", "B."), Pair("A.", "C.")])
    monkeypatch.setattr(Sentences, "sentence", lambda self: next(answers))
    with pytest.raises(RuntimeError, match=r"two translations of 'A\."):
        generate(2, 1)


def test_running_out_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sentences, "sentence", lambda self: Pair("A.", "B."))
    with pytest.raises(RuntimeError, match="only 1 distinct pairs"):
        generate(2, 1)


def test_articles_fit_everywhere(corpus: Dict[str, List[str]]) -> None:
    for sentence in corpus["train.en"]:
        found = sentence.lower().split()
        for article, word in itertools.pairwise(found):
            vowel = (word[0] in "aeiou" and not word.startswith("univ")) or word.startswith("honest")
            assert not (article == "a" and vowel), sentence
            assert not (article == "an" and not vowel), sentence


def test_subordinate_clauses_end_in_a_finite_verb(corpus: Dict[str, List[str]], grammar: Any) -> None:
    finite = set(WAS)
    for forms in IRREGULAR.values():
        finite.update(forms)
    for modal in grammar.modals:
        finite.update(modal.de)
    tables = (grammar.transitive, grammar.dative, grammar.ditransitive, grammar.intransitive, grammar.motion)
    others = (grammar.placement, grammar.posture, [grammar.own])
    for word in (word for table in (*tables, *others) for word in table):
        finite.update(word.prefix + word.present(slot) for slot in range(5))
    seen = 0
    for sentence in corpus["train.de"]:
        for conjunction in (", weil ", ", dass ", ", obwohl ", ", ob "):
            if conjunction in sentence:
                seen += 1
                assert sentence.rstrip(".").split()[-1] in finite, sentence
    assert seen > 3000


# ----------------------------------------------------------------------------------------- the grammar
@pytest.mark.parametrize(
    ("value", "english", "german"),
    [
        (2, "two", "zwei"),
        (12, "twelve", "zwölf"),
        (16, "sixteen", "sechzehn"),
        (17, "seventeen", "siebzehn"),
        (21, "twenty-one", "einundzwanzig"),
        (23, "twenty-three", "dreiundzwanzig"),
        (30, "thirty", "dreißig"),
        (47, "forty-seven", "siebenundvierzig"),
        (99, "ninety-nine", "neunundneunzig"),
    ],
)
def test_number_words(value: int, english: str, german: str) -> None:
    assert number_en(value) == english
    assert number_de(value) == german


@pytest.mark.parametrize(
    ("name", "determiner", "plural", "adjective", "english", "german"),
    [
        ("table", "the", False, "", "the table", "der Tisch, den Tisch, dem Tisch"),
        ("lamp", "the", False, "", "the lamp", "die Lampe, die Lampe, der Lampe"),
        ("apple", "a", False, "", "an apple", "ein Apfel, einen Apfel, einem Apfel"),
        ("university", "a", False, "", "a university", "eine Universität, eine Universität, einer Universität"),
        ("house", "a", False, "old", "an old house", "ein altes Haus, ein altes Haus, einem alten Haus"),
        ("dog", "a", False, "big", "a big dog", "ein großer Hund, einen großen Hund, einem großen Hund"),
        ("dog", "the", False, "big", "the big dog", "der große Hund, den großen Hund, dem großen Hund"),
        ("egg", "my", False, "warm", "my warm egg", "mein warmes Ei, mein warmes Ei, meinem warmen Ei"),
        (
            "son",
            "3",
            True,
            "sad",
            "three sad sons",
            "drei traurige Söhne, drei traurige Söhne, drei traurigen Söhnen",
        ),
        ("car", "many", True, "", "many cars", "viele Autos, viele Autos, vielen Autos"),
        ("knife", "this", True, "", "these knives", "diese Messer, diese Messer, diesen Messern"),
        ("boy", "every", False, "", "every boy", "jeder Junge, jeden Jungen, jedem Jungen"),
        ("bear", "our", False, "", "our bear", "unser Bär, unseren Bären, unserem Bären"),
        ("wine", "", False, "expensive", "expensive wine", "teurer Wein, teuren Wein, teurem Wein"),
        ("milk", "", False, "cold", "cold milk", "kalte Milch, kalte Milch, kalter Milch"),
        # The last part of a compound decides.
        ("kitchen table", "the", False, "", "the kitchen table", "der Küchentisch, den Küchentisch, dem Küchentisch"),
        ("wine bottle", "the", False, "", "the wine bottle", "die Weinflasche, die Weinflasche, der Weinflasche"),
        ("apple cake", "a", False, "", "an apple cake", "ein Apfelkuchen, einen Apfelkuchen, einem Apfelkuchen"),
    ],
)
def test_noun_phrases(
    grammar: Any, name: str, determiner: str, plural: bool, adjective: str, english: str, german: str
) -> None:
    got = phrase(grammar, name, determiner, plural, adjective)
    assert got.en == english
    assert list(got.de.values()) == german.split(", ")


def test_every_compound_has_the_gender_of_its_head(grammar: Any) -> None:
    assert len(grammar.compounds) > 80
    for word in grammar.compounds:
        head = noun(grammar, word.en.split()[-1])
        assert word.gender == head.gender
        assert word.de.endswith(head.de.lower())


def test_no_head_of_a_compound_is_misspelt(grammar: Any) -> None:
    heads = [head for row in rows("compounds") for head in row[2].split()]
    assert {head for head in heads if head not in grammar.by_name} == set()
    assert set(grammar.places) <= set(grammar.by_name)


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("see", "sehe siehst sieht sehen sehen"),
        ("find", "finde findest findet finden finden"),
        ("read", "lese liest liest lesen lesen"),
        ("close", "schließe schließt schließt schließen schließen"),
        ("invite", "lade lädst lädt laden laden"),
        ("wash", "wasche wäschst wäscht waschen waschen"),
        ("dance", "tanze tanzt tanzt tanzen tanzen"),
    ],
)
def test_german_present(grammar: Any, name: str, forms: str) -> None:
    assert [verb(grammar, name).present(slot) for slot in range(5)] == forms.split()


def test_word_order_of_a_separable_verb(grammar: Any) -> None:
    clause = Clause(
        phrase(grammar, "aunt", "the"),
        verb(grammar, "call"),
        "present",
        ((phrase(grammar, "doctor", "the"), "acc"),),
        time=Pair("today", "heute"),
    )
    assert clause.english() == "the aunt calls the doctor today"
    assert clause.german() == "die Tante ruft heute den Arzt an"
    assert clause.german("time") == "heute ruft die Tante den Arzt an"
    assert clause.german_subordinate() == "die Tante heute den Arzt anruft"
    assert clause.german_infinitive() == "heute den Arzt anzurufen"
    assert clause.english_question() == "does the aunt call the doctor today"
    assert clause.german(after=True) == "ruft die Tante heute den Arzt an"


@pytest.mark.parametrize(
    ("tense", "modal", "english", "german", "subordinate"),
    [
        ("present", None, "goes to the station", "geht zum Bahnhof", "zum Bahnhof geht"),
        ("past", None, "went to the station", "ist zum Bahnhof gegangen", "zum Bahnhof gegangen ist"),
        ("perfect", None, "has gone to the station", "ist zum Bahnhof gegangen", "zum Bahnhof gegangen ist"),
        ("future", None, "will go to the station", "wird zum Bahnhof gehen", "zum Bahnhof gehen wird"),
        ("present", "must", "must go to the station", "muss zum Bahnhof gehen", "zum Bahnhof gehen muss"),
        ("present", "*want to", "wants to go to the station", "will zum Bahnhof gehen", "zum Bahnhof gehen will"),
        ("past", "*have to", "had to go to the station", "musste zum Bahnhof gehen", "zum Bahnhof gehen musste"),
    ],
)
def test_tenses_and_modals(grammar: Any, tense: str, modal: Any, english: str, german: str, subordinate: str) -> None:
    found = next((m for m in grammar.modals if m.en == modal and m.past == (tense == "past")), None)
    assert (found is None) == (modal is None)
    place = Pair("to the station", contract("zu dem Bahnhof"))
    clause = Clause(pronoun(grammar, "she"), verb(grammar, "go"), tense, modal=found, place=place)
    assert clause.english() == f"she {english}"
    assert clause.german() == f"sie {german}"
    assert clause.german_subordinate() == f"sie {subordinate}"


def test_nicht_and_kein(grammar: Any) -> None:
    def clause(determiner: str, tense: str = "present") -> Any:
        goods = phrase(grammar, "table", determiner, False, "old")
        return Clause(pronoun(grammar, "he"), verb(grammar, "buy"), tense, ((goods, "acc"),), negative=True)

    assert clause("a").english() == "he does not buy an old table"
    assert clause("a").german() == "er kauft keinen alten Tisch"
    assert clause("the").german() == "er kauft den alten Tisch nicht"
    assert clause("the", "past").english() == "he did not buy the old table"
    assert clause("the", "past").german() == "er hat den alten Tisch nicht gekauft"
    must = replace(clause("the"), modal=next(m for m in grammar.modals if m.en == "must"))
    assert must.english() == "he does not have to buy the old table"
    assert must.german() == "er muss den alten Tisch nicht kaufen"
    can = replace(clause("a"), modal=next(m for m in grammar.modals if m.en == "can"))
    assert can.english() == "he cannot buy an old table"
    assert can.german() == "er kann keinen alten Tisch kaufen"


def test_cases_of_objects(grammar: Any) -> None:
    gives = Clause(
        pronoun(grammar, "I"),
        verb(grammar, "give"),
        "present",
        ((pronoun(grammar, "she"), "dat"), (phrase(grammar, "key", "a"), "acc")),
    )
    assert gives.english() == "I give her a key"
    assert gives.german() == "ich gebe ihr einen Schlüssel"
    helps = Clause(pronoun(grammar, "you"), verb(grammar, "help"), "present", ((pronoun(grammar, "he"), "dat"),))
    assert helps.english() == "you help him"
    assert helps.german() == "du hilfst ihm"


def test_be(grammar: Any) -> None:
    tired = Pair("tired", "müde")
    clause = Clause(pronoun(grammar, "you"), None, "past", predicate=tired, negative=True)
    assert clause.english() == "you were not tired"
    assert clause.german() == "du warst nicht müde"
    assert clause.german_subordinate() == "du nicht müde warst"
    assert Clause(pronoun(grammar, "I"), None, "present", predicate=tired).english_question() == "am I tired"


def test_bad_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["prepare", "demo", str(tmp_path / "out"), "--train", "0"])
    assert "must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
