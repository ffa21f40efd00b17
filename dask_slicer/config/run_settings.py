"""Settings of where and how a run executes: this machine, a scheduler, batch jobs."""

from __future__ import annotations

from typing import Self

from pydantic import ByteSize, Field, model_validator

from dask_slicer.config.fields import (
    AbsolutePath,
    BatchSystem,
    Frozen,
    HostAndPort,
    Integer,
    Memory,
    NonNegative,
    Positive,
    Seconds,
    Share,
    Walltime,
)


class LocalSettings(Frozen):
    """Workers on this machine."""

    num_workers: Integer = Field(
        4,
        ge=-1,
        description="Worker processes; 0: in this process; -1: all CPUs this process may use.",
    )
    dashboard_address: HostAndPort = Field(
        "127.0.0.1:8787", description="Where the Dask dashboard listens; none turns it off."
    )


class SchedulerSettings(Frozen):
    """A running Dask scheduler, and how to get to it."""

    scheduler: str | None = Field(
        None,
        description="Address of a running Dask scheduler, such as tcp://host:8786 or "
        "tls://host:8786; env: what DASK_SCHEDULER_ADDRESS says.",
    )
    scheduler_file: AbsolutePath | None = Field(
        None, description="File in which a running Dask scheduler left its address."
    )
    tls_ca: AbsolutePath | None = Field(
        None, description="PEM file of the authority that signed the scheduler's certificate."
    )
    tls_cert: AbsolutePath | None = Field(
        None, description="PEM file of the certificate that this command shows."
    )
    tls_key: AbsolutePath | None = Field(None, description="PEM file of that certificate's key.")
    wait_workers: Positive = Field(
        1, description="Workers of the scheduler to wait for before the first case."
    )
    wait_timeout: Seconds = Field(60.0, description="Seconds to wait for them.")
    upload_code: bool = Field(
        False, description="Send this package to the scheduler and its workers."
    )

    @model_validator(mode="after")
    def _one_scheduler(self) -> Self:
        if self.scheduler is not None and self.scheduler_file is not None:
            raise ValueError("scheduler and scheduler_file must not both be given")
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        files = {name: getattr(self, name) for name in ("tls_ca", "tls_cert", "tls_key")}
        missing = [name for name, path in files.items() if path is None]
        if missing and len(missing) < len(files):
            raise ValueError(
                f"tls_ca, tls_cert and tls_key go together, got no {' and no '.join(missing)}"
            )
        return self


class JobSettings(Frozen):
    """Workers that are jobs of a batch system."""

    cluster: BatchSystem | None = Field(
        None, description="Batch system in whose jobs the workers run (extra hpc)."
    )
    jobs: Positive = Field(1, description="Jobs to keep running; one that is lost is replaced.")
    cores: Positive = Field(1, description="Workers in each job, a core each.")
    memory: Memory = Field(ByteSize(4_000_000_000), description="Memory of each job, such as 4GB.")
    walltime: Walltime = Field("01:00:00", description="How long a job may run.")
    queue: str | None = Field(None, description="Queue, or partition, of the jobs.")
    account: str | None = Field(None, description="Account, or project, that they are charged to.")
    job_extra: tuple[str, ...] = Field(
        (), description="A line more for the batch system, such as --qos=high; may be repeated."
    )
    lifetime: Seconds | None = Field(
        None,
        description="Seconds after which the workers of a job end in peace. [default: somewhat "
        "less than walltime]",
    )
    interface: str | None = Field(
        None, description="Network interface that scheduler and workers talk through, such as ib0."
    )


class RunSettings(JobSettings, SchedulerSettings, LocalSettings):
    """How and where a run executes; nothing here changes the slices."""

    shard: Share | None = Field(
        None,
        description="I/N: run the I-th of N shares of the cases, beside the others; then `merge`.",
    )
    fsync: bool = Field(False, description="Force every file to disk before its case is committed.")
    retries: NonNegative = Field(
        2,
        description="How often a case is run again: failed I/O, a timeout, a worker that died.",
    )
    timeout: Seconds | None = Field(
        None, description="Seconds that a case may take on a worker before it is stopped."
    )
    fail_fast: bool = Field(False, description="Stop at the first failed case.")
    performance_report: AbsolutePath | None = Field(
        None, description="Write Dask's performance report (HTML) to this file."
    )
    log_file: AbsolutePath | None = Field(None, description="Write the log to this file.")
    overwrite: bool = Field(
        False, description="Start the output directory anew (only one that this tool wrote)."
    )
    prune: bool = Field(
        False, description="Remove written cases that are no longer in the dataset."
    )
    only: tuple[str, ...] = Field(
        (), description="Plan and split the whole dataset, then run these case ids."
    )

    @model_validator(mode="after")
    def _one_place_to_run(self) -> Self:
        if self.cluster is not None and (self.scheduler or self.scheduler_file):
            raise ValueError("cluster starts a scheduler of its own; give it or a scheduler")
        return self

    @model_validator(mode="after")
    def _tls_is_for_a_scheduler(self) -> Self:
        if self.tls_ca is not None and self.scheduler is None and self.scheduler_file is None:
            raise ValueError(
                "tls_ca, tls_cert and tls_key need a scheduler or a scheduler_file: workers that "
                "this command starts talk without TLS"
            )
        return self

    @model_validator(mode="after")
    def _a_share_touches_no_other(self) -> Self:
        for name in ("overwrite", "prune"):
            if self.shard is not None and getattr(self, name):
                raise ValueError(f"{name} concerns the whole output, shard one share of it")
        return self
