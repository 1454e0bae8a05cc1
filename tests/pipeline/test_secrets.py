from __future__ import annotations

import pytest

from pipeline.secrets import redacted


def test_credentials_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    assert redacted("Bearer hf_abcdefgh, wJalrXUtnFEMI/K7MDENG.") == "Bearer [hidden], [hidden]."
    assert (
        redacted("'x' while PUT https://s3/b/k?X-Amz-Signature=12&p=1 now")
        == "'x' while PUT https://s3/b/k?[hidden] now"
    )
    assert redacted("s3://key:secret@bucket/path") == "s3://[hidden]@bucket/path"


def test_other_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "a")
    monkeypatch.setenv("HOME_OF_NOBODY", "banana")
    text = "a banana at https://huggingface.co/owner/jat, what now? owner@example.org"
    assert redacted(text) == text
