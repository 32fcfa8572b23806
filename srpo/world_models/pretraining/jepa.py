"""V-JEPA 2's pretraining in miniature: predict the features of hidden parts of a clip from the visible ones.

The recipe is V-JEPA's (Bardes et al. 2024, arXiv 2404.08471; V-JEPA 2: Assran et al. 2025, arXiv
2506.09985): an encoder sees the visible patch tokens only, a narrow predictor guesses the features of the
hidden ones, the targets are layer-normalised features of a second encoder that follows the first as a moving
average, and the loss is L1. Encoder and predictor are transformers' own, so the result is a normal V-JEPA 2.

One thing is added. In hundreds instead of tens of thousands of updates, the moving average alone lets the
features shrink to a single direction that tells scenes apart and little else (participation rank 1.0). So the
visible tokens' features are also asked to vary and to be uncorrelated, by the variance and covariance terms
of VICReg (Bardes et al. 2022, arXiv 2105.04906).
"""

from __future__ import annotations

import copy
import logging
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder

from srpo.config import Pretraining
from srpo.config import WorldModel as WorldModelConfig
from srpo.runtime.files import write_with
from srpo.world_models.base import select_frames
from srpo.world_models.vjepa2 import preprocess

log = logging.getLogger(__name__)

BLOCK_AREAS = (0.15, 0.7)
"""Share of the picture that a hidden block covers: a clip has many small or few large ones (V-JEPA)."""
BLOCK_ASPECTS = (0.75, 1.5)
SHORTEST_WINDOW = 0.25
"""A clip shows at least this share of its episode (random sub-clips, as prefixes of an episode are)."""
WARMUP = 0.1
"""Share of the updates over which the learning rate rises; then it falls to 0 along a cosine."""
WEIGHT_DECAY = 0.04
BETAS = (0.9, 0.95)
GRAD_CLIP = 1.0
CHECKPOINT_EVERY = 50
"""Updates between resumable checkpoints."""
VARIANCE_WEIGHT = 1.0
COVARIANCE_WEIGHT = 0.04
"""VICReg's ratio of the two, 25 to 1; the prediction has weight 1."""
INITIALIZER_RANGE = 0.1
"""About 1/√96: with the released models' 0.02 a network so narrow is almost linear and learns slowly."""
COLLAPSED_STD, COLLAPSED_RANK = 0.02, 1.2
"""Below this standard deviation of pooled features (which are layer-normalised) clips all look alike, and
below this participation rank they differ along one line only."""

Metrics = dict[str, float]


def architecture(config: WorldModelConfig, pretraining: Pretraining) -> VJEPA2Config:
    """The small V-JEPA 2 that the settings describe."""
    return VJEPA2Config(
        crop_size=config.image_size,
        patch_size=pretraining.patch_size,
        frames_per_clip=config.frames,
        hidden_size=pretraining.hidden_size,
        num_hidden_layers=pretraining.depth,
        num_attention_heads=pretraining.heads,
        pred_hidden_size=pretraining.predictor_hidden_size,
        pred_num_hidden_layers=pretraining.predictor_depth,
        pred_num_attention_heads=pretraining.predictor_heads,
        pred_num_mask_tokens=2,  # the predictor uses the second
        pred_zero_init_mask_tokens=False,
        initializer_range=INITIALIZER_RANGE,
    )


def sample_mask(rng: np.random.Generator, depth: int, side: int, ratio: float) -> NDArray[np.bool_]:
    """Choose the hidden tokens of a clip: bool (depth · side²,), in the encoder's order (time, row, column).

    Blocks of random place and shape, each through the whole clip in time, are hidden until the share `ratio`
    is reached; the last one is cut so that every clip hides equally many tokens.
    """
    tokens = depth * side**2
    wanted = min(max(round(ratio * tokens), 1), tokens - 1)
    hidden = np.zeros(
        (side, side, depth), bool
    )  # time last, so that cutting a block leaves whole columns of time
    area = rng.choice(BLOCK_AREAS)
    while (lacking := wanted - int(hidden.sum())) > 0:
        aspect = rng.uniform(*BLOCK_ASPECTS)
        height = min(max(round(side * math.sqrt(area * aspect)), 1), side)
        width = min(max(round(side * math.sqrt(area / aspect)), 1), side)
        top, left = rng.integers(side - height + 1), rng.integers(side - width + 1)
        block = np.zeros_like(hidden)
        block[top : top + height, left : left + width] = True
        hidden.flat[np.flatnonzero(block & ~hidden)[:lacking]] = True
    return hidden.transpose(2, 0, 1).ravel()


def split(hidden: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """Indices of the visible (B, V) and of the hidden (B, M) tokens of masks bool (B, N), each in order."""
    # Every row hides equally many tokens, so a stable sort puts the visible ones first.
    order = torch.from_numpy(np.argsort(hidden, axis=1, kind="stable"))
    visible = int((~hidden[0]).sum())
    return order[:, :visible], order[:, visible:]


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens (B, N, D) at indices (B, K): (B, K, D)."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


def patchify(pixels: Tensor, config: VJEPA2Config) -> Tensor:
    """Cut clips (B, F, 3, S, S) into the encoder's patches (B, N, 3 · tubelet · patch²), in its order.

    The encoder's convolution over whole clips is then a matrix product over just the patches that are wanted.
    """
    tubelet, patch = config.tubelet_size, config.patch_size
    parts = pixels.unflatten(4, (-1, patch)).unflatten(3, (-1, patch)).unflatten(1, (-1, tubelet))
    return parts.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4).flatten(1, 3)


def encode(encoder: VJEPA2Encoder, patches: Tensor, positions: Tensor | None = None) -> Tensor:
    """Features (B, K, D) of patches (B, K, P) at `positions` (B, K) of the clip; None: a whole clip's.

    `VJEPA2Encoder.forward` without its restriction to whole clips.
    """
    projection = encoder.embeddings.patch_embeddings.proj
    tokens = functional.linear(patches, projection.weight.flatten(1), projection.bias)
    for layer in encoder.layer:
        tokens = layer(tokens, positions)[0]
    features: Tensor = encoder.layernorm(tokens)
    return features


def predict(model: VJEPA2Model, seen: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
    """The predictor's guess (B, M, D) at `hidden` (B, M) from features (B, V, D) `seen` at `visible`."""
    # The predictor picks its context out of a whole clip by position: put the visible tokens there.
    tokens = visible.shape[1] + hidden.shape[1]
    places = visible[..., None].expand_as(seen)
    context = seen.new_zeros(len(seen), tokens, seen.shape[-1]).scatter(1, places, seen)
    guess: Tensor = model.predictor(context, [visible], [hidden]).last_hidden_state
    return guess


@torch.no_grad()
def target_features(target: VJEPA2Encoder, patches: Tensor) -> Tensor:
    """Layer-normalised features (B, N, D) of all tokens under the target encoder."""
    features = encode(target, patches)
    return functional.layer_norm(features, features.shape[-1:])


def variance_and_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    """VICReg's two regularisers of features (B, V, D), taken as B · V samples.

    The variance term is the mean of max(0, 1 − standard deviation) over dimensions; the covariance term is
    the sum of the squared off-diagonal entries of the covariance, over D.
    """
    samples = features.flatten(0, 1)
    samples = samples - samples.mean(0)
    deviations = (samples.var(0) + 1e-4).sqrt()
    covariance = samples.T @ samples / (len(samples) - 1)
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return functional.relu(1 - deviations).mean(), off_diagonal / samples.shape[1]


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, decay: float) -> None:
    """Moving average in place: target ← decay · target + (1 − decay) · online."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def learning_rate(update: int, pretraining: Pretraining) -> float:
    """Linear warm-up, then a cosine to 0; `update` counts from 0."""
    warmup = max(1, round(WARMUP * pretraining.updates))
    if update < warmup:
        return pretraining.learning_rate * (update + 1) / warmup
    progress = (update - warmup) / max(1, pretraining.updates - warmup)
    return pretraining.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def spread(features: Tensor) -> tuple[float, float]:
    """How much clips differ: standard deviation and participation rank of pooled features.

    features (B, N, D) are averaged over tokens. The first number is the standard deviation over clips,
    averaged over dimensions; the second is (Σλ)²/Σλ² of the covariance's eigenvalues λ, between 1 and
    min(B − 1, D). A collapsed encoder gives 0 and 0.
    """
    pooled = features.mean(1)
    centred = pooled - pooled.mean(0)
    deviation = float((centred.square().sum(0) / (len(centred) - 1)).sqrt().mean())
    # The Gram matrix has the covariance's non-zero eigenvalues; its trace is Σλ, its squared norm Σλ².
    gram = centred @ centred.T
    energy = float(gram.square().sum())
    return deviation, float(gram.trace()) ** 2 / energy if energy > 0 else 0.0


def warn_if_collapsed(metrics: list[Metrics]) -> None:
    """Log a warning if the features of the last 20 updates tell clips apart too little."""
    deviation = float(np.mean([row["feature_std"] for row in metrics[-20:]]))
    rank = float(np.mean([row["participation_rank"] for row in metrics[-20:]]))
    if deviation < COLLAPSED_STD or rank < COLLAPSED_RANK:
        log.warning(
            "the features have collapsed: over clips their standard deviation is %.4f (at least %g is sound) "
            "and their participation rank %.2f (at least %g). Raise world_model.pretraining's updates or "
            "batch_size, or lower its learning_rate",
            deviation,
            COLLAPSED_STD,
            rank,
            COLLAPSED_RANK,
        )


def prepare(files: list[Path], image_size: int) -> Tensor:
    """Read play episodes, uint8 (F, H, W, 3) each, as encoder input: float16 (E, F, 3, S, S)."""
    clips = []
    for file in files:
        frames = np.load(file, allow_pickle=False)
        clips.append(preprocess(torch.from_numpy(frames), image_size).half())
    return torch.stack(clips)


def sample_batch(
    rng: np.random.Generator, clips: Tensor, batch_size: int, depth: int, side: int, ratio: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Random sub-clips (B, F, 3, S, S) of random episodes, with their visible and hidden tokens."""
    frames = clips.shape[1]
    chosen = []
    for episode in rng.integers(len(clips), size=batch_size):
        length = int(rng.integers(math.ceil(SHORTEST_WINDOW * frames), frames + 1))
        start = int(rng.integers(frames - length + 1))
        chosen.append(clips[episode, start + select_frames(length, frames)])
    masks = np.stack([sample_mask(rng, depth, side, ratio) for _ in range(batch_size)])
    return torch.stack(chosen).float(), *split(masks)


def train(
    config: WorldModelConfig, clips: Tensor, checkpoint: Path, device: torch.device
) -> tuple[VJEPA2Model, list[Metrics]]:
    """Pretrain on episodes float16 (E, F, 3, S, S); returns the model, with the target encoder, and metrics.

    The state is kept in the file `checkpoint` and training goes on from it. What an update draws depends on
    the seed and its number alone, so on a CPU an interrupted run ends with the very same weights.
    """
    pretraining = config.pretraining
    assert pretraining is not None
    torch.manual_seed(pretraining.seed)
    model = VJEPA2Model(architecture(config, pretraining)).to(device).train()
    target = copy.deepcopy(model.encoder).requires_grad_(False)
    groups: list[dict[str, Any]] = [
        {
            "params": [weight for weight in model.parameters() if weight.ndim > 1],
            "weight_decay": WEIGHT_DECAY,
        },
        {"params": [weight for weight in model.parameters() if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=pretraining.learning_rate, betas=BETAS)
    metrics: list[Metrics] = []
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        target.load_state_dict(state["target"])
        optimizer.load_state_dict(state["optimizer"])
        metrics = state["metrics"]
        log.info("resuming after update %d of %d", len(metrics), pretraining.updates)

    depth = config.frames // model.config.tubelet_size
    side = config.image_size // pretraining.patch_size
    bar = tqdm(
        range(len(metrics), pretraining.updates),
        desc="pretrain",
        unit="update",
        initial=len(metrics),
        total=pretraining.updates,
        disable=None,
    )
    for update in bar:
        started = time.perf_counter()
        rng = np.random.default_rng([pretraining.seed, update])
        batch = sample_batch(rng, clips, pretraining.batch_size, depth, side, pretraining.mask_ratio)
        pixels, visible, hidden = (part.to(device) for part in batch)
        patches = patchify(pixels, model.config)
        features = target_features(target, patches)
        seen = encode(model.encoder, take(patches, visible), visible)
        loss = functional.l1_loss(predict(model, seen, visible, hidden), take(features, hidden))
        variance, covariance = variance_and_covariance(seen)
        objective = loss + VARIANCE_WEIGHT * variance + COVARIANCE_WEIGHT * covariance
        rate = learning_rate(update, pretraining)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        objective.backward()
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        follow(target, model.encoder, pretraining.ema)

        deviation, rank = spread(features)
        metrics.append(
            {
                "update": update + 1,
                "loss": loss.item(),
                "variance": variance.item(),
                "covariance": covariance.item(),
                "feature_std": deviation,
                "participation_rank": rank,
                "grad_norm": float(grad_norm),
                "learning_rate": rate,
                "seconds": time.perf_counter() - started,
            }
        )
        bar.set_postfix(loss=f"{loss.item():.3f}", std=f"{deviation:.3f}", rank=f"{rank:.1f}")
        if (update + 1) % CHECKPOINT_EVERY == 0 or update + 1 == pretraining.updates:
            state = {
                "model": model.state_dict(),
                "target": target.state_dict(),
                "optimizer": optimizer.state_dict(),
                "metrics": metrics,
            }
            write_with(checkpoint, partial(torch.save, state))
    warn_if_collapsed(metrics)
    model.encoder = target
    return model.eval(), metrics
