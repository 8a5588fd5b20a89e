"""Checks of a data set: its mistakes, its contents, and the cost of a run on it."""
