"""The dataset card: a README.md whose front matter tells ``datasets`` and the Hub what is where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from collectors.dataset.card_corpora import corpus_categories, corpus_configs, corpus_section
from pipeline.files import replacing
from pipeline.manifest import DatasetManifest
from pipeline.schema import EPISODES_SUFFIX, episode_features, features
from pipeline.tasks import Task
from pipeline.versions import format_versions

TEXT = """
# Expert episodes of {num_tasks} tasks

One configuration per task, splits `train` and `test` (disjoint seeds), one row per episode, in the columns of the JAT
dataset. `rewards[t]` is what `actions[t]` earned; the observation after the last action is not stored.

```python
from datasets import load_dataset

episodes = load_dataset(path, "{example}")
who_acted = load_dataset(path, "{example}{suffix}")
```

The side table `<task>{suffix}` has one row per seed played: who acted, return, length, success, how the episode ended,
and why it was rejected if it was; `row` is its row in the data file of the same number. Where the table below names a
mix of experts with weights, each seed was played by one of them, and the side table says by which.

| task | expert | train episodes | train steps | mean return | success | rejected | test episodes | MB |
|---|---|---|---|---|---|---|---|---|
{rows}

## Versions

{versions}
"""

NOTES = {
    "metaworld": "Meta-World: v3 of the environments (JAT used v2), 100-step episodes, goal hidden: the last three "
    "observation entries are zero.",
    "mujoco": "MuJoCo: v4 environments as in JAT, but `Pusher-v5`, because `Pusher-v4` refuses mujoco >= 3.",
    "babyai": "BabyAI: a discrete observation is the direction followed by the flattened 7 x 7 x 3 view.",
    "atari": "Atari: four grey frames are the four channels of one lossless image, as in JAT.",
}


def write_card(path: Path, manifest: DatasetManifest, tasks: Sequence[Task]) -> None:
    """Write the card of a dataset."""
    body = _body(manifest, tasks) if tasks else ""
    front = yaml.safe_dump(_front_matter(manifest, tasks), sort_keys=False, width=1000)
    with replacing(path) as temporary:
        temporary.write_text(f"---\n{front}---\n{body}{corpus_section(manifest)}", encoding="utf-8")


def _body(manifest: DatasetManifest, tasks: Sequence[Task]) -> str:
    return TEXT.format(
        num_tasks=len(tasks),
        example=tasks[0].name,
        suffix=EPISODES_SUFFIX,
        rows="\n".join(_row(manifest, task) for task in tasks),
        versions="\n".join(_notes(manifest, tasks)),
    )


def _front_matter(manifest: DatasetManifest, tasks: Sequence[Task]) -> dict[str, Any]:
    configs, infos = [], []
    for task in tasks:
        splits = manifest.tasks[task.name].splits
        for name, kind, columns in (
            (task.name, "data", features(task)),
            (task.name + EPISODES_SUFFIX, "episodes", episode_features()),
        ):
            # The number of files is in the pattern: where an old and a new version lie side by side for a moment, a
            # card finds its own files alone.
            files = [
                {"split": split, "path": f"{kind}/{task.name}/{split}-*-of-{len(getattr(info, kind)):05d}.parquet"}
                for split, info in splits.items()
            ]
            configs.append({"config_name": name, "data_files": files})
            counts = [
                {
                    "name": split,
                    "num_examples": info.num_episodes + (info.num_rejected if kind == "episodes" else 0),
                    "num_bytes": sum(entry.num_bytes for entry in getattr(info, kind)),
                }
                for split, info in splits.items()
            ]
            infos.append({"config_name": name, "features": columns._to_yaml_list(), "splits": counts})
    of_corpora = corpus_configs(manifest)
    of_tasks = ["reinforcement-learning", "robotics"] if tasks else []
    return {
        "license": "other" if manifest.corpora else "apache-2.0",  # texts and images have licences of their own
        "task_categories": of_tasks + corpus_categories(manifest),
        "tags": sorted({task.domain for task in tasks} | {"imitation-learning", "expert trajectories"}),
        "pretty_name": "Expert episodes",
        "configs": configs + of_corpora[0],
        "dataset_info": infos + of_corpora[1],
    }


def _row(manifest: DatasetManifest, task: Task) -> str:
    info = manifest.tasks[task.name]
    train, test = info.splits["train"], info.splits["test"]
    success = "-" if train.num_successes is None else f"{train.num_successes / max(1, train.num_episodes):.2f}"
    megabytes = sum(entry.num_bytes for split in (train, test) for entry in split.data) / 1e6
    cells = (
        task.name,
        f"`{info.expert_revision}`",
        f"{train.num_episodes:,}",
        f"{train.num_steps:,}",
        f"{train.mean_return:.2f}",
        success,
        train.num_rejected + test.num_rejected,
        f"{test.num_episodes:,}",
        f"{megabytes:.2f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _notes(manifest: DatasetManifest, tasks: Sequence[Task]) -> list[str]:
    lines = []
    for domain in dict.fromkeys(task.domain for task in tasks):
        versions = next(manifest.tasks[task.name].versions for task in tasks if task.domain == domain)
        lines.append(f"- {NOTES.get(domain, domain + ':')} Made with {format_versions(versions)}.")
    return lines
