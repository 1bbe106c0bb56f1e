"""Manual pages as a source of text: the markup that is removed, the prose that is kept, and a corpus in three languages.

Run: python -m pytest tests/test_manual_pages.py
"""

from __future__ import annotations

import gzip
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from casd.config.compose import load_config
from casd.data.corpora import CORPORA
from casd.data.corpora.cutting import sentences
from casd.data.corpora.manual_pages import ManualPages
from casd.data.corpora.passages import Corpus
from casd.data.corpora.prose import Prose
from casd.data.corpora.roff import UNREADABLE, paragraphs, plain
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.registry import build

SPLITS = tuple(each.name for each in fields(Corpus))

PAGE = r"""'\" t
.\" A comment, and \fBmarkup\fP in it.
.TH open 2 2023-02-05 "Pages of a \
test"
.ie \n(.g .ds Aq \(aq
.el       .ds Aq '
.de XX
This is in the definition of a macro.
..
.if n \{\
.nh
This is in a conditional part.
.\}
.SH NAME
open \- this is the name of a page
.SH SYNOPSIS
.B #include <fcntl.h>
.SH DESCRIPTION
The
.BR open ()
call opens \fIa\fP file\c
, and returns
.IR "a descriptor" ;
see
.BR close (2).
.\" A comment does not end the paragraph.
It is \(lqquoted\(rq.\" nor does this one
.PD 0
.PP
A second \[u00E9]t\('e.
.nf
This is code.
.fi
.EX
This is, too.
.EE
.TS
l l.
This is	a table.
.TE
.SS The flags argument
.TP
.B O_RDONLY
This text belongs to a tag.
.TP 8
\fBO_RDWR\fP
.\" A comment between tag and text.
So does this.
.TQ
.B O_WRONLY
.IP \(bu 3
An item of a list.
.RS
.IP "a tag" 4
An inner item.
.RE

After an empty line.
  int set_as_it_is;
A link to the
.UR https://example.org
manual of the project
.UE .
.sp
A macro
.XX that\~is
not known.
.br
Two\ words\|, 2\u32\d.
.SH "SEE ALSO"
This is in a section to leave out.
.SS And this
in a part of it.
.SH
NOTES
The last one.
"""


def test_paragraphs_of_a_page():
    found = list(paragraphs(PAGE, {"name", "see also"}))
    texts = [" ".join(text.split()) for text in found]
    assert [text for text in texts if text] == [
        "#include <fcntl.h>",
        "The open() call opens a file, and returns a descriptor; see close(2). It is “quoted”.",
        "A second été.",
        "This text belongs to a tag.",
        "So does this.",
        "An item of a list.",
        "An inner item.",
        "After an empty line.",
        f"A link to the manual of the project {UNREADABLE}.",
        f"A macro {UNREADABLE}that is not known.",
        f"Two words, 2{UNREADABLE}32{UNREADABLE}.",
        "The last one.",
    ]
    start, end = texts.index("A second été."), texts.index("This text belongs to a tag.")
    assert set(texts[start + 1 : end]) == {""}, "code, a table and a heading end a run of sentences"
    assert "" not in texts[end : texts.index("After an empty line.")]


@pytest.mark.parametrize(
    "page",
    [
        ".Dd May 1, 2020\n.Dt LS 1\n.Sh DESCRIPTION\nThis page is written with other macros.\n",
        ".so man2/open.2\n",
        "",
        "This is no page at all, and has no title.\n",
    ],
)
def test_pages_without_the_macros_have_no_text(page):
    assert list(paragraphs(page)) == []


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"a\-b\&c\:d\%e\|f\^g\,h\/i", "a-bcdefghi"),
        (r"a\ b\~c\0d", "a b c d"),
        (r"C:\eDOS, \\, \(rs", r"C:\DOS, \, " + "\\"),
        (r"\fBbold\fP \fIand\fR \f(CWcode\fP \f[B]long\f[] \s-1SMALL\s0", "bold and code long SMALL"),
        (r"\s+2X\s0 \m[blue]link\m[]", "X link"),
        (r"\(aqa\(aq \[aq]b\[aq] \(dqc\(dq \(oqd\(cq \*(lqe\*(rq \(Foh\(Fc \*(Aqf", "'a' 'b' \"c\" ‘d’ “e” «h» 'f"),
        (r"a\(emb 1\(en2 \(bu \(co 5\(mc 2\(mu2 \(+-1 \(ha\(ti \(Eu", "a—b 1–2 • © 5µ 2×2 ±1 ^~ €"),
        (r"\[u00E9] \[u0065_0301] \['e] \(:o \(ss \(,c \[char233] \N'65'", "é é é ö ß ç � �"),
        (r"x\h'2n'y\v'-1'z\c", "xyz"),
        (r"\(zz \[nope] \*(zz \z. \o'ab' \[uD800]", "� � � �. � �"),
        ("ends in a backslash\\", "ends in a backslash"),
    ],
)
def test_escapes(source, text):
    assert plain(source) == text


def test_damaged_markup_costs_no_more_than_its_section():
    page = ".TH x 1\n.SH ONE\n.nf\nThe end of this code is missing.\n.SH TWO\nThis is read.\n.\\}\n.TE\n.SH\n.TP\n"
    assert [text.strip() for text in paragraphs(page) if text] == ["This is read."]


# The source


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def page(*blocks: str) -> str:
    return "\n".join([".TH x 1", ".SH DESCRIPTION", *blocks, ""])


def test_prose_of_each_language_without_code_fragments_and_other_languages(tmp_path):
    english = page(
        "The first word of this line is of the page.\nIt is, e.g., not the last one of it.",
        ".PP\nThis introduces the code in the following lines:\n.EX\nint x;\n.EE",
        "This is in a run of its own, after the code.\nX = f(y) + g[z] and the |rest| of it.\nSee f(2), g(3) and h(4) in it.",
        ".SH AUTHORS\nThis page was written by the author of it.",
    )
    french = page(
        "L'adresse de la page est dans le fichier\\ ; elle n'est pas l\\(cqadresse du répertoire.",
        ".PP\nThis part of the page is not translated, as is often so in it.",
        ".PP\nÀ la fin de la ligne, il y a «\\ le dernier mot\\ ».",
        ".SH TRADUCTION\nLa traduction de cette page est de la main d'un traducteur.",
        '.SH "VOIR AUSSI"\nLe reste de la page est dans les pages de ce manuel.',
    )
    german = page(
        "Über die Datei wird z.\\ B. in der Übersicht der Seite berichtet.",
        ".PP\nDie Seite ist kurz, d.\\ h. Zeilen sind nicht in der Datei.\nSie ist die letzte der Seiten in dem Ordner.",
        ".PP\nDies ist für die »Benutzer« der Seite.",
        ".SH ÜBERSETZUNG\nDie Übersetzung der Seite ist von dem Übersetzer der Seiten.",
    )
    write(tmp_path, "man1/a.1.gz", english)
    write(tmp_path, "fr/man1/a.1", french)
    write(tmp_path, "de/man1/a.1.gz", german)
    write(tmp_path, "man1/.hidden.1", page("This is a hidden file in the folder of the pages."))
    write(tmp_path, "man1/README", page("This is not the name of a page in the manual."))

    def runs(language: str) -> list[list[str]]:
        source = ManualPages(str(tmp_path if language == "en" else tmp_path / language), language)
        return [source.runs(document) for document in source.documents()]

    assert runs("en") == [
        [
            "The first word of this line is of the page. It is, e.g., not the last one of it.",
            "This is in a run of its own, after the code.",
        ]
    ]
    assert runs("fr") == [
        [
            "L'adresse de la page est dans le fichier ; elle n'est pas l’adresse du répertoire.",
            "À la fin de la ligne, il y a « le dernier mot ».",
        ]
    ]
    assert runs("de") == [
        [
            "Über die Datei wird z.B. in der Übersicht der Seite berichtet.",
            "Sie ist die letzte der Seiten in dem Ordner. Dies ist für die »Benutzer« der Seite.",
        ]
    ]


def test_a_sentence_that_pages_share_is_read_once_and_a_page_with_two_names_too(tmp_path):
    shared = "This sentence is in all of the pages.\n"
    write(tmp_path, "man2/a.2.gz", page(f"{shared}The first page is about the letter a."))
    write(tmp_path, "man2/b.2.gz", page(f"The second page is about another letter.\n{shared}It ends with the letter b."))
    write(tmp_path, "man3/c.3", page(shared))
    (tmp_path / "man2/link.2.gz").symlink_to("a.2.gz")
    (tmp_path / "man2/nowhere.2.gz").symlink_to("gone.2.gz")
    source = ManualPages(str(tmp_path))
    assert list(source.documents()) == [
        "This sentence is in all of the pages. The first page is about the letter a.",
        "The second page is about another letter.\nIt ends with the letter b.",
    ]
    assert list(ManualPages(str(tmp_path), sections=(3,)).documents()) == ["This sentence is in all of the pages."]


def test_old_pages_are_latin_1(tmp_path):
    file = write(tmp_path, "fr/man1/a.1", "")
    file.write_bytes(page("La page de l'été est dans le répertoire.").encode("latin-1"))
    assert list(ManualPages(str(tmp_path / "fr"), "fr").documents()) == ["La page de l'été est dans le répertoire."]


def test_the_fingerprint_is_that_of_the_text_and_not_of_the_place(tmp_path):
    write(tmp_path, "one/man1/a.1", page("The text of the page is in it."))
    write(tmp_path, "one/man7/b.7.gz", page("The text of the other page is in it."))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (ManualPages(str(tmp_path / name)) for name in ("one", "two"))
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != ManualPages(str(tmp_path / "one"), sections=(1,)).fingerprint()
    assert one.fingerprint() != ManualPages(str(tmp_path / "one"), "fr").fingerprint()
    write(tmp_path, "two/man1/a.1", page("The text of the page is another one."))
    assert one.fingerprint() != two.fingerprint()


@pytest.mark.parametrize("made", ["", "man", "man/man3/folder.3"])
@pytest.mark.parametrize(
    ("language", "packages"),
    [("en", "manpages manpages-dev"), ("fr", "manpages-fr manpages-fr-dev"), ("de", "manpages-de manpages-de-dev")],
)
def test_missing_pages_say_what_to_install(tmp_path, language, packages, made):
    (tmp_path / made).mkdir(parents=True, exist_ok=True)
    source = prose({"en": {"manpages": str(tmp_path / "man")}} | {language: {"manpages": str(tmp_path / "man")}})
    for read in (source.fingerprint, lambda: source.load(0)):
        with pytest.raises(CorpusError) as error:
            read()
        assert "\n" not in str(error.value) and str(tmp_path / "man") in str(error.value)
    with pytest.raises(CorpusError) as error:
        next(source._source(language).documents())
    said = (f"language {language!r}", f"apt-get install {packages};", "dpkg.cfg.d", f"sources.{language}.manpages=FOLDER")
    for part in said:
        assert part in str(error.value)


def test_a_damaged_page_is_named(tmp_path):
    file = write(tmp_path, "man1/a.1.gz", page("The text of the page is in it."))
    for content in (b"not gzip", file.read_bytes()[:-12], b"\x1f\x8b\x08\x00" + b"\xff" * 40):
        file.write_bytes(content)
        with pytest.raises(CorpusError, match=r"a\.1\.gz cannot be read \(.*\)\. Install its package again"):
            list(ManualPages(str(tmp_path)).documents())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"manpages": " "}, "manpages is empty; expected a folder"),
        ({"manpages": ["a"]}, r"'manpages' is \['a'\]; expected str"),
        ({"manpages": "a", "sections": []}, r"sections is \[\]; expected numbers from 1 to 9"),
        ({"manpages": "a", "sections": [0]}, r"sections is \[0\]"),
        ({"manpages": "a", "max_words": 0}, "max_words is 0; expected at least 1"),
        ({"manpages": "a", "text_field": "x"}, "'text_field'"),
        ({"manpages": "a", "paths": ["a"]}, "'en' has paths and manpages; expected one of paths"),
    ],
)
def test_wrong_fields_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        prose({"en": wrong})


def test_pages_have_no_columns(tmp_path):
    write(tmp_path, "man1/a.1", page("The text of the page is in it."))
    with pytest.raises(CorpusError, match=r"manual pages in .*: no column 'label', which where asks for"):
        list(ManualPages(str(tmp_path), where={"label": 0}).documents())
    with pytest.raises(CorpusError, match=r"manual pages in .* have no columns; expected rows"):
        build(CORPORA, "corpus", "instructions", {"sources": {"en": {"manpages": str(tmp_path)}}}).load(0)


# A corpus


def prose(sources: dict[str, dict[str, Any]], **more: Any) -> Prose:
    return build(CORPORA, "corpus", "prose", {"sources": sources, **more})


SENTENCES = {
    "en": "The word {0} is in line {1} of this page.",
    "fr": "Le mot {0} est dans la ligne {1} de cette page.",
    "de": "Das Wort {0} ist in der Zeile {1} dieser Seite.",
}
SIZES = {"train": 40, "forget": 10, "retain": 10, "evaluation": 8, "prompt_words": [8, 12], "continuation_words": [8, 12]}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pages in three languages, each of which begins with two sentences of all of them and has a line of code."""
    root = tmp_path_factory.mktemp("manual")
    for language, sentence in SENTENCES.items():
        shared = [sentence.format("shared", line) for line in range(2)]
        for number in range(40):
            lines = [sentence.format(f"x{number}", line) for line in range(8)]
            folder = root if language == "en" else root / language
            text = page(*shared, *lines[:4], ".nf", "code();", ".fi", *lines[4:])
            write(folder, f"man{1 + number % 2}/page{number}.{1 + number % 2}.gz", text)
    return root


def test_a_corpus_of_pages_in_three_languages(tree):
    config = load_config(["corpus=manpages", f"corpus.params.sources.en.manpages={tree}"])
    source = build(CORPORA, "corpus", config.corpus.name, config.corpus.params | SIZES)
    assert {language: each["manpages"] for language, each in source.sources.items()} == {
        "de": f"{tree}/de",
        "en": str(tree),
        "fr": f"{tree}/fr",
    }
    corpus = source.load(0)
    assert [len(getattr(corpus, name)) for name in SPLITS] == [40, 10, 10, 8]
    in_split: dict[str, str] = {}
    for name in SPLITS:
        for passage in getattr(corpus, name):
            assert set(passage.alternatives) == ({"fr", "de"} if passage.language == "en" else set())
            texts = {passage.language: passage.text, **passage.alternatives}
            for language, text in texts.items():
                assert text.startswith(SENTENCES[language].split()[0])
            for sentence in [each for text in texts.values() for each in sentences(text)]:
                assert in_split.setdefault(sentence, name) == name, "a sentence is in two splits"
            lines = [int(word) for word in passage.text.split() if word.isdigit()]
            assert max(lines) < 4 or min(lines) >= 4 or "shared" in passage.text, "a passage goes over code"
    assert {passage.language for passage in corpus.train} == {"en", "fr", "de"}


def test_each_folder_can_be_given():
    overrides = ["corpus.params.sources.fr.manpages=/f", "corpus.params.sources.en.manpages=/e", "~corpus.params.sources.de"]
    sources = load_config(["corpus=manpages", *overrides]).corpus.params["sources"]
    assert sources == {"en": {"manpages": "/e"}, "fr": {"manpages": "/f"}}
