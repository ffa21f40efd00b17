"""Lets `faults` break cases in every process that is started with this folder on its path."""

import faults

faults.wait_for_tasks()
