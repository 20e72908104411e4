"""Transformations around a transformation: when it runs, on what, and with which hyperparameters."""
