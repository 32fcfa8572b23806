"""Layering of the YAML files, and the plan of a preset."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from srpo.config import (
    SUITES,
    ConfigError,
    EvaluateStage,
    PlusStage,
    RewardBenchmarkStage,
    SftStage,
    TrainStage,
    WorldModelStage,
)
from srpo.config.resolve import CONFIGS, Layer, Plan, Resolver, load_preset, merge, override, plan, to_yaml

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "tests/example.yaml"
PRESETS = sorted(path.stem for path in (CONFIGS / "presets").glob("*.yaml"))


def resolver(preset: str, *overrides: str, configs: Path = CONFIGS) -> Resolver:
    loaded, source = load_preset(preset, configs)
    return Resolver(loaded, source, configs, overrides)


def train(preset: str, variant: str, *overrides: str, suite: str = "libero_goal") -> TrainStage:
    stage = resolver(preset, *overrides).stage("train", suite, variant, 0)  # type: ignore[arg-type]
    assert isinstance(stage, TrainStage)
    return stage


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A copy of configs/ to spoil, with the example preset."""
    copy = shutil.copytree(CONFIGS, tmp_path / "configs")
    shutil.copy(EXAMPLE, copy / "presets")
    return copy


def spoil(path: Path, old: str, new: str) -> None:
    """Replace what a regular expression finds."""
    text, found = re.subn(old, new, path.read_text())
    assert found
    path.write_text(text)


def plan_of(configs: Path, preset: str, *overrides: str) -> Plan:
    loaded, source = load_preset(preset, configs)
    return plan(loaded, source, configs, overrides)


# Layers.


def test_later_layers_win_and_leave_the_rest() -> None:
    layers = [
        Layer("a", {"train": {"steps": 1, "prompts": 8}, "plus": {"dimensions": ["camera", "noise"]}}),
        Layer("b", {"train": {"steps": 2}, "plus": {"dimensions": ["noise"]}}),
    ]
    settings, origins = merge(layers)
    assert settings == {"train": {"steps": 2, "prompts": 8}, "plus": {"dimensions": ["noise"]}}
    assert origins == {"train.steps": "b", "train.prompts": "a", "plus.dimensions": "b"}


def test_merging_does_not_change_the_layers() -> None:
    below, above = Layer("a", {"train": {"steps": 1}}), Layer("b", {"train": {"prompts": 2}})
    merge([below, above])
    assert below.values == {"train": {"steps": 1}}


def test_errors_name_the_layer() -> None:
    with pytest.raises(ConfigError, match=r"^b: train\.stepz: unknown key \(did you mean `steps`\?\)$"):
        merge([Layer("a", {"train": {"steps": 1}}), Layer("b", {"train": {"stepz": 2}})])


def test_command_line_values_are_yaml() -> None:
    layer = override(
        ["train.steps=5", "reward.eps_relative=true", "plus.per_dimension=null", "reward.eps=5e-6"]
    )
    assert layer.values == {
        "train": {"steps": 5},
        "reward": {"eps_relative": True, "eps": "5e-6"},
        "plus": {"per_dimension": None},
    }
    with pytest.raises(ConfigError, match="not of the form key=value"):
        override(["train.steps"])
    with pytest.raises(ConfigError, match="given twice"):
        override(["train=5", "train.steps=5"])


# Resolving.


def test_paper_values() -> None:
    """The settings of siiRL's scripts, and the paper's steps."""
    stage = train("paper", "srpo")
    assert stage.train.prompts == 64 and stage.train.group_size == 8 and stage.train.minibatch == 4
    assert stage.train.learning_rate == 5e-6 and stage.train.temperature == 1.6
    assert (stage.train.clip_low, stage.train.clip_high) == (0.2, 0.28)
    assert stage.train.keep_success == (0.1, 0.9)
    assert stage.reward.shaping == "paper" and stage.reward.alpha == 0.8
    assert stage.protocol.max_steps == 512 and stage.protocol.profile == "official"
    assert stage.world_model is not None and stage.world_model.checkpoint == "facebook/vjepa2-vitg-fpc64-384"
    steps = {suite: train("paper", "srpo", suite=suite).train.steps for suite in SUITES}
    assert steps == {"libero_spatial": 79, "libero_object": 59, "libero_goal": 103, "libero_10": 219}


def test_released_checkpoint_of_each_suite() -> None:
    names = set()
    for suite in SUITES:
        stage = resolver("paper").stage("sft", suite, "sft", 0)
        assert isinstance(stage, SftStage)
        names.add(stage.policy.checkpoint)
    assert names == {
        "Haozhan72/Openvla-oft-SFT-libero-spatial-traj1",
        "Haozhan72/Openvla-oft-SFT-libero-object-traj1",
        "Haozhan72/Openvla-oft-SFT-libero-goal-traj1",
        "Haozhan72/Openvla-oft-SFT-libero10-traj1",
    }


def test_layer_order(configs: Path) -> None:
    stage = resolver("example", configs=configs).stage("evaluate", "libero_goal", "sft", 0)
    assert stage.protocol.max_steps == 136, "the preset's settings stand over the suite's"
    assert stage.protocol.render == "fast", "the policy's stand over base.yaml"
    with (configs / "presets/example.yaml").open("a") as file:
        file.write("suite_settings: {libero_goal: {protocol: {max_steps: 99}, train: {steps: 5}}}\n")
    changed = resolver("example", configs=configs)
    one = changed.stage("train", "libero_goal", "grpo", 0)
    assert isinstance(one, TrainStage)
    assert (one.protocol.max_steps, one.train.steps) == (99, 5), "a suite's stand over all suites'"
    assert one.protocol.profile == "held_out", "and say only how they differ"
    assert changed.settings()[0]["protocol"]["max_steps"] == 136, "other stages have their own"
    changed = train("smoke", "srpo-pixel", "world_model.frames=4", "train.steps=7")
    assert changed.world_model is not None and changed.world_model.frames == 4 and changed.train.steps == 7


def test_names_come_from_files() -> None:
    stage = resolver("smoke").stage("sft", "libero_goal", "sft", 0)
    assert isinstance(stage, SftStage) and stage.policy.name == "tiny"
    tiny = train("smoke", "srpo")
    assert tiny.world_model is not None and tiny.world_model.name == "vjepa2-tiny"
    assert train("smoke", "grpo").world_model is None


def test_world_model_does_not_depend_on_the_suite() -> None:
    """It is pretrained once, so what a run scores with and what was pretrained must be the same."""
    alone = resolver("mini").stage("world_model", world_model="vjepa2-tiny")
    assert isinstance(alone, WorldModelStage)
    for suite in ("libero_object", "libero_goal"):
        assert train("mini", "srpo", suite=suite).world_model == alone.world_model


@pytest.mark.parametrize("variant", sorted(path.stem for path in (CONFIGS / "variants").glob("*.yaml")))
def test_every_variant_resolves(variant: str) -> None:
    kind = "sft" if variant == "sft" else "train"
    resolver("paper").stage(kind, "libero_10", variant, 0)


@pytest.mark.parametrize(
    "path",
    sorted(
        str(p.relative_to(CONFIGS))
        for p in CONFIGS.rglob("*.yaml")
        if not {"presets", "accelerate"} & set(p.parts)
    ),
)
def test_an_unknown_key_names_its_file(configs: Path, path: str) -> None:
    file = configs / path
    file.write_text(file.read_text() + "\nevaluat:\n  states: 1\n")
    folder, name = Path(path).parent.name, Path(path).stem
    if folder == "policies":
        for preset in ("smoke", "paper"):
            values = yaml.safe_load((configs / "presets" / f"{preset}.yaml").read_text())
            (configs / "presets" / f"{preset}.yaml").write_text(yaml.safe_dump({**values, "policy": name}))
    by_name = {
        "suites": lambda r: r.stage("demos", name),
        "world_models": lambda r: r.stage("world_model", world_model=name),
        "variants": lambda r: r.stage("train", "libero_goal", name, 0),
    }
    with pytest.raises(ConfigError) as error:
        by_name.get(folder, lambda r: r.stage("demos", "libero_goal"))(resolver("paper", configs=configs))
    assert f"configs/{path}: evaluat: unknown key (did you mean `evaluate`?)" in str(error.value)


# The plan.


@pytest.mark.parametrize("name", PRESETS)
def test_plan_resolves_every_run_in_time(name: str) -> None:
    start = time.process_time()
    found = plan_of(CONFIGS, name)
    assert time.process_time() - start < 3
    assert found.stages
    for run in found.runs(*found.tables):
        assert run.folder in found.stages


def test_runs_are_shared() -> None:
    found = plan_of(CONFIGS, "paper")
    assert len(found.runs("t1", "f2")) == len(found.runs("t1"))
    assert {run.seed for run in found.runs("t1") if run.variant == "sft"} == {0}
    assert {run.suite for run in found.runs("f2")} == {"libero_object", "libero_10"}
    kinds = [type(stage) for stage in found.stages.values()]
    # 14 trained variants × 4 suites × 3 seeds, one SFT a suite; LIBERO-Plus for SFT and SRPO.
    assert kinds.count(TrainStage) == 168 and kinds.count(SftStage) == 4
    assert kinds.count(EvaluateStage) == 172 and kinds.count(PlusStage) == 16
    assert kinds.count(RewardBenchmarkStage) == 4 and kinds.count(WorldModelStage) == 0


def test_comments_change_nothing(configs: Path) -> None:
    before = {folder: to_yaml(stage) for folder, stage in plan_of(configs, "smoke").stages.items()}
    for file in configs.rglob("*.yaml"):
        file.write_text("# a comment\n" + file.read_text() + "\n# another\n")
    after = {folder: to_yaml(stage) for folder, stage in plan_of(configs, "smoke").stages.items()}
    assert before == after


def test_a_changed_variant_changes_its_own_runs_only(configs: Path) -> None:
    before = plan_of(configs, "smoke").stages
    (configs / "variants/grpo.yaml").write_text(
        "world_model: null\nreward: {shaping: none}\ntrain: {steps: 2}\n"
    )
    after = plan_of(configs, "smoke").stages
    changed = {folder for folder in before if before[folder] != after[folder]}
    assert changed == {"runs/libero_goal/grpo/seed0"}


WRONG = [
    # file, what is replaced (a regular expression), by what, message
    ("presets/example.yaml", "suites: .*", "suites: [libero_gaol]", r"suites.*did you mean `libero_goal`"),
    ("presets/example.yaml", "policy: tiny", "policy: tinny", r"policy:.*did you mean `tiny`"),
    ("presets/example.yaml", "seeds: .*", "seeds: []", r"seeds"),
    ("presets/example.yaml", "seeds: .*", "", r"seeds: is missing"),
    (
        "presets/example.yaml",
        "minibatch: 4",
        "minibatch: 3",
        r"train\.prompts, train\.minibatch: .*not a mult",
    ),
    ("presets/example.yaml", "states: 10", "states: 11", r"evaluate\.states.*held_out has 10"),
    ("presets/example.yaml", "vjepa2-tiny]", "vjepa2-tinny]", r"world_models:.*did you mean `vjepa2-tiny`"),
    ("presets/example.yaml", "tiny/t1", "tiny/t9", r"tables\.t1\.sheet: .*did you mean `tiny/t"),
    ("presets/example.yaml", "max_steps", "max_stepz", r"settings\.protocol\.max_stepz: .*`max_steps`"),
    ("presets/example.yaml", "settings:", "suite_settings: {libero_10: {}}\nsettings:", r"libero_10"),
    (
        "presets/example.yaml",
        "settings:",
        "suite_settings: {libero_goal: {train: {step: 1}}}\nsettings:",
        r"suite_settings\.libero_goal\.train\.step: .*`steps`",
    ),
    ("presets/example.yaml", "7, 8", "7, 12", r"tasks.*tasks 0–9, not \[12\]"),
    ("presets/example.yaml", "prompts: 8", "prompts: 800", r"train\.prompts.*2 tasks × 40 states"),
    ("experiments/tiny/t1.tsv", "grpo", "gropo", r"variant: .*did you mean `grpo`"),
    ("experiments/tiny/t1.tsv", "grpo\tGRPO", "grpo GRPO", r"line 3"),
    ("experiments/tiny/t1.tsv", "grpo\tGRPO", "sft\tGRPO", r"line 3: `sft` is there twice"),
    ("experiments/tiny/t1.tsv", "variant\tlabel", "label\tvariant", r"the first line"),
    ("experiments/tiny/f2.tsv", "grpo\tGRPO", "sft\tSFT", r"variant: `sft` has no training"),
    ("variants/grpo.yaml", "world_model: null", "world_model: pixel", r"reward\.shaping"),
    ("variants/srpo.yaml", ": vjepa2-tiny", ": vjepa2-tny", r"world_model: .*`vjepa2-tiny`"),
    ("variants/srpo.yaml", ": vjepa2-tiny", ": 3", r"world_model: 3 is not the name"),
    ("world_models/vjepa2-tiny.yaml", "patch_size: .*", "patch_size: 997", r"multiple of patch_size 997"),
    ("world_models/vjepa2-tiny.yaml", " heads: .*", " heads: 997", r"multiple of heads 997"),
    ("world_models/vjepa2-tiny.yaml", "frames: .*", "frames: 15", r"world_model.*frames.*even"),
    ("policies/tiny.yaml", "patch_size: .*", "patch_size: 997", r"multiple of patch_size 997"),
    ("base.yaml", "alpha: 0.8", "alpha: 1.8", r"reward\.alpha: .*less than or equal to 1"),
    ("base.yaml", "alpha: 0.8", "alpha: high", r"reward\.alpha: .*valid number, not 'high'"),
    ("base.yaml", "  states: 50", "  # states: 50", r"evaluate: holds settings, not None"),
    ("base.yaml", "reward:", "reward: [", r"not YAML"),
]


@pytest.mark.parametrize(("file", "old", "new", "message"), WRONG, ids=[f"{w[0]}: {w[2]!r}" for w in WRONG])
def test_what_cannot_be_fails_naming_file_and_key(
    configs: Path, file: str, old: str, new: str, message: str
) -> None:
    spoil(configs / file, old, new)
    start = time.process_time()
    with pytest.raises(ConfigError) as error:
        plan_of(configs, "example")
    assert time.process_time() - start < 3
    assert re.search(f"{re.escape(file)}.*: .*{message}", str(error.value)), str(error.value)


def test_command_line() -> None:
    command = [sys.executable, "-m", "srpo", "resolve", "train", "--preset", "smoke", "--variant", "grpo"]
    done = subprocess.run(
        [*command, "--set", "train.steps=9"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert TrainStage.model_validate(yaml.safe_load(done.stdout)).train.steps == 9
    for wrong, hint in (
        (["--preset", "smok"], "did you mean `smoke`?"),
        (["--variant", "grp"], "did you mean `grpo`?"),
        (["--suite", "libero_10"], "has no 'libero_10'"),
        (["--set", "train.step=9"], "did you mean `steps`?"),
    ):
        done = subprocess.run([*command, *wrong], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and hint in done.stderr
