"""Loss, dev score and learning rate of one or several runs, drawn from their log.csv.

python -m model.plots output other/run --output runs.png
"""

import argparse
import csv
import json
from pathlib import Path

from data import flags
from data.errors import RunError, UserError, one_sentence_errors
from model.run_folder import CONFIG_FILE, LOG_FILE

PANELS = {"loss": "loss", "dev": "dev {}", "lr": "learning rate"}


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=flags.HelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders (--output_dir of train.py)")
    parser.add_argument("--output", default="runs.png", metavar="PNG", help="the picture")
    args = parser.parse_args(argv)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RunError("plots need one more package: pip install matplotlib") from None
    if Path(args.output).suffix != ".png":
        raise UserError(f"--output {args.output}: expected a name that ends in .png")

    runs = {run: read_log(Path(run)) for run in args.runs}
    scores = sorted({score for score, _ in runs.values()})
    figure = Figure(figsize=(8, 9), layout="constrained")
    for axes, (panel, title) in zip(figure.subplots(len(PANELS), sharex=True), PANELS.items()):
        axes.set_ylabel(title.format(" / ".join(scores)))
        axes.grid(alpha=0.3)
        for run, (score, rows) in runs.items():
            column = score if panel == "dev" else panel
            points = [(row["step"], row[column]) for row in rows if row[column] not in ("", None)]
            label = run.replace("$", r"\$")  # else a formula
            axes.plot(
                *zip(*points) if points else ((), ()), label=label, marker="o" if panel == "dev" else "", markersize=3
            )
    axes.set_xlabel("step")
    figure.axes[0].legend()
    figure.savefig(args.output, dpi=150)
    print(f"{args.output}: {', '.join(args.runs)}")


def read_log(run):
    """(the score the run chose its best checkpoint by, or cosine_spearman where it took the last; the rows of its log).

    Raises:
        UserError: not a run folder, or one whose log is not as train.py writes it.
    """
    try:
        score = json.loads((run / CONFIG_FILE).read_text(encoding="utf-8"))["flags"]["select_by"]
        score = "cosine_spearman" if score == "last" else score
        with (run / LOG_FILE).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row.update({name: float(row[name]) for name in ("step", "loss", "lr", score) if row.get(name)})
    except FileNotFoundError as error:
        raise UserError(f"{run}: not a run folder of train.py: {Path(error.filename).name} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{run}: its {CONFIG_FILE} or {LOG_FILE} is not as train.py writes it") from None
    if not rows or not {"step", "loss", "lr", score} <= rows[0].keys():
        raise UserError(f"{run}: its {LOG_FILE} holds no steps yet")
    return score, rows


if __name__ == "__main__":
    main()
