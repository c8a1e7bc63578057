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
