"""The Kubernetes manifest against the fields of RayJob (ray.io/v1), the scripts and the configs.

The schema knows the fields a training job may need and no others, so that a misspelt one fails here
and not on a cluster, where an unknown field is dropped without a word.
"""

import copy
import re
import shlex
import tomllib
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from ehr_ray.experiment import load

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "kubernetes"
CLAIM, JOB = yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text())


def record(required: str, **properties: object) -> dict[str, object]:
    """Return the schema of a mapping with these keys and no others."""
    known = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**known, "required": required.split()}


def listing(item: object) -> dict[str, object]:
    return {"type": "array", "items": item}


TEXT, COUNT = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}
FLAG = {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITY = {"type": "string", "pattern": r"^[0-9.]+(m|[kMGTP]i?)?$"}
QUANTITIES = record("cpu memory", cpu=QUANTITY, memory=QUANTITY, **{"nvidia.com/gpu": QUANTITY})
RESOURCES = record("limits", requests=QUANTITIES, limits=QUANTITIES)
CONTAINER = record(
    "name image resources",
    name=TEXT,
    image={"type": "string", "pattern": r"^[\w./-]+:[\w.-]+$"},
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    resources=RESOURCES,
    env=listing(record("name", name=TEXT, value=TEXT, valueFrom={"type": "object"})),
    envFrom=listing({"type": "object"}),
    volumeMounts=listing(record("name mountPath", name=TEXT, mountPath=TEXT, readOnly=FLAG)),
    securityContext={"type": "object"},
)
VOLUME = record(
    "name",
    name=TEXT,
    persistentVolumeClaim=record("claimName", claimName=TEXT, readOnly=FLAG),
    emptyDir=record("", medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
    secret=record("secretName", secretName=TEXT),
)
POD = record(
    "spec",
    metadata=record("", labels=TEXTS, annotations=TEXTS),
    spec=record(
        "containers",
        containers={**listing(CONTAINER), "minItems": 1},
        volumes=listing(VOLUME),
        nodeSelector=TEXTS,
        tolerations=listing({"type": "object"}),
        securityContext={"type": "object"},
        serviceAccountName=TEXT,
        imagePullSecrets=listing(record("name", name=TEXT)),
        terminationGracePeriodSeconds=COUNT,
    ),
)
WORKERS = record(
    "groupName minReplicas maxReplicas rayStartParams template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    suspend=FLAG,
    idleTimeoutSeconds=COUNT,
    rayStartParams=TEXTS,
    template=POD,
)
CLUSTER = record(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=record("mode", mode={"enum": ["token"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=record(
        "",
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        resources={"type": "object"},
    ),
    headGroupSpec=record(
        "rayStartParams template",
        serviceType={"enum": ["ClusterIP"]},
        rayStartParams=TEXTS,
        template=POD,
    ),
    workerGroupSpecs={**listing(WORKERS), "minItems": 1},
)
RAYJOB = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=record("name", name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS),
    spec=record(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode"]},
        backoffLimit=COUNT,
        activeDeadlineSeconds=COUNT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        entrypointNumCpus={"type": "number"},
        suspend=FLAG,
        metadata=TEXTS,
        submitterConfig=record("", backoffLimit=COUNT),
        submitterPodTemplate=POD,
        rayClusterSpec=CLUSTER,
    ),
)


def groups() -> dict[str, dict]:
    cluster = JOB["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"], **workers}


def pods() -> list[dict]:
    return [group["template"]["spec"] for group in groups().values()]


def experiment():
    python, script, config, *overrides = shlex.split(JOB["spec"]["entrypoint"])
    assert python == "python"
    assert (ROOT / script).is_file()
    assert Path(script).parent == Path("jobs")
    return load(ROOT / config, overrides)


def test_the_manifest_is_a_rayjob():
    jsonschema.validate(JOB, RAYJOB)


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ("spec", "entryPoint", "python jobs/train.py"),
        ("spec", "entrypoint", None),
        ("spec", "submissionMode", "K8SJobMode"),
        ("spec.rayClusterSpec", "authOptions", None),
        ("spec.rayClusterSpec.authOptions", "mode", "disabled"),
        ("spec.rayClusterSpec", "headGroupSpecs", {}),
        ("spec.rayClusterSpec.workerGroupSpecs.0", "minReplica", 0),
        ("spec.rayClusterSpec.workerGroupSpecs.1", "maxReplicas", "4"),
        ("spec.rayClusterSpec.headGroupSpec", "rayStartParams", {"num-cpus": 0}),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0", "image", "ehr-ray"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0", "resource", {}),
    ],
)
def test_a_wrong_field_is_refused(path, key, value):
    wrong = copy.deepcopy(JOB)
    node = wrong
    for part in path.split("."):
        node = node[int(part) if part.isdigit() else part]
    if value is None:
        del node[key]
    else:
        node[key] = value
    with pytest.raises(jsonschema.ValidationError, match=re.escape(key)) as error:
        jsonschema.validate(wrong, RAYJOB)
    assert error.value.message


def test_the_entrypoint_is_a_job_script_on_a_config():
    found = experiment()
    mounts = {
        mount["mountPath"] for pod in pods() for mount in pod["containers"][0]["volumeMounts"]
    }
    assert "/shared" in mounts
    assert found.data.cohort.startswith("/shared/")
    assert found.output.startswith("/shared/")


def test_every_pod_runs_the_one_image_with_the_ray_it_says():
    images = {container["image"] for pod in pods() for container in pod["containers"]}
    docker = (FOLDER / "Dockerfile").read_text()
    (image,) = images
    assert f"-t {image} " in docker
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert image.endswith(f":{project['version']}")
    ray = JOB["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"ARG RAY_IMAGE=rayproject/ray:{ray}-" in docker
    (wanted,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert wanted.specifier.contains(ray)
    assert version("ray") == ray


def test_the_working_directory_is_where_the_image_has_the_repository():
    docker = (FOLDER / "Dockerfile").read_text()
    runtime = yaml.safe_load(JOB["spec"]["runtimeEnvYAML"])
    assert f"WORKDIR {runtime['working_dir']}\n" in docker
    assert re.search(r"^COPY .*\. \.$", docker, re.MULTILINE)
    assert runtime["env_vars"]["OMP_NUM_THREADS"] == f"{experiment().cluster.cpus_per_worker:g}"


def test_every_pod_mounts_the_claim_at_one_place():
    places = set()
    for pod in pods():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
        assert mounts.keys() == volumes.keys()
        claim = volumes["shared"]["persistentVolumeClaim"]["claimName"]
        places.add((claim, mounts["shared"]))
    assert places == {(CLAIM["metadata"]["name"], "/shared")}
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_training_pods_have_room_for_the_workers():
    cluster, train = experiment().cluster, groups()["train"]
    limits = train["template"]["spec"]["containers"][0]["resources"]["limits"]
    each = int(limits["cpu"]) // cluster.cpus_per_worker
    if cluster.gpus_per_worker:
        each = min(each, int(limits["nvidia.com/gpu"]) // cluster.gpus_per_worker)
    assert train["maxReplicas"] * each >= cluster.most_workers
    for name, group in groups().items():
        if name != "head":
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
