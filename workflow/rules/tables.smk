# Tables, each also as a picture: from the runs' own rows, with published values beside them.
# They are computed in seconds, so they run where Snakemake runs.


rule t1:
    input:
        episodes=runs("t1", "evaluation/episodes.parquet"),
        configs=runs("t1", "evaluation/config.yaml"),
        sheet=sheet("t1"),
        published=source("configs/reference/published.csv"),
        code=source("srpo/analysis/t1.py"),
    output:
        csv=report(
            "<results>/tables/t1.csv",
            caption="../report/t1.rst",
            category="Tables",
            labels={"table": "T1: LIBERO success", "form": "numbers"},
        ),
        tex="<results>/tables/t1.tex",
        html=report(
            "<results>/tables/t1.html",
            caption="../report/t1.rst",
            category="Tables",
            labels={"table": "T1: LIBERO success", "form": "table"},
        ),
        png=report(
            "<results>/figures/t1.png",
            caption="../report/t1.rst",
            category="Tables",
            labels={"table": "T1: LIBERO success", "form": "picture"},
        ),
        pdf="<results>/figures/t1.pdf",
    log:
        "<logs>/tables/t1.log",
    benchmark:
        "<benchmarks>/tables/t1.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=stem,
    shell:
        "logged {log:q} python -m srpo.analysis.t1 --sheet {input.sheet:q} --published {input.published:q}"
        " --episodes {input.episodes:q} --csv {output.csv:q} --tex {output.tex:q} --html {output.html:q} --figure {params.stem:q}"


use rule t1 as ablations with:
    input:
        episodes=runs("ablations", "evaluation/episodes.parquet"),
        configs=runs("ablations", "evaluation/config.yaml"),
        sheet=sheet("ablations"),
        published=source("configs/reference/published.csv"),
        code=source("srpo/analysis/t1.py"),
    output:
        csv=report(
            "<results>/tables/ablations.csv",
            caption="../report/ablations.rst",
            category="Tables",
            labels={"table": "Ablations", "form": "numbers"},
        ),
        tex="<results>/tables/ablations.tex",
        html=report(
            "<results>/tables/ablations.html",
            caption="../report/ablations.rst",
            category="Tables",
            labels={"table": "Ablations", "form": "table"},
        ),
        png=report(
            "<results>/figures/ablations.png",
            caption="../report/ablations.rst",
            category="Tables",
            labels={"table": "Ablations", "form": "picture"},
        ),
        pdf="<results>/figures/ablations.pdf",
    log:
        "<logs>/tables/ablations.log",
    benchmark:
        "<benchmarks>/tables/ablations.tsv"


rule t2:
    input:
        episodes=runs("t2", "plus/episodes.parquet"),
        configs=runs("t2", "plus/config.yaml"),
        sheet=sheet("t2"),
        tasks=rules.plus_tasks.output.tasks,
        published=source("configs/reference/published.csv"),
        code=source("srpo/analysis/t2.py"),
    output:
        csv=report(
            "<results>/tables/t2.csv",
            caption="../report/t2.rst",
            category="Tables",
            labels={"table": "T2: LIBERO-Plus success", "form": "numbers"},
        ),
        tex="<results>/tables/t2.tex",
        html=report(
            "<results>/tables/t2.html",
            caption="../report/t2.rst",
            category="Tables",
            labels={"table": "T2: LIBERO-Plus success", "form": "table"},
        ),
        png=report(
            "<results>/figures/t2.png",
            caption="../report/t2.rst",
            category="Tables",
            labels={"table": "T2: LIBERO-Plus success", "form": "picture"},
        ),
        pdf="<results>/figures/t2.pdf",
    log:
        "<logs>/tables/t2.log",
    benchmark:
        "<benchmarks>/tables/t2.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=stem,
    shell:
        "logged {log:q} python -m srpo.analysis.t2 --sheet {input.sheet:q} --published {input.published:q}"
        " --tasks {input.tasks:q}"
        " --episodes {input.episodes:q} --csv {output.csv:q} --tex {output.tex:q} --html {output.html:q} --figure {params.stem:q}"


rule t3:
    input:
        scores=scores(),
        configs=expand(
            "<results>/reward_benchmark/{suite}/config.yaml", suite=PRESET.suites
        ),
        trajectories=expand(
            "<results>/reward_benchmark/{suite}/trajectories", suite=PRESET.suites
        ),
        published=source("configs/reference/published.csv"),
        code=source("srpo/analysis/t3.py"),
    output:
        csv=report(
            "<results>/tables/t3.csv",
            caption="../report/t3.rst",
            category="Tables",
            labels={"table": "T3: progress rewards", "form": "numbers"},
        ),
        tex="<results>/tables/t3.tex",
        html=report(
            "<results>/tables/t3.html",
            caption="../report/t3.rst",
            category="Tables",
            labels={"table": "T3: progress rewards", "form": "table"},
        ),
        png=report(
            "<results>/figures/t3.png",
            caption="../report/t3.rst",
            category="Tables",
            labels={"table": "T3: progress rewards", "form": "picture"},
        ),
        pdf="<results>/figures/t3.pdf",
    log:
        "<logs>/tables/t3.log",
    benchmark:
        "<benchmarks>/tables/t3.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=stem,
    shell:
        "logged {log:q} python -m srpo.analysis.t3 --published {input.published:q}"
        " --scores {input.scores:q} --csv {output.csv:q} --tex {output.tex:q} --html {output.html:q} --figure {params.stem:q}"


rule t3_distributions:
    input:
        scores=scores(),
        configs=expand(
            "<results>/reward_benchmark/{suite}/config.yaml", suite=PRESET.suites
        ),
        code=source("srpo/analysis/t3_distributions.py"),
    output:
        csv=report(
            "<results>/tables/t3_distributions.csv",
            caption="../report/t3_distributions.rst",
            category="Tables",
            labels={"table": "T3: distributions", "form": "numbers"},
        ),
        png=report(
            "<results>/figures/t3_distributions.png",
            caption="../report/t3_distributions.rst",
            category="Tables",
            labels={"table": "T3: distributions", "form": "picture"},
        ),
        pdf="<results>/figures/t3_distributions.pdf",
    log:
        "<logs>/tables/t3_distributions.log",
    benchmark:
        "<benchmarks>/tables/t3_distributions.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=stem,
    shell:
        "logged {log:q} python -m srpo.analysis.t3_distributions --scores {input.scores:q}"
        " --csv {output.csv:q} --figure {params.stem:q}"


rule t3_truth:
    input:
        curves=scores("-curves"),
        rewards=runs("ablations", "rewards.parquet"),
        trained=runs("ablations", "config.yaml"),
        trajectories=expand(
            "<results>/reward_benchmark/{suite}/trajectories", suite=PRESET.suites
        ),
        configs=expand(
            "<results>/reward_benchmark/{suite}/config.yaml", suite=PRESET.suites
        ),
        code=source("srpo/analysis/t3_truth.py"),
    output:
        csv=report(
            "<results>/tables/t3_truth.csv",
            caption="../report/t3_truth.rst",
            category="Tables",
            labels={"table": "T3: are rewards right?", "form": "numbers"},
        ),
        tex="<results>/tables/t3_truth.tex",
        html=report(
            "<results>/tables/t3_truth.html",
            caption="../report/t3_truth.rst",
            category="Tables",
            labels={"table": "T3: are rewards right?", "form": "table"},
        ),
        png=report(
            "<results>/figures/t3_truth.png",
            caption="../report/t3_truth.rst",
            category="Tables",
            labels={"table": "T3: are rewards right?", "form": "picture"},
        ),
        pdf="<results>/figures/t3_truth.pdf",
    log:
        "<logs>/tables/t3_truth.log",
    benchmark:
        "<benchmarks>/tables/t3_truth.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=stem,
    shell:
        "logged {log:q} python -m srpo.analysis.t3_truth --curves {input.curves:q} --rewards {input.rewards:q}"
        " --csv {output.csv:q} --tex {output.tex:q} --html {output.html:q} --figure {params.stem:q}"


rule gains:
    input:
        metrics=runs("f2", "metrics.csv"),
        sheet=sheet("f2"),
        episodes=runs("t1", "evaluation/episodes.parquet"),
        configs=[*runs("f2", "config.yaml"), *runs("t1", "evaluation/config.yaml")],
        pair=sheet("t1"),
        code=source("srpo/analysis/gains.py"),
    output:
        csv=report(
            "<results>/tables/gains.csv",
            caption="../report/gains.rst",
            category="Tables",
            labels={"table": "What training changed", "form": "numbers"},
        ),
        text=GAINS,
    log:
        "<logs>/tables/gains.log",
    benchmark:
        "<benchmarks>/tables/gains.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    shell:
        "logged {log:q} python -m srpo.analysis.gains --sheet {input.sheet:q} --metrics {input.metrics:q}"
        " --pair {input.pair:q} --episodes {input.episodes:q} --csv {output.csv:q} --text {output.text:q}"
