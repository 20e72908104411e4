"""Full-batch bounded solvers, and the driver that runs them on one problem or on a million."""
