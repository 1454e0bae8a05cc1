"""Hyperparameters of augmented random search, and the budget of a training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from experts.training import Budget, TrainJob
from experts.training_record import check_same_settings
from pipeline.envs.task import CONTINUOUS, Task

HOUR_S = 3600.0


@dataclass(frozen=True)
class ARSRecipe:
    """Hyperparameters of one training (arXiv 1803.07055, algorithm 2).

    Attributes:
        budget: when the training ends.
        step_size: length of an update, in units of the standard deviation of the returns it is made of.
        noise: standard deviation of the perturbations of the weights.
        directions: perturbations per update; each is added and subtracted, so an update takes twice as many episodes.
        top: the update uses the directions with the best returns, so many of them.
        normalise: whether observations are normalised by their running mean and variance.
        check_steps: environment steps between two checks of the unperturbed policy.
        check_episodes: episodes per check. The best policy by these checks is the expert.
    """

    budget: Budget
    step_size: float = 0.02
    noise: float = 0.03
    directions: int = 16
    top: int = 8
    normalise: bool = True
    check_steps: int = 100_000
    check_episodes: int = 10


# The settings are those of the paper's table 9. Its settings for the hopper are not here: one of three searches ended
# at a gait, the others standing (627 after 4 million steps).
TUNED = {
    "mujoco-swimmer": ARSRecipe(
        Budget(4_000_000, HOUR_S), step_size=0.02, noise=0.01, directions=1, top=1, normalise=False
    ),
}
DEFAULT = ARSRecipe(Budget(5_000_000, HOUR_S))


def can_train(task: Task) -> bool:
    """Whether a linear map fits the task: vectors of numbers in, continuous actions out."""
    return task.observation == CONTINUOUS and not task.has_text and task.action.kind == "continuous"


def recipe_of(task: Task) -> ARSRecipe:
    return TUNED.get(task.name, DEFAULT)


def settings_of(job: TrainJob, recipe: ARSRecipe) -> dict[str, Any]:
    """Return the settings that must not change on resuming; the budget is not one of them, as it may be raised."""
    return {"task": job.task.name, "seed": job.seed, "recipe": {**asdict(recipe), "budget": None}}


def check(job: TrainJob, recipe: ARSRecipe | None = None) -> None:
    """Raise if the training in the job's folder was started with other settings.

    Raises:
        UserError: names the settings that differ and the fix.
    """
    check_same_settings(job, settings_of(job, recipe or recipe_of(job.task)))
