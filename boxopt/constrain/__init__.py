"""Transformations that keep parameters allowed, or draw them there."""
