"""Collected only where the clients of stores and the servers that stand for them are installed: `make stores`."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("moto") else ["test_*.py"]
