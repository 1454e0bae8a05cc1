"""The card's section on imported episodes."""

from __future__ import annotations

from collections.abc import Sequence

from collectors.dataset.markdown import as_code, as_text
from pipeline.envs.task import Task
from pipeline.storage.manifest import DatasetManifest
from pipeline.storage.shards import Origin

TEXT = """
## Imported episodes

These were not collected here. They have no seed, so they cannot be made again; package versions and, in part, how they
ended are not known. `expert` is `imported` and `expert_revision` the one of this table. Their actions are as
the source has them: where they leave the range of the environment, which then clipped them, `flagged` says so.

| task | environment | here | episodes | revision | source |
|---|---|---|--:|---|---|
{rows}
"""


def imported_section(manifest: DatasetManifest, tasks: Sequence[Task]) -> str:
    """A table of sources; empty if nothing is imported."""
    rows = [
        f"| {task.name} | {as_text(environment)} | {'the same' if environment == task.env_id else task.env_id} | "
        f"{count:,} | `{Origin(source, environment).revision}` | {as_code(source, in_table=True)} |"
        for task in tasks
        for source, counts in manifest.tasks[task.name].imported.items()
        for environment, count in counts.items()
    ]
    return TEXT.format(rows="\n".join(rows)) if rows else ""
