"""Generates text with a trained network: continues a prompt, or describes an image.

    jat agent generate --checkpoint runs/default/train/checkpoints/step-00010000 --prompt 'Once upon a time'

Prints the prompt and the generated text.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cli import check_at_least_one, parse, run
from pipeline.errors import UserError
from trainer.pretrained.folders import locate

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.checkpoint import Checkpoint
    from trainer.networks.jat_model import JatModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerateConfig:
    """Continue a text, or describe an image."""

    checkpoint: str
    """Checkpoint folder, or a repository of the Hub such as jat-project/jat."""
    prompt: str = ""
    """Beginning of the text."""
    image: Path | None = None
    """Image (PNG, JPEG, ...) that the text is about."""
    tokens: int = 64
    """Maximum number of tokens to generate; fewer if the network's positions run out, or if it ends the text."""
    temperature: float = 1.0
    """Tokens are sampled from softmax(logits / temperature); 0 takes the mode."""
    seed: int = 0
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "tokens")
        if self.temperature < 0:
            raise UserError(f"--temperature is {self.temperature}; it must be at least 0")


def generate(
    checkpoint: Checkpoint,
    prompt: str,
    picture: np.ndarray | None = None,
    num_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
) -> str:
    """Return the text generated after an image and a prompt.

    Args:
        checkpoint: a network of JAT's architecture.
        prompt: beginning of the text; may be empty.
        picture: ``(3, size, size)`` float32 from ``trainer.data.text_data.prepare_picture``.
        num_tokens: maximum number of tokens to generate.
        temperature: softmax temperature of the sampling; 0 takes the mode.
        seed: seed of the sampling.

    Raises:
        UserError: the network does not support texts or images, or the prompt leaves no position free.
    """
    import torch

    from trainer.data.tokenizer import end_id

    model = _text_model(checkpoint, picture)
    end = end_id(checkpoint.tokenizer)
    ids = checkpoint.tokenizer.encode(prompt).ids
    if checkpoint.config.text_boundaries or not ids:
        ids = [end, *ids]
    config = model.config
    used = len(ids) + (config.num_patches if picture is not None else 0)
    if used >= config.max_positions:
        raise UserError(
            f"the prompt takes {used} positions, the picture's included, of {config.max_positions}; shorten it"
        )
    generator = np.random.default_rng(seed)
    tokens = torch.tensor([ids])
    pictures = None if picture is None else torch.from_numpy(picture)[None]
    found: list[int] = []
    with torch.inference_mode():
        cache = model.transformer.new_cache(1, min(used + num_tokens, config.max_positions))
        hidden = _extend(model, model.embed_text(tokens, pictures), cache, 0)
        for position in range(used, used + min(num_tokens, config.max_positions - used)):
            token = _draw(model.decode_tokens(hidden).float().numpy(), temperature, generator)
            if token == end:
                break
            found.append(token)
            hidden = _extend(model, model.embed_text(torch.tensor([[token]])), cache, position)
    return str(checkpoint.tokenizer.decode(found))


def _text_model(checkpoint: Checkpoint, picture: np.ndarray | None) -> JatModel:
    from trainer.networks.jat_model import JatModel

    model = checkpoint.model
    if not isinstance(model, JatModel):
        raise UserError("this network acts but neither reads nor writes texts; take one trained with --recipe jat")
    if not checkpoint.config.corpora:
        raise UserError(
            "this network was trained on no corpus; train one on texts too (docs/jat.md), or take jat-project/jat"
        )
    if picture is not None and not model.config.picture_size:
        raise UserError("this network has no pictures (--model.picture-size was 0 when it was trained)")
    return model.eval()


def _extend(model: JatModel, embedded: Tensor, cache: Tensor, first: int) -> Tensor:
    """Return the hidden state ``(hidden,)`` at the last of the new positions ``(1, n, hidden)`` that begin at
    ``first``."""
    import torch

    positions = torch.arange(first, first + embedded.shape[1])[None]
    return model.transformer.extend(embedded, cache, torch.zeros(1, dtype=torch.int64), positions)[0, -1]


def _draw(logits: np.ndarray, temperature: float, generator: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    cumulative = np.cumsum(np.exp((logits - logits.max()).astype(np.float64) / temperature))
    return int(np.searchsorted(cumulative, generator.random() * cumulative[-1]))


def main() -> None:
    config = parse(GenerateConfig)
    if config.image is not None and not config.image.is_file():
        raise UserError(f"--image {config.image} is not a file")
    folder = locate(config.checkpoint)
    # Imported here because they take seconds to import: errors above come first.
    from rich.console import Console

    from trainer.data.text_data import prepare_picture
    from trainer.pretrained.load import from_pretrained

    checkpoint = from_pretrained(folder)
    picture = None
    if config.image is not None:
        size = _text_model(checkpoint, None).config.picture_size
        picture = prepare_picture(config.image.read_bytes(), size, str(config.image)) if size else np.zeros(0)
    text = generate(checkpoint, config.prompt, picture, config.tokens, config.temperature, config.seed)
    Console(highlight=False, markup=False).print(f"{config.prompt}{text}", soft_wrap=True)


if __name__ == "__main__":
    run("trainer.generate")
