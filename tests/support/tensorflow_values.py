"""Write TensorFlow's own values of what `srpo.policies.images` and `.augmentation` do without it.

    python -m venv FOLDER; FOLDER/bin/pip install tensorflow-cpu
    FOLDER/bin/python tests/support/tensorflow_values.py tests/support/tensorflow_values.npz

The calls are those of OpenVLA-OFT: `experiments/robot/openvla_utils.py` for evaluation, dlimp's augmentations
for fine-tuning.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

SIDE, SIZE = 32, 28
AREA, OFFSET, BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.9, 0.02, 0.13, 1.17, 1.19, -0.04


def pictures() -> np.ndarray:
    """Noise, edges, and smooth colours: uint8 (3, SIDE, SIDE, 3)."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (SIDE, SIDE, 3))
    edges = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((SIDE // 8, SIDE // 8, 1)))
    y, x = np.mgrid[:SIDE, :SIDE]
    smooth = np.stack([128 + 120 * np.sin(x / 9 + c) * np.cos(y / 13 - c) for c in range(3)], -1)
    return np.stack([noise, edges, smooth]).astype(np.uint8)


def evaluated(image: np.ndarray) -> dict[str, np.ndarray]:
    """The steps of the evaluation's transform."""
    encoded = tf.image.encode_jpeg(image)
    decoded = tf.io.decode_image(encoded, expand_animations=False, dtype=tf.uint8)
    resized = tf.image.resize(decoded, (SIZE, SIZE), method="lanczos3", antialias=True)
    resized = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
    side = tf.sqrt(AREA)
    low = (1 - side) / 2
    box = [[low, low, low + side, low + side]]
    unit = tf.image.convert_image_dtype(resized, tf.float32)[None]
    cropped = tf.image.crop_and_resize(unit, box, [0], (SIZE, SIZE))[0]
    cropped = tf.image.convert_image_dtype(tf.clip_by_value(cropped, 0, 1), tf.uint8, saturate=True)
    return {"decoded": decoded, "resized": resized, "cropped": cropped}


def augmented(image: np.ndarray) -> dict[str, np.ndarray]:
    """Each change of a picture, float32 in [0, 1], of the one before it."""
    levels = tf.image.convert_image_dtype(image, tf.float32)
    side = tf.sqrt(AREA)
    box = [[OFFSET, OFFSET, OFFSET + side, OFFSET + side]]
    changes = {
        "crop": lambda x: tf.image.crop_and_resize(x[None], box, [0], (SIDE, SIDE))[0],
        "brightness": lambda x: tf.image.adjust_brightness(x, BRIGHTNESS),
        "contrast": lambda x: tf.image.adjust_contrast(x, CONTRAST),
        "saturation": lambda x: tf.image.adjust_saturation(x, SATURATION),
        "hue": lambda x: tf.image.adjust_hue(x, HUE),
    }
    values = {}
    for name, change in changes.items():
        levels = values[name] = tf.clip_by_value(change(levels), 0, 1)
    return values


def main(out: Path) -> None:
    images = pictures()
    evaluations = [evaluated(image) for image in images]
    arrays = {name: np.stack([values[name] for values in evaluations]) for name in evaluations[0]}
    arrays |= {name: np.asarray(value) for name, value in augmented(images[0]).items()}
    np.savez_compressed(out, images=images, version=tf.__version__, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
