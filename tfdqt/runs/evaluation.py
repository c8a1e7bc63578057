"""What evaluating a run leaves behind: evaluation.csv."""

import contextlib
import csv
import sys

from tfdqt.errors import UsageError
from tfdqt.runs.folder import locked
from tfdqt.runs.log import read_rows, write_rows


def read_games(run_dir):
    """The rows of a run's evaluation.csv, dicts of strings. Raises UsageError if it is none."""
    rows = read_rows(run_dir / "evaluation.csv")
    with _of_games(run_dir):
        for row in rows:
            int(row["step"]), row["seed"], row["episode"], float(row["return"]), row["length"]
    return rows


def read_returns(run_dir):
    """The returns in a run's evaluation.csv, a list of floats. Raises UsageError if it has none."""
    rows = read_rows(run_dir / "evaluation.csv")
    with _of_games(run_dir):
        return [float(row["return"]) for row in rows]


@contextlib.contextmanager
def _of_games(run_dir):
    try:
        yield
    except (KeyError, TypeError, ValueError):
        path = run_dir / "evaluation.csv"
        raise UsageError(f"{path} has rows that are no games; move it away.") from None


def append_evaluation(run_dir, step, seed, how, returns, lengths, more=None):
    """Add games, or texts, to evaluation.csv in a run's folder, a row each.

    If the folder can't be written, such as another's, that is told, and nothing is added.

    Args:
      step: of the checkpoint. seed: of the games.
      how: dict of how they were played, a column each; rows from before a column was there have
        nothing in it, and neither have new rows in other columns that are there.
      returns, lengths: one of each a game.
      more: dict of columns with one value a game.
    """
    more = more or {}
    columns = ["step", *how, "seed", "episode", "return", "length", *more]
    new = []
    for episode, (value, length) in enumerate(zip(returns, lengths)):
        row = dict(step=step, **how, seed=seed, episode=episode)
        row["return"] = value
        row["length"] = length
        row.update({name: values[episode] for name, values in more.items()})
        new.append(row)
    path = run_dir / "evaluation.csv"
    try:
        with locked(run_dir / ".evaluation.lock"):  # another process may add rows just now
            _add_rows(path, columns, new)
    except OSError as error:
        _tell(f"{path} can't be written ({error.strerror})")
    except (UnicodeDecodeError, csv.Error) as error:
        _tell(f"{path} is no CSV ({error}), move it away")


def _tell(why):
    print(f"note: {why}; what is printed stands there only.", file=sys.stderr)


def _add_rows(path, columns, new):
    rows = []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            old = csv.DictReader(file)
            columns += [name for name in old.fieldnames or () if name not in columns]
            rows = [{name: row.get(name, "") for name in columns} for row in old]
    write_rows(path, rows + new)
