"""Random programs, run in every mode, of which all must agree: ``python -m tests.fuzz --minutes 5``."""
