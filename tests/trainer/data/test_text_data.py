from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from pipeline.errors import UserError
from trainer.batch import TextBatch
from trainer.data.text_data import (
    PICTURE_MEAN,
    PICTURE_STD,
    TextArrays,
    TextBatches,
    TokenizedDocument,
    lay_out,
    prepare_picture,
)
from trainer.data.tokenizer import end_id, train_tokenizer

TEXTS = ["the cat sat on the mat", "a", "the dog ran over the hill and far away from the cat", "hello there"] * 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 340)


def png(width: int, height: int, colour: tuple[int, int, int], mode: str = "RGB") -> bytes:
    picture = Image.new("RGB", (width, height), colour).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def corpus(tokenizer: Tokenizer, folder: Path, texts: Iterable[str] = TEXTS, boundaries: bool = True) -> TextArrays:
    return lay_out("words", map(TokenizedDocument, texts), tokenizer, boundaries, folder / "words")


def captions(tokenizer: Tokenizer, folder: Path) -> TextArrays:
    """Document i has a picture of one shade of red, 10 * i."""
    documents = [TokenizedDocument(text, png(20, 20, (10 * i, 0, 0))) for i, text in enumerate(TEXTS)]
    return lay_out("captions", documents, tokenizer, True, folder / "captions")


def batches(arrays: TextArrays, context: int = 16, budget: int = 64, seed: int = 0) -> TextBatches:
    return TextBatches(arrays, context, budget, picture_size=16, num_patches=4, seed=(seed, 7))


def parts_of_an_epoch(loader: TextBatches) -> Iterator[TextBatch]:
    for index in range(loader.num_batches):
        parts = loader.parts(index)
        overhead = 0 if parts[0].pictures is None else 4
        assert sum(part.tokens.shape[0] * (part.tokens.shape[1] + overhead) for part in parts) <= 64
        yield from parts


def tokens_of(loader: TextBatches, index: int) -> torch.Tensor:
    return torch.cat([part.tokens.flatten() for part in loader.parts(index)])


def test_every_token_of_every_document_is_in_one_window_of_an_epoch(tokenizer: Tokenizer, tmp_path: Path) -> None:
    end = end_id(tokenizer)
    expected = [[end, *tokenizer.encode(text).ids, end] for text in TEXTS]
    loader = batches(corpus(tokenizer, tmp_path), context=7)
    rows = []
    for batch in parts_of_an_epoch(loader):
        assert batch.pictures is None
        assert batch.tokens.dtype == torch.int64
        rows += [tokens[mask].tolist() for tokens, mask in zip(batch.tokens, batch.mask, strict=True)]
    windows = [document[i : i + 7] for document in expected for i in range(0, len(document), 7)]
    # A last part of a single token has nothing to predict and is left out.
    assert sorted(rows) == sorted(window for window in windows if len(window) > 1)
    assert any(len(window) == 1 for window in windows)


def test_without_boundaries_a_document_is_its_own_tokens_as_in_jat(tokenizer: Tokenizer, tmp_path: Path) -> None:
    arrays = corpus(tokenizer, tmp_path, ["hello there", "a"], boundaries=False)
    # The second is a single token: nothing to predict.
    assert arrays.tokens.tolist() == tokenizer.encode("hello there").ids
    assert arrays.starts.tolist() == [0, 2]


def test_a_caption_stays_with_its_picture(tokenizer: Tokenizer, tmp_path: Path) -> None:
    loader = batches(captions(tokenizer, tmp_path))
    seen = []
    for batch in parts_of_an_epoch(loader):
        assert batch.pictures is not None
        assert batch.pictures.shape[1:] == (3, 16, 16)
        for tokens, mask, picture in zip(batch.tokens, batch.mask, batch.pictures, strict=True):
            red = picture[0].numpy() * PICTURE_STD[0] + PICTURE_MEAN[0]
            document = round(float(red.mean()) * 25.5)
            seen.append(document)
            words = tokenizer.decode(tokens[mask].tolist()).strip()
            assert TEXTS[document].startswith(words)
            assert words == TEXTS[document] or int(mask.sum()) == 12  # 16 positions, 4 of them the picture's
    assert sorted(seen) == list(range(len(TEXTS)))


def test_order_follows_from_seed_and_index_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    arrays = corpus(tokenizer, tmp_path)
    one, other = batches(arrays), batches(arrays)
    indices = [2 * one.num_batches + 1, 0, one.num_batches, 1]
    for index in indices:
        torch.testing.assert_close(tokens_of(one, index), tokens_of(other, index))
    epochs = [torch.cat([tokens_of(one, e * one.num_batches + i) for i in range(3)]) for e in range(2)]
    assert not torch.equal(*epochs)
    assert any(
        not torch.equal(tokens_of(one, i), tokens_of(batches(arrays, seed=1), i)) for i in range(one.num_batches)
    )


def test_a_corpus_is_laid_out_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first = corpus(tokenizer, tmp_path)

    def unread() -> Iterable[str]:
        raise AssertionError("read again")
        yield ""

    again = corpus(tokenizer, tmp_path, unread())
    np.testing.assert_array_equal(first.tokens, again.tokens)


def test_a_corpus_cut_short_while_it_is_laid_out_leaves_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def cut_short() -> Iterable[str]:
        yield from TEXTS
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        corpus(tokenizer, tmp_path, cut_short())
    assert list(tmp_path.iterdir()) == []
    assert len(corpus(tokenizer, tmp_path).starts) == len(TEXTS) + 1


def test_a_corpus_without_texts_or_half_with_pictures_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing has no text"):
        lay_out("nothing", [], tokenizer, True, tmp_path / "a")
    mixed = [TokenizedDocument("with", png(4, 4, (0, 0, 0))), TokenizedDocument("without")]
    with pytest.raises(UserError, match="mixed has documents with and without a picture"):
        lay_out("mixed", mixed, tokenizer, True, tmp_path / "b")


def test_a_context_too_short_for_a_picture_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a picture takes 4 of 5 positions"):
        batches(captions(tokenizer, tmp_path), context=5)


def test_a_picture_is_scaled_by_its_shorter_side_and_its_middle_taken() -> None:
    wide = Image.new("RGB", (90, 30), (255, 0, 0))
    wide.paste((0, 255, 0), (30, 0, 60, 30))  # the middle third is green
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    prepared = prepare_picture(buffer.getvalue(), 60, "wide")
    assert prepared.shape == (3, 60, 60)
    assert prepared.dtype == np.float32
    colours = np.moveaxis(prepared, 0, -1) * PICTURE_STD + PICTURE_MEAN
    np.testing.assert_allclose(colours[:, 5:-5], np.broadcast_to([0.0, 1.0, 0.0], (60, 50, 3)), atol=1e-2)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_pictures_of_any_mode_become_three_colours(mode: str) -> None:
    prepared = prepare_picture(png(10, 20, (153, 153, 153), mode), 8, "grey")
    np.testing.assert_allclose(
        prepared, np.broadcast_to(((153 / 255 - PICTURE_MEAN) / PICTURE_STD)[:, None, None], (3, 8, 8)), atol=1e-5
    )


def test_a_file_that_is_no_picture_is_named() -> None:
    with pytest.raises(UserError, match="captions 3 is not a picture that can be read"):
        prepare_picture(b"<html>", 16, "captions 3")


def test_a_batch_tells_which_documents_it_is_made_of(tokenizer: Tokenizer, tmp_path: Path) -> None:
    loader = batches(captions(tokenizer, tmp_path))
    seen = [loader.describe(index) for index in range(loader.num_batches)]
    assert all(text.startswith("captions, documents ") for text in seen)
    named = [int(row) for text in seen for row in text.removeprefix("captions, documents ").split(", ")]
    assert sorted(named) == list(range(len(TEXTS)))
