"""English and German words with rule-generated inflection.

One English word has exactly one German counterpart, so every sentence built from this lexicon has
exactly one reference translation. Words whose English forms would be ambiguous ("read", "sheep",
"put") are left out on purpose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Nouns: english[/plural] gender German plural [w = weak declension, or the genitive singular]
_NOUNS = {
    "person": """
man/men m Mann Männer; woman/women f Frau Frauen; child/children n Kind Kinder
boy m Junge Jungen w; girl n Mädchen Mädchen; teacher m Lehrer Lehrer
student m Student Studenten w; doctor m Arzt Ärzte; nurse f Krankenschwester Krankenschwestern
neighbour m Nachbar Nachbarn w; friend m Freund Freunde; colleague m Kollege Kollegen w
farmer m Bauer Bauern w; baker m Bäcker Bäcker; chef m Koch Köche; judge m Richter Richter
lawyer m Anwalt Anwälte; policeman/policemen m Polizist Polizisten w; soldier m Soldat Soldaten w
king m König Könige Königs; queen f Königin Königinnen; prince m Prinz Prinzen w
princess f Prinzessin Prinzessinnen; painter m Maler Maler; writer m Schriftsteller Schriftsteller
singer f Sängerin Sängerinnen; dancer f Tänzerin Tänzerinnen; mother f Mutter Mütter
father m Vater Väter; brother m Bruder Brüder; sister f Schwester Schwestern; uncle m Onkel Onkel
aunt f Tante Tanten; son m Sohn Söhne; daughter f Tochter Töchter
grandmother f Großmutter Großmütter; grandfather m Großvater Großväter; guest m Gast Gäste
driver m Fahrer Fahrer; tourist m Tourist Touristen w; engineer m Ingenieur Ingenieure
gardener m Gärtner Gärtner; waiter m Kellner Kellner; pilot m Pilot Piloten w
boss m Chef Chefs Chefs; actor m Schauspieler Schauspieler; butcher m Metzger Metzger
thief/thieves m Dieb Diebe; winner m Gewinner Gewinner; customer m Kunde Kunden w
sailor m Matrose Matrosen w; mayor m Bürgermeister Bürgermeister; pupil m Schüler Schüler
witness m Zeuge Zeugen w; hunter m Jäger Jäger; poet m Dichter Dichter
""",
    "animal": """
dog m Hund Hunde; cat f Katze Katzen; horse n Pferd Pferde; cow f Kuh Kühe; pig n Schwein Schweine
bird m Vogel Vögel; mouse/mice f Maus Mäuse; rabbit n Kaninchen Kaninchen; duck f Ente Enten
goose/geese f Gans Gänse; bear m Bär Bären w; wolf/wolves m Wolf Wölfe; fox m Fuchs Füchse
lion m Löwe Löwen w; monkey m Affe Affen w; snake f Schlange Schlangen; goat f Ziege Ziegen
elephant m Elefant Elefanten w; donkey m Esel Esel; frog m Frosch Frösche; tiger m Tiger Tiger
""",
    "thing": """
book n Buch Bücher; table m Tisch Tische; chair m Stuhl Stühle; lamp f Lampe Lampen
picture n Bild Bilder; car n Auto Autos Autos; bicycle n Fahrrad Fahrräder; clock f Uhr Uhren
key m Schlüssel Schlüssel; knife/knives n Messer Messer; fork f Gabel Gabeln
spoon m Löffel Löffel; plate m Teller Teller; cup f Tasse Tassen; coat m Mantel Mäntel
shirt n Hemd Hemden; hat m Hut Hüte; shoe m Schuh Schuhe; skirt m Rock Röcke
dress n Kleid Kleider; umbrella m Regenschirm Regenschirme; pen m Stift Stifte
newspaper f Zeitung Zeitungen; map f Karte Karten; ring m Ring Ringe; guitar f Gitarre Gitarren
violin f Geige Geigen; piano n Klavier Klaviere Klaviers; computer m Computer Computer
camera f Kamera Kameras; sofa n Sofa Sofas; mirror m Spiegel Spiegel; carpet m Teppich Teppiche
blanket f Decke Decken; pillow n Kissen Kissen; hammer m Hammer Hämmer; axe f Axt Äxte
basket m Korb Körbe; bucket m Eimer Eimer; ladder f Leiter Leitern; rope n Seil Seile
ship n Schiff Schiffe; boat n Boot Boote; wheel n Rad Räder; stone m Stein Steine
flower f Blume Blumen; ball m Ball Bälle; doll f Puppe Puppen; flag f Fahne Fahnen
coin f Münze Münzen; candle f Kerze Kerzen; ticket n Ticket Tickets Tickets
machine f Maschine Maschinen; bell f Glocke Glocken
""",
    "closed": """
door f Tür Türen; window n Fenster Fenster; box f Kiste Kisten; letter m Brief Briefe
bottle f Flasche Flaschen; suitcase m Koffer Koffer; bag f Tasche Taschen
drawer f Schublade Schubladen; gate n Tor Tore; parcel n Paket Pakete Pakets
cupboard m Schrank Schränke
""",
    "food": """
apple m Apfel Äpfel; pear f Birne Birnen; cake m Kuchen Kuchen; egg n Ei Eier
potato/potatoes f Kartoffel Kartoffeln; tomato/tomatoes f Tomate Tomaten; soup f Suppe Suppen
sausage f Wurst Würste; roll n Brötchen Brötchen; cherry f Kirsche Kirschen; nut f Nuss Nüsse
carrot f Karotte Karotten; onion f Zwiebel Zwiebeln; lemon f Zitrone Zitronen
strawberry f Erdbeere Erdbeeren; salad m Salat Salate Salats; plum f Pflaume Pflaumen
sandwich n Sandwich Sandwiches Sandwiches; mushroom m Pilz Pilze; steak n Steak Steaks Steaks
""",
    # A place names its prepositions: english/german (both with the dative).
    "place": """
garden m Garten Gärten in/in; kitchen f Küche Küchen in/in; house n Haus Häuser in/in
room n Zimmer Zimmer in/in; school f Schule Schulen at/in; office n Büro Büros in/in
park m Park Parks Parks in/in; forest m Wald Wälder in/in; city f Stadt Städte in/in
village n Dorf Dörfer in/in; church f Kirche Kirchen in/in; museum n Museum Museen in/in
hotel n Hotel Hotels in/in; restaurant n Restaurant Restaurants in/in
library f Bibliothek Bibliotheken in/in; hospital n Krankenhaus Krankenhäuser in/in
theatre n Theater Theater in/in; castle n Schloss Schlösser in/in; cellar m Keller Keller in/in
street f Straße Straßen on/auf; market m Markt Märkte at/auf; beach m Strand Strände on/an
lake m See Seen Sees at/an; river m Fluss Flüsse at/an; station m Bahnhof Bahnhöfe at/an
airport m Flughafen Flughäfen at/an; bridge f Brücke Brücken on/auf; hill m Hügel Hügel on/auf
mountain m Berg Berge on/auf; island f Insel Inseln on/auf; field n Feld Felder in/auf
factory f Fabrik Fabriken in/in; harbour m Hafen Häfen in/in; tower m Turm Türme in/in
valley n Tal Täler in/in; farm m Bauernhof Bauernhöfe on/auf; shop m Laden Läden in/in
prison n Gefängnis Gefängnisse in/in
""",
}

NAMES = {
    "m": ("Peter Paul Karl Martin Stefan Daniel Simon Robert Felix Oskar David Anton Jakob Emil Leo").split(),
    "f": ("Anna Maria Julia Laura Sophie Eva Clara Lena Nina Emma Helga Petra Sabine Monika Greta").split(),
}
CITIES = (
    "Berlin Hamburg Bremen Dresden Leipzig Kiel Rostock Bonn Paris London Madrid Oslo "
    "Lissabon:Lisbon Rom:Rome Wien:Vienna "
    "München:Munich Köln:Cologne Zürich:Zurich Genf:Geneva Prag:Prague "
    "Warschau:Warsaw Moskau:Moscow Athen:Athens Kairo:Cairo Peking:Beijing"
).split()
CITIES = [(c.split(":")[-1], c.split(":")[0]) for c in CITIES]

# Adjectives: english german [attributive stem] [comparative]; English comparatives are regular
# for one-syllable words listed with "er" forms below, otherwise "more ...".
_ADJECTIVES = """
old alt - älter older; young jung - jünger younger; big groß - größer bigger
small klein - kleiner smaller; new neu - neuer newer; good gut - besser better
bad schlecht - schlechter worse; long lang - länger longer; short kurz - kürzer shorter
beautiful schön - schöner; ugly hässlich - hässlicher uglier; rich reich - reicher richer
poor arm - ärmer poorer; strong stark - stärker stronger; weak schwach - schwächer weaker
heavy schwer - schwerer heavier; cheap billig - billiger cheaper; expensive teuer teur teurer
warm warm - wärmer warmer; cold kalt - kälter colder; happy glücklich - glücklicher happier
sad traurig - trauriger sadder; tired müde müd müder; clever klug - klüger cleverer
stupid dumm - dümmer; loud laut - lauter louder; quiet leise leis leiser quieter
fast schnell - schneller faster; slow langsam - langsamer slower
friendly freundlich - freundlicher friendlier; famous berühmt - berühmter
dangerous gefährlich - gefährlicher; important wichtig - wichtiger
dirty schmutzig - schmutziger dirtier; high hoch hoh höher higher
dark dunkel dunkl dunkler darker; bright hell - heller brighter; empty leer - leerer emptier
full voll - voller fuller; brave mutig - mutiger braver; lazy faul - fauler lazier
polite höflich - höflicher; strange seltsam - seltsamer stranger; modern modern - moderner
narrow schmal - schmaler narrower; wide breit - breiter wider; thick dick - dicker thicker
thin dünn - dünner thinner; angry wütend - wütender angrier; curious neugierig - neugieriger
careful vorsichtig - vorsichtiger; healthy gesund - gesünder healthier
sick krank - kränker sicker; proud stolz - stolzer prouder; red rot; green grün; blue blau
yellow gelb; black schwarz; white weiß; brown braun; grey grau
"""

# Verbs: english [past participle] | german [2nd/3rd person stem] [past participle][*] | objects.
# "+" marks a separable prefix, "-" an unchanged stem, "*" the auxiliary sein.
_VERBS = {
    "trans": """
see,saw,seen | sehen sieh sah gesehen | person animal thing closed place
love | lieben | person animal; find,found,found | finden - fand gefunden | animal thing closed
buy,bought,bought | kaufen | thing food closed; sell,sold,sold | verkaufen | thing food animal
visit | besuchen | person place; eat,ate,eaten | essen iss aß gegessen | food
cook | kochen | food; carry | tragen träg trug getragen | thing closed food
clean | putzen | thing closed; repair | reparieren | thing closed
draw,drew,drawn | zeichnen | person animal thing place
photograph | fotografieren | person animal place
know,knew,known | kennen - kannte gekannt | person place; hear,heard,heard | hören | person animal
look for | suchen | person animal thing closed; call | an+rufen - rief gerufen | person
pick up | ab+holen | person closed; open | öffnen | closed
close | schließen - schloss geschlossen | closed
wash | waschen wäsch wusch gewaschen | thing animal food
lose,lost,lost | verlieren - verlor verloren | thing closed
steal,stole,stolen | stehlen stiehl stahl gestohlen | thing closed
hide,hid,hidden | verstecken | thing closed food
bring along,brought along,brought along | mit+bringen - brachte gebracht | thing food person
need | brauchen | thing person
throw away,threw away,thrown away | weg+werfen wirf warf geworfen | thing food closed
invite | ein+laden läd lud geladen | person
forget,forgot,forgotten | vergessen vergiss vergaß vergessen | person thing
describe | beschreiben - beschrieb beschrieben | person animal thing place
paint | malen | person animal place thing; feed,fed,fed | füttern | animal
greet | begrüßen | person
understand,understood,understood | verstehen - verstand verstanden | person
recognise | erkennen - erkannte erkannt | person place thing; order | bestellen | food thing
borrow | aus+leihen - lieh geliehen | thing; build,built,built | bauen | place
collect | sammeln | thing food; catch,caught,caught | fangen fäng fing gefangen | animal person
hate | hassen | person animal place; introduce | vor+stellen | person
turn on | ein+schalten | thing; peel | schälen | food
pay for,paid for,paid for | bezahlen | thing food; sketch | skizzieren | place thing
observe | beobachten | person animal place; use | benutzen | thing closed
leave,left,left | verlassen verläss verließ verlassen | place person
""",
    "dative": """
help | helfen hilf half geholfen | person animal; thank | danken | person
follow | folgen * | person animal; answer | antworten | person; trust | vertrauen | person
congratulate | gratulieren | person; listen to | zu+hören | person; serve | dienen | person
believe | glauben | person
contradict | widersprechen widersprich widersprach widersprochen | person
""",
    "ditrans": """
give,gave,given | geben gib gab gegeben | thing food closed animal
show,showed,shown | zeigen | thing place animal closed; send,sent,sent | schicken | thing closed
lend,lent,lent | leihen - lieh geliehen | thing
bring,brought,brought | bringen - brachte gebracht | thing food closed
promise,promised,promised | versprechen versprich versprach versprochen | thing food
offer,offered,offered | an+bieten - bot geboten | food thing
recommend | empfehlen empfiehl empfahl empfohlen | place food thing
""",
    "intrans": """
sleep,slept,slept | schlafen schläf schlief geschlafen |; work | arbeiten |; laugh | lachen |
dance | tanzen |; sing,sang,sung | singen - sang gesungen |; cry | weinen |; play | spielen |
swim,swam,swum | schwimmen - schwamm geschwommen* |; smoke | rauchen |
stay | bleiben - blieb geblieben* |; get up,got up,got up | auf+stehen - stand gestanden* |
arrive | an+kommen - kam gekommen* |
fall asleep,fell asleep,fallen asleep | ein+schlafen schläf schlief geschlafen* |
wake up,woke up,woken up | auf+wachen * |; sit,sat,sat | sitzen - saß gesessen |
stand,stood,stood | stehen - stand gestanden |; wait | warten |; study | studieren |
appear | erscheinen - erschien erschienen* |
disappear | verschwinden - verschwand verschwunden* |; die | sterben stirb starb gestorben* |
whisper | flüstern |; go out,went out,gone out | aus+gehen - ging gegangen* |
""",
    # german preposition and case follow the participle slot: prep:case
    "prep": """
wait for | warten | auf:acc person animal
think of,thought of,thought of | denken - dachte gedacht | an:acc person place animal
dream of | träumen | von:dat person place thing
talk about | sprechen sprich sprach gesprochen | über:acc person place thing
laugh about | lachen | über:acc person animal
ask for | bitten - bat gebeten | um:acc thing food closed
play with | spielen | mit:dat animal person thing; talk to | reden | mit:dat person
begin with,began with,begun with | beginnen - begann begonnen | mit:dat food
fight against,fought against,fought against | kämpfen | gegen:acc person animal
smell of | riechen - roch gerochen | nach:dat food; work for | arbeiten | für:acc person
dance with | tanzen | mit:dat person
""",
    "motion": """
go,went,gone | gehen - ging gegangen* |; drive,drove,driven | fahren fähr fuhr gefahren* |
run,ran,run | laufen läuf lief gelaufen* |; come,came,come | kommen - kam gekommen* |
return | zurück+kehren * |; hurry | eilen * |; travel,travelled,travelled | reisen * |
ride,rode,ridden | reiten - ritt geritten* |; fly,flew,flown | fliegen - flog geflogen* |
""",
}

MONTHS = list(
    zip(
        ("January February March April May June July August September October November December").split(),
        ("Januar Februar März April Mai Juni Juli August September Oktober November Dezember").split(),
        strict=True,
    )
)
DAYS = list(
    zip(
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
        "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag".split(),
        strict=True,
    )
)

_E1 = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_E10 = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
_D1 = (
    "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn "
    "sechzehn siebzehn achtzehn neunzehn"
).split()
_D10 = "- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()


def number_en(n: int) -> str:
    """Spell 1..999 in English."""
    if n >= 100:
        rest = f" and {number_en(n % 100)}" if n % 100 else ""
        return f"{_E1[n // 100]} hundred{rest}"
    if n < 20:
        return _E1[n]
    return _E10[n // 10] + (f"-{_E1[n % 10]}" if n % 10 else "")


def number_de(n: int) -> str:
    """Spell 2..999 in German (as a determiner; 1 alone is never asked for)."""
    if n >= 100:
        rest = n % 100
        return f"{_D1[n // 100]}hundert" + ("eins" if rest == 1 else number_de(rest) if rest else "")
    if n < 20:
        return _D1[n]
    return (f"{_D1[n % 10]}und" if n % 10 else "") + _D10[n // 10]


def plural_en(noun: str) -> str:
    """The regular English plural."""
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if re.search(r"(s|x|z|ch|sh)$", noun) else "s")


@dataclass(frozen=True)
class Noun:
    """An English noun and its German counterpart with gender and case forms."""

    en: str
    en_plural: str
    gender: str
    de: str
    de_plural: str
    weak: bool
    genitive: str
    kind: str
    preps: tuple[str, str] = ("in", "in")

    def german(self, case: str, plural: bool) -> str:
        """The German form in nom, acc, dat or gen."""
        if plural:
            add_n = case == "dat" and self.de_plural[-1] not in "ns"
            return self.de_plural + ("n" if add_n else "")
        if self.weak and case != "nom":
            return self.de + ("n" if self.de[-1] in "er" and self.de_plural == self.de + "n" else "en")
        return self.genitive if case == "gen" else self.de


def _genitive(de: str, gender: str) -> str:
    if gender == "f":
        return de
    if de.endswith("nis"):
        return de + "ses"
    syllables = len(re.findall(r"[aeiouäöüy]+", de.lower()))
    return de + ("es" if syllables == 1 or re.search(r"(s|ß|x|z|sch)$", de) else "s")


def _entries(block: str) -> list[str]:
    return [e.strip() for e in re.split(r"[;\n]", block) if e.strip()]


def _noun(entry: str, kind: str) -> Noun:
    english, gender, de, plural, *extra = entry.split()
    en, _, en_plural = english.partition("/")
    preps = ("in", "in")
    if kind == "place":
        a, b = extra.pop().split("/")
        preps = (a, b)
    weak = extra == ["w"]
    genitive = extra[0] if extra and not weak else _genitive(de, gender)
    return Noun(en, en_plural or plural_en(en), gender, de, plural, weak, genitive, kind, preps)


NOUNS: dict[str, list[Noun]] = {kind: [_noun(e, kind) for e in _entries(block)] for kind, block in _NOUNS.items()}


@dataclass(frozen=True)
class Adjective:
    """An adjective; colours have no comparative."""

    en: str
    de: str
    stem: str
    comparative_de: str | None
    comparative_en: str | None


def _adjective(entry: str) -> Adjective:
    en, de, *rest = entry.split()
    stem = rest[0] if rest and rest[0] != "-" else de
    comparative = rest[1] if len(rest) > 1 else None
    comparative_en = None if comparative is None else rest[2] if len(rest) > 2 else f"more {en}"
    return Adjective(en, de, stem, comparative, comparative_en)


ADJECTIVES = [_adjective(e) for e in _entries(_ADJECTIVES)]


_FOR_BEINGS = set(
    "happy sad tired clever stupid friendly brave lazy polite angry curious careful healthy sick "
    "proud rich poor strong weak".split()
)
_FOR_THINGS = set(
    "new long short cheap expensive warm cold high dark bright empty full modern narrow wide "
    "thick thin red green blue yellow black white brown grey".split()
)


def suited(kind: str) -> list[Adjective]:
    """The adjectives that suit persons, animals or things."""
    return _SUITED[kind]


_SUITED = {
    kind: [
        a
        for a in ADJECTIVES
        if (a.en not in _FOR_THINGS or (kind == "animal" and a.en in "black white brown grey thin".split()))
        if kind in ("person", "animal")
    ]
    or [a for a in ADJECTIVES if a.en not in _FOR_BEINGS]
    for kind in NOUNS
}


@dataclass(frozen=True)
class Verb:
    """An English verb with its German counterpart; German finite forms leave the prefix out."""

    en: str
    en_past: str
    en_participle: str
    prefix: str
    infinitive: str
    changed: str | None
    past: str
    participle: str
    sein: bool
    objects: tuple[str, ...]
    prep: tuple[str, str] | None = None

    def en_third(self) -> str:
        """He goes, carries, looks for."""
        first, _, rest = self.en.partition(" ")
        return plural_en(first if first not in ("go",) else "goe") + (f" {rest}" if rest else "")

    def present(self, person: str) -> str:
        """German present: person is 1s, 2s, 3s or p (1st or 3rd plural)."""
        if person == "p":
            return self.infinitive
        stem = _stem(self.infinitive)
        if person == "1s":
            return (stem[:-2] + "l" if self.infinitive.endswith("eln") else stem) + "e"
        if self.changed:
            s = self.changed
            if person == "3s":
                return s if s.endswith("t") else s + "t"
            return s + ("t" if s[-1] in "sßz" else "st")
        e = "e" if _needs_e(stem) else ""
        if person == "3s":
            return stem + e + "t"
        return stem + ("t" if stem[-1] in "sßzx" else e + "st")

    def preterite(self, person: str) -> str:
        """German simple past."""
        p = self.past
        if p.endswith("e"):
            return p + {"1s": "", "2s": "st", "3s": "", "p": "n"}[person]
        two = "est" if p[-1] in "dtsßz" else "st"
        return p + {"1s": "", "2s": two, "3s": "", "p": "en"}[person]

    def zu_infinitive(self) -> str:
        """The infinitive with zu: zu sehen, anzurufen."""
        return f"{self.prefix}zu{self.infinitive}" if self.prefix else f"zu {self.infinitive}"


def _stem(infinitive: str) -> str:
    return infinitive[:-2] if infinitive.endswith("en") else infinitive[:-1]


def _needs_e(stem: str) -> bool:
    return bool(re.search(r"([td]|[^aeiouäöülrh][mn]|chn)$", stem)) and not re.search(r"(mm|nn)$", stem)


_INSEPARABLE = re.compile(r"^(be|er|ver|ent|ge(?!ben|hen)|zer|emp|wider)")


def _past_en(base: str) -> str:
    first, _, rest = base.partition(" ")
    if first.endswith("e"):
        past = first + "d"
    elif re.search(r"[^aeiou]y$", first):
        past = first[:-1] + "ied"
    else:
        past = first + "ed"
    return past + (f" {rest}" if rest else "")


def _verb(entry: str) -> Verb:
    english, german, objects = (p.strip() for p in entry.split("|"))
    forms = english.split(",")
    en, en_past, en_pp = forms if len(forms) == 3 else (english, _past_en(english), _past_en(english))
    inf, *rest = german.split()
    prefix, _, inf = inf.rpartition("+")
    stem = _stem(inf)
    sein = rest[-1:] == ["*"] or (len(rest) == 3 and rest[2].endswith("*"))
    if len(rest) == 3:
        changed, past, participle = rest[0], rest[1], rest[2].rstrip("*")
    else:
        e = "e" if _needs_e(stem) else ""
        ge = "" if _INSEPARABLE.match(inf) or inf.endswith("ieren") else "ge"
        changed, past, participle = "-", f"{stem}{e}te", f"{ge}{stem}{e}t"
    kinds = objects.split()
    prep = None
    if kinds and ":" in kinds[0]:
        a, b = kinds.pop(0).split(":")
        prep = (a, b)
    return Verb(
        en,
        en_past,
        en_pp,
        prefix,
        inf,
        None if changed == "-" else changed,
        past,
        prefix + participle,
        sein,
        tuple(kinds),
        prep,
    )


VERBS: dict[str, list[Verb]] = {frame: [_verb(e) for e in _entries(block)] for frame, block in _VERBS.items()}
