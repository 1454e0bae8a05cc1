"""What JAT published, for every task at once: ``jat experts --task '*' --expert released``.

An expert that is in the store already is neither downloaded nor asked for again, so a command that was killed resumes.
One that cannot be had does not stop the others; only when the Hub itself gives no answer is it asked no more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from experts.importing.imports import fetch, import_snapshot
from experts.importing.published import released_among, released_repository
from experts.store import StoredExpert, stored_experts
from pipeline.envs.task import Task
from pipeline.errors import JobFailure, JobsFailedError, UserError
from pipeline.publishing.hub import HUB, HubUnavailableError
from pipeline.runtime.progress import Progress
from pipeline.runtime.stage import current_stage
from pipeline.text import format_count

log = logging.getLogger(__name__)

# So many repositories in a row without an answer mean that the Hub is down, and not that one of them is broken.
MAX_UNANSWERED = 2


def load_released(
    tasks: Sequence[Task], out: Path, sampled: bool, failures: list[JobsFailedError]
) -> dict[str, list[StoredExpert]]:
    """Put the released expert of each task into the store of ``out``.

    Args:
        tasks: those of which something was published.
        out: root of a run.
        sampled: the experts are to act by sampling.
        failures: told of the experts that cannot be had, with the reasons.

    Returns:
        Those that are there, by the names of the tasks; none for a task whose expert cannot be had.

    Raises:
        UserError: the Hub cannot be reached, and none of the missing experts is in its cache.
    """
    there = {task.name: released_among(stored_experts(out, task.name), sampled) for task in tasks}
    missing = [task for task in tasks if there[task.name] is None]
    log.info("%s wanted, %d already there", format_count(len(tasks), "released expert"), len(tasks) - len(missing))
    loader = _Loader(out, sampled, len(missing))
    for task in missing:
        there[task.name] = loader.load(task)
    if missing and len(loader.unanswered) == len(missing):
        raise UserError(f"{loader.no_answer} ({len(missing)} of {len(tasks)} released experts are not here yet)")
    if failed := loader.failed():
        lines = "".join(f"\n  {failure}" for failure in failed)
        lost = format_count(len(loader.refused) + len(loader.unanswered), "released expert")
        failures.append(JobsFailedError(f"{lost} of {len(tasks)} cannot be had; the others are done:{lines}", failed))
    return {name: [expert] if expert else [] for name, expert in there.items()}


class _Loader:
    """Loads one expert after the other, and keeps why some cannot be had."""

    def __init__(self, out: Path, sampled: bool, num_tasks: int) -> None:
        self.refused: list[JobFailure] = []
        self.unanswered: list[Task] = []
        self.no_answer = ""  # the first reason
        self._out, self._sampled = out, sampled
        self._progress = Progress("experts", num_tasks, interval_s=0)
        self._in_a_row = 0

    def load(self, task: Task) -> StoredExpert | None:
        """The expert in the store; None if it cannot be had."""
        repository = released_repository(task.name)
        try:
            with current_stage().doing(f"loading {task.name} from {repository}"):
                found = fetch(task, f"{HUB}{repository}", only_cached=self._in_a_row >= MAX_UNANSWERED)
                self._in_a_row = self._in_a_row + 1 if found.is_from_cache else 0
                expert = import_snapshot(task, found, self._out, self._sampled)
        except HubUnavailableError as error:
            self._in_a_row += 1
            self.unanswered.append(task)
            self.no_answer = self.no_answer or str(error)
            return None
        except UserError as error:
            self.refused.append(JobFailure(task.name, " ".join(str(error).split()), False, is_bad_input=True))
            self._progress.advance(1, str(self.refused[-1]))
            return None
        self._progress.advance(1, f"{task.name}: {expert.record.revision}, {found.num_bytes / 1e6:.1f} MB")
        return expert

    def failed(self) -> list[JobFailure]:
        """One entry for each that was refused, and one for all that got no answer."""
        if not self.unanswered:
            return self.refused
        names = ", ".join(task.name for task in self.unanswered)
        return [*self.refused, JobFailure(names, f"{self.no_answer}; then run the same command again", False)]
