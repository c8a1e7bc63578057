"""Puzzles as gymnasium environments, with solvers that know the exact distance of every state."""

import gymnasium

gymnasium.register("Sokoban-v0", "tfdqt.puzzles.sokoban:Sokoban")
gymnasium.register("RushHour-v0", "tfdqt.puzzles.rush_hour:RushHour")
gymnasium.register("LightsOut-v0", "tfdqt.puzzles.lights_out:LightsOut")
