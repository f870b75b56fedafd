"""What a user can mend."""


class ExpectedError(RuntimeError):
    """An error whose message says what to do; commands print it without a traceback.

    Plain ValueErrors, OSErrors and their like count as expected too; a plain RuntimeError does not.
    """


# What a user can mend, as all that talks to one knows it. Plain RuntimeErrors (out of memory, …) are not.
EXPECTED_ERRORS = (ExpectedError, ValueError, KeyError, OSError, ImportError)


def told(error: BaseException) -> str:
    """What an expected error says to a user."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])  # its own text is in quotation marks
    if isinstance(error, FileExistsError | NotADirectoryError) and error.errno is not None:  # of the system, and terse
        return f"{error.filename} is a file, where a folder is wanted: give another path"
    return str(error)
