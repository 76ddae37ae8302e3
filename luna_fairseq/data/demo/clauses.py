"""Clauses, and their order of words in either language."""

from dataclasses import dataclass

from luna_fairseq.data.demo.inflection import add_s, join
from luna_fairseq.data.demo.phrases import Phrase
from luna_fairseq.data.demo.words import IRREGULAR, WAS, Modal, Pair, Verb


@dataclass(frozen=True)
class Clause:
    """One clause, not yet in any order of words. ``verb`` is None for "to be" with a predicate."""

    subject: Phrase
    verb: Verb | None
    tense: str
    objects: tuple[tuple[Phrase, str], ...] = ()
    modal: Modal | None = None
    frequency: Pair | None = None
    time: Pair | None = None
    place: Pair | None = None
    predicate: Pair | None = None
    negative: bool = False

    def _do(self, base: str, past: str, do: bool) -> tuple[str, str]:
        """Auxiliary and main verb of a simple tense, with "do" where it is needed."""
        third = self.subject.slot == 2
        if do:
            return ("did" if self.tense == "past" else "does" if third else "do"), base
        return "", past if self.tense == "past" else add_s(base) if third else base

    def verb_en(self, question: bool = False) -> tuple[str, str]:
        """The auxiliary (or ``be``), which may be empty, and the rest of the verb."""
        slot, do = self.subject.slot, question or self.negative
        if self.tense == "future":
            return "will", self.verb.en if self.verb else "be"
        if self.verb is None:
            if self.tense == "past":
                return ("was" if slot in (0, 2) else "were"), ""
            return ("am", "are", "is", "are", "are")[slot], ""
        if self.modal is not None:
            word = self.modal.en_negative if self.negative else self.modal.en
            if not word.startswith("*"):
                return word, self.verb.en
            base = word[1:]
            past = {"have to": "had to", "want to": "wanted to"}[base]
            aux, main = self._do(base, past, do)
            return aux, f"{main} {self.verb.en}"
        if self.tense == "perfect":
            return ("has" if slot == 2 else "have"), self.verb.participle
        return self._do(self.verb.en, self.verb.past, do)

    def tail_en(self, time: bool = True, place: bool = True) -> str:
        """What follows the verb."""
        return join(
            *(phrase.en_object for phrase, _ in self.objects),
            self.predicate.en if self.predicate else "",
            self.place.en if self.place and place else "",
            self.time.en if self.time and time else "",
        )

    def english(self, front: str = "") -> str:
        """A statement, with the ``time`` or the ``place`` in front if asked for."""
        aux, main = self.verb_en()
        if self.negative:
            aux = "cannot" if aux == "can" else f"{aux} not"
        fronted = getattr(self, front).en if front else ""
        middle = self.frequency.en if self.frequency else ""
        tail = self.tail_en(time=front != "time", place=front != "place")
        return join(fronted, self.subject.en, aux, middle, main, tail)

    def english_question(self, word: str = "") -> str:
        """A question, with a question word or without."""
        aux, main = self.verb_en(question=True)
        middle = self.frequency.en if self.frequency else ""
        return join(word, aux, self.subject.en, middle, main, self.tail_en())

    def verb_de(self) -> tuple[str, str]:
        """The finite verb, and what stands at the end of the clause (without a separable prefix)."""
        slot = self.subject.slot
        infinitive = self.verb.prefix + self.verb.infinitive if self.verb else "sein"
        if self.modal is not None:
            return self.modal.de[slot], infinitive
        if self.tense == "future":
            return IRREGULAR["werden"][slot], infinitive
        if self.verb is None:
            return (WAS if self.tense == "past" else IRREGULAR["sein"])[slot], ""
        if self.tense in ("past", "perfect"):
            return IRREGULAR[self.verb.aux][slot], self.verb.partizip
        return self.verb.present(slot), ""

    def middle_de(self, time: bool = True, place: bool = True) -> str:
        """Everything between the subject and the end of the clause.

        Pronouns, time, definite objects, frequency, indefinite objects, nicht, place, predicate.
        """
        order: dict[str, list[str]] = {"pronoun": [], "definite": [], "indefinite": [], "counted": []}
        negative = self.negative
        for phrase, case in self.objects:
            forms = phrase.de
            if negative and phrase.negated:
                forms, negative = phrase.negated, False
            order[phrase.kind].append(forms[case])
        return join(
            *order["pronoun"],
            self.time.de if self.time and time else "",
            *order["definite"],
            self.frequency.de if self.frequency else "",
            *order["indefinite"],
            *order["counted"],
            "nicht" if negative else "",
            self.place.de if self.place and place else "",
            self.predicate.de if self.predicate else "",
        )

    def german(self, front: str = "", after: bool = False) -> str:
        """A verb-second statement.

        Args:
            front: ``time`` or ``place``, to put that first.
            after: begin with the verb, because something stands in front already.
        """
        finite, end = self.verb_de()
        if not end and self.verb:
            end = self.verb.prefix
        middle = self.middle_de(time=front != "time", place=front != "place")
        if front or after:
            fronted = getattr(self, front).de if front else ""
            return join(fronted, finite, self.subject.de["nom"], middle, end)
        return join(self.subject.de["nom"], finite, middle, end)

    def german_subordinate(self) -> str:
        """A verb-final clause, without its conjunction."""
        finite, end = self.verb_de()
        if not end and self.verb:
            finite = self.verb.prefix + finite
        return join(self.subject.de["nom"], self.middle_de(), end, finite)

    def german_infinitive(self) -> str:
        """An infinitive with zu: ``den Arzt anzurufen``."""
        assert self.verb is not None
        if self.verb.prefix:
            return join(self.middle_de(), f"{self.verb.prefix}zu{self.verb.infinitive}")
        return join(self.middle_de(), "zu", self.verb.infinitive)
