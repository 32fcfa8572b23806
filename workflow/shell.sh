# Read by every job's shell before its command.

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

# launch GPUS: how a module is started that uses all of a job's GPUs, one process each.
launch() {
    if [ "$1" -gt 1 ]; then
        echo accelerate launch --multi_gpu --num_machines 1 --num_processes "$1" --mixed_precision no --module
    else
        echo python -m
    fi
}

# share CORES GPUS: a process's share of the job's cores, rounded up.
share() {
    local processes=$(($2 > 1 ? $2 : 1))
    echo $((($1 + processes - 1) / processes))
}
