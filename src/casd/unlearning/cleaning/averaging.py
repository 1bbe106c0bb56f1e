"""Averaging with a clean base model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from safetensors import safe_open

from casd.config import ModelConfig
from casd.config.fields import require, require_path
from casd.data.batches import Batch
from casd.metric.compared import ComparedModel, shape_of
from casd.models.load import fetch
from casd.unlearning.cleaning.method import Cleaning
from casd.utils.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Places = list[tuple[torch.nn.Parameter, Path, str]]
"""For each parameter, the file of the base that has its values, and their name there."""


@dataclass(frozen=True, kw_only=True)
class Averaging(Cleaning):
    """Minimise the mean NLL of clean documents, which gives θ_ft; then θ = (1 − w) · θ_ft + w · θ_base.

    Source: weight averaging (WAG) in Arora et al. 2024, "Here's a Free Lunch: Sanitizing Backdoored Models with Model Merge"
    (arXiv 2402.19334), of several models with equal weights and without training. The fine-tuning before it is our addition:
    all methods are compared at one budget.

    Attributes:
        base: folder or hub id of a clean model with the architecture, size and tokenizer of the suspect model. Its tensors are
            read one at a time.
        weight: w.

    Failure mode: models that were trained apart from the start have no weights in common, and their average is useless.
    """

    base: str
    weight: float = 0.5

    trains_adapters: ClassVar[bool] = False
    runs_in_processes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_path("Averaging: base", self.base)
        require(self, "in (0, 1]", lambda value: 0 < value <= 1, "weight")

    @contextmanager
    def around(self, model: PreTrainedModel, batches: Iterable[Batch]) -> Iterator[None]:
        """Check the base before the training, and average with it afterwards."""
        places = self._places(model)
        yield
        _average(places, self.weight)

    def _places(self, model: PreTrainedModel) -> Places:
        """Find the tensor of the base that belongs to each parameter.

        Raises:
            ModelError: the base is missing or damaged, or has another architecture or size.
        """
        base = ModelConfig(name="base", source="pretrained", path=self.base)
        folder, places = fetch(base), []
        ours, theirs = shape_of(model.config), shape_of(ComparedModel("base", base).read_config() or model.config)
        if ours != theirs:
            raise ModelError(
                f"Averaging: the base {self.base} ({theirs}) has another shape than the model ({ours}); give a clean model of"
                " the same architecture and size."
            )
        tensors = _tensors(folder)
        for parameter, names in _names(model).items():
            name = next((name for name in names if tensors.get(name, (folder, ()))[1] == tuple(parameter.shape)), None)
            if name is None:
                raise ModelError(
                    f"Averaging: the base {self.base} has no tensor {names[0]} of shape {tuple(parameter.shape)}; give a clean"
                    " model of the same architecture and size."
                )
            places.append((parameter, tensors[name][0], name))
        return places


def _tensors(folder: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """File and shape of each tensor in a model folder, by name; the tensors are not read."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found.update({name: (file, tuple(opened.get_slice(name).get_shape())) for name in opened.keys()})  # noqa: SIM118
    return found


def _names(model: PreTrainedModel) -> dict[torch.nn.Parameter, list[str]]:
    """Names that each parameter may have in a file: all names of tied ones, with and without the prefix of the decoder."""
    names: dict[torch.nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).extend((name, name.removeprefix(f"{model.base_model_prefix}.")))
    return names


@torch.no_grad()
def _average(places: Places, weight: float) -> None:
    """Set each parameter to its average with its tensor of the base, computed in float32."""
    for parameter, file, name in places:
        with safe_open(file, framework="pt") as opened:
            value = opened.get_tensor(name).to(parameter.device, torch.float32)
        parameter.copy_((1 - weight) * parameter.float() + weight * value)
