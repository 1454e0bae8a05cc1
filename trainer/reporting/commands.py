"""Reconstructs the commands that made a run from the settings that each stage saved with its output."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.records import read_values
from pipeline.run_layout import DATASET, EVALUATION, EXPERTS, SHARDS, TRAIN, RunLayout
from pipeline.runtime.stage import STATUS_OUT
from pipeline.secrets import redacted

# Output folder of each stage in a run, and the stage's name as in ``jat NAME``, in execution order.
STAGES = {
    EXPERTS: "experts",
    SHARDS: "collect",
    DATASET: "dataset",
    TRAIN: "train",
    EVALUATION: "evaluate",
}


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """How a stage was run.

    Attributes:
        command: command that reproduces the output, given the previous stages.
        settings: every setting, by flag name without dashes.
    """

    name: str
    command: str
    settings: dict[str, Any]


def stage_runs(out: Path) -> list[RecordedRun]:
    """Return the stages of a run with saved settings, in execution order.

    For a run in an object store they name its URL, not the local folder in which a stage worked.
    """
    from trainer import config as training
    from trainer.evaluation import evaluate

    recipes: dict[str, Mapping[str, Callable[[], Any]]] = {
        TRAIN: {"default": training.TrainConfig, **training.RECIPES},
        EVALUATION: {"default": evaluate.EvaluateConfig, **evaluate.RECIPES},
    }
    store = _store()
    found = []
    for folder, stage in STAGES.items():
        path = RunLayout(out).config(folder)
        if path.exists():
            fix = f"run `jat {stage}` with the same --out again"
            settings = read_values(path, dict[str, Any], "the settings of a stage", fix)
            is_on_disk = bool(store) and "://" not in str(settings.get("out", "://"))
            if is_on_disk:
                del settings["out"]
            command = command_of(stage, settings, recipes.get(folder, {}))
            if is_on_disk:
                command, settings["out"] = _on_disk(stage, command, store), store
            found.append(RecordedRun(folder, command, flat(settings)))
    return found


def report_commands(out: Path) -> list[str]:
    """Return the commands that record the experts' videos and write the report of the run in ``out``."""
    store = _store()
    stages = ("film", "report")
    if store:
        return [_on_disk(stage, f"jat {stage}", store) for stage in stages]
    return [f"jat {stage} --out {shlex.quote(str(out))}" for stage in stages]


def _store() -> str:
    """Return the URL of the run if this process works on a local copy of an object store, else an empty string."""
    return redacted(os.environ.get(STATUS_OUT, ""))


def command_of(stage: str, settings: Mapping[str, Any], recipes: Mapping[str, Callable[[], Any]]) -> str:
    """Return a command line for exactly these settings: the nearest recipe, and a flag for each difference.

    If flags cannot turn any recipe into the settings, every setting is written out, except those that are None, which
    is then the flag's default.
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
    """Return the command of a stage that needs a disk, for an output root in an object store (``dags/on_disk.py``)."""
    options = shlex.split(command)[2:]
    return shlex.join(["jat", "on-disk", "--stage", stage, "--out", store, "--", *options])


def _differences(recipe: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings of a recipe that flags must change; None if flags cannot, because another network's options
    are set."""
    if not recipe.keys() >= wanted.keys():
        return None
    return {key: value for key, value in wanted.items() if recipe[key] != value}


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested settings to dotted names, as on the command line; a dict of plain values stays a dict."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "model" and isinstance(value, Mapping):
            found |= {f"{key}.{inner}": v for inner, v in flat(value).items()}
        else:
            found[key] = value
    return found


def _as_json(config: Any) -> Any:
    """Convert a config to the JSON values that ``pipeline.files.write_json`` writes."""
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
