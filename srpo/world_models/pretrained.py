"""What pretrained encoders have in common: loading them safely, preprocessing images, fingerprints."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load_pretrained(
    source: str,
    revision: str | None,
    dtype: torch.dtype,
    classes: Mapping[str, type[PreTrainedModel]],
    example: str,
    unused: tuple[str, ...] = (),
) -> tuple[PreTrainedModel, str]:
    """Load a model of transformers from a local folder or the hub; safetensors only, no remote code.

    Args:
        source: folder or hub id.
        classes: model type in config.json → class to load it with.
        example: a suitable hub id, for messages.
        unused: how the names of weights begin that the representation does not use; of all others none may be
            missing, left over or not finite.

    Returns: the model, on the CPU, and its model type.

    Raises FileNotFoundError when it is not there, ValueError when it is another kind of model or its weights
    are not those that its config.json describes.
    """
    folder = Path(source)
    if not folder.is_dir() and (folder.is_absolute() or source.startswith(".") or source.count("/") != 1):
        raise FileNotFoundError(
            f"world model folder {source} does not exist: set world_model.checkpoint to a folder or hub id"
        )
    fix = (
        f"download it again (`hf download {example} --local-dir DIR`, say), "
        "or remove the folder and rerun the workflow if that made it"
    )
    try:
        description, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"world model {source} has no readable config.json: {fix}") from error
    if not description:
        raise FileNotFoundError(f"world model {source} has no config.json: {fix}")
    kind = description.get("model_type")
    if kind not in classes:
        raise ValueError(
            f"world model {source} is of type {kind!r}, not {' or '.join(map(repr, classes))}: set "
            f"world_model.checkpoint to one that is, such as {example}"
        )
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # it would clutter a log file
    try:
        model, report = classes[kind].from_pretrained(
            source, revision=revision, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"world model {source} has no readable model.safetensors ({error}): {fix}"
        ) from error
    weights = model.state_dict().items()
    problems = {
        "lacks": report["missing_keys"],
        "has values that are not finite in": [n for n, each in weights if not torch.isfinite(each).all()],
        "has, beyond what its config.json describes,": report["unexpected_keys"],
    }
    for what, names in problems.items():
        if used := sorted(name for name in names if not name.startswith(unused)):
            raise ValueError(f"world model {source} {what} {len(used)} weights, such as {used[0]}: {fix}")
    return model, kind


def preprocess_images(
    images: Tensor, short: int, size: int, mean: Sequence[float], std: Sequence[float], mode: str
) -> Tensor:
    """The usual evaluation transform: uint8 (..., H, W, 3) to float32 (..., 3, size, size).

    The short side is resized to `short` (antialiased, `mode` bilinear or bicubic), the centre `size` cropped,
    the values scaled to [0, 1] and normalised. transformers' processors do the same, but need torchvision or
    round the resized image to 8 bits, which this does not.
    """
    *leading, height, width, _ = images.shape
    pixels = images.reshape(-1, height, width, 3).permute(0, 3, 1, 2).float() / 255
    scale = short / min(height, width)
    resized = (short, int(width * scale)) if height <= width else (int(height * scale), short)
    if resized != (height, width):
        pixels = functional.interpolate(pixels, resized, mode=mode, antialias=True, align_corners=False)
        pixels = pixels.clamp(0, 1)  # bicubic overshoots at edges
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    pixels = pixels[..., top : top + size, left : left + size]
    means, deviations = (pixels.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    return ((pixels - means) / deviations).reshape(*leading, 3, size, size)


def weights_fingerprint(model: nn.Module, *settings: object) -> str:
    """A hash (hex) of everything an embedding depends on besides the frames.

    It covers the weights as loaded, the settings, this folder's code, the libraries' versions, and the kind
    of device (which affects the last bits).
    """
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    device = next(model.parameters()).device.type
    versions = [version(name) for name in ("torch", "transformers")]
    digest.update(repr((type(model).__name__, device, *versions, *settings)).encode())
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().contiguous().flatten().view(torch.uint8).cpu().numpy())
    return digest.hexdigest()
