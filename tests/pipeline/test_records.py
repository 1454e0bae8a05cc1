from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.records import read_record, read_values


@dataclasses.dataclass(frozen=True)
class Inner:
    count: int
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    is_done: bool
    kind: Literal["a", "b"]
    inner: Inner
    many: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = dataclasses.field(default_factory=dict)
    pair: tuple[int, str] = (0, "")
    note: str | None = None
    mixed: list[int | str] = dataclasses.field(default_factory=list)
    anything: Any = None


WHOLE = Outer(
    "x", True, "b", Inner(1), (Inner(2, 0.5),), {"y": Inner(3, 2.0)}, (4, "z"), "n", [1, "a"], {"free": [1, None]}
)


def read(path: Path, raw: Any) -> Outer:
    path.write_text(raw if isinstance(raw, str) else json.dumps(raw))
    return read_record(path, Outer, "an outer thing", "delete it")


def test_a_record_comes_back_equal_from_its_file(tmp_path: Path) -> None:
    write_json(tmp_path / "it.json", WHOLE)
    assert read_record(tmp_path / "it.json", Outer, "an outer thing", "delete it") == WHOLE


def test_fields_with_a_default_may_be_missing_and_whole_numbers_are_numbers(tmp_path: Path) -> None:
    found = read(tmp_path / "it.json", {"name": "x", "is_done": False, "kind": "a", "inner": {"count": 1, "share": 2}})
    assert found == Outer("x", False, "a", Inner(1, 2.0))
    assert type(found.inner.share) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 1}, "name is 1, expected a string"),
        ({"is_done": 1}, "is_done is 1, expected true or false"),
        ({"kind": "c"}, "kind is 'c', expected one of a, b"),
        ({"kind": ["a"]}, "kind is a list, expected one of a, b"),
        ({"inner": []}, "inner is a list, expected an object"),
        ({"inner": {"count": True}}, "inner.count is True, expected a whole number"),
        ({"inner": {"count": 1.0}}, "inner.count is 1.0, expected a whole number"),
        ({"inner": {"count": 1, "share": "1"}}, "inner.share is '1', expected a number"),
        ({"inner": {"count": 1, "share": 10**400}}, "inner.share is a huge number, too large a number"),
        ({"inner": {}}, "inner.count is missing"),
        ({"inner": {"count": 1, "colour": 2}}, "unknown field 'inner.colour'"),
        ({"many": {}}, "many is an object, expected a list"),
        ({"many": [{"count": None}]}, r"many\[0\].count is null, expected a whole number"),
        ({"by_name": {"y": 3}}, "by_name.y is 3, expected an object"),
        ({"pair": [1]}, "pair has 1 values, expected 2"),
        ({"note": 3}, "note is 3, expected a string"),
        ({"mixed": [None]}, r"mixed\[0\] is null, expected a string"),
        ({"name": None}, "name is null, expected a string"),
        ({"more": "m" * 10_000}, r"unknown field 'more'"),
        ({"name": ["m" * 10_000]}, r"name is a list"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_file_and_field(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"it.json is not an outer thing \({message}.*\); delete it") as caught:
        read(tmp_path / "it.json", json.loads(json.dumps(dataclasses.asdict(WHOLE))) | change)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", "{", '{"a": NaN', "[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "\ufeff{}", "\0"]
)
def test_no_text_at_all_is_more_than_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / "it.json", text)
    assert "\n" not in str(caught.value) and "it.json" in str(caught.value)


def test_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "it.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"it.json is damaged"):
        read_record(tmp_path / "it.json", Outer, "an outer thing", "delete it")


def test_plain_values_are_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "it.json"
    write_json(path, {"1": "a"})
    assert read_values(path, dict[str, str], "reasons by seed", "delete it") == {"1": "a"}
    for wrong in ({"1": 2}, ["a"], None):
        write_json(path, wrong)
        with pytest.raises(UserError, match=r"it.json is not reasons by seed \(.*\); delete it"):
            read_values(path, dict[str, str], "reasons by seed", "delete it")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(vars(WHOLE))), inner, max_size=9),
    max_leaves=20,
)


@given(JSON)
def test_whatever_json_says_it_is_a_record_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, raw: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    try:
        assert isinstance(read(path, raw), Outer)
    except UserError as error:
        assert "\n" not in str(error)
