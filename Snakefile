# Targets only: the stages are in workflow/rules/, one file each, and run `srpo` commands.
# The preset is Snakemake's configuration: `snakemake --cores all --configfile configs/presets/mini.yaml`.
from snakemake.utils import min_version

min_version("9.0")


# The files themselves, which a user may edit, and not Snakemake's copies of them.
DEFAULT, IMAGE = (
    workflow.current_basedir.join(name).get_path_or_uri(secret_free=True)
    for name in ("configs/presets/smoke.yaml", "srpo.sif")
)
if not set(config) - {"set"}:

    configfile: DEFAULT


# With `--sdm apptainer` every job runs in it (docs/hpc.md). Without, Snakemake would still refuse a path with a space.
if "apptainer" in map(str, workflow.deployment_settings.deployment_method):

    container: IMAGE


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/config.smk"
include: "workflow/rules/demos.smk"
include: "workflow/rules/checkpoints.smk"
include: "workflow/rules/world_model.smk"
include: "workflow/rules/sft.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/robustness.smk"
include: "workflow/rules/rewards.smk"
include: "workflow/rules/drawings.smk"
include: "workflow/rules/ledger.smk"
include: "workflow/rules/dev.smk"


onstart:
    for marker in Path(RESULTS, "logs").rglob("*.final"):
        marker.unlink()  # of an earlier call: the user may have mended what was wrong
    if not workflow.local_exec:
        watch(Path.cwd(), logger.warning)
    elif any(
        layout.nodes > 1 for layout in (PRESET.parallel.sft, PRESET.parallel.train)
    ):
        raise WorkflowError(
            f"{PRESET_FILES}: parallel.sft.nodes, parallel.train.nodes: more than 1 needs Slurm (snakemake --profile "
            f"slurm --configfile {PRESET_FILES}); else set 1"
        )
    elif PRESET.parallel.on_gpus and "gpu" not in workflow.global_resources:
        raise WorkflowError(
            f"{PRESET_FILES}: parallel: without Slurm nothing divides GPUs between jobs: add --resources gpu=1; jobs of "
            "several GPUs need a call of their own with as many, gpu=0 is for what needs none (docs/hpc.md, What a job "
            "asks for)"
        )


rule all:
    default_target: True
    input:
        drawn(),
        rules.ledger.output,


# With `--sdm conda` every job runs in it, otherwise in the environment that runs Snakemake (common.smk).
for named in workflow.modifier.rules:
    named.conda_env = f"{HERE}/environment.yml"
