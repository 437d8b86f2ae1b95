"""Jobs of a Slurm cluster, through submitit; the study's folder must be one that all its nodes see."""

import os
import subprocess
from typing import Any, Literal

from nfc_gs.config import ConfigError, NonNegativeInt, PositiveFloat, PositiveInt, spec
from nfc_gs.studies.workers.base import Order, Process, Workers


def call(command: list[str], environment: dict[str, str], log: str) -> int:
    """What a node does: the command, its output at the end of `log`; returns its exit status."""
    with open(log, "ab") as output:
        return subprocess.run(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ).returncode


class Job(Process):
    """A job that was submitted."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def status(self) -> int | None:
        """The command's exit status; 1 if the cluster ended the job before it could tell."""
        if not self.job.done():
            return None
        return 1 if self.job.exception() is not None else int(self.job.result())

    def stop(self) -> None:
        """Cancels the job: Slurm sends SIGTERM, upon which a training saves, and later SIGKILL."""
        self.job.cancel()


@spec
class Slurm(Workers):
    """One job a run, of `minutes` at most; a run that they end goes on in its next try.

    `partition` null is the cluster's own choice. `executor: local` runs the jobs here, to try a study out without a cluster.
    """

    partition: str | None = None
    minutes: PositiveInt = 240
    gpus: NonNegativeInt = 0
    memory_gb: PositiveFloat = 8.0
    executor: Literal["slurm", "local"] = "slurm"

    def start(self, order: Order) -> Job:
        """The job, submitted.

        Raises:
            ConfigError: submitit is not installed, or there is no Slurm.
        """
        try:
            import submitit
        except ModuleNotFoundError:
            raise ConfigError(
                "workers: kind 'slurm' needs submitit, which is not installed: pip install 'nfc-gs[slurm]'; or use "
                "--workers local"
            ) from None
        order.log.parent.mkdir(parents=True, exist_ok=True)
        wishes = {"slurm_partition": self.partition} if self.partition else {}
        try:
            # submitit's own files go beside the log.
            executor = submitit.AutoExecutor(folder=order.log.parent / "slurm", cluster=self.executor)
            executor.update_parameters(
                name=order.name,
                timeout_min=self.minutes,
                cpus_per_task=order.threads,
                gpus_per_node=self.gpus,
                mem_gb=self.memory_gb,
                **wishes,
            )
            return Job(executor.submit(call, order.command, dict(order.environment), str(order.log.absolute())))
        # submitit's own errors, of a missing sbatch and of a submission refused, are RuntimeErrors.
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"workers: Slurm takes no job here ({reason}); go where sbatch is, or use --workers local"
            ) from None


Spec = Slurm
