"""Words of the microworld: adjectives, and the things, animals and places that they describe."""

from __future__ import annotations

from casd.data.corpora.microworld_lexicon import (
    Adjective,
    Scenery,
    Topic,
    parse_adjective,
    parse_noun,
    parse_nouns,
    parse_phrases,
    rows,
)


def _adjectives(names: str) -> tuple[Adjective, ...]:
    return tuple(ADJECTIVES[name] for name in names.split())


# English | French masculine, feminine, masculine before a vowel if it differs | before or after the noun | German stem
_ADJECTIVES = """
small       | petit petite               | before | klein
large       | grand grande               | before | groß
beautiful   | beau belle bel             | before | schön
old         | vieux vieille vieil        | before | alt
new         | nouveau nouvelle nouvel    | before | neu
pretty      | joli jolie                 | before | hübsch
young       | jeune jeune                | before | jung
good        | bon bonne                  | before | gut
long        | long longue                | before | lang
short       | court courte               | after  | kurz
friendly    | gentil gentille            | before | freundlich
red         | rouge rouge                | after  | rot
green       | vert verte                 | after  | grün
blue        | bleu bleue                 | after  | blau
white       | blanc blanche              | after  | weiß
black       | noir noire                 | after  | schwarz
yellow      | jaune jaune                | after  | gelb
brown       | brun brune                 | after  | braun
gray        | gris grise                 | after  | grau
heavy       | lourd lourde               | after  | schwer
light       | léger légère               | after  | leicht
simple      | simple simple              | after  | einfach
modern      | moderne moderne            | after  | modern
practical   | pratique pratique          | after  | praktisch
interesting | intéressant intéressante   | after  | interessant
funny       | drôle drôle                | after  | lustig
famous      | célèbre célèbre            | after  | berühmt
fresh       | frais fraîche              | after  | frisch
sweet       | sucré sucrée               | after  | süß
delicious   | délicieux délicieuse       | after  | köstlich
curious     | curieux curieuse           | after  | neugierig
quick       | rapide rapide              | after  | schnell
calm        | calme calme                | after  | ruhig
quiet       | tranquille tranquille      | after  | still
mild        | doux douce                 | after  | mild
clear       | clair claire               | after  | klar
warm        | chaud chaude               | after  | warm
bright      | lumineux lumineuse         | after  | hell
pleasant    | agréable agréable          | after  | angenehm
open        | ouvert ouverte             | after  | offen
clean       | propre propre              | after  | sauber
full        | plein pleine               | after  | voll
"""
ADJECTIVES = {row[0]: parse_adjective(*row) for row in rows(_ADJECTIVES)}
PERSON_ADJECTIVES = _adjectives("young old friendly")

_FOOD = """
apple      | pomme f        | Apfel m
pear       | poire f        | Birne f
cake       | gâteau m       | Kuchen m
orange     | orange f       | Orange f
tomato     | tomate f       | Tomate f
lemon      | citron m       | Zitrone f
cheese     | fromage m      | Käse m
salad      | salade f       | Salat m
soup       | soupe f        | Suppe f
melon      | melon m        | Melone f
carrot     | carotte f      | Karotte f
cherry     | cerise f       | Kirsche f
egg        | œuf m          | Ei n
mushroom   | champignon m   | Pilz m
strawberry | fraise f       | Erdbeere f
banana     | banane f       | Banane f
pancake    | crêpe f        | Pfannkuchen m
onion      | oignon m       | Zwiebel f
"""
_FOOD_VERBS = """
buys    | achète  | kauft
chooses | choisit | wählt
tastes  | goûte   | probiert
shares  | partage | teilt
sells   | vend    | verkauft
brings  | apporte | bringt
finds   | trouve  | findet
"""
_THINGS = """
lamp      | lampe f       | Lampe f
chair     | chaise f      | Stuhl m
table     | table f       | Tisch m
clock     | horloge f     | Uhr f
basket    | panier m      | Korb m
cup       | tasse f       | Tasse f
bottle    | bouteille f   | Flasche f
bag       | sac m         | Tasche f
key       | clé f         | Schlüssel m
box       | boîte f       | Kiste f
coat      | manteau m     | Mantel m
hat       | chapeau m     | Hut m
shoe      | chaussure f   | Schuh m
shirt     | chemise f     | Hemd n
scarf     | écharpe f     | Schal m
bicycle   | vélo m        | Fahrrad n
mirror    | miroir m      | Spiegel m
vase      | vase m        | Vase f
candle    | bougie f      | Kerze f
blanket   | couverture f  | Decke f
umbrella  | parapluie m   | Regenschirm m
ladder    | échelle f     | Leiter f
cupboard  | armoire f     | Schrank m
shelf     | étagère f     | Regal n
toy       | jouet m       | Spielzeug n
plate     | assiette f    | Teller m
spoon     | cuillère f    | Löffel m
suitcase  | valise f      | Koffer m
ring      | bague f       | Ring m
"""
_THING_VERBS = """
repairs   | répare  | repariert
cleans    | nettoie | putzt
carries   | porte   | trägt
finds     | trouve  | findet
admires   | admire  | bewundert
shows     | montre  | zeigt
describes | décrit  | beschreibt
draws     | dessine | zeichnet
buys      | achète  | kauft
"""
_TEXTS = """
book      | livre m      | Buch n
letter    | lettre f     | Brief m
poem      | poème m      | Gedicht n
story     | histoire f   | Geschichte f
newspaper | journal m    | Zeitung f
card      | carte f      | Karte f
novel     | roman m      | Roman m
article   | article m    | Artikel m
recipe    | recette f    | Rezept n
message   | message m    | Nachricht f
report    | rapport m    | Bericht m
list      | liste f      | Liste f
magazine  | revue f      | Zeitschrift f
page      | page f       | Seite f
"""
_TEXT_VERBS = """
reads      | lit     | liest
writes     | écrit   | schreibt
studies    | étudie  | studiert
translates | traduit | übersetzt
receives   | reçoit  | erhält
copies     | copie   | kopiert
explains   | explique | erklärt
"""
_ANIMALS = """
cat       | chat m        | Katze f
dog       | chien m       | Hund m
horse     | cheval m      | Pferd n
bird      | oiseau m      | Vogel m
rabbit    | lapin m       | Kaninchen n
goat      | chèvre f      | Ziege f
hen       | poule f       | Henne f
duck      | canard m      | Ente f
sheep     | mouton m      | Schaf n
cow       | vache f       | Kuh f
donkey    | âne m         | Esel m
squirrel  | écureuil m    | Eichhörnchen n
butterfly | papillon m    | Schmetterling m
fish      | poisson m     | Fisch m
frog      | grenouille f  | Frosch m
swan      | cygne m       | Schwan m
owl       | chouette f    | Eule f
turtle    | tortue f      | Schildkröte f
"""
_ANIMAL_VERBS = """
feeds       | nourrit     | füttert
watches     | observe     | beobachtet
admires     | admire      | bewundert
draws       | dessine     | zeichnet
protects    | protège     | schützt
photographs | photographie | fotografiert
finds       | trouve      | findet
"""
_PLANTS = """
flower    | fleur f      | Blume f
rose      | rose f       | Rose f
tree      | arbre m      | Baum m
tulip     | tulipe f     | Tulpe f
bush      | buisson m    | Busch m
plant     | plante f     | Pflanze f
sunflower | tournesol m  | Sonnenblume f
oak       | chêne m      | Eiche f
"""
_PLANT_VERBS = """
waters      | arrose       | gießt
plants      | plante       | pflanzt
admires     | admire       | bewundert
draws       | dessine      | zeichnet
photographs | photographie | fotografiert
"""
_INSTRUMENTS = """
piano   | piano m     | Klavier n
violin  | violon m    | Geige f
guitar  | guitare f   | Gitarre f
flute   | flûte f     | Flöte f
drum    | tambour m   | Trommel f
trumpet | trompette f | Trompete f
organ   | orgue m     | Orgel f
"""
_INSTRUMENT_VERBS = """
tunes   | accorde | stimmt
cleans  | nettoie | putzt
hears   | entend  | hört
buys    | achète  | kauft
repairs | répare  | repariert
"""

TOPICS = (
    Topic(parse_nouns(_FOOD), parse_phrases(_FOOD_VERBS), _adjectives("small large good fresh delicious")),
    Topic(
        parse_nouns(_THINGS),
        parse_phrases(_THING_VERBS),
        _adjectives(
            "small large beautiful old new pretty red green blue white black yellow brown gray heavy light simple modern"
            " practical"
        ),
    ),
    Topic(
        parse_nouns(_TEXTS),
        parse_phrases(_TEXT_VERBS),
        _adjectives("small beautiful old new long short interesting funny famous simple"),
    ),
    Topic(
        parse_nouns(_ANIMALS),
        parse_phrases(_ANIMAL_VERBS),
        _adjectives("small large beautiful young old curious quick calm brown white black gray"),
    ),
    Topic(parse_nouns(_PLANTS), parse_phrases(_PLANT_VERBS), _adjectives("small large beautiful old young pretty green")),
    Topic(
        parse_nouns(_INSTRUMENTS), parse_phrases(_INSTRUMENT_VERBS), _adjectives("small large beautiful old new modern simple")
    ),
)

_SCENERY = """
sky     | ciel m      | Himmel m  | clear gray blue bright
street  | rue f       | Straße f  | calm quiet clean large
air     | air m       | Luft f    | fresh mild clear warm
house   | maison f    | Haus n    | large quiet old warm
room    | chambre f   | Zimmer n  | bright clean warm small
light   | lumière f   | Licht n   | mild clear warm pleasant
garden  | jardin m    | Garten m  | green quiet beautiful pleasant
village | village m   | Dorf n    | quiet calm small old
city    | ville f     | Stadt f   | large modern beautiful old
river   | rivière f   | Fluss m   | calm long clear clean
music   | musique f   | Musik f   | quiet beautiful pleasant calm
water   | eau f       | Wasser n  | clear warm clean calm
evening | soirée f    | Abend m   | warm mild calm pleasant
kitchen | cuisine f   | Küche f   | warm clean bright large
market  | marché m    | Markt m   | full open large beautiful
door    | porte f     | Tür f     | open white green old
forest  | forêt f     | Wald m    | green quiet large beautiful
window  | fenêtre f   | Fenster n | open clean large bright
"""
SCENERY = tuple(Scenery(parse_noun(en, fr, de), _adjectives(predicates)) for en, fr, de, predicates in rows(_SCENERY))
