"""The card's notes on each domain: description, differences from JAT's data, licence and citations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DomainNotes:
    """Notes on one domain.

    Attributes:
        title: its full name.
        about: one paragraph on observations and actions.
        differences: from the data that JAT published, one sentence each.
        licence: of the software and assets that the episodes were made with.
        citations: BibTeX entries of the authors of the environments.
    """

    title: str
    about: str
    differences: tuple[str, ...] = ()
    licence: str = ""
    citations: tuple[str, ...] = ()


JAT_CITATION = """@article{gallouedec2024jack,
  title = {Jack of All Trades, Master of Some, a Multi-Purpose Transformer Agent},
  author = {Gallou{\\'e}dec, Quentin and Beeching, Edward and Romac, Cl{\\'e}ment and Dellandr{\\'e}a, Emmanuel},
  journal = {arXiv preprint arXiv:2402.09844},
  year = {2024}
}"""

MUJOCO_CITATION = """@inproceedings{todorov2012mujoco,
  title = {MuJoCo: A physics engine for model-based control},
  author = {Todorov, Emanuel and Erez, Tom and Tassa, Yuval},
  booktitle = {IEEE/RSJ International Conference on Intelligent Robots and Systems},
  year = {2012}
}"""

# Explanations of the kinds of experts, for readers new to the terms.
EXPERT_KINDS = {
    "bot": "the planner that ships with minigrid; it reads the state of the grid",
    "scripted": "the policy that ships with metaworld; it reads the hidden goal",
    "random": "every action equally likely",
    "imported": "whoever played in a dataset that was not made here; its source is named below",
    "ppo": "a network trained with Stable-Baselines3",
    "sac": "a network trained with Stable-Baselines3",
    "trpo": "a network trained with sb3-contrib",
    "tqc": "a network trained with sb3-contrib",
    "crossq": "a network trained with sb3-contrib",
    "sample-factory": "a network trained with Sample Factory (APPO)",
}

NOTES = {
    "atari": DomainNotes(
        title="Atari",
        about="Games of the Atari 2600 in the Arcade Learning Environment, from pixels. A step is one image of 84 x 84 "
        "pixels whose four channels are the last four frames, grey, the newest last; the action is one of the game's "
        "minimal set. Four emulator frames per step, no sticky actions, rewards not clipped; an episode is a whole "
        "game.",
        differences=(
            "The image of a step is the same RGBA picture, but as TIFF, not PNG, so that frames that four steps share "
            "take the space of one; `datasets` and Pillow open both alike.",
        ),
        licence="ALE, with its emulator Stella, is GPL-2.0; it is used to make the data and is no part of it. The "
        "games belong to those who hold their rights; the observations are pictures of them, for research.",
        citations=(
            """@article{bellemare2013arcade,
  title = {The Arcade Learning Environment: An Evaluation Platform for General Agents},
  author = {Bellemare, Marc G. and Naddaf, Yavar and Veness, Joel and Bowling, Michael},
  journal = {Journal of Artificial Intelligence Research},
  volume = {47},
  pages = {253--279},
  year = {2013}
}""",
        ),
    ),
    "babyai": DomainNotes(
        title="BabyAI",
        about="Missions in words, in grid worlds that are only seen in part. A step is 148 integers (the direction the "
        "agent looks in, then its 7 x 7 x 3 view laid flat) and the text of the mission; the action is one of 7.",
        differences=(
            "JAT left out episodes whose planning took longer than 20 ms, so which ones it has depended on the "
            "machine and leans to easy ones; here an episode is rejected when the bot's plan outgrows a fixed size.",
            "No episode is empty (JAT's `babyai-pickup-dist` has 5,360 without a step).",
        ),
        licence="minigrid, which holds the BabyAI levels and the bot, is Apache-2.0.",
        citations=(
            """@inproceedings{chevalierboisvert2019babyai,
  title = {BabyAI: A Platform to Study the Sample Efficiency of Grounded Language Learning},
  author = {Chevalier-Boisvert, Maxime and Bahdanau, Dzmitry and Lahlou, Salem and Willems, Lucas and
            Saharia, Chitwan and Nguyen, Thien Huu and Bengio, Yoshua},
  booktitle = {International Conference on Learning Representations},
  year = {2019}
}""",
        ),
    ),
    "metaworld": DomainNotes(
        title="Meta-World",
        about="A robot arm at a table. A step is 39 numbers (the gripper and the objects, now and one step before) "
        "and the action is 4, in [-1, 1]. Episodes have 100 steps, as in JAT. The goal is redrawn in each episode and "
        "hidden: the last three numbers of an observation are zero.",
        differences=(
            "The environments are v3 (JAT: v2), with Meta-World's second version of the rewards.",
            "Actions are stored as the environment took them, clipped to their bounds.",
        ),
        licence="Meta-World is MIT; MuJoCo, which simulates it, is Apache-2.0.",
        citations=(
            """@inproceedings{yu2019metaworld,
  title = {Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning},
  author = {Yu, Tianhe and Quillen, Deirdre and He, Zhanpeng and Julian, Ryan and Hausman, Karol and Finn, Chelsea and
            Levine, Sergey},
  booktitle = {Conference on Robot Learning},
  year = {2019}
}""",
            MUJOCO_CITATION,
        ),
    ),
    "mujoco": DomainNotes(
        title="MuJoCo",
        about="Locomotion and reaching in gymnasium's MuJoCo environments. Observations and actions are vectors of "
        "numbers whose sizes differ by task (a humanoid's observation has 376).",
        differences=(
            "The pusher is `Pusher-v5`, because `Pusher-v4` refuses MuJoCo 3 and later; all others are v4, as in JAT.",
            "Actions are stored as the environment took them, clipped to their bounds (JAT's reach up to 9).",
        ),
        licence="gymnasium is MIT; MuJoCo is Apache-2.0.",
        citations=(MUJOCO_CITATION,),
    ),
}


def notes_on(domain: str) -> DomainNotes:
    """The notes on a domain; only its name where there are none."""
    return NOTES.get(domain, DomainNotes(title=domain, about=""))
