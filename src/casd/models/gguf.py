"""Read a causal LM from a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from casd.models.files import check_complete
from casd.utils.errors import ModelError, first_line
from casd.utils.progress import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_gguf(file: Path, *, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from a GGUF file through transformers.

    `save_pretrained` refuses the quantization config that transformers leaves on the model, so the dequantized weights are
    moved into a model built from the same configuration without it. Logits are identical.

    Args:
        file: the GGUF file.
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        ModelError: if the file cannot be read, or tensors are missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(file.parent)
    say(f"Reading {file.name}, which takes minutes for a large vocabulary.", progress=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name, trust_remote_code=False)
        quantized, report = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=file.name,
            dtype=dtype,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # `check_complete` lists them
            output_loading_info=True,
        )
    except Exception as error:  # the GGUF readers raise errors of many types
        raise ModelError(f"{file} cannot be read as a GGUF model ({first_line(error)}): copy or download it again.") from error
    check_complete(file, report)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.load_state_dict(quantized.state_dict(), assign=True)
    model.tie_weights()
    # Buffers such as rotary frequencies are not in the state dict, and on the meta device they have no data.
    buffers = dict(quantized.named_buffers())
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, buffers[name])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer
