# The progress-reward benchmark: one set of labelled trajectories, scored under every representation.
rule trajectories:
    input:
        config="<results>/reward_benchmark/{suite}/config.yaml",
        policy=sft_policy,
    output:
        directory("<results>/reward_benchmark/{suite}/trajectories"),
    log:
        "<logs>/trajectories/{suite}.log",
    benchmark:
        "<benchmarks>/trajectories/{suite}.tsv"
    threads: cores("trajectories")
    resources:
        **request("trajectories"),
    params:
        launch=launch("trajectories"),
        workers=workers("trajectories"),
        scratch=scratch,
    shell:
        "logged {log:q} {params.launch:q} reward-benchmark collect --config {input.config:q}"
        " --policy {input.policy:q} --out {output:q} --scratch {params.scratch:q} --workers {params.workers}"


rule score:
    input:
        config="<results>/reward_benchmark/{suite}/config.yaml",
        trajectories="<results>/reward_benchmark/{suite}/trajectories",
        checkpoint=compared_world_model,
    output:
        scores="<results>/reward_benchmark/{suite}/{world_model}.parquet",
        curves="<results>/reward_benchmark/{suite}/{world_model}-curves.parquet",
    log:
        "<logs>/score/{suite}/{world_model}.log",
    benchmark:
        "<benchmarks>/score/{suite}/{world_model}.tsv"
    threads: cores("score")
    resources:
        **request("score"),
    params:
        scratch=scratch,
        checkpoint=lambda wildcards, input: flag(
            "--checkpoint", input.get("checkpoint")
        ),
    shell:
        "logged {log:q} srpo reward-benchmark score --config {input.config:q}"
        " --world-model {wildcards.world_model:q} {params.checkpoint:q}"
        " --trajectories {input.trajectories:q} --scratch {params.scratch:q}"
        " --out {output.scores:q} --curves {output.curves:q}"


# What progress is: the policy's own chance of success along these trajectories, where the preset asks for it.
rule values:
    input:
        config="<results>/values/{suite}/config.yaml",
        policy=sft_policy,
        trajectories="<results>/reward_benchmark/{suite}/trajectories",
    output:
        "<results>/values/{suite}/values.parquet",
    log:
        "<logs>/values/{suite}.log",
    benchmark:
        "<benchmarks>/values/{suite}.tsv"
    threads: cores("values")
    resources:
        **request("values"),
    params:
        launch=launch("values"),
        workers=workers("values"),
        scratch=scratch,
    shell:
        "logged {log:q} {params.launch:q} values --config {input.config:q} --policy {input.policy:q}"
        " --trajectories {input.trajectories:q} --out {output:q} --scratch {params.scratch:q} --workers {params.workers}"
