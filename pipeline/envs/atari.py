"""Defines the Atari domain: 57 games with ALE's v5 ids, preprocessed as in JAT (and in DQN before it).

Frame skip 4 with a maximum over the last two frames, no sticky actions, 1 to 30 no-ops after a reset, then FIRE if the
game waits for it, greyscale 84 x 84, a stack of 4 frames as the last axis, the minimal action set, raw rewards. An
episode is a full game of at most 108,000 emulator frames (18,000 in Montezuma's Revenge).

``make_env`` runs this preprocessing directly on ALE's emulator. ``make_reference_env`` does the same with gymnasium's
wrappers and can also render. A test checks that both give the same frames.
"""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.envs.task import IMAGE, Action, Task
from pipeline.errors import UserError

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
# The order of the two actions is the convention of OpenAI baselines, with which JAT's experts were trained.
FIRE_PRESSES = (1, 2)
FRAMES_PER_CHUNK = 256  # frames per allocation

# Every game's screen is 210 x 160, so five screen rows become two frame rows: bands of this height can be resized
# independently.
SCREEN_SHAPE = (210, 160)
NUM_BANDS = 42
SCREEN_ROWS, FRAME_ROWS = SCREEN_SHAPE[0] // NUM_BANDS, FRAME_SHAPE[0] // NUM_BANDS


class Shrinker:
    """Resizes screens to frames with OpenCV's ``INTER_AREA``, but only bands that differ from the previous screen.

    Resizing a whole frame takes 72 microseconds, a third of the time for emulating its four screens. Most of a screen
    does not change between steps.
    """

    def __init__(self) -> None:
        import cv2

        self._resize, self._how = cv2.resize, cv2.INTER_AREA
        self._screen = np.zeros(SCREEN_SHAPE, np.uint8)
        self._frame = np.zeros(FRAME_SHAPE, np.uint8)

    def __call__(self, screen: np.ndarray) -> np.ndarray:
        """Resize ``(210, 160)`` uint8 to ``(84, 84)`` uint8; the next call overwrites the returned array."""
        # Compare eight pixels at a time: for most bands the comparison is the only cost.
        unlike = screen.view(np.uint64) != self._screen.view(np.uint64)
        changed = np.flatnonzero(unlike.reshape(NUM_BANDS, -1).any(axis=1)).tolist()
        begin = 0
        for place, band in enumerate(changed, 1):
            if place < len(changed) and changed[place] == band + 1:
                continue
            first, end = changed[begin], band + 1
            self._resize(
                screen[first * SCREEN_ROWS : end * SCREEN_ROWS],
                (FRAME_SHAPE[1], (end - first) * FRAME_ROWS),
                self._frame[first * FRAME_ROWS : end * FRAME_ROWS],
                interpolation=self._how,
            )
            begin = place
        if changed:
            self._screen[:] = screen
        return self._frame


class AtariGame(gym.Env[Any, Any]):
    """One Atari game, with frame skip, maximum, greyscale and resizing directly on the emulator.

    Observations are views of frames that are never overwritten, so storing an episode's observations takes one frame
    per step instead of four. ``info["lives"]`` is the number of lives left.

    ALE's vector interface is not used: it derives the number of no-ops from its seed, so it would have to reload the
    game at each reset, which takes 90 milliseconds. Its steps are no faster.
    """

    def __init__(self, task: Task) -> None:
        import ale_py
        from ale_py.roms import get_rom_path

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.setInt("random_seed", 0)  # has no effect without sticky actions
        self._ale.loadROM(get_rom_path(_rom_name(task.env_id)))
        self._ale.reset_game()
        self._start = self._ale.cloneSystemState()
        self._actions = self._ale.getMinimalActionSet()
        self._presses = FIRE_PRESSES if _waits_for_fire(self._actions) else ()
        self.observation_space = _space()
        self.action_space = gym.spaces.Discrete(len(self._actions))
        self._screen, self._screen_before = np.zeros(SCREEN_SHAPE, np.uint8), np.zeros(SCREEN_SHAPE, np.uint8)
        self._shrink = Shrinker()
        self._frames = np.empty((0, *FRAME_SHAPE), np.uint8)
        self._next = 0
        self._max_steps, self._steps = task.max_steps, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if seed is not None:
            seed = int(np.random.SeedSequence(seed).generate_state(2)[0])  # as ale_py.AtariEnv derives its seed
        super().reset(seed=seed)
        frame = self._restart()
        for action in self._presses:
            frame, _, over = self._advance(action)
            if over:
                frame = self._restart()
        self._frames = np.empty((FRAMES_PER_CHUNK, *FRAME_SHAPE), np.uint8)
        self._frames[:STACK_SIZE] = frame
        self._next = STACK_SIZE
        self._steps = 0
        return self._observation(), self._info()

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        frame, reward, terminated = self._advance(action)
        self._steps += 1
        truncated = self._steps >= self._max_steps
        if self._next == len(self._frames):
            chunk = np.empty((FRAMES_PER_CHUNK, *FRAME_SHAPE), np.uint8)
            chunk[: STACK_SIZE - 1] = self._frames[1 - STACK_SIZE :]
            self._frames, self._next = chunk, STACK_SIZE - 1
        self._frames[self._next] = frame
        self._next += 1
        return self._observation(), reward, terminated, truncated, self._info()

    def _restart(self) -> np.ndarray:
        """Start a new game, play its no-ops and return the frame after them."""
        self._begin()
        for _ in range(int(self.np_random.integers(1, MAX_NOOPS + 1))):
            self._ale.act(self._actions[0])
            if self._ale.game_over():
                self._begin()
        self._ale.getScreenGrayscale(self._screen)
        self._screen_before[:] = 0
        return self._shrink(self._screen)

    def _begin(self) -> None:
        """Restore the state after loading the ROM: with a reset alone, some games keep state of the previous game."""
        self._ale.reset_game()  # resets what the saved state does not include, for two games
        self._ale.restoreSystemState(self._start)

    def _advance(self, action: int) -> tuple[np.ndarray, float, bool]:
        """Run ``FRAME_SKIP`` screens; return the frame, the sum of their rewards and whether the game is over."""
        ale, move = self._ale, self._actions[action]
        reward = 0
        for left in range(FRAME_SKIP - 1, -1, -1):
            reward += ale.act(move)
            if ale.game_over():
                break
            if left == 1:
                ale.getScreenGrayscale(self._screen_before)
            elif left == 0:
                ale.getScreenGrayscale(self._screen)
        np.maximum(self._screen, self._screen_before, out=self._screen)
        return self._shrink(self._screen), float(reward), ale.game_over()

    def _info(self) -> dict[str, Any]:
        return {"lives": self._ale.lives()}

    def _observation(self) -> dict[str, np.ndarray]:
        return {IMAGE: self._frames[self._next - STACK_SIZE : self._next].transpose(1, 2, 0)}


def _space() -> gym.spaces.Dict:
    return gym.spaces.Dict({IMAGE: gym.spaces.Box(0, 255, (*FRAME_SHAPE, STACK_SIZE), np.uint8)})


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
        self.observation_space = _space()

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {IMAGE: np.moveaxis(observation, 0, -1)}


def make_env(task: Task) -> gym.Env[Any, Any]:
    return AtariGame(task)


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
    if _waits_for_fire(actions):
        env = FireReset(env)
    env = ImageObservation(gym.wrappers.FrameStackObservation(env, stack_size=STACK_SIZE))
    return gym.wrappers.TimeLimit(env, task.max_steps)


def _waits_for_fire(actions: Any) -> bool:
    import ale_py

    return ale_py.Action.FIRE in actions


def check_rom(task: Task) -> None:
    """Check that the game's ROM is installed.

    Raises:
        UserError: the ROM is missing or not the version that ALE supports.
    """
    from ale_py.roms import get_rom_path

    name = _rom_name(task.env_id)
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


def _rom_name(env_id: str) -> str:
    """Return the name of the game's ROM file, such as ``ms_pacman`` for ``ALE/MsPacman-v5``."""
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
        lockstep=32,  # a batch of 32 takes the network 10 % less time per game than one of 16
        packages=("ale-py", "gymnasium", "opencv-python-headless", "numpy"),
        factory=make_env,
        drawable_factory=make_reference_env,
    )
    for name, game, num_actions in GAMES
)
