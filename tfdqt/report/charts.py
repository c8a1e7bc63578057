"""The charts of the page, as Vega-Lite specifications: plain dicts that hold their data."""

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"  # a name; nothing is fetched
HEIGHT = 260
SMALL = 180


def _chart(description, data, **spec):
    """What all charts have. description: what a screen reader says."""
    return {
        "$schema": SCHEMA,
        "description": description,
        "width": "container",
        "height": HEIGHT,
        "data": {"values": data},
        **spec,
    }


def _number(field, title, **options):
    return {"field": field, "type": "quantitative", "title": title, **options}


def _color(field, title=None):
    # A legend below takes no width from a small screen.
    legend = {"orient": "bottom", "columns": 1, "labelLimit": 600, "title": title}
    legend |= {"symbolOpacity": 1, "symbolType": "square"}
    return {"field": field, "type": "nominal", "legend": legend}


def learning(rows, unit):
    """Mean returns over steps or seconds: a line a group, over a band from lowest to highest."""
    over = {
        "name": "over",
        "value": "step",
        "bind": {"input": "radio", "options": ["step", "seconds"], "name": "over "},
    }
    scale = {"zero": False, "nice": False}
    x = _number("x", None, scale=scale, axis={"format": "~s", "title": unit})
    color = _color("label")
    tooltip = [
        {"field": "label", "title": "run"},
        {"field": "x", "title": "at", "format": ",.0f"},
        {"field": "mean", "title": "mean", "format": ",.3f"},
        {"field": "low", "title": "lowest", "format": ",.3f"},
        {"field": "high", "title": "highest", "format": ",.3f"},
        {"field": "seeds", "title": "seeds"},
    ]
    return _chart(
        "Mean return while training, over steps or seconds.",
        rows,
        params=[over],
        transform=[{"filter": "datum.over === over"}],
        encoding={"x": x, "color": color},
        layer=[
            {
                "mark": {"type": "area", "opacity": 0.25},
                "encoding": {"y": _number("low", "mean return"), "y2": {"field": "high"}},
            },
            {
                "params": [{"name": "zoom", "select": "interval", "bind": "scales"}],
                "mark": {"type": "line"},
                "encoding": {"y": _number("mean", "mean return")},
            },
            {
                "mark": {"type": "point", "opacity": 0, "size": 60},
                "encoding": {"y": _number("mean", "mean return"), "tooltip": tooltip},
            },
        ],
    )


def columns(rows, unit):
    """A column of the logs that is chosen: a line a run."""
    names = sorted({row["column"] for row in rows})
    first = next((name for name in ("loss", *names) if name in names), None)
    chosen = {
        "name": "column",
        "value": first,
        "bind": {"input": "select", "options": names, "name": "column "},
    }
    tooltip = [
        {"field": "run"},
        {"field": "step", "format": ",.0f"},
        {"field": "value", "format": ",.5g"},
    ]
    return _chart(
        "A column of the logs, over steps.",
        rows,
        height=SMALL,
        params=[
            chosen,
            {"name": "zoom", "select": "interval", "bind": "scales"},
        ],
        transform=[{"filter": "datum.column === column"}],
        mark={"type": "line", "tooltip": True},
        encoding={
            "x": _number("step", None, scale={"nice": False}, axis={"format": "~s", "title": unit}),
            "y": _number("value", None, scale={"zero": False}),
            "color": _color("label"),
            "detail": {"field": "run"},
            "tooltip": tooltip,
        },
    )


def histogram(rows, field, title, counted):
    """How often a value came up in what is `counted`, such as games, of each run."""
    return _chart(
        f"Distribution of {title}.",
        rows,
        height=SMALL,
        mark={"type": "bar", "opacity": 0.7, "tooltip": True},
        encoding={
            "x": _number(field, title, bin={"maxbins": 30}),
            "y": {"aggregate": "count", "stack": None, "title": counted},
            "color": _color("run"),
        },
    )


def overestimation(rows):
    """The value of a step against the discounted return that followed it."""
    ends = [f(row[key] for row in rows for key in ("value", "followed")) for f in (min, max)]
    line = {"values": [{"x": end, "y": end} for end in ends]}
    near = {"scale": {"zero": False}}
    return _chart(
        "Value of the best action at each step, against the return that followed. Above the line "
        "less came than was expected.",
        rows,
        layer=[
            {
                "mark": {"type": "point", "opacity": 0.35, "size": 12, "filled": True},
                "encoding": {
                    "x": _number("followed", "discounted return that followed", **near),
                    "y": _number("value", "value of the best action", **near),
                    "tooltip": [{"field": key} for key in ("game", "step", "value", "followed")],
                },
            },
            {
                "data": line,
                "mark": {"type": "line", "strokeDash": [4, 4], "color": "#888"},
                "encoding": {
                    "x": {"field": "x", "type": "quantitative"},
                    "y": {"field": "y", "type": "quantitative"},
                },
            },
        ],
    )


def simulations(rows):
    """Mean return over the simulations of a search, with intervals."""
    x = _number("simulations", "simulations a move", scale={"type": "log", "base": 2})
    encoding = {"x": x, "color": _color("how"), "detail": {"field": "run"}}
    return _chart(
        "Mean return of games over the simulations of a tree search.",
        rows,
        height=SMALL,
        encoding=encoding,
        layer=_means_with_intervals({"y": _number("mean", "mean return", scale={"zero": False})}),
    )


def by_distance(rows):
    """Mean return of puzzles over the length of their shortest solutions, with intervals."""
    x = {
        "field": "span",
        "type": "ordinal",
        "sort": {"field": "order"},
        "title": "steps of the shortest solution",
        "axis": {"labelAngle": 0},
    }
    mean = {
        "y": _number("mean", "mean return"),
        "tooltip": [{"field": key} for key in ("run", "how", "span", "games", "mean")],
    }
    return _chart(
        "Mean return of puzzles over the length of their shortest solutions.",
        rows,
        height=SMALL,
        encoding={"x": x, "color": _color("how"), "detail": {"field": "run"}},
        layer=_means_with_intervals(mean),
    )


def _means_with_intervals(encoding):
    """Layers of a line of means, as `encoding` says, with a rule from low to high at each."""
    line = {"mark": {"type": "line", "point": True, "tooltip": True}, "encoding": encoding}
    ends = {"y": _number("low", "mean return"), "y2": {"field": "high"}}
    return [line, {"mark": {"type": "rule"}, "encoding": ends}]


def timeline(rows):
    """Values of a game's actions over its steps, with the step that is shown now."""
    return _chart(
        "Value of each action at every step of the game; the rule marks the step that is shown.",
        rows,
        height=SMALL,
        params=[{"name": "now", "value": 0}],
        layer=[
            {
                "mark": {"type": "line", "interpolate": "step-after"},
                "encoding": {
                    "x": _number("step", "step"),
                    "y": _number("value", "value", scale={"zero": False}),
                    "color": _color("action"),
                },
            },
            {
                "data": {"values": [{}]},
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {"x": {"datum": {"expr": "now"}, "type": "quantitative"}},
            },
        ],
    )
