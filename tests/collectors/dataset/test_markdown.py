from __future__ import annotations

import pytest

from collectors.dataset.markdown import MAX_SHOWN, as_code, as_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ppo-12", "`ppo-12`"),
        ("a`b", "`` a`b ``"),
        ("``", "``` `` ```"),
        ("a\n\n# b", "`a # b`"),
        ("<img src=x onerror=alert(1)>", "`<img src=x onerror=alert(1)>`"),  # in a code span it is text
    ],
)
def test_a_code_span_holds_any_text(text: str, shown: str) -> None:
    assert as_code(text) == shown


def test_a_bar_does_not_end_a_cell() -> None:
    assert as_code("a|b", in_table=True) == r"`a\|b`"
    assert as_text("a|b") == r"a\|b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("BabyAI-OpenDoor-v0", "BabyAI-OpenDoor-v0"),
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;"),
        ("[a](http://b) ![c](d)", r"\[a\](http://b) !\[c\](d)"),
        ("*a* _b_ `c`", r"\*a\* \_b\_ \`c\`"),
        ("a\n| b |", r"a \| b \|"),
    ],
)
def test_plain_text_begins_nothing(text: str, shown: str) -> None:
    assert as_text(text) == shown


def test_a_text_without_end_is_cut() -> None:
    assert len(as_code("x" * 10_000)) == MAX_SHOWN + 5
