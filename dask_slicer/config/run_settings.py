"""Settings for the place of a run: this machine, a scheduler, batch jobs."""

from __future__ import annotations

from typing import Self

from pydantic import ByteSize, Field, model_validator

from dask_slicer.config import fields


class LocalSettings(fields.Frozen):
    """Workers on this machine."""

    num_workers: fields.Integer = Field(
        4,
        ge=-1,
        description="Worker processes, by default at most one for each available CPU; 0: run in "
        "this process; -1: one for each available CPU.",
    )
    dashboard_address: fields.HostAndPort = Field(
        "127.0.0.1:8787", description="Address of the Dask dashboard; none turns it off."
    )


class SchedulerSettings(fields.Frozen):
    """A running Dask scheduler and how to connect to it."""

    scheduler: str | None = Field(
        None,
        description="Address of a running Dask scheduler, such as tcp://host:8786 or "
        "tls://host:8786; env: the value of DASK_SCHEDULER_ADDRESS.",
    )
    scheduler_file: fields.AbsolutePath | None = Field(
        None, description="File in which a running Dask scheduler wrote its address."
    )
    tls_ca: fields.AbsolutePath | None = Field(
        None, description="PEM file of the authority that signed the scheduler's certificate."
    )
    tls_cert: fields.AbsolutePath | None = Field(
        None, description="PEM file of this command's own certificate."
    )
    tls_key: fields.AbsolutePath | None = Field(
        None, description="PEM file of that certificate's key."
    )
    wait_workers: fields.Positive = Field(
        1, description="Workers of the scheduler to wait for before the first case."
    )
    wait_timeout: fields.Seconds = Field(60.0, description="Seconds to wait for these workers.")
    upload_code: bool = Field(
        False, description="Send this package to the scheduler and its workers."
    )

    @model_validator(mode="after")
    def _scheduler_settings_fit(self) -> Self:
        if self.scheduler is not None and self.scheduler_file is not None:
            raise ValueError("scheduler and scheduler_file must not both be given")
        files = {name: getattr(self, name) for name in ("tls_ca", "tls_cert", "tls_key")}
        missing = [name for name, path in files.items() if path is None]
        if missing and len(missing) < len(files):
            raise ValueError(
                f"tls_ca, tls_cert and tls_key go together, got no {' and no '.join(missing)}"
            )
        return self


class JobSettings(fields.Frozen):
    """Workers that are jobs of a batch system."""

    cluster: fields.BatchSystemName | None = Field(
        None, description="Batch system that runs the workers as jobs (needs dask_slicer[hpc])."
    )
    jobs: fields.Positive = Field(1, description="Jobs to keep running; a lost job is replaced.")
    cores: fields.Positive = Field(1, description="Workers in each job, one core each.")
    memory: fields.Memory = Field(
        ByteSize(4_000_000_000), description="Memory of each job, such as 4GB."
    )
    walltime: fields.Walltime = Field("01:00:00", description="Time limit of each job.")
    queue: str | None = Field(None, description="Queue (partition) of the jobs.")
    account: str | None = Field(None, description="Account (project) that pays for the jobs.")
    job_extra: tuple[str, ...] = Field(
        (), description="Extra line for the batch system, such as --qos=high; may be repeated."
    )
    lifetime: fields.Seconds | None = Field(
        None,
        description="Stop each job's workers cleanly after this many seconds. [default: somewhat "
        "less than walltime]",
    )
    interface: str | None = Field(
        None, description="Network interface between scheduler and workers, such as ib0."
    )


class RunSettings(JobSettings, SchedulerSettings, LocalSettings):
    """Settings for how and where a run executes; they never change the slices."""

    scratch_dir: fields.AbsolutePath | None = Field(
        None,
        description="Directory for voxels that the memory of a worker does not hold. [default: a "
        "temporary folder of output_dir]",
    )
    shard: fields.Shard | None = Field(
        None, description="I/N: run only partition I of N of the cases; `merge` when all are done."
    )
    fsync: bool = Field(
        False, description="Force every file to disk before its case counts as written."
    )
    retries: fields.NonNegative = Field(
        2, description="How often to retry a case after failed I/O, a timeout or a lost worker."
    )
    timeout: fields.Seconds | None = Field(
        None, description="Stop a case that takes longer than this many seconds on a worker."
    )
    fail_fast: bool = Field(False, description="Stop at the first failed case.")
    performance_report: fields.AbsolutePath | None = Field(
        None, description="Write Dask's performance report (HTML) to this file."
    )
    log_file: fields.AbsolutePath | None = Field(None, description="Write the log to this file.")
    overwrite: bool = Field(
        False, description="Remove the earlier output first (only if this tool wrote it)."
    )
    prune: bool = Field(
        False, description="Remove written cases that are no longer in the dataset."
    )
    trust_size: bool = Field(
        False,
        description="Keep written cases whose scans have other times but the same sizes and "
        "contents, as after a copy.",
    )
    only: tuple[str, ...] = Field(
        (), description="Run only these case ids; splits are those of the whole dataset."
    )

    @model_validator(mode="after")
    def _run_settings_fit(self) -> Self:
        if self.cluster is not None and (self.scheduler or self.scheduler_file):
            raise ValueError(
                "cluster starts its own scheduler; give cluster or a scheduler, not both"
            )
        if self.tls_ca is not None and self.scheduler is None and self.scheduler_file is None:
            raise ValueError(
                "tls_ca, tls_cert and tls_key need a scheduler or a scheduler_file: this command "
                "starts its own workers without TLS"
            )
        for name in ("overwrite", "prune"):
            if self.shard is not None and getattr(self, name):
                raise ValueError(
                    f"{name} changes the whole output, shard only a part; give one of the two"
                )
        return self
