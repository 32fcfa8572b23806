# Figures that are no tables. Like those, they run where Snakemake runs.


rule f1:
    input:
        curves=scores("-curves"),
        trajectories=expand(
            "<results>/reward_benchmark/{suite}/trajectories", suite=PRESET.suites
        ),
        configs=expand(
            "<results>/reward_benchmark/{suite}/config.yaml", suite=PRESET.suites
        ),
        code=source("srpo/analysis/f1.py"),
    output:
        csv=report(
            "<results>/tables/f1.csv",
            caption="../report/f1.rst",
            category="Figures",
            labels={"figure": "F1: progress along trajectories", "form": "numbers"},
        ),
        png=report(
            "<results>/figures/f1.png",
            caption="../report/f1.rst",
            category="Figures",
            labels={"figure": "F1: progress along trajectories", "form": "picture"},
        ),
        pdf="<results>/figures/f1.pdf",
    log:
        "<logs>/figures/f1.log",
    benchmark:
        "<benchmarks>/figures/f1.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=stem,
        films=lambda wildcards, input: [
            f"{folder}/trajectories.h5" for folder in input.trajectories
        ],
    shell:
        "logged {log:q} python -m srpo.analysis.f1 --curves {input.curves:q} --trajectories {params.films:q}"
        " --csv {output.csv:q} --figure {params.stem:q}"


rule f2:
    input:
        metrics=runs("f2", "metrics.csv"),
        manifests=runs("f2", "manifest.json"),
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
        efficiency=report(
            "<results>/tables/f2-efficiency.csv",
            caption="../report/f2.rst",
            category="Figures",
            labels={"figure": "F2: training efficiency", "form": "how fast"},
        ),
        tex="<results>/tables/f2.tex",
        html=report(
            "<results>/tables/f2.html",
            caption="../report/f2.rst",
            category="Figures",
            labels={"figure": "F2: training efficiency", "form": "table"},
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
        " --efficiency {output.efficiency:q} --tex {output.tex:q} --html {output.html:q}"
        " --csv {output.csv:q} --figure {params.stem:q}"


rule f3:
    input:
        metrics=runs("ablations", "metrics.csv"),
        manifests=runs("ablations", "manifest.json"),
        configs=runs("ablations", "config.yaml"),
        sheet=sheet("ablations"),
        shared=source("srpo/analysis/f2.py"),
        code=source("srpo/analysis/f3.py"),
    output:
        csv=report(
            "<results>/tables/f3.csv",
            caption="../report/f3.rst",
            category="Figures",
            labels={"figure": "F3: representations", "form": "numbers"},
        ),
        efficiency=report(
            "<results>/tables/f3-efficiency.csv",
            caption="../report/f3.rst",
            category="Figures",
            labels={"figure": "F3: representations", "form": "how fast"},
        ),
        tex="<results>/tables/f3.tex",
        html=report(
            "<results>/tables/f3.html",
            caption="../report/f3.rst",
            category="Figures",
            labels={"figure": "F3: representations", "form": "table"},
        ),
        png=report(
            "<results>/figures/f3.png",
            caption="../report/f3.rst",
            category="Figures",
            labels={"figure": "F3: representations", "form": "picture"},
        ),
        pdf="<results>/figures/f3.pdf",
    log:
        "<logs>/figures/f3.log",
    benchmark:
        "<benchmarks>/figures/f3.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=stem,
    shell:
        "logged {log:q} python -m srpo.analysis.f3 --sheet {input.sheet:q} --metrics {input.metrics:q}"
        " --efficiency {output.efficiency:q} --tex {output.tex:q} --html {output.html:q}"
        " --csv {output.csv:q} --figure {params.stem:q}"


rule f4:
    input:
        paths=pair("paths.parquet"),
        sheet=sheet("t1"),
        code=source("srpo/analysis/f4.py"),
    output:
        csv=report(
            "<results>/tables/f4.csv",
            caption="../report/f4.rst",
            category="Figures",
            labels={"figure": "F4: exploration", "form": "numbers"},
        ),
        png=report(
            "<results>/figures/f4.png",
            caption="../report/f4.rst",
            category="Figures",
            labels={"figure": "F4: exploration", "form": "picture"},
        ),
        pdf="<results>/figures/f4.pdf",
    log:
        "<logs>/figures/f4.log",
    benchmark:
        "<benchmarks>/figures/f4.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=stem,
    shell:
        "logged {log:q} python -m srpo.analysis.f4 --sheet {input.sheet:q} --paths {input.paths:q}"
        " --csv {output.csv:q} --figure {params.stem:q}"


rule f5:
    input:
        episodes=runs("ablations", "evaluation/episodes.parquet"),
        configs=runs("ablations", "evaluation/config.yaml"),
        trained=runs("ablations", "config.yaml"),
        sheet=sheet("ablations"),
        code=source("srpo/analysis/f5.py"),
    output:
        csv=report(
            "<results>/tables/f5.csv",
            caption="../report/f5.rst",
            category="Figures",
            labels={"figure": "F5: reward ablations", "form": "numbers"},
        ),
        png=report(
            "<results>/figures/f5.png",
            caption="../report/f5.rst",
            category="Figures",
            labels={"figure": "F5: reward ablations", "form": "picture"},
        ),
        pdf="<results>/figures/f5.pdf",
    log:
        "<logs>/figures/f5.log",
    benchmark:
        "<benchmarks>/figures/f5.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=stem,
    shell:
        "logged {log:q} python -m srpo.analysis.f5 --sheet {input.sheet:q} --episodes {input.episodes:q}"
        " --csv {output.csv:q} --figure {params.stem:q}"


rule headline:
    input:
        metrics=runs("f2", "metrics.csv"),
        configs=runs("f2", "config.yaml"),
        episodes=pairs("episodes.parquet"),
        films=pairs("videos"),
        sheet=sheet("f2"),
        pair=sheet("t1"),
        code=source("srpo/analysis/headline.py"),
    output:
        png=report(
            "<results>/figures/headline.png",
            caption="../report/headline.rst",
            category="Figures",
            labels={"figure": "Before and after", "form": "picture"},
        ),
        pdf="<results>/figures/headline.pdf",
    log:
        "<logs>/figures/headline.log",
    benchmark:
        "<benchmarks>/figures/headline.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        stem=stem,
    shell:
        "logged {log:q} python -m srpo.analysis.headline --sheet {input.sheet:q} --metrics {input.metrics:q}"
        " --pair {input.pair:q} --episodes {input.episodes:q} --figure {params.stem:q}"


rule videos:
    input:
        episodes=lambda wildcards: pair("episodes.parquet", wildcards.suite),
        films=lambda wildcards: pair("videos", wildcards.suite),
        sheet=sheet("t1"),
        code=source("srpo/analysis/videos.py"),
    output:
        report(
            directory("<results>/videos/{suite}"),
            patterns=["{name}.mp4", "{name}.html"],
            caption="../report/videos.rst",
            category="Videos",
            labels={"suite": "{suite}", "episode": "{name}"},
        ),
    log:
        "<logs>/videos/{suite}.log",
    benchmark:
        "<benchmarks>/videos/{suite}.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    shell:
        "logged {log:q} python -m srpo.analysis.videos --sheet {input.sheet:q}"
        " --episodes {input.episodes:q} --out {output:q}"
