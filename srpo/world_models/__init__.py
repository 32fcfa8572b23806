"""World models: frozen representations in which trajectories are compared (pixels, images, V-JEPA 2)."""

from __future__ import annotations

from pathlib import Path

from srpo.config import WorldModel as WorldModelConfig
from srpo.errors import InputError
from srpo.runtime.peers import own_device
from srpo.world_models.base import WorldModel, select_frames
from srpo.world_models.pixel import PixelWorldModel

__all__ = ["WorldModel", "WorldModelError", "load_world_model", "select_frames"]


class WorldModelError(InputError, ValueError):
    """A world model's weights cannot be used."""


def load_world_model(config: WorldModelConfig, checkpoint: Path | None, device: str = "auto") -> WorldModel:
    """Load the world model that `config` names.

    Args:
        checkpoint: the folder that the workflow pretrained; None: `config.checkpoint`.
        device: `auto` is the GPU if there is one, else the CPU.

    Raises:
        WorldModelError: the weights cannot be used; the message names the folder and the fix.
    """
    try:
        return _load(config, checkpoint, device)
    except (FileNotFoundError, ValueError) as error:
        raise WorldModelError(str(error)) from error


def _load(config: WorldModelConfig, checkpoint: Path | None, device: str) -> WorldModel:
    if config.kind == "pixel":
        return PixelWorldModel(config)
    import torch  # only here, so that the pixel baseline and frame selection stay light

    where = own_device() if device == "auto" else torch.device(device)
    if config.kind == "efficientnet-lite":
        from srpo.world_models.efficientnet import EfficientNetLiteWorldModel

        return EfficientNetLiteWorldModel(config, where)
    source = str(checkpoint) if checkpoint is not None else config.checkpoint
    if source is None:
        raise ValueError(
            f"world model {config.name} is pretrained by the workflow: give the folder that "
            "`srpo pretrain` wrote"
        )
    if config.kind == "image":
        from srpo.world_models.image import ImageWorldModel

        return ImageWorldModel(config, source, where)
    from srpo.world_models.vjepa2 import VJepa2WorldModel

    return VJepa2WorldModel(config, source, where)
