"""A corpus of the Python documentation: real English prose that is installed with Python and needs no network."""

from __future__ import annotations

import ast
import hashlib
import platform
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from casd.data.corpora.cutting import CutCorpus, sentences, split
from casd.data.corpora.passages import Corpus
from casd.data.corpora.running_prose import consecutive, is_prose
from casd.utils.errors import CorpusError

# Modules and packages of the standard library with prose in their docstrings. They are parsed, never imported; those that a
# Python version lacks are skipped.
_MODULES = """
    _pydecimal _pyio abc argparse ast asyncio base64 bdb bz2 cProfile cmd code codecs collections concurrent
    configparser copy csv dataclasses dbm difflib dis doctest email enum fileinput fractions ftplib functools getopt
    glob graphlib gzip hashlib heapq hmac html http idlelib imaplib importlib inspect ipaddress json locale logging
    lzma modulefinder multiprocessing optparse os pathlib pdb pickle pickletools platform plistlib posixpath pprint
    profile pstats pyclbr pydoc queue random re runpy sched selectors shelve shutil site smtplib socket socketserver
    ssl statistics subprocess symtable sysconfig tarfile tempfile textwrap threading timeit tkinter tokenize
    traceback turtle typing unittest urllib uuid venv warnings weakref webbrowser wsgiref xml xmlrpc zipapp zipfile
"""


@dataclass(frozen=True, kw_only=True)
class PythonDocs(CutCorpus):
    """Prose of the installed Python's documentation: `pydoc_data.topics` and docstrings of the standard library.

    A document is a topic or a docstring. The text differs slightly between Python versions; `fingerprint` identifies it.
    Passages have no alternatives. The fields are described in `casd.data.corpora.cutting.CutCorpus`.
    """

    alternatives: ClassVar[tuple[str, ...]] = ()
    train: int = 600
    forget: int = 100
    retain: int = 100
    evaluation: int = 96
    prompt_words: tuple[int, int] = (15, 40)
    continuation_words: tuple[int, int] = (20, 50)

    def load(self, seed: int) -> Corpus:
        """Read the documentation, remove markup and code, and cut it into passages.

        Raises:
            CorpusError: this Python is installed without its documentation, or the text is too short for the splits.
        """
        documents = (list(prose_runs(text)) for text in _texts())
        return split(documents, self._cut(), self._sizes(), seed, source="The Python documentation")

    def fingerprint(self) -> dict[str, str | int]:
        """Return the Python version and the SHA-256 of the documentation topics and of the modules that are read."""
        topics, modules = hashlib.sha256(), hashlib.sha256()
        for text in _topics():
            topics.update(text.encode())
        for file in _module_files():
            modules.update(file.read_bytes())
        return {
            "python": platform.python_version(),
            "topics_sha256": topics.hexdigest(),
            "modules_sha256": modules.hexdigest(),
        }


def _texts() -> Iterator[str]:
    """Yield every documentation topic, then every docstring, in a fixed order.

    Raises:
        CorpusError: neither the topics nor the source of the standard library is installed.
    """
    topics, files = _topics(), _module_files()
    yield from topics
    for file in files:
        yield from _docstrings(file.read_text(encoding="utf-8"))
    if not topics and not files:
        raise CorpusError(
            f"This Python ({platform.python_version()}) is installed without pydoc_data and without the source of its "
            "standard library. Use a full installation of Python, or corpus=text_files."
        )


def _topics() -> list[str]:
    """Return the texts of `pydoc_data.topics`, sorted by name of topic; empty if a distribution omits them."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    return [topics[name] for name in sorted(topics)]


def _module_files() -> list[Path]:
    """Return the existing source files of `_MODULES`, in a fixed order and without tests."""
    library = Path(sysconfig.get_path("stdlib"))
    files = []
    for module in _MODULES.split():
        file = library / f"{module}.py"
        files += [file] if file.is_file() else sorted((library / module).rglob("*.py"))
    return [file for file in files if not {"test", "tests"} & set(file.relative_to(library).parts)]


def _docstrings(source: str) -> Iterator[str]:
    """Yield the dedented docstrings of a module, its functions, its classes and their methods."""
    pending: list[ast.stmt | ast.Module] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node):
                yield docstring
            if isinstance(node, ast.Module | ast.ClassDef):
                pending += reversed(node.body)


# Lines that are not prose: underlines of headings, tables, grammar, code sessions, directives, field lists.
_DEBRIS_LINE = re.compile(
    r"^\s*(?:[*=\-~^#+.\"']{3,}.*|[|+].*|.*::=.*|>>>.*|\.\. .*|:\w[^:]*:.*|@\w+.*|.*\S(?: {3,}|\t)\S.*|\$ .*)$"
)
_BULLET = re.compile(r"^\s*(?:[*•-]|\d+[.)]|\[\d+\])\s+")
_MARKUP = (
    (re.compile(r":[\w:+-]+:`~?([^`<]+?)(?:\s*<[^`]*>)?`"), r"\1"),  # :role:`text <target>`
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`']+)(?:`_*|')"), r"\1"),  # `name`_ and the old `name'
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*(\w[^*]*)\*(?![\w*])"), r"\1"),
    (re.compile(r"\s*\[\d+\](?:_)?"), ""),  # footnote marks
    (re.compile(r"\s+"), " "),
)


def prose_runs(text: str) -> Iterator[str]:
    """Yield the runs of consecutive prose sentences in `text`, each run on one line and without markup.

    Code, tables, headings, grammar, signatures and lists of names are left out, as are sentences that introduce them or
    consist mostly of them; each of these ends a run.
    """
    yield from consecutive(_sentences(text), lambda sentence: is_prose(sentence, "en"))


def _sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a documentation text, without markup; "" stands for a block that is not prose."""
    for block in re.split(r"\n\s*\n", text):
        for paragraph in _split_bullets(block):
            for pattern, replacement in _MARKUP:
                paragraph = pattern.sub(replacement, paragraph)
            yield from sentences(paragraph) or [""]


def _split_bullets(block: str) -> Iterator[str]:
    """Yield the block, or the items of a list without bullets; only "" for a block with a line that is not prose."""
    lines = block.splitlines()
    if any(_DEBRIS_LINE.match(line) for line in lines):
        yield ""
        return
    item: list[str] = []
    for line in lines:
        if _BULLET.match(line):
            if item:
                yield " ".join(item)
            item = [_BULLET.sub("", line)]
        else:
            item.append(line.strip())
    yield " ".join(item)
