"""Training progress: live in a terminal, occasional lines in a log file."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from pipeline.runtime.progress import Progress
from pipeline.text import format_estimate
from trainer.training.budget import TrainingBudget

# Smoothing window of the displayed rates and losses; older steps have less weight.
SMOOTHING_STEPS = 50


class Display:
    """Shows steps, loss by domain, time steps per second, padding, waiting for data and the time left.

    Args:
        row: row of the training log where this part of the run begins; only its ``TOTALS`` are needed.
        budget: end of the run.
    """

    TOTALS = ("step", "timesteps", "padded_timesteps", "seconds", "waited_seconds")

    def __init__(self, row: Mapping[str, float], budget: TrainingBudget) -> None:
        self._before, self._first, self._budget = row, row, budget
        self._started = time.monotonic()
        self._smooth: dict[str, float] = {}
        self._progress = Progress(budget.label, math.ceil(budget.left(row)))
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
        amount = math.ceil(self._budget.left(self._before)) - math.ceil(self._budget.left(row))
        self._before = row
        for name, value in values.items():
            share = 1 / min(SMOOTHING_STEPS, row["step"] - self._first["step"])
            self._smooth[name] = value if name not in self._smooth else self._mix(name, value, share)
        if self._live is None:
            self._progress.advance(amount, f"loss {row['loss']:.4f}, {self._rates()}")

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
        total, left = self._budget.amount, self._budget.left(self._before)
        done = self._budget.left(self._first) - left
        seconds = (time.monotonic() - self._started) / max(done, 1e-9) * left
        table = Table.grid(padding=(0, 2))
        table.add_row(self._budget.unit, f"{total - left:,.0f} of {total:,.0f}, about {format_estimate(seconds)} left")
        table.add_row("speed", self._rates())
        for name in sorted(name for name in self._smooth if "loss" in name):
            table.add_row(name, f"{self._smooth[name]:.4f}")
        return Group(ProgressBar(total, total - left), table)
