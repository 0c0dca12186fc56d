"""Messages of libraries that tell a user of this program nothing, silenced one by one."""

import logging
import warnings

KNOWN = (
    r".*module\(s\) in eval mode at the start of training",  # frozen networks, on purpose
    r".*isinstance\(treespec, LeafSpec\)",  # lightning 2.6 with torch 2.13
    r".*does not have many workers",  # volumes are in memory; workers would only copy them
    r".*Checkpoint directory .* exists and is not empty",  # a resumed phase
    r".*You're resuming from a checkpoint that ended before the epoch ended",  # checkpoints are at epoch ends
    r".*The `srun` command is available",
)


def hush() -> None:
    """Only warnings from Lightning, none that are known and meant."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in KNOWN:
        warnings.filterwarnings("ignore", message=message)
