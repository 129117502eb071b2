"""The operator's commands: ``main`` gathers them, each group of them has a file."""
