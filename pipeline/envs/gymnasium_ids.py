"""Makes any environment that gymnasium knows by an id a task: ``gym:CartPole-v1``, ``gym:my_package:MyEnv-v0``.

The second form imports ``my_package`` first, which must register the id. Spaces, bounds, step limit and packages are
read from the environment (``pipeline/envs/spaces.py`` converts them). The name of such a task is a safe name of folders
and of configurations of datasets from which the id follows: ``gym-CartPole-v1``, with ``+`` for ``:`` and ``++`` for
``/``. Both forms select the task.

``gym:ID@columns`` (``gym-ID+++columns``) is the same task, but files have a column for each part of a Dict.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym

from pipeline.envs.domain import MAX_NAME, PART_NAME, Domain
from pipeline.envs.spaces import TaskView, action_layout, observation_layout
from pipeline.envs.task import Task
from pipeline.errors import UserError, reason_of

PREFIX = "gym:"
COLUMNS, COLUMNS_IN_NAME = "@columns", "+++columns"
DOMAIN = Domain(
    name="gym",
    title="Gymnasium",
    about="Environments that gymnasium knows by an id, as they are: the table gives their ids.",
    colours=("#0e7490", "#56c4dc"),
)


def task_name(env_id: str) -> str:
    """Name of the task of an id."""
    base = env_id.removesuffix(COLUMNS)
    name = f"{DOMAIN.name}-{base.replace('/', '++').replace(':', '+')}"
    return name if base == env_id else name + COLUMNS_IN_NAME


def env_id_of(name: str) -> str | None:
    """The id of ``gym:ID`` or of a task's name; None for other names and for globs."""
    if any(letter in name for letter in "*?["):
        return None
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX)
    if name.startswith(f"{DOMAIN.name}-"):
        base = name.removesuffix(COLUMNS_IN_NAME)
        found = base.removeprefix(f"{DOMAIN.name}-").replace("++", "/").replace("+", ":")
        return found if base == name else found + COLUMNS
    return None


@functools.cache
def gym_task(env_id: str) -> Task:
    """Make the task of an id; the environment is made once to read its spaces.

    Raises:
        UserError: gymnasium does not know the id (the message has the nearest ones), it cannot be made, or a space
            cannot be had.
    """
    origin = f"{PREFIX}{env_id}"
    name = task_name(env_id)
    if env_id_of(name) != env_id or len(name) > MAX_NAME:
        raise UserError(f"{origin} is too long for a name, or has a + in it; register the environment by another id")
    base = env_id.removesuffix(COLUMNS)
    spec = _spec(base)
    env = _make(base, None)
    try:
        layout, action = observation_layout(env.observation_space, origin), action_layout(env.action_space, origin)
        parts = layout.parts if base != env_id else ()
        if base != env_id and not parts:
            raise UserError(f"{origin} has no Dict of several vectors or integers, so no columns; name {PREFIX}{base}")
        if bad := [part.name for part in parts if not PART_NAME.fullmatch(part.name)]:
            raise UserError(f"{origin} has a part {bad[0]!r}, whose name is not of letters, digits, _ and -")
        limit = spec.max_episode_steps or getattr(env.unwrapped, "max_steps", None)
        if type(limit) is not int or limit < 1:
            raise UserError(
                f"{origin} has no step limit, so an episode could go on for ever; register it with max_episode_steps"
            )
        packages = _packages(env)
        can_draw = "rgb_array" in (env.metadata.get("render_modes") or ())
    finally:
        env.close()
    return Task(
        name=name,
        domain=DOMAIN.name,
        env_id=base,
        jat_env_id=base,
        observation=layout.kind,
        observation_shape=layout.shape,
        observation_values=layout.values,
        parts=parts,
        has_text=layout.text is not None,
        action=action,
        max_steps=limit,
        success=None,
        packages=packages,
        factory=make_env,
        drawable_factory=make_drawable_env if can_draw else None,
    )


def make_env(task: Task) -> gym.Env[Any, Any]:
    return TaskView(_make(task.env_id, None), f"{PREFIX}{task.env_id}")


def make_drawable_env(task: Task) -> gym.Env[Any, Any]:
    return TaskView(_make(task.env_id, "rgb_array"), f"{PREFIX}{task.env_id}")


def _make(env_id: str, render_mode: str | None) -> gym.Env[Any, Any]:
    _spec(env_id)
    if render_mode:  # frames need no window and no sound; without a display pygame would look for them
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    mode: dict[str, Any] = {"render_mode": render_mode} if render_mode else {}  # which not all environments take
    try:
        return gym.make(env_id.rpartition(":")[2], disable_env_checker=True, **mode)
    except Exception as error:
        raise UserError(f"{PREFIX}{env_id} cannot be made: {reason_of(error)}") from error


def _spec(env_id: str) -> gym.envs.registration.EnvSpec:
    module, _, short = env_id.rpartition(":")
    if module:
        _import(module, env_id)
    try:
        return gym.spec(short)
    except gym.error.Error as error:
        near = difflib.get_close_matches(short, list(gym.registry), n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}" if near else "gymnasium.pprint_registry() lists them"
        raise UserError(
            f"gymnasium knows no environment {env_id!r}; {hint}. One of a package: {PREFIX}PACKAGE:ID"
        ) from error


def _import(module: str, env_id: str) -> None:
    """Import the package that registers an id; modules in the working directory can be found, too."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        importlib.import_module(module)
    except Exception as error:
        raise UserError(
            f"{PREFIX}{env_id}: {module!r} cannot be imported: {reason_of(error)}; install the package of the id"
        ) from error


def _packages(env: gym.Env[Any, Any]) -> tuple[str, ...]:
    """The distributions that define an environment: of its classes, and of the modules that these import."""
    known = importlib.metadata.packages_distributions()
    modules: set[str] = {"gymnasium", "numpy"}
    for kind in type(env.unwrapped).__mro__:
        module = sys.modules.get(kind.__module__)
        if module is None:
            continue
        used = [value.__name__ for value in vars(module).values() if isinstance(value, ModuleType)]
        modules |= {name.partition(".")[0] for name in (module.__name__, *used)}
    return tuple(sorted({known[name][0] for name in modules if name in known}))
