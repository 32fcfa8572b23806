# Demonstrations: recorded by the scripted expert, or imported from a folder of LIBERO's own files.
rule demos:
    input:
        config="<results>/demos/{suite}/config.yaml",
    output:
        directory("<results>/demos/{suite}/data"),
    log:
        "<logs>/demos/{suite}.log",
    benchmark:
        "<benchmarks>/demos/{suite}.tsv"
    priority: 3  # before `world_model`: SFT waits for it
    threads: cores("demos")
    resources:
        **request("demos"),
    params:
        scratch=scratch,
    shell:
        "logged {log:q} srpo demos --config {input.config:q} --out {output:q}"
        " --scratch {params.scratch:q} --workers {threads}"
