"""The `Task` interface, the registry, and one file per task."""
