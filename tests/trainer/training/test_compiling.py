from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from tests.fakes import FAKE_TASKS
from trainer.config import BaseModelConfig, TrainConfig
from trainer.train import train
from trainer.training.compiling import check_compiler
from trainer.training.logs import read_log

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., TrainConfig]

HAS_COMPILER = bool(
    shutil.which(os.environ.get("CXX", "g++")) and Path(sysconfig.get_paths()["include"], "Python.h").exists()
)


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler, or no Python.h: apt-get install g++ python3-dev")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own tracing
def test_compiled_blocks_give_the_same_curve_and_are_compiled_once(make_config: MakeConfig, run_dir: Path) -> None:
    from torch._dynamo.utils import counters

    model = BaseModelConfig(hidden_size=16, num_layers=2, num_heads=2, window_steps=3, discrete_encoder="flat")
    train(make_config(model=model), FAKE_TASKS)
    eager = read_log(run_dir / "train" / "log.jsonl")
    (run_dir / "train").rename(run_dir / "eager")

    torch._dynamo.reset()  # of what other tests have compiled in this process
    counters.clear()
    train(make_config(model=model, compile=True), FAKE_TASKS)
    compiled = read_log(run_dir / "train" / "log.jsonl")
    for name in ("loss", "gradient_norm", "validation_loss"):
        expected = [row[name] for row in eager if name in row]
        assert [row[name] for row in compiled if name in row] == pytest.approx(expected, rel=1e-4), name
    # Two blocks and windows of several lengths, in batches of several sizes: once for all of them, once for windows of
    # one step, and once more for those of two or three if a longer one came first; the other graph is that of the
    # compiler's test.
    assert counters["stats"]["unique_graphs"] in (3, 4)


def test_compiling_without_a_compiler_is_refused_before_work(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UserError, match="--compile needs a C\\+\\+ compiler, and there is no no-such-compiler: install"
    ):
        train(make_config(compile=True), FAKE_TASKS)
    assert not (run_dir / "train" / "log.jsonl").exists()


def test_a_compiler_that_does_not_work_is_named_with_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(function: Any) -> Any:
        def call(x: torch.Tensor) -> torch.Tensor:
            raise torch._inductor.exc.CppCompileError(["g++"], "fatal error: Python.h: No such file or directory")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(UserError, match=r"does not work here \(.*Python.h: No such file.*\); leave --compile out"):
        check_compiler(torch.device("cpu"))
