"""Tests of the text wing."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for the network; read while transformers loads
