# Reinforcement learning: SRPO, online and offline, and GRPO, which needs no world model. A job that is killed goes on
# from its scratch.
rule train:
    input:
        config="<results>/runs/{suite}/{variant}/seed{seed}/config.yaml",
        policy=sft_policy,
        world_model=world_model_of,
        demos=expert_demos,
    output:
        policy=directory("<results>/runs/{suite}/{variant}/seed{seed}/policy"),
        metrics="<results>/runs/{suite}/{variant}/seed{seed}/metrics.csv",
        tasks="<results>/runs/{suite}/{variant}/seed{seed}/tasks.csv",
        rewards="<results>/runs/{suite}/{variant}/seed{seed}/rewards.parquet",
        manifest="<results>/runs/{suite}/{variant}/seed{seed}/manifest.json",
    log:
        "<logs>/train/{suite}/{variant}/seed{seed}.log",
    benchmark:
        "<benchmarks>/train/{suite}/{variant}/seed{seed}.tsv"
    priority: 2  # longest first
    threads: cores("train")
    resources:
        **request("train"),
    params:
        launch=launch("train"),
        workers=workers("train"),
        out=subpath(output.policy, parent=True),
        scratch=scratch,
        world_model=lambda wildcards, input: flag(
            "--world-model", input.get("world_model")
        ),
        demos=lambda wildcards, input: flag("--demos", input.get("demos")),
    shell:
        "logged {log:q} {params.launch:q} train --config {input.config:q} --policy {input.policy:q}"
        " {params.world_model:q} {params.demos:q} --out {params.out:q} --scratch {params.scratch:q}"
        " --workers {params.workers}"
