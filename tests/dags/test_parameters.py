from __future__ import annotations

from typing import Any

import pytest

from dags.parameters import PARAMETERS, options_of
from dags.stages import ALL_STAGES
from pipeline.errors import UserError


def test_numbers_and_texts_become_options_and_what_is_not_given_none() -> None:
    conf = {"task": "babyai", "episodes": 5, "workers": 2.0, "recipe": None, "expert": "", "out": "/o"}
    assert options_of(conf) == {"task": "babyai", "episodes": "5", "workers": "2", "out": "/o"}
    assert options_of({"to": "owner/name"}, needs_task=False) == {"to": "owner/name", "task": "*"}


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"task": "babyai", "epsiodes": 5}, "there is no parameter 'epsiodes'; did you mean 'episodes'?"),
        ({"task": "babyai", "zzz": 5}, "there is no parameter 'zzz'; allowed: task, out, recipe"),
        ({"episodes": 5}, "the parameter 'task' is not given; name tasks"),
        ({"task": ""}, "the parameter 'task' is not given; name tasks"),
        ({"task": 5}, "parameter 'task' is 5; give text such as 'metaworld-[ab]*'"),
        ({"task": "babyai", "episodes": 0.5}, "parameter 'episodes' is 0.5; give text"),
        ({"task": "babyai", "workers": True}, "parameter 'workers' is True; give text"),
        ({"task": ["babyai"]}, "parameter 'task' is ['babyai']; give text"),
    ],
)
def test_what_is_misspelt_wrong_or_without_a_task_is_refused(conf: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        options_of(conf)
    assert str(refused.value).startswith(message)


def test_every_option_of_a_stage_can_be_given_and_is_described() -> None:
    assert {"out", *(name for stage in ALL_STAGES for name in stage.options)} == set(PARAMETERS)
    for parameter in PARAMETERS.values():
        assert parameter.description and parameter.example
        assert parameter.schema["type"][0] == "null"
