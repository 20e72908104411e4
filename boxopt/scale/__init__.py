"""Transformations that scale and redirect gradients."""
