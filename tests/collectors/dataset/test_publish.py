"""`jat publish` against a Hub on loopback, with the real client in a process of its own."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from pipeline.files import sha256_of
from tests.collectors.dataset.test_build import TEST, build, write, write_task
from tests.fakes import FAKE_COUNT, FAKE_GRID
from tests.hub import READER, SECRETS, STRANGER, TOKEN, LoopbackHub, serve_hub, wait_until


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    for task in (FAKE_COUNT, FAKE_GRID):
        write_task(out, task)
    build(out)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A run with a finished dataset of two tasks: twelve Parquet files."""
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with serve_hub(tmp_path / "hub", "--page-size=4") as server:
        yield server


def command(out: Path, to: str = "owner/jat", *words: str) -> list[str]:
    return [sys.executable, "-m", "collectors.dataset.publish", "--out", str(out), "--to", to, *words]


def run(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)


def publish(
    hub: LoopbackHub, out: Path, *words: str, to: str = "owner/jat", token: str | None = TOKEN, code: int = 0
) -> str:
    """Run the command, expect an exit code, and no secret in what it says."""
    environment = hub.environment(out.parent / "home", token)
    ran = run(command(out, to, *words), environment)
    said = ran.stdout + ran.stderr
    assert ran.returncode == code, said
    assert "Traceback" not in said
    assert not [secret for secret in SECRETS if secret in said], said
    return said


def names(dataset: Path) -> list[str]:
    return sorted(path.relative_to(dataset).as_posix() for path in dataset.rglob("*") if path.is_file())


def is_large(name: str) -> bool:
    """Whether a file goes to the storage of large files; text is in the commit."""
    return name.endswith((".parquet", ".png"))


def num_commits(hub: LoopbackHub) -> int:
    return len(hub.repository()["commits"])


def assert_published(hub: LoopbackHub, dataset: Path, revision: str = "main", besides: tuple[str, ...] = ()) -> None:
    assert sorted(set(hub.tree(revision)) - set(besides)) == sorted([*names(dataset), "SHA256SUMS"])
    for name in names(dataset):
        assert hub.content(name, revision) == (dataset / name).read_bytes(), name


def commit_by_hand(hub: LoopbackHub, path: str, content: bytes = b"hello") -> None:
    """What somebody else does on the web page."""
    lines: list[Any] = [
        {"key": "header", "value": {"summary": "by hand"}},
        {"key": "file", "value": {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}},
    ]
    request = urllib.request.Request(
        f"{hub.url}/api/datasets/owner/jat/commit/main",
        data="\n".join(map(json.dumps, lines)).encode(),
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    urllib.request.urlopen(request, timeout=30).close()


def read_back(hub: LoopbackHub, home: Path) -> tuple[Any, Any]:
    """The training episodes as ``load_dataset`` gives them, downloaded and streamed."""
    code = (
        "import json; from datasets import load_dataset; where = ('owner/jat', 'fake-count'); "
        "print(json.dumps([list(load_dataset(*where, split='train', streaming=s)) for s in (False, True)]))"
    )
    downloaded, streamed = json.loads(hub.run_script(code, home=home, token=TOKEN))
    return downloaded, streamed


def test_a_dataset_goes_up_private_in_one_commit_and_opens_from_there(out: Path, tmp_path: Path) -> None:
    dataset = out / "dataset"
    # Parts of 3 kB, so that some files go up in several.
    with serve_hub(tmp_path / "hub", "--part-size=3000") as hub:
        assert "dry" not in publish(hub, out, "--tag", "v1")
        assert hub.repository()["private"]
        assert num_commits(hub) == 2  # the first is the repository's own
        assert_published(hub, dataset)
        assert_published(hub, dataset, "v1")
        requests = [entry["request"] for entry in hub.log]
        assert sum("/_storage/complete/" in request for request in requests) > 0
        assert sum(request.endswith("/lfs/verify") for request in requests) == 12 + 2  # Parquet, plots
        assert not [entry for entry in hub.log if entry["leaked"]], "a token was sent to the storage"
        expected = list(load_dataset(str(dataset), "fake-count", split="train", cache_dir=str(tmp_path / "cache")))
        assert len(expected) == 5
        assert read_back(hub, tmp_path / "home") == (expected, expected)
    # Nothing that was left behind knows the token: journals, logs of the client, manifests, the published files.
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert not [secret for secret in SECRETS if secret.encode() in path.read_bytes()], path


def test_a_dry_run_says_what_would_move_and_moves_nothing(hub: LoopbackHub, out: Path) -> None:
    said = publish(hub, out, "--dry-run")
    assert "20 files to upload" in said
    assert "episodes" in said
    assert not [entry for entry in hub.log if not entry["request"].startswith("GET")]
    publish(hub, out)
    assert "0 files to upload (0.0 MB), 20 already there" in publish(hub, out, "--dry-run")


def test_published_again_nothing_moves(hub: LoopbackHub, out: Path) -> None:
    publish(hub, out)
    hub.forget()
    assert "0 files to upload" in publish(hub, out)
    assert not [entry for entry in hub.log if not entry["request"].startswith(("GET", "HEAD"))]
    assert num_commits(hub) == 2


def test_a_grown_dataset_moves_its_new_files_alone_and_the_old_names_go_in_the_same_commit(
    hub: LoopbackHub, out: Path
) -> None:
    publish(hub, out)
    commit_by_hand(hub, "data/notes.txt")
    hub.forget()
    shard = write(out, FAKE_COUNT, "train", 5, 2)
    build(out)
    said = publish(hub, out)
    plot = sha256_of(out / "dataset" / "card" / "fake.png")
    assert sorted(hub.sent()) == sorted([shard.data.sha256, shard.episodes.sha256, plot])
    assert num_commits(hub) == 4
    # Every name of the split has changed with the number of its files; what somebody else put there stays.
    assert_published(hub, out / "dataset", besides=("data/notes.txt",))
    assert "4 to delete" in said


def test_a_folder_that_holds_the_files_of_two_versions_opens_as_the_one_of_its_card(out: Path, tmp_path: Path) -> None:
    """What a folder or bucket is for a moment, before the new card is there and before the old files are gone."""
    grown = Path(shutil.copytree(out, tmp_path / "grown"))
    write(grown, FAKE_COUNT, "train", 5, 2)
    build(grown)
    for number, (card, other) in enumerate(((out, grown), (grown, out))):
        both = Path(shutil.copytree(other / "dataset", tmp_path / str(number)))
        shutil.copytree(card / "dataset", both, dirs_exist_ok=True)
        rows = load_dataset(str(both), "fake-count", cache_dir=str(tmp_path / "cache" / str(number)))
        assert {split: len(found) for split, found in rows.items()} == {"train": 5 + 2 * number, "test": 2}


def test_one_changed_file_moves_one_file(hub: LoopbackHub, out: Path) -> None:
    publish(hub, out)
    hub.forget()
    card = out / "dataset" / "README.md"
    card.write_text(card.read_text() + "\nA line more.\n")
    assert "2 files to upload" in publish(hub, out)  # with the list of checksums
    assert hub.sent() == []  # both go in the commit itself
    assert_published(hub, out / "dataset")


def test_killed_in_the_middle_nothing_is_seen_and_going_on_sends_only_the_rest(
    hub: LoopbackHub, out: Path, tmp_path: Path
) -> None:
    hub.fail({"match": "PUT /_storage", "skip": 4, "times": 100, "bytes_per_s": 200})
    killed = subprocess.Popen(
        command(out), env=hub.environment(tmp_path / "home"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: len(hub.sent()) >= 4, "four files arrive")
    killed.kill()
    killed.wait()
    assert hub.tree() == {}
    arrived = hub.sent()
    hub.fail()
    hub.forget()
    publish(hub, out)
    sent = hub.sent()
    assert len(arrived) >= 4
    assert not set(arrived) & set(sent)
    large = [path for path in (out / "dataset").rglob("*") if is_large(path.name)]
    assert sorted(arrived + sent) == sorted(map(sha256_of, large))
    assert num_commits(hub) == 2
    assert_published(hub, out / "dataset")


def test_what_passes_is_waited_for(hub: LoopbackHub, out: Path) -> None:
    wait = {"headers": {"Retry-After": "2"}}
    hub.fail(
        {"match": "GET /api/whoami", "status": 429, **wait},
        {"match": "POST .*/preupload", "status": 429, **wait},
        {"match": "PUT /_storage", "status": 500, "times": 2},
        {"match": "PUT /_storage", "skip": 3, "reset_after": 1000},
        {"match": "POST .*/commit/", "status": 503, "headers": {"Retry-After": "3"}},
    )
    said = publish(hub, out)
    assert_published(hub, out / "dataset")
    assert num_commits(hub) == 2
    assert "429" in said
    assert [entry["received"] for entry in hub.log if entry["status"] == 0] == [1000]  # the one that was cut off
    for request, seconds in (("GET /api/whoami-v2", 2), ("POST /api/datasets/owner/jat/commit/main", 3)):
        times = [entry["time"] for entry in hub.log if entry["request"] == request]
        assert len(times) == 2, request
        assert times[1] - times[0] >= seconds, request


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub: LoopbackHub, out: Path) -> None:
    hub.fail({"match": "POST .*/commit/", "lose_answer": True})
    publish(hub, out, "--tag", "v1")
    assert num_commits(hub) == 2
    assert_published(hub, out / "dataset", "v1")


def test_a_change_by_somebody_else_meanwhile_is_not_overwritten(hub: LoopbackHub, out: Path, tmp_path: Path) -> None:
    publish(hub, out)
    write(out, FAKE_GRID, "test", TEST + 2, 2)
    build(out)
    hub.forget()
    hub.fail({"match": "PUT /_storage", "bytes_per_s": 2000})
    log = tmp_path / "log"
    with log.open("w") as handle:
        running = subprocess.Popen(
            command(out), env=hub.environment(tmp_path / "home"), stdout=handle, stderr=subprocess.STDOUT
        )
    wait_until(lambda: any("objects/batch" in entry["request"] for entry in hub.log), "the upload begins")
    commit_by_hand(hub, "README.md")
    assert running.wait(60) == 2
    assert "owner/jat has changed while this was uploaded; run the same command again" in log.read_text()
    assert hub.content("README.md") == b"hello"
    publish(hub, out)
    assert_published(hub, out / "dataset")


def test_what_the_hub_leaves_out_is_noticed(hub: LoopbackHub, out: Path) -> None:
    publish(hub, out)
    commit_by_hand(hub, ".gitignore", b"README.md\n")
    (out / "dataset" / "README.md").write_text("new")
    assert "has left out 1 file (README.md); take them out of its .gitignore" in publish(hub, out, code=2)


def test_a_branch_is_made_and_main_stays(hub: LoopbackHub, out: Path) -> None:
    publish(hub, out)
    card = out / "dataset" / "README.md"
    before = card.read_bytes()
    card.write_bytes(before + b"\nAnother.\n")
    publish(hub, out, to="hf://datasets/owner/jat@next/try")
    assert_published(hub, out / "dataset", "next/try")
    assert hub.content("README.md") == before
    said = publish(hub, out, "--tag", "v1", "--branch", "next/try")
    assert "0 files to upload" in said
    assert hub.repository()["tags"]["v1"] == hub.repository()["branches"]["next/try"]
    assert "has a tag v1 already" in publish(hub, out, "--tag", "v1", code=2)


def test_a_public_repository_is_published_to_only_on_purpose(hub: LoopbackHub, out: Path) -> None:
    publish(hub, out, "--public")
    assert not hub.repository()["private"]
    (out / "dataset" / "README.md").write_text("new")
    assert "owner/jat is public" in publish(hub, out, code=2)
    publish(hub, out, "--public")
    assert hub.content("README.md") == b"new"


@pytest.mark.parametrize(
    ("token", "words", "message"),
    [
        (None, (), "no credentials for the Hub; set HF_TOKEN"),
        ("hf_nobody_knows_this_one", (), "the Hub refuses the token"),
        (READER, (), "may only read"),
        (STRANGER, (), "may not write to dataset owner/jat"),
        (TOKEN, ("--no-create",), "there is no dataset owner/jat"),
    ],
)
def test_who_may_not_is_told_in_one_line(
    hub: LoopbackHub, out: Path, token: str | None, words: tuple[str, ...], message: str
) -> None:
    said = publish(hub, out, *words, token=token, code=2).splitlines()
    assert said[-1].startswith("error: ")
    assert message in said[-1]
    assert not [entry for entry in hub.log if entry["request"].startswith("PUT")]
    assert not (hub.folder / "state.json").exists()


def test_a_server_that_repeats_the_token_does_not_make_us_repeat_it(hub: LoopbackHub, out: Path) -> None:
    hub.fail({"match": "POST .*/preupload", "status": 400, "message": f"bad header Bearer {TOKEN}", "times": 9})
    assert "bad header Bearer [hidden]" in publish(hub, out, code=2)


def test_a_full_store_is_one_line_and_shows_nothing(hub: LoopbackHub, out: Path) -> None:
    hub.fail({"match": "PUT /_storage", "status": 507, "message": "quota of 100 GB reached", "times": 100})
    assert "no room for dataset owner/jat on the Hub (HTTP 507: quota of 100 GB reached)" in publish(hub, out, code=2)
    assert hub.tree() == {}


def test_without_a_network_it_says_so_at_once(hub: LoopbackHub, out: Path) -> None:
    hub.process.kill()
    hub.process.wait()
    assert f"{hub.url} cannot be reached" in publish(hub, out, code=1)


def test_a_model_is_published_by_the_same_code(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "manifest.json").write_text("{}")
    code = (
        "from pathlib import Path; from pipeline.publishing.publish import Options, publish; "
        f"publish(Path({str(folder)!r}), [], 'manifest.json', 'hf://owner/agent', 'model', "
        f"Path({str(tmp_path / 'records')!r}), Options(tag='v1'))"
    )
    with serve_hub(tmp_path / "hub") as hub:
        hub.run_script(code, home=tmp_path / "home", token=TOKEN)
        assert hub.repository("owner/agent", "model")["private"]
        assert hub.sent() == [sha256_of(folder / "weights.safetensors")]


def test_the_client_s_chunks_go_to_a_store_of_chunks(out: Path, tmp_path: Path) -> None:
    """By Xet, in the real client: the server only says where, the store is a folder."""
    with serve_hub(tmp_path / "hub", "--xet") as hub:
        environment = hub.environment(tmp_path / "home")
        del environment["HF_HUB_DISABLE_XET"]
        for expected in ("20 files to upload", "0 files to upload"):
            ran = run(command(out), environment)
            assert ran.returncode == 0, ran.stderr
            assert expected in ran.stderr
        assert num_commits(hub) == 2
        large = {name: blob["sha256"] for name, blob in hub.tree().items() if blob["sha256"]}
        assert large == {name: sha256_of(out / "dataset" / name) for name in names(out / "dataset") if is_large(name)}
        chunks = [path for path in (tmp_path / "hub" / "xet").rglob("default.*") if path.suffix != ".tagset"]
        sizes = [(out / "dataset" / name).stat().st_size for name in large]
        assert 0 < sum(path.stat().st_size for path in chunks) <= 1.1 * sum(sizes)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
