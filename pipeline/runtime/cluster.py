"""Connects to a Ray cluster and exports gauges to its metrics endpoint.

``RAY_ADDRESS`` selects a cluster. Without it this process starts an embedded Ray, which ends with the process. Only
this file, ``pool.py`` (a pool of actors) and ``train_group.py`` (processes that train together) import ``ray``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.domain_files import variables_for_others
from pipeline.errors import JobsFailedError, UserError, first_line
from pipeline.runtime.stage import current_stage
from pipeline.stopping import handle_stop_signals

log = logging.getLogger(__name__)

# Timeout for starting Ray or connecting to it.
START_S = 120.0
LONGEST_SOCKET = 107  # maximum length of a socket's path on Linux in bytes, see unix(7)
# Timeout for a run's last gauges to reach the cluster, which may first have to start a process for them.
GAUGES_S = 30.0
REPEAT_S = 1.0  # shorter than the time after which Ray drops a gauge


@dataclass(frozen=True)
class Resources:
    """Resources that a job reserves while it runs: CPU cores, GPUs (or a fraction of one) if the cluster has any,
    memory in bytes, and custom resources that the cluster's nodes declare, by name."""

    num_cpus: float = 1
    num_gpus: float = 0
    memory: int = 0
    custom: Mapping[str, float] = field(default_factory=dict)


def connect(workers: int) -> None:
    """Join the cluster at ``RAY_ADDRESS``, or start an embedded one with ``workers`` CPUs; no-op if connected.

    An embedded cluster can only be reached from this machine, with a token that only this process and Ray's have.

    Raises:
        UserError: nothing listens at ``RAY_ADDRESS``, or this machine's settings prevent Ray from starting.
        JobsFailedError: Ray did not start.
    """
    # Read when Ray is imported. Ray's deduplication drops lines that differ only in numbers, such as progress lines.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    if not sys.stderr.isatty():  # no ANSI colour codes in log files
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    import ray

    if ray.is_initialized():
        return
    # Token authentication is enabled by default and stays enabled; hide the log line about it.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its default prints a warning in every worker
    # Ray prestarts idle workers with the cluster, and the driver waits for them. If one is killed before it has
    # registered, the driver hangs in C++.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    _protect_token()
    try:
        address = os.environ.get("RAY_ADDRESS")
        activity = "connecting to Ray" if address else "starting Ray"
        log.info(activity)
        with current_stage().doing(activity):
            if address:
                _join(address)
            else:
                _start_embedded(workers)
    finally:
        handle_stop_signals()  # Ray installed its own signal handlers: other exit codes, C++ stack traces


def _join(address: str) -> None:
    import ray

    _check_answers(address)
    with _no_longer_than(START_S):
        try:
            ray.init(address=address, logging_level=logging.WARNING, runtime_env=_runtime_env())
        except (ray.exceptions.AuthenticationError, ConnectionError) as error:
            raise UserError(
                f"the Ray cluster at RAY_ADDRESS={address} refuses this process; put the cluster's token into "
                f"RAY_AUTH_TOKEN (or its file into RAY_AUTH_TOKEN_PATH), set RAY_AUTH_MODE=token, and let it run "
                f"Ray {ray.__version__}, too"
            ) from error


def _runtime_env() -> dict[str, Any] | None:
    """Environment variables for the workers of a cluster, which do not inherit those of this process.

    They find modules of the user's in this process's working directory, if this one looked for some there and the
    nodes share the folder.
    """
    variables = variables_for_others()
    if (here := str(Path.cwd())) in sys.path:
        variables["PYTHONPATH"] = f"${{PYTHONPATH}}{os.pathsep}{here}"
    return {"env_vars": variables} if variables else None


def _start_embedded(workers: int) -> None:
    """Start a Ray cluster for this process, with one retry in case the start was only slow."""
    import ray

    folder = _check_temporary_folder()
    for is_last in (False, True):
        try:
            with _no_longer_than(START_S), _private_ray():
                ray.init(address="local", num_cpus=workers, include_dashboard=False, logging_level=logging.WARNING)
            return
        except Exception as error:  # Ray raises plain Exception if one of its processes does not start in time
            if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
                raise UserError(f"Ray cannot start below {folder} ({error}); set TMPDIR to another folder") from error
            ray.shutdown()
            if is_last:
                raise JobsFailedError(
                    f"Ray did not start, twice ({first_line(error)}); is the machine out of memory or very busy? "
                    f"What its processes said is in {folder}/ray/session_latest/logs"
                ) from error
            log.warning("Ray did not start (%s); trying once more", first_line(error))


def _check_temporary_folder() -> str:
    """Return the folder below which an embedded Ray keeps its sockets and logs.

    Raises:
        UserError: the paths of sockets there would be too long, or are not ASCII.
    """
    variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(variable, "/tmp")
    size, longest = len(os.fsencode(folder)), LONGEST_SOCKET - len(_SOCKET.format(process=os.getpid()))
    if size > longest:
        raise UserError(
            f"{variable}={folder} has {size} bytes; Ray keeps sockets below it, whose names have {LONGEST_SOCKET} at "
            f"most, so it may have {longest}: set {variable} to a shorter path, such as /tmp"
        )
    if not folder.isascii():
        raise UserError(f"{variable}={folder} is not ASCII, which Ray needs; set {variable} to another path, e.g. /tmp")
    return folder


@contextlib.contextmanager
def _private_ray() -> Iterator[None]:
    """Make ``ray.init`` in this block listen on 127.0.0.1 only, use a token, run in another process group, and start
    only the processes that workers need.

    Ray has no options for this. It listens on the address it detects for the machine, which is 127.0.0.1 where Ray
    does not support clusters, as on macOS. Cluster support is switched off in the environment for Ray's processes and,
    as Ray may be imported already, in its module here. Ray's own token would be in the home folder, readable by all.
    A signal to the whole process group, as ``timeout`` and terminals send it, would end Ray before this process has
    shut down. The autoscaler, which has nothing to scale here, and the server of the dashboard, which Ray starts even
    without one, take a third of the processor time of a start.
    """
    from ray._private import node, ray_constants, services

    has_token = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    settings = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} | ({} if has_token else {"RAY_AUTH_TOKEN": _token})
    before = {name: os.environ.get(name) for name in settings}
    patches: list[tuple[Any, str, Any]] = [
        (services, "ConsolePopen", partial(services.ConsolePopen, process_group=0)),
        (ray_constants, "ENABLE_RAY_CLUSTER", False),
        (node.Node, "start_monitor", lambda *arguments, **options: None),
        (node.Node, "start_api_server", lambda *arguments, **options: None),
    ]
    originals = [getattr(owner, name) for owner, name, _ in patches]
    os.environ.update(settings)
    for owner, name, value in patches:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), original in zip(patches, originals, strict=True):
            setattr(owner, name, original)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _protect_token() -> None:
    """Make the cluster token in the home folder readable by its owner only; Ray creates it readable by all."""
    with contextlib.suppress(OSError, RuntimeError):  # no token, not our file, or no home folder
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
            log.info("%s can be read by its owner alone from now on", path)


@contextlib.contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """End this process with exit code 1 and a traceback if the block takes longer.

    In rare cases Ray waits without end for one of its processes, in C++, where Python cannot interrupt it (seen once,
    with several clusters on one machine). A process that exits can be restarted; one that hangs must be noticed first.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _check_answers(address: str) -> None:
    """Raise ``UserError`` if nothing listens at the address; Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # "auto": Ray searches for a cluster on this machine
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"no Ray cluster at RAY_ADDRESS={address} ({error}); start one there, or unset it") from error


class Gauges:
    """Gauges on the metrics endpoint of the Ray node that this process runs on.

    Ray exports a value only once. With ``is_repeating``, as in an actor, the values are exported again every
    ``REPEAT_S`` seconds for the lifetime of this object's process.
    """

    def __init__(self, is_repeating: bool = False) -> None:
        self._gauges: dict[str, Any] = {}
        self._values: dict[tuple[str, ...], tuple[str, dict[str, str], float]] = {}
        if is_repeating:
            threading.Thread(target=self._repeat, daemon=True).start()

    def set(self, values: Sequence[tuple[str, str, dict[str, str], float]]) -> None:
        """Set gauges from tuples of name, description, labels and value."""
        from ray.util.metrics import Gauge

        for name, description, labels, value in values:
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, description, tuple(labels))
            self._values[name, *labels.values()] = (name, labels, value)
            self._gauges[name].set(value, labels)

    def _repeat(self) -> None:
        while True:
            time.sleep(REPEAT_S)
            for name, labels, value in list(self._values.values()):
                self._gauges[name].set(value, labels)


# The longest path of a socket that Ray creates below its temporary folder.
_SOCKET = "/ray/session_2026-11-30_17-55-23_253047_{process}/sockets/plasma_store"
_token = secrets.token_hex(32)  # of embedded clusters
_own_gauges = Gauges()


def set_gauges(values: Sequence[tuple[str, str, dict[str, str], float]], is_waiting: bool) -> None:
    """Set gauges (see ``Gauges``) on the connected cluster; no-op if not connected, failures are logged.

    On a long-lived cluster a detached actor on the head node re-exports the gauges: Ray drops a process's metrics
    seconds after it exits, and alerts must also fire for finished stages.

    Args:
        values: tuples of name, description, labels and value.
        is_waiting: whether to block until the values have arrived.
    """
    import ray

    if not ray.is_initialized():
        return
    if not os.environ.get("RAY_ADDRESS"):
        _own_gauges.set(values)
        return
    try:
        actor = ray.remote(Gauges).options(
            name="gauges", namespace="jat", lifetime="detached", get_if_exists=True, max_restarts=-1,
            num_cpus=0, resources={"node:__internal_head__": 0.001},
        ).remote(is_repeating=True)  # fmt: skip
        arrived = actor.set.remote(values)
        if is_waiting:
            ray.get(arrived, timeout=GAUGES_S)
    except ray.exceptions.RayError as error:
        log.warning("the metrics of this run did not reach the cluster: %s", first_line(error))


def cut_to_largest_node(wanted: Resources) -> Resources:
    """The resources of a job, as far as one node of the cluster has them, so that it can be scheduled at all.

    Raises:
        JobsFailedError: no node is alive.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not nodes:
        raise JobsFailedError("no node of the Ray cluster is alive any more; run the same command again")

    def most(name: str) -> float:
        return max(node.get(name, 0) for node in nodes)

    return Resources(
        num_cpus=min(wanted.num_cpus, most("CPU")),
        num_gpus=min(wanted.num_gpus, most("GPU")),
        memory=int(min(wanted.memory, most("memory"))),
        custom={name: min(amount, most(name)) for name, amount in wanted.custom.items() if most(name)},
    )
