"""`jat dataset undo`: bring back the dataset from before the last change in place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from collectors.dataset.surgery.places import undo
from pipeline.cli import parse


@dataclass(frozen=True)
class UndoConfig:
    """Bring back the dataset from before the last change in place."""

    dataset: Path = Path("runs/default/dataset")
    """Folder of the dataset."""


def main() -> None:
    undo(parse(UndoConfig).dataset)
