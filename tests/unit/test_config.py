"""Configuration models and the loading of resolved files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from srpo import ROOT
from srpo.config import (
    DIMENSIONS,
    PROFILES,
    STAGES,
    ConfigError,
    EvaluateStage,
    Preset,
    SftStage,
    TrainStage,
    load_stage,
    read_yaml,
    validate,
)
from srpo.config.docs import documentation, schemas
from srpo.config.resolve import Resolver, load_preset, to_yaml

EXAMPLE = ROOT / "tests/example.yaml"


def resolved(kind: str) -> dict[str, Any]:
    """The example preset's settings of a stage, as plain data to spoil."""
    preset, source = load_preset(str(EXAMPLE))
    resolver = Resolver(preset, source, overrides=["world_model=pixel"])
    stage = resolver.stage(kind, preset.suites[0], "srpo", 0)
    values: dict[str, Any] = yaml.safe_load(to_yaml(stage))
    return values


@pytest.mark.parametrize(("profile", "tested"), [("held_out", 10), ("held_out_20", 20)])
def test_held_out_states_are_never_trained_on(profile: str, tested: int) -> None:
    values = resolved("train")
    values["protocol"]["profile"] = profile
    protocol = validate(TrainStage, values, "here").protocol
    assert len(protocol.test_states()) == tested
    assert sorted([*protocol.train_states(), *protocol.test_states()]) == list(PROFILES["official"][1])


def spoil(values: dict[str, Any], key: str, value: object) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values[section]
    values[name] = value


def test_resolved_file_loads_to_the_same_stage(tmp_path: Path) -> None:
    preset, source = load_preset(str(EXAMPLE))
    for kind in ("demos", "sft", "train", "evaluate", "plus", "reward_benchmark"):
        stage = Resolver(preset, source).stage(kind, preset.suites[0], "srpo", 0)
        path = tmp_path / f"{kind}.yaml"
        path.write_text(to_yaml(stage))
        assert load_stage(path, STAGES[kind]) == stage


@pytest.mark.parametrize("text", ["5e-6", "'5e-6'", "5.0e-6", "0.000005"])
def test_numbers_yaml_reads_as_strings(tmp_path: Path, text: str) -> None:
    values = resolved("train")
    path = tmp_path / "config.yaml"
    spoil(values, "train.learning_rate", "PLACE")
    path.write_text(yaml.safe_dump(values).replace("PLACE", text))
    assert load_stage(path, TrainStage).train.learning_rate == 5e-6


@pytest.mark.parametrize(
    ("stage", "key", "value", "message"),
    [
        (TrainStage, "train.stepz", 3, "train.stepz: unknown key (did you mean `steps`?)"),
        (TrainStage, "trian", {}, "trian: unknown key (did you mean `train`?)"),
        (TrainStage, "suite", "libero_gaol", "did you mean `libero_goal`?"),
        (TrainStage, "reward.shaping", "siirll", "did you mean `siirl`?"),
        (TrainStage, "train.steps", "three", "train.steps: Input should be a valid integer, not 'three'"),
        (TrainStage, "train.steps", 3.0, "train.steps"),
        (TrainStage, "train.steps", True, "train.steps"),
        (TrainStage, "train.learning_rate", "fast", "train.learning_rate"),
        (TrainStage, "train.learning_rate", float("nan"), "train.learning_rate"),
        (TrainStage, "train.learning_rate", float("inf"), "train.learning_rate"),
        (TrainStage, "train.group_size", 1, "train.group_size"),
        (TrainStage, "train.minibatch", 3, "prompts 8 is not a multiple of minibatch 3"),
        (TrainStage, "train.keep_success", [0.9, 0.1], "must rise"),
        (TrainStage, "train.keep_success", [0.3, 0.4], "leaves out every group of group_size 4"),
        (TrainStage, "train.keep_success", [0.1], "train.keep_success.1: is missing"),
        (TrainStage, "train.prompts", 800, "train.prompts 800: 2 tasks × 40 states are fewer"),
        (TrainStage, "train.target", 0.9, "target needs evaluate_every"),
        (TrainStage, "train.evaluate_states", 11, "train.evaluate_states 11: held_out has 10 test states"),
        (TrainStage, "train.schedule", "linear", "'linear' is not valid (did you mean `cosine`?)"),
        (TrainStage, "train.trackers", ["tensorbord"], "did you mean `tensorboard`?"),
        (TrainStage, "train.keep_checkpoints", 1, "train.keep_checkpoints: "),
        (TrainStage, "train.offline", {"beta": 0, "max_weight": 20}, "train.offline.beta: "),
        (TrainStage, "train.offline", {"beta": 1, "max_wait": 20}, "did you mean `max_weight`?"),
        (
            TrainStage,
            "train.offline",
            {"advantage": "steps", "beta": 1, "max_weight": 20},
            "did you mean `step`?",
        ),
        (TrainStage, "world_model", None, "go without a world_model"),
        (TrainStage, "reward.references", "simulator", "go without a world_model"),
        (TrainStage, "tasks", [10], "libero_goal has tasks 0–9, not [10]"),
        (TrainStage, "tasks", [1, 1], "repeat"),
        (TrainStage, "tasks", [], "tasks"),
        (EvaluateStage, "evaluate.states", 11, "held_out has 10 test states"),
        (SftStage, "sft.updates", 0, "there is none"),
        (SftStage, "policy.image_size", 97, "not a multiple of patch_size"),
        (SftStage, "policy.llm.heads", 128, "not an even multiple of heads 128"),
        (SftStage, "policy.llm.vocab_size", 256, "leaves no room"),
        (SftStage, "policy.encoders", [], "policy.encoders"),
    ],
)
def test_wrong_values_are_named(
    tmp_path: Path, stage: type[TrainStage], key: str, value: object, message: str
) -> None:
    kind = next(kind for kind, model in STAGES.items() if model is stage)
    values = resolved(kind)
    spoil(values, key, value)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as error:
        load_stage(path, stage)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not YAML"),
        (b"- 1\n- 2\n", "`key: value`"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"", "missing"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_stage(path, TrainStage)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_stage(tmp_path / "none.yaml", TrainStage)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "seeds"),
        ({"seeds": None}, "seeds"),
        ({"seeds": [0, 0]}, "repeat"),
        ({"suites": ["libero_gaol"]}, "did you mean `libero_goal`?"),
        ({"tasks": {"libero_object": [0]}}, "tasks must name the suites"),
        ({"tables": {"t7": {"sheet": "x"}}}, "'t7' is not valid"),
        ({"tables": {"t1": {"sheet": "x", "suites": ["libero_10"]}}}, "which suites does not have"),
        ({"name": "../x"}, "name"),
        ({"seedz": {}}, "did you mean `seeds`?"),
        ({"world_model": {"frames": 4}}, "world_model: Input should be a valid string"),
    ],
)
def test_wrong_presets(change: dict[str, Any], message: str) -> None:
    values = yaml.safe_load(EXAMPLE.read_text())
    with pytest.raises(ConfigError) as error:
        validate(Preset, values | change, "here.yaml")
    assert "here.yaml" in str(error.value)
    assert message in str(error.value)


def test_the_paper_runs_all_dimensions() -> None:
    assert set(read_yaml(ROOT / "configs/base.yaml")["plus"]["dimensions"]) == set(DIMENSIONS)


def test_documentation_is_up_to_date() -> None:
    """`make generated` was run after the last change."""
    assert (ROOT / "docs/configuration.md").read_text() == documentation()


def test_schemas_are_up_to_date() -> None:
    folder = ROOT / "workflow/schemas"
    written = {path.name.split(".")[0]: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert written == schemas()


def test_every_setting_has_a_meaning() -> None:
    assert not [
        line for line in documentation().splitlines() if line.startswith("| `") and line.endswith("| |")
    ]


def test_no_heavy_imports() -> None:
    """The workflow is parsed in every job of a cluster; what it imports of srpo must be light."""
    code = "import sys, srpo.config, srpo.config.plan, srpo.cluster.resources; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in modules.stdout.split()}
    heavy = {
        "torch",
        "mujoco",
        "pandas",
        "numpy",
        "scipy",
        "transformers",
        "matplotlib",
        "libero",
        "snakemake",
    }
    assert not loaded & heavy
