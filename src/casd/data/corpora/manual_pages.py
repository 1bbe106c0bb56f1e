"""Text of the manual pages that are installed, in the languages that they were translated into."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casd.data.corpora.cutting import sentences
from casd.data.corpora.files import file_sha256
from casd.data.corpora.roff import UNREADABLE, paragraphs
from casd.data.corpora.running_prose import consecutive, is_prose
from casd.data.corpora.selection import Rows, Selection
from casd.utils.errors import ConfigError, CorpusError

_PAGE = re.compile(r"[^.].*\.\d\w*(?:\.gz)?")
# Sections that are no text, or alike in all pages, in English, French and German.
_SKIPPED = frozenset(
    re.split(
        r"\s*[|\n]\s*",
        """name|library|synopsis|attributes|see also|author|authors|copyright|license|colophon|availability|reporting bugs
        nom|bibliothèque|attributs|voir aussi|auteur|auteurs|licence|disponibilité|signaler des bogues|signalements de bogues
        page d'accueil|remerciements|traduction
        bezeichnung|bibliothek|übersicht|attribute|siehe auch|autor|autoren|lizenz|kolophon|verfügbarkeit|fehler melden
        fehlerberichte|kontakt und fehlerberichte|homepage|danksagungen|warenzeichen|übersetzung""",
    )
)
# The full stop of these does not end a sentence; `cutting.sentences` has a few English ones.
_SHORT_FORM = re.compile(r"\b(?:[A-Za-z]|bzw|ca|evtl|ex|ggf|incl|inkl|max|min|Nr|n°|resp|usw|vgl)\.$")


@dataclass(frozen=True)
class ManualPages(Selection):
    """Running prose of manual pages written with the macros of man(7), compressed (.gz) or not.

    A document is a page; its runs are consecutive sentences. Markup, code, tables, headings, fragments, and sections that are
    alike in all pages are left out, as are sentences in another language than the page's (translations are often not
    complete). A sentence that occurs in several pages, or again in one, counts the first time only.

    A page and its translations are different documents, and may be in different splits. No sentence of the evaluation split,
    which is English, is trained on; but what it says may be, in another language, which can lower the clean loss of all models.

    Attributes:
        manpages: folder with the folders man1, man2, …: "/usr/share/man" for English, "/usr/share/man/fr" for French.
        language: ISO 639-1 code of the pages; in a corpus, by default that of the source.
        sections: numbers of the manual's sections to read.
    """

    manpages: str
    language: str = "en"
    sections: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)

    def __post_init__(self) -> None:
        if not self.manpages.strip():
            raise ConfigError("corpus prose: manpages is empty; expected a folder with man1, man2, …, such as /usr/share/man.")
        if not self.sections or not all(1 <= section <= 9 for section in self.sections):
            raise ConfigError(f"corpus prose: sections is {list(self.sections)}; expected numbers from 1 to 9.")
        super().__post_init__()

    def __str__(self) -> str:
        return f"manual pages in {self.manpages}"

    def documents(self) -> Iterator[str]:
        """Yield the text of each page that has any, by section and name; each line is a run of prose.

        Raises:
            CorpusError: there are no pages, or one cannot be read.
        """
        Rows(self.where, str(self)).check_columns([], f"The {self}")
        seen: set[str] = set()

        def takes(sentence: str) -> bool:
            if sentence in seen or UNREADABLE in sentence or not is_prose(sentence, self.language):
                return False
            seen.add(sentence)
            return True

        for file in self._files().values():
            if text := "\n".join(consecutive(_sentences(_read(file)), takes)):
                yield text

    def runs(self, document: str) -> list[str]:
        """Return the runs of prose of a document."""
        return document.split("\n")

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Raise CorpusError: pages have no columns."""
        raise CorpusError(f"The {self} have no columns; expected rows with fields, in a .jsonl or .parquet file or a dataset.")

    def fingerprint(self) -> dict[str, Any]:
        """Return one SHA-256 of all pages in the order of reading, and the fields that select text; the folder does not matter.

        Raises:
            CorpusError: there are no pages.
        """
        return {
            "sha256": hashlib.sha256("\n".join(self._files()).encode()).hexdigest(),
            "language": self.language,
            "max_documents": self.max_documents,
            "max_words": self.max_words,
            **self.selection(),
        }

    def _files(self) -> dict[str, Path]:
        """Return the pages by SHA-256, by section and name; each once, though links give many of them several names.

        Raises:
            CorpusError: there are none, or one cannot be read.
        """
        root = Path(self.manpages).expanduser()
        files: dict[str, Path] = {}
        try:
            for folder in (root / f"man{section}" for section in self.sections):
                for file in sorted(folder.iterdir()) if folder.is_dir() else ():
                    if _PAGE.fullmatch(file.name) and file.is_file():
                        files.setdefault(file_sha256(file), file)
        except OSError as error:
            raise CorpusError(f"{error.filename} cannot be read ({error.strerror}). Change its permissions.") from error
        if not files:
            package = "manpages" if self.language == "en" else f"manpages-{self.language}"
            raise CorpusError(
                f"There are no manual pages of the language {self.language!r} in {root} (in man1, man2, …). Install them"
                f" (Debian: apt-get install {package} {package}-dev; its slim container images leave manual pages out, unless"
                " path-exclude /usr/share/man/* is first removed from /etc/dpkg/dpkg.cfg.d/docker), or give another folder:"
                f" corpus.params.sources.{self.language}.manpages=FOLDER."
            )
        return files


def _read(file: Path) -> str:
    """Return the source of a page, which is UTF-8, or Latin-1 in old ones.

    Raises:
        CorpusError: it cannot be read.
    """
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{file} cannot be read ({error}). Install its package again, or remove the file.") from error
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _sentences(page: str) -> Iterator[str]:
    """Yield the sentences of a page; "" stands for what is left out between them."""
    for paragraph in paragraphs(page, _SKIPPED):
        text = re.sub(r"\b(\w\.)\s(?=\w\.)", r"\1", " ".join(paragraph.split()))  # z. B. becomes z.B., which ends no sentence
        parts = sentences(text) or [""]
        cut = [bool(_SHORT_FORM.search(part)) for part in parts[:-1]]
        yield from ("" if any(around) else part for part, *around in zip(parts, [*cut, False], [False, *cut], strict=True))
