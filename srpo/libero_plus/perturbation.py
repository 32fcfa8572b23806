"""LIBERO-Plus perturbations of one LIBERO task, on the lean environment.

What upstream does (github.com/sylvestf/LIBERO-plus: `libero/libero/envs/problems/*.py` for camera, background
and light, `envs/robots/*.py` for start postures, `env_wrapper.py` for noise, `benchmark/__init__.py` for
instructions and initial states), with two differences: nothing is drawn from NumPy's global generator, and
noise is defined for any picture size. Upstream's lengths are pixels of a 256-pixel picture, so a picture of
another size is brought to that one, corrupted, and brought back: a severity means the same for both.

Camera, robot start, language and noise run in the base task's environment, and so do backgrounds and lights
that leave the physics alone: the pictures' textures are exchanged, or the lights' values. A layout is a scene
of its own; displaced objects share the base task's compiled models.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mujoco
import numpy as np
from libero.libero.envs.base_object import OBJECTS_DICT
from numpy.typing import NDArray
from robosuite.models.objects import MujocoXMLObject
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from srpo.envs.libero import LiberoEnv, asset_folder, init_states
from srpo.libero_plus.data import PlusData, PlusSources, find_asset, leaked_prompt, plus_data, unavailable
from srpo.libero_plus.tasks import INIT_STATE, PlusTask, parse, start_displacement

SIDE = 256
"""Side of the picture, in pixels, that upstream's noise is made for."""

Image = NDArray[np.float64]
Vector = NDArray[np.float64]


class UnavailableTask(ValueError):  # noqa: N818
    """A LIBERO-Plus task that cannot be run here (it is not a failed episode)."""


@dataclass(frozen=True)
class Perturbation:
    """What a LIBERO-Plus task changes, in the order of an episode.

    `environment` gives the scene, `apply` changes what is seen around the episode, `begin` starts it,
    `instruction` says what to do, `corrupt` is for each picture. Dimension and parameters are those of
    `srpo.libero_plus.tasks.PlusTask`.
    """

    task: PlusTask
    sources: PlusSources

    @classmethod
    def from_task(cls, name: str, sources: PlusSources | None = None) -> Perturbation:
        """The perturbation of an official task name.

        Raises:
            ValueError: the name is not a LIBERO-Plus task's.
            UnavailableTask: the task cannot run with these sources (default: without data or assets).
        """
        task, sources = parse(name), sources or PlusSources()
        if reason := unavailable(task, sources, asset_folder()):
            raise UnavailableTask(f"{name}: {reason}")
        return cls(task, sources)

    @property
    def data(self) -> PlusData:
        """LIBERO-Plus's data; tasks that need it are unavailable without."""
        assert self.sources.data is not None
        return plus_data(self.sources.data)

    def environment(self, base: LiberoEnv) -> LiberoEnv:
        """The task's environment: the base task's one, or one of its own where the scene is another."""
        if self.task.dimension == "layout":
            for category in self.data.new[self.task.name]:
                path = find_asset(self.data.objects[category], self.sources, asset_folder())
                assert path is not None
                register_object(category, path)
            return self._scene_of_its_own(base, self.data.bddl(self.task.name))
        if self.task.dimension == "style_distractors":
            return self._scene_of_its_own(
                base, with_distractors(base.task.bddl_file.read_text(), self._rng())
            )
        arena = self._arena()
        if arena is not None and lights_alone(Path(base.env._arena_xml), arena) is None:
            return LiberoEnv(self.task.suite, self.task.task_id, base.protocol, scene_xml=str(arena))
        return base

    def _scene_of_its_own(self, base: LiberoEnv, bddl: str) -> LiberoEnv:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"{self.task.name}.bddl")
            file.write_text(bddl)
            return LiberoEnv(self.task.suite, self.task.task_id, base.protocol, file)

    def _rng(self) -> np.random.Generator:
        """What draws a style's values: its number alone, so that a name means one picture."""
        return np.random.default_rng(int(self.task.parameters["style"]))

    def _arena(self) -> Path | None:
        """The file of another arena than the base task's, if there is one."""
        if self.task.dimension not in ("background", "light"):
            return None
        xml = self.data.scene(self.task.name).xml
        return find_asset(xml, self.sources, asset_folder()) if xml else None

    @contextmanager
    def apply(self, env: LiberoEnv) -> Iterator[None]:
        """Change camera, textures and lights; on leaving, they are back as they were, bit for bit.

        Resets inside or outside the block make no difference: they do not touch these.
        """
        # Upstream rounds the unmoved camera to 4 decimals as well, in every task.
        view = {}
        if self.task.dimension == "camera":
            view = {key: int(value) for key, value in self.task.parameters.items()}
        camera = env.model.camera("agentview").id
        with ExitStack() as stack:
            _keep(stack, env.model.cam_pos, env.model.cam_quat)
            pose = camera_pose(env.model.cam_pos[camera], env.model.cam_quat[camera], **view)
            env.model.cam_pos[camera], env.model.cam_quat[camera] = pose
            if self.task.dimension in ("background", "light"):
                scene = self.data.scene(self.task.name)
                floor, wall = (
                    find_asset(f"textures/{name}", self.sources, asset_folder())
                    for name in (scene.floor, scene.wall)
                )
                assert floor is not None and wall is not None
                textures = {"texplane": floor, "tex-wall": wall}
                stack.enter_context(env.dressed(with_textures(env.env.scene_xml, textures)))
                arena = self._arena()
                lights = lights_alone(Path(env.env._arena_xml), arena) if arena else None
                set_lights(stack, env, lights or {})
            elif self.task.dimension == "style_background":
                textures = style_textures(self._rng())
                stack.enter_context(env.dressed(with_textures(env.env.scene_xml, textures)))
            elif self.task.dimension == "style_light":
                set_lights(stack, env, style_lights(env.model, self._rng()))
            yield

    def begin(self, env: LiberoEnv) -> None:
        """Put the environment at the episode's start, settled."""
        states = init_states(self.task.suite, self.task.task_id)
        if self.task.dimension == "layout":
            env.begin(self.data.init_state(self.task.name))
        elif self.task.dimension == "robot":
            posture = start_posture(int(self.task.parameters["posture"]))
            env.begin(states[INIT_STATE], posture, stays=self.sources.robot_start == "true_start")
        elif self.task.dimension == "style_distractors":
            env.begin(among_distractors(env, states[INIT_STATE], self._rng()))
        else:
            env.reset(INIT_STATE)

    def instruction(self, env: LiberoEnv) -> str:
        """What the policy is told."""
        if self.task.dimension == "language":
            return self.data.language(self.task.name)
        return leaked_prompt(self.task.name) if self.sources.leaked_prompt else env.task.language

    def corrupt(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Add the task's noise to one agent-view picture; other tasks' pictures come back as they are.

        Args:
            image: uint8 (n, n, 3) in the official orientation, as `LiberoEnv.render` gives it. Upstream
                corrupts the camera's picture inside the environment, before it is rotated by 180° for the
                policy, and motion blur and glass have a direction: so that is done here, too.
            rng: drawn from anew for each picture, as upstream does at each step.
        """
        if self.task.dimension != "noise":
            return image
        if image.ndim != 3 or image.shape[0] != image.shape[1]:
            raise ValueError(f"noise is defined for square pictures, not shape {image.shape}")
        corruption = _CORRUPTIONS[str(self.task.parameters["kind"])]
        raw = resize(image[::-1, ::-1] / 255, SIDE)
        noisy = resize(corruption(raw, int(self.task.parameters["severity"]), rng), len(image))
        return np.ascontiguousarray((np.clip(noisy, 0, 1) * 255).astype(np.uint8)[::-1, ::-1])


def _keep(stack: ExitStack, *arrays: NDArray[Any]) -> None:
    """Have a model's arrays put back as they are now when the stack is left."""

    def restore(array: NDArray[Any], old: NDArray[Any]) -> None:
        array[:] = old

    for array in arrays:
        stack.callback(restore, array, array.copy())


HOME = np.array([0, -0.161037389, 0, -2.44459747, 0, 2.2267522, np.pi / 4])
"""LIBERO's own start posture, float64 (7,), radians."""


def start_posture(number: int) -> Vector:
    """Start posture `number` (1…500), float64 (7,), radians: upstream's `envs/robots/mounted_panda.py`.

    Home and a step in the direction of the number-th draw; every hundred postures step 0.1 rad further.
    """
    if not 1 <= number <= 500:
        raise ValueError(f"LIBERO-Plus has start postures 1–500, not {number}")
    direction = np.random.RandomState(42).randn(number, 7)[-1]
    return (HOME + start_displacement(number) * direction / np.linalg.norm(direction)).round(8)


def with_textures(scene: str, textures: Mapping[str, Path]) -> str:
    """A scene's XML with other pictures for its textures of these names."""
    for name, file in textures.items():
        tag = re.search(rf'<texture\b[^>]*\bname="{name}"[^>]*>', scene)
        if tag is None:
            raise ValueError(f"the scene has no texture {name!r}")
        changed = re.sub(r'file="[^"]*"', f'file="{file}"', tag.group(0))
        scene = scene.replace(tag.group(0), changed)
    return scene


LIGHT = {"pos": "light_pos", "dir": "light_dir", "diffuse": "light_diffuse", "specular": "light_specular",
         "ambient": "light_ambient"}  # fmt: skip
"""Numbers of a light in an arena's XML, and where a compiled model has them."""
Lights = dict[str, dict[str, str]]


@functools.cache
def lights_alone(base: Path, arena: Path) -> Lights | None:
    """Attributes of each light of `arena` by name; None if `base` differs in more than lights' values."""

    def split(path: Path) -> tuple[bytes, Lights]:
        tree = ElementTree.parse(path).getroot()
        lights: Lights = {}
        for element in tree.iter("light"):
            lights[element.attrib["name"]] = dict(element.attrib)
            element.attrib.clear()
        for element in tree.iter():
            element.text = element.tail = None  # white space
        for element in tree.iter():
            if element.get("name") in ("texplane", "tex-wall"):
                element.attrib.pop("file", None)  # they come from the styles
            if "file" in element.attrib:  # the same content may lie in another folder
                content = (path.parent / element.attrib["file"]).read_bytes()
                element.attrib["file"] = hashlib.sha256(content).hexdigest()
        return ElementTree.tostring(tree), lights

    (body, old), (other, new) = split(base), split(arena)
    known = {"name", "directional", "castshadow", *LIGHT}
    same = body == other and list(old) == list(new) and all(set(light) <= known for light in new.values())
    return new if same else None


def set_lights(stack: ExitStack, env: LiberoEnv, lights: Lights) -> None:
    """Give lights the values of an arena's XML until the stack is left."""
    model = env.model
    _keep(stack, model.light_castshadow, model.light_type, *(getattr(model, name) for name in LIGHT.values()))
    for name, attributes in lights.items():
        light = model.light(name).id
        for attribute, array in LIGHT.items():
            if attribute in attributes:
                values = np.array([float(word) for word in attributes[attribute].split()])
                if attribute == "dir":
                    values /= np.linalg.norm(values)
                getattr(model, array)[light] = values
        if "castshadow" in attributes:
            model.light_castshadow[light] = attributes["castshadow"] == "true"
        if "directional" in attributes:
            directional = attributes["directional"] == "true"
            kinds = mujoco.mjtLightType
            model.light_type[light] = kinds.mjLIGHT_DIRECTIONAL if directional else kinds.mjLIGHT_SPOT


# plus_style: our own perturbations in LIBERO-Plus's manner, on LIBERO's own assets, in these ranges.
STYLE_BRIGHTNESS = (0.2, 1.2)
"""Factor of a light's diffuse and specular colour; every channel further in ±20 %."""
STYLE_TURN = 0.5
"""Largest change of each component of a light's unit direction."""
STYLE_SHADOW = 0.5
"""Chance of a light casting shadows."""
STYLE_TEXTURES = {
    "texplane": ("brown_ceramic_tile", "dark_floor_texture", "gray_floor", "marble_floor", "rustic_floor",
                 "seamless_wood_planks_floor", "white_marble_floor"),
    "tex-wall": ("canvas_sky_blue", "ceramic", "dark_blue_wall", "dark_green_plaster_wall", "light_blue_wall",
                 "stucco_wall", "yellow_linen_wall_texture"),
    "tex-table": ("brown_ceramic_tile", "kona_gotham", "marble_floor", "rustic_floor",
                  "seamless_wood_planks_floor",
                  "white_marble_floor"),
}  # fmt: skip
"""LIBERO's own pictures for floor, walls and the plain table; living room and study have other tables."""
STYLE_OBJECTS = ("bbq_sauce", "butter", "chocolate_pudding", "cookies", "ketchup", "milk", "orange_juice",
                 "popcorn", "tomato_sauce")  # fmt: skip
STYLE_NUMBER = (1, 3)
"""How many distractors, of different kinds, none of which the task has."""
STYLE_AREA = 0.3
"""Distractors stand within this distance of the workspace's middle along x and y, metres."""
STYLE_GAP = 0.06
"""Least distance of a distractor's middle from the box around any other object, metres."""


def style_lights(model: mujoco.MjModel, rng: np.random.Generator) -> Lights:
    """Drawn values for every light of a scene."""

    def text(values: Vector) -> str:
        return " ".join(repr(float(value)) for value in values)

    lights: Lights = {}
    for light in range(model.nlight):
        colour = rng.uniform(*STYLE_BRIGHTNESS) * rng.uniform(0.8, 1.2, 3)
        lights[model.light(light).name] = {
            "diffuse": text(np.clip(model.light_diffuse[light] * colour, 0, 1)),
            "specular": text(np.clip(model.light_specular[light] * colour, 0, 1)),
            "dir": text(model.light_dir[light] + rng.uniform(-STYLE_TURN, STYLE_TURN, 3)),
            "castshadow": "true" if rng.random() < STYLE_SHADOW else "false",
        }
    return lights


def style_textures(rng: np.random.Generator) -> dict[str, Path]:
    """Drawn pictures for floor, walls and table."""
    return {
        name: asset_folder() / "textures" / f"{choices[rng.integers(len(choices))]}.png"
        for name, choices in STYLE_TEXTURES.items()
    }


def with_distractors(bddl: str, rng: np.random.Generator) -> str:
    """A task's BDDL with drawn objects added, each in a place of its own beside the table.

    There it is out of the sampler's way until `among_distractors` puts it among the others.
    """
    target = re.search(r"\(:target (main_table|kitchen_table|living_room_table|study_table|floor)\)", bddl)
    if target is None:
        raise ValueError("no table or floor to put distractors on")
    free = [name for name in STYLE_OBJECTS if f" - {name}" not in bddl]
    number = int(rng.integers(STYLE_NUMBER[0], STYLE_NUMBER[1] + 1))
    surface = target.group(1)
    for place, category in enumerate(rng.permutation(free)[:number]):
        region = f"distractor_{category}_region"
        at = f"{0.9 + 0.3 * place:.2f} 0.90 {0.91 + 0.3 * place:.2f} 0.91"
        area = f"(:target {surface}) (:ranges (({at}))) (:yaw_rotation ((0.0 0.0)))"
        for head, line in (
            ("(:regions", f"({region} {area})"),
            ("(:objects", f"{category}_distractor - {category}"),
            ("(:init", f"(On {category}_distractor {surface}_{region})"),
        ):
            bddl = bddl.replace(head, f"{head}\n    {line}", 1)
    return bddl


def among_distractors(env: LiberoEnv, state: Vector, rng: np.random.Generator) -> Vector:
    """The base task's initial state with the distractors set among its objects, float64 (1 + nq + nv,).

    Raises RuntimeError if there is no room for them.
    """
    model = env.model
    joints = [model.joint(j) for j in range(model.njnt)]
    added = [joint for joint in joints if "_distractor_" in joint.name]
    mine = np.concatenate([np.arange(7) + joint.qposadr[0] for joint in added])
    mine_v = np.concatenate([np.arange(6) + joint.dofadr[0] for joint in added])
    qpos, qvel = env.data.qpos.copy(), np.zeros(model.nv)
    base_nq = model.nq - len(mine)
    qpos[np.setdiff1d(np.arange(model.nq), mine)] = state[1 : 1 + base_nq]
    qvel[np.setdiff1d(np.arange(model.nv), mine_v)] = state[1 + base_nq :]
    scene = env.visible(qpos)
    taken = footprints(scene.model, scene.data, {int(joint.bodyid[0]) for joint in added})
    for joint in added:
        place = qpos[joint.qposadr[0] :][:2]
        for _ in range(200):
            place[:] = rng.uniform(-STYLE_AREA, STYLE_AREA, 2)
            if (np.abs(place - taken[:, 0]) > taken[:, 1] + STYLE_GAP).any(axis=1).all():
                break
        else:
            raise RuntimeError(f"{env.task.name}: no room for {joint.name} in 200 tries")
        taken = np.concatenate([taken, [[place, np.zeros(2)]]])
    return np.concatenate([[state[0]], qpos, qvel])


def footprints(model: mujoco.MjModel, data: mujoco.MjData, besides: Collection[int]) -> Vector:
    """Boxes around all that stands in the scene, but for the bodies `besides`, tables, walls and floor.

    Returns float64 (n, 2, 2): middle and half size of each geom's box along x and y, metres.
    """
    boxes = []
    for geom in range(model.ngeom):
        root = int(model.body_rootid[model.geom_bodyid[geom]])
        name = model.body(root).name
        if root == 0 or root in besides or re.search("table|floor|wall", name):
            continue
        turn = data.geom_xmat[geom].reshape(3, 3)
        middle = data.geom_xpos[geom] + turn @ model.geom_aabb[geom, :3]
        boxes.append([middle[:2], (np.abs(turn) @ model.geom_aabb[geom, 3:])[:2]])
    return np.array(boxes).reshape(-1, 2, 2)


def register_object(category: str, path: Path) -> None:
    """Make an object of the asset pack known to LIBERO's BDDL reader (upstream's `custom_objects.py`)."""

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
            # robosuite looks one body deeper than some of these files have it.
            bare = self.worldbody.find("./body[@name='object']")
            if bare is not None:
                self.worldbody.remove(bare)
                outer = ElementTree.SubElement(self.worldbody, "body")
                outer.append(bare)
                outer.extend(copy.deepcopy(bare.findall("./site")))  # where it looks for the object's size
            return super()._get_object_subtree()

    OBJECTS_DICT[category] = NewObject


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


# Corruptions take and give pictures of float64 (SIDE, SIDE, 3) in [0, 1], in the camera's own orientation.
# Their strengths by severity 1…10 are from upstream's env_wrapper.py.
_MOTION = ((5, 2), (8, 3), (10, 4), (12, 5), (15, 6), (18, 8), (20, 10), (25, 12), (30, 15), (35, 20))
_ZOOM = (
    *((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    *((1.36, 0.01), (1.41, 0.01), (1.46, 0.02), (1.51, 0.02), (1.56, 0.03)),
)
_FOG = (
    *((0.5, 3.0), (1.0, 2.8), (1.5, 2.5), (2.0, 2.2), (2.5, 2.0)),
    *((3.0, 1.8), (3.5, 1.6), (4.0, 1.5), (4.5, 1.4), (5.0, 1.3)),
)
_GLASS = (
    *((0.5, 1, 3), (0.7, 1, 3), (0.9, 2, 3), (1.0, 2, 2), (1.1, 3, 2)),
    *((1.3, 3, 2), (1.5, 4, 2), (1.8, 4, 2), (2.2, 5, 1), (2.5, 5, 1)),
)


def resize(x: Image, side: int) -> Image:
    """Bring a picture (n, n, 3) to (side, side, 3); each new pixel is the mean of the area it covers."""
    n = len(x)
    if n == side:
        return x
    old, new = np.arange(n) * side, np.arange(side)[:, None] * n  # where pixels begin, in common units
    overlap = np.clip(np.minimum(old + side, new + n) - np.maximum(old, new), 0, None) / n
    return overlap @ np.tensordot(overlap, x, axes=1)


def _blur(x: Image, sigma: float) -> Image:
    return gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def motion_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """ImageMagick's MotionBlur, a one-sided Gaussian comb along a line at −45…45°."""
    radius, sigma = _MOTION[severity - 1]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = np.radians(rng.uniform(-45, 45))
    rows = np.ceil(steps * np.sin(angle) - 0.5).astype(int)
    columns = np.ceil(steps * np.cos(angle) - 0.5).astype(int)
    margin = 2 * radius
    padded = np.pad(x, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    blurred = np.zeros_like(x)
    for weight, row, column in zip(weights, margin + rows, margin + columns, strict=True):
        blurred += weight * padded[row : row + SIDE, column : column + SIDE]
    return blurred


def gaussian_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """A Gaussian blur of `severity` pixels' standard deviation."""
    return _blur(x, severity)


def zoom_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """The mean of the picture and of its central zooms."""
    factors = np.arange(1, *_ZOOM[severity - 1])
    return (x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


def _zoomed(x: Image, factor: float) -> Image:
    """Upstream's `clipped_zoom`: the centre, enlarged linearly (corners on corners) and cut to size."""
    crop = int(np.ceil(SIDE / factor))
    enlarged = round(crop * factor)
    cut = (enlarged - SIDE) // 2
    place = (SIDE - crop) // 2 + np.arange(cut, cut + SIDE) * (crop - 1) / (enlarged - 1)
    low = np.minimum(place.astype(int), SIDE - 2)
    part = (place - low)[:, None, None]
    x = x[low] * (1 - part) + x[low + 1] * part
    part = part[:, 0]
    return x[:, low] * (1 - part) + x[:, low + 1] * part


def plasma(decay: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A plasma fractal by the diamond-square algorithm, float64 (SIDE, SIDE) from 0 to 1, periodic.

    As in ImageNet-C (Hendrycks & Dietterich 2019): each halving of the step divides the roughness by `decay`.
    """
    heights = np.zeros((SIDE, SIDE))
    roughness = 100.0

    def mean(four: NDArray[np.float64]) -> NDArray[np.float64]:
        return four / 4 + roughness * rng.uniform(-roughness, roughness, four.shape)

    step = SIDE
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = mean(pairs + np.roll(pairs, -1, axis=1))
        centres = heights[half::step, half::step]
        beside = centres + np.roll(centres, 1, axis=0)
        heights[::step, half::step] = mean(beside + corners + np.roll(corners, -1, axis=1))
        above = centres + np.roll(centres, 1, axis=1)
        heights[half::step, ::step] = mean(above + corners + np.roll(corners, -1, axis=0))
        step = half
        roughness /= decay
    heights -= heights.min()
    return heights / heights.max()


def fog(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """Add a plasma fractal and scale back to the picture's brightness."""
    amount, decay = _FOG[severity - 1]
    brightest = x.max()
    return (x + amount * plasma(decay, rng)[..., None]) * brightest / (brightest + amount)


def glass_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """Blur, displace pixels locally, blur."""
    sigma, shift, rounds = _GLASS[severity - 1]
    pixels = np.floor(_blur(x, sigma) * 255).reshape(-1, 3) / 255
    for _ in range(rounds):
        pixels = pixels[displaced(rng.integers(-shift, shift, (SIDE, SIDE, 2)), shift)]
    return _blur(pixels.reshape(x.shape), sigma)


def displaced(offsets: NDArray[np.int_], shift: int) -> NDArray[np.int_]:
    """One round of upstream's pixel shuffle: which pixel each pixel's colour comes from.

    Upstream goes backwards over rows and columns `shift` + 1 … 224 − `shift` of the 256-pixel picture and
    means to swap each pixel with the one at its offset; as both are views of one array, it copies that pixel
    and leaves it as it is. A pixel copied from later in the picture has itself been overwritten before, which
    makes chains: they are followed here by doubling instead of pixel by pixel.

    Args:
        offsets: int (SIDE, SIDE, 2), columns and rows, from −shift to shift − 1.

    Returns:
        Flat source indices, int (SIDE²,).
    """
    pixels = np.arange(SIDE**2).reshape(SIDE, SIDE)
    window = slice(shift + 1, 224 - shift + 1)
    copied = pixels.copy()
    copied[window, window] += (offsets[..., 1] * SIDE + offsets[..., 0])[window, window]
    source = copied.ravel()
    end = np.maximum(source, pixels.ravel())  # one link of the chain: a later pixel, or here it ends
    while (end[end] != end).any():
        end = end[end]
    return source[end]


_CORRUPTIONS: dict[str, Callable[[Image, int, np.random.Generator], Image]] = {
    "motion": motion_blur,
    "gaussian": gaussian_blur,
    "zoom": zoom_blur,
    "fog": fog,
    "glass": glass_blur,
}
