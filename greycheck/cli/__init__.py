"""The operator's commands. ``main`` collects them; each group of commands has a file."""
