"""What a task is called and of which kind it is, apart from the files that hold its labels.

A config is checked by these alone, without what reads files.
"""

from typing import Literal

Kind = Literal["binary", "regression", "classes"]


def canonical_task(name: str) -> str:
    """Return the name of a task that may be written as its folders, with slashes.

    >>> canonical_task("in-hospital/mortality/")
    'in-hospital-mortality'
    """
    return name.strip("/").replace("/", "-")
