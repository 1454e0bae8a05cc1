"""Publishing to a folder and to a real S3 server process; what a target and a directory must be like."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.files import location, sha256_of
from pipeline.publishing.inventory import CHECKSUMS, UNKNOWN, format_checksums, parse_checksums
from pipeline.publishing.publish import Options, parse_target, publish
from pipeline.publishing.publish_files import Place
from pipeline.publishing.publish_hub import HubOptions
from pipeline.storage.manifest import FileEntry
from tests.collectors.test_cluster_address import free_port
from tests.collectors.test_cluster_nodes import S3, background, end, wait_for
from tests.hub import wait_until

LAST = "manifest.json"
FILES = {
    "data/a/train-00000-of-00002.parquet": b"one" * 1000,
    "data/a/train-00001-of-00002.parquet": b"two" * 2000,
    "episodes/a/train-00000-of-00002.parquet": b"side",
    "pictures/a.png": b"picture",
    "README.md": b"# card",
    LAST: b"{}",
}
SECRET = "sentinel+secret/key000000000000"


def write_files(directory: Path, files: dict[str, bytes]) -> list[FileEntry]:
    """A finished directory, and what its manifest says of data and side tables."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
    return entries_of(directory)


def entries_of(directory: Path) -> list[FileEntry]:
    files = sorted(path for kind in ("data", "episodes") for path in (directory / kind).rglob("*.parquet"))
    return [FileEntry(path.relative_to(directory).as_posix(), path.stat().st_size, sha256_of(path)) for path in files]


def send(directory: Path, to: str, entries: Sequence[FileEntry] | None = None, **options: Any) -> Any:
    entries = entries_of(directory) if entries is None else entries
    return publish(directory, entries, LAST, to, "dataset", directory.parent / "records", Options(**options))


def contents(to: str) -> dict[str, bytes]:
    root: Any = location(to)
    if isinstance(root, Path):
        paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in paths.items()}
    root.fs.invalidate_cache()
    prefix = root.path.rstrip("/") + "/"
    # s3fs names the folder itself as a file if the first file arrives while it looks.
    names = [name for name in root.fs.find(root.path) if name.startswith(prefix)]
    return {name.removeprefix(prefix): root.fs.cat_file(name) for name in names}


def expected(directory: Path) -> dict[str, bytes]:
    files = contents(str(directory))
    return files | {CHECKSUMS: format_checksums({name: sha256_of(directory / name) for name in files}).encode()}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_files(tmp_path / "out" / "dataset", FILES)
    return tmp_path / "out" / "dataset"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    port = free_port()
    server = background([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], {})
    try:
        wait_for(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(server)


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket of an S3 server, which this process and its children find."""
    import boto3
    import s3fs

    for name, value in {**S3, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    name = f"lab{len(client.list_buckets()['Buckets'])}"
    client.create_bucket(Bucket=name)
    s3fs.S3FileSystem.clear_instance_cache()
    return f"s3://{name}/jat"


@pytest.fixture(params=["folder", "s3"])
def to(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "there") if request.param == "folder" else str(request.getfixturevalue("bucket"))


def test_all_files_arrive_with_a_list_that_sha256sum_accepts(directory: Path, to: str, tmp_path: Path) -> None:
    plan = send(directory, to)
    assert len(plan.upload) == 7
    assert contents(to) == expected(directory)
    for name, content in contents(to).items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    subprocess.run(["sha256sum", "--check", "--strict", CHECKSUMS], cwd=tmp_path / "copy", check=True)


def test_published_again_nothing_moves_not_even_from_another_machine(directory: Path, to: str) -> None:
    send(directory, to)
    assert send(directory, to).is_empty
    shutil.rmtree(directory.parent / "records")
    plan = send(directory, to)
    assert plan.is_empty
    assert len(plan.same) == 7


def test_a_changed_file_moves_alone_and_what_left_the_directory_is_deleted(directory: Path, to: str) -> None:
    send(directory, to)
    foreign: Any = location(to) / "data" / "of-others.parquet"
    foreign.write_bytes(b"theirs")
    (directory / "data/a/train-00001-of-00002.parquet").unlink()
    (directory / "data/a/train-00000-of-00002.parquet").write_bytes(b"ONE" * 1000)  # of the same size
    plan = send(directory, to)
    assert [item.name for item in plan.upload] == ["data/a/train-00000-of-00002.parquet", CHECKSUMS]
    assert plan.delete == ("data/a/train-00001-of-00002.parquet",)
    assert contents(to) == {**expected(directory), "data/of-others.parquet": b"theirs"}


def test_a_reader_finds_a_whole_dataset_at_every_moment(
    directory: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old files and manifest until all new data is there, then the new manifest, and only then the deletions."""
    send(directory, to)
    shutil.rmtree(directory)
    grown = {name.replace("-of-00002", "-of-00003"): content for name, content in FILES.items()}
    grown |= {"data/a/train-00002-of-00003.parquet": b"three", LAST: b'{"new": 1}'}
    write_files(directory, grown)
    before, seen = contents(to), []
    put, delete = Place._put, Place._delete

    def watched_put(self: Place, item: Any) -> None:
        seen.append(contents(to))
        put(self, item)

    def watched_delete(self: Place, name: str) -> None:
        seen.append(contents(to))
        delete(self, name)

    monkeypatch.setattr(Place, "_put", watched_put)
    monkeypatch.setattr(Place, "_delete", watched_delete)
    send(directory, to)
    assert len(seen) >= 8
    for state in seen:
        if state[LAST] == b"{}":
            assert {name: state.get(name) for name in FILES if "/" in name} == {
                name: content for name, content in before.items() if "/" in name
            }
        else:
            assert {name: state.get(name) for name in grown} == grown
    is_new = [state[LAST] != b"{}" for state in seen]
    assert is_new == sorted(is_new)
    assert set(is_new) == {False, True}
    assert contents(to) == expected(directory)


def test_going_on_after_a_kill_sends_only_the_rest(directory: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original, sent = Place._put, []

    def dies(self: Place, item: Any) -> None:
        if len(sent) == 3:
            raise KeyboardInterrupt
        original(self, item)
        sent.append(item.name)

    monkeypatch.setattr(Place, "_put", dies)
    with pytest.raises(KeyboardInterrupt):
        send(directory, to)
    assert LAST not in contents(to)
    monkeypatch.setattr(Place, "_put", original)
    plan = send(directory, to)
    assert [item.name for item in plan.same] == sent
    assert len(plan.upload) == 4
    assert contents(to) == expected(directory)


def test_a_process_that_is_killed_leaves_no_manifest_and_the_next_goes_on(
    directory: Path, bucket: str, tmp_path: Path
) -> None:
    write_files(directory, {f"data/a/test-{index:05d}-of-00300.parquet": b"%d" % index for index in range(300)})
    code = (
        "from tests.pipeline.publishing.test_publish import *\n"
        f"publish(Path({str(directory)!r}), [], {LAST!r}, {bucket!r}, 'dataset',"
        f" Path({str(directory.parent / 'records')!r}), Options())"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: len(contents(bucket)) >= 20 or process.poll() is not None, "20 files arrive")
    finally:
        process.kill()
        process.wait()
    arrived = contents(bucket)
    assert 20 <= len(arrived) < 300
    assert LAST not in arrived
    plan = send(directory, bucket)
    # The last one may have arrived without having been noted.
    assert len(arrived) - 1 <= len(plan.same) <= len(arrived)
    assert contents(bucket) == expected(directory)


def test_a_replaced_file_is_not_taken_for_the_old_one_after_a_kill(
    directory: Path, to: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another machine, with the old files, must not believe the list of a publication that never ended."""
    old = Path(shutil.copytree(directory, tmp_path / "other" / "dataset"))
    send(directory, to)
    name = "data/a/train-00000-of-00002.parquet"
    (directory / name).write_bytes(b"ONE" * 1000)
    original = Place._put

    def dies(self: Place, item: Any) -> None:
        original(self, item)
        raise KeyboardInterrupt

    monkeypatch.setattr(Place, "_put", dies)
    with pytest.raises(KeyboardInterrupt):
        send(directory, to)
    assert parse_checksums(contents(to)[CHECKSUMS].decode())[name] == UNKNOWN
    monkeypatch.setattr(Place, "_put", original)
    assert name in [item.name for item in send(old, to).upload]
    assert contents(to) == expected(old)


def test_files_of_others_are_not_overwritten(directory: Path, to: str) -> None:
    theirs: Any = location(to) / "README.md"
    theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.write_bytes(b"their notes")
    with pytest.raises(UserError, match=r"holds files that were not published from here \(README.md\)"):
        send(directory, to)
    assert contents(to) == {"README.md": b"their notes"}


def test_a_list_of_others_makes_nothing_ours(directory: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    theirs = {"photo.jpg": b"photo", CHECKSUMS: f"{'0' * 64}  photo.jpg\n".encode()}
    there.mkdir()
    for name, content in theirs.items():
        (there / name).write_bytes(content)
    with pytest.raises(UserError, match=r"holds files that were not published from here \(SHA256SUMS\)"):
        send(directory, str(there))
    assert contents(str(there)) == theirs


def test_a_dry_run_writes_nothing(directory: Path, to: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = send(directory, to, dry_run=True)
    assert len(plan.upload) == 7
    assert contents(to) == {}
    printed = capsys.readouterr().out
    assert "pictures" in printed
    assert "upload" in printed


def test_datasets_opens_what_is_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    directory = tmp_path / "out" / "dataset"
    write_files(directory, {LAST: b"{}", "README.md": b"# card"})
    (directory / "data/a").mkdir(parents=True)
    pq.write_table(pa.table({"rewards": [[1.0], [2.0, 3.0]]}), directory / "data/a/train-00000-of-00001.parquet")
    send(directory, bucket)
    code = (
        "from datasets import load_dataset\n"
        "for streaming in (False, True):\n"
        f"    files = {{'train': '{bucket}/data/a/train-*.parquet'}}\n"
        "    print([row['rewards'] for row in load_dataset('parquet', data_files=files, split='train',"
        f" streaming=streaming, cache_dir={str(tmp_path)!r})])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert ran.stdout == "[[1.0], [2.0, 3.0]]\n" * 2, ran.stderr


def test_a_damaged_or_unfinished_directory_is_refused_before_anything_moves(directory: Path, tmp_path: Path) -> None:
    to, entries = tmp_path / "there", entries_of(directory)
    name = "data/a/train-00000-of-00002.parquet"
    good = (directory / name).read_bytes()
    (directory / name).write_bytes(good[:-1])
    with pytest.raises(UserError, match=r"00000-of-00002.parquet is damaged: 2999 bytes, the manifest says 3000"):
        send(directory, str(to), entries)
    (directory / name).write_bytes(b"x" + good[1:])
    with pytest.raises(UserError, match="is damaged: its checksum is not the manifest's"):
        send(directory, str(to), entries)
    (directory / name).unlink()
    with pytest.raises(UserError, match=f"is incomplete: {name} is missing"):
        send(directory, str(to), entries)
    (directory / name).write_bytes(good)
    (directory / "data/a/stray.parquet").write_bytes(b"stray")
    with pytest.raises(UserError, match=r"stray.parquet is not in the manifest"):
        send(directory, str(to), entries)
    (directory / "data/a/stray.parquet").unlink()
    (directory / LAST).unlink()
    with pytest.raises(UserError, match=r"is incomplete: it has no manifest.json"):
        send(directory, str(to), entries)
    with pytest.raises(UserError, match=r"does not exist: it has no manifest.json"):
        send(tmp_path / "out" / "nothing", str(to), entries)
    assert not to.exists()


def test_gigabytes_are_not_hashed_twice(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr("pipeline.publishing.inventory.sha256_of", counted)
    send(directory, str(tmp_path / "there"))
    assert len(hashed) == len(FILES)
    # A build links the same files into a new directory, under other names.
    rebuilt = tmp_path / "out" / "rebuilt"
    for path in directory.rglob("*"):
        if path.is_file():
            target = rebuilt / path.relative_to(directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    hashed.clear()
    send(rebuilt, str(tmp_path / "elsewhere"))
    assert hashed == []
    (rebuilt / "README.md").unlink()
    (rebuilt / "README.md").write_bytes(b"# other")
    send(rebuilt, str(tmp_path / "elsewhere"))
    assert hashed == ["README.md"]


def test_a_journal_whose_last_line_was_cut_off_still_serves(directory: Path, tmp_path: Path) -> None:
    send(directory, str(tmp_path / "there"))
    for journal in (directory.parent / "records").glob("*.jsonl"):
        journal.write_bytes(journal.read_bytes()[:-5])
    assert send(directory, str(tmp_path / "there")).is_empty
    assert contents(str(tmp_path / "there")) == expected(directory)


def test_a_file_that_changes_while_it_is_sent_is_noticed(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def changing(source: Path, target: Path) -> None:
        copy(source, target)
        if source.name.startswith("train-00001"):
            source.write_bytes(b"changed")

    monkeypatch.setattr("pipeline.publishing.publish_files.shutil.copyfile", changing)
    with pytest.raises(UserError, match="changed while it was published"):
        send(directory, str(tmp_path / "there"))
    assert LAST not in contents(str(tmp_path / "there"))


def test_no_room_is_said_before_and_while_it_is_copied(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = str(tmp_path / "there")
    with monkeypatch.context() as patch:
        patch.setattr(
            "pipeline.publishing.publish_files.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0)
        )
        with pytest.raises(UserError, match="has 0 MB free"):
            send(directory, to)
    assert contents(to) == {}

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.publishing.publish_files.shutil.copyfile", full)
        with pytest.raises(UserError, match="no room left in"):
            send(directory, to)
    assert contents(to) == {}
    send(directory, to)
    assert contents(to) == expected(directory)


def test_a_bucket_that_is_not_there_or_not_ours_is_one_readable_line(
    directory: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    with pytest.raises(UserError, match="create the bucket or folder first"):
        send(directory, "s3://nobodys-bucket/jat")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="no credentials for s3://"):
        send(directory, bucket)
    s3fs.S3FileSystem.clear_instance_cache()


def test_no_secret_of_the_store_is_left_anywhere(directory: Path, bucket: str, tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from pipeline.cli import configure_logging\n"
        "from pipeline.publishing.publish import *; configure_logging('DEBUG')\n"
        f"records = Path({str(tmp_path / 'records')!r})\n"
        f"publish(Path({str(directory)!r}), [], {LAST!r}, {bucket!r}, 'dataset', records, Options())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert SECRET not in ran.stdout + ran.stderr
    for content in [*contents(bucket).values(), *contents(str(tmp_path)).values()]:
        assert SECRET.encode() not in content


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("", {}, "nowhere to publish to"),
        ("hf://datasets/owner", {}, "names no repository"),
        ("hf://owner/jat", {}, "is a model, this is a dataset; write hf://datasets/owner/jat"),
        ("owner/jat@one", {"branch": "two"}, "two branches, one and two"),
        ("./folder", {"tag": "v1"}, "--tag is about the Hugging Face Hub"),
        ("s3://bucket/jat", {"public": True, "create": False}, "--public, --no-create is about"),
        ("s3://AKIA0:hunter22@bucket/jat", {}, r"s3://\[hidden\]@bucket/jat carries credentials"),
        ("nosuch://bucket/jat", {}, "nosuch://bucket/jat cannot be used"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(to: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_target(to, "dataset", Options(**options))


def test_a_target_is_a_repository_a_url_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_target("owner/jat", "dataset", Options()) == HubOptions("owner/jat", "dataset")
    assert parse_target("hf://datasets/o/n@a/b", "dataset", Options()) == HubOptions("o/n", "dataset", "a/b")
    assert parse_target("hf://o/n", "model", Options(branch="b")) == HubOptions("o/n", "model", "b")
    assert parse_target("./owner/jat", "dataset", Options()) == Path("owner/jat")
    assert parse_target("/a/b", "dataset", Options()) == Path("/a/b")
    (tmp_path / "owner" / "jat").mkdir(parents=True)
    with pytest.raises(UserError, match=r"write ./owner/jat or hf://datasets/owner/jat"):
        parse_target("owner/jat", "dataset", Options())


def test_a_directory_is_not_published_into_itself(directory: Path) -> None:
    for to in (directory, directory / "below", directory.parent):
        with pytest.raises(UserError, match="lie in one another"):
            send(directory, str(to))
    assert json.loads((directory / LAST).read_text()) == {}


def test_a_link_out_of_the_directory_is_not_published(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (directory / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"notes.txt is a link that leads out of .*, which is not published; remove it"):
        send(directory, str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


def test_a_list_in_the_target_removes_nothing_outside_of_it(directory: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    send(directory, str(there))
    outside = tmp_path / "important"
    outside.write_text("x")
    sums = there / CHECKSUMS
    sums.write_text(sums.read_text() + f"{'a' * 64}  ../important\n{'a' * 64}  {outside}\n")
    send(directory, str(there))
    assert outside.read_text() == "x"


@pytest.mark.parametrize("damage", ["3", "[]", "[[1], 2]", "[1, 2, 3]", "null", "[" * 100_000, "\xff"])
def test_a_damaged_journal_is_passed_over(damage: str, directory: Path, tmp_path: Path) -> None:
    send(directory, str(tmp_path / "a"))
    for journal in (tmp_path / "out").rglob("*.jsonl"):
        lines = [re.sub(r'"[0-9a-f]{64}"', "17", line) for line in journal.read_text().splitlines()]
        journal.write_text("\n".join([*lines, damage]))
    send(directory, str(tmp_path / "b"))
    assert contents(str(tmp_path / "b")) == expected(directory)
