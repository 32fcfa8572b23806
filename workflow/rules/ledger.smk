# GPU- and core-hours held by stage, variant and try, once all stages are done. Where Snakemake runs: it reads Snakemake's
# own logs and asks Slurm's accounting.
def stage_outputs():
    """What the submitted jobs write, all of them."""
    stages = PLAN.stages.items()
    jobs = [job for folder, stage in stages for job in jobs_of(PLAN, folder, stage, 0)]
    return [f"<results>/{job.output}" for job in jobs]


def overrides():
    """The settings of `--config set=...`, as options of a command."""
    given = config.get("set") or []
    listed = given if isinstance(given, list) else split_overrides(str(given))
    return flag("--set", list(map(str, listed)))


rule ledger:
    input:
        stage_outputs(),
    output:
        preset="<results>/preset.yaml",
        csv=report(
            "<results>/tables/ledger.csv",
            caption="../report/ledger.rst",
            category="Tables",
            labels={"table": "Hours held", "form": "numbers"},
        ),
        html=report(
            "<results>/tables/ledger.html",
            caption="../report/ledger.rst",
            category="Tables",
            labels={"table": "Hours held", "form": "table"},
        ),
    log:
        "<logs>/tables/ledger.log",
    benchmark:
        "<benchmarks>/tables/ledger.tsv"
    localrule: True
    params:
        preset=to_yaml(PRESET),
        settings=overrides(),
        out=RESULTS,
    shell:
        "printf '%s' {params.preset:q} > {output.preset:q}"
        " && logged {log:q} srpo ledger {output.preset:q} {params.settings:q} --out {params.out:q}"
