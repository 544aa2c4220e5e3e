"""Ours beside the peers, in one run on the same work: `python -m benchmarks [case ...] [--list] [--json FILE]`.

`protocol` says what a case is and how it is measured, `first_order` holds the cases of the Stein equation and of
`jaxnm.first_order`, `__main__` prints the table. A case is a builder, so that nothing is imported or drawn before it
is asked for.
"""
