"""Runs DAGs in this process, for the tests; needs the Python that has Airflow and an ``AIRFLOW_HOME`` of its own.

    python -m tests.dags.airflow_runs PLAN RESULT

PLAN (JSON): runs one after another, ``{"dag": ..., "conf": {...}, "env": {...}, "handed": [extra, ...]}``; RESULT gets
for each the state of the run and of its task instances, their tries, and what the asset hands on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    plan, result = Path(sys.argv[1]), Path(sys.argv[2])
    begun = time.process_time()
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    imported: dict[str, Any] = {
        "seconds": time.process_time() - begun,
        "errors": bag.import_errors,
        "dags": sorted(bag.dags),
        "heavy": [name for name in ("torch", "ray", "mujoco", "pyarrow", "datasets") if name in sys.modules],
    }
    # Written as it goes: what ran before a failure can be read.
    runs: list[dict[str, Any]] = []
    for run in json.loads(plan.read_text()):
        os.environ.update(run.get("env", {}))
        runs.append(play(bag.dags[run["dag"]], run["conf"]))
        result.write_text(json.dumps({"import": imported, "runs": runs}))


def play(dag: Any, conf: dict[str, str]) -> dict[str, Any]:
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    run = dag.test(run_conf=conf)
    instances = {}
    for instance in run.get_task_instances():
        name = instance.task_id if instance.map_index < 0 else f"{instance.task_id} {instance.rendered_map_index}"
        instances[name] = {"state": str(instance.state), "tries": instance.try_number}
    with create_session() as session:
        events = session.scalars(select(AssetEvent).where(AssetEvent.source_run_id == run.run_id)).all()
        return {"state": str(run.state), "tasks": instances, "handed": [event.extra for event in events]}


if __name__ == "__main__":
    main()
