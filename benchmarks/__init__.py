"""One module a claim; each runs the peer and the broker in turn, in one run, and reports the ratio first."""
