"""Games of environments that are not as most are: what is told of them, and how it is drawn."""

import itertools
import tempfile
import unittest

import gymnasium
import numpy as np
from gymnasium import spaces

from tests.games.toys import without_xla
from tfdqt.backend import tf
from tfdqt.games.algorithms import ALGORITHMS
from tfdqt.games.config import NetworkConfig
from tfdqt.games.envs import info_of
from tfdqt.games.flat import flatten_model, with_loops
from tfdqt.games.trained import TrainedRun
from tfdqt.report import film, page
from tfdqt.report.explained import Look, margin_of, picture_of, play_explained, value_rows

SMALL = NetworkConfig(context=2, layers=1, heads=1, width=8)
NUMBERS = itertools.count()  # so that each environment has a name of its own
GREY = np.full((20, 30, 3), 90, np.uint8)


class Plain(gymnasium.Env):
    """Three numbers, five steps."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(3, start=5)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.steps = 0

    def shown(self):
        return np.cos(self.steps + np.arange(3)).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.shown(), {}

    def step(self, action):
        self.steps += 1
        return self.shown(), 1.0, self.steps == 5, False, {}

    def render(self):
        return GREY


class Masked(Plain):
    """In which the second action is never legal; as sb3-contrib says it."""

    def action_masks(self):
        return np.array([1, 0, 1])


class Parts(Plain):
    action_space = spaces.MultiDiscrete([8, 8, 8])


class Odd(Plain):
    """Lives that are no number, rewards that are arrays, pictures of changing size."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, np.array([1.0]), *rest[:-1], {"lives": None}

    def render(self):
        return np.zeros((20 + self.steps, 30, 4), np.uint8)


def pictures(what):
    class Drawn(Plain):
        def render(self):
            if isinstance(what, Exception):
                raise what
            return what

    return Drawn


def run_of(env, algorithm="dqn", network=SMALL):
    """A run that has learned nothing, but whose actions depend on what it sees."""
    name = f"{env.__name__}{next(NUMBERS)}-v0"
    gymnasium.register(name, entry_point=env)
    info = info_of(lambda: gymnasium.make(name), name)
    chosen = ALGORITHMS[algorithm]
    net = flatten_model(chosen.build(info, network), info)
    weights = np.random.default_rng(3).normal(size=net.start.shape) * 0.5
    settings = dict(name=name, network=network)
    return TrainedRun(net, tf.constant(weights, tf.float32), info, chosen, settings, 0)


class TestGames(unittest.TestCase):
    def setUp(self):
        self.enterContext(without_xla())

    def drawn(self, game):
        """Draw all of a game: page and film; -> the page's data."""
        page._timeline_rows(game)
        page._film(game)
        data = page.film_data(game)
        page._json(data)
        if game.frames is not None:
            with tempfile.TemporaryDirectory() as folder:
                film.film_explained(game, folder)
        return data

    def test_actions_that_are_not_legal(self):
        for algorithm in ("dqn", "ppo"):
            with self.subTest(algorithm):
                run = run_of(Masked, algorithm)
                game = play_explained(run)
                self.assertTrue(np.isnan(game.scores[:, 1]).all())
                self.assertTrue(np.isfinite(game.scores[:, [0, 2]]).all())
                self.assertFalse(game.chosen[:, 1].any())
                self.assertGreater(game.maps.values[:, 0].max(), 1e-4)
                self.assertLess(game.maps.values.max(), 1e3)
                self.drawn(game)
        self.assertEqual(value_rows(run, None), [])  # of a policy

    def test_actions_of_many_parts(self):
        for algorithm in ("dqn", "ppo"):
            with self.subTest(algorithm):
                game = play_explained(run_of(Parts, algorithm))
                self.assertEqual(len(game.names), 24)
                self.assertEqual(game.names[9], "1: 1")
                self.assertEqual(game.chosen.reshape(5, 3, 8).sum(axis=2).tolist(), [[1] * 3] * 5)
                if algorithm == "ppo":
                    each = game.scores.reshape(5, 3, 8).sum(axis=2)
                    np.testing.assert_allclose(each, np.ones((5, 3)), rtol=1e-5)
                best = game.scores.reshape(5, 3, 8).argmax(axis=2)
                self.assertEqual(
                    game.chosen.reshape(5, 3, 8).argmax(axis=2).tolist(), best.tolist()
                )
                self.assertEqual(len(self.drawn(game)["chosen"][0]), 3)

    def test_what_environments_may_do(self):
        game = play_explained(run_of(Odd))
        self.assertEqual(game.rewards.tolist(), [1.0] * 5)
        self.assertFalse(game.life_lost.any())
        self.assertTrue(game.ended)
        self.assertEqual(game.names, ("5", "6", "7"))
        self.drawn(game)

    def test_what_is_no_picture_is_left_out(self):
        for what in (None, RuntimeError("no screen"), [1, 2], GREY.astype(float), GREY[0]):
            with self.subTest(what=str(what)[:20]):
                game = play_explained(run_of(pictures(what)), max_steps=2)
                self.assertIsNone(game.frames)
                self.assertIsNone(self.drawn(game)["frames"])
        for shape in ((3, 900, 3), (900, 2, 3)):
            game = play_explained(run_of(pictures(np.zeros(shape, np.uint8))), max_steps=2)
            self.drawn(game)
        self.assertEqual(picture_of(Odd()).shape, (20, 30, 3))

    def test_long_contexts_and_many_blocks_find_room(self):
        long = NetworkConfig(context=80, layers=10, heads=1, width=4)
        game = play_explained(run_of(Plain, network=long), max_steps=2)
        self.assertEqual(game.attention.shape, (2, 10, 80))
        self.drawn(game)

    def test_of_random_loops_those_that_are_run_are_told(self):
        looped = NetworkConfig(context=2, layers=1, heads=1, width=8, loops=3, loops_random=True)
        run = run_of(Plain, network=looped)
        run = run._replace(weights=with_loops(run.net, run.weights, 2))
        self.assertEqual(play_explained(run, max_steps=2).attention.shape[1], 2)

    def test_the_margin_of_a_picture_is_a_number_of_cells(self):
        for margin, known in ((1, 1), (True, None), (-1, None), (10**6, None), ("1", None)):
            env = Plain()
            env.metadata = {"picture_margin": margin}
            self.assertEqual(margin_of(env), known)

    def test_only_what_is_asked_for_is_looked_at(self):
        look = Look(run_of(Plain), whole=False)
        game = play_explained(look.trained, look=look, pictures=False)
        self.assertEqual((game.frames, game.attention, game.maps), (None, None, None))


if __name__ == "__main__":
    unittest.main()
