"""How far a controller written by hand gets on Breakout-ram-v0.

    python benchmarks/atari/breakout_controller.py --band=9 --games=12

It reads ball and paddle from the RAM, follows the ball's path with its bounces to the paddle's
height, and moves only when the paddle is more than `band` units away from where the ball will be:
with sticky actions a move overshoots.
"""

import dataclasses

import numpy as np
import tyro

from tfdqt.games.envs import make_env

BALL_X = 99  # bytes of the RAM
BALL_Y = 101
PADDLE_X = 72
LEFT_WALL = 55  # in the units of the RAM
RIGHT_WALL = 200
PADDLE_Y = 180
STAY, FIRE, RIGHT, LEFT = range(4)  # actions


@dataclasses.dataclass(frozen=True)
class Args:
    """Play Breakout-ram-v0 by hand."""

    band: float = 9.0
    """How far the paddle may be off before it moves."""
    offset: float = -12.0
    """Where the paddle's byte stands when it is under the ball, less the ball's."""
    path: bool = True
    """Whether the ball's path is followed; otherwise its present position is the aim."""
    epsilon: float = 0.05
    """Probability of a random action."""
    games: int = 12
    """Games to play."""
    seed: int = 2
    """Seeds the games."""


def landing(x, y, before):
    """Where the ball will be at the paddle's height, from its positions now and a step before."""
    before_x, before_y = before
    aim = x + (x - before_x) * min((PADDLE_Y - y) / (y - before_y), 20)
    while not LEFT_WALL <= aim <= RIGHT_WALL:
        aim = 2 * LEFT_WALL - aim if aim < LEFT_WALL else 2 * RIGHT_WALL - aim
    return aim


def choose(ram, before, args):
    """The action at RAM `ram`; `before` is the ball's position (x, y) a step earlier, or None."""
    x, y, paddle = (int(ram[byte]) for byte in (BALL_X, BALL_Y, PADDLE_X))
    if y == 0:
        return FIRE  # no ball is in play
    falling = before is not None and 0 < before[1] < y
    aim = landing(x, y, before) if args.path and falling else x
    aim += args.offset
    if aim > paddle + args.band:
        return RIGHT
    return LEFT if aim < paddle - args.band else STAY


def play_game(env, rng, args, seed):
    """Play one game: -> its return."""
    ram, _ = env.reset(seed=seed)
    before = None
    total = 0.0
    over = False
    while not over:
        if rng.random() < args.epsilon:
            action = int(rng.integers(4))
        else:
            action = choose(ram, before, args)
        before = int(ram[BALL_X]), int(ram[BALL_Y])
        ram, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        over = terminated or truncated
    return total


def main():
    args = tyro.cli(Args, description=__doc__)
    env = make_env("Breakout-ram-v0")
    rng = np.random.default_rng(args.seed)
    returns = [play_game(env, rng, args, 100 * args.seed + game) for game in range(args.games)]
    print(
        f"mean {np.mean(returns):.1f}, std {np.std(returns):.1f}, best {max(returns):.0f} of "
        f"{args.games} games"
    )


if __name__ == "__main__":
    main()
