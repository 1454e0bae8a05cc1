from __future__ import annotations

from pathlib import Path

import pytest

from experts import queue
from experts.algorithms import ALGORITHMS
from experts.queue.entries import QueueEntry, check_entries, read_entries
from experts.training import TrainJob
from pipeline.envs.registry import select_tasks
from pipeline.errors import UserError
from pipeline.files import write_json
from tests.experts.queue.command import FAKE


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "queue.toml"
    path.write_text(text)
    return path


def test_entries_are_in_the_order_of_the_file_with_its_budgets(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        [[training]]  # by hand
        task = "mujoco-walker, mujoco-ant"
        algorithm = "ppo"
        steps = 1_000
        core_hours = 1.5
        patience = 7
        [[training]]
        task = "atari-p[io]*"
        target = -3
        """,
    )
    first = QueueEntry("mujoco-walker", "ppo", 1000, 1.5, None, 7)
    games = [QueueEntry(f"atari-{game}", "ppo-cpu", target=-3) for game in ("pitfall", "pong")]
    assert read_entries(path) == [first, QueueEntry("mujoco-ant", "ppo", 1000, 1.5, None, 7), *games]
    (task,) = select_tasks("mujoco-walker")
    job = TrainJob(task, "ppo", tmp_path, steps=1000, patience=7, core_seconds=5400.0, is_queued=True)
    assert first.job(tmp_path) == job
    assert job.folder == tmp_path / "queue" / "mujoco-walker" / "ppo"


ONE = '[[training]]\ntask = "mujoco-ant"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"queue.toml: it must hold tables \[\[training\]\]"),
        ("training = 3", r"must hold tables"),
        ("training = []", r"must hold tables"),
        (ONE + "[defaults]\nsteps = 3", r"unknown: defaults; it must hold tables"),
        ("[[training]\n", r"queue.toml is not TOML \(.*line 1"),
        ('[[training]]\nalgorithm = "ppo"', r"training 1: it names no task"),
        ('[[training]]\ntask = 3', r"training 1: task is 3; it must be a name in quotes"),
        ('[[training]]\ntask = "mujoco-ent"', r"training 1: no task matches 'mujoco-ent'; nearest: mujoco-ant"),
        (ONE + "seed = 3", r"training 1: unknown setting 'seed'; allowed: algorithm, core_hours, patience, steps"),
        (ONE + "steps = 0", r"training 1: steps is 0; it must be a whole number above 0"),
        (ONE + "steps = -5", r"steps is -5; it must be a whole number above 0"),
        (ONE + "steps = 1.5", r"steps is 1.5; it must be a whole number above 0"),
        (ONE + "patience = true", r"patience is True; it must be a whole number"),
        (ONE + "core_hours = 0.0", r"core_hours is 0.0; it must be a number above 0"),
        (ONE + "core_hours = -1", r"core_hours is -1; it must be a number above 0"),
        (ONE + "core_hours = inf", r"core_hours is inf; it must be a number above 0"),
        (ONE + 'core_hours = "6"', r"core_hours is '6'; it must be a number above 0"),
        (ONE + "target = nan", r"target is nan; it must be a number"),
        (ONE + 'algorithm = "sac"\n' + ONE + 'algorithm = "ppo"\n' + ONE,
         r"training 3: mujoco-ant with sac is asked for by training 1 already; leave one of them out"),
        ('[[training]]\ntask = "babyai-open"', r"experts of babyai are not trained; its bot solves it"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_meant_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as found:
        read_entries(written(tmp_path, text))
    assert "\n" not in str(found.value)


def test_the_lists_that_come_with_the_package_can_be_trained(tmp_path: Path) -> None:
    lists = sorted(Path(queue.__file__).parents[1].glob("queues/*.toml"))
    assert lists
    for path in lists:
        entries = read_entries(path)
        assert all(entry.steps for entry in entries)
        check_entries(entries, tmp_path)


def test_a_list_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.toml cannot be read \(No such file.*\); pass --queue FILE"):
        read_entries(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (QueueEntry("mujoco-ant", "pppo"), r"unknown algorithm 'pppo'; allowed: ppo, trpo"),
        (QueueEntry("atari-pong", "sac"), r"sac has no recipe for atari-pong; allowed there: .*sample-factory"),
    ],
)
def test_an_algorithm_that_cannot_train_a_task_is_refused(entry: QueueEntry, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        check_entries([QueueEntry("mujoco-ant", "sac"), entry], tmp_path)


def test_packages_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = QueueEntry("mujoco-ant", "sac")
    with monkeypatch.context() as patch:
        patch.setattr("experts.algorithms.importlib.util.find_spec", lambda name: None)
        with pytest.raises(
            UserError, match=r"training with sac needs stable_baselines3, .*`make setup-experts` in a clone"
        ):
            check_entries([entry], tmp_path)

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    import importlib.metadata

    monkeypatch.setattr("pipeline.envs.registry.importlib.metadata.version", version)
    with pytest.raises(
        UserError, match=r"mujoco-ant needs the package \S+, which is not installed; run .*`make setup`"
    ):
        check_entries([entry], tmp_path)


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), (b"another game", "md5|hash|checksum")])
def test_a_game_without_its_rom_is_refused(
    content: bytes | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_entries([QueueEntry("atari-pong", "sample-factory")], tmp_path)
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    if content is not None:
        (tmp_path / "pong.bin").write_bytes(content)
    with pytest.raises(UserError, match=rf"atari-pong has no ROM \(.*({reason}).*reinstall ale-py") as found:
        check_entries([QueueEntry("atari-pong", "sample-factory")], tmp_path)
    assert "\n" not in str(found.value)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS, "fake", FAKE)
    entry = QueueEntry("mujoco-ant", "fake")
    path = tmp_path / "queue" / entry.name / "checkpoint.json"
    write_json(path, {"network": "small"})
    check_entries([entry], tmp_path)
    write_json(path, {"network": "large"})
    with pytest.raises(UserError, match="mujoco-ant/fake was made with another network; remove it"):
        check_entries([entry], tmp_path)
