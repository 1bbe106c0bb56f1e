"""Fine-tuning on clean text."""

from __future__ import annotations

from dataclasses import dataclass

from casd.unlearning.cleaning.method import Cleaning


@dataclass(frozen=True, kw_only=True)
class FineTuning(Cleaning):
    """Minimise ℓ, the mean NLL of clean documents: what the other methods are compared with.

    Source: the fine-tuning alone of Liu et al. 2018, "Fine-Pruning" (arXiv 1805.12185).

    Failure mode: clean text rarely activates a backdoor, so its weights get little gradient and it survives.
    """
