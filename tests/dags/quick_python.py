#!/usr/bin/env python3
"""The Python of the tests, with options that make every stage a matter of seconds."""

from __future__ import annotations

import os
import sys

from tests.dags.test_chain import COMMANDS

STAGE_OF = {words[0]: stage for stage, words in COMMANDS.items()}
OPTIONS = {stage: words[1:] for stage, words in COMMANDS.items()}


def main() -> None:
    words = sys.argv[1:]
    extra = OPTIONS[STAGE_OF[words[1]]]
    os.execv(sys.executable, [sys.executable, *words, *extra])


if __name__ == "__main__":
    main()
