"""The work of one collecting worker: play the seeds of a shard and write it, or probe a single seed.

Seeds in quarantine (``OUT/shards/<task>/quarantine.json``) crash every worker that plays them; they are rejected with
their reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experts.acting.labels import LabelledPolicy
from experts.acting.noise import Noise, NoisyPolicy, noise_of_task
from experts.choice import Mix
from pipeline.envs.episode import Episode, rejected_episode
from pipeline.envs.policy import Policy
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import update_json
from pipeline.records import read_values
from pipeline.storage.manifest import ShardManifest
from pipeline.storage.plan import ShardJob
from pipeline.storage.shards import Provenance, write_shard


@dataclass(frozen=True)
class CollectJob:
    """One shard to write below ``root``. Seeds in ``quarantine`` are not played but rejected with the given reason.

    If the shard has labels, the experts of ``labels`` give them; those of ``mix``, who act, if it is None.
    """

    shard: ShardJob
    mix: Mix
    root: Path
    num_envs: int | None
    quarantine: Mapping[int, str] = field(default_factory=dict)
    labels: Mix | None = None

    def __str__(self) -> str:
        return f"collecting {self.shard.task.name} {self.shard.stem}"

    @property
    def noise(self) -> Noise | None:
        return noise_of_task(self.shard.noise or "", self.shard.task)

    @property
    def labellers(self) -> Mix:
        return self.mix if self.labels is None else self.labels

    def make_policy(self) -> Policy:
        """The acting policy, noise and labels included. Must be built in the process that uses it."""
        task = self.shard.task
        policy = self.mix.make_policy(task, self.num_envs)
        if self.noise:
            policy = NoisyPolicy(task, policy, self.noise)
        has_own_labels = self.noise is not None and self.labels is None and self.mix.labels_as_it_acts
        if self.shard.labels is None or has_own_labels:
            return policy
        return LabelledPolicy(policy, self.labellers.make_labeller(task))


def collect_shard(job: CollectJob) -> ShardManifest:
    """Play the seeds of one shard and write it. A plain function that needs neither Ray nor other shards."""
    mix, noise = job.mix, job.noise

    def actor(seed: int) -> Provenance:
        record = mix.actor(seed)
        labeller = job.labellers.actor(seed).revision if job.shard.labels else None
        return Provenance(record.kind, record.revision, noise.of_episode(seed) if noise else None, labeller)

    return write_shard(job.root, job.shard, mix.revision, _play(job), actor)


def timed_shard(job: CollectJob) -> tuple[ShardManifest, float]:
    """``collect_shard`` and its duration in seconds. A manifest describes only content, so it holds no durations."""
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
    """One seed of a shard that crashes its workers, played alone; its episode is discarded."""

    shard: CollectJob
    seed: int

    def __str__(self) -> str:
        return f"probing {self.shard.shard.task.name} seed {self.seed}"


def probe_seed(job: ProbeJob) -> None:
    """Play one seed in one environment. The result is whether the worker survives."""
    task = job.shard.shard.task
    for _ in rollout(task, job.shard.make_policy(), [job.seed], 1):
        pass


def _quarantine_path(root: Path, task: Task) -> Path:
    return root / task.name / "quarantine.json"


def read_quarantine(root: Path, task: Task) -> dict[int, str]:
    """Quarantined seeds with their reasons.

    Raises:
        UserError: the file has invalid content.
    """
    path = _quarantine_path(root, task)
    if not path.exists():
        return {}
    fix = "delete it and run `jat collect` again"
    found = read_values(path, dict[str, str], "a list of seeds in quarantine", fix)
    if not all(seed.isdecimal() for seed in found):
        raise UserError(f"{path} names seeds that are no numbers; {fix}")
    return {int(seed): reason for seed, reason in found.items()}


def add_to_quarantine(root: Path, task: Task, reasons: Mapping[int, str]) -> None:
    """Quarantine more seeds, each with its reason."""
    known = {**read_quarantine(root, task), **reasons}
    update_json(_quarantine_path(root, task), {str(seed): known[seed] for seed in sorted(known)})
