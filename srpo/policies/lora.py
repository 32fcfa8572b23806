"""Low-rank adapters (LoRA, arXiv 2106.09685) beside frozen linear layers."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class LoraLinear(nn.Linear):
    """A linear layer W x + b with an adapter: W x + b + α/r · B A x.

    A and B are float32, so that small updates are not rounded away, but multiply in the precision of x:
    float32 products would take nearly as long on a GPU as everything else. A is initialised at random and B
    with zeros, so that the output does not change at first. W and b keep their names in a checkpoint.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would create weights
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.scale = alpha / rank
        device = self.weight.device
        # Drawn on the CPU, so that it does not depend on the device.
        initial = torch.empty(rank, self.in_features, device=device if device.type == "meta" else "cpu")
        nn.init.kaiming_uniform_(initial, a=math.sqrt(5))
        self.lora_A = nn.Parameter(initial.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = F.linear(x, self.lora_A.to(x.dtype)) * self.scale
        return super().forward(x) + F.linear(low, self.lora_B.to(x.dtype))

    @property
    def merged(self) -> torch.Tensor:
        """W + α/r · B A in float32: in the precision of W most of the product would be rounded away."""
        return self.weight.float() + self.scale * (self.lora_B @ self.lora_A)
