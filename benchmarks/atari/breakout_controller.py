"""How far a controller by hand gets on Breakout-ram-v0: python benchmarks/breakout_controller.py --band=9 --games=12

It reads ball and paddle from the RAM, follows the ball's path with its bounces to the paddle's height, and moves only when the
paddle is more than `band` units away from where the ball will be: with sticky actions a move overshoots.
"""

import dataclasses

import numpy as np
import tyro

from tfdqt.envs import make_env

BALL_X, BALL_Y, PADDLE_X = 99, 101, 72  # places in the RAM
LEFT_WALL, RIGHT_WALL, PADDLE_Y = 55, 200, 180  # in the units of the RAM


@dataclasses.dataclass(frozen=True)
class Args:
    """Play Breakout-ram-v0 by hand."""

    band: float = 9.0
    """How far the paddle may be off before it moves."""
    offset: float = -12.0
    """Where the paddle's byte stands when it is under the ball, less the ball's."""
    path: bool = True
    """Whether the ball's path is followed; otherwise its present place is the aim."""
    epsilon: float = 0.05
    """Probability of a random action."""
    games: int = 12
    """Games to play."""
    seed: int = 2
    """Seeds the games."""


def choose(ram, before, args):
    """The action at RAM `ram`, with `before` the ball's place (x, y) one step earlier, or None."""
    x, y, paddle = (int(ram[place]) for place in (BALL_X, BALL_Y, PADDLE_X))
    if y == 0:
        return 1  # fire: no ball is in play
    aim = x
    if args.path and before and 0 < before[1] < y:
        aim = x + (x - before[0]) * min((PADDLE_Y - y) / (y - before[1]), 20)
        while not LEFT_WALL <= aim <= RIGHT_WALL:
            aim = 2 * LEFT_WALL - aim if aim < LEFT_WALL else 2 * RIGHT_WALL - aim
    aim += args.offset
    return 2 if aim > paddle + args.band else 3 if aim < paddle - args.band else 0


def main():
    args = tyro.cli(Args, description=__doc__)
    env, rng, returns = make_env("Breakout-ram-v0"), np.random.default_rng(args.seed), []
    for game in range(args.games):
        ram, _ = env.reset(seed=100 * args.seed + game)
        before, over, total = None, False, 0.0
        while not over:
            action = int(rng.integers(4)) if rng.random() < args.epsilon else choose(ram, before, args)
            before = int(ram[BALL_X]), int(ram[BALL_Y])
            ram, reward, ended, cut, _ = env.step(action)
            total, over = total + float(reward), ended or cut
        returns.append(total)
    print(f"mean {np.mean(returns):.1f}, std {np.std(returns):.1f}, best {max(returns):.0f} of {args.games} games")


if __name__ == "__main__":
    main()
