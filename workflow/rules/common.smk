# What the rules share: the plan of the preset, wildcards, resources, the shell's prelude.
import mimetypes
import shlex
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.jobs import GroupJob, Job
from snakemake.logging import logger

# The workflow's own folder, also where another workflow uses it as a module. Its jobs run its own code.
HERE = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parents[1]
if not Path(HERE, "configs").is_dir():
    raise WorkflowError(
        f"{HERE} is no folder with srpo's configs/: clone srpo, and name the Snakefile of the clone as the module's snakefile"
    )
sys.path.insert(0, str(HERE))

from srpo.analysis.drawings import DRAWINGS, OUTPUTS
from srpo.cluster import processes, resources
from srpo.cluster.estimate import require_tries
from srpo.cluster.jobs import all_jobs
from srpo.cluster.queue import watch
from srpo.cluster.resources import GROUPS, scratch_path, sweep_size
from srpo.config import STAGES, ConfigError, Preset, read_yaml, validate
from srpo.config.layers import split_overrides
from srpo.config.loading import did_you_mean
from srpo.config.plan import plan
from srpo.config.resolve import to_yaml
from srpo.config.stages import SFT
from srpo.libero_plus.tasks import shards

ROOT = Path(os.path.relpath(HERE))
PRESET_FILES = ", ".join(os.path.relpath(file) for file in workflow.configfiles)


def make_plan():
    """Resolve every stage of every run of the preset, so that a mistake shows before any job starts."""
    settings = dict(config)
    overrides = settings.pop("set", "") or ""  # YAML reads `set=` as null
    if not workflow.configfiles and "name" not in settings:
        raise WorkflowError(
            f"--config {' '.join(settings)}: name a preset with --configfile; settings of runs are given as "
            '--config set="train.steps=5"'
        )
    try:
        if not isinstance(overrides, list):
            overrides = split_overrides(str(overrides))
        # Snakemake's own reader takes the last of two equal keys
        for file in workflow.configfiles:
            read_yaml(Path(os.path.relpath(file)))
        preset = validate(Preset, settings, PRESET_FILES)
        return plan(
            preset, PRESET_FILES, ROOT / "configs", list(map(str, overrides)), here=True
        )
    except ConfigError as error:
        raise WorkflowError(str(error)) from None


# For the report, which would complain that it does not know the ending.
mimetypes.add_type("text/plain", ".yaml")
PLAN = make_plan()
PRESET = PLAN.preset
RESULTS = f"results/{PRESET.name}"
GAINS = Path(RESULTS, "tables", "gains.txt")
# The report's first lines; its template sees nothing but the configuration.
config["gains"] = GAINS.read_text().splitlines() if GAINS.is_file() else []


def checkpoint_name(source, revision):
    """The folder of a hub checkpoint below `checkpoints/`, which all presets share."""
    return f"{'--'.join(Path(source).parts)}@{revision or 'newest'}"


def hub_checkpoints():
    """What the plan takes from the hub: folder name → (hub id, revision). Folders that exist stay where they are."""
    sources = [getattr(stage, "policy", None) for stage in PLAN.stages.values()]
    for stage in PLAN.stages.values():
        sources += getattr(stage, "world_models", [getattr(stage, "world_model", None)])
    return {
        checkpoint_name(source.checkpoint, source.revision): (
            source.checkpoint,
            source.revision,
        )
        for source in sources
        if source and source.checkpoint and not Path(source.checkpoint).is_dir()
    }


CHECKPOINTS = hub_checkpoints()


def checkpoint_arguments(source, revision):
    return ["--checkpoint", source, *(["--revision", revision] if revision else [])]


def fetched(source):
    """The folder of a policy's or world model's checkpoint, if it comes from the hub."""
    if not source.checkpoint:
        return []
    name = checkpoint_name(source.checkpoint, source.revision)
    return [f"checkpoints/{name}"] if name in CHECKPOINTS else []


# Every job sees the Python that runs Snakemake, or that of the container or environment that `--sdm` gives it,
# with the command `srpo` of workflow/bin; and the functions of workflow/shell.sh.
DEPLOYED = workflow.deployment_settings.deployment_method
PROGRAMS = HERE / "workflow/bin" if DEPLOYED else Path(sys.executable).parent
shell.prefix(
    f"export PATH={shlex.quote(str(PROGRAMS))}:$PATH; "
    f"export PYTHONPATH={shlex.quote(str(HERE))}${{{{PYTHONPATH:+:$PYTHONPATH}}}}; "
    f". {shlex.quote(str(ROOT / 'workflow' / 'shell.sh'))}; "
)


def retries(kind):
    """Of a job, or of a group of jobs: none after an end that another try would not change (workflow/shell.sh)."""
    usual = kind.restart_times.fget
    return property(
        lambda job: (
            0 if any(Path(f"{log}.final").exists() for log in job.log) else usual(job)
        )
    )


# Snakemake itself knows one number of retries for all failures of a rule.
for kind in (Job, GroupJob):
    kind.restart_times = retries(kind)


pathvars:
    results=RESULTS,
    logs=f"{RESULTS}/logs",
    benchmarks=f"{RESULTS}/benchmarks",


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
    checkpoint=one_of(CHECKPOINTS),


def stage_at(folder):
    """The settings of a stage, whose folder may be what somebody asked for by name."""
    if folder not in PLAN.stages:
        hint = did_you_mean(folder, PLAN.stages)
        raise WorkflowError(f"the preset {PRESET.name} has no {folder}{hint}")
    return PLAN.stages[folder]


def stage_of(folder):
    """The kind of a stage, e.g. `train`."""
    return next(
        kind for kind, model in STAGES.items() if type(stage_at(folder)) is model
    )


def scratch(wildcards, output):
    """The folder of a job's resumable state."""
    return scratch_path(output[0])


LONGEST = workflow.global_resources.get(
    "runtime"
).value  # minutes, as the profile limits them


def members_of(rule):
    """How many of a rule's jobs may share a submission, one after the other; not known before a job asks."""
    return workflow.group_settings.group_components.get(resources.GROUPS.get(rule), 1)


def check_cores():
    """A profile's `set-threads` leave each GPU enough cores."""
    for name, given in workflow.resource_settings.overwrite_threads.items():
        if name in resources.REQUESTS:
            layout = resources.layout_of(name, PRESET.parallel)
            number = int(getattr(given, "value", given))
            try:
                resources.require_cores(name, layout, number, "set-threads")
            except ConfigError as error:
                raise WorkflowError(str(error)) from None


check_cores()


@cache
def check_tries():
    """A training's time fits into its tries. Snakemake knows their number when it has read the rules, to run jobs."""
    settings = workflow.execution_settings
    if settings and settings.retries:
        require_tries(PLAN, 1 + settings.retries, LONGEST)


def cores(rule):
    return resources.cores(rule, PRESET.parallel)


def request(name):
    """The resources of a rule's jobs. Cores and memory are those of a node, GPUs those of all."""
    layout = resources.layout_of(name, PRESET.parallel)

    def memory(wildcards, threads, attempt):
        return resources.memory_mb(threads, layout.gpus, attempt)

    def minutes(wildcards, attempt):
        if name == "train":
            check_tries()
        # The profile's limit `runtime` caps jobs without help, but not the sum of a group's.
        return resources.minutes(name, attempt, LONGEST, members_of(name))

    asked = {"mem_mb": memory, "runtime": minutes, "nodes": layout.nodes}
    if layout.gpus:
        asked["gpu"] = layout.nodes * layout.gpus
    if layout.nodes > 1:
        # Snakemake's plugin starts a job on its first node, and one with `mpi` without a step of Slurm's around
        # it, so that the job itself can start one on all nodes: a task on each, however many GPUs that has.
        asked |= {"mpi": "srun", "tasks": layout.nodes, "tasks_per_gpu": 0}
        if layout.gpus:  # `gpu` alone may give one node more of them than another
            asked["gres"] = f"gpu:{layout.gpus}"
    return asked


def launch(rule):
    """What stands for `srpo` in a rule's command: it, or what starts it in all processes."""

    # A parameter by `threads` is none by which Snakemake decides whether to run a job again.
    def command(wildcards, threads):
        layout = resources.layout_of(rule, PRESET.parallel)
        return processes.job_command(layout, threads)

    return command


def workers(rule):
    """The simulators of each of a rule's processes."""

    def number(wildcards, threads):
        return processes.workers(resources.layout_of(rule, PRESET.parallel), threads)

    return number


def demos_of(wildcards):
    """What SFT learns from, unless it takes a released checkpoint as it is."""
    folder = f"demos/{wildcards.suite}"
    return f"<results>/{folder}/data" if folder in PLAN.stages else []


def sft_checkpoint(wildcards):
    """The checkpoint on the hub that SFT starts from."""
    run = PLAN.sft_of(wildcards.suite)
    return fetched(stage_at(run.folder).policy)


def sft_policy(wildcards):
    """The policy that a suite's other runs start from."""
    return f"<results>/{PLAN.sft_of(wildcards.suite).folder}/policy"


def world_model_checkpoint(world_model):
    """The folder of a world model's checkpoint: pretrained by the workflow, or from the hub, or none."""
    if world_model is None:
        return []
    folder = f"world_models/{world_model.name}"
    if folder in PLAN.stages:
        return [f"<results>/{folder}/checkpoint"]
    return fetched(world_model)


def world_model_of(wildcards):
    """The checkpoint that a run's rewards need."""
    run = f"runs/{wildcards.suite}/{wildcards.variant}/seed{wildcards.seed}"
    return world_model_checkpoint(stage_at(run).world_model)


def compared_world_model(wildcards):
    """The checkpoint of a representation that the reward benchmark compares."""
    compared = stage_at(f"reward_benchmark/{wildcards.suite}").world_models
    named = [model for model in compared if model.name == wildcards.world_model]
    return world_model_checkpoint(*named)


def expert_demos(wildcards):
    """The demonstrations that a run's rewards refer to, if they do."""
    stage = stage_at(f"runs/{wildcards.suite}/{wildcards.variant}/seed{wildcards.seed}")
    fixed = stage.world_model and stage.reward.references == "fixed_expert"
    found = demos_of(wildcards) if fixed else []
    return [found] if found else []


def compared_with(wildcards, stage, rows):
    """SFT's rows of a stage, where a job may stop when its comparison with them is decided."""
    run = f"runs/{wildcards.suite}/{wildcards.any_variant}/seed{wildcards.seed}"
    if not stage_at(f"{run}/{stage}").stops_early:
        return []
    return [f"<results>/{PLAN.sft_of(wildcards.suite).folder}/{stage}/{rows}"]


def flag(name, values):
    """`name value`, or nothing where there is no value."""
    return [name, *values] if values else []


def source(path):
    """A file of this repository that a job reads, as a path from where Snakemake runs."""
    return (ROOT / path).as_posix()


def plus_shards(wildcards):
    """The parts of a LIBERO-Plus sweep; how many is known without the task list."""
    folder = f"runs/{wildcards.suite}/{wildcards.any_variant}/seed{wildcards.seed}/plus"
    stage = stage_at(folder)
    number = shards(sweep_size(stage), stage.plus.shard_size)
    return [f"<results>/{folder}/shard-{shard}.parquet" for shard in range(number)]


# Tables and figures (srpo/analysis/drawings.py).


def drawing_inputs(drawing):
    """What a drawing reads, by option of its command, and the code that draws it."""

    def place(root, path):
        configs = (ROOT / "configs").as_posix()
        folder = {"preset": "<results>", "results": "results", "configs": configs}[root]
        return f"{folder}/{path}"

    def of_suite(paths):
        """Where a rule has the wildcard `suite`, the files of that suite alone."""

        def chosen(wildcards):
            runs, suite = "<results>/runs/", wildcards.get("suite", "")
            return [
                path
                for path in paths
                if path.startswith(f"{runs}{suite}") or not path.startswith(runs)
            ]

        return chosen

    files = drawing.files(PLAN, place)
    for item in drawing.inputs:
        if item.need == "if present":
            files[item.option] = [
                path for path in files[item.option] if Path(path).is_file()
            ]
    named = {
        option.replace("-", "_"): of_suite(paths) for option, paths in files.items()
    }
    return {
        **named,
        "beside": of_suite(drawing.beside(PLAN, place)),
        "code": lambda wildcards: [source(path) for path in drawing.sources()],
    }


def drawing_outputs(drawing):
    """What a drawing writes, by form, with its place in the report."""
    caption = f"../report/{drawing.name}.rst"
    if not Path(HERE, "workflow/rules", caption).is_file():
        caption = None

    def output(form, path):
        if not OUTPUTS[form].label:
            return f"<results>/{path}"
        if form == "folder":
            return report(
                directory(f"<results>/{path}"),
                patterns=["{name}.mp4", "{name}.html"],
                caption=caption,
                category=drawing.category,
                labels={"suite": "{suite}", "episode": "{name}"},
            )
        return report(
            f"<results>/{path}",
            caption=caption,
            category=drawing.category,
            labels={
                drawing.category.lower().removesuffix("s"): drawing.title,
                "form": OUTPUTS[form].label,
            },
        )

    return {form: output(form, path) for form, path in drawing.outputs.items()}


def drawing_arguments(drawing):
    """The command line that draws it."""

    def arguments(wildcards, input):
        files = {
            item.option: list(input.get(item.option.replace("-", "_")))
            for item in drawing.inputs
        }
        return drawing.arguments(files, RESULTS)

    return arguments


def drawing_log(drawing):
    """Where its log and benchmark stand, without folder and ending."""
    name = "{suite}" if "folder" in drawing.writes else drawing.name
    return f"{drawing.category.lower()}/{name}"


def drawn():
    """All that this preset's tables and figures consist of."""
    suites = {run.suite for run in PLAN.tables.get("t1", ())} or PRESET.suites
    paths = [
        f"<results>/{path.format(suite=suite)}"
        for drawing in DRAWINGS
        if drawing.shown(PLAN)
        for path in drawing.outputs.values()
        for suite in sorted(suites)
    ]
    return list(dict.fromkeys(paths))


def stage_outputs():
    """What the submitted jobs write, all of them."""
    return [f"<results>/{job.output}" for job in all_jobs(PLAN)]


def overrides():
    """The settings of `--config set=...`, as options of a command."""
    given = config.get("set") or []
    listed = given if isinstance(given, list) else split_overrides(str(given))
    return flag("--set", list(map(str, listed)))
