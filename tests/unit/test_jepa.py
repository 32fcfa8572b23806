"""Masked latent prediction: masks, what the context encoder sees, the moving average, resuming."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from srpo.config import Pretraining, WorldModel
from srpo.world_models.pretraining import jepa

CPU = torch.device("cpu")
PRETRAINING = Pretraining(
    scenes=(0,),
    episodes=8,
    steps=8,
    updates=40,
    batch_size=8,
    learning_rate=2e-3,
    ema=0.95,
    mask_ratio=0.5,
    hidden_size=24,
    depth=2,
    heads=2,
    patch_size=8,
    predictor_hidden_size=12,
    predictor_depth=1,
    predictor_heads=1,
    seed=3,
)
CONFIG = WorldModel(
    name="tiny",
    kind="vjepa2",
    checkpoint=None,
    revision=None,
    frames=4,
    image_size=32,
    pooling="mean",
    dtype="float32",
    pretraining=PRETRAINING,
)


def settings(**changes: object) -> WorldModel:
    """The small configuration with other pretraining settings."""
    return CONFIG.model_copy(update={"pretraining": PRETRAINING.model_copy(update=changes)})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Operations this small only lose time to threads, a lot of it when other tests share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    """Bright squares that wander over a grey ground: float16 (12, 4, 3, 32, 32)."""
    rng = np.random.default_rng(0)
    videos = np.zeros((12, 4, 3, 32, 32), np.float16)
    for video in videos:
        place, speed = rng.integers(0, 24, 2), rng.integers(-3, 4, 2)
        for time, frame in enumerate(video):
            y, x = np.clip(place + time * speed, 0, 24)
            frame[:, y : y + 8, x : x + 8] = rng.uniform(0.5, 2, (3, 1, 1))
    return torch.from_numpy(videos)


@given(
    depth=st.integers(1, 8),
    side=st.integers(1, 9),
    ratio=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32 - 1),
)
def test_masks_split_the_tokens_into_disjoint_complete_sets(
    depth: int, side: int, ratio: float, seed: int
) -> None:
    if depth * side < 2:
        return
    rng = np.random.default_rng(seed)
    tokens = depth * side**2
    masks = np.stack([jepa.sample_mask(rng, depth, side, ratio) for _ in range(3)])
    visible, hidden = jepa.split(masks)
    assert hidden.shape == (3, min(max(round(ratio * tokens), 1), tokens - 1))
    for mask, seen, unseen in zip(masks, visible.numpy(), hidden.numpy(), strict=True):
        assert sorted([*seen, *unseen]) == list(range(tokens))
        assert mask[unseen].all() and not mask[seen].any()
        assert (np.diff(seen) > 0).all() and (np.diff(unseen) > 0).all()
        # Blocks go through the whole clip in time; at most one column of the last block is cut short.
        columns = mask.reshape(depth, -1).sum(0)
        assert ((columns > 0) & (columns < depth)).sum() <= 1


def test_masks_are_blocks_not_scattered_tokens() -> None:
    rng = np.random.default_rng(0)
    neighbours = []
    for _ in range(200):
        mask = jepa.sample_mask(rng, 2, 8, 0.5).reshape(2, 8, 8)[0]
        neighbours.append((mask[:, 1:] == mask[:, :-1]).mean())
    assert np.mean(neighbours) > 0.8  # 0.5 for independent tokens


@pytest.fixture
def model() -> jepa.VJEPA2Model:
    """A small V-JEPA 2 with random weights."""
    torch.manual_seed(0)
    return jepa.VJEPA2Model(jepa.architecture(CONFIG, PRETRAINING)).eval()


def test_encoding_a_whole_clip_is_transformers_own(model: jepa.VJEPA2Model, clips: torch.Tensor) -> None:
    pixels = clips[:2].float()
    patches = jepa.patchify(pixels, model.config)
    assert patches.shape == (2, 32, 3 * 2 * 8 * 8)
    features = jepa.encode(model.encoder, patches)
    torch.testing.assert_close(features, model.get_vision_features(pixels))
    everything = torch.arange(32).expand(2, -1)
    torch.testing.assert_close(jepa.encode(model.encoder, patches, everything), features)


def test_visible_tokens_keep_their_positions(model: jepa.VJEPA2Model) -> None:
    torch.nn.init.normal_(model.encoder.layer[0].attention.query.weight)  # so that attention is not uniform
    torch.nn.init.normal_(model.encoder.layer[0].attention.key.weight)
    patches = torch.randn(1, 3, 3 * 2 * 8 * 8)
    here, there = torch.tensor([[0, 5, 21]]), torch.tensor([[1, 5, 30]])
    features = jepa.encode(model.encoder, patches, here)
    assert (features - jepa.encode(model.encoder, patches, there)).abs().max() > 1e-4


def test_prediction_is_transformers_own(model: jepa.VJEPA2Model, clips: torch.Tensor) -> None:
    pixels = clips[:2].float()
    visible, hidden = torch.arange(32).expand(2, -1)[:, :20], torch.tensor([[23, 31], [20, 30]])
    hidden = torch.cat([hidden, hidden.new_tensor([range(21, 31), range(21, 31)])], 1)[:, :12]
    expected = model(pixels, context_mask=[visible], target_mask=[hidden]).predictor_output
    seen = model.get_vision_features(pixels)[:, :20]
    torch.testing.assert_close(jepa.predict(model, seen, visible, hidden), expected.last_hidden_state)


def test_variance_and_covariance_golden() -> None:
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).reshape(2, 2, 2)
    variance, covariance = jepa.variance_and_covariance(corners * 10)
    assert variance == 0 and covariance == 0
    variance, _ = jepa.variance_and_covariance(corners * 0.3)
    assert variance.item() == pytest.approx(1 - 0.3 * (4 / 3) ** 0.5, abs=1e-3)
    same = corners[..., :1].expand(-1, -1, 2)
    assert jepa.variance_and_covariance(same)[1].item() == pytest.approx((4 / 3) ** 2)


def test_moving_average() -> None:
    target, online = nn.Linear(2, 1), nn.Linear(2, 1)
    with torch.no_grad():
        target.weight.copy_(torch.tensor([[1.0, -2.0]]))
        online.weight.copy_(torch.tensor([[3.0, 0.0]]))
    before = copy.deepcopy(online.state_dict())
    jepa.update_target(target, online, 0.75)
    torch.testing.assert_close(target.weight.data, torch.tensor([[1.5, -1.5]]))
    torch.testing.assert_close(online.state_dict(), before)


def test_feature_statistics() -> None:
    # Four clips of two identical tokens: independent unit variances in two of three dimensions.
    corners = torch.tensor([[1.0, 1, 5], [1, -1, 5], [-1, 1, 5], [-1, -1, 5]])[:, None].repeat(1, 2, 1)
    deviation, rank = jepa.feature_statistics(corners)
    assert deviation == pytest.approx(2 / 3 * (4 / 3) ** 0.5)
    assert rank == pytest.approx(2.0)
    line = torch.arange(4.0)[:, None, None] * torch.ones(1, 2, 3)
    assert jepa.feature_statistics(line)[1] == pytest.approx(1.0)
    assert jepa.feature_statistics(torch.ones(4, 2, 3)) == (0.0, 0.0)


def test_loss_falls(clips: torch.Tensor, tmp_path: Path) -> None:
    # With a decay of 1 the target stands still, so that losses early and late can be compared.
    _, metrics = jepa.train(settings(updates=120, ema=1.0), clips, tmp_path / "checkpoint.pt", CPU)
    losses = [row["loss"] for row in metrics]
    assert [row["update"] for row in metrics] == list(range(1, 121))
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


def test_regularisers_keep_clips_apart(
    clips: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def final_deviation(name: str) -> float:
        _, metrics = jepa.train(settings(updates=150), clips, tmp_path / name, CPU)
        return float(np.mean([row["feature_std"] for row in metrics[-20:]]))

    regularised = final_deviation("with.pt")
    monkeypatch.setattr(jepa, "VARIANCE_WEIGHT", 0.0)
    monkeypatch.setattr(jepa, "COVARIANCE_WEIGHT", 0.0)
    assert regularised > 4 * final_deviation("without.pt")


@pytest.mark.parametrize(("deviation", "rank"), [(0.001, 3.0), (0.5, 1.0)])
def test_collapse_shows_in_deviation_and_rank(
    deviation: float, rank: float, caplog: pytest.LogCaptureFixture
) -> None:
    jepa.warn_if_collapsed([{"feature_std": 0.5, "participation_rank": 3.0}] * 30)
    assert not caplog.text
    jepa.warn_if_collapsed([{"feature_std": deviation, "participation_rank": rank}] * 30)
    assert "the features have collapsed" in caplog.text


def test_an_interrupted_run_ends_with_the_same_weights(
    clips: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jepa, "CHECKPOINT_EVERY", 2)
    config = settings(updates=7)
    expected, metrics = jepa.train(config, clips, tmp_path / "whole.pt", CPU)

    update_target = jepa.update_target
    calls = iter(range(100))

    def killed(*arguments: object) -> None:
        if next(calls) == 4:  # in update 5, after the checkpoint of update 4
            raise KeyboardInterrupt
        update_target(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(jepa, "update_target", killed)
        with pytest.raises(KeyboardInterrupt):
            jepa.train(config, clips, tmp_path / "part.pt", CPU)
    resumed, again = jepa.train(config, clips, tmp_path / "part.pt", CPU)
    assert list(resumed.state_dict()) == list(expected.state_dict())
    for name, weight in resumed.state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name]), name
    timeless = [[{**row, "seconds": 0} for row in rows] for rows in (metrics, again)]
    assert timeless[0] == timeless[1]


def test_a_loss_that_is_not_finite_ends_pretraining_without_a_checkpoint(
    clips: torch.Tensor, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"^error: update 1: the loss is nan"):
        jepa.train(settings(updates=2), clips * torch.nan, tmp_path / "checkpoint.pt", CPU)
    with pytest.raises(SystemExit, match=r"^error: update 2: the loss is (nan|inf)"):
        jepa.train(settings(updates=9, learning_rate=1e30), clips, tmp_path / "checkpoint.pt", CPU)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_training_depends_on_the_seed(clips: torch.Tensor, tmp_path: Path) -> None:
    losses = [
        jepa.train(settings(updates=1, seed=seed), clips, tmp_path / f"{seed}.pt", CPU)[1][0]["loss"]
        for seed in (0, 1)
    ]
    assert losses[0] != losses[1]
