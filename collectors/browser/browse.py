"""Look at the episodes of a dataset, and of an evaluation, in a web browser on this machine.

    jat browse runs/default

The page is served on 127.0.0.1 until Ctrl-C. Nothing of the dataset or the run is changed.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from pipeline.cli import parse
from pipeline.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BrowseConfig:
    """Look at the episodes of a dataset, and of an evaluation, in a web browser on this machine."""

    place: tyro.conf.Positional[Path] = Path("runs/default")
    """A run (OUT) or a dataset: a folder, or a URL such as s3://bucket/run; or hub:owner/name, a dataset of the Hub."""
    port: int = 8765
    """Port on 127.0.0.1; 0 takes a free one."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise UserError(f"--port is {self.port}; it must be 0 to {2**16 - 1}")


def browse(config: BrowseConfig) -> None:
    """Serve the pages until the process is asked to stop.

    Raises:
        UserError: there is no dataset, or the port is taken.
    """
    import uvicorn

    from collectors.browser.app import make_app

    with tempfile.TemporaryDirectory(prefix="jat-browse-") as folder, listening(config.port) as listener:
        port = listener.getsockname()[1]
        app = make_app(config.place, port, Path(folder))
        log.info("%s is at http://127.0.0.1:%d/ until Ctrl-C", config.place, port)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def listening(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1 alone.

    Raises:
        UserError: the port is taken, or not allowed.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UserError(
            f"port {port} cannot be used ({error.strerror}); name another with --port, or --port 0 for a free one"
        ) from error
    return listener


def main() -> None:
    browse(parse(BrowseConfig))
