"""The options of a collection, and its recipes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experts.acting.agents import is_agent
from experts.acting.noise import parse_noise
from experts.choice import BEST, POLICY, parse_choice
from pipeline.cli import check_at_least_one
from pipeline.envs.registry import DEMO_TASKS, all_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.text import nearest_name, parse_count


@dataclass(frozen=True)
class CollectConfig:
    """Collect episodes of experts into shards."""

    task: str
    """Task name, domain, glob, or comma list of these."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    episodes: str = "1000"
    """Training episodes per task: a number, or numbers by task or domain such as `300,babyai=10000`.
    `atari=444000steps` means as many episodes as make about this many steps, by the expert's measured mean length.
    """
    test_share: float = 0.1
    """Test episodes as a share of the training episodes; at least one."""
    shard_episodes: str = "250"
    """Maximum number of episodes per shard, the unit of work that a kill can lose: a number, or numbers by task or
    domain."""
    workers: int = 2
    """Worker processes."""
    envs: int | None = None
    """Number of vectorised environments per worker; if not given, the fastest number for each task."""
    expert: str = BEST
    """The acting expert: `best`, `best-return` or `best-success` as measured, a kind, a revision, `released` for what
    JAT published, a comma list of which the first available one is used, or a mix such as `0.7*best+0.3*scripted`, in
    which one expert plays each seed."""
    policy: str = ""
    """Who acts instead of the expert: `agent`, which the run has trained, `agent:CHECKPOINT`, any expert, or a mix by
    seed such as `0.5*agent+0.5*best`. Shards that others have played are kept: `--episodes` counts them, too."""
    labels: str = ""
    """Store at every step, beside what was executed, what this expert would have done, to learn from; in the syntax
    of `--expert`. With `--noise` it is by default the acting expert, without its noise."""
    noise: str = ""
    """Action noise: `epsilon=0.05` replaces discrete actions by random ones with this probability, `gaussian=0.1`
    adds noise to continuous actions with this share of half their range as standard deviation; a comma list of both
    serves tasks of both kinds; `0.5*epsilon=0.05` adds noise to this share of the episodes only. The side table records
    the noise of each episode."""
    allow_weak: bool = False
    """Also collect with experts that are not clearly better than random."""
    max_rejected: float = 0.25
    """Share of a task's episodes that may be rejected; above it the command fails after all shards are done."""
    stall_s: float = 300.0
    """Seconds without a single environment step after which a worker is considered hung and replaced."""
    worker_gb: float = 4.0
    """Memory in GiB that a worker may use between shards; a worker that uses more is replaced."""
    cpus_per_worker: float = 1.0
    """CPU cores that the scheduler reserves per worker."""
    memory_gb_per_worker: float = 0.0
    """Memory in GiB that the scheduler reserves per worker; 0 reserves none."""
    resources: str = ""
    """Custom Ray resources that a node must have to run a worker, as declared with `ray start --resources`, such as
    `simulator=1`."""

    reference_envs: bool = False
    """Play with the libraries' own environments and bots instead of the faster ones: the same episodes, only slower."""

    def __post_init__(self) -> None:
        _parse_amounts("--episodes", self.episodes)
        if any(amount.unit == STEPS for amount in _parse_amounts("--shard-episodes", self.shard_episodes).values()):
            raise UserError(f"--shard-episodes {self.shard_episodes!r}: shards are cut by episodes, not by steps")
        parse_choice(self.expert)
        self._check_policy()
        parse_noise(self.noise)
        parse_resources(self.resources)
        check_at_least_one(self, "workers", *(["envs"] if self.envs is not None else []))
        for name in ("stall_s", "worker_gb", "cpus_per_worker"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name):g}; it must be above 0")
        if not 0 <= self.max_rejected <= 1:
            raise UserError(f"--max-rejected is {self.max_rejected}; it must be between 0 and 1")
        if not 0 < self.test_share <= 1:
            raise UserError(f"--test-share is {self.test_share}; it must be above 0 and at most 1")

    def _check_policy(self) -> None:
        acting = parse_choice(self.policy, POLICY) if self.policy else ()
        if acting and self.expert != BEST:
            raise UserError(f"--policy {self.policy} acts, so --expert {self.expert} would not; give one of them")
        if self.noise and any(is_agent(part.names[0]) for part in acting):
            raise UserError(f"--noise {self.noise} disturbs experts; leave it out, an agent errs by itself")
        for part in parse_choice(self.labels, "--labels") if self.labels else ():
            if any(is_agent(name) for name in part.names):
                raise UserError(f"--labels {self.labels}: an agent cannot label; name an expert such as best")

    def num_episodes(self, task: Task, split: str, mean_steps: float | None = None) -> int:
        """Number of episodes requested of a split.

        Args:
            task: the task.
            split: ``train`` or ``test``.
            mean_steps: mean number of steps per episode of the expert; needed where ``episodes`` gives steps.

        Raises:
            UserError: ``episodes`` has no value for the task, its domain or the rest, or it gives steps and the mean
                number of steps per episode is unknown.
        """
        amount = _amount_for("--episodes", self.episodes, task)
        count = amount.number
        if amount.unit == STEPS:
            if not mean_steps:
                raise UserError(
                    f"--episodes {self.episodes!r}: the length of an episode of {task.name} is not known, as its "
                    f"expert is not measured; give a number of episodes, or run `jat experts --task {task.name}`"
                )
            count = max(1, round(amount.number / mean_steps))
        # Ignore float rounding errors above a whole number: 95,000 episodes with a share of 1/19 are 5,000.
        return count if split == "train" else math.ceil(round(count * self.test_share, 6))

    def counts_steps(self, task: Task) -> bool:
        """Whether ``episodes`` gives a number of steps, not of episodes, for a task."""
        return _amount_for("--episodes", self.episodes, task).unit == STEPS

    def shard_size(self, task: Task) -> int:
        """Number of episodes per shard of a task.

        Raises:
            UserError: ``shard_episodes`` has no value for the task.
        """
        return _amount_for("--shard-episodes", self.shard_episodes, task).number


def parse_resources(text: str) -> dict[str, float]:
    """Parse ``simulator=1,licence=0.5`` to amounts by name."""
    amounts = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, amount = part.partition("=")
        try:
            amounts[name] = float(amount)
        except ValueError as error:
            raise UserError(f"--resources {text!r}: {part!r} is not name=amount") from error
    return amounts


@dataclass(frozen=True)
class _Amount:
    number: int
    unit: str


EPISODES, STEPS = "episodes", "steps"


def _parse_amounts(flag: str, text: str) -> dict[str, _Amount]:
    """Parse ``300,babyai=10000,atari=444000steps`` to amounts by name; the amount for the rest has the name ``""``."""
    amounts = {}
    for part in text.split(","):
        name, _, amount = part.strip().rpartition("=")
        number = amount.removesuffix(STEPS)
        try:
            count = parse_count(number)
        except ValueError:
            count = 0
        if count < 1:
            raise UserError(
                f"{flag} {text!r}: {part!r} is not a number of at least 1, such as 1000 or 1e3, nor name=number"
            )
        amounts[name] = _Amount(count, EPISODES if number == amount else STEPS)
    return amounts


def _amount_for(flag: str, text: str, task: Task) -> _Amount:
    """The amount of the task, else of its domain, else of the rest."""
    amounts = _parse_amounts(flag, text)
    for name in (task.name, task.domain, ""):
        if name in amounts:
            return amounts[name]
    raise UserError(f"{flag} {text!r} says nothing about {task.name}; add a number for the rest")


def check_amounts(config: CollectConfig, tasks: Sequence[Task]) -> None:
    """Check that ``episodes`` and ``shard_episodes`` have a value for every selected task and no unknown names.

    A domain that is not selected may be named, so that a recipe for all domains also serves for one.

    Raises:
        UserError: names the first wrong value.
    """
    known = {name for task in (*tasks, *all_tasks()) for name in (task.name, task.domain)} | {""}
    for flag, text in (("--episodes", config.episodes), ("--shard-episodes", config.shard_episodes)):
        for name in _parse_amounts(flag, text):
            if name not in known:
                near = nearest_name(name, known)
                hint = f"did you mean {near}?" if near else "`jat tasks` lists them"
                raise UserError(f"{flag} {text!r}: {name!r} is neither a task nor a domain; {hint}")
        for task in tasks:
            _amount_for(flag, text, task)


def demo() -> CollectConfig:
    """The demo's six tasks, sized for minutes: an episode of BabyAI is short, one of Meta-World has 100 steps."""
    return CollectConfig(task=DEMO_TASKS, episodes="500,babyai=6000", shard_episodes="500")


def laptop() -> CollectConfig:
    """All BabyAI, Meta-World and MuJoCo tasks, sized for one night on two cores; about a fifth of JAT.

    By `jat plan --recipe laptop`: Meta-World runs at 500 to 900 steps/s per core, so 4,000 episodes of 100 steps for
    each of 50 tasks take most of the night. BabyAI and MuJoCo run at thousands of steps/s, so the same share of JAT's
    numbers takes an hour or two.
    """
    return CollectConfig(
        task="babyai,metaworld,mujoco",
        episodes="babyai=20000,metaworld=4000,mujoco=2000",
        shard_episodes="babyai=10000,metaworld=1000,mujoco=200",
    )


# JAT has 95,000 training and 5,000 test episodes of each BabyAI task.
JAT_TEST_SHARE = 5_000 / 95_000


def jat() -> CollectConfig:
    """JAT's numbers of training episodes (of steps in Atari); the share of test episodes is JAT's of BabyAI everywhere.

    A shard takes at most half an hour on one core. Most shards have tens of megabytes; only those of tasks with large
    steps, such as the humanoid's, are larger.
    """
    return CollectConfig(
        task="*",
        episodes="babyai=95000,metaworld=16000,mujoco=9000,atari=444000steps",
        test_share=JAT_TEST_SHARE,
        shard_episodes="babyai=50000,metaworld=8000,mujoco=500,atari=25",
    )


RECIPES = {"demo": demo, "laptop": laptop, "jat": jat}
