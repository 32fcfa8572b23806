# Read by every job's shell before its command.

# Waiting threads sleep. By default they spin, which slows down all jobs that share the cores.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

# logged LOG COMMAND...: run a command and write what it prints to LOG. On a terminal the output is shown as well, and the
# command gets a pseudo-terminal of the same size, so that its progress bars work. A command that another try would not
# help leaves LOG.final (srpo/errors.py); one that was out of memory has that as its log's last line.
logged() {
    local log=$1 size code=0
    shift
    export SRPO_FINAL=$log.final
    rm -f "$SRPO_FINAL"
    if [ -t 2 ] && command -v script >/dev/null; then
        size=$(stty size <&2) # rows columns
        [ "${size#* }" -gt 0 ] || size="24 100"
        SHELL=$BASH script --quiet --return --flush \
            --command "stty rows ${size% *} cols ${size#* }; exec $(printf '%q ' "$@")" "$log" </dev/null >&2 || code=$?
    else
        "$@" >"$log" 2>&1 </dev/null || code=$?
    fi
    [ $code -eq 0 ] || python -m srpo.runtime.out_of_memory >>"$log" || true
    return $code
}

# launch CORES GPUS: the command `srpo`, or what starts it once for each of a job's GPUs. Snakemake sets the libraries'
# threads to the job's cores, and accelerate passes that on to every process, so each process's share is set here.
launch() {
    local threads
    threads=$(share "$1" "$2")
    if [ "$2" -gt 1 ]; then
        echo env OMP_NUM_THREADS="$threads" MKL_NUM_THREADS="$threads" OPENBLAS_NUM_THREADS="$threads" \
            accelerate launch --config_file "${BASH_SOURCE[0]%/*}/../configs/accelerate/multi-gpu.yaml" \
            --num_processes "$2" --module srpo
    else
        echo srpo
    fi
}

# share CORES GPUS: the cores of one process, at least one.
share() {
    local processes=$(($2 > 1 ? $2 : 1))
    echo $(($1 > processes ? $1 / processes : 1))
}

# simulators CORES: the simulators of a process with so many cores (SIMULATORS_PER_CORE: workflow/rules/common.smk).
simulators() {
    echo $(($1 * SIMULATORS_PER_CORE))
}
