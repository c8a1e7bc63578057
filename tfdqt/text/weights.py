"""Weights in safetensors files, whole or in parts, of a folder or of a name on the hub."""

import json
import math
import re
from pathlib import Path

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 by it)
import numpy as np

from tfdqt.backend import quiet
from tfdqt.errors import UsageError

WHOLE = "model.safetensors"
PARTS = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes; safetensors allows no longer one
# By what ends of names: what models keep among their weights, and can be worked out anew.
BUFFERS = ("attn.bias", "attn.masked_bias", "attention.bias", "inv_freq", "position_ids")


def weight_files(source):
    """The safetensors files with the weights of a folder or of a hub's name: a list of Paths.

    Empty if there are none. Raises UsageError for an index that can't be read or names files that
    are not there.
    """
    whole = _file_of(source, WHOLE)
    if whole:
        return [whole]
    index = _file_of(source, PARTS)
    if not index:
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{index} is no index of safetensors files; fetch it again.") from None
    files = {name: _file_of(source, name) for name in names}
    missing = [name for name, file in files.items() if file is None]
    if missing:
        raise UsageError(
            f"{source} lacks {missing[0]}, which {PARTS} names; fetch the weights again."
        )
    return list(files.values())


def _file_of(source, name):
    """Where a file of a folder or of a hub's name lies, or None."""
    if Path(source).is_dir():
        file = Path(source, name)
        return file if file.is_file() else None
    import transformers

    with quiet():
        cached = transformers.utils.cached_file(
            str(source), name, _raise_exceptions_for_missing_entries=False
        )
    return Path(cached) if cached else None


def read_header(path):
    """The header of a safetensors file, a dict; None if it is longer than any may be.

    Raises UsageError if it is none.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER:
            return None
        try:
            header = json.loads(file.read(size))
        except ValueError:
            header = None
    if not isinstance(header, dict) or not all(map(_is_entry, header.items())):
        raise UsageError(f"{path} is not a safetensors file; fetch it again.")
    return header


def _is_entry(item):
    """Whether a name and what stands behind it are of an array, or of the file."""
    name, entry = item
    if name == "__metadata__":
        return True
    shape = entry.get("shape") if isinstance(entry, dict) else None
    return isinstance(shape, list) and all(isinstance(size, int) for size in shape)


def is_of_pytorch(files):
    """Whether PyTorch, or whoever did not say, wrote safetensors files."""
    headers = [read_header(file) for file in files]
    return all(header and _format(header) == "pt" for header in headers)


def _format(header):
    return (header.get("__metadata__") or {}).get("format", "pt")


def count_numbers(files):
    """How many numbers safetensors files hold."""
    headers = [read_header(file) or {} for file in files]
    return sum(
        math.prod(entry["shape"])
        for header in headers
        for name, entry in header.items()
        if name != "__metadata__"
    )


def read_weights(files):
    """All arrays of safetensors files: a dict by their names; bfloat16 and float16 as float32.

    Raises UsageError for weights of a byte or less each, whose scales stand elsewhere, and for
    those that are not finite.
    """
    import safetensors.numpy

    arrays = {}
    for file in files:
        for name, array in safetensors.numpy.load_file(file).items():
            whole = np.issubdtype(array.dtype, np.integer) or array.dtype == bool
            buffer = name.endswith(BUFFERS) or not name.endswith((".weight", ".bias"))
            if not buffer and (whole or array.dtype.itemsize == 1):
                raise UsageError(
                    f"{file} holds {name} quantised, as {array.dtype}; give the model in float32, "
                    "float16 or bfloat16."
                )
            arrays[name] = array if whole else array.astype(np.float32)
            if not buffer and not np.isfinite(arrays[name]).all():
                raise UsageError(
                    f"{file} holds {name} with numbers that are not finite; fetch it again."
                )
    return arrays


def read_array(files, name):
    """One array of safetensors files as float32, or None if they have none of that name."""
    import safetensors

    for file in files:
        with safetensors.safe_open(file, framework="np") as opened:
            if name in opened.keys():
                return opened.get_tensor(name).astype(np.float32)
    return None


def check_left_over(source, names, config):
    """Raise UsageError for weights of layers, by their names, that a model has no place for.

    names: those that were not taken. Heads, and what BUFFERS names, may be left over.
    """
    layers = config.num_hidden_layers
    for name in names:
        number = re.search(r"\b(?:h|layers?)(?:\.|_\._)(\d+)[./]", name)
        if not number or name.endswith(BUFFERS):
            continue
        says = f"{layers} layers" if int(number[1]) >= layers else "of no such weight"
        raise UsageError(
            f"The weights of {source} do not fit. They have {name}, the config says {says}; give "
            "the config and the weights of one model."
        )
