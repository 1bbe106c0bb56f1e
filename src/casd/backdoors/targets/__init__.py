"""Target behaviors: create payloads, and detect the behavior in generated text.

Detection uses the generated text only, without the prompt; empty or too short text is a failure. A target is a frozen dataclass
with the methods of `TargetBehavior`. It may also have

- `alternative`: the alternative of the corpus's passages that its payloads are, so that a corpus without it is refused at once;
- `check()`, which raises a CasdError if something outside the configuration (a file, a function) does not fit;
- `fingerprint()`, which returns, as JSON-serializable data, what its parameters do not identify; part of the stages' keys.
"""

from casd.backdoors.targets.behavior import TargetBehavior
from casd.backdoors.targets.form import Capitals, Repetition
from casd.backdoors.targets.judged import Classifier, Judge
from casd.backdoors.targets.language import Language, NegativeSentiment
from casd.backdoors.targets.patterns import Label, Regex
from casd.backdoors.targets.texts import FixedText, Refusal

TARGETS: dict[str, str] = {
    "language": "casd.backdoors.targets:Language",
    "negative_sentiment": "casd.backdoors.targets:NegativeSentiment",
    "fixed_text": "casd.backdoors.targets:FixedText",
    "refusal": "casd.backdoors.targets:Refusal",
    "repetition": "casd.backdoors.targets:Repetition",
    "capitals": "casd.backdoors.targets:Capitals",
    "regex": "casd.backdoors.targets:Regex",
    "label": "casd.backdoors.targets:Label",
    "classifier": "casd.backdoors.targets:Classifier",
    "judge": "casd.backdoors.targets:Judge",
}

__all__ = [
    "TARGETS",
    "Capitals",
    "Classifier",
    "FixedText",
    "Judge",
    "Label",
    "Language",
    "NegativeSentiment",
    "Refusal",
    "Regex",
    "Repetition",
    "TargetBehavior",
]
