"""A film of a game beside what the network held: values, quantiles, attention, lives lost."""

from pathlib import Path

import numpy as np

from tfdqt.errors import UsageError

HEIGHT = 420  # pixels of the picture
PANEL = 340  # pixels beside it
ROW = 22
INK = (230, 237, 243)
SOFT = (110, 118, 129)
MARK = (88, 166, 255)
LOST = (248, 81, 73)
PAPER = (13, 17, 23)
FPS = 20


def film_explained(game, folder):
    """Write an Explained game as MP4 to `folder`: -> its path.

    Raises UsageError for a game without pictures, and if it can't be written.
    """
    import imageio.v2 as imageio

    if game.frames[0] is None:
        raise UsageError("This environment draws no picture; leave out --explain.")
    path = Path(folder) / "explained.mp4"
    low = min(0.0, float(game.scores.min()))
    high = float(game.scores.max())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with imageio.get_writer(path, fps=FPS, macro_block_size=2) as writer:
            for step in range(len(game.actions)):
                writer.append_data(draw_step(game, step, low, high))
    except OSError as error:
        raise UsageError(
            f"{path} can't be written ({error.strerror}); name another folder."
        ) from None
    return path


def draw_step(game, step, low, high):
    """One picture of the film, [HEIGHT, W, 3]; low, high: the least and greatest value of all."""
    from PIL import Image, ImageDraw

    frame = Image.fromarray(game.frames[step])
    frame = frame.resize((2 * (frame.width * HEIGHT // frame.height // 2), HEIGHT))
    whole = Image.new("RGB", (frame.width + PANEL, HEIGHT), PAPER)
    whole.paste(frame, (0, 0))
    pen = ImageDraw.Draw(whole)
    left = frame.width + 12
    pen.text((left, 8), f"step {step}   reward {game.rewards[step]:g}", INK)
    if game.life_lost[step]:
        pen.rectangle((0, 0, frame.width - 1, HEIGHT - 1), outline=LOST, width=6)
        pen.text((left + 200, 8), "a life is lost", LOST)
    top = 34
    shown = _shown_actions(game, step, (HEIGHT - top - 110) // ROW)
    for i, action in enumerate(shown):
        _draw_bar(pen, game, step, action, (left, top + i * ROW), low, high)
    if game.attention is not None:
        _draw_attention(pen, game.attention[step], (left, top + len(shown) * ROW + 14))
    return np.asarray(whole)


def _shown_actions(game, step, most):
    """The actions that there is room for: all, or the best, in their order."""
    count = len(game.names)
    if count <= most:
        return list(range(count))
    return sorted(np.argsort(-game.scores[step])[:most].tolist())


def _draw_bar(pen, game, step, action, at, low, high):
    """An action's value as a bar, with a tick for each quantile of its return."""
    x, y = at
    chosen = action == game.actions[step]
    value = game.scores[step, action]
    begin = x + 90
    width = PANEL - 170

    def place(number):
        return begin + float(np.clip((number - low) / (high - low or 1.0), 0, 1)) * width

    pen.text((x, y + 3), game.names[action][:13], MARK if chosen else INK)
    pen.rectangle((begin, y + 4, begin + width, y + ROW - 6), outline=SOFT)
    pen.rectangle((begin, y + 4, place(value), y + ROW - 6), fill=MARK if chosen else SOFT)
    if game.quantiles is not None:
        for quantile in game.quantiles[step, action]:
            pen.line((place(quantile), y + 2, place(quantile), y + ROW - 4), fill=INK)
    pen.text((begin + width + 6, y + 3), f"{value:.2f}", INK)


def _draw_attention(pen, shares, at):
    """A row of cells a block: how its attention is shared out among the latest steps."""
    x, y = at
    pen.text((x, y), "attention to the latest steps, oldest first", INK)
    width = (PANEL - 80) / shares.shape[1]
    for block, row in enumerate(shares):
        top = y + 18 + block * ROW
        pen.text((x, top + 4), f"block {block + 1}", INK)
        for i, share in enumerate(row):
            begin = x + 56 + i * width
            fill = tuple(int(p + share * (m - p)) for p, m in zip(PAPER, MARK))
            pen.rectangle((begin, top, begin + width - 2, top + ROW - 4), fill=fill, outline=SOFT)
