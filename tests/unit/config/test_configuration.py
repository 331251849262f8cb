"""A mistake is told at once: the key, the value, the remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from donna_ray import pipeline
from donna_ray.cli import main as cli
from donna_ray.cli import results, start
from donna_ray.config import PRESETS, load_config, preset_space, shipped_config
from donna_ray.config.scenarios import DeviceConfig
from donna_ray.credentials import has_credentials
from donna_ray.errors import ConfigError
from donna_ray.latency.starting import check_device
from tests.command_line import donna_here

BAD_VALUES = [
    ("serch.a=1", ["serch", "Did you mean search?"]),
    ("search.evaluation=5", ["search.evaluation", "5", "Did you mean evaluations?"]),
    ("library.epochs=ten", ["library.epochs", "'ten'", "Change this value"]),
    ("library.epochs=0", ["library.epochs", "0", "greater than 0"]),
    ("space.blocks=[]", ["space must have blocks or a preset", "donna_large"]),
    ("space.preset=huge", ["space.preset must be one of", "micro", "'huge'"]),
    ("space.stages={0: {block: []}}", ["space.stages.0.block", "Did you mean blocks?"]),
    ("space.stages={-1: {}}", ["space.stages.-1"]),
    ("space.blocks=[{family: f, options: {a: [{}]}}]", ["options.a.0 must be a finite number"]),
    ("space.blocks=[{family: f, options: {a: [.nan]}}]", ["options.a.0 must be a finite number"]),
    ("space.blocks=[{family: inverted_residual, options: {kernel: []}}]", ["kernel", "[]"]),
    ("space.blocks=[{family: f, options: {}}]", ["space.blocks.0.options", "{}", "at least one"]),
    ("space.blocks=[{famly: f, options: {a: [1]}}]", ["blocks.0.famly", "Did you mean family?"]),
    ("space.blocks=[{options: {a: [1]}}]", ["blocks.0.family must be given", "config schema"]),
    ("search=5", ["search", "it is 5", "Change this value"]),
    ("search.latency_limit=2.5", ["search.latency_limit must be milliseconds", "2.5"]),
    ("search.latency_limit=0x", ["search.latency_limit", "'0x'", "greater than 0"]),
    ("search.latency_limit=fast", ["search.latency_limit", "'0.8x'", "'fast'"]),
    ("reference.weights=''", ["reference.weights must be a path, but is empty"]),
    ("search={strategy: nsga2, evaluations: 3}", ["search", "3", "population of 24", "raise the"]),
    ("search.memory_limit=2.5ms", ["search.memory_limit must be megabytes", "2.5ms"]),
    ("search.latency_limit=60MB", ["search.latency_limit must be milliseconds", "60MB"]),
    ("search.params_limit=2.5ms", ["search.params_limit", "'0.5x'", "2.5ms"]),
    ("search.macs_limit=0", ["search.macs_limit", "0", "greater than"]),
    ("cluster.storage=sftp://me:pass@host/runs", ["cluster.storage must hold no", "//…@host"]),
    ("cluster.storage=sftp://me:p/w@host/runs", ["cluster.storage must hold no password"]),
    ("cluster.storage=https://token@host/runs", ["cluster.storage must hold no password"]),
    ("cluster.storage=s3:/bucket/runs", ["cluster.storage must be a URL with two slashes", "./"]),
    ("cluster.storage=s3://bucket/runs?secret=abc", ["cluster.storage must hold no password"]),
    ("library.store=sftp://me:pass@host/runs", ["library.store must hold no password", "//…@"]),
    ("cluster.storage=s3://KEY:pass/word@bucket", ["--set cluster.storage: cluster.storage must"]),
    ("cluster.storage=s3://pass@bucket/runs", ["cluster.storage must hold no password or token"]),
    ("data.source=s3://pass@bucket/images", ["data.source must hold no password", "s3://…@bucket"]),
    ("data.root=gs://me:pass@bucket", ["data.root must hold no password"]),
    ("reference.weights=https://host/a.pth?pass@=1", ["reference.weights must hold no", "a.pth?…"]),
    ("device.settings={url: [http://me:pass@host]}", ["device.settings.url must hold no password"]),
    ("cluster.store=s3://me:pass@bucket", ["cluster.store must hold no password"]),
    *(
        (f"{key}={value}", [f"{key} must be a path, but is empty; name one"])
        for key in ("data.source", "data.root", "data.unlabelled", "cluster.storage")
        for value in ("''", "'  '")
    ),
    ("library.store=''", ["library.store must be a path, but is empty"]),
    ("cluster.storage=file://", ["cluster.storage must be a path, but is empty"]),
    ("device.resources={phone: 0}", ["device.resources.phone", "greater than 0"]),
    ("name=../x", ["--set name: name must begin with a letter", "'../x'"]),
    ("name=a/b", ["name must", "'a/b'", "rename"]),
    ("name=''", ["name must", "''"]),
    ("name=.", ["name must", "'.'"]),
    ("search={evaluations: 1, evaluations: 2}", ["must be YAML"]),
    ("search.latency_limit=", ["--set search.latency_limit=: ", "must not be empty", "null"]),
    ("search.latency_limit= # none", ["must not be empty"]),
    ("novalue", ["KEY=VALUE", "novalue"]),
    ("=5", ["KEY=VALUE", "'=5'"]),
    ("seed=[", ["seed=[", "must be YAML", "Quote it"]),
    ("seed.x=1", ["seed", "must be a section"]),
]


@pytest.mark.parametrize(("override", "words"), BAD_VALUES)
def test_mistake_is_named(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(shipped_config("demo"), [override])
    for word in words:
        assert word in str(caught.value)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["sftp://me@host/runs", "abfs://box@account.net/runs", "s3://b/what?", "hf-hub:a/b@main"]
)
def test_names_in_urls_are_no_credentials(url: str) -> None:
    assert not has_credentials(url)


@pytest.mark.parametrize(
    ("text", "word"), [(None, "does not exist"), ("a: [", "must be YAML"), ("7", "mapping")]
)
def test_unreadable_file_is_named(tmp_path: Path, text: str | None, word: str) -> None:
    path = tmp_path / "search.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=word):
        load_config(path)


def test_mistake_is_blamed_on_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text("space: {preset: micro}\nseed: x\nsearch: {evaluations: 0}\n")
    sets, options = ["search.latency_limit=fast", "library.epochs=0"], {"library.epochs": "--ep"}
    with pytest.raises(ConfigError) as caught:
        load_config(path, sets, options)
    sources = [line.partition(": ")[0] for line in str(caught.value).splitlines()]
    assert sources == [str(path), "--ep", str(path), "--set search.latency_limit"]


def test_merged_keys_are_not_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(
        "space: {preset: micro}\nlibrary: &all {epochs: 2, batch_size: 8}\n"
        "predictor:\n  <<: *all\n  epochs: 3\n"
    )
    assert load_config(path).predictor.epochs == 3


def test_latency_limit_of_compress_is_blamed_on_its_option() -> None:
    limit = donna_here("compress", "m", "--data=digits", "--latency-limit=fast", "--weights=train")
    assert (limit.returncode, limit.stderr.partition(": search.")[0]) == (
        2,
        "donna: --latency-limit",
    )


@pytest.mark.parametrize("model", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:/models/mine"])
def test_any_model_can_be_compressed_into_a_folder(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(cli, "run_folder", lambda config, out: given.append(config.name) or 1 / 0)
    donna_here("compress", model, "--data=digits", "--latency-limit=1x")
    assert len(given) == 1
    assert given[0].startswith("compress-")


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("device.settings.threads=4096", "device.settings.threads must be at most the CPUs"),
        ("reference.weights=/no/file", "exists, but is '/no/file'; correct the path"),
        ("space.blocks.0=x", "must be a section"),
        (
            "space.blocks=[{family: inverted_residual, options: {kernel: [3], expansion: [1], "
            "depth: [1], squeeze_excite: [false], activation: [swoosh]}}]",
            "timm's, such as relu, relu6,",
        ),
    ],
)
def test_check_tells_before_the_run(
    monkeypatch: pytest.MonkeyPatch, override: str, word: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ended = donna_here("config", "check", str(shipped_config("demo")), "--set", override)
    assert ended.returncode == 2
    assert word in ended.stderr
    assert ".." not in ended.stderr


def test_device_of_a_named_cluster_may_have_more_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    device = DeviceConfig(settings={"threads": 4096})
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_device(device)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(ConfigError, match=r"threads must be at most .* is 4096 of"):
        check_device(device)


@pytest.mark.parametrize("text", ["null", "~", "Null"])
def test_null_is_said_in_an_override(text: str) -> None:
    config = load_config(shipped_config("compress"), [f"search.latency_limit={text}"])
    assert config.search.latency_limit is None


def test_key_and_the_same_in_quotes_are_one(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    stages = "{0: {options: {depth: [1]}}, '0': {options: {depth: [2]}}}"
    path.write_text(f"space: {{preset: micro, stages: {stages}}}\n")
    with pytest.raises(ConfigError, match="the key '0' is there twice"):
        load_config(path)


def test_override_wins() -> None:
    config = load_config(shipped_config("demo"), ["seed=7", "device.settings.threads=2"])
    assert config.seed == 7
    assert config.device.settings["threads"] == 2


def test_command_ends_with_2_before_torch_and_ray_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text("space: {blocks: []}\n")
    program = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(sorted({'torch', 'ray'} & set(sys.modules))))\n"
        f"sys.argv = ['donna', 'run', {str(path)!r}, '--out', {str(tmp_path / 'run')!r}]\n"
        "from donna_ray.cli.main import main\n"
        "main()\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 2
    assert completed.stdout.strip() == "[]"
    assert completed.stderr.startswith("donna: ")
    assert "space must have blocks or a preset" in completed.stderr
    assert "Traceback" not in completed.stderr
    assert not (tmp_path / "run").exists()


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(shipped_config("demo"), ["library.epochs=0", "serch=1"])
    assert "library.epochs" in str(caught.value)
    assert "serch" in str(caught.value)


def test_unknown_shipped_configuration_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"one of compress, demo, donna_large, start, but is 'domo'"
    ):
        start.show("domo")


def test_schema_is_json() -> None:
    schema = json.loads(donna_here("config", "schema").stdout)
    assert schema["additionalProperties"] is False
    assert {"reference", "space", "search"} <= set(schema["properties"])


def test_every_step_has_a_command() -> None:
    assert list(results.STEPS) == list(pipeline.STEPS)


def test_memory_limit_is_megabytes_or_a_multiple() -> None:
    assert load_config(shipped_config("demo")).search.memory_limit_mb(50.0) is None
    for text, limit in (("60MB", 60), ("0.8x", 40)):
        changed = load_config(shipped_config("demo"), [f"search.memory_limit={text}"])
        assert changed.search.memory_limit_mb(50.0) == pytest.approx(limit)


def test_latency_limit_is_milliseconds_or_a_multiple() -> None:
    config = load_config(shipped_config("demo"))
    assert config.search.latency_limit_ms(4.0) is None
    for text, limit in (("2.5ms", 2.5), ("0.8x", 3.2), (".5 x", 2.0)):
        changed = load_config(shipped_config("demo"), [f"search.latency_limit={text}"])
        assert changed.search.latency_limit_ms(4.0) == pytest.approx(limit)


def test_stage_of_the_file_is_changed_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text("space: {preset: micro, stages: {0: {options: {kernel: [5]}}}}\n")
    config = load_config(path, ["space.stages.0.options.expansion=[4]"])
    assert config.space.stages[0].options == {"kernel": [5], "expansion": [4]}


def test_every_shipped_configuration_loads() -> None:
    for path in shipped_config("demo").parent.glob("*.yaml"):
        load_config(path)
    for name in PRESETS:
        assert name == "compress" or preset_space(name).blocks


def test_paths_are_absolute_for_workers_elsewhere() -> None:
    config = load_config(shipped_config("demo"), ["data.source=images", "space.modules=[a.py, b]"])
    assert config.data.source == str(Path("images").absolute())
    assert config.space.modules == [str(Path("a.py").absolute()), "b"]
    named = load_config(shipped_config("demo"), ["data.source=torch/cifar10"])
    assert named.data.source == "torch/cifar10"


def test_scenarios_say_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "space: {preset: micro}\n"
        "search: {evaluations: 50, latency_limit: 0.8x}\n"
        "device: {settings: {threads: 2}}\n"
        "scenarios:\n"
        "  - {name: tight, search: {latency_limit: 2ms}}\n"
        "  - {name: board, device: {connector: simulated}}\n"
    )
    tight, board = load_config(path).all_scenarios()
    assert (tight.search.evaluations, tight.search.latency_limit) == (50, "2ms")
    assert tight.device.settings == {"threads": 2}
    assert (board.search.latency_limit, board.device.connector) == ("0.8x", "simulated")
    assert load_config(path, ["search.evaluations=60"]).all_scenarios()[0].search.evaluations == 60
    [only] = load_config(path, ["scenarios=[]"]).all_scenarios()
    assert (only.name, only.search.evaluations) == ("default", 50)


def test_device_that_cannot_run_int8_is_refused() -> None:
    check_device(DeviceConfig(precision="int8", settings={"threads": 1}))
    with pytest.raises(ConfigError, match=r"device\.precision must be fp32 with connector 'cuda'"):
        check_device(DeviceConfig(connector="cuda", precision="int8"))


def test_device_that_runs_no_onnx_is_refused() -> None:
    check_device(DeviceConfig(connector="cuda", settings={"cuda_graph": True}))
    with pytest.raises(ConfigError, match=r"runtime must be onnxruntime.*device-farm bench"):
        check_device(DeviceConfig(connector="cuda", settings={"runtime": "torch"}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: yes", "seed must be a number, not yes or no"),
        ("library: {learning_rate: on}", "library.learning_rate must be a number"),
        ("search: {params_limit: true}", "search.params_limit must be a number"),
        ("search: {evaluations: 1:30}", "search.evaluations"),  # not 90
        (
            "library: {recipes: {mine: {lr: 0.1}}}",
            r"recipes\.mine\.lr is no known key.*learning_rate",
        ),
        ("data: {source: {{ DATA }}}", "line 2, column .*is this a template"),
        ("search: &a {device: *a}", "anchor"),
        (f"name: {'[' * 5000}{']' * 5000}", "nested too deeply"),
        (
            "library: {store: foo://bar/x}",
            "library.store must be .* but no package of it knows foo",
        ),
        ("cluster: {storage: 's4://bar'}", "cluster.storage must be .* fsspec knows"),
        ("scenarios: [{name: a}, {name: a}]", "a is there twice"),
        ("scenarios: [{name: A b}]", "scenarios.0.name"),
        ("scenarios: [{name: graphs}]", "another folder"),
        ("scenarios: [{name: tracking}]", "another folder"),
        ("scenarios: [{name: a, search: {evaluation: 3}}]", "'a' is not valid: search.evaluation "),
        (
            "scenarios: [{name: a, search: {latency_limit: fast}}]",
            "search.latency_limit must .*such as '2.5ms'",
        ),
        ("scenarios: [{name: a, search: {objectives: [params]}}]", "set strategy to nsga3"),
    ],
)
def test_faults_of_values_and_scenarios_are_told(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"space: {{preset: micro}}\n{text}\n")
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_numbers_are_decimal_and_yes_is_for_what_is_yes_or_no(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "space: {preset: micro}\nseed: 0224\nlibrary: {learning_rate: 1e-3, store: memory://x}\n"
        "search: {params_limit: 1_000}\n"
    )
    config = load_config(path)
    assert (config.seed, config.library.learning_rate) == (224, 1e-3)
    assert config.search.params_limit == 1000


def test_store_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("space: {preset: micro}\n")
    with pytest.raises(
        ConfigError, match=r"library\.store must be a folder or a URL, but is a file"
    ):
        load_config(path, [f"library.store={path}"])
