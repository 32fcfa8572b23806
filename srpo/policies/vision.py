"""The policy's vision transformers, with timm's parameter names as in OpenVLA checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # OpenVLA renames timm's `gamma` to `scale_factor`.
        self.scale_factor = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * self.scale_factor


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = hidden.shape
        qkv = self.qkv(hidden).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return projected


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.fc2(F.gelu(self.fc1(hidden)))
        return projected


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float, layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.ls1 = _LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width, int(width * mlp_ratio))
        self.ls2 = _LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.ls1(self.attn(self.norm1(hidden)))
        mixed: torch.Tensor = hidden + self.ls2(self.mlp(self.norm2(hidden)))
        return mixed


class _PatchEmbedding(nn.Module):
    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches: torch.Tensor = self.proj(pixels).flatten(2).transpose(1, 2)
        return patches


class VisionTransformer(nn.Module):
    """A ViT that returns the patch tokens of one of its blocks (`srpo.config.Encoder` explains the settings).

    Blocks after that one are not built: checkpoints contain them, but nothing uses them.
    """

    def __init__(self, encoder: dict[str, Any], image_size: int) -> None:
        super().__init__()
        width = encoder["hidden_size"]
        patches = (image_size // encoder["patch_size"]) ** 2
        self.patch_embed = _PatchEmbedding(encoder["patch_size"], width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if encoder["cls_token"] else None
        registers = encoder["registers"]
        self.reg_token = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, width))
        built = encoder["depth"] + encoder["read_block"] + 1
        self.blocks = nn.ModuleList(
            _Block(width, encoder["heads"], encoder["mlp_ratio"], encoder["layer_scale"])
            for _ in range(built)
        )
        # Plain numbers: transformers leaves buffers that are not in a checkpoint uninitialised.
        self._mean, self._std = encoder["mean"], encoder["std"]
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """float (N, 3, size, size) in [0, 1] → patch tokens (N, patches, hidden_size)."""
        mean, std = (
            # Filled on the device: a copy to a GPU would wait until the GPU is idle.
            torch.stack([pixels.new_full((1, 1), value) for value in values])
            for values in (self._mean, self._std)
        )
        # Normalised in float32, whatever the weights are.
        normal = ((pixels - mean) / std).to(self.pos_embed.dtype)
        hidden = self.patch_embed(normal) + self.pos_embed
        prefix = [token for token in (self.cls_token, self.reg_token) if token is not None]
        skip = sum(token.shape[1] for token in prefix)
        hidden = torch.cat([*(token.expand(len(pixels), -1, -1) for token in prefix), hidden], 1)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden[:, skip:]
