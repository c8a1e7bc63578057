"""OpenSpiel's games from one seat: what is seen, who moves, what is paid, what is refused."""

import functools
import importlib.util
import json
import unittest
import unittest.mock

import numpy as np

from tests.helpers import ROOT
from tfdqt.errors import MissingPackage, UsageError
from tfdqt.games import open_spiel
from tfdqt.games.config import EnvConfig
from tfdqt.games.envs import info_of, make_env
from tfdqt.games.exact import state_fault
from tfdqt.games.state import NoState, env_state, restore_env

HAS_OPEN_SPIEL = importlib.util.find_spec("pyspiel") is not None
ROW = ("gymnasium.wrappers:FlattenObservation",)


def make(game, wrappers=(), **options):
    """An OpenSpiel-v0 as the scripts make it."""
    options = json.dumps(dict(game=game, **options))
    return make_env("OpenSpiel-v0", EnvConfig(env_options=options, wrappers=wrappers))


def scripted(*moves):
    """Within the block the other players make these moves."""
    moves = iter(moves)
    play = unittest.mock.Mock(side_effect=lambda state, rng: state.apply_action(next(moves)))
    return unittest.mock.patch.object(open_spiel, "_apply_random", play)


def played(env, seed, steps=60):
    """What is seen, paid and allowed in games of random moves."""
    rng = np.random.default_rng(5)
    obs, info = env.reset(seed=seed)
    seen = [(obs.tobytes(), 0.0, info["player"])]
    for _ in range(steps):
        action = rng.choice(np.flatnonzero(info["action_mask"]))
        obs, reward, over, _, info = env.step(action)
        seen.append((obs.tobytes(), reward, info["player"]))
        if over:
            obs, info = env.reset()
    return seen


class Package(unittest.TestCase):
    def test_who_has_none_is_told_how_to_get_it(self):
        open_spiel_without = unittest.mock.patch.dict("sys.modules", pyspiel=None)
        with (
            open_spiel_without,
            self.assertRaisesRegex(MissingPackage, "requirements-open-spiel.txt"),
        ):
            make("a game that was not loaded before")

    def test_its_lock_has_what_the_main_one_lacks(self):
        def pins(name):
            lines = (ROOT / name).read_text().splitlines()
            return {line.partition("==")[0] for line in lines if not line.startswith("#")}

        extra = pins("requirements-open-spiel.txt")
        self.assertIn("open-spiel", extra)
        self.assertEqual(extra & pins("requirements.txt"), set())


@unittest.skipUnless(HAS_OPEN_SPIEL, "requirements-open-spiel.txt is not installed")
class Games(unittest.TestCase):
    def test_a_game_worked_by_hand_from_the_first_seat(self):
        env = make("tic_tac_toe", player=0)
        with scripted(3, 4):
            obs, info = env.reset(seed=0)
            self.assertEqual((obs.shape, obs.dtype), ((3, 3, 3), np.uint8))
            np.testing.assert_array_equal(obs[..., 0], np.ones((3, 3)))  # all cells are empty
            obs, reward, over, cut, info = env.step(0)
            self.assertEqual((reward, over, cut), (0.0, False, False))
            np.testing.assert_array_equal(info["action_mask"], [0, 1, 1, 0, 1, 1, 1, 1, 1])
            np.testing.assert_array_equal(obs[..., 0], [[0, 1, 1], [0, 1, 1], [1, 1, 1]])
            np.testing.assert_array_equal(obs[..., 1], [[0, 0, 0], [1, 0, 0], [0, 0, 0]])  # o
            np.testing.assert_array_equal(obs[..., 2], [[1, 0, 0], [0, 0, 0], [0, 0, 0]])  # x
            env.step(1)
            obs, reward, over, cut, info = env.step(2)
        self.assertEqual((reward, over, cut), (1.0, True, False))
        self.assertEqual(info["action_mask"].sum(), 0)
        self.assertIn(obs, env.observation_space)

    def test_the_second_seat_is_moved_against_first_and_paid_its_own_return(self):
        env = make("tic_tac_toe", player=1)
        with scripted(0, 1, 2):
            _, info = env.reset(seed=0)
            self.assertEqual(info["player"], 1)
            np.testing.assert_array_equal(info["action_mask"], [0, 1, 1, 1, 1, 1, 1, 1, 1])
            env.step(3)
            _, reward, over, _, _ = env.step(4)
        self.assertEqual((reward, over), (-1.0, True))
        with scripted(0, 1, 8):
            env.reset()
            env.step(3)
            env.step(4)
            _, reward, over, _, _ = env.step(5)
        self.assertEqual((reward, over), (1.0, True))

    def test_both_seats_are_drawn_and_told(self):
        env = make("tic_tac_toe")
        self.assertEqual(env.observation_space.shape, (3, 3, 5))
        seats = set()
        for seed in range(8):
            obs, info = env.reset(seed=seed)
            seats.add(info["player"])
            self.assertTrue((obs[..., 3 + info["player"]] == 1).all())
            self.assertTrue((obs[..., 4 - info["player"]] == 0).all())
        self.assertEqual(seats, {0, 1})

    def test_a_search_takes_the_win_and_ends_as_the_seed_says(self):
        env = make("tic_tac_toe", player=0, opponent="mcts:200")
        for seed in range(3):
            env.reset(seed=seed)
            state = dict(env.unwrapped.get_state(), state="0\n3\n1\n4\n")
            env.unwrapped.set_state(state)
            _, reward, over, _, _ = env.step(8)  # leaves 5 to win by
            self.assertEqual((reward, over), (-1.0, True))

    def test_each_of_several_opponents_has_games_of_its_own(self):
        env = make("tic_tac_toe", opponent="random,mcts:7")
        met = set()
        for seed in range(8):
            env.reset(seed=seed)
            with unittest.mock.patch.object(env.unwrapped, "_search", return_value=8) as search:
                env.unwrapped.set_state(dict(env.unwrapped.get_state(), state="0\n", player=0))
                env.unwrapped._play_others()
            met.add(search.called)
        self.assertEqual(met, {True, False})

    def test_one_seed_is_one_game(self):
        for game, opponent in (
            ("connect_four(rows=4,columns=5)", "random,mcts:5"),
            ("kuhn_poker", "random"),
            ("skat", "random"),  # three players
        ):
            with self.subTest(game):
                one = played(make(game, opponent=opponent), 3)
                self.assertEqual(one, played(make(game, opponent=opponent), 3))
                self.assertNotEqual(one, played(make(game, opponent=opponent), 4))

    def test_a_state_goes_on_elsewhere_as_it_would_have_gone_on(self):
        for game, opponent in (("tic_tac_toe", "random,mcts:3"), ("pig", "random")):  # pig has dice
            with self.subTest(game):
                env_fn = functools.partial(make, game, ROW, opponent=opponent)
                self.assertIsNone(state_fault(env_fn, info_of(env_fn)))
        env = make("tic_tac_toe", player=1)
        with scripted(0, 1):
            env.reset(seed=0)
            state = env_state(env)
            env.step(4)
        other = make("tic_tac_toe", player=1)
        restore_env(other, state)
        self.assertEqual(other.render(), "x..\n...\n...")
        self.assertEqual(env.render(), "xx.\n.o.\n...")
        with self.assertRaisesRegex(NoState, "it is of tic_tac_toe"):
            restore_env(make("hex", player=1), state)

    def test_numbers_of_more_than_two_values_are_floats_in_a_row(self):
        env = make("kuhn_poker", player=1)
        obs, _ = env.reset(seed=0)
        self.assertEqual((obs.shape, obs.dtype), ((7,), np.float32))
        self.assertEqual(make("kuhn_poker").observation_space.shape, (9,))
        env = make("kuhn_poker", player=1, dtype="uint8")
        with self.assertRaisesRegex(ValueError, "float32"):
            for seed in range(20):
                _, info = env.reset(seed=seed)
                while info["action_mask"].any():
                    info = env.step(1)[4]

    def test_an_illegal_action_is_none(self):
        env = make("tic_tac_toe", player=0)
        with scripted(1):
            env.reset(seed=0)
            env.step(0)
        with self.assertRaisesRegex(ValueError, "action 1 is illegal"):
            env.step(1)

    def test_what_can_not_be_played_is_told_in_a_sentence(self):
        for options, sentence in (
            (dict(game="conect_four"), "'conect_four'; did you mean connect_four"),
            (dict(game="?"), "see pyspiel.registered_names"),
            (dict(game="hex(board_size=x)"), "written as in"),
            (dict(game="goofspiel"), r"turn_based_simultaneous_game\(game=goofspiel\(\)\)"),
            (dict(game="hearts"), "no observation tensor"),
            (dict(game="crossword"), "no observation tensor"),
            (dict(game="negotiation"), "draws its chance"),
            (dict(game="hex", player=2), "seat from 0 to 1, or None, not 2"),
            (dict(game="hex", player=True), "seat from 0 to 1"),
            (dict(game="hex", opponent="mcts"), "mcts:100"),
            (dict(game="hex", opponent="mcts:0"), "mcts:100"),
            (dict(game="hex", opponent="mcts:9,best"), "mcts:100"),
            (dict(game="kuhn_poker", opponent="mcts:9"), 'opponent="random"'),
            (dict(game="hex", dtype="int8"), "float32"),
            (dict(game="hex", render_mode="rgb_array"), "as text"),
        ):
            with self.subTest(**options), self.assertRaisesRegex(UsageError, sentence):
                make(**options)


if __name__ == "__main__":
    unittest.main()
