"""The DAG: counts of jobs, errors at parse time, what reruns and what does not. No simulation."""

from __future__ import annotations

import csv
import math
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from srpo.analysis.drawings import DRAWINGS
from srpo.cluster.processes import job_command
from srpo.config import Layout
from support.workflow import ROOT, copy_workflow, dry_run, job_counts, run, seconds, snakemake

PLUS = {  # tasks of LIBERO-Plus by suite: camera, robot, language, noise, layout, background, light
    "libero_spatial": (376, 350, 390, 351, 385, 258, 292),
    "libero_object": (396, 398, 354, 422, 403, 248, 297),
    "libero_goal": (408, 409, 410, 379, 425, 281, 279),
    "libero_10": (419, 393, 383, 449, 312, 289, 274),
}


def read(path: str) -> dict[str, Any]:
    """A file of configs/."""
    return yaml.safe_load((ROOT / "configs" / path).read_text()) or {}


def sheet(name: str) -> dict[str, dict[str, str]]:
    """By the name of a row, the settings that decide which jobs its runs need."""
    with (ROOT / f"configs/experiments/{name}.tsv").open(newline="") as handle:
        rows = list(csv.DictReader((line for line in handle if not line.startswith("#")), delimiter="\t"))
    found = {}
    for row in rows:
        reward = read(f"variants/{row['variant']}.yaml").get("reward", {})
        settings = {f"reward.{name}": value for name, value in reward.items()}
        found[row["name"]] = settings | dict(word.split("=") for word in (row["set"] or "").split())
    return found


def expected_counts(preset: dict[str, Any]) -> dict[str, int]:
    """Jobs by rule, counted from the preset's own words and not by the workflow's code."""
    rows = {table: sheet(spec["sheet"]) for table, spec in preset["tables"].items()}
    runs: dict[str, set[tuple[str, str, int]]] = {
        table: {
            (suite, name, seed)
            for suite in spec.get("suites", preset["suites"])
            for name in rows[table]
            for seed in (preset["seeds"] if name != "sft" else preset["seeds"][:1])
        }
        for table, spec in preset["tables"].items()
    }
    base = read("base.yaml")
    plus = base["plus"] | preset["settings"].get("plus", {})
    assert len(plus["dimensions"]) == 7

    def shards(suite: str) -> int:
        most = plus["per_dimension"] or math.inf
        return math.ceil(sum(min(number, most) for number in PLUS[suite]) / plus["shard_size"])

    trained = {run for table in runs.values() for run in table if run[1] != "sft"}
    evaluated = runs["t1"] | runs.get("ablations", set())
    settings = {name: values for table in rows.values() for name, values in table.items() if name != "sft"}
    rewarded = {
        values.get("world_model", preset["world_model"])
        for values in settings.values()
        if values.get("reward.shaping") != "none" and values.get("reward.references") != "simulator"
    }
    world_models = [
        read(f"world_models/{name}.yaml")["world_model"] for name in rewarded | set(preset["world_models"])
    ]
    policy = read(f"policies/{preset['policy']}.yaml")
    updates = (base["sft"] | policy["sft"] | preset["settings"].get("sft", {}))["updates"]
    suites = len(preset["suites"])
    valued = preset["settings"].get("values", base["values"])["branches"] > 0
    experts = {
        suite for suite, name, _ in trained if settings[name].get("reward.references") == "fixed_expert"
    }
    counts = {
        "demos": suites if updates else len(experts),
        "checkpoint": sum(model["checkpoint"] is not None for model in world_models)
        + (suites if policy["policy"]["checkpoint"] else 0),
        "sft": suites,
        "world_model": sum(model["pretraining"] is not None for model in world_models),
        "train": len(trained),
        "evaluate": len(evaluated),
        "plus_tasks": 1,
        "plus_shard": sum(shards(suite) for suite, _, _ in runs["t2"]),
        "plus": len(runs["t2"]),
        "trajectories": suites,
        "score": suites * len(preset["world_models"]),
        "values": suites * valued,
        "t3_values": valued,
        "f6": valued,
        "t3": 1,
        "t3_distributions": 1,
        "t3_truth": 1,
        "t2_curves": 1,
        "f1": 1,
        "f3": "ablations" in preset["tables"],
        "f4": 1,
        "f5": "ablations" in preset["tables"],
        "headline": 1,
        "gains": 1,
        "ledger": 1,
        "videos": suites,
        **dict.fromkeys(preset["tables"], 1),
        "all": 1,
    }
    stages = ("demos", "sft", "world_model", "train", "evaluate", "plus", "trajectories", "values")
    counts["config"] = sum(counts[rule] for rule in stages)
    counts["total"] = sum(counts.values())
    return {rule: count for rule, count in counts.items() if count}


@pytest.mark.parametrize("name", ["smoke", "mini", "paper"])
def test_dry_run_lists_every_job(tmp_path: Path, name: str) -> None:
    file = ROOT / "configs/presets" / f"{name}.yaml"
    chosen = [] if name == "smoke" else ["--configfile", str(file)]  # smoke is the default
    start = seconds()
    output = snakemake(tmp_path, "--dry-run", "--quiet", "rules", *chosen)
    assert seconds() - start < 20
    assert job_counts(output) == expected_counts(yaml.safe_load(file.read_text()))


def test_mistakes_fail_at_parse_time(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    text = (ROOT / "tests/example.yaml").read_text()
    preset.write_text(text.replace("group_size: 4", "groupsize: 4"))
    start = seconds()
    subprocess.run([sys.executable, "-c", "import snakemake.cli"], check=True)
    importing = seconds() - start
    done = run(tmp_path, "--dry-run", "--configfile", str(preset), snakefile=ROOT / "Snakefile")
    assert done.returncode != 0
    assert "mine.yaml: settings.train.groupsize: unknown key (did you mean `group_size`?)" in done.stdout
    assert seconds() - start < 3 * importing + 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("group_size: 4", "group_size: 4\n    group_size: 8", "line 23: `group_size` is there twice"),
        ("max_steps: 136", "max_steps: 0136", "line 17: `0136` is read as 94"),
        (
            "settings:",
            "settings:\n  demos: {source: /no/demos}",
            "demos.source: /no/demos is neither `expert` nor",
        ),
    ],
)
def test_what_snakemake_would_read_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Its own reader takes the last of two equal keys, and octal numbers. Folders must be there."""
    preset = tmp_path / "mine.yaml"
    preset.write_text((ROOT / "tests/example.yaml").read_text().replace(old, new))
    done = run(tmp_path, "--dry-run", "--configfile", str(preset), snakefile=ROOT / "Snakefile")
    assert done.returncode != 0 and f"mine.yaml: {message}" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_preset_is_not_mixed_with_smoke(tmp_path: Path) -> None:
    """What a preset leaves out is missing; it does not come from the default preset."""
    preset = tmp_path / "mine.yaml"
    preset.write_text("name: mine\nsuites: [libero_10]\ntasks: all\n")
    done = run(tmp_path, "--dry-run", "--configfile", str(preset), snakefile=ROOT / "Snakefile")
    assert done.returncode != 0
    assert "mine.yaml: seeds: is missing" in done.stdout


def test_lint(tmp_path: Path) -> None:
    assert "workflow is in a good condition" in snakemake(tmp_path, "--lint")


def test_imports_are_light() -> None:
    """Every job of a cluster parses the workflow again."""
    ours = r"srpo\.(config|cluster|libero_plus\.tasks|analysis\.drawings)"
    light = rf"functools|mimetypes|shlex|sys|pathlib|snakemake|{ours}"
    allowed = re.compile(rf"^(from|import) ({light})\b")
    for file in [ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]:
        for line in file.read_text().splitlines():
            if re.match(r"\s*(from\s.+\simport|import)\s", line):
                assert allowed.match(line), f"{file.name}: {line}"


LOGGED = f'. "{ROOT}/workflow/shell.sh"; logged "$@"'
SPEAK = "import sys; print(sys.stderr.isatty(), sys.argv[1:], file=sys.stderr); sys.exit(3)"


def test_a_job_is_logged_and_its_failure_kept(tmp_path: Path) -> None:
    log = tmp_path / "a log"
    command = ["bash", "-c", LOGGED, "bash", str(log), sys.executable, "-c", SPEAK, "two words", "it's"]
    assert subprocess.run(command).returncode == 3
    assert log.read_text() == "False ['two words', \"it's\"]\n"


@pytest.mark.skipif(shutil.which("script") is None, reason="needs util-linux")
def test_on_a_terminal_a_job_has_a_terminal(tmp_path: Path) -> None:
    """So that its progress bars show, while the log is kept all the same."""
    log = tmp_path / "a log"
    command = ["bash", "-c", LOGGED, "bash", str(log), sys.executable, "-c", SPEAK, "two words", "it's"]
    ours, theirs = pty.openpty()
    assert subprocess.run(command, stderr=theirs).returncode == 3
    os.close(theirs)
    line = "True ['two words', \"it's\"]"
    assert line in log.read_text()
    assert line in os.read(ours, 1000).decode()
    os.close(ours)


def test_the_package_does_not_know_the_workflow() -> None:
    for file in (ROOT / "srpo").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) snakemake", file.read_text(), re.MULTILINE), file


def test_a_finished_preset_has_nothing_to_do_and_comments_change_nothing(finished: Path) -> None:
    for file in (finished / "configs").rglob("*.yaml"):
        file.write_text(f"# a comment\n{file.read_text()}")
    (finished / "workflow/rules/train.smk").open("a").write("\n# a comment\n")
    assert "Nothing to be done" in dry_run(finished)


def test_stages_get_what_they_need(finished: Path) -> None:
    """The command lines, of which the logs of the stand-in tell."""
    logs = finished / "results/example/logs"
    run = "results/example/runs/libero_goal"
    assert (logs / "train/libero_goal/srpo/seed0.log").read_text() == (
        f"train --config {run}/srpo/seed0/config.yaml --policy {run}/sft/seed0/policy"
        " --world-model results/example/world_models/vjepa2-tiny/checkpoint"
        f" --out {run}/srpo/seed0"
        " --scratch scratch/example/runs/libero_goal/srpo/seed0/policy"
        " --workers 2"
    )
    assert "--world-model" not in (logs / "train/libero_goal/grpo/seed0.log").read_text()
    assert (
        "--plus results/libero_plus/tasks.csv --plus-data results/libero_plus/data.zip --shard 0/4 "
        in (logs / "plus/libero_goal/grpo/seed0/shard-0.log").read_text()
    )
    assert "--checkpoint" not in (logs / "score/libero_goal/pixel.log").read_text()
    assert "--checkpoint" in (logs / "score/libero_goal/vjepa2-tiny.log").read_text()


def test_a_checkpoint_on_the_hub_is_fetched_first(finished: Path) -> None:
    """Of a pinned revision, into a folder that all presets share, for SFT and for the world model."""
    output = dry_run(
        finished,
        "--printshellcmds",
        "--config",
        "set=['policy.checkpoint=lab/policy', 'policy.revision=abc123']",
    )
    assert re.search(
        r"srpo download --checkpoint lab/policy --revision abc123 --out checkpoints/lab--policy@abc123\n",
        output,
    )
    assert re.search(r"srpo sft .* --checkpoint checkpoints/lab--policy@abc123 --out ", output)


def test_a_changed_variant_reruns_its_own_runs(finished: Path) -> None:
    file = finished / "configs/variants/grpo.yaml"
    text = file.read_text()
    file.write_text(text + "train:\n  epochs: 2\n")
    counts = job_counts(dry_run(finished, "--quiet", "rules"))
    file.write_text(text)
    assert counts == {
        **{"config": 1, "train": 1, "evaluate": 1, "plus_shard": 4, "plus": 1},
        **{
            "t1": 1,
            "t2": 1,
            "t2_curves": 1,
            "f2": 1,
            "headline": 1,
            "gains": 1,
            "ledger": 1,
            "all": 1,
            "total": 16,
        },
    }


def test_an_edit_of_code_redraws_what_imports_it(finished: Path) -> None:
    """A drawing depends on its module and on what that imports, however far away."""
    shown = {"t1", "t2", "t2_curves", "t3", "t3_distributions", "t3_truth", "gains"}
    shown |= {"f1", "f2", "f4", "headline", "videos"}

    def importing(module: str) -> set[str]:
        drawings = [drawing for drawing in DRAWINGS if drawing.name in shown]
        return {drawing.name for drawing in drawings if f"srpo/analysis/{module}" in drawing.sources()}

    def redrawn(module: str) -> set[str]:
        file = finished / "srpo/analysis" / module
        text, times = file.read_text(), file.stat()
        file.write_text(f"{text}\n# edited\n")
        counts = job_counts(dry_run(finished, "--quiet", "rules"))
        file.write_text(text)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        return set(counts) - {"all", "total"}

    assert importing("tables/t1.py") == {"t1"}
    assert importing("figures/f2.py") == {"f2", "headline"}
    assert importing("stats.py") >= {"t1", "t2", "t2_curves", "t3", "t3_truth", "gains", "f2", "headline"}
    assert importing("style.py") == shown - {"gains", "videos"}
    assert importing("tables/t3.py") == redrawn("tables/t3.py") == {"t3", "t3_distributions"}
    assert importing("report/evidence.py") == redrawn("report/evidence.py") == set()


def test_evaluations_that_may_stop_early_are_given_that_of_sft(finished: Path) -> None:
    output = dry_run(finished, "--printshellcmds", "--config", "set=evaluate.stop_early=true")
    commands = re.findall(r"srpo evaluate .*/evaluation/config\.yaml .*", output)
    compared = "--baseline results/example/runs/libero_goal/sft/seed0/evaluation/episodes.parquet "
    assert {
        re.findall(r"goal/(\w+)/seed0/evaluation/config", one)[0]: compared in one for one in commands
    } == {
        "sft": False,
        "grpo": True,
        "srpo": True,
    }


def test_shards_that_may_stop_early_are_given_those_of_sft(finished: Path) -> None:
    output = dry_run(finished, "--printshellcmds", "--config", "set=plus.stop_early=true")
    commands = re.findall(r"goal/(\w+)/seed0/plus/config\.yaml .* --shard (\d)/4 (.*) --out", output)
    assert len(commands) == 12
    sft = "results/example/runs/libero_goal/sft/seed0/plus"
    assert all(
        baseline.strip() == ("" if variant == "sft" else f"--baseline {sft}/shard-{shard}.parquet")
        for variant, shard, baseline in commands
    )


def test_an_empty_override_changes_nothing(finished: Path) -> None:
    """`set=` is null to YAML."""
    assert job_counts(dry_run(finished, "--quiet", "rules", "--config", "set=")) == {}


def test_an_override_reruns_what_it_changes(finished: Path) -> None:
    counts = job_counts(
        dry_run(finished, "--quiet", "rules", "--config", "set=evaluate.states=5 plus.seed=1")
    )
    assert {"config": 6, "evaluate": 3, "plus_shard": 12}.items() <= counts.items()
    assert "train" not in counts and "sft" not in counts


def test_report_has_every_table_and_figure(report: Path) -> None:
    page = report.read_text()
    for label in (
        "T1: LIBERO success",
        "T2: LIBERO-Plus success",
        "T3: progress rewards",
        "T3: distributions",
        "Configurations",
        "F1: progress along trajectories",
        "F2: training efficiency",
        "F4: exploration",
        "What training changed",
        "Hours held",
        "task0-state0",
    ):
        assert label in page


def test_processes_on_gpus_have_no_more_threads_than_the_job_has_cores(tmp_path: Path) -> None:
    """As torch counts them in each process: Snakemake has given the job as many threads as cores."""
    (tmp_path / "srpo.py").write_text("import os, torch; os.write(1, b'%d\\n' % torch.get_num_threads())")
    (tmp_path / "srpo").write_text("#!/bin/sh\nexec python -m srpo\n")
    (tmp_path / "srpo").chmod(0o755)
    before = {f"{library}_NUM_THREADS": "2" for library in ("OMP", "MKL", "OPENBLAS", "GOTO")}
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, **before, "PATH": path, "PYTHONPATH": str(tmp_path)}
    for gpus, printed in ((1, "2\n"), (2, "1\n1\n")):
        command = job_command(Layout(gpus=gpus), 2)
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        assert (done.returncode, done.stdout) == (0, printed)


@pytest.mark.parametrize(
    ("raised", "attempts"), [("InputError('no such thing')", 1), ("SystemExit('perhaps later')", 3)]
)
def test_what_another_try_would_not_change_is_not_tried_again(
    tmp_path: Path, raised: str, attempts: int
) -> None:
    copy_workflow(tmp_path, "stage_stand_in.py")
    prelude = (ROOT / "workflow/shell.sh").read_text()  # not its stand-in
    stage = (
        f"from srpo.errors import InputError, run_command\ndef main(): raise {raised}\nrun_command(main)\n"
    )
    (tmp_path / "stage.py").write_text(stage)
    command = f'{sys.executable} "{tmp_path / "stage.py"}"'
    (tmp_path / "workflow/shell.sh").write_text(
        f"{prelude}\nsrpo() {{ echo again >>attempts; {command}; }}\n"
    )
    target = ["--cores", "1", "--retries", "2", "results/example/demos/libero_goal/data"]
    done = run(tmp_path, "--configfile", "example.yaml", *target, snakefile=tmp_path / "Snakefile")
    assert done.returncode != 0
    assert (tmp_path / "attempts").read_text().split() == ["again"] * attempts, done.stdout
