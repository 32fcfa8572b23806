"""The plan of a preset before it is submitted: counts, hours, the critical path, measured rates."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from srpo import ROOT
from srpo.cluster import resources
from srpo.cluster.estimate import (
    Throughput,
    allowed,
    critical_path,
    estimate,
    held,
    read_throughput,
    require_tries,
)
from srpo.cluster.jobs import (
    Durations,
    Flop,
    Job,
    Kept,
    all_jobs,
    policy_of,
    scratch_bytes,
    submissions,
    training_flop,
)
from srpo.cluster.operations import policy_forward
from srpo.cluster.plan import (
    Chain,
    Sizes,
    chain_of,
    counting,
    group_sizes,
    main,
    memory_line,
    policy_of_plan,
    published,
    published_step,
    table,
    time_line,
)
from srpo.cluster.speeds import (
    Speeds,
    choose_speeds,
    measured,
    nearest,
    of_peak,
    read_rates,
    read_table,
    shipped,
)
from srpo.config import Branching, ConfigError, Layout, Offline, Parallel, Protocol, TrainStage
from srpo.config.plan import plan
from srpo.config.resolve import load_preset
from srpo.errors import run_command
from srpo.policies.__main__ import POLICIES, read_policy

RATES = {
    (f"libero_{suite}", mode): 100.0
    for suite in ("spatial", "object", "goal", "10")
    for mode in ("exact", "fast")
}
THROUGHPUT = Throughput(Path("rollout.csv"), RATES)
H200 = ROOT / "docs/performance/gpu-h200.csv"


def flat(speed: float) -> Speeds:
    """All kinds of work at one speed."""
    return Speeds("h100", speed, speed, speed, {1: speed}, speed)


def test_what_jobs_ask_for() -> None:
    """Memory grows to twice the first, time to two days."""
    assert [resources.memory_mb(8, 0, attempt) for attempt in (1, 2, 3, 4)] == [20000, 30000, 40000, 40000]
    assert resources.memory_mb(8, 1, 1) == 4000 + 8 * 2 * 2000 + 64000
    assert resources.memory_mb(96, 8, 1) == 4000 + 96 * 2 * 2000 + 64000 + 7 * 20000
    assert [resources.minutes("train", attempt) for attempt in (1, 2, 3)] == [1440, 2880, 2880]


def test_each_kind_of_job_has_its_own_processes() -> None:
    """Those of a preset's entry; one on a GPU where there is no entry, demonstrations excepted."""
    two_nodes = Layout(nodes=2, gpus=8, strategy="fsdp")
    several = Parallel(sft=Layout(gpus=2), train=two_nodes, evaluate=Layout(processes=2))
    asked = {
        rule: (
            resources.cores(rule, several),
            resources.cores_of(rule, several),
            resources.gpus_of(rule, several),
        )
        for rule in resources.REQUESTS
    }
    assert asked == {
        **{"demos": (8, 8, 0), "world_model": (8, 8, 1), "sft": (16, 16, 2), "train": (96, 192, 16)},
        **{"evaluate": (8, 8, 0), "plus_shard": (8, 8, 0), "trajectories": (8, 8, 0)},
        **{"score": (8, 8, 1), "values": (8, 8, 0)},
    }
    assert {resources.gpus_of(rule, Parallel()) for rule in resources.REQUESTS} == {0}
    assert {rule for rule in resources.REQUESTS if resources.cores(rule, Parallel()) == 1} == {
        "demos",
        "sft",
        "world_model",
    }
    assert resources.cores("sft", Parallel(sft=Layout(processes=2))) == 2
    assert resources.cores("sft", Parallel(train=Layout(gpus=8), sft=Layout(processes=2))) == 2


def test_a_gpu_needs_cores_for_its_simulators() -> None:
    eight = Layout(gpus=8)
    with pytest.raises(
        ConfigError, match=r"set-threads: train: 16 cores for 8 GPUs leave each 2, with 4 sim.*32 in all"
    ):
        resources.require_cores("train", eight, 16, "set-threads")
    resources.require_cores("train", eight, 32, "set-threads")
    resources.require_cores("sft", eight, 16, "set-threads")  # simulates nothing
    resources.require_cores("train", Layout(gpus=1), 2, "set-threads")  # has all that there is


def test_a_sites_limit_holds_for_groups_and_later_attempts() -> None:
    sweep = [resources.minutes("plus_shard", attempt, 1440, 13) for attempt in (1, 2, 3)]
    assert sweep == [110, 110, 110]  # 13 in turn: 1,430
    assert [resources.minutes("evaluate", attempt, 1440, 3) for attempt in (1, 2)] == [480, 480]
    assert [resources.minutes("evaluate", attempt, members=3) for attempt in (1, 2, 3)] == [480, 960, 960]
    assert [resources.minutes("train", attempt, 10080) for attempt in (1, 9)] == [1440, 10080]


def test_a_first_time_limit_above_two_days_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(resources.REQUESTS, "train", resources.Request(16, 4000))
    assert [resources.minutes("train", attempt) for attempt in (1, 2)] == [4000, 4000]


def test_where_a_gpu_acts_there_are_two_simulators_a_core() -> None:
    assert [resources.simulators(6, gpus) for gpus in (0, 1, 8)] == [6, 12, 12]


def test_scratch_is_beside_the_results() -> None:
    run = "smoke/runs/libero_goal/grpo/seed0"
    assert resources.scratch_path(f"results/{run}/evaluation/episodes.parquet") == (
        f"scratch/{run}/evaluation/episodes"
    )
    assert resources.scratch_path(f"results/{run}/policy") == f"scratch/{run}/policy"


def test_groups_are_those_of_the_profile() -> None:
    """Snakemake wants their names in both places."""
    assert group_sizes() == {"evaluate_{suite}_{any_variant}": 3, "plus_{suite}_{any_variant}_{seed}": 13}
    assert set(group_sizes()) == set(resources.GROUPS.values())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("retries: 5", "retries: five", "retries: 'five' is not a whole number"),
        ("# - runtime=1440", "- runtime=2d", "resources: runtime, minutes: '2d' is not a whole number"),
        (
            "{any_variant}=3",
            "{any_variant}=x",
            "group-components: evaluate_{suite}_{any_variant}: 'x' is not a whole number",
        ),
    ],
)
def test_a_profile_that_cannot_be_read_is_told(tmp_path: Path, old: str, new: str, message: str) -> None:
    profile = tmp_path / "config.yaml"
    profile.write_text((ROOT / "slurm/config.yaml").read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=re.escape(message)):
        chain_of(profile)
        group_sizes(profile)


def test_a_sweep_is_submitted_in_groups() -> None:
    run = "runs/libero_goal/grpo/seed"
    evaluations = [Job("evaluate", f"{run}{seed}/evaluation") for seed in range(4)]
    sweeps = [Job("plus_shard", f"{run}{seed}/plus/{k}") for seed in range(2) for k in range(14)]
    sizes = dict(zip(resources.GROUPS.values(), (3, 13), strict=True))
    assert submissions([*evaluations, *sweeps, Job("train", f"{run}0")], sizes) == 2 + 2 * 2 + 1
    assert submissions(sweeps, {}) == 28  # without a word on groups each job is one


def test_the_papers_counts() -> None:
    """As Snakemake's own dry run has them, and slurm/README.md."""
    preset, source = load_preset("paper")
    jobs = estimate(plan(preset, source, ROOT / "configs"), THROUGHPUT)
    counts = {rule: sum(job.rule == rule for job in jobs) for rule in resources.REQUESTS}
    assert counts == {
        **{"demos": 4, "world_model": 0, "sft": 4, "train": 168, "evaluate": 172},
        **{"plus_shard": 412, "trajectories": 4, "score": 16, "values": 0},
    }
    assert submissions(jobs, group_sizes()) == 288
    assert f"{len(jobs)} other jobs are 288 submissions" in (ROOT / "slurm/README.md").read_text()
    evaluated = [job for job in jobs if job.rule == "evaluate"]
    assert {job.episodes for job in evaluated} == {500}  # ten tasks from fifty states
    # 500 episodes of 512 steps, 100 steps a second on each of 8 cores
    assert {job.seconds for job in evaluated} == {500 * 512 / 800}
    swept = {}
    for job in jobs:
        if job.rule == "plus_shard" and job.folder.startswith("runs/libero_10/sft/"):
            swept[job.folder] = job.episodes
    assert list(swept.values())[:-1] == [100] * 25  # and the rest


def test_training_episodes_of_the_smoke_preset() -> None:
    preset, source = load_preset("smoke")
    jobs = estimate(plan(preset, source, ROOT / "configs"), THROUGHPUT)
    trained = [job for job in jobs if job.rule == "train"]
    assert {job.episodes for job in trained} == {6 * 12 * 8}  # steps, groups, rollouts


def test_what_stays_of_policies_on_disk() -> None:
    """Weights, and the checkpoint of what is trained: SFT without updates copies its policy."""
    for name, checkpoints in (("smoke", 1), ("paper", 0)):
        planned = plan(*load_preset(name), ROOT / "configs")
        kept, nothing = (estimate(planned, THROUGHPUT, each) for each in (Kept(10, 7), None))
        added = {(job.rule, job.disk - before.disk) for job, before in zip(kept, nothing, strict=True)}
        assert {pair for pair in added if pair[1]} == {("sft", 10 + 7 * checkpoints), ("train", 17)}


def test_pictures_that_a_training_keeps() -> None:
    """One a query, the last one of less than a chunk included, and the world model's frames."""
    planned = plan(*load_preset("smoke"), ROOT / "configs", ["protocol.max_steps=65"])
    stage = next(s for s in planned.stages.values() if isinstance(s, TrainStage) and s.world_model)
    assert stage.world_model is not None
    pictures = 12 * 8 * stage.train.checkpoint_every * (9 + stage.world_model.frames)
    assert scratch_bytes(stage) == pictures * 3 * stage.protocol.image_size**2
    # Beside updates, of three steps where one would do: the next one's, and that after the older checkpoint.
    train = stage.train.model_copy(update={"overlap": 1, "checkpoint_every": 1, "keep_checkpoints": 2})
    beside = stage.model_copy(update={"train": train})
    once = pictures / stage.train.checkpoint_every
    assert scratch_bytes(beside) == 3 * once * 3 * stage.protocol.image_size**2


def test_the_papers_operations() -> None:
    """By hand: a query acts with 4.92 TFLOP, 4.99 with adapters beside the weights, and is learnt from with
    15.09; a video is encoded with 113.8 (`test_operations.py`)."""
    preset, source = load_preset("paper-lora")
    found = plan(preset, source, ROOT / "configs")
    jobs = estimate(found, Throughput(Path("rollout.csv"), RATES, gpu=flat(1e15)))
    by_folder = {job.folder: job for job in jobs}
    # 103 steps of 64 · 8 rollouts of 512 / 8 queries: 3,375,104 queries, 52,736 videos
    grpo, srpo = (by_folder[f"runs/libero_goal/{name}/seed0"] for name in ("grpo", "srpo"))
    assert grpo.flop == pytest.approx((3_375_104 * 4.992e12, 0, 3_375_104 * 15.085e12), rel=1e-3)
    assert srpo.flop == pytest.approx((grpo.flop.act, 52_736 * 113.82e12, grpo.flop.learn), rel=1e-3)
    # Simulation: 52,736 episodes of 512 steps, 100 a second on each of 12 cores; policy: 10^15 a second.
    assert grpo.durations == pytest.approx((22_500.69, 16_849, 0.0, 50_914), rel=1e-3)
    assert grpo.seconds == pytest.approx(22_500.69 + 50_914, rel=1e-3)  # acting hides behind simulation
    # Offline: 512 rollouts acted and encoded once, learnt from in each of 10 passes.
    offline = by_folder["runs/libero_goal/srpo-offline/seed0"]
    assert offline.flop == pytest.approx((32_768 * 4.992e12, 512 * 113.82e12, 327_680 * 15.085e12), rel=1e-3)
    # By steps: what is seen before each of 64 chunks is encoded too.
    stage = found.stages[offline.folder]
    assert isinstance(stage, TrainStage)
    steps = {"offline": Offline(advantage="step", beta=1.0, max_weight=20.0)}
    by_step = stage.model_copy(update={"train": stage.train.model_copy(update=steps)})
    flop = training_flop(by_step, policy_of(found, stage))
    assert flop == pytest.approx((offline.flop.act, 65 * offline.flop.encode, offline.flop.learn))
    # Branches: 3 × 4 of each rollout, half as long on average. They act, and nothing is learned from them.
    stage = found.stages[grpo.folder]
    assert isinstance(stage, TrainStage)
    branching = {"branching": Branching(points=3, branches=4)}
    branched = stage.model_copy(update={"train": stage.train.model_copy(update=branching)})
    flop = training_flop(branched, policy_of(found, stage))
    assert flop == pytest.approx((7 * grpo.flop.act, 0, grpo.flop.learn))
    # Evaluation: 500 episodes of 64 queries, with adapters beside the weights.
    assert by_folder["runs/libero_goal/grpo/seed0/evaluation"].flop.act == pytest.approx(
        32_000 * 4.992e12, rel=1e-3
    )
    # T3: 175 + 75 trajectories, 20 prefixes of each.
    assert by_folder["reward_benchmark/libero_goal/vjepa2-vitg"].flop == pytest.approx(
        (0, 5000 * 113.82e12, 0), rel=1e-3
    )


def test_all_weights_on_several_gpus() -> None:
    """The preset `paper`, with fine-tuning on two nodes of four GPUs."""
    preset, source = load_preset("paper")
    four = Layout(nodes=2, gpus=4, strategy="fsdp")
    preset = preset.model_copy(update={"parallel": preset.parallel.model_copy(update={"sft": four})})
    planned = plan(preset, source, ROOT / "configs", ["sft.updates=10"])
    jobs = estimate(planned, Throughput(Path("rollout.csv"), RATES, gpu=flat(1e15)))
    # 10 updates of 64 queries, all weights with checkpoints: 18.55 TFLOP a query, on eight GPUs
    learnt = [job.durations.learn for job in jobs if job.rule == "sft"]
    assert learnt == pytest.approx([640 * 18.55e12 / 8e15] * 4, rel=1e-3)
    goal = next(job for job in jobs if job.folder == "runs/libero_goal/grpo/seed0")
    assert goal.durations.learn == pytest.approx(3_375_104 * 18.55e12 / 8e15, rel=1e-3)
    assert goal.durations.simulate == pytest.approx(52_736 * 512 / (100 * 96))
    spent = held([goal], preset.parallel)
    assert (spent.gpu, spent.core) == pytest.approx((goal.seconds * 8 / 3600, goal.seconds * 96 / 3600))
    assumed = counting(preset.parallel, policy_of_plan(planned))
    assert any(
        "LOWER BOUND: n GPUs are n times as fast as one (sft on 8, train on 8)" in line for line in assumed
    )
    assert any("float32, which act in that, as fast as measured in bfloat16" in line for line in assumed)
    assert (
        len(counting(Parallel(train=Layout(gpus=1)), read_policy(POLICIES / "openvla-7b.yaml")))
        == len(assumed) - 2
    )


def test_a_training_fits_into_its_tries() -> None:
    """The first of a day, the others of two, or of what the site allows."""
    assert allowed(6) == (1 + 5 * 2) * 86400 and allowed(3, 720) == 3 * 720 * 60
    profile = chain_of()
    assert profile == Chain(6, None)
    for name in ("paper", "paper-lora"):
        require_tries(plan(*load_preset(name), ROOT / "configs"), *profile)
    adapters = plan(*load_preset("paper-lora"), ROOT / "configs")
    # libero_10: 219 steps of 2,785 s, 7.1 days (docs/performance.md)
    with pytest.raises(
        ConfigError, match=r"runs/libero_10/.* takes 7\.1 days or more on 1 h200 .*3 tries.* are 5\.0"
    ):
        require_tries(adapters, 3)
    longer = "the longest training takes 7.1 days, and the 6 tries of slurm/config.yaml have 3.0. TOO LONG"
    assert longer in time_line(7.1 * 86400, Chain(6, 720))
    require_tries(plan(*load_preset("smoke"), ROOT / "configs"), 1, 1)  # of CPUs no speed is known


def test_memory_of_learning() -> None:
    """By hand: 120 GB of weights, gradients and moments; an eighth of it and 15 GB of the copy that acts."""
    policy = read_policy(POLICIES / "openvla-7b.yaml")
    whole = memory_line(120 * 10**9, policy, Layout(gpus=8), "h100")
    assert "by ddp, learning holds 120.0 GB of each h100's 80" in whole and "TOO MUCH" in whole
    sharded = memory_line(120 * 10**9, policy, Layout(gpus=8, strategy="fsdp"), "h100")
    assert "by fsdp, learning holds 30.0 GB of each h100's 80" in sharded and "TOO MUCH" not in sharded
    # Beside updates a copy acts whoever learns: 15 GB more by ddp, none by fsdp, which has it anyway.
    beside = memory_line(16 * 10**9, policy, Layout(gpus=1), "h100", overlap=True)
    assert "learning holds 31.0 GB of each h100's 80: weights, gradients, moments, and the copy" in beside
    assert memory_line(120 * 10**9, policy, Layout(gpus=8, strategy="fsdp"), "h100", True) == sharded


def test_without_gpus_operations_take_no_time() -> None:
    preset, source = load_preset("smoke")
    jobs = estimate(plan(preset, source, ROOT / "configs"), THROUGHPUT)
    assert all(job.flop.learn for job in jobs if job.rule in ("sft", "train"))
    assert all(job.durations == (job.durations.simulate, 0, 0, 0) for job in jobs)


def test_published_steps_beside_the_count() -> None:
    # 64 · 8 · 512 / 8 = 32,768 queries, of 4.92 TFLOP to act and 18.55 to learn from
    assert published_step() == pytest.approx((161.3e15, 0, 607.7e15), rel=1e-3)
    # 769 PFLOP in 45 min of 8 · 312 TFLOP/s: 0.11 of the peak. At 0.4 of 8 · 989: 243 s = 4.0 min, of which
    # 0.8 act. As many operations as ten such steps: 10 · 45 min · 8 GPUs = 60 hours; on an H100, 312 / 989.
    step = sum(published_step())
    lines = published([6 * step, 4 * step], 8, of_peak("h100", 0.4))
    assert lines[1] == "- 8 × a800: 45 min, 11% of the peak"
    assert lines[2] == "- 16 × a800: 23 min, 11% of the peak"
    assert "8 × h100 at the speeds below: act 0.8 + learn 3.2 = 4.0 min, 40% of the peak" in lines[3]
    assert "60 a800-hours, 19 h100-hours; the longest 0.2 days on 8 × a800" in lines[4]  # 6 · 45 min


def test_measured_rates_by_hand() -> None:
    rates = read_rates(read_table(H200))
    # 256 queries in 0.044472 + 7.4416 s, prepared and answered
    assert rates.rollout == pytest.approx(256 / 7.486072)  # 34.20
    # one after the other: prepared at 248.81 a second, answered at 95.029
    assert rates.act == pytest.approx(68.77, rel=1e-3)
    # micro-batches of 32 as in the step, 20.344 a second, not 24.336 alone
    assert rates.learn_adapters == pytest.approx({8: 12.98, 16: 22.027, 32: 20.344})
    assert (rates.learn_all, rates.encode) == pytest.approx((10.426, 3.3591), rel=1e-4)


def test_measured_speeds_by_hand() -> None:
    speeds = measured(H200)
    # A query of 21 tokens of a prompt acts with 4.803 TFLOP, 4.871 with adapters beside the weights, and is
    # learnt from with 14.72, all weights with 18.09; a video is encoded with 113.8.
    assert speeds.rollout == pytest.approx(34.20 * 4.871e12, rel=1e-3)
    assert speeds.act == pytest.approx(68.77 * 4.803e12, rel=1e-3)
    assert speeds.learn_adapters[8] == pytest.approx(12.98 * 14.72e12, rel=1e-3)
    assert speeds.learn_all == pytest.approx(10.426 * 18.09e12, rel=1e-3)
    assert speeds.encode == pytest.approx(3.359 * 113.82e12, rel=1e-3)
    assert speeds.card == "h200"
    # What the script counted of a query is what is counted here.
    merged = read_policy(POLICIES / "openvla-7b.yaml").model_copy(update={"lora": None})
    assert policy_forward(merged, 21).total / 1e12 == pytest.approx(
        read_table(H200).value("act", "tflop_a_query"), rel=1e-4
    )


def test_each_job_goes_at_the_speed_of_its_kind() -> None:
    speeds = Speeds("h200", 1e12, 2e12, 3e12, {8: 4e12, 32: 5e12}, 6e12)

    def ratios(*settings: str) -> dict[str, list[float]]:
        """Operations a second that jobs of a rule are planned with: act, encode, learn."""
        preset, source = load_preset("paper-lora")
        large = preset.parallel.model_copy(update={"gpu_memory": 141})  # takes all weights on one GPU
        preset = preset.model_copy(update={"parallel": large})
        planned = plan(preset, source, ROOT / "configs", settings)
        found = {}
        for job in estimate(planned, Throughput(Path("rollout.csv"), RATES, gpu=speeds)):
            times = zip(job.flop, job.durations[1:], strict=True)
            found[job.rule] = [round(flop / time / 1e12, 6) if time else 0 for flop, time in times]
        return found

    adapters = ratios("sft.updates=10")
    assert adapters["train"] == [1, 3, 5]  # micro-batches of 32
    assert ratios("train.microbatch=8")["train"] == [1, 3, 4]
    assert adapters["sft"] == [0, 0, 5]  # 64 at once, nearest to 32
    assert adapters["evaluate"] == adapters["plus_shard"] == adapters["trajectories"] == [2, 0, 0]
    assert adapters["score"] == [0, 3, 0]
    assert ratios("train.microbatch=16")["train"][2] == 4  # as near to 8 as to 32: the smaller
    whole = ratios("policy.lora=null", "policy.dtype=float32", "sft.updates=10")
    assert (whole["train"], whole["sft"]) == ([2, 3, 6], [0, 0, 6])


def test_nearest_batch() -> None:
    assert nearest({8: 1.0, 16: 2.0}, 11) == 1.0  # 11 / 8 = 1.38, 16 / 11 = 1.45
    assert nearest({8: 1.0, 16: 2.0}, 12) == 2.0  # 1.5, 1.33
    assert nearest({8: 1.0, 16: 2.0}, 1) == 1.0


def test_speeds_by_the_options() -> None:
    assert choose_speeds(None, None, None).card == "h200"
    assert choose_speeds(None, None, None) == choose_speeds("h200", None, None) == measured(H200)
    assert choose_speeds("h100", None, None) == choose_speeds("h100", 0.4, None) == of_peak("h100", 0.4)
    assert choose_speeds(None, 0.4, None).rollout == 0.4 * 989e12
    assert shipped("h100") is None
    with pytest.raises(ConfigError, match="column card has h200, not h100"):
        choose_speeds("h100", None, H200)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("card,call", "gpu,call", "has no rows with card"),
        ("H200,1,act", "B100,1,act", "column card has b100, h200: give one of a100"),
        (",update_qps,", ",qps,", "no row has `step` in column part and `update_qps` in column name"),
        ("update_qps,20.344", "update_qps,fast", "step, update_qps: column value is 'fast', no number"),
        ("lora_qps_16,22.027", "lora_qps_16,0", "update, lora_qps_16: column value is 0, it must be above 0"),
    ],
)
def test_wrong_files_of_measurements(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "gpu.csv"
    file.write_text(H200.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=rf"gpu\.csv: .*{message}"):
        measured(file)


def test_table() -> None:
    jobs = [
        Job(
            "train",
            "a",
            episodes=7,
            flop=Flop(1 * 10**15, 2 * 10**15, 3 * 10**15),
            durations=Durations(3600, 7200, 3600, 3600),
        ),
        Job("demos", "b", episodes=2, durations=Durations(3600)),
    ]
    assert [line.split() for line in table(jobs, Parallel(train=Layout(gpus=2)))[1:]] == [
        # a training: 2 h acting hide 1 h of simulation, 1 h encoding, 1 h learning: 4 h, 2 GPUs, 24 cores
        ["demos", "1", "0", "2", "0.0", "1.0", "0.0", "0.0", "0.0", "0.0", "8.0", "1.00", "0.0"],
        ["train", "1", "2", "7", "6.0", "1.0", "2.0", "1.0", "1.0", "8.0", "96.0", "4.00", "0.0"],
        ["in", "all", "2", "9", "6.0", "2.0", "2.0", "1.0", "1.0", "8.0", "104.0", "4.00", "0.0"],
    ]


def test_the_documentation_shows_what_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = re.search(
        r"\$ srpo plan --preset paper\n(.*?)```",
        (ROOT / "docs/performance.md").read_text(),
        re.DOTALL,
    )
    assert shown is not None
    # As `srpo policy inspect` has it: 7,498 M weights, as many gradients, twice as many moments, of 4 bytes.
    sizes = Sizes(Kept(4 * 7_498_156_704, 12 * 7_498_156_704), learning=16 * 7_498_156_704)
    monkeypatch.setattr("srpo.cluster.plan.policy_sizes", lambda policy: sizes)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["plan", "--preset", "paper"])
    main()
    assert capsys.readouterr().out == shown[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "smoke", "--mfu", "0.5"], "preset smoke has no GPUs"),
        (["--preset", "paper", "--mfu", "40"], "'40' is no share of the peak: give 0.4, say"),
        (["--preset", "paper", "--gpu", "h1000"], "invalid choice: 'h1000'"),
        (["--preset", "smoke", "--measured", "gpu.csv"], "preset smoke has no GPUs"),
        (["--preset", "paper", "--measured", "gpu.csv"], "gpu.csv: No such file or directory"),
        (["--preset", "paper", "--mfu", "0.4", "--measured", "gpu.csv"], "not allowed with argument --mfu"),
    ],
)
def test_wrong_options(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["plan", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert message in f"{ended.value}{capsys.readouterr().err}"


def test_critical_path() -> None:
    def job(rule: str, folder: str, seconds: float, *after: str) -> Job:
        return Job(rule, folder, after, durations=Durations(seconds))

    jobs = [
        job("demos", "a", 10.0),
        job("sft", "b", 5.0, "a"),
        job("train", "c", 1.0, "b", "elsewhere"),
        job("train", "d", 3.0, "b"),
        job("world_model", "e", 17.0),
    ]
    seconds, chain = critical_path(jobs)
    assert seconds == 18.0
    assert [job.folder for job in chain] == ["a", "b", "d"]


def test_throughput_is_read_from_what_was_measured(tmp_path: Path) -> None:
    rollout, metrics = tmp_path / "rollout.csv", tmp_path / "metrics.csv"
    rollout.write_text(
        "suite,loop,measure,value,ratio_to_stock\nlibero_goal,exact,steps_per_second,200.0,9\n"
        "libero_goal,stock,steps_per_second,20.0,1\nlibero_goal,exact,steps_per_core_second,1.0,1\n"
    )
    metrics.write_text("environment_steps,seconds_total\n300,10.0\n100,10.0\n")
    alone, whole = read_throughput(rollout), read_throughput(rollout, metrics)
    assert alone.simulation == {("libero_goal", "exact"): 200.0}
    protocol = Protocol.model_validate(
        {**dict(profile="official", max_steps=100, settle_steps=10, env_seed=0), "image_size": 128}
        | {"render": "exact"}
    )
    assert alone.simulated(4000, "libero_goal", protocol, 4) == 5.0
    assert whole.training == 20.0
    with pytest.raises(ConfigError, match="no steps_per_second of libero_10, loop exact"):
        alone.simulated(1, "libero_10", protocol, 1)
    metrics.write_text("steps\n1\n")
    with pytest.raises(ConfigError, match="has no rows with environment_steps, seconds_total"):
        read_throughput(rollout, metrics)


def test_measured_training_replaces_the_count() -> None:
    preset, source = load_preset("paper")
    measured = Throughput(Path("rollout.csv"), RATES, training=20.0, gpu=flat(1e15))
    jobs = {job.folder: job for job in estimate(plan(preset, source, ROOT / "configs"), measured)}
    # 500 episodes of 512 steps, 20 steps a second
    assert jobs["runs/libero_goal/sft/seed0/evaluation"].durations == (500 * 512 / 20, 0, 0, 0)
    assert jobs["demos/libero_goal"].durations == (500 * 512 / 800, 0, 0, 0)  # no policy
    assert jobs["reward_benchmark/libero_goal/vjepa2-vitg"].durations.encode > 0  # is in no training


def test_an_evaluation_that_may_stop_waits_for_that_of_sft() -> None:
    preset, source = load_preset("smoke")
    planned = plan(preset, source, ROOT / "configs", ["evaluate.stop_early=true"])
    after = {job.folder: job.after for job in all_jobs(planned) if job.rule == "evaluate"}
    sft = "runs/libero_spatial/sft/seed0"
    assert after.pop(f"{sft}/evaluation") == (sft,)
    assert after and all(waits[1] == f"{sft}/evaluation" for waits in after.values())


def test_a_shard_that_may_stop_waits_for_that_of_sft() -> None:
    preset, source = load_preset("smoke")
    planned = plan(preset, source, ROOT / "configs", ["plus.stop_early=true"])
    after = {job.folder: job.after for job in all_jobs(planned) if job.rule == "plus_shard"}
    sft = "runs/libero_spatial/sft/seed0"
    first = [after.pop(folder) for folder in list(after) if folder.startswith(f"{sft}/")]
    assert set(first) == {(sft,)}
    assert after and all(
        waits[1] == f"{sft}/plus/{folder.rpartition('/')[2]}" for folder, waits in after.items()
    )


def test_a_sweep_may_stop_early_only_beside_that_of_sft(tmp_path: Path) -> None:
    preset, source = load_preset("smoke")
    configs = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", configs)
    sheet = configs / "experiments" / f"{preset.tables['t2'].sheet}.tsv"
    sheet.write_text("name\tlabel\trole\tvariant\tset\ngrpo\tGRPO\tbaseline\tgrpo\n")
    plan(preset, source, configs)
    with pytest.raises(ConfigError, match=r"grpo/seed0: plus\.stop_early: .* whose sweep is not in t2"):
        plan(preset, source, configs, ["plus.stop_early=true"])


def test_stopping_early_needs_an_evaluation_to_compare_with() -> None:
    preset, source = load_preset("smoke")
    plan(preset, source, ROOT / "configs", ["evaluate.stop_early=true"])
    tables = {name: table for name, table in preset.tables.items() if name != "t1"}
    with pytest.raises(
        ConfigError, match=r"seed0: evaluate\.stop_early: compares with the suite's sft, which"
    ):
        alone = preset.model_copy(update={"tables": tables})
        plan(alone, source, ROOT / "configs", ["evaluate.stop_early=true"])
