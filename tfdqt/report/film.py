"""A film of a game beside what the network held: values, quantiles, attention, maps, lives lost."""

from pathlib import Path

import numpy as np

from tfdqt.errors import UsageError
from tfdqt.games.play import write_gif

HEIGHT = 420  # pixels of the picture
PANEL = 340  # pixels beside it
ROW = 22
INK = (230, 237, 243)
SOFT = (110, 118, 129)
MARK = (88, 166, 255)
LOST = (248, 81, 73)
PAPER = (13, 17, 23)
FPS = 20
GIF_EVERY = 4  # of its pictures one is in the GIF
GIF_PICTURES = 200
GIF_MILLISECONDS = 100  # each
GIF_WIDTH = 540
TOP = 34  # pixels above the values
LINE = 18  # of a title
MOST_BLOCKS = 8  # whose attention is shown, the last ones
MOST_STEPS = 64  # to which attention is shown, the latest ones
WIDEST = 1_200  # pixels of a picture
PLACE = (28, 33, 40)  # of a map, where nothing is
MOST_LETTERS = 54  # across the panel
FEWEST = 4  # actions that are shown, if there are as many


def film_explained(game, folder):
    """Write an Explained game as MP4, and its beginning as GIF, to `folder`: -> the MP4's path.

    Raises UsageError for a game without pictures, and if it can't be written.
    """
    import imageio.v2 as imageio

    if game.frames is None:
        raise UsageError("This environment draws no picture; leave out --explain.")
    path = Path(folder) / "explained.mp4"
    panel = Panel(game)
    some = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with imageio.get_writer(path, fps=FPS, macro_block_size=2) as writer:
            for step in range(len(game.rewards)):
                picture = panel.draw(step)
                writer.append_data(picture)
                if step % GIF_EVERY == 0 and len(some) < GIF_PICTURES:
                    some.append(picture)
        write_gif(some, path.with_suffix(".gif"), duration=GIF_MILLISECONDS, width=GIF_WIDTH)
    except OSError as error:
        raise UsageError(
            f"{path} can't be written ({error.strerror}); name another folder."
        ) from None
    return path


class Panel:
    """Draws the steps of an Explained game, each with what the network held beside it."""

    def __init__(self, game):
        self.game = game
        self.low = min(0.0, float(np.nanmin(game.scores)))
        self.high = float(np.nanmax(game.scores))
        self.maps = None if game.maps is None else game.maps.scaled()
        blocks = 0 if game.attention is None else min(MOST_BLOCKS, game.attention.shape[1])
        self.attention = LINE + blocks * ROW + 14 if blocks else 0  # its height
        self.most = max(FEWEST, (HEIGHT - TOP - self.attention - 100) // ROW)
        shown = min(self.most, len(game.names))
        room = HEIGHT - TOP - shown * ROW - self.attention - 2 * LINE - 14
        first = game.frames[0]
        width = 2 * (first.shape[1] * HEIGHT // first.shape[0] // 2)
        self.size = min(max(2, width), WIDEST), HEIGHT  # of every picture, whatever its own is
        self.tiles = None if self.maps is None else tiling(self.maps.shape[1:], PANEL - 24, room)

    def draw(self, step):
        """One picture of the film, [HEIGHT, W, 3]."""
        from PIL import Image, ImageDraw

        game = self.game
        frame = Image.fromarray(game.frames[step]).resize(self.size)
        if game.maps is not None and game.maps.margin is not None:
            frame = overlaid(frame, np.pad(self.maps[step, -1], game.maps.margin))
        whole = Image.new("RGB", (frame.width + PANEL, HEIGHT), PAPER)
        whole.paste(frame, (0, 0))
        pen = ImageDraw.Draw(whole)
        left = frame.width + 12
        pen.text((left, 8), f"step {step}   reward {game.rewards[step]:g}", INK)
        if game.life_lost[step]:
            pen.rectangle((0, 0, frame.width - 1, HEIGHT - 1), outline=LOST, width=6)
            pen.text((left + 200, 8), "a life is lost", LOST)
        top = TOP
        for action in self._shown_actions(step):
            self._draw_bar(pen, step, action, (left, top))
            top += ROW
        top += 14
        if game.attention is not None:
            _draw_attention(pen, game.attention[step], (left, top))
            top += self.attention
        if self.tiles:
            self._draw_maps(pen, step, (left, top))
        return np.asarray(whole)

    def _shown_actions(self, step):
        """The actions that there is room for: all, or the best, in their order."""
        count = len(self.game.names)
        if count <= self.most:
            return list(range(count))
        order = np.argsort(-np.nan_to_num(self.game.scores[step], nan=-np.inf), kind="stable")
        return sorted(order[: self.most].tolist())

    def _draw_bar(self, pen, step, action, at):
        """An action's value as a bar, with a tick for each quantile of its return."""
        x, y = at
        game = self.game
        chosen = game.chosen[step, action]
        value = game.scores[step, action]
        begin = x + 90
        width = PANEL - 170

        def place(number):
            part = np.clip((number - self.low) / (self.high - self.low or 1.0), 0, 1)
            return begin + float(part) * width

        pen.text((x, y + 3), game.names[action][:13], MARK if chosen else INK)
        if np.isnan(value):
            pen.text((begin, y + 3), "not legal", SOFT)
            return
        pen.rectangle((begin, y + 4, begin + width, y + ROW - 6), outline=SOFT)
        pen.rectangle((begin, y + 4, place(value), y + ROW - 6), fill=MARK if chosen else SOFT)
        if game.quantiles is not None:
            for quantile in game.quantiles[step, action]:
                pen.line((place(quantile), y + 2, place(quantile), y + ROW - 4), fill=INK)
        said = f"{value:.2f}" if abs(value) < 100_000 else f"{value:.3g}"
        pen.text((begin + width + 6, y + 3), said, INK)

    def _draw_maps(self, pen, step, at):
        """The maps of a step, each with the places that have most in words."""
        x, y = at
        side, across = self.tiles
        maps = self.game.maps
        rows = maps.values.shape[2]
        pen.text((x, y), maps.title.lower(), INK)
        for i, name in enumerate(maps.names):
            left = x + i % across * ((PANEL - 24) // across)
            top = y + LINE + i // across * (rows * side + LINE)
            # Cells are told by where they are drawn.
            said = name if maps.cells else f"{name}: {maps.strongest(step, i)}"
            pen.text((left, top), said[: MOST_LETTERS // across], SOFT)
            top += LINE - 2
            for (row, column), value in np.ndenumerate(self.maps[step, i]):
                if np.isfinite(maps.values[step, i, row, column]):
                    corner = (left + column * side, top + row * side)
                    other = (corner[0] + side - 2, corner[1] + side - 2)
                    pen.rectangle((*corner, *other), fill=_shade(value, PLACE))


def _draw_attention(pen, shares, at):
    """A row of cells a block: how its attention is shared out among the latest steps."""
    x, y = at
    blocks, context = shares.shape
    shown = shares[-MOST_BLOCKS:, -MOST_STEPS:]
    latest = "" if context <= MOST_STEPS else f"{MOST_STEPS} "
    pen.text((x, y), f"attention to the latest {latest}steps, oldest first", INK)
    width = (PANEL - 80) / shown.shape[1]
    for i, row in enumerate(shown):
        top = y + LINE + i * ROW
        pen.text((x, top + 4), f"block {blocks - len(shown) + i + 1}", INK)
        for place, share in enumerate(row):
            begin = x + 56 + place * width
            box = (begin, top, begin + width - 2, top + ROW - 4)
            pen.rectangle(box, fill=_shade(share), outline=SOFT)


def _shade(share, paper=PAPER):
    return tuple(int(p + share * (m - p)) for p, m in zip(paper, MARK))


def tiling(shape, width, height):
    """How M maps of R x C places stand in a box: (pixels of a place, maps in a row), or None.

    None where a place would be less than three pixels. Each map has a LINE for its name.
    """
    count, rows, columns = shape
    best = None
    for across in range(1, count + 1):
        down = -(-count // across)
        side = min((width // across - 6) // columns, (height // down - LINE) // rows, 16)
        if side >= 3 and (best is None or side >= best[0]):
            best = (side, across)
    return best


def overlaid(frame, table):
    """A picture with a map [R, C] from 0 to 1 of its cells over it."""
    from PIL import Image

    tint = Image.new("RGB", frame.size, MARK)
    shares = Image.fromarray((170 * table).astype(np.uint8)).resize(frame.size, Image.NEAREST)
    return Image.composite(tint, frame, shares)
