"""Run Airflow for a single user: scheduler, web server and SQLite in one folder, reachable only from this machine.

    jat dags --out runs/default

It prints the address and the login, runs until interrupted, and then stops all its processes. ``airflow
standalone`` is no replacement: it runs the scheduler with its log server, which listens on all network interfaces. A
shared installation of Airflow only needs ``dags/`` as its DAG folder and ``dags/pools.json`` (docs/operations.md).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dags.launch import signal_group
from pipeline.cli import parse, run
from pipeline.errors import JobsFailedError, UserError, how_to_install
from pipeline.files import exclusive
from pipeline.records import read_values

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
START_S = 180.0  # timeout until Airflow is healthy
STOP_S = 10.0  # between SIGTERM and SIGKILL
# Logs are read from local files; the log server is disabled, because it would listen on all network interfaces.
PROCESSES = (("api-server",), ("scheduler", "--skip-serve-logs"), ("dag-processor",))


@dataclass(frozen=True)
class ServeConfig:
    """Start Airflow with a DAG for every stage."""

    out: str = "runs/default"
    """Default output root of the DAGs, a folder or a URL. Only the stages open it; Airflow needs no S3 client."""
    home: Path = Path("runs/airflow")
    """Airflow's home folder with its database, logs and password. Delete it to delete the history of all runs."""
    port: int = 8080
    """Port of the web server, on 127.0.0.1."""

    def __post_init__(self) -> None:
        if not 1024 <= self.port <= 65535:
            raise UserError(f"--port is {self.port}; it must be from 1024 to 65535")


def serve(config: ServeConfig) -> None:
    """Run Airflow until a signal stops it.

    Raises:
        UserError: Airflow is not installed, the port is in use, or another instance uses the same home.
        JobsFailedError: a process of Airflow did not start, or exited.
    """
    if importlib.util.find_spec("airflow") is None:
        raise UserError(f"Airflow is not installed here; run {how_to_install('dags', 'setup-dags')}")
    _check_free(config.port)
    home = config.home.absolute()
    with exclusive(home / ".lock", "stop it, or use another --home"), _signals_raise():
        environ = environment(config)
        for words in (("db", "migrate"), ("pools", "import", str(HERE / "pools.json"))):
            log.info("airflow %s", " ".join(words))
            _airflow(words, environ)
        started = [_start(words, environ, home) for words in PROCESSES]
        try:
            _wait_until_it_answers(config, started)
            address = f"http://127.0.0.1:{config.port}"
            log.info("Airflow runs at %s, login admin, password %s", address, _password(home))
            log.info("logs in %s; Ctrl-C stops it", home / "logs")
            while all(process.poll() is None for process in started):
                time.sleep(0.5)
            raise JobsFailedError(_ended(started, home))
        except KeyboardInterrupt:
            log.info("stopping")
        finally:
            _stop(started)


def environment(config: ServeConfig) -> dict[str, str]:
    """Environment variables of Airflow's processes, and for Airflow's command line with this instance."""
    home = config.home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    root = str(HERE.parent)
    settings = {
        "CORE__DAGS_FOLDER": str(HERE),
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "CORE__PARALLELISM": str(os.cpu_count() or 1),
        "CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{config.port}/execution/",
        "CORE__FERNET_KEY": _secret(home / "fernet_key", _fernet_key),
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "API__HOST": "127.0.0.1",
        "API__PORT": str(config.port),
        "API__WORKERS": "1",
        "API__SECRET_KEY": _secret(home / "secret_key", secrets.token_hex),
        "API_AUTH__JWT_SECRET": _secret(home / "jwt_secret", lambda: secrets.token_hex(64)),
        "DAG_PROCESSOR__REFRESH_INTERVAL": "30",
    }
    _password(home)
    python_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {
        "JAT_OUT": config.out if "://" in config.out else str(Path(config.out).absolute()),
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "PYTHONPATH": python_path,
        **{f"AIRFLOW__{name}": value for name, value in settings.items()},
    }


def _fernet_key() -> str:
    import base64

    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _secret(path: Path, make: Callable[[], str]) -> str:
    """A secret in a file that only its owner can read, created once."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            handle.write(make())
    return path.read_text()


def _password(home: Path) -> str:
    path = home / "passwords.json"
    _secret(path, lambda: json.dumps({"admin": secrets.token_urlsafe(12)}))
    passwords: dict[str, str] = read_values(path, dict[str, str], "the file of Airflow's password", "delete it")
    if "admin" not in passwords:
        raise UserError(f"{path} has no password of admin; delete it")
    return passwords["admin"]


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"port {port} is taken on 127.0.0.1; choose another --port") from error


def _airflow(words: tuple[str, ...], environ: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "airflow", *words], env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise JobsFailedError(f"airflow {' '.join(words)} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def _start(words: tuple[str, ...], environ: dict[str, str], home: Path) -> subprocess.Popen[bytes]:
    path = home / "logs" / f"{words[0]}.log"
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as handle:
        return subprocess.Popen(
            [sys.executable, "-m", "airflow", *words], env=environ, stdout=handle, stderr=handle, start_new_session=True
        )


def _wait_until_it_answers(config: ServeConfig, started: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + START_S
    url = f"http://127.0.0.1:{config.port}/api/v2/monitor/health"
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in started):
            raise JobsFailedError(_ended(started, config.home.absolute()))
        with contextlib.suppress(urllib.error.URLError, OSError, ValueError):
            with urllib.request.urlopen(url, timeout=5) as answer:
                health = json.load(answer)
            if all(health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor")):
                return
        time.sleep(0.5)
    raise JobsFailedError(f"Airflow is not healthy after {START_S:g} s; see {config.home / 'logs'}")


def _ended(started: list[subprocess.Popen[bytes]], home: Path) -> str:
    words = next(PROCESSES[i] for i, process in enumerate(started) if process.poll() is not None)
    text = (home / "logs" / f"{words[0]}.log").read_text(errors="replace")
    return f"airflow {words[0]} ended by itself; the end of its log:\n{text[-2000:]}"


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that child processes are stopped too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(started: list[subprocess.Popen[bytes]]) -> None:
    for process in started:
        signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        signal_group(process, signal.SIGKILL)
        process.wait()


def main() -> None:
    serve(parse(ServeConfig))


if __name__ == "__main__":
    run("dags.serve")
