"""The card's words on JAT and on the kinds of experts; those on a domain are in the domain's file."""

from __future__ import annotations

JAT_CITATION = """@article{gallouedec2024jack,
  title = {Jack of All Trades, Master of Some, a Multi-Purpose Transformer Agent},
  author = {Gallou{\\'e}dec, Quentin and Beeching, Edward and Romac, Cl{\\'e}ment and Dellandr{\\'e}a, Emmanuel},
  journal = {arXiv preprint arXiv:2402.09844},
  year = {2024}
}"""

# Explanations of the kinds of experts, for readers new to the terms.
EXPERT_KINDS = {
    "bot": "the planner that ships with minigrid; it reads the state of the grid",
    "scripted": "the policy that ships with metaworld; it reads the hidden goal",
    "random": "every action equally likely",
    "agent": "a network trained on such episodes, acting to see states that experts avoid",
    "imported": "whoever played in a dataset that was not made here; its source is named below",
    "ppo": "a network trained with Stable-Baselines3",
    "sac": "a network trained with Stable-Baselines3",
    "trpo": "a network trained with sb3-contrib",
    "tqc": "a network trained with sb3-contrib",
    "crossq": "a network trained with sb3-contrib",
    "sample-factory": "a network trained with Sample Factory (APPO)",
}
