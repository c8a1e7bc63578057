"""The life of a run: its folder, checkpoints, log and command line, whatever it learns."""
