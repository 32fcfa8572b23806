"""The cache of compiled models: built once, bounded, and dispensable."""

import multiprocessing
import os
import re
from pathlib import Path

import mujoco
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from srpo.envs import models

SCENE = """<mujoco>
  <asset>
    <texture name="wood" type="2d" builtin="checker" width="64" height="64" rgb1="1 0 0" rgb2="0 0 1"/>
    <material name="wood" texture="wood"/>
    <mesh name="ball" builtin="sphere" params="4" scale="0.1 0.1 0.1"/>
    <mesh name="hull" builtin="sphere" params="2" scale="0.1 0.1 0.1"/>
  </asset>
  <worldbody>
    <body>
      <freejoint/>
      <geom type="mesh" mesh="ball" group="1" material="wood" contype="0" conaffinity="0" mass="0"/>
      <geom type="mesh" mesh="hull" group="0" mass="1"/>
    </body>
  </worldbody>
</mujoco>"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    models.physics_model.cache_clear()
    models._warn.cache_clear()
    monkeypatch.setenv("SRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.mjb"))


def test_a_model_is_compiled_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = models.render_model(SCENE, "exact")
    (entry,) = entries(folder)
    monkeypatch.setattr(models, "_compile_in_subprocess", None)  # calling it would fail
    os.utime(entry, (1, 1))
    again = models.render_model(SCENE, "exact")
    np.testing.assert_array_equal(first.mesh_vert, again.mesh_vert)
    assert entry.stat().st_mtime > 1, "use is recorded"


def test_each_kind_and_scene_has_its_own(folder: Path) -> None:
    for kind in ("exact", "near", "fast"):
        models.render_model(SCENE, kind)
    models.physics_model(SCENE)
    models.physics_model(SCENE.replace('rgb1="1 0 0"', 'rgb1="0 1 0"'))
    assert len(entries(folder)) == 5


def test_an_asset_that_changes_is_compiled_anew(folder: Path, tmp_path: Path) -> None:
    mesh = tmp_path / "wedge.obj"
    scene = SCENE.replace('<mesh name="ball" builtin="sphere" params="4"', f'<mesh name="ball" file="{mesh}"')
    counts = []
    for corner in (1, 2):
        mesh.write_text(f"v 0 0 0\nv {corner} 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 2 3 4\nf 1 4 3\n")
        os.utime(mesh, (corner, corner))
        counts.append(float(np.ptp(models.render_model(scene, "exact").mesh_vert, axis=0).max()))
    assert counts[0] != counts[1]


def test_only_what_is_seen_is_drawn() -> None:
    model = models.render_model(SCENE, "exact")
    assert model.mesh_facenum[model.mesh("ball").id] > 0
    assert model.mesh_facenum[model.mesh("hull").id] == 0


def test_coarser_modes_draw_less() -> None:
    counts = {}
    for kind in ("exact", "near", "fast"):
        model = models.render_model(SCENE, kind)
        counts[kind] = int(model.mesh_facenum.sum())
    assert counts["exact"] > 2 * counts["near"] > 2 * counts["fast"] > 0


def test_textures_shrink_to_the_mean_of_what_they_were() -> None:
    model = mujoco.MjModel.from_xml_string(SCENE)
    before = model.tex_data.reshape(64, 64, 3).copy()
    models._shrink_textures(model, 16)
    assert (model.tex_width[0], model.tex_height[0]) == (16, 16)
    small = model.tex_data[: 16 * 16 * 3].reshape(16, 16, 3)
    np.testing.assert_array_equal(small[3, 5], np.rint(before[12:16, 20:24].mean(axis=(0, 1))))


@pytest.mark.parametrize("textures", ["linear", "auto"])
def test_linear_textures_keep_the_levels_of_a_file_that_states_srgb(textures: str, tmp_path: Path) -> None:
    stated = PngInfo()
    stated.add(b"sRGB", b"\x00")
    Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "floor.png", pnginfo=stated)
    file = f'<texture name="wood" type="2d" file="{tmp_path}/floor.png"/>'
    scene = re.sub(r'<texture name="wood"[^>]*/>', file, SCENE)
    model = models.render_model(models.with_linear_textures(scene) if textures == "linear" else scene, "near")
    space = "LINEAR" if textures == "linear" else "SRGB"
    assert model.tex_colorspace[0] == getattr(mujoco.mjtColorSpace, f"mjCOLORSPACE_{space}")
    assert models.with_linear_textures(SCENE) == SCENE  # no file


def test_a_damaged_entry_is_built_again(folder: Path) -> None:
    models.render_model(SCENE, "exact")
    (entry,) = entries(folder)
    size = entry.stat().st_size
    with entry.open("r+b") as handle:
        handle.truncate(size // 2)
    assert models.render_model(SCENE, "exact").nmesh == 2
    assert entry.stat().st_size == size


def test_least_recently_used_models_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.render_model(SCENE, "exact")
    (first,) = entries(folder)
    monkeypatch.setenv("SRPO_CACHE_GB", str(2.5 * first.stat().st_size / 1e9))
    models.render_model(SCENE, "near")
    (second,) = set(entries(folder)) - {first}
    killed = folder / ".killed.mjb.host.1.tmp"
    killed.write_text("half")
    for age, file in ((300, second), (100, first), (2 * models.STALE_SECONDS, killed)):
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    models.render_model(SCENE, "fast")
    assert first in entries(folder) and second not in entries(folder)
    assert len(entries(folder)) == 2
    assert not killed.exists()


def test_a_folder_that_cannot_be_written_costs_time_only(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file where the folder should be")
    assert models.render_model(SCENE, "exact").nmesh == 2
    assert models.render_model(SCENE, "near").nmesh == 2
    assert capsys.readouterr().err.count("no cache for compiled models") == 1


def test_a_full_disk_costs_time_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir(parents=True)
    entry = folder / f"{models._key(SCENE, 'exact')}.mjb"
    temporary = folder / f".{entry.name}.{os.uname().nodename}.{os.getpid()}.tmp"
    temporary.symlink_to("/dev/full")
    assert models.render_model(SCENE, "exact").nmesh == 2
    assert not entry.exists()
    assert "no cache for compiled models" in capsys.readouterr().err


def test_a_scene_that_does_not_compile_is_an_error(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="XML Error"):
        models.render_model("<mujoco><nonsense/></mujoco>", "exact")
    assert not entries(folder)


def _count_faces(results: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    results.put(int(models.render_model(SCENE, "near").mesh_facenum.sum()))


def test_processes_that_want_the_same_model_share_the_work(folder: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    processes = [spawn.Process(target=_count_faces, args=(results,)) for _ in range(3)]
    for process in processes:
        process.start()
    counts = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(counts) == 1 and len(entries(folder)) == 1
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))
