"""The help of each verb (an example and its common keys), and what replaces the options of Hydra's command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from casd.utils.errors import ConfigError

_KEYS: Final = {
    "experiment=NAME": "a whole experiment; casd list experiment",
    "model=NAME": "or, for any other: model=hub model.path=ORGANISATION/NAME",
    "attack=NAME": "the attacker's backdoors and their injection; without it, model.path is a suspect model",
    "defence.share=N": "budget, as a fraction of the documents of the attacker's injection",
    "defence.documents=N": "or as a number of documents, which a suspect model needs",
    "defence.dummies=N": "backdoors that the defender plants",
    "defence.held_out=N": "how many of them are never removed: the estimate of what is left of an unknown one",
    "backdoor=[A,B]": "what is injected; each is removed once",
    "unlearning=NAME": "the objective of the removals",
    "seed=N": "seed of all random numbers",
    "weights=lora": "adapters instead of all weights",
    "injection.training.steps=N": "also batch_size, learning_rate",
    "unlearning.training.steps=N": "also learning_rate, forget_batch_size, retain_batch_size",
    "activations=all metric=grid": "every variant of CASD, and what else could predict transfer",
    "evaluation.prompts=N": "prompts for each backdoor",
    "runtime.device=cuda": "also output, store, micro_batch_size, gradient_checkpointing",
    "engine.workers=N": "parts of runs at the same time, each on a GPU of its own",
    "runtime.memory_gib=N": "memory of a device elsewhere; also devices, tflops",
    "scale=NAME": "how large the runs are (default: tiny)",
    "runtime.output=FOLDER": "any key of runtime",
}
_RUN: Final = ("experiment=NAME", "model=NAME", "backdoor=[A,B]", "unlearning=NAME", "seed=N", "weights=lora")
_INJECTION: Final = tuple(key for key in _RUN if key != "unlearning=NAME")
_DEFENCE: Final = (
    "experiment=NAME",
    "attack=NAME",
    "model=NAME",
    "unlearning=NAME",
    "defence.share=N",
    "defence.dummies=N",
    "defence.held_out=N",
    "defence.documents=N",
    "seed=N",
)
_STEPS: Final = ("injection.training.steps=N", "unlearning.training.steps=N")
_HELP: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "run": ("run model=qwen3_tiny unlearning=npo seed=1", (*_RUN, *_STEPS, "evaluation.prompts=N", "runtime.device=cuda")),
    "inject": ("inject 'backdoor=[french_a,refusal]'", (*_INJECTION, _STEPS[0], "runtime.device=cuda")),
    "unlearn": ("unlearn unlearning=npo unlearning.training.steps=8", (*_RUN, *_STEPS, "runtime.device=cuda")),
    "activations": ("activations activations=all", (*_RUN, "activations=all metric=grid", "runtime.device=cuda")),
    "evaluate": ("evaluate unlearning=npo evaluation.prompts=128", (*_RUN, "evaluation.prompts=N", "runtime.device=cuda")),
    "score": ("score activations=all metric=grid", (*_RUN, "activations=all metric=grid", "runtime.device=cuda")),
    "sweep": ("sweep experiment=demo model=qwen3_tiny,llama3_tiny seed=0,1", (*_RUN, *_STEPS, "engine.workers=N")),
    "defend": ("defend experiment=defender_demo seed=1", _DEFENCE),
    "plan": ("plan experiment=real model=llama3_2_1b runtime.memory_gib=24", (*_RUN, "runtime.memory_gib=N")),
    "show": ("show experiment=smoke seed=1", _RUN),
    "report": ("report outputs", ()),
    "reproduce": ("reproduce all scale=tiny", ("scale=NAME", "engine.workers=N", "runtime.output=FOLDER")),
    "compare": ("compare outputs/demo/A outputs/demo/B", ()),
    "export": ("export outputs/demo/A french_a my-model", ()),
    "push": ("push outputs/demo/A french_a my-name/my-model", ()),
    "generate": ("generate outputs/demo/A --state injected,french_a --prompt 'The harbour' --trigger french_a", ()),
    "distance": ("distance my-base model-a model-b --texts texts.txt --variant last/cosine", ()),
    "list": ("list model", ()),
    "status": ("status outputs --all", ()),
    "clean": ("clean outputs", ()),
    "completion": ("completion bash", ()),
}
"""The example of each verb, and the keys that its help shows."""
VERBS: Final = tuple(_HELP)

_SHOW: Final = "`casd show OVERRIDE…` prints the composed configuration"
_SEARCH: Final = "a folder configs/ in the working directory is searched, and others by 'hydra.searchpath=[file:///FOLDER]'"
_OPTIONS_OF_HYDRA: Final = {
    **dict.fromkeys(("-m", "--multirun"), "`casd sweep OVERRIDE…` makes every combination of the listed values"),
    **dict.fromkeys(("-c", "--cfg", "--resolve", "--package", "--info"), _SHOW),
    **dict.fromkeys(("-cn", "--config-name"), "`experiment=NAME` composes configs/experiment/NAME.yaml"),
    **dict.fromkeys(("-cd", "--config-dir", "-cp", "--config-path"), _SEARCH),
    "--hydra-help": "`casd --help` and `casd VERB --help` have the help",
}
"""Options of Hydra's own command line, and what casd has instead."""


def epilog(verb: str) -> str:
    """Return the example of a verb, and the keys that are usually set, for the end of its help."""
    example, keys = _HELP[verb]
    width = max(map(len, keys), default=0)
    lines = [f"example:\n  casd {example}"]
    if keys:
        lines += ["\ncommon keys:", *(f"  {key:<{width}}  {_KEYS[key]}" for key in keys)]
    return "\n".join(lines)


def check_options(arguments: Sequence[str]) -> None:
    """Refuse the options of Hydra's command line.

    Raises:
        ConfigError: such an option; the message names what casd has instead.
    """
    for option in (argument.partition("=")[0] for argument in arguments):
        if option in _OPTIONS_OF_HYDRA:
            raise ConfigError(f"casd has no option {option}: {_OPTIONS_OF_HYDRA[option]}.")
