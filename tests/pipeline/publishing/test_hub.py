from __future__ import annotations

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from pipeline.errors import UserError
from pipeline.publishing.hub import HubUnavailableError, readable_errors


def answer(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("refused", response=httpx2.Response(status, request=httpx2.Request("GET", "http://hub")))


@pytest.mark.parametrize(
    ("error", "is_about_the_hub", "message"),
    [
        # Between two files of a repository the client says it so, and it is a kind of EntryNotFoundError.
        (
            LocalEntryNotFoundError("lost"),
            True,
            "cannot be downloaded .* and is not in its cache; check the network",
        ),
        (OfflineModeIsEnabled("offline"), True, "cannot be downloaded .*check the network, or do that"),
        (httpx2.ConnectError("refused"), True, "ConnectError: refused"),
        (ValueError("not JSON"), True, "ValueError: not JSON"),
        (answer(503), True, "answered 503 for a/b; try again later"),
        (answer(429), True, "answered 429 for a/b; try again later"),
        (answer(401), True, "answered 401 for a/b; check or unset HF_TOKEN"),
        (answer(410), False, "answered 410 for a/b; try again later"),
        (OSError(28, "No space left on device"), False, "No space left on device"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_concerns_every_repository_is_told_from_what_concerns_one(
    error: Exception, is_about_the_hub: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised, readable_errors("a/b", None, "do that"):
        raise error
    assert isinstance(raised.value, HubUnavailableError) == is_about_the_hub
