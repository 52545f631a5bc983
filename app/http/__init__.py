"""The HTTP layer: turn requests into the service's objects, and those into answers."""
