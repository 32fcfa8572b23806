"""LIBERO-Plus: camera poses, start postures, lights, textures and our distractors."""

import re
from pathlib import Path

import numpy as np
import pytest

from srpo.libero_plus import scene_edits, styles
from srpo.libero_plus.scene_edits import camera_pose, start_posture
from srpo.libero_plus.tasks import start_displacement

# The agent view of LIBERO's tabletop scenes.
POSITION = np.array([0.6586131746834771, 0.0, 1.6103500240372423])
QUATERNION = np.array([0.6380177736282349, 0.3048497438430786, 0.30484986305236816, 0.6380177736282349])


def unit(values: list[float]) -> np.ndarray:
    return np.array(values) / np.linalg.norm(values)


def matrix(quaternion: np.ndarray) -> np.ndarray:
    w, x, y, z = quaternion
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


class TestCamera:
    @pytest.mark.parametrize(
        ("view", "position", "quaternion"),
        [
            # Computed with upstream's own `_setup_camera`.
            ((30, 0, 150, 0, 0), [0.8556, 0.494, 2.0156], [0.4511, 0.2156, 0.3734, 0.7814]),
            ((285, 15, 120, 4, 350), [0.1325, -0.4943, 1.9438], [0.9298, 0.3179, 0.1326, 0.1297]),
        ],
    )
    def test_upstream_s_values(self, view, position, quaternion):
        names = ("horizontal", "vertical", "scale", "turn", "tilt")
        moved, turned = camera_pose(POSITION, QUATERNION, **dict(zip(names, view, strict=True)))
        np.testing.assert_array_equal(moved, position)
        np.testing.assert_allclose(turned, unit(quaternion), atol=1e-15)

    @pytest.mark.parametrize(
        ("view", "position", "quaternion"),
        [
            ({}, [1, 0, 1.6], [1, 0, 0, 0]),
            ({"horizontal": 90}, [0, 1, 1.6], [1, 0, 0, 1]),
            ({"horizontal": 180}, [-1, 0, 1.6], [0, 0, 0, 1]),
            ({"vertical": 90}, [-0.8, 0, 1.8], [1, 0, -1, 0]),
            ({"vertical": 180}, [-1, 0, 0], [0, 0, -1, 0]),
            ({"scale": 150}, [1.5, 0, 2.0], [1, 0, 0, 0]),
            ({"turn": 90}, [1, 0, 1.6], [1, 0, 0, 1]),
            ({"tilt": 90}, [1, 0, 1.6], [1, 0, -1, 0]),
            # First up, then around: (-0.8, 0, 1.8) ↦ (0, -0.8, 1.8); z(90°)·y(−90°) = (1, i, −j, k)/2.
            ({"vertical": 90, "horizontal": 90}, [0, -0.8, 1.8], [1, 1, -1, 1]),
            # Turned first, then tilted: y(−90°)·z(90°) = (1, −i, −j, k)/2.
            ({"turn": 90, "tilt": 90}, [1, 0, 1.6], [1, -1, -1, 1]),
        ],
    )
    def test_right_angles_by_hand(self, view, position, quaternion):
        moved, turned = camera_pose(np.array([1, 0, 1.6]), np.array([1.0, 0, 0, 0]), **view)
        np.testing.assert_allclose(moved, position, atol=1e-12)
        np.testing.assert_allclose(turned, unit(quaternion), atol=1e-12)

    def test_against_matrices(self):
        """Without the rounding the stages are products of matrices."""
        rng = np.random.default_rng(0)
        pivot = np.array([0, 0, 0.8])
        for _ in range(50):
            horizontal, turn, tilt = (int(x) for x in rng.integers(0, 360, 3))
            vertical, scale = int(rng.integers(0, 20)), int(rng.integers(100, 200))
            c, s = np.cos(np.radians(horizontal)), np.sin(np.radians(horizontal))
            around = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
            c, s = np.cos(np.radians(vertical)), np.sin(np.radians(vertical))
            up = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
            c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
            turning = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
            c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
            tilting = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
            moved, turned = camera_pose(POSITION, QUATERNION, horizontal, vertical, scale, turn, tilt)
            expected = pivot + (around @ (up @ (POSITION - pivot) + pivot) - pivot) * scale / 100
            np.testing.assert_allclose(moved, expected, atol=3e-4)
            orientation = tilting @ turning @ around @ up @ matrix(unit(QUATERNION))
            np.testing.assert_allclose(matrix(turned), orientation, atol=1e-3)
            np.testing.assert_array_equal(moved, np.round(moved, 4))


class TestPostures:
    @pytest.mark.parametrize(
        ("number", "joints"),
        [
            # Upstream's own `init_qpos` of MountedPanda1 and so on.
            (1, [0.02097405, -0.16687568, 0.02734903, -2.38028663, -0.00988726, 2.21686563, 0.85208136]),
            (2, [0.03347899, -0.181518, 0.02366894, -2.46481386, -0.02031725, 2.2373077, 0.70193217]),
            (150, [-0.00275632, -0.17339355, 0.06324981, -2.3979061, -0.11283356, 2.33243866, 0.88418108]),
            (500, [-0.11827633, -0.04802337, 0.42756544, -2.2644154, -0.01062499, 2.18628575, 0.7065925]),
        ],
    )
    def test_upstream_s_values(self, number, joints):
        np.testing.assert_allclose(start_posture(number), joints, atol=1e-12)

    @pytest.mark.parametrize("number", [1, 100, 101, 200, 401, 500])
    def test_distance(self, number):
        home = np.array([0, -0.161037389, 0, -2.44459747, 0, 2.2267522, np.pi / 4])
        away = np.linalg.norm(start_posture(number) - home)
        assert away == pytest.approx(0.1 * np.ceil(number / 100), abs=1e-7)
        assert start_displacement(number) == pytest.approx(away, abs=1e-7)

    @pytest.mark.parametrize("number", [0, 501])
    def test_there_are_500(self, number):
        with pytest.raises(ValueError, match=f"start postures 1–500, not {number}"):
            start_posture(number)


SCENE_XML = """<mujoco><asset><texture name="texplane" type="2d" file="{floor}"/></asset><worldbody>
<light name="a" diffuse="{diffuse}" dir="0 -.15 -1" directional="false" pos="1 1 4" castshadow="{shadow}"/>
<body name="table"><geom type="box" size="{size} 1 1"/></body></worldbody></mujoco>"""


class TestLights:
    def files(self, folder: Path, **changes: str) -> tuple[Path, Path]:
        plain = {"floor": "a.png", "diffuse": ".8 .8 .8", "shadow": "false", "size": "1"}
        (folder / "base.xml").write_text(SCENE_XML.format(**plain))
        (folder / "other.xml").write_text(SCENE_XML.format(**plain | changes).replace("\n", "\n\n  "))
        return folder / "base.xml", folder / "other.xml"

    def test_another_light_is_a_light_alone(self, tmp_path):
        lights = scene_edits.changed_lights(
            *self.files(tmp_path, diffuse="1 0 0", shadow="true", floor="b.png")
        )
        assert lights is not None
        assert (lights["a"]["diffuse"], lights["a"]["castshadow"]) == ("1 0 0", "true")

    def test_another_table_is_not(self, tmp_path):
        assert scene_edits.changed_lights(*self.files(tmp_path, diffuse="1 0 0", size="2")) is None

    def test_textures_by_name(self):
        scene = '<texture type="2d" file="/a.png" name="texplane" /><texture file="/c.png" name="tex-b" />'
        changed = scene_edits.with_textures(scene, {"texplane": Path("/b.png")})
        assert changed == scene.replace("/a.png", "/b.png")
        with pytest.raises(ValueError, match="no texture 'tex-wall'"):
            scene_edits.with_textures(scene, {"tex-wall": Path("/b.png")})


class TestDistractors:
    def test_they_are_new_to_the_task(self):
        bddl = (
            "(define (problem P)\n (:regions\n (r (:target main_table)))\n"
            " (:objects\n milk_1 - milk)\n (:init\n (On milk_1 main_table_r)))"
        )
        for seed in range(20):
            changed = styles.add_distractors(bddl, np.random.default_rng(seed))
            added = re.findall(r"(\w+)_distractor - (\w+)", changed)
            assert 1 <= len(added) <= 3 and len(set(added)) == len(added)
            assert all(name == category != "milk" for name, category in added)
            for name, _ in added:
                assert f"(On {name}_distractor main_table_distractor_{name}_region)" in changed
