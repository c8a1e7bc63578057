"""Games of trained runs with and without a tree search, and what their table says."""

import dataclasses
import unittest
from unittest import mock

import games

from tests.benchmarks import call
from tests.games.test_search import MARKOV, always, told
from tests.games.toys import without_xla
from tests.helpers import InFolder
from tfdqt.games.dqn import DQNConfig
from tfdqt.games.envs import info_of, make_env
from tfdqt.runs.log import write_rows


class Games(InFolder):
    def test_a_row_for_each_number_of_simulations_and_none_twice(self):
        run = told(info_of(lambda: make_env("CartPole-v1")), always(5.0, 5.0))
        settings = dict(name="CartPole-v1", algorithm="dqn", seed=3, network=MARKOV)
        run = run._replace(settings=dict(settings, dqn=DQNConfig()))
        args = games.Args(
            runs=("runs/pole",),
            out=self.tmp / "new" / "games.csv",
            simulations=(1, 16),
            episodes=2,
            max_steps=15,
        )
        with (
            without_xla(),
            mock.patch("tfdqt.games.trained.load_run", lambda path: run),
            mock.patch.object(games, "set_threads"),
        ):
            games.measure(args)
            games.measure(dataclasses.replace(args, simulations=(1, 16)))
        rows = games.read_rows(args.out)
        self.assertEqual([row["simulations"] for row in rows], ["1", "16"])
        self.assertEqual([(row["run"], row["seed"]) for row in rows], [("pole", "3")] * 2)
        # The network alone goes to one side, always; looking ahead it stands for longer.
        returns = [float(row["mean_return"]) for row in rows]
        self.assertLess(returns[0], returns[1])

    def test_gains_are_over_the_same_games(self):
        kind = dict(env="E", algorithm="dqn", layers=1, width=8, step=9)
        kind.update(exploration="1.25", max_steps=5)
        returns = {1: {"a": "1 2 3", "b": "5 6"}, 4: {"a": "2 3", "b": "6 7 9"}}
        out = self.tmp / "games.csv"
        write_rows(
            out,
            [
                dict(kind, simulations=number, run=run, returns=each)
                for number, runs in returns.items()
                for run, each in runs.items()
            ],
        )
        said = call(mock.Mock(__name__="games", main=lambda: games.report(games.Args(out=out))))
        self.assertIn("| E dqn 1 x 8, 9 steps, c 1.25, 5 moves at most | 2 |", said)
        self.assertIn("| 4.9, +1.0 [+1.0, +1.0] |", said)


if __name__ == "__main__":
    unittest.main()
