"""The tests, by the wing of the package that they test."""
