"""Atari: 57 games through ALE's v5 ids, preprocessed as JAT (and DQN before it) did.

Frame skip 4 with a maximum over the last two frames, no sticky actions, 1 to 30 no-ops after a reset, then FIRE where
the game waits for it, grey 84 x 84, a stack of 4 frames as the last axis, the minimal action set, raw rewards. An
episode is a full game of at most 108,000 emulator frames; Montezuma's Revenge ends after 18,000.

``make_env`` steps ALE's C++ vector interface; ``make_reference_env`` is the same through gymnasium's wrappers, which
can also be drawn. A test holds the one to the other, frame by frame.
"""

from __future__ import annotations

import re
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


FRAME_SHAPE = (84, 84)
STACK_SIZE = 4
MAX_NOOPS = 30
# The order of the two presses is OpenAI baselines' convention, which JAT's experts were trained under.
FIRE_PRESSES = (1, 2)
FRAMES_PER_CHUNK = 256  # that are allocated at once

# A seed of ALE's vector interface by the number of no-ops it draws from it, 1 to 30. Nothing else in a game follows
# from that seed while actions are not sticky.
NOOP_SEEDS = (
    21, 7, 19, 12, 11, 5, 33, 31, 17, 218, 38, 1, 2, 35, 14, 23, 0, 20, 30, 18, 120, 28, 10, 13, 44, 15, 6, 59, 4, 45,
)  # fmt: skip


class VectorGame(gym.Env[Any, Any]):
    """One game through ALE's C++ vector interface: frame skip, maximum, grey and size without Python in between.

    Observations are views into frames that are never written again, so that keeping all of an episode's costs one
    frame per step, not four. ``info["lives"]`` tells the lives left.

    One interface per game, not one for several: a game that is over then waits for nobody, and costs nothing. What
    that loses is 10 % of the emulator's speed.
    """

    def __init__(self, task: Task) -> None:
        from ale_py.vector_env import AtariVectorEnv

        self._vector = AtariVectorEnv(
            _rom_name(task.env_id),
            num_envs=1,
            num_threads=1,
            stack_num=1,
            frameskip=FRAME_SKIP,
            noop_max=MAX_NOOPS + 1,  # it draws 0 to noop_max - 1
            use_fire_reset=False,  # its own presses FIRE for a single frame, before the no-ops
            reward_clipping=False,
            max_num_frames_per_episode=2**31 - 1,
        )
        self._presses = FIRE_PRESSES if _waits_for_fire(self._vector.ale.get_action_set()) else ()
        self.observation_space = _space()
        self.action_space = self._vector.single_action_space
        self._frames = np.empty((0, *FRAME_SHAPE), np.uint8)
        self._next = 0
        self._start_frames: int | None = None
        self._max_steps, self._steps = task.max_steps, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if seed is not None:
            seed = int(np.random.SeedSequence(seed).generate_state(2)[0])  # as ale_py.AtariEnv derives its numbers
        super().reset(seed=seed)
        frame, info = self._restart()
        for action in self._presses:
            frame, _, terminated, truncated, info = self._advance(action)
            if terminated or truncated:
                frame, info = self._restart()
        self._frames = np.empty((FRAMES_PER_CHUNK, *FRAME_SHAPE), np.uint8)
        self._frames[:STACK_SIZE] = frame
        self._next = STACK_SIZE
        self._steps = 0
        return self._observation(), info

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        frame, reward, terminated, truncated, info = self._advance(action)
        self._steps += 1
        truncated = truncated or self._steps >= self._max_steps
        if self._next == len(self._frames):
            chunk = np.empty((FRAMES_PER_CHUNK, *FRAME_SHAPE), np.uint8)
            chunk[: STACK_SIZE - 1] = self._frames[1 - STACK_SIZE :]
            self._frames, self._next = chunk, STACK_SIZE - 1
        self._frames[self._next] = frame
        self._next += 1
        return self._observation(), reward, terminated, truncated, info

    def _restart(self) -> tuple[np.ndarray, dict[str, Any]]:
        noops = int(self.np_random.integers(1, MAX_NOOPS + 1))
        frames, info = self._vector.reset(seed=np.array([NOOP_SEEDS[noops - 1]]))
        # Some games have start frames of their own; their number is the same in every game.
        start_frames = int(info["episode_frame_number"][0]) - noops
        if self._start_frames not in (None, start_frames):
            raise RuntimeError(f"NOOP_SEEDS does not hold for this version of ale-py: {noops} no-ops were not made")
        self._start_frames = start_frames
        return frames[0, 0], _first(info)

    def _advance(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        frames, rewards, terminated, truncated, info = self._vector.step(np.array([action], np.int64))
        return frames[0, 0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), _first(info)

    def _observation(self) -> dict[str, np.ndarray]:
        return {IMAGE: np.moveaxis(self._frames[self._next - STACK_SIZE : self._next], 0, -1)}


def _first(info: dict[str, np.ndarray]) -> dict[str, Any]:
    return {"lives": int(info["lives"][0])}


def _space() -> gym.spaces.Dict:
    return gym.spaces.Dict({IMAGE: gym.spaces.Box(0, 255, (*FRAME_SHAPE, STACK_SIZE), np.uint8)})


class FireReset(gym.Wrapper[Any, Any, Any, Any]):
    """Presses FIRE, then the next action of the set, after each reset, for games that wait for it."""

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
    """The frame stack, channel last, under JAT's key."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = _space()

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {IMAGE: np.moveaxis(observation, 0, -1)}


def make_env(task: Task) -> gym.Env[Any, Any]:
    return VectorGame(task)


def make_reference_env(task: Task) -> gym.Env[Any, Any]:
    """The same environment through gymnasium's wrappers: slower, and it can be drawn."""
    import ale_py

    gym.register_envs(ale_py)
    env = gym.make(
        task.env_id,
        frameskip=1,
        repeat_action_probability=0.0,
        max_num_frames_per_episode=0,  # none: the limit below counts steps
        disable_env_checker=True,
    )
    actions = env.unwrapped.ale.getMinimalActionSet()  # type: ignore[attr-defined]
    env = gym.wrappers.AtariPreprocessing(env, noop_max=MAX_NOOPS, frame_skip=FRAME_SKIP, screen_size=FRAME_SHAPE[0])
    if _waits_for_fire(actions):
        env = FireReset(env)
    env = ImageObservation(gym.wrappers.FrameStackObservation(env, stack_size=STACK_SIZE))
    return gym.wrappers.TimeLimit(env, task.max_steps)


def _waits_for_fire(actions: Any) -> bool:
    import ale_py

    return ale_py.Action.FIRE in actions


def _rom_name(env_id: str) -> str:
    """``ms_pacman`` of ``ALE/MsPacman-v5``, the name of the game's file."""
    game = env_id.removeprefix("ALE/").removesuffix("-v5")
    return re.sub(r"(?<!^)(?=[A-Z])", "_", game).lower()


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
        drawable_factory=make_reference_env,
    )
    for name, game, num_actions in GAMES
)
