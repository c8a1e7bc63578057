"""A run's log: log.csv, TensorBoard and the progress line; and CSV files read and written."""

import contextlib
import csv
import math
import sys
import time
from pathlib import Path

import numpy as np

from tfdqt.backend import tf
from tfdqt.errors import UsageError, first_line
from tfdqt.runs.checkpoint import checkpoints, quoted
from tfdqt.runs.folder import find_run, locked

EVALUATION = "evaluation"  # the column of what is played in between


def make_logger(run_dir, fields, total_steps, lines, *, resume_step=None, show=True):
    """`log(metrics)` for the CSV, TensorBoard and the progress line, and `close()`.

    Args:
      fields: of the NamedTuple that `log` is given, its columns: among them step, mean_return, loss
        and a counter, games (finished) or samples (seen). With `evaluation` among them, a row is
        also written for log(metrics, evaluation=...).
      total_steps: steps in the whole run.
      lines: into so many parts it is divided; a row is written for each, and one for
        log(metrics, last=True).
      resume_step: of a resumed run; the rows behind it are dropped, for they come again.
    """
    from tqdm import tqdm

    path = Path(run_dir) / "log.csv"
    counter = "games" if "games" in fields else "samples"
    verb = "playing games" if counter == "games" else "reading samples"
    rows = _rows_until(path, resume_step)
    columns = ("epoch", "seconds", *fields)
    if EVALUATION not in columns and any(EVALUATION in row for row in rows):
        columns += (EVALUATION,)  # it was evaluated before it was resumed
    before = float(rows[-1]["seconds"]) if rows else 0.0
    write_rows(path, ({key: row.get(key, "") for key in columns} for row in rows), columns)
    file = open(path, "a", newline="", encoding="utf-8")
    writer = csv.DictWriter(file, columns)
    board = tf.summary.create_file_writer(str(Path(run_dir) / "tensorboard"))
    started = time.monotonic()
    written = dict(epoch=0, count=0, step=-1)  # as of the last row
    if rows:
        last_row = rows[-1]
        written = dict(
            epoch=int(last_row["epoch"]), count=int(last_row[counter]), step=int(last_row["step"])
        )
    # A run that goes on for longer than it was to counts on from the part that it had come to.
    ahead = max(0, written["epoch"] - (resume_step or 0) * lines // total_steps)
    bars = []  # made with the first line, below whatever was printed before

    def log(metrics, last=False, evaluation=None):
        epoch = min(lines, metrics.step * lines // total_steps) + ahead
        count = getattr(metrics, counter)
        if not bars:
            bars.append(
                tqdm(
                    total=lines + ahead,
                    initial=written["epoch"],
                    disable=not show,
                    mininterval=0.2 if sys.stderr.isatty() else 30,
                    bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}",
                )
            )
        bar = bars[0]
        bar.set_description_str(
            f"Epoch: {epoch} | {metrics.step} | {metrics.loss:.3f} | {metrics.mean_return:.3f} | "
            f"{verb}: {count - written['count']}/{count}",
            refresh=False,
        )
        if epoch == written["epoch"] and not last and evaluation is None:
            bar.update(0)
            return
        bar.update(epoch - written["epoch"])
        if evaluation is not None and metrics.step == written["step"]:
            return  # an evaluation that was made again: the row is there
        written.update(epoch=epoch, count=count, step=metrics.step)
        seconds = round(before + time.monotonic() - started, 2)
        row = dict(epoch=epoch, seconds=seconds, **metrics._asdict())
        if evaluation is not None:
            row[EVALUATION] = evaluation
        try:
            write(row, metrics.step)
        except (OSError, tf.errors.OpError) as error:
            saved = checkpoints(path.parent)
            on = f"go on with --resume={quoted(path.parent)}" if saved else "start again"
            raise UsageError(
                f"The log in {path.parent} can't be written ({first_line(error)}); make room, then "
                f"{on}."
            ) from None

    def write(row, step):
        writer.writerow(_short(row))
        file.flush()
        with board.as_default(step=step):
            for key, value in row.items():
                if key not in ("step", "epoch", "seconds") and not (
                    isinstance(value, float) and math.isnan(value)
                ):
                    # As 64 bits, from which what is too large for 32 becomes infinite.
                    tf.summary.scalar(key, np.float64(value))

    def close():
        for bar in bars:
            bar.refresh()
            bar.close()
        for each in (file, board):
            # A full disk was told of where it mattered.
            with contextlib.suppress(OSError, tf.errors.OpError):
                each.close()

    return log, close


def _rows_until(path, step):
    """The whole rows of a log up to `step`; none without a step.

    A log that is none any more is put aside, for what was learned does not hang on it.
    """
    if step is None or not path.exists():
        return []
    try:
        rows = _whole_rows(_rows_in(path))
        for row in rows:
            row.setdefault("samples", row.get("games"))  # what text runs called them before 0.2
        rows = [row for row in rows if int(row["step"]) <= step]
        for row in rows[-1:]:  # from which it is counted on
            float(row["seconds"]), int(row["epoch"]), int(row["samples"])
        return rows
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        aside = path.with_name("log.csv.damaged")
        path.replace(aside)
        print(f"note: {path} was no log ({error!r}); it is {aside.name} now.", file=sys.stderr)
        return []


def _short(row):
    """A row with its numbers to six digits."""
    return {
        key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()
    }


def write_rows(path, rows, columns=None):
    """Write dicts as a CSV with these columns or one for every key, numbers to six digits.

    To a file beside it that is then renamed, so whoever reads it finds all rows of before or now.
    """
    rows = list(rows)
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    path = Path(path)
    temporary = path.with_suffix(".writing")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(_short(row) for row in rows)
    temporary.replace(path)


def read_rows(path):
    """What `write_rows` wrote, as dicts of strings; none if the file is not there."""
    if not Path(path).exists():
        return []
    return _read(path)


def _rows_in(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _whole_rows(rows):
    """Without one that was cut off while it was written."""
    return [row for row in rows if None not in row.values()]


def _read(path):
    """The rows of a CSV as dicts of strings. Raises UsageError if it can't be read."""
    try:
        return _rows_in(path)
    except OSError as error:
        raise UsageError(f"{path} can't be read ({error.strerror}).") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no CSV ({error}); move it away.") from None


def add_row(path, row):
    """Add a dict as a row to a CSV, to which other processes may add rows too."""
    add_rows(path, [row])


def add_rows(path, rows):
    """As `add_row`, of some rows at once."""
    with locked(path.with_suffix(".lock")):
        write_rows(path, [*read_rows(path), *rows])


def read_log(run_dir):
    """The rows of a run's log.csv; see read_csv."""
    folder = find_run(run_dir)
    path = folder / "log.csv"
    if not path.exists():
        raise UsageError(
            f"{folder} has no log.csv, as an exported policy and a run that has just begun have "
            "none; give a run that has trained."
        )
    return read_csv(path)


def log_so_far(run_dir):
    """As `read_log`, or None before there are rows."""
    try:
        return read_log(run_dir)
    except UsageError:
        return None


def read_csv(path):
    """A CSV of numbers as a dict of float arrays by column.

    Raises UsageError if it is empty, or has something else in it.
    """
    rows = _whole_rows(_read(path))
    if not rows:
        raise UsageError(f"{path} has no rows yet; let the run train for longer.")
    try:
        return {
            # An empty cell is of a column that came later.
            key: np.array([float(row[key]) if row[key] else np.nan for row in rows])
            for key in rows[0]
        }
    except ValueError as error:
        raise UsageError(f"{path} has a cell that is no number ({error}); mend it.") from None
