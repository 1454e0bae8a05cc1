"""Where everything of a run is: the only module that joins the names of a run's folders and files.

Every path is below ``out``, a folder or the address of an object store, as ``pipeline.files.location`` makes it. Names
that also occur in folders of another kind, such as ``config.json`` in a checkpoint, are constants here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Folders below OUT, in the order in which stages write them.
EXPERTS, TRAINING, QUEUE = "experts", "training", "queue"
SHARDS, IMPORTED, DATASET = "shards", "imported", "dataset"
TRAIN, EVALUATION, REPORT = "train", "evaluation", "report"
ROUNDS = "rounds"
PUBLISH, STATUS, VIDEOS, FILMS, STATISTICS = "publish", "status", "videos", "films", "statistics"
# Experts that come with the package, by task and revision, with their measurements; as in EXPERTS, but read-only.
EMBEDDED = Path(__file__).parents[1] / EXPERTS / "embedded"
# Files that several of these folders have.
CONFIG, MANIFEST, PLAN = "config.json", "manifest.json", "plan.json"
MEASUREMENT, PAGE = "measurement.json", "index.html"
# Of the folder of a training, which a study may have elsewhere.
CHECKPOINTS, RESUME, TRAIN_LOG, IDENTITY = "checkpoints", "resume", "log.jsonl", "identity.json"


@dataclass(frozen=True)
class RunLayout:
    """All paths of one run.

    Attributes:
        out: root of the run.
    """

    out: Path

    # Experts

    @property
    def experts(self) -> Path:
        return self.out / EXPERTS

    @property
    def experts_config(self) -> Path:
        return self.experts / CONFIG

    @property
    def experts_report(self) -> Path:
        return self.experts / REPORT

    def experts_of(self, task: str) -> Path:
        """Folder of the experts of a task, with one folder per revision."""
        return self.experts / task

    def expert(self, task: str, revision: str) -> Path:
        """Folder of one expert: weights, record, training curve, measurement, films."""
        return self.experts_of(task) / revision

    def best_experts(self, task: str) -> Path:
        return self.experts_of(task) / "best.json"

    def expert_films(self, task: str, revision: str) -> Path:
        return self.expert(task, revision) / FILMS

    def expert_training(self, task: str, algorithm: str) -> Path:
        """State of an expert's training, until the expert is in the store."""
        return self.out / TRAINING / task / algorithm

    @property
    def retrained(self) -> Path:
        """What an interrupted ``jat experts --retrain`` has trained already."""
        return self.out / TRAINING / "retrain.json"

    @property
    def queue(self) -> Path:
        return self.out / QUEUE

    @property
    def queue_list(self) -> Path:
        return self.queue / "queue.json"

    @property
    def queue_lock(self) -> Path:
        return self.queue / "lock"

    def queued_training(self, task: str, algorithm: str) -> Path:
        """State of a training of the queue."""
        return self.queue / task / algorithm

    # Episodes and documents

    @property
    def shards(self) -> Path:
        """Folder with a folder of shards per task and corpus (``pipeline/storage/``)."""
        return self.out / SHARDS

    @property
    def shards_config(self) -> Path:
        return self.shards / CONFIG

    @property
    def corpora_config(self) -> Path:
        return self.shards / "corpora.json"

    @property
    def corpora_lock(self) -> Path:
        return self.shards / ".corpora.lock"

    @property
    def imported(self) -> Path:
        return self.out / IMPORTED

    def imported_of(self, task: str) -> Path:
        """Folder of a task's imported shards, with one folder per source."""
        return self.imported / task

    @property
    def import_lock(self) -> Path:
        return self.imported / ".lock"

    @property
    def rates(self) -> Path:
        return self.out / "rates.json"

    # Dataset

    @property
    def dataset(self) -> Path:
        return self.out / DATASET

    @property
    def dataset_lock(self) -> Path:
        return self.shards / ".dataset.lock"

    @property
    def building_dataset(self) -> Path:
        """The dataset that is being built."""
        return self.out / ".dataset.building"

    @property
    def retired_dataset(self) -> Path:
        """The old dataset while the new one replaces it."""
        return self.out / ".dataset.retired"

    @property
    def is_inside(self) -> bool:
        """Whether ``out`` seems to be a folder inside a run: one of shards, or a dataset."""
        return not self.shards.is_dir() and any((self.out / name).exists() for name in (PLAN, MANIFEST))

    def video(self, task: str, seed: int) -> Path:
        return self.out / VIDEOS / task / f"{seed}.mp4"

    # Agent

    @property
    def train(self) -> Path:
        return self.out / TRAIN

    @property
    def train_manifest(self) -> Path:
        """Written when the training is complete."""
        return self.train / MANIFEST

    @property
    def train_log(self) -> Path:
        return self.train / TRAIN_LOG

    @property
    def train_cache(self) -> Path:
        """Memory-mapped arrays of the dataset."""
        return self.train / "cache"

    @property
    def checkpoints(self) -> Path:
        return self.train / CHECKPOINTS

    def evaluation(self, name: str = "") -> Path:
        """Folder of an evaluation; ``name`` selects a separate named one instead of the run's own."""
        return self.out / EVALUATION / name

    def evaluation_config(self, name: str = "") -> Path:
        return self.evaluation(name) / CONFIG

    def scores(self, name: str = "") -> Path:
        return self.evaluation(name) / "scores.json"

    def played(self, task: str, name: str = "") -> Path:
        """All episodes of a task in an evaluation."""
        return self.evaluation(name) / f"{task}.json"

    @property
    def curve(self) -> Path:
        """Scores of the checkpoints of the training."""
        return self.evaluation() / "curve.json"

    def agent_films(self, task: str = "", name: str = "") -> Path:
        """The agent's films of a task in an evaluation; without a task, the folder of all."""
        return self.evaluation(name) / FILMS / task

    def report(self, name: str = "") -> Path:
        return self.out / REPORT / name

    # Rounds of relabelling

    @property
    def rounds(self) -> Path:
        return self.out / ROUNDS

    def round(self, number: int) -> Path:
        """Root of a round's training."""
        return self.rounds / str(number)

    def round_record(self, number: int) -> Path:
        """Written last: it says that the round is finished."""
        return self.round(number) / "round.json"

    # Records

    def at(self, name: str) -> Path:
        """A path that a manifest of the run names relative to ``out``."""
        return self.out / name

    def config(self, folder: str) -> Path:
        """The options with which a stage wrote its folder."""
        return self.out / folder / CONFIG

    @property
    def publish(self) -> Path:
        """What has arrived where the dataset is published to."""
        return self.out / PUBLISH

    @property
    def publish_config(self) -> Path:
        return self.publish / CONFIG

    @property
    def publish_network(self) -> Path:
        return self.publish / "network"

    def status(self, stage: str = "") -> Path:
        """Status files of a stage; without one, the folder of all."""
        return self.out / STATUS / stage
