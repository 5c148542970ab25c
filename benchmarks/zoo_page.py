"""What benchmarks.zoo found so far, as docs/zoo.md: python -m benchmarks.zoo_page > docs/zoo.md"""

import argparse
import importlib.util
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.folding import machine, markdown
from benchmarks.rows import latest
from benchmarks.zoo import OUT, ROUNDS, ZOOS, names

NOTES = {
    "pytorchcv/deeplabv3_resnetd152b_voc": "it takes 480×480 alone, which was not tried when it was drawn",
    "pytorchcv/quartznet15x5_it": "it reads audio with a package that is not installed",
    "pytorchcv/seresnet1001_svhn": "1,003 BatchNorms with random statistics: float32 itself is 2.9e5 from float64",
    "timm/lamhalobotnet50ts_256": "with these random statistics float32 itself is 7.9e7 from float64, and the folded "
    "graph 5.8 times as far, which random roundings do not explain",
}
"""What was found out about networks that failed."""

PAGE = """# Networks of public zoos

`make zoo` draws names of the architectures in timm, torchvision and pytorchcv, and folds, proves and publishes each as
`bnfold fold` does. Weights are random. The statistics of BatchNorms come from a random batch and are then moved at
random, and γ and β are drawn; one γ in twenty is negative. The run goes on where it stopped (`MINUTES=60`, `--seed`,
`--parameters`).

{machine}

Of {names:,} names the first {drawn} of a random order were taken (seed {seed}). {without} have no BatchNorm.
{large} Of the {tried} that remain {done} were published.

- **BatchNorms.** Of {total:,} in these {done} networks, closed activations leave {closed:,}, opened ones {opened:,}.
  {closed_clean} networks have none left with closed activations, {opened_clean} with opened ones.
- **Latency** of one row beside the unfolded graph, closed activations, in turns: {faster} faster and {slower} slower
  beyond noise, {same} within it.
- **Export.** {plain} of {done} programs were exported without tracing them again.

## What failed

{failed}

## Why BatchNorms stayed

With closed activations. The codes are those of [folding.md](folding.md#why-a-batchnorm-is-kept).

{reasons}

## Why programs were traced again

{retraced}

## Every network

Seconds are of one process with one thread, at low priority beside other work: only ratios mean something. *Speed* is
that of the published graph over the unfolded one, the median of {rounds} turns; it is bold if it is beyond noise.

{table}"""


def page(rows: Sequence[dict[str, Any]], seed: int, total: int) -> str:
    """docs/zoo.md."""
    relevant = [row for row in rows if row["batchnorms"] or row["failed"]]
    tried = [row for row in relevant if not row["left_out"]]
    large = Counter(row["limit"] for row in relevant if row["left_out"])
    done = [row for row in tried if row["certified"] and not row["failed"]]
    failed = [
        [row["name"], _cell(row["failed"] or row["message"]), NOTES.get(row["name"], "")]
        for row in tried
        if row not in done
    ]
    slower, faster = ([row["name"] for row in done if _beyond(row) == sign] for sign in (-1, 1))
    retraced = Counter(row["retraced"] for row in done if row["retraced"])
    reasons = sum((Counter(row["reasons"]) for row in done), Counter[str]())
    return PAGE.format(
        machine=machine(("torch", "onnxruntime", *filter(importlib.util.find_spec, ZOOS))),
        names=total,
        drawn=len(rows),
        seed=seed,
        without=len(rows) - len(relevant),
        large=" ".join(f"{n} with more than {limit:,} parameters were left out." for limit, n in sorted(large.items())),
        tried=len(tried),
        done=len(done),
        total=sum(row["batchnorms"] for row in done),
        closed=sum(row["kept_closed"] for row in done),
        opened=sum(row["kept_opened"] for row in done),
        closed_clean=sum(not row["kept_closed"] for row in done),
        opened_clean=sum(not row["kept_opened"] for row in done),
        faster=len(faster),
        slower=len(slower),
        same=len(done) - len(faster) - len(slower),
        plain=len(done) - sum(retraced.values()),
        failed=markdown(["network", "why", "reason"], failed) if failed else "Nothing.",
        reasons=markdown(["code", "BatchNorms"], [[f"`{code}`", str(n)] for code, n in reasons.most_common()]),
        retraced=markdown(["reason", "networks"], [[_cell(reason), str(n)] for reason, n in retraced.most_common()])
        if retraced
        else "None was.",
        rounds=ROUNDS,
        table=markdown(
            [
                "network",
                "input",
                "BatchNorms",
                "left",
                "left, opened",
                "traced again",
                "export",
                "fold",
                "proof",
                "speed",
            ],
            [_network(row) for row in sorted(done, key=lambda row: str(row["name"]))],
        ),
    )


def _beyond(row: dict[str, Any]) -> int:
    """1 if the published graph is faster beyond noise, -1 if it is slower."""
    return int(row["speed_low"] > row["noise"]) - int(row["speed_high"] < 1 / row["noise"])


def _network(row: dict[str, Any]) -> list[str]:
    seconds = row["seconds"]
    proof = sum(taken for step, taken in seconds.items() if step.startswith(("part", "running", "folding the graph")))
    export = seconds["tracing"] + seconds["exporting"]
    speed = f"**{row['speed']:.2f}**" if _beyond(row) else f"{row['speed']:.2f}"
    return [
        row["name"],
        "×".join(map(str, row["shape"])),
        *(str(row[key]) for key in ("batchnorms", "kept_closed", "kept_opened")),
        "yes" if row["retraced"] else "",
        *(f"{taken:.1f}" for taken in (export, seconds["folding"], proof)),
        speed,
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT, help="the rows")
    arguments = parser.parse_args()
    print(page(latest(arguments.out), arguments.seed, len(names())))


if __name__ == "__main__":
    main()
