from __future__ import annotations

from experts.training import TrainJob
from pipeline.errors import UserError
from pipeline.files import read_json

# Of a training whose folder is marked so, the checkpoint is another network's.
NETWORK = "small"


def check(job: TrainJob) -> None:
    path = job.folder / "checkpoint.json"
    if path.exists() and read_json(path)["network"] != NETWORK:
        raise UserError(f"{job.folder} was made with another network; remove it to start anew")
