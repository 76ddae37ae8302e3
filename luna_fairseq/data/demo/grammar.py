"""Draws random phrases and clauses, whose words go together."""

import random
from collections.abc import Sequence
from dataclasses import replace

from luna_fairseq.data.demo.clauses import Clause
from luna_fairseq.data.demo.inflection import CASES, contract, number_de, number_en
from luna_fairseq.data.demo.lexicon import rows
from luna_fairseq.data.demo.phrases import POSSESSIVES, Phrase, noun_phrase, pronouns
from luna_fairseq.data.demo.words import (
    Adjective,
    Noun,
    Pair,
    Verb,
    adjectives,
    compounds,
    modals,
    nouns,
    pairs,
    verbs,
)


class Grammar:
    """Draws random phrases and clauses. The same ``rng`` state gives the same ones."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.by_name = nouns()
        self.simple = list(self.by_name.values())
        self.compounds = compounds(self.by_name)
        self.adjectives = adjectives()
        self.states = {adjective.en for adjective in self.adjectives if "state" in adjective.tags}
        self.places = {row[0]: row[1:] for row in rows("places")}
        self.transitive, self.dative = verbs("transitive verbs"), verbs("dative verbs")
        self.ditransitive, self.intransitive = verbs("ditransitive verbs"), verbs("intransitive verbs")
        self.motion, self.posture = verbs("verbs of motion"), verbs("verbs of posture")
        self.placement = verbs("verbs of placement")
        self.that_verbs, self.whether_verbs = verbs("verbs with that"), verbs("verbs with whether")
        self.infinitive_verbs = verbs("verbs with an infinitive")
        self.own, self.cost = verbs("to have")[0], verbs("to cost")[0]
        self.modals = modals("modals", past=False) + modals("past modals", past=True)
        self.pronouns = pronouns()
        self.names = [name for (name,) in rows("first names")]
        self.two_way, self.frequencies = pairs("two-way prepositions"), pairs("frequencies")
        self.questions, self.units = pairs("question words"), pairs("units of time")
        self.times = [(Pair(en, de), frozenset(tenses.split())) for en, de, tenses in rows("times")]

    def maybe(self, probability: float) -> bool:
        """True with this probability."""
        return self.rng.random() < probability

    def noun(self, tags: frozenset[str]) -> Noun:
        """A noun with one of the tags, now and then a compound."""
        if self.maybe(0.2):
            fitting = [noun for noun in self.compounds if noun.tags & tags]
            if fitting:
                return self.rng.choice(fitting)
        return self.rng.choice([noun for noun in self.simple if noun.tags & tags])

    def adjective(self, noun: Noun) -> Adjective:
        """An adjective that can describe the noun."""
        return self.rng.choice([adjective for adjective in self.adjectives if adjective.tags & noun.tags])

    def phrase(
        self, tags: frozenset[str], determiners: str = "the the the a a my this 2 bare", adjectives: float = 0.3
    ) -> Phrase:
        """A noun phrase with one of these determiners (``my``: any possessive, ``2``: number, many, every)."""
        noun = self.noun(tags)
        adjective = self.adjective(noun) if self.maybe(adjectives) else None
        determiner = self.rng.choice(determiners.split())
        if determiner == "my":
            determiner = self.rng.choice(list(POSSESSIVES))
        if not noun.plural:
            allowed = determiner in POSSESSIVES or determiner in ("the", "this")
            return noun_phrase(noun, determiner if allowed else "", False, adjective)
        if determiner == "2":
            counts = ["many", "every"] + [str(self.rng.randint(2, 99)) for _ in range(4)]
            determiner = self.rng.choice(counts)
            return noun_phrase(noun, determiner, determiner != "every", adjective)
        if determiner == "bare":
            return noun_phrase(noun, "", True, adjective)
        return noun_phrase(noun, determiner, determiner != "a" and self.maybe(0.25), adjective)

    def subject(self, tags: frozenset[str], pronouns: float = 0.35, adjectives: float = 0.3) -> Phrase:
        """Who does it: a pronoun, a name or a noun phrase."""
        if "person" in tags:
            if self.maybe(pronouns):
                return self.rng.choice(self.pronouns)
            if self.maybe(0.15):
                return self.name()
        return self.phrase(tags, "the the the the a my my this 2", adjectives)

    def name(self) -> Phrase:
        """A first name, the same in both languages."""
        name = self.rng.choice(self.names)
        return Phrase(name, name, dict.fromkeys(CASES, name), 2, "definite")

    def person(self, subject: Phrase, determiners: str) -> Phrase:
        """An object that is a person, and not the subject itself."""
        if self.maybe(0.4):
            others = [p for p in self.pronouns if p.slot == 2 or p.slot // 3 != subject.slot // 3]
            return self.rng.choice([p for p in others if not {p.slot, subject.slot} <= {0, 3}])
        if self.maybe(0.15):
            name = self.name()
            if name != subject:
                return name
        return self.phrase(frozenset(["person"]), determiners)

    def place_phrase(self, direction: bool = False, tags: Sequence[str] = ("indoors", "outdoors")) -> Pair:
        """``in the garden``, or with ``direction`` ``into the garden``."""
        noun = self.noun(frozenset(tags))
        while noun.en.split()[-1] not in self.places:
            noun = self.noun(frozenset(tags))
        where, into = self.places[noun.en.split()[-1]]
        if direction:
            en, de, case = into.split(", ")
        else:
            (en, de), case = where.split(", "), "dat"
        adjective = self.adjective(noun) if self.maybe(0.15) else None
        determiner = self.rng.choice(["the"] * 5 + ["a", "my", "our", "this"])
        phrase = noun_phrase(noun, determiner, False, adjective)
        return Pair(f"{en} {phrase.en}", contract(f"{de} {phrase.de[case]}"))

    def two_way_phrase(self, case: str) -> Pair:
        """``on the table``, in the dative (where) or in the accusative (where to)."""
        preposition = self.rng.choice(self.two_way)
        phrase = self.phrase(frozenset(["surface"]), "the the the a my this")
        return Pair(f"{preposition.en} {phrase.en}", f"{preposition.de} {phrase.de[case]}")

    def time(self, tense: str) -> Pair:
        """An adverbial of time that goes with the tense."""
        if self.maybe(0.12):
            hour = self.rng.randint(2, 12)
            return Pair(f"at {number_en(hour)} o'clock", f"um {number_de(hour)} Uhr")
        if tense in ("past", "future") and self.maybe(0.15):
            count, unit = self.rng.randint(2, 30), self.rng.choice(self.units)
            if tense == "past":
                return Pair(f"{number_en(count)} {unit.en} ago", f"vor {number_de(count)} {unit.de}")
            return Pair(f"in {number_en(count)} {unit.en}", f"in {number_de(count)} {unit.de}")
        return self.rng.choice([pair for pair, tenses in self.times if tense in tenses])

    def bare_clause(self, subject: Phrase | None = None, pronouns: float = 0.35) -> Clause:
        """Subject, verb and objects in the present; a given subject is a person."""
        rng = self.rng

        def who(verb: Verb) -> Phrase:
            return subject or self.subject(verb.subjects, pronouns)

        kind = rng.choices(
            ("transitive", "dative", "ditransitive", "intransitive", "motion", "placement", "posture", "be", "own"),
            (34, 8, 10, 14, 10, 6, 4, 14, 4),
        )[0]
        if kind == "posture" and subject:
            kind = "intransitive"
        if kind == "transitive":
            verb = rng.choice(self.transitive)
            agent = who(verb)
            if "person" in verb.objects and self.maybe(0.6):
                return Clause(agent, verb, "present", ((self.person(agent, "the the the a my this 2"), "acc"),))
            return Clause(agent, verb, "present", ((self.phrase(verb.objects), "acc"),))
        if kind == "dative":
            verb = rng.choice(self.dative)
            agent = who(verb)
            return Clause(agent, verb, "present", ((self.person(agent, "the the the a my this 2"), "dat"),))
        if kind == "ditransitive":
            verb = rng.choice(self.ditransitive)
            agent = who(verb)
            # No bare plural: "shows her pictures" would have two readings.
            thing = self.phrase(verb.objects, "the the a a my this 2")
            return Clause(agent, verb, "present", ((self.person(agent, "the the my this"), "dat"), (thing, "acc")))
        if kind == "motion":
            verb = rng.choice(self.motion)
            return Clause(who(verb), verb, "present", place=self.place_phrase(True, sorted(verb.objects)))
        if kind == "placement":
            verb = rng.choice(self.placement)
            thing = self.phrase(verb.objects, "the the a a my this")
            return Clause(who(verb), verb, "present", ((thing, "acc"),), place=self.two_way_phrase("acc"))
        if kind == "posture":
            verb = rng.choice(self.posture)
            thing = self.phrase(verb.subjects, "the the the a my this 2")
            return Clause(thing, verb, "present", place=self.two_way_phrase("dat"))
        if kind == "be":
            # No adjective here: "the red hat is green" would be odd.
            agent = subject or self.subject(frozenset(["person", "animal", "thing", "place"]), pronouns, 0)
            noun = agent.noun or self.by_name["man"]
            adjective = self.adjective(noun)
            return Clause(agent, None, "present", predicate=Pair(adjective.en, adjective.de))
        if kind == "own":
            return Clause(who(self.own), self.own, "present", ((self.phrase(self.own.objects, "a a my 2"), "acc"),))
        verb = rng.choice(self.intransitive)
        return Clause(who(verb), verb, "present")

    def clause(
        self, tense: str = "", subject: Phrase | None = None, pronouns: float = 0.35, adverbials: float = 0.45
    ) -> Clause:
        """A clause with a tense, perhaps negated, perhaps with adverbials."""
        clause = self.bare_clause(subject, pronouns)
        wanted, tense = tense, tense or self.rng.choice(("present", "present", "past", "past", "future", "modal"))
        verb = clause.verb
        if verb is self.own:
            tense = "present" if not wanted or wanted == "present" else wanted
        things = clause.subject.noun is not None and not clause.subject.noun.tags & {"person", "animal"}
        if tense == "modal" and (verb is None or things):
            tense = "present"
        past = tense == "past"
        if tense == "modal":
            clause = replace(clause, modal=self.rng.choice(self.modals))
            past = clause.modal is not None and clause.modal.past
        clause = replace(clause, tense="past" if past else tense if tense == "future" else "present")
        counted = any(phrase.kind == "counted" for phrase, _ in clause.objects)
        if self.maybe(0.18) and not counted:
            clause = replace(clause, negative=True)
        elif verb is not None and self.maybe(0.12) and tense != "future":
            clause = replace(clause, frequency=self.rng.choice(self.frequencies))
        can_have_place = clause.place is None and verb is not None and verb not in (self.own, *self.dative)
        if can_have_place and not any(p.noun and "place" in p.noun.tags for p, _ in clause.objects):
            chance = 0.6 if verb in self.intransitive else 0.25
            if self.maybe(adverbials * chance * 1.5) and verb not in self.ditransitive:
                clause = replace(clause, place=self.place_phrase())
        passing = verb is not None or (clause.predicate and clause.predicate.en in self.states)
        if self.maybe(adverbials) and clause.frequency is None and verb is not self.own and passing:
            time = self.time("past" if past else tense)
            if not (clause.negative and time.en.startswith("every")):
                clause = replace(clause, time=time)
        if verb is not None and verb.en == verb.past and clause.tense == "past" and clause.modal is None:
            # "they read" could be present or past; "has always read" could not.
            clause = replace(clause, tense="perfect", frequency=Pair("already", "schon"), time=None, negative=False)
        elif past and clause.modal is None and verb not in (None, self.own) and self.maybe(0.12):
            clause = replace(clause, tense="perfect", frequency=Pair("already", "schon"), time=None, negative=False)
        return clause
