"""`srpo policy`: what a checkpoint is, and the way from one layout to the other."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

from srpo.errors import run_command
from srpo.policies import __main__ as cli
from srpo.policies.checkpoints import load_policy, save_policy
from support import openvla_layout as layout
from support.policies import small_policy


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The command line, with the small policy's settings in the place of the large one's."""
    monkeypatch.setattr(cli, "POLICIES", tmp_path / "configs")
    (tmp_path / "configs").mkdir()
    settings = layout.settings().model_dump(mode="json", exclude={"name"})
    (tmp_path / "configs" / "openvla-7b.yaml").write_text(yaml.safe_dump({"policy": settings}))

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["srpo.policies", *map(str, arguments)])
        run_command(cli.main)
        return capsys.readouterr().out

    return call


def test_inspect_says_what_a_checkpoint_is_and_needs(run, tmp_path: Path) -> None:
    tensors = layout.random_tensors()
    layout.write(tmp_path / "official", tensors)
    shown = run("inspect", tmp_path / "official")
    assert "layout        OpenVLA" in shown
    assert f"{len(tensors)} tensors" in shown and "F32" in shown
    assert "statistics    libero_goal_no_noops" in shown
    read = load_policy(tmp_path / "official", policy=layout.settings())
    count = sum(parameter.numel() for parameter in read.parameters())
    assert f"in all {count / 1e6:.1f} M" in shown
    assert f"to load       {4 * count / 2**20:.1f} MiB in float32" in shown
    # Without checkpoint, from the settings alone, the needs are the same.
    assert run("inspect", tmp_path / "configs" / "openvla-7b.yaml").splitlines() == shown.splitlines()[3:]


def test_convert_goes_both_ways(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout.write(tmp_path / "official", layout.random_tensors())
    run("convert", tmp_path / "official", tmp_path / "ours")
    assert "layout        srpo" in run("inspect", tmp_path / "ours")
    run("convert", tmp_path / "ours", tmp_path / "back")
    first = load_policy(tmp_path / "official", policy=layout.settings()).state_dict()
    back = load_policy(tmp_path / "back", policy=layout.settings()).state_dict()
    assert all(torch.equal(first[name], back[name]) for name in first)
    with pytest.raises(SystemExit):
        run("convert", tmp_path / "ours", tmp_path)
    assert "is there already: name a folder to make" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "it has no config.json"),
        (["inspect", "nowhere", "--policy", "openvla-8b"], r"did you mean `openvla-7b`"),
    ],
)
def test_mistakes_are_told_in_a_line(run, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        run(*arguments)


def test_a_policy_of_our_own_has_no_other_layout(run, tmp_path: Path) -> None:
    save_policy(small_policy(), tmp_path / "policy")
    with pytest.raises(SystemExit, match="only a policy that was loaded from OpenVLA's layout"):
        run("convert", tmp_path / "policy", tmp_path / "out")
