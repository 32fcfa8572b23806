# Figures that are no tables. Like those, they run where Snakemake runs.
rule f2:
    input:
        metrics=runs("f2", "metrics.csv"),
        configs=runs("f2", "config.yaml"),
        sheet=sheet("f2"),
        code=source("srpo/analysis/f2.py"),
    output:
        csv=report(
            "<results>/tables/f2.csv",
            caption="../report/f2.rst",
            category="Figures",
            labels={"figure": "F2: training efficiency", "form": "numbers"},
        ),
        png=report(
            "<results>/figures/f2.png",
            caption="../report/f2.rst",
            category="Figures",
            labels={"figure": "F2: training efficiency", "form": "picture"},
        ),
        pdf="<results>/figures/f2.pdf",
    log:
        "<logs>/figures/f2.log",
    benchmark:
        "<benchmarks>/figures/f2.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=stem,
    shell:
        "logged {log:q} python -m srpo.analysis.f2 --sheet {input.sheet:q} --metrics {input.metrics:q}"
        " --csv {output.csv:q} --figure {params.stem:q}"
