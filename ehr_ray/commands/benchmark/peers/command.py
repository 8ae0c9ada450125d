"""`benchmark --only peers`: the work of this program beside how other libraries do the same.

Every part gives what it compares in CPU seconds of one run, in turn, and fails where the others'
result is another. A library, text model or program that is missing is left out, and the figure
says so; `pip install 'ehr_ray[peers]'` brings them.
"""

from pathlib import Path

from ehr_ray.commands.benchmark.peers.carrying import carrying
from ehr_ray.commands.benchmark.peers.phrases import phrases
from ehr_ray.commands.benchmark.peers.preparing import preparing
from ehr_ray.commands.benchmark.peers.published_steps import published_steps
from ehr_ray.commands.benchmark.peers.timing import Figures


def peers(cohort: Path, place: Path) -> Figures:
    """Return the figures of all peers; RunError if one of them has another result.

    `place` is a folder for what is made on the way.
    """
    return {
        **carrying(cohort),
        **preparing(cohort, place / "prepared"),
        **phrases(cohort, place / "phrases"),
        **published_steps(place / "published"),
    }
