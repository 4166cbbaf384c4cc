import hashlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from signer.api import server
from signer.api.guard import DEFAULT_SECONDS
from signer.config import policy_files as files_of_policy
from signer.config import strict_yaml
from signer.config.client_file import Address, load_client
from signer.config.models import LimitsConfig, load_config
from signer.config.policy_documents import load_policy, read_policy_text
from signer.config.policy_files import PolicyFile, policy_text, write_policy_files
from signer.daemon import sealing
from signer.errors import ConfigError, Violation
from signer.hsm.front.process import WorkerProcess
from signer.keys import database as database_of
from signer.observe import tracing

REPOSITORY = Path(__file__).parents[2]
BAD = Path(__file__).parent / "bad"
LOADERS: dict[str, Callable[[Path], object]] = {
    "policy": load_policy,
    "config": load_config,
    "client": load_client,
}
SAMPLES = [path for kind in LOADERS for path in sorted((BAD / kind).iterdir())]


def test_a_call_without_a_deadline_ends_within_the_drain() -> None:
    assert LimitsConfig().drain_seconds >= DEFAULT_SECONDS


def test_a_stop_has_time_for_each_part_that_ends() -> None:
    limits = LimitsConfig()
    database = database_of._STATEMENT_MS / 1000 + database_of._CONNECT_S
    worker = inspect.signature(WorkerProcess.end).parameters["seconds"].default
    traces = tracing._EXPORT_SECONDS
    closing = database + server._PATIENCE_SECONDS + sealing.CLOSE_SECONDS + worker + traces
    drain = limits.drain_notice_seconds + limits.drain_seconds
    assert drain + closing <= limits.stop_seconds


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_bad_sample_is_refused_with_its_path(sample: Path) -> None:
    file = sample / "a.yaml" if sample.is_dir() else sample
    lines = [line for line in file.read_text().splitlines() if line.startswith("# expect: ")]
    expected = [line.removeprefix("# expect: ").partition(": ")[::2] for line in lines]
    with pytest.raises(ConfigError) as refused:
        LOADERS[sample.parent.name](sample)
    found = refused.value.problems
    assert [problem.field for problem in found] == [field for field, _ in expected]
    for problem, (_, text) in zip(found, expected, strict=True):
        assert text in problem.description


def text_of(loader: Callable[[Path], object], folder: Path, text: str) -> str:
    file = folder / "file.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        loader(file)
    return str(refused.value)


def test_samples_of_the_repository_load() -> None:
    loaded = load_config(REPOSITORY / "config" / "signer.yaml")
    folder = REPOSITORY / "config"
    assert loaded.listen == Address("127.0.0.1", 7443)
    assert loaded.tls.key == folder / "tls/server.key"
    assert loaded.registry == f"sqlite:///{folder}/registry.sqlite"
    (token,) = loaded.tokens
    assert token.module == Path("/usr/lib/softhsm/libsofthsm2.so")
    assert token.environment == {"SOFTHSM2_CONF": str(folder / "softhsm2.conf")}
    assert (token.start_seconds, token.hang_seconds, token.order_seconds) == (60, 10, 120)
    assert token.key_lookup == "index"
    assert loaded.limits == LimitsConfig()
    assert loaded.client is None
    policy = load_policy(loaded.policy)
    assert sorted(policy.facilities) == ["01-001", "01-002", "moh"]
    client = load_client(folder / "client.yaml")
    assert client.address == Address("127.0.0.1", 7443)
    assert client.server_name == "localhost"


def test_relative_config_path_gives_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "signer.yaml").write_bytes((REPOSITORY / "config/signer.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("signer.yaml")).state == tmp_path / "state"


def test_values_that_are_no_paths_stay(tmp_path: Path) -> None:
    text = (REPOSITORY / "config/signer.yaml").read_text()
    url = "postgresql+psycopg://signer@database/signer"
    file = tmp_path / "signer.yaml"
    text = text.replace("./softhsm2.conf", "softhsm2.conf")
    file.write_text(text.replace("sqlite:///registry.sqlite", url))
    config = load_config(file)
    assert config.tokens[0].environment == {"SOFTHSM2_CONF": "softhsm2.conf"}
    assert config.registry == url


def test_client_file(tmp_path: Path) -> None:
    file = tmp_path / "client.yaml"
    file.write_text("address: '[::1]:7443'\nca: ca.pem\ncertificate: /c.pem\nkey: c.key\n")
    client = load_client(file)
    assert str(client.address) == "[::1]:7443"
    assert client.server_name is None
    assert client.ca == tmp_path / "ca.pem"
    assert client.certificate == Path("/c.pem")


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "absent.yaml")


def test_what_is_no_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"contains no \*\.yaml"):
        load_policy(tmp_path)
    (tmp_path / "p.yaml").write_bytes(b"profiles: \xff\n")
    with pytest.raises(ConfigError, match="is not UTF-8: look at byte 10"):
        load_policy(tmp_path)


def test_large_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_of_policy, "MAX_POLICY_BYTES", 100)
    (tmp_path / "a.yaml").write_text("profiles: {}  #" + "x" * 60)
    (tmp_path / "b.yaml").write_text("facilities: {}  #" + "x" * 60)
    with pytest.raises(ConfigError, match=r"b\.yaml is refused:\n.*too large"):
        load_policy(tmp_path)


def test_all_problems_are_reported_at_once_up_to_a_limit(tmp_path: Path) -> None:
    lines = "\n".join(f"  f-{n}: {{profile: nowhere, client: []}}" for n in range(60))
    text = text_of(load_policy, tmp_path, f"profiles: {{}}\nfacilities:\n{lines}\n")
    assert text.count("is not known here") == strict_yaml.MAX_PROBLEMS
    assert "and 10 more" in text


def test_unread_values_and_wrong_parts_are_reported_together(tmp_path: Path) -> None:
    sample = (BAD / "policy" / "hours-sexagesimal.yaml").read_text()
    text = text_of(load_policy, tmp_path, sample.replace("profile: clinic", "profile: clinik"))
    assert "hours.open[0].from: file.yaml: not every YAML reader takes 06:00 as text" in text
    assert "facilities.01-001.profile: clinik is not in profiles" in text


def policy_files(folder: Path, *texts: tuple[str, str]) -> Path:
    folder.mkdir()
    for name, text in texts:
        (folder / name).write_text(text)
    return folder


PROFILES = "profiles:\n  p: {formats: [JWS], algorithms: [ES256], max_batch_items: 1}\n"
ONE = "facilities:\n  one: {profile: p}\n"
TWO = "facilities:\n  two: {profile: p}\n"


def test_files_of_a_directory_are_merged(tmp_path: Path) -> None:
    serials = 'denied_certificates: ["{}"]\n'
    folder = policy_files(
        tmp_path / "policy",
        ("a.yaml", PROFILES + serials.format("0a")),
        ("b.yaml", ONE + serials.format("0b")),
        ("c.yaml", TWO),
        (".hidden.yaml", "no policy"),
        ("README.md", "no policy"),
    )
    policy = load_policy(folder)
    assert sorted(policy.facilities) == ["one", "two"]
    assert policy.denied_certificates == {10, 11}


def test_hash_is_of_names_and_bytes_and_of_nothing_else(tmp_path: Path) -> None:
    a = policy_files(tmp_path / "a", ("1.yaml", PROFILES), ("2.yaml", ONE))
    same = policy_files(tmp_path / "b", ("2.yaml", ONE), ("1.yaml", PROFILES))
    comment = policy_files(tmp_path / "c", ("1.yaml", PROFILES), ("2.yaml", ONE + "# changed\n"))
    moved = policy_files(tmp_path / "d", ("1.yaml", PROFILES + ONE))
    named = policy_files(tmp_path / "e", ("1.yaml", PROFILES), ("3.yaml", ONE))
    assert load_policy(a).sha256 == load_policy(same).sha256
    assert len({load_policy(folder).sha256 for folder in (a, comment, moved, named)}) == 4


def test_hash_follows_the_documented_form(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(PROFILES + ONE)
    content = file.read_bytes()
    netstrings = b"6:p.yaml,%d:%b," % (len(content), content)
    assert load_policy(file).sha256 == hashlib.sha256(netstrings).hexdigest()


NAMES = [
    *("../../signer.yaml", "/etc/signer.yaml", "a/b.yaml", ".hidden.yaml", "..", ".yaml", "a.yml"),
    *("a b.yaml", "á.yaml", "a\x1b[2J.yaml", "a.yaml\n", "a.yaml/", "", "x" * 201 + ".yaml"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_text_with_another_name_is_no_policy_and_nothing_is_written(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "a" / "policy"
    folder.mkdir(parents=True)
    text = policy_text([PolicyFile("0.yaml", b"0"), PolicyFile(name, PROFILES.encode())])
    for read in (read_policy_text, lambda text: write_policy_files(folder, text)):
        with pytest.raises(ValueError, match=r"should be named with letters"):
            read(text)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == []


def test_files_of_a_text_are_in_order_each_once() -> None:
    one, other = PolicyFile("a.yaml", PROFILES.encode()), PolicyFile("b.yaml", ONE.encode())
    assert read_policy_text(policy_text([one, other])).policy.facilities.keys() == {"one"}
    for files in ([other, one], [one, one]):
        with pytest.raises(ValueError, match="each once"):
            read_policy_text(policy_text(files))


@pytest.mark.parametrize("name", ["a b.yaml", "á.yaml", "a\x1b[2J.yaml"])
def test_a_file_with_another_name_is_refused_in_a_folder_and_alone(
    tmp_path: Path, name: str
) -> None:
    folder = policy_files(tmp_path / "policy", ("a.yaml", PROFILES + ONE), (name, TWO))
    for path in (folder, folder / name):
        with pytest.raises(ConfigError, match="should be named with letters"):
            load_policy(path)


# YAML has no surrogate pairs, with which JSON escapes what is above.
TEXTS = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=8)
PLAIN = st.recursive(
    st.booleans() | st.integers(-(10**17), 10**17) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)


def read(text: str) -> tuple[object, list[Violation]]:
    problems: list[Violation] = []
    return strict_yaml._Reader(text, Path("p.yaml"), problems).document(), problems


@given(st.dictionaries(TEXTS, PLAIN, max_size=4))
def test_json_is_read_as_it_is(document: dict[str, object]) -> None:
    # JSON with escaped characters is YAML; names and texts stand in quotes.
    assert read(json.dumps(document)) == (document, [])


@given(st.from_regex(r"[0-9A-Za-z_.~+]([0-9A-Za-z:._+~-]*[0-9A-Za-z_])?", fullmatch=True))
@example("06:00")
@example("20:00")
@example("NO")
@example("0x1F")
@example("1_000")
@example("01")
@example("1.e+3")
@example(".inf")
@example("~")
@example("2030-01-01")
@example("12.50")
def test_unquoted_text_is_read_as_it_looks(text: str) -> None:
    document, problems = read(f"a: {text}")
    if problems:
        assert [problem.field for problem in problems] == ["a"]
        return
    assert isinstance(document, dict)
    value = document["a"]
    if isinstance(value, bool):
        assert text in ("true", "false")
    elif isinstance(value, int | float):
        assert re.fullmatch(r"(0|[1-9][0-9]*)(\.[0-9]+)?", text)
        assert float(text) == value
    else:
        assert value == text
        # What another reader could take for something else is not text here.
        node = yaml.compose(text, yaml.SafeLoader)
        assert node is not None
        assert node.tag.rpartition(":")[2] in ("str", "timestamp")


def test_pure_python_loader_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    file = REPOSITORY / "config" / "policy" / "policy.yaml"
    fast = read(file.read_text())
    monkeypatch.setattr(strict_yaml, "_Loader", yaml.SafeLoader)
    assert read(file.read_text()) == fast
