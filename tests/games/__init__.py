"""Tests of the wing of games."""
