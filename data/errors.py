"""The two errors our scripts turn into one sentence, and the decorator that does it."""

import errno
import functools
import gc
import os
import sys
from pathlib import Path


class UserError(ValueError):
    """Something the user can mend: a file, a line in it, a flag. The message says what, where and how. Exit code 2."""


class RunError(RuntimeError):
    """Something that failed while running: no network, no space, a loss that is not a number."""

    exit_code = 1


def first_line(error):
    """What an error of a library says, short enough for a sentence of ours."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def is_out_of_memory(error):
    """Whether an exception says that memory, the system's or a GPU's, does not suffice."""
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # CPU, CUDA, cuBLAS
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def one_sentence_errors(main):
    """Decorate a script's `main(argv=None)`: expected failures print one sentence and exit, anything else is a bug.

    Raises SystemExit with 2 for UserError and for files that cannot be opened, 1 for RunError, too little memory and
    other failures of the operating system (a full disk), 130 for Ctrl-C, 141 where nobody reads what is printed.
    """

    @functools.wraps(main)
    def run(argv=None):
        if argv is None:  # the script itself, not a call from a program
            gc.freeze()  # what is imported stays: looking through it once more, at the exit, takes a second
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a console that cannot show a character shows a question mark
        try:
            result = main(argv)
            print(end="", flush=True)  # at the exit, a pipe that is gone would be a traceback
            return result
        except BrokenPipeError:  # whoever reads what we print, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None  # as shells have it
        except UserError as error:
            message, code = str(error), 2
        except RunError as error:
            message, code = str(error), error.exit_code
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            message, code = f"out of memory; take a smaller model, --batch_size or file ({first_line(error)})", 1
        except OSError as error:
            if error.errno is None:  # raised by a library for reasons of its own: keep the traceback
                raise
            message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            code = 2 if error.errno in (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EPERM) else 1
        except KeyboardInterrupt:
            message, code = "interrupted; files already written are whole", 130
        script = Path(main.__code__.co_filename)
        script = script.parent.name if script.stem == "__main__" else script.name  # python -m recipes
        print(f"{script}: error: {message}", file=sys.stderr)
        raise SystemExit(code)

    return run
