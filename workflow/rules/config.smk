# One config.yaml a run and stage. The settings are parameters and there is no input file: a comment edited in
# configs/ reruns nothing, a changed setting reruns the runs that it changes.
rule config:
    output:
        report(
            "<results>/{folder}/config.yaml",
            caption="../report/config.rst",
            category="Configurations",
            subcategory=lambda wildcards: stage_of(wildcards.folder),
            labels={"of": "{folder}"},
        ),
    log:
        "<logs>/config/{folder}.log",
    benchmark:
        "<benchmarks>/config/{folder}.tsv"
    priority: 4  # first: what jobs are ready is known only then
    localrule: True
    params:
        settings=lambda wildcards: to_yaml(stage_at(wildcards.folder)),
    shell:
        "printf '%s' {params.settings:q} > {output:q} 2> {log:q}"
