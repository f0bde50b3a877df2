"""The processes of a run, the device mesh, and what processes send to each other."""
