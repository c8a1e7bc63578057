"""What a network looks at, as a map over the entries of an observation: attention, or influence."""

from typing import NamedTuple

import numpy as np

from tfdqt.games.spaces import grid_of
from tfdqt.policy import split_outputs

OTHERS = 3  # steps that an entry is taken from
MOST_PLACES = 1_024  # that are exchanged one by one
ROW = 16  # entries of a row, of an observation without rows
FULL = 0.5  # the part of the steps, of those with any, whose greatest place is not drawn full
NAMED = 3  # places that are told by name


class Maps(NamedTuple):
    """M maps of R x C places for each of T steps."""

    title: str
    names: tuple  # of the maps [M]
    values: np.ndarray  # [T, M, R, C], NaN where there is no place
    cells: bool  # whether a place is a cell, of a row and a column, or an entry of a flat row
    margin: int | None  # cells around those in the environment's picture; None: not its cells

    def scaled(self):
        """The values from 0 to 1 within each map, over all of its steps: [T, M, R, C]."""
        values = np.nan_to_num(self.values)
        greatest = values.max(axis=(2, 3))
        tops = [np.quantile(each[each > 0], FULL) if each.any() else 1.0 for each in greatest.T]
        return np.clip(values / np.array(tops)[:, None, None], 0.0, 1.0)

    def strongest(self, step, which):
        """The places of a map that have most, in words: their numbers, or rows and columns."""
        values = np.nan_to_num(self.values[step, which])
        order = np.argsort(-values, axis=None, kind="stable")[:NAMED]
        places = [place for place in order.tolist() if values.flat[place] > 0]
        if self.cells:
            places = [divmod(place, values.shape[1]) for place in places]
        return ", ".join(map(str, places))


def in_rows(values):
    """Values [..., F] of entries without rows as [..., R, C], the last row filled up with NaN."""
    count = values.shape[-1]
    columns = min(count, ROW)
    empty = -count % columns
    values = np.concatenate([values, np.full((*values.shape[:-1], empty), np.nan)], axis=-1)
    return values.reshape(*values.shape[:-1], -1, columns)


def attention_maps(shares, info, network, margin):
    """Maps of attention to features or cells, of shares [T, blocks, tokens of a window]; or None.

    None for tokens that are whole steps. Steps of a window are added up.
    """
    if network.tokens == "steps":
        return None
    each = shares.reshape(*shares.shape[:2], network.context, -1).sum(axis=2)
    names = tuple(f"block {block + 1}" for block in range(shares.shape[1]))
    if network.tokens == "features":
        return Maps(
            "Attention to the entries of the observation", names, in_rows(each), False, None
        )
    grid = grid_of(info)
    rows, columns = grid.height // network.patch, grid.width // network.patch
    cells = each[..., :-1].reshape(*each.shape[:2], rows, columns)
    whole = margin is not None and margin % network.patch == 0
    margin = margin // network.patch if whole else None
    title = "Attention to the cells" + _drawn_over(names, margin)
    return Maps(title, names, cells, True, margin)


def places_of(info):
    """Entries of an observation that are exchanged together: ([places, entries], rows, columns).

    Those of a cell of a grid, else each by itself; rows is None then.
    """
    grid = grid_of(info)
    if grid is None:
        return np.arange(info.features)[:, None], None, None
    entries = grid.start + np.arange(grid.size).reshape(-1, grid.channels)
    return entries, grid.height, grid.width


def influence_maps(score, inputs, info, margin, *, policy, seed=0):
    """Maps of what the scores of a game hang on; None where there is too little or too much.

    How far the scores change, on average, when an entry of the observations is that of another step
    of the same game, in all steps of the window at once: the preference between actions (the root
    mean square change of the scores about their mean), and the best score. After permutation
    importance (Breiman, 2001), state by state.

    Args:
      score: dict of inputs [N, ...] -> scores [N, A]; always called with as many windows.
      inputs: dict of the windows of T steps, [T, C, ...].
      policy: whether the scores are probabilities, and how good a state is can't be read off them.
    """
    entries, rows, columns = places_of(info)
    obs = inputs["obs"]
    steps = len(obs)
    if not 1 < len(entries) <= MOST_PLACES or steps < 2:
        return None
    count = len(entries)
    rng = np.random.default_rng([seed, 10])
    found = np.zeros((steps, 2, count))
    for step in range(steps):
        others = (step + rng.integers(1, steps, OTHERS)) % steps
        for other in others:
            batch = {
                name: np.repeat(part[step : step + 1], count + 1, 0)
                for name, part in inputs.items()
            }
            exchanged = obs[other][:, entries].transpose(1, 2, 0)  # [places, entries, C]
            batch["obs"][np.arange(count)[:, None], :, entries] = exchanged
            found[step] += changes(score(batch), info.parts) / OTHERS
    shaped = in_rows(found) if rows is None else found.reshape(steps, 2, rows, columns)
    names = ("which action",) if policy else ("which action", "how good")
    cells = rows is not None
    shown = shaped[:, : len(names)]
    margin = margin if cells else None
    title = "What the choice hangs on" + _drawn_over(names, margin)
    return Maps(title, names, shown, cells, margin)


def _drawn_over(names, margin):
    return "" if margin is None else f" (over the picture: {names[-1]})"


def changes(scores, parts=()):
    """How scores [N + 1, A] differ from the last row: [2, N], of the preference and of the best.

    NaN is what is not legal, and counts for nothing. parts: as in `losses`.
    """
    legal = np.isfinite(scores[-1])
    apart = np.concatenate(
        [each - np.nanmean(each, axis=1, keepdims=True) for each in split_outputs(scores, parts)], 1
    )
    moved = (apart[:-1] - apart[-1])[:, legal]
    best = best_values(scores, parts)
    return np.stack([np.sqrt((moved**2).mean(axis=1)), np.abs(best[:-1] - best[-1])])


def best_values(scores, parts=()):
    """The best score of each row [N, A], of several parts the sum of theirs: [N]."""
    return np.sum([np.nanmax(each, axis=1) for each in split_outputs(scores, parts)], axis=0)
