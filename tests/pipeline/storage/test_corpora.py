from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.storage.corpora import CORPORA, rows_for, select_corpora, split_of

WIKIPEDIA, OSCAR, QUESTIONS, CAPTIONS = CORPORA


def test_the_corpora_are_jat_s() -> None:
    assert [corpus.name for corpus in CORPORA] == ["wikipedia", "oscar", "ok-vqa", "conceptual-captions"]
    assert [corpus.has_images for corpus in CORPORA] == [False, False, True, True]


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        (["raincoat", "coat"], "Q: What is it? A: raincoat"),
        ([{"answer": "raincoat", "answer_confidence": "yes"}, {"answer": "coat"}], "Q: What is it? A: raincoat"),
        ({"answer": ["raincoat", "coat"], "answer_id": [1, 2]}, "Q: What is it? A: raincoat"),
        ([], None),
        (None, None),
    ],
)
def test_a_question_s_text_is_the_question_and_its_first_answer(answers: Any, text: str | None) -> None:
    layout = QUESTIONS.layout_of(["image", "question", "answers", "question_type"], "x")
    assert layout.text({"question": " What is it? ", "answers": answers}) == text


def test_a_source_in_jat_s_own_columns_is_taken_as_it_is() -> None:
    for corpus in (QUESTIONS, CAPTIONS):
        layout = corpus.layout_of(["images", "text"], "x")
        assert (layout.image, layout.text({"text": "as it is"})) == ("images", "as it is")
    assert WIKIPEDIA.layout_of(["text"], "x").text({"text": "as it is"}) == "as it is"


def test_a_source_without_the_columns_is_refused() -> None:
    with pytest.raises(UserError, match=r"folder has the columns a, b; oscar is made of text or content"):
        OSCAR.layout_of(["a", "b"], "folder")


def test_every_tenth_row_of_a_source_without_a_test_split_is_for_testing() -> None:
    splits = [split_of(index, ("train", "test")) for index in range(25)]
    assert [index for index, split in enumerate(splits) if split == "test"] == [9, 19]
    assert split_of(9, ("train",)) == "train"


@pytest.mark.parametrize("num_train", [1, 8, 9, 10, 18, 19, 1000, 12345])
def test_rows_hold_the_training_documents_asked_for_and_one_for_testing(num_train: int) -> None:
    splits = [split_of(index, ("train", "test")) for index in range(rows_for(num_train))]
    assert splits.count("train") == max(9, num_train)
    assert splits.count("test") >= 1
    assert num_train < 10 or splits[-1] == "train"


def test_corpora_are_chosen_by_name_and_glob() -> None:
    assert [corpus.name for corpus in select_corpora("oscar, wiki*")] == ["wikipedia", "oscar"]
    assert select_corpora("*") == CORPORA


@pytest.mark.parametrize("pattern", ["wikipedia,oskar", "oskar"])
def test_an_unknown_corpus_is_refused_with_the_nearest(pattern: str) -> None:
    with pytest.raises(UserError, match=r"no corpus matches 'oskar'; nearest: oscar; there are wikipedia, oscar, ok"):
        select_corpora(pattern)


def test_no_corpus_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="no corpus matches ''"):
        select_corpora("")
