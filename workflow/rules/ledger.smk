# GPU- and core-hours held by stage, variant and try, once all stages are done. Where Snakemake runs: it reads Snakemake's
# own logs and asks Slurm's accounting.
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
        out=lambda wildcards, output: Path(output.preset).parent.as_posix(),
    shell:
        "printf '%s' {params.preset:q} > {output.preset:q}"
        " && logged {log:q} srpo ledger {output.preset:q} {params.settings:q} --out {params.out:q}"
