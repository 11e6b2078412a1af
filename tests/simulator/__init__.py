"""A deterministic simulator of publishing, of the change log and of channels (DESIGN.md, sections 3, 6 and 7).

It drives the product's own code through models of Redis and of a store, in random order and with faults: the state machine of
`broker.rules.publishing` in one world; `ChangeLog` and `MicroBatcher`, `Channels` and `Retention` in two others, as fibres that
stop at each effect. One schedule is one seed; a checker compares all that happened with the promises P1, P2, P3, P5 and P8 to
P10. `python -m tests.simulator`.
"""
