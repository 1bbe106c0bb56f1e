"""Simulate the peak memory of a computation on fake tensors, without allocating it.

Under torch's FakeTensorMode an output has a shape and a lifetime, but no data. A dispatch mode counts each storage from the
operation that creates it until Python and autograd have released it. That is the memory requested from the allocator; the
allocator's rounding and fragmentation and the workspaces of kernels are not included.

If all blocks of a model are identical, two small numbers of them are simulated, and the peak is extrapolated along a line.

`torch.distributed._tools.mem_tracker.MemTracker` counts the same bytes, in twice the time.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from casd.planning.blueprint import Adapters, Blueprint
from casd.utils.errors import ConfigError

Work = Callable[[Any, "LiveBytes"], None]
"""A computation on a model, and the counter, which it may restart."""


class LiveBytes(TorchDispatchMode):
    """Context manager that counts the bytes of storages created by operations until they are freed.

    Attributes:
        live: bytes of the live storages.
        peaks: maximum of `live` in each part of the computation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peaks = 0, [0]
        self._seen: dict[int, weakref.finalize[..., Any]] = {}

    def restart(self, model: nn.Module) -> None:
        """Count from here on, and never the parameters and buffers of `model`."""
        for finalizer in self._seen.values():
            finalizer.detach()
        self._seen.clear()
        for tensor in [*model.parameters(), *model.buffers()]:
            self._add(tensor, counted=False)
        self.live, self.peaks = 0, [0]

    def next_part(self) -> None:
        """Begin another part of the computation."""
        self.peaks.append(self.live)

    def _add(self, tensor: Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counted else 0
        if key not in self._seen:
            self._seen[key] = finalizer = weakref.finalize(storage, self._free, key, size)
            finalizer.atexit = False
            self.live += size
            self.peaks[-1] = max(self.peaks[-1], self.live)

    def _free(self, key: int, size: int) -> None:
        del self._seen[key]
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its outputs."""
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype != torch.bfloat16:
            # torch infers the shape of this product of experts for bfloat16 only, although its kernels take other types.
            first, second, *rest = args
            result = func(first.bfloat16(), second.bfloat16(), *rest, **(kwargs or {})).to(first.dtype)
        else:
            result = func(*args, **(kwargs or {}))
        pytree.tree_map_only(Tensor, self._add, result)
        return result


def simulate(blueprint: Blueprint, key: object, work: Work, blocks: tuple[int, ...], adapters: Adapters = ()) -> int:
    """Return the peak bytes of a computation without the model's weights and buffers. Equal ones are simulated once.

    Each part of it must peak when every block has run forward.

    Args:
        blueprint: the model.
        key: identifies `work` and all that it depends on, by its repr.
        work: the computation, on fake tensors; the model is in evaluation mode.
        blocks: the numbers of blocks to simulate if all blocks are identical; one if further ones add nothing to the peak.
        adapters: adapters on the model.

    Raises:
        ConfigError: a tensor has more elements than 63 bits can count.
        NotImplementedError: the model is recurrent. The model's own code may raise other errors.
    """
    name = repr((key, adapters))
    if name not in blueprint.counted:
        if not blueprint.attention_width:
            raise NotImplementedError("a recurrent model goes through a text token by token, which takes too long to simulate")
        layers = blueprint.layers
        if not blueprint.alike or layers <= blocks[-1]:
            blocks = (layers,)
        peaks, *more = (_peaks(blueprint, number, work, adapters) for number in blocks)
        further = layers - blocks[0]
        blueprint.counted[name] = max(
            few + further * (one_more - few) for few, one_more in zip(peaks, *(more or [peaks]), strict=True)
        )
    return blueprint.counted[name]


def _peaks(blueprint: Blueprint, blocks: int, work: Work, adapters: Adapters) -> list[int]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model, live = blueprint.build(blocks, adapters), LiveBytes()
    log = logging.getLogger("torch._subclasses.fake_tensor")  # prints the traceback of errors that it also raises
    log.disabled, disabled = True, log.disabled
    try:
        with FakeTensorMode(), torch.device("cpu"):
            _fill(model)
            model.eval()
            live.restart(model)
            with live:
                work(model, live)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise ConfigError(
            "No machine has the memory for such sizes: lower evaluation.max_new_tokens, model.max_length or a batch_size."
        ) from error
    finally:
        log.disabled = disabled
    return live.peaks


def _fill(model: nn.Module) -> None:
    """Move the tensors of a model from the meta device to the (fake) CPU; tied tensors stay tied.

    Attach adapters before this: they convert layers in a way that fake tensors do not allow.
    """
    filled: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in filled:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    filled[id(tensor)] = (
                        nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
                    )
                if tensor is not None:
                    tensors[name] = filled[id(tensor)]  # type: ignore[assignment]
