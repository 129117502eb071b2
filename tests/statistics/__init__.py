"""Tests of greycheck/statistics."""
