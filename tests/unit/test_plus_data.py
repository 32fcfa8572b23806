"""LIBERO-Plus: prompts, the data file, the asset pack, and which tasks can run."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from srpo.libero_plus import assets as plus_assets
from srpo.libero_plus import data as plus_data
from srpo.libero_plus.data import bddl_language, prompt_from_task_name
from srpo.libero_plus.tasks import parse
from srpo.runtime.hub import FetchError

STOVE = "put_the_bowl_on_the_stove"
MUG = "KITCHEN_SCENE6_put_the_yellow_and_white_mug_in_the_microwave_and_close_it"
PLAIN = "_view_0_0_100_0_0_initstate_0"


class TestPrompts:
    def test_bddl_is_read_as_libero_reads_it(self):
        text = "(define (problem X)\n  (:language Put the  Bowl\n on the stove)\n (:regions))"
        assert bddl_language(text) == "put the bowl on the stove"

    @pytest.mark.parametrize(
        ("name", "prompt"),
        [
            (f"{STOVE}_light_3", "put the bowl on the stove light 3"),
            (
                f"{STOVE}_view_339_0_100_0_0_initstate_0",
                "put the bowl on the stove view 339 0 100 0 0 initstate 0",
            ),
            (f"{MUG}_tb_3", "put the yellow and white mug in the microwave and close it tb 3"),
        ],
    )
    def test_leak(self, name, prompt):
        assert prompt_from_task_name(name) == prompt


@pytest.fixture
def data(tmp_path) -> Path:
    """Data of five tasks."""
    state = np.arange(79.0)
    plus_data.write_data(
        tmp_path / "data.zip",
        language={f"{STOVE}_language_2{PLAIN}": "heat the bowl"},
        scenes={
            f"{STOVE}_light_3": plus_data.Scene("scenes/lights/3.xml", "floor.png", "wall.png"),
            f"{STOVE}_tb_1": plus_data.Scene(None, "floor.png", "new.png"),
        },
        layouts={
            f"{STOVE}_moved_level1_sample1": ("(define)", state),
            f"{STOVE}_add_1": ("(define (a))", state + 1),
        },
        object_files={"apple": "new_objects/apple.xml"},
        new_categories={f"{STOVE}_moved_level1_sample1": [], f"{STOVE}_add_1": ["apple"]},
    )
    return tmp_path / "data.zip"


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


class TestData:
    def test_round_trip(self, data):
        read = plus_data.PlusData(data)
        assert read.language(f"{STOVE}_language_2{PLAIN}") == "heat the bowl"
        assert read.scene(f"{STOVE}_tb_1") == plus_data.Scene(None, "floor.png", "new.png")
        assert read.bddl(f"{STOVE}_add_1") == "(define (a))"
        np.testing.assert_array_equal(read.init_state(f"{STOVE}_add_1"), np.arange(1.0, 80))

    @pytest.mark.parametrize("content", [None, b"", b"not a zip"])
    def test_not_a_data_file(self, tmp_path, content):
        if content is not None:
            (tmp_path / "x.zip").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"x\.zip: not LIBERO-Plus's data.*srpo libero-plus fetch makes it"
        ):
            plus_data.PlusData(tmp_path / "x.zip")

    def test_what_is_unavailable_and_why(self, data, tmp_path):
        base, pack = tmp_path / "base", tmp_path / "pack"
        touch(base / "textures/floor.png", base / "textures/wall.png")
        without, given = plus_data.PlusSources(data), plus_data.PlusSources(data, pack)

        def reason(suffix: str, sources: plus_data.PlusSources) -> str | None:
            return plus_data.unavailable_reason(parse(STOVE + suffix), sources, base)

        for suffix in (f"_language_2{PLAIN}", "_moved_level1_sample1", f"{PLAIN}_noise_1", "_style_light_0"):
            assert reason(suffix, without) is None
        assert (
            reason("_add_1", without) == "needs LIBERO-Plus's asset pack (plus.assets): new_objects/apple.xml"
        )
        assert "textures/new.png" in reason("_tb_1", without)
        assert "scenes/lights/3.xml" in reason("_light_3", without)
        assert "floor.png" not in reason("_light_3", without)
        assert reason("_tb_1", given) == f"not in the asset pack {pack}: textures/new.png"
        touch(pack / "textures/new.png", pack / "scenes/lights/3.xml", pack / "new_objects/apple.xml")
        for suffix in ("_add_1", "_tb_1", "_light_3"):
            assert reason(suffix, given) is None
        with pytest.raises(ValueError, match=r"does not have '.*_light_4'"):
            reason("_light_4", given)
        assert "srpo libero-plus fetch" in reason("_add_1", plus_data.PlusSources())


class TestAssets:
    PREFIX = "inspire/hdd/somebody/assets/"
    FILES = ("scenes/a.xml", "scenes/lights/b.xml", "textures/floor.png", "new_objects/apple/apple.xml")

    def archive(self, path: Path, prefix: str = PREFIX, more: tuple[str, ...] = ()) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("README.txt", "")
            archive.mkdir(f"{prefix}scenes")
            for name in (*self.FILES, *more):
                archive.writestr(f"{prefix}{name}", name * 3)
        return path

    @pytest.mark.parametrize("prefix", [PREFIX, "assets/"])
    def test_the_prefix_is_stripped(self, tmp_path, prefix):
        plus_assets.unpack(self.archive(tmp_path / "a.zip", prefix), tmp_path / "out")
        unpacked = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
        assert unpacked == sorted(self.FILES)
        assert (tmp_path / "out/scenes/a.xml").read_text() == "scenes/a.xml" * 3

    def test_goes_on_where_it_was_cut_off(self, tmp_path, monkeypatch):
        archive, copy, copied = self.archive(tmp_path / "a.zip"), plus_assets.shutil.copyfileobj, []

        def killed_at_the_third(source, sink):
            copied.append(source.name)
            if len(copied) == 3:
                sink.write(b"half")
                raise KeyboardInterrupt
            copy(source, sink)

        monkeypatch.setattr(plus_assets.shutil, "copyfileobj", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            plus_assets.unpack(archive, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        plus_assets.unpack(archive, tmp_path / "out")
        assert copied[2:] == [self.PREFIX + name for name in (self.FILES[2], *self.FILES[2:])]
        assert (tmp_path / "out/textures/floor.png").read_text() == "textures/floor.png" * 3

    def test_what_is_not_the_pack(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("assets/scenes/a.xml", "")
        with pytest.raises(FetchError, match="no folder with scenes, textures, new_objects"):
            plus_assets.unpack(tmp_path / "a.zip", tmp_path / "out")
        with pytest.raises(FetchError, match="would land outside"):
            plus_assets.unpack(
                self.archive(tmp_path / "b.zip", more=("../../../evil.txt",)), tmp_path / "out"
            )
        whole = self.archive(tmp_path / "c.zip").read_bytes()
        (tmp_path / "d.zip").write_bytes(whole.replace(b"a.xmlPK", b"b.xmlPK", 1))
        with pytest.raises(FetchError, match="Bad CRC"):
            plus_assets.unpack(tmp_path / "d.zip", tmp_path / "out2")

    def test_completeness_counts_the_tasks(self, data, tmp_path):
        touch(tmp_path / "base/textures/floor.png", tmp_path / "pack/textures/wall.png")
        tasks = [parse(STOVE + suffix) for suffix in ("_light_3", "_tb_1", "_add_1", f"{PLAIN}_noise_1")]
        read = plus_data.PlusData(data)
        missing = plus_assets.missing_assets(tasks, read, tmp_path / "pack", tmp_path / "base")
        assert missing == {"scenes/lights/3.xml": 1, "textures/new.png": 1, "new_objects/apple.xml": 1}
