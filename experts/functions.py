"""Functions and classes of the user's own as experts: ``--expert py:package.module:name``.

A class is called with the task and must be a ``Policy`` (``pipeline/envs/policy.py``). A function is called at every
step with one observation, an array, and in a task with texts with the text as well; it returns the action. Both run the
user's code. So a stored record of one is not enough to run it: it must be named on the command line, or in the
environment variable ``JAT_FUNCTIONS`` (comma list), which workers and later commands of the same shell inherit.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from experts.store import ExpertRecord
from pipeline.domain_files import FUNCTIONS
from pipeline.envs.policy import Observations, Policy
from pipeline.envs.task import Task
from pipeline.errors import UserError, reason_of

PREFIX = "py:"
KIND = "py"
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def allow_functions(text: str) -> None:
    """Allow the functions that a value of ``--expert`` names, in this process and in those that it starts.

    Raises:
        UserError: one is not of the form ``py:module:name``, cannot be imported, or cannot be called.
    """
    paths = allowed_functions()
    for word in re.split(r"[,+*\s]+", text):
        if word.startswith(PREFIX) and (path := word.removeprefix(PREFIX)) not in paths:
            _load(path)
            paths.append(path)
    if paths:
        os.environ[FUNCTIONS] = ",".join(paths)


def allowed_functions() -> list[str]:
    """Return the allowed functions, each ``module:name``."""
    return [path.strip() for path in os.environ.get(FUNCTIONS, "").split(",") if path.strip()]


def function_record(path: str, task: Task) -> ExpertRecord:
    """Return the record of a function; its revision follows from its path and the content of its file."""
    function = _load(path)
    file = inspect.getsourcefile(function)
    content = Path(file).read_bytes() if file else b""
    revision = f"{KIND}-{hashlib.sha256(path.encode() + b'|' + content).hexdigest()[:8]}"
    kind = "class" if inspect.isclass(function) else "function"
    return ExpertRecord(task.name, KIND, revision, None, f"the {kind} {path}", {"function": path})


def make_function_policy(path: str, task: Task) -> Policy:
    """Build the policy of a function or class; call this in the process that will use it.

    Raises:
        UserError: it cannot be imported, or a class is no policy.
    """
    function = _load(path)
    if not inspect.isclass(function):
        return FunctionPolicy(task, function)
    policy: Any = function(task)  # type: ignore[call-arg]
    if not (callable(getattr(policy, "reset", None)) and callable(getattr(policy, "act", None))):
        raise UserError(f"{PREFIX}{path} is a class without reset and act; see docs/extending.md")
    made: Policy = policy
    return made


class FunctionPolicy:
    """Calls a function of one observation for every slot."""

    def __init__(self, task: Task, function: Callable[..., Any]) -> None:
        self._action, self._function = task.action, function

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        """Nothing to reset."""

    def act(self, slots: Sequence[int], observations: Observations) -> Sequence[Any]:
        if observations.texts is None:
            actions = [self._function(values) for values in observations.values]
        else:
            pairs = zip(observations.values, observations.texts, strict=True)
            actions = [self._function(values, text) for values, text in pairs]
        if self._action.kind == "discrete":
            return [int(action) for action in actions]
        return [np.asarray(action, np.float32).reshape(self._action.size) for action in actions]


def _load(path: str) -> Callable[..., Any]:
    if not _PATH.fullmatch(path):
        raise UserError(f"--expert {PREFIX}{path[:80]} is not of the form {PREFIX}package.module:name")
    module, _, name = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise UserError(f"--expert {PREFIX}{path} cannot be loaded: {reason_of(error)}") from error
    if not callable(function):
        raise UserError(f"--expert {PREFIX}{path} is a {type(function).__name__}, expected a function or a class")
    loaded: Callable[..., Any] = function
    return loaded
