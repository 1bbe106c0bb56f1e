"""Warnings about settings that work and are probably not meant."""

from __future__ import annotations

from typing import Final

from casd.config.run import Config

HIGH_RATE: Final = 1e-3
"""From this learning rate on, training all weights of a pretrained model usually destroys it."""


def rate_warning(config: Config) -> str:
    """Return a line about learning rates that are too high for all weights of a pretrained model; "" if there are none."""
    if config.model.source != "pretrained":
        return ""
    injection, removal = config.injection.training, config.unlearning.training
    rates = {} if injection is None or injection.lora else {"injection.training.learning_rate": injection.learning_rate}
    if not removal.lora:
        rates["unlearning.training.learning_rate"] = removal.learning_rate
        if config.unlearning.tuning.enabled and (tried := config.unlearning.tuning.grid.get("learning_rate")):
            rates["unlearning.tuning.grid.learning_rate"] = max(tried)
    high = [f"{key}={rate:g}" for key, rate in rates.items() if rate >= HIGH_RATE]
    if not high:
        return ""
    return (
        f"Warning: {' and '.join(high)} will probably destroy the pretrained model {config.model.label}: {HIGH_RATE:g} is too"
        " high for all its weights. experiment=real has rates for pretrained models (2e-5 and 1e-5); weights=lora trains"
        " adapters."
    )
