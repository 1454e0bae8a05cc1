"""Runs an Atari game and JAT's preprocessing directly on ALE's emulator, faster than gymnasium's wrappers.

``pipeline/envs/atari.py`` has the same environment made of these wrappers as a reference; a test checks that both give
the same frames.
"""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.envs.task import IMAGE, Task

FRAME_SKIP = 4
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
        self._ale.loadROM(get_rom_path(rom_name(task.env_id)))
        self._ale.reset_game()
        self._start = self._ale.cloneSystemState()
        self._actions = self._ale.getMinimalActionSet()
        self._presses = FIRE_PRESSES if waits_for_fire(self._actions) else ()
        self.observation_space = observation_space()
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


def observation_space() -> gym.spaces.Dict:
    return gym.spaces.Dict({IMAGE: gym.spaces.Box(0, 255, (*FRAME_SHAPE, STACK_SIZE), np.uint8)})


def waits_for_fire(actions: Any) -> bool:
    import ale_py

    return ale_py.Action.FIRE in actions


def rom_name(env_id: str) -> str:
    """Return the name of the game's ROM file, such as ``ms_pacman`` for ``ALE/MsPacman-v5``."""
    game = env_id.removeprefix("ALE/").removesuffix("-v5")
    return re.sub(r"(?<!^)(?=[A-Z])", "_", game).lower()
