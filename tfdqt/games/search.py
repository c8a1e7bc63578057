"""Play by a tree search at decision time, over exact copies of the environment.

Before each move a tree of what can come next is searched by PUCT (`tree`), with the network's
values and policy at its nodes:

- Q-networks: the value of a state is max Q of its legal actions, Q(s, a) before the first visit is
  the network's own, and the prior is uniform, since Q already says which action is tried first.
- Policies: prior and value are the network's. Q(s, a) before the first visit is the value of s.

Rewards and gamma are those that the values were learned with: signs of rewards, and the loss of a
life as an end, if the run learned so. After a terminal step nothing follows; one that is cut is
valued as any other. Random numbers are the search's own (`copies`); what is hidden in a state from
the network, such as a card, is not hidden from the search.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from tfdqt.backend import tf, traced
from tfdqt.errors import UsageError
from tfdqt.games.config import EXPLORATION
from tfdqt.games.copies import states_of
from tfdqt.games.envs import ResetOptions, close_env, its_failures
from tfdqt.games.exact import state_fault
from tfdqt.games.play import check_games
from tfdqt.games.slots import REST
from tfdqt.games.spaces import legal_actions
from tfdqt.games.state import NoState
from tfdqt.games.tree import Step, Tree
from tfdqt.games.vec_envs import env_seeds, game_seed, make_slots, noting
from tfdqt.games.window import make_window, push
from tfdqt.puzzles.puzzle import Puzzle
from tfdqt.settings import check_whole, is_whole

# -------------------------------------------------------------------------------------------------
# What the network says


class Valued(NamedTuple):
    """What a network says of states."""

    scores: np.ndarray  # [B, A] Q or logits
    values: np.ndarray  # [B]


class Valuer:
    """The compiled network, called for any number of windows at a time.

    Batches are filled up to a power of two, so that few sizes are compiled.
    """

    def __init__(self, net, weights, algorithm, info):
        self.info = info
        self.context = net.context
        self.idle = 0.0  # seconds that compiling took
        self.sizes = {}  # of batches: (arrays of the inputs, the function compiled for them)
        weights = net.unflatten(weights)

        def valued(inputs):
            outputs = net.apply(weights, inputs)
            scores = algorithm.scores(outputs)[:, -1]
            if algorithm.is_policy:
                return scores, outputs[:, -1, -1]
            return scores, tf.reduce_max(scores, axis=-1)

        self.valued = traced(valued, jit_compile=True)

    def _of_size(self, size):
        if size not in self.sizes:
            begin = time.perf_counter()
            inputs = make_window(self.info, size, self.context)._asdict()
            specs = {name: tf.TensorSpec(x.shape, x.dtype) for name, x in inputs.items()}
            # Called as it is, it takes a third of the time of a tf.function.
            function = self.valued.get_concrete_function(specs)
            function({name: tf.constant(x) for name, x in inputs.items()})
            self.sizes[size] = inputs, function
            self.idle += time.perf_counter() - begin
        return self.sizes[size]

    def __call__(self, states):
        """What the network says of `states`, [B] of _State: -> Valued."""
        count = len(states)
        inputs, function = self._of_size(1 << (count - 1).bit_length())
        for row, state in enumerate(states):
            inputs["obs"][row] = state.obs
            inputs["first"][row] = state.first
            inputs["prev_action"][row, 1:] = state.prev_action[1:]
        scores, values = function({name: tf.constant(x) for name, x in inputs.items()})
        return Valued(scores.numpy()[:count], values.numpy()[:count])


class Rules(NamedTuple):
    """What the values of a run are values of."""

    gamma: float
    signs: bool  # of rewards alone
    life_loss_ends: bool
    advantage_learning: float  # how far gaps between actions were widened


def rules_of(trained):
    """The Rules of a TrainedRun."""
    cfg = trained.settings[trained.settings["algorithm"]]
    return Rules(
        cfg.gamma,
        cfg.reward_transform == "sign",
        cfg.life_loss_ends,
        getattr(cfg, "advantage_learning", 0.0),
    )


def _judge(algorithm, rules, obs, info, scores, value):
    """What `Tree.expand` is told of a state: legal actions, their prior, their first values, value.

    Gaps that advantage learning has widened first count as what they stand for, as in
    `losses.exploration_cost`.
    """
    legal = legal_actions(info, obs)
    actions = range(len(scores)) if legal is None else legal.nonzero()[0].tolist()
    scores = scores.tolist()
    if algorithm.is_policy:
        logits = [scores[action] for action in actions]
        greatest = max(logits)
        weights = [math.exp(logit - greatest) for logit in logits]
        total = sum(weights)
        return actions, [weight / total for weight in weights], [value] * len(actions), value
    first = [scores[action] for action in actions]
    value = max(first)
    widened = min(rules.advantage_learning, 0.999)
    if widened:
        first = [value - (gap - widened * min(gap, 1.0)) for gap in (value - q for q in first)]
    return actions, [1 / len(actions)] * len(actions), first, value


# -------------------------------------------------------------------------------------------------
# Trials


class _State(NamedTuple):
    """A state of the game as the tree has it."""

    saved: object  # of the environment; None where it is over
    lives: float
    obs: np.ndarray  # [C, F], the window of the latest steps
    first: np.ndarray  # [C]
    prev_action: np.ndarray  # [C]


class _Trials:
    """The one environment in which moves of all games are tried."""

    def __init__(self, slot, rules):
        self.slot = slot
        self.rules = rules
        self.kind = states_of(slot.env)
        self.states = self.kind(slot.env)
        self.features = slot.info.features

    def step(self, rng, state, action):
        """Take `action` in `state`, with random numbers of `rng`: -> Step."""
        slot = self.slot
        out = slot.out
        self.states.restore(state.saved, rng)
        slot.lives = state.lives
        slot.ended = False
        slot.step(action)
        drawn = self.states.drew(rng)
        reward = float(out["reward"])
        if self.rules.signs:
            reward = float(np.sign(reward))
        discount = float(out["discount"])
        over = slot.ended or discount == 0
        saved = None if over else self.states.save()
        row = out["obs"]
        outcome = (row.tobytes(), reward, discount, slot.ended) if drawn else None
        return Step(
            _State(saved, slot.lives, *_moved_on(state, row, action)),
            reward,
            discount,
            over,
            drawn,
            outcome,
        )


def _moved_on(state, row, action):
    """The window one step later: obs [C, F], first [C], prev_action [C]."""
    if len(state.obs) == 1:
        return row[None].copy(), _NOT_FIRST, _NO_ACTION
    obs = np.empty_like(state.obs)
    obs[:-1] = state.obs[1:]
    obs[-1] = row
    first = np.zeros_like(state.first)
    first[:-1] = state.first[1:]
    before = np.empty_like(state.prev_action)
    before[:-1] = state.prev_action[1:]
    before[-1] = action
    return obs, first, before


# Of a window of one step: nothing before it is shown.
_NOT_FIRST = np.zeros(1, np.int32)
_NO_ACTION = np.full(1, -1, np.int32)


# -------------------------------------------------------------------------------------------------
# Games


class Searched(NamedTuple):
    """What came of whole games that were played by a search."""

    returns: np.ndarray  # [episodes]
    lengths: np.ndarray  # [episodes] steps
    cut: int  # how many were not over when they were left
    evaluations: np.ndarray  # [episodes] states that the network valued
    seconds: np.ndarray  # [episodes] of searching; of games side by side an even share
    actions: list  # [episodes] of the actions of each game, counted from 0
    distances: np.ndarray | None  # [episodes] least steps to the solution of a puzzle; else None


class _Game:
    """One game that is played, and its search."""

    def __init__(self, slot, kind, rng, limit):
        self.slot = slot
        self.states = kind(slot.env)
        self.rng = rng
        self.limit = limit
        self.met = set()
        self.actions = []
        self.evaluations = 0
        self.seconds = 0.0
        self.tree = None
        puzzle = slot.env.unwrapped
        self.distance = puzzle.distance if isinstance(puzzle, Puzzle) else None  # at the start
        self.known = {}  # what the network said in this search, by the window it was shown

    @property
    def playing(self):
        slot = self.slot
        return not slot.ended and (self.limit is None or slot.length < self.limit)

    def look(self, state):
        """The latest observation without the mask, as `met` has it."""
        return state.obs[-1, : self.slot.info.features].tobytes()


def play_searched(
    env_fn,
    trained,
    *,
    episodes,
    simulations,
    seed=0,
    exploration=EXPLORATION,
    avoid_repeats=False,
    leaves=1,
    at_once=64,
    max_steps=None,
    starts=None,
    rules=None,
):
    """Play `episodes` games, each move of them by `simulations` of a tree search: -> Searched.

    They are the games that `play_games` plays with the same seed. With one simulation the move is
    the network's best.

    >>> run = load_run("runs/cartpole-0")
    >>> games = play_searched(env_fn_of(run.settings), run, episodes=20, simulations=32)
    >>> games.returns.mean(), 1000 * games.seconds.sum() / games.lengths.sum()  # ms a move

    Args:
      trained: TrainedRun.
      simulations: how often a move's root is valued, itself once included.
      exploration: c of PUCT.
      avoid_repeats: never take an action that surely leads to an observation already met in this
        game, unless all do; in the tree neither.
      leaves: of one game that are valued at a time. More than 1 is quicker, and searches a little
        worse: they are chosen before the values of the others are known.
      at_once: games side by side, whose leaves are valued in one call of the network.
      max_steps: a game longer than that counts as it stands then; a number, one for each game, or
        a function of a game's environment behind its reset.
      starts: options of each game's reset, a dict each.
      rules: Rules, if the settings of `trained` don't tell them.

    Raises UsageError for what can't be searched, and EnvFailure for environments that fail.
    """
    info = trained.info
    rules = rules or rules_of(trained)
    check_search(simulations, exploration, leaves)
    check_games(episodes, at_once)
    check_whole(0, seed=seed)
    if starts is not None:
        starts = _of_each(episodes, "starts", starts)
        if not all(isinstance(options, Mapping) for options in starts):
            raise UsageError("starts must hold the options of each game's reset, a dict each.")
    if is_whole(max_steps):
        check_whole(1, max_steps=max_steps)
    elif max_steps is not None and not callable(max_steps):
        max_steps = _of_each(episodes, "max_steps", max_steps)
        for steps in max_steps:
            check_whole(1, max_steps=steps)
    if info.parts:
        raise UsageError(
            f"--simulations needs actions that have an output each, and those of {info.name} have "
            "outputs for their parts; leave it out."
        )
    fault = state_fault(env_fn, info)
    if fault:
        raise _no_state(info, fault)
    valuer = Valuer(trained.net, trained.weights, trained.algorithm, info)
    search = functools.partial(
        _search,
        valuer=valuer,
        judge=functools.partial(_judge, trained.algorithm, rules),
        simulations=simulations,
        leaves=leaves,
        avoid_repeats=avoid_repeats,
    )
    played = []
    envs = []
    with _failures(info, envs):
        copy = _opened(ResetOptions, env_fn, {}) if starts is not None else env_fn
        slots, _ = make_slots(
            noting(copy, envs), info, env_seeds(seed, 1), life_loss_ends=rules.life_loss_ends
        )
        trials = _Trials(slots.slots[0], rules)
        make_tree = functools.partial(Tree, gamma=rules.gamma, exploration=exploration)
        for begin in range(0, episodes, at_once):
            numbers = range(begin, min(begin + at_once, episodes))
            seeds = env_seeds(game_seed(seed), len(numbers), begin)
            made = []
            with _failures(info, made):
                fns = iter(
                    [
                        env_fn if starts is None else _opened(ResetOptions, env_fn, starts[number])
                        for number in numbers
                    ]
                )
                slots, arrays = make_slots(noting(lambda: next(fns)(), made), info, seeds)
                games = [
                    _Game(
                        slot,
                        trials.kind,
                        np.random.default_rng([seed, 4, number]),
                        _limit(max_steps, number, slot.env),
                    )
                    for number, slot in zip(numbers, slots.slots)
                ]
                _play(slots, arrays, games, trials, make_tree, search, valuer, avoid_repeats)
            played += games
    distances = [game.distance for game in played]
    return Searched(
        np.array([game.slot.ret for game in played], np.float64),
        np.array([game.slot.length for game in played], int),
        sum(not game.slot.ended for game in played),
        np.array([game.evaluations for game in played], int),
        np.array([game.seconds for game in played]),
        [np.array(game.actions, int) for game in played],
        None if None in distances else np.array(distances),
    )


def check_search(simulations, exploration, leaves):
    """Raise UsageError for numbers of a search that can't be."""
    check_whole(1, **{"--simulations": simulations, "--leaves": leaves})
    if not 0 <= exploration < math.inf:
        raise UsageError(f"--exploration must be 0 or more, and finite, not {exploration}.")


def _of_each(episodes, name, given):
    """What there is of each game as a list. Raises UsageError for another number of them."""
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise UsageError(
            f"{name} must be a list with one of each game, not of type {type(given).__name__}."
        )
    each = list(given)
    if len(each) != episodes:
        raise UsageError(f"{name} must have one of each of {episodes} games, not {len(each)}.")
    return each


def _no_state(info, why):
    return UsageError(
        f"--simulations needs an environment whose state can be saved, and that of {info.name} "
        f"can't be ({why}); leave it out."
    )


def _opened(wrapper, env_fn, options):
    return lambda: wrapper(env_fn(), options)


@contextlib.contextmanager
def _failures(info, envs):
    """Turns what environments raise into an EnvFailure, and closes `envs` at the end."""
    try:
        with its_failures(info.name, "in a search"):
            try:
                yield
            except NoState as error:
                raise _no_state(info, str(error)) from None
    finally:
        for env in envs:
            close_env(env, info.name)


def _limit(max_steps, number, env):
    if max_steps is None or is_whole(max_steps):
        return max_steps
    return int(max_steps(env) if callable(max_steps) else max_steps[number])


def _play(slots, arrays, games, trials, make_tree, search, valuer, avoid_repeats):
    """Play games side by side to their ends."""
    info = trials.slot.info
    window = make_window(info, len(games), valuer.context)
    action = np.full(len(games), -1)
    slots.check()
    while any(game.playing for game in games):
        push(window, arrays["obs"], arrays["first"], action)
        action = np.full(len(games), REST)
        rows = [row for row, game in enumerate(games) if game.playing]
        begin = time.perf_counter() - valuer.idle
        for row in rows:
            game = games[row]
            shown = (part[row].copy() for part in window)
            state = _State(game.states.save(), game.slot.lives, *shown)
            game.known = {}
            repeats = {}
            if avoid_repeats:
                game.met.add(game.look(state))
                repeats = dict(look=game.look, met=game.met)
            game.tree = make_tree(state, functools.partial(trials.step, game.rng), **repeats)
        search([games[row] for row in rows])
        for row in rows:
            action[row] = games[row].tree.choose()
            games[row].actions.append(int(action[row]))
            games[row].tree = None
        seconds = time.perf_counter() - valuer.idle - begin
        for row in rows:
            games[row].seconds += seconds / len(rows)
            games[row].slot.step(action[row])
        slots.check()


def _search(games, *, valuer, judge, simulations, leaves, avoid_repeats):
    """Fill the trees of games, whose leaves are valued side by side."""
    info = valuer.info

    def value(waiting):
        valued = valuer([leaf.node.state for _, leaf, _ in waiting])
        for (game, leaf, window), scores, number in zip(
            waiting, valued.scores, valued.values.tolist()
        ):
            said = judge(leaf.node.state.obs[-1], info, scores, number)
            game.known[window] = said
            game.evaluations += 1
            game.tree.expand(leaf, *said)

    value([leaf for game in games for leaf in _leaves(game, 1, 1)])
    if avoid_repeats:
        for game in games:
            game.tree.bar_repeats()
    busy = games
    while busy := [game for game in busy if game.tree.count < simulations]:
        waiting = [leaf for game in busy for leaf in _leaves(game, simulations, leaves)]
        if waiting:
            value(waiting)


def _leaves(game, simulations, leaves):
    """The next leaves of a game's tree that the network must value: [(game, Leaf, window)].

    As many as may be valued at a time, and the search has left. What the network was shown in this
    search already is not asked again.
    """
    tree = game.tree
    found = []
    while len(found) < leaves and tree.count < simulations:
        before = tree.count
        leaf = tree.descend(several=leaves > 1)
        if leaf is None:
            if tree.count == before:  # it came to one that waits already
                break
            continue
        _, _, obs, first, action = leaf.node.state
        window = obs.tobytes(), first.tobytes(), action[1:].tobytes()
        said = game.known.get(window)
        if said is None:
            found.append((game, leaf, window))
        else:
            tree.expand(leaf, *said)
    return found
