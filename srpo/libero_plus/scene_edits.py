"""How LIBERO-Plus changes a scene: camera pose, start posture, textures, lights, new objects.

After upstream's `envs/problems/*.py`, `envs/robots/*.py` and `envs/objects/custom_objects.py`. Edits of a
compiled model are context managers: on leaving, its arrays are as they were, bit for bit.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mujoco
import numpy as np
from libero.libero.envs.base_object import OBJECTS_DICT
from numpy.typing import NDArray
from robosuite.models.objects import MujocoXMLObject
from scipy.spatial.transform import Rotation

from srpo.libero_plus.tasks import start_displacement

Vector = NDArray[np.float64]
Lights = dict[str, dict[str, str]]
"""Light's name → its attributes, as in an arena's XML."""

HOME = np.array([0, -0.161037389, 0, -2.44459747, 0, 2.2267522, np.pi / 4])
"""LIBERO's own start posture, float64 (7,), radians."""
LIGHT_ARRAYS = {"pos": "light_pos", "dir": "light_dir", "diffuse": "light_diffuse",
                "specular": "light_specular", "ambient": "light_ambient"}  # fmt: skip
"""Numeric attribute of a light → the array of a compiled model that holds it."""


@contextmanager
def restored(*arrays: NDArray[Any]) -> Iterator[None]:
    """Give arrays their present values back on leaving."""
    saved = [array.copy() for array in arrays]
    try:
        yield
    finally:
        for array, values in zip(arrays, saved, strict=True):
            array[:] = values


def start_posture(number: int) -> Vector:
    """Start posture `number` (1…500), float64 (7,), radians: upstream's `envs/robots/mounted_panda.py`.

    Home plus a step in the direction of the number-th draw; every hundred postures step 0.1 rad further.

    Raises:
        ValueError: there is no such posture.
    """
    if not 1 <= number <= 500:
        raise ValueError(f"LIBERO-Plus has start postures 1–500, not {number}")
    direction = np.random.RandomState(42).randn(number, 7)[-1]
    return (HOME + start_displacement(number) * direction / np.linalg.norm(direction)).round(8)


@contextmanager
def moved_camera(model: mujoco.MjModel, name: str, view: Mapping[str, int]) -> Iterator[None]:
    """Within the block, a camera has the `camera_pose` of these arguments.

    An empty `view` still rounds the pose to 4 decimals, as upstream does in every task.
    """
    camera = model.camera(name).id
    with restored(model.cam_pos, model.cam_quat):
        pose = camera_pose(model.cam_pos[camera], model.cam_quat[camera], **view)
        model.cam_pos[camera], model.cam_quat[camera] = pose
        yield


def camera_pose(
    position: Vector,
    quaternion: Vector,
    horizontal: int = 0,
    vertical: int = 0,
    scale: int = 100,
    turn: int = 0,
    tilt: int = 0,
) -> tuple[Vector, Vector]:
    """Upstream's `_setup_camera`: move a camera in five stages, rounding to 4 decimals after each.

    Args:
        position: float64 (3,), metres.
        quaternion: float64 (4,), w x y z.
        horizontal: degrees around the vertical axis through the origin.
        vertical: degrees upwards, around the y axis through the pivot (0, 0, 0.8).
        scale: percent of the distance from the pivot.
        turn: degrees around the vertical axis, in place.
        tilt: degrees downwards around the y axis, in place.

    Returns:
        The new position (3,) and unit quaternion (4,).
    """
    pivot = np.array([0, 0, 0.8])
    orientation = Rotation.from_quat(quaternion, scalar_first=True)

    def around_y(degrees: int) -> Rotation:
        return Rotation.from_rotvec(np.radians(-degrees) * np.array([0, 1, 0]))

    def around_z(degrees: int) -> Rotation:
        return Rotation.from_euler("z", degrees, degrees=True)

    def rounded(position: Vector, orientation: Rotation) -> tuple[Vector, Rotation]:
        quaternion = [round(float(x), 4) for x in orientation.as_quat(scalar_first=True)]
        return np.array([round(float(x), 4) for x in position]), Rotation.from_quat(
            quaternion, scalar_first=True
        )

    if vertical:
        up = around_y(vertical)
        position, orientation = rounded(up.apply(position - pivot) + pivot, up * orientation)
    aside = around_z(horizontal)
    position, orientation = rounded(aside.apply(position), aside * orientation)
    if scale != 100:
        position, orientation = rounded(pivot + (position - pivot) * (scale / 100), orientation)
    if turn:
        position, orientation = rounded(position, around_z(turn) * orientation)
    if tilt:
        position, orientation = rounded(position, around_y(tilt) * orientation)
    return position, orientation.as_quat(scalar_first=True)


def with_textures(scene: str, textures: Mapping[str, Path]) -> str:
    """A scene's XML with other picture files for the textures of these names.

    Raises:
        ValueError: the scene has no texture of that name.
    """
    for name, file in textures.items():
        tag = re.search(rf'<texture\b[^>]*\bname="{name}"[^>]*>', scene)
        if tag is None:
            raise ValueError(f"the scene has no texture {name!r}")
        changed = re.sub(r'file="[^"]*"', f'file="{file}"', tag.group(0))
        scene = scene.replace(tag.group(0), changed)
    return scene


@functools.cache
def changed_lights(base: Path, arena: Path) -> Lights | None:
    """The lights of an arena's XML; None if it differs from `base` in more than its lights' values."""
    (base_rest, base_lights), (rest, lights) = _split_lights(base), _split_lights(arena)
    known = {"name", "directional", "castshadow", *LIGHT_ARRAYS}
    only_lights = (
        rest == base_rest
        and list(lights) == list(base_lights)
        and all(set(light) <= known for light in lights.values())
    )
    return lights if only_lights else None


def _split_lights(arena: Path) -> tuple[bytes, Lights]:
    """An arena's XML in a canonical form without its lights' values, and those values."""
    tree = ElementTree.parse(arena).getroot()
    lights: Lights = {}
    for element in tree.iter("light"):
        lights[element.attrib["name"]] = dict(element.attrib)
        element.attrib.clear()
    for element in tree.iter():
        element.text = element.tail = None  # white space
        if element.get("name") in ("texplane", "tex-wall"):
            element.attrib.pop("file", None)  # the task names floor and wall apart from the arena
        if "file" in element.attrib:  # equal content may be in another folder
            content = (arena.parent / element.attrib["file"]).read_bytes()
            element.attrib["file"] = hashlib.sha256(content).hexdigest()
    return ElementTree.tostring(tree), lights


@contextmanager
def edited_lights(model: mujoco.MjModel, lights: Lights) -> Iterator[None]:
    """Within the block, a compiled model's lights have these attributes."""
    arrays = [getattr(model, name) for name in LIGHT_ARRAYS.values()]
    with restored(model.light_castshadow, model.light_type, *arrays):
        for name, attributes in lights.items():
            _set_light(model, model.light(name).id, attributes)
        yield


def _set_light(model: mujoco.MjModel, light: int, attributes: Mapping[str, str]) -> None:
    for attribute, array in LIGHT_ARRAYS.items():
        if attribute in attributes:
            values = np.array([float(number) for number in attributes[attribute].split()])
            if attribute == "dir":
                values /= np.linalg.norm(values)
            getattr(model, array)[light] = values
    if "castshadow" in attributes:
        model.light_castshadow[light] = attributes["castshadow"] == "true"
    if "directional" in attributes:
        types = mujoco.mjtLightType
        directional = attributes["directional"] == "true"
        model.light_type[light] = types.mjLIGHT_DIRECTIONAL if directional else types.mjLIGHT_SPOT


def register_object(category: str, path: Path) -> None:
    """Add an object of the asset pack to those that LIBERO's BDDL reader knows."""

    class NewObject(MujocoXMLObject):
        def __init__(self, name: str) -> None:
            joints = [{"type": "free", "damping": "0.0005"}]
            super().__init__(
                str(path), name=name, joints=joints, obj_type="all", duplicate_collision_geoms=False
            )
            self.category_name = category
            self.rotation = {"x": (-np.pi / 2,) * 2, "y": (-np.pi,) * 2, "z": (np.pi,) * 2}
            self.rotation_axis = None
            self.object_properties: dict[str, Any] = {"vis_site_names": {}}

        def _get_object_subtree(self) -> Any:
            # robosuite expects the object one body deeper than some of these files have it.
            body = self.worldbody.find("./body[@name='object']")
            if body is not None:
                self.worldbody.remove(body)
                outer = ElementTree.SubElement(self.worldbody, "body")
                outer.append(body)
                outer.extend(copy.deepcopy(body.findall("./site")))  # robosuite reads the size from these
            return super()._get_object_subtree()

    OBJECTS_DICT[category] = NewObject
