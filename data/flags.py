"""Value types for argparse: a value out of range is refused with the range, before anything loads."""

import argparse

import torch

FILES = {"nargs": "+", "action": "extend", "metavar": "FILE"}  # of add_argument, for a flag that takes several files


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default to a flag's help where there is one and the help does not speak of it."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or "default" in action.help:
            return action.help
        return super()._get_help_string(action)


def add_table_flags(parser, columns_of="the files"):
    """The flags of every script that reads people's own tables."""
    add = parser.add_argument
    add("--encoding", default="utf-8", help="of text files, such as cp949")
    add(
        "--columns",
        nargs="+",
        metavar="NAME",
        help=f"the columns of {columns_of}, by header name or by number from 1 (default: known names in the header, "
        "else all columns)",
    )
    add(
        "--on_bad_row",
        choices=("error", "skip"),
        default="error",
        help="stop at a bad row, or leave it out, count it and write it to rejected_rows.jsonl",
    )


def checked(convert, is_valid, expected):
    """A type for argparse: text that `convert` makes into a value that is valid; `expected` names those in words."""

    def convert_and_check(text):
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not is_valid(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
        return value

    return convert_and_check


positive_int = checked(int, lambda value: 1 <= value < 2**63, "a whole number of at least 1 (and below 2^63)")
non_negative_int = checked(int, lambda value: value >= 0, "a whole number of at least 0")
positive_float = checked(float, lambda value: 0 < value < float("inf"), "a number above 0")
non_negative_float = checked(float, lambda value: 0 <= value < float("inf"), "a number of at least 0")
fraction = checked(float, lambda value: 0 <= value < 1, "a number from 0 up to, not including, 1")
seed = checked(int, lambda value: 0 <= value < 2**63, "a whole number from 0 up to 2^63")


def task(text):
    """NAME:WEIGHT:BATCH:FILE[,FILE] as (name, weight, batch size, files)."""
    parts = text.split(":", 3)
    if len(parts) < 4 or not all(parts[3].split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:WEIGHT:BATCH:FILE[,FILE]")
    return parts[0], non_negative_float(parts[1]), positive_int(parts[2]), parts[3].split(",")


def sizes(text):
    """Whole numbers above 0, separated by commas."""
    return sorted({positive_int(part) for part in text.split(",")}, reverse=True)


def device(text):
    """A torch device that is there."""
    try:
        named = torch.device(text)
        if named.type == "cuda":  # counted, not tried: every process of torchrun would occupy the first GPU
            found = (named.index or 0) < torch.cuda.device_count()
        else:
            found = named.type in ("cpu", "mps") and torch.empty(0, device=named) is not None
        if not found:
            raise RuntimeError
    except (RuntimeError, AssertionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device of this machine; try cpu") from None
    return named
