"""Tests of the life of a run."""
