"""Simulate the peak memory of a computation on fake tensors, without allocating it.

Under torch's FakeTensorMode every output has its shape and lifetime, but no data. A dispatch mode sees each output; a storage
counts from the operation that creates it until Python and autograd have released it. This is the memory requested from the
allocator. The allocator's overhead (rounding, fragmentation) and the temporary memory of kernels are not included.

Transformer blocks are identical, so models of two and three blocks show what each further block adds. The time of the peak
depends on the number of blocks. The run is therefore divided into pieces where blocks begin and end, the peak of each piece is
extrapolated linearly, and the largest is returned.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from casd.models.structure import decoder_layers, decoder_of
from casd.planning.blueprint import Adapters, Blueprint
from casd.utils.errors import ConfigError

Work = Callable[[Any, "LiveBytes"], None]
"""The simulated computation: a function of the model and the counter."""

_BLOCKS = (2, 3)
_BETWEEN = "middle"


class LiveBytes(TorchDispatchMode):
    """Context manager that counts the bytes of storages created by operations until they are freed.

    Attributes:
        live: bytes of the live storages.
        peaks: maximum of `live` in each piece of the run, by number of the forward pass and name of the piece.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peaks: dict[tuple[int, str], int] = {}
        self.piece = ""
        self._number = 0
        self._counted = True
        self._seen: dict[int, weakref.finalize[..., Any]] = {}

    @property
    def peak(self) -> int:
        """Maximum over all pieces."""
        return max(self.peaks.values(), default=0)

    def begin(self, piece: str, *, next_pass: bool = False) -> None:
        """Begin a piece of the run; with `next_pass`, the first one of another forward pass."""
        if self._counted:
            self._number += next_pass
            self.piece = piece
            self._record()

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Suspend pieces and maxima inside the block. Storages that outlive it are counted afterwards."""
        self._counted = False
        try:
            yield
        finally:
            self._counted = True

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage once, as long as it is alive."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._seen:
            self._seen[key] = finalizer = weakref.finalize(storage, self._free, key, storage.nbytes())
            finalizer.atexit = False
            self.live += storage.nbytes()
            self._record()

    def add_module(self, module: nn.Module) -> int:
        """Count a module's parameters and buffers, and return their bytes."""
        before = self.live
        for tensor in [*module.parameters(), *module.buffers()]:
            self.add(tensor)
        return self.live - before

    def _record(self) -> None:
        if self._counted:
            key = (self._number, self.piece)
            self.peaks[key] = max(self.peaks.get(key, 0), self.live)

    def _free(self, key: int, n_bytes: int) -> None:
        del self._seen[key]
        self.live -= n_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its outputs."""
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype != torch.bfloat16:
            # torch infers the shape of this product of experts for bfloat16 only, although its kernels take other types.
            first, second, *rest = args
            result = func(first.bfloat16(), second.bfloat16(), *rest, **(kwargs or {})).to(first.dtype)
        else:
            result = func(*args, **(kwargs or {}))
        pytree.tree_map_only(Tensor, self.add, result)
        return result


def simulated_peak(blueprint: Blueprint, work: Work, adapters: Adapters = ()) -> int:
    """Return the peak bytes while `work` runs, including the model's weights and buffers.

    Args:
        blueprint: the model. If its blocks are identical, at most three of them are simulated.
        work: the computation; called with the model in evaluation mode and the counter, on fake tensors.
        adapters: adapters on the model.

    Raises:
        ConfigError: a tensor has more elements than 63 bits can count.
        NotImplementedError: the model is recurrent. The model's own code may raise other errors.
    """
    if not blueprint.attention_width:
        raise NotImplementedError("a recurrent model goes through a text token by token, which takes too long to simulate")
    if not blueprint.alike or blueprint.layers <= max(_BLOCKS):
        return max(_peaks(blueprint, blueprint.layers, work, adapters).values())
    fewer, more = (_peaks(blueprint, blocks, work, adapters) for blocks in _BLOCKS)
    further = blueprint.layers - _BLOCKS[0]
    return max(peak + further * (more[piece] - peak) for piece, peak in fewer.items())


def _peaks(blueprint: Blueprint, layers: int, work: Work, adapters: Adapters) -> dict[tuple[int, str], int]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = blueprint.build(layers, adapters)
    live = LiveBytes()
    with _no_log("torch._subclasses.fake_tensor"), FakeTensorMode(), torch.device("cpu"), ExitStack() as hooks:
        _fill(model)
        model.eval()
        live.begin("before")
        live.add_module(model)
        hooks.enter_context(_pieces(model, live))
        try:
            with live:
                work(model, live)
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            raise ConfigError(
                "No machine has the memory for such sizes: lower evaluation.max_new_tokens, model.max_length or a batch_size."
            ) from error
    return {key: peak for key, peak in live.peaks.items() if key[1] != _BETWEEN}


@contextmanager
def _no_log(name: str) -> Iterator[None]:
    """Suppress the log of a library that prints the traceback of errors that it also raises."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _fill(model: nn.Module) -> None:
    """Move the tensors of a model from the meta device to the (fake) CPU; tied tensors stay tied.

    Attach adapters before this: they convert layers in a way that fake tensors do not allow.
    """
    filled: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in filled:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    filled[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                tensors[name] = filled[id(tensor)]  # type: ignore[assignment]


@contextmanager
def _pieces(model: nn.Module, live: LiveBytes) -> Iterator[None]:
    """Divide the run into pieces by hooks on the decoder and on its first and last block.

    Pieces of the forward pass: "embedding", "blocks", "head" (with the loss). Of the backward pass: "last block", "middle",
    "first block", "embedding's gradient". Recomputation of checkpointed blocks does not begin a piece.
    """
    decoder, blocks = decoder_of(model), decoder_layers(model)

    def begin_at_gradient(tensor: Tensor, piece: str) -> None:
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: live.begin(piece))

    def decoder_begins(module: nn.Module, args: Any) -> None:
        live.begin("embedding", next_pass=True)

    def first_begins(module: nn.Module, args: Any, kwargs: Any) -> None:
        if live.piece == "embedding":
            live.begin("blocks")
            begin_at_gradient(_hidden(args, kwargs), "embedding's gradient")

    def first_ended(module: nn.Module, args: Any, output: Any) -> None:
        if live.piece == "blocks":
            begin_at_gradient(_first(output), "first block")

    def last_begins(module: nn.Module, args: Any, kwargs: Any) -> None:
        if live.piece == "blocks" and len(blocks) > 2:  # with two, the first one's backward pass begins here
            begin_at_gradient(_hidden(args, kwargs), _BETWEEN)

    def decoder_ended(module: nn.Module, args: Any, output: Any) -> None:
        live.begin("head")
        begin_at_gradient(_first(output), "last block")

    handles = [
        decoder.register_forward_pre_hook(decoder_begins),
        blocks[0].register_forward_pre_hook(first_begins, with_kwargs=True),
        blocks[0].register_forward_hook(first_ended),
        blocks[-1].register_forward_pre_hook(last_begins, with_kwargs=True),
        decoder.register_forward_hook(decoder_ended),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hidden(args: Any, kwargs: Any) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
