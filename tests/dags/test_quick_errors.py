"""What is wrong with a command's input is said before torch, Ray or a simulator is imported, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.files import write_json
from pipeline.run_layout import RunLayout
from trainer.training.logs import TrainManifest

CODE = """
import json, resource, sys
from dags.cli import main
try:
    main()
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    slow = [name for name in ("torch", "ray", "mujoco", "datasets", "matplotlib") if name in sys.modules]
    print(json.dumps([used.ru_utime + used.ru_stime, slow]))
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose training says what it was trained on, and has no weights."""
    out = tmp_path_factory.mktemp("run")
    step = "train/checkpoints/step-00000004"
    write_json(out / step / "config.json", {"tasks": ["metaworld-reach"]})
    write_json(RunLayout(out).train_manifest, TrainManifest(step, "d", 4, 4, 4, 1.0, 0.0))
    (out / "file").touch()
    return out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("evaluate --out OUT/empty", "no finished training in"),
        ("evaluate --out OUT --task mujoco-ant", "the checkpoint was not trained on mujoco-ant, only on"),
        ("evaluate --out OUT --task metaworld-raech", "no task matches"),
        ("evaluate --out OUT/empty --checkpoint OUT/nothing", "neither a folder nor a repository"),
        ("evaluate --out OUT --checkpoint OUT/file", "is a file; give the folder that it is in"),
        ("agent play --out OUT/empty --task atari-alien", "the checkpoint was not trained on atari-alien, only on"),
        ("agent play --out OUT --task mujoco-ant", "the checkpoint was not trained on mujoco-ant, only on"),
        ("agent play --out OUT --task metaworld-raech", "no task matches"),
        ("agent play --out OUT/empty --task metaworld-reach --checkpoint OUT/nothing", "neither a folder nor"),
        ("agent generate --checkpoint OUT/nothing --prompt x", "neither a folder nor"),
        ("agent generate --checkpoint OUT --prompt x --image OUT/nothing", "is not a file"),
        ("agent curve --out OUT/empty", "no checkpoints in"),
        ("agent publish --out OUT/empty --to owner/name", "no finished training in"),
        ("train --out OUT/empty", "there is no dataset in"),
        ("train --out OUT/file/run", "cannot be a folder: "),
        ("train --out s3://bucket/run --recipe s", "on-disk --stage train --out s3://bucket/run -- --recipe s"),
        ("evaluate --out s3://bucket/run", "run `jat on-disk --stage evaluate --out s3://bucket/run --`"),
        ("film --out OUT/empty", "there is no evaluation in"),
        ("report --out OUT/empty", "nothing is evaluated in"),
        ("dataset --out OUT/empty", "nothing is collected in"),
        ("dataset --out s3://bucket/run", "run `jat on-disk --stage dataset --out s3://bucket/run --`"),
        ("dataset validate --dataset OUT/nothing", "is no folder"),
        ("dataset replay --out OUT/empty --task metaworld-reach --seed 0", "has no episodes of metaworld-reach"),
        ("publish --out OUT/empty --to owner/name", "holds no finished dataset"),
        ("publish --out s3://KEY:s3cret@bucket/run --to owner/name", "s3://[hidden]@bucket/run carries credentials"),
        ("collect --out OUT/empty --task metaworld-raech", "no task matches"),
        ("collect --out OUT/file/run --task metaworld-reach", "is a file; choose another"),
        ("collect --out OUT/empty --task metaworld-reach --expert nobody", "means no measured expert"),
        ("experts --out OUT/empty --task metaworld-raech", "no task matches"),
        ("experts --out OUT/empty --task metaworld-reach --expert OUT/no.zip", "no.zip does not exist; expected"),
        ("corpora --out OUT/empty --task wikipaedia", "no corpus matches"),
        ("corpora --out OUT/empty --task wikipedia --source wikipedia=OUT/nothing", "there is no file or folder"),
        ("rates --out OUT/empty", "run `jat collect`"),
        ("plan --task metaworld-raech", "no task matches"),
        ("chain --first expert", "unknown stage"),
        ("on-disk --stage training --out s3://bucket/run", "--stage is 'training'; allowed"),
    ],
)  # fmt: skip
def test_an_error_that_needs_neither_torch_nor_a_simulator_takes_no_time(words: str, problem: str, out: Path) -> None:
    arguments = words.replace("OUT", str(out)).split()
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and problem in line, done.stderr
    assert "Traceback" not in done.stderr and "s3cret" not in done.stderr
    seconds, slow = json.loads(done.stdout.splitlines()[-1])
    assert slow == []
    # Of the processor, since others may use the machine: about half of it where nobody does.
    assert seconds < 2.0
