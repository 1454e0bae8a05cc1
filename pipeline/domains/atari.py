"""Atari: 57 games through ALE's v5 ids, preprocessed as JAT (and DQN before it) did.

Frame skip 4 with a maximum over the last two frames, no sticky actions, 1 to 30 no-ops after a reset, then FIRE where
the game waits for it, grey 84 x 84, a stack of 4 frames as the last axis, the minimal action set, raw rewards. An
episode is a full game of at most 108,000 emulator frames; Montezuma's Revenge ends after 18,000.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.tasks import IMAGE, Action, Task

FRAME_SKIP = 4
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
    """Presses FIRE, then the next action of the set, after each reset, for games that wait for it.

    The order of the two presses is OpenAI baselines' convention, which JAT's experts were trained under.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        for action in (1, 2):
            observation, _, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                observation, info = self.env.reset(options=options)
        return observation, info


class ImageObservation(gym.ObservationWrapper[Any, Any, Any]):
    """The frame stack, channel last, under JAT's key."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Dict({IMAGE: gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)})

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {IMAGE: np.moveaxis(observation, 0, -1)}


def make_env(task: Task) -> gym.Env[Any, Any]:
    import ale_py

    gym.register_envs(ale_py)
    env = gym.make(
        task.env_id,
        frameskip=1,
        repeat_action_probability=0.0,
        max_num_frames_per_episode=task.max_steps * FRAME_SKIP,
        disable_env_checker=True,
    )
    meanings = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
    env = gym.wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=FRAME_SKIP, screen_size=84)
    if "FIRE" in meanings:
        env = FireReset(env)
    return ImageObservation(gym.wrappers.FrameStackObservation(env, stack_size=4))


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
        packages=("ale-py", "gymnasium", "opencv-python-headless", "numpy"),
        factory=make_env,
    )
    for name, game, num_actions in GAMES
)
