"""The torch side of ``layers``: same order and shapes of parameters, same initial law, channels first."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Elementwise(nn.Module):
    """An activation as a module."""

    def __init__(self, name: str):
        super().__init__()
        self.function = getattr(functional, name)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def linear(in_size: int, out_size: int) -> nn.Linear:
    """``W x + b`` with W (out, in) from Glorot's uniform law and b = 0."""
    return _glorot(nn.Linear(in_size, out_size))


class ToImage(nn.Module):
    """Flat rows (n, h w c) to images (n, c, h, w)."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.shape).permute(0, 3, 1, 2)


class ToMaps(nn.Module):
    """Images (n, m c, h, w) to m flat maps a row, (n, m h w c)."""

    def __init__(self, maps: int = 1):
        super().__init__()
        self.maps = maps

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.maps, -1)).permute(0, 1, 3, 4, 2).flatten(1)


class Downsample(nn.Module):
    """4x4 convolution of stride 2, to half the size rounded up."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = _glorot(nn.Conv2d(in_channels, out_channels, 4, stride=2))

    def forward(self, image: Tensor) -> Tensor:
        h, w = image.shape[-2:]
        return self.conv(functional.pad(image, (1, 1 + w % 2, 1, 1 + h % 2)))


class Upsample(nn.Module):
    """4x4 transposed convolution of stride 2, cut to ``shape``."""

    def __init__(self, in_channels: int, out_channels: int, shape: tuple[int, int]):
        super().__init__()
        self.conv = _glorot(nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1))
        self.shape = shape

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image)[..., : self.shape[0], : self.shape[1]]


def _glorot(layer):
    with torch.no_grad():
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer
