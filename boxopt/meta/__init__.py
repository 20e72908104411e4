"""Differentiating through optimization: the steps, or the solution."""
