"""Simulated quantization: weights rounded to few bits and kept in their own precision, which needs no kernels of a device.

Round-to-nearest, symmetric, with a scale for each output channel: for the weights w of a channel and b bits, q = 2^(b−1) − 1,
s = max|w| / q, and w becomes s · round(w / s). No weight changes by more than s / 2. Activations are not quantized.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from casd.models.sharding import local, local_part, whole
from casd.utils.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantized(weight: Tensor, bits: int, channel_dim: int = 0) -> Tensor:
    """Round a weight matrix to `bits` bits.

    Args:
        weight: a matrix, of which each slice along `channel_dim` is an output channel.
        bits: from 2 to 8.
        channel_dim: dimension of the output channels, 0 or 1.

    Returns:
        A new matrix of the same shape and precision; each channel has at most 2^bits − 1 values. Computed in float32.
    """
    values = weight.float()
    largest = 2 ** (bits - 1) - 1
    scale = values.abs().amax(1 - channel_dim, keepdim=True) / largest
    rounded = (values / torch.where(scale > 0, scale, 1.0)).round().clamp(-largest, largest)
    return (rounded * scale).to(weight.dtype)


def quantize(model: PreTrainedModel, bits: int) -> int:
    """Round the weights of all linear layers except the output matrix, in place, as bitsandbytes and GPTQ choose them.

    The embedding, norms and biases stay as they are.

    Returns:
        The number of matrices.

    Raises:
        ModelError: a mixture of experts, whose experts are no linear layers.
    """
    from transformers.pytorch_utils import Conv1D

    if experts := next((name for name, each in model.named_parameters() if ".experts." in name and each.ndim == 3), ""):
        raise ModelError(f"Experts ({experts}) cannot be rounded to {bits} bits; set persistence.bits=[].")
    head, done = model.get_output_embeddings(), 0
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | Conv1D) and module is not head:
                channel_dim = int(isinstance(module, Conv1D))  # whose matrix, of GPT-2, is transposed
                value = quantized(whole(module.weight.detach()), bits, channel_dim)
                local(module.weight).copy_(local_part(value, module.weight))
                done += 1
    return done
