from __future__ import annotations

import pytest

from pipeline.text import (
    format_count,
    format_estimate,
    format_number,
    format_rate,
    format_seconds,
    nearest_name,
    parse_count,
)


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "task", "0 tasks"),
        (1, "task", "1 task"),
        (1100, "training episode", "1,100 training episodes"),
        (2, "entry", "2 entries"),
        (2, "day", "2 days"),
    ],
)
def test_a_count_has_its_noun_in_the_right_number(number: int, noun: str, text: str) -> None:
    assert format_count(number, noun) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (1100, "1,100/s"),
        (999.7, "1,000/s"),
        (99.96, "100/s"),
        (1.666, "1.67/s"),
        (0.05, "3/min"),
        (1 / 300, "0.2/min"),
        (1 / 7200, "0.5/h"),
        (0, "0/h"),
        (2.5e7, "25,000,000/s"),
    ],
)
def test_a_rate_is_told_without_exponents_in_a_unit_that_fits(rate: float, text: str) -> None:
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0.01234, "0.0123"), (-1234.5, "-1,234"), (999.4, "999"), (1e6, "1,000,000")]
)
def test_a_number_has_three_digits_and_no_exponent(number: float, text: str) -> None:
    assert format_number(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0.4 s"),
        (119, "119 s"),
        (600, "10 min"),
        (7200, "2 h"),
        (200_000, "2.31 d"),
        (float("inf"), "?"),
        (1e9, "11,574 d"),
    ],
)
def test_seconds_are_told_in_a_unit_that_fits(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (54.53, "55 s"),
        (0.26, "0.26 s"),
        (117.0, "2 min"),
        (189.2, "3.2 min"),
        (4570.0, "76 min"),
        (0.0, "0 s"),
        (-1, "0 s"),
    ],
)
def test_an_estimate_has_two_digits(seconds: float, text: str) -> None:
    assert format_estimate(seconds) == text


def test_the_nearest_name_is_one_that_is_like_the_word() -> None:
    assert nearest_name("epsiodes", ["out", "episodes", "workers"]) == "episodes"
    assert nearest_name("zzz", ["out", "episodes"]) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1000", 1000),
        ("1e6", 10**6),
        ("1E3", 1000),
        ("1.5e3", 1500),
        ("1_000_000", 10**6),
        ("10k", 10_000),
        ("1.5M", 1_500_000),
        ("-1", -1),
        ("1000.0", 1000),
    ],
)
def test_a_whole_number_is_read_as_people_write_it(text: str, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["", "k", "many", "0.5", "1e-3", "1e400", "nan", "inf", "1,000", "1 000"])
def test_what_is_no_whole_number_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number, such as 1000"):
        parse_count(text)
