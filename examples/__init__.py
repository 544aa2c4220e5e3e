"""Runnable examples. `python -m examples.tour` runs the chapters of the tour.

`optimizer_rates` is the first chapter, on the losses of `problems`.
"""
