"""Freed memory that stays with the process costs no page faults when it is used again."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from bitalloc.training import keep_freed_memory

def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.zeros(megabytes * 2**18) for _ in range(2)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = {kept}
assert not kept or keep_freed_memory()
faults(48)
print(min(faults(48) for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_a_step_that_allocates_what_the_last_one_freed_causes_no_page_faults() -> None:
    counts = [
        int(subprocess.run([sys.executable, "-c", FAULTS.replace("{kept}", kept)], check=True, capture_output=True, text=True).stdout)
        for kept in ("True", "False")
    ]
    assert counts[0] < 100 < counts[1]
