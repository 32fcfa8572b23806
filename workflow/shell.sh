# Read by every job's shell before its command.

# logged LOG COMMAND...: run a command and keep what it prints in LOG. On a terminal it is shown as well, through a
# terminal of the command's own, so that its progress bars work; elsewhere (Slurm, CI) the log file is enough.
logged() {
    local log=$1
    shift
    if [ -t 2 ] && command -v script >/dev/null; then
        SHELL=$BASH script --quiet --return --flush --command "$(printf '%q ' "$@")" "$log" </dev/null >&2
    else
        "$@" >"$log" 2>&1 </dev/null
    fi
}
