import pytest

from ehr_ray.config.yaml_files import override
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import parse
from ehr_ray.families.set_vae.config import SetConfig
from ehr_ray.families.set_vae.sequence.config import SeqSetVAEConfig


def test_options_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"prior_width 10 must be a multiple of prior_heads 4"):
        SeqSetVAEConfig(prior_width=10)
    with pytest.raises(ValueError, match="embed must name at least one"):
        SeqSetVAEConfig(embed=())
    with pytest.raises(ValueError, match=r"width 30 must be a multiple of heads 4"):
        SeqSetVAEConfig(width=30)


def test_sets_are_those_of_the_set_vae():
    shared, ours = SetConfig(), SeqSetVAEConfig()
    others = {name for name, value in vars(shared).items() if getattr(ours, name) != value}
    assert others == {"p_live"}
    assert (ours.p_stale, ours.p_live) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.prior", "lstm"),
        ("model.poe", "none"),
        ("model.decode_sets", 0),
        ("model.chunk_tokens", 0),
        ("model.embed", ["future"]),
        ("model.time_buckets", 1),
        ("model.sets_per_patient", 4),
    ],
)
def test_a_wrong_value_is_named_with_its_path(path, value):
    raw = {"family": "seqset_poe", "name": "x", "data": {"cohort": "c"}}
    assert parse(override(raw, {})).model == SeqSetVAEConfig()
    with pytest.raises(ConfigError, match=path.replace(".", r"\.")):
        parse(override(raw, {path: value}))
