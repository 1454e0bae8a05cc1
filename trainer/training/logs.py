"""The training curve on disk, and the manifest of a finished run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.names import check_relative
from pipeline.records import RecordError, read_record, value_of
from pipeline.runtime.hardware import Hardware
from trainer.networks.build import BUILT_IN

LONGEST_ROW = 32_768  # bytes; a row has a few numbers per domain, and with adaptive sampling two per task


@dataclass(frozen=True)
class TrainManifest:
    """Manifest of a finished training run.

    Attributes:
        checkpoint: the last checkpoint, relative to OUT.
        best_checkpoint: the one with the lowest validation loss; the last one if validation loss is not measured.
        waiting_share: fraction of the training time spent waiting for data.
        hardware: hardware at the end of the run; None if it was not recorded.
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
        """Read a manifest file.

        Raises:
            UserError: it is not a manifest, or its checkpoint path is outside of OUT.
        """
        what, fix = "the manifest of a training", "run `jat train` again"
        found = read_record(path, TrainManifest, what, fix)
        try:
            for name in filter(None, (found.checkpoint, found.best_checkpoint)):
                check_relative("checkpoint", name)
        except RecordError as error:
            raise UserError(f"{path} is not {what} ({error}); {fix}") from error
        return found


def stop_path(directory: Path) -> Path:
    """Path of the stop file in a run's directory: if it exists, the workers save and stop."""
    return directory / "ray" / "stop"


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the training curve: one dict per optimiser step. A line truncated by a kill is skipped.

    Raises:
        UserError: a line is not a row of a training curve.
    """
    return list(_complete_rows(path, "step", "timesteps")) if path.exists() else []


def cut_log(path: Path, step: int) -> None:
    """Remove the rows of the training curve after ``step``, where the run goes on: they will be logged again."""
    rows = [row for row in read_log(path) if row["step"] <= step]
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def last_row(path: Path) -> dict[str, Any] | None:
    """Return the last complete row of a training curve without reading the other rows; None if there is none.

    Raises:
        UserError: it is not a row of a training curve.
    """
    if not path.exists():
        return None
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - LONGEST_ROW))
        lines = handle.read().split(b"\n")[:-1]
    return _row(path, lines[-1], "step") if lines else None


def _complete_rows(path: Path, *counts: str) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield _row(path, line, *counts)


def _row(path: Path, line: bytes, *counts: str) -> dict[str, Any]:
    """Parse a line: numbers by name, of which ``counts`` must be there and be whole."""
    try:
        found: dict[str, Any] = value_of(json.loads(line), dict[str, int | float], "")
        for name in counts:
            value_of(found.get(name), int, name)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not the curve of a training: {error}, in {line[:60].decode(errors='replace')!r}; "
            "remove this line"
        ) from error
    return found


def check_identity(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Fail if a run to resume has another network, other settings or other data.

    Raises:
        UserError: lists the differences.
    """
    model = before.get("model")
    if isinstance(model, dict):  # a run of before its options became built in
        before = {**before, "model": {name: v for name, v in model.items() if BUILT_IN.get(name) != v}}
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
