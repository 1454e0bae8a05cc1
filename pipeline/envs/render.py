"""Renders frames of an environment on any machine, without a display or an OpenGL library.

Grid worlds and Atari have renderers of their own. MuJoCo scenes are rendered with MuJoCo's CPU ray caster: one ray per
pixel, each hit shaded by its geometry's colour and the angle of its surface. At video size this is faster than a
software OpenGL and needs no dependency except the simulator.
"""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
import numpy as np

FRAME_SIZE = 240  # width and height of ray-cast frames, pixels
CAPTION_HEIGHT = 22  # for a frame of width `FRAME_SIZE`, pixels
MIN_FONT_SIZE = 4  # pixels; a mission that is too long even at this size is cropped at both ends
SKY = np.array([0.75, 0.82, 0.90])
SITE_COLOUR_WEIGHT = 0.85  # goal markers are drawn nearly opaque
FAR = 50.0  # length of a ray that hits nothing, metres
VISIBLE_GROUPS = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # MuJoCo's viewer hides collision shapes the same way


def render_frame(env: gym.Env[Any, Any]) -> np.ndarray:
    """Render the environment's current state as ``(H, W, 3)`` uint8.

    Raises:
        ImportError: a package for rendering is missing.
        NotImplementedError: the environment cannot render, or was made without a render mode.
    """
    unwrapped: Any = env.unwrapped
    if hasattr(unwrapped, "model") and hasattr(unwrapped, "data"):
        return _ray_cast(unwrapped)
    if hasattr(unwrapped, "ale"):
        return np.asarray(unwrapped.ale.getScreenRGB())
    try:
        frame = np.asarray(env.render())
    except (ImportError, NotImplementedError):
        raise
    except gym.error.DependencyNotInstalled as error:
        raise ImportError(str(error)) from error
    except gym.error.Error as error:
        raise NotImplementedError(str(error)) from error
    if frame.ndim != 3:
        raise NotImplementedError("it was made without a render mode")
    return _with_caption(frame, unwrapped.mission) if hasattr(unwrapped, "mission") else frame


def _with_caption(frame: np.ndarray, text: str) -> np.ndarray:
    """Add a line of text below the frame: the mission of a grid world's agent."""
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("RGB", (frame.shape[1], CAPTION_HEIGHT * frame.shape[1] // FRAME_SIZE))
    size = strip.height * 0.6
    font = ImageFont.load_default(size)
    # A long mission gets a smaller font, because all frames of a video must have the same size.
    while font.getlength(text) > strip.width - 4 and size > MIN_FONT_SIZE:
        size *= 0.9
        font = ImageFont.load_default(size)
    ImageDraw.Draw(strip).text((strip.width / 2, strip.height / 2), text, "white", font, anchor="mm")
    return np.concatenate([frame, np.asarray(strip)])


def _ray_cast(env: Any) -> np.ndarray:
    import mujoco

    model, data = env.model, env.data
    position, rotation, fovy_deg = _camera(env)
    directions = _pixel_directions(fovy_deg) @ rotation.T
    num_rays = len(directions)
    geom = np.empty(num_rays, np.int32)
    distance = np.empty(num_rays)
    mujoco.mj_multiRay(model, data, position, directions.ravel(), VISIBLE_GROUPS, 1, -1, geom, distance, num_rays, FAR)
    hit = geom >= 0
    distance[~hit] = FAR
    shade = 0.45 + 0.55 * _facing(position + directions * distance[:, None], directions)
    colours = np.where(hit[:, None], _geom_colours(model)[geom] * shade[:, None], SKY)
    _draw_sites(model, data, position, directions, distance, colours)
    image = (np.clip(colours, 0, 1) * 255).astype(np.uint8).reshape(FRAME_SIZE, FRAME_SIZE, 3)
    # Meta-World's camera is mounted upside down.
    return image[::-1, ::-1] if getattr(env, "camera_name", None) == "corner2" else image


def _camera(env: Any) -> tuple[np.ndarray, np.ndarray, float]:
    """Position ``(3,)``, rotation ``(3, 3)`` (columns: right, up, backwards) and vertical field of view, degrees."""
    import mujoco

    model, data = env.model, env.data
    names = (getattr(env, "camera_name", None), "track")
    for name in names:
        index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name) if name else -1
        if index >= 0:
            return data.cam_xpos[index].copy(), data.cam_xmat[index].reshape(3, 3), float(model.cam_fovy[index])
    # The model has no camera: look at its centre from the front and slightly from above.
    backwards = np.array([0.0, -1.0, 0.4]) / np.linalg.norm([0.0, -1.0, 0.4])
    right = np.array([1.0, 0.0, 0.0])
    rotation = np.stack([right, np.cross(backwards, right), backwards], axis=1)
    return model.stat.center + backwards * 2.2 * model.stat.extent, rotation, 45.0


def _pixel_directions(fovy_deg: float) -> np.ndarray:
    """Return unit vectors from the camera through every pixel, row-major, in camera coordinates: ``(pixels, 3)``."""
    half = np.tan(np.deg2rad(fovy_deg) / 2)
    span = (np.arange(FRAME_SIZE) + 0.5) / FRAME_SIZE * 2 - 1
    x, y = np.meshgrid(span * half, -span * half)
    directions = np.stack([x, y, np.full_like(x, -1.0)], axis=-1).reshape(-1, 3)
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _facing(points: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return the absolute cosine between surface normal and ray at each pixel, 0 to 1, from neighbouring hits."""
    grid = points.reshape(FRAME_SIZE, FRAME_SIZE, 3)
    normals = np.cross(np.gradient(grid, axis=1), np.gradient(grid, axis=0)).reshape(-1, 3)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    return np.abs((normals * directions).sum(axis=1))


@functools.lru_cache(maxsize=4)
def _geom_colours(model: Any) -> np.ndarray:
    """Return the colour of every geometry, ``(num_geoms, 3)``: its own, its material's, or its texture's mean."""
    colours = np.array(model.geom_rgba[:, :3], np.float64)
    for geom, material in enumerate(model.geom_matid):
        if material < 0:
            continue
        colours[geom] = model.mat_rgba[material, :3]
        texture = int(np.max(model.mat_texid[material]))
        if texture >= 0 and model.tex_nchannel[texture] >= 3:
            start = model.tex_adr[texture]
            count = model.tex_height[texture] * model.tex_width[texture] * model.tex_nchannel[texture]
            pixels = model.tex_data[start : start + count].reshape(-1, model.tex_nchannel[texture])
            colours[geom] *= pixels[:, :3].mean(axis=0) / 255
    return colours


def _draw_sites(
    model: Any, data: Any, position: np.ndarray, directions: np.ndarray, distance: np.ndarray, colours: np.ndarray
) -> None:
    """Draw visible marker spheres, such as the goal, into ``colours``; MuJoCo's rays do not hit sites."""
    import mujoco

    for site in range(model.nsite):
        if model.site_rgba[site, 3] == 0 or model.site_type[site] != mujoco.mjtGeom.mjGEOM_SPHERE:
            continue
        to_centre = data.site_xpos[site] - position
        along = directions @ to_centre
        miss_squared = to_centre @ to_centre - along**2
        seen = (miss_squared < model.site_size[site, 0] ** 2) & (along > 0) & (along < distance)
        colours[seen] += SITE_COLOUR_WEIGHT * (model.site_rgba[site, :3] - colours[seen])
