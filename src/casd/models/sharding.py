"""Shard a model over the processes of a run (FSDP, by torch's `fully_shard`), for models that one device cannot hold.

Each process keeps a shard of every weight, gradient and optimizer state; a block's weights are gathered when it is computed.
Enabled by `accelerate launch --use_fsdp -m casd …`. (accelerate's own wrapping is not used: it refuses tied embeddings.)
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from casd.models.structure import decoder_layers
from casd.utils import distributed

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from transformers import PreTrainedModel


def place(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Move the model to the device or, under FSDP, shard it over the devices of all processes, in place.

    A sharded model stores its weights in float32 and computes in its original precision.
    """
    if not distributed.sharded() or is_sharded(model):
        return model.to(device)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # An explicit mesh: by default, fully_shard uses the GPUs even for a run on the CPU.
    mesh = init_device_mesh(device.type, (distributed.processes(),))
    precision = next((p.dtype for p in model.parameters() if p.dtype != torch.float32), torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
    model.float().to(device)
    for block in decoder_layers(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # By default, FSDP keeps the root module's weights gathered after a forward pass, also without a backward pass.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return model


def replicate(model: PreTrainedModel, device: torch.device) -> torch.nn.Module:
    """Wrap the model in DistributedDataParallel where several processes train an unsharded model; otherwise return it.

    accelerate's `Accelerator` is not used: it takes settings such as mixed precision from the environment and from other
    code in the process, and patches them into the model's `forward`.
    """
    if distributed.processes() == 1 or is_sharded(model):
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def _is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    tensors = sys.modules.get("torch.distributed.tensor")  # whoever made a DTensor imported it, which takes a second
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def is_sharded(model: torch.nn.Module) -> bool:
    """Return True if the model is sharded over processes."""
    return any(map(_is_sharded, model.parameters()))


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor from all processes; every process must call this."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor


def whole_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Gather the state dict of a sharded model on the CPU. Tied weights stay one tensor under two names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    whole_by_id: dict[int, Tensor] = {}
    state = {}
    for name, value in model.state_dict().items():
        identity = id(parameters.get(name, value))
        if identity not in whole_by_id:
            whole_by_id[identity] = whole(value).to("cpu", model.config.dtype)
        state[name] = whole_by_id[identity]
    return state


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, sharing its memory."""
    return tensor.to_local() if _is_sharded(tensor) else tensor


def local_part(value: Tensor, of: Tensor) -> Tensor:
    """Return this process's shard of a full value that is sharded like `of`."""
    if not _is_sharded(of):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(of.device), of.device_mesh, of.placements).to_local()


def whole_of_part(part: Tensor, of: Tensor) -> Tensor:
    """Gather the full value from shards that are sharded like `of`; every process must call this.

    The inverse of `local_part`. If `of` is not sharded, `part` itself is returned.
    """
    if not _is_sharded(of):
        return part
    mesh, placements = of.device_mesh, of.placements
    sharded = type(of).from_local(part.to(of.device), mesh, placements, run_check=False, shape=of.shape, stride=of.stride())
    return sharded.full_tensor()
