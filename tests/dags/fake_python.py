#!/usr/bin/env python3
"""Stands for the Python that runs stages: notes every call and does what ``FAKE_PYTHON`` (JSON) says of its tasks.

``{"fail": {"task": exit code}, "fail_once": [task], "hang": [task]}``; all others succeed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    module = sys.argv[sys.argv.index("-m") + 1]
    options = dict(zip(sys.argv[3::2], sys.argv[4::2], strict=True))
    tasks = options["--task"].split(",") if "--task" in options else []
    out = Path(options["--out"])
    out.mkdir(parents=True, exist_ok=True)
    with (out / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps({"module": module, "options": options}) + "\n")
    told = json.loads(os.environ.get("FAKE_PYTHON", "{}"))
    sys.stdout.write(f"{module} works on {options.get('--task')}\n")
    sys.stdout.flush()
    for task in tasks:
        if task in told.get("hang", ()):
            child = subprocess.Popen(["sleep", "600"])
            (out / "child.pid").write_text(str(child.pid))
            time.sleep(600)
        if task in told.get("fail_once", ()) and not (out / f"{task}.failed").exists():
            (out / f"{task}.failed").touch()
            sys.stderr.write("error: 1 of 1 jobs failed: lost its worker\n")
            return 1
        if task in told.get("fail", {}):
            sys.stderr.write(f"error: {task} cannot be done\n")
            return int(told["fail"][task])
    return 0


if __name__ == "__main__":
    sys.exit(main())
