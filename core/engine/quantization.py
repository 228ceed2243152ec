"""Compressed base weights: 4-bit NormalFloat or 8-bit integers by bitsandbytes, how they compute, and their way back.

Only linear layers are compressed, and frozen (Dettmers et al. 2023, "QLoRA", section 3): embeddings, norms, the output head
and a task's own heads stay as they are, and so do experts that are stacked into one parameter.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from core.problem import Problem

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel


_BLOCK = 64  # weights of NF4 that share a scale


class Int8Linear(nn.Linear):
    """A linear layer whose weight (out, in) is whole numbers with a scale for each row: W = scale[:, None] * weight.

    bitsandbytes rounds the input of its own layer to 8 bits too, with outliers picked over the whole batch; then an
    answer would depend on what else is in the batch, and differ between training and use. Here only the weight is
    rounded, and unpacked anew in the backward pass instead of being kept for it.
    """

    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: nn.Parameter | None, dtype: torch.dtype):
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)
        self.bias, self.compute_dtype = bias, dtype

    def unpacked(self) -> torch.Tensor:
        """The weight (out, in) in the precision that the layer computes with."""
        return _unpack(self.weight, self.scale, self.compute_dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = _Product.apply(x.to(self.compute_dtype), self.weight, self.scale)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class _Product(torch.autograd.Function):
    """x W' with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, _unpack(weight, scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return grads[0] @ _unpack(weight, scale, grads[0].dtype), None, None


def _unpack(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (weight.float() * scale[:, None]).to(dtype)


def fits(layer: nn.Module) -> bool:
    """Whether the layer may be compressed: its input is a multiple of a block of NF4. bitsandbytes 0.50 unpacks others
    wrongly on the CPU, and the same layers are to be compressed on every device."""
    if isinstance(layer, Conv1D):
        return layer.weight.shape[0] % _BLOCK == 0
    return not isinstance(layer, nn.Linear) or layer.in_features % _BLOCK == 0


def configure(kind: str, device: torch.device, dtype: torch.dtype, kept: Sequence[str]) -> BitsAndBytesConfig:
    """What transformers needs to compress a model while it loads it.

    Args:
        kind: nf4, in blocks of 64 whose scales are compressed as well (QLoRA, section 3: 4.13 bits a weight instead of
            4.5), or int8, with a scale for each row.
        dtype: what is computed with.
        kept: paths of the modules that stay as they are.

    Raises:
        Problem: when bitsandbytes does not start, or cannot do it on this device.
    """
    # It advises to install a package that fetches code from the hub and runs it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except (ImportError, OSError, RuntimeError) as error:
        raise Problem(
            "bitsandbytes, which compresses the base weights, does not start here.",
            "{error}.",
            "Install the version for this machine, or choose none.",
            field="model.quantization",
            error=(str(error).strip().splitlines() or [type(error).__name__])[0].rstrip("."),
        ) from None
    from transformers import BitsAndBytesConfig

    able = sorted(bitsandbytes.supported_torch_devices)
    if device.type not in able:
        raise Problem(
            "The base weights cannot be compressed on this device, {device}.",
            "bitsandbytes can do it on {devices}.",
            "Choose none.",
            field="model.quantization",
            device=device.type,
            devices=", ".join(able),
        )
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(kept))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(kept),
    )


def settle(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Have every compressed layer compute the same in training and at use, in `dtype`.

    Raises:
        Problem: when there is none.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for path, layer in list(model.named_modules()):
        if isinstance(layer, Linear4bit):
            # Else a processor with AVX512-BF16 packs the weight anew at the first answer and computes in bfloat16 from
            # then on, without a backward pass.
            layer.support_avx512bf16_for_cpu = False
        elif isinstance(layer, Linear8bitLt):
            own = Int8Linear(layer.weight.data, layer.weight.SCB.float() / 127, layer.bias, dtype)
            own.source_cls = layer.source_cls
            model.set_submodule(path, own)
    if not any(is_packed(layer) for layer in model.modules()):
        raise Problem(
            "No layer of this model can be compressed.",
            "Its linear layers have inputs that are no multiple of {block}, or it has none.",
            "Choose no quantisation.",
            field="model.quantization",
            block=_BLOCK,
        )


def is_packed(layer: nn.Module) -> bool:
    """Whether the layer's weight is compressed."""
    return isinstance(layer, Int8Linear) or getattr(getattr(layer, "weight", None), "quant_state", None) is not None


def stores_transposed(layer: nn.Module) -> bool:
    """Whether the layer was, before it was compressed, one of GPT-2's that store their weight as (in, out)."""
    return getattr(layer, "source_cls", type(layer)) is Conv1D


def dequantize(layer: nn.Module) -> torch.Tensor:
    """The weight (out, in) that a compressed layer computes with, in the precision that it computes with."""
    if isinstance(layer, Int8Linear):
        return layer.unpacked()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)  # type: ignore[union-attr, arg-type]


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """How many numbers the parameters stand for; one of 4 bits holds two in a byte."""
    states = [(parameter, getattr(parameter, "quant_state", None)) for parameter in parameters]
    return sum(parameter.numel() if state is None else math.prod(state.shape) for parameter, state in states)


def dequantized_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of all compressed layers in float32 as an uncompressed model of that kind stores them, by the
    parameter's path. Call it before any adapter is on the model."""
    return {
        f"{path}.weight": (weight.T if stores_transposed(layer) else weight).float().contiguous()
        for path, layer in model.named_modules()
        if is_packed(layer)
        for weight in [dequantize(layer)]
    }
