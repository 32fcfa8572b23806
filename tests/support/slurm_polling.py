"""snakemake, looking at its Slurm jobs every second: the plugin itself looks ever less often."""

import snakemake_executor_plugin_slurm
from snakemake.cli import main

snakemake_executor_plugin_slurm.Executor.next_seconds_between_status_checks = property(
    lambda self: 1, lambda self, value: None
)

if __name__ == "__main__":
    main()
