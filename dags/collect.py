"""``jat collect``: the collection, which knows the trained agent by the name of a module of the trainer.

    jat collect --task mujoco-hopper --policy agent --labels best --episodes 100 --out runs/default

Collectors and trainer do not import each other; this module is above both.
"""

from __future__ import annotations

from collectors import collect
from experts.acting.agents import use_agents
from pipeline.cli import run


def main() -> None:
    use_agents("trainer.acting")
    collect.main()


if __name__ == "__main__":
    run("dags.collect")
