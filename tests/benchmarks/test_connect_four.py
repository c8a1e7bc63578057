"""How games of OpenSpiel are counted against opponents that a run was not trained with."""

import importlib.util
import runpy
import unittest
from types import SimpleNamespace

import numpy as np

from tests.helpers import ROOT
from tfdqt.games.config import EnvConfig
from tfdqt.games.envs import info_of
from tfdqt.games.spaces import legal_actions

HAS_OPEN_SPIEL = importlib.util.find_spec("pyspiel") is not None
play = runpy.run_path(str(ROOT / "benchmarks" / "search" / "connect_four" / "play.py"))


@unittest.skipUnless(HAS_OPEN_SPIEL, "requirements-open-spiel.txt is not installed")
class Count(unittest.TestCase):
    def test_what_the_first_legal_move_wins(self):
        options = '{"game": "tic_tac_toe", "player": 0, "opponent": "mcts:5"}'
        settings = dict(name="OpenSpiel-v0", env=EnvConfig(env_options=options))
        info = info_of(play["env_fn_against"](settings, "random"))
        policy = SimpleNamespace(
            trained=SimpleNamespace(settings=settings),
            info=info,
            reset=lambda count: None,
            act=lambda obs, first: np.argmax(legal_actions(info, obs), axis=-1),
        )
        won, drawn, lost, low, high = play["count"](policy, "random", episodes=40, seed=0)
        self.assertEqual(won + drawn + lost, 40)
        self.assertGreater(won, lost)
        self.assertTrue(0 <= low < won / 40 < high <= 1)
        # Who fills the board from its corner is seen through by a search.
        searched = play["count"](policy, "mcts:300", episodes=10, seed=0)
        self.assertEqual(searched[:3], (0, 0, 10))


if __name__ == "__main__":
    unittest.main()
