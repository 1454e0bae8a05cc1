"""Encoders and decoders of single observations: images, and grid worlds with a mission."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.envs.babyai import NUM_DIRECTIONS, NUM_INTEGERS, VIEW_SHAPE

NUM_CELLS, CELL_INTEGERS = VIEW_SHAPE[0] * VIEW_SHAPE[1], VIEW_SHAPE[2]


class ChannelGate(nn.Module):
    """Squeeze-and-excitation: scales each channel by a function of all channel means (arXiv 1709.01507)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.fc = nn.ModuleDict(
            {
                "0": nn.Linear(num_channels, num_channels // 8, bias=False),
                "2": nn.Linear(num_channels // 8, num_channels, bias=False),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.sigmoid(self.fc["2"](F.relu(self.fc["0"](x.mean(dim=(2, 3))))))
        return x * gates[:, :, None, None]


class ImageEncoder(nn.Module):
    """``(B, 4, 84, 84)`` -> ``(B, hidden)``."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 32, kernel_size=3, stride=2, padding=1)
        self.att1 = ChannelGate(32)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, stride=2, padding=1)
        self.att2 = ChannelGate(64)
        self.conv3 = nn.Conv2d(64, 128, kernel_size=3, stride=2, padding=1)
        self.att3 = ChannelGate(128)
        self.fc = nn.Linear(128 * 11 * 11, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.att1(F.leaky_relu(F.instance_norm(self.conv1(x))))
        x = self.att2(F.leaky_relu(F.instance_norm(self.conv2(x))))
        x = self.att3(F.leaky_relu(F.instance_norm(self.conv3(x))))
        return self.fc(x.flatten(1))


class ImageDecoder(nn.Module):
    """``(B, hidden)`` -> ``(B, 4, 84, 84)`` in [-1, 1]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(hidden_size, 128 * 11 * 11)
        self.deconv1 = nn.ConvTranspose2d(128, 64, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.att1 = ChannelGate(64)
        self.deconv2 = nn.ConvTranspose2d(64, 32, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.att2 = ChannelGate(32)
        self.deconv3 = nn.ConvTranspose2d(32, 4, kernel_size=3, stride=2, padding=1, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x).view(-1, 128, 11, 11)
        x = F.leaky_relu(F.instance_norm(self.deconv1(x)))
        x = self.att1(F.interpolate(x, size=(21, 21)))  # from 22 x 22
        x = self.att2(F.leaky_relu(F.instance_norm(self.deconv2(x))))
        return torch.tanh(self.deconv3(x))


class PatchEncoder(nn.Module):
    """Images ``(B, 3, size, size)`` -> one embedding per patch, row by row, ``(B, patches, hidden)``."""

    def __init__(self, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.projection(pictures).flatten(2).transpose(1, 2)


class PerStep(nn.Module):
    """Applies a module for ``(B, ...)`` to ``(B, T, ...)``; its name is part of the released parameter names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class CellEncoder(nn.Module):
    """Encodes direction, view and mission as one embedding; the mission modulates every cell in between.

    This is not JAT's encoder: JAT's flat encoder has to learn "this object is the one named" separately for each of the
    cells, whereas here all cells share the weights. The modulation is BabyAI's own (FiLM, arXiv 1709.07871, as in
    arXiv 1810.08272). ``(B, T, NUM_INTEGERS + num_text)`` int64 -> ``(B, T, out_size)``.
    """

    NUM_VALUES = 16  # larger than any integer of a cell
    FLAT_SIZE = 16

    def __init__(self, vocab_size: int, num_text: int, size: int, out_size: int) -> None:
        super().__init__()
        self.cell_values = nn.Parameter(torch.empty(CELL_INTEGERS, self.NUM_VALUES, size))
        self.words = nn.Embedding(vocab_size, size)
        self.mission = nn.Linear(num_text * size, 2 * size)
        self.modulation = nn.ModuleList(nn.Linear(2 * size, 4 * size) for _ in range(2))
        self.widen = nn.ModuleList(nn.Linear(size, 2 * size) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(2 * size, size) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.squeeze = nn.Linear(size, self.FLAT_SIZE)
        self.flat = nn.Linear(NUM_CELLS * self.FLAT_SIZE + 2 * size, out_size)
        self.direction = nn.Embedding(NUM_DIRECTIONS, out_size)

    def forward(self, ids: Tensor) -> Tensor:
        steps = ids.flatten(0, 1)
        mission = F.relu(self.mission(self.words(steps[:, NUM_INTEGERS:]).flatten(1)))
        cells = self._embed_cells(steps[:, 1:NUM_INTEGERS].view(-1, NUM_CELLS, CELL_INTEGERS))
        for modulation, norm, widen, narrow in zip(self.modulation, self.norms, self.widen, self.narrow, strict=True):
            scale, shift = modulation(mission)[:, None].chunk(2, dim=-1)
            cells = cells + narrow(F.relu(widen(norm(cells)) * (1 + scale) + shift))
        flat = F.relu(self.squeeze(cells)).flatten(1)
        embedded = self.flat(torch.cat([flat, mission], dim=1)) + self.direction(steps[:, 0])
        return embedded.unflatten(0, ids.shape[:2])

    def initialise(self) -> None:
        """Initialise at unit scale; with GPT-Neo's 0.02 the modulation would be too weak at first to learn from."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.normal_(self.cell_values, std=3**-0.5)
        nn.init.normal_(self.words.weight, std=1.0)

    def _embed_cells(self, values: Tensor) -> Tensor:
        """``(n, cells, 3)`` -> ``(n, cells, size)``: the sum of the three integers' embeddings.

        Summing once per combination and looking up the sums moves a third of the memory that summing per cell would.
        """
        kind, colour, state = self.cell_values
        table = (kind[:, None, None] + colour[:, None] + state).flatten(0, 2)
        combination = (values[..., 0] * self.NUM_VALUES + values[..., 1]) * self.NUM_VALUES + values[..., 2]
        return F.embedding(combination, table)
