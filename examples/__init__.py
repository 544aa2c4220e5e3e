"""Runnable examples: `python -m examples.tour` runs the chapters of the tour, of which `optimizer_rates` is the first."""
