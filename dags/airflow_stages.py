"""One Airflow DAG per stage, ``jat_experts`` to ``jat_report``: each can be scheduled, paused and rerun on its own.

Assets chain the DAGs: a finished stage triggers the next one with exactly the tasks that succeeded and the same
options. This module needs the extra ``dags``; the commands can run with another Python (``dags/launch.py``). The
scheduler reads these settings from its environment:

    JAT_OUT            default of the parameter ``out``: an absolute path or a URL
    JAT_TASK           default of the parameter ``task``, for scheduled runs; no default if not given
    JAT_SCHEDULE       cron schedule of `jat_experts`; triggered only manually if not given; needs JAT_TASK
    JAT_QUEUE_SCHEDULE cron schedule of `jat_experts-queue`, which then resumes the list of its last run
    JAT_RETRIES        number of retries of a failed unit of work; 2 if not given
    JAT_RETRY_SECONDS  seconds before the first retry, doubled for each later one; 60 if not given
    JAT_TIMEOUT_HOURS  timeout of a unit of work in hours; 48 if not given
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, AssetAny, BaseOperator, CronTriggerTimetable, Param, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from dags.launch import Launcher, StageError, check_out
from dags.parameters import PARAMETERS, options_of
from dags.stages import ALL_STAGES, PUBLISH, QUEUE, STAGES, Stage
from dags.units import unit_name, units_of
from pipeline.errors import UserError
from pipeline.secrets import check_no_credentials

# Names of the settings with the cron schedules of stages.
SCHEDULES = {STAGES[0]: "JAT_SCHEDULE", QUEUE: "JAT_QUEUE_SCHEDULE"}
ASSETS = {stage.name: Asset(f"jat_{stage.name}") for stage in ALL_STAGES}
# Defaults of the parameters.
DEFAULTS = {"task": os.environ.get("JAT_TASK"), "out": os.environ.get("JAT_OUT", str(Path.home() / "jat"))}


class StageOperator(BaseOperator):
    """Runs a stage's command on one unit of work and returns the unit.

    Args:
        stage: stage to run.
        unit: a unit of work: display ``name``, names of the ``tasks``, and ``options`` of the command.
    """

    template_fields = ("unit",)

    def __init__(self, *, stage: Stage, unit: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage, self.unit = stage, unit
        self._launcher: Launcher | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        context["unit_name"] = self.unit["name"]
        options = {**self.unit["options"], "task": ",".join(self.unit["tasks"])}
        try:
            self._launcher = Launcher(self.stage, options)
            self.log.info("%s", " ".join(self._launcher.words))
            self._launcher.run(self.log.info)
        except StageError as error:
            kind = AirflowFailException if error.is_permanent else AirflowException
            raise kind(f"{self.stage.name}: {error}") from None
        return self.unit

    def on_kill(self) -> None:
        if self._launcher:
            self._launcher.stop()


def runs_of(params: dict[str, Any], handed: list[dict[str, Any]], needs_task: bool = True) -> list[dict[str, Any]]:
    """Tasks of a DAG run for each set of options.

    Args:
        params: parameters of the run, used if ``handed`` is empty.
        handed: extras of the asset events that triggered the run; several if the upstream stage has finished several
            times since the last run.
        needs_task: whether the parameter ``task`` is required; if not, it defaults to all tasks.

    Raises:
        UserError: ``handed`` is empty, and a parameter is unknown or invalid, or there is no task.
    """
    if not handed:
        options = options_of(params, needs_task)
        return [{"tasks": options.pop("task").split(","), "options": options}]
    merged: dict[str, dict[str, Any]] = {}
    for extra in handed:
        for run in extra["runs"]:
            key = json.dumps(run["options"], sort_keys=True)
            tasks = merged.setdefault(key, {"options": run["options"], "tasks": []})["tasks"]
            tasks += [name for name in run["tasks"] if name not in tasks]
    return list(merged.values())


def stage_dag(stage: Stage) -> DAG:
    """Create the DAG of a stage."""
    cron = os.environ.get(SCHEDULES.get(stage, ""))
    schedule: Any = CronTriggerTimetable(cron, timezone="UTC") if cron else None
    if stage.after:
        schedule = AssetAny(*(ASSETS[name] for name in (stage.after, stage.also_after) if name))
    with DAG(
        f"jat_{stage.name}",
        schedule=schedule,
        catchup=False,
        max_active_runs=1,
        tags=["jat"],
        doc_md=f"`jat {stage.name}`; a run again does only what is missing.",
        params={name: Param(DEFAULTS.get(name), **each.schema) for name, each in PARAMETERS.items()},
    ) as dag:

        @task(retries=0)
        def plan(params: dict[str, Any], dag_run: Any, triggering_asset_events: Any) -> list[dict[str, Any]]:
            """Determine the units of work, from the triggering asset events or else from the parameters."""
            handed = [event.extra for events in triggering_asset_events.values() for event in events]
            units = []
            try:
                # Airflow does not reject unknown names in `conf`, so they are checked here.
                for run in runs_of({**params, **(dag_run.conf or {})}, handed, "task" in stage.options):
                    options = run["options"]
                    if stage is PUBLISH and not options.get("to"):
                        continue
                    for value in options.values():
                        check_no_credentials(str(value))
                    check_out(options["out"])
                    for names in units_of(stage, {**options, "task": ",".join(run["tasks"])}):
                        units.append({"name": unit_name(names), "tasks": names, "options": options})
            except UserError as error:
                raise AirflowFailException(str(error)) from None
            if not units:
                raise AirflowSkipException(
                    "nothing to do: corpora alone, or no place to publish to (the parameter `to`)"
                )
            return units

        done = StageOperator.partial(
            task_id=stage.name,
            stage=stage,
            pool=f"jat_{stage.name}",
            retries=int(os.environ.get("JAT_RETRIES", "2")),
            retry_delay=timedelta(seconds=float(os.environ.get("JAT_RETRY_SECONDS", "60"))),
            retry_exponential_backoff=True,
            execution_timeout=timedelta(hours=float(os.environ.get("JAT_TIMEOUT_HOURS", "48"))),
            map_index_template="{{ unit_name }}",
        ).expand(unit=plan())

        @task(outlets=[ASSETS[stage.name]], trigger_rule="all_done", retries=0)
        def hand_on(units: Any, outlet_events: Any) -> None:
            """Trigger the next stage with the units that succeeded; a failed unit returns nothing."""
            worked = [unit for unit in units or [] if unit]
            if not worked:
                raise AirflowSkipException("nothing worked")
            outlet_events[ASSETS[stage.name]].extra = {"runs": runs_of({}, [{"runs": worked}])}

        @task(retries=0)
        def all_worked() -> None:
            """Leaf task with the default trigger rule: a failed unit fails the DAG run, but the others continue."""

        hand_on(done.output)
        done >> all_worked()
    return dag


for _stage in ALL_STAGES:
    globals()[f"jat_{_stage.name}"] = stage_dag(_stage)
