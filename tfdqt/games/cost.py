"""What a network will take of memory, before it is built. Imports no TensorFlow by itself."""

from tfdqt import memory
from tfdqt.backend import tf

WORTH_TELLING = 10**9  # bytes


def attention_bytes(info, network):
    """Bytes of the attention weights of one window in one layer, [H, T, T]; 0 without attention."""
    if network.network != "gpt":
        return 0
    tokens = network.context
    if network.tokens == "features":
        tokens *= info.features
    return 4 * network.heads * tokens**2


def check_attention(info, network, windows):
    """Tell what attention takes in an update on so many windows, if that is much.

    Raises UsageError if it does not fit memory, unless a GPU learns, which has its own.
    """
    # Measured: two to four for every layer, which the gradient needs, and two to five besides.
    size = windows * attention_bytes(info, network) * (2 + 2 * network.layers)
    if size < WORTH_TELLING:
        return
    how = f"{network.context} steps"
    if network.tokens == "features":
        how += f" x {info.features} features"
    takes = f"Attention over windows of {how}, {windows} at a time, takes at least"

    def advice(room):
        context = int(network.context * (room / size) ** 0.5)
        steps = [] if network.tokens == "steps" else ["--tokens=steps"]
        smaller = [f"--context={context}"] if context else []
        return " or ".join(["give fewer --heads", "a smaller --batch-size", *smaller, *steps]) + "."

    print(f"{takes} {memory.in_words(size)} of memory.", flush=True)
    if not tf.config.list_physical_devices("GPU"):
        memory.check_fits(size, takes, advice)


def check_ends(info, network, windows):
    """Tell what the first and the last layer take in an update on so many windows, if that is much.

    They grow with the categories of an observation and with the actions, without a bound. Raises
    UsageError if they do not fit memory, unless a GPU learns, which has its own.
    """
    from tfdqt.games.features import count_numbers  # loads Keras, as the network does

    numbers = count_numbers(info, network)
    outputs = info.outputs * max(1, network.quantiles)
    first = numbers
    widths = (network.width, network.width)
    if network.network == "dense":
        first *= network.context
        widths = (network.hidden[0], network.hidden[-1])
    weights = first * widths[0] + outputs * widths[1]
    # The weights, those of the target and of acting, two moments, a gradient and one on the way;
    # and the categories and values of every window, with their gradients.
    positions = network.context if network.network == "gpt" else 1
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
