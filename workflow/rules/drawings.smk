# Tables and figures: a rule for each entry of srpo/analysis/drawings.py. They are computed in seconds from the runs'
# own rows, so they run where Snakemake runs.
for drawing in DRAWINGS:

    rule:
        name:
            drawing.name
        input:
            **drawing_inputs(drawing),
        output:
            **drawing_outputs(drawing),
        log:
            f"<logs>/{drawing_log(drawing)}.log",
        benchmark:
            f"<benchmarks>/{drawing_log(drawing)}.tsv"
        localrule: True
        params:
            arguments=drawing_arguments(drawing),
        shell:
            "logged {log:q} srpo draw {params.arguments:q}"
