"""Pretrain a small V-JEPA 2 on play data, so that a pipeline needs no download.

    srpo pretrain --config CONFIG --out DIR --scratch DIR --workers N

plays in libero_90 scenes (`play`), trains on the recorded frames (`jepa`) and writes DIR, which
`transformers.VJEPA2Model.from_pretrained` loads:

    config.json, model.safetensors    encoder (the moving average) and predictor
    video_preprocessor_config.json    the input's preprocessing, for transformers' VJEPA2VideoProcessor
    metrics.csv                       one row per update: loss, feature statistics, learning rate, seconds
    manifest.json                     settings and circumstances
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from srpo.config import ConfigError, WorldModelStage, load_stage
from srpo.envs.gl import require_gl
from srpo.errors import run_command
from srpo.runtime.arguments import new_folder, positive
from srpo.runtime.files import atomic_directory, write_json
from srpo.runtime.locks import lock_held
from srpo.runtime.manifest import write_manifest
from srpo.runtime.peers import own_device

# Play needs the simulator and training needs torch. Each is imported where it starts, so that the simulation
# processes, which import this module again, do not load torch.
if TYPE_CHECKING:
    from transformers import VJEPA2Model

log = logging.getLogger(__name__)


def prepare_scratch(scratch: Path, config: WorldModelStage) -> None:
    """Clear `scratch` if an earlier run under other settings left it; keep it if this run can resume."""
    settings = config.model_dump(mode="json", exclude={"preset"})
    marker = scratch / "settings.json"
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == settings:
        return
    clear_scratch(scratch)
    write_json(marker, settings)


def clear_scratch(scratch: Path) -> None:
    """Remove the files of this stage, and nothing else."""
    shutil.rmtree(scratch / "play", ignore_errors=True)
    for name in ("checkpoint.pt", "settings.json"):
        (scratch / name).unlink(missing_ok=True)


def write_model(folder: Path, model: VJEPA2Model) -> None:
    """Write a model folder in transformers' format."""
    from safetensors.torch import save_file

    from srpo.world_models.pretrained import IMAGENET_MEAN, IMAGENET_STD
    from srpo.world_models.vjepa2 import resized_side

    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    weights = {name: weight.contiguous().cpu() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    size = model.config.crop_size
    write_json(
        folder / "video_preprocessor_config.json",
        {
            "video_processor_type": "VJEPA2VideoProcessor",
            "do_resize": True,
            "size": {"shortest_edge": resized_side(size)},
            "resample": 2,
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": IMAGENET_MEAN,
            "image_std": IMAGENET_STD,
        },
    )


def pretrain(config: WorldModelStage, out: Path, scratch: Path, workers: int) -> None:
    """Collect play data, train, and write `out`; an interrupted run resumes from `scratch`."""
    if config.world_model.pretraining is None:
        raise ConfigError(f"world model {config.world_model.name}: world_model.pretraining is not set")
    require_gl()
    prepare_scratch(scratch, config)
    from srpo.envs.libero import libero_record
    from srpo.world_models.pretraining.play import SUITE, collect_play

    libero = libero_record(SUITE)
    files = collect_play(config, scratch / "play", workers)

    import torch

    from srpo.world_models.pretraining import jepa

    torch.set_num_threads(workers)
    device = own_device()
    clips = jepa.load_clips(files, config.world_model.image_size)
    model, metrics = jepa.train(config.world_model, clips, scratch / "checkpoint.pt", device)
    with atomic_directory(out) as folder:
        write_model(folder, model)
        with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(metrics[0]))
            writer.writeheader()
            writer.writerows(metrics)
        write_manifest(folder / "manifest.json", config, libero=libero, episodes=len(files))
    clear_scratch(scratch)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="srpo pretrain",
        description="Pretrain a small V-JEPA 2 on play data.",
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved configuration of the stage (YAML)"
    )
    parser.add_argument("--out", type=new_folder, required=True, help="model folder to make")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for play data and checkpoints")
    parser.add_argument(
        "--workers", type=positive, default=1, help="processes that simulate, threads that train"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    config = load_stage(arguments.config, WorldModelStage)
    with lock_held(arguments.scratch):
        pretrain(config, arguments.out, arguments.scratch, arguments.workers)


if __name__ == "__main__":
    run_command(main)
