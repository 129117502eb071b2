"""Repeatable measurements that print ratios. Nothing here passes or fails by the time it takes."""
