"""Measures speed beside the alternatives that users have, in the same run, with the answers checked."""
