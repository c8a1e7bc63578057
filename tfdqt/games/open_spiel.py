"""Any turn-based game of OpenSpiel (Lanctot et al., 2019) as an environment.

One seat learns; the others are played inside of `step`. Alone imports pyspiel, which is installed
apart, and only when a game is made.
"""

import difflib
import functools
import re

import gymnasium
import numpy as np
from gymnasium import spaces

from tfdqt.errors import MissingPackage, UsageError, sentence_of

UCT_C = 2.0  # exploration of the opponent's search, as in OpenSpiel's own example
SEARCH_MB = 1_000  # of the tree of one search
MOST_RESETS = 1_000  # draws of a game in which the learner is ever to move
LOOKED_AT = 1_000  # observations by which is seen whether all numbers are 0 or 1


def import_pyspiel():
    """OpenSpiel's module. Raises MissingPackage if it is not installed."""
    try:
        import pyspiel
    except ImportError:
        raise MissingPackage(
            "OpenSpiel's games need its package; install it with: pip install --no-deps -r "
            'requirements-open-spiel.txt, or outside of a checkout: pip install "open_spiel>=2,<3"'
        ) from None
    return pyspiel


@functools.lru_cache
def load_game(text):
    """The turn-based game of OpenSpiel that `text` names: "hex" or "hex(board_size=5)".

    Raises UsageError for a game that is not known, with the nearest names, or that can't be learned
    here, with why.
    """
    pyspiel = import_pyspiel()
    name = text.partition("(")[0].strip()
    known = pyspiel.registered_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see pyspiel.registered_names()."
        raise UsageError(f"OpenSpiel has no game called {name!r}; {hint}")
    try:
        game = pyspiel.load_game(text)
    except Exception as error:  # of several kinds, by game
        raise UsageError(
            f"OpenSpiel can't make game={text!r} ({sentence_of(error):.200}); parameters are "
            "written as in 'hex(board_size=5)'."
        ) from None
    kind = game.get_type()
    if kind.dynamics != pyspiel.GameType.Dynamics.SEQUENTIAL:
        whole = text if "(" in text else f"{text}()"
        raise UsageError(
            f"The players of {name} do not move one after another; choose a turn-based game, or "
            f"make it one by game='turn_based_simultaneous_game(game={whole})'."
        )
    if kind.chance_mode == pyspiel.GameType.ChanceMode.SAMPLED_STOCHASTIC:
        raise UsageError(
            f"{name} draws its chance where neither seeds nor saved states reach it; choose a game "
            "whose chance is explicit."
        )
    try:
        shape = game.observation_tensor_shape() if kind.provides_observation_tensor else []
    except RuntimeError:  # some say so and have none
        shape = []
    if not shape:
        raise UsageError(f"{name} has no observation tensor to learn from; choose another game.")
    return game


@functools.lru_cache
def has_only_bits(text):
    """Whether all numbers of a game's observations are 0 or 1, as far as random play shows."""
    game = load_game(text)
    rng = np.random.default_rng(0)
    state = game.new_initial_state()
    for _ in range(LOOKED_AT):
        over = state.is_terminal()
        if over or not state.is_chance_node():
            players = range(game.num_players()) if over else [state.current_player()]
            for player in players:
                if not _are_bits(np.array(state.observation_tensor(player))):
                    return False
        if over:
            state = game.new_initial_state()
        else:
            _apply_random(state, rng)
    return True


def _are_bits(numbers):
    return bool(((numbers == 0) | (numbers == 1)).all())


def _apply_random(state, rng):
    """A random legal action, or an outcome of chance by its probability."""
    if state.is_chance_node():
        outcomes, chances = zip(*state.chance_outcomes())
        chances = np.array(chances)
        state.apply_action(int(rng.choice(outcomes, p=chances / chances.sum())))
    else:
        legal = state.legal_actions()
        state.apply_action(int(legal[rng.integers(len(legal))]))


def simulations_of(opponents, game):
    """Simulations of each of the `opponents`, 0 of random play: "random,mcts:100" -> (0, 100).

    Raises UsageError for what is none of these, and for a search in a game that hides something,
    which it would look at.
    """
    found = [re.fullmatch(r"random|mcts:([1-9]\d{0,8})", one) for one in opponents.split(",")]
    if None in found:
        raise UsageError(
            'opponent is "random", "mcts:100" for a tree search of 100 simulations, or several '
            f"with commas between them, not {opponents!r}."
        )
    simulations = tuple(int(one[1] or 0) for one in found)
    kind = game.get_type()
    pyspiel = import_pyspiel()
    if any(simulations) and (
        kind.information != pyspiel.GameType.Information.PERFECT_INFORMATION
        or kind.reward_model != pyspiel.GameType.RewardModel.TERMINAL
    ):
        raise UsageError(
            f"OpenSpiel's tree search plays games that hide nothing and pay at the end, and "
            f'{kind.short_name} is none; choose opponent="random".'
        )
    return simulations


class OpenSpiel(gymnasium.Env):
    """A game of OpenSpiel from the seat of one player.

    Observations are the game's tensor for that player: [C, H, W] as [H, W, C], [H, W] as it is, any
    other as a row; a table of 0 and 1 is uint8, else float32. With player=None one channel
    or number a seat is added, 1 for the learner's own, because many tensors don't say whose they
    are. `info` has "action_mask" [A] and "player". The reward is the player's return, when the game
    ends. Games that end before the learner's first move are drawn anew.

    All that is drawn (seat, chance, opponents and their moves) comes from `np_random`.

    Args:
      game: OpenSpiel's name, with parameters if any: "breakthrough(rows=5,columns=5)".
      player: the learner's seat, from 0; None: drawn at every reset.
      opponent: who plays every other seat: "random", or "mcts:N", OpenSpiel's MCTS with random
        rollouts and N simulations a move; of several, "random,mcts:10,mcts:100", one is drawn at
        every reset, so that there are games to be won before the best can be beaten.
      dtype: "uint8" or "float32", where the choice by random play is not right.

    Raises UsageError for what can't be made, MissingPackage without OpenSpiel.

    >>> env = gymnasium.make("OpenSpiel-v0", game="connect_four", opponent="mcts:100")
    """

    metadata = {"render_modes": ["ansi"]}

    def __init__(
        self, game="connect_four", player=None, opponent="random", dtype=None, render_mode=None
    ):
        game = str(game)
        self._game = load_game(game)
        players = self._game.num_players()
        if player is not None and (type(player) is not int or not 0 <= player < players):
            raise UsageError(f"player is a seat from 0 to {players - 1}, or None, not {player!r}.")
        if dtype not in (None, "uint8", "float32"):
            raise UsageError(f'dtype is "uint8" or "float32", not {dtype!r}.')
        if render_mode not in (None, "ansi"):
            raise UsageError(f'OpenSpiel draws its games as text, "ansi", not {render_mode!r}.')
        self.render_mode = render_mode
        self._opponents = simulations_of(str(opponent), self._game)
        self._simulations = self._opponents[0]
        self._seat = player
        self._seats = players if player is None and players > 1 else 0  # shown beside the tensor
        self._shape = self._game.observation_tensor_shape()
        self._state = None
        self._player = None
        shape = self._arranged(np.zeros(int(np.prod(self._shape))), 0).shape
        bits = dtype == "uint8"
        if dtype is None:  # a row of bytes would be scaled as bytes are
            bits = len(shape) > 1 and has_only_bits(game)
        self.observation_space = (
            spaces.Box(0, 1, shape, np.uint8)
            if bits
            else spaces.Box(-np.inf, np.inf, shape, np.float32)
        )
        self.action_space = spaces.Discrete(self._game.num_distinct_actions())

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._player = self._seat
        if self._seat is None:
            self._player = int(self.np_random.integers(self._game.num_players()))
        if len(self._opponents) > 1:
            self._simulations = int(self.np_random.choice(self._opponents))
        for _ in range(MOST_RESETS):
            self._state = self._game.new_initial_state()
            self._play_others()
            if not self._state.is_terminal():
                return self._observation(), self._info()
        raise ValueError(f"player {self._player} had no move in {MOST_RESETS:,} games")

    def step(self, action):
        state = self._state
        if state.is_terminal() or action not in state.legal_actions():
            raise ValueError(f"action {action} is illegal; info['action_mask'] has those that are")
        state.apply_action(int(action))
        self._play_others()
        over = state.is_terminal()
        reward = float(state.returns()[self._player]) if over else 0.0
        return self._observation(), reward, over, False, self._info()

    def render(self):
        return str(self._state)

    def get_state(self):
        """The moves of the game, the learner's seat and the opponent; np_random is not in it."""
        return dict(
            game=str(self._game),
            state=None if self._state is None else self._state.serialize(),
            player=self._player,
            simulations=self._simulations,
        )

    def set_state(self, state):
        """Go on from what `get_state` gave. Raises ValueError if it is of another game."""
        if state["game"] != str(self._game):
            raise ValueError(f"it is of {state['game']}, not of {self._game}")
        moves = state["state"]
        self._state = None if moves is None else self._game.deserialize_state(moves)
        self._player = state["player"]
        self._simulations = state["simulations"]

    def _play_others(self):
        """Play on until the learner is to move, or the game is over."""
        state = self._state
        while not state.is_terminal() and state.current_player() != self._player:
            if self._simulations and not state.is_chance_node():
                state.apply_action(self._search(state))
            else:
                _apply_random(state, self.np_random)

    def _search(self, state):
        """The action of OpenSpiel's MCTS. Made anew for each move, so that it has no state."""
        pyspiel = import_pyspiel()
        seeds = self.np_random.integers(2**31, size=2)
        rollouts = pyspiel.RandomRolloutEvaluator(1, int(seeds[0]))
        bot = pyspiel.MCTSBot(
            self._game,
            rollouts,
            UCT_C,
            self._simulations,
            SEARCH_MB,
            True,  # proves wins and losses where it can
            int(seeds[1]),
            False,
        )
        return bot.step(state)

    def _observation(self):
        numbers = np.array(self._state.observation_tensor(self._player))
        if self.observation_space.dtype == np.uint8 and not _are_bits(numbers):
            raise ValueError(
                'an observation has other numbers than 0 and 1; make it with dtype="float32"'
            )
        return self._arranged(numbers, self._player).astype(self.observation_space.dtype)

    def _arranged(self, numbers, player):
        """A tensor [C * H * W] as the space has it, with the seats behind it."""
        obs = numbers.reshape(self._shape) if len(self._shape) in (2, 3) else numbers
        if obs.ndim == 3:
            obs = np.moveaxis(obs, 0, -1)
        if not self._seats:
            return obs
        seats = np.eye(self._seats)[player]
        if obs.ndim == 1:
            return np.concatenate([obs, seats])
        obs = obs.reshape(*obs.shape[:2], -1)
        planes = np.broadcast_to(seats, (*obs.shape[:2], self._seats))
        return np.concatenate([obs, planes], axis=-1)

    def _info(self):
        mask = np.zeros(self.action_space.n, np.int8)
        if not self._state.is_terminal():
            mask[self._state.legal_actions()] = 1
        return dict(action_mask=mask, player=self._player)
