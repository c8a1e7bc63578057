"""What a network will take of memory, before it is built. Imports no TensorFlow by itself."""

from tfdqt import memory
from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.games.config import learns_every_step
from tfdqt.games.spaces import grid_of, grid_part

WORTH_TELLING = 10**9  # bytes
MOST_TOKENS = 2048  # of one step; attention compares every two
LONGEST_ROW = 8192  # bytes of an image that are still read as a row of numbers
CACHED = 2**20  # bytes of attention weights in a part of a batch, at the least
LEAST_PART = 4  # windows in a part of a batch, at the least


def tokens_a_step(info, network):
    """How many tokens a gpt reads of one step."""
    if network.tokens == "features":
        return info.features
    if network.tokens == "cells":
        grid = grid_of(info)
        return (grid.height // network.patch) * (grid.width // network.patch) + 1
    return 1


def check_tokens(info, network):
    """Raise UsageError if a network can't read the observations that `info` describes."""
    features = network.network == "gpt" and network.tokens == "features"
    has_bytes = info.obs_dtype == "uint8" and not info.nvec
    if network.ram_bits and (features or not has_bytes):
        without = "--tokens=features" if has_bytes else f"the observations of {info.name}"
        raise UsageError(
            f"--ram-bits adds the bits of bytes to their numbers, and {without} have none; leave "
            "it out."
        )
    grid = grid_of(info)
    if network.network != "gpt" or network.tokens != "cells":
        if grid and info.obs_dtype == "uint8" and grid.size > LONGEST_ROW:
            raise UsageError(
                f"{info.name} shows images of {_size(grid)}, too large for a row of numbers; read "
                f"them with --tokens=cells{_patch_for(grid)}, or choose an Atari game's `-ram` "
                "name."
            )
        return
    if grid is None:
        raise UsageError(
            f"--tokens=cells reads one grid or image of two or three axes, but {info.name} shows "
            f"{info.observation_space or 'a row of numbers'}; give --tokens=steps or features."
        )
    if network.categories and not _whole_from_zero(info):
        raise UsageError(
            f"--categories takes the numbers in the cells for whole numbers from 0, but "
            f"{info.name} shows {info.observation_space}; leave it out."
        )
    size = network.patch
    if grid.height % size or grid.width % size:
        fits = [n for n in _patches(grid) if n > 1]
        advice = f"give one of {', '.join(map(str, fits))}" if fits else "leave it out"
        raise UsageError(f"--patch={size} does not divide a grid of {_size(grid)}; {advice}.")
    tokens = tokens_a_step(info, network)
    if tokens > MOST_TOKENS:
        takes = memory.in_words(attention_bytes(info, network))
        raise UsageError(
            f"{info.name} shows {_size(grid)}, which would be {tokens:,} tokens a step; attention "
            f"between every two takes {takes} a window and block, so read patches with "
            f"--tokens=cells{_patch_for(grid)}."
        )


def _whole_from_zero(info):
    """Whether the numbers in the cells of a grid can be categories: others would be rounded, and
    those below 0 all be alike."""
    _, part = grid_part(info)
    return any(part.counts) or part.space.dtype.kind in "biu" and part.space.low.min() >= 0


def _size(grid):
    return f"{grid.height} x {grid.width}"


def _patches(grid):
    """The sizes of patches that divide a grid."""
    return [n for n in range(1, 65) if grid.height % n == 0 == grid.width % n]


def _patch_for(grid):
    """The flag for the smallest patches that are few, or what else to do."""
    few = [n for n in _patches(grid) if grid.height * grid.width // n**2 <= 400]
    if few:
        return "" if few[0] == 1 else f" --patch={few[0]}"
    return " after --wrappers 'gymnasium.wrappers:ResizeObservation(shape=(84, 84))' and --patch=7"


def attention_bytes(info, network):
    """Bytes of the attention weights of one window in one layer, [H, T, T]; 0 without attention."""
    if network.network != "gpt":
        return 0
    tokens = network.context * tokens_a_step(info, network)
    return 4 * network.heads * tokens**2


def parts_of_batch(attention, size):
    """In how many parts an update learns from a batch of `size` windows: 1, 2, 4, ...

    attention: bytes of the attention weights of a window in a block. On a CPU what a part keeps for
    its gradient should lie in the cache; measured, 7 to 22% of an update's time. 1 on a GPU.
    """
    parts = 1
    if tf.config.get_visible_devices("GPU"):
        return parts
    while size % (2 * parts) == 0 and size // (2 * parts) >= LEAST_PART:
        if size * attention // (2 * parts) < CACHED:
            break
        parts *= 2
    return parts


def check_attention(info, network, windows):
    """Tell what attention takes in an update on so many windows at a time, if that is much.

    Raises UsageError if it does not fit memory, unless a GPU learns, which has its own.
    """
    # Measured: two to four for every layer, which the gradient needs, and two to five besides.
    size = windows * attention_bytes(info, network) * (2 + 2 * network.layers * network.loops)
    if size < WORTH_TELLING:
        return
    how = f"{network.context} steps"
    if network.tokens == "features":
        how += f" x {info.features} features"
    if network.tokens == "cells":
        how += f" x {tokens_a_step(info, network)} tokens"
    takes = f"Attention over windows of {how}, {windows} at a time, takes at least"

    def advice(room):
        context = int(network.context * (room / size) ** 0.5)
        other = dict(steps=[], features=["--tokens=steps"], cells=["a larger --patch"])
        smaller = [f"--context={context}"] if context else []
        return (
            " or ".join(
                ["give fewer --heads", "a smaller --batch-size", *smaller, *other[network.tokens]]
            )
            + "."
        )

    print(f"{takes} {memory.in_words(size)} of memory.", flush=True)
    if not tf.config.list_physical_devices("GPU"):
        memory.check_fits(size, takes, advice)


def _end_weights(network):
    """Weights of the first layer for a number of an observation, and of the last for an output."""
    if network.network == "gpt":
        return network.width, network.width
    if network.network == "gru":
        return 3 * network.width, network.width
    last = network.hidden[0 if network.residual else -1]
    return network.context * network.hidden[0], last


def check_ends(info, network, windows):
    """Tell what the first and the last layer take in an update on so many windows, if that is much.

    They grow with the categories of an observation and with the actions, without a bound. Raises
    UsageError if they do not fit memory, unless a GPU learns, which has its own.
    """
    from tfdqt.games.features import count_numbers  # loads Keras, as the network does

    numbers = count_numbers(info, network)
    outputs = info.outputs * (network.bins or max(1, network.quantiles))
    first, last = _end_weights(network)
    weights = numbers * first + outputs * last
    # The weights, those of the target and of acting, two moments, a gradient and one on the way;
    # and the categories and values of every window, with their gradients.
    positions = network.context if learns_every_step(network) else 1
    size = 4 * (7 * weights + 2 * windows * (network.context * numbers + positions * outputs))
    if size < WORTH_TELLING:
        return
    takes = f"A network for {numbers:,} numbers and {info.outputs:,} actions takes at least"
    print(f"{takes} {memory.in_words(size)} of memory.", flush=True)
    if not tf.config.list_physical_devices("GPU"):
        advice = (
            "give a smaller --width or --hidden, or offer fewer categories and actions in a "
            "wrapper (--wrappers MODULE:FUNCTION)."
        )
        memory.check_fits(size, takes, lambda room: advice)
