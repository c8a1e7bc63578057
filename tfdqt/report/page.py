"""One HTML file that holds all that it shows, and opens anywhere without a network."""

import base64
import functools
import html
import io
import json
from importlib import resources

import numpy as np

from tfdqt.errors import MissingPackage
from tfdqt.report import charts
from tfdqt.report.gather import (
    changed_settings,
    column_rows,
    comparisons,
    curve_rows,
    distance_rows,
    evaluations,
    search_rows,
    shown_way,
    state_of,
)
from tfdqt.version import __version__

WIDEST = 320  # pixels of a picture
MOST_QUANTILES = 4  # of an action that are told, or up to twice as many
LARGEST = 15_000_000  # bytes of a page


@functools.cache
def vega():
    """Vega, Vega-Lite and Vega-Embed as one script. Raises MissingPackage without them."""
    try:
        import vl_convert
    except ModuleNotFoundError:
        raise MissingPackage(
            "The report draws with Vega; pip install --no-deps -r requirements-report.txt, or pip "
            "install vl-convert-python."
        ) from None
    return vl_convert.javascript_bundle()


def make_page(groups, title, *, film=None, values=(), samples=()):
    """The page of some Groups as a string.

    Args:
      film: Explained of a game, or None.
      values: rows of `explained.value_rows`.
      samples: dicts of text, reward, words and values (`generation.Written`).
    """
    found = evaluations(groups)
    unit = "steps" if groups[0].game else "updates"
    drawn = {}
    parts = [_head(groups, title), _settings(groups)]
    rows = curve_rows(groups)
    if rows:
        drawn["learning"] = charts.learning(rows, unit)
        parts.append(_section("Learning", _chart("learning"), _note_of_curves(rows)))
    parts.append(_evaluations(found, groups, drawn))
    compared = comparisons(groups, found)
    if compared:
        parts.append(_comparison(compared))
    searched = search_rows(found)
    if searched:
        drawn["simulations"] = charts.simulations(searched)
        shown = [_chart("simulations")]
        by_distance = distance_rows(found)
        if by_distance:
            drawn["distance"] = charts.by_distance(by_distance)
            shown.append(_chart("distance"))
        parts.append(_section("Search", *shown))
    rows = column_rows(groups)
    if rows:
        drawn["columns"] = charts.columns(rows, unit)
        parts.append(_section("The logs", _chart("columns")))
    if values:
        drawn["overestimation"] = charts.overestimation(values)
        parts.append(_values(values))
    if film is not None:
        drawn["timeline"] = charts.timeline(_timeline_rows(film))
        parts.append(_film(film))
    if samples:
        parts.append(_samples(samples))
    data = dict(charts=drawn)
    if film is not None:
        data["film"] = film_data(film)
    return _whole(title, parts, data)


def _whole(title, parts, data):
    here = resources.files("tfdqt.report")
    scripts = [
        f'<script type="application/json" id="data-{name}">{_json(value)}</script>'
        for name, value in data.items()
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_e(title)}</title>",
            f"<style>{here.joinpath('page.css').read_text(encoding='utf-8')}</style>",
            "</head><body><main>",
            *parts,
            "</main>",
            *scripts,
            f"<script>{_script(vega())}</script>",
            f"<script>{_script(here.joinpath('page.js').read_text(encoding='utf-8'))}</script>",
            "</body></html>\n",
        ]
    )


def _e(text):
    return html.escape(str(text))


def _script(text):
    """JavaScript that can stand in a page: nothing in it ends the element."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _json(value):
    """JSON that can stand in a page; what is no number is null."""

    def plain(x):
        if isinstance(x, dict):
            return {key: plain(part) for key, part in x.items()}
        if isinstance(x, (list, tuple)):
            return [plain(part) for part in x]
        if isinstance(x, np.generic):
            x = x.item()
        if isinstance(x, float):
            return float(f"{x:.5g}") if np.isfinite(x) else None
        return x

    return json.dumps(plain(value), separators=(",", ":")).replace("<", "\\u003c")


# -------------------------------------------------------------------------------------------------
# Parts


def _section(title, *parts):
    name = title.lower().replace(" ", "-")
    return (
        f'<section aria-labelledby="{name}"><h2 id="{name}">{_e(title)}</h2>'
        + "".join(parts)
        + "</section>"
    )


def _chart(name):
    return f'<div class="chart" id="chart-{name}"></div>'


def _table(head, rows, numbers=()):
    """A table of cells; those of the columns `numbers` stand to the right."""
    cells = "".join(f'<th scope="col">{_e(name)}</th>' for name in head)
    lines = []
    for row in rows:
        each = (
            f'<td class="number">{_e(cell)}</td>' if i in numbers else f"<td>{_e(cell)}</td>"
            for i, cell in enumerate(row)
        )
        lines.append(f"<tr>{''.join(each)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _head(groups, title):
    rows = [
        (group.label, name, settings["seed"], state_of(folder, settings, log))
        for group in groups
        for folder, name, settings, log in zip(group.runs, group.names, group.settings, group.logs)
    ]
    return (
        f"<h1>{_e(title)}</h1>"
        + _table(("what", "run", "seed", "how far"), rows)
        + f'<p class="soft">Made by tfdqt {__version__}.</p>'
    )


def _settings(groups):
    rows = []
    for group in groups:
        for name, (value, default) in changed_settings(group.settings[0]).items():
            rows.append((group.label, name.replace("_", "-"), _shown(value), _shown(default)))
    if not rows:
        return _section("Settings", "<p>All as by default.</p>")
    return _section(
        "Settings that differ from the defaults",
        _table(("what", "setting", "here", "default"), rows),
    )


def _shown(value):
    return value if isinstance(value, str) else json.dumps(value)


def _note_of_curves(rows):
    said = (
        "The mean of the seeds, over a band from the lowest to the highest; beside finished runs "
        "others are left out."
    )
    if max(row["seeds"] for row in rows) == 1:
        said = "One seed each."
    return f'<p class="soft">{said} Drag and scroll to zoom, double-click to go back.</p>'


def _evaluations(found, groups, drawn):
    if not found:
        folder = groups[0].runs[0]
        return _section(
            "Evaluation",
            f"<p>None yet: <code>python scripts/evaluate.py {_e(folder)}</code></p>",
        )
    rows = [
        (
            each["run"],
            f"{each['step']:,}",
            shown_way(each["how"]),
            each["games"],
            f"{each['mean']:.3f}",
            f"{each['low']:.3f} to {each['high']:.3f}",
        )
        for each in found
    ]
    counted = "games" if groups[0].game else "texts or games"
    head = ("run", "after", "how", counted, "mean return", "95% interval")
    newest = {each["run"]: each for each in sorted(found, key=lambda each: each["step"])}
    games = [
        dict(run=run, value=value, length=length)
        for run, each in newest.items()
        for value, length in zip(each["returns"], each["lengths"])
    ]
    length = "steps of a game" if groups[0].game else "words"
    drawn["returns"] = charts.histogram(games, "value", "return", counted)
    drawn["lengths"] = charts.histogram(games, "length", length, counted)
    return _section(
        "Evaluation", _table(head, rows, {1, 3, 4}), _chart("returns"), _chart("lengths")
    )


def _comparison(rows):
    cells = [
        (
            row["task"],
            row["label"],
            row["runs"],
            _with_interval(row["mean"], row["low"], row["high"], 3),
            _with_interval(row["beats"], row["beats_low"], row["beats_high"], 2)
            if "beats" in row
            else "",
            row["by"],
        )
        for row in rows
    ]
    head = (
        "task",
        "what",
        "runs",
        "interquartile mean [95%]",
        "beats the first, probability [95%]",
        "by",
    )
    note = '<p class="soft">After Agarwal et al. (2021).</p>'
    return _section("Comparison", _table(head, cells, {2}), note)


def _with_interval(value, low, high, digits):
    """A value and its interval; of a single run there is none."""
    if low == high:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _values(rows):
    errors = np.array([row["value"] - row["followed"] for row in rows])
    games = len({row["game"] for row in rows})
    said = (
        f"<p>Over {len(rows):,} steps of {games} games the best action's value is "
        f"{errors.mean():+.3f} from the discounted return that followed, on average (standard "
        f"deviation {errors.std():.3f}). Rewards are as the learner sees them.</p>"
    )
    return _section("Is it overestimating?", said, _chart("overestimation"))


# -------------------------------------------------------------------------------------------------
# A game


def film_data(film):
    """An Explained game as page.js shows it."""
    frames = None if film.frames is None else [jpeg(frame) for frame in film.frames]
    quantiles = film.quantiles
    if quantiles is not None:
        every = max(1, quantiles.shape[-1] // MOST_QUANTILES)
        quantiles = np.sort(quantiles, axis=-1)[..., ::every].tolist()
    return dict(
        frames=frames,
        scores=film.scores.tolist(),
        quantiles=quantiles,
        chosen=[np.flatnonzero(each).tolist() for each in film.chosen],
        rewards=film.rewards.tolist(),
        lives=film.life_lost.tolist(),
        attention=None if film.attention is None else film.attention.tolist(),
        maps=None if film.maps is None else _maps_data(film.maps),
        names=film.names,
    )


def _maps_data(maps):
    """Maps as page.js draws them: of each step all places as bytes, in base64."""
    places = np.round(255 * maps.scaled()).astype(np.uint8)
    _, _, rows, columns = maps.values.shape
    return dict(
        names=maps.names,
        rows=rows,
        columns=columns,
        margin=maps.margin,
        strongest=[
            [maps.strongest(step, which) for which in range(len(maps.names))]
            for step in range(len(places))
        ],
        steps=[base64.b64encode(step.tobytes()).decode() for step in places],
    )


def jpeg(frame):
    """A picture [H, W, 3] as JPEG, at most WIDEST pixels wide, in base64."""
    from PIL import Image

    picture = Image.fromarray(frame)
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, max(1, picture.height * WIDEST // picture.width)))
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=80)
    return base64.b64encode(written.getvalue()).decode()


def _timeline_rows(film):
    return [
        dict(step=step, action=name, value=film.scores[step, i])
        for step in range(len(film.rewards))
        for i, name in enumerate(film.names)
        if np.isfinite(film.scores[step, i])
    ]


def _film(film):
    picture = (
        '<div class="picture"><img id="film-picture" '
        'alt="The environment at the step that is told above"></div>'
        if film.frames is not None
        else "<p>This environment draws no picture.</p>"
    )
    attention = (
        '<h3>Attention to the latest steps, oldest first</h3><div id="film-attention" '
        'class="attention"></div>'
        if film.attention is not None
        else ""
    )
    maps = (
        f'<h3>{_e(film.maps.title)}</h3><div id="film-maps" class="maps"></div>'
        if film.maps is not None
        else ""
    )
    life = (
        '<button id="film-life" type="button">Next life lost</button>'
        if film.life_lost.any()
        else ""
    )
    return _section(
        "A game",
        '<div id="film"><div class="controls">'
        '<button id="film-back" type="button" aria-label="One step back">◀</button>'
        '<button id="film-play" type="button">Play</button>'
        '<button id="film-on" type="button" aria-label="One step on">▶</button>'
        f'{life}<input id="film-step" type="range" min="0" value="0" aria-label="Step of the game">'
        '</div><p id="film-said" role="status"></p>'
        f'<div class="film"><div>{picture}</div><div><h3>Values of the actions</h3>'
        f'<div id="film-values"></div>{attention}{maps}</div></div></div>',
        _chart("timeline"),
    )


# -------------------------------------------------------------------------------------------------
# Texts


def _samples(samples):
    known = [value for one in samples for value in one["values"] if value is not None]
    middle = float(np.median(known)) if known else 0.0
    spread = (np.percentile(np.abs(np.array(known) - middle), 90) or 1.0) if known else 1.0
    lines = []
    for one in samples:
        words = "".join(
            _word(word, value, middle, spread) for word, value in zip(one["words"], one["values"])
        )
        lines.append(f'<p class="sample"><strong>{one["reward"]:.3f}</strong> {words}</p>')
    note = (
        '<p class="soft">What each text is worth, and each word by its value before it was '
        f"written: green above the middle ({middle:.3f}), red below. A word that is pointed at "
        "tells its value.</p>"
    )
    return _section("Texts", note if known else "", *lines)


def _word(word, value, middle, spread):
    if value is None:
        return f"<span>{_e(word)}</span>"
    part = float(np.clip((value - middle) / spread, -1, 1))
    color = f"rgba(var(--{'good' if part > 0 else 'bad'}), {abs(part) * 0.6:.2f})"
    return f'<span title="{value:.3f}" style="background: {color}">{_e(word)}</span>'
