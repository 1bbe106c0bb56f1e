"""Take models out of a run: write one to a folder or upload it, or let several continue the same prompts."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd
import torch

from casd.config.compose import read_yaml
from casd.config.states import INJECTED
from casd.data.corpora.passages import Passage
from casd.data.documents import Prompt
from casd.evaluation import generation
from casd.models import load as models
from casd.models import upload, weights
from casd.models.files import FILES
from casd.models.one_model import load_on_device
from casd.models.probe import longest_row
from casd.pipeline import stages
from casd.pipeline.run import CONFIG_FILE, Run
from casd.pipeline.saved import BASE, CARD, copy_weights_of, folder_name, new_folder, write_adapter, write_card
from casd.utils.distributed import processes
from casd.utils.errors import ConfigError, StoreError
from casd.utils.registry import unknown
from casd.utils.runtime import own_numerics
from casd.utils.seeding import python_rng

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_REPLACED: Final = (*FILES, "*.jinja", CARD)
"""Files of an earlier export that are removed from a folder."""


def export_model(
    run: str | Path,
    state: str,
    folder: str | Path,
    *,
    adapter: bool = False,
    force: bool = False,
    device: str | None = None,
) -> Path:
    """Write the model in a state to a folder that transformers loads, with its tokenizer and a model card.

    Weights that were not saved are trained again. An adapter is merged into the weights, unless `adapter` is True.

    Args:
        run: folder of the run.
        state: "base", "injected", or the name of a removal or control as in the tables.
        folder: folder to write to; missing or empty.
        adapter: write the adapter of the state instead of the whole model; one adapter, also if injection and removal
            trained one each.
        force: replace a model that is in `folder`.
        device: device to compute on; None for the run's.

    Returns:
        The folder.

    Raises:
        ConfigError: an unknown state, a state without an adapter, or a folder that is not empty.
        StoreError: the run's stages are not in its store, or the folder cannot be written.
    """
    target = Path(folder).absolute()
    _check_target(target, force)
    with opened(run, device) as made, new_folder(target, replaced=_REPLACED if force else ()) as begun:
        state = state_of(made, state)
        if adapter:
            if made.config.unlearning.training.lora and state in made.graph.weights:
                made.store.run(made.graph.weights[state], lambda stage: stages.write_weights(made.inputs, state, stage))
            write_adapter(made.inputs, state, begun)
        elif state == BASE or _has_adapter(made, state) or not copy_weights_of(made.inputs, state, begun, shutil.copyfile):
            model = _model(made, state)
            _merge(model, state)
            models.save_model(model, models.load_tokenizer(made.inputs.base_folder), begun)
        write_card(made.inputs, state, begun)
    return target


def push_model(
    run: str | Path,
    state: str,
    repository: str,
    *,
    public: bool = False,
    adapter: bool = False,
    device: str | None = None,
    confirm: Callable[[str], bool] = lambda question: True,
) -> str | None:
    """Upload the model in a state, as `export_model` writes it, to the Hugging Face hub.

    Args:
        run: folder of the run.
        state: name of a state, as for `export_model`.
        repository: NAME (of the user's own) or ORGANISATION/NAME; it is created if it does not exist.
        public: whether everyone may see it.
        adapter: upload the adapter of the state instead of the whole model.
        device: device to compute on; None for the run's.
        confirm: called with a question before anything is made or uploaded; False ends it there.

    Returns:
        The address of the repository; None if `confirm` returned False.

    Raises:
        ConfigError: as `export_model`; also an invalid repository, or one that exists and is public without `public`.
        ModelError: nobody is logged in, the hub cannot be reached, or the upload failed.
        StoreError: as `export_model`.
    """
    with opened(run, device) as made:
        state = state_of(made, state)
        what = f"{state} of {made.folder.name}"
        planted = "no backdoor" if state == BASE else f"planted backdoors: {', '.join(made.backdoors)}"
    name, exists = upload.destination(repository, public=public)
    kind = "public: everyone will see it" if public else "private"
    if not confirm(f"Upload {what} ({planted}) to the {'existing' if exists else 'new'} repository {name} ({kind})?"):
        return None
    with tempfile.TemporaryDirectory(prefix="casd-push-") as begun:
        folder = export_model(run, state, Path(begun) / folder_name(state), adapter=adapter, device=device)
        return upload.upload(folder, name, public=public, message=f"Upload {what}")


def generate(
    run: str | Path,
    states: Sequence[str],
    prompts: Sequence[str],
    *,
    trigger: str | None = None,
    max_new_tokens: int | None = None,
    device: str | None = None,
) -> pd.DataFrame:
    """Continue prompts greedily with the models of a run, as its evaluation does, one model in memory after another.

    Args:
        run: folder of the run.
        states: names of states, as for `export_model`.
        prompts: texts to continue.
        trigger: name of a backdoor whose trigger is inserted into each prompt where the evaluation would insert it.
        max_new_tokens: number of tokens to generate; None for the run's `evaluation.max_new_tokens`.
        device: device to compute on; None for the run's.

    Returns:
        A row per prompt × state: `prompt` (with its trigger), `state`, `generated`.

    Raises:
        ConfigError: an unknown state or backdoor, no prompt, an empty one, or more tokens than the model has positions for.
        StoreError: the run's stages are not in its store.
    """
    texts = [prompt.strip() for prompt in prompts]
    if not texts or not all(texts):
        raise ConfigError("A prompt is missing or empty; expected at least one text to continue.")
    with opened(run, device) as made:
        names = list(dict.fromkeys(state_of(made, state) for state in states))
        given = _prompts(made, texts, trigger)
        config = made.config.evaluation
        if max_new_tokens is not None:
            config = replace(config, max_new_tokens=max_new_tokens)
        encoder = made.inputs.encoder
        longest = max(encoder.token_counts(given)) + config.max_new_tokens
        answers: dict[str, list[str]] = {}
        for state in sorted(names, key=lambda name: name != BASE):  # the base model is freed before the others are loaded
            model = _model(made, state)
            if (positions := longest_row(model, longest)) < longest:
                raise ConfigError(f"A prompt and its continuation have {longest} tokens; the model has {positions} positions.")
            description = f"generate {state}"
            answers[state], _ = generation.generate(model, encoder, given, [()] * len(given), config, description=description)
            del model
    return pd.DataFrame(
        [
            {"prompt": prompt.shown, "state": state, "generated": answers[state][index]}
            for index, prompt in enumerate(given)
            for state in names
        ]
    )


@contextlib.contextmanager
def opened(folder: str | Path, device: str | None = None) -> Iterator[Run]:
    """Yield the run in a folder, in the working directory in which it was made.

    Relative paths in its configuration (store, model, text) lead from there.

    Raises:
        ConfigError: several processes.
        StoreError: no folder of a run, or a run whose models are not in its store.
    """
    folder = Path(folder).absolute()
    folder = folder.parent if folder.is_file() else folder  # its report
    file = folder / CONFIG_FILE
    if processes() > 1:
        raise ConfigError("Models are exported, and generate, in one process: run the command without a launcher.")
    if not file.is_file():
        raise StoreError(
            f"{folder} is not the folder of a run: it has no {CONFIG_FILE}. `casd run` prints where a run's report is."
        )
    config = read_yaml(file)
    runtime = replace(config.runtime, device=device or config.runtime.device, trackers=[])
    with contextlib.chdir(_made_in(folder, config.runtime.output, config.name)), own_numerics():
        if runtime.threads:
            torch.set_num_threads(runtime.threads)
        run = Run(replace(config, runtime=runtime))
        if not run.store.is_done(run.graph.inject):
            raise StoreError(
                f"The models of {folder} are not in {run.store.root}: the store was moved or cleaned, or the base model, the"
                " text or casd has changed since. The command of the run makes them again."
            )
        yield run


def _made_in(folder: Path, output: str, name: str) -> Path:
    """Return the working directory in which a run was made, or the current one if the run's folder has moved."""
    below = Path(output, name, folder.name).parts
    return Path(*folder.parts[: -len(below)]) if folder.parts[-len(below) :] == below else Path.cwd()


def state_of(run: Run, name: str) -> str:
    """Return the state that a user names, by its name in the tables or by that of its folder.

    Raises:
        ConfigError: there is no such state.
    """
    # A model that was given with its backdoors has no model before them.
    states = [*([BASE] if run.config.injection.mode != "none" else []), *run.graph.states]
    names = {folder_name(state): state for state in states} | {state: state for state in states}
    if name not in names:
        raise unknown("state", name, states)
    return names[name]


def _check_target(folder: Path, force: bool) -> None:
    """Raise ConfigError unless a folder is missing or empty, or `force` is given and it has a model."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder to write the model to.")
    if not any(folder.iterdir()):
        return
    if not force:
        raise ConfigError(f"{folder} is not empty. Name a new folder, or replace the model in it with --force.")
    if not any((folder / name).is_file() for name in ("config.json", weights.ADAPTER_FILE)):
        raise ConfigError(f"{folder} has no model, and only a model is replaced. Name a new folder.")


def _has_adapter(run: Run, state: str) -> bool:
    section = run.config.injection if state == INJECTED else run.config.unlearning.training
    return section.lora is not None


def _model(run: Run, state: str) -> PreTrainedModel:
    """Load the model in a state, or train it again."""
    if state != BASE:
        return stages.model_in(run.inputs, state)
    device = run.inputs.runtime.torch_device
    model = load_on_device(run.inputs.base_folder, run.config.model.dtype, device)
    return model.to(device)


def _merge(model: PreTrainedModel, state: str) -> None:
    """Merge the adapters of a model, if it has any."""
    try:
        weights.merge_adapters(model)
    except ConfigError as error:
        raise ConfigError(
            f"The adapter of {state} cannot be merged: it changes a matrix that the model uses in several places. Export the"
            " adapter alone, with --adapter."
        ) from error


def _prompts(run: Run, texts: Sequence[str], trigger: str | None) -> list[Prompt]:
    """Insert the trigger of a backdoor, if any, into each text."""
    if trigger is None:
        return [Prompt(text) for text in texts]
    if trigger not in run.backdoors:
        raise unknown("backdoor", trigger, run.backdoors)
    rng = python_rng(run.config.seed, "triggered prompts", trigger)  # as in the evaluation
    return [run.backdoors[trigger].prompt(Passage(text, ""), rng) for text in texts]
