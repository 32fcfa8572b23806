# What the rules share: the plan of the preset, wildcards, resources, the shell's prelude.
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from srpo.config import STAGES, ConfigError, Preset, validate
from srpo.plus_tasks import count, shards
from srpo.resolve import SFT, plan, to_yaml

ROOT = Path(os.path.relpath(workflow.basedir))
PRESET_FILES = ", ".join(os.path.relpath(file) for file in workflow.configfiles)


def make_plan():
    """Resolve every stage of every run of the preset, so that a mistake shows before any job starts."""
    settings = dict(config)
    overrides = settings.pop("set", [])
    if isinstance(overrides, str):
        overrides = shlex.split(overrides)
    try:
        preset = validate(Preset, settings, PRESET_FILES)
        return plan(preset, PRESET_FILES, ROOT / "configs", overrides)
    except ConfigError as error:
        raise WorkflowError(str(error)) from None


PLAN = make_plan()
PRESET = PLAN.preset


# Every job sees the Python that runs Snakemake, and `logged` (workflow/shell.sh).
shell.prefix(
    f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
    f". {shlex.quote(str(ROOT / 'workflow' / 'shell.sh'))}; "
)


pathvars:
    results=f"results/{PRESET.name}",
    logs=f"results/{PRESET.name}/logs",
    benchmarks=f"results/{PRESET.name}/benchmarks",


def one_of(names):
    return "|".join(re.escape(str(name)) for name in dict.fromkeys(names)) or "(?!)"


wildcard_constraints:
    folder=one_of(PLAN.stages),
    suite=one_of(PRESET.suites),
    variant=one_of(run.variant for run in PLAN.runs(*PLAN.tables) if run.variant != SFT),
    any_variant=one_of([SFT, *(run.variant for run in PLAN.runs(*PLAN.tables))]),
    seed=one_of(PRESET.seeds),
    world_model=one_of(
        [*PRESET.world_models, *(Path(stage).name for stage in PLAN.stages)]
    ),
    shard=r"\d+",


def scratch(wildcards, output):
    """Where a job keeps what it resumes from: outside its outputs, which Snakemake deletes when the job fails."""
    return Path("scratch", *Path(output[0]).parts[1:]).with_suffix("").as_posix()


def stem(wildcards, output):
    """A figure's path without its ending: it is written in several formats."""
    return Path(output.png).with_suffix("").as_posix()


def memory(wildcards, threads, attempt):
    """MB of a job that simulates: 2 GB a process, the policy's share, and more after a failure."""
    return attempt * (4000 + 2000 * threads + 64000 * bool(PRESET.gpus))


def demos_of(wildcards):
    """What SFT learns from, unless it takes a released checkpoint as it is."""
    folder = f"demos/{wildcards.suite}"
    return f"<results>/{folder}/data" if folder in PLAN.stages else []


def sft_policy(wildcards):
    """The policy that a suite's other runs start from."""
    return f"<results>/{PLAN.sft_of(wildcards.suite).folder}/policy"


def pretrained(name):
    """The checkpoint of a world model that the workflow pretrains, if it is one."""
    folder = f"world_models/{name}"
    return [f"<results>/{folder}/checkpoint"] if folder in PLAN.stages else []


def world_model_of(wildcards):
    """The checkpoint that a run's rewards need, if the workflow makes it."""
    stage = PLAN.stages[
        f"runs/{wildcards.suite}/{wildcards.variant}/seed{wildcards.seed}"
    ]
    return pretrained(stage.world_model.name) if stage.world_model else []


def flag(name, values):
    """`name value`, or nothing where there is no value."""
    return [name, *values] if values else []


def runs(table, file):
    """A file of every run that a table shows."""
    return [f"<results>/{run.folder}/{file}" for run in PLAN.tables.get(table, ())]


def sheet(table):
    """The sheet of a table: its variants and their labels."""
    return (
        (ROOT / "configs" / PLAN.sheets[table]).as_posix()
        if table in PLAN.sheets
        else []
    )


def source(path):
    """A file of this repository that a job reads, as a path from where Snakemake runs."""
    return (ROOT / path).as_posix()


def plus_shards(wildcards):
    """The parts of a LIBERO-Plus sweep; how many is known without the task list."""
    folder = f"runs/{wildcards.suite}/{wildcards.any_variant}/seed{wildcards.seed}/plus"
    stage = PLAN.stages[folder]
    total = count(
        stage.suite, stage.tasks, stage.plus.dimensions, stage.plus.per_dimension
    )
    number = shards(total, stage.plus.shard_size)
    return [f"<results>/{folder}/shard-{shard}.parquet" for shard in range(number)]


def scores():
    """The reward benchmark's scores of every suite and representation."""
    return [
        f"<results>/reward_benchmark/{suite}/{name}.parquet"
        for suite in PRESET.suites
        for name in PRESET.world_models
    ]


def shown():
    """The tables and figures of this preset."""
    return [*PLAN.tables, *(["t3"] if PRESET.world_models else [])]


def tables():
    return [f"<results>/tables/{table}.csv" for table in shown()]


def figures():
    return [
        f"<results>/figures/{table}.{kind}"
        for table in shown()
        for kind in ("png", "pdf")
    ]
