"""Reads the installed package versions, which are recorded as the provenance of episodes."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from functools import cache


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed version of each distribution, in the given order."""
    return {name: _installed(name) for name in packages}


@cache  # a look-up takes 1 ms, and planning needs it for each of 157 tasks and its experts
def _installed(name: str) -> str:
    return importlib.metadata.version(name)


def format_versions(versions: dict[str, str]) -> str:
    """Format as ``metaworld 3.1.1, mujoco 3.3.0``."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
