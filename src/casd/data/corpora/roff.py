"""Read the text of manual pages, without the markup of man(7), the macros of roff that such pages are written in."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator

UNREADABLE = "\ufffd"
"""Stands in a paragraph for what has no plain text: links, unknown macros, superscripts, overstruck characters."""

# Blocks to leave out (code, tables, equations, synopses, definitions of macros), by the requests that begin and end them.
_BLOCKS = {"nf": "fi", "EX": "EE", "TS": "TE", "EQ": "EN", "PS": "PE", "Vb": "Ve", "SY": "YS"} | dict.fromkeys(
    ("de", "de1", "am", "am1", "ig"), "."
)
_CONDITIONS = ("if", "ie", "el", "while")
_PARAGRAPHS = frozenset(
    ("PP", "LP", "P", "IP", "HP", "TP", "TQ", "RS", "RE", "sp", "Sp", "br", "in", "ti", "ce", "INDENT", "UNINDENT")
) | set(_BLOCKS.values())
# Requests that print nothing and do not end a paragraph.
_SILENT = frozenset(
    re.findall(
        "[A-Za-z]+", "TH PD ad als ds fam ft hy it ll lf mso na ne nh nr ns pc ps rm rn rr rs so ss ta tr vs do IX UC AT DT"
    )
)
# Macros that set their arguments in a font, or in two in turn, by what is printed between the arguments.
_FONTS = dict.fromkeys(("B", "I", "R", "SB", "SM"), " ") | dict.fromkeys(("BI", "BR", "IB", "IR", "RB", "RI"), "")

_REQUEST = re.compile(r"[.'][ \t]*([^\s\\\"]*)[ \t]*(.*)")
_COMMENT = re.compile(r"(?<!\\)\\[\"#].*")
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|((?:\\.|[^\s\\])+)')
_ESCAPE = re.compile(
    r"\\(?:\[(?P<glyph>[^\]]*)\]|\((?P<glyph2>..)"
    r"|\*\[(?P<string>[^\]]*)\]|\*\((?P<string2>..)|\*(?P<string1>.)"
    r"|(?P<format>[fFmMk](?:\[[^\]]*\]|\(..|.)|s(?:[+-]?(?:\(..|\[[^\]]*\]|\d)|'[^']*')|[hvX]'[^']*')"
    r"|(?P<drawn>[bDlLNoRwZ]'[^']*'|[ngVY][+-]?(?:\[[^\]]*\]|\(..|.)|[udrz])"
    r"|(?P<one>.|$))"
)


def _pairs(text: str) -> dict[str, str]:
    return dict(zip(text.split()[::2], text.split()[1::2], strict=True))


_ONE = dict.fromkeys("&:%,/|^)c{}!?ap", "") | {"~": " ", "0": " ", "t": " ", "e": "\\", "'": "´"}
_GLYPHS = _pairs(
    "aq ' dq \" lq “ rq ” oq ‘ cq ’ Bq „ bq ‚ Fo « Fc » em — en – hy - mi - co © rg ® tm ™ bu • ha ^ ti ~ rs \\ sl / or | ga ` "
    "aa ´ at @ sh # Do $ Eu € sc § de ° mc µ mu × +- ± <= ≤ >= ≥ != ≠ -> → <- ← S2 ² 12 ½ ss ß ae æ AE Æ oe œ OE Œ"
)
_STRINGS = _pairs('lq “ rq ” L" “ R" ” C` " C\' " Aq \' R ® Tm ™ -- —')
_ACCENTS = _pairs(": \u0308 ' \u0301 ` \u0300 ^ \u0302 , \u0327 ~ \u0303 o \u030a")


def paragraphs(page: str, skipped: Collection[str] = ()) -> Iterator[str]:
    """Yield the paragraphs of a manual page as plain text; an empty one where a block or heading is left out.

    Headings, tags of lists, code, tables and conditional parts are left out. `UNREADABLE` stands for what has no plain text.
    A page without the macro TH (one of mdoc, another set of macros, or one that only names the file to read) has none.

    Args:
        page: the page's source.
        skipped: headings, in lower case, of sections to leave out.
    """
    if not re.search(r"(?m)^[.']\s*TH\b", page):
        return
    paragraph, expected, skipping = "", "", False  # `expected`: what the next text is, if not part of a paragraph
    for name, text in [*_lines(page), ("PP", "")]:
        if name in _PARAGRAPHS or name in _BLOCKS or name in ("SH", "SS"):
            if paragraph:
                yield plain(paragraph)
            if name not in _PARAGRAPHS:
                yield ""
            paragraph, expected = "", name if name in ("TP", "TQ", "SH", "SS") else ""
        elif name not in _SILENT and (printed := _printed(name, text)):
            if expected:
                skipping = plain(printed).strip().lower() in skipped if expected == "SH" else skipping
            elif not skipping:
                paragraph += printed
            expected = expected if printed.endswith("\\c") else ""
            paragraph = paragraph.removesuffix("\\c")


def plain(text: str) -> str:
    """Replace the escape sequences of roff by the characters that they print."""
    return unicodedata.normalize("NFC", _ESCAPE.sub(_character, text))


def _lines(page: str) -> Iterator[tuple[str, str]]:
    """Yield requests with their arguments, and lines of text after an empty name, without the insides of blocks.

    The arguments of a heading follow it as a line of text.
    """
    end, depth = "", 0  # the request that ends the current block; open braces of conditional parts
    for line in _COMMENT.sub("", page).replace("\\\n", "").splitlines():
        request = _REQUEST.match(line)
        name, text = request.groups() if request else ("", line)
        if end and (name == end or (name == "SH" and end != ".")):  # a heading ends code whose end is missing
            end = ""
        elif not end and (depth or name in _CONDITIONS):
            depth = max(0, depth + line.count(r"\{") - line.count(r"\}"))
            continue
        if end or (request and not name):
            continue
        end = _BLOCKS.get(name, "")
        if not request and not text.strip():
            yield "PP", ""
        elif not request and text[0] in " \t":  # set as it is, like code
            yield "nf", ""
        elif name in ("SH", "SS"):
            yield name, ""
            yield "", " ".join(_arguments(text))
        else:
            yield name, text


def _arguments(text: str) -> list[str]:
    return [quoted.replace('""', '"') or word for quoted, word in _ARGUMENT.findall(text)]


def _printed(name: str, text: str) -> str:
    """Return what a line of text, or a macro within a paragraph, prints; followed by a space unless it ends in \\c."""
    if not name:
        printed = text
    elif name in _FONTS:
        printed = _FONTS[name].join(_arguments(text))
    elif name in ("UR", "MT"):  # the beginning of a link
        printed = ""
    else:  # its end, with the punctuation after it; or a macro that is not known
        printed = UNREADABLE + "".join(_arguments(text)[:1])
    return printed if not printed or printed.endswith("\\c") else f"{printed} "


def _character(match: re.Match[str]) -> str:
    kind = str(match.lastgroup).rstrip("12")
    name = match[str(match.lastgroup)]
    if kind == "one":
        return _ONE.get(name, name)
    if kind == "string":
        return _STRINGS.get(name, UNREADABLE)
    if kind == "glyph":
        return _glyph(name)
    return "" if kind == "format" else UNREADABLE


def _glyph(name: str) -> str:
    if name in _GLYPHS:
        return _GLYPHS[name]
    if re.fullmatch(r"u(?!D[89A-F])[0-9A-F]{4,5}(?:_03[0-9A-F]{2})*", name):
        return "".join(chr(int(code, 16)) for code in name[1:].split("_"))
    if len(name) == 2 and name[0] in _ACCENTS and name[1].isalpha():
        return name[1] + _ACCENTS[name[0]]
    return UNREADABLE
