"""For root's commands: acting as another user, and reading files that another user may write."""
