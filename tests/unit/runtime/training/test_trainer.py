import signal
import sys

import ray

from ehr_ray.runtime.training.trainer import Trainer


def names_of(version, monkeypatch):
    monkeypatch.setattr(ray, "__version__", version)
    trainer = Trainer(lambda: None)
    return {type(callback).__name__ for callback in trainer._create_default_callbacks()}


def test_this_ray_is_one_whose_private_classes_are_known(monkeypatch):
    names = names_of(ray.__version__, monkeypatch)
    assert "StartCleaner" in names
    assert not names & {"PlacementGroupCleanerCallback", "DatasetsCallback"}


def test_of_a_ray_that_is_not_known_no_private_class_is_taken(monkeypatch):
    monkeypatch.delitem(sys.modules, "ehr_ray.runtime.training.placement", raising=False)
    names = names_of("2.61.0", monkeypatch)
    assert names >= {"PlacementGroupCleanerCallback", "DatasetsCallback"}
    assert "StartCleaner" not in names
    assert "ehr_ray.runtime.training.placement" not in sys.modules


def test_ctrl_c_is_python_s_own_in_a_training_and_after_it():
    """Ray's own answer to it ends the program without a word, and only when its controller does."""
    assert hasattr(super(Trainer, Trainer), "_register_sigint_handler")  # Ray still asks for it
    before = signal.getsignal(signal.SIGINT)
    Trainer(lambda: None)._register_sigint_handler(object())
    assert signal.getsignal(signal.SIGINT) is before
