"""A model divided over the processes of a run (FSDP, by torch's `fully_shard`), for models that one device cannot hold.

Each process keeps a part of every weight, gradient and optimizer state; a block's weights are gathered when it is computed.
`accelerate launch --use_fsdp -m casd …` asks for it. (Not by accelerate's own wrapping, which refuses tied embeddings.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from casd.models.structure import decoder_layers
from casd.utils import distributed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def place(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Bring the model to the device, or, if the launcher asked for it, divide it over the devices of all processes.

    A divided model holds its weights in float32 and computes in the precision that it had.
    """
    if not distributed.sharded() or is_sharded(model):
        return model.to(device)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Told, because left to itself it takes the machine's GPUs, also for a run on the CPU.
    mesh = init_device_mesh(device.type, (distributed.processes(),))
    precision = next((each.dtype for each in model.parameters() if each.dtype != torch.float32), torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
    model.float().to(device)
    for block in decoder_layers(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Of the outermost module FSDP would keep the whole weights after a forward pass without a backward one.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return model


def replicate(model: PreTrainedModel, device: torch.device) -> torch.nn.Module:
    """The model to train with: in several processes one whose backward pass averages the gradients over them.

    torch's own DistributedDataParallel, around the model: the `Accelerator` takes settings such as mixed precision from the
    environment and from other code in the process, and puts them into the model's `forward`.
    """
    if distributed.processes() == 1 or is_sharded(model):
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether the model is divided over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts of all processes; each of them has to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_part(value: Tensor, of: Tensor) -> Tensor:
    """The part of a whole value that this process has of the tensor `of`."""
    if not isinstance(of, DTensor):
        return value
    return distribute_tensor(value.to(of.device), of.device_mesh, of.placements).to_local()


def whole_of_part(part: Tensor, of: Tensor) -> Tensor:
    """The whole value of which this process has the part that it has of `of`; each process has to call this.

    The inverse of `local_part`. Not copied, and left where it is, if `of` is not divided.
    """
    if not isinstance(of, DTensor):
        return part
    mesh, placements = of.device_mesh, of.placements
    divided = DTensor.from_local(part.to(of.device), mesh, placements, run_check=False, shape=of.shape, stride=of.stride())
    return divided.full_tensor()
