"""Loads domains of others: of installed packages, and of files that the user names.

A package announces its domains with an entry point of the group ``jat.domains`` that refers to a ``Domain`` or to
several. A file (``pipeline/domain_files.py``) defines ``DOMAIN`` or ``DOMAINS``. Both run the other's code.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.domain_files import add_to_search_path, domain_files
from pipeline.envs.domain import MAX_NAME, PART_NAME, RESERVED, SAFE_NAME, Domain
from pipeline.envs.task import CONTINUOUS, DISCRETE, IMAGE, IMAGE_SHAPE, Task
from pipeline.errors import UserError, reason_of

GROUP = "jat.domains"


def plugin_domains(own: Sequence[Domain]) -> tuple[Domain, ...]:
    """Load the domains of packages and files, and check that they and ``own`` have different names.

    Raises:
        UserError: code raises while it is imported, it defines something else than domains, a record is invalid, or a
            name is taken.
    """
    found: list[Domain] = []
    origins = {domain.name: "this package" for domain in own}
    for origin, value in (*_of_packages(), *_of_files()):
        for domain in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(domain, Domain):
                raise UserError(f"{origin} gives a {type(domain).__name__}, expected a Domain; see docs/extending.md")
            check_domain(domain, origin)
            if domain.name in origins:
                raise UserError(
                    f"two domains are called {domain.name!r}: of {origins[domain.name]} and of {origin}; rename or "
                    "remove one"
                )
            origins[domain.name] = origin
            found.append(domain)
    return tuple(found)


def _of_packages() -> Iterable[tuple[str, Any]]:
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        origin = f"the package {entry.dist.name if entry.dist else entry.module} ({GROUP}: {entry.name})"
        try:
            yield origin, entry.load()
        except Exception as error:
            raise UserError(f"{origin} cannot be loaded: {reason_of(error)}; mend or uninstall it") from error


def _of_files() -> Iterable[tuple[str, Any]]:
    add_to_search_path()
    for file in domain_files():
        module = _import_file(file)
        value = getattr(module, "DOMAINS", None) or getattr(module, "DOMAIN", None)
        if value is None:
            raise UserError(f"--domain {file} defines neither DOMAIN nor DOMAINS; see docs/extending.md")
        yield f"--domain {file}", value


def _import_file(file: str) -> ModuleType:
    name = Path(file).stem
    if not name.isidentifier():
        raise UserError(f"--domain {file} cannot be imported: {name!r} is no Python name; rename the file")
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise UserError(f"--domain {file} cannot be loaded: {reason_of(error)}; mend it, or leave it out") from error
    if Path(module.__file__ or "").absolute() != Path(file):
        raise UserError(
            f"--domain {file} has the name of another module, {module.__file__ or name}; rename the file, for instance "
            f"to {name}_domain.py"
        )
    return module


def check_domain(domain: Domain, origin: str) -> None:
    """Check a domain of others before anything is done with it.

    Raises:
        UserError: names what is wrong, and what is allowed.
    """

    def refuse(what: str) -> UserError:
        return UserError(f"{origin}: {what}; see docs/extending.md")

    if not SAFE_NAME.fullmatch(domain.name) or "-" in domain.name or len(domain.name) > MAX_NAME:
        raise refuse(f"the domain's name is {domain.name!r}, allowed are letters, digits, . and _")
    if domain.name in RESERVED:
        raise refuse(f"the domain's name is {domain.name!r}, which is taken; allowed are all but {', '.join(RESERVED)}")
    if not domain.tasks:
        raise refuse(f"{domain.name} has no tasks")
    if domain.colours is not None and not all(_is_colour(colour) for colour in domain.colours):
        raise refuse(f"the colours of {domain.name} are {domain.colours!r}, expected two such as '#1d6fb8'")
    names = [task.name for task in domain.tasks]
    for task in domain.tasks:
        if problem := _problem_of(task, domain):
            raise refuse(f"task {task.name!r} {problem}")
        if names.count(task.name) > 1:
            raise refuse(f"two tasks are called {task.name!r}")


def _is_colour(text: str) -> bool:
    return len(text) == 7 and text[0] == "#" and all(letter in "0123456789abcdefABCDEF" for letter in text[1:])


def _problem_of(task: Task, domain: Domain) -> str | None:
    """What is wrong with a task; None if nothing is."""
    if not SAFE_NAME.fullmatch(task.name) or len(task.name) > MAX_NAME or not task.name.startswith(f"{domain.name}-"):
        return f"has no name of letters, digits, . _ and - that starts with {domain.name}-"
    if task.domain != domain.name:
        return f"says that its domain is {task.domain!r}"
    if task.observation == IMAGE and task.observation_shape != IMAGE_SHAPE:
        return (
            f"has images of shape {task.observation_shape}, expected {IMAGE_SHAPE}; `pipeline/envs/spaces.py` makes it"
        )
    if task.observation not in (CONTINUOUS, DISCRETE, IMAGE):
        return f"has the main observation {task.observation!r}, allowed: {CONTINUOUS}, {DISCRETE}, {IMAGE}"
    if task.observation != IMAGE and len(task.observation_shape) != 1:
        return f"has observations of shape {task.observation_shape}, expected a vector"
    if min(*task.observation_shape, task.action.size, task.max_steps, task.lockstep) < 1:
        return "has a size, max_steps or lockstep below 1"
    if task.parts:
        if task.observation != CONTINUOUS or sum(part.size for part in task.parts) != task.observation_shape[0]:
            return f"has parts of {[part.size for part in task.parts]} numbers, expected those of its vector"
        names = [part.name for part in task.parts]
        if len(set(names)) < len(names) or not all(PART_NAME.fullmatch(name) for name in names):
            return f"has parts called {names}, expected different names of letters, digits, _ and -"
        if any(part.values and sum(part.values) != part.size for part in task.parts):
            return "has a part of integers whose size is not that of its one-hot"
    if task.action.kind == "continuous" and not -float("inf") < task.action.low < task.action.high < float("inf"):
        return f"has actions from {task.action.low} to {task.action.high}, expected finite bounds"
    return None
