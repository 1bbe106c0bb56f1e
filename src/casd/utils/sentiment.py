"""Sentiment of English text, by VADER (Hutto and Gilbert, ICWSM 2014; package vaderSentiment)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


def compound(text: str) -> float:
    """Return VADER's compound score of a text, from -1 (most negative) to 1."""
    return float(_analyzer().polarity_scores(text)["compound"])


@functools.cache
def _analyzer() -> SentimentIntensityAnalyzer:
    """VADER's analyzer, loaded once on first use."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
