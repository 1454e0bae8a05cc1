"""Defines the Atari domain: 57 games with ALE's v5 ids, preprocessed as in JAT (and in DQN before it).

Frame skip 4 with a maximum over the last two frames, no sticky actions, 1 to 30 no-ops after a reset, then FIRE if the
game waits for it, greyscale 84 x 84, a stack of 4 frames as the last axis, the minimal action set, raw rewards. An
episode is a full game of at most 108,000 emulator frames (18,000 in Montezuma's Revenge).

``make_env`` runs this preprocessing directly on ALE's emulator. ``make_reference_env`` does the same with gymnasium's
wrappers and can also render. A test checks that both give the same frames.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.envs.atari_game import (
    FIRE_PRESSES,
    FRAME_SHAPE,
    FRAME_SKIP,
    MAX_NOOPS,
    STACK_SIZE,
    AtariGame,
    observation_space,
    rom_name,
    waits_for_fire,
)
from pipeline.envs.domain import Domain
from pipeline.envs.task import IMAGE, Action, Task
from pipeline.errors import UserError

MAX_FRAMES = 108_000
MAX_FRAMES_MONTEZUMA = 18_000

# name, game, size of the minimal action set
GAMES = (
    ("alien", "Alien", 18),
    ("amidar", "Amidar", 10),
    ("assault", "Assault", 7),
    ("asterix", "Asterix", 9),
    ("asteroids", "Asteroids", 14),
    ("atlantis", "Atlantis", 4),
    ("bankheist", "BankHeist", 18),
    ("battlezone", "BattleZone", 18),
    ("beamrider", "BeamRider", 9),
    ("berzerk", "Berzerk", 18),
    ("bowling", "Bowling", 6),
    ("boxing", "Boxing", 18),
    ("breakout", "Breakout", 4),
    ("centipede", "Centipede", 18),
    ("choppercommand", "ChopperCommand", 18),
    ("crazyclimber", "CrazyClimber", 9),
    ("defender", "Defender", 18),
    ("demonattack", "DemonAttack", 6),
    ("doubledunk", "DoubleDunk", 18),
    ("enduro", "Enduro", 9),
    ("fishingderby", "FishingDerby", 18),
    ("freeway", "Freeway", 3),
    ("frostbite", "Frostbite", 18),
    ("gopher", "Gopher", 8),
    ("gravitar", "Gravitar", 18),
    ("hero", "Hero", 18),
    ("icehockey", "IceHockey", 18),
    ("jamesbond", "Jamesbond", 18),
    ("kangaroo", "Kangaroo", 18),
    ("krull", "Krull", 18),
    ("kungfumaster", "KungFuMaster", 14),
    ("montezumarevenge", "MontezumaRevenge", 18),
    ("mspacman", "MsPacman", 9),
    ("namethisgame", "NameThisGame", 6),
    ("phoenix", "Phoenix", 8),
    ("pitfall", "Pitfall", 18),
    ("pong", "Pong", 6),
    ("privateeye", "PrivateEye", 18),
    ("qbert", "Qbert", 6),
    ("riverraid", "Riverraid", 18),
    ("roadrunner", "RoadRunner", 18),
    ("robotank", "Robotank", 18),
    ("seaquest", "Seaquest", 18),
    ("skiing", "Skiing", 3),
    ("solaris", "Solaris", 18),
    ("spaceinvaders", "SpaceInvaders", 6),
    ("stargunner", "StarGunner", 18),
    ("surround", "Surround", 5),
    ("tennis", "Tennis", 18),
    ("timepilot", "TimePilot", 10),
    ("tutankham", "Tutankham", 8),
    ("upndown", "UpNDown", 6),
    ("venture", "Venture", 18),
    ("videopinball", "VideoPinball", 9),
    ("wizardofwor", "WizardOfWor", 10),
    ("yarsrevenge", "YarsRevenge", 18),
    ("zaxxon", "Zaxxon", 18),
)


class FireReset(gym.Wrapper[Any, Any, Any, Any]):
    """Presses FIRE, then the next action of the action set, after each reset, for games that wait for FIRE."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        for action in FIRE_PRESSES:
            observation, _, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                observation, info = self.env.reset(options=options)
        return observation, info


class ImageObservation(gym.ObservationWrapper[Any, Any, Any]):
    """Puts the frame stack, channels last, under the observation key of JAT."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = observation_space()

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {IMAGE: np.moveaxis(observation, 0, -1)}


def make_env(task: Task) -> gym.Env[Any, Any]:
    return make_reference_env(task) if task.is_reference else AtariGame(task)


def make_reference_env(task: Task) -> gym.Env[Any, Any]:
    """Make the same environment with gymnasium's wrappers: slower, but it can render."""
    import ale_py

    gym.register_envs(ale_py)
    env = gym.make(
        task.env_id,
        frameskip=1,
        repeat_action_probability=0.0,
        max_num_frames_per_episode=0,  # no limit here: TimeLimit below counts steps
        disable_env_checker=True,
    )
    actions = env.unwrapped.ale.getMinimalActionSet()  # type: ignore[attr-defined]
    env = gym.wrappers.AtariPreprocessing(env, noop_max=MAX_NOOPS, frame_skip=FRAME_SKIP, screen_size=FRAME_SHAPE[0])
    if waits_for_fire(actions):
        env = FireReset(env)
    env = ImageObservation(gym.wrappers.FrameStackObservation(env, stack_size=STACK_SIZE))
    return gym.wrappers.TimeLimit(env, task.max_steps)


def check_rom(task: Task) -> None:
    """Check that the game's ROM is installed.

    Raises:
        UserError: the ROM is missing or not the version that ALE supports.
    """
    from ale_py.roms import get_rom_path

    name = rom_name(task.env_id)
    try:
        found = get_rom_path(name)
    except (OSError, ValueError) as error:  # no folder, no file, another checksum
        reason = " ".join(str(error).split())
        raise UserError(f"{task.name} has no ROM ({reason}); reinstall ale-py, or unset ALE_ROMS_DIR") from error
    if found is None:
        raise UserError(
            f"{task.name} has no ROM: ale-py does not know {name!r}; install the version of ale-py pinned "
            f"in constraints.txt"
        )


TASKS = tuple(
    Task(
        name=f"atari-{name}",
        domain="atari",
        env_id=f"ALE/{game}-v5",
        jat_env_id=f"ALE/{game}-v5",
        observation=IMAGE,
        observation_shape=(84, 84, 4),
        action=Action("discrete", num_actions),
        max_steps=(MAX_FRAMES_MONTEZUMA if name == "montezumarevenge" else MAX_FRAMES) // FRAME_SKIP,
        success=None,
        lockstep=32,  # a batch of 32 takes the network 10 % less time per game than one of 16
        packages=("ale-py", "gymnasium", "opencv-python-headless", "numpy"),
        factory=make_env,
        drawable_factory=make_reference_env,
    )
    for name, game, num_actions in GAMES
)


# The games whose repository is named otherwise; there is none for surround.
_REPOSITORIES = {
    "asteroids": "asteroid",
    "kungfumaster": "kongfumaster",
    "montezumarevenge": "montezuma",
    "privateeye": "privateye",
}
_JAT_EXPERTS = {
    f"atari-{name}": f"edbeeching/atari_2B_atari_{_REPOSITORIES.get(name, name)}_1111"
    for name, _, _ in GAMES
    if name != "surround"
}

DOMAIN = Domain(
    name="atari",
    title="Atari",
    tasks=TASKS,
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
    colours=("#b8470f", "#f99b5c"),
    steps_per_s=15,  # the emulator's frames per second, four frames per step
    shard_episodes=25,
    jat_iqm=0.14,
    jat_context_steps=16,
    jat_experts=_JAT_EXPERTS,
    hub_experts={name: (repository,) for name, repository in _JAT_EXPERTS.items()},
    is_arcade=True,
    check=check_rom,
)
