"""What a user can fix, and how a script ends then: in one line.

The line says what is wrong and what would be right.
"""

import contextlib
import os
import sys
import time


class BadInput(ValueError):
    """Something that the user can fix. The message is the one line to print."""


def refuse(message):
    """Raise BadInput: assigned to `parser.error`, it ends a wrong flag like other wrong input."""
    raise BadInput(message)


def printable(text):
    """The text as any terminal can print it: the name of a file need not be valid UTF-8."""
    return str(text).encode(errors="backslashreplace").decode()


@contextlib.contextmanager
def one_line_errors(script, interrupted, fixable=(BadInput, OSError), hints=None):
    """End `script` in one line, with exit status 2, if one of the `fixable` exceptions is raised.

    interrupted  what Ctrl-C costs, and how to resume
    hints        {exception type: the line to print instead of the exception's own message}
    """
    hints = hints or {}
    try:
        yield
    except (*fixable, *hints) as error:
        message = str(error)
        for kind, hint in hints.items():
            if isinstance(error, kind):
                message = hint
        from_worker = "Caught " in message
        if os.environ.get("RANK", "0") != "0" and not from_worker:
            # torchrun ends all ranks at the first exit. Where all ranks raise the same error,
            # rank 0 should be the one that prints it.
            time.sleep(10)
        # A DataLoader puts the traceback of its worker in front of the worker's own message.
        message = message.split(f"{BadInput.__module__}.BadInput: ")[-1].strip()
        print(f"{script}: error: {printable(message)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(f"{script}: interrupted; {interrupted}")


def moved(old, new):
    """End a command that has another name now, with exit status 2."""
    print(f"{old}: error: this command is now: {new}", file=sys.stderr)
    sys.exit(2)
