"""`evaluate --label-shares`: which runs can be asked how many labels a task needs."""

from collections.abc import Sequence

from ehr_ray.commands.evaluate.predicted_splits import own_answer
from ehr_ray.commands.evaluate.report_content import Subject
from ehr_ray.errors import InputError


def check_label_shares(shares: Sequence[float], subject: Subject) -> None:
    """Refuse shares that are none, and a run whose weights or answer have seen all labels."""
    if not shares:
        return
    given = f"--label-shares {','.join(f'{share:g}' for share in shares)}"
    if any(not 0 < share <= 1 for share in shares):
        raise InputError(f"{given}: a share of the labelled patients is above 0 and at most 1")
    if subject.task is None:
        raise InputError(f"{given}: needs a task (--task), which is learned from few labels")
    if subject.experiment.task is not None or own_answer(subject) is not None:
        raise InputError(
            f"{given}: {subject.run.name} was trained with labels; give the run it was pretrained "
            "by, or train with task.label_ratio"
        )
