# Evaluation on LIBERO: one row an episode, greedy and sampled ones in files of their own, where the hand went, and a video of each task's first test state.
rule evaluate:
    input:
        config="<results>/runs/{suite}/{any_variant}/seed{seed}/evaluation/config.yaml",
        policy="<results>/runs/{suite}/{any_variant}/seed{seed}/policy",
        baseline=lambda wildcards: compared_with(
            wildcards, "evaluation", "episodes.parquet"
        ),
    output:
        episodes="<results>/runs/{suite}/{any_variant}/seed{seed}/evaluation/episodes.parquet",
        sampled="<results>/runs/{suite}/{any_variant}/seed{seed}/evaluation/sampled.parquet",
        paths="<results>/runs/{suite}/{any_variant}/seed{seed}/evaluation/paths.parquet",
        videos=directory(
            "<results>/runs/{suite}/{any_variant}/seed{seed}/evaluation/videos"
        ),
    log:
        "<logs>/evaluate/{suite}/{any_variant}/seed{seed}.log",
    benchmark:
        "<benchmarks>/evaluate/{suite}/{any_variant}/seed{seed}.tsv"
    priority: 1  # after trainings, before what takes less time
    # The seeds of one variant; how many share a job is up to the profile.
    group:
        GROUPS["evaluate"]
    threads: cores("evaluate")
    resources:
        **request("evaluate"),
    params:
        launch=launch("evaluate"),
        workers=workers("evaluate"),
        scratch=scratch,
        baseline=lambda wildcards, input: flag("--baseline", input.get("baseline")),
    shell:
        "logged {log:q} {params.launch:q} evaluate --config {input.config:q} --policy {input.policy:q} {params.baseline:q}"
        " --out {output.episodes:q} --sampled {output.sampled:q} --paths {output.paths:q} --videos {output.videos:q} --scratch {params.scratch:q} --workers {params.workers}"
