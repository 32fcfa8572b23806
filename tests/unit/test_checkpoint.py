"""Resumable state: whole, verified, and of the right run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from srpo.checkpoint import Checkpoints, fingerprint


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimiser.step()
    return model, optimiser


def saved(scratch: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(scratch, "run")
    for step in steps:
        checkpoints.save(step, *trained(step), {"rows": list(range(step))})
    return checkpoints


def test_resuming_gives_back_everything(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    model, optimiser = trained(0)
    assert Checkpoints(tmp_path, "run").resume(model, optimiser) == (3, {"rows": [0, 1, 2]})
    expected, expected_optimiser = trained(3)
    assert torch.equal(model.weight, expected.weight)
    for mine, theirs in zip(
        optimiser.state_dict()["state"].values(),
        expected_optimiser.state_dict()["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(mine[name], theirs[name]) for name in ("exp_avg", "exp_avg_sq", "step"))
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2  # the last two are kept


@pytest.mark.parametrize("damage", ["truncate", "remove", "no hashes"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 1, 2)
    newest = tmp_path / "checkpoint-00000002"
    if damage == "truncate":
        weights = newest / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4])
    else:
        (newest / ("optimiser.pt" if damage == "remove" else "hashes.json")).unlink()
    resumed = Checkpoints(tmp_path, "run").resume(*trained(0))
    assert resumed is not None and resumed[0] == 1
    assert "incomplete or damaged" in capsys.readouterr().out


def test_a_half_written_checkpoint_is_not_one(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)

    class FullError(Exception):
        pass

    class FullDisk(nn.Module):
        def state_dict(self, *_: object, **__: object) -> dict:  # type: ignore[override]
            raise FullError

    with pytest.raises(FullError):
        checkpoints.save(2, FullDisk(), trained(0)[1], {})
    assert {p.name for p in tmp_path.iterdir()} == {"run.json", "checkpoint-00000001"}


def test_another_runs_state_is_discarded_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 1)
    assert Checkpoints(tmp_path, "other").resume(*trained(0)) is None
    assert "another run's state" in capsys.readouterr().out


def test_fingerprints_tell_parts_apart() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
