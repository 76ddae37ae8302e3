"""Draws random sentences, each with its one translation."""

import random
from collections.abc import Callable
from dataclasses import replace

from luna_fairseq.data.demo.clauses import Clause
from luna_fairseq.data.demo.grammar import Grammar
from luna_fairseq.data.demo.inflection import DEFINITE, join, number_de, number_en
from luna_fairseq.data.demo.phrases import POSSESSIVES, Phrase, noun_phrase
from luna_fairseq.data.demo.words import Pair


class Sentences(Grammar):
    """Draws random sentences. The same ``rng`` state gives the same sentences."""

    def __init__(self, rng: random.Random):
        super().__init__(rng)
        # How often each kind is drawn.
        self.sentences: list[tuple[int, Callable[[], Pair]]] = [
            (26, self.statement),
            (10, self.question),
            (15, self.with_conjunction),
            (8, self.conjunction_first),
            (12, self.with_that),
            (8, self.coordinated),
            (6, self.with_it),
            (4, self.relative),
            (4, self.infinitive),
            (4, self.there_is),
            (3, self.amount),
        ]

    def statement(self) -> Pair:
        """A main clause, often with time or place in front of it."""
        clause = self.clause(adverbials=0.65)
        fronts = [name for name in ("time", "place") if getattr(clause, name)]
        if clause.verb in (*self.motion, *self.placement, None) and "place" in fronts:
            fronts.remove("place")
        front = self.rng.choice(fronts) if fronts and self.maybe(0.5) else ""
        return _finish(clause.english(front), clause.german(front))

    def question(self) -> Pair:
        """A question, with or without a question word."""
        clause = replace(self.clause(adverbials=0.3), negative=False)
        if clause.frequency and clause.frequency.en == "never":
            clause = replace(clause, frequency=None)
        if self.maybe(0.5):
            return _finish(clause.english_question(), clause.german(after=True), "?")
        word = self.rng.choice(self.questions)
        if word.en == "where":
            if clause.verb is None or clause.verb in (*self.motion, *self.placement, *self.posture):
                word = self.questions[2]
            else:
                clause = replace(clause, place=None)
        if word.en == "when":
            clause = replace(clause, time=None)
        return _finish(clause.english_question(word.en), f"{word.de} {clause.german(after=True)}", "?")

    def conjunction(self) -> tuple[Pair, Clause, Clause]:
        """A conjunction, and a main and a subordinate clause whose tenses go with it."""
        word = self.rng.choice(
            (Pair("because", "weil"), Pair("although", "obwohl"), Pair("when", "wenn"), Pair("if", "wenn"))
        )
        tense = self.rng.choice(("present", "past"))
        if word.en == "if":
            tense = "present"
        elif word.en == "when" and tense == "past":
            word = Pair("when", "als")
        main = self.clause(tense, adverbials=0.2)
        inner = self.clause(tense, pronouns=0.6, adverbials=0.2)
        return word, main, inner

    def with_conjunction(self) -> Pair:
        """A main clause, then a subordinate one."""
        word, main, inner = self.conjunction()
        return _finish(
            f"{main.english()} {word.en} {inner.english()}",
            f"{main.german()}, {word.de} {inner.german_subordinate()}",
        )

    def conjunction_first(self) -> Pair:
        """A subordinate clause, then the main one, which begins with its verb in German."""
        word, main, inner = self.conjunction()
        return _finish(
            f"{word.en} {inner.english()}, {main.english()}",
            f"{word.de} {inner.german_subordinate()}, {main.german(after=True)}",
        )

    def with_that(self) -> Pair:
        """``She knows that ...`` and ``he asks whether ...``."""
        asks = self.maybe(0.25)
        verb = self.rng.choice(self.whether_verbs if asks else self.that_verbs)
        tense = self.rng.choice(("present", "present", "past"))
        outer = Clause(self.subject(verb.subjects, 0.6), verb, tense)
        inner = self.clause("past" if tense == "past" else "", pronouns=0.5, adverbials=0.25)
        word = Pair("whether", "ob") if asks else Pair("that", "dass")
        return _finish(
            f"{outer.english()} {word.en} {inner.english()}",
            f"{outer.german()}, {word.de} {inner.german_subordinate()}",
        )

    def coordinated(self) -> Pair:
        """Two main clauses with and, but or or."""
        word = self.rng.choice((Pair(" and", " und"), Pair(", but", ", aber"), Pair(" or", " oder")))
        tense = self.rng.choice(("present", "past", "future"))
        first = self.clause(tense, adverbials=0.1)
        second = self.clause(tense, adverbials=0.2)
        return _finish(
            f"{first.english()}{word.en} {second.english()}", f"{first.german()}{word.de} {second.german()}"
        )

    def with_it(self) -> Pair:
        """``The table is old, but she needs it``: in German the pronoun has the gender of the noun."""
        noun = self.noun(frozenset(["thing", "food"]))
        determiner = self.rng.choice(("the", "the", "this", *POSSESSIVES))
        plural = self.maybe(0.2)
        thing = noun_phrase(noun, determiner, plural)
        adjective = self.adjective(noun)
        first = Clause(thing, None, "present", predicate=Pair(adjective.en, adjective.de))
        verb = self.rng.choice([verb for verb in self.transitive if verb.objects & noun.tags])
        accusative = "sie" if plural else {"m": "ihn", "f": "sie", "n": "es"}[noun.gender]
        word = "them" if plural else "it"
        pronoun = Phrase(word, word, {"acc": accusative}, 2, "pronoun")
        second = Clause(self.subject(frozenset(["person"]), 0.6), verb, "present", ((pronoun, "acc"),))
        modal = self.maybe(0.4)
        if modal:
            second = replace(second, modal=self.rng.choice([modal for modal in self.modals if not modal.past]))
        if self.maybe(0.3):
            second = replace(second, negative=True)
        if self.maybe(0.5):
            return _finish(f"{first.english()}, but {second.english()}", f"{first.german()}, aber {second.german()}")
        return _finish(f"{first.english()} and {second.english()}", f"{first.german()} und {second.german()}")

    def relative(self) -> Pair:
        """A relative clause about the object: ``I know the man who sleeps in the garden``."""
        verb = self.rng.choice([verb for verb in self.transitive if "person" in verb.objects])
        noun = self.noun(frozenset(["person"]))
        plural = self.maybe(0.25)
        adjective = self.adjective(noun) if self.maybe(0.3) else None
        phrase = noun_phrase(noun, "the" if plural or self.maybe(0.7) else "a", plural, adjective)
        tense = self.rng.choice(("present", "past", "future"))
        main = Clause(self.subject(verb.subjects, 0.6), verb, tense, ((phrase, "acc"),))
        who = Phrase("who", "", DEFINITE["p" if plural else noun.gender], phrase.slot, "pronoun", noun=noun)
        inner = self.clause(subject=who, adverbials=0.3)
        return _finish(f"{main.english()} {inner.english()}", f"{main.german()}, {inner.german_subordinate()}")

    def infinitive(self) -> Pair:
        """``He tries to call the doctor``."""
        verb = self.rng.choice(self.infinitive_verbs)
        tense = self.rng.choice(("present", "past", "future"))
        outer = Clause(self.subject(verb.subjects, 0.5), verb, tense)
        inner = self.bare_clause(outer.subject)
        while inner.verb in (None, self.own):
            inner = self.bare_clause(outer.subject)
        assert inner.verb is not None
        comma = "," if inner.middle_de() else ""  # none before a bare infinitive: "beginnt zu rauchen"
        return _finish(
            join(outer.english(), "to", inner.verb.en, inner.tail_en()),
            f"{outer.german()}{comma} {inner.german_infinitive()}",
        )

    def there_is(self) -> Pair:
        """``There is no lamp in the kitchen``."""
        place = self.place_phrase()
        thing = self.phrase(frozenset(["thing", "animal"]), "a a 2 bare")
        while thing.en.startswith("every "):
            thing = self.phrase(frozenset(["thing", "animal"]), "a a 2 bare")
        plural = thing.slot == 4
        if thing.negated and self.maybe(0.35):
            english = thing.en.removeprefix("an ").removeprefix("a ")
            english, german = f"no {english}", thing.negated["acc"]
        else:
            english, german = thing.en, thing.de["acc"]
        be = "are" if plural else "is"
        return _finish(f"there {be} {english} {place.en}", f"{place.de} gibt es {german}")

    def amount(self) -> Pair:
        """Ages and prices in number words."""
        value = self.rng.randint(2, 99)
        if self.maybe(0.5):
            who = self.subject(frozenset(["person"]), 0.4)
            clause = Clause(
                who,
                None,
                self.rng.choice(("present", "past", "future")),
                predicate=Pair(f"{number_en(value)} years old", f"{number_de(value)} Jahre alt"),
            )
            return _finish(clause.english(), clause.german())
        thing = self.phrase(frozenset(["thing", "food"]), "the my this")
        clause = Clause(
            thing, self.cost, "present", predicate=Pair(f"{number_en(value)} euros", f"{number_de(value)} Euro")
        )
        return _finish(clause.english(), clause.german())

    def sentence(self) -> Pair:
        """Any sentence."""
        weights, makers = zip(*self.sentences, strict=True)
        return self.rng.choices(makers, weights)[0]()


def _finish(english: str, german: str, mark: str = ".") -> Pair:
    return Pair(english[0].upper() + english[1:] + mark, german[0].upper() + german[1:] + mark)
