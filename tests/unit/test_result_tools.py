"""Checking, comparing and watching result folders."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from srpo import ROOT
from srpo.analysis import draw
from srpo.analysis.drawings import DRAWINGS
from srpo.analysis.figures import f1
from srpo.analysis.report import compare, export, paper_map, validate
from srpo.cluster import status
from srpo.config import STYLES, PlusStage
from srpo.config.plan import plan
from srpo.config.resolve import load_preset
from srpo.results import ResultError
from srpo.results.coverage import load_benchmark
from srpo.results.rows import read_rows, write_rows
from srpo.results.schemas import CURVES, EPISODES
from srpo.rollouts.journal import Journal
from srpo.runtime.manifest import sha256
from support.synthetic_results import (
    curves_of,
    libero_run,
    paths_of,
    plus_run,
    plus_tasks_file,
    reward_benchmark,
    rl_run,
    values_of,
)


def finished(root: Path, rate: float = 0.5) -> Path:
    runs = root / "runs"
    rl_run(runs, "libero_goal", "srpo", [0.2, 0.5])
    for variant in ("sft", "srpo"):
        path = libero_run(runs, "libero_goal", variant, rate if variant == "srpo" else 0.5, states=30)
        paths_of(path, 0.1)
        (path.parent / "episodes.manifest.json").write_text(
            json.dumps({"git_revision": "abc", "packages": {"numpy": "2.4.6", "mujoco": "3.3.7"}})
        )
    reward_benchmark(root, "libero_goal", {"pixel": 0.5})
    return root


def test_validate_passes_what_is_right_and_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = finished(tmp_path / "results")
    validate.main([str(root)])
    said = capsys.readouterr().out
    assert "9 files, 0 of them wrong" in said
    assert "runs/libero_goal/srpo/seed0/metrics.csv: 2 rows of metrics.csv (RL)" in said
    path = root / "runs/libero_goal/sft/seed0/evaluation/episodes.parquet"
    rows = read_rows(path, EPISODES)
    write_rows(path, pd.concat([rows, rows.head(2)]).to_dict("records"), EPISODES)
    with pytest.raises(SystemExit) as ended:
        validate.main([str(root)])
    assert ended.value.code == 1
    assert f"{path}: 2 episodes stand twice" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no result files"):
        validate.main([str(tmp_path / "nothing")])


def test_files_of_the_current_folder_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("reward_benchmark/libero_goal", "runs/plus"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "reward_benchmark/libero_goal")
    assert validate.schema_of(Path("pixel-curves.parquet")) is CURVES
    monkeypatch.chdir(tmp_path / "runs/plus")
    assert validate.schema_of(Path("shard-0.parquet")) is EPISODES


def test_a_folder_compared_with_itself_differs_in_nothing(tmp_path: Path) -> None:
    root = finished(tmp_path / "a")
    lines = compare.report(root, root)
    files = len(list(validate.result_files(root)))
    assert lines[0] == f"rows: {files} files in both, {files} of them the same but for times and memory"
    assert lines[1] == "episodes: 120 and 120, 120 of them the same task, state and seed"
    assert "settings: 0 differences" in lines and not any("alone" in line for line in lines)
    assert "versions: 0 differences" in lines
    assert sum("within noise" in line for line in lines) == 2


def test_compare_finds_what_was_changed(tmp_path: Path) -> None:
    first = finished(tmp_path / "a")
    second = tmp_path / "b"
    shutil.copytree(first, second)
    path = libero_run(second / "runs", "libero_goal", "srpo", 1.0, states=30)
    manifest = path.parent / "episodes.manifest.json"
    manifest.write_text(manifest.read_text().replace("2.4.6", "2.5.0"))
    config = second / "runs/libero_goal/srpo/seed0/config.yaml"
    config.write_text(config.read_text().replace("alpha: 0.8", "alpha: 0.3"))
    shutil.copytree(second / "runs/libero_goal/srpo", second / "runs/libero_goal/grpo")
    shutil.rmtree(second / "runs/libero_goal/grpo/seed0/evaluation")
    text = "\n".join(compare.report(first, second))
    assert "settings: 1 differences\n  reward.alpha: 0.8 → 0.3" in text
    assert f"settings in {second} alone: runs/libero_goal/grpo/seed0/config.yaml" in text
    assert "  packages.numpy: 2.4.6 → 2.4.6, 2.5.0" in text
    table = compare.differences(compare.episodes(first), compare.episodes(second)).set_index("variant")
    before = (read_rows(first / path.relative_to(second), EPISODES)["status"] == "success").mean()
    assert table.loc["srpo", "first"] == pytest.approx(before)
    assert table.loc["srpo", "changed"] == round((1 - before) * 60)
    assert table["beyond_noise"].to_dict() == {"sft": False, "srpo": True}


def test_compare_finds_rows_that_were_not_repeated(tmp_path: Path) -> None:
    """Times may differ. Of a longer run, the rows that both have are compared."""
    first, second = tmp_path / "a", tmp_path / "b"
    for root in (first, second):
        for seed in range(3):
            rl_run(root / "runs", "libero_goal", "srpo", [0.2, 0.4, 0.5], seed=seed)
    files = [second / f"runs/libero_goal/srpo/seed{seed}/metrics.csv" for seed in range(3)]
    same, longer, other = (pd.read_csv(file, float_precision="round_trip") for file in files)
    same = same.assign(seconds_total=9.0, memory_mb=1.0, episodes_per_second=2.0)
    longer = pd.concat([longer, longer.tail(1).assign(step=4)])
    other.loc[1, "loss"] += 1e-12
    other.loc[2, "kl"] = None  # null is a value too
    for rows, file in zip((same, longer, other), files, strict=True):
        rows.to_csv(file, index=False)
    lines = compare.repeated(first, second)
    assert lines[0].startswith("rows: 6 files in both, 4 of them the same but")
    assert lines[1].endswith("seed1/metrics.csv: 3 and 4 rows, no row that both have differs")
    assert lines[2].endswith(
        "seed2/metrics.csv: 3 rows, the first that differs is row 2; columns that differ: loss, kl"
    )
    files[0].write_text("step,loss\n1,0.5\n")
    lines = compare.repeated(first, second)
    assert lines[0].startswith("rows: 6 files in both, 3 of them") and f"{files[0]}: " in lines[1]
    assert "missing columns" in lines[1]


@pytest.fixture
def smoke(tmp_path: Path) -> Path:
    """A workspace in the middle of the smoke preset: SFT done, one training and one evaluation at work."""
    preset, source = load_preset("smoke")
    runs = tmp_path / "results/smoke/runs/libero_spatial"
    for done in ("sft/seed0/policy", "sft/seed0/metrics.csv", "grpo/seed0/evaluation/episodes.parquet"):
        (runs / done).mkdir(parents=True)
    scratch = tmp_path / "scratch/smoke/runs/libero_spatial"
    source_metrics = rl_run(tmp_path / "other", "libero_spatial", "grpo", [0.5])
    target = scratch / "grpo/seed0/policy"
    target.mkdir(parents=True)
    frame = pd.read_csv(source_metrics).assign(successes=16, episodes=32, seconds_total=30.0)
    frame.to_csv(target / "metrics.csv", index=False)
    journal = scratch / "sft/seed0/evaluation/episodes"
    journal.mkdir(parents=True)
    statuses = ["success", "failure", "infra_error", "success"]
    (journal / "run.json").write_text("{}")
    lines = [json.dumps({"status": value}) for value in statuses]
    now = time.time()
    os.utime(journal / "run.json", (now - 100, now - 100))
    for name, own in (("rows.jsonl", [*lines[:3], '{"status": "suc']), ("rows-1.jsonl", lines[3:])):
        (journal / name).write_text("\n".join(own))  # of two processes; one is writing
        os.utime(journal / name, (now - 50, now - 50))
    assert preset.name == "smoke" and plan(preset, source)
    return tmp_path


def test_status_tells_what_is_done_and_at_work(smoke: Path) -> None:
    lines = list(status.report("smoke", smoke))
    assert ", 2 done, 2 started, " in lines[0]
    by_folder = {line.split(",")[0].split()[-1]: line for line in lines[1:]}
    assert by_folder["runs/libero_spatial/sft/seed0"].startswith("done")
    training = by_folder["runs/libero_spatial/grpo/seed0"]
    assert "1/6 RL steps" in training and "(16/32 in the last step)" in training
    assert "2 min left" in training  # five more steps of 30 s
    evaluation = by_folder["runs/libero_spatial/sft/seed0/evaluation"]
    assert "4/80 episodes" in evaluation
    assert "(2/3)" in evaluation  # the infrastructure error is in no count, the torn line is no row
    assert re.search(r"0\.1 episodes/s, 13 min left, last written 5\d s ago", evaluation)
    assert by_folder["demos/libero_spatial"].startswith("waiting")


def test_durations_in_words() -> None:
    assert [status.duration(s) for s in (40.4, 720, 12600)] == ["40 s", "12 min", "3.5 h"]


def test_the_rate_of_nothing_is_not_known(tmp_path: Path) -> None:
    now = status._evaluation([tmp_path], 10, 0)
    assert now == status.Progress("waiting", "episodes", 0, 10)
    assert np.isnan(status.wilson(0, 0).value)


def test_the_rate_is_that_of_the_current_attempt(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "run")
    for number in range(100):
        journal.add({"status": "success", "init_state": number})
    again = Journal(tmp_path, "run")
    assert len(again.rows) == 100
    for _ in range(2):
        again.add({"status": "failure"})
    began = (tmp_path / "run.json").stat().st_mtime
    os.utime(tmp_path / "rows.jsonl", (began + 60, began + 60))
    now = status._evaluation([tmp_path], 200, 0)
    assert (now.done, now.successes, now.episodes) == (102, 100, 102)
    assert now.rate == pytest.approx(2 / 60)


def test_finished_shards_are_counted_once(tmp_path: Path) -> None:
    planned = plan(*load_preset("smoke"))
    folder, stage = next((f, s) for f, s in planned.stages.items() if isinstance(s, PlusStage))
    for number in (0, 1):
        journal = Journal(tmp_path / "scratch/smoke" / folder / f"shard-{number}", "run")
        journal.add({"status": "success"})
    finished = tmp_path / "results/smoke" / folder / "shard-0.parquet"
    finished.parent.mkdir(parents=True)
    finished.touch()
    now = status.progress(folder, stage, tmp_path)
    assert now.done == min(now.total or 0, stage.plus.shard_size) + 1 and now.episodes == 1


def drawable(root: Path) -> Path:
    """Rows of the smoke preset, but for LIBERO-Plus."""
    for variant in ("sft", "grpo", "srpo", "srpo-pixel"):
        path = libero_run(root / "runs", "libero_spatial", variant, 0.5, sampled=3)
        if variant in ("sft", "srpo"):
            paths_of(path, 0.1)
        if variant != "sft":
            rl_run(root / "runs", "libero_spatial", variant, [0.2, 0.5])
    gaps = {"pixel": 0.4, "efficientnet-lite": 0.6, "vjepa2-tiny": 0.8}
    scores = reward_benchmark(root, "libero_spatial", gaps)
    curves_of(scores)
    values_of(scores[0], branches=2)
    return root


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows of the smoke preset in `results/smoke`, and what is drawn from them in `drawn`."""
    folder = tmp_path_factory.mktemp("smoke")
    root = drawable(folder / "results" / "smoke")
    tasks = plus_tasks_file(folder / "results" / "libero_plus" / "tasks.csv", ("camera", "noise"))
    rates = dict.fromkeys(("camera", "noise", *STYLES), 0.5)
    for variant in ("sft", "grpo", "srpo"):
        plus_run(root / "runs", "libero_spatial", variant, rates, tasks, per_dimension=5)
    evaluation = root / "runs/libero_spatial/sft/seed0/evaluation"
    facts = {"host": "here", "config": {"out": "/home/me"}, "git_revision": "abc", "packages": {"numpy": "2"}}
    facts["policy"] = "5eed"
    (evaluation / "episodes.manifest.json").write_text(json.dumps(facts))
    rows = read_rows(evaluation / "episodes.parquet", EPISODES)
    rows.loc[0, ["status", "error"]] = ["infra_error", "OSError: /home/me/model.xml"]
    rows.loc[1, "video"] = "videos/task0-state1.mp4"
    write_rows(evaluation / "episodes.parquet", rows.to_dict("records"), EPISODES)
    draw.main(["all", str(root), "--out", str(folder / "drawn")])
    return folder


def test_draw_all_draws_what_has_rows(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {path.stem for path in (drawn / "drawn" / "figures").glob("*.pdf")}
    tables = {"t1", "t2", "t2_curves", "ablations", "t3", "t3_distributions", "t3_truth", "t3_values"}
    assert figures == tables | {"f1", "f2", "f3", "f4", "f5", "f6"}
    assert (drawn / "drawn/tables/gains.txt").read_text().startswith("GRPO, Spatial: ")
    # Without rows of LIBERO-Plus and of the reward benchmark, and with rows that cannot be drawn.
    root = drawable(tmp_path / "smoke")
    shutil.rmtree(root / "reward_benchmark")
    (root / "runs/libero_spatial/grpo/seed0/metrics.csv").write_text("step\n1\n")
    with pytest.raises(SystemExit, match="5 drawn, 2 refused"):
        draw.main(["all", str(root), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert f"t2: left out: {root}/runs/libero_spatial/sft/seed0/plus/episodes.parquet and 3 more" in said
    assert "missing columns" in said
    figures = {path.stem for path in (tmp_path / "out" / "figures").glob("*.pdf")}
    assert figures == {"t1", "ablations", "f3", "f4", "f5"}


def test_an_unfinished_preset_is_drawn_as_far_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(ROOT / "results/reference/smoke", tmp_path / "smoke")
    shutil.rmtree(root / "runs/libero_spatial/srpo")
    shutil.rmtree(root / "reward_benchmark")
    out, small = tmp_path / "out", tmp_path / "small"
    draw.main(["all", str(root), "--allow-incomplete", "--out", str(out)])
    said = capsys.readouterr().out
    evaluation = f"{root}/runs/libero_spatial/srpo/seed0/evaluation/episodes.parquet"
    assert f"t1: incomplete: {evaluation} is not there\n" in said
    assert "f3: left out: no run of srpo, the baseline of the sheet" in said
    assert "t3: left out: " in said and not (out / "tables/t3.csv").exists()
    for table in ("t1", "f2"):
        said = (out / f"tables/{table}.html").read_text()
        assert "Incomplete: without " in said and "1 file of the preset." in said
    assert set(pd.read_csv(out / "tables/f2.csv")["variant"]) == {"grpo"}
    export.main([str(root), "--preset", "smoke", "--allow-incomplete", "--out", str(small)])
    draw.main(
        ["all", str(small), "--preset", "smoke", "--allow-incomplete", "--out", str(tmp_path / "again")]
    )
    for path in (out / "tables").iterdir():
        assert path.read_bytes() == (tmp_path / "again/tables" / path.name).read_bytes(), path


def test_what_is_exported_draws_the_same_and_names_no_machine(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, whole = drawn / "results" / "smoke", drawn / "drawn"
    small = tmp_path / "reference" / "smoke"
    export.main([str(root), "--out", str(small)])
    draw.main(["all", str(small), "--out", str(tmp_path / "small")])
    assert "left out" not in capsys.readouterr().out
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.*"))
    assert len(files) == 14 * 3 + 2 + 8 * 2 + 2  # CSV, PNG, PDF; how fast; LaTeX and HTML; what changed
    for path in files:
        assert (whole / path).read_bytes() == (tmp_path / "small" / path).read_bytes(), path

    validate.main([str(small)])
    everything = b"".join(path.read_bytes() for path in small.rglob("*.*") if path.is_file())
    assert b"/home/me" not in everything and b"here" not in everything
    evaluation = small / "runs/libero_spatial/sft/seed0/evaluation"
    kept = read_rows(evaluation / "episodes.parquet", EPISODES)
    assert kept["error"][0] == "OSError" and kept["video"].isna().all()
    _, shortened = compare.repeated(root, small)
    assert "sft/seed0/evaluation/episodes.parquet" in shortened and shortened.endswith("differ: error")
    manifest = json.loads((evaluation / "episodes.manifest.json").read_text())
    assert manifest == {"git_revision": "abc", "packages": {"numpy": "2"}, "policy": "5eed"}
    assert len((small / "libero_plus" / "tasks.csv").read_text().splitlines()) == 11  # of 240 in all


def test_an_export_is_of_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = drawable(tmp_path / "smoke")
    small, large = (root / f"runs/libero_spatial/sft/seed{seed}/policy" for seed in (0, 1))
    for policy, size in ((small, 10_000_000), (large, 10_000_001)):
        policy.mkdir(parents=True)
        (policy / "model.safetensors").write_bytes(bytes(size))
        (policy / ".snakemake_timestamp").touch()
    export.main([str(root), "--out", str(tmp_path / "small")])
    assert "t2: left out: " in capsys.readouterr().out
    (copied,) = (tmp_path / "small").glob("runs/*/*/*/policy/*")
    assert copied == tmp_path / "small" / small.relative_to(root) / "model.safetensors"
    # Frames of a trajectory that F1 did not choose are not there; black ones would be a lie.
    curves = root / "reward_benchmark/libero_spatial/pixel-curves.parquet"
    table = load_benchmark([curves], CURVES, "curves", allow_incomplete=True)[0]
    films = tmp_path / "small/reward_benchmark/libero_spatial/trajectories"
    every = sorted(curves.parent.glob("*-curves.parquet"))
    chosen = f1.choose(load_benchmark(every, CURVES, "curves", allow_incomplete=False)[0])
    assert len(f1.read_strips([films], chosen)) == 2
    with pytest.raises(ResultError, match="has no trajectory 1: it is not what was scored"):
        f1.read_strips([films], table[table["trajectory"] == 1])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ResultError, match="nothing can be drawn from it"):
        export.main([str(tmp_path / "nothing"), "--preset", "smoke", "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


SHIPPED = sorted(path for path in (ROOT / "results/reference").iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_rows_are_sound_and_drawn_in_a_minute(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The schemas may grow: then these rows are still read, or made again."""
    validate.main([str(folder)])
    start = time.process_time()
    draw.main(["all", str(folder), "--allow-incomplete", "--out", str(tmp_path)])
    assert time.process_time() - start <= 60
    said = capsys.readouterr().out
    if folder.name == "mini":  # not finished
        shown = [source.drawing for source in draw.available(folder, None, allow_incomplete=True)]
        assert {"t1", "f2"} <= {drawing.name for drawing in shown}
    else:
        assert "left out" not in said and "incomplete" not in said
        planned = plan(*load_preset(folder.name))
        shown = [drawing for drawing in DRAWINGS if drawing.shown(planned) and not drawing.filmed]
    drawn = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert drawn == {path for drawing in shown for path in drawing.outputs.values()}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix != ".safetensors") <= 8e6
    for path in files:
        assert not re.search(rb"/(home|root|tmp|work|Users|mnt)/|\"host\"", path.read_bytes()), path
    for policy in folder.glob("runs/*/sft/seed*/policy"):
        manifests = policy.parents[2].glob("*/seed*/**/*manifest.json")
        inputs = [json.loads(path.read_text()).get("inputs", {}) for path in manifests]
        assert {given["policy"] for given in inputs if "policy" in given} == {sha256(policy)}


def test_the_paper_map_holds_our_values(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn / "drawn", tmp_path / "out", ignore=shutil.ignore_patterns("t2*"))
    lines = paper_map.document(tmp_path / "out").splitlines()
    rows = {
        line.split("|")[1].strip(): line for line in lines if line.startswith("| T") or line.startswith("| F")
    }
    assert list(rows) == ["T1", "T2", "T3", "F1", "F2", "F3", "F4", "F5"]
    table = pd.read_csv(tmp_path / "out/tables/t1.csv")
    own = table[(table["variant"] == "grpo") & (table["suite"] == "average")].iloc[0]
    assert f"GRPO: {100 * own['rate']:.1f}% [{100 * own['low']:.1f}, {100 * own['high']:.1f}]" in rows["T1"]
    assert "OpenVLA*-One + online SRPO (T+I): 99.2%" in rows["T1"]
    assert rows["T2"].endswith("| – | not run |") and rows["F4"].endswith("| measured |")
    assert "12 RL runs" in rows["F2"]  # two suites, two variants, three seeds


def test_the_paper_map_is_up_to_date() -> None:
    text = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
    shown = re.search(r"from `(.+?)`", text)
    assert text == paper_map.document(ROOT / shown[1] if shown else None).replace(
        f"{ROOT.as_posix()}/", ""
    ), "run: srpo paper-map"
