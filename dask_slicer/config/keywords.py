"""Groups of settings, for help and documentation."""

from __future__ import annotations

# By heading, in the order of `--help`; every setting is in one group.
GROUPS: dict[str, tuple[str, ...]] = {
    "Input": ("input_dir", "include_test", "only"),
    "Slices": ("plane", "window_size", "padding_mode"),
    "Intensities": ("clip_min", "clip_max", "normalize", "dtype", "nonfinite"),
    "Labels": ("label_dtype", "allow_missing_labels", "min_foreground"),
    "Splits": ("train_ratio", "val_ratio", "group_regex", "seed", "splits", "fold"),
    "Output": (
        *("output_dir", "format", "compression_level", "compression"),
        *("overwrite", "prune", "fsync"),
    ),
    "Workers": ("num_workers", "dashboard_address", "shard"),
    "Running scheduler": (
        *("scheduler", "scheduler_file", "tls_ca", "tls_cert", "tls_key"),
        *("wait_workers", "wait_timeout", "upload_code"),
    ),
    "Batch system": (
        *("cluster", "jobs", "cores", "memory", "walltime", "queue", "account"),
        *("job_extra", "lifetime", "interface"),
    ),
    "Failures and logs": ("retries", "timeout", "fail_fast", "performance_report", "log_file"),
}
