"""No tests: a kill in the middle of a training that runs in the test's own process."""

from ehr_ray.train.report import Watch


class Killed(BaseException):
    """What a kill is to the loop: nothing it catches."""


def kill_at(step):
    """Return what ends a training after a step."""

    def on_step(done, _total):
        if done == step:
            raise Killed

    return Watch(on_step=on_step)
