# For developers: the pages and schemas that are generated from the code. A test notices when they are out of date.
rule generated:
    input:
        code=sorted(
            path.as_posix()
            for folder in ("config", "results")
            for path in (ROOT / "srpo" / folder).glob("*.py")
        ),
        base=source("configs/base.yaml"),
    output:
        configuration=source("docs/configuration.md"),
        results=source("docs/results_schema.md"),
        schemas=[
            source(f"workflow/schemas/{name}.schema.json")
            for name in ("preset", "settings", *STAGES)
        ],
    log:
        "<logs>/generated.log",
    benchmark:
        "<benchmarks>/generated.tsv"
    localrule: True
    params:
        schemas=lambda wildcards, output: Path(output.schemas[0]).parent.as_posix(),
    shell:
        "(srpo document configuration --out {output.configuration:q}"
        " && srpo document schemas --out {params.schemas:q}"
        " && srpo document results --out {output.results:q}) 2> {log:q}"
