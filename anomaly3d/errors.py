"""The two ways a user's input can be wrong: everything stops, or one scan is set aside, for good or for now."""


class UserError(Exception):
    """A mistake in a config, a manifest or a command: one sentence with the remedy, exit code 2."""


class UnreadableScan(Exception):
    """One scan that cannot be used; the message is the reason that stands in ``quality.csv``."""


class PassingTrouble(UnreadableScan):
    """One that could not be used this time, by no fault of its own: a disk, a program beside."""
