from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from pipeline.errors import JobsFailedError, UserError
from pipeline.publishing.hub_calls import ATTEMPTS, ask_hub


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr("pipeline.publishing.hub_calls.time.sleep", found.append)
    return found


def refused(status: int, said: str = "because", **headers: str) -> HfHubHTTPError:
    request = httpx2.Request("PUT", "https://store/blob?X-Amz-Signature=1234")
    response = httpx2.Response(status, headers={k.replace("_", "-"): v for k, v in headers.items()}, request=request)
    return HfHubHTTPError(f"{status} for {request.url}", response=response, server_message=said)


def failing(*errors: Exception) -> Callable[[], str]:
    """Raises one after the other, then answers."""
    left = list(errors)

    def ask() -> str:
        if left:
            raise left.pop(0)
        return "answer"

    return ask


def test_what_passes_is_asked_again_after_the_time_the_server_wants_or_longer_each_time(slept: list[float]) -> None:
    busy, broken = refused(429, Retry_After="7"), refused(503)
    assert ask_hub(failing(busy, broken, httpx2.ReadError("reset"), busy), "dataset a/b") == "answer"
    assert slept == [7, 2, 4, 7]


def test_what_the_client_wraps_is_looked_into(slept: list[float]) -> None:
    wrapped = RuntimeError("Error while uploading 'x' to the Hub.")
    wrapped.__cause__ = refused(500)
    assert ask_hub(failing(wrapped), "dataset a/b") == "answer"
    assert slept == [1]


def test_what_does_not_pass_is_given_up_with_the_work_kept(slept: list[float]) -> None:
    with pytest.raises(JobsFailedError, match=r"the Hub failed 5 times \(HTTP 500: because\); what arrived stays"):
        ask_hub(failing(*[refused(500)] * ATTEMPTS), "dataset a/b")
    assert slept == [1, 2, 4, 8]


def test_a_failure_of_the_client_s_chunks_is_one_line(slept: list[float]) -> None:
    with pytest.raises(
        JobsFailedError, match=r"uploading failed \(RuntimeError: shard lost at https://x/y\?\[hidden\]\)"
    ):
        ask_hub(failing(RuntimeError("shard lost at https://x/y?sig=1")), "dataset a/b")
    inner = JobsFailedError("said already")
    inner.__cause__ = refused(500)
    with pytest.raises(JobsFailedError, match="said already"):
        ask_hub(failing(inner), "dataset a/b")
    assert slept == []


def test_nobody_at_the_first_question_is_not_waited_for(slept: list[float]) -> None:
    nobody = httpx2.ConnectError("refused")
    with pytest.raises(JobsFailedError, match="cannot be reached"):
        ask_hub(failing(nobody), "dataset a/b", is_first=True)
    assert slept == []
    assert ask_hub(failing(nobody), "dataset a/b") == "answer"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refused(401), "the Hub refuses the token (HTTP 401: because)"),
        (refused(403), "this token may not write to dataset a/b (HTTP 403: because)"),
        (refused(402), "no room for dataset a/b"),
        (refused(413), "no room for dataset a/b"),
        (refused(412), "dataset a/b has changed while this was uploaded"),
        (refused(418), "the Hub refuses to publish dataset a/b (HTTP 418: because)"),
        (HFValidationError("no such name"), "dataset a/b cannot be published (HFValidationError: no such name)"),
    ],
)
def test_bad_input_is_told_at_once_and_without_addresses(slept: list[float], error: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        ask_hub(failing(error), "dataset a/b")
    assert str(raised.value).startswith(message)
    assert "Signature" not in str(raised.value)
    assert raised.value.__suppress_context__  # nor in a traceback
    assert slept == []
