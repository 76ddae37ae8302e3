"""Words in both languages, and how they are read from the lexicon."""

from dataclasses import dataclass, replace

from luna_fairseq.data.demo.inflection import add_s
from luna_fairseq.data.demo.lexicon import rows

# German forms for ich, du, er, wir and sie.
IRREGULAR = {infinitive: tuple(forms.split(", ")) for infinitive, forms in rows("irregular presents")}
WAS = tuple(rows("past of sein")[0][0].split(", "))


@dataclass(frozen=True)
class Pair:
    """An adverbial or predicate in both languages."""

    en: str
    de: str


@dataclass(frozen=True)
class Noun:
    """A noun in both languages; ``plural`` is empty for what cannot be counted."""

    en: str
    en_plural: str
    de: str
    gender: str
    plural: str
    weak: str
    tags: frozenset[str]

    def german(self, case: str, plural: bool) -> str:
        """The form for a case."""
        if plural:
            ending = "n" if case == "dat" and not self.plural.endswith(("n", "s")) else ""
            return self.plural + ending
        return self.de + (self.weak if case != "nom" else "")


@dataclass(frozen=True)
class Adjective:
    """An adjective; ``stem`` is what German endings are added to."""

    en: str
    de: str
    stem: str
    tags: frozenset[str]


@dataclass(frozen=True)
class Verb:
    """A verb in both languages."""

    en: str
    past: str
    participle: str
    infinitive: str
    er: str
    partizip: str
    aux: str
    subjects: frozenset[str]
    objects: frozenset[str]
    prefix: str = ""

    def present(self, slot: int) -> str:
        """The German present without the separable prefix, for ich, du, er, wir or sie."""
        if self.infinitive in IRREGULAR:
            return IRREGULAR[self.infinitive][slot]
        if slot == 0:
            return self.infinitive.removesuffix("n").removesuffix("e") + "e"
        if slot == 1:
            stem = self.er.removesuffix("t")
            return self.er if stem.endswith(("s", "ß", "z")) else stem + "st"
        return self.er if slot == 2 else self.infinitive


@dataclass(frozen=True)
class Modal:
    """A modal verb: English with and without negation, German forms."""

    en: str
    en_negative: str
    de: tuple[str, ...]
    past: bool


def pairs(section: str) -> list[Pair]:
    """The adverbials, prepositions or question words of a section."""
    return [Pair(english, german) for english, german in rows(section)]


def nouns() -> dict[str, Noun]:
    """All nouns that are not compounds, by their English names."""
    found = {}
    for names, de, gender, forms, tags in rows("nouns"):
        en, _, en_plural = names.partition("/")
        plural, _, weak = forms.partition(", ")
        found[en] = Noun(en, en_plural or add_s(en), de, gender, plural, weak, frozenset(tags.split()))
    for en, de, gender in rows("mass nouns"):
        found[en] = Noun(en, "", de, gender, "", "", frozenset(["drink"]))
    return found


def compounds(simple: dict[str, Noun]) -> list[Noun]:
    """All compounds, made of simple nouns."""
    return [
        compound(modifier, first, simple[head])
        for modifier, first, heads in rows("compounds")
        for head in heads.split()
    ]


def compound(modifier: str, first: str, head: Noun) -> Noun:
    """``kitchen``, ``Küchen`` and the noun table -> the noun Küchentisch; all but the front is the head's."""
    return replace(
        head,
        en=f"{modifier} {head.en}",
        en_plural=f"{modifier} {head.en_plural}" if head.en_plural else "",
        de=first + head.de.lower(),
        plural=first + head.plural.lower() if head.plural else "",
    )


def adjectives() -> list[Adjective]:
    """All adjectives."""
    return [
        Adjective(en, de.partition("/")[0], de.partition("/")[2] or de, frozenset(tags.split()))
        for en, de, tags in rows("adjectives")
    ]


def verbs(section: str) -> list[Verb]:
    """The verbs of a section."""
    found = []
    for english, german, subjects, *objects in rows(section):
        en, past, participle = english.split(", ")
        infinitive, er, partizip, *aux = german.split(", ")
        prefix, _, base = infinitive.rpartition("|")
        who, whom = (frozenset(cell.rstrip(" |").split()) for cell in (subjects, *objects, "")[:2])
        helper = aux[0] if aux else "haben"
        found.append(Verb(en, past, participle, base, er, partizip, helper, who, whom, prefix))
    return found


def modals(section: str, past: bool) -> list[Modal]:
    """The modal verbs of a section."""
    return [Modal(en, negative, tuple(forms.split(", ")), past) for en, negative, forms in rows(section)]
