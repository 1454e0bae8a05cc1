#!/usr/bin/env python3
"""Stands for the Python that has Ray's client: notes every call and does what ``FAKE_CLIENT`` (JSON) says.

``{"folder": where to note, "lost": submissions whose cluster is lost, "away": questions that find no cluster then}``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> int:
    told = json.loads(os.environ["FAKE_CLIENT"])
    words = sys.argv[sys.argv.index("job") + 1 :]
    verb = words[0]
    calls = Path(told["folder"], f"{verb}.txt")
    with calls.open("a") as notes:
        notes.write(" ".join(words) + "\n")
    number = len(calls.read_text().splitlines())
    if verb == "list":
        return int(number <= told["away"])
    if verb == "submit":
        sys.stdout.write("Job submitted successfully\n")
        if number <= told["lost"]:
            sys.stdout.write("RuntimeError: WebSocket connection closed unexpectedly\n")
            return 1
        sys.stdout.write("528 of 528 episodes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
