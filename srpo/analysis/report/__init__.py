"""Pages and folders about whole presets: evidence, paper map, export, comparison, checks."""
