"""What examples/serving ships: the score template, the compose file, the manifests."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import kubernetes_validate
import pytest
import yaml
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llamaindex_qwen3.prompts import DEFAULT_TASK, RERANKER_PREFIX, RERANKER_SUFFIX, format_pair

ROOT = Path(__file__).resolve().parents[1]
SERVING = ROOT / "examples" / "serving"
README = (SERVING / "README.md").read_text(encoding="utf-8")
TEMPLATE = (SERVING / "qwen3_reranker.jinja").read_text(encoding="utf-8")
COMPOSE_TEXT = (SERVING / "compose.yaml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
MANIFESTS: list[dict[str, Any]] = [
    manifest
    for file in sorted((SERVING / "kubernetes").glob("*.yaml"))
    for manifest in yaml.safe_load_all(file.read_text(encoding="utf-8"))
]
WORKLOADS = {
    m["metadata"]["name"]: m for m in MANIFESTS if m["kind"] in ("Deployment", "StatefulSet")
}
SHARED = Path(os.environ.get("LLAMAINDEX_QWEN3_SHARED", ROOT.parent / "shared"))

KUBERNETES_VERSIONS = ["1.29", "1.37"]


# --- the score template ---------------------------------------------------------------------


def render(
    tokenizer: Tokenizer, template: str, query: str, document: str, **instruction: str
) -> str:
    """Render as vLLM does: the two roles through transformers' chat templates."""
    conversation = [
        {"role": "query", "content": query},
        {"role": "document", "content": document},
    ]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    return fast.apply_chat_template(
        conversation, tools=None, chat_template=template, tokenize=False, **instruction
    )


@pytest.mark.parametrize("instruction", [None, "Given a claim, find what refutes it"])
@pytest.mark.parametrize(
    ("query", "document"),
    [
        ("Where is the delta?", "At the Black Sea."),
        ("two\nlines ", "  {{ messages }} {% raw %} <b> & \"'\n\n"),
        ("问", "答\u2028<|im_end|>"),
        ("", ""),
    ],
)
def test_the_template_renders_the_official_prompt(
    tokenizer: Tokenizer, query: str, document: str, instruction: str | None
) -> None:
    """Give the prompt of this package, byte for byte, with and without an instruction."""
    given = {} if instruction is None else {"instruction": instruction}
    prompt = RERANKER_PREFIX + format_pair(instruction or DEFAULT_TASK, query, document)
    assert render(tokenizer, TEMPLATE, query, document, **given) == prompt + RERANKER_SUFFIX


def test_an_empty_instruction_is_the_default(tokenizer: Tokenizer) -> None:
    """Never leave the instruction out."""
    assert DEFAULT_TASK in render(tokenizer, TEMPLATE, "q", "d", instruction="")


def test_the_template_does_not_end_in_literal_newlines(tokenizer: Tokenizer) -> None:
    """Keep the end an expression: written out, one of its newlines is lost."""
    literal = TEMPLATE.replace('{{ "\\n\\n" }}\n', "\n\n")
    assert literal != TEMPLATE
    assert render(tokenizer, TEMPLATE, "q", "d").endswith("</think>\n\n")
    assert not render(tokenizer, literal, "q", "d").endswith("</think>\n\n")


def test_the_template_needs_both_roles() -> None:
    """Fail on a conversation instead of scoring half a prompt."""
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(TEMPLATE)
    with pytest.raises(jinja2.UndefinedError):
        template.render(messages=[{"role": "user", "content": "hello"}])


# --- schemas --------------------------------------------------------------------------------


def check_compose(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run([*command, str(file)], capture_output=True, text=True)


def test_the_compose_file_is_valid() -> None:
    """Hold it against the schema of the Compose specification."""
    done = check_compose(SERVING / "compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_check_notices_a_misspelt_key(tmp_path: Path) -> None:
    """Show that the check above can fail."""
    (tmp_path / "compose.yaml").write_text(COMPOSE_TEXT.replace("healthcheck:", "healthchek:"))
    assert check_compose(tmp_path / "compose.yaml").returncode == 1


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize(
    "manifest", MANIFESTS, ids=[f"{m['kind']}-{m['metadata']['name']}" for m in MANIFESTS]
)
def test_manifests_are_valid(manifest: dict[str, Any], version: str) -> None:
    """Hold each against Kubernetes's own schemas, unknown fields refused."""
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_manifest_check_notices_a_misspelt_field() -> None:
    """Show that the check above can fail."""
    wrong = yaml.safe_load(yaml.safe_dump(WORKLOADS["embedding"]))
    container = wrong["spec"]["template"]["spec"]["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES_VERSIONS[0], strict=True)


# --- what a schema does not see -------------------------------------------------------------


def variables(text: str) -> set[str]:
    """Return the names of the variables a compose file takes from outside."""
    return set(re.findall(r"\$\{(\w+)", text))


def interpolated(text: str) -> str:
    """Put in the defaults of variables, as compose does."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def container(name: str) -> dict[str, Any]:
    """Return the one container of a workload."""
    (only,) = WORKLOADS[name]["spec"]["template"]["spec"]["containers"]
    return only


def keys_of(name: str) -> set[str]:
    return {entry["name"] for entry in container(name).get("env", [])}


def test_both_run_the_same_images() -> None:
    """Pin every image by a version, the same one everywhere."""
    compose = {name: service["image"] for name, service in COMPOSE["services"].items()}
    assert compose == {name: container(name)["image"] for name in WORKLOADS}
    for image in compose.values():
        assert re.search(r":(v?\d+\.\d+\.\d+|RELEASE\.[\dTZ-]+)$", image), image
    assert compose["embedding"] in README
    assert compose["app"] in (SERVING / "Dockerfile").read_text()


def test_compose_services_wait_for_healthy_ones() -> None:
    """Wait only for services that exist and say when they are healthy."""
    services = COMPOSE["services"]
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[other]


def test_compose_volumes_exist() -> None:
    """Declare each named volume and ship each mounted file."""
    named: set[str] = set()
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = interpolated(volume).split(":")[0]
            if source.startswith("."):
                assert (SERVING / source).exists(), source
            else:
                named.add(source)
    assert named == set(COMPOSE["volumes"])


def test_compose_publishes_the_app_on_this_machine_only() -> None:
    """Leave Milvus and the model servers unreachable from outside."""
    published = {n: s["ports"] for n, s in COMPOSE["services"].items() if "ports" in s}
    assert list(published) == ["app"]
    assert all(port.startswith("127.0.0.1:") for port in published["app"])


def test_compose_variables_are_listed() -> None:
    """List in env.example every variable the file takes, and no other."""
    listed = re.findall(r"^#?([A-Z_0-9]+)=", (SERVING / "env.example").read_text(), re.M)
    assert set(listed) == variables(COMPOSE_TEXT)
    assert len(listed) == len(set(listed))


def test_no_key_is_written_down() -> None:
    """Take keys and passwords from outside: required variables, and a Secret made by command."""
    for name in ("QWEN3_API_KEY", "MILVUS_ROOT_PASSWORD", "MINIO_ROOT_PASSWORD"):
        given = set(re.findall(rf"\$\{{{name}[^}}]*\}}", COMPOSE_TEXT))
        assert given == {f"${{{name}:?set {name} in .env}}"}
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("KEY$|PASSWORD$|TOKEN$", name):
                assert value.removeprefix("root:").startswith("${"), name
    assert "Secret" not in {manifest["kind"] for manifest in MANIFESTS}
    wanted = set()
    for name in WORKLOADS:
        for entry in container(name)["env"]:
            secret = entry.get("valueFrom", {}).get("secretKeyRef")
            if re.search("KEY$|PASSWORD$|TOKEN$", entry["name"]) and secret is None:
                assert entry["value"].endswith("$(MILVUS_ROOT_PASSWORD)")
            if secret is not None:
                assert secret["name"] == "qwen3-rag"
                if not secret.get("optional"):
                    wanted.add(secret["key"])
    assert wanted == set(re.findall(r"--from-literal=([\w-]+)=", README))


def test_model_servers_are_started_alike() -> None:
    """Give vLLM the same options by compose, on Kubernetes and in the README."""
    scripts = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S)).replace("\\\n", " ")
    told = [shlex.split(c) for c in re.findall(r"^ *vllm serve (.*)$", scripts, re.M)]
    for name in ("embedding", "reranker"):
        compose = [interpolated(part) for part in COMPOSE["services"][name]["command"]]
        kubernetes = container(name)["args"]
        assert COMPOSE["services"][name]["entrypoint"] == container(name)["command"]
        assert options(compose) == options(kubernetes)
        assert compose[0] == kubernetes[0]
        (readme,) = [c for c in told if c[0].endswith(f"{name.capitalize()}-$SIZE")]
        assert options(readme) == options(compose)


def options(command: list[str]) -> dict[str, str]:
    """Return vLLM's options, without those that say where it runs."""
    pairs = dict(zip(command[1::2], command[2::2], strict=True))
    for name in ("--port", "--gpu-memory-utilization"):
        pairs.pop(name, None)
    if "--chat-template" in pairs:
        pairs["--chat-template"] = Path(pairs["--chat-template"]).name
    return pairs


def test_the_reranker_gets_the_template() -> None:
    """Mount the shipped template where --chat-template looks for it."""
    path = options_path(container("reranker")["args"])
    config = next(m for m in MANIFESTS if m["kind"] == "ConfigMap")
    assert config["data"] == {"qwen3_reranker.jinja": TEMPLATE}
    spec = WORKLOADS["reranker"]["spec"]["template"]["spec"]
    (volume,) = [v for v in spec["volumes"] if "configMap" in v]
    (mount,) = [m for m in container("reranker")["volumeMounts"] if m["name"] == volume["name"]]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    assert f"{mount['mountPath']}/qwen3_reranker.jinja" == path
    service = COMPOSE["services"]["reranker"]
    assert f"./qwen3_reranker.jinja:{options_path(service['command'])}:ro" in service["volumes"]


def options_path(command: list[str]) -> str:
    return command[command.index("--chat-template") + 1]


def test_services_select_pods_and_name_their_ports() -> None:
    """Send each Service's traffic to a port that its pods have."""
    for service in (m for m in MANIFESTS if m["kind"] == "Service"):
        name = service["metadata"]["name"]
        template = WORKLOADS[name]["spec"]["template"]
        assert service["spec"]["selector"] == template["metadata"]["labels"]
        assert WORKLOADS[name]["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
        ports = {port["name"] for port in container(name)["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_pods_are_probed_limited_and_told_nothing(name: str) -> None:
    """Probe ports that exist, bound memory, and keep Kubernetes's variables out."""
    pod, only = WORKLOADS[name]["spec"]["template"]["spec"], container(name)
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    ports = {port["name"] for port in only["ports"]}
    for probe in ("readinessProbe", "livenessProbe"):
        assert only[probe]["httpGet"]["port"] in ports
    assert {"cpu", "memory"} <= set(only["resources"]["requests"])
    assert "memory" in only["resources"]["limits"]
    volumes = {v["name"] for v in pod.get("volumes", [])}
    volumes |= {
        c["metadata"]["name"] for c in WORKLOADS[name]["spec"].get("volumeClaimTemplates", [])
    }
    assert {mount["name"] for mount in only["volumeMounts"]} == volumes


@pytest.mark.parametrize("name", ["embedding", "reranker"])
def test_model_servers_have_a_gpu_and_a_volume(name: str) -> None:
    """Ask for a GPU, and replace a pod only when its GPU and volume are free."""
    assert container(name)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert WORKLOADS[name]["spec"]["strategy"] == {"type": "Recreate"}
    claims = {m["metadata"]["name"] for m in MANIFESTS if m["kind"] == "PersistentVolumeClaim"}
    volumes = WORKLOADS[name]["spec"]["template"]["spec"]["volumes"]
    used = {
        v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v
    }
    assert used
    assert used <= claims
    (device,) = COMPOSE["services"][name]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_policies_let_in_who_connects() -> None:
    """Name pods and ports that exist, and cover every server but the app."""
    covered: set[str] = set()
    for policy in (m for m in MANIFESTS if m["kind"] == "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]
        names = {selector["matchLabels"]["app"]} if "matchLabels" in selector else set()
        for expression in selector.get("matchExpressions", []):
            names |= set(expression["values"])
        covered |= names
        for rule in policy["spec"]["ingress"]:
            assert {f["podSelector"]["matchLabels"]["app"] for f in rule["from"]} <= set(WORKLOADS)
            for port in rule.get("ports", []):
                for name in names:
                    assert port["port"] in {p["name"] for p in container(name)["ports"]}
    assert covered == set(WORKLOADS) - {"app"}


def test_the_app_reads_what_it_is_given() -> None:
    """Read each variable that compose and Kubernetes set, and list each in the README."""
    code = (SERVING / "app.py").read_text(encoding="utf-8")
    read = set(re.findall(r'(?:setting|addresses)\("(\w+)"', code))
    elsewhere = {"QWEN3_API_KEY", "OPENAI_API_KEY"}  # by this package and by OpenAI's
    listed = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", "".join(re.findall(r"^\| `.*", README, re.M))))
    assert listed == read | elsewhere
    compose = set(COMPOSE["services"]["app"]["environment"])
    assert compose - {"HF_TOKEN"} <= read | elsewhere
    assert keys_of("app") - {"MILVUS_ROOT_PASSWORD"} <= read | elsewhere


def test_the_image_is_built_from_what_there_is() -> None:
    """Copy files that exist, from the context that compose names."""
    build = COMPOSE["services"]["app"]["build"]
    context = (SERVING / build["context"]).resolve()
    assert context == ROOT
    dockerfile = (context / build["dockerfile"]).read_text()
    for line in re.findall(r"^COPY (.*)$", dockerfile, re.M):
        for source in line.split()[:-1]:
            assert (context / source).exists(), source


@pytest.mark.skipif(
    not (SHARED / "golden.json").is_file(),
    reason="needs the models' geometry: set LLAMAINDEX_QWEN3_SHARED to the folder of golden.json",
)
def test_sizes_follow_from_the_geometry() -> None:
    """Compute every figure of the sizing tables."""
    chunks = (ROOT / "examples" / "million_chunks.md").read_text(encoding="utf-8")
    geometry = json.loads((SHARED / "golden.json").read_text())["geometry"]
    for name, shape in geometry.items():
        size = name.rpartition("-")[2]
        weights = f"{shape['parameters'] * 2 / 1e9:.2f} GB"
        per_token = 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * 128 * 2
        width = shape["num_attention_heads"] * shape["head_dim"]
        kv_width = shape["num_key_value_heads"] * shape["head_dim"]
        multiplied = (
            shape["num_hidden_layers"]
            * shape["hidden_size"]
            * (2 * width + 2 * kv_width + 3 * shape["intermediate_size"])
        )
        rows = [
            r for r in README.splitlines() if r.startswith("| ") and f"{per_token:,} bytes" in r
        ]
        (row,) = [r for r in rows if r.split(" |")[0] in (f"| {size}, either", f"| {name[6:]}")]
        assert weights in row
        assert f"| {per_token * 8192 / 1e9:.2f} GB | {per_token * 32768 / 1e9:.2f} GB |" in row
        assert f"{multiplied / 1e9:.2f}e9" in README
        flop = 190e6 * 2 * multiplied
        expected = f"| {size} | 2 x {multiplied / 1e9:.2f}e9 | {flop:.1e} | {flop / 1e14 / 3600:.1f} hours |"
        assert expected.replace("e+", "e") in chunks
