"""Training progress: live in a terminal, occasional lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from pipeline.runtime.progress import Progress
from pipeline.text import format_estimate

# Smoothing window of the displayed rates and losses; older steps have less weight.
SMOOTHING_STEPS = 50


class Display:
    """Shows steps, loss by domain, time steps per second, padding, waiting for data and the time left.

    Args:
        row: row of the training log where this part of the run begins; only its ``TOTALS`` are needed.
        num_steps: optimiser step at which the run ends.
    """

    TOTALS = ("step", "timesteps", "padded_timesteps", "seconds", "waited_seconds")

    def __init__(self, row: Mapping[str, float], num_steps: int) -> None:
        self._before, self._num_steps = row, num_steps
        self._step = self._first_step = int(row["step"])
        self._started = time.monotonic()
        self._smooth: dict[str, float] = {}
        self._progress = Progress("training steps", num_steps - self._first_step)
        self._live: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4, get_renderable=self._render)
            self._live.start()

    def update(self, row: Mapping[str, float]) -> None:
        """Update the display with a row of the training log."""
        values = {name: value for name, value in row.items() if "loss" in name}
        values |= {name: row[name] - self._before[name] for name in self.TOTALS}
        self._before, self._step = row, int(row["step"])
        for name, value in values.items():
            share = 1 / min(SMOOTHING_STEPS, self._step - self._first_step)
            self._smooth[name] = value if name not in self._smooth else self._mix(name, value, share)
        if self._live is None:
            self._progress.advance(1, f"loss {row['loss']:.4f}, {self._rates()}")

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _mix(self, name: str, value: float, share: float) -> float:
        return self._smooth[name] + share * (value - self._smooth[name])

    def _rates(self) -> str:
        smooth = self._smooth
        return (
            f"{smooth['timesteps'] / smooth['seconds']:,.0f} timesteps/s, "
            f"{100 * (1 - smooth['timesteps'] / smooth['padded_timesteps']):.1f} % padding, "
            f"{100 * smooth['waited_seconds'] / smooth['seconds']:.1f} % waiting"
        )

    def _render(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        if not self._smooth:
            return "waiting for the first step"
        done = self._step - self._first_step
        left = (time.monotonic() - self._started) / done * (self._num_steps - self._step)
        table = Table.grid(padding=(0, 2))
        table.add_row("step", f"{self._step:,} of {self._num_steps:,}, about {format_estimate(left)} left")
        table.add_row("speed", self._rates())
        for name in sorted(name for name in self._smooth if "loss" in name):
            table.add_row(name, f"{self._smooth[name]:.4f}")
        return Group(ProgressBar(self._num_steps, self._step), table)
