"""Mutation testing: what the tests say of a library that has been changed in one place."""
