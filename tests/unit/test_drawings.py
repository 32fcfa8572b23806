"""The table of drawings: what the workflow, the command line and the pages take from it is sound."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path

import pytest

from srpo.analysis import draw
from srpo.analysis.drawings import DRAWINGS, EVIDENCE, OUTPUTS, Drawing
from srpo.config.plan import Plan, plan
from srpo.config.resolve import load_preset

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = {drawing.name: drawing for drawing in DRAWINGS}
VALUED = {"t3_values", "f6"}
"""What is drawn from values, which few presets estimate."""


def place(root: str, path: str) -> str:
    return f"{root}:{path}"


@pytest.fixture(scope="module")
def smoke() -> Plan:
    return plan(*load_preset("smoke"))


def test_it_imports_nothing_heavy() -> None:
    """The workflow reads it in every job of a cluster."""
    heavy = ["numpy", "pandas", "matplotlib", "pyarrow", "scipy", "torch", "snakemake"]
    code = f"import sys, srpo.analysis.drawings; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_names_are_unique_and_outputs_are_known() -> None:
    assert len(BY_NAME) == len(DRAWINGS)
    for drawing in DRAWINGS:
        assert set(drawing.writes) <= set(OUTPUTS), drawing.name
        assert (ROOT / "workflow/report" / f"{drawing.name}.rst").is_file(), "every caption of today is there"


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda drawing: drawing.name)
def test_a_module_takes_what_its_entry_names(drawing: Drawing) -> None:
    parameters = signature(import_module(f"srpo.analysis.{drawing.module}").make).parameters
    options = {item.option.replace("-", "_"): item for item in drawing.inputs}
    assert set(parameters) == {*options, "allow_incomplete"}
    for name, item in options.items():
        optional = parameters[name].default is not Parameter.empty
        assert optional == (item.need != "always"), name


def test_what_a_preset_shows(smoke: Plan) -> None:
    assert {drawing.name for drawing in DRAWINGS if drawing.shown(smoke)} == set(BY_NAME)
    example = plan(*load_preset(str(ROOT / "tests/example.yaml")))
    hidden = {drawing.name for drawing in DRAWINGS if not drawing.shown(example)}
    assert hidden == {"ablations", "f3", "f5"} | VALUED  # it has no ablations


def test_files_and_what_is_beside_them(smoke: Plan) -> None:
    runs = "runs/libero_spatial"
    assert BY_NAME["f5"].files(smoke, place) == {
        "episodes": [f"preset:{runs}/{name}/seed0/evaluation/episodes.parquet" for name in ("srpo", "grpo")],
        "sheet": ["configs:experiments/tiny/ablations.tsv"],
    }
    assert BY_NAME["f5"].beside(smoke, place) == [
        f"preset:{runs}/{name}/seed0/{place}config.yaml"
        for name in ("srpo", "grpo")
        for place in ("evaluation/", "")
    ]
    assert BY_NAME["f4"].files(smoke, place)["paths"] == [
        f"preset:{runs}/{name}/seed0/evaluation/paths.parquet" for name in ("sft", "srpo")
    ]
    assert BY_NAME["t2"].files(smoke, place)["tasks"] == ["results:libero_plus/tasks.csv"]
    models = ("pixel", "efficientnet-lite", "vjepa2-tiny")
    assert BY_NAME["t3"].files(smoke, place)["scores"] == [
        f"preset:reward_benchmark/libero_spatial/{name}.parquet" for name in models
    ]
    assert BY_NAME["f1"].files(smoke, place)["trajectories"] == [
        "preset:reward_benchmark/libero_spatial/trajectories"
    ]
    trained = EVIDENCE.files(smoke, place)["metrics"]
    assert trained == [f"preset:{runs}/{name}/seed0/metrics.csv" for name in ("grpo", "srpo")]


def test_the_command_line_of_a_drawing_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    mini = plan(*load_preset("mini"))  # it shows all
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(draw, "draw", lambda *arguments: calls.append(arguments))
    for drawing in DRAWINGS:
        files = drawing.files(mini, lambda root, path: path)
        draw.main(drawing.arguments(files, "somewhere"))
        paths = {option: [Path(path) for path in names] for option, names in files.items()}
        assert calls[-1] == (drawing, paths, Path("somewhere"), False)


def test_a_drawing_depends_on_all_that_its_module_imports() -> None:
    sources = {name: set(drawing.sources()) for name, drawing in BY_NAME.items()}
    assert {"srpo/analysis/tables/t1.py", "srpo/analysis/stats.py", "srpo/results/rows.py"} <= sources["t1"]
    assert "srpo/analysis/figures/f2.py" in sources["f3"] & sources["headline"]
    assert "srpo/analysis/figures/f2.py" not in sources["t1"]
    assert sources["t1"] == sources["ablations"]
    for name, files in sources.items():
        assert all((ROOT / file).is_file() for file in files), name
        assert "srpo/analysis/drawings.py" not in files, "an entry more redraws nothing else"
