"""Processes that do the duties: loop, supervisor, children."""
