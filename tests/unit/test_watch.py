"""What a preset's page and ledger are made of: Snakemake's logs, Slurm's accounting, benchmark files."""

from __future__ import annotations

import csv
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from srpo import ROOT
from srpo.cluster import ledger, page, watch
from srpo.cluster.accounting import Queued, Use, parse_uses
from srpo.cluster.estimate import Held
from srpo.cluster.ledger import Entry
from srpo.cluster.tries import History, history, parse
from srpo.config import Layout, Parallel
from srpo.config.plan import plan
from srpo.config.resolve import load_preset
from srpo.errors import InputError

EXAMPLE = ROOT / "tests/example.yaml"
PLANNED = plan(*load_preset(str(EXAMPLE)))
HEAD = """
SNAKEMAKE
=========
  Date: 2026-11-28 17:45:52
  Host: {host}
  User: root

Building DAG of jobs...
"""
RULE = """\
[Sat Nov 28 17:46:{second} 2026]
rule {rule}:
    input: results/example/{job}/config.yaml
    output: results/example/{job}/out
    log: results/example/logs/{job}.log
    jobid: {number}
    benchmark: results/example/benchmarks/{job}.tsv
    reason: Missing output files: results/example/{job}/out
    wildcards: suite=libero_goal
    threads: 4
    resources: tmpdir=<TBD>, mem_mb=1000, mem=1 GB, mem_mib=954, runtime=1440{more}
"""
SUBMITTED = "Job {number} has been submitted with SLURM jobid {slurm} (log: {folder}/{slurm}.log).\n"
TRAIN = "train/libero_goal/grpo/seed0"
FAILED = """\
[Sat Nov 28 17:46:49 2026]
Error in rule train:
    message: SLURM-job '8' failed, SLURM status is: 'TIMEOUT'. Detailed failure reason unavailable (status \
command is not 'sacct').For further error details see the cluster/cloud log
    jobid: 10
    output: results/example/runs/libero_goal/grpo/seed0/policy
    log: results/example/logs/train/libero_goal/grpo/seed0.log, {slurm_log} (check log file(s))
    shell:
        logged results/example/logs/train/libero_goal/grpo/seed0.log srpo train jobid: 11
        (command exited with non-zero exit code)
    external_jobid: 8
Logfile results/example/logs/train/libero_goal/grpo/seed0.log:
================================================================================
Finished jobid: 10 (Rule: train)
rule train:
    jobid: 10
    log: results/example/logs/train/quoted.log
================================================================================
Trying to restart job 10.
"""
GROUP = """\
[Sat Nov 28 17:47:57 2026] Group job evaluate_libero_goal_srpo (jobs in lexicogr. order):
    [Sat Nov 28 17:47:57 2026]
    rule evaluate:
        log: results/example/logs/evaluate/libero_goal/srpo/seed1.log
        jobid: 22
        threads: 4
        resources: tmpdir=<TBD>, gpu=1, in_turn=1
    [Sat Nov 28 17:47:57 2026]
    rule evaluate:
        log: results/example/logs/evaluate/libero_goal/srpo/seed0.log
        jobid: 16
        threads: 4
        resources: tmpdir=<TBD>, gpu=1, in_turn=1
Job 8a11d78c-c564-5e95-8e13-6954789952dd has been submitted with SLURM jobid 15 \
(log: /w/.snakemake/slurm_logs/group_evaluate_libero_goal_srpo_evaluate/15.log).
"""
GROUP_FAILED = """\
[Sat Nov 28 17:49:57 2026]
    message: SLURM-job '15' failed, SLURM status is: 'FAILED'.
    log: /w/15.log (check log file(s))
    jobs:
        rule evaluate:
            jobid: 22
            log: results/example/logs/evaluate/libero_goal/srpo/seed1.log (check log file(s))
        rule evaluate:
            jobid: 16
    [Sat Nov 28 17:50:57 2026]
    Error in rule evaluate:
        message: None
        jobid: 22
    Logfile results/example/logs/evaluate/libero_goal/srpo/seed1.log:
    ==================================================
    Finished jobid: 16 (Rule: evaluate)
    ==================================================
"""


@pytest.fixture(autouse=True)
def without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Slurm this machine has knows jobs of its own."""
    monkeypatch.setenv("PATH", "")


def rule(number: int, job: str = TRAIN, name: str = "train", second: int = 19, gpus: int = 1) -> str:
    more = f", gpu={gpus}" if gpus else ""
    return RULE.format(rule=name, job=job, number=number, second=second, more=more)


def submitted(number: int, slurm: int, folder: str = "/w/.snakemake/slurm_logs/rule_train/x") -> str:
    return SUBMITTED.format(number=number, slurm=slurm, folder=folder)


def finished(number: int, second: int) -> str:
    return f"[Sat Nov 28 17:47:{second} 2026]\nFinished jobid: {number} (Rule: train)\n"


def write_log(here: Path, text: str, host: str = "elsewhere") -> None:
    folder = here / ".snakemake/log"
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.iterdir()))
    (folder / f"2026-11-28T17455{number}.snakemake.log").write_text(HEAD.format(host=host) + text)


def test_a_log_is_read_try_by_try() -> None:
    text = rule(10) + submitted(10, 8) + FAILED.format(slurm_log="/w/8.log")
    text += rule(10, second=49) + submitted(10, 12) + finished(10, 20) + rule(11, "tables/t1", "t1", 50, 0)
    first, second, drawn = parse(text.splitlines()).tries
    assert (first.rule, first.job, first.preset, first.cores, first.gpus) == ("train", TRAIN, "example", 4, 1)
    assert (first.state, first.slurm, first.slurm_log) == (
        "failed",
        "8",
        Path("/w/.snakemake/slurm_logs/rule_train/x/8.log"),
    )
    assert first.message == "SLURM-job '8' failed, SLURM status is: 'TIMEOUT'."
    assert first.ended is not None and first.ended - first.started == 30
    # What the job printed is quoted in the log, and is nothing that Snakemake says.
    assert (second.state, second.slurm) == ("done", "12")
    assert second.ended is not None and second.ended - second.started == 31
    assert (drawn.job, drawn.gpus, drawn.slurm, drawn.state) == ("tables/t1", 0, None, "open")


def test_jobs_of_a_group_share_its_submission() -> None:
    one, other = parse(GROUP.splitlines()).tries
    assert (one.job, other.job) == ("evaluate/libero_goal/srpo/seed1", "evaluate/libero_goal/srpo/seed0")
    assert one.slurm == other.slurm == "15" and one.state == other.state == "open"
    for failed in parse((GROUP + GROUP_FAILED).splitlines()).tries:
        assert failed.state == "failed" and failed.message.endswith("status is: 'FAILED'.")
        assert failed.ended is not None and failed.ended - failed.started == 120
    nameless = GROUP_FAILED.replace("SLURM-job '15' failed, SLURM status is: 'FAILED'.", "Error in group x")
    assert [one.message for one in parse((GROUP + nameless).splitlines()).tries] == ["", ""]


def test_what_a_snakemake_leaves_behind_is_lost(tmp_path: Path) -> None:
    """One that was killed on this machine is noticed; of one on another machine only its last words are."""
    assert history("example", tmp_path).running is None
    write_log(tmp_path, rule(10))
    assert [one.state for one in history("example", tmp_path).tries] == ["open"]
    assert history("example", tmp_path).running
    assert history("other", tmp_path) == History([])
    write_log(tmp_path, rule(10), host=os.uname().nodename)
    past = history("example", tmp_path)
    assert [one.state for one in past.tries] == ["open", "lost"] and past.running is False
    log = max((tmp_path / ".snakemake/log").iterdir())
    with log.open("a"):  # as Snakemake holds it while it runs
        assert history("example", tmp_path).running
    with log.open("a") as handle:
        handle.write("Complete log(s): /w/x.log\n")
    assert history("example", tmp_path).running is False


SACCT = """\
8|TIMEOUT|5400|billing=4,cpu=4,gres/gpu=1,mem=1000M,node=1
12|NODE_FAIL|600|billing=4,cpu=4,gres/gpu=1,mem=1000M,node=1
12|COMPLETED|3600|billing=4,cpu=4,gres/gpu=1,mem=1000M,node=1
15|CANCELLED by 0|7200|billing=4,cpu=4,gres/gpu:a100=2,mem=1000M,node=1
16|PENDING|0|
"""


def test_what_sacct_prints_is_read() -> None:
    assert parse_uses(SACCT + "sacct: error: Slurm accounting storage is disabled\n") == {
        "8": [Use("TIMEOUT", 5400, 4, 1)],
        "12": [Use("NODE_FAIL", 600, 4, 1), Use("COMPLETED", 3600, 4, 1)],
        "15": [Use("CANCELLED", 7200, 4, 2)],
        "16": [Use("PENDING", 0, 0, 0)],
    }


ON_GPUS = Parallel(sft=Layout(gpus=1), train=Layout(gpus=1), evaluate=Layout(gpus=1))


def entries(here: Path) -> list[Entry]:
    jobs, _ = ledger.planned_jobs(PLANNED)
    return ledger.entries(jobs, history("example", here), "example", Parallel(), here)


def test_every_start_is_in_the_ledger_by_accounting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed ones and those that Slurm itself repeats; a group's time is shared by its jobs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sacct").write_text(f"#!/bin/sh\ncat <<'END'\n{SACCT}END\n")
    (programs / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    text = rule(10) + submitted(10, 8) + FAILED.format(slurm_log="/w/8.log") + rule(10, second=49)
    text += submitted(10, 12) + finished(10, 20)
    group = GROUP.replace("srpo/seed1", "grpo/seed0")  # the example has one seed
    write_log(
        tmp_path, text + group + GROUP_FAILED + rule(24, "train/libero_goal/srpo/seed0") + submitted(24, 16)
    )
    found = [(e.stage, e.variant, e.number, e.state, e.held, e.source) for e in entries(tmp_path)]
    assert found == [
        ("train", "grpo", 1, "TIMEOUT", Held(1.5, 6.0), "accounting"),
        ("train", "grpo", 2, "NODE_FAIL", Held(1 / 6, 4 / 6), "accounting"),
        ("train", "grpo", 3, "done", Held(1.0, 4.0), "accounting"),
        ("evaluate", "grpo", 1, "CANCELLED", Held(2.0, 4.0), "accounting"),
        ("evaluate", "srpo", 1, "CANCELLED", Held(2.0, 4.0), "accounting"),
    ]
    jobs, _ = ledger.planned_jobs(PLANNED)
    text = ledger.to_text(ledger.table(entries(tmp_path), jobs, ON_GPUS))
    assert "in all: 19 core-hours of" in text and "6.7 GPU-hours of" in text
    row = next(line for line in text.splitlines() if line.split()[:2] == ["grpo", "2"])
    assert row.split() == ["grpo", "2", "1", "1", "0.67", "0.67", "0.17", "0.17"]


def test_without_accounting_the_ledger_has_benchmarks_and_logs(tmp_path: Path) -> None:
    benchmarks = tmp_path / "results/example/benchmarks"
    slurm_log = tmp_path / "8.log"
    slurm_log.write_text("\nSNAKEMAKE\n  Date: 2026-11-28 17:46:29\n")
    text = rule(10) + submitted(10, 8, str(tmp_path)) + FAILED.format(slurm_log=slurm_log)
    write_log(tmp_path, text + rule(10, second=49) + submitted(10, 12) + finished(10, 20))
    for name, seconds in ((TRAIN, 1800), ("demos/libero_goal", 360)):
        file = benchmarks / f"{name}.tsv"
        file.parent.mkdir(parents=True)
        file.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:30:00\t1\n")
    found = [(e.stage, e.number, e.state, e.seconds, e.cores, e.source) for e in entries(tmp_path)]
    assert sorted(found) == [
        ("demos", 1, "done", 360.0, 1, "benchmark"),  # no log knows it
        ("train", 1, "failed", 20.0, 4, "log"),  # from its start, not from its submission
        ("train", 2, "done", 1800.0, 4, "benchmark"),
    ]
    rows = list(csv.DictReader(ledger.to_csv(entries(tmp_path)).splitlines()))
    assert [row["core_hours"] for row in rows if row["stage"] == "train"] == ["0.0222", "2.0000"]
    # A benchmark file of an earlier try says nothing of this one.
    os.utime(benchmarks / f"{TRAIN}.tsv", (0, 0))
    again = [e for e in entries(tmp_path) if e.stage == "train"][-1]
    assert (again.seconds, again.source) == (None, "unknown")
    assert "not known, and left out of the sums" in ledger.to_text(ledger.table([again], [], ON_GPUS))


def test_a_job_that_snakemake_has_not_seen_end_is_counted_once(tmp_path: Path) -> None:
    """Its benchmark file is there some minutes before."""
    write_log(tmp_path, rule(10) + submitted(10, 8, str(tmp_path)))
    (tmp_path / "8.log").write_text("  Date: 2026-11-28 17:46:29\n")
    file = tmp_path / f"results/example/benchmarks/{TRAIN}.tsv"
    file.parent.mkdir(parents=True)
    file.write_text("s\th:m:s\n60\t0:01:00\n")
    assert [(e.job, e.state, e.source) for e in entries(tmp_path)] == [(TRAIN, "running", "log")]


def test_the_state_of_a_job(tmp_path: Path) -> None:
    jobs, _ = ledger.planned_jobs(PLANNED)
    job = next(job for job in jobs if job.name == TRAIN)
    nowhere = Path("/nowhere")

    def state(text: str, queue: dict[str, Queued] | None = None, results: Path = nowhere) -> str:
        tries = parse(text.splitlines()).tries
        return watch.state_of(job, tries[-1] if tries else None, queue or {}, results)

    at_slurm = rule(10) + submitted(10, 8)
    assert state("") == "waiting"
    assert state(rule(10)) == "running"
    assert state(at_slurm) == "queued"
    assert state(at_slurm, {"8": Queued("PENDING", "Priority")}) == "queued"
    assert state(at_slurm, {"8": Queued("RUNNING", "None")}) == "running"
    assert state(at_slurm + FAILED) == "failed"
    (tmp_path / job.output).mkdir(parents=True)
    assert state(at_slurm, results=tmp_path) == "done"  # and Snakemake has not seen it yet
    assert state(rule(10), results=tmp_path) == "running"  # it is made anew
    assert state(at_slurm, {"8": Queued("RUNNING", "None")}, tmp_path) == "running"


def test_jobs_are_called_as_the_workflow_calls_them() -> None:
    """Their logs, benchmarks and outputs: of each rule one, written out."""
    jobs, _ = ledger.planned_jobs(PLANNED)
    named = {job.rule: (job.name, job.output) for job in reversed(jobs)}
    run = "runs/libero_goal"
    assert named == {
        "demos": ("demos/libero_goal", "demos/libero_goal/data"),
        "world_model": ("world_model/vjepa2-tiny", "world_models/vjepa2-tiny/checkpoint"),
        "sft": ("sft/libero_goal/sft/seed0", f"{run}/sft/seed0/policy"),
        "train": (TRAIN, f"{run}/grpo/seed0/policy"),
        "evaluate": ("evaluate/libero_goal/sft/seed0", f"{run}/sft/seed0/evaluation/episodes.parquet"),
        "plus_shard": ("plus/libero_goal/sft/seed0/shard-0", f"{run}/sft/seed0/plus/shard-0.parquet"),
        "trajectories": ("trajectories/libero_goal", "reward_benchmark/libero_goal/trajectories"),
        "score": ("score/libero_goal/pixel", "reward_benchmark/libero_goal/pixel.parquet"),
    }


HOSTILE = "<script>alert('&')</script>\x1b[2J"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """One training failed, another is at work; the log of the first is hostile."""
    logs = tmp_path / "results/example/logs/train/libero_goal/grpo"
    logs.mkdir(parents=True)
    (logs / "seed0.log").write_text(f"first\n{HOSTILE}\n 40%|####\r100%|##########\n")
    message = f"    message: {HOSTILE}\n"
    failed = f"[Sat Nov 28 17:46:49 2026]\nError in rule train:\n{message}    jobid: 10\n"
    write_log(tmp_path, rule(10) + failed + rule(11, "train/libero_goal/srpo/seed0"))
    metrics = tmp_path / "scratch/example/runs/libero_goal/srpo/seed0/policy/metrics.csv"
    metrics.parent.mkdir(parents=True)
    shutil.copy(ROOT / "results/reference/smoke/runs/libero_spatial/srpo/seed0/metrics.csv", metrics)
    return tmp_path


def test_a_snapshot_has_failures_curves_and_counts(workspace: Path) -> None:
    now = watch.Watcher(PLANNED, workspace).look()
    assert now.states["train"] == {"failed": 1, "running": 1, "queued": 0, "waiting": 0, "done": 0}
    assert now.states["demos"]["waiting"] == 1 and now.count("waiting") == now.jobs - 2
    (failure,) = now.failures
    assert (failure.job, failure.number, failure.again) == (TRAIN, 1, False)
    assert failure.tail == ["first", "<script>alert('&')</script>�[2J", "100%|##########"]
    rows = list(
        csv.DictReader((ROOT / "results/reference/smoke/runs/libero_spatial/srpo/seed0/metrics.csv").open())
    )
    curve = next(curve for curve in now.curves if curve.variant == "srpo")
    assert (
        curve.points == [(int(row["step"]), float(row["success_rate"])) for row in rows] and curve.steps == 3
    )
    text = "\n".join(watch.lines(now))
    assert "FAILED: train/libero_goal/grpo/seed0, try 1" in text and "\x1b" not in text
    assert f"{float(rows[-1]['success_rate']):.0%} at step {rows[-1]['step']} of 3" in text


def test_a_job_that_is_tried_again_has_not_failed(workspace: Path) -> None:
    log = next((workspace / ".snakemake/log").iterdir())
    log.write_text(log.read_text() + rule(10, second=59))
    now = watch.Watcher(PLANNED, workspace).look()
    assert now.states["train"]["failed"] == 0 and now.states["train"]["running"] == 2
    assert [failure.again for failure in now.failures] == [True]
    assert "is tried again: train/libero_goal/grpo/seed0" in "\n".join(watch.lines(now))


def test_logs_elsewhere_are_not_shown(tmp_path: Path) -> None:
    """Neither by a path with `..` nor by a link."""
    logs = tmp_path / "logs"
    logs.mkdir()
    (tmp_path / "secret.log").write_text("secret")
    (logs / "link.log").symlink_to(tmp_path / "secret.log")
    (logs / "own.log").write_text("own\n" * 100)
    assert watch.tail(logs / "own.log", [logs]) == ["own"] * watch.TAIL_LINES
    assert watch.tail(logs / "../secret.log", [logs]) == []
    assert watch.tail(logs / "link.log", [logs]) == []
    assert watch.tail(logs / "missing.log", [logs]) == []


@contextmanager
def served(here: Path) -> Iterator[page.Server]:
    with page.Server(watch.Watcher(PLANNED, here), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def get(address: str) -> tuple[str, dict[str, str]]:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return answer.read().decode(), dict(answer.headers)


def test_the_page_escapes_what_it_shows_and_writes_nothing(workspace: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*")}
    with served(workspace) as server:
        text, headers = get(server.address)
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;�[2J" in text
    assert text.count("<script") == 1 and '<script src="page.js" defer></script>' in text
    assert "\x1b" not in text and "<polyline" in text
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*")} == before


def test_nothing_but_the_page_is_served(workspace: Path) -> None:
    with served(workspace) as server:
        root = f"http://127.0.0.1:{server.server_port}"
        assert "http" not in get(f"{server.address}page.css")[0]
        assert "http" not in get(f"{server.address}page.js")[0]
        wrong = ["", "/", "/x/", "/page.css", f"/{server.word}", f"/{server.word}/../../etc/passwd"]
        wrong += [f"/{server.word}/%2e%2e/results", f"/{server.word}//etc/passwd", f"/{server.word}/?x"]
        for path in wrong:
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(root + path)


def test_a_port_in_use_is_named(workspace: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: Address already in use: give another"):
            page.Server(watch.Watcher(PLANNED, workspace), port)
    with pytest.raises(InputError, match="--port 70000: ports are 0 to 65535"):
        page.Server(watch.Watcher(PLANNED, workspace), 70000)


def test_hours_in_words() -> None:
    words = ["0", "< 0.001", "0.004", "0.23", "2.3", "23", "2,345"]
    assert [ledger.hours(value) for value in (0, 0.0004, 0.004, 0.234, 2.34, 23.4, 2345)] == words


def test_looking_is_quick_on_the_whole_grid(tmp_path: Path) -> None:
    """The paper's preset, in an empty folder: what is done every ten seconds takes less than one."""
    watcher = watch.Watcher(plan(*load_preset("paper")), tmp_path)
    watcher.look()
    start = time.process_time()
    now = watcher.look()
    assert time.process_time() - start < 1 and now.jobs > 700
