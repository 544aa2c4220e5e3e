"""Runnable examples. `python -m examples.tour` runs the chapters of the tour.

`optimizer_rates` is the first chapter, on the losses of `problems`; `certified_rates` is the second.
`gallery` repeats the experiments of arXiv:2310.15880 and checks what they show: `python -m examples.gallery`.
`certificates` maps, designs by and writes down certified rates: `python -m examples.certificates`.
`edge_of_stability` trains a network up to the stability limit of its optimizer: `python -m examples.edge_of_stability`.
"""
