"""Random lights, backgrounds and distractors in LIBERO-Plus's manner, made of LIBERO's own assets.

They need no asset pack, and are no part of LIBERO-Plus. The constants are the ranges of the random values.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import mujoco
import numpy as np

from srpo.envs.libero import LiberoEnv, asset_folder
from srpo.libero_plus.scene_edits import Lights, Vector

BRIGHTNESS = (0.2, 1.2)
"""Factor of a light's diffuse and specular colour; each channel varies by another ±20 %."""
DIRECTION_CHANGE = 0.5
"""Largest change of each component of a light's unit direction."""
SHADOW_PROBABILITY = 0.5
"""Probability that a light casts shadows."""
TEXTURES = {
    "texplane": ("brown_ceramic_tile", "dark_floor_texture", "gray_floor", "marble_floor", "rustic_floor",
                 "seamless_wood_planks_floor", "white_marble_floor"),
    "tex-wall": ("canvas_sky_blue", "ceramic", "dark_blue_wall", "dark_green_plaster_wall", "light_blue_wall",
                 "stucco_wall", "yellow_linen_wall_texture"),
    "tex-table": ("brown_ceramic_tile", "kona_gotham", "marble_floor", "rustic_floor",
                  "seamless_wood_planks_floor",
                  "white_marble_floor"),
}  # fmt: skip
"""Pictures for the floor, the walls and the plain table; living room and study have other tables."""
DISTRACTORS = ("bbq_sauce", "butter", "chocolate_pudding", "cookies", "ketchup", "milk", "orange_juice",
               "popcorn", "tomato_sauce")  # fmt: skip
"""Categories of distractors; a scene gets only such as its task does not have."""
DISTRACTOR_NUMBER = (1, 3)
"""Least and greatest number of distractors, all of different categories."""
AREA = 0.3
"""Largest distance of a distractor from the middle of the workspace along x and y, metres."""
GAP = 0.06
"""Least distance of a distractor's middle from the box around any other object, metres."""
PLACEMENT_TRIES = 200


def random_lights(model: mujoco.MjModel, rng: np.random.Generator) -> Lights:
    """Random values for all lights of a scene."""

    def text(values: Vector) -> str:
        return " ".join(repr(float(value)) for value in values)

    lights: Lights = {}
    for light in range(model.nlight):
        colour = rng.uniform(*BRIGHTNESS) * rng.uniform(0.8, 1.2, 3)
        lights[model.light(light).name] = {
            "diffuse": text(np.clip(model.light_diffuse[light] * colour, 0, 1)),
            "specular": text(np.clip(model.light_specular[light] * colour, 0, 1)),
            "dir": text(model.light_dir[light] + rng.uniform(-DIRECTION_CHANGE, DIRECTION_CHANGE, 3)),
            "castshadow": "true" if rng.random() < SHADOW_PROBABILITY else "false",
        }
    return lights


def random_textures(rng: np.random.Generator) -> dict[str, Path]:
    """Random picture files for floor, walls and table, by the texture's name."""
    return {
        name: asset_folder() / "textures" / f"{choices[rng.integers(len(choices))]}.png"
        for name, choices in TEXTURES.items()
    }


def add_distractors(bddl: str, rng: np.random.Generator) -> str:
    """A task's BDDL with random distractors, each in a region of its own beside the table.

    There it is out of the way of LIBERO's placement sampler until `place_distractors` moves it.

    Raises:
        ValueError: the task has neither table nor floor.
    """
    target = re.search(r"\(:target (main_table|kitchen_table|living_room_table|study_table|floor)\)", bddl)
    if target is None:
        raise ValueError("no table or floor to put distractors on")
    candidates = [name for name in DISTRACTORS if f" - {name}" not in bddl]
    number = int(rng.integers(DISTRACTOR_NUMBER[0], DISTRACTOR_NUMBER[1] + 1))
    surface = target.group(1)
    for place, category in enumerate(rng.permutation(candidates)[:number]):
        region = f"distractor_{category}_region"
        corners = f"{0.9 + 0.3 * place:.2f} 0.90 {0.91 + 0.3 * place:.2f} 0.91"
        area = f"(:target {surface}) (:ranges (({corners}))) (:yaw_rotation ((0.0 0.0)))"
        for section, line in (
            ("(:regions", f"({region} {area})"),
            ("(:objects", f"{category}_distractor - {category}"),
            ("(:init", f"(On {category}_distractor {surface}_{region})"),
        ):
            bddl = bddl.replace(section, f"{section}\n    {line}", 1)
    return bddl


def place_distractors(env: LiberoEnv, state: Vector, rng: np.random.Generator) -> Vector:
    """The base task's initial state with the distractors placed among its objects.

    Args:
        env: an environment whose BDDL is from `add_distractors`.
        state: LIBERO's flattened state of the base task, without distractors.

    Returns:
        Flattened state with distractors, float64 (1 + nq + nv,).

    Raises:
        RuntimeError: there is no room for them.
    """
    model = env.model
    joints = [model.joint(j) for j in range(model.njnt)]
    added = [joint for joint in joints if "_distractor_" in joint.name]
    added_qpos = np.concatenate([np.arange(7) + joint.qposadr[0] for joint in added])
    added_qvel = np.concatenate([np.arange(6) + joint.dofadr[0] for joint in added])
    qpos, qvel = env.data.qpos.copy(), np.zeros(model.nv)
    base_nq = model.nq - len(added_qpos)
    qpos[np.setdiff1d(np.arange(model.nq), added_qpos)] = state[1 : 1 + base_nq]
    qvel[np.setdiff1d(np.arange(model.nv), added_qvel)] = state[1 + base_nq :]
    scene = env.visible(qpos)
    occupied = footprints(scene.model, scene.data, {int(joint.bodyid[0]) for joint in added})
    for joint in added:
        place = qpos[joint.qposadr[0] :][:2]
        for _ in range(PLACEMENT_TRIES):
            place[:] = rng.uniform(-AREA, AREA, 2)
            if (np.abs(place - occupied[:, 0]) > occupied[:, 1] + GAP).any(axis=1).all():
                break
        else:
            raise RuntimeError(f"{env.task.name}: no room for {joint.name} in {PLACEMENT_TRIES} tries")
        occupied = np.concatenate([occupied, [[place, np.zeros(2)]]])
    return np.concatenate([[state[0]], qpos, qvel])


def footprints(model: mujoco.MjModel, data: mujoco.MjData, excluded: Collection[int]) -> Vector:
    """Boxes around everything in the scene but the `excluded` bodies, tables, walls and floor.

    Returns:
        float64 (n, 2, 2): centre and half size of each geom's box along x and y, metres.
    """
    boxes = []
    for geom in range(model.ngeom):
        root = int(model.body_rootid[model.geom_bodyid[geom]])
        name = model.body(root).name
        if root == 0 or root in excluded or re.search("table|floor|wall", name):
            continue
        rotation = data.geom_xmat[geom].reshape(3, 3)
        centre = data.geom_xpos[geom] + rotation @ model.geom_aabb[geom, :3]
        boxes.append([centre[:2], (np.abs(rotation) @ model.geom_aabb[geom, 3:])[:2]])
    return np.array(boxes).reshape(-1, 2, 2)
