"""Play whole games with the network of a run: python scripts/evaluate.py RUN --episodes=30 --epsilon=0.05"""

import csv
import dataclasses
import functools
from pathlib import Path
from typing import Annotated

import tyro

from tfdqt.config import UsageError, default_parallel, load_config
from tfdqt.runs import find_run, run_main, write_rows


@dataclasses.dataclass(frozen=True)
class Args:
    """Play whole games with the network of a run and print their mean score."""

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    episodes: int = 100
    """Games to play, or texts to write."""
    epsilon: float = 0.0
    """Probability of a random action (0: greedy)."""
    sample: bool = False
    """PPO runs: draw actions from the policy instead of taking the likeliest."""
    seed: int = 1_000
    """Seeds the games."""
    checkpoint: str | None = None
    """Checkpoint to take, by default the newest."""
    max_steps: int | None = None
    """Longest game that is waited for; a longer one counts as it stands."""
    workers: int | None = None
    """Processes that step the environments (0: none), by default one a core, or none for CartPole."""
    video: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for a film (MP4 and GIF) of one more game."""
    video_steps: int = 2_000
    """Longest film, in steps."""
    beta: float | None = None
    """Text runs: strength of the advantage over the cloned policy (0: that policy alone, inf: Q alone); by default as trained."""
    temperature: float | None = None
    """Text runs: how evenly actions are drawn (0: the best is taken); by default as trained."""
    best_of: int = 1
    """Corpus runs: texts written for each that counts; the one of the highest reward does."""


def check_left_out(args, why, *fields):
    """Raise UsageError for a flag that says nothing about such a run."""
    for field in fields:
        if getattr(args, field) != getattr(Args, field):
            raise UsageError(f"--{field.replace('_', '-')} {why}.")


def gif(mp4, path, *, every=4, width=160):
    """A small GIF of an MP4: every `every`-th frame, `width` pixels wide."""
    import imageio.v2 as imageio
    from PIL import Image

    with imageio.get_reader(mp4) as film:
        fps = film.get_meta_data()["fps"]
        frames = [Image.fromarray(frame) for i, frame in enumerate(film) if i % every == 0]
    frames = [frame.resize((width, frame.height * width // frame.width)).quantize(32) for frame in frames]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 * every / fps), loop=0, optimize=True)


def keep(run_dir, how, rows):
    """Add the games to evaluation.csv in the run's folder; `how` they were played is a column of a name each."""
    path, columns = run_dir / "evaluation.csv", ["step", *how, "seed", "episode", "return", "length"]
    before = []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            before = list(csv.DictReader(file))
    aside = path.with_suffix(".part")
    write_rows(aside, [*({column: row.get(column, "") for column in columns} for row in before),
                       *(dict(zip(columns, [row[0], *how.values(), *row[1:]])) for row in rows)])
    aside.replace(path)


def evaluate_text(run_dir, args):
    """Play or write with a text run, and print what came of it beside what is published."""
    from tfdqt.stats import confidence
    from tfdqt.text_runs import beside, load_text_run, make_run_scores, perplexity, returns_of

    check_left_out(args, "is for gymnasium environments; leave it out for a text run",
                   "epsilon", "sample", "max_steps", "workers", "video", "video_steps")
    trained = load_text_run(run_dir, args.checkpoint)
    task, cfg = trained.task, trained.settings["text"]
    if task.name != "corpus":
        check_left_out(args, "is for texts that are written; leave it out for a game", "best_of")
    if args.temperature is not None:
        cfg = dataclasses.replace(cfg, greedy=args.temperature == 0, temperature=args.temperature or cfg.temperature)
    scores = make_run_scores(task, trained.transformer, trained.head, cfg, beta=args.beta)
    returns, texts = returns_of(task, scores, cfg, games=args.episodes, seed=args.seed, best_of=args.best_of)
    low, high = confidence(returns)
    print(f"{task.name} seed {trained.settings['seed']} after {trained.step} updates: {args.episodes} {'texts' if texts else 'games'}: "
          f"mean {returns.mean():.3f}, std {returns.std():.3f}, 95% CI of the mean [{low:.3f}, {high:.3f}]. {beside(task, texts)}")
    if texts:
        if not Path(task.folder).exists():
            print(f"The corpus is not in {task.folder} any more, so there is no held-out perplexity.")
        elif cfg.cloning or cfg.method in ("clone", "filtered"):
            print(f"Held-out perplexity of the cloned policy: {perplexity(task, trained.transformer, trained.head, cfg):.1f}")
        for text, value in list(zip(texts, returns))[:10]:
            print(f"{value:8.3f}  {text}")
    how = dict(beta=cfg.beta if args.beta is None else args.beta, temperature=0 if cfg.greedy else cfg.temperature, best_of=args.best_of)
    keep(run_dir, how, ([trained.step, args.seed, i, value, len(texts[i].split()) if texts else ""] for i, value in enumerate(returns)))


def main():
    args = tyro.cli(Args, description=__doc__)
    if min(args.episodes, args.best_of) < 1 or not 0 <= args.epsilon <= 1:
        raise UsageError("--episodes and --best-of must be at least 1 and --epsilon between 0 and 1.")
    if min(args.seed, args.workers or 0, args.temperature or 0) < 0:
        raise UsageError("--seed, --workers and --temperature must be 0 or more.")
    run_dir = find_run(args.run)
    if load_config(run_dir / "config.json").get("algorithm") == "text":
        return evaluate_text(run_dir, args)
    check_left_out(args, "is for text runs; leave it out for a gymnasium environment", "beta", "temperature", "best_of")

    from tfdqt.envs import make_env
    from tfdqt.evaluate import film, load_run, play
    from tfdqt.stats import confidence

    trained = load_run(run_dir, args.checkpoint)
    if args.sample and (trained.algorithm != "ppo" or args.epsilon):
        raise UsageError("--sample draws from the policy of a PPO run, without --epsilon; leave it out.")
    env_fn = functools.partial(make_env, trained.name)
    # Acting and stepping take turns, as in PPO.
    workers = default_parallel(trained.name, "ppo")["workers"] if args.workers is None else args.workers
    returns, lengths = play(env_fn, trained.info, trained.networks, trained.weights, episodes=args.episodes,
                            epsilon=args.epsilon, sample=args.sample, seed=args.seed, workers=workers,
                            max_steps=args.max_steps)
    low, high = confidence(returns)
    how = "with actions drawn from the policy" if args.sample else f"at epsilon {args.epsilon:g}"
    print(f"{trained.name} seed {trained.seed} after {trained.step} steps: {args.episodes} games {how}: "
          f"mean {returns.mean():.1f}, std {returns.std():.1f}, 95% CI of the mean [{low:.1f}, {high:.1f}], "
          f"min {returns.min():.0f}, median {sorted(returns)[len(returns) // 2]:.0f}, max {returns.max():.0f}, "
          f"mean length {lengths.mean():.0f}")
    keep(run_dir, dict(epsilon=args.epsilon, sample=args.sample),
         ([trained.step, args.seed, i, *pair] for i, pair in enumerate(zip(returns, lengths))))
    if args.video:
        make = functools.partial(make_env, trained.name, render_mode="rgb_array")
        mp4, score = film(make, trained.info, trained.networks, trained.weights, args.video, epsilon=args.epsilon,
                          seed=args.seed, max_steps=args.video_steps)
        gif(mp4, mp4.with_suffix(".gif"))
        print(f"Film of a game that scored {score:g}: {mp4} and {mp4.with_suffix('.gif')}")


if __name__ == "__main__":
    run_main(main)
