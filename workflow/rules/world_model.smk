# World models that have no released weights: pretrained here, on play in scenes that are never evaluated.
rule world_model:
    input:
        config="<results>/world_models/{world_model}/config.yaml",
    output:
        directory("<results>/world_models/{world_model}/checkpoint"),
    log:
        "<logs>/world_model/{world_model}.log",
    benchmark:
        "<benchmarks>/world_model/{world_model}.tsv"
    priority: 2  # where SFT takes two cores of two (`make demo`), it waits for it
    threads: cores("world_model")
    resources:
        **request("world_model"),
    params:
        scratch=scratch,
    shell:
        "logged {log:q} srpo pretrain --config {input.config:q} --out {output:q}"
        " --scratch {params.scratch:q} --workers {threads}"
