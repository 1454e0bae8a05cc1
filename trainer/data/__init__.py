"""Training data: from dataset files to batches, in an order that is a function of seed and step.

``from trainer.data import Windows`` gives a PyTorch dataset for models of your own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.data.windows import Windows

__all__ = ["Windows"]


def __getattr__(name: str) -> Any:
    """Import ``Windows``, and with it torch, when it is first used: other modules of this folder need no torch."""
    if name == "Windows":
        from trainer.data.windows import Windows

        return Windows
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
