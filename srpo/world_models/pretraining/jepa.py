"""V-JEPA 2's pretraining in miniature: predict the features of hidden parts of a clip from the visible ones.

The recipe is V-JEPA's (Bardes et al. 2024, arXiv 2404.08471; V-JEPA 2: Assran et al. 2025, arXiv
2506.09985): an encoder sees the visible patch tokens only, a narrow predictor predicts the features of the
hidden ones, the targets are layer-normalised features of a second encoder whose weights are a moving average
of the first's, and the loss is L1. Encoder and predictor are transformers' own, so the result is an ordinary
V-JEPA 2.

One thing is added. With hundreds instead of tens of thousands of updates, the moving average alone lets the
features collapse to a single direction, which distinguishes scenes and little else (participation rank 1.0).
So the variance and covariance terms of VICReg (Bardes et al. 2022, arXiv 2105.04906) keep the visible tokens'
features varied and uncorrelated.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder

from srpo import optim
from srpo.config import Pretraining
from srpo.config import WorldModel as WorldModelConfig
from srpo.runtime.files import write_with
from srpo.world_models.base import select_frames
from srpo.world_models.vjepa2 import preprocess

log = logging.getLogger(__name__)

BLOCK_AREAS = (0.15, 0.7)
"""Share of the image that a hidden block covers: a clip has many small or few large ones (V-JEPA)."""
BLOCK_ASPECTS = (0.75, 1.5)
SHORTEST_WINDOW = 0.25
"""A clip covers at least this share of its episode (random sub-clips, like prefixes of an episode)."""
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
"""About 1/√96: with the released models' 0.02 such a narrow network is almost linear and learns slowly."""
COLLAPSED_STD, COLLAPSED_RANK = 0.02, 1.2
"""Below this standard deviation of pooled, layer-normalised features all clips have nearly equal features,
and below this participation rank they differ along one line only."""

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
    """Sample the hidden tokens of a clip: bool (depth · side²,), in the encoder's order (time, row, column).

    Blocks of random place and shape, each through the whole clip in time, are hidden until the share `ratio`
    is reached; the last one is cut so that every clip hides equally many tokens.
    """
    tokens = depth * side**2
    wanted = min(max(round(ratio * tokens), 1), tokens - 1)
    # Time is the last axis, so that cutting a block leaves whole columns of time.
    hidden = np.zeros((side, side, depth), bool)
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

    The encoder's convolution over whole clips is then a matrix product over only the patches needed.
    """
    tubelet, patch = config.tubelet_size, config.patch_size
    parts = pixels.unflatten(4, (-1, patch)).unflatten(3, (-1, patch)).unflatten(1, (-1, tubelet))
    return parts.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4).flatten(1, 3)


def encode(encoder: VJEPA2Encoder, patches: Tensor, positions: Tensor | None = None) -> Tensor:
    """Features (B, K, D) of patches (B, K, P) at `positions` (B, K) of the clip; None: of a whole clip.

    It is `VJEPA2Encoder.forward` without the restriction to whole clips.
    """
    projection = encoder.embeddings.patch_embeddings.proj
    tokens = functional.linear(patches, projection.weight.flatten(1), projection.bias)
    for layer in encoder.layer:
        tokens = layer(tokens, positions)[0]
    features: Tensor = encoder.layernorm(tokens)
    return features


def predict(model: VJEPA2Model, features: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
    """Predicted features (B, M, D) at `hidden` (B, M) from `features` (B, V, D) at `visible` (B, V)."""
    # The predictor selects its context from a whole clip by position, so the visible tokens are put there.
    tokens = visible.shape[1] + hidden.shape[1]
    positions = visible[..., None].expand_as(features)
    context = features.new_zeros(len(features), tokens, features.shape[-1]).scatter(1, positions, features)
    prediction: Tensor = model.predictor(context, [visible], [hidden]).last_hidden_state
    return prediction


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
def update_target(target: nn.Module, online: nn.Module, decay: float) -> None:
    """Moving average in place: target ← decay · target + (1 − decay) · online."""
    for average, current in zip(target.parameters(), online.parameters(), strict=True):
        average.lerp_(current, 1 - decay)


def feature_statistics(features: Tensor) -> tuple[float, float]:
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
    """Log a warning if the features of the last 20 updates differ too little between clips."""
    deviation = float(np.mean([row["feature_std"] for row in metrics[-20:]]))
    rank = float(np.mean([row["participation_rank"] for row in metrics[-20:]]))
    if deviation < COLLAPSED_STD or rank < COLLAPSED_RANK:
        log.warning(
            "the features have collapsed: over clips their standard deviation is %.4f (healthy: at least %g) "
            "and their participation rank %.2f (at least %g). Raise world_model.pretraining's updates or "
            "batch_size, or lower its learning_rate",
            deviation,
            COLLAPSED_STD,
            rank,
            COLLAPSED_RANK,
        )


def load_clips(files: list[Path], image_size: int) -> Tensor:
    """Read play episodes, uint8 (F, H, W, 3) each, as encoder input: float16 (E, F, 3, S, S)."""
    clips = []
    for file in files:
        frames = np.load(file, allow_pickle=False)
        clips.append(preprocess(torch.from_numpy(frames), image_size).half())
    return torch.stack(clips)


@dataclass(frozen=True)
class TokenGrid:
    """The encoder's tokens of a clip: `depth` in time, `side` along each side of the image."""

    depth: int
    side: int

    @classmethod
    def of(cls, config: WorldModelConfig, architecture: VJEPA2Config) -> TokenGrid:
        return cls(config.frames // architecture.tubelet_size, config.image_size // architecture.patch_size)


def sample_batch(
    rng: np.random.Generator, clips: Tensor, grid: TokenGrid, pretraining: Pretraining
) -> tuple[Tensor, Tensor, Tensor]:
    """Random sub-clips (B, F, 3, S, S) of random episodes, with their visible and hidden tokens."""
    frames = clips.shape[1]
    chosen = []
    for episode in rng.integers(len(clips), size=pretraining.batch_size):
        length = int(rng.integers(math.ceil(SHORTEST_WINDOW * frames), frames + 1))
        start = int(rng.integers(frames - length + 1))
        chosen.append(clips[episode, start + select_frames(length, frames)])
    masks = [
        sample_mask(rng, grid.depth, grid.side, pretraining.mask_ratio) for _ in range(pretraining.batch_size)
    ]
    return torch.stack(chosen).float(), *split(np.stack(masks))


@dataclass(frozen=True)
class Learner:
    """The model, the target encoder (a moving average of the model's), and the optimiser."""

    model: VJEPA2Model
    target: VJEPA2Encoder
    optimizer: torch.optim.Optimizer

    @classmethod
    def create(cls, model: VJEPA2Model, rate: float) -> Learner:
        """With AdamW that decays matrices only, not biases and norms."""
        target = copy.deepcopy(model.encoder).requires_grad_(False)
        matrices = [weight for weight in model.parameters() if weight.ndim > 1]
        vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return cls(model, target, torch.optim.AdamW(groups, lr=rate, betas=BETAS))

    def save(self, checkpoint: Path, metrics: list[Metrics]) -> None:
        state = {
            "model": self.model.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "metrics": metrics,
        }
        write_with(checkpoint, partial(torch.save, state))

    def restore(self, checkpoint: Path, device: torch.device) -> list[Metrics]:
        """Load what `save` wrote; returns the metrics so far."""
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        metrics: list[Metrics] = state["metrics"]
        return metrics

    def update(self, number: int, batch: tuple[Tensor, Tensor, Tensor], rate: float, ema: float) -> Metrics:
        """One update from sub-clips (B, F, 3, S, S), visible tokens (B, V) and hidden tokens (B, M).

        Raises SystemExit, with its `number`, if the objective or its gradient is not finite.
        """
        model, (pixels, visible, hidden) = self.model, batch
        patches = patchify(pixels, model.config)
        targets = target_features(self.target, patches)
        features = encode(model.encoder, take(patches, visible), visible)
        loss = functional.l1_loss(predict(model, features, visible, hidden), take(targets, hidden))
        variance, covariance = variance_and_covariance(features)
        objective = loss + VARIANCE_WEIGHT * variance + COVARIANCE_WEIGHT * covariance
        optim.set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        objective.backward()
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optim.require_finite(f"update {number}", objective.item(), float(grad_norm))
        self.optimizer.step()
        update_target(self.target, model.encoder, ema)
        deviation, rank = feature_statistics(targets)
        return {
            "loss": loss.item(),
            "variance": variance.item(),
            "covariance": covariance.item(),
            "feature_std": deviation,
            "participation_rank": rank,
            "grad_norm": float(grad_norm),
            "learning_rate": rate,
        }


def train(
    config: WorldModelConfig, clips: Tensor, checkpoint: Path, device: torch.device
) -> tuple[VJEPA2Model, list[Metrics]]:
    """Pretrain on episodes float16 (E, F, 3, S, S); returns the model, with the target encoder, and metrics.

    The state is kept in the file `checkpoint`, from which training resumes. An update's random numbers depend
    on the seed and its number alone, so on a CPU an interrupted run ends with exactly the same weights.
    """
    pretraining = config.pretraining
    assert pretraining is not None
    updates = pretraining.updates
    torch.manual_seed(pretraining.seed)
    model = VJEPA2Model(architecture(config, pretraining)).to(device).train()
    learner = Learner.create(model, pretraining.learning_rate)
    metrics: list[Metrics] = []
    if checkpoint.exists():
        metrics = learner.restore(checkpoint, device)
        log.info("resuming after update %d of %d", len(metrics), updates)

    grid = TokenGrid.of(config, model.config)
    left = range(len(metrics), updates)
    bar = tqdm(left, desc="pretrain", unit="update", initial=len(metrics), total=updates, disable=None)
    for update in bar:
        started = time.perf_counter()
        rng = np.random.default_rng([pretraining.seed, update])
        pixels, visible, hidden = (part.to(device) for part in sample_batch(rng, clips, grid, pretraining))
        rate = optim.learning_rate(update, updates, pretraining.learning_rate, WARMUP)
        row = learner.update(update + 1, (pixels, visible, hidden), rate, pretraining.ema)
        metrics.append({"update": update + 1, **row, "seconds": time.perf_counter() - started})
        bar.set_postfix(
            loss=f"{row['loss']:.3f}",
            std=f"{row['feature_std']:.3f}",
            rank=f"{row['participation_rank']:.1f}",
        )
        if (update + 1) % CHECKPOINT_EVERY == 0 or update + 1 == updates:
            learner.save(checkpoint, metrics)
    warn_if_collapsed(metrics)
    model.encoder = learner.target
    return model.eval(), metrics
