"""Decisions without I/O: pure functions and plain state machines."""
