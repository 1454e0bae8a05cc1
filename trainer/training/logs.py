"""The training curve on disk, and what a finished run says about itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.records import RecordError, read_record
from pipeline.runtime.hardware import Hardware
from pipeline.storage.manifest import check_relative

LONGEST_ROW = 16_384  # bytes; a row has a loss per domain and a few more numbers


@dataclass(frozen=True)
class TrainManifest:
    """A finished training run.

    Attributes:
        checkpoint: the last one, relative to OUT.
        best_checkpoint: the one with the least validation loss; the last one where that is not measured.
        waiting_share: of the time, that training stood still for data.
        hardware: on which it ended; None where it was not noted.
    """

    checkpoint: str
    digest: str
    steps: int
    trained_timesteps: int
    num_parameters: int
    train_seconds: float
    padding_share: float
    best_checkpoint: str = ""
    validation_loss: float | None = None
    waiting_share: float = 0.0
    hardware: Hardware | None = None

    @staticmethod
    def read(path: Path) -> TrainManifest:
        """The manifest in a file.

        Raises:
            UserError: it holds something else, or a checkpoint elsewhere.
        """
        what, fix = "the manifest of a training", "run `jat train` again"
        found = read_record(path, TrainManifest, what, fix)
        try:
            for name in filter(None, (found.checkpoint, found.best_checkpoint)):
                check_relative("checkpoint", name)
        except RecordError as error:
            raise UserError(f"{path} is not {what} ({error}); {fix}") from error
        return found


def train_manifest_path(out: Path) -> Path:
    return out / "train" / "manifest.json"


def stop_path(directory: Path) -> Path:
    """A file in the directory of a run whose being there asks its workers to save and stop."""
    return directory / "ray" / "stop"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The training curve: one dict per optimiser step. A line cut off by a kill is left out."""
    return list(_complete_rows(path)) if path.exists() else []


def last_step(path: Path) -> int:
    """The step of the last complete row of a training curve, found without reading the others; 0 if there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - LONGEST_ROW))
        lines = handle.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def _complete_rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def check_identity(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a run of another network, other settings or other data.

    Raises:
        UserError: says what differs.
    """
    differences = list(_differences(before, now))
    if differences:
        raise UserError(
            f"{path} holds another training run: {'; '.join(differences)}. "
            f"Move that folder away, or pass the settings it was made with"
        )


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} was {old}, is {new}"
