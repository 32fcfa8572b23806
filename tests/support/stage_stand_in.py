"""Stands in for `srpo` where a test is about the workflow alone: makes the files of a stage.

logged LOG [accelerate launch ... --module] srpo COMMAND ARGUMENTS...    (see workflow/shell.sh)

A job imports only what it needs: there are some fifty of them.
"""

import re
import sys
from itertools import pairwise
from pathlib import Path

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
}


def make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        import numpy as np

        from srpo.runtime.videos import write_video

        write_video(path, np.full((5, 16, 16, 3), 90, np.uint8), 10)
        return
    path.write_bytes(PIXEL if path.suffix == ".png" else b"a,b\n1,2\n")


def drawn(name: str, *arguments: str) -> list[Path]:
    """What `srpo draw NAME ARGUMENTS...` writes."""
    from srpo.analysis.drawings import DRAWINGS

    out = Path(arguments[arguments.index("--out") + 1])
    outputs = next(drawing for drawing in DRAWINGS if drawing.name == name).outputs
    files = [out / path for form, path in outputs.items() if form != "folder"]
    if "folder" in outputs:
        suite = re.search(r"/runs/(\w+)/", " ".join(arguments))
        assert suite
        folder = out / outputs["folder"].format(suite=suite[1])
        files += [folder / "task0-state0.mp4", folder / "all.html"]
    return files


log, *words = sys.argv[1:]
command, *arguments = words[words.index("srpo") + 1 :]
Path(log).parent.mkdir(parents=True, exist_ok=True)
Path(log).write_text(" ".join([command, *arguments]))
if command == "draw":
    for path in drawn(*arguments):
        make(path)
    sys.exit()
if command == "ledger":  # the real one: it reads what Snakemake wrote
    from srpo.cluster.ledger import main

    main(arguments)
    sys.exit()
for name, value in pairwise(arguments):
    if name == "--videos":
        make(Path(value, "task0-state0.mp4"))
    elif name in ("--curves", "--sampled", "--paths", "--data") or (name == "--out" and Path(value).suffix):
        make(Path(value))
    elif name == "--out":
        for file in FILES[command]:
            make(Path(value, file))
