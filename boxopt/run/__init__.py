"""Running steps: compiled, donated."""
