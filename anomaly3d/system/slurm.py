"""A job of SLURM that is about to end asks to be run again."""

import os
import signal
import subprocess

REQUEUE = getattr(signal, "SIGUSR1", None)  # what ``sbatch --signal=USR1@120`` sends 120 s before the end


def in_job() -> bool:
    """Whether SLURM has started this process."""
    return "SLURM_JOB_ID" in os.environ


def requeue() -> bool:
    """Ask SLURM to run this job again, once for all of its processes; whether that went well."""
    from anomaly3d.system.progress import is_leader  # which takes longer to import than this is worth to most commands

    if not is_leader():
        return True
    job, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    try:
        words = ["scontrol", "requeue", f"{job}_{task}" if job else os.environ["SLURM_JOB_ID"]]
        return subprocess.run(words, check=False).returncode == 0
    except OSError:
        return False
