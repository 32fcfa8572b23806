# Read by every job's shell before its command.

# Threads that wait for others sleep. By default they spin, which stalls all jobs where cores are shared.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

# logged LOG COMMAND...: run a command and keep what it prints in LOG. On a terminal it is shown as well, through a
# terminal of the command's own, of the same size, so that its progress bars work. Elsewhere (Slurm, CI) the log file
# is enough.
logged() {
    local log=$1 size
    shift
    if [ -t 2 ] && command -v script >/dev/null; then
        size=$(stty size <&2) # rows columns
        [ "${size#* }" -gt 0 ] || size="24 100"
        SHELL=$BASH script --quiet --return --flush \
            --command "stty rows ${size% *} cols ${size#* }; exec $(printf '%q ' "$@")" "$log" </dev/null >&2
    else
        "$@" >"$log" 2>&1 </dev/null
    fi
}

# launch CORES GPUS: how a module is started that uses all of a job's GPUs, one process each. Snakemake gives libraries
# as many threads as the job has cores, and accelerate passes that on to each process; here each gets its share.
launch() {
    local threads
    threads=$(share "$1" "$2")
    if [ "$2" -gt 1 ]; then
        echo env OMP_NUM_THREADS="$threads" MKL_NUM_THREADS="$threads" OPENBLAS_NUM_THREADS="$threads" \
            accelerate launch --multi_gpu --num_machines 1 --num_processes "$2" --mixed_precision no --module srpo
    else
        echo srpo
    fi
}

# share CORES GPUS: a process's share of the job's cores, one at least.
share() {
    local processes=$(($2 > 1 ? $2 : 1))
    echo $(($1 > processes ? $1 / processes : 1))
}

# simulators CORES GPUS: how many a process with so many cores starts: one a core, two where a GPU acts. There most of a
# simulator's time is waiting for the policy, and the more of them wait, the larger the batch that is answered.
simulators() {
    echo $(($1 * ($2 > 0 ? 2 : 1)))
}
