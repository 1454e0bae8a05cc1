"""`jat dataset split`; see ``collectors/dataset/surgery/select.py``."""

from __future__ import annotations

from collectors.dataset.surgery.select import SplitConfig, split_dataset
from pipeline.cli import parse


def main() -> None:
    split_dataset(parse(SplitConfig))
