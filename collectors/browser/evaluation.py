"""Episodes of a run's evaluation, and the films of the agent and the expert."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.files import list_folders
from pipeline.media.film import Filmed, films_in
from pipeline.run_layout import FILMS, RunLayout
from pipeline.scoring.measurement import EpisodeResult, Measurement, read_measurement

AGAIN = "it is damaged or of another version: delete it and run `jat evaluate` again"


@dataclass(frozen=True)
class FilmedEpisode:
    """An episode of the agent and its films, by ``agent`` and ``expert``."""

    result: EpisodeResult
    films: dict[str, tuple[Filmed, Path]]


def evaluations_of(out: Path, names: Collection[str]) -> dict[str, list[str]]:
    """Those of the tasks that were evaluated, by the name of the evaluation; the run's own, ``""``, is first."""
    folder = RunLayout(out).evaluation()
    of_name = {"": folder} | {path.name: path for path in list_folders(folder) if path.name != FILMS}
    found = {of: {path.stem for path in where.glob("*.json")} for of, where in of_name.items()}
    return {of: tasks for of, stems in found.items() if (tasks := [name for name in names if name in stems])}


def measurement_of(out: Path, name: str, of: str = "") -> Measurement:
    """All episodes of a task in an evaluation.

    Raises:
        UserError: the file is damaged.
    """
    return read_measurement(RunLayout(out).played(name, of), AGAIN)


def played_episodes(out: Path, name: str, expert_revision: str = "", of: str = "") -> list[FilmedEpisode]:
    """Episodes of a task in an evaluation: rejected and failed ones first, then by return.

    Args:
        out: root of the run.
        name: name of the task.
        of: name of the evaluation; the run's own by default.
        expert_revision: the expert whose films are shown; another one's if it has none.

    Raises:
        UserError: a file is damaged.
    """
    measurement = measurement_of(out, name, of)
    layout = RunLayout(out)
    folders = [path.name for path in list_folders(layout.experts_of(name))]
    folders.sort(key=lambda revision: revision != expert_revision)
    films: dict[int, dict[str, tuple[Filmed, Path]]] = {}
    for who, folder in (
        *(("expert", layout.expert_films(name, revision)) for revision in folders),
        ("agent", layout.agent_films(name, of)),
    ):
        for seed, filmed in films_in(folder).items():
            if who == "agent" and filmed.revision != measurement.revision:
                continue  # a film of another checkpoint
            films.setdefault(seed, {}).setdefault(who, (filmed, filmed.path(folder)))
    results = sorted(
        measurement.episodes,
        key=lambda result: (result.rejected is None, result.success is not False, result.total_reward),
    )
    return [FilmedEpisode(result, films.get(result.seed, {})) for result in results]
