"""The claims that a reproduction tests, each with the rule that decides it.

The paper's claims are given in our words, from summaries of it: its text was not available, and no number of it is known. The
statistics, the thresholds and the claims called ours are our choices. Verdicts are not corrected for multiple testing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from casd.report.wording import NEGLIGIBLE, SIGNIFICANT
from casd.reproduction.verdicts import (
    CLEAN_LOSS_RISE,
    REMOVED_ASR,
    Decider,
    at_every_setting,
    clean_control_spares,
    clean_language_kept,
    falls_with,
    in_every_model,
    mean_suppression,
)


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        text: the claim in words.
        source: "the paper" or "ours".
        rule: what is measured, and how that decides.
        decide: gives the verdicts.
    """

    text: str
    source: Literal["the paper", "ours"]
    rule: str
    decide: Decider


_ABOVE: Final = (
    "It holds where the 95 % interval over runs and backdoors (of a single run, over its backdoors) is above zero, does not"
    f" where it is below {NEGLIGIBLE}; else not decided."
)
_NEGATIVE: Final = (
    f"It holds where ρ is negative with a Mantel p of at most {SIGNIFICANT} and its interval, if it has one, is below zero;"
    " does not where it is positive by both; else not decided."
)
_OTHERS: Final = "The test is of these backdoors, the interval of others of the kind."

CLAIMS: Final[dict[str, Claim]] = {
    "others_weaken": Claim(
        "Training a model to ignore one backdoor also suppresses others that were not targeted, more than clean training does.",
        "the paper",
        f"Mean suppression of the other backdoors' ASR, net of the clean control. {_ABOVE}",
        mean_suppression("suppression_net_clean"),
    ),
    "more_than_phantoms": Claim(
        "The others are suppressed more than by the removal of triggers that were never injected.",
        "ours",
        f"Mean suppression of the other backdoors' ASR, net of the phantom. {_ABOVE}",
        mean_suppression("suppression_net_phantom"),
    ),
    "clean_text_spares": Claim(
        "Training on clean text alone, for the same number of steps, leaves the backdoors intact.",
        "ours",
        f"Mean suppression of the ASR under the clean control. It holds where the 95 % interval is below {NEGLIGIBLE}, does not"
        " where it is above; else not decided.",
        clean_control_spares,
    ),
    "casd_tells": Claim(
        "The smaller the CASD of two removals, the more they suppress each other's backdoors.",
        "the paper",
        f"Spearman's ρ of casd (L1, the nearest reading of the paper) and suppression over pairs. {_NEGATIVE} {_OTHERS}",
        falls_with("casd", "rho", "p_value"),
    ),
    "casd_cos_tells": Claim(
        "The smaller the cosine distance of two removals' shifts, the more they suppress each other's backdoors.",
        "ours",
        f"Spearman's ρ of casd_cos and suppression over pairs. {_NEGATIVE} {_OTHERS}",
        falls_with("casd_cos", "rho", "p_value"),
    ),
    "casd_tells_pairs": Claim(
        "CASD relates to the part of the suppression that belongs to pairs, not only to effects of single backdoors.",
        "ours",
        f"ρ of casd and suppression after the effects of single backdoors are taken out of both. {_NEGATIVE}",
        falls_with("casd", "rho_pairs", "p_pairs"),
    ),
    "casd_tells_more_than_targets": Claim(
        "CASD predicts more than that two backdoors have the same target.",
        "ours",
        f"Partial ρ of casd and suppression given the same target, since such pairs are close in any case. {_NEGATIVE}",
        falls_with("casd", "rho_partial", "p_partial"),
    ),
    "casd_cos_tells_more_than_targets": Claim(
        "The cosine distance predicts more than that two backdoors have the same target.",
        "ours",
        f"Partial ρ of casd_cos and suppression given the same target. {_NEGATIVE}",
        falls_with("casd_cos", "rho_partial", "p_partial"),
    ),
    "language_kept": Claim(
        "Removals leave the model's clean language intact.",
        "the paper",
        "Mean relative rise of the clean loss over all removals, collapsed models included (one without a finite loss decides"
        " against it). It holds where the 95 % interval"
        f" ends at {CLEAN_LOSS_RISE:.0%} or below, does not where it begins above; else not decided.",
        clean_language_kept,
    ),
    "at_every_setting": Claim(
        "Others are suppressed more than by training on clean text at every setting that removes backdoors.",
        "ours",
        f"The first claim at each setting with a mean own ASR of at most {REMOVED_ASR}. The paper's conclusions from its"
        " ablations are not known here.",
        at_every_setting("suppression_net_clean"),
    ),
    "more_than_phantoms_at_every_setting": Claim(
        "Others are suppressed more than by the removal of triggers that were never injected, at every such setting.",
        "ours",
        "The same, net of the phantom: if it weakens the backdoors as much, the removal of any trigger does.",
        at_every_setting("suppression_net_phantom"),
    ),
    "others_weaken_everywhere": Claim(
        "Removing one backdoor weakens others in every family.",
        "the paper",
        "The claim on the suppression of others, net of the clean control, in every model.",
        in_every_model(mean_suppression("suppression_net_clean")),
    ),
    "casd_tells_everywhere": Claim(
        "CASD relates to the suppression in every family.",
        "the paper",
        "The claim on ρ of casd and suppression in every model.",
        in_every_model(falls_with("casd", "rho", "p_value")),
    ),
}
