"""Silence the libraries."""

from __future__ import annotations

import os
import warnings


def quiet_libraries() -> None:
    """Turn off the progress bars and the advice that libraries print, which would garble ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ["MPLBACKEND"] = "agg"  # opens no windows; matplotlib cannot be imported with a backend that it does not know
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(transformers|torch|accelerate)\b")
