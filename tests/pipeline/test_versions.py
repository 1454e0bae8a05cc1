from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest

from pipeline.envs.registry import all_tasks
from pipeline.versions import format_versions, versions_of


def test_versions_are_those_installed_in_the_order_asked_for() -> None:
    found = versions_of(("pyarrow", "numpy"))
    assert list(found) == ["pyarrow", "numpy"]
    assert found["numpy"] == np.__version__
    assert format_versions({"b": "2.0", "a": "1"}) == "b 2.0, a 1"
    assert format_versions({}) == ""


def test_a_package_that_is_not_installed_is_an_error() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        versions_of(["no-such-package"])


def test_the_packages_of_every_task_are_installed() -> None:
    for packages in {task.packages for task in all_tasks()}:
        assert set(versions_of(packages)) == set(packages)
