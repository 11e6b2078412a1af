"""Data Request Broker."""
