"""Collect episodes: experts play the seeds of each split, workers write them as shards.

    python -m collectors.collect --task 'metaworld-*' --episodes 20 --out runs/default

Writes ``OUT/shards/<task>/...`` (see ``pipeline/shards.py``). A shard that is there stays: run the same command again
after a kill and it goes on with what is missing; ask for more episodes and it adds them.

What can go wrong costs no more than it must. A worker that dies or hangs is replaced and its shard begun again; a
shard that goes through several workers is taken apart, and the seeds that do it alone are put into quarantine
(``OUT/shards/<task>/quarantine.json``): rejected with their reason, like the episodes an environment or an expert
cannot finish. ``python -m collectors.status`` tells how far it is.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from collectors.status import Monitor, summarise
from experts.choice import BEST, Mix, choose, parse_choice
from experts.noise import Noise, NoisyPolicy, check_noise, noise_of_task, parse_noise
from pipeline.cli import check_at_least_one, parse, run
from pipeline.cluster import Resources, Supervision, run_jobs
from pipeline.episode import Episode
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import exclusive, read_json, update_json
from pipeline.manifest import ShardManifest
from pipeline.plan import ShardJob, TaskPlan, extend_plan, interleaved, missing_jobs
from pipeline.policy import Policy
from pipeline.rollout import rejected_episode, rollout
from pipeline.seeds import SPLITS
from pipeline.shards import Actor, finished_shards, index_shards, write_shard
from pipeline.tasks import DEMO_TASKS, Task, all_tasks, select_tasks
from pipeline.versions import format_versions, versions_of

log = logging.getLogger(__name__)

MAX_ERRORS = 5  # shown of one kind


@dataclass(frozen=True)
class CollectConfig:
    """Collect episodes of experts into shards."""

    task: str
    """Task name, domain, glob, or comma list of these."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    episodes: str = "1000"
    """Training episodes per task: a number, or numbers by task or domain such as `300,babyai=10000`.
    `atari=444000steps` means as many as make about so many steps, by the mean length of the expert's measured ones."""
    test_share: float = 0.1
    """Test episodes as a share of the training episodes; at least one."""
    shard_episodes: str = "250"
    """Episodes per shard at most, the unit of work and what a kill can cost: a number, or numbers by task or domain."""
    workers: int = 2
    """Worker processes."""
    envs: int = 16
    """Environments each worker steps in lockstep."""
    expert: str = BEST
    """Who acts: `best` or `best-success` as measured, a kind, a revision, the first there is of a comma list, or a mix
    such as `0.7*best+0.3*scripted`, in which each seed is played by one of them."""
    noise: str = ""
    """Noise in the actions: `epsilon=0.05` replaces discrete ones by random ones with this probability, `gaussian=0.1`
    shifts continuous ones by this share of half their range (standard deviation); a comma list of both for tasks of
    both kinds; `0.5*epsilon=0.05` in this share of the episodes only. The side table tells each episode's."""
    allow_weak: bool = False
    """Collect with experts that are not clearly better than random, too."""
    max_rejected: float = 0.25
    """Share of a task's episodes that may be rejected; above it the command ends with an error once all is done."""
    stall_s: float = 300.0
    """Seconds without a single environment step after which a worker is held to be hung and replaced."""
    worker_gb: float = 4.0
    """Memory a worker may hold between shards; one that holds more is replaced."""
    cpus_per_worker: float = 1.0
    """CPU cores the scheduler sets aside for a worker."""
    memory_gb_per_worker: float = 0.0
    """Memory the scheduler sets aside for a worker; 0 leaves memory out of its account."""
    resources: str = ""
    """What else a node must have for a worker, as declared with `ray start --resources`, such as `simulator=1`."""

    def __post_init__(self) -> None:
        _parse_amounts("--episodes", self.episodes)
        if any(amount.unit == STEPS for amount in _parse_amounts("--shard-episodes", self.shard_episodes).values()):
            raise UserError(f"--shard-episodes {self.shard_episodes!r}: shards are cut by episodes, not by steps")
        parse_choice(self.expert)
        parse_noise(self.noise)
        _parse_resources(self.resources)
        check_at_least_one(self, "workers", "envs")
        for name in ("stall_s", "worker_gb", "cpus_per_worker"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name):g}; it must be above 0")
        if not 0 <= self.max_rejected <= 1:
            raise UserError(f"--max-rejected is {self.max_rejected}; it must be between 0 and 1")
        if not 0 < self.test_share <= 1:
            raise UserError(f"--test-share is {self.test_share}; it must be above 0 and at most 1")

    def num_episodes(self, task: Task, split: str, mean_steps: float | None = None) -> int:
        """Episodes wanted of a split.

        Args:
            task: of which task.
            split: ``train`` or ``test``.
            mean_steps: steps of an episode of the expert, where ``episodes`` gives steps.

        Raises:
            UserError: ``episodes`` names neither the task nor its domain nor a number for the rest, or it gives steps
                and nobody knows how many an episode has.
        """
        amount = _amount_for("--episodes", self.episodes, task)
        count = amount.number
        if amount.unit == STEPS:
            if not mean_steps:
                raise UserError(
                    f"--episodes {self.episodes!r}: the length of an episode of {task.name} is not known, as its "
                    f"expert is not measured; give a number of episodes, or run `make experts TASK={task.name}`"
                )
            count = max(1, round(amount.number / mean_steps))
        # Not above a whole number by what a float cannot hold: 95,000 episodes with a share of 1/19 are 5,000.
        return count if split == "train" else math.ceil(round(count * self.test_share, 6))

    def shard_size(self, task: Task) -> int:
        """Episodes per shard of a task.

        Raises:
            UserError: ``shard_episodes`` says nothing about the task.
        """
        return _amount_for("--shard-episodes", self.shard_episodes, task).number


def _parse_resources(text: str) -> dict[str, float]:
    """``simulator=1,licence=0.5`` as amounts by name."""
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
    """``300,babyai=10000,atari=444000steps`` as amounts by name; the one for the rest has the name ``""``."""
    amounts = {}
    for part in text.split(","):
        name, _, amount = part.strip().rpartition("=")
        number = amount.removesuffix(STEPS)
        if not number.isdecimal() or int(number) < 1:
            raise UserError(f"{flag} {text!r}: {part!r} is not a number of at least 1, nor name=number")
        amounts[name] = _Amount(int(number), EPISODES if number == amount else STEPS)
    return amounts


def _amount_for(flag: str, text: str, task: Task) -> _Amount:
    """The task's own amount, else its domain's, else that for the rest."""
    amounts = _parse_amounts(flag, text)
    for name in (task.name, task.domain, ""):
        if name in amounts:
            return amounts[name]
    raise UserError(f"{flag} {text!r} says nothing about {task.name}; add a number for the rest")


def check_amounts(config: CollectConfig, tasks: Sequence[Task]) -> None:
    """Check that ``episodes`` and ``shard_episodes`` say something of every chosen task and name none that is not.

    A domain that is not chosen may be named: a recipe for all of them serves for one, too.

    Raises:
        UserError: names the first that is wrong.
    """
    known = {name for task in (*tasks, *all_tasks()) for name in (task.name, task.domain)} | {""}
    for flag, text in (("--episodes", config.episodes), ("--shard-episodes", config.shard_episodes)):
        for name in _parse_amounts(flag, text):
            if name not in known:
                raise UserError(f"{flag} {text!r}: {name!r} is neither a task nor a domain; `make tasks` lists them")
        for task in tasks:
            _amount_for(flag, text, task)


def demo() -> CollectConfig:
    """The demo's six tasks, as much as minutes allow: a grid-world episode is short, an arm's has 100 steps."""
    return CollectConfig(task=DEMO_TASKS, episodes="500,babyai=12000", shard_episodes="500", expert="scripted,bot")


def laptop() -> CollectConfig:
    """All BabyAI, Meta-World and MuJoCo tasks, as much as two cores do in a night; about a fifth of JAT.

    By `make plan RECIPE=laptop`: Meta-World makes 500 to 900 steps/s on a core, so 4,000 episodes of 100 steps for each
    of 50 tasks take most of the night. BabyAI and MuJoCo make thousands, so as large a share of JAT's numbers takes an
    hour or two.
    """
    return CollectConfig(
        task="babyai,metaworld,mujoco",
        episodes="babyai=20000,metaworld=4000,mujoco=2000",
        shard_episodes="babyai=10000,metaworld=1000,mujoco=200",
    )


# Of each BabyAI task JAT has 95,000 episodes for training and 5,000 for testing.
JAT_TEST_SHARE = 5_000 / 95_000


def jat() -> CollectConfig:
    """JAT's numbers of training episodes, in Atari of steps, and its share of test episodes in BabyAI everywhere.

    A shard is half an hour of one core at most, and larger than the tens of megabytes of most of them only where steps
    are large, as the humanoid's.
    """
    return CollectConfig(
        task="*",
        episodes="babyai=95000,metaworld=16000,mujoco=9000,atari=444000steps",
        test_share=JAT_TEST_SHARE,
        shard_episodes="babyai=50000,metaworld=8000,mujoco=500,atari=25",
    )


RECIPES = {"demo": demo, "laptop": laptop, "jat": jat}


@dataclass(frozen=True)
class CollectJob:
    """One shard to write below ``root``, without the seeds in ``quarantine``, which are rejected with its reasons."""

    shard: ShardJob
    mix: Mix
    root: Path
    num_envs: int
    quarantine: Mapping[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"collecting {self.shard.task.name} {self.shard.stem}"

    @property
    def noise(self) -> Noise | None:
        return noise_of_task(self.shard.noise or "", self.shard.task)

    def make_policy(self) -> Policy:
        """Who plays, noise included, built in the process that will use it."""
        policy = self.mix.make_policy(self.shard.task)
        return NoisyPolicy(self.shard.task, policy, self.noise) if self.noise else policy


def collect_shard(job: CollectJob) -> ShardManifest:
    """Play the seeds of one shard and write it. A plain function: it needs neither Ray nor other shards."""
    mix, noise = job.mix, job.noise

    def actor(seed: int) -> Actor:
        record = mix.actor(seed)
        return Actor(record.kind, record.revision, noise.of_episode(seed) if noise else None)

    return write_shard(job.root, job.shard, mix.revision, _play(job), actor)


def timed_shard(job: CollectJob) -> tuple[ShardManifest, float]:
    """``collect_shard``, and the seconds it took, which a manifest must not hold: it says what, not when."""
    started = time.perf_counter()
    manifest = collect_shard(job)
    return manifest, time.perf_counter() - started


def _play(job: CollectJob) -> Iterator[Episode]:
    task = job.shard.task
    playable = [seed for seed in job.shard.seeds if seed not in job.quarantine]
    played = rollout(task, job.make_policy(), playable, job.num_envs)
    for seed in job.shard.seeds:
        reason = job.quarantine.get(seed)
        yield next(played) if reason is None else rejected_episode(task, seed, reason)


@dataclass(frozen=True)
class ProbeJob:
    """One seed of a shard that no worker survives, to be played alone and forgotten."""

    shard: CollectJob
    seed: int

    def __str__(self) -> str:
        return f"probing {self.shard.shard.task.name} seed {self.seed}"


def probe_seed(job: ProbeJob) -> None:
    """Play one seed in one environment; whether the worker outlives it is the result."""
    task = job.shard.shard.task
    for _ in rollout(task, job.shard.make_policy(), [job.seed], 1):
        pass


def collect(config: CollectConfig, tasks: Sequence[Task]) -> None:
    """Write the shards that are missing for the episodes asked for.

    Raises:
        UserError: bad input, or another collector is at work in the same place.
        JobsFailedError: some shards could not be made, or too many episodes of a task were rejected.
    """
    check_amounts(config, tasks)
    check_noise(config.noise, tasks)
    out = config.out.absolute()  # workers may stand elsewhere
    root = out / "shards"
    mixes = _choose(config, out, tasks)
    plan = plan_tasks(config, tasks, mixes, lambda task: mixes[task.name].mean_steps(task))
    with exclusive(root / ".lock", "wait for it, stop it, or use another --out; `make status` shows how far it is"):
        jobs = plan_jobs(config, tasks, mixes, plan, root)
        extend_plan(root, plan)
        update_json(root / "config.json", config)
        num_episodes = sum(job.shard.num_seeds for job in jobs)
        log.info("%d tasks; %d shards with %d episodes to collect", len(tasks), len(jobs), num_episodes)
        try:
            _collect_all(config, root, jobs)
        finally:
            for task in tasks:
                index_shards(root, task.name)
        _check_rejected(config, root, tasks)


def plan_tasks(
    config: CollectConfig,
    tasks: Sequence[Task],
    mixes: Mapping[str, Mix],
    mean_steps: Callable[[Task], float | None],
) -> dict[str, TaskPlan]:
    """What is wanted of each task, by name.

    Args:
        config: the options.
        tasks: the chosen ones.
        mixes: who plays each of them.
        mean_steps: steps of an episode of a task, asked where a number of steps is wanted; None if not known.

    Raises:
        UserError: a number of episodes is not to be had.
    """
    plan = {}
    for task in tasks:
        mix, noise = mixes[task.name], noise_of_task(config.noise, task)
        by_steps = _amount_for("--episodes", config.episodes, task).unit == STEPS
        length = mean_steps(task) if by_steps else None
        plan[task.name] = TaskPlan(
            mix.kind,
            mix.revision,
            versions_of(task.packages),
            config.shard_size(task),
            {split: config.num_episodes(task, split, length) for split in SPLITS},
            str(noise) if noise else None,
        )
    return plan


def plan_jobs(
    config: CollectConfig, tasks: Sequence[Task], mixes: Mapping[str, Mix], plan: Mapping[str, TaskPlan], root: Path
) -> list[CollectJob]:
    """The shards that are missing below ``root``, in the order in which to collect them.

    Costs per task what ``finished_shards`` does; per shard, arithmetic.

    Raises:
        UserError: what is there is of another origin.
    """
    missing = [_missing(task, plan[task.name], root) for task in tasks]
    quarantines = {task.name: _quarantine(root, task) for task in tasks}
    return [
        CollectJob(shard, mixes[shard.task.name], root, config.envs, quarantines[shard.task.name])
        for shard in interleaved(missing)
    ]


def _collect_all(config: CollectConfig, root: Path, jobs: Sequence[CollectJob]) -> None:
    """Run the jobs; those that no worker survives once more without the seeds that are to blame."""
    try:
        _run(config, root, jobs)
    except JobsFailedError as error:
        lost = [failure.job for failure in error.failures if failure.is_worker_lost]
        if not lost:
            raise
        log.warning("%d shards went through several workers; looking for the seeds that do it", len(lost))
        for job in lost:
            _quarantine_lethal_seeds(config, job)
        again = [CollectJob(job.shard, job.mix, root, job.num_envs, _quarantine(root, job.shard.task)) for job in lost]
        _run(config, root, again)
        if len(lost) < len(error.failures):
            raise


def _run(config: CollectConfig, root: Path, jobs: Sequence[CollectJob]) -> None:
    if not jobs:
        return
    needed = Resources(
        num_cpus=config.cpus_per_worker,
        memory=int(config.memory_gb_per_worker * 2**30),
        custom=_parse_resources(config.resources),
    )
    with Monitor(root, {(job.shard.task.name, job.shard.stem): job.shard.num_seeds for job in jobs}) as monitor:
        supervision = Supervision(
            config.stall_s,
            int(config.worker_gb * 2**30),
            lambda running: monitor.update(
                [(r.job.shard.task.name, r.job.shard.stem, r.pulse.episodes, r.resident_bytes) for r in running]
            ),
        )
        for _, (manifest, seconds) in run_jobs(timed_shard, jobs, config.workers, needed, supervision):
            monitor.add(manifest, seconds)


def _quarantine_path(root: Path, task: Task) -> Path:
    return root / task.name / "quarantine.json"


def _quarantine(root: Path, task: Task) -> dict[int, str]:
    """Reasons by seed."""
    path = _quarantine_path(root, task)
    return {int(seed): reason for seed, reason in read_json(path).items()} if path.exists() else {}


def _quarantine_lethal_seeds(config: CollectConfig, job: CollectJob) -> None:
    """Play every seed of a shard alone and put those into quarantine that no worker survives."""
    probes = [ProbeJob(job, seed) for seed in job.shard.seeds if seed not in job.quarantine]
    supervision = Supervision(config.stall_s, int(config.worker_gb * 2**30), lambda running: None)
    try:
        for _ in run_jobs(probe_seed, probes, config.workers, supervision=supervision):
            pass
    except JobsFailedError as error:
        found = {f.job.seed: f"quarantined: {f.reason}" for f in error.failures if f.is_worker_lost}
        for seed, reason in found.items():
            log.warning("%s, seed %d: %s", job.shard.task.name, seed, reason)
        known = _quarantine(job.root, job.shard.task) | found
        update_json(_quarantine_path(job.root, job.shard.task), {str(seed): known[seed] for seed in sorted(known)})


def _check_rejected(config: CollectConfig, root: Path, tasks: Sequence[Task]) -> None:
    """Raise if a task lost more of its episodes than allowed. They stay where they are, with their reasons."""
    worst = []
    for task in tasks:
        row = summarise(finished_shards(root, task.name))
        if row.num_seeds and row.num_rejected > config.max_rejected * row.num_seeds:
            reason, count = max(row.rejected.items(), key=lambda item: item[1])
            worst.append(
                f"{task.name}: {row.num_rejected} of {row.num_seeds} episodes rejected, {count} of them for {reason!r}"
            )
    if worst:
        shown = "\n  ".join(worst[:MAX_ERRORS]) + ("\n  ..." if len(worst) > MAX_ERRORS else "")
        raise JobsFailedError(
            f"{len(worst)} tasks have more than {config.max_rejected:.0%} of their episodes rejected "
            f"(--max-rejected); what was collected stays:\n  {shown}"
        )


def _choose(config: CollectConfig, out: Path, tasks: Sequence[Task]) -> dict[str, Mix]:
    """Who acts in each task.

    Raises:
        UserError: names every task that has no such expert, up to a few.
    """
    mixes, errors = {}, []
    for task in tasks:
        try:
            mixes[task.name] = choose(out, task, config.expert, config.allow_weak)
        except UserError as error:
            errors.append(str(error))
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors:
        shown = "\n  ".join(errors[:MAX_ERRORS]) + ("\n  ..." if len(errors) > MAX_ERRORS else "")
        raise UserError(f"{len(errors)} of {len(tasks)} tasks have no expert to collect with:\n  {shown}")
    return mixes


def _missing(task: Task, plan: TaskPlan, root: Path) -> list[ShardJob]:
    """Missing jobs of a task.

    Raises:
        UserError: what is there was collected by another expert, with other package versions or with other noise.
    """
    done = finished_shards(root, task.name)
    now = (plan.expert, plan.expert_revision, plan.versions, plan.noise)
    for shard in done:
        before = (shard.expert, shard.expert_revision, shard.versions, shard.noise)
        if before != now:
            noise = f"--noise '{shard.noise}' (NOISE=)" if shard.noise else "no --noise"
            raise UserError(
                f"{root / task.name} holds episodes of {_describe(*before)}; this run would add {_describe(*now)}. "
                f"Use another --out, move that folder away, or name the expert that is there: "
                f"--expert '{shard.expert_revision}' (EXPERT=)"
                + (f", with {noise}" if shard.noise != plan.noise else "")
            )
    return [
        job
        for split in SPLITS
        for job in missing_jobs(
            task,
            split,
            plan.episodes[split],
            plan.expert,
            [shard for shard in done if shard.split == split],
            plan.shard_episodes,
            plan.noise,
        )
    ]


def _describe(expert: str, revision: str, versions: dict[str, str], noise: str | None) -> str:
    return f"expert {expert!r} ({revision}) with {format_versions(versions)}" + (f" and noise {noise}" if noise else "")


def main() -> None:
    config = parse(CollectConfig, RECIPES)
    collect(config, select_tasks(config.task))


if __name__ == "__main__":
    run("collectors.collect")
