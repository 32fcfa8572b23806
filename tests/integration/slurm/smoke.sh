#!/usr/bin/env bash
# The smoke preset on the four-node Slurm of these tests, from start to report: ./tests/integration/slurm/smoke.sh
# Options for Snakemake may follow. Interrupted or killed, it goes on when called again.
set -euo pipefail
cd "$(dirname "$0")/../../.."
# Two threads a job: the nodes' cores are those of one machine.
threads=()
for rule in demos sft world_model train evaluate plus_shard trajectories score values; do
    threads+=("$rule=2")
done
export PATH=$PWD/slurm/without-accounting:$PATH
workflow=(snakemake --configfile configs/presets/smoke.yaml)
python tests/support/slurm_cluster.py "${workflow[@]}" --profile slurm --set-threads "${threads[@]}" \
    --jobs 2 --slurm-init-seconds-before-status-checks 5 "$@"
"${workflow[@]}" --report report.html
