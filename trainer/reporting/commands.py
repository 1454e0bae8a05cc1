"""The commands that made a run, from the settings that each stage left beside its output."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.files import read_json
from pipeline.runtime.stage import STATUS_OUT
from pipeline.secrets import redacted

# Folder of a stage's output in a run, and the stage's name as in ``jat NAME``, in the order in which they run.
STAGES = {
    "experts": "experts",
    "shards": "collect",
    "dataset": "dataset",
    "train": "train",
    "evaluation": "evaluate",
}


@dataclasses.dataclass(frozen=True)
class StageRun:
    """How a stage was run.

    Attributes:
        command: what makes the same output again, given the stages before it.
        settings: every setting, by flag name without dashes.
    """

    name: str
    command: str
    settings: dict[str, Any]


def stage_runs(out: Path) -> list[StageRun]:
    """The stages of which there are settings in a run, in their order.

    Of a run in an object store they name its URL, not the folder of the disk on which a stage worked in its place.
    """
    from trainer import config as training
    from trainer.evaluation import evaluate

    recipes: dict[str, Mapping[str, Callable[[], Any]]] = {
        "train": {"default": training.TrainConfig, **training.RECIPES},
        "evaluation": {"default": evaluate.EvaluateConfig, **evaluate.RECIPES},
    }
    store = _store()
    found = []
    for folder, stage in STAGES.items():
        path = out / folder / "config.json"
        if path.exists():
            settings = read_json(path)
            is_on_disk = bool(store) and "://" not in settings["out"]
            if is_on_disk:
                del settings["out"]
            command = command_of(stage, settings, recipes.get(folder, {}))
            if is_on_disk:
                command, settings["out"] = _on_disk(stage, command, store), store
            found.append(StageRun(folder, command, flat(settings)))
    return found


def report_commands(out: Path) -> list[str]:
    """The commands that film the experts and write the report of the run in ``out``."""
    store = _store()
    stages = ("film", "report")
    if store:
        return [_on_disk(stage, f"jat {stage}", store) for stage in stages]
    return [f"jat {stage} --out {shlex.quote(str(out))}" for stage in stages]


def _store() -> str:
    """The URL of the run if this process works on a disk in the place of an object store, else nothing."""
    return redacted(os.environ.get(STATUS_OUT, ""))


def command_of(stage: str, settings: Mapping[str, Any], recipes: Mapping[str, Callable[[], Any]]) -> str:
    """A command line with just these settings: the nearest of the recipes, and a flag for all that differs from it.

    Where no recipe can be led to the settings by flags, every setting is spelled out; None is then what the flag says
    without being passed.
    """
    wanted = flat(settings)
    nearest, differing = "default", {name: value for name, value in wanted.items() if value not in (None, {})}
    for name, make in recipes.items():
        changed = _differences(flat(_as_json(make())), wanted)
        if changed is not None and len(changed) < len(differing):
            nearest, differing = name, changed
    words = ["jat", stage]
    if nearest != "default":
        words += ["--recipe", nearest]
    for name, value in differing.items():
        words += _flag(name, value)
    return shlex.join(words)


def _on_disk(stage: str, command: str, store: str) -> str:
    """The command of a stage that needs a disk, for an output root in an object store (``dags/on_disk.py``)."""
    options = shlex.split(command)[2:]
    return shlex.join(["jat", "on-disk", "--stage", stage, "--out", store, "--", *options])


def _differences(recipe: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """What flags must change of a recipe; None if they cannot: another network's options."""
    if not recipe.keys() >= wanted.keys():
        return None
    return {key: value for key, value in wanted.items() if recipe[key] != value}


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings under dotted names, as the command line spells them; a dict of plain values stays one."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "model" and isinstance(value, Mapping):
            found |= {f"{key}.{inner}": v for inner, v in flat(value).items()}
        else:
            found[key] = value
    return found


def _as_json(config: Any) -> Any:
    """As ``pipeline.files.write_json`` spells it."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        prefix, _, last = flag.rpartition(".")
        negated = f"{prefix}.no-{last}" if prefix else f"no-{last}"
        return [f"--{flag if value else negated}"]
    if isinstance(value, Mapping):
        return [f"--{flag}", *(str(word) for pair in value.items() for word in pair)]
    if isinstance(value, list):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}", str(value)]
