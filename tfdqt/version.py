"""The version, where packaging and runs read it without loading anything."""

__version__ = "0.2.0"
