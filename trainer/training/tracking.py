"""Trackers that receive the training curve in addition to ``log.jsonl``: TensorBoard, trackio, Weights & Biases.

TensorBoard and trackio write below ``OUT/train`` and need no account: ``tensorboard --logdir OUT/train/tensorboard``,
``TRACKIO_DIR=OUT/train/trackio trackio show``. (trackio stores a step that is repeated after a kill twice, with the
same numbers.) trackio's requirements conflict with the versions pinned by this repository, so it is an optional manual
installation. W&B uploads its data to its servers; set ``WANDB_MODE=offline`` to keep it local.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import UserError
from pipeline.side_effects import side_effect

# Package required by each name that --track accepts.
PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}


class Tracker(Protocol):
    """Receives named numbers, step by step."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check_trackers(names: Sequence[str]) -> None:
    """Fail, before any work, if a tracker is unknown or not installed.

    Raises:
        UserError: names the tracker and the fix.
    """
    for name in names:
        if name not in PACKAGES:
            raise UserError(f"--track {name} is unknown; allowed: {', '.join(PACKAGES)}, or a comma list of them")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"--track {name} needs a package: pip install {PACKAGES[name]}")


def open_trackers(names: Sequence[str], directory: Path, step: int, settings: Mapping[str, Any]) -> list[Tracker]:
    """Open the trackers of a run at ``step``; values of later steps recorded before a kill are replaced.

    Args:
        names: keys of ``PACKAGES``.
        directory: folder of the run, ``OUT/train``.
        step: optimiser steps done.
        settings: settings of the run, as JSON values.
    """
    makers: dict[str, Callable[[Path, int, Mapping[str, Any]], Tracker]] = {
        "tensorboard": _TensorBoard,
        "trackio": _Trackio,
        "wandb": _Wandb,
    }
    return [_Guarded(name, partial(makers[name], directory, step, settings)) for name in names]


class _Guarded:
    """A tracker whose failures are logged and do not abort training: without network, login or disk space there is only
    no curve.

    Args:
        name: name of the tracker.
        make: creates the tracker; if it fails, nothing is sent to it.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._failure = f"--track {name} failed"
        self._tracker: Tracker | None = None
        with side_effect(self._failure):
            self._tracker = make()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._tracker is not None:
            with side_effect(self._failure):
                self._tracker.log(step, values)

    def close(self) -> None:
        if self._tracker is not None:
            with side_effect(self._failure):
                self._tracker.close()


class _TensorBoard:
    def __init__(self, directory: Path, step: int, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    def __init__(self, directory: Path, step: int, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(directory / "trackio"))
        self._trackio: Any = importlib.import_module("trackio")
        self._trackio.init(project="jat", name=_name(directory), config=dict(settings), resume="allow", embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        self._trackio.finish()


class _Wandb:
    def __init__(self, directory: Path, step: int, settings: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        name = _name(directory)
        self._run = wandb.init(
            project="jat", name=name, id=name, dir=str(directory), config=dict(settings), resume="allow"
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _name(directory: Path) -> str:
    """Return the run's name: ``runs/demo/train`` is the run ``demo``."""
    return directory.absolute().parent.name
