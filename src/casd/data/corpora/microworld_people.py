"""Words of the microworld: people, activities, times and places."""

from __future__ import annotations

from casd.data.corpora.microworld_lexicon import Person, parse_phrases, rows


def _people() -> tuple[Person, ...]:
    people = []
    for en, fr, de in rows(_ROLES):
        (fr_man, fr_woman), de_forms = fr.split(), de.split()
        people.append(
            Person(en, fr_man, de_forms[0], de_forms[2] if len(de_forms) == 3 else de_forms[0], female=False, proper=False)
        )
        people.append(Person(en, fr_woman, de_forms[1], de_forms[1], female=True, proper=False))
    for names, female in ((_WOMEN, True), (_MEN, False)):
        people += [Person(name, name, name, name, female, proper=True) for name in names.split()]
    return tuple(people)


# Role | French man, woman | German man, woman, and the man's accusative if it differs from the nominative.
_ROLES = """
baker      | boulanger boulangère      | Bäcker Bäckerin
teacher    | enseignant enseignante    | Lehrer Lehrerin
gardener   | jardinier jardinière      | Gärtner Gärtnerin
farmer     | fermier fermière          | Landwirt Landwirtin
nurse      | infirmier infirmière      | Pfleger Pflegerin
student    | étudiant étudiante        | Student Studentin Studenten
neighbor   | voisin voisine            | Nachbar Nachbarin Nachbarn
tourist    | touriste touriste         | Tourist Touristin Touristen
customer   | client cliente            | Kunde Kundin Kunden
colleague  | collègue collègue         | Kollege Kollegin Kollegen
cook       | cuisinier cuisinière      | Koch Köchin
painter    | peintre peintre           | Maler Malerin
singer     | chanteur chanteuse        | Sänger Sängerin
dancer     | danseur danseuse          | Tänzer Tänzerin
musician   | musicien musicienne       | Musiker Musikerin
writer     | écrivain écrivaine        | Autor Autorin
reader     | lecteur lectrice          | Leser Leserin
seller     | vendeur vendeuse          | Verkäufer Verkäuferin
worker     | ouvrier ouvrière          | Arbeiter Arbeiterin
driver     | conducteur conductrice    | Fahrer Fahrerin
artist     | artiste artiste           | Künstler Künstlerin
pupil      | élève élève               | Schüler Schülerin
visitor    | visiteur visiteuse        | Besucher Besucherin
engineer   | ingénieur ingénieure      | Ingenieur Ingenieurin
lawyer     | avocat avocate            | Anwalt Anwältin
swimmer    | nageur nageuse            | Schwimmer Schwimmerin
runner     | coureur coureuse          | Läufer Läuferin
player     | joueur joueuse            | Spieler Spielerin
mechanic   | mécanicien mécanicienne   | Mechaniker Mechanikerin
friend     | ami amie                  | Freund Freundin
cousin     | cousin cousine            | Cousin Cousine
fisher     | pêcheur pêcheuse          | Fischer Fischerin
assistant  | assistant assistante      | Assistent Assistentin Assistenten
inventor   | inventeur inventrice      | Erfinder Erfinderin
librarian  | bibliothécaire bibliothécaire | Bibliothekar Bibliothekarin
carpenter  | menuisier menuisière      | Tischler Tischlerin
"""
_WOMEN = "Anna Clara Emma Julia Laura Lena Maria Nina Paula Sofia Eva Ida"
_MEN = "Adam Daniel David Felix Hugo Jonas Leo Lucas Martin Oscar Paul Simon"

PEOPLE = _people()

# Verbs whose object is a person.
MEETINGS = parse_phrases(
    """
greets     | salue      | grüßt
meets      | rencontre  | trifft
awaits     | attend     | erwartet
encourages | encourage  | ermutigt
recognizes | reconnaît  | erkennt
calls      | appelle    | ruft
hugs       | embrasse   | umarmt
"""
)

# Verbs without an object.
ACTIVITIES = parse_phrases(
    """
works     | travaille  | arbeitet
rests     | se repose  | ruht
sings     | chante     | singt
dances    | danse      | tanzt
plays     | joue       | spielt
dreams    | rêve       | träumt
sleeps    | dort       | schläft
reads     | lit        | liest
waits     | attend     | wartet
laughs    | rit        | lacht
"""
)
ADVERBS = parse_phrases(
    """
quietly  | tranquillement | ruhig
happily  | joyeusement    | fröhlich
softly   | doucement      | leise
again    | encore         | wieder
patiently | patiemment    | geduldig
gladly   | volontiers     | gern
a little | un peu         | ein wenig
for an hour | une heure   | eine Stunde
"""
)
TIMES = parse_phrases(
    """
in the morning     | le matin           | am Morgen
in the afternoon   | l'après-midi       | am Nachmittag
in the evening     | le soir            | am Abend
at noon            | à midi             | am Mittag
every day          | chaque jour        | jeden Tag
every week         | chaque semaine     | jede Woche
every morning      | chaque matin       | jeden Morgen
on Monday          | lundi              | am Montag
on Tuesday         | mardi              | am Dienstag
on Wednesday       | mercredi           | am Mittwoch
on Thursday        | jeudi              | am Donnerstag
on Friday          | vendredi           | am Freitag
on Saturday        | samedi             | am Samstag
on Sunday          | dimanche           | am Sonntag
in spring          | au printemps       | im Frühling
in summer          | en été             | im Sommer
in autumn          | en automne         | im Herbst
in winter          | en hiver           | im Winter
today              | aujourd'hui        | heute
sometimes          | parfois            | manchmal
"""
)
PLACES = parse_phrases(
    """
in the garden        | dans le jardin         | im Garten
at the market        | au marché              | auf dem Markt
in the kitchen       | dans la cuisine        | in der Küche
at school            | à l'école              | in der Schule
in the park          | dans le parc           | im Park
by the river         | près de la rivière     | am Fluss
in the village       | dans le village        | im Dorf
at the station       | à la gare              | am Bahnhof
in the library       | dans la bibliothèque   | in der Bibliothek
on the bridge        | sur le pont            | auf der Brücke
in the forest        | dans la forêt          | im Wald
on the beach         | sur la plage           | am Strand
in the museum        | dans le musée          | im Museum
in the shop          | dans le magasin        | im Laden
at home              | à la maison            | zu Hause
in the hotel         | dans l'hôtel           | im Hotel
in the street        | dans la rue            | auf der Straße
on the farm          | à la ferme             | auf dem Bauernhof
by the lake          | près du lac            | am See
in the office        | au bureau              | im Büro
in the theater       | au théâtre             | im Theater
on the balcony       | sur le balcon          | auf dem Balkon
by the window        | près de la fenêtre     | am Fenster
in the courtyard     | dans la cour           | im Hof
in the city          | en ville               | in der Stadt
"""
)
# Openings of continuations; English and French set a comma, German does not.
OPENINGS = parse_phrases(
    """
then,             | ensuite,              | dann
later,            | plus tard,            | später
soon,             | bientôt,              | bald
after lunch,      | après le déjeuner,    | nach dem Mittagessen
after work,       | après le travail,     | nach der Arbeit
before dinner,    | avant le dîner,       | vor dem Abendessen
"""
)
