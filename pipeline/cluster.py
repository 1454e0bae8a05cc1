"""Connecting to Ray, and its metrics.

``RAY_ADDRESS`` names a cluster; without it an embedded Ray is started here and ends with this process. Only this file,
``jobs.py`` (a pool of actors) and ``worker_group.py`` (processes that train together) say ``import ray``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import JobsFailedError, UserError, first_line
from pipeline.stage import current_stage

log = logging.getLogger(__name__)

# How long Ray may take to start or to connect.
START_S = 120.0
# How long the last numbers of a run may take to reach the cluster.
GAUGES_S = 10.0
REPEAT_S = 1.0  # less than the shortest time after which Ray forgets a number


def connect(workers: int) -> None:
    """Join the cluster of ``RAY_ADDRESS``, or start an embedded one with ``workers`` CPUs, unless connected.

    Raises:
        UserError: nothing answers at ``RAY_ADDRESS``.
    """
    # Read when Ray is imported: lines that differ only in their numbers, as progress does, are not repetitions.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    if not sys.stderr.isatty():  # codes for colours have no place in files
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    import ray

    if ray.is_initialized():
        return
    # Token authentication is on by default and stays on; the line that says so is not news.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its default prints a warning in every worker
    # Ray starts idle workers with the cluster and lets the driver wait for them. If one is killed before it has
    # reported, the driver waits for ever, in C++.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_answers(address)
    activity = "connecting to Ray" if address else "starting Ray"
    log.info(activity)
    with _no_longer_than(START_S), current_stage().doing(activity):
        if address:
            try:
                ray.init(address=address, logging_level=logging.WARNING)
            except (ray.exceptions.AuthenticationError, ConnectionError) as error:
                raise UserError(
                    f"the Ray cluster at RAY_ADDRESS={address} refuses this process; put the cluster's token into "
                    f"RAY_AUTH_TOKEN (or its file into RAY_AUTH_TOKEN_PATH), set RAY_AUTH_MODE=token, and let it run "
                    f"Ray {ray.__version__}, too"
                ) from error
            return
        try:
            ray.init(address="local", num_cpus=workers, include_dashboard=False, logging_level=logging.WARNING)
        except Exception as error:  # Ray raises this very class when one of its processes does not come up
            raise JobsFailedError(f"Ray did not start ({error}); run the same command again") from error


@contextlib.contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """End this process with exit code 1 and a traceback if the block takes longer.

    Now and then Ray waits for ever for a process of its own, in C++, where no Python can interrupt it (seen once, with
    several clusters on one machine). A process that has ended can be started again; one that hangs must be noticed.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _check_answers(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # "auto": Ray looks for a cluster on this machine
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"no Ray cluster at RAY_ADDRESS={address} ({error}); start one there, or unset it") from error


class Gauges:
    """Numbers on the metrics endpoint of the Ray node that the process with this object runs on.

    Ray passes on what it is told once. As an actor this repeats it, for as long as it lives.
    """

    def __init__(self, is_repeating: bool = False) -> None:
        self._gauges: dict[str, Any] = {}
        self._values: dict[tuple[str, ...], tuple[str, dict[str, str], float]] = {}
        if is_repeating:
            threading.Thread(target=self._repeat, daemon=True).start()

    def set(self, values: Sequence[tuple[str, str, dict[str, str], float]]) -> None:
        """Take values, each with its name, description and labels."""
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


_own_gauges = Gauges()


def set_gauges(values: Sequence[tuple[str, str, dict[str, str], float]], is_waiting: bool) -> None:
    """Set gauges (see ``Gauges``) of the cluster this process is connected to, if it is; a failure is logged.

    On a cluster that lasts, an actor on its head keeps them as long as that lasts: Ray forgets what a process told
    seconds after its end, and alerts are about those that have ended, too.

    Args:
        values: what to set.
        is_waiting: whether to return only when they have arrived.
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
