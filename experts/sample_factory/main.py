"""Main process of a Sample Factory training; started by ``train.py``, not by hand.

    python -m experts.sample_factory.main SETTINGS.json < lifeline > progress

Standard input is the lifeline to the process that started this one. The line ``stop`` ends the training with a
checkpoint. End of file means that the parent has died for whatever reason. Then this process kills its process group,
because Sample Factory's processes would survive. If this process itself is killed, its child processes notice within a
second and do the same.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from experts.sample_factory.adaptations import apply, speed_up


def end_with_parent() -> None:
    """In a process started by Sample Factory: kill the process group when the main process has died.

    ``PR_SET_PDEATHSIG`` cannot be used: it fires when the parent thread ends, and Sample Factory starts some of its
    processes from a short-lived thread.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def hold_lifeline(stop_asked: threading.Event) -> None:
    """Read commands from standard input until end of file, then kill the process group."""

    def read() -> None:
        with os.fdopen(os.dup(0), "rb") as lines:
            for line in lines:
                if line.strip() == b"stop":
                    stop_asked.set()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=read, name="lifeline", daemon=True).start()


def take_progress() -> IO[str]:
    """Reserve standard output for progress messages; redirect all other output to standard error."""
    progress = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return progress


def main() -> None:
    if os.getpgrp() != os.getpid():
        sys.exit("experts.sample_factory.main must lead a process group: it is started by experts.sample_factory.train")
    stop_asked = threading.Event()
    hold_lifeline(stop_asked)
    progress = take_progress()

    from sample_factory.cfg.arguments import parse_sf_args
    from sample_factory.envs.env_utils import register_env
    from sample_factory.utils.attr_dict import AttrDict

    from experts.sample_factory.envs import make_training_env
    from experts.sample_factory.runner import SupervisedRunner
    from pipeline.files import read_json

    settings: dict[str, Any] = read_json(Path(sys.argv[1]))
    register_env(settings["env"], make_training_env)
    _, defaults = parse_sf_args(["--env", settings["env"]])
    runner = SupervisedRunner(AttrDict(vars(defaults) | settings), progress, stop_asked)
    if runner.init() == 0:
        runner.run()
    runner.report(succeeded=runner.succeeded, failure=runner.failure)


if __name__ == "__mp_main__":
    end_with_parent()
    apply()
    speed_up()
if __name__ == "__main__":
    apply()
    speed_up()
    main()
