"""Everything dies at random while episodes are collected; what comes out equals an undisturbed run.

``make chaos`` runs all of it, about ten minutes; the short form is part of the tests.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from pipeline.files import sha256_of
from pipeline.storage.shards import finished_shards

pytestmark = pytest.mark.slow

# A bot, a script, and networks trained with Stable-Baselines3 (PPO and SAC) from the embedded store.
TASKS = "babyai-go-to-local,metaworld-reach,mujoco-pendulum,mujoco-reacher"
LIMIT_S = 600


def start(out: Path, tasks: str, episodes: str, *rest: str) -> subprocess.Popen[bytes]:
    out.mkdir(parents=True, exist_ok=True)
    with (out / "collector.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.collector", str(out), tasks, episodes, *rest],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def finish(out: Path, tasks: str, episodes: str, *rest: str) -> int:
    process = start(out, tasks, episodes, *rest)
    try:
        return process.wait(LIMIT_S)
    finally:
        kill_tree(process)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Nothing a test started outlives it."""
    for name in family(process.pid):
        for one in family(process.pid)[name]:
            kill(one)
    if process.poll() is None:
        process.kill()
    process.wait()


def family(driver: int) -> dict[str, list[psutil.Process]]:
    """The processes of a collector by role: workers (busy or idle), the head (GCS, raylet, agents), the driver."""
    try:
        root = psutil.Process(driver)
        children = root.children(recursive=True)
    except psutil.NoSuchProcess:
        return {}
    roles: dict[str, list[psutil.Process]] = {"worker": [], "head": [], "driver": [root]}
    for child in children:
        try:
            name = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if name.startswith(("ray::Worker", "ray::IDLE")):
            roles["worker"].append(child)
        elif "gcs_server" in name or "raylet/raylet" in name or name.startswith("ray::"):
            roles["head"].append(child)
    return roles


def kill(process: psutil.Process) -> bool:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.Error:
        return False
    return True


def checksums(out: Path) -> dict[str, str]:
    """Of every shard's three files."""
    files = [path for path in (out / "shards").glob("*-*/*-*") if path.name[0] != "."]
    return {str(path.relative_to(out)): sha256_of(path) for path in files}


def rows(out: Path, task: str) -> list[object]:
    """Every row of every data file and side table of a task, in order."""
    found: list[object] = []
    for shard in finished_shards(out / "shards", task):
        for entry in (shard.data, shard.episodes):
            found += pq.read_table(out / "shards" / task / entry.name).to_pylist()
    return found


def assert_equal(out: Path, undisturbed: Path, tasks: str = TASKS) -> None:
    """Same files, same bytes, nothing half-written, no seed twice, and row for row the same."""
    assert checksums(out) == checksums(undisturbed)
    for task in tasks.split(","):
        assert rows(out, task) == rows(undisturbed, task)
        seeds = [seed for shard in finished_shards(out / "shards", task) for seed in shard_seeds(shard)]
        assert len(seeds) == len(set(seeds))
    leftovers = list((out / "shards").rglob(".*.tmp"))
    assert not leftovers, leftovers


def shard_seeds(shard: object) -> range:
    first, count = shard.first_seed, shard.num_seeds  # type: ignore[attr-defined]
    return range(first, first + count)


class Killer:
    """Draws who dies and when, and tells what it did."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.counts = {"worker": 0, "head": 0, "driver": 0}

    def disturb(self, process: subprocess.Popen[bytes], role: str) -> bool:
        """Kill one of a role as soon as there is one, after a moment; False if the collector ended before."""
        time.sleep(self._random.uniform(0.0, 2.5))
        while process.poll() is None:
            there = family(process.pid).get(role, [])
            if role != "driver" and not family(process.pid).get("worker"):
                time.sleep(0.05)  # Ray is still starting
                continue
            if there and kill(self._random.choice(there)):
                self.counts[role] += 1
                return True
            time.sleep(0.05)
        return False

    def role(self) -> str:
        return self._random.choices(["worker", "driver", "head"], [6, 3, 1])[0]


def collect_while_dying(out: Path, episodes: str, killer: Killer, kills: int) -> None:
    """Start the collector again and again, killing it or parts of it, until it has ended well after all kills."""
    deadline = time.monotonic() + 1800
    done = 0
    while True:
        assert time.monotonic() < deadline, f"not done after {done} kills"
        process = start(out, TASKS, episodes)
        try:
            while done < kills and process.poll() is None:
                role = killer.role()
                if killer.disturb(process, role):
                    done += 1
                if role != "worker":
                    break
            process.wait(LIMIT_S)
        finally:
            kill_tree(process)
        if process.returncode == 0 and done >= kills:
            return
        if process.returncode == 0:  # nothing left to disturb: make some of it anew, alone
            for path in random.Random(done).sample(sorted((out / "shards").glob("*-*/*-*.json")), 12):
                path.unlink()


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experts of ``TASKS``, measured in a few episodes."""
    out = tmp_path_factory.mktemp("prepared")
    command = [sys.executable, "-m", "experts.prepare", "--task", TASKS, "--episodes", "5", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out / "experts"


@pytest.fixture
def out(tmp_path: Path, experts: Path) -> Path:
    """Root of a run whose experts are there."""
    shutil.copytree(experts, tmp_path / "experts")
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, experts: Path) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(experts, out / "experts")
    assert finish(out, TASKS, "48") == 0, (out / "collector.log").read_text()[-3000:]
    yield out


@pytest.mark.timeout(600)
def test_a_few_kills_leave_no_trace(undisturbed: Path, out: Path) -> None:
    killer = Killer(1)
    for role in ("worker", "driver"):
        process = start(out, TASKS, "48")
        try:
            assert killer.disturb(process, role), (out / "collector.log").read_text()[-3000:]
            if role == "worker":
                assert process.wait(LIMIT_S) == 0, (out / "collector.log").read_text()[-3000:]
                for path in sorted((out / "shards").glob("*-*/*-*.json"))[::2]:
                    path.unlink()
        finally:
            kill_tree(process)
    assert finish(out, TASKS, "48") == 0, (out / "collector.log").read_text()[-3000:]
    assert_equal(out, undisturbed)


@pytest.mark.chaos
@pytest.mark.timeout(2400)
def test_thirty_random_kills_leave_no_trace(undisturbed: Path, out: Path, chaos_seed: int) -> None:
    killer = Killer(chaos_seed)
    collect_while_dying(out, "48", killer, 30)
    print(f"killed {killer.counts}")
    assert sum(killer.counts.values()) >= 30
    assert all(killer.counts.values()), killer.counts
    assert_equal(out, undisturbed)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_damaged_shard_is_found_by_its_checksum_and_made_again_alone(
    undisturbed: Path, out: Path, chaos_seed: int
) -> None:
    draw = random.Random(chaos_seed + 1)
    assert finish(out, TASKS, "48") == 0
    whole = checksums(out)
    for damage in ("truncate", "flip", "delete"):
        victim = out / draw.choice(sorted(name for name in whole if name.endswith("8.parquet")))
        before = {name: (out / name).stat().st_mtime_ns for name in whole}
        data = victim.read_bytes()
        if damage == "truncate":
            victim.write_bytes(data[: draw.randrange(1, len(data))])
        elif damage == "flip":
            place = draw.randrange(len(data))
            victim.write_bytes(data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :])
        else:
            victim.unlink()
        build = subprocess.run(
            [sys.executable, "-m", "collectors.dataset.build", "--out", str(out), "--task", TASKS],
            capture_output=True,
            text=True,
            check=False,
        )
        if damage == "flip":  # same size: only the checksum tells, and the message says what to do
            assert build.returncode == 2, build.stderr
            assert f"{victim}: the file is damaged" in build.stderr
            victim.unlink()
        assert finish(out, TASKS, "48") == 0
        assert checksums(out) == whole, damage
        stem = victim.name.removesuffix(".parquet").removesuffix(".episodes")
        touched = {name for name in whole if (out / name).stat().st_mtime_ns != before[name]}
        assert {Path(name).name.split(".")[0] for name in touched} == {stem}, damage
    assert_equal(out, undisturbed)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_costs_nothing_that_was_there(undisturbed: Path, tmp_path: Path, experts: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    size = occupied(experts) + occupied(undisturbed / "shards") // 2
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mounted)], check=False).returncode:
        pytest.skip("this system lets nobody mount")
    try:
        out = mounted / "run"
        shutil.copytree(experts, out / "experts")
        log = tmp_path / "log"
        log.mkdir()
        code = run_in(out, log)
        assert code == 1, (log / "collector.log").read_text()[-3000:]
        assert "No space left on device" in (log / "collector.log").read_text()
        kept = checksums(out)
        subprocess.run(["mount", "-o", "remount,size=256m", str(mounted)], check=True)
        assert run_in(out, log) == 0
        now = checksums(out)
        assert {name: now[name] for name in kept if name.endswith(".json")} == {
            name: digest for name, digest in kept.items() if name.endswith(".json")
        }
        assert_equal(out, undisturbed)
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=False)


def occupied(folder: Path) -> int:
    """Bytes of the pages that the files of a folder fill."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def run_in(out: Path, log: Path) -> int:
    """``finish`` with the log elsewhere: there is no room for it."""
    with (log / "collector.log").open("ab") as handle:
        return subprocess.run(
            [sys.executable, "-m", "tests.chaos.collector", str(out), TASKS, "48"],
            stdout=handle,
            stderr=handle,
            check=False,
            timeout=LIMIT_S,
        ).returncode


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_of_two_collectors_one_works_and_the_other_says_so(undisturbed: Path, out: Path) -> None:
    first = start(out, TASKS, "48")
    try:
        while not (out / "shards" / TASKS.split(",")[0] / "plan.json").exists():
            assert first.poll() is None
            time.sleep(0.05)
        second = subprocess.run(
            [sys.executable, "-m", "tests.chaos.collector", str(out), TASKS, "48"],
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        assert second.returncode == 2
        assert "another process works on" in second.stderr
        assert first.wait(LIMIT_S) == 0
    finally:
        kill_tree(first)
    assert_equal(out, undisturbed)
