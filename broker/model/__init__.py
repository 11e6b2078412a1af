"""The words of DESIGN.md, section 1, as frozen values."""
