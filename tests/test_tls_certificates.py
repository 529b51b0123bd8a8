"""`--tls-cert` and `--tls-key`: which files work, and what the server says about those that do not."""

import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from client import ChatClient, tls_context
from testkit.processes import DEADLINE
from testkit.server import StartServer, run_to_end

pytestmark = pytest.mark.measured

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """server.pem and server.key, both.pem and expired.pem, signed by an authority; and files that do not work."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA(key_type=trustme.KeyType.RSA)
    certificate = authority.issue_cert(HOST, key_type=trustme.KeyType.RSA)
    certificate.private_key_pem.write_to_path(str(folder / "server.key"))
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
    other = trustme.KeyType.ECDSA
    authority.issue_cert(HOST, key_type=other).private_key_pem.write_to_path(str(folder / "kind.key"))
    authority.issue_cert(HOST, key_type=trustme.KeyType.RSA).private_key_pem.write_to_path(str(folder / "other.key"))
    old = authority.issue_cert(HOST, not_after=datetime(2020, 1, 1, tzinfo=UTC))
    old.private_key_and_cert_chain_pem.write_to_path(str(folder / "expired.pem"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    (folder / "text.pem").write_text("hello\n")
    key = (folder / "server.key").read_text()
    (folder / "cut.pem").write_text((folder / "server.pem").read_text() + key[: len(key) // 2])
    return folder


@pytest.fixture
def encrypted_key(folder: Path) -> Iterator[Path]:
    if not shutil.which("openssl"):
        pytest.skip("openssl, the program, is not installed")
    path = folder / "encrypted.key"
    command = ["openssl", "rsa", "-aes128", "-passout", "pass:secret", "-in", str(folder / "server.key")]
    subprocess.run([*command, "-out", str(path)], check=True, capture_output=True, timeout=30)
    yield path
    path.unlink()


def refusal(folder: Path, certificate: str, key: str | None) -> str:
    """The one line that a server prints instead of starting."""
    options = ["--tls-cert", folder / certificate, *(["--tls-key", folder / key] if key else [])]
    done = run_to_end("--port", 0, "--data-dir", folder / "data", *options)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("certificate", "key", "complaint"),
    [
        ("missing.pem", None, "missing.pem: No such file or directory"),
        ("server.pem", "missing.key", "missing.key: No such file or directory"),
        (".", None, ": Is a directory"),
        ("text.pem", "server.key", "text.pem: no certificate in PEM format"),
        ("server.key", None, "server.key: no certificate in PEM format"),
        ("server.pem", None, "server.pem: no private key in PEM format"),
        ("server.pem", "text.pem", "text.pem: no private key in PEM format"),
        ("cut.pem", None, "cut.pem: a damaged certificate in PEM format"),
        ("server.pem", "other.key", "other.key: this is not the key of the certificate in"),
        ("server.pem", "kind.key", "kind.key: this is not the key of the certificate in"),
    ],
)
def test_an_unusable_file_gives_one_line_that_names_it(
    folder: Path, certificate: str, key: str | None, complaint: str
) -> None:
    line = refusal(folder, certificate, key)
    assert f"cannot start: {folder}" in line
    assert complaint in line


def test_an_encrypted_key_is_refused_without_asking_for_its_password(folder: Path, encrypted_key: Path) -> None:
    line = refusal(folder, "server.pem", encrypted_key.name)
    assert "encrypted.key: the key is encrypted; the server needs one without a password" in line


@pytest.mark.parametrize(("certificate", "key"), [("server.pem", "server.key"), ("both.pem", None)])
def test_the_key_may_be_in_the_certificate_s_file(
    start_server: StartServer, folder: Path, certificate: str, key: str | None
) -> None:
    options = ["--tls-cert", folder / certificate, *(["--tls-key", folder / key] if key else [])]
    server = start_server(*options)
    with ChatClient(HOST, server.port, tls=tls_context(folder / "ca.pem")) as alice:
        assert alice.login("alice") == 1
    assert not server.warnings


def test_a_key_without_a_certificate_is_bad_usage(folder: Path) -> None:
    done = run_to_end("--tls-key", folder / "server.key")
    assert done.returncode == 2
    assert "--tls-key needs --tls-cert, the certificate that the key belongs to" in done.stderr


def test_an_expired_certificate_is_logged_as_a_warning(start_server: StartServer, folder: Path) -> None:
    server = start_server("--tls-cert", folder / "expired.pem")
    warning = "expired.pem: clients will refuse this certificate: certificate has expired"
    assert warning in server.log


def test_the_chain_behind_the_certificate_is_sent(start_server: StartServer, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    path = tmp_path / "chain.pem"
    authority.create_child_ca().issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(path))
    server = start_server("--tls-cert", path)
    with ChatClient(HOST, server.port, tls=tls_context(tmp_path / "ca.pem")) as alice:
        assert alice.login("alice") == 1
    assert not server.warnings


@pytest.mark.skipif(not shutil.which("openssl"), reason="the openssl program is not installed")
def test_the_documented_command_makes_a_certificate_that_clients_trust(
    start_server: StartServer, tmp_path: Path
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "SERVICE.md").read_text()
    command = "openssl req" + page.split("    openssl req")[1].split("\n\n")[0].replace("\\\n", "")
    command = command.replace("IP:192.0.2.7", f"IP:{HOST}")
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True, timeout=60)
    server = start_server("--tls-cert", tmp_path / "chat.pem", "--tls-key", tmp_path / "chat.key")
    trust = tls_context(tmp_path / "chat.pem")
    trust.verify_flags |= ssl.VERIFY_X509_STRICT  # as newer versions of Python do
    with ChatClient(HOST, server.port, tls=trust) as alice:
        assert alice.login("alice") == 1
    assert not server.warnings


# A renewed certificate


def test_sighup_gives_new_connections_the_renewed_certificate_and_leaves_the_others(
    folder: Path, tmp_path: Path, start_server: StartServer
) -> None:
    used = tmp_path / "used.pem"
    shutil.copy(folder / "both.pem", used)
    server = start_server("--tls-cert", used)
    old = ChatClient(HOST, server.port, DEADLINE, tls_context(folder / "ca.pem"))
    old.login("alice")
    renewed = trustme.CA()
    renewed.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(used))
    renewed.cert_pem.write_to_path(str(tmp_path / "renewed.pem"))
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log("new connections get the certificate as it is now")
    with ChatClient(HOST, server.port, DEADLINE, tls_context(tmp_path / "renewed.pem")) as new:
        new.login("bob")
        old.ping()
    used.write_text("damaged")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log("the certificate stays as it was")
    with ChatClient(HOST, server.port, DEADLINE, tls_context(tmp_path / "renewed.pem")) as new:
        new.login("carol")
    old.ping()
    old.close()


def test_sighup_does_not_end_a_server_without_a_certificate(start_server: StartServer) -> None:
    server = start_server()
    with server.log_in("alice") as alice:
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("there is no certificate to read again")
        alice.expect_pong()
