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

from srpo import ROOT
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
from srpo.config.layers import Layer, merge, parse_overrides, split_overrides
from srpo.config.plan import Plan, plan
from srpo.config.resolve import CONFIGS, Resolver, load_preset, to_yaml
from srpo.config.sheets import baseline, labels, ours, read_sheet
from srpo.errors import FINAL

EXAMPLE = ROOT / "tests/example.yaml"
PRESETS = sorted(path.stem for path in (CONFIGS / "presets").glob("*.yaml"))


def resolver(preset: str, *overrides: str, configs: Path = CONFIGS) -> Resolver:
    loaded, source = load_preset(preset, configs)
    return Resolver(loaded, source, configs, overrides)


def train(preset: str, variant: str, *overrides: str, suite: str | None = None) -> TrainStage:
    """A training's settings in the preset's first suite, or another."""
    chosen = resolver(preset, *overrides)
    stage = chosen.stage("train", suite or chosen.preset.suites[0], variant, 0)  # type: ignore[arg-type]
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


def test_what_is_said_of_the_presets_world_model_is_said_of_no_other() -> None:
    planned = plan_of(CONFIGS, "smoke", "world_model.pretraining.updates=7", "world_model.frames=8")
    stages = [stage for folder, stage in planned.stages.items() if folder.startswith("reward_benchmark")]
    models = [(m.name, m.frames, m.pretraining and m.pretraining.updates) for m in stages[0].world_models]
    assert models == [("pixel", 8, None), ("efficientnet-lite", 8, None), ("vjepa2-tiny", 8, 7)]
    own = train("smoke", "srpo", "world_model=pixel", "world_model.frames=8").world_model
    assert own is not None and (own.name, own.frames, own.pretraining) == ("pixel", 8, None)
    for wrong in ("checkpoint=facebook/dinov2-large", "dtype=bfloat16"):
        with pytest.raises(ConfigError, match="pixels"):
            train("smoke", "srpo", "world_model=pixel", f"world_model.{wrong}")


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
    layer = parse_overrides(
        ["train.steps=5", "reward.eps_relative=true", "plus.per_dimension=null", "reward.eps=5e-6"]
    )
    assert layer.values == {
        "train": {"steps": 5},
        "reward": {"eps_relative": True, "eps": "5e-6"},
        "plus": {"per_dimension": None},
    }
    with pytest.raises(ConfigError, match=r"command line: `train\.steps` is not of the form key=value"):
        parse_overrides(["train.steps"])
    with pytest.raises(ConfigError, match="given twice"):
        parse_overrides(["train=5", "train.steps=5"])


def test_a_world_model_is_named_and_its_settings_are_changed() -> None:
    layer = parse_overrides(["world_model=clip", "world_model.frames=4"])
    assert layer.world_model == "clip"
    assert layer.values == {"world_model": {"frames": 4}}
    assert parse_overrides([]).world_model is None


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["train.steps=[1"], "command line: train.steps: not YAML: "),
        (["train.steps=1", "train.steps=2"], "command line: train.steps is given twice"),
        (["train.steps=1", "train={steps: 2}"], "command line: train is given twice"),
        (["train={steps: 1, steps: 2}"], "command line: train: line 1: `steps` is there twice"),
        (["world_model=clip", "world_model=pixel"], "command line: world_model is given twice"),
        (["train.steps=0136"], "command line: train.steps: line 1: `0136` is read as 94"),
        (
            ["reward.eps_relative=on"],
            "command line: reward.eps_relative: line 1: `on` is read as True",
        ),
        (["train.steps=&a [*a]"], "command line: train.steps: line 1: `*a`: aliases are not read"),
        (["train.steps=" + "9" * 5000], "command line: train.steps: not YAML: "),
    ],
)
def test_wrong_overrides(assignments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_overrides(assignments)
    assert str(error.value).startswith(message)


def test_overrides_are_split_as_by_a_shell() -> None:
    text = "train.steps=5  train.trackers='[wandb, trackio]'"
    assert split_overrides(text) == ("train.steps=5", "train.trackers=[wandb, trackio]")
    with pytest.raises(ConfigError, match=r"command line: `train='5`: No closing quotation"):
        split_overrides("train='5")


# Resolving.


def test_paper_values() -> None:
    """The settings of siiRL's scripts, and the paper's steps."""
    stage = train("paper", "srpo")
    assert stage.train.prompts == 64 and stage.train.group_size == 8 and stage.train.minibatch == 16
    assert stage.train.learning_rate == 5e-6 and stage.train.temperature == 1.6
    assert (stage.train.clip_low, stage.train.clip_high) == (0.2, 0.28)
    assert stage.train.keep_success == (0.1, 0.9)
    assert stage.reward.shaping == "paper" and stage.reward.alpha == 0.8
    assert stage.protocol.max_steps == 512 and stage.protocol.profile == "official"
    assert (stage.protocol.textures, stage.protocol.resets) == ("linear", "first")
    shipped = train("smoke", "srpo").protocol
    assert (shipped.render, shipped.textures) == ("fast", "auto"), "as the shipped rows were made"
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


def test_the_papers_preset_starts_from_siirls_checkpoints_by_one_word() -> None:
    preset, source = load_preset("paper")
    siirl = Resolver(preset, source, overrides=["policy.checkpoint=siirl"])
    names = {suite: siirl.stage("sft", suite, "sft", 0).policy.checkpoint for suite in SUITES}  # type: ignore[union-attr]
    assert names == {
        "libero_spatial": "Sylvest/OpenVLA-AC-PD-1traj-libero-spatial",
        "libero_object": "Sylvest/OpenVLA-AC-PD-1traj-libero-object",
        "libero_goal": "Sylvest/OpenVLA-AC-PD-1traj-libero-goal",
        "libero_10": "Sylvest/OpenVLA-AC-PD-1traj-libero-long",
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
    changed = train("mini", "srpo-pixel", "world_model.frames=4", "train.steps=7")
    assert changed.world_model is not None and changed.world_model.frames == 4 and changed.train.steps == 7


def test_names_come_from_files() -> None:
    stage = resolver("smoke").stage("sft", "libero_spatial", "sft", 0)
    assert isinstance(stage, SftStage) and stage.policy.name == "tiny"
    for preset, name in (("smoke", "vjepa2-tiny"), ("paper", "vjepa2-vitg")):
        stage = train(preset, "srpo")
        assert stage.world_model is not None and stage.world_model.name == name


def test_a_run_has_a_world_model_if_its_reward_needs_one() -> None:
    assert train("smoke", "grpo").world_model is None
    assert train("mini", "srpo-simulator").world_model is None
    assert train("smoke", "srpo", "reward.shaping=none").world_model is None
    assert train("smoke", "grpo", "reward.shaping=siirl").world_model == train("smoke", "srpo").world_model
    assert train("smoke", "grpo", "world_model=pixel").world_model is None, "meant for the runs that have one"
    pixel = train("smoke", "srpo", "world_model=pixel").world_model
    assert pixel is not None and pixel.name == "pixel" and pixel.frames == 16, "the preset's settings stay"
    assert train("mini", "srpo-pixel").world_model == pixel, "as by a row's `set`"
    assert train("mini", "srpo-pixel", "world_model=vjepa2-tiny").world_model != pixel, (
        "the command line wins"
    )


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


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "world_models").glob("*.yaml")))
def test_every_world_model_rewards(name: str) -> None:
    world_model = train("paper", "srpo", f"world_model={name}").world_model
    assert world_model is not None and world_model.name == name


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


# Sheets.

HEADER = "name\tlabel\trole\tvariant\tset\n"
SRPO = "srpo\tSRPO\tbaseline\tsrpo\n"


def test_rows_override_their_variant(configs: Path) -> None:
    row = "fast\tfaster\tablation\tsrpo\ttrain.learning_rate=4e-5 train.trackers='[wandb, trackio]'\n"
    with (configs / "experiments/tiny/ablations.tsv").open("a") as file:
        file.write(f"# a comment\n{row}")
    rows = read_sheet(configs / "experiments/tiny/ablations.tsv")
    assert rows[-1].overrides == ("train.learning_rate=4e-5", "train.trackers=[wandb, trackio]")
    stages = plan_of(configs, "smoke").stages
    stage, plain = (stages[f"runs/libero_spatial/{name}/seed0"] for name in ("fast", "srpo"))
    assert isinstance(stage, TrainStage) and isinstance(plain, TrainStage)
    assert stage.variant == "fast" and stages["runs/libero_spatial/fast/seed0/evaluation"]
    expected = plain.train.model_copy(update={"learning_rate": 4e-5, "trackers": ("wandb", "trackio")})
    assert stage == plain.model_copy(update={"variant": "fast", "train": expected})
    changed = resolver("smoke", "train.learning_rate=1e-6", configs=configs)
    above = changed.stage("train", "libero_spatial", "fast", 0)
    assert isinstance(above, TrainStage) and above.train.learning_rate == 1e-6, (
        "the command line stands above"
    )


def test_roles_and_labels() -> None:
    rows = read_sheet(CONFIGS / "experiments/paper/t1.tsv")
    assert (baseline(rows).name, ours(rows).name) == ("sft", "srpo")
    assert labels(rows)["srpo"] == "SRPO, online"
    ablations = read_sheet(CONFIGS / "experiments/paper/ablations.tsv")
    assert baseline(ablations) == ours(ablations) and ours(ablations).name == "srpo"


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiments").rglob("*.tsv")), ids=lambda p: p.stem)
def test_the_projects_sheets_are_sound(path: Path) -> None:
    assert ours(read_sheet(path)).name == "srpo"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "has no rows"),
        ("srpo\tSRPO\tbaseline\n", "line 2: 3 values"),
        (f"\n{SRPO}", "line 2: 1 values"),
        ("srpo\t\tbaseline\tsrpo\n", "line 2: label: is empty"),
        ("../srpo\tSRPO\tbaseline\tsrpo\n", "line 2: name: '../srpo' names a folder"),
        ("srpo\tSRPO\tbaselin\tsrpo\n", "line 2: role: 'baselin' is not valid (did you mean `baseline`?)"),
        (SRPO + SRPO, "line 3: name: `srpo` is there twice"),
        ("srpo\tSRPO\tours\tsrpo\n", "role: must be `baseline` in exactly one row, not in 0"),
        (f"{SRPO}a\tA\tours\tsrpo\nb\tB\tours\tsrpo\n", "role: must be `ours` in at most one row, not in 2"),
        ("srpo\tSRPO\tbaseline\tsrpo\ttrain='5\n", "line 2: set: `train='5`: No closing quotation"),
        ("start\tSFT\tbaseline\tsft\n", "line 2: name: the row of the variant `sft`"),
        ("sft\tSFT\tbaseline\tsft\tsft.updates=9\n", "line 2: name: the row of the variant `sft`"),
    ],
)
def test_wrong_sheets(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "sheet.tsv"
    path.write_text(HEADER + lines)
    with pytest.raises(ConfigError) as error:
        read_sheet(path, "here.tsv")
    assert str(error.value).startswith("here.tsv: ") and message in str(error.value)


def test_files_that_are_no_sheets(tmp_path: Path) -> None:
    path = tmp_path / "sheet.tsv"
    with pytest.raises(ConfigError, match=r"sheet\.tsv: No such file"):
        read_sheet(path)
    for content in (b"", b"variant\tlabel\nsrpo\tSRPO\n", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"sheet\.tsv: .*(the first line must be name, label|UTF-8)"):
            read_sheet(path)


def test_the_documented_rows_are_ready(configs: Path) -> None:
    sheet = configs / "experiments/paper/ablations.tsv"
    before = len(read_sheet(sheet))
    with sheet.open("a") as file:
        file.writelines(re.findall(r"```tsv\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL))
    rows = read_sheet(sheet)[before:]
    stages = plan_of(configs, "paper").stages
    assert len(rows) == 15
    assert all(f"runs/libero_10/{row.name}/seed2" in stages for row in rows)


def test_a_name_means_one_run_in_all_sheets(configs: Path) -> None:
    spoil(configs / "experiments/tiny/t1.tsv", "srpo\n", "srpo\treward.alpha=0.5\n")
    with pytest.raises(ConfigError) as error:
        plan_of(configs, "example")
    assert "configs/experiments/tiny/t2.tsv: line 4: name: `srpo` has another variant or `set`" in str(
        error.value
    )
    assert "in configs/experiments/tiny/t1.tsv: line 4" in str(error.value)


def test_pretrained_world_models_are_the_same_for_all_runs(configs: Path) -> None:
    spoil(configs / "experiments/mini/ablations.tsv", "matched_prefix", "matched_prefix world_model.frames=8")
    spoil(configs / "experiments/mini/f2.tsv", "matched_prefix", "matched_prefix world_model.frames=8")
    with pytest.raises(ConfigError, match="vjepa2-tiny is pretrained once for all runs"):
        plan_of(configs, "mini")


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
    (configs / "variants/grpo.yaml").write_text("reward: {shaping: none}\ntrain: {steps: 2}\n")
    after = plan_of(configs, "smoke").stages
    changed = {folder for folder in before if before[folder] != after[folder]}
    assert changed == {"runs/libero_spatial/grpo/seed0"}


SRPO_ROW = "srpo\tSRPO.*"
OTHER = "other\tOther\tours\tsrpo\t"
UNUSED = "other\tOther\tours\tgrpo\tworld_model=pixel"
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
    (
        "presets/example.yaml",
        "model: vjepa2-tiny",
        "model: vjepa2-tny",
        r"world_model:.*did you mean `vjepa2",
    ),
    ("experiments/tiny/t1.tsv", "\tgrpo", "\tgropo", r"line 3: variant: .*did you mean `grpo`"),
    ("experiments/tiny/t1.tsv", "grpo\tGRPO", "grpo GRPO", r"line 3"),
    ("experiments/tiny/t1.tsv", "grpo\tGRPO", "sft\tGRPO", r"line 3: name: the row of the variant `sft`"),
    ("experiments/tiny/t1.tsv", "name\tlabel", "label\tname", r"the first line"),
    ("experiments/tiny/t1.tsv", SRPO_ROW, OTHER + "train.stepz=1", r"line 4: set: train\.stepz: .*`steps`"),
    ("experiments/tiny/t1.tsv", SRPO_ROW, OTHER + "train.steps", r"line 4: set: .*not of the form key=value"),
    ("experiments/tiny/t1.tsv", SRPO_ROW, OTHER + "world_model=3", r"line 4: set: world_model: there is no"),
    ("experiments/tiny/t1.tsv", SRPO_ROW, UNUSED, r"set: world_model: pixel is not used: reward\.shaping"),
    ("experiments/tiny/f2.tsv", "grpo\tGRPO.*", "sft\tSFT\tbaseline\tsft", r"`sft` has no training"),
    (
        "variants/grpo.yaml",
        "reward:",
        "world_model: pixel\nreward:",
        r"world_model: holds settings, not 'pixel'",
    ),
    ("world_models/vjepa2-tiny.yaml", "patch_size: .*", "patch_size: 997", r"multiple of patch_size 997"),
    ("world_models/vjepa2-tiny.yaml", " heads: .*", " heads: 997", r"multiple of heads 997"),
    ("world_models/vjepa2-tiny.yaml", "frames: .*", "frames: 15", r"world_model.*frames.*even"),
    ("policies/tiny.yaml", "patch_size: .*", "patch_size: 997", r"multiple of patch_size 997"),
    ("base.yaml", "alpha: 0.8", "alpha: 1.8", r"reward\.alpha: .*less than or equal to 1"),
    ("base.yaml", "alpha: 0.8", "alpha: high", r"reward\.alpha: .*valid number, not 'high'"),
    ("base.yaml", "evaluate:\n(  .*\n)+", "evaluate:\n", r"evaluate: holds settings, not None"),
    ("base.yaml", "reward:", "reward: [", r"not YAML"),
    # Keys that are there twice, and numbers and truth values of YAML 1.1.
    (
        "base.yaml",
        "  env_seed: 0",
        "  env_seed: 0\n  env_seed: 1",
        r"line 12: `env_seed` is there twice, first in",
    ),
    ("presets/example.yaml", "seeds: .*", "seeds: [0]\nseeds: [1]", r"`seeds` is there twice"),
    (
        "variants/grpo.yaml",
        "reward:",
        "reward: {shaping: siirl}\nreward:",
        r"line 3: `reward` is there twice",
    ),
    ("presets/example.yaml", "max_steps: 136", "max_steps: 0136", r"line 17: `0136` is read as 94"),
    ("base.yaml", "learning_rate: 5e-6", "learning_rate: 1:30", r"`1:30` is read as 90"),
    ("base.yaml", "alpha: 0.8", "alpha: 0_0.8", r"`0_0.8` is read as 0.8"),
    ("base.yaml", "learning_rate: 5e-6", "learning_rate: '1_0e-6'", r"train\.learning_rate: .*valid number"),
    ("base.yaml", "source: expert", "source: on", r"`on` is read as True: write true or false"),
    ("base.yaml", "source: expert", "source: 2024-01-31", r"`2024-01-31` is read as a timestamp"),
    ("base.yaml", "reward:", "reward: &x {y: *x}\ntrain:", r"`\*x`: aliases are not read"),
    ("base.yaml", "reward:", f"reward: {'[' * 2000}", r"nested more than"),
    # What no stage of a variant, suite or world model reads there.
    ("variants/grpo.yaml", "reward:", "policy: {lora: null}\nreward:", r"policy: every variant starts from"),
    ("variants/grpo.yaml", "reward:", "sft: {updates: 1}\nreward:", r"sft: every variant starts from"),
    ("variants/grpo.yaml", "reward:", "demos: {per_task: 2}\nreward:", r"demos: a suite's variants share"),
    (
        "variants/grpo.yaml",
        "reward:",
        "reward_benchmark: {seed: 1}\nreward:",
        r"benchmark: it has no variants",
    ),
    (
        "variants/grpo.yaml",
        "reward:",
        "protocol: {profile: official}\nreward:",
        r"protocol: runs that tables comp",
    ),
    (
        "variants/grpo.yaml",
        "reward:",
        "evaluate: {states: 5}\nreward:",
        r"evaluate: runs that tables compare",
    ),
    ("variants/grpo.yaml", "reward:", "plus: {seed: 5}\nreward:", r"plus: runs that tables compare"),
    ("variants/sft.yaml", "$", "train: {steps: 5}\n", r"train: `sft` is not trained"),
    ("variants/sft.yaml", "$", "demos: {per_task: 5}\n", r"demos: a suite's variants share"),
    (
        "experiments/tiny/t1.tsv",
        SRPO_ROW,
        OTHER + "policy.lora.rank=8",
        r"line 4: set: policy: every variant",
    ),
    ("experiments/tiny/t1.tsv", SRPO_ROW, OTHER + "evaluate.states=5", r"line 4: set: evaluate: runs that"),
    (
        "experiments/tiny/t1.tsv",
        SRPO_ROW,
        OTHER + "protocol.max_steps=5",
        r"line 4: set: protocol: runs that",
    ),
    (
        "suites/libero_goal.yaml",
        "protocol:",
        "protocol:\n  image_size: 8",
        r"protocol\.image_size: suites of one",
    ),
    (
        "suites/libero_goal.yaml",
        "protocol:",
        "world_model: {frames: 8}\nprotocol:",
        r"world_model: all suites share",
    ),
    (
        "presets/example.yaml",
        "settings:",
        "suite_settings: {libero_goal: {protocol: {profile: official}}}\nsettings:",
        r"suite_settings\.libero_goal\.protocol\.profile: suites of one table",
    ),
    (
        "world_models/pixel.yaml",
        "world_model:",
        "train: {steps: 5}\nworld_model:",
        r"train: this file describes",
    ),
    # What a row says and its training does not read.
    (
        "experiments/tiny/t1.tsv",
        SRPO_ROW,
        OTHER + "reward.references=mean reward.eps=1",
        r"set: reward\.eps: is not",
    ),
    (
        "experiments/tiny/t1.tsv",
        SRPO_ROW,
        OTHER + "reward.shaping=siirl reward.alpha=1",
        r"reward\.alpha: is not read",
    ),
    (
        "experiments/tiny/t1.tsv",
        SRPO_ROW,
        UNUSED.replace("=pixel", ".frames=8"),
        r"set: world_model: is not read",
    ),
    (
        "experiments/tiny/t1.tsv",
        SRPO_ROW,
        OTHER + "reward.rank_prompts=4",
        r"rank_prompts: is not read: reward\.scope is `batch`",
    ),
    (
        "experiments/tiny/t1.tsv",
        SRPO_ROW,
        OTHER + "reward.filter=none train.keep_success='[0.2, 0.8]'",
        r"keep_success: is not read: reward\.filter is `none`",
    ),
    (
        "experiments/tiny/t1.tsv",
        SRPO_ROW,
        OTHER + "train.evaluate_states=3",
        r"train\.evaluate_states: is not read",
    ),
    ("variants/grpo.yaml", "  shaping: none", "  shaping: none\n  alpha: 0.3", r"reward\.alpha: is not read"),
    (
        "experiments/tiny/t1.tsv",
        SRPO_ROW,
        "vine\tVinePPO\tours\tvine\ttrain.deviation=batch",
        r"deviation: is not read: train\.branching weighs by differences",
    ),
    (
        "experiments/tiny/t1.tsv",
        SRPO_ROW,
        "other\tOther\tours\tsrpo-offline\ttrain.clip_high=0.2",
        r"line 4: set: train\.clip_high: is not read",
    ),
    (
        "experiments/tiny/t1.tsv",
        SRPO_ROW,
        "other\tOther\tours\tsrpo-offline\ttrain.offline.advantage=step reward.alpha=0.5",
        r"line 4: set: reward\.alpha: is not read",
    ),
    # What would plan, and fail in hours.
    (
        "policies/tiny.yaml",
        "dtype: float32",
        "dtype: bfloat16",
        r"bfloat16 allows no training of all weights",
    ),
    ("policies/tiny.yaml", "read_block: -1", "read_block: -2", r"read_block -2: depth is only 1 blocks"),
    ("policies/tiny.yaml", "read_block: -1", "read_block: 0", r"read_block: .*less than or equal to -1"),
    ("policies/tiny.yaml", r"std: .*", "std: [0.5, 0, 0.5]", r"std\.1: .*greater than 0"),
    (
        "policies/tiny.yaml",
        "mlp_ratio: 4",
        "mlp_ratio: 0.001",
        r"mlp_ratio 0.001 of hidden_size 128 is no width",
    ),
    ("policies/tiny.yaml", "revision: null", "revision: abc", r"revision 'abc' without a checkpoint"),
    ("world_models/vjepa2-tiny.yaml", "revision: null", "revision: abc", r"revision 'abc' without a checkpo"),
    ("world_models/pixel.yaml", "revision: null", "revision: abc", r"pixels have no weights"),
    (
        "base.yaml",
        r"dimensions: .*",
        "dimensions: [camera, camera]",
        r"dimensions \['camera', 'camera'\] repeat",
    ),
    ("base.yaml", r"trackers: .*", "trackers: [wandb, wandb]", r"trackers \['wandb', 'wandb'\] repeat"),
    ("world_models/vjepa2-tiny.yaml", r"scenes: .*", "scenes: [3, 3]", r"scenes \[3, 3\] repeat"),
    ("world_models/vjepa2-tiny.yaml", r"scenes: .*", "scenes: [90]", r"scenes\.0: .*less than 90"),
    (
        "world_models/vjepa2-tiny.yaml",
        "patch_size: 16",
        "patch_size: 32",
        r"has 2 × 2 patches of patch_size 32",
    ),
    (
        "world_models/vjepa2-tiny.yaml",
        "batch_size: 8",
        "batch_size: 1",
        r"batch_size: .*greater than or equal to 2",
    ),
    (
        "base.yaml",
        "max_episodes: 4000",
        "max_episodes: 200",
        r"max_episodes 200 is below successes \+ failures, 250",
    ),
    ("base.yaml", "env_seed: 0", f"env_seed: {2**32}", r"env_seed: .*less than 4294967296"),
    ("presets/example.yaml", "name: example", f"name: {'a' * 300}", r"name: .*at most 100 characters"),
    ("presets/example.yaml", "policy: tiny", f"policy: {'a' * 300}", r"policy: there is no"),
    ("presets/example.yaml", "policy: tiny", "policy: ../policies/tiny", r"policy: there is no"),
    (
        "experiments/tiny/t1.tsv",
        "srpo\tSRPO",
        f"{'a' * 300}\tSRPO",
        r"line 4: name: 300 characters are too many",
    ),
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


@pytest.mark.parametrize(
    ("preset", "override", "rows"),
    [
        ("paper", "reward.alpha=0.5", "srpo and srpo-alpha-0 would be the same training"),
        ("paper", "world_model=pixel", "srpo and srpo-pixel would be the same training"),
        ("mini", "reward.shaping=paper", "grpo and srpo would be the same training"),
    ],
)
def test_what_rows_differ_in_is_not_overridden(preset: str, override: str, rows: str) -> None:
    """Tables would show one training under the labels of others."""
    with pytest.raises(ConfigError, match=rows):
        plan(*load_preset(preset), CONFIGS, [override])


@pytest.mark.parametrize("name", ["reference", "figures", "libero_plus"])
def test_results_has_other_folders_than_presets(configs: Path, name: str) -> None:
    spoil(configs / "presets/example.yaml", "name: example", f"name: {name}")
    with pytest.raises(ConfigError, match=f"name: .*{name} is taken"):
        plan_of(configs, "example")


def test_a_missing_key_is_missing_in_the_file_of_its_section(configs: Path) -> None:
    (configs / "world_models/mine.yaml").write_text("world_model:\n  kind: pixel\n  frames: 16\n")
    spoil(configs / "presets/example.yaml", "world_model: vjepa2-tiny", "world_model: mine")
    with pytest.raises(ConfigError, match=r"world_models/mine\.yaml: world_model\.image_size: is missing"):
        plan_of(configs, "example")


@pytest.mark.parametrize(
    "override",
    [
        "policy.checkpoint=/data/polcy",
        "policy.checkpoint=policy",
        "policy.checkpoint='lab/sft-{siute}'",
        "demos.source=exprt",
        "plus.assets=/data/assets",
        "train.trackers='[trackio]'",
    ],
)
def test_what_is_not_on_this_machine(override: str) -> None:
    """Told before runs that are to be made here, and not to who looks at their plan or results."""
    loaded, source = load_preset("smoke")
    overrides = split_overrides(override)
    assert plan(loaded, source, CONFIGS, overrides).stages
    with pytest.raises(ConfigError) as error:
        plan(loaded, source, CONFIGS, overrides, here=True)
    setting = override.partition("=")[0]
    assert str(error.value).startswith(f"command line: {setting}: ")


def test_what_is_on_this_machine(tmp_path: Path) -> None:
    loaded, source = load_preset("paper")
    assert plan(loaded, source, here=True).stages, "checkpoints of the hub"
    overrides = [f"policy.checkpoint={tmp_path}", f"plus.assets={tmp_path}"]
    with pytest.raises(ConfigError, match=r"is no checkpoint's folder: it has no config\.json"):
        plan(loaded, source, overrides=overrides, here=True)
    (tmp_path / "config.json").touch()
    assert plan(loaded, source, overrides=overrides, here=True).stages
    with pytest.raises(ConfigError, match=r"world_models\.3\.checkpoint: /no/model is neither a folder here"):
        plan(loaded, source, overrides=["world_model.checkpoint=/no/model"], here=True)


def test_bfloat16_is_for_adapters_and_for_policies_that_are_not_trained(configs: Path) -> None:
    overrides = ["policy.lora=null"]
    with pytest.raises(
        ConfigError, match=r"^configs/policies/openvla-7b\.yaml: policy\.dtype: bfloat16 allows"
    ):
        plan_of(configs, "paper-lora", *overrides)
    for table in ("t1", "t2", "f2", "ablations"):
        (configs / f"experiments/paper/{table}.tsv").write_text(HEADER + "sft\tSFT\tbaseline\tsft\n")
    spoil(configs / "presets/paper-lora.yaml", r"  f2: .*\n", "")
    assert plan_of(configs, "paper-lora", *overrides).stages


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
        assert done.returncode == FINAL and done.stderr.startswith("error: ") and hint in done.stderr
