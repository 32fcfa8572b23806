# Supervised fine-tuning: one run a suite, which all of the suite's other runs start from.
rule sft:
    input:
        config=f"<results>/runs/{{suite}}/{SFT}/seed{{seed}}/config.yaml",
        demos=demos_of,
        checkpoint=sft_checkpoint,
    output:
        policy=directory(f"<results>/runs/{{suite}}/{SFT}/seed{{seed}}/policy"),
        metrics=f"<results>/runs/{{suite}}/{SFT}/seed{{seed}}/metrics.csv",
        manifest=f"<results>/runs/{{suite}}/{SFT}/seed{{seed}}/manifest.json",
    log:
        f"<logs>/sft/{{suite}}/{SFT}/seed{{seed}}.log",
    benchmark:
        f"<benchmarks>/sft/{{suite}}/{SFT}/seed{{seed}}.tsv"
    threads: cores("sft")
    resources:
        **request("sft"),
    params:
        launch=launch("sft"),
        demos=f"results/{PRESET.name}/demos/{{suite}}/data",
        out=subpath(output.policy, parent=True),
        scratch=scratch,
        checkpoint=lambda wildcards, input: flag(
            "--checkpoint", input.get("checkpoint")
        ),
    shell:
        "logged {log:q} {params.launch:q} sft --config {input.config:q} --demos {params.demos:q}"
        " {params.checkpoint:q} --out {params.out:q} --scratch {params.scratch:q}"
