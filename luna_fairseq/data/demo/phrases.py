"""Phrases in both languages, in every German case."""

from dataclasses import dataclass, field

from luna_fairseq.data.demo.inflection import (
    CASES,
    DEFINITE,
    EIN,
    MIXED,
    STRONG,
    WEAK,
    article_en,
    join,
    number_de,
    number_en,
)
from luna_fairseq.data.demo.lexicon import rows
from luna_fairseq.data.demo.words import Adjective, Noun

POSSESSIVES = dict(rows("possessives"))


@dataclass(frozen=True)
class Phrase:
    """A subject or object.

    ``kind`` decides where German puts it: pronoun, definite, indefinite or counted. ``negated`` are the
    forms with kein, which stand for "not ... a".
    """

    en: str
    en_object: str
    de: dict[str, str]
    slot: int
    kind: str
    negated: dict[str, str] = field(default_factory=dict)
    noun: Noun | None = None


def noun_phrase(noun: Noun, determiner: str, plural: bool = False, adjective: Adjective | None = None) -> Phrase:
    """A noun with its determiner and adjective, in every case.

    Args:
        noun: the noun.
        determiner: the, a, this, every, many, a possessive (my ...), a number in digits, or nothing.
        plural: whether it is plural (with many, a number or nothing before what can be counted, say so).
        adjective: an adjective in front of the noun.
    """
    gender = "p" if plural else noun.gender
    english = join(adjective.en if adjective else "", noun.en_plural if plural else noun.en)
    kind, en_determiner = "definite", determiner
    if determiner == "a":
        kind, en_determiner = "indefinite", article_en(english)
    elif determiner in ("", "every", "many"):
        kind = "indefinite" if not determiner else "counted"
    elif determiner.isdigit():
        kind, en_determiner = "counted", number_en(int(determiner))
    elif determiner == "this" and plural:
        en_determiner = "these"
    forms, negated = {}, {}
    for case in CASES:
        if determiner == "the":
            article, endings = DEFINITE[gender][case], WEAK
        elif determiner in ("this", "every"):
            article, endings = {"this": "dies", "every": "jed"}[determiner] + STRONG[gender][case], WEAK
        elif determiner == "a":
            article, endings = "ein" + EIN[gender][case], MIXED
        elif determiner in POSSESSIVES:
            article, endings = POSSESSIVES[determiner] + EIN[gender][case], MIXED
            if article.startswith("unsere"):
                article = "unser" + EIN[gender][case]
        elif determiner == "many":
            article, endings = "viele" + ("n" if case == "dat" else ""), STRONG
        else:
            article, endings = number_de(int(determiner)) if determiner else "", STRONG
        word = noun.german(case, plural)
        forms[case] = join(article, adjective.stem + endings[gender][case] if adjective else "", word)
        no = "kein" + EIN[gender][case]
        negated[case] = join(no, adjective.stem + MIXED[gender][case] if adjective else "", word)
    english = join(en_determiner, english)
    return Phrase(english, english, forms, 4 if plural else 2, kind, negated if kind == "indefinite" else {}, noun)


def pronouns() -> list[Phrase]:
    """All personal pronouns."""
    phrases = []
    for english, german, slot in rows("pronouns"):
        subject, obj = english.split(", ")
        phrases.append(Phrase(subject, obj, dict(zip(CASES, german.split(", "), strict=True)), int(slot), "pronoun"))
    return phrases
