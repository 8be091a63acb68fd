"""Train and score a row of the README's table.

    python -m recipes kosimcse-roberta                                     # train, then KorSTS test
    python -m recipes kosimcse-roberta --dry_run                           # print every setting
    python -m recipes kosbert --resume                                     # go on after it was stopped
    python -m recipes kosbert --seeds 1 2 3                                # min / mean / max and scores.json
    python -m recipes kosbert --model mini --snli nli.tsv -- --max_steps 5   # other model, data, flags

A recipe is a text file in this folder: flags of train.py, a line each with its source behind #; [NAME] begins a stage,
{previous} is the run folder of the stage before, {snli}, {nli}, {sts_train}, {sts_dev} and {sentences} are data.
"""

import argparse
import json
import os
import re
import shlex
import sys
from pathlib import Path

import evaluate
import train
from data import flags
from data.download import FOLDER, KORNLI_TRAIN, KORSTS_DEV, KORSTS_TEST
from data.dropped import Dropped
from data.errors import UserError, one_sentence_errors
from data.files import require_files, unused_path, write_json
from data.sts import read_sts
from model.checkpoint import CHECKPOINT_FILE
from model.metrics import CORRELATIONS
from model.run_folder import CONFIG_FILE

RECIPES = {file.stem: file for file in sorted(Path(__file__).parent.glob("*.txt"))}
DATA = {  # placeholder: files below the folder of KorNLU
    "snli": KORNLI_TRAIN[:1],
    "nli": KORNLI_TRAIN,
    "sts_train": ["KorSTS/sts-train.tsv"],
    "sts_dev": [KORSTS_DEV],
    "sts_test": [KORSTS_TEST],
    "sentences": [],
}

RECIPE_FLAGS = {  # flags of train.py that a recipe sets: what replaces them
    "--model": "--model before --",
    "--train_data": "--nli, --snli, --sts_train or --sentences",
    "--task": "--nli or --sts_train",
    "--valid_data": "--sts_dev",
    "--output_dir": "--output_dir before --",
    "--seed": "--seeds before --",
}


def parse_flags(argv):
    parser = argparse.ArgumentParser(
        prog="python -m recipes",
        description=__doc__.splitlines()[0],
        epilog="Behind -- stand other flags of train.py, for every stage.",
    )
    add = parser.add_argument
    add("name", choices=RECIPES)
    add("--model", help="start from this instead of the recipe's hub id")
    kornlu = Path(os.path.relpath(FOLDER))
    add("--kornlu", default=kornlu, type=Path, metavar="FOLDER", help="with KorNLI/ and KorSTS/ (default: data/KorNLU)")
    for name, files in DATA.items():
        what = " and ".join(files) if files else "a sentence a line, such as Korean Wikipedia's"
        add(f"--{name}", nargs="+", metavar="FILE", help=f"instead of {what}" if files else what)
    add("--seeds", type=flags.seed, nargs="+", help="one training each (default: the recipe's seed)")
    add("--output_dir", type=Path, help="(default: output/NAME)")
    add("--resume", action="store_true", help="go on with a training that was stopped, as train.py does")
    add("--dry_run", action="store_true", help="print the resolved settings alone")
    argv = sys.argv[1:] if argv is None else list(argv)
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:end])
    args.more = argv[end + 1 :]
    args.output_dir = args.output_dir or Path("output") / args.name
    for name, files in DATA.items():
        setattr(args, name, getattr(args, name) or [str(args.kornlu / file) for file in files])
    for word in args.more:
        if instead := RECIPE_FLAGS.get(word.split("=")[0]):
            parser.error(f"{word} behind --: a recipe has its own; give {instead}")
    return args


def read_recipe(path):
    """[(stage's name, its words)] of a recipe."""
    stages = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if begin := re.fullmatch(r"\[(\w+)\]\s*(#.*)?", line):
            stages.append((begin[1], []))
        elif words := shlex.split(line, comments=True):
            stages[-1][1].extend(words)
    return stages


def fill(words, values):
    """Words with placeholders replaced: {name} alone becomes its files, inside a word they are joined by commas."""
    filled = []
    for word in words:
        if word[:1] == "{" and word[-1:] == "}":
            filled += values[word[1:-1]]
        else:
            filled.append(re.sub(r"\{(\w+)\}", lambda name: ",".join(values[name[1]]), word))
    return filled


def stages_of(args, seed):
    """[(run folder, flags for train.py)] of one training."""
    folder = args.output_dir if seed is None else args.output_dir / f"seed-{seed}"
    stages = []
    for number, (stage, words) in enumerate(read_recipe(RECIPES[args.name])):
        if any("{sentences}" in word for word in words) and not args.sentences:
            raise UserError(f"{args.name}: name its sentences, one a line, with --sentences FILE")
        argv = fill(words, {**vars(args), "previous": [str(stages[-1][0])] if stages else []})
        if args.model and number == 0:
            argv += ["--model", args.model]
        argv += [] if seed is None else ["--seed", str(seed)]
        argv += ["--resume"] if args.resume else []
        run = folder / stage
        stages.append((run, [*argv, "--valid_data", *args.sts_dev, "--output_dir", str(run), *args.more]))
    return stages


def begun_before(run, previous):
    """Whether the run folder is from before the previous stage's checkpoint, so that it started from another one."""
    if previous is None or not (run / CONFIG_FILE).is_file():
        return False
    return (run / CONFIG_FILE).stat().st_mtime < (previous / CHECKPOINT_FILE).stat().st_mtime


@one_sentence_errors
def main(argv=None):
    args = parse_flags(argv)
    if "LOCAL_RANK" in os.environ:
        raise UserError("recipes run in one process; give torchrun the train.py commands that --dry_run prints")
    trainings = [stages_of(args, seed) for seed in args.seeds or [None]]
    if args.dry_run:
        for run, flags_of_train in trainings[0]:
            print(f"{run}: train.py {shlex.join(flags_of_train)}")
            for name, value in vars(train.parse_flags(flags_of_train)).items():
                print(f"  --{name} {value}")
        return
    if args.seeds and len(args.seeds) > 1 and len(args.sts_test) > 1:
        raise UserError("--seeds: are summed up over one file; name one with --sts_test")
    needed = [*args.sts_test]
    for _, flags_of_train in trainings[0]:  # of the last stage, too, before the first one's hours
        stage = train.parse_flags(flags_of_train)
        needed += [*stage.valid_data, *train.training_files(train.training_tasks(stage))]
    try:
        require_files(needed)
    except UserError as error:
        advice = "get KorNLU with `python -m data.download`, or name your files (--help has the flags)"
        raise UserError(f"{error}; {advice}") from None
    read_sts(args.sts_test, stage.encoding, dropped=Dropped(skip=stage.on_bad_row == "skip"))
    for stages in trainings:
        previous = None
        for run, flags_of_train in stages:
            print(f"== {args.name}: {run} ==", file=sys.stderr)
            if begun_before(run, previous):
                flags_of_train = [word for word in flags_of_train if word != "--resume"]
            train.main(flags_of_train)
            previous = run
    runs = [str(stages[-1][0]) for stages in trainings]
    scores = args.output_dir / "scores.json"
    if scores.exists():
        kept = unused_path(scores.parent, "scores-{}.json")
        scores.rename(kept)
        print(f"{scores} was there; it is kept as {kept}", file=sys.stderr)
    as_trained = ["--encoding", stage.encoding, "--on_bad_row", stage.on_bad_row, "--device", str(stage.device)]
    evaluate.main(["--model", *runs, "--test_data", *args.sts_test, "--json", str(scores), *as_trained])
    if len(runs) > 1:
        summarise(scores)


def summarise(path):
    """Append min, mean and max over the seeds to the table, and write them into the JSON file."""
    results = json.loads(path.read_text(encoding="utf-8"))
    names = ["avg", *CORRELATIONS]
    columns = {name: [result[name] for result in results if result[name] is not None] for name in names}
    summary = {}
    for word, function in (("min", min), ("mean", lambda values: sum(values) / len(values)), ("max", max)):
        summary[word] = {name: function(values) if values else None for name, values in columns.items()}
        cells = [f"{value:.2f}" if value is not None else "nan" for value in summary[word].values()]
        print(f"| {word} | " + " | ".join(cells) + " |")
    write_json(path, {"runs": results, **summary})


if __name__ == "__main__":
    main()
