"""Figures from daily totals, as text and as a page: ``greycheck stats`` and ``report``."""
