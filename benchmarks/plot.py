"""Draws pytest-benchmark's JSON as one picture, and writes the same as a Markdown table.

    python benchmarks/plot.py build/benchmarks.json --png build/benchmarks.png --table build/benchmarks.md

The picture has the rates only (operations/s, logarithmic); the table has everything.
"""

from __future__ import annotations

import argparse
import json

from fastray.microbenchmark import amount, ratio_to

COLOURS = {
    "fastray": "#c8361d",
    "pool": "#2b6ca3",
    "executor": "#5fa8d3",
    "loky": "#3a8f5c",
    "ray": "#7b5ea7",
}
COLOURS["dask"] = "#d19a2a"


def load(path: str) -> tuple[dict, dict]:
    """({(claim, workers): {system: extra_info}}, machine)."""
    with open(path) as source:
        data = json.load(source)
    found: dict = {}
    for entry in data["benchmarks"]:
        info = entry["extra_info"]
        if "claim" in info:
            found.setdefault((info["claim"], info["workers"]), {})[info["system"]] = info
    return found, data["machine_info"]


def draw(found: dict, machine: dict, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rates = {key: systems for key, systems in found.items() if next(iter(systems.values()))["unit"] == "/s"}
    figure, axes = pyplot.subplots(figsize=(9.5, 1.6 + 0.3 * len(rates)), layout="constrained")
    labels = []
    for y, ((claim, workers), systems) in enumerate(reversed(rates.items())):
        medians = [info["median"] for info in systems.values()]
        axes.plot([min(medians), max(medians)], [y, y], color="0.85", linewidth=2, zorder=1)
        for system, info in systems.items():
            size = 70 if system == "fastray" else 38
            axes.scatter(info["median"], y, s=size, color=COLOURS.get(system, "0.4"), zorder=3)
        goal = next(iter(systems.values()))["goal"]
        axes.plot([goal, goal], [y - 0.32, y + 0.32], color="0.35", linewidth=1.2, zorder=2)
        labels.append(f"{claim}, {workers}w")
    present = {system for systems in rates.values() for system in systems}
    for system in [name for name in COLOURS if name in present]:
        axes.scatter([], [], color=COLOURS[system], label=system)
    axes.plot([], [], color="0.35", linewidth=1.2, label="goal")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(-0.7, len(labels) - 0.3)
    axes.set_xscale("log")
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        f"operations/s (median), w: worker processes; {machine['cpu'].get('brand_raw', '')}, "
        f"{machine['cpu'].get('count', '?')} cores, Python {machine['python_version']}",
        fontsize=8,
    )
    figure.legend(loc="outside upper center", ncols=7, frameon=False, fontsize=9)
    figure.savefig(path, dpi=140)


def table(found: dict) -> str:
    peers = [name for name in COLOURS if name != "fastray" and any(name in s for s in found.values())]
    lines = [
        "| work | workers | fastray | goal | " + " | ".join(peers) + " |",
        "|---" * (4 + len(peers)) + "|",
    ]
    for (claim, workers), systems in found.items():
        ours = systems.get("fastray")
        any_info = next(iter(systems.values()))
        unit, is_rate = any_info["unit"], any_info["unit"] in ("/s", "x", "GB/s")
        cells = [
            amount(ours["median"], unit) if ours else "",
            amount(any_info["goal"], unit) if any_info["goal"] else "",
        ]
        for name in peers:
            cell = ""
            if name in systems:
                cell = amount(systems[name]["median"], unit)
                if ours:
                    cell += f" ({ratio_to(ours['median'], systems[name]['median'], is_rate):.3g}x)"
            cells.append(cell)
        lines.append(f"| {claim} | {workers} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("json", help="what --benchmark-json wrote")
    parser.add_argument("--png", default="build/benchmarks.png")
    parser.add_argument("--table", default="", help="file for the Markdown table (default: print it)")
    arguments = parser.parse_args()
    found, machine = load(arguments.json)
    draw(found, machine, arguments.png)
    text = table(found)
    if arguments.table:
        with open(arguments.table, "w") as out:
            out.write(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
