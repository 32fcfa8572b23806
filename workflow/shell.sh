# Read by every job's shell before its command.

# Threads that wait sleep, after some tens of microseconds: not at once, since most waits are shorter, and not after milliseconds,
# as by default, which slows down all jobs that share the cores.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-3000}

# killed_for_memory [GROUPS [ROOT]]: how many processes of this control group the kernel has killed for memory. Outside Slurm
# jobs share a group, so it also counts those of others.
killed_for_memory() {
    local own=${1:-/proc/self/cgroup} root=${2:-/sys/fs/cgroup} kinds path
    while IFS=: read -r _ kinds path; do
        case ",$kinds," in
        ,,) sed -n 's/^oom_kill //p' "$root$path/memory.events" ;;
        *,memory,*) sed -n 's/^oom_kill //p' "$root/memory$path/memory.oom_control" ;;
        esac
    done 2>/dev/null <"$own" || true
}

# logged LOG COMMAND...: run a command and write what it prints to LOG. On a terminal the output is shown as well, and the
# command gets a pseudo-terminal of the same size, so that its progress bars work. A command that another try would not
# help leaves LOG.final (srpo/errors.py); one that was out of memory has that as its log's last line.
logged() {
    local log=$1 size kills code=0
    shift
    kills=$(killed_for_memory)
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
    [ $code -eq 0 ] || [ "$(killed_for_memory)" = "$kills" ] || python -m srpo.runtime.out_of_memory >>"$log" || true
    return $code
}
