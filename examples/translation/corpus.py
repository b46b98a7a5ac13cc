"""The grammar: random English sentences with their one German translation.

A *template* is a recipe: sentence type, verb frame and tense of the main clause, verb frame of the
second clause. Every tenth template (by hash) is held out: its pieces all occur in training, in
other combinations, but no training sentence has its recipe.

    python corpus.py --train train.jsonl --train-sentences 300000 --heldout heldout.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lexicon import (
    CITIES,
    DAYS,
    MONTHS,
    NAMES,
    NOUNS,
    VERBS,
    Adjective,
    Noun,
    Verb,
    number_de,
    number_en,
    suited,
)

FRAMES = ("trans", "dative", "ditrans", "intrans", "prep", "motion", "pred", "comp", "age")
TENSES = ("pres", "past", "perf", "fut", "can", "must", "should", "want", "wanted", "had")
SINGLE = ("main", "front", "yesno", "wh", "who", "fact")
DOUBLE = (
    "because",
    "although",
    "when",
    "if",
    "frontif",
    "frontbecause",
    "and",
    "but",
    "that",
    "relsubj",
    "relobj",
    "objrel",
    "purpose",
)
_SUB = {
    "because": ("because", "weil"),
    "although": ("although", "obwohl"),
    "when": ("while", "während"),
    "if": ("if", "wenn"),
    "frontif": ("if", "wenn"),
    "frontbecause": ("because", "weil"),
}
_MODAL_DE = {
    "can": {"1s": "kann", "2s": "kannst", "3s": "kann", "p": "können"},
    "must": {"1s": "muss", "2s": "musst", "3s": "muss", "p": "müssen"},
    "should": {"1s": "soll", "2s": "sollst", "3s": "soll", "p": "sollen"},
    "want": {"1s": "will", "2s": "willst", "3s": "will", "p": "wollen"},
    "wanted": {"1s": "wollte", "2s": "wolltest", "3s": "wollte", "p": "wollten"},
    "had": {"1s": "musste", "2s": "musstest", "3s": "musste", "p": "mussten"},
    "fut": {"1s": "werde", "2s": "wirst", "3s": "wird", "p": "werden"},
}
_HABEN = {"1s": "habe", "2s": "hast", "3s": "hat", "p": "haben"}
_SEIN = {"1s": "bin", "2s": "bist", "3s": "ist", "p": "sind"}
_WAR = {"1s": "war", "2s": "warst", "3s": "war", "p": "waren"}
_BE_EN = {"1s": "am", "2s": "are", "3s": "is", "p": "are"}

_DEF = {
    "nom": {"m": "der", "f": "die", "n": "das", "p": "die"},
    "acc": {"m": "den", "f": "die", "n": "das", "p": "die"},
    "dat": {"m": "dem", "f": "der", "n": "dem", "p": "den"},
    "gen": {"m": "des", "f": "der", "n": "des", "p": "der"},
}
_STRONG = {  # endings of dieser and of an adjective without a determiner
    "nom": {"m": "er", "f": "e", "n": "es", "p": "e"},
    "acc": {"m": "en", "f": "e", "n": "es", "p": "e"},
    "dat": {"m": "em", "f": "er", "n": "em", "p": "en"},
}
_MIXED = {  # endings of ein, kein, mein
    "nom": {"m": "", "f": "e", "n": "", "p": "e"},
    "acc": {"m": "en", "f": "e", "n": "", "p": "e"},
    "dat": {"m": "em", "f": "er", "n": "em", "p": "en"},
}
_PRONOUNS = {  # english subject: (english object, person, german nom, acc, dat)
    "I": ("me", "1s", "ich", "mich", "mir"),
    "you": ("you", "2s", "du", "dich", "dir"),
    "he": ("him", "3s", "er", "ihn", "ihm"),
    "she": ("her", "3s", "sie", "sie", "ihr"),
    "we": ("us", "p", "wir", "uns", "uns"),
    "they": ("them", "p", "sie", "sie", "ihnen"),
}
_POSSESSIVES = {
    "my": "mein",
    "your": "dein",
    "his": "sein",
    "her": "ihr",
    "our": "unser",
    "their": "ihr",
}
_FREQUENCY = [
    ("often", "oft"),
    ("always", "immer"),
    ("never", "nie"),
    ("sometimes", "manchmal"),
    ("seldom", "selten"),
    ("usually", "gewöhnlich"),
]
_HOURS = [(number_en(n), number_de(n)) for n in range(2, 13)]
_PARTS = [
    ("in the morning", "am Morgen"),
    ("in the evening", "am Abend"),
    ("at night", "in der Nacht"),
    ("in summer", "im Sommer"),
    ("in winter", "im Winter"),
    ("in spring", "im Frühling"),
    ("in autumn", "im Herbst"),
    ("at the weekend", "am Wochenende"),
    ("every day", "jeden Tag"),
    ("every week", "jede Woche"),
    ("every year", "jedes Jahr"),
    ("today", "heute"),
]
_PARTICLES = ("along", "up", "away", "on")  # no pronoun after these
_CONTRACT = {"in dem": "im", "an dem": "am", "von dem": "vom", "zu dem": "zum", "zu der": "zur"}


def _adj_ending(declension: str, case: str, gender: str) -> str:
    if declension == "weak":
        plain = gender != "p" and (case == "nom" or (case == "acc" and gender != "m"))
        return "e" if plain else "en"
    if declension == "mixed" and gender != "p" and (case == "nom" or (case == "acc" and gender != "m")):
        return _STRONG[case][gender]
    return "en" if declension == "mixed" else _STRONG[case][gender]


@dataclass(frozen=True)
class NP:
    """A noun phrase: the English text (subject and object form) and the German one per case."""

    en: str
    en_object: str
    person: str
    de: dict[str, str]
    pronoun: bool = False
    indefinite: bool = False
    noun: Noun | None = None
    plural: bool = False
    extra_en: str = ""
    extra_de: str = ""

    @property
    def gender(self) -> str:
        """Gender for agreement, p for the plural."""
        assert self.noun is not None
        return "p" if self.plural else self.noun.gender


@dataclass(frozen=True)
class Clause:
    """One clause in pieces that the sentence types put in order."""

    subject: NP
    en_aux: str  # "" for a simple form
    en_neg: str
    en_adverb: str
    en_verb: str  # with objects and place
    en_finite: str  # the simple finite form, used when there is no auxiliary
    en_do: tuple[str, str]  # auxiliary for questions, and what follows the subject then
    en_time: str
    de_finite: str
    de_pronouns: str
    de_time: str
    de_middle: str
    de_end: str
    de_final: str  # verb complex of a verb-final clause
    de_zu: str = ""

    def en(self, time: bool = True) -> str:
        """The English declarative clause."""
        return join(self.subject.en, self.subject.extra_en, self.en_predicate(time))

    def en_predicate(self, time: bool = True) -> str:
        """The English clause without its subject."""
        verb = join(self.en_aux, self.en_neg, self.en_adverb) if self.en_aux else self.en_adverb
        head = join(verb, self.en_verb) if self.en_aux else join(verb, self.en_finite, self.en_verb)
        return join(head, self.en_time if time else "")

    def en_question(self, time: bool = True) -> str:
        """Does the man often see the dog on Monday."""
        aux, rest = self.en_do
        return join(
            aux,
            self.subject.en,
            self.en_neg,
            self.en_adverb,
            "" if self.en_aux else rest,
            self.en_verb,
            self.en_time if time else "",
        )

    def en_infinitive(self) -> str:
        """See the dog on Monday (of a clause in the present)."""
        return join(self.en_do[1], self.en_verb, self.en_time)

    def de(self, subject: bool = True) -> str:
        """German verb-second order with the subject first."""
        head = join(self.subject.de["nom"], self.subject.extra_de) if subject else ""
        return join(head, self.de_finite, self.de_pronouns, self.de_time, self.de_middle, self.de_end)

    def de_inverted(self, time: bool = True) -> str:
        """German order after a fronted constituent: finite verb, then subject."""
        return join(
            self.de_finite,
            self.subject.de["nom"],
            self.subject.extra_de,
            self.de_pronouns,
            self.de_time if time else "",
            self.de_middle,
            self.de_end,
        )

    def de_verb_final(self, subject: bool = True) -> str:
        """German subordinate order."""
        head = self.subject.de["nom"] if subject else ""
        return join(head, self.de_pronouns, self.de_time, self.de_middle, self.de_final)


def join(*parts: str) -> str:
    """Join the non-empty parts with spaces; a comma sticks to the word before it."""
    return " ".join(p for p in parts if p).replace(" ,", ",").replace("can not", "cannot")


def contract(text: str) -> str:
    """In dem -> im, when the article follows directly."""
    head = " ".join(text.split(" ")[:2])
    return _CONTRACT[head] + text[len(head) :] if head in _CONTRACT else text


def _article_en(word: str) -> str:
    return "an" if word[0] in "aeiou" and word not in ("useful",) else "a"


@dataclass
class Grammar:
    """Draws random phrases; all choices come from one seeded generator."""

    rng: random.Random
    rich: float = 0.4  # probability of an adjective

    def noun_phrase(self, kinds: tuple[str, ...], *, pronouns: bool = True, simple: bool = False) -> NP:
        """A random noun phrase whose head is of one of the kinds."""
        r = self.rng
        kind = r.choice(kinds)
        if kind == "person":
            x = r.random()
            if pronouns and x < 0.22:
                return self.pronoun()
            if not simple and x < 0.36:
                name = r.choice(NAMES[r.choice("mf")])
                return NP(name, name, "3s", dict.fromkeys(("nom", "acc", "dat"), name))
        noun = r.choice(NOUNS[kind])
        adjective = r.choice(suited(noun.kind)) if r.random() < self.rich else None
        options = ["def"] * 8 + ["indef"] * 5 + ["poss"] * 4 + ["this"] * 2 + ["defp"] * 3 + ["num"] * 3
        options += ["these", "bare", "many", "some", "possp", "every"]
        if not simple:
            options += ["name", "gen", "gen"]
        return self.build(noun, adjective, r.choice(options))

    def pronoun(self) -> NP:
        """A personal pronoun."""
        en = self.rng.choice(list(_PRONOUNS))
        en_object, person, nom, acc, dat = _PRONOUNS[en]
        return NP(en, en_object, person, {"nom": nom, "acc": acc, "dat": dat}, pronoun=True)

    def build(self, noun: Noun, adjective: Adjective | None, determiner: str) -> NP:
        """Inflect one noun phrase in all cases."""
        r = self.rng
        plural = determiner in ("defp", "num", "these", "bare", "many", "some", "possp")
        g = "p" if plural else noun.gender
        en_noun = noun.en_plural if plural else noun.en
        en_tail = f"{adjective.en} {en_noun}" if adjective else en_noun
        possessive = r.choice(list(_POSSESSIVES))
        number = r.choice([r.randint(2, 20), r.randint(2, 99), r.randint(100, 999)])
        owner = r.choice(NOUNS["person"])
        name = r.choice(NAMES[r.choice("mf")])
        en = {
            "def": f"the {en_tail}",
            "defp": f"the {en_tail}",
            "indef": f"{_article_en(en_tail)} {en_tail}",
            "poss": f"{possessive} {en_tail}",
            "possp": f"{possessive} {en_tail}",
            "this": f"this {en_tail}",
            "these": f"these {en_tail}",
            "bare": en_tail,
            "many": f"many {en_tail}",
            "some": f"some {en_tail}",
            "every": f"every {en_tail}",
            "num": f"{number_en(number)} {en_tail}",
            "name": f"{name}'s {en_tail}",
            "gen": f"the {owner.en}'s {en_tail}",
        }[determiner]
        de = {}
        for case in ("nom", "acc", "dat"):
            tail = ""
            declension = "weak"
            if determiner in ("def", "defp", "gen"):
                word = _DEF[case][g]
            elif determiner in ("this", "these", "every"):
                word = ("jed" if determiner == "every" else "dies") + _STRONG[case][g]
            elif determiner in ("indef", "poss", "possp"):
                stem = "ein" if determiner == "indef" else _POSSESSIVES[possessive]
                ending = _MIXED[case][g]
                word = stem + ending
                declension = "mixed"
            else:
                declension = "strong"
                word = {
                    "bare": "",
                    "num": number_de(number),
                    "name": name + "s",
                    "many": "viel" + _STRONG[case]["p"],
                    "some": "einig" + _STRONG[case]["p"],
                }[determiner]
            if determiner == "gen":
                tail = f"{_DEF['gen'][owner.gender]} {owner.german('gen', False)}"
            inflected = adjective.stem + _adj_ending(declension, case, g) if adjective else ""
            de[case] = join(word, inflected, noun.german(case, plural), tail)
        return NP(
            en,
            en,
            "p" if plural else "3s",
            de,
            indefinite=determiner in ("indef", "bare"),
            noun=noun,
            plural=plural,
        )

    def time(self) -> tuple[str, str]:
        """A time adjunct."""
        r = self.rng
        x = r.random()
        if x < 0.25:
            en, de = r.choice(DAYS)
            return f"on {en}", f"am {de}"
        if x < 0.45:
            en, de = r.choice(MONTHS)
            day = r.randint(1, 28)
            return f"on {day} {en}", f"am {day}. {de}"
        if x < 0.55:
            en, de = r.choice(_HOURS)
            return f"at {en} o'clock", f"um {de} Uhr"
        if x < 0.62:
            en, de = r.choice(MONTHS)
            return f"in {en}", f"im {de}"
        if x < 0.70:
            year = r.randint(1900, 2029)
            return f"in {year}", f"im Jahr {year}"
        return r.choice(_PARTS)

    def place(self) -> tuple[str, str]:
        """A place adjunct with the dative."""
        if self.rng.random() < 0.15:
            en, de = self.rng.choice(CITIES)
            return f"in {en}", f"in {de}"
        noun = self.rng.choice(NOUNS["place"])
        adjective = self.rng.choice(suited(noun.kind)) if self.rng.random() < self.rich / 2 else None
        determiner = self.rng.choice(["def", "def", "def", "indef", "poss", "this"])
        np = self.build(noun, adjective, determiner)
        return f"{noun.preps[0]} {np.en}", contract(f"{noun.preps[1]} {np.de['dat']}")

    def goal(self) -> tuple[str, str]:
        """Where a movement goes."""
        if self.rng.random() < 0.3:
            en, de = self.rng.choice(CITIES)
            return f"to {en}", f"nach {de}"
        noun = self.rng.choice(NOUNS["place"])
        adjective = self.rng.choice(suited(noun.kind)) if self.rng.random() < self.rich / 2 else None
        np = self.build(noun, adjective, self.rng.choice(["def", "def", "indef", "poss"]))
        return f"to {np.en}", contract(f"zu {np.de['dat']}")

    def clause(
        self,
        frame: str,
        tense: str,
        *,
        subject: NP | None = None,
        gap: bool = False,
        adjuncts: float = 0.5,
        verb: Verb | None = None,
        negate: bool = True,
        time: tuple[str, str] | None = None,
        adverbs: bool = True,
    ) -> Clause:
        """Build a clause. A gap leaves out the direct object (object relative clauses)."""
        r = self.rng
        if subject is None:
            kinds = ("person",) * 6 + (("animal",) if frame in ("intrans", "motion", "trans") else ())
            if frame in ("pred", "comp"):
                kinds = ("person", "animal", "thing", "place", "closed")
            subject = self.noun_phrase(kinds)
        if verb is None and frame in VERBS:
            verb = r.choice(VERBS[frame])
        negated = negate and tense != "must" and r.random() < 0.18
        adverb = ("", "")
        if adverbs and r.random() < 0.15 and not negated and frame != "age":
            adverb = r.choice(_FREQUENCY)
        pronouns, objects_en, nps_de, after_de = "", [], [], []
        negator = "nicht" if negated else ""
        if frame == "trans" and not gap:
            assert verb is not None
            np = self.noun_phrase(verb.objects, pronouns=verb.en.split()[-1] not in _PARTICLES)
            objects_en.append(np.en_object)
            if np.pronoun:
                pronouns = np.de["acc"]
            elif negated and np.indefinite:
                nps_de.append(_kein(np, "acc"))
                negator = ""
            else:
                nps_de.append(np.de["acc"])
        elif frame == "dative" and not gap:
            assert verb is not None
            np = self.noun_phrase(verb.objects)
            objects_en.append(np.en_object)
            if np.pronoun:
                pronouns = np.de["dat"]
            else:
                nps_de.append(np.de["dat"])
        elif frame == "ditrans":
            assert verb is not None
            to = self.noun_phrase(("person",))
            np = self.noun_phrase(verb.objects, simple=True)
            objects_en += [to.en_object, np.en_object]
            if to.pronoun:
                pronouns = to.de["dat"]
            else:
                nps_de.append(to.de["dat"])
            if negated and np.indefinite:
                nps_de.append(_kein(np, "acc"))
                negator = ""
            else:
                nps_de.append(np.de["acc"])
        elif frame == "prep":
            assert verb is not None
            assert verb.prep is not None
            np = self.noun_phrase(verb.objects)
            objects_en.append(np.en_object)
            after_de.append(contract(f"{verb.prep[0]} {np.de[verb.prep[1]]}"))
        elif frame == "motion":
            en, de = self.goal()
            objects_en.append(en)
            after_de.append(de)
        elif frame == "pred":
            adjective = r.choice(suited(subject.noun.kind if subject.noun else "person"))
            very = r.random() < 0.3
            objects_en.append(("very " if very else "") + adjective.en)
            after_de.append(("sehr " if very else "") + adjective.de)
        elif frame == "comp":
            adjective = r.choice(
                [a for a in suited(subject.noun.kind if subject.noun else "person") if a.comparative_de]
            )
            other = self.noun_phrase((subject.noun.kind if subject.noun else "person",), pronouns=False)
            if r.random() < 0.3:
                objects_en.append(f"as {adjective.en} as {other.en_object}")
                after_de.append(f"so {adjective.de} wie {other.de['nom']}")
            else:
                objects_en.append(f"{adjective.comparative_en} than {other.en_object}")
                after_de.append(f"{adjective.comparative_de} als {other.de['nom']}")
        elif frame == "age":
            n = r.randint(2, 99)
            objects_en.append(f"{number_en(n)} years old")
            after_de.append(f"{number_de(n)} Jahre alt")
        if frame in ("trans", "dative", "ditrans", "intrans", "prep") and r.random() < adjuncts * 0.6:
            en, de = self.place()
            objects_en.append(en)
            after_de.append(de)
        if time is None:
            time = ("", "")
            if frame not in ("comp", "age") and r.random() < adjuncts:
                time = self.time()
        return _assemble(
            subject,
            verb,
            tense,
            negated,
            adverb,
            pronouns,
            " ".join(objects_en),
            time,
            join(adverb[1], *nps_de, negator, *after_de),
        )

    def sentence(self, kind: str, frame: str, tense: str, frame2: str = "") -> tuple[str, str]:
        """One sentence pair of the template."""
        r = self.rng
        self.rich = 0.4 if kind in SINGLE else 0.22
        if kind in SINGLE:
            return self._single(kind, frame, tense)
        tense2 = "past"
        if tense not in ("past", "wanted", "had", "perf"):
            tense2 = r.choice(("pres", "pres", "perf", "can", "must", "want"))
            if frame2 in ("pred", "comp", "age"):
                tense2 = "pres"
        if kind in _SUB or kind in ("and", "but", "that"):
            second = self.clause(frame2, tense2, adjuncts=0.2)
            first = self.clause(frame, tense, adjuncts=0.3)
            if kind == "that":
                en, third, past = r.choice(
                    [
                        ("say", "says", "said"),
                        ("know", "knows", "knew"),
                        ("hope", "hopes", "hoped"),
                        ("believe", "believes", "believed"),
                    ]
                )
                verb = {"say": "sagen", "know": "wissen", "hope": "hoffen", "believe": "glauben"}[en]
                who = self.noun_phrase(("person",))
                if r.random() < 0.5:
                    de = _THAT_PAST[verb]
                    de += {"1s": "", "2s": "st", "3s": "", "p": "n"}[who.person]
                    return (
                        f"{who.en} {past} that {first.en()}.",
                        f"{who.de['nom']} {de}, dass {first.de_verb_final()}.",
                    )
                de = _THAT_PRESENT[verb][who.person]
                en = third if who.person == "3s" else en
                return (
                    f"{who.en} {en} that {first.en()}.",
                    f"{who.de['nom']} {de}, dass {first.de_verb_final()}.",
                )
            if kind in ("and", "but"):
                conj = {"and": "und", "but": "aber"}[kind]
                return (
                    f"{first.en()}, {kind} {second.en()}.",
                    f"{first.de()}, {conj} {second.de()}.",
                )
            en, de = _SUB[kind]
            if kind.startswith("front"):
                return (
                    f"{en} {second.en()}, {first.en()}.",
                    f"{de} {second.de_verb_final()}, {first.de_inverted()}.",
                )
            return (
                f"{first.en()} {en} {second.en()}.",
                f"{first.de()}, {de} {second.de_verb_final()}.",
            )
        if kind == "purpose":
            first = self.clause(frame, tense, adjuncts=0.3, negate=False)
            second = self.clause(frame2, "pres", subject=first.subject, adjuncts=0.2, negate=False)
            return (
                f"{first.en()} in order to {second.en_infinitive()}.",
                f"{first.de()}, um {second.de_zu}.",
            )
        # Relative clauses on the subject (gap: subject or object) or on the object.
        kinds = ("person", "person", "animal") if kind != "relobj" else ("person", "animal")
        head = self._head(kinds)
        if kind == "relobj":
            verb = r.choice([v for v in VERBS[frame2] if set(kinds) <= set(v.objects)] or VERBS[frame2])
            if head.noun is not None and head.noun.kind not in verb.objects:
                head = self._head(tuple(k for k in kinds if k in verb.objects) or ("person",))
            inner = self.clause(frame2, tense2, gap=True, verb=verb, adjuncts=0.15)
            case = "acc" if frame2 == "trans" else "dat"
            body_en = inner.en()
            body_de = join(_relative(case, head.gender), inner.de_verb_final())
        else:
            proxy = NP("", "", head.person, {"nom": "", "acc": "", "dat": ""})
            inner = self.clause(frame2, tense2, subject=proxy, adjuncts=0.15)
            body_en = inner.en_predicate()
            body_de = join(_relative("nom", head.gender), inner.de_verb_final(subject=False))
        assert head.noun is not None
        who = "that"
        if head.noun.kind == "person":
            who = "whom" if kind == "relobj" else "who"
        if kind == "objrel":
            outer = self.clause(
                frame,
                tense,
                adjuncts=0.0,
                gap=True,
                negate=False,
                verb=r.choice([v for v in VERBS[frame] if head.noun.kind in v.objects]),
            )
            case = "acc" if frame == "trans" else "dat"
            en = join(outer.en(time=False), f"{head.en_object} {who} {body_en}.")
            german = join(
                outer.subject.de["nom"],
                outer.de_finite,
                outer.de_middle,
                head.de[case],
                outer.de_end,
            )
            return en, f"{german}, {body_de}."
        subject = NP(
            head.en,
            head.en_object,
            head.person,
            head.de,
            noun=head.noun,
            plural=head.plural,
            extra_en=f"{who} {body_en}",
            extra_de=f", {body_de},",
        )
        main = self.clause(frame, tense, subject=subject, adjuncts=0.2)
        return f"{main.en()}.", f"{main.de()}."

    def _head(self, kinds: tuple[str, ...]) -> NP:
        noun = self.rng.choice(NOUNS[self.rng.choice(kinds)])
        adjective = self.rng.choice(suited(noun.kind)) if self.rng.random() < self.rich else None
        return self.build(noun, adjective, self.rng.choice(["def", "def", "def", "defp", "indef", "this"]))

    def _single(self, kind: str, frame: str, tense: str) -> tuple[str, str]:
        r = self.rng
        if kind == "fact":
            return self._fact(frame)
        if kind == "who":
            who = NP("who", "who", "3s", {"nom": "wer", "acc": "wer", "dat": "wer"})
            clause = self.clause(frame, tense, subject=who, adjuncts=0.6)
            return f"{clause.en()}?", f"{clause.de()}?"
        if kind == "front":
            clause = self.clause(frame, tense, adjuncts=0.6, time=self.time())
            return (
                f"{clause.en_time} {clause.en(time=False)}.",
                f"{clause.de_time} {clause.de_inverted(time=False)}.",
            )
        if kind == "wh":
            en, de = r.choice([("where", "wo"), ("when", "wann"), ("why", "warum"), ("how often", "wie oft")])
            why = en == "why"
            clause = self.clause(frame, tense, adjuncts=0.6 if why else 0.0, adverbs=why)
            return f"{en} {clause.en_question()}?", f"{de} {clause.de_inverted()}?"
        clause = self.clause(frame, tense, adjuncts=0.6)
        if kind == "main":
            return f"{clause.en()}.", f"{clause.de()}."
        return f"{clause.en_question()}?", f"{clause.de_inverted()}?"

    def _fact(self, which: str) -> tuple[str, str]:
        """Numbers and dates: prices, birthdays, lengths, counts."""
        r = self.rng
        number = r.choice([r.randint(2, 99), r.randint(100, 999)])
        day, year = r.randint(1, 28), r.randint(1900, 2029)
        month_en, month_de = r.choice(MONTHS)
        if which == "price":
            np = self.noun_phrase(("thing", "closed", "food"), pronouns=False, simple=True)
            verb_en, verb_de = ("costs", "kostet") if np.person == "3s" else ("cost", "kosten")
            return (
                f"{np.en} {verb_en} {number_en(number)} euros.",
                f"{np.de['nom']} {verb_de} {number_de(number)} Euro.",
            )
        if which == "born":
            np = self.noun_phrase(("person",))
            en = "was" if np.person in ("1s", "3s") else "were"
            de = {"1s": "wurde", "2s": "wurdest", "3s": "wurde", "p": "wurden"}[np.person]
            city_en, city_de = r.choice(CITIES)
            return (
                f"{np.en} {en} born on {day} {month_en} {year} in {city_en}.",
                f"{np.de['nom']} {de} am {day}. {month_de} {year} in {city_de} geboren.",
            )
        if which == "height":
            np = self.build(r.choice(NOUNS["place"]), None, r.choice(["def", "this", "poss"]))
            return (
                f"{np.en} is {number_en(number)} metres long.",
                f"{np.de['nom']} ist {number_de(number)} Meter lang.",
            )
        if which == "distance":
            a, b = r.sample(CITIES, 2)
            return (
                f"it is {number_en(number)} kilometres from {a[0]} to {b[0]}.",
                f"es sind {number_de(number)} Kilometer von {a[1]} nach {b[1]}.",
            )
        noun = r.choice([n for k in ("person", "animal", "thing", "food") for n in NOUNS[k]])
        place_en, place_de = self.place()
        return (
            f"there are {number_en(number)} {noun.en_plural} {place_en}.",
            f"es gibt {number_de(number)} {noun.german('acc', True)} {place_de}.",
        )


FACTS = ("price", "born", "height", "distance", "count")
_THAT_PRESENT = {
    "sagen": {"1s": "sage", "2s": "sagst", "3s": "sagt", "p": "sagen"},
    "wissen": {"1s": "weiß", "2s": "weißt", "3s": "weiß", "p": "wissen"},
    "hoffen": {"1s": "hoffe", "2s": "hoffst", "3s": "hofft", "p": "hoffen"},
    "glauben": {"1s": "glaube", "2s": "glaubst", "3s": "glaubt", "p": "glauben"},
}
_THAT_PAST = {"sagen": "sagte", "wissen": "wusste", "hoffen": "hoffte", "glauben": "glaubte"}


def _kein(np: NP, case: str) -> str:
    """Negate an indefinite phrase: einen Hund -> keinen Hund, Hunde -> keine Hunde."""
    text = np.de[case]
    if not np.plural:
        return "k" + text
    words = text.split(" ")
    if len(words) == 2:  # the adjective turns from strong to mixed
        words[0] = words[0][:-1] + "en" if words[0].endswith("e") else words[0]
    return "keine " + " ".join(words)


def _relative(case: str, gender: str) -> str:
    return "denen" if (case, gender) == ("dat", "p") else _DEF[case][gender]


def _assemble(
    subject: NP,
    verb: Verb | None,
    tense: str,
    negated: bool,
    adverb: tuple[str, str],
    pronouns: str,
    objects_en: str,
    time: tuple[str, str],
    middle: str,
) -> Clause:
    """Conjugate both languages and hand out the pieces of a clause."""
    p = subject.person
    third = p == "3s"
    base_en = verb.en if verb else "be"
    if verb:
        present, past, participle_en = (
            (verb.en_third() if third else verb.en),
            verb.en_past,
            verb.en_participle,
        )
        infinitive, prefix = verb.infinitive, verb.prefix
        present_de, past_de, participle = verb.present(p), verb.preterite(p), verb.participle
        perfect = _SEIN[p] if verb.sein else _HABEN[p]
        zu = verb.zu_infinitive()
    else:
        present, past, participle_en = _BE_EN[p], "was" if p in ("1s", "3s") else "were", "been"
        infinitive, prefix, present_de, past_de, participle = (
            "sein",
            "",
            _SEIN[p],
            _WAR[p],
            "gewesen",
        )
        perfect, zu = _SEIN[p], "zu sein"
    full = prefix + infinitive
    do = {"pres": "does" if third else "do", "past": "did"}
    neg = "not" if negated else ""
    aux, rest = "", base_en
    finite_en = {"pres": present, "past": past}.get(tense, "")
    if tense in ("pres", "past"):
        if verb is None:
            aux, rest, question = finite_en, "", (finite_en, "")
        else:
            aux = do[tense] if negated else ""
            question = (do[tense], base_en)
    elif tense == "perf":
        aux, rest = "has" if third else "have", participle_en
        question = (aux, rest)
    elif tense in ("fut", "can", "must", "should"):
        aux = {"fut": "will"}.get(tense, tense)
        question = (aux, base_en)
    else:  # wants to, wanted to, had to
        word = {"want": "want", "wanted": "want", "had": "have"}[tense]
        do_word = do["pres"] if tense == "want" else "did"
        question = (do_word, f"{word} to {base_en}")
        if negated:
            aux, rest = do_word, f"{word} to {base_en}"
        else:
            finite_en = {"want": "wants" if third else "want", "wanted": "wanted", "had": "had"}[tense]
            finite_en += f" to {base_en}"
    if tense in ("pres", "past"):
        finite = present_de if tense == "pres" else past_de
        end, final = prefix, prefix + finite
    elif tense == "perf":
        finite, end = perfect, participle
        final = f"{participle} {perfect}"
    else:
        finite, end = _MODAL_DE[tense][p], full
        final = f"{full} {finite}"
    en_verb = join(rest, objects_en) if aux else objects_en
    clause = Clause(
        subject,
        aux,
        neg,
        adverb[0],
        en_verb,
        "" if aux else finite_en,
        question,
        time[0],
        finite,
        pronouns,
        time[1],
        middle,
        end,
        final,
        join(pronouns, time[1], middle, zu),
    )
    return clause


def templates() -> list[tuple[str, str, str, str]]:
    """All recipes: (sentence type, frame, tense, second frame)."""
    result: list[tuple[str, str, str, str]] = []
    plain = ("pres", "past", "fut", "perf")
    for kind in SINGLE:
        if kind == "fact":
            result += [(kind, f, "pres", "") for f in FACTS]
            continue
        for frame in FRAMES:
            tenses = plain if frame in ("pred", "comp", "age") else TENSES
            result += [(kind, frame, t, "") for t in tenses]
    for kind in DOUBLE:
        for frame in FRAMES:
            if kind == "objrel" and frame not in ("trans", "dative"):
                continue
            if kind == "purpose" and frame in ("pred", "comp", "age"):
                continue
            for frame2 in FRAMES:
                if kind == "relobj" and frame2 not in ("trans", "dative"):
                    continue
                if kind == "purpose" and frame2 in ("pred", "comp", "age"):
                    continue
                if kind == "that" and frame2 != "trans":
                    continue
                tenses = plain if frame in ("pred", "comp", "age") else TENSES
                result += [(kind, frame, t, "" if kind == "that" else frame2) for t in tenses]
    return result


def is_heldout(template: tuple[str, str, str, str]) -> bool:
    """Every tenth template by hash; the five fact templates stay in training."""
    digest = hashlib.sha256("/".join(template).encode()).digest()
    return template[0] != "fact" and digest[0] % 10 == 0


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def pairs(seed: int, heldout: bool) -> Iterator[tuple[str, str, str]]:
    """An endless stream of (English, German, template name)."""
    rng = random.Random(seed)
    grammar = Grammar(rng)
    by_kind: dict[str, list[tuple[str, str, str, str]]] = {}
    for template in templates():
        if is_heldout(template) == heldout:
            by_kind.setdefault(template[0], []).append(template)
    kinds = list(by_kind)
    while True:
        template = rng.choice(by_kind[rng.choice(kinds)])
        en, de = grammar.sentence(*template)
        yield _capital(en), _capital(de), "/".join(t for t in template if t)


def write(path: Path, seed: int, count: int, heldout: bool) -> None:
    """Write distinct pairs as JSON lines."""
    seen: set[str] = set()
    with path.open("w", encoding="utf-8") as out:
        for en, de, name in pairs(seed, heldout):
            if en in seen:
                continue
            seen.add(en)
            line = {"prompt": en, "reference": de, "template": name}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            if len(seen) == count:
                return


def main() -> None:
    """Write the corpus files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, help="training pairs (JSON lines)")
    parser.add_argument("--train-sentences", type=int, default=400_000)
    parser.add_argument("--heldout", type=Path, help="pairs from held-out templates")
    parser.add_argument("--heldout-sentences", type=int, default=500)
    args = parser.parse_args()
    if args.train:
        write(args.train, 1, args.train_sentences, heldout=False)
    if args.heldout:
        write(args.heldout, 2, args.heldout_sentences, heldout=True)


if __name__ == "__main__":
    main()
