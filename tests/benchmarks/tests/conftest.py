"""The output root of the trainer's tests."""

from tests.trainer.conftest import dataset_once as dataset_once
from tests.trainer.conftest import run_dir as run_dir
