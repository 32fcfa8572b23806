# For developers: what is generated from srpo/config/__init__.py and configs/base.yaml. A test notices when it is out of date.
rule generated:
    input:
        code=source("srpo/config/__init__.py"),
        base=source("configs/base.yaml"),
    output:
        docs=source("docs/configuration.md"),
        schemas=[
            source(f"workflow/schemas/{name}.schema.json")
            for name in ("preset", "settings", *STAGES)
        ],
    log:
        "<logs>/generated.log",
    benchmark:
        "<benchmarks>/generated.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        schemas=lambda wildcards, output: Path(output.schemas[0]).parent.as_posix(),
    shell:
        "srpo document docs > {output.docs:q} 2> {log:q}"
        " && srpo document schemas {params.schemas:q} 2>> {log:q}"
