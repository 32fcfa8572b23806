"""Frame selection, the pixel baseline and V-JEPA 2 as representations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, VJEPA2Config, VJEPA2Model

from srpo.config import WorldModel as WorldModelConfig
from srpo.world_models import WorldModel, WorldModelError, load_world_model, select_frames
from srpo.world_models.pixel import area_weights
from srpo.world_models.pretrained import IMAGENET_MEAN, IMAGENET_STD
from srpo.world_models.vjepa2 import VJepa2WorldModel, preprocess

PIXEL = WorldModelConfig(
    name="pixel",
    kind="pixel",
    checkpoint=None,
    revision=None,
    frames=4,
    image_size=8,
    pooling=None,
    dtype="float32",
    pretraining=None,
)
VJEPA2 = PIXEL.model_copy(
    update={
        "name": "small",
        "kind": "vjepa2",
        "checkpoint": "owner/model",
        "image_size": 32,
        "pooling": "mean",
    }
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A V-JEPA 2 in transformers' format with random weights."""
    torch.manual_seed(0)
    config = VJEPA2Config(
        crop_size=32,
        patch_size=8,
        frames_per_clip=4,
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=2,
        pred_hidden_size=12,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        initializer_range=0.5,  # large enough that attention is not uniform
    )
    path = tmp_path_factory.mktemp("vjepa2")
    config.save_pretrained(path)
    save_file(VJEPA2Model(config).state_dict(), path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(params=["pixel", "vjepa2"])
def world_model(request: pytest.FixtureRequest, folder: Path) -> WorldModel:
    if request.param == "pixel":
        return load_world_model(PIXEL, None)
    return load_world_model(VJEPA2, folder, device="cpu")


def videos(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    """Noise at several scales, so that resizing does not average everything away."""
    rng = np.random.default_rng(seed)
    coarse = [rng.integers(0, 256, (length, 6, 6, 3), dtype=np.uint8) for length in lengths]
    return [video.repeat(8, axis=1).repeat(8, axis=2) for video in coarse]


# ---- frame selection -------------------------------------------------------------------------------


@given(length=st.integers(1, 600), count=st.integers(2, 80))
def test_selected_frames_are_even_and_span_the_episode(length: int, count: int) -> None:
    indices = select_frames(length, count)
    assert len(indices) == count
    assert indices[0] == 0 and indices[-1] == length - 1
    gaps = np.diff(indices)
    assert gaps.min() >= 0 and gaps.max() - gaps.min() <= 1
    np.testing.assert_array_less(np.abs(indices - np.linspace(0, length - 1, count)), 0.5 + 1e-9)


@given(length=st.integers(1, 40), count=st.integers(1, 80))
def test_short_episodes_repeat_every_frame(length: int, count: int) -> None:
    if count >= length > 1:
        assert set(select_frames(length, count)) == set(range(length))


def test_frame_selection_golden() -> None:
    assert select_frames(220, 4).tolist() == [0, 73, 146, 219]
    assert select_frames(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert select_frames(9, 1).tolist() == [8]
    assert select_frames(201, 5, "end").tolist() == [150, 163, 175, 188, 200]
    assert select_frames(2, 3, "end").tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="cannot select 4 frames of an episode of 0"):
        select_frames(0, 4)


@given(length=st.integers(1, 600), count=st.integers(2, 80))
def test_frames_of_the_end_are_even_over_the_last_quarter(length: int, count: int) -> None:
    indices = select_frames(length, count, "end")
    first = 3 * (length - 1) // 4
    np.testing.assert_array_equal(indices - first, select_frames(length - first, count))


def test_selected_frames_are_not_selected_again() -> None:
    episode = videos(9)[0]
    model = load_world_model(PIXEL.model_copy(update={"frame_selection": "end"}), None)
    clip = episode[select_frames(9, 4, "end")]
    np.testing.assert_array_equal(model.embed_clips([clip])[0], model.embed(episode))
    assert not np.array_equal(model.embed(clip), model.embed(episode))


# ---- both representations --------------------------------------------------------------------------


def test_embedding_is_deterministic_and_independent_of_the_batch(world_model: WorldModel) -> None:
    episodes = videos(4, 9, 1, 30, 2)
    together = world_model.embed_many(episodes)
    assert together.shape == (5, world_model.dimension) and together.dtype == np.float32
    np.testing.assert_array_equal(together, world_model.embed_many(iter(episodes)))
    world_model.batch_size = 2
    np.testing.assert_allclose(world_model.embed_many(episodes), together, atol=1e-5)
    for episode, expected in zip(episodes, together, strict=True):
        np.testing.assert_allclose(world_model.embed(episode), expected, atol=1e-5)
    assert np.linalg.norm(together[0] - together[1]) > 1e-2


def test_prefixes_are_truncated_videos(world_model: WorldModel) -> None:
    [episode] = videos(11)
    ends = [0, 2, 5, 10]
    expected = np.stack([world_model.embed(episode[: end + 1]) for end in ends])
    np.testing.assert_allclose(world_model.embed_prefixes(episode, ends), expected, atol=1e-5)
    np.testing.assert_allclose(expected[-1], world_model.embed(episode), atol=1e-5)
    with pytest.raises(ValueError, match=r"\[11\].*frames 0–10"):
        world_model.embed_prefixes(episode, [3, 11])


def test_no_episodes_give_no_embeddings(world_model: WorldModel) -> None:
    assert world_model.embed_many([]).shape == (0, world_model.dimension)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((4, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)],
)
def test_other_shapes_and_types_are_refused(world_model: WorldModel, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="frames must be uint8"):
        world_model.embed(frames)


# ---- pixel -----------------------------------------------------------------------------------------


def test_area_weights_golden() -> None:
    np.testing.assert_allclose(area_weights(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(area_weights(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], rtol=1e-6)


@given(source=st.integers(1, 100), target=st.integers(1, 40))
def test_area_weights_average(source: int, target: int) -> None:
    weights = area_weights(source, target)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(0), target / source, rtol=1e-4)  # every pixel counts the same


def test_pixel_embedding_is_the_picture() -> None:
    model = load_world_model(PIXEL, None)
    assert model.dimension == 4 * 8 * 8 * 3
    video = np.zeros((4, 16, 16, 3), np.uint8)
    video[2, :2, 4:6, 1] = 255  # exactly one small pixel: frame 2, row 0, column 2, green
    expected = np.zeros((4, 8, 8, 3), np.float32)
    expected[2, 0, 2, 1] = 1
    np.testing.assert_allclose(model.embed(video).reshape(4, 8, 8, 3), expected, atol=1e-6)


# ---- V-JEPA 2 --------------------------------------------------------------------------------------


def test_preprocessing_of_a_constant_is_imagenet_normalisation() -> None:
    colour = torch.tensor([255, 128, 0], dtype=torch.uint8)
    pixels = preprocess(colour.expand(2, 96, 80, 3), 64)
    assert pixels.shape == (2, 3, 64, 64) and pixels.dtype == torch.float32
    expected = [(v / 255 - m) / s for v, m, s in zip([255, 128, 0], IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    np.testing.assert_allclose(expected, [2.2489, 0.2052, -1.8044], atol=1e-4)
    torch.testing.assert_close(pixels, torch.tensor(expected).view(1, 3, 1, 1).expand(2, 3, 64, 64))


def test_preprocessing_crops_the_centre_of_the_resized_picture() -> None:
    # Size 28 resizes the short side to 32: a 32 × 64 picture stays and loses 2 rows and 18 columns a side.
    video = torch.arange(32 * 64).remainder(251).to(torch.uint8).view(1, 32, 64, 1).expand(1, 32, 64, 3)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    expected = ((video[:, 2:30, 18:46].float() / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(preprocess(video, 28), expected)


def test_embedding_is_the_mean_of_the_patch_tokens(folder: Path) -> None:
    [episode] = videos(4)
    model = VJEPA2Model.from_pretrained(folder)
    pixels = preprocess(torch.from_numpy(episode), 32)[None]
    with torch.no_grad():
        expected = model.get_vision_features(pixels).mean(1)[0]
    embedding = load_world_model(VJEPA2, folder, device="cpu").embed(episode)
    np.testing.assert_allclose(embedding, expected.numpy(), atol=1e-5)


def test_grid_pooling_is_a_mean_over_each_cell_at_each_time(folder: Path) -> None:
    [episode] = videos(4)
    model = VJEPA2Model.from_pretrained(folder)
    with torch.no_grad():
        tokens = model.get_vision_features(preprocess(torch.from_numpy(episode), 32)[None])[0]
    world_model = load_world_model(VJEPA2.model_copy(update={"pooling": "grid"}), folder, device="cpu")
    embedding = world_model.embed(episode)
    # 2 time steps of 4 × 4 patches: every cell is a patch.
    assert embedding.shape == (world_model.dimension,) == (2 * 16 * 24,)
    np.testing.assert_allclose(embedding, tokens.flatten().numpy(), atol=1e-5)


def test_grid_pooling_of_several_patches_a_cell(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = VJEPA2Config(crop_size=32, patch_size=4, frames_per_clip=2, hidden_size=12, num_hidden_layers=1,
                         num_attention_heads=2, pred_hidden_size=12, pred_num_attention_heads=2,
                         pred_num_hidden_layers=1)  # fmt: skip
    VJEPA2Model(small).save_pretrained(tmp_path)
    [episode] = videos(2)
    config = VJEPA2.model_copy(update={"pooling": "grid", "frames": 2})
    with torch.no_grad():
        model = VJEPA2Model.from_pretrained(tmp_path)
        tokens = model.get_vision_features(preprocess(torch.from_numpy(episode), 32)[None])[0].numpy()
    cells = load_world_model(config, tmp_path, device="cpu").embed(episode).reshape(4, 4, 12)
    # The second cell of the third row: patches in rows 4 and 5, columns 2 and 3, of 8 × 8.
    patches = [8 * row + column for row in (4, 5) for column in (2, 3)]
    np.testing.assert_allclose(cells[2, 1], tokens[patches].mean(0), atol=1e-5)


def test_grid_pooling_needs_patches_that_divide(tmp_path: Path) -> None:
    small = VJEPA2Config(crop_size=32, patch_size=16, frames_per_clip=2, hidden_size=12, num_hidden_layers=1,
                         num_attention_heads=2, pred_hidden_size=12, pred_num_attention_heads=2,
                         pred_num_hidden_layers=1)  # fmt: skip
    VJEPA2Model(small).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"2 × 2 patches.*set pooling: mean"):
        load_world_model(VJEPA2.model_copy(update={"pooling": "grid"}), tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_and_returns_float32(dtype: str, folder: Path) -> None:
    [episode] = videos(4)
    exact = load_world_model(VJEPA2, folder, device="cpu").embed(episode)
    rough = load_world_model(VJEPA2.model_copy(update={"dtype": dtype}), folder, device="cpu").embed(episode)
    assert rough.dtype == np.float32
    assert 0 < np.linalg.norm(rough - exact) < 0.1 * np.linalg.norm(exact)


def test_an_embedding_that_is_not_finite_comes_back_as_it_is(folder: Path) -> None:
    world_model = load_world_model(VJEPA2, folder, device="cpu")
    assert isinstance(world_model, VJepa2WorldModel)
    world_model.encoder.layernorm.bias[0] = torch.nan
    assert not np.isfinite(world_model.embed_many(videos(4))).all(axis=1).any()


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(WorldModelError, match=r"nowhere.*does not exist.*world_model\.checkpoint"):
        load_world_model(VJEPA2, tmp_path / "nowhere")


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(WorldModelError, match=r"has no config\.json"):
        load_world_model(VJEPA2, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vje')
    with pytest.raises(WorldModelError, match=r"no readable config\.json"):
        load_world_model(VJEPA2, tmp_path)


def test_hub_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WorldModelError, match="owner/model has no"):
        load_world_model(VJEPA2, None)


def test_another_type_of_model(tmp_path: Path) -> None:
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path.name} is of type 'llama', not 'vjepa2'"):
        load_world_model(VJEPA2, tmp_path)


def test_truncated_weights(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"broken has no readable model\.safetensors"):
        load_world_model(VJEPA2, broken)
    weights.unlink()
    with pytest.raises(ValueError, match=r"broken has no readable model\.safetensors"):
        load_world_model(VJEPA2, broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("encoder.layernorm.bias"), r"lacks 1 weights, such as encoder\.layernorm\.bias"),
        (
            lambda w: w.update(surplus=torch.zeros(2)),
            r"has, beyond what .* describes, 1 weights, such as surplus",
        ),
        (
            lambda w: w.update(
                {n.replace("layer.1.", "layer.2."): t for n, t in [*w.items()] if "layer.1." in n}
            ),
            r"has, beyond what its config\.json describes, \d+ weights, such as encoder\.layer\.2\.",
        ),
        (
            lambda w: w["encoder.layer.0.mlp.fc1.weight"].view(-1)[5].fill_(torch.nan),
            r"has values that are not finite in 1 weights, such as encoder\.layer\.0\.mlp\.fc1\.weight",
        ),
        (lambda w: w["encoder.layernorm.bias"].fill_(torch.inf), "has values that are not finite"),
        (lambda w: w.update({"encoder.layernorm.bias": torch.zeros(3)}), "no readable"),
    ],
)
def test_weights_that_the_architecture_does_not_describe(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    """Missing, left over (a deeper encoder than config.json says), not finite, of another shape."""
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    change(weights)
    save_file({n: t.clone() for n, t in weights.items()}, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load_world_model(VJEPA2, broken, device="cpu")


def test_weights_that_overflow_the_configured_precision_are_refused(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["encoder.layernorm.bias"][0] = 1e6
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    assert load_world_model(VJEPA2, broken, device="cpu").embed(videos(4)[0]).max() > 1e5
    with pytest.raises(ValueError, match=r"values that are not finite.*encoder\.layernorm\.bias"):
        load_world_model(VJEPA2.model_copy(update={"dtype": "float16"}), broken, device="cpu")


@pytest.mark.parametrize("change", ["without", "broken"])
def test_the_predictor_is_not_needed(folder: Path, tmp_path: Path, change: str) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    for name in [name for name in weights if name.startswith("predictor.")]:
        if change == "without":
            del weights[name]
        else:
            weights[name].fill_(torch.nan)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    [episode] = videos(4)
    one, two = (load_world_model(VJEPA2, each, device="cpu").embed(episode) for each in (folder, other))
    np.testing.assert_array_equal(one, two)


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no readable model\.safetensors"):
        load_world_model(VJEPA2, broken)


def test_settings_that_do_not_fit_the_checkpoint(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"image_size is 64.*set image_size: 32"):
        load_world_model(VJEPA2.model_copy(update={"image_size": 64}), folder)
    assert json.loads((folder / "config.json").read_text())["tubelet_size"] == 2
    with pytest.raises(ValueError, match="frames 3 is not a multiple"):
        load_world_model(VJEPA2.model_copy(update={"frames": 3}), folder)


def test_pretrained_by_the_workflow_needs_its_folder() -> None:
    with pytest.raises(ValueError, match="srpo pretrain"):
        load_world_model(VJEPA2.model_copy(update={"checkpoint": None}), None)
