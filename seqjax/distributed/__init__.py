"""Processes, the device mesh, and what is sent between processes."""
