# Targets only: the stages are in workflow/rules/, one file each, and run `srpo` commands.
# The preset is Snakemake's configuration: `snakemake --cores all --configfile configs/presets/mini.yaml`.
from snakemake.utils import min_version

min_version("9.0")


if not set(config) - {"set"}:

    configfile: f"{workflow.basedir}/configs/presets/smoke.yaml"


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
include: "workflow/rules/dev.smk"


onstart:
    for marker in Path(RESULTS, "logs").rglob("*.final"):
        marker.unlink()  # of an earlier call: the user may have mended what was wrong
    if not workflow.local_exec:
        watch(Path.cwd(), logger.warning)


rule all:
    default_target: True
    input:
        drawn(),


# Every job runs in the environment that runs Snakemake (`shell.prefix` in common.smk). Lint wants it named for each rule.
for named in workflow.rules:
    named.conda_env = f"{workflow.basedir}/environment.yml"
