"""Puzzles as gymnasium environments, with solvers that know the exact distance of every state."""

import gymnasium

for _name, _entry in (("Sokoban-v0", "tfdqt.puzzles.sokoban:Sokoban"),):
    if _name not in gymnasium.registry:
        gymnasium.register(_name, _entry)
