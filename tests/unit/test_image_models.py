"""Picture encoders as representations, and embeddings kept in files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from srpo.config import WorldModel as WorldModelConfig
from srpo.world_models import WorldModel, WorldModelError, load_world_model
from srpo.world_models.cache import EmbeddingCache
from srpo.world_models.image import ImageWorldModel
from srpo.world_models.pixel import PixelWorldModel

SIZE = 28
CONFIG = WorldModelConfig(
    name="small",
    kind="image",
    checkpoint="owner/model",
    revision=None,
    frames=3,
    image_size=SIZE,
    pooling=None,
    dtype="float32",
    pretraining=None,
)
TOWER = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 7,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 30,
}


def dinov2() -> PreTrainedModel:
    # Positions for another size than the input's, as the released ones have.
    return Dinov2Model(Dinov2Config(**(TOWER | {"image_size": 42})))


def clip() -> PreTrainedModel:
    vision, text = CLIPVisionConfig(**TOWER, projection_dim=10), CLIPTextConfig(**TEXT, projection_dim=10)
    return CLIPModel(
        CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=10)
    )


def siglip() -> PreTrainedModel:
    vision, text = SiglipVisionConfig(**TOWER), SiglipTextConfig(**TEXT, projection_size=24)
    return SiglipModel(SiglipConfig(vision_config=vision.to_dict(), text_config=text.to_dict()))


MODELS = {"dinov2": dinov2, "clip": clip, "siglip": siglip}
PROCESSORS = {
    "dinov2": BitImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}),
    "siglip": SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}, resample=3),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small encoders with random weights, large enough that pictures matter; whole models with their text."""
    found = {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = make()
        for weight in model.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.2)
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
    return found


@pytest.fixture(params=list(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def video(length: int, side: int = 40, seed: int = 0) -> np.ndarray:
    """Smooth pictures, so that rounding to 8 bits after the resize changes little."""
    coarse = torch.from_numpy(np.random.default_rng([seed, length]).uniform(0, 255, (length, 3, 5, 5)))
    fine = nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255)
    return fine.permute(0, 2, 3, 1).to(torch.uint8).numpy()


def load(folder: Path, **changes: object) -> WorldModel:
    return load_world_model(CONFIG.model_copy(update=changes), folder, device="cpu")


def embedded_by_transformers(name: str, folder: Path, pictures: Tensor) -> Tensor:
    """Each picture's embedding by the whole model's own way, at pixel values that are given."""
    with torch.no_grad():
        if name == "dinov2":
            return Dinov2Model.from_pretrained(folder)(pictures).last_hidden_state[:, 0]
        whole = {"clip": CLIPModel, "siglip": SiglipModel}[name].from_pretrained(folder)
        return whole.get_image_features(pictures).pooler_output


def test_embedding_is_the_mean_of_what_the_whole_model_gives(name: str, folders: dict[str, Path]) -> None:
    episode = video(3)
    pixels = PROCESSORS[name](list(episode), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (3, 3, SIZE, SIZE)
    expected = embedded_by_transformers(name, folders[name], pixels).mean(0).numpy()
    world_model = load(folders[name])
    found = world_model.embed(episode)
    assert found.shape == expected.shape == (world_model.dimension,) and found.dtype == np.float32
    other = embedded_by_transformers(name, folders[name], pixels.flip(3)).mean(0).numpy()
    # The processors round the resized picture to 8 bits.
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(other - expected)


def test_input_is_the_processors_but_for_its_rounding(name: str, folders: dict[str, Path]) -> None:
    # Away from black and white, where bicubic overshoot is cut: Pillow cuts after rows and columns each.
    noise = np.random.default_rng(0).integers(80, 176, (3, 40, 40, 3), dtype=np.uint8)
    expected = PROCESSORS[name](list(noise), return_tensors="pt")["pixel_values"]
    world_model = load(folders[name])
    assert isinstance(world_model, ImageWorldModel)
    seen: list[Tensor] = []
    world_model.model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    world_model.embed(noise)
    # Two roundings (rows, then columns) of half a level each, and a little for the weights' own.
    assert float((seen[0] - expected).abs().max()) < 2 / 255 / min(world_model.family.std)


def test_pictures_of_the_input_size_are_encoded_exactly(folders: dict[str, Path]) -> None:
    episode = video(3, side=SIZE)  # nothing to resize, so nothing is rounded
    pixels = PROCESSORS["clip"](list(episode), return_tensors="pt")["pixel_values"]
    expected = embedded_by_transformers("clip", folders["clip"], pixels).mean(0).numpy()
    np.testing.assert_allclose(load(folders["clip"]).embed(episode), expected, atol=1e-5)


def test_batches_bound_memory_and_change_nothing(name: str, folders: dict[str, Path]) -> None:
    episodes = [video(length, seed=length, side=30 + length) for length in (5, 1, 9, 3)]
    world_model = load(folders[name])
    assert isinstance(world_model, ImageWorldModel)
    expected = np.stack([world_model.embed(episode) for episode in episodes])
    sizes = []
    world_model.model.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    world_model.image_batch, world_model.batch_size = 2, 3
    np.testing.assert_allclose(world_model.embed_many(iter(episodes)), expected, atol=1e-5)
    assert max(sizes) == 2 and sum(sizes) == 12
    assert np.linalg.norm(expected[0] - expected[1]) > 0.01 * np.linalg.norm(expected[0])


def test_prefixes_are_truncated_videos(folders: dict[str, Path]) -> None:
    episode, world_model = video(9), load(folders["dinov2"])
    expected = np.stack([world_model.embed(episode[: end + 1]) for end in (0, 4, 8)])
    np.testing.assert_allclose(world_model.embed_prefixes(episode, [0, 4, 8]), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_and_returns_float32(name: str, dtype: str, folders: dict[str, Path]) -> None:
    exact, rough = load(folders[name]).embed(video(3)), load(folders[name], dtype=dtype).embed(video(3))
    assert rough.dtype == np.float32
    assert 0 < np.linalg.norm(rough - exact) < 0.1 * np.linalg.norm(exact)


def test_settings_that_do_not_fit_the_checkpoint(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"image_size is 35.*set image_size: 28"):
        load(folders["clip"], image_size=35)
    with pytest.raises(ValueError, match=r"image_size 30 is not a multiple"):
        load(folders["dinov2"], image_size=30)


def test_broken_checkpoints_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(WorldModelError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")
    lacking = shutil.copytree(folders["clip"], tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, such as visual_projection\.weight"):
        load(lacking)
    weights = load_file(folders["clip"] / "model.safetensors")
    weights["vision_model.surplus.weight"] = torch.zeros(2)
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"beyond what its config\.json .* vision_model\.surplus\.weight"):
        load(lacking)
    weights = load_file(folders["clip"] / "model.safetensors")
    weights["vision_model.post_layernorm.bias"][0] = torch.nan
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"values that are not finite .*post_layernorm\.bias"):
        load(lacking)
    pickled = shutil.copytree(folders["dinov2"], tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no readable model\.safetensors"):
        load(pickled)
    other = shutil.copytree(folders["dinov2"], tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "vjepa2"}')
    with pytest.raises(ValueError, match=r"of type 'vjepa2', not 'dinov2' or 'clip'"):
        load(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": None}, "needs `checkpoint`"),
        ({"pooling": "mean"}, "`pooling` is for vjepa2"),
        ({"kind": "vjepa2", "frames": 4}, "`pooling` is for vjepa2"),
    ],
)
def test_settings_of_another_kind_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldModelConfig.model_validate(CONFIG.model_dump() | changes)


# ---- embeddings kept in files ----------------------------------------------------------------------


def test_kept_embeddings_are_the_same_and_not_computed_again(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    world_model = load(folders["dinov2"])
    calls = []
    world_model.model.register_forward_hook(lambda *_: calls.append(1))
    episode = video(9)
    expected = world_model.embed_prefixes(episode, [2, 8])
    first = EmbeddingCache(world_model, tmp_path).embed_prefixes(episode, [2, 8])
    done = len(calls)
    again = EmbeddingCache(load(folders["dinov2"]), tmp_path).embed_prefixes(episode, [2, 8])
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(again, expected)
    assert len(calls) == done and again.dtype == np.float32
    assert len(list(tmp_path.iterdir())) == 1


def test_another_content_is_another_file(folders: dict[str, Path], tmp_path: Path) -> None:
    episode = video(9)
    changed = episode.copy()
    changed[4, 3, 2, 1] ^= 1
    folder = shutil.copytree(folders["dinov2"], tmp_path / "changed")
    weights = load_file(folder / "model.safetensors")
    weights["layernorm.bias"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    cases = [
        (load(folders["dinov2"]), episode, [2, 8]),
        (load(folders["dinov2"]), episode, [3, 8]),
        (load(folders["dinov2"]), changed, [2, 8]),
        (load(folders["dinov2"], frames=2), episode, [2, 8]),
        (load(folders["dinov2"], dtype="bfloat16"), episode, [2, 8]),
        (load(folder), episode, [2, 8]),
    ]
    for number, (world_model, frames, ends) in enumerate(cases, start=1):
        found = EmbeddingCache(world_model, tmp_path / "kept").embed_prefixes(frames, ends)
        np.testing.assert_array_equal(found, world_model.embed_prefixes(frames, ends))
        assert len(list((tmp_path / "kept").iterdir())) == number


def test_pixels_are_not_kept(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"kind": "pixel", "checkpoint": None, "image_size": 4})
    found = EmbeddingCache(PixelWorldModel(config), tmp_path).embed_prefixes(video(5), [1, 4])
    assert found.shape == (2, 3 * 4 * 4 * 3) and not list(tmp_path.iterdir())
