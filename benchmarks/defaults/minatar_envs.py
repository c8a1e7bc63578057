"""MinAtar's games as environments, `benchmarks.defaults.minatar_envs:MinAtar/Breakout-v0`.

minatar registers them as a plugin, for which gymnasium looks no more.
"""

from minatar.gym import register_envs

register_envs()
