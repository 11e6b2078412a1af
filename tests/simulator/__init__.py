"""A deterministic simulator of the publishing protocol (DESIGN.md, section 3).

It drives `broker.rules.publishing` itself, through models of Redis and of a store, in random order and with faults. One
schedule is one seed; a checker compares all that happened with the promises P1, P2, P3, P8 and P9. `python -m tests.simulator`.
"""
