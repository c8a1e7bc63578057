"""How well networks of regress.py play by themselves and with a tree search, on held-out levels.

    python benchmarks/search/measure.py --weights=runs/search --arms blocks-1 --simulations 1 4 16
    python benchmarks/search/measure.py --weights=runs/search --arms loops-8 blocks-8

Every arm plays the same levels of the set "test". A level is lost when it is not solved in twice
its shortest solution and 10 moves more. `--avoid-repeats` plays without going back to a position
already met. Adds a row to OUT for every arm, seed and number of simulations; a row that is there
already is not measured again.

Runs that learned from play are measured alike, where they are called WEIGHTS/ARM-SEED.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import tyro
from arms import build_arm, puzzle_info

from tfdqt.backend import set_threads
from tfdqt.errors import UsageError
from tfdqt.games.algorithms import ALGORITHMS
from tfdqt.games.config import EXPLORATION, PUZZLES
from tfdqt.games.envs import env_fn_of, make_env, without_curriculum
from tfdqt.games.search import Rules, play_searched, rules_of
from tfdqt.runs.cli import run_main
from tfdqt.runs.log import read_rows, write_rows

MAX_STEPS = 1_000  # of a puzzle; a level is lost sooner


@dataclasses.dataclass(frozen=True)
class Args:
    """Play held-out levels."""

    weights: str = "runs/search"
    """Folder with the weights that regress.py wrote, or with runs."""
    out: str = ""
    """CSV of what came of it, by default games.csv in that folder."""
    arms: tuple[str, ...] = ("blocks-1",)
    """Networks, see arms.py."""
    loops: tuple[int, ...] = ()
    """Numbers of loops to play the looped ones with; none: those trained."""
    simulations: tuple[int, ...] = (1,)
    """Simulations of a move, its root included; 1: the network alone."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Which of the networks of an arm."""
    levels: int = 500
    """Levels."""
    split: str = "test"
    """The set that they are of; "tune" to choose by."""
    exploration: float = EXPLORATION
    """c of PUCT."""
    avoid_repeats: bool = False
    """Whether no position is gone back to."""
    at_once: int = 64
    """Levels played side by side; 1 for the time of a move of one game."""


def load_arm(folder, name, seed, loops=None):
    """A network of regress.py as what `play_searched` asks for, and its settings there."""
    from tfdqt.games.flat import flatten_model  # loads TensorFlow

    settings = json.loads((Path(folder) / "args.json").read_text())
    info = puzzle_info("sokoban" if settings["boxes"] else "lights", settings["size"])
    saved = np.load(Path(folder) / f"{name}.npz")["weights"][seed]
    shown = name if loops is None else f"loops-{loops}"
    if loops is not None and name.startswith("random-"):
        saved = saved[:-1]  # the number of loops stands last
    net = flatten_model(build_arm(shown, info), info)
    if saved.shape != net.start.shape:
        raise ValueError(f"{name} has {saved.shape} weights, not {net.start.shape}")
    return net, saved, info, settings


def make_puzzle(settings, split):
    """An environment of the levels that a network of regress.py was trained for."""
    options = dict(size=settings["size"], split=split, max_steps=MAX_STEPS)
    if settings["boxes"]:
        return make_env("Sokoban-v0", boxes=settings["boxes"], **options)
    return make_env("LightsOut-v0", **options)


class Player(NamedTuple):
    """A network and what it plays."""

    run: object  # what `play_searched` takes as a trained run
    env_fn: Callable  # without arguments
    rules: Rules


def load_player(folder, name, seed, loops=None, split="test"):
    """The Player of a network of regress.py, or of a run that learned a puzzle from play.

    Raises UsageError if there is neither, or the run is of another game.
    """
    import tensorflow as tf

    played = Path(folder, f"{name}-{seed}")
    if played.is_dir():
        from tfdqt.games.trained import load_run  # loads TensorFlow

        run = load_run(played, loops=loops)
        if not run.settings["name"].startswith(PUZZLES):
            raise UsageError(f"{played} learned {run.settings['name']}; give runs of a puzzle.")
        env_fn = env_fn_of(without_curriculum(run.settings))
        env_fn = functools.partial(env_fn, split=split, max_steps=MAX_STEPS)
        return Player(run, env_fn, rules_of(run))
    if not Path(folder, f"{name}.npz").exists():
        raise UsageError(
            f"{folder} has no {name}.npz and no run {name}-{seed}; train it with regress.py."
        )
    net, weights, info, settings = load_arm(folder, name, seed, loops)
    run = SimpleNamespace(
        net=net, weights=tf.constant(weights), info=info, algorithm=ALGORITHMS["dqn"], settings={}
    )
    env_fn = functools.partial(make_puzzle, settings, split)
    return Player(run, env_fn, Rules(settings["discount"], False, False, 0.0))


def play(args, name, seed, loops, simulations):
    """One row of the CSV."""
    player = load_player(args.weights, name, seed, loops, args.split)
    distances = []

    def limit(env):
        distances.append(int(env.unwrapped.distance))
        return env.unwrapped.patience()

    began = time.process_time()
    games = play_searched(
        player.env_fn,
        player.run,
        episodes=args.levels,
        simulations=simulations,
        exploration=args.exploration,
        avoid_repeats=args.avoid_repeats,
        at_once=args.at_once,
        max_steps=limit,
        rules=player.rules,
    )
    solved = games.returns > 0
    return dict(
        arm=name,
        loops="" if loops is None else loops,
        seed=seed,
        simulations=simulations,
        avoid_repeats=args.avoid_repeats,
        split=args.split,
        at_once=args.at_once,
        exploration=args.exploration,
        levels=args.levels,
        solved=solved.mean(),
        excess=(games.lengths - distances)[solved].mean() if solved.any() else "",
        evaluations_a_move=games.evaluations.sum() / games.lengths.sum(),
        ms_a_move=1000 * games.seconds.sum() / games.lengths.sum(),
        cpu_seconds=time.process_time() - began,
        solved_levels="".join("01"[int(one)] for one in solved),
        distances=" ".join(map(str, distances)),
    )


KEYS = ("arm", "loops", "seed", "simulations", "avoid_repeats", "split", "at_once", "exploration")


def main(args):
    set_threads(1, 1)
    out = Path(args.out or f"{args.weights}/games.csv")
    rows = read_rows(out)
    there = {tuple(str(row[key]) for key in KEYS) for row in rows}
    for name in args.arms:
        for seed in args.seeds:
            for loops in args.loops or (None,):
                for simulations in args.simulations:
                    row = play_once(args, name, seed, loops, simulations, there)
                    if row:
                        rows.append(row)
                        write_rows(out, rows)


def play_once(args, name, seed, loops, simulations, there):
    """The row, unless it is there already."""
    key = (name, loops or "", seed, simulations, args.avoid_repeats, args.split, args.at_once)
    if tuple(map(str, (*key, args.exploration))) in there:
        return None
    row = play(args, name, seed, loops, simulations)
    print(
        f"{name} loops {loops} seed {seed}: N {simulations}, solved {row['solved']:.3f}, "
        f"{row['evaluations_a_move']:.1f} evaluations and {row['ms_a_move']:.2f} ms a move",
        flush=True,
    )
    return row


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Args)))
