"""Operators' rules: how they are written, checks of them, an index of them in memory. No SQL."""
