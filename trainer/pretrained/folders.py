"""Which folder a checkpoint is in, and what it was trained on, found without torch: an error here takes no time."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.publishing.hub import HUB, download
from pipeline.run_layout import RunLayout
from trainer.training.logs import TrainManifest

log = logging.getLogger(__name__)

BUILTIN = "builtin"  # the agent that comes with the package
BUILTIN_FOLDER = Path(__file__).with_name(BUILTIN)
CONFIG = "config.json"  # written last: it says that a folder is complete
# What is downloaded of a repository: our files, and the released JAT's.
WANTED = (CONFIG, "model.safetensors", "tokenizer.json", "vocab.json", "merges.txt", "normalisers.safetensors")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)


def locate(source: str | Path) -> Path:
    """Return the local folder of a source, downloading it if necessary.

    Args:
        source: ``builtin``, a folder, or a repository of the Hub: ``owner/name``, ``owner/name@revision``,
            ``hub:owner/name``.

    Raises:
        UserError: there is no such folder or repository, or the Hub cannot be reached.
    """
    text = str(source)
    if text == BUILTIN:
        return BUILTIN_FOLDER
    path = Path(text).expanduser()
    is_name = not text.startswith(HUB) and _REPOSITORY.fullmatch(text) is not None
    if path.is_dir() and is_name and not (path / CONFIG).is_file():
        raise UserError(
            f"the folder {text} here is no checkpoint, as it has no {CONFIG}, and hides the repository of that name; "
            f"give {HUB}{text} for the Hugging Face Hub's, or another folder"
        )
    if path.is_dir():
        if is_name:
            log.info("%s is the folder here; %s%s would be the repository of that name", text, HUB, text)
        return path
    if path.is_file():
        raise UserError(f"{text} is a file; give the folder that it is in: a checkpoint is a folder with a {CONFIG}")
    if text.startswith(HUB) or (not path.exists() and _REPOSITORY.fullmatch(text)):
        return download(HUB + text.removeprefix(HUB), WANTED).folder
    raise UserError(f"{text} is neither a folder nor a repository owner/name of the Hugging Face Hub, nor {BUILTIN}")


def checkpoint_folder(out: Path, checkpoint: Path | None, otherwise: str | None = None) -> Path:
    """Return the local folder of a checkpoint, downloading it if necessary.

    Args:
        out: root of a run.
        checkpoint: a source, as for ``locate``; the final checkpoint of `jat train` if None.
        otherwise: the source if ``checkpoint`` is None and there is no finished training.

    Raises:
        UserError: there is none.
    """
    if checkpoint is not None:
        return locate(checkpoint)
    path = RunLayout(out).train_manifest
    if not path.exists() and otherwise is not None:
        log.info("no finished training in %s: taking %s", out, otherwise)
        return locate(otherwise)
    if not path.exists():
        raise UserError(f"no finished training in {out}; run `jat train`, or pass --checkpoint FOLDER")
    return RunLayout(out).at(TrainManifest.read(path).checkpoint)


def check_trained(pattern: str, folder: Path, tasks: Sequence[Task] | None = None) -> None:
    """Refuse tasks that the ``config.json`` of a checkpoint does not name; one without names is left to its reader.

    Raises:
        UserError: as ``choose_trained``.
    """
    if trained := claimed_tasks(folder):
        choose_trained(pattern, trained, tasks)


def claimed_tasks(folder: Path) -> list[str]:
    """Names of the tasks that the ``config.json`` of a checkpoint names; none if it cannot be read so."""
    path = folder / CONFIG
    raw = read_json(path) if path.is_file() else None
    trained = raw.get("tasks") if isinstance(raw, dict) else None
    return trained if isinstance(trained, list) and all(isinstance(name, str) for name in trained) else []


def choose_trained(pattern: str, trained: Sequence[str], tasks: Sequence[Task] | None = None) -> list[Task]:
    """Return the tasks that match a pattern and that a checkpoint was trained on.

    Raises:
        UserError: a part of the pattern matches none of them, or is no task.
    """
    chosen: dict[Task, None] = {}
    for part in pattern.split(","):
        found = [task for task in select_tasks(part, tasks, trained) if task.name in trained]
        if not found:
            raise UserError(f"the checkpoint was not trained on {part}, only on: {', '.join(trained)}")
        chosen |= dict.fromkeys(found)
    return [task for task in select_tasks("*", tasks, trained) if task in chosen]
