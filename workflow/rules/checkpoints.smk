# Checkpoints from the hub, by revision, checked: on the head node, which has internet, for jobs that have none.
rule checkpoint:
    output:
        directory("checkpoints/{checkpoint}"),
    log:
        "checkpoints/{checkpoint}.log",
    benchmark:
        "checkpoints/{checkpoint}.tsv"
    localrule: True
    params:
        source=lambda wildcards: checkpoint_arguments(
            *CHECKPOINTS[wildcards.checkpoint]
        ),
    shell:
        "logged {log:q} srpo download {params.source:q} --out {output:q}"
