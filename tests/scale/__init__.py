"""Tests of what takes a run past one process and one device."""
