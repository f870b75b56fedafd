"""What a user can mend."""


class ExpectedError(RuntimeError):
    """An error whose message says what to do; commands print it without a traceback.

    Plain ValueErrors, OSErrors and their like count as expected too; a plain RuntimeError does not.
    """


# What a user can mend, as all that talks to one knows it. Plain RuntimeErrors (out of memory, …) are not.
EXPECTED_ERRORS = (ExpectedError, ValueError, KeyError, OSError, ImportError)
