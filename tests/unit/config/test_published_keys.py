import pytest
import yaml

from ehr_ray.config.published_keys import translated
from ehr_ray.config.yaml_files import override
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import parse

PRETRAIN = """
model: {type: transformer_decoder_embedded, embedding_dim: 384, model_dim: 256, n_heads: 8,
  n_layers: 6, dropout: 0.1, context_length: 512, vocab_size: 10000}
data: {embedding_output_dir: embeddings/patients/}
training: {task: autoregressive, output_dir: results/embedded_based/pretrain/, batch_size: 32,
  eval_batch_size: 32, epochs: 50, learning_rate: 1e-4, weight_decay: 0.01,
  min_learning_rate: 1e-6, num_workers: 4, save_every: 10}
wandb: {enabled: true}
"""
FINETUNE = """
model: {type: transformer_encoder_embedded, embedding_dim: 384, model_dim: 256, n_heads: 8,
  n_layers: 6, dropout: 0.1, max_length: 512, num_classes: 2, pooling: mean}
data: {lab_lookup_filepath: lab.csv}
training: {output_dir: results/finetune_encoder, pretrained_checkpoint: null, batch_size: 16,
  epochs: 30, learning_rate: 5e-5, early_stopping_patience: 10, scheduler_patience: 3,
  class_weights: [0.5, 1.5]}
"""
COHORT = {"data.cohort": "cohorts/mine"}


def test_a_pretraining_config_is_read_as_ours():
    experiment = parse(override(yaml.safe_load(PRETRAIN), COHORT))
    assert (experiment.output, experiment.name) == ("results/embedded_based", "pretrain")
    assert experiment.task is None
    model, plan = experiment.model, experiment.train
    assert (model.arch, model.embedding_dim, model.model_dim) == ("decoder", 384, 256)
    assert (model.max_length, model.n_layers, experiment.data.batch_size) == (512, 6, 32)
    assert (plan.max_epochs, plan.lr, plan.lr_schedule) == (50, 1e-4, "cosine")
    assert plan.min_lr_ratio == pytest.approx(0.01)
    assert (plan.kept_every(7), experiment.data.eval_batch_size) == (70, 32)
    assert experiment.data.cache_dir == "embeddings/patients/"
    assert experiment.cluster.gpus_per_worker == 0


def test_a_finetuning_config_is_a_task():
    changes = {**COHORT, "train.lr": 0.002, "name": "mine"}
    experiment = parse(override(yaml.safe_load(FINETUNE), changes))
    assert (experiment.model.arch, experiment.model.head) == ("encoder", "none")
    assert experiment.model.pooling == ("mean",)
    assert experiment.model.lab_lookup == "lab.csv"
    assert (experiment.task.name, experiment.task.select) == ("case", "f1")
    assert experiment.task.class_weight == 3.0
    assert (experiment.train.lr_schedule, experiment.train.plateau_patience) == ("plateau", 3)
    assert (experiment.train.patience, experiment.train.lr) == (10, 0.002)
    assert experiment.name == "mine"


def test_a_pretrained_checkpoint_starts_the_task_of_either_architecture():
    start = {**COHORT, "training.pretrained_checkpoint": "results/embedded_based/pretrain"}
    for kind, arch in (("encoder", "encoder"), ("decoder", "decoder")):
        change = {**start, "model.type": f"transformer_{kind}_embedded"}
        experiment = parse(override(yaml.safe_load(FINETUNE), change))
        assert experiment.init_from == "results/embedded_based/pretrain"
        assert (experiment.model.arch, experiment.task.name) == (arch, "case")


EMBEDDINGS = """
model: {name: sentence-transformers/all-MiniLM-L6-v2, embedding_dim: 384}
data: {data_dir: tokenized/, vocab_filepath: vocab.csv, labels_filepath: labels.csv,
  medical_lookup_filepath: medical.csv, lab_lookup_filepath: lab.csv,
  vocab_embedding_path: embeddings/vocab_embeddings.pt,
  embedding_output_dir: embeddings/patients/}
device: cuda
"""


def test_the_config_of_the_first_stage_says_where_the_next_ones_look():
    experiment = parse(override(yaml.safe_load(EMBEDDINGS), COHORT))
    pretrain = parse(override(yaml.safe_load(PRETRAIN), COHORT))
    assert experiment.model.text_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert experiment.data.cache_dir == pretrain.data.cache_dir
    names = (experiment.model.medical_lookup, experiment.model.lab_lookup)
    assert names == ("medical.csv", "lab.csv")
    assert experiment.cluster.gpus_per_worker == 1
    here = parse(override(yaml.safe_load(EMBEDDINGS), {**COHORT, "cluster.gpus_per_worker": 0.5}))
    assert here.cluster.gpus_per_worker == 0.5


def test_a_width_that_the_text_model_does_not_make_is_refused_with_the_line_to_change():
    """As the document's later stages have it, beside a first stage of 384."""
    raw = override(yaml.safe_load(PRETRAIN), {**COHORT, "model.embedding_dim": 768})
    line = r"embedding_dim 768: all-MiniLM-L6-v2 makes 384; write embedding_dim: 384, or take a"
    with pytest.raises(ConfigError, match=line):
        parse(raw)
    wide = parse(override(raw, {"model.text_model": "all-mpnet-base-v2"}))
    assert (wide.model.text_model, wide.model.embedding_dim) == ("all-mpnet-base-v2", 768)
    parse(override(raw, {"model.text_model": "hashing"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training.epocs": 5}, r"training\.epocs: unknown key; did you mean epochs\?"),
        ({"training.task": "regression"}, "training.task: 'regression' is none of"),
        ({"model.n_head": 4}, r"model\.n_head: unknown key; did you mean n_heads\?"),
        ({"data.cohrt": "x"}, r"data\.cohrt: unknown key; did you mean cohort\?"),
        ({"device": "tpu"}, "device: 'tpu' is neither cpu nor cuda"),
    ],
)
def test_an_unknown_key_is_named_not_swallowed(change, message):
    with pytest.raises(ConfigError, match=message):
        parse(override(yaml.safe_load(PRETRAIN), {**COHORT, **change}))


def test_what_cannot_be_translated_is_named():
    raw = yaml.safe_load(FINETUNE)
    with pytest.raises(ConfigError, match="num_classes=3"):
        translated(override(raw, {"model.num_classes": 3}))
    with pytest.raises(ConfigError, match=r"model\.type: 'lstm'"):
        translated(override(raw, {"model.type": "lstm"}))
    with pytest.raises(ConfigError, match=r"data\.cohort: missing"):
        parse(raw)


def test_a_config_of_ours_stays_as_it_is():
    raw = {"family": "set_vae", "name": "x", "model": {"latent": 8}}
    assert translated(raw) == raw
