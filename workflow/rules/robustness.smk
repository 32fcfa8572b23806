# LIBERO-Plus: the official task list, then each run's sweep in shards of many tasks.
rule plus_tasks:
    output:
        tasks="results/libero_plus/tasks.csv",
        data="results/libero_plus/data.zip",
    log:
        "<logs>/plus_tasks.log",
    benchmark:
        "<benchmarks>/plus_tasks.tsv"
    localrule: True
    shell:
        "logged {log:q} srpo libero-plus fetch --out {output.tasks:q} --data {output.data:q}"


rule plus_shard:
    input:
        config="<results>/runs/{suite}/{any_variant}/seed{seed}/plus/config.yaml",
        policy="<results>/runs/{suite}/{any_variant}/seed{seed}/policy",
        tasks=rules.plus_tasks.output.tasks,
        data=rules.plus_tasks.output.data,
        baseline=lambda wildcards: compared_with(
            wildcards, "plus", f"shard-{wildcards.shard}.parquet"
        ),
    output:
        "<results>/runs/{suite}/{any_variant}/seed{seed}/plus/shard-{shard}.parquet",
    log:
        "<logs>/plus/{suite}/{any_variant}/seed{seed}/shard-{shard}.log",
    benchmark:
        "<benchmarks>/plus/{suite}/{any_variant}/seed{seed}/shard-{shard}.tsv"
    # Shards of one sweep need the same files; the profile sets how many share a job.
    group:
        GROUPS["plus_shard"]
    threads: cores("plus_shard")
    resources:
        **request("plus_shard"),
    params:
        launch=launch("plus_shard"),
        workers=workers("plus_shard"),
        scratch=scratch,
        number=lambda wildcards: len(plus_shards(wildcards)),
        baseline=lambda wildcards, input: flag("--baseline", input.get("baseline")),
    shell:
        "logged {log:q} {params.launch:q} evaluate --config {input.config:q} --policy {input.policy:q}"
        " --plus {input.tasks:q} --plus-data {input.data:q} --shard {wildcards.shard}/{params.number} {params.baseline:q}"
        " --out {output:q} --scratch {params.scratch:q} --workers {params.workers}"


rule plus:
    input:
        config="<results>/runs/{suite}/{any_variant}/seed{seed}/plus/config.yaml",
        tasks=rules.plus_tasks.output.tasks,
        shards=plus_shards,
    output:
        "<results>/runs/{suite}/{any_variant}/seed{seed}/plus/episodes.parquet",
    log:
        "<logs>/plus/{suite}/{any_variant}/seed{seed}.log",
    benchmark:
        "<benchmarks>/plus/{suite}/{any_variant}/seed{seed}.tsv"
    localrule: True
    shell:
        "logged {log:q} srpo libero-plus merge --config {input.config:q} --tasks {input.tasks:q}"
        " --out {output:q} {input.shards:q}"
