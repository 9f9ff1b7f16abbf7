"""LoRA layers that add to their base's output in place.

peft makes `x W'`, then `(x A') B'`, then that times the scale, then the sum: four tensors as large as the output, and
as many gradients on the way back. The products are small where the rank is, so on a CPU most of an adapter's price is
passes over memory. Here the second product is added into the first one's result, and the gradients likewise. The
numbers are peft's but for rounding.

Shapes: `N` positions, `I` inputs, `O` outputs, `R` rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.autograd.function import once_differentiable


class InPlace(Linear):
    """peft's LoRA layer, where one adapter without dropout lies on a frozen float32 layer."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As peft's layer."""
        if self.disable_adapters or self.merged or args or kwargs or torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        a_RI, b_OR = self.lora_A[name].weight, self.lora_B[name].weight
        base, x_NI = self.base_layer, x.reshape(-1, x.shape[-1])
        y_NO = _Adapted.apply(x_NI, base.weight, base.bias, a_RI, b_OR, self.scaling[name])
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])


class _Adapted(torch.autograd.Function):
    """x W' + bias + scale (x A') B'. The base's weight and bias take no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        xa_NR = (x_NI @ a_RI.T).mul_(scale)
        ctx.save_for_backward(x_NI, weight_OI, a_RI, b_OR, xa_NR)
        ctx.scale = scale
        return nn.functional.linear(x_NI, weight_OI, bias_O).addmm_(xa_NR, b_OR.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_NI, weight_OI, a_RI, b_OR, xa_NR = ctx.saved_tensors
        gb_NR = (gradient_NO @ b_OR).mul_(ctx.scale)
        of_x_NI = (gradient_NO @ weight_OI).addmm_(gb_NR, a_RI) if ctx.needs_input_grad[0] else None
        return of_x_NI, None, None, gb_NR.T @ x_NI, gradient_NO.T @ xa_NR, None


def in_place(model: Any) -> Any:
    """Return the model with every LoRA layer of it that can be made an `InPlace` one; others stay peft's."""
    for layer in model.modules():
        if type(layer) is Linear and _is_plain(layer):
            layer.__class__ = InPlace
    return model


def _is_plain(layer: Linear) -> bool:
    base = layer.base_layer
    return (
        type(base) is nn.Linear
        and base.weight.dtype == torch.float32
        and not base.weight.requires_grad
        and not (base.bias is not None and base.bias.requires_grad)
        and not layer.lora_variant
        and len(layer.lora_A) == 1
        and all(isinstance(dropout, nn.Identity) for dropout in layer.lora_dropout.values())
        and all(weight.weight.dtype == torch.float32 for weight in (*layer.lora_A.values(), *layer.lora_B.values()))
        and all(weight.bias is None for weight in layer.lora_B.values())
    )
