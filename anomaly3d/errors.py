"""The two ways a user's input can be wrong: everything stops, or one scan is set aside."""


class UserError(Exception):
    """A mistake in a config, a manifest or a command: one sentence with the remedy, exit code 2."""


class UnreadableScan(Exception):
    """One scan that cannot be used; the message is the reason that stands in ``quality.csv``."""
