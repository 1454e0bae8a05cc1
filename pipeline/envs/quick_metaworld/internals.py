"""Copies of metaworld's internals: its environments with the same numbers and less Python.

``quick_class`` makes a subclass of one of metaworld's environments. Three things are different in it:

- Helpers that all tasks share (step, observation, positions of bodies and sites, contacts) are replaced by the methods
  of ``_Quick``, which do the same with views of the simulator's memory that are looked up once.
- Each function of the task itself, such as its reward, keeps its code and gets other globals, those of
  ``pipeline/envs/quick_metaworld/functions.py``.
- A reset moves the hand once instead of twice, and not at all if a hand moved before in the same scene.

metaworld's own classes and modules are not changed. ``tests/pipeline/envs/test_metaworld.py`` and
``tests/benchmarks/metaworld_equality.py`` compare everything with metaworld's own environments, bit by bit.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import mujoco
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils.reward_utils import hamacher_product

from pipeline.envs.quick_metaworld.functions import clip, length, tolerance, with_quick_globals

CURRENT_SIZE = 18  # hand, gripper, and positions and quaternions of at most two objects
OBSERVATION_SIZE = 39  # the current and the previous values, then the goal
FLOAT32 = np.dtype(np.float32)
FLOAT32_RANGE = np.float32(-1), np.float32(1)
HAND_QUATERNION = np.array([1.0, 0.0, 1.0, 0.0])
WHOLE_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


class _Named:
    """What metaworld reads of one body, geometry, joint or site: views of the simulator's memory.

    mujoco's own object makes a view at each access, and keeps its ``MjData`` alive, so ``MjData`` must not keep it.
    """

    __slots__ = ("id", "qpos", "xmat", "xpos", "xquat")
    id: int

    def __init__(self, found: Any) -> None:
        for name in self.__slots__:
            if hasattr(found, name):
                object.__setattr__(self, name, getattr(found, name))

    def __setattr__(self, name: str, value: Any) -> None:
        getattr(self, name)[:] = value


class _Data(mujoco.MjData):  # type: ignore[misc]
    """The simulator's state, in which a body, geometry, joint or site is looked up by its name once."""

    def __init__(self, model: mujoco.MjModel) -> None:
        super().__init__(model)
        self._named: dict[tuple[str, Any], _Named] = {}

    def body(self, name: Any) -> _Named:
        return self._named.get(("body", name)) or self._look_up("body", name)

    def geom(self, name: Any) -> _Named:
        return self._named.get(("geom", name)) or self._look_up("geom", name)

    def joint(self, name: Any) -> _Named:
        return self._named.get(("joint", name)) or self._look_up("joint", name)

    def site(self, name: Any) -> _Named:
        return self._named.get(("site", name)) or self._look_up("site", name)

    def _look_up(self, kind: str, name: Any) -> _Named:
        found = self._named[kind, name] = _Named(getattr(super(), kind)(name))
        return found


class _Scene:
    """The compiled scene of a task, and its state shortly before the hand is in its first position.

    Attributes:
        model: what ``compile`` made.
        moved: what ``state`` depends on.
        state: the simulator's state before the last substep.
    """

    def __init__(self) -> None:
        self.model: mujoco.MjModel | None = None
        self.moved: Any = None
        self.state = np.empty(0)


class _Quick(SawyerXYZEnv):  # type: ignore[misc]
    """What all tasks share."""

    _scene: _Scene
    _is_first_pass = False
    _prev_obs: np.ndarray

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Share one compiled scene, because compiling takes longer than an episode, and look up views of the state."""
        if self._scene.model is None:
            self._scene.model, _ = super()._initialize_simulation()
        model = copy.copy(self._scene.model)  # each has its own, because a reset moves parts of the scene
        data = _Data(model)
        self._bodies = {model.body(i).name: data.xpos[i] for i in range(model.nbody)}
        self._sites = {model.site(i).name: data.site_xpos[i] for i in range(model.nsite)}
        self._hand, self._right_claw, self._left_claw = map(self._bodies.__getitem__, ("hand", "rightclaw", "leftclaw"))
        self._left_pad, self._right_pad = self._bodies["leftpad"], self._bodies["rightpad"]
        self._finger_ends = self._sites["rightEndEffector"], self._sites["leftEndEffector"]
        self._mocap_position, self._mocap_quaternion, self._control = data.mocap_pos[0], data.mocap_quat[0], data.ctrl
        self._pads = tuple(data.geom(name).id for name in ("leftpad_geom", "rightpad_geom"))
        return model, data

    def get_body_com(self, body_name: str) -> np.ndarray:
        return self._bodies[body_name]

    def get_endeff_pos(self) -> np.ndarray:
        return self._hand

    def _get_site_pos(self, site_name: str) -> np.ndarray:
        return self._sites[site_name].copy()

    @property
    def tcp_center(self) -> np.ndarray:
        right, left = self._finger_ends
        centre: np.ndarray = (right + left) / 2.0
        return centre

    def touching_object(self, object_geom_id: int) -> Any:
        contact = self.data.contact
        pairs = contact.geom.tolist()
        touched = [i for i, pair in enumerate(pairs) if object_geom_id in pair]
        if not touched:
            return False
        addresses, forces = contact.efc_address, self.data.efc_force
        left, right = (sum(forces[addresses[i]] for i in touched if pad in pairs[i]) for pad in self._pads)
        return left > 0 and right > 0

    def _get_curr_obs_combined_no_goal(self) -> np.ndarray:
        return self._look(np.zeros(CURRENT_SIZE))

    def _look(self, current: np.ndarray) -> np.ndarray:
        """Write the current values to the start of zeros."""
        current[:3] = self._hand
        between = self._right_claw - self._left_claw
        gripper = math.sqrt(between.dot(between)) / 0.1
        current[3] = 1.0 if gripper > 1.0 else gripper
        positions, quaternions = self._get_pos_objects(), self._get_quat_objects()
        if len(positions) == 3:
            current[4:7], current[7:11] = positions, quaternions
        else:
            current[4:7], current[7:11] = positions[:3], quaternions[:4]
            current[11:14], current[14:18] = positions[3:], quaternions[4:]
        return current

    def _get_obs(self) -> np.ndarray:
        observation = np.zeros(OBSERVATION_SIZE)
        self._look(observation)
        observation[18:36] = self._prev_obs
        if not self._partially_observable:
            observation[36:] = self._get_pos_goal()
        self._prev_obs = observation[:18].copy()
        return observation

    def _gripper_caging_reward(
        self,
        action: np.ndarray,
        obj_pos: np.ndarray,
        obj_radius: float,
        pad_success_thresh: float,
        object_reach_radius: float,
        xz_thresh: float,
        desired_gripper_effort: float = 1.0,
        high_density: bool = False,
        medium_density: bool = False,
    ) -> Any:
        if high_density and medium_density:
            raise ValueError("Can only be either high_density or medium_density")
        x, y, z = obj_pos.tolist()
        start_x, start_y, start_z = self.obj_init_pos.tolist()
        tcp_x, _, tcp_z = tcp = self.tcp_center.tolist()
        first_tcp_x, _, first_tcp_z = first_tcp = self.init_tcp.tolist()
        left_y, right_y = self._left_pad[1].item(), self._right_pad[1].item()
        sides = [
            tolerance(
                abs(pad_y - y),
                bounds=(obj_radius, pad_success_thresh),
                margin=abs(abs(pad_y - start_y) - pad_success_thresh),
                sigmoid="long_tail",
            )
            for pad_y in (left_y, right_y)
        ]
        caging_xz = tolerance(
            length(tcp_x - x, tcp_z - z),
            bounds=(0, xz_thresh),
            margin=length(start_x - first_tcp_x, start_z - first_tcp_z) - xz_thresh,
            sigmoid="long_tail",
        )
        gripper_closed = min(max(0, action[-1]), desired_gripper_effort) / desired_gripper_effort
        caging = hamacher_product(hamacher_product(*sides), caging_xz)
        result = hamacher_product(caging, gripper_closed if caging > 0.97 else 0.0)
        if high_density:
            result = (result + caging) / 2
        if medium_density:
            reach = tolerance(
                length(x - tcp[0], y - tcp[1], z - tcp[2]),
                bounds=(0, object_reach_radius),
                margin=abs(
                    length(start_x - first_tcp[0], start_y - first_tcp[1], start_z - first_tcp[2]) - object_reach_radius
                ),
                sigmoid="long_tail",
            )
            result = (result + reach) / 2
        return result

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        if not self._set_task_called:
            raise RuntimeError("You must call env.set_task before using env.step")
        if len(action) != 4:
            raise AssertionError(f"Actions should be size 4, got {len(action)}")
        low, high = FLOAT32_RANGE if action.dtype is FLOAT32 else (-1, 1)
        position = self._mocap_position
        moved = position + clip(action[:3], low, high) * self.action_scale
        clip(moved, self.mocap_low, self.mocap_high, out=position)
        self._mocap_quaternion[:] = HAND_QUATERNION
        if self.curr_path_length >= self.max_path_length:
            raise ValueError("You must reset the env manually once truncate==True")
        self._control[0] = gripper = action[3]
        self._control[1] = -gripper
        mujoco.mj_step(self.model, self.data, nstep=self.frame_skip)
        self.curr_path_length += 1
        # It also computes the start of the solver in the next step, so without it the numbers would be others.
        mujoco.mj_forward(self.model, self.data)
        space = self.sawyer_observation_space
        observation = clip(self._get_obs(), space.low, space.high)
        reward, info = self.evaluate_state(observation, action)
        return observation, reward, False, self.curr_path_length == self.max_path_length, info

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.curr_path_length = 0
        # metaworld prepares the scene twice. The simulator is reset in between, so of the first pass only random
        # numbers and the changes of the scene are left.
        self._is_first_pass = True
        try:
            self.reset_model()
        finally:
            self._is_first_pass = False
        mujoco.mj_resetData(self.model, self.data)
        observation: np.ndarray = self.reset_model()
        self._prev_obs = observation[:18].copy()
        observation[18:36] = self._prev_obs
        return observation, {}

    def _reset_hand(self, steps: int = 50) -> None:
        if self._is_first_pass:
            mujoco.mj_forward(self.model, self.data)  # bodies and sites are where the scene has them
        else:
            self._move_hand(steps)
        self.init_tcp = self.tcp_center

    def _move_hand(self, steps: int) -> None:
        """Move the hand to its first position, ``hand_init_pos``.

        The simulator has just been reset, so what comes out follows from the scene. Of a scene, resets move bodies and
        sites only, and sites have no forces. The state before the last of all substeps is kept: with it, the last
        substep computes everything else anew.
        """
        model, data, scene = self.model, self.data, self._scene
        moved = (steps, model.body_pos.tobytes(), self.hand_init_pos.tobytes())
        if scene.moved == moved:
            mujoco.mj_setState(model, data, scene.state, WHOLE_STATE)
        else:
            for step in range(steps):
                self._mocap_position[:] = self.hand_init_pos
                self._mocap_quaternion[:] = HAND_QUATERNION
                self._control[:] = -1, 1
                mujoco.mj_step(model, data, nstep=self.frame_skip - (step == steps - 1))
            scene.moved, scene.state = moved, np.empty(mujoco.mj_stateSize(model, WHOLE_STATE))
            mujoco.mj_getState(model, data, scene.state, WHOLE_STATE)
        mujoco.mj_step(model, data)


def quick_class(original: Any) -> Any:
    """Make a faster subclass of one of metaworld's environment classes."""
    quick = type(original.__name__, (_Quick, original), {"_scene": _Scene(), "__module__": __name__})
    with_quick_globals(original, quick)
    return quick
