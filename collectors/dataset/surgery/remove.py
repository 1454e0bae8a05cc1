"""`jat dataset remove`; see ``collectors/dataset/surgery/select.py``."""

from __future__ import annotations

from collectors.dataset.surgery.select import RemoveConfig, remove_episodes
from pipeline.cli import parse


def main() -> None:
    remove_episodes(parse(RemoveConfig))
