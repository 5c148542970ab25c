"""What BatchNorm does, computed from fixed seeds and drawn: `python -m models.study --out DIR`.

One file for each study. Each has a pure function that computes a frozen dataclass of numbers from a seed, and one that
draws these numbers and describes the result.
"""
