"""Write a synthetic English-German parallel corpus with a small but real grammar.

German gender, case and adjective endings, verb-second main clauses, verb-final subordinate clauses, the
perfect with its participle at the end, modal verbs, separable verbs, compounds and number words; English
agreement, do-support, a/an and participles. Every English sentence has exactly one German translation, so
a small model can learn the mapping. The corpus is a demonstration: scores on it say nothing about real
translation.

Usage: ``python scripts/demo_corpus.py OUT --seed 1 --train 24000 --valid 500 --test 500``
"""

import argparse
import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

# ---------------------------------------------------------------------------------------------- lexicon
# Tables have one entry a line; tags say which words go together.

# English[/irregular plural] | German | gender | German plural[, ending of a weak noun] | tags
NOUNS = """
man/men         | Mann            | m | Männer           | person
woman/women     | Frau            | f | Frauen           | person
child/children  | Kind            | n | Kinder           | person
boy             | Junge           | m | Jungen, n        | person
girl            | Mädchen         | n | Mädchen          | person
father          | Vater           | m | Väter            | person
mother          | Mutter          | f | Mütter           | person
brother         | Bruder          | m | Brüder           | person
sister          | Schwester       | f | Schwestern       | person
uncle           | Onkel           | m | Onkel            | person
aunt            | Tante           | f | Tanten           | person
son             | Sohn            | m | Söhne            | person
daughter        | Tochter         | f | Töchter          | person
friend          | Freund          | m | Freunde          | person
neighbour       | Nachbar         | m | Nachbarn, n      | person
teacher         | Lehrer          | m | Lehrer           | person
student         | Student         | m | Studenten, en    | person
doctor          | Arzt            | m | Ärzte            | person
nurse           | Krankenschwester | f | Krankenschwestern | person
baker           | Bäcker          | m | Bäcker           | person
colleague       | Kollege         | m | Kollegen, n      | person
guest           | Gast            | m | Gäste            | person
dog             | Hund            | m | Hunde            | animal
cat             | Katze           | f | Katzen           | animal
horse           | Pferd           | n | Pferde           | animal
bird            | Vogel           | m | Vögel            | animal
rabbit          | Hase            | m | Hasen, n         | animal
cow             | Kuh             | f | Kühe             | animal
bear            | Bär             | m | Bären, en        | animal
book            | Buch            | n | Bücher           | thing small readable writable
newspaper       | Zeitung         | f | Zeitungen        | thing small readable
letter          | Brief           | m | Briefe           | thing small readable writable
picture         | Bild            | n | Bilder           | thing small drawable
map             | Karte           | f | Karten           | thing small drawable
table           | Tisch           | m | Tische           | thing surface
chair           | Stuhl           | m | Stühle           | thing surface
bed             | Bett            | n | Betten           | thing surface
sofa            | Sofa            | n | Sofas            | thing surface
shelf/shelves   | Regal           | n | Regale           | thing surface
wardrobe        | Schrank         | m | Schränke         | thing surface openable
box             | Kiste           | f | Kisten           | thing surface openable hollow
lamp            | Lampe           | f | Lampen           | thing small machine
clock           | Uhr             | f | Uhren            | thing small machine
bicycle         | Fahrrad         | n | Fahrräder        | thing machine washable
car             | Auto            | n | Autos            | thing machine washable
telephone       | Telefon         | n | Telefone         | thing small machine
door            | Tür             | f | Türen            | thing openable washable
window          | Fenster         | n | Fenster          | thing openable washable
bag             | Tasche          | f | Taschen          | thing small openable hollow
cup             | Tasse           | f | Tassen           | thing small washable hollow
bottle          | Flasche         | f | Flaschen         | thing small openable hollow
glass           | Glas            | n | Gläser           | thing small washable hollow
plate           | Teller          | m | Teller           | thing small washable
spoon           | Löffel          | m | Löffel           | thing small washable
fork            | Gabel           | f | Gabeln           | thing small washable
knife/knives    | Messer          | n | Messer           | thing small washable
key             | Schlüssel       | m | Schlüssel        | thing small
umbrella        | Regenschirm     | m | Regenschirme     | thing small openable
gift            | Geschenk        | n | Geschenke        | thing small
ball            | Ball            | m | Bälle            | thing small
flower          | Blume           | f | Blumen           | thing small drawable
hat             | Hut             | m | Hüte             | thing small clothing
coat            | Mantel          | m | Mäntel           | thing clothing washable
dress           | Kleid           | n | Kleider          | thing clothing washable
shirt           | Hemd            | n | Hemden           | thing clothing washable
shoe            | Schuh           | m | Schuhe           | thing small clothing washable
apple           | Apfel           | m | Äpfel            | food
pear            | Birne           | f | Birnen           | food
orange          | Orange          | f | Orangen          | food
egg             | Ei              | n | Eier             | food cooked
potato/potatoes | Kartoffel       | f | Kartoffeln       | food cooked
tomato/tomatoes | Tomate          | f | Tomaten          | food
carrot          | Karotte         | f | Karotten         | food cooked
soup            | Suppe           | f | Suppen           | food cooked
cake            | Kuchen          | m | Kuchen           | food baked
roll            | Brötchen        | n | Brötchen         | food baked
kitchen         | Küche           | f | Küchen           | place indoors tidied
room            | Zimmer          | n | Zimmer           | place indoors tidied
cellar          | Keller          | m | Keller           | place indoors tidied
office          | Büro            | n | Büros            | place indoors tidied
house           | Haus            | n | Häuser           | place indoors
hotel           | Hotel           | n | Hotels           | place indoors
restaurant      | Restaurant      | n | Restaurants      | place indoors
museum          | Museum          | n | Museen           | place indoors
theatre         | Theater         | n | Theater          | place indoors
library         | Bibliothek      | f | Bibliotheken     | place indoors
church          | Kirche          | f | Kirchen          | place indoors
hospital        | Krankenhaus     | n | Krankenhäuser    | place indoors
school          | Schule          | f | Schulen          | place indoors
garden          | Garten          | m | Gärten           | place outdoors
park            | Park            | m | Parks            | place outdoors
forest          | Wald            | m | Wälder           | place outdoors
city            | Stadt           | f | Städte           | place outdoors
village         | Dorf            | n | Dörfer           | place outdoors
station         | Bahnhof         | m | Bahnhöfe         | place outdoors
market          | Markt           | m | Märkte           | place outdoors
university      | Universität     | f | Universitäten    | place outdoors
lake            | See             | m | Seen             | place outdoors
river           | Fluss           | m | Flüsse           | place outdoors
beach           | Strand          | m | Strände          | place outdoors
island          | Insel           | f | Inseln           | place outdoors
bridge          | Brücke          | f | Brücken          | place outdoors
"""

# English | German | gender (no plural, no indefinite article)
MASS_NOUNS = """
water  | Wasser | n
milk   | Milch  | f
coffee | Kaffee | m
tea    | Tee    | m
wine   | Wein   | m
beer   | Bier   | n
juice  | Saft   | m
"""

# English modifier | German first part | heads; the last part gives gender and plural
COMPOUNDS = """
kitchen | Küchen    | table chair door window lamp clock knife shelf wardrobe
garden  | Garten    | table chair door house lamp
office  | Büro      | chair door lamp window clock key wardrobe
school  | Schul     | book bag door clock friend garden library
hotel   | Hotel     | room bed door key guest kitchen garden
winter  | Winter    | coat shoe garden
summer  | Sommer    | dress hat shoe shirt house
wooden  | Holz      | table chair box spoon door bed bridge plate house
house   | Haus      | key
car     | Auto      | door key window
city    | Stadt     | map park museum library theatre
village | Dorf      | school church doctor teacher
music   | Musik     | school teacher room
water   | Wasser    | bottle glass
wine    | Wein      | bottle glass cellar
milk    | Milch     | bottle glass
coffee  | Kaffee    | cup
tea     | Tee       | cup glass
apple   | Apfel     | cake juice
orange  | Orangen   | cake juice
tomato  | Tomaten   | soup juice
potato  | Kartoffel | soup
carrot  | Karotten  | soup cake juice
"""

# noun | in English, German (dative) | into English, German, case
PLACES = """
kitchen    | in, in  | into, in, acc
room       | in, in  | into, in, acc
cellar     | in, in  | into, in, acc
office     | in, in  | into, in, acc
house      | in, in  | into, in, acc
hotel      | in, in  | into, in, acc
restaurant | in, in  | into, in, acc
museum     | in, in  | into, in, acc
theatre    | in, in  | into, in, acc
library    | in, in  | into, in, acc
church     | in, in  | into, in, acc
hospital   | in, in  | into, in, acc
school     | at, in  | to, zu, dat
garden     | in, in  | into, in, acc
park       | in, in  | into, in, acc
forest     | in, in  | into, in, acc
city       | in, in  | into, in, acc
village    | in, in  | into, in, acc
station    | at, an  | to, zu, dat
market     | at, auf | to, zu, dat
university | at, an  | to, zu, dat
lake       | at, an  | to, zu, dat
river      | by, an  | to, zu, dat
beach      | on, an  | to, zu, dat
island     | on, auf | onto, auf, acc
bridge     | on, auf | onto, auf, acc
"""

# English | German: dative for where, accusative for where to
TWO_WAY = """
on          | auf
under       | unter
next to     | neben
behind      | hinter
in front of | vor
"""

# English | German[/stem before endings] | tags of what it describes, and "state" for what passes
ADJECTIVES = """
old         | alt          | person animal thing place
new         | neu          | thing place
big         | groß         | animal thing place food
small       | klein        | person animal thing place food
beautiful   | schön        | animal thing place
young       | jung         | person animal
friendly    | freundlich   | person
clever      | klug         | person animal
tired       | müde/müd     | person animal state
hungry      | hungrig      | person animal state
happy       | glücklich    | person state
sad         | traurig      | person state
famous      | berühmt      | person place
strong      | stark        | person animal
sick        | krank        | person animal state
quiet       | ruhig        | person place state
honest      | ehrlich      | person
red         | rot          | thing
blue        | blau         | thing
green       | grün         | thing
white       | weiß         | thing animal
black       | schwarz      | thing animal
expensive   | teuer/teur   | thing food drink
cheap       | billig       | thing food drink
heavy       | schwer       | surface machine hollow
empty       | leer         | hollow place state
interesting | interessant  | readable place
dark        | dunkel/dunkl | indoors clothing
fresh       | frisch       | food drink
sweet       | süß          | food drink
cold        | kalt         | drink food indoors state
warm        | warm         | drink food indoors clothing state
"""

# English base, past, participle | German infinitive, er-form, participle[, sein] | subjects | objects
# A bar inside an infinitive marks a separable prefix.
TRANSITIVE = """
buy, bought, bought       | kaufen, kauft, gekauft                | person        | thing food
sell, sold, sold          | verkaufen, verkauft, verkauft         | person        | thing food
see, saw, seen            | sehen, sieht, gesehen                 | person animal | person animal thing place
look for, looked for, looked for | suchen, sucht, gesucht         | person animal | person animal small
find, found, found        | finden, findet, gefunden              | person        | animal small
need, needed, needed      | brauchen, braucht, gebraucht          | person        | thing food
read, read, read          | lesen, liest, gelesen                 | person        | readable
write, wrote, written     | schreiben, schreibt, geschrieben      | person        | writable
eat, ate, eaten           | essen, isst, gegessen                 | person        | food
drink, drank, drunk       | trinken, trinkt, getrunken            | person        | drink
cook, cooked, cooked      | kochen, kocht, gekocht                | person        | cooked
bake, baked, baked        | backen, backt, gebacken               | person        | baked
wash, washed, washed      | waschen, wäscht, gewaschen            | person        | washable
open, opened, opened      | öffnen, öffnet, geöffnet              | person        | openable
close, closed, closed     | schließen, schließt, geschlossen      | person        | openable
visit, visited, visited   | besuchen, besucht, besucht            | person        | person place
hear, heard, heard        | hören, hört, gehört                   | person animal | person animal
meet, met, met            | treffen, trifft, getroffen            | person        | person
love, loved, loved        | lieben, liebt, geliebt                | person animal | person animal
ask, asked, asked         | fragen, fragt, gefragt                | person        | person
draw, drew, drawn         | zeichnen, zeichnet, gezeichnet        | person        | animal drawable
carry, carried, carried   | tragen, trägt, getragen               | person        | small surface
repair, repaired, repaired | reparieren, repariert, repariert     | person        | machine
lose, lost, lost          | verlieren, verliert, verloren         | person        | small
forget, forgot, forgotten | vergessen, vergisst, vergessen        | person        | person small
invite, invited, invited  | ein|laden, lädt, eingeladen           | person        | person
call, called, called      | an|rufen, ruft, angerufen             | person        | person
fetch, fetched, fetched   | ab|holen, holt, abgeholt              | person        | person
tidy, tidied, tidied      | auf|räumen, räumt, aufgeräumt         | person        | tidied
know, knew, known         | kennen, kennt, gekannt                | person        | person place
"""

DATIVE = """
help, helped, helped      | helfen, hilft, geholfen               | person        | person animal
thank, thanked, thanked   | danken, dankt, gedankt                | person        | person
answer, answered, answered | antworten, antwortet, geantwortet    | person        | person
follow, followed, followed | folgen, folgt, gefolgt, sein         | person animal | person animal
trust, trusted, trusted   | vertrauen, vertraut, vertraut         | person        | person
congratulate, congratulated, congratulated | gratulieren, gratuliert, gratuliert | person | person
"""

DITRANSITIVE = """
give, gave, given         | geben, gibt, gegeben                  | person        | small food
show, showed, shown       | zeigen, zeigt, gezeigt                | person        | thing place
send, sent, sent          | schicken, schickt, geschickt          | person        | small
lend, lent, lent          | leihen, leiht, geliehen               | person        | small machine
bring, brought, brought   | bringen, bringt, gebracht             | person        | small food
"""

INTRANSITIVE = """
sleep, slept, slept       | schlafen, schläft, geschlafen         | person animal |
work, worked, worked      | arbeiten, arbeitet, gearbeitet        | person        |
sing, sang, sung          | singen, singt, gesungen               | person        |
dance, danced, danced     | tanzen, tanzt, getanzt                | person        |
laugh, laughed, laughed   | lachen, lacht, gelacht                | person        |
cry, cried, cried         | weinen, weint, geweint                | person        |
wait, waited, waited      | warten, wartet, gewartet              | person animal |
play, played, played      | spielen, spielt, gespielt             | person animal |
learn, learned, learned   | lernen, lernt, gelernt                | person        |
smoke, smoked, smoked     | rauchen, raucht, geraucht             | person        |
stay, stayed, stayed      | bleiben, bleibt, geblieben, sein      | person animal |
have breakfast, had breakfast, had breakfast | frühstücken, frühstückt, gefrühstückt | person |
watch television, watched television, watched television | fern|sehen, sieht, ferngesehen | person |
get up, got up, got up    | auf|stehen, steht, aufgestanden, sein | person        |
fall asleep, fell asleep, fallen asleep | ein|schlafen, schläft, eingeschlafen, sein | person animal |
"""

MOTION = """
go, went, gone            | gehen, geht, gegangen, sein           | person        | indoors outdoors
run, ran, run             | laufen, läuft, gelaufen, sein         | person animal | indoors outdoors
hurry, hurried, hurried   | eilen, eilt, geeilt, sein             | person        | indoors outdoors
drive, drove, driven      | fahren, fährt, gefahren, sein         | person        | outdoors
"""

# With a phrase of TWO_WAY: where a thing is, and where somebody moves it.
POSTURE = """
lie, lay, lain            | liegen, liegt, gelegen                | small         |
stand, stood, stood       | stehen, steht, gestanden              | surface       |
"""
PLACEMENT = """
lay, laid, laid           | legen, legt, gelegt                   | person        | small
place, placed, placed     | stellen, stellt, gestellt             | person        | small surface
throw, threw, thrown      | werfen, wirft, geworfen               | person        | small
"""

# With a subordinate clause or an infinitive.
THAT_VERBS = """
think, thought, thought   | denken, denkt, gedacht                | person        |
believe, believed, believed | glauben, glaubt, geglaubt           | person        |
say, said, said           | sagen, sagt, gesagt                   | person        |
hope, hoped, hoped        | hoffen, hofft, gehofft                | person        |
know, knew, known         | wissen, weiß, gewusst                 | person        |
"""
WHETHER_VERBS = """
ask, asked, asked         | fragen, fragt, gefragt                | person        |
"""
INFINITIVE_VERBS = """
try, tried, tried         | versuchen, versucht, versucht         | person        |
promise, promised, promised | versprechen, verspricht, versprochen | person       |
begin, began, begun       | beginnen, beginnt, begonnen           | person        |
"""
OWN = "have, had, had | haben, hat, gehabt | person | animal thing"
COST = "cost, cost, cost | kosten, kostet, gekostet | thing | "

# English | German forms for ich, du, er, wir, sie. "*" marks an English verb that needs "do".
MODALS = """
can      | can      | kann, kannst, kann, können, können
must     | *have to | muss, musst, muss, müssen, müssen
may      | may      | darf, darfst, darf, dürfen, dürfen
should   | should   | sollte, solltest, sollte, sollten, sollten
*want to | *want to | will, willst, will, wollen, wollen
"""
PAST_MODALS = """
could    | could    | konnte, konntest, konnte, konnten, konnten
*have to | *have to | musste, musstest, musste, mussten, mussten
*want to | *want to | wollte, wolltest, wollte, wollten, wollten
"""

# German auxiliaries and irregular presents: ich, du, er, wir, sie
IRREGULAR = {
    "haben": ("habe", "hast", "hat", "haben", "haben"),
    "sein": ("bin", "bist", "ist", "sind", "sind"),
    "werden": ("werde", "wirst", "wird", "werden", "werden"),
    "wissen": ("weiß", "weißt", "weiß", "wissen", "wissen"),
}
WAS = ("war", "warst", "war", "waren", "waren")

# English subject, object | German nominative, accusative, dative | slot in the tables above
PRONOUNS = """
I, me     | ich, mich, mir   | 0
you, you  | du, dich, dir    | 1
he, him   | er, ihn, ihm     | 2
she, her  | sie, sie, ihr    | 2
we, us    | wir, uns, uns    | 3
they, them | sie, sie, ihnen | 4
"""
NAMES = ("Anna", "Peter", "Maria", "Thomas", "Julia", "Paul", "Clara", "David")
POSSESSIVES = {"my": "mein", "your": "dein", "his": "sein", "her": "ihr", "our": "unser", "their": "ihr"}

# English | German | tenses
TIMES = """
today             | heute           | present past future modal
this morning      | heute Morgen    | past modal
this evening      | heute Abend     | present future modal
now               | jetzt           | present modal
every day         | jeden Tag       | present modal
every week        | jede Woche      | present modal
in the morning    | am Morgen       | present past future modal
in the evening    | am Abend        | present past future modal
at night          | in der Nacht    | present past future modal
on Monday         | am Montag       | present past future modal
on Wednesday      | am Mittwoch     | present past future modal
on Friday         | am Freitag      | present past future modal
on Sunday         | am Sonntag      | present past future modal
in summer         | im Sommer       | present past future modal
in winter         | im Winter       | present past future modal
yesterday         | gestern         | past
yesterday evening | gestern Abend   | past
last week         | letzte Woche    | past
last year         | letztes Jahr    | past
last Sunday       | letzten Sonntag | past
tomorrow          | morgen          | future modal
soon              | bald            | future
next week         | nächste Woche   | future modal
next year         | nächstes Jahr   | future modal
"""
UNITS = """
days   | Tagen
weeks  | Wochen
months | Monaten
years  | Jahren
"""
FREQUENCIES = """
often     | oft
always    | immer
sometimes | manchmal
never     | nie
"""
QUESTION_WORDS = """
where | wo
when  | wann
why   | warum
"""

ONES_EN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS_EN = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
ONES_DE = (
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
    "siebzehn achtzehn neunzehn"
).split()
TENS_DE = "_ _ zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()

# ------------------------------------------------------------------------------------- German inflection
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


def number_en(value: int) -> str:
    """An English number word, 0 to 99: ``twenty-three``."""
    if value < 20:
        return ONES_EN[value]
    tens, ones = divmod(value, 10)
    return TENS_EN[tens] + (f"-{ONES_EN[ones]}" if ones else "")


def number_de(value: int) -> str:
    """A German number word, 0 to 99: ``dreiundzwanzig``."""
    if value < 20:
        return ONES_DE[value]
    tens, ones = divmod(value, 10)
    if not ones:
        return TENS_DE[tens]
    return ("ein" if ones == 1 else ONES_DE[ones]) + "und" + TENS_DE[tens]


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


# ------------------------------------------------------------------------------------- words and phrases
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


@dataclass(frozen=True)
class Pair:
    """An adverbial or predicate in both languages."""

    en: str
    de: str


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

    # English ------------------------------------------------------------------------------------------
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

    # German -------------------------------------------------------------------------------------------
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


# ----------------------------------------------------------------------------------- reading the tables
def _rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split(" |")] for line in table.strip().splitlines()]


def _pairs(table: str) -> list[Pair]:
    return [Pair(row[0], row[1]) for row in _rows(table)]


def _nouns() -> dict[str, Noun]:
    nouns = {}
    for names, de, gender, forms, tags in _rows(NOUNS):
        en, _, en_plural = names.partition("/")
        plural, _, weak = forms.partition(", ")
        nouns[en] = Noun(en, en_plural or add_s(en), de, gender, plural, weak, frozenset(tags.split()))
    for en, de, gender in _rows(MASS_NOUNS):
        nouns[en] = Noun(en, "", de, gender, "", "", frozenset(["drink"]))
    return nouns


def _compounds(nouns: dict[str, Noun]) -> list[Noun]:
    return [
        compound(modifier, first, nouns[head])
        for modifier, first, heads in _rows(COMPOUNDS)
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


def _verbs(table: str) -> list[Verb]:
    verbs = []
    for english, german, subjects, *objects in _rows(table):
        en, past, participle = english.split(", ")
        infinitive, er, partizip, *aux = german.split(", ")
        prefix, _, base = infinitive.rpartition("|")
        who, whom = (frozenset(cell.rstrip(" |").split()) for cell in (subjects, *objects, "")[:2])
        helper = aux[0] if aux else "haben"
        verbs.append(Verb(en, past, participle, base, er, partizip, helper, who, whom, prefix))
    return verbs


def _modals(table: str, past: bool) -> list[Modal]:
    return [Modal(en, negative, tuple(forms.split(", ")), past) for en, negative, forms in _rows(table)]


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


def _pronouns() -> list[Phrase]:
    phrases = []
    for english, german, slot in _rows(PRONOUNS):
        subject, obj = english.split(", ")
        phrases.append(Phrase(subject, obj, dict(zip(CASES, german.split(", "), strict=True)), int(slot), "pronoun"))
    return phrases


# ---------------------------------------------------------------------------------------------- grammar
class Grammar:
    """Draws random sentences. The same ``rng`` state gives the same sentences."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.by_name = _nouns()
        self.simple = list(self.by_name.values())
        self.compounds = _compounds(self.by_name)
        self.adjectives = [
            Adjective(en, de.partition("/")[0], de.partition("/")[2] or de, frozenset(tags.split()))
            for en, de, tags in _rows(ADJECTIVES)
        ]
        self.states = {adjective.en for adjective in self.adjectives if "state" in adjective.tags}
        self.places = {row[0]: row[1:] for row in _rows(PLACES)}
        self.transitive, self.dative = _verbs(TRANSITIVE), _verbs(DATIVE)
        self.ditransitive, self.intransitive = _verbs(DITRANSITIVE), _verbs(INTRANSITIVE)
        self.motion, self.posture, self.placement = _verbs(MOTION), _verbs(POSTURE), _verbs(PLACEMENT)
        self.that_verbs, self.whether_verbs = _verbs(THAT_VERBS), _verbs(WHETHER_VERBS)
        self.infinitive_verbs = _verbs(INFINITIVE_VERBS)
        self.own, self.cost = _verbs(OWN)[0], _verbs(COST)[0]
        self.modals = _modals(MODALS, past=False) + _modals(PAST_MODALS, past=True)
        self.pronouns = _pronouns()
        self.two_way, self.frequencies = _pairs(TWO_WAY), _pairs(FREQUENCIES)
        self.questions, self.units = _pairs(QUESTION_WORDS), _pairs(UNITS)
        self.times = [(Pair(en, de), frozenset(tenses.split())) for en, de, tenses in _rows(TIMES)]
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

    def maybe(self, probability: float) -> bool:
        """True with this probability."""
        return self.rng.random() < probability

    # Phrases ------------------------------------------------------------------------------------------
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
        name = self.rng.choice(NAMES)
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

    # Clauses ------------------------------------------------------------------------------------------
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

    # Sentences ----------------------------------------------------------------------------------------
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


# ----------------------------------------------------------------------------------------------- corpus
MAX_WORDS = 14


def generate(count: int, seed: int) -> list[Pair]:
    """Pairs of which no two share a sentence in either language.

    Raises:
        RuntimeError: if one English sentence gets two translations (an error in the grammar), or the
            grammar runs out of sentences.
    """
    grammar = Grammar(random.Random(seed))
    translations: dict[str, str] = {}
    german_seen: set[str] = set()
    pairs: list[Pair] = []
    for _ in range(20 * count + 1000):
        if len(pairs) == count:
            return pairs
        pair = grammar.sentence()
        if max(len(pair.en.split()), len(pair.de.split())) > MAX_WORDS:
            continue
        known = translations.setdefault(pair.en, pair.de)
        if known != pair.de:
            raise RuntimeError(f"two translations of {pair.en!r}: {known!r} and {pair.de!r}")
        if pair.de not in german_seen:
            german_seen.add(pair.de)
            pairs.append(pair)
    raise RuntimeError(f"only {len(pairs)} distinct pairs found, not {count}: ask for fewer")


def words(sentences: Sequence[str]) -> set[str]:
    """The distinct words, in lower case and without punctuation."""
    return {word.strip(".,?").lower() for sentence in sentences for word in sentence.split()}


def _write(path: Path, lines: Sequence[str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Write OUT/{train,valid,test}.{en,de}; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="write a synthetic English-German corpus: OUT/{train,valid,test}.{en,de}"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train", type=_positive, default=24000, metavar="N", help="pairs for training")
    parser.add_argument("--valid", type=_positive, default=500, metavar="N", help="pairs for validation")
    parser.add_argument("--test", type=_positive, default=500, metavar="N", help="pairs for testing")
    args = parser.parse_args(argv)
    sizes = {"train": args.train, "valid": args.valid, "test": args.test}
    try:
        pairs = generate(sum(sizes.values()), args.seed)
        random.Random(args.seed).shuffle(pairs)
        args.out.mkdir(parents=True, exist_ok=True)
        for split, size in sizes.items():
            part, pairs = pairs[:size], pairs[size:]
            english, german = [pair.en for pair in part], [pair.de for pair in part]
            _write(args.out / f"{split}.en", english)
            _write(args.out / f"{split}.de", german)
            print(f"{split}: {size} pairs, {len(words(english))} English and {len(words(german))} German words")
    except (OSError, RuntimeError) as error:
        print(f"demo_corpus.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
