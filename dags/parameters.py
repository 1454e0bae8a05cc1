"""Parameters of a DAG run, and their conversion from the ``conf`` of a trigger to options of the commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.text import nearest_name


@dataclass(frozen=True)
class Parameter:
    """A parameter of a DAG run.

    Attributes:
        description: description for the trigger form.
        example: a valid value.
        is_number: whether a number is also accepted.
    """

    description: str
    example: str
    is_number: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """Keywords of the JSON schema; a parameter that is not given is null."""
        numbers = {"minimum": 1} if self.is_number else {}
        types = ["null", "string", *(["integer"] if self.is_number else [])]
        return {"type": types, "description": self.description, "examples": [self.example], **numbers}


PARAMETERS = {
    "task": Parameter(
        "Tasks to work on: a name, a domain, a glob, or a comma list of these; `*` for all 157. There is no default: "
        "where no expert is stored, `jat_experts` trains one, for Atari up to a week each.",
        "metaworld-[ab]*",
    ),
    "out": Parameter("Output root: an absolute path, or a URL such as s3://bucket/run.", "/data/run"),
    "recipe": Parameter("Recipe of every stage that has recipes; each stage's own default if not given.", "demo"),
    "episodes": Parameter(
        "Training episodes per task: a number, or numbers by task or domain; the recipe's if not given.",
        "300,babyai=10000",
        is_number=True,
    ),
    "source": Parameter(
        "Where corpora come from instead of the Hub: corpus=folder, or a comma list of these.", "wikipedia=/data/wiki"
    ),
    "expert": Parameter("Who acts: best, a kind, a revision or a mix; best if not given.", "0.7*best+0.3*scripted"),
    "queue": Parameter(
        "TOML file of long trainings, for `jat_experts-queue`; the list of its last run if not given.",
        "/lists/atari.toml",
    ),
    "workers": Parameter("Worker processes of a unit of work; 2 if not given.", "8", is_number=True),
    "to": Parameter(
        "Where to publish: owner/name on the Hub, a URL or a folder; not published if not given.", "owner/name"
    ),
}


def options_of(conf: Mapping[str, Any], needs_task: bool = True) -> dict[str, str]:
    """Convert the parameters of a run to options by name, without those that are not given.

    Args:
        conf: parameters of the run.
        needs_task: whether ``task`` is required; if not, it defaults to all tasks.

    Raises:
        UserError: an unknown name (the message has the nearest known one); a value that is neither text nor a whole
            number; no task.
    """
    options = {}
    for name, value in conf.items():
        if name not in PARAMETERS:
            near = nearest_name(name, PARAMETERS)
            hint = f"did you mean {near!r}?" if near else f"allowed: {', '.join(PARAMETERS)}"
            raise UserError(f"there is no parameter {name!r}; {hint}")
        if value is None or value == "":
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not isinstance(value, str) and not (is_number and PARAMETERS[name].is_number and value == int(value)):
            raise UserError(f"parameter {name!r} is {value!r}; give text such as {PARAMETERS[name].example!r}")
        options[name] = value if isinstance(value, str) else str(int(value))
    if "task" not in options and not needs_task:
        options["task"] = "*"
    if "task" not in options:
        raise UserError("the parameter 'task' is not given; name tasks, such as 'metaworld-[ab]*', or '*' for all 157")
    return options
