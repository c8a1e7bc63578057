"""How often runs of OpenSpiel-v0 win against opponents other than that of training.

python benchmarks/search/connect_four/play.py runs/four-* --out=games.csv
"""

import dataclasses
import functools
import json
from pathlib import Path

import tyro
from scipy.stats import binomtest

from tfdqt.games.envs import make_env, options_of
from tfdqt.games.play import play_games
from tfdqt.games.trained import load_policy
from tfdqt.runs.cli import run_main
from tfdqt.runs.folder import find_run

COLUMNS = "run,steps,opponent,games,won,drawn,lost,win_rate,low,high"


@dataclasses.dataclass(frozen=True)
class Args:
    """Play games of OpenSpiel with trained networks and count what they win."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs."""
    opponents: tuple[str, ...] = ("random", "mcts:10", "mcts:100", "mcts:1000")
    """Whom they play."""
    episodes: int = 200
    """Games against each."""
    epsilon: float = 0.0
    """Probability of a random action; 1 shows what a random player wins."""
    seed: int = 1_000
    """Seeds the games."""
    out: str | None = None
    """CSV file for the counts."""


def env_fn_against(settings, opponent):
    """`env_fn()` of a run's environment with another opponent; settings: of its config.json."""
    options = options_of(settings["env"].env_options, "--env-options")
    options = json.dumps(dict(options, opponent=opponent))
    cfg = dataclasses.replace(settings["env"], env_options=options)
    return functools.partial(make_env, settings["name"], cfg)


def count(policy, opponent, *, episodes, seed):
    """Games of a policy: -> (won, drawn, lost, low, high).

    low, high: 95% interval (Wilson) of the part that is won.
    """
    env_fn = env_fn_against(policy.trained.settings, opponent)
    returns = play_games(env_fn, policy, episodes=episodes, seed=seed).returns
    won = int((returns > 0).sum())
    lost = int((returns < 0).sum())
    interval = binomtest(won, episodes).proportion_ci(method="wilson")
    return won, episodes - won - lost, lost, interval.low, interval.high


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__)
    lines = [COLUMNS]
    print(COLUMNS)
    for run in args.runs:
        policy = load_policy(find_run(run), epsilon=args.epsilon, seed=args.seed)
        for opponent in args.opponents:
            *counts, low, high = count(policy, opponent, episodes=args.episodes, seed=args.seed)
            rate = counts[0] / args.episodes
            values = [Path(run).name, policy.trained.step, opponent, args.episodes, *counts]
            lines.append(",".join(map(str, values)) + f",{rate:.3f},{low:.3f},{high:.3f}")
            print(lines[-1], flush=True)
    if args.out:
        Path(args.out).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
