"""Small sources in the formats of the Hub's: what each row holds tells its number."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from PIL import Image

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(number: int, width: int = 20, height: int = 12, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """A file whose pixels depend on its number."""
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def article(number: int) -> str:
    return f"Article {number}. " + "word " * (number % 7)


def write_wikipedia(
    folder: Path, rows: Sequence[int] = (12, 8, 10), row_group: int = 4, empty: Sequence[int] = ()
) -> None:
    """Files of wikimedia/wikipedia's columns, with blank texts at the numbers ``empty``."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for i, count in enumerate(rows):
        numbers = range(first, first + count)
        table = pa.table(
            {
                "id": [str(number) for number in numbers],
                "url": [f"https://en.wikipedia.org/wiki/{number}" for number in numbers],
                "title": [f"Title {number}" for number in numbers],
                "text": [" \n" if number in empty else article(number) for number in numbers],
            }
        )
        pq.write_table(table, folder / f"train-{i:05d}-of-{len(rows):05d}.parquet", row_group_size=row_group)
        first += count


def oscar_row(number: int) -> dict[str, Any]:
    """As OSCAR 23.01 has it: nested, and fields that are null at times."""
    return {
        "content": f"Page {number}\nsecond line",
        "warc_headers": {"warc-target-uri": f"http://page/{number}", "content-length": str(number)},
        "metadata": {
            "identification": {"label": "en", "prob": 0.5},
            "harmful_pp": None if number % 2 else 100.5,
            "quality_warnings": None if number % 3 else ["short_sentences", "header"],
            "categories": None,
            "sentence_identifications": [{"label": "en", "prob": 0.75}, None],
        },
    }


def write_oscar(folder: Path, count: int = 30) -> None:
    """JSON lines, compressed: two files with zstandard, one with gzip."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(oscar_row(number)) + "\n" for number in range(count)]
    third = count // 3
    for i in (0, 1):
        text = "".join(lines[i * third : (i + 1) * third])
        (folder / f"en_meta_part_{i + 1}.jsonl.zst").write_bytes(zstandard.compress(text.encode()))
    (folder / "en_meta_part_3.jsonl.gz").write_bytes(gzip.compress("".join(lines[2 * third :]).encode()))


def write_questions(folder: Path, num_train: int = 6, num_test: int = 3) -> None:
    """OK-VQA as questions, ten answers and an image; splits named as in lmms-lab/OK-VQA. Row 1 holds no image file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train2014", num_train), ("val2014", num_test)):
        images = [{"bytes": picture(i) if i != 1 else b"\xff\xd8 broken", "path": f"{i}.jpg"} for i in range(count)]
        table = pa.table(
            {
                "question_id": [str(i) for i in range(count)],
                "image": pa.array(images, IMAGE_TYPE),
                "question": [f"What is {i}?" for i in range(count)],
                "answers": [[f"answer {i}"] + [f"other {i}"] * 9 for i in range(count)],
            }
        )
        pq.write_table(table, folder / f"{name}-00000-of-00001.parquet", row_group_size=2)


def write_captions(folder: Path, address: str, names: Sequence[str], num_test: int = 1) -> None:
    """Conceptual Captions: the images are at ``address``/name, those of the test split at ``address``/good-<i>."""
    folder.mkdir(parents=True, exist_ok=True)
    tests = [f"good-{i}" for i in range(num_test)]
    for split, found in (("train", names), ("validation", tests)):
        urls = [name if "://" in name or not name else f"{address}/{name}" for name in found]
        table = pa.table({"image_url": urls, "caption": [f"caption of {name}" for name in found]})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=3)
