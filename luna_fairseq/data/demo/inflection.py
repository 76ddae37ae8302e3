"""Endings, articles, plurals and number words of English and German."""

from luna_fairseq.data.demo.lexicon import rows

# Keys are gender (p for every plural), then case.
DEFINITE = {
    "m": {"nom": "der", "acc": "den", "dat": "dem"},
    "f": {"nom": "die", "acc": "die", "dat": "der"},
    "n": {"nom": "das", "acc": "das", "dat": "dem"},
    "p": {"nom": "die", "acc": "die", "dat": "den"},
}
# Endings of ein, kein and the possessives, and of an adjective after them.
EIN = {
    "m": {"nom": "", "acc": "en", "dat": "em"},
    "f": {"nom": "e", "acc": "e", "dat": "er"},
    "n": {"nom": "", "acc": "", "dat": "em"},
    "p": {"nom": "e", "acc": "e", "dat": "en"},
}
MIXED = {
    "m": {"nom": "er", "acc": "en", "dat": "en"},
    "f": {"nom": "e", "acc": "e", "dat": "en"},
    "n": {"nom": "es", "acc": "es", "dat": "en"},
    "p": {"nom": "en", "acc": "en", "dat": "en"},
}
# After der and dieser.
WEAK = {
    "m": {"nom": "e", "acc": "en", "dat": "en"},
    "f": {"nom": "e", "acc": "e", "dat": "en"},
    "n": {"nom": "e", "acc": "e", "dat": "en"},
    "p": {"nom": "en", "acc": "en", "dat": "en"},
}
# Without an article, after a number and after viele; also the endings of dieser and jeder.
STRONG = {
    "m": {"nom": "er", "acc": "en", "dat": "em"},
    "f": {"nom": "e", "acc": "e", "dat": "er"},
    "n": {"nom": "es", "acc": "es", "dat": "em"},
    "p": {"nom": "e", "acc": "e", "dat": "en"},
}
CASES = ("nom", "acc", "dat")
CONTRACTIONS = {"in dem": "im", "an dem": "am", "zu dem": "zum", "zu der": "zur", "in das": "ins", "an das": "ans"}
NUMBERS_EN = {int(value): english for value, english, _ in rows("numbers")}
NUMBERS_DE = {int(value): german for value, _, german in rows("numbers")}


def number_en(value: int) -> str:
    """An English number word, 0 to 99: ``twenty-three``."""
    if value in NUMBERS_EN:
        return NUMBERS_EN[value]
    ones = value % 10
    return f"{NUMBERS_EN[value - ones]}-{NUMBERS_EN[ones]}"


def number_de(value: int) -> str:
    """A German number word, 0 to 99: ``dreiundzwanzig``."""
    if value in NUMBERS_DE:
        return NUMBERS_DE[value]
    ones = value % 10
    return ("ein" if ones == 1 else NUMBERS_DE[ones]) + "und" + NUMBERS_DE[value - ones]


def article_en(following: str) -> str:
    """``a`` or ``an``, by the sound that the next word begins with."""
    if following.startswith("honest"):
        return "an"
    return "an" if following[0] in "aeiou" and not following.startswith("uni") else "a"


def add_s(word: str) -> str:
    """The regular -s of English plurals and third persons; a verb's particle stays behind it."""
    head, _, rest = word.partition(" ")
    if head == "have":
        head = "has"
    elif head.endswith(("s", "x", "ch", "sh", "go")):
        head += "es"
    elif head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ies"
    else:
        head += "s"
    return f"{head} {rest}" if rest else head


def join(*parts: str) -> str:
    """The parts that are not empty, with spaces between."""
    return " ".join(part for part in parts if part)


def contract(german: str) -> str:
    """``in dem Garten`` -> ``im Garten``."""
    for long, short in CONTRACTIONS.items():
        if german.startswith(long + " "):
            return short + german[len(long) :]
    return german
