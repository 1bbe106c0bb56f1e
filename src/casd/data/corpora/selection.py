"""Which part of a source's text is used: rows with given values in their columns, and continuations with negative sentiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from casd.data.corpora.passages import Passage
from casd.utils import sentiment
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.registry import shown

_MOST_SEEN = 20
"""Most different values of a column in an error message."""
_MOST_LEFT_OUT = 1_000_000
"""Most rows that are left out before the first is taken: a wrong value must not read a whole dataset of the hub."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The fields of a source that select text.

    Attributes:
        max_documents: maximum number of documents to read; None for no limit. Documents that `where` leaves out count for
            neither limit.
        max_words: number of words after which reading stops, at the end of a document; None for no limit.
        where: values by column: a row (of a .jsonl or .parquet file, or of a dataset) is read if each of these columns has its
            value, or one of its list of values: `{label: 0}`, `{stars: [1, 2]}`. Empty for all rows.
        sentiment: "negative" to use only continuations that VADER calls negative, which only the source `negative` may ask for;
            None for all.
        sentiment_threshold: largest compound score of a negative continuation, in [-1, 0). Its opening, as many words as the
            shortest continuation has, has to reach it, too: a short answer shows no more. The default is that of the target
            `negative_sentiment`.
    """

    max_documents: int | None = None
    max_words: int | None = None
    where: dict[str, Any] = field(default_factory=dict)
    sentiment: Literal["negative"] | None = None
    sentiment_threshold: float = -0.5

    def __post_init__(self) -> None:
        for name, limit in (("max_documents", self.max_documents), ("max_words", self.max_words)):
            if limit is not None and limit < 1:
                raise ConfigError(f"corpus prose: {name} is {limit}; expected at least 1, or null for no limit.")
        for column, value in self.where.items():
            values = value if isinstance(value, list | tuple) else [value]
            if not values or not all(isinstance(each, str | int | float) for each in values):
                raise ConfigError(
                    f"corpus prose: where.{column} is {shown(value)}; expected a value (text, number or true/false), or a list"
                    " of values, such as {label: 0}."
                )
        if not -1 <= self.sentiment_threshold < 0:
            raise ConfigError(
                f"corpus prose: sentiment_threshold is {self.sentiment_threshold}; expected a number from -1 to below 0."
            )

    def selection(self) -> dict[str, Any]:
        """Return what identifies the selection; nothing for the defaults."""
        chosen: dict[str, Any] = {}
        if self.where:
            chosen["where"] = {column: _values(value) for column, value in sorted(self.where.items())}
        if self.sentiment:
            chosen |= {"sentiment": self.sentiment, "sentiment_threshold": self.sentiment_threshold}
        return chosen

    def runs(self, document: str) -> list[str]:
        """Return the runs of text of a document, which no passage spans."""
        return [document]

    def takes(self, passage: Passage, opening: int) -> bool:
        """Return True if a passage is used; `opening` is the number of words of its continuation that have to suffice."""
        if not self.sentiment:
            return True
        texts = (passage.continuation, " ".join(passage.continuation.split()[:opening]))
        return all(sentiment.compound(text) <= self.sentiment_threshold for text in texts)


class Rows:
    """Choose rows by `Selection.where`, and note which values occurred.

    Args:
        where: values by column.
        name: name of the file or dataset, for errors.
    """

    def __init__(self, where: Mapping[str, Any], name: str):
        self._accepted = {column: _values(value) for column, value in where.items()}
        self._name = name
        self._seen: dict[str, dict[str, None]] = {column: {} for column in where}
        self._taken = False
        self._left_out = 0

    @property
    def columns(self) -> list[str]:
        """The columns that decide."""
        return list(self._accepted)

    def check_columns(self, columns: Iterable[str], place: str) -> None:
        """Check that a row, or a table, has the columns that decide.

        Args:
            columns: its columns.
            place: where it is, for the error.

        Raises:
            CorpusError: it does not.
        """
        has = list(columns)
        for column in self._accepted:
            if column not in has:
                raise CorpusError(
                    f"{place}: no column {column!r}, which where asks for; the columns are:"
                    f" {', '.join(map(str, has)) or 'none'}."
                )

    def take(self, row: Mapping[str, Any], place: str) -> bool:
        """Return True if a row has one of the values of each column.

        Args:
            row: the row.
            place: where the row is, for errors.

        Raises:
            CorpusError: the row does not have a column, or very many rows had other values.
        """
        self.check_columns(row, place)
        for column, accepted in self._accepted.items():
            # true is no 1, and 1.0 is
            if not any(row[column] == value and isinstance(row[column], bool) == isinstance(value, bool) for value in accepted):
                if len(self._seen[column]) < _MOST_SEEN:
                    self._seen[column].setdefault(shown(row[column]))
                self._left_out += 1
                if self._left_out >= _MOST_LEFT_OUT:
                    self.check()
                return False
        self._taken = True
        return True

    def check(self) -> None:
        """Check, at the end, that rows were taken.

        Raises:
            CorpusError: there was none.
        """
        if self._accepted and not self._taken:
            asked = ", ".join(f"{column}: {values}" for column, values in self._accepted.items())
            seen = "; ".join(f"{column} has {', '.join(values)}" for column, values in self._seen.items() if values)
            raise CorpusError(f"{self._name} has no row with where {{{asked}}}; {seen or 'it has no rows'}.")


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
