"""Stands in for `srpo` where a test is about the workflow alone: makes the files of a stage.

logged LOG [accelerate launch ... --module] srpo COMMAND ARGUMENTS...    (see workflow/shell.sh)
"""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

from srpo.runtime.videos import write_video

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360f8cfc0f01f00"
    "05050102a4d1d2ef0000000049454e44ae426082"
)
FILES = {
    "sft": ("policy/config.json", "metrics.csv", "manifest.json"),
    "download": ("config.json", "model.safetensors"),
    "train": ("policy/config.json", "metrics.csv", "tasks.csv", "rewards.parquet", "manifest.json"),
    "demos": ("task_demo.hdf5",),
    "pretrain": ("config.json",),
    "reward-benchmark": ("trajectories.h5",),
    "srpo.analysis.videos": ("task0-state0.mp4", "all.html"),
}


def make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        write_video(path, np.full((5, 16, 16, 3), 90, np.uint8), 10)
        return
    path.write_bytes(PIXEL if path.suffix == ".png" else b"a,b\n1,2\n")


log, *words = sys.argv[1:]
at = words.index("srpo") if "srpo" in words else words.index("-m")
command, *arguments = words[at + 1 :]
Path(log).parent.mkdir(parents=True, exist_ok=True)
Path(log).write_text(" ".join([command, *arguments]))
for name, value in pairwise(arguments):
    if name == "--figure":
        make(Path(f"{value}.png"))
        make(Path(f"{value}.pdf"))
    elif name == "--videos":
        make(Path(value, "task0-state0.mp4"))
    elif name in ("--csv", "--tex", "--html", "--text", "--curves", "--paths", "--efficiency", "--data") or (
        name == "--out" and Path(value).suffix
    ):
        make(Path(value))
    elif name == "--out":
        for file in FILES[command]:
            make(Path(value, file))
