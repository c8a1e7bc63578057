"""Search for settings that learn an environment well, with Optuna.

python scripts/tune.py --name=LunarLander-v3 --trials=30 --jobs=2

Each trial is a run of its own in OUT, trained by run_dqn.py (or another --algorithm) and then
played with; its score is the mean return of those games. Trials that do worse than half of the
others after as many steps, from three tenths on, are stopped, and so is what diverges. What was
tried lies in OUT/study.db, and the same command goes on. The best trial is one of many: train it
with seeds of its own before you believe its score.
"""

import contextlib
import dataclasses
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from tfdqt.errors import DIVERGED, MissingPackage, UsageError, sentence_of
from tfdqt.games.algorithms import ALGORITHMS, default_settings
from tfdqt.runs.checkpoint import checkpoints
from tfdqt.runs.cli import run_main
from tfdqt.runs.evaluation import read_returns
from tfdqt.runs.folder import as_folder
from tfdqt.runs.log import log_so_far
from tfdqt.runs.plots import make_figure
from tfdqt.runs.processes import last_line, run_script
from tfdqt.settings import check_at_least_one, check_not_negative, flag_of, words_of

HERE = Path(__file__).parent
POLL = 2.0  # seconds between two looks at a log
TENTHS = 10  # parts of a trial, after each of which it is compared with the others
GAME_SEED = 5_000  # of the games that score a trial; evaluate.py's own are others
RUNNING = set()  # processes that train
# Settings, and what each may be: (low, high) of a number that is drawn over its logarithm, or all
# values. Those of `both` are tuned for every algorithm.
SPACES = {
    "both": {
        "learning-rate": (1e-4, 5e-3),
        "gamma": [0.97, 0.99, 0.995],
        "context": [1, 2, 4, 8],
        "width": [32, 64, 128],
        "layers": [1, 2],
    },
    "dqn": {
        "n-step": [1, 3, 5],
        "batch-size": [32, 64, 128],
        "target-tau": (2e-3, 5e-2),
        "updates-per-step": [0.125, 0.25, 0.5],
        "epsilon-fraction": [0.05, 0.1, 0.3],
        "advantage-learning": [0.0, 0.5, 0.9],
    },
    "ppo": {
        "gae-lambda": [0.9, 0.95, 0.98],
        "entropy-weight": [0.0, 0.003, 0.01, 0.03],
        "update-epochs": [4, 10, 20],
    },
    "pqn": {"update-epochs": [1, 2, 4], "epsilon-fraction": [0.05, 0.1, 0.3]},
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Tune an algorithm's settings on an environment."""

    name: str
    """Environment."""
    algorithm: Literal[tuple(ALGORITHMS)] = "dqn"
    """What learns it."""
    trials: int = 30
    """Trials in all, those of earlier calls included."""
    jobs: int = 1
    """Trials at a time, one thread each."""
    total_steps: int | None = None
    """Environment steps of a trial, by default as many as the environment has by default."""
    episodes: int = 20
    """Games that score a trial."""
    seed: int = 0
    """Seeds the runs, and what is tried."""
    out: str | None = None
    """Folder of the trials, by default runs/tune-NAME-ALGORITHM."""
    also: tuple[str, ...] = ()
    """More settings of every trial, such as replay-size=100000, without their dashes; they are not
    tuned then."""


def load_optuna():
    """Optuna, told to keep to what matters. Raises MissingPackage if it is not installed."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise MissingPackage(
            "Tuning needs Optuna; pip install --no-deps -r requirements-tune.txt, or pip install "
            "optuna."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def names_of(also):
    """The names of settings such as replay-size=100000 or "hidden 64 64", spelled with dashes."""
    return {re.split(r"[=\s]", setting)[0].replace("_", "-") for setting in also}


def settings_of(trial, algorithm, also=()):
    """What a trial tries: dict of flags, without their dashes. also: what every trial has."""
    tried = {}
    fixed = names_of(also)
    for name, values in {**SPACES["both"], **SPACES[algorithm]}.items():
        if name in fixed:
            continue
        if isinstance(values, tuple):
            tried[name] = float(f"{trial.suggest_float(name, *values, log=True):.2g}")
        else:
            tried[name] = trial.suggest_categorical(name, values)
    if "learning-rate" in tried and "final-learning-rate" not in fixed:
        tried["final-learning-rate"] = tried["learning-rate"] / 10
    return tried


def command_of(args, settings, folder, seed):
    """The words that train a run with settings."""
    command = [sys.executable, str(HERE / f"run_{args.algorithm}.py"), f"--name={args.name}"]
    command += [f"--run-dir={folder}", f"--seed={seed}", "--threads=1", "--workers=0"]
    if args.total_steps:
        command.append(f"--total-steps={args.total_steps}")
    command += words_of(args.also)
    return command + [f"--{name}={value:g}" for name, value in settings.items()]


def steps_of(args):
    """Environment steps of a trial."""
    return args.total_steps or default_settings(args.name, args.algorithm)[1].total_steps


def at_tenths(folder, total):
    """Mean returns of a run's log after each tenth of its steps, as far as it has come."""
    log = log_so_far(folder)
    if log is None:
        return []
    first = np.searchsorted(log["step"], np.arange(1, TENTHS + 1) * total / TENTHS)
    return [float(log["mean_return"][row]) for row in first if row < len(log["step"])]


def train(command, folder, trial, total):
    """Train a trial's run: -> the tenth at which it was stopped, for others did better; or None.

    0: it diverged. Raises UsageError with the run's own sentence if it fails otherwise.
    """
    stopped = None
    told = 0
    with tempfile.TemporaryFile("w+", errors="replace") as said:  # a pipe would fill up, and wait
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        RUNNING.add(process)
        try:
            while process.poll() is None:
                time.sleep(POLL)
                for mean in at_tenths(folder, total)[told:]:
                    told += 1
                    if stopped is not None or not np.isfinite(mean):
                        continue
                    trial.report(mean, told)
                    if trial.should_prune():
                        stopped = told
                        process.send_signal(signal.SIGTERM)
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()
            RUNNING.discard(process)
        said.seek(0)
        if process.returncode and stopped is None:
            why = last_line(said.read()).removeprefix("error: ")
            if why.startswith(DIVERGED):
                return 0
            raise UsageError(f"A trial failed: {why}")
    return stopped


@contextlib.contextmanager
def ended_by_sigterm():
    """Within the block SIGTERM ends the trials too, and then what Ctrl-C ends."""

    def end(number, frame):
        for process in list(RUNNING):
            process.terminate()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def score(args, folder):
    """The mean return of games by a trained run."""
    flags = [f"--episodes={args.episodes}", f"--seed={GAME_SEED}", "--workers=0"]
    run_script([sys.executable, str(HERE / "evaluate.py"), str(folder), *flags])
    return float(np.mean(read_returns(folder)))


def make_objective(args, out, optuna):
    """`objective(trial) -> score`."""

    def objective(trial):
        settings = settings_of(trial, args.algorithm, args.also)
        folder = out / f"trial-{trial.number:03d}"
        total = steps_of(args)
        stopped = train(command_of(args, settings, folder, args.seed), folder, trial, total)
        if stopped is not None:
            how = f"stopped after {total * stopped // TENTHS:,} steps" if stopped else "diverged"
            print(f"trial {trial.number}: {how}", flush=True)
            raise optuna.TrialPruned()
        mean = score(args, folder) if checkpoints(folder) else float("nan")
        print(f"trial {trial.number}: {mean:.2f}", flush=True)
        return mean

    return objective


def open_study(name, out, args, optuna):
    """The study in a folder, new or gone on with.

    Raises UsageError if its trials are not comparable with those that the arguments ask for.
    """
    storage = f"sqlite:///{out / 'study.db'}"
    try:
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            direction="maximize",
            pruner=make_pruner(optuna),
            load_if_exists=True,
        )
    except Exception as error:  # of SQLAlchemy, and of the driver under it
        raise UsageError(
            f"{out / 'study.db'} can't be used ({sentence_of(error)}); choose another --out."
        ) from None
    asked = dict(
        total_steps=steps_of(args), episodes=args.episodes, seed=args.seed, also=sorted(args.also)
    )
    for key, value in asked.items():
        had = study.user_attrs.get(key, value)
        if had != value:
            raise UsageError(
                f"The trials in {out} have {flag_of(key)} {shown(had)}, not {shown(value)}; give "
                "the same, or choose another --out."
            )
        study.set_user_attr(key, value)
    return study


def shown(value):
    """What a flag was given, as a sentence says it."""
    return (" ".join(value) or "nothing") if isinstance(value, list) else value


def make_pruner(optuna):
    """Stops what does worse than half of the others, from three tenths of a trial on.

    Before that little is learned, and luck decides.
    """
    return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3)


def draw_importance(study, path, optuna):
    """How much each setting matters, by PED-ANOVA (Watanabe et al., 2023), as a picture."""
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    figure, axes = make_figure(size=(7, 0.4 * len(found) + 1))
    axes.barh(list(found)[::-1], list(found.values())[::-1])
    axes.set_xlabel("importance")
    figure.savefig(path, dpi=110)


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__)
    check_at_least_one(args, "trials", "jobs", "episodes", "total_steps")
    check_not_negative(args, "seed")
    taken = names_of(args.also) & {"total-steps", "seed", "name", "run-dir", "threads", "workers"}
    if taken:
        raise UsageError(f"--also can't set {min(taken)}; tune.py sets it, or has a flag for it.")
    optuna = load_optuna()
    name = as_folder(f"tune-{args.name}-{args.algorithm}")
    out = Path(args.out or f"runs/{name}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out={out} can't be written ({error.strerror}); name another folder."
        ) from None
    study = open_study(name, out, args, optuna)
    states = optuna.trial.TrialState
    over = (states.COMPLETE, states.PRUNED)  # others were broken off
    # By the trials before too: what goes on must not draw what was drawn.
    drawn = np.random.SeedSequence([args.seed, len(study.trials)]).generate_state(1)[0]
    study.sampler = optuna.samplers.TPESampler(seed=int(drawn), constant_liar=True)
    left = args.trials - len(study.get_trials(states=over))
    if left > 0:
        with ended_by_sigterm():
            study.optimize(make_objective(args, out, optuna), n_trials=left, n_jobs=args.jobs)
    done = study.get_trials(states=(states.COMPLETE,))
    if not done:
        raise UsageError(f"No trial in {out} was trained to its end; give more --trials.")
    if len(done) > 1:
        draw_importance(study, out / "importance.png", optuna)
        print(out / "importance.png")
    settings = settings_of(study.best_trial, args.algorithm, args.also)
    command = command_of(args, settings, "runs/tuned", args.seed + 1)
    print(f"Best of {len(study.get_trials(states=over))} trials, {study.best_value:.2f}:")
    print(f"python scripts/{Path(command[1]).name} {shlex.join(command[2:])}")
    return 0


if __name__ == "__main__":
    run_main(main)
