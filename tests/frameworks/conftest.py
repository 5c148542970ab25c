"""Collected only where the packages of others are installed: `make frameworks` makes such an environment."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("transformers") else ["test_*.py"]
