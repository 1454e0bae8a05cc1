"""Which package versions an episode was made with."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from functools import cache


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Installed version of each distribution, in the order given."""
    return {name: _installed(name) for name in packages}


@cache  # reading it takes a millisecond, and planning asks for each of 157 tasks and its experts
def _installed(name: str) -> str:
    return importlib.metadata.version(name)


def format_versions(versions: dict[str, str]) -> str:
    """``metaworld 3.1.1, mujoco 3.3.0``."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
