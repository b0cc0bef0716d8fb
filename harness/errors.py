"""Errors that a user can fix end a script in one line: what is wrong, and what would be right."""

import argparse
import contextlib
import os
import sys
import time


class BadInput(ValueError):
    """Something that the user can fix. The message is the one line to print."""


class Stopped(Exception):
    """A run has stopped as it was asked to, and is saved. The message says where."""


def refuse(message):
    """Raise BadInput: assigned to `parser.error`, it ends a wrong flag like other wrong input."""
    raise BadInput(message)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with the description as it is written, and with the defaults of flags."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def make_parser(description, prog=None):
    """A parser whose help shows defaults, and that raises BadInput for wrong flags."""
    parser = argparse.ArgumentParser(prog, description=description, formatter_class=HelpFormatter)
    parser.error = refuse
    return parser


def add_command(commands, name, help):
    """Add a command to what `parser.add_subparsers` has returned: a parser like `make_parser`'s."""
    command = commands.add_parser(name, help=help, description=help, formatter_class=HelpFormatter)
    command.error = refuse
    return command


def printable(text):
    """The text as UTF-8 can hold it: the name of a file need not be valid UTF-8."""
    return str(text).encode(errors="backslashreplace").decode()


def drawable(text):
    """The text as a picture can show it: to matplotlib, what is between two $ is mathematics."""
    return printable(text).replace("$", r"\$")


@contextlib.contextmanager
def one_line_errors(script, interrupted, fixable=(BadInput, OSError), hints=None):
    """End `script` in one line, with exit status 2, if one of the `fixable` exceptions is raised.

    So it ends, too, where a process that reads for a DataLoader was killed, or had no room for what
    it had read.

    interrupted  what Ctrl-C costs, and how to resume
    hints        {exception type: the line to print instead of the exception's own message}
    """
    hints = hints or {}
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # A terminal may have fewer characters.
    try:
        yield
    except (*fixable, *hints) as error:
        message = str(error)
        for kind, hint in hints.items():
            if isinstance(error, kind):
                message = hint
        # A DataLoader puts "Caught BadInput ..." and the traceback of its worker in front of the
        # worker's own message.
        from_worker = "Caught " in message
        message = message.split(f"{BadInput.__module__}.BadInput: ")[-1].strip()
        if os.environ.get("RANK", "0") != "0" and not from_worker:
            # torchrun ends all ranks at the first exit. Where all ranks raise the same error,
            # rank 0 should be the one that prints it.
            time.sleep(10)
        print(f"{script}: error: {printable(message)}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        message = problem_of_reading(str(error))
        if message is None:
            raise
        print(f"{script}: error: {message}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        if os.environ.get("RANK", "0") == "0":
            print(f"{script}: {printable(stop)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(f"{script}: interrupted; {interrupted}")


def problem_of_reading(message):
    """What a user can do about a RuntimeError of a DataLoader's processes; None for any other."""
    if "unable to allocate shared memory" in message:
        return (
            "shared memory, /dev/shm, is full; make it larger (docker run --shm-size), or take "
            "fewer --workers"
        )
    if message.startswith("DataLoader worker"):  # This is how it says that one was killed.
        remedy = "run the command again with fewer --workers, or with more memory (shared, too)"
        return f"a reading process died ({message}); {remedy}"
    return None


def moved(old, new):
    """End a command that has another name now, with exit status 2."""
    print(f"{old}: error: this command is now: {new}", file=sys.stderr)
    sys.exit(2)
