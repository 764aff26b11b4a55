"""The cluster files, checked without a cluster: by Ray's own validation where it has one, else by what Kubernetes,
Slurm and compose ask for."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2] / "cluster_configs"
KUBERAY = sorted((ROOT / "kuberay").glob("*.yaml"))


@pytest.mark.parametrize("path", sorted((ROOT / "ray").glob("*.yaml")), ids=lambda path: path.name)
def test_ray_up_files_pass_rays_validation(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    commands = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert commands.count("RAY_AUTH_MODE=token") == 2


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def ray_spec(path: Path) -> dict[str, Any]:
    ray = next(document for document in documents(path) if document["apiVersion"] == "ray.io/v1")
    assert ray["kind"] in ("RayCluster", "RayJob")
    if ray["kind"] == "RayCluster":
        return ray["spec"]
    assert ray["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
    assert "--state /state" in ray["spec"]["entrypoint"]
    return ray["spec"]["rayClusterSpec"]


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kuberay_files_say_what_the_operator_needs(path: Path) -> None:
    spec = ray_spec(path)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert spec["rayVersion"].startswith("2.60")
    assert spec["enableInTreeAutoscaling"] is True
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        for container in group["template"]["spec"]["containers"]:
            resources = container["resources"]
            assert resources["requests"] == resources["limits"]
            assert {"cpu", "memory"} <= resources["limits"].keys()
            names = {entry["name"]: entry for entry in container["env"]}
            assert names["RAY_AUTH_MODE"]["value"] == "token"
            assert "valueFrom" in names["RAY_AUTH_TOKEN"]
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    mounts = groups[0]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "state", "mountPath": "/state"} in mounts


def test_one_variant_has_gcs_fault_tolerance_with_its_own_redis() -> None:
    tolerant = [path for path in KUBERAY if "gcsFaultToleranceOptions" in ray_spec(path)]
    assert [path.name for path in tolerant] == ["raycluster-fault-tolerant.yaml"]
    services = [d["metadata"]["name"] for d in documents(tolerant[0]) if d["kind"] == "Service"]
    assert services == [ray_spec(tolerant[0])["gcsFaultToleranceOptions"]["redisAddress"].split(":")[0]]


def test_stores_listen_on_the_loopback_address_and_keep_their_data() -> None:
    compose = yaml.safe_load((ROOT / "compose" / "compose.yaml").read_text())
    assert set(compose["services"]) == {"neo4j", "chroma", "redis", "mongodb"}
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert all(volume.split(":")[0] in compose["volumes"] for volume in service["volumes"])


def test_the_slurm_script_is_a_script() -> None:
    bash = shutil.which("bash")
    assert bash is not None
    script = ROOT / "slurm" / "search.sbatch"
    subprocess.run([bash, "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert any("--ntasks-per-node=1" in option for option in options)


def test_the_dashboard_shows_metrics_that_exist() -> None:
    from model_opt.actors.metrics import EXPORTED

    known = {f"ray_{name}" for name in EXPORTED}
    dashboard = json.loads((ROOT / "grafana" / "model_opt.json").read_text())
    shown = {panel["targets"][0]["expr"].split("{")[0] for panel in dashboard["panels"]}
    assert shown == known
