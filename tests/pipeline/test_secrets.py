from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.cli import parse
from pipeline.errors import UserError
from pipeline.files import location
from pipeline.secrets import RedactingFormatter, redacted


def test_credentials_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    assert redacted("Bearer hf_abcdefgh, wJalrXUtnFEMI/K7MDENG.") == "Bearer [hidden], [hidden]."
    assert (
        redacted("'x' while PUT https://s3/b/k?X-Amz-Signature=12&p=1 now")
        == "'x' while PUT https://s3/b/k?[hidden] now"
    )
    assert redacted("s3://key:secret@bucket/path") == "s3://[hidden]@bucket/path"
    assert redacted("--token hf_AbCdEfGhIjKlMnOpQrStUvWxYz is unknown") == "--token [hidden] is unknown"


def test_other_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "a")
    monkeypatch.setenv("HOME_OF_NOBODY", "banana")
    text = "a banana at https://huggingface.co/owner/jat, what now? owner@example.org"
    assert redacted(text) == text


WITH_CREDENTIALS = [
    "s3://AKIA0:hunter22/+x@bucket/run",  # keys of S3 may hold slashes
    "S3://AKIA0:hunter22@bucket/run",
    "https://hunter22@huggingface.co/owner/name",
    "wikipedia=s3://AKIA0:hunter22@bucket/w,oscar=there",
    "ray://me:hunter22@head:10001",
    "--token=hf_hunter22hunter22hunter22",
]


@dataclass(frozen=True)
class Options:
    """Any command's."""

    out: Path = Path("runs/default")
    """A folder or a URL."""
    source: str = ""
    """Something else."""


@pytest.mark.parametrize("value", WITH_CREDENTIALS)
@pytest.mark.parametrize("words", [["--out", "{}"], ["--source", "{}"], ["--source={}"], ["--no-such-option", "{}"]])
def test_credentials_in_any_option_are_refused_before_anything_repeats_them(
    value: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"carries credentials.*leave them to the environment") as raised:
        parse(Options, argv=[word.format(value) for word in words])
    assert "hunter22" not in str(raised.value) + "".join(capsys.readouterr())


@pytest.mark.parametrize("value", [*WITH_CREDENTIALS[:3], "s3://bucket/run?secret=hunter22"])
def test_no_place_to_write_to_has_credentials_in_its_address(value: str) -> None:
    with pytest.raises(UserError, match="carries credentials") as raised:
        location(value)
    assert "hunter22" not in str(raised.value)


@pytest.mark.parametrize(
    "value",
    [
        "s3://bucket/run",
        "hf://datasets/owner/name@branch",
        "http://127.0.0.1:8080/a@b",
        "owner/name@v1",
        "me@there.org",
    ],
)
def test_addresses_without_credentials_are_taken(value: str) -> None:
    assert parse(Options, argv=["--source", value]).source == value
    assert redacted(value) == value


def test_logs_and_tracebacks_of_commands_hide_them(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("pipeline", logging.INFO, "", 0, "GET %s", ("https://me:hunter22@host/x",), None)
    assert RedactingFormatter("%(message)s").format(record) == "GET https://[hidden]@host/x"
    code = (
        "import sys; from pipeline.cli import run; import types\n"
        "def main(): raise ZeroDivisionError('at https://me:hunter22@host/x')\n"
        "sys.modules['fails'] = types.SimpleNamespace(main=main); run('fails')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError: at https://[hidden]@host/x" in done.stderr and "hunter22" not in done.stderr
